//! `wfe-cluster`: see [`wfe_tests::args::Args`] for what it can do.

use std::process::ExitCode;

use clap::Parser;
use wfe_tests::args::Args;

fn main() -> ExitCode {
    match wfe_tests::commands::execute(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("wfe-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}
