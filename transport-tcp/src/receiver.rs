//! What arrives on one connection: frames, and the way of their payloads into regions.

use crate::Statistics;
use crate::wire::{ASIDE_BYTES_MAX, HEADER_BYTES, Header, HeaderError, Kind, REASON_BYTES_MAX};
use bytes::{Bytes, BytesMut};
use quorate_consensus::{Incarnation, NodeId};
use quorate_transport::codec::MESSAGE_BYTES_MAX;
use quorate_transport::region::{RegionTable, WriteRefused};
use quorate_transport::{Event, Lane, RegionId};
use std::io::{self, IoSliceMut, Read};

/// One system call reads many small frames into a buffer of this size.
const STAGING_BYTES: usize = 64 << 10;
/// A poll takes at most about this much from one connection, so that none starves the others.
const READ_BYTES_PER_POLL: usize = 2 << 20;
const MESSAGE_CHUNK_BYTES: usize = 64 << 10;
/// Messages from here on get memory of their own.
const OWN_MEMORY_BYTES: usize = MESSAGE_CHUNK_BYTES / 4;

/// Why the connection is to be dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("the other end closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Refused(#[from] WriteRefused),
    #[error("a frame of {0:?} does not belong on this lane")]
    WrongLane(Kind),
    #[error("a frame announces {length} bytes, the limit is {limit}")]
    TooLong { length: usize, limit: usize },
    #[error("frame {got} where {expected} should be")]
    Sequence { got: u64, expected: u64 },
    #[error("an acknowledgement of write {ack}, of which only {sent} were sent")]
    AbsurdAck { ack: u64, sent: u64 },
    #[error("the other end says: {0}")]
    Goodbye(String),
}

impl ReceiveError {
    /// Whether the other end broke the rules, and deserves to be told which.
    pub(crate) const fn is_their_fault(&self) -> bool {
        !matches!(self, Self::Closed | Self::Broken(_) | Self::Goodbye(_))
    }
}

/// What a poll of one connection works with.
pub(crate) struct Surroundings<'a> {
    pub(crate) regions: &'a mut RegionTable,
    pub(crate) events: &'a mut Vec<Event>,
    pub(crate) statistics: &'a mut Statistics,
    /// Words beside the writes, in the order they came in.
    pub(crate) asides: &'a mut Vec<(NodeId, Bytes)>,
    /// How many writes this end sent on the lane.
    pub(crate) sent: u64,
}

#[derive(Debug)]
pub(crate) struct Receiver {
    peer: NodeId,
    lane: Lane,
    life: Incarnation,
    staging: Box<[u8]>,
    start: usize,
    end: usize,
    current: Option<Current>,
    /// Of the last write or message that began.
    number: u64,
    /// Of the last write that is wholly visible.
    applied: u64,
    /// The newest acknowledgement of the other end.
    acknowledged: u64,
    /// Regions that were hinted at in this poll.
    hinted: Vec<RegionId>,
    arena: BytesMut,
}

/// A payload that has not wholly arrived.
#[derive(Debug)]
enum Current {
    Write { region: RegionId, offset: u64, rest: usize },
    Message { bytes: BytesMut, filled: usize },
    Goodbye { bytes: BytesMut, filled: usize },
    Aside { bytes: BytesMut, filled: usize },
}

impl Receiver {
    pub(crate) fn new(peer: NodeId, lane: Lane, life: Incarnation) -> Self {
        Self {
            peer,
            lane,
            life,
            staging: vec![0; STAGING_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            current: None,
            number: 0,
            applied: 0,
            acknowledged: 0,
            hinted: Vec::new(),
            arena: BytesMut::new(),
        }
    }

    pub(crate) const fn applied(&self) -> u64 {
        self.applied
    }

    pub(crate) const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Reads and digests what is there. `true` if there may be more: call again at the next poll.
    /// `thorough` reads until the socket has nothing: after a hint that it was closed.
    pub(crate) fn receive(
        &mut self,
        stream: &mut impl Read,
        thorough: bool,
        around: &mut Surroundings<'_>,
    ) -> Result<bool, ReceiveError> {
        self.hinted.clear();
        let mut taken = 0;
        while taken < READ_BYTES_PER_POLL {
            let (length, asked) = match self.read(stream, around.regions) {
                Ok((0, _)) => return Err(ReceiveError::Closed),
                Ok(read) => read,
                Err(ReceiveError::Broken(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(false);
                }
                Err(ReceiveError::Broken(error)) if error.kind() == io::ErrorKind::Interrupted => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            around.statistics.read_calls += 1;
            around.statistics.bytes_received += length as u64;
            taken += length;
            self.digest(around)?;
            if length < asked && !thorough {
                // A short read emptied the socket: what comes later announces itself.
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One system call: the rest of a large payload goes straight to where it belongs, and what
    /// follows it into the staging buffer. Returns what came and what was asked for.
    fn read(
        &mut self,
        stream: &mut impl Read,
        regions: &mut RegionTable,
    ) -> Result<(usize, usize), ReceiveError> {
        if self.start > 0 {
            self.staging.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let staging = &mut self.staging[self.end..];
        let target = match &mut self.current {
            None => {
                let asked = staging.len();
                let length = stream.read(staging)?;
                self.end += length;
                return Ok((length, asked));
            }
            // The gate stands before every read: nothing lands after a fence.
            Some(Current::Write { region, offset, rest }) => {
                match regions.admit(self.peer, *region, *offset, *rest) {
                    // Others write there too: by way of the buffer, and no reference to it.
                    Err(WriteRefused::Lent(_)) => &mut [],
                    admitted => admitted?,
                }
            }
            Some(
                Current::Message { bytes, filled }
                | Current::Goodbye { bytes, filled }
                | Current::Aside { bytes, filled },
            ) => &mut bytes[*filled..],
        };
        let (rest, asked) = (target.len(), target.len() + staging.len());
        let length =
            stream.read_vectored(&mut [IoSliceMut::new(target), IoSliceMut::new(staging)])?;
        let direct = length.min(rest);
        self.end += length - direct;
        self.landed(direct);
        Ok((length, asked))
    }

    /// So many bytes of the current payload arrived.
    fn landed(&mut self, length: usize) {
        match &mut self.current {
            Some(Current::Write { offset, rest, .. }) => {
                *offset += length as u64;
                *rest -= length;
            }
            Some(
                Current::Message { filled, .. }
                | Current::Goodbye { filled, .. }
                | Current::Aside { filled, .. },
            ) => *filled += length,
            None => {}
        }
    }

    /// Goes through the staging buffer frame by frame.
    fn digest(&mut self, around: &mut Surroundings<'_>) -> Result<(), ReceiveError> {
        loop {
            if self.current.is_some() {
                self.fill(around.regions)?;
                if !self.finish(around)? {
                    return Ok(());
                }
            }
            if self.end - self.start < HEADER_BYTES {
                return Ok(());
            }
            let header = &self.staging[self.start..self.start + HEADER_BYTES];
            let header = Header::decode(header, self.life)?;
            self.start += HEADER_BYTES;
            around.statistics.frames_received += 1;
            self.begin(&header, around)?;
        }
    }

    fn begin(
        &mut self,
        header: &Header,
        around: &mut Surroundings<'_>,
    ) -> Result<(), ReceiveError> {
        if header.ack > around.sent {
            return Err(ReceiveError::AbsurdAck { ack: header.ack, sent: around.sent });
        }
        self.acknowledged = self.acknowledged.max(header.ack);
        let length = header.length as usize;
        let bounded = |limit| {
            if length > limit { Err(ReceiveError::TooLong { length, limit }) } else { Ok(()) }
        };
        match (header.kind, self.lane) {
            (Kind::Write, Lane::Data) => {
                self.count(header.number)?;
                around.regions.check(self.peer, header.region, header.offset, length)?;
                let (region, offset, rest) = (header.region, header.offset, length);
                self.current = Some(Current::Write { region, offset, rest });
            }
            (Kind::Message, Lane::Control) => {
                self.count(header.number)?;
                bounded(MESSAGE_BYTES_MAX)?;
                let bytes = self.message_memory(length);
                self.current = Some(Current::Message { bytes, filled: 0 });
            }
            (Kind::Ack, _) => bounded(0)?,
            (Kind::Goodbye, _) => {
                bounded(REASON_BYTES_MAX)?;
                let bytes = BytesMut::zeroed(length);
                self.current = Some(Current::Goodbye { bytes, filled: 0 });
            }
            (Kind::Aside, Lane::Data) => {
                bounded(ASIDE_BYTES_MAX)?;
                let bytes = BytesMut::zeroed(length);
                self.current = Some(Current::Aside { bytes, filled: 0 });
            }
            (kind, _) => return Err(ReceiveError::WrongLane(kind)),
        }
        Ok(())
    }

    fn count(&mut self, got: u64) -> Result<(), ReceiveError> {
        let expected = self.number + 1;
        if got != expected {
            return Err(ReceiveError::Sequence { got, expected });
        }
        self.number = expected;
        Ok(())
    }

    /// Zeroed memory for a message: large ones get their own, so that they pin nothing else.
    fn message_memory(&mut self, length: usize) -> BytesMut {
        if length >= OWN_MEMORY_BYTES {
            return BytesMut::zeroed(length);
        }
        self.arena.clear();
        if self.arena.capacity() < length && !self.arena.try_reclaim(MESSAGE_CHUNK_BYTES) {
            self.arena = BytesMut::with_capacity(MESSAGE_CHUNK_BYTES);
        }
        self.arena.resize(length, 0);
        self.arena.split()
    }

    /// Moves what the staging buffer has of the current payload to where it belongs.
    fn fill(&mut self, regions: &mut RegionTable) -> Result<(), ReceiveError> {
        let staged = &self.staging[self.start..self.end];
        let length = match &mut self.current {
            Some(Current::Write { region, offset, rest }) => {
                let length = staged.len().min(*rest);
                regions.land(self.peer, *region, *offset, &staged[..length])?;
                length
            }
            Some(
                Current::Message { bytes, filled }
                | Current::Goodbye { bytes, filled }
                | Current::Aside { bytes, filled },
            ) => {
                let target = &mut bytes[*filled..];
                let length = staged.len().min(target.len());
                target[..length].copy_from_slice(&staged[..length]);
                length
            }
            None => return Ok(()),
        };
        self.start += length;
        self.landed(length);
        Ok(())
    }

    /// Ends the current payload if all of it is there.
    fn finish(&mut self, around: &mut Surroundings<'_>) -> Result<bool, ReceiveError> {
        match self.current.take() {
            Some(Current::Write { rest: 0, region, .. }) => {
                self.applied = self.number;
                // The hint comes with the last byte, which may be polls after the first: who looks
                // at the first and finds nothing whole must be told to look again.
                if !self.hinted.contains(&region) {
                    self.hinted.push(region);
                    let peer = self.peer;
                    around.events.push(Event::Written { peer, region });
                }
            }
            Some(Current::Message { bytes, filled }) if filled == bytes.len() => {
                let (peer, message) = (self.peer, Bytes::from(bytes));
                around.events.push(Event::Control { peer, message });
            }
            Some(Current::Goodbye { bytes, filled }) if filled == bytes.len() => {
                return Err(ReceiveError::Goodbye(printable(&bytes)));
            }
            Some(Current::Aside { bytes, filled }) if filled == bytes.len() => {
                around.asides.push((self.peer, bytes.freeze()));
            }
            unfinished => {
                self.current = unfinished;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A reason of the other end, made safe for a log.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
