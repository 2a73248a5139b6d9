//! Reconciles one WorkflowExecution, from its creation to its delivered audit trail.
//!
//! A pass repeats three steps until only waiting is left: `observe` collects the facts from caches,
//! [`decide`] (pure) returns the next step, `carry_out` makes the request of that step: one read or
//! one write. A crash between two requests therefore leaves a state that the next pass decides like
//! any other.

mod carry_out;
mod events;
mod failing;
mod lanes;
mod notified;
mod observe;
mod schema;
mod shared;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use futures::SinkExt;
use futures::channel::mpsc::Sender;
use jiff::Timestamp;
use kube::Client;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use thiserror::Error;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;
use wfe_core::decide::decide;
use wfe_core::names::TargetHash;
use wfe_core::observed::Answers;
use wfe_core::step::Step;
use wfe_model::text::in_full;
use wfe_model::workflow_execution::WorkflowExecution;

use self::carry_out::{Actions, StepError};
use self::lanes::Passing;
use self::observe::Observer;
use crate::slots::Slots;

pub use self::failing::Failing;
pub use self::lanes::Lane;
pub use self::notified::Notified;
pub use self::schema::Schema;
pub use self::shared::Shared;

/// More steps than any correct pass takes: decisions that never end are a bug, which must surface.
const MAX_STEPS: usize = 32;

/// Requeue delay while the CRD is older than the controller.
const OUTDATED_CRD_DELAY: Duration = Duration::from_secs(2);
/// The receiver of wake-ups takes them at once.
const WAKE_DEADLINE: Duration = Duration::from_secs(1);

/// Why a pass failed; the WorkflowExecution is requeued.
#[derive(Debug, Error)]
pub enum PassError {
    /// A step failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The task panicked: a bug, which affects only this WorkflowExecution.
    #[error("the reconcile task panicked")]
    Panicked(#[from] tokio::task::JoinError),
    /// See [`MAX_STEPS`].
    #[error("not finished after {MAX_STEPS} steps")]
    StepLimit,
}

impl PassError {
    /// Whether the API server does not answer.
    fn is_outage(&self) -> bool {
        match self {
            Self::Step(StepError::Unanswered(unanswered)) => unanswered.outage,
            Self::Step(StepError::Timeout(_)) => true,
            Self::Step(_) | Self::Panicked(_) | Self::StepLimit => false,
        }
    }

    fn is_outdated_crd(&self) -> bool {
        matches!(self, Self::Step(StepError::Schema(_)))
    }
}

/// Context of all passes.
pub struct Reconciler {
    observer: Observer,
    actions: Actions,
    failing: Arc<Failing>,
    slots: Arc<Slots>,
    passing: Passing,
    /// Requests a reconcile of another WorkflowExecution.
    wake: Sender<ObjectRef<WorkflowExecution>>,
}

impl Reconciler {
    /// A reconciler. Decisions from incomplete caches would be wrong: it must be used only when all
    /// caches are synced. It sends a WorkflowExecution to `wake` that may proceed because another one
    /// fails.
    pub fn new(
        client: &Client,
        shared: Shared,
        wake: Sender<ObjectRef<WorkflowExecution>>,
    ) -> Self {
        Self {
            observer: Observer::new(&shared),
            failing: shared.failing.clone(),
            slots: shared.slots.clone(),
            passing: Passing::default(),
            wake,
            actions: Actions::new(client, shared),
        }
    }
}

/// Runs one pass, in its own task so that a panic fails only this pass.
pub async fn reconcile(
    wfe: Arc<WorkflowExecution>,
    context: Arc<Reconciler>,
    lane: Lane,
) -> Result<Action, PassError> {
    if lane == Lane::Starting && Lane::of(&wfe) != lane {
        context.wake(ObjectRef::from_obj(wfe.as_ref())).await;
        return Ok(Action::await_change());
    }
    let span = trace::pass(&wfe);
    let uid = wfe.metadata.uid.as_deref().unwrap_or_default();
    let _alone = context.passing.alone(uid).await;
    let passing = pass(wfe.clone(), context.clone()).instrument(span.clone());
    let passed = AbortOnDropHandle::new(tokio::spawn(passing)).await;
    let passed = passed.map_err(PassError::from).flatten();
    match &passed {
        Ok(_) => context.failing.clear(uid),
        Err(error) => context.handle_failure(&wfe, error).instrument(span).await,
    }
    if lane == Lane::Starting {
        // It may have waited for a slot that it does not take.
        for next in context.slots.next() {
            context.wake(next).await;
        }
    }
    // The change of the phase has triggered a pass in the other lane.
    let moved = lane == Lane::Starting && context.observer.lane(&wfe) != Some(lane);
    passed.map(|action| {
        if moved {
            Action::await_change()
        } else {
            action
        }
    })
}

impl Reconciler {
    /// The WorkflowExecutions that a change of `target` concerns, and those that get a free slot.
    pub fn concerned(&self, target: &TargetHash) -> Vec<ObjectRef<WorkflowExecution>> {
        let mut concerned = self.observer.concerned(target);
        concerned.extend(self.slots.next());
        concerned
    }

    /// Requests a reconcile. After a stop nothing receives.
    async fn wake(&self, reference: ObjectRef<WorkflowExecution>) {
        let mut wake = self.wake.clone();
        let _ = tokio::time::timeout(WAKE_DEADLINE, wake.send(reference)).await;
    }

    /// Counts a failed pass: the first one lets others on the target proceed, and an operator is
    /// told of an object that fails again and again.
    async fn handle_failure(&self, wfe: &WorkflowExecution, error: &PassError) {
        // Not the fault of this object, and readiness tells of it.
        if error.is_outdated_crd() {
            return;
        }
        let uid = wfe.metadata.uid.as_deref().unwrap_or_default();
        let failed = self.failing.record(uid, error.is_outage());
        let target = TargetHash::of_wfe(wfe).filter(|_| failed.first && wfe.is_pending());
        for next in target.map(|it| self.concerned(&it)).unwrap_or_default() {
            self.wake(next).await;
        }
        if failed.tell {
            self.actions.tell_failing(wfe, &in_full(error));
        }
    }
}

async fn pass(
    cached: Arc<WorkflowExecution>,
    context: Arc<Reconciler>,
) -> Result<Action, PassError> {
    let mut answers = Answers::default();
    // The resourceVersion to which the answers refer.
    let mut version = None;
    for _ in 0..MAX_STEPS {
        let Some(observed) = context.observer.observe(&cached, &answers) else {
            return Ok(Action::await_change());
        };
        let current = observed.wfe.metadata.resource_version.clone();
        if version.is_some() && version != current {
            // Another client has written the object: the answers may be outdated.
            answers = Answers::default();
            version = None;
            continue;
        }
        version = current;
        match decide(&observed) {
            Step::Ask(question) => {
                tracing::debug!(question = question.name(), "asking question");
                context
                    .actions
                    .ask(&observed, question, &mut answers)
                    .await?;
            }
            Step::Do(effect) => {
                tracing::debug!(effect = effect.name(), "carrying out effect");
                answers.drop_uncached_reads();
                context
                    .actions
                    .carry_out(&observed, effect, &mut answers)
                    .await?;
                version = None;
            }
            Step::Wait(until) => {
                let wait =
                    Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
                return Ok(Action::requeue(wait));
            }
            Step::Done => return Ok(Action::await_change()),
        }
    }
    Err(PassError::StepLimit)
}

/// Requeues a WorkflowExecution whose pass failed.
#[expect(clippy::needless_pass_by_value, reason = "the applier's signature")]
pub fn retry(wfe: Arc<WorkflowExecution>, error: &PassError, context: Arc<Reconciler>) -> Action {
    let metadata = &wfe.metadata;
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let delay = if error.is_outdated_crd() {
        OUTDATED_CRD_DELAY
    } else {
        context.failing.delay(uid)
    };
    tracing::warn!(
        namespace = metadata.namespace,
        name = metadata.name,
        %error,
        retry_seconds = delay.as_secs_f32(),
        "reconcile failed, requeueing"
    );
    Action::requeue(delay)
}
