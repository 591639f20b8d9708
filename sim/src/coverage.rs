//! Which rows of the fault catalogue a run injected, and where the code was seen to react.

use std::collections::BTreeMap;

macro_rules! rows {
    ($($name:ident $what:literal,)*) => {
        /// A row of the fault catalogue.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Row { $(#[doc = $what] $name,)* }

        impl Row {
            /// All rows that this simulator can inject.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What it is.
            #[must_use]
            pub fn what(self) -> &'static str {
                match self { $(Self::$name => $what,)* }
            }
        }
    };
}

rows! {
    F01 "one replica isolated, both ways",
    F02 "the leader isolated",
    F03 "majority and minority apart",
    F04 "a replica sends and does not receive",
    F05 "a replica receives and does not send",
    F06 "random loss: a lane breaks",
    F11 "one link much slower",
    F13 "clogged, then flooded",
    F14 "clogged one by one, freed in another order",
    F17 "half-open: one end does not know that the lane broke",
    F19 "only one replica reaches a quorum",
    F21 "chained: a row of replicas, each with its neighbours",
    F22 "two halves joined by a bridge",
    F23 "a ring of majorities",
    F24 "a link that comes and goes about once an election time-out",
    F27 "the leader dies, again and again",
    F29 "a process dies",
    F30 "all die at once",
    F31 "a replica is stopped and goes on",
    F33 "a crash loop",
    F34 "one replica much slower",
    F35 "the wall clock jumps; clocks run at other rates",
    F36 "the wall clock goes back",
    F39 "death between the decision and the sync",
    F40 "a crash loses all that was not synced",
    F41 "a crash loses a part of what was not synced",
    F43 "a torn tail",
    F45 "a sync fails once",
    F46 "no space for a while",
    F47 "a bit flips below the durable point",
    F50 "a sector is lost below the durable point",
    F51 "a misdirected write",
    F55 "a disk stalls",
    F58 "a disk is replaced by an empty one",
    F60 "a tear of eight-byte words",
    F82 "commands sent again are applied once",
    F83 "an outcome is unknown, and the command takes effect later",
    F90 "requests that are malformed or too large",
    F96 "a write of a dead lane lands later",
    F97 "a write is visible in part",
    F103 "a stopped process, its memory still written to",
}

/// Counts by row.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Coverage(BTreeMap<Row, (u64, u64)>);

impl Coverage {
    /// It was injected.
    pub fn inject(&mut self, row: Row) {
        self.0.entry(row).or_default().0 += 1;
    }

    /// The code was seen to meet it.
    pub fn observe(&mut self, row: Row) {
        self.0.entry(row).or_default().1 += 1;
    }

    /// How often it was injected, and observed.
    #[must_use]
    pub fn of(&self, row: Row) -> (u64, u64) {
        self.0.get(&row).copied().unwrap_or_default()
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        for (row, (injected, observed)) in &other.0 {
            let sum = self.0.entry(*row).or_default();
            sum.0 += injected;
            sum.1 += observed;
        }
    }
}
