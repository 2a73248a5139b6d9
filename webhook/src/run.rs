//! Builds the webhook from its arguments and runs it.

use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use wfe_peers::client;
use wfe_peers::discovery::ServedKinds;
use wfe_process::endpoints::Readiness;
use wfe_process::server::{self, Limits};
use wfe_process::shutdown;

use crate::args::Args;
use crate::certificate::{self, Reload, ServingCertificate};
use crate::clients::KnownClients;
use crate::lookups::Lookups;
use crate::metrics::Metrics;
use crate::mutate::Mutator;
use crate::routes::ReviewService;
use crate::scope::Scope;
use crate::targets::Targets;
use crate::validate::Validator;

/// Readiness checks, named in the response of `/readyz` while they fail.
const CERTIFICATE_VALID: &str = "certificate-valid";
const NOT_SHUTTING_DOWN: &str = "not-shutting-down";

/// Deadline of a request to Data Storage, within that of a review.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(2);

/// Serves admission reviews until SIGTERM or SIGINT.
pub async fn run(args: Args) -> Result<()> {
    let stop = shutdown::on_signal()?;
    let serving_ended = CancellationToken::new();
    let certificate = ServingCertificate::load(&args.cert_dir).context("--cert-dir")?;
    let known_clients = args.client_ca.as_deref();
    let known_clients = known_clients.map(|path| KnownClients::load(path, args.client_name));
    let known_clients = known_clients.transpose().context("--client-ca")?;
    let client = client::connect().await?;
    client::check_apart(&client, &args.execution.execution_namespace)?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let readiness = Readiness::of(&[CERTIFICATE_VALID, NOT_SHUTTING_DOWN]);
    let (rejected, noted) = (metrics.catalog_rejected_entries.clone(), readiness.clone());
    let server = args.data_storage.connect(&client);
    let catalog = args.catalog.open(
        &client,
        server.context("--data-storage-url")?,
        LOOKUP_DEADLINE,
        serving_ended.clone(),
        move |errors| noted.report_rejected_entries(&rejected, errors),
    )?;
    let scope = Scope::of(args.watch_namespace);
    let mutator = Mutator {
        catalog: catalog.clone(),
        image_digest: args.image_digest,
        scope: scope.clone(),
    };
    let kinds = ServedKinds::new(&client);
    let validator = Validator {
        catalog,
        targets: Targets::new(kinds.clone()),
        kinds,
        lookups: Lookups::start(
            &client,
            &args.execution.execution_namespace,
            serving_ended.clone(),
        ),
        default_service_account: args.execution.default_service_account,
        on_outage: args.on_catalog_outage,
        scope,
    };
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("--listen {}", args.listen))?;
    let endpoints = args
        .process
        .serve(readiness.clone(), registry, &serving_ended);
    endpoints.await?;
    readiness.set(NOT_SHUTTING_DOWN, true);
    tokio::spawn({
        let (stop, readiness) = (stop.clone(), readiness.clone());
        async move {
            stop.cancelled().await;
            readiness.set(NOT_SHUTTING_DOWN, false);
        }
    });
    let observe = {
        let metrics = metrics.clone();
        move |certificate: &ServingCertificate| {
            observe_certificate(certificate, &metrics, &readiness);
        }
    };
    let reload = Reload {
        certificate: certificate.clone(),
        known_clients: known_clients.clone(),
    };
    tokio::spawn(reload.on_change(stop.clone(), observe));
    tracing::info!(address = %args.listen, "serving admission reviews");
    let routes = ReviewService::new(mutator, validator, metrics).routes();
    let limits = Limits::default();
    let tls = certificate::tls(certificate, known_clients);
    server::serve(listener, Some(tls), routes, limits, stop).await;
    serving_ended.cancel();
    tracing::info!("shutdown complete");
    Ok(())
}

fn observe_certificate(certificate: &ServingCertificate, metrics: &Metrics, readiness: &Readiness) {
    // A certificate that cannot be parsed counts as expired.
    let validity = certificate.validity().unwrap_or(0..0);
    let now = Timestamp::now().as_second();
    #[expect(
        clippy::cast_precision_loss,
        reason = "seconds since the Unix epoch fit into 52 bits"
    )]
    metrics.certificate_expiry.set(validity.end as f64);
    readiness.set(CERTIFICATE_VALID, validity.contains(&now));
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Request, StatusCode};
    use prometheus_client::encoding::text::encode;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tower::ServiceExt;
    use wfe_process::endpoints::health;

    use super::*;

    /// Status of `/readyz`, and the metrics, with a certificate valid from one year until another.
    async fn observed(from: i32, until: i32) -> (StatusCode, String) {
        let directory = tempfile::tempdir().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("parameters");
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        let write = |name: &str, pem| std::fs::write(directory.path().join(name), pem);
        write("tls.crt", certificate).expect("written");
        write("tls.key", key.serialize_pem()).expect("written");
        let certificate = ServingCertificate::load(directory.path()).expect("loaded");
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let readiness = Readiness::of(&[CERTIFICATE_VALID]);
        observe_certificate(&certificate, &metrics, &readiness);
        let request = Request::get("/readyz").body(Body::empty());
        let response = health(readiness).oneshot(request.expect("a request")).await;
        let mut text = String::new();
        encode(&mut text, &registry).expect("metrics");
        (response.expect("a response").status(), text)
    }

    #[tokio::test]
    async fn readiness_invalid_certificate_is_unready_and_expiry_is_exported() {
        assert_eq!(observed(2020, 2999).await.0, StatusCode::OK);
        assert_eq!(
            observed(2998, 2999).await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        let (expired, metrics) = observed(2020, 2021).await;
        assert_eq!(expired, StatusCode::SERVICE_UNAVAILABLE);
        let end = "wfe_webhook_certificate_expiry_timestamp_seconds 1609459200";
        assert!(metrics.contains(end), "{metrics}");
    }
}
