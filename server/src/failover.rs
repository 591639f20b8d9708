//! `quorate bench --failover` and `--transfer`: how long a change of leader is felt.
//!
//! One client of each replica writes in a closed loop. A kill is felt until every surviving replica has
//! acknowledged a write that was sent after it; a transfer by the longest time in which nobody, at any
//! replica, got an acknowledgement. Such a time has other causes too, a processor lent to somebody else or
//! a slow flush, so that the same span right before each transfer is measured beside it.

use crate::admin;
use crate::bench::leader_address;
use crate::cli::BenchArgs;
use crate::cluster::{ClusterProcesses, Manifest};
use crate::status;
use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How the leader is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum How {
    /// `kill -9`.
    Kill,
    /// `quorate transfer`.
    Transfer,
}

/// Nothing may take longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between rounds: everything is as it was.
const PAUSE: Duration = Duration::from_millis(150);
/// A transfer takes some milliseconds. A gap counts that begins within this time of the request, however
/// long it lasts, and as much time before the request is the span to compare with.
const SPAN: Duration = Duration::from_millis(50);
/// The state of a replica that `quorate status` tells may be as old as this.
const STALE: Duration = Duration::from_millis(100);

/// An acknowledged write: when it was sent and when it was answered, and by which replica.
#[derive(Clone, Copy)]
struct Acknowledged {
    node: u16,
    sent: Instant,
    at: Instant,
}

type Seen = Arc<Mutex<Vec<Acknowledged>>>;

pub(crate) fn run(args: &BenchArgs, rounds: u32, how: How) -> Result<ExitCode> {
    let durability = args.durability.last().map_or("file", String::as_str);
    let base = match &args.dir {
        Some(directory) => std::path::absolute(directory)?,
        None => std::env::temp_dir(),
    };
    let directory = base.join(format!("quorate-failover-{}", std::process::id()));
    std::fs::create_dir_all(&directory).context("the folder for the data")?;
    let manifest = Manifest {
        replicas: 3,
        base_port: args.base_port,
        durability: durability.into(),
        transport: "tcp".into(),
        followers: "active".into(),
        timers: args.timers.config(),
    };
    let outcome = measure(&manifest, &directory, rounds, how);
    let _ = std::fs::remove_dir_all(&directory);
    let Gaps { changed: gaps, before } = outcome?;
    let what = match how {
        How::Kill => "kill -9 of the leader until both others acknowledged a write sent after it",
        How::Transfer => {
            "planned transfer: the longest time without an acknowledged write, and of the same span right \
             before it"
        }
    };
    let timers = &manifest.timers;
    println!(
        "{what}\n{} of {rounds} rounds, 3 processes, loopback, {durability}, heartbeat {} ms, elections {} to \
         {} ms, a closed loop of one write at each replica",
        gaps.len(),
        timers.heartbeat_ms,
        timers.election_timeout_min_ms,
        timers.election_timeout_max_ms
    );
    for quantile in [0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 1.0] {
        let millis = |gaps: &Histogram<u64>| gaps.value_at_quantile(quantile) as f64 / 1e3;
        print!("  p{:<4} {:>9.2} ms", quantile * 100.0, millis(&gaps));
        match how {
            How::Kill => println!(),
            How::Transfer => println!("   (without a transfer {:>7.2} ms)", millis(&before)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What was felt, in microseconds.
struct Gaps {
    /// Of each change of leader.
    changed: Histogram<u64>,
    /// Of the span before each transfer.
    before: Histogram<u64>,
}

impl Gaps {
    fn new() -> Result<Self> {
        let histogram = || Histogram::new_with_max(60_000_000, 3);
        Ok(Self { changed: histogram()?, before: histogram()? })
    }
}

fn measure(
    manifest: &Manifest,
    directory: &std::path::Path,
    rounds: u32,
    how: How,
) -> Result<Gaps> {
    let mut cluster = ClusterProcesses::start(manifest, directory, "warn")?;
    leader_address(manifest)?;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Seen::default();
    let writers: Vec<_> = (1..=manifest.replicas)
        .map(|node| {
            let (address, stop, seen) =
                (manifest.client_address(node), Arc::clone(&stop), Arc::clone(&seen));
            std::thread::spawn(move || write_all_the_time(node, &address, &stop, &seen))
        })
        .collect();
    let mut gaps = Gaps::new()?;
    let result = (0..rounds).try_for_each(|_| {
        match how {
            How::Kill => {
                let gap = kill_once(manifest, &mut cluster, &seen)?;
                gaps.changed.saturating_record(gap.as_micros() as u64);
            }
            How::Transfer => transfer_once(manifest, &seen, &mut gaps)?,
        }
        anyhow::Ok(())
    });
    stop.store(true, Ordering::Release);
    for writer in writers {
        let _ = writer.join();
    }
    cluster.stop();
    result.map(|()| gaps)
}

/// The leader, once all replicas are there, connected with each other, agree on it, and were served for a
/// moment. A kill before the lanes of the two others are up would be a second fault.
fn settled(manifest: &Manifest, seen: &Seen) -> Result<u16> {
    let addresses: Vec<_> =
        (1..=manifest.replicas).map(|node| manifest.client_address(node)).collect();
    let deadline = Instant::now() + PATIENCE;
    // The newest commit slot of each look: who has what anybody had a while ago is not behind.
    let mut looks: Vec<(Instant, u64)> = Vec::new();
    while Instant::now() < deadline {
        let reports: Vec<_> =
            status::ask(&addresses).into_iter().filter_map(|answer| answer.report.ok()).collect();
        let leader = reports.iter().find(|report| report.role == "leader").map(|found| found.node);
        let newest = reports.iter().map(|report| report.commit_slot).max().unwrap_or(0);
        let past = looks.iter().rfind(|(at, _)| at.elapsed() >= STALE).map(|(_, slot)| *slot);
        looks.push((Instant::now(), newest));
        let agree = |report: &crate::report::Report| {
            let connected = report.peers.iter().all(|peer| peer.control_up && peer.data_up);
            report.leader == leader
                && connected
                && past.is_some_and(|past| report.commit_slot >= past)
        };
        if let Some(leader) = leader.filter(|_| reports.len() == 3 && reports.iter().all(agree)) {
            std::thread::park_timeout(PAUSE);
            seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
            return Ok(leader);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    bail!("the cluster did not settle within {} s", PATIENCE.as_secs())
}

fn kill_once(manifest: &Manifest, cluster: &mut ClusterProcesses, seen: &Seen) -> Result<Duration> {
    let leader = settled(manifest, seen)?;
    let killed = Instant::now();
    cluster.kill(leader)?;
    let deadline = killed + PATIENCE;
    let served = |node: u16| {
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().find(|ack| ack.node == node && ack.sent > killed).map(|ack| ack.at)
    };
    let mut gap = Duration::ZERO;
    for node in (1..=manifest.replicas).filter(|node| *node != leader) {
        let at = loop {
            if let Some(at) = served(node) {
                break at;
            }
            if Instant::now() > deadline {
                bail!("replica {node} served nothing within {} s", PATIENCE.as_secs());
            }
            std::thread::park_timeout(Duration::from_millis(1));
        };
        gap = gap.max(at - killed);
    }
    cluster.restart(leader, "warn")?;
    Ok(gap)
}

fn transfer_once(manifest: &Manifest, seen: &Seen, gaps: &mut Gaps) -> Result<()> {
    let leader = settled(manifest, seen)?;
    std::thread::park_timeout(SPAN + Duration::from_millis(20));
    let to = leader % manifest.replicas + 1;
    let asked = Instant::now();
    admin::transfer(&manifest.client_address(leader), Some(to))?;
    // A status of before the change must not be believed.
    std::thread::park_timeout(PAUSE);
    let after = settled(manifest, &Seen::default())?;
    if after != to {
        // A follower that does not catch up in time, on a busy machine: the leader went on.
        println!("replica {to} did not take over in time: {after} leads");
        return Ok(());
    }
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let mut times: Vec<_> = seen.iter().map(|ack| ack.at).collect();
    times.sort_unstable();
    let longest = |from: Instant| {
        let within = |pair: &&[Instant]| pair[1] > from && pair[0] < from + SPAN;
        times.windows(2).filter(within).map(|pair| pair[1] - pair[0]).max()
    };
    let changed = longest(asked).context("nothing was written meanwhile")?;
    let before = longest(asked - SPAN).context("nothing was written before")?;
    gaps.changed.saturating_record(changed.as_micros() as u64);
    gaps.before.saturating_record(before.as_micros() as u64);
    Ok(())
}

/// A closed loop of one write; what fails is tried again at once, on a new connection if need be.
fn write_all_the_time(node: u16, address: &str, stop: &AtomicBool, seen: &Seen) {
    let request = format!("*3\r\n$3\r\nSET\r\n$2\r\nw{node}\r\n$1\r\nx\r\n");
    let mut stream: Option<TcpStream> = None;
    let mut reply = [0; 512];
    while !stop.load(Ordering::Acquire) {
        let Some(connection) = &mut stream else {
            stream = TcpStream::connect(address).ok();
            if let Some(stream) = &stream {
                let _ = stream.set_nodelay(true);
                let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
            } else {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            continue;
        };
        let sent = Instant::now();
        let answered = connection
            .write_all(request.as_bytes())
            .and_then(|()| connection.read(&mut reply))
            .unwrap_or(0);
        if answered == 0 {
            stream = None;
        } else if reply[0] == b'+' {
            let acknowledged = Acknowledged { node, sent, at: Instant::now() };
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(acknowledged);
        }
    }
}
