//! Whether an object that has the name of an execution is the one that an earlier attempt has created.
//! Somebody who may create objects in the execution namespace can make one by hand, with the labels of
//! the execution but another image or command.

use std::collections::BTreeMap;

use kube::core::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use crate::names::{JOB_NAME, STARTED};

/// Labels that Kubernetes gives the pods of a Job.
const POD_LABELS: [&str; 4] = [
    "batch.kubernetes.io/controller-uid",
    JOB_NAME,
    "controller-uid",
    "job-name",
];

/// Whether `found` is the object `planned` as the API server stores it. `defaulted` is the API server's
/// answer to a dry run of the same create with another name: it has the defaults, and what admission
/// plugins add.
pub fn is_as_planned(planned: &Value, found: &Value, defaulted: &Value) -> bool {
    let metadata = |object: &Value| ObjectMeta::deserialize(object.get("metadata")?).ok();
    let (Some(planned), Some(stored)) = (metadata(planned), metadata(found)) else {
        return false;
    };
    let is_started = |it: &ObjectMeta| has_all(it.annotations.as_ref(), [(STARTED, "true")]);
    planned.owner_references == stored.owner_references
        && !is_started(&stored)
        && has_all(stored.labels.as_ref(), pairs(planned.labels.as_ref()))
        && has_all(
            stored.annotations.as_ref(),
            pairs(planned.annotations.as_ref()),
        )
        && spec(found) == spec(defaulted)
}

type Texts = BTreeMap<String, String>;

fn pairs(texts: Option<&Texts>) -> impl Iterator<Item = (&str, &str)> {
    let texts = texts.into_iter().flatten();
    texts.map(|(key, value)| (key.as_str(), value.as_str()))
}

fn has_all<'a>(
    texts: Option<&Texts>,
    wanted: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> bool {
    let has = |(key, value)| {
        texts
            .and_then(|it| it.get(key))
            .is_some_and(|it| it == value)
    };
    wanted.into_iter().all(has)
}

/// The spec without what depends on the uid and the name of a Job.
fn spec(object: &Value) -> Option<Value> {
    let mut spec = object.get("spec")?.clone();
    spec.as_object_mut()?.remove("selector");
    let labels = spec.pointer_mut("/template/metadata/labels");
    if let Some(labels) = labels.and_then(Value::as_object_mut) {
        labels.retain(|label, _| !POD_LABELS.contains(&label.as_str()));
    }
    Some(spec)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;
    use wfe_model::engine::Engine;

    use super::*;
    use crate::job::build::build;
    use crate::plan::fixture::plan;

    /// The Job as the API server stores it, with the name and uid of the stored one.
    fn stored(planned: &Value, uid: &str) -> Value {
        let mut stored = planned.clone();
        stored["metadata"]["uid"] = json!(uid);
        stored["spec"]["selector"] =
            json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": uid } });
        stored["spec"]["completionMode"] = json!("NonIndexed");
        stored["spec"]["template"]["metadata"]["labels"]["controller-uid"] = json!(uid);
        stored
    }

    /// BR-WE-013
    #[rstest]
    #[case::same(|_: &mut Value| (), true)]
    #[case::image(|it: &mut Value| it["spec"]["template"]["spec"]["containers"][0]["image"] = json!("r.io/other"), false)]
    #[case::command(|it: &mut Value| it["spec"]["template"]["spec"]["containers"][0]["command"] = json!(["true"]), false)]
    #[case::another_container(|it: &mut Value| it["spec"]["template"]["spec"]["initContainers"] = json!([{ "name": "first" }]), false)]
    #[case::account(|it: &mut Value| it["spec"]["template"]["spec"]["serviceAccountName"] = json!("other"), false)]
    #[case::owner(|it: &mut Value| it["metadata"]["ownerReferences"] = json!([{ "apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "u" }]), false)]
    #[case::image_in_annotation(|it: &mut Value| it["metadata"]["annotations"]["kubernaut.ai/image"] = json!("r.io/other"), false)]
    #[case::started(|it: &mut Value| it["metadata"]["annotations"]["kubernaut.ai/started"] = json!("true"), false)]
    #[case::label_of_another_client(|it: &mut Value| it["metadata"]["labels"]["a"] = json!("b"), true)]
    fn object_is_as_planned_if_nothing_that_runs_differs(
        #[case] change: fn(&mut Value),
        #[case] expected: bool,
    ) {
        let planned = json!(build(&plan(Engine::Job, "prod")));
        let mut found = stored(&planned, "u-1");
        change(&mut found);
        let defaulted = stored(&planned, "u-2");
        assert_eq!(is_as_planned(&planned, &found, &defaulted), expected);
    }
}
