//! Passive followers on a real device: their votes are completed writes, and nothing that was acknowledged is
//! lost when leaders are killed one after the other.

use crate::cluster::Cluster;
use crate::linearizable::{judge, operations};
use crate::shared::client::{Client, Reply};
use crate::shared::history::Clients;
use crate::{PATIENCE, REPLICAS};
use anyhow::{Result, ensure};
use quorate_check::History;
use quorate_soft_roce::{Lab, Program};
use std::time::{Duration, Instant};

const CLIENTS: usize = 6;
/// Between two operations of a client, on average.
const PACE: Duration = Duration::from_millis(10);
/// Operations between a kill and what follows it.
const BETWEEN: u64 = 200;
/// Kills of leaders, at least.
const KILLS_MIN: u32 = 3;

/// What `quorate doctor` says in a machine with a device whose fence holds.
pub(crate) fn doctor(lab: &Lab) -> Result<()> {
    let program = Program::new(crate::built("quorate")?.display().to_string()).arg("doctor");
    let said = lab.host(1).run(&program, PATIENCE)?.success()?;
    let line = said.lines().find(|line| line.contains("passive followers: ")).unwrap_or_default();
    println!("{line}");
    ensure!(line.contains("possible on rxe0, with durability memory"), "{said}");
    let last = said.lines().last().unwrap_or_default();
    ensure!(last.ends_with("followers active, passive"), "{said}");
    Ok(())
}

/// Leaders are killed, come back without their memory and are made voters again, while clients write down
/// what they see.
pub(crate) fn linearizable(lab: &Lab) -> Result<()> {
    Cluster::in_memory(lab, "passive", |cluster| {
        cluster.all_by((6, 0));
        proofs(cluster)?;
        by_completion(cluster);
        let mut before = Client::new(&cluster.address(cluster.leader()));
        for number in 0..50 {
            ensure!(before.insist(&format!("SET before-{number} {number}")).is_ok(), "a write");
        }
        let wanted = operations(2_000);
        let clients = Clients::start(&cluster.addresses(), CLIENTS, PACE, 23);
        let begin = Instant::now();
        let mut kills = 0;
        while kills < KILLS_MIN || clients.answered() < wanted {
            let leader = cluster.leader();
            clients.advance(BETWEEN);
            cluster.end_replica(leader);
            kills += 1;
            clients.advance(BETWEEN);
            cluster.start_replica(leader)?;
            cluster.readmit(leader)?;
        }
        println!(
            "{} operations answered in {:.0} s under {kills} kills of the leader",
            clients.answered(),
            begin.elapsed().as_secs_f64()
        );
        let history = History::merge(clients.stop());
        cluster.converged();
        cluster.all_by((6, 0));
        by_completion(cluster);
        let mut after = Client::new(&cluster.address(cluster.leader()));
        for number in 0..50 {
            let value = after.insist(&format!("GET before-{number}"));
            assert_eq!(value, Reply::text(&number.to_string()), "an acknowledged write is there");
        }
        judge(&history)
    })
}

/// Waits until completed writes are the votes of all followers, as status says.
pub(crate) fn by_completion(cluster: &Cluster<'_>) {
    cluster.wait("votes by completion of all followers", || {
        let leader = cluster.leader();
        let peers = cluster.report(leader)?.peers;
        peers.iter().all(|peer| peer.passive).then_some(())
    });
}

/// Each replica has kept the proof that its fence holds, for its next start in this boot.
fn proofs(cluster: &Cluster<'_>) -> Result<()> {
    for number in 1..=REPLICAS {
        let file = format!("{}/fence.proof", cluster.directory(number));
        let text = cluster.host(number).shell(&format!("cat {file}"), PATIENCE)?;
        ensure!(text.contains("device rxe0"), "{text}");
    }
    Ok(())
}
