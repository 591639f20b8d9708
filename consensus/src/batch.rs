//! The format of a [`ValueKind::Commands`](crate::ValueKind::Commands) value: a time stamp and groups
//! of commands.
//!
//! ```text
//! batch   = timestamp_ms u64, group*
//! group   = session u64, first_sequence u64, acknowledged_below u64, count u32, length u32,
//!           command*                                      (`count` of them, `length` bytes together)
//! command = length varint (LEB128), bytes
//! ```
//! All integers are little endian. A group holds consecutive commands of one session: whoever
//! submits commands together pays for one header of 32 bytes, and each command for one or two.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of a batch before its first group.
pub const BATCH_HEADER_BYTES: usize = 8;
/// Bytes of a group before its first command.
pub const GROUP_HEADER_BYTES: usize = 32;
/// The session whose commands are [`SessionCommand`]s, carried out by the replicas themselves.
pub const CONTROL_SESSION: u64 = 0;

/// What stands before the commands of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupHeader {
    /// Whose commands these are.
    pub session: u64,
    /// The sequence number of the first command; those of the others follow.
    pub first_sequence: u64,
    /// The session has received all outcomes below this sequence number: they may be forgotten.
    pub acknowledged_below: u64,
    /// How many commands.
    pub count: u32,
    /// How many bytes they take together.
    pub length: u32,
}

impl GroupHeader {
    /// Appends the header.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.session);
        out.put_u64_le(self.first_sequence);
        out.put_u64_le(self.acknowledged_below);
        out.put_u32_le(self.count);
        out.put_u32_le(self.length);
    }
}

/// A group, cut out of a batch or a forward message; sharing its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// Its header.
    pub header: GroupHeader,
    /// Its commands, back to back.
    pub commands: Bytes,
}

/// Takes the next group off `bytes`: none at the end, or if what follows is no group.
pub fn take_group(bytes: &mut Bytes) -> Option<Group> {
    if bytes.len() < GROUP_HEADER_BYTES {
        return None;
    }
    let header = GroupHeader {
        session: bytes.get_u64_le(),
        first_sequence: bytes.get_u64_le(),
        acknowledged_below: bytes.get_u64_le(),
        count: bytes.get_u32_le(),
        length: bytes.get_u32_le(),
    };
    if header.length as usize > bytes.len() || header.count == 0 {
        return None;
    }
    let commands = bytes.split_to(header.length as usize);
    Some(Group { header, commands })
}

/// Whether `bytes` are whole groups whose counts and lengths agree with their commands: what a
/// leader checks before it proposes what a peer forwarded.
#[must_use]
pub fn groups_are_whole(bytes: &Bytes) -> bool {
    let mut rest = bytes.clone();
    while !rest.is_empty() {
        let Some(group) = take_group(&mut rest) else { return false };
        let mut commands = &group.commands[..];
        for _ in 0..group.header.count {
            if take_item(&mut commands).is_none() {
                return false;
            }
        }
        if !commands.is_empty() {
            return false;
        }
    }
    true
}

/// Appends a length-prefixed item: a command in a group, or a reply in a list of replies.
pub fn put_item(out: &mut BytesMut, item: &[u8]) {
    put_varint(out, item.len() as u64);
    out.put_slice(item);
}

/// Takes a length-prefixed item off `bytes`; none if there is no whole one.
pub fn take_item<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_varint(bytes)?).ok()?;
    if length > bytes.len() {
        return None;
    }
    let (item, rest) = bytes.split_at(length);
    *bytes = rest;
    Some(item)
}

/// Appends a LEB128 number.
pub fn put_varint(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

/// Takes a LEB128 number of at most 64 bits off `bytes`.
pub fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for (index, &byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        if index == 9 && part > 1 {
            return None;
        }
        number |= part << (7 * index);
        if byte < 0x80 {
            *bytes = &bytes[index + 1..];
            return Some(number);
        }
    }
    None
}

/// What a replica does to the session table, by a command in [`CONTROL_SESSION`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionCommand {
    /// Opens a session; opening it again changes nothing. `owner` is the replica whose front end
    /// uses it, 0 for none: an earlier session of the same owner is closed, since that life of the
    /// front end is over.
    Open {
        /// Its number: random, not 0.
        session: u64,
        /// Its owner.
        owner: u16,
        /// It is closed when replicated time has gone on for so many milliseconds without a group
        /// of its own; 0 for never.
        idle_ms: u64,
    },
    /// Closes a session: what it may retry is forgotten.
    Close {
        /// Its number.
        session: u64,
    },
}

impl SessionCommand {
    /// Appends the command as an item of a group.
    pub fn encode(&self, out: &mut BytesMut) {
        match *self {
            Self::Open { session, owner, idle_ms } => {
                let forever = idle_ms == 0;
                out.put_u8(if forever { 11 } else { 19 });
                out.put_u8(if forever { 1 } else { 3 });
                out.put_u64_le(session);
                out.put_u16_le(owner);
                if !forever {
                    out.put_u64_le(idle_ms);
                }
            }
            Self::Close { session } => {
                out.put_u8(9);
                out.put_u8(2);
                out.put_u64_le(session);
            }
        }
    }

    /// A whole group of [`CONTROL_SESSION`] that holds this command alone.
    #[must_use]
    pub fn to_group(&self) -> Bytes {
        let mut command = BytesMut::with_capacity(24);
        self.encode(&mut command);
        let header = GroupHeader {
            session: CONTROL_SESSION,
            first_sequence: 0,
            acknowledged_below: 0,
            count: 1,
            length: command.len() as u32,
        };
        let mut out = BytesMut::with_capacity(64);
        header.encode(&mut out);
        out.put_slice(&command);
        out.freeze()
    }

    /// Reads the inside of an item.
    #[must_use]
    pub fn decode(mut item: &[u8]) -> Option<Self> {
        match (item.first()?, item.len()) {
            (1, 11) => {
                item.advance(1);
                let (session, owner) = (item.get_u64_le(), item.get_u16_le());
                Some(Self::Open { session, owner, idle_ms: 0 })
            }
            (3, 19) => {
                item.advance(1);
                let (session, owner) = (item.get_u64_le(), item.get_u16_le());
                // Without a limit there is a shorter form, and only one.
                let idle_ms = Some(item.get_u64_le()).filter(|idle_ms| *idle_ms > 0)?;
                Some(Self::Open { session, owner, idle_ms })
            }
            (2, 9) => {
                item.advance(1);
                Some(Self::Close { session: item.get_u64_le() })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_come_back_as_they_went_in() {
        let mut out = BytesMut::new();
        for (session, texts) in [(7, ["a", "bc"]), (8, ["", "0123456789"])] {
            let mut commands = BytesMut::new();
            for text in texts {
                put_item(&mut commands, text.as_bytes());
            }
            let header = GroupHeader {
                session,
                first_sequence: 3,
                acknowledged_below: 2,
                count: 2,
                length: commands.len() as u32,
            };
            header.encode(&mut out);
            out.put_slice(&commands);
        }
        let mut bytes = out.freeze();
        assert!(groups_are_whole(&bytes));
        for cut in 1..bytes.len() {
            let whole = groups_are_whole(&bytes.slice(..cut));
            assert_eq!(whole, cut == GROUP_HEADER_BYTES + 5, "cut at {cut}");
        }
        let first = take_group(&mut bytes).unwrap();
        assert_eq!((first.header.session, &first.commands[..]), (7, &b"\x01a\x02bc"[..]));
        assert_eq!(take_group(&mut bytes).unwrap().header.session, 8);
        assert_eq!(take_group(&mut bytes), None);
    }

    #[test]
    fn varints_cover_all_of_u64_and_reject_more() {
        for number in [0, 1, 127, 128, 16_383, 16_384, u64::MAX - 1, u64::MAX] {
            let mut out = BytesMut::new();
            put_varint(&mut out, number);
            let mut bytes = &out[..];
            assert_eq!(take_varint(&mut bytes), Some(number));
            assert!(bytes.is_empty());
        }
        assert_eq!(take_varint(&mut &[0xff; 10][..]), None);
        assert_eq!(take_varint(&mut &[0x80; 3][..]), None);
    }

    #[test]
    fn session_commands_survive_the_wire() {
        for command in [
            SessionCommand::Open { session: 9, owner: 3, idle_ms: 0 },
            SessionCommand::Open { session: 9, owner: 0, idle_ms: 60_000 },
            SessionCommand::Close { session: 4 },
        ] {
            let mut out = BytesMut::new();
            command.encode(&mut out);
            let mut bytes = &out[..];
            assert_eq!(SessionCommand::decode(take_item(&mut bytes).unwrap()), Some(command));
            assert!(bytes.is_empty());
        }
        assert_eq!(SessionCommand::decode(b"\x03"), None);
        let mut endless = [0; 19];
        endless[..2].copy_from_slice(&[3, 7]);
        assert_eq!(SessionCommand::decode(&endless), None, "one form for each command");
    }
}
