//! Versions of the protocol: each replica says what it can, the log says what is spoken.

use super::Paxos;
use crate::role::Role;
use crate::{Configuration, Nanos, NodeId};

impl Paxos {
    /// The newest version that `node` speaks, as it said last (rule V1).
    pub(super) fn spoken_by(&self, node: NodeId) -> u16 {
        if node == self.settings.node {
            return self.settings.protocol;
        }
        let peer = self.peer_index(node).map(|index| &self.peers[index]);
        peer.map_or(crate::PROTOCOL_FIRST, |peer| peer.row.flags.protocol())
    }

    /// Rule V2: a leader that hears every member, and from each that it speaks a newer version than the
    /// active one, makes that the active one: the newest that all of them speak.
    pub(super) fn raise_protocol(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let latest = self.configurations.latest();
        let settled = latest.settled && self.configurations.latest_slot() <= self.commit_slot;
        if !settled || self.commit_slot < leader.barrier || leader.transfer.is_some() {
            return;
        }
        let within = Nanos(4 * self.settings.heartbeat_interval.0);
        let spoken = |node: NodeId| {
            let peer = self.peer_index(node).map(|index| &self.peers[index]);
            let heard = peer.is_some_and(|peer| peer.row_is_current && self.hears(peer, within));
            (heard || node == self.settings.node).then(|| self.spoken_by(node))
        };
        let all = latest.members().map(|member| spoken(member.node));
        let Some(Some(newest)) = all.min() else { return };
        let newest = newest.min(crate::PROTOCOL_RISES_TO);
        if newest <= latest.protocol {
            return;
        }
        let next = Configuration { id: latest.id + 1, protocol: newest, ..latest.clone() };
        self.append(next.to_value());
        self.acceptor.mark();
        self.advance_commit();
    }

    /// The active version of the protocol, as far as this replica knows it to be chosen.
    #[must_use]
    pub fn protocol(&self) -> u16 {
        self.configurations.at(self.commit_slot.next()).protocol
    }
}
