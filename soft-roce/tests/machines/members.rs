//! Members change while lanes are carried by RDMA.

use crate::REPLICAS;
use crate::cluster::Cluster;
use crate::redis::under_one_leader;
use crate::shared::client::{Client, Reply};
use anyhow::{Context, Result, ensure};
use quorate_soft_roce::{Count, Lab};

/// The one that comes.
const NEW: u16 = 4;
/// Writes of 1000 bytes while two of three are left, and once more with the new one.
const WRITES: u64 = 200;

/// A dead replica is replaced by one with another number and an empty disk: it gets the log by RDMA, and
/// then votes: with one more replica gone, nothing is chosen without it.
pub(crate) fn replaced(lab: &Lab) -> Result<()> {
    Cluster::with(lab, "rdma", "file", |cluster| {
        cluster.all_by((6, 0));
        let dead = cluster.follower();
        cluster.end_replica(dead);
        write(cluster, "before")?;
        cluster.replace(dead, NEW)?;
        let configuration = cluster.wait("the new member's configuration", || {
            let report = cluster.report(dead).filter(|report| report.votes)?;
            report.configuration.filter(|configuration| configuration.settled)
        });
        let mut voters: Vec<u16> = (1..=REPLICAS).filter(|node| *node != dead).collect();
        voters.push(NEW);
        assert_eq!(configuration.voters, voters);
        cluster.all_by((6, 0));
        let (leader, rdma, tcp) = under_one_leader(cluster, |leader| {
            // Should the new member lead, then what it sends.
            let to = if leader == dead { cluster.follower() } else { dead };
            let before = lab.network().count(leader, to);
            write(cluster, "after")?;
            let after = lab.network().count(leader, to);
            let sent = |of: fn(&Count) -> u64| of(&after) - of(&before);
            Ok((leader, sent(|count| count.rdma_bytes), sent(|count| count.tcp_bytes)))
        })?;
        println!(
            "{WRITES} writes of 1000 bytes: {rdma} bytes RDMA, {tcp} bytes TCP between leader and new member"
        );
        ensure!(rdma >= WRITES * 1000, "the new member's records go by RDMA: {rdma} bytes");
        ensure!(tcp < WRITES * 1000 / 10, "and not by TCP: {tcp} bytes");
        cluster.converged();
        let third = (1..=REPLICAS).find(|place| *place != dead && *place != leader);
        cluster.end_replica(third.context("three places")?);
        let mut client = Client::new(&cluster.address(dead));
        for phase in ["before", "after"] {
            let value = client.insist(&format!("GET {phase}-{}", WRITES - 1));
            assert_eq!(value, Reply::text(&"x".repeat(1000)), "{phase} the change");
        }
        ensure!(client.insist("SET voted by-the-new-one").is_ok(), "a write");
        Ok(())
    })
}

fn write(cluster: &Cluster<'_>, phase: &str) -> Result<()> {
    let mut client = Client::new(&cluster.address(cluster.leader()));
    let value = "x".repeat(1000);
    for number in 0..WRITES {
        ensure!(client.insist(&format!("SET {phase}-{number} {value}")).is_ok(), "a write");
    }
    Ok(())
}
