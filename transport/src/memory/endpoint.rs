//! One replica's end: its regions, and how the writes of its peers land in them.

use super::network::{Completed, MemoryNetwork, Operation, Parker, Write};
use super::{Landing, QUEUE_BYTES_MAX};
use crate::integrity::Randomness;
use crate::region::RegionTable;
use crate::{
    Event, Lane, Level, LinkStatus, OpNumber, PeerError, PostError, RegionError, RegionId,
    Transport, Wake,
};
use bytes::Bytes;
use quorate_consensus::NodeId;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// While something waits for polls to pass, `park` sleeps no longer than this.
const RESTLESS_PARK: Duration = Duration::from_millis(1);
/// A broken fence lets so many writes through after it.
const BROKEN_FENCE_WRITES: u32 = 1000;

/// The end of one replica in a [`MemoryNetwork`].
#[derive(Debug)]
pub struct MemoryTransport {
    network: MemoryNetwork,
    local: NodeId,
    peers: Vec<Peer>,
    regions: RegionTable,
    parker: Arc<Parker>,
    random: Randomness,
    /// Writes that outlived their lane.
    ghosts: Vec<Write>,
    /// For the next poll.
    pending: Vec<Event>,
}

#[derive(Debug)]
struct Peer {
    id: NodeId,
    posted: bool,
    /// Taken from the link, not wholly visible yet; in order.
    landing: VecDeque<Land>,
    completed: Completed,
    /// What of it the network knows.
    reported: Completed,
    /// Writes that a broken fence still lets through.
    unfenced: u32,
    /// The data lane is up, as its owner was told.
    up: bool,
    /// Regions that it was granted for one life.
    for_life: Vec<(RegionId, ForLife)>,
}

/// What became of a grant for one life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ForLife {
    /// It stands.
    Granted,
    /// It was revoked in the present life.
    Fenced,
    /// Its life ended; writes wait for the next grant.
    Ended,
}

impl Peer {
    fn new(id: NodeId) -> Self {
        Self {
            id,
            posted: false,
            landing: VecDeque::new(),
            completed: Completed::default(),
            reported: Completed::default(),
            unfenced: 0,
            up: false,
            for_life: Vec::new(),
        }
    }

    fn set_for_life(&mut self, region: RegionId, state: Option<ForLife>) {
        self.for_life.retain(|(other, _)| *other != region);
        self.for_life.extend(state.map(|state| (region, state)));
    }

    fn for_life(&self, region: RegionId) -> Option<ForLife> {
        let entry = self.for_life.iter().find(|(other, _)| *other == region);
        entry.map(|(_, state)| *state)
    }
}

/// A write on its way into memory.
#[derive(Debug)]
struct Land {
    write: Write,
    late_polls: u32,
    /// Pieces still to become visible, as (start, end) within the write; none before it begins.
    rest: Option<Vec<(usize, usize)>>,
}

impl MemoryTransport {
    pub(super) fn new(
        network: MemoryNetwork,
        local: NodeId,
        peers: Vec<NodeId>,
        parker: Arc<Parker>,
    ) -> Self {
        let random = Randomness::new(network.lock().random.word());
        Self {
            network,
            local,
            peers: peers.into_iter().map(Peer::new).collect(),
            regions: RegionTable::default(),
            parker,
            random,
            ghosts: Vec::new(),
            pending: Vec::new(),
        }
    }

    /// Flips bits of one byte of a region, as failing memory does; what is out of range is ignored.
    pub fn damage(&mut self, region: RegionId, offset: usize, flip: u8) {
        self.regions.flip(region, offset, flip);
    }

    fn peer(&mut self, id: NodeId) -> Result<&mut Peer, PostError> {
        let found = self.peers.iter_mut().find(|peer| peer.id == id);
        found.ok_or(PostError::Unknown(id))
    }

    fn poll_data(&mut self, place: usize, landing: Landing, events: &mut Vec<Event>) {
        let peer = self.peers[place].id;
        let waits = |operation: &Operation| matches!(operation, Operation::Write(write) if self.peers[place].for_life(write.region) == Some(ForLife::Ended));
        let inbound = self.network.lock().receive(self.local, peer, Lane::Data, &waits);
        let mut refused = None;
        for operation in inbound.operations {
            let Operation::Write(write) = operation else { continue };
            // The gate stands where a write is taken: what passed it may be reported as accepted.
            if let Err(reason) = self.admit(place, &write) {
                refused = Some(reason);
                break;
            }
            let late_polls = landing.late_polls + 1;
            self.peers[place].landing.push_back(Land { write, late_polls, rest: None });
        }
        if let Some(completed) = inbound.completed {
            if completed.accepted > completed.visible {
                let through = OpNumber(completed.accepted);
                events.push(Event::Completed { peer, through, level: Level::Accepted });
            }
            let through = OpNumber(completed.visible);
            if through.0 > 0 {
                events.push(Event::Completed { peer, through, level: Level::Visible });
            }
        }
        let failed = inbound.down.is_some();
        self.land(place, landing, failed, events);
        if let Some(reason) = inbound.down {
            self.end_life(place, landing);
            self.lose(place, landing);
            events.push(Event::LinkDown { peer, lane: Lane::Data, reason });
        } else if let Some(reason) = refused {
            self.end_life(place, landing);
            self.lose(place, landing);
            self.network.lock().fail(self.local, peer, Lane::Data, &reason);
        } else {
            self.report(place, landing);
        }
        if let Some(incarnation) = inbound.up {
            self.peers[place].completed = Completed::default();
            self.peers[place].reported = Completed::default();
            self.peers[place].up = true;
            events.push(Event::LinkUp { peer, lane: Lane::Data, incarnation });
        }
    }

    /// Makes some of what was taken visible, in order.
    fn land(&mut self, place: usize, landing: Landing, at_once: bool, events: &mut Vec<Event>) {
        let peer = &mut self.peers[place];
        let mut written: Option<RegionId> = None;
        for land in &mut peer.landing {
            land.late_polls = land.late_polls.saturating_sub(1);
        }
        while let Some(front) = peer.landing.front_mut() {
            if front.late_polls > 0 && !at_once {
                break;
            }
            let region = front.write.region;
            if written.replace(region) != Some(region) {
                events.push(Event::Written { peer: peer.id, region });
            }
            if !land_some(front, landing, &mut self.regions, &mut self.random) {
                break;
            }
            peer.completed.visible = front.write.number;
            peer.landing.pop_front();
        }
    }

    fn admit(&mut self, place: usize, write: &Write) -> Result<(), String> {
        let length = write.pieces.iter().map(Bytes::len).sum();
        let peer = &mut self.peers[place];
        let gate = self.regions.admit(peer.id, write.region, write.offset as u64, length);
        match gate {
            Ok(_) => Ok(()),
            Err(_) if peer.unfenced > 0 => {
                peer.unfenced -= 1;
                Ok(())
            }
            Err(refused) => Err(refused.to_string()),
        }
    }

    /// A life of the data lane ends, and with it what was granted for it: a fence.
    fn end_life(&mut self, place: usize, landing: Landing) {
        self.peers[place].up = false;
        if landing.broken_fence {
            self.peers[place].for_life.clear();
            return;
        }
        for at in 0..self.peers[place].for_life.len() {
            let (region, state) = self.peers[place].for_life[at];
            if state == ForLife::Granted {
                self.fence(place, region, landing);
            }
            self.peers[place].for_life[at] = (region, ForLife::Ended);
        }
    }

    /// What was taken may have been reported as accepted: it has to be visible now. Nothing lands later.
    fn fence(&mut self, place: usize, region: RegionId, landing: Landing) {
        let at_once = Landing { tear_bytes: None, late_polls: 0, ..landing };
        let mut hints = std::mem::take(&mut self.pending);
        self.land(place, at_once, true, &mut hints);
        self.pending = hints;
        self.ghosts.retain(|write| write.region != region);
        let _ = self.regions.revoke(region, self.peers[place].id);
    }

    /// The lane failed: what has not landed is lost, or haunts the next life.
    fn lose(&mut self, place: usize, landing: Landing) {
        let lost = self.peers[place].landing.drain(..);
        if landing.ghosts {
            self.ghosts.extend(lost.map(|land| land.write));
        } else {
            drop(lost);
        }
        self.peers[place].completed = Completed::default();
    }

    fn report(&mut self, place: usize, landing: Landing) {
        let peer = &mut self.peers[place];
        let taken = peer.landing.back().map(|land| land.write.number);
        let visible = peer.completed.visible;
        let accepted = taken.filter(|_| landing.complete_early).unwrap_or(visible);
        peer.completed.accepted = peer.completed.accepted.max(accepted);
        let (id, completed) = (peer.id, peer.completed);
        if peer.reported == completed {
            return;
        }
        peer.reported = completed;
        self.network.lock().complete(self.local, id, completed);
    }

    fn poll_control(&mut self, peer: NodeId, events: &mut Vec<Event>) {
        let inbound = self.network.lock().receive(self.local, peer, Lane::Control, &|_| false);
        for operation in inbound.operations {
            if let Operation::Message(message) = operation {
                events.push(Event::Control { peer, message });
            }
        }
        if let Some(reason) = inbound.down {
            events.push(Event::LinkDown { peer, lane: Lane::Control, reason });
        }
        if let Some(incarnation) = inbound.up {
            events.push(Event::LinkUp { peer, lane: Lane::Control, incarnation });
        }
    }

    /// Now and then one of the ghosts lands.
    fn haunt(&mut self) {
        if !self.ghosts.is_empty() && self.random.below(3) == 0 {
            let chosen = self.random.below(self.ghosts.len() as u64) as usize;
            let write = self.ghosts.swap_remove(chosen);
            self.regions.scribble(write.region, write.offset, &write.pieces.concat());
        }
    }
}

impl Transport for MemoryTransport {
    fn local(&self) -> NodeId {
        self.local
    }

    fn peers(&self) -> Vec<NodeId> {
        self.peers.iter().map(|peer| peer.id).collect()
    }

    fn add_peer(&mut self, peer: NodeId, address: &str) -> Result<(), PeerError> {
        if peer == self.local {
            let why = "a replica is not its own peer".to_owned();
            return Err(PeerError::Unusable(peer, address.to_owned(), why));
        }
        if let Err(place) = self.peers.binary_search_by_key(&peer, |entry| entry.id) {
            self.peers.insert(place, Peer::new(peer));
            self.network.lock().add_peer(self.local, peer);
        }
        Ok(())
    }

    fn remove_peer(&mut self, peer: NodeId) {
        if let Ok(place) = self.peers.binary_search_by_key(&peer, |entry| entry.id) {
            let gone = self.peers.remove(place);
            for (region, _) in gone.for_life {
                let _ = self.regions.revoke(region, peer);
            }
            self.network.lock().remove_peer(self.local, peer);
        }
    }

    fn unregister(&mut self, region: RegionId) -> Result<(), RegionError> {
        self.regions.unregister(region)
    }

    fn register(&mut self, region: RegionId, length: usize) -> Result<(), RegionError> {
        self.regions.register(region, length)
    }

    fn grant(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        self.regions.grant(region, peer)?;
        if let Ok(peer) = self.peer(peer) {
            peer.set_for_life(region, None);
        }
        Ok(())
    }

    fn grant_for_life(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        let Some(place) = self.peers.iter().position(|entry| entry.id == peer) else {
            return Err(RegionError::Lasting(region, peer));
        };
        match self.peers[place].for_life(region) {
            Some(ForLife::Granted) => return Ok(()),
            Some(ForLife::Fenced) => return Err(RegionError::Fenced(region, peer)),
            Some(ForLife::Ended) | None => self.revoke(region, peer)?,
        }
        let up = self.peers[place].up;
        if up {
            self.regions.grant(region, peer)?;
        }
        let state = if up { ForLife::Granted } else { ForLife::Ended };
        self.peers[place].set_for_life(region, Some(state));
        Ok(())
    }

    fn revoke(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        let landing = self.network.lock().landing(self.local);
        let place = self.peers.iter().position(|entry| entry.id == peer);
        if let Some(place) = place.filter(|_| landing.broken_fence) {
            self.peers[place].unfenced = BROKEN_FENCE_WRITES;
        } else if let Some(place) = place {
            self.fence(place, region, landing);
            if self.peers[place].for_life(region) == Some(ForLife::Granted) {
                self.peers[place].set_for_life(region, Some(ForLife::Fenced));
            }
        }
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
        self.peer(peer)?.posted = true;
        let write = Write { number: 0, region, offset, pieces: pieces.to_vec() };
        self.network.lock().post(self.local, peer, Lane::Data, Operation::Write(write))
    }

    fn send(&mut self, peer: NodeId, message: Bytes) -> Result<(), PostError> {
        let (length, limit) = (message.len(), crate::codec::MESSAGE_BYTES_MAX.min(QUEUE_BYTES_MAX));
        if length > limit {
            return Err(PostError::TooLarge { length, limit });
        }
        self.peer(peer)?.posted = true;
        let message = Operation::Message(message);
        self.network.lock().post(self.local, peer, Lane::Control, message).map(|_| ())
    }

    fn flush(&mut self) {
        for peer in self.peers.iter_mut().filter(|peer| peer.posted) {
            peer.posted = false;
            self.network.lock().flush(self.local, peer.id);
        }
    }

    fn poll(&mut self, events: &mut Vec<Event>) {
        let landing = {
            let mut state = self.network.lock();
            state.tick(self.local);
            state.landing(self.local)
        };
        self.haunt();
        events.append(&mut self.pending);
        for place in 0..self.peers.len() {
            let peer = self.peers[place].id;
            self.poll_control(peer, events);
            self.poll_data(place, landing, events);
        }
    }

    fn park(&mut self, timeout: Duration) {
        self.flush();
        let landing = self.peers.iter().any(|peer| !peer.landing.is_empty());
        let restless = landing || self.network.lock().restless(self.local);
        self.parker.park(if restless { timeout.min(RESTLESS_PARK) } else { timeout });
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(MemoryWake(Arc::clone(&self.parker)))
    }

    fn hints(&self) -> bool {
        true
    }

    fn reset(&mut self, peer: NodeId, reason: &str) {
        let mut state = self.network.lock();
        state.fail(self.local, peer, Lane::Control, reason);
        state.fail(self.local, peer, Lane::Data, reason);
    }

    fn status(&self, peer: NodeId) -> LinkStatus {
        self.network.lock().status(self.local, peer)
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.network.lock().remove(self.local);
    }
}

/// Lands a write, or a random part of what is left of it; says whether all of it is there.
fn land_some(
    land: &mut Land,
    landing: Landing,
    regions: &mut RegionTable,
    random: &mut Randomness,
) -> bool {
    let bytes = land.write.pieces.concat();
    let (region, offset) = (land.write.region, land.write.offset);
    let Some(grain) = landing.tear_bytes.map(|grain| grain.max(1)) else {
        regions.scribble(region, offset, &bytes);
        return true;
    };
    let whole = || {
        let starts = (0..bytes.len()).step_by(grain);
        starts.map(|start| (start, (start + grain).min(bytes.len()))).collect()
    };
    let rest = land.rest.get_or_insert_with(whole);
    // At least one piece and perhaps all, in any order.
    let pieces = (1 + random.below(rest.len().max(1) as u64)).min(rest.len() as u64);
    for _ in 0..pieces {
        let chosen = random.below(rest.len() as u64) as usize;
        let (start, end) = rest.swap_remove(chosen);
        regions.scribble(region, offset + start, &bytes[start..end]);
    }
    rest.is_empty()
}

struct MemoryWake(Arc<Parker>);

impl Wake for MemoryWake {
    fn wake(&self) {
        self.0.wake();
    }
}
