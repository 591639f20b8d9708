//! `cargo xtask bindings [--check]`: the Rust declarations of libibverbs and librdmacm.
//!
//! They are made from the headers of rdma-core 44 and checked in, so that building needs neither
//! headers nor libclang. Structures only ever grew at their ends since, so declarations from 44 are
//! right with every newer library, and those from a newer header would not be right with 44.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::report::Report;
use crate::workspace::root;

/// The version of bindgen whose output is checked in: `cargo install bindgen-cli --version 0.73.2`.
const BINDGEN: &str = "bindgen 0.73.2";

/// A library whose declarations are generated.
struct Library {
    /// For pkg-config, with the version whose headers count.
    package: (&'static str, &'static str),
    /// The Debian package with the headers.
    debian: &'static str,
    header: &'static str,
    output: &'static str,
    arguments: &'static [&'static str],
}

/// For both: an enumeration is a number (C may hand out a value that we do not know), every symbol
/// is looked up when the library is loaded.
const COMMON: [&str; 12] = [
    "--rust-target",
    "1.85",
    "--rust-edition",
    "2024",
    "--formatter",
    "prettyplease",
    "--default-enum-style",
    "newtype",
    "--no-doc-comments",
    "--with-derive-default",
    "--wrap-unsafe-ops",
    "--dynamic-link-require-all",
];

const LIBRARIES: [Library; 2] = [
    Library {
        package: ("libibverbs", "1.14.44"),
        debian: "libibverbs-dev",
        header: "#include <infiniband/verbs.h>\n",
        output: "ffi/src/sys/verbs_v44.rs",
        arguments: &[
            "--dynamic-loading",
            "Verbs",
            "--opaque-type",
            "pthread_(mutex|cond)_t",
            "--allowlist-type",
            "pthread_(mutex|cond)_t",
            "--no-debug",
            "ibv_(qp|cq|srq|wq|context)",
            "--allowlist-function",
            "ibv_(get_device_list|free_device_list|get_device_name|open_device|close_device)",
            "--allowlist-function",
            "ibv_(query_device|query_port|alloc_pd|dealloc_pd|reg_mr|dereg_mr)",
            "--allowlist-function",
            "ibv_(create|destroy)_(comp_channel|cq|qp)|ibv_modify_qp|_ibv_query_gid_table",
            "--allowlist-function",
            "ibv_(get|ack)_(cq_events?|async_event)",
            "--allowlist-type",
            "ibv_(access_flags|send_flags|wc_flags|wc_opcode|qp_attr_mask|port_state|mtu|gid_type)",
            "--allowlist-type",
            "ibv_(event_type|device_cap_flags|port_attr)",
        ],
    },
    Library {
        package: ("librdmacm", "1.3.44"),
        debian: "librdmacm-dev",
        header: "#include <rdma/rdma_cma.h>\n",
        output: "ffi/src/sys/rdmacm_v44.rs",
        arguments: &[
            "--dynamic-loading",
            "RdmaCm",
            "--allowlist-function",
            "rdma_(create|destroy)_(event_channel|id)|rdma_bind_addr",
            "--blocklist-type",
            "_?ibv_.*|verbs_.*",
            "--opaque-type",
            "rdma_(route|conn_param|ud_param|cm_event)",
            "--opaque-type",
            "sockaddr.*",
            "--raw-line",
            "use super::verbs::*;",
        ],
    },
];

pub(crate) fn run(check: bool) -> Result<Report, String> {
    let mut report = Report::new("bindings", "files");
    if let Some(missing) = missing() {
        report.note(format!("skipped: {missing}"));
        return Ok(report);
    }
    for library in &LIBRARIES {
        let made = generate(library)?;
        let path = root().join(library.output);
        let kept = fs::read_to_string(&path).unwrap_or_default();
        report.checked(1);
        if check && kept != made {
            let what = format!("{} differs from what the headers say", library.output);
            report.fault(format!("{what}: run `cargo xtask bindings`"));
        }
        if !check {
            fs::write(&path, made).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(report)
}

/// What keeps this from running, and how to have it.
fn missing() -> Option<String> {
    match first_line(Command::new(bindgen()).arg("--version")) {
        Some(version) if version == BINDGEN => {}
        found => {
            let found = found.unwrap_or_else(|| "nothing".into());
            return Some(format!(
                "{BINDGEN} is needed, {found} is there: `cargo install bindgen-cli --version \
                 0.73.2 --locked`, or name the program in BINDGEN"
            ));
        }
    }
    for library in &LIBRARIES {
        let (package, version) = library.package;
        let found = first_line(Command::new("pkg-config").args(["--modversion", package]));
        if !found.as_ref().is_some_and(|found| found.starts_with(version)) {
            let (found, debian) = (found.unwrap_or_else(|| "nothing".into()), library.debian);
            return Some(format!(
                "the headers of {package} {version} are needed, {found} is there: on Debian 12 \
                 `apt-get install pkg-config {debian}`"
            ));
        }
    }
    None
}

fn bindgen() -> String {
    std::env::var("BINDGEN").unwrap_or_else(|_| "bindgen".into())
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_owned)
}

fn generate(library: &Library) -> Result<String, String> {
    let folder = root().join("target");
    let header = folder.join(format!("{}.h", library.package.0));
    let write = |path: &Path| fs::write(path, library.header);
    fs::create_dir_all(&folder)
        .and_then(|()| write(&header))
        .map_err(|error| format!("{}: {error}", header.display()))?;
    let mut command = Command::new(bindgen());
    command.arg(&header).args(COMMON).args(library.arguments);
    let output = command.output().map_err(|error| format!("bindgen does not run: {error}"))?;
    if !output.status.success() {
        return Err(format!("bindgen: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8(output.stdout).map_err(|_| "bindgen printed no UTF-8")?;
    // The fake of the C side makes such a table of its own.
    let text = text.replacen("    __library:", "    pub(crate) __library:", 1);
    let text = with_obligations(&text);
    let (package, version) = library.package;
    Ok(format!(
        "// Made by `cargo xtask bindings` from the headers of {package} {version}; do not edit.\n{text}"
    ))
}

/// bindgen says of no block what it owes: above each stands what holds for its kind.
fn with_obligations(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    for (at, line) in lines.iter().enumerate() {
        if line.contains(concat!("unsafe", " {")) {
            let next = lines.get(at + 1).copied().unwrap_or_default();
            let indent = &line[..line.len() - line.trim_start().len()];
            out.push_str(&format!(
                "{indent}{OBLIGATION}{}\n",
                obligation(&format!("{line}{next}"))
            ));
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

const OBLIGATION: &str = "// SAFETY: ";

/// What a block owes that begins with these two lines, and why that holds.
fn obligation(block: &str) -> &'static str {
    if block.contains("write_bytes") {
        "room for one value; zeros are one of integers, pointers, optional functions and what is made of these."
    } else if block.contains("__library.get(") {
        "the function of this name has the type that the header declares."
    } else if block.contains("(self.") {
        "the caller keeps what the function's manual page asks; it was found under its name."
    } else {
        "the caller answers for the library, and for what loading it runs."
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_that_is_checked_in_has_the_obligation_that_is_made_for_it() {
        for library in &LIBRARIES {
            let kept = fs::read_to_string(root().join(library.output)).unwrap();
            let bare: String = kept
                .lines()
                .filter(|line| !line.trim_start().starts_with(OBLIGATION))
                .map(|line| format!("{line}\n"))
                .collect();
            assert_ne!(bare, kept, "{}", library.output);
            assert_eq!(with_obligations(&bare), kept, "{}", library.output);
        }
    }

    #[test]
    fn what_is_checked_in_says_where_it_comes_from() {
        for library in &LIBRARIES {
            let text = fs::read_to_string(root().join(library.output)).unwrap();
            assert!(text.contains(library.package.1), "{}", library.output);
        }
    }
}
