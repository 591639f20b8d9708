//! Where the newest record of each slot stands: one entry for up to [`RUN_SLOTS_MAX`] slots.
//!
//! Slots are nearly always appended in order, so that the record of the next slot follows the
//! record of this one, with nothing but promises and padding between. A [`Run`] remembers where the
//! first of such a row stands; the others are found by stepping over headers.

use quorate_consensus::Slot;
use std::collections::BTreeMap;

/// The longest row that one entry stands for: the most headers that are stepped over to find one.
const RUN_SLOTS_MAX: u64 = 64;

/// A row of consecutive slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    /// The last slot of the row, inclusive. The first is its key.
    pub(crate) last: u64,
    /// What is there.
    pub(crate) place: Place,
}

/// Where the records of a run are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// The record of `slot`, which is not after the run's first, stands at `position`; the others
    /// follow it in the same segment.
    Stands { slot: u64, position: u64 },
    /// The newest records are lost.
    Damaged,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    runs: BTreeMap<u64, Run>,
    /// The first slot of the run that the next append may extend.
    open: Option<u64>,
}

impl Index {
    /// The next record begins a new run: it stands in another segment, or was written by another
    /// opening of the log.
    pub(crate) fn break_run(&mut self) {
        self.open = None;
    }

    /// The newest record of `slot` stands at `position`, behind every other record.
    pub(crate) fn insert(&mut self, slot: Slot, position: u64) {
        let slot = slot.0;
        let beyond = self.runs.last_key_value().is_none_or(|(_, run)| run.last < slot);
        if !beyond {
            self.carve(slot, slot);
        }
        if let Some((first, run)) =
            self.open.and_then(|first| Some((first, self.runs.get_mut(&first)?)))
            && run.last + 1 == slot
            && slot - first < RUN_SLOTS_MAX
        {
            run.last = slot;
            return;
        }
        self.open = Some(slot);
        let place = Place::Stands { slot, position };
        self.runs.insert(slot, Run { last: slot, place });
    }

    /// The newest records of these slots, both inclusive, are lost.
    pub(crate) fn mark_damaged(&mut self, first: Slot, last: Slot) {
        if first <= last {
            self.carve(first.0, last.0);
            self.runs.insert(first.0, Run { last: last.0, place: Place::Damaged });
            self.open = None;
        }
    }

    /// Takes the slots `low..=high` out of all runs.
    fn carve(&mut self, low: u64, high: u64) {
        while let Some((&first, &run)) = self.runs.range(..=high).next_back() {
            if run.last < low {
                return;
            }
            self.runs.remove(&first);
            if self.open == Some(first) {
                self.open = None;
            }
            if run.last > high {
                self.runs.insert(high + 1, run);
            }
            if first < low {
                self.runs.insert(first, Run { last: low - 1, ..run });
            }
            if first <= low {
                return;
            }
        }
    }

    /// The run that holds `slot`.
    pub(crate) fn find(&self, slot: Slot) -> Option<Run> {
        let (_, run) = self.runs.range(..=slot.0).next_back()?;
        (run.last >= slot.0).then_some(*run)
    }

    /// Whether any slot of the range is lost.
    pub(crate) fn is_damaged(&self, first: Slot, last: Slot) -> bool {
        let runs = self.runs.range(..=last.0).rev();
        let mut overlapping = runs.take_while(|(_, run)| run.last >= first.0);
        overlapping.any(|(_, run)| run.place == Place::Damaged)
    }

    /// The lowest slot that is lost.
    pub(crate) fn first_damaged(&self) -> Option<Slot> {
        let mut runs = self.runs.iter();
        runs.find(|(_, run)| run.place == Place::Damaged).map(|(first, _)| Slot(*first))
    }

    pub(crate) fn first(&self) -> Option<Slot> {
        self.runs.first_key_value().map(|(first, _)| Slot(*first))
    }

    /// The lowest slot from which on no slot is missing or lost, up to the last one.
    pub(crate) fn first_without_a_hole(&self) -> Option<Slot> {
        let mut first = None;
        for (start, run) in self.runs.iter().rev() {
            let meets = first.is_none_or(|above| run.last + 1 == above);
            if !meets || run.place == Place::Damaged {
                break;
            }
            first = Some(*start);
        }
        first.map(Slot)
    }

    pub(crate) fn last(&self) -> Option<Slot> {
        self.runs.last_key_value().map(|(_, run)| Slot(run.last))
    }

    /// Forgets what stands below `position`, and damage below `below`.
    pub(crate) fn trim(&mut self, position: u64, below: Slot) {
        self.runs.retain(|_, run| match run.place {
            Place::Stands { position: at, .. } => at >= position,
            Place::Damaged => run.last >= below.0,
        });
        self.open = self.open.filter(|open| self.runs.contains_key(open));
    }

    /// How many entries it takes.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.runs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_million_slots_in_order_take_one_entry_for_each_sixty_four() {
        let mut index = Index::default();
        for slot in 1..=1_000_000 {
            index.insert(Slot(slot), slot * 100);
        }
        assert_eq!(index.len() as u64, 1_000_000_u64.div_ceil(RUN_SLOTS_MAX));
        assert_eq!((index.first(), index.last()), (Some(Slot(1)), Some(Slot(1_000_000))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Against a plain map from slot to the record that stands there: stepping from the anchor
        /// of the run over the records appended after it must reach the newest record.
        #[test]
        fn the_run_of_a_slot_leads_to_its_newest_record(
            steps in proptest::collection::vec((0u8..8, 1u64..150), 1..300),
        ) {
            let mut index = Index::default();
            let mut records: Vec<u64> = Vec::new();
            let mut newest: BTreeMap<u64, Option<usize>> = BTreeMap::new();
            let mut next = 1;
            for (what, slot) in steps {
                match what {
                    0 => next = slot,
                    1 => index.break_run(),
                    2 => {
                        index.mark_damaged(Slot(slot), Slot(slot + 3));
                        newest.extend((slot..=slot + 3).map(|slot| (slot, None)));
                    }
                    _ => {
                        index.insert(Slot(next), records.len() as u64);
                        newest.insert(next, Some(records.len()));
                        records.push(next);
                        next += 1;
                    }
                }
            }
            for slot in 0..200 {
                let found = index.find(Slot(slot)).map(|run| match run.place {
                    Place::Damaged => None,
                    Place::Stands { slot: anchor, position } => {
                        Some((position + slot - anchor) as usize)
                    }
                });
                prop_assert_eq!(found, newest.get(&slot).copied(), "slot {}", slot);
                if let Some(Some(record)) = found {
                    prop_assert_eq!(records[record], slot);
                }
            }
            prop_assert_eq!(index.first().map(|s| s.0), newest.keys().next().copied());
            prop_assert_eq!(index.last().map(|s| s.0), newest.keys().next_back().copied());
        }
    }
}
