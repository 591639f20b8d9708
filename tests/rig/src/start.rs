//! How a replica of a test is made.

use quorate_consensus::{Incarnation, NodeId};
use quorate_pmem_log::{Log, LogOptions, MappedMedium, Medium};
use quorate_replica::{HostRunner, Node, NodeError, NodeOptions, StateMachine};
use quorate_transport::Transport;
use quorate_transport::memory::MemoryNetwork;
use quorate_transport::shards::Trunk;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Replicas 1, 2 and 3.
#[must_use]
pub fn members() -> Vec<NodeId> {
    (1..=3).map(NodeId).collect()
}

/// The two others.
#[must_use]
pub fn peers_of(node: NodeId) -> Vec<NodeId> {
    members().into_iter().filter(|peer| *peer != node).collect()
}

/// Sessions of two lives of a replica must differ, as in production.
#[must_use]
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// What a replica is started with. A test sets what it wants to be otherwise.
#[derive(Debug)]
pub struct Start {
    /// Limits and timers.
    pub options: NodeOptions,
    /// Where the log is.
    pub medium: Arc<dyn Medium>,
    /// Of the log, in bytes.
    pub segment_bytes: u64,
    /// Of the log, if it is new.
    pub incarnation: Incarnation,
}

impl Start {
    /// One of three founding members, with an empty log in memory and small rings. Its seed and its
    /// incarnation are its number: a test that drives it by hand goes the same way each time.
    #[must_use]
    pub fn of(node: NodeId) -> Self {
        let mut options = NodeOptions::new(node, members(), node.0.into());
        options.ring_bytes = 1 << 20;
        options.command_bytes_max = 512 << 10;
        Self {
            options,
            medium: Arc::new(MappedMedium::memory()),
            segment_bytes: 16 << 20,
            incarnation: Incarnation(100 + u64::from(node.0)),
        }
    }

    /// The same with another seed and incarnation at each start.
    #[must_use]
    pub fn at_random(node: NodeId) -> Self {
        let mut start = Self::of(node);
        start.options.seed = random();
        start.incarnation = Incarnation(random());
        start
    }

    /// Opens the log and makes the replica.
    ///
    /// # Errors
    /// What [`Node::new`] says. A log that cannot be opened is a panic.
    pub fn try_node(
        self,
        transport: Box<dyn Transport>,
        machine: impl StateMachine + 'static,
    ) -> Result<Node, NodeError> {
        let log = LogOptions {
            directory: PathBuf::new(),
            medium: self.medium.profile().kind,
            node: self.options.node,
            segment_bytes: self.segment_bytes,
        };
        let waker = transport.waker();
        let wake = Arc::new(move || waker.wake());
        let (log, recovered) = Log::open_on(self.medium, &log, self.incarnation, wake).unwrap();
        Node::new(self.options, transport, log, recovered, Box::new(machine))
    }

    /// Opens the log and makes the replica, which must be willing.
    #[must_use]
    pub fn node(
        self,
        transport: impl Transport + 'static,
        machine: impl StateMachine + 'static,
    ) -> Node {
        self.try_node(Box::new(transport), machine).unwrap()
    }

    /// The same at the end of its lanes in `network`.
    #[must_use]
    pub fn node_in(self, network: &MemoryNetwork, machine: impl StateMachine + 'static) -> Node {
        let node = self.options.node;
        self.node(network.endpoint(node, &peers_of(node)), machine)
    }
}

/// A host of shards for each of the three, on a thread of its own that sleeps where it has nothing to do.
#[must_use]
pub fn hosts(network: &MemoryNetwork) -> Vec<HostRunner> {
    let host = |node: NodeId| {
        let trunk = Trunk::new(Box::new(network.endpoint(node, &peers_of(node))), random());
        HostRunner::start(trunk, Duration::ZERO).unwrap()
    };
    members().into_iter().map(host).collect()
}
