//! Collects the facts for a decision from caches and from results of own writes, without a request.

use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use wfe_core::execution::Source;
use wfe_core::history::History;
use wfe_core::line::Line;
use wfe_core::lock::{Lock, TargetLock};
use wfe_core::names::{self, TargetHash, Uid};
use wfe_core::observed::{Answers, Observed, Settings};
use wfe_model::engine::Engine;
use wfe_model::workflow_execution::WorkflowExecution;

use super::failing::Failing;
use super::lanes::Lane;
use super::notified::Notified;
use super::shared::Shared;
use crate::audit::outbox::Outbox;
use crate::executor::{Executor, Executors};
use crate::view::View;
use crate::watches::WatchAges;

/// The resource whose watch tells of a pause.
const NAMESPACES: &str = "namespaces";

/// Sources of the facts.
pub struct Observer {
    view: Arc<View>,
    executors: Executors,
    outbox: Arc<Outbox>,
    notified: Arc<Notified>,
    failing: Arc<Failing>,
    watches: WatchAges,
    settings: Arc<Settings>,
}

impl Observer {
    /// An observer of the given sources.
    pub fn new(shared: &Shared) -> Self {
        Self {
            view: shared.view.clone(),
            executors: shared.executors.clone(),
            outbox: shared.outbox.clone(),
            notified: shared.notified.clone(),
            failing: shared.failing.clone(),
            watches: shared.watches.clone(),
            settings: shared.settings.clone(),
        }
    }

    /// The WorkflowExecutions that a change of `target` concerns.
    pub fn concerned(&self, target: &TargetHash) -> Vec<ObjectRef<WorkflowExecution>> {
        let requests = self.view.on_target(target);
        let lock = self.view.lock(target);
        let requests: Vec<_> = requests.iter().map(AsRef::as_ref).collect();
        let uids = requests.iter().filter_map(|it| it.metadata.uid.as_deref());
        let failing = self.failing.among(uids);
        let history = History::of(requests.iter().copied(), lock.records().cloned());
        let line = Line {
            requests,
            history: &history,
            failing: &failing,
            settings: &self.settings,
            now: Timestamp::now(),
        };
        let concerned = line.concerned(&lock).into_iter();
        concerned.map(ObjectRef::from_obj).collect()
    }

    /// The lane of a WorkflowExecution as it is now; `None` if it is gone.
    pub fn lane(&self, cached: &WorkflowExecution) -> Option<Lane> {
        let newest = self.view.newest(&ObjectRef::from_obj(cached))?;
        Some(Lane::of(&newest))
    }

    /// Returns the current facts; `None` if the object is gone, or if the name belongs to another
    /// object.
    pub fn observe(&self, cached: &WorkflowExecution, answers: &Answers) -> Option<Observed> {
        let wfe = self.view.newest(&ObjectRef::from_obj(cached))?;
        let wfe = (wfe.uid() == cached.uid()).then_some(wfe)?;
        let seen = self.view.caches();
        let source = Source::of(&wfe);
        let uid = Uid::from(&source);
        let executor = Engine::parse(&wfe.spec.execution_engine);
        let executor = executor.map(|engine| self.executors.of(engine));
        let name = names::execution_name(&source.name, &source.uid);
        // An invalid target has no lock, and no other WorkflowExecution shares it.
        let target = TargetHash::of_wfe(&wfe);
        let target_lock = match (&answers.lease, &target) {
            (Some(read), _) => TargetLock::from(read.clone()),
            (None, Some(target)) => self.view.lock(target),
            (None, None) => TargetLock::default(),
        };
        let lock = target
            .as_ref()
            .map_or(Lock::Free, |_| target_lock.state(&source));
        let neighbours = target.as_ref().map(|it| self.view.neighbours(it, &wfe));
        let neighbours = neighbours.unwrap_or_default();
        let uids = neighbours
            .iter()
            .filter_map(|it| it.metadata.uid.as_deref());
        let others_alive = target.as_ref();
        let others_alive =
            others_alive.and_then(|target| self.executors.others_alive(target, &source.uid));
        Some(Observed {
            now: Timestamp::now(),
            execution: executor.and_then(|it| it.status(&name, &uid)),
            pods_alive: self.executors.has_live_pod(&uid),
            began: seen.began(&uid),
            others_alive,
            lock,
            target_lock,
            failing: self.failing.among(uids),
            stuck: self.failing.is_stuck(&source.uid),
            neighbours,
            unread: target.as_ref().and_then(|it| seen.unread_on(it)),
            gate: (answers.gate).unwrap_or_else(|| seen.gate(&self.settings.execution_namespace)),
            gate_doubtful: self.watches.is_silent(NAMESPACES),
            namespace_terminating: seen.is_ending(&wfe),
            notified: self.notified.of(&source.uid),
            engine_installed: executor.is_some_and(Executor::is_installed),
            audit: self.outbox.delivery(&wfe),
            source,
            wfe,
            answers: answers.clone(),
            settings: self.settings.clone(),
        })
    }
}
