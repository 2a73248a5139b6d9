use rstest::rstest;
use serde_json::json;

use crate::engine::Engine;

use super::*;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn yaml() -> String {
    format!(
        r#"metadata:
  workflowId: oom-increase-memory
  version: 1.0.0
  description:
    what: Raises the memory limit
    whenToUse: After OOMKilled
    whenNotToUse: For a leak
    preconditions: The limit is set
  maintainers:
  - name: Team
    email: team@example.com
actionType: IncreaseMemory
labels:
  severity: [critical, high]
  environment: ["*"]
  component: pod
  priority: "*"
execution:
  engine: job
  bundle: registry.example.com/workflows/oom:v1@sha256:{HEX}
  resources:
    requests: {{cpu: 50m, memory: 64Mi}}
    limits: {{cpu: 1, memory: 128Mi}}
  runAsUser: 1000
dependencies:
  secrets:
  - name: registry-credentials
  configMaps:
  - name: limits
parameters:
- name: MEMORY_LIMIT
  type: string
  required: true
  description: The new limit
  pattern: ^[0-9]+[MG]i$
- name: FACTOR
  type: float
  minimum: 1.5
  default: 2
"#
    )
}

fn read(yaml: &str) -> Result<ReadWorkflow, WorkflowError> {
    Workflow::read("catalog/oom.yaml", yaml)
}

fn changed(from: &str, to: &str) -> Result<ReadWorkflow, WorkflowError> {
    let yaml = yaml();
    assert!(yaml.contains(from), "{from:?} is in the fixture");
    read(&yaml.replace(from, to))
}

#[test]
fn document_valid_is_read_completely() {
    let ReadWorkflow { workflow, warnings } = read(&yaml()).expect("valid");
    assert_eq!(warnings, [] as [&str; 0]);
    assert_eq!(workflow.workflow_id, "oom-increase-memory");
    assert_eq!(workflow.version, "1.0.0");
    assert_eq!(workflow.description, "Raises the memory limit");
    assert_eq!(workflow.action_type, "IncreaseMemory");
    assert_eq!(workflow.status, WorkflowStatus::Active);
    assert_eq!(workflow.engine, Engine::Job);
    assert_eq!(
        workflow.bundle.digest().to_string(),
        format!("sha256:{HEX}")
    );
    assert_eq!(workflow.run_as_user, Some(1000));
    assert_eq!(workflow.resources.expect("resources").limits["cpu"], "1");
    assert_eq!(workflow.dependencies.secrets, ["registry-credentials"]);
    assert_eq!(workflow.dependencies.config_maps, ["limits"]);
    assert_eq!(
        workflow.parameters.schema()["properties"]["FACTOR"]["minimum"],
        1.5
    );
}

#[test]
fn document_wrapped_in_remediation_workflow_is_read() {
    let indented = yaml()
        .lines()
        .flat_map(|line| ["  ", line, "\n"])
        .collect::<String>();
    let wrapped = format!(
        "apiVersion: kubernaut.ai/v1alpha1\nkind: RemediationWorkflow\nmetadata: {{name: oom}}\nspec:\n{indented}"
    );
    let read = read(&wrapped).expect("valid");
    assert_eq!(
        (read.workflow.workflow_id.as_str(), read.warnings.len()),
        ("oom-increase-memory", 0)
    );
    let other = wrapped.replace("RemediationWorkflow", "Deployment");
    let error = Workflow::read("f", &other)
        .expect_err("another kind")
        .to_string();
    assert!(
        error.contains("line 2") && error.contains("RemediationWorkflow"),
        "{error}"
    );
}

#[test]
fn document_with_unknown_key_has_warning_with_path() {
    let read = changed("  engine: job\n", "  engine: job\n  retries: 3\n").expect("valid");
    assert_eq!(
        read.warnings,
        [
            "catalog/oom.yaml: execution.retries: unknown key is ignored: remove it or correct its name"
        ]
    );
}

#[test]
fn document_without_status_is_active() {
    let read = changed("actionType", "status: disabled\nactionType").expect("valid");
    assert_eq!(read.workflow.status, WorkflowStatus::Disabled);
    assert!(!read.workflow.status.may_run());
    assert!(changed("actionType", "status: retired\nactionType").is_err());
}

#[rstest]
#[case(
    "engine: job",
    "engine: ansible",
    "execution.engine: unsupported value \"ansible\": supported values are \"job\", \"tekton\""
)]
#[case(
    "engine: job",
    "engine: Job",
    "execution.engine: unsupported value \"Job\""
)]
#[case("  engine: job\n", "", "execution.engine: required value")]
#[case(
    "registry.example.com/",
    "oci://registry.example.com/",
    "execution.bundle: invalid value \"oci://registry"
)]
#[case("@sha256:", ":", "execution.bundle: ")]
#[case(
    "runAsUser: 1000",
    "runAsUser: 0",
    "execution.runAsUser: invalid value 0: must be from 1 to 2147483647"
)]
#[case(
    "memory: 128Mi",
    "memory: 128MB",
    "execution.resources.limits.memory: invalid value \"128MB\": must be a Kubernetes quantity"
)]
#[case(
    "workflowId: oom-increase-memory",
    "workflowId: ''",
    "metadata.workflowId: must not be empty"
)]
#[case(
    "- name: registry-credentials",
    "- name: ''",
    "dependencies.secrets[0].name: must not be empty"
)]
#[case(
    "- name: registry-credentials",
    "- name: My_Secret",
    "dependencies.secrets[0].name: invalid value \"My_Secret\": must be the name"
)]
#[case(
    "- name: limits",
    "- name: limits\n  - name: limits",
    "dependencies.configMaps[1].name: duplicate value \"limits\": list it once"
)]
#[case("type: float", "type: banana", "unknown variant `banana`")]
#[case(
    "  engine: job\n",
    "  engine: job\n  targetKinds: [Deployment, pods]\n",
    "execution.targetKinds[1]: invalid value \"pods\": must be a kind"
)]
#[case(
    "  engine: job\n",
    "  engine: job\n  serviceAccountName: A_B\n",
    "execution.serviceAccountName: invalid value \"A_B\""
)]
#[case(
    "  engine: job\n",
    "  engine: job\n  maxTimeout: 2d\n",
    "execution.maxTimeout: invalid value \"2d\": must be a duration"
)]
#[case(
    "default: 2",
    "default: 1",
    "parameters[1].default: invalid value 1: must be at least 1.5"
)]
#[case(
    "name: FACTOR",
    "name: MEMORY_LIMIT",
    "parameters[1].name: duplicate value \"MEMORY_LIMIT\": declare the parameter once"
)]
fn document_invalid_is_rejected_with_file_and_path(
    #[case] from: &str,
    #[case] to: &str,
    #[case] says: &str,
) {
    let error = changed(from, to).expect_err("invalid");
    assert_eq!(error.problems.len(), 1, "{error}");
    assert!(
        error.to_string().starts_with("catalog/oom.yaml: "),
        "{error}"
    );
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn document_with_wrong_type_is_rejected_with_line() {
    let error = changed("runAsUser: 1000", "runAsUser: root")
        .expect_err("invalid")
        .to_string();
    assert!(error.contains("line 24"), "{error}");
    let error = changed("metadata:", "metadata: [")
        .expect_err("not YAML")
        .to_string();
    assert!(error.contains("line"), "{error}");
}

#[test]
fn document_with_several_problems_reports_all() {
    let wrong = yaml()
        .replace("engine: job", "engine: x")
        .replace("128Mi", "x")
        .replace("type: float", "type: string");
    let error = read(&wrong).expect_err("invalid");
    assert_eq!(error.problems.len(), 3, "{error}");
    assert_eq!(error.to_string().lines().count(), 3);
}

proptest::proptest! {
    #[test]
    fn document_any_text_is_read_without_panic(text in "\\PC{0,200}", cut in 0_usize..900) {
        let _ = read(&text);
        let fixture = yaml();
        let _ = read(fixture.get(..cut).unwrap_or(&fixture));
    }
}

/// Tekton would substitute the default of a parameter, and has no use for resources.
#[test]
fn tekton_workflow_default_with_variable_is_invalid_and_resources_are_warned_about() {
    let yaml = |more: &str| {
        format!(
            "metadata: {{workflowId: a, version: 1.0.0}}\nexecution: {{engine: tekton, bundle: 'r.io/a@sha256:{}', resources: {{limits: {{memory: 1Mi}}}}}}\n{more}",
            "0".repeat(64)
        )
    };
    let read = Workflow::read("a.yaml", &yaml("")).expect("valid");
    assert!(
        read.warnings[0].contains("ignored for engine tekton"),
        "{:?}",
        read.warnings
    );
    let default = yaml("parameters: [{name: A, type: string, default: '$(date)'}]");
    let error = Workflow::read("a.yaml", &default).expect_err("invalid");
    assert!(
        error
            .to_string()
            .contains("parameters[A].default: must not contain"),
        "{error}"
    );
}

fn object(change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = json!({
        "version": "1.0.0",
        "description": { "what": "Raises the memory limit", "whenToUse": "After OOMKilled" },
        "actionType": "IncreaseMemory",
        "labels": { "severity": ["critical"], "environment": ["*"], "component": ["pod"], "priority": "*" },
        "execution": {
            "engine": "job",
            "bundle": format!("registry.example.com/workflows/oom@sha256:{HEX}"),
            "resources": { "limits": { "cpu": 1, "memory": "128Mi" } },
        },
        "dependencies": { "secrets": [{ "name": "token" }] },
        "parameters": [{ "name": "FACTOR", "type": "float", "minimum": 1.5, "default": 2 }],
    });
    change(&mut spec);
    spec
}

#[test]
fn object_valid_is_read_completely() {
    let status =
        json!({ "workflowId": "0b6b1b0a", "catalogStatus": "Deprecated", "registeredBy": "a" });
    let read = Workflow::read_object("oom", &object(|_| ()), &status).expect("valid");
    let workflow = read.workflow;
    assert_eq!(workflow.workflow_id, "oom");
    assert_eq!(workflow.status, WorkflowStatus::Deprecated);
    assert_eq!(workflow.resources.expect("resources").limits["cpu"], "1");
    let minimum = &workflow.parameters.schema()["properties"]["FACTOR"]["minimum"];
    assert_eq!(*minimum, 1.5);
    let read = Workflow::read_object("oom", &object(|_| ()), &Value::Null).expect("valid");
    assert_eq!(read.workflow.status, WorkflowStatus::Active, "no status");
}

/// BR-WE-014: all problems of an object are reported, each with its path.
#[test]
fn object_invalid_has_every_problem_with_its_path() {
    let spec = object(|it| {
        it["version"] = json!("");
        it["execution"] = json!({ "engine": "ansible", "bundle": "oom:v1", "bundleDigest": HEX });
        it["parameters"][0]["minimum"] = json!(3);
    });
    let error = Workflow::read_object("oom", &spec, &Value::Null).expect_err("invalid");
    let parts = error.problems.iter().map(Problem::path_and_message);
    let paths: Vec<_> = parts.map(|(path, _)| path).collect();
    assert_eq!(
        paths,
        [
            "version",
            "execution.engine",
            "execution.bundle",
            "parameters[0].default"
        ]
    );
}

#[rstest]
#[case(json!({ "catalogStatus": "Sleeping" }), "status.catalogStatus: unsupported value \"Sleeping\"")]
#[case(json!({ "catalogStatus": 1 }), "status.catalogStatus: invalid type: integer `1`")]
fn object_with_unknown_status_is_invalid(#[case] status: Value, #[case] says: &str) {
    let error = Workflow::read_object("oom", &object(|_| ()), &status).expect_err("invalid");
    assert!(error.reasons().starts_with(says), "{error}");
}

#[rstest]
#[case("r.io/w:v1", Some(HEX), Some("r.io/w:v1"))]
#[case("r.io/w:v1", Some("sha256:HEX"), Some("r.io/w:v1"))]
#[case("r.io/w:v1@sha256:HEX", Some(HEX), Some("r.io/w:v1"))]
#[case("r.io/w:v1@sha256:HEX", Some("ff"), None)]
#[case("r.io/w:v1", None, None)]
#[case("", Some(HEX), None)]
fn bundle_and_digest_of_object_are_joined(
    #[case] bundle: &str,
    #[case] digest: Option<&str>,
    #[case] expected: Option<&str>,
) {
    let bundle = bundle.replace("HEX", HEX);
    let digest = digest.map(|it| it.replace("HEX", HEX));
    let spec = object(|it| {
        it["execution"]["bundle"] = json!(bundle);
        it["execution"]["bundleDigest"] = json!(digest);
    });
    let read = Workflow::read_object("oom", &spec, &Value::Null).ok();
    let found = read.map(|it| it.workflow.bundle.to_string());
    assert_eq!(found, expected.map(|it| format!("{it}@sha256:{HEX}")));
}

/// A manifest of an object can also be a file of the directory catalog.
#[test]
fn manifest_of_object_is_read_as_document() {
    let manifest = json!({
        "apiVersion": "kubernaut.ai/v1alpha1",
        "kind": "RemediationWorkflow",
        "metadata": { "name": "oom" },
        "spec": object(|_| ()),
    });
    let read = read(&manifest.to_string()).expect("valid");
    assert_eq!(read.warnings, [] as [&str; 0]);
    assert_eq!(read.workflow.workflow_id, "oom");
}
