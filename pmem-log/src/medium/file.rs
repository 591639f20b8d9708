//! Ordinary files: `pwrite` and `fdatasync`.

use super::directory::{Directory, refused};
use super::{Area, Medium, Profile};
use crate::api::MediumKind;
use crate::error::OpenError;
use rustix::fs::Advice;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The unit in which the page cache writes back: a batch begins on a page of its own, so that no
/// write-back of it touches a byte that was acknowledged before.
const PAGE_BYTES: u64 = 4096;

/// A locked directory of preallocated files; survives power failure.
#[derive(Debug)]
pub struct FileMedium {
    directory: Directory,
    writable: bool,
}

impl FileMedium {
    /// Opens and locks the directory; makes it if it is missing.
    ///
    /// # Errors
    /// If it cannot be made, is in use, or is on a file system that keeps less.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Ok(Self { directory: Directory::open(directory, MediumKind::File)?, writable: true })
    }

    /// Opens it for reading only: every change is refused by the system.
    ///
    /// # Errors
    /// If it cannot be read or is in use.
    pub fn open_read_only(directory: &Path) -> Result<Self, OpenError> {
        let metadata =
            std::fs::metadata(directory).map_err(|source| refused("open", directory, source))?;
        if !metadata.is_dir() {
            return Err(refused("open", directory, io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self { directory: Directory::open_read_only(directory)?, writable: false })
    }

    fn refuse_if_read_only(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::ErrorKind::ReadOnlyFilesystem.into()) }
    }
}

impl Medium for FileMedium {
    fn profile(&self) -> Profile {
        // Zero filling: a 4 KiB pwrite + fdatasync took 106 us on zero-filled blocks and 160 us on
        // merely allocated ones (ext4, median of 400); a 64 MiB segment takes about 50 ms to fill,
        // done in steps between syncs.
        Profile {
            kind: MediumKind::File,
            alignment: PAGE_BYTES,
            sync_thread: true,
            zero_fill: true,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.directory.names()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Area>> {
        let file = self.directory.open_file(name, self.writable)?;
        if self.writable {
            // What a process that died had written must be on the disk before anybody relies on
            // having read it; and after a failed sync the page cache may show bytes that the disk
            // does not have, so it is dropped and the disk is read.
            rustix::fs::fdatasync(&file)?;
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        let bytes = file.metadata()?.len();
        Ok(Arc::new(FileArea { file, bytes }))
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn Area>> {
        self.refuse_if_read_only()?;
        Ok(Arc::new(FileArea { file: self.directory.create_file(name, bytes, false)?, bytes }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.refuse_if_read_only()?;
        self.directory.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.refuse_if_read_only()?;
        self.directory.remove(name)
    }
}

#[derive(Debug)]
struct FileArea {
    file: File,
    bytes: u64,
}

impl Area for FileArea {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn persist(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.file)?)
    }
}
