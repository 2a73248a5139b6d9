use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::duration::ExecutionTimeout;
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
    let read = Workflow::read("restart.yaml", &yaml).expect("valid");
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

fn validated(
    spec: &WorkflowExecutionSpec,
    workflow: &Arc<Workflow>,
) -> Result<ValidatedSpec, Vec<Violation>> {
    validate(spec, check(spec), workflow)
}

fn violations(spec: &WorkflowExecutionSpec, workflow: &Arc<Workflow>) -> Vec<Violation> {
    validated(spec, workflow).expect_err("invalid")
}

/// BR-WE-014
#[test]
fn job_valid_has_requested_image_and_default_parameters() {
    let valid = validated(&job(), &workflow("job")).expect("valid");
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

/// BR-WE-002
#[test]
fn bundle_without_digest_gets_digest_of_catalog() {
    let workflow = workflow("tekton");
    let valid = validated(&tekton("oci://r.io/w/restart:v2"), &workflow).expect("valid");
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
            field: ReferenceField::BundleRef,
            found: format!("oci://r.io/w/restart@sha256:{OTHER}"),
            catalog: format!("oci://r.io/w/restart:v1@sha256:{HEX}"),
        }]
    );
}

/// BR-WE-001
#[rstest]
#[case(|spec: &mut WorkflowExecutionSpec| spec.workflow_ref.container_image = Some(format!("r.io/w/restart@sha256:{OTHER}")),
    "spec.workflowRef.containerImage: invalid value \"r.io/w/restart@sha256:ffff")]
#[case(|spec: &mut WorkflowExecutionSpec| spec.workflow_ref.container_image = Some(format!("r.io/w/other@sha256:{HEX}")),
    "repository and digest must be those in the catalog: use \"r.io/w/restart:v1@sha256:0123")]
#[case(|spec: &mut WorkflowExecutionSpec| spec.workflow_ref.version = "2.0.0".to_owned(),
    "spec.workflowRef.version: invalid value \"2.0.0\": must be \"1.0.0\", the version of the workflow in the catalog")]
#[case(|spec: &mut WorkflowExecutionSpec| *spec = tekton("oci://r.io/w/restart"),
    "spec.executionEngine: invalid value \"tekton\": must be \"job\", the engine of the workflow in the catalog")]
#[case(|spec: &mut WorkflowExecutionSpec| { spec.parameters.insert("REPLICAS".to_owned(), "abc".to_owned()); },
    "spec.parameters[REPLICAS]: invalid value \"abc\": must be of type integer")]
#[case(|spec: &mut WorkflowExecutionSpec| { spec.parameters.insert("EXTRA".to_owned(), "x".to_owned()); },
    "spec.parameters[EXTRA]: unknown parameter: remove it, or use a parameter that the workflow declares: REPLICAS, MODE")]
#[case(|spec: &mut WorkflowExecutionSpec| spec.parameters.clear(),
    "spec.parameters[REPLICAS]: required value: add this parameter (type integer)")]
fn spec_not_matching_catalog_is_rejected_with_field_and_allowed_value(
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

/// The requester does not pick the account of a workflow that has its own.
#[test]
fn account_of_the_catalog_runs_and_no_other_may_be_requested() {
    let mut own = (*workflow("job")).clone();
    own.service_account = Some("restarter".to_owned());
    let own = Arc::new(own);
    let mut spec = job();
    let account = |spec: &_, workflow: &_| {
        let valid = validated(spec, workflow).expect("valid");
        valid.service_account("runner").to_owned()
    };
    assert_eq!(account(&spec, &workflow("job")), "runner");
    assert_eq!(account(&spec, &own), "restarter");
    spec.execution_config.service_account_name = Some("restarter".to_owned());
    assert_eq!(account(&spec, &own), "restarter");
    spec.execution_config.service_account_name = Some("admin".to_owned());
    assert_eq!(account(&spec, &workflow("job")), "admin");
    let [violation] = &violations(&spec, &own)[..] else {
        panic!("one violation");
    };
    let says = "spec.executionConfig.serviceAccountName: invalid value \"admin\": the workflow runs as \"restarter\": remove it";
    assert_eq!(violation.sentence(), says);
}

/// BR-WE-001
#[test]
fn workflow_neither_active_nor_deprecated_is_rejected() {
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
        assert_eq!(validated(&job(), &workflow).is_ok(), may_run, "{status}");
    }
}

/// BR-WE-001
#[test]
fn spec_with_static_and_catalog_violations_reports_all() {
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

/// BR-WE-001
#[test]
fn spec_empty_reports_missing_engine_first() {
    let spec = read(json!({})).expect("a spec can be empty");
    let found = check(&spec).expect_err("invalid");
    assert_eq!(found[0], Violation::EngineMissing);
    assert_eq!(
        found[0].sentence(),
        "spec.executionEngine: required value: supported values are \"job\", \"tekton\" (there is no default)"
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

/// BR-WE-001
#[rstest]
#[case(json!({ "executionEngine": 1 }), "spec.executionEngine")]
#[case(json!({ "workflowRef": { "version": [] } }), "spec.workflowRef.version")]
#[case(json!({ "parameters": { "A": 1 } }), "spec.parameters.A")]
#[case(json!("text"), "spec")]
fn spec_with_wrong_type_is_rejected_with_field(#[case] spec: Value, #[case] field: &str) {
    let violation = read(&spec).expect_err("malformed");
    assert_eq!(violation.field(), field);
    assert!(
        violation.to_string().contains("invalid type"),
        "{violation}"
    );
}

/// BR-WE-001
#[test]
fn parameters_over_limit_report_one_violation() {
    let mut spec = job();
    let names = (0..100_000).map(|number| (format!("-{number}"), String::new()));
    spec.parameters = names.collect();
    let found = violations(&spec, &workflow("job"));
    assert_eq!(found, [Violation::ParametersTooMany { count: 100_000 }]);
}

#[test]
fn value_of_100000_characters_is_shortened_in_message() {
    let mut spec = job();
    spec.target_resource = "x".repeat(100_000);
    let found = check(&spec).expect_err("invalid");
    assert!(found[0].to_string().len() < 1_000);
}

/// BR-WE-014
#[rstest]
#[case::tag_only("r.io/w/restart:v1", Some("r.io/w/restart:v1@sha256:0123"))]
#[case::name_only("r.io/w/restart", Some("r.io/w/restart@sha256:0123"))]
#[case::another_tag("r.io/w/restart:v9", Some("r.io/w/restart:v9@sha256:0123"))]
#[case::no_reference("restart v1", None)]
#[case::no_registry("restart:v1", None)]
fn reference_without_digest_is_completed_from_catalog(
    #[case] name: &str,
    #[case] expected: Option<&str>,
) {
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
        let lacking = lacking_digest(&spec).expect("no digest");
        let filled = fill(&mut spec, lacking, &workflow(engine)).expect("the same repository");
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
                assert_eq!(lacking_digest(&spec), None);
                assert!(validated(&spec, &workflow(engine)).is_ok());
            }
        }
    }
}

/// BR-WE-014
#[test]
fn reference_of_another_repository_is_rejected_without_digest() {
    let mut spec = job();
    spec.workflow_ref.container_image = Some("r.io/w/other:v1".to_owned());
    let message = fill(&mut spec, ReferenceField::ContainerImage, &workflow("job"))
        .expect_err("another repository")
        .sentence();
    assert!(
        message.contains("invalid value \"r.io/w/other:v1\": repository and digest must be"),
        "{message}"
    );
    assert!(
        message.contains("use \"r.io/w/restart:v1@sha256:0123"),
        "{message}"
    );
}

/// BR-WE-014
#[test]
fn spec_with_other_tag_and_deprecated_workflow_has_two_remarks() {
    let workflow = Arc::new(Workflow {
        status: WorkflowStatus::Deprecated,
        ..workflow("job").as_ref().clone()
    });
    let remarks = |spec| {
        let valid = validated(&spec, &workflow).expect("valid");
        valid
            .remarks()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let messages = remarks(job());
    assert!(
        messages[0].contains("\"restart\" is deprecated"),
        "{messages:?}"
    );
    assert!(
        messages[1].contains("tag \"v2\" differs from tag \"v1\" in the catalog"),
        "{messages:?}"
    );
    let mut without_tag = job();
    without_tag.workflow_ref.container_image = Some(format!("r.io/w/restart@sha256:{HEX}"));
    assert_eq!(remarks(without_tag).len(), 1);
}

/// BR-WE-003
#[test]
fn timeout_longer_than_the_workflow_may_take_is_cut_with_a_remark() {
    let workflow = Arc::new(Workflow {
        max_timeout: ExecutionTimeout::parse("10m"),
        ..workflow("job").as_ref().clone()
    });
    let cut = |timeout: Option<&str>| {
        let mut spec = job();
        spec.execution_config.timeout = timeout.map(str::to_owned);
        let valid = validated(&spec, &workflow).expect("valid");
        let remarks = valid.remarks().into_iter();
        let remark = remarks
            .map(|it| it.to_string())
            .find(|it| it.contains("is cut"));
        (
            valid.timeout(Duration::from_mins(30)).as_secs() / 60,
            remark,
        )
    };
    assert_eq!(
        cut(None),
        (10, None),
        "the default of the controller is nobody's wish"
    );
    assert_eq!(cut(Some("5m")), (5, None));
    let says =
        "spec.executionConfig.timeout 1h is cut to 10m, the longest time of workflow \"restart\"";
    assert_eq!(cut(Some("1h")), (10, Some(says.to_owned())));
}

proptest::proptest! {
    #[test]
    fn rules_any_spec_validates_without_panic(
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
            for violation in validated(&spec, &workflow).err().into_iter().flatten() {
                proptest::prop_assert!(violation.field().starts_with("spec"));
            }
        }
    }
}

/// BR-WE-001: a very long name is cut in the log.
#[test]
fn names_in_messages_are_cut() {
    let name = "n".repeat(1 << 20);
    let mut long = job();
    long.parameters.insert(name, "\0".repeat(9_000));
    let violations = check(&long).expect_err("invalid");
    assert_eq!(violations.len(), 3);
    let lengths = violations
        .iter()
        .map(|it| it.to_string().len() + it.field().len());
    assert!(lengths.sum::<usize>() < 5_000);
}
