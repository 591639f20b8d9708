//! Benchmarks of the parts, each in one process; `quorate bench` measures whole clusters.
//!
//! [`CorePump`] drives three consensus cores on one thread, without a network, a log or a state
//! machine, so that what remains is the price of the protocol. It does not say anything about a
//! deployed cluster.
#![forbid(unsafe_code)]

pub mod log;

use bytes::Bytes;
use quorate_consensus::{Accept, Nanos, Paxos, PersistNumber, Value, ValueKind};

/// Three cores that hand each other everything at once; every persist is durable at once.
#[derive(Debug)]
pub struct CorePump {
    cores: Vec<Paxos>,
    persisted: Vec<u64>,
    now: Nanos,
    accept: Accept,
}

impl Default for CorePump {
    fn default() -> Self {
        Self::new()
    }
}

impl CorePump {
    /// Three replicas, the first of which leads.
    ///
    /// # Panics
    /// If no leader comes up within ten simulated seconds: the core is broken.
    #[must_use]
    pub fn new() -> Self {
        let cores = quorate_tests::three_cores!(quorate_consensus);
        let mut pump =
            Self { persisted: vec![0; 3], cores, now: Nanos(0), accept: Accept::default() };
        for _ in 0..10_000 {
            pump.turn();
            if pump.cores[0].role_is_leader() && pump.cores[0].can_propose() {
                return pump;
            }
            pump.now = pump.now + Nanos::MILLISECOND;
        }
        panic!("no leader after ten simulated seconds");
    }

    /// Proposes `batches` batches of `commands` commands of `bytes` each, and returns when all
    /// replicas have them chosen and applied.
    pub fn run(&mut self, batches: u64, commands: usize, bytes: usize) {
        let payload = Bytes::from(vec![7u8; commands * bytes]);
        let checksum = crc32c::crc32c(&payload);
        let goal = self.cores[0].last_slot().0 + batches;
        let mut left = batches;
        while self.cores.iter().any(|core| core.applied_slot().0 < goal) {
            while left > 0 && self.cores[0].can_propose() {
                let bytes = payload.clone();
                let value = Value { kind: ValueKind::Commands, checksum, bytes };
                if self.cores[0].propose(value).is_none() {
                    break;
                }
                left -= 1;
            }
            self.turn();
        }
    }

    /// Lets all effects out and delivers them.
    fn turn(&mut self) {
        for index in 0..self.cores.len() {
            self.cores[index].on_time(self.now);
            self.persist(index);
            self.deliver(index);
            while let Some((slot, _)) = self.cores[index].next_to_apply() {
                self.cores[index].on_applied(slot);
            }
        }
    }

    fn persist(&mut self, index: usize) {
        let core = &mut self.cores[index];
        while core.poll_persist().is_some() {
            self.persisted[index] += 1;
        }
        core.on_persisted(PersistNumber(self.persisted[index]));
        while core.poll_notice().is_some() {}
    }

    fn deliver(&mut self, from: usize) {
        let node = self.cores[from].node();
        for to in (0..self.cores.len()).filter(|to| *to != from) {
            let peer = self.cores[to].node();
            while self.ship(from, to) {
                self.persist(to);
            }
            if self.cores[from].row_due(peer) {
                let row = self.cores[from].row(peer);
                self.cores[from].row_published(peer);
                self.cores[to].on_row(self.now, node, row);
            }
        }
        while let Some((to, message)) = self.cores[from].poll_message() {
            let to = usize::from(to.0) - 1;
            self.cores[to].on_message(self.now, node, message);
            self.persist(to);
        }
    }

    fn ship(&mut self, from: usize, to: usize) -> bool {
        let (node, peer) = (self.cores[from].node(), self.cores[to].node());
        let last = {
            let Some(shipment) = self.cores[from].next_shipment(peer, 1 << 20) else {
                return false;
            };
            self.accept.ballot = shipment.ballot;
            self.accept.first = shipment.first;
            self.accept.commit_slot = shipment.commit_slot;
            self.accept.values.extend(shipment.values.cloned());
            shipment.last
        };
        self.cores[from].shipped(peer, last);
        // Nothing is lost here, so nothing can be missing.
        let gap = self.cores[to].on_accept(self.now, node, &mut self.accept);
        assert_eq!(gap, Ok(()), "a pump loses nothing");
        true
    }
}
