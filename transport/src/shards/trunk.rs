//! [`Trunk`]: the links of one process, and which shards ride on them.

use super::parting::{Goodbyes, Partings};
use super::{SHARDS_MAX, ShardError, ShardId, ShardTransport, shard_of};
use crate::integrity::{Randomness, mix};
use crate::{Event, Lane, Level, OpNumber, PostError, RegionId, Transport, Wake};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_consensus::{Incarnation, NodeId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// A shard that started over with a peer is gone for this long, so that a standing disagreement costs
/// little.
const RESET_PAUSE: Duration = Duration::from_millis(50);
/// Accepted writes that are remembered until they are known visible.
const ACCEPTED_MAX: usize = 4096;
/// In the place of a shard's number of a write that was made in an earlier life of its lane.
const FORGOTTEN: OpNumber = OpNumber(0);
/// Shards named in one control message.
pub(super) const NAMED_MAX: usize = 4096;
/// Stands for the trunk itself, where a message names its shard. A trunk that does not know such
/// messages takes them for those of a shard that is not there.
pub(super) const TRUNK: ShardId = ShardId(u16::MAX);

pub(super) const MESSAGE: u8 = 0;
const HELLO: u8 = 1;
const BYE: u8 = 2;
/// Bytes before a shard's message.
pub(super) const MESSAGE_HEADER_BYTES: usize = 7;

/// The links of one process, shared by its shards. Clones share it.
#[derive(Clone)]
pub struct Trunk {
    inner: Arc<Mutex<Inner>>,
    /// Threads that wait for the lock while the driving one may be asleep with it.
    guests: Arc<AtomicUsize>,
    waker: Arc<dyn Wake>,
}

pub(super) struct Inner {
    pub(super) transport: Box<dyn Transport>,
    pub(super) links: BTreeMap<NodeId, Link>,
    pub(super) shards: BTreeMap<ShardId, Shard>,
    /// The peers that the transport came with: those of a shard that names none.
    pub(super) first: Vec<NodeId>,
    pub(super) partings: Partings,
    /// Peers with a lane that is down, and since when their present address is tried.
    pub(super) unreached: BTreeMap<NodeId, Instant>,
    /// A host polls and flushes for all; otherwise each shard does.
    driven: bool,
    pub(super) random: Randomness,
    /// Shards that started over, in the order in which they go on.
    pauses: VecDeque<(Instant, NodeId, ShardId)>,
    events: Vec<Event>,
}

/// One peer's lanes, as the transport has them.
#[derive(Default)]
pub(super) struct Link {
    pub(super) control: Option<Incarnation>,
    pub(super) data: Option<Incarnation>,
    /// Where it was last said to be.
    pub(super) address: String,
    /// What the peer must still be told, by shard: the epoch, or none for goodbye.
    pub(super) untold: BTreeMap<ShardId, Option<u64>>,
    pub(super) goodbyes: Goodbyes,
    /// Who made the writes that are not known visible: the link's number, the shard, its own number.
    writes: VecDeque<(OpNumber, ShardId, OpNumber)>,
    /// How many of them, from the front, are known accepted.
    accepted: usize,
    /// The last write of this life, and the last that is known accepted.
    pub(super) posted: OpNumber,
    pub(super) reached: OpNumber,
}

/// One shard at this end.
pub(super) struct Shard {
    /// One for each of its peers.
    pub(super) ties: BTreeMap<NodeId, Tie>,
    /// By the names that it uses: how long they are, and who may write there.
    pub(super) regions: BTreeMap<RegionId, (usize, Vec<NodeId>)>,
    /// Told at its next poll.
    pub(super) events: Vec<Event>,
    ready: Arc<dyn Wake>,
    /// Its regions are there: peers may be told of it.
    pub(super) open: bool,
}

/// One shard's lanes to one peer.
#[derive(Default)]
pub(super) struct Tie {
    pub(super) mine: u64,
    pub(super) theirs: Option<u64>,
    /// Where this shard says that the peer is.
    pub(super) address: String,
    /// The peer was told our epoch in this life of the link. It may not have listened: then it says
    /// hello when it does, and is told again before anything else.
    pub(super) told: bool,
    pub(super) paused: bool,
    pub(super) control: Option<Incarnation>,
    pub(super) data: Option<Incarnation>,
    pub(super) last_write: OpNumber,
    pub(super) reconnects: u64,
    pub(super) last_error: String,
}

impl Trunk {
    /// Shares `transport`; `seed` is a random number, from which the shards' epochs are drawn.
    #[must_use]
    pub fn new(transport: Box<dyn Transport>, seed: u64) -> Self {
        let waker = transport.waker();
        let first = transport.peers();
        let links = first.iter().map(|peer| (*peer, Link::default())).collect();
        let now = Instant::now();
        let unreached = first.iter().map(|peer| (*peer, now)).collect();
        let random = Randomness::new(seed);
        let inner = Inner {
            transport,
            links,
            shards: BTreeMap::new(),
            first,
            partings: Partings::default(),
            unreached,
            driven: false,
            random,
            pauses: VecDeque::new(),
            events: Vec::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), guests: Arc::default(), waker }
    }

    /// This end of a shard, with the peers that the trunk's transport came with. `ready` is woken when
    /// something waits for it; it must not call back. The peers learn of the shard at its first poll, when
    /// its regions are registered. It ends when it is dropped, and may then be made again.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn shard(&self, id: ShardId, ready: Arc<dyn Wake>) -> Result<ShardTransport, ShardError> {
        let first = self.lock().first.iter().map(|peer| (*peer, String::new())).collect::<Vec<_>>();
        self.shard_among(id, &first, ready)
    }

    /// As [`Trunk::shard`], with these peers and their addresses (as in [`Transport::add_peer`]).
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn shard_among(
        &self,
        id: ShardId,
        peers: &[(NodeId, String)],
        ready: Arc<dyn Wake>,
    ) -> Result<ShardTransport, ShardError> {
        if id.0 >= SHARDS_MAX {
            return Err(ShardError::TooHigh(id));
        }
        let mut inner = self.lock();
        if inner.shards.contains_key(&id) {
            return Err(ShardError::Exists(id));
        }
        let shard = Shard {
            ties: BTreeMap::new(),
            regions: BTreeMap::new(),
            events: Vec::new(),
            ready: Arc::clone(&ready),
            open: false,
        };
        inner.shards.insert(id, shard);
        for (peer, address) in peers {
            if let Err(error) = inner.add_peer(id, *peer, address) {
                inner.close(id);
                return Err(ShardError::Peer(error));
            }
        }
        Ok(ShardTransport::new(self.clone(), id, inner.transport.local(), ready))
    }

    /// From now on the caller polls, flushes and parks for all shards.
    pub fn drive(&self) {
        self.lock().driven = true;
    }

    /// Receives what arrived, and wakes the shards that it concerns. Returns whether anything came.
    pub fn poll(&self) -> bool {
        self.lock().poll()
    }

    /// Sends what the shards posted.
    pub fn flush(&self) {
        let mut inner = self.lock();
        inner.tell_peers();
        inner.transport.flush();
    }

    /// Sleeps until something arrives, [`Trunk::waker`] is called or the time is over.
    pub fn park(&self, timeout: Duration) {
        let mut inner = self.lock();
        // Whoever comes after this look wakes the park.
        if self.guests.load(Ordering::SeqCst) == 0 {
            inner.transport.park(timeout);
        }
        drop(inner);
        while self.guests.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }

    /// Wakes [`Trunk::park`].
    #[must_use]
    pub fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.waker)
    }

    /// See [`Transport::hints`]: without them every shard must be looked at in every turn.
    #[must_use]
    pub fn hints(&self) -> bool {
        self.lock().transport.hints()
    }

    /// One thread drives all shards and finds the lock free. Another one, that opens a shard, gets it
    /// when the driving one was woken.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.guests.fetch_add(1, Ordering::SeqCst);
                self.waker.wake();
                let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
                self.guests.fetch_sub(1, Ordering::SeqCst);
                inner
            }
        }
    }
}

impl std::fmt::Debug for Trunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trunk").finish_non_exhaustive()
    }
}

impl Inner {
    /// For a shard that asks for its events.
    pub(super) fn take_events(&mut self, id: ShardId, events: &mut Vec<Event>) {
        if !self.driven {
            self.poll();
        }
        let Some(shard) = self.shards.get_mut(&id) else { return };
        if !shard.open {
            shard.open = true;
            let peers: Vec<NodeId> = shard.ties.keys().copied().collect();
            for peer in peers {
                self.greet(peer, id);
            }
            self.tell_peers();
        }
        if let Some(shard) = self.shards.get_mut(&id) {
            events.append(&mut shard.events);
        }
    }

    pub(super) fn flush_undriven(&mut self) {
        if !self.driven {
            self.tell_peers();
            self.transport.flush();
        }
    }

    fn poll(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.events);
        self.transport.poll(&mut events);
        let came = !events.is_empty();
        for event in events.drain(..) {
            self.on_event(event);
        }
        self.events = events;
        self.end_pauses();
        self.try_other_addresses();
        self.tell_peers();
        came
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::LinkUp { peer, lane, incarnation } => self.on_link_up(peer, lane, incarnation),
            Event::LinkDown { peer, lane, reason } => self.on_link_down(peer, lane, &reason),
            Event::Control { peer, message } => {
                if self.on_message(peer, message).is_none() {
                    self.transport.reset(peer, "a message to its shards cannot be read");
                }
            }
            Event::Written { peer, region } => {
                let (id, region) = shard_of(region);
                let shard = self.shards.get_mut(&id);
                // One that it parted from may be writing for a moment.
                if let Some(shard) = shard.filter(|shard| shard.ties.contains_key(&peer)) {
                    shard.tell(Event::Written { peer, region });
                }
            }
            Event::Completed { peer, through, level } => {
                let Some(link) = self.links.get_mut(&peer) else { return };
                for (id, through) in link.completed(through, level) {
                    self.tell(id, Event::Completed { peer, through, level });
                }
            }
        }
    }

    fn tell(&mut self, id: ShardId, event: Event) {
        if let Some(shard) = self.shards.get_mut(&id) {
            shard.tell(event);
        }
    }

    fn on_link_up(&mut self, peer: NodeId, lane: Lane, incarnation: Incarnation) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        match lane {
            Lane::Control => {
                link.control = Some(incarnation);
                link.untold.clear();
                link.goodbyes.begin(self.partings.with(peer));
                for (id, shard) in self.shards.iter().filter(|(_, shard)| shard.open) {
                    if let Some(tie) = shard.ties.get(&peer).filter(|tie| tie.is_on()) {
                        link.untold.insert(*id, Some(tie.mine));
                    }
                }
            }
            Lane::Data => link.data = Some(incarnation),
        }
        if link.control.is_some() && link.data.is_some() {
            self.unreached.remove(&peer);
        }
        self.settle_peer(peer, "");
    }

    fn on_link_down(&mut self, peer: NodeId, lane: Lane, reason: &str) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        match lane {
            Lane::Control => {
                link.control = None;
                link.untold.clear();
                link.goodbyes = Goodbyes::default();
                // The process behind a new link may be another one: its shards say hello again.
                for shard in self.shards.values_mut() {
                    if let Some(tie) = shard.ties.get_mut(&peer) {
                        tie.theirs = None;
                        tie.told = false;
                    }
                }
            }
            Lane::Data => {
                link.data = None;
                link.writes.clear();
                link.accepted = 0;
                (link.posted, link.reached) = (OpNumber(0), OpNumber(0));
            }
        }
        self.unreached.entry(peer).or_insert_with(Instant::now);
        self.settle_peer(peer, reason);
    }

    fn on_message(&mut self, peer: NodeId, mut message: Bytes) -> Option<()> {
        if message.is_empty() {
            return None;
        }
        match message.get_u8() {
            MESSAGE if message.len() + 1 >= MESSAGE_HEADER_BYTES => {
                let (id, tag) = (ShardId(message.get_u16_le()), message.get_u32_le());
                if id == TRUNK {
                    return self.on_trunk_message(peer, message);
                }
                // What is for a shard that is not here, of no peer of it, or of an earlier life, is dropped.
                let Some(shard) = self.shards.get_mut(&id) else { return Some(()) };
                let life = shard.ties.get(&peer).and_then(|tie| tie.control);
                if life.is_some_and(|incarnation| incarnation.0 as u32 == tag) {
                    shard.tell(Event::Control { peer, message });
                }
            }
            HELLO if message.len().is_multiple_of(10) => {
                while !message.is_empty() {
                    let (id, epoch) = (ShardId(message.get_u16_le()), message.get_u64_le());
                    self.on_epoch(peer, id, Some(epoch));
                }
            }
            BYE if message.len().is_multiple_of(2) => {
                while !message.is_empty() {
                    let id = ShardId(message.get_u16_le());
                    self.on_epoch(peer, id, None);
                }
            }
            _ => return None,
        }
        Some(())
    }

    pub(super) fn on_epoch(&mut self, peer: NodeId, id: ShardId, epoch: Option<u64>) {
        // A shard that is not here, or not yet: it will say hello itself, and hears it again then.
        let Some(shard) = self.shards.get_mut(&id) else { return };
        let Some(tie) = shard.ties.get_mut(&peer) else { return };
        let is_news = epoch.is_some() && tie.theirs != epoch;
        tie.theirs = epoch;
        // It may not have been there when we said hello: it hears it again before anything else. If it
        // was, it is up already, and what it says next is for this life.
        if is_news
            && shard.open
            && tie.is_on()
            && let Some(link) = self.links.get_mut(&peer)
        {
            link.untold.insert(id, Some(tie.mine));
        }
        self.settle(peer, id, "the shard there started over, or parted");
    }

    /// A shard starts over with a peer.
    pub(super) fn reset(&mut self, peer: NodeId, id: ShardId, reason: &str) {
        let epoch = self.random.word();
        let Some(tie) = self.shards.get_mut(&id).and_then(|shard| shard.ties.get_mut(&peer)) else {
            return;
        };
        tie.mine = epoch;
        tie.told = false;
        if !tie.paused {
            tie.paused = true;
            self.pauses.push_back((Instant::now() + RESET_PAUSE, peer, id));
        }
        if let Some(link) = self.links.get_mut(&peer) {
            link.untold.insert(id, None);
        }
        self.settle(peer, id, reason);
    }

    fn end_pauses(&mut self) {
        while let Some((_, peer, id)) =
            self.pauses.pop_front_if(|(until, ..)| Instant::now() >= *until)
        {
            let tie = self.shards.get_mut(&id).and_then(|shard| shard.ties.get_mut(&peer));
            let Some(tie) = tie else { continue };
            tie.paused = false;
            if let Some(link) = self.links.get_mut(&peer) {
                link.untold.insert(id, Some(tie.mine));
            }
            self.settle(peer, id, "");
        }
    }

    /// Says hello and goodbye, as far as the control lanes take it. Goodbyes go first, so that a
    /// peer that missed one learns of it by the other epoch.
    fn tell_peers(&mut self) {
        let mut told = Vec::new();
        for (peer, link) in &mut self.links {
            while link.control.is_some() && !link.untold.is_empty() {
                let bye = link.untold.values().any(Option::is_none);
                let named: Vec<_> = link
                    .untold
                    .iter()
                    .filter(|(_, epoch)| epoch.is_none() == bye)
                    .map(|(id, epoch)| (*id, *epoch))
                    .take(NAMED_MAX)
                    .collect();
                let mut message = BytesMut::with_capacity(1 + 10 * named.len());
                message.put_u8(if bye { BYE } else { HELLO });
                for (id, epoch) in &named {
                    message.put_u16_le(id.0);
                    if let Some(epoch) = epoch {
                        message.put_u64_le(*epoch);
                    }
                }
                if self.transport.send(*peer, message.freeze()).is_err() {
                    break;
                }
                for (id, epoch) in named {
                    link.untold.remove(&id);
                    if epoch.is_some() {
                        told.push((*peer, id));
                    }
                }
            }
        }
        self.tell_goodbyes();
        for (peer, id) in told {
            let tie = self.shards.get_mut(&id).and_then(|shard| shard.ties.get_mut(&peer));
            if let Some(tie) = tie {
                tie.told = true;
                self.settle(peer, id, "");
            }
        }
    }

    fn settle_peer(&mut self, peer: NodeId, reason: &str) {
        let ids: Vec<ShardId> = self.shards.keys().copied().collect();
        for id in ids {
            self.settle(peer, id, reason);
        }
    }

    /// Brings a shard's lanes to a peer to what they should be, and tells the shard.
    fn settle(&mut self, peer: NodeId, id: ShardId, reason: &str) {
        let local = self.transport.local();
        let Some(link) = self.links.get(&peer) else { return };
        let Some(shard) = self.shards.get_mut(&id) else { return };
        let Some(tie) = shard.ties.get_mut(&peer) else { return };
        // The peer must have our epoch before anything of this life reaches it.
        let theirs = tie.theirs.filter(|_| shard.open && tie.is_on() && tie.told);
        let life = |link: Option<Incarnation>| {
            let (low, high) = if local < peer { (tie.mine, theirs?) } else { (theirs?, tie.mine) };
            Some(Incarnation(mix(mix(link?.0, u64::from(id.0), low), high, 0).max(1)))
        };
        let (control, data) = (life(link.control), life(link.data));
        let ended = tie.data.is_some() && tie.data != data;
        for (lane, now) in [(Lane::Data, data), (Lane::Control, control)] {
            let was = match lane {
                Lane::Data => std::mem::replace(&mut tie.data, now),
                Lane::Control => std::mem::replace(&mut tie.control, now),
            };
            if was == now {
                continue;
            }
            if was.is_some() {
                tie.reconnects += u64::from(lane == Lane::Data);
                tie.last_error = reason.to_owned();
                shard.events.push(Event::LinkDown { peer, lane, reason: reason.to_owned() });
            }
            if let Some(incarnation) = now {
                if lane == Lane::Data {
                    tie.last_write = OpNumber(0);
                }
                shard.events.push(Event::LinkUp { peer, lane, incarnation });
            }
            shard.ready.wake();
        }
        if ended && let Some(link) = self.links.get_mut(&peer) {
            link.forget_writes_of(id);
        }
    }

    /// A write of a shard was posted as `number` of the link.
    pub(super) fn wrote(&mut self, peer: NodeId, id: ShardId, number: OpNumber) -> OpNumber {
        let tie = self.shards.get_mut(&id).and_then(|shard| shard.ties.get_mut(&peer));
        let Some(tie) = tie else { return OpNumber(0) };
        tie.last_write.0 += 1;
        let own = tie.last_write;
        if let Some(link) = self.links.get_mut(&peer) {
            link.writes.push_back((number, id, own));
            link.posted = number;
        }
        own
    }

    /// Whether a shard must not say anything before the peer was told of it.
    pub(super) fn is_unsaid(&self, peer: NodeId, id: ShardId) -> bool {
        self.links.get(&peer).is_some_and(|link| link.untold.contains_key(&id))
    }

    pub(super) fn tie(&self, peer: NodeId, id: ShardId) -> Result<&Tie, PostError> {
        let tie = self.shards.get(&id).and_then(|shard| shard.ties.get(&peer));
        tie.ok_or(PostError::Unknown(peer))
    }
}

impl Link {
    /// Which shard's writes reached `level` now, by the last one of each.
    fn completed(&mut self, through: OpNumber, level: Level) -> BTreeMap<ShardId, OpNumber> {
        let mut reached = BTreeMap::new();
        self.reached = self.reached.max(through);
        let end = self.writes.partition_point(|(number, ..)| *number <= through);
        if level > Level::Accepted {
            for (_, id, own) in self.writes.drain(..end) {
                reached.insert(id, own);
            }
            reached.retain(|_, own| *own != FORGOTTEN);
            self.accepted = self.accepted.saturating_sub(end);
            return reached;
        }
        for (_, id, own) in self.writes.range(self.accepted.min(end)..end) {
            reached.insert(*id, *own);
        }
        reached.retain(|_, own| *own != FORGOTTEN);
        self.accepted = self.accepted.max(end);
        // Some transports never say more than this.
        if self.accepted > ACCEPTED_MAX {
            self.writes.drain(..self.accepted);
            self.accepted = 0;
        }
        reached
    }

    /// This life of the shard's lane is over: nobody hears of its writes any more.
    pub(super) fn forget_writes_of(&mut self, id: ShardId) {
        for (_, of, own) in &mut self.writes {
            if *of == id {
                *own = FORGOTTEN;
            }
        }
    }
}

impl Shard {
    fn tell(&mut self, event: Event) {
        self.events.push(event);
        self.ready.wake();
    }
}

impl Tie {
    fn is_on(&self) -> bool {
        !self.paused
    }
}
