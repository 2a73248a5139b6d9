//! BR-WE-014: the container runtime can pull every image reference that the rules accept.

use futures::future::join_all;
use serde_json::json;
use wfe_model::image::ImageReference;
use wfe_tests::Image;
use wfe_tests::system::{Script, System, condition};

use crate::setup::cluster;

/// Image names that cover the grammar of references, as far as the registry supports it.
const NAMES: [&str; 6] = [
    "a:1",
    "a.b_c__d-e---f/0:v1.2.3-rc.1_x",
    "workflows/team-a/restart:latest",
    "x/y/z/1/2/3:A",
    "pinned/by.digest-only",
    "t:TTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTT",
];

/// BR-WE-014
#[tokio::test]
async fn image_reference_accepted_by_rules_is_pulled_and_run() {
    let cluster = cluster().await;
    let registry = cluster.registry().expect("a registry");
    let mut ids = ["i0", "i1", "i2", "i3", "i4", "i5"].into_iter();
    let scripts = NAMES.map(|name| {
        let image = Image::from("busybox:1").entrypoint(&["/bin/true"]);
        let tagged = if name.contains(':') {
            name.to_owned()
        } else {
            format!("{name}:pushed")
        };
        let pushed = registry.push(&tagged, &image).expect("pushed");
        let reference = if tagged == name {
            pushed
        } else {
            pushed.replace(":pushed", "")
        };
        assert!(ImageReference::parse(&reference).is_some(), "{reference}");
        Script::of(ids.next().expect("as many ids"), reference, "")
    });
    let system = System::start(&cluster, "images", &scripts.each_ref())
        .await
        .expect("started");
    join_all(scripts.iter().map(async |script| {
        system
            .create(script, script.id, &json!({}))
            .await
            .expect("admitted");
        let wfe = system.ended(script.id).await.expect("ended");
        assert_eq!(condition(&wfe, "Ready"), "True/Ready", "{}", script.image);
    }))
    .await;
}
