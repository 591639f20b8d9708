use crate::{AdapterOptions, RdmaOptions, RdmaTransport};
use bytes::Bytes;
use quorate_consensus::NodeId;
use quorate_ffi::fake::Fabric;
use quorate_transport::{Event, Lane, RegionId, Transport, conformance};
use quorate_transport_tcp::TcpOptions;
use std::time::{Duration, Instant};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const REGION: RegionId = RegionId(1);
const DEADLINE: Duration = Duration::from_secs(60);

mod deposed;
mod doctor;
mod lanes;
mod lives;
mod members;
mod proof;
mod sleep;

/// A transport and everything that it said.
struct Running {
    transport: RdmaTransport,
    events: Vec<Event>,
}

impl Running {
    fn turn(&mut self) {
        self.transport.flush();
        self.transport.poll(&mut self.events);
    }

    fn last_down(&self) -> Option<&str> {
        self.events.iter().rev().find_map(|event| match event {
            Event::LinkDown { lane: Lane::Data, reason, .. } => Some(reason.as_str()),
            _ => None,
        })
    }

    fn carrier(&self, peer: NodeId) -> &'static str {
        let status = self.transport.status(peer);
        if status.data_up { status.carrier } else { "none" }
    }
}

/// Two ends, each with a region that the other may write.
struct Pair {
    fabric: &'static Fabric,
    a: Running,
    b: Running,
}

impl Pair {
    fn new(fabric: &'static Fabric) -> Self {
        let mut ends = endpoints(fabric, 2).into_iter().map(|mut transport| {
            let peer = transport.peers()[0];
            transport.register(REGION, 1 << 20).unwrap();
            transport.grant(REGION, peer).unwrap();
            Running { transport, events: Vec::new() }
        });
        let (a, b) = (ends.next().unwrap(), ends.next().unwrap());
        Self { fabric, a, b }
    }

    fn carried_by(fabric: &'static Fabric, carrier: &str) -> Self {
        let mut pair = Self::new(fabric);
        pair.until_carried_by(carrier);
        pair
    }

    fn turn(&mut self) {
        self.a.turn();
        self.b.turn();
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            let status = (self.a.transport.status(B), self.b.transport.status(A));
            assert!(Instant::now() < deadline, "it never came to pass that {what}: {status:?}");
            self.turn();
        }
    }

    fn until_carried_by(&mut self, carrier: &str) {
        self.until(&format!("{carrier} carries the lane"), |pair| {
            pair.a.carrier(B) == carrier && pair.b.carrier(A) == carrier
        });
    }

    /// Writes a word at each end and waits until both arrived.
    fn exchange(&mut self, number: u64) {
        let word = Bytes::from(number.to_le_bytes().to_vec());
        self.a.transport.write(B, REGION, 8, std::slice::from_ref(&word)).unwrap();
        self.b.transport.write(A, REGION, 8, &[word]).unwrap();
        self.until("both words arrived", |pair| {
            pair.a.transport.load(REGION, 8) == number && pair.b.transport.load(REGION, 8) == number
        });
    }
}

fn options(fabric: &Fabric, local: NodeId, peers: &[NodeId]) -> RdmaOptions {
    let peers = peers.iter().map(|peer| (*peer, String::new())).collect();
    let listen = "127.0.0.1:0".parse().unwrap();
    let adapter =
        AdapterOptions { device: Some(fabric.name().to_owned()), ..AdapterOptions::default() };
    let tcp = TcpOptions { local, listen, peers, cluster: 7 };
    RdmaOptions { tcp, adapter }
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
        fabric.break_fence(1_000_000);
        boxed(endpoints(fabric, count))
    };
    let report = conformance::run_matching(&mut build, "fence: no byte");
    let why: Vec<_> = report.failures().filter_map(|case| case.failure.clone()).collect();
    assert_eq!(why, ["bytes changed after the fence"]);
}
