//! What carries the data lane to one peer, and when the other carrier is tried.

use crate::link::Link;
use crate::negotiation::Building;
use quorate_consensus::{Incarnation, NodeId};
use quorate_transport::RegionId;
use std::time::{Duration, Instant};

/// A lane over TCP tries RDMA again after this long, and after each failure twice as long,
pub const RETRY_MIN: Duration = Duration::from_secs(1);
/// up to this.
pub const RETRY_MAX: Duration = Duration::from_secs(30);
/// Connections that failed for the network's sake in a row, after which a lane begins over TCP.
pub const FAILURES_MAX: u32 = 1;
/// A connection that lived for so long is forgiven what came before.
const STEADY_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    pub(crate) lane: DataLane,
    /// This life of the lane, while its TCP connection is up.
    pub(crate) life: Option<Incarnation>,
    /// The caller was told that it is up.
    pub(crate) announced: bool,
    failures: u32,
    retry_after: Duration,
    /// When a lane over TCP tries RDMA again: the end with the higher id does.
    pub(crate) retry_at: Option<Instant>,
    pub(crate) last_error: String,
    /// Regions that it asked for in this life, and was not answered yet.
    pub(crate) asked: Vec<RegionId>,
}

/// What carries the data lane.
#[derive(Debug, Default)]
pub(crate) enum DataLane {
    /// Nothing yet, or nothing any more.
    #[default]
    Down,
    /// A connection by verbs is being built; the caller does not know of the lane yet.
    Building(Box<Building>),
    /// One-sided writes.
    Rdma(Box<Link>),
    /// Frames over TCP; perhaps a connection by verbs is tried beside it.
    Tcp(Option<Box<Building>>),
}

impl Peer {
    pub(crate) fn new(id: NodeId) -> Self {
        Self {
            id,
            lane: DataLane::Down,
            life: None,
            announced: false,
            failures: 0,
            retry_after: RETRY_MIN,
            retry_at: None,
            last_error: String::new(),
            asked: Vec::new(),
        }
    }

    /// Whether the next life begins over TCP.
    pub(crate) const fn avoids_rdma(&self) -> bool {
        self.failures >= FAILURES_MAX
    }

    /// A connection by verbs could not be built, or died for the network's sake.
    pub(crate) fn rdma_failed(&mut self, reason: &str, lived: Duration) {
        if lived >= STEADY_AFTER {
            self.failures = 0;
            self.retry_after = RETRY_MIN;
        }
        self.failures += 1;
        reason.clone_into(&mut self.last_error);
    }

    /// A connection by verbs was proved to work beside the lane.
    pub(crate) fn rdma_works(&mut self) {
        self.failures = 0;
    }

    pub(crate) fn retry_later(&mut self, now: Instant) {
        self.retry_at = Some(now + self.retry_after);
        self.retry_after = (self.retry_after * 2).min(RETRY_MAX);
    }

    pub(crate) const fn link(&self) -> Option<&Link> {
        match &self.lane {
            DataLane::Rdma(link) => Some(link),
            _ => None,
        }
    }

    pub(crate) fn link_mut(&mut self) -> Option<&mut Link> {
        match &mut self.lane {
            DataLane::Rdma(link) => Some(link),
            _ => None,
        }
    }

    pub(crate) fn is_building(&mut self) -> bool {
        self.building_mut().is_some()
    }

    pub(crate) fn building_mut(&mut self) -> Option<&mut Building> {
        match &mut self.lane {
            DataLane::Building(building) | DataLane::Tcp(Some(building)) => Some(building),
            _ => None,
        }
    }
}
