use super::*;
use crate::row::{ROW_BYTES, RowReader, RowWriter};
use crate::{Event, Lane, RegionId, Transport};
use bytes::Bytes;
use quorate_consensus::{Ballot, Row, Slot};
use std::time::{Duration, Instant};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

fn pair(network: &MemoryNetwork) -> (MemoryTransport, MemoryTransport) {
    let (mut a, mut b) = (network.endpoint(A, &[B]), network.endpoint(B, &[A]));
    turn_until_up(&mut a, &mut b);
    (a, b)
}

fn turn_until_up(a: &mut MemoryTransport, b: &mut MemoryTransport) {
    for _ in 0..100 {
        a.poll(&mut Vec::new());
        b.poll(&mut Vec::new());
        if [a.status(B), b.status(A)].iter().all(|status| status.control_up && status.data_up) {
            return;
        }
    }
    panic!("the link did not come up");
}

fn messages(transport: &mut MemoryTransport) -> Vec<Bytes> {
    let mut events = Vec::new();
    transport.poll(&mut events);
    let message = |event| match event {
        Event::Control { message, .. } => Some(message),
        _ => None,
    };
    events.into_iter().filter_map(message).collect()
}

#[test]
fn a_one_way_stall_holds_one_direction_and_loses_nothing() {
    let network = MemoryNetwork::new(1);
    let (mut a, mut b) = pair(&network);
    network.stall(A, B);
    a.send(B, Bytes::from_static(b"to b")).unwrap();
    b.send(A, Bytes::from_static(b"to a")).unwrap();
    a.flush();
    b.flush();
    assert_eq!(messages(&mut a), [Bytes::from_static(b"to a")]);
    for _ in 0..20 {
        assert!(messages(&mut b).is_empty());
    }
    assert!(b.status(A).control_up, "nobody noticed");
    network.heal(A, B);
    assert_eq!(messages(&mut b), [Bytes::from_static(b"to b")]);
}

#[test]
fn a_cut_link_stays_down_until_it_is_healed() {
    let network = MemoryNetwork::new(1);
    let (mut a, mut b) = pair(&network);
    network.isolate(&[A]);
    for _ in 0..50 {
        a.poll(&mut Vec::new());
        b.poll(&mut Vec::new());
    }
    assert!(a.send(B, Bytes::new()).is_err() && b.send(A, Bytes::new()).is_err());
    network.heal_all();
    turn_until_up(&mut a, &mut b);
}

#[test]
fn one_lane_fails_and_the_other_goes_on() {
    let network = MemoryNetwork::new(1);
    let (mut a, mut b) = pair(&network);
    network.fail(A, B, Lane::Data);
    a.send(B, Bytes::from_static(b"on")).unwrap();
    a.flush();
    assert_eq!(messages(&mut b), [Bytes::from_static(b"on")]);
    assert!(!b.status(A).data_up && b.status(A).control_up);
    turn_until_up(&mut a, &mut b);
}

#[test]
fn a_delayed_message_takes_so_many_polls() {
    let network = MemoryNetwork::new(1);
    let (mut a, mut b) = pair(&network);
    network.delay(A, B, 5);
    a.send(B, Bytes::from_static(b"late")).unwrap();
    a.flush();
    let polls = (1..100).find(|_| !messages(&mut b).is_empty());
    assert_eq!(polls, Some(5));
}

#[test]
fn a_restarted_endpoint_meets_the_others_in_a_new_life() {
    let network = MemoryNetwork::new(1);
    let (mut a, b) = pair(&network);
    a.send(B, Bytes::from_static(b"lost")).unwrap();
    a.flush();
    drop(b);
    let mut b = network.endpoint(B, &[A]);
    let mut seen = Vec::new();
    a.poll(&mut seen);
    assert!(matches!(seen[..], [Event::LinkDown { .. }, Event::LinkDown { .. }]), "{seen:?}");
    turn_until_up(&mut a, &mut b);
    assert!(messages(&mut b).is_empty());
}

#[test]
fn one_seed_repeats_everything() {
    let story = |seed| {
        let network = MemoryNetwork::new(seed);
        let (mut a, mut b) = pair(&network);
        b.register(RegionId(1), 4096).unwrap();
        b.grant(RegionId(1), A).unwrap();
        network.set_landing(B, Landing { tear_bytes: Some(8), ghosts: true, ..Landing::default() });
        let mut told = String::new();
        for step in 0..200u8 {
            let piece = Bytes::from(vec![step; 256]);
            let posted = a.write(B, RegionId(1), usize::from(step % 16) * 256, &[piece]);
            a.flush();
            if step % 20 == 19 {
                network.fail(A, B, Lane::Data);
            }
            let mut events = Vec::new();
            a.poll(&mut events);
            b.poll(&mut events);
            let mut bytes = [0; 4096];
            b.copy_out(RegionId(1), 0, &mut bytes);
            told += &format!("{posted:?} {events:?} {}\n", crc32c::crc32c(&bytes));
        }
        told
    };
    assert_eq!(story(5), story(5));
    assert_ne!(story(5), story(6));
}

#[test]
fn a_sleeping_thread_is_woken_by_a_peer_and_by_its_waker() {
    let network = MemoryNetwork::new(1);
    let (mut a, mut b) = pair(&network);
    let waker = b.waker();
    // A wake before the sleep counts.
    waker.wake();
    let long = Duration::from_secs(60);
    let start = Instant::now();
    b.park(long);
    let sleeper = std::thread::spawn(move || {
        while messages(&mut b).is_empty() {
            b.park(long);
        }
        b
    });
    a.send(B, Bytes::from_static(b"wake up")).unwrap();
    a.flush();
    let _b = sleeper.join().unwrap();
    assert!(start.elapsed() < long);
}

#[test]
fn rows_torn_at_every_grain_are_whole_or_not_there() {
    for grain in [1, 8, 64] {
        let network = MemoryNetwork::new(9);
        let (mut a, mut b) = pair(&network);
        b.register(RegionId::row(A), ROW_BYTES).unwrap();
        b.grant(RegionId::row(A), A).unwrap();
        let landing = Landing { tear_bytes: Some(grain), ..Landing::default() };
        network.set_landing(B, landing);
        // The life under which rows are checked; both ends would learn it from LinkUp.
        let life = quorate_consensus::Incarnation(77);
        let (mut writer, mut reader) = (RowWriter::new(A), RowReader::new(A));
        writer.reset(life);
        reader.reset(life);
        let (mut newest, mut seen) = (0, 0);
        for step in 1..2000 {
            // Every field of a row says the same number: a mixture would show.
            let row = uniform_row(step);
            writer.publish(&mut a, B, &row, step).unwrap();
            a.flush();
            a.poll(&mut Vec::new());
            // A row is whole for a moment only where the next one does not come at once.
            for _ in 0..if step % 20 == 0 { 200 } else { 1 } {
                b.poll(&mut Vec::new());
                if let Some((row, consumed)) = reader.poll(&b) {
                    assert_eq!(row, uniform_row(consumed), "a torn row was believed");
                    assert!(consumed > newest, "an old row was believed");
                    (newest, seen) = (consumed, seen + 1);
                }
            }
        }
        assert!(seen > 10, "grain {grain}: only {seen} rows arrived");
        reader.reset(quorate_consensus::Incarnation(78));
        assert_eq!(reader.poll(&b), None, "a row of another life was believed");
    }
}

fn uniform_row(number: u64) -> Row {
    Row {
        promised: Ballot::unpack(number),
        accepted_ballot: Ballot::unpack(number),
        accepted_slot: Slot(number),
        commit_slot: Slot(number),
        applied_slot: Slot(number),
        heartbeat: number,
        ping: number,
        pong: number,
        lease_asked: number as u32,
        lease_granted: number as u32,
        incarnation: quorate_consensus::Incarnation(number),
        flags: quorate_consensus::RowFlags(number),
    }
}

fn memory_build(landing: Landing) -> impl FnMut(u16) -> Vec<Box<dyn Transport>> {
    let mut seed = 0;
    move |count| {
        seed += 1;
        let network = MemoryNetwork::new(seed);
        let ids: Vec<NodeId> = (1..=count).map(NodeId).collect();
        let end = |id: &NodeId| {
            network.set_landing(*id, landing);
            let peers: Vec<NodeId> = ids.iter().copied().filter(|peer| peer != id).collect();
            Box::new(network.endpoint(*id, &peers)) as Box<dyn Transport>
        };
        ids.iter().map(end).collect()
    }
}

#[test]
fn the_memory_transport_conforms() {
    crate::conformance::run(&mut memory_build(Landing::default())).assert_passed();
}

#[test]
fn the_memory_transport_conforms_when_writes_land_late_and_torn() {
    let landing = Landing {
        tear_bytes: Some(4096),
        late_polls: 2,
        complete_early: true,
        ..Landing::default()
    };
    // The words of a torn write are not in order by themselves; all else is.
    let report = crate::conformance::run(&mut memory_build(landing));
    report.assert_passed();
}

#[test]
fn grants_for_a_life_are_offered_and_keep_ghosts_of_other_lives_out() {
    let landing = Landing {
        tear_bytes: Some(4096),
        late_polls: 3,
        complete_early: true,
        ghosts: true,
        ..Landing::default()
    };
    let report = crate::conformance::run_matching(&mut memory_build(landing), "for life");
    report.assert_passed();
    assert!(report.cases.len() > 5 && report.cases.iter().all(|case| case.skipped.is_none()));
}

#[test]
fn a_grant_that_does_not_end_with_its_life_is_noticed_by_the_suite() {
    let landing = Landing { broken_fence: true, ..Landing::default() };
    let report = crate::conformance::run_matching(&mut memory_build(landing), "for life");
    let failed: Vec<&str> = report.failures().map(|case| case.name).collect();
    let told = |part: &str| failed.iter().any(|name| name.contains(part));
    assert!(told("after its end") && told("ends with its life"), "{failed:?}");
    assert!(told("a fence lets no byte"), "{failed:?}");
}

#[test]
fn a_broken_fence_is_noticed_by_the_suite() {
    let landing = Landing { broken_fence: true, ..Landing::default() };
    let report = crate::conformance::run_matching(&mut memory_build(landing), "fence: no byte");
    let why: Vec<_> = report.failures().filter_map(|case| case.failure.clone()).collect();
    assert_eq!(why, ["bytes changed after the fence"]);
}
