//! Installs the platform.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, CustomResourceExt, ResourceExt};
use serde_json::{Value, json};
use wfe_model::engine::Engine;
use wfe_model::remediation::{AIAnalysis, RemediationRequest};
use wfe_model::workflow::Workflow;
use wfe_tests::chart::{self, EXECUTIONS, PROGRAMS, RELEASE, kubectl, kubectl_image, run};
use wfe_tests::system::until_effective;
use wfe_tests::{Cluster, Image, wait, workspace};

/// Longer than the grace period of the pods.
const GONE_WITHIN: Duration = Duration::from_mins(1);
/// Namespace of the workloads.
pub const WORKLOADS: &str = "prod";
/// The account whose tokens Data Storage takes.
const DATA_STORAGE_CLIENT: &str = "wfe-data-storage-client";
const SERVICES: [&str; 6] = [
    "gateway",
    "signal-processing",
    "holmesgpt-api",
    "data-storage",
    "notification",
    "receiver",
];

/// The platform, installed.
pub struct Platform {
    pub cluster: Cluster,
    pub client: Client,
    /// Image of the workloads.
    app: String,
    /// Image of the stand-ins.
    stand_ins: String,
    /// Image of the workflow.
    script: String,
    data_storage: String,
    receiver: String,
    holmes: String,
    directory: tempfile::TempDir,
}

/// Text of a file beside the stand-ins, completed.
fn rendered(file: &str, values: &[(&str, &str)]) -> String {
    let path = workspace().join("tests/platform/deploy").join(file);
    let text = std::fs::read_to_string(path).expect("a file");
    let complete =
        |text: String, (name, value): &(&str, &str)| text.replace(&format!("${{{name}}}"), value);
    values.iter().fold(text, complete)
}

impl Platform {
    /// Installs everything; the catalog is Data Storage, with one workflow for `engine`.
    pub async fn install(engine: Engine) -> Self {
        let cluster = Cluster::connect().await;
        let client = cluster.admin();
        let registry = cluster.registry().expect("a registry");
        let images = [
            "images",
            registry.address(),
            "--profile",
            "dev",
            "--stand-ins",
        ];
        let pushed = run(env!("CARGO_BIN_EXE_wfe-cluster"), &images)
            .await
            .expect("images");
        let stand_ins = pushed.lines().find(|it| it.contains("/wfe-platform@"));
        let script = kubectl_image(rendered("raise-memory.sh", &[])).expect("kubectl");
        let script = registry.push("workflows/oom-increase-memory:1.0.0", &script);
        let app = registry.push("my-app:1", &Image::from("busybox:1"));
        let mut platform = Self {
            stand_ins: stand_ins.expect("an image").to_owned(),
            script: script.expect("pushed"),
            app: app.expect("pushed"),
            data_storage: String::new(),
            receiver: String::new(),
            holmes: String::new(),
            directory: tempfile::tempdir().expect("a directory"),
            cluster,
            client,
        };
        platform.install_programs().await;
        platform.register(engine).await;
        platform
    }

    async fn install_programs(&mut self) {
        for name in [PROGRAMS, WORKLOADS] {
            let created = chart::create_namespace(&self.client, name).await;
            created.expect("created");
        }
        // Elsewhere Kubernaut installs them.
        for crd in wfe_model::crd::platform() {
            self.apply(&serde_json::to_string(&crd).expect("JSON"))
                .await;
        }
        for crd in [RemediationRequest::crd_name(), AIAnalysis::crd_name()] {
            let established = [
                "wait",
                "--for=condition=Established",
                "--timeout=30s",
                "crd",
                crd,
            ];
            kubectl(&established).await.expect("established");
        }
        self.apply(&rendered("services.yaml", &[])).await;
        self.data_storage = self.address("data-storage-service").await;
        self.receiver = self.address("receiver").await;
        self.holmes = self.address("holmesgpt-api").await;
        let catalog = format!("--data-storage-url={}", self.data_storage);
        self.apply_stand_ins(&catalog).await;
        self.install_chart("dataStorage").await;
        self.apply(&rendered("cluster.yaml", &[])).await;
        for service in SERVICES {
            self.rolled_out(service).await;
        }
    }

    /// The stand-ins, with `catalog` as the flag that says where HolmesGPT-API finds workflows.
    async fn apply_stand_ins(&self, catalog: &str) {
        let values = [
            ("IMAGE", self.stand_ins.as_str()),
            ("CATALOG", catalog),
            ("RECEIVER", &self.receiver),
        ];
        self.apply(&rendered("platform.yaml", &values)).await;
    }

    async fn install_chart(&self, catalog: &str) {
        let registry = self.cluster.registry().expect("a registry");
        let values = json!({
            "global": { "imageRegistry": registry.address() },
            "catalog": { "source": catalog },
            "dataStorage": { "url": self.data_storage, "plainHttp": true },
            "controller": {
                "orchestration": { "enabled": true },
                "analysis": { "enabled": true, "holmesUrl": self.holmes, "plainHttp": true },
            },
            // Everything shares two cores.
            "webhook": { "timeoutSeconds": 10 },
        });
        let installed = chart::install(&chart::directory(), &values, &[]).await;
        installed.expect("installed");
    }

    /// Makes RemediationWorkflow objects the catalog, with one workflow for engine job.
    pub async fn use_objects(&self) {
        self.install_chart("objects").await;
        // Pods that end still answer for some seconds, from the other catalog.
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), PROGRAMS);
        let own = ListParams::default().labels(&format!("app.kubernetes.io/instance={RELEASE}"));
        let all = pods.list(&own).await.expect("listed");
        let ending = all.iter();
        for pod in ending.filter(|it| it.metadata.deletion_timestamp.is_some()) {
            let gone = wait::gone(&pods, &pod.name_any(), GONE_WITHIN).await;
            gone.expect("the pod of before the upgrade ends");
        }
        let mut spec: Value =
            serde_saphyr::from_str(&self.workflow(Engine::Job)).expect("a document");
        let fields = spec.as_object_mut().expect("fields");
        fields.remove("metadata");
        fields.insert("version".to_owned(), json!("1.0.0"));
        let object = json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "RemediationWorkflow",
            "metadata": { "name": "oom-increase-memory", "namespace": PROGRAMS }, "spec": spec,
        });
        self.apply(&object.to_string()).await;
        self.apply_stand_ins(&format!("--catalog-namespace={PROGRAMS}"))
            .await;
        self.rolled_out("holmesgpt-api").await;
    }

    /// The workflow document.
    fn workflow(&self, engine: Engine) -> String {
        let bundle = match engine {
            Engine::Job => self.script.clone(),
            Engine::Tekton => {
                let pipeline = rendered("pipeline.yaml", &[("IMAGE", &self.script)]);
                let pipeline: Value = serde_saphyr::from_str(&pipeline).expect("a pipeline");
                let registry = self.cluster.registry().expect("a registry");
                let pushed =
                    registry.push_bundle("pipelines/oom-increase-memory:1.0.0", &[pipeline]);
                pushed.expect("pushed")
            }
        };
        let document = rendered(
            "workflow.yaml",
            &[("ENGINE", engine.as_str()), ("BUNDLE", &bundle)],
        );
        Workflow::read("workflow.yaml", &document).expect("a valid workflow");
        document
    }

    /// Registers the workflow at Data Storage.
    async fn register(&self, engine: Engine) {
        let content = self.workflow(engine);
        let url = format!("{}/api/v1/workflows", self.data_storage);
        // RBAC and the Service are effective a moment after they are created.
        until_effective("Data Storage", async || {
            let request = reqwest::Client::new()
                .post(&url)
                .bearer_auth(self.token().await);
            let answer = request.json(&json!({ "content": content })).send().await;
            Ok(answer.is_ok_and(|it| it.status().is_success()))
        })
        .await
        .expect("registered");
    }

    async fn token(&self) -> String {
        let token = self
            .cluster
            .service_account_token(PROGRAMS, DATA_STORAGE_CLIENT);
        token.await.expect("a token")
    }

    /// The audit events of a RemediationRequest, the oldest first.
    pub async fn audit(&self, correlation_id: &str) -> Vec<Value> {
        let url = format!("{}/api/v1/audit/events", self.data_storage);
        let request = reqwest::Client::new()
            .get(url)
            .bearer_auth(self.token().await);
        let answer = request
            .query(&[("correlation_id", correlation_id)])
            .send()
            .await;
        let body: Value = answer.expect("an answer").json().await.expect("JSON");
        let mut events = body["data"].as_array().expect("events").clone();
        events.reverse();
        events
    }

    /// What the receiver has taken.
    pub async fn notifications(&self) -> Vec<Value> {
        let answer = reqwest::get(format!("{}/notifications", self.receiver)).await;
        answer.expect("an answer").json().await.expect("JSON")
    }

    /// Creates a workload of production that exceeds its memory limit.
    pub async fn break_workload(&self, name: &str) {
        self.break_workload_in(name, "production").await;
    }

    /// Creates a workload of this environment that exceeds its memory limit.
    pub async fn break_workload_in(&self, name: &str, environment: &str) {
        let values = [
            ("NAME", name),
            ("ENVIRONMENT", environment),
            ("IMAGE", &self.app),
        ];
        self.apply(&rendered("workload.yaml", &values)).await;
    }

    /// Sets the highest limit that the workflow grants.
    pub async fn set_ceiling(&self, ceiling: &str) {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), EXECUTIONS);
        let patch = Patch::Merge(json!({ "data": { "ceiling": ceiling } }));
        let patched = maps
            .patch("memory-policy", &PatchParams::default(), &patch)
            .await;
        patched.expect("patched");
    }

    async fn apply(&self, text: &str) {
        let path: PathBuf = self.directory.path().join("applied.yaml");
        std::fs::write(&path, text).expect("written");
        let applied = kubectl(&["apply", "-f", &path.to_string_lossy()]).await;
        applied.expect("applied");
    }

    async fn rolled_out(&self, deployment: &str) {
        let name = format!("deployment/{deployment}");
        let status = ["-n", PROGRAMS, "rollout", "status", &name, "--timeout=2m"];
        kubectl(&status).await.expect("rolled out");
    }

    async fn address(&self, service: &str) -> String {
        let services: Api<Service> = Api::namespaced(self.client.clone(), PROGRAMS);
        let found = services.get(service).await.expect("a Service");
        let address = found.spec.and_then(|it| it.cluster_ip).expect("an address");
        format!("http://{address}:8080")
    }
}
