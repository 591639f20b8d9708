//! Client sessions: replicated state that makes a command take effect exactly once.
//!
//! A session is a stream: its commands carry consecutive sequence numbers and are applied in that
//! order. A command that was applied before gets its first outcome again; one that comes too early
//! (something before it was lost on the way) is rejected, and certainly did not happen. The table is
//! changed only while chosen batches are applied, so that all replicas hold the same one.

mod image;

use crate::batch::{GroupHeader, SessionCommand, put_item, take_item};
use crate::mutant::planted;
use crate::{Mutant, Slot, ensures, old, requires};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use bytes::{Bytes, BytesMut};

/// Sessions at the most. Opening one more closes the one that was unused for the longest time.
pub const SESSIONS_MAX: usize = 4096;
/// Numbers of closed sessions that are remembered, so that a late copy of the command that opened one does
/// not open it again: the longest unused ones are forgotten first.
pub const CLOSED_MAX: usize = 16_384;
/// Outcomes kept for one session; a client that has more commands in flight loses the right to
/// learn the oldest outcomes by a retry.
pub const OUTCOMES_MAX: u64 = 1 << 17;

/// What becomes of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Apply its commands but for the first `known`, which were applied before.
    Apply {
        /// How many at the front of the group were applied before.
        known: u32,
    },
    /// All of it was applied before.
    Duplicate,
    /// Rejected: the session expects `expected` next. None of it was applied, now or before.
    Gap {
        /// The sequence number that must come next.
        expected: u64,
    },
    /// Rejected: no such session, or it was closed. Not applied now; an earlier try of the same
    /// commands may have been.
    NoSession,
}

#[derive(Clone, Debug)]
struct Outcomes {
    first: u64,
    count: u32,
    /// Length-prefixed replies, one for each command.
    replies: Bytes,
}

#[derive(Clone, Debug)]
struct Session {
    owner: u16,
    /// 0 for a session that was closed, and is not opened again.
    next_sequence: u64,
    last_used: Slot,
    last_used_ms: u64,
    /// 0 for a session that does not expire.
    idle_ms: u64,
    outcomes: VecDeque<Outcomes>,
}

/// All sessions of the cluster.
#[derive(Clone, Debug, Default)]
pub struct SessionTable {
    /// The closed ones too, as long as they are remembered.
    sessions: BTreeMap<u64, Session>,
    /// The closed ones, by when they were used last.
    closed: BTreeSet<(Slot, u64)>,
    /// Replicated time.
    now_ms: u64,
    /// No session expires before; 0 if none does ever.
    expires_ms: u64,
}

impl SessionTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many sessions are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len() - self.closed.len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get(&self, number: u64) -> Option<&Session> {
        self.sessions.get(&number).filter(|session| session.is_open())
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut Session> {
        self.sessions.get_mut(&number).filter(|session| session.is_open())
    }

    /// Its later groups find no session, for ever: what its number had applied is forgotten, so that the
    /// number must not begin anew (rule S10).
    fn close(&mut self, number: u64) {
        let Some(session) = self.get_mut(number) else { return };
        session.next_sequence = 0;
        session.outcomes = VecDeque::new();
        let last_used = session.last_used;
        self.closed.insert((last_used, number));
        if self.closed.len() > CLOSED_MAX
            && let Some((_, forgotten)) = self.closed.pop_first()
        {
            self.sessions.remove(&forgotten);
        }
    }

    /// Closes those for which `ends` says so; returns how many.
    fn close_where(&mut self, ends: impl Fn(&Session) -> bool) -> usize {
        let open = self.sessions.iter().filter(|(_, session)| session.is_open());
        let ending = open.filter(|(_, session)| ends(session)).map(|(number, _)| *number);
        let ending: alloc::vec::Vec<u64> = ending.collect();
        ending.iter().for_each(|number| self.close(*number));
        ending.len()
    }

    /// The next sequence number that `session` must use; none if it is not open.
    #[must_use]
    pub fn next_sequence(&self, session: u64) -> Option<u64> {
        self.get(session).map(|session| session.next_sequence)
    }

    /// Replicated time is `now_ms`: closes the sessions whose time is over, and returns how many.
    /// Called with the stamp of each batch, before its commands: all replicas close the same ones
    /// at the same slot.
    pub fn advance(&mut self, now_ms: u64) -> usize {
        let before = old!(self.now_ms);
        self.now_ms = self.now_ms.max(now_ms);
        if planted(Mutant::SessionsNeverExpire) {
            return 0;
        }
        ensures!(
            checked,
            T2,
            before.is_none_or(|before| before <= self.now_ms),
            "replicated time moves forward only"
        );
        if self.expires_ms == 0 || self.now_ms < self.expires_ms {
            return 0;
        }
        let now = self.now_ms;
        let closed = self.close_where(|session| session.expires_ms().is_some_and(|at| at <= now));
        let open = self.sessions.values().filter(|session| session.is_open());
        self.expires_ms = open.filter_map(Session::expires_ms).min().unwrap_or(0);
        closed
    }

    /// Carries out a command of the control session.
    pub fn control(&mut self, slot: Slot, command: SessionCommand) {
        match command {
            SessionCommand::Open { session, owner, idle_ms } => {
                self.open(slot, session, owner, idle_ms);
            }
            SessionCommand::Close { session } => self.close(session),
        }
    }

    fn open(&mut self, slot: Slot, number: u64, owner: u16, idle_ms: u64) {
        if number == 0 {
            return;
        }
        if let Some(session) = self.sessions.get_mut(&number) {
            if session.is_open() {
                session.last_used = slot;
                session.last_used_ms = self.now_ms;
            }
            return;
        }
        if owner != 0 {
            self.close_where(|session| session.owner == owner);
        }
        if self.len() >= SESSIONS_MAX {
            let open = self.sessions.iter().filter(|(_, session)| session.is_open());
            let oldest = open.min_by_key(|(number, session)| (session.last_used, **number));
            if let Some(oldest) = oldest.map(|(number, _)| *number) {
                self.close(oldest);
            }
        }
        let session = Session {
            owner,
            next_sequence: 1,
            last_used: slot,
            last_used_ms: self.now_ms,
            idle_ms,
            outcomes: VecDeque::new(),
        };
        if let Some(at) = session.expires_ms() {
            self.expires_ms = if self.expires_ms == 0 { at } else { self.expires_ms.min(at) };
        }
        self.sessions.insert(number, session);
    }

    /// Decides what becomes of a group, and forgets what its session has acknowledged.
    pub fn admit(&mut self, slot: Slot, group: &GroupHeader) -> Admission {
        let now_ms = self.now_ms;
        let Some(session) = self.get_mut(group.session) else {
            return Admission::NoSession;
        };
        requires!(
            checked,
            S8,
            session.expires_ms().is_none_or(|at| at > now_ms),
            "a session whose time is over is closed before a group meets it"
        );
        session.last_used = slot;
        session.last_used_ms = now_ms;
        session.forget_below(group.acknowledged_below);
        // No session counts so far: a group that claims to be there is a gap.
        let end = group.first_sequence.saturating_add(u64::from(group.count));
        if group.first_sequence > session.next_sequence && !planted(Mutant::GapAdmitted) {
            Admission::Gap { expected: session.next_sequence }
        } else if end <= session.next_sequence {
            Admission::Duplicate
        } else {
            let known = session.next_sequence.saturating_sub(group.first_sequence) as u32;
            Admission::Apply { known: if planted(Mutant::KnownAppliedAgain) { 0 } else { known } }
        }
    }

    /// Keeps the outcomes of `count` commands from `first` on, which were just applied.
    ///
    /// # Panics
    /// If they are not the ones that [`SessionTable::admit`] let in.
    pub fn record(&mut self, session: u64, first: u64, count: u32, replies: Bytes) {
        let Some(session) = self.get_mut(session) else { return };
        requires!(
            always,
            S1,
            first == session.next_sequence,
            "a session's commands are applied in order"
        );
        session.next_sequence += u64::from(count);
        ensures!(
            checked,
            S2,
            session.next_sequence == first + u64::from(count),
            "what was applied is below what is expected next"
        );
        session.outcomes.push_back(Outcomes { first, count, replies });
        let floor = session.next_sequence.saturating_sub(OUTCOMES_MAX);
        session.forget_below(floor);
    }

    /// The first outcome of a command that was applied, if it was not forgotten.
    #[must_use]
    pub fn outcome(&self, session: u64, sequence: u64) -> Option<Bytes> {
        let outcomes = &self.get(session)?.outcomes;
        let after = outcomes.partition_point(|outcome| outcome.first <= sequence);
        let outcome = outcomes.get(after.checked_sub(1)?)?;
        let index = sequence - outcome.first;
        if index >= u64::from(outcome.count) {
            return None;
        }
        let mut rest = &outcome.replies[..];
        for _ in 0..index {
            take_item(&mut rest)?;
        }
        let reply = take_item(&mut rest)?;
        Some(outcome.replies.slice_ref(reply))
    }
}

impl SessionTable {
    /// The first outcomes of `count` commands from `first` on, as items, if all were applied and
    /// none was forgotten.
    #[must_use]
    pub fn outcomes(&self, session: u64, first: u64, count: u32) -> Option<Bytes> {
        let kept = &self.get(session)?.outcomes;
        let after = kept.partition_point(|outcome| outcome.first <= first);
        let whole = kept.get(after.checked_sub(1)?)?;
        if (whole.first, whole.count) == (first, count) {
            return Some(whole.replies.clone());
        }
        let mut items = BytesMut::new();
        for sequence in first..first.checked_add(u64::from(count))? {
            put_item(&mut items, &self.outcome(session, sequence)?);
        }
        Some(items.freeze())
    }
}

impl Session {
    fn is_open(&self) -> bool {
        self.next_sequence > 0
    }

    /// When it expires if nothing of it comes before; none for never.
    fn expires_ms(&self) -> Option<u64> {
        (self.idle_ms > 0).then(|| self.last_used_ms.saturating_add(self.idle_ms))
    }

    fn forget_below(&mut self, sequence: u64) {
        while let Some(front) = self.outcomes.front() {
            if front.first + u64::from(front.count) > sequence {
                break;
            }
            self.outcomes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(session: u64, first_sequence: u64, count: u32) -> GroupHeader {
        GroupHeader { session, first_sequence, acknowledged_below: 0, count, length: 0 }
    }

    fn replies(texts: &[&str]) -> Bytes {
        let mut out = BytesMut::new();
        for text in texts {
            put_item(&mut out, text.as_bytes());
        }
        out.freeze()
    }

    fn table() -> SessionTable {
        let mut table = SessionTable::new();
        table.control(Slot(1), SessionCommand::Open { session: 5, owner: 1, idle_ms: 0 });
        table
    }

    // Rule S2.
    #[test]
    fn retry_gets_the_first_outcome() {
        let mut table = table();
        assert_eq!(table.admit(Slot(2), &group(5, 1, 2)), Admission::Apply { known: 0 });
        table.record(5, 1, 2, replies(&["one", "two"]));
        assert_eq!(table.admit(Slot(3), &group(5, 1, 2)), Admission::Duplicate);
        assert_eq!(table.outcome(5, 1).unwrap(), "one");
        assert_eq!(table.outcome(5, 2).unwrap(), "two");
        assert_eq!(table.outcome(5, 3), None);
        assert_eq!(table.admit(Slot(3), &group(5, 2, 3)), Admission::Apply { known: 1 });
    }

    // Rule S1.
    #[test]
    fn a_command_before_its_turn_is_rejected() {
        let mut table = table();
        assert_eq!(table.admit(Slot(2), &group(5, 2, 1)), Admission::Gap { expected: 1 });
        assert_eq!(table.admit(Slot(2), &group(6, 1, 1)), Admission::NoSession);
        let absurd = group(5, u64::MAX, 2);
        assert_eq!(table.admit(Slot(2), &absurd), Admission::Gap { expected: 1 });
    }

    #[test]
    fn acknowledged_outcomes_are_forgotten() {
        let mut table = table();
        for sequence in 1..=3 {
            table.admit(Slot(2), &group(5, sequence, 1));
            table.record(5, sequence, 1, replies(&["x"]));
        }
        let mut next = group(5, 4, 1);
        next.acknowledged_below = 3;
        table.admit(Slot(3), &next);
        assert_eq!(table.outcome(5, 2), None);
        assert_eq!(table.outcome(5, 3).unwrap(), "x");
    }

    // Rule S5.
    #[test]
    fn a_new_life_of_a_front_end_closes_the_session_of_the_old_one() {
        let mut table = table();
        table.control(Slot(2), SessionCommand::Open { session: 6, owner: 1, idle_ms: 0 });
        assert_eq!(table.admit(Slot(3), &group(5, 1, 1)), Admission::NoSession);
        assert_eq!(table.admit(Slot(3), &group(6, 1, 1)), Admission::Apply { known: 0 });
        // A late copy of the first Open does not bring it back over the newer one for long, and
        // opening an open session changes nothing.
        table.record(6, 1, 1, replies(&["y"]));
        table.control(Slot(4), SessionCommand::Open { session: 6, owner: 1, idle_ms: 0 });
        assert_eq!(table.admit(Slot(5), &group(6, 1, 1)), Admission::Duplicate);
    }

    // Rule S10.
    #[test]
    fn a_late_copy_of_its_opening_does_not_bring_a_closed_session_back() {
        let mut table = SessionTable::new();
        table.advance(1_000);
        let open = |session, idle_ms| SessionCommand::Open { session, owner: 0, idle_ms };
        let owned = |session| SessionCommand::Open { session, owner: 4, idle_ms: 0 };
        // One is closed, one expires, one is closed by the next life of its owner.
        for command in [open(7, 0), open(8, 500), owned(9)] {
            table.control(Slot(2), command);
        }
        for session in [7, 8, 9] {
            assert_eq!(table.admit(Slot(3), &group(session, 1, 1)), Admission::Apply { known: 0 });
            table.record(session, 1, 1, replies(&["x"]));
        }
        table.control(Slot(4), SessionCommand::Close { session: 7 });
        assert_eq!(table.advance(1_500), 1);
        table.control(Slot(5), owned(10));
        for command in [open(7, 0), open(8, 500), owned(9)] {
            table.control(Slot(6), command);
        }
        for session in [7, 8, 9] {
            assert_eq!(table.admit(Slot(7), &group(session, 1, 1)), Admission::NoSession);
            assert_eq!((table.next_sequence(session), table.outcome(session, 1)), (None, None));
        }
        assert_eq!(table.admit(Slot(7), &group(10, 1, 1)), Admission::Apply { known: 0 });
        assert_eq!(table.len(), 1);
    }

    // Rule S7.
    #[test]
    fn as_many_closed_sessions_are_remembered_as_there_is_room_for() {
        let mut table = SessionTable::new();
        for number in 1..=CLOSED_MAX as u64 + 1 {
            let open = SessionCommand::Open { session: number, owner: 0, idle_ms: 0 };
            table.control(Slot(number), open);
            table.control(Slot(number), SessionCommand::Close { session: number });
        }
        assert_eq!((table.len(), table.sessions.len()), (0, CLOSED_MAX));
        let open = |session| SessionCommand::Open { session, owner: 0, idle_ms: 0 };
        table.control(Slot(1 << 20), open(1));
        table.control(Slot(1 << 20), open(2));
        assert_eq!((table.next_sequence(1), table.next_sequence(2)), (Some(1), None));
    }

    // Rule S7.
    #[test]
    fn the_table_is_bounded_and_the_longest_unused_goes() {
        let mut table = SessionTable::new();
        for number in 1..=SESSIONS_MAX as u64 + 1 {
            table.control(
                Slot(number),
                SessionCommand::Open { session: number, owner: 0, idle_ms: 0 },
            );
        }
        assert_eq!(table.len(), SESSIONS_MAX);
        assert_eq!(table.next_sequence(1), None);
        assert_eq!(table.next_sequence(2), Some(1));
    }

    #[test]
    fn outcomes_come_whole_in_part_or_not_at_all() {
        let mut table = table();
        for (first, texts) in [(1, &["a", "b"][..]), (3, &["c"])] {
            assert!(matches!(
                table.admit(Slot(2), &group(5, first, texts.len() as u32)),
                Admission::Apply { .. }
            ));
            table.record(5, first, texts.len() as u32, replies(texts));
        }
        assert_eq!(table.outcomes(5, 1, 2), Some(replies(&["a", "b"])));
        assert_eq!(table.outcomes(5, 2, 2), Some(replies(&["b", "c"])));
        assert_eq!(table.outcomes(5, 3, 2), None);
        assert_eq!(table.outcomes(6, 1, 1), None);
        let mut later = group(5, 4, 1);
        later.acknowledged_below = 3;
        table.admit(Slot(3), &later);
        assert_eq!(table.outcomes(5, 1, 2), None, "acknowledged and forgotten");
    }

    // Rule S8.
    #[test]
    fn an_idle_session_is_closed_by_replicated_time_and_a_used_one_is_not() {
        let mut table = table();
        table.advance(1_000);
        let open = |session| SessionCommand::Open { session, owner: 0, idle_ms: 500 };
        table.control(Slot(2), open(7));
        table.control(Slot(2), open(8));
        assert_eq!(table.advance(1_400), 0);
        assert_eq!(table.admit(Slot(3), &group(8, 1, 1)), Admission::Apply { known: 0 });
        assert_eq!(table.advance(1_499), 0);
        assert_eq!(table.advance(1_500), 1, "seven was idle for half a second");
        assert_eq!(table.admit(Slot(4), &group(7, 1, 1)), Admission::NoSession);
        assert_eq!(table.advance(1_899), 0, "eight was used at 1400");
        table.control(Slot(5), open(8));
        assert_eq!(table.advance(1_900), 0, "opening it again is a sign of life");
        assert_eq!(table.advance(2_399), 1);
        assert_eq!(table.advance(1 << 50), 0, "five has no limit");
        assert_eq!(table.len(), 1);
    }
}
