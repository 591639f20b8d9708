//! What the commands on values do.

use super::command::{Command, Condition, Expiry, SetForm};
use super::items::Items;
use super::number::{FloatError, add_decimals, parse_integer};
use super::reply::Token;
use super::store::{Store, put_error};
use bytes::BytesMut;
use std::io::Write as _;

pub(super) const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
const TOO_LONG: &str = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";

/// The arguments of a [`Command::Set`].
pub(super) struct Set<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) condition: Condition<'a>,
    pub(super) expiry: Expiry,
    pub(super) get: bool,
    pub(super) form: SetForm,
}

impl Store {
    /// Executes any command at the store's own time.
    pub(super) fn execute(&mut self, command: &Command<'_>, reply: &mut BytesMut) {
        match *command {
            Command::Set { key, value, condition, expiry, get, form } => {
                self.set(Set { key, value, condition, expiry, get, form }, reply);
            }
            Command::GetEx { key, expiry } => self.get_ex(key, expiry, reply),
            Command::GetDel { key } => match self.remove(key) {
                Some(entry) => Token::Bulk(entry.value.bytes()).encode(reply),
                None => Token::Nil.encode(reply),
            },
            Command::MSet { pairs, only_if_absent } => self.mset(pairs, only_if_absent, reply),
            Command::IncrBy { key, by } => self.incr_by(key, by, reply),
            Command::IncrByFloat { key, by } => self.incr_by_float(key, by, reply),
            Command::Append { key, value } => self.append(key, value, reply),
            Command::SetRange { key, offset, value } => self.set_range(key, offset, value, reply),
            Command::Transaction { writes: true, watches, commands } => {
                self.transaction(watches, commands, reply);
            }
            _ if command.is_write() => self.execute_on_keys(command, reply),
            _ => self.read(self.time_ms(), command, reply),
        }
    }

    fn set(&mut self, set: Set<'_>, reply: &mut BytesMut) {
        let Set { key, value, condition, expiry, get, form } = set;
        let Some(deadline) = self.deadline(expiry) else {
            return put_invalid_expiry(reply, form.name());
        };
        let start = reply.len();
        let old = self.value(key);
        if get {
            old.map_or(Token::Nil, Token::Bulk).encode(reply);
        }
        let holds = match condition {
            Condition::Always => true,
            Condition::Absent => old.is_none(),
            Condition::Present => old.is_some(),
            Condition::Equals(expected) => old == Some(expected),
        };
        if holds {
            match deadline {
                Some(deadline) => self.put_until(key, value, deadline),
                None => self.put(key, value),
            }
        }
        debug_assert!(!get || reply.len() > start);
        match form {
            _ if get => {}
            SetForm::SetNx => Token::Int(i64::from(holds)).encode(reply),
            _ if holds => Token::Ok.encode(reply),
            _ => Token::Nil.encode(reply),
        }
    }

    fn get_ex(&mut self, key: &[u8], expiry: Expiry, reply: &mut BytesMut) {
        let Some(entry) = self.entry(key) else {
            return Token::Nil.encode(reply);
        };
        let Some(deadline) = self.deadline(expiry) else {
            return put_invalid_expiry(reply, "getex");
        };
        Token::Bulk(entry.value.bytes()).encode(reply);
        if let Some(deadline) = deadline
            && deadline != entry.deadline_ms
        {
            self.set_deadline(key, deadline);
        }
    }

    fn mset(&mut self, pairs: Items<'_>, only_if_absent: bool, reply: &mut BytesMut) {
        if only_if_absent && pairs.pairs().any(|(key, _)| self.contains(key)) {
            return Token::Int(0).encode(reply);
        }
        for (key, value) in pairs.pairs() {
            self.put_until(key, value, 0);
        }
        if only_if_absent { Token::Int(1) } else { Token::Ok }.encode(reply);
    }

    fn incr_by(&mut self, key: &[u8], by: i64, reply: &mut BytesMut) {
        let Some(old) = self.value(key).map_or(Some(0), parse_integer) else {
            return put_error(reply, NOT_AN_INTEGER);
        };
        let Some(new) = old.checked_add(by) else {
            return put_error(reply, "ERR increment or decrement would overflow");
        };
        let mut text = [0u8; 20];
        let mut rest = &mut text[..];
        // Twenty bytes hold every i64, so the write cannot fail.
        let _ = write!(rest, "{new}");
        let length = 20 - rest.len();
        self.put(key, &text[..length]);
        Token::Int(new).encode(reply);
    }

    fn incr_by_float(&mut self, key: &[u8], by: &[u8], reply: &mut BytesMut) {
        match add_decimals(self.value(key).unwrap_or(b"0"), by) {
            Ok(text) => {
                self.put(key, text.as_bytes());
                Token::Bulk(text.as_bytes()).encode(reply);
            }
            Err(FloatError::NotANumber) => put_error(reply, "ERR value is not a valid float"),
            Err(FloatError::NotFinite) => {
                put_error(reply, "ERR increment would produce NaN or Infinity");
            }
        }
    }

    fn append(&mut self, key: &[u8], value: &[u8], reply: &mut BytesMut) {
        let Some(old) = self.value(key) else {
            self.put(key, value);
            return Token::Int(value.len() as i64).encode(reply);
        };
        if old.len() + value.len() > self.limits.max_value_bytes {
            return put_error(reply, TOO_LONG);
        }
        let length = self.grow(key, |bytes| {
            bytes.extend_from_slice(value);
            bytes.len()
        });
        Token::Int(length as i64).encode(reply);
    }

    fn set_range(&mut self, key: &[u8], offset: u64, value: &[u8], reply: &mut BytesMut) {
        if value.is_empty() {
            let length = self.value(key).map_or(0, <[u8]>::len);
            return Token::Int(length as i64).encode(reply);
        }
        let end = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(value.len()));
        let Some(end) = end.filter(|end| *end <= self.limits.max_value_bytes) else {
            return put_error(reply, TOO_LONG);
        };
        let length = self.grow(key, |bytes| {
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[end - value.len()..end].copy_from_slice(value);
            bytes.len()
        });
        Token::Int(length as i64).encode(reply);
    }

    /// The deadline that an expiry means now: `None` when it is invalid, `Some(None)` to keep the
    /// old one, `Some(Some(0))` for none.
    fn deadline(&self, expiry: Expiry) -> Option<Option<u64>> {
        Some(match expiry {
            Expiry::Keep => None,
            Expiry::None => Some(0),
            Expiry::At(deadline) => Some(u64::try_from(deadline).ok().filter(|d| *d > 0)?),
            Expiry::In(duration) => {
                let now = i64::try_from(self.time_ms()).ok()?;
                let deadline = now.checked_add(duration).filter(|_| duration > 0)?;
                Some(u64::try_from(deadline).ok()?)
            }
        })
    }
}

/// `GETRANGE`: the part of `value` between two inclusive offsets, negative ones from the end.
pub(super) fn range(value: &[u8], start: i64, end: i64) -> &[u8] {
    // Values are far shorter than 2^63 bytes.
    let length = value.len() as i64;
    if length == 0 || (start < 0 && end < 0 && start > end) {
        return &[];
    }
    let from_end = |offset: i64| if offset < 0 { (length + offset).max(0) } else { offset };
    let (start, end) = (from_end(start), from_end(end).min(length - 1));
    if start > end { &[] } else { &value[start as usize..=end as usize] }
}

pub(super) fn put_invalid_expiry(reply: &mut BytesMut, command: &str) {
    put_error(reply, &format!("ERR invalid expire time in '{command}' command"));
}
