//! Documents that are written from the chart: schema, README and the plain manifests of `certs/`. With
//! `WFE_WRITE_DOCUMENTS` they are written instead of compared.

use std::fs;
use std::path::PathBuf;

use wfe_tests::chart;

use crate::{template, tool, workspace};

fn compare(path: &PathBuf, text: &str) {
    if std::env::var_os("WFE_WRITE_DOCUMENTS").is_some() {
        fs::write(path, text).expect("written");
    }
    let written = fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == text,
        "{} is not what the chart says: run `make generate`",
        path.display()
    );
}

#[test]
fn schema_is_what_the_values_say() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("schema.json");
    let arguments = [
        "--no-additional-properties",
        "--use-helm-docs",
        "--indent",
        "2",
        "-f",
        "values.yaml",
        "-o",
    ];
    let (success, text) = tool(
        "helm-values-schema-json",
        &[&arguments[..], &[&output.to_string_lossy()]].concat(),
    );
    assert!(success, "{text}");
    let schema = fs::read_to_string(output).expect("a schema");
    compare(&chart::directory().join("values.schema.json"), &schema);
}

#[test]
fn readme_is_what_the_values_say() {
    let (success, text) = tool("helm-docs", &["--chart-search-root", ".", "--dry-run"]);
    assert!(success, "{text}");
    let start = text.find("# workflow-execution").expect("a title");
    let readme = format!("{}\n", text[start..].trim_end());
    compare(&chart::directory().join("README.md"), &readme);
}

#[test]
fn plain_manifests_are_what_the_chart_renders() {
    for (file, values) in [
        ("cert-manager.yaml", "cert-manager"),
        ("cert-manager-issuer.yaml", "cert-manager-issuer"),
    ] {
        let rendered = template(values, &["-s", "templates/certificates.yaml"]);
        let objects = rendered
            .lines()
            .filter(|it| {
                !it.starts_with("# Source:")
                    && !it.contains("app.kubernetes.io/managed-by")
                    && !it.contains("helm.sh/chart")
            })
            .map(|it| format!("{it}\n"));
        let title = format!(
            "# The objects of `certificates.mode: certManager` in namespace {}, as the chart renders them: `make generate`.\n",
            chart::PROGRAMS
        );
        compare(
            &workspace().join("certs").join(file),
            &(title + &objects.collect::<String>()),
        );
    }
}
