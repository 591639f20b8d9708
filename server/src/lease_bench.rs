//! `quorate bench --reads`: linearizable reads at the leader, confirmed by a majority or by a lease.
//!
//! Two clusters run at the same time and are asked by turns, so that whatever else the machine does hits
//! both alike.

use crate::bench::leader_address;
use crate::cli::BenchArgs;
use crate::cluster::{ClusterProcesses, Manifest};
use anyhow::{Context, Result, bail};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CLIENTS: usize = 64;
/// One cluster is asked for so long, then the other.
const TURN: Duration = Duration::from_millis(500);

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let directory = std::env::temp_dir().join(format!("quorate-reads-{}", std::process::id()));
    let outcome = measure(args, &directory);
    let _ = std::fs::remove_dir_all(&directory);
    let [confirmed, leased] = outcome?;
    println!(
        "linearizable GET at the leader, {CLIENTS} clients, one request in flight each, 3 processes and \
         the clients on {} cores, by turns of {} ms for {} s each\n  read-index {confirmed:>10.0} \
         reads/s\n  lease      {leased:>10.0} reads/s\n  lease : read-index = {:.2} : 1",
        std::thread::available_parallelism().map_or(1, usize::from),
        TURN.as_millis(),
        args.seconds,
        leased / confirmed
    );
    Ok(ExitCode::SUCCESS)
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
            timers,
        };
        let directory = directory.join(place.to_string());
        std::fs::create_dir_all(&directory).context("the folder for the data")?;
        clusters.push(ClusterProcesses::start(&manifest, &directory, "warn")?);
        leaders.push(leader_address(&manifest)?);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let mut reads = [0, 0];
    let turns = (args.seconds * 1_000).div_ceil(TURN.as_millis() as u64).max(1);
    runtime?.block_on(async {
        for turn in 0..=turns {
            for (place, leader) in leaders.iter().enumerate() {
                let count = one_turn(leader).await?;
                // The first turn warms up.
                reads[place] += if turn == 0 { 0 } else { count };
            }
        }
        anyhow::Ok(())
    })?;
    let seconds = TURN.as_secs_f64() * turns as f64;
    Ok(reads.map(|count| count as f64 / seconds))
}

async fn one_turn(leader: &str) -> Result<u64> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let stream = TcpStream::connect(leader).await.context("connecting a reader")?;
        stream.set_nodelay(true)?;
        clients.push(stream);
    }
    let until = Instant::now() + TURN;
    let tasks: Vec<_> =
        clients.into_iter().map(|stream| tokio::spawn(read(stream, until))).collect();
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
