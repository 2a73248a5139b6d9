//! Loses each request of the orchestration and the analysis once, or its response, and kills the
//! controller there: each RemediationRequest has one WorkflowExecution, and is remediated.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use itertools::iproduct;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_platform::holmes::Holmes;
use wfe_tests::Cluster;
use wfe_tests::fakes::node::{Ending, FakeNode};
use wfe_tests::fakes::proxy::{Fault, Proxy};
use wfe_tests::system::{Program, Script, System, install_crd};

/// Mutating requests of the two reconcilers.
const OWN: [&str; 3] = [
    "create workflowexecutions",
    "patch remediationrequests/status",
    "patch aianalyses/status",
];

struct Setup {
    controller: Option<Program>,
    system: System,
    fake_node: FakeNode,
    holmes: Holmes,
}

impl Setup {
    async fn start() -> Self {
        let cluster = Cluster::connect().await;
        install_crd(&cluster).await.expect("the CRD");
        let image = format!("r.io/w@sha256:{}", "1".repeat(64));
        let workflow = Script::of("w", image, "");
        let mut system = System::install(&cluster, "rr", &[&workflow])
            .await
            .expect("installed");
        system.start_proxy().await.expect("a proxy");
        system.enable_orchestration().await.expect("enabled");
        let holmes = Holmes::start("127.0.0.1").await.expect("started");
        holmes.answer("OOMKilled", json!({
            "selected_workflow": {
                "workflow_id": "w", "version": "1.0.0", "confidence": 0.9, "execution_engine": "job",
            },
        }));
        let url = format!("--holmes-url={}", holmes.url());
        system
            .controller_flags
            .extend(["--enable-analysis".to_owned(), url]);
        let controller = system.launch_controller().await.expect("started");
        Self {
            controller: Some(controller),
            fake_node: FakeNode::start(&system.execution, |_| Ending::Success),
            system,
            holmes,
        }
    }

    fn proxy(&self) -> &Proxy {
        self.system.proxy.as_ref().expect("a proxy")
    }

    async fn crash(&mut self) -> Result<()> {
        let controller = self.controller.take().context("no controller runs")?;
        controller.kill().await?;
        self.controller = Some(self.system.launch_controller().await?);
        Ok(())
    }

    /// Waits until a signal is remediated, and checks that one WorkflowExecution ran once.
    async fn remediated(&self, name: &str) -> Result<()> {
        let done = ("Completed", "WorkflowExecutionSucceeded");
        self.system.reported(name, done.0, done.1).await?;
        let api = self.system.namespace.api::<WorkflowExecution>();
        let all = api.list(&ListParams::default()).await?;
        let is_of = |it: &&WorkflowExecution| {
            let request = it.spec.remediation_request_ref.as_ref();
            request.is_some_and(|it| it.name == name)
        };
        let all: Vec<_> = all.items.iter().filter(is_of).collect();
        let [execution] = all.as_slice() else {
            anyhow::bail!("{} WorkflowExecutions of {name}", all.len());
        };
        let uid = execution.uid().unwrap_or_default();
        let started = self.fake_node.started_for(&uid);
        ensure!(started == 1, "{started} executions of {name}");
        Ok(())
    }

    async fn signal(&self, name: &str) -> Result<()> {
        self.system.request_remediation(name, name).await?;
        self.system.analyse(name, "OOMKilled", name).await?;
        Ok(())
    }

    /// Runs a case; whether the request came to which the fault applies.
    async fn run(&mut self, name: &str, request: &str, fault: Fault, crash: bool) -> Result<bool> {
        let proxy = self.proxy();
        proxy.arm(None);
        let next = proxy.next_fault();
        proxy.arm(Some((request.to_owned(), fault)));
        self.signal(name).await?;
        tokio::select! {
            biased;
            () = next => {}
            result = self.remediated(name) => return result.map(|()| false),
        }
        if crash {
            self.crash().await?;
        }
        self.remediated(name).await.map(|()| true)
    }
}

/// TR-6, BR-WE-009
#[tokio::test(flavor = "multi_thread")]
async fn controller_crash_at_any_request_keeps_one_execution_per_remediation_request() {
    let mut setup = Setup::start().await;
    setup.proxy().arm(None);
    setup.signal("plain").await.expect("signalled");
    setup.remediated("plain").await.expect("remediated");
    let requests = setup.proxy().mutations().into_iter();
    let requests: Vec<_> = requests
        .filter(|it| OWN.iter().any(|own| it.starts_with(own)))
        .collect();
    for own in OWN {
        assert!(requests.contains(&format!("{own} #1")), "{requests:?}");
    }
    let late = Fault::Delay(Duration::from_secs(2));
    let faults = [
        (Fault::Drop, true),
        (Fault::DropAnswer, true),
        (late, true),
        (Fault::DropAnswer, false),
    ];
    let (mut count, mut missed) = (0, Vec::new());
    for (request, (fault, crash)) in iproduct!(&requests, faults) {
        count += 1;
        let name = format!("run-{count}");
        let came = setup.run(&name, request, fault, crash).await;
        let came = came.with_context(|| format!("{request} {fault:?} crash: {crash}"));
        match came {
            Ok(true) => {}
            Ok(false) => missed.push((request, fault)),
            Err(error) => panic!("{error:#}"),
        }
    }
    println!(
        "{count} cases; the request of the fault did not come in {}: {missed:?}; {} sessions",
        missed.len(),
        setup.holmes.begun()
    );
    assert!(missed.len() * 10 <= count, "{missed:?}");
    // A crash after the request to begin a session costs one more.
    assert!(
        setup.holmes.begun() <= 2 * (count + 1),
        "{} sessions",
        setup.holmes.begun()
    );
    // Each of them has one, however often it was interrupted.
    let api = setup.system.namespace.api::<WorkflowExecution>();
    let all = api.list(&ListParams::default()).await.expect("listed");
    assert_eq!(all.items.len(), count + 1);
}
