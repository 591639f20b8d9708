//! The superblock: whose log this is and where its durable part ended when it was last written.
//!
//! It is the only thing in a log that is ever overwritten, so it is kept twice, in two copies of
//! [`COPY_BYTES`] in one area. A change writes and persists one, then the other: at any moment one
//! of them is whole, and at rest either alone is enough. The one that was read is written last,
//! since the other may have been left torn by a crash in the middle of such a change.

use crate::api::{Boot, Identity, MediumKind};
use crate::error::{OpenError, is_lost};
use crate::format::{
    FORMAT_VERSION, FORMAT_VERSION_MIN, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, STATED_MAX,
    WORD_BYTES, u32_at, u64_at,
};
use crate::medium::{Area, Medium};
use bytes::Bytes;
use quorate_consensus::{Incarnation, NodeId};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The name of the area.
pub(crate) const NAME: &str = "superblock";
/// The name while it is being made; means nothing after a crash.
pub(crate) const NAME_UNFINISHED: &str = "superblock.new";
/// The size of one of the two copies.
const COPY_BYTES: usize = 32 << 10;
const COPIES: u64 = 2;
/// Where the genesis document begins in a copy.
const GENESIS_OFFSET: usize = 128;
/// The largest genesis document.
pub(crate) const GENESIS_BYTES_MAX: usize = COPY_BYTES - GENESIS_OFFSET;

const MAGIC: [u8; 8] = *b"QUORLOG\0";

/// What the superblock says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Superblock {
    /// Grows with each writing; the newer copy wins.
    pub(crate) generation: u64,
    pub(crate) node: NodeId,
    pub(crate) kind: MediumKind,
    pub(crate) alignment: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) incarnation: Incarnation,
    /// The number of the last opening.
    pub(crate) epoch: u32,
    /// Where the log ended when that opening began: no older record counts from here on.
    pub(crate) opened_at: u64,
    /// All below was durable when this was written.
    pub(crate) durable: u64,
    /// Segments with lower numbers were trimmed.
    pub(crate) first_segment: u64,
    /// The life of the machine in which the log was made, if the medium ends with it. Never changed:
    /// who came into another life without its end stays without it.
    pub(crate) boot: Boot,
    pub(crate) genesis: Option<Bytes>,
}

/// Why a copy is not taken.
#[derive(PartialEq, Eq, Debug)]
enum Unreadable {
    Damaged,
    Version(u32),
}

impl Superblock {
    pub(crate) fn identity(&self) -> Identity {
        let Self { node, incarnation, genesis, .. } = self;
        Identity { node: *node, incarnation: *incarnation, genesis: genesis.clone() }
    }

    fn encode(&self) -> Vec<u8> {
        let genesis = self.genesis.as_deref().unwrap_or_default();
        let mut bytes = vec![0; GENESIS_OFFSET + genesis.len()];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..26].copy_from_slice(&self.node.0.to_le_bytes());
        bytes[26] = match self.kind {
            MediumKind::File => 1,
            MediumKind::Emulated => 2,
            MediumKind::Memory => 3,
            MediumKind::Dax => 4,
        };
        bytes[27] = u8::from(self.genesis.is_some());
        bytes[28..32].copy_from_slice(&(self.alignment as u32).to_le_bytes());
        bytes[32..40].copy_from_slice(&self.incarnation.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.segment_bytes.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.durable.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.opened_at.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.first_segment.to_le_bytes());
        bytes[72..76].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[76..80].copy_from_slice(&(genesis.len() as u32).to_le_bytes());
        bytes[80..96].copy_from_slice(&self.boot.0.to_le_bytes());
        bytes[GENESIS_OFFSET..].copy_from_slice(genesis);
        let checksum = crc32c::crc32c(&bytes[16..]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        if bytes.len() < GENESIS_OFFSET || bytes[0..8] != MAGIC {
            return Err(Unreadable::Damaged);
        }
        let genesis_bytes = u32_at(bytes, 76) as usize;
        let used = bytes.get(16..GENESIS_OFFSET + genesis_bytes.min(GENESIS_BYTES_MAX));
        let whole = used.is_some_and(|used| crc32c::crc32c(used) == u32_at(bytes, 12));
        let version = u32_at(bytes, 8);
        // The magic number, the version and this checksum stay where they are in every version. A
        // version that fails the checksum is believed too, if it is near: a later layout may have
        // its length elsewhere.
        let known = (FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&version);
        if !known && (whole || version.abs_diff(FORMAT_VERSION) < 1000) {
            return Err(Unreadable::Version(version));
        }
        if !whole {
            return Err(Unreadable::Damaged);
        }
        let kind = match bytes[26] {
            1 => MediumKind::File,
            2 => MediumKind::Emulated,
            3 => MediumKind::Memory,
            4 => MediumKind::Dax,
            _ => return Err(Unreadable::Damaged),
        };
        // The first version has zeros there, if anything.
        let boot = u128::from(u64_at(bytes, 88)) << 64 | u128::from(u64_at(bytes, 80));
        let boot = Boot(if version == FORMAT_VERSION_MIN { 0 } else { boot });
        let genesis = &bytes[GENESIS_OFFSET..GENESIS_OFFSET + genesis_bytes.min(GENESIS_BYTES_MAX)];
        let superblock = Self {
            generation: u64_at(bytes, 16),
            node: NodeId(u16::from_le_bytes([bytes[24], bytes[25]])),
            kind,
            alignment: u64::from(u32_at(bytes, 28)),
            segment_bytes: u64_at(bytes, 40),
            incarnation: Incarnation(u64_at(bytes, 32)),
            epoch: u32_at(bytes, 72),
            opened_at: u64_at(bytes, 56),
            durable: u64_at(bytes, 48),
            first_segment: u64_at(bytes, 64),
            boot,
            genesis: (bytes[27] == 1).then(|| Bytes::copy_from_slice(genesis)),
        };
        if superblock.agrees() { Ok(superblock) } else { Err(Unreadable::Damaged) }
    }

    /// Whether the fields are ones that a log was formatted with or came to: what is computed from
    /// them does not overflow, and no file has to be larger than a segment may be.
    fn agrees(&self) -> bool {
        let Self { alignment, segment_bytes, .. } = *self;
        (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes)
            && alignment.is_power_of_two()
            && (WORD_BYTES..=SEGMENT_BYTES_MIN / 2).contains(&alignment)
            && segment_bytes.is_multiple_of(alignment)
            && (1..STATED_MAX / segment_bytes).contains(&self.first_segment)
            && self.durable < STATED_MAX
            && self.opened_at < STATED_MAX
    }
}

/// The superblock and where it is kept.
#[derive(Debug)]
pub(crate) struct SuperblockStore {
    area: Arc<dyn Area>,
    /// The copy that is known to be whole; the other may not be.
    whole_copy: u64,
    pub(crate) current: Superblock,
}

impl SuperblockStore {
    /// Writes the first superblock of a log. It appears under its name only when it is whole.
    pub(crate) fn create(medium: &dyn Medium, superblock: Superblock) -> io::Result<Self> {
        let area = medium.create(NAME_UNFINISHED, COPY_BYTES as u64 * COPIES)?;
        let mut store = Self { area, whole_copy: 1, current: superblock };
        store.write()?;
        medium.rename(NAME_UNFINISHED, NAME)?;
        Ok(store)
    }

    /// Reads it; the newer of two whole copies wins.
    pub(crate) fn open(medium: &dyn Medium) -> Result<Self, OpenError> {
        let path = medium.path(NAME);
        let refused = |source| OpenError::Io { action: "read", path: path.clone(), source };
        let area = medium.open(NAME).map_err(refused)?;
        let mut newest: Option<(u64, Superblock)> = None;
        let mut version = None;
        for copy in 0..COPIES {
            let start = copy * COPY_BYTES as u64;
            let length = area.bytes().saturating_sub(start).min(COPY_BYTES as u64);
            let mut bytes = vec![0; length as usize];
            match area.read(start, &mut bytes) {
                // The other copy is there for this.
                Err(error) if is_lost(&error) => bytes.fill(0),
                read => read.map_err(refused)?,
            }
            match Superblock::decode(&bytes) {
                Ok(found)
                    if newest.as_ref().is_none_or(|(_, n)| n.generation < found.generation) =>
                {
                    newest = Some((copy, found));
                }
                Ok(_) | Err(Unreadable::Damaged) => {}
                Err(Unreadable::Version(found)) => version = Some(found),
            }
        }
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        match (newest, version) {
            (Some((whole_copy, current)), _) => Ok(Self { area, whole_copy, current }),
            (None, Some(found)) => {
                Err(OpenError::UnknownVersion { directory, found, readable: FORMAT_VERSION })
            }
            (None, None) => Err(OpenError::SuperblockDamaged {
                path: path.clone(),
                what: "neither copy of the superblock is whole",
            }),
        }
    }

    /// Makes durable what was found. A process that died may have left it seen and not durable, and
    /// from now on files go, and copies are overwritten, because of what it says.
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.area.adopt(0, self.area.bytes().min(COPY_BYTES as u64 * COPIES))
    }

    /// Makes `current` durable: one copy after the other, the whole one last.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        // Nobody writes so often; if someone forges it, the first whole copy will do.
        self.current.generation = self.current.generation.saturating_add(1);
        let bytes = self.current.encode();
        let last = self.whole_copy;
        for copy in [COPIES - 1 - last, last] {
            let start = copy * COPY_BYTES as u64;
            self.area.write(start, &bytes)?;
            self.area.persist(start, bytes.len() as u64)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::medium::MappedMedium;

    fn superblock() -> Superblock {
        Superblock {
            generation: 4,
            node: NodeId(3),
            kind: MediumKind::Memory,
            alignment: 8,
            segment_bytes: 1 << 20,
            incarnation: Incarnation(0x1234_5678_9abc_def0),
            epoch: 7,
            opened_at: 5_000_000,
            durable: 6_000_000,
            first_segment: 4,
            boot: Boot(0x0123_4567_89ab_cdef_0fed_cba9_8765_4321),
            genesis: Some(Bytes::from_static(b"founded by three")),
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let whole = superblock().encode();
        assert_eq!(Superblock::decode(&whole), Ok(superblock()));
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&bytes).is_err(), "bit {bit}");
        }
        for length in 0..whole.len() {
            assert!(Superblock::decode(&whole[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn a_superblock_of_the_first_version_names_no_boot() {
        let mut bytes = superblock().encode();
        bytes[8] = 1;
        assert_eq!(Superblock::decode(&bytes), Ok(Superblock { boot: Boot(0), ..superblock() }));
    }

    #[test]
    fn fields_that_no_log_has_are_refused_whatever_their_checksum_says() {
        let refused: [fn(&mut Superblock); 9] = [
            |superblock| superblock.alignment = 0,
            |superblock| superblock.alignment = 24,
            |superblock| superblock.alignment = 1 << 20,
            |superblock| superblock.segment_bytes = 0,
            |superblock| superblock.segment_bytes = 5 << 40,
            |superblock| superblock.first_segment = 0,
            |superblock| superblock.first_segment = 1 << 44,
            |superblock| superblock.durable = u64::MAX,
            |superblock| superblock.opened_at = u64::MAX,
        ];
        for (index, forge) in refused.iter().enumerate() {
            let mut superblock = superblock();
            forge(&mut superblock);
            assert_eq!(
                Superblock::decode(&superblock.encode()),
                Err(Unreadable::Damaged),
                "{index}"
            );
        }
    }

    #[test]
    fn one_damaged_copy_is_survived_and_two_are_refused() {
        let medium = MappedMedium::memory();
        let mut store = SuperblockStore::create(&medium, superblock()).unwrap();
        store.current.durable += 1;
        store.write().unwrap();
        let expected = store.current.clone();
        let area = medium.open(NAME).unwrap();
        for copy in 0..COPIES {
            let mut saved = [0; 8];
            area.read(copy * COPY_BYTES as u64 + 48, &mut saved).unwrap();
            area.write(copy * COPY_BYTES as u64 + 48, &[0xff; 8]).unwrap();
            assert_eq!(SuperblockStore::open(&medium).unwrap().current, expected);
            area.write(copy * COPY_BYTES as u64 + 48, &saved).unwrap();
        }
        area.write(48, &[0xff; 8]).unwrap();
        area.write(COPY_BYTES as u64 + 48, &[0xff; 8]).unwrap();
        let refused = SuperblockStore::open(&medium).unwrap_err();
        assert!(matches!(refused, OpenError::SuperblockDamaged { .. }), "{refused}");
    }

    #[test]
    fn another_version_is_named() {
        let medium = MappedMedium::memory();
        let _store = SuperblockStore::create(&medium, superblock()).unwrap();
        let area = medium.open(NAME).unwrap();
        for copy in 0..COPIES {
            let mut word = [0; 8];
            area.read(copy * COPY_BYTES as u64 + 8, &mut word).unwrap();
            word[0] = 9;
            area.write(copy * COPY_BYTES as u64 + 8, &word).unwrap();
        }
        let refused = SuperblockStore::open(&medium).unwrap_err();
        assert!(matches!(refused, OpenError::UnknownVersion { found: 9, .. }), "{refused}");
    }
}
