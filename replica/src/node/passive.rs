//! A passive follower's rings (rules B2 to B6): granted for one life of a lane, fenced and read before a
//! promise rises, read at the end of each life; and at the leader, which record is in which write.

use super::{Node, lanes_of};
use crate::lanes::{Lanes, RingGrant};
use crate::options::NodeOptions;
use quorate_consensus::{Accept, Mutant, Nanos, NodeId, Paxos};
use quorate_transport::{OpNumber, RegionError, RegionId, Transport};

impl Node {
    /// The data lane of `peer` came up: its ring is granted to it, for this life if that can be had.
    pub(super) fn grant_ring(&mut self, peer: NodeId) {
        if !self.options.passive {
            return;
        }
        let region = RegionId::inbox(peer);
        let Some(lanes) = lanes_of(&mut self.lanes, peer) else { return };
        let for_life = match self.options.is(Mutant::LastingGrant) {
            true => self.transport.grant(region, peer),
            false => self.transport.grant_for_life(region, peer),
        };
        let granted = match for_life {
            Ok(()) => Ok(RingGrant::ForLife { told: false }),
            // This life is one of mode A.
            Err(RegionError::Lasting(..)) => {
                self.transport.grant(region, peer).map(|()| RingGrant::Lasting)
            }
            Err(error) => Err(error),
        };
        match granted {
            Ok(granted) => lanes.grant = granted,
            Err(error) => {
                tracing::error!(%peer, %error, "its ring cannot be granted");
                self.transport.reset(peer, "its ring cannot be granted");
            }
        }
    }

    /// Tells the core which rings are granted for this life. Not before the peer has shown the document of
    /// our cluster: what nobody reads cannot count (rule F6).
    pub(super) fn tell_granted(&mut self) {
        let Some(core) = self.core.as_mut().filter(|_| self.options.passive) else { return };
        for lanes in self.lanes.iter_mut().filter(|lanes| lanes.data_up && lanes.data_known) {
            if lanes.grant == (RingGrant::ForLife { told: false }) {
                lanes.grant = RingGrant::ForLife { told: true };
                core.on_granted(lanes.peer);
            }
        }
    }

    /// What the core waits for is done before it is told of anything else.
    pub(super) fn serve_fence(&mut self) {
        let Some(core) = &mut self.core else { return };
        if core.fence_due().is_some() {
            let transport = self.transport.as_mut();
            let (lanes, now) = (&mut self.lanes, self.clock.now);
            serve(core, lanes, transport, &mut self.accept, now, &self.options);
        }
    }

    /// The life of a data lane is over, and with it the grant: what was written in it is read, before
    /// anything of another life can come (rule B4).
    pub(super) fn close_ring(&mut self, peer: NodeId) {
        let Some(at) = self.lanes.iter().position(|lanes| lanes.peer == peer) else { return };
        let held = std::mem::take(&mut self.lanes[at].grant);
        self.lanes[at].shipped.clear();
        let Some(core) = &mut self.core else { return };
        if held != (RingGrant::ForLife { told: true }) {
            return;
        }
        let transport = self.transport.as_mut();
        let (lanes, now) = (&mut self.lanes, self.clock.now);
        if !self.options.is(Mutant::RingUnreadAtEnd) {
            read_to_end(core, lanes, at, transport, &mut self.accept, now, &self.options);
        }
        core.on_ring_closed(peer);
    }

    /// Lanes whose ring was fenced come back in another life, once somebody else is followed. While this
    /// replica leads itself, or follows the same one again, the next record that is written there ends the
    /// life (contract C4).
    pub(super) fn renew_fenced(&mut self) {
        if !self.options.passive {
            return;
        }
        let Some(leader) = self.core.as_ref().and_then(Paxos::leader) else { return };
        if leader == self.options.node {
            return;
        }
        for lanes in self.lanes.iter_mut().filter(|lanes| lanes.data_up && lanes.peer != leader) {
            if lanes.grant == RingGrant::Fenced {
                lanes.grant = RingGrant::None;
                self.transport.reset(lanes.peer, "its ring was fenced: another leader is followed");
            }
        }
    }

    /// Writes to `peer` completed.
    pub(super) fn on_completed(&mut self, peer: NodeId, through: OpNumber) {
        let Some(lanes) = lanes_of(&mut self.lanes, peer) else { return };
        if let Some((ballot, slot)) = lanes.written(through)
            && let Some(core) = &mut self.core
        {
            core.on_written(peer, ballot, slot);
        }
    }
}

/// Serves the fences that the core waits for.
pub(super) fn serve(
    core: &mut Paxos,
    lanes: &mut [Lanes],
    transport: &mut dyn Transport,
    accept: &mut Accept,
    now: Nanos,
    options: &NodeOptions,
) {
    while let Some(owner) = core.fence_due() {
        let region = RegionId::inbox(owner);
        let fence = |transport: &mut dyn Transport| {
            match transport.revoke(region, owner) {
                // Without a ring there is nothing that its owner could write into.
                Ok(()) | Err(RegionError::Missing(_)) => {}
                // Whoever promised now could lose a vote that counted: rather no replica than that one.
                Err(error) => panic!("the ring of {owner} cannot be fenced: {error}"),
            }
        };
        let late = options.is(Mutant::FenceAfterReading);
        if !late {
            fence(transport);
        }
        if let Some(at) = lanes.iter().position(|lanes| lanes.peer == owner) {
            read_to_end(core, lanes, at, transport, accept, now, options);
            lanes[at].grant = RingGrant::Fenced;
        }
        if late {
            fence(transport);
        }
        tracing::info!(peer = %owner, "its ring is fenced and read");
        if let Err((peer, gap)) = core.on_fenced(now, owner) {
            transport.reset(peer, &gap.to_string());
        }
        if options.is(Mutant::RenewGrant) && transport.grant(region, owner).is_ok() {
            core.on_granted(owner);
            if let Some(lanes) = lanes_of(lanes, owner) {
                lanes.grant = RingGrant::ForLife { told: true };
            }
        }
    }
}

/// Reads the ring of a peer to its end, whether or not the log has room at the moment.
fn read_to_end(
    core: &mut Paxos,
    lanes: &mut [Lanes],
    at: usize,
    transport: &mut dyn Transport,
    accept: &mut Accept,
    now: Nanos,
    options: &NodeOptions,
) {
    let peer = lanes[at].peer;
    loop {
        match lanes[at].ring_reader.poll(transport, accept) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(%peer, %error, "the end of a ring cannot be read");
                return;
            }
        }
        if let Err(gap) = core.on_accept(now, peer, accept) {
            tracing::warn!(%peer, %gap, "the end of a ring does not fit");
        }
        // It may be of a new leader, at the end of its lane's life.
        if core.fence_due().is_some_and(|owner| owner != peer) {
            serve(core, lanes, transport, accept, now, options);
        }
    }
}
