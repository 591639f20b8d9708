//! What comes in: events of the transport, and requests of clients.

use super::{Node, Read, lanes_of, passive};
use crate::front::{Consistency, Failure, Reason, Request};
use crate::lanes::{self, Lanes};
use crate::options::nanos;
use crate::relay;
use bytes::Bytes;
use quorate_consensus::batch::{groups_are_whole, take_group, take_item};
use quorate_consensus::buggify::Point;
use quorate_consensus::{Genesis, Message, Mutant, Nanos, NodeId};
use quorate_transport::{Event, Lane, RegionId, codec};
use std::sync::atomic::Ordering;

/// Requests taken from the queue that wait for a leader, or for room.
const WAITING_MAX: usize = 8192;
/// Linearizable reads that wait for their confirmation; more wait in the clients' queue.
const READS_MAX: usize = 65_536;
/// Bytes of forwarded commands that wait to be proposed: several peers' windows. What is beyond is
/// dropped; its origin finds the gap and sends it again.
const FORWARDED_BYTES_MAX: usize = 128 << 20;

/// A peer shows its founding document at once when a lane comes up, or when it is given ours.
const INTRODUCTION_PATIENCE: Nanos = Nanos::from_millis(2_000);

impl Node {
    /// Takes what the transport received. Returns whether anything came.
    pub(super) fn receive(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.events);
        self.transport.poll(&mut events);
        let mut busy = !events.is_empty();
        for event in events.drain(..) {
            self.on_event(event);
        }
        self.events = events;
        self.introduce();
        self.tell_granted();
        busy |= self.drain_lanes();
        busy
    }

    fn on_event(&mut self, event: Event) {
        let now = self.clock.now;
        match event {
            Event::LinkUp { peer, lane: Lane::Data, incarnation } => {
                if let Some(lanes) = lanes_of(&mut self.lanes, peer) {
                    lanes.data_lane_up(incarnation);
                    lanes.introduce_at(now);
                }
                self.grant_ring(peer);
                if let Some(core) = &mut self.core {
                    core.on_link_up(now, peer);
                }
                tracing::info!(%peer, %incarnation, "data lane up");
            }
            Event::LinkUp { peer, lane: Lane::Control, .. } => self.on_control_up(peer),
            Event::LinkDown { peer, lane, reason } => self.on_lane_down(peer, lane, &reason),
            Event::Control { peer, message } => match codec::decode(message) {
                Ok(message) => self.on_message(peer, message),
                Err(error) => {
                    tracing::warn!(%peer, %error, "a control message cannot be read");
                    self.transport
                        .reset(peer, &format!("a control message cannot be read: {error}"));
                }
            },
            Event::Written { peer, region } => {
                if let Some(lanes) = lanes_of(&mut self.lanes, peer) {
                    lanes.inbox_hint |= region == RegionId::inbox(peer);
                    lanes.row_hint |= region == RegionId::row(peer);
                }
            }
            Event::Completed { peer, through, .. } if self.options.passive => {
                self.on_completed(peer, through);
            }
            Event::Completed { .. } => {}
        }
    }

    fn on_control_up(&mut self, peer: NodeId) {
        if let Some(lanes) = lanes_of(&mut self.lanes, peer) {
            lanes.control_up = true;
            lanes.control_known = false;
            lanes.introduce_at(self.clock.now);
        }
        // What was forwarded on the old lane may be lost.
        if self.led_by.is_some_and(|ballot| ballot.node == peer) {
            self.origin.send_again(self.clock.now);
            self.relay.send_again();
        }
    }

    /// Says who we are, on the control lane. Both ends do so whenever a lane comes up, and nothing
    /// else makes them: it is tried until the lane takes it.
    fn introduce(&mut self) {
        let due = |lanes: &&mut Lanes| lanes.introduction_due && lanes.control_up;
        for lanes in self.lanes.iter_mut().filter(due) {
            let hello = match &self.recovered.identity.genesis {
                Some(document) => Message::Genesis { document: document.clone() },
                None => Message::Fresh { incarnation: self.recovered.identity.incarnation },
            };
            let transport = self.transport.as_mut();
            let sent = lanes::send(transport, &mut self.message, lanes.peer, &hello);
            lanes.introduction_due = sent.is_err();
        }
    }

    /// A peer that does not say who it is would never be listened to: its lanes start over.
    pub(super) fn refuse_strangers(&mut self) {
        if self.genesis.is_none() {
            return;
        }
        let now = self.clock.now;
        for lanes in self.lanes.iter_mut().filter(|lanes| lanes.is_stranger()) {
            if now.since(lanes.up_since) >= INTRODUCTION_PATIENCE {
                lanes.up_since = now;
                let reason = "it did not show the founding document of its cluster";
                self.transport.reset(lanes.peer, reason);
            }
        }
    }

    fn on_lane_down(&mut self, peer: NodeId, lane: Lane, reason: &str) {
        tracing::info!(%peer, ?lane, reason, "lane down");
        let Some(lanes) = lanes_of(&mut self.lanes, peer) else { return };
        match lane {
            Lane::Control => {
                lanes.control_up = false;
                if let Some(founding) = &mut self.founding {
                    founding.on_down(peer);
                }
            }
            Lane::Data => {
                lanes.data_up = false;
                lanes.data_known = false;
                if self.options.passive {
                    self.close_ring(peer);
                }
                if let Some(core) = &mut self.core {
                    core.on_link_down(self.clock.now, peer);
                }
            }
        }
    }

    fn on_message(&mut self, from: NodeId, message: Message) {
        let known = lanes_of(&mut self.lanes, from).is_some_and(|lanes| lanes.control_known);
        match message {
            Message::Fresh { incarnation } => {
                if let Some(document) = self.recovered.identity.genesis.clone() {
                    self.post(from, &Message::Genesis { document });
                } else if let Some(founding) = &mut self.founding {
                    founding.on_fresh(from, incarnation);
                }
            }
            Message::Genesis { document } => self.on_genesis(from, document),
            Message::Forward { groups } if known => self.on_forward(from, groups),
            Message::Goodbye { reason, .. } => {
                let reason = String::from_utf8_lossy(&reason);
                tracing::error!(peer = %from, %reason, "the peer refuses to talk to this replica");
            }
            Message::SnapshotRequest { at_least, slot, digest, first, bytes_max } if known => {
                self.on_snapshot_request(from, at_least, (slot, digest), first, bytes_max);
            }
            Message::SnapshotReply { slot, digest, blocks, first, bytes } if known => {
                self.on_snapshot_reply(from, (slot, digest), blocks, first, bytes);
            }
            message if known => {
                if let Some(core) = &mut self.core {
                    core.on_message(self.clock.now, from, message);
                }
                self.serve_fence();
            }
            // Its founding document comes first on every lane: what came before is a stranger's.
            _ => tracing::debug!(peer = %from, "a message of an unknown peer is dropped"),
        }
    }

    fn on_genesis(&mut self, from: NodeId, document: Bytes) {
        let Some(theirs) = Genesis::decode(&document) else {
            self.transport.reset(from, "its founding document cannot be read");
            return;
        };
        if let Some(ours) = &self.genesis {
            if ours.cluster != theirs.cluster {
                let (of, with) = (theirs.cluster, ours.cluster);
                let reason = match (ours.recovered_from, theirs.recovered_from) {
                    (Some(lost), _) if lost == of => format!(
                        "cluster {of:016x} lost its majority and goes on as cluster {with:016x}: start \
                         the replica with an empty directory, then `quorate member add`"
                    ),
                    (_, Some(lost)) if lost == with => format!(
                        "cluster {with:016x} of this replica lost its majority and goes on as cluster \
                         {of:016x}: start this replica with an empty directory, then `quorate member add`"
                    ),
                    _ => format!(
                        "it belongs to cluster {of:016x}, this replica to cluster {with:016x}: check the \
                         peer addresses and the data directories"
                    ),
                };
                tracing::error!(peer = %from, reason);
                self.post(from, &Message::Goodbye { to: from, reason: reason.clone().into() });
                self.transport.flush();
                self.transport.reset(from, &reason);
            } else if let Some(lanes) = lanes_of(&mut self.lanes, from) {
                lanes.control_known = true;
                lanes.data_known = true;
            }
            return;
        }
        self.found(document, theirs);
        if let Some(lanes) = lanes_of(&mut self.lanes, from) {
            lanes.control_known = self.genesis.is_some();
            lanes.data_known = self.genesis.is_some();
        }
    }

    /// Keeps the founding document, then takes part.
    fn found(&mut self, document: Bytes, genesis: Genesis) {
        let kept = self.log.set_genesis(document.clone());
        if let Err(error) = kept {
            self.fail_log(&error);
            return;
        }
        self.recovered.identity.genesis = Some(document.clone());
        if let Err(error) = self.start_core(genesis) {
            self.log_failure = Some(error.to_string());
            tracing::error!(%error, "the replica cannot take part");
            return;
        }
        for peer in self.transport.peers() {
            self.post(peer, &Message::Genesis { document: document.clone() });
        }
    }

    pub(super) fn continue_founding(&mut self) {
        let Some(founding) = &mut self.founding else { return };
        if self.log_failure.is_some() {
            return;
        }
        if let Some(document) = founding.document() {
            if let Some(genesis) = Genesis::decode(&document) {
                tracing::info!(cluster = format_args!("{:016x}", genesis.cluster), "founding");
                self.found(document, genesis);
            }
            return;
        }
        if let Some(message) = founding.repeat(self.clock.now) {
            for peer in self.transport.peers() {
                self.post(peer, &message);
            }
        }
    }

    /// Posts a message whose loss the protocol repairs by itself.
    pub(super) fn post(&mut self, to: NodeId, message: &Message) {
        if let Err(error) = lanes::send(self.transport.as_mut(), &mut self.message, to, message) {
            tracing::debug!(peer = %to, %error, "a control message was not sent");
        }
    }

    fn on_forward(&mut self, from: NodeId, groups: Bytes) {
        if !self.core.as_ref().is_some_and(|core| core.role_is_leader())
            || self.forwarded_bytes + groups.len() > FORWARDED_BYTES_MAX
        {
            return;
        }
        if !groups_are_whole(&groups) {
            self.transport.reset(from, "it forwarded commands that are not whole groups");
            return;
        }
        let mut rest = groups.clone();
        while let Some(group) = take_group(&mut rest) {
            self.forwarded_commands += u64::from(group.header.count);
        }
        self.forwarded_bytes += groups.len();
        self.forwarded.push_back(groups);
    }

    /// Reads what peers wrote: records and rows.
    fn drain_lanes(&mut self) -> bool {
        let Some(core) = &mut self.core else { return false };
        let now = self.clock.now;
        let hints = self.transport.hints();
        let mut busy = false;
        for at in 0..self.lanes.len() {
            let lanes = &mut self.lanes[at];
            if !(lanes.data_up && lanes.data_known) {
                continue;
            }
            let peer = lanes.peer;
            // A log without room takes nothing more in: the ring fills, the leader stops.
            let whims = &self.options.whims;
            let look = lanes.inbox_hint || !hints || lanes.ring_reader.suspicious();
            let look = look || whims.has(Point::ExtraLook);
            if look && !self.log_full && !whims.has(Point::LateLook) {
                lanes.inbox_hint = false;
                loop {
                    let reader = &mut self.lanes[at].ring_reader;
                    let failure = match reader.poll(self.transport.as_ref(), &mut self.accept) {
                        Ok(false) => break,
                        Ok(true) => {
                            busy = true;
                            let taken = core.on_accept(now, peer, &mut self.accept);
                            if core.fence_due().is_some() {
                                let (lanes, transport) = (&mut self.lanes, &mut *self.transport);
                                let accept = &mut self.accept;
                                passive::serve(core, lanes, transport, accept, now, &self.options);
                            }
                            match taken {
                                Ok(()) => continue,
                                Err(gap) => gap.to_string(),
                            }
                        }
                        Err(error) => error.to_string(),
                    };
                    tracing::warn!(%peer, failure, "the data lane starts over");
                    self.transport.reset(peer, &failure);
                    break;
                }
            }
            let lanes = &mut self.lanes[at];
            let look = lanes.row_hint || !hints || whims.has(Point::ExtraLook);
            if look && !whims.has(Point::LateLook) {
                lanes.row_hint = false;
                if let Some((row, consumed)) = lanes.row_reader.poll(self.transport.as_ref()) {
                    busy = true;
                    let lost = lanes.take_credit(now, &row, consumed);
                    core.on_row(now, peer, row);
                    if core.fence_due().is_some() {
                        let (lanes, transport) = (&mut self.lanes, &mut *self.transport);
                        let accept = &mut self.accept;
                        passive::serve(core, lanes, transport, accept, now, &self.options);
                    }
                    if lost {
                        tracing::warn!(%peer, "records never arrived: the data lane starts over");
                        self.transport.reset(peer, "records that were posted never arrived");
                    }
                }
            }
        }
        busy
    }

    /// Takes requests from the clients' queue as far as there is room for them.
    pub(super) fn take_requests(&mut self) {
        let now = self.clock.now;
        while self.waiting.len() < WAITING_MAX {
            let Some(request) = self.shared.requests.pop() else { break };
            if self.options.witness && !matches!(request, Request::Checkpoint { .. }) {
                self.shared.bytes.fetch_sub(request.length(), Ordering::Relaxed);
                self.refuse_as_witness(request);
                continue;
            }
            self.waiting.push_back((request, now));
        }
        if self.core.is_none() {
            return;
        }
        while let Some((request, _)) = self.waiting.front() {
            let has_room = match request {
                Request::Propose { .. } => self.origin.has_room(),
                Request::Read { .. } => self.reads.len() + self.bounded_reads.len() < READS_MAX,
                Request::Group { .. } => self.relay.has_room(),
                Request::Checkpoint { .. } => true,
                Request::Transfer { .. } => true,
                Request::Change { .. } => true,
            };
            if !has_room && self.log_failure.is_none() {
                break;
            }
            let Some((request, arrived)) = self.waiting.pop_front() else { break };
            self.shared.bytes.fetch_sub(request.length(), Ordering::Relaxed);
            self.admit(request, arrived);
        }
        if let Some(core) = &mut self.core {
            core.start_reads();
        }
    }

    fn admit(&mut self, request: Request, arrived: Nanos) {
        let whole = match &request {
            Request::Propose { count, commands, .. } => items_are_whole(commands, *count),
            Request::Read { count, queries, .. } => items_are_whole(queries, *count),
            Request::Group { bytes, .. } => relay::parse(bytes).is_some(),
            Request::Checkpoint { .. } => true,
            Request::Transfer { .. } => true,
            Request::Change { .. } => true,
        };
        if !whole {
            self.counters.failures += 1;
            return request.fail(Failure::Rejected(Reason::Malformed));
        }
        if self.log_failure.is_some() {
            self.counters.failures += 1;
            return request.fail(Failure::Rejected(Reason::LogFailed));
        }
        if !matches!(request, Request::Read { .. })
            && let Some(core) = &mut self.core
        {
            // It may need another leader than the one that rests.
            core.rouse(self.clock.now);
        }
        match request {
            Request::Propose { .. } | Request::Group { .. } if self.log_full => {
                self.counters.failures += 1;
                request.fail(Failure::Rejected(Reason::LogFull));
            }
            Request::Propose { count, commands, reply } => {
                self.origin.submit(count, commands, reply, arrived);
            }
            Request::Transfer { to, reply } => {
                let Some(core) = &mut self.core else { return };
                match core.transfer(self.clock.now, to) {
                    Ok(_) => self.transferring = Some(reply),
                    Err(refused) => {
                        let reason = Reason::NotTransferred(refused.to_string());
                        let _ = reply.send(Err(Failure::Rejected(reason)));
                    }
                }
            }
            Request::Change { change, reply } => self.change_members(change, reply),
            Request::Group { bytes, reply } => {
                if let Some(group) = relay::parse(&bytes) {
                    self.relay.submit(&group, bytes, reply, arrived);
                }
            }
            Request::Checkpoint { reply } => self.ask_for_checkpoint(reply),
            Request::Read { consistency, reply, .. }
                if self.checkpoints.restoring
                    && (consistency == Consistency::Stale
                        || self.options.is(Mutant::ReadLocally)) =>
            {
                self.counters.failures += 1;
                let _ = reply.send(Err(Failure::Rejected(Reason::Restoring)));
            }
            Request::Read { count, queries, consistency, reply }
                if consistency == Consistency::Stale || self.options.is(Mutant::ReadLocally) =>
            {
                self.counters.stale_reads += u64::from(count);
                let answers = self.run_queries(&queries);
                let _ = reply.send(Ok(answers));
            }
            Request::Read {
                count,
                queries,
                consistency: Consistency::AtLeast(at_least),
                reply,
            } => {
                let (ticket, asked_at) = (0, arrived);
                let read = Read { ticket, count, queries, reply, asked_at };
                self.bounded_reads_taken += 1;
                self.bounded_reads.insert((at_least, self.bounded_reads_taken), read);
            }
            Request::Read { count, queries, reply, .. } => {
                let Some(core) = &mut self.core else { return };
                let ticket = core.read_index(self.clock.now);
                let asked_at = arrived;
                self.reads.push_back(Read { ticket, count, queries, reply, asked_at });
            }
        }
    }

    /// Requests that waited too long: what never left this replica is certainly rejected.
    pub(super) fn expire_requests(&mut self) {
        let (now, limit) = (self.clock.now, nanos(self.options.request_timeout));
        let reason = || match &self.core {
            Some(core) if core.leader().is_some() => Reason::TimedOut,
            _ => Reason::NoLeader,
        };
        while self.waiting.front().is_some_and(|(_, arrived)| now.since(*arrived) >= limit) {
            let Some((request, _)) = self.waiting.pop_front() else { break };
            self.shared.bytes.fetch_sub(request.length(), Ordering::Relaxed);
            self.counters.failures += 1;
            request.fail(Failure::Rejected(reason()));
        }
        self.counters.failures += self.relay.expire(now, limit, &reason());
        while self.reads.front().is_some_and(|read| now.since(read.asked_at) >= limit) {
            let Some(read) = self.reads.pop_front() else { break };
            self.counters.failures += 1;
            let _ = read.reply.send(Err(Failure::Rejected(reason())));
        }
        let late = |_: &_, read: &mut Read| now.since(read.asked_at) >= limit;
        for ((slot, _), read) in self.bounded_reads.extract_if(.., late) {
            self.counters.failures += 1;
            let _ = read.reply.send(Err(Failure::Rejected(Reason::NotApplied(slot))));
        }
    }
}

fn items_are_whole(items: &[u8], count: u32) -> bool {
    let mut rest = items;
    for _ in 0..count {
        if take_item(&mut rest).is_none() {
            return false;
        }
    }
    count > 0 && rest.is_empty()
}
