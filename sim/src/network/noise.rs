//! What happens to single operations: losses in bursts, messages that come twice, damaged, or not at
//! all, and writers that are kept out of a reader's memory.

use super::{Again, Net, NetEvent, Operation, id};
use crate::coverage::Row;
use bytes::{Bytes, BytesMut};
use quorate_consensus::NodeId;
use quorate_transport::{Event, PostError};

/// A loss in a burst is so likely, in millionths.
const BURST_LOSS_PPM: u64 = 200_000;
/// A burst begins with one operation of so many, and ends with one of so many.
const BURST_EVERY: u64 = 4_000;
const BURST_OPERATIONS: u64 = 20;
/// Where a message has its version and its kind: see `quorate_transport::codec`.
const VERSION: usize = 2;
const KIND: usize = 3;
/// A message that comes again does so this much later on average, and now and then much later.
const AGAIN_NANOS: u64 = 5_000_000;

/// Kinds of messages, from 1: see `quorate_transport::codec`.
pub(crate) const MESSAGE_KINDS: u8 = 16;

impl Net {
    /// What the operation posted now breaks its lane with, if it does.
    pub(super) fn loses(&mut self) -> Option<Row> {
        if self.shape.bursts {
            let every = if self.bad { BURST_OPERATIONS } else { BURST_EVERY };
            self.bad ^= self.random.below(every) == 0;
            if self.bad && self.random.chance(BURST_LOSS_PPM) {
                self.coverage.inject(Row::F07);
                return Some(Row::F07);
            }
        }
        let lost = self.random.chance(self.shape.loss_ppm);
        if lost {
            self.coverage.inject(Row::F06);
        }
        lost.then_some(Row::F06)
    }

    /// A message may be damaged, or come a second time.
    pub(super) fn disturb(
        &mut self,
        from: usize,
        to: usize,
        life: u64,
        arrival: u64,
        operation: Operation,
    ) -> Operation {
        let Operation::Message(message) = operation else { return operation };
        if self.random.chance(self.shape.twice_ppm) {
            let mean = if self.random.chance(200_000) { AGAIN_NANOS * 100 } else { AGAIN_NANOS };
            let again = Box::new(Again { from, to, life, message: message.clone() });
            self.coverage.inject(Row::F09);
            self.due.push((arrival + self.random.exponential(mean), NetEvent::Again(again)));
        }
        if self.random.chance(self.shape.damage_ppm) {
            let (row, message) = self.damage(message);
            self.coverage.inject(row);
            let index = from * self.nodes() + to;
            self.damaged[index] = Some(row);
            return Operation::Message(message);
        }
        Operation::Message(message)
    }

    fn damage(&mut self, message: Bytes) -> (Row, Bytes) {
        let length = message.len() as u64;
        let mut bytes = BytesMut::from(&message[..]);
        match self.random.below(3) {
            0 => {
                let at = self.random.below(length) as usize;
                bytes[at] ^= 1 << self.random.below(8);
                (Row::F16, bytes.freeze())
            }
            1 => {
                bytes.truncate(self.random.below(length) as usize);
                (Row::F16, bytes.freeze())
            }
            _ => {
                bytes[VERSION] += 1;
                (Row::F115, bytes.freeze())
            }
        }
    }

    /// The receiver gives a lane up: had it reason to?
    pub(crate) fn note_reset(&mut self, node: usize, peer: usize) {
        let index = peer * self.nodes() + node;
        if let Some(row) = self.damaged[index].take() {
            self.coverage.observe(row);
        }
    }

    pub(super) fn repeat(&mut self, again: Again) {
        let Again { from, to, life, message } = again;
        let blocked = self.is_blocked(from, to);
        let state = self.lane(from, to, 0);
        let knows = state.believed[1 - usize::from(from > to)] == Some(life);
        if knows && state.up && state.life == life && !blocked && self.endpoints[to].alive {
            self.coverage.observe(Row::F09);
            let sum = u64::from(crc32c::crc32c(&message));
            self.note(sum ^ (from as u64) << 32 ^ (to as u64) << 40 ^ 1 << 62);
            self.tell(to, Event::Control { peer: id(from), message });
        }
    }

    /// Whether one lane has overtaken the other.
    pub(super) fn note_order(&mut self, from: usize, to: usize, order: u64) {
        let index = from * self.nodes() + to;
        if order < self.orders[index].1 {
            self.coverage.meet(Row::F10);
        }
        self.orders[index].1 = self.orders[index].1.max(order);
    }

    /// Writes of `from` into the memory of `to` are refused, or not any more.
    pub(crate) fn fence(&mut self, from: usize, to: usize, on: bool) {
        let index = from * self.nodes() + to;
        let count = &mut self.fenced[index];
        *count = if on { *count + 1 } else { count.saturating_sub(1) };
    }

    pub(super) fn is_fenced(&self, from: usize, to: usize) -> bool {
        self.fenced[from * self.nodes() + to] > 0
    }

    /// The next message of this kind is not taken by the lanes of `node`.
    pub(crate) fn refuse_once(&mut self, node: usize, kind: u8) {
        self.refused[node] = Some(kind);
    }

    /// Whether this message is the one.
    ///
    /// # Errors
    /// As a full queue.
    pub(crate) fn accept(
        &mut self,
        node: usize,
        to: usize,
        message: &Bytes,
    ) -> Result<(), PostError> {
        if self.refused[node].is_some() && self.refused[node] == message.get(KIND).copied() {
            self.refused[node] = None;
            self.coverage.observe(Row::F08);
            return Err(PostError::Full(NodeId(to as u16 + 1)));
        }
        Ok(())
    }

    /// What a replica promised, and the ballot under which it leads: packed, 0 for none.
    pub(crate) fn note_ballots(&mut self, node: usize, promised: u64, leading: u64) {
        self.known[node] = (promised, leading);
    }
}
