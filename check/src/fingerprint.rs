//! 128-bit fingerprints with a fixed seed, so that two runs visit the same configurations in the
//! same order on every machine.

use std::hash::{BuildHasher, Hash, Hasher};

/// Two independent 64-bit lanes, each a multiply-and-fold over 8-byte words.
#[derive(Clone, Debug)]
struct Lanes {
    a: u64,
    b: u64,
}

// Odd constants with about as many ones as zeros; digits of pi and e.
const SEED_A: u64 = 0x243F_6A88_85A3_08D3;
const SEED_B: u64 = 0xB7E1_5162_8AED_2A6B;
const MULTIPLY_A: u64 = 0x9E37_79B9_7F4A_7C15;
const MULTIPLY_B: u64 = 0xC2B2_AE3D_27D4_EB4F;

impl Lanes {
    fn word(&mut self, word: u64) {
        self.a = fold(self.a ^ word, MULTIPLY_A);
        self.b = fold(self.b.rotate_left(29) ^ word, MULTIPLY_B) ^ word;
    }
}

impl Hasher for Lanes {
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
        let rest = chunks.remainder();
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        // The length keeps "a" and "a\0" apart.
        self.word(u64::from_le_bytes(word) ^ (bytes.len() as u64) << 56);
    }

    fn write_u64(&mut self, word: u64) {
        self.word(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.word(word as u64);
    }

    fn finish(&self) -> u64 {
        self.a
    }
}

/// The fingerprint of a state.
pub(crate) fn of<T: Hash>(value: &T) -> u128 {
    let mut lanes = Lanes { a: SEED_A, b: SEED_B };
    value.hash(&mut lanes);
    u128::from(scramble(lanes.a)) << 64 | u128::from(scramble(lanes.b))
}

/// The fingerprint of one operation in a set: the fingerprint of a set is the exclusive or of its
/// members' (Zobrist), so that adding and removing one are the same cheap step.
pub(crate) fn member(index: u32) -> u128 {
    let high = scramble(SEED_A ^ u64::from(index).wrapping_mul(MULTIPLY_A));
    let low = scramble(SEED_B ^ u64::from(index).wrapping_mul(MULTIPLY_B));
    u128::from(high) << 64 | u128::from(low)
}

/// The next number of a SplitMix64 sequence (Steele, Lea, Flood 2014), the state in place.
pub(crate) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(MULTIPLY_A);
    scramble(*state)
}

fn scramble(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ ((wide >> 64) as u64)
}

/// Lets a hash table use a fingerprint as its own hash.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u128(&mut self, fingerprint: u128) {
        self.0 = fingerprint as u64 ^ (fingerprint >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl BuildHasher for AsIs {
    type Hasher = AsIs;

    fn build_hasher(&self) -> AsIs {
        AsIs(0)
    }
}
