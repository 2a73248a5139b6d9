//! The API server is killed and comes back.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::ResourceExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use wfe_tests::Cluster;
use wfe_tests::fakes::node::{Ending, FakeNode};
use wfe_tests::system::{Script, System, condition, install_crd};

const RUNS: usize = 50;
const BEFORE: usize = 10;
const ENDED_WITHIN: Duration = Duration::from_mins(3);

/// Kills (SIGKILL) the cluster's API server, which is then started again.
fn kill_api_server() -> Result<()> {
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.trim() == "kube-apiserver" {
            let pid = entry.file_name().to_string_lossy().parse()?;
            return Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?);
        }
    }
    Err(anyhow::anyhow!("no process kube-apiserver"))
}

/// Repeats a create until the API server answers.
async fn create(system: &System, workflow: &Script, name: &str) -> Result<()> {
    let creating = async {
        loop {
            match system.create(workflow, name, &json!({})).await {
                Ok(_) => return,
                Err(error) if format!("{error:#}").contains("AlreadyExists") => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let created = tokio::time::timeout(Duration::from_mins(1), creating).await;
    created.context("the API server does not come back")
}

/// BR-WE-003, BR-WE-009
#[tokio::test(flavor = "multi_thread")]
async fn executions_while_api_server_is_killed_run_once() {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await.expect("the CRD");
    let workflow = Script::of("w", format!("r.io/w@sha256:{}", "6".repeat(64)), "");
    let mut system = System::install(&cluster, "killed", &[&workflow])
        .await
        .expect("installed");
    system.elect_leader().await.expect("permitted");
    system.controller_flags.push("--cooldown=0s".to_owned());
    let controller = system.launch_controller().await.expect("started");
    let node = FakeNode::start(&system.execution, |_| Ending::Success);
    let names: Vec<_> = (0..RUNS).map(|number| format!("run-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        create(&system, &workflow, name).await.expect("created");
        if number == BEFORE {
            kill_api_server().expect("killed");
        }
    }
    let mut ended = Vec::new();
    for name in &names {
        ended.push(
            system
                .ended_within(name, ENDED_WITHIN)
                .await
                .expect("ended"),
        );
    }
    for wfe in ended {
        let name = wfe.name_any();
        assert_eq!(condition(&wfe, "Ready"), "True/Ready", "{name}");
        assert_eq!(node.started_for(&wfe.uid().expect("a uid")), 1, "{name}");
    }
    drop(controller);
}
