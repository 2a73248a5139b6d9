//! Text patterns that are declared once and enforced twice: by the API server as a CEL rule of the
//! CRD, and by this crate as a regular expression. Both regular expression engines have RE2 syntax
//! and run in linear time; acceptance tests compare their results on generated strings.

use std::sync::LazyLock;

use kube::core::Rule;
use regex::Regex;

/// A rule for a whole text: regular expression, maximum length and message.
#[derive(Debug)]
pub struct Pattern {
    /// Anchored regular expression, without `'`, because CEL quotes it in `'`.
    pub expression: &'static str,
    /// Maximum length in characters.
    pub max_length: usize,
    /// What is allowed, as a continuation of "must be".
    pub allowed: &'static str,
    /// `expression`, compiled on first use.
    pub regex: LazyLock<Option<Regex>>,
}

impl Pattern {
    /// Whether `text` matches the expression and is not too long.
    pub fn accepts(&self, text: &str) -> bool {
        // An invalid expression accepts nothing; a unit test compiles every expression.
        text.chars().count() <= self.max_length
            && self
                .regex
                .as_ref()
                .is_some_and(|regex| regex.is_match(text))
    }

    /// The rule in CEL, without the length, which the schema has as `maxLength`.
    pub fn cel(&self) -> Rule {
        Rule::new(format!("self.matches(r'{}')", self.expression)).message(&*self.message())
    }

    /// [`cel`](Self::cel) and a further condition in CEL.
    pub fn cel_and(&self, condition: &str) -> Rule {
        let mut rule = self.cel();
        rule.rule = format!("{} && {condition}", rule.rule);
        rule
    }

    /// The message of the CEL rule and of the violation.
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
    fn patterns_all_compile_and_can_be_quoted_in_cel() {
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
