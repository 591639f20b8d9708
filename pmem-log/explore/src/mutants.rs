//! Runs that are wrong in one place: each must be found.

use crate::disk::{CrashModel, Disk, Image};
use crate::explore::{Budget, Durable, Figures, Subject, Violation, explore};
use crate::tape::Event;
use std::collections::VecDeque;

/// A wrong order of operations.
#[derive(Clone, Copy, Debug)]
pub struct Reorder {
    /// What is wrong.
    pub name: &'static str,
    /// What is done too late.
    pub(crate) moved: &'static [&'static str],
    /// Behind the next of these.
    pub(crate) behind: &'static [&'static str],
    /// Only if nothing else is done between.
    pub(crate) adjacent: bool,
}

impl Reorder {
    /// The run in this order.
    #[must_use]
    pub fn apply<S: Subject>(
        &self,
        subject: &S,
        model: CrashModel,
        events: &[Event<S::Mark>],
    ) -> Vec<Event<S::Mark>> {
        let mut reordered = Vec::with_capacity(events.len());
        let mut held = VecDeque::new();
        for (event, label) in events.iter().zip(labels(subject, model, events)) {
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
fn labels<S: Subject>(
    subject: &S,
    crash_model: CrashModel,
    events: &[Event<S::Mark>],
) -> Vec<String> {
    let mut disk = Disk::new(crash_model, &Image::default());
    let mut model = subject.beginning();
    let label = |event: &Event<S::Mark>| {
        let label = match event {
            Event::Write { area, offset, bytes } => {
                let (name, bytes) = (disk.name_of(*area), bytes.len() as u64);
                let durable = Durable::Persist { name, offset: *offset, bytes };
                subject.site(&model, &durable).map(|site| format!("write {site}"))
            }
            Event::Persist { area, offset, bytes } => {
                let name = disk.name_of(*area);
                let durable = Durable::Persist { name, offset: *offset, bytes: *bytes };
                subject.site(&model, &durable)
            }
            Event::Rename { from, to } => subject.site(&model, &Durable::Rename { from, to }),
            Event::Remove { name } => subject.site(&model, &Durable::Remove { name }),
            Event::Mark(mark) => subject.acknowledges(mark).then(|| "acknowledge".to_owned()),
            Event::Open { .. } | Event::Create { .. } => None,
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

/// What is known of the mutants of a subject.
pub struct Mutants<'a> {
    /// Why a site may as well make nothing durable, if so.
    pub harmless: &'a dyn Fn(&str) -> Option<&'static str>,
    /// Wrong orders that must be found.
    pub reorders: &'a [Reorder],
}

impl std::fmt::Debug for Mutants<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mutants").field("reorders", &self.reorders).finish_non_exhaustive()
    }
}

/// Tries each site that the exploration of the run itself met, and each wrong order.
#[must_use]
pub fn try_all<S: Subject>(
    subject: &S,
    model: CrashModel,
    events: &[Event<S::Mark>],
    budget: Budget,
    met: &Figures,
    jobs: usize,
    mutants: &Mutants<'_>,
) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for site in met.sites.keys() {
        let found = explore(subject, model, budget, Some(site), events, jobs).err();
        let mutant = format!("nothing becomes durable: {site}");
        verdicts.push(Verdict { mutant, found, harmless: (mutants.harmless)(site) });
    }
    for reorder in mutants.reorders {
        let events = reorder.apply(subject, model, events);
        let found = explore(subject, model, budget, None, &events, jobs).err();
        verdicts.push(Verdict { mutant: reorder.name.to_owned(), found, harmless: None });
    }
    verdicts
}
