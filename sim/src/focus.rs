//! Runs in which a mistake can show at all: what a seed draws is turned towards what the mistake is about,
//! and towards nothing that would make it show by itself. The same run without the mistake must pass.

use crate::plan::STORM;
use crate::shape::{MS, MembersShape, Shape};
use quorate_consensus::Mutant;

/// What the runs of a mistake have in any case; the rest is left to the seed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Focus {
    /// Who is a member changes.
    pub(crate) members: bool,
    /// Clients keep sessions of their own.
    pub(crate) sessions: bool,
    /// Leaders have leases.
    leases: bool,
    /// Leadership is handed over often.
    transfers: bool,
    /// Checkpoints are taken often, and the log is trimmed behind them.
    checkpoints: bool,
    /// And some are damaged.
    pub(crate) damaged_checkpoints: bool,
    /// Leaders go one after the other.
    storms: bool,
    /// Members are away for long, and lose their disks, while others take their places.
    pub(crate) absences: bool,
    /// A leader loses those that it has just made voters, and its disk and those of the voters before are
    /// slow: only these know of the change, and tell the new ones.
    pub(crate) bridges: bool,
    /// Leaders are cut off, and stand still right after they read the clock.
    pub(crate) stale_leaders: bool,
}

impl Focus {
    /// What the mistake is about.
    #[must_use]
    pub(crate) fn of(mutant: Mutant) -> Self {
        let members = Self { members: true, ..Self::default() };
        match mutant {
            Mutant::SwitchTooLate
            | Mutant::SwitchTooEarly
            | Mutant::LearnersVote
            | Mutant::RemovedVote
            | Mutant::AnyDiskVotes
            | Mutant::FoundMembersNotAsked
            | Mutant::PromoteUnready
            | Mutant::ForgetMembers
            | Mutant::KeepOverwrittenMembers
            | Mutant::SettleTooSoon
            | Mutant::ConfigurationLate
            | Mutant::SwitchNotByOwnMembers
            | Mutant::ChangeUnsettled
            | Mutant::QuorumsNeedNotMeet => members,
            Mutant::AdoptAnyBallot => Self { storms: true, ..members },
            Mutant::ForgetContacts => Self { absences: true, ..members },
            // A candidate that does not know yet that it was removed hears of it from new voters alone.
            Mutant::LeadAfterRemoval => Self { transfers: true, bridges: true, ..members },
            Mutant::CheckpointOldMembers => Self { checkpoints: true, ..members },
            Mutant::StandWithOldMembers => {
                Self { checkpoints: true, damaged_checkpoints: true, ..members }
            }
            Mutant::LeaseOfOldMembers => Self { leases: true, bridges: true, ..members },
            Mutant::TransferKeepsLease => Self { leases: true, transfers: true, ..members },
            Mutant::LeaseBeforeClock => Self { stale_leaders: true, ..Self::default() },
            Mutant::LeaseFromAnswer => Self { leases: true, ..Self::default() },
            Mutant::CatchUpPassedOver
            | Mutant::CheckpointForgetsVote
            | Mutant::DropSessionsOnSnapshot => Self { checkpoints: true, ..Self::default() },
            Mutant::KnownAppliedAgain | Mutant::GapAdmitted | Mutant::SessionsNeverExpire => {
                Self { sessions: true, ..Self::default() }
            }
            _ => Self::default(),
        }
    }

    /// Turns a shape towards it.
    pub(crate) fn turn(self, shape: &mut Shape) {
        if self.leases && shape.lease == 0 {
            shape.lease = shape.election_min;
        }
        if self.checkpoints {
            shape.checkpoint_slots = 10;
            shape.log_tail_bytes = 0;
        }
        if self.transfers
            && let Some(members) = &mut shape.members
        {
            *members =
                MembersShape { step_mean: 20 * MS, transfers_ppm: 600_000, ..members.clone() };
        }
        if self.storms {
            shape.kinds = vec![STORM];
            shape.faults = shape.faults.max(4);
        }
        if self.absences
            && let Some(members) = &mut shape.members
        {
            *members = MembersShape { step_mean: 20 * MS, ..members.clone() };
        }
        if self.bridges {
            // The margins of a lease are as small as they may be.
            shape.lease = shape.election_min;
            shape.rates.fill(1_000_000);
            shape.sync_mean = 50_000;
        }
        if self.damaged_checkpoints || self.absences {
            shape.victims = (0..shape.nodes).collect();
        }
    }
}

/// Why no run of this simulator can show a mistake, if none can. `cargo xtask mutants` shows it by another
/// test.
#[must_use]
pub fn unseen(mutant: Mutant) -> Option<&'static str> {
    match mutant {
        Mutant::GapAccepted => {
            Some("no lane loses a record and goes on (contract C1): no gap comes")
        }
        Mutant::AnyDisk => Some(
            "a disk that is dead when its successor is named voted for no slot that the successor decides",
        ),
        Mutant::CountOldCompletions => Some(
            "who was confirmed under the older ballot is fenced; who was not reads its records with the newer ones",
        ),
        _ => None,
    }
}
