//! `quorate checkpoint`: a checkpoint on demand, and what became of it.

use crate::admin::{self, AdminError};
use crate::cli::CheckpointArgs;
use crate::report::Report;
use anyhow::{Context, Result, bail};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs the command.
///
/// # Errors
/// When a replica cannot be asked, has no checkpoints, could not write one, or not in time.
pub fn run(args: &CheckpointArgs) -> Result<ExitCode> {
    let mut before = Vec::new();
    for address in &args.addr {
        let report = ask(address, admin::status)?;
        if !report.checkpoints.supported {
            bail!("{address}: its state machine has no checkpoints");
        }
        ask(address, admin::begin_checkpoint)?;
        before.push(report);
    }
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    for (address, before) in args.addr.iter().zip(&before) {
        let report = wait(address, before, deadline)?;
        let (slot, bytes) = (report.checkpoints.newest_slot, report.checkpoints.newest_bytes);
        println!("{address}: slot {slot}, {bytes} bytes");
    }
    Ok(ExitCode::SUCCESS)
}

/// Looks until a checkpoint covers what had been applied when it was asked for.
fn wait(address: &str, before: &Report, deadline: Instant) -> Result<Report> {
    loop {
        let report = ask(address, admin::status)?;
        let checkpoints = &report.checkpoints;
        if checkpoints.newest_slot >= before.applied_slot {
            return Ok(report);
        }
        if checkpoints.failed > before.checkpoints.failed {
            bail!("{address}: the checkpoint could not be written: {}", checkpoints.error);
        }
        if Instant::now() >= deadline {
            bail!("{address}: the checkpoint is not finished yet; it goes on (see --timeout)");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn ask<T>(address: &str, question: impl FnOnce(&str) -> Result<T, AdminError>) -> Result<T> {
    question(address).with_context(|| format!("{address} cannot be asked"))
}
