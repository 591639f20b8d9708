//! The frames between a client and a replica.
//!
//! ```text
//! frame    = length u32 (of what follows), kind u8, id u64, body
//! client:    1 hello   body = "quorate", version u16                            (id 0)
//!            2 group   body = one group, as in quorate_consensus::batch
//!            3 query   body = consistency u8 (0 linearizable, 1 stale), count u32, items
//! replica:   1 welcome body = version u16, node u16, leader u16, command_bytes_max u32   (id 0)
//!            2 outcome body = leader u16, status u8, rest by status
//! status:    0 applied (items)      1 forgotten      2 gap (expected u64)      3 no session
//!            4 rejected (code u8, text)              5 unknown (code u8, text)
//! ```
//! All integers are little endian; node 0 is none. An outcome has the id of what it answers; outcomes
//! come in any order.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_consensus::NodeId;
use quorate_replica::{Consistency, Failure, GroupOutcome, Reason};

/// The version of these frames.
pub(crate) const VERSION: u16 = 1;
/// A longer frame ends the connection.
pub(crate) const FRAME_BYTES_MAX: usize = 80 << 20;

const MAGIC: &[u8; 7] = b"quorate";
const HEADER_BYTES: usize = 13;

/// What a client sends.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Ask {
    Hello { version: u16 },
    Group { id: u64, group: Bytes },
    Query { id: u64, consistency: Consistency, count: u32, items: Bytes },
}

/// What a replica answers.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Answer {
    Welcome { version: u16, node: NodeId, leader: Option<NodeId>, command_bytes_max: u32 },
    Outcome { id: u64, leader: Option<NodeId>, outcome: Result<GroupOutcome, Failure> },
}

/// The other end does not speak this protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the other end does not speak the client protocol of quorate: check the port")]
pub(crate) struct Malformed;

fn frame(out: &mut BytesMut, kind: u8, id: u64, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u8(kind);
    out.put_u64_le(id);
    body(out);
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn node(leader: Option<NodeId>) -> u16 {
    leader.map_or(0, |node| node.0)
}

impl Ask {
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Hello { version } => frame(out, 1, 0, |out| {
                out.put_slice(MAGIC);
                out.put_u16_le(*version);
            }),
            Self::Group { id, group } => frame(out, 2, *id, |out| out.put_slice(group)),
            Self::Query { id, consistency, count, items } => frame(out, 3, *id, |out| {
                out.put_u8(u8::from(*consistency == Consistency::Stale));
                out.put_u32_le(*count);
                out.put_slice(items);
            }),
        }
    }

    fn decode(kind: u8, id: u64, mut body: Bytes) -> Option<Self> {
        match kind {
            1 if body.len() == 9 && body.starts_with(MAGIC) => {
                body.advance(7);
                Some(Self::Hello { version: body.get_u16_le() })
            }
            2 => Some(Self::Group { id, group: body }),
            3 if body.len() >= 5 => {
                let consistency = match body.get_u8() {
                    0 => Consistency::Linearizable,
                    1 => Consistency::Stale,
                    _ => return None,
                };
                let count = body.get_u32_le();
                Some(Self::Query { id, consistency, count, items: body })
            }
            _ => None,
        }
    }
}

impl Answer {
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Welcome { version, node: own, leader, command_bytes_max } => {
                frame(out, 1, 0, |out| {
                    out.put_u16_le(*version);
                    out.put_u16_le(own.0);
                    out.put_u16_le(node(*leader));
                    out.put_u32_le(*command_bytes_max);
                });
            }
            Self::Outcome { id, leader, outcome } => frame(out, 2, *id, |out| {
                out.put_u16_le(node(*leader));
                match outcome {
                    Ok(GroupOutcome::Applied(items)) => {
                        out.put_u8(0);
                        out.put_slice(items);
                    }
                    Ok(GroupOutcome::Forgotten) => out.put_u8(1),
                    Ok(GroupOutcome::Gap { expected }) => {
                        out.put_u8(2);
                        out.put_u64_le(*expected);
                    }
                    Ok(GroupOutcome::NoSession) => out.put_u8(3),
                    Err(Failure::Rejected(reason)) => put_reason(out, 4, reason),
                    Err(Failure::Unknown(reason)) => put_reason(out, 5, reason),
                }
            }),
        }
    }

    fn decode(kind: u8, id: u64, mut body: Bytes) -> Option<Self> {
        match kind {
            1 if body.len() == 10 => Some(Self::Welcome {
                version: body.get_u16_le(),
                node: NodeId(body.get_u16_le()),
                leader: take_node(&mut body),
                command_bytes_max: body.get_u32_le(),
            }),
            2 if body.len() >= 3 => {
                let leader = take_node(&mut body);
                let outcome = match body.get_u8() {
                    0 => Ok(GroupOutcome::Applied(body)),
                    1 => Ok(GroupOutcome::Forgotten),
                    2 if body.len() == 8 => Ok(GroupOutcome::Gap { expected: body.get_u64_le() }),
                    3 => Ok(GroupOutcome::NoSession),
                    4 => Err(Failure::Rejected(take_reason(&mut body)?)),
                    5 => Err(Failure::Unknown(take_reason(&mut body)?)),
                    _ => return None,
                };
                Some(Self::Outcome { id, leader, outcome })
            }
            _ => None,
        }
    }
}

fn take_node(body: &mut Bytes) -> Option<NodeId> {
    Some(NodeId(body.get_u16_le())).filter(|node| node.0 != 0)
}

/// The reasons that a client treats in a way of their own; the text says the others.
const REASONS: [Reason; 8] = [
    Reason::Busy,
    Reason::NoLeader,
    Reason::TimedOut,
    Reason::LogFull,
    Reason::LogFailed,
    Reason::Stopped,
    Reason::SessionClosed,
    Reason::Malformed,
];

fn put_reason(out: &mut BytesMut, status: u8, reason: &Reason) {
    out.put_u8(status);
    let code = REASONS.iter().position(|known| known == reason).map_or(0, |index| index + 1);
    out.put_u8(code as u8);
    if code == 0 {
        out.put_slice(reason.to_string().as_bytes());
    }
}

fn take_reason(body: &mut Bytes) -> Option<Reason> {
    if body.is_empty() {
        return None;
    }
    match usize::from(body.get_u8()) {
        0 => Some(Reason::Remote(String::from_utf8_lossy(body).into_owned())),
        code => REASONS.get(code - 1).cloned(),
    }
}

fn take_frame(buffer: &mut BytesMut) -> Result<Option<(u8, u64, Bytes)>, Malformed> {
    let Some(length) = buffer.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize)
    else {
        return Ok(None);
    };
    if length + 4 < HEADER_BYTES || length > FRAME_BYTES_MAX {
        return Err(Malformed);
    }
    if buffer.len() < length + 4 {
        return Ok(None);
    }
    buffer.advance(4);
    let mut frame = buffer.split_to(length).freeze();
    let kind = frame.get_u8();
    let id = frame.get_u64_le();
    Ok(Some((kind, id, frame)))
}

/// Takes the next whole question off `buffer`; none if it is not all there.
///
/// # Errors
/// [`Malformed`]: the connection is to be closed.
pub(crate) fn take_ask(buffer: &mut BytesMut) -> Result<Option<Ask>, Malformed> {
    let Some((kind, id, body)) = take_frame(buffer)? else { return Ok(None) };
    Ask::decode(kind, id, body).map(Some).ok_or(Malformed)
}

/// Takes the next whole answer off `buffer`; none if it is not all there.
///
/// # Errors
/// [`Malformed`]: the connection is to be closed.
pub(crate) fn take_answer(buffer: &mut BytesMut) -> Result<Option<Answer>, Malformed> {
    let Some((kind, id, body)) = take_frame(buffer)? else { return Ok(None) };
    Answer::decode(kind, id, body).map(Some).ok_or(Malformed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn asks() -> Vec<Ask> {
        let items = Bytes::from_static(b"\x01a");
        vec![
            Ask::Hello { version: 1 },
            Ask::Group { id: 4, group: Bytes::from_static(b"anything") },
            Ask::Query { id: 5, consistency: Consistency::Stale, count: 1, items: items.clone() },
            Ask::Query { id: 6, consistency: Consistency::Linearizable, count: 1, items },
        ]
    }

    fn answers() -> Vec<Answer> {
        let outcomes = [
            Ok(GroupOutcome::Applied(Bytes::from_static(b"\x01a"))),
            Ok(GroupOutcome::Forgotten),
            Ok(GroupOutcome::Gap { expected: 9 }),
            Ok(GroupOutcome::NoSession),
            Err(Failure::Rejected(Reason::NoLeader)),
            Err(Failure::Unknown(Reason::Remote("words".into()))),
        ];
        let (node, leader) = (NodeId(3), Some(NodeId(2)));
        let welcome = Answer::Welcome { version: 1, node, leader, command_bytes_max: 77 };
        let outcome = |(id, outcome)| Answer::Outcome { id, leader: None, outcome };
        std::iter::once(welcome).chain((1..).zip(outcomes).map(outcome)).collect()
    }

    #[test]
    fn frames_come_back_whole_and_are_waited_for_in_part() {
        let mut stream = BytesMut::new();
        asks().iter().for_each(|ask| ask.encode(&mut stream));
        let mut arrived = BytesMut::new();
        let mut seen = Vec::new();
        for byte in stream {
            arrived.put_u8(byte);
            seen.extend(take_ask(&mut arrived).unwrap());
        }
        assert_eq!(seen, asks());
        let mut stream = BytesMut::new();
        answers().iter().for_each(|answer| answer.encode(&mut stream));
        let mut seen = Vec::new();
        while let Some(answer) = take_answer(&mut stream).unwrap() {
            seen.push(answer);
        }
        assert_eq!(seen, answers());
        assert!(stream.is_empty());
    }

    #[test]
    fn strangers_are_told_by_their_first_bytes() {
        for text in ["GET / HTTP/1.1\r\n\r\n", "*1\r\n$4\r\nPING\r\n", "\0\0\0\0\0"] {
            assert_eq!(take_ask(&mut BytesMut::from(text)), Err(Malformed), "{text:?}");
        }
        let mut frame = BytesMut::new();
        frame.put_u32_le(9);
        frame.put_u8(77);
        frame.put_u64_le(1);
        assert_eq!(take_answer(&mut frame), Err(Malformed));
    }
}
