//! The commands of this process's clients on their way: numbered in one session, sent to the leader
//! of the day, sent again when something was lost, answered when they are applied here.

use crate::arena;
use crate::front::{Failure, Reason, ReplySender};
use bytes::{BufMut, Bytes, BytesMut};
use quorate_consensus::Nanos;
use quorate_consensus::batch::{
    CONTROL_SESSION, GROUP_HEADER_BYTES, GroupHeader, SessionCommand, take_item,
};
use quorate_consensus::session::SessionTable;
use std::collections::VecDeque;

/// Commands under way at the most: bounds the session's outcomes on every replica.
pub(crate) const COMMANDS_MAX: u64 = 1 << 15;
/// Payload bytes under way at the most.
pub(crate) const BYTES_MAX: usize = 32 << 20;
/// Nothing came back for so long: send again. Duplicates cost bytes, not correctness.
const RESEND_AFTER: Nanos = Nanos::from_millis(1_000);
/// A gap makes us send again at most this often.
const GAP_RESEND_EVERY: Nanos = Nanos::from_millis(20);

#[derive(Debug)]
struct Submission {
    first: u64,
    count: u32,
    commands: Bytes,
    /// None once the client was told "unknown": the command stays, or the session would have a hole.
    reply: Option<ReplySender>,
    submitted_at: Nanos,
}

/// One session's commands under way.
#[derive(Debug)]
pub(crate) struct Origin {
    session: u64,
    owner: u16,
    open: bool,
    next: u64,
    submissions: VecDeque<Submission>,
    bytes: usize,
    /// How many submissions, from the front, were sent to the present leader.
    sent: usize,
    open_sent: bool,
    moved_at: Nanos,
    resent_at: Nanos,
    time_limit: Nanos,
}

impl Origin {
    pub(crate) fn new(session: u64, owner: u16, time_limit: Nanos) -> Self {
        Self {
            session,
            owner,
            open: false,
            next: 1,
            submissions: VecDeque::new(),
            bytes: 0,
            sent: 0,
            open_sent: false,
            moved_at: Nanos(0),
            resent_at: Nanos(0),
            time_limit,
        }
    }

    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// Whether another submission may be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.open && self.bytes < BYTES_MAX && self.in_flight() < COMMANDS_MAX
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.submissions.front().map_or(0, |front| self.next - front.first)
    }

    /// Numbers a submission's commands and keeps it until they are applied.
    pub(crate) fn submit(&mut self, count: u32, commands: Bytes, reply: ReplySender, now: Nanos) {
        if self.submissions.is_empty() {
            self.moved_at = now;
        }
        self.bytes += commands.len();
        let first = self.next;
        self.next += u64::from(count);
        let reply = Some(reply);
        self.submissions.push_back(Submission { first, count, commands, reply, submitted_at: now });
    }

    /// Whether something waits to be sent to the leader.
    pub(crate) fn is_due(&self) -> bool {
        self.sent < self.submissions.len() || (!self.open && !self.open_sent)
    }

    /// Appends the group that is due, of about `bytes_max` at the most; returns how many commands
    /// it holds. Call [`Origin::sent`] when it is on its way.
    pub(crate) fn take_due(&self, out: &mut BytesMut, bytes_max: usize) -> (usize, u32) {
        if !self.open {
            let start = out.len();
            let header = GroupHeader {
                session: CONTROL_SESSION,
                first_sequence: 0,
                acknowledged_below: 0,
                count: 1,
                length: 12,
            };
            header.encode(out);
            SessionCommand::Open { session: self.session, owner: self.owner, idle_ms: 0 }
                .encode(out);
            debug_assert_eq!(out.len() - start, GROUP_HEADER_BYTES + 12);
            return (0, 1);
        }
        let mut submissions = 0;
        let (mut count, mut length) = (0u32, 0usize);
        for submission in self.submissions.range(self.sent..) {
            let larger = length + submission.commands.len();
            if submissions > 0 && larger > bytes_max {
                break;
            }
            length = larger;
            count += submission.count;
            submissions += 1;
        }
        if submissions == 0 {
            return (0, 0);
        }
        arena::reserve(out, GROUP_HEADER_BYTES + length);
        let header = GroupHeader {
            session: self.session,
            first_sequence: self.submissions[self.sent].first,
            acknowledged_below: self.submissions[0].first,
            count,
            length: length as u32,
        };
        header.encode(out);
        for submission in self.submissions.range(self.sent..self.sent + submissions) {
            out.put_slice(&submission.commands);
        }
        (submissions, count)
    }

    /// What [`Origin::take_due`] gave was sent.
    pub(crate) fn sent(&mut self, submissions: usize, now: Nanos) {
        if self.open {
            self.sent += submissions;
        } else {
            self.open_sent = true;
            self.moved_at = now;
        }
    }

    /// Whoever had what was sent may have lost it: send all of it again. The session table sorts out
    /// what was applied already.
    pub(crate) fn send_again(&mut self, now: Nanos) {
        self.sent = 0;
        self.open_sent = false;
        self.moved_at = now;
        self.resent_at = now;
    }

    /// The session is open.
    pub(crate) fn opened(&mut self) {
        self.open = true;
    }

    /// A group of ours was rejected because something before it is missing.
    pub(crate) fn on_gap(&mut self, now: Nanos) {
        if now.since(self.resent_at) >= GAP_RESEND_EVERY {
            self.send_again(now);
        }
    }

    /// The session was closed under us: what was sent may have happened or not.
    pub(crate) fn on_session_closed(&mut self, session: u64) -> u64 {
        let mut failed = 0;
        for (index, submission) in self.submissions.drain(..).enumerate() {
            let reason = Reason::SessionClosed;
            let failure = if index < self.sent {
                Failure::Unknown(reason)
            } else {
                Failure::Rejected(reason)
            };
            if let Some(reply) = submission.reply {
                failed += 1;
                let _ = reply.send(Err(failure));
            }
        }
        *self = Self::new(session, self.owner, self.time_limit);
        failed
    }

    /// Commands `first..first + count` were applied, with these replies (items, one for each). Calls
    /// `record` with the microseconds that each submission took, in order.
    pub(crate) fn applied(
        &mut self,
        first: u64,
        count: u32,
        replies: &Bytes,
        now: Nanos,
        mut record: impl FnMut(u64),
    ) {
        let end = first + u64::from(count);
        let mut rest = &replies[..];
        let mut at = first;
        while let Some(front) = self.submissions.front() {
            if front.first + u64::from(front.count) > end {
                break;
            }
            debug_assert!(front.first >= at, "groups hold whole submissions");
            while at < front.first && take_item(&mut rest).is_some() {
                at += 1;
            }
            let start = rest;
            let mut taken = 0;
            while taken < front.count && take_item(&mut rest).is_some() {
                taken += 1;
            }
            at += u64::from(taken);
            let own = &start[..start.len() - rest.len()];
            let Some(submission) = self.submissions.pop_front() else { break };
            self.sent = self.sent.saturating_sub(1);
            self.bytes -= submission.commands.len();
            record(now.since(submission.submitted_at).0 / 1_000);
            if let Some(reply) = submission.reply {
                let _ = reply.send(Ok(replies.slice_ref(own)));
            }
            self.moved_at = now;
        }
    }

    /// The state was restored, and with it the session table: answers what it has outcomes of, and
    /// sends the rest again. Returns false if this session was open and is not there: see
    /// [`Origin::on_session_closed`].
    pub(crate) fn settle(&mut self, table: &SessionTable, now: Nanos) -> bool {
        let Some(next) = table.next_sequence(self.session) else { return !self.open };
        self.open = true;
        while let Some(front) = self.submissions.front()
            && front.first + u64::from(front.count) <= next
            && let Some(submission) = self.submissions.pop_front()
        {
            self.bytes -= submission.commands.len();
            let outcomes = table.outcomes(self.session, submission.first, submission.count);
            if let Some(reply) = submission.reply {
                // It was applied. Outcomes of what its client waits for are not forgotten.
                let _ = reply.send(outcomes.ok_or(Failure::Unknown(Reason::SessionClosed)));
            }
        }
        self.send_again(now);
        true
    }

    /// Tells clients whose time is over that they will not learn the outcome, and sends again what
    /// seems lost. Returns how many were told. `reject` is a known mistake: see `RejectInFlight`.
    pub(crate) fn on_time(&mut self, now: Nanos, reject: bool) -> u64 {
        let waiting = !self.submissions.is_empty() || !self.open;
        if waiting && now.since(self.moved_at) >= RESEND_AFTER {
            self.send_again(now);
        }
        let mut told = 0;
        for submission in &mut self.submissions {
            if now.since(submission.submitted_at) < self.time_limit {
                break;
            }
            if let Some(reply) = submission.reply.take() {
                told += 1;
                let failure = if reject { Failure::Rejected } else { Failure::Unknown };
                let _ = reply.send(Err(failure(Reason::TimedOut)));
            }
        }
        told
    }

    /// This replica will not learn any outcome any more: what was submitted is unknown.
    pub(crate) fn give_up(&mut self, reason: &Reason) {
        for submission in &mut self.submissions {
            if let Some(reply) = submission.reply.take() {
                let _ = reply.send(Err(Failure::Unknown(reason.clone())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_consensus::batch::{put_item, take_group};
    use tokio::sync::oneshot;

    fn items(texts: &[&str]) -> Bytes {
        let mut out = BytesMut::new();
        for text in texts {
            put_item(&mut out, text.as_bytes());
        }
        out.freeze()
    }

    fn open_origin() -> Origin {
        let mut origin = Origin::new(9, 1, Nanos::from_millis(100));
        origin.opened();
        origin
    }

    #[test]
    fn replies_go_to_the_submissions_they_belong_to() {
        let mut origin = open_origin();
        let (first, mut first_reply) = oneshot::channel();
        let (second, mut second_reply) = oneshot::channel();
        origin.submit(2, items(&["a", "b"]), first, Nanos(0));
        origin.submit(1, items(&["c"]), second, Nanos(0));
        let mut out = BytesMut::new();
        assert_eq!(origin.take_due(&mut out, 1 << 20), (2, 3));
        origin.sent(2, Nanos(0));
        assert!(!origin.is_due());
        let group = take_group(&mut out.freeze()).unwrap();
        assert_eq!((group.header.first_sequence, group.header.count), (1, 3));
        origin.applied(1, 3, &items(&["A", "B", "C"]), Nanos(0), |_| {});
        assert_eq!(first_reply.try_recv().unwrap().unwrap(), items(&["A", "B"]));
        assert_eq!(second_reply.try_recv().unwrap().unwrap(), items(&["C"]));
        assert_eq!(origin.in_flight(), 0);
    }

    // Rule S3.
    #[test]
    fn what_was_lost_is_sent_again_in_the_same_order() {
        let mut origin = open_origin();
        for text in ["a", "b", "c"] {
            let (reply, _) = oneshot::channel();
            origin.submit(1, items(&[text]), reply, Nanos(0));
        }
        let mut out = BytesMut::new();
        let (submissions, _) = origin.take_due(&mut out, 1);
        assert_eq!(submissions, 1, "a small limit still lets one through");
        origin.sent(1, Nanos(0));
        origin.applied(1, 1, &items(&["A"]), Nanos(0), |_| {});
        origin.send_again(Nanos(0));
        let mut again = BytesMut::new();
        assert_eq!(origin.take_due(&mut again, 1 << 20).0, 2);
        let group = take_group(&mut again.freeze()).unwrap();
        assert_eq!((group.header.first_sequence, group.commands), (2, items(&["b", "c"])));
    }

    // Rules S4, S6.
    #[test]
    fn time_over_is_unknown_and_leaves_no_hole_in_the_session() {
        let mut origin = open_origin();
        let (reply, mut receiver) = oneshot::channel();
        origin.submit(1, items(&["a"]), reply, Nanos(0));
        origin.sent(1, Nanos(0));
        assert_eq!(origin.on_time(Nanos::from_millis(101), false), 1);
        assert_eq!(receiver.try_recv().unwrap(), Err(Failure::Unknown(Reason::TimedOut)));
        assert_eq!(origin.in_flight(), 1);
        assert_eq!(origin.on_time(Nanos::from_millis(1_001), false), 0);
        assert!(origin.is_due(), "after a second it is sent again");
    }
}
