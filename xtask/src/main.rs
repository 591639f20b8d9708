//! Commands for contributors: `cargo xtask <command>`.
//!
//! - `deps`: licences, banned crates, sources, duplicates, and `docs/dependencies.md`.
//! - `tidy`: habits of this repository that no compiler checks.
//! - `bindings [--check]`: the declarations of libibverbs and librdmacm, made from their headers.
//! - `ledger [--check]`: `docs/unsafe-ledger.md`, every `unsafe` with its obligation.
//! - `no-io`: the proof that no I/O is reachable from `consensus`.
//! - `rules`: the rules of `docs/spec/paxos.md` have code and tests, what is cited is there, and tests
//!   reach every contract.
//! - `mutants [--write]`: each known mistake of the protocol, and which test catches it.
//!
//! Each prints its faults with file and line, then one line with what it checked, and fails when
//! there is a fault. Policies are constants at the top of each module.

#![forbid(unsafe_code)]

mod bindings;
mod contracts;
mod dependencies;
mod ledger;
mod licence;
mod mutants;
mod no_io;
mod report;
mod rules;
mod tidy;
mod workspace;

use std::process::ExitCode;

use report::Report;

const USAGE: &str = "usage: cargo xtask <deps|tidy|no-io|rules|mutants [--write]|bindings [--check]|ledger [--check]>";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [command] if command == "deps" => dependencies::run(),
        [command] if command == "ledger" => ledger::run(false),
        [command, check] if command == "ledger" && check == "--check" => ledger::run(true),
        [command] if command == "bindings" => bindings::run(false),
        [command, check] if command == "bindings" && check == "--check" => bindings::run(true),
        [command] if command == "tidy" => tidy::run(),
        [command] if command == "rules" => rules::run(),
        [command] if command == "mutants" => mutants::run(false),
        [command, write] if command == "mutants" && write == "--write" => mutants::run(true),
        [command] if command == "no-io" => no_io::run(),
        _ => Err(USAGE.to_owned()),
    };
    match result.map(Report::finish) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
