//! The spans of a WorkflowExecution: one for each pass, and one for all from its creation to its end.

use std::time::SystemTime;

use tracing::Span;
use wfe_core::trace::traceparent;
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_process::telemetry::{self, Root};

/// The span of a pass.
pub(super) fn pass(wfe: &WorkflowExecution) -> Span {
    let metadata = &wfe.metadata;
    let span = tracing::info_span!(
        "reconcile",
        namespace = metadata.namespace,
        // `name` would be hidden by the name of the span in JSON.
        wfe = metadata.name
    );
    telemetry::join(&span, || traceparent(metadata.uid.as_deref()?));
    span
}

/// Exports the span of a WorkflowExecution that has ended.
pub(super) fn ended(wfe: &WorkflowExecution) {
    telemetry::export(|| root(wfe));
}

fn root(wfe: &WorkflowExecution) -> Option<Root> {
    let metadata = &wfe.metadata;
    let phase = wfe.phase().map(Phase::as_str).unwrap_or_default();
    let failed = wfe
        .status
        .as_ref()
        .and_then(|it| it.failure_details.as_ref());
    Some(Root {
        traceparent: traceparent(metadata.uid.as_deref()?)?,
        name: "WorkflowExecution".to_owned(),
        began: metadata.creation_timestamp.as_ref()?.0.into(),
        ended: SystemTime::now(),
        error: failed.map(|it| it.message.clone()),
        attributes: vec![
            (
                "k8s.namespace.name",
                metadata.namespace.clone().unwrap_or_default(),
            ),
            ("wfe.name", metadata.name.clone().unwrap_or_default()),
            ("wfe.phase", phase.to_owned()),
            ("wfe.engine", wfe.spec.execution_engine.clone()),
            ("wfe.target", wfe.spec.target_resource.clone()),
        ],
    })
}
