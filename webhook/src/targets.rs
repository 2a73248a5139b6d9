//! Whether the target of a request exists, for a warning. An answer is cached for a moment; where the
//! webhook may not read the target, its kind is not asked for again for a minute.

use std::time::Duration;

use moka::future::Cache;
use tokio::sync::Semaphore;
use wfe_model::target::Target;
use wfe_peers::discovery::ServedKinds;

use crate::lookups::cache;

/// How long an answer is cached.
const ANSWER_TTL: Duration = Duration::from_secs(1);
/// How long a kind is not read in a namespace after that has failed.
const FAILURE_TTL: Duration = Duration::from_mins(1);
/// Reads at a time.
const MAX_READS: usize = 16;

/// Reads targets.
pub struct Targets {
    kinds: ServedKinds,
    /// Whether a target is missing; `None`: it cannot be read.
    answers: Cache<String, Option<bool>>,
    /// Kinds that cannot be read in a namespace.
    unreadable: Cache<String, ()>,
    reads: Semaphore,
}

impl Targets {
    /// Reads targets of kinds that the cluster serves.
    pub fn new(kinds: ServedKinds) -> Self {
        Self {
            kinds,
            answers: cache(ANSWER_TTL),
            unreadable: cache(FAILURE_TTL),
            reads: Semaphore::new(MAX_READS),
        }
    }

    /// Whether the target does not exist; `None` if that cannot be read.
    pub async fn is_missing(&self, target: &Target) -> Option<bool> {
        let kind = format!(
            "{}/{}",
            target.namespace().unwrap_or_default(),
            target.kind()
        );
        if self.unreadable.contains_key(&kind) {
            return None;
        }
        // Boxed: a review is large already.
        let read = Box::pin(async {
            let _turn = self.reads.acquire().await;
            let answer = self.kinds.is_missing(target).await;
            if answer.is_none() {
                self.unreadable.insert(kind, ()).await;
            }
            answer
        });
        self.answers.get_with(target.to_string(), read).await
    }
}
