//! A log that is read as recovery would read it, by somebody who is not its replica.

use crate::api::{MediumKind, Recovered};
use crate::checkpoint::CheckpointStore;
use crate::error::{LogError, OpenError};
use crate::medium::{Medium, open_read_only};
use crate::read::Written;
use crate::recovery::{self, Looked};
use quorate_consensus::{Entry, Slot};
use std::path::Path;
use std::sync::Arc;

/// The newest record of each slot of a log that no replica has open. It stays locked against
/// replicas while this exists, and nothing in it is written.
pub struct LogReader {
    medium: Arc<dyn Medium>,
    looked: Looked,
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogReader")
            .field("recovered", &self.looked.recovered)
            .finish_non_exhaustive()
    }
}

impl LogReader {
    /// Reads all of the log in `directory`, every checksum included.
    ///
    /// # Errors
    /// If the directory is no log, cannot be read, or is in use by a replica.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let medium = open_read_only(directory)?;
        let looked = recovery::look(&medium)?;
        Ok(Self { medium, looked })
    }

    /// What an opening of the log would find.
    #[must_use]
    pub fn recovered(&self) -> &Recovered {
        &self.looked.recovered
    }

    /// What the log was formatted for.
    #[must_use]
    pub fn kind(&self) -> MediumKind {
        self.looked.kind
    }

    /// As [`crate::Log::read`].
    ///
    /// # Errors
    /// As [`crate::Log::read`].
    pub fn read(
        &self,
        first: Slot,
        bytes_max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogError> {
        let Looked { geometry, segments, index, .. } = &self.looked;
        Written { geometry: *geometry, segments, index, log: None }.read(first, bytes_max, out)
    }

    /// The checkpoints beside the log. Nothing can be added to them, and nothing is removed.
    ///
    /// # Errors
    /// What the medium says.
    pub fn checkpoints(&self) -> std::io::Result<CheckpointStore> {
        CheckpointStore::look(Arc::clone(&self.medium))
    }
}
