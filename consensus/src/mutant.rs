//! Known mistakes, built in on purpose: what a test harness must find.
//!
//! None of this is compiled into a product: the feature `mutants` is for the simulator, which shows
//! with it that it has teeth. Without the feature [`Settings::is`] is the constant `false`.

use crate::Settings;

/// A mistake in the protocol, or in what is around it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mutant {
    /// A row shows votes that are not durable yet.
    AcknowledgeBeforePersist,
    /// A promise is told before it is durable.
    PromiseBeforePersist,
    /// A vote under an older ballot is counted under the present one.
    CountOldBallotVotes,
    /// A new leader proposes nothing again.
    SkipAdoption,
    /// A new leader adopts the value of the lowest ballot.
    AdoptLowestBallot,
    /// Records of a deposed leader are accepted.
    AcceptBelowPromise,
    /// The promise does not survive a restart.
    ForgetPromise,
    /// What was accepted does not survive a restart.
    ForgetAccepted,
    /// A leader counts one voter that did not vote.
    CommitOnMinority,
    /// A read is answered without asking a quorum.
    ReadWithoutQuorum,
    /// A new leader answers reads before its first own entry is chosen.
    ReadBeforeBarrier,
    /// A leader takes its lease to be as long as the followers' wait, whatever the clocks.
    LeaseWithoutMargin,
    /// An acceptor promises another ballot while it is bound to wait.
    LeaseNotHonoured,
    /// An acceptor forgets by a restart that it is bound to wait.
    LeaseForgottenAtRestart,
    /// A read beside the replica's thread does not look at the clock.
    LeaseReadWithoutClock,
    /// A replica that lost a configuration with its checkpoint stands for election.
    StandWithOldMembers,
    /// A follower believes what it holds to be chosen, whatever ballot it is of.
    LearnAnyBallot,
    /// Entries of an older ballot count as accepted under the new one.
    KeepOldVotes,
    /// A replica that lost its disk votes as if nothing had been.
    AmnesiacVotes,
    /// Damaged slots are taken for empty, and the replica votes.
    TruncateDamaged,
    /// The session table does not come with a checkpoint.
    DropSessionsOnSnapshot,
    /// Commands that come again are applied again.
    ApplyTwice,
    /// Commands behind a hole in their session are applied.
    ApplyBehindGap,
    /// A candidate leads with one promise less than a quorum.
    ElectOnMinority,
    /// A record says that what it carries is chosen.
    CommitAhead,
    /// The log says of each entry that it is chosen.
    LogCommitAhead,
    /// What was handed to the log counts as durable.
    TrustStaged,
    /// A replica whose log failed goes on voting for what it held by then.
    VoteWhenPoisoned,
    /// A linearizable read is answered from what is here.
    ReadLocally,
    /// The session table is dropped at the end of a replay.
    DropSessions,
    /// A command whose time is over is rejected, though it was sent.
    RejectInFlight,
    /// A record of the ring is believed when its trailer is there.
    BelieveTrailer,
    /// A row is believed without its checksums.
    BelieveRow,
    /// All lives of a data lane have one incarnation for the records: a late write of a life that is
    /// over is believed.
    ReuseRingIncarnation,
    /// All lives of a data lane have one incarnation for the rows.
    ReuseRowIncarnation,
    /// A failed sync of the log is taken for a good one.
    IgnoreFailedSync,
    /// The log writes and does not flush.
    SkipFlush,
    /// A record of the log is believed when its header is whole.
    BelieveTornRecord,
    /// Of two records of a slot in the log the older one counts.
    OlderRecordWins,
    /// A change of members decides nothing before it is settled: the old members' quorum chooses on.
    SwitchTooLate,
    /// A change of members decides from its own slot on: its slot is chosen by the new members.
    SwitchTooEarly,
    /// Learners are counted as voters.
    LearnersVote,
    /// Whoever is still shipped to is counted as a voter, removed or not.
    RemovedVote,
    /// A vote counts for the number of its replica, whatever became of its disk.
    AnyDiskVotes,
    /// A candidate does not ask the members of configurations that it finds while it adopts.
    FoundMembersNotAsked,
    /// New voters need not be there, nor have anything.
    PromoteUnready,
    /// A restart remembers the founding members only.
    ForgetMembers,
    /// A configuration stays in force though another value took its slot.
    KeepOverwrittenMembers,
    /// A change of members is said to be settled as soon as it is proposed.
    SettleTooSoon,
    /// A candidate leads though it learned that it was removed.
    LeadAfterRemoval,
    /// A witness counts as one that holds what it voted for.
    WitnessIsACopy,
    /// A candidate passes over what only a witness knows of, whoever is missing.
    WitnessPassedOver,
    /// A candidate takes a witness for one that holds what it accepted, and a witness gives it.
    WitnessGives,
    /// Whom it was told of matters to a replica only while no configuration names it.
    ForgetContacts,
    /// A replica stands for election whoever asked it to, and for whichever leadership.
    StandOutOfTurn,
    /// A ballot is promised to a candidate, and not remembered.
    PromiseNotKept,
    /// A promise does not say what was accepted.
    PromiseHidesRuns,
    /// A row shows the ballot of the vote for the promise.
    RowOldPromise,
    /// A record that leaves a gap is accepted.
    GapAccepted,
    /// A leader counts its own vote before it is durable.
    OwnVoteEarly,
    /// A candidate stands under the round that it promised last.
    ReuseRound,
    /// A fetched value is adopted, whatever ballot it was accepted under.
    AdoptAnyBallot,
    /// A new leader proposes nothing behind what it adopted.
    NoBarrier,
    /// A learned record replaces one of a higher ballot.
    LearnGoesBack,
    /// Catch-up hands out what is not known chosen.
    CatchUpUnchosen,
    /// Catch-up hands out what a checkpoint passed over.
    CatchUpPassedOver,
    /// A vote does not reach as far as the checkpoint.
    CheckpointForgetsVote,
    /// The configurations of a received checkpoint are not taken.
    CheckpointOldMembers,
    /// A configuration decides one slot too late.
    ConfigurationLate,
    /// The slots behind a switch are chosen by the members before it.
    SwitchNotByOwnMembers,
    /// A change begins before the one before is settled.
    ChangeUnsettled,
    /// What another disk of a voter voted for counts.
    AnyDisk,
    /// Sizes of quorums are not checked.
    QuorumsNeedNotMeet,
    /// A lease goes on under new members.
    LeaseOfOldMembers,
    /// A lease is counted from the answer on, not from the question.
    LeaseFromAnswer,
    /// A read is answered by a lease of before it came.
    LeaseBeforeClock,
    /// A leader that hands over keeps its lease.
    TransferKeepsLease,
    /// What of a group was applied is not told from what was not.
    KnownAppliedAgain,
    /// A group behind a hole in its session is let in.
    GapAdmitted,
    /// A session whose time is over stays open.
    SessionsNeverExpire,
    /// A passive follower promises without taking back what it granted.
    NoFence,
    /// A passive follower reads its ring, and fences it then.
    FenceAfterReading,
    /// A fence does nothing: bytes land behind it.
    BrokenFence,
    /// A passive follower grants its ring again in the life in which it fenced it.
    RenewGrant,
    /// A passive follower takes a grant that lasts for one that ends with the life of the lane.
    LastingGrant,
    /// A passive follower does not read its ring when a life of the lane ends.
    RingUnreadAtEnd,
    /// A leader counts completed writes though no row says that they are votes.
    CountUnconfirmed,
    /// A leader counts writes that completed under an older ballot of its own.
    CountOldCompletions,
}

impl Mutant {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::AcknowledgeBeforePersist,
        Self::PromiseBeforePersist,
        Self::CountOldBallotVotes,
        Self::SkipAdoption,
        Self::AdoptLowestBallot,
        Self::AcceptBelowPromise,
        Self::ForgetPromise,
        Self::ForgetAccepted,
        Self::CommitOnMinority,
        Self::ReadWithoutQuorum,
        Self::ReadBeforeBarrier,
        Self::LeaseWithoutMargin,
        Self::LeaseNotHonoured,
        Self::LeaseForgottenAtRestart,
        Self::LeaseReadWithoutClock,
        Self::StandWithOldMembers,
        Self::LearnAnyBallot,
        Self::KeepOldVotes,
        Self::AmnesiacVotes,
        Self::TruncateDamaged,
        Self::DropSessionsOnSnapshot,
        Self::ApplyTwice,
        Self::ApplyBehindGap,
        Self::ElectOnMinority,
        Self::CommitAhead,
        Self::LogCommitAhead,
        Self::TrustStaged,
        Self::VoteWhenPoisoned,
        Self::ReadLocally,
        Self::DropSessions,
        Self::RejectInFlight,
        Self::BelieveTrailer,
        Self::BelieveRow,
        Self::ReuseRingIncarnation,
        Self::ReuseRowIncarnation,
        Self::IgnoreFailedSync,
        Self::SkipFlush,
        Self::BelieveTornRecord,
        Self::OlderRecordWins,
        Self::SwitchTooLate,
        Self::SwitchTooEarly,
        Self::LearnersVote,
        Self::RemovedVote,
        Self::AnyDiskVotes,
        Self::FoundMembersNotAsked,
        Self::PromoteUnready,
        Self::ForgetMembers,
        Self::KeepOverwrittenMembers,
        Self::SettleTooSoon,
        Self::LeadAfterRemoval,
        Self::WitnessIsACopy,
        Self::WitnessPassedOver,
        Self::WitnessGives,
        Self::ForgetContacts,
        Self::PromiseNotKept,
        Self::PromiseHidesRuns,
        Self::RowOldPromise,
        Self::GapAccepted,
        Self::OwnVoteEarly,
        Self::ReuseRound,
        Self::AdoptAnyBallot,
        Self::NoBarrier,
        Self::LearnGoesBack,
        Self::CatchUpUnchosen,
        Self::CatchUpPassedOver,
        Self::CheckpointForgetsVote,
        Self::CheckpointOldMembers,
        Self::ConfigurationLate,
        Self::SwitchNotByOwnMembers,
        Self::ChangeUnsettled,
        Self::AnyDisk,
        Self::QuorumsNeedNotMeet,
        Self::LeaseOfOldMembers,
        Self::LeaseFromAnswer,
        Self::LeaseBeforeClock,
        Self::TransferKeepsLease,
        Self::KnownAppliedAgain,
        Self::GapAdmitted,
        Self::SessionsNeverExpire,
        Self::NoFence,
        Self::FenceAfterReading,
        Self::BrokenFence,
        Self::RenewGrant,
        Self::LastingGrant,
        Self::RingUnreadAtEnd,
        Self::CountUnconfirmed,
        Self::CountOldCompletions,
    ];
}

/// The mistake that is built in; nothing in a product.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mistake {
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

impl Mistake {
    /// This one, or none.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub const fn of(mutant: Option<Mutant>) -> Self {
        Self { mutant }
    }

    /// Whether it is this one: never without the feature `mutants`.
    #[inline]
    #[must_use]
    pub fn is(self, mutant: Mutant) -> bool {
        #[cfg(feature = "mutants")]
        return self.mutant == Some(mutant) || planted(mutant);
        #[cfg(not(feature = "mutants"))]
        {
            let _ = mutant;
            false
        }
    }
}

/// The number of the mistake that everything in this process has; the length of [`Mutant::ALL`] for none.
#[cfg(feature = "mutants")]
static PLANTED: core::sync::atomic::AtomicUsize =
    core::sync::atomic::AtomicUsize::new(Mutant::ALL.len());

/// Everything in this process has the mistake of this name from now on; whether there is one. Never in a
/// product.
#[must_use]
pub fn plant(name: &str) -> bool {
    let is_it = |mutant: &Mutant| alloc::format!("{mutant:?}") == name;
    let place = Mutant::ALL.iter().position(is_it).filter(|_| cfg!(feature = "mutants"));
    #[cfg(feature = "mutants")]
    if let Some(place) = place {
        PLANTED.store(place, core::sync::atomic::Ordering::Relaxed);
    }
    place.is_some()
}

/// Nothing in this process has a mistake any more.
#[cfg(feature = "mutants")]
pub fn unplant() {
    PLANTED.store(Mutant::ALL.len(), core::sync::atomic::Ordering::Relaxed);
}

/// Whether everything in this process has the mistake: for what knows no [`Settings`].
#[inline]
pub(crate) fn planted(mutant: Mutant) -> bool {
    #[cfg(feature = "mutants")]
    return Mutant::ALL.get(PLANTED.load(core::sync::atomic::Ordering::Relaxed)) == Some(&mutant);
    #[cfg(not(feature = "mutants"))]
    {
        let _ = mutant;
        false
    }
}

impl Settings {
    /// Whether this replica has the mistake.
    #[inline]
    #[must_use]
    pub fn is(&self, mutant: Mutant) -> bool {
        self.mistake.is(mutant)
    }
}

#[cfg(all(test, not(feature = "mutants")))]
mod tests {
    use super::*;

    #[test]
    fn in_a_product_there_is_nothing_of_it() {
        assert_eq!(size_of::<Mistake>(), 0);
        assert!(Mutant::ALL.iter().all(|mutant| !Mistake::default().is(*mutant)));
    }
}
