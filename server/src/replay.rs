//! `quorate replay`: the state that a replica's directory holds, as of a slot, without the replica.

use crate::cli::ReplayArgs;
use crate::kv::{Limits, Store};
use crate::machine::KvMachine;
use anyhow::{Context, Result};
use quorate::{Replay, Slot};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// When the directory is no log, is in use, or does not lead to the slot; or nothing can be written.
pub fn run(args: &ReplayArgs) -> Result<ExitCode> {
    let machine = KvMachine::new(Limits::default());
    let mut replay = Replay::open(&args.directory, machine, args.to.map(Slot))?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut broken = None;
    replay.run(&mut |step| {
        if args.slots && broken.is_none() {
            let kind = match step.kind {
                quorate::ValueKind::Noop => "noop",
                quorate::ValueKind::Commands => "commands",
                quorate::ValueKind::Configuration => "configuration",
                quorate::ValueKind::Withheld => "withheld",
            };
            let (slot, commands, digest) = (step.slot.0, step.commands, step.digest);
            broken = writeln!(out, "{slot:>12} {digest:016x} {kind:<13} {commands}").err();
        }
    })?;
    let told = broken.map_or(Ok(()), Err).and_then(|()| {
        write!(out, "{}", summary(&replay))?;
        out.flush()
    });
    if let Err(error) = told
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        return Err(error).context("writing to standard output");
    }
    if let Some(path) = &args.export {
        let exported = replay.machine().read(|store| export(store, path));
        exported.with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(replay: &Replay<KvMachine>) -> String {
    let (digest, keys, expiring) =
        replay.machine().read(|store| (store.digest(), store.len(), store.expiring_len()));
    let from = match replay.from() {
        Slot::ZERO => "the beginning of the log".to_owned(),
        slot => format!("the checkpoint at slot {slot}"),
    };
    let (chosen, accepted) = (replay.chosen(), replay.accepted());
    let above = match accepted > chosen {
        true => format!("; slots {} to {accepted} are accepted, and not certain", chosen.next()),
        false => String::new(),
    };
    format!(
        "replica {}, cluster {:016x}, from {from}\nslot {} of {chosen} that are known chosen{above}\n\
         digest {:016x} (as `digest` in the status of a replica at this slot)\nstate {:016x} (keys, values \
         and deadlines alone), {} keys, {} of them with a deadline, {} sessions, replicated time {} ms\n",
        replay.node(),
        replay.cluster(),
        replay.applied(),
        replay.digest(),
        digest,
        keys,
        expiring,
        replay.sessions(),
        replay.time_ms(),
    )
}

/// One JSON object a line, in the order of the keys. The file is complete when it has its name.
fn export(store: &Store, path: &Path) -> std::io::Result<()> {
    let unfinished = path.with_added_extension("unfinished");
    let mut out = BufWriter::new(File::create(&unfinished)?);
    let mut entries: Vec<_> = store.entries().collect();
    entries.sort_unstable_by_key(|(key, ..)| *key);
    for (key, value, deadline_ms) in entries {
        let mut object = Map::new();
        put(&mut object, "key", key);
        put(&mut object, "value", value);
        if deadline_ms != 0 {
            object.insert("deadline_ms".into(), json!(deadline_ms));
        }
        writeln!(out, "{}", Value::Object(object))?;
    }
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(&unfinished, path)
}

/// Text as it is, other bytes in hexadecimal under another name.
fn put(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.into(), json!(text)),
        Err(_) => object.insert(format!("{name}_hex"), json!(crate::log_command::hex(bytes))),
    };
}
