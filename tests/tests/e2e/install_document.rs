//! `docs/install.md`, word by word: its commands are run as they stand.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use tokio::process::Command;
use wfe_tests::chart::{EXECUTIONS, PROGRAMS};
use wfe_tests::workspace;
use wfe_tests::{Image, wait};

use crate::load::REQUESTS;
use crate::story::Story;

const GONE_WITHIN: Duration = Duration::from_mins(1);
/// The line of the document that a user changes.
const REGISTRY: &str = "export REGISTRY=registry.example:5000";

/// Installs, runs a first workflow, and uninstalls.
pub async fn is_followed(story: &mut Story) {
    let registry = story.cluster.registry().expect("a registry");
    let hello = Image::from("busybox:1").text("run.sh", "echo hello");
    let hello = hello.entrypoint(&["/bin/sh", "/run.sh"]);
    let hello = registry.push("hello:1", &hello).expect("pushed");
    let document = std::fs::read_to_string(workspace().join("docs/install.md"));
    let document = document.expect("the document");
    assert!(document.contains(REGISTRY));
    let ours = format!("export REGISTRY={}", registry.address());
    let document = document.replace(REGISTRY, &ours);
    for section in ["Install", "Your first workflow", "Uninstall"] {
        run(
            section,
            &commands(&document, section),
            &hello,
            registry.address(),
        )
        .await;
    }
    let namespaces: Api<Namespace> = Api::all(story.client.clone());
    let delete = kube::api::DeleteParams::default();
    namespaces.delete(REQUESTS, &delete).await.expect("deleted");
    for name in [REQUESTS, EXECUTIONS, PROGRAMS] {
        wait::gone(&namespaces, name, GONE_WITHIN)
            .await
            .expect("gone");
    }
    story.done("docs/install.md, word by word: install, a first workflow, uninstall");
}

/// The commands of a section.
fn commands(document: &str, section: &str) -> String {
    let start = format!("\n## {section}\n");
    let (_, rest) = document.split_once(&start).expect("the section");
    let section = rest.split("\n## ").next().unwrap_or(rest);
    let blocks = section.split("```sh\n").skip(1);
    let blocks = blocks.filter_map(|it| it.split("```").next());
    blocks.collect::<Vec<_>>().join("\n")
}

async fn run(section: &str, commands: &str, hello: &str, registry: &str) {
    assert!(!commands.is_empty(), "{section} has no commands");
    let directory = tempfile::tempdir().expect("a directory");
    // A user is in the clone, with files of their own elsewhere.
    let commands = commands.replace(
        "hello.yaml",
        &directory.path().join("hello.yaml").to_string_lossy(),
    );
    let output = Command::new("timeout")
        .args(["180", "bash", "-eu", "-c", &commands])
        .current_dir(workspace())
        .env("HELLO_IMAGE", hello)
        .env("REGISTRY", registry)
        .env("PROFILE", "dev")
        .env_remove("WFE_CLUSTER")
        .output()
        .await
        .expect("bash");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{section}: {text}");
}
