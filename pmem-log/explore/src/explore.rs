//! Every operation of a run, every image that a crash there may leave, and the real recovery on
//! each of them.

use crate::disk::{CrashModel, Disk, Doubt, Image};
use crate::random::Random;
use crate::tape::{Event, Tape};
use quorate_pmem_log::{Medium, Profile};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is explored.
pub trait Subject: Sync {
    /// What a run says about itself.
    type Mark: Clone + Send + Sync + fmt::Debug + 'static;
    /// What may come back at some moment of a run.
    type Model: Clone + Send + Sync;

    /// The medium that it runs on.
    fn profile(&self) -> Profile;

    /// The model before anything happened, on an empty medium.
    fn beginning(&self) -> Self::Model;

    /// Learns what the run says. Whether less may come back from now on: then that is tried at once.
    fn note(&self, model: &mut Self::Model, mark: &Self::Mark) -> bool;

    /// Whether others rely on something from this mark on.
    fn acknowledges(&self, mark: &Self::Mark) -> bool;

    /// Opens what is on the medium and says whether it is something that the model allows; if
    /// `go_on`, also that work goes on from there, across another opening. Everything that happens
    /// is marked on the tape, so that it can itself be explored.
    ///
    /// # Errors
    /// What is wrong.
    fn recover(
        &self,
        tape: &Tape<Self::Mark>,
        model: &Self::Model,
        go_on: bool,
    ) -> Result<(), String>;

    /// What an operation that makes something durable is for. A site is a call in the code, told
    /// apart by what it covers and by what the run was doing. `None`: it is not known, which is a
    /// fault of the subject.
    fn site(&self, model: &Self::Model, durable: &Durable<'_>) -> Option<String>;
}

/// An operation that makes something durable.
#[derive(Clone, Copy, Debug)]
pub enum Durable<'a> {
    /// [`quorate_pmem_log::Area::persist`] of an area with this name.
    Persist {
        /// The area's name.
        name: &'a str,
        /// From where.
        offset: u64,
        /// How much.
        bytes: u64,
    },
    /// [`Medium::open`].
    Open {
        /// The area's name.
        name: &'a str,
    },
    /// [`Medium::create`].
    Create {
        /// The area's name.
        name: &'a str,
    },
    /// [`Medium::rename`].
    Rename {
        /// The old name.
        from: &'a str,
        /// The new name.
        to: &'a str,
    },
    /// [`Medium::remove`].
    Remove {
        /// The name.
        name: &'a str,
    },
}

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// A point with at most so many images is tried with all of them.
    pub exhaustive: u64,
    /// Images tried where there are more.
    pub samples: u32,
    /// On one image in so many, work goes on after the recovery.
    pub go_on_every: u64,
    /// One image in so many is recovered under record, and that recovery explored in turn.
    pub nest_every: u64,
    /// At one point in so many the process dies and the machine does not; the recovery from that
    /// is explored in turn.
    pub abandon_every: u64,
    /// The same for the recovery of a recovery, with so many images a point.
    pub nested_samples: u32,
    /// How many recoveries may be interrupted, one after the other.
    pub depth: u32,
    /// What all choices are drawn from.
    pub seed: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            exhaustive: 1 << 10,
            samples: 64,
            go_on_every: 16,
            nest_every: 128,
            abandon_every: 16,
            nested_samples: 6,
            depth: 2,
            seed: 1,
        }
    }
}

/// What was tried.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Operations after which a crash was tried, in the run itself.
    pub points: u64,
    /// How often there were so many images that only a sample of them was tried.
    pub sampled: u64,
    /// Images recovered, in the run itself.
    pub images: u64,
    /// Images after a crash of a recovery, by how many recoveries were interrupted.
    pub nested_images: BTreeMap<u32, u64>,
    /// Recoveries that were explored in turn.
    pub nested_runs: u64,
    /// Of these, how many after the process had died and the machine had not.
    pub abandoned_runs: u64,
    /// How often each site was met, in the run and in recoveries.
    pub sites: BTreeMap<String, u64>,
}

impl Figures {
    /// Adds what another job tried.
    pub fn add(&mut self, other: &Self) {
        self.points += other.points;
        self.sampled += other.sampled;
        self.images += other.images;
        self.nested_runs += other.nested_runs;
        self.abandoned_runs += other.abandoned_runs;
        for (depth, images) in &other.nested_images {
            *self.nested_images.entry(*depth).or_default() += images;
        }
        for (site, times) in &other.sites {
            *self.sites.entry(site.clone()).or_default() += times;
        }
    }

    /// All images, nested ones included.
    #[must_use]
    pub fn all_images(&self) -> u64 {
        self.images + self.nested_images.values().sum::<u64>()
    }
}

/// An image from which something came back that may not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The events at which the run, the recovery, its recovery crashed.
    pub at: Vec<(usize, String)>,
    /// What was kept of what was not durable.
    pub image: String,
    /// What is wrong with what came back.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        for (depth, (index, event)) in self.at.iter().enumerate() {
            writeln!(f, "  crash {} after event {index}: {event}", depth + 1)?;
        }
        write!(f, "  the image: {}", self.image)
    }
}

/// Tries crashes of one recorded run.
pub struct Explorer<'a, S: Subject> {
    subject: &'a S,
    budget: Budget,
    model: CrashModel,
    /// The site at which nothing becomes durable.
    suppressed: Option<&'a str>,
    random: Random,
    /// Another job has found a violation.
    stop: &'a AtomicBool,
    /// What was tried.
    pub figures: Figures,
    trail: Vec<(usize, String)>,
}

impl<S: Subject> fmt::Debug for Explorer<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Explorer").field("figures", &self.figures).finish_non_exhaustive()
    }
}

/// How many units are named in a violation.
const DOUBTS_SHOWN: usize = 16;

/// Consecutive points that one job explores, so that it sees what they have in common.
const STRETCH: usize = 64;

impl<'a, S: Subject> Explorer<'a, S> {
    /// An explorer; `suppressed` names a site whose operations do not make anything durable: a
    /// mutant, which must be found.
    #[must_use]
    pub fn new(
        subject: &'a S,
        model: CrashModel,
        budget: Budget,
        suppressed: Option<&'a str>,
        stop: &'a AtomicBool,
    ) -> Self {
        let random = Random::new(budget.seed);
        let figures = Figures::default();
        Self { subject, budget, model, suppressed, random, stop, figures, trail: Vec::new() }
    }

    /// Crashes the run after each of its operations. Of several jobs, numbered from 0, each takes
    /// its share.
    ///
    /// # Errors
    /// The first image that brings back what it may not.
    pub fn explore(
        &mut self,
        events: &[Event<S::Mark>],
        job: usize,
        jobs: usize,
    ) -> Result<(), Violation> {
        self.random = Random::new(self.budget.seed.wrapping_add(job as u64));
        let disk = Disk::new(self.model, &Image::default());
        self.walk(disk, events, self.subject.beginning(), 0, &|index| index / STRETCH % jobs == job)
    }

    fn walk(
        &mut self,
        mut disk: Disk,
        events: &[Event<S::Mark>],
        mut model: S::Model,
        depth: u32,
        is_mine: &dyn Fn(usize) -> bool,
    ) -> Result<(), Violation> {
        let mut tried = HashSet::new();
        for (index, event) in events.iter().enumerate() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if let Event::Mark(mark) = event {
                if self.subject.note(&mut model, mark) {
                    tried.clear();
                    if is_mine(index) {
                        self.trail.push((index, format!("{mark:?}")));
                        self.images(&disk, &model, depth, &mut tried)?;
                        self.trail.pop();
                    }
                }
                continue;
            }
            let suppressed = self.meet(&disk, &model, event, is_mine(index));
            disk.apply(event, suppressed);
            if !matches!(event, Event::Write { .. }) {
                tried.clear();
            }
            if is_mine(index) {
                self.figures.points += u64::from(depth == 0);
                self.trail.push((index, describe(&disk, event)));
                self.point(&disk, &model, depth, event, &mut tried)?;
                self.trail.pop();
            }
        }
        Ok(())
    }

    /// Notes the site of an event; whether it is suppressed.
    fn meet(
        &mut self,
        disk: &Disk,
        model: &S::Model,
        event: &Event<S::Mark>,
        counts: bool,
    ) -> bool {
        let durable = match event {
            Event::Mark(_) | Event::Write { .. } => return false,
            Event::Persist { area, offset, bytes } => {
                Durable::Persist { name: disk.name_of(*area), offset: *offset, bytes: *bytes }
            }
            Event::Open { .. } if !self.model.open_persists => return false,
            Event::Open { name, .. } => Durable::Open { name },
            Event::Create { name, .. } => Durable::Create { name },
            Event::Rename { from, to } => Durable::Rename { from, to },
            Event::Remove { name } => Durable::Remove { name },
        };
        let site = self.subject.site(model, &durable);
        let site = site.unwrap_or_else(|| panic!("an operation of no known site: {durable:?}"));
        let suppressed = self.suppressed.is_some_and(|suppressed| suppressed == site);
        if counts {
            match self.figures.sites.get_mut(&site) {
                Some(times) => *times += 1,
                None => drop(self.figures.sites.insert(site, 1)),
            }
        }
        suppressed
    }

    fn point(
        &mut self,
        disk: &Disk,
        model: &S::Model,
        depth: u32,
        event: &Event<S::Mark>,
        tried: &mut HashSet<u64>,
    ) -> Result<(), Violation> {
        self.images(disk, model, depth, tried)?;
        if let Event::Create { name, bytes, .. } = event {
            let doubts = disk.doubts();
            let whole = disk.crashed(&doubts, &vec![0; doubts.len()], disk.name_states() - 1);
            for length in [0, (*bytes as usize / 2).next_multiple_of(self.model.unit)] {
                let image = whole.cut(name, length);
                let what = format!("{name} is {length} bytes long");
                self.image(&image, model, depth, &|| what.clone())?;
            }
        }
        let dies = depth < self.budget.depth && self.random.one_in(self.budget.abandon_every);
        if dies && !disk.doubts().is_empty() {
            self.figures.abandoned_runs += 1;
            self.nest(disk.clone(), disk.abandoned(), model, depth, &|| {
                "all that was written, and not durable".to_owned()
            })?;
        }
        Ok(())
    }

    /// The images of one point.
    fn images(
        &mut self,
        disk: &Disk,
        model: &S::Model,
        depth: u32,
        tried: &mut HashSet<u64>,
    ) -> Result<(), Violation> {
        let doubts = disk.doubts();
        let names = disk.name_states() as u64;
        let all = doubts.iter().try_fold(names, |all, doubt| {
            all.checked_mul(u64::from(doubt.values) + 1).filter(|all| *all <= 1 << 40)
        });
        let exhaustive = all.filter(|all| *all <= self.budget.exhaustive);
        let samples = match depth {
            0 => u64::from(self.budget.samples),
            _ => u64::from(self.budget.nested_samples),
        };
        let (count, sampled) = match exhaustive {
            Some(all) if depth == 0 || all <= samples => (all, false),
            _ => (samples, true),
        };
        if depth == 0 {
            self.figures.sampled += u64::from(sampled);
        }
        let mut kept = vec![0; doubts.len()];
        for number in 0..count {
            let changes = if sampled {
                self.draw(number, &doubts, &mut kept);
                self.random.below(names)
            } else {
                spell(number / names, &doubts, &mut kept);
                number % names
            };
            if !tried.insert(fingerprint(&doubts, &kept, changes)) {
                continue;
            }
            let image = disk.crashed(&doubts, &kept, changes as usize);
            let what = || {
                let kept: Vec<_> =
                    doubts.iter().zip(&kept).filter(|(_, kept)| **kept > 0).collect();
                let some = &kept[..kept.len().min(DOUBTS_SHOWN)];
                format!(
                    "{changes} changes of names, and {} of {} units in doubt: {some:?}",
                    kept.len(),
                    doubts.len()
                )
            };
            self.image(&image, model, depth, &what)?;
        }
        Ok(())
    }

    /// Recovers from one image.
    fn image(
        &mut self,
        image: &Image,
        model: &S::Model,
        depth: u32,
        what: &dyn Fn() -> String,
    ) -> Result<(), Violation> {
        match depth {
            0 => self.figures.images += 1,
            _ => *self.figures.nested_images.entry(depth).or_default() += 1,
        }
        if depth < self.budget.depth && self.random.one_in(self.budget.nest_every) {
            return self.nest(Disk::new(self.model, image), image.clone(), model, depth, what);
        }
        let go_on = self.random.one_in(self.budget.go_on_every);
        let tape = Tape::new(self.subject.profile(), image.clone(), false);
        self.recover(&tape, model, go_on, what)
    }

    /// Recovers under record, goes on a little, and explores all that.
    fn nest(
        &mut self,
        disk: Disk,
        image: Image,
        model: &S::Model,
        depth: u32,
        what: &dyn Fn() -> String,
    ) -> Result<(), Violation> {
        self.figures.nested_runs += 1;
        let tape = Tape::new(self.subject.profile(), image, true);
        self.recover(&tape, model, true, what)?;
        self.walk(disk, &tape.take(), model.clone(), depth + 1, &|_| true)
    }

    fn recover(
        &self,
        tape: &Tape<S::Mark>,
        model: &S::Model,
        go_on: bool,
        what: &dyn Fn() -> String,
    ) -> Result<(), Violation> {
        self.subject.recover(tape, model, go_on).map_err(|fault| Violation {
            at: self.trail.clone(),
            image: what(),
            what: fault,
        })
    }

    /// A choice of what is kept: the first few are the ones that most faults show in.
    fn draw(&mut self, number: u64, doubts: &[Doubt], kept: &mut [u32]) {
        let count = doubts.len() as u64;
        match number {
            0 => kept.fill(0),
            1 => doubts.iter().zip(kept).for_each(|(doubt, kept)| *kept = doubt.values),
            // All but one, only one, only the first few.
            _ if number % 4 < 3 => {
                let chosen = self.random.below(count.max(1)) as usize;
                for (index, (doubt, kept)) in doubts.iter().zip(kept).enumerate() {
                    let keeps = match number % 4 {
                        0 => index != chosen,
                        1 => index == chosen,
                        _ => index < chosen,
                    };
                    *kept = if keeps { doubt.values } else { 0 };
                }
            }
            _ => {
                for (doubt, kept) in doubts.iter().zip(kept) {
                    *kept = self.random.below(u64::from(doubt.values) + 1) as u32;
                }
            }
        }
    }
}

/// The choice of this number among all.
fn spell(mut number: u64, doubts: &[Doubt], kept: &mut [u32]) {
    for (doubt, kept) in doubts.iter().zip(kept) {
        let base = u64::from(doubt.values) + 1;
        *kept = (number % base) as u32;
        number /= base;
    }
}

/// Tells choices apart, as long as nothing became durable in between.
fn fingerprint(doubts: &[Doubt], kept: &[u32], changes: u64) -> u64 {
    doubts.iter().zip(kept).filter(|(_, kept)| **kept > 0).fold(changes, |sum, (doubt, kept)| {
        sum ^ Random::new(doubt.fingerprint().wrapping_add(u64::from(*kept) << 56)).next()
    })
}

fn describe<M: fmt::Debug>(disk: &Disk, event: &Event<M>) -> String {
    match event {
        Event::Write { area, offset, bytes } => {
            format!("write {} bytes at {offset} of {}", bytes.len(), disk.name_of(*area))
        }
        Event::Persist { area, offset, bytes } => {
            format!("persist {bytes} bytes at {offset} of {}", disk.name_of(*area))
        }
        other => format!("{other:?}"),
    }
}

/// Runs `work` on an empty medium and returns what happened.
pub fn record<M, T>(profile: Profile, work: impl FnOnce(&Tape<M>) -> T) -> (Vec<Event<M>>, T) {
    let tape = Tape::new(profile, Image::default(), true);
    let result = work(&tape);
    (tape.take(), result)
}

/// Explores a run with several threads.
///
/// # Errors
/// A violation.
pub fn explore<S: Subject>(
    subject: &S,
    model: CrashModel,
    budget: Budget,
    suppressed: Option<&str>,
    events: &[Event<S::Mark>],
    jobs: usize,
) -> Result<Figures, Violation> {
    let stop = AtomicBool::new(false);
    let one = |job| {
        let mut explorer = Explorer::new(subject, model, budget, suppressed, &stop);
        let explored = explorer.explore(events, job, jobs);
        stop.fetch_or(explored.is_err(), Ordering::Relaxed);
        explored.map(|()| explorer.figures)
    };
    let mut figures = Figures::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs)
            .map(|job| {
                scope.spawn({
                    let one = &one;
                    move || one(job)
                })
            })
            .collect();
        for thread in threads {
            let found = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            figures.add(&found?);
        }
        Ok(figures)
    })
}

/// The tape as a log wants it.
#[must_use]
pub fn medium<M: Send + fmt::Debug + 'static>(tape: &Tape<M>) -> Arc<dyn Medium> {
    Arc::new(tape.clone())
}
