//! Redis' programs against a cluster, and which way its records go.

use crate::cluster::Cluster;
use crate::shared::client::{Client, Reply};
use crate::{PATIENCE, REPLICAS};
use anyhow::{Context, Result, ensure};
use quorate_soft_roce::{Count, Host, Lab, Traffic};
use std::process::Command;

/// Elections in the middle of a load: this many are put down to a machine that is busy.
const ELECTIONS_MAX: u32 = 3;
/// Writes of 1000 bytes to the leader.
const WRITES: u64 = 1_000;

/// A program of Redis against a replica.
fn redis(program: &str, address: &str, arguments: &[&str]) -> Result<String> {
    let (host, port) = address.rsplit_once(':').context("an address")?;
    let output = Command::new(program).args(["-h", host, "-p", port]).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}: {errors}{text}", output.status);
    Ok(text)
}

/// Does something for which one leader has to lead from its beginning to its end.
pub(crate) fn under_one_leader<T>(
    cluster: &Cluster<'_>,
    act: impl Fn(u16) -> Result<T>,
) -> Result<T> {
    for attempt in 1.. {
        let (leader, before) = (cluster.leader(), cluster.lives()?);
        let result = act(leader);
        // `redis-benchmark` gives up at the first error, and one of an election is none.
        if cluster.lives()? == before || attempt == ELECTIONS_MAX {
            return result.context(format!("leader {leader}"));
        }
        println!("a leader or a lane changed meanwhile, once more");
    }
    unreachable!("attempts are counted")
}

/// `redis-cli` and `redis-benchmark` from outside, against any replica.
fn serves_redis(cluster: &Cluster<'_>) -> Result<()> {
    let follower = cluster.address(cluster.follower());
    under_one_leader(cluster, |leader| {
        let leader = cluster.address(leader);
        assert_eq!(redis("redis-cli", &leader, &["SET", "word", "here"])?, "OK\n");
        assert_eq!(redis("redis-cli", &follower, &["GET", "word"])?, "here\n");
        let load = ["-t", "set,get", "-n", "2000", "-c", "20", "-d", "100", "--csv"];
        let said = redis("redis-benchmark", &leader, &load)?;
        let figures: Vec<_> = said.lines().filter(|line| !line.starts_with("\"test\"")).collect();
        ensure!(figures.len() == 2, "{said}");
        println!("redis-benchmark: {}", figures.join(" "));
        Ok(())
    })
}

pub(crate) fn redis_tcp(lab: &Lab) -> Result<()> {
    Cluster::with(lab, "tcp", "file", |cluster| {
        serves_redis(cluster)?;
        cluster.converged();
        Ok(())
    })
}

/// Packets that a device sent (`rdma-statistic(8)`).
fn sent_packets(host: &Host) -> Result<u64> {
    let said = host.shell("rdma statistic show link rxe0/1", PATIENCE)?;
    let mut words = said.split_whitespace().skip_while(|word| *word != "sent_pkts");
    words.nth(1).context("no counter of packets")?.parse().context("a counter")
}

/// Three processes on one device: they serve, records go by it, and when the leader's process is
/// killed another one leads with all that was acknowledged.
pub(crate) fn one_host_rdma(lab: &Lab) -> Result<()> {
    Cluster::with(lab, "rdma", "file", |cluster| {
        cluster.all_by((6, 0));
        let batches = || {
            let reports = (1..=REPLICAS).filter_map(|number| cluster.report(number));
            reports.map(|report| report.counters.batches_proposed).sum::<u64>()
        };
        let before = (sent_packets(lab.host(1))?, batches());
        serves_redis(cluster)?;
        let packets = sent_packets(lab.host(1))? - before.0;
        let batches = batches() - before.1;
        println!("{batches} batches, {packets} packets of RDMA");
        // For each of two followers a record, its acknowledgement, a row, and that one's; but a record or a
        // row may speak for several batches.
        ensure!(packets >= 2 * batches, "records go by RDMA: {packets} packets");
        let leader = cluster.leader();
        let mut client = Client::new(&cluster.address(leader));
        for number in 0..50 {
            ensure!(client.insist(&format!("SET kept-{number} {number}")).is_ok(), "a write");
        }
        cluster.end_replica(leader);
        let next = cluster.leader();
        ensure!(next != leader, "replica {leader} was killed");
        let mut client = Client::new(&cluster.address(next));
        for number in 0..50 {
            let value = client.insist(&format!("GET kept-{number}"));
            assert_eq!(value, Reply::text(&number.to_string()), "an acknowledged write is there");
        }
        cluster.start_replica(leader)?;
        cluster.all_by((6, 0));
        cluster.converged();
        Ok(())
    })
}

/// Bytes that went from one host to all others, by RDMA and by TCP.
fn sent(lab: &Lab, from: u16) -> (u64, u64) {
    let others = lab.hosts().iter().map(Host::number).filter(|to| *to != from);
    let counts: Vec<_> = others.map(|to| lab.network().count(from, to)).collect();
    let sum = |of: fn(&Count) -> u64| counts.iter().map(of).sum();
    (sum(|count| count.rdma_bytes), sum(|count| count.tcp_bytes))
}

fn write_load(cluster: &Cluster<'_>) -> Result<()> {
    let leader = cluster.address(cluster.leader());
    let load = ["-t", "set", "-n", "1000", "-c", "20", "-d", "1000", "-r", "1000", "--csv"];
    redis("redis-benchmark", &leader, &load).map(drop)
}

/// Records travel by RDMA and not by TCP, as the switch between the hosts sees it.
pub(crate) fn redis_rdma(lab: &Lab) -> Result<()> {
    Cluster::with(lab, "rdma", "file", |cluster| {
        cluster.all_by((6, 0));
        serves_redis(cluster)?;
        let (rdma, tcp) = under_one_leader(cluster, |leader| {
            let before = sent(lab, leader);
            write_load(cluster)?;
            let after = sent(lab, leader);
            Ok((after.0 - before.0, after.1 - before.1))
        })?;
        println!(
            "leader to followers, {WRITES} writes of 1000 bytes: {rdma} bytes RDMA, {tcp} bytes TCP"
        );
        ensure!(rdma >= 2 * WRITES * 1000, "each follower gets each write: {rdma} bytes");
        // While one leader leads and no lane breaks the control lane has nothing to say: 0 bytes were
        // measured. A follower that fell behind asks and is answered there, with a few records.
        ensure!(tcp < WRITES * 1000 / 50, "records do not go by TCP: {tcp} bytes");
        cluster.converged();
        Ok(())
    })
}

/// A queue pair of the leader fails: its lane ends, comes back by RDMA, and nothing is lost.
pub(crate) fn pair_fails(lab: &Lab) -> Result<()> {
    Cluster::with(lab, "rdma", "file", |cluster| {
        cluster.all_by((6, 0));
        let leader = cluster.leader();
        let follower = cluster.follower();
        let refusals = || lab.network().count(follower, leader).refusals;
        let (before, lives) = (refusals(), cluster.lives()?);
        lab.network().fail_pair(follower, leader);
        // Heartbeats are writes too; a write of a client makes sure that there is one.
        let mut client = Client::new(&cluster.address(leader));
        ensure!(client.insist("SET after failure").is_ok(), "a write");
        cluster.wait("refusal", || (refusals() > before).then_some(()));
        cluster.wait("end of a lane", || (cluster.lives().ok()? != lives).then_some(()));
        cluster.all_by((6, 0));
        let mut client = Client::new(&cluster.address(cluster.leader()));
        assert_eq!(client.insist("GET after"), Reply::text("failure"));
        cluster.converged();
        Ok(())
    })
}

/// RDMA is lost while TCP lives: lanes fall back, service goes on, status says so; healed, they return.
pub(crate) fn rdma_lost(lab: &Lab) -> Result<()> {
    Cluster::with(lab, "rdma", "file", |cluster| {
        cluster.all_by((6, 0));
        for host in 1..=3 {
            lab.network().isolate(host, Traffic::Rdma);
        }
        cluster.all_by((0, 6));
        let leader = cluster.leader();
        let before = sent(lab, leader);
        write_load(cluster)?;
        let tcp = sent(lab, leader).1 - before.1;
        ensure!(tcp >= 2 * WRITES * 1000, "records go by TCP now: {tcp} bytes");
        lab.network().heal();
        cluster.all_by((6, 0));
        let leader = cluster.leader();
        let before = sent(lab, leader);
        write_load(cluster)?;
        let rdma = sent(lab, leader).0 - before.0;
        ensure!(rdma >= 2 * WRITES * 1000, "and by RDMA again: {rdma} bytes");
        cluster.converged();
        Ok(())
    })
}
