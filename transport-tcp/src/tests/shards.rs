//! Shards over sockets.

use super::*;
use quorate_transport::RegionId;
use quorate_transport::shards::{ShardId, ShardTransport, Trunk};

fn shard(trunk: &Trunk, id: u16, peers: &[(NodeId, String)]) -> ShardTransport {
    trunk.shard_among(ShardId(id), peers, trunk.waker()).unwrap()
}

#[test]
fn a_shard_beside_another_over_tcp_conforms() {
    let mut others = Vec::new();
    let mut build = |count| {
        let mut ends = Vec::new();
        for (end, seed) in endpoints(count).into_iter().zip(1..) {
            let trunk = Trunk::new(Box::new(end), seed);
            let mut other = trunk.shard(ShardId(0), trunk.waker()).unwrap();
            other.poll(&mut Vec::new());
            others.push(other);
            let shard = trunk.shard(ShardId(1), trunk.waker()).unwrap();
            ends.push(Box::new(shard) as Box<dyn Transport>);
        }
        ends
    };
    conformance::run(&mut build).assert_passed();
}

#[test]
fn a_shard_that_knows_an_old_address_does_not_keep_the_others_from_a_peer() {
    // Nobody listens there any more.
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = held.local_addr().unwrap().to_string();
    drop(held);
    let listening = TcpTransport::bind(options(A, &[], 0)).unwrap();
    let address = listening.local_addr().to_string();
    let (left, right) = (
        Trunk::new(Box::new(listening), 1),
        Trunk::new(Box::new(TcpTransport::bind(options(B, &[], 0)).unwrap()), 2),
    );
    let mut ends = [
        shard(&left, 1, &[(B, String::new())]),
        // Whoever has the higher number dials.
        shard(&right, 1, &[(A, address)]),
        shard(&right, 2, &[(A, nowhere)]),
    ];
    for end in &mut ends {
        let peer = end.peers()[0];
        end.register(RegionId::inbox(peer), 64).unwrap();
        end.grant(RegionId::inbox(peer), peer).unwrap();
    }
    until("it is found", || {
        for end in &mut ends {
            end.poll(&mut Vec::new());
            end.flush();
        }
        ends[1].status(A).data_up && ends[0].status(B).data_up
    });
    assert!(!ends[2].status(A).data_up, "the shard is not there");
}
