//! The part of the log that is held in memory: consecutive slots, the newest ones.

use crate::{Ballot, Entry, Run, Slot, Value, requires};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Consecutive entries from `first` on. Everything above the commit slot is always here; below it
/// as much as the cache limit allows, so that followers a little behind are served from memory.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Window {
    first: Slot,
    entries: VecDeque<(Ballot, Value)>,
    bytes: usize,
}

impl Window {
    /// An empty window whose next slot is `first`.
    pub(crate) fn starting_at(first: Slot) -> Self {
        Self { first, entries: VecDeque::new(), bytes: 0 }
    }

    /// The lowest slot held; the next one to come if none is.
    pub(crate) fn first(&self) -> Slot {
        self.first
    }

    /// The highest slot held; the one before `first` if none is.
    pub(crate) fn last(&self) -> Slot {
        Slot(self.first.0 + self.entries.len() as u64 - 1)
    }

    /// Payload bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The ballot and value at `slot`, if it is held.
    pub(crate) fn get(&self, slot: Slot) -> Option<&(Ballot, Value)> {
        let index = slot.0.checked_sub(self.first.0)?;
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// Stores an entry: replaces what the slot held, or extends the window by one.
    ///
    /// # Panics
    /// If it would leave a hole: the caller checks that entries arrive in order.
    pub(crate) fn put(&mut self, slot: Slot, ballot: Ballot, value: Value) {
        requires!(
            always,
            A3,
            slot >= self.first && slot <= self.last().next(),
            "the log window has no holes"
        );
        self.bytes += value.bytes.len();
        let index = (slot.0 - self.first.0) as usize;
        match self.entries.get_mut(index) {
            Some(held) => {
                self.bytes -= held.1.bytes.len();
                *held = (ballot, value);
            }
            None => self.entries.push_back((ballot, value)),
        }
    }

    /// Drops entries from the front, never above `keep_above`, until at most `bytes_max` and
    /// `slots_max` are held.
    pub(crate) fn shrink(&mut self, keep_above: Slot, bytes_max: usize, slots_max: usize) {
        while self.first <= keep_above && (self.bytes > bytes_max || self.entries.len() > slots_max)
        {
            let Some((_, value)) = self.entries.pop_front() else { break };
            self.bytes -= value.bytes.len();
            self.first = self.first.next();
        }
    }

    /// Drops everything below `first`, which becomes the first slot, whether or not it is held.
    pub(crate) fn begin_at(&mut self, first: Slot) {
        while self.first < first {
            let Some((_, value)) = self.entries.pop_front() else {
                self.first = first;
                return;
            };
            self.bytes -= value.bytes.len();
            self.first = self.first.next();
        }
    }

    /// Drops everything at or above `slot`.
    pub(crate) fn truncate(&mut self, slot: Slot) {
        while self.last() >= slot {
            let Some((_, value)) = self.entries.pop_back() else { break };
            self.bytes -= value.bytes.len();
        }
    }

    /// The ballots of the slots from `from` on, run by run.
    pub(crate) fn runs(&self, from: Slot) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let from = from.max(self.first);
        let skip = (from.0 - self.first.0) as usize;
        for (index, (ballot, _)) in self.entries.iter().enumerate().skip(skip) {
            let slot = Slot(self.first.0 + index as u64);
            match runs.last_mut() {
                Some(run) if run.ballot == *ballot => run.last = slot,
                _ => runs.push(Run { first: slot, last: slot, ballot: *ballot }),
            }
        }
        runs
    }

    /// The values of `first..=last`, which must be held.
    pub(crate) fn values(&self, first: Slot, last: Slot) -> impl Iterator<Item = &Value> + Clone {
        let start = (first.0 - self.first.0) as usize;
        let end = (last.0 + 1 - self.first.0) as usize;
        self.entries.range(start..end).map(|(_, value)| value)
    }

    /// Entries from `first` to `last` at the most, until `bytes_max` payload bytes are reached; at
    /// least one if it is held.
    pub(crate) fn entries(&self, first: Slot, last: Slot, bytes_max: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut slot = first;
        while slot <= last {
            let Some((ballot, value)) = self.get(slot) else { break };
            bytes += value.bytes.len() + Self::ENTRY_OVERHEAD_BYTES;
            if !entries.is_empty() && bytes > bytes_max {
                break;
            }
            entries.push(Entry { slot, ballot: *ballot, value: value.clone() });
            slot = slot.next();
        }
        entries
    }

    /// What an entry costs in a message beside its payload, rounded up.
    pub(crate) const ENTRY_OVERHEAD_BYTES: usize = 32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeId, ValueKind};
    use bytes::Bytes;

    fn value(length: usize) -> Value {
        let bytes = Bytes::from(alloc::vec![7u8; length]);
        Value { kind: ValueKind::Commands, checksum: 0, bytes }
    }

    fn ballot(round: u64) -> Ballot {
        Ballot { round, node: NodeId(1) }
    }

    #[test]
    fn replacing_and_shrinking_keep_count_of_bytes() {
        let mut window = Window::starting_at(Slot(5));
        assert_eq!(window.last(), Slot(4));
        for slot in 5..=8 {
            window.put(Slot(slot), ballot(1), value(10));
        }
        window.put(Slot(7), ballot(2), value(3));
        assert_eq!((window.bytes(), window.last()), (33, Slot(8)));
        window.shrink(Slot(6), 0, 0);
        assert_eq!((window.first(), window.bytes()), (Slot(7), 13));
        window.truncate(Slot(8));
        assert_eq!((window.last(), window.bytes()), (Slot(7), 3));
        window.truncate(Slot(1));
        assert_eq!((window.first(), window.last(), window.bytes()), (Slot(7), Slot(6), 0));
    }

    #[test]
    fn runs_summarise_ballots() {
        let mut window = Window::starting_at(Slot(1));
        for (slot, round) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 1)] {
            window.put(Slot(slot), ballot(round), value(1));
        }
        let runs = window.runs(Slot(2));
        let spans: Vec<_> = runs.iter().map(|r| (r.first.0, r.last.0, r.ballot.round)).collect();
        assert_eq!(spans, [(2, 2, 1), (3, 4, 2), (5, 5, 1)]);
        assert!(window.runs(Slot(6)).is_empty());
    }

    #[test]
    fn at_least_one_entry_comes_out_however_small_the_limit() {
        let mut window = Window::starting_at(Slot(1));
        window.put(Slot(1), ballot(1), value(1000));
        window.put(Slot(2), ballot(1), value(1000));
        assert_eq!(window.entries(Slot(1), Slot(2), 1).len(), 1);
        assert_eq!(window.entries(Slot(1), Slot(2), 5000).len(), 2);
        assert_eq!(window.entries(Slot(3), Slot(9), 5000).len(), 0);
    }
}
