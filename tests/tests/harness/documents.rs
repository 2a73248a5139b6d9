//! Documents stay true: each file that they name exists, and each link leads somewhere.

use std::fs;
use std::path::PathBuf;

use crate::sources::workspace;

/// Short paths that the documents use, and what they stand for.
const SHORT: [(&str, &str); 10] = [
    ("model/", "shared/model/src/"),
    ("peers/", "shared/peers/src/"),
    ("process/", "shared/process/src/"),
    ("core/", "controller/core/src/"),
    ("controller/", "controller/src/"),
    ("webhook/", "webhook/src/"),
    ("chart/", "charts/workflow-execution/"),
    ("suites/", "tests/tests/"),
    ("platform/", "tests/platform/src/"),
    ("orchestration/", "controller/orchestration/src/"),
];

fn documents() -> Vec<PathBuf> {
    let folders = ["", "docs", "docs/decisions"].map(|it| workspace().join(it));
    let entries = folders
        .iter()
        .flat_map(|it| fs::read_dir(it).expect("a folder"));
    let paths = entries.map(|it| it.expect("an entry").path());
    paths
        .filter(|it| it.extension().is_some_and(|it| it == "md"))
        .collect()
}

/// Files in backticks: with a folder and an extension, and without a placeholder.
fn files(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|it| {
        let is_path = it.contains('/') && !it.contains(['<', '*', '{', ' ', ':', '$', '…']);
        is_path
            && [".rs", ".md", ".yaml", ".toml", ".sh"]
                .iter()
                .any(|end| it.ends_with(end))
    })
}

fn exists(file: &str) -> bool {
    let written = workspace().join(file).exists();
    let expanded = SHORT.iter().filter_map(|(short, full)| {
        Some(workspace().join(format!("{full}{}", file.strip_prefix(short)?)))
    });
    written || expanded.into_iter().any(|it| it.exists())
}

/// Targets of links to files of the repository.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|it| it.split(')').next());
    targets.filter(|it| !it.contains("://") && !it.starts_with('#'))
}

/// Documentation: a file that a document names exists.
#[test]
fn documents_name_only_files_that_exist() {
    let mut missing = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).expect("text");
        let name = document
            .file_name()
            .unwrap_or_default()
            .display()
            .to_string();
        let not_there = files(&text).filter(|it| !exists(it));
        missing.extend(not_there.map(|it| format!("{name}: {it}")));
        let folder = document.parent().expect("a folder");
        let broken = links(&text).filter(|it| {
            let path = it.split('#').next().unwrap_or_default();
            !folder.join(path).exists()
        });
        missing.extend(broken.map(|it| format!("{name}: link to {it}")));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
