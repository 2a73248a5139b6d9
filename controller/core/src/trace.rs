//! The trace of a WorkflowExecution, by W3C Trace Context.

/// The `traceparent` of what is done for the WorkflowExecution with this uid: the uid is the id of the
/// trace, its second half that of the root span. Every controller, also after a crash, and the
/// workflow itself are therefore in one trace. `None` if the uid is no UUID.
pub fn traceparent(uid: &str) -> Option<String> {
    let trace = uid.replace('-', "");
    let is_hex = trace.len() == 32 && trace.bytes().all(|it| it.is_ascii_hexdigit());
    let root = trace.get(16..).filter(|it| is_hex && !is_zero(it))?;
    Some(format!("00-{trace}-{root}-01").to_ascii_lowercase())
}

/// An id of zeros is invalid.
fn is_zero(id: &str) -> bool {
    id.bytes().all(|it| it == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_names_the_uid_as_trace() {
        let parent = traceparent("3F2504E0-4f89-41d3-9a0c-0305e82c3301");
        let expected = "00-3f2504e04f8941d39a0c0305e82c3301-9a0c0305e82c3301-01";
        assert_eq!(parent.as_deref(), Some(expected));
        for invalid in ["", "uid-1", "3f2504e0-4f89-41d3-0000-000000000000"] {
            assert_eq!(traceparent(invalid), None, "{invalid}");
        }
    }
}
