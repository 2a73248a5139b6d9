//! Passes run in two lanes: a burst of requests that start does not delay the end of executions that
//! run.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use wfe_model::workflow_execution::WorkflowExecution;

/// Where the passes of a WorkflowExecution run. It moves from the first to the second once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lane {
    /// Before its execution is created.
    Starting,
    /// From then on.
    Started,
}

impl Lane {
    /// By the phase.
    pub fn of(wfe: &WorkflowExecution) -> Self {
        if wfe.is_pending() {
            Self::Starting
        } else {
            Self::Started
        }
    }

    /// The part of `concurrency` that the lane has: a start takes more requests than what follows,
    /// and can wait longer.
    pub fn share(self, concurrency: u16) -> u16 {
        let starting = concurrency.div_ceil(4);
        match self {
            Self::Starting => starting,
            Self::Started => (concurrency - starting).max(1),
        }
    }
}

/// WorkflowExecutions with a pass. While one moves to the other lane, its last pass may still run.
#[derive(Default)]
pub(super) struct Passing(Mutex<HashMap<String, Arc<AsyncMutex<()>>>>);

impl Passing {
    /// Waits until no other pass of this WorkflowExecution runs; none begins before the result is
    /// dropped.
    pub(super) async fn alone(&self, uid: &str) -> OwnedMutexGuard<()> {
        let own = {
            let mut passing = self.0.lock();
            passing.retain(|_, it| Arc::strong_count(it) > 1);
            passing.entry(uid.to_owned()).or_default().clone()
        };
        own.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn passes_of_one_object_run_one_after_another() {
        let passing = Passing::default();
        let first = passing.alone("a").await;
        assert!(passing.alone("b").now_or_never().is_some());
        let mut second = std::pin::pin!(passing.alone("a"));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        drop(second.await);
        assert!(passing.alone("a").now_or_never().is_some());
        assert_eq!(passing.0.lock().len(), 1, "others are forgotten");
    }

    #[test]
    fn shares_of_the_lanes_make_the_whole() {
        for (concurrency, starting, started) in [(32, 8, 24), (2, 1, 1), (1, 1, 1)] {
            assert_eq!(Lane::Starting.share(concurrency), starting);
            assert_eq!(Lane::Started.share(concurrency), started);
        }
    }
}
