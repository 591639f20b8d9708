//! The session table in a checkpoint: session by session, in the order of their numbers.

use super::{Outcomes, Session, SessionTable};
use crate::Slot;
use crate::batch::take_item;
use alloc::collections::VecDeque;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What a session takes beside its outcomes.
const SESSION_BYTES: usize = 46;
/// What some outcomes take beside their replies.
const OUTCOMES_BYTES: usize = 16;

impl SessionTable {
    /// Replicated time, as the table knows it, and when the next session expires: what
    /// [`SessionTable::restored`] begins with.
    #[must_use]
    pub fn times(&self) -> (u64, u64) {
        (self.now_ms, self.expires_ms)
    }

    /// A table without sessions at these times.
    #[must_use]
    pub fn restored((now_ms, expires_ms): (u64, u64)) -> Self {
        Self { now_ms, expires_ms, ..Self::default() }
    }

    /// Appends the first session with a number above `after`, and returns its number.
    ///
    /// Little endian: number u64, owner u16, next sequence u64 (0: closed, and not opened again), last used slot u64 and time u64, idle
    /// limit u64, count u32; then for each: first u64, count u32, length of the replies u32, replies.
    pub fn put_next(&self, after: u64, out: &mut BytesMut) -> Option<u64> {
        let (number, session) = self.sessions.range(after.checked_add(1)?..).next()?;
        out.put_u64_le(*number);
        out.put_u16_le(session.owner);
        out.put_u64_le(session.next_sequence);
        out.put_u64_le(session.last_used.0);
        out.put_u64_le(session.last_used_ms);
        out.put_u64_le(session.idle_ms);
        out.put_u32_le(session.outcomes.len() as u32);
        for outcomes in &session.outcomes {
            out.put_u64_le(outcomes.first);
            out.put_u32_le(outcomes.count);
            out.put_u32_le(outcomes.replies.len() as u32);
            out.put_slice(&outcomes.replies);
        }
        Some(*number)
    }

    /// Takes back what [`SessionTable::put_next`] wrote; none if that is not what it is, or does not
    /// follow the sessions that are there.
    #[must_use]
    pub fn take_next(&mut self, mut bytes: Bytes) -> Option<()> {
        if bytes.len() < SESSION_BYTES {
            return None;
        }
        let number = bytes.get_u64_le();
        let mut session = Session {
            owner: bytes.get_u16_le(),
            next_sequence: bytes.get_u64_le(),
            last_used: Slot(bytes.get_u64_le()),
            last_used_ms: bytes.get_u64_le(),
            idle_ms: bytes.get_u64_le(),
            outcomes: VecDeque::new(),
        };
        let in_order = self.sessions.last_key_value().is_none_or(|(last, _)| *last < number);
        if number == 0 || !in_order {
            return None;
        }
        let count = bytes.get_u32_le();
        let mut expected = None;
        for _ in 0..count {
            if bytes.len() < OUTCOMES_BYTES {
                return None;
            }
            let (first, count) = (bytes.get_u64_le(), bytes.get_u32_le());
            let length = bytes.get_u32_le() as usize;
            let end = first.checked_add(u64::from(count))?;
            if bytes.len() < length || expected.is_some_and(|expected| first != expected) {
                return None;
            }
            let replies = bytes.split_to(length);
            let mut rest = &replies[..];
            for _ in 0..count {
                take_item(&mut rest)?;
            }
            if !rest.is_empty() || end > session.next_sequence {
                return None;
            }
            expected = Some(end);
            // A copy of its own: the image's buffer is not kept for as long as an outcome is.
            let replies = Bytes::copy_from_slice(&replies);
            session.outcomes.push_back(Outcomes { first, count, replies });
        }
        bytes.is_empty().then(|| {
            if !session.is_open() {
                self.closed.insert((session.last_used, number));
            }
            self.sessions.insert(number, session);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{GroupHeader, SessionCommand, put_item};
    use crate::session::Admission;

    fn table() -> SessionTable {
        let mut table = SessionTable::new();
        table.advance(1_000);
        for session in [3, 9, 77] {
            let open = SessionCommand::Open { session, owner: 0, idle_ms: session * 100 };
            table.control(Slot(session), open);
            for first in [1, 4] {
                let header = GroupHeader {
                    session,
                    first_sequence: first,
                    acknowledged_below: 0,
                    count: 3,
                    length: 0,
                };
                assert!(matches!(table.admit(Slot(90), &header), Admission::Apply { .. }));
                let mut replies = BytesMut::new();
                for reply in ["one", "", "three"] {
                    put_item(&mut replies, reply.as_bytes());
                }
                table.record(session, first, 3, replies.freeze());
            }
        }
        table.control(Slot(91), SessionCommand::Open { session: 50, owner: 0, idle_ms: 0 });
        table.control(Slot(92), SessionCommand::Close { session: 50 });
        table
    }

    fn image(table: &SessionTable) -> alloc::vec::Vec<Bytes> {
        let mut sessions = alloc::vec::Vec::new();
        let mut after = 0;
        loop {
            let mut out = BytesMut::new();
            let Some(number) = table.put_next(after, &mut out) else { return sessions };
            sessions.push(out.freeze());
            after = number;
        }
    }

    #[test]
    fn a_table_comes_back_and_goes_on_like_the_one_it_was_taken_from() {
        let mut before = table();
        let mut after = SessionTable::restored(before.times());
        for session in image(&before) {
            after.take_next(session).expect("whole");
        }
        assert_eq!(image(&after), image(&before));
        assert_eq!(after.outcome(9, 6).as_deref(), Some(&b"three"[..]));
        after.control(Slot(99), SessionCommand::Open { session: 50, owner: 0, idle_ms: 0 });
        assert_eq!(after.next_sequence(50), None, "it was closed");
        for now in [1_200, 1_299, 1_300, 1_900, 8_699, 8_700] {
            assert_eq!(after.advance(now), before.advance(now), "at {now}");
        }
    }

    #[test]
    fn noise_is_refused() {
        let sessions = image(&table());
        for cut in 0..sessions[0].len() {
            assert_eq!(SessionTable::new().take_next(sessions[0].slice(..cut)), None, "{cut}");
        }
        let mut table = SessionTable::new();
        table.take_next(sessions[1].clone()).expect("whole");
        assert_eq!(table.take_next(sessions[0].clone()), None, "out of order");
        let mut longer = sessions[2].to_vec();
        longer.push(0);
        assert_eq!(table.take_next(longer.into()), None);
    }
}
