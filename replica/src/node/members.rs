//! Members: links follow the configurations, and changes of them go in.

use super::Node;
use crate::front::{Failure, Reason, ReplySender};
use crate::lanes::Lanes;
use bytes::Bytes;
use quorate_consensus::{
    Address, Change, Configuration, Configurations, Genesis, Mutant, NodeId, Slot, ValueKind,
};
use quorate_pmem_log::LogError;
use quorate_transport::RegionId;

/// Payload bytes read from the log at a time, while it is searched for configurations.
const SEARCH_BYTES: usize = 1 << 20;

impl Node {
    /// Who decides as of `commit`, by the founding document, the newest checkpoint and the log; and the
    /// slot below which a configuration may be missing, where these leave a hole.
    pub(super) fn configurations_of(
        &self,
        genesis: &Genesis,
        commit: Slot,
    ) -> Result<(Configurations, Option<Slot>), LogError> {
        if self.options.is(Mutant::ForgetMembers) {
            return Ok((Configurations::new(genesis.configuration.clone()), None));
        }
        let kept = self.checkpoints.configurations.clone();
        let (checkpoint, mut known) = kept
            .unwrap_or_else(|| (Slot::ZERO, Configurations::new(genesis.configuration.clone())));
        // What the checkpoint covers is not looked at: it may be damaged, and nobody needs it. Nor is
        // what is not to be used.
        let mut next = checkpoint.next();
        let mut missing = None;
        let begins = self.recovered.first_slot.max(self.checkpoints.log_from);
        if begins > next && next <= commit {
            missing = Some(begins);
            next = begins;
        }
        while next <= commit {
            let mut entries = Vec::new();
            match self.log.read(next, SEARCH_BYTES, &mut entries) {
                // Without the newest checkpoint and with damage behind the one before, the rest comes
                // with a checkpoint of a peer; until then this replica has no vote.
                Err(LogError::Damaged { .. }) => break,
                read => read?,
            }
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else { break };
            if first.slot > next {
                missing = Some(first.slot);
            }
            next = last.slot.next();
            for entry in entries.iter().filter(|entry| entry.slot <= commit) {
                if entry.value.kind == ValueKind::Configuration {
                    known.note(entry.slot, Configuration::decode(&entry.value.bytes));
                }
            }
        }
        if next <= commit {
            missing = Some(commit.next());
        }
        Ok((known.as_of(commit), missing))
    }

    /// Lanes to new members come up, those to former ones go, with the memory that they wrote into.
    pub(super) fn follow_members(&mut self) {
        let Some(core) = &self.core else { return };
        let version = core.members_version();
        if self.members_seen == Some(version) {
            return;
        }
        self.members_seen = Some(version);
        let address = |node| core.address(node).map(|at| at.peer.clone()).unwrap_or_default();
        let wanted: Vec<(NodeId, String)> =
            core.peer_nodes().map(|node| (node, address(node))).collect();
        for (peer, address) in &wanted {
            self.join_peer(*peer, address);
        }
        let is_wanted = |peer: NodeId| wanted.iter().any(|(node, _)| *node == peer);
        let strangers = self.lanes.iter().map(|lanes| lanes.peer);
        let gone: Vec<NodeId> = strangers.filter(|peer| !is_wanted(*peer)).collect();
        for peer in gone {
            self.part_from(peer);
        }
        self.members_known = wanted.into_iter().map(|(node, _)| node).collect();
    }

    fn join_peer(&mut self, peer: NodeId, address: &str) {
        let mut held = self.lanes.iter().find(|lanes| lanes.peer == peer);
        if held.is_none() {
            match Lanes::open(self.transport.as_mut(), peer, &self.options) {
                Ok(lanes) => self.lanes.push(lanes),
                Err(error) => {
                    tracing::error!(%peer, %error, "no memory for the lanes of a new member");
                    return;
                }
            }
            self.lanes.sort_by_key(|lanes| lanes.peer);
            held = None;
            tracing::info!(%peer, address, "a new peer");
        }
        if let Err(error) = self.transport.add_peer(peer, address) {
            tracing::error!(%error, "a member cannot be reached");
        }
        // One that the core did not listen to before may have been there all the time.
        let is_up = held.is_some_and(|lanes| lanes.data_up);
        if is_up
            && !self.members_known.contains(&peer)
            && let Some(core) = &mut self.core
        {
            core.on_link_up(self.clock.now, peer);
        }
    }

    fn part_from(&mut self, peer: NodeId) {
        if self.options.passive {
            if let Err(error) = self.transport.revoke(RegionId::inbox(peer), peer) {
                tracing::error!(%peer, %error, "the ring of a former member cannot be fenced");
            }
            self.close_ring(peer);
        }
        self.transport.remove_peer(peer);
        if self.transport.peers().contains(&peer) {
            // A transport that keeps its peers: the core does not listen to this one any more.
            return;
        }
        tracing::info!(%peer, "no peer any more");
        for region in [RegionId::inbox(peer), RegionId::row(peer)] {
            let freed = self.transport.revoke(region, peer);
            if let Err(error) = freed.and_then(|()| self.transport.unregister(region)) {
                tracing::error!(%peer, %error, "the memory of a former member is not given back");
            }
        }
        self.lanes.retain(|lanes| lanes.peer != peer);
    }

    /// A change of members that a client of this process asks for.
    pub(super) fn change_members(&mut self, mut change: Change, reply: ReplySender) {
        let Some(core) = &mut self.core else { return };
        // Every replica will know where all are, and not only those that are new.
        let named = |addresses: &[Address], node| addresses.iter().any(|at| at.node == node);
        let latest = core.configurations().latest();
        for address in &self.options.addresses {
            if !named(&change.addresses, address.node) && !named(&latest.addresses, address.node) {
                change.addresses.push(address.clone());
            }
        }
        let outcome = match core.propose_configuration(&change) {
            Ok(slot) => {
                tracing::info!(%slot, ?change, "a change of members is proposed");
                Ok(Bytes::copy_from_slice(&slot.0.to_le_bytes()))
            }
            Err(refusal) => {
                tracing::warn!(%refusal, ?change, "a change of members is refused");
                Err(Failure::Rejected(Reason::Members(refusal)))
            }
        };
        // A client that went away does not wait for its answer.
        let _ = reply.send(outcome);
    }
}
