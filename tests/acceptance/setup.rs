//! What every test needs: the CRD as the chart has it.

use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{Patch, PatchParams};
use tokio::sync::OnceCell;
use wfe_tests::{Cluster, wait};

pub const SECONDS_30: Duration = Duration::from_secs(30);

static INSTALLED: OnceCell<()> = OnceCell::const_new();

/// The cluster with the shipped CRD.
pub async fn cluster() -> Cluster {
    let cluster = Cluster::connect().await;
    INSTALLED.get_or_init(|| install_crd(cluster.clone())).await;
    cluster
}

async fn install_crd(cluster: Cluster) {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../charts/workflow-execution/crds/kubernaut.ai.yaml"
    );
    let text = std::fs::read_to_string(path).expect("the chart has the CRD");
    let crd: CustomResourceDefinition = serde_saphyr::from_str(&text).expect("a CRD");
    let name = crd.metadata.name.clone().expect("a name");
    let crds: Api<CustomResourceDefinition> = Api::all(cluster.admin());
    let apply = PatchParams::apply("wfe-tests").force();
    crds.patch(&name, &apply, &Patch::Apply(&crd))
        .await
        .expect("the API server takes the CRD");
    let established = |crd: &CustomResourceDefinition| {
        let conditions = crd
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref());
        conditions
            .into_iter()
            .flatten()
            .any(|it| it.type_ == "Established" && it.status == "True")
    };
    wait::until(&crds, &name, "the CRD is served", SECONDS_30, established)
        .await
        .expect("established");
}

/// What kubectl prints, whichever stream it takes, and whether it was content.
pub async fn kubectl(arguments: &[&str]) -> (bool, String) {
    let output = tokio::process::Command::new("kubectl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .expect("kubectl is on the PATH inside the cluster");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8(text).expect("text"),
    )
}
