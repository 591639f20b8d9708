//! A locked directory of ordinary files: what the file and the mapped medium share.

use crate::api::MediumKind;
use crate::error::OpenError;
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Held locked while a log is open; contains the holder's process id for whoever is refused.
const LOCK: &str = "LOCK";

#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// For syncing names.
    handle: File,
    /// Names are synced. What is `emulated` is lost with the machine in any case, and another boot is
    /// told from this one; on a busy disk each sync of a name waits for all that others wrote there.
    syncs: bool,
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
        let syncs = kind != MediumKind::Emulated;
        Ok(Self { path: path.to_owned(), handle, syncs, _lock: Some(lock) })
    }

    /// Opens it for reading; refuses if a log is open in it.
    pub(super) fn open_read_only(path: &Path) -> Result<Self, OpenError> {
        let handle = File::open(path).map_err(|source| refused("open", path, source))?;
        let lock = match File::open(path.join(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(refused("open", &path.join(LOCK), source)),
            Ok(file) => Some(take(file, FlockOperation::NonBlockingLockShared, path)?),
        };
        Ok(Self { path: path.to_owned(), handle, syncs: true, _lock: lock })
    }

    pub(super) fn handle(&self) -> &File {
        &self.handle
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

    /// A file of `bytes` allocated zeros without a name: it goes when it is closed.
    pub(super) fn nameless_file(&self, bytes: u64) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&self.path, flags, Mode::RUSR | Mode::WUSR)?);
        allocate(&file, bytes)?;
        Ok(file)
    }

    /// A new file with `bytes` allocated zeros, written as such if `zeros` says so; nothing is left
    /// behind if that fails.
    pub(super) fn create_file(&self, name: &str, bytes: u64, zeros: bool) -> io::Result<File> {
        let path = self.path(name);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        let made = allocate(&file, bytes)
            .and_then(|()| if zeros { write_zeros(&file, bytes) } else { Ok(()) })
            .and_then(|()| if self.syncs { file.sync_all() } else { Ok(()) })
            .and_then(|()| self.sync_names());
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
        self.sync_names()
    }

    fn sync_names(&self) -> io::Result<()> {
        if self.syncs { self.handle.sync_all() } else { Ok(()) }
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))?;
        self.sync_names()
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

/// For file systems that cannot reserve blocks, and for blocks that must not be merely reserved.
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

/// What a file system is called, and whether a returned `fdatasync` means on it that power may
/// fail: not where it lives in memory, nor where another machine or program decides. By the numbers
/// of statfs(2).
const FILE_SYSTEMS: [(u32, &str, bool); 22] = [
    (0x0000_ef53, "ext2, ext3 or ext4", true),
    (0x5846_5342, "xfs", true),
    (0x9123_683e, "btrfs", true),
    (0xf2f5_2010, "f2fs", true),
    (0x2fc1_2fc1, "zfs", true),
    (0xca45_1a4e, "bcachefs", true),
    (OVERLAY, "overlayfs", true),
    (0x0102_1994, "tmpfs (memory)", false),
    (0x8584_58f6, "ramfs (memory)", false),
    (0x9584_58f6, "hugetlbfs (memory)", false),
    (0x0000_6969, "NFS (network)", false),
    (0xff53_4d42, "SMB (network)", false),
    (0xfe53_4d42, "SMB (network)", false),
    (0x0000_517b, "SMB (network)", false),
    (0x00c3_6400, "Ceph (network)", false),
    (0x0bd0_0bd0, "Lustre (network)", false),
    (0x5346_414f, "AFS (network)", false),
    (0x6b41_4653, "AFS (network)", false),
    (0x0116_1970, "GFS2 (network)", false),
    (0x0102_1997, "9p (network or host share)", false),
    (0x786f_4256, "a shared folder of VirtualBox (the host decides)", false),
    (0x6573_5546, "FUSE (a program decides)", false),
];

const OVERLAY: u32 = 0x794c_7630;

#[cfg(target_os = "linux")]
fn magic(directory: &File) -> Option<u32> {
    Some(rustix::fs::fstatfs(directory).ok()?.f_type as u32)
}

#[cfg(not(target_os = "linux"))]
fn magic(_: &File) -> Option<u32> {
    None
}

/// What the directory is on, for a message.
pub(super) fn file_system(directory: &File) -> String {
    let Some(magic) = magic(directory) else { return "an unknown file system".to_owned() };
    let known = FILE_SYSTEMS.iter().find(|(number, ..)| *number == magic);
    known.map_or_else(|| format!("file system {magic:#x}"), |(_, name, _)| (*name).to_owned())
}

/// The file system, if a returned `fdatasync` does not mean that power may fail.
fn weak_file_system(directory: &File) -> Option<String> {
    let magic = magic(directory)?;
    if magic == OVERLAY {
        return weak_overlay(directory);
    }
    let known = FILE_SYSTEMS.iter().find(|(number, ..)| *number == magic);
    known.filter(|(.., keeps)| !keeps).map(|(_, name, _)| (*name).to_owned())
}

/// An overlay hands a sync on to the file system of its upper directory, unless it was mounted not
/// to. Where the system does not say which directory that is (in a container it often lies outside),
/// it is taken to be a disk.
fn weak_overlay(directory: &File) -> Option<String> {
    let device = directory.metadata().ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let options = mount_options(&mounts, &format!("{major}:{minor}"))?;
    if options.split(',').any(|option| option == "volatile") {
        return Some("overlayfs mounted `volatile` (it does not sync)".to_owned());
    }
    let upper = options.split(',').find_map(|option| option.strip_prefix("upperdir="))?;
    let below = weak_file_system(&File::open(upper).ok()?)?;
    Some(format!("overlayfs above {below}"))
}

/// The options of the file system with this device number: the last field of its line in
/// `/proc/self/mountinfo` (proc(5)).
fn mount_options<'a>(mounts: &'a str, device: &str) -> Option<&'a str> {
    let mut lines = mounts.lines();
    let line = lines.find(|line| line.split(' ').nth(2) == Some(device))?;
    line.rsplit(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_of_a_mount_are_found_by_its_device() {
        let mounts = "\
            22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            40 22 0:45 / /o rw - overlay none rw,lowerdir=/a,upperdir=/b/c,workdir=/w,volatile\n";
        let options = mount_options(mounts, "0:45").expect("it is mounted");
        assert!(options.starts_with("rw,lowerdir=/a") && options.ends_with(",volatile"));
        assert_eq!(mount_options(mounts, "0:4"), None);
    }
}
