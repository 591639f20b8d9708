//! The request parser of RESP: arrays of bulk strings, and inline commands.
//!
//! It is incremental: a request that arrives in a thousand pieces is looked at once. It does not
//! copy: arguments are spans over the connection's read buffer. And it is total: any bytes are a
//! request, the beginning of one, or a [`ProtocolError`]. Unlike Redis it insists on the line end
//! behind a bulk string, so that a client that lost count is noticed at once.
//!
//! Source: the RESP specification, <https://redis.io/docs/latest/develop/reference/protocol-spec/>,
//! and the error texts of Redis 7.0.

use crate::kv::{Args, Span, parse_integer};

/// The longest line that is waited for: an inline command, or a length.
pub const MAX_LINE_BYTES: usize = 64 * 1024;
/// The most arguments of one request.
pub const MAX_ARGUMENTS: usize = 1024 * 1024;
/// The most bytes of requests that spans (32 bits) can address.
const MAX_ADDRESSABLE_BYTES: usize = 1 << 31;
/// Spans are reserved for so many arguments at most before any of them has arrived.
const RESERVED_ARGUMENTS: usize = 1024;

/// The bounds of the parser, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParserLimits {
    /// The longest argument.
    pub max_bulk_bytes: usize,
    /// The longest request, its framing included.
    pub max_request_bytes: usize,
}

/// A violation of the protocol. The connection is told, and closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum ProtocolError {
    #[error("invalid multibulk length")]
    InvalidArrayLength,
    #[error("invalid bulk length")]
    InvalidBulkLength,
    #[error("too big mbulk count string")]
    ArrayLengthTooLong,
    #[error("too big bulk count string")]
    BulkLengthTooLong,
    #[error("expected '$', got '{0}'")]
    ExpectedBulk(char),
    #[error("expected a line end behind a bulk string")]
    ExpectedLineEnd,
    #[error("too big inline request")]
    InlineTooLong,
    #[error("unbalanced quotes in request")]
    UnbalancedQuotes,
    #[error("request exceeds {0} bytes")]
    RequestTooLong(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the first byte of a request.
    Start,
    /// Inside an array, in front of the `$` of an argument.
    Header { remaining: usize },
    /// Inside an array, in front of the bytes of an argument.
    Body { remaining: usize, length: usize },
}

/// Where the arguments of the request lie that was found last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Buffer,
    /// Inline commands are unquoted into a buffer of their own.
    Inline,
}

/// The state of parsing between two reads of the socket.
#[derive(Debug)]
pub struct Parser {
    limits: ParserLimits,
    state: State,
    /// How far the current request has been looked at, from its first byte.
    position: usize,
    /// How far the current line has been searched for its end.
    searched: usize,
    spans: Vec<Span>,
    inline: Vec<u8>,
    source: Source,
}

impl Parser {
    /// A parser in front of the first request.
    pub fn new(limits: ParserLimits) -> Parser {
        let max_request_bytes = limits.max_request_bytes.min(MAX_ADDRESSABLE_BYTES);
        Parser {
            limits: ParserLimits { max_request_bytes, ..limits },
            state: State::Start,
            position: 0,
            searched: 0,
            spans: Vec::new(),
            inline: Vec::new(),
            source: Source::Buffer,
        }
    }

    /// Looks for the end of the request that begins at `buffer[0]`. Answers its length when it is
    /// complete: then [`Parser::args`] has its arguments (none, if it was empty), and the next call
    /// must begin behind it. Answers `None` when more must be read; then the next call must begin
    /// at the same byte, with more behind.
    pub fn next(&mut self, buffer: &[u8]) -> Result<Option<usize>, ProtocolError> {
        if self.state == State::Start && self.position == 0 {
            self.spans.clear();
            match buffer.first() {
                None => return Ok(None),
                Some(b'*') => {
                    let Some(count) = self.array_length(buffer)? else { return Ok(None) };
                    if count == 0 {
                        return Ok(Some(self.finish(Source::Buffer)));
                    }
                    self.spans.reserve(count.min(RESERVED_ARGUMENTS));
                    self.state = State::Header { remaining: count };
                }
                Some(_) => return self.inline(buffer),
            }
        }
        self.array(buffer)
    }

    /// The arguments of the request that [`Parser::next`] has just found in `buffer`.
    pub fn args<'a>(&'a self, buffer: &'a [u8]) -> Args<'a> {
        let bytes = if self.source == Source::Inline { &self.inline[..] } else { buffer };
        Args::new(bytes, &self.spans)
    }

    /// How many bytes the current request will have at least, counted from its first one: what to
    /// make room for before the next read.
    pub fn expected_bytes(&self) -> usize {
        match self.state {
            State::Body { length, .. } => self.position + length + 2,
            _ => 0,
        }
    }

    /// Gives back the memory of a request with very many arguments.
    pub fn shrink(&mut self) {
        self.spans.clear();
        self.spans.shrink_to(RESERVED_ARGUMENTS);
        self.inline = Vec::new();
    }

    fn array(&mut self, buffer: &[u8]) -> Result<Option<usize>, ProtocolError> {
        loop {
            match self.state {
                State::Start => return Ok(None),
                State::Header { remaining } => {
                    let Some(&mark) = buffer.get(self.position) else { return Ok(None) };
                    if mark != b'$' {
                        return Err(ProtocolError::ExpectedBulk(printable(mark)));
                    }
                    let line = self.line(buffer, ProtocolError::BulkLengthTooLong)?;
                    let Some((text, after)) = line else { return Ok(None) };
                    let length = parse_integer(&text[1..])
                        .and_then(|length| usize::try_from(length).ok())
                        .filter(|length| *length <= self.limits.max_bulk_bytes)
                        .ok_or(ProtocolError::InvalidBulkLength)?;
                    // The bulk limit bounds the length, so this cannot overflow in practice.
                    let end = after.saturating_add(length).saturating_add(2);
                    if end > self.limits.max_request_bytes {
                        return Err(ProtocolError::RequestTooLong(self.limits.max_request_bytes));
                    }
                    self.advance_to(after);
                    self.state = State::Body { remaining, length };
                }
                State::Body { remaining, length } => {
                    let end = self.position + length;
                    match buffer.get(end..end + 2) {
                        None => return Ok(None),
                        Some(b"\r\n") => {}
                        Some(_) => return Err(ProtocolError::ExpectedLineEnd),
                    }
                    // Requests are shorter than 2^31 bytes.
                    self.spans.push(Span { start: self.position as u32, end: end as u32 });
                    self.advance_to(end + 2);
                    if remaining == 1 {
                        return Ok(Some(self.finish(Source::Buffer)));
                    }
                    self.state = State::Header { remaining: remaining - 1 };
                }
            }
        }
    }

    /// The length of the array that begins the request; a negative one counts as 0.
    fn array_length(&mut self, buffer: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let Some((text, after)) = self.line(buffer, ProtocolError::ArrayLengthTooLong)? else {
            return Ok(None);
        };
        let count = parse_integer(&text[1..]).ok_or(ProtocolError::InvalidArrayLength)?;
        let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        if count > MAX_ARGUMENTS {
            return Err(ProtocolError::InvalidArrayLength);
        }
        self.advance_to(after);
        Ok(Some(count))
    }

    /// The line at the current position, without its end, and the offset behind the end.
    fn line<'a>(
        &mut self,
        buffer: &'a [u8],
        too_long: ProtocolError,
    ) -> Result<Option<(&'a [u8], usize)>, ProtocolError> {
        let from = self.position.max(self.searched);
        match buffer[from..].windows(2).position(|pair| pair == b"\r\n") {
            Some(at) => Ok(Some((&buffer[self.position..from + at], from + at + 2))),
            None if buffer.len() - self.position > MAX_LINE_BYTES => Err(too_long),
            None => {
                // A carriage return at the very end may yet be followed by its line feed.
                self.searched = buffer.len().saturating_sub(1).max(from);
                Ok(None)
            }
        }
    }

    fn inline(&mut self, buffer: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let Some(at) = buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
            if buffer.len() > MAX_LINE_BYTES {
                return Err(ProtocolError::InlineTooLong);
            }
            self.searched = buffer.len();
            return Ok(None);
        };
        let end = self.searched + at;
        if end > MAX_LINE_BYTES {
            return Err(ProtocolError::InlineTooLong);
        }
        let line = buffer[..end].strip_suffix(b"\r").unwrap_or(&buffer[..end]);
        self.inline.clear();
        split_inline(line, &mut self.inline, &mut self.spans)?;
        self.position = end + 1;
        Ok(Some(self.finish(Source::Inline)))
    }

    fn advance_to(&mut self, position: usize) {
        debug_assert!(position >= self.position);
        self.position = position;
        self.searched = position;
    }

    fn finish(&mut self, source: Source) -> usize {
        self.state = State::Start;
        self.source = source;
        self.searched = 0;
        std::mem::take(&mut self.position)
    }
}

/// Splits an inline command at spaces; single and double quotes and escapes as in Redis.
fn split_inline(
    line: &[u8],
    out: &mut Vec<u8>,
    spans: &mut Vec<Span>,
) -> Result<(), ProtocolError> {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Ok(());
        }
        let start = out.len() as u32;
        while let Some((&first, after)) = rest.split_first() {
            match first {
                b' ' | b'\n' | b'\r' | b'\t' => break,
                b'"' => rest = unquote(after, b'"', out)?,
                b'\'' => rest = unquote(after, b'\'', out)?,
                other => {
                    out.push(other);
                    rest = after;
                }
            }
        }
        spans.push(Span { start, end: out.len() as u32 });
    }
}

/// Copies up to the closing quote, which must end the argument; answers what follows.
fn unquote<'a>(
    mut rest: &'a [u8],
    quote: u8,
    out: &mut Vec<u8>,
) -> Result<&'a [u8], ProtocolError> {
    loop {
        let (&first, after) = rest.split_first().ok_or(ProtocolError::UnbalancedQuotes)?;
        rest = after;
        if first == quote {
            return match after.first() {
                Some(next) if !next.is_ascii_whitespace() => Err(ProtocolError::UnbalancedQuotes),
                _ => Ok(after),
            };
        }
        if first != b'\\' {
            out.push(first);
            continue;
        }
        let (byte, after) = unescape(after, quote).ok_or(ProtocolError::UnbalancedQuotes)?;
        out.push(byte);
        rest = after;
    }
}

/// The byte that the text behind a backslash means, and what follows it.
fn unescape(rest: &[u8], quote: u8) -> Option<(u8, &[u8])> {
    if quote == b'\'' {
        // Inside single quotes a backslash only quotes the quote.
        return match rest.first() {
            Some(b'\'') => Some((b'\'', &rest[1..])),
            _ => Some((b'\\', rest)),
        };
    }
    if let [b'x', high, low, after @ ..] = rest
        && let Some(high) = char::from(*high).to_digit(16)
        && let Some(low) = char::from(*low).to_digit(16)
    {
        return Some(((high * 16 + low) as u8, after));
    }
    let (&first, after) = rest.split_first()?;
    let byte = match first {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    };
    Some((byte, after))
}

fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '?' }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: ParserLimits = ParserLimits { max_bulk_bytes: 1_000, max_request_bytes: 5_000 };

    /// All requests in `input`, fed in pieces that end at `cuts`.
    fn parse(input: &[u8], step: usize) -> Result<Vec<Vec<Vec<u8>>>, ProtocolError> {
        let mut parser = Parser::new(LIMITS);
        let (mut start, mut end, mut requests) = (0, 0, Vec::new());
        loop {
            match parser.next(&input[start..end])? {
                Some(length) => {
                    let args = parser.args(&input[start..end]);
                    requests.push(args.iter().map(<[u8]>::to_vec).collect());
                    assert!(length > 0 && start + length <= end);
                    start += length;
                }
                None if end == input.len() => return Ok(requests),
                None => end = (end + step).min(input.len()),
            }
        }
    }

    #[track_caller]
    fn check(input: &str, expected: &[&[&str]]) {
        let expected: Vec<Vec<Vec<u8>>> = expected
            .iter()
            .map(|request| request.iter().map(|arg| arg.as_bytes().to_vec()).collect())
            .collect();
        for step in [1, 2, 3, 7, 10_000] {
            assert_eq!(parse(input.as_bytes(), step), Ok(expected.clone()), "step {step}");
        }
    }

    #[test]
    fn requests_are_found_however_they_are_cut() {
        check("*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*1\r\n$4\r\nPING\r\n", &[&["GET", "k"], &["PING"]]);
        check("*2\r\n$4\r\n\r\n\r\n\r\n$0\r\n\r\n", &[&["\r\n\r\n", ""]]);
        check("PING\r\n  set  a\tb \n", &[&["PING"], &["set", "a", "b"]]);
        check("*0\r\n*-1\r\n\r\nPING\n", &[&[], &[], &[], &["PING"]]);
        check("set \"a b\\x41\\n\" 'it\\'s' x\"y\"\r\n", &[&["set", "a bA\n", "it's", "xy"]]);
    }

    #[track_caller]
    fn check_error(input: &str, expected: ProtocolError) {
        for step in [1, 10_000] {
            assert_eq!(parse(input.as_bytes(), step), Err(expected.clone()), "step {step}");
        }
    }

    #[test]
    fn violations_are_refused_at_the_first_byte_that_shows_them() {
        check_error("*x\r\n", ProtocolError::InvalidArrayLength);
        check_error("*1048577\r\n", ProtocolError::InvalidArrayLength);
        check_error("*1\r\n:1\r\n", ProtocolError::ExpectedBulk(':'));
        check_error("*1\r\n$-1\r\n", ProtocolError::InvalidBulkLength);
        check_error("*1\r\n$1001\r\n", ProtocolError::InvalidBulkLength);
        check_error("*1\r\n$18446744073709551617\r\n", ProtocolError::InvalidBulkLength);
        check_error("*1\r\n$1\r\nab\r\n", ProtocolError::ExpectedLineEnd);
        check_error("set \"a\r\n", ProtocolError::UnbalancedQuotes);
        check_error("set \"a\"b\r\n", ProtocolError::UnbalancedQuotes);
        let body = format!("$1000\r\n{}\r\n", "x".repeat(1_000));
        check_error(&format!("*9\r\n{}", body.repeat(9)), ProtocolError::RequestTooLong(5_000));
        check_error(&"x".repeat(70_000), ProtocolError::InlineTooLong);
        check_error(&format!("*{}", "1".repeat(70_000)), ProtocolError::ArrayLengthTooLong);
        check_error(&format!("*1\r\n${}", "1".repeat(70_000)), ProtocolError::BulkLengthTooLong);
    }

    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"*".to_vec()),
            Just(b"$".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"\"".to_vec()),
            Just(b"*1\r\n".to_vec()),
            Just(b"$3\r\nabc\r\n".to_vec()),
            "[0-9]{1,3}".prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..6),
        ];
        proptest::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_bytes_mean_the_same_however_they_are_cut(input in hostile(), step in 1usize..20) {
            prop_assert_eq!(parse(&input, step), parse(&input, usize::MAX / 2));
        }

        #[test]
        fn whatever_is_encoded_is_parsed(
            requests in proptest::collection::vec(
                proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..6), 0..6),
            step in 1usize..50,
        ) {
            let mut input = Vec::new();
            for request in &requests {
                input.extend_from_slice(format!("*{}\r\n", request.len()).as_bytes());
                for arg in request {
                    input.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
                    input.extend_from_slice(arg);
                    input.extend_from_slice(b"\r\n");
                }
            }
            prop_assert_eq!(parse(&input, step), Ok(requests));
        }
    }
}
