//! Durations in the format of the CRD: `90s`, `30m`, `1h30m`.

use std::time::Duration;

use jiff::SignedDuration;
use jiff::fmt::friendly::{Designator, Spacing, SpanPrinter};

use crate::pattern::pattern;

pattern!(
    /// `executionConfig.timeout`, in whole seconds like `activeDeadlineSeconds` of a Job.
    TIMEOUT, 32,
    "^([0-9]{1,5}h([0-9]{1,5}m)?([0-9]{1,5}s)?|[0-9]{1,5}m([0-9]{1,5}s)?|[0-9]{1,5}s)$",
    "a duration of whole hours, minutes and seconds from 1s to 24h, for example 90s, 30m or 1h30m"
);

/// CEL condition for the bounds.
pub(crate) const CEL_BOUNDS: &str =
    "duration(self) >= duration('1s') && duration(self) <= duration('24h')";

const MIN: Duration = Duration::from_secs(1);
const MAX: Duration = Duration::from_hours(24);

/// Maximum run time of an execution, from 1 s to 24 h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExecutionTimeout(Duration);

impl ExecutionTimeout {
    /// Parses a text that [`TIMEOUT`] accepts and that is within the bounds.
    pub fn parse(text: &str) -> Option<Self> {
        if !TIMEOUT.accepts(text) {
            return None;
        }
        let duration = Duration::try_from(text.parse::<SignedDuration>().ok()?).ok()?;
        (MIN..=MAX).contains(&duration).then_some(Self(duration))
    }

    /// The duration.
    pub fn get(self) -> Duration {
        self.0
    }
}

/// Formats a duration like the CRD, in whole seconds: `2m30s`, `0s`.
pub fn format(duration: Duration) -> String {
    let whole = SignedDuration::from_secs(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX));
    SpanPrinter::new()
        .designator(Designator::Compact)
        .spacing(Spacing::None)
        .duration_to_string(&whole)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn timeout_formatted_parses_to_same_duration(seconds in 1_u64..=86_400) {
            let duration = Duration::from_secs(seconds);
            prop_assert_eq!(ExecutionTimeout::parse(&format(duration)).map(ExecutionTimeout::get), Some(duration));
        }

        #[test]
        fn timeout_any_text_parses_without_panic(text in "\\PC*|[0-9]{0,30}[hms]{0,3}") {
            let _ = ExecutionTimeout::parse(&text);
        }
    }

    #[test]
    fn timeout_out_of_format_or_bounds_is_rejected() {
        for (text, seconds) in [
            ("90s", 90),
            ("30m", 1_800),
            ("30m0s", 1_800),
            ("1h30m", 5_400),
            ("24h", 86_400),
        ] {
            assert_eq!(
                ExecutionTimeout::parse(text).map(|it| it.get().as_secs()),
                Some(seconds),
                "{text}"
            );
        }
        for text in [
            "",
            "soon",
            "-5m",
            "0s",
            "168h",
            "24h1s",
            "1d",
            "1.5h",
            "90",
            "30m1h",
            "500ms",
            "1h 30m",
            "99999999999h",
        ] {
            assert_eq!(ExecutionTimeout::parse(text), None, "{text}");
        }
        assert_eq!(format(Duration::from_millis(150_900)), "2m30s");
        assert_eq!(format(Duration::ZERO), "0s");
    }
}
