//! Three replicas whose lanes are RDMA, on the fake verbs device, driven by hand.

use quorate_consensus::Nanos;
use quorate_ffi::fake::Fabric;
use quorate_replica::{Node, NodeOptions, StateMachine};
use quorate_rig::{Driven, Start, Turns, members};
use quorate_transport::Transport;
use quorate_transport_rdma::{AdapterOptions, RdmaOptions, RdmaTransport};
use quorate_transport_tcp::TcpOptions;
use std::net::TcpListener;

/// A transport for each of the three, on `fabric`.
fn transports(fabric: &'static Fabric) -> Vec<RdmaTransport> {
    // Held until all are known, so that no two are the same.
    let held: Vec<TcpListener> =
        members().iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<_> = held.iter().map(|held| held.local_addr().unwrap()).collect();
    drop(held);
    let transport = |(at, local)| {
        let peers = members().into_iter().zip(&addresses).filter(|(peer, _)| *peer != local);
        let peers = peers.map(|(peer, address)| (peer, address.to_string())).collect();
        let tcp = TcpOptions { local, listen: addresses[at], peers, cluster: 0 };
        let device = Some(fabric.name().to_owned());
        let adapter = AdapterOptions { device, ..AdapterOptions::default() };
        RdmaTransport::bind(&Fabric::library(), RdmaOptions { tcp, adapter }).unwrap()
    };
    members().into_iter().enumerate().map(transport).collect()
}

/// Three replicas with logs in memory, one of which leads, all with all their lanes by RDMA. `set` says
/// what is not as usual, `wrap` what stands between a replica and its transport.
pub(crate) fn three<T: Transport + 'static, M: StateMachine + 'static>(
    fabric: &'static Fabric,
    set: impl Fn(&mut NodeOptions),
    mut wrap: impl FnMut(RdmaTransport) -> T,
    mut machine: impl FnMut() -> M,
) -> Driven {
    let node = |transport: RdmaTransport| {
        let mut start = Start::of(transport.local());
        start.options.ring_bytes = 4 << 20;
        start.options.command_bytes_max = 1 << 20;
        set(&mut start.options);
        start.node(wrap(transport), machine())
    };
    let nodes = transports(fabric).into_iter().map(node);
    let mut driven = Driven::new(nodes, Nanos(50_000));
    // Connections take real time, elections simulated time.
    driven.until("a leader, and lanes by RDMA", |driven| {
        driven.leader().is_some() && (0..3).all(|at| all_by_rdma(driven.node(at)))
    });
    driven
}

fn all_by_rdma(node: &Node) -> bool {
    let peers = node.status().peers;
    peers.len() == 2 && peers.iter().all(|peer| peer.link.data_up && peer.link.carrier == "rdma")
}
