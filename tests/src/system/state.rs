//! An installation of wfe and its files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;
use wfe_model::audit::AuditEvent;

use super::catalog_source::CatalogSource;
use super::program::Program;
use crate::cluster::pki::Authority;
use crate::fakes::proxy::Proxy;
use crate::{Cluster, TestNamespace};
use wfe_platform::data_storage::DataStorage;

/// An installation of wfe for one test: it watches WorkflowExecutions in one namespace and creates
/// their Jobs in another.
pub struct System {
    /// The cluster.
    pub cluster: Cluster,
    /// Namespace of the WorkflowExecutions.
    pub namespace: TestNamespace,
    /// Namespace of Jobs and pods; enforces PodSecurity `restricted`.
    pub execution: TestNamespace,
    /// Namespace of the programs: their ServiceAccounts, the Lease of the leader, Data Storage.
    pub programs: TestNamespace,
    pub(super) address: String,
    pub(super) directory: TempDir,
    pub(super) controller: Option<Program>,
    /// Controllers that run in addition to the first.
    pub(super) more_controllers: Vec<Program>,
    /// The webhook process, while it runs.
    pub webhook: Option<Program>,
    pub(super) authority: Option<Authority>,
    pub(super) persistent: bool,
    /// Proxy that the controller uses as its API server from its next start on.
    pub proxy: Option<Proxy>,
    /// Fake Data Storage that receives the audit trail from the controller's next start on, instead
    /// of a file.
    pub data_storage: Option<DataStorage>,
    pub(super) catalog: CatalogSource,
    pub(super) leader_election: bool,
    /// Additional flags for the webhook's next start.
    pub webhook_flags: Vec<String>,
    /// Additional flags for the controller's next start.
    pub controller_flags: Vec<String>,
}

impl System {
    /// The file with the controller's token for Data Storage.
    pub fn data_storage_token(&self) -> PathBuf {
        self.path("data-storage-token")
    }

    /// The file with the CA certificate of Data Storage.
    pub fn data_storage_ca(&self) -> PathBuf {
        self.path("data-storage-ca.pem")
    }

    /// The fake Data Storage.
    pub fn storage(&self) -> Result<&DataStorage> {
        self.data_storage
            .as_ref()
            .context("no Data Storage was started")
    }

    /// Keeps both programs running, and their files, when this value is dropped.
    pub fn detach(&mut self) {
        self.controller
            .take()
            .into_iter()
            .chain(self.webhook.take())
            .for_each(Program::detach);
        self.directory.disable_cleanup(true);
    }

    /// The file of the audit trail.
    pub fn audit_file(&self) -> PathBuf {
        self.path("audit.jsonl")
    }

    /// The events in the audit file so far.
    pub fn audit_trail(&self) -> Result<Vec<AuditEvent>> {
        let text = std::fs::read_to_string(self.audit_file()).context("read the audit trail")?;
        text.lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The loopback address on which this system's programs listen.
    pub(super) fn address(&self) -> &str {
        &self.address
    }
}

/// A file of the chart.
pub(super) fn chart(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../charts/workflow-execution")
        .join(file)
}
