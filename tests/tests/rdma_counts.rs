//! What one committed batch costs by RDMA, in the steady state of three replicas: counted on the
//! fake device, exactly, so that a request or a copy more is noticed.
//!
//! The replicas are driven by hand on this thread; between two of them stands a transport that counts
//! what goes through it and what the one below did of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake_device;

use bytes::{Bytes, BytesMut};
use quorate_consensus::batch::put_item;
use quorate_consensus::{Nanos, NodeId};
use quorate_ffi::fake::Fabric;
use quorate_replica::NodeOptions;
use quorate_rig::machines::Counter;
use quorate_rig::{Driven, Turns};
use quorate_transport::{
    Event, LinkStatus, OpNumber, PostError, RegionError, RegionId, Transport, Wake,
};
use quorate_transport_rdma::{RdmaTransport, Statistics};
use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What went through one transport.
#[derive(Clone, Copy, Default, Debug)]
struct Seen {
    records: u64,
    rows: u64,
    messages: u64,
    allocations: u64,
    /// Copied out of rings.
    copied_out: u64,
    below: Statistics,
}

#[derive(Debug)]
struct Counting {
    below: RdmaTransport,
    seen: Arc<Mutex<Seen>>,
    copied_out: RefCell<u64>,
}

impl Counting {
    fn counted<T>(&mut self, act: impl FnOnce(&mut RdmaTransport) -> T) -> T {
        let mut result = None;
        let below = &mut self.below;
        let info = allocation_counter::measure(|| result = Some(act(below)));
        let mut seen = self.seen.lock().unwrap();
        seen.allocations += info.count_total;
        seen.below = self.below.statistics();
        seen.copied_out = *self.copied_out.borrow();
        result.unwrap()
    }
}

impl Transport for Counting {
    fn local(&self) -> NodeId {
        self.below.local()
    }

    fn peers(&self) -> Vec<NodeId> {
        self.below.peers()
    }

    fn register(&mut self, region: RegionId, length: usize) -> Result<(), RegionError> {
        self.below.register(region, length)
    }

    fn grant(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        self.below.grant(region, peer)
    }

    fn revoke(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        self.below.revoke(region, peer)
    }

    fn grant_for_life(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        self.below.grant_for_life(region, peer)
    }

    fn copy_out(&self, region: RegionId, offset: usize, into: &mut [u8]) {
        // Looks at the header of what may be next are no copies of anything.
        if region.0 < RegionId::row(NodeId(0)).0 && into.len() > 64 {
            *self.copied_out.borrow_mut() += into.len() as u64;
        }
        self.below.copy_out(region, offset, into);
    }

    fn load(&self, region: RegionId, offset: usize) -> u64 {
        self.below.load(region, offset)
    }

    fn write(
        &mut self,
        peer: NodeId,
        region: RegionId,
        offset: usize,
        pieces: &[Bytes],
    ) -> Result<OpNumber, PostError> {
        {
            let mut seen = self.seen.lock().unwrap();
            if region == RegionId::row(self.below.local()) {
                seen.rows += 1;
            } else {
                seen.records += 1;
            }
        }
        self.counted(|below| below.write(peer, region, offset, pieces))
    }

    fn send(&mut self, peer: NodeId, message: Bytes) -> Result<(), PostError> {
        self.seen.lock().unwrap().messages += 1;
        self.below.send(peer, message)
    }

    fn flush(&mut self) {
        self.counted(Transport::flush);
    }

    fn poll(&mut self, events: &mut Vec<Event>) {
        self.counted(|below| below.poll(events));
    }

    fn park(&mut self, timeout: Duration) {
        self.below.park(timeout);
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.below.waker()
    }

    fn hints(&self) -> bool {
        self.below.hints()
    }

    fn reset(&mut self, peer: NodeId, reason: &str) {
        self.below.reset(peer, reason);
    }

    fn status(&self, peer: NodeId) -> LinkStatus {
        self.below.status(peer)
    }
}

struct Cluster {
    driven: Driven,
    seen: Vec<Arc<Mutex<Seen>>>,
}

impl Cluster {
    fn start(fabric: &'static Fabric, passive: bool) -> Self {
        let mut seen = Vec::new();
        let set = |options: &mut NodeOptions| {
            options.ring_bytes = RING_BYTES;
            options.passive = passive;
        };
        let counting = |below| {
            let counts = Arc::new(Mutex::new(Seen::default()));
            seen.push(Arc::clone(&counts));
            Counting { below, seen: counts, copied_out: RefCell::new(0) }
        };
        let driven = fake_device::three(fabric, set, counting, Counter::default);
        Self { driven, seen }
    }

    fn applied(&self) -> u64 {
        let core = |at: usize| self.driven.node(at).core();
        let applied = (0..3).map(|at| core(at).map_or(0, |core| core.applied_slot().0));
        applied.min().unwrap_or(0)
    }

    /// A batch of one command in each turn, as under load: the next record tells what is chosen. Time
    /// hardly moves, so that no heartbeat is due.
    fn commit(&mut self, leader: usize, command: &Bytes, batches: u64) {
        let handle = self.driven.node(leader).handle();
        let goal = self.applied() + batches;
        self.driven.step = Nanos(100);
        let mut pending = Vec::new();
        for _ in 0..batches {
            pending.push(handle.propose_items(1, command.clone()));
            self.driven.turn();
        }
        self.within(10_000, "every command is applied", |cluster| cluster.applied() >= goal);
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.iter().map(|seen| *seen.lock().unwrap()).collect()
    }
}

impl Turns for Cluster {
    fn turn(&mut self) {
        self.driven.turn();
    }
}

const BATCHES: u64 = 200;
const RING_BYTES: usize = 4 << 20;
/// What all batches of the larger kind take of a ring.
const BYTES_MAX: u64 = BATCHES * 20_256;

#[test]
fn a_batch_is_one_write_to_each_follower_and_one_row_back() {
    counted(Fabric::new(11), false);
}

#[test]
fn passive_followers_take_the_same_and_no_follower_has_to_move() {
    let fabric = Fabric::new(12);
    let (mut cluster, leader) = counted(fabric, true);
    let commit = |cluster: &Cluster| cluster.driven.core(leader).commit_slot();
    let last = |cluster: &Cluster| cluster.driven.core(leader).last_slot();
    cluster.driven.step = Nanos(50_000);
    cluster.until("all is chosen and applied", |cluster| {
        commit(cluster) == last(cluster) && cluster.applied() == last(cluster).0
    });
    // Nobody but the leader takes a turn from now on, and its commands are chosen.
    let before = commit(&cluster);
    let handle = cluster.driven.node(leader).handle();
    let mut command = BytesMut::new();
    put_item(&mut command, &[7; 64]);
    let command = command.freeze();
    let pending: Vec<_> = (0..10).map(|_| handle.propose_items(1, command.clone())).collect();
    let followers: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    cluster.driven.keep_still(&followers);
    cluster.driven.step = Nanos(100);
    let mut turns = 0;
    cluster.within(100, "a completed write is a vote", |cluster| {
        turns += 1;
        commit(cluster) > before
    });
    println!("{} turns of the leader from proposal to choice", turns - 1);
    drop(pending);
    // The others come to know of it.
    cluster.driven.keep_still(&[]);
    cluster.driven.step = Nanos(50_000);
    let goal = commit(&cluster).0;
    cluster.until("the others know of it", |cluster| cluster.applied() >= goal);
}

/// Counts a load of two sizes.
fn counted(fabric: &'static Fabric, passive: bool) -> (Cluster, usize) {
    let mut cluster = Cluster::start(fabric, passive);
    let leader = cluster.driven.leader().unwrap();
    for value_bytes in [64usize, 20_000] {
        let mut command = BytesMut::new();
        put_item(&mut command, &vec![7; value_bytes]);
        let command = command.freeze();
        // Buffers grow to their sizes, and the peers learn that nobody sleeps.
        cluster.commit(leader, &command, 400);
        let (before, device_before) = (cluster.seen(), fabric.counts());
        cluster.commit(leader, &command, BATCHES);
        let (after, device_after) = (cluster.seen(), fabric.counts());
        let mut total = 0;
        for (node, (before, after)) in before.iter().zip(&after).enumerate() {
            let per_batch =
                |count: fn(&Seen) -> u64| (count(after) - count(before)) as f64 / BATCHES as f64;
            let records = per_batch(|seen| seen.records);
            let rows = per_batch(|seen| seen.rows);
            let requests = per_batch(|seen| seen.below.writes);
            // Where this machine paused, the lanes were quiet long enough for a look at the pulse.
            let doorbells = per_batch(|seen| seen.below.doorbells - seen.below.beats);
            let staged = per_batch(|seen| seen.below.staged_bytes);
            let copied = per_batch(|seen| seen.copied_out);
            println!(
                "{value_bytes} bytes, replica {}{}: {records} records, {rows} rows, {requests} work \
                 requests, {doorbells} doorbells, {staged} bytes staged, {copied} copied out, {} \
                 messages, {} allocations in {BATCHES} batches",
                node + 1,
                if node == leader { " (leads)" } else { "" },
                after.messages - before.messages,
                after.allocations - before.allocations,
            );
            assert_eq!(after.allocations, before.allocations, "the transport allocates");
            assert_eq!(after.messages, before.messages, "a batch needs no message");
            assert_eq!(after.below.bells, before.below.bells, "nobody sleeps");
            total += after.below.writes - before.below.writes;
            if node == leader {
                // At the end of its memory a ring is padded, by a write of 64 bytes.
                let laps = if value_bytes < 512 { 0 } else { BYTES_MAX / RING_BYTES as u64 + 1 };
                let writes = after.records - before.records;
                assert!(writes >= 2 * BATCHES, "one to each follower: {writes}");
                assert!(writes <= 2 * (BATCHES + laps), "{writes} writes");
                assert_eq!(after.below.writes - before.below.writes, writes, "one request each");
                assert_eq!(after.rows, before.rows, "the next record tells what is chosen");
                assert!(doorbells <= 2.0, "one doorbell to each follower");
                // Headers differ from follower to follower; the payload is staged once for both.
                let headers = 2.0 * 256.0;
                let once = if value_bytes > 512 { value_bytes as f64 + headers } else { 0.0 };
                assert!(staged <= once, "{staged} bytes staged");
            } else {
                assert_eq!(after.records, before.records, "a follower ships nothing");
                assert_eq!(after.rows - before.rows, BATCHES, "one row back");
                assert!(doorbells <= 1.0, "one doorbell a batch");
                assert!(copied <= (value_bytes + 256) as f64, "copied out once: {copied}");
            }
        }
        // The device saw the same, and nothing besides.
        assert_eq!(device_after.writes - device_before.writes, total);
        assert_eq!(device_after.immediates, device_before.immediates);
        let counts =
            cluster.driven.node(leader).status().peers.iter().filter(|peer| peer.passive).count();
        assert_eq!(counts, if passive { 2 } else { 0 }, "whose completed writes are votes");
    }
    (cluster, leader)
}
