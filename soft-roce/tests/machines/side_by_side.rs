//! The same load over TCP and over RDMA in the same machines: only the ratio means anything there.

use crate::PATIENCE;
use crate::cluster::Cluster;
use anyhow::{Context, Result, ensure};
use quorate_soft_roce::{Lab, Program};

/// Writes of a turn, and clients that make them, each waiting for its answer.
const LOADS: [(u32, u32); 2] = [(20, 2_000), (1, 200)];

/// What a load came to: writes per second and milliseconds.
#[derive(Clone, Copy)]
struct Figures {
    rate: f64,
    median: f64,
    p99: f64,
    longest: f64,
}

/// Turns of each transport: more by the variable `QUORATE_TURNS`.
fn turns() -> usize {
    std::env::var("QUORATE_TURNS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let mut sides = [Vec::new(), Vec::new()];
    for _ in 0..turns().max(1) {
        for (side, transport) in sides.iter_mut().zip(["tcp", "rdma"]) {
            Cluster::with(lab, transport, "file", |cluster| {
                let carriers = if transport == "tcp" { (0, 6) } else { (6, 0) };
                cluster.all_by(carriers);
                let before = cluster.lives()?;
                let figures: Result<Vec<_>> = LOADS
                    .iter()
                    .map(|(clients, writes)| load(cluster, *clients, *writes))
                    .collect();
                // A lane that fell back meanwhile would make the comparison one of TCP with itself.
                ensure!(cluster.lives()? == before, "void: a lane or a leader changed meanwhile");
                side.push(figures?);
                Ok(())
            })?;
        }
    }
    print(lab.hosts().len(), &sides);
    Ok(())
}

/// Writes of 100 bytes to the leader, by `redis-benchmark` on the leader's host.
fn load(cluster: &Cluster<'_>, clients: u32, writes: u32) -> Result<Figures> {
    let leader = cluster.leader();
    let port = crate::client_port(leader).to_string();
    let (clients, writes) = (clients.to_string(), writes.to_string());
    let program = Program::new("redis-benchmark").args(["-h", "127.0.0.1", "-p", &port]);
    let program = program.args(["-t", "set", "-n", &writes, "-c", &clients, "-d", "100", "--csv"]);
    let said = cluster.host(leader).run(&program, PATIENCE)?.success()?;
    let line = said.lines().find(|line| line.starts_with("\"SET\"")).context("no figures")?;
    let number = |at: usize| -> Result<f64> {
        let word = line.split(',').nth(at).with_context(|| format!("too few figures: {line}"))?;
        word.trim_matches('"').parse().with_context(|| line.to_owned())
    };
    // Rate; average, least, median, 95 and 99 in 100, longest.
    Ok(Figures { rate: number(1)?, median: number(4)?, p99: number(6)?, longest: number(7)? })
}

type Pick = fn(&Figures) -> f64;

const COLUMNS: [(&str, Pick); 4] = [
    ("writes/s", |figures| figures.rate),
    ("median, ms", |figures| figures.median),
    ("p99, ms", |figures| figures.p99),
    ("longest, ms", |figures| figures.longest),
];

/// A line for each figure: the medians of both sides, and the median of the ratios of a turn.
fn print(hosts: usize, [tcp, rdma]: &[Vec<Vec<Figures>>; 2]) {
    println!(
        "\nmachines  clients       figure       tcp      rdma  rdma/tcp  ({} turns)",
        tcp.len()
    );
    for (place, (clients, _)) in LOADS.iter().enumerate() {
        for (name, pick) in COLUMNS {
            let of = |side: &[Vec<Figures>]| -> Vec<f64> {
                side.iter().map(|loads| pick(&loads[place])).collect()
            };
            let ratios = of(rdma).iter().zip(of(tcp)).map(|(rdma, tcp)| rdma / tcp).collect();
            let (tcp, rdma, ratio) = (median(of(tcp)), median(of(rdma)), median(ratios));
            println!("{hosts:>8} {clients:>8} {name:>12} {tcp:>9.1} {rdma:>9.1} {ratio:>9.2}");
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
