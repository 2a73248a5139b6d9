//! Reviews RemediationWorkflow objects, the entries of the catalog: what could not be run is not
//! stored, and a changed workflow has another version.

use serde::Deserialize;
use serde_json::Value;
use wfe_model::workflow::{ReadWorkflow, Workflow};

use crate::refusal::Refusal;
use crate::review::{Request, Verdict};

#[derive(Deserialize)]
#[serde(default)]
struct ObjectFields {
    metadata: Metadata,
    spec: Value,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    generate_name: String,
    deletion_timestamp: Option<String>,
}

impl Default for ObjectFields {
    fn default() -> Self {
        Self {
            metadata: Metadata::default(),
            spec: Value::Null,
        }
    }
}

impl ObjectFields {
    /// Reads the workflow. Its status is not reviewed: it says whether the workflow may run.
    fn read(&self) -> Result<ReadWorkflow, Vec<Refusal>> {
        let Metadata {
            name,
            generate_name,
            ..
        } = &self.metadata;
        let name = if name.is_empty() { generate_name } else { name };
        let read = Workflow::read_object(name, &self.spec, &Value::Null);
        read.map_err(|error| error.problems.into_iter().map(Refusal::Workflow).collect())
    }
}

/// Reviews a CREATE or UPDATE request.
pub fn review(request: &Request<'_>) -> Verdict {
    let object = match request.object::<ObjectFields>() {
        Ok(object) => object,
        Err(refusal) => return Verdict::refuse(vec![refusal]),
    };
    let stored = request
        .old_object
        .map(|_| request.old_object::<ObjectFields>());
    let stored = stored.and_then(Result::ok);
    // Labels and finalizers of a stored object can always be changed.
    let is_deleted = object.metadata.deletion_timestamp.is_some();
    if is_deleted || stored.as_ref().is_some_and(|it| it.spec == object.spec) {
        return Verdict::allow();
    }
    let read = match object.read() {
        Ok(read) => read,
        Err(refusals) => return Verdict::refuse(refusals),
    };
    // A stored workflow that is invalid never ran: its correction needs no new version.
    let stored = stored.and_then(|it| it.read().ok());
    if let Some(stored) = stored
        && stored.workflow.version == read.workflow.version
    {
        let version = read.workflow.version;
        return Verdict::refuse(vec![Refusal::VersionUnchanged { version }]);
    }
    let warnings = read.warnings.iter();
    warnings.fold(Verdict::allow(), |verdict, warning| verdict.warn(warning))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn spec(version: &str, engine: &str) -> Value {
        let bundle = format!("r.io/w@sha256:{HEX}");
        json!({ "version": version, "execution": { "engine": engine, "bundle": bundle } })
    }

    fn verdict(stored: Option<Value>, spec: &Value) -> Verdict {
        let operation = if stored.is_some() { "UPDATE" } else { "CREATE" };
        let object = |spec: &Value| json!({ "metadata": { "name": "oom" }, "spec": spec });
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "1", "operation": operation, "name": "oom",
                "resource": { "group": "kubernaut.ai", "resource": "remediationworkflows" },
                "object": object(spec), "oldObject": stored.map(|it| object(&it)),
            },
        });
        let body = review.to_string();
        let expected = ["CREATE remediationworkflows", "UPDATE remediationworkflows"];
        let request = Request::read(body.as_bytes(), &expected).expect("a request");
        super::review(&request)
    }

    /// BR-WE-014: every problem is reported, with its path in the object.
    #[test]
    fn review_of_invalid_workflow_denies_with_every_path() {
        let mut spec = spec("", "ansible");
        spec["parameters"] = json!([{ "name": "1", "type": "string" }]);
        let message = verdict(None, &spec).message();
        for says in [
            "spec.version: must not be empty",
            "spec.execution.engine: unsupported value \"ansible\": supported values are \"job\", \"tekton\"",
            "spec.parameters[0].name: invalid value \"1\"",
        ] {
            assert!(message.contains(says), "{message}");
        }
    }

    /// BR-WE-014: an execution names a version, which must mean what it meant at admission.
    #[rstest]
    #[case(None, spec("1", "job"), "")]
    #[case(Some(spec("1", "job")), spec("1", "job"), "")]
    #[case(Some(spec("1", "job")), spec("2", "tekton"), "")]
    #[case(Some(spec("1", "ansible")), spec("1", "job"), "")]
    #[case(Some(spec("1", "ansible")), spec("1", "ansible"), "")]
    #[case(
        Some(spec("1", "job")),
        spec("1", "tekton"),
        "spec.version: the spec was changed, but the version is still \"1\": change it, too"
    )]
    fn review_of_changed_workflow_requires_new_version(
        #[case] stored: Option<Value>,
        #[case] changed: Value,
        #[case] says: &str,
    ) {
        assert_eq!(verdict(stored, &changed).message(), says);
    }
}
