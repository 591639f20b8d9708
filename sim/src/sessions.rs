//! Clients that keep their own sessions: each gives numbered groups to any replica, and gives a group that
//! got no answer again, with the same numbers, to another one, also long after. Sessions expire in the
//! meantime, and some clients close theirs with a group under way.

use crate::clients::Clients;
use crate::machine::{Command, Ledger};
use crate::random::Random;
use crate::shape::{MS, SessionsShape, Shape};
use bytes::{Bytes, BytesMut};
use quorate_consensus::batch::{GroupHeader, SessionCommand, put_item};
use quorate_replica::{Failure, GroupOutcome, Handle, PendingGroup};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Tries whose outcome the client does not wait for any more: the oldest are forgotten.
const LATE_MAX: usize = 16;

/// A group of commands, numbered.
#[derive(Clone, Debug)]
struct Group {
    first: u64,
    commands: Vec<Command>,
    /// When it was given for the first time.
    call: u64,
    /// Tries that may still take effect, or may have.
    doubts: u32,
}

#[derive(Debug)]
struct Try {
    pending: PendingGroup,
    /// The session and the first number; none: the session is to be opened.
    of: Option<(u64, u64)>,
}

/// One client with a session of its own.
#[derive(Debug)]
struct Session {
    number: u64,
    open: bool,
    /// The number of its next command.
    next: u64,
    group: Option<Group>,
    waits: Option<Try>,
    /// Tries that it gave up, and what the same group was answered.
    late: Vec<(Try, Option<Bytes>)>,
    /// It has closed its session, with the group under way.
    closed: bool,
    /// Its name in the history.
    name: u32,
}

/// All such clients of a run.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    all: Vec<Session>,
    /// Sessions opened so far.
    opened: u64,
    /// Groups that were given again, and sessions that were closed with a group under way: how often,
    /// and how often the client was told.
    pub(crate) retried: (u64, u64),
    pub(crate) cut: (u64, u64),
}

impl Clients {
    /// As many as the shape says.
    pub(crate) fn add_sessions(&mut self, shape: &SessionsShape) {
        for _ in 0..shape.clients {
            let name = self.next_name();
            self.sessions.opened += 1;
            let number = session_number(self.sessions.opened);
            self.sessions.all.push(Session {
                number,
                open: false,
                next: 1,
                group: None,
                waits: None,
                late: Vec::new(),
                closed: false,
                name,
            });
        }
    }

    /// How many there are.
    #[must_use]
    pub(crate) fn sessions_count(&self) -> usize {
        self.sessions.all.len()
    }

    /// The client at `index` acts: through `handle`, if a replica runs where it looks. Returns how long
    /// it waits then.
    pub(crate) fn act(
        &mut self,
        index: usize,
        handle: Option<&Handle>,
        shape: &Shape,
        random: &mut Random,
        ledger: &Ledger,
    ) -> u64 {
        let Some(sessions) = shape.sessions.clone() else { return u64::MAX };
        self.poll_session(index, ledger);
        let patience = random.exponential(sessions.patience_mean) + MS;
        if self.sessions.all[index].waits.is_some() {
            // It waited for long enough.
            self.give_up(index);
        }
        let Some(handle) = handle else { return patience };
        if self.sessions.all[index].group.is_some() && random.chance(sessions.sleeps_ppm) {
            // It comes back when its session may be gone.
            return random.between(sessions.idle_ms, 2 * sessions.idle_ms) * MS;
        }
        let session = &self.sessions.all[index];
        if !session.open {
            let command = SessionCommand::Open {
                session: session.number,
                owner: 0,
                idle_ms: sessions.idle_ms,
            };
            let pending = handle.propose_group(command.to_group());
            self.sessions.all[index].waits = Some(Try { pending, of: None });
            return patience;
        }
        if self.sessions.all[index].group.is_none() {
            let count = if random.chance(200_000) { random.between(2, 3) } else { 1 };
            let commands = (0..count).map(|_| self.draw(shape, random, count)).collect();
            let call = self.tick();
            let first = self.sessions.all[index].next;
            self.requests += 1;
            self.sessions.all[index].group = Some(Group { first, commands, call, doubts: 0 });
        } else {
            self.sessions.retried.0 += 1;
        }
        let cuts = random.chance(sessions.cuts_ppm);
        self.give(index, handle, cuts);
        patience
    }

    /// Gives the group to a replica, once more or for the first time.
    fn give(&mut self, index: usize, handle: &Handle, cuts: bool) {
        let session = &mut self.sessions.all[index];
        let Some(group) = &mut session.group else { return };
        let mut items = BytesMut::new();
        for command in &group.commands {
            put_item(&mut items, &command.encode());
        }
        let header = GroupHeader {
            session: session.number,
            first_sequence: group.first,
            acknowledged_below: group.first,
            count: group.commands.len() as u32,
            length: items.len() as u32,
        };
        let mut bytes = BytesMut::new();
        header.encode(&mut bytes);
        bytes.extend_from_slice(&items);
        let pending = handle.propose_group(bytes.freeze());
        let (number, first) = (session.number, group.first);
        session.waits = Some(Try { pending, of: Some((number, first)) });
        if cuts && !session.closed {
            session.closed = true;
            self.sessions.cut.0 += 1;
            // Nobody waits for this one.
            drop(handle.propose_group(SessionCommand::Close { session: number }.to_group()));
        }
        self.say(|| format!("session {number:x} gives number {first}"));
    }

    /// The client waits for its last try no more; it may take effect all the same.
    fn give_up(&mut self, index: usize) {
        let session = &mut self.sessions.all[index];
        let Some(waits) = session.waits.take() else { return };
        if let (Some(_), Some(group)) = (waits.of, &mut session.group) {
            group.doubts += 1;
        }
        if session.late.len() == LATE_MAX {
            session.late.remove(0);
        }
        session.late.push((waits, None));
    }

    /// Takes the outcomes that are there for all of them.
    pub(crate) fn poll_sessions(&mut self, ledger: &Ledger) {
        for index in 0..self.sessions.all.len() {
            self.poll_session(index, ledger);
        }
    }

    fn poll_session(&mut self, index: usize, ledger: &Ledger) {
        let mut context = Context::from_waker(Waker::noop());
        self.poll_late(index, &mut context);
        let Some(waits) = &mut self.sessions.all[index].waits else { return };
        let Poll::Ready(outcome) = Pin::new(&mut waits.pending).poll(&mut context) else { return };
        let Some(waits) = self.sessions.all[index].waits.take() else { return };
        let number = self.sessions.all[index].number;
        self.say(|| format!("session {number:x} is answered {outcome:?}"));
        if waits.of.is_none() {
            self.sessions.all[index].open |= outcome.is_ok();
            return;
        }
        if self.sessions.all[index].closed {
            self.sessions.cut.1 += 1;
        }
        match outcome {
            Ok(GroupOutcome::Applied(items)) => self.on_applied(index, &items, ledger),
            Ok(GroupOutcome::Forgotten) => {
                self.wrong(format!("session {number:x}: an outcome was forgotten too early"));
            }
            // Everything before was answered: a hole is a session that began anew.
            Ok(GroupOutcome::Gap { .. }) | Ok(GroupOutcome::NoSession) => self.on_lost(index),
            Err(Failure::Unknown(_)) => {
                if let Some(group) = &mut self.sessions.all[index].group {
                    group.doubts += 1;
                }
            }
            Err(Failure::Rejected(_)) => {}
        }
    }

    /// What an earlier try is answered is what the group was answered.
    fn poll_late(&mut self, index: usize, context: &mut Context<'_>) {
        let mut differ = None;
        self.sessions.all[index].late.retain_mut(|(late, answered)| {
            let Poll::Ready(outcome) = Pin::new(&mut late.pending).poll(context) else {
                return true;
            };
            if let (Ok(GroupOutcome::Applied(items)), Some(before)) = (&outcome, &answered)
                && items != before
            {
                differ = late.of;
            }
            false
        });
        if let Some((number, first)) = differ {
            self.wrong(format!("session {number:x}: another outcome of number {first}"));
        }
    }

    fn on_applied(&mut self, index: usize, items: &Bytes, ledger: &Ledger) {
        let session = &mut self.sessions.all[index];
        let Some(group) = session.group.take() else { return };
        session.next += group.commands.len() as u64;
        let of = Some((session.number, group.first));
        for (late, answered) in &mut session.late {
            if late.of == of {
                *answered = Some(items.clone());
            }
        }
        let name = session.name;
        if group.doubts > 0 {
            self.sessions.retried.1 += 1;
        }
        self.on_written(name, group.call, group.commands, items, ledger);
        if self.sessions.all[index].closed {
            self.begin_anew(index);
        }
    }

    /// The session is gone. What no try in doubt carried did certainly not happen.
    fn on_lost(&mut self, index: usize) {
        if let Some(group) = self.sessions.all[index].group.take() {
            if group.doubts == 0 {
                self.rejected.extend(group.commands.iter().map(|command| command.number));
            } else {
                self.doubt(index, group);
            }
        }
        self.begin_anew(index);
    }

    fn doubt(&mut self, index: usize, group: Group) {
        let name = self.sessions.all[index].name;
        self.note_unknown(name, group.call, group.commands);
        let name = self.next_name();
        self.sessions.all[index].name = name;
    }

    fn begin_anew(&mut self, index: usize) {
        self.sessions.opened += 1;
        let number = session_number(self.sessions.opened);
        let session = &mut self.sessions.all[index];
        session.number = number;
        (session.open, session.closed, session.next) = (false, false, 1);
    }

    /// The run is over: what is under way may have happened.
    pub(crate) fn end_sessions(&mut self, ledger: &Ledger) {
        self.poll_sessions(ledger);
        for index in 0..self.sessions.all.len() {
            if let Some(group) = self.sessions.all[index].group.take() {
                self.doubt(index, group);
            }
        }
    }
}

/// Numbers that no replica's own session has.
fn session_number(count: u64) -> u64 {
    crate::random::mix(count ^ 0x5e55_0000_0000_0000) | 1
}
