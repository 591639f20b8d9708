//! `quorate serve`: one replica with its front end, until it is told to stop.

use crate::backend::{OnFollower, ReplicaBackend};
use crate::config::Config;
use crate::kv::Limits;
use crate::machine::KvMachine;
use crate::metrics;
use crate::resp;
use anyhow::{Context, Result, bail};
use quorate::{NodeId, Replica};
use std::io;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpSocket};

/// Threads of the front end, where the configuration leaves it to us.
const THREADS_MAX: usize = 4;
/// Connections that wait to be accepted: beyond it the kernel drops a client's first packet, and the
/// client tries again only after a second. The kernel's own limit (`somaxconn`) is 4096 by default.
const BACKLOG: u32 = 4096;

/// Runs the replica that `config` describes.
///
/// # Errors
/// What kept it from starting, with what to do.
pub fn serve(config: &Config, stop_with_stdin: bool) -> Result<()> {
    let threads = match config.client.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX),
        threads => threads,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("quorate-client")
        .enable_all()
        .build()
        .context("the threads of the front end cannot start")?;
    runtime.block_on(run(config, stop_with_stdin))
}

async fn run(config: &Config, stop_with_stdin: bool) -> Result<()> {
    let Some(own) = config.member(config.replica.node) else {
        bail!("replica {} is not among the members", config.replica.node);
    };
    // The ports come first: a replica that cannot serve clients should not join its cluster.
    let address = config.client.listen.as_ref().unwrap_or(&own.client);
    let listener = listen(address).await.with_context(|| {
        format!(
            "cannot listen for clients on {address}: choose another client address or port, or \
                 stop what uses it"
        )
    })?;
    if let Some(address) = &config.metrics.listen {
        metrics::listen(address)?;
    }
    let limits = Limits::default();
    let replica = start_replica(
        config,
        match config.timers.lease_ms {
            0 => KvMachine::new(limits),
            _ => KvMachine::shared(limits),
        },
    )?;
    let handle = replica.handle();
    let status = handle.status();
    tracing::info!(
        node = config.replica.node,
        clients = %listener.local_addr()?,
        peers = %own.peer,
        medium = %status.medium,
        "serving; an acknowledged write survives: {}",
        status.durability
    );
    if status.durability == quorate::Durability::Volatile {
        tracing::warn!("durability is `memory`: nothing survives the end of this process");
    }
    tokio::spawn(metrics::publish(handle.clone()));
    let on_follower = match config.client.on_follower.as_str() {
        "redirect" => OnFollower::Redirect,
        _ => OnFollower::Forward,
    };
    let members = config.members.iter();
    let members = members.map(|member| (NodeId(member.node), member.client.clone())).collect();
    let backend = ReplicaBackend::new(handle.clone(), on_follower, members);
    let settings = Arc::new(front_end_settings(config));
    let shared = Arc::new(resp::Shared::default());
    resp::serve(listener, backend, settings, shared, stop(handle, stop_with_stdin)).await;
    tracing::info!("stopping");
    // The thread is joined off the runtime's back: it ends within a turn.
    tokio::task::spawn_blocking(move || replica.stop()).await.context("the replica panicked")?;
    Ok(())
}

/// Listens with a queue that takes the clients of a whole machine at once.
async fn listen(address: &str) -> io::Result<TcpListener> {
    let mut failure = io::Error::other("the name has no address");
    for address in tokio::net::lookup_host(address).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A port whose last owner has just died is free.
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn start_replica(config: &Config, machine: KvMachine) -> Result<Replica> {
    let mut builder = Replica::builder(config.replica.node)
        .medium(config.medium())
        .directory(&config.replica.directory)
        .segment_bytes(config.replica.segment_bytes)
        .options(config.node_options());
    for member in &config.members {
        builder = builder.member(member.node, &member.peer);
    }
    if let Some(listen) = &config.replica.listen_peer {
        builder = builder.listen(listen);
    }
    #[cfg(feature = "rdma")]
    if config.replica.transport == "rdma" {
        let rdma = &config.rdma;
        builder = builder.rdma(quorate::rdma::AdapterOptions {
            device: rdma.device.clone(),
            port: rdma.port,
            gid_index: rdma.gid_index,
            address: None,
            stall: Some(std::time::Duration::from_millis(rdma.stall_ms)),
        });
    }
    Ok(builder.start(machine)?)
}

fn front_end_settings(config: &Config) -> resp::Settings {
    let value_bytes = config.client.value_bytes_max;
    let command_bytes = config.node_options().command_bytes_max;
    resp::Settings {
        max_clients: config.client.connections_max,
        max_bulk_bytes: value_bytes,
        max_request_bytes: value_bytes * 2,
        max_command_bytes: command_bytes - (64 << 10),
        max_batch_commands: config.client.batch_commands_max,
        max_batch_bytes: config.limits.batch_bytes_max.min(command_bytes / 2),
        ..resp::Settings::default()
    }
}

/// Resolves when this process should end: a signal, the parent is gone, or the replica died.
async fn stop(handle: quorate::Handle, stop_with_stdin: bool) {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    let orphaned = async {
        if !stop_with_stdin {
            return std::future::pending().await;
        }
        let mut stdin = tokio::io::stdin();
        let mut bytes = [0; 64];
        while matches!(tokio::io::AsyncReadExt::read(&mut stdin, &mut bytes).await, Ok(n) if n > 0)
        {
        }
    };
    let died = async {
        while !handle.is_stopped() {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        tracing::error!("the replica's thread ended");
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
        () = orphaned => {}
        () = died => {}
    }
}
