//! [`Builder`]: from an address list and a directory to a running replica.

use crate::{
    Durability, Handle, LogOptions, MediumKind, NodeId, NodeOptions, Runner, StateMachine, Status,
};
use quorate_consensus::Incarnation;
use quorate_pmem_log::{Log, OpenError, Recovered, SyncPool};
use quorate_replica::{MayLead, Node, NodeError};
use quorate_transport::{Transport, Wake};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of a log segment, unless told otherwise.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Why a replica did not start. Every variant says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The options contradict each other.
    #[error("{0}")]
    Options(String),
    /// The asked-for durability is more than the medium can give.
    #[error(
        "the medium `{medium}` survives {gives}, but {asked} was asked for: choose another medium, \
         or ask for less"
    )]
    Durability {
        /// What was chosen.
        medium: MediumKind,
        /// What it can do.
        gives: Durability,
        /// What was asked for.
        asked: Durability,
    },
    /// The log could not be opened.
    #[error("the log cannot be opened: {0}")]
    Log(#[from] OpenError),
    /// The transport could not start.
    #[error("{0}")]
    Transport(String),
    /// The replica could not be put together.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The system refused a thread.
    #[error("the system refused a thread for the replica: {0}")]
    Thread(#[from] std::io::Error),
}

/// What a replica is made of. Get one from [`Replica::builder`].
#[derive(Debug)]
pub struct Builder {
    node: NodeId,
    members: Vec<(NodeId, String)>,
    join: bool,
    witness: bool,
    directory: Option<PathBuf>,
    medium: MediumKind,
    at_least: Option<Durability>,
    segment_bytes: Option<u64>,
    listen: Option<String>,
    #[cfg(feature = "client")]
    clients: Option<String>,
    transport: Option<Box<dyn Transport>>,
    #[cfg(feature = "rdma")]
    adapter: Option<quorate_transport_rdma::AdapterOptions>,
    adjust: Vec<fn(&mut NodeOptions)>,
    options: Option<NodeOptions>,
    may_lead: Option<MayLead>,
}

/// A running replica. Dropping it stops it.
#[derive(Debug)]
pub struct Replica {
    /// Goes first: its clients hear that the replica stops.
    #[cfg(feature = "client")]
    listener: Option<crate::remote::Listener>,
    runner: Runner,
}

impl Replica {
    /// Begins to describe replica number `node`, 1..=65535.
    #[must_use]
    pub fn builder(node: u16) -> Builder {
        Builder {
            node: NodeId(node),
            members: Vec::new(),
            join: false,
            witness: false,
            directory: None,
            medium: MediumKind::File,
            at_least: None,
            segment_bytes: None,
            listen: None,
            #[cfg(feature = "client")]
            clients: None,
            transport: None,
            #[cfg(feature = "rdma")]
            adapter: None,
            adjust: Vec::new(),
            options: None,
            may_lead: None,
        }
    }

    /// The way in for clients of this process.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.runner.handle()
    }

    /// The newest status, at most about 50 ms old.
    #[must_use]
    pub fn status(&self) -> Status {
        self.runner.handle().status()
    }

    /// Where clients of other processes are served, if they are.
    #[cfg(feature = "client")]
    #[must_use]
    pub fn clients_address(&self) -> Option<std::net::SocketAddr> {
        self.listener.as_ref().map(crate::remote::Listener::address)
    }

    /// Whether the replica's thread runs. It ends by [`Replica::stop`], or by a defect.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.runner.is_running()
    }

    /// Stops the replica and waits for its thread; requests under way get an error.
    pub fn stop(mut self) {
        self.runner.stop();
    }
}

impl Builder {
    /// The peer addresses of all founding members, in order of their numbers from 1.
    #[must_use]
    pub fn members(mut self, addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let numbered = (1..).zip(addresses);
        self.members = numbered.map(|(node, at)| (NodeId(node), at.into())).collect();
        self
    }

    /// Adds one founding member with its peer address.
    #[must_use]
    pub fn member(mut self, node: u16, address: impl Into<String>) -> Self {
        self.members.push((NodeId(node), address.into()));
        self
    }

    /// This replica joins a cluster that is there: it founds none, and waits until it is made a member.
    /// The members named are itself and some of that cluster.
    #[must_use]
    pub fn join(mut self) -> Self {
        self.join = true;
        self
    }

    /// This replica is a witness: it votes, keeps no payloads and no state (its state machine is never
    /// asked), never leads, and serves no client. It joins, and a change has to name it among
    /// [`Change::witnesses`](crate::Change::witnesses). Its directory is a witness's from its first start on.
    #[must_use]
    pub fn witness(mut self) -> Self {
        self.join = true;
        self.witness = true;
        self
    }

    /// Where the log lives. Not needed for [`MediumKind::Memory`].
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// What keeps the log; [`MediumKind::File`] unless told otherwise.
    #[must_use]
    pub fn medium(mut self, medium: MediumKind) -> Self {
        self.medium = medium;
        self
    }

    /// Refuses to start with less than this.
    #[must_use]
    pub fn at_least(mut self, durability: Durability) -> Self {
        self.at_least = Some(durability);
        self
    }

    /// Bytes of a log segment.
    #[must_use]
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = Some(bytes);
        self
    }

    /// The address to listen on for peers, where it differs from the member's own address.
    #[must_use]
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = Some(address.into());
        self
    }

    /// Opens a port for [`crate::Client`]s in other processes; port 0 lets the system choose, see
    /// [`Replica::clients_address`]. Neither encrypted nor authenticated: keep it inside a trusted
    /// network.
    #[cfg(feature = "client")]
    #[must_use]
    pub fn clients(mut self, address: impl Into<String>) -> Self {
        self.clients = Some(address.into());
        self
    }

    /// Uses this transport instead of TCP.
    #[must_use]
    pub fn transport(mut self, transport: Box<dyn Transport>) -> Self {
        self.transport = Some(transport);
        self
    }

    /// Ships the log by RDMA, on the device that `adapter` describes; the default picks one. Messages
    /// and whatever RDMA cannot carry go over TCP as before. Starting fails where there is no device.
    #[cfg(feature = "rdma")]
    #[must_use]
    pub fn rdma(mut self, adapter: quorate_transport_rdma::AdapterOptions) -> Self {
        self.adapter = Some(adapter);
        self
    }

    /// Changes limits and timers.
    #[must_use]
    pub fn adjust(mut self, change: fn(&mut NodeOptions)) -> Self {
        self.adjust.push(change);
        self
    }

    /// Asks `ask`, about fifty times a second and on the replica's thread, whether this replica may lead.
    /// One that may not hands leadership over if it has it, and does not stand for election.
    #[must_use]
    pub fn may_lead(mut self, ask: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.may_lead = Some(MayLead::new(ask));
        self
    }

    /// Takes all limits and timers from `options`; node, members and seed stay the builder's.
    #[must_use]
    pub fn options(mut self, options: NodeOptions) -> Self {
        self.options = Some(options);
        self
    }

    /// Starts the replica on its own thread.
    ///
    /// The first start of a cluster needs all founding members once at the same time; after that a
    /// majority is enough.
    ///
    /// # Errors
    /// [`StartError`], which says what to do.
    pub fn start(mut self, machine: impl StateMachine) -> Result<Replica, StartError> {
        let options = self.node_options()?;
        if options.passive {
            self.check_passive()?;
        }
        let transport = self.take_transport()?;
        let (log, recovered) = self.open_log(transport.waker(), None)?;
        let spin = options.spin;
        let node = Node::new(options, transport, log, recovered, Box::new(machine))?;
        #[cfg(feature = "client")]
        let listener = match &self.clients {
            Some(address) => Some(listen_for_clients(address, node.handle())?),
            None => None,
        };
        Ok(Replica {
            #[cfg(feature = "client")]
            listener,
            runner: Runner::start(node, spin)?,
        })
    }

    /// Starts a process that holds many state machines, each replicated for itself, in place of one
    /// replica: see [`crate::Host`]. The builder's limits are those of each of them, much smaller by
    /// default.
    ///
    /// # Errors
    /// [`StartError`], which says what to do.
    pub fn host(self) -> Result<crate::Host, StartError> {
        crate::Host::start(self)
    }

    pub(crate) fn take_transport(&mut self) -> Result<Box<dyn Transport>, StartError> {
        match self.transport.take() {
            Some(transport) => Ok(transport),
            None => self.default_transport(),
        }
    }

    /// Changes the defaults before what the user changes.
    pub(crate) fn adjust_first(&mut self, change: fn(&mut NodeOptions)) {
        if self.options.is_none() {
            self.adjust.insert(0, change);
        }
    }

    pub(crate) fn default_segment_bytes(&mut self, bytes: u64) {
        self.segment_bytes.get_or_insert(bytes);
    }

    pub(crate) fn node_options(&self) -> Result<NodeOptions, StartError> {
        self.node_options_among(&self.members, self.join)
    }

    /// This process's number and its peer address, and whether it joins.
    pub(crate) fn own(&self) -> (NodeId, Option<&str>, bool) {
        let own = self.members.iter().find(|(node, _)| *node == self.node);
        (self.node, own.map(|(_, address)| address.as_str()), self.join)
    }

    pub(crate) fn members_named(&self) -> &[(NodeId, String)] {
        &self.members
    }

    pub(crate) fn node_options_among(
        &self,
        named: &[(NodeId, String)],
        join: bool,
    ) -> Result<NodeOptions, StartError> {
        let mut members: Vec<NodeId> = named.iter().map(|(node, _)| *node).collect();
        members.sort_unstable();
        if members.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(StartError::Options("two members have the same number".into()));
        }
        let mut options = match self.options.clone() {
            Some(options) => {
                NodeOptions { node: self.node, members, seed: crate::random(), ..options }
            }
            None => NodeOptions {
                protocol: crate::PROTOCOL_NEWEST,
                ..NodeOptions::new(self.node, members, crate::random())
            },
        };
        options.join |= join;
        options.witness |= self.witness;
        if options.addresses.is_empty() {
            let address = |(node, peer): &(NodeId, String)| crate::Address {
                node: *node,
                peer: peer.clone(),
                client: String::new(),
            };
            options.addresses = named.iter().map(address).collect();
        }
        for change in &self.adjust {
            change(&mut options);
        }
        if let Some(ask) = &self.may_lead {
            options.may_lead = ask.clone();
        }
        options.check().map_err(StartError::Options)?;
        Ok(options)
    }

    /// Opens the log, of a shard if `shard` says so.
    pub(crate) fn open_log(
        &self,
        waker: Arc<dyn Wake>,
        shard: Option<(u16, &SyncPool)>,
    ) -> Result<(Log, Recovered), StartError> {
        let gives = self.medium.durability();
        if let Some(asked) = self.at_least.filter(|asked| *asked > gives) {
            return Err(StartError::Durability { medium: self.medium, gives, asked });
        }
        let mut directory = match (&self.directory, self.medium) {
            (Some(directory), _) => directory.clone(),
            (None, MediumKind::Memory) => PathBuf::new(),
            (None, medium) => {
                let text = format!("the medium `{medium}` needs a directory");
                return Err(StartError::Options(text));
            }
        };
        if let Some((id, _)) = shard {
            directory.push(format!("shard-{id}"));
        }
        let options = LogOptions {
            directory,
            medium: self.medium,
            node: self.node,
            segment_bytes: self.segment_bytes.unwrap_or(SEGMENT_BYTES),
        };
        let wake = Arc::new(move || waker.wake());
        let incarnation = Incarnation(crate::random());
        Ok(match shard {
            Some((_, pool)) => Log::open_pooled(&options, incarnation, wake, pool)?,
            None => Log::open(&options, incarnation, wake)?,
        })
    }

    #[cfg(feature = "tcp")]
    fn listen_address(&self) -> Result<std::net::SocketAddr, StartError> {
        let own = self.members.iter().find(|(node, _)| *node == self.node);
        let listen = self.listen.as_ref().or(own.map(|(_, address)| address));
        let listen = listen.ok_or_else(|| {
            StartError::Options(format!("replica {} is not among the members", self.node))
        })?;
        resolve(listen)
    }

    /// The device that has the address which others dial, unless another one is described.
    #[cfg(feature = "rdma")]
    fn adapter_at(
        adapter: &quorate_transport_rdma::AdapterOptions,
        listen: std::net::SocketAddr,
    ) -> quorate_transport_rdma::AdapterOptions {
        let address = adapter.address.or(Some(listen.ip()));
        quorate_transport_rdma::AdapterOptions { address, ..adapter.clone() }
    }

    #[cfg(feature = "tcp")]
    fn default_transport(&self) -> Result<Box<dyn Transport>, StartError> {
        use quorate_transport_tcp::{TcpOptions, TcpTransport};
        let failed = |error: &dyn std::error::Error| StartError::Transport(error.to_string());
        let listen = self.listen_address()?;
        let peers = self.members.iter().filter(|(node, _)| *node != self.node).cloned().collect();
        let options = TcpOptions { local: self.node, listen, peers, cluster: 0 };
        #[cfg(feature = "rdma")]
        if let Some(adapter) = &self.adapter {
            use quorate_transport_rdma::{RdmaOptions, RdmaTransport, verbs};
            let adapter = Self::adapter_at(adapter, listen);
            let library = verbs::Library::load().map_err(|error| failed(&error))?;
            let options = RdmaOptions { tcp: options, adapter };
            let transport =
                RdmaTransport::bind(&library, options).map_err(|error| failed(&error))?;
            return Ok(Box::new(transport));
        }
        Ok(Box::new(TcpTransport::bind(options).map_err(|error| failed(&error))?))
    }

    /// Whether this replica may be a passive follower (decision 23, B6): its log promises nothing that memory
    /// does not keep, and its fence was shown to hold.
    #[cfg(feature = "passive")]
    fn check_passive(&self) -> Result<(), StartError> {
        use quorate_transport_rdma::{proof, verbs};
        if self.medium != MediumKind::Memory {
            return Err(StartError::Options(format!(
                "passive followers vote by what their memory holds, and the medium `{}` promises more: use \
                 `memory`, or leave `passive` out",
                self.medium
            )));
        }
        // Who brings a transport answers for its fence.
        if self.transport.is_some() {
            return Ok(());
        }
        let Some(adapter) = &self.adapter else {
            return Err(StartError::Options(
                "passive followers are written to by RDMA: describe the device (`Builder::rdma`), or leave \
                 `passive` out"
                    .into(),
            ));
        };
        let failed = |error: &dyn std::error::Error| StartError::Transport(error.to_string());
        let library = verbs::Library::load().map_err(|error| failed(&error))?;
        let adapter = Self::adapter_at(adapter, self.listen_address()?);
        proof::prove(&library, &adapter, self.directory.as_deref())
            .map(drop)
            .map_err(|error| failed(&error))
    }

    #[cfg(not(feature = "passive"))]
    fn check_passive(&self) -> Result<(), StartError> {
        Err(StartError::Options(
            "this build is without passive followers: build it with the feature `passive`, or leave \
             `passive` out"
                .into(),
        ))
    }

    #[cfg(not(feature = "tcp"))]
    fn default_transport(&self) -> Result<Box<dyn Transport>, StartError> {
        Err(StartError::Options("built without the feature `tcp`: give a transport".into()))
    }
}

#[cfg(feature = "client")]
fn listen_for_clients(
    address: &str,
    handle: Handle,
) -> Result<crate::remote::Listener, StartError> {
    crate::remote::Listener::bind(resolve(address)?, handle).map_err(|error| {
        StartError::Options(format!("clients cannot be served at {address}: {error}"))
    })
}

#[cfg(any(feature = "tcp", feature = "client"))]
fn resolve(address: &str) -> Result<std::net::SocketAddr, StartError> {
    use std::net::ToSocketAddrs;
    let resolved = address.to_socket_addrs().map(|mut addresses| addresses.next());
    match resolved {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(StartError::Options(format!("the address '{address}' has no IP address"))),
        Err(error) => Err(StartError::Options(format!(
            "the address '{address}' cannot be used ({error}): write it as HOST:PORT"
        ))),
    }
}
