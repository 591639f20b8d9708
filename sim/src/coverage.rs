//! The fault catalogue: which rows a run injected, and where the code was seen to react.
//!
//! Numbers F01 to F118 are those of the project's reliability catalogue; the rows W are kinds of one-sided
//! writes, the rows P faults of passive followers (decision 23). A row that is *simulated* must be injected and observed over a run of many
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
    F99 Elsewhere("`transport-rdma/src/tests/lives.rs::one_who_asks_for_what_was_revoked_in_this_life_is_refused`, `a_life_that_is_over_when_its_grant_is_given_leaves_none`") "a request for permission fails",
    F100 Elsewhere("RDMA") "two candidates fence each other",
    F101 Elsewhere("one-sided reads: there are none") "a torn one-sided read",
    F102 Elsewhere("one-sided atomics: there are none") "remote and local atomics",
    F103 Simulated "a stopped process, its memory still written to",
    F104 Simulated "a write for a dead process lands in the memory of the next one",
    F105 Elsewhere("RDMA") "lost events of a device",
    F106 Simulated "the writer of a ring starts over at its beginning",
    F107 Elsewhere("RDMA") "a lost or repeated handshake",
    F108 Elsewhere("`transport-rdma/src/tests/lanes.rs::cut_cables_mean_tcp_without_waiting_for_the_device_and_mended_ones_rdma_again`") "one path dies, the other lives",
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
    P1 Elsewhere("`--mutants`: NoFence, FenceAfterReading; `transport-rdma/src/tests/deposed.rs`; `soft-roce/tests/machines/rdma.rs::deposed`") "a deposed leader writes on",
    P2 Elsewhere("`tests/tests/passive.rs::a_completed_record_survives_a_change_of_leader`, `the_same_owner_is_fenced_too`; `--mutants`: NoFence") "a promise is asked for while the ring of the leader before is neither fenced nor read",
    P3 Elsewhere("no start without a proof of the device's: `transport-rdma/src/tests/proof.rs`; that it is seen: `--mutants`: BrokenFence") "a fence does not hold: bytes land behind it",
    P4 Elsewhere("`transport-rdma/src/tests/lives.rs::a_device_that_keeps_the_memory_gets_no_connection_any_more_and_says_why`, `a_queue_pair_that_stays_is_no_harm_while_the_memory_is_gone`") "a device does not take a grant back",
    P5 Elsewhere("`transport-rdma/src/tests/lives.rs::a_replica_whose_device_ends_nothing_stops`") "a device takes neither the grant nor the queue pair back",
    P6 Elsewhere("`--mutants`: LastingGrant; conformance, cases *for life*; `transport-rdma/src/tests/lives.rs::whatever_ends_a_life_the_grant_is_gone_before_that_is_told`") "a grant outlives the life of its lane",
    P7 Elsewhere("`--mutants`: RenewGrant; `tests/tests/passive.rs::who_was_fenced_is_confirmed_in_another_life_only`; `transport-rdma/src/tests/lives.rs::what_was_revoked_is_not_granted_again_in_its_life`") "a ring is granted again in the life in which it was fenced",
    P8 Elsewhere("`--passive` with F96; conformance: *nothing of another life comes in by it*; `transport-rdma/src/tests/lives.rs::the_key_of_an_old_life_opens_nothing_in_the_next`") "a write of an earlier life lands over an unread record of this one",
    P9 Elsewhere("`--mutants`: RingUnreadAtEnd; `replica/tests/passive.rs::what_was_acknowledged_unseen_survives_the_end_of_its_lane`") "a life ends with counted records in its ring that nobody has read",
    P10 Elsewhere("`replica/tests/passive.rs::what_was_acknowledged_unseen_survives_a_change_of_leader`; `--passive` with WC") "a write completed, and its follower has seen nothing of it when it promises another",
    P11 Elsewhere("`--mutants`: CountUnconfirmed; `tests/tests/passive.rs::only_what_is_confirmed_counts`") "a leader counts what no row confirmed",
    P12 Elsewhere("`tests/tests/passive.rs::only_what_is_confirmed_counts` (mistake CountOldCompletions, which no run of the simulator shows)") "a write is told of late, under an older ballot of the same leader",
    P13 Elsewhere("`tests/tests/rdma_passive.rs::a_write_commits_while_both_followers_stand_still_and_outlives_its_leader`") "followers that stand still, and the leader with them after it counted their memory",
    P14 Elsewhere("refused where more than memory is promised: `replica/tests/passive.rs::a_passive_follower_has_its_log_in_memory`, `quorate/tests/passive.rs`") "power fails, and what was voted for is in rings only",
    P15 Elsewhere("`--passive` with F29; `replica/tests/passive.rs::a_passive_follower_that_restarts_does_not_vote`") "a passive follower restarts without its ring",
    P16 Elsewhere("`transport-rdma/src/tests/lives.rs::over_tcp_there_is_none_and_by_verbs_again_there_is`") "a lane falls back to TCP, where no grant ends with a life",
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
