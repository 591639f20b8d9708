//! `quorate transfer`: another leader, without a stop.

use crate::cli::TransferArgs;
use crate::{admin, status};
use anyhow::{Context, Result, bail};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long the new leader may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the command.
///
/// # Errors
/// When nobody leads, or the leader refuses.
pub fn run(args: &TransferArgs) -> Result<ExitCode> {
    let addresses = status::addresses(&args.cluster)?;
    let (address, before) = leader(&addresses).context(
        "nobody leads at present, as far as the replicas that answer know: see `quorate status`",
    )?;
    if args.to == Some(before) {
        println!("replica {before} leads already");
        return Ok(ExitCode::SUCCESS);
    }
    if let Err(error) = admin::transfer(&address, args.to) {
        bail!("replica {before} at {address} does not hand over: {error}");
    }
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let now = leader(&addresses).map(|(_, node)| node);
        if now.is_some_and(|node| args.to.map_or(node != before, |to| node == to)) {
            println!("replica {} leads, {before} follows", now.unwrap_or_default());
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    eprintln!(
        "replica {before} still leads: the other one is unknown, not reachable, has no vote, may not \
         lead, or did not catch up; `quorate status` and the leader's log say which"
    );
    Ok(ExitCode::from(1))
}

/// The address and the number of the replica that leads under the highest ballot.
fn leader(addresses: &[String]) -> Option<(String, u16)> {
    let answers = status::ask(addresses);
    let leaders = answers.iter().filter_map(|answer| {
        let report = answer.report.as_ref().ok().filter(|report| report.role == "leader")?;
        let (round, _) = report.ballot.split_once('.')?;
        Some((round.parse::<u64>().ok()?, answer.address.clone(), report.node))
    });
    leaders.max().map(|(_, address, node)| (address, node))
}
