//! Every call of the checkpoint store that makes something durable is a site; without any of them the
//! explorer finds a wrong store.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use quorate_explore::store::{HARMLESS, StoreSubject, try_mutants, workload};
use quorate_explore::{Budget, explore};
use std::collections::BTreeSet;
use std::path::Path;

/// The calls in the source: file, call, how many. Each is met as one of the sites that the test below
/// asks for.
const CALLS: [(&str, &str, usize); 9] = [
    // The certificate.
    ("mod.rs", ".persist(", 1),
    ("mod.rs", ".create(parts::UNFINISHED", 1),
    ("mod.rs", "medium.rename(", 1),
    ("mod.rs", "medium.remove(", 2),
    // The part before; what a dead process left; the one at hand.
    ("parts.rs", ".persist(", 3),
    ("parts.rs", "medium.create(", 1),
    ("parts.rs", "medium.remove(", 2),
    // At the end, for each message of a peer, at the end again, every so many blocks.
    ("writer.rs", ".persist(", 4),
    ("reader.rs", ".persist(", 0),
];

/// What they are met as.
const SITES: [&str; 12] = [
    "a certificate",
    "an earlier part, receiving",
    "an earlier part, writing",
    "the last part, receiving",
    "the last part, resuming",
    "the last part, writing",
    "create a certificate in the making",
    "create a part",
    "rename a certificate",
    "remove a certificate, pruning",
    "remove a part, pruning",
    "remove a part, receiving",
];

#[test]
fn every_call_that_makes_something_durable_is_counted() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/checkpoint");
    let calls =
        [".persist(", "medium.create(", ".create(parts::", "medium.rename(", "medium.remove("];
    for file in std::fs::read_dir(&source).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let product = text.split("#[cfg(test)]").next().unwrap();
        for call in calls {
            let comments = |line: &&str| !line.trim_start().starts_with("//");
            let lines = product.lines().filter(comments);
            let found: usize = lines.map(|line| line.matches(call).count()).sum();
            let listed = CALLS.iter().find(|(file, it, _)| *file == name && it.starts_with(call));
            assert_eq!(found, listed.map_or(0, |it| it.2), "{call} in {name}: an unknown call");
        }
    }
}

#[test]
fn no_crash_loses_a_checkpoint_that_counted_and_every_mutant_does() {
    for subject in [StoreSubject::PMEM, StoreSubject::FILE] {
        let events = workload(&subject).unwrap();
        let budget = Budget {
            exhaustive: 64,
            samples: 10,
            nest_every: 100,
            abandon_every: 32,
            nested_samples: 2,
            ..Budget::default()
        };
        let figures = explore(&subject, subject.crash_model(), budget, None, &events, 2);
        let figures = figures.unwrap_or_else(|violation| panic!("{violation}"));
        assert!(figures.points > 100 && figures.all_images() > 300, "{figures:?}");
        let met: BTreeSet<_> = figures.sites.keys().map(String::as_str).collect();
        let unmet: Vec<_> = SITES.iter().filter(|site| !met.contains(**site)).collect();
        assert!(unmet.is_empty(), "sites that no run met: {unmet:?}");
        for verdict in try_mutants(&subject, &events, budget, &figures, 2) {
            let (found, harmless) = (verdict.found.is_some(), verdict.harmless.is_some());
            assert!(found != harmless, "{subject:?}: {verdict:?}");
        }
    }
    assert!(HARMLESS.len() < SITES.len());
}
