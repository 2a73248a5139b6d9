//! Decisions from stale caches: watches that lag behind or are closed must not change the outcome.

use std::time::Duration;

use futures::future::join_all;
use wfe_tests::fakes::proxy::Proxy;

use crate::scenario::{AuditTarget, Scenario, Setup};

/// Resources that the controller watches.
const RESOURCES: [&str; 5] = ["workflowexecutions", "jobs", "pods", "leases", "namespaces"];
/// A watch is held back for this many requests, or for [`IDLE`] if the controller sends fewer.
const REQUESTS: usize = 4;
const IDLE: Duration = Duration::from_millis(700);

/// Repeatedly holds back the watch events of a resource while the controller makes decisions, and
/// closes all watches every second time.
async fn hold_repeatedly(proxy: &Proxy, resource: &str) {
    for round in 0_usize.. {
        proxy.hold(resource);
        let _ = tokio::time::timeout(IDLE, proxy.requests(REQUESTS)).await;
        proxy.release();
        if round % 2 == 1 {
            proxy.cut();
        }
        let _ = tokio::time::timeout(IDLE, proxy.requests(1)).await;
    }
}

/// BR-WE-003
#[tokio::test(flavor = "multi_thread")]
async fn stale_watch_causes_no_false_deletion_and_no_second_run() {
    join_all(RESOURCES.map(async |resource| {
        let setup = Setup::start("held", AuditTarget::File).await;
        for scenario in Scenario::ALL {
            let name = format!("{scenario:?}").to_lowercase();
            setup.prepare(scenario, &name).await.expect("prepared");
            let result = tokio::select! {
                result = setup.run(scenario, &name) => result,
                () = hold_repeatedly(setup.proxy(), resource) => unreachable!("endless loop"),
            };
            setup.proxy().release();
            result.unwrap_or_else(|error| {
                panic!("{scenario:?} with {resource} held back: {error:#}")
            });
        }
        // No scenario changes a namespace.
        let withheld = setup.proxy().withheld(resource);
        assert!(
            withheld > 0 || resource == "namespaces",
            "no watch event of {resource} was held back"
        );
    }))
    .await;
}
