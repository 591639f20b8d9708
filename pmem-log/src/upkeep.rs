//! What can be done for a log beside its threads: making the next segment ahead, and removing trimmed ones.
//!
//! Both take long. To remove a file of tens of megabytes takes as long as to write it: its pages are given
//! back one by one, when the last mapping or handle goes (20 ms for 64 MiB of page cache), and a
//! checkpoint lets go of many at once. To make one syncs it and its directory. No record is written
//! meanwhile, if the log's thread does it. Whoever has a thread for such work takes an [`Upkeep`].

use crate::segments::{Keeper, Retired};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};

/// What is to be done.
#[derive(Default)]
pub(crate) struct Due {
    /// Trimmed segments: at most as many as the log once had.
    removals: VecDeque<Retired>,
    /// The next segment is not there yet.
    spare: bool,
    /// Told that something is to be done; if there is none, nobody does anything.
    tell: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut output = f.debug_struct("Due");
        output.field("removals", &self.removals).field("spare", &self.spare).finish_non_exhaustive()
    }
}

impl Keeper {
    fn due(&self) -> MutexGuard<'_, Due> {
        // Whole between any two statements of whoever held it.
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the segment, or leaves it to whoever does that.
    pub(crate) fn discard(&self, segment: Retired) -> io::Result<()> {
        let tell = {
            let mut due = self.due();
            let Some(tell) = due.tell.clone() else {
                drop(due);
                return self.remove(segment).map(drop);
            };
            due.removals.push_back(segment);
            tell
        };
        tell();
        Ok(())
    }

    /// Lets whoever does that make the next segment.
    pub(crate) fn want_spare(&self) {
        let tell = {
            let mut due = self.due();
            let Some(tell) = due.tell.clone() else { return };
            due.spare = true;
            tell
        };
        tell();
    }

    /// Removes one segment that waits; returns its bytes, nothing if none waits. A file that cannot be
    /// removed is removed by the next opening.
    pub(crate) fn remove_waste(&self) -> Option<u64> {
        let segment = self.due().removals.pop_front()?;
        let number = segment.number;
        let removed = self.remove(segment);
        Some(removed.unwrap_or_else(|error| {
            tracing::warn!(segment = number, %error, "a trimmed segment of the log cannot be removed");
            0
        }))
    }
}

/// The work for one log that is done beside its threads. See [`crate::Log::upkeep`].
#[derive(Clone, Debug)]
pub struct Upkeep {
    keeper: Arc<Keeper>,
}

impl Upkeep {
    pub(crate) fn new(keeper: Arc<Keeper>, tell: Arc<dyn Fn() + Send + Sync>) -> Self {
        keeper.due().tell = Some(tell);
        Self { keeper }
    }

    /// Whether there is something to do.
    #[must_use]
    pub fn is_due(&self) -> bool {
        let due = self.keeper.due();
        due.spare || !due.removals.is_empty()
    }

    /// Makes the next segment, if it is not there: soon, or the log's thread does it. Returns whether it
    /// was to be made. A failure is met again, and told, when the segment is needed.
    pub fn prepare(&self) -> bool {
        if !std::mem::take(&mut self.keeper.due().spare) {
            return false;
        }
        loop {
            match self.keeper.prepare() {
                Ok(true) => {}
                Ok(false) => return true,
                Err(error) => {
                    tracing::warn!(%error, "cannot prepare the next segment of the log");
                    return true;
                }
            }
        }
    }

    /// Removes one trimmed segment; returns how many bytes it had on the medium, nothing if none waited.
    /// There is no hurry: when the medium is full the log removes what waits by itself, and the next
    /// opening what is left.
    pub fn remove_one(&self) -> Option<u64> {
        self.keeper.remove_waste()
    }
}
