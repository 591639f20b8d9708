//! Leases: a leader that a quorum promised to wait for answers reads without asking anyone.
//!
//! The only rules of the protocol that look at clocks are in here (R7 to R12 of `docs/spec`). They
//! assume of a clock that its *rate* is within the bound of [`crate::Settings::clock_drift_ppm`];
//! no two clocks are ever compared.

use super::Paxos;
use crate::role::Role;
use crate::{Ballot, Mutant, Nanos, NodeId, Row, ensures};
use alloc::collections::VecDeque;

/// Times of sending are kept for so many pings; the answer to an older one renews nothing.
const PINGS_MAX: usize = 256;
/// A leader whose clock, or a peer's, looked wrong asks for no lease for so long.
const DISTRUST: Nanos = Nanos::from_millis(10_000);
/// Heartbeats are counted over so long.
const WATCH: Nanos = Nanos::from_millis(10_000);

/// What this replica granted, and what it was granted.
#[derive(Clone, Debug, Default)]
pub(super) struct Lease {
    /// At an acceptor: whom it waits for.
    grant: Option<Grant>,
    /// At an acceptor: what it may have granted in an earlier life binds it until then.
    restart_until: Nanos,
    /// At a leader: its newest pings, and when each was made.
    sent: VecDeque<(u64, Nanos)>,
    /// At a leader: its lease ends then.
    until: Nanos,
    /// At a leader: under this ballot it leases no more, since it gave its lease up.
    released: Ballot,
    /// At a candidate: its ballot, and the one whose leader asked it to stand.
    standing: (Ballot, Ballot),
    /// At a leader: a clock looked wrong; no lease is asked for or used before.
    distrusted_until: Nanos,
}

/// A promise to wait: no other ballot is promised before it ends.
#[derive(Clone, Copy, Debug)]
struct Grant {
    ballot: Ballot,
    length: Nanos,
    /// It ends then. None until the clock was read after the ping came: the time of the turn in
    /// which it came may be from before the ping was even sent.
    until: Option<Nanos>,
}

/// How fast a peer's heart beats, by our clock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pulse {
    beats: u64,
    since: Nanos,
}

impl Paxos {
    /// The clock was read: it is `now`.
    pub(super) fn advance(&mut self, now: Nanos) {
        if now <= self.now {
            return;
        }
        self.now = now;
        if let Some(grant) = self.lease.grant.as_mut().filter(|grant| grant.until.is_none()) {
            grant.until = Some(now + grant.length);
        }
        self.age_reads();
    }

    /// After a restart: grants of the earlier life, if there was one that promised anything, still
    /// bind.
    pub(super) fn lease_after_restart(&mut self) {
        let fresh = self.acceptor.promised() == Ballot::ZERO;
        if !fresh && !self.settings.is(Mutant::LeaseForgottenAtRestart) {
            self.lease.restart_until = self.started_at + self.settings.lease;
        }
    }

    /// Whether a grant forbids this acceptor to promise `ballot`. The owner of `released` gave up
    /// what it was granted under it and below.
    pub(super) fn lease_binds(&self, ballot: Ballot, released: Ballot) -> bool {
        if self.settings.is(Mutant::LeaseNotHonoured) {
            return false;
        }
        let granted = self.lease.grant.is_some_and(|grant| {
            ballot != grant.ballot
                && grant.ballot > released
                && grant.until.is_none_or(|until| self.now < until)
        });
        granted || self.now < self.lease.restart_until
    }

    /// When no grant will bind any more, as far as it is known.
    pub(super) fn lease_binds_until(&self) -> Nanos {
        let granted = self.lease.grant.and_then(|grant| grant.until).unwrap_or_default();
        granted.max(self.lease.restart_until)
    }

    /// A ping of the leader that this replica follows, which asks for a lease. Returns what is
    /// granted, in microseconds: all of it, or nothing where this replica would not wait that long
    /// after a restart.
    pub(super) fn grant_lease(&mut self, ballot: Ballot, asked_micros: u32) -> u32 {
        let length = Nanos(u64::from(asked_micros) * 1_000);
        if asked_micros == 0 || length > self.settings.lease || !self.votes() {
            return 0;
        }
        self.lease.grant = Some(Grant { ballot, length, until: None });
        ensures!(
            checked,
            R7,
            self.lease_binds(Ballot { round: ballot.round + 1, ..ballot }, Ballot::ZERO)
                || self.settings.is(Mutant::LeaseNotHonoured),
            "a granted lease binds from the moment on"
        );
        asked_micros
    }

    /// What this replica, as leader, asks for with its pings, in microseconds.
    pub(super) fn lease_asked(&self) -> u32 {
        let asks = self.role.leader().is_some_and(|leader| {
            leader.ballot > self.lease.released && self.now >= self.lease.distrusted_until
        });
        if asks { u32::try_from(self.settings.lease.0 / 1_000).unwrap_or(u32::MAX) } else { 0 }
    }

    /// A new ping is about to be shown to everyone.
    pub(super) fn next_ping(&mut self) -> u64 {
        let Role::Leader(leader) = &mut self.role else { return 0 };
        leader.ping += 1;
        self.reads.note_ping(leader.ping);
        if self.lease.sent.len() == PINGS_MAX {
            self.lease.sent.pop_front();
        }
        self.lease.sent.push_back((leader.ping, self.now));
        leader.ping
    }

    /// A follower's row answers a ping. Its lease begins when that ping was made, which was before
    /// the follower saw it.
    pub(super) fn on_lease_granted(&mut self, from: NodeId, row: &Row) {
        let asked = self.lease_asked();
        if asked == 0 || row.lease_granted < asked {
            return;
        }
        let sent = self.lease.sent.iter().rev().find(|(ping, _)| *ping == row.pong);
        let Some(&(_, sent_at)) = sent else { return };
        let sent_at = if self.settings.is(Mutant::LeaseFromAnswer) { self.now } else { sent_at };
        let Some(progress) = self.role.leader_mut().and_then(|leader| leader.progress_mut(from))
        else {
            return;
        };
        if progress.leased_at.is_some_and(|before| before >= sent_at) {
            return;
        }
        progress.leased_at = Some(sent_at);
        self.renew_lease();
    }

    /// The lease runs from the newest time that a quorum has granted from.
    fn renew_lease(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let from = self.commit_slot.next();
        let granted = |since: Nanos| {
            self.configurations.is_commit_quorum_from(from, |member| {
                let peer = leader.progress(member.node);
                let peer = peer.filter(|held| held.incarnation == member.incarnation);
                self.is_me(member) || peer.and_then(|held| held.leased_at) >= Some(since)
            })
        };
        let times = leader.progress.iter().filter_map(|progress| progress.leased_at);
        let newest = times.filter(|since| granted(*since)).max();
        if let Some(since) = newest {
            self.lease.until = self.lease.until.max(since + self.lease_length());
        }
    }

    /// Another configuration decides from here on: what the members of the one before granted holds
    /// nobody back that is elected without them.
    pub(super) fn lease_of_new_members(&mut self) {
        if self.settings.is(Mutant::LeaseOfOldMembers) {
            return;
        }
        self.lease.until = Nanos(0);
        self.renew_lease();
        ensures!(
            checked,
            C10,
            self.lease.until <= self.now + self.settings.lease,
            "a lease is counted from what the members in force granted"
        );
    }

    /// How long a lease lasts by the leader's clock: what the followers wait, if theirs is as fast
    /// and the leader's as slow as the bound allows, less a hundredth.
    fn lease_length(&self) -> Nanos {
        let lease = self.settings.lease.0;
        if self.settings.is(Mutant::LeaseWithoutMargin) {
            return Nanos(lease);
        }
        let drift = u64::from(self.settings.clock_drift_ppm.min(999_999));
        let micros = (lease / 1_000).min(u64::from(u32::MAX));
        let slowest = micros * (1_000_000 - drift) / (1_000_000 + drift) * 1_000;
        Nanos(slowest - slowest / 100)
    }

    /// Whether this replica leads and holds a lease: nothing can have been chosen that it did not
    /// propose. At the clock's last reading, that is; what asked before may be answered (R9).
    #[must_use]
    pub fn holds_lease(&self) -> bool {
        self.lease_until().is_some_and(|until| self.now < until)
    }

    /// When the lease of this replica ends, as far as it is renewed: before, and as long as nothing
    /// that this core lets out afterwards says otherwise, nothing can be chosen that it did not
    /// propose (R14). None where it does not lead, or not yet all that was chosen before it.
    #[must_use]
    pub fn lease_until(&self) -> Option<Nanos> {
        let leader = self.role.leader().filter(|_| self.lease_asked() > 0)?;
        let in_force =
            leader.ballot == self.acceptor.promised() && self.commit_slot >= leader.barrier;
        let alone = leader.progress.is_empty();
        in_force.then_some(if alone { Nanos::MAX } else { self.lease.until })
    }

    /// With the heartbeat, a leader asks for its lease anew.
    pub(super) fn keep_lease(&mut self) {
        if self.lease_asked() > 0 {
            self.next_ping();
        }
    }

    /// Another leadership begins: nothing granted to an earlier one counts.
    pub(super) fn forget_lease(&mut self) {
        self.lease.sent.clear();
        self.lease.until = Nanos(0);
    }

    /// The leader gives up what it holds, and asks for no more under this ballot.
    pub(super) fn release_lease(&mut self) {
        if self.settings.is(Mutant::TransferKeepsLease) {
            return;
        }
        if let Some(leader) = self.role.leader() {
            self.lease.released = leader.ballot;
        }
        self.forget_lease();
    }

    /// The leader of `released` asked this replica to stand under `ballot`; zero if nobody did.
    pub(super) fn note_released(&mut self, ballot: Ballot, released: Ballot) {
        self.lease.standing = (ballot, released);
    }

    /// What acceptors that are bound may be told when `ballot` is prepared.
    pub(super) fn released_for(&self, ballot: Ballot) -> Ballot {
        let (standing, released) = self.lease.standing;
        if standing == ballot { released } else { Ballot::ZERO }
    }

    /// A clock is not to be trusted: no lease for a while. Called by whoever drives the core when the
    /// monotonic clock and another one disagree.
    pub fn distrust_clocks(&mut self) {
        self.lease.distrusted_until = self.now + DISTRUST;
        self.forget_lease();
    }

    /// Whether leases are on and held back, since a clock looked wrong.
    #[must_use]
    pub fn distrusts_clocks(&self) -> bool {
        self.settings.lease > Nanos(0) && self.now < self.lease.distrusted_until
    }

    /// Counts a peer's heartbeats by our clock. More than the bound allows mean that its clock is too
    /// fast, or ours too slow, or stood still: in both cases its grants may end before our lease.
    pub(super) fn watch_pulse(&mut self, index: usize, beats: u64) {
        let pulse = self.peers[index].pulse;
        let passed = self.now.since(pulse.since);
        if pulse.beats == 0 || beats < pulse.beats || passed >= WATCH {
            self.peers[index].pulse = Pulse { beats, since: self.now };
        }
        if pulse.beats == 0 || self.settings.lease == Nanos(0) {
            return;
        }
        let interval = (self.settings.heartbeat_interval.0 / 1_000).max(1);
        let drift = u64::from(self.settings.clock_drift_ppm.min(999_999));
        let passed = passed.0.div_ceil(1_000);
        let fastest = passed.saturating_mul(1_000_000 + drift) / (1_000_000 - drift);
        // Rows may have been on their way for about a time-out when we began to count.
        let late = self.settings.election_timeout_max.0 / 1_000;
        if beats.saturating_sub(pulse.beats) > fastest.saturating_add(late) / interval + 2 {
            self.peers[index].pulse = Pulse { beats, since: self.now };
            self.distrust_clocks();
        }
    }
}
