//! Workflows for tests, and requests to run them.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a fixture: a test fails by panicking"
)]

use serde_json::{Value, json};
use wfe_model::engine::Engine;
use wfe_model::workflow_execution::WorkflowExecution;

use crate::{Cluster, Image};

/// A workflow of a shell script or a pipeline: its catalog file, and the image it names.
pub struct Script {
    /// Workflow id in the catalog.
    pub id: &'static str,
    /// The engine that runs it.
    pub engine: Engine,
    /// Reference of the image or bundle, by digest.
    pub image: String,
    /// Text of the catalog file.
    pub yaml: String,
}

impl Script {
    /// Pushes an image that runs `script`; `more` is appended to the catalog entry.
    pub fn push(cluster: &Cluster, id: &'static str, script: &str, more: &str) -> Self {
        let image = Image::from("busybox:1")
            .text("run.sh", script)
            .entrypoint(&["/bin/sh", "/run.sh"]);
        let image = cluster
            .registry()
            .expect("a registry")
            .push(&format!("workflows/{id}:1"), &image)
            .expect("pushed");
        Self::of(id, image, more)
    }

    /// A workflow with `image`, without pushing the image.
    pub fn of(id: &'static str, image: String, more: &str) -> Self {
        Self::new(id, Engine::Job, image, more)
    }

    /// A workflow for engine tekton with `bundle`, without pushing the bundle.
    pub fn pipeline(id: &'static str, bundle: String, more: &str) -> Self {
        Self::new(id, Engine::Tekton, bundle, more)
    }

    fn new(id: &'static str, engine: Engine, image: String, more: &str) -> Self {
        let yaml = format!(
            "metadata: {{workflowId: {id}, version: 1.0.0}}\nexecution: {{engine: {engine}, bundle: '{image}'}}\n{more}"
        );
        Self {
            id,
            engine,
            image,
            yaml,
        }
    }

    /// The workflow document with another version.
    pub fn document(&self, version: &str) -> Value {
        let mut document: Value = serde_saphyr::from_str(&self.yaml).expect("a document");
        document["metadata"]["version"] = json!(version);
        document
    }

    /// The workflow as a RemediationWorkflow object.
    pub fn object(&self, version: &str) -> Value {
        let mut spec = self.document(version);
        let fields = spec.as_object_mut().expect("fields");
        fields.remove("metadata");
        fields.insert("version".to_owned(), json!(version));
        json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "RemediationWorkflow",
            "metadata": { "name": self.id }, "spec": spec,
        })
    }

    /// A WorkflowExecution of this workflow, with `spec` merged into its spec.
    pub fn request(&self, name: &str, spec: &Value) -> WorkflowExecution {
        let field = self.engine.runs();
        let reference = format!("{}{}", field.scheme(), self.image);
        let mut object = json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution", "metadata": { "name": name },
            "spec": {
                "executionEngine": self.engine.as_str(),
                "workflowRef": { "workflowId": self.id, "version": "1.0.0", field.name(): reference },
                "targetResource": format!("prod/Deployment/{name}"),
            },
        });
        for (key, value) in spec.as_object().cloned().unwrap_or_default() {
            object["spec"][key] = value;
        }
        serde_json::from_value(object).expect("a WorkflowExecution")
    }
}
