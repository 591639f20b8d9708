//! `cargo xtask no-io`: no I/O is reachable from `consensus`.
//!
//! Without the standard library there is no socket, file, clock or thread to call. Proved in four
//! steps, on the core and all that it links, built alone with the features that it then has:
//!
//! 1. its dependencies are those of a short list, none with a feature called `std`;
//! 2. a program that brings its own panic handler compiles against it (`fixtures/no_io.rs`): the
//!    compiler refuses that when the standard library is linked at any depth, even unused;
//! 3. the compiled code calls nothing but Rust code of `core`, `alloc` and itself, and a few
//!    functions that compilers call by themselves (`memcpy`): no C function that does I/O;
//! 4. where a target without an operating system is installed, it builds for that.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::report::Report;
use crate::workspace::{cargo, output, root};

const CORE: &str = "quorate-consensus";

/// What the core may link.
const MAY_LINK: [&str; 2] = [CORE, "bytes"];

/// A target without an operating system.
const BARE: &str = "x86_64-unknown-none";

/// Functions that are no Rust code and that may be called: memory, the allocator's entry points
/// (the program decides what stands behind them), unwinding.
const MAY_CALL: [&str; 8] = [
    "DW.ref.rust_eh_personality",
    "_Unwind_Resume",
    "bcmp",
    "memcmp",
    "memcpy",
    "memmove",
    "memset",
    "rust_eh_personality",
];

pub(crate) fn run() -> Result<Report, String> {
    let mut report = Report::new("no-io", "things");
    check_links(&mut report)?;
    let libraries = build(&[])?;
    let folder = libraries.core.with_file_name("no-io");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    report.checked(1);
    if let Err(why) = compiles_without_std(&libraries.core, &folder)? {
        report.fault(format!("{CORE} links the standard library:\n{why}"));
    }
    for library in &libraries.all {
        report.checked(1);
        for call in foreign_calls(library)? {
            report.fault(format!("{} calls {call}", library.display()));
        }
    }
    if is_installed(BARE)? {
        report.checked(1);
        if let Err(error) = build(&["--target", BARE]) {
            report.fault(format!("{CORE} does not build for {BARE}: {error}"));
        }
    } else {
        report.note(format!("{BARE} is not installed: that build is left out"));
    }
    Ok(report)
}

/// Step 1: packages and features of the core's build.
fn check_links(report: &mut Report) -> Result<(), String> {
    let tree = ["tree", "--locked", "-p", CORE, "-e", "normal", "--prefix", "none"];
    let text = output(cargo().args(tree).args(["--format", "{p}|{f}"]))?;
    for line in text.lines() {
        report.checked(1);
        for fault in link_faults(line) {
            report.fault(fault);
        }
    }
    Ok(())
}

fn link_faults(line: &str) -> Vec<String> {
    let (package, features) = line.split_once('|').unwrap_or((line, ""));
    let name = package.split(' ').next().unwrap_or_default();
    let mut faults = Vec::new();
    if !MAY_LINK.contains(&name) {
        faults.push(format!("{CORE} links {name}: not in MAY_LINK"));
    }
    if features.split(',').any(|feature| feature.trim_end_matches(" (*)") == "std") {
        faults.push(format!("{CORE} links {name} with its feature `std`"));
    }
    faults
}

/// Libraries of one build of the core.
struct Libraries {
    core: PathBuf,
    /// The core and what it links.
    all: Vec<PathBuf>,
}

fn build(more: &[&str]) -> Result<Libraries, String> {
    let arguments = ["build", "--locked", "--quiet", "-p", CORE];
    let format = "--message-format=json-render-diagnostics";
    let text = output(cargo().args(arguments).arg(format).args(more))?;
    let mut all = Vec::new();
    let mut core = None;
    for line in text.lines() {
        let message: Value = serde_json::from_str(line).map_err(|e| format!("cargo build: {e}"))?;
        let files = message["filenames"].as_array().into_iter().flatten();
        let names = files.filter_map(Value::as_str).filter(|name| name.ends_with(".rlib"));
        for path in names.map(PathBuf::from) {
            if message["target"]["name"] == CORE.replace('-', "_") {
                core = Some(path.clone());
            }
            all.push(path);
        }
    }
    let core = core.ok_or("cargo build told of no library of the core")?;
    Ok(Libraries { core, all })
}

/// Step 2. The inner error is what the compiler said.
fn compiles_without_std(library: &Path, folder: &Path) -> Result<Result<(), String>, String> {
    let fixture = root().join("xtask/fixtures/no_io.rs");
    let mut subject = std::ffi::OsString::from("subject=");
    subject.push(library);
    let beside = library.parent().unwrap_or(folder);
    let result = rustc()
        .args(["--edition", "2024", "--crate-type", "lib", "-C", "panic=abort"])
        .arg("--out-dir")
        .arg(folder)
        .arg("--extern")
        .arg(subject)
        .arg("-L")
        .arg(dependency_path(beside))
        .arg("-L")
        .arg(dependency_path(&beside.join("deps")))
        .arg(fixture)
        .output()
        .map_err(|error| format!("rustc does not run: {error}"))?;
    if result.status.success() {
        return Ok(Ok(()));
    }
    let said = String::from_utf8_lossy(&result.stderr).into_owned();
    // Anything else than the clash of panic handlers means that the proof itself is broken.
    if said.contains("panic_impl") { Ok(Err(said)) } else { Err(said) }
}

fn dependency_path(folder: &Path) -> std::ffi::OsString {
    let mut path = std::ffi::OsString::from("dependency=");
    path.push(folder);
    path
}

fn rustc() -> Command {
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.current_dir(root());
    command
}

/// Step 3: functions that the library calls and that are neither of Rust nor in `MAY_CALL`.
fn foreign_calls(library: &Path) -> Result<Vec<String>, String> {
    // Not `nm`: it loads a plugin for the bitcode inside, which may be of another LLVM.
    let mut readelf = Command::new("readelf");
    readelf.args(["--symbols", "--wide"]).arg(library);
    let result = readelf.output().map_err(|error| {
        format!("readelf does not run: {error}; install binutils (a part of every C tool chain)")
    })?;
    // The archive's metadata member is no object file; readelf says so and goes on.
    let text = String::from_utf8_lossy(&result.stdout);
    if !text.contains(" FUNC ") {
        return Err(format!("readelf found no function in {}", library.display()));
    }
    // Columns: number, value, size, type, binding, visibility, section, name.
    let columns = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let (mut calls, mut defined) = (Vec::new(), BTreeSet::new());
    for columns in columns {
        match columns[..] {
            [_, _, _, _, _, _, "UND", name] => calls.push(name.to_owned()),
            // An optimised library is several object files, which share constants without a Rust name.
            [_, _, _, _, "GLOBAL", _, _, name] => {
                defined.insert(name.to_owned());
            }
            _ => {}
        }
    }
    calls.retain(|name| !may_call(name) && !defined.contains(name));
    calls.sort();
    calls.dedup();
    Ok(calls)
}

fn may_call(symbol: &str) -> bool {
    if MAY_CALL.contains(&symbol) {
        return true;
    }
    // Legacy names spell the path out, version 0 names count each part's letters.
    let of_std = ["_ZN3std", "$LT$std..", "_3std"].iter().any(|part| symbol.contains(part));
    let allocator = symbol.contains("__rust_") || symbol.contains("___rustc");
    let rust = symbol.starts_with("_ZN") || symbol.starts_with("_R");
    (rust && !of_std) || allocator
}

fn is_installed(target: &str) -> Result<bool, String> {
    let folder = output(rustc().args(["--print", "sysroot"]))?;
    Ok(Path::new(folder.trim()).join("lib/rustlib").join(target).join("lib").is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles a source into a library and asks both proofs about it.
    fn proofs(source: &str) -> (Result<(), String>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("subject.rs");
        fs::write(&file, source).unwrap();
        let mut command = rustc();
        command.args(["--edition", "2024", "--crate-type", "rlib", "--crate-name", "subject"]);
        output(command.arg("--out-dir").arg(folder.path()).arg(file)).unwrap();
        let library = folder.path().join("libsubject.rlib");
        (compiles_without_std(&library, folder.path()).unwrap(), foreign_calls(&library).unwrap())
    }

    #[test]
    fn a_library_without_std_passes_both_proofs() {
        let (std, calls) = proofs(
            "#![no_std] extern crate alloc; use alloc::vec::Vec;
             pub fn twice(words: &[u64]) -> Vec<u64> { [words, words].concat() }",
        );
        assert_eq!(std, Ok(()));
        assert_eq!(calls, [""; 0]);
    }

    #[test]
    fn naming_std_without_using_it_fails_the_first_proof() {
        let (std, _) = proofs("#![no_std] extern crate std; pub fn nothing() {}");
        assert!(std.unwrap_err().contains("panic_impl"));
    }

    #[test]
    fn using_std_fails_both_proofs() {
        let (std, calls) =
            proofs("pub fn now() -> std::time::Instant { std::time::Instant::now() }");
        assert!(std.is_err());
        assert!(calls.iter().any(|call| call.contains("Instant")), "{calls:?}");
    }

    #[test]
    fn a_c_function_declared_by_hand_fails_the_second_proof() {
        let (std, calls) = proofs(
            "#![no_std] unsafe extern \"C\" { safe fn getpid() -> i32; }
             pub fn process() -> i32 { getpid() }",
        );
        assert_eq!(std, Ok(()));
        assert_eq!(calls, ["getpid"]);
    }

    #[test]
    fn a_dependency_off_the_list_or_with_std_is_a_fault() {
        assert_eq!(link_faults("bytes v1.12.2|"), [""; 0]);
        assert_eq!(link_faults("bytes v1.12.2|default,std").len(), 1);
        assert_eq!(link_faults("mio v1.2.0|net").len(), 1);
    }
}
