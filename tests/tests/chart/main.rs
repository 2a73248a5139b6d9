//! The chart without a cluster: what it renders, and that its documents say what it does.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::large_futures,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests are long scenarios; tests and their helpers fail by panicking"
)]

mod documents;
mod monitoring;
mod values;

use std::process::Command;

use wfe_tests::chart;
use wfe_tests::system::path_of;

/// Runs a tool in the chart's directory; returns whether it succeeded, and its output.
fn tool(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(chart::directory())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}: run `make chart`"));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8(text).expect("text"),
    )
}

/// Renders the chart with a file of `ci/` and more flags.
fn template(values: &str, more: &[&str]) -> String {
    let file = format!("ci/{values}-values.yaml");
    let arguments = [
        "template",
        chart::RELEASE,
        ".",
        "-n",
        chart::PROGRAMS,
        "-f",
        &file,
    ];
    let (success, text) = tool("helm", &[&arguments[..], more].concat());
    assert!(success, "{values}: {text}");
    text
}

/// What a program prints for `--help`.
fn help(program: &str) -> String {
    let program = path_of(program).expect("a path");
    let output = Command::new(&program).arg("--help").output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    String::from_utf8(output.stdout).expect("text")
}
