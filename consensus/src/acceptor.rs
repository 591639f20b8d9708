//! The acceptor: what was promised, what was accepted, and how much of both is durable.
//!
//! Rules (Lamport, "Paxos Made Simple", section 2.2, in the multi-slot form of `docs/spec`):
//! it promises only upwards; it accepts a value under a ballot at or above its promise; within a
//! ballot it accepts slots in order. The last rule is what makes one number per acceptor enough:
//! `accepted_slot` under `accepted_ballot`.

use crate::paxos::Cleared;
use crate::window::Window;
use crate::{Ballot, Entry, Slot, Value, ensures, old, requires};
use alloc::collections::VecDeque;

/// Something to keep. The order in which they come out is the order in which they must become
/// durable.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Persist {
    /// This ballot was promised.
    Promise(Ballot),
    /// This entry was accepted.
    Entry(Entry),
}

/// Counts persists from 1, in the order in which they were emitted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct PersistNumber(pub u64);

/// "When persist `number` is durable, everything up to `slot` under `ballot` is."
#[derive(Clone, Copy, Debug)]
struct Mark {
    number: PersistNumber,
    ballot: Ballot,
    slot: Slot,
}

#[derive(Clone, Debug)]
pub(crate) struct Acceptor {
    promised: Ballot,
    accepted_ballot: Ballot,
    accepted_slot: Slot,
    /// The vote that may be shown to others: `accepted_*` as far as it is durable.
    durable: (Ballot, Slot),
    marks: VecDeque<Mark>,
    pub(crate) window: Window,
    queue: VecDeque<Persist>,
    emitted: PersistNumber,
    persisted: PersistNumber,
}

impl Acceptor {
    /// As it comes back from a log in which everything is durable.
    pub(crate) fn restore(promised: Ballot, commit: Slot, window: Window) -> Self {
        Self {
            promised,
            accepted_ballot: Ballot::ZERO,
            accepted_slot: commit,
            durable: (Ballot::ZERO, commit),
            marks: VecDeque::new(),
            window,
            queue: VecDeque::new(),
            emitted: PersistNumber(0),
            persisted: PersistNumber(0),
        }
    }

    pub(crate) fn promised(&self) -> Ballot {
        self.promised
    }

    pub(crate) fn accepted_ballot(&self) -> Ballot {
        self.accepted_ballot
    }

    pub(crate) fn accepted_slot(&self) -> Slot {
        self.accepted_slot
    }

    /// The durable vote: every slot up to it is known chosen or accepted under the ballot.
    pub(crate) fn vote(&self) -> (Ballot, Slot) {
        self.durable
    }

    /// Promises `ballot`, which must be above the promise. Returns when the promise may be told. Wants proof
    /// that nothing counts any more that comes in under the present one (rule B2).
    pub(crate) fn promise(&mut self, ballot: Ballot, _proof: Cleared) -> PersistNumber {
        requires!(always, A1, ballot > self.promised, "an acceptor promises only upwards");
        self.promised = ballot;
        let number = self.emit(Persist::Promise(ballot));
        ensures!(checked, A5, number > self.persisted, "a promise is told only when it is durable");
        number
    }

    /// Begins to accept under `ballot`, if it does not do so yet. What was accepted under an older
    /// ballot does not count for this one: only what is known chosen does.
    pub(crate) fn begin(&mut self, ballot: Ballot, commit: Slot) {
        requires!(always, A2, ballot >= self.promised, "no acceptance below the promise");
        if ballot != self.accepted_ballot {
            requires!(always, A2, ballot > self.accepted_ballot, "accepted ballots only grow");
            self.accepted_ballot = ballot;
            self.accepted_slot = commit;
        }
        ensures!(checked, A4, self.accepted_slot >= commit, "a ballot starts at what is chosen");
    }

    /// Accepts the value of the next slot under the current ballot.
    pub(crate) fn accept(&mut self, slot: Slot, value: Value) {
        requires!(
            always,
            A3,
            slot == self.accepted_slot.next(),
            "within a ballot slots are accepted in order"
        );
        requires!(
            checked,
            A2,
            self.accepted_ballot >= self.promised,
            "what is accepted is under the promise or above"
        );
        let ballot = self.accepted_ballot;
        self.window.put(slot, ballot, value.clone());
        self.accepted_slot = slot;
        self.emit(Persist::Entry(Entry { slot, ballot, value }));
        ensures!(
            checked,
            A3,
            self.window.get(slot).is_some_and(|(held, _)| *held == ballot),
            "what was accepted is held under its ballot"
        );
    }

    /// Keeps a value that is known to be chosen: the learner's way in, no vote of its own.
    pub(crate) fn learn(&mut self, entry: Entry) {
        requires!(
            checked,
            L4,
            self.window.get(entry.slot).is_none_or(|(held, _)| *held <= entry.ballot),
            "a learned record does not go back to a lower ballot"
        );
        self.window.put(entry.slot, entry.ballot, entry.value.clone());
        self.emit(Persist::Entry(entry));
    }

    /// "Every slot up to here is known chosen": the vote under the current ballot reaches at least
    /// that far, once what was emitted is durable.
    pub(crate) fn chosen_through(&mut self, commit: Slot) {
        self.accepted_slot = self.accepted_slot.max(commit);
        ensures!(checked, L4, self.accepted_slot >= commit, "known chosen counts in the prefix");
    }

    /// Notes that the current vote becomes durable with everything emitted so far. Returns whether
    /// it is so already, and moved the durable vote.
    pub(crate) fn mark(&mut self) -> bool {
        let mark =
            Mark { number: self.emitted, ballot: self.accepted_ballot, slot: self.accepted_slot };
        if self.persisted >= mark.number {
            let moved = self.durable != (mark.ballot, mark.slot);
            self.durable = (mark.ballot, mark.slot);
            return moved;
        }
        match self.marks.back_mut() {
            Some(last) if last.number == mark.number => *last = mark,
            _ => self.marks.push_back(mark),
        }
        false
    }

    /// Everything up to `number` is durable. Returns whether the vote moved.
    pub(crate) fn persisted(&mut self, number: PersistNumber) -> bool {
        requires!(always, A5, number <= self.emitted, "nothing is durable before it was emitted");
        let told = old!(self.persisted);
        self.persisted = self.persisted.max(number);
        let before = self.durable;
        while let Some(mark) = self.marks.front().filter(|mark| mark.number <= number) {
            self.durable = (mark.ballot, mark.slot);
            self.marks.pop_front();
        }
        ensures!(always, A5, self.durable.0 >= before.0, "durable votes only grow");
        ensures!(
            checked,
            A5,
            self.durable.0 <= self.accepted_ballot
                && told.is_none_or(|told| told <= self.persisted),
            "a durable vote is one that was given"
        );
        self.durable != before
    }

    /// The number of the newest persist.
    pub(crate) fn emitted(&self) -> PersistNumber {
        self.emitted
    }

    /// Up to where everything is durable.
    pub(crate) fn durable_through(&self) -> PersistNumber {
        self.persisted
    }

    /// The next thing to keep.
    pub(crate) fn poll_persist(&mut self) -> Option<Persist> {
        self.queue.pop_front()
    }

    /// All that decides what it will do: numbers of persists count from the durable ones.
    #[cfg(feature = "model")]
    pub(crate) fn hash_canonical<H: core::hash::Hasher>(&self, hasher: &mut H) {
        use core::hash::Hash;
        (self.promised, self.accepted_ballot, self.accepted_slot, self.durable).hash(hasher);
        (self.emitted.0 - self.persisted.0, &self.queue).hash(hasher);
        for Mark { number, ballot, slot } in &self.marks {
            (number.0 - self.persisted.0, ballot, slot).hash(hasher);
        }
        self.window.hash(hasher);
    }

    fn emit(&mut self, persist: Persist) -> PersistNumber {
        self.queue.push_back(persist);
        self.emitted.0 += 1;
        self.emitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeId;

    fn ballot(round: u64) -> Ballot {
        Ballot { round, node: NodeId(1) }
    }

    fn acceptor() -> Acceptor {
        Acceptor::restore(Ballot::ZERO, Slot::ZERO, Window::starting_at(Slot(1)))
    }

    #[test]
    fn a_vote_shows_only_once_it_is_durable() {
        let mut acceptor = acceptor();
        acceptor.promise(ballot(1), Cleared::FOR_TESTS);
        acceptor.begin(ballot(1), Slot::ZERO);
        acceptor.accept(Slot(1), Value::noop());
        acceptor.accept(Slot(2), Value::noop());
        acceptor.mark();
        acceptor.accept(Slot(3), Value::noop());
        acceptor.mark();
        assert_eq!(acceptor.vote().1, Slot::ZERO);
        assert!(!acceptor.persisted(PersistNumber(2)));
        assert!(acceptor.persisted(PersistNumber(3)));
        assert_eq!(acceptor.vote(), (ballot(1), Slot(2)));
        assert!(acceptor.persisted(PersistNumber(4)));
        assert_eq!(acceptor.vote(), (ballot(1), Slot(3)));
    }

    #[test]
    fn entries_of_an_older_ballot_do_not_count_under_a_newer_one() {
        let mut acceptor = acceptor();
        acceptor.promise(ballot(1), Cleared::FOR_TESTS);
        acceptor.begin(ballot(1), Slot::ZERO);
        for slot in 1..=5 {
            acceptor.accept(Slot(slot), Value::noop());
        }
        acceptor.promise(ballot(2), Cleared::FOR_TESTS);
        acceptor.begin(ballot(2), Slot(2));
        assert_eq!(acceptor.accepted_slot(), Slot(2));
        acceptor.accept(Slot(3), Value::noop());
        acceptor.mark();
        acceptor.persisted(acceptor.emitted());
        assert_eq!(acceptor.vote(), (ballot(2), Slot(3)));
    }

    #[test]
    #[should_panic(expected = "promises only upwards")]
    fn a_promise_is_never_taken_back() {
        let mut acceptor = acceptor();
        acceptor.promise(ballot(2), Cleared::FOR_TESTS);
        acceptor.promise(ballot(1), Cleared::FOR_TESTS);
    }

    #[test]
    #[should_panic(expected = "slots are accepted in order")]
    fn a_slot_is_never_skipped() {
        let mut acceptor = acceptor();
        acceptor.promise(ballot(1), Cleared::FOR_TESTS);
        acceptor.begin(ballot(1), Slot::ZERO);
        acceptor.accept(Slot(2), Value::noop());
    }
}
