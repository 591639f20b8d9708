//! Bytes on the wire: the greeting that opens a lane, and the header before each frame.

use quorate_consensus::{Incarnation, NodeId};
use quorate_transport::integrity::{mix, seeded_crc};
use quorate_transport::{Lane, RegionId};

/// A greeting has this many bytes; a refusal is followed by its reason.
pub(crate) const HELLO_BYTES: usize = 64;
/// Reasons on the wire are cut to this many bytes.
pub(crate) const REASON_BYTES_MAX: usize = 400;
/// An aside has at most this many bytes.
pub(crate) const ASIDE_BYTES_MAX: usize = 64 << 10;
/// Each frame starts with so many bytes.
pub(crate) const HEADER_BYTES: usize = 48;

const HELLO_MAGIC: [u8; 8] = *b"QUORATE\0";
const WIRE_VERSION: u16 = 1;
const FRAME_MAGIC: u16 = 0x5146;
const FRAME_VERSION: u8 = 1;

/// The first thing that each end says on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hello {
    pub(crate) lane: Lane,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    /// 0: not known yet.
    pub(crate) cluster: u64,
    pub(crate) nonce: u64,
    /// Length of the reason that follows if this is a refusal.
    pub(crate) refusal: Option<u16>,
}

/// Why the first bytes of a connection are no greeting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum HelloError {
    #[error("the other end does not speak the protocol of replicas")]
    Magic,
    #[error("the other end speaks wire version {0}, this program speaks {WIRE_VERSION}")]
    Version(u16),
    #[error("the greeting was damaged on its way")]
    Checksum,
    #[error("the greeting is malformed")]
    Malformed,
}

impl Hello {
    pub(crate) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[0..8].copy_from_slice(&HELLO_MAGIC);
        bytes[8..10].copy_from_slice(&WIRE_VERSION.to_le_bytes());
        bytes[10] = lane_byte(self.lane);
        bytes[11] = u8::from(self.refusal.is_some());
        bytes[12..14].copy_from_slice(&self.from.0.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.to.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.cluster.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[58..60].copy_from_slice(&self.refusal.unwrap_or(0).to_le_bytes());
        let crc = crc(Incarnation(0), &bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, HelloError> {
        if bytes[0..8] != HELLO_MAGIC {
            return Err(HelloError::Magic);
        }
        let version = u16_at(bytes, 8);
        if version != WIRE_VERSION {
            return Err(HelloError::Version(version));
        }
        if u32_at(bytes, 60) != crc(Incarnation(0), &bytes[..60]) {
            return Err(HelloError::Checksum);
        }
        let lane = match bytes[10] {
            0 => Lane::Control,
            1 => Lane::Data,
            _ => return Err(HelloError::Malformed),
        };
        let length = u16_at(bytes, 58);
        if usize::from(length) > REASON_BYTES_MAX {
            return Err(HelloError::Malformed);
        }
        Ok(Self {
            lane,
            from: NodeId(u16_at(bytes, 12)),
            to: NodeId(u16_at(bytes, 14)),
            cluster: u64_at(bytes, 16),
            nonce: u64_at(bytes, 24),
            refusal: (bytes[11] != 0).then_some(length),
        })
    }
}

/// The life that two nonces agree on, the same at both ends.
pub(crate) fn incarnation(a: (NodeId, u64), b: (NodeId, u64), lane: Lane) -> Incarnation {
    let (low, high) = if a.0 < b.0 { (a, b) } else { (b, a) };
    Incarnation(mix(low.1, high.1, u64::from(lane_byte(lane))))
}

/// What follows a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Bytes for a region.
    Write,
    /// A message of the control lane.
    Message,
    /// Nothing: the header's `ack` is all.
    Ack,
    /// Why the sender closes the connection now.
    Goodbye,
    /// A word beside the writes of a data lane, for whatever is built on it; not numbered.
    Aside,
}

/// What stands before the payload of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    /// Of the payload.
    pub(crate) length: u32,
    pub(crate) region: RegionId,
    pub(crate) offset: u64,
    /// Of a write or message, counted from 1 in each life of the lane; else 0.
    pub(crate) number: u64,
    /// All writes of the reverse direction up to here are visible at the sender.
    pub(crate) ack: u64,
}

/// Why bytes are no frame of this life of the lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("the stream lost its framing: no frame starts where one should")]
    Magic,
    #[error("frame version {0}, this program reads {FRAME_VERSION}")]
    Version(u8),
    #[error("a frame header was damaged, or belongs to another life of the lane")]
    Checksum,
    #[error("unknown frame type {0}")]
    Kind(u8),
}

impl Header {
    pub(crate) fn encode(&self, life: Incarnation) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..2].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        bytes[2] = FRAME_VERSION;
        bytes[3] = match self.kind {
            Kind::Write => 1,
            Kind::Message => 2,
            Kind::Ack => 3,
            Kind::Goodbye => 4,
            Kind::Aside => 5,
        };
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.region.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.number.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.ack.to_le_bytes());
        let crc = crc(life, &bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8], life: Incarnation) -> Result<Self, HeaderError> {
        if u16_at(bytes, 0) != FRAME_MAGIC {
            return Err(HeaderError::Magic);
        }
        if bytes[2] != FRAME_VERSION {
            return Err(HeaderError::Version(bytes[2]));
        }
        if u32_at(bytes, 44) != crc(life, &bytes[..44]) {
            return Err(HeaderError::Checksum);
        }
        let kind = match bytes[3] {
            1 => Kind::Write,
            2 => Kind::Message,
            3 => Kind::Ack,
            4 => Kind::Goodbye,
            5 => Kind::Aside,
            other => return Err(HeaderError::Kind(other)),
        };
        Ok(Self {
            kind,
            length: u32_at(bytes, 4),
            region: RegionId(u32_at(bytes, 8)),
            offset: u64_at(bytes, 16),
            number: u64_at(bytes, 24),
            ack: u64_at(bytes, 32),
        })
    }
}

fn crc(life: Incarnation, bytes: &[u8]) -> u32 {
    seeded_crc(life, &[bytes])
}

const fn lane_byte(lane: Lane) -> u8 {
    match lane {
        Lane::Control => 0,
        Lane::Data => 1,
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        kind: Kind::Write,
        length: 77,
        region: RegionId(5),
        offset: 1 << 40,
        number: 9,
        ack: 8,
    };

    #[test]
    fn headers_come_back_and_every_flipped_bit_is_noticed() {
        let life = Incarnation(42);
        let bytes = HEADER.encode(life);
        assert_eq!(Header::decode(&bytes, life), Ok(HEADER));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&damaged, life).is_err(), "bit {bit}");
        }
        assert_eq!(Header::decode(&bytes, Incarnation(43)), Err(HeaderError::Checksum));
    }

    #[test]
    fn greetings_come_back_and_every_flipped_bit_is_noticed() {
        let hello = Hello {
            lane: Lane::Data,
            from: NodeId(3),
            to: NodeId(1),
            cluster: 0xfeed,
            nonce: 99,
            refusal: Some(12),
        };
        let bytes = hello.encode();
        assert_eq!(Hello::decode(&bytes), Ok(hello));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Hello::decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn both_ends_compute_one_incarnation() {
        let (a, b) = ((NodeId(1), 10), (NodeId(2), 20));
        assert_eq!(incarnation(a, b, Lane::Data), incarnation(b, a, Lane::Data));
        assert_ne!(incarnation(a, b, Lane::Data), incarnation(a, b, Lane::Control));
        for (a, b) in [((NodeId(1), 11), b), (a, (NodeId(2), 21))] {
            let other = incarnation(a, b, Lane::Data);
            assert_ne!(other, incarnation((NodeId(1), 10), (NodeId(2), 20), Lane::Data));
        }
    }
}
