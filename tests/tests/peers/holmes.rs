//! The client of HolmesGPT-API.

use std::collections::HashSet;

use wfe_peers::holmes::{Holmes as Client, HolmesError, IncidentRequest, Session};
use wfe_peers::service::{PlainHttp, ServiceOptions};
use wfe_peers::token::BearerToken;
use wfe_platform::authorizer::Authorizer;
use wfe_platform::holmes::Holmes;

/// HolmesGPT-API authenticates its clients, as Data Storage does.
#[tokio::test]
async fn session_takes_a_token_that_the_service_accepts() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tokens = Authorizer::Tokens(HashSet::from(["good".to_owned()]));
    let holmes = Holmes::start_for("127.0.0.1", Some(tokens)).await;
    let holmes = holmes.expect("started");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("token");
    let client = |token: Option<BearerToken>, plain_http| {
        Client::new(ServiceOptions {
            url: holmes.url().parse().expect("a URL"),
            ca: None,
            token,
            plain_http: PlainHttp::flag("--holmes-plain-http", plain_http),
        })
    };
    let token = || Some(BearerToken::File(file.clone()));
    let refused = client(token(), false).expect_err("over plain HTTP");
    assert!(
        refused.to_string().contains("--holmes-plain-http"),
        "{refused}"
    );

    let incident = IncidentRequest::default();
    let without = client(None, true).expect("a client");
    let error = without.analyze(&incident).await.expect_err("no token");
    assert!(matches!(error, HolmesError::Unavailable(_)), "{error}");
    assert!(error.to_string().contains("401"), "{error}");

    let client = client(token(), true).expect("a client");
    for (token, admitted) in [("bad", false), ("good", true)] {
        std::fs::write(&file, token).expect("written");
        assert_eq!(client.analyze(&incident).await.is_ok(), admitted, "{token}");
    }
    let session = client.analyze(&incident).await.expect("begun");
    let state = client.session(&session).await.expect("a state");
    assert_eq!(state, Session::Completed);
}
