//! Who takes part holds the founding document durably, and so does who passes it on (rule F3).
//!
//! Three replicas are driven by hand; the superblock of one of them, where the document stands, does not
//! become durable.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::BytesMut;
use quorate_consensus::{Incarnation, Nanos, NodeId};
use quorate_pmem_log::{Area, Log, LogOptions, MappedMedium, Medium, MediumKind, Profile};
use quorate_replica::{Clock, Context, Node, NodeOptions, StateMachine};
use quorate_transport::memory::MemoryNetwork;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Founding needs a few of them.
const MANY_TURNS: usize = 20_000;

struct Nothing;

impl StateMachine for Nothing {
    fn apply(&mut self, _: &Context, _: &[u8], _: &mut BytesMut) {}
    fn query(&self, _: &Context, _: &[u8], _: &mut BytesMut) {}
}

/// Memory whose superblock can be told not to become durable.
#[derive(Debug)]
struct Disk {
    memory: MappedMedium,
    fails: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Superblock {
    area: Arc<dyn Area>,
    fails: Arc<AtomicBool>,
}

impl Disk {
    fn new() -> Arc<Self> {
        Arc::new(Self { memory: MappedMedium::memory(), fails: Arc::default() })
    }

    fn watched(&self, name: &str, area: Arc<dyn Area>) -> Arc<dyn Area> {
        if name.starts_with("superblock") {
            Arc::new(Superblock { area, fails: Arc::clone(&self.fails) })
        } else {
            area
        }
    }
}

impl Medium for Disk {
    fn profile(&self) -> Profile {
        self.memory.profile()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.memory.path(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.memory.names()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Area>> {
        Ok(self.watched(name, self.memory.open(name)?))
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn Area>> {
        Ok(self.watched(name, self.memory.create(name, bytes)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.memory.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.memory.remove(name)
    }
}

impl Area for Superblock {
    fn bytes(&self) -> u64 {
        self.area.bytes()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.area.read(offset, into)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.area.write(offset, bytes)
    }

    fn persist(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(io::Error::other("the superblock does not become durable"));
        }
        self.area.persist(offset, bytes)
    }
}

struct Scene {
    network: MemoryNetwork,
    disks: [Arc<Disk>; 3],
    nodes: Vec<Option<Node>>,
    now: Nanos,
}

impl Scene {
    /// Three that are fresh; what is written to the superblock of `broken` from now on is not durable.
    fn fresh(broken: usize) -> Self {
        let network = MemoryNetwork::new(7);
        let disks = [Disk::new(), Disk::new(), Disk::new()];
        let nodes = vec![None, None, None];
        let mut scene = Self { network, disks, nodes, now: Nanos(0) };
        for index in 0..3 {
            scene.start(index);
        }
        scene.disks[broken].fails.store(true, Ordering::Relaxed);
        scene
    }

    fn start(&mut self, index: usize) {
        let members: Vec<NodeId> = (1..=3).map(NodeId).collect();
        let node = members[index];
        let options = LogOptions {
            directory: "".into(),
            medium: MediumKind::Memory,
            node,
            segment_bytes: 16 << 20,
        };
        let medium = Arc::clone(&self.disks[index]) as Arc<dyn Medium>;
        let incarnation = Incarnation(100 + u64::from(node.0));
        let (log, recovered) =
            Log::open_on(medium, &options, incarnation, Arc::new(|| {})).unwrap();
        let mut options = NodeOptions::new(node, members.clone(), u64::from(node.0));
        options.ring_bytes = 1 << 20;
        options.command_bytes_max = 512 << 10;
        let peers: Vec<NodeId> = members.into_iter().filter(|peer| *peer != node).collect();
        let transport = Box::new(self.network.endpoint(node, &peers));
        let node = Node::new(options, transport, log, recovered, Box::new(Nothing)).unwrap();
        self.nodes[index] = Some(node);
    }

    fn turn(&mut self) {
        self.now = self.now + Nanos(100_000);
        for node in self.nodes.iter_mut().flatten() {
            node.step(Clock { now: self.now, wall_ms: 1 });
        }
    }

    fn node(&self, index: usize) -> &Node {
        self.nodes[index].as_ref().unwrap()
    }

    fn takes_part(&self, index: usize) -> bool {
        self.node(index).core().is_some()
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..MANY_TURNS {
            if holds(self) {
                return;
            }
            self.turn();
        }
        panic!("not within {MANY_TURNS} turns: {what}");
    }
}

// Rule F3.
#[test]
fn a_document_that_its_writer_does_not_hold_durably_founds_nothing() {
    let mut scene = Scene::fresh(0);
    for _ in 0..MANY_TURNS {
        scene.turn();
        for index in 0..3 {
            assert!(!scene.takes_part(index), "replica {} takes part", index + 1);
            assert_eq!(scene.node(index).status().cluster, None);
        }
    }
    let trouble = scene.node(0).status().trouble;
    assert!(trouble.contains("does not become durable"), "{trouble}");
    // With a disk that works again it founds the cluster.
    scene.nodes[0] = None;
    scene.disks[0].fails.store(false, Ordering::Relaxed);
    scene.start(0);
    scene.until("all take part", |scene| (0..3).all(|index| scene.takes_part(index)));
    let clusters: Vec<_> = (0..3).map(|index| scene.node(index).status().cluster).collect();
    assert!(clusters[0].is_some() && clusters.iter().all(|it| *it == clusters[0]), "{clusters:?}");
}

// Rule F3.
#[test]
fn a_member_that_does_not_hold_the_document_durably_does_not_take_part() {
    let mut scene = Scene::fresh(2);
    scene.until("the two others elect", |scene| {
        (0..2).any(|index| scene.node(index).status().leader.is_some())
    });
    for _ in 0..MANY_TURNS {
        scene.turn();
        assert!(!scene.takes_part(2), "it takes part");
    }
    let trouble = scene.node(2).status().trouble;
    assert!(trouble.contains("does not become durable"), "{trouble}");
    scene.nodes[2] = None;
    scene.disks[2].fails.store(false, Ordering::Relaxed);
    scene.start(2);
    scene.until("it takes part", |scene| scene.takes_part(2));
    assert_eq!(scene.node(2).status().cluster, scene.node(0).status().cluster);
}
