//! A shard parts from a peer, and the links to it stay for other shards.
//!
//! What the peer wrote before it heard of that is still under way. A write that is refused breaks the
//! link of all shards, so the grants and the memory stay until the peer has said that everything it
//! wrote is there, and that it writes no more (`clear`, in answer to `part`). Whoever asked is told by
//! `token` which of its questions is answered. Both are asked again in each life of the control lane.
//!
//! ```text
//! message to the shard 0xffff = kind u8, body
//!   0 part:    (shard u16, token u64)*
//!   1 clear:   (shard u16, token u64)*
//! ```
//! A trunk of before drops them. Then the memory stays until the links let go of the peer.

use super::trunk::{Inner, MESSAGE, MESSAGE_HEADER_BYTES, NAMED_MAX, Shard, TRUNK};
use super::{ShardId, region_of, shard_of};
use crate::{OpNumber, RegionError, RegionId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_consensus::NodeId;
use std::collections::{BTreeMap, BTreeSet};

const PART: u8 = 0;
const CLEAR: u8 = 1;

/// Who may still be writing for shards that parted from them, and where. Regions have the links' names.
#[derive(Default)]
pub(super) struct Partings {
    open: BTreeMap<(ShardId, NodeId), Parting>,
    /// What its shard gave back, with its length: it goes when no parting holds it.
    given_back: BTreeMap<RegionId, usize>,
}

struct Parting {
    token: u64,
    /// Regions that the peer may write into, and should not.
    held: BTreeSet<RegionId>,
}

/// What a peer must still be told of partings, in this life of the control lane.
#[derive(Default)]
pub(super) struct Goodbyes {
    /// Ours.
    untold: BTreeSet<ShardId>,
    /// Theirs, with their token, and the write that has to be there before they are answered.
    owed: BTreeMap<ShardId, (u64, OpNumber)>,
}

impl Partings {
    /// Whether nobody is waited for.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.given_back.is_empty()
    }

    /// Shards that part from `peer`.
    pub(super) fn with(&self, peer: NodeId) -> impl Iterator<Item = ShardId> + '_ {
        self.open.keys().filter(move |(_, from)| *from == peer).map(|(id, _)| *id)
    }

    /// Those of one shard.
    fn of(&self, id: ShardId) -> impl Iterator<Item = (NodeId, &Parting)> + '_ {
        let all = (id, NodeId(0))..=(id, NodeId(u16::MAX));
        self.open.range(all).map(|((_, peer), parting)| (*peer, parting))
    }

    fn hold(&self, region: RegionId) -> bool {
        self.of(shard_of(region).0).any(|(_, parting)| parting.held.contains(&region))
    }
}

impl Goodbyes {
    /// A life of the control lane begins.
    pub(super) fn begin(&mut self, partings: impl Iterator<Item = ShardId>) {
        *self = Self { untold: partings.collect(), owed: BTreeMap::new() };
    }
}

impl Inner {
    /// The shard has no such peer any more. `greeted`: the peer may have heard of the shard.
    pub(super) fn part(&mut self, peer: NodeId, id: ShardId, greeted: bool) {
        if self.let_go(peer) {
            // Its lanes are gone, and nothing comes any more.
            let ids: Vec<ShardId> = self.partings.with(peer).collect();
            for id in ids {
                self.finish(peer, id);
            }
            return;
        }
        let Some(link) = self.links.get_mut(&peer).filter(|_| greeted) else { return };
        link.forget_writes_of(id);
        link.untold.insert(id, None);
        link.goodbyes.untold.insert(id);
        let parting = Parting { token: self.random.word(), held: BTreeSet::new() };
        self.partings.open.insert((id, peer), parting);
    }

    /// The shard is gone from this process.
    pub(super) fn close(&mut self, id: ShardId) {
        let Some(shard) = self.shards.remove(&id) else { return };
        for peer in shard.ties.keys() {
            self.part(*peer, id, shard.open);
        }
        for (region, (length, granted)) in shard.regions {
            let region = region_of(id, region);
            for peer in granted {
                if let Some(parting) = self.partings.open.get_mut(&(id, peer)) {
                    parting.held.insert(region);
                } else {
                    // It is registered: nothing to report. So below.
                    let _ = self.transport.revoke(region, peer);
                }
            }
            let _ = self.give_back(region, length);
        }
    }

    /// The shard says hello to a peer: of what it gave back when it parted, whatever it has not taken up
    /// again ends now.
    pub(super) fn greet(&mut self, peer: NodeId, id: ShardId) {
        self.finish(peer, id);
        let tie = self.shards.get(&id).and_then(|shard| shard.ties.get(&peer));
        if let (Some(tie), Some(link)) = (tie, self.links.get_mut(&peer)) {
            link.untold.insert(id, Some(tie.mine));
        }
    }

    /// A peer that a shard parted from writes no more, or is not waited for.
    fn finish(&mut self, peer: NodeId, id: ShardId) {
        let Some(parting) = self.partings.open.remove(&(id, peer)) else { return };
        if let Some(link) = self.links.get_mut(&peer) {
            link.goodbyes.untold.remove(&id);
        }
        for region in parting.held {
            let _ = self.transport.revoke(region, peer);
            if !self.partings.hold(region) && self.partings.given_back.remove(&region).is_some() {
                let _ = self.transport.unregister(region);
            }
        }
    }

    pub(super) fn register(
        &mut self,
        id: ShardId,
        region: RegionId,
        length: usize,
    ) -> Result<(), RegionError> {
        let name = region_of(id, region);
        let kept = self.partings.given_back.remove(&name);
        if let Some(before) = kept
            && before != length
        {
            // It cannot wait: whoever is still writing there loses its lane.
            for ((of, peer), parting) in &mut self.partings.open {
                if *of == id && parting.held.remove(&name) {
                    self.transport.revoke(name, *peer)?;
                }
            }
            self.transport.unregister(name)?;
        }
        let again = kept == Some(length);
        if !again {
            self.transport.register(name, length)?;
        }
        if let Some(shard) = self.shards.get_mut(&id) {
            shard.regions.insert(region, (length, Vec::new()));
        }
        if again { Err(RegionError::Exists(name)) } else { Ok(()) }
    }

    pub(super) fn unregister(&mut self, id: ShardId, region: RegionId) -> Result<(), RegionError> {
        let name = region_of(id, region);
        let shard = self.shards.get_mut(&id);
        let held = shard.and_then(|shard| shard.regions.remove(&region));
        let (length, _) = held.ok_or(RegionError::Missing(name))?;
        self.give_back(name, length)
    }

    fn give_back(&mut self, region: RegionId, length: usize) -> Result<(), RegionError> {
        if self.partings.hold(region) {
            self.partings.given_back.insert(region, length);
            return Ok(());
        }
        self.transport.unregister(region)
    }

    pub(super) fn grant(
        &mut self,
        id: ShardId,
        region: RegionId,
        peer: NodeId,
    ) -> Result<(), RegionError> {
        let (name, granted) = granted(&mut self.shards, id, region)?;
        self.transport.grant(name, peer)?;
        if !granted.contains(&peer) {
            granted.push(peer);
        }
        if let Some(parting) = self.partings.open.get_mut(&(id, peer)) {
            parting.held.remove(&name);
        }
        Ok(())
    }

    pub(super) fn revoke(
        &mut self,
        id: ShardId,
        region: RegionId,
        peer: NodeId,
    ) -> Result<(), RegionError> {
        let (name, granted) = granted(&mut self.shards, id, region)?;
        let had = granted.contains(&peer);
        granted.retain(|other| *other != peer);
        let is_peer = self.shards.get(&id).is_some_and(|shard| shard.ties.contains_key(&peer));
        match self.partings.open.get_mut(&(id, peer)).filter(|_| !is_peer) {
            Some(parting) if had => {
                parting.held.insert(name);
                Ok(())
            }
            _ => self.transport.revoke(name, peer),
        }
    }

    /// Says what is to be said of partings, as far as the control lanes take it. A goodbye to the shard's
    /// own end went before (`tell_peers`).
    pub(super) fn tell_goodbyes(&mut self) {
        for (peer, link) in &mut self.links {
            if link.control.is_none() {
                continue;
            }
            while !link.goodbyes.untold.is_empty() {
                let goodbyes = &mut link.goodbyes;
                let open = &self.partings.open;
                let unsaid = |id: &&ShardId| !link.untold.contains_key(id);
                let ids: Vec<ShardId> =
                    goodbyes.untold.iter().filter(unsaid).take(NAMED_MAX).copied().collect();
                let token = |id: &ShardId| Some((*id, open.get(&(*id, *peer))?.token));
                let message = encode(PART, ids.iter().filter_map(token));
                if ids.is_empty() || self.transport.send(*peer, message).is_err() {
                    break;
                }
                for id in ids {
                    goodbyes.untold.remove(&id);
                }
            }
            while !link.goodbyes.owed.is_empty() {
                let (reached, up) = (link.reached, link.data.is_some());
                // What was posted in a life that ended is there, or never will be.
                let due = |op: OpNumber| op <= reached || !up;
                let owed = link.goodbyes.owed.iter().filter(|(_, (_, op))| due(*op));
                let owed: Vec<(ShardId, u64)> =
                    owed.map(|(id, (token, _))| (*id, *token)).take(NAMED_MAX).collect();
                let message = encode(CLEAR, owed.iter().copied());
                if owed.is_empty() || self.transport.send(*peer, message).is_err() {
                    break;
                }
                for (id, _) in owed {
                    link.goodbyes.owed.remove(&id);
                }
            }
        }
    }

    /// None if it cannot be read.
    pub(super) fn on_trunk_message(&mut self, peer: NodeId, mut message: Bytes) -> Option<()> {
        if message.is_empty() {
            return None;
        }
        let kind = message.get_u8();
        if kind > CLEAR {
            // Of a newer trunk, which does without an answer.
            return Some(());
        }
        if !message.len().is_multiple_of(10) {
            return None;
        }
        while !message.is_empty() {
            let (id, token) = (ShardId(message.get_u16_le()), message.get_u64_le());
            if kind == PART {
                self.on_epoch(peer, id, None);
                if let Some(link) = self.links.get_mut(&peer) {
                    let posted = link.posted;
                    link.goodbyes.owed.insert(id, (token, posted));
                }
            } else if self.partings.open.get(&(id, peer)).is_some_and(|open| open.token == token) {
                self.finish(peer, id);
            }
        }
        Some(())
    }
}

/// What the transport calls a region of the shard, and who may write there.
fn granted(
    shards: &mut BTreeMap<ShardId, Shard>,
    id: ShardId,
    region: RegionId,
) -> Result<(RegionId, &mut Vec<NodeId>), RegionError> {
    let name = region_of(id, region);
    let held = shards.get_mut(&id).and_then(|shard| shard.regions.get_mut(&region));
    held.map(|(_, granted)| (name, granted)).ok_or(RegionError::Missing(name))
}

fn encode(kind: u8, named: impl Iterator<Item = (ShardId, u64)>) -> Bytes {
    let mut message = BytesMut::with_capacity(MESSAGE_HEADER_BYTES + 1);
    message.put_u8(MESSAGE);
    message.put_u16_le(TRUNK.0);
    message.put_u32_le(0);
    message.put_u8(kind);
    for (id, token) in named {
        message.put_u16_le(id.0);
        message.put_u64_le(token);
    }
    message.freeze()
}
