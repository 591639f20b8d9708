//! Shards keep the contract, and keep out of each other's way.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::memory::MemoryNetwork;
use crate::{Event, Lane, RegionId, Transport, Wake, conformance};
use bytes::Bytes;
use quorate_consensus::NodeId;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

struct Silent;

impl Wake for Silent {
    fn wake(&self) {}
}

#[derive(Default)]
struct Counting(AtomicUsize);

impl Wake for Counting {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn trunks(seed: u64) -> [Trunk; 2] {
    let network = MemoryNetwork::new(seed);
    let ends = [1, 2].map(|id| network.endpoint(NodeId(id), &[NodeId(3 - id)]));
    let mut seed = seed;
    ends.map(|end| {
        seed += 1;
        Trunk::new(Box::new(end), seed)
    })
}

fn open(trunk: &Trunk, id: u16) -> ShardTransport {
    let mut shard = trunk.shard(ShardId(id), trunk.waker()).unwrap();
    let peer = shard.peers()[0];
    shard.register(RegionId::inbox(peer), 256).unwrap();
    shard.grant(RegionId::inbox(peer), peer).unwrap();
    shard
}

struct End {
    shard: ShardTransport,
    events: Vec<Event>,
}

impl End {
    fn new(trunk: &Trunk, id: u16) -> Self {
        Self { shard: open(trunk, id), events: Vec::new() }
    }

    fn peer(&self) -> NodeId {
        self.shard.peers()[0]
    }

    fn up(&self, lane: Lane) -> bool {
        let last = self.events.iter().rev().find_map(|event| match event {
            Event::LinkUp { lane: of, .. } if *of == lane => Some(true),
            Event::LinkDown { lane: of, .. } if *of == lane => Some(false),
            _ => None,
        });
        last == Some(true)
    }

    fn downs(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::LinkDown { .. })).count()
    }
}

fn until(ends: &mut [&mut End], what: &str, done: impl Fn(&[&mut End]) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done(ends) {
        assert!(Instant::now() < deadline, "it never came to pass that {what}");
        for end in ends.iter_mut() {
            end.shard.flush();
            end.shard.poll(&mut end.events);
        }
    }
}

fn all_up(ends: &[&mut End]) -> bool {
    ends.iter().all(|end| end.up(Lane::Control) && end.up(Lane::Data))
}

/// How the shard under test has its peers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peers {
    /// As the links came with them: they stay.
    First,
    /// It says where they are, and is the only shard: the links let go of them when it does.
    Named,
    /// Another shard has them as well: the links stay up when it parts from them.
    Shared,
}

fn keeps_the_contract(peers: Peers) {
    let mut seed = 0;
    let mut others = Vec::new();
    let mut build = |count: u16| {
        seed += 1;
        let network = MemoryNetwork::new(seed);
        let ids: Vec<NodeId> = (1..=count).map(NodeId).collect();
        let mut end = |id: &NodeId| -> Box<dyn Transport> {
            let named: Vec<NodeId> = ids.iter().copied().filter(|peer| peer != id).collect();
            let endpoint = network.endpoint(*id, &named);
            let trunk = Trunk::new(Box::new(endpoint), seed * 100 + u64::from(id.0));
            let named: Vec<_> =
                named.into_iter().map(|peer| (peer, format!("at {peer}"))).collect();
            let ready = Arc::new(Silent);
            if peers == Peers::Shared {
                let mut other = trunk.shard(ShardId(6), Arc::<Silent>::clone(&ready)).unwrap();
                other.poll(&mut Vec::new());
                others.push(other);
            }
            Box::new(match peers {
                Peers::Named => trunk.shard_among(ShardId(7), &named, ready).unwrap(),
                Peers::First | Peers::Shared => trunk.shard(ShardId(7), ready).unwrap(),
            })
        };
        ids.iter().map(&mut end).collect()
    };
    conformance::run(&mut build).assert_passed();
}

#[test]
fn a_shard_keeps_the_whole_contract() {
    keeps_the_contract(Peers::First);
}

#[test]
fn a_shard_whose_peers_leave_the_links_keeps_the_whole_contract() {
    keeps_the_contract(Peers::Named);
}

#[test]
fn a_shard_beside_another_keeps_the_whole_contract() {
    keeps_the_contract(Peers::Shared);
}

#[test]
fn shards_share_a_link_and_no_memory() {
    let [left, right] = trunks(5);
    let mut a = [End::new(&left, 0), End::new(&left, 1)];
    let mut b = [End::new(&right, 0), End::new(&right, 1)];
    let [a0, a1] = &mut a;
    let [b0, b1] = &mut b;
    until(&mut [a0, a1, b0, b1], "all are up", all_up);
    let inbox = RegionId::inbox(NodeId(1));
    let to = a0.peer();
    a0.shard.write(to, inbox, 0, &[Bytes::from_static(b"zerozero")]).unwrap();
    a1.shard.write(to, inbox, 0, &[Bytes::from_static(b"one_one_")]).unwrap();
    a1.shard.send(to, Bytes::from_static(b"hello")).unwrap();
    let word = |text: &[u8; 8]| u64::from_le_bytes(*text);
    until(&mut [a0, a1, b0, b1], "both writes landed", |ends| {
        ends[2].shard.load(inbox, 0) == word(b"zerozero")
            && ends[3].shard.load(inbox, 0) == word(b"one_one_")
            && ends[3].events.iter().any(|event| matches!(event, Event::Control { .. }))
    });
    assert!(!b0.events.iter().any(|event| matches!(event, Event::Control { .. })));
}

#[test]
fn a_shard_starts_over_alone() {
    let [left, right] = trunks(9);
    let mut a = [End::new(&left, 3), End::new(&left, 4)];
    let mut b = [End::new(&right, 3), End::new(&right, 4)];
    let [a3, a4] = &mut a;
    let [b3, b4] = &mut b;
    until(&mut [a3, a4, b3, b4], "all are up", all_up);
    let (from, to) = (b3.peer(), a3.peer());
    // Sent in the life that ends now: it must not arrive in the next one.
    b3.shard.send(from, Bytes::from_static(b"old")).unwrap();
    a3.shard.reset(to, "a test");
    until(&mut [a3, a4, b3, b4], "both ends went down", |ends| {
        ends[0].downs() >= 2 && ends[2].downs() >= 2
    });
    until(&mut [a3, a4, b3, b4], "all are up again", all_up);
    b3.shard.send(from, Bytes::from_static(b"new")).unwrap();
    until(&mut [a3, a4, b3, b4], "the new message came", |ends| {
        ends[0].events.iter().any(|event| matches!(event, Event::Control { .. }))
    });
    let messages: Vec<_> =
        a3.events.iter().filter(|event| matches!(event, Event::Control { .. })).collect();
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert_eq!((a4.downs(), b4.downs()), (0, 0), "the other shard noticed nothing");
    assert_ne!(a3.shard.status(to).reconnects, 0);
}

#[test]
fn a_shard_that_is_not_there_is_down_and_comes_up_when_it_is() {
    let [left, right] = trunks(11);
    let (mut here, mut other) = (End::new(&left, 1), End::new(&right, 2));
    for _ in 0..200 {
        for end in [&mut here, &mut other] {
            end.shard.flush();
            end.shard.poll(&mut end.events);
        }
    }
    let peer = here.peer();
    assert!(here.events.is_empty(), "{:?}", here.events);
    let write =
        here.shard.write(peer, RegionId::inbox(NodeId(1)), 0, &[Bytes::from_static(b"12345678")]);
    assert_eq!(write, Err(crate::PostError::Down(peer)));
    let mut late = End::new(&right, 1);
    until(&mut [&mut here, &mut other, &mut late], "it is up", |ends| {
        ends[0].up(Lane::Data) && ends[2].up(Lane::Data)
    });
    assert!(matches!(left.shard(ShardId(1), Arc::new(Silent)), Err(ShardError::Exists(_))));
    let high = left.shard(ShardId(SHARDS_MAX), Arc::new(Silent));
    assert!(matches!(high, Err(ShardError::TooHigh(_))));
}

#[test]
fn only_the_shard_that_is_concerned_is_woken() {
    let [left, right] = trunks(13);
    let woken: [Arc<Counting>; 2] = Default::default();
    let mut shards: Vec<End> = woken
        .iter()
        .zip(0u16..)
        .map(|(count, id)| {
            let mut shard = left.shard(ShardId(id), Arc::<Counting>::clone(count)).unwrap();
            let peer = shard.peers()[0];
            shard.register(RegionId::inbox(peer), 64).unwrap();
            shard.grant(RegionId::inbox(peer), peer).unwrap();
            End { shard, events: Vec::new() }
        })
        .collect();
    let mut others = [End::new(&right, 0), End::new(&right, 1)];
    {
        let [b0, b1] = &mut others;
        let [a0, a1] = &mut shards[..] else { panic!() };
        until(&mut [a0, a1, b0, b1], "all are up", all_up);
    }
    let counts = || woken.each_ref().map(|count| count.0.load(Ordering::Relaxed));
    let before = counts();
    left.drive();
    let peer = others[1].peer();
    others[1].shard.send(peer, Bytes::from_static(b"x")).unwrap();
    others[1].shard.flush();
    let deadline = Instant::now() + Duration::from_secs(10);
    while counts()[1] == before[1] {
        assert!(Instant::now() < deadline);
        left.poll();
    }
    assert_eq!(counts()[0], before[0]);
    let [_, a1] = &mut shards[..] else { panic!() };
    a1.events.clear();
    a1.shard.poll(&mut a1.events);
    assert!(matches!(a1.events[..], [Event::Control { .. }]), "{:?}", a1.events);
}
