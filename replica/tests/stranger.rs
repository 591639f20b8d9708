//! Nobody is listened to before it showed the founding document of our cluster (rule F6).
//!
//! Two replicas are driven by hand; the test plays the third member with a bare transport, so that it
//! can say and write what no replica would.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::{Bytes, BytesMut};
use quorate_consensus::{Ballot, Incarnation, Message, Nanos, NodeId, Slot, Value};
use quorate_pmem_log::{Log, LogOptions, MediumKind};
use quorate_replica::{Clock, Context, Node, NodeOptions, StateMachine};
use quorate_transport::memory::{MemoryNetwork, MemoryTransport};
use quorate_transport::ring::RingWriter;
use quorate_transport::row::ROW_BYTES;
use quorate_transport::{Event, Lane, RegionId, Transport, codec};
use std::sync::Arc;

const RING_BYTES: usize = 1 << 20;
const STRANGER: NodeId = NodeId(3);
const HIGH: Ballot = Ballot { round: 1_000, node: STRANGER };

struct Nothing;

impl StateMachine for Nothing {
    fn apply(&mut self, _: &Context, _: &[u8], _: &mut BytesMut) {}
    fn query(&self, _: &Context, _: &[u8], _: &mut BytesMut) {}
}

struct Scene {
    nodes: Vec<Node>,
    stranger: MemoryTransport,
    ring: RingWriter,
    now: Nanos,
    data_up: bool,
    genesis: Option<Bytes>,
}

impl Scene {
    /// A cluster of three that was founded, of which the third says nothing any more.
    fn founded() -> Self {
        let network = MemoryNetwork::new(5);
        let members: Vec<NodeId> = (1..=3).map(NodeId).collect();
        let others = |node: NodeId| members.iter().copied().filter(|peer| *peer != node).collect();
        let nodes = [NodeId(1), NodeId(2)].map(|node| {
            let log = LogOptions {
                directory: "".into(),
                medium: MediumKind::Memory,
                node,
                segment_bytes: 16 << 20,
            };
            let incarnation = Incarnation(100 + u64::from(node.0));
            let (log, recovered) = Log::open(&log, incarnation, Arc::new(|| {})).unwrap();
            let mut options = NodeOptions::new(node, members.clone(), u64::from(node.0));
            options.ring_bytes = RING_BYTES;
            options.command_bytes_max = 512 << 10;
            let peers: Vec<NodeId> = others(node);
            let transport = Box::new(network.endpoint(node, &peers));
            Node::new(options, transport, log, recovered, Box::new(Nothing)).unwrap()
        });
        let peers: Vec<NodeId> = others(STRANGER);
        let mut stranger = network.endpoint(STRANGER, &peers);
        for peer in peers {
            for (region, bytes) in
                [(RegionId::inbox(peer), RING_BYTES), (RegionId::row(peer), ROW_BYTES)]
            {
                stranger.register(region, bytes).unwrap();
                stranger.grant(region, peer).unwrap();
            }
        }
        let ring = RingWriter::new(RegionId::inbox(STRANGER), RING_BYTES);
        let nodes = Vec::from(nodes);
        let (now, data_up, genesis) = (Nanos(0), false, None);
        let mut scene = Self { nodes, stranger, ring, now, data_up, genesis };
        scene.until("founded, and the lanes up", |scene| {
            scene.say(&Message::Fresh { incarnation: Incarnation(103) });
            scene.genesis.is_some() && scene.data_up && scene.nodes[0].core().is_some()
        });
        scene
    }

    fn turn(&mut self) {
        self.now = self.now + Nanos(100_000);
        for node in &mut self.nodes {
            node.step(Clock { now: self.now, wall_ms: 1 });
        }
        let mut events = Vec::new();
        self.stranger.poll(&mut events);
        for event in events {
            match event {
                Event::LinkUp { peer: NodeId(1), lane: Lane::Data, incarnation } => {
                    self.ring.reset(incarnation);
                    self.data_up = true;
                }
                Event::LinkDown { peer: NodeId(1), lane: Lane::Data, .. } => self.data_up = false,
                Event::Control { message, .. } => {
                    if let Message::Genesis { document } = codec::decode(message).unwrap() {
                        self.genesis = Some(document);
                    }
                }
                _ => {}
            }
        }
        self.stranger.flush();
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        for _ in 0..100_000 {
            if holds(self) {
                return;
            }
            self.turn();
        }
        panic!("not within ten simulated seconds: {what}");
    }

    /// Says something to replica 1. A lane that is down takes nothing, which is as good.
    fn say(&mut self, message: &Message) {
        let mut bytes = BytesMut::new();
        codec::encode(message, &mut bytes).unwrap();
        let _ = self.stranger.send(NodeId(1), bytes.freeze());
    }

    /// Ships a record to replica 1 as if the stranger led under a high ballot.
    fn ship(&mut self) {
        let (to, slot) = (NodeId(1), Slot(1));
        let values = [Value::noop()];
        // Without a lane nothing is written, which is as good.
        let _ = self.ring.ship(&mut self.stranger, to, HIGH, slot, slot, &values);
    }

    fn promised(&self) -> Ballot {
        self.nodes[0].core().unwrap().promised()
    }
}

#[test]
fn a_prepare_counts_only_after_the_founding_document() {
    let mut scene = Scene::founded();
    for _ in 0..200 {
        scene.say(&Message::Prepare { ballot: HIGH, from: Slot(1), released: Ballot::ZERO });
        scene.turn();
        assert!(scene.promised() < HIGH, "a stranger's Prepare was answered");
    }
    let document = scene.genesis.clone().unwrap();
    scene.until("the member's Prepare is answered", |scene| {
        scene.say(&Message::Genesis { document: document.clone() });
        scene.say(&Message::Prepare { ballot: HIGH, from: Slot(1), released: Ballot::ZERO });
        scene.promised() == HIGH
    });
}

#[test]
fn a_record_counts_only_after_the_founding_document() {
    let mut scene = Scene::founded();
    for _ in 0..200 {
        scene.ship();
        scene.turn();
        assert!(scene.promised() < HIGH, "a stranger's record was accepted");
    }
    let document = scene.genesis.clone().unwrap();
    scene.until("the member's record is accepted", |scene| {
        scene.say(&Message::Genesis { document: document.clone() });
        scene.ship();
        scene.promised() == HIGH
    });
}
