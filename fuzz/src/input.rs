//! The bytes of the fuzzer, read as a script: whatever they are, they mean something.

/// Takes numbers and pieces off the front; zeros when nothing is left.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// Reads `data` from its first byte.
    #[must_use]
    pub const fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// Whether everything was taken.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes, little endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Eight bytes, little endian.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number in `0..bound`, which is not 0, from two bytes.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.u16()) % bound
    }

    /// A number that is often at an edge: what fields of records and messages are forged with.
    pub fn edge(&mut self) -> u64 {
        let small = u64::from(self.u8());
        match self.u8() % 8 {
            0 => small,
            1 => u64::MAX - small,
            2 => (1 << 63) - 128 + small,
            3 => (1 << 32) - 128 + small,
            4 => (1 << 16) - 128 + small,
            5 => 1 << (small % 64),
            _ => self.u64(),
        }
    }

    /// Up to `length` bytes.
    pub fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        bytes
    }

    /// A piece whose length, below 2048, stands before it in two bytes.
    pub fn piece(&mut self) -> &'a [u8] {
        let length = self.below(2048);
        self.bytes(length)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let bytes = self.bytes(N);
        let mut array = [0; N];
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }
}

/// Appends a piece as [`Input::piece`] reads it: for seeds.
pub fn put_piece(out: &mut Vec<u8>, piece: &[u8]) {
    let piece = &piece[..piece.len().min(2047)];
    out.extend_from_slice(&(piece.len() as u16).to_le_bytes());
    out.extend_from_slice(piece);
}

/// Writes a word over the bytes at `at`, if they are there.
pub(crate) fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + with.len()) {
        place.copy_from_slice(with);
    }
}
