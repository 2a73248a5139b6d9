//! Alerts and dashboard: their queries are valid and name metrics that exist, and the alerts are explained.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use wfe_tests::chart;
use wfe_tests::workspace;

use crate::{template, tool};

fn document(name: &str) -> String {
    fs::read_to_string(workspace().join("docs").join(name)).expect("a document")
}

/// Names of our metrics in a query.
fn metrics(query: &str) -> BTreeSet<&str> {
    let words = query.split(|it: char| !it.is_alphanumeric() && it != '_');
    let ours = words.filter(|it| it.starts_with("workflowexecution_") || it.starts_with("wfe_"));
    ours.collect()
}

fn exists(metric: &str) -> bool {
    let base = metric.trim_end_matches("_bucket");
    document("metrics.md").contains(&format!("`{base}`"))
}

fn rules() -> Value {
    let rendered = template(
        "monitoring",
        &["-s", "templates/monitoring/prometheusrule.yaml"],
    );
    let object: Value = serde_saphyr::from_str(&rendered).expect("an object");
    object["spec"].clone()
}

fn alerts() -> Vec<Value> {
    let rules = rules();
    let groups = rules["groups"].as_array().expect("groups").iter();
    groups
        .flat_map(|it| it["rules"].as_array().expect("rules").clone())
        .collect()
}

#[test]
fn alert_is_valid_names_metrics_that_exist_and_is_explained() {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").expect("a file");
    fs::write(file.path(), rules().to_string()).expect("written");
    let (success, text) = tool(
        "promtool",
        &["check", "rules", &file.path().to_string_lossy()],
    );
    assert!(success, "{text}");
    let operations = document("operations.md");
    for alert in alerts() {
        let name = alert["alert"].as_str().expect("a name");
        assert!(
            operations.contains(&format!("`{name}`")),
            "{name} is not in operations.md"
        );
        let used = metrics(alert["expr"].as_str().expect("a query"));
        assert!(!used.is_empty() && used.into_iter().all(exists), "{alert}");
        assert_eq!(alert["labels"]["team"], "platform", "labels are values");
    }
}

#[test]
fn alert_fires_when_it_must() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("rules.yaml"), rules().to_string()).expect("written");
    let input = directory.path().join("test.yaml");
    fs::copy(
        chart::directory().join("tests/alerts.promtool.yaml"),
        &input,
    )
    .expect("copied");
    let (success, text) = tool("promtool", &["test", "rules", &input.to_string_lossy()]);
    assert!(success, "{text}");
    // Each alert is tried.
    let tests = fs::read_to_string(input).expect("read");
    for alert in alerts() {
        let name = alert["alert"].as_str().expect("a name");
        assert!(
            tests.contains(&format!("alertname=\"{name}\"")),
            "{name} is not tried"
        );
    }
}

#[test]
fn dashboard_names_metrics_that_exist() {
    let text = fs::read_to_string(chart::directory().join("files/dashboard.json"));
    let dashboard: Value = serde_json::from_str(&text.expect("a dashboard")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.len() > 10);
    for target in panels
        .iter()
        .flat_map(|it| it["targets"].as_array().expect("targets"))
    {
        let used = metrics(target["expr"].as_str().expect("a query"));
        assert!(!used.is_empty() && used.into_iter().all(exists), "{target}");
    }
}
