//! What a transport that is built on this one uses: lent memory, words beside the writes, watched
//! descriptors, and the end of one lane alone.

use super::{A, B, Running, endpoints, until};
use bytes::Bytes;
use quorate_transport::region::LentMemory;
use quorate_transport::{Event, Lane, PostError, RegionError, RegionId, Transport};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const REGION: RegionId = RegionId(9);

/// Memory of somebody else's.
#[derive(Debug)]
struct Elsewhere(Vec<AtomicU8>);

impl LentMemory for Elsewhere {
    fn length(&self) -> usize {
        self.0.len()
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        for (place, byte) in self.0[offset..].iter().zip(from) {
            place.store(*byte, Ordering::Relaxed);
        }
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        for (byte, place) in into.iter_mut().zip(&self.0[offset..]) {
            *byte = place.load(Ordering::Relaxed);
        }
    }

    fn load(&self, offset: usize) -> u64 {
        let mut word = [0; 8];
        self.copy_out(offset, &mut word);
        u64::from_le_bytes(word)
    }
}

fn pair() -> (Running, Running) {
    let mut ends = endpoints(2).into_iter().map(Running::new);
    let (mut a, mut b) = (ends.next().unwrap(), ends.next().unwrap());
    // Words are kept from the first time that they are asked for.
    for end in [&mut a, &mut b] {
        end.transport.take_asides(&mut Vec::new());
    }
    until("both lanes are up at both ends", || {
        a.turn();
        b.turn();
        [a.transport.status(B), b.transport.status(A)]
            .iter()
            .all(|status| status.control_up && status.data_up)
    });
    (a, b)
}

#[test]
fn writes_land_in_lent_memory_and_stay_within_it() {
    let (mut a, mut b) = pair();
    let memory = Arc::new(Elsewhere((0..300_000).map(|_| AtomicU8::new(0)).collect()));
    b.transport.lend(REGION, memory.clone()).unwrap();
    assert_eq!(b.transport.lend(REGION, memory.clone()), Err(RegionError::Exists(REGION)));
    b.transport.grant(REGION, A).unwrap();
    let bytes = Bytes::from((0..250_000u32).map(|at| (at % 251) as u8).collect::<Vec<_>>());
    a.transport.write(B, REGION, 80, std::slice::from_ref(&bytes)).unwrap();
    until("all of it landed", || {
        a.turn();
        b.turn();
        b.events.contains(&Event::Written { peer: A, region: REGION })
    });
    let mut landed = vec![0; 250_000];
    b.transport.copy_out(REGION, 80, &mut landed);
    assert_eq!((bytes, b.transport.load(REGION, 0)), (landed.into(), 0));
    a.transport.write(B, REGION, 299_999, &[Bytes::from_static(b"no")]).unwrap();
    until("a write beyond it failed the lane", || {
        a.turn();
        b.turn();
        b.last_down(Lane::Data).is_some()
    });
    assert!(b.last_down(Lane::Data).unwrap().contains("which has 300000"));
}

#[test]
fn words_beside_the_writes_come_in_order_and_disturb_no_number() {
    let (mut a, mut b) = pair();
    b.transport.register(REGION, 64).unwrap();
    b.transport.grant(REGION, A).unwrap();
    let word = |number: u64| Bytes::from(number.to_le_bytes().to_vec());
    for number in 1..=50 {
        let op = a.transport.write(B, REGION, 0, &[word(number)]).unwrap();
        assert_eq!(op.0, number);
        a.transport.send_aside(B, word(number)).unwrap();
    }
    let mut heard = Vec::new();
    until("all were heard", || {
        a.turn();
        b.turn();
        b.transport.take_asides(&mut heard);
        heard.len() == 50
    });
    assert!(heard.iter().enumerate().all(|(at, said)| *said == (A, word(at as u64 + 1))));
    assert_eq!(b.transport.load(REGION, 0), 50, "each follows the writes before it");
    let long = a.transport.send_aside(B, Bytes::from(vec![0; 65_537]));
    assert_eq!(long, Err(PostError::TooLarge { length: 65_537, limit: 65_536 }));
}

#[test]
fn one_lane_can_be_ended_alone() {
    let (mut a, mut b) = pair();
    a.transport.reset_lane(B, Lane::Data, "a better one is there");
    assert_eq!(a.transport.send_aside(B, Bytes::new()), Err(PostError::Down(B)));
    until("the other end was told, and it is up again", || {
        a.turn();
        b.turn();
        b.last_down(Lane::Data).is_some() && a.transport.status(B).data_up
    });
    assert!(b.last_down(Lane::Data).unwrap().contains("a better one is there"));
    assert_eq!((a.last_down(Lane::Control), b.last_down(Lane::Control)), (None, None));
}

#[test]
fn a_watched_descriptor_ends_a_sleep() {
    let (_a, mut b) = pair();
    let (reader, mut writer) = std::io::pipe().unwrap();
    b.transport.watch(&reader).unwrap();
    let woken = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let long = Duration::from_secs(60);
    let counter = Arc::clone(&woken);
    let sleeper = std::thread::spawn(move || {
        while counter.load(Ordering::Acquire) == 0 {
            b.transport.park(long);
            b.turn();
        }
    });
    woken.store(1, Ordering::Release);
    writer.write_all(&[1]).unwrap();
    sleeper.join().unwrap();
    assert!(start.elapsed() < long);
    drop(reader);
}
