//! The bytes of blocks and certificates.

use super::{Checkpoint, CheckpointId};
use crate::format::{u32_at, u64_at};
use quorate_consensus::Slot;

/// What a whole block takes, header included.
pub const BLOCK_BYTES: usize = 64 << 10;
/// The header of a block.
pub(super) const HEADER_BYTES: usize = 64;
/// What of the image a whole block holds.
pub const BLOCK_PAYLOAD_BYTES: usize = BLOCK_BYTES - HEADER_BYTES;
/// The certificate.
pub(super) const CERTIFICATE_BYTES: usize = 128;

const BLOCK_MAGIC: [u8; 4] = *b"QCKB";
const CERTIFICATE_MAGIC: [u8; 8] = *b"QCKPT\0\0\0";
const VERSION: u8 = 1;
const LAST: u8 = 1;

/// The header of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BlockHeader {
    pub(super) id: CheckpointId,
    pub(super) index: u64,
    pub(super) length: u32,
    /// Of the payload.
    pub(super) crc: u32,
    /// Of the image, up to and including this block.
    pub(super) image_crc: u32,
    pub(super) last: bool,
}

impl BlockHeader {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&BLOCK_MAGIC);
        bytes[8..16].copy_from_slice(&self.id.slot.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.digest.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.id.cluster.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.index.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.length.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.crc.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.image_crc.to_le_bytes());
        bytes[52] = VERSION;
        bytes[53] = if self.last { LAST } else { 0 };
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; none if it is not one of this version, or not whole.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        if bytes[0..4] != BLOCK_MAGIC || crc32c::crc32c(&bytes[8..]) != u32_at(bytes, 4) {
            return None;
        }
        let length = u32_at(bytes, 40);
        let last = bytes[53] == LAST;
        // Only the last block may be short: a reader finds any block without reading the others.
        let fits = if last {
            length as usize <= BLOCK_PAYLOAD_BYTES
        } else {
            length as usize == BLOCK_PAYLOAD_BYTES
        };
        if bytes[52] != VERSION || bytes[53] > LAST || !fits {
            return None;
        }
        Some(Self {
            id: CheckpointId {
                slot: Slot(u64_at(bytes, 8)),
                digest: u64_at(bytes, 16),
                cluster: u64_at(bytes, 24),
            },
            index: u64_at(bytes, 32),
            length,
            crc: u32_at(bytes, 44),
            image_crc: u32_at(bytes, 48),
            last,
        })
    }

    /// Header and payload.
    pub(super) fn bytes(&self) -> usize {
        HEADER_BYTES + self.length as usize
    }
}

/// Where the image stands after some blocks: what the next one must continue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Progress {
    pub(super) id: CheckpointId,
    /// The next block.
    pub(super) next: u64,
    /// Bytes and CRC-32C of the image so far.
    pub(super) bytes: u64,
    pub(super) crc: u32,
    /// The last block was among them.
    pub(super) ended: bool,
}

impl Progress {
    pub(super) fn new(id: CheckpointId) -> Self {
        Self { id, next: 0, bytes: 0, crc: 0, ended: false }
    }

    /// The header for the next block with this payload.
    pub(super) fn header(&self, payload: &[u8], last: bool) -> BlockHeader {
        let crc = crc32c::crc32c(payload);
        BlockHeader {
            id: self.id,
            index: self.next,
            length: payload.len() as u32,
            crc,
            image_crc: crc32c::crc32c_combine(self.crc, crc, payload.len()),
            last,
        }
    }

    /// Takes the next block if it is whole and continues the image.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn take(&mut self, block: &[u8]) -> Result<BlockHeader, &'static str> {
        let header = BlockHeader::decode(block).ok_or("its header does not match its checksum")?;
        if header.id != self.id {
            return Err("it belongs to another checkpoint");
        }
        if self.ended || header.index != self.next {
            return Err("another block is in its place");
        }
        let payload = block.get(HEADER_BYTES..header.bytes()).ok_or("it is cut off")?;
        if crc32c::crc32c(payload) != header.crc {
            return Err("its contents do not match their checksum");
        }
        if crc32c::crc32c_combine(self.crc, header.crc, payload.len()) != header.image_crc {
            return Err("it continues another image");
        }
        self.next += 1;
        self.bytes += u64::from(header.length);
        self.crc = header.image_crc;
        self.ended = header.last;
        Ok(header)
    }

    /// The whole checkpoint, once the last block was taken.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        let Self { id, next: blocks, bytes, crc, .. } = *self;
        Checkpoint { id, blocks, bytes, crc, log_from: Slot::ZERO }
    }
}

/// The certificate: that all blocks are durable, and which they are.
pub(super) struct Certificate;

impl Certificate {
    pub(super) fn encode(checkpoint: &Checkpoint) -> [u8; CERTIFICATE_BYTES] {
        let mut bytes = [0; CERTIFICATE_BYTES];
        bytes[0..8].copy_from_slice(&CERTIFICATE_MAGIC);
        bytes[8..12].copy_from_slice(&u32::from(VERSION).to_le_bytes());
        bytes[16..24].copy_from_slice(&checkpoint.id.slot.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&checkpoint.id.digest.to_le_bytes());
        bytes[32..40].copy_from_slice(&checkpoint.id.cluster.to_le_bytes());
        bytes[40..48].copy_from_slice(&checkpoint.blocks.to_le_bytes());
        bytes[48..56].copy_from_slice(&checkpoint.bytes.to_le_bytes());
        bytes[56..60].copy_from_slice(&checkpoint.crc.to_le_bytes());
        bytes[60..64].copy_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
        bytes[64..72].copy_from_slice(&checkpoint.log_from.0.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Checkpoint> {
        let bytes = bytes.get(..CERTIFICATE_BYTES)?;
        let whole = bytes[0..8] == CERTIFICATE_MAGIC
            && u32_at(bytes, 8) == u32::from(VERSION)
            && crc32c::crc32c(&bytes[16..]) == u32_at(bytes, 12)
            && u32_at(bytes, 60) as usize == BLOCK_BYTES;
        let checkpoint = Checkpoint {
            id: CheckpointId {
                slot: Slot(u64_at(bytes, 16)),
                digest: u64_at(bytes, 24),
                cluster: u64_at(bytes, 32),
            },
            blocks: u64_at(bytes, 40),
            bytes: u64_at(bytes, 48),
            crc: u32_at(bytes, 56),
            log_from: Slot(u64_at(bytes, 64)),
        };
        // Every block but the last is full.
        let full = checkpoint.blocks.checked_sub(1)?.checked_mul(BLOCK_PAYLOAD_BYTES as u64)?;
        let rest = checkpoint.bytes.checked_sub(full)?;
        (whole && rest <= BLOCK_PAYLOAD_BYTES as u64).then_some(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> CheckpointId {
        CheckpointId { slot: Slot(77), digest: 0x1234_5678, cluster: 9 }
    }

    #[test]
    fn every_flipped_bit_of_a_block_and_of_a_certificate_is_noticed() {
        let payload = b"the last block may be short";
        let header = Progress::new(id()).header(payload, true);
        let mut block = header.encode().to_vec();
        block.extend_from_slice(payload);
        assert_eq!(Progress::new(id()).take(&block), Ok(header));
        for bit in 0..block.len() * 8 {
            let mut flipped = block.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Progress::new(id()).take(&flipped).is_err(), "bit {bit}");
        }
        let checkpoint =
            Checkpoint { id: id(), blocks: 3, bytes: 140_000, crc: 5, log_from: Slot(3) };
        let bytes = Certificate::encode(&checkpoint);
        assert_eq!(Certificate::decode(&bytes), Some(checkpoint));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Certificate::decode(&flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn a_block_is_taken_in_its_place_only() {
        let payload = vec![7; BLOCK_PAYLOAD_BYTES];
        let mut progress = Progress::new(id());
        let mut first = progress.header(&payload, false).encode().to_vec();
        first.extend_from_slice(&payload);
        progress.take(&first).unwrap();
        assert_eq!(progress.take(&first), Err("another block is in its place"));
        let mut other = Progress { crc: 1, ..progress }.header(b"x", true).encode().to_vec();
        other.push(b'x');
        assert_eq!(progress.take(&other), Err("it continues another image"));
        let elsewhere = CheckpointId { digest: 1, ..id() };
        let mut foreign =
            Progress { id: elsewhere, ..progress }.header(b"x", true).encode().to_vec();
        foreign.push(b'x');
        assert_eq!(progress.take(&foreign), Err("it belongs to another checkpoint"));
    }
}
