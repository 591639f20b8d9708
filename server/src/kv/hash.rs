//! A 64-bit hash that is the same on every machine and in every version: the layout of the buckets
//! and the digests of checkpoints rest on it.
//!
//! The mixing step is a folded 64 × 64 → 128 bit multiplication, as in wyhash. It is no defence
//! against keys chosen to collide, and needs none: buckets are sorted, so that a collision costs a
//! comparison and not a walk.

const MULTIPLIER_A: u64 = 0xa076_1d64_78bd_642f;
const MULTIPLIER_B: u64 = 0xe703_7ed1_a0b4_28db;

/// Multiplies into 128 bits and folds the halves.
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Hashes `bytes` under a seed.
pub(super) fn hash(bytes: &[u8], seed: u64) -> u64 {
    let mut state = mix(seed ^ MULTIPLIER_A, MULTIPLIER_B ^ bytes.len() as u64);
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        state = mix(state ^ u64::from_le_bytes(*word), MULTIPLIER_A).rotate_left(23) ^ MULTIPLIER_B;
    }
    let mut last = [0u8; 8];
    last[..tail.len()].copy_from_slice(tail);
    mix(mix(state ^ u64::from_le_bytes(last), MULTIPLIER_B) ^ MULTIPLIER_A, MULTIPLIER_B | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_fixed_by_the_format() {
        let golden = [hash(b"", 0), hash(b"key", 0), hash(b"0123456789", 7)];
        assert_eq!(golden, GOLDEN, "{golden:#x?}");
    }

    const GOLDEN: [u64; 3] = [0x860a_f8d4_04c1_538a, 0xe19e_f74d_8c71_aaa9, 0xba7b_34ae_6e9c_d45d];

    #[test]
    fn numbered_keys_spread_over_the_high_bits() {
        let mut counts = [0u32; 256];
        for i in 0..25_600 {
            counts[(hash(format!("key:{i:012}").as_bytes(), 0) >> 56) as usize] += 1;
        }
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(least > Some(&50) && most < Some(&160), "{least:?} {most:?}");
    }
}
