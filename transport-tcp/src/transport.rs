//! [`TcpTransport`]: the contract over sockets.

use crate::lane::{Address, Dial, LANES, Peer};
use crate::links::{LISTENER_TOKEN, Pending, WAKER_TOKEN, WATCHED_TOKEN, token_lane};
use crate::queue::SEND_QUEUE_BYTES_MAX;
use crate::resolver::Resolver;
use crate::wire::{ASIDE_BYTES_MAX, HEADER_BYTES};
use crate::{BindError, Statistics, TcpOptions};
use bytes::Bytes;
use mio::net::TcpListener;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use quorate_consensus::NodeId;
use quorate_transport::codec::MESSAGE_BYTES_MAX;
use quorate_transport::integrity::Randomness;
use quorate_transport::region::{LentMemory, RegionTable};
use quorate_transport::{
    Event, Lane, LinkStatus, OpNumber, PeerError, PostError, RegionError, RegionId, Transport, Wake,
};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Readiness events that one system call brings.
const EVENTS_MAX: usize = 256;
/// The largest write: what a send queue holds.
const WRITE_BYTES_MAX: usize = SEND_QUEUE_BYTES_MAX - HEADER_BYTES;

/// A transport over TCP; see the [crate].
#[derive(Debug)]
pub struct TcpTransport {
    pub(crate) local: NodeId,
    pub(crate) cluster: u64,
    /// The cluster that ours was recovered from; 0 for none.
    pub(crate) lost_cluster: u64,
    address: SocketAddr,
    pub(crate) poll: Poll,
    readiness: Events,
    pub(crate) waker: Arc<mio::Waker>,
    pub(crate) listener: TcpListener,
    /// Connections may wait to be accepted,
    pub(crate) accept_ready: bool,
    /// but not before this.
    pub(crate) accept_after: Option<Instant>,
    /// In the order of their ids.
    pub(crate) peers: Vec<Peer>,
    regions: RegionTable,
    pub(crate) pending: Vec<Pending>,
    pub(crate) next_pending: usize,
    /// For the end of this poll, or the beginning of the next.
    pub(crate) events: Vec<Event>,
    /// Words beside the writes of data lanes, until somebody takes them.
    asides: Vec<(NodeId, Bytes)>,
    /// Whether anybody does.
    asides_wanted: bool,
    pub(crate) random: Randomness,
    pub(crate) resolver: Option<Resolver>,
    pub(crate) serial: u64,
    pub(crate) statistics: Statistics,
    /// Some lane is on its way up, or a connection greets.
    pub(crate) unsettled: bool,
    /// `park` has just asked the system what is ready.
    polled: bool,
    /// What it said was about watched descriptors, and about nothing else.
    only_watched: bool,
    /// When a refused connection was last logged.
    pub(crate) warned: Option<Instant>,
}

impl TcpTransport {
    /// Listens, and begins to dial the peers with lower ids.
    ///
    /// # Errors
    /// [`BindError`]: what is wrong and what to do.
    pub fn bind(options: TcpOptions) -> Result<Self, BindError> {
        let TcpOptions { local, listen, peers, cluster } = options;
        let peers = check_peers(local, peers)?;
        let mut listener = TcpListener::bind(listen).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address: listen },
            _ => BindError::Listen { address: listen, source },
        })?;
        let poll = Poll::new()?;
        let waker = Arc::new(mio::Waker::new(poll.registry(), WAKER_TOKEN)?);
        poll.registry().register(&mut listener, LISTENER_TOKEN, Interest::READABLE)?;
        let address = listener.local_addr()?;
        let mut transport = Self {
            local,
            cluster,
            lost_cluster: 0,
            address,
            poll,
            readiness: Events::with_capacity(EVENTS_MAX),
            waker,
            listener,
            accept_ready: true,
            accept_after: None,
            peers,
            regions: RegionTable::default(),
            pending: Vec::new(),
            next_pending: 0,
            events: Vec::new(),
            asides: Vec::new(),
            asides_wanted: false,
            // Nonces have to differ from life to life; they are no secrets.
            random: Randomness::new(RandomState::new().hash_one(local)),
            resolver: None,
            serial: 0,
            statistics: Statistics::default(),
            unsettled: true,
            polled: false,
            only_watched: false,
            warned: None,
        };
        for place in 0..transport.peers.len() {
            transport.dial_soon(place);
        }
        Ok(transport)
    }

    /// Where it listens: tells the port if the options asked for any.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Dials `peer` at `address` (`host:port`) from now on. Lanes that are up stay.
    ///
    /// # Errors
    /// [`BindError::Options`] for an unknown peer or what is no address.
    pub fn set_peer_address(&mut self, peer: NodeId, address: &str) -> Result<(), BindError> {
        let unknown = || BindError::Options(format!("replica {peer} is not a peer"));
        let place = self.place(peer).ok_or_else(unknown)?;
        self.peers[place].address = Address::parse(address).map_err(BindError::Options)?;
        self.dial_soon(place);
        Ok(())
    }

    /// What was sent and received, in how many system calls.
    #[must_use]
    pub const fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// As `register`, with memory of the caller's that others write as well; bytes that come over a
    /// socket are copied there.
    ///
    /// # Errors
    /// [`RegionError::Exists`].
    pub fn lend(
        &mut self,
        region: RegionId,
        memory: Arc<dyn LentMemory>,
    ) -> Result<(), RegionError> {
        self.regions.lend(region, memory)
    }

    /// Wakes `park` when `source` is readable, each time anew once it was not. What it says is the
    /// caller's to read. It ends with the source's last descriptor.
    ///
    /// # Errors
    /// The system's.
    pub fn watch(&self, source: &impl AsRawFd) -> io::Result<()> {
        let fd = source.as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&fd), WATCHED_TOKEN, Interest::READABLE)
    }

    /// Whether the last `park` ended because of watched descriptors, and for no other reason.
    #[must_use]
    pub const fn only_watched_is_ready(&self) -> bool {
        self.only_watched
    }

    /// Says something beside the writes of the data lane, in order with them, to what is built on it
    /// at the other end: up to 64 KiB. An end without anything built on it ignores it.
    ///
    /// # Errors
    /// [`PostError`]; then nothing was posted.
    pub fn send_aside(&mut self, peer: NodeId, word: Bytes) -> Result<(), PostError> {
        let place = self.place(peer).ok_or(PostError::Unknown(peer))?;
        let length = word.len();
        if length > ASIDE_BYTES_MAX {
            return Err(PostError::TooLarge { length, limit: ASIDE_BYTES_MAX });
        }
        let connection = &mut self.peers[place].lane(Lane::Data).connection;
        match connection.as_mut().filter(|connection| connection.broken.is_none()) {
            None => Err(PostError::Down(peer)),
            Some(connection) if !connection.has_room(length, 1) => Err(PostError::Full(peer)),
            Some(connection) => {
                connection.send_aside(word, &mut self.statistics);
                Ok(())
            }
        }
    }

    /// Takes what the other ends said beside their writes. From the first call on it is kept for the
    /// next one; before that it is dropped.
    pub fn take_asides(&mut self, into: &mut Vec<(NodeId, Bytes)>) {
        self.asides_wanted = true;
        into.append(&mut self.asides);
    }

    /// As [`Transport::reset`], for one of the two lanes.
    pub fn reset_lane(&mut self, peer: NodeId, lane: Lane, reason: &str) {
        let Some(place) = self.place(peer) else { return };
        let slot = self.peers[place].lane(lane);
        if slot.connection.is_some() || slot.ready.is_some() {
            self.drop_lane(place, lane, reason, true);
        }
    }

    pub(crate) fn place(&self, peer: NodeId) -> Option<usize> {
        self.peers.iter().position(|entry| entry.id == peer)
    }

    fn dial_soon(&mut self, place: usize) {
        if self.local < self.peers[place].id {
            return;
        }
        for lane in LANES {
            let slot = self.peers[place].lane(lane);
            if slot.connection.is_none() && slot.ready.is_none() {
                slot.dial = Dial::Waiting(Instant::now());
            }
        }
        self.unsettled = true;
    }

    /// Peers have other places than before, and answers of the resolver name places: those that are
    /// under way are for nobody.
    fn ask_for_names_again(&mut self) {
        for slot in self.peers.iter_mut().flat_map(|peer| &mut peer.lanes) {
            if let Dial::Resolving(_) = slot.dial {
                slot.dial = Dial::Waiting(Instant::now());
            }
        }
    }

    /// Asks the system what is ready, and remembers it.
    fn wait(&mut self, timeout: Duration) {
        self.only_watched = false;
        if self.poll.poll(&mut self.readiness, Some(timeout)).is_err() {
            // Interrupted: what is ready stays so.
            return;
        }
        let readiness = std::mem::replace(&mut self.readiness, Events::with_capacity(0));
        let watched = |event: &mio::event::Event| event.token() == WATCHED_TOKEN;
        self.only_watched = !readiness.is_empty() && readiness.iter().all(watched);
        for event in &readiness {
            match event.token() {
                WAKER_TOKEN => {
                    // Perhaps the resolver.
                    self.unsettled |= self.resolver.is_some();
                }
                // Whoever watches it asks itself.
                WATCHED_TOKEN => {}
                LISTENER_TOKEN => {
                    self.accept_ready = true;
                    self.unsettled = true;
                }
                token => match token_lane(token) {
                    Some((peer, lane)) => self.lane_is_ready(peer, lane, event),
                    None => self.pending_is_ready(token),
                },
            }
        }
        self.readiness = readiness;
    }

    fn lane_is_ready(&mut self, peer: NodeId, lane: Lane, event: &mio::event::Event) {
        let Some(place) = self.place(peer) else { return };
        let slot = self.peers[place].lane(lane);
        let closed = event.is_read_closed() || event.is_write_closed() || event.is_error();
        if let Some(connection) = &mut slot.connection {
            connection.readable |= event.is_readable() || closed;
            connection.writable |= event.is_writable();
            connection.read_closed |= closed;
        }
        match &mut slot.dial {
            Dial::Connecting { ready, .. } => *ready = true,
            Dial::Greeting(greeting) => greeting.ready = true,
            Dial::Idle | Dial::Waiting(_) | Dial::Resolving(_) => {}
        }
    }

    fn poll_lane(&mut self, place: usize, lane: Lane, events: &mut Vec<Event>) {
        let Some(connection) = &mut self.peers[place].lane(lane).connection else { return };
        if connection.unblocked() {
            connection.flush(&mut self.statistics);
        }
        if !connection.readable {
            connection.acknowledge(false, &mut self.statistics);
            return;
        }
        let asides = &mut self.asides;
        let received = connection.receive(&mut self.regions, events, asides, &mut self.statistics);
        let broken = connection.broken.take();
        match (received, broken) {
            (Ok(()), None) => {}
            (Ok(()), Some(reason)) => self.drop_lane(place, lane, &reason, false),
            (Err(error), _) => {
                self.drop_lane(place, lane, &error.to_string(), error.is_their_fault());
            }
        }
    }

    /// Whether the next poll has something to do without any news from the system.
    fn has_work(&self) -> bool {
        let mut lanes = self.peers.iter().flat_map(|peer| &peer.lanes);
        !self.events.is_empty()
            || lanes.any(|slot| slot.connection.as_ref().is_some_and(|at| at.readable))
    }
}

fn check_peers(local: NodeId, given: Vec<(NodeId, String)>) -> Result<Vec<Peer>, BindError> {
    let mut peers = Vec::with_capacity(given.len());
    for (id, address) in given {
        let address = Address::parse(&address)
            .map_err(|error| BindError::Options(format!("replica {id}: {error}")))?;
        peers.push(Peer::new(id, address));
    }
    peers.sort_by_key(|peer| peer.id);
    let twice = peers.windows(2).find(|pair| pair[0].id == pair[1].id);
    if let Some(pair) = twice {
        return Err(BindError::Options(format!("replica {} is a peer twice", pair[0].id)));
    }
    if local.0 == 0 || peers.iter().any(|peer| peer.id.0 == 0 || peer.id == local) {
        let what = "ids of replicas start at 1, and none is its own peer";
        return Err(BindError::Options(what.into()));
    }
    Ok(peers)
}

impl Transport for TcpTransport {
    fn set_cluster(&mut self, cluster: u64) {
        self.cluster = cluster;
        for place in 0..self.peers.len() {
            for lane in LANES {
                let connection = &self.peers[place].lane(lane).connection;
                let theirs = connection.as_ref().map_or(0, |connection| connection.cluster);
                if cluster != 0 && theirs != 0 && theirs != cluster {
                    self.drop_lane(place, lane, "it belongs to another cluster", true);
                }
            }
        }
    }

    fn set_lost_cluster(&mut self, cluster: u64) {
        self.lost_cluster = cluster;
    }

    fn local(&self) -> NodeId {
        self.local
    }

    fn peers(&self) -> Vec<NodeId> {
        self.peers.iter().map(|peer| peer.id).collect()
    }

    fn add_peer(&mut self, peer: NodeId, address: &str) -> Result<(), PeerError> {
        let unusable = |why: String| PeerError::Unusable(peer, address.to_owned(), why);
        if peer == self.local || peer.0 == 0 {
            return Err(unusable(
                "a replica is not its own peer, and none has the number 0".into(),
            ));
        }
        let parsed = Address::parse(address).map_err(unusable)?;
        let place = match self.peers.binary_search_by_key(&peer, |entry| entry.id) {
            Ok(place) => {
                if parsed == Address::Unset || parsed == self.peers[place].address {
                    return Ok(());
                }
                self.peers[place].address = parsed;
                place
            }
            Err(place) => {
                self.peers.insert(place, Peer::new(peer, parsed));
                self.ask_for_names_again();
                place
            }
        };
        self.dial_soon(place);
        Ok(())
    }

    fn remove_peer(&mut self, peer: NodeId) {
        let Some(place) = self.place(peer) else { return };
        for lane in LANES {
            let slot = self.peers[place].lane(lane);
            if slot.connection.is_some() || slot.ready.is_some() {
                self.drop_lane(place, lane, "it is no member any more", true);
            }
        }
        self.peers.remove(place);
        self.ask_for_names_again();
        self.events.retain(|event| event.peer() != peer);
        self.unsettled = true;
    }

    fn unregister(&mut self, region: RegionId) -> Result<(), RegionError> {
        self.regions.unregister(region)
    }

    fn register(&mut self, region: RegionId, length: usize) -> Result<(), RegionError> {
        self.regions.register(region, length)
    }

    fn grant(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        self.regions.grant(region, peer)
    }

    fn revoke(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        // Bytes land only inside of `poll`, on this thread, and pass the gate before each read:
        // when the grant is gone, nothing is half-way (C4). What was acknowledged had landed.
        self.regions.revoke(region, peer)
    }

    fn copy_out(&self, region: RegionId, offset: usize, into: &mut [u8]) {
        self.regions.copy_out(region, offset, into);
    }

    fn load(&self, region: RegionId, offset: usize) -> u64 {
        self.regions.load(region, offset)
    }

    fn write(
        &mut self,
        peer: NodeId,
        region: RegionId,
        offset: usize,
        pieces: &[Bytes],
    ) -> Result<OpNumber, PostError> {
        let place = self.place(peer).ok_or(PostError::Unknown(peer))?;
        let length = pieces.iter().map(Bytes::len).sum();
        if length > WRITE_BYTES_MAX {
            return Err(PostError::TooLarge { length, limit: WRITE_BYTES_MAX });
        }
        let connection = &mut self.peers[place].lane(Lane::Data).connection;
        match connection.as_mut().filter(|connection| connection.broken.is_none()) {
            None => Err(PostError::Down(peer)),
            Some(connection) if !connection.has_room(length, pieces.len()) => {
                Err(PostError::Full(peer))
            }
            Some(connection) => {
                Ok(connection.write(region, offset, length, pieces, &mut self.statistics))
            }
        }
    }

    fn send(&mut self, peer: NodeId, message: Bytes) -> Result<(), PostError> {
        let place = self.place(peer).ok_or(PostError::Unknown(peer))?;
        let length = message.len();
        if length > MESSAGE_BYTES_MAX {
            return Err(PostError::TooLarge { length, limit: MESSAGE_BYTES_MAX });
        }
        let connection = &mut self.peers[place].lane(Lane::Control).connection;
        match connection.as_mut().filter(|connection| connection.broken.is_none()) {
            None => Err(PostError::Down(peer)),
            Some(connection) if !connection.has_room(length, 1) => Err(PostError::Full(peer)),
            Some(connection) => {
                connection.send(message, &mut self.statistics);
                Ok(())
            }
        }
    }

    fn flush(&mut self) {
        for slot in self.peers.iter_mut().flat_map(|peer| &mut peer.lanes) {
            if let Some(connection) = &mut slot.connection {
                connection.flush(&mut self.statistics);
            }
        }
    }

    fn poll(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.events);
        if self.unsettled {
            self.promote(events);
        }
        if !std::mem::take(&mut self.polled) {
            self.wait(Duration::ZERO);
        }
        if self.unsettled {
            self.step_links();
        }
        for place in 0..self.peers.len() {
            for lane in LANES {
                self.poll_lane(place, lane, events);
            }
        }
        if !self.asides_wanted {
            self.asides.clear();
        }
        events.append(&mut self.events);
    }

    fn park(&mut self, timeout: Duration) {
        for slot in self.peers.iter_mut().flat_map(|peer| &mut peer.lanes) {
            if let Some(connection) = &mut slot.connection {
                connection.acknowledge(true, &mut self.statistics);
                connection.flush(&mut self.statistics);
            }
        }
        let mut timeout = if self.has_work() { Duration::ZERO } else { timeout };
        if self.unsettled {
            let now = Instant::now();
            let timer = self.next_timer(now);
            timeout = timeout.min(timer.map_or(timeout, |at| at.saturating_duration_since(now)));
        }
        self.wait(timeout);
        self.polled = true;
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(TcpWake(Arc::clone(&self.waker)))
    }

    fn hints(&self) -> bool {
        true
    }

    fn reset(&mut self, peer: NodeId, reason: &str) {
        for lane in LANES {
            self.reset_lane(peer, lane, reason);
        }
    }

    fn status(&self, peer: NodeId) -> LinkStatus {
        self.place(peer).map_or_else(LinkStatus::default, |place| self.peers[place].status())
    }
}

struct TcpWake(Arc<mio::Waker>);

impl Wake for TcpWake {
    fn wake(&self) {
        // It fails only when the kernel's counter is full of unseen wake-ups: then one is pending.
        if let Err(error) = self.0.wake() {
            tracing::debug!(%error, "a wake-up was refused");
        }
    }
}
