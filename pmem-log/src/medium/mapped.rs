//! Memory: mapped files written with stores and flushed by cache line, or anonymous mappings.
//!
//! The only unsafe code of the crate is the one block that views a mapping as atomic words. All
//! access is by relaxed 8-byte loads and stores, so that two threads (later: a peer's writes)
//! may touch the mapping at once and what they see is merely old or new, never undefined.

use super::directory::Directory;
use super::{Area, Medium, Profile};
use crate::api::MediumKind;
use crate::error::OpenError;
use crate::format::WORD_BYTES;
use memmap2::{MmapOptions, MmapRaw};
use quorate_ffi::cache;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The persistent-memory way of writing, over ordinary mapped files or over plain memory.
#[derive(Debug)]
pub struct MappedMedium {
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory(Directory),
    /// Kept by name, so that a log can be dropped and opened again within the process.
    Memory(Mutex<BTreeMap<String, Arc<MappedArea>>>),
}

impl MappedMedium {
    /// Opens and locks a directory of mapped files; makes it if it is missing.
    ///
    /// # Errors
    /// If it cannot be made or is in use.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let directory = Directory::open(directory, MediumKind::Emulated)?;
        Ok(Self { place: Place::Directory(directory) })
    }

    /// Areas in the memory of the process. They live as long as this value.
    #[must_use]
    pub fn memory() -> Self {
        Self { place: Place::Memory(Mutex::new(BTreeMap::new())) }
    }

    fn with_memory<T>(
        areas: &Mutex<BTreeMap<String, Arc<MappedArea>>>,
        act: impl FnOnce(&mut BTreeMap<String, Arc<MappedArea>>) -> T,
    ) -> T {
        // A thread that died in here left the map whole: each change is one call.
        act(&mut areas.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Medium for MappedMedium {
    fn profile(&self) -> Profile {
        let kind = match self.place {
            Place::Directory(_) => MediumKind::Emulated,
            Place::Memory(_) => MediumKind::Memory,
        };
        Profile { kind, alignment: WORD_BYTES, sync_thread: false, zero_fill: false }
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
            Place::Directory(directory) => {
                let map = MmapOptions::new().map_raw(&directory.open_file(name, true)?)?;
                Ok(Arc::new(MappedArea { map, flush: true }))
            }
            Place::Memory(areas) => {
                let area = Self::with_memory(areas, |areas| areas.get(name).cloned());
                Ok(area.ok_or(io::ErrorKind::NotFound)?)
            }
        }
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn Area>> {
        match &self.place {
            Place::Directory(directory) => {
                let map = MmapOptions::new().map_raw(&directory.create_file(name, bytes)?)?;
                Ok(Arc::new(MappedArea { map, flush: true }))
            }
            Place::Memory(areas) => {
                let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::StorageFull)?;
                let map = MmapOptions::new().len(length).map_anon()?.into();
                let area = Arc::new(MappedArea { map, flush: false });
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
    map: MmapRaw,
    /// Whether there is anything that outlives the process.
    flush: bool,
}

impl MappedArea {
    /// The whole mapping as words; a tail shorter than a word is left out.
    #[allow(unsafe_code)]
    fn words(&self) -> &[AtomicU64] {
        let words = self.map.len() / size_of::<AtomicU64>();
        let start = self.map.as_mut_ptr().cast::<AtomicU64>();
        // SAFETY: `from_raw_parts` wants aligned, initialized memory, valid for reads for as long
        // as the slice lives, and mutated only through it. The mapping begins at a page, so it is
        // aligned; every bit pattern is a u64; it stays mapped until `self`, which the slice
        // borrows, is dropped; and atomics may be changed by anybody, other processes included.
        // That no other process shortens the file, which would end this one by a signal, is what
        // the directory's lock is for.
        unsafe { std::slice::from_raw_parts(start, words) }
    }

    fn range(&self, offset: u64, bytes: usize) -> io::Result<&[AtomicU64]> {
        debug_assert!(offset.is_multiple_of(WORD_BYTES), "unaligned access at {offset}");
        let first = usize::try_from(offset / WORD_BYTES).unwrap_or(usize::MAX);
        let count = bytes.div_ceil(size_of::<AtomicU64>());
        let end = first.checked_add(count);
        let words = end.and_then(|end| self.words().get(first..end));
        words.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Area for MappedArea {
    fn bytes(&self) -> u64 {
        size_of_val(self.words()) as u64
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
        let (chunks, rest) = bytes.as_chunks::<8>();
        for (chunk, word) in chunks.iter().zip(words) {
            word.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
        }
        if let (false, Some(word)) = (rest.is_empty(), words.last()) {
            let mut chunk = [0; 8];
            chunk[..rest.len()].copy_from_slice(rest);
            word.store(u64::from_ne_bytes(chunk), Ordering::Relaxed);
        }
        Ok(())
    }

    fn persist(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if self.flush {
            let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
            cache::write_back(self.range(offset, length)?);
            cache::fence();
        }
        Ok(())
    }
}
