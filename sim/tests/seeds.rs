//! Fixed seeds, kept seeds, and that a seed is enough to see a run again.

use quorate_sim::run;

/// Seeds that once failed, each with its story.
const KEPT: &str = include_str!("../regressions.txt");

#[test]
fn twenty_seeds_give_the_same_trace_twice() {
    for seed in 300..320 {
        let (first, second) = (run(seed, true), run(seed, true));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        let differs = first.trace.iter().zip(&second.trace).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.trace.len(), second.trace.len(), "seed {seed}");
        let quiet = run(seed, false);
        assert_eq!(quiet.hash, first.hash, "seed {seed}: looking at it changes it");
    }
}

#[test]
fn another_seed_gives_another_run() {
    assert_ne!(run(1, false).hash, run(2, false).hash);
}

#[test]
fn fixed_seeds_hold_all_invariants() {
    let mut committed = 0;
    for seed in 1..=120 {
        let outcome = run(seed, false);
        assert_eq!(outcome.violation, None, "seed {seed}");
        committed += outcome.commits;
    }
    assert!(committed > 5_000, "a run that does nothing shows nothing: {committed} slots");
}

#[test]
fn seeds_that_once_failed_stay_repaired() {
    let seeds = KEPT.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok());
    let seeds: Vec<u64> = seeds.collect();
    assert!(!seeds.is_empty());
    for seed in seeds {
        assert_eq!(run(seed, false).violation, None, "seed {seed}");
    }
}
