//! Spans for an OpenTelemetry collector, by OTLP over HTTP. The exporter reads the environment
//! variables `OTEL_*` of the specification; without an endpoint there are no spans.

use std::cell::Cell;
use std::collections::HashMap;
use std::env;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanId, Status, TraceContextExt, TraceId, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracerProvider};
use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use super::Root;

const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
const SCOPE: &str = "wfe";

thread_local! {
    /// The ids of the next span and the next trace of this thread, if they are not random.
    static NEXT_SPAN: Cell<Option<SpanId>> = const { Cell::new(None) };
    static NEXT_TRACE: Cell<Option<TraceId>> = const { Cell::new(None) };
}

/// Random ids, and those of the root spans.
#[derive(Debug, Default)]
struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        NEXT_TRACE.take().unwrap_or_else(|| self.0.new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        NEXT_SPAN.take().unwrap_or_else(|| self.0.new_span_id())
    }
}

/// Delivers the spans; when dropped, those that are left.
pub(super) struct Exporting(SdkTracerProvider);

impl Drop for Exporting {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            eprintln!("the last spans are lost: {error}");
        }
    }
}

/// Starts the export if an endpoint is set.
pub(super) fn start<S>(
    service: &'static str,
) -> Result<(Option<Exporting>, Option<impl Layer<S> + use<S>>), ExporterBuildError>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let is_set = |name: &&str| env::var_os(name).is_some_and(|it| !it.is_empty());
    if !ENDPOINTS.iter().any(is_set) {
        return Ok((None, None));
    }
    let mut resource = Resource::builder();
    if !is_set(&SERVICE_NAME) {
        resource = resource.with_service_name(service);
    }
    let provider = SdkTracerProvider::builder()
        .with_resource(resource.build())
        .with_id_generator(Ids::default())
        .with_batch_exporter(SpanExporter::builder().with_http().build()?)
        .build();
    global::set_tracer_provider(provider.clone());
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer(SCOPE));
    // The export makes requests, too: spans of its client would be exported again.
    let ours = filter_fn(|it| it.target().starts_with("wfe_") && *it.level() <= LevelFilter::DEBUG);
    Ok((Some(Exporting(provider)), Some(layer.with_filter(ours))))
}

/// Makes `span` a child of the span that `traceparent` names.
pub(super) fn join(span: &Span, traceparent: &str) {
    // A disabled span has no parent.
    let _ = span.set_parent(context(traceparent));
}

/// Exports the span that `root.traceparent` names.
pub(super) fn export(root: Root) {
    let named = context(&root.traceparent).span().span_context().clone();
    let attributes = root.attributes.into_iter();
    let builder = SpanBuilder::from_name(root.name)
        .with_start_time(root.began)
        .with_attributes(attributes.map(|(key, value)| KeyValue::new(key, value)));
    NEXT_SPAN.set(Some(named.span_id()));
    NEXT_TRACE.set(Some(named.trace_id()));
    let mut span = global::tracer(SCOPE).build_with_context(builder, &Context::new());
    if let Some(error) = root.error {
        span.set_status(Status::error(error));
    }
    span.end_with_timestamp(root.ended);
}

fn context(traceparent: &str) -> Context {
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract(&carrier)
}
