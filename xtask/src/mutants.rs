//! `cargo xtask mutants [--write]`: each known mistake of the protocol (`consensus/src/mutant.rs`), and which
//! test catches it.
//!
//! The core is compiled once with all of them (`sim/code`), each switched on by `QUORATE_MUTANT`. It runs under
//! the properties and contracts, the scripts, and, where neither sees it, the random walks. Mistakes of the
//! log, the transport and the replica are not in the core: the simulator is for those
//! (`cargo run --release -p quorate-sim -- --mutants`). With `--write`, the list goes to `docs/mutants.md`.

use std::fmt::Write;
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::report::Report;
use crate::workspace::{cargo, output, root, sources};

const LIST: &str = "consensus/src/mutant.rs";
const PAGE: &str = "docs/mutants.md";
const SUITES: [&str; 3] = ["mutant_contracts", "mutant_scripts", "mutant_walks"];

/// A run that takes longer hangs, which is seen as well.
const PATIENCE: Duration = Duration::from_secs(180);

/// Of a hundred mistakes in the core, so many must be caught.
const CAUGHT_PERCENT_MIN: usize = 95;

pub(crate) fn run(write: bool) -> Result<Report, String> {
    let mut report = Report::new("mutants", "mistakes");
    let sources = sources()?;
    let list = sources.iter().find(|source| source.path == LIST);
    let names = names(&list.ok_or_else(|| format!("{LIST} is not there"))?.text);
    let in_core: Vec<&String> = names
        .iter()
        .filter(|name| {
            let used = format!("Mutant::{name})");
            sources.iter().any(|source| {
                source.path.starts_with("consensus/src/") && source.text.contains(&used)
            })
        })
        .collect();
    let programs = build()?;
    for program in &programs {
        if let Some(what) = caught(program, None)? {
            return Err(format!("without a mistake {program} fails too: {what}"));
        }
    }
    let mut rows = Vec::new();
    for name in &in_core {
        report.checked(1);
        let mut by = Vec::new();
        for (suite, program) in SUITES.iter().zip(&programs) {
            if *suite == "mutant_walks" && !by.is_empty() {
                continue;
            }
            by.extend(caught(program, Some(name))?);
        }
        println!("{name:<26} {}", if by.is_empty() { "NOT CAUGHT".into() } else { by.join("; ") });
        rows.push((name.to_string(), by));
    }
    let found = rows.iter().filter(|(_, by)| !by.is_empty()).count();
    println!("{found} of {} mistakes in the core are caught", rows.len());
    if found * 100 < rows.len() * CAUGHT_PERCENT_MIN {
        report.fault(format!("{found} of {} are fewer than {CAUGHT_PERCENT_MIN} %", rows.len()));
    }
    if write {
        let page = page(&rows, found, names.len() - rows.len());
        fs::write(root().join(PAGE), page).map_err(|error| format!("{PAGE}: {error}"))?;
    }
    Ok(report)
}

/// The names in `Mutant::ALL`.
fn names(text: &str) -> Vec<String> {
    let all = text.split("pub const ALL").nth(1).unwrap_or_default();
    let lines = all.lines().take_while(|line| line.trim() != "];");
    let names = lines.filter_map(|line| line.trim().strip_prefix("Self::")?.strip_suffix(','));
    names.map(str::to_owned).collect()
}

/// Builds the suites, and returns their programs.
fn build() -> Result<Vec<String>, String> {
    let mut build = cargo();
    build.args(["test", "-q", "--locked", "--no-run", "--message-format=json"]);
    build.args(["-p", "quorate-tests-sim"]);
    for suite in SUITES {
        build.args(["--test", suite]);
    }
    let said = output(&mut build)?;
    let mut programs = Vec::new();
    for suite in SUITES {
        let named = format!("/{suite}-");
        let mut program = said.lines().filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            message["executable"].as_str().filter(|path| path.contains(&named)).map(str::to_owned)
        });
        programs.push(program.next_back().ok_or_else(|| format!("{suite} was not built"))?);
    }
    Ok(programs)
}

/// Runs a suite with the mistake `name`; what failed in it, if anything did.
fn caught(program: &str, name: Option<&str>) -> Result<Option<String>, String> {
    let said = root().join("target/mutant.txt");
    let log = File::create(&said).map_err(|error| error.to_string())?;
    let errors = log.try_clone().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(log).stderr(errors).env("RUST_BACKTRACE", "0");
    command.env_remove("QUORATE_MUTANT").current_dir(root().join("tests"));
    if let Some(name) = name {
        command.env("QUORATE_MUTANT", name);
    }
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            break status;
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(Some("it hangs".into()));
        }
        thread::sleep(Duration::from_millis(20));
    };
    if status.success() {
        return Ok(None);
    }
    let said = fs::read(said).map_err(|error| error.to_string())?;
    Ok(Some(what_failed(&String::from_utf8_lossy(&said))))
}

/// The first script, or else the first test that failed.
fn what_failed(said: &str) -> String {
    let scripts: Vec<&str> = said
        .split(|character: char| character.is_whitespace() || character == ':')
        .filter(|word| word.ends_with(".script"))
        .filter_map(|word| word.rsplit('/').next())
        .collect();
    if let Some(first) = scripts.first() {
        return format!("`{first}`");
    }
    let failed =
        said.lines().filter_map(|line| line.strip_prefix("test ")?.split_once(" ... FAILED"));
    let names: Vec<String> = failed.map(|(name, _)| format!("`{name}`")).collect();
    if names.is_empty() { "the process ended".into() } else { names.join(", ") }
}

fn page(rows: &[(String, Vec<String>)], found: usize, elsewhere: usize) -> String {
    let mut page = format!(
        "# Mistakes, and what catches them

Made by `cargo xtask mutants --write`; do not edit. Each mistake is one line of the core (`consensus/src/mutant.rs` says what it is), switched on alone. \
It is tried with the contracts
and properties of `tests/tests/contracts.rs`, with the scripts, and, where neither sees it, with 300 random walks. \
{elsewhere} more mistakes are in the log, the transport and the replica: `cargo run --release -p quorate-sim -- --mutants` is for those.

{found} of {} are caught.

| mistake | caught by |
| --- | --- |
",
        rows.len()
    );
    for (name, by) in rows {
        let by = if by.is_empty() { "**nothing**".to_owned() } else { by.join("; ") };
        let _ = writeln!(page, "| `{name}` | {by} |");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_mistakes_is_read() {
        let text = "pub const ALL: &[Self] = &[\n    Self::One,\n    Self::Two,\n];\n Self::Three,";
        assert_eq!(names(text), ["One", "Two"]);
    }

    #[test]
    fn what_failed_is_a_script_or_a_test() {
        assert_eq!(what_failed("/a/scripts/b.script:3\n/a/scripts/c.script:9"), "`b.script`");
        assert_eq!(what_failed("test a::b ... FAILED\ntest c ... ok"), "`a::b`");
        assert_eq!(what_failed("killed"), "the process ended");
    }
}
