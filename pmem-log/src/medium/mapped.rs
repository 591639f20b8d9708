//! Memory: persistent memory or ordinary files, mapped and written with stores that go past the
//! cache, or plain memory.

use super::ahead::Ahead;
use super::directory::{Directory, file_system, refused};
use super::mapping::Mapping;
use super::{Area, Boot, Medium, Profile};
use crate::api::MediumKind;
use crate::error::OpenError;
use crate::format::WORD_BYTES;
use quorate_ffi::cache;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// No page of memory is smaller.
const PAGE_BYTES: usize = 4096;

/// The persistent-memory way of writing: over persistent memory, over ordinary mapped files, or over
/// plain memory.
#[derive(Debug)]
pub struct MappedMedium {
    kind: MediumKind,
    place: Place,
    boot: Boot,
}

#[derive(Debug)]
enum Place {
    Directory(Directory),
    /// Kept by name, so that a log can be dropped and opened again within the process.
    Memory(Mutex<BTreeMap<String, Arc<MappedArea>>>),
}

impl MappedMedium {
    /// Opens and locks a directory of files that are mapped through the page cache; makes it if it is
    /// missing.
    ///
    /// # Errors
    /// If it cannot be made or is in use, or if the system does not tell one life of this machine
    /// from the next, which is what the page cache does not survive.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Self::open_in(directory, Boot::current()?)
    }

    /// As [`MappedMedium::open`], in a life of the machine that the caller names. For tests.
    ///
    /// # Errors
    /// If it cannot be made or is in use.
    pub fn open_in(directory: &Path, boot: Boot) -> Result<Self, OpenError> {
        let kind = MediumKind::Emulated;
        let directory = Directory::open(directory, kind)?;
        Ok(Self { kind, place: Place::Directory(directory), boot })
    }

    /// Opens and locks a directory of files that are persistent memory; makes it if it is missing.
    ///
    /// # Errors
    /// If it cannot be made, is in use, or is on anything but a DAX file system that grants
    /// `MAP_SYNC`, or if this processor cannot write cache lines back to persistence.
    pub fn dax(directory: &Path) -> Result<Self, OpenError> {
        let kind = MediumKind::Dax;
        let opened = Directory::open(directory, kind)?;
        check_dax(directory, &opened)?;
        Ok(Self { kind, place: Place::Directory(opened), boot: Boot::default() })
    }

    /// Areas in the memory of the process. They live as long as this value.
    #[must_use]
    pub fn memory() -> Self {
        let place = Place::Memory(Mutex::new(BTreeMap::new()));
        Self { kind: MediumKind::Memory, place, boot: Boot::default() }
    }

    fn with_memory<T>(
        areas: &Mutex<BTreeMap<String, Arc<MappedArea>>>,
        act: impl FnOnce(&mut BTreeMap<String, Arc<MappedArea>>) -> T,
    ) -> T {
        // A thread that died in here left the map whole: each change is one call.
        act(&mut areas.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn map(&self, file: &File, ahead: Option<Ahead>) -> io::Result<Arc<dyn Area>> {
        let map = match self.kind {
            MediumKind::Dax => Mapping::synchronous(file)?,
            _ => Mapping::cached(file)?,
        };
        Ok(Arc::new(MappedArea { map, outlives: true, ahead }))
    }
}

/// Makes sure that a store that was flushed and fenced survives a power failure.
fn check_dax(path: &Path, directory: &Directory) -> Result<(), OpenError> {
    let not_dax = |why: String| {
        let (directory, filesystem) = (path.to_owned(), file_system(directory.handle()));
        Err(OpenError::NotDax { directory, filesystem, why })
    };
    let instruction = cache::instruction();
    if !instruction.reaches_persistence() {
        return not_dax(format!("this processor has no way to persistence ({instruction})"));
    }
    // That the system grants this mapping is the proof; a mount option only hints at it.
    let mapped = directory.nameless_file(PROBE_BYTES).and_then(|file| Mapping::synchronous(&file));
    match mapped {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            not_dax("it refuses MAP_SYNC".to_owned())
        }
        // What kernels before 4.15 say.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            not_dax("the system does not know MAP_SYNC".to_owned())
        }
        Err(source) => Err(refused("try MAP_SYNC in", path, source)),
    }
}

/// Large enough not to be kept within a file's own record, where it could not be mapped.
const PROBE_BYTES: u64 = 4096;

impl Medium for MappedMedium {
    fn profile(&self) -> Profile {
        Profile { kind: self.kind, alignment: WORD_BYTES, sync_thread: false, zero_fill: false }
    }

    fn boot(&self) -> Boot {
        self.boot
    }

    fn path(&self, name: &str) -> PathBuf {
        match &self.place {
            Place::Directory(directory) => directory.path(name),
            Place::Memory(_) => Path::new("memory:").join(name),
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        match &self.place {
            Place::Directory(directory) => directory.names(),
            Place::Memory(areas) => {
                Ok(Self::with_memory(areas, |areas| areas.keys().cloned().collect()))
            }
        }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Area>> {
        match &self.place {
            Place::Directory(directory) => self.map(&directory.open_file(name, true)?, None),
            Place::Memory(areas) => {
                let area = Self::with_memory(areas, |areas| areas.get(name).cloned());
                Ok(area.ok_or(io::ErrorKind::NotFound)?)
            }
        }
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn Area>> {
        match &self.place {
            Place::Directory(directory) => {
                // A block that was never written is only reserved: on DAX the first store to each
                // page of it would wait for the file system to note and sync that.
                let zeros = self.kind == MediumKind::Dax;
                let file = directory.create_file(name, bytes, zeros)?;
                // Without another handle it is only slower.
                let ahead = file.try_clone().ok().filter(|_| !zeros);
                self.map(&file, ahead.map(|file| Ahead::of(file, bytes)))
            }
            Place::Memory(areas) => {
                let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::StorageFull)?;
                let map = Mapping::anonymous(length)?;
                let area = Arc::new(MappedArea { map, outlives: false, ahead: None });
                Self::with_memory(areas, |areas| areas.insert(name.to_owned(), Arc::clone(&area)));
                Ok(area)
            }
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match &self.place {
            Place::Directory(directory) => directory.rename(from, to),
            Place::Memory(areas) => Self::with_memory(areas, |areas| {
                let area = areas.remove(from).ok_or(io::ErrorKind::NotFound)?;
                areas.insert(to.to_owned(), area);
                Ok(())
            }),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match &self.place {
            Place::Directory(directory) => directory.remove(name),
            Place::Memory(areas) => {
                let removed = Self::with_memory(areas, |areas| areas.remove(name));
                removed.map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }
}

#[derive(Debug)]
struct MappedArea {
    map: Mapping,
    /// Whether there is anything that outlives the process.
    outlives: bool,
    /// For a file of the page cache that this process made.
    ahead: Option<Ahead>,
}

impl MappedArea {
    fn range(&self, offset: u64, bytes: usize) -> io::Result<&[AtomicU64]> {
        debug_assert!(offset.is_multiple_of(WORD_BYTES), "unaligned access at {offset}");
        let first = usize::try_from(offset / WORD_BYTES).unwrap_or(usize::MAX);
        let count = bytes.div_ceil(size_of::<AtomicU64>());
        let end = first.checked_add(count);
        let words = end.and_then(|end| self.map.words().get(first..end));
        words.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Area for MappedArea {
    fn bytes(&self) -> u64 {
        size_of_val(self.map.words()) as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let words = self.range(offset, into.len())?;
        for (chunk, word) in into.chunks_mut(size_of::<AtomicU64>()).zip(words) {
            let bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let words = self.range(offset, bytes.len())?;
        if let Some(ahead) = &self.ahead {
            ahead.reach(offset + bytes.len() as u64)?;
        }
        match self.outlives {
            true => cache::store_through(words, bytes),
            false => cache::store(words, bytes),
        }
        Ok(())
    }

    /// One fence: all that was written went past the cache.
    fn persist(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        self.range(offset, length)?;
        if self.outlives {
            cache::fence();
        }
        Ok(())
    }

    /// The first store to each page of a mapped file stops for the file system to find it.
    fn touch(&self) {
        if let Some(ahead) = &self.ahead {
            // A write that needs it says what is wrong.
            let _ = ahead.reach(self.bytes());
        }
        if self.outlives {
            for word in self.map.words().iter().step_by(PAGE_BYTES / size_of::<AtomicU64>()) {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    fn adopt(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let words = self.range(offset, length)?;
        if self.outlives {
            cache::write_back(words);
            cache::fence();
        }
        Ok(())
    }
}
