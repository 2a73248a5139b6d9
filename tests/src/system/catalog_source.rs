//! Which catalog the programs use.

/// Where the programs of a [`System`](super::System) look workflows up, from their next start on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum CatalogSource {
    /// A directory of documents.
    #[default]
    Directory,
    /// RemediationWorkflow objects in the namespace of the programs.
    Objects,
    /// The fake Data Storage, which must have been started.
    DataStorage,
}
