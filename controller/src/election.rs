//! Leader election: one process decides and writes, the others keep their caches warm.
//!
//! [`wfe_core::election`] has the rules. The leader stops itself before its Lease can be taken: a
//! renewal that does not succeed within [`RENEW_DEADLINE`] ends the process, and no step is carried
//! out after that moment ([`Leadership::check`]), also when the process was stopped meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Event, watcher};
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use thiserror::Error;
use wfe_core::election::{Attempt, Candidate, RENEW_DEADLINE, RETRY_PERIOD};
use wfe_model::text::in_full;

use crate::leases::put;
use crate::metrics::Metrics;
use crate::recorder::{Happening, NORMAL, Recorder};
use crate::watches::every;

/// This process does not lead any more, and another one may.
#[derive(Clone, Copy, Debug, Error)]
#[error("this process does not lead: its Lease was not renewed within {} s", RENEW_DEADLINE.as_secs())]
pub struct NotLeading;

/// Until when this process leads.
#[derive(Clone, Debug, Default)]
pub struct Leadership(Arc<Mutex<Option<Until>>>);

#[derive(Clone, Copy, Debug)]
enum Until {
    /// Without leader election.
    Always,
    At(Instant),
}

impl Leadership {
    /// Without leader election a process always leads.
    pub fn always() -> Self {
        Self(Arc::new(Mutex::new(Some(Until::Always))))
    }

    /// Fails when this process must not write any more.
    pub fn check(&self) -> Result<(), NotLeading> {
        match *self.0.lock() {
            Some(Until::Always) => Ok(()),
            Some(Until::At(end)) if Instant::now() < end => Ok(()),
            _ => Err(NotLeading),
        }
    }

    /// Time for the next write of the Lease.
    fn left(&self) -> Duration {
        match *self.0.lock() {
            Some(Until::At(end)) => end.saturating_duration_since(Instant::now()),
            _ => RENEW_DEADLINE,
        }
    }

    fn set(&self, until: Option<Until>) {
        *self.0.lock() = until;
    }
}

/// Takes, renews and releases the Lease.
pub struct Elector {
    leases: Api<Lease>,
    name: String,
    candidate: Candidate,
    leadership: Leadership,
    recorder: Recorder,
    metrics: Metrics,
}

impl Elector {
    /// An elector that has not tried yet.
    pub fn new(
        client: &Client,
        namespace: &str,
        name: &str,
        candidate: Candidate,
        leadership: Leadership,
        recorder: Recorder,
        metrics: Metrics,
    ) -> Self {
        Self {
            leases: Api::namespaced(client.clone(), namespace),
            name: name.to_owned(),
            candidate,
            leadership,
            recorder,
            metrics,
        }
    }

    /// Waits until this process leads. The Lease of another process is watched, so that a release is
    /// noticed at once.
    pub async fn acquire(&mut self) {
        let config = every().fields(&format!("metadata.name={}", self.name));
        let watched = watcher(self.leases.clone(), config).default_backoff();
        let mut watched = std::pin::pin!(watched.map_ok(seen).boxed());
        loop {
            let now = Instant::now();
            let wait = match self.candidate.attempt(&self.name, now, Timestamp::now()) {
                Attempt::Wait(until) => until.saturating_duration_since(now).min(RETRY_PERIOD),
                Attempt::Write(lease) => {
                    if self.write(&lease, now).await {
                        return;
                    }
                    RETRY_PERIOD
                }
            };
            tokio::select! {
                event = watched.next() => match event {
                    Some(Ok(Some(lease))) => self.candidate.see(lease, Instant::now()),
                    Some(Err(error)) => {
                        tracing::warn!(error = in_full(&error), "watching the Lease failed, retrying");
                    }
                    Some(Ok(None)) | None => {}
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Renews the Lease for as long as possible; returns when this process must stop.
    pub async fn hold(&mut self) {
        loop {
            tokio::time::sleep(RETRY_PERIOD.min(self.leadership.left())).await;
            if self.leadership.check().is_err() {
                return;
            }
            let now = Instant::now();
            match self.candidate.attempt(&self.name, now, Timestamp::now()) {
                Attempt::Wait(_) => return,
                Attempt::Write(lease) => drop(self.write(&lease, now).await),
            }
        }
    }

    /// Gives the Lease back, so that another process leads at once.
    pub async fn release(&mut self) {
        self.leadership.set(None);
        self.metrics.leader.set(0);
        let Some(released) = self.candidate.released(Timestamp::now()) else {
            return;
        };
        match tokio::time::timeout(RETRY_PERIOD, put(&self.leases, &released)).await {
            Ok(Ok(_)) => tracing::info!(lease = self.name, "leadership released"),
            Ok(Err(error)) => {
                tracing::warn!(error = in_full(&error), "releasing the Lease failed");
            }
            Err(_) => tracing::warn!("releasing the Lease timed out"),
        }
    }

    /// Makes a write; returns whether this process leads. The leadership counts from before the
    /// write.
    async fn write(&mut self, lease: &Lease, began: Instant) -> bool {
        let deadline = (RENEW_DEADLINE / 2).min(self.leadership.left());
        let written = tokio::time::timeout(deadline, put(&self.leases, lease)).await;
        match written {
            Ok(Ok(lease)) => {
                let led = self.leadership.check().is_ok();
                let regarding = lease.object_ref(&());
                self.candidate.see(Some(lease), Instant::now());
                let until = Until::At(began + RENEW_DEADLINE);
                self.leadership.set(Some(until));
                if !led {
                    self.metrics.leader.set(1);
                    let (lease, identity) = (&self.name, self.candidate.identity());
                    tracing::info!(lease, identity, "leadership acquired");
                    self.recorder.record(Happening {
                        regarding,
                        type_: NORMAL,
                        // As client-go's leader election.
                        reason: "LeaderElection".to_owned(),
                        note: format!("{identity} became leader"),
                    });
                }
                return true;
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                self.read().await;
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    error = in_full(&error),
                    "writing the Lease failed, retrying"
                );
            }
            Err(_) => tracing::warn!("writing the Lease timed out, retrying"),
        }
        false
    }

    /// Another process has written the Lease.
    async fn read(&mut self) {
        let reading = self.leases.get_opt(&self.name);
        if let Ok(Ok(lease)) = tokio::time::timeout(RETRY_PERIOD, reading).await {
            self.candidate.see(lease, Instant::now());
        }
    }
}

/// The Lease that an event shows; the outer `None`: the event says nothing.
#[expect(
    clippy::option_option,
    reason = "nothing said, or that the Lease does not exist"
)]
fn seen(event: Event<Lease>) -> Option<Option<Lease>> {
    match event {
        Event::Apply(lease) | Event::InitApply(lease) => Some(Some(lease)),
        Event::Delete(_) => Some(None),
        Event::Init | Event::InitDone => None,
    }
}
