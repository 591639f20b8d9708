//! Writes replies in RESP2 or RESP3.

use crate::kv::Token;
use bytes::{BufMut, BytesMut};

/// The version of the protocol that a connection speaks (`HELLO`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// RESP2: how every connection begins.
    #[default]
    Resp2,
    /// RESP3: nulls, maps and verbatim strings of their own.
    Resp3,
}

/// Appends replies to a buffer.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut BytesMut,
    protocol: Protocol,
}

impl<'a> Writer<'a> {
    /// A writer at the end of `out`.
    pub fn new(out: &'a mut BytesMut, protocol: Protocol) -> Writer<'a> {
        Writer { out, protocol }
    }

    /// `+OK`.
    pub fn ok(&mut self) {
        self.out.put_slice(b"+OK\r\n");
    }

    /// A status; line ends in it become spaces.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }

    /// An error, its prefix included; line ends in it become spaces.
    pub fn error(&mut self, text: &str) {
        self.line(b'-', text.as_bytes());
    }

    /// An integer.
    pub fn int(&mut self, value: i64) {
        self.number(b':', value);
    }

    /// A byte string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.number(b'$', bytes.len() as i64);
        self.out.put_slice(bytes);
        self.out.put_slice(b"\r\n");
    }

    /// A text for human eyes: a verbatim string in RESP3, so that clients show it as it is.
    pub fn verbatim(&mut self, text: &str) {
        match self.protocol {
            Protocol::Resp2 => self.bulk(text.as_bytes()),
            Protocol::Resp3 => {
                self.number(b'=', text.len() as i64 + 4);
                self.out.put_slice(b"txt:");
                self.out.put_slice(text.as_bytes());
                self.out.put_slice(b"\r\n");
            }
        }
    }

    /// The header of an array: `length` replies follow.
    pub fn array(&mut self, length: usize) {
        self.number(b'*', length as i64);
    }

    /// The header of a map: `length` keys and values follow in turn. A flat array in RESP2.
    pub fn map(&mut self, length: usize) {
        match self.protocol {
            Protocol::Resp2 => self.number(b'*', 2 * length as i64),
            Protocol::Resp3 => self.number(b'%', length as i64),
        }
    }

    /// The header of a set. An array in RESP2.
    pub fn set(&mut self, length: usize) {
        let mark = if self.protocol == Protocol::Resp3 { b'~' } else { b'*' };
        self.number(mark, length as i64);
    }

    /// No value.
    pub fn nil(&mut self) {
        self.null(b"$-1\r\n");
    }

    /// No array.
    pub fn nil_array(&mut self) {
        self.null(b"*-1\r\n");
    }

    /// One token of a neutral reply.
    pub fn token(&mut self, token: Token<'_>) {
        match token {
            Token::Nil => self.nil(),
            Token::Ok => self.ok(),
            Token::Simple(text) => self.line(b'+', text),
            Token::Int(value) => self.int(value),
            Token::Bulk(bytes) => self.bulk(bytes),
            Token::Error(text) => self.line(b'-', text),
            Token::Array(length) => self.array(usize::try_from(length).unwrap_or(usize::MAX)),
            Token::NilArray => self.nil_array(),
        }
    }

    /// A whole neutral reply. `false` when it is malformed; then an error stands in its place.
    pub fn reply(&mut self, reply: &[u8]) -> bool {
        let start = self.out.len();
        let mut rest = reply;
        while !rest.is_empty() {
            match Token::take(&mut rest) {
                Some(token) => self.token(token),
                None => {
                    self.out.truncate(start);
                    self.error("ERR internal error: malformed reply");
                    return false;
                }
            }
        }
        true
    }

    fn null(&mut self, resp2: &[u8]) {
        self.out.put_slice(if self.protocol == Protocol::Resp3 { b"_\r\n" } else { resp2 });
    }

    fn line(&mut self, mark: u8, text: &[u8]) {
        self.out.put_u8(mark);
        self.out.extend(text.iter().map(|b| if matches!(b, b'\r' | b'\n') { b' ' } else { *b }));
        self.out.put_slice(b"\r\n");
    }

    fn number(&mut self, mark: u8, value: i64) {
        // Twenty digits at most, with the sign; filled from the end.
        let mut text = [0u8; 20];
        let mut at = text.len();
        let mut rest = value.unsigned_abs();
        loop {
            at -= 1;
            text[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.out.put_u8(mark);
        if value < 0 {
            self.out.put_u8(b'-');
        }
        self.out.put_slice(&text[at..]);
        self.out.put_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(protocol: Protocol, write: impl FnOnce(&mut Writer<'_>)) -> String {
        let mut out = BytesMut::new();
        write(&mut Writer::new(&mut out, protocol));
        String::from_utf8(out.to_vec()).expect("text")
    }

    #[test]
    fn protocols_differ_in_nulls_maps_and_verbatim_strings() {
        let all = |w: &mut Writer<'_>| {
            w.nil();
            w.nil_array();
            w.map(1);
            w.set(2);
            w.verbatim("hi");
        };
        assert_eq!(write(Protocol::Resp2, all), "$-1\r\n*-1\r\n*2\r\n*2\r\n$2\r\nhi\r\n");
        assert_eq!(write(Protocol::Resp3, all), "_\r\n_\r\n%1\r\n~2\r\n=6\r\ntxt:hi\r\n");
    }

    #[test]
    fn numbers_at_the_ends_of_their_range_are_written() {
        let ends = |w: &mut Writer<'_>| [0, i64::MIN, i64::MAX, -1].map(|v| w.int(v));
        let text = write(Protocol::Resp2, |w| {
            ends(w);
        });
        assert_eq!(text, ":0\r\n:-9223372036854775808\r\n:9223372036854775807\r\n:-1\r\n");
    }

    #[test]
    fn line_end_in_an_error_cannot_smuggle_a_reply() {
        let text = write(Protocol::Resp2, |w| w.error("ERR a\r\n+OK"));
        assert_eq!(text, "-ERR a  +OK\r\n");
    }

    #[test]
    fn malformed_reply_becomes_one_error() {
        let text = write(Protocol::Resp2, |w| assert!(!w.reply(&[6, 2, 1, 99])));
        assert_eq!(text, "-ERR internal error: malformed reply\r\n");
    }
}
