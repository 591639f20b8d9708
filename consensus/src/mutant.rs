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
    /// A follower believes what it holds to be chosen, whatever ballot it is of.
    LearnAnyBallot,
    /// Entries of an older ballot count as accepted under the new one.
    KeepOldVotes,
    /// A replica that lost its disk votes as if nothing had been.
    AmnesiacVotes,
    /// Damaged slots are taken for empty, and the replica votes.
    TruncateDamaged,
    /// Commands that come again are applied again.
    ApplyTwice,
    /// Commands behind a hole in their session are applied.
    ApplyBehindGap,
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
        Self::LearnAnyBallot,
        Self::KeepOldVotes,
        Self::AmnesiacVotes,
        Self::TruncateDamaged,
        Self::ApplyTwice,
        Self::ApplyBehindGap,
    ];
}

impl Settings {
    /// Whether this replica has the mistake.
    #[must_use]
    pub fn is(&self, mutant: Mutant) -> bool {
        #[cfg(feature = "mutants")]
        return self.mutant == Some(mutant);
        #[cfg(not(feature = "mutants"))]
        {
            let _ = mutant;
            false
        }
    }
}
