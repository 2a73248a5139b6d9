//! The mutating handler: refuses what breaks a static rule, in our words and before the schema
//! speaks, and adds the finalizer.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation};
use serde_json::{Value, json};
use wfe_model::FINALIZER;
use wfe_model::rules;

use crate::review::{Request, Verdict};

/// Judges a create; what is patched in is there only once, however often this is called.
pub fn mutate(request: &Request) -> Verdict {
    let checked = rules::read(request.part("/spec"))
        .map_err(|violation| vec![violation])
        .and_then(|spec| rules::check(&spec));
    match checked {
        Ok(_) => Verdict {
            patch: finalizer(request.part("/metadata/finalizers")),
            ..Verdict::allow()
        },
        Err(violations) => Verdict::violates(&violations),
    }
}

fn finalizer(present: &Value) -> Option<Patch> {
    let add = |tokens: &[&str], value| {
        let path = PointerBuf::from_tokens(tokens.iter().copied());
        Some(Patch(vec![PatchOperation::Add(AddOperation {
            path,
            value,
        })]))
    };
    match present.as_array() {
        Some(list) if list.iter().any(|it| it == FINALIZER) => None,
        Some(_) => add(&["metadata", "finalizers", "-"], json!(FINALIZER)),
        None => add(&["metadata", "finalizers"], json!([FINALIZER])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(object: Value) -> Request {
        Request {
            uid: "u".to_owned(),
            operation: "CREATE".to_owned(),
            namespace: "n".to_owned(),
            object,
        }
    }

    fn good() -> Value {
        json!({ "metadata": { "name": "a" }, "spec": {
            "executionEngine": "job",
            "workflowRef": { "workflowId": "w", "version": "1", "containerImage": format!("r.io/a@sha256:{}", "0".repeat(64)) },
            "targetResource": "prod/Deployment/web",
        } })
    }

    #[test]
    fn br_we_001_a_good_one_gets_the_finalizer_once() {
        for present in [None, Some(json!([])), Some(json!(["other"]))] {
            let mut object = good();
            if let Some(present) = present {
                object["metadata"]["finalizers"] = present;
            }
            let verdict = mutate(&request(object.clone()));
            json_patch::patch(&mut object, &verdict.patch.expect("a patch")).expect("it fits");
            let finalizers = object["metadata"]["finalizers"]
                .as_array()
                .expect("a list")
                .clone();
            assert_eq!(finalizers.iter().filter(|it| *it == FINALIZER).count(), 1);
            assert_eq!(
                mutate(&request(object)),
                Verdict::allow(),
                "nothing to do the second time"
            );
        }
    }

    #[test]
    fn br_we_001_a_bad_one_is_refused_with_all_its_violations() {
        let mut object = good();
        object["spec"]["executionEngine"] = json!("ansible");
        object["spec"]["targetResource"] = json!("web");
        let denial = mutate(&request(object)).denial.expect("refused");
        let fields: Vec<_> = denial
            .causes
            .iter()
            .map(|cause| cause.field.as_str())
            .collect();
        assert_eq!(fields, ["spec.executionEngine", "spec.targetResource"]);
    }

    #[test]
    fn br_we_001_an_object_that_does_not_parse_is_refused_naming_the_field() {
        for (spec, field) in [
            (json!(null), "spec"),
            (json!({ "executionEngine": [] }), "spec.executionEngine"),
        ] {
            let denial = mutate(&request(json!({ "spec": spec })))
                .denial
                .expect("refused");
            assert_eq!(denial.causes[0].field, field);
        }
    }
}
