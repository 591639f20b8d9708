//! Who has whom as a peer: lanes come up between those that have each other.

use super::{Net, Node};
use quorate_transport::Event;

impl Net {
    /// The peers of the process at `node`, in order.
    #[must_use]
    pub(crate) fn peers(&self, node: usize) -> Vec<usize> {
        (0..self.nodes()).filter(|peer| self.has_peer(node, *peer)).collect()
    }

    /// Whether `node` has `peer` as its peer.
    #[must_use]
    pub(crate) fn has_peer(&self, node: usize, peer: usize) -> bool {
        self.endpoints[node].peers.get(peer).copied().unwrap_or(false)
    }

    pub(super) fn are_peers(&self, a: usize, b: usize) -> bool {
        self.has_peer(a, b) && self.has_peer(b, a)
    }

    /// `node` has `peer` as its peer from now on. Whether it can.
    pub(crate) fn add_peer(&mut self, node: usize, peer: usize) -> bool {
        if peer == node || peer >= self.nodes() {
            return false;
        }
        if !std::mem::replace(&mut self.endpoints[node].peers[peer], true) {
            self.note(0xadd ^ (node as u64) << 32 ^ (peer as u64) << 40);
            self.try_lanes(node, peer);
        }
        true
    }

    /// Both lanes are tried soon, if they are down.
    pub(super) fn try_lanes(&mut self, a: usize, b: usize) {
        for lane in 0..2 {
            let state = self.lane(a, b, lane);
            let (life, up) = (state.life, state.up);
            if !up {
                let wait = self.random.exponential(self.shape.latency_mean);
                self.connect_after(wait, a, b, lane, life);
            }
        }
    }

    /// `node` has `peer` as its peer no more: nothing of it arrives any more, and nothing of what it
    /// posted lands.
    pub(crate) fn remove_peer(&mut self, node: usize, peer: usize) {
        if !std::mem::replace(&mut self.endpoints[node].peers[peer], false) {
            return;
        }
        self.note(0x9e0e ^ (node as u64) << 32 ^ (peer as u64) << 40);
        self.endpoints[node].partings[peer] += 1;
        self.forget_for_life(node, peer);
        for lane in 0..2 {
            let incoming = &mut self.lane(node, peer, lane).directions[usize::from(peer > node)];
            *incoming = Default::default();
            self.fail(node, peer, lane);
            self.lane(node, peer, lane).believed[usize::from(node > peer)] = None;
        }
        let gone = quorate_consensus::NodeId(peer as Node as u16 + 1);
        self.endpoints[node].inbox.retain(|event| match event {
            Event::LinkUp { peer, .. }
            | Event::LinkDown { peer, .. }
            | Event::Control { peer, .. }
            | Event::Written { peer, .. }
            | Event::Completed { peer, .. } => *peer != gone,
        });
    }
}
