//! Installs wfe, and starts and stops its programs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Result;
use tokio::sync::OnceCell;

use super::catalog_source::CatalogSource;
use super::install;
use super::program::{self, Program};
use super::script::Script;
use super::state::System;
use wfe_platform::authorizer::Authorizer;

use crate::fakes::{self, proxy::Proxy};
use crate::{Cluster, TestNamespace};

/// Each system of this process has its own loopback address, so that ports do not collide.
static NEXT: AtomicU16 = AtomicU16::new(0);

impl System {
    /// Installs wfe without starting its programs, in three new namespaces; `workflows` are the
    /// catalog.
    pub async fn install(cluster: &Cluster, prefix: &str, workflows: &[&Script]) -> Result<Self> {
        let namespace = cluster.namespace(prefix).await?;
        let execution = cluster.namespace(&format!("{prefix}-run")).await?;
        let programs = cluster.namespace(&format!("{prefix}-system")).await?;
        let files = workflows.iter().map(|it| (it.id, it.yaml.clone()));
        let files: Vec<_> = files.collect();
        let namespaces = [namespace, execution, programs];
        Self::install_between(cluster, namespaces, &files, false).await
    }

    /// Installs wfe without starting its programs, in namespaces that are kept: that of the
    /// WorkflowExecutions, of the executions and of the programs.
    pub async fn install_in(cluster: &Cluster, namespaces: [&str; 3]) -> Result<Self> {
        let [namespace, execution, programs] = namespaces;
        let namespace = TestNamespace::persistent(cluster.clone(), namespace).await?;
        let execution = TestNamespace::persistent(cluster.clone(), execution).await?;
        let programs = TestNamespace::persistent(cluster.clone(), programs).await?;
        let namespaces = [namespace, execution, programs];
        Self::install_between(cluster, namespaces, &[], true).await
    }

    async fn install_between(
        cluster: &Cluster,
        [namespace, execution, programs]: [TestNamespace; 3],
        workflows: &[(&str, String)],
        persistent: bool,
    ) -> Result<Self> {
        let system = Self {
            cluster: cluster.clone(),
            namespace,
            execution,
            programs,
            address: address(),
            directory: tempfile::tempdir()?,
            controller: None,
            more_controllers: Vec::new(),
            webhook: None,
            authority: None,
            persistent,
            proxy: None,
            data_storage: None,
            catalog: CatalogSource::default(),
            leader_election: false,
            webhook_flags: Vec::new(),
            controller_flags: Vec::new(),
        };
        std::fs::create_dir(system.path("catalog"))?;
        for (name, text) in workflows {
            let file = system.path("catalog").join(name).with_extension("yaml");
            std::fs::write(file, text)?;
        }
        install::all(&system).await?;
        Ok(system)
    }

    /// [Installs](Self::install) wfe and starts webhook and controller.
    pub async fn start(cluster: &Cluster, prefix: &str, workflows: &[&Script]) -> Result<Self> {
        let mut system = Self::install(cluster, prefix, workflows).await?;
        system.start_webhook().await?;
        system.start_controller().await?;
        Ok(system)
    }

    /// Starts the controller and waits until it is ready.
    pub async fn start_controller(&mut self) -> Result<()> {
        self.controller = Some(self.controller(0).await?);
        Ok(())
    }

    /// Starts an additional controller with its own audit file.
    pub async fn start_another_controller(&mut self) -> Result<()> {
        let another = self.controller(1 + self.more_controllers.len()).await?;
        self.more_controllers.push(another);
        Ok(())
    }

    /// Serves the CRD of an older release, without `field` in the status; `probe` is the name of a
    /// WorkflowExecution to test the schema with.
    pub async fn serve_older_crd(&self, field: &str, probe: &str) -> Result<()> {
        install::older_crd(self, field, probe).await
    }

    /// Serves a CRD of the same name without any rule.
    pub async fn serve_crd_without_rules(&self) -> Result<()> {
        install::crd_without_rules(self).await
    }

    /// Starts a controller that the caller owns and ends.
    pub async fn launch_controller(&self) -> Result<Program> {
        self.controller(0).await
    }

    /// As [`launch_controller`](Self::launch_controller), for several at a time.
    pub async fn launch_controller_number(&self, number: usize) -> Result<Program> {
        self.controller(number).await
    }

    /// Controllers elect a leader from their next start on.
    pub async fn elect_leader(&mut self) -> Result<()> {
        install::leader_election(self).await?;
        self.leader_election = true;
        Ok(())
    }

    /// Controllers delete ended WorkflowExecutions after `ttl` from their next start on.
    pub async fn expire_after(&mut self, ttl: &str) -> Result<()> {
        install::expiry(self).await?;
        let flag = format!("--ttl-after-finished={ttl}");
        self.controller_flags.push(flag);
        Ok(())
    }

    /// The log of the controllers.
    pub fn controller_log(&self) -> PathBuf {
        self.path("controller.log")
    }

    async fn controller(&self, number: usize) -> Result<Program> {
        let kubeconfig = match &self.proxy {
            Some(proxy) => {
                let path = self.path("proxy.conf");
                std::fs::write(&path, proxy.kubeconfig().to_string())?;
                path
            }
            None => install::kubeconfig(self, install::CONTROLLER).await?,
        };
        let audit_file = match number {
            0 => self.audit_file(),
            number => self.path(&format!("audit-{number}.jsonl")),
        };
        let health = format!("{}:{}", self.address, 8081 + 10 * number);
        let mut flags = vec![
            format!("--execution-namespace={}", self.execution.name()),
            format!("--watch-namespace={}", self.namespace.name()),
            format!("--metrics-addr={}:{}", self.address, 9090 + 10 * number),
            format!("--health-addr={health}"),
            format!("--leader-elect={}", self.leader_election),
        ];
        flags.extend(self.catalog_flags());
        match self.data_storage_flags() {
            Some(data_storage) => flags.extend(data_storage),
            None => flags.push(format!("--audit-file={}", audit_file.display())),
        }
        flags.extend(self.controller_flags.clone());
        let log = self.path("controller.log");
        Program::start("wfe-controller", &flags, &kubeconfig, &log, &health).await
    }

    /// The metrics of the first controller.
    pub async fn controller_metrics(&self) -> Result<String> {
        program::get(&format!("{}:9090", self.address), "/metrics").await
    }

    /// A client with the controller's token.
    pub async fn controller_client(&self) -> Result<kube::Client> {
        let (namespace, account) = (self.programs.name(), install::CONTROLLER);
        self.cluster.service_account(namespace, account).await
    }

    /// Runs a subcommand of the controller with the controller's token; returns whether the
    /// subcommand succeeded, and its output.
    pub async fn controller_command(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let kubeconfig = install::kubeconfig(self, install::CONTROLLER).await?;
        program::run("wfe-controller", arguments, &kubeconfig).await
    }

    /// Runs a subcommand of the controller as the cluster's administrator.
    pub async fn admin_command(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let kubeconfig = self.cluster.kubeconfig();
        program::run("wfe-controller", arguments, kubeconfig.as_ref()).await
    }

    /// Removes one of the chart's policies from this system; it ends some time later.
    pub async fn remove_policy(&self, policy: &str) -> Result<()> {
        install::remove_policy(self, policy).await
    }

    /// Takes the catalog's directory away from the programs.
    pub fn hide_catalog(&self) -> Result<()> {
        Ok(std::fs::rename(self.path("catalog"), self.path("hidden"))?)
    }

    /// Gives the catalog's directory back.
    pub fn show_catalog(&self) -> Result<()> {
        Ok(std::fs::rename(self.path("hidden"), self.path("catalog"))?)
    }

    /// Kills the controller (SIGKILL), if it runs.
    pub async fn kill_controller(&mut self) -> Result<()> {
        match self.controller.take() {
            Some(controller) => controller.kill().await,
            None => Ok(()),
        }
    }

    /// Puts a proxy between the controller and the API server, from its next start on.
    pub async fn start_proxy(&mut self) -> Result<()> {
        let (namespace, account) = (self.programs.name(), install::CONTROLLER);
        let upstream = self.cluster.service_account(namespace, account).await?;
        self.proxy = Some(Proxy::start(upstream).await?);
        Ok(())
    }

    /// Starts a fake Data Storage: the next controller sends its audit trail there, over TLS, with
    /// tokens of an account that the fake allows; it does not allow the controller's own.
    pub async fn start_data_storage(&mut self) -> Result<()> {
        install::data_storage_tokens(self).await?;
        install::set_data_storage_permission(self, true).await?;
        let authorizer =
            Authorizer::Kubernetes(self.cluster.admin(), self.programs.name().to_owned());
        let (storage, ca) = fakes::data_storage(&self.address, authorizer).await?;
        std::fs::write(self.data_storage_ca(), ca)?;
        self.renew_data_storage_token().await?;
        self.data_storage = Some(storage);
        Ok(())
    }

    /// Grants or revokes the permission to use Data Storage, whose Service is assumed
    /// to be in the namespace of the programs.
    pub async fn allow_data_storage(&self, allowed: bool) -> Result<()> {
        install::set_data_storage_permission(self, allowed).await
    }

    /// Writes a new token for Data Storage, as the kubelet does when it rotates projected tokens.
    pub async fn renew_data_storage_token(&self) -> Result<()> {
        let (namespace, account) = (self.programs.name(), install::DATA_STORAGE_CLIENT);
        let token = self
            .cluster
            .service_account_token(namespace, account)
            .await?;
        Ok(std::fs::write(self.data_storage_token(), token)?)
    }

    /// Grants or revokes the controller's permission to update statuses.
    pub async fn allow_status_writes(&self, allowed: bool) -> Result<()> {
        install::set_status_permission(self, allowed).await
    }

    /// Grants or revokes the controller's permission to create Jobs.
    pub async fn allow_jobs(&self, allowed: bool) -> Result<()> {
        install::set_job_permission(self, allowed).await
    }
}

/// Connects to the cluster, with the CRD installed once per process.
///
/// # Panics
/// Without a cluster.
#[expect(clippy::expect_used, reason = "the one way to fail a test")]
pub async fn cluster() -> Cluster {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let cluster = Cluster::connect().await;
    INSTALLED
        .get_or_init(async || install_crd(&cluster).await.expect("the CRD"))
        .await;
    cluster
}

/// Installs the CRD alone.
pub async fn install_crd(cluster: &Cluster) -> Result<()> {
    install::crd(cluster).await
}

/// Deletes everything a test created. The controller is killed first: it would add its finalizers
/// again. Deletion runs on its own thread, because the test's runtime may be shutting down.
impl Drop for System {
    fn drop(&mut self) {
        drop((self.controller.take(), self.webhook.take()));
        self.more_controllers.clear();
        if self.persistent || std::thread::panicking() {
            return;
        }
        let (kubeconfig, namespace) = (self.cluster.kubeconfig(), self.namespace.name().to_owned());
        let removed = std::thread::spawn(move || install::remove(&kubeconfig, &namespace)).join();
        if let Ok(Err(error)) = removed {
            eprintln!("removing the installation failed: {error:#}");
        }
    }
}

/// A loopback address that differs for each system and each process, so that programs an earlier
/// process left running are not reached.
fn address() -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    format!(
        "127.{}.{}.{}",
        1 + process / 250 % 250,
        process % 250,
        number % 250 + 1
    )
}
