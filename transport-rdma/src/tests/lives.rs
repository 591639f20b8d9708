//! Grants for one life of a lane: what they let in, what ends them, and what is left of them then.

use super::{A, B, DEADLINE, Pair, REGION, Running};
use crate::regions::{Answer, Grant};
use bytes::Bytes;
use quorate_ffi::fake::{Fabric, Partition};
use quorate_transport::{Event, Lane, RegionError, RegionId, Transport};
use std::time::{Duration, Instant};

/// Where the first writes, at the second.
const RING: RegionId = RegionId(77);
const RING_BYTES: usize = 64 << 10;
/// Long enough that anything under way would have shown.
const SETTLED: Duration = Duration::from_millis(50);

/// A pair with a ring at the second, not granted to anybody yet.
fn pair_with_ring(seed: u64) -> Pair {
    let mut pair = Pair::new(Fabric::new(seed));
    pair.b.transport.register(RING, RING_BYTES).unwrap();
    pair.until_carried_by("rdma");
    pair
}

/// The same with the ring granted for the present life.
fn pair_with_grant(seed: u64) -> (Pair, Grant) {
    let mut pair = pair_with_ring(seed);
    pair.b.transport.grant_for_life(RING, A).unwrap();
    write(&mut pair, 1);
    pair.until("a write arrived", |pair| pair.b.transport.load(RING, 0) == 1);
    let grant = known_grant(&pair);
    (pair, grant)
}

fn known_grant(pair: &Pair) -> Grant {
    match pair.b.transport.regions.answer(RING, A) {
        Answer::Granted(grant) => grant,
        other => panic!("{other:?}"),
    }
}

fn write(pair: &mut Pair, number: u64) {
    let word = Bytes::from(number.to_le_bytes().to_vec());
    pair.a.transport.write(B, RING, 0, &[word]).unwrap();
}

fn downs(end: &Running) -> usize {
    let down = |event: &&Event| matches!(event, Event::LinkDown { lane: Lane::Data, .. });
    end.events.iter().filter(down).count()
}

/// Turns for a while; `holds` stays true.
fn settle(pair: &mut Pair, holds: impl Fn(&Pair) -> bool) {
    let end = Instant::now() + SETTLED;
    let mut turns = 0;
    while turns < 100 || Instant::now() < end {
        pair.turn();
        assert!(holds(pair));
        turns += 1;
    }
}

#[test]
fn a_write_waits_for_the_grant_of_its_life() {
    let mut pair = pair_with_ring(1);
    write(&mut pair, 5);
    settle(&mut pair, |pair| pair.b.transport.load(RING, 0) == 0);
    pair.b.transport.grant_for_life(RING, A).unwrap();
    pair.until("it arrived", |pair| pair.b.transport.load(RING, 0) == 5);
    assert_eq!((downs(&pair.a), downs(&pair.b)), (0, 0));
    // Again is no other grant.
    let grant = known_grant(&pair);
    pair.b.transport.grant_for_life(RING, A).unwrap();
    assert_eq!(known_grant(&pair), grant);
}

#[test]
fn a_new_life_begins_without_the_grant_and_gets_another_key() {
    let (mut pair, first) = pair_with_grant(2);
    for (round, number) in (2..6).enumerate() {
        let before = pair.a.transport.statistics().built;
        let end = if round % 2 == 0 { &mut pair.b } else { &mut pair.a };
        let peer = end.transport.peers()[0];
        end.transport.reset(peer, "another life");
        pair.until("the next life is up", |pair| {
            pair.a.transport.statistics().built > before
                && pair.a.carrier(B) == "rdma"
                && pair.b.carrier(A) == "rdma"
        });
        let (downs_a, downs_b) = (downs(&pair.a), downs(&pair.b));
        write(&mut pair, number);
        settle(&mut pair, |pair| pair.b.transport.load(RING, 0) == number - 1);
        pair.b.transport.grant_for_life(RING, A).unwrap();
        pair.until("it arrived", |pair| pair.b.transport.load(RING, 0) == number);
        assert_ne!(known_grant(&pair).key, first.key);
        assert_eq!((downs(&pair.a), downs(&pair.b)), (downs_a, downs_b), "nothing was refused");
    }
}

#[test]
fn a_life_that_is_over_when_its_grant_is_given_leaves_none() {
    let mut pair = pair_with_ring(12);
    pair.b.transport.grant(RING, A).unwrap();
    let lasting = known_grant(&pair);
    let before = pair.a.transport.statistics().built;
    pair.b.transport.reset(A, "over before its owner knew");
    // What it meant is gone with the life; the lasting one is, too.
    pair.b.transport.grant_for_life(RING, A).unwrap();
    assert!(!pair.fabric.knows_key(lasting.key));
    pair.until("the next life is up", |pair| {
        pair.a.transport.statistics().built > before
            && pair.a.carrier(B) == "rdma"
            && pair.b.carrier(A) == "rdma"
    });
    write(&mut pair, 2);
    settle(&mut pair, |pair| pair.b.transport.load(RING, 0) == 0);
    pair.b.transport.grant_for_life(RING, A).unwrap();
    pair.until("it arrived", |pair| pair.b.transport.load(RING, 0) == 2);
}

/// Something that ends a life, and its name.
type Cause = (&'static str, fn(&mut Pair));

const CAUSES: [Cause; 7] = [
    ("a reset by the owner", |pair| pair.b.transport.reset(A, "a reset")),
    ("a reset by the writer", |pair| pair.a.transport.reset(B, "a reset")),
    ("queue pairs that fail", |pair| pair.fabric.fail_queue_pairs()),
    ("a port that goes down", |pair| pair.fabric.set_port(false)),
    ("cut cables", |pair| pair.fabric.partition(Partition::Silent)),
    ("the writer leaves", |pair| pair.a.transport.remove_peer(B)),
    ("a write that is refused", |pair| {
        let beyond = Bytes::from_static(&[1; 8]);
        pair.a.transport.write(B, REGION, 1 << 40, &[beyond]).unwrap();
        while pair.fabric.counts().refused == 0 {
            pair.a.turn();
            pair.fabric.step(100);
        }
    }),
];

#[test]
fn whatever_ends_a_life_the_grant_is_gone_before_that_is_told() {
    for (seed, (what, cause)) in CAUSES.into_iter().enumerate() {
        let (mut pair, grant) = pair_with_grant(10 + seed as u64);
        // By hand from now on: what is under way stays so.
        pair.fabric.set_pace(0);
        for place in 0..40 {
            let block = Bytes::from(vec![9; RING_BYTES - 8]);
            pair.a.transport.write(B, RING, 8 * (place % 2), &[block]).unwrap();
        }
        pair.a.transport.flush();
        pair.fabric.step(7);
        assert!(pair.fabric.knows_key(grant.key), "{what}");
        let told = downs(&pair.b);
        cause(&mut pair);
        let deadline = Instant::now() + DEADLINE;
        while downs(&pair.b) == told {
            assert!(Instant::now() < deadline, "{what}: the owner was never told");
            pair.b.turn();
            pair.a.turn();
        }
        assert!(!pair.fabric.knows_key(grant.key), "{what}: the grant outlives its life");
        let (mut before, mut after) = (vec![0; RING_BYTES], vec![0; RING_BYTES]);
        pair.b.transport.copy_out(RING, 0, &mut before);
        assert!(before.contains(&9), "{what}: nothing was under way");
        pair.fabric.partition(Partition::None);
        pair.fabric.set_port(true);
        while pair.fabric.step(1000) > 0 {}
        pair.b.transport.copy_out(RING, 0, &mut after);
        assert!(before == after, "{what}: bytes of the old life landed");
    }
}

#[test]
fn a_peer_that_is_removed_writes_no_more_when_that_returns() {
    let (mut pair, grant) = pair_with_grant(3);
    pair.b.transport.remove_peer(A);
    assert!(!pair.fabric.knows_key(grant.key));
}

/// A writer that keeps its key into the next life, and what becomes of its write.
fn with_the_old_key(pair: &mut Pair, old: Grant) -> Vec<u8> {
    let before = pair.a.transport.statistics().built;
    pair.b.transport.reset(A, "another life");
    pair.until("the next life is up", |pair| {
        pair.a.transport.statistics().built > before
            && pair.a.carrier(B) == "rdma"
            && pair.b.carrier(A) == "rdma"
    });
    pair.a.transport.peers[0].link_mut().unwrap().granted(old);
    let told = downs(&pair.a);
    let block = Bytes::from(vec![7; RING_BYTES]);
    pair.a.transport.write(B, RING, 0, &[block]).unwrap();
    let deadline = Instant::now() + DEADLINE;
    let mut landed = vec![0; RING_BYTES];
    while downs(&pair.a) == told && landed[RING_BYTES - 1] != 7 {
        assert!(Instant::now() < deadline, "the write neither landed nor failed");
        pair.turn();
        pair.b.transport.copy_out(RING, 0, &mut landed);
    }
    landed
}

#[test]
fn the_key_of_an_old_life_opens_nothing_in_the_next() {
    let (mut pair, grant) = pair_with_grant(4);
    let told = downs(&pair.a);
    let landed = with_the_old_key(&mut pair, grant);
    assert!(!landed.contains(&7), "bytes came in by the grant of another life");
    assert!(downs(&pair.a) > told + 1, "the writer is told that it was refused");
}

#[test]
fn a_fence_that_does_not_hold_at_the_end_of_a_life_is_seen_so() {
    let (mut pair, grant) = pair_with_grant(4);
    pair.fabric.break_fence(1_000);
    let landed = with_the_old_key(&mut pair, grant);
    assert!(landed.contains(&7), "the test above would not notice");
}

#[test]
fn what_was_revoked_is_not_granted_again_in_its_life() {
    let (mut pair, _) = pair_with_grant(5);
    pair.b.transport.revoke(RING, A).unwrap();
    let refused = pair.b.transport.grant_for_life(RING, A);
    assert_eq!(refused, Err(RegionError::Fenced(RING, A)));
    let told = downs(&pair.a);
    let built = pair.a.transport.statistics().built;
    write(&mut pair, 2);
    pair.until("the write failed its lane, and the next life is up", |pair| {
        downs(&pair.a) > told
            && pair.a.transport.statistics().built > built
            && pair.a.carrier(B) == "rdma"
            && pair.b.carrier(A) == "rdma"
    });
    assert_eq!(pair.b.transport.load(RING, 0), 1);
    pair.b.transport.grant_for_life(RING, A).unwrap();
    write(&mut pair, 3);
    pair.until("it arrived", |pair| pair.b.transport.load(RING, 0) == 3);
}

#[test]
fn one_who_asks_for_what_was_revoked_in_this_life_is_refused() {
    let (mut pair, _) = pair_with_grant(6);
    pair.b.transport.revoke(RING, A).unwrap();
    let told = downs(&pair.a);
    pair.a.transport.peers[0].link_mut().unwrap().forget(RING);
    write(&mut pair, 2);
    pair.until("its lane failed", |pair| downs(&pair.a) > told);
    assert_eq!((pair.b.transport.load(RING, 0), pair.fabric.counts().refused), (1, 0));
}

#[test]
fn a_lasting_grant_gives_way_to_one_for_a_life() {
    let mut pair = pair_with_ring(7);
    pair.b.transport.grant(RING, A).unwrap();
    let lasting = known_grant(&pair);
    pair.b.transport.grant_for_life(RING, A).unwrap();
    assert!(!pair.fabric.knows_key(lasting.key), "the lasting one is in force still");
    let life = known_grant(&pair);
    pair.b.transport.reset(A, "another life");
    assert!(!pair.fabric.knows_key(life.key));
    // And a lasting one that follows stays.
    pair.until_carried_by("rdma");
    pair.b.transport.grant_for_life(RING, A).unwrap();
    let life = known_grant(&pair);
    pair.b.transport.grant(RING, A).unwrap();
    pair.b.transport.reset(A, "another life");
    assert!(pair.fabric.knows_key(life.key));
}

#[test]
fn over_tcp_there_is_none_and_by_verbs_again_there_is() {
    let fabric = Fabric::new(8);
    fabric.refuse_queue_pairs(true);
    let mut pair = Pair::new(fabric);
    pair.b.transport.register(RING, RING_BYTES).unwrap();
    pair.until_carried_by("tcp");
    let refused = pair.b.transport.grant_for_life(RING, A);
    assert_eq!(refused, Err(RegionError::Lasting(RING, A)));
    pair.b.transport.grant(RING, A).unwrap();
    write(&mut pair, 1);
    pair.until("it arrived over TCP", |pair| pair.b.transport.load(RING, 0) == 1);
    fabric.refuse_queue_pairs(false);
    pair.until_carried_by("rdma");
    // Written before the owner has had its turn: the lasting grant is not what it goes by.
    let (told, lasting) = (downs(&pair.a), known_grant(&pair));
    write(&mut pair, 2);
    pair.b.transport.grant_for_life(RING, A).unwrap();
    pair.until("it arrived by verbs", |pair| pair.b.transport.load(RING, 0) == 2);
    assert!(!fabric.knows_key(lasting.key));
    assert_eq!(downs(&pair.a), told, "and nothing was refused");
    let missing = pair.b.transport.grant_for_life(RegionId(78), A);
    assert_eq!(missing, Err(RegionError::Missing(RegionId(78))));
}

/// A writer that writes whenever it can, over TCP only, and an owner that grants what can be had whenever it is
/// told of a life, until a write arrived.
fn until_a_quick_writer_gets_through(pair: &mut Pair, number: u64) {
    let deadline = Instant::now() + DEADLINE;
    while pair.b.transport.load(RING, 0) != number {
        assert!(Instant::now() < deadline, "it never arrived: {:?}", pair.b.transport.status(A));
        // Much is written before the other end looks.
        for _ in 0..20 {
            let word = Bytes::from(number.to_le_bytes().to_vec());
            let _ = pair.a.transport.write(B, RING, 0, &[word]);
            pair.a.turn();
        }
        let told = pair.b.events.len();
        pair.b.turn();
        let up = |event: &Event| matches!(event, Event::LinkUp { lane: Lane::Data, .. });
        if pair.b.events[told..].iter().any(up)
            && pair.b.transport.grant_for_life(RING, A) == Err(RegionError::Lasting(RING, A))
        {
            pair.b.transport.grant(RING, A).unwrap();
        }
    }
}

#[test]
fn a_writer_that_is_quick_over_tcp_gets_through() {
    let fabric = Fabric::new(13);
    fabric.refuse_queue_pairs(true);
    let mut pair = Pair::new(fabric);
    pair.b.transport.register(RING, RING_BYTES).unwrap();
    until_a_quick_writer_gets_through(&mut pair, 7);
}

#[test]
fn a_writer_that_keeps_to_tcp_gets_through_to_one_that_does_not() {
    // What it writes is there before the other end is told of a life at all.
    let (mut pair, _) = pair_with_grant(14);
    for number in 2..5 {
        pair.a.transport.peers[0].rdma_failed("a network", Duration::ZERO);
        pair.a.transport.reset(B, "another life");
        until_a_quick_writer_gets_through(&mut pair, number);
        pair.until_carried_by("rdma");
        pair.b.transport.grant_for_life(RING, A).unwrap();
    }
}

#[test]
fn frames_do_not_come_where_verbs_carry_the_life() {
    for fenced in [false, true] {
        let (mut pair, _) = pair_with_grant(15);
        if fenced {
            pair.b.transport.revoke(RING, A).unwrap();
        }
        pair.turn();
        let told = downs(&pair.b);
        let word = Bytes::from_static(&[9; 8]);
        pair.a.transport.tcp.write(B, RING, 0, &[word]).unwrap();
        pair.until("the frame ended the life", |pair| downs(&pair.b) > told);
        assert_eq!(pair.b.transport.load(RING, 0), 1);
    }
}

#[test]
fn a_device_that_keeps_the_memory_gets_no_connection_any_more_and_says_why() {
    for by_revoke in [false, true] {
        let (mut pair, grant) = pair_with_grant(9);
        pair.fabric.keep_memory(true);
        match by_revoke {
            true => pair.b.transport.revoke(RING, A).unwrap(),
            false => pair.b.transport.reset(A, "another life"),
        }
        pair.fabric.keep_memory(false);
        assert!(pair.fabric.knows_key(grant.key), "the device kept it");
        let told = |pair: &Pair| pair.b.transport.status(A).last_error;
        pair.until("the lane is over TCP at both ends", |pair| {
            pair.a.carrier(B) == "tcp" && pair.b.carrier(A) == "tcp"
        });
        assert!(
            told(&pair).contains("does not give 65536 bytes of memory back"),
            "{}",
            told(&pair)
        );
        let refused = pair.b.transport.grant_for_life(RING, A);
        assert_eq!(refused, Err(RegionError::Lasting(RING, A)));
        pair.b.transport.grant(RING, A).unwrap();
        write(&mut pair, 2);
        pair.until("service goes on", |pair| pair.b.transport.load(RING, 0) == 2);
        // It tries again after a second, and is refused.
        let end = Instant::now() + Duration::from_millis(2500);
        while Instant::now() < end {
            pair.turn();
            assert_ne!(pair.b.carrier(A), "rdma");
        }
        assert!(told(&pair).contains("until this replica restarts"), "{}", told(&pair));
    }
}

#[test]
fn a_queue_pair_that_stays_is_no_harm_while_the_memory_is_gone() {
    let (mut pair, grant) = pair_with_grant(10);
    pair.fabric.keep_queue_pairs(true);
    pair.b.transport.reset(A, "another life");
    pair.fabric.keep_queue_pairs(false);
    assert!(!pair.fabric.knows_key(grant.key));
    pair.until_carried_by("rdma");
}

#[test]
#[should_panic(expected = "can still write here and the device does not end it")]
fn a_replica_whose_device_ends_nothing_stops() {
    let (mut pair, _) = pair_with_grant(11);
    pair.fabric.keep_queue_pairs(true);
    pair.fabric.keep_memory(true);
    pair.b.transport.reset(A, "another life");
}
