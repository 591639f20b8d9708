//! Members of a cluster of real processes change under load: commits go on, nothing is lost or
//! doubled, and the longest time without an acknowledged command is printed.

mod process;

use process::load::Load;
use process::{Cluster, PATIENCE, wait};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Watches a load: how long was it without an acknowledgement at the longest?
struct Watch {
    stop: Arc<AtomicBool>,
    longest_us: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<Load>>,
}

impl Watch {
    fn over(load: Load) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let longest_us = Arc::new(AtomicU64::new(0));
        let (ends, longest) = (Arc::clone(&stop), Arc::clone(&longest_us));
        let thread = std::thread::spawn(move || {
            let (mut count, mut since) = (load.acknowledged(), Instant::now());
            while !ends.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(1));
                let now = load.acknowledged();
                longest.fetch_max(since.elapsed().as_micros() as u64, Ordering::Relaxed);
                if now != count {
                    (count, since) = (now, Instant::now());
                }
            }
            load
        });
        Self { stop, longest_us, thread: Some(thread) }
    }

    /// The longest time since this was last asked.
    fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.swap(0, Ordering::Relaxed))
    }

    fn end(mut self) -> Load {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it runs").join().expect("it watches")
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

#[test]
fn members_change_under_load_and_nothing_stops_is_lost_or_doubled() {
    let mut cluster = Cluster::start("members", "file");
    let first = cluster.leader();
    let others: Vec<u16> = (1..=3).filter(|node| *node != first).collect();
    let (stays, wiped) = (others[0], others[1]);
    let load = Load::start(&[cluster.address(stays)], 8, 1);
    load.advance(500);
    let watch = Watch::over(load);
    let four = cluster.join();
    let five = cluster.join();
    let (peer4, client4) = (cluster.ports.peer(four), cluster.address(four));
    let (peer5, client5) = (cluster.ports.peer(five), cluster.address(five));
    let (peer1, client1) = (cluster.ports.peer(first), cluster.address(first));
    let name = |node: u16| node.to_string();
    let step = |cluster: &Cluster, what: &str, arguments: &[&str], expected: &[u16]| {
        watch.longest();
        let begun = Instant::now();
        let output = cluster.member(arguments);
        let said = text(&output);
        assert!(output.status.success(), "{what}: {said}");
        let took = begun.elapsed();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        wait("the new voters are known", PATIENCE, || {
            (voters(cluster, stays)? == expected).then_some(())
        });
        println!("{what}: {took:?}, longest time without a commit {:?}", watch.longest());
        said
    };
    step(&cluster, "3 and a learner", &["add", &name(four), &peer4, &client4], &[1, 2, 3]);
    step(&cluster, "3 to 4", &["promote", &name(four)], &[1, 2, 3, 4]);
    step(&cluster, "4 and a learner", &["add", &name(five), &peer5, &client5], &[1, 2, 3, 4]);
    step(&cluster, "4 to 5", &["promote", &name(five)], &[1, 2, 3, 4, 5]);
    let said =
        step(&cluster, "the leader goes", &["remove", &name(first)], &[stays, wiped, four, five]);
    assert!(said.contains("Safe now"), "{said}");
    wait("the former leader knows", PATIENCE, || {
        let report = cluster.report(first)?;
        (!report.votes && report.trouble.contains("removed")).then_some(())
    });
    step(&cluster, "5 back to 3", &["remove", &name(five)], &[stays, wiped, four]);
    cluster.kill(four);
    cluster.kill(five);
    let replaced = ["replace", &name(four), &name(first), &peer1, &client1];
    step(&cluster, "the dead one is replaced", &replaced, &[stays, wiped, first]);
    // Its disk is lost.
    cluster.kill(wiped);
    let disk = cluster.replica(wiped).config.replica.directory.clone();
    std::fs::remove_dir_all(&disk).expect("its disk is lost");
    cluster.restart(wiped);
    wait("the wiped one follows without a vote", PATIENCE, || {
        let report = cluster.report(wiped)?;
        (report.role == "learner" && report.applied_slot > 0 && !report.votes).then_some(())
    });
    let readmitted = ["replace", &name(wiped), &name(wiped)];
    step(&cluster, "the wiped one votes again", &readmitted, &[stays, wiped, first]);
    let load = watch.end();
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
    let refused = cluster.member(&["replace", &name(stays), "9", "127.0.0.1:1", "--timeout", "2"]);
    let said = text(&refused);
    assert!(!refused.status.success() && said.contains("took too long"), "{said}");
}
