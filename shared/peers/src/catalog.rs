//! The workflow catalog.

mod circuit;
mod data_storage;
mod directory;
mod objects;
mod source;

pub use self::data_storage::DataStorageCatalog;
pub use self::directory::{DirectoryCatalog, DirectoryError};
pub use self::objects::ObjectCatalog;
pub use self::source::{Catalog, Lookup, LookupError, OnRejected};
