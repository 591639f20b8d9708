//! Sleeping until a peer writes: every write ends a sleep, though a write makes no noise.

use super::{A, B, Pair, REGION, Running};
use crate::Statistics;
use bytes::Bytes;
use quorate_consensus::NodeId;
use quorate_ffi::fake::Fabric;
use quorate_transport::Transport;
use std::time::{Duration, Instant};

/// A sleep that nobody ends is ended by the look at the peer's pulse after 500 ms, so one that took
/// nearly as long was missed.
const MISSED: Duration = Duration::from_millis(400);
/// A busy machine may be as slow once or twice.
const SLOW_MAX: u32 = 3;
const ROUNDS: u64 = 300;

/// Sleeps until the word of this round is there, then writes it back; how many sleeps were missed.
fn play(mut end: Running, peer: NodeId, first: bool) -> (u32, Statistics) {
    let mut missed = 0;
    for round in 1..=ROUNDS {
        let word = Bytes::from(round.to_le_bytes().to_vec());
        if first {
            end.transport.write(peer, REGION, 0, std::slice::from_ref(&word)).unwrap();
        }
        loop {
            end.turn();
            if end.transport.load(REGION, 0) == round {
                break;
            }
            let start = Instant::now();
            end.transport.park(Duration::from_secs(60));
            missed += u32::from(start.elapsed() >= MISSED);
            assert!(missed < 20, "round {round}: it sleeps through what is written");
        }
        if !first {
            end.transport.write(peer, REGION, 0, &[word]).unwrap();
        }
        end.turn();
        // Some rounds give the other end the time to fall asleep, some do not.
        if round % 7 == 0 {
            end.transport.park(Duration::from_millis(2));
        }
    }
    let deadline = Instant::now() + Duration::from_secs(2);
    while end.transport.status(peer).queued_bytes > 0 && Instant::now() < deadline {
        end.turn();
    }
    (missed, end.transport.statistics())
}

#[test]
fn two_that_sleep_between_their_words_never_miss_one() {
    let mut pair = Pair::carried_by(Fabric::new(5), "rdma");
    pair.exchange(ROUNDS + 1);
    let Pair { a, b, .. } = pair;
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| play(b, A, false));
        (play(a, B, true), other.join().unwrap())
    });
    let slow = first.0 + second.0;
    assert!(slow <= SLOW_MAX, "{slow} sleeps that nobody ended");
    let bells = first.1.bells + second.1.bells;
    assert!(bells > ROUNDS / 2, "{bells} bells: did they sleep at all?");
}

#[test]
fn nobody_is_rung_for_who_does_not_sleep() {
    let mut pair = Pair::carried_by(Fabric::new(6), "rdma");
    for number in 1..200 {
        pair.exchange(number);
    }
    let bells = [&pair.a, &pair.b].map(|end| end.transport.statistics().bells);
    assert_eq!((bells, pair.fabric.counts().immediates), ([0, 0], 0));
}

/// Nothing moves by itself from now on: each step of the argument in `link` is taken alone.
fn by_hand() -> Pair {
    let mut pair = Pair::carried_by(Fabric::new(7), "rdma");
    pair.exchange(1);
    pair.fabric.set_pace(0);
    pair
}

#[test]
fn a_write_that_lands_after_the_last_look_is_rung_for_when_it_completes() {
    let mut pair = by_hand();
    let word = Bytes::from(2u64.to_le_bytes().to_vec());
    // It leaves before the word can be known here, and lands after the sleeper looked.
    pair.a.transport.write(B, REGION, 0, &[word]).unwrap();
    pair.a.transport.flush();
    pair.b.turn();
    assert_eq!(pair.b.transport.load(REGION, 0), 0);
    pair.b.transport.park(Duration::ZERO);
    while pair.fabric.step(1) > 0 {}
    assert_eq!(pair.fabric.counts().immediates, 0);
    pair.a.turn();
    while pair.fabric.step(1) > 0 {}
    assert_eq!(pair.fabric.counts().immediates, 1, "the completion found the word, and rang");
    let start = Instant::now();
    pair.b.transport.park(Duration::from_secs(60));
    assert!(start.elapsed() < MISSED, "the bell ended the sleep");
}

#[test]
fn who_says_that_it_sleeps_looks_once_more_when_that_has_arrived() {
    let mut pair = by_hand();
    pair.b.transport.park(Duration::ZERO);
    // The word arrives; nobody writes, nobody rings.
    while pair.fabric.step(1) > 0 {}
    let start = Instant::now();
    pair.b.transport.park(Duration::from_secs(60));
    assert!(start.elapsed() < MISSED, "its completion ends the sleep, once");
    let start = Instant::now();
    pair.b.transport.park(MISSED * 2 / 3);
    assert!(start.elapsed() >= MISSED / 3, "and the next one is a sleep");
    assert_eq!(pair.fabric.counts().immediates, 0);
}

#[test]
fn the_write_itself_rings() {
    let mut pair = by_hand();
    pair.b.transport.park(Duration::ZERO);
    while pair.fabric.step(1) > 0 {}
    // The word that the other end may sleep is here; one chain of two writes, and nothing beside it.
    let before = pair.fabric.counts();
    for place in [0, 64] {
        let word = Bytes::from(2u64.to_le_bytes().to_vec());
        pair.a.transport.write(B, REGION, place, &[word]).unwrap();
    }
    pair.a.transport.flush();
    while pair.fabric.step(1) > 0 {}
    let after = pair.fabric.counts();
    assert_eq!((after.writes - before.writes, after.immediates - before.immediates), (2, 1));
    let start = Instant::now();
    pair.b.transport.park(Duration::from_secs(60));
    assert!(start.elapsed() < MISSED, "it ended the sleep");
    assert_eq!(pair.b.transport.load(REGION, 64), 2);
}
