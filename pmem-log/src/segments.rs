//! Making, filling, recycling and retiring segments.

use crate::error::is_full;
use crate::format::{Geometry, STATED_MAX, SegmentHeader};
use crate::medium::{Area, Medium};
use crate::superblock::SuperblockStore;
use crate::upkeep::Due;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SEGMENT_PREFIX: &str = "segment-";
const SPARE_PREFIX: &str = "spare-";
/// Trimmed segments kept for reuse; more are removed.
const SPARES_MAX: usize = 2;
/// How much of a new segment is filled with zeros in one step, so that a batch that arrives
/// meanwhile waits about a millisecond at most.
const FILL_STEP_BYTES: u64 = 256 << 10;

/// The name of segment `number`.
pub(crate) fn segment_name(number: u64) -> String {
    format!("{SEGMENT_PREFIX}{number:016x}")
}

/// The number in a segment's name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(SEGMENT_PREFIX)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    // One number has one name: not a second with capitals, or with a plus sign.
    (segment_name(number) == name).then_some(number)
}

/// Whether the name is one of a spare.
pub(crate) fn is_spare(name: &str) -> bool {
    name.strip_prefix(SPARE_PREFIX).is_some_and(|digits| u64::from_str_radix(digits, 16).is_ok())
}

/// What the log's thread and its sync thread share: the files beside the records.
#[derive(Debug)]
pub(crate) struct Keeper {
    medium: Arc<dyn Medium>,
    geometry: Geometry,
    superblock: Mutex<SuperblockStore>,
    spares: Mutex<Spares>,
    pub(crate) due: Mutex<Due>,
}

/// How far a new segment is to be written with zeros before its use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Zeros {
    /// All of it: nobody waits.
    Throughout,
    /// Somebody waits for it, and would for as long as it takes to write a whole segment.
    AsFarAsTheyAre,
}

#[derive(Debug, Default)]
struct Spares {
    ready: Vec<Spare>,
    filling: Option<Filling>,
    next_number: u64,
}

#[derive(Debug)]
struct Spare {
    name: String,
    area: Arc<dyn Area>,
    /// It held another segment.
    recycled: bool,
}

#[derive(Debug)]
struct Filling {
    spare: Spare,
    filled: u64,
}

impl Keeper {
    /// `spare_names` are those found in the directory; unusable ones are removed.
    pub(crate) fn new(
        medium: Arc<dyn Medium>,
        geometry: Geometry,
        superblock: SuperblockStore,
        spare_names: &[String],
    ) -> io::Result<Self> {
        let mut spares = Spares::default();
        for name in spare_names {
            let number = u64::from_str_radix(&name[SPARE_PREFIX.len()..], 16).unwrap_or(u64::MAX);
            let area = medium.open(name)?;
            let usable = area.bytes() == geometry.segment_bytes && number < STATED_MAX;
            if usable && spares.ready.len() < SPARES_MAX {
                spares.next_number = spares.next_number.max(number + 1);
                // It may hold a part of an old segment: only a segment of this opening's making
                // is known to be zero.
                spares.ready.push(Spare { name: name.clone(), area, recycled: true });
            } else {
                medium.remove(name)?;
            }
        }
        Ok(Self {
            medium,
            geometry,
            superblock: Mutex::new(superblock),
            spares: Mutex::new(spares),
            due: Mutex::default(),
        })
    }

    pub(crate) fn superblock(&self) -> MutexGuard<'_, SuperblockStore> {
        // Whoever died holding it was in the middle of a write, which the next one repeats.
        self.superblock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spares(&self) -> MutexGuard<'_, Spares> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes segment `number`, durable with its header when this returns.
    pub(crate) fn make(
        &self,
        number: u64,
        previous_end: u64,
        zeros: Zeros,
    ) -> io::Result<Arc<dyn Area>> {
        loop {
            match self.make_once(number, previous_end, zeros) {
                // What waits to be removed is in the way now.
                Err(error) if is_full(&error) && self.remove_waste().is_some() => {}
                made => return made,
            }
        }
    }

    fn make_once(&self, number: u64, previous_end: u64, zeros: Zeros) -> io::Result<Arc<dyn Area>> {
        let mut spares = self.spares();
        if spares.ready.is_empty() {
            self.begin_filling(&mut spares)?;
            while zeros == Zeros::Throughout && self.fill(&mut spares)? {}
            // It reads as zeros either way.
            if let Some(filling) = spares.filling.take() {
                spares.ready.push(filling.spare);
            }
        }
        // Taken out only when it has its new name, so that a failure leaves it for the next try.
        let spare = spares.ready.last().ok_or_else(|| io::Error::other("no spare was made"))?;
        let header = SegmentHeader { number, previous_end, recycled: spare.recycled };
        let header = header.encode(&self.geometry);
        spare.area.write(0, &header)?;
        spare.area.persist(0, header.len() as u64)?;
        self.medium.rename(&spare.name, &segment_name(number))?;
        let area = Arc::clone(&spare.area);
        spares.ready.pop();
        // A sync thread makes the next one ahead by itself.
        let lacking = spares.ready.is_empty() && !self.medium.profile().sync_thread;
        drop(spares);
        if lacking {
            self.want_spare();
        }
        Ok(area)
    }

    /// Does one step of preparing the next segment; returns whether there is more to do.
    pub(crate) fn prepare(&self) -> io::Result<bool> {
        let mut spares = self.spares();
        if !spares.ready.is_empty() {
            return Ok(false);
        }
        self.begin_filling(&mut spares)?;
        if self.medium.profile().zero_fill {
            return self.fill(&mut spares);
        }
        let Some(Filling { spare, .. }) = spares.filling.take() else { return Ok(false) };
        // This takes long, and the log's thread may want a segment meanwhile: it makes one of its own.
        drop(spares);
        spare.area.touch();
        self.spares().ready.push(spare);
        Ok(false)
    }

    fn begin_filling(&self, spares: &mut Spares) -> io::Result<()> {
        if spares.filling.is_none() {
            let name = format!("{SPARE_PREFIX}{:016x}", spares.next_number);
            let area = self.medium.create(&name, self.geometry.segment_bytes)?;
            spares.next_number += 1;
            let spare = Spare { name, area, recycled: false };
            spares.filling = Some(Filling { spare, filled: 0 });
        }
        Ok(())
    }

    fn fill(&self, spares: &mut Spares) -> io::Result<bool> {
        let Some(mut filling) = spares.filling.take() else { return Ok(false) };
        let bytes = (self.geometry.segment_bytes - filling.filled).min(FILL_STEP_BYTES);
        if self.medium.profile().zero_fill && bytes > 0 {
            let area = &filling.spare.area;
            static ZEROS: [u8; FILL_STEP_BYTES as usize] = [0; FILL_STEP_BYTES as usize];
            let written = area.write(filling.filled, &ZEROS[..bytes as usize]);
            if let Err(error) = written.and_then(|()| area.persist(filling.filled, bytes)) {
                // Room that is half taken helps nobody; the first failure is the one to tell.
                let _ = self.medium.remove(&filling.spare.name);
                return Err(error);
            }
            filling.filled += bytes;
            if filling.filled < self.geometry.segment_bytes {
                spares.filling = Some(filling);
                return Ok(true);
            }
        }
        spares.ready.push(filling.spare);
        Ok(false)
    }

    /// Forgets all segments below `first_segment`: first the superblock says so, then the files
    /// go, so that a missing segment is never mistaken for a trimmed one. A file that outlives this process
    /// is removed by the next opening.
    pub(crate) fn retire(&self, first_segment: u64, retired: Vec<Retired>) -> io::Result<()> {
        {
            let mut superblock = self.superblock();
            if superblock.current.first_segment < first_segment {
                superblock.current.first_segment = first_segment;
                superblock.write()?;
            }
        }
        for segment in retired {
            self.recycle(segment)?;
        }
        Ok(())
    }

    fn recycle(&self, segment: Retired) -> io::Result<()> {
        let mut spares = self.spares();
        if spares.ready.len() >= SPARES_MAX || segment.area.bytes() != self.geometry.segment_bytes {
            drop(spares);
            return self.discard(segment);
        }
        let name = segment_name(segment.number);
        let spare = format!("{SPARE_PREFIX}{:016x}", spares.next_number);
        self.medium.rename(&name, &spare)?;
        spares.next_number += 1;
        spares.ready.push(Spare { name: spare, area: segment.area, recycled: true });
        Ok(())
    }

    pub(crate) fn remove(&self, segment: Retired) -> io::Result<u64> {
        let bytes = segment.area.bytes();
        self.medium.remove(&segment_name(segment.number))?;
        Ok(bytes)
    }
}

/// A segment that is no longer needed.
#[derive(Clone, Debug)]
pub(crate) struct Retired {
    pub(crate) number: u64,
    pub(crate) area: Arc<dyn Area>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_segments_read_back_and_nothing_else_does() {
        assert_eq!(segment_number(&segment_name(0xabc)), Some(0xabc));
        let others = ["segment-+000000000000001", "segment-000000000000000A", "spare-0", "LOCK"];
        for name in ["segment-", "segment-12", "segment-00000000000000zz"].iter().chain(&others) {
            assert_eq!(segment_number(name), None, "{name}");
        }
        assert!(is_spare("spare-0000000000000001") && !is_spare("segment-0000000000000001"));
    }
}
