//! A text rule that is written once and holds twice: as a CEL rule in the CRD, where the API
//! server evaluates it, and as a regular expression here. Both engines are RE2-like and linear,
//! and the tests compare their verdicts on generated strings.

use std::sync::LazyLock;

use kube::core::Rule;
use regex::Regex;

/// A rule for a whole text: what is matched, how long it may be, and the sentence that says so.
#[derive(Debug)]
pub struct Pattern {
    /// Anchored regular expression, without `'` (it stands in a CEL string).
    pub expression: &'static str,
    /// Upper bound in characters.
    pub max_length: usize,
    /// What is allowed, as the end of "… must be".
    pub allowed: &'static str,
    /// `expression`, compiled at first use.
    pub regex: LazyLock<Option<Regex>>,
}

impl Pattern {
    /// Whether `text` fits expression and length.
    pub fn accepts(&self, text: &str) -> bool {
        // An expression that does not compile accepts nothing; a test compiles every one.
        text.chars().count() <= self.max_length
            && self
                .regex
                .as_ref()
                .is_some_and(|regex| regex.is_match(text))
    }

    /// The same rule for the API server; the length stands beside it as `maxLength`.
    pub fn cel(&self) -> Rule {
        Rule::new(format!("self.matches(r'{}')", self.expression)).message(&*self.message())
    }

    /// [`cel`](Self::cel), and what a regular expression cannot say, in CEL.
    pub fn cel_and(&self, condition: &str) -> Rule {
        let mut rule = self.cel();
        rule.rule = format!("{} && {condition}", rule.rule);
        rule
    }

    /// The sentence both report.
    pub fn message(&self) -> String {
        format!("must be {}", self.allowed)
    }
}

/// Declares a [`Pattern`] as a static.
macro_rules! pattern {
    ($(#[$doc:meta])* $name:ident, $max_length:expr, $expression:expr, $allowed:expr) => {
        $(#[$doc])*
        pub static $name: $crate::pattern::Pattern = $crate::pattern::Pattern {
            expression: $expression,
            max_length: $max_length,
            allowed: $allowed,
            regex: std::sync::LazyLock::new(|| regex::Regex::new($expression).ok()),
        };
    };
}
pub(crate) use pattern;

pattern!(
    /// The name of a Kubernetes object (DNS-1123 subdomain).
    OBJECT_NAME, 253,
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    "the name of a Kubernetes object: lower-case letters, digits, - and ., at most 253 characters"
);

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn every_pattern_compiles_and_fits_into_a_cel_string() {
        let all: [&Pattern; 7] = [
            &crate::image::IMAGE,
            &crate::image::BUNDLE,
            &crate::target::TARGET,
            &crate::duration::TIMEOUT,
            &crate::parameters::PARAMETER_NAME,
            &super::OBJECT_NAME,
            &crate::workflow::QUANTITY,
        ];
        for pattern in all {
            assert!(pattern.regex.is_some(), "{}", pattern.expression);
            assert!(pattern.expression.starts_with('^') && pattern.expression.ends_with('$'));
            assert!(!pattern.expression.contains('\''), "{}", pattern.expression);
        }
    }
}
