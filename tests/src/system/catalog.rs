//! The three catalogs, behind one interface: a directory, objects, and Data Storage.

use std::path::PathBuf;

use anyhow::{Context, Result};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use wfe_model::workflow::RemediationWorkflow;

use super::catalog_source::CatalogSource;
use super::install;
use super::script::Script;
use super::state::System;
use crate::Cluster;

impl System {
    /// [Installs](Self::install) wfe with an empty catalog of this kind.
    pub async fn install_with_catalog(
        cluster: &Cluster,
        prefix: &str,
        source: CatalogSource,
    ) -> Result<Self> {
        let mut system = Self::install(cluster, prefix, &[]).await?;
        if source == CatalogSource::DataStorage {
            system.start_data_storage().await?;
        }
        system.use_catalog(source).await?;
        Ok(system)
    }

    /// Changes the catalog of the programs, from their next start on.
    pub async fn use_catalog(&mut self, source: CatalogSource) -> Result<()> {
        match source {
            CatalogSource::Directory => {}
            CatalogSource::Objects => install::catalog_objects(self).await?,
            CatalogSource::DataStorage => install::webhook_data_storage_tokens(self).await?,
        }
        self.catalog = source;
        Ok(())
    }

    /// The flags of both programs for the catalog.
    pub(super) fn catalog_flags(&self) -> Vec<String> {
        match self.catalog {
            CatalogSource::Directory => {
                vec![format!("--catalog-dir={}", self.path("catalog").display())]
            }
            CatalogSource::Objects => {
                vec![format!("--catalog-namespace={}", self.programs.name())]
            }
            CatalogSource::DataStorage => Vec::new(),
        }
    }

    /// The flags for Data Storage, if one was started.
    pub(super) fn data_storage_flags(&self) -> Option<[String; 2]> {
        self.data_storage.as_ref().map(|storage| {
            [
                format!("--data-storage-url={}", storage.url()),
                format!("--data-storage-ca={}", self.data_storage_ca().display()),
            ]
        })
    }

    /// Puts a version of a workflow into the catalog; returns its id there.
    pub async fn register(&self, workflow: &Script, version: &str) -> Result<String> {
        let document = workflow.document(version);
        match self.catalog {
            CatalogSource::Directory => {
                self.write_file(workflow.id, &document)?;
                Ok(workflow.id.to_owned())
            }
            CatalogSource::Objects => {
                let object = workflow.object(version);
                let object: RemediationWorkflow = serde_json::from_value(object)?;
                let api = self.catalog_api();
                let apply = PatchParams::apply("tests").force();
                api.patch(workflow.id, &apply, &Patch::Apply(object))
                    .await?;
                Ok(workflow.id.to_owned())
            }
            CatalogSource::DataStorage => self.storage()?.register(&document.to_string()),
        }
    }

    /// Changes the status of a workflow, one of `active`, `deprecated` and `disabled`.
    pub async fn set_workflow_status(&self, id: &str, status: &str) -> Result<()> {
        match self.catalog {
            CatalogSource::Directory => {
                let text = std::fs::read_to_string(self.file(id))?;
                let mut document: Value = serde_json::from_str(&text)?;
                let fields = document.as_object_mut().context("no document")?;
                fields.insert("status".to_owned(), json!(status));
                self.write_file(id, &document)
            }
            CatalogSource::Objects => {
                let mut status = status.to_owned();
                status
                    .get_mut(..1)
                    .context("a status")?
                    .make_ascii_uppercase();
                let patch = json!({ "status": { "catalogStatus": status } });
                let (api, merge) = (self.catalog_api(), PatchParams::default());
                api.patch_status(id, &merge, &Patch::Merge(patch)).await?;
                Ok(())
            }
            CatalogSource::DataStorage => self
                .storage()?
                .change_entry(id, |entry| entry["status"] = json!(status)),
        }
    }

    /// Takes a workflow out of the catalog.
    pub async fn unregister(&self, id: &str) -> Result<()> {
        match self.catalog {
            CatalogSource::Directory => Ok(std::fs::remove_file(self.file(id))?),
            CatalogSource::Objects => {
                self.catalog_api()
                    .delete(id, &DeleteParams::default())
                    .await?;
                Ok(())
            }
            CatalogSource::DataStorage => self.storage()?.forget(id),
        }
    }

    fn file(&self, id: &str) -> PathBuf {
        self.path("catalog").join(id).with_extension("yaml")
    }

    /// Replaces a file at once, as the kubelet does.
    fn write_file(&self, id: &str, document: &Value) -> Result<()> {
        let new = self.path("new-document");
        std::fs::write(&new, document.to_string())?;
        Ok(std::fs::rename(new, self.file(id))?)
    }

    /// The RemediationWorkflow objects of the catalog.
    pub fn catalog_api(&self) -> Api<RemediationWorkflow> {
        self.programs.api()
    }
}
