//! The sources of the workspace, as the checks of this suite read them.

use std::fs;
use std::path::{Path, PathBuf};

use syn::Attribute;

/// The folder of the workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A parsed file.
pub(crate) fn parse(file: &Path) -> syn::File {
    let text = fs::read_to_string(file).map_err(|error| error.to_string());
    let parsed = text.and_then(|text| syn::parse_file(&text).map_err(|error| error.to_string()));
    parsed.unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Whether an item is compiled for tests only, or is a test.
pub(crate) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|it| {
        let path = it.path();
        path.is_ident("test")
            || path.is_ident("cfg")
                && it
                    .parse_args::<syn::Path>()
                    .is_ok_and(|it| it.is_ident("test"))
    })
}

/// Checks that a file is what was generated from the sources; `make generate` lets it be written.
pub(crate) fn is_stored(file: &str, document: &str) {
    let path = workspace().join(file);
    if std::env::var_os("WFE_WRITE_DOCUMENTS").is_some() {
        fs::write(&path, document).expect("written");
        return;
    }
    let stored = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == document,
        "{file} is old: run `make generate` and read the difference"
    );
}
