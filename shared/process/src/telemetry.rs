//! Structured logs on standard error; standard output is reserved for the results of commands. With
//! the feature `otel` also traces.

#[cfg(feature = "otel")]
mod otel;

use std::time::SystemTime;

use clap::ValueEnum;
use thiserror::Error;
use tracing::Span;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

/// Format of the logs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Human-readable text.
    Text,
}

/// Why the logs could not be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The filter is invalid.
    #[error("--log-filter: invalid value {filter:?}: use for example info,wfe_controller=debug")]
    Filter {
        /// Value of the flag.
        filter: String,
        /// The parse error.
        source: ParseError,
    },
    /// A global subscriber is already set.
    #[error("the logs are already set up")]
    Installed(#[from] TryInitError),
    /// The variables `OTEL_*` are invalid.
    #[cfg(feature = "otel")]
    #[error("the export of traces cannot start: check the environment variables OTEL_*")]
    Export(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Delivers the traces that are left when dropped.
#[must_use]
pub struct Telemetry {
    #[cfg(feature = "otel")]
    _exporting: Option<otel::Exporting>,
}

/// A span that has ended, and under which others may have been exported before.
pub struct Root {
    /// The ids of its trace and itself.
    pub traceparent: String,
    /// What it is about.
    pub name: String,
    /// When it began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// Why it failed.
    pub error: Option<String>,
    /// Its attributes.
    pub attributes: Vec<(&'static str, String)>,
}

/// Sets up the logs and traces of the process `service`. Must be called once.
pub fn init(
    service: &'static str,
    format: LogFormat,
    filter: &str,
) -> Result<Telemetry, TelemetryError> {
    let parsed = EnvFilter::builder()
        .parse(filter)
        .map_err(|source| TelemetryError::Filter {
            filter: filter.to_owned(),
            source,
        })?;
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
        LogFormat::Text => lines.boxed(),
    };
    let logs = registry().with(lines.with_filter(parsed));
    #[cfg(feature = "otel")]
    {
        let (exporting, spans) = otel::start(service)?;
        logs.with(spans).try_init()?;
        Ok(Telemetry {
            _exporting: exporting,
        })
    }
    #[cfg(not(feature = "otel"))]
    {
        let _ = service;
        logs.try_init()?;
        Ok(Telemetry {})
    }
}

/// Makes `span` a child of the span that `traceparent` (W3C Trace Context) names. Without the feature
/// `otel` it is not asked.
pub fn join(span: &Span, traceparent: impl FnOnce() -> Option<String>) {
    #[cfg(feature = "otel")]
    if let Some(traceparent) = traceparent() {
        otel::join(span, &traceparent);
    }
    #[cfg(not(feature = "otel"))]
    let _ = (span, traceparent);
}

/// Exports a span that has ended. Without the feature `otel` it is not asked.
pub fn export(root: impl FnOnce() -> Option<Root>) {
    #[cfg(feature = "otel")]
    if let Some(root) = root() {
        otel::export(root);
    }
    #[cfg(not(feature = "otel"))]
    let _ = root;
}
