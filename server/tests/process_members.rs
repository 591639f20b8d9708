//! Members of a cluster of real processes change under load: commits go on, nothing is lost or
//! doubled, and the longest time without an acknowledged command is printed.

mod process;

use process::client::Client;
use process::history::Clients;
use process::load::Load;
use process::stream::Stream;
use process::{Cluster, PATIENCE, environment, wait};
use quorate_check::{History, Kv, Limits, check};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Times without an acknowledgement that are told one by one.
const LONG: Duration = Duration::from_millis(50);

/// Acknowledgements are looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Watches a load from its beginning to its end: how long was it without an acknowledgement at the longest?
struct Watch {
    begun: Instant,
    stop: Arc<AtomicBool>,
    longest_us: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    fn over(acknowledged: Arc<AtomicU64>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let longest_us = Arc::new(AtomicU64::new(0));
        let (ends, longest) = (Arc::clone(&stop), Arc::clone(&longest_us));
        let begun = Instant::now();
        let thread = std::thread::spawn(move || {
            let (mut count, mut since) = (acknowledged.load(Ordering::Relaxed), Instant::now());
            // How long this thread, which has nothing to do, was kept from running meanwhile.
            let mut kept = Duration::ZERO;
            while !ends.load(Ordering::Relaxed) {
                let slept = Instant::now();
                std::thread::park_timeout(LOOK_EVERY);
                kept += slept.elapsed().saturating_sub(2 * LOOK_EVERY);
                let now = acknowledged.load(Ordering::Relaxed);
                longest.fetch_max(since.elapsed().as_micros() as u64, Ordering::Relaxed);
                if now != count {
                    if since.elapsed() >= LONG {
                        let at = since.duration_since(begun);
                        println!(
                            "{at:.3?} after the begin: {:?} without a commit, {kept:?} of them without a \
                             processor for an idle thread",
                            since.elapsed()
                        );
                    }
                    (count, since, kept) = (now, Instant::now(), Duration::ZERO);
                }
            }
        });
        Self { begun, stop, longest_us, thread: Some(thread) }
    }

    /// The longest time since this was last asked.
    fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.swap(0, Ordering::Relaxed))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn text(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

fn voters(cluster: &Cluster, at: u16) -> Option<Vec<u16>> {
    let members = cluster.report(at)?.configuration?;
    members.settled.then_some(members.voters)
}

/// A cluster in which everything changes: who goes, who stays, and how long nothing was acknowledged.
struct Changes {
    first: u16,
    stays: u16,
    wiped: u16,
    four: u16,
    five: u16,
    watch: Watch,
    longest: Duration,
}

impl Changes {
    /// `stays` is where the clients are.
    fn new(cluster: &mut Cluster, first: u16, stays: u16, watch: Watch) -> Self {
        let wiped = (1..=3).find(|node| *node != first && *node != stays).expect("three replicas");
        let (four, five) = (cluster.join(), cluster.join());
        Self { first, stays, wiped, four, five, watch, longest: Duration::ZERO }
    }

    fn step(
        &mut self,
        cluster: &Cluster,
        what: &str,
        arguments: &[&str],
        expected: &[u16],
    ) -> String {
        let begun = Instant::now();
        // A state of gigabytes takes its time.
        let output = cluster.member(&[arguments, &["--timeout", "300"]].concat());
        let said = text(&output);
        assert!(output.status.success(), "{what}: {said}");
        let took = begun.elapsed();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        wait("the new voters are known", PATIENCE, || {
            (voters(cluster, self.stays)? == expected).then_some(())
        });
        self.look(what, took);
        said
    }

    fn look(&mut self, what: &str, took: Duration) {
        let longest = self.watch.longest();
        let at = self.watch.begun.elapsed();
        println!("{at:.3?}: {what}: {took:?}, longest time without a commit {longest:?}");
        self.longest = self.longest.max(longest);
    }

    /// Until the one that stays leads: a leader that dies is fail-over, which is measured elsewhere.
    fn lead(&self, cluster: &Cluster, voters: &[u16]) {
        let addresses: Vec<_> = voters.iter().map(|node| cluster.address(*node)).collect();
        let (to, addresses) = (self.stays.to_string(), addresses.join(","));
        wait("the one that stays leads", PATIENCE, || {
            if cluster.report(self.stays)?.role == "leader" {
                return Some(());
            }
            let moved = process::quorate(&["transfer", "--to", &to, "--addr", &addresses]);
            println!("{}", text(&moved).trim_end());
            None
        });
    }

    /// 3 to 5, without the leader, back to 3, a dead one replaced, a wiped one readmitted.
    fn all(&mut self, cluster: &mut Cluster) {
        let Self { first, stays, wiped, four, five, .. } = *self;
        let (peer4, client4) = (cluster.ports.peer(four), cluster.address(four));
        let (peer5, client5) = (cluster.ports.peer(five), cluster.address(five));
        let (peer1, client1) = (cluster.ports.peer(first), cluster.address(first));
        let name = |node: u16| node.to_string();
        self.step(cluster, "3 and a learner", &["add", &name(four), &peer4, &client4], &[1, 2, 3]);
        self.step(cluster, "3 to 4", &["promote", &name(four)], &[1, 2, 3, 4]);
        let add = ["add", &name(five), &peer5, &client5];
        self.step(cluster, "4 and a learner", &add, &[1, 2, 3, 4]);
        self.step(cluster, "4 to 5", &["promote", &name(five)], &[1, 2, 3, 4, 5]);
        let remove = ["remove", &name(first)];
        let said = self.step(cluster, "the leader goes", &remove, &[stays, wiped, four, five]);
        assert!(said.contains("Safe now"), "{said}");
        wait("the former leader knows", PATIENCE, || {
            let report = cluster.report(first)?;
            (!report.votes && report.trouble.contains("removed")).then_some(())
        });
        self.step(cluster, "5 back to 3", &["remove", &name(five)], &[stays, wiped, four]);
        self.lead(cluster, &[stays, wiped, four]);
        cluster.kill(four);
        cluster.kill(five);
        let replaced = ["replace", &name(four), &name(first), &peer1, &client1];
        self.step(cluster, "the dead one is replaced", &replaced, &[stays, wiped, first]);
        // Its disk is lost.
        self.lead(cluster, &[stays, wiped, first]);
        cluster.kill(wiped);
        let disk = cluster.replica(wiped).config.replica.directory.clone();
        std::fs::remove_dir_all(&disk).expect("its disk is lost");
        cluster.restart(wiped);
        wait("the wiped one follows without a vote", PATIENCE, || {
            let report = cluster.report(wiped)?;
            (report.role == "learner" && report.applied_slot > 0 && !report.votes).then_some(())
        });
        let readmitted = ["replace", &name(wiped), &name(wiped)];
        self.step(cluster, "the wiped one votes again", &readmitted, &[stays, wiped, first]);
    }
}

#[test]
fn members_change_under_load_and_nothing_stops_is_lost_or_doubled() {
    let mut cluster = Cluster::start("members", "file");
    let first = cluster.leader();
    let stays = cluster.follower(&[]);
    let load = Load::start(&[cluster.address(stays)], 8, 1);
    load.advance(500);
    let mut changes = Changes::new(&mut cluster, first, stays, Watch::over(load.count()));
    let wiped = changes.wiped;
    changes.all(&mut cluster);
    drop(changes);
    load.advance(200);
    let account = load.stop();
    wait("it votes", PATIENCE, || cluster.report(wiped)?.votes.then_some(()));
    let report = cluster.converged();
    account.check(&cluster.address(stays));
    println!("all at slot {} with configuration {:?}", report.applied_slot, report.configuration);
    // What the log says survives all of them.
    cluster.kill_all();
    for node in [1, 2, 3] {
        cluster.restart(node);
    }
    cluster.leader();
    assert_eq!(voters(&cluster, stays), Some(vec![1, 2, 3]));
    account.check(&cluster.address(stays));
    let refused =
        cluster.member(&["replace", &stays.to_string(), "9", "127.0.0.1:1", "--timeout", "2"]);
    let said = text(&refused);
    assert!(!refused.status.success() && said.contains("took too long"), "{said}");
}

/// `QUORATE_RATE=50000 QUORATE_STATE_MB=2048 cargo test --release -p quorate-server --test process_members --
/// --ignored --nocapture`: the same changes under a steady stream of writes, and over a state of that size,
/// of which a checkpoint is taken by all and installed on new members meanwhile.
#[test]
#[ignore = "a measurement, of minutes"]
fn members_change_under_a_steady_load() {
    let rate = environment("QUORATE_RATE", 50_000);
    let mebibytes = environment("QUORATE_STATE_MB", 64);
    let durability = std::env::var("QUORATE_DURABILITY").unwrap_or_else(|_| "file".into());
    let mut cluster = Cluster::prepare("members-load", &durability, |config| {
        config.replica.segment_bytes = 64 << 20;
        config.checkpoints.log_bytes = 0;
        config.checkpoints.interval_s = 0;
        config.checkpoints.log_tail_bytes = 64 << 20;
    });
    cluster.start_all();
    let first = cluster.leader();
    let stays = cluster.follower(&[]);
    fill(&cluster.address(first), mebibytes);
    cluster.converged();
    let stream = Stream::start(&cluster.address(stays), 4, rate);
    let counted = stream.acknowledged();
    let begun = Instant::now();
    let clients = Clients::start(&[cluster.address(stays)], 4, Duration::from_millis(5), 1);
    clients.advance(100);
    let watch = Watch::over(Arc::clone(&counted));
    std::thread::park_timeout(Duration::from_secs(3));
    println!("nothing changes: longest time without a commit {:?}", watch.longest());
    let taking = Instant::now();
    let addresses = cluster.addresses().join(",");
    let output = process::quorate(&["checkpoint", &addresses]);
    assert!(output.status.success(), "{}", text(&output));
    let mut changes = Changes::new(&mut cluster, first, stays, watch);
    changes.look("a checkpoint at all three", taking.elapsed());
    let bytes = cluster.report(first).map(|report| report.checkpoints.newest_bytes);
    changes.all(&mut cluster);
    let longest = changes.longest;
    drop(changes);
    let seconds = begun.elapsed().as_secs_f64();
    let history = clients.stop();
    let ended = stream.stop();
    let (good, other) = ended.counts();
    let latency = ended.latency_us();
    let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "{durability}, state of {mebibytes} MiB (checkpoint of {bytes:?} bytes): {good} writes acknowledged in \
         {seconds:.1} s, {:.0} a second of {rate}, {other} not ({:?})\nlatency p50 {:.2} ms, p99 {:.2} ms, \
         p99.9 {:.2} ms, longest {:.2} ms; longest time without a commit {longest:?}",
        good as f64 / seconds,
        ended.refusal(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
    );
    wait("it votes", PATIENCE, || cluster.report(stays)?.votes.then_some(()));
    cluster.converged();
    ended.check(&cluster.address(stays));
    let history = History::merge(history);
    let verdict = check(&Kv, &history, &Limits::default());
    println!("{} operations of other clients: {verdict}", history.operations().len());
    assert!(verdict.is_linearizable(), "{verdict}");
    assert!(longest < Duration::from_millis(100), "commits stopped for {longest:?}");
}

/// Values of 4 KiB, 256 in a command.
fn fill(address: &str, mebibytes: u64) {
    let mut client = Client::new(address).timeout(PATIENCE);
    let value = vec![b'v'; 4 << 10];
    for number in 0..mebibytes {
        let keys: Vec<String> = (0..256).map(|key| format!("k{}", number * 256 + key)).collect();
        let mut command: Vec<&[u8]> = vec![b"MSET"];
        for key in &keys {
            command.extend([key.as_bytes(), &value[..]]);
        }
        // A disk that is behind lets replicas change their leader: the same values may come twice.
        wait("room for more", PATIENCE, || client.call(&command).is_ok().then_some(()));
    }
}
