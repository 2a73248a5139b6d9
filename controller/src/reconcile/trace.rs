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
    if let Some(parent) = metadata.uid.as_deref().and_then(traceparent) {
        telemetry::join(&span, &parent);
    }
    span
}

/// Exports the span of a WorkflowExecution that has ended.
pub(super) fn ended(wfe: &WorkflowExecution) {
    let metadata = &wfe.metadata;
    let parent = metadata.uid.as_deref().and_then(traceparent);
    let Some((traceparent, created)) = parent.zip(metadata.creation_timestamp.as_ref()) else {
        return;
    };
    let phase = wfe.phase().map(Phase::as_str).unwrap_or_default();
    let failed = wfe
        .status
        .as_ref()
        .and_then(|it| it.failure_details.as_ref());
    telemetry::export(Root {
        traceparent: &traceparent,
        name: "WorkflowExecution".to_owned(),
        began: created.0.into(),
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
    });
}
