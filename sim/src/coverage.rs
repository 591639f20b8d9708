//! The fault catalogue: which rows a run injected, and where the code was seen to react.
//!
//! Numbers F01 to F118 are those of the project's reliability catalogue; the rows from W on are kinds
//! of one-sided writes. A row that is *simulated* must be injected and observed over a run of many
//! seeds (`--covered`); of every other one it is said what holds it, or what it waits for.

use Standing::{Elsewhere, Simulated};

/// Where a row is seen to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Here.
    Simulated,
    /// There, or not before that exists.
    Elsewhere(&'static str),
}

macro_rules! rows {
    ($($name:ident $standing:ident $(($where:literal))? $what:literal,)*) => {
        /// A row of the fault catalogue.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Row { $(#[doc = $what] $name,)* }

        impl Row {
            /// All rows.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What it is.
            #[must_use]
            pub fn what(self) -> &'static str {
                match self { $(Self::$name => $what,)* }
            }

            /// Where it is seen to.
            #[must_use]
            pub fn standing(self) -> Standing {
                match self { $(Self::$name => $standing $(($where))?,)* }
            }
        }
    };
}

rows! {
    F01 Simulated "one replica isolated, both ways",
    F02 Simulated "the leader isolated",
    F03 Simulated "majority and minority apart",
    F04 Simulated "a replica sends and does not receive",
    F05 Simulated "a replica receives and does not send",
    F06 Simulated "random loss: a lane breaks",
    F07 Simulated "bursts of loss",
    F08 Simulated "one message of a kind is refused",
    F09 Simulated "a message comes twice",
    F10 Simulated "one lane overtakes the other",
    F11 Simulated "one link much slower",
    F12 Simulated "a vote of an older ballot reaches a newer leader",
    F13 Simulated "clogged, then flooded",
    F14 Simulated "clogged one by one, freed in another order",
    F15 Simulated "a heartbeat of a deposed leader comes late",
    F16 Simulated "a damaged or shortened message",
    F17 Simulated "half-open: one end does not know that the lane broke",
    F18 Elsewhere("tests of the TCP transport with slow readers") "a peer that trickles",
    F19 Simulated "only one replica reaches a quorum",
    F20 Simulated "only a replica that is behind reaches a quorum",
    F21 Simulated "chained: a row of replicas, each with its neighbours",
    F22 Simulated "two halves joined by a bridge",
    F23 Simulated "a ring of majorities",
    F24 Simulated "a link that comes and goes about once an election time-out",
    F25 Simulated "an isolated replica returns and deposes nobody",
    F26 Simulated "two candidates at once",
    F27 Simulated "the leader dies, again and again",
    F28 Simulated "who is behind what is chosen becomes leader",
    F29 Simulated "a process dies",
    F30 Simulated "all die at once",
    F31 Simulated "a replica is stopped and goes on",
    F32 Simulated "stopped after it read the clock",
    F33 Simulated "a crash loop",
    F34 Simulated "one replica much slower",
    F35 Simulated "the wall clock jumps; clocks run at other rates",
    F36 Simulated "the wall clock goes back",
    F37 Elsewhere("does not exist here: one thread does everything (F31, F34)") "the applying thread starves",
    F38 Elsewhere("tests of the log's sync thread") "a background thread panics",
    F39 Simulated "death between the decision and the sync",
    F40 Simulated "a crash loses all that was not synced",
    F41 Simulated "a crash loses a part of what was not synced",
    F42 Simulated "death between two files that must agree",
    F43 Simulated "a torn tail",
    F44 Simulated "a torn tail of several sectors",
    F45 Simulated "a sync fails once",
    F46 Simulated "no space for a while",
    F47 Simulated "a bit flips below the durable point",
    F48 Simulated "the same place is damaged at as many replicas as may fail",
    F49 Elsewhere("disaster runs (`--disasters`)") "the same place is damaged at a quorum",
    F50 Simulated "a write below the durable point is lost",
    F51 Simulated "a misdirected write",
    F52 Simulated "a read fails",
    F53 Simulated "one copy of the superblock is damaged",
    F54 Simulated "a call of the storage fails once",
    F55 Simulated "a disk stalls",
    F56 Elsewhere("tests of the file medium: names are durable when its calls return") "a name is not durable",
    F57 Simulated "death while the log goes on in another segment",
    F58 Simulated "a disk is replaced by an empty one",
    F59 Simulated "a crash keeps any subset of cache lines",
    F60 Simulated "a tear of eight-byte words",
    F61 Elsewhere("`--mutants`: SkipFlush") "the code misses a flush",
    F62 Simulated "death during recovery, and during the next one",
    F63 Elsewhere("media on persistent memory") "poisoned memory",
    F64 Elsewhere("tests of the media") "a medium that cannot keep its word",
    F65 Elsewhere("durable one-sided writes: no acknowledgement rests on them") "visible, and not durable",
    F66 Simulated "two checkpoints in a short time",
    F67 Elsewhere("crash at each step: pmem-log/tests/checkpoint.rs") "a receiver of a checkpoint dies midway",
    F68 Elsewhere("crash at each step: pmem-log/tests/checkpoint.rs") "death at each step of an installation",
    F69 Simulated "death during a checkpoint",
    F70 Simulated "a follower that lags behind the trimmed log again and again",
    F71 Simulated "entries arrive while a checkpoint is installed",
    F72 Simulated "a damaged checkpoint",
    F73 Simulated "a source of catch-up has nothing to give",
    F74 Simulated "a change during a partition",
    F75 Simulated "two single changes by two leaders",
    F76 Simulated "the leader removes itself",
    F77 Simulated "a dead member is replaced while another is slow",
    F78 Simulated "a removed member goes on campaigning",
    F79 Simulated "a new member is counted too early",
    F80 Simulated "the leader dies between a change and its effect",
    F81 Simulated "an id used by another machine",
    F82 Simulated "commands sent again are applied once",
    F83 Simulated "an outcome is unknown, and the command takes effect later",
    F84 Elsewhere("locks for clients") "a lock's holder pauses",
    F85 Simulated "a read at a deposed leader",
    F86 Simulated "a read at a replica that is behind",
    F87 Simulated "a lease read with clocks at the bound",
    F88 Simulated "an old lease and a new leader",
    F89 Simulated "a session is closed with commands under way",
    F90 Simulated "requests that are malformed or too large",
    F91 Elsewhere("the client API: a deadline and three outcomes") "a client retries for ever",
    F92 Simulated "a data lane breaks with writes under way: their fate is unknown",
    F93 Simulated "the far end takes no more writes",
    F94 Elsewhere("RDMA") "completions of a failed queue pair are out of order",
    F95 Simulated "a peer is fenced by mistake while it writes",
    F96 Simulated "a write of a dead lane lands later",
    F97 Simulated "a write is visible in part",
    F98 Elsewhere("RDMA") "relaxed ordering",
    F99 Elsewhere("RDMA") "a request for permission fails",
    F100 Elsewhere("RDMA") "two candidates fence each other",
    F101 Elsewhere("one-sided reads: there are none") "a torn one-sided read",
    F102 Elsewhere("one-sided atomics: there are none") "remote and local atomics",
    F103 Simulated "a stopped process, its memory still written to",
    F104 Simulated "a write for a dead process lands in the memory of the next one",
    F105 Elsewhere("RDMA") "lost events of a device",
    F106 Simulated "the writer of a ring starts over at its beginning",
    F107 Elsewhere("RDMA") "a lost or repeated handshake",
    F108 Elsewhere("RDMA") "one path dies, the other lives",
    F109 Elsewhere("load tests") "more load than can be served",
    F110 Elsewhere("load tests") "a storm of retries",
    F111 Elsewhere("load tests") "no memory",
    F112 Elsewhere("tests of the server") "no descriptors",
    F113 Simulated "one replica gone for the whole run",
    F114 Elsewhere("fixtures of formats, server/tests/process_upgrade.rs") "a rolling upgrade",
    F115 Simulated "a message of a higher version",
    F116 Elsewhere("tests of replicas and of the log") "the wrong cluster or directory",
    F117 Elsewhere("tests of the log") "a directory opened twice",
    F118 Elsewhere("membership: out of the model until then") "an old backup is restored",
    W1 Simulated "one-sided writes torn at any byte",
    W8 Simulated "one-sided writes torn at words of eight bytes",
    W64 Simulated "one-sided writes torn at cache lines",
    W1024 Simulated "one-sided writes torn at packets",
    WC Simulated "a write completes at its writer before it is visible",
}

/// Counts by row.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Coverage(Vec<(u64, u64)>);

impl Coverage {
    fn row(&mut self, row: Row) -> &mut (u64, u64) {
        if self.0.is_empty() {
            self.0.resize(Row::ALL.len(), (0, 0));
        }
        &mut self.0[row as usize]
    }

    /// It was injected.
    pub fn inject(&mut self, row: Row) {
        self.row(row).0 += 1;
    }

    /// The code was seen to meet it.
    pub fn observe(&mut self, row: Row) {
        self.row(row).1 += 1;
    }

    /// Both at once: what happens by itself and is seen where it happens.
    pub fn meet(&mut self, row: Row) {
        self.inject(row);
        self.observe(row);
    }

    /// How often it was injected, and observed.
    #[must_use]
    pub fn of(&self, row: Row) -> (u64, u64) {
        self.0.get(row as usize).copied().unwrap_or_default()
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        for (index, (injected, observed)) in other.0.iter().enumerate() {
            let sum = self.row(Row::ALL[index]);
            sum.0 += injected;
            sum.1 += observed;
        }
    }

    /// Simulated rows that were not injected, or not observed.
    #[must_use]
    pub fn missed(&self) -> Vec<Row> {
        let rows = Row::ALL.iter().copied();
        let missed = rows.filter(|row| {
            row.standing() == Simulated && {
                let (injected, observed) = self.of(*row);
                injected == 0 || observed == 0
            }
        });
        missed.collect()
    }
}

/// What a process did with checkpoints in its life.
pub(crate) fn note_checkpoints(coverage: &mut Coverage, node: &quorate_replica::Node) {
    let checkpoints = node.status().checkpoints;
    if checkpoints.bad > 0 {
        coverage.observe(Row::F72);
    }
    if checkpoints.taken + checkpoints.received >= 2 {
        coverage.meet(Row::F66);
    }
    if checkpoints.received > 0 {
        coverage.meet(Row::F70);
        let applied = node.core().map(quorate_consensus::Paxos::applied_slot);
        if applied > Some(checkpoints.newest_slot) {
            coverage.meet(Row::F71);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_was_only_injected_is_missed() {
        let mut coverage = Coverage::default();
        for row in Row::ALL {
            coverage.meet(*row);
        }
        assert_eq!(coverage.missed(), []);
        let mut fewer = Coverage::default();
        for row in Row::ALL.iter().filter(|row| **row != Row::F31) {
            fewer.meet(*row);
        }
        fewer.inject(Row::F31);
        assert_eq!(fewer.missed(), [Row::F31]);
    }

    #[test]
    fn the_page_says_what_the_catalogue_says() {
        let page = include_str!("../../docs/faults.md");
        for row in Row::ALL {
            let by = match row.standing() {
                Simulated => "**simulated**",
                Elsewhere(elsewhere) => elsewhere,
            };
            let line = format!("| {row:?} | {} | {by}", row.what());
            assert!(page.contains(&line), "docs/faults.md has no line {line}");
        }
    }

    #[test]
    fn the_catalogue_is_whole() {
        let faults = Row::ALL.iter().filter(|row| format!("{row:?}").starts_with('F'));
        assert_eq!(faults.count(), 118);
    }
}
