//! `quorate bench`: throughput and latency of three processes on this machine, with the conditions.

use crate::cli::BenchArgs;
use crate::cluster::{ClusterProcesses, Manifest};
use crate::status;
use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One connection keeps at most this many commands in flight; more need more connections.
const DEPTH_MAX: usize = 64;
/// How long a cluster may take to have a leader.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Time before the figures count.
const WARM_UP: Duration = Duration::from_millis(700);
/// Keys that the load writes to.
const KEYS: u64 = 10_000;

/// Runs the command.
///
/// # Errors
/// When a cluster does not come up, or a reply is an error.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    if let Some(rounds) = args.failover {
        return crate::failover::run(args, rounds, crate::failover::How::Kill);
    }
    if let Some(rounds) = args.transfer {
        return crate::failover::run(args, rounds, crate::failover::How::Transfer);
    }
    if args.reads {
        return crate::lease_bench::run(args);
    }
    let base = match &args.dir {
        Some(directory) => std::path::absolute(directory)?,
        None => std::env::temp_dir(),
    };
    println!(
        "quorate bench: 3 replicas as 3 processes, TCP loopback, SET of {} B values over {KEYS} keys, \
         clients in 1 more process, {} cores, {} s each\n\
         in flight = connections x pipeline depth; latency is that of a whole pipeline",
        args.value_bytes,
        std::thread::available_parallelism().map_or(1, usize::from),
        args.seconds,
    );
    println!(
        "{:<10} {:>9} {:>12} {:>12} {:>10} {:>10} {:>10} {:>14}",
        "durability",
        "in flight",
        "connections",
        "commands/s",
        "p50 us",
        "p99 us",
        "p999 us",
        "cpu us/command"
    );
    for durability in &args.durability {
        let directory = base.join(format!("quorate-bench-{}-{durability}", std::process::id()));
        let figures = measure(args, durability, &directory);
        // Scratch data: what cannot be removed is only in the way.
        let _ = std::fs::remove_dir_all(&directory);
        figures?;
    }
    println!(
        "cpu: user and system time of all three replicas for one command, front ends included"
    );
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &BenchArgs, durability: &str, directory: &Path) -> Result<()> {
    let manifest = Manifest {
        replicas: 3,
        base_port: args.base_port,
        durability: durability.to_string(),
        transport: "tcp".into(),
        followers: "active".into(),
        timers: args.timers.config(),
    };
    std::fs::create_dir_all(directory).context("the folder for the data")?;
    let mut cluster = ClusterProcesses::start(&manifest, directory, "warn")?;
    let leader = leader_address(&manifest)?;
    let processes: Vec<u32> = cluster.replicas.iter().map(|replica| replica.id()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the threads of the load")?;
    let mut throughput = Vec::new();
    for &in_flight in &args.in_flight {
        let depth = in_flight.clamp(1, DEPTH_MAX);
        let connections = in_flight.div_ceil(depth).max(1);
        let load = Load {
            address: leader.clone(),
            connections,
            depth,
            value_bytes: args.value_bytes,
            time: Duration::from_secs(args.seconds),
        };
        let before = cpu_seconds(&processes);
        let result = runtime.block_on(load.run())?;
        let cpu = cpu_seconds(&processes) - before;
        let rate = result.counted as f64 / result.seconds;
        throughput.push((in_flight, rate));
        println!(
            "{durability:<10} {in_flight:>9} {connections:>12} {rate:>12.0} {:>10} {:>10} {:>10} {:>14.2}",
            result.latency.value_at_quantile(0.5),
            result.latency.value_at_quantile(0.99),
            result.latency.value_at_quantile(0.999),
            cpu * 1e6 / result.total as f64,
        );
    }
    let of = |wanted| {
        throughput.iter().find(|(in_flight, _)| *in_flight == wanted).map(|(_, rate)| *rate)
    };
    if let (Some(one), Some(many)) = (of(1), of(256)) {
        println!("{durability:<10} 256 in flight : 1 in flight = {:.1} : 1", many / one);
    }
    cluster.stop();
    Ok(())
}

/// Where clients reach the leader.
///
/// # Errors
/// When there is none for long.
pub(crate) fn leader_address(manifest: &Manifest) -> Result<String> {
    let addresses: Vec<_> =
        (1..=manifest.replicas).map(|node| manifest.client_address(node)).collect();
    let deadline = Instant::now() + START_PATIENCE;
    while Instant::now() < deadline {
        let answers = status::ask(&addresses);
        let leads = |answer: &&status::Answer| {
            answer.report.as_ref().is_ok_and(|report| report.role == "leader")
        };
        if let Some(leader) = answers.iter().find(leads) {
            return Ok(leader.address.clone());
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    bail!("the cluster has no leader after {} s", START_PATIENCE.as_secs())
}

/// A closed loop: each connection sends a pipeline, waits for all its replies, and sends the next.
struct Load {
    address: String,
    connections: usize,
    depth: usize,
    value_bytes: usize,
    time: Duration,
}

struct LoadResult {
    /// Commands answered, the warm-up included: for the processor time.
    total: u64,
    /// Commands answered after the warm-up, and in how many seconds.
    counted: u64,
    seconds: f64,
    /// Microseconds from a pipeline's first byte to its last reply.
    latency: Histogram<u64>,
}

impl Load {
    async fn run(&self) -> Result<LoadResult> {
        let start = Instant::now();
        let from = start + WARM_UP;
        let until = from + self.time;
        let mut tasks = Vec::new();
        for connection in 0..self.connections {
            let stream = TcpStream::connect(&self.address).await.context("connecting the load")?;
            stream.set_nodelay(true)?;
            let client = Client {
                stream,
                depth: self.depth,
                value: "x".repeat(self.value_bytes),
                random: connection as u64 + 1,
            };
            tasks.push(tokio::spawn(client.run(from, until)));
        }
        let mut latency = Histogram::new_with_max(60_000_000, 3)?;
        let (mut total, mut counted) = (0, 0);
        for task in tasks {
            let result = task.await.context("a client of the load failed")??;
            total += result.total;
            counted += result.counted;
            latency.add(&result.latency)?;
        }
        Ok(LoadResult { total, counted, seconds: self.time.as_secs_f64(), latency })
    }
}

struct Client {
    stream: TcpStream,
    depth: usize,
    value: String,
    random: u64,
}

impl Client {
    async fn run(mut self, from: Instant, until: Instant) -> Result<LoadResult> {
        let mut latency = Histogram::new_with_max(60_000_000, 3)?;
        let (mut total, mut counted) = (0, 0);
        let mut request = String::new();
        let mut replies = vec![0; 64 << 10];
        loop {
            let sent = Instant::now();
            if sent >= until {
                break;
            }
            request.clear();
            for _ in 0..self.depth {
                let key = self.next_key();
                write!(
                    request,
                    "*3\r\n$3\r\nSET\r\n$8\r\nk{key:07}\r\n${}\r\n{}\r\n",
                    self.value.len(),
                    self.value
                )?;
            }
            self.stream.write_all(request.as_bytes()).await?;
            let mut missing = self.depth;
            while missing > 0 {
                let read = self.stream.read(&mut replies).await?;
                if read == 0 {
                    bail!("the replica closed the connection");
                }
                if replies[..read].contains(&b'-') {
                    bail!("an error reply: {}", replies[..read].escape_ascii());
                }
                missing -= replies[..read].iter().filter(|byte| **byte == b'\n').count();
            }
            total += self.depth as u64;
            if sent >= from {
                counted += self.depth as u64;
                latency.saturating_record(sent.elapsed().as_micros() as u64);
            }
        }
        Ok(LoadResult { total, counted, seconds: 0.0, latency })
    }

    fn next_key(&mut self) -> u64 {
        // Xorshift: the keys need to be spread, not unpredictable.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % KEYS
    }
}

/// User and system time of processes so far (proc(5), fields 14 and 15 of `stat`).
fn cpu_seconds(processes: &[u32]) -> f64 {
    /// The unit of those fields on Linux for user space, whatever the kernel's own tick.
    const TICKS_PER_SECOND: f64 = 100.0;
    let ticks = |process: &u32| -> Option<f64> {
        let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let rest = text.rsplit_once(')')?.1;
        let mut fields = rest.split_whitespace().skip(11);
        let user: f64 = fields.next()?.parse().ok()?;
        let system: f64 = fields.next()?.parse().ok()?;
        Some(user + system)
    };
    processes.iter().filter_map(ticks).sum::<f64>() / TICKS_PER_SECOND
}
