//! One WorkflowExecution, from accepted to audited.
//!
//! `observe` gathers what is known, [`decide`] (pure) says the next step, `carry_out` carries it out:
//! one question or one write. Then all over again, until there is nothing to do but wait. So every
//! state between two requests is a state a crash can leave behind, and is decided like any other.

mod carry_out;
mod events;
mod notified;
mod observe;
mod schema;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::controller::Action;
use thiserror::Error;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;
use wfe_core::decide::decide;
use wfe_core::observed::Answers;
use wfe_core::step::Step;
use wfe_model::workflow_execution::WorkflowExecution;

use self::carry_out::ActError;

pub use self::carry_out::{Actions, Shared};
pub use self::notified::Notified;
pub use self::observe::Observer;
pub use self::schema::Schema;

/// More steps than any pass takes: a decision that does not come to an end is a bug, to be seen.
const MAX_STEPS: usize = 32;
/// While the caches are filled for the first time.
const NOT_READY: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(2);

/// Why a pass was given up; it is made again.
#[derive(Debug, Error)]
pub enum PassError {
    /// A request failed.
    #[error(transparent)]
    Act(#[from] ActError),
    /// The pass panicked: a bug, which costs this one only.
    #[error("the pass panicked")]
    Panicked(#[from] tokio::task::JoinError),
    /// See [`MAX_STEPS`].
    #[error("no end after {MAX_STEPS} steps")]
    Endless,
}

/// Looks, decides and acts, over and over.
pub struct Reconciler {
    observer: Observer,
    actions: Actions,
    ready: AtomicBool,
}

impl Reconciler {
    /// Not [ready](Self::set_ready) yet.
    pub fn new(observer: Observer, actions: Actions) -> Self {
        Self {
            observer,
            actions,
            ready: AtomicBool::new(false),
        }
    }

    /// From now on decisions may be made: with half of the caches empty they would be wrong.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }
}

/// Takes one WorkflowExecution as far as it goes now, in a task of its own.
pub async fn reconcile(
    wfe: Arc<WorkflowExecution>,
    context: Arc<Reconciler>,
) -> Result<Action, PassError> {
    let metadata = &wfe.metadata;
    let span = tracing::info_span!(
        "reconcile",
        namespace = metadata.namespace,
        name = metadata.name
    );
    AbortOnDropHandle::new(tokio::spawn(pass(wfe, context).instrument(span))).await?
}

async fn pass(
    cached: Arc<WorkflowExecution>,
    context: Arc<Reconciler>,
) -> Result<Action, PassError> {
    if !context.ready.load(Ordering::Acquire) {
        return Ok(Action::requeue(NOT_READY));
    }
    let mut answers = Answers::default();
    // The version that the answers are about.
    let mut version = None;
    for _ in 0..MAX_STEPS {
        let Some(observed) = context.observer.observe(&cached, &answers) else {
            return Ok(Action::await_change());
        };
        let current = observed.wfe.metadata.resource_version.clone();
        if version.is_some() && version != current {
            // Somebody else has written: what was seen was seen before that.
            answers = Answers::default();
            version = None;
            continue;
        }
        version = current;
        match decide(&observed) {
            Step::Ask(question) => {
                tracing::debug!(?question, "ask");
                context
                    .actions
                    .ask(&observed, question, &mut answers)
                    .await?;
            }
            Step::Do(effect) => {
                tracing::debug!(effect = effect.name(), "do");
                answers.forget_before_a_write();
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
    Err(PassError::Endless)
}

/// What happens after a pass was given up.
#[expect(clippy::needless_pass_by_value, reason = "the applier's signature")]
pub fn retry(wfe: Arc<WorkflowExecution>, error: &PassError, _: Arc<Reconciler>) -> Action {
    let metadata = &wfe.metadata;
    tracing::warn!(namespace = metadata.namespace, name = metadata.name, %error, "to be tried again");
    Action::requeue(RETRY)
}
