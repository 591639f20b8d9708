//! [`Client`]: commands to a cluster from another process.

use super::driver::Driver;
use bytes::{Bytes, BytesMut};
use quorate_consensus::batch::put_item;
use quorate_replica::{Consistency, Failure, Pending, Reason, Replier};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Sender, channel, error::TrySendError};

/// Commands and questions that wait in a client's thread, and as many before it; beyond it the caller
/// is told "busy".
pub(super) const ORDERS_MAX: usize = 16_384;
/// Payload bytes that wait in a client.
const ORDER_BYTES_MAX: usize = 64 << 20;

/// Where and how.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The client addresses of the replicas ([`crate::Builder::clients`]), some or all.
    pub addresses: Vec<String>,
    /// A command without an outcome after this long is rejected, if it certainly did not happen, or
    /// unknown. 10 s unless told otherwise.
    pub timeout: Duration,
    /// A replica that is silent for this long while it owes an answer is left for the next one.
    pub patience: Duration,
    /// The cluster closes the session when it heard nothing for this long (a client that is idle
    /// says so in time): how long a client may be cut off before its retries become "unknown".
    pub session_idle: Duration,
}

impl ClientOptions {
    /// The defaults.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            addresses: addresses.into_iter().map(Into::into).collect(),
            timeout: Duration::from_secs(10),
            patience: Duration::from_millis(1_500),
            session_idle: Duration::from_secs(600),
        }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address was given.
    #[error("a client needs the client address of at least one replica")]
    NoAddress,
    /// The system refused a thread or its event queue.
    #[error("the system refused a thread for the client")]
    Thread(#[from] std::io::Error),
}

/// One item on its way to the client's thread.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) items: Bytes,
    /// None for a command.
    pub(super) query: Option<Consistency>,
    pub(super) reply: Replier,
    pub(super) asked_at: Instant,
}

impl Order {
    pub(super) fn fail(self, failure: Failure) {
        self.reply.send(Err(failure));
    }
}

/// A way to a cluster from another process; clones share it, and one session. It finds the leader,
/// turns to another replica when one is gone or of no use, tries again without ever doing anything
/// twice, and says *unknown* when, and only when, a command may have happened.
///
/// Commands of one client are applied in the order in which they were proposed. The client's thread
/// ends, and its session is closed, when the last clone is dropped and all outcomes are there.
#[derive(Clone, Debug)]
pub struct Client {
    orders: Sender<Order>,
    bytes: Arc<AtomicUsize>,
}

impl Client {
    /// A client with default options. Does not wait for a connection.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect(
        addresses: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Self, ConnectError> {
        Self::with_options(ClientOptions::new(addresses))
    }

    /// A client with these options. Does not wait for a connection.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn with_options(options: ClientOptions) -> Result<Self, ConnectError> {
        if options.addresses.is_empty() {
            return Err(ConnectError::NoAddress);
        }
        let (orders, receiver) = channel(ORDERS_MAX);
        let bytes = Arc::new(AtomicUsize::new(0));
        let driver = Driver::new(options, crate::random(), receiver, Arc::clone(&bytes));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("quorate-client".into())
            .spawn(move || runtime.block_on(driver.run()))?;
        Ok(Self { orders, bytes })
    }

    /// Proposes one command; resolves to its reply once it is chosen and applied.
    #[must_use]
    pub fn propose(&self, command: &[u8]) -> Pending {
        self.order(command, None)
    }

    /// Asks one question.
    #[must_use]
    pub fn query(&self, query: &[u8], consistency: Consistency) -> Pending {
        self.order(query, Some(consistency))
    }

    fn order(&self, item: &[u8], query: Option<Consistency>) -> Pending {
        let (reply, pending) = Pending::channel();
        let mut items = BytesMut::with_capacity(item.len() + 5);
        put_item(&mut items, item);
        let order = Order { items: items.freeze(), query, reply, asked_at: Instant::now() };
        let length = order.items.len();
        if self.bytes.fetch_add(length, Ordering::Relaxed) + length > ORDER_BYTES_MAX {
            self.bytes.fetch_sub(length, Ordering::Relaxed);
            order.fail(Failure::Rejected(Reason::Busy));
            return pending;
        }
        match self.orders.try_send(order) {
            Ok(()) => {}
            Err(TrySendError::Full(order)) => {
                self.bytes.fetch_sub(length, Ordering::Relaxed);
                order.fail(Failure::Rejected(Reason::Busy));
            }
            Err(TrySendError::Closed(order)) => order.fail(Failure::Rejected(Reason::Stopped)),
        }
        pending
    }
}
