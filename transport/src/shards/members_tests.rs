//! Peers of one shard come and go, and the other shards of the links go on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::trunk::Trunk;
use super::*;
use crate::memory::MemoryNetwork;
use crate::{Event, Lane, OpNumber, PostError, RegionError, Transport, Wake};
use bytes::Bytes;
use quorate_consensus::NodeId;
use std::sync::Arc;
use std::time::{Duration, Instant};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const INBOX_BYTES: usize = 256;

struct Silent;

impl Wake for Silent {
    fn wake(&self) {}
}

struct End {
    shard: ShardTransport,
    events: Vec<Event>,
}

impl End {
    fn new(trunk: &Trunk, id: u16, peer: NodeId) -> Self {
        let named = [(peer, format!("at {peer}"))];
        let mut shard = trunk.shard_among(ShardId(id), &named, Arc::new(Silent)).unwrap();
        open_inbox(&mut shard, peer).unwrap();
        Self { shard, events: Vec::new() }
    }

    fn turn(&mut self) {
        self.shard.poll(&mut self.events);
        self.shard.flush();
    }

    fn is_up(&self) -> bool {
        [Lane::Control, Lane::Data].iter().all(|lane| {
            let last = self.events.iter().rev().find_map(|event| match event {
                Event::LinkUp { lane: of, .. } if of == lane => Some(true),
                Event::LinkDown { lane: of, .. } if of == lane => Some(false),
                _ => None,
            });
            last == Some(true)
        })
    }

    fn downs(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::LinkDown { .. })).count()
    }

    /// As a replica whose configuration does not name the peer any more.
    fn part_from(&mut self, peer: NodeId) {
        self.shard.remove_peer(peer);
        self.shard.revoke(RegionId::inbox(peer), peer).unwrap();
        self.shard.unregister(RegionId::inbox(peer)).unwrap();
    }

    fn write(&mut self, peer: NodeId, word: u64) -> Result<OpNumber, PostError> {
        let inbox = RegionId::inbox(self.shard.local());
        self.shard.write(peer, inbox, 0, &[Bytes::copy_from_slice(&word.to_le_bytes())])
    }

    fn inbox(&self, from: NodeId) -> u64 {
        self.shard.load(RegionId::inbox(from), 0)
    }
}

fn open_inbox(shard: &mut ShardTransport, peer: NodeId) -> Result<(), RegionError> {
    let opened = shard.register(RegionId::inbox(peer), INBOX_BYTES);
    shard.grant(RegionId::inbox(peer), peer).unwrap();
    opened
}

/// Two processes with the shards 1 and 2.
struct Pair {
    network: MemoryNetwork,
    trunks: [Trunk; 2],
    a: [End; 2],
    b: [End; 2],
}

impl Pair {
    fn new(seed: u64) -> Self {
        let network = MemoryNetwork::new(seed);
        let trunk = |local, peer| {
            Trunk::new(Box::new(network.endpoint(local, &[peer])), seed + u64::from(local.0))
        };
        let trunks = [trunk(A, B), trunk(B, A)];
        let a = [1, 2].map(|id| End::new(&trunks[0], id, B));
        let b = [1, 2].map(|id| End::new(&trunks[1], id, A));
        let mut pair = Self { network, trunks, a, b };
        pair.until("all are up", |pair| pair.a.iter().chain(&pair.b).all(End::is_up));
        pair
    }

    fn turn(&mut self) {
        self.a.iter_mut().chain(&mut self.b).for_each(End::turn);
    }

    fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }

    fn until(&mut self, what: &str, done: impl Fn(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done(self) {
            assert!(Instant::now() < deadline, "it never came to pass that {what}");
            self.turn();
        }
    }

    /// The shard 2 has seen nothing of it all, and works.
    fn other_is_undisturbed(&mut self) {
        assert_eq!((self.a[1].downs(), self.b[1].downs()), (0, 0), "{:?}", self.a[1].events);
        self.a[1].write(B, 77).unwrap();
        self.b[1].write(A, 78).unwrap();
        self.until("the other shard writes", |pair| {
            pair.b[1].inbox(A) == 77 && pair.a[1].inbox(B) == 78
        });
    }

    fn waits(&self) -> bool {
        !self.trunks[0].lock().partings.is_empty()
    }
}

#[test]
fn what_a_former_peer_still_writes_and_says_disturbs_no_other_shard() {
    let mut pair = Pair::new(31);
    for word in 1..=20 {
        pair.b[0].write(A, word).unwrap();
        pair.b[0].shard.send(A, Bytes::from_static(b"on its way")).unwrap();
    }
    // Some of it is here, and the shard has not looked yet.
    pair.b[0].shard.flush();
    pair.a[1].turn();
    pair.b[0].shard.send(A, Bytes::from_static(b"on its way")).unwrap();
    pair.a[0].part_from(B);
    assert!(pair.a[0].shard.peers().is_empty());
    assert_eq!(pair.a[0].write(B, 1), Err(PostError::Unknown(B)));
    // It has not heard of it, and goes on.
    pair.b[0].write(A, 21).unwrap();
    pair.b[0].shard.flush();
    pair.a[0].events.clear();
    pair.until("the former peer heard of it", |pair| pair.b[0].downs() == 2);
    assert_eq!(pair.b[0].write(A, 22), Err(PostError::Down(A)));
    pair.until("the memory goes", |pair| !pair.waits());
    assert!(pair.a[0].events.is_empty(), "{:?}", pair.a[0].events);
    assert_eq!(pair.a[0].shard.register(RegionId::inbox(B), INBOX_BYTES), Ok(()), "it was let go");
    pair.other_is_undisturbed();
}

#[test]
fn a_peer_that_comes_back_before_it_heard_that_it_was_gone_begins_anew() {
    let mut pair = Pair::new(32);
    let life = pair.b[0].events.clone();
    pair.b[0].write(A, 5).unwrap();
    pair.b[0].shard.flush();
    pair.a[0].part_from(B);
    let inbox = RegionId::inbox(B);
    // The memory is there still, and is taken up again.
    assert_eq!(open_inbox(&mut pair.a[0].shard, B), Err(RegionError::Exists(inbox)));
    pair.a[0].events.clear();
    pair.a[0].shard.add_peer(B, "at 2").unwrap();
    pair.until("both ends are up again", |pair| {
        pair.a[0].is_up() && pair.b[0].downs() == 2 && pair.b[0].is_up()
    });
    let lives = |events: &[Event]| -> Vec<_> {
        let up = events.iter().filter_map(|event| match event {
            Event::LinkUp { incarnation, .. } => Some(*incarnation),
            _ => None,
        });
        up.collect()
    };
    let ended = lives(&life);
    assert!(lives(&pair.a[0].events).iter().all(|life| !ended.contains(life)));
    pair.b[0].write(A, 6).unwrap();
    pair.until("it is written to", |pair| pair.a[0].inbox(B) == 6);
    assert!(!pair.waits());
    pair.other_is_undisturbed();
}

#[test]
fn memory_of_another_length_does_not_wait() {
    let mut pair = Pair::new(33);
    pair.a[0].part_from(B);
    let inbox = RegionId::inbox(B);
    assert_eq!(pair.a[0].shard.register(inbox, 2 * INBOX_BYTES), Ok(()));
    let mut last = [0; 8];
    pair.a[0].shard.copy_out(inbox, 2 * INBOX_BYTES - 8, &mut last);
    pair.until("nothing waits", |pair| !pair.waits());
    pair.other_is_undisturbed();
}

#[test]
fn the_links_let_go_of_a_peer_with_the_last_shard_that_has_it() {
    let mut pair = Pair::new(34);
    pair.a[0].part_from(B);
    assert_eq!(pair.trunks[0].lock().transport.peers(), [B]);
    pair.a[1].part_from(B);
    assert!(pair.trunks[0].lock().transport.peers().is_empty());
    assert!(!pair.waits(), "nothing can be written any more");
    pair.until("the other end knows", |pair| {
        pair.b.iter().all(|end| end.downs() == 2)
            && pair.trunks[1].lock().unreached.contains_key(&A)
    });
    open_inbox(&mut pair.a[1].shard, B).unwrap();
    pair.a[1].events.clear();
    pair.a[1].shard.add_peer(B, "at 2").unwrap();
    pair.until("one of them is back", |pair| pair.a[1].is_up() && pair.b[1].is_up());
    pair.turns(100);
    assert!(!pair.b[0].is_up() && pair.a[0].events.iter().all(|event| event.peer() == B));
    assert_eq!(pair.b[0].downs(), 2, "it is no peer of this shard");
}

#[test]
fn a_former_peer_that_does_not_answer_is_asked_again() {
    let mut pair = Pair::new(35);
    pair.network.cut(A, B);
    pair.a[0].part_from(B);
    pair.turns(50);
    assert!(pair.waits());
    pair.network.heal(A, B);
    pair.until("the memory goes", |pair| !pair.waits());
    pair.until("the other is up again", |pair| pair.a[1].is_up() && pair.b[1].is_up());
    // One of the two lanes fails, with the question or the answer on it.
    for lane in [Lane::Control, Lane::Data] {
        let back = open_inbox(&mut pair.a[0].shard, B);
        assert_eq!(back, Ok(()));
        pair.a[0].events.clear();
        pair.a[0].shard.add_peer(B, "").unwrap();
        pair.until("it is back", |pair| pair.a[0].is_up() && pair.b[0].is_up());
        pair.b[0].write(A, 9).unwrap();
        pair.a[0].part_from(B);
        pair.a[0].shard.flush();
        pair.network.fail(A, B, lane);
        pair.until("the memory goes", |pair| !pair.waits());
        pair.until("the other is up again", |pair| pair.a[1].is_up() && pair.b[1].is_up());
    }
}

#[test]
fn a_shard_that_is_dropped_is_down_for_its_peers_and_can_be_made_again() {
    let mut pair = Pair::new(36);
    for word in 1..=20 {
        pair.b[0].write(A, word).unwrap();
    }
    let late = End::new(&pair.trunks[0], 3, B);
    let gone = std::mem::replace(&mut pair.a[0], late);
    let held = pair.trunks[0].shard(ShardId(1), Arc::new(Silent));
    assert!(matches!(held, Err(ShardError::Exists(_))));
    drop(gone);
    pair.until("its peer heard of it", |pair| pair.b[0].downs() == 2);
    pair.until("the memory goes", |pair| !pair.waits());
    pair.b[0].events.clear();
    pair.a[0] = End::new(&pair.trunks[0], 1, B);
    pair.until("it is back", |pair| pair.a[0].is_up() && pair.b[0].is_up());
    pair.b[0].write(A, 21).unwrap();
    pair.until("it is written to", |pair| pair.a[0].inbox(B) == 21);
    pair.other_is_undisturbed();
}

#[test]
fn completions_of_an_earlier_life_are_not_told_in_the_next() {
    let mut pair = Pair::new(37);
    for word in 1..=50 {
        pair.a[0].write(B, word).unwrap();
    }
    pair.a[0].part_from(B);
    open_inbox(&mut pair.a[0].shard, B).unwrap_err();
    pair.a[0].events.clear();
    pair.a[0].shard.add_peer(B, "").unwrap();
    pair.until("it is back", |pair| pair.a[0].is_up() && pair.b[0].is_up());
    assert_eq!(pair.a[0].write(B, 51), Ok(OpNumber(1)));
    let told = |end: &End| -> Vec<OpNumber> {
        let told = end.events.iter().filter_map(|event| match event {
            Event::Completed { through, .. } => Some(*through),
            _ => None,
        });
        told.collect()
    };
    pair.until("it is complete", |pair| !told(&pair.a[0]).is_empty());
    pair.turns(50);
    assert!(
        told(&pair.a[0]).iter().all(|through| *through == OpNumber(1)),
        "{:?}",
        pair.a[0].events
    );
    pair.other_is_undisturbed();
}

#[test]
fn nothing_is_said_before_a_hello_that_waits_for_room() {
    let mut pair = Pair::new(39);
    let epoch = pair.trunks[0].lock().shards[&ShardId(1)].ties[&B].mine;
    let untold = |pair: &Pair| {
        let mut inner = pair.trunks[0].lock();
        inner.links.get_mut(&B).unwrap().untold.insert(ShardId(1), Some(epoch));
    };
    untold(&pair);
    let word = Bytes::from_static(b"word");
    assert_eq!(pair.a[0].shard.send(B, word.clone()), Err(PostError::Full(B)));
    pair.turn();
    assert_eq!(pair.a[0].shard.send(B, word), Ok(()));
}

#[test]
fn the_newest_word_on_where_a_peer_is_counts_until_it_does_not_answer() {
    let mut pair = Pair::new(40);
    let address = |pair: &Pair| pair.trunks[0].lock().links[&B].address.clone();
    pair.a[0].shard.add_peer(B, "elsewhere").unwrap();
    assert_eq!(address(&pair), "elsewhere");
    // What the other shard has said all the time is no news, and to say nothing is none either.
    pair.a[1].shard.add_peer(B, "at 2").unwrap();
    pair.a[0].shard.add_peer(B, "").unwrap();
    pair.turn();
    assert_eq!(address(&pair), "elsewhere");
    let late = |pair: &Pair| {
        let mut inner = pair.trunks[0].lock();
        inner.unreached.insert(B, Instant::now().checked_sub(Duration::from_secs(60)).unwrap());
        inner.try_other_addresses();
        inner.try_other_addresses();
    };
    late(&pair);
    assert_eq!(address(&pair), "at 2");
    late(&pair);
    assert_eq!(address(&pair), "elsewhere");
    // It was said for one that is no peer of that shard any more.
    pair.a[0].part_from(B);
    late(&pair);
    late(&pair);
    assert_eq!(address(&pair), "at 2");
    pair.other_is_undisturbed();
}

#[test]
fn a_shard_has_the_peers_that_it_names() {
    let network = MemoryNetwork::new(38);
    let trunk = Trunk::new(Box::new(network.endpoint(A, &[])), 1);
    let named = |nodes: &[u16]| -> Vec<(NodeId, String)> {
        nodes.iter().map(|node| (NodeId(*node), format!("at {node}"))).collect()
    };
    let one = trunk.shard_among(ShardId(1), &named(&[2, 3]), Arc::new(Silent)).unwrap();
    let two = trunk.shard_among(ShardId(2), &named(&[3, 4]), Arc::new(Silent)).unwrap();
    assert_eq!(one.peers(), [NodeId(2), NodeId(3)]);
    assert_eq!(two.peers(), [NodeId(3), NodeId(4)]);
    assert!(!two.status(NodeId(2)).control_up);
    let own = trunk.shard_among(ShardId(3), &named(&[5, 1]), Arc::new(Silent));
    assert!(matches!(own, Err(ShardError::Peer(_))), "{own:?}");
    assert_eq!(trunk.lock().transport.peers(), [2, 3, 4].map(NodeId), "nothing is left of it");
    drop(one);
    assert_eq!(trunk.lock().transport.peers(), [3, 4].map(NodeId));
}
