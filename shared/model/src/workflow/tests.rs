use rstest::rstest;

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
fn a_workflow_is_read_whole() {
    let ReadWorkflow { workflow, warnings } = read(&yaml()).expect("right");
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
fn a_workflow_may_be_wrapped_as_a_resource() {
    let indented = yaml()
        .lines()
        .flat_map(|line| ["  ", line, "\n"])
        .collect::<String>();
    let wrapped = format!(
        "apiVersion: kubernaut.ai/v1alpha1\nkind: RemediationWorkflow\nmetadata: {{name: oom}}\nspec:\n{indented}"
    );
    let read = read(&wrapped).expect("right");
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
fn an_unknown_key_is_a_warning_with_its_path() {
    let read =
        changed("  engine: job\n", "  engine: job\n  retries: 3\n").expect("right all the same");
    assert_eq!(
        read.warnings,
        ["catalog/oom.yaml: execution.retries: unknown key, ignored"]
    );
}

#[test]
fn an_absent_status_is_active_and_a_present_one_counts() {
    let read = changed("actionType", "status: disabled\nactionType").expect("right");
    assert_eq!(read.workflow.status, WorkflowStatus::Disabled);
    assert!(!read.workflow.status.may_run());
    assert!(changed("actionType", "status: retired\nactionType").is_err());
}

#[rstest]
#[case(
    "engine: job",
    "engine: ansible",
    "execution.engine: \"ansible\" is no engine: use job or tekton"
)]
#[case("engine: job", "engine: Job", "execution.engine: \"Job\" is no engine")]
#[case("  engine: job\n", "", "missing field `engine`")]
#[case(
    "registry.example.com/",
    "oci://registry.example.com/",
    "execution.bundle: \"oci://registry"
)]
#[case("@sha256:", ":", "execution.bundle: ")]
#[case(
    "runAsUser: 1000",
    "runAsUser: 0",
    "execution.runAsUser: 0 must be from 1 to 2147483647"
)]
#[case(
    "memory: 128Mi",
    "memory: 128MB",
    "execution.resources.limits.memory: \"128MB\" must be an amount"
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
    "dependencies.secrets[0].name: \"My_Secret\" must be the name"
)]
#[case(
    "- name: limits",
    "- name: limits\n  - name: limits",
    "dependencies.configMaps[1].name: \"limits\" is listed twice"
)]
#[case("type: float", "type: banana", "unknown variant `banana`")]
#[case(
    "default: 2",
    "default: 1",
    "parameters[1].default: the value 1 is too small"
)]
#[case(
    "name: FACTOR",
    "name: MEMORY_LIMIT",
    "parameters[1].name: \"MEMORY_LIMIT\" is declared twice"
)]
fn a_wrong_workflow_is_refused_naming_file_and_place(
    #[case] from: &str,
    #[case] to: &str,
    #[case] says: &str,
) {
    let error = changed(from, to).expect_err("wrong");
    assert_eq!(error.problems.len(), 1, "{error}");
    assert!(
        error.to_string().starts_with("catalog/oom.yaml: "),
        "{error}"
    );
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_its_line() {
    let error = changed("runAsUser: 1000", "runAsUser: root")
        .expect_err("wrong")
        .to_string();
    assert!(error.contains("line 24"), "{error}");
    let error = changed("metadata:", "metadata: [")
        .expect_err("no YAML")
        .to_string();
    assert!(error.contains("line"), "{error}");
}

#[test]
fn all_problems_are_reported_together() {
    let wrong = yaml()
        .replace("engine: job", "engine: x")
        .replace("128Mi", "x")
        .replace("type: float", "type: string");
    let error = read(&wrong).expect_err("wrong");
    assert_eq!(error.problems.len(), 3, "{error}");
    assert_eq!(error.to_string().lines().count(), 3);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}", cut in 0_usize..900) {
        let _ = read(&text);
        let fixture = yaml();
        let _ = read(fixture.get(..cut).unwrap_or(&fixture));
    }
}
