//! Reads the responses of the services around wfe: bodies of a bounded length, and problem details.

use futures::StreamExt;
use reqwest::Response;
use serde::Deserialize;
use wfe_model::text::cut;

/// Maximum length of the detail of an error response; the rest repeats the values that were sent.
const MAX_DETAIL_LENGTH: usize = 200;

/// Problem details (RFC 9457).
#[derive(Deserialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: Option<String>,
    title: Option<String>,
    detail: Option<String>,
}

/// An error response.
pub(crate) struct Refused {
    /// `type` of the problem details.
    pub kind: String,
    /// Describes the response in one line, without values that were sent.
    pub text: String,
}

/// Reads an error response of `service`.
pub(crate) async fn refused(service: &str, response: Response) -> Refused {
    /// Longer error responses repeat the values that were sent.
    const MAX_BODY_BYTES: usize = 1 << 16;
    let status = response.status();
    let body = read_body(response, MAX_BODY_BYTES).await;
    let body = body.unwrap_or_else(|part| part);
    let problem: Option<Problem> = serde_json::from_slice(&body).ok();
    let (kind, detail) = problem.map_or((None, None), |it| (it.kind, it.detail.or(it.title)));
    let detail = detail.as_deref().and_then(|it| it.lines().next());
    let detail = detail.map(|it| format!(": {}", cut(it, MAX_DETAIL_LENGTH)));
    let detail = detail.unwrap_or_default();
    Refused {
        kind: kind.unwrap_or_default(),
        text: format!("{service} responded with {status}{detail}"),
    }
}

/// The body of a response, or what was received of one that is longer or breaks off.
pub(crate) async fn read_body(response: Response, maximum: usize) -> Result<Vec<u8>, Vec<u8>> {
    let mut body = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(bytes) = stream.next().await {
        let Ok(bytes) = bytes else { return Err(body) };
        body.extend_from_slice(&bytes);
        if body.len() > maximum {
            return Err(body);
        }
    }
    Ok(body)
}
