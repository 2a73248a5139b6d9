//! The chart, installed by Helm on the real node: both programs as pods behind their Service. One story, told in
//! order; `--nocapture` shows what takes how long.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::large_futures,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests are long scenarios; tests and their helpers fail by panicking"
)]

mod argo_cd;
mod certificates;
mod demo;
mod install_document;
mod load;
mod node;
mod story;
mod value_sets;
