//! Reading entries back.
//!
//! How often a value is copied on its way out:
//!
//! - from a file: once, by the kernel, into a piece that was read ahead; what is given out are slices of
//!   it. A value above half a piece is read into memory of its own.
//! - from a mapping: once, word by word. Mapped memory may be written by others at any time (another
//!   process, one day a peer), and a trimmed segment is written again: so it is never lent, but copied as
//!   atomic words, and the checksum is taken of the copy.
//! - from what is staged or in flight: once, since the next group is put together in the same memory.
//!
//! From there on it is shared: into the core's cache, into the state machine, and by one gathering copy
//! into the record for a peer (decision 8).

use crate::error::LogError;
use crate::format::{Geometry, HEADER_BYTES, Header, Kind};
use crate::index::{Index, Place};
use crate::log::Log;
use crate::recovery::Segment;
use crate::scan::read_what_is_there;
use bytes::Bytes;
use quorate_consensus::{Entry, Slot, Value};
use std::collections::VecDeque;

/// How much is read at a time where each read is a call into the system.
const WINDOW_BYTES: usize = 64 << 10;

impl Log {
    /// Reads consecutive entries from `first` on into `out`: the newest record of each slot, also
    /// those not flushed yet. Stops at a hole, or before the values exceed `bytes_max`, but returns at
    /// least one entry if there is one. Also stops before a damaged or unreadable slot: asked for that
    /// one, it is an error.
    ///
    /// # Errors
    /// [`LogError::Damaged`] if the newest record of `first` is lost or does not match its
    /// checksums; [`LogError::Unreadable`] if the system cannot read.
    pub fn read(
        &self,
        first: Slot,
        bytes_max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogError> {
        let written = Written {
            geometry: self.geometry,
            segments: &self.segments,
            index: &self.index,
            log: Some(self),
        };
        written.read(first, bytes_max, out)
    }
}

/// What entries are read from: an open log, or one that is only looked at.
#[derive(Clone, Copy)]
pub(crate) struct Written<'a> {
    pub(crate) geometry: Geometry,
    pub(crate) segments: &'a VecDeque<Segment>,
    pub(crate) index: &'a Index,
    /// The log that may hold records which are not with the medium yet.
    pub(crate) log: Option<&'a Log>,
}

impl Written<'_> {
    /// As [`Log::read`].
    pub(crate) fn read(
        self,
        first: Slot,
        bytes_max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogError> {
        let mut reader = Reader { written: self, window: Bytes::new(), window_at: 0 };
        let mut walk: Option<Walk> = None;
        let mut bytes = 0;
        let mut slot = first;
        loop {
            let step = match walk {
                Some(walk) if walk.last >= slot.0 => Ok(Some(walk)),
                _ => reader.find(slot),
            };
            let found = match step {
                Ok(None) => return Ok(()),
                Ok(Some(at)) => reader.entry(slot, at),
                Err(error) => Err(error),
            };
            let (entry, next) = match found {
                Err(LogError::Damaged { .. } | LogError::Unreadable { .. }) if slot > first => {
                    return Ok(());
                }
                found => found?,
            };
            bytes += entry.value.bytes.len();
            if slot > first && bytes > bytes_max {
                return Ok(());
            }
            out.push(entry);
            walk = Some(next);
            slot = slot.next();
        }
    }
}

/// Where the next record of a run is to be looked for.
#[derive(Clone, Copy)]
struct Walk {
    position: u64,
    /// The last slot of the run.
    last: u64,
}

struct Reader<'a> {
    written: Written<'a>,
    /// A piece of a segment that was read ahead. Values in it are given out as they are: the piece lives
    /// as long as one of them does.
    window: Bytes,
    window_at: u64,
}

impl Reader<'_> {
    /// The place of the run's record at or before `slot`.
    fn find(&self, slot: Slot) -> Result<Option<Walk>, LogError> {
        let Some(run) = self.written.index.find(slot) else { return Ok(None) };
        match run.place {
            Place::Stands { position, .. } => Ok(Some(Walk { position, last: run.last })),
            Place::Damaged => Err(LogError::Damaged { slot, what: "its newest record was lost" }),
        }
    }

    /// Steps over records until the one of `slot`; also returns where the one after it may stand.
    fn entry(&mut self, slot: Slot, from: Walk) -> Result<(Entry, Walk), LogError> {
        let damaged = |what| LogError::Damaged { slot, what };
        let mut position = from.position;
        loop {
            let (at, header) = self.header(position, slot)?;
            position = at + header.bytes();
            let Kind::Entry(kind) = header.kind else { continue };
            if header.slot > slot {
                return Err(damaged("another slot's record is in its place"));
            }
            if header.slot < slot {
                continue;
            }
            let bytes = self.payload(at + HEADER_BYTES as u64, header.payload_bytes as usize)?;
            if crc32c::crc32c(&bytes) != header.value_checksum {
                return Err(damaged("the value does not match its checksum"));
            }
            let value = Value { kind, checksum: header.value_checksum, bytes };
            let walk = Walk { position, last: from.last };
            return Ok((Entry { slot, ballot: header.ballot, value }, walk));
        }
    }

    /// The header at `position`, or, if a batch ended there, the first of the next batch.
    fn header(&mut self, position: u64, slot: Slot) -> Result<(u64, Header), LogError> {
        let geometry = self.written.geometry;
        let aligned = geometry.align_up(position);
        for at in [position, aligned] {
            let room = geometry.segment_bytes - geometry.offset(at);
            if room < HEADER_BYTES as u64 {
                continue;
            }
            let mut bytes = [0; HEADER_BYTES];
            self.fill(at, &mut bytes)?;
            if let Some(header) = Header::decode(&bytes, &geometry, at) {
                return Ok((at, header));
            }
        }
        Err(LogError::Damaged { slot, what: "the header does not match its checksum" })
    }

    fn payload(&mut self, position: u64, length: usize) -> Result<Bytes, LogError> {
        if length == 0 {
            // A record without a payload may end where its segment does: nothing is behind it.
            return Ok(Bytes::new());
        }
        if self.unwritten(position, length).is_none()
            && let Some(bytes) = self.ahead(position, length)
        {
            return Ok(bytes);
        }
        let mut bytes = vec![0; length];
        self.fill(position, &mut bytes)?;
        Ok(bytes.into())
    }

    fn fill(&mut self, position: u64, into: &mut [u8]) -> Result<(), LogError> {
        let geometry = self.written.geometry;
        let (number, offset) = (geometry.number(position), geometry.offset(position));
        if let Some(bytes) = self.unwritten(position, into.len()) {
            into.copy_from_slice(bytes);
            return Ok(());
        }
        if let Some(bytes) = self.ahead(position, into.len()) {
            into.copy_from_slice(&bytes);
            return Ok(());
        }
        self.area(number, |area| read_what_is_there(area, offset, into))
    }

    /// What is staged or in flight is changed when it is written: it is copied.
    fn unwritten(&self, position: u64, length: usize) -> Option<&[u8]> {
        let geometry = self.written.geometry;
        let (number, offset) = (geometry.number(position), geometry.offset(position));
        self.written.log.and_then(|log| log.unwritten(number, offset, length))
    }

    /// What was read ahead, or is now, where that pays and the piece is not too large for it.
    fn ahead(&mut self, position: u64, length: usize) -> Option<Bytes> {
        if !self.written.log.is_none_or(Log::reads_ahead) || length > WINDOW_BYTES / 2 {
            return None;
        }
        let start = position.checked_sub(self.window_at).map(|start| start as usize);
        let inside = start.filter(|start| start + length <= self.window.len());
        let start = match inside {
            Some(start) => start,
            None => {
                let geometry = self.written.geometry;
                // What is not needed may be unreadable: then only what is needed is read.
                self.load(geometry.number(position), geometry.offset(position)).ok()?;
                self.window_at = position;
                0
            }
        };
        (start + length <= self.window.len()).then(|| self.window.slice(start..start + length))
    }

    fn load(&mut self, number: u64, offset: u64) -> Result<(), LogError> {
        self.window = Bytes::new();
        let room = self.written.geometry.segment_bytes - offset;
        let mut window = vec![0; WINDOW_BYTES.min(usize::try_from(room).unwrap_or(usize::MAX))];
        self.area(number, |area| read_what_is_there(area, offset, &mut window))?;
        self.window = window.into();
        Ok(())
    }

    fn area(
        &self,
        number: u64,
        act: impl FnOnce(&dyn crate::medium::Area) -> std::io::Result<()>,
    ) -> Result<(), LogError> {
        let first = self.written.segments.front().map_or(0, |segment| segment.number);
        let index = number.checked_sub(first).and_then(|index| usize::try_from(index).ok());
        let segment = index.and_then(|index| self.written.segments.get(index));
        let segment = segment.filter(|segment| segment.number == number);
        let segment = segment
            .or_else(|| self.written.segments.iter().find(|segment| segment.number == number));
        let area = segment.and_then(|segment| segment.area.as_ref());
        let unreadable = |what: String| LogError::Unreadable { what: what.into() };
        let area = area.ok_or_else(|| unreadable(format!("segment {number} is missing")))?;
        act(area.as_ref()).map_err(|error| unreadable(error.to_string()))
    }
}
