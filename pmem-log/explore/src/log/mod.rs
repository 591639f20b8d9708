//! The durable log as a subject.

mod flips;
mod model;
mod mutants;
mod run;
mod sites;

pub use flips::{Flips, flip_every_byte};
pub use model::{Mark, Model, Phase};
pub use mutants::{DOUBLE, HARMLESS, REORDERS, try_mutants};
pub use run::{Workload, workload};

use crate::disk::CrashModel;
use crate::explore::{Durable, Subject};
use crate::tape::Tape;
use quorate_pmem_log::{MediumKind, Profile};
use run::Run;

/// A log on one kind of medium.
#[derive(Clone, Copy, Debug)]
pub struct LogSubject {
    profile: Profile,
    segment_bytes: u64,
}

impl LogSubject {
    /// Words of persistent memory; what a process that died left in the caches is durable only when
    /// somebody writes it back.
    pub const PMEM: Self = Self {
        profile: Profile {
            kind: MediumKind::Emulated,
            alignment: 8,
            sync_thread: false,
            zero_fill: false,
        },
        segment_bytes: 16 << 10,
    };

    /// Pages, as a file has them, synced by the thread that writes.
    pub const PAGED: Self = Self {
        profile: Profile {
            kind: MediumKind::File,
            alignment: 4096,
            sync_thread: false,
            zero_fill: false,
        },
        segment_bytes: 48 << 10,
    };

    /// Sectors of a disk, with group commit.
    pub const FILE: Self = Self {
        profile: Profile {
            kind: MediumKind::File,
            alignment: 4096,
            sync_thread: true,
            zero_fill: true,
        },
        segment_bytes: 48 << 10,
    };

    /// What a crash may leave on this medium.
    #[must_use]
    pub fn crash_model(&self) -> CrashModel {
        match self.profile.kind {
            MediumKind::File => CrashModel { unit: 512, open_persists: true },
            _ => CrashModel { unit: 8, open_persists: false },
        }
    }
}

impl Subject for LogSubject {
    type Mark = Mark;
    type Model = Model;

    fn profile(&self) -> Profile {
        self.profile
    }

    fn beginning(&self) -> Model {
        Model::default()
    }

    fn note(&self, model: &mut Model, mark: &Mark) -> bool {
        model.note(mark);
        // The others allow more, or nothing else.
        matches!(
            mark,
            Mark::Acknowledged(_) | Mark::Founded | Mark::Recovered(..) | Mark::Sealed(_)
        )
    }

    fn acknowledges(&self, mark: &Mark) -> bool {
        matches!(mark, Mark::Acknowledged(_))
    }

    fn recover(&self, tape: &Tape<Mark>, model: &Model, go_on: bool) -> Result<(), String> {
        let mut run = Run::open(self, tape, model)?;
        if go_on {
            run.append_something()?;
            run.reopen(true)?;
        }
        Ok(())
    }

    fn site(&self, model: &Model, durable: &Durable<'_>) -> Option<String> {
        sites::site(model.phase(), durable)
    }
}
