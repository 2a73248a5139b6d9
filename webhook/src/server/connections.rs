//! Which connections are open, and which of them has done nothing for the longest time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Limits;

/// All that are open.
#[derive(Clone, Default)]
pub(super) struct Connections(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    last: u64,
    by_number: HashMap<u64, Connection>,
}

struct Connection {
    /// Requests that are being answered.
    busy: usize,
    stage: Stage,
    /// Since when it is what it is.
    since: Instant,
    evicted: CancellationToken,
}

#[derive(Clone, Copy)]
enum Stage {
    Handshake,
    /// After the handshake, before the first request.
    New,
    Used,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more.
    pub(super) fn open(&self) -> Entry {
        let evicted = CancellationToken::new();
        let mut open = self.lock();
        open.last += 1;
        let number = open.last;
        let connection = Connection {
            busy: 0,
            stage: Stage::Handshake,
            since: Instant::now(),
            evicted: evicted.clone(),
        };
        open.by_number.insert(number, connection);
        Entry {
            connections: self.clone(),
            number,
            evicted,
            asked: CancellationToken::new(),
        }
    }

    /// Ends the one that has been idle longest; none where all are busy.
    pub(super) fn close_longest_idle(&self) {
        let open = self.lock();
        let connections = open.by_number.values();
        let idle = connections.filter(|it| it.busy == 0 && !it.evicted.is_cancelled());
        if let Some(longest) = idle.min_by_key(|it| it.since) {
            longest.evicted.cancel();
        }
    }
}

/// One of them, until the value goes.
pub struct Entry {
    connections: Connections,
    number: u64,
    evicted: CancellationToken,
    asked: CancellationToken,
}

impl Entry {
    /// When another one needs its place.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// The handshake is done.
    pub(super) fn shook_hands(&self) {
        self.change(|it| it.stage = Stage::New);
    }

    /// When the first request has come.
    pub(super) async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// A request has come, or was answered.
    pub(super) fn used(&self) {
        self.asked.cancel();
        self.change(|it| it.stage = Stage::Used);
    }

    /// Whether a request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        let open = self.connections.lock();
        open.by_number
            .get(&self.number)
            .is_some_and(|it| it.busy > 0)
    }

    /// Until when it may go on doing nothing.
    pub(super) fn quiet_until(&self, limits: &Limits) -> Instant {
        let open = self.connections.lock();
        let idle = Instant::now() + limits.idle;
        let connection = open.by_number.get(&self.number);
        connection.filter(|it| it.busy == 0).map_or(idle, |it| {
            it.since
                + match it.stage {
                    Stage::Handshake => limits.handshake,
                    Stage::New => limits.first_request,
                    Stage::Used => limits.idle,
                }
        })
    }

    fn change(&self, change: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.connections.lock().by_number.get_mut(&self.number) {
            change(connection);
            connection.since = Instant::now();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.lock().by_number.remove(&self.number);
    }
}

/// How a handler says that its request has come whole: until the value goes, its connection makes
/// room for nobody.
#[derive(Clone)]
pub struct Judging(pub(super) Arc<Entry>);

impl Judging {
    /// From now on.
    pub fn begin(self) -> Busy {
        self.0.change(|it| it.busy += 1);
        Busy(self.0)
    }
}

/// A request that is being judged.
pub struct Busy(Arc<Entry>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.change(|it| it.busy = it.busy.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_one_that_did_nothing_for_longest_makes_room_and_a_busy_one_never() {
        let second = std::time::Duration::from_secs(1);
        let connections = Connections::default();
        let mut entries = Vec::new();
        for _ in 0..4 {
            entries.push(Arc::new(connections.open()));
            tokio::time::advance(second).await;
        }
        let [answering, half_open, used, last] = entries.as_slice() else {
            unreachable!("four");
        };
        let busy = Judging(answering.clone()).begin();
        used.used();
        for next in [half_open, last, used] {
            assert!(!next.evicted.is_cancelled());
            connections.close_longest_idle();
            assert!(next.evicted.is_cancelled());
        }
        connections.close_longest_idle();
        assert!(!answering.evicted.is_cancelled());
        drop(busy);
        connections.close_longest_idle();
        assert!(answering.evicted.is_cancelled());
    }
}
