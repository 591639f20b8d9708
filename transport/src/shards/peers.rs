//! Peers of shards come and go. The links have a peer as long as any shard has it.

use super::ShardId;
use super::trunk::{Inner, Link, Tie};
use crate::PeerError;
use quorate_consensus::NodeId;
use std::time::{Duration, Instant};

/// A peer that cannot be reached for this long is looked for where another shard says that it is.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(2);

impl Inner {
    /// See [`crate::Transport::add_peer`].
    pub(super) fn add_peer(
        &mut self,
        id: ShardId,
        peer: NodeId,
        address: &str,
    ) -> Result<(), PeerError> {
        if peer == self.transport.local() {
            let why = "a replica is not its own peer".to_owned();
            return Err(PeerError::Unusable(peer, address.to_owned(), why));
        }
        let Some(shard) = self.shards.get(&id) else { return Ok(()) };
        let tie = shard.ties.get(&peer);
        // A shard says where its peers are whenever anything about its members changes. What it said
        // before is no reason to believe it more than another one that spoke since.
        let is_news = !address.is_empty() && tie.is_none_or(|tie| tie.address != address);
        let is_new = tie.is_none();
        if is_news || !self.links.contains_key(&peer) {
            self.transport.add_peer(peer, address)?;
            let unreached = &mut self.unreached;
            let link = self.links.entry(peer).or_insert_with(|| {
                unreached.insert(peer, Instant::now());
                Link::default()
            });
            if is_news {
                address.clone_into(&mut link.address);
                // It is given its time.
                unreached.entry(peer).and_modify(|since| *since = Instant::now());
            }
        }
        let mine = self.random.word();
        let Some(shard) = self.shards.get_mut(&id) else { return Ok(()) };
        let tie = shard.ties.entry(peer).or_insert_with(|| Tie { mine, ..Tie::default() });
        if is_news {
            address.clone_into(&mut tie.address);
        }
        if is_new && shard.open {
            self.greet(peer, id);
        }
        Ok(())
    }

    /// See [`crate::Transport::remove_peer`].
    pub(super) fn remove_peer(&mut self, id: ShardId, peer: NodeId) {
        let Some(shard) = self.shards.get_mut(&id) else { return };
        if shard.ties.remove(&peer).is_some() {
            shard.events.retain(|event| event.peer() != peer);
            let open = shard.open;
            self.part(peer, id, open);
        }
    }

    /// Lets go of a peer that no shard has. Returns whether it is no peer of the links now.
    pub(super) fn let_go(&mut self, peer: NodeId) -> bool {
        let nowhere = self.links.get(&peer).is_some_and(|link| link.address.is_empty());
        // One that the links came with, and of which no shard ever said where it is, could not be found
        // again.
        if nowhere && self.first.contains(&peer)
            || self.shards.values().any(|shard| shard.ties.contains_key(&peer))
        {
            return false;
        }
        self.transport.remove_peer(peer);
        if self.transport.peers().contains(&peer) {
            // A transport that keeps its peers.
            return false;
        }
        self.links.remove(&peer);
        self.unreached.remove(&peer);
        true
    }

    /// Shards may disagree on where a peer is: one that had no part in a move knows the old address, and
    /// after a restart nobody can tell which of two is newer. So none of them is believed for ever.
    pub(super) fn try_other_addresses(&mut self) {
        if self.unreached.is_empty() {
            return;
        }
        let now = Instant::now();
        let late = |since: &Instant| now.duration_since(*since) >= ADDRESS_PATIENCE;
        let late: Vec<NodeId> =
            self.unreached.iter().filter(|(_, since)| late(since)).map(|(peer, _)| *peer).collect();
        for peer in late {
            self.unreached.insert(peer, now);
            let Some(link) = self.links.get_mut(&peer) else { continue };
            let ties = self.shards.values().filter_map(|shard| shard.ties.get(&peer));
            let mut named: Vec<&str> =
                ties.map(|tie| tie.address.as_str()).filter(|at| !at.is_empty()).collect();
            named.sort_unstable();
            named.dedup();
            let next = named.iter().find(|at| **at > link.address.as_str()).or(named.first());
            // It was taken once; if it is not now, the next one has its turn later.
            if let Some(next) = next
                && *next != link.address
                && self.transport.add_peer(peer, next).is_ok()
            {
                link.address = (*next).to_owned();
            }
        }
    }
}
