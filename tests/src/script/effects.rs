//! What comes out of a core after an event: taken in the order that the rules of
//! [`Paxos`] ask for, checked, and carried on.

use super::cluster::Cluster;
use super::replica::{Pending, Replica};
use super::show;
use quorate_consensus::{
    Accept, NodeId, Notice, Paxos, Persist, PersistNumber, RowFlags, Shipment, Slot,
};

impl Cluster {
    /// Makes the first `count` waiting persists durable. Returns the number of the last one.
    pub(super) fn write_disk(&mut self, node: NodeId, count: usize) -> Option<PersistNumber> {
        let replica = self.replicas.get_mut(&node).filter(|replica| !replica.poisoned)?;
        let member = replica.member();
        let life = replica.life.as_mut()?;
        let mut last = None;
        for _ in 0..count {
            let Some(Pending { number, persist, commit_slot }) = life.pending.pop_front() else {
                break;
            };
            last = Some(number);
            let disk = &mut replica.disk;
            match persist {
                Persist::Promise(ballot) => {
                    self.ledger.i3_promise_monotone(node, disk.promised, ballot);
                    disk.promised = ballot;
                }
                Persist::Entry(entry) => {
                    if disk.remembers {
                        self.ledger.i1_i2_one_chosen_value(member, &entry);
                    }
                    disk.log.insert(entry.slot, entry);
                }
            }
            disk.commit_slot = disk.commit_slot.max(commit_slot);
        }
        last
    }

    /// Takes out all effects of the event before, as the rules of [`Paxos`] have it.
    pub(super) fn drain(&mut self, node: NodeId) {
        self.note_repair(node);
        loop {
            let mut busy = self.take_notices(node);
            busy |= self.take_persists(node);
            busy |= self.take_messages(node);
            busy |= self.serve_log_reads(node);
            busy |= self.apply(node);
            busy |= self.release_reads(node);
            busy |= self.ship(node);
            busy |= self.show_members(node);
            if !busy {
                break;
            }
        }
        self.publish_rows(node);
        self.check(node);
        self.follow_members(node);
    }

    fn take_notices(&mut self, node: NodeId) -> bool {
        let mut busy = false;
        while let Some(notice) = self.core_mut(node).and_then(Paxos::poll_notice) {
            busy = true;
            if let Notice::Leading(ballot) = notice {
                self.ledger.one_leader_per_ballot(node, ballot);
            }
            self.note(show::notice(node, &notice));
        }
        busy
    }

    /// A replica votes again: what it holds are votes from now on.
    fn note_repair(&mut self, node: NodeId) {
        let Some(replica) = self.replicas.get_mut(&node) else { return };
        let votes = replica.life.as_ref().is_some_and(|life| !life.core.is_repairing());
        if replica.disk.repair.is_some() && votes {
            replica.disk.repair = None;
            replica.disk.remembers = true;
            let member = replica.member();
            for entry in replica.disk.log.values() {
                self.ledger.i1_i2_one_chosen_value(member, entry);
            }
            self.note(format!("n{} votes again", node.0));
        }
    }

    fn take_persists(&mut self, node: NodeId) -> bool {
        let Some(replica) = self.replicas.get_mut(&node) else { return false };
        let (remembers, holds) = (replica.disk.remembers, replica.holds_persists);
        let Some(life) = replica.life.as_mut() else { return false };
        let mut busy = false;
        while let Some(persist) = life.core.poll_persist() {
            busy = true;
            life.emitted += 1;
            if let Persist::Entry(entry) = &persist {
                let (promised, commit) = (life.core.promised(), life.core.commit_slot());
                self.ledger.one_value_per_ballot(entry.slot, entry.ballot, &entry.value);
                if remembers {
                    self.ledger.i4_no_acceptance_below_promise(node, entry, promised, commit);
                }
            }
            let number = PersistNumber(life.emitted);
            let commit_slot = life.core.log_commit_slot();
            life.pending.push_back(Pending { number, persist, commit_slot });
        }
        let waiting = life.pending.len();
        if holds || waiting == 0 || self.replicas.get(&node).is_some_and(|r| r.poisoned) {
            return busy;
        }
        if let Some(number) = self.write_disk(node, waiting)
            && let Some(core) = self.core_mut(node)
        {
            core.on_persisted(number);
        }
        true
    }

    fn take_messages(&mut self, node: NodeId) -> bool {
        let mut busy = false;
        while let Some((to, message)) = self.core_mut(node).and_then(Paxos::poll_message) {
            busy = true;
            if let Some(replica) = self.replicas.get(&node) {
                self.ledger.i9_message_is_durable(replica.member(), &replica.disk, &message);
            }
            self.network.post_control(node, to, message);
        }
        busy
    }

    fn serve_log_reads(&mut self, node: NodeId) -> bool {
        let mut busy = false;
        while let Some(read) = self.core_mut(node).and_then(Paxos::poll_log_read) {
            busy = true;
            let entries = self.replicas.get(&node).map(|replica| replica.read_log(read));
            if let Some(core) = self.core_mut(node) {
                core.on_log_read(read, entries.unwrap_or_default());
            }
        }
        busy
    }

    fn apply(&mut self, node: NodeId) -> bool {
        let mut busy = false;
        loop {
            let Some(replica) = self.replicas.get_mut(&node) else { return busy };
            let Some(life) = replica.life.as_mut() else { return busy };
            let Some((slot, value)) = life.next_to_apply(&replica.disk) else { return busy };
            busy = true;
            if !life.core.is_witness() {
                life.absorb(slot, &value);
                self.ledger.i7_equal_slot_equal_digest(node, slot, &value, life.digest);
            }
            life.core.on_applied(slot);
        }
    }

    fn release_reads(&mut self, node: NodeId) -> bool {
        let Some(life) = self.replicas.get_mut(&node).and_then(|replica| replica.life.as_mut())
        else {
            return false;
        };
        let mut busy = false;
        let mut answered = Vec::new();
        while let Some(ready) = life.core.poll_read() {
            busy = true;
            life.released.push_back(ready);
        }
        while let Some(ready) = life.released.front().copied() {
            if life.core.applied_slot() < ready.slot {
                break;
            }
            life.released.pop_front();
            while let Some(read) = life.reads.front().copied() {
                if read.ticket > ready.through {
                    break;
                }
                life.reads.pop_front();
                self.ledger.read_is_fresh(node, read.floor, ready.slot);
                let (ticket, slot) = (read.ticket, ready.slot);
                answered.push(format!("{node:?} answers ticket {ticket} at {slot:?}"));
            }
        }
        for line in answered {
            self.note(line);
        }
        busy
    }

    fn ship(&mut self, node: NodeId) -> bool {
        let mut busy = false;
        for peer in self.nodes() {
            while self.network.has_credit(node, peer) {
                let record_bytes = self.record_bytes;
                let Some(core) = self.core_mut(node) else { return busy };
                let accept = if core.is_witness_peer(peer) {
                    let Some(shipment) = core.next_withheld_shipment(peer, record_bytes) else {
                        break;
                    };
                    let Shipment { ballot, first, commit_slot, values, .. } = shipment;
                    Accept { ballot, first, commit_slot, values }
                } else {
                    let Some(shipment) = core.next_shipment(peer, record_bytes) else { break };
                    Accept {
                        ballot: shipment.ballot,
                        first: shipment.first,
                        commit_slot: shipment.commit_slot,
                        values: shipment.values.cloned().collect(),
                    }
                };
                core.shipped(peer, accept.last());
                busy = true;
                for (slot, value) in (accept.first.0..).zip(&accept.values) {
                    self.ledger.one_value_per_ballot(Slot(slot), accept.ballot, value);
                }
                self.network.post_record(node, peer, accept);
            }
        }
        busy
    }

    /// A witness that was left behind is told by a voter who decides, as the replica does it.
    fn show_members(&mut self, node: NodeId) -> bool {
        let now = self.now;
        let Some(core) = self.replicas.get(&node).and_then(Replica::core) else { return false };
        let wanted = core.snapshot_wanted().filter(|_| core.is_witness());
        let Some(source) = wanted.and_then(|slot| core.snapshot_source(slot, None)) else {
            return false;
        };
        let giver = self.replicas.get(&source).filter(|replica| replica.runs());
        let reached = self.network.is_up(source, node) && self.network.is_up(node, source);
        let Some(giver) = giver.and_then(Replica::core).filter(|_| reached) else { return false };
        let slot = giver.commit_slot();
        let known = giver.configurations().as_of(slot);
        let Some(replica) = self.replicas.get_mut(&node) else { return false };
        let Some(life) = replica.life.as_mut() else { return false };
        if slot <= life.core.commit_slot() || replica.poisoned {
            return false;
        }
        replica.disk.checkpoint = Some((slot, known.clone()));
        life.core.on_checkpoint(now, slot, known);
        self.chat(|| format!("{node:?} is told by {source:?} that all up to {slot:?} is chosen"));
        true
    }

    fn publish_rows(&mut self, node: NodeId) {
        for peer in self.nodes() {
            if !self.network.is_up(node, peer) {
                continue;
            }
            let Some(replica) = self.replicas.get_mut(&node) else { return };
            let Some(life) = replica.life.as_mut() else { return };
            if !life.core.row_due(peer) {
                continue;
            }
            let row = life.core.row(peer);
            let commit = life.core.commit_slot();
            life.core.row_published(peer);
            if row.flags.0 & (RowFlags::AMNESIAC | RowFlags::POISONED) == 0 {
                self.ledger.i9_row_is_durable(node, &replica.disk, commit, &row);
            }
            if let Some(before) = self.network.post_row(node, peer, row) {
                self.ledger.row_grows(node, &before, &row);
            }
        }
    }

    fn check(&mut self, node: NodeId) {
        let Some(replica) = self.replicas.get_mut(&node) else { return };
        let Some(life) = replica.life.as_mut() else { return };
        let (commit, applied) = (life.core.commit_slot(), life.core.applied_slot());
        let before = std::mem::replace(&mut life.checked_commit, commit);
        self.ledger.i3_promise_monotone(node, replica.disk.promised, life.core.promised());
        self.ledger.i5_commit_only_chosen(node, before, commit);
        self.ledger.i6_applied_within_commit(node, applied, commit);
    }

    pub(super) fn core_mut(&mut self, node: NodeId) -> Option<&mut Paxos> {
        self.replicas.get_mut(&node)?.life.as_mut().map(|life| &mut life.core)
    }
}
