//! Groups of sessions that clients keep themselves, on their way through this replica.
//!
//! A client elsewhere numbers its own commands ([`quorate_consensus::session`]) and gives whole groups
//! to any replica. The relay passes them to the leader and answers with what the session table made of
//! them when they are applied here. It numbers nothing and decides nothing: a client that gets no
//! answer asks again, here or at another replica, with the same numbers.

use crate::front::{Failure, Reason};
use bytes::Bytes;
use quorate_consensus::Nanos;
use quorate_consensus::batch::{
    CONTROL_SESSION, Group, GroupHeader, SessionCommand, groups_are_whole, take_group, take_item,
};
use quorate_consensus::session::SessionTable;
use std::collections::{BTreeMap, VecDeque};
use tokio::sync::oneshot;

/// Groups that wait for their outcome at the most; more wait in the clients' queue.
pub const GROUPS_MAX: usize = 16_384;
/// Bytes of them at the most.
pub(crate) const BYTES_MAX: usize = 64 << 20;

/// What became of a group of a client's own session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupOutcome {
    /// Chosen and applied, now or by an earlier try: the first outcome of each command, as items.
    Applied(Bytes),
    /// Applied by an earlier try, and its outcomes are forgotten: the client had acknowledged them,
    /// or has too many in flight.
    Forgotten,
    /// Not applied, and not by an earlier try either: the session expects `expected` next.
    Gap {
        /// The number that the session's next command must have.
        expected: u64,
    },
    /// Not applied by this try: the session is not open. An earlier try may have been applied.
    NoSession,
}

pub(crate) type GroupSender = oneshot::Sender<Result<GroupOutcome, Failure>>;

#[derive(Debug)]
struct Waiting {
    header: GroupHeader,
    /// The group with its header.
    bytes: Bytes,
    reply: GroupSender,
    arrived: Nanos,
    /// It left this replica, so that its end is not in our hands.
    sent: bool,
}

/// Finds the waiting groups of a session in the order of their numbers; the last part is the number
/// of the arrival. Commands to the session table itself are listed under the session they are about.
type Place = (u64, u64, u64);

/// The groups that wait.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    waiting: BTreeMap<u64, Waiting>,
    places: BTreeMap<Place, ()>,
    due: VecDeque<u64>,
    bytes: usize,
    arrivals: u64,
}

/// Cuts one whole group out of what a client gave: none if it is anything else, or if it opens a
/// session in the name of a replica.
pub(crate) fn parse(bytes: &Bytes) -> Option<Group> {
    let mut rest = bytes.clone();
    let group = take_group(&mut rest)?;
    if !rest.is_empty() || !groups_are_whole(bytes) {
        return None;
    }
    if group.header.session != CONTROL_SESSION {
        return Some(group);
    }
    match session_command(&group)? {
        SessionCommand::Open { owner, session, .. } if owner != 0 || session == 0 => None,
        _ => Some(group),
    }
}

fn session_command(group: &Group) -> Option<SessionCommand> {
    let item = take_item(&mut &group.commands[..])?;
    (group.header.count == 1).then(|| SessionCommand::decode(item))?
}

/// Number 0 in a session: where commands about the session itself are listed.
fn place(group: &Group) -> (u64, u64) {
    match session_command(group) {
        Some(SessionCommand::Open { session, .. } | SessionCommand::Close { session })
            if group.header.session == CONTROL_SESSION =>
        {
            (session, 0)
        }
        _ => (group.header.session, group.header.first_sequence.max(1)),
    }
}

impl Relay {
    /// Whether another group may be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() < GROUPS_MAX && self.bytes < BYTES_MAX
    }

    pub(crate) fn submit(&mut self, group: &Group, bytes: Bytes, reply: GroupSender, now: Nanos) {
        self.arrivals += 1;
        let (session, first) = place(group);
        self.bytes += bytes.len();
        self.places.insert((session, first, self.arrivals), ());
        self.due.push_back(self.arrivals);
        let header = group.header;
        let waiting = Waiting { header, bytes, reply, arrived: now, sent: false };
        self.waiting.insert(self.arrivals, waiting);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The next group to be sent to the leader, with its number of commands. Call
    /// [`Relay::sent`] when it is on its way.
    pub(crate) fn next_due(&mut self) -> Option<(Bytes, u32)> {
        loop {
            let arrival = *self.due.front()?;
            if let Some(waiting) = self.waiting.get(&arrival) {
                return Some((waiting.bytes.clone(), waiting.header.count));
            }
            // It has its outcome by another try already.
            self.due.pop_front();
        }
    }

    pub(crate) fn sent(&mut self) {
        if let Some(waiting) = self.due.pop_front().and_then(|at| self.waiting.get_mut(&at)) {
            waiting.sent = true;
        }
    }

    /// Whoever had what was sent may have lost it: send all of it again, in the order of arrival.
    pub(crate) fn send_again(&mut self) {
        self.due = self.waiting.keys().copied().collect();
    }

    /// The state came from a checkpoint: what was on its way may have been applied in the slots that it
    /// covers. Where the session is there, so is the outcome, and it is taken now: by the time another try
    /// comes the session may have expired. Where it is not, it may have been closed since, and a try that
    /// finds no session says nothing about the one before.
    pub(crate) fn on_restored(&mut self, table: &SessionTable) {
        let mut sessions: Vec<u64> = self.places.keys().map(|(session, _, _)| *session).collect();
        sessions.dedup();
        for session in sessions {
            self.on_applied(session, table);
        }
        let in_doubt = |(session, first, arrival): &&Place| {
            let sent = self.waiting.get(arrival).is_some_and(|waiting| waiting.sent);
            *first > 0 && sent && table.next_sequence(*session).is_none()
        };
        let in_doubt: Vec<Place> = self.places.keys().filter(in_doubt).copied().collect();
        for place in in_doubt {
            self.answer(place, Err(Failure::Unknown(Reason::SessionClosed)));
        }
        self.send_again();
    }

    /// A group of `session` was applied, or found applied: answers whoever waits for commands that
    /// the table has outcomes of.
    pub(crate) fn on_applied(&mut self, session: u64, table: &SessionTable) {
        let Some(next) = table.next_sequence(session) else { return };
        while let Some((place, end)) = self.first_of(session, 1)
            && end <= next
        {
            let (first, count) = (place.1, (end - place.1) as u32);
            let outcome = match table.outcomes(session, first, count) {
                Some(items) => GroupOutcome::Applied(items),
                None => GroupOutcome::Forgotten,
            };
            self.answer(place, Ok(outcome));
        }
    }

    /// A group was rejected as a gap: whoever waits for it learns what comes next. Groups behind it
    /// get the same answer when their own turn comes.
    pub(crate) fn on_gap(&mut self, header: &GroupHeader, expected: u64) {
        let first = header.first_sequence;
        let range = (header.session, first, 0)..=(header.session, first, u64::MAX);
        let places: Vec<Place> = self.places.range(range).map(|(place, ())| *place).collect();
        for place in places {
            self.answer(place, Ok(GroupOutcome::Gap { expected }));
        }
    }

    /// A group found no session.
    pub(crate) fn on_no_session(&mut self, session: u64) {
        while let Some((place, _)) = self.first_of(session, 1) {
            self.answer(place, Ok(GroupOutcome::NoSession));
        }
    }

    /// A session was opened or closed.
    pub(crate) fn on_session_command(&mut self, session: u64) {
        while let Some((place, _)) = self.first_of(session, 0)
            && place.1 == 0
        {
            self.answer(place, Ok(GroupOutcome::Applied(Bytes::new())));
        }
    }

    /// The first waiting group of `session` from number `from` on, and the number behind its end.
    fn first_of(&self, session: u64, from: u64) -> Option<(Place, u64)> {
        let range = (session, from, 0)..=(session, u64::MAX, u64::MAX);
        let (place, ()) = self.places.range(range).next()?;
        let count = self.waiting.get(&place.2).map_or(0, |waiting| waiting.header.count);
        Some((*place, place.1.saturating_add(u64::from(count))))
    }

    fn answer(&mut self, place: Place, outcome: Result<GroupOutcome, Failure>) {
        self.places.remove(&place);
        if let Some(waiting) = self.waiting.remove(&place.2) {
            self.bytes -= waiting.bytes.len();
            // A client that went away does not wait for its answer.
            let _ = waiting.reply.send(outcome);
        }
    }

    /// Gives up what waited for `limit`. Returns how many groups.
    pub(crate) fn expire(&mut self, now: Nanos, limit: Nanos, reason: &Reason) -> u64 {
        let mut told = 0;
        while let Some((&arrival, waiting)) = self.waiting.first_key_value()
            && now.since(waiting.arrived) >= limit
        {
            self.fail(arrival, reason);
            told += 1;
        }
        told
    }

    /// Nobody will learn an outcome here any more.
    pub(crate) fn give_up(&mut self, reason: &Reason) {
        while let Some((&arrival, _)) = self.waiting.first_key_value() {
            self.fail(arrival, reason);
        }
    }

    fn fail(&mut self, arrival: u64, reason: &Reason) {
        let Some(waiting) = self.waiting.get(&arrival) else { return };
        let failure = match waiting.sent {
            true => Failure::Unknown(reason.clone()),
            false => Failure::Rejected(reason.clone()),
        };
        let mut whole = waiting.bytes.clone();
        if let Some(group) = take_group(&mut whole) {
            let (session, first) = place(&group);
            self.answer((session, first, arrival), Err(failure));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use bytes::{BufMut, BytesMut};
    use quorate_consensus::Slot;
    use quorate_consensus::batch::put_item;
    use quorate_consensus::session::Admission;

    fn group(session: u64, first: u64, texts: &[&str]) -> (Group, Bytes) {
        let mut commands = BytesMut::new();
        for text in texts {
            put_item(&mut commands, text.as_bytes());
        }
        let header = GroupHeader {
            session,
            first_sequence: first,
            acknowledged_below: 0,
            count: texts.len() as u32,
            length: commands.len() as u32,
        };
        let mut out = BytesMut::new();
        header.encode(&mut out);
        out.put_slice(&commands);
        let bytes = out.freeze();
        (parse(&bytes).unwrap(), bytes)
    }

    type Receiver = oneshot::Receiver<Result<GroupOutcome, Failure>>;

    fn submit(relay: &mut Relay, session: u64, first: u64, texts: &[&str], at: u64) -> Receiver {
        let (reply, receiver) = oneshot::channel();
        let (group, bytes) = group(session, first, texts);
        relay.submit(&group, bytes, reply, Nanos::from_millis(at));
        receiver
    }

    fn items(texts: &[&str]) -> Bytes {
        let mut out = BytesMut::new();
        for text in texts {
            put_item(&mut out, text.as_bytes());
        }
        out.freeze()
    }

    fn apply(table: &mut SessionTable, session: u64, first: u64, texts: &[&str]) {
        let (group, _) = group(session, first, texts);
        match table.admit(Slot(9), &group.header) {
            Admission::Apply { known: 0 } => {
                table.record(session, first, texts.len() as u32, items(texts));
            }
            other => panic!("{other:?}"),
        }
    }

    fn table(session: u64) -> SessionTable {
        let mut table = SessionTable::new();
        table.control(Slot(1), SessionCommand::Open { session, owner: 0, idle_ms: 0 });
        table
    }

    #[test]
    fn what_a_checkpoint_covers_is_answered_from_it_or_in_doubt_and_never_tried_as_new() {
        let mut relay = Relay::default();
        let mut table = SessionTable::new();
        table.control(Slot(1), SessionCommand::Open { session: 7, owner: 0, idle_ms: 5 });
        let header = group(7, 1, &["a"]).0.header;
        assert!(matches!(table.admit(Slot(2), &header), Admission::Apply { .. }));
        table.record(7, 1, 1, Bytes::from_static(b"done"));
        let mut covered = submit(&mut relay, 7, 1, &["a"], 0);
        let mut closed = submit(&mut relay, 8, 1, &["b"], 0);
        let _ = (relay.next_due().unwrap(), relay.sent(), relay.next_due().unwrap(), relay.sent());
        let mut unsent = submit(&mut relay, 9, 1, &["c"], 0);
        relay.on_restored(&table);
        let outcome = covered.try_recv().unwrap().unwrap();
        assert_eq!(outcome, GroupOutcome::Applied(Bytes::from_static(b"done")));
        let doubt = closed.try_recv().unwrap().unwrap_err();
        assert_eq!(doubt, Failure::Unknown(Reason::SessionClosed));
        assert!(unsent.try_recv().is_err() && relay.next_due().is_some());
    }

    #[test]
    fn a_group_is_answered_with_its_outcome_and_a_retry_with_the_first_one() {
        let (mut relay, mut table) = (Relay::default(), table(7));
        let mut one = submit(&mut relay, 7, 1, &["a", "b"], 0);
        let mut two = submit(&mut relay, 7, 3, &["c"], 0);
        assert_eq!(relay.next_due().unwrap().1, 2);
        relay.sent();
        apply(&mut table, 7, 1, &["a", "b"]);
        relay.on_applied(7, &table);
        assert_eq!(one.try_recv().unwrap().unwrap(), GroupOutcome::Applied(items(&["a", "b"])));
        assert!(two.try_recv().is_err());
        let mut again = submit(&mut relay, 7, 1, &["x", "y"], 0);
        relay.on_applied(7, &table);
        assert_eq!(again.try_recv().unwrap().unwrap(), GroupOutcome::Applied(items(&["a", "b"])));
        assert_eq!(relay.waiting.len(), 1);
        assert_eq!(relay.next_due().unwrap().1, 1, "what has its outcome is not sent");
    }

    #[test]
    fn gaps_lost_sessions_and_openings_are_told_apart() {
        let (mut relay, table) = (Relay::default(), table(7));
        let mut early = submit(&mut relay, 7, 5, &["e"], 0);
        relay.on_applied(7, &table);
        assert!(early.try_recv().is_err());
        relay.on_gap(&group(7, 5, &["e"]).0.header, 1);
        assert_eq!(early.try_recv().unwrap().unwrap(), GroupOutcome::Gap { expected: 1 });
        let mut lost = submit(&mut relay, 8, 5, &["e"], 0);
        let open = SessionCommand::Open { session: 8, owner: 0, idle_ms: 5 }.to_group();
        let (reply, mut opened) = oneshot::channel();
        relay.submit(&parse(&open).unwrap(), open, reply, Nanos(0));
        relay.on_no_session(8);
        assert_eq!(lost.try_recv().unwrap().unwrap(), GroupOutcome::NoSession);
        assert!(opened.try_recv().is_err());
        relay.on_session_command(8);
        assert_eq!(opened.try_recv().unwrap().unwrap(), GroupOutcome::Applied(Bytes::new()));
        assert!(relay.waiting.is_empty() && relay.places.is_empty() && relay.bytes == 0);
    }

    #[test]
    fn what_never_left_is_rejected_and_what_did_is_unknown() {
        let mut relay = Relay::default();
        let mut sent = submit(&mut relay, 7, 1, &["a"], 0);
        let mut kept = submit(&mut relay, 7, 2, &["b"], 1);
        relay.next_due();
        relay.sent();
        let limit = Nanos::from_millis(100);
        assert_eq!(relay.expire(Nanos::from_millis(99), limit, &Reason::TimedOut), 0);
        assert_eq!(relay.expire(Nanos::from_millis(101), limit, &Reason::NoLeader), 2);
        let failed = |receiver: &mut Receiver| receiver.try_recv().unwrap().unwrap_err();
        assert_eq!(failed(&mut sent), Failure::Unknown(Reason::NoLeader));
        assert_eq!(failed(&mut kept), Failure::Rejected(Reason::NoLeader));
        assert!(relay.next_due().is_none() && relay.places.is_empty());
    }

    #[test]
    fn only_one_whole_group_in_ones_own_name_is_taken() {
        let (_, good) = group(7, 1, &["a"]);
        assert!(parse(&good).is_some());
        assert!(parse(&good.slice(..good.len() - 1)).is_none());
        let two = [&good[..], &good[..]].concat();
        assert!(parse(&Bytes::from(two)).is_none());
        let owned = SessionCommand::Open { session: 8, owner: 2, idle_ms: 0 }.to_group();
        assert!(parse(&owned).is_none());
        assert!(parse(&SessionCommand::Close { session: 8 }.to_group()).is_some());
    }
}
