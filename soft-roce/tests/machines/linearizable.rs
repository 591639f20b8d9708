//! Clients write down all that they see while hosts and network fail; then a checker judges.

use crate::REPLICAS;
use crate::cluster::Cluster;
use crate::shared::client::{Client, Reply};
use crate::shared::history::Clients;
use anyhow::{Result, bail, ensure};
use quorate_check::{History, Kv, KvInput, KvOutput, Limits, check};
use quorate_soft_roce::{Fault, Host, Lab, Traffic};
use std::time::{Duration, Instant};

const CLIENTS: usize = 10;
/// Between two operations of a client, on average.
const PACE: Duration = Duration::from_millis(10);
/// Kinds of faults.
const KINDS: u32 = 7;

pub(crate) fn over_tcp(lab: &Lab) -> Result<()> {
    Cluster::with(lab, "tcp", "file", |cluster| linearizable(cluster, operations(3_000)))
}

pub(crate) fn over_rdma(lab: &Lab) -> Result<()> {
    Cluster::with(lab, "rdma", "file", |cluster| linearizable(cluster, operations(10_000)))
}

/// The long form, on three hosts; one host has a test of its own.
pub(crate) fn over_passive(lab: &Lab) -> Result<()> {
    Cluster::in_memory(lab, "passive", |cluster| {
        cluster.all_by((6, 0));
        crate::passive::by_completion(cluster);
        linearizable(cluster, operations(10_000))?;
        cluster.all_by((6, 0));
        crate::passive::by_completion(cluster);
        Ok(())
    })
}

/// Operations of a checked history: more by the variable `QUORATE_OPERATIONS`.
pub(crate) fn operations(default: u64) -> u64 {
    std::env::var("QUORATE_OPERATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Clients write down all that they see while hosts and network fail; then the checker judges.
fn linearizable(cluster: &mut Cluster<'_>, operations: u64) -> Result<()> {
    let mut before = Client::new(&cluster.address(cluster.leader()));
    for number in 0..50 {
        ensure!(before.insist(&format!("SET before-{number} {number}")).is_ok(), "a write");
    }
    let clients = Clients::start(&cluster.addresses(), CLIENTS, PACE, 11);
    let faults = torment(cluster, &clients, operations);
    let history = History::merge(clients.stop());
    let faults = faults?;
    let all = faults.leaders_killed > 0 && faults.lossy > 0 && faults.interfaces_down > 0;
    ensure!(all, "void: {faults:?}");
    cluster.converged();
    let mut after = Client::new(&cluster.address(cluster.leader()));
    for number in 0..50 {
        let value = after.insist(&format!("GET before-{number}"));
        assert_eq!(value, Reply::text(&number.to_string()), "an acknowledged write is there");
    }
    judge(&history)
}

/// Whether the history is linearizable; one that is not is kept.
pub(crate) fn judge(history: &History<KvInput, KvOutput>) -> Result<()> {
    let verdict = check(&Kv, history, &Limits::default());
    if !verdict.is_linearizable() {
        let file = std::env::temp_dir().join(format!("quorate-history-{}", std::process::id()));
        std::fs::write(&file, history.to_text())?;
        bail!("{verdict}\nthe history is in {}", file.display());
    }
    println!("{verdict}");
    Ok(())
}

/// What happened to a cluster.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    leaders_killed: u32,
    leaders_cut: u32,
    leaders_deaf: u32,
    hosts_paused: u32,
    lossy: u32,
    interfaces_down: u32,
    /// Queue pairs that failed; over RDMA alone.
    pairs_failed: u32,
}

/// One fault after the other, until the clients got `operations` answers and each kind happened.
fn torment(cluster: &mut Cluster<'_>, clients: &Clients, operations: u64) -> Result<Faults> {
    let lab = cluster.lab;
    let mut faults = Faults::default();
    let begin = Instant::now();
    for round in 0.. {
        let leader = cluster.leader();
        match round % KINDS {
            0 => {
                cluster.kill(leader);
                // The other two serve on meanwhile.
                clients.advance(200);
                cluster.revive(leader)?;
                if cluster.durability == "memory" {
                    cluster.readmit(leader)?;
                }
                faults.leaders_killed += 1;
            }
            1 => {
                lab.network().isolate(leader, Traffic::All);
                clients.advance(200);
                faults.leaders_cut += 1;
            }
            2 => {
                // It still sends to the others, and hears nobody.
                for other in lab.hosts().iter().map(Host::number).filter(|other| *other != leader) {
                    let cut = Fault { cut: true, ..Fault::default() };
                    lab.network().set(other, leader, Traffic::All, cut);
                }
                clients.advance(200);
                faults.leaders_deaf += 1;
            }
            3 => {
                lab.host(leader).pause()?;
                clients.advance(100);
                lab.host(leader).resume()?;
                faults.hosts_paused += 1;
            }
            4 => {
                // As if somebody pulled the cable; clients come over another interface.
                lab.host(leader).interface(false)?;
                clients.advance(200);
                lab.host(leader).interface(true)?;
                faults.interfaces_down += 1;
            }
            5 if cluster.transport == "rdma" => {
                faults.pairs_failed += fail_pairs(cluster, clients, leader);
            }
            _ => {
                let fault = Fault {
                    loss: 0.02,
                    duplicate: 0.02,
                    delay: Duration::from_millis(1),
                    jitter: Duration::from_millis(5),
                    ..Fault::default()
                };
                for (one, other) in [(1, 2), (1, 3), (2, 3)] {
                    lab.network().set_both(one, other, Traffic::All, fault);
                }
                clients.advance(500);
                faults.lossy += 1;
            }
        }
        lab.network().heal();
        clients.advance(500);
        if round + 1 >= KINDS && clients.answered() >= operations {
            break;
        }
    }
    println!(
        "{} operations answered in {:.0} s; {faults:?}",
        clients.answered(),
        begin.elapsed().as_secs_f64()
    );
    Ok(faults)
}

/// Lets the leader's queue pairs fail, each with the next acknowledgement; how many did. A lane that goes
/// over TCP at the moment has none.
fn fail_pairs(cluster: &Cluster<'_>, clients: &Clients, leader: u16) -> u32 {
    let network = cluster.lab.network();
    let others = || (1..=REPLICAS).filter(move |other| *other != leader);
    let failed = || others().map(|other| network.count(other, leader).refusals).sum::<u64>();
    let before = failed();
    for other in others() {
        network.fail_pair(other, leader);
    }
    clients.advance(200);
    (failed() - before) as u32
}
