//! Changes to inputs, for the driver without coverage. Repeatable from a seed.

use quorate_transport::integrity::Randomness;

/// Inputs stay shorter than this, in bytes.
const INPUT_BYTES_MAX: usize = 16 << 10;
/// Changes made to one input at the most.
const CHANGES_MAX: u64 = 6;

/// Numbers at which programs go wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Makes new inputs from old ones.
#[derive(Debug)]
pub struct Mutator {
    random: Randomness,
}

impl Mutator {
    /// The same seed makes the same changes.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { random: Randomness::new(seed) }
    }

    /// An input made from one or two of `pool`.
    pub fn next(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.pick(pool).to_vec();
        for _ in 0..=self.random.below(CHANGES_MAX) {
            self.change(&mut input, pool);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn pick<'p>(&mut self, pool: &'p [Vec<u8>]) -> &'p [u8] {
        let index = self.below(pool.len());
        pool.get(index).map_or(&[], Vec::as_slice)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound as u64) as usize
    }

    fn change(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let room = input.len() - at;
        match self.random.below(10) {
            0 if room > 0 => input[at] ^= 1 << self.random.below(8),
            1 if room > 0 => input[at] = self.random.word() as u8,
            2 => self.put_number(input, at),
            3 => input.truncate(at),
            4 => drop(input.drain(at..at + self.below(room.min(64) + 1))),
            5 => {
                let piece: Vec<u8> =
                    (0..self.below(32)).map(|_| self.random.word() as u8).collect();
                input.splice(at..at, piece);
            }
            // A piece of the input itself, again or somewhere else.
            6 => {
                let from = self.below(input.len() + 1);
                let length = self.below((input.len() - from).min(256) + 1);
                let piece = input[from..from + length].to_vec();
                let over = if self.random.below(2) == 0 { 0 } else { length.min(room) };
                input.splice(at..at + over, piece);
            }
            // The end of another input.
            7 => {
                let other = self.pick(pool).to_vec();
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            8 if room > 0 => {
                let by = 1 + self.random.below(16) as u8;
                let up = self.random.below(2) == 0;
                input[at] =
                    if up { input[at].wrapping_add(by) } else { input[at].wrapping_sub(by) };
            }
            _ => self.put_number(input, at),
        }
    }

    /// A number at an edge over one, two, four or eight bytes, in either order: a length, a count.
    fn put_number(&mut self, input: &mut [u8], at: usize) {
        let width = 1 << self.random.below(4);
        let near = self.random.below(3).wrapping_sub(1);
        let number = EDGES[self.below(EDGES.len())].wrapping_add(near);
        let mut bytes = number.to_le_bytes();
        if self.random.below(4) == 0 {
            bytes[..width].reverse();
        }
        crate::input::overwrite(input, at, &bytes[..width]);
    }
}
