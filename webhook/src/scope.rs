//! Where WorkflowExecutions are run: one in a namespace that no controller watches would wait for
//! ever, with a finalizer that nobody takes off.

use crate::refusal::Refusal;

/// The namespaces that a controller watches; all, where none is named.
#[derive(Clone, Debug, Default)]
pub struct Scope(Vec<String>);

impl Scope {
    /// These; all, where there are none.
    pub fn of(namespaces: Vec<String>) -> Self {
        Self(namespaces)
    }

    /// Why nothing is run in `namespace`; empty where something is.
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

    #[test]
    fn br_we_001_only_where_a_controller_watches() {
        let scope = Scope::of(vec!["prod".to_owned(), "test".to_owned()]);
        assert_eq!(scope.refusal("prod"), []);
        let [refusal] = scope.refusal("dev").try_into().expect("one");
        assert_eq!(
            refusal.to_string(),
            "no controller watches namespace \"dev\": use one of prod, test"
        );
        assert_eq!(Scope::default().refusal("dev"), []);
    }
}
