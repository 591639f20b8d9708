use crate::wire::{HELLO_BYTES, Hello, incarnation};
use crate::{TcpOptions, TcpTransport};
use quorate_consensus::{Incarnation, NodeId};
use quorate_transport::{Event, Lane, Transport, conformance};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

mod adversity;
mod built_on;
mod shards;
mod streams;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

/// On a free port of the loopback.
fn options(local: NodeId, peers: &[NodeId], cluster: u64) -> TcpOptions {
    let peers = peers.iter().map(|peer| (*peer, String::new())).collect();
    TcpOptions { local, listen: "127.0.0.1:0".parse().unwrap(), peers, cluster }
}

/// Endpoints that were told of each other.
fn endpoints(count: u16) -> Vec<TcpTransport> {
    let ids: Vec<NodeId> = (1..=count).map(NodeId).collect();
    let bind = |id: &NodeId| {
        let others: Vec<NodeId> = ids.iter().copied().filter(|peer| peer != id).collect();
        TcpTransport::bind(options(*id, &others, 7)).unwrap()
    };
    let mut ends: Vec<TcpTransport> = ids.iter().map(bind).collect();
    let addresses: Vec<String> = ends.iter().map(|end| end.local_addr().to_string()).collect();
    for (end, id) in ends.iter_mut().zip(&ids) {
        for (peer, address) in ids.iter().zip(&addresses).filter(|(peer, _)| *peer != id) {
            end.set_peer_address(*peer, address).unwrap();
        }
    }
    ends
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "it never came to pass that {what}");
    }
}

/// A transport and everything that it said.
struct Running {
    transport: TcpTransport,
    events: Vec<Event>,
}

impl Running {
    fn new(transport: TcpTransport) -> Self {
        Self { transport, events: Vec::new() }
    }

    fn turn(&mut self) {
        self.transport.flush();
        self.transport.poll(&mut self.events);
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        until(what, || {
            self.turn();
            done(self)
        });
    }

    fn last_down(&self, lane: Lane) -> Option<String> {
        self.events.iter().rev().find_map(|event| match event {
            Event::LinkDown { lane: on, reason, .. } if *on == lane => Some(reason.clone()),
            _ => None,
        })
    }

    /// The newest of a lane.
    fn life(&self, lane: Lane) -> Option<Incarnation> {
        self.events.iter().rev().find_map(|event| match event {
            Event::LinkUp { lane: on, incarnation, .. } if *on == lane => Some(*incarnation),
            _ => None,
        })
    }

    /// All that began.
    fn lives(&self) -> Vec<Incarnation> {
        let life = |event: &Event| match event {
            Event::LinkUp { incarnation, .. } => Some(*incarnation),
            _ => None,
        };
        self.events.iter().filter_map(life).collect()
    }
}

/// A socket that greets as replica 2 does, and then says what a test wants.
struct RawPeer {
    stream: TcpStream,
    life: Incarnation,
}

impl RawPeer {
    fn greet(running: &mut Running, lane: Lane) -> Self {
        Self::greet_in_pieces(running, lane, HELLO_BYTES)
    }

    fn greet_slowly(running: &mut Running, lane: Lane) -> Self {
        Self::greet_in_pieces(running, lane, 1)
    }

    fn greet_in_pieces(running: &mut Running, lane: Lane, length: usize) -> Self {
        let mut stream = TcpStream::connect(running.transport.local_addr()).unwrap();
        stream.set_nodelay(true).unwrap();
        let hello = Hello { lane, from: B, to: A, cluster: 7, nonce: 5, refusal: None };
        for piece in hello.encode().chunks(length) {
            stream.write_all(piece).unwrap();
            running.turn();
        }
        let ups = running.lives().len();
        running.until("the greeting was accepted", |running| running.lives().len() > ups);
        let mut answer = [0; HELLO_BYTES];
        stream.read_exact(&mut answer).unwrap();
        let answer = Hello::decode(&answer).unwrap();
        let life = incarnation((B, 5), (A, answer.nonce), lane);
        assert_eq!(running.lives().last(), Some(&life), "both ends agree");
        Self { stream, life }
    }
}

#[test]
fn tcp_on_the_loopback_conforms() {
    let mut build = |count| {
        let boxed = |end| Box::new(end) as Box<dyn Transport>;
        endpoints(count).into_iter().map(boxed).collect()
    };
    conformance::run(&mut build).assert_passed();
}
