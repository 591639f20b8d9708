//! Replies in a neutral binary encoding: what the store says, before a front end dresses it in a protocol.
//!
//! A reply is a tag byte and its data. An array is a header with its length, followed by that many replies. A reply is
//! therefore a flat run of [`Token`]s, and a front end translates token by token without building a tree.

use super::frame::{
    put_bytes, put_signed, put_varint, take_byte, take_bytes, take_signed, take_varint,
};
use bytes::{BufMut, BytesMut};

const NIL: u8 = 0;
const OK: u8 = 1;
const SIMPLE: u8 = 2;
const INT: u8 = 3;
const BULK: u8 = 4;
const ERROR: u8 = 5;
const ARRAY: u8 = 6;
const NIL_ARRAY: u8 = 7;

/// One token of a reply. An [`Token::Array`] is followed by its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// No value: the key is absent, or a condition was not met.
    Nil,
    /// The plain success.
    Ok,
    /// A short status without line breaks.
    Simple(&'a [u8]),
    /// An integer.
    Int(i64),
    /// A value: any bytes.
    Bulk(&'a [u8]),
    /// An error: its upper-case prefix (`ERR`, …), a space and the text.
    Error(&'a [u8]),
    /// An array of so many replies, which follow.
    Array(u64),
    /// No array: a transaction whose watched keys had changed.
    NilArray,
}

impl<'a> Token<'a> {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut BytesMut) {
        match *self {
            Token::Nil => out.put_u8(NIL),
            Token::Ok => out.put_u8(OK),
            Token::Simple(text) => put_tagged(out, SIMPLE, text),
            Token::Int(value) => {
                out.put_u8(INT);
                put_signed(out, value);
            }
            Token::Bulk(bytes) => put_tagged(out, BULK, bytes),
            Token::Error(text) => put_tagged(out, ERROR, text),
            Token::Array(length) => {
                out.put_u8(ARRAY);
                put_varint(out, length);
            }
            Token::NilArray => out.put_u8(NIL_ARRAY),
        }
    }

    /// Takes one token off the front of `input`, borrowing from it; `None` when the input is malformed.
    pub fn take(input: &mut &'a [u8]) -> Option<Token<'a>> {
        Some(match take_byte(input)? {
            NIL => Token::Nil,
            OK => Token::Ok,
            SIMPLE => Token::Simple(take_bytes(input)?),
            INT => Token::Int(take_signed(input)?),
            BULK => Token::Bulk(take_bytes(input)?),
            ERROR => Token::Error(take_bytes(input)?),
            ARRAY => Token::Array(take_varint(input)?),
            NIL_ARRAY => Token::NilArray,
            _ => return None,
        })
    }
}

/// Takes one whole reply, with all the elements of its arrays, off the front of `input`; `None` when it is malformed.
pub fn take_reply<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let whole = *input;
    let mut rest = whole;
    let mut pending = 1u64;
    while pending > 0 {
        pending -= 1;
        if let Token::Array(length) = Token::take(&mut rest)? {
            pending = pending.checked_add(length)?;
        }
    }
    *input = rest;
    Some(&whole[..whole.len() - rest.len()])
}

fn put_tagged(out: &mut BytesMut, tag: u8, bytes: &[u8]) {
    out.put_u8(tag);
    put_bytes(out, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nested_reply_is_taken_whole() {
        let mut out = BytesMut::new();
        for token in
            [Token::Array(2), Token::Array(1), Token::Bulk(b"x"), Token::Int(-5), Token::Ok]
        {
            token.encode(&mut out);
        }
        let mut input = &out[..];
        let first = take_reply(&mut input).expect("well formed");
        assert_eq!(first.len(), out.len() - 1);
        assert_eq!(Token::take(&mut input), Some(Token::Ok));
        assert!(input.is_empty());
    }

    #[test]
    fn array_that_promises_more_than_it_holds_is_refused() {
        let mut out = BytesMut::new();
        Token::Array(u64::MAX).encode(&mut out);
        Token::Nil.encode(&mut out);
        assert_eq!(take_reply(&mut &out[..]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut input = &bytes[..];
            while take_reply(&mut input).is_some() && !input.is_empty() {}
        }
    }
}
