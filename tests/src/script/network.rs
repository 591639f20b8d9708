//! The network between the replicas of a script, delivered by hand.
//!
//! Each ordered pair has the lanes of the transport contract: control messages in order, records in
//! order, and rows, each of which overwrites the one before (sooner or later, see `rows_max`). The lanes are not ordered among each other: a
//! replica that polls may see a row before the records that were posted before it. A link that
//! goes down loses what it carried and comes back as a new incarnation.

use quorate_consensus::{Accept, Message, NodeId, Row};
use std::collections::{BTreeMap, VecDeque};

/// Records that one lane takes before its sender must wait: the ring is full.
const RECORDS_MAX: usize = 32;

/// Something in flight, with the order in which it was posted and the link's life it belongs to.
#[derive(Clone, Debug)]
pub struct InFlight<T> {
    /// Counts everything that was posted anywhere.
    pub order: u64,
    /// The incarnation of the link that it was posted on.
    pub incarnation: u64,
    /// The thing.
    pub item: T,
}

/// One direction of a link.
#[derive(Clone, Debug, Default)]
pub struct Lanes {
    /// The control lane.
    pub control: VecDeque<InFlight<Message>>,
    /// The inbox ring.
    pub records: VecDeque<InFlight<Accept>>,
    /// Rows posted and not read yet: the last one, or as many as the network keeps apart.
    pub rows: VecDeque<InFlight<Row>>,
    /// The newest row posted in this incarnation.
    pub row_posted: Option<Row>,
    /// The newest row delivered in this incarnation.
    pub row_delivered: Option<Row>,
    /// Nothing is delivered and nothing is lost: a cut that nobody noticed yet.
    pub stalled: bool,
    /// What the last reset lost, as a network may still hold it.
    pub ghosts: Vec<InFlight<Message>>,
}

/// The two ends of a link agree on these.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    /// Not partitioned: comes up when both ends live.
    wanted: bool,
    up: bool,
    incarnation: u64,
}

/// Which lane of a pair.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lane {
    /// Control messages.
    Control,
    /// Accept records.
    Records,
    /// The row.
    Row,
}

/// All links.
#[derive(Clone, Debug, Default)]
pub struct Network {
    links: BTreeMap<(NodeId, NodeId), Link>,
    lanes: BTreeMap<(NodeId, NodeId), Lanes>,
    posted: u64,
    /// Rows of one lane that are in flight at the same time; one more overwrites the newest.
    rows_max: usize,
}

fn unordered(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    if a < b { (a, b) } else { (b, a) }
}

impl Network {
    /// Links among all of `nodes`, down but wanted, with at most `rows_max` rows in flight on each.
    #[must_use]
    pub fn new(nodes: &[NodeId], rows_max: usize) -> Self {
        let mut network = Self { rows_max, ..Self::default() };
        for &a in nodes {
            for &b in nodes.iter().filter(|b| **b != a) {
                network.lanes.insert((a, b), Lanes::default());
                network.links.insert(unordered(a, b), Link { wanted: true, ..Link::default() });
            }
        }
        network
    }

    /// The lanes from `from` to `to`, if there is such a pair.
    #[must_use]
    pub fn lanes(&self, from: NodeId, to: NodeId) -> Option<&Lanes> {
        self.lanes.get(&(from, to))
    }

    /// The same, to be meddled with.
    pub fn lanes_mut(&mut self, from: NodeId, to: NodeId) -> Option<&mut Lanes> {
        self.lanes.get_mut(&(from, to))
    }

    /// All ordered pairs.
    pub fn pairs(&self) -> impl Iterator<Item = (NodeId, NodeId)> + '_ {
        self.lanes.keys().copied()
    }

    /// Whether the link is up.
    #[must_use]
    pub fn is_up(&self, a: NodeId, b: NodeId) -> bool {
        self.links.get(&unordered(a, b)).is_some_and(|link| link.up)
    }

    /// Whether the link would be up if both ends lived.
    #[must_use]
    pub fn is_wanted(&self, a: NodeId, b: NodeId) -> bool {
        self.links.get(&unordered(a, b)).is_some_and(|link| link.wanted)
    }

    /// Partitions or joins a pair; the caller brings the link down or up.
    pub fn want(&mut self, a: NodeId, b: NodeId, wanted: bool) {
        if let Some(link) = self.links.get_mut(&unordered(a, b)) {
            link.wanted = wanted;
        }
    }

    /// Brings a link up under a new incarnation. Returns whether it was down.
    pub fn bring_up(&mut self, a: NodeId, b: NodeId) -> bool {
        let Some(link) = self.links.get_mut(&unordered(a, b)) else { return false };
        if link.up || !link.wanted {
            return false;
        }
        link.up = true;
        link.incarnation += 1;
        true
    }

    /// Breaks a link: what it carried is lost. Returns whether it was up.
    pub fn bring_down(&mut self, a: NodeId, b: NodeId) -> bool {
        let Some(link) = self.links.get_mut(&unordered(a, b)) else { return false };
        if !link.up {
            return false;
        }
        link.up = false;
        for pair in [(a, b), (b, a)] {
            if let Some(lanes) = self.lanes.get_mut(&pair) {
                let ghosts = lanes.control.drain(..).collect();
                let stalled = lanes.stalled;
                *lanes = Lanes { ghosts, stalled, ..Lanes::default() };
            }
        }
        true
    }

    fn stamp<T>(&mut self, from: NodeId, to: NodeId, item: T) -> InFlight<T> {
        self.posted += 1;
        let incarnation = self.links.get(&unordered(from, to)).map_or(0, |link| link.incarnation);
        InFlight { order: self.posted, incarnation, item }
    }

    /// Posts a control message; lost if the link is down.
    pub fn post_control(&mut self, from: NodeId, to: NodeId, message: Message) {
        if self.is_up(from, to) {
            let message = self.stamp(from, to, message);
            if let Some(lanes) = self.lanes.get_mut(&(from, to)) {
                lanes.control.push_back(message);
            }
        }
    }

    /// Whether a record can be posted now.
    #[must_use]
    pub fn has_credit(&self, from: NodeId, to: NodeId) -> bool {
        self.is_up(from, to)
            && self.lanes.get(&(from, to)).is_some_and(|lanes| lanes.records.len() < RECORDS_MAX)
    }

    /// Posts a record.
    pub fn post_record(&mut self, from: NodeId, to: NodeId, accept: Accept) {
        let accept = self.stamp(from, to, accept);
        if let Some(lanes) = self.lanes.get_mut(&(from, to)) {
            lanes.records.push_back(accept);
        }
    }

    /// Posts a row, over the last one if too many are in flight. Returns the one posted before it in this incarnation.
    pub fn post_row(&mut self, from: NodeId, to: NodeId, row: Row) -> Option<Row> {
        let posted = self.stamp(from, to, row);
        let lanes = self.lanes.get_mut(&(from, to))?;
        if lanes.rows.len() >= self.rows_max {
            lanes.rows.pop_back();
        }
        lanes.rows.push_back(posted);
        lanes.row_posted.replace(row)
    }

    /// Puts what the last reset lost in front of what is in flight, unchanged: an adversarial
    /// network. Returns how many messages.
    pub fn raise_ghosts(&mut self, from: NodeId, to: NodeId) -> usize {
        let Some(lanes) = self.lanes.get_mut(&(from, to)) else { return 0 };
        let ghosts = std::mem::take(&mut lanes.ghosts);
        let count = ghosts.len();
        for ghost in ghosts.into_iter().rev() {
            lanes.control.push_front(ghost);
        }
        count
    }

    /// Whether `incarnation` is the one that the link has now.
    #[must_use]
    pub fn is_current(&self, from: NodeId, to: NodeId, incarnation: u64) -> bool {
        self.links
            .get(&unordered(from, to))
            .is_some_and(|link| link.up && link.incarnation == incarnation)
    }

    /// The next thing on each lane that could be delivered, with the order in which it was posted.
    pub fn deliverable(&self) -> impl Iterator<Item = (u64, NodeId, NodeId, Lane)> + '_ {
        self.lanes.iter().filter(|(_, lanes)| !lanes.stalled).flat_map(|(&(from, to), lanes)| {
            let control = lanes.control.front().map(|item| (item.order, from, to, Lane::Control));
            let record = lanes.records.front().map(|item| (item.order, from, to, Lane::Records));
            let row = lanes.rows.front().map(|item| (item.order, from, to, Lane::Row));
            [control, record, row].into_iter().flatten()
        })
    }
}
