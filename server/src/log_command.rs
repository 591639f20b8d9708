//! `quorate log`: looks at a log without changing it.

use crate::cli::LogCommand;
use anyhow::{Context, Result};
use quorate::log::{
    Damage, End, RecordSummary, Report, Truncation, export, inspect, truncation, verify,
};
use serde_json::json;
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
        LogCommand::Export(args) => export_records(&args.directory),
        LogCommand::TruncateReport(args) => {
            let truncation = truncation(&args.directory)?;
            print!("{}", truncation_text(&truncation));
            Ok(verdict(&truncation.report))
        }
    }
}

/// One JSON object a line; `docs/log-format.md` has the fields.
fn export_records(directory: &Path) -> Result<ExitCode> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut broken = None;
    let report = export(directory, &mut |record, value| {
        if broken.is_none() {
            broken = writeln!(out, "{}", record_json(record, value)).err();
        }
    })?;
    let end = |out: &mut dyn Write| {
        for damage in &report.damaged {
            writeln!(out, "{}", damage_json(damage))?;
        }
        writeln!(out, "{}", report_json(&report))?;
        out.flush()
    };
    match broken.or_else(|| end(&mut out).err()) {
        Some(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("writing the records")
        }
        _ => Ok(verdict(&report)),
    }
}

fn record_json(record: &RecordSummary, value: &[u8]) -> serde_json::Value {
    json!({
        "record": kind(record),
        "segment": record.segment,
        "offset": record.offset,
        "epoch": record.epoch,
        "slot": record.slot.0,
        "ballot": record.ballot.to_string(),
        "promised": record.promised.to_string(),
        "commit_slot": record.commit_slot.0,
        "durable": record.durable,
        "crc32c": format!("{:08x}", record.value_checksum),
        "value": hex(value),
    })
}

fn damage_json(damage: &Damage) -> serde_json::Value {
    json!({
        "damage": damage.what,
        "file": damage.file.display().to_string(),
        "offset": damage.offset,
        "bytes": damage.length,
        "slots": damage.slots.map(|(first, last)| [first.0, last.0]),
        "exact": damage.exact,
    })
}

fn report_json(report: &Report) -> serde_json::Value {
    let torn_bytes = match report.end {
        End::Clean => 0,
        End::TornTail { bytes } => bytes,
    };
    json!({
        "log": report.identity.node.0,
        "incarnation": report.identity.incarnation.to_string(),
        "medium": report.medium.to_string(),
        "genesis": report.identity.genesis.as_ref().map(|document| hex(document)),
        "segment_bytes": report.segment_bytes,
        "openings": report.openings,
        "records": report.records,
        "entries": report.entries,
        "promised": report.promised.to_string(),
        "commit_slot": report.commit_slot.0,
        "durable": report.durable,
        "ends_at": report.ends_at,
        "torn_bytes": torn_bytes,
        "damaged": report.damaged.len(),
        "outlived": report.outlived,
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What the next start would take away, for people.
fn truncation_text(truncation: &Truncation) -> String {
    let report = &truncation.report;
    let at = |position: u64| {
        let (segment, offset) = (position / report.segment_bytes, position % report.segment_bytes);
        format!("segment {segment}, byte {offset}")
    };
    let mut text = format!(
        "the log ends at {}; the superblock says durable up to {}\n",
        at(report.ends_at),
        at(report.durable)
    );
    for (file, why) in &truncation.removed {
        text += &format!("would remove {}: {why}\n", file.display());
    }
    if let Some(cut) = &truncation.cut {
        text += &format!(
            "would cut {} from byte {} to {}, {} bytes: the sync that covers them never returned, \
             since neither a later record, nor a later segment, nor the superblock says so; zeros \
             would be written from byte {} on\n",
            cut.file.display(),
            cut.from,
            cut.to,
            cut.to - cut.from,
            cut.zeros_from
        );
        for record in &cut.records {
            text += &format!(
                "  it holds the header of a {} at byte {}: slot {}, ballot {}, {} bytes\n",
                kind(record),
                record.offset,
                record.slot,
                record.ballot,
                record.payload_bytes
            );
        }
    }
    if truncation.removed.is_empty() && truncation.cut.is_none() {
        text += "nothing would be cut\n";
    }
    for damage in &report.damaged {
        text += &format!(
            "{} at byte {} is damaged, not torn: it is kept as it is, and repaired from the other \
             replicas\n",
            damage.file.display(),
            damage.offset
        );
    }
    text
}

fn kind(record: &RecordSummary) -> &'static str {
    record.value_kind.map_or("promise", |kind| match kind {
        quorate::ValueKind::Noop => "noop",
        quorate::ValueKind::Commands => "commands",
        quorate::ValueKind::Configuration => "configuration",
        quorate::ValueKind::Withheld => "withheld",
    })
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
    let what = kind(record);
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
    if report.outlived {
        text += "OUTLIVED: the machine was started again since this log was made, which its medium does \
                 not survive: records may be missing at its end, and nothing that is left can tell. A \
                 replica started on this directory does not vote; start it with an empty one\n";
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
    if report.is_whole() && !report.outlived { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
