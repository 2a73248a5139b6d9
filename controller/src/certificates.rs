//! The leader makes the webhook's certificate and the authority that signs it, keeps both in a Secret,
//! and publishes the authority in the webhook configurations. Each pass takes one step, so that a crash
//! between two steps leaves a state from which the next pass goes on.

mod authority;

use std::convert::Infallible;
use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use backon::{BackoffBuilder, ExponentialBuilder};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::discovery::ApiResource;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Event, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use wfe_core::certificates::{Lifetimes, Step, Stored, next};

use self::authority::Content;
use crate::args::CertificateArgs;
use crate::watches::every;

/// A wait is cut to this, so that a clock that was set is noticed.
const LONGEST_WAIT: Duration = Duration::from_hours(1);
/// Other writers may change the same objects again and again.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// Steps from nothing to a published authority and a certificate.
const MAX_STEPS: usize = 4;
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_mins(1);

/// Keeps the webhook's certificate valid.
pub struct Certificates {
    secrets: Api<Secret>,
    secret: String,
    /// One of each kind.
    configurations: [Api<DynamicObject>; 2],
    /// Name of both.
    configuration: String,
    /// Name in the certificate.
    host: String,
    lifetimes: Lifetimes,
}

impl Certificates {
    /// `None`: another makes the certificate.
    pub fn new(client: &Client, args: &CertificateArgs) -> Option<Self> {
        let namespace = client.default_namespace();
        let kinds = [
            ApiResource::erase::<MutatingWebhookConfiguration>(&()),
            ApiResource::erase::<ValidatingWebhookConfiguration>(&()),
        ];
        Some(Self {
            secrets: Api::default_namespaced(client.clone()),
            secret: args.certificate_secret.clone()?,
            configurations: kinds.map(|kind| Api::all_with(client.clone(), &kind)),
            configuration: args.webhook_configuration.clone(),
            host: format!("{}.{namespace}.svc", args.certificate_service),
            lifetimes: args.lifetimes(),
        })
    }

    /// Takes the next step whenever it is due or something has changed. Never returns.
    pub async fn run(&self) -> Infallible {
        let mut watched = vec![changes(&self.secrets, &self.secret)];
        let configurations = self.configurations.iter();
        watched.extend(configurations.map(|api| changes(api, &self.configuration)));
        let mut changes = select_all(watched);
        let backoff = || {
            let delays = ExponentialBuilder::default().with_min_delay(FIRST_DELAY);
            let delays = delays.with_max_delay(LONGEST_DELAY).without_max_times();
            delays.build()
        };
        let mut delays = backoff();
        loop {
            let wait = match self.pass().await {
                Ok(wait) => {
                    delays = backoff();
                    wait
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(
                        error,
                        "the webhook's certificate cannot be renewed, retrying"
                    );
                    delays.next().unwrap_or(LONGEST_DELAY)
                }
            };
            tokio::time::sleep(SHORTEST_WAIT).await;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Some(()) = changes.next() => {}
            }
        }
    }

    /// Takes steps until there is none to take; returns for how long.
    async fn pass(&self) -> Result<Duration> {
        for _ in 0..MAX_STEPS {
            let secret = self.secrets.get(&self.secret);
            let secret = secret.await.context("read the Secret")?;
            let content = Content::read(secret.data.as_ref());
            let bundle = STANDARD.encode(&content.authorities);
            let behind = self.behind(&bundle).await?;
            let stored = Stored {
                authority: content.authority(),
                serving: content.serving(&self.host),
                published: behind.is_empty(),
            };
            let now = Timestamp::now();
            let step = next(now, &self.lifetimes, &stored);
            let renewed = match step {
                Step::Wait(until) => {
                    let wait = until.duration_since(now).try_into().unwrap_or_default();
                    return Ok(LONGEST_WAIT.min(wait));
                }
                Step::Publish => {
                    for (api, webhooks) in behind {
                        self.publish(api, &webhooks, &bundle).await?;
                    }
                    continue;
                }
                Step::MakeAuthority => {
                    content.with_new_authority(&self.host, &self.lifetimes, now)?
                }
                Step::Sign => content.with_new_certificate(&self.host, &self.lifetimes, now)?,
            };
            // It has the resourceVersion that was read.
            let secret = Secret {
                data: Some(renewed.data()),
                ..secret
            };
            let parameters = PostParams::default();
            let written = self.secrets.replace(&self.secret, &parameters, &secret);
            written.await.context("write the Secret")?;
            tracing::info!(?step, secret = self.secret, "certificate renewed");
        }
        bail!("another program changes the Secret or the webhook configurations, too")
    }

    /// The configurations with a webhook that has another `bundle`, and the names of their webhooks. One
    /// that is not there yet calls no webhook.
    async fn behind(&self, bundle: &str) -> Result<Vec<(&Api<DynamicObject>, Vec<Value>)>> {
        let mut behind = Vec::new();
        for api in &self.configurations {
            let found = api.get_opt(&self.configuration).await;
            let Some(found) = found.context("read a webhook configuration")? else {
                continue;
            };
            let webhooks = found.data.get("webhooks").and_then(Value::as_array);
            let differs = |it: &Value| it.pointer("/clientConfig/caBundle") != Some(&json!(bundle));
            if webhooks.into_iter().flatten().any(differs) {
                let names = webhooks.into_iter().flatten();
                behind.push((
                    api,
                    names.filter_map(|it| it.get("name").cloned()).collect(),
                ));
            }
        }
        Ok(behind)
    }

    /// Writes `bundle` into each webhook of a configuration.
    async fn publish(
        &self,
        api: &Api<DynamicObject>,
        webhooks: &[Value],
        bundle: &str,
    ) -> Result<()> {
        let webhook = |name| json!({ "name": name, "clientConfig": { "caBundle": bundle } });
        let webhooks: Vec<_> = webhooks.iter().map(webhook).collect();
        // A webhook is found by its name.
        let patch = Patch::Strategic(json!({ "webhooks": webhooks }));
        let parameters = PatchParams::default();
        let patched = api.patch(&self.configuration, &parameters, &patch);
        patched.await.context("write a webhook configuration")?;
        tracing::info!(configuration = self.configuration, "authority published");
        Ok(())
    }
}

/// Yields whenever the object changes.
fn changes<K>(api: &Api<K>, name: &str) -> BoxStream<'static, ()>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let only = every().fields(&format!("metadata.name={name}"));
    let events = watcher(api.clone(), only).default_backoff();
    let changes = events.filter_map(async |event| match event {
        Ok(Event::Apply(_) | Event::Delete(_) | Event::InitDone) => Some(()),
        Ok(Event::Init | Event::InitApply(_)) => None,
        Err(error) => {
            tracing::warn!(%error, "a watch for the webhook's certificate failed, retrying");
            None
        }
    });
    changes.boxed()
}
