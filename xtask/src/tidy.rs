//! `cargo xtask tidy`: habits of this repository that no compiler checks.
//!
//! Rules look at lines of text: quick, and easy to fool on purpose. They are for oversights.

use crate::report::Report;
use crate::workspace::{Source, sources};

/// Lines of a source file above which a note asks to split it.
const LONG: usize = 500;

/// Lines of a source file above which it must be split.
const TOO_LONG: usize = 800;

/// Files that may be longer, each with the reason.
const LONG_FILES: [(&str, &str); 1] =
    [("ffi/src/sys/verbs_v44.rs", "the declarations of libibverbs, made by bindgen")];

/// Crates that contain unsafe code; every other crate root forbids it.
const UNSAFE_CRATES: [(&str, &str); 2] = [
    ("ffi/", "instructions and functions that Rust cannot check"),
    ("pmem-log/", "the mapping of a log into memory"),
];

/// Crates that must not meet the world: what they need comes in as arguments.
const PURE_CRATES: [&str; 2] = ["consensus/src/", "sim/src/"];

/// What pure code must not name, and why.
const IMPURE: [(&str, &str); 12] = [
    ("Instant::now", "time comes in as an argument"),
    ("SystemTime", "time comes in as an argument"),
    ("thread::spawn", "threads belong to the replica"),
    ("thread::sleep", "nothing here waits"),
    ("std::net", "the network is a transport's"),
    ("std::fs", "files are the log's"),
    ("std::env", "settings come in as arguments"),
    ("HashMap", "its order differs from run to run: BTreeMap, or an index"),
    ("HashSet", "its order differs from run to run: BTreeSet, or an index"),
    ("thread_rng", "randomness comes in as a seed"),
    ("async fn", "the caller drives"),
    ("RandomState", "randomness comes in as a seed"),
];

/// Crates that the simulator compiles once more, from `sim/code`.
const SIMULATED: [&str; 4] = ["consensus", "pmem-log", "replica", "transport"];

/// The crate that builds without the standard library.
const NO_STD_ROOT: &str = "consensus/src/lib.rs";

/// Words that mark work as not done.
const UNFINISHED: [&str; 5] = ["TODO", "FIXME", "XXX", "HACK", "unimplemented!("];

/// Folders of one machine; the parts are apart so that this file passes.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/fa", "rm/"), concat!("/ho", "me/")];

/// Lines above an `unsafe` block in which its obligation is looked for.
const SAFETY_REACH: usize = 8;

pub(crate) fn run() -> Result<Report, String> {
    let mut report = Report::new("tidy", "files");
    let sources = sources()?;
    for source in &sources {
        report.checked(1);
        check(source, &mut report);
    }
    crate::ledger::stale(&sources, &mut report);
    for (path, _) in LONG_FILES {
        if !sources.iter().any(|source| source.path == path) {
            report.fault(format!("LONG_FILES lists {path}, which is not there"));
        }
    }
    if !sources.iter().any(|source| source.path == NO_STD_ROOT) {
        report.fault(format!("{NO_STD_ROOT} is not there: the rules for it check nothing"));
    }
    for name in SIMULATED {
        let text = |path: String| sources.iter().find(|source| source.path == path);
        let product = text(format!("{name}/Cargo.toml"));
        let again = text(format!("sim/code/{name}/Cargo.toml"));
        match (product, again) {
            (Some(product), Some(again)) => same_dependencies(product, again, &mut report),
            _ => report.fault(format!("sim/code/{name} does not stand beside {name}")),
        }
    }
    Ok(report)
}

/// What the simulator compiles once more depends on the same crates as the product.
fn same_dependencies(product: &Source, again: &Source, report: &mut Report) {
    let (ours, theirs) = (dependencies(&product.text), dependencies(&again.text));
    for name in ours.iter().filter(|name| !theirs.contains(name)) {
        report.fault(format!("{}: `{name}` of {} is missing", again.path, product.path));
    }
    for name in theirs.iter().filter(|name| !ours.contains(name)) {
        report.fault(format!("{}: {} has no `{name}`", again.path, product.path));
    }
}

/// The names in `[dependencies]` of a manifest.
fn dependencies(manifest: &str) -> Vec<&str> {
    let lines = manifest.lines().skip_while(|line| line.trim() != "[dependencies]").skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    let names = lines.filter_map(|line| line.split(['.', '=', ' ']).next());
    names.filter(|name| !name.is_empty() && !name.starts_with('#')).collect()
}

fn check(source: &Source, report: &mut Report) {
    let generated = crate::ledger::GENERATED.contains(&source.path.as_str());
    if generated || source.path == "Cargo.lock" {
        return;
    }
    machine_paths(source, report);
    if source.path.ends_with(".md") {
        links(source, report);
    }
    if source.path.ends_with("/Cargo.toml") {
        lints(source, report);
    }
    if source.path.ends_with(".rs") {
        length(source, report);
        crate_root(source, report);
        purity(source, report);
        safety(source, report);
        finished(source, report);
    }
}

fn length(source: &Source, report: &mut Report) {
    let lines = source.text.lines().count();
    let path = &source.path;
    match LONG_FILES.iter().find(|(listed, _)| listed == path) {
        Some((_, why)) => report.note(format!("{path} has {lines} lines: {why}")),
        None if lines > TOO_LONG => report
            .fault(format!("{path} has {lines} lines, more than {TOO_LONG}: split it by subject")),
        None if lines > LONG => report.note(format!("{path} has {lines} lines, more than {LONG}")),
        None => {}
    }
}

/// Crate roots say what the crate is, and forbid unsafe code.
fn crate_root(source: &Source, report: &mut Report) {
    let path = &source.path;
    if !(path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs")) {
        return;
    }
    if !source.text.starts_with("//!") {
        report.fault(format!("{path}:1: a crate begins with its `//!` page"));
    }
    let may_be_unsafe = UNSAFE_CRATES.iter().any(|(folder, _)| path.starts_with(folder));
    if !may_be_unsafe && !source.text.contains("#![forbid(unsafe_code)]") {
        report.fault(format!("{path}: `#![forbid(unsafe_code)]` is missing"));
    }
    if path == NO_STD_ROOT && !source.text.lines().any(|line| line == "#![no_std]") {
        report.fault(format!("{path}: `#![no_std]` is missing"));
    }
}

/// Code of pure crates, tests left out, names nothing of the world.
fn purity(source: &Source, report: &mut Report) {
    let path = &source.path;
    let pure = PURE_CRATES.iter().any(|folder| path.starts_with(folder));
    if !pure || path.ends_with("tests.rs") || path.contains("/tests/") {
        return;
    }
    let product = source.text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    for (number, line) in (1..).zip(product) {
        let code = code(line);
        for (word, why) in IMPURE {
            if code.contains(word) {
                report.fault(format!("{path}:{number}: {word} in pure code: {why}"));
            }
        }
    }
}

/// Every `unsafe` block and implementation has its obligation above it.
fn safety(source: &Source, report: &mut Report) {
    let lines: Vec<&str> = source.text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let code = code(line);
        let marks = [concat!("unsafe", " {"), concat!("unsafe", " impl ")];
        if !marks.iter().any(|mark| code.contains(mark)) {
            continue;
        }
        let above = &lines[index.saturating_sub(SAFETY_REACH)..=index];
        if !above.iter().any(|line| line.contains("SAFETY:")) {
            let path = &source.path;
            report.fault(format!("{path}:{}: unsafe without `// SAFETY:`", index + 1));
        }
    }
}

/// No marks of unfinished work; a test that is left out says what runs it.
fn finished(source: &Source, report: &mut Report) {
    // The list of the words itself.
    if source.path == "xtask/src/tidy.rs" {
        return;
    }
    for (number, line) in (1..).zip(source.text.lines()) {
        let path = &source.path;
        let is_word = |word: &str| line.split(|c: char| !c.is_alphanumeric()).any(|w| w == word);
        for word in UNFINISHED {
            if if word.ends_with('(') { line.contains(word) } else { is_word(word) } {
                report.fault(format!("{path}:{number}: {word}: finish it"));
            }
        }
        if line.trim() == "#[ignore]" {
            report.fault(format!("{path}:{number}: say in `#[ignore = \"...\"]` what runs it"));
        }
    }
}

fn machine_paths(source: &Source, report: &mut Report) {
    for (number, line) in (1..).zip(source.text.lines()) {
        for folder in MACHINE_PATHS {
            let starts_path = |at: usize| {
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_-./}~".contains(c))
            };
            if line.match_indices(folder).any(|(at, _)| starts_path(at)) {
                report
                    .fault(format!("{}:{number}: {folder} is a path of one machine", source.path));
            }
        }
    }
}

/// Links between pages lead somewhere.
fn links(source: &Source, report: &mut Report) {
    let folder = crate::workspace::root().join(&source.path);
    for (number, line) in (1..).zip(source.text.lines()) {
        for rest in line.split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap_or_default();
            let outside = target.is_empty() || target.contains("://") || target.contains(' ');
            if !outside && !folder.with_file_name(target).exists() {
                report.fault(format!("{}:{number}: no file {target}", source.path));
            }
        }
    }
}

/// Every crate takes the lints of the workspace.
fn lints(source: &Source, report: &mut Report) {
    if !source.text.contains("[lints]\nworkspace = true") {
        report.fault(format!("{}: `[lints] workspace = true` is missing", source.path));
    }
}

/// The line without its comment. A `//` within a string cuts too much, which accuses less.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(path: &str, text: &str) -> Vec<String> {
        let mut report = Report::new("tidy", "files");
        check(&Source { path: path.to_owned(), text: text.to_owned() }, &mut report);
        report.faults().to_vec()
    }

    fn assert_fault(path: &str, text: &str, expected: &str) {
        let faults = faults(path, text);
        assert_eq!(faults.len(), 1, "{path}: {faults:?}");
        assert!(faults[0].contains(expected), "{faults:?}");
    }

    const CLEAN_ROOT: &str = "//! A page.\n#![no_std]\n#![forbid(unsafe_code)]\n";

    #[test]
    fn a_clean_root_passes() {
        assert_eq!(faults("consensus/src/lib.rs", CLEAN_ROOT), [""; 0]);
    }

    #[test]
    fn a_root_without_its_marks_is_a_fault_for_each() {
        assert_fault("consensus/src/lib.rs", &CLEAN_ROOT.replace("#![no_std]\n", ""), "no_std");
        assert_fault("check/src/lib.rs", "//! A page.\n", "forbid(unsafe_code)");
        assert_fault("check/src/lib.rs", &CLEAN_ROOT.replace("//! A page.\n", ""), "page");
        assert_eq!(faults("ffi/src/lib.rs", "//! A page.\n"), [""; 0]);
    }

    #[test]
    fn a_file_of_more_than_the_limit_is_a_fault() {
        assert_fault("a/src/b.rs", &"\n".repeat(TOO_LONG + 1), "split it");
        assert_eq!(faults("a/src/b.rs", &"\n".repeat(TOO_LONG)), [""; 0]);
    }

    #[test]
    fn pure_code_names_no_clock_and_no_hash_order_but_comments_and_tests_may() {
        assert_fault("consensus/src/a.rs", "let now = Instant::now();", "a.rs:1: Instant::now");
        assert_fault("sim/src/a.rs", "\nuse std::collections::HashMap;", "a.rs:2: HashMap");
        assert_eq!(faults("consensus/src/a.rs", "// no HashMap here"), [""; 0]);
        assert_eq!(faults("consensus/src/a.rs", "#[cfg(test)]\nuse x::HashMap;"), [""; 0]);
        assert_eq!(faults("consensus/src/a/tests.rs", "use x::HashMap;"), [""; 0]);
        assert_eq!(faults("replica/src/a.rs", "let now = Instant::now();"), [""; 0]);
    }

    #[test]
    fn a_dependency_that_the_simulator_does_not_know_is_a_fault() {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let product =
            source("a/Cargo.toml", "[dependencies]\nx.workspace = true\ny = \"1\"\n\n[lints]\nz");
        let same =
            source("b", "[dependencies]\n# why\ny.workspace = true\nx = { package = \"x2\" }\n");
        let fewer = source("b", "[dependencies]\nx = \"1\"\n");
        let faults = |again| {
            let mut report = Report::new("tidy", "files");
            same_dependencies(&product, again, &mut report);
            report.faults().to_vec()
        };
        assert_eq!(faults(&same), [""; 0]);
        assert_eq!(faults(&fewer), ["b: `y` of a/Cargo.toml is missing"]);
    }

    #[test]
    fn unsafe_needs_its_obligation() {
        let block = concat!("let x = unsafe", " { f() };");
        assert_fault("ffi/src/a.rs", block, "SAFETY");
        assert_fault("ffi/src/a.rs", concat!("unsafe", " impl Send for X {}"), "SAFETY");
        assert_eq!(faults("ffi/src/a.rs", &format!("// SAFETY: f is total.\n{block}")), [""; 0]);
    }

    #[test]
    fn paths_of_a_machine_are_faults_but_like_words_are_not() {
        let path = format!("see {}main", MACHINE_PATHS[0]);
        assert_fault("docs/a.md", &path, "a path of one machine");
        assert_eq!(faults("docs/a.md", "home/work/x and $HOME/work/x and net/root/y"), [""; 0]);
    }

    #[test]
    fn unfinished_work_and_unexplained_ignores_are_faults() {
        assert_fault("a/src/b.rs", "// TODO later", "finish it");
        assert_fault("a/tests/b.rs", "#[ignore]", "what runs it");
        assert_eq!(
            faults("a/tests/b.rs", "#[ignore = \"needs a device: soft-roce runs it\"]"),
            [""; 0]
        );
        assert_eq!(faults("a/src/b.rs", "let todos = 1;"), [""; 0]);
    }

    #[test]
    fn links_lead_to_files_and_members_take_the_lints() {
        assert_fault("docs/a.md", "[x](nowhere.md)", "nowhere.md");
        assert_eq!(faults("docs/a.md", "[x](../Cargo.toml) [y](https://x.org) [z](#a)"), [""; 0]);
        assert_fault("a/Cargo.toml", "[package]\n", "[lints]");
    }
}
