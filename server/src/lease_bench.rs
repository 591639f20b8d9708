//! `quorate bench --reads`: linearizable reads at the leader, confirmed by a majority or by a lease: by the
//! library in the process of the leader, and over RESP.
//!
//! Two clusters run at the same time and are asked by turns, so that whatever else the machine does hits
//! both alike.

use crate::bench::leader_address;
use crate::cli::BenchArgs;
use crate::cluster::{ClusterProcesses, Manifest};
use crate::kv::{Command, Limits};
use crate::machine::KvMachine;
use anyhow::{Context, Result, bail};
use quorate::{BytesMut, Consistency, Handle, MediumKind, NodeId, NodeOptions, Replica, RoleName};
use std::net::TcpListener;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const CLIENTS: usize = 64;
/// One cluster is asked for so long, then the other.
const TURN: Duration = Duration::from_millis(500);

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let directory = std::env::temp_dir().join(format!("quorate-reads-{}", std::process::id()));
    let outcome = library(args).and_then(|inside| Ok((inside, measure(args, &directory)?)));
    let _ = std::fs::remove_dir_all(&directory);
    let (inside, over_resp) = outcome?;
    println!(
        "linearizable reads at the leader, {CLIENTS} clients, one request in flight each, on {} cores, \
         by turns of {} ms for {} s each",
        std::thread::available_parallelism().map_or(1, usize::from),
        TURN.as_millis(),
        args.seconds,
    );
    show("in the process of the leader, 3 replicas and the clients in one", inside);
    show("GET over RESP, 3 processes and the clients in another", over_resp);
    Ok(ExitCode::SUCCESS)
}

fn show(how: &str, [confirmed, leased]: [f64; 2]) {
    println!(
        "{how}\n  read-index {confirmed:>10.0} reads/s\n  lease      {leased:>10.0} reads/s\n  \
         lease : read-index = {:.2} : 1",
        leased / confirmed
    );
}

/// Both clusters in this process, asked through the library.
fn library(args: &BenchArgs) -> Result<[f64; 2]> {
    let clusters = [in_process(args, false)?, in_process(args, true)?];
    let mut leaders = Vec::new();
    for cluster in &clusters {
        leaders.push(leading(cluster)?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    by_turns(args, &runtime, async |place: usize| {
        let until = Instant::now() + TURN;
        let ask = |handle: Handle| async move {
            let mut query = BytesMut::new();
            Command::Get { key: b"k" }.encode(&mut query);
            let mut count = 0;
            while Instant::now() < until {
                handle.query(&query, Consistency::Linearizable).await?;
                count += 1;
                // A reader that never waits would keep the others from their turn.
                if count % 64 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            Ok(count)
        };
        let tasks: Vec<_> =
            (0..CLIENTS).map(|_| tokio::spawn(ask(leaders[place].clone()))).collect();
        sum(tasks).await
    })
}

/// Three replicas in memory over loopback, in this process.
fn in_process(args: &BenchArgs, lease: bool) -> Result<Vec<Replica>> {
    let listeners: Vec<_> =
        (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let addresses: Vec<_> =
        listeners.iter().map(|held| held.local_addr()).collect::<Result<_, _>>()?;
    drop(listeners);
    let timers = args.timers.config();
    let start = |node: u16| {
        // The builder sees to the members and the seed.
        let mut options = NodeOptions::new(NodeId(node), Vec::new(), 0);
        options.heartbeat_interval = Duration::from_millis(timers.heartbeat_ms);
        options.election_timeout_min = Duration::from_millis(timers.election_timeout_min_ms);
        options.election_timeout_max = Duration::from_millis(timers.election_timeout_max_ms);
        options.lease = if lease { options.election_timeout_min } else { Duration::ZERO };
        let machine = if lease { KvMachine::shared } else { KvMachine::new };
        Replica::builder(node)
            .members(addresses.iter().map(ToString::to_string))
            .medium(MediumKind::Memory)
            .options(options)
            .start(machine(Limits::default()))
    };
    (1..=3).map(|node| start(node).context("starting a replica")).collect()
}

/// The way to the one that leads, once it does.
fn leading(replicas: &[Replica]) -> Result<Handle> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let leads = |replica: &&Replica| replica.status().role == RoleName::Leader;
        if let Some(leader) = replicas.iter().find(leads) {
            return Ok(leader.handle());
        }
        if Instant::now() > deadline {
            bail!("no replica led within 20 s");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn measure(args: &BenchArgs, directory: &std::path::Path) -> Result<[f64; 2]> {
    let mut clusters = Vec::new();
    let mut leaders = Vec::new();
    for (place, lease) in [false, true].into_iter().enumerate() {
        let mut timers = args.timers.config();
        timers.lease_ms = if lease { timers.election_timeout_min_ms } else { 0 };
        let manifest = Manifest {
            replicas: 3,
            base_port: args.base_port + 400 * place as u16,
            durability: "memory".into(),
            transport: "tcp".into(),
            followers: "active".into(),
            timers,
        };
        let directory = directory.join(place.to_string());
        std::fs::create_dir_all(&directory).context("the folder for the data")?;
        clusters.push(ClusterProcesses::start(&manifest, &directory, "warn")?);
        leaders.push(leader_address(&manifest)?);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    by_turns(args, &runtime, async |place: usize| over_resp(&leaders[place]).await)
}

/// Reads a second: of the cluster without leases, and of the one with.
fn by_turns(
    args: &BenchArgs,
    runtime: &tokio::runtime::Runtime,
    one_turn: impl AsyncFn(usize) -> Result<u64>,
) -> Result<[f64; 2]> {
    let mut reads = [0, 0];
    let turns = (args.seconds * 1_000).div_ceil(TURN.as_millis() as u64).max(1);
    runtime.block_on(async {
        for turn in 0..=turns {
            for (place, sum) in reads.iter_mut().enumerate() {
                let count = one_turn(place).await?;
                // The first turn warms up.
                *sum += if turn == 0 { 0 } else { count };
            }
        }
        anyhow::Ok(())
    })?;
    let seconds = TURN.as_secs_f64() * turns as f64;
    Ok(reads.map(|count| count as f64 / seconds))
}

async fn over_resp(leader: &str) -> Result<u64> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let stream = TcpStream::connect(leader).await.context("connecting a reader")?;
        stream.set_nodelay(true)?;
        clients.push(stream);
    }
    let until = Instant::now() + TURN;
    sum(clients.into_iter().map(|stream| tokio::spawn(read(stream, until))).collect()).await
}

async fn sum(tasks: Vec<JoinHandle<Result<u64>>>) -> Result<u64> {
    let mut count = 0;
    for task in tasks {
        count += task.await.context("a reader failed")??;
    }
    Ok(count)
}

async fn read(mut stream: TcpStream, until: Instant) -> Result<u64> {
    let mut count = 0;
    let mut reply = [0; 256];
    while Instant::now() < until {
        stream.write_all(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n").await?;
        let length = stream.read(&mut reply).await?;
        if length == 0 || reply[0] != b'$' {
            bail!("not a value: {}", reply[..length].escape_ascii());
        }
        count += 1;
    }
    Ok(count)
}
