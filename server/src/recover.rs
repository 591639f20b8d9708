//! `quorate recover`: a cluster whose majority is lost goes on as another one, by command.

use crate::cli::RecoverArgs;
use crate::config::Config;
use crate::status;
use anyhow::{Context, Result, bail};
use quorate::{NodeId, Recovery};
use std::fmt::Write as _;
use std::process::ExitCode;

/// Runs the command: without the confirmation it only says what it would do and cost.
///
/// # Errors
/// When the directories do not fit, no recovery is needed, or a replica of the cluster still answers.
pub fn run(args: &RecoverArgs) -> Result<ExitCode> {
    let config = Config::read(&args.config)?;
    let directory = &config.replica.directory;
    let plan = Recovery::plan(directory, &args.and)?;
    let cluster = format!("{:016x}", plan.cluster());
    refuse_if_anybody_lives(&config, &plan, &cluster)?;
    print!("{}", text(&plan, &directory.display().to_string(), &cluster));
    match &args.accept_loss {
        None => {
            let others: String =
                args.and.iter().map(|other| format!(" --and {}", other.display())).collect();
            println!(
                "Nothing was changed. To do it:\n  quorate recover --config {}{others} --accept-loss \
                 {cluster}",
                args.config.display()
            );
            return Ok(ExitCode::from(1));
        }
        Some(confirmed) if *confirmed != cluster => {
            bail!(
                "--accept-loss names cluster {confirmed}; this is cluster {cluster}: nothing was changed"
            );
        }
        Some(_) => {}
    }
    let node = plan.node();
    let done = plan.carry_out(quorate::random()).context("the recovery is not complete")?;
    println!(
        "Done: cluster {:016x}, replica {node} alone, everything up to slot {} stands. Next:\n  1. start \
         replica {node} with its own configuration: it serves at once\n  2. give every other replica an \
         EMPTY directory, whether it was lost or not, start it, and run\n     `quorate member add N PEER \
         CLIENT` and `quorate member promote N`, one after the other",
        done.cluster, done.through
    );
    Ok(ExitCode::SUCCESS)
}

/// Whoever answers is not lost, and could go on beside the new cluster.
fn refuse_if_anybody_lives(config: &Config, plan: &Recovery, cluster: &str) -> Result<()> {
    let mut addresses: Vec<String> =
        config.members.iter().map(|member| member.client.clone()).collect();
    let known = plan.configuration().addresses.iter().map(|at| at.client.clone());
    addresses.extend(known.filter(|address| !address.is_empty()));
    addresses.sort();
    addresses.dedup();
    for answer in status::ask(&addresses) {
        let Ok(report) = answer.report else { continue };
        if report.cluster != cluster {
            continue;
        }
        if report.leader.is_some() {
            bail!(
                "replica {} at {} runs and knows a leader: cluster {cluster} is not lost. Start this \
                 replica instead",
                report.node,
                answer.address
            );
        }
        bail!(
            "replica {} of cluster {cluster} runs at {}: stop it. If its directory has survived, name a \
             copy of it with --and: it may know what this one does not",
            report.node,
            answer.address
        );
    }
    Ok(())
}

/// What would be done, and what it costs.
fn text(plan: &Recovery, directory: &str, cluster: &str) -> String {
    let list =
        |nodes: &[NodeId]| nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let configuration = plan.configuration();
    let electors: Vec<NodeId> = configuration.electors().map(|member| member.node).collect();
    let (certain, last) = (plan.certain(), plan.last());
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "cluster {cluster}, configuration {}: {} votes of replicas {} choose a slot, {} elect a leader",
        configuration.id,
        configuration.quorum(),
        list(&electors),
        configuration.election_quorum()
    );
    let _ = writeln!(
        text,
        "here: replica {}; not here: {}. {directory}, of replica {}, goes on",
        list(plan.here()),
        list(plan.missing()),
        plan.node()
    );
    let _ = writeln!(text, "CERTAIN  slots up to {certain} are known to be chosen, and stay");
    if last > certain {
        let _ = writeln!(
            text,
            "OPEN     slots {} to {last} were accepted here and are not known to be chosen: they stay, as \
             accepted under the highest ballot",
            certain.next()
        );
    }
    if plan.holes() > 0 {
        let _ =
            writeln!(text, "         {} of them nobody here has: they become empty", plan.holes());
    }
    if plan.may_lose() {
        let _ = writeln!(
            text,
            "LOST     what the replicas that are not here chose without those that are: any write that a \
             client was\n         told to be durable behind slot {certain} may be missing{}. Nobody here can say \
             how many",
            if last > certain { " or replaced by an open one" } else { "" }
        );
    } else {
        let _ = writeln!(
            text,
            "LOST     nothing that was acknowledged: every chosen value was accepted by a replica that is here"
        );
    }
    let _ = writeln!(
        text,
        "AFTER    it is another cluster, with a number of its own. Replicas of the old one that come back are\n\
         \x20        refused. Never start a majority of the old one again: it would serve beside the new one.\n\
         \x20        Clients that were not answered may find their command done or not"
    );
    text
}
