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
    /// Peers whose grant, or whose connection, the device did not end when it was told to.
    unfenced: BTreeMap<NodeId, Unfenced>,
}

#[derive(Debug)]
struct Region {
    memory: Arc<SharedMemory>,
    rights: Vec<Right>,
}

/// What one peer may do with a region.
#[derive(Debug)]
struct Right {
    peer: NodeId,
    /// One for each peer, over the same memory: taking it away is the fence against that peer.
    granted: Option<(MemoryRegion, Term)>,
    /// A grant for a life was asked for. From then on no lasting one is told in the offer of a
    /// connection, so that the owner can give another instead before anything was written by it.
    by_life: bool,
    taken: Taken,
}

/// How long a grant holds, unless it is revoked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Term {
    Lasting,
    Life,
}

/// What was taken back and not given again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Taken {
    No,
    /// The grant of this life: there is none any more before the next.
    InThisLife,
    /// A lasting one.
    ForGood,
}

/// Which of the two fences failed: why.
#[derive(Debug, Default)]
struct Unfenced {
    region: Option<String>,
    pair: Option<String>,
}

/// What a peer is told that asks where it may write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Granted(Grant),
    Refused,
    /// Nothing yet: it may be granted still.
    Later,
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
        let entry = Region { memory: Arc::clone(&memory), rights: Vec::new() };
        self.regions.insert(region, entry);
        Ok(memory)
    }

    /// Forgets the region; what may still be granted of it is taken back first.
    pub(crate) fn unregister(&mut self, region: RegionId) -> Result<(), RegionError> {
        self.regions.remove(&region).map(drop).ok_or(RegionError::Missing(region))
    }

    pub(crate) fn contains(&self, region: RegionId) -> bool {
        self.regions.contains_key(&region)
    }

    /// Makes the memory known to the device for this peer. `None` if it already is; then it stays so
    /// when the life ends.
    pub(crate) fn grant(
        &mut self,
        domain: &ProtectionDomain,
        region: RegionId,
        peer: NodeId,
    ) -> Result<Option<Grant>, RegionError> {
        let entry = self.regions.get_mut(&region).ok_or(RegionError::Missing(region))?;
        let memory = Arc::clone(&entry.memory);
        let right = entry.right(peer);
        if let Some((_, term)) = &mut right.granted {
            *term = Term::Lasting;
            return Ok(None);
        }
        let registered = known_to(domain, region, &memory)?;
        let grant = describe(region, &registered);
        right.granted = Some((registered, Term::Lasting));
        right.taken = Taken::No;
        Ok(Some(grant))
    }

    /// From now on a grant for a life is expected for this peer.
    pub(crate) fn expect_by_life(
        &mut self,
        region: RegionId,
        peer: NodeId,
    ) -> Result<(), RegionError> {
        let entry = self.regions.get_mut(&region).ok_or(RegionError::Missing(region))?;
        entry.right(peer).by_life = true;
        Ok(())
    }

    /// As [`Regions::grant`], until [`Regions::end_life`]: with it, the lasting grant that it took the
    /// place of, which is to be deregistered.
    pub(crate) fn grant_for_life(
        &mut self,
        domain: &ProtectionDomain,
        region: RegionId,
        peer: NodeId,
    ) -> Result<Option<(Grant, Option<MemoryRegion>)>, RegionError> {
        let entry = self.regions.get_mut(&region).ok_or(RegionError::Missing(region))?;
        let memory = Arc::clone(&entry.memory);
        let right = entry.right(peer);
        match &right.granted {
            Some((_, Term::Life)) => return Ok(None),
            None if right.taken == Taken::InThisLife => {
                return Err(RegionError::Fenced(region, peer));
            }
            _ => {}
        }
        let registered = known_to(domain, region, &memory)?;
        let grant = describe(region, &registered);
        let before = right.granted.replace((registered, Term::Life));
        right.taken = Taken::No;
        Ok(Some((grant, before.map(|(lasting, _)| lasting))))
    }

    /// The fence. When this returns without an error nothing of the peer lands here any more.
    pub(crate) fn revoke(&mut self, region: RegionId, peer: NodeId) -> Result<(), Revoked> {
        let entry = self.regions.get_mut(&region).ok_or(Revoked::Missing)?;
        let right = entry.right(peer);
        let Some((registered, term)) = right.granted.take() else { return Ok(()) };
        right.taken = match term {
            Term::Lasting => Taken::ForGood,
            Term::Life => Taken::InThisLife,
        };
        registered.deregister().map_err(Revoked::Refused)
    }

    /// The fence for all that was granted to this peer for the life that ends: all of it is tried, and
    /// the first refusal told.
    pub(crate) fn end_life(&mut self, peer: NodeId) -> Result<(), VerbsError> {
        let mut done = Ok(());
        for entry in self.regions.values_mut() {
            let Some(right) = entry.rights.iter_mut().find(|right| right.peer == peer) else {
                continue;
            };
            if let Some((registered, _)) = right.granted.take_if(|(_, term)| *term == Term::Life) {
                done = done.and(registered.deregister());
            }
            if right.taken == Taken::InThisLife {
                right.taken = Taken::No;
            }
        }
        done
    }

    /// What the offer of a connection tells at once.
    pub(crate) fn offered(&self, peer: NodeId) -> impl Iterator<Item = Grant> {
        self.regions.iter().filter_map(move |(region, entry)| {
            let right = entry.rights.iter().find(|right| right.peer == peer)?;
            right.granted.as_ref().filter(|_| !right.by_life).map(|(at, _)| describe(*region, at))
        })
    }

    /// Regions that are granted to this peer by life.
    pub(crate) fn by_life(&self, peer: NodeId) -> impl Iterator<Item = RegionId> {
        let of_peer = move |right: &Right| right.peer == peer && right.by_life;
        let some = self.regions.iter().filter(move |(_, entry)| entry.rights.iter().any(of_peer));
        some.map(|(region, _)| *region)
    }

    pub(crate) fn answer(&self, region: RegionId, peer: NodeId) -> Answer {
        let Some(entry) = self.regions.get(&region) else { return Answer::Refused };
        let Some(right) = entry.rights.iter().find(|right| right.peer == peer) else {
            return Answer::Later;
        };
        match (&right.granted, right.taken) {
            (Some((registered, _)), _) => Answer::Granted(describe(region, registered)),
            (None, Taken::InThisLife) => Answer::Refused,
            (None, Taken::ForGood) if !right.by_life => Answer::Refused,
            (None, _) => Answer::Later,
        }
    }

    pub(crate) fn memory(&self, region: RegionId) -> &SharedMemory {
        &self.regions.get(&region).expect("the caller reads regions that it registered").memory
    }

    /// The device keeps a region that the peer may write.
    ///
    /// # Panics
    /// As [`Regions::pair_stays`].
    pub(crate) fn region_stays(&mut self, peer: NodeId, error: &VerbsError) {
        let unfenced = self.unfenced.entry(peer).or_default();
        unfenced.region = Some(error.to_string());
        unfenced.stop_if_nothing_holds(peer);
    }

    /// The device keeps a queue pair to the peer.
    ///
    /// # Panics
    /// If it keeps a region that the peer may write as well: nothing keeps bytes from landing then, and
    /// whoever trusts the fence must not go on.
    pub(crate) fn pair_stays(&mut self, peer: NodeId, error: &VerbsError) {
        let unfenced = self.unfenced.entry(peer).or_default();
        unfenced.pair = Some(error.to_string());
        unfenced.stop_if_nothing_holds(peer);
    }

    /// Why the peer gets no connection by verbs any more.
    pub(crate) fn unfenced(&self, peer: NodeId) -> Option<String> {
        let why = self.unfenced.get(&peer)?.region.as_ref()?;
        Some(format!("a fence failed ({why}): no connection by verbs until this replica restarts"))
    }
}

impl Region {
    fn right(&mut self, peer: NodeId) -> &mut Right {
        let place = self.rights.iter().position(|right| right.peer == peer);
        let place = place.unwrap_or_else(|| {
            self.rights.push(Right { peer, granted: None, by_life: false, taken: Taken::No });
            self.rights.len() - 1
        });
        &mut self.rights[place]
    }
}

impl Unfenced {
    fn stop_if_nothing_holds(&self, peer: NodeId) {
        if let Self { region: Some(region), pair: Some(pair) } = self {
            panic!(
                "replica {peer} can still write here and the device does not end it: {region}; \
                 {pair}. Restart this replica: the kernel takes both back with the process"
            );
        }
    }
}

/// The fewest rights: peers write here, and nobody reads by way of the device.
fn known_to(
    domain: &ProtectionDomain,
    region: RegionId,
    memory: &Arc<SharedMemory>,
) -> Result<MemoryRegion, RegionError> {
    let refuse = |error: VerbsError| RegionError::Refused(region, memory.len(), error.to_string());
    domain.register(memory, Access::RemoteWrite).map_err(refuse)
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
