//! Argo CD's health of a WorkflowExecution: the script's verdict on real objects.

use mlua::{Lua, LuaSerdeExt, Table};
use serde_json::json;
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_tests::chart::{directory, kubectl};

use crate::load::REQUESTS;
use crate::story::Story;

/// A WorkflowExecution in each phase.
pub async fn knows_each_phase(story: &mut Story) {
    let unseen = story.quick.request("unseen", &json!({}));
    assert_eq!(
        verdict(&unseen),
        ["Progressing", "no controller has seen it"]
    );
    let done = story.until("raise-memory", Phase::Succeeded).await;
    assert_eq!(verdict(&done), ["Healthy", "Succeeded"]);

    let runs = story
        .slow
        .request("runs", &json!({ "targetResource": "prod/Deployment/one" }));
    story.create(&runs).await.expect("admitted");
    let runs = story.until("runs", Phase::Running).await;
    assert_eq!(verdict(&runs), ["Progressing", "Running"]);
    let waits = json!({ "targetResource": "prod/Deployment/one", "executionConfig": { "whenBlocked": "Wait" } });
    let waits = story.quick.request("waits", &waits);
    story.create(&waits).await.expect("admitted");
    let waits = story.until_blocked("waits").await;
    let [health, message] = verdict(&waits);
    assert_eq!(health, "Progressing");
    assert!(message.contains("WorkflowExecution prod/runs"), "{message}");

    for (file, name, phase, says) in [
        (
            "fails",
            "over-the-ceiling",
            Phase::Failed,
            "failed with exit code 3",
        ),
        (
            "blocked",
            "after-the-failure",
            Phase::Skipped,
            "its block is not cleared",
        ),
    ] {
        let path = story.path(&format!("{file}.yaml"));
        kubectl(&["create", "-f", &path.to_string_lossy()])
            .await
            .expect("admitted");
        let ended = story.until(name, phase).await;
        let [health, message] = verdict(&ended);
        assert_eq!(health, "Degraded");
        assert!(message.contains(says), "{message}");
    }
    for name in ["runs", "waits"] {
        kubectl(&["-n", REQUESTS, "delete", "wfe", name, "--wait=false"])
            .await
            .expect("deleted");
    }
    story.done("Argo CD's health script on a WorkflowExecution in each phase");
}

/// Health and message.
fn verdict(wfe: &WorkflowExecution) -> [String; 2] {
    let script = std::fs::read_to_string(directory().join("files/argo-cd-health.lua"));
    let lua = Lua::new();
    // What is absent is nil, as in Argo CD.
    let object = serde_json::to_value(wfe).expect("JSON");
    let object = lua.to_value(&object).expect("a table");
    lua.globals().set("obj", object).expect("set");
    let health: Table = lua
        .load(script.expect("the script"))
        .eval()
        .expect("a verdict");
    ["status", "message"].map(|key| health.get(key).expect("text"))
}
