//! Protocol scenarios as text: real cores, a network and disks that are cranked by hand, the whole
//! message trace as the expected output, and every invariant checked after every event.
//!
//! `tests/scripts/*.script` are the scenarios (language: [`commands`]); `UPDATE_SCRIPTS=1` writes
//! what came as what is expected, to be read against the protocol before it is committed. The same
//! cluster is driven by chance in [`walk`].

pub mod cluster;
pub mod commands;
pub mod datadriven;
mod effects;
pub mod ledger;
pub mod network;
pub mod replica;
pub mod show;
pub mod walk;

use datadriven::{difference, parse, render};
use std::path::Path;

/// Runs one script file; with `update`, writes what came into it.
///
/// # Errors
/// What differs from what is expected, or an invariant that broke, to be read by a person.
pub fn run_file(path: &Path, update: bool) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let (mut blocks, tail) = parse(&text);
    let mut interpreter = commands::Interpreter::default();
    let mut report = String::new();
    for block in &mut blocks {
        let mut found = Vec::new();
        for command in &block.commands {
            found.extend(interpreter.execute(command));
        }
        if found != block.expected {
            let shown = difference(&block.expected, &found);
            report.push_str(&format!("{}:{}\n{shown}", path.display(), block.line));
        }
        block.expected = found;
    }
    if update {
        std::fs::write(path, render(&blocks, &tail)).map_err(|error| error.to_string())?;
        report.clear();
    }
    if interpreter.failed() {
        report.push_str(&format!("{}: an invariant or a command failed\n", path.display()));
    }
    if report.is_empty() { Ok(()) } else { Err(report) }
}
