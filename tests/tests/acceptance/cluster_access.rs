//! The harness itself: identities, namespaces, waiting.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use wfe_tests::{Cluster, wait};

use crate::setup::SECONDS_30;

async fn name_of(client: Client) -> (String, Vec<String>) {
    let review = Api::<SelfSubjectReview>::all(client);
    let answer = review
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .expect("reviewed");
    let user = answer
        .status
        .and_then(|status| status.user_info)
        .expect("a user");
    (
        user.username.unwrap_or_default(),
        user.groups.unwrap_or_default(),
    )
}

#[tokio::test]
async fn a_user_is_who_the_certificate_says_and_may_nothing_by_default() {
    let cluster = Cluster::connect().await;
    let client = cluster
        .user("jane", Some("operators"))
        .await
        .expect("a client");
    let (name, groups) = name_of(client.clone()).await;
    assert_eq!(name, "jane");
    assert!(groups.contains(&"operators".to_owned()), "{groups:?}");
    let denied = Api::<Namespace>::all(client)
        .list(&ListParams::default())
        .await
        .expect_err("no rights");
    assert!(
        denied
            .to_string()
            .contains("User \"jane\" cannot list resource \"namespaces\""),
        "{denied}"
    );
}

#[tokio::test]
async fn a_service_account_is_who_its_token_says() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("access").await.expect("a namespace");
    let account = ServiceAccount {
        metadata: kube::api::ObjectMeta {
            name: Some("runner".to_owned()),
            ..Default::default()
        },
        ..Default::default()
    };
    namespace
        .api::<ServiceAccount>()
        .create(&PostParams::default(), &account)
        .await
        .expect("created");
    let client = cluster
        .service_account(namespace.name(), "runner")
        .await
        .expect("a client");
    assert_eq!(
        name_of(client).await.0,
        format!("system:serviceaccount:{}:runner", namespace.name())
    );
}

#[tokio::test]
async fn a_tests_namespace_goes_with_the_test() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("gone").await.expect("a namespace");
    let name = namespace.name().to_owned();
    let namespaces: Api<Namespace> = Api::all(cluster.admin());
    assert!(namespaces.get(&name).await.is_ok());
    drop(namespace);
    let phase = |it: &Namespace| it.status.as_ref().and_then(|it| it.phase.clone());
    let left = namespaces.get_opt(&name).await.expect("asked");
    assert!(left.is_none_or(|it| phase(&it).as_deref() == Some("Terminating")));
}

#[tokio::test]
async fn a_wait_that_ends_in_vain_shows_the_object_it_was_about() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("wait").await.expect("a namespace");
    let maps = namespace.api::<ConfigMap>();
    let deadline = Duration::from_secs(3);
    let absent = wait::until(&maps, "absent", "it is there", deadline, |_| true)
        .await
        .expect_err("never there");
    assert!(
        absent
            .to_string()
            .contains("it is there. absent as last seen: it was not there"),
        "{absent}"
    );

    let map = wait::until(
        &maps,
        "kube-root-ca.crt",
        "it has the CA",
        SECONDS_30,
        |it: &ConfigMap| it.data.is_some(),
    );
    assert!(
        map.await
            .expect("made by the controller manager")
            .data
            .expect("data")
            .contains_key("ca.crt")
    );
    let vain = wait::until(
        &maps,
        "kube-root-ca.crt",
        "it is empty",
        deadline,
        |it: &ConfigMap| it.data.is_none(),
    );
    assert!(
        vain.await
            .expect_err("it never is")
            .to_string()
            .contains("BEGIN CERTIFICATE")
    );
}
