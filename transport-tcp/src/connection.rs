//! One connection: one life of one lane.

use crate::Statistics;
use crate::queue::SendQueue;
use crate::receiver::{ReceiveError, Receiver, Surroundings};
use crate::wire::{Header, Kind, REASON_BYTES_MAX};
use bytes::Bytes;
use mio::net::TcpStream;
use quorate_consensus::{Incarnation, NodeId};
use quorate_transport::region::RegionTable;
use quorate_transport::{Event, Lane, Level, OpNumber, RegionId};
use std::time::Instant;

/// Acknowledgements wait for a frame to ride on, but not for more writes than this,
const ACK_AFTER_WRITES: u64 = 32;
/// nor for more polls than this.
const ACK_AFTER_POLLS: u32 = 32;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    pub(crate) life: Incarnation,
    /// What the other end said its cluster is.
    pub(crate) cluster: u64,
    pub(crate) since: Instant,
    /// There may be something to read.
    pub(crate) readable: bool,
    /// The socket may take something.
    pub(crate) writable: bool,
    /// The system says that the other end closed its side.
    pub(crate) read_closed: bool,
    /// Nothing told us yet what the socket holds: read until it has nothing.
    fresh: bool,
    /// Writing failed: what still can be read is read, then the connection goes.
    pub(crate) broken: Option<String>,
    /// The socket did not take all of the queue.
    blocked: bool,
    queue: SendQueue,
    receiver: Receiver,
    peer: NodeId,
    lane: Lane,
    /// Writes or messages queued.
    sent: u64,
    /// The newest acknowledgement queued.
    acked: u64,
    /// Polls since there is something to acknowledge.
    quiet_polls: u32,
    /// The newest completion that was reported.
    reported: u64,
}

impl Connection {
    pub(crate) fn new(
        stream: TcpStream,
        peer: NodeId,
        lane: Lane,
        life: Incarnation,
        cluster: u64,
    ) -> Self {
        Self {
            stream,
            life,
            cluster,
            since: Instant::now(),
            readable: true,
            writable: true,
            read_closed: false,
            fresh: true,
            broken: None,
            blocked: false,
            queue: SendQueue::default(),
            receiver: Receiver::new(peer, lane, life),
            peer,
            lane,
            sent: 0,
            acked: 0,
            quiet_polls: 0,
            reported: 0,
        }
    }

    pub(crate) const fn queued_bytes(&self) -> usize {
        self.queue.bytes()
    }

    pub(crate) fn has_room(&self, bytes: usize, pieces: usize) -> bool {
        self.queue.has_room(bytes, pieces)
    }

    pub(crate) fn write(
        &mut self,
        region: RegionId,
        offset: usize,
        length: usize,
        pieces: &[Bytes],
        statistics: &mut Statistics,
    ) -> OpNumber {
        self.sent += 1;
        let header = self.header(Kind::Write, region, offset as u64, length, self.sent);
        self.push(&header, pieces, statistics);
        OpNumber(self.sent)
    }

    pub(crate) fn send(&mut self, message: Bytes, statistics: &mut Statistics) {
        self.sent += 1;
        let header = self.header(Kind::Message, RegionId(0), 0, message.len(), self.sent);
        self.push(&header, &[message], statistics);
    }

    pub(crate) fn send_aside(&mut self, word: Bytes, statistics: &mut Statistics) {
        let header = self.header(Kind::Aside, RegionId(0), 0, word.len(), 0);
        self.push(&header, &[word], statistics);
    }

    fn header(
        &self,
        kind: Kind,
        region: RegionId,
        offset: u64,
        length: usize,
        number: u64,
    ) -> Header {
        let ack = self.receiver.applied();
        Header { kind, length: length as u32, region, offset, number, ack }
    }

    fn push(&mut self, header: &Header, pieces: &[Bytes], statistics: &mut Statistics) {
        statistics.frames_sent += 1;
        self.acked = header.ack;
        self.quiet_polls = 0;
        self.queue.push(header, self.life, pieces);
    }

    /// Sends an acknowledgement of its own if one is due: `at_once` if there is any.
    pub(crate) fn acknowledge(&mut self, at_once: bool, statistics: &mut Statistics) {
        let due = self.receiver.applied() - self.acked;
        if due == 0 {
            return;
        }
        self.quiet_polls += 1;
        if at_once || due >= ACK_AFTER_WRITES || self.quiet_polls > ACK_AFTER_POLLS {
            let header = self.header(Kind::Ack, RegionId(0), 0, 0, 0);
            self.push(&header, &[], statistics);
            self.flush(statistics);
        }
    }

    /// Sends what is queued, as far as the socket takes it.
    pub(crate) fn flush(&mut self, statistics: &mut Statistics) {
        if self.queue.bytes() == 0 || !self.writable || self.broken.is_some() {
            return;
        }
        match self.queue.write(&mut self.stream, statistics) {
            Ok(drained) => {
                self.writable = drained;
                self.blocked = !drained;
            }
            Err(error) => {
                self.broken = Some(format!("the connection broke: {error}"));
                self.readable = true;
            }
        }
    }

    /// Whether something is left that the socket did not take before and may take now.
    pub(crate) const fn unblocked(&self) -> bool {
        self.blocked && self.writable
    }

    /// Reads what is there. An error ends the connection.
    pub(crate) fn receive(
        &mut self,
        regions: &mut RegionTable,
        events: &mut Vec<Event>,
        asides: &mut Vec<(NodeId, Bytes)>,
        statistics: &mut Statistics,
    ) -> Result<(), ReceiveError> {
        let mut around = Surroundings { regions, events, statistics, asides, sent: self.sent };
        let thorough = self.fresh || self.read_closed || self.broken.is_some();
        self.readable = self.receiver.receive(&mut self.stream, thorough, &mut around)?;
        self.fresh &= self.readable;
        let acknowledged = self.receiver.acknowledged();
        if self.lane == Lane::Data && acknowledged > self.reported {
            self.reported = acknowledged;
            let (peer, through) = (self.peer, OpNumber(acknowledged));
            events.push(Event::Completed { peer, through, level: Level::Visible });
        }
        Ok(())
    }

    /// Tells the other end, if it can be done at once, why the connection closes.
    pub(crate) fn say_goodbye(&mut self, reason: &str) {
        if self.queue.bytes() > 0 || self.broken.is_some() {
            return;
        }
        let reason = Bytes::copy_from_slice(cut(reason).as_bytes());
        let header = self.header(Kind::Goodbye, RegionId(0), 0, reason.len(), 0);
        let mut unused = Statistics::default();
        self.push(&header, &[reason], &mut unused);
        self.flush(&mut unused);
    }
}

/// A reason that fits the wire.
pub(crate) fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}
