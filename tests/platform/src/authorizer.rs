//! How the stand-ins authenticate and authorize their clients: as the real services do, by the API server.

use std::collections::HashSet;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

/// How clients are authenticated and authorized.
pub enum Authorizer {
    /// Clients with one of these tokens are authorized.
    Tokens(HashSet<String>),
    /// `TokenReview` authenticates the client; `SubjectAccessReview` checks for a verb on a Service in this
    /// namespace.
    Kubernetes(Client, String),
}

impl Authorizer {
    /// Authenticates a client, and authorizes it for `verb` on `service`. The error is the status of the
    /// response, and why.
    pub(crate) async fn admit(
        &self,
        headers: &HeaderMap,
        verb: &str,
        service: &str,
    ) -> Result<(), (StatusCode, String)> {
        let no = |why: &str| Err((StatusCode::UNAUTHORIZED, why.to_owned()));
        let Some(header) = headers.get(AUTHORIZATION) else {
            return no("Missing Authorization header");
        };
        let token = header
            .to_str()
            .ok()
            .and_then(|it| it.strip_prefix("Bearer "));
        let Some(token) = token.filter(|it| !it.is_empty()) else {
            return no("Invalid Authorization header format");
        };
        let (client, namespace) = match self {
            Self::Tokens(tokens) if tokens.contains(token) => return Ok(()),
            Self::Tokens(_) => return no("Token validation failed: token not authenticated"),
            Self::Kubernetes(client, namespace) => (client, namespace),
        };
        let Some(user) = user_of(client, token).await else {
            return no("Token validation failed: token not authenticated");
        };
        if !may(client, &user, verb, namespace, service).await {
            let why =
                format!("Insufficient RBAC permissions: {user} verb:{verb} on services/{service}");
            return Err((StatusCode::FORBIDDEN, why));
        }
        Ok(())
    }
}

/// The user that `TokenReview` finds for a token.
async fn user_of(client: &Client, token: &str) -> Option<String> {
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: None,
        },
        ..TokenReview::default()
    };
    let reviews: Api<TokenReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await;
    let status = answer.ok()?.status?;
    let user = status.user.filter(|_| status.authenticated == Some(true))?;
    user.username
}

/// Whether `SubjectAccessReview` lets the user create the Service. Like the real service, sends no
/// Whether `SubjectAccessReview` lets the user do this to the Service. Like the real service, sends no
/// groups.
async fn may(client: &Client, user: &str, verb: &str, namespace: &str, service: &str) -> bool {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.to_owned()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                resource: Some("services".to_owned()),
                name: Some(service.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await;
    let status = answer.ok().and_then(|it| it.status);
    status.is_some_and(|it| it.allowed)
}
