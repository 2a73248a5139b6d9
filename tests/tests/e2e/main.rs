//! The chart, installed by Helm on the real node: both programs as pods behind their Service. One story, told in
//! order; `--nocapture` shows what takes how long.

mod argo_cd;
mod certificates;
mod demo;
mod install_document;
mod load;
mod node;
mod story;
mod value_sets;
