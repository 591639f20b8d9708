//! Who may write where: lasting grants, grants for one life of a data lane, and fences.
//!
//! The contract of a grant for one life (`Transport::grant_for_life`): it ends with the life, and by then
//! all that its writer was or will be told of is visible; nothing of another life comes in by it; after a
//! revoke it does not come back in the same life; writes that come before it wait.

use super::{Net, Write, id};
use quorate_transport::region::WriteRefused;
use quorate_transport::{RegionError, RegionId};

/// What became of a grant for one life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It stands, for this life.
    Granted(u64),
    /// It was revoked in the present life.
    Fenced,
    /// Its life ended.
    Ended,
}

/// A grant for one life.
#[derive(Clone, Copy, Debug)]
pub(super) struct ForLife {
    from: usize,
    region: RegionId,
    state: State,
}

/// What happens to a write that comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gate {
    /// It lands.
    Open,
    /// It waits for a grant.
    Waits,
    /// It was fenced off: the lane fails.
    Refused,
}

impl Net {
    fn for_life(&self, to: usize, from: usize, region: RegionId) -> Option<State> {
        let mut entries = self.endpoints[to].for_life.iter();
        let entry = entries.find(|entry| entry.from == from && entry.region == region);
        entry.map(|entry| entry.state)
    }

    fn set_for_life(&mut self, to: usize, from: usize, region: RegionId, state: Option<State>) {
        let entries = &mut self.endpoints[to].for_life;
        entries.retain(|entry| entry.from != from || entry.region != region);
        entries.extend(state.map(|state| ForLife { from, region, state }));
    }

    /// What happens to the write at the front of its lane.
    pub(super) fn gate(&mut self, from: usize, to: usize, write: &Write) -> Gate {
        let Write { region, offset, bytes } = write;
        let state = self.for_life(to, from, *region);
        let life = self.lane(from, to, 1).life;
        let checked =
            self.endpoints[to].regions.check(id(from), *region, *offset as u64, bytes.len());
        match (state, checked) {
            (Some(State::Granted(granted)), _) if granted != life => Gate::Waits,
            (Some(State::Fenced), _) => Gate::Refused,
            (_, Err(WriteRefused::NotGranted(_))) => Gate::Waits,
            _ => Gate::Open,
        }
    }

    /// A write of the life `life` that comes late: whether the grants of this moment let it in.
    pub(super) fn lets_late(&self, from: usize, to: usize, region: RegionId, life: u64) -> bool {
        match self.for_life(to, from, region) {
            Some(State::Granted(granted)) => granted == life,
            Some(_) => false,
            None => true,
        }
    }

    /// See `Transport::grant`.
    pub(crate) fn grant(
        &mut self,
        node: usize,
        peer: usize,
        region: RegionId,
    ) -> Result<(), RegionError> {
        self.endpoints[node].regions.grant(region, id(peer))?;
        if self.for_life(node, peer, region).is_some() {
            self.set_for_life(node, peer, region, None);
            self.pump(peer, node, 1);
        }
        Ok(())
    }

    /// See `Transport::grant_for_life`.
    pub(crate) fn grant_for_life(
        &mut self,
        node: usize,
        peer: usize,
        region: RegionId,
    ) -> Result<(), RegionError> {
        let life = self.lane(node, peer, 1).believed[usize::from(node > peer)];
        match self.for_life(node, peer, region) {
            Some(State::Granted(granted)) if Some(granted) == life => return Ok(()),
            Some(State::Fenced) => return Err(RegionError::Fenced(region, id(peer))),
            _ => {}
        }
        if self.random.chance(self.shape.lasting_ppm) {
            return Err(RegionError::Lasting(region, id(peer)));
        }
        let torn = self.take_back(node, peer, region)?;
        if torn {
            self.fail(node, peer, 1);
        }
        if life.is_some() {
            self.endpoints[node].regions.grant(region, id(peer))?;
        }
        let state = life.map_or(State::Ended, State::Granted);
        self.set_for_life(node, peer, region, Some(state));
        self.pump(peer, node, 1);
        Ok(())
    }

    /// See `Transport::revoke`.
    pub(crate) fn revoke(
        &mut self,
        node: usize,
        peer: usize,
        region: RegionId,
    ) -> Result<(), RegionError> {
        let Some(State::Granted(_)) = self.for_life(node, peer, region) else {
            self.endpoints[node].regions.revoke(region, id(peer))?;
            if self.shape.for_life {
                self.set_for_life(node, peer, region, Some(State::Fenced));
            }
            return Ok(());
        };
        self.fences += 1;
        if self.shape.broken_fence {
            return Ok(());
        }
        let torn = self.take_back(node, peer, region)?;
        self.set_for_life(node, peer, region, Some(State::Fenced));
        if torn {
            // What was under way did not succeed, and its lane with it.
            self.fail(node, peer, 1);
        }
        Ok(())
    }

    /// The fence: what its writer was told of is made visible; of what it was not told some bytes may be
    /// there, and no more come. Returns whether a write was cut short so.
    fn take_back(
        &mut self,
        node: usize,
        peer: usize,
        region: RegionId,
    ) -> Result<bool, RegionError> {
        let mut torn = false;
        let direction = &mut self.lane(node, peer, 1).directions[usize::from(peer > node)];
        if let Some(landing) = &direction.landing
            && landing.write.region == region
        {
            if landing.told {
                self.finish_landing(peer, node);
            } else {
                direction.landing = None;
                torn = true;
            }
        }
        self.endpoints[node].regions.revoke(region, id(peer))?;
        Ok(torn)
    }

    /// A life of the data lane broke: what its writer was told of is to be visible before its reader
    /// learns of the end.
    pub(super) fn keep_promises(&mut self, from: usize, to: usize) {
        let landing = &self.lane(from, to, 1).directions[usize::from(from > to)].landing;
        let promised = landing.as_ref().filter(|landing| landing.told);
        if let Some(region) = promised.map(|landing| landing.write.region)
            && matches!(self.for_life(to, from, region), Some(State::Granted(_)))
        {
            self.finish_landing(from, to);
        }
    }

    /// `node` is told that the life of the data lane from `peer` is over.
    pub(super) fn end_for_life(&mut self, node: usize, peer: usize) {
        for at in 0..self.endpoints[node].for_life.len() {
            let ForLife { from, region, state } = self.endpoints[node].for_life[at];
            if from != peer {
                continue;
            }
            if let State::Granted(_) = state {
                let _ = self.endpoints[node].regions.revoke(region, id(peer));
            }
            self.endpoints[node].for_life[at].state = State::Ended;
        }
    }

    /// `node` lets go of `peer`.
    pub(super) fn forget_for_life(&mut self, node: usize, peer: usize) {
        let entries = std::mem::take(&mut self.endpoints[node].for_life);
        let (gone, kept): (Vec<ForLife>, Vec<ForLife>) =
            entries.into_iter().partition(|entry| entry.from == peer);
        for entry in gone {
            let _ = self.endpoints[node].regions.revoke(entry.region, id(peer));
        }
        self.endpoints[node].for_life = kept;
    }
}
