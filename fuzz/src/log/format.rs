//! The format of the log as `docs/log-format.md` has it, written a second time: an oracle that
//! shares no code with what it judges, and what seals forged headers.

use super::{LIFE, SEGMENT_BYTES};
use crate::medium::Image;
use quorate_consensus::{Ballot, Slot};

pub(super) const HEADER_BYTES: usize = 64;
pub(super) const COPY_BYTES: usize = 32 << 10;
const GENESIS_OFFSET: usize = 128;

/// A header of a record whose checksum matches.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) offset: usize,
    /// Of the record in the log.
    pub(super) position: u64,
    /// Of header and payload, in bytes.
    pub(super) length: usize,
    pub(super) is_entry: bool,
    pub(super) slot: Slot,
    pub(super) ballot: Ballot,
    pub(super) promised: Ballot,
    pub(super) durable: u64,
    pub(super) value_checksum: u32,
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// The number in the name of a segment.
pub(super) fn number(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("segment-")?, 16).ok()
}

/// CRC-32C over incarnation, position and bytes.
pub(super) fn checksum(position: u64, bytes: &[u8]) -> u32 {
    let seed = [LIFE.0.to_le_bytes(), position.to_le_bytes()].concat();
    crc32c::crc32c_append(crc32c::crc32c(&seed), bytes)
}

/// Every record's header in the image, by position; old ones that no longer count included.
pub(super) fn headers(image: &Image) -> Vec<Found> {
    let mut found = Vec::new();
    for (name, bytes) in image {
        let Some(number) = number(name) else { continue };
        for offset in (0..bytes.len().saturating_sub(HEADER_BYTES - 1)).step_by(8) {
            let position = number.saturating_mul(SEGMENT_BYTES).saturating_add(offset as u64);
            found.extend(header(name, &bytes[offset..offset + HEADER_BYTES], offset, position));
        }
    }
    found.sort_by_key(|header| header.position);
    found
}

fn header(name: &str, bytes: &[u8], offset: usize, position: u64) -> Option<Found> {
    if !bytes.starts_with(b"QREC") || u32_at(bytes, 4) != checksum(position, &bytes[8..]) {
        return None;
    }
    let payload = u32_at(bytes, 12) as usize;
    Some(Found {
        name: name.to_owned(),
        offset,
        position,
        length: HEADER_BYTES + payload.next_multiple_of(8),
        is_entry: bytes[8] == 2,
        slot: Slot(u64_at(bytes, 16)),
        ballot: Ballot::unpack(u64_at(bytes, 24)),
        promised: Ballot::unpack(u64_at(bytes, 40)),
        durable: u64_at(bytes, 48),
        value_checksum: u32_at(bytes, 56),
    })
}

/// The whole copies of the superblock, each as the bytes that it uses.
pub(super) fn superblocks(image: &Image) -> Vec<&[u8]> {
    let bytes = image.get("superblock").map_or(&[][..], Vec::as_slice);
    bytes
        .chunks(COPY_BYTES)
        .filter_map(|copy| {
            let genesis = copy.get(76..80).map(|_| u32_at(copy, 76) as usize)?;
            let used = copy.get(..GENESIS_OFFSET + genesis.min(COPY_BYTES - GENESIS_OFFSET))?;
            let whole = used.starts_with(b"QUORLOG\0")
                && u32_at(used, 8) == 1
                && u32_at(used, 12) == crc32c::crc32c(&used[16..]);
            whole.then_some(used)
        })
        .collect()
}

/// Up to where all was durable once, as anything that is left says.
pub(super) fn proof(image: &Image) -> u64 {
    let stated = headers(image).into_iter().map(|header| header.durable);
    let sealed = superblocks(image).into_iter().map(|copy| u64_at(copy, 48));
    let begun = image.iter().filter_map(|(name, bytes)| {
        let position = number(name)?.checked_mul(SEGMENT_BYTES)?;
        let whole = bytes.len() >= HEADER_BYTES
            && bytes.starts_with(b"QLOGSEG\0\x01\0\0\0")
            && u32_at(bytes, 12) == checksum(position, &bytes[16..HEADER_BYTES]);
        whole.then(|| u64_at(bytes, 24))
    });
    stated.chain(sealed).chain(begun).max().unwrap_or(0)
}
