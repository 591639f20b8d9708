//! [`RdmaTransport`]: the contract over verbs, with TCP beside it.

use crate::adapter::Adapter;
use crate::link::{Failure, Shared};
use crate::negotiation::Building;
use crate::peer::{DataLane, Peer};
use crate::regions::{Lent, Regions};
use crate::send_queue::SEND_QUEUE_BYTES_MAX;
use crate::staging::Staging;
use crate::talk::{Offer, Word};
use crate::{RdmaOptions, StartError, Statistics};
use bytes::Bytes;
use quorate_consensus::{Incarnation, NodeId};
use quorate_ffi::verbs::{AsyncEvent, Library};
use quorate_transport::integrity::Randomness;
use quorate_transport::{
    Event, Lane, Level, LinkStatus, OpNumber, PeerError, PostError, RegionError, RegionId,
    Transport, Wake,
};
use quorate_transport_tcp::{BindError, TcpTransport};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// While nothing is being built, TCP and the device's news are looked at every so many polls: each
/// look is a system call, and a completion queue needs none.
const POLLS_PER_LOOK: u32 = 16;
/// After so many polls without a sleep the peers are told that nobody need ring.
const AWAKE_POLLS: u32 = 256;
/// The longest sleep: the peers look at the pulse of this loop.
const PARK_MAX: Duration = Duration::from_secs(1);

/// A transport over RDMA; see the [crate].
#[derive(Debug)]
pub struct RdmaTransport {
    local: NodeId,
    pub(crate) tcp: TcpTransport,
    // Links go before the device that they are on.
    pub(crate) peers: Vec<Peer>,
    pub(crate) regions: Regions,
    pub(crate) staging: Staging,
    pub(crate) adapter: Adapter,
    stall: Duration,
    random: Randomness,
    pub(crate) statistics: Statistics,
    /// For the next poll.
    events: Vec<Event>,
    pub(crate) inner_events: Vec<Event>,
    pub(crate) asides: Vec<(NodeId, Bytes)>,
    polls: u32,
    /// Polls since the last sleep.
    awake_polls: u32,
    /// Something is being built, or was just slept for: look at everything.
    pub(crate) unsettled: bool,
}

impl RdmaTransport {
    /// Opens the device, listens, and begins to dial the peers with lower ids.
    ///
    /// # Errors
    /// [`StartError`]: what is wrong and what to do. A port that is down is no error: lanes go over
    /// TCP until it comes up.
    pub fn bind(library: &Library, options: RdmaOptions) -> Result<Self, StartError> {
        let RdmaOptions { tcp, adapter } = options;
        let stall = adapter.stall();
        let adapter = Adapter::open(library, &adapter)?;
        let staging = Staging::new(adapter.domain())?;
        let local = tcp.local;
        let mut tcp = TcpTransport::bind(tcp)?;
        tcp.take_asides(&mut Vec::new());
        let watched = tcp.watch(adapter.channel()).and_then(|()| tcp.watch(adapter.device()));
        watched.map_err(BindError::Poll)?;
        let peers = tcp.peers().into_iter().map(Peer::new).collect();
        if let Err(error) = adapter.path() {
            tracing::warn!(%error, "RDMA is asked for and not usable now; lanes go over TCP");
        }
        Ok(Self {
            local,
            tcp,
            peers,
            regions: Regions::default(),
            staging,
            adapter,
            stall,
            // Sequence numbers and nonces have to differ from life to life; they are no secrets.
            random: Randomness::new(RandomState::new().hash_one(local)),
            statistics: Statistics::default(),
            events: Vec::new(),
            inner_events: Vec::new(),
            asides: Vec::new(),
            polls: 0,
            awake_polls: 0,
            unsettled: true,
        })
    }

    /// Where it listens: tells the port if the options asked for any.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.tcp.local_addr()
    }

    /// Dials `peer` at `address` (`host:port`) from now on. Lanes that are up stay.
    ///
    /// # Errors
    /// [`BindError::Options`] for an unknown peer or what is no address.
    pub fn set_peer_address(&mut self, peer: NodeId, address: &str) -> Result<(), BindError> {
        self.unsettled = true;
        self.tcp.set_peer_address(peer, address)
    }

    /// What was done by verbs.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics { staged_bytes: self.staging.copied, ..self.statistics }
    }

    /// What was done over TCP.
    #[must_use]
    pub const fn tcp_statistics(&self) -> quorate_transport_tcp::Statistics {
        self.tcp.statistics()
    }

    /// The device.
    #[must_use]
    pub const fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    pub(crate) fn place(&self, peer: NodeId) -> Option<usize> {
        self.peers.iter().position(|entry| entry.id == peer)
    }

    /// Says something; should it not get through, its TCP connection is ending anyway.
    pub(crate) fn say(&mut self, place: usize, word: &Word) {
        let peer = self.peers[place].id;
        if let Err(error) = self.tcp.send_aside(peer, word.encode()) {
            tracing::debug!(%peer, %error, "a word was not sent");
        }
    }

    /// What TCP tells, with the data lane's ups and downs as they are seen from here.
    fn translate(&mut self, now: Instant, events: &mut Vec<Event>) {
        let mut inner = std::mem::take(&mut self.inner_events);
        for event in inner.drain(..) {
            match event {
                Event::LinkUp { peer, lane: Lane::Data, incarnation } => {
                    if let Some(place) = self.place(peer) {
                        self.connected(place, incarnation, now, events);
                    }
                }
                Event::LinkDown { peer, lane: Lane::Data, reason } => {
                    if let Some(place) = self.place(peer)
                        && self.disconnected(place, &reason)
                    {
                        events.push(Event::LinkDown { peer, lane: Lane::Data, reason });
                    }
                }
                other => events.push(other),
            }
        }
        self.inner_events = inner;
    }

    /// A life of the lane's TCP connection begins: what carries the writes?
    fn connected(
        &mut self,
        place: usize,
        life: Incarnation,
        now: Instant,
        events: &mut Vec<Event>,
    ) {
        self.close(place);
        let peer = &mut self.peers[place];
        peer.life = Some(life);
        if peer.avoids_rdma() {
            let reason = peer.last_error.clone();
            self.over_tcp(place, Some(reason), now, events);
            return;
        }
        match self.start(place, false, now) {
            Ok((building, offer)) => {
                self.peers[place].lane = DataLane::Building(Box::new(building));
                self.say(place, &offer);
            }
            Err(reason) => {
                self.peers[place].rdma_failed(&reason, Duration::ZERO);
                self.statistics.failed += 1;
                self.over_tcp(place, Some(reason), now, events);
            }
        }
    }

    /// A life ends; whether the caller knew of it.
    fn disconnected(&mut self, place: usize, reason: &str) -> bool {
        self.close(place);
        let peer = &mut self.peers[place];
        peer.life = None;
        peer.retry_at = None;
        let known = std::mem::take(&mut peer.announced);
        if !known {
            reason.clone_into(&mut peer.last_error);
        }
        self.unsettled = true;
        known
    }

    fn start(
        &mut self,
        place: usize,
        beside: bool,
        now: Instant,
    ) -> Result<(Building, Word), String> {
        let nonces = (self.random.word(), self.random.word() as u32);
        let peer = self.peers[place].id;
        if let Some(reason) = self.regions.unfenced(peer) {
            return Err(reason);
        }
        let grants = self.regions.offered(peer);
        Building::start(&self.adapter, grants, nonces, beside, now)
            .map_err(|error| error.to_string())
    }

    /// This life goes over TCP. `why` is told to the other end, unless it said so itself.
    fn over_tcp(
        &mut self,
        place: usize,
        why: Option<String>,
        now: Instant,
        events: &mut Vec<Event>,
    ) {
        if let Some(why) = why {
            self.say(place, &Word::Tcp(why));
        }
        let local = self.local;
        let peer = &mut self.peers[place];
        peer.lane = DataLane::Tcp(None);
        if local > peer.id {
            peer.retry_later(now);
        }
        self.statistics.over_tcp += 1;
        tracing::warn!(peer = peer.id.0, reason = peer.last_error, "data lane goes over TCP");
        self.announce(place, events);
    }

    fn announce(&mut self, place: usize, events: &mut Vec<Event>) {
        let peer = &mut self.peers[place];
        if let Some(incarnation) = peer.life {
            peer.announced = true;
            events.push(Event::LinkUp { peer: peer.id, lane: Lane::Data, incarnation });
        }
    }

    fn hear(&mut self, now: Instant, events: &mut Vec<Event>) {
        self.tcp.take_asides(&mut self.asides);
        let mut asides = std::mem::take(&mut self.asides);
        for (peer, bytes) in asides.drain(..) {
            let Some(place) = self.place(peer) else { continue };
            match Word::decode(&bytes) {
                Ok(word) => self.on_word(place, word, now, events),
                Err(error) => {
                    let reason = error.to_string();
                    self.fail(place, &Failure { reason, unreachable: false });
                }
            }
        }
        self.asides = asides;
    }

    fn on_word(&mut self, place: usize, word: Word, now: Instant, events: &mut Vec<Event>) {
        let peer = &mut self.peers[place];
        match word {
            Word::Offer(offer) => self.on_offer(place, offer, now),
            Word::Tcp(why) => match &mut peer.lane {
                DataLane::Building(_) => {
                    peer.last_error = format!("the other end wants TCP: {why}");
                    self.over_tcp(place, None, now, events);
                }
                DataLane::Tcp(beside) => {
                    *beside = None;
                }
                _ => {}
            },
            Word::Ready(attempt) => {
                if let Some(building) = peer.building_mut().filter(|one| one.is(attempt)) {
                    building.on_ready();
                }
            }
            Word::Works(attempt) => {
                if let Some(building) = peer.building_mut().filter(|one| one.is(attempt)) {
                    building.on_works();
                }
            }
            Word::Failed(attempt, why) => {
                if peer.building_mut().is_some_and(|building| building.is(attempt)) {
                    let reason = format!("the other end could not build a connection: {why}");
                    self.not_built(place, &reason, false, now, events);
                }
            }
            Word::Grant(grant) => {
                if let Some(link) = peer.link_mut() {
                    link.granted(grant);
                } else if let Some(building) = peer.building_mut() {
                    building.granted(grant);
                }
            }
            Word::Ask(region) => self.on_ask(place, region),
            Word::Refused(region) => {
                let reason = format!("a write to region {region:?}, which is not granted");
                if peer.link().is_some_and(|link| link.wanted == Some((region, true))) {
                    self.fail(place, &Failure { reason, unreachable: false });
                }
            }
        }
        self.unsettled = true;
    }

    fn on_offer(&mut self, place: usize, offer: Offer, now: Instant) {
        // Tried beside a lane over TCP: the other end begins, this one joins in.
        if offer.beside && matches!(self.peers[place].lane, DataLane::Tcp(None)) {
            match self.start(place, true, now) {
                Ok((building, ours)) => {
                    self.peers[place].lane = DataLane::Tcp(Some(Box::new(building)));
                    self.say(place, &ours);
                }
                Err(reason) => {
                    self.peers[place].last_error.clone_from(&reason);
                    self.say(place, &Word::Tcp(reason));
                    return;
                }
            }
        }
        let building = self.peers[place].building_mut();
        let Some(building) = building.filter(|one| one.beside == offer.beside) else { return };
        match building.on_offer(offer) {
            Ok(ready) => self.say(place, &ready),
            // Its deadline comes at once, where all failures are treated alike.
            Err(error) => {
                building.deadline = now;
                self.peers[place].last_error = error.to_string();
            }
        }
    }

    /// A connection by verbs did not come up: the lane goes, or stays, over TCP.
    fn not_built(
        &mut self,
        place: usize,
        reason: &str,
        tell: bool,
        now: Instant,
        events: &mut Vec<Event>,
    ) {
        let local = self.local;
        let peer = &mut self.peers[place];
        peer.rdma_failed(reason, Duration::ZERO);
        self.statistics.failed += 1;
        let word = peer.building_mut().and_then(|building| building.failed(reason));
        if let Some(word) = word.filter(|_| tell) {
            self.say(place, &word);
        }
        let peer = &mut self.peers[place];
        if matches!(peer.lane, DataLane::Building(_)) {
            self.over_tcp(place, tell.then(|| reason.to_owned()), now, events);
        } else {
            peer.lane = DataLane::Tcp(None);
            if local > peer.id {
                peer.retry_later(now);
            }
        }
    }

    /// Goes on with what is being built, and begins what is due.
    fn build(&mut self, now: Instant, events: &mut Vec<Event>) {
        for place in 0..self.peers.len() {
            let peer = &mut self.peers[place];
            if matches!(peer.lane, DataLane::Tcp(None)) && peer.retry_at.is_some_and(|at| at <= now)
            {
                peer.retry_at = None;
                match self.start(place, true, now) {
                    Ok((building, offer)) => {
                        self.peers[place].lane = DataLane::Tcp(Some(Box::new(building)));
                        self.say(place, &offer);
                    }
                    Err(reason) => {
                        self.peers[place].last_error = reason;
                        self.peers[place].retry_later(now);
                    }
                }
            }
            let Some(building) = self.peers[place].building_mut() else { continue };
            match building.step() {
                Ok(Some(word)) => self.say(place, &word),
                Ok(None) => {}
                Err(reason) => {
                    self.not_built(place, &reason, true, now, events);
                    continue;
                }
            }
            let Some(building) = self.peers[place].building_mut() else { continue };
            if building.is_proved() {
                self.proved(place, now, events);
            } else if building.deadline <= now {
                let reason = match self.peers[place].last_error.as_str() {
                    "" => "no probe arrived in time: does RDMA get through between the two?".into(),
                    error => format!("no connection by verbs in time; last: {error}"),
                };
                self.not_built(place, &reason, true, now, events);
            }
        }
        let busy = |peer: &Peer| {
            matches!(peer.lane, DataLane::Building(_) | DataLane::Tcp(_) | DataLane::Down)
        };
        self.unsettled = self.peers.iter().any(busy);
    }

    /// Both probes arrived: the lane is up by verbs, or will be in its next life.
    fn proved(&mut self, place: usize, now: Instant, events: &mut Vec<Event>) {
        let local = self.local;
        let peer = &mut self.peers[place];
        match std::mem::take(&mut peer.lane) {
            DataLane::Building(building) => {
                let Some(link) = building.finish(now) else { return };
                tracing::info!(peer = peer.id.0, pair = link.pair_number(), "data lane by RDMA");
                peer.lane = DataLane::Rdma(Box::new(link));
                peer.last_error.clear();
                self.statistics.built += 1;
                self.announce(place, events);
            }
            _ => {
                peer.lane = DataLane::Tcp(None);
                peer.rdma_works();
                if local > peer.id {
                    let id = peer.id;
                    self.tcp.reset_lane(id, Lane::Data, "RDMA works again: back to it");
                }
            }
        }
    }

    /// What the device tells unasked; whether it did.
    fn device_news(&mut self, now: Instant) -> bool {
        let mut some = false;
        while let Some(event) = self.adapter.device().next_event() {
            some = true;
            let device = self.adapter.device().name().to_owned();
            match event {
                AsyncEvent::QueuePair(number, words) => {
                    let hit =
                        |peer: &Peer| peer.link().is_some_and(|link| link.pair_number() == number);
                    if let Some(place) = self.peers.iter().position(hit) {
                        let reason = format!("the connection failed: {words}");
                        self.fail(place, &Failure { reason, unreachable: false });
                    }
                }
                AsyncEvent::PortDown(port) => {
                    let reason = format!(
                        "port {port} of {device} went down: bring its network interface up"
                    );
                    self.fail_all(&reason);
                }
                AsyncEvent::CompletionQueueOverrun => {
                    let reason = format!("a completion queue of {device} overran");
                    self.fail_all(&reason);
                }
                AsyncEvent::Fatal => self.fail_all(&format!("{device} failed")),
                AsyncEvent::PortUp(port) => {
                    tracing::info!(device, port, "port is up");
                    for peer in &mut self.peers {
                        peer.retry_at = peer.retry_at.map(|_| now);
                    }
                }
                AsyncEvent::Other(code) => tracing::debug!(device, code, "device event"),
            }
        }
        some
    }

    fn fail_all(&mut self, reason: &str) {
        for place in 0..self.peers.len() {
            if self.peers[place].link().is_some() {
                let reason = reason.to_owned();
                self.fail(place, &Failure { reason, unreachable: true });
            }
        }
    }

    /// Takes completions and posts what waits; whether the caller has something to look at.
    fn turn_links(&mut self, events: &mut Vec<Event>) -> bool {
        let mut news = false;
        for place in 0..self.peers.len() {
            let mut shared = Shared {
                staging: &mut self.staging,
                statistics: &mut self.statistics,
                stall: self.stall,
            };
            let peer = &mut self.peers[place];
            let id = peer.id;
            let Some(link) = peer.link_mut() else { continue };
            link.beat();
            let turned = link.poll(&mut shared).and_then(|()| link.pump(&mut shared));
            news |= link.take_news();
            if let Some(through) = link.completed() {
                let level = Level::Accepted;
                events.push(Event::Completed { peer: id, through, level });
            }
            if let Err(failure) = turned {
                news = true;
                self.fail(place, &failure);
            }
        }
        news
    }

    /// Lets the next completion of any connection end a sleep, and tells the peers to ring.
    fn arm(&mut self) {
        for place in 0..self.peers.len() {
            let armed = match &mut self.peers[place].lane {
                DataLane::Rdma(link) => {
                    link.may_sleep(true);
                    link.arm()
                }
                DataLane::Building(building) | DataLane::Tcp(Some(building)) => {
                    building.arm();
                    Ok(())
                }
                DataLane::Down | DataLane::Tcp(None) => Ok(()),
            };
            if let Err(failure) = armed {
                self.fail(place, &failure);
            }
        }
    }

    /// Asks for the regions that writes wait for.
    fn ask(&mut self) {
        for place in 0..self.peers.len() {
            let wanted = self.peers[place].link_mut().and_then(|link| link.wanted.as_mut());
            if let Some((region, asked)) = wanted.filter(|(_, asked)| !asked) {
                *asked = true;
                let region = *region;
                self.say(place, &Word::Ask(region));
                self.unsettled = true;
            }
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        let timers = self.peers.iter().filter_map(|peer| match &peer.lane {
            DataLane::Down => None,
            DataLane::Building(building) | DataLane::Tcp(Some(building)) => Some(building.deadline),
            DataLane::Rdma(link) => Some(link.timer(self.stall)),
            DataLane::Tcp(None) => peer.retry_at,
        });
        timers.min()
    }
}

impl Transport for RdmaTransport {
    fn local(&self) -> NodeId {
        self.local
    }

    fn peers(&self) -> Vec<NodeId> {
        self.tcp.peers()
    }

    fn add_peer(&mut self, peer: NodeId, address: &str) -> Result<(), PeerError> {
        self.tcp.add_peer(peer, address)?;
        if self.place(peer).is_none() {
            self.peers.push(Peer::new(peer));
        }
        self.unsettled = true;
        Ok(())
    }

    fn remove_peer(&mut self, peer: NodeId) {
        if let Some(place) = self.place(peer) {
            self.close(place);
            self.peers.remove(place);
        }
        self.tcp.remove_peer(peer);
        self.unsettled = true;
    }

    fn register(&mut self, region: RegionId, length: usize) -> Result<(), RegionError> {
        let memory = self.regions.register(region, length)?;
        self.tcp.lend(region, Arc::new(Lent(memory)))
    }

    fn unregister(&mut self, region: RegionId) -> Result<(), RegionError> {
        self.regions.unregister(region)?;
        self.tcp.unregister(region)
    }

    fn grant(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        let granted = self.regions.grant(self.adapter.domain(), region, peer)?;
        self.tcp.grant(region, peer)?;
        if let (Some(grant), Some(place)) = (granted, self.place(peer))
            && self.peers[place].life.is_some()
        {
            self.say(place, &Word::Grant(grant));
        }
        Ok(())
    }

    fn grant_for_life(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        self.lend_for_life(region, peer)
    }

    fn revoke(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        self.take_back(region, peer)
    }

    fn copy_out(&self, region: RegionId, offset: usize, into: &mut [u8]) {
        self.regions.memory(region).copy_out(offset, into);
    }

    fn load(&self, region: RegionId, offset: usize) -> u64 {
        self.regions.memory(region).load(offset)
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
        match &mut self.peers[place].lane {
            DataLane::Tcp(_) => self.tcp.write(peer, region, offset, pieces),
            DataLane::Rdma(_) if length > SEND_QUEUE_BYTES_MAX => {
                Err(PostError::TooLarge { length, limit: SEND_QUEUE_BYTES_MAX })
            }
            DataLane::Rdma(link) => {
                let room = link.has_room(length, pieces.len());
                let post = || link.write(region, offset, pieces);
                room.then(post).ok_or(PostError::Full(peer))
            }
            DataLane::Down | DataLane::Building(_) => Err(PostError::Down(peer)),
        }
    }

    fn send(&mut self, peer: NodeId, message: Bytes) -> Result<(), PostError> {
        self.tcp.send(peer, message)
    }

    fn flush(&mut self) {
        for place in 0..self.peers.len() {
            let mut shared = Shared {
                staging: &mut self.staging,
                statistics: &mut self.statistics,
                stall: self.stall,
            };
            let Some(link) = self.peers[place].link_mut() else { continue };
            if let Err(failure) = link.pump(&mut shared) {
                self.fail(place, &failure);
            }
        }
        self.ask();
        self.answer();
        self.tcp.flush();
    }

    fn poll(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.events);
        self.begin_poll();
        self.polls = self.polls.wrapping_add(1);
        if self.unsettled || self.polls.is_multiple_of(POLLS_PER_LOOK) {
            let now = Instant::now();
            let mut inner = std::mem::take(&mut self.inner_events);
            self.tcp.poll(&mut inner);
            self.inner_events = inner;
            self.translate(now, events);
            self.hear(now, events);
            self.device_news(now);
            self.build(now, events);
        }
        self.awake_polls = self.awake_polls.saturating_add(1);
        if self.awake_polls == AWAKE_POLLS {
            self.peers.iter_mut().filter_map(Peer::link_mut).for_each(|link| link.may_sleep(false));
        }
        self.turn_links(events);
        self.ask();
    }

    /// Ends with a bell, with anything over TCP, or with the time; a completion alone does not end
    /// it, unless a write was refused before for want of room.
    fn park(&mut self, timeout: Duration) {
        let end = Instant::now() + timeout.min(PARK_MAX);
        let news = |event: &Event| !matches!(event, Event::Completed { .. });
        let mut awake = self.events.iter().any(news);
        self.awake_polls = 0;
        self.answer();
        loop {
            self.adapter.channel().drain();
            self.arm();
            // What came before the arming makes no event: look once more. This also posts the word
            // that we may be asleep; its completion wakes us for a last look at the regions.
            let mut events = std::mem::take(&mut self.events);
            awake |= self.turn_links(&mut events);
            self.events = events;
            self.ask();
            let now = Instant::now();
            let timer = self.next_timer().map_or(end, |at| at.min(end));
            awake |= timer <= now;
            let left = if awake { Duration::ZERO } else { timer - now };
            self.tcp.park(left);
            awake |= self.device_news(now) || self.peers.iter_mut().any(Peer::is_building);
            if awake || !self.tcp.only_watched_is_ready() {
                break;
            }
        }
        self.unsettled = true;
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.tcp.waker()
    }

    fn hints(&self) -> bool {
        false
    }

    fn reset(&mut self, peer: NodeId, reason: &str) {
        let Some(place) = self.place(peer) else { return };
        // In this order: see `fail`.
        self.tcp.reset(peer, reason);
        self.close(place);
        self.unsettled = true;
    }

    fn set_cluster(&mut self, cluster: u64) {
        self.tcp.set_cluster(cluster);
    }

    fn set_lost_cluster(&mut self, cluster: u64) {
        self.tcp.set_lost_cluster(cluster);
        self.unsettled = true;
    }

    fn status(&self, peer: NodeId) -> LinkStatus {
        let tcp = self.tcp.status(peer);
        let Some(place) = self.place(peer) else { return tcp };
        let entry = &self.peers[place];
        let link = entry.link();
        LinkStatus {
            data_up: entry.announced && !matches!(entry.lane, DataLane::Down),
            carrier: if link.is_some() { "rdma" } else { "tcp" },
            queued_bytes: tcp.queued_bytes + link.map_or(0, crate::link::Link::queued_bytes),
            last_error: if entry.last_error.is_empty() {
                tcp.last_error
            } else {
                entry.last_error.clone()
            },
            ..tcp
        }
    }
}
