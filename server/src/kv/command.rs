//! Commands as they travel through the log: an operation code, then the fields in order.
//!
//! Decoding borrows from the input, is total (malformed input is a [`Malformed`], never a panic)
//! and allocates nothing. Whatever depends on time stays relative in here: `EX 10` becomes a
//! deadline when the command is applied, from the replicated time stamp, so that every replica
//! computes the same one.

use super::frame::{
    put_bytes, put_signed, put_varint, take_byte, take_bytes, take_signed, take_varint,
};
use super::items::Items;
use bytes::{BufMut, BytesMut};

/// Bytes that are no command of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed command")]
pub struct Malformed;

/// What has to hold for a `SET` to take place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition<'a> {
    /// Nothing.
    Always,
    /// `NX`: the key is absent.
    Absent,
    /// `XX`: the key is present.
    Present,
    /// `IFEQ`: the key is present with this value (as in Valkey 8.1).
    Equals(&'a [u8]),
}

/// What becomes of a key's deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The key will have none.
    None,
    /// It stays as it is (`KEEPTTL`).
    Keep,
    /// So many milliseconds from the time when the command is applied.
    In(i64),
    /// At this time, in milliseconds since the Unix epoch.
    At(i64),
}

/// Which command of Redis a [`Command::Set`] was: it decides the reply and the words of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetForm {
    /// `SET` and `GETSET`: `OK` or nil.
    Set,
    /// `SETEX`.
    SetEx,
    /// `PSETEX`.
    PSetEx,
    /// `SETNX`: 1 or 0.
    SetNx,
}

impl SetForm {
    /// The name in error messages.
    pub fn name(self) -> &'static str {
        match self {
            SetForm::Set => "set",
            SetForm::SetEx => "setex",
            SetForm::PSetEx => "psetex",
            SetForm::SetNx => "setnx",
        }
    }
}

/// The options of the `EXPIRE` family, a set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpireOptions(u8);

impl ExpireOptions {
    /// `NX`: only when the key has no deadline.
    pub const NX: ExpireOptions = ExpireOptions(1);
    /// `XX`: only when it has one.
    pub const XX: ExpireOptions = ExpireOptions(2);
    /// `GT`: only when the new deadline is later; none counts as infinitely late.
    pub const GT: ExpireOptions = ExpireOptions(4);
    /// `LT`: only when the new deadline is earlier.
    pub const LT: ExpireOptions = ExpireOptions(8);

    /// Both sets together.
    #[must_use]
    pub fn with(self, other: ExpireOptions) -> ExpireOptions {
        ExpireOptions(self.0 | other.0)
    }

    /// Whether all bits of `other` are set.
    pub fn has(self, other: ExpireOptions) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The four ways to ask for a key's deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlForm {
    /// The time itself (`EXPIRETIME`) and not what remains (`TTL`).
    pub absolute: bool,
    /// In milliseconds and not in seconds.
    pub milliseconds: bool,
}

/// One command of the key-value store. The byte strings are borrowed.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the fields are the arguments of the Redis command named")]
pub enum Command<'a> {
    // Reads.
    /// `GET key`.
    Get { key: &'a [u8] },
    /// `STRLEN key`.
    Strlen { key: &'a [u8] },
    /// `GETRANGE key start end`.
    GetRange { key: &'a [u8], start: i64, end: i64 },
    /// `MGET key …`.
    MGet { keys: Items<'a> },
    /// `EXISTS key …` and `TOUCH key …`.
    Exists { keys: Items<'a> },
    /// `TTL`, `PTTL`, `EXPIRETIME`, `PEXPIRETIME`.
    Ttl { key: &'a [u8], form: TtlForm },
    /// `TYPE key`.
    Type { key: &'a [u8] },
    /// `RANDOMKEY`: which one follows from the seed.
    RandomKey { seed: u64 },
    /// `KEYS pattern`.
    Keys { pattern: &'a [u8] },
    /// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`.
    Scan { cursor: u64, count: u64, pattern: &'a [u8], strings: bool },
    /// `DBSIZE`.
    DbSize,
    /// The versions of keys, for `WATCH`: an array of integers, 0 for an absent key.
    Versions { keys: Items<'a> },

    // Writes.
    /// `SET`, `SETEX`, `PSETEX`, `SETNX`, `GETSET`. With `get` the reply is the old value.
    Set {
        key: &'a [u8],
        value: &'a [u8],
        condition: Condition<'a>,
        expiry: Expiry,
        get: bool,
        form: SetForm,
    },
    /// `GETEX` with an option; [`Expiry::None`] is `PERSIST`.
    GetEx { key: &'a [u8], expiry: Expiry },
    /// `GETDEL key`.
    GetDel { key: &'a [u8] },
    /// `MSET` and `MSETNX` (`only_if_absent`): keys and values in turn.
    MSet { pairs: Items<'a>, only_if_absent: bool },
    /// `DEL` and `UNLINK`.
    Del { keys: Items<'a> },
    /// `INCR`, `DECR`, `INCRBY`, `DECRBY`.
    IncrBy { key: &'a [u8], by: i64 },
    /// `INCRBYFLOAT key increment`, the increment as text.
    IncrByFloat { key: &'a [u8], by: &'a [u8] },
    /// `APPEND key value`.
    Append { key: &'a [u8], value: &'a [u8] },
    /// `SETRANGE key offset value`.
    SetRange { key: &'a [u8], offset: u64, value: &'a [u8] },
    /// `EXPIRE` (`In`), `EXPIREAT` (`At`) and their kin in milliseconds.
    Expire { key: &'a [u8], expiry: Expiry, options: ExpireOptions, seconds: bool },
    /// `PERSIST key`.
    Persist { key: &'a [u8] },
    /// `RENAME` and `RENAMENX` (`only_if_absent`).
    Rename { from: &'a [u8], to: &'a [u8], only_if_absent: bool },
    /// `FLUSHALL` and `FLUSHDB`.
    FlushAll,

    /// `EXEC`: commands that run as one. Each item of `watches` is a varint version and a key; if
    /// one key has another version by now, nothing runs and the reply is [`NilArray`].
    ///
    /// [`NilArray`]: super::reply::Token::NilArray
    Transaction { writes: bool, watches: Items<'a>, commands: Items<'a> },
}

impl<'a> Command<'a> {
    /// Whether the command can change the store, so that it has to go through the log.
    pub fn is_write(&self) -> bool {
        use Command::*;
        match self {
            Get { .. } | Strlen { .. } | GetRange { .. } | MGet { .. } | Exists { .. } => false,
            Ttl { .. } | Type { .. } | RandomKey { .. } | Keys { .. } | Scan { .. } => false,
            DbSize | Versions { .. } => false,
            Transaction { writes, .. } => *writes,
            Set { .. } | GetEx { .. } | GetDel { .. } | MSet { .. } | Del { .. } => true,
            IncrBy { .. } | IncrByFloat { .. } | Append { .. } | SetRange { .. } => true,
            Expire { .. } | Persist { .. } | Rename { .. } | FlushAll => true,
        }
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(self.code());
        match *self {
            Command::Get { key }
            | Command::Strlen { key }
            | Command::Type { key }
            | Command::GetDel { key }
            | Command::Persist { key } => put_bytes(out, key),
            Command::GetRange { key, start, end } => {
                put_bytes(out, key);
                put_signed(out, start);
                put_signed(out, end);
            }
            Command::MGet { keys }
            | Command::Exists { keys }
            | Command::Versions { keys }
            | Command::Del { keys } => keys.encode(out),
            Command::Ttl { key, form } => {
                put_bytes(out, key);
                out.put_u8(u8::from(form.absolute) | u8::from(form.milliseconds) << 1);
            }
            Command::RandomKey { seed } => put_varint(out, seed),
            Command::Keys { pattern } => put_bytes(out, pattern),
            Command::Scan { cursor, count, pattern, strings } => {
                put_varint(out, cursor);
                put_varint(out, count);
                put_bytes(out, pattern);
                out.put_u8(u8::from(strings));
            }
            Command::DbSize | Command::FlushAll => {}
            Command::Set { key, value, condition, expiry, get, form } => {
                put_bytes(out, key);
                put_bytes(out, value);
                out.put_u8(form as u8 | u8::from(get) << 2);
                put_condition(out, condition);
                put_expiry(out, expiry);
            }
            Command::GetEx { key, expiry } => {
                put_bytes(out, key);
                put_expiry(out, expiry);
            }
            Command::MSet { pairs, only_if_absent } => {
                out.put_u8(u8::from(only_if_absent));
                pairs.encode(out);
            }
            Command::IncrBy { key, by } => {
                put_bytes(out, key);
                put_signed(out, by);
            }
            Command::IncrByFloat { key, by: value } | Command::Append { key, value } => {
                put_bytes(out, key);
                put_bytes(out, value);
            }
            Command::SetRange { key, offset, value } => {
                put_bytes(out, key);
                put_varint(out, offset);
                put_bytes(out, value);
            }
            Command::Expire { key, expiry, options, seconds } => {
                put_bytes(out, key);
                put_expiry(out, expiry);
                out.put_u8(options.0 | u8::from(seconds) << 7);
            }
            Command::Rename { from, to, only_if_absent } => {
                put_bytes(out, from);
                put_bytes(out, to);
                out.put_u8(u8::from(only_if_absent));
            }
            Command::Transaction { writes, watches, commands } => {
                out.put_u8(u8::from(writes));
                watches.encode(out);
                commands.encode(out);
            }
        }
    }

    /// Decodes one command that fills `input` exactly.
    pub fn decode(mut input: &'a [u8]) -> Result<Command<'a>, Malformed> {
        let command = take_command(&mut input).ok_or(Malformed)?;
        if input.is_empty() { Ok(command) } else { Err(Malformed) }
    }

    /// The operation code: part of the format of the log, never to be renumbered.
    fn code(&self) -> u8 {
        match self {
            Command::Get { .. } => 1,
            Command::Strlen { .. } => 2,
            Command::GetRange { .. } => 3,
            Command::MGet { .. } => 4,
            Command::Exists { .. } => 5,
            Command::Ttl { .. } => 6,
            Command::Type { .. } => 7,
            Command::RandomKey { .. } => 8,
            Command::Keys { .. } => 9,
            Command::Scan { .. } => 10,
            Command::DbSize => 11,
            Command::Versions { .. } => 12,
            Command::Set { .. } => 32,
            Command::GetEx { .. } => 33,
            Command::GetDel { .. } => 34,
            Command::MSet { .. } => 35,
            Command::Del { .. } => 36,
            Command::IncrBy { .. } => 37,
            Command::IncrByFloat { .. } => 38,
            Command::Append { .. } => 39,
            Command::SetRange { .. } => 40,
            Command::Expire { .. } => 41,
            Command::Persist { .. } => 42,
            Command::Rename { .. } => 43,
            Command::FlushAll => 44,
            Command::Transaction { .. } => 45,
        }
    }
}

fn take_command<'a>(input: &mut &'a [u8]) -> Option<Command<'a>> {
    Some(match take_byte(input)? {
        1 => Command::Get { key: take_bytes(input)? },
        2 => Command::Strlen { key: take_bytes(input)? },
        3 => Command::GetRange {
            key: take_bytes(input)?,
            start: take_signed(input)?,
            end: take_signed(input)?,
        },
        4 => Command::MGet { keys: Items::take(input)? },
        5 => Command::Exists { keys: Items::take(input)? },
        6 => {
            let key = take_bytes(input)?;
            let bits = take_byte(input).filter(|bits| *bits < 4)?;
            let form = TtlForm { absolute: bits & 1 != 0, milliseconds: bits & 2 != 0 };
            Command::Ttl { key, form }
        }
        7 => Command::Type { key: take_bytes(input)? },
        8 => Command::RandomKey { seed: take_varint(input)? },
        9 => Command::Keys { pattern: take_bytes(input)? },
        10 => Command::Scan {
            cursor: take_varint(input)?,
            count: take_varint(input)?,
            pattern: take_bytes(input)?,
            strings: take_bool(input)?,
        },
        11 => Command::DbSize,
        12 => Command::Versions { keys: Items::take(input)? },
        code => take_write(code, input)?,
    })
}

fn take_write<'a>(code: u8, input: &mut &'a [u8]) -> Option<Command<'a>> {
    Some(match code {
        32 => take_set(input)?,
        33 => Command::GetEx { key: take_bytes(input)?, expiry: take_expiry(input)? },
        34 => Command::GetDel { key: take_bytes(input)? },
        35 => {
            let only_if_absent = take_bool(input)?;
            let pairs = Items::take(input).filter(|pairs| pairs.len().is_multiple_of(2))?;
            Command::MSet { pairs, only_if_absent }
        }
        36 => Command::Del { keys: Items::take(input)? },
        37 => Command::IncrBy { key: take_bytes(input)?, by: take_signed(input)? },
        38 => Command::IncrByFloat { key: take_bytes(input)?, by: take_bytes(input)? },
        39 => Command::Append { key: take_bytes(input)?, value: take_bytes(input)? },
        40 => Command::SetRange {
            key: take_bytes(input)?,
            offset: take_varint(input)?,
            value: take_bytes(input)?,
        },
        41 => {
            let key = take_bytes(input)?;
            let expiry = take_expiry(input)?;
            let bits = take_byte(input)?;
            let options = ExpireOptions(bits & 0x7f);
            Command::Expire { key, expiry, options, seconds: bits & 0x80 != 0 }
        }
        42 => Command::Persist { key: take_bytes(input)? },
        43 => Command::Rename {
            from: take_bytes(input)?,
            to: take_bytes(input)?,
            only_if_absent: take_bool(input)?,
        },
        44 => Command::FlushAll,
        45 => Command::Transaction {
            writes: take_bool(input)?,
            watches: Items::take(input)?,
            commands: Items::take(input)?,
        },
        _ => return None,
    })
}

fn take_set<'a>(input: &mut &'a [u8]) -> Option<Command<'a>> {
    let key = take_bytes(input)?;
    let value = take_bytes(input)?;
    let bits = take_byte(input).filter(|bits| *bits < 8)?;
    let form = match bits & 3 {
        0 => SetForm::Set,
        1 => SetForm::SetEx,
        2 => SetForm::PSetEx,
        _ => SetForm::SetNx,
    };
    let condition = match take_byte(input)? {
        0 => Condition::Always,
        1 => Condition::Absent,
        2 => Condition::Present,
        3 => Condition::Equals(take_bytes(input)?),
        _ => return None,
    };
    let expiry = take_expiry(input)?;
    Some(Command::Set { key, value, condition, expiry, get: bits & 4 != 0, form })
}

fn put_condition(out: &mut BytesMut, condition: Condition<'_>) {
    match condition {
        Condition::Always => out.put_u8(0),
        Condition::Absent => out.put_u8(1),
        Condition::Present => out.put_u8(2),
        Condition::Equals(value) => {
            out.put_u8(3);
            put_bytes(out, value);
        }
    }
}

fn put_expiry(out: &mut BytesMut, expiry: Expiry) {
    match expiry {
        Expiry::None => out.put_u8(0),
        Expiry::Keep => out.put_u8(1),
        Expiry::In(milliseconds) => {
            out.put_u8(2);
            put_signed(out, milliseconds);
        }
        Expiry::At(milliseconds) => {
            out.put_u8(3);
            put_signed(out, milliseconds);
        }
    }
}

fn take_expiry(input: &mut &[u8]) -> Option<Expiry> {
    Some(match take_byte(input)? {
        0 => Expiry::None,
        1 => Expiry::Keep,
        2 => Expiry::In(take_signed(input)?),
        3 => Expiry::At(take_signed(input)?),
        _ => return None,
    })
}

fn take_bool(input: &mut &[u8]) -> Option<bool> {
    match take_byte(input)? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_command_survives_the_round_trip() {
        let mut keys = BytesMut::new();
        put_bytes(&mut keys, b"a");
        put_bytes(&mut keys, b"bc");
        let items = Items::Packed { count: 2, bytes: &keys };
        let key = &b"key"[..];
        let form = TtlForm { absolute: true, milliseconds: false };
        let options = ExpireOptions::XX.with(ExpireOptions::GT);
        let commands = [
            Command::Get { key },
            Command::Strlen { key },
            Command::GetRange { key, start: -5, end: i64::MAX },
            Command::MGet { keys: items },
            Command::Exists { keys: items },
            Command::Ttl { key, form },
            Command::Type { key },
            Command::RandomKey { seed: u64::MAX },
            Command::Keys { pattern: b"*" },
            Command::Scan { cursor: 9, count: 10, pattern: b"x*", strings: true },
            Command::DbSize,
            Command::Versions { keys: items },
            Command::Set {
                key,
                value: b"v",
                condition: Condition::Equals(b"w"),
                expiry: Expiry::At(-7),
                get: true,
                form: SetForm::PSetEx,
            },
            Command::GetEx { key, expiry: Expiry::Keep },
            Command::GetDel { key },
            Command::MSet { pairs: items, only_if_absent: true },
            Command::Del { keys: items },
            Command::IncrBy { key, by: i64::MIN },
            Command::IncrByFloat { key, by: b"1.5" },
            Command::Append { key, value: b"" },
            Command::SetRange { key, offset: 1 << 40, value: b"v" },
            Command::Expire { key, expiry: Expiry::In(1), options, seconds: true },
            Command::Persist { key },
            Command::Rename { from: key, to: b"other", only_if_absent: false },
            Command::FlushAll,
            Command::Transaction { writes: true, watches: items, commands: items },
        ];
        for command in commands {
            let mut out = BytesMut::new();
            command.encode(&mut out);
            let decoded = Command::decode(&out).expect("own encoding");
            assert_eq!(format!("{decoded:?}"), format!("{command:?}"));
            for cut in 0..out.len() {
                assert!(Command::decode(&out[..cut]).is_err(), "truncated {command:?}");
            }
            out.put_u8(0);
            assert!(Command::decode(&out).is_err(), "trailing byte after {command:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(command) = Command::decode(&bytes) {
                let mut out = BytesMut::new();
                command.encode(&mut out);
                prop_assert!(Command::decode(&out).is_ok());
            }
        }
    }
}
