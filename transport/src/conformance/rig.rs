//! What the scenarios are made with: endpoints that are driven until something holds.

use super::Build;
use crate::{Event, Lane, PostError, RegionId, Transport};
use bytes::Bytes;
use quorate_consensus::{Incarnation, NodeId};
use std::time::{Duration, Instant};

/// A scenario fails when what it waits for takes longer.
pub(super) const DEADLINE: Duration = Duration::from_secs(90);
pub(super) const A: NodeId = NodeId(1);
pub(super) const B: NodeId = NodeId(2);
/// Where a writes at b, and b at a.
pub(super) const REGION: RegionId = RegionId(1);

pub(super) type Outcome = Result<(), String>;

/// An endpoint and everything that it was told.
pub(super) struct End {
    pub(super) transport: Box<dyn Transport>,
    pub(super) events: Vec<Event>,
}

/// The lower ids first.
pub(super) struct Rig {
    pub(super) ends: Vec<End>,
}

impl Rig {
    /// `count` endpoints with a region of `length` bytes each, granted to all, and all lanes up.
    pub(super) fn connected(
        build: &mut Build<'_>,
        count: u16,
        length: usize,
    ) -> Result<Self, String> {
        let mut ends = Vec::new();
        for mut transport in build(count) {
            let show = |error: crate::RegionError| error.to_string();
            transport.register(REGION, length).map_err(show)?;
            for peer in transport.peers() {
                transport.grant(REGION, peer).map_err(show)?;
            }
            ends.push(End { transport, events: Vec::new() });
        }
        let mut rig = Self { ends };
        rig.until("all lanes are up", |rig| {
            rig.ends.iter().all(|end| end.transport.peers().iter().all(|peer| end.up(*peer)))
        })?;
        Ok(rig)
    }

    pub(super) fn a(&mut self) -> &mut End {
        &mut self.ends[0]
    }

    pub(super) fn b(&mut self) -> &mut End {
        &mut self.ends[1]
    }

    pub(super) fn turn(&mut self) {
        for end in &mut self.ends {
            end.turn();
        }
    }

    pub(super) fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Outcome {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            if Instant::now() > deadline {
                return Err(format!("it never came to pass that {what}"));
            }
            self.turn();
        }
        Ok(())
    }

    /// Turns for long enough that anything still under way would show.
    pub(super) fn settle(&mut self) {
        let end = Instant::now() + Duration::from_millis(30);
        for turns in 0.. {
            if turns > 50 && Instant::now() > end {
                return;
            }
            self.turn();
        }
    }
}

impl End {
    pub(super) fn turn(&mut self) {
        self.transport.flush();
        self.transport.poll(&mut self.events);
    }

    pub(super) fn up(&self, peer: NodeId) -> bool {
        self.life(peer, Lane::Control).is_some() && self.life(peer, Lane::Data).is_some()
    }

    /// The incarnation of the lane if it is up, by what this end was told.
    pub(super) fn life(&self, peer: NodeId, lane: Lane) -> Option<Incarnation> {
        self.events.iter().rev().find_map(|event| match event {
            Event::LinkUp { peer: at, lane: on, incarnation } if *at == peer && *on == lane => {
                Some(Some(*incarnation))
            }
            Event::LinkDown { peer: at, lane: on, .. } if *at == peer && *on == lane => Some(None),
            _ => None,
        })?
    }

    pub(super) fn downs(&self, peer: NodeId, lane: Lane) -> usize {
        let down = |event: &&Event| matches!(event, Event::LinkDown { peer: at, lane: on, .. } if *at == peer && *on == lane);
        self.events.iter().filter(down).count()
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = &Bytes> {
        self.events.iter().filter_map(|event| match event {
            Event::Control { message, .. } => Some(message),
            _ => None,
        })
    }

    /// The largest completed operation, whatever the level.
    pub(super) fn completed(&self) -> u64 {
        let completed = self.events.iter().rev().find_map(|event| match event {
            Event::Completed { through, .. } => Some(through.0),
            _ => None,
        });
        completed.unwrap_or(0)
    }

    pub(super) fn write(
        &mut self,
        peer: NodeId,
        offset: usize,
        bytes: Bytes,
    ) -> Result<u64, PostError> {
        self.transport.write(peer, REGION, offset, &[bytes]).map(|op| op.0)
    }

    pub(super) fn region(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.transport.copy_out(REGION, 0, &mut bytes);
        bytes
    }
}

/// Fails the scenario unless `holds`.
pub(super) fn check(holds: bool, why: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(why()) }
}

/// Bytes that differ from place to place and from salt to salt.
pub(super) fn pattern(length: usize, salt: u64) -> Bytes {
    let byte = |at: usize| (at as u64).wrapping_mul(0x9e37_79b9).rotate_left(13) as u8 ^ salt as u8;
    (0..length).map(byte).collect::<Vec<u8>>().into()
}
