//! Where the demo runs: with both programs as processes in the test cluster, or with the chart in the
//! cluster of `KUBECONFIG`.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::DeleteParams;
use kube::{Api, Client};
use serde_json::json;
use wfe_tests::chart::{self, EXECUTIONS, PROGRAMS, RELEASE, helm};
use wfe_tests::system::{CatalogSource, System, path_of};
use wfe_tests::{Cluster, Registry};

use crate::tell::say;

/// Namespace of the requests and their targets.
pub(crate) const NAMESPACE: &str = "prod";
const CRDS: [&str; 2] = [
    "workflowexecutions.kubernaut.ai",
    "remediationworkflows.kubernaut.ai",
];

/// The cluster to install in.
pub(crate) enum Place {
    /// The test cluster that this process runs in.
    TestCluster(Box<Cluster>),
    /// The cluster of `KUBECONFIG`, which pulls from this registry.
    Elsewhere { client: Client, registry: Registry },
}

impl Place {
    /// With a registry, the cluster of `KUBECONFIG`: an error if the demo would delete what is not its own.
    pub(crate) async fn find(registry: Option<&str>) -> Result<Self> {
        let Some(registry) = registry else {
            return Ok(Self::TestCluster(Box::new(Cluster::connect().await)));
        };
        let client = wfe_peers::client::connect().await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        for name in [NAMESPACE, EXECUTIONS, PROGRAMS] {
            let found = namespaces.get_opt(name).await?;
            ensure!(
                found.is_none(),
                "namespace {name} exists: the demo creates it and deletes it at the end"
            );
        }
        let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
        for name in CRDS {
            let found = crds.get_opt(name).await?;
            ensure!(
                found.is_none(),
                "the CRD {name} exists: the demo installs it and deletes it at the end"
            );
        }
        let registry = Registry::at(registry);
        registry.push_base_images()?;
        Ok(Self::Elsewhere { client, registry })
    }

    pub(crate) fn client(&self) -> Client {
        match self {
            Self::TestCluster(cluster) => cluster.admin(),
            Self::Elsewhere { client, .. } => client.clone(),
        }
    }

    pub(crate) fn registry(&self) -> Result<Registry> {
        match self {
            Self::TestCluster(cluster) => cluster.registry(),
            Self::Elsewhere { registry, .. } => Ok(registry.clone()),
        }
    }

    /// Installs wfe with an empty catalog, and waits until it is ready.
    pub(crate) async fn install(&self) -> Result<Installation> {
        let (client, registry) = match self {
            Self::TestCluster(cluster) => {
                let namespaces = [NAMESPACE, EXECUTIONS, PROGRAMS];
                let mut system = System::install_in(cluster, namespaces).await?;
                system.use_catalog(CatalogSource::Objects).await?;
                system.start_webhook().await?;
                system.start_controller().await?;
                return Ok(Installation::Processes(Box::new(system)));
            }
            Self::Elsewhere { client, registry } => (client.clone(), registry.address()),
        };
        for name in [NAMESPACE, PROGRAMS] {
            chart::create_namespace(&client, name).await?;
        }
        let values = json!({
            "global": { "imageRegistry": registry },
            // One file, to be read at the end.
            "controller": { "replicaCount": 1, "audit": { "file": AUDIT_FILE, "volume": { "emptyDir": {} } } },
        });
        let installed = chart::install(&chart::directory(), &values, &[]).await;
        let installation = Installation::Chart(client);
        if let Err(error) = installed {
            // As far as it got.
            let _ = installation.remove().await;
            return Err(error);
        }
        Ok(installation)
    }
}

const AUDIT_FILE: &str = "/var/lib/wfe/audit.jsonl";

/// wfe, installed.
pub(crate) enum Installation {
    Processes(Box<System>),
    Chart(Client),
}

impl Installation {
    /// Prints the audit trail of a remediation with `wfe-controller audit`.
    pub(crate) async fn show_audit(&self, correlation_id: &str) -> Result<()> {
        let more = ["--correlation-id", correlation_id];
        let (shown, text) = match self {
            Self::Processes(system) => {
                let file = system.audit_file().display().to_string();
                let arguments = [&["audit", &file][..], &more].concat();
                let (success, text) = system.controller_command(&arguments).await?;
                ensure!(success, "{text}");
                ("wfe-controller audit audit.jsonl".to_owned(), text)
            }
            Self::Chart(_) => {
                let deployment = format!("deploy/{RELEASE}-controller");
                let exec = ["-n", PROGRAMS, "exec", &deployment, "--"];
                let audit = ["/wfe-controller", "audit", AUDIT_FILE];
                let text = chart::kubectl(&[&exec[..], &audit, &more].concat()).await?;
                let shown = format!("kubectl {} {}", exec.join(" "), audit.join(" "));
                (shown, text)
            }
        };
        say(&format!("\n\x1b[2m$ {shown} {}\x1b[0m", more.join(" ")));
        say(text.trim_end());
        Ok(())
    }

    /// Leaves everything running, and prints how to explore it.
    pub(crate) fn keep(self) {
        let (audit, end) = match self {
            Self::Processes(mut system) => {
                let audit = system.audit_file().display().to_string();
                system.detach();
                say(
                    "make shell                                    a shell with kubectl in the cluster",
                );
                (
                    audit,
                    "make down                                     ends the cluster".to_owned(),
                )
            }
            Self::Chart(_) => {
                let logs = format!("kubectl -n {PROGRAMS} logs deploy/{RELEASE}-controller");
                (
                    logs,
                    "docs/install.md, Uninstall                    removes everything".to_owned(),
                )
            }
        };
        say("kubectl -n prod get wfe -o wide               the WorkflowExecutions");
        say("kubectl -n prod describe wfe/raise-memory     one of them");
        say(&format!("{audit}     the audit trail"));
        say(&end);
    }

    /// Removes what the demo has installed elsewhere; the test cluster ends with its processes.
    pub(crate) async fn remove(self) -> Result<()> {
        let Self::Chart(client) = self else {
            return Ok(());
        };
        helm(&["uninstall", RELEASE, "-n", PROGRAMS, "--wait"]).await?;
        // Without their finalizers, their namespace can be deleted.
        let controller = path_of("wfe-controller")?;
        let release = ["release", "--namespace", NAMESPACE];
        chart::run(&controller.to_string_lossy(), &release).await?;
        let delete = DeleteParams::default();
        for name in [NAMESPACE, EXECUTIONS, PROGRAMS] {
            let namespaces: Api<Namespace> = Api::all(client.clone());
            namespaces.delete(name, &delete).await?;
        }
        let crds: Api<CustomResourceDefinition> = Api::all(client);
        for name in CRDS {
            crds.delete(name, &delete).await?;
        }
        Ok(())
    }
}
