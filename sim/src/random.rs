//! The only source of chance: one word of seed, split into streams that do not disturb each other.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

/// One in full probability, as [`Random::chance`] counts.
pub(crate) const CERTAIN: u64 = 1_000_000;

impl Random {
    /// The stream of `seed`.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x7c15_a3f1_90e2_b54d))
    }

    /// A stream of its own for `purpose`: what one part of a run draws does not move another part.
    #[must_use]
    pub(crate) fn split(seed: u64, purpose: u64) -> Self {
        Self::new(mix(seed).wrapping_add(mix(purpose ^ 0x5151_dead_0000_beef)))
    }

    /// The next word.
    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 to `bound` exclusive; 0 if `bound` is.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64 }
    }

    /// From `low` to `high`, both inclusive.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True in `parts` of a million cases.
    pub(crate) fn chance(&mut self, parts: u64) -> bool {
        self.below(CERTAIN) < parts
    }

    /// One of `choices`, which are some.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Exponentially distributed around `mean`, cut at twelve times that.
    pub(crate) fn exponential(&mut self, mean: u64) -> u64 {
        // -ln(u) by the position of the highest bit, and a straight line within it: exact enough,
        // and the same on every machine, which the library's logarithm need not be.
        let word = self.word() | 1;
        let zeros = u64::from(word.leading_zeros());
        let fraction = (word << zeros << 1) >> 44;
        let log2 = ((zeros + 1) << 20) - fraction;
        let scaled = (u128::from(mean) * u128::from(log2) * 726_817) >> 40;
        (scaled as u64).min(mean.saturating_mul(12))
    }

    /// Puts `items` into a random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.below(index as u64 + 1) as usize);
        }
    }
}

/// The finaliser of SplitMix64: a difference anywhere changes all bits.
#[must_use]
pub(crate) fn mix(word: u64) -> u64 {
    let mut z = word;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_waits_have_the_mean_that_was_asked_for() {
        let mut random = Random::new(7);
        let total: u64 = (0..20_000).map(|_| random.exponential(1_000)).sum();
        let mean = total / 20_000;
        assert!((900..1_100).contains(&mean), "{mean}");
    }
}
