//! Reading checkpoints back, checked block by block.

use super::block::{BLOCK_BYTES, BlockHeader, HEADER_BYTES, Progress};
use super::parts::{part_name, place};
use super::{Checkpoint, CheckpointError, CheckpointId};
use crate::medium::{Area, Medium};
use quorate_consensus::Slot;
use std::io::{self, Read};
use std::sync::Arc;

/// Reads blocks of one checkpoint, without checking them.
struct Source<'a> {
    medium: &'a Arc<dyn Medium>,
    slot: Slot,
    current: Option<(u32, Arc<dyn Area>)>,
}

impl<'a> Source<'a> {
    fn new(medium: &'a Arc<dyn Medium>, slot: Slot) -> Self {
        Self { medium, slot, current: None }
    }

    /// What stands in the place of a block. Bytes behind a short block are left in `into`.
    fn read(&mut self, block: u64, into: &mut Vec<u8>) -> io::Result<()> {
        let (part, offset) = place(block);
        if self.current.as_ref().is_none_or(|(current, _)| *current != part) {
            self.current = Some((part, self.medium.open(&part_name(self.slot, part))?));
        }
        into.resize(BLOCK_BYTES, 0);
        let Some((_, area)) = &self.current else { return Ok(()) };
        area.read(offset, into)
    }
}

/// The image of a checkpoint, as a stream. An error of [`Read`] carries a [`CheckpointError`].
#[derive(Debug)]
pub struct CheckpointReader {
    medium: Arc<dyn Medium>,
    checkpoint: Checkpoint,
    progress: Progress,
    current: Option<(u32, Arc<dyn Area>)>,
    block: Vec<u8>,
    /// What of `block` was given out.
    at: usize,
    end: usize,
}

impl CheckpointReader {
    pub(super) fn new(
        medium: Arc<dyn Medium>,
        checkpoint: Checkpoint,
    ) -> Result<Self, CheckpointError> {
        let progress = Progress::new(checkpoint.id);
        Ok(Self { medium, checkpoint, progress, current: None, block: Vec::new(), at: 0, end: 0 })
    }

    /// Reads and checks the next block; returns whether there was one.
    fn load(&mut self) -> Result<bool, CheckpointError> {
        if self.progress.ended {
            return Ok(false);
        }
        let (slot, block) = (self.checkpoint.id.slot, self.progress.next);
        let damaged = |what| CheckpointError::Damaged { slot, block, what };
        let mut source = Source { current: self.current.take(), ..Source::new(&self.medium, slot) };
        let read = source.read(block, &mut self.block);
        self.current = source.current.take();
        read.map_err(|error| unreadable(slot, &error))?;
        let header = self.progress.take(&self.block).map_err(damaged)?;
        let whole = if header.last {
            let log_from = self.checkpoint.log_from;
            Checkpoint { log_from, ..self.progress.checkpoint() } == self.checkpoint
        } else {
            self.progress.next < self.checkpoint.blocks
        };
        if !whole {
            return Err(damaged("it does not end where its certificate says"));
        }
        (self.at, self.end) = (HEADER_BYTES, header.bytes());
        Ok(true)
    }

    pub(super) fn skip_to_end(&mut self) -> Result<(), CheckpointError> {
        while self.load()? {}
        Ok(())
    }
}

impl Read for CheckpointReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.end {
            if !self.load().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
        let taken = into.len().min(self.end - self.at);
        into[..taken].copy_from_slice(&self.block[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}

/// As [`super::CheckpointStore::blocks`].
pub(super) fn blocks(
    medium: &Arc<dyn Medium>,
    checkpoint: &Checkpoint,
    first: u64,
    bytes_max: usize,
) -> Result<Vec<u8>, CheckpointError> {
    let slot = checkpoint.id.slot;
    let mut source = Source::new(medium, slot);
    let (mut out, mut block) = (Vec::new(), Vec::new());
    for index in first..checkpoint.blocks {
        if !out.is_empty() && out.len() + BLOCK_BYTES > bytes_max {
            break;
        }
        source.read(index, &mut block).map_err(|error| unreadable(slot, &error))?;
        let damaged = |what| CheckpointError::Damaged { slot, block: index, what };
        // What goes out is checked on its own: what came before it is not at hand.
        let header = BlockHeader::decode(&block)
            .filter(|header| header.id == checkpoint.id && header.index == index)
            .ok_or_else(|| damaged("its header does not match its checksum"))?;
        let payload = &block[HEADER_BYTES..header.bytes()];
        if crc32c::crc32c(payload) != header.crc || header.last != (index + 1 == checkpoint.blocks)
        {
            return Err(damaged("its contents do not match their checksum"));
        }
        out.extend_from_slice(&block[..header.bytes()]);
    }
    Ok(out)
}

/// The beginning of a checkpoint without a certificate: which one it is, and how many whole blocks
/// there are; none if not even the first is.
pub(super) fn partial(
    medium: &Arc<dyn Medium>,
    slot: Slot,
) -> io::Result<Option<(CheckpointId, u64)>> {
    let mut block = Vec::new();
    if Source::new(medium, slot).read(0, &mut block).is_err() {
        return Ok(None);
    }
    let Some(header) = BlockHeader::decode(&block).filter(|header| header.id.slot == slot) else {
        return Ok(None);
    };
    let found = progress(medium, header.id, u64::MAX)?;
    Ok((found.next > 0).then_some((found.id, found.next)))
}

/// Reads whole blocks from the first on, at most `blocks` of them.
pub(super) fn progress(
    medium: &Arc<dyn Medium>,
    id: CheckpointId,
    blocks: u64,
) -> io::Result<Progress> {
    let mut source = Source::new(medium, id.slot);
    let mut progress = Progress::new(id);
    let mut block = Vec::new();
    while progress.next < blocks && !progress.ended {
        match source.read(progress.next, &mut block) {
            Ok(()) if progress.take(&block).is_ok() => {}
            // What cannot be read, or is not whole, is asked for again.
            _ => break,
        }
    }
    Ok(progress)
}

fn unreadable(slot: Slot, error: &io::Error) -> CheckpointError {
    CheckpointError::Unreadable { slot, what: error.to_string().into() }
}
