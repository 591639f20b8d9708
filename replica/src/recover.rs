//! Offline recovery after the loss of the majority: what is left becomes a cluster of one replica.
//!
//! Paxos cannot do this: what the lost members chose among themselves is not here. So it is done by
//! command, on directories that no replica runs on, and as a *new* cluster with a number of its own
//! (rule F7). The argument, and what it costs, is in `docs/decisions/0021-recovery-makes-a-new-cluster.md`.

use crate::checkpoint::read_head;
use bytes::Bytes;
use quorate_consensus::{
    Ballot, Configuration, Configurations, Entry, Genesis, Incarnation, Member, NodeId, Slot,
    Value, ValueKind,
};
use quorate_pmem_log::{
    Identity, Log, LogError, LogOptions, LogReader, MediumKind, OpenError, Record,
};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Payload bytes that are read from a log at a time.
const READ_BYTES: usize = 1 << 20;
/// Asked for when a log is opened that is there; it keeps its own.
const SEGMENT_BYTES: u64 = 1 << 20;

/// Why nothing was recovered. Nothing was changed unless it says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// A log could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A log could not be read or written.
    #[error("{}: {source}", directory.display())]
    Log {
        /// Whose.
        directory: PathBuf,
        /// What is wrong.
        source: LogError,
    },
    /// Checkpoints could not be looked at.
    #[error("{}: the checkpoints beside the log cannot be read: {source}", directory.display())]
    Checkpoints {
        /// Whose.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory does not fit.
    #[error("{}: {what}", directory.display())]
    Unfit {
        /// Which.
        directory: PathBuf,
        /// Why.
        what: String,
    },
}

/// A directory that is left, read and not changed.
struct Survivor {
    directory: PathBuf,
    log: LogReader,
    cluster: u64,
    /// Every slot up to here is known chosen.
    certain: Slot,
    /// Nothing of the log below it is used.
    log_from: Slot,
    configurations: Configurations,
    /// Nothing is missing between its newest checkpoint and the last certain slot.
    whole: bool,
}

impl Survivor {
    fn open(directory: &Path) -> Result<Self, RecoverError> {
        let unfit = |what: &str| RecoverError::Unfit {
            directory: directory.to_owned(),
            what: what.to_owned(),
        };
        let log = LogReader::open(directory)?;
        let recovered = log.recovered();
        if !recovered.promise_certain || !recovered.damaged.is_empty() {
            return Err(unfit(
                "its log lost something that it had acknowledged, so its replica could not vote. Use \
                 another directory, or take what it has by `quorate replay --export`",
            ));
        }
        let document = recovered.identity.genesis.as_ref();
        let document = document.ok_or_else(|| unfit("it has never been part of a cluster"))?;
        let genesis = Genesis::decode(document)
            .ok_or_else(|| unfit("its founding document was written by another version"))?;
        let failed = |source| RecoverError::Checkpoints { directory: directory.to_owned(), source };
        let store = log.checkpoints().map_err(failed)?;
        let mut certain = recovered.commit_slot;
        let log_from = store.log_from();
        let mut known = Configurations::new(genesis.configuration.clone());
        let mut searched = Slot::ZERO;
        for checkpoint in store.installed().iter().rev() {
            if store.verify(checkpoint).is_err() {
                continue;
            }
            let mut image = store.reader(checkpoint).map_err(io::Error::other).map_err(failed)?;
            let head = read_head(&mut image).map_err(failed)?;
            (searched, known) = (checkpoint.id.slot, head.configurations);
            certain = certain.max(searched);
            break;
        }
        let cluster = genesis.cluster;
        let configurations = known.clone();
        let directory = directory.to_owned();
        let whole = false;
        let mut survivor =
            Self { directory, log, cluster, certain, log_from, configurations, whole };
        let mut read = 0;
        let mut withheld = false;
        survivor.each(searched.next(), certain, &mut |entry| {
            read += 1;
            withheld |= entry.value.is_withheld();
            if entry.value.kind == ValueKind::Configuration {
                known.note(entry.slot, Configuration::decode(&entry.value.bytes));
            }
        })?;
        survivor.whole = read == certain.0 - searched.0;
        survivor.configurations = known.as_of(certain);
        let Identity { node, incarnation, .. } = *survivor.identity();
        let me = Member { node, incarnation };
        let latest = survivor.configurations.latest();
        if withheld || latest.witnesses.contains(&me) {
            return Err(unfit(
                "it is a witness's, which keeps no values: recover from a voter's directory",
            ));
        }
        Ok(survivor)
    }

    fn identity(&self) -> &Identity {
        &self.log.recovered().identity
    }

    /// Calls `each` for the newest entries of the slots `first` to `last` that are there, in order.
    fn each(
        &self,
        first: Slot,
        last: Slot,
        each: &mut dyn FnMut(Entry),
    ) -> Result<(), RecoverError> {
        let recovered = self.log.recovered();
        let mut next = first.max(self.log_from).max(recovered.first_slot);
        let mut found = Vec::new();
        while next <= last.min(recovered.last_slot) {
            self.log.read(next, READ_BYTES, &mut found).map_err(|source| {
                let directory = self.directory.clone();
                RecoverError::Log { directory, source }
            })?;
            // A hole: another survivor may have what stood there.
            next = found.last().map_or(next, |last| last.slot).next();
            found.drain(..).filter(|entry| entry.slot <= last).for_each(&mut *each);
        }
        Ok(())
    }

    /// Whether `configuration` counts the word of this disk.
    fn counts(&self, configuration: &Configuration) -> bool {
        configuration.votes(self.identity().node, self.identity().incarnation)
    }
}

/// What a recovery would do, and what it would cost. Made without a change to anything.
pub struct Recovery {
    first: Survivor,
    /// Who is left, this replica first.
    here: Vec<NodeId>,
    /// Those of them whose word counts.
    counted: Vec<NodeId>,
    /// Voters whose directories are not here.
    missing: Vec<NodeId>,
    configuration: Configuration,
    /// Up to here somebody here knows the slots to be chosen.
    certain: Slot,
    /// The values of the slots above those that the first one knows to be chosen.
    values: Vec<Value>,
    holes: u64,
    promised: Ballot,
    newest_id: u64,
}

impl std::fmt::Debug for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recovery").field("missing", &self.missing).finish_non_exhaustive()
    }
}

/// A cluster that was recovered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecoveredCluster {
    /// Its number.
    pub cluster: u64,
    /// All slots up to this one are declared to be chosen.
    pub through: Slot,
}

impl Recovery {
    /// Looks at the directory that is to go on, and at copies of others that are left.
    ///
    /// # Errors
    /// [`RecoverError`]: also when no recovery is needed, since a majority is here.
    pub fn plan(directory: &Path, others: &[PathBuf]) -> Result<Self, RecoverError> {
        let first = Survivor::open(directory)?;
        let others = others.iter().map(|other| Survivor::open(other));
        let others = others.collect::<Result<Vec<_>, _>>()?;
        let unfit = |of: &Survivor, what: String| {
            Err(RecoverError::Unfit { directory: of.directory.clone(), what })
        };
        let mut here = vec![first.identity().node];
        for other in &others {
            if other.cluster != first.cluster {
                let (theirs, ours) = (other.cluster, first.cluster);
                let what = format!("it belongs to cluster {theirs:016x}, the first to {ours:016x}");
                return unfit(other, what);
            }
            if here.contains(&other.identity().node) {
                return unfit(other, "its replica was named already".into());
            }
            here.push(other.identity().node);
        }
        if !first.whole {
            let what = "what stands between its newest good checkpoint and the slots that it knows to be \
                        chosen is not all there: the state cannot be had from it. Recover another one";
            return unfit(&first, what.into());
        }
        let all = || std::iter::once(&first).chain(&others);
        let knows = all().max_by_key(|survivor| survivor.certain).unwrap_or(&first);
        // The newest configuration that is certain decides the first open slot.
        let configuration = knows.configurations.latest().clone();
        let counted: Vec<NodeId> = all()
            .filter(|survivor| survivor.counts(&configuration))
            .map(|survivor| survivor.identity().node)
            .collect();
        if configuration.is_election_quorum(|member| counted.contains(&member.node)) {
            let what = "the replicas named are enough for a majority: start them, nothing is lost";
            return unfit(&first, what.into());
        }
        let electors = configuration.electors().map(|member| member.node);
        let missing = electors.filter(|node| !counted.contains(node)).collect();
        // Rule P3, among those who are left: the value under the highest ballot, slot by slot.
        let mut newest: BTreeMap<Slot, Entry> = BTreeMap::new();
        for survivor in all() {
            let last = survivor.log.recovered().last_slot;
            survivor.each(first.certain.next(), last, &mut |entry| {
                let known = newest.get(&entry.slot);
                if known.is_none_or(|known| known.ballot < entry.ballot) {
                    newest.insert(entry.slot, entry);
                }
            })?;
        }
        // What another one knows to be chosen stands before any ballot.
        if knows.certain > first.certain {
            let mut read = 0;
            knows.each(first.certain.next(), knows.certain, &mut |entry| {
                read += 1;
                newest.insert(entry.slot, entry);
            })?;
            if read < knows.certain.0 - first.certain.0 {
                let what = format!(
                    "it knows slots up to {} to be chosen, the first directory only up to {}, and its log \
                     does not reach back so far: recover this one, and name the other with --and",
                    knows.certain, first.certain
                );
                return unfit(knows, what);
            }
        }
        let certain = knows.certain;
        let mut values = Vec::new();
        let mut holes = 0;
        let mut slot = first.certain.next();
        while let Some((last, _)) = newest.last_key_value()
            && slot <= *last
        {
            holes += u64::from(!newest.contains_key(&slot));
            values.push(newest.get(&slot).map_or_else(Value::noop, |entry| entry.value.clone()));
            slot = slot.next();
        }
        let ids = values.iter().filter(|value| value.kind == ValueKind::Configuration);
        let ids = ids.filter_map(|value| Some(Configuration::decode(&value.bytes)?.id));
        let newest_id = ids.chain([configuration.id]).max().unwrap_or(0);
        let promised = all().map(|survivor| survivor.log.recovered().promised).max();
        let promised = promised.unwrap_or(Ballot::ZERO);
        Ok(Self {
            here,
            counted,
            missing,
            configuration,
            certain,
            values,
            holes,
            promised,
            newest_id,
            first,
        })
    }

    /// The replica that goes on.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.first.identity().node
    }

    /// The cluster that lost its majority.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        self.first.cluster
    }

    /// The configuration whose majority is lost.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Whose directories were named; the first goes on.
    #[must_use]
    pub fn here(&self) -> &[NodeId] {
        &self.here
    }

    /// Voters of the configuration whose directories were not named, or whose disks are others.
    #[must_use]
    pub fn missing(&self) -> &[NodeId] {
        &self.missing
    }

    /// Every slot up to this one is known to be chosen, and stays as it is.
    #[must_use]
    pub fn certain(&self) -> Slot {
        self.certain
    }

    /// The highest slot that anybody here accepted. What is between may have been chosen; it is kept
    /// as it was accepted under the highest ballot.
    #[must_use]
    pub fn last(&self) -> Slot {
        Slot(self.first.certain.0 + self.values.len() as u64)
    }

    /// Slots between the two that nobody here has: they become empty.
    #[must_use]
    pub fn holes(&self) -> u64 {
        self.holes
    }

    /// Whether the missing replicas may have acknowledged what nobody here has seen: there are enough of
    /// them to choose a value. Otherwise every chosen value was accepted by somebody here.
    #[must_use]
    pub fn may_lose(&self) -> bool {
        self.configuration.is_quorum(|member| !self.counted.contains(&member.node))
    }

    /// Makes the first directory that of a cluster of one, whose number is `cluster`: random, and not
    /// 0. Durable when this returns. If it fails midway, the directory belongs to the new cluster
    /// already and its replica cannot lead; it is recovered again then.
    ///
    /// # Errors
    /// [`RecoverError`].
    pub fn carry_out(self, cluster: u64) -> Result<RecoveredCluster, RecoverError> {
        let through = self.last().next();
        let lost = self.cluster();
        let Self { first, configuration, values, promised, newest_id, .. } = self;
        let Survivor { directory, log: reader, certain, .. } = first;
        let identity = reader.recovered().identity.clone();
        let (before, kind) = (reader.recovered().last_slot, reader.kind());
        let Identity { node, incarnation, .. } = identity.clone();
        drop(reader);
        let mut writer = Writer::open(&directory, kind, node)?;
        if writer.found != (identity, before) {
            let what = "it was changed since it was looked at: run this again".into();
            return Err(RecoverError::Unfit { directory, what });
        }
        let voters = vec![Member { node, incarnation }];
        let alone = Configuration {
            id: newest_id + 1,
            addresses: configuration
                .addresses
                .iter()
                .filter(|at| at.node == node)
                .cloned()
                .collect(),
            ..Configuration::of_voters(1, voters.clone())
        };
        let first = Configuration::of_voters(1, voters);
        let genesis = Genesis { cluster, configuration: first, recovered_from: Some(lost) };
        // Rule F7: the new number first. What stands there if nothing follows cannot lead anywhere.
        writer.set_genesis(genesis.encode())?;
        let ballot = Ballot { round: promised.round + 1, node };
        writer.append(&Record::Promise(ballot), certain)?;
        let mut slot = certain;
        for value in values.into_iter().chain([alone.to_value()]) {
            slot = slot.next();
            writer.append(&Record::Entry(Entry { slot, ballot, value }), certain)?;
        }
        writer.settle()?;
        // This is where it is said that all of it is chosen.
        writer.append(&Record::Promise(ballot), through)?;
        writer.close()?;
        Ok(RecoveredCluster { cluster, through })
    }
}

/// The log that is recovered, open for writing.
struct Writer {
    directory: PathBuf,
    log: Log,
    found: (Identity, Slot),
}

impl Writer {
    fn open(directory: &Path, medium: MediumKind, node: NodeId) -> Result<Self, RecoverError> {
        let directory = directory.to_owned();
        let options =
            LogOptions { directory: directory.clone(), medium, node, segment_bytes: SEGMENT_BYTES };
        // The log is there: it has an incarnation.
        let (log, recovered) = Log::open(&options, Incarnation(0), Arc::new(|| {}))?;
        Ok(Self { directory, log, found: (recovered.identity, recovered.last_slot) })
    }

    fn failed(&self) -> impl Fn(LogError) -> RecoverError + use<> {
        let directory = self.directory.clone();
        move |source| RecoverError::Log { directory: directory.clone(), source }
    }

    fn set_genesis(&mut self, document: Bytes) -> Result<(), RecoverError> {
        let failed = self.failed();
        self.log.replace_genesis(document).map_err(failed)
    }

    fn append(&mut self, record: &Record, commit_slot: Slot) -> Result<(), RecoverError> {
        let failed = self.failed();
        match self.log.append(record, commit_slot) {
            Err(LogError::Full { .. }) => {
                self.settle()?;
                self.log.append(record, commit_slot).map(drop).map_err(failed)
            }
            appended => appended.map(drop).map_err(failed),
        }
    }

    fn settle(&mut self) -> Result<(), RecoverError> {
        let failed = self.failed();
        let appended = self.log.appended();
        self.log.wait_durable(appended).map_err(failed)
    }

    fn close(self) -> Result<(), RecoverError> {
        let failed = self.failed();
        self.log.close().map_err(failed)
    }
}
