//! Random walks over the script harness.
//!
//! `WALK_SEEDS=20000 cargo test --release -p quorate-tests --test random_walk` walks more of them,
//! `WALK_FIRST=n` begins at another one, `WALK_SEED=n` walks one and writes its trace.

use quorate_tests::script::walk::{Walked, walk, walk_with_witnesses};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Seeds of an ordinary run of the tests.
const SEEDS: u64 = 300;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn walk_or_panic(walk: impl Fn(u64, bool) -> Walked, seed: u64, aloud: bool) -> Walked {
    catch_unwind(AssertUnwindSafe(|| walk(seed, aloud))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Walked { wrong: vec![format!("panic: {text:?}")], ..Walked::default() }
    })
}

#[test]
fn random_walks_stay_safe_and_recover() {
    walk_many(walk);
}

#[test]
fn random_walks_with_witnesses_stay_safe_and_recover() {
    walk_many(walk_with_witnesses);
}

fn walk_many(walk: impl Fn(u64, bool) -> Walked + Copy) {
    quorate_tests::plant();
    if let Some(seed) = variable("WALK_SEED") {
        let walked = walk_or_panic(walk, seed, true);
        assert!(walked.wrong.is_empty(), "seed {seed}: {:#?}", walked.wrong);
        return;
    }
    let first = variable("WALK_FIRST").unwrap_or(0);
    let count = variable("WALK_SEEDS").unwrap_or(SEEDS);
    let mut delivered: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut chosen, mut changes, mut configurations) = (0, 0, 0);
    let mut stuck = 0;
    let mut failed = Vec::new();
    for seed in first..first + count {
        let walked = walk_or_panic(walk, seed, false);
        chosen += walked.chosen;
        stuck += u64::from(walked.stuck);
        changes += walked.changes;
        configurations += walked.configuration.saturating_sub(1);
        for (kind, times) in walked.delivered {
            *delivered.entry(kind).or_default() += times;
        }
        if !walked.wrong.is_empty() {
            failed.push((seed, walked.wrong.join("\n")));
        }
    }
    println!(
        "{count} walks, {chosen} slots chosen, {changes} changes of members proposed, {configurations} \
         chosen, {stuck} stuck, delivered {delivered:?}"
    );
    if let Some((seed, wrong)) = failed.first() {
        let all: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
        for (seed, wrong) in &failed {
            println!("seed {seed}: {}", wrong.lines().next().unwrap_or_default());
        }
        panic!(
            "{} of {count} seeds failed: {all:?}\nseed {seed}: {wrong}\nagain: WALK_SEED={seed} \
             cargo test -p quorate-tests --test random_walk -- --nocapture",
            failed.len()
        );
    }
    // A kind that never travelled was not tested: the walk must be changed.
    for kind in ["Nack", "Fetch", "Values", "Behind", "CatchUpReply", "ReadIndexReply"] {
        assert!(count < SEEDS || delivered.contains_key(kind), "no {kind} in {count} walks");
    }
    assert!(stuck * 200 < count.max(200), "{stuck} walks were not asked to recover");
    assert!(count < SEEDS || configurations * 2 > count, "hardly any change of members");
}
