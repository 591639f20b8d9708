//! A mapping of a file, or of plain memory: the only unsafe code of the crate.
//!
//! What is mapped is seen as atomic words only, so that two threads (later: a peer's writes) may
//! touch it at once and what they see is merely old or new, never undefined.

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Mapped, readable and writable memory; unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    /// The first byte, at the beginning of a page; dangling, but aligned, if there is none.
    start: NonNull<AtomicU64>,
    /// In bytes.
    length: usize,
}

// SAFETY: the mapping belongs to this value alone and to no thread: it may be unmapped by any.
#[allow(unsafe_code)]
unsafe impl Send for Mapping {}
// SAFETY: all that a shared borrow gives is a slice of atomics, which threads may share.
#[allow(unsafe_code)]
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The whole file through the page cache: what is stored survives the process.
    pub(super) fn cached(file: &File) -> io::Result<Self> {
        Self::of_file(file, MapFlags::SHARED)
    }

    /// The whole file without a page cache between, and with the promise of the file system that
    /// its own records about a page are durable before a store to that page succeeds (`MAP_SYNC`,
    /// mmap(2)). Refused with `EOPNOTSUPP` where that cannot be had.
    #[cfg(target_os = "linux")]
    pub(super) fn synchronous(file: &File) -> io::Result<Self> {
        // Old kernels ignore flags that they do not know, but for this type of mapping.
        Self::of_file(file, MapFlags::SHARED_VALIDATE | MapFlags::SYNC)
    }

    /// There is no such mapping here.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn synchronous(_: &File) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Zeros of the process's own.
    #[allow(unsafe_code)]
    pub(super) fn anonymous(length: usize) -> io::Result<Self> {
        let (null, protection) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: without `MAP_FIXED` the system chooses a place where nothing is, so no memory that
        // anybody knows of is touched.
        let start = unsafe { mmap_anonymous(null, length, protection, MapFlags::PRIVATE) }?;
        Self::at(start.cast(), length)
    }

    #[allow(unsafe_code)]
    fn of_file(file: &File, flags: MapFlags) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if length == 0 {
            // The system maps nothing of an empty file.
            return Ok(Self { start: NonNull::dangling(), length });
        }
        let (null, protection) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: as for `anonymous`: without `MAP_FIXED` no memory in use is touched.
        let start = unsafe { mmap(null, length, protection, flags, file, 0) }?;
        Self::at(start.cast(), length)
    }

    fn at(start: *mut AtomicU64, length: usize) -> io::Result<Self> {
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    /// All of it as words; a tail shorter than a word is left out.
    #[allow(unsafe_code)]
    pub(super) fn words(&self) -> &[AtomicU64] {
        let words = self.length / size_of::<AtomicU64>();
        // SAFETY: `from_raw_parts` wants aligned, initialized memory, valid for reads for as long
        // as the slice lives, and mutated only through it. The mapping begins at a page, so it is
        // aligned (as is the dangling pointer of no words); every bit pattern is a u64; it stays
        // mapped until `self`, which the slice borrows, is dropped; and atomics may be changed by
        // anybody, other processes included. That no other process shortens the file, which would
        // end this one by a signal, is what the directory's lock is for.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), words) }
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        if self.length == 0 {
            return;
        }
        // SAFETY: this is what `mmap` returned, whole, and nobody has it any more: every slice of it
        // borrowed `self`.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "what was mapped can be unmapped: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn an_empty_file_maps_as_no_words() {
        let file = tempfile::tempfile().expect("a temporary file");
        assert!(Mapping::cached(&file).expect("nothing to map").words().is_empty());
    }

    #[test]
    fn what_is_stored_through_one_mapping_is_seen_by_another_and_a_rest_is_left_out() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(8 * 1000 + 5).expect("sets");
        let [one, two] = [(); 2].map(|()| Mapping::cached(&file).expect("maps"));
        assert_eq!(one.words().len(), 1000);
        one.words()[999].store(7, Ordering::Relaxed);
        assert_eq!(two.words()[999].load(Ordering::Relaxed), 7);
    }
}
