//! Who takes part holds the founding document durably, and so does who passes it on (rule F3).
//!
//! Three replicas are driven by hand; the superblock of one of them, where the document stands, does not
//! become durable.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quorate_consensus::Nanos;
use quorate_pmem_log::{Area, MappedMedium, Medium, Profile};
use quorate_replica::Node;
use quorate_rig::machines::Nothing;
use quorate_rig::{Driven, Start, Turns, members};
use quorate_transport::memory::MemoryNetwork;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Founding needs a few of them.
const MANY_TURNS: usize = 20_000;

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
    driven: Driven,
}

impl Turns for Scene {
    fn turn(&mut self) {
        self.driven.turn();
    }
}

impl Scene {
    /// Three that are fresh; what is written to the superblock of `broken` from now on is not durable.
    fn fresh(broken: usize) -> Self {
        let network = MemoryNetwork::new(7);
        let disks = [Disk::new(), Disk::new(), Disk::new()];
        let mut scene = Self { network, disks, driven: Driven::new([], Nanos(100_000)) };
        scene.driven.nodes = (0..3).map(|index| Some(scene.start(index))).collect();
        scene.disks[broken].fails.store(true, Ordering::Relaxed);
        scene
    }

    fn start(&self, index: usize) -> Node {
        let mut start = Start::of(members()[index]);
        start.medium = Arc::clone(&self.disks[index]) as Arc<dyn Medium>;
        start.node_in(&self.network, Nothing)
    }

    /// It is started again, on a disk that works.
    fn start_again(&mut self, index: usize) {
        self.driven.nodes[index] = None;
        self.disks[index].fails.store(false, Ordering::Relaxed);
        self.driven.nodes[index] = Some(self.start(index));
    }

    fn node(&self, index: usize) -> &Node {
        self.driven.node(index)
    }

    fn takes_part(&self, index: usize) -> bool {
        self.node(index).core().is_some()
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
    scene.start_again(0);
    scene.within(MANY_TURNS, "all take part", |scene| (0..3).all(|index| scene.takes_part(index)));
    let clusters: Vec<_> = (0..3).map(|index| scene.node(index).status().cluster).collect();
    assert!(clusters[0].is_some() && clusters.iter().all(|it| *it == clusters[0]), "{clusters:?}");
}

// Rule F3.
#[test]
fn a_member_that_does_not_hold_the_document_durably_does_not_take_part() {
    let mut scene = Scene::fresh(2);
    scene.within(MANY_TURNS, "the two others elect", |scene| {
        (0..2).any(|index| scene.node(index).status().leader.is_some())
    });
    for _ in 0..MANY_TURNS {
        scene.turn();
        assert!(!scene.takes_part(2), "it takes part");
    }
    let trouble = scene.node(2).status().trouble;
    assert!(trouble.contains("does not become durable"), "{trouble}");
    scene.start_again(2);
    scene.within(MANY_TURNS, "it takes part", |scene| scene.takes_part(2));
    assert_eq!(scene.node(2).status().cluster, scene.node(0).status().cluster);
}
