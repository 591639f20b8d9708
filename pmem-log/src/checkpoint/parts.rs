//! The areas that a checkpoint stands in.

use super::block::BLOCK_BYTES;
use crate::medium::{Area, Medium};
use quorate_consensus::Slot;
use std::io;
use std::sync::Arc;

const PREFIX: &str = "checkpoint-";
/// A certificate being made; means nothing after a crash.
pub(super) const UNFINISHED: &str = "checkpoint.new";
/// One page, so that a certificate shares none with anything else.
pub(super) const CERTIFICATE_AREA_BYTES: u64 = 4096;

/// Parts double from one block to `1 << SHIFT_MAX` blocks: a small image takes little room, a large
/// one few files.
const SHIFT_MAX: u32 = 10;
/// Blocks in the parts that still grow.
const GROWING_BLOCKS: u64 = (1 << (SHIFT_MAX + 1)) - 1;

/// Which area a name belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Name {
    Certificate(Slot),
    Part(Slot, u32),
    Unfinished,
}

/// Whether the name is one that a checkpoint store gives.
pub(crate) fn is_checkpoint(name: &str) -> bool {
    parse(name).is_some()
}

pub(super) fn parse(name: &str) -> Option<Name> {
    if name == UNFINISHED {
        return Some(Name::Unfinished);
    }
    let rest = name.strip_prefix(PREFIX)?;
    let (slot, part) = match rest.split_once('-') {
        Some((slot, part)) => (slot, Some(part)),
        None => (rest, None),
    };
    let slot = Slot(hexadecimal(slot, 16)?);
    match part {
        None => Some(Name::Certificate(slot)),
        Some(part) => Some(Name::Part(slot, hexadecimal(part, 8)? as u32)),
    }
}

fn hexadecimal(text: &str, digits: usize) -> Option<u64> {
    let whole = text.len() == digits
        && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    u64::from_str_radix(text, 16).ok().filter(|_| whole)
}

pub(super) fn certificate_name(slot: Slot) -> String {
    format!("{PREFIX}{:016x}", slot.0)
}

pub(super) fn part_name(slot: Slot, part: u32) -> String {
    format!("{PREFIX}{:016x}-{part:08x}", slot.0)
}

/// The part that a block stands in, and its offset there.
pub(super) fn place(block: u64) -> (u32, u64) {
    let (part, index) = if block < GROWING_BLOCKS {
        let part = (block + 1).ilog2();
        (part, block + 1 - (1 << part))
    } else {
        let beyond = block - GROWING_BLOCKS;
        let part = u32::try_from(beyond >> SHIFT_MAX).unwrap_or(u32::MAX);
        // No store comes so far: a forged number leads to a part that nobody made.
        (part.saturating_add(SHIFT_MAX + 1), beyond & ((1 << SHIFT_MAX) - 1))
    };
    (part, index * BLOCK_BYTES as u64)
}

/// The size of a part.
pub(super) fn part_bytes(part: u32) -> u64 {
    (BLOCK_BYTES as u64) << part.min(SHIFT_MAX)
}

/// Removes all parts of a checkpoint, the last one first, so that what stays after a crash is a
/// beginning.
pub(super) fn remove_parts(medium: &dyn Medium, slot: Slot) -> io::Result<()> {
    for name in medium.names()?.iter().rev() {
        if matches!(parse(name), Some(Name::Part(of, _)) if of == slot) {
            medium.remove(name)?;
        }
    }
    Ok(())
}

/// The parts of a checkpoint that is being written: made as they are needed, and made durable
/// behind the writing.
#[derive(Debug)]
pub(super) struct Parts {
    medium: Arc<dyn Medium>,
    slot: Slot,
    current: Option<(u32, Arc<dyn Area>)>,
    /// What of the current part was written and not persisted.
    dirty: Option<(u64, u64)>,
}

impl Parts {
    pub(super) fn new(medium: Arc<dyn Medium>, slot: Slot) -> Self {
        Self { medium, slot, current: None, dirty: None }
    }

    /// Goes on in parts that are there, up to and including the one of `block`: all of them are
    /// persisted, since a process that died may have left blocks that never were.
    pub(super) fn resume(medium: Arc<dyn Medium>, slot: Slot, block: u64) -> io::Result<Self> {
        let mut parts = Self::new(medium, slot);
        let (last, offset) = place(block);
        for part in 0..=last {
            match parts.medium.open(&part_name(slot, part)) {
                Ok(area) if area.bytes() == part_bytes(part) => {
                    area.persist(0, area.bytes())?;
                    parts.current = Some((part, area));
                }
                // It was being made when the process died, and holds nothing that is needed.
                Ok(_) if part == last && offset == 0 => {
                    parts.medium.remove(&part_name(slot, part))?;
                }
                Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
                // The next block begins a part that was not made yet.
                Err(error) if error.kind() == io::ErrorKind::NotFound && part == last => {}
                Err(error) => return Err(error),
            }
        }
        Ok(parts)
    }

    /// Writes a block; the part before is persisted when a new one begins.
    pub(super) fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), super::CheckpointError> {
        let (part, offset) = place(block);
        if self.current.as_ref().is_none_or(|(current, _)| *current != part) {
            self.persist()?;
            let name = part_name(self.slot, part);
            let made = self.medium.create(&name, part_bytes(part));
            let area = made.map_err(|error| super::CheckpointError::of_write(&error))?;
            self.current = Some((part, area));
        }
        let Some((_, area)) = &self.current else { return Ok(()) };
        area.write(offset, bytes).map_err(|error| super::CheckpointError::of_write(&error))?;
        let end = offset + bytes.len() as u64;
        self.dirty = Some(self.dirty.map_or((offset, end), |(from, _)| (from, end)));
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn persist(&mut self) -> Result<(), super::CheckpointError> {
        if let (Some((from, to)), Some((_, area))) = (self.dirty.take(), &self.current) {
            area.persist(from, to - from)
                .map_err(|error| super::CheckpointError::of_sync(&error))?;
        }
        Ok(())
    }

    /// Removes all parts: this checkpoint will not be.
    pub(super) fn remove(&self) {
        // The next opening removes what stays.
        let _ = remove_parts(self.medium.as_ref(), self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fill_parts_one_after_the_other() {
        let (mut part, mut offset) = (0, 0);
        for block in 0..20_000 {
            assert_eq!(place(block), (part, offset), "block {block}");
            offset += BLOCK_BYTES as u64;
            if offset == part_bytes(part) {
                (part, offset) = (part + 1, 0);
            }
        }
        assert_eq!(part_bytes(40), 64 << 20);
    }

    #[test]
    fn names_read_back_and_nothing_else_does() {
        let slot = Slot(0xabc);
        assert_eq!(parse(&certificate_name(slot)), Some(Name::Certificate(slot)));
        assert_eq!(parse(&part_name(slot, 17)), Some(Name::Part(slot, 17)));
        assert_eq!(parse(UNFINISHED), Some(Name::Unfinished));
        for name in [
            "checkpoint-",
            "checkpoint-1",
            "checkpoint-0000000000000ABC",
            "checkpoint-0000000000000abc-1",
            "checkpoint-0000000000000abc-0000001g",
            "segment-0000000000000abc",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
