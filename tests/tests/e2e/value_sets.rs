//! Each set of values of the chart's `ci/` is accepted by a real API server, field by field, with every
//! optional object.

use wfe_tests::chart::{PROGRAMS, directory, helm, kubectl, run, tool_directory, value_sets};

use crate::story::Story;

/// CRDs of the Prometheus operator that the chart has objects of.
const MONITORING: [&str; 2] = ["servicemonitors", "prometheusrules"];
/// An execution namespace in one of the sets.
const ANOTHER_NAMESPACE: &str = "remediation-jobs";

/// Applies each set by dry run, as a release of its own.
pub async fn are_accepted(story: &mut Story) {
    let crds = tool_directory("prometheus-operator-crd").expect("CRDs");
    for kind in MONITORING {
        let file = crds.join(format!("monitoring.coreos.com_{kind}.yaml"));
        let apply = ["apply", "--server-side", "-f", &file.to_string_lossy()];
        kubectl(&apply).await.expect("a CRD");
        let name = format!("crd/{kind}.monitoring.coreos.com");
        kubectl(&["wait", "--for=condition=Established", &name])
            .await
            .expect("established");
    }
    kubectl(&["create", "namespace", ANOTHER_NAMESPACE])
        .await
        .expect("created");
    let sets = value_sets();
    let mut objects = 0;
    for set in &sets {
        let values = directory().join(format!("ci/{set}-values.yaml"));
        let (chart, values) = (directory(), values.to_string_lossy().into_owned());
        let chart = chart.to_string_lossy();
        let template = [
            "template",
            "try",
            &chart,
            "-n",
            PROGRAMS,
            "-f",
            &values,
            "--skip-tests",
        ];
        let rendered = helm(&template).await.expect("rendered");
        let file = story.path(&format!("{set}.yaml"));
        std::fs::write(&file, rendered).expect("written");
        let apply = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--validate=strict",
            "-o",
            "name",
            "-f",
            &file.to_string_lossy(),
        ];
        let applied = run("kubectl", &apply).await;
        let applied = applied.unwrap_or_else(|error| panic!("{set}: {error}"));
        objects += applied.lines().count();
    }
    println!("          {} sets of values, {objects} objects", sets.len());
    story.done("every set of values is accepted by the API server");
}
