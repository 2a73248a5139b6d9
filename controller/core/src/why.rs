//! Explains to an operator why a WorkflowExecution has not run, or what keeps a target: the cause,
//! the object, since when, until when, and the command that changes it.

use std::fmt::{self, Display};

use jiff::Timestamp;
use wfe_model::CANCEL;
use wfe_model::workflow_execution::{Phase, TriState, WorkflowExecution};

use crate::clearing;
use crate::condition::{ConditionType, Reason};
use crate::execution::{Alive, Source};
use crate::history::{History, Limits, Restriction};
use crate::line::{age, is_waiting};
use crate::lock::{Holder, TargetLock};
use crate::names::{self, PAUSED, TargetHash};
use crate::observed::{Gate, Settings, Unread};
use crate::status::{after, stored};

/// What an explanation is made from, as read from the API server.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Current time.
    pub now: Timestamp,
    /// The target as written.
    pub target: String,
    /// Its identity.
    pub target_hash: TargetHash,
    /// The WorkflowExecution that is asked for; `None` if the target is.
    pub wfe: Option<WorkflowExecution>,
    /// The WorkflowExecutions on the target.
    pub on_target: Vec<WorkflowExecution>,
    /// A WorkflowExecution on the target that cannot be read.
    pub unread: Option<Unread>,
    /// The target's lock.
    pub lock: TargetLock,
    /// Objects on the target that have not ended.
    pub alive: Vec<Alive>,
    /// Whether executions may start.
    pub gate: Gate,
    /// The flags of the controller.
    pub settings: Settings,
}

/// One explanation.
#[derive(Clone, Debug, PartialEq)]
pub struct Why {
    /// What keeps the execution from running.
    pub cause: String,
    /// The object to look at.
    pub object: String,
    /// Since when.
    pub since: Option<Timestamp>,
    /// Until when it lasts.
    pub until: String,
    /// The command that ends it, or shows more.
    pub command: String,
}

impl Display for Why {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "cause:   {}", self.cause)?;
        writeln!(formatter, "object:  {}", self.object)?;
        if let Some(since) = self.since {
            writeln!(formatter, "since:   {since}")?;
        }
        writeln!(formatter, "until:   {}", self.until)?;
        write!(formatter, "command: {}", self.command)
    }
}

/// Explains the WorkflowExecution, or the target if none is asked for.
pub fn explain(facts: &Facts) -> Why {
    let Some(wfe) = &facts.wfe else {
        return target(facts, None).unwrap_or_else(|| free(facts));
    };
    match wfe.phase() {
        None => unseen(wfe),
        Some(Phase::Pending) => unavailable(wfe)
            .or_else(|| target(facts, Some(wfe)))
            .or_else(|| limited(wfe))
            .unwrap_or_else(|| starting(wfe)),
        Some(Phase::Running) => running(wfe, facts),
        Some(Phase::Succeeded) => ended(wfe, "it has run and succeeded".to_owned()),
        Some(Phase::Failed) => failed(wfe, facts),
        Some(Phase::Skipped) => skipped(wfe, facts),
    }
}

/// As many executions run as may, by the stored condition: the limits are the controller's flags.
fn limited(wfe: &WorkflowExecution) -> Option<Why> {
    let blocked = stored(wfe, ConditionType::Blocked)?;
    let limited = blocked.status == TriState::True.as_str() && blocked.message.contains("--max-");
    limited.then(|| Why {
        cause: blocked.message.clone(),
        object: name(wfe),
        since: Some(blocked.last_transition_time.0),
        until: "an execution ends, or the limit is raised".to_owned(),
        command: "kubectl get workflowexecutions --all-namespaces".to_owned(),
    })
}

fn name(wfe: &WorkflowExecution) -> String {
    let source = Source::of(wfe);
    format!("WorkflowExecution {}/{}", source.namespace, source.name)
}

fn describe_command(wfe: &WorkflowExecution) -> String {
    let source = Source::of(wfe);
    format!(
        "kubectl -n {} describe workflowexecution {}",
        source.namespace, source.name
    )
}

/// What keeps the target, in the order in which the controller checks.
fn target(facts: &Facts, asking: Option<&WorkflowExecution>) -> Option<Why> {
    let held = || held(facts, asking);
    let alive = || alive(facts, asking);
    // An ended holder keeps the lock for as long as its pod is alive.
    let used = if holder(facts).is_some_and(|it| it.phase().is_some_and(Phase::is_final)) {
        alive().or_else(held)
    } else {
        held().or_else(alive)
    };
    closed(facts)
        .or(used)
        .or_else(|| unread(facts))
        .or_else(|| restricted(facts, asking))
        .or_else(|| elder(facts, asking?))
}

fn closed(facts: &Facts) -> Option<Why> {
    let namespace = &facts.settings.execution_namespace;
    let (cause, until) = facts.gate.closed(namespace)?;
    let command = match facts.gate {
        Gate::Paused => format!("kubectl annotate namespace {namespace} {PAUSED}-"),
        Gate::Missing => format!("kubectl create namespace {namespace}"),
        Gate::Open | Gate::Ending => format!("kubectl describe namespace {namespace}"),
    };
    Some(Why {
        cause,
        object: format!("Namespace {namespace}"),
        since: None,
        until,
        command,
    })
}

/// The WorkflowExecution that holds the lock, if it exists.
fn holder(facts: &Facts) -> Option<&WorkflowExecution> {
    let Some(Holder::Execution(source)) = &facts.lock.holder else {
        return None;
    };
    let mut on_target = facts.on_target.iter();
    on_target.find(|it| it.metadata.uid.as_ref() == Some(&source.uid))
}

fn unread(facts: &Facts) -> Option<Why> {
    let Unread { source, error } = facts.unread.as_ref()?;
    let (namespace, name) = (&source.namespace, &source.name);
    Some(Why {
        cause: format!(
            "{} counts as in use: WorkflowExecution {namespace}/{name} cannot be read by this version ({error})",
            facts.target
        ),
        object: format!("WorkflowExecution {namespace}/{name}"),
        since: None,
        until: "the controller is upgraded, or the object is corrected or deleted".to_owned(),
        command: format!("kubectl -n {namespace} get workflowexecution {name} -o yaml"),
    })
}

fn held(facts: &Facts, asking: Option<&WorkflowExecution>) -> Option<Why> {
    let held_by = facts.lock.holder.as_ref()?;
    let (namespace, target) = (&facts.settings.execution_namespace, &facts.target);
    let lease = names::lock_name(&facts.target_hash);
    let spec = facts.lock.lease.as_ref().and_then(|it| it.spec.as_ref());
    let since = spec.and_then(|it| it.acquire_time.as_ref()).map(|it| it.0);
    Some(match held_by {
        Holder::Execution(source) if asking.is_some_and(|it| Source::of(it) == *source) => {
            return None;
        }
        Holder::Execution(source) => {
            let cancel = format!(
                "kubectl -n {} annotate workflowexecution {} {CANCEL}='<reason>'",
                source.namespace, source.name
            );
            let (until, command) = match holder(facts) {
                None => (
                    "the controller finds that it is gone, within a minute".to_owned(),
                    format!("kubectl -n {namespace} get lease {lease} -o yaml"),
                ),
                Some(it) if it.phase().is_some_and(Phase::is_final) => (
                    "the controller frees the lock: it has ended".to_owned(),
                    describe_command(it),
                ),
                Some(it) => {
                    let at = timeout_at(it, facts);
                    let at = at.map(|at| format!(", at {at} at the latest (its timeout)"));
                    (format!("it ends{}", at.unwrap_or_default()), cancel)
                }
            };
            Why {
                cause: format!(
                    "{target} is busy: WorkflowExecution {}/{} uses it",
                    source.namespace, source.name
                ),
                object: format!("Lease {namespace}/{lease}"),
                since,
                until,
                command,
            }
        }
        Holder::ByHand(text) => Why {
            cause: format!("{target} is locked by hand: the holder of its Lease is {text:?}"),
            object: format!("Lease {namespace}/{lease}"),
            since,
            until: "spec.holderIdentity is removed from the Lease".to_owned(),
            command: format!(
                "kubectl -n {namespace} patch lease {lease} --type=merge -p '{{\"spec\":{{\"holderIdentity\":null}}}}'"
            ),
        },
    })
}

fn timeout_at(wfe: &WorkflowExecution, facts: &Facts) -> Option<Timestamp> {
    let start = wfe.status.as_ref()?.start_time.as_ref()?.0;
    let mut own = facts.alive.iter().filter(|it| it.source == Source::of(wfe));
    let timeout = own.find_map(|it| it.timeout);
    let timeout = timeout.unwrap_or_else(|| facts.settings.timeout_of(wfe));
    Some(after(start, timeout))
}

fn alive(facts: &Facts, asking: Option<&WorkflowExecution>) -> Option<Why> {
    let own = |it: &&Alive| asking.is_some_and(|wfe| Source::of(wfe).uid == it.source.uid);
    let alive = facts.alive.iter().find(|it| !own(it))?;
    let (kind, place) = alive.object.split_once(' ')?;
    let (namespace, object) = place.split_once('/')?;
    Some(Why {
        cause: format!(
            "{} is busy: {} of WorkflowExecution {}/{} has not ended",
            facts.target, alive.object, alive.source.namespace, alive.source.name
        ),
        object: alive.object.clone(),
        since: None,
        until: "it has ended".to_owned(),
        command: format!(
            "kubectl -n {namespace} describe {} {object}",
            kind.to_lowercase()
        ),
    })
}

fn restricted(facts: &Facts, asking: Option<&WorkflowExecution>) -> Option<Why> {
    let (target, limits) = (&facts.target, &facts.settings.limits);
    let history = History::of(&facts.on_target, facts.lock.records().cloned());
    let restriction = match asking {
        Some(wfe) => {
            let workflow = &wfe.spec.workflow_ref.workflow_id;
            history.restriction(workflow, facts.now, limits)
        }
        None => any_restriction(&history, facts, limits),
    }?;
    let entry = restriction.entry().clone();
    let object = format!("WorkflowExecution {}/{}", entry.namespace, entry.name);
    let namespace = &facts.settings.execution_namespace;
    let clear = clearing::command_for(&entry, &facts.on_target, target, namespace);
    let (cause, until, command) = match &restriction {
        Restriction::PreviousExecutionFailed(_) => (
            format!(
                "{target} is blocked: {object} (workflow {}) failed after it had started",
                entry.workflow_id
            ),
            "a user has looked at the target and clears the block".to_owned(),
            clear,
        ),
        Restriction::ExhaustedRetries(_, failures) => (
            format!(
                "{target} is blocked: {failures} executions in a row failed before a container started, the last was {object}"
            ),
            "a user has found the cause and clears the block".to_owned(),
            clear,
        ),
        Restriction::BackoffActive(_, until) => (
            format!("{target} is backing off: {object} failed before a container started"),
            until.to_string(),
            clear,
        ),
        Restriction::RecentlyRemediated(_, until) => (
            format!(
                "{target} is cooling down: {object} ran workflow {} and succeeded",
                entry.workflow_id
            ),
            format!("{until}, for this workflow; another workflow may run now"),
            format!(
                "kubectl -n {} describe workflowexecution {}",
                entry.namespace, entry.name
            ),
        ),
    };
    Some(Why {
        cause,
        object,
        since: Some(entry.completion_time),
        until,
        command,
    })
}

/// What restricts any workflow; else the cooldown of the workflow that ran last.
fn any_restriction(history: &History, facts: &Facts, limits: &Limits) -> Option<Restriction> {
    let entries = facts.on_target.iter();
    let workflows = entries.map(|it| it.spec.workflow_ref.workflow_id.as_str());
    let mut found = workflows.filter_map(|it| history.restriction(it, facts.now, limits));
    history
        .restriction("", facts.now, limits)
        .or_else(|| found.next())
}

/// An older WorkflowExecution that waits for the target.
fn elder(facts: &Facts, asking: &WorkflowExecution) -> Option<Why> {
    let waits = |it: &&WorkflowExecution| is_waiting(it) && age(it) < age(asking);
    let elder = facts
        .on_target
        .iter()
        .filter(waits)
        .min_by_key(|it| age(it))?;
    Some(Why {
        cause: format!("{} has waited for {} longer", name(elder), facts.target),
        object: name(elder),
        since: age(elder).0,
        until: "it has run".to_owned(),
        command: describe_command(elder),
    })
}

fn free(facts: &Facts) -> Why {
    let lease = names::lock_name(&facts.target_hash);
    let namespace = &facts.settings.execution_namespace;
    Why {
        cause: format!("nothing keeps {}: an execution may start now", facts.target),
        object: format!("Lease {namespace}/{lease}"),
        since: None,
        until: "an execution starts".to_owned(),
        command: "kubectl get workflowexecutions -A -o wide".to_owned(),
    }
}

fn unseen(wfe: &WorkflowExecution) -> Why {
    let namespace = Source::of(wfe).namespace;
    Why {
        cause: format!(
            "no controller has seen it: none watches namespace {namespace} (--watch-namespace), or none runs"
        ),
        object: name(wfe),
        since: wfe.metadata.creation_timestamp.as_ref().map(|time| time.0),
        until: "a ready controller watches the namespace".to_owned(),
        command: "kubectl get pods -A -l app.kubernetes.io/name=wfe-controller".to_owned(),
    }
}

/// A read that failed.
fn unavailable(wfe: &WorkflowExecution) -> Option<Why> {
    let kinds = [
        ConditionType::WorkflowResolved,
        ConditionType::DependenciesReady,
    ];
    let unknown = |kind| stored(wfe, kind).filter(|it| it.status == TriState::Unknown.as_str());
    let condition = kinds.into_iter().find_map(unknown)?;
    let object = if condition.reason == Reason::CatalogUnavailable.as_str() {
        "the workflow catalog"
    } else {
        "the API server"
    };
    Some(Why {
        cause: condition.message.clone(),
        object: object.to_owned(),
        since: Some(condition.last_transition_time.0),
        until: "it answers again; the controller retries every few seconds".to_owned(),
        command: "kubectl logs -A -l app.kubernetes.io/name=wfe-controller --tail=50".to_owned(),
    })
}

fn starting(wfe: &WorkflowExecution) -> Why {
    Why {
        cause: "nothing keeps it: it starts next".to_owned(),
        object: name(wfe),
        since: wfe.metadata.creation_timestamp.as_ref().map(|time| time.0),
        until: "it starts".to_owned(),
        command: describe_command(wfe),
    }
}

fn running(wfe: &WorkflowExecution, facts: &Facts) -> Why {
    let status = wfe.status.as_ref();
    let summary = status.and_then(|it| it.execution_status.as_ref());
    let message = summary.and_then(|it| it.message.clone());
    let until = timeout_at(wfe, facts);
    Why {
        cause: message.unwrap_or_else(|| "it is starting".to_owned()),
        object: execution(wfe),
        since: status.and_then(|it| it.start_time.as_ref()).map(|it| it.0),
        until: until.map_or_else(String::new, |it| {
            format!("{it} at the latest (its timeout)")
        }),
        command: describe_command(wfe),
    }
}

fn execution(wfe: &WorkflowExecution) -> String {
    wfe.execution_ref().map_or_else(
        || name(wfe),
        |it| format!("{} {}/{}", it.kind, it.namespace, it.name),
    )
}

fn ended(wfe: &WorkflowExecution, cause: String) -> Why {
    let status = wfe.status.as_ref();
    Why {
        cause,
        object: execution(wfe),
        since: status
            .and_then(|it| it.completion_time.as_ref())
            .map(|it| it.0),
        until: "for good: a WorkflowExecution runs once, create a new one".to_owned(),
        command: describe_command(wfe),
    }
}

fn failed(wfe: &WorkflowExecution, facts: &Facts) -> Why {
    let details = wfe
        .status
        .as_ref()
        .and_then(|it| it.failure_details.as_ref());
    let cause = details.map_or_else(String::new, |it| {
        format!("{}: {}", it.reason.as_str(), it.message)
    });
    let why = ended(wfe, cause);
    let missing = stored(wfe, ConditionType::DependenciesReady);
    if missing.is_some_and(|it| it.status == TriState::False.as_str()) {
        let namespace = &facts.settings.execution_namespace;
        return Why {
            object: format!("Secrets and ConfigMaps of namespace {namespace}"),
            command: format!("kubectl -n {namespace} get secrets,configmaps"),
            ..why
        };
    }
    let blocks = restricted(facts, None).filter(|it| it.object == name(wfe));
    if let Some(block) = blocks {
        return Why {
            until: block.until,
            command: block.command,
            ..why
        };
    }
    why
}

fn skipped(wfe: &WorkflowExecution, facts: &Facts) -> Why {
    let details = wfe.status.as_ref().and_then(|it| it.skip_details.as_ref());
    let cause = details.map_or_else(String::new, |it| it.message.clone());
    let why = ended(wfe, cause);
    let Some(now) = target(facts, Some(wfe)) else {
        return Why {
            until: "now: create it again, nothing keeps the target any more".to_owned(),
            ..why
        };
    };
    Why {
        object: now.object,
        until: format!("{} (then create it again)", now.until),
        command: now.command,
        ..why
    }
}

#[cfg(test)]
mod tests;
