//! The public face of the log: what is asked of it, and what it answers.

use crate::error::OpenError;
use quorate_consensus::{Ballot, Entry, Incarnation, NodeId, Slot};
use std::path::PathBuf;
use std::str::FromStr;
use std::{fmt, fs, io};

/// What an acknowledged write survives. Asked for when a log is opened; a medium that cannot keep
/// it refuses to open.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Durability {
    /// Nothing: the log lives in the memory of the process.
    Volatile,
    /// The death of the process, not of the machine (the page cache has it).
    ProcessCrash,
    /// Power failure (`fdatasync` returned, or the cache lines were flushed to persistent memory).
    PowerFailure,
}

/// Where the log lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MediumKind {
    /// Preallocated segment files, aligned batched `pwrite`, `fdatasync` with group commit:
    /// [`Durability::PowerFailure`].
    File,
    /// Persistent memory, by way of a DAX file system mapped with `MAP_SYNC`:
    /// [`Durability::PowerFailure`].
    Dax,
    /// The persistent-memory code path over an ordinary mapped file:
    /// [`Durability::ProcessCrash`].
    Emulated,
    /// The process's own memory: [`Durability::Volatile`].
    Memory,
}

impl MediumKind {
    /// The durability that this medium gives.
    #[must_use]
    pub const fn durability(self) -> Durability {
        match self {
            Self::File | Self::Dax => Durability::PowerFailure,
            Self::Emulated => Durability::ProcessCrash,
            Self::Memory => Durability::Volatile,
        }
    }
}

impl fmt::Display for MediumKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Dax => "dax",
            Self::Emulated => "emulated",
            Self::Memory => "memory",
        })
    }
}

impl FromStr for MediumKind {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "file" => Ok(Self::File),
            "dax" => Ok(Self::Dax),
            "emulated" => Ok(Self::Emulated),
            "memory" => Ok(Self::Memory),
            _ => Err(format!("'{word}' is no durability: use file, dax, emulated or memory")),
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volatile => "volatile (lost with the process)",
            Self::ProcessCrash => "process crash (lost with the machine)",
            Self::PowerFailure => "power failure",
        })
    }
}

/// One life of a machine, from one start of its kernel to the next: what
/// [`Durability::ProcessCrash`] ends with. Zero where nothing ends with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Boot(pub u128);

impl Boot {
    /// This life of this machine: random, chosen by the kernel (random(4), `boot_id`).
    ///
    /// # Errors
    /// [`OpenError::NoBoot`] if the system does not tell.
    pub fn current() -> Result<Self, OpenError> {
        let path = "/proc/sys/kernel/random/boot_id";
        let refused = |source| OpenError::NoBoot { path: path.into(), source };
        let text = fs::read_to_string(path).map_err(refused)?;
        let digits: String = text.trim().chars().filter(|digit| *digit != '-').collect();
        match u128::from_str_radix(&digits, 16) {
            Ok(number) if number != 0 => Ok(Self(number)),
            _ => Err(refused(io::ErrorKind::InvalidData.into())),
        }
    }
}

/// Who a log belongs to; written when it is formatted, compared at each opening.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The replica's number.
    pub node: NodeId,
    /// The life of this disk: random, chosen when the directory was first used.
    pub incarnation: Incarnation,
    /// The founding document of the cluster, once it is known: opaque to the log.
    pub genesis: Option<bytes::Bytes>,
}

/// How to open a log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The directory; ignored by [`MediumKind::Memory`].
    pub directory: PathBuf,
    /// The medium.
    pub medium: MediumKind,
    /// The replica that opens it: a directory of another one is refused.
    pub node: NodeId,
    /// The size of a segment in bytes.
    pub segment_bytes: u64,
}

/// One thing to keep, in the order given: promises and entries share one stream, so that no order
/// between two files can go wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// The acceptor promised this ballot.
    Promise(Ballot),
    /// The acceptor accepted this entry.
    Entry(Entry),
}

/// Counts appended records of one opening, from 1. A record is durable when
/// `Log::durable` has reached its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lsn(pub u64);

/// How the log ended when it was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// After a whole record.
    Clean,
    /// In the middle of records that were never acknowledged; they were cut.
    TornTail {
        /// How many bytes were cut.
        bytes: u64,
    },
}

/// What a log held when it was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// Whose log it is.
    pub identity: Identity,
    /// The highest ballot promised or accepted, [`Ballot::ZERO`] for none.
    pub promised: Ballot,
    /// Whether `promised` is certainly all: false if the log ends in damage, where a higher promise
    /// may have stood, or if it is `outlived`. Damage elsewhere loses none, since every record
    /// restates the promise.
    pub promise_certain: bool,
    /// Whether the machine was started again since the log was made, on a medium that does not
    /// survive that: any record may be missing at its end, and nothing that is left can tell. It
    /// stays so for the rest of the log's life.
    pub outlived: bool,
    /// The highest slot that the log says is chosen.
    pub commit_slot: Slot,
    /// Up to here every entry that the log keeps is certainly the newest one that was written.
    pub intact_through: Slot,
    /// The lowest slot kept, or the one after `last_slot` if none is.
    pub first_slot: Slot,
    /// The highest slot kept, [`Slot::ZERO`] for none.
    pub last_slot: Slot,
    /// Clean, or with a torn tail that was cut.
    pub end: End,
    /// Damage below the durable point: what was acknowledged and cannot be read. The acceptor must
    /// not answer as if these were empty.
    pub damaged: Vec<Damage>,
}

/// A damaged part of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// The slots whose newest entries may have stood there, first and last inclusive, as far as the
    /// neighbours tell; `None` if they do not.
    pub slots: Option<(Slot, Slot)>,
    /// Whether exactly `slots` were lost: a header still says so. Such damage is repaired when they
    /// are written again. Otherwise entries of higher slots may have stood there too, under a ballot
    /// that nobody remembers, and the damage counts until its segment is trimmed.
    pub exact: bool,
    /// What is wrong.
    pub what: String,
}

/// Counters since the log was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogStatistics {
    /// Records appended.
    pub records: u64,
    /// Bytes written to the medium, padding included.
    pub bytes_written: u64,
    /// Payload bytes of entries appended.
    pub payload_bytes: u64,
    /// Flushes of the medium: `fdatasync`, or flush and fence.
    pub flushes: u64,
    /// How long the last flush that was timed took, in nanoseconds: every one where it is a system
    /// call, one of 16 elsewhere.
    pub last_flush_nanos: u64,
}
