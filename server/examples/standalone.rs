//! The store behind the Redis front end in one process, without replication and without a disk: to
//! try clients, and to measure the front end alone.
//!
//! ```text
//! cargo run --release -p quorate-server --example standalone -- 127.0.0.1:7600
//! redis-cli -p 7600
//! ```

use bytes::{Bytes, BytesMut};
use quorate_server::kv::{Store, frame};
use quorate_server::resp::{Backend, Freshness, Settings, Shared, SubmitError, serve};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;

#[derive(Clone, Default)]
struct Standalone(Arc<Mutex<Store>>);

impl Standalone {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl Backend for Standalone {
    async fn write(&self, _: usize, commands: Bytes) -> Result<Bytes, SubmitError> {
        let mut replies = BytesMut::new();
        let (mut rest, now) = (&commands[..], now_ms());
        let mut store = self.store();
        while let Some(command) = frame::take_bytes(&mut rest) {
            frame::put_framed(&mut replies, |out| store.apply(now, command, out));
        }
        Ok(replies.freeze())
    }

    async fn read(&self, _: usize, queries: Bytes, _: Freshness) -> Result<Bytes, SubmitError> {
        let mut replies = BytesMut::new();
        let (mut rest, now) = (&queries[..], now_ms());
        let mut store = self.store();
        store.advance(now);
        while let Some(query) = frame::take_bytes(&mut rest) {
            frame::put_framed(&mut replies, |out| store.query(now, query, out));
        }
        Ok(replies.freeze())
    }

    fn transfer(&self, _: Option<u16>) -> Result<(), String> {
        Err("there is one replica".into())
    }

    fn applied_slot(&self) -> u64 {
        0
    }
    fn begin_checkpoint(&self) -> Result<(), String> {
        Err("there are no checkpoints without replication".into())
    }

    fn status_json(&self) -> String {
        let store = self.store();
        format!("{{\"keys\":{},\"time_ms\":{}}}", store.len(), store.time_ms())
    }

    fn info(&self) -> String {
        let store = self.store();
        let (keys, expires, memory) = (store.len(), store.expiring_len(), store.memory_bytes());
        format!(
            "# Memory\r\nused_memory:{memory}\r\n\r\n# Replication\r\nrole:master\r\n\
             connected_slaves:0\r\n\r\n# Keyspace\r\ndb0:keys={keys},expires={expires},avg_ttl=0\r\n"
        )
    }

    fn acknowledged_replicas(&self) -> u32 {
        0
    }
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7600".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(&address).await?;
        println!("ready on {}", listener.local_addr()?);
        let backend = Standalone::default();
        let expiring = backend.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                expiring.store().advance(now_ms());
            }
        });
        let never = std::future::pending();
        serve(listener, backend, Arc::new(Settings::default()), Arc::new(Shared::default()), never)
            .await;
        Ok(())
    })
}
