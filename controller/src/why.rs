//! `wfe-controller why`: reads what [`wfe_core::why`] explains.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use wfe_core::execution::{Alive, is_alive};
use wfe_core::lock::TargetLock;
use wfe_core::names::{TARGET_HASH, TargetHash, lock_name};
use wfe_core::observed::{Gate, Settings, Unread};
use wfe_core::seen::{Job, Pod};
use wfe_core::tekton::objects::PipelineRun;
use wfe_core::why::{Facts, explain};
use wfe_core::{job, tekton};
use wfe_model::target::Target;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_peers::client;

use crate::watches::{Watched, gate_of};

/// Explains a target (`[namespace/]kind/name`) or, if `subject` has no slash, the WorkflowExecution
/// with this name in `namespace`.
pub async fn print(
    subject: &str,
    namespace: &str,
    settings: Settings,
    out: &mut impl Write,
) -> Result<()> {
    let client = client::connect().await?;
    let wfe = if subject.contains('/') {
        None
    } else {
        let api: Api<WorkflowExecution> = Api::namespaced(client.clone(), namespace);
        let found = api.get(subject).await;
        Some(found.with_context(|| format!("read WorkflowExecution {namespace}/{subject}"))?)
    };
    let target = match &wfe {
        Some(wfe) => wfe.spec.target_resource.clone(),
        None => subject.to_owned(),
    };
    let parsed = Target::parse(&target);
    let parsed = parsed.with_context(|| format!("{target:?} is no [namespace/]kind/name"))?;
    let reader = Reader {
        target_hash: TargetHash::of(&parsed),
        execution_namespace: settings.execution_namespace.clone(),
        client,
    };
    let (on_target, unread) = reader.on_target().await?;
    let facts = Facts {
        now: Timestamp::now(),
        wfe,
        on_target,
        unread,
        lock: reader.lock().await?,
        alive: reader.alive().await?,
        gate: reader.gate().await?,
        target_hash: reader.target_hash,
        target,
        settings,
    };
    writeln!(out, "{}", explain(&facts))?;
    Ok(())
}

struct Reader {
    client: Client,
    target_hash: TargetHash,
    execution_namespace: String,
}

impl Reader {
    /// The WorkflowExecutions on the target, and one that cannot be read.
    async fn on_target(&self) -> Result<(Vec<WorkflowExecution>, Option<Unread>)> {
        let api: Api<Watched> = Api::all(self.client.clone());
        let listed = api.list(&ListParams::default()).await;
        let listed = listed.context("list the WorkflowExecutions of all namespaces")?;
        let (mut found, mut unread) = (Vec::new(), None);
        for watched in listed.items {
            match watched.read() {
                Ok(wfe) if TargetHash::of_wfe(&wfe).as_ref() == Some(&self.target_hash) => {
                    found.push(wfe);
                }
                Err((Some(target), unreadable)) if target == self.target_hash => {
                    unread = Some(unreadable);
                }
                _ => {}
            }
        }
        Ok((found, unread))
    }

    async fn lock(&self) -> Result<TargetLock> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.execution_namespace);
        let name = lock_name(&self.target_hash);
        let found = api.get_opt(&name).await;
        let found = found.with_context(|| format!("read Lease {name}"))?;
        Ok(TargetLock::from(found.map(Arc::new)))
    }

    async fn gate(&self) -> Result<Gate> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let found = api.get_metadata_opt(&self.execution_namespace).await;
        let found: Option<PartialObjectMeta<Namespace>> =
            found.with_context(|| format!("read Namespace {}", self.execution_namespace))?;
        Ok(gate_of(found.as_ref()))
    }

    /// The objects on the target that have not ended.
    async fn alive(&self) -> Result<Vec<Alive>> {
        let jobs = self.labelled::<Job>("Jobs").await?.into_iter();
        let jobs = jobs.map(|it| (job::read::read(&it, &[]), Alive::read("Job", &it)));
        let runs = self
            .labelled::<PipelineRun>("PipelineRuns")
            .await?
            .into_iter();
        let runs = runs.map(|it| {
            let execution = tekton::read::read(&it, &[], &[]);
            (execution, Alive::read("PipelineRun", &it))
        });
        let executions = jobs.chain(runs).filter(|(it, _)| it.is_active());
        let alive = executions.filter_map(|(execution, alive)| {
            let timeout = execution.timeout;
            alive.map(|it| Alive { timeout, ..it })
        });
        let mut alive: Vec<_> = alive.collect();
        let pods = self.labelled::<Pod>("pods").await?.into_iter();
        alive.extend(
            pods.filter(is_alive)
                .filter_map(|it| Alive::read("pod", &it)),
        );
        Ok(alive)
    }

    /// The objects of a kind with the target's label; none if the kind is not served.
    async fn labelled<K>(&self, kind: &str) -> Result<Vec<K>>
    where
        K: Clone
            + Debug
            + DeserializeOwned
            + Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.execution_namespace);
        let selector = format!("{TARGET_HASH}={}", self.target_hash.as_str());
        match api.list(&ListParams::default().labels(&selector)).await {
            Ok(listed) => Ok(listed.items),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("list the {kind} on the target")),
        }
    }
}
