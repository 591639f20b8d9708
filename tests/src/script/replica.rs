//! One replica of a script: the core, a disk whose durability is cranked by hand, a state machine.

use super::ledger::Disk;
use quorate_consensus::{
    Configuration, Configurations, Entry, Incarnation, LogRead, Member, Nanos, NodeId,
    PROTOCOL_WITNESSES, Paxos, Persist, PersistNumber, ReadReady, Repair, Restored, Settings, Slot,
    Value, ValueKind,
};
use std::collections::VecDeque;

/// A persist that came out and is not durable.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Its number.
    pub number: PersistNumber,
    /// What is to be kept.
    pub persist: Persist,
    /// The commit slot that its record carries: one that records before it cover.
    pub commit_slot: Slot,
}

/// A linearizable read that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// What the core calls it.
    pub ticket: u64,
    /// What may have been acknowledged to some client when it began.
    pub floor: Slot,
}

/// What a crash takes away.
#[derive(Clone, Debug)]
pub struct Life {
    /// The protocol.
    pub core: Paxos,
    /// Emitted, not durable.
    pub pending: VecDeque<Pending>,
    /// How many persists came out.
    pub emitted: u64,
    /// Up to here the ledger was told what this life takes for chosen.
    pub checked_commit: Slot,
    /// A chain over all applied values.
    pub digest: u64,
    /// The peers that it had links to were those of this version of its members.
    pub members_seen: Option<u64>,
    /// Reads that the core has not released.
    pub reads: VecDeque<Read>,
    /// Reads that wait for the state machine.
    pub released: VecDeque<ReadReady>,
}

/// One replica.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its number.
    pub node: NodeId,
    /// Its settings.
    pub settings: Settings,
    /// What survives.
    pub disk: Disk,
    /// None while it is crashed.
    pub life: Option<Life>,
    /// Persists wait to be made durable one by one.
    pub holds_persists: bool,
    /// Its process is stopped: it takes no events.
    pub paused: bool,
    /// Its disk failed: nothing becomes durable any more.
    pub poisoned: bool,
}

impl Replica {
    /// Who it is, with the disk that it has now.
    #[must_use]
    pub fn member(&self) -> Member {
        Member { node: self.node, incarnation: self.settings.incarnation }
    }
}

/// The founding configuration of `count` voters, and of so many witnesses with the numbers behind them.
#[must_use]
pub fn founding(count: u16, witnesses: u16, copies: u16) -> Configurations {
    let member = |node| Member { node: NodeId(node), incarnation: Incarnation(u64::from(node)) };
    let mut founding = Configuration::of_voters(1, (1..=count).map(member).collect());
    if witnesses > 0 {
        founding.witnesses = (count + 1..=count + witnesses).map(member).collect();
        founding.copies = copies;
        founding.protocol = PROTOCOL_WITNESSES;
    }
    Configurations::new(founding)
}

impl Replica {
    /// Crashed, with an empty disk.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            node: settings.node,
            settings,
            disk: Disk::fresh(),
            life: None,
            holds_persists: false,
            paused: false,
            poisoned: false,
        }
    }

    /// Whether it takes events.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.life.is_some() && !self.paused
    }

    /// Its protocol, while it lives.
    #[must_use]
    pub fn core(&self) -> Option<&Paxos> {
        self.life.as_ref().map(|life| &life.core)
    }

    /// Loses its disk while crashed: what it promised and accepted is forgotten.
    pub fn wipe(&mut self) {
        self.disk = Disk::fresh();
        self.settings.incarnation = Incarnation(self.settings.incarnation.0 + 1000);
    }

    /// Loses entries while crashed: the one of `slot`, whose header is still whole, or all from
    /// there on, and nobody can tell how many these were.
    pub fn damage(&mut self, slot: Slot, exact: bool) {
        let Some((&last, _)) = self.disk.log.last_key_value() else { return };
        if exact {
            self.disk.log.remove(&slot);
        } else {
            self.disk.log.split_off(&slot);
        }
        self.disk.commit_slot = self.disk.commit_slot.min(slot.previous());
        self.disk.remembers = false;
        self.disk.repair = match self.disk.repair {
            Some(Repair::UnderNewLeader) => Some(Repair::UnderNewLeader),
            _ if exact => Some(Repair::Through(last)),
            _ => Some(Repair::UnderNewLeader),
        };
    }

    /// Starts from its disk, `founding` being the first configuration. `commit_max` forgets commits above it, as a log may whose newest
    /// records carry an older commit slot.
    pub fn start(&mut self, founding: &Configurations, commit_max: Slot, now: Nanos) {
        let commit_slot = self.disk.commit_slot.min(commit_max);
        let (passed_over, mut configurations) =
            self.disk.checkpoint.clone().unwrap_or_else(|| (Slot::ZERO, founding.clone()));
        // A witness begins at its checkpoint, to be able to say under which ballot it accepted the rest.
        let commit_slot = if self.settings.witness { passed_over } else { commit_slot };
        let known = self.disk.log.range(passed_over.next()..);
        for (slot, entry) in known.take_while(|(slot, _)| **slot <= commit_slot) {
            let known = Configuration::decode(&entry.value.bytes);
            let known = known.filter(|_| entry.value.kind == ValueKind::Configuration);
            configurations.note(*slot, known);
        }
        let configurations = configurations.as_of(commit_slot);
        let mut accepted = Vec::new();
        let mut slot = commit_slot.next();
        // Behind damage nothing is vouched for: it comes from the peers.
        while let Some(entry) = self.disk.log.get(&slot).filter(|_| self.disk.repair.is_none()) {
            accepted.push(entry.clone());
            slot = slot.next();
        }
        let restored = Restored {
            promised: self.disk.promised,
            commit_slot,
            log_first: Slot(1),
            accepted,
            configurations,
            remembers: self.disk.remembers,
        };
        let mut core = Paxos::new(self.settings.clone(), restored, now);
        if let Some(Repair::Through(through)) = &mut self.disk.repair {
            let last = self.disk.log.last_key_value().map_or(Slot::ZERO, |(slot, _)| *slot);
            *through = last.max(*through);
        }
        if let Some(repair) = self.disk.repair {
            core.repair(repair);
        }
        if passed_over > Slot::ZERO {
            core.on_applied(passed_over);
        }
        self.life = Some(Life {
            members_seen: Some(core.members_version()),
            core,
            pending: VecDeque::new(),
            emitted: 0,
            checked_commit: passed_over,
            digest: 0,
            reads: VecDeque::new(),
            released: VecDeque::new(),
        });
    }

    /// What a peer asked for, read from the disk.
    #[must_use]
    pub fn read_log(&self, read: LogRead) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for slot in read.first.0..=read.last.0 {
            let Some(entry) = self.disk.log.get(&Slot(slot)) else { break };
            bytes += entry.value.bytes.len();
            if !entries.is_empty() && bytes > read.bytes_max as usize {
                break;
            }
            entries.push(entry.clone());
        }
        entries
    }
}

impl Life {
    /// The next chosen value: from memory, or from the disk after a restart.
    #[must_use]
    pub fn next_to_apply(&self, disk: &Disk) -> Option<(Slot, Value)> {
        if let Some((slot, value)) = self.core.next_to_apply() {
            return Some((slot, value.clone()));
        }
        let slot = self.core.applied_slot().next();
        if slot > self.core.commit_slot() {
            return None;
        }
        disk.log.get(&slot).map(|entry| (slot, entry.value.clone()))
    }

    /// Continues the chain over applied values (FNV-1a).
    pub fn absorb(&mut self, slot: Slot, value: &Value) {
        let head = slot.0.to_le_bytes();
        let kind = [value.kind as u8];
        for byte in head.iter().chain(&kind).chain(&value.bytes[..]) {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
