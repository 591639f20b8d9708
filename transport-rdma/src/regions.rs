//! The regions of this replica: memory, and for each peer that may write there a memory region of
//! its own.

use quorate_consensus::NodeId;
use quorate_ffi::memory::SharedMemory;
use quorate_ffi::verbs::{Access, MemoryRegion, ProtectionDomain, VerbsError};
use quorate_transport::region::{LentMemory, REGION_BYTES_MAX};
use quorate_transport::{RegionError, RegionId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the part over TCP writes into.
#[derive(Debug)]
pub(crate) struct Lent(pub(crate) Arc<SharedMemory>);

impl LentMemory for Lent {
    fn length(&self) -> usize {
        self.0.len()
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        self.0.copy_in(offset, from);
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.0.copy_out(offset, into);
    }

    fn load(&self, offset: usize) -> u64 {
        self.0.load(offset)
    }
}

/// What a peer is told of a region that it may write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Grant {
    pub(crate) region: RegionId,
    pub(crate) address: u64,
    pub(crate) length: u64,
    pub(crate) key: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Regions {
    regions: BTreeMap<RegionId, Region>,
}

#[derive(Debug)]
struct Region {
    memory: Arc<SharedMemory>,
    /// One for each peer, over the same memory: taking one away is the fence against that peer.
    granted: Vec<(NodeId, MemoryRegion)>,
}

impl Regions {
    pub(crate) fn register(
        &mut self,
        region: RegionId,
        length: usize,
    ) -> Result<Arc<SharedMemory>, RegionError> {
        if self.regions.contains_key(&region) {
            return Err(RegionError::Exists(region));
        }
        let refuse = |why: String| RegionError::Refused(region, length, why);
        if length > REGION_BYTES_MAX {
            return Err(refuse(format!("the limit is {REGION_BYTES_MAX} bytes")));
        }
        let memory = SharedMemory::new(length).map_err(|error| refuse(error.to_string()))?;
        let entry = Region { memory: Arc::clone(&memory), granted: Vec::new() };
        self.regions.insert(region, entry);
        Ok(memory)
    }

    /// Forgets the region; what may still be granted of it is taken back first.
    pub(crate) fn unregister(&mut self, region: RegionId) -> Result<(), RegionError> {
        self.regions.remove(&region).map(drop).ok_or(RegionError::Missing(region))
    }

    /// Makes the memory known to the device for this peer. `None` if it already is.
    pub(crate) fn grant(
        &mut self,
        domain: &ProtectionDomain,
        region: RegionId,
        peer: NodeId,
    ) -> Result<Option<Grant>, RegionError> {
        let entry = self.regions.get_mut(&region).ok_or(RegionError::Missing(region))?;
        if entry.granted.iter().any(|(to, _)| *to == peer) {
            return Ok(None);
        }
        let length = entry.memory.len();
        // The fewest rights: peers write here, and nobody reads by way of the device.
        let registered = domain
            .register(&entry.memory, Access::RemoteWrite)
            .map_err(|error| RegionError::Refused(region, length, error.to_string()))?;
        let grant = describe(region, &registered);
        entry.granted.push((peer, registered));
        Ok(Some(grant))
    }

    /// The fence. When this returns without an error nothing of the peer lands here any more.
    pub(crate) fn revoke(&mut self, region: RegionId, peer: NodeId) -> Result<(), Revoked> {
        let entry = self.regions.get_mut(&region).ok_or(Revoked::Missing)?;
        let Some(place) = entry.granted.iter().position(|(to, _)| *to == peer) else {
            return Ok(());
        };
        let (_, registered) = entry.granted.swap_remove(place);
        registered.deregister().map_err(Revoked::Refused)
    }

    pub(crate) fn grants(&self, peer: NodeId) -> impl Iterator<Item = Grant> {
        self.regions.iter().filter_map(move |(region, entry)| {
            let granted = entry.granted.iter().find(|(to, _)| *to == peer);
            granted.map(|(_, registered)| describe(*region, registered))
        })
    }

    pub(crate) fn find(&self, region: RegionId, peer: NodeId) -> Option<Grant> {
        self.grants(peer).find(|grant| grant.region == region)
    }

    pub(crate) fn memory(&self, region: RegionId) -> &SharedMemory {
        &self.regions.get(&region).expect("the caller reads regions that it registered").memory
    }
}

/// Why a grant could not be taken back.
#[derive(Debug)]
pub(crate) enum Revoked {
    /// There is no such region.
    Missing,
    /// The device refused: the memory region may still be in force.
    Refused(VerbsError),
}

fn describe(region: RegionId, registered: &MemoryRegion) -> Grant {
    let memory = registered.memory();
    Grant {
        region,
        address: memory.address(),
        length: memory.len() as u64,
        key: registered.remote_key(),
    }
}
