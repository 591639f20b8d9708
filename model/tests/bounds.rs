//! The short form: small bounds, every state of them, and a planted mistake that must be found.

use quorate_consensus::Mutant;
use quorate_model::{Bounds, Outcome, run, unlike};

fn search(bounds: &Bounds) -> Outcome {
    let outcome = run(bounds, 2, None);
    println!("{outcome}");
    outcome
}

fn holds(bounds: &Bounds) {
    let outcome = search(bounds);
    assert!(outcome.broken.is_empty() && outcome.exhaustive, "{outcome}");
    assert!(outcome.absent.is_empty(), "the bounds are too narrow to show anything: {outcome}");
}

/// A change of members with the leader removed, and a replica that stops and starts again meanwhile. Rules
/// C1, C2, C7.
#[test]
fn one_proposer_a_reconfiguration_and_a_crash() {
    holds(&Bounds { change: Some(vec![2, 3]), crashes: 1, last_slot: 3, ..Bounds::least() });
}

/// What counts as one state goes on alike: or "every state" would depend on which of the two came first.
#[test]
fn what_counts_as_one_state_goes_on_alike() {
    let bounds = Bounds { change: Some(vec![2, 3]), crashes: 1, last_slot: 3, ..Bounds::least() };
    if let Some(what) = unlike(&bounds) {
        panic!("{bounds}: {what}");
    }
}

/// Rules A1 to A5, P1 to P8.
#[test]
fn two_proposers() {
    holds(&Bounds { campaigns: [1, 1, 0], last_slot: 3, ..Bounds::least() });
}

/// Rule P8: the leader of a ballot counts a vote under an older one. Two leaders and one command are enough.
#[test]
fn a_vote_of_an_old_ballot_that_is_counted_is_found() {
    let mistake = Some(Mutant::CountOldBallotVotes);
    let bounds = Bounds { campaigns: [1, 1, 0], commands: 1, last_slot: 3, ..Bounds::least() };
    let outcome = search(&Bounds { mistake, ..bounds });
    let names: Vec<&str> = outcome.broken.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["what is taken for chosen is chosen"]);
}
