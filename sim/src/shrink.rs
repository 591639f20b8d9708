//! Drops faults of a failing run one by one, while it still fails.

use crate::plan::Item;
use crate::run::{Cast, run_plan};
use crate::shape::Shape;

/// Runs at the most while shrinking.
const TRIES_MAX: usize = 200;

/// The smallest part of the plan of `seed` found that still violates the same invariant, one line a
/// fault, and how many faults the whole plan has.
#[must_use]
pub fn shrink(seed: u64, cast: Cast, violation: &str) -> (Vec<String>, usize) {
    let (shape, items) = cast.draw(seed);
    let all = items.len();
    let lines = smallest(seed, shape, items, violation).into_iter().map(|item| {
        let (at, until) = (item.at as f64 / 1e6, item.until as f64 / 1e6);
        format!("{at:>10.3} ms to {until:>10.3} ms  {:?}", item.fault)
    });
    (lines.collect(), all)
}

fn smallest(seed: u64, shape: Shape, mut items: Vec<Item>, violation: &str) -> Vec<Item> {
    let kind = kind_of(violation).to_owned();
    let mut tries = 0;
    let mut chunk = items.len().div_ceil(2).max(1);
    loop {
        let mut start = 0;
        let mut dropped = false;
        while start < items.len() && tries < TRIES_MAX {
            tries += 1;
            let mut fewer = items.clone();
            fewer.drain(start..(start + chunk).min(fewer.len()));
            let again = run_plan(seed, shape.clone(), fewer.clone(), false).violation;
            if again.is_some_and(|again| kind_of(&again) == kind) {
                items = fewer;
                dropped = true;
            } else {
                start += chunk;
            }
        }
        if tries >= TRIES_MAX || (chunk == 1 && !dropped) {
            return items;
        }
        chunk = (chunk / 2).max(1);
    }
}

/// What is the same in two failures of one cause.
fn kind_of(violation: &str) -> &str {
    violation.split([':', ' ']).next().unwrap_or_default()
}
