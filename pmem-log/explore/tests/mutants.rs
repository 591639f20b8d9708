//! Every call of the log that makes something durable is a site; without any of them the explorer
//! finds a wrong log.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use quorate_explore::log::{LogSubject, try_mutants, workload};
use quorate_explore::{Budget, explore};
use std::collections::BTreeSet;
use std::path::Path;

/// The calls in the source: file, call, how many, and the sites that they are met as.
const CALLS: [(&str, &str, usize, &[&str]); 13] = [
    ("group.rs", ".persist(", 1, &["a batch"]),
    ("log.rs", ".persist(", 1, &["a batch"]),
    // What `adopt` does where nothing better is known.
    ("medium.rs", ".persist(", 1, &[]),
    ("recovery.rs", ".adopt(", 1, &["settle the tail"]),
    ("recovery.rs", "medium.remove(", 2, &["remove a segment, opening"]),
    ("segments.rs", ".persist(", 2, &["a segment's header", "zeros of a new segment"]),
    ("segments.rs", "medium.create(", 1, &["create a spare"]),
    (
        "segments.rs",
        "medium.rename(",
        2,
        &["rename a spare to segment", "rename a segment to spare"],
    ),
    ("segments.rs", "medium.remove(", 3, &["remove a segment, trimming"]),
    (
        "superblock.rs",
        ".persist(",
        1,
        &[
            "superblock in the making, opening",
            "superblock, opening",
            "superblock, founding",
            "superblock, trimming",
            "superblock, closing",
        ],
    ),
    ("superblock.rs", ".adopt(", 1, &["the superblock as found"]),
    ("superblock.rs", "medium.create(", 1, &["create a superblock in the making"]),
    ("superblock.rs", "medium.rename(", 1, &["rename a superblock in the making to superblock"]),
];

#[test]
fn every_call_that_makes_something_durable_is_a_site_of_the_explorer() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    for file in std::fs::read_dir(&source).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let product = text.split("#[cfg(test)]").next().unwrap();
        for call in [".persist(", ".adopt(", "medium.create(", "medium.rename(", "medium.remove("] {
            let comments = |line: &&str| !line.trim_start().starts_with("//");
            let lines = product.lines().filter(comments);
            let found: usize = lines.map(|line| line.matches(call).count()).sum();
            let listed = CALLS.iter().find(|(file, listed, ..)| *file == name && *listed == call);
            let listed = listed.map_or(0, |(_, _, count, _)| *count);
            assert_eq!(found, listed, "{call} in {name}: a call without a site");
        }
    }
}

#[test]
fn no_crash_of_a_short_run_brings_back_a_wrong_log_and_every_mutant_does() {
    let listed: BTreeSet<_> = CALLS.iter().flat_map(|call| call.3).copied().collect();
    let mut met = BTreeSet::new();
    for (subject, operations, nest_every) in
        [(LogSubject::PMEM, 200, 256), (LogSubject::FILE, 600, 32)]
    {
        let (events, _) = workload(&subject, operations, 7).unwrap();
        let budget = Budget {
            exhaustive: 64,
            samples: 24,
            nest_every,
            abandon_every: 32,
            ..Budget::default()
        };
        let figures = explore(&subject, subject.crash_model(), budget, None, &events, 2);
        let figures = figures.unwrap_or_else(|violation| panic!("{violation}"));
        assert!(figures.points > 100 && figures.all_images() > 1000, "{figures:?}");
        met.extend(figures.sites.keys().cloned());
        for verdict in try_mutants(&subject, &events, budget, &figures, 2) {
            let (found, harmless) = (verdict.found.is_some(), verdict.harmless.is_some());
            assert!(found != harmless, "{verdict:?}");
        }
    }
    let unmet: Vec<_> = listed.iter().filter(|site| !met.contains(**site)).collect();
    assert!(unmet.is_empty(), "sites that no run met: {unmet:?}");
}
