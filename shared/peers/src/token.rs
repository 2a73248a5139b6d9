//! Bearer tokens for the services around wfe. A token is sent to them and could be replayed, so the programs'
//! own tokens are never used: a ServiceAccount that may do nothing else has a token of its own.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use wfe_model::text::in_full;

/// Lifetime that is asked for; the API server may grant another.
const LIFETIME_SECONDS: i64 = 3600;
/// A token is replaced when this share of its lifetime is over.
const USED_SHARE: f64 = 0.8;

/// Where the bearer token for a service comes from.
#[derive(Debug)]
pub enum BearerToken {
    /// A file, read for each request, because the token rotates.
    File(PathBuf),
    /// A ServiceAccount, by `TokenRequest`.
    Account(Box<AccountToken>),
}

impl BearerToken {
    /// From `file` if there is one, else tokens of the ServiceAccount `account` in the namespace of
    /// `client`.
    pub fn of(client: &Client, file: Option<&Path>, account: &str) -> Self {
        match file {
            Some(file) => Self::File(file.to_owned()),
            None => Self::Account(Box::new(AccountToken::new(client, account))),
        }
    }

    /// The token for the next request.
    pub async fn get(&self) -> Result<String, String> {
        match self {
            Self::File(path) => {
                let token = tokio::fs::read_to_string(path).await;
                let token = token.map_err(|error| format!("read {}: {error}", path.display()))?;
                Ok(token.trim().to_owned())
            }
            Self::Account(account) => account.get().await,
        }
    }

    /// Forgets the token, which the service did not accept.
    pub fn reject(&self) {
        if let Self::Account(account) = self {
            *account.issued.lock() = None;
        }
    }
}

/// The token of a ServiceAccount. Takes the verb `create` on `serviceaccounts/token` of this name.
#[derive(Debug)]
pub struct AccountToken {
    accounts: Api<ServiceAccount>,
    name: String,
    issued: Mutex<Option<Issued>>,
}

#[derive(Clone, Debug)]
struct Issued {
    token: String,
    replace_at: Instant,
}

impl AccountToken {
    /// A token of the ServiceAccount `name` in the namespace of `client`.
    pub fn new(client: &Client, name: &str) -> Self {
        Self {
            accounts: Api::default_namespaced(client.clone()),
            name: name.to_owned(),
            issued: Mutex::default(),
        }
    }

    async fn get(&self) -> Result<String, String> {
        let issued = self.issued.lock().clone();
        if let Some(issued) = issued.filter(|it| Instant::now() < it.replace_at) {
            return Ok(issued.token);
        }
        let issued = self.request().await?;
        *self.issued.lock() = Some(issued.clone());
        Ok(issued.token)
    }

    async fn request(&self) -> Result<Issued, String> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(LIFETIME_SECONDS),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let (name, asked) = (&self.name, Instant::now());
        let parameters = PostParams::default();
        let answer = self
            .accounts
            .create_token_request(name, &parameters, &request);
        let answer = answer.await;
        let failed = |why: &str| format!("request a token of ServiceAccount {name}: {why}");
        let answer = answer.map_err(|error| failed(&in_full(&error)))?;
        let granted = answer.spec.expiration_seconds.unwrap_or(LIFETIME_SECONDS);
        let lifetime = Duration::from_secs(u64::try_from(granted).unwrap_or_default());
        let status = answer
            .status
            .ok_or_else(|| failed("the response has no status"))?;
        Ok(Issued {
            token: status.token,
            replace_at: asked + lifetime.mul_f64(USED_SHARE),
        })
    }
}
