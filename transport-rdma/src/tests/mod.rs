use crate::{AdapterOptions, RdmaOptions, RdmaTransport, STALL};
use quorate_consensus::NodeId;
use quorate_ffi::fake::Fabric;
use quorate_transport::{Event, Lane, Transport, conformance};
use quorate_transport_tcp::TcpOptions;
use std::time::{Duration, Instant};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

fn options(fabric: &Fabric, local: NodeId, peers: &[NodeId]) -> RdmaOptions {
    let peers = peers.iter().map(|peer| (*peer, String::new())).collect();
    let listen = "127.0.0.1:0".parse().unwrap();
    let adapter =
        AdapterOptions { device: Some(fabric.name().to_owned()), ..AdapterOptions::default() };
    let tcp = TcpOptions { local, listen, peers, cluster: 7 };
    RdmaOptions { tcp, adapter, stall: STALL }
}

/// Endpoints on one fabric that were told of each other.
fn endpoints(fabric: &Fabric, count: u16) -> Vec<RdmaTransport> {
    let ids: Vec<NodeId> = (1..=count).map(NodeId).collect();
    let bind = |id: &NodeId| {
        let others: Vec<NodeId> = ids.iter().copied().filter(|peer| peer != id).collect();
        RdmaTransport::bind(&Fabric::library(), options(fabric, *id, &others)).unwrap()
    };
    let mut ends: Vec<RdmaTransport> = ids.iter().map(bind).collect();
    let addresses: Vec<String> = ends.iter().map(|end| end.local_addr().to_string()).collect();
    for (end, id) in ends.iter_mut().zip(&ids) {
        for (peer, address) in ids.iter().zip(&addresses).filter(|(peer, _)| *peer != id) {
            end.set_peer_address(*peer, address).unwrap();
        }
    }
    ends
}

fn boxed(ends: Vec<RdmaTransport>) -> Vec<Box<dyn Transport>> {
    ends.into_iter().map(|end| Box::new(end) as Box<dyn Transport>).collect()
}

#[test]
fn rdma_on_a_fake_device_conforms() {
    let mut seed = 0;
    let mut build = |count| {
        seed += 1;
        boxed(endpoints(Fabric::new(seed), count))
    };
    conformance::run(&mut build).assert_passed();
}

#[test]
fn a_broken_fence_is_noticed_by_the_suite() {
    let mut build = |count| {
        let fabric = Fabric::new(1);
        fabric.break_fence(3);
        boxed(endpoints(fabric, count))
    };
    let report = conformance::run_matching(&mut build, "fence: no byte");
    let why: Vec<_> = report.failures().filter_map(|case| case.failure.clone()).collect();
    assert_eq!(why, ["bytes changed after the fence"]);
}
