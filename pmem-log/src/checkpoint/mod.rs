//! Checkpoints: images of the state machine, kept beside the log and never changed once they count.
//!
//! An image is streamed into blocks of [`BLOCK_BYTES`], each with a header and two checksums; the
//! blocks stand in areas that grow from one block to 64 MiB, since an area has a fixed size and the
//! image's size is not known when it begins. When all blocks are durable a *certificate* is written
//! under another name, persisted, and renamed: that rename is the moment in which the checkpoint
//! begins to count. So a crash leaves either no certificate, and what stands there is a beginning
//! that [`CheckpointStore::receive`] may go on with, or a certificate over blocks that are durable.
//!
//! What is read back is checked block by block; a checkpoint that fails is told to the caller, who
//! falls back to the one before. A failed sync ends the checkpoint that it was for: what it covered
//! may be anywhere, so nothing of it is used or tried again.
//!
//! The bytes are described in `docs/log-format.md`.

mod block;
mod parts;
mod reader;
mod writer;

use crate::error::is_full;
use crate::medium::Medium;
use block::Certificate;
use parts::{certificate_name, remove_parts};
use quorate_consensus::Slot;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

pub use block::{BLOCK_BYTES, BLOCK_PAYLOAD_BYTES};
pub use reader::CheckpointReader;
pub use writer::{CheckpointReceiver, CheckpointWriter, Finished};

pub(crate) use parts::is_checkpoint;

/// Which checkpoint: two with the same identity hold the same image, whoever took them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CheckpointId {
    /// The state machine has seen everything up to this slot, and nothing above it.
    pub slot: Slot,
    /// The fingerprint of all that was applied up to there.
    pub digest: u64,
    /// The cluster.
    pub cluster: u64,
}

/// A checkpoint that counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// Which one.
    pub id: CheckpointId,
    /// How many blocks it has, at least one.
    pub blocks: u64,
    /// The bytes of its image.
    pub bytes: u64,
    /// CRC-32C of its image.
    pub crc: u32,
    /// Entries of this replica's log below this slot are not to be used: it received a checkpoint
    /// that covers them, and what it had accepted there need not be what was chosen. 0 if it never
    /// received one.
    pub log_from: Slot,
}

/// Why something about a checkpoint did not work.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// No room now.
    #[error("no space for a checkpoint: {what}")]
    Full {
        /// What the system said.
        what: Arc<str>,
    },
    /// A write or a sync failed: this checkpoint is lost, the ones before are as they were.
    #[error("a checkpoint could not be written: {what}")]
    Failed {
        /// What the system said.
        what: Arc<str>,
    },
    /// What was stored, or sent, is not what was written.
    #[error("the checkpoint at slot {slot} is damaged in block {block}: {what}")]
    Damaged {
        /// Which checkpoint.
        slot: Slot,
        /// Where.
        block: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The system could not read it.
    #[error("the checkpoint at slot {slot} cannot be read: {what}")]
    Unreadable {
        /// Which checkpoint.
        slot: Slot,
        /// What the system said.
        what: Arc<str>,
    },
}

impl CheckpointError {
    fn of_write(error: &io::Error) -> Self {
        let what = error.to_string().into();
        if is_full(error) { Self::Full { what } } else { Self::Failed { what } }
    }

    fn of_sync(error: &io::Error) -> Self {
        Self::Failed { what: error.to_string().into() }
    }
}

/// All checkpoints of one replica. Used by one thread.
#[derive(Debug)]
pub struct CheckpointStore {
    medium: Arc<dyn Medium>,
    /// How many are kept.
    keep: usize,
    /// Those that count, the oldest first.
    installed: Vec<Checkpoint>,
    /// Those whose certificate or blocks cannot be read: not used, and gone with the next pruning.
    bad: Vec<Slot>,
    /// A beginning without a certificate.
    partial: Option<(CheckpointId, u64)>,
    log_from: Slot,
}

impl CheckpointStore {
    /// Finds what is there. `keep` is how many checkpoints stay, at least one. Beginnings that
    /// cannot be gone on with are removed.
    ///
    /// # Errors
    /// What the medium says.
    pub fn open(medium: Arc<dyn Medium>, keep: usize) -> io::Result<Self> {
        Self::find(medium, keep, true)
    }

    /// Finds what is there, for reading: nothing is changed.
    pub(crate) fn look(medium: Arc<dyn Medium>) -> io::Result<Self> {
        Self::find(medium, usize::MAX, false)
    }

    fn find(medium: Arc<dyn Medium>, keep: usize, tidy: bool) -> io::Result<Self> {
        let mut store = Self {
            medium,
            keep: keep.max(1),
            installed: Vec::new(),
            bad: Vec::new(),
            partial: None,
            log_from: Slot::ZERO,
        };
        let names = store.medium.names()?;
        let mut slots: BTreeMap<Slot, bool> = BTreeMap::new();
        for name in &names {
            match parts::parse(name) {
                Some(parts::Name::Certificate(slot)) => *slots.entry(slot).or_default() = true,
                Some(parts::Name::Part(slot, _)) => {
                    slots.entry(slot).or_default();
                }
                Some(parts::Name::Unfinished) if tidy => store.medium.remove(name)?,
                Some(parts::Name::Unfinished) | None => {}
            }
        }
        for (slot, certified) in slots {
            if certified {
                match store.read_certificate(slot) {
                    Ok(checkpoint) => {
                        store.log_from = store.log_from.max(checkpoint.log_from);
                        store.installed.push(checkpoint);
                    }
                    Err(error) => {
                        // It may have been received: then it said so.
                        store.log_from = store.log_from.max(slot.next());
                        tracing::error!(%slot, %error, "a checkpoint's certificate is damaged");
                        store.bad.push(slot);
                    }
                }
                continue;
            }
            if !tidy {
                continue;
            }
            if let Some((left, _)) = store.partial.take() {
                remove_parts(store.medium.as_ref(), left.slot)?;
            }
            match reader::partial(&store.medium, slot)? {
                Some(found) => store.partial = Some(found),
                None => remove_parts(store.medium.as_ref(), slot)?,
            }
        }
        Ok(store)
    }

    fn read_certificate(&self, slot: Slot) -> io::Result<Checkpoint> {
        let area = self.medium.open(&certificate_name(slot))?;
        let mut bytes = [0; block::CERTIFICATE_BYTES];
        area.read(0, &mut bytes)?;
        Certificate::decode(&bytes)
            .filter(|checkpoint| checkpoint.id.slot == slot)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The checkpoints that count, the oldest first.
    #[must_use]
    pub fn installed(&self) -> &[Checkpoint] {
        &self.installed
    }

    /// Entries of the log below this slot are not to be used: see [`Checkpoint::log_from`].
    #[must_use]
    pub fn log_from(&self) -> Slot {
        self.log_from
    }

    /// Slots of checkpoints that are there and cannot be used.
    #[must_use]
    pub fn bad(&self) -> &[Slot] {
        &self.bad
    }

    /// A checkpoint whose first blocks are here, and how many they are.
    #[must_use]
    pub fn partial(&self) -> Option<(CheckpointId, u64)> {
        self.partial
    }

    /// Begins a new checkpoint. A beginning of another one is removed.
    ///
    /// # Errors
    /// [`CheckpointError::Full`] or [`CheckpointError::Failed`].
    pub fn create(&mut self, id: CheckpointId) -> Result<CheckpointWriter, CheckpointError> {
        self.forget_partial()?;
        self.clear(id.slot)?;
        Ok(CheckpointWriter::new(Arc::clone(&self.medium), id))
    }

    /// Begins to receive a checkpoint block by block, or goes on with it where it ended.
    ///
    /// # Errors
    /// [`CheckpointError::Full`] or [`CheckpointError::Failed`].
    pub fn receive(&mut self, id: CheckpointId) -> Result<CheckpointReceiver, CheckpointError> {
        let medium = Arc::clone(&self.medium);
        if let Some((partial, blocks)) = self.partial
            && partial == id
        {
            let resumed = CheckpointReceiver::resume(&medium, id, blocks);
            self.partial = None;
            if let Ok(receiver) = resumed {
                return Ok(receiver);
            }
        }
        self.forget_partial()?;
        self.clear(id.slot)?;
        Ok(CheckpointReceiver::new(medium, id))
    }

    /// Makes room for a checkpoint at `slot`: a bad one goes, a good one is never written over.
    fn clear(&mut self, slot: Slot) -> Result<(), CheckpointError> {
        if self.installed.iter().any(|installed| installed.id.slot == slot) {
            return Err(CheckpointError::Failed { what: "there is one of this slot".into() });
        }
        self.remove(slot).map_err(|error| CheckpointError::of_write(&error))?;
        self.bad.retain(|bad| *bad != slot);
        Ok(())
    }

    /// A receiver that is not gone on with for now: its blocks stay, as a beginning.
    pub fn set_aside(&mut self, receiver: &CheckpointReceiver) {
        if receiver.next() > 0 && !receiver.is_poisoned() {
            self.partial = Some((receiver.id(), receiver.next()));
        }
    }

    fn forget_partial(&mut self) -> Result<(), CheckpointError> {
        let Some((partial, _)) = self.partial.take() else { return Ok(()) };
        remove_parts(self.medium.as_ref(), partial.slot)
            .map_err(|error| CheckpointError::of_write(&error))
    }

    /// Makes a checkpoint count, whose blocks are all durable. Durable when this returns. From now on
    /// entries of the log below `log_from` are not to be used.
    ///
    /// # Errors
    /// [`CheckpointError::Full`] or [`CheckpointError::Failed`]: it does not count then.
    pub fn install(
        &mut self,
        finished: Finished,
        log_from: Slot,
    ) -> Result<Checkpoint, CheckpointError> {
        let log_from = self.log_from.max(log_from);
        let checkpoint = Checkpoint { log_from, ..finished.checkpoint };
        let slot = checkpoint.id.slot;
        let medium = self.medium.as_ref();
        let certified = || -> Result<(), CheckpointError> {
            let bytes = Certificate::encode(&checkpoint);
            let area = medium
                .create(parts::UNFINISHED, parts::CERTIFICATE_AREA_BYTES)
                .map_err(|error| CheckpointError::of_write(&error))?;
            area.write(0, &bytes).map_err(|error| CheckpointError::of_write(&error))?;
            area.persist(0, bytes.len() as u64)
                .and_then(|()| medium.rename(parts::UNFINISHED, &certificate_name(slot)))
                .map_err(|error| CheckpointError::of_sync(&error))
        };
        if let Err(error) = certified() {
            // It never counted: its blocks are of no use. The next opening removes what stays.
            let _ = remove_parts(medium, slot);
            return Err(error);
        }
        self.log_from = log_from;
        self.bad.retain(|bad| *bad != slot);
        self.installed.retain(|installed| installed.id.slot != slot);
        self.installed.push(checkpoint);
        self.installed.sort_by_key(|installed| installed.id.slot);
        Ok(checkpoint)
    }

    /// A checkpoint turned out to be unusable: it does not count any more.
    pub fn distrust(&mut self, slot: Slot) {
        self.installed.retain(|installed| installed.id.slot != slot);
        if !self.bad.contains(&slot) {
            self.bad.push(slot);
        }
    }

    /// Removes the bad ones, and the oldest ones beyond the number kept, but none that `pinned`
    /// names. The certificate goes first: what stays after a crash is a beginning.
    ///
    /// # Errors
    /// What the medium says; what could not be removed is tried again the next time.
    pub fn prune(&mut self, pinned: &[Slot]) -> io::Result<()> {
        if self.installed.is_empty() {
            // Bad ones are all there is: somebody may want to look at them.
            return Ok(());
        }
        while let Some(slot) = self.bad.last().copied() {
            self.remove(slot)?;
            self.bad.pop();
        }
        let surplus = self.installed.len().saturating_sub(self.keep);
        let gone: Vec<Slot> = self.installed[..surplus]
            .iter()
            .map(|installed| installed.id.slot)
            .filter(|slot| !pinned.contains(slot))
            .collect();
        for slot in gone {
            self.remove(slot)?;
            self.installed.retain(|installed| installed.id.slot != slot);
        }
        Ok(())
    }

    fn remove(&self, slot: Slot) -> io::Result<()> {
        match self.medium.remove(&certificate_name(slot)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        remove_parts(self.medium.as_ref(), slot)
    }

    /// Reads a checkpoint's image from its beginning; each block is checked when it is reached.
    ///
    /// # Errors
    /// [`CheckpointError::Unreadable`].
    pub fn reader(&self, checkpoint: &Checkpoint) -> Result<CheckpointReader, CheckpointError> {
        CheckpointReader::new(Arc::clone(&self.medium), *checkpoint)
    }

    /// Reads every block of a checkpoint and checks it.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] or [`CheckpointError::Unreadable`].
    pub fn verify(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        self.reader(checkpoint)?.skip_to_end()
    }

    /// Whole blocks as they stand, from block `first` on, for a peer: at least one, and no more
    /// than `bytes_max` take. Each is checked.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] or [`CheckpointError::Unreadable`].
    pub fn blocks(
        &self,
        checkpoint: &Checkpoint,
        first: u64,
        bytes_max: usize,
    ) -> Result<Vec<u8>, CheckpointError> {
        reader::blocks(&self.medium, checkpoint, first, bytes_max)
    }
}
