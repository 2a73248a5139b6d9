//! A watch that is behind, or cut, must not have anything believed.

use std::time::Duration;

use futures::future::join_all;
use wfe_tests::fakes::proxy::Proxy;

use crate::scenario::{Scenario, Stage, Trail};

/// What the controller watches.
const RESOURCES: [&str; 5] = ["workflowexecutions", "jobs", "pods", "leases", "namespaces"];
/// A few decisions, each with its requests; or, where the controller can do nothing, so long.
const DECISIONS: usize = 4;
const IDLE: Duration = Duration::from_millis(700);

/// Holds the watch back until a few decisions are made without it, over and over; every second time
/// it is cut then.
async fn hold_again_and_again(proxy: &Proxy, resource: &str) {
    for round in 0_usize.. {
        proxy.hold(resource);
        let _ = tokio::time::timeout(IDLE, proxy.requests(DECISIONS)).await;
        proxy.release();
        if round % 2 == 1 {
            proxy.cut();
        }
        let _ = tokio::time::timeout(IDLE, proxy.requests(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn br_we_003_decisions_without_the_newest_of_a_kind_declare_nothing_deleted_and_run_nothing_twice()
 {
    join_all(RESOURCES.map(async |resource| {
        let stage = Stage::set("held", Trail::File).await;
        for scenario in Scenario::ALL {
            let name = format!("{scenario:?}").to_lowercase();
            stage.prepare(scenario, &name).await.expect("prepared");
            let played = tokio::select! {
                played = stage.play(scenario, &name) => played,
                () = hold_again_and_again(stage.proxy(), resource) => unreachable!("it goes on"),
            };
            stage.proxy().release();
            played.unwrap_or_else(|error| {
                panic!("{scenario:?} with {resource} held back: {error:#}")
            });
        }
        // Nothing happens to the namespaces in these stories.
        let withheld = stage.proxy().withheld(resource);
        assert!(
            withheld > 0 || resource == "namespaces",
            "{resource} were never late"
        );
    }))
    .await;
}
