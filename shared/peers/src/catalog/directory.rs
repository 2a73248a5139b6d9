//! A catalog in a directory of workflow documents, for example a mounted ConfigMap.
//!
//! A lookup checks for changed files at most once per second, with one `stat` per file, and reloads
//! the directory if there are any. A file that cannot be read, is invalid or has the workflow id of
//! another file is set aside: its workflow is not found, whatever the file said before. The other
//! files count.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use parking_lot::Mutex;
use thiserror::Error;
use wfe_model::workflow::Workflow;

use super::source::{Catalog, Lookup, LookupError, OnRejected, logged};
use wfe_model::text::in_full;

/// The directory could not be read.
#[derive(Debug, Error)]
#[error("read {}", path.display())]
pub struct DirectoryError {
    path: PathBuf,
    source: io::Error,
}

/// Minimum interval between two checks for changed files.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

type Entries = HashMap<String, Arc<Workflow>>;
/// Path, modification time and size of each file: a change of any of them triggers a reload.
type Fingerprint = Vec<(PathBuf, SystemTime, u64)>;

/// A catalog in a directory.
pub struct DirectoryCatalog {
    directory: PathBuf,
    on_rejected: OnRejected,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    fingerprint: Fingerprint,
    entries: Arc<Entries>,
    checked_at: Instant,
}

impl DirectoryCatalog {
    /// Loads the directory. `on_rejected` receives the errors of the files that are set aside, now and
    /// after each change of the directory.
    pub fn open(
        directory: impl Into<PathBuf>,
        on_rejected: impl Fn(&[String]) + Send + Sync + 'static,
    ) -> Result<Self, DirectoryError> {
        let directory = directory.into();
        let fingerprint = fingerprint(&directory)?;
        let catalog = Self {
            directory,
            on_rejected: Box::new(on_rejected),
            loaded: Mutex::new(Loaded {
                entries: Arc::default(),
                fingerprint: Fingerprint::new(),
                checked_at: Instant::now(),
            }),
        };
        catalog.load(&mut catalog.loaded.lock(), fingerprint);
        Ok(catalog)
    }

    fn find(&self, workflow_id: &str, check_interval: Duration) -> Lookup {
        let entries = self.current(check_interval);
        let entries = entries.map_err(|error| LookupError::Unavailable(in_full(&error)))?;
        let found = entries.get(workflow_id).cloned();
        found.ok_or_else(|| LookupError::not_found(workflow_id))
    }

    /// The workflows, reloaded if a file has changed.
    fn current(&self, check_interval: Duration) -> Result<Arc<Entries>, DirectoryError> {
        let mut loaded = self.loaded.lock();
        if loaded.checked_at.elapsed() < check_interval {
            return Ok(loaded.entries.clone());
        }
        let now = fingerprint(&self.directory)?;
        loaded.checked_at = Instant::now();
        if loaded.fingerprint != now {
            self.load(&mut loaded, now);
        }
        Ok(loaded.entries.clone())
    }

    fn load(&self, loaded: &mut Loaded, files: Fingerprint) {
        let (entries, set_aside) = read(&files);
        for error in &set_aside {
            tracing::error!(error, "workflow file set aside");
        }
        tracing::info!(
            directory = %self.directory.display(),
            workflows = entries.len(),
            set_aside = set_aside.len(),
            "workflow catalog loaded"
        );
        (self.on_rejected)(&set_aside);
        loaded.entries = Arc::new(entries);
        loaded.fingerprint = files;
    }
}

impl Catalog for DirectoryCatalog {
    fn lookup<'a>(&'a self, workflow_id: &'a str) -> BoxFuture<'a, Lookup> {
        ready(self.find(workflow_id, CHECK_INTERVAL)).boxed()
    }

    fn lookup_now<'a>(&'a self, workflow_id: &'a str) -> BoxFuture<'a, Lookup> {
        ready(self.find(workflow_id, Duration::ZERO)).boxed()
    }
}

/// The workflow files of a directory, sorted by name. Hidden files are skipped, because the kubelet
/// uses them to manage a mounted ConfigMap.
fn fingerprint(directory: &Path) -> Result<Fingerprint, DirectoryError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        |source| DirectoryError { path, source }
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
            // A link without its file is set aside when it is read.
            let (modified, size) = fs::metadata(&path)
                .and_then(|it| Ok((it.modified()?, it.len())))
                .unwrap_or((SystemTime::UNIX_EPOCH, 0));
            files.push((path, modified, size));
        }
    }
    files.sort();
    Ok(files)
}

/// The workflows of the valid files, and the errors of the others.
fn read(files: &Fingerprint) -> (Entries, Vec<String>) {
    let mut set_aside = Vec::new();
    let mut found: BTreeMap<String, Vec<(&Path, Workflow)>> = BTreeMap::new();
    for (path, _, _) in files {
        match read_file(path) {
            Ok(workflow) => {
                let of_id = found.entry(workflow.workflow_id.clone()).or_default();
                of_id.push((path, workflow));
            }
            Err(error) => set_aside.push(error),
        }
    }
    let mut entries = Entries::new();
    for (workflow_id, files) in found {
        let paths: Vec<_> = files.iter().map(|(path, _)| path.display()).collect();
        let paths = paths.iter().map(ToString::to_string).collect::<Vec<_>>();
        let paths = paths.join(", ");
        // Which of several files is meant is not known.
        match <[_; 1]>::try_from(files) {
            Ok([(_, workflow)]) => drop(entries.insert(workflow_id, Arc::new(workflow))),
            Err(_) => set_aside.push(format!(
                "duplicate workflowId {workflow_id:?} in {paths}: remove all but one of the files"
            )),
        }
    }
    (entries, set_aside)
}

fn read_file(path: &Path) -> Result<Workflow, String> {
    let text = fs::read_to_string(path);
    let text = text.map_err(|error| format!("read {}: {error}", path.display()))?;
    let read = Workflow::read(&path.display().to_string(), &text);
    read.map(logged).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use wfe_model::workflow::WorkflowStatus;

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn yaml(workflow_id: &str, version: &str) -> String {
        format!(
            "metadata: {{workflowId: {workflow_id}, version: {version}}}\nexecution: {{engine: job, bundle: 'r.io/w@sha256:{HEX}'}}\n"
        )
    }

    fn open(directory: &Path) -> DirectoryCatalog {
        DirectoryCatalog::open(directory, |_| ()).expect("a catalog")
    }

    async fn version(catalog: &DirectoryCatalog, workflow_id: &str) -> Option<String> {
        match catalog.lookup_now(workflow_id).await {
            Ok(workflow) => Some(workflow.version.clone()),
            Err(LookupError::Unusable(_)) => None,
            Err(LookupError::Unavailable(why)) => panic!("{why}"),
        }
    }

    #[tokio::test]
    async fn lookup_after_file_change_returns_new_workflow() {
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
    }

    /// BR-WE-001: a workflow that is being disabled must not run on because of another file.
    #[tokio::test]
    async fn invalid_file_is_set_aside_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let file =
            |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("written");
        file("a.yaml", &yaml("restart", "1.0.0"));
        file("b.yaml", &yaml("scale", "1.0.0"));
        let errors = Arc::new(Mutex::new(Vec::new()));
        let seen = errors.clone();
        let catalog = DirectoryCatalog::open(directory.path(), move |errors| {
            *seen.lock() = errors.to_vec();
        });
        let catalog = catalog.expect("a catalog");
        assert_eq!(*errors.lock(), [] as [&str; 0]);
        file(
            "a.yaml",
            &format!("status: disabled\n{}", yaml("restart", "1.0.0")),
        );
        file("b.yaml", "broken: [");
        let dangling = directory.path().join("c.yaml");
        std::os::unix::fs::symlink("nowhere", dangling).expect("linked");
        let restart = catalog.lookup_now("restart").await.expect("found");
        assert_eq!(restart.status, WorkflowStatus::Disabled);
        assert_eq!(version(&catalog, "scale").await, None, "no older version");
        assert!(errors.lock()[0].contains("b.yaml: "), "{errors:?}");
        assert!(errors.lock()[1].contains("c.yaml: "), "{errors:?}");
        file("b.yaml", &yaml("scale", "2.0.0"));
        assert_eq!(version(&catalog, "scale").await.as_deref(), Some("2.0.0"));
        assert_eq!(errors.lock().len(), 1);
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

    #[tokio::test]
    async fn file_with_id_of_another_file_sets_both_aside() {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, workflow_id) in [("a", "same"), ("b", "same"), ("c", "other")] {
            let path = directory.path().join(name).with_extension("yaml");
            fs::write(path, yaml(workflow_id, "1")).expect("written");
        }
        let message = Arc::new(Mutex::new(String::new()));
        let seen = message.clone();
        let catalog = DirectoryCatalog::open(directory.path(), move |errors| {
            *seen.lock() = errors.join("\n");
        });
        let catalog = catalog.expect("a catalog");
        assert_eq!(version(&catalog, "same").await, None);
        assert_eq!(version(&catalog, "other").await.as_deref(), Some("1"));
        let message = message.lock();
        assert!(
            message.starts_with("duplicate workflowId \"same\" in ")
                && message.contains("a.yaml, "),
            "{message}"
        );
    }

    #[tokio::test]
    async fn lookup_in_removed_directory_is_unavailable() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = open(directory.path());
        fs::remove_dir(directory.path()).expect("removed");
        let found = catalog.lookup_now("any").await;
        assert!(
            matches!(found, Err(LookupError::Unavailable(_))),
            "{found:?}"
        );
    }
}
