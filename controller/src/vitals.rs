//! Signs of life: the main loop reports itself, and a loop that does not ends the process.

use std::process;
use std::thread;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use wfe_process::endpoints::{MAX_SILENCE, Readiness};

use crate::watches::WatchAges;

/// Interval of the reports.
const BEAT: Duration = Duration::from_secs(1);
/// A stuck process cannot end in order: the code of an internal software error in sysexits.h.
const STUCK: i32 = 70;

/// Reports again and again that the main loop runs, and which watches are silent. It must be polled
/// by the task that it reports.
pub async fn beat(readiness: &Readiness, watches: &WatchAges) {
    let mut ticks = interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        readiness.beat();
        watches.report(readiness);
    }
}

/// Ends the process when its main loop does not run any more. A liveness probe would do the same
/// where there is one.
pub fn end_when_stuck(readiness: Readiness) {
    let is_stuck = move || {
        let silence = readiness.since_beat();
        silence.is_some_and(|silence| silence > MAX_SILENCE * 2)
    };
    thread::spawn(move || {
        loop {
            thread::sleep(MAX_SILENCE);
            // A process that was stopped and goes on reports itself within a beat.
            let stuck = is_stuck();
            thread::sleep(BEAT * 5);
            if stuck && is_stuck() {
                tracing::error!("the main loop does not run any more, ending the process");
                process::exit(STUCK);
            }
        }
    });
}
