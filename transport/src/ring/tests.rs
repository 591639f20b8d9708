use super::*;
use crate::memory::{Landing, MemoryNetwork, MemoryTransport};
use crate::{Event, Lane, Level, RegionId, Transport};
use bytes::Bytes;
use quorate_consensus::{Accept, Ballot, Incarnation, NodeId, Slot, Value, ValueKind};

const LEADER: NodeId = NodeId(1);
const FOLLOWER: NodeId = NodeId(2);
const BALLOT: Ballot = Ballot { round: 7, node: LEADER };

/// A leader and a follower, joined by one ring, driven by one thread.
struct Rig {
    network: MemoryNetwork,
    leader: MemoryTransport,
    follower: MemoryTransport,
    writer: RingWriter,
    reader: RingReader,
    accept: Accept,
    next_slot: u64,
    lives: u32,
    life: Incarnation,
}

impl Rig {
    fn new(ring_length: usize) -> Self {
        let network = MemoryNetwork::new(11);
        let leader = network.endpoint(LEADER, &[FOLLOWER]);
        let mut follower = network.endpoint(FOLLOWER, &[LEADER]);
        let region = RegionId::inbox(LEADER);
        follower.register(region, ring_length).unwrap();
        follower.grant(region, LEADER).unwrap();
        let mut rig = Self {
            network,
            leader,
            follower,
            writer: RingWriter::new(region, ring_length),
            reader: RingReader::new(region, ring_length),
            accept: Accept::default(),
            next_slot: 1,
            lives: 0,
            life: Incarnation(0),
        };
        rig.turn_until(|rig| rig.lives == 2);
        rig
    }

    /// Polls both ends once and resets rings at new lives.
    fn turn(&mut self) {
        let mut events = Vec::new();
        self.leader.flush();
        self.leader.poll(&mut events);
        for event in events.drain(..) {
            if let Event::LinkUp { lane: Lane::Data, incarnation, .. } = event {
                self.writer.reset(incarnation);
                self.lives += 1;
            }
        }
        self.follower.poll(&mut events);
        for event in events {
            if let Event::LinkUp { lane: Lane::Data, incarnation, .. } = event {
                self.reader.reset(incarnation);
                self.life = incarnation;
                self.lives += 1;
            }
        }
    }

    fn turn_until(&mut self, done: impl Fn(&Self) -> bool) {
        for _ in 0..10_000 {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("it did not happen within 10000 polls");
    }

    fn ship(&mut self, values: &[Value]) -> Result<Shipped, ShipError> {
        let first = Slot(self.next_slot);
        let commit = first.previous();
        let shipped =
            self.writer.ship(&mut self.leader, FOLLOWER, BALLOT, first, commit, values)?;
        self.next_slot += shipped.count as u64;
        Ok(shipped)
    }

    fn take(&mut self) -> bool {
        self.reader.poll(&self.follower, &mut self.accept).unwrap()
    }

    /// Ships `values` one run after the other and takes them, giving credit back.
    fn pass(&mut self, values: &[Value]) -> Vec<Value> {
        let (mut sent, mut taken) = (0, Vec::new());
        for _ in 0..100_000 {
            if taken.len() == values.len() {
                return taken;
            }
            if sent < values.len() {
                match self.ship(&values[sent..]) {
                    Ok(shipped) => sent += shipped.count,
                    Err(ShipError::NoCredit { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            self.turn();
            while self.take() {
                taken.append(&mut self.accept.values);
            }
            assert!(self.writer.set_consumed(self.reader.consumed()));
        }
        panic!("only {} of {} values passed", taken.len(), values.len());
    }
}

fn value(length: usize, salt: u64) -> Value {
    let bytes: Vec<u8> = (0..length as u64).map(|i| (i * 31 + salt * 17) as u8).collect();
    let checksum = crc32c::crc32c(&bytes);
    Value { kind: ValueKind::Commands, checksum, bytes: Bytes::from(bytes) }
}

#[test]
fn a_record_arrives_as_it_was_shipped() {
    let mut rig = Rig::new(4096);
    let values = vec![value(100, 1), Value::noop(), value(1, 2)];
    assert_eq!(rig.ship(&values).unwrap().count, 3);
    assert!(!rig.take(), "nothing is there before the flush");
    rig.turn();
    assert!(rig.take());
    let expected = Accept { ballot: BALLOT, first: Slot(1), commit_slot: Slot(0), values };
    assert_eq!(rig.accept, expected);
    assert!(!rig.take());
    assert_eq!(rig.reader.consumed(), rig.writer.in_flight());
}

#[test]
fn laps_of_every_size_pass_a_small_ring_in_order() {
    let mut rig = Rig::new(2048);
    let values: Vec<Value> = (0..2000).map(|i| value((i * 37 % 700) as usize, i)).collect();
    assert_eq!(rig.pass(&values), values);
    assert!(rig.reader.consumed() > 100 * 2048, "many laps");
}

#[test]
fn a_record_larger_than_half_of_the_ring_passes_from_every_offset() {
    for before in 0..40 {
        let mut rig = Rig::new(2048);
        let mut values: Vec<Value> = (0..before).map(|i| value(10, i)).collect();
        let largest = 2048 - 64 - 12 - 8;
        values.extend([value(largest, 1), value(3, 2), value(1500, 3), value(largest, 4)]);
        assert_eq!(rig.pass(&values), values, "after {before} records");
    }
}

#[test]
fn a_value_that_can_never_fit_is_refused() {
    let mut rig = Rig::new(2048);
    let error = rig.ship(&[value(2048 - 64 - 12 - 7, 1)]).unwrap_err();
    assert!(matches!(error, ShipError::TooLarge { .. }), "{error}");
    assert_eq!(rig.ship(&[]), Err(ShipError::Empty));
}

#[test]
fn room_is_what_can_be_shipped_and_not_a_byte_less() {
    let mut rig = Rig::new(2048);
    for i in 0..500 {
        let room = rig.writer.room();
        if room > 0 {
            // What is said to have room passes; the test then continues from a used ring.
            let length = if i % 5 == 0 { room } else { (i * 53 % room as u64) as usize };
            rig.ship(&[value(length, i)]).unwrap();
        }
        let room = rig.writer.room();
        let tight = rig.ship(&[value(room + 64, i)]);
        assert!(matches!(tight, Err(ShipError::NoCredit { .. } | ShipError::TooLarge { .. })));
        rig.turn();
        if i % 2 == 0 {
            while rig.take() {}
            assert!(rig.writer.set_consumed(rig.reader.consumed()));
        }
    }
}

#[test]
fn without_credit_nothing_is_overwritten() {
    let mut rig = Rig::new(1024);
    let mut sent = Vec::new();
    while rig.ship(&[value(100, sent.len() as u64)]).is_ok() {
        sent.push(value(100, sent.len() as u64));
    }
    rig.turn();
    let mut taken = Vec::new();
    while rig.take() {
        taken.append(&mut rig.accept.values);
    }
    assert_eq!(taken, sent);
}

#[test]
fn absurd_credit_is_ignored() {
    let mut rig = Rig::new(1024);
    rig.ship(&[value(10, 1)]).unwrap();
    let tail = rig.writer.in_flight();
    assert!(!rig.writer.set_consumed(tail + 1));
    assert!(!rig.writer.set_consumed(u64::MAX));
    assert_eq!(rig.writer.in_flight(), tail);
    assert!(rig.writer.set_consumed(tail));
    assert!(!rig.writer.set_consumed(tail - 64), "backwards");
    assert_eq!(rig.writer.in_flight(), 0);
}

#[test]
fn a_long_run_is_split_and_nothing_is_lost() {
    let mut rig = Rig::new(1 << 20);
    let values: Vec<Value> = (0..10_000).map(|i| value(5, i)).collect();
    assert_eq!(rig.ship(&values).unwrap().count, RECORD_VALUES_MAX);
    rig.next_slot = 1;
    rig.turn();
    assert!(rig.take());
    assert!(rig.writer.set_consumed(rig.reader.consumed()));
    assert_eq!(rig.pass(&values), values);
}

#[test]
fn torn_writes_at_every_grain_are_never_believed_early() {
    for grain in [1, 8, 64, 1024] {
        let mut rig = Rig::new(8192);
        rig.network.set_landing(
            FOLLOWER,
            Landing { tear_bytes: Some(grain), late_polls: 2, ..Landing::default() },
        );
        let values: Vec<Value> = (0..200).map(|i| value((i * 97 % 3000) as usize, i)).collect();
        assert_eq!(rig.pass(&values), values, "grain {grain}");
    }
}

#[test]
fn nothing_of_an_older_life_is_believed() {
    let mut rig = Rig::new(4096);
    for life in 0..50u64 {
        // What is left in the ring, whole or torn, belongs to the life that ends here.
        let tear_bytes = (life % 2 == 0).then_some(64);
        rig.network
            .set_landing(FOLLOWER, Landing { tear_bytes, ghosts: true, ..Landing::default() });
        for i in 0..1 + life % 5 {
            rig.ship(&[value(300, 1000 + life * 10 + i)]).unwrap();
        }
        rig.turn();
        rig.network.fail(LEADER, FOLLOWER, Lane::Data);
        let lives = rig.lives;
        rig.turn_until(|rig| rig.lives == lives + 2);
        for _ in 0..20 {
            assert!(!rig.take(), "life {life} believed a record of the one before");
            rig.turn();
        }
    }
}

#[test]
fn a_payload_damaged_in_memory_is_an_error_after_some_looks() {
    let mut rig = Rig::new(4096);
    let mut bad = value(100, 1);
    bad.checksum ^= 1;
    rig.ship(&[bad]).unwrap();
    rig.turn();
    for _ in 1..MISMATCHES_MAX {
        assert_eq!(rig.reader.poll(&rig.follower, &mut rig.accept), Ok(false));
        assert!(rig.reader.suspicious());
    }
    let error = rig.reader.poll(&rig.follower, &mut rig.accept).unwrap_err();
    assert_eq!(error, RingError::Corrupt { sequence: 1, position: 0 });
}

#[test]
fn payloads_are_shared_with_the_transport_and_copied_once_by_the_reader() {
    let mut rig = Rig::new(1 << 20);
    let values = [value(20_000, 1), value(70_000, 2)];
    rig.ship(&values).unwrap();
    // The transport still holds them: sharing shows as a payload that is not unique.
    assert!(!values[0].bytes.is_unique() && !values[1].bytes.is_unique());
    rig.turn();
    assert!(rig.take());
    assert_eq!(rig.accept.values, values);
    // Both values are slices of one copy.
    let first = rig.accept.values[0].bytes.as_ptr_range().end;
    assert_eq!(first, rig.accept.values[1].bytes.as_ptr());
}

#[test]
fn completions_come_no_earlier_than_visibility() {
    let mut rig = Rig::new(4096);
    rig.network.set_landing(FOLLOWER, Landing { late_polls: 3, ..Landing::default() });
    let op = rig.ship(&[value(10, 1)]).unwrap().op;
    rig.leader.flush();
    let mut events = Vec::new();
    for _ in 0..20 {
        rig.leader.poll(&mut events);
        let done = events.iter().any(|event| {
            matches!(event, Event::Completed { through, level: Level::Visible, .. } if *through >= op)
        });
        if done {
            assert!(rig.take(), "completed and not visible");
            return;
        }
        rig.follower.poll(&mut events);
    }
    panic!("the write never completed");
}

#[test]
fn a_record_whose_trailer_is_not_there_is_not_suspicious() {
    let mut rig = Rig::new(8192);
    rig.network.set_landing(FOLLOWER, Landing { tear_bytes: Some(8), ..Landing::default() });
    let (mut unfinished, trailer) = (0, trailer_at(1, 4000));
    for i in 0..100 {
        // Each record starts a life, so that all of them are at the same place.
        rig.ship(&[value(4000, i)]).unwrap();
        let life = rig.lives;
        loop {
            rig.turn();
            let before = rig.follower.load(RegionId::inbox(LEADER), trailer);
            if rig.take() {
                break;
            }
            if before != mix_of(&rig) {
                unfinished += 1;
                assert!(!rig.reader.suspicious(), "without a trailer it is merely not there");
            }
        }
        rig.network.fail(LEADER, FOLLOWER, Lane::Data);
        rig.turn_until(|rig| rig.lives == life + 2);
    }
    assert!(unfinished > 20, "only {unfinished} looks came too early");
}

/// The trailer of the first record of 4000 bytes in this life.
fn mix_of(rig: &Rig) -> u64 {
    crate::integrity::mix(rig.life.0, 1, 4000)
}

proptest::proptest! {
    #[test]
    fn no_damage_to_the_ring_is_ever_believed(
        damage in proptest::collection::vec((0usize..2048, 1u8..=255), 1..6),
        lengths in proptest::collection::vec(0usize..400, 1..5),
    ) {
        let mut rig = Rig::new(2048);
        let values: Vec<Value> = lengths.iter().map(|length| value(*length, 9)).collect();
        let mut shipped = 0;
        for value in &values {
            shipped += usize::from(rig.ship(std::slice::from_ref(value)).is_ok());
        }
        rig.turn();
        for (at, flip) in damage {
            rig.follower.damage(RegionId::inbox(LEADER), at, flip);
        }
        // Any prefix of what was shipped may come, and then nothing, or an error.
        let mut taken = 0;
        for _ in 0..2 * MISMATCHES_MAX {
            match rig.reader.poll(&rig.follower, &mut rig.accept) {
                Ok(true) => {
                    proptest::prop_assert!(taken < shipped);
                    proptest::prop_assert_eq!(&rig.accept.values, &[values[taken].clone()]);
                    taken += 1;
                }
                Ok(false) => {}
                Err(_) => break,
            }
        }
    }
}
