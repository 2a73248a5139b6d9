//! The namespaces that a controller watches. A WorkflowExecution in another namespace is denied: no
//! controller would run it or remove its finalizer.

use crate::refusal::Refusal;

/// The namespaces that a controller watches; an empty list means all namespaces.
#[derive(Clone, Debug, Default)]
pub struct Scope(Vec<String>);

impl Scope {
    /// Watches `namespaces`; an empty list means all namespaces.
    pub fn of(namespaces: Vec<String>) -> Self {
        Self(namespaces)
    }

    /// The reason to deny a WorkflowExecution in `namespace`; empty if the namespace is watched.
    pub fn refusal(&self, namespace: &str) -> Vec<Refusal> {
        let watched = self.0.is_empty() || self.0.iter().any(|it| it == namespace);
        let refusal = (!watched).then(|| Refusal::NamespaceNotWatched {
            found: namespace.to_owned(),
            watched: self.0.clone(),
        });
        refusal.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BR-WE-001
    #[test]
    fn refusal_unwatched_namespace_names_the_watched_ones() {
        let scope = Scope::of(vec!["prod".to_owned(), "test".to_owned()]);
        assert_eq!(scope.refusal("prod"), []);
        let [refusal] = scope.refusal("dev").try_into().expect("one refusal");
        assert_eq!(
            refusal.to_string(),
            "unsupported value \"dev\": no controller watches this namespace; supported values are \"prod\", \"test\""
        );
        assert_eq!(Scope::default().refusal("dev"), []);
    }
}
