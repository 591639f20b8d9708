//! The power of hosts is cut under a cluster whose log is in memory that keeps it, or that does not.

use crate::PATIENCE;
use crate::cluster::Cluster;
use crate::shared::client::{Client, Reply};
use anyhow::{Result, ensure};
use quorate_soft_roce::Lab;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Acknowledged before the power of all hosts is cut.
const WRITES_BEFORE_THE_CUT: u32 = 200;

/// The power of all hosts is cut while a client writes: what was acknowledged is on persistent memory,
/// and every replica still knows what it promised.
pub(crate) fn cut_on_dax(lab: &Lab) -> Result<()> {
    Cluster::with(lab, "tcp", "dax", cut_all)
}

fn cut_all(cluster: &mut Cluster<'_>) -> Result<()> {
    let lab = cluster.lab;
    let acknowledged = AtomicU32::new(0);
    let cut = AtomicBool::new(false);
    let address = cluster.address(cluster.leader());
    std::thread::scope(|scope| {
        scope.spawn(|| write_until_cut_off(&address, &acknowledged, &cut));
        let begin = Instant::now();
        while acknowledged.load(Ordering::Acquire) < WRITES_BEFORE_THE_CUT
            && begin.elapsed() < PATIENCE
        {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        for host in lab.hosts() {
            cluster.kill(host.number());
        }
        cut.store(true, Ordering::Release);
    });
    let count = acknowledged.load(Ordering::Acquire);
    ensure!(count >= WRITES_BEFORE_THE_CUT, "void: only {count} writes were acknowledged");
    lab.restart_all()?;
    for host in lab.hosts() {
        cluster.start_replica(host.number())?;
    }
    let mut client = Client::new(&cluster.address(cluster.leader()));
    for number in 0..count {
        let value = client.insist(&format!("GET key-{number}"));
        assert_eq!(value, Reply::text(&number.to_string()), "it was acknowledged");
    }
    cluster.converged();
    for host in lab.hosts() {
        let report = cluster.wait("a replica that votes and has no trouble", || {
            let report = cluster.report(host.number())?;
            (report.votes && report.trouble.is_empty()).then_some(report)
        });
        let says = (report.medium.as_str(), report.durability.as_str());
        assert_eq!(says, ("dax", "power failure"));
    }
    println!("power cut at all hosts: {count} acknowledged writes are there, all replicas vote");
    Ok(())
}

/// A host is started again under a replica whose log did not reach the disk: it must not vote.
pub(crate) fn cut_on_emulated(lab: &Lab) -> Result<()> {
    Cluster::with(lab, "tcp", "emulated", cut_one)
}

fn cut_one(cluster: &mut Cluster<'_>) -> Result<()> {
    let mut client = Client::new(&cluster.address(cluster.leader()));
    for number in 0..50 {
        client.insist(&format!("SET key-{number} {number}"));
    }
    let follower = cluster.follower();
    // What the file system writes back by itself within half a minute, so that a log is there.
    cluster.lab.host(follower).shell("sync", PATIENCE)?;
    cluster.kill(follower);
    cluster.revive(follower)?;
    let report = cluster.wait("a replica that knows that it may have forgotten", || {
        cluster.report(follower).filter(|report| report.trouble.contains("started again"))
    });
    ensure!(!report.votes, "{report:?}");
    println!("replica {follower} says: {}", report.trouble);
    client.insist("SET after yes");
    cluster.converged();
    Ok(())
}

/// Writes one after the other, each again until it is acknowledged, until the power is cut.
fn write_until_cut_off(address: &str, acknowledged: &AtomicU32, cut: &AtomicBool) {
    let mut client = Client::new(address);
    while !cut.load(Ordering::Acquire) {
        let number = acknowledged.load(Ordering::Acquire);
        if client.words(&format!("SET key-{number} {number}")).is_ok() {
            acknowledged.store(number + 1, Ordering::Release);
        }
    }
}
