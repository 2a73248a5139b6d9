//! A directory of workflow schemas, or a ConfigMap mounted as one.
//!
//! It is looked at again at a lookup (a few `stat`s), at most once a second; files are read again
//! only when one has changed. While a changed directory cannot be read whole, the last one that could be is used.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use thiserror::Error;
use wfe_model::workflow::{ReadWorkflow, Workflow, WorkflowError};

use super::{Catalog, CatalogUnavailable};
use wfe_model::text::in_full;

/// Why a directory is no catalog.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// It cannot be listed, or a file not be read.
    #[error("read {}", path.display())]
    Read {
        /// File or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Files that are no workflows.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Workflows(Vec<WorkflowError>),
    /// Two files with one id.
    #[error("{} has the workflowId {workflow_id:?} of {}", second.display(), first.display())]
    Duplicate {
        /// The id.
        workflow_id: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

const LOOK_AGAIN: Duration = Duration::from_secs(1);

type Entries = HashMap<String, Arc<Workflow>>;
/// What tells one state of the directory from another.
type Fingerprint = Vec<(PathBuf, SystemTime, u64)>;

/// See the module.
#[derive(Debug)]
pub struct DirectoryCatalog {
    directory: PathBuf,
    look_again: Duration,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    fingerprint: Fingerprint,
    entries: Arc<Entries>,
    looked: Instant,
}

impl DirectoryCatalog {
    /// Reads the directory; an error names every file that is no workflow.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, DirectoryError> {
        let directory = directory.into();
        let fingerprint = fingerprint(&directory)?;
        let entries = read(&fingerprint)?;
        tracing::info!(directory = %directory.display(), workflows = entries.len(), "workflow catalog read");
        Ok(Self {
            directory,
            look_again: LOOK_AGAIN,
            loaded: Mutex::new(Loaded {
                fingerprint,
                entries: Arc::new(entries),
                looked: Instant::now(),
            }),
        })
    }

    fn current(&self) -> Result<Arc<Entries>, DirectoryError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked.elapsed() < self.look_again {
            return Ok(loaded.entries.clone());
        }
        let now = fingerprint(&self.directory)?;
        loaded.looked = Instant::now();
        if loaded.fingerprint != now {
            match read(&now) {
                Ok(entries) => {
                    tracing::info!(workflows = entries.len(), "workflow catalog read again");
                    loaded.entries = Arc::new(entries);
                    loaded.fingerprint = now;
                }
                Err(DirectoryError::Read { path, source }) => {
                    let reason = format!("read {}: {source}", path.display());
                    tracing::warn!(
                        reason,
                        "the workflow catalog has changed and cannot be read yet"
                    );
                }
                Err(error) => {
                    tracing::error!(%error, "the workflow catalog has changed and is wrong: the last one is used");
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

/// The workflow files of a directory, in the order of their names. Hidden ones are a mounted
/// ConfigMap's own.
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
            // Follows links: behind them a ConfigMap is swapped.
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
    let mut wrong = Vec::new();
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
            Err(error) => wrong.push(error),
        }
    }
    if wrong.is_empty() {
        Ok(found
            .into_iter()
            .map(|(workflow_id, (_, workflow))| (workflow_id, workflow))
            .collect())
    } else {
        Err(DirectoryError::Workflows(wrong))
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

    /// Looks at each lookup.
    fn open(directory: &Path) -> DirectoryCatalog {
        let catalog = DirectoryCatalog::open(directory).expect("a catalog");
        DirectoryCatalog {
            look_again: Duration::ZERO,
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
    async fn workflows_are_found_by_their_id_and_changes_are_seen() {
        let directory = tempfile::tempdir().expect("a directory");
        let file =
            |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("written");
        file("a.yaml", &yaml("restart", "1.0.0"));
        file("README.md", "no workflow");
        let catalog = open(directory.path());
        assert_eq!(version(&catalog, "restart").await.as_deref(), Some("1.0.0"));
        assert_eq!(version(&catalog, "absent").await, None);
        file("b.yml", &yaml("scale", "2.0.0"));
        assert_eq!(version(&catalog, "scale").await.as_deref(), Some("2.0.0"));
        file("b.yml", "broken: [");
        assert_eq!(
            version(&catalog, "scale").await.as_deref(),
            Some("2.0.0"),
            "the last good one"
        );
    }

    #[tokio::test]
    async fn a_mounted_config_map_is_seen_to_be_swapped() {
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
    fn a_directory_with_wrong_files_is_refused_naming_each() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(
            directory.path().join("a.yaml"),
            yaml("a", "1").replace("job", "ansible"),
        )
        .expect("written");
        fs::write(directory.path().join("b.yaml"), "[").expect("written");
        let said = DirectoryCatalog::open(directory.path())
            .expect_err("wrong")
            .to_string();
        assert!(
            said.contains("a.yaml: execution.engine: \"ansible\"") && said.contains("b.yaml: "),
            "{said}"
        );
        fs::write(directory.path().join("a.yaml"), yaml("same", "1")).expect("written");
        fs::write(directory.path().join("b.yaml"), yaml("same", "2")).expect("written");
        let said = DirectoryCatalog::open(directory.path())
            .expect_err("wrong")
            .to_string();
        assert!(
            said.contains("b.yaml has the workflowId \"same\" of "),
            "{said}"
        );
    }

    #[tokio::test]
    async fn a_directory_that_is_gone_is_an_outage_not_an_empty_catalog() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = open(directory.path());
        fs::remove_dir(directory.path()).expect("removed");
        assert!(catalog.lookup("any").await.is_err());
    }
}
