//! The same load over TCP and over RDMA, and over RDMA with active and with passive followers, in the same
//! machines: only the ratio means anything there.

use crate::PATIENCE;
use crate::cluster::Cluster;
use anyhow::{Context, Result};
use quorate_soft_roce::{Host, Lab, Program};

/// Writes of a turn, and clients that make them, each waiting for its answer.
const LOADS: [(u32, u32); 2] = [(20, 2_000), (1, 200)];

/// Turns without a figure, until it is given up.
const VOID_MAX: u32 = 3;

/// What a load came to: writes per second and milliseconds.
#[derive(Clone, Copy)]
struct Figures {
    rate: f64,
    median: f64,
    p99: f64,
    longest: f64,
    /// Frames between the hosts for each batch; with one host nobody counts them.
    frames: f64,
}

/// Turns of each transport: more by the variable `QUORATE_TURNS`.
fn turns() -> usize {
    std::env::var("QUORATE_TURNS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

pub(crate) fn run(lab: &Lab) -> Result<()> {
    compare(lab, ["tcp", "rdma"], |lab, transport, test| {
        Cluster::with(lab, transport, "file", |cluster| {
            cluster.all_by(if transport == "tcp" { (0, 6) } else { (6, 0) });
            test(cluster)
        })
    })
}

/// Over RDMA, with logs in memory.
pub(crate) fn passive(lab: &Lab) -> Result<()> {
    compare(lab, ["active", "passive"], |lab, followers, test| {
        Cluster::in_memory(lab, followers, |cluster| {
            cluster.all_by((6, 0));
            if followers == "passive" {
                crate::passive::by_completion(cluster);
            }
            test(cluster)
        })
    })
}

/// What is done with a cluster of one side.
type Test<'t> = &'t mut dyn FnMut(&Cluster<'_>) -> Result<()>;

/// Measures both sides in turns.
fn compare(
    lab: &Lab,
    names: [&'static str; 2],
    with: impl Fn(&Lab, &'static str, Test<'_>) -> Result<()>,
) -> Result<()> {
    let mut sides = [Vec::new(), Vec::new()];
    let mut void = 0;
    while sides[0].len() < turns().max(1) {
        let mut turn = Vec::new();
        for name in names {
            with(lab, name, &mut |cluster| {
                let before = cluster.lives()?;
                let figures: Result<Vec<_>> = LOADS
                    .iter()
                    .map(|(clients, writes)| load(cluster, *clients, *writes))
                    .collect();
                // A lane that fell back meanwhile would make it a comparison of TCP with itself, and
                // an election an error of the load's program.
                if cluster.lives()? == before {
                    turn.push(figures?);
                }
                Ok(())
            })?;
        }
        if turn.len() == sides.len() {
            sides.iter_mut().zip(turn).for_each(|(side, figures)| side.push(figures));
            continue;
        }
        void += 1;
        println!("void: a lane or a leader changed meanwhile, as on a busy machine");
        if void == VOID_MAX {
            // It is a measurement, and this machine is too busy for one.
            println!("skipped: no quiet machine here, run it on one");
            return Ok(());
        }
    }
    print(lab.hosts().len(), names, &sides);
    Ok(())
}

/// Writes of 100 bytes to the leader, by `redis-benchmark` on the leader's host.
fn load(cluster: &Cluster<'_>, clients: u32, writes: u32) -> Result<Figures> {
    let leader = cluster.leader();
    let port = crate::client_port(leader).to_string();
    let (clients, writes) = (clients.to_string(), writes.to_string());
    let program = Program::new("redis-benchmark").args(["-h", "127.0.0.1", "-p", &port]);
    let program = program.args(["-t", "set", "-n", &writes, "-c", &clients, "-d", "100", "--csv"]);
    let before = (frames(cluster.lab), batches(cluster));
    let said = cluster.host(leader).run(&program, PATIENCE)?.success()?;
    let after = (frames(cluster.lab), batches(cluster));
    let frames = (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64;
    let line = said.lines().find(|line| line.starts_with("\"SET\"")).context("no figures")?;
    let number = |at: usize| -> Result<f64> {
        let word = line.split(',').nth(at).with_context(|| format!("too few figures: {line}"))?;
        word.trim_matches('"').parse().with_context(|| line.to_owned())
    };
    // Rate; average, least, median, 95 and 99 in 100, longest.
    let (rate, median, p99, longest) = (number(1)?, number(4)?, number(6)?, number(7)?);
    Ok(Figures { rate, median, p99, longest, frames })
}

/// Frames of RDMA and TCP that the switch forwarded.
fn frames(lab: &Lab) -> u64 {
    let hosts = || lab.hosts().iter().map(Host::number);
    let directions = hosts().flat_map(|from| hosts().map(move |to| (from, to)));
    let several = directions.filter(|(from, to)| from != to);
    let counts = several.map(|(from, to)| lab.network().count(from, to));
    counts.map(|count| count.rdma_frames + count.tcp_frames).sum()
}

fn batches(cluster: &Cluster<'_>) -> u64 {
    let reports = (1..=crate::REPLICAS).filter_map(|number| cluster.report(number));
    reports.map(|report| report.counters.batches_proposed).sum()
}

type Pick = fn(&Figures) -> f64;

const COLUMNS: [(&str, Pick); 5] = [
    ("writes/s", |figures| figures.rate),
    ("median, ms", |figures| figures.median),
    ("p99, ms", |figures| figures.p99),
    ("longest, ms", |figures| figures.longest),
    ("frames/batch", |figures| figures.frames),
];

/// A line for each figure: the medians of both sides, and the median of the ratios of a turn.
fn print(hosts: usize, names: [&str; 2], [first, second]: &[Vec<Vec<Figures>>; 2]) {
    println!(
        "\nmachines  clients       figure {:>9} {:>9}     ratio  ({} turns)",
        names[0],
        names[1],
        first.len()
    );
    for (place, (clients, _)) in LOADS.iter().enumerate() {
        // The switch counts frames, and one host has none.
        for (name, pick) in COLUMNS.into_iter().take(if hosts == 1 { 4 } else { 5 }) {
            let of = |side: &[Vec<Figures>]| -> Vec<f64> {
                side.iter().map(|loads| pick(&loads[place])).collect()
            };
            let ratios = of(second).iter().zip(of(first)).map(|(b, a)| b / a).collect();
            let (a, b, ratio) = (median(of(first)), median(of(second)), median(ratios));
            println!("{hosts:>8} {clients:>8} {name:>12} {a:>9.1} {b:>9.1} {ratio:>9.2}");
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
