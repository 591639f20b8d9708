//! What the reads, and the commands on the key space, do.

use super::command::{Command, ExpireOptions, Expiry, TtlForm};
use super::glob;
use super::items::Items;
use super::reply::Token;
use super::store::{BUCKETS, Store, put_error};
use super::strings::{put_invalid_expiry, range};
use bytes::BytesMut;

const REPLY_TOO_LONG: &str = "ERR the reply exceeds the limit of the server";

impl Store {
    /// Answers a read. `now_ms` is not before the store's time.
    pub(super) fn read(&self, now_ms: u64, command: &Command<'_>, reply: &mut BytesMut) {
        let put_value = |value: Option<&[u8]>, reply: &mut BytesMut| {
            value.map_or(Token::Nil, Token::Bulk).encode(reply);
        };
        match *command {
            Command::Get { key } => put_value(self.value(key), reply),
            Command::Strlen { key } => {
                Token::Int(self.value(key).map_or(0, <[u8]>::len) as i64).encode(reply);
            }
            Command::GetRange { key, start, end } => {
                Token::Bulk(range(self.value(key).unwrap_or(b""), start, end)).encode(reply);
            }
            Command::MGet { keys } => {
                let start = reply.len();
                Token::Array(keys.len() as u64).encode(reply);
                for key in keys.iter() {
                    put_value(self.value(key), reply);
                    if self.refuse_too_long(start, reply) {
                        return;
                    }
                }
            }
            Command::Exists { keys } => {
                let count = keys.iter().filter(|key| self.contains(key)).count();
                Token::Int(count as i64).encode(reply);
            }
            Command::Ttl { key, form } => Token::Int(self.ttl(now_ms, key, form)).encode(reply),
            Command::Type { key } => {
                let name: &[u8] = if self.contains(key) { b"string" } else { b"none" };
                Token::Simple(name).encode(reply);
            }
            Command::RandomKey { seed } => put_value(self.random_key(seed), reply),
            Command::Keys { pattern } => self.keys(pattern, reply),
            Command::Scan { cursor, count, pattern, strings } => {
                self.scan(cursor, count, pattern, strings, reply);
            }
            Command::DbSize => Token::Int(self.len() as i64).encode(reply),
            Command::Versions { keys } => {
                Token::Array(keys.len() as u64).encode(reply);
                keys.iter().for_each(|key| Token::Int(self.version(key) as i64).encode(reply));
            }
            Command::Transaction { writes: false, watches, commands } => {
                self.read_transaction(now_ms, watches, commands, reply);
            }
            _ => put_error(reply, "ERR a write cannot be answered as a read"),
        }
    }

    /// Executes the writes that concern keys more than values.
    pub(super) fn execute_on_keys(&mut self, command: &Command<'_>, reply: &mut BytesMut) {
        match *command {
            Command::Del { keys } => {
                let count = keys.iter().filter(|key| self.remove(key).is_some()).count();
                Token::Int(count as i64).encode(reply);
            }
            Command::Expire { key, expiry, options, seconds } => {
                self.expire(key, expiry, options, seconds, reply);
            }
            Command::Persist { key } => {
                let had = self.entry(key).is_some_and(|entry| entry.deadline_ms != 0);
                if had {
                    self.set_deadline(key, 0);
                }
                Token::Int(i64::from(had)).encode(reply);
            }
            Command::Rename { from, to, only_if_absent } => {
                self.rename(from, to, only_if_absent, reply);
            }
            Command::FlushAll => {
                self.clear();
                Token::Ok.encode(reply);
            }
            _ => put_error(reply, "ERR not a write"),
        }
    }

    fn expire(
        &mut self,
        key: &[u8],
        expiry: Expiry,
        options: ExpireOptions,
        seconds: bool,
        reply: &mut BytesMut,
    ) {
        let deadline = match expiry {
            Expiry::In(duration) => {
                i64::try_from(self.time_ms()).ok().and_then(|now| now.checked_add(duration))
            }
            Expiry::At(deadline) => Some(deadline),
            Expiry::None | Expiry::Keep => None,
        };
        let Some(deadline) = deadline else {
            let name = if seconds { "expire" } else { "pexpire" };
            return put_invalid_expiry(reply, name);
        };
        let Some(entry) = self.entry(key) else {
            return Token::Int(0).encode(reply);
        };
        // No deadline counts as infinitely late.
        let old = if entry.deadline_ms == 0 { None } else { Some(entry.deadline_ms as i64) };
        let refused = (options.has(ExpireOptions::NX) && old.is_some())
            || (options.has(ExpireOptions::XX) && old.is_none())
            || (options.has(ExpireOptions::GT) && old.is_none_or(|old| deadline <= old))
            || (options.has(ExpireOptions::LT) && old.is_some_and(|old| deadline >= old));
        if !refused {
            // Every deadline at or before the first millisecond is past: 0 itself would mean none.
            self.set_deadline(key, u64::try_from(deadline).unwrap_or(0).max(1));
        }
        Token::Int(i64::from(!refused)).encode(reply);
    }

    fn rename(&mut self, from: &[u8], to: &[u8], only_if_absent: bool, reply: &mut BytesMut) {
        let outcome = |done: bool| match (only_if_absent, done) {
            (true, done) => Token::Int(i64::from(done)),
            (false, _) => Token::Ok,
        };
        if !self.contains(from) {
            return put_error(reply, "ERR no such key");
        }
        if from == to || (only_if_absent && self.contains(to)) {
            return outcome(false).encode(reply);
        }
        if let Some(entry) = self.remove(from) {
            self.put_until(to, entry.value.bytes(), entry.deadline_ms);
        }
        outcome(true).encode(reply);
    }

    /// -2 for an absent key, -1 for one without a deadline. What remains is at least 1 ms, since
    /// the key exists; seconds are rounded to the nearest, as Redis does.
    fn ttl(&self, now_ms: u64, key: &[u8], form: TtlForm) -> i64 {
        let Some(entry) = self.entry(key) else {
            return -2;
        };
        let deadline = entry.deadline_ms;
        let milliseconds = match (deadline, form.absolute) {
            (0, _) => return -1,
            (deadline, true) => deadline,
            (deadline, false) => deadline.saturating_sub(now_ms).max(1),
        };
        let rounded =
            if form.milliseconds { milliseconds } else { milliseconds.saturating_add(500) / 1000 };
        i64::try_from(rounded).unwrap_or(i64::MAX)
    }

    fn random_key(&self, seed: u64) -> Option<&[u8]> {
        let first = seed as usize % BUCKETS;
        let bucket = self.buckets[first..]
            .iter()
            .chain(&self.buckets[..first])
            .find(|bucket| !bucket.entries().is_empty())?;
        let index = (seed >> 32) as usize % bucket.entries().len();
        Some(&bucket.entries()[index].key)
    }

    fn keys(&self, pattern: &[u8], reply: &mut BytesMut) {
        let start = reply.len();
        let matching = || {
            let entries = self.buckets.iter().flat_map(|bucket| bucket.entries());
            entries.filter(|entry| pattern == b"*" || glob::matches(pattern, &entry.key, false))
        };
        Token::Array(matching().count() as u64).encode(reply);
        for entry in matching() {
            Token::Bulk(&entry.key).encode(reply);
            if self.refuse_too_long(start, reply) {
                return;
            }
        }
    }

    /// The cursor is the number of the next bucket; 0 begins, and means the end in the reply. A key
    /// that exists all the time is met once, as its bucket never changes.
    fn scan(&self, cursor: u64, count: u64, pattern: &[u8], strings: bool, reply: &mut BytesMut) {
        let mut next = usize::try_from(cursor).unwrap_or(BUCKETS).min(BUCKETS);
        let first = next;
        let mut met = 0u64;
        while next < BUCKETS && met < count {
            met += self.buckets[next].entries().len() as u64;
            next += 1;
        }
        let matching = || {
            let entries = self.buckets[first..next].iter().flat_map(|bucket| bucket.entries());
            entries.filter(|entry| {
                strings && (pattern == b"*" || glob::matches(pattern, &entry.key, false))
            })
        };
        Token::Array(2).encode(reply);
        let after = if next == BUCKETS { 0 } else { next };
        Token::Bulk(after.to_string().as_bytes()).encode(reply);
        Token::Array(matching().count() as u64).encode(reply);
        matching().for_each(|entry| Token::Bulk(&entry.key).encode(reply));
    }

    /// Runs the commands of an `EXEC` that writes.
    pub(super) fn transaction(
        &mut self,
        watches: Items<'_>,
        commands: Items<'_>,
        reply: &mut BytesMut,
    ) {
        if !self.watches_hold(watches) {
            return Token::NilArray.encode(reply);
        }
        let start = reply.len();
        Token::Array(commands.len() as u64).encode(reply);
        for command in commands.iter() {
            let before = reply.len();
            match decode_inner(command) {
                Some(command) => self.execute(&command, reply),
                None => put_error(reply, "ERR malformed command"),
            }
            self.shorten(start, before, reply);
        }
    }

    fn read_transaction(
        &self,
        now_ms: u64,
        watches: Items<'_>,
        commands: Items<'_>,
        reply: &mut BytesMut,
    ) {
        if !self.watches_hold(watches) {
            return Token::NilArray.encode(reply);
        }
        let start = reply.len();
        Token::Array(commands.len() as u64).encode(reply);
        for command in commands.iter() {
            let before = reply.len();
            match decode_inner(command) {
                Some(command) => self.read(now_ms, &command, reply),
                None => put_error(reply, "ERR malformed command"),
            }
            self.shorten(start, before, reply);
        }
    }

    fn watches_hold(&self, watches: Items<'_>) -> bool {
        watches.iter().all(|mut watch| {
            let version = super::frame::take_varint(&mut watch);
            version == Some(self.version(watch))
        })
    }

    /// Replaces the reply since `start` by an error when it has become too long.
    fn refuse_too_long(&self, start: usize, reply: &mut BytesMut) -> bool {
        let too_long = reply.len() - start > self.limits.max_reply_bytes;
        if too_long {
            reply.truncate(start);
            put_error(reply, REPLY_TOO_LONG);
        }
        too_long
    }

    /// Replaces the last element of a transaction's reply by an error when the whole has become too
    /// long: what the command changed stays changed, and its reply alone is lost.
    fn shorten(&self, start: usize, before: usize, reply: &mut BytesMut) {
        if reply.len() - start > self.limits.max_reply_bytes
            && reply.len() - before > REPLY_TOO_LONG.len()
        {
            reply.truncate(before);
            put_error(reply, REPLY_TOO_LONG);
        }
    }
}

/// A command inside a transaction: anything but another transaction, so that the depth is bounded.
fn decode_inner(command: &[u8]) -> Option<Command<'_>> {
    Command::decode(command).ok().filter(|c| !matches!(c, Command::Transaction { .. }))
}
