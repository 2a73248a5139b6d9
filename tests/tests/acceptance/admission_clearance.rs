//! BR-WE-013: who clears a block is who the API server says; with the webhook and without it.

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

/// What somebody may try, and words of the refusal.
struct Try {
    status: Value,
    says: &'static str,
}

fn asking(reason: &str) -> Value {
    json!({ "blockClearanceRequest": { "clearReason": reason } })
}

fn writing(by: &str, reason: &str) -> Value {
    json!({ "blockClearance": {
        "clearedBy": by, "clearedAt": Time(Timestamp::now()), "clearReason": reason, "clearMethod": "KubernetesAdmissionWebhook",
    } })
}

struct Stage {
    system: System,
    breaks: Script,
    works: Script,
}

impl Stage {
    async fn set() -> Self {
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

    /// A target that a failure midway blocks.
    async fn block(&self, name: &str) {
        let on = json!({ "targetResource": target(name) });
        self.system
            .create(&self.breaks, name, &on)
            .await
            .expect("admitted");
        self.system.ended(name).await.expect("ended");
        let next = format!("{name}-skipped");
        self.run_on(name, &next, "True/PreviousExecutionFailed", "Blocked")
            .await;
    }

    /// The next one on the target of `name`, and what becomes of it.
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

    async fn refused(&self, client: &Client, name: &str, tries: &[Try]) {
        for Try { status, says } in tries {
            let said = self.patch(client, name, status).await.expect_err(says);
            assert!(said.contains(says), "{status}: {said}");
        }
    }

    async fn clearance(&self, name: &str) -> Option<BlockClearance> {
        let wfe = self
            .system
            .namespace
            .api::<WorkflowExecution>()
            .get(name)
            .await;
        wfe.expect("there")
            .status
            .expect("a status")
            .block_clearance
    }
}

fn target(name: &str) -> String {
    format!("prod/Deployment/{name}")
}

#[tokio::test]
async fn br_we_013_a_block_is_cleared_by_who_asks_once_and_for_good_with_the_webhook_and_without() {
    let mut stage = Stage::set().await;
    let namespace = stage.system.namespace.name().to_owned();
    let ann = stage
        .system
        .operator(&format!("ann-{namespace}"), &namespace)
        .await
        .expect("ann");
    let by_ann = format!("ann-{namespace}");
    stage.run_on("good", "good", "True/Ready", "Ready").await;

    // With the webhook.
    stage.block("first").await;
    let phase = json!({ "phase": "Pending" });
    let others = "only the controller writes the status of a WorkflowExecution";
    let forged = "must be set by wfe-webhook, which records the authenticated user: set status.blockClearanceRequest instead";
    let nothing = "only a Failed WorkflowExecution blocks its target: there is nothing to clear";
    let reason = "must describe in 10 to 1024 characters what was found and what was done";
    stage
        .refused(
            &ann,
            "first",
            &[
                Try {
                    status: asking("ok"),
                    says: reason,
                },
                Try {
                    status: asking("          ok          "),
                    says: reason,
                },
                Try {
                    status: writing("bob", REASON),
                    says: forged,
                },
                Try {
                    status: phase.clone(),
                    says: "a final phase",
                },
                Try {
                    status: json!({ "duration": "1h" }),
                    says: others,
                },
                Try {
                    status: json!({ "failureDetails": null }),
                    says: others,
                },
            ],
        )
        .await;
    stage
        .refused(
            &ann,
            "good",
            &[Try {
                status: asking(REASON),
                says: nothing,
            }],
        )
        .await;
    let both = json!({ "blockClearanceRequest": { "clearReason": REASON }, "duration": "1h" });
    stage
        .refused(
            &ann,
            "first",
            &[Try {
                status: both,
                says: others,
            }],
        )
        .await;
    assert_eq!(stage.clearance("first").await, None);
    let cleared = stage
        .patch(&ann, "first", &asking(REASON))
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
        asking("another reason, and a better one"),
        json!({ "blockClearance": null }),
        json!({ "blockClearance": { "clearedBy": "bob" } }),
        json!({ "blockClearance": { "clearReason": "another reason, and a better one" } }),
    ];
    for status in changes.clone() {
        stage
            .refused(&ann, "first", &[Try { status, says: once }])
            .await;
    }
    assert_eq!(stage.clearance("first").await, Some(clearance));
    stage
        .run_on("first", "first-after", "True/Ready", "Ready")
        .await;

    // A ServiceAccount has a uid: another one of the same name is somebody else.
    stage.block("second").await;
    let account: ServiceAccount =
        serde_json::from_value(json!({ "metadata": { "name": "robot" } })).expect("an account");
    let accounts = stage.system.namespace.api::<ServiceAccount>();
    let account = accounts
        .create(&PostParams::default(), &account)
        .await
        .expect("created");
    let robot = stage
        .system
        .operating_account(&namespace, "robot", &namespace)
        .await
        .expect("robot");
    let cleared = stage
        .patch(&robot, "second", &asking(REASON))
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

    // Without it.
    stage.block("third").await;
    stage
        .system
        .remove_webhook()
        .await
        .expect("nobody is asked");
    let mine = "clearedBy and clearedByUid must be who asks";
    let mut with_uid = writing(&by_ann, REASON);
    with_uid["blockClearance"]["clearedByUid"] = json!("somebody-else");
    // It may update statuses; for this it gets the right to patch, too.
    let execution = stage.system.execution.name();
    let controller = stage
        .system
        .operating_account(execution, "wfe-controller", &namespace)
        .await
        .expect("the controller");
    stage
        .refused(
            &ann,
            "third",
            &[
                Try {
                    status: asking(REASON),
                    says: "wfe-webhook did not process this request",
                },
                Try {
                    status: writing("bob", REASON),
                    says: mine,
                },
                Try {
                    status: with_uid,
                    says: mine,
                },
                Try {
                    status: writing(&by_ann, "ok"),
                    says: reason,
                },
                Try {
                    status: phase,
                    says: "a final phase",
                },
                Try {
                    status: json!({ "duration": "1h" }),
                    says: others,
                },
            ],
        )
        .await;
    let everything = stage
        .patch(&ann, "third", &Value::Null)
        .await
        .expect_err("refused");
    assert!(everything.contains("final phase"), "{everything}");
    let name = "good";
    stage
        .refused(
            &ann,
            name,
            &[Try {
                status: writing(&by_ann, REASON),
                says: nothing,
            }],
        )
        .await;
    // Not even the controller says that somebody else did it.
    let bob = Try {
        status: writing("bob", REASON),
        says: mine,
    };
    stage.refused(&controller, "third", &[bob]).await;
    stage
        .patch(&ann, "third", &writing(&by_ann, REASON))
        .await
        .expect("in her own name");
    for status in changes {
        let says = if status.get("blockClearanceRequest").is_some() {
            "wfe-webhook did not process this request"
        } else {
            once
        };
        for client in [&ann, &controller] {
            let status = status.clone();
            stage
                .refused(client, "third", &[Try { status, says }])
                .await;
        }
    }
    stage
        .run_on("third", "third-after", "True/Ready", "Ready")
        .await;
}
