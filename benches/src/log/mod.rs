//! The durable log against a loop that does nothing but write the same bytes and make them durable,
//! and, with the feature `peers`, against another log on the same work.
//!
//! The sides take turns, a few milliseconds each, and what counts is the ratio within a turn: the
//! machine's moods meet all of them.

mod ours;
#[cfg(feature = "peers")]
mod peers;
mod raw;

use bytes::Bytes;
use quorate_pmem_log::MediumKind;
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::time::{Duration, Instant};

pub use ours::{Recovery, recovery_log};

/// The most bytes of a slot's value, as the replica cuts its batches (`batch_bytes_max`).
const VALUE_BYTES_MAX: usize = 1 << 20;
/// The size of a segment, and of what each side writes over in a circle: three of them.
const SEGMENT_BYTES: u64 = 64 << 20;
const CIRCLE_BYTES: usize = 3 * SEGMENT_BYTES as usize;
/// How long one side goes on before the next one's turn.
const TURN: Duration = Duration::from_millis(2);

/// What is appended and made durable at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Bytes of a command.
    pub bytes: usize,
    /// Commands that become durable together.
    pub batch: usize,
    /// Each command in an entry of its own; otherwise in as few entries as they fit, which is what
    /// the replica does (a slot holds a batch).
    pub apart: bool,
}

impl Load {
    /// Bytes of one commit.
    #[must_use]
    pub fn commit_bytes(&self) -> usize {
        self.bytes * self.batch
    }

    /// The values of one commit.
    fn values(&self) -> Vec<Bytes> {
        let whole = vec![0xa5; self.commit_bytes()];
        let each = if self.apart { self.bytes } else { VALUE_BYTES_MAX };
        whole.chunks(each).map(Bytes::copy_from_slice).collect()
    }
}

/// How a turn is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Clock {
    /// The processor time of this thread: where no side waits for anything, this is the time that it
    /// takes, whoever else uses the machine.
    Thread,
    /// The time that passes.
    Wall,
}

impl Clock {
    fn now(self) -> Duration {
        let id = match self {
            Self::Thread => ClockId::ThreadCPUTime,
            Self::Wall => ClockId::Monotonic,
        };
        let now = clock_gettime(id);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }
}

/// Something that makes a load durable.
trait Side: std::fmt::Debug {
    /// One batch: appended, and durable when this returns.
    fn commit(&mut self);
}

/// The sides of one comparison.
#[derive(Debug)]
pub struct Contest {
    clock: Clock,
    sides: Vec<Box<dyn Side>>,
    /// Nanoseconds a commit, a row for each turn and a column for each side.
    turns: Vec<Vec<f64>>,
    /// Commits in a turn of each side.
    pace: Vec<u64>,
}

/// Which column is whose.
pub const OURS: usize = 0;
/// The loop without a log.
pub const RAW: usize = 1;
/// The other log, with the feature `peers`.
pub const PEER: usize = 2;

impl Contest {
    /// Log, loop and peer on files below `directory`, which must be of the right kind for `medium`.
    ///
    /// # Panics
    /// If one of them cannot be set up.
    #[must_use]
    pub fn new(medium: MediumKind, directory: &Path, load: Load) -> Self {
        let values = load.values();
        let raw: Box<dyn Side> = match medium {
            MediumKind::File => Box::new(raw::Synced::new(directory, load.commit_bytes())),
            _ => Box::new(raw::Flushed::new(load.commit_bytes())),
        };
        let ours = ours::Ours::new(medium, &directory.join("log"), &values);
        #[allow(unused_mut, reason = "without peers there is nothing to add")]
        let mut sides: Vec<Box<dyn Side>> = vec![Box::new(ours), raw];
        #[cfg(feature = "peers")]
        sides.push(Box::new(peers::RaftEngine::new(&directory.join("raft-engine"), &values)));
        // Once around the circle each: files are made, pages are there.
        let around = CIRCLE_BYTES / load.commit_bytes() + 1;
        let pace = sides.iter_mut().map(|side| {
            let warming = Instant::now();
            for commit in 1..=around {
                side.commit();
                if commit % 16 == 0 && warming.elapsed() > WARM_UP_MAX {
                    break;
                }
            }
            let (begin, mut commits) = (Instant::now(), 0);
            while begin.elapsed() < TURN {
                side.commit();
                commits += 1;
            }
            commits
        });
        let pace = pace.collect();
        let clock = if medium == MediumKind::File { Clock::Wall } else { Clock::Thread };
        Self { clock, sides, turns: Vec::new(), pace }
    }

    /// Lets all sides take turns until ours has done `commits`; returns how long ours took.
    pub fn run(&mut self, commits: u64) -> Duration {
        let mut spent = Duration::ZERO;
        let mut left = commits;
        while left > 0 {
            let ours = left.min(self.pace[OURS]);
            let whole = ours == self.pace[OURS];
            left -= ours;
            // Who begins changes.
            let count = self.sides.len();
            let first = self.turns.len() % count;
            let mut turn = vec![0.0; count];
            for index in (0..count).map(|index| (first + index) % count) {
                let commits = if index == OURS { ours } else { self.pace[index] };
                if index != OURS && !whole {
                    continue;
                }
                let begin = self.clock.now();
                for _ in 0..commits {
                    self.sides[index].commit();
                }
                let taken = self.clock.now() - begin;
                turn[index] = taken.as_nanos() as f64 / commits as f64;
                if index == OURS {
                    spent += taken;
                }
            }
            if whole {
                self.turns.push(turn);
            }
        }
        spent
    }

    /// Lets all sides take more turns, until there are `turns` of them or `limit` has passed: where a
    /// sync is slow, and its time varies, a median wants more of them than a benchmark's few samples.
    pub fn take_turns(&mut self, turns: usize, limit: Duration) {
        let begin = Instant::now();
        while self.turns.len() < turns && begin.elapsed() < limit {
            self.run(self.pace[OURS]);
        }
    }

    /// The median of nanoseconds a commit of one side; `None` if it did not take part.
    #[must_use]
    pub fn nanos(&self, side: usize) -> Option<f64> {
        median(self.turns.iter().filter_map(|turn| turn.get(side).copied()).collect())
    }

    /// The median over all turns of our time divided by that of another side.
    #[must_use]
    pub fn ratio(&self, side: usize) -> Option<f64> {
        median(self.turns.iter().filter_map(|turn| Some(turn[OURS] / turn.get(side)?)).collect())
    }
}

/// The longest that a side is warmed up.
const WARM_UP_MAX: Duration = Duration::from_millis(2500);

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
