//! Deposed leaders on the fake device.

use crate::AdapterOptions;
use crate::deposed::{Finding, Promise, run};
use quorate_ffi::fake::Fabric;

const ROUNDS: u32 = 40;

fn found(seed: u64, promise: Promise, late_packets: u32) -> Finding {
    let fabric = Fabric::new(seed);
    // Few packets at a time, so that much is under way whenever somebody looks.
    fabric.set_pace(3);
    fabric.break_fence(late_packets);
    let options =
        AdapterOptions { device: Some(fabric.name().to_owned()), ..AdapterOptions::default() };
    let finding = run(&Fabric::library(), &options, ROUNDS, promise).unwrap();
    println!("{promise:?}, fence lets {late_packets} through: {finding:?}");
    finding
}

#[test]
fn what_a_deposed_leader_counts_is_reported() {
    let finding = found(1, Promise::FenceThenRead, 0);
    assert_eq!((finding.rounds, finding.lost, finding.late), (ROUNDS, 0, 0), "{finding:?}");
    assert!(finding.completed > 0 && finding.ahead > 0, "{finding:?}");
}

#[test]
fn without_a_fence_or_with_one_that_comes_late_or_leaks_it_is_not() {
    for (promise, late_packets) in
        [(Promise::ReadOnly, 0), (Promise::ReadThenFence, 0), (Promise::FenceThenRead, 1_000)]
    {
        // One that comes late is a race that is lost in a few of a hundred rounds.
        let lost = (2..20).any(|seed| found(seed, promise, late_packets).lost > 0);
        assert!(lost, "{promise:?}, {late_packets}: nothing was lost");
    }
}
