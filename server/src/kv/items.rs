//! Lists of byte strings, without an allocation of their own: the arguments of a request as it was parsed, and the
//! packed list inside an encoded command.

use super::frame::{put_bytes, put_varint, take_bytes, take_varint};
use bytes::{BufMut, BytesMut};

/// Where one argument lies in the buffer that holds its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset behind the last byte.
    pub end: u32,
}

/// The arguments of one request: spans over the buffer that it was read into.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// Arguments over `bytes`; every span lies inside it.
    pub fn new(bytes: &'a [u8], spans: &'a [Span]) -> Self {
        debug_assert!(spans.iter().all(|s| s.start <= s.end && s.end as usize <= bytes.len()));
        Args { bytes, spans }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The argument at `index`, which must be below [`Args::len`].
    pub fn at(&self, index: usize) -> &'a [u8] {
        let span = self.spans[index];
        &self.bytes[span.start as usize..span.end as usize]
    }

    /// The argument at `index`, if there is one.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        (index < self.len()).then(|| self.at(index))
    }

    /// The arguments from `index` on.
    pub fn from(&self, index: usize) -> Args<'a> {
        Args { bytes: self.bytes, spans: self.spans.get(index..).unwrap_or(&[]) }
    }

    /// The arguments in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.bytes;
        self.spans.iter().map(move |span| &bytes[span.start as usize..span.end as usize])
    }

    /// The sum of their lengths, in bytes.
    pub fn total_bytes(&self) -> usize {
        self.spans.iter().map(|span| (span.end - span.start) as usize).sum()
    }
}

/// A list of byte strings inside a command: either still the arguments of a request, or packed.
#[derive(Clone, Copy, Debug)]
pub enum Items<'a> {
    /// As parsed from a client's request.
    Args(Args<'a>),
    /// As it lies in an encoded command.
    Packed {
        /// How many items follow.
        count: usize,
        /// The items back to back, each a varint length and its bytes.
        bytes: &'a [u8],
    },
}

impl<'a> Items<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Items::Args(args) => args.len(),
            Items::Packed { count, .. } => *count,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The items in order.
    pub fn iter(&self) -> ItemsIter<'a> {
        match *self {
            Items::Args(args) => ItemsIter { args, packed: &[] },
            Items::Packed { bytes, .. } => {
                ItemsIter { args: Args { bytes: &[], spans: &[] }, packed: bytes }
            }
        }
    }

    /// The items two by two; an odd last one is left out.
    pub fn pairs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut items = self.iter();
        std::iter::from_fn(move || Some((items.next()?, items.next()?)))
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        put_varint(out, self.len() as u64);
        match self {
            Items::Args(args) => args.iter().for_each(|item| put_bytes(out, item)),
            Items::Packed { bytes, .. } => out.put_slice(bytes),
        }
    }

    /// Takes a list off the front of `input` and checks that every item is there.
    pub(super) fn take(input: &mut &'a [u8]) -> Option<Items<'a>> {
        let count = usize::try_from(take_varint(input)?).ok()?;
        let bytes = *input;
        for _ in 0..count {
            take_bytes(input)?;
        }
        Some(Items::Packed { count, bytes: &bytes[..bytes.len() - input.len()] })
    }
}

/// Iterates over [`Items`].
#[derive(Clone, Debug)]
pub struct ItemsIter<'a> {
    args: Args<'a>,
    packed: &'a [u8],
}

impl<'a> Iterator for ItemsIter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if let Some((span, rest)) = self.args.spans.split_first() {
            self.args.spans = rest;
            return Some(&self.args.bytes[span.start as usize..span.end as usize]);
        }
        take_bytes(&mut self.packed)
    }
}
