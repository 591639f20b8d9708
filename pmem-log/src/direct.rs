//! Records on their way to a medium that needs no thread.
//!
//! Small records are put together first and stored in one go when they are to be made durable: the
//! medium then sees whole cache lines, one after the other. Stores past the cache are slow in
//! pieces, since whatever locks a bus in between (a reference that is counted, say) waits for them.

use crate::format::{HEADER_BYTES, WORD_BYTES};
use crate::medium::Area;
use std::io;

/// Payloads from this size on are stored at once: copying them first costs more than it saves.
const LARGE_BYTES: usize = 4 << 10;
/// More than this is not put together.
const STAGED_BYTES_MAX: usize = 32 << 10;

/// The end of the last segment, as far as it was not stored yet.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    bytes: Vec<u8>,
    /// Where in the segment they belong.
    offset: u64,
}

impl Staging {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes a record that belongs at `offset`, right behind the last one if anything is staged. If
    /// this fails, it was not taken.
    pub(crate) fn put(
        &mut self,
        area: &dyn Area,
        offset: u64,
        header: &[u8; HEADER_BYTES],
        payload: &[u8],
    ) -> io::Result<()> {
        if self.bytes.len() >= STAGED_BYTES_MAX {
            self.store(area)?;
        }
        if self.bytes.is_empty() {
            self.offset = offset;
        }
        let before = self.bytes.len();
        debug_assert_eq!(self.offset + before as u64, offset, "a record is out of place");
        self.bytes.extend_from_slice(header);
        if payload.len() < LARGE_BYTES {
            self.bytes.extend_from_slice(payload);
            let padded = self.bytes.len().next_multiple_of(WORD_BYTES as usize);
            self.bytes.resize(padded, 0);
            return Ok(());
        }
        let stored = self.store(area);
        let stored = stored.and_then(|()| area.write(offset + HEADER_BYTES as u64, payload));
        // What is staged still ends before this record, if storing it was what failed.
        self.bytes.truncate(before);
        stored
    }

    /// Stores what is staged. If this fails it stays staged, to be stored again.
    pub(crate) fn store(&mut self, area: &dyn Area) -> io::Result<()> {
        if !self.bytes.is_empty() {
            area.write(self.offset, &self.bytes)?;
            self.bytes.clear();
        }
        Ok(())
    }

    /// The bytes from `offset` of the segment, if they are in here.
    pub(crate) fn slice(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let from = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        self.bytes.get(from..from.checked_add(length)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::medium::{MappedMedium, Medium};

    #[test]
    fn small_records_are_stored_together_and_large_ones_at_once_in_their_places() {
        let area = MappedMedium::memory().create("segment", 1 << 20).expect("memory");
        let mut staging = Staging::default();
        let mut expected = Vec::new();
        for (number, size) in [10, 100, 5000, 8, 4096, 0, 4095].into_iter().enumerate() {
            let (header, payload) = ([number as u8; HEADER_BYTES], vec![number as u8 + 100; size]);
            let offset = 64 + expected.len() as u64;
            staging.put(area.as_ref(), offset, &header, &payload).expect("room");
            let large = size >= LARGE_BYTES;
            assert_eq!(staging.slice(offset, HEADER_BYTES).is_none(), large, "{size}");
            expected.extend_from_slice(&header);
            expected.extend_from_slice(&payload);
            expected.resize(expected.len().next_multiple_of(8), 0);
        }
        staging.store(area.as_ref()).expect("room");
        let mut stored = vec![0; expected.len()];
        area.read(64, &mut stored).expect("reads");
        assert!(stored == expected);
        assert_eq!(staging.slice(64, 8), None, "it is stored");
    }
}
