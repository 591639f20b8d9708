//! `cargo xtask deps`: what this workspace may stand on. `deny.toml` says the same to cargo-deny.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::licence;
use crate::report::Report;
use crate::workspace::{cargo, output, root};

/// Licences that a user of the library can live with: permissive, no conditions on their code.
const LICENCES: [&str; 11] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that must not come in by any way, each with the reason. A final `*` stands for any rest.
const BANNED: [(&str, &str); 8] = [
    ("async-rdma", "GPL-3.0-only, and does not build"),
    ("aws-lc-sys", "needs cmake and a C++ tool chain; rustls works with ring"),
    ("bincode", "no longer maintained; wire and disk formats here are written by hand"),
    ("ibverbs*", "safe functions over memory that a peer can write"),
    ("openssl-sys", "a system library; TLS here is rustls"),
    ("rdma-mummy-sys", "links a C library with a GPL-2.0 licence file"),
    ("rdma-sys*", "generates bindings at build time and breaks with newer libclang"),
    ("sideway", "MPL-2.0, and safe functions that jump through null pointers"),
];

/// Crates of which more than one version may be in the build for Linux, each with the reason.
const DUPLICATES: [(&str, &str); 5] = [
    ("syn", "derive macros are half-way to version 3; it runs in the compiler only"),
    ("getrandom", "0.3 by the metrics exporter, 0.4 by proptest, which only tests link"),
    (
        "hashbrown",
        "0.16 by the metrics exporter's registry, 0.17 by its HTTP server, 0.14 by the model checker",
    ),
    ("rand", "0.9 by the metrics exporter, 0.10 by proptest, which only tests link"),
    ("rand_core", "as rand"),
];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

const PAGE: &str = "docs/dependencies.md";

/// The platform whose build must be free of duplicates.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

pub(crate) fn run() -> Result<Report, String> {
    let mut report = Report::new("deps", "packages");
    let everything = metadata(&[])?;
    let packages = packages(&everything)?;
    for package in &packages {
        report.checked(1);
        check_package(package, &mut report);
    }
    let here = metadata(&["--filter-platform", PLATFORM])?;
    check_duplicates(&here, &DUPLICATES, &mut report)?;
    let manifest = read("Cargo.toml")?;
    check_page(&packages, &manifest, &read(PAGE)?, &mut report);
    Ok(report)
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(root().join(path)).map_err(|error| format!("{path}: {error}"))
}

fn metadata(more: &[&str]) -> Result<Value, String> {
    let text = output(cargo().args(["metadata", "--locked", "--format-version", "1"]).args(more))?;
    serde_json::from_str(&text).map_err(|error| format!("cargo metadata: {error}"))
}

/// A package of the graph, as far as the policy looks at it.
#[derive(Debug, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
    licence: Option<String>,
    /// `None` for members of the workspace.
    source: Option<String>,
    /// Names of its direct dependencies that come from a registry, of every kind.
    direct: Vec<String>,
}

fn packages(metadata: &Value) -> Result<Vec<Package>, String> {
    let list = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let package = |value: &Value| -> Option<Package> {
        let direct = value["dependencies"].as_array()?.iter();
        Some(Package {
            name: text(&value["name"])?,
            version: text(&value["version"])?,
            licence: text(&value["license"]),
            source: text(&value["source"]),
            direct: direct
                .filter(|dependency| !dependency["source"].is_null())
                .filter_map(|dependency| text(&dependency["name"]))
                .collect(),
        })
    };
    list.iter().map(|value| package(value).ok_or("a package without a name".to_owned())).collect()
}

fn check_package(package: &Package, report: &mut Report) {
    let Package { name, version, .. } = package;
    match &package.source {
        // A member of the workspace; its licence is the workspace's.
        None => return,
        Some(source) if source == CRATES_IO => {}
        Some(source) => report.fault(format!("{name} {version} comes from {source}")),
    }
    if let Some((_, why)) = BANNED.iter().find(|(pattern, _)| matches(pattern, name)) {
        report.fault(format!("{name} {version} is banned: {why}"));
    }
    if name == "libc" && version.starts_with("1.") && version.contains('-') {
        report.fault(format!("{name} {version} is a pre-release; stay on 0.2"));
    }
    let expression = package.licence.as_deref().unwrap_or("none stated");
    match licence::satisfied(expression, &|name| LICENCES.contains(&name)) {
        Ok(true) => {}
        Ok(false) => report.fault(format!("{name} {version}: licence {expression} not allowed")),
        Err(error) => report.fault(format!("{name} {version}: {error}")),
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

fn check_duplicates(
    metadata: &Value,
    allowed: &[(&str, &str)],
    report: &mut Report,
) -> Result<(), String> {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages(metadata)? {
        versions.entry(package.name).or_default().push(package.version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    for (name, versions) in &versions {
        let versions = versions.join(", ");
        match allowed.iter().find(|(other, _)| other == name) {
            Some((_, why)) => report.note(format!("{name} is there as {versions}: {why}")),
            None => report.fault(format!(
                "{name} is there as {versions}: unify them, or list it in DUPLICATES with a reason"
            )),
        }
    }
    for (name, _) in allowed.iter().filter(|(name, _)| !versions.contains_key(*name)) {
        report.fault(format!("DUPLICATES lists {name}, of which there is one version only"));
    }
    Ok(())
}

/// Compares the direct dependencies with the lines of the page, both ways.
fn check_page(packages: &[Package], manifest: &str, page: &str, report: &mut Report) {
    let members = packages.iter().filter(|package| package.source.is_none());
    let used: BTreeSet<&str> =
        members.flat_map(|member| member.direct.iter().map(String::as_str)).collect();
    let declared = declared(manifest);
    for name in declared.difference(&used) {
        report.note(format!("Cargo.toml declares {name}, which no member uses"));
    }
    let wanted: BTreeSet<&str> = used.union(&declared).copied().collect();
    let explained: BTreeSet<&str> = page.lines().filter_map(explained).collect();
    for name in wanted.difference(&explained) {
        report.fault(format!("{PAGE} has no line for {name}: say what for and why not our own"));
    }
    for name in explained.difference(&wanted) {
        report.fault(format!("{PAGE} has a line for {name}, which is no direct dependency"));
    }
}

/// The crates named in `[workspace.dependencies]`, those of this workspace left out.
fn declared(manifest: &str) -> BTreeSet<&str> {
    let table = manifest.lines().skip_while(|line| line.trim() != "[workspace.dependencies]");
    table
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#') && !line.contains("path ="))
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.trim())
        .collect()
}

/// The crate that a line of the page explains: a table row that begins with its name in backquotes
/// and whose other cells are not empty.
fn explained(line: &str) -> Option<&str> {
    let (name, rest) = line.strip_prefix("| `")?.split_once("` |")?;
    let cells: Vec<&str> = rest.trim_end().trim_end_matches('|').split('|').collect();
    (cells.len() >= 2 && cells.iter().all(|cell| !cell.trim().is_empty())).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, licence: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
            licence: Some(licence.to_owned()),
            source: Some(CRATES_IO.to_owned()),
            direct: Vec::new(),
        }
    }

    fn faults(package: &Package) -> Vec<String> {
        let mut report = Report::new("deps", "packages");
        check_package(package, &mut report);
        report.faults().to_vec()
    }

    #[test]
    fn a_permissive_crate_of_the_registry_passes() {
        assert_eq!(faults(&package("bytes", "1.12.2", "MIT")), [""; 0]);
    }

    #[test]
    fn a_banned_crate_a_wrong_licence_and_a_foreign_source_are_faults() {
        assert_eq!(faults(&package("bincode", "2.0.0", "MIT")).len(), 1);
        assert_eq!(faults(&package("ibverbs-sys", "0.3.2", "MIT")).len(), 1);
        assert_eq!(faults(&package("libc", "1.0.0-alpha.1", "MIT")).len(), 1);
        assert_eq!(faults(&package("x", "1.0.0", "GPL-3.0-only")).len(), 1);
        let unlicensed = Package { licence: None, ..package("x", "1.0.0", "") };
        assert_eq!(faults(&unlicensed).len(), 1);
        let source = Some("git+https://example.org/x".to_owned());
        assert_eq!(faults(&Package { source, ..package("x", "1.0.0", "MIT") }).len(), 1);
    }

    fn two_versions() -> Value {
        serde_json::json!({"packages": [
            {"name": "a", "version": "1.0.0", "dependencies": []},
            {"name": "a", "version": "2.0.0", "dependencies": []},
            {"name": "b", "version": "1.0.0", "dependencies": []},
        ]})
    }

    #[test]
    fn a_second_version_is_a_fault_unless_listed_and_a_stale_listing_is_one() {
        for (allowed, expected) in [
            (&[][..], 1),
            (&[("a", "two halves of the world")][..], 0),
            (&[("a", "two halves of the world"), ("b", "stale")][..], 1),
        ] {
            let mut report = Report::new("deps", "packages");
            check_duplicates(&two_versions(), allowed, &mut report).unwrap();
            assert_eq!(report.faults().len(), expected, "{allowed:?}: {report:?}");
        }
    }

    #[test]
    fn the_page_and_the_manifests_must_name_the_same_crates() {
        let member = Package {
            source: None,
            direct: vec!["bytes".to_owned(), "mio".to_owned()],
            ..package("member", "0.1.0", "MIT")
        };
        let manifest = "[workspace.dependencies]\nlocal = { path = \"local\" }\nbytes = \"1\"\n";
        let mut report = Report::new("deps", "packages");
        let page =
            "| `bytes` | payloads | standard |\n| `toml` | config | grammar |\n| `mio` | | |";
        check_page(&[member], manifest, page, &mut report);
        let faults = report.faults().join("\n");
        assert!(faults.contains("no line for mio"), "{faults}");
        assert!(faults.contains("line for toml"), "{faults}");
        assert_eq!(report.faults().len(), 2, "{faults}");
    }

    #[test]
    fn deny_toml_has_the_same_policy() {
        let deny = read("deny.toml").unwrap();
        for licence in LICENCES {
            assert!(
                deny.contains(&format!("    \"{licence}\",\n")),
                "{licence} is not in deny.toml"
            );
        }
        for (name, why) in BANNED {
            let name = name.trim_end_matches('*');
            let line = deny.lines().find(|line| line.contains(&format!("\"{name}\"")));
            let line = line.unwrap_or_else(|| panic!("{name} is not banned in deny.toml"));
            let subject = why.split([',', ';', ' ']).next().unwrap();
            assert!(line.contains(subject), "{name} is banned for another reason: {line}");
        }
        for (name, why) in DUPLICATES {
            assert!(
                deny.contains(&format!("{{ crate = \"{name}\", reason = \"{why}\" }}")),
                "{name}"
            );
        }
        let licences = deny.lines().filter(|line| line.starts_with("    \"")).count();
        assert_eq!(licences, LICENCES.len(), "deny.toml allows another licence");
    }
}
