//! The test harness: client identities, test namespaces, waiting for objects.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use wfe_tests::{Cluster, wait};

use crate::setup::SECONDS_30;

async fn identity_of(client: Client) -> (String, Vec<String>) {
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
async fn user_client_has_certificate_identity_and_no_permissions() {
    let cluster = Cluster::connect().await;
    let client = cluster
        .user("jane", Some("operators"))
        .await
        .expect("a client");
    let (name, groups) = identity_of(client.clone()).await;
    assert_eq!(name, "jane");
    assert!(groups.contains(&"operators".to_owned()), "{groups:?}");
    let denied = Api::<Namespace>::all(client)
        .list(&ListParams::default())
        .await
        .expect_err("no permissions");
    assert!(
        denied
            .to_string()
            .contains("User \"jane\" cannot list resource \"namespaces\""),
        "{denied}"
    );
}

#[tokio::test]
async fn service_account_client_has_token_identity() {
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
        identity_of(client).await.0,
        format!("system:serviceaccount:{}:runner", namespace.name())
    );
}

#[tokio::test]
async fn test_namespace_dropped_is_deleted() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("gone").await.expect("a namespace");
    let name = namespace.name().to_owned();
    let namespaces: Api<Namespace> = Api::all(cluster.admin());
    assert!(namespaces.get(&name).await.is_ok());
    drop(namespace);
    let phase = |it: &Namespace| it.status.as_ref().and_then(|it| it.phase.clone());
    let remaining = namespaces.get_opt(&name).await.expect("read");
    assert!(remaining.is_none_or(|it| phase(&it).as_deref() == Some("Terminating")));
}

#[tokio::test]
async fn wait_timeout_error_contains_last_seen_object() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("wait").await.expect("a namespace");
    let maps = namespace.api::<ConfigMap>();
    let deadline = Duration::from_secs(3);
    let absent = wait::until(&maps, "absent", "the ConfigMap exists", deadline, |_| true)
        .await
        .expect_err("does not exist");
    assert!(
        absent
            .to_string()
            .contains("the ConfigMap exists. absent as last seen: the object does not exist"),
        "{absent}"
    );

    let map = wait::until(
        &maps,
        "kube-root-ca.crt",
        "the ConfigMap has the CA",
        SECONDS_30,
        |it: &ConfigMap| it.data.is_some(),
    );
    assert!(
        map.await
            .expect("created by kube-controller-manager")
            .data
            .expect("data")
            .contains_key("ca.crt")
    );
    let timed_out = wait::until(
        &maps,
        "kube-root-ca.crt",
        "the ConfigMap is empty",
        deadline,
        |it: &ConfigMap| it.data.is_none(),
    );
    assert!(
        timed_out
            .await
            .expect_err("never empty")
            .to_string()
            .contains("BEGIN CERTIFICATE")
    );
}
