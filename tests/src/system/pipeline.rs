//! Tekton pipelines for tests.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a fixture: a test fails by panicking"
)]

use serde_json::{Value, json};

use super::script::Script;
use crate::Cluster;

/// A task of a test pipeline: a shell script in one step, or several.
#[derive(Clone, Debug)]
pub struct Task {
    name: &'static str,
    spec: Value,
    more: Value,
}

impl Task {
    /// A task with a step for each script, named `one`, `two` and so on.
    pub fn of(name: &'static str, cluster: &Cluster, scripts: &[&str]) -> Self {
        let registry = cluster.registry().expect("a registry");
        let image = format!("{}/busybox:1", registry.address());
        let names = ["one", "two", "three"].into_iter();
        let steps = names.zip(scripts).map(|(name, script)| {
            json!({ "name": name, "image": image, "command": ["/bin/sh", "-c"], "args": [script] })
        });
        let steps: Vec<_> = steps.collect();
        // PodSecurity `restricted` requires this of every container.
        let security = json!({
            "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] }, "runAsNonRoot": true,
        });
        Self {
            name,
            spec: json!({ "stepTemplate": { "securityContext": security }, "steps": steps }),
            more: json!({}),
        }
    }

    /// Changes the spec of the task.
    #[must_use]
    pub fn spec(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Adds fields to the task of the pipeline, such as `runAfter`.
    #[must_use]
    pub fn with(mut self, more: Value) -> Self {
        self.more = more;
        self
    }

    fn embedded(&self) -> Value {
        let mut task = json!({ "name": self.name, "taskSpec": self.spec });
        extend(&mut task, &self.more);
        task
    }

    /// Pushes the task as a bundle of its own; returns the task of a pipeline that refers to it.
    pub fn push(&self, cluster: &Cluster) -> Value {
        let object = json!({
            "apiVersion": "tekton.dev/v1", "kind": "Task", "metadata": { "name": self.name }, "spec": self.spec,
        });
        let registry = cluster.registry().expect("a registry");
        let bundle = registry.push_bundle(&format!("tasks/{}:1", self.name), &[object]);
        let param = |name: &str, value: &str| json!({ "name": name, "value": value });
        let bundle = bundle.expect("pushed");
        let params = [
            param("bundle", &bundle),
            param("name", self.name),
            param("kind", "task"),
        ];
        let mut task =
            json!({ "name": self.name, "taskRef": { "resolver": "bundles", "params": params } });
        extend(&mut task, &self.more);
        task
    }
}

fn extend(task: &mut Value, more: &Value) {
    if let (Some(task), Some(more)) = (task.as_object_mut(), more.as_object()) {
        task.extend(more.clone());
    }
}

/// Pushes a pipeline of `tasks`, which run one after another, as the bundle of a workflow. `spec` is
/// merged into the pipeline's spec, `more` is appended to the catalog entry.
pub fn pipeline(
    cluster: &Cluster,
    id: &'static str,
    tasks: &[Task],
    spec: &Value,
    more: &str,
) -> Script {
    let mut tasks: Vec<_> = tasks.iter().map(Task::embedded).collect();
    for index in 1..tasks.len() {
        let before = tasks[index - 1]["name"].clone();
        extend(&mut tasks[index], &json!({ "runAfter": [before] }));
    }
    let mut whole = json!({ "tasks": tasks });
    extend(&mut whole, spec);
    let object = json!({
        "apiVersion": "tekton.dev/v1", "kind": "Pipeline", "metadata": { "name": "workflow" }, "spec": whole,
    });
    let registry = cluster.registry().expect("a registry");
    let bundle = registry.push_bundle(&format!("pipelines/{id}:1"), &[object]);
    Script::pipeline(id, bundle.expect("pushed"), more)
}
