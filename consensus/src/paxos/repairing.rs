//! The way back to a vote for a replica whose log lost something that it had acknowledged.
//!
//! Such a replica follows and learns without a vote (rule A8). It must not vote while it may have
//! forgotten a vote that still matters: one of a value that was chosen, or may yet be, for a slot
//! that it does not know to be chosen. So the vote comes back once every slot of which that can be
//! said is known chosen here, and durable. The argument is in
//! `docs/decisions/0019-a-repaired-log-votes-again.md`.

use super::Paxos;
use crate::{Ballot, Slot};

/// What must be known before a replica with a damaged log votes again. Its promise is certain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repair {
    /// Everything up to this slot: the highest for which an entry ever stood in the log.
    Through(Slot),
    /// Nobody can tell for which slots entries stood. Everything up to the barrier of a leader whose
    /// ballot is above all that was promised before.
    UnderNewLeader,
}

/// How far the repair has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    Through(Slot),
    /// For a leader above this ballot.
    Leader(Ballot),
    /// This read was asked for while one was followed: the slot that answers it is at or above that
    /// leader's barrier.
    Barrier(u64),
}

impl Paxos {
    /// Says, right after [`Paxos::new`], that what this replica does not remember is damage of its
    /// own log, and not the loss of another disk: its vote comes back when that is repaired.
    pub fn repair(&mut self, repair: Repair) {
        if self.remembers {
            return;
        }
        self.repair = Some(match repair {
            Repair::Through(slot) => Progress::Through(slot),
            Repair::UnderNewLeader => Progress::Leader(self.acceptor.promised()),
        });
    }

    /// Whether this replica has no vote only until its log is repaired.
    #[must_use]
    pub fn is_repairing(&self) -> bool {
        self.repair.is_some()
    }

    /// Goes on with the repair, now and then.
    pub(super) fn continue_repair(&mut self) {
        match self.repair {
            None => {}
            Some(Progress::Leader(before)) if self.leader.is_some_and(|ballot| ballot > before) => {
                let ticket = self.read_index(self.now);
                self.repair = Some(Progress::Barrier(ticket));
                self.start_reads();
            }
            Some(Progress::Leader(_)) => {}
            Some(Progress::Barrier(_)) => self.start_reads(),
            Some(Progress::Through(slot)) => {
                let durable = self.acceptor.vote().1;
                if self.commit_slot >= slot && durable >= slot && !self.poisoned {
                    self.repair = None;
                    self.remembers = true;
                    self.rest_election_timer();
                    self.mark_rows_due();
                }
            }
        }
    }

    /// The leader answered reads up to `through`.
    pub(super) fn on_barrier_known(&mut self, through: u64, slot: Slot) {
        if let Some(Progress::Barrier(ticket)) = self.repair
            && through >= ticket
        {
            self.repair = Some(Progress::Through(slot));
        }
    }
}
