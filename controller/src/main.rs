//! `wfe-controller`: see [`wfe_controller::args::Args`] for what it can do.

use std::io::Write;

use clap::Parser;
use wfe_controller::args::{Args, Command};

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Crds => std::io::stdout().write_all(wfe_controller::crds::yaml()?.as_bytes())?,
    }
    Ok(())
}
