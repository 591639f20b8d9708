//! The two lanes to one peer, with what rides on them: rings, rows and messages.

use crate::arena;
use crate::options::NodeOptions;
use bytes::BytesMut;
use quorate_consensus::{Incarnation, Message, Mistake, Mutant, Nanos, NodeId};
use quorate_transport::ring::{RingReader, RingWriter};
use quorate_transport::row::{ROW_BYTES, RowReader, RowWriter};
use quorate_transport::{PostError, RegionError, RegionId, Transport, codec};

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
    mistake: Mistake,
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
            transport.grant(region, peer)?;
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
        self.inbox_hint = true;
        self.row_hint = true;
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
