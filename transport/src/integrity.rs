//! Checksums and mixing functions shared by rings, rows and frames.

use quorate_consensus::Incarnation;

/// CRC-32C (RFC 3720, appendix B.4) of `incarnation` followed by `parts`: bytes of another life of
/// the lane do not match, which is what contract C5 rests on.
#[must_use]
pub fn seeded_crc(incarnation: Incarnation, parts: &[&[u8]]) -> u32 {
    let seed = crc32c::crc32c(&incarnation.0.to_le_bytes());
    parts.iter().fold(seed, |crc, part| crc32c::crc32c_append(crc, part))
}

/// Folds three words into one so that a change of any of them changes about half of the bits: the
/// finalizer of `SplitMix64` (Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", 2014), applied between the words.
#[must_use]
pub const fn mix(a: u64, b: u64, c: u64) -> u64 {
    scramble(scramble(scramble(a).wrapping_add(b)).wrapping_add(c))
}

const fn scramble(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A small generator for jitter and faults: repeatable from its seed, not for secrets.
#[derive(Clone, Debug)]
pub struct Randomness(u64);

impl Randomness {
    /// The same seed gives the same numbers.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scramble(self.0)
    }

    /// A number in `0..bound`; 0 if `bound` is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.word() % bound }
    }
}

/// Reads a little-endian word; the caller has checked that it is there.
pub(crate) fn word32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// Reads a little-endian word; the caller has checked that it is there.
pub(crate) fn word64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
