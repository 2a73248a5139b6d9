//! BR-WE-013: a block clearance records the user that the API server authenticated, with the
//! webhook and without it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use wfe_model::workflow_execution::{BlockClearance, WorkflowExecution};
use wfe_tests::system::{Script, System, condition};

use crate::setup::cluster;

const REASON: &str = "the node was replaced, the deployment is healthy";

/// A status patch that must be denied, and text of the denial.
struct Denied {
    status: Value,
    says: &'static str,
}

fn request_clearance(reason: &str) -> Value {
    json!({ "blockClearanceRequest": { "clearReason": reason } })
}

fn write_clearance(by: &str, reason: &str) -> Value {
    json!({ "blockClearance": {
        "clearedBy": by, "clearedAt": Time(Timestamp::now()), "clearReason": reason, "clearMethod": "KubernetesAdmissionWebhook",
    } })
}

struct Setup {
    system: System,
    breaks: Script,
    works: Script,
}

impl Setup {
    async fn start() -> Self {
        let cluster = cluster().await;
        let breaks = Script::push(&cluster, "clear-breaks", "exit 3", "");
        let works = Script::push(&cluster, "clear-works", "exit 0", "");
        let system = System::start(&cluster, "clear", &[&breaks, &works])
            .await
            .expect("started");
        Self {
            system,
            breaks,
            works,
        }
    }

    /// Blocks a target by a failed execution.
    async fn block(&self, name: &str) {
        let on = json!({ "targetResource": target(name) });
        self.system
            .create(&self.breaks, name, &on)
            .await
            .expect("admitted");
        self.system.ended(name).await.expect("ended");
        let next = format!("{name}-skipped");
        self.run_on(name, &next, "True/PreviousExecutionFailed", "Stalled")
            .await;
    }

    /// Runs the execution `next` on the target of `name` and checks its condition `kind`.
    async fn run_on(&self, name: &str, next: &str, expected: &str, kind: &str) {
        let on = json!({ "targetResource": target(name) });
        self.system
            .create(&self.works, next, &on)
            .await
            .expect("admitted");
        let wfe = self.system.ended(next).await.expect("ended");
        assert_eq!(condition(&wfe, kind), expected, "{next}");
    }

    async fn patch(
        &self,
        client: &Client,
        name: &str,
        status: &Value,
    ) -> Result<WorkflowExecution, String> {
        let api: Api<WorkflowExecution> =
            Api::namespaced(client.clone(), self.system.namespace.name());
        let patch = Patch::Merge(json!({ "status": status }));
        let patched = api
            .patch_status(name, &PatchParams::default(), &patch)
            .await;
        patched.map_err(|error| error.to_string())
    }

    async fn denied(&self, client: &Client, name: &str, patches: &[Denied]) {
        for Denied { status, says } in patches {
            let text = self.patch(client, name, status).await.expect_err(says);
            assert!(text.contains(says), "{status}: {text}");
        }
    }

    async fn clearance(&self, name: &str) -> Option<BlockClearance> {
        let wfe = self
            .system
            .namespace
            .api::<WorkflowExecution>()
            .get(name)
            .await;
        wfe.expect("found")
            .status
            .expect("a status")
            .block_clearance
    }
}

fn target(name: &str) -> String {
    format!("prod/Deployment/{name}")
}

/// BR-WE-013: enforced by the webhook, and by the policies alone after the webhook is removed.
#[tokio::test]
async fn block_clearance_records_requester_once_and_is_immutable() {
    let mut setup = Setup::start().await;
    let namespace = setup.system.namespace.name().to_owned();
    let ann = setup
        .system
        .operator(&format!("ann-{namespace}"), &namespace)
        .await
        .expect("ann");
    let by_ann = format!("ann-{namespace}");
    setup.run_on("good", "good", "True/Ready", "Ready").await;

    // With the webhook: it turns requests into clearances.
    setup.block("first").await;
    let phase = json!({ "phase": "Pending" });
    let others = "only the controller writes the status of a WorkflowExecution";
    let forged = "must be set by wfe-webhook, which records the authenticated user: set status.blockClearanceRequest instead";
    let nothing = "only a Failed WorkflowExecution blocks its target: there is nothing to clear";
    let reason = "must describe in 10 to 1024 characters what was found and what was done";
    setup
        .denied(
            &ann,
            "first",
            &[
                Denied {
                    status: request_clearance("ok"),
                    says: reason,
                },
                Denied {
                    status: request_clearance("          ok          "),
                    says: reason,
                },
                Denied {
                    status: write_clearance("bob", REASON),
                    says: forged,
                },
                Denied {
                    status: phase.clone(),
                    says: "a final phase",
                },
                Denied {
                    status: json!({ "duration": "1h" }),
                    says: others,
                },
                Denied {
                    status: json!({ "failureDetails": null }),
                    says: others,
                },
            ],
        )
        .await;
    setup
        .denied(
            &ann,
            "good",
            &[Denied {
                status: request_clearance(REASON),
                says: nothing,
            }],
        )
        .await;
    let both = json!({ "blockClearanceRequest": { "clearReason": REASON }, "duration": "1h" });
    setup
        .denied(
            &ann,
            "first",
            &[Denied {
                status: both,
                says: others,
            }],
        )
        .await;
    assert_eq!(setup.clearance("first").await, None);
    let cleared = setup
        .patch(&ann, "first", &request_clearance(REASON))
        .await
        .expect("cleared");
    let status = cleared.status.expect("a status");
    assert_eq!(status.block_clearance_request, None);
    let clearance = status.block_clearance.expect("stamped");
    assert_eq!(
        (&clearance.cleared_by, clearance.clear_reason.as_str()),
        (&by_ann, REASON)
    );
    let created = cleared.metadata.creation_timestamp.expect("a time");
    assert!(clearance.cleared_at >= created);
    let once = "blockClearance must not be changed or removed after it has been set";
    let changes = [
        request_clearance("another reason, and a better one"),
        json!({ "blockClearance": null }),
        json!({ "blockClearance": { "clearedBy": "bob" } }),
        json!({ "blockClearance": { "clearReason": "another reason, and a better one" } }),
    ];
    for status in changes.clone() {
        setup
            .denied(&ann, "first", &[Denied { status, says: once }])
            .await;
    }
    assert_eq!(setup.clearance("first").await, Some(clearance));
    setup
        .run_on("first", "first-after", "True/Ready", "Ready")
        .await;

    // A ServiceAccount has a uid, which differs from that of a later account with the same name.
    setup.block("second").await;
    let account: ServiceAccount =
        serde_json::from_value(json!({ "metadata": { "name": "robot" } })).expect("an account");
    let accounts = setup.system.namespace.api::<ServiceAccount>();
    let account = accounts
        .create(&PostParams::default(), &account)
        .await
        .expect("created");
    let robot = setup
        .system
        .operator_account(&namespace, "robot", &namespace)
        .await
        .expect("robot");
    let cleared = setup
        .patch(&robot, "second", &request_clearance(REASON))
        .await
        .expect("cleared");
    let clearance = cleared
        .status
        .and_then(|it| it.block_clearance)
        .expect("stamped");
    assert_eq!(
        clearance.cleared_by,
        format!("system:serviceaccount:{namespace}:robot")
    );
    assert_eq!(clearance.cleared_by_uid, account.uid());

    // Without the webhook: the policies let users write clearances in their own name.
    setup.block("third").await;
    setup
        .system
        .remove_webhook()
        .await
        .expect("webhook removed");
    let mine = "clearedBy and clearedByUid must be those of the requesting user";
    let mut with_uid = write_clearance(&by_ann, REASON);
    with_uid["blockClearance"]["clearedByUid"] = json!("somebody-else");
    // RBAC lets the controller update statuses; for this test it may also patch them.
    let programs = setup.system.programs.name();
    let controller = setup
        .system
        .operator_account(programs, "wfe-controller", &namespace)
        .await
        .expect("the controller");
    setup
        .denied(
            &ann,
            "third",
            &[
                Denied {
                    status: request_clearance(REASON),
                    says: "wfe-webhook did not process this request",
                },
                Denied {
                    status: write_clearance("bob", REASON),
                    says: mine,
                },
                Denied {
                    status: with_uid,
                    says: mine,
                },
                Denied {
                    status: write_clearance(&by_ann, "ok"),
                    says: reason,
                },
                Denied {
                    status: phase,
                    says: "a final phase",
                },
                Denied {
                    status: json!({ "duration": "1h" }),
                    says: others,
                },
            ],
        )
        .await;
    let everything = setup
        .patch(&ann, "third", &Value::Null)
        .await
        .expect_err("refused");
    assert!(everything.contains("final phase"), "{everything}");
    let name = "good";
    setup
        .denied(
            &ann,
            name,
            &[Denied {
                status: write_clearance(&by_ann, REASON),
                says: nothing,
            }],
        )
        .await;
    // The controller cannot write a clearance in the name of another user either.
    let bob = Denied {
        status: write_clearance("bob", REASON),
        says: mine,
    };
    setup.denied(&controller, "third", &[bob]).await;
    setup
        .patch(&ann, "third", &write_clearance(&by_ann, REASON))
        .await
        .expect("written in her own name");
    for status in changes {
        let says = if status.get("blockClearanceRequest").is_some() {
            "wfe-webhook did not process this request"
        } else {
            once
        };
        for client in [&ann, &controller] {
            let status = status.clone();
            setup
                .denied(client, "third", &[Denied { status, says }])
                .await;
        }
    }
    setup
        .run_on("third", "third-after", "True/Ready", "Ready")
        .await;
}
