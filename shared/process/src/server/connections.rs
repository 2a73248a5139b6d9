//! Registry of the open connections, from which an idle one is evicted.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::limits::Limits;

/// The open connections.
#[derive(Clone, Default)]
pub(super) struct Connections(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    last_number: u64,
    by_number: HashMap<u64, Connection>,
}

struct Connection {
    /// Requests that handlers are reviewing.
    busy: usize,
    stage: Stage,
    /// Time of the last change of `busy` or `stage`.
    changed: Instant,
    evicted: CancellationToken,
}

#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
enum Stage {
    Handshake,
    /// The handshake is done, no request has arrived.
    Established,
    /// At least one request has arrived.
    Used,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock()
    }

    /// Registers a connection until the returned entry is dropped.
    pub(super) fn open(&self) -> Entry {
        let evicted = CancellationToken::new();
        let mut open = self.lock();
        open.last_number += 1;
        let number = open.last_number;
        let connection = Connection {
            busy: 0,
            stage: Stage::Handshake,
            changed: Instant::now(),
            evicted: evicted.clone(),
        };
        open.by_number.insert(number, connection);
        Entry {
            connections: self.clone(),
            number,
            evicted,
            first_request: CancellationToken::new(),
        }
    }

    /// Evicts the connection that has got least far, of these the one that has been idle longest; does
    /// nothing if all are busy.
    pub(super) fn evict_idle(&self) {
        let open = self.lock();
        let connections = open.by_number.values();
        let idle = connections.filter(|it| it.busy == 0 && !it.evicted.is_cancelled());
        if let Some(longest) = idle.min_by_key(|it| (it.stage, it.changed)) {
            longest.evicted.cancel();
        }
    }
}

/// A registered connection; dropping the entry removes it from the registry.
pub struct Entry {
    connections: Connections,
    number: u64,
    evicted: CancellationToken,
    first_request: CancellationToken,
}

impl Entry {
    /// Completes when this connection is evicted.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Records the end of the TLS handshake.
    pub(super) fn handshake_done(&self) {
        self.change(|it| it.stage = Stage::Established);
    }

    /// Completes when the first request has arrived.
    pub(super) async fn first_request(&self) {
        self.first_request.cancelled().await;
    }

    /// Records that a request has arrived or was answered.
    pub(super) fn mark_used(&self) {
        self.first_request.cancel();
        self.change(|it| it.stage = Stage::Used);
    }

    /// Whether a handler is reviewing a request of this connection.
    pub(super) fn is_busy(&self) -> bool {
        let open = self.connections.lock();
        open.by_number
            .get(&self.number)
            .is_some_and(|it| it.busy > 0)
    }

    /// When the connection is closed unless a request arrives or is answered before.
    pub(super) fn idle_deadline(&self, limits: &Limits) -> Instant {
        let open = self.connections.lock();
        let idle = Instant::now() + limits.idle;
        let connection = open.by_number.get(&self.number);
        connection.filter(|it| it.busy == 0).map_or(idle, |it| {
            it.changed
                + match it.stage {
                    Stage::Handshake => limits.handshake,
                    Stage::Established => limits.first_request,
                    Stage::Used => limits.idle,
                }
        })
    }

    fn change(&self, change: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.connections.lock().by_number.get_mut(&self.number) {
            change(connection);
            connection.changed = Instant::now();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.lock().by_number.remove(&self.number);
    }
}

/// Request extension by which a handler protects its connection from eviction once the request body
/// is complete. A connection with an incomplete body can be evicted, since its client may be slow.
#[derive(Clone)]
pub struct ConnectionHandle(pub(super) Arc<Entry>);

impl ConnectionHandle {
    /// Marks the connection as busy until the returned guard is dropped.
    pub fn mark_busy(self) -> BusyGuard {
        self.0.change(|it| it.busy += 1);
        BusyGuard(self.0)
    }
}

/// Keeps a connection from being evicted.
pub struct BusyGuard(Arc<Entry>);

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.change(|it| it.busy = it.busy.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn evict_idle_goes_by_stage_and_idle_time_and_spares_busy_connections() {
        let second = std::time::Duration::from_secs(1);
        let connections = Connections::default();
        let mut entries = Vec::new();
        for _ in 0..4 {
            entries.push(Arc::new(connections.open()));
            tokio::time::advance(second).await;
        }
        let [busy, used, half_open, newest] = entries.as_slice() else {
            unreachable!("four entries");
        };
        let guard = ConnectionHandle(busy.clone()).mark_busy();
        used.mark_used();
        for next in [half_open, newest, used] {
            assert!(!next.evicted.is_cancelled());
            connections.evict_idle();
            assert!(next.evicted.is_cancelled());
        }
        connections.evict_idle();
        assert!(!busy.evicted.is_cancelled());
        drop(guard);
        connections.evict_idle();
        assert!(busy.evicted.is_cancelled());
    }
}
