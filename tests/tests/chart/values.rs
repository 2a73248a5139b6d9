//! Values: each set in `ci/` renders, unknown ones are refused, and every flag has one.

use std::collections::BTreeSet;

use std::process::Command;

use serde_json::Value;
use wfe_tests::chart::value_sets;
use wfe_tests::system::path_of;

use crate::{help, template, tool};

/// Flags that no value sets, and why.
const NO_VALUE: [(&str, &str); 9] = [
    (
        "--holmes-token-file",
        "the ServiceAccount's token is better",
    ),
    (
        "--data-storage-token-file",
        "the ServiceAccount's token is better",
    ),
    ("--leader-elect", "one replica leads as well"),
    ("--lease-namespace", "the release's"),
    ("--metrics-addr", "the Services name the port"),
    ("--health-addr", "the probes name the port"),
    ("--cert-dir", "where the Secret is mounted"),
    ("--help", ""),
    ("--version", ""),
];

/// Every set of values renders and is free of lint.
#[test]
fn each_value_set_is_rendered_and_without_lint() {
    let sets = value_sets();
    assert!(sets.len() >= 20, "{sets:?}");
    for set in sets {
        template(&set, &[]);
        let file = format!("ci/{set}-values.yaml");
        let (success, text) = tool("helm", &["lint", ".", "--strict", "-f", &file]);
        assert!(success, "{set}: {text}");
    }
}

/// A value that the chart does not have, or one of another type, is an error that names it.
#[test]
fn value_that_is_unknown_or_wrong_is_refused_with_its_name() {
    for (value, says) in [
        ("webhook.replicas=3", "'replicas' not allowed"),
        ("controler.replicaCount=3", "'controler' not allowed"),
        ("webhook.failurePolicy=Sometimes", "webhook/failurePolicy"),
        ("controller.cooldown=five", "controller/cooldown"),
        ("webhook.image.digest=latest", "webhook/image/digest"),
        (
            "global.imageRegistry=",
            "set the registry that has the images",
        ),
        (
            "executionNamespace.name=kubernaut-system",
            "must not be the release's namespace",
        ),
        (
            "controller.analysis.enabled=true,controller.analysis.holmesUrl=http://agent:8080",
            "set controller.analysis.plainHttp",
        ),
    ] {
        let arguments = [
            "template",
            "x",
            ".",
            "-n",
            "kubernaut-system",
            "-f",
            "ci/default-values.yaml",
            "--set",
            value,
        ];
        let (success, text) = tool("helm", &arguments);
        assert!(!success && text.contains(says), "{value}: {text}");
    }
}

/// Kubernaut's own definition of RemediationWorkflow can stay as it is.
#[test]
fn definitions_are_installed_as_values_say_and_kept() {
    let kept = "helm.sh/resource-policy: keep";
    for (values, count) in [("default", 2), ("catalog-namespace", 1), ("no-crds", 0)] {
        let rendered = template(values, &[]);
        let documents = rendered.split("\n---\n");
        let definitions = documents.filter(|it| it.contains("kind: CustomResourceDefinition\n"));
        let definitions: Vec<_> = definitions.collect();
        assert_eq!(definitions.len(), count, "{values}");
        assert!(definitions.iter().all(|it| it.contains(kept)), "{values}");
    }
}

/// The chart's own unit tests.
#[test]
fn unit_tests_of_the_chart_pass() {
    let (success, text) = tool("helm-unittest", &["."]);
    assert!(success, "{text}");
}

/// Each flag of the programs is set by a value, and the chart's defaults are the programs'.
#[test]
fn flag_of_a_program_has_a_value_with_the_same_default() {
    let all: String = value_sets().iter().map(|set| template(set, &[])).collect();
    let rendered = template("default", &[]);
    for program in ["wfe-controller", "wfe-webhook"] {
        let help = help(program);
        let mut flags = BTreeSet::new();
        let mut flag = "";
        for line in help.lines().map(str::trim) {
            if let Some(found) = line.split_whitespace().find(|it| it.starts_with("--")) {
                if line.starts_with('-') {
                    flag = found.split(['=', '[']).next().unwrap_or(found);
                    flags.insert(flag);
                }
            } else if let Some(default) = line.strip_prefix("[default: ") {
                let default = default.trim_end_matches(']');
                let set = format!("- {flag}={default}\n");
                let other = OTHER_DEFAULT.contains(&flag);
                assert!(
                    other || !rendered.contains(&format!("- {flag}=")) || rendered.contains(&set),
                    "{program} {flag}: the chart has another default than {default}"
                );
            }
        }
        assert!(flags.len() > 10, "{help}");
        let missing: Vec<_> = flags
            .into_iter()
            .filter(|flag| {
                !["=", "\n"]
                    .iter()
                    .any(|end| all.contains(&format!("- {flag}{end}")))
            })
            .filter(|flag| NO_VALUE.iter().all(|(name, _)| name != flag))
            .collect();
        assert_eq!(missing, [""; 0], "flags of {program} without a value");
    }
}

/// A program accepts the flags that each set of values gives it: what is wrong with one is told before
/// anything is connected.
#[test]
fn flags_of_each_value_set_are_accepted() {
    for set in value_sets() {
        for program in ["controller", "webhook"] {
            let file = format!("templates/{program}/deployment.yaml");
            let rendered = template(&set, &["-s", &file]);
            let deployment: Value = serde_saphyr::from_str(&rendered).expect("a Deployment");
            let container = &deployment["spec"]["template"]["spec"]["containers"][0];
            let flags = container["args"].as_array().expect("flags").iter();
            let flags = flags.map(|it| it.as_str().expect("text"));
            let output = Command::new(path_of(&format!("wfe-{program}")).expect("a path"))
                .args(flags)
                .env("KUBECONFIG", "/nonexistent")
                .output()
                .expect("started");
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            let connects = text.contains("/nonexistent") || text.contains("/etc/wfe-webhook/tls");
            assert!(connects, "{set}: {text}");
        }
    }
}

/// Flags whose default is made from the release, or is another one in a pod.
const OTHER_DEFAULT: [&str; 5] = [
    "--audit-file",
    "--lease-name",
    "--certificate-service",
    "--webhook-configuration",
    "--default-resources",
];
