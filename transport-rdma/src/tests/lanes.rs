//! What carries a lane, when it falls back, and how it returns.

use super::{A, B, DEADLINE, Pair, REGION, Running, endpoints, options};
use crate::{RdmaTransport, StartError};
use bytes::Bytes;
use quorate_ffi::fake::{Fabric, Live, Partition};
use quorate_ffi::verbs::VerbsError;
use quorate_transport::{Event, Level, PostError, RegionError, RegionId, Transport};
use std::time::{Duration, Instant};

#[test]
fn writes_go_by_verbs_and_not_over_tcp() {
    let mut pair = Pair::carried_by(Fabric::new(1), "rdma");
    let frames = pair.a.transport.tcp_statistics().frames_sent;
    for number in 1..100 {
        pair.exchange(number);
    }
    assert_eq!(pair.a.transport.tcp_statistics().frames_sent, frames);
    let statistics = pair.a.transport.statistics();
    assert_eq!((statistics.writes, statistics.inline_writes, statistics.bytes), (99, 99, 99 * 8));
    assert_eq!(statistics.staged_bytes, 0, "what is short goes inline");
}

#[test]
fn what_is_flushed_together_is_one_doorbell_and_one_completion() {
    let mut pair = Pair::carried_by(Fabric::new(1), "rdma");
    let before = pair.a.transport.statistics();
    for place in 0..50 {
        let pieces = [Bytes::from(vec![7; 64]), Bytes::from(vec![8; 64])];
        pair.a.transport.write(B, REGION, place * 128, &pieces).unwrap();
    }
    pair.a.transport.flush();
    let after = pair.a.transport.statistics();
    assert_eq!(after.doorbells - before.doorbells, 1);
    assert_eq!(after.writes - before.writes, 50);
    pair.until("all completed", |pair| {
        pair.a.events.iter().any(|event| {
            matches!(event, Event::Completed { through, level: Level::Accepted, .. } if through.0 == 50)
        })
    });
    assert_eq!(pair.a.transport.statistics().completions - before.completions, 1);
    assert_eq!(pair.b.transport.load(REGION, 49 * 128 + 64), u64::from_le_bytes([8; 8]));
}

#[test]
fn a_payload_is_copied_once_for_all_who_get_it() {
    let fabric = Fabric::new(3);
    let mut ends: Vec<Running> = endpoints(fabric, 3)
        .into_iter()
        .map(|mut transport| {
            transport.register(REGION, 1 << 20).unwrap();
            for peer in transport.peers() {
                transport.grant(REGION, peer).unwrap();
            }
            Running { transport, events: Vec::new() }
        })
        .collect();
    let deadline = Instant::now() + DEADLINE;
    let all = |ends: &[Running]| {
        ends.iter().all(|end| end.transport.peers().iter().all(|peer| end.carrier(*peer) == "rdma"))
    };
    while !all(&ends) {
        assert!(Instant::now() < deadline, "the lanes did not come up");
        ends.iter_mut().for_each(Running::turn);
    }
    let payload = Bytes::from((0..100_000u32).map(|at| (at % 253) as u8).collect::<Vec<_>>());
    for round in 0..40 {
        for peer in [B, quorate_consensus::NodeId(3)] {
            // The head differs from peer to peer; the payload is the same memory.
            let head = Bytes::from(vec![round; 40]);
            ends[0].transport.write(peer, REGION, 0, &[head, payload.clone()]).unwrap();
        }
        let mut landed = vec![0; 100_000];
        loop {
            ends.iter_mut().for_each(Running::turn);
            let arrived = ends[1..].iter().all(|end| {
                end.transport.copy_out(REGION, 40, &mut landed);
                end.transport.load(REGION, 0) == u64::from_le_bytes([round; 8]) && landed == payload
            });
            if arrived {
                break;
            }
            assert!(Instant::now() < deadline, "round {round} did not arrive");
        }
    }
    let copied = ends[0].transport.statistics().staged_bytes;
    // A chunk of 256 KiB holds two, which is when one is copied again.
    assert!(copied <= 40 * (100_000 + 80), "{copied} bytes were copied");
}

#[test]
fn a_device_without_queue_pairs_means_tcp_and_the_lane_returns_when_it_has_some() {
    let fabric = Fabric::new(1);
    fabric.refuse_queue_pairs(true);
    let mut pair = Pair::carried_by(fabric, "tcp");
    assert!(pair.a.transport.status(B).last_error.contains("queue pair"));
    pair.exchange(1);
    assert_eq!(pair.fabric.counts().writes, 0);
    fabric.refuse_queue_pairs(false);
    pair.until_carried_by("rdma");
    assert!(pair.b.last_down().unwrap().contains("RDMA works again"));
    pair.exchange(2);
    assert!(pair.fabric.counts().writes > 2);
}

#[test]
fn cut_cables_mean_tcp_without_waiting_for_the_device_and_mended_ones_rdma_again() {
    for partition in [Partition::Silent, Partition::GivesUp] {
        let fabric = Fabric::new(1);
        let mut pair = Pair::carried_by(fabric, "rdma");
        pair.exchange(1);
        fabric.partition(partition);
        let start = Instant::now();
        pair.a.transport.write(B, REGION, 0, &[Bytes::from_static(b"lost?")]).unwrap();
        pair.until_carried_by("tcp");
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        let reason = pair.a.last_down().unwrap();
        assert!(reason.contains("does not answer") || reason.contains("has not answered"));
        pair.exchange(2);
        fabric.partition(Partition::None);
        pair.until_carried_by("rdma");
        pair.exchange(3);
        assert!(pair.a.transport.statistics().built >= 2);
    }
}

#[test]
fn a_quiet_lane_notices_cut_cables_too() {
    let fabric = Fabric::new(1);
    let mut pair = Pair::carried_by(fabric, "rdma");
    fabric.partition(Partition::Silent);
    pair.until_carried_by("tcp");
    assert!(fabric.counts().reads > 0, "a look at the peer's pulse found it");
}

#[test]
fn a_port_that_goes_down_takes_its_lanes_to_tcp_at_once() {
    let fabric = Fabric::new(1);
    let mut pair = Pair::carried_by(fabric, "rdma");
    fabric.set_port(false);
    let start = Instant::now();
    pair.until_carried_by("tcp");
    assert!(start.elapsed() < Duration::from_secs(1), "nothing had to time out");
    assert!(pair.a.transport.status(B).last_error.contains("port"));
    pair.exchange(1);
    fabric.set_port(true);
    pair.until_carried_by("rdma");
    pair.exchange(2);
}

#[test]
fn queue_pairs_that_fail_are_built_again_under_a_new_incarnation() {
    let fabric = Fabric::new(1);
    let mut pair = Pair::carried_by(fabric, "rdma");
    for round in 0..5 {
        let built = pair.a.transport.statistics().built;
        fabric.fail_queue_pairs();
        pair.until("both have a new connection", |pair| {
            pair.a.transport.statistics().built > built
                && pair.a.carrier(B) == "rdma"
                && pair.b.carrier(A) == "rdma"
        });
        pair.exchange(round);
    }
    let lives =
        pair.a.events.iter().filter(|event| {
            matches!(event, Event::LinkUp { lane: quorate_transport::Lane::Data, .. })
        });
    assert!(lives.count() >= 6);
}

#[test]
fn a_region_granted_after_the_lane_came_up_is_asked_for() {
    let mut pair = Pair::carried_by(Fabric::new(1), "rdma");
    let late = RegionId(77);
    pair.b.transport.register(late, 64).unwrap();
    pair.b.transport.grant(late, A).unwrap();
    let word = Bytes::from(5u64.to_le_bytes().to_vec());
    // The word of the grant is under way at best.
    pair.a.transport.write(B, late, 0, &[word]).unwrap();
    pair.until("it arrived", |pair| pair.b.transport.load(late, 0) == 5);
    assert_eq!(pair.a.last_down(), None);
}

#[test]
fn a_grant_taken_back_and_given_again_has_another_key() {
    let mut pair = Pair::carried_by(Fabric::new(1), "rdma");
    pair.exchange(1);
    for number in 2..6u64 {
        pair.b.transport.revoke(REGION, A).unwrap();
        pair.b.transport.grant(REGION, A).unwrap();
        // Until the new key is there the old one is refused, which ends a life of the lane.
        let word = Bytes::from(number.to_le_bytes().to_vec());
        let deadline = Instant::now() + DEADLINE;
        while pair.b.transport.load(REGION, 16) != number {
            assert!(Instant::now() < deadline, "{number} never arrived");
            let _ = pair.a.transport.write(B, REGION, 16, std::slice::from_ref(&word));
            pair.turn();
        }
        pair.until_carried_by("rdma");
    }
}

#[test]
fn one_end_without_a_device_means_tcp_for_both() {
    use quorate_transport_tcp::TcpTransport;
    let fabric = Fabric::new(1);
    let mut a = RdmaTransport::bind(&Fabric::library(), options(fabric, A, &[B])).unwrap();
    let mut b = TcpTransport::bind(options(fabric, B, &[A]).tcp).unwrap();
    b.set_peer_address(A, &a.local_addr().to_string()).unwrap();
    a.register(REGION, 64).unwrap();
    a.grant(REGION, B).unwrap();
    let mut events = Vec::new();
    let deadline = Instant::now() + DEADLINE;
    // The other end does not know these words, and is not waited for longer than a connection.
    while !(a.status(B).data_up && b.status(A).data_up) {
        assert!(Instant::now() < deadline, "no lane between the two");
        for end in [&mut a as &mut dyn Transport, &mut b] {
            end.flush();
            end.poll(&mut events);
        }
    }
    assert_eq!(a.status(B).carrier, "tcp");
    b.write(A, REGION, 0, &[Bytes::from(9u64.to_le_bytes().to_vec())]).unwrap();
    while a.load(REGION, 0) != 9 {
        assert!(Instant::now() < deadline, "the write never arrived");
        b.flush();
        a.poll(&mut events);
    }
}

#[test]
fn what_cannot_be_made_says_what_to_do() {
    let fabric = Fabric::new(1);
    let mut wrong = options(fabric, A, &[B]);
    wrong.adapter.device = Some("mlx5_9".into());
    let refused = RdmaTransport::bind(&Fabric::library(), wrong).unwrap_err();
    assert!(matches!(&refused, StartError::Verbs(VerbsError::UnknownDevice { .. })), "{refused}");
    assert!(refused.to_string().contains(fabric.name()), "it names what there is: {refused}");
    fabric.refuse_memory(true);
    let refused = RdmaTransport::bind(&Fabric::library(), options(fabric, A, &[B])).unwrap_err();
    assert!(refused.to_string().contains("ulimit -l"), "{refused}");
    fabric.refuse_memory(false);
    let mut a = RdmaTransport::bind(&Fabric::library(), options(fabric, A, &[B])).unwrap();
    a.register(REGION, 4096).unwrap();
    fabric.refuse_memory(true);
    let refused = a.grant(REGION, B);
    assert!(matches!(&refused, Err(RegionError::Refused(_, 4096, why)) if why.contains("memlock")));
    let down = a.write(B, REGION, 0, &[Bytes::new()]);
    assert_eq!(down, Err(PostError::Down(B)));
    // A GID that is not there keeps nobody from starting: its port may be coming up.
    fabric.refuse_memory(false);
    let mut absent = options(fabric, A, &[B]);
    absent.adapter.gid_index = Some(9);
    let a = RdmaTransport::bind(&Fabric::library(), absent).unwrap();
    let told = a.adapter().path().unwrap_err().to_string();
    assert!(told.contains("no GID 9") && told.contains("127.0.0.1"), "{told}");
}

#[test]
fn nothing_is_left_behind_when_transports_go() {
    let fabric = Fabric::new(1);
    let mut pair = Pair::carried_by(fabric, "rdma");
    pair.exchange(1);
    pair.a.transport.write(B, REGION, 0, &[Bytes::from(vec![1; 500_000])]).unwrap();
    pair.a.transport.flush();
    drop(pair);
    assert_eq!(fabric.live(), Live::default());
}
