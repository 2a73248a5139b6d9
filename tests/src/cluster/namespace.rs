//! A Kubernetes namespace for one test.

use anyhow::Result;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource};

use crate::cluster::access::{self, Cluster};

/// A namespace for one test; deleted when the value is dropped, unless the test failed.
pub struct TestNamespace {
    cluster: Cluster,
    name: String,
    persistent: bool,
}

impl Cluster {
    /// Creates a namespace for one test, with a random name that starts with `prefix`. The
    /// namespace is deleted when the value is dropped, and kept when the test failed.
    pub async fn namespace(&self, prefix: &str) -> Result<TestNamespace> {
        TestNamespace::create(self.clone(), prefix).await
    }
}

impl TestNamespace {
    pub(crate) async fn create(cluster: Cluster, prefix: &str) -> Result<Self> {
        let namespace = Namespace {
            metadata: ObjectMeta {
                generate_name: Some(format!("{prefix}-")),
                ..Default::default()
            },
            ..Default::default()
        };
        let created = Api::<Namespace>::all(cluster.admin())
            .create(&PostParams::default(), &namespace)
            .await?;
        Ok(Self {
            cluster,
            name: created.metadata.name.unwrap_or_default(),
            persistent: false,
        })
    }

    /// The namespace `name`, created if missing, and kept when the value is dropped.
    pub(crate) async fn persistent(cluster: Cluster, name: &str) -> Result<Self> {
        let namespaces = Api::<Namespace>::all(cluster.admin());
        if namespaces.get_opt(name).await?.is_none() {
            let mut namespace = Namespace::default();
            namespace.metadata.name = Some(name.to_owned());
            namespaces
                .create(&PostParams::default(), &namespace)
                .await?;
        }
        Ok(Self {
            cluster,
            name: name.to_owned(),
            persistent: true,
        })
    }

    /// The name of the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// An API for a kind in this namespace, with the administrator's client.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.cluster.admin(), &self.name)
    }
}

impl Drop for TestNamespace {
    /// Keeps the namespace of a failed test for inspection. Deletion runs on its own thread,
    /// because the test's runtime may be shutting down.
    fn drop(&mut self) {
        if self.persistent {
            return;
        }
        if std::thread::panicking() {
            eprintln!("namespace {} is kept for inspection", self.name);
            return;
        }
        let (kubeconfig, name) = (self.cluster.kubeconfig(), self.name.clone());
        let deleted = std::thread::spawn(move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let namespaces: Api<Namespace> = Api::all(access::client(&kubeconfig).await?);
                namespaces
                    .delete(&name, &DeleteParams::background())
                    .await?;
                Ok(())
            })
        })
        .join();
        if let Ok(Err(error)) = deleted {
            eprintln!("deleting namespace {} failed: {error:#}", self.name);
        }
    }
}
