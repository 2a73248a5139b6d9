//! A namespace for one test.

use anyhow::Result;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource};

use crate::cluster::Cluster;
use crate::cluster::access;

/// A namespace of its own for one test; removed when this value goes.
pub struct TestNamespace {
    cluster: Cluster,
    name: String,
    lasting: bool,
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
            lasting: false,
        })
    }

    /// The namespace `name`, made where it is missing, which stays.
    pub(crate) async fn lasting(cluster: Cluster, name: &str) -> Result<Self> {
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
            lasting: true,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The administrator's API of a kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.cluster.admin(), &self.name)
    }
}

impl Drop for TestNamespace {
    /// A failed test keeps its namespace to be looked at. The request is made on a thread of its
    /// own: the test's runtime may be ending.
    fn drop(&mut self) {
        if self.lasting {
            return;
        }
        if std::thread::panicking() {
            eprintln!("namespace {} is kept, to look at", self.name);
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
            eprintln!("namespace {} stays: {error:#}", self.name);
        }
    }
}
