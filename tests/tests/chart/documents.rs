//! Documents that are written from the chart: schema, README and the plain manifests of `certs/`. With
//! `WFE_WRITE_DOCUMENTS` they are written instead of compared.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use wfe_tests::chart;
use wfe_tests::workspace;

use crate::{help, template, tool};

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
    let (success, text) = tool(
        "helm-docs",
        &[
            "--chart-search-root",
            ".",
            "--dry-run",
            "--log-level",
            "warn",
        ],
    );
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

#[test]
fn flags_document_is_what_the_programs_print() {
    let mut text =
        "# Flags\n\nAs the programs print them. Written by `make generate`.\n".to_owned();
    for program in ["wfe-controller", "wfe-webhook"] {
        let help = help(program);
        let _ = write!(
            text,
            "\n## {program}\n\n```text\n{}\n```\n",
            help.trim_end()
        );
    }
    let lines = text.lines().map(str::trim_end);
    let text = lines.fold(String::new(), |text, line| text + line + "\n");
    compare(&workspace().join("docs/flags.md"), &text);
}

#[test]
fn resource_document_is_what_the_crds_say() {
    let crds = fs::read_to_string(chart::directory().join("files/crds.yaml")).expect("the CRDs");
    let crds: Vec<Value> = serde_saphyr::from_multiple(&crds).expect("the CRDs");
    let mut text = "# Resources\n\n`kubernaut.ai/v1alpha1`, as the CRDs describe them. **Bold**: required. Written by `make generate`.\n".to_owned();
    for crd in crds {
        let kind = crd["spec"]["names"]["kind"].as_str().expect("a kind");
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            let _ = write!(
                text,
                "\n## {kind} {part}\n\n| field | type | meaning |\n| --- | --- | --- |\n"
            );
            fields(&schema["properties"][part], part, &mut text);
        }
    }
    compare(&workspace().join("docs/resource.md"), &text);
}

/// A row for each field, and for those in it.
fn fields(schema: &Value, path: &str, text: &mut String) {
    let required = schema["required"].as_array();
    let properties = schema["properties"].as_object();
    for (name, field) in properties.into_iter().flatten() {
        let is_required = required.is_some_and(|it| it.iter().any(|it| it == name));
        let mark = if is_required { "**" } else { "" };
        let path = format!("{path}.{name}");
        let mut kind = field["type"].as_str().unwrap_or("any").to_owned();
        let mut inner = (field, path.clone());
        if kind == "array" {
            kind = format!(
                "list of {}",
                field["items"]["type"].as_str().unwrap_or("any")
            );
            inner = (&field["items"], format!("{path}[]"));
        }
        if let Some(values) = field["enum"].as_array() {
            let values: Vec<_> = values.iter().filter_map(Value::as_str).collect();
            kind = values.join(", ");
        }
        let meaning = field["description"].as_str().unwrap_or_default();
        let meaning = meaning.replace('\n', " ").replace('|', "\\|");
        let _ = writeln!(text, "| {mark}`{path}`{mark} | {kind} | {meaning} |");
        fields(inner.0, &inner.1, text);
    }
}
