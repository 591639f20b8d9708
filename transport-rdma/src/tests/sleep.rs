//! Sleeping until a peer writes: every write ends a sleep, though a write makes no noise.

use super::{A, B, Pair, REGION, Running};
use crate::Statistics;
use bytes::Bytes;
use quorate_consensus::NodeId;
use quorate_ffi::fake::Fabric;
use quorate_transport::Transport;
use std::time::{Duration, Instant};

/// A sleep that nobody ends is this long at most, so one that took nearly as long was missed.
const MISSED: Duration = Duration::from_millis(700);
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
    assert_eq!((first.0, second.0), (0, 0), "sleeps that nobody ended");
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
