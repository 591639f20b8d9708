//! Chosen batches into the state machine, replies out to the clients.

use super::Node;
use crate::front::{Failure, Reason};
use crate::machine::Context;
use crate::replay::chained;
use bytes::{Buf, Bytes};
use quorate_consensus::batch::{CONTROL_SESSION, Group, SessionCommand, take_group, take_item};
use quorate_consensus::buggify::Point;
use quorate_consensus::session::{Admission, SessionTable};
use quorate_consensus::{Mutant, Slot, Value, ValueKind};
use std::sync::atomic::Ordering;

/// Payload bytes applied in one turn before the transport is looked at again: some ten thousand small commands, which
/// take some ten milliseconds. Nothing is voted for or counted meanwhile.
const APPLY_BYTES_PER_TURN: usize = 1 << 20;
/// And so many of its commands: a small one may cost the state machine ten microseconds or more, where it
/// has to copy what a checkpoint shares.
const APPLY_COMMANDS_PER_TURN: u64 = 1024;

/// As much of the log is read at once, when chosen slots are not in memory.
const REPLAY_BYTES_PER_TURN: usize = 4 << 20;

impl Node {
    /// Applies what is chosen, in slot order. Returns whether anything was applied.
    pub(super) fn apply_chosen(&mut self) -> bool {
        let mut bytes = 0;
        let mut busy = false;
        if self.checkpoints.restoring {
            return false;
        }
        let commands_end = self.counters.commands_applied + APPLY_COMMANDS_PER_TURN;
        while bytes < APPLY_BYTES_PER_TURN && self.counters.commands_applied < commands_end {
            let Some(core) = &mut self.core else { break };
            let Some((slot, value)) = core.next_to_apply() else {
                if core.applied_slot() < core.commit_slot() {
                    // After a restart the chosen slots are in the log, not in memory.
                    busy |= self.replay_from_log();
                }
                break;
            };
            let value = value.clone();
            bytes += value.bytes.len().max(64);
            if self.options.whims.has(Point::ShortApply) {
                bytes = APPLY_BYTES_PER_TURN;
            }
            self.apply_value(slot, &value);
            self.shared.gate.applied(slot, self.time_ms);
            busy = true;
            if let Some(core) = &mut self.core {
                core.on_applied(slot);
            }
        }
        busy
    }

    fn replay_from_log(&mut self) -> bool {
        let Some(core) = &self.core else { return false };
        let (first, commit) = (core.applied_slot().next(), core.commit_slot());
        if first < self.checkpoints.log_from {
            // A checkpoint of a peer is needed: what the log has there, if anything, is not to be used.
            return false;
        }
        let mut entries = Vec::new();
        let short = self.options.whims.has(Point::ShortReplay);
        let bytes_max = if short { 1 } else { REPLAY_BYTES_PER_TURN };
        if let Err(error) = self.log.read(first, bytes_max, &mut entries) {
            tracing::error!(slot = %first, %error, "a chosen slot cannot be read back");
            self.fail_log(&error);
            return false;
        }
        if entries.first().is_none_or(|entry| entry.slot != first) {
            // It is not there any more; here too a checkpoint of a peer has to help.
            return false;
        }
        let mut busy = false;
        for entry in entries.into_iter().take_while(|entry| entry.slot <= commit) {
            if entry.value.is_withheld() && !self.options.witness {
                self.leave_the_quorum(&super::NodeError::Kind { witness: false }.to_string());
                return busy;
            }
            self.apply_value(entry.slot, &entry.value);
            self.shared.gate.applied(entry.slot, self.time_ms);
            if let Some(core) = &mut self.core {
                core.on_applied(entry.slot);
            }
            busy = true;
        }
        if busy && self.options.is(Mutant::DropSessions) {
            self.sessions = SessionTable::new();
        }
        busy
    }

    fn apply_value(&mut self, slot: Slot, value: &Value) {
        // Before anyone gets a reply of this slot.
        self.shared.applied.store(slot.0, Ordering::Release);
        if self.options.witness {
            return;
        }
        while self.proposed.front().is_some_and(|(proposed, _)| *proposed <= slot) {
            if let Some((_, at)) = self.proposed.pop_front() {
                let micros = self.clock.now.since(at).0 / 1_000;
                self.latencies.commit.saturating_record(micros.max(1));
            }
        }
        self.chain(slot.0 << 32 | u64::from(value.checksum));
        if value.kind != ValueKind::Commands || value.bytes.len() < 8 {
            return;
        }
        let mut bytes = value.bytes.clone();
        let stamp = bytes.get_u64_le();
        if stamp > self.time_ms {
            self.time_ms = stamp;
            self.sessions.advance(stamp);
            self.machine.advance(stamp);
        }
        while let Some(group) = take_group(&mut bytes) {
            self.apply_group(slot, &group);
        }
    }

    fn chain(&mut self, word: u64) {
        self.digest = chained(self.digest, word);
    }

    fn apply_group(&mut self, slot: Slot, group: &Group) {
        let header = &group.header;
        if header.session == CONTROL_SESSION {
            return self.apply_session_commands(slot, group);
        }
        let own = header.session == self.origin.session();
        let admission = self.sessions.admit(slot, header);
        let settled = matches!(admission, Admission::Apply { .. } | Admission::Duplicate);
        match admission {
            Admission::Apply { known } => self.apply_commands(slot, group, known, own),
            Admission::Duplicate if self.options.is(Mutant::ApplyTwice) => {
                self.apply_commands(slot, group, 0, own);
            }
            Admission::Gap { .. } if self.options.is(Mutant::ApplyBehindGap) => {
                self.apply_commands(slot, group, 0, own);
            }
            Admission::Duplicate => self.counters.duplicates += u64::from(header.count),
            Admission::Gap { expected } => {
                self.counters.gaps += 1;
                self.relay.on_gap(header, expected);
                if own {
                    self.origin.on_gap(self.clock.now);
                }
            }
            Admission::NoSession => {
                self.relay.on_no_session(header.session);
                if own {
                    self.reopen_session();
                }
            }
        }
        if settled && !own {
            self.relay.on_applied(header.session, &self.sessions);
        }
    }

    /// The session of this replica's clients is gone: what was under way is unknown, or never left.
    pub(super) fn reopen_session(&mut self) {
        self.session_number = next_session(self.session_number);
        let failed = self.origin.on_session_closed(self.session_number);
        self.counters.failures += failed;
        tracing::warn!(failed, "the session of this replica was closed; opening another");
    }

    fn apply_commands(&mut self, slot: Slot, group: &Group, known: u32, own: bool) {
        let header = &group.header;
        let context = Context { slot, time_ms: self.time_ms };
        let machine = self.machine.as_mut();
        let replies = self.replies.of_commands(machine, &context, group, known);
        self.chain(u64::from(crc32c::crc32c(&replies)));
        let (first, count) = (header.first_sequence + u64::from(known), header.count - known);
        self.counters.commands_applied += u64::from(count);
        self.counters.duplicates += u64::from(known);
        if own {
            let latency = &mut self.latencies.request;
            self.origin.applied(first, count, &replies, self.clock.now, |micros| {
                latency.saturating_record(micros.max(1));
            });
        }
        self.sessions.record(header.session, first, count, replies);
    }

    fn apply_session_commands(&mut self, slot: Slot, group: &Group) {
        let mut commands = &group.commands[..];
        while let Some(item) = take_item(&mut commands) {
            let Some(command) = SessionCommand::decode(item) else { continue };
            self.sessions.control(slot, command);
            let (SessionCommand::Open { session, .. } | SessionCommand::Close { session }) =
                command;
            self.relay.on_session_command(session);
            if let SessionCommand::Open { session, .. } = command
                && session == self.origin.session()
            {
                self.origin.opened();
            }
        }
    }

    /// Answers the linearizable reads whose slot is applied.
    pub(super) fn answer_reads(&mut self) {
        if self.checkpoints.restoring {
            return;
        }
        self.answer_bounded_reads();
        let Some(core) = &mut self.core else { return };
        while let Some(ready) = core.poll_read() {
            self.read_ready.push_back(ready);
        }
        while let Some(ready) = self.read_ready.front().copied() {
            if self.core.as_ref().is_none_or(|core| core.applied_slot() < ready.slot) {
                break;
            }
            self.read_ready.pop_front();
            while self.reads.front().is_some_and(|read| read.ticket <= ready.through) {
                let Some(read) = self.reads.pop_front() else { break };
                self.counters.reads += u64::from(read.count);
                let answers = self.run_queries(&read.queries);
                let _ = read.reply.send(Ok(answers));
            }
        }
    }

    /// Answers the bounded reads whose slot is applied.
    fn answer_bounded_reads(&mut self) {
        let applied = self.core.as_ref().map_or(Slot::ZERO, quorate_consensus::Paxos::applied_slot);
        while let Some(first) = self.bounded_reads.first_entry() {
            if first.key().0 > applied {
                return;
            }
            let read = first.remove();
            self.counters.stale_reads += u64::from(read.count);
            let answers = self.run_queries(&read.queries);
            let _ = read.reply.send(Ok(answers));
        }
    }

    pub(super) fn run_queries(&mut self, queries: &[u8]) -> Bytes {
        let slot = self.core.as_ref().map_or(Slot::ZERO, quorate_consensus::Paxos::applied_slot);
        let time_ms = self.clock.wall_ms.max(self.time_ms);
        let context = Context { slot, time_ms };
        let mut rest = queries;
        self.replies.reserve(64);
        while let Some(query) = take_item(&mut rest) {
            self.replies.add(|reply| self.machine.query(&context, query, reply));
        }
        self.replies.take()
    }

    /// Fails every read that waits; used when the replica can never answer it.
    pub(super) fn fail_reads(&mut self, reason: &Reason) {
        for read in
            self.reads.drain(..).chain(std::mem::take(&mut self.bounded_reads).into_values())
        {
            let _ = read.reply.send(Err(Failure::Rejected(reason.clone())));
        }
    }
}

/// The number of the session after `session`: never 0.
fn next_session(session: u64) -> u64 {
    session.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(0x9e37_79b9) | 1
}
