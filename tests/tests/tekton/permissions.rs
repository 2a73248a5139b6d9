//! The programs have no permission that they do not use: what RBAC grants is compared with what the API
//! server has logged, and with the list in `docs/security.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::{Value, json};
use wfe_tests::system::{Script, System, Task, condition, pipeline};

use crate::setup::cluster;

/// The files with the rules of each program.
const FILES: [(&str, &[&str]); 2] = [
    (
        "wfe-controller",
        &[
            "controller-cluster-rules.yaml",
            "controller-rules.yaml",
            "controller-expiry-rules.yaml",
            "leader-election-rules.yaml",
            "data-storage-token-rules.yaml",
            "holmes-token-rules.yaml",
            "catalog-rules.yaml",
            "orchestration-rules.yaml",
            "analysis-rules.yaml",
            "certificate-rules.yaml",
            "certificate-cluster-rules.yaml",
        ],
    ),
    (
        "wfe-webhook",
        &[
            "webhook-rules.yaml",
            "catalog-rules.yaml",
            "data-storage-token-rules.yaml",
        ],
    ),
];

/// Verb and resource, as `get secrets` or `update kubernaut.ai/workflowexecutions/status`.
type Permissions = BTreeSet<String>;

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn permission(verb: &str, group: &str, resource: &str) -> String {
    match group {
        "" => format!("{verb} {resource}"),
        group => format!("{verb} {group}/{resource}"),
    }
}

fn granted(files: &[&str]) -> Permissions {
    let mut granted = Permissions::new();
    for name in files {
        let text = file(&format!("charts/workflow-execution/files/{name}"));
        let rules: Vec<PolicyRule> = serde_saphyr::from_str(&text).expect("rules");
        for rule in rules {
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    for verb in &rule.verbs {
                        granted.insert(permission(verb, group, resource));
                    }
                }
            }
        }
    }
    granted
}

/// What a ServiceAccount has requested with success, or in vain for an object that is not there.
fn used(log: &str, user: &str) -> Permissions {
    let events = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let own =
        events.filter(|it| it["user"]["username"] == user && it["responseStatus"]["code"] != 403);
    let requested = own.filter_map(|event| {
        let object = event.get("objectRef")?;
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
        let resource = match text("subresource") {
            "" => text("resource").to_owned(),
            subresource => format!("{}/{subresource}", text("resource")),
        };
        Some(permission(
            event["verb"].as_str()?,
            text("apiGroup"),
            &resource,
        ))
    });
    requested.collect()
}

/// The table of permissions in the documentation: all of a program's, and those of them that only rare
/// situations need.
fn documented(program: &str) -> (Permissions, Permissions) {
    let (mut all, mut rare) = (Permissions::new(), Permissions::new());
    let text = file("docs/security.md");
    for line in text.lines() {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, resources, verbs, in_trouble, _] = cells.as_slice() else {
            continue;
        };
        if *name != program {
            continue;
        }
        for resource in resources.split(", ") {
            let of = |verb: &str| format!("{verb} {resource}");
            all.extend(
                verbs
                    .split(", ")
                    .chain(in_trouble.split(", "))
                    .filter(|it| !it.is_empty())
                    .map(of),
            );
            rare.extend(in_trouble.split(", ").filter(|it| !it.is_empty()).map(of));
        }
    }
    (all, rare)
}

#[tokio::test]
async fn granted_permissions_are_used_or_listed() {
    let cluster = cluster().await;
    let depends = "dependencies: {secrets: [{name: token}], configMaps: [{name: limits}]}\n";
    let quick = Script::push(&cluster, "quick", "true", depends);
    let long = Script::push(&cluster, "long", "sleep 600", "");
    let mut unschedulable = Script::of("unschedulable", quick.image.clone(), "");
    unschedulable.yaml = unschedulable.yaml.replace(
        "engine: job,",
        "engine: job, resources: {requests: {cpu: '1000'}, limits: {cpu: '1000'}},",
    );
    let task = |name: &'static str, script: &str| Task::of(name, &cluster, &[script]);
    let piped = pipeline(&cluster, "piped", &[task("only", "true")], &json!({}), "");
    let naps = pipeline(
        &cluster,
        "naps",
        &[task("nap", "sleep 600")],
        &json!({}),
        "",
    );
    let workflows = [&quick, &long, &unschedulable, &piped, &naps];
    let mut system = System::install(&cluster, "rights", &workflows)
        .await
        .expect("installed");
    let data = json!({ "a": "b" });
    system.add_secret("token", data).await.expect("created");
    let data = json!({ "a": "b" });
    system
        .add_config_map("limits", data)
        .await
        .expect("created");
    system.start_data_storage().await.expect("started");
    system.elect_leader().await.expect("allowed");
    system.expire_after("1s").await.expect("allowed");
    let flags = ["--start-timeout=20s", "--retention=1s", "--cooldown=0s"];
    system.controller_flags.extend(flags.map(str::to_owned));
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    for workflow in workflows {
        system
            .create(workflow, workflow.id, &json!({}))
            .await
            .expect("admitted");
    }
    for name in ["long", "naps"] {
        let running = system
            .until(name, "ExecutionRunning", "True/ExecutionStarted")
            .await;
        running.expect("running");
        system
            .cancel(name, "it was enough")
            .await
            .expect("cancelled");
    }
    let failed = system.ended("unschedulable").await.expect("ended");
    assert_eq!(condition(&failed, "Stalled"), "True/ResourceExhausted");
    for name in ["quick", "piped"] {
        // Its time to live is over.
        system.gone(name).await.expect("gone");
    }

    let requests = std::fs::read_to_string(cluster.audit_log()).expect("an audit log");
    let mut problems = BTreeMap::new();
    for (program, files) in FILES {
        let account = format!("system:serviceaccount:{}:{program}", system.programs.name());
        let (granted, used) = (granted(files), used(&requests, &account));
        let (all, rare) = documented(program);
        assert!(!used.is_empty(), "the log has no request of {account}");
        let found = [
            ("granted, not in docs/security.md", &granted - &all),
            ("in docs/security.md, not granted", &all - &granted),
            (
                "granted, not used and not listed as rare",
                &(&granted - &used) - &rare,
            ),
        ];
        problems.extend(
            found
                .into_iter()
                .filter(|(_, it)| !it.is_empty())
                .map(|(what, it)| ((program, what), it)),
        );
    }
    assert!(problems.is_empty(), "{problems:#?}");
}
