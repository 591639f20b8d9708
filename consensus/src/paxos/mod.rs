//! [`Paxos`]: one replica's part in the protocol, as a state machine that is driven from outside.

mod accepting;
mod asking;
#[cfg(feature = "model")]
mod canonical;
mod catching_up;
mod changing;
mod checkpointing;
mod electing;
mod leading;
mod lease;
mod passive;
mod quiet;
mod reading;
mod repairing;
mod transferring;
mod versions;
mod witnessing;

use crate::acceptor::{Acceptor, Persist, PersistNumber};
use crate::buggify::Point;
use crate::role::{PromiseHeld, Role};
use crate::settings::Chance;
use crate::window::Window;
use crate::{
    Ballot, Configurations, Entry, Member, Message, Mutant, Nanos, NodeId, Row, RowFlags, Settings,
    Slot, ensures, invariant, requires,
};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

pub use accepting::Gap;
pub use changing::{Change, Refusal};
pub use leading::{Lag, Shipment};
pub use reading::ReadReady;
pub use repairing::Repair;
pub use transferring::TransferError;

use catching_up::CatchUp;
use lease::{Lease, Pulse};
pub(crate) use passive::Cleared;
use passive::Rings;
use quiet::Quiet;
use reading::Reads;
use repairing::Progress;
use transferring::Watch;

/// What a replica knows when it starts: what its log gave back, and who decides.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The highest ballot promised.
    pub promised: Ballot,
    /// The highest slot known to be chosen.
    pub commit_slot: Slot,
    /// The lowest slot that the log can give.
    pub log_first: Slot,
    /// What was accepted above `commit_slot`, in slot order from `commit_slot + 1`; it ends at the
    /// first hole, since what lies behind a hole was never voted for.
    pub accepted: Vec<Entry>,
    /// Who decides, as of `commit_slot`; configurations among `accepted` are found by the core.
    pub configurations: Configurations,
    /// Whether this replica still has all that it promised and accepted in this life of its disk. If
    /// not, it follows and never votes (the amnesia rule). A new disk is another life.
    pub remembers: bool,
}

/// What an operator or an application wants to know about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// This replica leads under this ballot; reads and proposals are served.
    Leading(Ballot),
    /// This replica led and does not any more.
    SteppedDown(Ballot, &'static str),
    /// This replica follows the owner of this ballot.
    Following(Ballot),
    /// This leader hands over to that replica.
    Transferring(NodeId),
    /// That replica did not take over in time; this one goes on leading.
    TransferFailed(NodeId),
    /// No leader is known.
    Leaderless,
    /// An election was begun under this ballot.
    Campaigning(Ballot),
    /// This configuration is in force, as far as this replica knows. Once it is settled, those who are
    /// not in it are needed no more.
    Configured {
        /// Its number.
        id: u64,
        /// Whether the switch to it is known to be chosen by those who stay.
        settled: bool,
    },
    /// This candidate waits: a witness knows of something that may have been chosen, and too few voters
    /// promised this ballot to rule that out (rule W4).
    AwaitsCopy(Ballot),
    /// The configuration in this slot cannot be read, or needs a newer version of the protocol than
    /// this replica speaks: it votes no more.
    StrangeConfiguration(Slot),
}

/// What this replica knows of one peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) row: Row,
    /// When its row last moved.
    pub(crate) heard_at: Option<Nanos>,
    /// `row` came by the link as it is now, so that its position is the one to ship from.
    pub(crate) row_is_current: bool,
    /// The data lane works.
    pub(crate) linked: bool,
    /// Something in our row changed that it should know at once.
    pub(crate) row_due: bool,
    /// Our heartbeat moved.
    pub(crate) heartbeat_due: bool,
    /// Its newest read-index ping, to be answered in our row.
    pub(crate) ping_seen: u64,
    /// What was granted with the answer to it, in microseconds.
    pub(crate) lease_granted: u32,
    /// How fast its heart beats.
    pub(crate) pulse: Pulse,
    /// It was removed, and is let go of then at the latest.
    pub(crate) leaves_at: Option<Nanos>,
    /// The lowest slot that its log can give, as it said last.
    pub(crate) log_first: Slot,
    /// What was written at it in this life of its lane, as the caller told last, and under which ballot.
    pub(crate) written: (Ballot, Slot),
    /// It was asked for this slot and gave nothing, or did not answer in time.
    pub(crate) no_help_from: Slot,
}

/// An asked-for read of this replica's log, for a peer's catch-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRead {
    /// Who asked.
    pub to: NodeId,
    /// First slot.
    pub first: Slot,
    /// Last slot that may be given: what was known chosen when it was asked.
    pub last: Slot,
    /// Payload bytes at the most, but at least one entry.
    pub bytes_max: u32,
}

/// One replica's part in multi-Paxos.
///
/// Events go in by the `on_…` methods, each with the time; effects are taken out by the `poll_…`
/// methods until they have no more. Two rules bind the caller, and a third one ([`Paxos::fence_due`]) who
/// grants rings for one life of a lane:
///
/// * *Drain rule*: after each event, [`Paxos::poll_persist`] and [`Paxos::poll_message`] are called
///   until they return nothing, before the thread rests.
/// * *Durability rule*: persists become durable in the order in which they came out, and
///   [`Paxos::on_persisted`] is told no sooner. What must not leave before that is held back in
///   here; what comes out may leave at once. A record carries [`Paxos::log_commit_slot`], and no
///   higher commit slot.
#[derive(Clone, Debug)]
pub struct Paxos {
    settings: Settings,
    configurations: Configurations,
    acceptor: Acceptor,
    commit_slot: Slot,
    /// `commit_slot` when all persists were last taken out.
    log_commit_slot: Slot,
    applied_slot: Slot,
    log_first: Slot,
    role: Role,
    /// The ballot of the leader that is followed (or is this replica).
    leader: Option<Ballot>,
    leader_heard_at: Option<Nanos>,
    /// A leader that the configuration names was followed in this life, or this replica led.
    met_leader: bool,
    round_seen: u64,
    /// Whether its promises and votes are those of its disk's life, all of them.
    remembers: bool,
    may_lead: bool,
    /// Of the application.
    payload: u32,
    poisoned: bool,
    /// In order of their numbers.
    peers: Vec<Peer>,
    /// Counts changes of `peers`.
    members_version: u64,
    /// The configuration that was last told of: its number, and whether it was settled.
    announced: (u64, bool),
    now: Nanos,
    started_at: Nanos,
    heartbeat: u64,
    heartbeat_at: Nanos,
    election_at: Nanos,
    catch_up: CatchUp,
    reads: Reads,
    repair: Option<Progress>,
    lease: Lease,
    watch: Watch,
    quiet: Quiet,
    chance: Chance,
    messages: VecDeque<(NodeId, Message)>,
    held: VecDeque<(PersistNumber, NodeId, Message)>,
    rings: Rings,
    /// Each waits until all that was emitted before it is durable: what the log then has up to
    /// our commit slot is what was chosen, and not an older record that is being replaced.
    log_reads: VecDeque<(PersistNumber, LogRead)>,
    notices: VecDeque<Notice>,
}

/// Log reads for peers that wait to be served; a request beyond it is dropped, and asked again.
const LOG_READS_MAX: usize = 16;
/// Notices that nobody took: the oldest go first.
const NOTICES_MAX: usize = 256;

impl Paxos {
    /// Starts as a follower.
    #[must_use]
    pub fn new(settings: Settings, restored: Restored, now: Nanos) -> Self {
        let Restored { promised, log_first, accepted, configurations, remembers, .. } = restored;
        let entries = accepted.iter().map(|entry| (entry.slot, &entry.value));
        let commit_slot = restored.commit_slot.max(changing::settled_by(entries.clone()));
        let noted: Vec<(Slot, crate::Value)> = entries
            .filter(|(_, value)| value.kind == crate::ValueKind::Configuration)
            .map(|(slot, value)| (slot, value.clone()))
            .collect();
        let announced = configurations.at(restored.commit_slot.next());
        let announced = (announced.id, announced.settled);
        let mut window = Window::starting_at(restored.commit_slot.next());
        for entry in accepted {
            window.put(entry.slot, entry.ballot, entry.value);
        }
        let promised = if settings.is(Mutant::ForgetPromise) { Ballot::ZERO } else { promised };
        if settings.is(Mutant::ForgetAccepted) {
            window = Window::starting_at(restored.commit_slot.next());
        }
        let remembers = remembers || settings.is(Mutant::AmnesiacVotes);
        let mut paxos = Self {
            chance: Chance::new(settings.seed),
            acceptor: Acceptor::restore(promised, commit_slot, window),
            configurations,
            commit_slot,
            log_commit_slot: restored.commit_slot,
            applied_slot: Slot::ZERO,
            log_first,
            role: Role::Follower,
            leader: None,
            leader_heard_at: None,
            met_leader: false,
            round_seen: promised.round,
            remembers,
            may_lead: true,
            payload: 0,
            poisoned: false,
            peers: Vec::new(),
            members_version: 0,
            announced,
            now,
            started_at: now,
            heartbeat: 0,
            heartbeat_at: now,
            election_at: Nanos::MAX,
            catch_up: CatchUp::default(),
            reads: Reads::new(settings.seed),
            repair: None,
            lease: Lease::default(),
            watch: Watch::default(),
            quiet: Quiet::default(),
            messages: VecDeque::new(),
            held: VecDeque::new(),
            rings: Rings::default(),
            log_reads: VecDeque::new(),
            notices: VecDeque::new(),
            settings,
        };
        paxos.lease_after_restart();
        for (slot, value) in noted {
            paxos.note_value(slot, &value);
        }
        paxos.refresh_members();
        paxos.on_commit_moved();
        paxos.rest_election_timer();
        paxos
    }

    /// The time is `now`: do what is due. Called at least when [`Paxos::poll_timeout`] says.
    pub fn on_time(&mut self, now: Nanos) {
        self.advance(now);
        if self.is_quiet() {
            return;
        }
        if self.now >= self.heartbeat_at {
            self.heartbeat += 1;
            self.heartbeat_at = self.now + self.settings.heartbeat_interval;
            for peer in &mut self.peers {
                peer.heartbeat_due = true;
            }
            self.keep_lease();
            self.watch_leadership();
            self.watch_voters();
            self.raise_protocol();
            self.count_idle_beat();
        }
        if self.settings.whims.has(Point::ExtraRows) {
            self.mark_rows_due();
        }
        self.check_quorum();
        self.dismiss_leavers();
        self.continue_transfer();
        if self.now >= self.election_at {
            self.on_election_timer();
        }
        self.on_catch_up_timer();
        self.on_read_timer();
        self.continue_repair();
        if self.role_is_leader() {
            self.start_reads();
        }
    }

    /// The time is `now`, and nothing is due yet. For whoever asks for something that takes no time as an
    /// argument ([`Paxos::propose`]): a replica that rested would take it for the time at which it began to.
    pub fn note_time(&mut self, now: Nanos) {
        self.advance(now);
    }

    /// When [`Paxos::on_time`] must be called next, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Nanos {
        if self.reads_wait_for_the_clock() {
            return self.now + Nanos(1);
        }
        self.heartbeat_at.min(self.election_at)
    }

    /// What this replica's rows carry for the application around it.
    pub fn set_payload(&mut self, payload: u32) {
        if self.payload != payload {
            self.payload = payload;
            self.mark_rows_due();
        }
    }

    /// Everything emitted up to `number` is durable.
    pub fn on_persisted(&mut self, number: PersistNumber) {
        if number <= self.acceptor.durable_through() {
            return;
        }
        if self.acceptor.persisted(number) {
            match &self.role {
                Role::Leader(_) => self.advance_commit(),
                _ => self.mark_row_due_to_leader(),
            }
        }
        invariant!(
            checked,
            A5,
            self.held.iter().is_sorted_by_key(|(after, _, _)| *after),
            "messages wait for the disk in the order in which they were held back"
        );
        while self.held.front().is_some_and(|(after, _, _)| *after <= number) {
            if let Some((_, to, message)) = self.held.pop_front() {
                self.messages.push_back((to, message));
            }
        }
        self.on_own_promise_durable();
    }

    /// The log failed and will not come back: stop voting and leading, and say so in the row.
    pub fn on_log_failure(&mut self) {
        if self.poisoned {
            return;
        }
        self.end_quiet();
        self.poisoned = true;
        self.remembers = false;
        self.held.clear();
        // What waits for a flush waits for ever now: whoever asked is to ask another one.
        let durable = self.acceptor.durable_through();
        self.log_reads.retain(|(after, _)| *after <= durable);
        if !matches!(self.role, Role::Follower) {
            self.step_down("its log failed");
        }
        self.mark_rows_due();
    }

    /// A control message arrived.
    pub fn on_message(&mut self, now: Nanos, from: NodeId, message: Message) {
        self.advance(now);
        if self.peer_index(from).is_none() {
            return;
        }
        self.end_quiet();
        match message {
            Message::PreVote { ballot, commit_slot } => self.on_pre_vote(from, ballot, commit_slot),
            Message::PreVoteReply { ballot, granted, promised, incarnation } => {
                let member = Member { node: from, incarnation };
                self.on_pre_vote_reply(member, ballot, granted, promised);
            }
            Message::Prepare { ballot, from: first, released } => {
                self.on_prepare(from, ballot, first, released);
            }
            Message::Lead { ballot } => self.on_lead(from, ballot),
            Message::Promise { ballot, from: first, commit_slot, runs, incarnation } => {
                let member = Member { node: from, incarnation };
                self.on_promise(PromiseHeld { member, commit_slot, runs }, ballot, first);
            }
            Message::Nack { ballot, promised } => self.on_nack(ballot, promised),
            Message::Fetch { ballot, first, last } => self.on_fetch(from, ballot, first, last),
            Message::Values { ballot, entries } => self.on_values(ballot, entries),
            Message::Behind { ballot, first_available, commit_slot } => {
                self.on_behind(from, ballot, first_available, commit_slot);
            }
            Message::CatchUpRequest { first, bytes_max } => {
                self.on_catch_up_request(from, first, bytes_max);
            }
            Message::CatchUpReply { first, commit_slot, log_first, entries } => {
                self.on_catch_up_reply(from, first, commit_slot, log_first, entries);
            }
            Message::ReadIndex { id } => self.on_read_index(from, id),
            Message::ReadIndexReply { id, slot } => self.on_read_index_reply(from, id, slot),
            // Addressed to the replica around the core.
            Message::Forward { .. }
            | Message::Fresh { .. }
            | Message::Genesis { .. }
            | Message::SnapshotRequest { .. }
            | Message::SnapshotReply { .. }
            | Message::Goodbye { .. } => {}
        }
    }

    /// The data lane to `peer` works, under a new incarnation: nothing of the old one counts.
    pub fn on_link_up(&mut self, now: Nanos, peer: NodeId) {
        self.advance(now);
        let Some(index) = self.peer_index(peer) else { return };
        self.end_quiet();
        self.peers[index].linked = true;
        // A ping of the peer's earlier life must not be answered in the new one, where it may be
        // counting from the beginning again.
        self.peers[index].ping_seen = 0;
        self.peers[index].lease_granted = 0;
        self.peers[index].pulse = Pulse::default();
        self.peers[index].log_first = Slot::ZERO;
        self.peers[index].no_help_from = Slot::ZERO;
        self.peers[index].row_is_current = false;
        self.peers[index].written = Default::default();
        self.peers[index].row_due = true;
        self.forget_reads_of(peer);
        if let Some(progress) = self.role.leader_mut().and_then(|leader| leader.progress_mut(peer))
        {
            progress.next = None;
            progress.passive = false;
            progress.told_behind = false;
        }
        self.ask_found_member(peer);
    }

    /// The data lane to `peer` failed: nothing is known of what was in flight.
    pub fn on_link_down(&mut self, now: Nanos, peer: NodeId) {
        self.advance(now);
        self.end_quiet();
        if let Some(index) = self.peer_index(peer) {
            self.peers[index].linked = false;
            self.peers[index].written = Default::default();
        }
        self.forget_reads_of(peer);
        self.give_up_catch_up_from(peer);
        if let Some(leader) = self.role.leader_mut() {
            if let Some(progress) = leader.progress_mut(peer) {
                progress.next = None;
                progress.passive = false;
            }
        } else if self.leader.is_some_and(|ballot| ballot.node == peer) {
            // A broken link is no proof, but a reason to ask the others soon; pre-votes protect a
            // leader that they still hear.
            self.leader_heard_at = None;
            let soon = self.chance.between(Nanos(0), self.settings.heartbeat_interval);
            self.election_at = self.election_at.min(self.now + soon);
        }
    }

    /// The next message to send on the control lane. It may leave at once.
    pub fn poll_message(&mut self) -> Option<(NodeId, Message)> {
        self.messages.pop_front()
    }

    /// The next thing to append to the log, together with [`Paxos::log_commit_slot`].
    pub fn poll_persist(&mut self) -> Option<Persist> {
        let persist = self.acceptor.poll_persist();
        if persist.is_none() {
            self.log_commit_slot = self.commit_slot;
        }
        persist
    }

    /// The commit slot that the record being appended may carry: one that records appended before
    /// it cover.
    ///
    /// [`Paxos::commit_slot`] itself will not do: it may cover records that still wait behind this
    /// one. A crash between the two would leave a log that calls chosen what stands in those slots
    /// from an older ballot.
    #[must_use]
    pub fn log_commit_slot(&self) -> Slot {
        self.log_commit_slot
    }

    /// The next read of the log for a peer; answer with [`Paxos::on_log_read`].
    pub fn poll_log_read(&mut self) -> Option<LogRead> {
        let durable = self.acceptor.durable_through();
        self.log_reads.pop_front_if(|(after, _)| *after <= durable).map(|(_, read)| read)
    }

    /// The next piece of news.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// The next chosen entry that the state machine has not seen, if it is in memory. After a
    /// restart the first ones are not: the caller reads those from its log.
    #[must_use]
    pub fn next_to_apply(&self) -> Option<(Slot, &crate::Value)> {
        if self.applied_slot >= self.commit_slot {
            return None;
        }
        let slot = self.applied_slot.next();
        self.acceptor.window.get(slot).map(|(_, value)| (slot, value))
    }

    /// The state machine has seen everything up to `slot`.
    ///
    /// # Panics
    /// If it has seen what is not chosen, or went back.
    pub fn on_applied(&mut self, slot: Slot) {
        requires!(
            always,
            L5,
            slot >= self.applied_slot && slot <= self.commit_slot,
            "applied ⊆ chosen"
        );
        self.applied_slot = slot;
        self.shrink_window();
        self.configurations.forget_below(slot);
        self.resume_catch_up();
        self.settle_reads();
    }

    /// Applied entries stay in memory as far as the limits allow.
    fn shrink_window(&mut self) {
        let eager = self.settings.whims.has(Point::EagerEviction);
        self.acceptor.window.shrink(
            self.applied_slot,
            if eager { 0 } else { self.settings.cache_bytes_max },
            (self.settings.window_slots_max * 4) as usize,
        );
    }

    /// Whether the row for `peer` should be published now; [`Paxos::row_published`] settles it.
    #[must_use]
    pub fn row_due(&self, peer: NodeId) -> bool {
        self.peer_index(peer).is_some_and(|index| {
            let peer = &self.peers[index];
            peer.row_due || peer.heartbeat_due
        })
    }

    /// The row for `peer` as it stands.
    #[must_use]
    pub fn row(&self, peer: NodeId) -> Row {
        let (accepted_ballot, accepted_slot) = if self.settings.is(Mutant::AcknowledgeBeforePersist)
        {
            (self.acceptor.accepted_ballot(), self.acceptor.accepted_slot())
        } else {
            self.acceptor.vote()
        };
        ensures!(
            checked,
            A6,
            self.acceptor.promised() >= self.acceptor.vote().0,
            "a row shows no vote above the promise in it"
        );
        let mut flags = 0;
        if self.role.leader().is_some() {
            flags |= RowFlags::LEADING;
        }
        if self.quorum_connected() {
            flags |= RowFlags::QUORUM_CONNECTED;
        }
        if !self.word_counts() && !self.poisoned {
            flags |= RowFlags::AMNESIAC;
        }
        if self.poisoned {
            flags |= RowFlags::POISONED;
        }
        if !self.may_stand() {
            flags |= RowFlags::UNWILLING;
        }
        if self.settings.witness {
            flags |= RowFlags::WITNESS;
        }
        if self.shows_passive(peer) {
            flags |= RowFlags::PASSIVE;
        }
        flags |= u64::from(self.settings.priority) << RowFlags::PRIORITY_SHIFT;
        if self.settings.protocol > crate::PROTOCOL_FIRST {
            flags |= u64::from(self.settings.protocol as u8) << RowFlags::PROTOCOL_SHIFT;
        }
        flags |= u64::from(self.payload) << RowFlags::PAYLOAD_SHIFT;
        if self.is_quiet() {
            flags |= RowFlags::QUIET;
        }
        if self.wants_sign() {
            flags |= RowFlags::WANTS_SIGN;
        }
        Row {
            promised: self.promise_to_show(accepted_ballot),
            accepted_ballot,
            accepted_slot,
            commit_slot: self.commit_slot,
            applied_slot: self.applied_slot,
            heartbeat: self.heartbeat,
            // Also when it leads no more: a row only grows.
            ping: self.reads.newest_ping(),
            pong: self.peer_index(peer).map_or(0, |index| self.peers[index].ping_seen),
            lease_asked: self.lease_asked(),
            lease_granted: self.peer_index(peer).map_or(0, |index| self.peers[index].lease_granted),
            flags: RowFlags(flags),
            incarnation: self.me().incarnation,
        }
    }

    /// The row was posted to `peer`.
    pub fn row_published(&mut self, peer: NodeId) {
        self.note_shown(peer);
        if let Some(index) = self.peer_index(peer) {
            self.peers[index].row_due = false;
            self.peers[index].heartbeat_due = false;
        }
    }

    fn mark_rows_due(&mut self) {
        for peer in &mut self.peers {
            peer.row_due = true;
        }
    }

    fn mark_row_due_to_leader(&mut self) {
        let owner = self.acceptor.accepted_ballot().node;
        if let Some(index) = self.peer_index(owner) {
            self.peers[index].row_due = true;
        }
    }

    fn notice(&mut self, notice: Notice) {
        if self.notices.len() == NOTICES_MAX {
            self.notices.pop_front();
        }
        self.notices.push_back(notice);
    }

    fn send(&mut self, to: NodeId, message: Message) {
        self.messages.push_back((to, message));
    }

    fn send_after(&mut self, after: PersistNumber, to: NodeId, message: Message) {
        if after <= self.acceptor.durable_through() {
            self.messages.push_back((to, message));
        } else {
            self.held.push_back((after, to, message));
        }
    }

    fn peer_index(&self, node: NodeId) -> Option<usize> {
        self.peers.iter().position(|peer| peer.node == node)
    }

    /// Whether `peer` showed a sign of life within `within`.
    fn hears(&self, peer: &Peer, within: Nanos) -> bool {
        peer.heard_at.is_some_and(|at| self.now.since(at) < within)
    }
}

impl Peer {
    fn new(node: NodeId) -> Self {
        Self {
            node,
            row: Row::default(),
            heard_at: None,
            row_is_current: false,
            linked: false,
            row_due: true,
            heartbeat_due: true,
            ping_seen: 0,
            lease_granted: 0,
            pulse: Pulse::default(),
            leaves_at: None,
            log_first: Slot::ZERO,
            written: Default::default(),
            no_help_from: Slot::ZERO,
        }
    }

    /// Whether its votes count.
    pub(crate) fn counts(&self) -> bool {
        self.row.flags.0 & (RowFlags::AMNESIAC | RowFlags::POISONED) == 0
    }
}
