//! Logs that are wrong in one place: each must be found.

use super::model::{Mark, Model};
use super::{LogSubject, sites};
use crate::disk::{Disk, Image};
use crate::explore::{Budget, Durable, Figures, Subject, Violation, explore};
use crate::tape::Event;
use std::collections::VecDeque;

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

/// A wrong order of operations.
#[derive(Clone, Copy, Debug)]
pub struct Reorder {
    /// What is wrong.
    pub name: &'static str,
    /// What is done too late.
    moved: &'static [&'static str],
    /// Behind the next of these.
    behind: &'static [&'static str],
    /// Only if nothing else is done between.
    adjacent: bool,
}

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

impl Reorder {
    /// The run in this order.
    #[must_use]
    pub fn apply(&self, subject: &LogSubject, events: &[Event<Mark>]) -> Vec<Event<Mark>> {
        let mut reordered = Vec::with_capacity(events.len());
        let mut held = VecDeque::new();
        for (event, label) in events.iter().zip(labels(subject, events)) {
            if self.moved.contains(&label.as_str()) {
                held.push_back(event.clone());
                continue;
            }
            let is_behind = self.behind.contains(&label.as_str());
            if !is_behind && self.adjacent && !matches!(event, Event::Mark(_)) {
                reordered.extend(held.drain(..));
            }
            reordered.push(event.clone());
            if is_behind {
                reordered.extend(held.drain(..));
            }
        }
        reordered.extend(held);
        reordered
    }
}

/// What each event is for, in words.
fn labels(subject: &LogSubject, events: &[Event<Mark>]) -> Vec<String> {
    let mut disk = Disk::new(subject.crash_model(), &Image::default());
    let mut model = Model::default();
    let label = |event: &Event<Mark>| {
        let label = match event {
            Event::Mark(Mark::Acknowledged(_)) => Some("acknowledge".to_owned()),
            Event::Write { area, offset, bytes } => {
                let (name, bytes) = (disk.name_of(*area), bytes.len() as u64);
                let durable = Durable::Persist { name, offset: *offset, bytes };
                sites::site(model.phase(), &durable).map(|site| format!("write {site}"))
            }
            Event::Persist { area, offset, bytes } => {
                let name = disk.name_of(*area);
                let durable = Durable::Persist { name, offset: *offset, bytes: *bytes };
                sites::site(model.phase(), &durable)
            }
            Event::Rename { from, to } => sites::site(model.phase(), &Durable::Rename { from, to }),
            Event::Remove { name } => sites::site(model.phase(), &Durable::Remove { name }),
            Event::Mark(_) | Event::Open { .. } | Event::Create { .. } => None,
        };
        if let Event::Mark(mark) = event {
            subject.note(&mut model, mark);
        }
        disk.apply(event, false);
        label.unwrap_or_default()
    };
    events.iter().map(label).collect()
}

/// How a mutant fared.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Which.
    pub mutant: String,
    /// How it was found; `None` if it was not.
    pub found: Option<Violation>,
    /// Why it need not be found.
    pub harmless: Option<&'static str>,
}

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
    let mut verdicts = Vec::new();
    for site in met.sites.keys() {
        let found = explore(subject, model, budget, Some(site), events, jobs).err();
        let harmless = HARMLESS.iter().find(|(harmless, _)| harmless == site);
        let mut harmless = harmless.map(|(_, why)| *why);
        if model.open_persists && DOUBLE.contains(&site.as_str()) {
            harmless = Some("opening the area and settling what counts do the same here");
        }
        let mutant = format!("nothing becomes durable: {site}");
        verdicts.push(Verdict { mutant, found, harmless });
    }
    for reorder in REORDERS {
        let events = reorder.apply(subject, events);
        let found = explore(subject, model, budget, None, &events, jobs).err();
        verdicts.push(Verdict { mutant: reorder.name.to_owned(), found, harmless: None });
    }
    verdicts
}
