//! Memory that others may write while we read: peers by their network card, or other threads.
//!
//! There is no reference to its bytes, for a reference promises that they hold still. Words are
//! loaded and stored as atomics; everything else is copied out first and looked at afterwards.

use core::sync::atomic::{AtomicU64, Ordering};
use memmap2::{MmapOptions, MmapRaw};
use std::io;
use std::sync::Arc;

/// Zeroed pages of this process, mapped until the last handle is dropped.
#[derive(Debug)]
pub struct SharedMemory {
    map: MmapRaw,
    length: usize,
}

impl SharedMemory {
    /// `length` zeroed bytes, from the beginning of a page.
    ///
    /// # Errors
    /// When the system has not got so much.
    pub fn new(length: usize) -> io::Result<Arc<Self>> {
        let whole = length.checked_next_multiple_of(size_of::<u64>());
        let whole = whole.filter(|whole| isize::try_from(*whole).is_ok());
        let whole = whole.ok_or(io::ErrorKind::OutOfMemory)?.max(size_of::<u64>());
        let map = MmapOptions::new().len(whole).map_anon()?.into();
        Ok(Arc::new(Self { map, length }))
    }

    /// In bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Where it is: what a device is told.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.map.as_mut_ptr().expose_provenance() as u64
    }

    /// Copies bytes out: any mixture of what was there before and after a write that lands
    /// meanwhile.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.check(offset, into.len());
        let from = self.map.as_ptr().wrapping_add(offset);
        // SAFETY: `copy_racing` wants both ranges mapped, and `into` to be ours alone. The source
        // was checked to be inside of the mapping, which lives as long as `self`; `into` is an
        // exclusive reference.
        unsafe { copy_racing(from, into.as_mut_ptr(), into.len()) };
    }

    /// Copies bytes in, while anybody may read or write there.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        let to = self.map.as_mut_ptr().wrapping_add(offset);
        // SAFETY: `copy_racing` wants both ranges mapped. The target was checked to be inside of
        // the mapping, which lives as long as `self`, and `from` is a reference.
        unsafe { copy_racing(from.as_ptr(), to, from.len()) };
    }

    /// Loads a little-endian word with acquire ordering.
    ///
    /// # Panics
    /// If `offset` is not a multiple of 8 or not inside.
    #[must_use]
    pub fn load(&self, offset: usize) -> u64 {
        u64::from_le(self.word(offset).load(Ordering::Acquire))
    }

    /// Stores a little-endian word with release ordering.
    ///
    /// # Panics
    /// If `offset` is not a multiple of 8 or not inside.
    pub fn store(&self, offset: usize, word: u64) {
        self.word(offset).store(word.to_le(), Ordering::Release);
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "a word begins at a multiple of 8, not at {offset}");
        self.check(offset, size_of::<u64>());
        let at = self.map.as_mut_ptr().wrapping_add(offset).cast::<u64>();
        // SAFETY: `from_ptr` wants an aligned pointer to memory that is valid for as long as the
        // reference, and no access that is not atomic beside it. It is inside of the mapping, which
        // `self` keeps; the mapping begins at a page; and every other access of this type is either
        // by atomics or by `copy_racing`, which the compiler cannot look into.
        unsafe { AtomicU64::from_ptr(at) }
    }

    fn check(&self, offset: usize, length: usize) {
        let end = offset.checked_add(length);
        assert!(
            end.is_some_and(|end| end <= self.length),
            "{length} bytes at {offset} of {}",
            self.length
        );
    }
}

/// Copies bytes of which either side may be read or written by others at the same time.
///
/// On x86-64 it is one instruction that the compiler does not see into, and means what so many
/// relaxed loads and stores of bytes mean; elsewhere, and under Miri, it is these.
///
/// # Safety
/// `from` is valid for reads and `to` for writes of `length` bytes, and they do not overlap. Where
/// one of them is not shared memory, nobody else touches it meanwhile.
pub(crate) unsafe fn copy_racing(from: *const u8, to: *mut u8, length: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: `rep movsb` reads `length` bytes from rsi and writes them to rdi, which the caller
    // promises to be valid; the direction flag is clear, as the calling convention demands; it
    // changes these three registers only.
    unsafe {
        core::arch::asm!(
            "rep movsb",
            inout("rcx") length => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    for at in 0..length {
        use core::sync::atomic::AtomicU8;
        // SAFETY: the caller promises `length` readable bytes, and `at` is below; a byte is aligned.
        let source = unsafe { AtomicU8::from_ptr(from.wrapping_add(at).cast_mut()) };
        // SAFETY: the caller promises `length` writable bytes, and `at` is below; a byte is aligned.
        let target = unsafe { AtomicU8::from_ptr(to.wrapping_add(at)) };
        target.store(source.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_words_come_back() {
        let memory = SharedMemory::new(100).unwrap();
        assert_eq!((memory.len(), memory.address() % 4096), (100, 0));
        memory.copy_in(3, b"quorate");
        let mut out = [0; 9];
        memory.copy_out(2, &mut out);
        assert_eq!(&out, b"\0quorate\0");
        memory.store(88, 0x1122_3344_5566_7788);
        memory.copy_out(88, &mut out);
        assert_eq!(out[..8], 0x1122_3344_5566_7788u64.to_le_bytes());
        assert_eq!(memory.load(88), 0x1122_3344_5566_7788);
    }

    #[test]
    fn what_is_not_inside_is_refused() {
        let memory = SharedMemory::new(100).unwrap();
        for offset in [93, 100, usize::MAX - 3] {
            let asked = std::panic::catch_unwind(|| memory.copy_out(offset, &mut [0; 8]));
            assert!(asked.is_err(), "{offset}");
        }
        assert!(std::panic::catch_unwind(|| memory.load(96)).is_err(), "beyond the end");
        assert!(std::panic::catch_unwind(|| memory.load(4)).is_err(), "unaligned");
        assert!(SharedMemory::new(usize::MAX).is_err());
    }

    #[test]
    fn a_word_is_never_torn() {
        let memory = SharedMemory::new(64).unwrap();
        let writer = Arc::clone(&memory);
        let thread = std::thread::spawn(move || {
            for round in 1..20_000u64 {
                writer.store(8, round * 0x0001_0001_0001_0001);
            }
        });
        let mut last = 0;
        while last < 19_999 {
            let word = memory.load(8);
            assert_eq!(word % 0x0001_0001_0001_0001, 0, "torn");
            assert!(word / 0x0001_0001_0001_0001 >= last, "backwards");
            last = word / 0x0001_0001_0001_0001;
        }
        thread.join().unwrap();
    }
}
