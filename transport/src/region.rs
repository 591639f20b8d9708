//! Regions in ordinary memory, for transports whose receiving side does the writing itself.

use crate::{RegionError, RegionId};
use memmap2::MmapMut;
use quorate_consensus::NodeId;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// The largest region that [`RegionTable::register`] gives out: 16 GiB.
pub const REGION_BYTES_MAX: usize = 16 << 30;

/// The regions of one replica, and who may write into them. One thread owns it, so a fence
/// (contract C4) is the removal of a grant: nobody else can be in the middle of a write.
#[derive(Debug, Default)]
pub struct RegionTable {
    regions: BTreeMap<RegionId, Region>,
}

/// Memory that somebody else gave out, and that others than the table's owner may write as well: a
/// network card, say. It is copied into and out of, and never referred to.
pub trait LentMemory: fmt::Debug + Send + Sync {
    /// In bytes.
    fn length(&self) -> usize;

    /// Copies bytes in. The range is inside.
    fn copy_in(&self, offset: usize, from: &[u8]);

    /// Copies bytes out, in whatever mixture they are at the moment. The range is inside.
    fn copy_out(&self, offset: usize, into: &mut [u8]);

    /// Loads an aligned little-endian word with acquire ordering. It is inside.
    fn load(&self, offset: usize) -> u64;
}

/// From this size on a region is a mapping of its own: 1 MiB.
///
/// Memory that is asked of the allocator as zeros is often written with zeros at once, when it was used before:
/// 45 ms for the ring of a new peer of 16 MiB, in which its replica's thread does nothing else. The pages of a
/// mapping are zeros as they are touched.
const MAPPED_FROM: usize = 1 << 20;

/// Memory of a table, all zeros at first.
#[derive(Debug)]
enum Own {
    Allocated(Vec<u8>),
    Mapped(MmapMut),
}

impl Own {
    /// # Errors
    /// Why it is not to be had.
    fn zeroed(length: usize) -> Result<Self, String> {
        match length {
            0..MAPPED_FROM => Ok(Own::Allocated(vec![0; length])),
            _ => MmapMut::map_anon(length).map(Own::Mapped).map_err(|error| error.to_string()),
        }
    }
}

impl Deref for Own {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Own::Allocated(bytes) => bytes,
            Own::Mapped(bytes) => bytes,
        }
    }
}

impl DerefMut for Own {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Own::Allocated(bytes) => bytes,
            Own::Mapped(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
enum Memory {
    Own(Own),
    Lent(Arc<dyn LentMemory>),
}

#[derive(Debug)]
struct Region {
    memory: Memory,
    /// Sorted.
    grants: Vec<NodeId>,
}

/// Why a write of a peer is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WriteRefused {
    /// There is no such region here.
    #[error("a write to region {0:?}, which does not exist here")]
    Missing(RegionId),
    /// The peer holds no grant for it.
    #[error("a write to region {0:?}, which is not granted to the writer")]
    NotGranted(RegionId),
    /// The memory was lent: [`RegionTable::land`] writes there.
    #[error("region {0:?} is lent memory, which is not written in place")]
    Lent(RegionId),
    /// The range is not inside the region.
    #[error("a write of {length} bytes at {offset} of region {region:?}, which has {size}")]
    OutOfRange {
        /// Where.
        region: RegionId,
        /// From which byte.
        offset: u64,
        /// How many.
        length: usize,
        /// What the region has.
        size: usize,
    },
}

impl RegionTable {
    /// See [`crate::Transport::register`].
    ///
    /// # Errors
    /// [`RegionError::Exists`], or [`RegionError::Refused`] when the memory cannot be had.
    pub fn register(&mut self, region: RegionId, length: usize) -> Result<(), RegionError> {
        if self.regions.contains_key(&region) {
            return Err(RegionError::Exists(region));
        }
        let refuse = |why: String| RegionError::Refused(region, length, why);
        if length > REGION_BYTES_MAX {
            return Err(refuse(format!("the limit is {REGION_BYTES_MAX} bytes")));
        }
        let bytes = Own::zeroed(length).map_err(refuse)?;
        self.regions.insert(region, Region { memory: Memory::Own(bytes), grants: Vec::new() });
        Ok(())
    }

    /// See [`crate::Transport::unregister`].
    ///
    /// # Errors
    /// [`RegionError::Missing`].
    pub fn unregister(&mut self, region: RegionId) -> Result<(), RegionError> {
        self.regions.remove(&region).map(drop).ok_or(RegionError::Missing(region))
    }

    /// As [`Self::register`], with memory that is there already and that others write as well.
    ///
    /// # Errors
    /// [`RegionError::Exists`].
    pub fn lend(
        &mut self,
        region: RegionId,
        memory: Arc<dyn LentMemory>,
    ) -> Result<(), RegionError> {
        if self.regions.contains_key(&region) {
            return Err(RegionError::Exists(region));
        }
        self.regions.insert(region, Region { memory: Memory::Lent(memory), grants: Vec::new() });
        Ok(())
    }

    /// See [`crate::Transport::grant`].
    ///
    /// # Errors
    /// [`RegionError::Missing`].
    pub fn grant(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        let entry = self.regions.get_mut(&region).ok_or(RegionError::Missing(region))?;
        if let Err(place) = entry.grants.binary_search(&peer) {
            entry.grants.insert(place, peer);
        }
        Ok(())
    }

    /// See [`crate::Transport::revoke`]. The caller makes sure that it does not go on with a write
    /// that was admitted before.
    ///
    /// # Errors
    /// [`RegionError::Missing`].
    pub fn revoke(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        let entry = self.regions.get_mut(&region).ok_or(RegionError::Missing(region))?;
        if let Ok(place) = entry.grants.binary_search(&peer) {
            entry.grants.remove(place);
        }
        Ok(())
    }

    /// See [`crate::Transport::copy_out`].
    ///
    /// # Panics
    /// If the range is not inside the region: an error of the caller.
    pub fn copy_out(&self, region: RegionId, offset: usize, into: &mut [u8]) {
        match self.memory(region) {
            Memory::Own(bytes) => into.copy_from_slice(&bytes[offset..offset + into.len()]),
            Memory::Lent(memory) => memory.copy_out(offset, into),
        }
    }

    /// See [`crate::Transport::load`].
    ///
    /// # Panics
    /// If `offset` is not a multiple of 8 or not inside the region: an error of the caller.
    #[must_use]
    pub fn load(&self, region: RegionId, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8), "a word of a region is loaded from a multiple of 8");
        match self.memory(region) {
            Memory::Own(bytes) => crate::integrity::word64(bytes, offset),
            Memory::Lent(memory) => memory.load(offset),
        }
    }

    fn memory(&self, region: RegionId) -> &Memory {
        &self.regions.get(&region).expect("the caller reads regions that it registered").memory
    }

    /// The memory that a write of `peer` goes to: the gate that every remote write passes.
    ///
    /// # Errors
    /// [`WriteRefused`]: the lane that carried the write is to be dropped.
    pub fn admit(
        &mut self,
        peer: NodeId,
        region: RegionId,
        offset: u64,
        length: usize,
    ) -> Result<&mut [u8], WriteRefused> {
        let (memory, start) = self.gate(peer, region, offset, length)?;
        match memory {
            Memory::Own(bytes) => Ok(&mut bytes[start..start + length]),
            Memory::Lent(_) => Err(WriteRefused::Lent(region)),
        }
    }

    /// Whether a write of `peer` would be let through.
    ///
    /// # Errors
    /// [`WriteRefused`]: the lane that carried the write is to be dropped.
    pub fn check(
        &mut self,
        peer: NodeId,
        region: RegionId,
        offset: u64,
        length: usize,
    ) -> Result<(), WriteRefused> {
        self.gate(peer, region, offset, length).map(|_| ())
    }

    /// Lets a write of `peer` land, in memory of either kind.
    ///
    /// # Errors
    /// [`WriteRefused`]: the lane that carried the write is to be dropped.
    pub fn land(
        &mut self,
        peer: NodeId,
        region: RegionId,
        offset: u64,
        from: &[u8],
    ) -> Result<(), WriteRefused> {
        let (memory, start) = self.gate(peer, region, offset, from.len())?;
        match memory {
            Memory::Own(bytes) => bytes[start..start + from.len()].copy_from_slice(from),
            Memory::Lent(memory) => memory.copy_in(start, from),
        }
        Ok(())
    }

    fn gate(
        &mut self,
        peer: NodeId,
        region: RegionId,
        offset: u64,
        length: usize,
    ) -> Result<(&mut Memory, usize), WriteRefused> {
        let entry = self.regions.get_mut(&region).ok_or(WriteRefused::Missing(region))?;
        if entry.grants.binary_search(&peer).is_err() {
            return Err(WriteRefused::NotGranted(region));
        }
        let size = match &entry.memory {
            Memory::Own(bytes) => bytes.len(),
            Memory::Lent(memory) => memory.length(),
        };
        let start = usize::try_from(offset).ok();
        start
            .filter(|start| start.checked_add(length).is_some_and(|end| end <= size))
            .map(|start| (&mut entry.memory, start))
            .ok_or(WriteRefused::OutOfRange { region, offset, length, size })
    }

    /// Writes past the gate. Only fault injection has a use for it.
    pub(crate) fn scribble(&mut self, region: RegionId, offset: usize, bytes: &[u8]) {
        let target =
            self.own(region).and_then(|memory| memory.get_mut(offset..offset + bytes.len()));
        if let Some(target) = target {
            target.copy_from_slice(bytes);
        }
    }

    /// Flips bits of one byte. Only fault injection has a use for it.
    pub(crate) fn flip(&mut self, region: RegionId, offset: usize, flip: u8) {
        if let Some(byte) = self.own(region).and_then(|bytes| bytes.get_mut(offset)) {
            *byte ^= flip;
        }
    }

    fn own(&mut self, region: RegionId) -> Option<&mut [u8]> {
        match &mut self.regions.get_mut(&region)?.memory {
            Memory::Own(bytes) => Some(bytes),
            Memory::Lent(_) => None,
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Pages that this thread had to be given by the system.
    fn faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("Linux tells");
        // proc(5): behind the name in parentheses, `minflt` is the eighth field.
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        fields.split_whitespace().nth(7).expect("a field").parse().expect("a number")
    }

    #[test]
    fn a_region_is_touched_as_it_is_used_and_not_when_it_is_registered() {
        let (region, peer, length) = (RegionId::inbox(NodeId(2)), NodeId(2), 16 << 20);
        let mut table = RegionTable::default();
        let mut bytes = vec![0; 8 << 10];
        // malloc(3) of glibc: after the first of these has been given back, allocations of up to its size are
        // made in the heap, and after the second there is room in it that nobody has touched.
        for bytes in [(32 << 20) - (8 << 10), 24 << 20] {
            drop(std::hint::black_box(Vec::<u8>::with_capacity(bytes)));
        }
        for round in 0..4 {
            let before = faults();
            table.register(region, length).expect("a region");
            let touched = faults() - before;
            assert!(touched < 64, "round {round}: {touched} pages at once");
            table.grant(region, peer).expect("it is there");
            table.copy_out(region, length - bytes.len(), &mut bytes);
            assert!(bytes.iter().all(|byte| *byte == 0), "round {round}: not zeros");
            let written = vec![7; length];
            table.land(peer, region, 0, &written).expect("it is granted");
            table.unregister(region).expect("it is there");
        }
    }
}
