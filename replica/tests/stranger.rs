//! Nobody is listened to before it showed the founding document of our cluster (rule F6).
//!
//! Two replicas are driven by hand; the test plays the third member with a bare transport, so that it
//! can say and write what no replica would.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::{Bytes, BytesMut};
use quorate_consensus::{Ballot, Incarnation, Message, Nanos, NodeId, Slot, Value};
use quorate_rig::machines::Nothing;
use quorate_rig::{Driven, Start, Turns, peers_of};
use quorate_transport::memory::{MemoryNetwork, MemoryTransport};
use quorate_transport::ring::RingWriter;
use quorate_transport::row::ROW_BYTES;
use quorate_transport::{Event, Lane, RegionId, Transport, codec};

const RING_BYTES: usize = 1 << 20;
const STRANGER: NodeId = NodeId(3);
const HIGH: Ballot = Ballot { round: 1_000, node: STRANGER };

/// Ten simulated seconds.
const MANY_TURNS: usize = 100_000;

struct Scene {
    driven: Driven,
    stranger: MemoryTransport,
    ring: RingWriter,
    data_up: bool,
    genesis: Option<Bytes>,
}

impl Turns for Scene {
    fn turn(&mut self) {
        self.driven.turn();
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
}

impl Scene {
    /// A cluster of three that was founded, of which the third says nothing any more.
    fn founded() -> Self {
        let network = MemoryNetwork::new(5);
        let nodes = [NodeId(1), NodeId(2)].map(|node| {
            let mut start = Start::of(node);
            start.options.ring_bytes = RING_BYTES;
            start.node_in(&network, Nothing)
        });
        let driven = Driven::new(nodes, Nanos(100_000));
        let mut stranger = network.endpoint(STRANGER, &peers_of(STRANGER));
        for peer in peers_of(STRANGER) {
            for (region, bytes) in
                [(RegionId::inbox(peer), RING_BYTES), (RegionId::row(peer), ROW_BYTES)]
            {
                stranger.register(region, bytes).unwrap();
                stranger.grant(region, peer).unwrap();
            }
        }
        let ring = RingWriter::new(RegionId::inbox(STRANGER), RING_BYTES);
        let mut scene = Self { driven, stranger, ring, data_up: false, genesis: None };
        scene.within(MANY_TURNS, "founded, and the lanes up", |scene| {
            scene.say(&Message::Fresh { incarnation: Incarnation(103) });
            scene.genesis.is_some() && scene.data_up && scene.driven.node(0).core().is_some()
        });
        scene
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
        self.driven.core(0).promised()
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
    scene.within(MANY_TURNS, "the member's Prepare is answered", |scene| {
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
    scene.within(MANY_TURNS, "the member's record is accepted", |scene| {
        scene.say(&Message::Genesis { document: document.clone() });
        scene.ship();
        scene.promised() == HIGH
    });
}
