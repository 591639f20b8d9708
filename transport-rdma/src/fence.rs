//! What ends a peer's right to write here: with a revoke, and with the life of its lane.
//!
//! A grant for a life is over before anybody learns that the life is. Whatever ends a life by verbs goes
//! through [`RdmaTransport::close`]: a failed request, a device's news, a reset, the end of the TCP
//! connection beside it, a peer that is removed. There the queue pair of the life is destroyed first and
//! the memory region of the grant deregistered then, and only afterwards `poll` tells of the end, and
//! only afterwards the next life's queue pair is made. Either of the two fences holds alone: without
//! its queue pair nothing of this life arrives, and without the region nothing of any life finds it,
//! whoever still knows its key.
//!
//! When the device refuses one of them the other one has held, and the grant is over. A region that it
//! keeps has a key that stays good, though, and a connection of a later life could present it: so there
//! is none, the lanes to that peer go over TCP until the replica restarts, and say why. When it
//! refuses both nothing is certain any more, and the replica stops.

use crate::link::Failure;
use crate::peer::DataLane;
use crate::regions::{Answer, Revoked};
use crate::talk::Word;
use crate::transport::RdmaTransport;
use quorate_consensus::NodeId;
use quorate_ffi::verbs::{MemoryRegion, VerbsError};
use quorate_transport::{Event, Lane, RegionError, RegionId, Transport};

impl RdmaTransport {
    /// Destroys what carries the lane, and ends what was granted for its life. When this returns
    /// nothing of it lands here any more.
    pub(crate) fn close(&mut self, place: usize) {
        let peer = &mut self.peers[place];
        let id = peer.id;
        peer.asked.clear();
        if let DataLane::Rdma(link) = std::mem::take(&mut peer.lane)
            && let Err(error) = link.close(&mut self.staging)
        {
            tracing::error!(peer = id.0, %error, "a connection stays");
            self.regions.pair_stays(id, &error);
        }
        if let Err(error) = self.regions.end_life(id) {
            self.region_stays(id, &error);
        }
    }

    /// Ends this life because of what the verbs say; TCP tells the other end, and the caller.
    pub(crate) fn fail(&mut self, place: usize, failure: &Failure) {
        let lived = self.peers[place].link().map(|link| link.since.elapsed());
        let id = self.peers[place].id;
        if !failure.unreachable {
            // The other end hears of it before its queue pair goes, or it takes what does not answer for the
            // network's fault, and its next life goes over TCP.
            self.tcp.reset_lane(id, Lane::Data, &failure.reason);
        }
        self.close(place);
        let peer = &mut self.peers[place];
        failure.reason.clone_into(&mut peer.last_error);
        if failure.unreachable {
            if !self.other_end_ended(id) {
                let peer = &mut self.peers[place];
                peer.rdma_failed(&failure.reason, lived.unwrap_or_default());
                self.statistics.failed += 1;
            }
            self.tcp.reset_lane(id, Lane::Data, &failure.reason);
        }
        self.unsettled = true;
    }

    /// Whether the lane's TCP connection ended meanwhile: a peer that destroyed its queue pair does not
    /// answer, and that is nobody's network.
    fn other_end_ended(&mut self, id: NodeId) -> bool {
        let before = self.inner_events.len();
        self.tcp.poll(&mut self.inner_events);
        let mut ended = false;
        let mut begun = false;
        for event in &self.inner_events[before..] {
            match event {
                Event::LinkDown { peer, lane: Lane::Data, .. } if *peer == id => ended = true,
                Event::LinkUp { peer, lane: Lane::Data, .. } if *peer == id => begun = true,
                _ => {}
            }
        }
        if ended && !begun {
            // What it said in that life is not for the next one.
            self.tcp.take_asides(&mut self.asides);
            self.asides.retain(|(from, _)| *from != id);
        }
        ended
    }

    pub(crate) fn lend_for_life(
        &mut self,
        region: RegionId,
        peer: NodeId,
    ) -> Result<(), RegionError> {
        self.regions.expect_by_life(region, peer)?;
        let Some(place) = self.place(peer) else { return Err(RegionError::Lasting(region, peer)) };
        match &self.peers[place].lane {
            DataLane::Rdma(_) => {}
            DataLane::Tcp(_) => return Err(RegionError::Lasting(region, peer)),
            // The life that the owner means is over, or there was none yet.
            DataLane::Down | DataLane::Building(_) => return self.take_back(region, peer),
        }
        let Some((grant, lasting)) =
            self.regions.grant_for_life(self.adapter.domain(), region, peer)?
        else {
            return Ok(());
        };
        self.tcp.revoke(region, peer)?;
        match lasting.map_or(Ok(()), MemoryRegion::deregister) {
            Ok(()) => {
                self.say(place, &Word::Grant(grant));
                Ok(())
            }
            Err(error) => {
                self.region_stays(peer, &error);
                self.end_unfenced(place, &error);
                Err(RegionError::Lasting(region, peer))
            }
        }
    }

    pub(crate) fn take_back(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        // Over TCP: bytes land only inside of `poll`. By verbs: deregistration waits for what the
        // device is doing with the region, and refuses the rest (C4). What the peer was told to be
        // accepted was acknowledged by this device after it had landed.
        self.tcp.revoke(region, peer)?;
        match self.regions.revoke(region, peer) {
            Ok(()) => Ok(()),
            Err(Revoked::Missing) => Err(RegionError::Missing(region)),
            Err(Revoked::Refused(error)) => {
                // The other fence that holds: the queue pair itself goes, and with it the way here.
                self.region_stays(peer, &error);
                if let Some(place) = self.place(peer) {
                    self.end_unfenced(place, &error);
                }
                Ok(())
            }
        }
    }

    fn region_stays(&mut self, peer: NodeId, error: &VerbsError) {
        tracing::error!(peer = peer.0, %error, "a fence failed: lanes to it go over TCP from now on");
        self.regions.region_stays(peer, error);
    }

    fn end_unfenced(&mut self, place: usize, error: &VerbsError) {
        let reason = format!("a grant could not be taken back: {error}");
        self.fail(place, &Failure { reason, unreachable: false });
    }

    /// Answers who asked where it may write. An owner that was told of a life has had a turn to grant
    /// something in it before this is called.
    pub(crate) fn answer(&mut self) {
        for place in 0..self.peers.len() {
            let peer = &mut self.peers[place];
            if peer.asked.is_empty() || !peer.announced || peer.link().is_none() {
                continue;
            }
            let id = peer.id;
            let asked = std::mem::take(&mut peer.asked);
            for region in asked {
                match self.regions.answer(region, id) {
                    Answer::Granted(grant) => self.say(place, &Word::Grant(grant)),
                    Answer::Refused => self.say(place, &Word::Refused(region)),
                    Answer::Later => self.peers[place].asked.push(region),
                }
            }
        }
    }

    /// The owner has handled all that was told.
    pub(crate) fn begin_poll(&mut self) {
        // While a lane has no life, and the end of the last one was told, its next one may go over TCP, and there a
        // write without a grant does not wait: it would end that life before the owner heard of it, and each
        // one that follows. So what is granted by life is open to frames then, as by the lasting grant that is all
        // that the owner can give over TCP. The owner has read the ring of the last life by now.
        for peer in self.peers.iter().filter(|peer| peer.life.is_none() && !peer.announced) {
            for region in self.regions.by_life(peer.id) {
                // It is registered: the regions here and those over TCP are the same.
                let _ = self.tcp.grant(region, peer.id);
            }
        }
        self.answer();
    }

    /// The peer asks where it may write.
    pub(crate) fn on_ask(&mut self, place: usize, region: RegionId) {
        if !self.regions.contains(region) {
            self.say(place, &Word::Refused(region));
        } else if !self.peers[place].asked.contains(&region) {
            self.peers[place].asked.push(region);
        }
    }
}
