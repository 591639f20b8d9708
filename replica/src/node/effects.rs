//! What goes out: proposals, records, persists, rows, messages.

use super::Node;
use crate::arena;
use crate::front::{Failure, Notification, Reason};
use crate::lanes;
use crate::leased::Published;
use crate::options::nanos;
use bytes::BufMut;
use quorate_consensus::batch::BATCH_HEADER_BYTES;
use quorate_consensus::buggify::Point;
use quorate_consensus::{
    Message, Mutant, NodeId, Notice, Persist, PersistNumber, RowFlags, Shipment, Slot, Value,
    ValueKind,
};
use quorate_pmem_log::{LogError, Record};
use quorate_transport::PostError;
use quorate_transport::ring::ShipError;
use std::sync::atomic::Ordering;

impl Node {
    /// Moves commands on: into the log if this replica leads, to the leader if another one does.
    pub(super) fn send_commands(&mut self) {
        if self.options.witness {
            return;
        }
        let Some(core) = &self.core else { return };
        let led_by = core.leader_ballot();
        if led_by != self.led_by {
            self.led_by = led_by;
            let leader = led_by.map_or(0, |ballot| ballot.node.0);
            self.shared.leader.store(leader, Ordering::Relaxed);
            self.counters.leader_changes += 1;
            // What the former leader had may be lost, what it forwarded is not ours to propose.
            self.origin.send_again(self.clock.now);
            self.relay.send_again();
            self.forwarded.clear();
            self.forwarded_bytes = 0;
            self.forwarded_commands = 0;
            self.proposed.clear();
        }
        if core.role_is_leader() {
            self.propose_batches();
        } else if let Some(leader) = led_by.map(|ballot| ballot.node) {
            self.forward(leader);
        }
    }

    fn propose_batches(&mut self) {
        if self.log_full {
            return;
        }
        loop {
            let tick = self.tick_is_due();
            let Some(core) = &mut self.core else { return };
            let due =
                self.origin.is_due() || !self.forwarded.is_empty() || self.relay.is_due() || tick;
            if !due || !core.can_propose() || self.options.whims.has(Point::SmallWindow) {
                return;
            }
            let short = self.options.whims.has(Point::ShortBatch);
            let limit = if short { 1 } else { self.options.batch_bytes_max };
            arena::reserve(&mut self.batch, BATCH_HEADER_BYTES);
            self.stamped_ms = self.stamped_ms.max(self.clock.wall_ms).max(self.time_ms);
            self.batch.put_u64_le(self.stamped_ms);
            let mut commands = 0u64;
            let mut taken = (0, 0);
            if self.origin.is_due() {
                taken = self.origin.take_due(&mut self.batch, limit);
                commands += u64::from(taken.1);
            }
            while let Some(groups) = self.forwarded.front() {
                if self.batch.len() > BATCH_HEADER_BYTES && self.batch.len() + groups.len() > limit
                {
                    break;
                }
                self.forwarded_bytes -= groups.len();
                arena::reserve(&mut self.batch, groups.len());
                self.batch.put_slice(groups);
                self.forwarded.pop_front();
            }
            while let Some((group, count)) = self.relay.next_due() {
                if self.batch.len() > BATCH_HEADER_BYTES && self.batch.len() + group.len() > limit {
                    break;
                }
                arena::reserve(&mut self.batch, group.len());
                self.batch.put_slice(&group);
                self.relay.sent();
                commands += u64::from(count);
            }
            let bytes = self.batch.split().freeze();
            let checksum = crc32c::crc32c(&bytes);
            let value = Value { kind: ValueKind::Commands, checksum, bytes };
            let Some(slot) = core.propose(value) else { return };
            if taken.1 > 0 {
                self.origin.sent(taken.0, self.clock.now);
            }
            commands += std::mem::take(&mut self.forwarded_commands);
            self.counters.batches_proposed += 1;
            self.counters.commands_proposed += commands;
            self.latencies.batch.saturating_record(commands.max(1));
            if self.proposed.len() < self.options.window_slots_max as usize {
                self.proposed.push_back((slot, self.clock.now));
            }
        }
    }

    /// Whether time alone has work for the state machine that no batch has stamped yet.
    fn tick_is_due(&self) -> bool {
        let deadline = self.machine.next_deadline_ms();
        deadline.is_some_and(|due| due <= self.clock.wall_ms && self.stamped_ms < due)
    }

    fn forward(&mut self, leader: NodeId) {
        let up = self.lanes.iter().any(|lanes| lanes.peer == leader && lanes.control_up);
        while up && self.origin.is_due() {
            let limit = self.options.batch_bytes_max;
            let (submissions, _) = self.origin.take_due(&mut self.batch, limit);
            let message = Message::Forward { groups: self.batch.split().freeze() };
            let transport = self.transport.as_mut();
            // A full queue or a broken lane: what was not sent stays due.
            if lanes::send(transport, &mut self.message, leader, &message).is_err() {
                return;
            }
            self.origin.sent(submissions, self.clock.now);
        }
        while up && let Some((groups, _)) = self.relay.next_due() {
            let message = Message::Forward { groups };
            let transport = self.transport.as_mut();
            if lanes::send(transport, &mut self.message, leader, &message).is_err() {
                return;
            }
            self.relay.sent();
        }
    }

    /// Lets out what the core wants done. Records leave for the followers in the same moment in
    /// which they are handed to the own log.
    pub(super) fn let_effects_out(&mut self) -> bool {
        self.publish_lease();
        let mut busy = self.append();
        busy |= self.ship();
        if self.log_failure.is_none() && !self.options.whims.has(Point::LateFlush) {
            if let Err(error) = self.log.flush() {
                self.on_log_error(&error);
            }
            busy |= self.poll_durable();
        }
        self.publish_lease();
        self.take_notices();
        self.publish_rows();
        self.send_messages();
        self.serve_log_reads();
        busy
    }

    /// What those who read on other threads must know before anyone else knows it (R14).
    fn publish_lease(&self) {
        let Some(core) = &self.core else { return };
        let until = core.lease_until();
        let until = until.filter(|_| !self.checkpoints.restoring && self.log_failure.is_none());
        let apart = self.clocks_apart.unwrap_or_default();
        self.shared.gate.publish(Published {
            until,
            committed: core.commit_slot(),
            clocks_apart: apart.clamp(i64::MIN.into(), i64::MAX.into()) as i64,
        });
    }

    /// Appends what the core wants kept, in its order.
    fn append(&mut self) -> bool {
        let mut busy = false;
        while self.log_failure.is_none() {
            let Some(core) = &mut self.core else { break };
            let Some(persist) = self.unappended.take().or_else(|| core.poll_persist()) else {
                self.log_full = false;
                core.set_may_lead(self.willing);
                break;
            };
            let record = match &persist {
                Persist::Promise(ballot) => Record::Promise(*ballot),
                Persist::Entry(entry) => Record::Entry(entry.clone()),
            };
            let commit_slot = match &persist {
                Persist::Entry(entry) if self.options.is(Mutant::LogCommitAhead) => entry.slot,
                _ => core.log_commit_slot(),
            };
            if let Err(error) = self.log.append(&record, commit_slot) {
                self.unappended = Some(persist);
                self.on_log_error(&error);
                break;
            }
            busy = true;
        }
        busy
    }

    /// Tells the core what became durable.
    pub(super) fn poll_durable(&mut self) -> bool {
        if self.log_failure.is_some() {
            return false;
        }
        if self.options.whims.has(Point::LateDurable) {
            return false;
        }
        match self.log.durable() {
            Ok(lsn) => {
                let staged = self.options.is(Mutant::TrustStaged);
                let lsn = if staged { self.log.appended() } else { lsn };
                let Some(core) = &mut self.core else { return false };
                let number = PersistNumber(lsn.0);
                let moved = number > core.durable_through();
                if moved {
                    core.on_persisted(number);
                    let nanos = self.log.statistics().last_flush_nanos;
                    self.latencies.flush.saturating_record((nanos / 1_000).max(1));
                }
                moved
            }
            Err(error) => {
                self.on_log_error(&error);
                false
            }
        }
    }

    fn on_log_error(&mut self, error: &LogError) {
        if matches!(error, LogError::Full { .. }) {
            if !self.log_full {
                tracing::error!(%error, "the log is full: this replica does not vote until there is space");
                self.log_full_since = self.clock.now;
            }
            self.log_full = true;
            // Health is progress: a leader that cannot write hands over to one that can.
            let patience = nanos(self.options.election_timeout_min);
            if self.clock.now.since(self.log_full_since) >= patience
                && let Some(core) = &mut self.core
            {
                core.set_may_lead(false);
            }
        } else {
            self.fail_log(error);
        }
    }

    /// The log is gone for this life: this replica votes no more, and says why.
    pub(super) fn fail_log(&mut self, error: &LogError) {
        tracing::error!(%error, "the log failed");
        self.leave_the_quorum(&error.to_string());
    }

    /// This replica can go on no more in this life, and says why.
    pub(super) fn leave_the_quorum(&mut self, why: &str) {
        if self.log_failure.is_none() {
            tracing::error!(why, "this replica leaves the quorum");
            self.log_failure = Some(why.to_owned());
            self.origin.give_up(&Reason::LogFailed);
            self.relay.give_up(&Reason::LogFailed);
            self.fail_reads(&Reason::LogFailed);
        }
        if let Some(core) = &mut self.core {
            if self.options.is(Mutant::VoteWhenPoisoned) {
                core.on_persisted(PersistNumber(self.log.appended().0));
                return;
            }
            core.on_log_failure();
        }
    }

    fn ship(&mut self) -> bool {
        let Some(core) = &mut self.core else { return false };
        let mut busy = false;
        for lanes in self.lanes.iter_mut().filter(|lanes| lanes.data_up) {
            let peer = lanes.peer;
            loop {
                let limit = self.options.batch_bytes_max;
                let shipped = if core.is_witness_peer(peer) {
                    let Some(shipment) = core.next_withheld_shipment(peer, limit) else { break };
                    let Shipment { ballot, first, commit_slot, values, .. } = shipment;
                    let transport = self.transport.as_mut();
                    let (writer, values) = (&mut lanes.ring_writer, values.iter());
                    let shipped = writer.ship(transport, peer, ballot, first, commit_slot, values);
                    shipped.map(|shipped| Slot(first.0 + shipped.count as u64 - 1))
                } else {
                    let Some(shipment) = core.next_shipment(peer, limit) else { break };
                    let Shipment { ballot, first, commit_slot, values, .. } = shipment;
                    let transport = self.transport.as_mut();
                    let writer = &mut lanes.ring_writer;
                    let shipped = writer.ship(transport, peer, ballot, first, commit_slot, values);
                    shipped.map(|shipped| {
                        let last = Slot(first.0 + shipped.count as u64 - 1);
                        if self.options.passive {
                            lanes.note_shipped(shipped.op, ballot, last);
                        }
                        last
                    })
                };
                match shipped {
                    Ok(last) => {
                        busy = true;
                        core.shipped(peer, last);
                    }
                    // No credit, a full queue or a lane that just broke: later.
                    Err(
                        ShipError::NoCredit { .. }
                        | ShipError::Post(PostError::Full(_) | PostError::Down(_)),
                    ) => break,
                    Err(error) => {
                        tracing::error!(%peer, %error, "a record cannot be shipped");
                        break;
                    }
                }
            }
        }
        busy
    }

    fn publish_rows(&mut self) {
        let Some(core) = &mut self.core else { return };
        for lanes in self.lanes.iter_mut().filter(|lanes| lanes.data_up) {
            let peer = lanes.peer;
            if !core.row_due(peer) && !lanes.credit_is_due(self.options.ring_bytes) {
                continue;
            }
            let consumed = lanes.ring_reader.consumed();
            let mut row = core.row(peer);
            if self.log_full {
                row.flags.0 |= RowFlags::FULL;
            }
            if lanes.row_writer.publish(self.transport.as_mut(), peer, &row, consumed).is_ok() {
                lanes.row_posted(&row, consumed);
                core.row_published(peer);
            }
        }
    }

    fn send_messages(&mut self) {
        let Some(core) = &mut self.core else { return };
        while let Some((to, message)) = core.poll_message() {
            let transport = self.transport.as_mut();
            // Every question of the core is asked again by a timer.
            if let Err(error) = lanes::send(transport, &mut self.message, to, &message) {
                tracing::debug!(peer = %to, %error, "a control message was not sent");
            }
        }
    }

    fn serve_log_reads(&mut self) {
        let Some(core) = &mut self.core else { return };
        while let Some(read) = core.poll_log_read() {
            let mut entries = Vec::new();
            let done = self.log.read(read.first, read.bytes_max as usize, &mut entries);
            let last = entries.last().map_or(read.first, |entry| entry.slot);
            if let Err(error) = done {
                tracing::warn!(peer = %read.to, slot = %read.first, %error, "catch-up read failed");
                if matches!(error, LogError::Unreadable { .. }) {
                    self.log_unreadable = Some((read.first, error.to_string()));
                }
            } else if matches!(self.log_unreadable, Some((slot, _)) if read.first <= slot && slot <= last)
            {
                self.log_unreadable = None;
            }
            core.on_log_read(read, entries);
        }
        self.send_messages();
    }

    fn take_notices(&mut self) {
        while let Some(notice) = self.core.as_mut().and_then(quorate_consensus::Paxos::poll_notice)
        {
            let news = match notice {
                Notice::Leading(ballot) => {
                    self.counters.leaderships += 1;
                    tracing::info!(%ballot, "leading");
                    self.end_transfer(Err("this replica was elected again"));
                    Notification::Leading(ballot)
                }
                Notice::SteppedDown(ballot, why) => {
                    tracing::warn!(%ballot, why, "stepped down");
                    Notification::SteppedDown(ballot)
                }
                Notice::Following(ballot) => {
                    tracing::info!(leader = %ballot.node, %ballot, "following");
                    self.end_transfer(Ok(ballot.node));
                    Notification::Following(ballot)
                }
                Notice::Transferring(to) => {
                    tracing::info!(%to, "handing over");
                    Notification::Transferring(to)
                }
                Notice::TransferFailed(to) => {
                    tracing::warn!(%to, "it did not take over; leading on");
                    self.end_transfer(Err("the other replica did not take over in time"));
                    Notification::TransferFailed(to)
                }
                Notice::Leaderless => {
                    tracing::info!("no leader known");
                    Notification::Leaderless
                }
                Notice::Campaigning(ballot) => {
                    tracing::info!(%ballot, "campaigning");
                    continue;
                }
                Notice::Configured { id, settled } => {
                    tracing::info!(configuration = id, settled, "members");
                    Notification::Configured { id, settled }
                }
                Notice::AwaitsCopy(ballot) => {
                    tracing::warn!(
                        %ballot,
                        "a witness knows of something that may have been chosen, and no voter that is up \
                         holds it: waiting for another voter; start those that are down"
                    );
                    continue;
                }
                Notice::StrangeConfiguration(slot) => {
                    tracing::error!(
                        %slot,
                        "the members in this slot are written in a way that this version cannot \
                         read, or need a newer version of the protocol: this replica votes no more; \
                         run the version that wrote them"
                    );
                    continue;
                }
            };
            self.notify(news);
        }
    }

    /// Tells whoever subscribed.
    pub(super) fn notify(&self, news: Notification) {
        // Nobody may be listening.
        let _ = self.shared.notifications.send(news);
    }

    fn end_transfer(&mut self, outcome: Result<NodeId, &str>) {
        let Some(reply) = self.transferring.take() else { return };
        let _ = reply.send(match outcome {
            Ok(leader) => Ok(leader.to_string().into()),
            Err(why) => Err(Failure::Rejected(Reason::NotTransferred(why.into()))),
        });
    }
}
