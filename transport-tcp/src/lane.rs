//! The lanes to a peer, and the ways in which a lane comes up.

use crate::connection::Connection;
use crate::greeting::Greeting;
use mio::net::TcpStream;
use quorate_consensus::{Incarnation, NodeId};
use quorate_transport::integrity::Randomness;
use quorate_transport::{Lane, LinkStatus};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The first attempt after a failure waits this long, each further one twice as long,
pub const BACK_OFF_MIN: Duration = Duration::from_millis(10);
/// up to this.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(1);
/// An attempt to connect is given up after this long.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A greeting that takes longer is given up.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(3);
/// A lane that was up for this long starts over with the shortest back-off.
const STEADY_AFTER: Duration = Duration::from_secs(1);

pub(crate) const LANES: [Lane; 2] = [Lane::Control, Lane::Data];

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    pub(crate) address: Address,
    /// In the order of [`LANES`].
    pub(crate) lanes: [LaneSlot; 2],
    pub(crate) reconnects: u64,
    pub(crate) last_error: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Address {
    Unset,
    Literal(SocketAddr),
    Name(String),
}

impl Address {
    /// An address, a host name with a port, or nothing yet.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::Unset);
        }
        if let Ok(literal) = text.parse() {
            return Ok(Self::Literal(literal));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Name(text.to_owned()))
            }
            _ => Err(format!("\"{text}\" is not host:port")),
        }
    }
}

#[derive(Debug)]
pub(crate) struct LaneSlot {
    pub(crate) connection: Option<Connection>,
    /// Greeted, and up from the beginning of the next poll on: by then the end of the life before
    /// it was reported.
    pub(crate) ready: Option<Ready>,
    pub(crate) dial: Dial,
    back_off: Duration,
    /// Counts attempts: which of several addresses is tried.
    pub(crate) attempts: usize,
    was_up: bool,
}

#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) stream: TcpStream,
    pub(crate) life: Incarnation,
    pub(crate) cluster: u64,
}

/// How far the dialling end is. The listening end stays at `Idle`.
#[derive(Debug)]
pub(crate) enum Dial {
    /// Nothing to do: up, or the other end dials, or its address is not known.
    Idle,
    /// The next attempt starts then.
    Waiting(Instant),
    /// The question with this serial is under way.
    Resolving(u64),
    /// Waits for the connection; `ready` once the system has news of it.
    Connecting { stream: TcpStream, deadline: Instant, ready: bool },
    /// Connected, and greeting.
    Greeting(Greeting),
}

impl Dial {
    /// When something has to happen though no socket says so.
    pub(crate) fn timer(&self) -> Option<Instant> {
        match self {
            Self::Idle | Self::Resolving(_) => None,
            Self::Waiting(at) => Some(*at),
            Self::Connecting { deadline, .. } => Some(*deadline),
            Self::Greeting(greeting) => Some(greeting.deadline),
        }
    }
}

impl LaneSlot {
    pub(crate) const fn new() -> Self {
        Self {
            connection: None,
            ready: None,
            dial: Dial::Idle,
            back_off: BACK_OFF_MIN,
            attempts: 0,
            was_up: false,
        }
    }

    /// After a failure: the next attempt follows after a while, with jitter so that replicas that
    /// failed together do not come back together.
    pub(crate) fn back_off(&mut self, random: &mut Randomness, up_since: Option<Instant>) {
        if up_since.is_some_and(|since| since.elapsed() >= STEADY_AFTER) {
            self.back_off = BACK_OFF_MIN;
        }
        let micros = self.back_off.as_micros() as u64;
        let wait = Duration::from_micros(micros / 2 + random.below(micros));
        self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
        self.dial = Dial::Waiting(Instant::now() + wait);
    }

    /// Whether this is a rebuilt lane, not the first.
    pub(crate) fn came_up(&mut self) -> bool {
        std::mem::replace(&mut self.was_up, true)
    }
}

impl Peer {
    pub(crate) const fn new(id: NodeId, address: Address) -> Self {
        Self {
            id,
            address,
            lanes: [LaneSlot::new(), LaneSlot::new()],
            reconnects: 0,
            last_error: String::new(),
        }
    }

    pub(crate) fn lane(&mut self, lane: Lane) -> &mut LaneSlot {
        &mut self.lanes[lane_index(lane)]
    }

    pub(crate) fn status(&self) -> LinkStatus {
        let up = |lane| self.lanes[lane_index(lane)].connection.is_some();
        let connections = self.lanes.iter().filter_map(|lane| lane.connection.as_ref());
        LinkStatus {
            control_up: up(Lane::Control),
            data_up: up(Lane::Data),
            carrier: "tcp",
            queued_bytes: connections.map(Connection::queued_bytes).sum(),
            reconnects: self.reconnects,
            last_error: self.last_error.clone(),
        }
    }
}

pub(crate) const fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::Control => 0,
        Lane::Data => 1,
    }
}
