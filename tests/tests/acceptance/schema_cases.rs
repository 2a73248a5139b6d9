//! Valid specs, and specs with one error each.

use serde_json::{Value, json};

pub const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A spec and its builder. Paths are relative to the spec, separated by dots.
#[derive(Clone, Debug)]
pub struct Spec(pub Value);

/// A valid spec with engine job.
pub fn job() -> Spec {
    Spec(json!({
        "executionEngine": "job",
        "workflowRef": {
            "workflowId": "restart-deployment",
            "version": "1.0.0",
            "containerImage": format!("registry.example.com/workflows/restart:v1@sha256:{HEX}"),
        },
        "targetResource": "prod/Deployment/web",
    }))
}

/// A valid spec with engine tekton.
pub fn tekton() -> Spec {
    job()
        .with("executionEngine", "tekton")
        .without("workflowRef.containerImage")
        .with(
            "workflowRef.bundleRef",
            "oci://registry.example.com/bundles/restart:v1",
        )
}

impl Spec {
    pub fn with(mut self, path: &str, value: impl Into<Value>) -> Self {
        let (parent, key) = self.parent(path);
        parent
            .as_object_mut()
            .expect("an object")
            .insert(key, value.into());
        self
    }

    pub fn without(mut self, path: &str) -> Self {
        let (parent, key) = self.parent(path);
        parent.as_object_mut().expect("an object").remove(&key);
        self
    }

    pub fn parameter(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0["parameters"][name] = value.into();
        self
    }

    fn image(self, image: &str) -> Self {
        self.with("workflowRef.containerImage", image)
    }

    fn bundle(self, bundle: &str) -> Self {
        self.with("workflowRef.bundleRef", bundle)
    }

    fn target(self, target: &str) -> Self {
        self.with("targetResource", target)
    }

    fn timeout(self, timeout: impl Into<Value>) -> Self {
        self.with("executionConfig.timeout", timeout)
    }

    fn parameters(self, count: usize, length: usize) -> Self {
        (0..count).fold(self, |spec, index| {
            spec.parameter(&format!("P{index}"), "x".repeat(length))
        })
    }

    /// The object with the last key of `path`, created where missing, and that key.
    fn parent(&mut self, path: &str) -> (&mut Value, String) {
        let (parents, key) = path
            .rsplit_once('.')
            .map_or((None, path), |(parents, key)| (Some(parents), key));
        let parent =
            parents
                .into_iter()
                .flat_map(|it| it.split('.'))
                .fold(&mut self.0, |value, part| {
                    if value[part].is_null() {
                        value[part] = json!({});
                    }
                    &mut value[part]
                });
        (parent, key.to_owned())
    }
}

/// An invalid spec, the invalid field, and text of the API server's error.
pub struct Invalid {
    pub what: &'static str,
    pub spec: Spec,
    pub field: &'static str,
    pub says: &'static str,
}

const ENGINE: &str = "spec.executionEngine";
const IMAGE: &str = "spec.workflowRef.containerImage";
const BUNDLE: &str = "spec.workflowRef.bundleRef";
const TARGET: &str = "spec.targetResource";
const PARAMETERS: &str = "spec.parameters";
const TIMEOUT: &str = "spec.executionConfig.timeout";
const ACCOUNT: &str = "spec.executionConfig.serviceAccountName";

const ENGINES: &str = "supported values: \"job\", \"tekton\"";
const IMAGE_RULE: &str = "must be registry/repository[:tag]@sha256:<64 lower-case hex digits>";
const BUNDLE_RULE: &str =
    "must be oci://registry/repository[:tag][@sha256:<64 lower-case hex digits>]";
const TARGET_RULE: &str = "must be [namespace/]kind/name";
const NAME_RULE: &str = "parameter names must be letters, digits and _, not starting with a digit";
const RESERVED: &str = "TARGET_RESOURCE and names starting with TARGET_RESOURCE_ or KUBERNAUT_ are reserved for the controller";
const TIMEOUT_RULE: &str = "whole hours, minutes and seconds from 1s to 24h";
const OBJECT_NAME: &str = "must be the name of a Kubernetes object";
const TYPE_STRING: &str = "must be of type string";

/// Specs that both the API server and the rules reject.
#[rustfmt::skip]
#[expect(clippy::too_many_lines, reason = "a table")]
pub fn invalid() -> Vec<Invalid> {
    let case = |what, spec, field, says| Invalid {
        what,
        spec,
        field,
        says,
    };
    let digest = format!("@sha256:{HEX}");
    let image = |text: &str| job().image(text);
    let digested = |name: &str| job().image(&format!("{name}{digest}"));
    let bundle = |text: &str| tekton().bundle(text);
    let target = |text: &str| job().target(text);
    let long = |length: usize| "a".repeat(length);
    vec![
        case("no engine", job().without("executionEngine"), ENGINE, "Required value"),
        case("null engine", job().with("executionEngine", Value::Null), ENGINE, "Required value"),
        case("empty engine", job().with("executionEngine", ""), ENGINE, ENGINES),
        case("unknown engine", job().with("executionEngine", "ansible"), ENGINE, ENGINES),
        case("engine in upper case", job().with("executionEngine", "Job"), ENGINE, ENGINES),
        case("engine with a space", job().with("executionEngine", "job "), ENGINE, ENGINES),
        case("engine as a number", job().with("executionEngine", 1), ENGINE, TYPE_STRING),
        case("engine as a list", job().with("executionEngine", json!(["job"])), ENGINE, TYPE_STRING),
        case("no workflow", job().without("workflowRef"), "spec.workflowRef", "Required value"),
        case("workflow as text", job().with("workflowRef", "restart"), "spec.workflowRef", "must be of type object"),
        case("no workflow id", job().without("workflowRef.workflowId"), "spec.workflowRef.workflowId", "Required value"),
        case("empty workflow id", job().with("workflowRef.workflowId", ""), "spec.workflowRef.workflowId", "at least 1 chars long"),
        case("long workflow id", job().with("workflowRef.workflowId", long(256)), "spec.workflowRef.workflowId", "may not be more than 255"),
        case("no version", job().without("workflowRef.version"), "spec.workflowRef.version", "Required value"),
        case("empty version", job().with("workflowRef.version", ""), "spec.workflowRef.version", "at least 1 chars long"),
        case("long version", job().with("workflowRef.version", long(65)), "spec.workflowRef.version", "may not be more than 64"),
        case("version as a number", job().with("workflowRef.version", 1.5), "spec.workflowRef.version", TYPE_STRING),
        case("long workflow name", job().with("workflowRef.name", long(254)), "spec.workflowRef.name", "may not be more than 253"),
        // Image fields by engine.
        case("job without image", job().without("workflowRef.containerImage"), IMAGE, "executionEngine job requires workflowRef.containerImage"),
        case("tekton without bundle", tekton().without("workflowRef.bundleRef"), BUNDLE, "executionEngine tekton requires workflowRef.bundleRef"),
        case("job with both", job().bundle("oci://r.io/b"), BUNDLE, "executionEngine job runs workflowRef.containerImage: remove workflowRef.bundleRef"),
        case("tekton with both", tekton().image(&format!("r.io/b{digest}")), IMAGE, "executionEngine tekton runs workflowRef.bundleRef: remove workflowRef.containerImage"),
        case("job with the bundle only", job().without("workflowRef.containerImage").bundle("oci://r.io/b"), BUNDLE, "remove workflowRef.bundleRef"),
        case("tekton with the image only", tekton().without("workflowRef.bundleRef").image(&format!("r.io/b{digest}")), IMAGE, "remove workflowRef.containerImage"),
        // Images.
        case("image by tag only", image("registry.example.com/restart:v1"), IMAGE, IMAGE_RULE),
        case("image by name only", image("registry.example.com/restart"), IMAGE, IMAGE_RULE),
        case("empty image", image(""), IMAGE, IMAGE_RULE),
        case("digest in upper case", image(&format!("r.io/a@sha256:{}", HEX.to_uppercase())), IMAGE, IMAGE_RULE),
        case("digest of 63 digits", image(&format!("r.io/a@sha256:{}", &HEX[1..])), IMAGE, IMAGE_RULE),
        case("digest of 65 digits", image(&format!("r.io/a@sha256:{HEX}0")), IMAGE, IMAGE_RULE),
        case("digest with a g", image(&format!("r.io/a@sha256:{}g", &HEX[1..])), IMAGE, IMAGE_RULE),
        case("digest by md5", image("r.io/a@md5:d41d8cd98f00b204e9800998ecf8427e"), IMAGE, IMAGE_RULE),
        case("digest by sha512", image(&format!("r.io/a@sha512:{HEX}{HEX}")), IMAGE, IMAGE_RULE),
        case("two digests", image(&format!("r.io/a{digest}{digest}")), IMAGE, IMAGE_RULE),
        case("digest without algorithm", image(&format!("r.io/a@{HEX}")), IMAGE, IMAGE_RULE),
        case("image with a space before", digested(" r.io/a"), IMAGE, IMAGE_RULE),
        case("image with a space after", image(&format!("r.io/a{digest} ")), IMAGE, IMAGE_RULE),
        case("image with a newline", image(&format!("r.io/a{digest}\n")), IMAGE, IMAGE_RULE),
        case("image with a scheme", digested("https://r.io/a"), IMAGE, IMAGE_RULE),
        case("image without a registry host", digested("nginx"), IMAGE, IMAGE_RULE),
        case("image with an implied registry host", digested("library/nginx"), IMAGE, IMAGE_RULE),
        case("repository in upper case", digested("r.io/Restart"), IMAGE, IMAGE_RULE),
        case("empty part in the repository", digested("r.io/a//b"), IMAGE, IMAGE_RULE),
        case("empty tag", digested("r.io/a:"), IMAGE, IMAGE_RULE),
        case("tag of 129 characters", digested(&format!("r.io/a:{}", long(129))), IMAGE, IMAGE_RULE),
        case("image name of 256 characters", digested(&format!("r.io/{}", long(251))), IMAGE, IMAGE_RULE),
        case("image of 600 characters", digested(&format!("r.io/{}", long(520))), IMAGE, "may not be more than 512"),
        // Bundles.
        case("bundle without scheme", bundle("r.io/b:v1"), BUNDLE, BUNDLE_RULE),
        case("bundle with https", bundle("https://r.io/b:v1"), BUNDLE, BUNDLE_RULE),
        case("bundle without a registry host", bundle("oci://bundles"), BUNDLE, BUNDLE_RULE),
        case("bundle with a bad digest", bundle(&format!("oci://r.io/b@sha256:{}", &HEX[1..])), BUNDLE, BUNDLE_RULE),
        case("bundle with a space", bundle("oci://r.io/b c"), BUNDLE, BUNDLE_RULE),
        case("empty bundle", bundle(""), BUNDLE, BUNDLE_RULE),
        // Targets.
        case("no target", job().without("targetResource"), TARGET, "Required value"),
        case("empty target", target(""), TARGET, TARGET_RULE),
        case("target of one part", target("web"), TARGET, TARGET_RULE),
        case("target of four parts", target("a/b/Deployment/web"), TARGET, TARGET_RULE),
        case("target with an empty namespace", target("/Deployment/web"), TARGET, TARGET_RULE),
        case("target with an empty kind", target("prod//web"), TARGET, TARGET_RULE),
        case("target with an empty name", target("prod/Deployment/"), TARGET, TARGET_RULE),
        case("target with a namespace in upper case", target("Prod/Deployment/web"), TARGET, TARGET_RULE),
        case("target with a group", target("prod/apps.Deployment/web"), TARGET, TARGET_RULE),
        case("target with a space", target("prod/Deployment/my web"), TARGET, TARGET_RULE),
        case("target with a newline", target("prod/Deployment/web\n"), TARGET, TARGET_RULE),
        case("target with a long namespace", target(&format!("{}/Pod/a", long(64))), TARGET, TARGET_RULE),
        case("target with a long kind", target(&format!("prod/{}/a", long(64))), TARGET, TARGET_RULE),
        case("target with a long name", target(&format!("prod/Pod/{}", long(254))), TARGET, TARGET_RULE),
        case("target of 400 characters", target(&format!("prod/Pod/{}", long(391))), TARGET, "may not be more than 381"),
        // Parameters.
        case("parameter with a dash", job().parameter("MY-NAME", "a"), PARAMETERS, NAME_RULE),
        case("parameter with an equals sign", job().parameter("A=B", "a"), PARAMETERS, NAME_RULE),
        case("parameter with a leading digit", job().parameter("1ST", "a"), PARAMETERS, NAME_RULE),
        case("parameter without a name", job().parameter("", "a"), PARAMETERS, NAME_RULE),
        case("parameter with a dot", job().parameter("a.b", "a"), PARAMETERS, NAME_RULE),
        case("parameter with a non-ASCII letter", job().parameter("GRÖSSE", "a"), PARAMETERS, NAME_RULE),
        case("parameter name of 129 characters", job().parameter(&long(129), "a"), PARAMETERS, NAME_RULE),
        case("reserved parameter", job().parameter("TARGET_RESOURCE", "a/b/c"), PARAMETERS, RESERVED),
        case("parameter with the reserved prefix", job().parameter("KUBERNAUT_X", "a"), PARAMETERS, RESERVED),
        case("a parameter with another namespace than the target", job().parameter("TARGET_RESOURCE_NAMESPACE", "kube-system"), PARAMETERS, "TARGET_RESOURCE_NAMESPACE must be that of targetResource"),
        case("a parameter with another name than the target", job().parameter("TARGET_RESOURCE_NAME", "Deployment/web"), PARAMETERS, "TARGET_RESOURCE_NAME must be that of targetResource"),
        case("a parameter with another kind than the target", job().parameter("TARGET_RESOURCE_KIND", "Service"), PARAMETERS, "TARGET_RESOURCE_KIND must be that of targetResource"),
        case("a parameter with a namespace for a target without", job().with("targetResource", "Node/web").parameter("TARGET_RESOURCE_NAMESPACE", "web"), PARAMETERS, "TARGET_RESOURCE_NAMESPACE must be that of targetResource"),
        case("a reserved parameter of the target", job().parameter("TARGET_RESOURCE_UID", "1"), PARAMETERS, "reserved for the controller"),
        case("65 parameters", job().parameters(65, 1), PARAMETERS, "must have at most 64 items"),
        case("a value of 9,000 characters", job().parameters(1, 9_000), PARAMETERS, "may not be more than 8192"),
        case("values of 66 Ki together", job().parameters(9, 7_500), PARAMETERS, "all values together must have at most 65536 characters"),
        case("a value with NUL", job().parameter("A", "a\0b"), PARAMETERS, "must not contain the NUL character"),
        case("a value as a number", job().parameter("A", 3), PARAMETERS, TYPE_STRING),
        case("a value that Tekton would substitute", tekton().parameter("A", "$(context.pipelineRun.name)"), PARAMETERS, "must not contain \"$(\" for executionEngine tekton"),
        // Execution configuration.
        case("timeout in words", job().timeout("soon"), TIMEOUT, TIMEOUT_RULE),
        case("negative timeout", job().timeout("-5m"), TIMEOUT, TIMEOUT_RULE),
        case("timeout zero", job().timeout("0s"), TIMEOUT, TIMEOUT_RULE),
        case("timeout of a week", job().timeout("168h"), TIMEOUT, TIMEOUT_RULE),
        case("timeout a second too long", job().timeout("24h0m1s"), TIMEOUT, TIMEOUT_RULE),
        case("timeout in days", job().timeout("1d"), TIMEOUT, TIMEOUT_RULE),
        case("timeout with a fraction", job().timeout("1.5h"), TIMEOUT, TIMEOUT_RULE),
        case("timeout without a unit", job().timeout("30"), TIMEOUT, TIMEOUT_RULE),
        case("empty timeout", job().timeout(""), TIMEOUT, TIMEOUT_RULE),
        case("timeout as a number", job().timeout(30), TIMEOUT, TYPE_STRING),
        case("empty ServiceAccount", job().with("executionConfig.serviceAccountName", ""), ACCOUNT, OBJECT_NAME),
        case("ServiceAccount in upper case", job().with("executionConfig.serviceAccountName", "Runner"), ACCOUNT, OBJECT_NAME),
        case("ServiceAccount of another namespace", job().with("executionConfig.serviceAccountName", "kube-system/admin"), ACCOUNT, OBJECT_NAME),
        case("unknown whenBlocked", job().with("executionConfig.whenBlocked", "Retry"), "spec.executionConfig.whenBlocked", "supported values: \"Skip\", \"Wait\""),
        // Fields that the controller does not interpret.
        case("confidence over 1", job().with("confidence", 1.1), "spec.confidence", "should be less than or equal to 1"),
        case("confidence below 0", job().with("confidence", -0.1), "spec.confidence", "should be greater than or equal to 0"),
        case("confidence as text", job().with("confidence", "high"), "spec.confidence", "must be of type number"),
        case("long rationale", job().with("rationale", long(16_385)), "spec.rationale", "may not be more than 16384"),
        case("request without a name", job().with("remediationRequestRef", json!({ "kind": "RemediationRequest" })), "spec.remediationRequestRef.name", "Required value"),
        case("request with an empty name", job().with("remediationRequestRef.name", ""), "spec.remediationRequestRef.name", "at least 1 chars long"),
        case("request with a long namespace", job().with("remediationRequestRef", json!({ "name": "a", "namespace": long(64) })), "spec.remediationRequestRef.namespace", "may not be more than 63"),
        case("several errors", job().image("nginx").target("web").timeout("soon"), TARGET, TARGET_RULE),
    ]
}

/// Specs that both the API server and the rules accept.
#[rustfmt::skip]
pub fn valid() -> Vec<(&'static str, Spec)> {
    let digest = format!("@sha256:{HEX}");
    let image = |name: &str| job().image(&format!("{name}{digest}"));
    let request = json!({ "apiVersion": "kubernaut.ai/v1alpha1", "kind": "RemediationRequest", "name": "rr-1", "uid": "5e8b" });
    vec![
        ("job", job()),
        ("tekton", tekton()),
        ("image without a tag", image("r.io/a")),
        ("image of a registry with a port", image("registry:5000/a:v1")),
        ("image of a registry by address", image("10.77.0.1:5000/a/b/c")),
        ("image of localhost", image("localhost/a")),
        ("image with every separator", image("r.io/a.b_c__d-e---f")),
        ("image name of 255 characters", image(&format!("r.io/{}", "a".repeat(250)))),
        ("image with a tag of 128 characters", image(&format!("r.io/a:{}", "T".repeat(128)))),
        ("bundle with a digest", tekton().bundle(&format!("oci://r.io/b{digest}"))),
        ("bundle with tag and digest", tekton().bundle(&format!("oci://r.io:5000/b:v1{digest}"))),
        ("bundle by name only", tekton().bundle("oci://r.io/b")),
        ("cluster-scoped target", job().target("Node/worker-1")),
        ("kind in lower case", job().target("prod/deployment/web")),
        ("target with dots", job().target("prod/Pod/web-0.example.com")),
        ("target with parts of full length", job().target(&format!("{}/{}/{}", "n".repeat(63), "K".repeat(63), "a".repeat(253)))),
        ("no parameters", job().with("parameters", json!({}))),
        ("parameters", job().parameter("MEMORY_LIMIT", "512Mi").parameter("_x1", "").parameter("replicas", "3")),
        ("parameters that repeat the target", job().parameter("TARGET_RESOURCE_NAMESPACE", "prod").parameter("TARGET_RESOURCE_KIND", "Deployment").parameter("TARGET_RESOURCE_NAME", "web").parameter("TARGET_RESOURCE_API_VERSION", "apps/v1")),
        ("64 parameters of 1,024 characters", job().parameters(64, 1_024)),
        ("a value of 8,192 non-ASCII characters", job().parameter("A", "ö".repeat(8_192))),
        ("a value with shell metacharacters", job().parameter("A", "$(TARGET_RESOURCE) $HOME `x` \"'\\\n\t;&|")),
        ("a dollar sign for tekton", tekton().parameter("A", "$HOME and $$ and ( )")),
        ("timeout of a second", job().timeout("1s")),
        ("timeout of a day", job().timeout("24h")),
        ("timeout with zero parts", job().timeout("30m0s")),
        ("timeout of all parts", job().timeout("1h30m15s")),
        ("timeout in seconds", job().timeout("86400s")),
        ("ServiceAccount", job().with("executionConfig.serviceAccountName", "team-a.runner")),
        ("whenBlocked Wait", job().with("executionConfig.whenBlocked", "Wait")),
        ("whenBlocked Skip", job().with("executionConfig.whenBlocked", "Skip")),
        ("empty execution configuration", job().with("executionConfig", json!({}))),
        ("null in optional fields", job().with("workflowRef.name", Value::Null).with("parameters", Value::Null)),
        ("null as a value", job().parameter("A", Value::Null).parameter("B", "x")),
        ("request", job().with("remediationRequestRef", request)),
        ("confidence and rationale", job().with("confidence", 0.87).with("rationale", "OOMKilled three times")),
        ("confidence as a whole number", job().with("confidence", 1)),
        ("a StatefulSet", job().target("prod/StatefulSet/db")),
        ("a DaemonSet in lower case", job().target("kube-system/daemonset/agent")),
        ("a Namespace", job().target("Namespace/prod")),
        ("a target of one letter each", job().target("a/Pod/b")),
        ("a target with digits first", job().target("1st/Deployment/2nd")),
        ("a parameter name of 128 characters", job().parameter(&"N".repeat(128), "x")),
        ("values of 64 Ki together", job().parameters(8, 8_192)),
        ("an empty value", job().parameter("A", "")),
        ("a value of many lines and languages", job().parameter("A", "eins\nдва\n三\t🦀")),
        ("a timeout in hours and seconds", job().timeout("1h30s")),
        ("a timeout of 1,439 minutes", job().timeout("1439m")),
        ("image by digest of a deep repository", image("registry.example.com:5000/a/b/c/d/e/f")),
        ("workflow id and version of full length", job().with("workflowRef.workflowId", "i".repeat(255)).with("workflowRef.version", "v".repeat(64))),
    ]
}
