//! The accept loop.

use super::backend::Backend;
use super::connection::Connection;
use super::session::Session;
use super::settings::Settings;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The pause after a failed accept: the process is out of file descriptors, most likely.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(20);
/// How long connections may take to finish their batches at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
const TOO_MANY_CLIENTS: &[u8] = b"-ERR max number of clients reached\r\n";

/// Counters over all connections, for `INFO`.
#[derive(Debug)]
pub struct Shared {
    /// When the front end started.
    pub since: Instant,
    /// Connections at present.
    pub connected: AtomicU64,
    /// Connections accepted so far; the latest one's identity.
    pub accepted: AtomicU64,
    /// Connections refused because there were too many.
    pub rejected: AtomicU64,
    /// Requests so far.
    pub commands: AtomicU64,
}

impl Default for Shared {
    fn default() -> Shared {
        Shared {
            since: Instant::now(),
            connected: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            commands: AtomicU64::new(0),
        }
    }
}

/// Accepts clients until `shutdown` resolves; then lets every connection finish its present batch
/// and returns. Must run inside a tokio runtime; every connection is a task of its own.
pub async fn serve<B: Backend>(
    listener: TcpListener,
    backend: B,
    settings: Arc<Settings>,
    shared: Arc<Shared>,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
            // Ended connections are taken out of the set as they end, which keeps it small.
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, peer)) = accepted else {
            sleep(ACCEPT_RETRY_DELAY).await;
            continue;
        };
        if connections.len() >= settings.max_clients {
            shared.rejected.fetch_add(1, Ordering::Relaxed);
            refuse(stream);
            continue;
        }
        // Replies are written whole; there is nothing to wait for. A failure costs latency only.
        let _ = stream.set_nodelay(true);
        let id = shared.accepted.fetch_add(1, Ordering::Relaxed) + 1;
        let session = Session::new(id, Some(peer), Arc::clone(&shared), Arc::clone(&settings));
        let connection = Connection::new(stream, backend.clone(), session, stopped.clone());
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            shared.connected.fetch_add(1, Ordering::Relaxed);
            let _counted = Counted(shared);
            // How a connection ends concerns its client alone, which sees it.
            let _: io::Result<()> = connection.serve().await;
        });
    }
    // The receivers may be gone already, which is as good.
    let _ = stop.send(true);
    let drained =
        timeout(DRAIN_TIMEOUT, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        connections.shutdown().await;
    }
}

/// Says why, without waiting: a fresh socket has room for one line.
fn refuse(stream: TcpStream) {
    let _ = stream.try_write(TOO_MANY_CLIENTS);
}

/// Takes a connection out of the count however its task ends.
struct Counted(Arc<Shared>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Ordering::Relaxed);
    }
}
