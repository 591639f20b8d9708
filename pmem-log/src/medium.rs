//! What the log needs of the thing it writes to.
//!
//! A [`Medium`] is a flat directory of fixed-size [`Area`]s. The log assumes of both:
//!
//! 1. What [`Area::persist`] covered when it returned without an error survives the failure that
//!    [`Medium::durability`] names. What was written and not persisted may survive wholly, in
//!    part (any subset of the aligned units of the medium: 8-byte words of a mapping, 512-byte
//!    sectors of a disk), or not at all.
//! 2. A unit that was persisted and not written again does not change. If it does, that is
//!    damage: the log notices it by checksums, and does not rely on the medium to.
//! 3. After [`Area::write`] or [`Area::persist`] failed, nothing is known about what was written
//!    since the last successful persist. Only [`Area::write`] may fail for want of space
//!    (`StorageFull`, `QuotaExceeded`), and may then be repeated.
//! 4. [`Medium::create`], [`Medium::rename`] and [`Medium::remove`] are durable when they return.
//!    A rename is atomic and replaces its target. A created area reads as zeros.
//! 5. Reads see the writes of the same process at once. Disjoint ranges may be read and written
//!    from two threads at a time; the log never reads a range that another thread is writing.
//! 6. Whoever holds the medium is the only writer.

mod ahead;
mod directory;
mod file;
mod mapped;
mod mapping;

use crate::api::{Boot, Durability, MediumKind};
use crate::error::OpenError;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use file::FileMedium;
pub use mapped::MappedMedium;

/// How a medium wants to be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Which of the rules of writing hold; recorded in the superblock.
    pub kind: MediumKind,
    /// Each flushed batch begins at a multiple of this many bytes: a power of two, at least 8.
    pub alignment: u64,
    /// Flushing takes long: do it on a thread of its own, all that waits at a time.
    pub sync_thread: bool,
    /// New segments are written with zeros ahead of use, because the first write to a merely
    /// allocated block makes the sync after it slower.
    pub zero_fill: bool,
}

/// A directory of areas; see the module for what is assumed of it.
pub trait Medium: Send + Sync + Debug {
    /// How to use it.
    fn profile(&self) -> Profile;

    /// What its areas survive.
    fn durability(&self) -> Durability {
        self.profile().kind.durability()
    }

    /// In which life of the machine it was opened, where what it keeps ends with that; see
    /// [`Boot`].
    fn boot(&self) -> Boot {
        Boot::default()
    }

    /// Where `name` is, for messages.
    fn path(&self, name: &str) -> PathBuf;

    /// The names of all areas, and of whatever else is there, sorted.
    ///
    /// # Errors
    /// What the system says.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Opens an area as it is.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn Area>>;

    /// Makes an area of `bytes` zeros with all its blocks allocated. Leaves nothing behind if it
    /// fails.
    ///
    /// # Errors
    /// What the system says; `StorageFull` or `QuotaExceeded` if there is no room.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn Area>>;

    /// Gives an area another name.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes an area; its open handles stay usable.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// A fixed range of bytes; see the module for what is assumed of it.
pub trait Area: Send + Sync + Debug {
    /// Its size.
    fn bytes(&self) -> u64;

    /// Makes later writes to an area that was just created, and that nobody else has yet, as quick as they get. It
    /// reads as zeros before and after.
    fn touch(&self) {}

    /// Fills `into` from `offset`.
    ///
    /// # Errors
    /// What the system says; `UnexpectedEof` beyond the end.
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Stores `bytes` at `offset`, a multiple of 8. Up to 7 bytes behind them, to the next multiple
    /// of 8, may become zero.
    ///
    /// # Errors
    /// What the system says.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written to this range durable.
    ///
    /// # Errors
    /// What the system says; the log is then poisoned.
    fn persist(&self, offset: u64, bytes: u64) -> io::Result<()>;

    /// Makes durable what somebody else may have written to this range: the process before this
    /// one, or whoever copied the file.
    ///
    /// # Errors
    /// As [`Area::persist`].
    fn adopt(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.persist(offset, bytes)
    }
}

/// Opens a directory, made if it is missing, as a medium of this kind.
///
/// # Errors
/// If it cannot be made, is in use, or is on a file system that keeps less than `kind` promises.
pub fn open_medium(kind: MediumKind, directory: &Path) -> Result<Arc<dyn Medium>, OpenError> {
    Ok(match kind {
        MediumKind::File => Arc::new(FileMedium::open(directory)?),
        MediumKind::Dax => Arc::new(MappedMedium::dax(directory)?),
        MediumKind::Emulated => Arc::new(MappedMedium::open(directory)?),
        MediumKind::Memory => Arc::new(MappedMedium::memory()),
    })
}

/// Opens a directory for inspection: nothing in it is written, and a running replica is refused.
///
/// # Errors
/// If it cannot be read or is in use.
pub(crate) fn open_read_only(directory: &Path) -> Result<Arc<dyn Medium>, OpenError> {
    Ok(Arc::new(FileMedium::open_read_only(directory)?))
}
