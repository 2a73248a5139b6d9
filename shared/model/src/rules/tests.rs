use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::parameters::kind::ParameterType;
use crate::workflow::WorkflowStatus;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const OTHER: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

fn workflow(engine: &str) -> Arc<Workflow> {
    let yaml = format!(
        "metadata: {{workflowId: restart, version: 1.0.0}}
execution: {{engine: {engine}, bundle: 'r.io/w/restart:v1@sha256:{HEX}'}}
parameters:
- {{name: REPLICAS, type: integer, required: true}}
- {{name: MODE, type: string, default: safe}}
"
    );
    let read = Workflow::read("restart.yaml", &yaml).expect("right");
    Arc::new(read.workflow)
}

fn job() -> WorkflowExecutionSpec {
    read(json!({
        "executionEngine": "job",
        "workflowRef": { "workflowId": "restart", "version": "1.0.0", "containerImage": format!("r.io/w/restart:v2@sha256:{HEX}") },
        "targetResource": "prod/Deployment/web",
        "parameters": { "REPLICAS": "3" },
    }))
    .expect("a spec")
}

fn tekton(bundle: &str) -> WorkflowExecutionSpec {
    let mut spec = job();
    spec.execution_engine = "tekton".to_owned();
    spec.workflow_ref.container_image = None;
    spec.workflow_ref.bundle_ref = Some(bundle.to_owned());
    spec
}

fn fits(
    spec: &WorkflowExecutionSpec,
    workflow: &Arc<Workflow>,
) -> Result<ValidatedSpec, Vec<Violation>> {
    validate(spec, check(spec), workflow)
}

fn violations(spec: &WorkflowExecutionSpec, workflow: &Arc<Workflow>) -> Vec<Violation> {
    fits(spec, workflow).expect_err("wrong")
}

#[test]
fn br_we_014_a_valid_job_runs_what_it_names_with_the_defaults() {
    let valid = fits(&job(), &workflow("job")).expect("right");
    assert_eq!(
        valid.image.to_string(),
        format!("r.io/w/restart:v2@sha256:{HEX}")
    );
    assert_eq!(
        valid.parameters,
        BTreeMap::from([
            ("MODE".to_owned(), "safe".to_owned()),
            ("REPLICAS".to_owned(), "3".to_owned())
        ])
    );
    assert_eq!(valid.spec.target.normalized(), "prod/deployment/web");
    assert_eq!(valid.spec.when_blocked, WhenBlocked::Skip);
}

#[test]
fn br_we_002_a_bundle_without_digest_gets_the_catalogs() {
    let workflow = workflow("tekton");
    let valid = fits(&tekton("oci://r.io/w/restart:v2"), &workflow).expect("right");
    assert_eq!(
        valid.image.to_string(),
        format!("r.io/w/restart:v2@sha256:{HEX}")
    );
    let wrong = violations(
        &tekton(&format!("oci://r.io/w/restart@sha256:{OTHER}")),
        &workflow,
    );
    assert_eq!(
        wrong,
        [Violation::ImageMismatch {
            field: "workflowRef.bundleRef",
            found: format!("oci://r.io/w/restart@sha256:{OTHER}"),
            catalog: format!("oci://r.io/w/restart:v1@sha256:{HEX}"),
        }]
    );
}

#[rstest]
#[case(|spec: &mut WorkflowExecutionSpec| spec.workflow_ref.container_image = Some(format!("r.io/w/restart@sha256:{OTHER}")),
    "spec.workflowRef.containerImage: \"r.io/w/restart@sha256:ffff")]
#[case(|spec: &mut WorkflowExecutionSpec| spec.workflow_ref.container_image = Some(format!("r.io/w/other@sha256:{HEX}")),
    "is not what the catalog has for this workflow: use \"r.io/w/restart:v1@sha256:0123")]
#[case(|spec: &mut WorkflowExecutionSpec| spec.workflow_ref.version = "2.0.0".to_owned(),
    "spec.workflowRef.version: \"2.0.0\" is not the catalog's version of this workflow: use \"1.0.0\"")]
#[case(|spec: &mut WorkflowExecutionSpec| *spec = tekton("oci://r.io/w/restart"),
    "spec.executionEngine: tekton is not the catalog's engine for this workflow: use job")]
#[case(|spec: &mut WorkflowExecutionSpec| { spec.parameters.insert("REPLICAS".to_owned(), "abc".to_owned()); },
    "spec.parameters[REPLICAS]: the value \"abc\" is no integer")]
#[case(|spec: &mut WorkflowExecutionSpec| { spec.parameters.insert("EXTRA".to_owned(), "x".to_owned()); },
    "spec.parameters[EXTRA]: the workflow declares no parameter EXTRA: it declares REPLICAS, MODE")]
#[case(|spec: &mut WorkflowExecutionSpec| spec.parameters.clear(),
    "spec.parameters[REPLICAS]: the workflow requires the parameter REPLICAS (type integer): add it")]
fn br_we_001_what_the_catalog_does_not_allow_is_refused_in_words(
    #[case] change: impl Fn(&mut WorkflowExecutionSpec),
    #[case] says: &str,
) {
    let mut spec = job();
    change(&mut spec);
    let violations = violations(&spec, &workflow("job"));
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(
        violations[0].sentence().contains(says),
        "{}",
        violations[0].sentence()
    );
}

#[test]
fn br_we_001_only_active_and_deprecated_workflows_run() {
    for (status, may_run) in [
        (WorkflowStatus::Active, true),
        (WorkflowStatus::Deprecated, true),
        (WorkflowStatus::Disabled, false),
        (WorkflowStatus::Archived, false),
    ] {
        let workflow = Arc::new(Workflow {
            status,
            ..workflow("job").as_ref().clone()
        });
        assert_eq!(fits(&job(), &workflow).is_ok(), may_run, "{status}");
    }
}

#[test]
fn br_we_001_static_and_catalog_violations_are_reported_together() {
    let mut spec = job();
    spec.target_resource = "web".to_owned();
    spec.workflow_ref.version = "2".to_owned();
    spec.parameters = BTreeMap::from([("A-B".to_owned(), "x".to_owned())]);
    let found = violations(&spec, &workflow("job"));
    let required = ParameterViolation::Required {
        name: "REPLICAS".to_owned(),
        kind: ParameterType::Integer,
    };
    assert_eq!(
        found,
        [
            Violation::TargetInvalid {
                found: "web".to_owned()
            },
            Violation::Parameter(ParameterViolation::Name {
                name: "A-B".to_owned()
            }),
            Violation::VersionMismatch {
                found: "2".to_owned(),
                catalog: "1.0.0".to_owned()
            },
            Violation::Parameter(required),
        ]
    );
}

#[test]
fn br_we_001_a_missing_engine_is_the_first_thing_said() {
    let spec = read(json!({})).expect("a spec can be empty");
    let found = check(&spec).expect_err("wrong");
    assert_eq!(found[0], Violation::EngineMissing);
    assert_eq!(
        found[0].sentence(),
        "spec.executionEngine: is required: say job or tekton, there is no default"
    );
    let fields: Vec<_> = found.iter().map(Violation::field).collect();
    assert_eq!(
        fields,
        [
            "spec.executionEngine",
            "spec.workflowRef.workflowId",
            "spec.workflowRef.version",
            "spec.targetResource"
        ]
    );
}

#[rstest]
#[case(json!({ "executionEngine": 1 }), "spec.executionEngine")]
#[case(json!({ "workflowRef": { "version": [] } }), "spec.workflowRef.version")]
#[case(json!({ "parameters": { "A": 1 } }), "spec.parameters.A")]
#[case(json!("text"), "spec")]
fn br_we_001_a_malformed_spec_is_a_violation_that_names_the_field(
    #[case] spec: Value,
    #[case] field: &str,
) {
    let violation = read(&spec).expect_err("malformed");
    assert_eq!(violation.field(), field);
    assert!(
        violation.to_string().contains("invalid type"),
        "{violation}"
    );
}

#[test]
fn br_we_001_a_hundred_thousand_parameters_are_one_violation() {
    let mut spec = job();
    let names = (0..100_000).map(|number| (format!("-{number}"), String::new()));
    spec.parameters = names.collect();
    let found = violations(&spec, &workflow("job"));
    assert_eq!(found, [Violation::ParametersTooMany { count: 100_000 }]);
}

#[test]
fn a_huge_value_is_shortened_in_the_message() {
    let mut spec = job();
    spec.target_resource = "x".repeat(100_000);
    let found = check(&spec).expect_err("wrong");
    assert!(found[0].to_string().len() < 1_000);
}

#[rstest]
#[case::tag_only("r.io/w/restart:v1", Some("r.io/w/restart:v1@sha256:0123"))]
#[case::name_only("r.io/w/restart", Some("r.io/w/restart@sha256:0123"))]
#[case::another_tag("r.io/w/restart:v9", Some("r.io/w/restart:v9@sha256:0123"))]
#[case::no_reference("restart v1", None)]
#[case::no_registry("restart:v1", None)]
fn br_we_014_a_missing_digest_is_the_catalogs(#[case] name: &str, #[case] expected: Option<&str>) {
    for (engine, scheme) in [("job", ""), ("tekton", "oci://")] {
        let text = format!("{scheme}{name}");
        let mut spec = if engine == "job" {
            job()
        } else {
            tekton(&text)
        };
        if engine == "job" {
            spec.workflow_ref.container_image = Some(text.clone());
        }
        assert!(lacks_digest(&spec));
        let filled = fill(&mut spec, &workflow(engine)).expect("the same repository");
        let field = if engine == "job" {
            &spec.workflow_ref.container_image
        } else {
            &spec.workflow_ref.bundle_ref
        };
        match expected {
            None => assert_eq!((filled, field.as_ref()), (None, Some(&text))),
            Some(expected) => {
                let filled = filled.expect("filled in").reference;
                assert!(
                    filled.starts_with(&format!("{scheme}{expected}")),
                    "{filled}"
                );
                assert_eq!(field.as_ref(), Some(&filled));
                assert!(!lacks_digest(&spec));
                assert!(fits(&spec, &workflow(engine)).is_ok());
            }
        }
    }
}

#[test]
fn br_we_014_another_repository_than_the_catalogs_gets_no_digest() {
    let mut spec = job();
    spec.workflow_ref.container_image = Some("r.io/w/other:v1".to_owned());
    let said = fill(&mut spec, &workflow("job"))
        .expect_err("another")
        .sentence();
    assert!(
        said.contains("\"r.io/w/other:v1\" is not what the catalog has"),
        "{said}"
    );
    assert!(
        said.contains("use \"r.io/w/restart:v1@sha256:0123"),
        "{said}"
    );
}

#[test]
fn br_we_014_who_asks_hears_of_another_tag_and_of_a_deprecated_workflow() {
    let workflow = Arc::new(Workflow {
        status: WorkflowStatus::Deprecated,
        ..workflow("job").as_ref().clone()
    });
    let remarks = |spec| {
        let valid = fits(&spec, &workflow).expect("right");
        valid
            .remarks()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let said = remarks(job());
    assert!(said[0].contains("\"restart\" is deprecated"), "{said:?}");
    assert!(
        said[1].contains("the tag \"v2\" is not the catalog's, \"v1\""),
        "{said:?}"
    );
    let mut without_tag = job();
    without_tag.workflow_ref.container_image = Some(format!("r.io/w/restart@sha256:{HEX}"));
    assert_eq!(remarks(without_tag).len(), 1);
}

proptest::proptest! {
    #[test]
    fn no_spec_makes_the_rules_panic(
        engine in "job|tekton|\\PC{0,5}", image in proptest::option::of("\\PC{0,80}"), bundle in proptest::option::of("oci://\\PC{0,30}"),
        target in "\\PC{0,30}", timeout in proptest::option::of("\\PC{0,9}"), name in "\\PC{0,9}", value in "\\PC{0,20}", confidence: f64,
    ) {
        let mut spec = job();
        spec.execution_engine = engine;
        spec.workflow_ref.container_image = image;
        spec.workflow_ref.bundle_ref = bundle;
        spec.target_resource = target;
        spec.execution_config.timeout = timeout;
        spec.parameters.insert(name, value);
        spec.confidence = Some(confidence);
        for workflow in [workflow("job"), workflow("tekton")] {
            for violation in fits(&spec, &workflow).err().into_iter().flatten() {
                proptest::prop_assert!(violation.field().starts_with("spec"));
            }
        }
    }
}
