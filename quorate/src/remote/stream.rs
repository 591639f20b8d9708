//! The commands of one client: numbered, sent, sent again, answered. No sockets and no clock in here.

use bytes::{BufMut, Bytes, BytesMut};
use quorate_consensus::batch::{GroupHeader, SessionCommand, take_item};
use quorate_replica::{Failure, GroupOutcome, Reason, Replier};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Groups on their way at the most.
const GROUPS_MAX: usize = 64;
/// A group takes no further command beyond this many bytes.
const GROUP_BYTES: usize = 256 << 10;
/// Nor beyond this many commands: far below what the session table remembers.
const GROUP_COMMANDS: usize = 1024;
/// What was refused is tried again after this long.
const RETRY_AFTER: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Submission {
    /// Length-prefixed items, as many as `count`.
    commands: Bytes,
    count: u32,
    /// None once the caller was told "unknown": the command stays, or the session had a hole.
    reply: Option<Replier>,
    deadline: Instant,
    /// Its first number; none before it was sent, or when it is certain that no try of it, nor of
    /// any behind it, can take effect.
    first: Option<u64>,
    /// A try of it may have taken effect or still may, and will not be answered.
    uncertain: bool,
}

/// What is under way by one id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flight {
    Open,
    Group { first: u64, count: u32 },
}

/// One session's commands.
#[derive(Debug)]
pub(crate) struct Stream {
    session: u64,
    idle: Duration,
    open: bool,
    /// The session is gone: another one is opened once nothing of this one is in flight.
    closed: bool,
    /// The number of the next submission that gets one.
    next: u64,
    submissions: VecDeque<Submission>,
    bytes: usize,
    /// How many submissions, from the front, are in flight.
    sent: usize,
    flights: BTreeMap<u64, Flight>,
    /// Something was refused: nothing is sent before all in flight is answered and this time came.
    pause: Option<Instant>,
    last_sent: Instant,
}

impl Stream {
    pub(crate) fn new(session: u64, idle: Duration, now: Instant) -> Self {
        Self {
            session: session | 1,
            idle,
            open: false,
            closed: false,
            next: 1,
            submissions: VecDeque::new(),
            bytes: 0,
            sent: 0,
            flights: BTreeMap::new(),
            pause: None,
            last_sent: now,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.submissions.len()
    }

    pub(crate) fn is_in_flight(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Whether callers wait for something.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.submissions.iter().any(|submission| submission.reply.is_some())
    }

    pub(crate) fn submit(
        &mut self,
        commands: Bytes,
        count: u32,
        reply: Replier,
        deadline: Instant,
    ) {
        self.bytes += commands.len();
        let reply = Some(reply);
        let submission =
            Submission { commands, count, reply, deadline, first: None, uncertain: false };
        self.submissions.push_back(submission);
    }

    /// The next group to send, under the id `id`; none if nothing is due.
    pub(crate) fn next_group(&mut self, id: u64, now: Instant) -> Option<Bytes> {
        if let Some(at) = self.pause {
            if !self.flights.is_empty() || now < at {
                return None;
            }
            self.pause = None;
            self.sent = 0;
        }
        let idle = now.duration_since(self.last_sent) >= self.idle / 3;
        if self.closed || (!self.open && !self.flights.is_empty()) {
            return None;
        }
        if !self.open || (idle && self.flights.is_empty() && self.sent == self.submissions.len()) {
            self.flights.insert(id, Flight::Open);
            self.last_sent = now;
            let idle_ms = self.idle.as_millis() as u64;
            let session = self.session;
            return Some(SessionCommand::Open { session, owner: 0, idle_ms }.to_group());
        }
        if self.flights.len() >= GROUPS_MAX || self.sent == self.submissions.len() {
            return None;
        }
        self.last_sent = now;
        Some(self.group(id))
    }

    fn group(&mut self, id: u64) -> Bytes {
        let from = self.sent;
        let (mut count, mut length) = (0u32, 0usize);
        for submission in self.submissions.range_mut(from..) {
            let more = length + submission.commands.len();
            let full = more > GROUP_BYTES || (count + submission.count) as usize > GROUP_COMMANDS;
            if count > 0 && full {
                break;
            }
            if submission.first.is_none() {
                submission.first = Some(self.next);
                self.next += u64::from(submission.count);
            }
            length = more;
            count += submission.count;
            self.sent += 1;
        }
        let first = self.submissions[from].first.unwrap_or(self.next);
        let header = GroupHeader {
            session: self.session,
            first_sequence: first,
            acknowledged_below: self.submissions[0].first.unwrap_or(first),
            count,
            length: length as u32,
        };
        let mut out = BytesMut::with_capacity(64 + length);
        header.encode(&mut out);
        for submission in self.submissions.range(from..self.sent) {
            out.put_slice(&submission.commands);
        }
        self.flights.insert(id, Flight::Group { first, count });
        out.freeze()
    }

    /// The group `id` has an outcome. Returns a reason to try another replica, if it was refused.
    pub(crate) fn on_outcome(
        &mut self,
        id: u64,
        outcome: Result<GroupOutcome, Failure>,
        now: Instant,
    ) -> Option<Reason> {
        let flight = self.flights.remove(&id)?;
        let mut refused = None;
        match (flight, outcome) {
            (Flight::Open, Ok(GroupOutcome::Applied(_))) => self.open = true,
            (Flight::Group { first, count }, Ok(GroupOutcome::Applied(items))) => {
                self.applied(first, count, &items);
            }
            (Flight::Group { first, count }, Ok(GroupOutcome::Forgotten)) => {
                self.forgotten(first, count);
            }
            (_, Ok(GroupOutcome::NoSession)) => self.closed = true,
            (_, Ok(_)) => self.pause = Some(now),
            (flight, Err(failure)) => {
                if let (Failure::Unknown(_), Flight::Group { first, count }) = (&failure, flight) {
                    self.doubt(first, count);
                }
                self.pause = Some(now + RETRY_AFTER);
                let (Failure::Rejected(reason) | Failure::Unknown(reason)) = failure;
                refused = Some(reason);
            }
        }
        self.settle();
        refused
    }

    /// The connection is gone: what was in flight may have arrived.
    pub(crate) fn on_connection_lost(&mut self) {
        for flight in std::mem::take(&mut self.flights).into_values() {
            if let Flight::Group { first, count } = flight {
                self.doubt(first, count);
            }
        }
        self.sent = 0;
        self.pause = None;
        self.settle();
    }

    fn doubt(&mut self, first: u64, count: u32) {
        let end = first + u64::from(count);
        for submission in &mut self.submissions {
            let within = submission.first.is_some_and(|number| number >= first && number < end);
            submission.uncertain |= within;
        }
    }

    fn applied(&mut self, first: u64, count: u32, items: &Bytes) {
        let mut rest = &items[..];
        self.take_group(first, count, |submission| {
            let start = rest;
            for _ in 0..submission.count {
                take_item(&mut rest)?;
            }
            Some(Ok(items.slice_ref(&start[..start.len() - rest.len()])))
        });
    }

    fn forgotten(&mut self, first: u64, count: u32) {
        let reason = Reason::Remote("it was applied, but its outcome is forgotten".into());
        self.take_group(first, count, |_| Some(Err(Failure::Unknown(reason.clone()))));
    }

    /// Takes the submissions of a group out and answers them: `outcome` is called for each in order.
    fn take_group(
        &mut self,
        first: u64,
        count: u32,
        mut outcome: impl FnMut(&Submission) -> Option<Result<Bytes, Failure>>,
    ) {
        let end = first + u64::from(count);
        let at = |submission: &Submission| submission.first.is_some_and(|number| number >= first);
        let Some(index) = self.submissions.iter().position(at) else { return };
        while let Some(submission) = self.submissions.get(index)
            && submission.first.is_some_and(|number| number < end)
        {
            let Some(submission) = self.submissions.remove(index) else { break };
            self.sent = self.sent.saturating_sub(usize::from(index < self.sent));
            self.bytes -= submission.commands.len();
            let unreadable = Err(Failure::Unknown(Reason::Malformed));
            let outcome = outcome(&submission).unwrap_or(unreadable);
            if let Some(reply) = submission.reply {
                reply.send(outcome);
            }
        }
    }

    /// Once nothing is in flight: takes numbers back that certainly nobody used, and leaves a
    /// session that is gone.
    fn settle(&mut self) {
        if !self.flights.is_empty() {
            return;
        }
        if self.closed {
            let keep = |submission: &Submission| !submission.uncertain;
            let (kept, lost) = self.submissions.drain(..).partition(keep);
            let lost: VecDeque<Submission> = lost;
            self.submissions = kept;
            for submission in lost {
                self.bytes -= submission.commands.len();
                if let Some(reply) = submission.reply {
                    reply.send(Err(Failure::Unknown(Reason::SessionClosed)));
                }
            }
            self.submissions.iter_mut().for_each(|submission| submission.first = None);
            self.session = self.session.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(12) | 1;
            (self.open, self.closed, self.next, self.sent) = (false, false, 1, 0);
        }
        for submission in self.submissions.iter_mut().rev() {
            if submission.uncertain {
                break;
            }
            if let Some(first) = submission.first.take() {
                self.next = first;
            }
        }
        self.sent = self.sent.min(self.submissions.len());
        if self.submissions.iter().take(self.sent).any(|submission| submission.first.is_none()) {
            self.sent = 0;
        }
    }

    /// Tells callers whose time is over: *rejected* if no try of theirs can have taken effect.
    pub(crate) fn on_time(&mut self, now: Instant, why: &Reason) {
        let bytes = &mut self.bytes;
        self.submissions.retain_mut(|submission| {
            if now < submission.deadline {
                return true;
            }
            let Some(reply) = submission.reply.take() else { return true };
            let certain = submission.first.is_none();
            reply.send(Err(match certain {
                true => Failure::Rejected(why.clone()),
                false => Failure::Unknown(why.clone()),
            }));
            if certain {
                *bytes -= submission.commands.len();
            }
            !certain
        });
    }

    /// A last word: the session is not needed any more.
    pub(crate) fn close(&self) -> Bytes {
        SessionCommand::Close { session: self.session }.to_group()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use quorate_consensus::batch::CONTROL_SESSION;
    use quorate_consensus::batch::{put_item, take_group};
    use quorate_replica::Pending;

    const IDLE: Duration = Duration::from_secs(600);

    fn items(texts: &[&str]) -> Bytes {
        let mut out = BytesMut::new();
        for text in texts {
            put_item(&mut out, text.as_bytes());
        }
        out.freeze()
    }

    fn submit(stream: &mut Stream, text: &str, deadline: Instant) -> Pending {
        let (reply, pending) = Pending::channel();
        stream.submit(items(&[text]), 1, reply, deadline);
        pending
    }

    fn opened(now: Instant) -> Stream {
        let mut stream = Stream::new(7, IDLE, now);
        assert!(stream.next_group(1, now).is_some(), "it opens its session first");
        assert!(stream.next_group(2, now).is_none(), "and waits until it is open");
        assert_eq!(stream.on_outcome(1, Ok(GroupOutcome::Applied(Bytes::new())), now), None);
        stream
    }

    fn numbers(group: &Bytes) -> (u64, u32, u64) {
        let group = take_group(&mut group.clone()).unwrap();
        (group.header.first_sequence, group.header.count, group.header.session)
    }

    #[test]
    fn replies_find_their_commands() {
        let now = Instant::now();
        let mut stream = opened(now);
        let pending: Vec<_> =
            ["a", "b", "c"].iter().map(|text| submit(&mut stream, text, now + IDLE)).collect();
        let group = stream.next_group(2, now).unwrap();
        assert_eq!(numbers(&group), (1, 3, 7));
        stream.on_outcome(2, Ok(GroupOutcome::Applied(items(&["A", "B", "C"]))), now);
        let replies: Vec<_> = pending.into_iter().map(|one| one.wait().unwrap()).collect();
        assert_eq!(replies, ["A", "B", "C"]);
        assert_eq!((stream.len(), stream.bytes()), (0, 0));
    }

    #[test]
    fn what_was_in_flight_when_the_connection_broke_keeps_its_numbers() {
        let now = Instant::now();
        let mut stream = opened(now);
        let first = submit(&mut stream, "a", now + IDLE);
        stream.next_group(2, now).unwrap();
        stream.on_connection_lost();
        let second = submit(&mut stream, "b", now + IDLE);
        assert_eq!(numbers(&stream.next_group(3, now).unwrap()), (1, 2, 7));
        stream.on_outcome(3, Ok(GroupOutcome::Applied(items(&["A", "B"]))), now);
        assert_eq!((first.wait().unwrap(), second.wait().unwrap()), ("A".into(), "B".into()));
    }

    #[test]
    fn refused_for_certain_is_rejected_in_the_end_and_gives_its_number_back() {
        let now = Instant::now();
        let mut stream = opened(now);
        let first = submit(&mut stream, "a", now + RETRY_AFTER);
        stream.next_group(2, now).unwrap();
        let refused = stream.on_outcome(2, Err(Failure::Rejected(Reason::NoLeader)), now);
        assert_eq!(refused, Some(Reason::NoLeader));
        assert!(stream.next_group(3, now).is_none(), "not again at once");
        let later = now + RETRY_AFTER;
        stream.on_time(later, &Reason::NoLeader);
        assert_eq!(first.wait(), Err(Failure::Rejected(Reason::NoLeader)));
        let second = submit(&mut stream, "b", now + IDLE);
        assert_eq!(numbers(&stream.next_group(3, later).unwrap()), (1, 1, 7));
        stream.on_outcome(3, Ok(GroupOutcome::Applied(items(&["B"]))), later);
        assert_eq!(second.wait().unwrap(), "B");
    }

    #[test]
    fn a_doubtful_command_is_unknown_in_the_end_and_stays_in_the_stream() {
        let now = Instant::now();
        let mut stream = opened(now);
        let doubtful = submit(&mut stream, "a", now + RETRY_AFTER);
        stream.next_group(2, now).unwrap();
        stream.on_outcome(2, Err(Failure::Unknown(Reason::TimedOut)), now);
        let later = now + RETRY_AFTER;
        stream.on_time(later, &Reason::TimedOut);
        assert_eq!(doubtful.wait(), Err(Failure::Unknown(Reason::TimedOut)));
        assert!(!stream.is_waited_for());
        let second = submit(&mut stream, "b", now + IDLE);
        assert_eq!(numbers(&stream.next_group(3, later).unwrap()), (1, 2, 7), "no hole");
        stream.on_outcome(3, Ok(GroupOutcome::Applied(items(&["A", "B"]))), later);
        assert_eq!(second.wait().unwrap(), "B");
    }

    #[test]
    fn a_gap_stops_the_stream_until_all_in_flight_came_back() {
        let now = Instant::now();
        let mut stream = opened(now);
        let first = submit(&mut stream, "a", now + IDLE);
        assert_eq!(numbers(&stream.next_group(2, now).unwrap()).0, 1);
        let second = submit(&mut stream, "b", now + IDLE);
        assert_eq!(numbers(&stream.next_group(3, now).unwrap()).0, 2);
        stream.on_outcome(3, Ok(GroupOutcome::Gap { expected: 1 }), now);
        assert!(stream.next_group(4, now).is_none());
        stream.on_outcome(2, Err(Failure::Unknown(Reason::TimedOut)), now);
        let later = now + RETRY_AFTER;
        assert_eq!(numbers(&stream.next_group(4, later).unwrap()), (1, 2, 7));
        stream.on_outcome(4, Ok(GroupOutcome::Applied(items(&["A", "B"]))), later);
        assert_eq!((first.wait().unwrap(), second.wait().unwrap()), ("A".into(), "B".into()));
    }

    #[test]
    fn a_closed_session_is_unknown_for_what_may_have_happened_only() {
        let now = Instant::now();
        let mut stream = opened(now);
        let doubtful = submit(&mut stream, "a", now + IDLE);
        stream.next_group(2, now).unwrap();
        stream.on_connection_lost();
        let fresh = submit(&mut stream, "b", now + IDLE);
        stream.next_group(3, now).unwrap();
        stream.on_outcome(3, Ok(GroupOutcome::NoSession), now);
        assert_eq!(doubtful.wait(), Err(Failure::Unknown(Reason::SessionClosed)));
        stream.next_group(4, now).unwrap();
        stream.on_outcome(4, Ok(GroupOutcome::Applied(Bytes::new())), now);
        let (first, count, session) = numbers(&stream.next_group(5, now).unwrap());
        assert_eq!((first, count), (1, 1));
        assert_ne!(session, 7);
        stream.on_outcome(5, Ok(GroupOutcome::Applied(items(&["B"]))), now);
        assert_eq!(fresh.wait().unwrap(), "B");
    }

    #[test]
    fn an_idle_client_says_that_it_lives() {
        let now = Instant::now();
        let mut stream = opened(now);
        assert!(stream.next_group(2, now + IDLE / 4).is_none());
        assert_eq!(numbers(&stream.next_group(2, now + IDLE / 3).unwrap()).2, CONTROL_SESSION);
    }
}
