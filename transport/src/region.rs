//! Regions in ordinary memory, for transports whose receiving side does the writing itself.

use crate::{RegionError, RegionId};
use quorate_consensus::NodeId;
use std::collections::BTreeMap;

/// The largest region that [`RegionTable::register`] gives out: 16 GiB.
pub const REGION_BYTES_MAX: usize = 16 << 30;

/// The regions of one replica, and who may write into them. One thread owns it, so a fence
/// (contract C4) is the removal of a grant: nobody else can be in the middle of a write.
#[derive(Debug, Default)]
pub struct RegionTable {
    regions: BTreeMap<RegionId, Region>,
}

#[derive(Debug)]
struct Region {
    bytes: Vec<u8>,
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
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|error| refuse(error.to_string()))?;
        bytes.resize(length, 0);
        self.regions.insert(region, Region { bytes, grants: Vec::new() });
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
        into.copy_from_slice(&self.bytes(region)[offset..offset + into.len()]);
    }

    /// See [`crate::Transport::load`].
    ///
    /// # Panics
    /// If `offset` is not a multiple of 8 or not inside the region: an error of the caller.
    #[must_use]
    pub fn load(&self, region: RegionId, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8), "a word of a region is loaded from a multiple of 8");
        crate::integrity::word64(self.bytes(region), offset)
    }

    fn bytes(&self, region: RegionId) -> &[u8] {
        &self.regions.get(&region).expect("the caller reads regions that it registered").bytes
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
        let entry = self.regions.get_mut(&region).ok_or(WriteRefused::Missing(region))?;
        if entry.grants.binary_search(&peer).is_err() {
            return Err(WriteRefused::NotGranted(region));
        }
        let size = entry.bytes.len();
        usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(length)?))
            .and_then(|range| entry.bytes.get_mut(range))
            .ok_or(WriteRefused::OutOfRange { region, offset, length, size })
    }

    /// Writes past the gate. Only fault injection has a use for it.
    pub(crate) fn scribble(&mut self, region: RegionId, offset: usize, bytes: &[u8]) {
        let target = self
            .regions
            .get_mut(&region)
            .and_then(|entry| entry.bytes.get_mut(offset..offset + bytes.len()));
        if let Some(target) = target {
            target.copy_from_slice(bytes);
        }
    }

    /// Flips bits of one byte. Only fault injection has a use for it.
    pub(crate) fn flip(&mut self, region: RegionId, offset: usize, flip: u8) {
        let bytes = self.regions.get_mut(&region).map(|entry| &mut entry.bytes);
        if let Some(byte) = bytes.and_then(|bytes| bytes.get_mut(offset)) {
            *byte ^= flip;
        }
    }
}
