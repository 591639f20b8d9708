//! Logs that are wrong in one place: each must be found.

use super::LogSubject;
use super::model::Mark;
use crate::explore::{Budget, Figures};
use crate::mutants::{Mutants, Reorder, Verdict, try_all};
use crate::tape::Event;

/// Sites whose operation may as well make nothing durable, and why. Each is right on every medium,
/// and a test holds that the explorer agrees.
pub const HARMLESS: [(&str, &str); 9] = [
    ("zeros of a new segment", "zeros over zeros: it makes the first sync of each block faster"),
    ("create a spare", "a spare that is gone is made again; its next name makes it durable"),
    ("create a superblock in the making", "its next name makes it durable"),
    (
        "rename a superblock in the making to superblock",
        "nothing is acknowledged before the first segment has its name, which makes this durable",
    ),
    ("rename a segment to spare", "under either name it is below the first segment, or a spare"),
    (
        "remove a segment, trimming",
        "it is below the first segment, and removed at the next opening",
    ),
    ("remove a segment, opening", "it is below the first segment, and removed at the next opening"),
    ("open a spare", "nothing in it counts"),
    ("remove a spare, opening", "it is removed again"),
];

/// Sites that are not needed where opening an area makes durable what a dead process left in it,
/// and the other way round: one of the two is.
pub const DOUBLE: [&str; 5] = [
    "settle the tail",
    "the superblock as found",
    "open a segment",
    "open a superblock",
    "open a superblock in the making",
];

/// Wrong orders that must be found.
pub const REORDERS: [Reorder; 6] = [
    Reorder {
        name: "a record is acknowledged before it is durable",
        moved: &["a batch"],
        behind: &["acknowledge"],
        adjacent: true,
    },
    Reorder {
        name: "a batch is written before the one before is durable",
        moved: &["a batch", "acknowledge"],
        behind: &["write a batch"],
        adjacent: true,
    },
    Reorder {
        name: "records are acknowledged in a segment whose header is not durable",
        moved: &["write a segment's header", "a segment's header"],
        behind: &["acknowledge"],
        adjacent: false,
    },
    Reorder {
        name: "trimmed segments go before the superblock says so",
        moved: &["write superblock, trimming", "superblock, trimming"],
        behind: &["rename a segment to spare", "remove a segment, trimming"],
        adjacent: false,
    },
    Reorder {
        name: "the second copy of the superblock is written before the first is durable",
        moved: &["superblock, opening", "superblock, founding"],
        behind: &["write superblock, opening", "write superblock, founding"],
        adjacent: true,
    },
    Reorder {
        name: "the superblock has its name before it is whole",
        moved: &["write superblock in the making, opening", "superblock in the making, opening"],
        behind: &["rename a superblock in the making to superblock"],
        adjacent: false,
    },
];

/// Tries every mutant of a run: each site that the exploration of the run itself met, and each
/// wrong order.
#[must_use]
pub fn try_mutants(
    subject: &LogSubject,
    events: &[Event<Mark>],
    budget: Budget,
    met: &Figures,
    jobs: usize,
) -> Vec<Verdict> {
    let model = subject.crash_model();
    let harmless = |site: &str| {
        if model.open_persists && DOUBLE.contains(&site) {
            return Some("opening the area and settling what counts do the same here");
        }
        HARMLESS.iter().find(|(harmless, _)| *harmless == site).map(|(_, why)| *why)
    };
    let mutants = Mutants { harmless: &harmless, reorders: &REORDERS };
    try_all(subject, model, events, budget, met, jobs, &mutants)
}
