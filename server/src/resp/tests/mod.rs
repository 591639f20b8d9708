//! Scenarios of the front end over a store in the same process.

mod commands;
mod connection;
mod differential;

use super::*;
use crate::kv::{Limits, Store, frame};
use bytes::{Bytes, BytesMut};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::time::timeout;

/// No scenario waits longer for bytes that should come.
const DEADLINE: Duration = Duration::from_secs(100);

/// A store behind a mutex, with a clock that the test moves, and counters of calls.
#[derive(Clone)]
pub(super) struct Single(Arc<Inner>);

struct Inner {
    store: Mutex<Store>,
    now_ms: AtomicU64,
    writes: AtomicUsize,
    reads: AtomicUsize,
    stale_reads: AtomicUsize,
    freshness: Mutex<Vec<Freshness>>,
    /// What the next calls fail with.
    failure: Mutex<Option<SubmitError>>,
}

impl Single {
    pub(super) fn new(now_ms: u64) -> Single {
        Single(Arc::new(Inner {
            store: Mutex::new(Store::new(Limits::default())),
            now_ms: AtomicU64::new(now_ms),
            writes: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
            stale_reads: AtomicUsize::new(0),
            freshness: Mutex::default(),
            failure: Mutex::new(None),
        }))
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_time(&self, now_ms: u64) {
        self.0.now_ms.store(now_ms, Ordering::SeqCst);
        self.store().advance(now_ms);
    }

    fn fail_with(&self, failure: Option<SubmitError>) {
        *self.0.failure.lock().expect("not poisoned") = failure;
    }

    /// The numbers of writes and reads since the last call.
    fn take_calls(&self) -> (usize, usize) {
        let take = |counter: &AtomicUsize| counter.swap(0, Ordering::SeqCst);
        (take(&self.0.writes), take(&self.0.reads))
    }

    fn run(
        &self,
        count: usize,
        commands: &[u8],
        mut run: impl FnMut(&mut Store, u64, &[u8], &mut BytesMut),
    ) -> Result<Bytes, SubmitError> {
        if let Some(failure) = self.0.failure.lock().expect("not poisoned").clone() {
            return Err(failure);
        }
        let mut replies = BytesMut::new();
        let (mut rest, mut found) = (commands, 0);
        while let Some(command) = frame::take_bytes(&mut rest) {
            let now = self.0.now_ms.load(Ordering::SeqCst);
            frame::put_framed(&mut replies, |out| run(&mut self.store(), now, command, out));
            found += 1;
        }
        assert!(rest.is_empty());
        assert_eq!(found, count, "the count of a batch is the number of its frames");
        Ok(replies.freeze())
    }
}

impl Backend for Single {
    async fn write(&self, count: usize, commands: Bytes) -> Result<Bytes, SubmitError> {
        self.0.writes.fetch_add(1, Ordering::SeqCst);
        self.run(count, &commands, |store, now, command, out| store.apply(now, command, out))
    }

    async fn read(
        &self,
        count: usize,
        queries: Bytes,
        freshness: Freshness,
    ) -> Result<Bytes, SubmitError> {
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        self.0.freshness.lock().expect("not poisoned").push(freshness);
        self.0.stale_reads.fetch_add(usize::from(freshness == Freshness::Stale), Ordering::SeqCst);
        self.run(count, &queries, |store, now, query, out| store.query(now, query, out))
    }

    fn transfer(&self, _: Option<u16>) -> Result<(), String> {
        Err("there is one replica".into())
    }

    fn applied_slot(&self) -> u64 {
        17
    }

    fn begin_checkpoint(&self) -> Result<(), String> {
        Err("there are no checkpoints without replication".into())
    }

    fn status_json(&self) -> String {
        "{\"role\":\"leader\"}".to_owned()
    }

    fn info(&self) -> String {
        "# Replication\r\nrole:master\r\n".to_owned()
    }

    fn acknowledged_replicas(&self) -> u32 {
        1
    }
}

/// A client on one end of a pipe, a connection on the other.
pub(super) struct Client {
    pub(super) stream: DuplexStream,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
    stop: watch::Sender<bool>,
}

impl Client {
    pub(super) fn connect(backend: &Single) -> Client {
        Client::connect_with(backend, Settings::default(), 1 << 20)
    }

    fn connect_with(backend: &Single, settings: Settings, pipe_bytes: usize) -> Client {
        let (stream, server) = tokio::io::duplex(pipe_bytes);
        let session = Session::new(1, None, Arc::default(), Arc::new(settings));
        let (stop, stopped) = watch::channel(false);
        let connection = Connection::new(server, backend.clone(), session, stopped);
        Client { stream, task: tokio::spawn(connection.serve()), stop }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        let sent = timeout(DEADLINE, self.stream.write_all(bytes)).await;
        sent.expect("in time").expect("the connection is open");
    }

    /// Reads exactly as many bytes as are expected, and compares.
    #[track_caller]
    fn expect(&mut self, expected: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let mut got = vec![0; expected.len()];
            let mut filled = 0;
            while filled < got.len() {
                match timeout(DEADLINE, self.stream.read(&mut got[filled..])).await {
                    Ok(Ok(0)) | Err(_) => break,
                    Ok(read) => filled += read.expect("the connection is open"),
                }
            }
            let got = String::from_utf8_lossy(&got[..filled]);
            assert_eq!(got, expected, "at {caller}");
        }
    }

    /// Sends one inline command and compares its reply.
    #[track_caller]
    fn check(&mut self, command: &str, expected: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        let line = format!("{command}\r\n");
        let expected = expected.to_owned();
        async move {
            self.send(line.as_bytes()).await;
            // The mark behind the reply shows that nothing more was sent.
            self.send(b"ECHO mark\r\n").await;
            let mut got = Vec::new();
            let mark = b"$4\r\nmark\r\n";
            while !got.ends_with(mark) {
                let read = timeout(DEADLINE, self.stream.read_buf(&mut got)).await;
                assert_ne!(read.expect("in time").expect("open"), 0, "closed after {line:?}");
            }
            let got = String::from_utf8_lossy(&got[..got.len() - mark.len()]).into_owned();
            assert_eq!(got, expected, "{line:?} at {caller}");
        }
    }

    /// Waits until the connection has closed, and answers what it sent until then.
    async fn read_to_end(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let read = timeout(DEADLINE, self.stream.read_to_end(&mut rest)).await;
        read.expect("closed in time").expect("readable");
        rest
    }

    /// How the connection ended.
    async fn ended(self) -> std::io::Result<()> {
        timeout(DEADLINE, self.task).await.expect("ends in time").expect("does not panic")
    }
}
