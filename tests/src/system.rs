//! wfe itself, installed in a cluster: as it is shipped, but for the binaries, which run as
//! processes beside the API server, with their own ServiceAccounts' tokens and no other rights.

mod install;
mod look;
mod people;
mod program;
mod script;
mod service;
mod tls;
mod webhook;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};
use tempfile::TempDir;
use wfe_model::audit::AuditEvent;

pub use self::install::until_effective;
pub use self::look::{condition, dry_run, job_has_ended, message, pod_is_alive, types};
pub use self::program::{Program, memory_kib};
pub use self::script::Script;
pub use self::service::Service;
pub use self::tls::TlsClient;
use crate::cluster::pki::Authority;
use crate::fakes::data_storage::{DataStorage, Door};
use crate::fakes::proxy::Proxy;
use crate::{Cluster, TestNamespace};

/// Each system of this process has a loopback address of its own, so that ports never meet.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// An installation for one test: it sees one namespace of WorkflowExecutions and runs them in
/// another.
pub struct System {
    /// The cluster.
    pub cluster: Cluster,
    /// Where WorkflowExecutions are.
    pub namespace: TestNamespace,
    /// Where workflows run; it enforces PodSecurity `restricted`.
    pub execution: TestNamespace,
    address: String,
    directory: TempDir,
    controller: Option<Program>,
    /// Further ones.
    more_controllers: Vec<Program>,
    /// The webhook, while one is running.
    pub webhook: Option<Program>,
    authority: Option<Authority>,
    lasting: bool,
    /// What the controller takes for the API server from its next start on.
    pub proxy: Option<Proxy>,
    /// Where the audit trail goes from the controller's next start on, instead of a file.
    pub data_storage: Option<DataStorage>,
    /// More flags for the webhook's next start.
    pub webhook_flags: Vec<String>,
    /// More flags for the controller's next start.
    pub controller_flags: Vec<String>,
}

impl System {
    /// Installs everything but the programs, in namespaces of its own; `workflows` are the
    /// catalog.
    pub async fn install(cluster: &Cluster, prefix: &str, workflows: &[&Script]) -> Result<Self> {
        let namespace = cluster.namespace(prefix).await?;
        let execution = cluster.namespace(&format!("{prefix}-run")).await?;
        let files = workflows.iter().map(|it| (it.id, it.yaml.clone()));
        let files: Vec<_> = files.collect();
        Self::install_between(cluster, namespace, execution, &files, false).await
    }

    /// Installs everything but the programs, in two namespaces that stay; `workflows` are the
    /// catalog's files by name.
    pub async fn install_in(
        cluster: &Cluster,
        namespace: &str,
        execution: &str,
        workflows: &[(&str, String)],
    ) -> Result<Self> {
        let namespace = TestNamespace::lasting(cluster.clone(), namespace).await?;
        let execution = TestNamespace::lasting(cluster.clone(), execution).await?;
        Self::install_between(cluster, namespace, execution, workflows, true).await
    }

    async fn install_between(
        cluster: &Cluster,
        namespace: TestNamespace,
        execution: TestNamespace,
        workflows: &[(&str, String)],
        lasting: bool,
    ) -> Result<Self> {
        let system = Self {
            cluster: cluster.clone(),
            namespace,
            execution,
            address: address(),
            directory: tempfile::tempdir()?,
            controller: None,
            more_controllers: Vec::new(),
            webhook: None,
            authority: None,
            lasting,
            proxy: None,
            data_storage: None,
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

    /// [`install`](Self::install), then both programs.
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

    /// Starts one more beside it, with an audit trail of its own.
    pub async fn start_another_controller(&mut self) -> Result<()> {
        let another = self.controller(1 + self.more_controllers.len()).await?;
        self.more_controllers.push(another);
        Ok(())
    }

    /// Serves the CRD as an older release would have it, without `field` of the status; `probe` is a
    /// WorkflowExecution to try it on.
    pub async fn serve_older_crd(&self, field: &str, probe: &str) -> Result<()> {
        install::older_crd(self, field, probe).await
    }

    /// Starts a controller that is not this value's to end.
    pub async fn launch_controller(&self) -> Result<Program> {
        self.controller(0).await
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
            format!("--catalog-dir={}", self.path("catalog").display()),
            format!("--metrics-addr={}:{}", self.address, 9090 + 10 * number),
            format!("--health-addr={health}"),
        ];
        match &self.data_storage {
            Some(storage) => flags.extend([
                format!("--data-storage-url={}", storage.url()),
                format!("--data-storage-ca={}", self.data_storage_ca().display()),
                format!(
                    "--data-storage-token-file={}",
                    self.data_storage_token().display()
                ),
            ]),
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

    /// A client with the controller's rights.
    pub async fn controller_client(&self) -> Result<kube::Client> {
        let (namespace, account) = (self.execution.name(), install::CONTROLLER);
        self.cluster.service_account(namespace, account).await
    }

    /// Runs one of the controller's subcommands with its rights: what it prints, and whether it was
    /// content.
    pub async fn controller_command(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let kubeconfig = install::kubeconfig(self, install::CONTROLLER).await?;
        program::run("wfe-controller", arguments, &kubeconfig).await
    }

    /// Gives the controller its rights in every namespace, as an installation that watches all has.
    pub async fn grant_everywhere(&self) -> Result<()> {
        install::everywhere(self).await
    }

    /// Kills the controller (SIGKILL), if it runs.
    pub async fn kill_controller(&mut self) -> Result<()> {
        match self.controller.take() {
            Some(controller) => controller.kill().await,
            None => Ok(()),
        }
    }

    /// Puts a proxy between the controller and the API server, from its next start on.
    pub async fn put_proxy_between(&mut self) -> Result<()> {
        let (namespace, account) = (self.execution.name(), install::CONTROLLER);
        let upstream = self.cluster.service_account(namespace, account).await?;
        self.proxy = Some(Proxy::start(upstream).await?);
        Ok(())
    }

    /// Starts a stand-in for Data Storage: the controller's next one sends its audit trail there, over
    /// TLS, with a token of its ServiceAccount.
    pub async fn put_data_storage_beside(&mut self) -> Result<()> {
        install::data_storage_right(self, true).await?;
        let door = Door::Review(self.cluster.admin(), self.execution.name().to_owned());
        let storage = DataStorage::start_with_tls(&self.address, door).await?;
        let ca = storage.ca.clone().unwrap_or_default();
        std::fs::write(self.data_storage_ca(), ca)?;
        self.renew_data_storage_token().await?;
        self.data_storage = Some(storage);
        Ok(())
    }

    /// Gives and takes the controller's right to use Data Storage, which is taken to be in the
    /// execution namespace.
    pub async fn allow_data_storage(&self, allowed: bool) -> Result<()> {
        install::data_storage_right(self, allowed).await
    }

    /// Gives the controller another token for Data Storage, as the kubelet does from time to time.
    pub async fn renew_data_storage_token(&self) -> Result<()> {
        let (namespace, account) = (self.execution.name(), install::CONTROLLER);
        let token = self
            .cluster
            .service_account_token(namespace, account)
            .await?;
        Ok(std::fs::write(self.data_storage_token(), token)?)
    }

    /// The file with the controller's token for Data Storage.
    pub fn data_storage_token(&self) -> PathBuf {
        self.path("data-storage-token")
    }

    /// The file with the authority of Data Storage's certificate.
    pub fn data_storage_ca(&self) -> PathBuf {
        self.path("data-storage-ca.pem")
    }

    /// The stand-in for Data Storage.
    pub fn storage(&self) -> Result<&DataStorage> {
        self.data_storage
            .as_ref()
            .context("there is a Data Storage")
    }

    /// Gives and takes the controller's right to write statuses.
    pub async fn allow_status_writes(&self, allowed: bool) -> Result<()> {
        install::status_right(self, allowed).await
    }

    /// Gives and takes the controller's right to create Jobs.
    pub async fn allow_jobs(&self, allowed: bool) -> Result<()> {
        install::job_right(self, allowed).await
    }

    /// Leaves both programs running, and their files.
    pub fn leave(&mut self) {
        self.controller
            .take()
            .into_iter()
            .chain(self.webhook.take())
            .for_each(Program::leave);
        self.directory.disable_cleanup(true);
    }

    /// The file of the audit trail.
    pub fn audit_file(&self) -> PathBuf {
        self.path("audit.jsonl")
    }

    /// The audit trail in the file so far.
    pub fn audit_trail(&self) -> Result<Vec<AuditEvent>> {
        let text = std::fs::read_to_string(self.audit_file()).context("read the audit trail")?;
        text.lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `host` of everything this system serves.
    fn address(&self) -> &str {
        &self.address
    }
}

/// An address that no other system of this process has, nor one that another process left running.
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

/// Installs the CRD alone.
pub async fn install_crd(cluster: &Cluster) -> Result<()> {
    install::crd(cluster).await
}

/// What a test leaves in a cluster that goes on: nothing. The controller is killed before its
/// finalizers are taken off, on a thread of its own, since the test's runtime may be ending.
impl Drop for System {
    fn drop(&mut self) {
        drop((self.controller.take(), self.webhook.take()));
        self.more_controllers.clear();
        if self.lasting || std::thread::panicking() {
            return;
        }
        let (kubeconfig, namespace) = (self.cluster.kubeconfig(), self.namespace.name().to_owned());
        let removed = std::thread::spawn(move || install::remove(&kubeconfig, &namespace)).join();
        if let Ok(Err(error)) = removed {
            eprintln!("an installation stays: {error:#}");
        }
    }
}

/// A file of the chart.
fn chart(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../charts/workflow-execution")
        .join(file)
}
