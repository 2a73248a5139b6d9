//! The chart, installed by Helm on the real node: both programs as pods behind their Service. One story, told in
//! order; `--nocapture` shows what takes how long.

mod certificates;
mod demo;
mod load;
mod node;
mod story;
mod value_sets;
