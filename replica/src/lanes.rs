//! The two lanes to one peer, with what rides on them: rings, rows and messages.

use crate::arena;
use crate::options::NodeOptions;
use bytes::BytesMut;
use quorate_consensus::{
    Ballot, Incarnation, Message, Mistake, Mutant, Nanos, NodeId, Row, RowFlags, Slot,
};
use quorate_transport::ring::{RingReader, RingWriter};
use quorate_transport::row::{ROW_BYTES, RowReader, RowWriter};
use quorate_transport::{OpNumber, PostError, RegionError, RegionId, Transport, codec};
use std::collections::VecDeque;

/// Records that a peer leaves unread for so long, though it answers, have been lost.
const UNREAD_PATIENCE: Nanos = Nanos::from_millis(1_000);
/// And so many pings, each sent after the answer to the one before: between two of them the peer
/// looked into its ring at least once.
const UNREAD_PINGS: u32 = 3;

/// Records whose completion is waited for; of those beyond it only the rows tell.
const SHIPPED_MAX: usize = 4096;

/// How a peer may write into its ring, in the present life of its data lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum RingGrant {
    /// Not at all, or as the follower that is not passive grants it.
    #[default]
    None,
    /// For this life and longer.
    Lasting,
    /// For this life only; the core knows.
    ForLife { told: bool },
    /// No more in this life.
    Fenced,
}

/// Records that are on their way, or lost.
#[derive(Debug)]
struct Unread {
    /// When the peer's row first told that it lacks them.
    since: Nanos,
    /// The newest ping when the last answer that counted was seen.
    ping: u64,
    /// Pings that were sent since and answered, one after the other.
    answered: u32,
}

/// The state of the lanes to one peer.
#[derive(Debug)]
pub(crate) struct Lanes {
    pub(crate) peer: NodeId,
    pub(crate) control_up: bool,
    pub(crate) data_up: bool,
    /// The peer showed the founding document of our cluster in this life of the control lane, and
    /// since the last life of the data lane ended. Before that nothing that it said or wrote is
    /// looked at: it may belong to another cluster, by a wrong address. The end counts and not the
    /// beginning of a life, because the peer may see the lane up, and show its document, before
    /// this replica sees it up.
    pub(crate) control_known: bool,
    pub(crate) data_known: bool,
    /// The peer is still to be told who this replica is.
    pub(crate) introduction_due: bool,
    /// When the younger of the two lanes came up.
    pub(crate) up_since: Nanos,
    /// Something may be in the inbox or the row.
    pub(crate) inbox_hint: bool,
    pub(crate) row_hint: bool,
    pub(crate) ring_writer: RingWriter,
    pub(crate) ring_reader: RingReader,
    pub(crate) row_writer: RowWriter,
    pub(crate) row_reader: RowReader,
    /// The ring position last told to the peer.
    pub(crate) credit_told: u64,
    /// The newest ping in a row that was posted.
    ping_told: u64,
    unread: Option<Unread>,
    mistake: Mistake,
    /// How the peer may write into its ring, if this replica is passive.
    pub(crate) grant: RingGrant,
    /// Which write of this life carries which record, up to which slot; in order.
    pub(crate) shipped: VecDeque<(OpNumber, Ballot, Slot)>,
}

impl Lanes {
    /// Registers the regions that `peer` writes into, and grants them.
    pub(crate) fn open(
        transport: &mut dyn Transport,
        peer: NodeId,
        options: &NodeOptions,
    ) -> Result<Self, RegionError> {
        let (local, ring_bytes) = (transport.local(), options.ring_bytes);
        for (region, length) in
            [(RegionId::inbox(peer), ring_bytes), (RegionId::row(peer), ROW_BYTES)]
        {
            match transport.register(region, length) {
                // Of an earlier time as a peer; nothing that was written then validates now (C5).
                Ok(()) | Err(RegionError::Exists(_)) => {}
                Err(error) => return Err(error),
            }
            // A passive follower grants its ring when the lane is up: no record comes before its row.
            if !options.passive || region == RegionId::row(peer) {
                transport.grant(region, peer)?;
            }
        }
        let mut ring_writer = RingWriter::new(RegionId::inbox(local), ring_bytes);
        let mut ring_reader = RingReader::new(RegionId::inbox(peer), ring_bytes);
        let (mut row_writer, mut row_reader) = (RowWriter::new(local), RowReader::new(peer));
        ring_writer.simulate(options.whims.clone());
        row_writer.simulate(options.whims.clone());
        ring_reader.simulate(options.mistake);
        row_reader.simulate(options.mistake);
        Ok(Self {
            peer,
            mistake: options.mistake,
            control_up: false,
            data_up: false,
            control_known: false,
            data_known: false,
            introduction_due: false,
            up_since: Nanos(0),
            inbox_hint: false,
            row_hint: false,
            ring_writer,
            ring_reader,
            row_writer,
            row_reader,
            credit_told: 0,
            ping_told: 0,
            unread: None,
            grant: RingGrant::None,
            shipped: VecDeque::new(),
        })
    }

    /// A new life of the data lane: positions and sequences start over.
    pub(crate) fn data_lane_up(&mut self, incarnation: Incarnation) {
        self.data_up = true;
        let reused = |mutant| if self.mistake.is(mutant) { Incarnation(1) } else { incarnation };
        let (ring, row) =
            (reused(Mutant::ReuseRingIncarnation), reused(Mutant::ReuseRowIncarnation));
        self.ring_writer.reset(ring);
        self.ring_reader.reset(ring);
        self.row_writer.reset(row);
        self.row_reader.reset(row);
        self.credit_told = 0;
        self.unread = None;
        self.shipped.clear();
        self.inbox_hint = true;
        self.row_hint = true;
    }

    /// A record up to `slot` went with the write `op`.
    pub(crate) fn note_shipped(&mut self, op: OpNumber, ballot: Ballot, slot: Slot) {
        if self.shipped.len() < SHIPPED_MAX {
            self.shipped.push_back((op, ballot, slot));
        }
    }

    /// The writes up to `through` completed: which record was the last of them.
    pub(crate) fn written(&mut self, through: OpNumber) -> Option<(Ballot, Slot)> {
        let mut last = None;
        while let Some((_, ballot, slot)) = self.shipped.pop_front_if(|(op, ..)| *op <= through) {
            last = Some((ballot, slot));
        }
        last
    }

    /// A lane came up: the peer is to be told who this replica is, and should do the same.
    pub(crate) fn introduce_at(&mut self, now: Nanos) {
        self.introduction_due = true;
        self.up_since = now;
    }

    /// Whether both lanes are up and the peer has not said who it is.
    pub(crate) fn is_stranger(&self) -> bool {
        self.control_up && self.data_up && !(self.control_known && self.data_known)
    }

    /// Whether something is to be done that no event will remind of.
    pub(crate) fn want_a_look(&self) -> bool {
        self.introduction_due
            || self.is_stranger()
            || self.data_up && (self.inbox_hint || self.row_hint || self.ring_reader.suspicious())
    }

    /// Our row was posted, with this ping and the position up to which the peer's ring was read.
    pub(crate) fn row_posted(&mut self, row: &Row, consumed: u64) {
        self.credit_told = consumed;
        self.ping_told = row.ping;
    }

    /// A row of the peer tells how far it read its ring. Returns whether records that were posted
    /// never arrived there: the peer has answered pings that went out behind them, each after it had
    /// looked again, and has not moved on. The contract says that what a lane took arrives or the lane
    /// fails, and that nothing of an earlier life is believed; it does not say that a late write of an
    /// earlier life cannot land *over* a record before that is read. The reader takes such a place for
    /// one that was not written yet, and would wait for ever.
    pub(crate) fn take_credit(&mut self, now: Nanos, row: &Row, consumed: u64) -> bool {
        let before = self.ring_writer.in_flight();
        self.ring_writer.set_consumed(consumed);
        let left = self.ring_writer.in_flight();
        if left == 0 || left != before || row.flags.has(RowFlags::FULL) {
            self.unread = None;
            return false;
        }
        let ping = self.ping_told;
        let unread = self.unread.get_or_insert(Unread { since: now, ping, answered: 0 });
        if row.pong > unread.ping {
            unread.answered += 1;
            unread.ping = ping;
        }
        unread.answered >= UNREAD_PINGS && now.since(unread.since) >= UNREAD_PATIENCE
    }

    /// Whether the peer should be told soon how much of its ring was read: a quarter of it waits.
    pub(crate) fn credit_is_due(&self, ring_bytes: usize) -> bool {
        self.ring_reader.consumed() - self.credit_told >= ring_bytes as u64 / 4
    }
}

/// Encodes and posts a control message.
pub(crate) fn send(
    transport: &mut dyn Transport,
    scratch: &mut BytesMut,
    to: NodeId,
    message: &Message,
) -> Result<(), PostError> {
    arena::reserve(scratch, codec::encoded_len(message));
    if codec::encode(message, scratch).is_err() {
        let limit = codec::MESSAGE_BYTES_MAX;
        return Err(PostError::TooLarge { length: codec::encoded_len(message), limit });
    }
    transport.send(to, scratch.split().freeze())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use quorate_consensus::{Ballot, Slot, Value};
    use quorate_transport::memory::{MemoryNetwork, MemoryTransport};
    use quorate_transport::{Event, Lane};

    const PEER: NodeId = NodeId(2);

    /// Lanes with one record on its way to the peer.
    fn shipped() -> (MemoryTransport, Lanes, u64) {
        let network = MemoryNetwork::new(3);
        let mut transport = network.endpoint(NodeId(1), &[PEER]);
        let mut other = network.endpoint(PEER, &[NodeId(1)]);
        let options = NodeOptions::new(NodeId(1), vec![NodeId(1), PEER], 1);
        let mut lanes = Lanes::open(&mut transport, PEER, &options).unwrap();
        let mut events = Vec::new();
        while !lanes.data_up {
            transport.poll(&mut events);
            other.poll(&mut Vec::new());
            for event in events.drain(..) {
                if let Event::LinkUp { lane: Lane::Data, incarnation, .. } = event {
                    lanes.data_lane_up(incarnation);
                }
            }
        }
        let (ballot, slot) = (Ballot { round: 1, node: NodeId(1) }, Slot(1));
        let values = [Value::noop()];
        let writer = &mut lanes.ring_writer;
        writer.ship(&mut transport, PEER, ballot, slot, slot, &values).unwrap();
        let tail = lanes.ring_writer.in_flight();
        (transport, lanes, tail)
    }

    /// The peer answers each of `pings`, a tenth of a second apart, as told. Whether that shows that
    /// the record was lost.
    fn pinged(
        lanes: &mut Lanes,
        pings: u64,
        answer: impl Fn(u64) -> u64,
        flags: u64,
        consumed: u64,
    ) -> bool {
        (1..=pings).any(|ping| {
            lanes.row_posted(&Row { ping, ..Row::default() }, 0);
            let now = Nanos::from_millis(ping * 100);
            let row = Row { pong: answer(ping), flags: RowFlags(flags), ..Row::default() };
            lanes.take_credit(now, &row, consumed)
        })
    }

    #[test]
    fn a_record_that_a_peer_who_answers_has_not_read_for_a_second_is_lost() {
        let (_network, mut lanes, _) = shipped();
        assert!(!pinged(&mut lanes, 10, |ping| ping, 0, 0), "not yet");
        assert!(pinged(&mut lanes, 12, |ping| ping, 0, 0));
        // A new life begins anew.
        lanes.data_lane_up(Incarnation(9));
        assert!(!pinged(&mut lanes, 100, |ping| ping, 0, 0), "nothing is on its way");
    }

    #[test]
    fn a_record_is_not_lost_that_was_read_or_may_be_under_way_or_waits_for_room() {
        let (_network, mut lanes, tail) = shipped();
        // The pings that went out behind it are not answered: a slow link, or a peer that stands still.
        assert!(!pinged(&mut lanes, 100, |_| 0, 0, 0));
        assert!(!pinged(&mut lanes, 100, |ping| ping.min(3), 0, 0), "two answers may be one look");
        assert!(!pinged(&mut lanes, 100, |ping| ping, RowFlags::FULL, 0), "it takes nothing now");
        assert!(!pinged(&mut lanes, 100, |ping| ping, 0, tail), "it was read");
    }
}
