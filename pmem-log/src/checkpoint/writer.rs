//! Writing checkpoints: from a stream of bytes, or from blocks that a peer sends.

use super::block::{BLOCK_BYTES, BlockHeader, HEADER_BYTES, Progress};
use super::parts::Parts;
use super::{Checkpoint, CheckpointError, CheckpointId, reader};
use crate::medium::Medium;
use std::sync::Arc;

/// Blocks between two syncs: little is dirty at any time, so that the log's own syncs, on the same
/// device, do not wait for much.
const BLOCKS_PER_SYNC: u64 = 16;

/// All blocks of a checkpoint are durable; [`super::CheckpointStore::install`] makes it count.
#[derive(Debug)]
pub struct Finished {
    pub(super) checkpoint: Checkpoint,
}

/// Writes a new checkpoint. After an error it takes nothing more.
#[derive(Debug)]
pub struct CheckpointWriter {
    parts: Parts,
    progress: Progress,
    /// The block at hand: room for its header, and what there is of its payload.
    block: Vec<u8>,
    poisoned: Option<CheckpointError>,
}

impl CheckpointWriter {
    pub(super) fn new(medium: Arc<dyn Medium>, id: CheckpointId) -> Self {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        block.resize(HEADER_BYTES, 0);
        Self {
            parts: Parts::new(medium, id.slot),
            progress: Progress::new(id),
            block,
            poisoned: None,
        }
    }

    /// Which checkpoint it is for.
    #[must_use]
    pub fn id(&self) -> CheckpointId {
        self.progress.id
    }

    /// Bytes of the image so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.progress.bytes + (self.block.len() - HEADER_BYTES) as u64
    }

    /// Appends to the image.
    ///
    /// # Errors
    /// [`CheckpointError::Full`] or [`CheckpointError::Failed`], then and for ever.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), CheckpointError> {
        while !bytes.is_empty() {
            if self.block.len() == BLOCK_BYTES {
                self.put(false)?;
            }
            let taken = bytes.len().min(BLOCK_BYTES - self.block.len());
            self.block.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn put(&mut self, last: bool) -> Result<(), CheckpointError> {
        let header = self.progress.header(&self.block[HEADER_BYTES..], last);
        self.block[..HEADER_BYTES].copy_from_slice(&header.encode());
        let written = put(&mut self.parts, &mut self.progress, &self.block, &mut self.poisoned);
        self.block.truncate(HEADER_BYTES);
        written
    }

    /// Ends the image; all of it is durable when this returns.
    ///
    /// # Errors
    /// As [`CheckpointWriter::write`]. What was written is removed.
    pub fn finish(mut self) -> Result<Finished, CheckpointError> {
        let finished = self.put(true).and_then(|()| self.parts.persist());
        match finished {
            Ok(()) => Ok(Finished { checkpoint: self.progress.checkpoint() }),
            Err(error) => {
                self.parts.remove();
                Err(error)
            }
        }
    }

    /// Removes what was written.
    pub fn abandon(self) {
        self.parts.remove();
    }
}

/// Writes a checkpoint that comes from a peer, block by block.
#[derive(Debug)]
pub struct CheckpointReceiver {
    parts: Parts,
    progress: Progress,
    poisoned: Option<CheckpointError>,
}

impl CheckpointReceiver {
    pub(super) fn new(medium: Arc<dyn Medium>, id: CheckpointId) -> Self {
        let parts = Parts::new(medium, id.slot);
        Self { parts, progress: Progress::new(id), poisoned: None }
    }

    /// Goes on behind the first `blocks` blocks that are there; they are checked again.
    pub(super) fn resume(
        medium: &Arc<dyn Medium>,
        id: CheckpointId,
        blocks: u64,
    ) -> std::io::Result<Self> {
        let progress = reader::progress(medium, id, blocks)?;
        let parts = Parts::resume(Arc::clone(medium), id.slot, progress.next)?;
        Ok(Self { parts, progress, poisoned: None })
    }

    /// Which checkpoint it is.
    #[must_use]
    pub fn id(&self) -> CheckpointId {
        self.progress.id
    }

    /// The block that must come next.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.progress.next
    }

    /// Whether the last block was taken.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.progress.ended
    }

    /// Whether a write or a sync failed: it takes nothing more.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.is_some()
    }

    /// Takes whole blocks, one behind the other, the first of which is [`CheckpointReceiver::next`].
    /// They are durable when this returns.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if a block is not what must come next: those before it were
    /// taken, and the receiver goes on with a better copy. [`CheckpointError::Full`] or
    /// [`CheckpointError::Failed`]: then and for ever.
    pub fn take(&mut self, mut blocks: &[u8]) -> Result<(), CheckpointError> {
        let slot = self.progress.id.slot;
        while !blocks.is_empty() {
            let damaged = |what| CheckpointError::Damaged { slot, block: self.progress.next, what };
            let header = BlockHeader::decode(blocks);
            let header = header.ok_or_else(|| damaged("its header does not match its checksum"))?;
            let block = blocks.get(..header.bytes()).ok_or_else(|| damaged("it is cut off"))?;
            put(&mut self.parts, &mut self.progress, block, &mut self.poisoned)?;
            blocks = &blocks[header.bytes()..];
        }
        self.parts.persist().inspect_err(|error| self.poisoned = Some(error.clone()))
    }

    /// All blocks were taken.
    ///
    /// # Errors
    /// [`CheckpointError::Failed`] if it is poisoned, [`CheckpointError::Damaged`] if it is not whole.
    pub fn finish(mut self) -> Result<Finished, CheckpointError> {
        if let Some(error) = self.poisoned.take() {
            return Err(error);
        }
        if !self.progress.ended {
            let (slot, block) = (self.progress.id.slot, self.progress.next);
            return Err(CheckpointError::Damaged { slot, block, what: "it has not come yet" });
        }
        self.parts.persist()?;
        Ok(Finished { checkpoint: self.progress.checkpoint() })
    }

    /// Removes what was written.
    pub fn abandon(self) {
        self.parts.remove();
    }
}

fn put(
    parts: &mut Parts,
    progress: &mut Progress,
    block: &[u8],
    poisoned: &mut Option<CheckpointError>,
) -> Result<(), CheckpointError> {
    if let Some(error) = poisoned {
        return Err(error.clone());
    }
    let mut after = *progress;
    let (slot, index) = (progress.id.slot, progress.next);
    after.take(block).map_err(|what| CheckpointError::Damaged { slot, block: index, what })?;
    let written = parts.write(index, block).and_then(|()| {
        if after.next.is_multiple_of(BLOCKS_PER_SYNC) { parts.persist() } else { Ok(()) }
    });
    match written {
        Ok(()) => *progress = after,
        Err(ref error) => *poisoned = Some(error.clone()),
    }
    written
}
