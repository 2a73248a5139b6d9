//! Flags of both programs about the services around them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use kube::Client;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::catalog::{
    Catalog, DataStorageCatalog, DirectoryCatalog, DirectoryError, ObjectCatalog,
};
use crate::data_storage::DataStorage;
use crate::service::{PlainHttp, ServiceError, ServiceOptions};
use crate::token::BearerToken;

/// Where the workflow catalog is. Without either flag it is Data Storage.
#[derive(Args, Clone, Debug)]
pub struct CatalogArgs {
    /// Directory of the workflow catalog: one YAML file per workflow (a mounted ConfigMap).
    #[arg(long, env = "WFE_CATALOG_DIR", conflicts_with = "catalog_namespace")]
    pub catalog_dir: Option<PathBuf>,
    /// Namespace of the workflow catalog: its RemediationWorkflow objects. Without it and without
    /// --catalog-dir, Data Storage is the catalog.
    #[arg(long, env = "WFE_CATALOG_NAMESPACE")]
    pub catalog_namespace: Option<String>,
}

/// Where Data Storage is, and how to authenticate to it.
#[derive(Args, Clone, Debug)]
pub struct DataStorageArgs {
    /// URL of Data Storage; the controller sends audit events to it, instead of the audit file.
    #[arg(long, env = "WFE_DATA_STORAGE_URL")]
    pub data_storage_url: Option<Url>,
    /// PEM file with the certificate authority of Data Storage (default: the system's).
    #[arg(long, env = "WFE_DATA_STORAGE_CA")]
    pub data_storage_ca: Option<PathBuf>,
    /// ServiceAccount in the program's own namespace whose tokens Data Storage gets, by
    /// `TokenRequest`: it needs no permission but the one that Data Storage checks.
    #[arg(
        long,
        env = "WFE_DATA_STORAGE_SERVICE_ACCOUNT",
        default_value = "wfe-data-storage-client"
    )]
    pub data_storage_service_account: String,
    /// File with the bearer token for Data Storage, instead of tokens of that ServiceAccount; read for
    /// each request, because the token rotates.
    #[arg(long, env = "WFE_DATA_STORAGE_TOKEN_FILE")]
    pub data_storage_token_file: Option<PathBuf>,
    /// Send the token also to a --data-storage-url with http://.
    #[arg(long, env = "WFE_DATA_STORAGE_PLAIN_HTTP")]
    pub data_storage_plain_http: bool,
}

/// Why the catalog could not be opened.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// No flag says where it is.
    #[error(
        "a workflow catalog is required: set --catalog-dir, --catalog-namespace or --data-storage-url"
    )]
    NoSource,
    /// The directory cannot be read.
    #[error("--catalog-dir")]
    Directory(#[from] DirectoryError),
}

impl DataStorageArgs {
    /// The connection to Data Storage, if there is a URL. `client` requests its tokens.
    pub fn connect(&self, client: &Client) -> Result<Option<Arc<DataStorage>>, ServiceError> {
        let Some(url) = self.data_storage_url.clone() else {
            return Ok(None);
        };
        let file = self.data_storage_token_file.as_deref();
        let token = BearerToken::of(client, file, &self.data_storage_service_account);
        let server = DataStorage::new(ServiceOptions {
            url,
            ca: self.data_storage_ca.clone(),
            token: Some(token),
            plain_http: PlainHttp::flag("--data-storage-plain-http", self.data_storage_plain_http),
        });
        server.map(|it| Some(Arc::new(it)))
    }
}

impl CatalogArgs {
    /// The catalog that the flags name. `deadline` is that of a request to `server`, Data Storage;
    /// watches run until `stop` is cancelled; `on_rejected` receives the errors of the entries that
    /// cannot be run, whenever they change.
    pub fn open(
        &self,
        client: &Client,
        server: Option<Arc<DataStorage>>,
        deadline: Duration,
        stop: CancellationToken,
        on_rejected: impl Fn(&[String]) + Send + Sync + 'static,
    ) -> Result<Arc<dyn Catalog>, CatalogError> {
        Ok(match (&self.catalog_dir, &self.catalog_namespace, server) {
            (Some(directory), _, _) => Arc::new(DirectoryCatalog::open(directory, on_rejected)?),
            (None, Some(namespace), _) => {
                Arc::new(ObjectCatalog::start(client, namespace, stop, on_rejected))
            }
            (None, None, Some(server)) => {
                Arc::new(DataStorageCatalog::new(server, deadline, on_rejected))
            }
            (None, None, None) => return Err(CatalogError::NoSource),
        })
    }
}
