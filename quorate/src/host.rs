//! [`Host`]: many replicated state machines in one process.

use crate::builder::{Builder, StartError};
use crate::{Handle, NodeId, NodeOptions, StateMachine};
use quorate_pmem_log::SyncPool;
use quorate_replica::{HostRunner, Node};
use quorate_transport::Transport;
use quorate_transport::shards::{ShardId, Trunk};

/// Limits of a shard, unless told otherwise ([`Builder::options`], [`Builder::adjust`]): a thousand of
/// them fit a process.
fn shard_options(options: &mut NodeOptions) {
    options.command_bytes_max = 256 << 10;
    options.batch_bytes_max = 64 << 10;
    options.ring_bytes = 512 << 10;
    options.window_bytes_max = 4 << 20;
    options.window_slots_max = 1024;
    options.cache_bytes_max = 1 << 20;
    options.quiet_after = 8;
}

/// Threads that sync the logs of all shards.
const SYNC_THREADS: usize = 4;

/// Bytes of a shard's log segment, unless told otherwise.
const SEGMENT_BYTES: u64 = 4 << 20;

/// Many replicated state machines in one process, called *shards*: each has its own log, leader and
/// sessions, and fails for itself; they share the connections to the other processes, one thread, and a few more for their logs' syncs. Get one
/// from [`Builder::host`]. Dropping it stops all its shards.
///
/// Who holds which key is the application's decision. A shard's members are those of the builder, or those
/// that are named for it ([`Host::shard`]); they change as a replica's of its own do
/// ([`Handle::change_members`]), shard by shard. The process is connected to whoever is a peer of any of its
/// shards.
#[derive(Debug)]
pub struct Host {
    runner: HostRunner,
    syncs: SyncPool,
    builder: Builder,
}

impl Host {
    pub(crate) fn start(mut builder: Builder) -> Result<Self, StartError> {
        if builder.node_options()?.passive {
            return Err(StartError::Options(
                "the state machines of a host share their lanes, and none of them can end a life of one: leave \
                 `passive` out"
                    .into(),
            ));
        }
        let transport = builder.take_transport()?;
        let trunk = Trunk::new(transport, crate::random());
        builder.adjust_first(shard_options);
        builder.default_segment_bytes(SEGMENT_BYTES);
        let spin = builder.node_options()?.spin;
        let syncs = SyncPool::start(SYNC_THREADS)?;
        Ok(Self { runner: HostRunner::start(trunk, spin)?, syncs, builder })
    }

    /// Runs this process's replica of shard `id` (0..=16383), with its log in the folder `shard-ID` of the
    /// host's directory. Founding and restarting are as for a replica of its own.
    ///
    /// # Errors
    /// [`StartError`]; also if the shard was opened before in this process.
    pub fn open(&self, id: u16, machine: impl StateMachine) -> Result<Handle, StartError> {
        self.shard(id).open(machine)
    }

    /// Describes this process's replica of shard `id` (0..=16383), where its members are not the builder's.
    #[must_use]
    pub fn shard(&self, id: u16) -> ShardBuilder<'_> {
        ShardBuilder { host: self, id, members: Vec::new(), join: self.builder.own().2 }
    }

    /// Stops this process's replica of a shard; requests under way get an error, and its peers hear of it.
    /// Its log stays. It can be opened again when it has stopped ([`Handle::is_stopped`]). A replica that is
    /// no member any more is closed so, and its folder may be deleted then.
    pub fn close(&self, id: u16) {
        self.runner.stop_shard(ShardId(id));
    }

    /// Whether the thread runs. It ends with the host, or by a defect.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.runner.is_running()
    }
}

/// One replica of a shard before it is opened. Get one from [`Host::shard`].
#[derive(Debug)]
pub struct ShardBuilder<'a> {
    host: &'a Host,
    id: u16,
    members: Vec<(NodeId, String)>,
    join: bool,
}

impl ShardBuilder<'_> {
    /// Adds a founding member of this shard, or with [`ShardBuilder::join`] a member of it, with the peer
    /// address of its process. If any is named, those of the builder are not meant. This process need not
    /// be named.
    #[must_use]
    pub fn member(mut self, node: u16, address: impl Into<String>) -> Self {
        self.members.push((NodeId(node), address.into()));
        self
    }

    /// This replica joins a shard that is there: it founds none, and waits until it is made a member.
    #[must_use]
    pub fn join(mut self) -> Self {
        self.join = true;
        self
    }

    /// See [`Host::open`].
    ///
    /// # Errors
    /// [`StartError`]; also if the shard is open in this process.
    pub fn open(self, machine: impl StateMachine) -> Result<Handle, StartError> {
        let Self { host, id, mut members, join } = self;
        let (own, address, _) = host.builder.own();
        if members.is_empty() {
            members = host.builder.members_named().to_vec();
        } else if !members.iter().any(|(node, _)| *node == own) {
            members.push((own, address.unwrap_or_default().to_owned()));
        }
        let options = host.builder.node_options_among(&members, join)?;
        members.retain(|(node, _)| *node != own);
        let transport = host
            .runner
            .open_among(ShardId(id), &members)
            .map_err(|error| StartError::Options(error.to_string()))?;
        let (log, recovered) = host.builder.open_log(transport.waker(), Some((id, &host.syncs)))?;
        let node = Node::new(options, Box::new(transport), log, recovered, Box::new(machine))?;
        Ok(host.runner.run(ShardId(id), node))
    }
}
