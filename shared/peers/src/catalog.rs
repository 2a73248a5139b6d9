//! The workflow catalog.

mod directory;
mod source;

pub use self::directory::{DirectoryCatalog, DirectoryError};
pub use self::source::{Catalog, CatalogUnavailable};
