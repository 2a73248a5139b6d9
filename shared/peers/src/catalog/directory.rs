//! A catalog in a directory of workflow documents, for example a mounted ConfigMap.
//!
//! A lookup checks for changed files at most once per second, with one `stat` per file, and reloads
//! the directory if there are any. If the reload fails, the catalog keeps the previous workflows.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use parking_lot::Mutex;
use thiserror::Error;
use wfe_model::workflow::{ReadWorkflow, Workflow, WorkflowError};

use super::source::{Catalog, CatalogUnavailable};
use wfe_model::text::in_full;

/// Why a directory cannot be loaded as a catalog.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// The directory or a file could not be read.
    #[error("read {}", path.display())]
    Read {
        /// Path of the file or directory.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// Files have invalid workflow documents.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Workflows(Vec<WorkflowError>),
    /// Two files have the same workflow id.
    #[error("{}: duplicate workflowId {workflow_id:?}, also in {}: remove one of the files", second.display(), first.display())]
    Duplicate {
        /// The duplicate id.
        workflow_id: String,
        /// The first file with the id.
        first: PathBuf,
        /// The second file with the id.
        second: PathBuf,
    },
}

/// Minimum interval between two checks for changed files.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

type Entries = HashMap<String, Arc<Workflow>>;
/// Path, modification time and size of each file: a change of any of them triggers a reload.
type Fingerprint = Vec<(PathBuf, SystemTime, u64)>;

/// A catalog in a directory.
#[derive(Debug)]
pub struct DirectoryCatalog {
    directory: PathBuf,
    check_interval: Duration,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    fingerprint: Fingerprint,
    entries: Arc<Entries>,
    checked_at: Instant,
}

impl DirectoryCatalog {
    /// Loads the directory. The error has the problems of all invalid files.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, DirectoryError> {
        let directory = directory.into();
        let fingerprint = fingerprint(&directory)?;
        let entries = read(&fingerprint)?;
        tracing::info!(directory = %directory.display(), workflows = entries.len(), "workflow catalog loaded");
        Ok(Self {
            directory,
            check_interval: CHECK_INTERVAL,
            loaded: Mutex::new(Loaded {
                fingerprint,
                entries: Arc::new(entries),
                checked_at: Instant::now(),
            }),
        })
    }

    /// The workflows, reloaded if a file has changed.
    fn current(&self) -> Result<Arc<Entries>, DirectoryError> {
        let mut loaded = self.loaded.lock();
        if loaded.checked_at.elapsed() < self.check_interval {
            return Ok(loaded.entries.clone());
        }
        let now = fingerprint(&self.directory)?;
        loaded.checked_at = Instant::now();
        if loaded.fingerprint != now {
            match read(&now) {
                Ok(entries) => {
                    tracing::info!(workflows = entries.len(), "workflow catalog reloaded");
                    loaded.entries = Arc::new(entries);
                    loaded.fingerprint = now;
                }
                Err(DirectoryError::Read { path, source }) => {
                    let reason = format!("read {}: {source}", path.display());
                    tracing::warn!(
                        reason,
                        "cannot reload the workflow catalog, keeping the previous one"
                    );
                }
                Err(error) => {
                    tracing::error!(%error, "invalid workflow catalog, keeping the previous one");
                    loaded.fingerprint = now;
                }
            }
        }
        Ok(loaded.entries.clone())
    }
}

impl Catalog for DirectoryCatalog {
    fn lookup<'a>(
        &'a self,
        workflow_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Workflow>>, CatalogUnavailable>> {
        let found = self
            .current()
            .map(|entries| entries.get(workflow_id).cloned())
            .map_err(|error| CatalogUnavailable {
                reason: in_full(&error),
            });
        ready(found).boxed()
    }
}

/// The workflow files of a directory, sorted by name. Hidden files are skipped, because the kubelet
/// uses them to manage a mounted ConfigMap.
fn fingerprint(directory: &Path) -> Result<Fingerprint, DirectoryError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        |source| DirectoryError::Read { path, source }
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(fail(directory))? {
        let path = entry.map_err(fail(directory))?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_yaml = path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if is_yaml && !hidden {
            // Follows symbolic links, because the kubelet updates a mounted ConfigMap by swapping a
            // link.
            let metadata = fs::metadata(&path).map_err(fail(&path))?;
            files.push((
                path.clone(),
                metadata.modified().map_err(fail(&path))?,
                metadata.len(),
            ));
        }
    }
    files.sort();
    Ok(files)
}

fn read(files: &Fingerprint) -> Result<Entries, DirectoryError> {
    let mut invalid = Vec::new();
    let mut found: HashMap<String, (PathBuf, Arc<Workflow>)> = HashMap::new();
    for (path, _, _) in files {
        let text = fs::read_to_string(path).map_err(|source| DirectoryError::Read {
            path: path.clone(),
            source,
        })?;
        match Workflow::read(&path.display().to_string(), &text) {
            Ok(ReadWorkflow { workflow, warnings }) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                let workflow_id = workflow.workflow_id.clone();
                if let Some((first, _)) =
                    found.insert(workflow_id.clone(), (path.clone(), Arc::new(workflow)))
                {
                    return Err(DirectoryError::Duplicate {
                        workflow_id,
                        first,
                        second: path.clone(),
                    });
                }
            }
            Err(error) => invalid.push(error),
        }
    }
    if invalid.is_empty() {
        Ok(found
            .into_iter()
            .map(|(workflow_id, (_, workflow))| (workflow_id, workflow))
            .collect())
    } else {
        Err(DirectoryError::Workflows(invalid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn yaml(workflow_id: &str, version: &str) -> String {
        format!(
            "metadata: {{workflowId: {workflow_id}, version: {version}}}\nexecution: {{engine: job, bundle: 'r.io/w@sha256:{HEX}'}}\n"
        )
    }

    /// A catalog that checks for changed files at every lookup.
    fn open(directory: &Path) -> DirectoryCatalog {
        let catalog = DirectoryCatalog::open(directory).expect("a catalog");
        DirectoryCatalog {
            check_interval: Duration::ZERO,
            ..catalog
        }
    }

    async fn version(catalog: &DirectoryCatalog, workflow_id: &str) -> Option<String> {
        catalog
            .lookup(workflow_id)
            .await
            .expect("available")
            .map(|workflow| workflow.version.clone())
    }

    #[tokio::test]
    async fn lookup_after_file_change_returns_new_workflow_and_keeps_it_while_invalid() {
        let directory = tempfile::tempdir().expect("a directory");
        let file =
            |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("written");
        file("a.yaml", &yaml("restart", "1.0.0"));
        file("README.md", "not a workflow");
        let catalog = open(directory.path());
        assert_eq!(version(&catalog, "restart").await.as_deref(), Some("1.0.0"));
        assert_eq!(version(&catalog, "absent").await, None);
        file("b.yml", &yaml("scale", "2.0.0"));
        assert_eq!(version(&catalog, "scale").await.as_deref(), Some("2.0.0"));
        file("b.yml", "broken: [");
        assert_eq!(
            version(&catalog, "scale").await.as_deref(),
            Some("2.0.0"),
            "the previous workflow"
        );
    }

    #[tokio::test]
    async fn lookup_after_config_map_symlink_swap_returns_new_workflow() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let revision = |name: &str, version: &str| {
            fs::create_dir(path(name)).expect("made");
            fs::write(path(name).join("w.yaml"), yaml("restart", version)).expect("written");
        };
        let swap_to = |name: &str| {
            std::os::unix::fs::symlink(name, path("..data_tmp")).expect("linked");
            fs::rename(path("..data_tmp"), path("..data")).expect("swapped");
        };
        revision("..1", "1.0.0");
        swap_to("..1");
        std::os::unix::fs::symlink("..data/w.yaml", path("w.yaml")).expect("linked");
        let catalog = open(directory.path());
        for (name, changed) in [("..2", "2.0.00"), ("..3", "3.0.000")] {
            revision(name, changed);
            swap_to(name);
            assert_eq!(version(&catalog, "restart").await.as_deref(), Some(changed));
        }
    }

    #[test]
    fn directory_with_invalid_files_is_rejected_with_all_files() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(
            directory.path().join("a.yaml"),
            yaml("a", "1").replace("job", "ansible"),
        )
        .expect("written");
        fs::write(directory.path().join("b.yaml"), "[").expect("written");
        let message = DirectoryCatalog::open(directory.path())
            .expect_err("invalid")
            .to_string();
        assert!(
            message.contains("a.yaml: execution.engine: unsupported value \"ansible\"")
                && message.contains("b.yaml: "),
            "{message}"
        );
        fs::write(directory.path().join("a.yaml"), yaml("same", "1")).expect("written");
        fs::write(directory.path().join("b.yaml"), yaml("same", "2")).expect("written");
        let message = DirectoryCatalog::open(directory.path())
            .expect_err("invalid")
            .to_string();
        assert!(
            message.contains("b.yaml: duplicate workflowId \"same\", also in "),
            "{message}"
        );
    }

    #[tokio::test]
    async fn lookup_in_removed_directory_is_unavailable() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = open(directory.path());
        fs::remove_dir(directory.path()).expect("removed");
        assert!(catalog.lookup("any").await.is_err());
    }
}
