//! Peers that come and go while the transport runs.

use super::{A, B, DEADLINE, Pair, REGION, Running, options};
use crate::RdmaTransport;
use bytes::Bytes;
use quorate_consensus::{Incarnation, NodeId};
use quorate_ffi::fake::{Fabric, Partition};
use quorate_transport::{Event, Lane, PostError, Transport};
use std::time::Instant;

const C: NodeId = NodeId(3);

impl Running {
    /// The newest life of the data lane to a peer.
    fn life(&self, of: NodeId) -> Option<Incarnation> {
        self.events.iter().rev().find_map(|event| match event {
            Event::LinkUp { peer, lane: Lane::Data, incarnation } if *peer == of => {
                Some(*incarnation)
            }
            _ => None,
        })
    }
}

#[test]
fn nothing_of_a_removed_peer_lands_any_more_and_added_again_it_is_back_by_rdma() {
    let fabric = Fabric::new(1);
    let mut pair = Pair::carried_by(fabric, "rdma");
    pair.exchange(1);
    let first = pair.b.life(A);
    // Half of a large write has landed when its receiver removes the writer.
    fabric.set_pace(0);
    let large = Bytes::from(vec![7; 400_000]);
    pair.a.transport.write(B, REGION, 4096, &[large]).unwrap();
    pair.a.transport.flush();
    assert_eq!(fabric.step(20), 20);
    let mut before = vec![0; 1 << 20];
    pair.b.transport.copy_out(REGION, 0, &mut before);
    assert!(before.contains(&7) && before[4096 + 300_000] == 0, "it is half way");
    pair.b.transport.remove_peer(A);
    while fabric.step(1) > 0 {}
    let mut after = vec![0; 1 << 20];
    pair.b.transport.copy_out(REGION, 0, &mut after);
    assert_eq!(before, after, "a packet landed after the peer was removed");
    fabric.set_pace(64);
    assert_eq!(pair.b.transport.peers(), []);
    let refused = pair.b.transport.write(A, REGION, 0, &[Bytes::from_static(b"x")]);
    assert_eq!(refused, Err(PostError::Unknown(A)));
    pair.until("the other end sees its lane end", |pair| pair.a.carrier(B) == "none");
    // The higher number dials, so it has to know where.
    let of_a = pair.a.transport.local_addr().to_string();
    pair.b.transport.add_peer(A, &of_a).unwrap();
    pair.until_carried_by("rdma");
    assert_ne!(pair.b.life(A), first, "another life of the lane");
    pair.exchange(2);
}

#[test]
fn a_peer_that_is_added_later_gets_a_lane_by_rdma_and_disturbs_nobody() {
    let fabric = Fabric::new(2);
    let mut pair = Pair::carried_by(fabric, "rdma");
    pair.exchange(1);
    let lives = (pair.a.life(B), pair.b.life(A));
    let third = RdmaTransport::bind(&Fabric::library(), options(fabric, C, &[A])).unwrap();
    let mut third = Running { transport: third, events: Vec::new() };
    third.transport.register(REGION, 1 << 20).unwrap();
    third.transport.grant(REGION, A).unwrap();
    pair.a.transport.grant(REGION, C).unwrap();
    let of_a = pair.a.transport.local_addr().to_string();
    third.transport.set_peer_address(A, &of_a).unwrap();
    let of_third = third.transport.local_addr().to_string();
    pair.a.transport.add_peer(C, &of_third).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !(pair.a.carrier(C) == "rdma" && third.carrier(A) == "rdma") {
        assert!(Instant::now() < deadline, "{:?}", pair.a.transport.status(C));
        pair.turn();
        third.turn();
    }
    let word = Bytes::from(9u64.to_le_bytes().to_vec());
    pair.a.transport.write(C, REGION, 16, std::slice::from_ref(&word)).unwrap();
    third.transport.write(A, REGION, 16, &[word]).unwrap();
    while !(third.transport.load(REGION, 16) == 9 && pair.a.transport.load(REGION, 16) == 9) {
        assert!(Instant::now() < deadline, "the words did not arrive");
        pair.turn();
        third.turn();
    }
    pair.exchange(2);
    assert_eq!((pair.a.life(B), pair.b.life(A)), lives, "the lane that was there went on");
    // It goes again, and that disturbs nobody either.
    pair.a.transport.remove_peer(C);
    pair.exchange(3);
    assert_eq!((pair.a.life(B), pair.b.life(A)), lives);
}

#[test]
fn a_peer_that_is_removed_while_its_connection_is_built_leaves_nothing_behind() {
    let fabric = Fabric::new(3);
    fabric.partition(Partition::Silent);
    let mut pair = Pair::new(fabric);
    pair.until("a connection is being built", |pair| pair.fabric.live().pairs == 2);
    pair.a.transport.remove_peer(B);
    assert_eq!(fabric.live().pairs, 1, "that of the other end");
    pair.b.transport.remove_peer(A);
    assert_eq!(fabric.live().pairs, 0);
    fabric.partition(Partition::None);
    pair.a.transport.add_peer(B, "").unwrap();
    pair.b.transport.add_peer(A, &pair.a.transport.local_addr().to_string()).unwrap();
    pair.until_carried_by("rdma");
    pair.exchange(1);
}

#[test]
fn peers_that_come_and_go_leak_nothing() {
    let fabric = Fabric::new(4);
    let mut pair = Pair::carried_by(fabric, "rdma");
    pair.exchange(1);
    let live = fabric.live();
    let of_a = pair.a.transport.local_addr().to_string();
    for round in 2..10 {
        // Each end in turn is the one that removes; something is always under way.
        let b_removes = round % 2 == 0;
        let _ = pair.a.transport.write(B, REGION, 4096, &[Bytes::from(vec![1; 100_000])]);
        if b_removes {
            pair.b.transport.remove_peer(A);
            pair.b.transport.add_peer(A, &of_a).unwrap();
        } else {
            pair.a.transport.remove_peer(B);
            pair.a.transport.add_peer(B, "").unwrap();
        }
        pair.until("the lane is back by RDMA, and quiet", |pair| {
            let quiet = |end: &Running, peer| end.transport.status(peer).queued_bytes == 0;
            pair.a.carrier(B) == "rdma"
                && pair.b.carrier(A) == "rdma"
                && quiet(&pair.a, B)
                && quiet(&pair.b, A)
                && pair.fabric.live() == live
        });
        pair.exchange(round);
    }
}
