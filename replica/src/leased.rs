//! Linearizable reads on the thread of whoever asks: what a lease is worth (rule R14).
//!
//! The replica's thread publishes how long its lease lasts, what is committed and what is applied,
//! each time before anything leaves this process that could tell of it. A reader that finds the lease
//! in force, and all applied that was committed then, needs no message, no queue and no thread but
//! its own.

use crate::machine::{Context, StateReader};
use crate::node::{CLOCK_JUMP_NANOS, Clock};
use crate::replies::Replies;
use bytes::Bytes;
use quorate_consensus::batch::take_item;
use quorate_consensus::{Mistake, Mutant, Nanos, Slot};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What the replica's thread tells those who read beside it.
pub(crate) struct LeaseGate {
    reader: Option<Arc<dyn StateReader>>,
    /// The zero of the replica's clock, once a thread drives it.
    zero: OnceLock<Instant>,
    /// The lease ends then, in nanoseconds of the replica's clock; 0: there is none.
    until: AtomicU64,
    committed: AtomicU64,
    applied: AtomicU64,
    /// Replicated time.
    time_ms: AtomicU64,
    /// Wall clock less monotonic clock at the last turn, in nanoseconds.
    clocks_apart: AtomicI64,
    reads: AtomicU64,
    mistake: Mistake,
}

/// What a turn of the replica makes known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    /// None: no lease, or nothing that may be read under it.
    pub(crate) until: Option<Nanos>,
    pub(crate) committed: Slot,
    pub(crate) clocks_apart: i64,
}

impl LeaseGate {
    pub(crate) fn new(reader: Option<Arc<dyn StateReader>>, mistake: Mistake) -> Self {
        Self {
            reader,
            zero: OnceLock::new(),
            until: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            time_ms: AtomicU64::new(0),
            clocks_apart: AtomicI64::new(0),
            reads: AtomicU64::new(0),
            mistake,
        }
    }

    /// Whoever drives the replica counts its time from here.
    pub(crate) fn set_zero(&self, zero: Instant) {
        let _ = self.zero.set(zero);
    }

    /// Reads that were answered here.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Called by the replica's thread after it changed its mind and before anything leaves that
    /// shows so: what is committed first, so that whoever sees the lease sees that too.
    pub(crate) fn publish(&self, now: Published) {
        if self.reader.is_none() {
            return;
        }
        let until = now.until.map_or(0, |until| until.0);
        let changed = self.committed.load(Ordering::Relaxed) != now.committed.0
            || self.until.load(Ordering::Relaxed) != until;
        self.clocks_apart.store(now.clocks_apart, Ordering::Release);
        self.committed.store(now.committed.0, Ordering::Release);
        self.until.store(until, Ordering::Release);
        if changed {
            // Also before what leaves by a write to a device.
            fence(Ordering::SeqCst);
        }
    }

    /// All up to `slot` is in the state machine.
    pub(crate) fn applied(&self, slot: Slot, time_ms: u64) {
        if self.reader.is_some() {
            self.time_ms.store(time_ms, Ordering::Relaxed);
            self.applied.store(slot.0, Ordering::Release);
        }
    }

    /// The clock of the replica as it is now, which is later than the call.
    pub(crate) fn clock(&self) -> Option<Clock> {
        let zero = self.zero.get()?;
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Nanos(zero.elapsed().as_nanos() as u64);
        Some(Clock { now, wall_ms: wall.as_millis() as u64 })
    }

    /// Answers `count` questions, if the lease is in force; none: they go the ordinary way.
    ///
    /// The order is the argument. The lease is looked at first, the clock after it, and what is
    /// committed last: at the moment of the first look the lease was held, as the later reading of
    /// the clock shows, so nobody else had chosen anything, and all that anyone had been told by then
    /// was published as committed before. The state that is read has all of that.
    pub(crate) fn read(
        &self,
        clock: impl FnOnce() -> Option<Clock>,
        count: u32,
        queries: &[u8],
    ) -> Option<Bytes> {
        let reader = self.reader.as_ref()?;
        let until = self.until.load(Ordering::Acquire);
        if until == 0 {
            return None;
        }
        let clock = clock()?;
        let apart = i128::from(clock.wall_ms) * 1_000_000 - i128::from(clock.now.0);
        let before = i128::from(self.clocks_apart.load(Ordering::Acquire));
        let over = clock.now.0 >= until || (apart - before).abs() > CLOCK_JUMP_NANOS;
        if over && !self.mistake.is(Mutant::LeaseReadWithoutClock) {
            return None;
        }
        let committed = self.committed.load(Ordering::Acquire);
        let applied = self.applied.load(Ordering::Acquire);
        if applied < committed {
            return None;
        }
        let time_ms = clock.wall_ms.max(self.time_ms.load(Ordering::Relaxed));
        let context = Context { slot: Slot(applied), time_ms };
        let mut rest = queries;
        let mut replies = Replies::with_capacity(256);
        while let Some(query) = take_item(&mut rest) {
            if !replies.add(|reply| reader.query(&context, query, reply)) {
                return None;
            }
        }
        self.reads.fetch_add(u64::from(count), Ordering::Relaxed);
        Some(replies.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use quorate_consensus::batch::put_item;

    struct Yes(bool);

    impl StateReader for Yes {
        fn query(&self, _: &Context, query: &[u8], reply: &mut BytesMut) -> bool {
            reply.extend_from_slice(query);
            self.0
        }
    }

    const START_MS: u64 = 1_700_000_000_000;

    fn at(ms: u64) -> Clock {
        Clock { now: Nanos::from_millis(ms), wall_ms: START_MS + ms }
    }

    fn gate(answers: bool) -> LeaseGate {
        let gate = LeaseGate::new(Some(Arc::new(Yes(answers))), Mistake::default());
        gate.publish(Published {
            until: Some(Nanos::from_millis(100)),
            committed: Slot(5),
            clocks_apart: START_MS as i64 * 1_000_000,
        });
        gate
    }

    fn ask(gate: &LeaseGate, clock: Clock) -> Option<Bytes> {
        let mut query = BytesMut::new();
        put_item(&mut query, b"?");
        gate.read(|| Some(clock), 1, &query)
    }

    #[test]
    fn a_read_waits_for_what_was_committed_to_be_applied() {
        let gate = gate(true);
        assert_eq!(ask(&gate, at(1)), None);
        gate.applied(Slot(4), 0);
        assert_eq!(ask(&gate, at(1)), None);
        gate.applied(Slot(5), 0);
        assert_eq!(ask(&gate, at(1)).as_deref(), Some(&[1, b'?'][..]));
        assert_eq!(gate.reads(), 1);
    }

    #[test]
    fn a_lease_that_is_over_or_was_given_up_or_is_timed_by_a_clock_that_jumped_answers_nothing() {
        let gate = gate(true);
        gate.applied(Slot(5), 0);
        assert!(ask(&gate, at(99)).is_some());
        assert_eq!(ask(&gate, at(100)), None);
        // The machine slept: the monotonic clock stood still, the other one went on.
        assert_eq!(ask(&gate, Clock { wall_ms: START_MS + 5_000, ..at(1) }), None);
        let clocks_apart = START_MS as i64 * 1_000_000;
        gate.publish(Published { until: None, committed: Slot(5), clocks_apart });
        assert_eq!(ask(&gate, at(1)), None);
        assert_eq!(gate.reads(), 1);
    }

    #[test]
    fn a_state_that_cannot_be_read_now_is_asked_for_the_ordinary_way() {
        let gate = gate(false);
        gate.applied(Slot(5), 0);
        assert_eq!(ask(&gate, at(1)), None);
    }
}
