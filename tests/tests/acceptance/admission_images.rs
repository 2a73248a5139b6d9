//! BR-WE-014: what the rules call an image, the container runtime can pull.

use futures::future::join_all;
use serde_json::json;
use wfe_model::image::ImageReference;
use wfe_tests::Image;
use wfe_tests::system::{Script, System, condition};

use crate::setup::cluster;

/// From every corner of the grammar that a registry can be asked for.
const NAMES: [&str; 6] = [
    "a:1",
    "a.b_c__d-e---f/0:v1.2.3-rc.1_x",
    "workflows/team-a/restart:latest",
    "x/y/z/1/2/3:A",
    "pinned/by.digest-only",
    "t:TTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTT",
];

#[tokio::test]
async fn br_we_014_images_that_the_rules_accept_are_pulled_and_run() {
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
        Script::of(ids.next().expect("one for each"), reference, "")
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
