//! `wfe-cluster`: see [`wfe_tests::cluster::args::Args`] for its subcommands.

use std::process::ExitCode;

use clap::Parser;
use wfe_tests::cluster::args::Args;

fn main() -> ExitCode {
    match wfe_tests::cluster::commands::execute(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("wfe-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}
