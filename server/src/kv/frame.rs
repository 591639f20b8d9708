//! Varints and length-prefixed frames: the only two shapes that the binary encodings are made of.
//!
//! A varint is LEB128 of a `u64`: seven bits a byte, least significant first. A frame is a varint length and that many
//! bytes. Every `take_*` function is total: it answers `None` on truncated or overlong input and never panics.

use bytes::{BufMut, BytesMut};

/// The most bytes that one varint takes.
const MAX_VARINT_BYTES: usize = 10;

/// Appends `value`.
pub fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value as u8) | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Appends a signed value, zigzag, so that small negative numbers stay short.
pub fn put_signed(out: &mut BytesMut, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a length and the bytes.
pub fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Appends a frame whose content `write` appends: the length goes in front once it is known.
///
/// Contents below 128 bytes, the common case, are written in place; longer ones are moved by the few bytes that their
/// length needs.
pub fn put_framed(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u8(0);
    write(out);
    let length = out.len() - start - 1;
    let width = varint_width(length as u64);
    if width > 1 {
        out.put_bytes(0, width - 1);
        out.copy_within(start + 1..start + 1 + length, start + width);
    }
    let mut rest = length as u64;
    for byte in &mut out[start..start + width - 1] {
        *byte = (rest as u8) | 0x80;
        rest >>= 7;
    }
    out[start + width - 1] = rest as u8;
}

/// Takes a varint off the front of `input`.
pub fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (index, &byte) in input.iter().take(MAX_VARINT_BYTES).enumerate() {
        let bits = u64::from(byte & 0x7f);
        // The tenth byte holds the sixty-fourth bit alone.
        if index == MAX_VARINT_BYTES - 1 && bits > 1 {
            return None;
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            *input = &input[index + 1..];
            return Some(value);
        }
    }
    None
}

/// Takes a signed (zigzag) varint.
pub fn take_signed(input: &mut &[u8]) -> Option<i64> {
    let raw = take_varint(input)?;
    Some(((raw >> 1) as i64) ^ -((raw & 1) as i64))
}

/// Takes one byte.
pub fn take_byte(input: &mut &[u8]) -> Option<u8> {
    let (&first, rest) = input.split_first()?;
    *input = rest;
    Some(first)
}

/// Takes a frame: the bytes behind a length, borrowed.
pub fn take_bytes<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut rest = *input;
    let length = usize::try_from(take_varint(&mut rest)?).ok()?;
    let (bytes, rest) = rest.split_at_checked(length)?;
    *input = rest;
    Some(bytes)
}

fn varint_width(value: u64) -> usize {
    let bits = (64 - value.leading_zeros()).max(1) as usize;
    bits.div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn truncated_and_overlong_varints_are_refused() {
        assert_eq!(take_varint(&mut &[0x80u8, 0x80][..]), None);
        assert_eq!(take_varint(&mut &[0xffu8; 10][..]), None);
        assert_eq!(take_bytes(&mut &[5u8, 1, 2][..]), None);
        let mut largest = BytesMut::new();
        put_varint(&mut largest, u64::MAX);
        assert_eq!(take_varint(&mut &largest[..]), Some(u64::MAX));
    }

    proptest! {
        #[test]
        fn what_was_put_is_taken(value: u64, signed: i64, body in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            put_signed(&mut out, signed);
            put_framed(&mut out, |out| out.put_slice(&body));
            put_bytes(&mut out, &body);
            let mut input = &out[..];
            prop_assert_eq!(take_varint(&mut input), Some(value));
            prop_assert_eq!(take_signed(&mut input), Some(signed));
            prop_assert_eq!(take_bytes(&mut input), Some(&body[..]));
            prop_assert_eq!(take_bytes(&mut input), Some(&body[..]));
            prop_assert!(input.is_empty());
        }
    }
}
