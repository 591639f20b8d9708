//! Three replicas in one process, over the in-memory transport: the loop and the core together.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::BytesMut;
use quorate_consensus::{NodeId, RoleName, Slot};
use quorate_pmem_log::{Boot, MappedMedium, Medium, MediumKind, open_medium};
use quorate_replica::{
    Consistency, Context, Failure, Handle, MayLead, NodeOptions, Notification, Reason, Runner,
    StateMachine, StateReader,
};
use quorate_rig::{Start, until};
use quorate_transport::memory::MemoryNetwork;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

/// Appends each command to a list; a query gives the list.
#[derive(Default)]
struct Appender(Arc<RwLock<Vec<u8>>>);

struct Reader(Arc<RwLock<Vec<u8>>>);

impl StateReader for Reader {
    fn query(&self, _: &Context, _: &[u8], reply: &mut BytesMut) -> bool {
        reply.extend_from_slice(&self.0.read().unwrap());
        true
    }
}

impl StateMachine for Appender {
    fn apply(&mut self, _: &Context, command: &[u8], reply: &mut BytesMut) {
        let mut list = self.0.write().unwrap();
        list.extend_from_slice(command);
        list.push(b' ');
        reply.extend_from_slice(list.len().to_string().as_bytes());
    }

    fn query(&self, _: &Context, _: &[u8], reply: &mut BytesMut) {
        reply.extend_from_slice(&self.0.read().unwrap());
    }

    fn reader(&self) -> Option<Arc<dyn StateReader>> {
        Some(Arc::new(Reader(Arc::clone(&self.0))))
    }
}

fn start(network: &MemoryNetwork, node: u16, medium: MediumKind, directory: &Path) -> Runner {
    start_on(network, node, open_medium(medium, &directory.join(node.to_string())).unwrap())
}

fn memory(directory: &Path, node: u16) -> Arc<dyn Medium> {
    open_medium(MediumKind::Memory, &directory.join(node.to_string())).unwrap()
}

fn start_on(network: &MemoryNetwork, node: u16, medium: Arc<dyn Medium>) -> Runner {
    start_with(network, node, medium, |_| ())
}

fn start_with(
    network: &MemoryNetwork,
    node: u16,
    medium: Arc<dyn Medium>,
    set: impl FnOnce(&mut NodeOptions),
) -> Runner {
    let mut start = Start::at_random(NodeId(node));
    start.medium = medium;
    set(&mut start.options);
    let node = start.node_in(network, Appender::default());
    Runner::start(node, Duration::ZERO).unwrap()
}

fn leader(replicas: &[Runner]) -> Option<usize> {
    replicas.iter().position(|replica| replica.handle().status().role == RoleName::Leader)
}

fn read(handle: &Handle) -> String {
    let bytes = handle.query(b"", Consistency::Linearizable).wait().unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn commands_from_every_replica_are_applied_everywhere_in_one_order() {
    let network = MemoryNetwork::new(1);
    let directory = tempfile::tempdir().unwrap();
    let replicas: Vec<_> =
        (1..=3).map(|node| start(&network, node, MediumKind::Memory, directory.path())).collect();
    for (index, replica) in replicas.iter().cycle().take(30).enumerate() {
        replica.handle().propose(format!("c{index}").as_bytes()).wait().unwrap();
    }
    let lists: Vec<_> = replicas.iter().map(|replica| read(&replica.handle())).collect();
    let expected: String = (0..30).map(|index| format!("c{index} ")).collect();
    for list in lists {
        assert_eq!(list, expected);
    }
}

#[test]
fn a_leader_with_a_lease_answers_reads_and_others_elect_when_it_is_gone() {
    let network = MemoryNetwork::new(5);
    let directory = tempfile::tempdir().unwrap();
    let start = |node| {
        start_with(&network, node, memory(directory.path(), node), |options| {
            options.lease = options.election_timeout_min;
        })
    };
    let mut replicas: Vec<_> = (1..=3).map(start).collect();
    replicas[0].handle().propose(b"before").wait().unwrap();
    until("a lease", || {
        leader(&replicas).is_some_and(|leader| replicas[leader].handle().status().holds_lease)
    });
    for replica in &replicas {
        assert_eq!(read(&replica.handle()), "before ");
    }
    let mut stopped = replicas.remove(leader(&replicas).unwrap());
    stopped.stop();
    replicas[0].handle().propose(b"after").wait().unwrap();
    assert_eq!(read(&replicas[1].handle()), "before after ");
}

// Rule R14.
#[test]
fn under_a_lease_reads_are_answered_by_the_thread_that_asks_and_miss_nothing() {
    let network = MemoryNetwork::new(8);
    let directory = tempfile::tempdir().unwrap();
    let start = |node| {
        start_with(&network, node, memory(directory.path(), node), |options| {
            options.lease = options.election_timeout_min;
        })
    };
    let replicas: Vec<_> = (1..=3).map(start).collect();
    until("a lease", || {
        leader(&replicas).is_some_and(|leader| replicas[leader].handle().status().holds_lease)
    });
    // A client of a follower learns from the follower that its write is there. Whoever reads at the
    // leader then must see it, whoever leads by now.
    for number in 0..300usize {
        let Some(leading) = leader(&replicas) else { continue };
        let writer = replicas[(leading + 1 + number % 2) % 3].handle();
        let length = writer.propose(b"w").wait().unwrap();
        let length: usize = std::str::from_utf8(&length).unwrap().parse().unwrap();
        let seen = read(&replicas[leading].handle()).len();
        assert!(seen >= length, "write {number}: {seen} bytes after {length}");
    }
    let answered = |replica: &Runner| replica.handle().status().counters.lease_reads;
    until("the counters", || replicas.iter().map(answered).sum::<u64>() > 100);
}

// Rule R12.
#[test]
fn a_bounded_read_waits_for_its_slot_and_for_nothing_else() {
    let network = MemoryNetwork::new(6);
    let directory = tempfile::tempdir().unwrap();
    let start = |node| {
        start_with(&network, node, memory(directory.path(), node), |options| {
            options.request_timeout = Duration::from_secs(1);
        })
    };
    let mut replicas: Vec<_> = (1..=3).map(start).collect();
    replicas[0].handle().propose(b"mine").wait().unwrap();
    let slot = replicas[0].handle().applied_slot();
    let at = |replica: &Runner, slot| {
        let answer = replica.handle().query(b"", Consistency::AtLeast(slot)).wait();
        answer.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    };
    assert_eq!(at(&replicas[1], slot).unwrap(), "mine ");
    replicas[1].handle().propose(b"more").wait().unwrap();
    let more = replicas[1].handle().applied_slot();
    assert_eq!(at(&replicas[2], more).unwrap(), "mine more ");
    // What comes next may be the opening of a session as well.
    let waiting = replicas[2].handle().query(b"", Consistency::AtLeast(more.next()));
    replicas[1].handle().propose(b"again").wait().unwrap();
    assert!(waiting.wait().unwrap().starts_with(b"mine more "));
    // Alone, it still answers what it has, and says no to what it has not.
    replicas.truncate(1);
    assert!(at(&replicas[0], slot).unwrap().starts_with("mine "));
    let beyond = Slot(slot.0 + 1_000);
    let refused = at(&replicas[0], beyond).unwrap_err();
    assert_eq!(refused, Failure::Rejected(Reason::NotApplied(beyond)));
}

// Rules E8, E9.
#[test]
fn leadership_goes_where_it_is_told_and_where_it_is_allowed() {
    let network = MemoryNetwork::new(7);
    let directory = tempfile::tempdir().unwrap();
    let allowed: Vec<_> = (0..3).map(|_| Arc::new(AtomicBool::new(true))).collect();
    let start = |node: u16| {
        let allowed = Arc::clone(&allowed[usize::from(node) - 1]);
        start_with(&network, node, memory(directory.path(), node), |options| {
            options.may_lead = MayLead::new(move || allowed.load(Ordering::Relaxed));
        })
    };
    let replicas: Vec<_> = (1..=3).map(start).collect();
    let handles: Vec<_> = replicas.iter().map(Runner::handle).collect();
    handles[0].propose(b"first").wait().unwrap();
    until("a leader", || leader(&replicas).is_some());
    let old = leader(&replicas).unwrap();
    let new = (old + 1) % 3;
    let mut news = handles[new].subscribe();
    handles[new].set_payload(4_711);
    let to = handles[new].status().node;
    let answer = handles[old].transfer(Some(to)).wait().unwrap();
    assert_eq!(&answer[..], to.to_string().as_bytes());
    until("it leads and says so", || matches!(news.try_recv(), Ok(Notification::Leading(_))));
    let refused = handles[old].transfer(Some(to)).wait().unwrap_err();
    assert!(matches!(refused, Failure::Rejected(Reason::NotTransferred(_))), "{refused}");
    handles[old].propose(b"second").wait().unwrap();
    until("the word of its votes arrives", || {
        let status = handles[old].status();
        status.peers.iter().any(|peer| peer.node == to && peer.payload == 4_711)
    });
    // One that may not lead hands over by itself, and to one that may.
    let third = (old + 2) % 3;
    allowed[old].store(false, Ordering::Relaxed);
    until("the others know", || {
        handles[old].propose(b".").wait().unwrap();
        allowed[new].store(false, Ordering::Relaxed);
        leader(&replicas) == Some(third)
    });
    assert!(read(&handles[new]).starts_with("first second "));
}

#[test]
fn the_leader_stops_and_the_others_go_on() {
    let network = MemoryNetwork::new(2);
    let directory = tempfile::tempdir().unwrap();
    let mut replicas: Vec<_> =
        (1..=3).map(|node| start(&network, node, MediumKind::Memory, directory.path())).collect();
    replicas[0].handle().propose(b"before").wait().unwrap();
    until("a leader", || leader(&replicas).is_some());
    let mut stopped = replicas.remove(leader(&replicas).unwrap());
    stopped.stop();
    replicas[0].handle().propose(b"after").wait().unwrap();
    assert_eq!(read(&replicas[1].handle()), "before after ");
}

#[test]
fn all_stop_and_come_back_with_what_was_acknowledged() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for medium in [MediumKind::Emulated, MediumKind::File] {
        let directory = directory.path().join(medium.to_string());
        for round in 0..3 {
            let network = MemoryNetwork::new(3 + round);
            let replicas: Vec<_> =
                (1..=3).map(|node| start(&network, node, medium, &directory)).collect();
            let handle = replicas[1].handle();
            handle.propose(format!("r{round}").as_bytes()).wait().unwrap();
            let expected: String = (0..=round).map(|round| format!("r{round} ")).collect();
            for replica in &replicas {
                assert_eq!(read(&replica.handle()), expected, "{medium}, round {round}");
            }
        }
    }
}

// Rule F4.
#[test]
fn a_replica_that_lost_its_memory_follows_and_does_not_vote() {
    let network = MemoryNetwork::new(9);
    let directory = tempfile::tempdir().unwrap();
    let mut replicas: Vec<_> =
        (1..=3).map(|node| start(&network, node, MediumKind::Memory, directory.path())).collect();
    replicas[0].handle().propose(b"before").wait().unwrap();
    until("a leader", || leader(&replicas).is_some());
    let follower = (leader(&replicas).unwrap() + 1) % 3;
    let node = replicas[follower].handle().status().node;
    replicas[follower].stop();
    replicas[follower] = start(&network, node.0, MediumKind::Memory, directory.path());
    let handle = replicas[follower].handle();
    assert_eq!(read(&handle), "before ");
    until("the status tells", || handle.status().role == RoleName::Learner);
    assert!(!handle.status().votes);
    assert!(handle.status().trouble.contains("does not vote"), "{}", handle.status().trouble);
}

#[test]
fn a_replica_whose_machine_was_started_again_follows_and_does_not_vote() {
    let network = MemoryNetwork::new(10);
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path();
    let mut replicas: Vec<_> =
        (1..=3).map(|node| start(&network, node, MediumKind::Emulated, home)).collect();
    replicas[0].handle().propose(b"before").wait().unwrap();
    until("a leader", || leader(&replicas).is_some());
    let follower = (leader(&replicas).unwrap() + 1) % 3;
    let node = replicas[follower].handle().status().node;
    // A process that starts again on a machine that runs on is a full member.
    replicas[follower].stop();
    replicas[follower] = start(&network, node.0, MediumKind::Emulated, home);
    let handle = replicas[follower].handle();
    assert_eq!(read(&handle), "before ");
    until("it votes", || handle.status().votes && handle.status().trouble.is_empty());
    replicas[follower].stop();
    let other_life = Boot(Boot::current().unwrap().0 + 1);
    let medium = MappedMedium::open_in(&home.join(node.to_string()), other_life).unwrap();
    replicas[follower] = start_on(&network, node.0, Arc::new(medium));
    let handle = replicas[follower].handle();
    replicas[(follower + 1) % 3].handle().propose(b"after").wait().unwrap();
    assert_eq!(read(&handle), "before after ");
    let status = handle.status();
    assert!(!status.votes, "it may have forgotten what it promised");
    assert!(status.trouble.contains("started again"), "{}", status.trouble);
}

// Rule F5.
#[test]
fn a_replica_of_another_cluster_is_not_listened_to() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = (directory.path().join("ours"), directory.path().join("theirs"));
    for (seed, home) in [(20, &ours), (21, &theirs)] {
        let network = MemoryNetwork::new(seed);
        let replicas: Vec<_> =
            (1..=3).map(|node| start(&network, node, MediumKind::Emulated, home)).collect();
        for _ in 0..=seed {
            replicas[0].handle().propose(seed.to_string().as_bytes()).wait().unwrap();
        }
        until("all have all", || {
            let slots: Vec<_> =
                replicas.iter().map(|replica| replica.handle().status().applied_slot).collect();
            slots.iter().all(|slot| *slot == slots[0])
        });
    }
    // Replica 3 is started with the directory of the other cluster: its own words, higher slots and
    // all, must not reach the two that are left, nor theirs it.
    let network = MemoryNetwork::new(22);
    let replicas = [
        start(&network, 1, MediumKind::Emulated, &ours),
        start(&network, 2, MediumKind::Emulated, &ours),
        start(&network, 3, MediumKind::Emulated, &theirs),
    ];
    replicas[0].handle().propose(b"again").wait().unwrap();
    let expected = format!("{}again ", "20 ".repeat(21));
    assert_eq!(read(&replicas[1].handle()), expected);
    let stranger = replicas[2].handle();
    assert_eq!(stranger.status().leader, None);
    let stale = stranger.query(b"", Consistency::Stale).wait().unwrap();
    assert!("21 ".repeat(22).as_bytes().starts_with(&stale), "{stale:?}");
    assert!(replicas.iter().all(Runner::is_running));
}
