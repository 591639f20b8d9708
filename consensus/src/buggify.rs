//! Legal misbehaviour: places at which the product, in simulation only, does something that its
//! contracts allow and that hardly ever happens by itself. (FoundationDB calls this `BUGGIFY`.)
//!
//! None of it is compiled into a product: without the feature `buggify` a [`Whims`] has no size and
//! [`Whims::has`] is the constant `false`.

/// A place with its misbehaviour.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Point {
    /// A record to a follower carries one value, though more are due.
    ShortShipment,
    /// No further batch is proposed in this turn, though the window has room.
    SmallWindow,
    /// The wait for an election is an eighth of what was drawn.
    EarlyElection,
    /// A new leader gets one of the values that it fetches.
    ShortValues,
    /// A replica that catches up gets one slot.
    ShortCatchUp,
    /// Applied entries leave the memory at once.
    EagerEviction,
    /// Rows go to everybody, though nothing changed.
    ExtraRows,
    /// A batch holds one submission.
    ShortBatch,
    /// What was appended is not flushed in this turn.
    LateFlush,
    /// What became durable is not looked at in this turn.
    LateDurable,
    /// One slot is applied, then the transport is looked at again.
    ShortApply,
    /// A hint that a peer wrote is left for the next turn.
    LateLook,
    /// A ring and a row are looked at without a hint.
    ExtraLook,
    /// Commands under way are sent again, though nothing was lost.
    EarlyResend,
    /// One chosen slot at a time is read back from the log after a start.
    ShortReplay,
    /// A record takes one value, though there is room for more.
    ShortRecord,
    /// The ring says that it has no room.
    NoCredit,
    /// A row is not taken by the lane.
    RefusedRow,
    /// The log goes on in a new segment, though the old one has room.
    EarlyRoll,
    /// The log says that it has no room for now.
    StagedFull,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::ShortShipment,
        Self::SmallWindow,
        Self::EarlyElection,
        Self::ShortValues,
        Self::ShortCatchUp,
        Self::EagerEviction,
        Self::ExtraRows,
        Self::ShortBatch,
        Self::LateFlush,
        Self::LateDurable,
        Self::ShortApply,
        Self::LateLook,
        Self::ExtraLook,
        Self::EarlyResend,
        Self::ShortReplay,
        Self::ShortRecord,
        Self::NoCredit,
        Self::RefusedRow,
        Self::EarlyRoll,
        Self::StagedFull,
    ];
}

/// What decides whether a point misbehaves. The default never does.
#[derive(Clone, Debug, Default)]
pub struct Whims {
    #[cfg(feature = "buggify")]
    shared: Option<alloc::sync::Arc<simulated::Shared>>,
}

impl Whims {
    /// Whether `point` misbehaves this time.
    #[inline]
    #[must_use]
    pub fn has(&self, point: Point) -> bool {
        #[cfg(feature = "buggify")]
        return self.shared.as_ref().is_some_and(|shared| shared.draw(point));
        #[cfg(not(feature = "buggify"))]
        {
            let _ = point;
            false
        }
    }
}

#[cfg(feature = "buggify")]
mod simulated {
    use super::{Point, Whims};
    use core::sync::atomic::{AtomicU64, Ordering};

    /// Shared by all replicas of a run, which one thread drives.
    #[derive(Debug, Default)]
    pub(super) struct Shared {
        state: AtomicU64,
        /// One in so many times; 0 for never. By point.
        rates: [u64; Point::ALL.len()],
        calm: AtomicU64,
        hits: [AtomicU64; Point::ALL.len()],
    }

    impl Shared {
        pub(super) fn draw(&self, point: Point) -> bool {
            let rate = self.rates[point as usize];
            if rate == 0 || self.calm.load(Ordering::Relaxed) != 0 {
                return false;
            }
            // SplitMix64 (Steele, Lea, Flood 2014).
            let step = 0x9e37_79b9_7f4a_7c15;
            let mut z = self.state.fetch_add(step, Ordering::Relaxed);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let hit = (z ^ (z >> 31)).is_multiple_of(rate);
            if hit {
                self.hits[point as usize].fetch_add(1, Ordering::Relaxed);
            }
            hit
        }
    }

    impl Whims {
        /// Each point misbehaves one in `rates[point]` times, as `seed` has it; 0 for never.
        #[must_use]
        pub fn new(seed: u64, rates: [u64; Point::ALL.len()]) -> Self {
            let shared = Shared { state: AtomicU64::new(seed), rates, ..Shared::default() };
            Self { shared: Some(alloc::sync::Arc::new(shared)) }
        }

        /// Nothing misbehaves from now on.
        pub fn calm(&self) {
            if let Some(shared) = &self.shared {
                shared.calm.store(1, Ordering::Relaxed);
            }
        }

        /// How often each point misbehaved, in the order of [`Point::ALL`].
        #[must_use]
        pub fn hits(&self) -> [u64; Point::ALL.len()] {
            let shared = self.shared.as_ref();
            let count = |index: usize| {
                shared.map_or(0, |shared| shared.hits[index].load(Ordering::Relaxed))
            };
            core::array::from_fn(count)
        }
    }
}

#[cfg(all(test, not(feature = "buggify")))]
mod tests {
    use super::*;

    #[test]
    fn in_a_product_there_is_nothing_of_it() {
        assert_eq!(size_of::<Whims>(), 0);
        assert!(Point::ALL.iter().all(|point| !Whims::default().has(*point)));
    }

    #[test]
    fn points_stand_in_the_order_of_their_numbers() {
        assert!(Point::ALL.iter().enumerate().all(|(index, point)| *point as usize == index));
    }
}
