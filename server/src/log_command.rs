//! `quorate log`: looks at a log without changing it.

use crate::cli::LogCommand;
use anyhow::{Context, Result};
use quorate::log::{End, RecordSummary, Report, inspect, verify};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// When the directory is no log, cannot be read, or a replica has it open.
pub fn run(command: &LogCommand) -> Result<ExitCode> {
    match command {
        LogCommand::Inspect(args) => print_records(&args.directory),
        LogCommand::Verify(args) => {
            let report = verify(&args.directory)?;
            print!("{}", summary(&report));
            Ok(verdict(&report))
        }
    }
}

fn print_records(directory: &Path) -> Result<ExitCode> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut broken = None;
    writeln!(
        out,
        "{:>8} {:>12} {:>6} {:>12} {:>12} {:>12} {:>10}  what",
        "segment", "offset", "epoch", "slot", "ballot", "commit", "bytes"
    )?;
    let report = inspect(directory, &mut |record| {
        // A closed pipe (`| head`) ends the printing, not the reading.
        if broken.is_none() {
            broken = print_record(&mut out, record).err();
        }
    })?;
    match broken.or_else(|| write!(out, "\n{}", summary(&report)).and_then(|()| out.flush()).err())
    {
        Some(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("writing the records")
        }
        _ => Ok(verdict(&report)),
    }
}

fn print_record(out: &mut impl Write, record: &RecordSummary) -> std::io::Result<()> {
    let what = record.value_kind.map_or("promise", |kind| match kind {
        quorate::ValueKind::Noop => "noop",
        quorate::ValueKind::Commands => "commands",
        quorate::ValueKind::Configuration => "configuration",
    });
    writeln!(
        out,
        "{:>8} {:>12} {:>6} {:>12} {:>12} {:>12} {:>10}  {what}",
        record.segment,
        record.offset,
        record.epoch,
        record.slot,
        record.ballot,
        record.commit_slot,
        record.payload_bytes,
    )
}

/// What a log holds, for people.
fn summary(report: &Report) -> String {
    let identity = &report.identity;
    let cluster = identity.genesis.as_ref().and_then(|document| quorate::Genesis::decode(document));
    let cluster = cluster.map_or_else(
        || "no cluster yet".to_string(),
        |genesis| {
            let voters = genesis.configuration.voters.iter().map(|member| member.node.to_string());
            format!(
                "cluster {:016x} of replicas {}",
                genesis.cluster,
                voters.collect::<Vec<_>>().join(", ")
            )
        },
    );
    let slots = report.slots.map_or_else(
        || "no entries".to_string(),
        |(first, last)| format!("slots {first} to {last}"),
    );
    let mut text = format!(
        "replica {}, disk {}, {cluster}\nmedium {}, {} segments of {} bytes, opened {} times\n{} \
         records, {} entries of {} payload bytes, {slots}\npromised ballot {}, chosen up to slot {} at \
         least\n",
        identity.node,
        identity.incarnation,
        report.medium,
        report.segments,
        report.segment_bytes,
        report.openings,
        report.records,
        report.entries,
        report.payload_bytes,
        report.promised,
        report.commit_slot,
    );
    text += &match report.end {
        End::Clean => "the end is clean\n".to_string(),
        End::TornTail { bytes } => format!(
            "the end is torn: {bytes} bytes that were never acknowledged; opening the log cuts them\n"
        ),
    };
    for damage in &report.damaged {
        let slots = damage
            .slots
            .map_or_else(String::new, |(first, last)| format!(", slots {first} to {last}"));
        text += &format!(
            "DAMAGED: {} at byte {}, {} bytes{slots}: {}\n",
            damage.file.display(),
            damage.offset,
            damage.length,
            damage.what
        );
    }
    text += if report.is_whole() {
        "every checksum agrees\n"
    } else {
        "what was acknowledged here is damaged: check the disk. A replica started on this directory \
         takes what it lacks from the others, and does not vote\n"
    };
    text
}

fn verdict(report: &Report) -> ExitCode {
    if report.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
