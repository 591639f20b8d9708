//! `quorate status`: the cluster in a few lines that say what to do.

use crate::admin;
use crate::cli::StatusArgs;
use crate::cluster::{self, Manifest};
use crate::config::Config;
use crate::report::Report;
use anyhow::{Context, Result};
use quorate::PROTOCOL_RISES_TO;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// One replica's answer, or why there is none.
#[derive(Debug)]
pub struct Answer {
    /// Its client address.
    pub address: String,
    /// Its report.
    pub report: Result<Report, String>,
}

/// Runs the command.
///
/// # Errors
/// When it is not known whom to ask.
pub fn run(args: &StatusArgs) -> Result<ExitCode> {
    let addresses = addresses(args)?;
    let answers = ask(&addresses);
    if args.json {
        println!("{}", json(&answers));
    } else {
        print!("{}", text(&answers));
    }
    Ok(if problems(&answers).is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Whom to ask.
///
/// # Errors
/// When it is not known.
pub fn addresses(args: &StatusArgs) -> Result<Vec<String>> {
    client_addresses(&args.addr, args.config.as_deref(), args.dir.as_deref())
}

/// The client addresses that were named, or those of a configuration, or of a folder's cluster.
///
/// # Errors
/// When there are none.
pub fn client_addresses(
    addr: &[String],
    config: Option<&Path>,
    dir: Option<&Path>,
) -> Result<Vec<String>> {
    if !addr.is_empty() {
        return Ok(addr.to_vec());
    }
    if let Some(path) = config {
        let config = Config::read(path)?;
        return Ok(config.members.into_iter().map(|member| member.client).collect());
    }
    let directory = cluster::directory(dir)?;
    let manifest = Manifest::read(&directory)?.with_context(|| {
        format!(
            "there is no cluster in {}: name its replicas with --addr HOST:PORT, a configuration \
             with --config, or another folder with --dir",
            directory.display()
        )
    })?;
    Ok((1..=manifest.replicas).map(|node| manifest.client_address(node)).collect())
}

/// Asks all replicas at the same time.
#[must_use]
pub fn ask(addresses: &[String]) -> Vec<Answer> {
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            addresses.iter().map(|address| scope.spawn(move || admin::status(address))).collect();
        let answers = addresses.iter().zip(asked).map(|(address, asked)| {
            let report = match asked.join() {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(_) => Err("asking it failed".into()),
            };
            Answer { address: address.clone(), report }
        });
        answers.collect()
    })
}

fn json(answers: &[Answer]) -> String {
    let entries: Vec<_> = answers
        .iter()
        .map(|answer| match &answer.report {
            Ok(report) => {
                let mut value = serde_json::to_value(report).unwrap_or_default();
                value["address"] = answer.address.clone().into();
                value["reachable"] = true.into();
                value
            }
            Err(error) => serde_json::json!({
                "address": answer.address, "reachable": false, "error": error,
            }),
        })
        .collect();
    serde_json::to_string_pretty(&entries).unwrap_or_default()
}

/// The table, and below it what is wrong and what to do.
#[must_use]
pub fn text(answers: &[Answer]) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{:<22} {:>4} {:<10} {:>8} {:>12} {:>12} {:>8}  durability",
        "address", "node", "role", "ballot", "commit", "applied", "lag"
    );
    let leader = answers.iter().filter_map(|answer| answer.report.as_ref().ok()).find(leads);
    for answer in answers {
        match &answer.report {
            Ok(report) => {
                let seen = leader
                    .and_then(|leader| leader.peers.iter().find(|peer| peer.node == report.node));
                let lag = leader.zip(seen).and_then(|(leader, peer)| {
                    Some(peer.lag?.min(leader.last_slot.saturating_sub(report.commit_slot)))
                });
                let lag = lag.map_or_else(|| "-".to_string(), |lag| lag.to_string());
                let passive = if seen.is_some_and(|peer| peer.passive) {
                    "; passive: a completed write is its vote"
                } else {
                    ""
                };
                let _ = writeln!(
                    out,
                    "{:<22} {:>4} {:<10} {:>8} {:>12} {:>12} {:>8}  {}{passive}",
                    answer.address,
                    report.node,
                    report.role,
                    report.ballot,
                    report.commit_slot,
                    report.applied_slot,
                    lag,
                    report.durability
                );
            }
            Err(error) => {
                let _ = writeln!(out, "{:<22}    - not reachable: {error}", answer.address);
            }
        }
    }
    let problems = problems(answers);
    if problems.is_empty() {
        let _ = writeln!(out, "\nAll replicas are up; the cluster serves reads and writes.");
        out.push_str(&versions(answers));
    } else {
        let _ = writeln!(out);
        for problem in problems {
            let _ = writeln!(out, "! {problem}");
        }
    }
    out
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that `find` asks for")]
fn leads(report: &&Report) -> bool {
    report.role == "leader"
}

/// A replica this many slots behind is worth a line.
const LAG_WORTH_TELLING: u64 = 1_000;

/// The active version of the protocol, and who keeps it from rising.
fn versions(answers: &[Answer]) -> String {
    let reports = || answers.iter().filter_map(|answer| answer.report.as_ref().ok());
    let active = reports().map(|report| report.protocol).max().unwrap_or(0);
    // Later ones become active when what needs them is asked for.
    let newest = reports().map(|report| report.speaks).max().unwrap_or(0).min(PROTOCOL_RISES_TO);
    if newest <= active {
        return format!("Protocol version {active}, the newest that all speak.\n");
    }
    let old: Vec<String> = reports()
        .filter(|report| report.speaks < newest)
        .map(|report| format!("replica {} speaks up to {}", report.node, report.speaks))
        .collect();
    let old = if old.is_empty() { "it rises soon".to_owned() } else { old.join(", ") };
    format!("Protocol version {active}; {newest} once every member speaks it: {old}.\n")
}

/// Replicas of a cluster that lost its majority, beside one of the cluster that was recovered from it.
fn of_a_lost_cluster(answers: &[Answer]) -> Vec<String> {
    let reports =
        || answers.iter().filter_map(|answer| Some((answer, answer.report.as_ref().ok()?)));
    let told = |(answer, report): (&Answer, &Report)| {
        let recovered =
            reports().find(|(_, other)| other.recovered_from.as_ref() == Some(&report.cluster));
        let (_, recovered) = recovered?;
        Some(format!(
            "replica {} ({}) is of cluster {}, which lost its majority and goes on as cluster {}: stop it, \
             and start it with an empty directory",
            report.node, answer.address, report.cluster, recovered.cluster
        ))
    };
    reports().filter_map(told).collect()
}

/// What is wrong, worst first, each with what to do.
fn problems(answers: &[Answer]) -> Vec<String> {
    let mut problems = Vec::new();
    problems.extend(of_a_lost_cluster(answers));
    let reports: Vec<&Report> =
        answers.iter().filter_map(|answer| answer.report.as_ref().ok()).collect();
    let total = answers.len();
    let majority = total / 2 + 1;
    let leader = reports.iter().copied().find(|report| report.role == "leader");
    let voting = reports.iter().filter(|report| report.votes).count();
    if leader.is_none() {
        problems.push(if reports.len() >= majority && voting < majority {
            format!(
                "NO LEADER: {} of {total} replicas are up, but only {voting} of them still know what \
                 they promised, and {majority} are needed. With `memory` durability a majority that \
                 restarted has lost the data: stop all replicas and start them again to begin empty. \
                 With `emulated`, when their machines were started again, what was acknowledged last \
                 may be lost: take what is there by reading with stale consistency, then begin with \
                 empty directories",
                reports.len()
            )
        } else if voting < majority {
            format!(
                "NO LEADER: {voting} of {total} replicas are up and may vote, {majority} are needed. \
                 No reads or writes are served. Start the missing replicas with their own data \
                 directories; nothing acknowledged is lost"
            )
        } else {
            "NO LEADER at this moment: an election is under way, or the replicas cannot reach each \
             other. If this stays for more than a few seconds, check the network between the peer \
             addresses"
                .to_string()
        });
    }
    for answer in answers {
        match &answer.report {
            Err(error) => problems.push(format!(
                "{} does not answer ({error}). {}Start it again with its own data directory; it \
                 catches up by itself",
                answer.address,
                if leader.is_some() { "The others go on without it. " } else { "" }
            )),
            Ok(report) if !report.trouble.is_empty() => {
                problems.push(format!(
                    "replica {} ({}): {}",
                    report.node, answer.address, report.trouble
                ));
            }
            Ok(_) => {}
        }
    }
    if let Some(leader) = leader {
        for peer in &leader.peers {
            // What the leader heard last may be older than what the replica itself says here.
            let told = reports.iter().find(|report| report.node == peer.node);
            let known = told.map_or(0, |report| report.commit_slot).max(peer.commit_slot);
            let behind = leader.commit_slot.saturating_sub(known);
            if peer.data_up && behind > LAG_WORTH_TELLING {
                problems.push(format!(
                    "replica {} is {behind} slots behind and catching up: wait before you stop \
                     another one",
                    peer.node
                ));
            } else if !peer.data_up && told.is_some() {
                problems.push(format!(
                    "replica {} runs, but the leader has no link to it: {}",
                    peer.node,
                    if peer.last_error.is_empty() { "check the network" } else { &peer.last_error }
                ));
            }
        }
    }
    problems
}
