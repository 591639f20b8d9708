//! What can go wrong, by who is at fault.

use crate::api::MediumKind;
use quorate_consensus::{NodeId, Slot};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Who has to act on an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// The operator: a wrong directory, a second process, a full disk, an option.
    Operator,
    /// The device or the file system failed.
    Device,
    /// What was stored came back changed.
    Damage,
    /// The program asked for something that a log does not do.
    Caller,
}

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by {}: stop that replica, or give this one a directory of its own",
        directory.display(), holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}")))]
    Locked {
        /// The directory.
        directory: PathBuf,
        /// The process that holds it, if it said so.
        holder: Option<u32>,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory holds something else.
    #[error("{} holds '{found}', which is no part of a quorate log: name an empty directory", directory.display())]
    NotALog {
        /// The directory.
        directory: PathBuf,
        /// The first foreign name in it.
        found: String,
    },
    /// It is another replica's log.
    #[error("{} belongs to replica {found}, not to {asked}: check the node number and the data directory", directory.display())]
    OtherNode {
        /// The directory.
        directory: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        asked: NodeId,
    },
    /// It was formatted for another medium, whose rules of writing differ.
    #[error("{} was formatted for '{found}', not for '{asked}': open it as '{found}', or begin with an empty directory", directory.display())]
    OtherMedium {
        /// The directory.
        directory: PathBuf,
        /// What it was formatted for.
        found: MediumKind,
        /// What was asked for.
        asked: MediumKind,
    },
    /// It was written by another version of this program.
    #[error("{} has log format {found}; this program reads formats up to {readable}: use the version that wrote it", directory.display())]
    UnknownVersion {
        /// The directory.
        directory: PathBuf,
        /// The version found.
        found: u32,
        /// The newest version that this program reads.
        readable: u32,
    },
    /// Both copies of the superblock are unreadable, or it is missing beside segments.
    #[error("{}: {what}. The identity of the log is lost: remove the directory and let the replica rejoin as a new member", path.display())]
    SuperblockDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The file system does not keep what the medium promises.
    #[error("{} is on {filesystem}, which does not survive what '{asked}' promises: use a local disk, or say durability = \"emulated\"", directory.display())]
    WeakFileSystem {
        /// The directory.
        directory: PathBuf,
        /// What it is on.
        filesystem: String,
        /// What was asked for.
        asked: MediumKind,
    },
    /// The directory is not on persistent memory that can be mapped as such.
    #[error("{} is on {filesystem}, where flushed cache lines are no safe place ({why}): 'dax' needs \
        ext4 or xfs on persistent memory, mounted with -o dax; use such a directory, or say durability = \"file\"",
        directory.display())]
    NotDax {
        /// The directory.
        directory: PathBuf,
        /// What it is on.
        filesystem: String,
        /// What is missing.
        why: String,
    },
    /// The system does not say which life of the machine this is.
    #[error("cannot read {}, which tells one start of this machine from the next: 'emulated' must know, \
        since it does not survive the machine ({source}). Mount /proc, or say durability = \"file\"", path.display())]
    NoBoot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// An option is out of range.
    #[error("{what}")]
    InvalidOption {
        /// Which, and what would be right.
        what: String,
    },
}

impl OpenError {
    /// Who has to act.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied
                | io::ErrorKind::NotFound
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::ReadOnlyFilesystem
                | io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded => Fault::Operator,
                _ => Fault::Device,
            },
            Self::SuperblockDamaged { .. } => Fault::Damage,
            _ => Fault::Operator,
        }
    }
}

/// Why an open log did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// No room now: the record was not taken. Try again; it clears when space comes back.
    #[error("the log is full: {what}")]
    Full {
        /// What ran out.
        what: Arc<str>,
    },
    /// A write or a sync failed, so nothing that is not yet durable can be trusted. This log never
    /// takes another record; reopen it after the device was looked at.
    #[error("the log is poisoned: {reason}")]
    Poisoned {
        /// The first failure.
        reason: Arc<str>,
    },
    /// The newest record of the slot cannot be read.
    #[error("slot {slot} is damaged: {what}")]
    Damaged {
        /// The slot.
        slot: Slot,
        /// What is wrong.
        what: &'static str,
    },
    /// The value does not fit a segment.
    #[error("a value of {bytes} bytes does not fit: at most {bytes_max}; use larger segments")]
    TooLarge {
        /// The value's size.
        bytes: usize,
        /// The largest that fits.
        bytes_max: usize,
    },
    /// A genesis document is set already, and it is another one.
    #[error("this log has another genesis document: it belongs to another cluster")]
    OtherGenesis,
    /// The genesis document is larger than the superblock has room for.
    #[error("a genesis document of {bytes} bytes does not fit: at most {bytes_max}")]
    GenesisTooLarge {
        /// The document's size.
        bytes: usize,
        /// The largest that fits.
        bytes_max: usize,
    },
    /// Reading failed.
    #[error("cannot read the log: {what}")]
    Unreadable {
        /// What the system said.
        what: Arc<str>,
    },
}

impl LogError {
    /// Who has to act.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Full { .. } => Fault::Operator,
            Self::Poisoned { .. } | Self::Unreadable { .. } => Fault::Device,
            Self::Damaged { .. } => Fault::Damage,
            Self::TooLarge { .. } | Self::OtherGenesis | Self::GenesisTooLarge { .. } => {
                Fault::Caller
            }
        }
    }
}

/// Whether the error says that space ran out, which passes.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether the error says that the device could not read: the bytes are lost, the device is there.
pub(crate) fn is_lost(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}
