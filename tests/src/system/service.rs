//! What stands in for a Service and kube-proxy where programs run beside the cluster: new
//! connections go to the replica that is named, open ones stay where they are.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// Listens until the value goes.
pub struct Service {
    replica: Arc<Mutex<String>>,
    task: AbortHandle,
}

impl Service {
    pub(super) async fn start(address: &str, replica: &str) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let replica = Arc::new(Mutex::new(replica.to_owned()));
        let leads_to = replica.clone();
        let serving = async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let replica = current(&leads_to);
                tokio::spawn(async move {
                    // Either side may end it, or be gone: the other one sees that.
                    if let Ok(mut server) = TcpStream::connect(replica).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        };
        let task = tokio::spawn(serving).abort_handle();
        Ok(Self { replica, task })
    }

    /// Where new connections go from now on.
    pub(super) fn lead_to(&self, replica: &str) {
        replica.clone_into(&mut self.replica.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn current(replica: &Mutex<String>) -> String {
    replica
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}
