//! Fake of a Service with kube-proxy, for programs that run as processes on the host: new
//! connections go to the selected replica, open connections stay with theirs.

use parking_lot::Mutex;
use std::sync::Arc;

use anyhow::Result;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// Forwards TCP connections until the value is dropped.
pub struct Service {
    replica: Arc<Mutex<String>>,
    task: AbortHandle,
}

impl Service {
    pub(super) async fn start(address: &str, replica: &str) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let replica = Arc::new(Mutex::new(replica.to_owned()));
        let selected = replica.clone();
        let serving = async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let replica = current(&selected);
                tokio::spawn(async move {
                    // Errors are ignored: when one side closes, so does the other.
                    if let Ok(mut server) = TcpStream::connect(replica).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        };
        let task = tokio::spawn(serving).abort_handle();
        Ok(Self { replica, task })
    }

    /// Selects the replica for new connections.
    pub(super) fn route_to(&self, replica: &str) {
        replica.clone_into(&mut self.replica.lock());
    }
}

fn current(replica: &Mutex<String>) -> String {
    replica.lock().clone()
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}
