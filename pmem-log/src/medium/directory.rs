//! A locked directory of ordinary files: what the file and the mapped medium share.

use crate::api::MediumKind;
use crate::error::OpenError;
use rustix::fs::{FallocateFlags, FlockOperation};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Held locked while a log is open; contains the holder's process id for whoever is refused.
const LOCK: &str = "LOCK";

#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// For syncing names.
    handle: File,
    /// Released when the log is closed or the process dies.
    _lock: Option<File>,
}

impl Directory {
    /// Makes the directory if it is missing and locks it.
    pub(super) fn open(path: &Path, kind: MediumKind) -> Result<Self, OpenError> {
        fs::create_dir_all(path).map_err(|source| refused("make", path, source))?;
        let handle = File::open(path).map_err(|source| refused("open", path, source))?;
        if kind == MediumKind::File
            && let Some(filesystem) = weak_file_system(&handle)
        {
            let directory = path.to_owned();
            return Err(OpenError::WeakFileSystem { directory, filesystem, asked: kind });
        }
        let lock = lock(path)?;
        Ok(Self { path: path.to_owned(), handle, _lock: Some(lock) })
    }

    /// Opens it for reading; refuses if a log is open in it.
    pub(super) fn open_read_only(path: &Path) -> Result<Self, OpenError> {
        let handle = File::open(path).map_err(|source| refused("open", path, source))?;
        let lock = match File::open(path.join(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(refused("open", &path.join(LOCK), source)),
            Ok(file) => Some(take(file, FlockOperation::NonBlockingLockShared, path)?),
        };
        Ok(Self { path: path.to_owned(), handle, _lock: lock })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for item in fs::read_dir(&self.path)? {
            let name = item?.file_name().to_string_lossy().into_owned();
            if name != LOCK {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    pub(super) fn open_file(&self, name: &str, write: bool) -> io::Result<File> {
        OpenOptions::new().read(true).write(write).open(self.path(name))
    }

    /// A new file with `bytes` allocated zeros; nothing is left behind if that fails.
    pub(super) fn create_file(&self, name: &str, bytes: u64) -> io::Result<File> {
        let path = self.path(name);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        let made = allocate(&file, bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| self.handle.sync_all());
        match made {
            Ok(()) => Ok(file),
            Err(error) => {
                // The first failure is what matters; a leftover is removed at the next opening.
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))?;
        self.handle.sync_all()
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))?;
        self.handle.sync_all()
    }
}

/// Reserves the blocks, so that a full disk shows here and neither in a later write nor, through
/// a mapping, as a signal.
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(file, bytes),
        Err(error) => Err(error.into()),
    }
}

/// For file systems that cannot reserve blocks.
fn write_zeros(mut file: &File, bytes: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(bytes), &mut file)?;
    file.rewind()
}

fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join(LOCK);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|source| refused("open", &path, source))?;
    let mut file = take(file, FlockOperation::NonBlockingLockExclusive, directory)?;
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|source| refused("write", &path, source))?;
    Ok(file)
}

fn take(mut file: File, operation: FlockOperation, directory: &Path) -> Result<File, OpenError> {
    match rustix::fs::flock(&file, operation) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // An unreadable holder is one that is not named.
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim().parse().ok();
            Err(OpenError::Locked { directory: directory.to_owned(), holder })
        }
        Err(error) => Err(refused("lock", &directory.join(LOCK), error.into())),
    }
}

pub(super) fn refused(action: &'static str, path: &Path, source: io::Error) -> OpenError {
    OpenError::Io { action, path: path.to_owned(), source }
}

/// File systems on which a returned `fdatasync` does not mean that power may fail: `statfs(2)`
/// numbers of those that live in memory, and of those where another machine decides.
#[cfg(target_os = "linux")]
fn weak_file_system(directory: &File) -> Option<&'static str> {
    let kind = rustix::fs::fstatfs(directory).ok()?.f_type as u32;
    match kind {
        0x0102_1994 => Some("tmpfs (memory)"),
        0x8584_58f6 => Some("ramfs (memory)"),
        0x9584_58f6 => Some("hugetlbfs (memory)"),
        0x0000_6969 => Some("NFS (network)"),
        0xff53_4d42 | 0xfe53_4d42 | 0x0000_517b => Some("SMB (network)"),
        0x0102_1997 => Some("9p (network or host share)"),
        0x6573_5546 => Some("FUSE (a program decides)"),
        _ => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn weak_file_system(_: &File) -> Option<&'static str> {
    None
}
