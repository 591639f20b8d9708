//! The Prometheus endpoint: the status of the replica, renewed once a second.

use crate::report::{Quantiles, Report};
use anyhow::{Context, Result};
use metrics::{counter, gauge};
use metrics_exporter_prometheus::PrometheusBuilder;
use quorate::Handle;
use std::net::ToSocketAddrs;
use std::time::Duration;

const RENEW_EVERY: Duration = Duration::from_secs(1);

/// Serves `http://ADDRESS/metrics`. Call inside the runtime.
///
/// # Errors
/// When the address cannot be used.
pub fn listen(address: &str) -> Result<()> {
    let resolved = address.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    let resolved =
        resolved.with_context(|| format!("metrics.listen = \"{address}\" is no HOST:PORT"))?;
    // The exporter binds late and dies alone; this finds a used port while it can be told.
    drop(std::net::TcpListener::bind(resolved).with_context(|| {
        format!("cannot listen for metrics on {address}: choose another port, or none")
    })?);
    PrometheusBuilder::new()
        .with_http_listener(resolved)
        .install()
        .with_context(|| format!("the metrics endpoint on {address} cannot start"))
}

/// Copies the replica's status into the metrics, for ever.
pub async fn publish(handle: Handle) {
    let mut interval = tokio::time::interval(RENEW_EVERY);
    loop {
        interval.tick().await;
        set(&Report::from(&handle.status()));
    }
}

fn set(report: &Report) {
    for role in ["leader", "follower", "candidate", "learner", "witness"] {
        gauge!("quorate_role", "role" => role).set(if report.role == role { 1.0 } else { 0.0 });
    }
    let round = report.ballot.split('.').next().and_then(|round| round.parse().ok());
    gauge!("quorate_ballot_round").set(round.unwrap_or(0.0_f64));
    gauge!("quorate_leader").set(f64::from(report.leader.unwrap_or(0)));
    gauge!("quorate_votes").set(if report.votes { 1.0 } else { 0.0 });
    gauge!("quorate_trouble").set(if report.trouble.is_empty() { 0.0 } else { 1.0 });
    gauge!("quorate_durability", "medium" => report.medium.clone(),
           "survives" => report.durability.clone())
    .set(1.0);
    for (name, slot) in [
        ("commit", report.commit_slot),
        ("applied", report.applied_slot),
        ("last", report.last_slot),
    ] {
        gauge!("quorate_slot", "what" => name).set(slot as f64);
    }
    for (name, depth) in [
        ("waiting_requests", report.waiting_requests),
        ("commands_in_flight", report.commands_in_flight),
        ("window_bytes", report.window_bytes),
    ] {
        gauge!("quorate_queue", "what" => name).set(depth as f64);
    }
    set_peers(report);
    set_counters(report);
    set_checkpoints(report);
    for (stage, quantiles) in [
        ("request", &report.latencies.request),
        ("commit", &report.latencies.commit),
        ("flush", &report.latencies.flush),
    ] {
        set_quantiles("quorate_latency_microseconds", stage, quantiles);
    }
    set_quantiles("quorate_batch_commands", "proposed", &report.latencies.batch);
}

fn set_peers(report: &Report) {
    for peer in &report.peers {
        let node = peer.node.to_string();
        let up = peer.control_up && peer.data_up;
        gauge!("quorate_peer_up", "peer" => node.clone()).set(if up { 1.0 } else { 0.0 });
        gauge!("quorate_peer_lag_slots", "peer" => node.clone()).set(peer.lag.unwrap_or(0) as f64);
        gauge!("quorate_peer_queued_bytes", "peer" => node.clone()).set(peer.queued_bytes as f64);
        gauge!("quorate_peer_heard_milliseconds_ago", "peer" => node.clone())
            .set(peer.heard_ms_ago.map_or(-1.0, |ms| ms as f64));
        counter!("quorate_peer_reconnects_total", "peer" => node).absolute(peer.reconnects);
    }
}

fn set_checkpoints(report: &Report) {
    let checkpoints = &report.checkpoints;
    let under_way = checkpoints.taking_bytes.is_some();
    for (name, value) in [
        ("kept", checkpoints.kept as f64),
        ("bad", checkpoints.bad as f64),
        ("newest_slot", checkpoints.newest_slot as f64),
        ("newest_bytes", checkpoints.newest_bytes as f64),
        ("being_taken", f64::from(u8::from(under_way))),
        ("being_received", f64::from(u8::from(checkpoints.receiving.is_some()))),
        ("being_restored", f64::from(u8::from(checkpoints.restoring))),
    ] {
        gauge!("quorate_checkpoints", "what" => name).set(value);
    }
    gauge!("quorate_log_first_slot").set(checkpoints.log_first as f64);
    gauge!("quorate_log_disk_bytes").set(checkpoints.log_disk_bytes as f64);
    for (name, value) in [
        ("quorate_checkpoints_taken_total", checkpoints.taken),
        ("quorate_checkpoints_failed_total", checkpoints.failed),
        ("quorate_checkpoints_received_total", checkpoints.received),
    ] {
        counter!(name).absolute(value);
    }
}

fn set_counters(report: &Report) {
    let counters = &report.counters;
    for (name, value) in [
        ("quorate_commands_applied_total", counters.commands_applied),
        ("quorate_duplicates_total", counters.duplicates),
        ("quorate_gaps_total", counters.gaps),
        ("quorate_batches_proposed_total", counters.batches_proposed),
        ("quorate_commands_proposed_total", counters.commands_proposed),
        ("quorate_reads_total", counters.reads),
        ("quorate_lease_reads_total", counters.lease_reads),
        ("quorate_stale_reads_total", counters.stale_reads),
        ("quorate_failures_total", counters.failures),
        ("quorate_leaderships_total", counters.leaderships),
        ("quorate_leader_changes_total", counters.leader_changes),
        ("quorate_log_records_total", counters.log_records),
        ("quorate_log_bytes_total", counters.log_bytes),
        ("quorate_log_flushes_total", counters.log_flushes),
    ] {
        counter!(name).absolute(value);
    }
}

fn set_quantiles(name: &'static str, stage: &'static str, quantiles: &Quantiles) {
    for (quantile, value) in [
        ("0.5", quantiles.p50),
        ("0.9", quantiles.p90),
        ("0.99", quantiles.p99),
        ("0.999", quantiles.p999),
        ("1", quantiles.max),
    ] {
        gauge!(name, "stage" => stage, "quantile" => quantile).set(value as f64);
    }
}
