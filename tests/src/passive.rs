//! Passive followers at the core (rules B1 to B4): three replicas whose rings, rows and messages are
//! carried by hand, with logs in memory. The rings are granted for one life of their lanes.

use bytes::Bytes;
use quorate_consensus::{
    Accept, Ballot, Message, Nanos, NodeId, Paxos, PersistNumber, RowFlags, Slot, Value, ValueKind,
};
use std::collections::BTreeMap;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);

/// Three voters. `A` stands for election first.
#[derive(Debug)]
struct Three {
    cores: Vec<Paxos>,
    emitted: [u64; 3],
    now: Nanos,
    /// Messages that left and did not arrive.
    under_way: Vec<(NodeId, NodeId, Message)>,
    /// What each replica learned to be chosen.
    chosen: BTreeMap<Slot, Value>,
}

fn value(text: &'static str) -> Value {
    Value { kind: ValueKind::Commands, checksum: 0, bytes: Bytes::from_static(text.as_bytes()) }
}

impl Three {
    fn new() -> Self {
        crate::plant();
        let mut three = Self {
            cores: crate::three_cores!(quorate_consensus),
            emitted: [0; 3],
            now: Nanos(0),
            under_way: Vec::new(),
            chosen: BTreeMap::new(),
        };
        for a in [A, B, C] {
            for b in [A, B, C].into_iter().filter(|b| *b != a) {
                three.core(a).on_link_up(Nanos(0), b);
                three.core(a).on_granted(b);
            }
        }
        three
    }

    fn core(&mut self, node: NodeId) -> &mut Paxos {
        &mut self.cores[usize::from(node.0) - 1]
    }

    /// Takes out what the core wants: what is kept is durable at once.
    fn settle(&mut self, node: NodeId) {
        let at = usize::from(node.0) - 1;
        loop {
            while self.cores[at].poll_persist().is_some() {
                self.emitted[at] += 1;
            }
            self.cores[at].on_persisted(PersistNumber(self.emitted[at]));
            let mut busy = false;
            while let Some((to, message)) = self.cores[at].poll_message() {
                busy = true;
                self.under_way.push((node, to, message));
            }
            while let Some((slot, value)) = self.cores[at].next_to_apply() {
                let value = value.clone();
                let known = self.chosen.entry(slot).or_insert_with(|| value.clone());
                assert_eq!(*known, value, "I1: {node} has another value in {slot}");
                self.cores[at].on_applied(slot);
                busy = true;
            }
            if !busy {
                return;
            }
        }
    }

    /// Delivers messages among `these` until none is left; those to others stay under way.
    fn talk(&mut self, these: &[NodeId]) {
        loop {
            for node in these {
                self.settle(*node);
            }
            let among = |(from, to, _): &(NodeId, NodeId, Message)| {
                these.contains(from) && these.contains(to)
            };
            let Some(place) = self.under_way.iter().position(among) else { return };
            let (from, to, message) = self.under_way.remove(place);
            let now = self.now;
            self.core(to).on_message(now, from, message);
            if self.core(to).fence_due().is_some() {
                return;
            }
        }
    }

    /// A row goes from one to the other.
    fn row(&mut self, from: NodeId, to: NodeId) -> RowFlags {
        self.settle(from);
        let row = self.core(from).row(to);
        self.core(from).row_published(to);
        let now = self.now;
        self.core(to).on_row(now, from, row);
        self.settle(to);
        row.flags
    }

    /// `node` stands for election and is granted pre-votes by `with`, whose answers to its Prepare stay
    /// under way.
    fn stand(&mut self, node: NodeId, with: NodeId) -> Ballot {
        self.under_way.clear();
        self.now = Nanos(self.now.0 + Nanos::from_millis(1_000).0);
        let now = self.now;
        self.core(with).note_time(now);
        self.core(node).on_time(now);
        self.settle(node);
        // Until its Prepare has left, and not further.
        while !self.under_way.iter().any(|(_, to, m)| *to == with && is_prepare(m)) {
            let pair = |(from, to, _): &(NodeId, NodeId, Message)| {
                [node, with].contains(from) && [node, with].contains(to)
            };
            let place = self.under_way.iter().position(pair);
            let (from, to, message) = self.under_way.remove(place.expect("a pre-vote is answered"));
            self.core(to).on_message(now, from, message);
            self.settle(to);
            if self.core(node).fence_due().is_some() {
                break;
            }
        }
        self.core(node).promised()
    }

    /// The record that `from` ships to `to` next, as it lies in the ring then.
    fn ship(&mut self, from: NodeId, to: NodeId) -> Accept {
        self.settle(from);
        let record = {
            let shipment = self.core(from).next_shipment(to, 1 << 20).expect("something is due");
            Accept {
                ballot: shipment.ballot,
                first: shipment.first,
                commit_slot: shipment.commit_slot,
                values: shipment.values.cloned().collect(),
            }
        };
        self.core(from).shipped(to, record.last());
        record
    }

    fn read(&mut self, at: NodeId, from: NodeId, record: &Accept) {
        let now = self.now;
        self.core(at).on_accept(now, from, &mut record.clone()).expect("no gap");
    }

    fn fenced(&mut self, at: NodeId, owner: NodeId) {
        let now = self.now;
        assert_eq!(self.core(at).fence_due(), Some(owner));
        self.core(at).on_fenced(now, owner).expect("no gap");
        assert_eq!(self.core(at).fence_due(), None);
    }

    fn written(&mut self, leader: NodeId, at: NodeId, record: &Accept) -> Slot {
        self.core(leader).on_written(at, record.ballot, record.last());
        self.settle(leader);
        self.core(leader).commit_slot()
    }

    /// `A` leads by the promise of `B`, which has voted for its barrier by a row, and is passive.
    fn led_by_a() -> Self {
        let mut three = Self::new();
        three.stand(A, B);
        three.talk(&[A, B]);
        assert!(three.core(A).role_is_leader());
        three.row(B, A);
        let barrier = three.ship(A, B);
        three.read(B, A, &barrier);
        let flags = three.row(B, A);
        assert!(flags.has(RowFlags::PASSIVE), "the promise is A's, its ring is granted");
        assert_eq!(three.core(A).commit_slot(), barrier.last());
        three
    }

    fn propose(&mut self, leader: NodeId, text: &'static str) -> Slot {
        self.settle(leader);
        self.core(leader).propose(value(text)).expect("it leads, and there is room")
    }

    /// `B` holds the end of `A`'s ring in its log now, and `C` finds it there and leads.
    fn c_leads_with_b(&mut self, slot: Slot, text: &'static str) {
        self.talk(&[B, C]);
        let c = self.core(C);
        assert!(c.role_is_leader() || c.commit_slot() >= slot, "C leads: {:?}", c.role());
        self.row(B, C);
        for _ in 0..3 {
            if self.cores[2].next_shipment(B, 1 << 20).is_some() {
                let record = self.ship(C, B);
                self.read(B, C, &record);
            }
            self.row(B, C);
        }
        assert!(self.core(C).commit_slot() >= slot, "C has {slot} chosen");
        assert_eq!(self.chosen[&slot], value(text), "what was chosen by a completed write");
    }
}

fn is_prepare(message: &Message) -> bool {
    matches!(message, Message::Prepare { .. })
}

/// Rules B1 and B2: what was chosen by a completed write, unread, is reported to the next leader.
pub fn a_completed_record_survives_a_change_of_leader() {
    let mut three = Three::led_by_a();
    let slot = three.propose(A, "unread");
    let record = three.ship(A, B);
    assert_eq!(three.written(A, B, &record), slot, "chosen, and B has not looked");
    assert!(three.core(B).vote().1 < slot);
    let ballot = three.stand(C, B);
    three.talk(&[B, C]);
    assert!(three.core(B).promised() < ballot, "no promise before the fence");
    assert!(
        !three
            .under_way
            .iter()
            .any(|(from, _, m)| *from == B && matches!(m, Message::Promise { .. }))
    );
    three.read(B, A, &record);
    three.fenced(B, A);
    assert_eq!(three.core(B).promised(), ballot);
    three.c_leads_with_b(slot, "unread");
}

/// Rules B1 to B3: the old leader is not confirmed any more, in this life, whatever it is told.
pub fn who_was_fenced_is_confirmed_in_another_life_only() {
    let mut three = Three::led_by_a();
    three.stand(C, B);
    three.talk(&[B, C]);
    three.fenced(B, A);
    three.talk(&[B, C]);
    // A goes on writing, and would be told of a failure. Were it told of success, it would count it:
    // that no byte lands, and none is acknowledged, is the transport's part (contract C4).
    three.propose(A, "late");
    let late = three.ship(A, B);
    three.read(B, A, &late);
    assert!(three.core(B).vote().1 < late.last(), "refused by ballot");
    assert!(!three.row(B, A).has(RowFlags::PASSIVE));
    assert!(!three.core(A).role_is_leader(), "a higher promise ends a leadership");
    // A leads again, with B: the ring stays closed in this life of the lane.
    three.stand(A, B);
    three.talk(&[A, B]);
    assert_eq!(three.core(B).fence_due(), None, "nobody may write");
    assert!(!three.row(B, A).has(RowFlags::PASSIVE));
    let now = three.now;
    three.core(B).on_ring_closed(A);
    three.core(B).on_link_down(now, A);
    three.core(B).on_link_up(now, A);
    three.core(B).on_granted(A);
    assert!(three.row(B, A).has(RowFlags::PASSIVE));
}

/// Rule B4: at the end of a life the ring is read, and what counted is reported later.
pub fn a_completed_record_survives_the_end_of_its_lane() {
    let mut three = Three::led_by_a();
    let slot = three.propose(A, "unread");
    let record = three.ship(A, B);
    assert_eq!(three.written(A, B, &record), slot);
    let now = three.now;
    three.read(B, A, &record);
    three.core(B).on_ring_closed(A);
    three.core(B).on_link_down(now, A);
    three.core(A).on_link_down(now, B);
    three.stand(C, B);
    three.talk(&[B, C]);
    assert_eq!(three.core(B).fence_due(), None, "there is nothing to fence");
    three.c_leads_with_b(slot, "unread");
}

/// Rule B2, towards the same owner: its Prepare comes by another lane than what it wrote.
pub fn the_same_owner_is_fenced_too() {
    let mut three = Three::led_by_a();
    let slot = three.propose(A, "unread");
    let record = three.ship(A, B);
    assert_eq!(three.written(A, B, &record), slot);
    // It hears of no quorum, steps down, and stands again.
    three.now = Nanos(three.now.0 + Nanos::from_millis(1_000).0);
    let now = three.now;
    three.core(A).on_time(now);
    assert!(!three.core(A).role_is_leader());
    let ballot = three.stand(A, B);
    three.talk(&[A, B]);
    assert!(three.core(B).promised() < ballot);
    three.read(B, A, &record);
    three.fenced(B, A);
    three.talk(&[A, B]);
    assert!(three.core(A).role_is_leader());
    assert!(!three.row(B, A).has(RowFlags::PASSIVE), "not in this life of the lane");
    // A record of a higher ballot in the ring itself needs no fence: what was before it was read.
    three.now = Nanos(three.now.0 + Nanos::from_millis(1_000).0);
}

/// Rule B2: a record of the same owner's next ballot stands behind its older ones in the ring.
pub fn a_ring_is_read_in_order() {
    let mut three = Three::led_by_a();
    three.row(C, A);
    three.now = Nanos(three.now.0 + Nanos::from_millis(1_000).0);
    let now = three.now;
    three.core(A).on_time(now);
    assert!(!three.core(A).role_is_leader());
    three.stand(A, C);
    three.talk(&[A, C]);
    assert!(three.core(A).role_is_leader(), "elected by C, and B knows nothing of it");
    let record = three.ship(A, B);
    three.read(B, A, &record);
    assert_eq!(three.core(B).fence_due(), None);
    assert_eq!(three.core(B).promised(), record.ballot);
    assert!(three.row(B, A).has(RowFlags::PASSIVE), "the life goes on");
}

/// Rule B1: neither without a confirmation nor under another ballot.
pub fn only_what_is_confirmed_counts() {
    let mut three = Three::new();
    three.stand(A, C);
    three.talk(&[A, C]);
    assert!(three.core(A).role_is_leader());
    three.row(B, A);
    let barrier = three.ship(A, B);
    assert_eq!(three.written(A, B, &barrier), Slot::ZERO, "B has promised nothing");
    three.read(B, A, &barrier);
    // Kept, and counted when it is confirmed.
    three.propose(A, "one");
    let one = three.ship(A, B);
    assert_eq!(three.written(A, B, &one), Slot::ZERO);
    three.row(B, A);
    assert_eq!(three.core(A).commit_slot(), one.last());
    // C leads in between, without B, and A again; B reads nothing, and its lane holds.
    three.propose(A, "two");
    three.propose(A, "three");
    let older = three.ship(A, B);
    three.now = Nanos(three.now.0 + Nanos::from_millis(1_000).0);
    let now = three.now;
    three.core(A).on_time(now);
    three.stand(A, C);
    three.talk(&[A, C]);
    let ballot = three.core(A).promised();
    assert!(three.core(A).role_is_leader());
    let newer = three.ship(A, B);
    three.read(B, A, &one);
    three.read(B, A, &older);
    let first = Accept { values: newer.values[..1].to_vec(), ..newer.clone() };
    three.read(B, A, &first);
    let commit = three.core(A).commit_slot();
    // Of the older ballot: told now, late.
    assert_eq!(three.written(A, B, &older), commit);
    assert!(three.row(B, A).has(RowFlags::PASSIVE));
    let voted = three.core(B).vote();
    assert_eq!(voted.0, ballot);
    assert_eq!(three.core(A).commit_slot(), voted.1, "an older ballot's write counts for nothing");
    assert_eq!(three.written(A, B, &newer), newer.last());
}

/// All of them.
pub fn all() {
    a_completed_record_survives_a_change_of_leader();
    who_was_fenced_is_confirmed_in_another_life_only();
    a_completed_record_survives_the_end_of_its_lane();
    the_same_owner_is_fenced_too();
    a_ring_is_read_in_order();
    only_what_is_confirmed_counts();
}
