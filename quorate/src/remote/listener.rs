//! The port that a replica opens for clients in other processes.

use super::wire::{Answer, Ask, VERSION, take_ask};
use bytes::BytesMut;
use quorate_replica::{Failure, GroupOutcome, Handle};
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

/// Connections at the most; a further one is closed at once.
pub const CLIENTS_MAX: usize = 4096;
/// Questions of one connection that wait for their answer; its socket is not read beyond.
pub const IN_FLIGHT_MAX: usize = 1024;

/// A client that takes no answers for this long is closed.
const WRITE_WITHIN: Duration = Duration::from_secs(30);
/// A client that does not say hello by then is closed.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// A listening port with its thread. Dropping it closes all connections.
#[derive(Debug)]
pub(crate) struct Listener {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens on `address` for clients of `handle`'s replica.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn bind(address: SocketAddr, handle: Handle) -> io::Result<Self> {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread =
            std::thread::Builder::new().name("quorate-clients".into()).spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, handle) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed by its hook.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, handle: Handle) {
    let room = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
                let handle = handle.clone();
                tokio::spawn(async move {
                    // How a client goes is its own affair.
                    let _ = serve(socket, handle).await;
                    drop(place);
                });
            }
            // No file descriptor is left, as a rule: it clears by itself.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve(socket: TcpStream, handle: Handle) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let (mut reader, writer) = socket.into_split();
    let (answers, queue) = unbounded_channel();
    let writing = tokio::spawn(write(writer, queue));
    let room = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut incoming = BytesMut::new();
    let mut greeted = false;
    let ended = loop {
        let ask = match take_ask(&mut incoming) {
            Ok(ask) => ask,
            Err(error) => break Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        };
        match ask {
            None => {
                let read = reader.read_buf(&mut incoming);
                let read = if greeted {
                    read.await
                } else {
                    timeout(HELLO_WITHIN, read).await.unwrap_or(Ok(0))
                };
                match read {
                    Ok(0) => break Ok(()),
                    Ok(_) => {}
                    Err(error) => break Err(error),
                }
            }
            Some(Ask::Hello { .. }) => {
                greeted = true;
                let node = handle.status().node;
                let command_bytes_max = handle.command_bytes_max() as u32;
                let leader = handle.leader();
                let welcome = Answer::Welcome { version: VERSION, node, leader, command_bytes_max };
                let _ = answers.send((welcome, None));
            }
            Some(_) if !greeted => break Err(io::ErrorKind::InvalidData.into()),
            Some(ask) => {
                // Never closed, so it cannot fail.
                let Ok(place) = Arc::clone(&room).acquire_owned().await else { break Ok(()) };
                ask_replica(ask, &handle, &answers, place);
            }
        }
    };
    drop(answers);
    let _ = writing.await;
    ended
}

type Queued = (Answer, Option<OwnedSemaphorePermit>);

fn ask_replica(
    ask: Ask,
    handle: &Handle,
    answers: &UnboundedSender<Queued>,
    place: OwnedSemaphorePermit,
) {
    let (answers, replica) = (answers.clone(), handle.clone());
    let answer = move |id, outcome: Result<GroupOutcome, Failure>| {
        let outcome = Answer::Outcome { id, leader: replica.leader(), outcome };
        // A connection that is gone takes no answers.
        let _ = answers.send((outcome, Some(place)));
    };
    match ask {
        Ask::Group { id, group } => {
            let pending = handle.propose_group(group);
            tokio::spawn(async move { answer(id, pending.await) });
        }
        Ask::Query { id, consistency, count, items } => {
            let pending = handle.query_items(count, items, consistency);
            tokio::spawn(async move { answer(id, pending.await.map(GroupOutcome::Applied)) });
        }
        Ask::Hello { .. } => {}
    }
}

/// Writes answers, all that wait at a time. Ends with the last sender, or when the client takes none.
async fn write(mut writer: OwnedWriteHalf, mut queue: UnboundedReceiver<Queued>) {
    let (mut waiting, mut out) = (Vec::new(), BytesMut::new());
    while queue.recv_many(&mut waiting, IN_FLIGHT_MAX).await > 0 {
        for (answer, _) in &waiting {
            answer.encode(&mut out);
        }
        let written = timeout(WRITE_WITHIN, writer.write_all_buf(&mut out)).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
        // Its place is free once an answer is with the system: that bounds what waits here.
        waiting.clear();
    }
}
