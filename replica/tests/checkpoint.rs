//! Checkpoints end to end, over the in-memory transport: taken, trimmed behind, restored from, and
//! sent to replicas that no log helps.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::BytesMut;
use quorate_consensus::{NodeId, RoleName, Slot};
use quorate_pmem_log::{MediumKind, open_medium};
use quorate_replica::{
    CheckpointView, Consistency, Context, Failure, Handle, Node, NodeOptions, Notification, Reason,
    Runner, StateMachine,
};
use quorate_rig::{Start, until};
use quorate_transport::memory::MemoryNetwork;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Appends each command to a list; a query gives the list.
#[derive(Default)]
struct Appender(Arc<Vec<u8>>);

struct View(Arc<Vec<u8>>, usize);

impl CheckpointView for View {
    fn next_piece(&mut self, out: &mut BytesMut) -> bool {
        let end = self.0.len().min(self.1 + 1000);
        out.extend_from_slice(&self.0[self.1..end]);
        self.1 = end;
        end < self.0.len()
    }
}

impl StateMachine for Appender {
    fn apply(&mut self, _: &Context, command: &[u8], reply: &mut BytesMut) {
        let list = Arc::make_mut(&mut self.0);
        list.extend_from_slice(command);
        list.push(b' ');
        reply.extend_from_slice(list.len().to_string().as_bytes());
    }

    fn query(&self, _: &Context, _: &[u8], reply: &mut BytesMut) {
        reply.extend_from_slice(&self.0);
    }

    fn checkpoint(&self) -> Option<Box<dyn CheckpointView>> {
        Some(Box::new(View(Arc::clone(&self.0), 0)))
    }

    fn restore(&mut self, image: &mut dyn Read) -> io::Result<()> {
        let mut list = Vec::new();
        image.read_to_end(&mut list)?;
        self.0 = Arc::new(list);
        Ok(())
    }
}

/// The same without checkpoints, as machines were written before there were any.
#[derive(Default)]
struct Old(Appender);

impl StateMachine for Old {
    fn apply(&mut self, context: &Context, command: &[u8], reply: &mut BytesMut) {
        self.0.apply(context, command, reply);
    }

    fn query(&self, context: &Context, query: &[u8], reply: &mut BytesMut) {
        self.0.query(context, query, reply);
    }
}

struct Cluster {
    network: MemoryNetwork,
    home: tempfile::TempDir,
    adjust: fn(&mut NodeOptions),
}

impl Cluster {
    fn new(seed: u64, adjust: fn(&mut NodeOptions)) -> Self {
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { network: MemoryNetwork::new(seed), home, adjust }
    }

    fn directory(&self, node: u16) -> PathBuf {
        self.home.path().join(node.to_string())
    }

    fn start(&self, node: u16) -> Runner {
        self.start_with(node, Appender::default())
    }

    fn start_with(&self, node: u16, machine: impl StateMachine + 'static) -> Runner {
        Runner::start(self.node(node, machine), Duration::ZERO).unwrap()
    }

    fn node(&self, node: u16, machine: impl StateMachine + 'static) -> Node {
        let mut start = Start::at_random(NodeId(node));
        start.medium = open_medium(MediumKind::Emulated, &self.directory(node)).unwrap();
        start.segment_bytes = 64 << 10;
        let options = &mut start.options;
        options.command_bytes_max = 8 << 10;
        options.batch_bytes_max = 8 << 10;
        options.cache_bytes_max = 16 << 10;
        options.checkpoint_log_bytes = 0;
        options.log_tail_bytes = 0;
        options.checkpoint_bytes_per_second = 0;
        (self.adjust)(options);
        start.node_in(&self.network, machine)
    }
}

/// Proposes commands one after the other, each in a slot of its own.
fn write(handle: &Handle, from: usize, to: usize) {
    for number in from..to {
        handle.propose(format!("command-{number:05}").as_bytes()).wait().unwrap();
    }
}

fn expected(to: usize) -> String {
    (0..to).map(|number| format!("command-{number:05} ")).collect()
}

fn read(handle: &Handle) -> String {
    let bytes = handle.query(b"", Consistency::Linearizable).wait().unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn stop(replica: &mut Runner) {
    let handle = replica.handle();
    replica.stop();
    assert!(handle.is_stopped());
}

// Rules K1, K3, K7.
#[test]
fn a_checkpoint_gives_the_state_that_a_replay_gives() {
    let cluster = Cluster::new(1, |_| {});
    let mut replicas: Vec<_> = (1..=3).map(|node| cluster.start(node)).collect();
    write(&replicas[0].handle(), 0, 300);
    let taken = replicas[0].handle().checkpoint().wait().unwrap();
    assert!(taken.bytes > expected(300).len() as u64, "{taken:?}");
    assert_eq!(replicas[0].handle().checkpoint().wait().unwrap(), taken, "nothing is new");
    write(&replicas[1].handle(), 300, 400);
    replicas.iter_mut().for_each(stop);
    let replicas: Vec<_> = (1..=3).map(|node| cluster.start(node)).collect();
    for replica in &replicas {
        assert_eq!(read(&replica.handle()), expected(400));
    }
    let restored = replicas[0].handle().status().checkpoints;
    assert_eq!((restored.kept, restored.newest_slot), (1, taken.slot));
    assert_eq!(replicas[1].handle().status().checkpoints.kept, 0, "replayed from the log");
    // I14: the one that was restored and those that replayed agree in all that was replicated.
    write(&replicas[2].handle(), 400, 410);
    until("equal digests at equal slots", || {
        let status: Vec<_> = replicas.iter().map(|replica| replica.handle().status()).collect();
        status
            .iter()
            .all(|one| (one.applied_slot, one.digest) == (status[0].applied_slot, status[0].digest))
            && status[0].applied_slot > taken.slot
    });
}

/// Small segments, a checkpoint each 100 slots: the logs of the living are trimmed soon.
fn often(options: &mut NodeOptions) {
    options.checkpoint_slots = 100;
}

fn trimmed_beyond(replica: &Runner, slot: u64) -> bool {
    replica.handle().status().checkpoints.log_first > Slot(slot)
}

// Rules K5, K6.
#[test]
fn a_dead_replica_keeps_no_log_and_comes_back_by_a_checkpoint_in_process() {
    let cluster = Cluster::new(2, often);
    let mut replicas: Vec<_> = (1..=3).map(|node| cluster.start(node)).collect();
    write(&replicas[0].handle(), 0, 50);
    until("all have it", || replicas[2].handle().status().applied_slot >= Slot(50));
    stop(&mut replicas[2]);
    let mut written = 50;
    // Where the processor is busy a checkpoint takes long, and more is written meanwhile: the next ones
    // make up for it.
    until("both logs are trimmed, and little of one is left", || {
        write(&replicas[0].handle(), written, written + 50);
        written += 50;
        let left = replicas[0].handle().status().checkpoints.log_disk_bytes;
        replicas[..2].iter().all(|replica| trimmed_beyond(replica, 200)) && left <= 8 * (64 << 10)
    });
    let mut told = replicas[0].handle().subscribe();
    write(&replicas[0].handle(), written, written + 1);
    written += 1;
    let taken = replicas[0].handle().checkpoint().wait().unwrap();
    let mut said = Vec::new();
    until("its subscriber is told", || {
        said.extend(std::iter::from_fn(|| told.try_recv().ok()));
        said.contains(&Notification::CheckpointTaken(taken.slot))
    });
    let third = cluster.node(3, Appender::default());
    let handle = third.handle();
    let mut told = handle.subscribe();
    replicas[2] = Runner::start(third, Duration::ZERO).unwrap();
    let mut said = Vec::new();
    until("a checkpoint arrives, is restored from, and its subscriber is told", || {
        said.extend(std::iter::from_fn(|| told.try_recv().ok()));
        let received = said.iter().find_map(|news| match news {
            Notification::CheckpointReceived(slot) => Some(*slot),
            _ => None,
        });
        received.is_some_and(|slot| said.contains(&Notification::Restored(slot)))
    });
    until("the status tells", || handle.status().checkpoints.received > 0);
    assert_eq!(read(&handle), expected(written));
    until("it votes", || handle.status().votes);
    // It goes on like any other: with one of the others gone it is needed for each commit.
    stop(&mut replicas[1]);
    write(&handle, written, written + 50);
    assert_eq!(read(&replicas[0].handle()), expected(written + 50));
    // And after its own restart: what it had accepted before the checkpoint is not used again.
    stop(&mut replicas[2]);
    replicas[2] = cluster.start(3);
    assert_eq!(read(&replicas[2].handle()), expected(written + 50));
}

#[test]
fn a_wiped_replica_comes_back_by_a_checkpoint_and_does_not_vote() {
    let cluster = Cluster::new(3, often);
    let mut replicas: Vec<_> = (1..=3).map(|node| cluster.start(node)).collect();
    let mut written = 0;
    until("the logs are trimmed", || {
        write(&replicas[0].handle(), written, written + 50);
        written += 50;
        replicas[..2].iter().all(|replica| trimmed_beyond(replica, 50))
    });
    stop(&mut replicas[2]);
    std::fs::remove_dir_all(cluster.directory(3)).unwrap();
    replicas[2] = cluster.start(3);
    let handle = replicas[2].handle();
    assert_eq!(read(&handle), expected(written));
    until("the status tells", || handle.status().checkpoints.received > 0);
    assert!(!handle.status().votes);
    write(&handle, written, written + 10);
    assert_eq!(read(&replicas[1].handle()), expected(written + 10));
}

/// Changes a byte of the first block of a checkpoint.
fn damage(directory: &Path, slot: Slot) {
    let path = directory.join(format!("checkpoint-{:016x}-00000000", slot.0));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

// Rules K2, K7.
#[test]
fn a_bad_checkpoint_falls_back_to_the_one_before_and_then_to_a_peer() {
    let cluster = Cluster::new(4, |_| {});
    let mut replicas: Vec<_> = (1..=3).map(|node| cluster.start(node)).collect();
    let mut taken = Vec::new();
    for round in 0..3 {
        // Three segments of the log each time.
        write(&replicas[0].handle(), round * 1000, round * 1000 + 1000);
        for replica in &replicas {
            taken.push(replica.handle().checkpoint().wait().unwrap().slot);
        }
    }
    let newest = |node: usize, back: usize| taken[6 - 3 * back + node];
    stop(&mut replicas[0]);
    damage(&cluster.directory(1), newest(0, 0));
    replicas[0] = cluster.start(1);
    assert_eq!(read(&replicas[0].handle()), expected(3000));
    let handle = replicas[0].handle();
    until("the status tells", || handle.status().checkpoints.bad == 1);
    let status = handle.status();
    assert_eq!((status.checkpoints.received, status.votes), (0, true));
    // Both of them: the log does not reach back to the beginning any more.
    stop(&mut replicas[1]);
    damage(&cluster.directory(2), newest(1, 0));
    damage(&cluster.directory(2), newest(1, 1));
    replicas[1] = cluster.start(2);
    assert_eq!(read(&replicas[1].handle()), expected(3000));
    until("the status tells", || replicas[1].handle().status().checkpoints.received == 1);
}

#[test]
fn a_machine_without_checkpoints_works_as_before() {
    let cluster = Cluster::new(5, often);
    let mut replicas: Vec<_> =
        (1..=3).map(|node| cluster.start_with(node, Old::default())).collect();
    write(&replicas[0].handle(), 0, 250);
    let refused = replicas[0].handle().checkpoint().wait();
    assert_eq!(refused, Err(Failure::Rejected(Reason::NoCheckpoints)));
    let status = replicas[0].handle().status().checkpoints;
    assert!(!status.supported && status.log_first == Slot(1), "{status:?}");
    stop(&mut replicas[2]);
    replicas[2] = cluster.start_with(3, Old::default());
    assert_eq!(read(&replicas[2].handle()), expected(250));
}

#[test]
fn a_command_that_a_checkpoint_covers_is_answered_and_not_applied_again() {
    let patient = |options: &mut NodeOptions| {
        often(options);
        options.request_timeout = Duration::from_secs(30);
    };
    let cluster = Cluster::new(6, patient);
    let replicas: Vec<_> = (1..=3).map(|node| cluster.start(node)).collect();
    write(&replicas[0].handle(), 0, 50);
    let leads = |replica: &Runner| replica.handle().status().role == RoleName::Leader;
    until("a leader", || replicas.iter().any(leads));
    let mut replicas = replicas;
    replicas.sort_by_key(|replica| !leads(replica));
    let handle = replicas[2].handle();
    let nodes: Vec<_> = replicas.iter().map(|replica| replica.handle().status().node).collect();
    // A follower hears nothing more, and is heard: what it forwards is chosen, and it learns of it by
    // a checkpoint only.
    cluster.network.stall(nodes[0], nodes[2]);
    cluster.network.stall(nodes[1], nodes[2]);
    let pending = handle.propose(b"command-00050");
    until("it is applied elsewhere", || read(&replicas[0].handle()) == expected(51));
    cluster.network.isolate(&nodes[2..]);
    let mut written = 51;
    until("the logs are trimmed", || {
        write(&replicas[0].handle(), written, written + 50);
        written += 50;
        replicas[..2].iter().all(|replica| trimmed_beyond(replica, 200))
    });
    cluster.network.heal_all();
    let reply = pending.wait().unwrap();
    assert_eq!(reply, expected(51).len().to_string());
    until("the status tells", || handle.status().checkpoints.received == 1);
    assert_eq!(read(&handle), expected(written));
}
