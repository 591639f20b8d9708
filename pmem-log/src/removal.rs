//! Removing trimmed segments beside the log's threads.
//!
//! To remove a file of tens of megabytes takes as long as to write it: its pages are given back one by
//! one, when the last mapping or handle goes (20 ms for 64 MiB of page cache). A checkpoint lets go of
//! many at once, and no record is written meanwhile. Whoever has a thread for such work takes a
//! [`Removals`]; where nobody does, trimming removes at once.

use crate::segments::{Keeper, Retired};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};

/// Segments that wait to be removed: at most as many as the log once had.
#[derive(Default)]
pub(crate) struct Waste {
    waiting: VecDeque<Retired>,
    /// Told that something waits; nobody removes anything if there is none.
    tell: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Waste {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waste").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Keeper {
    fn waste(&self) -> MutexGuard<'_, Waste> {
        // Whole between any two statements of whoever held it.
        self.waste.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the segment, or leaves it to whoever does that.
    pub(crate) fn discard(&self, segment: Retired) -> io::Result<()> {
        let tell = {
            let mut waste = self.waste();
            let Some(tell) = waste.tell.clone() else {
                drop(waste);
                return self.remove(segment).map(drop);
            };
            waste.waiting.push_back(segment);
            tell
        };
        tell();
        Ok(())
    }

    /// Removes one segment that waits; returns its bytes, nothing if none waits. A file that cannot be
    /// removed is removed by the next opening.
    pub(crate) fn remove_waste(&self) -> Option<u64> {
        let segment = self.waste().waiting.pop_front()?;
        let number = segment.number;
        let removed = self.remove(segment);
        Some(removed.unwrap_or_else(|error| {
            tracing::warn!(segment = number, %error, "a trimmed segment of the log cannot be removed");
            0
        }))
    }
}

/// The trimmed segments of one log that wait to be removed. See [`crate::Log::removals`].
#[derive(Clone, Debug)]
pub struct Removals {
    keeper: Arc<Keeper>,
}

impl Removals {
    pub(crate) fn new(keeper: Arc<Keeper>, tell: Arc<dyn Fn() + Send + Sync>) -> Self {
        keeper.waste().tell = Some(tell);
        Self { keeper }
    }

    /// Whether one waits.
    #[must_use]
    pub fn is_due(&self) -> bool {
        !self.keeper.waste().waiting.is_empty()
    }

    /// Removes one; returns how many bytes it had on the medium, nothing if none waited.
    pub fn remove_one(&self) -> Option<u64> {
        self.keeper.remove_waste()
    }
}
