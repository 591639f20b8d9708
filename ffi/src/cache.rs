//! How stores reach the persistence domain: cache-line write-back, non-temporal stores and the
//! store fence.
//!
//! On x86-64 a store to persistent memory is durable once its cache line was written back
//! (`clwb`, `clflushopt` or `clflush`), or the store went past the cache (`movnti`, `movntdq`), and
//! a store fence followed (Intel SDM volume 1, section 12.9 and 10.4.6.2; with eADR the write-back
//! is free but harmless). On AArch64 the pair is `dc cvap` (to the point of persistence, ARMv8.2)
//! and `dsb`; cores without it have `dc cvac` (to the point of coherency), which promises less.
//! Elsewhere there is no instruction that an ordinary program may use.
//! [`Instruction::reaches_persistence`] tells the two apart.
//!
//! The functions are safe: they take the memory as a slice of atomics, so it is mapped and
//! readable, and writing a line back changes nothing that the program can observe.

use core::cell::Cell;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

/// The size of a cache line on every processor named above, in bytes.
pub const LINE_BYTES: usize = 64;

/// The size of an [`AtomicU64`].
const WORD_BYTES: usize = size_of::<AtomicU64>();

/// How this processor writes a cache line back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Instruction {
    /// `clwb`: written back, the line may stay in the cache.
    Clwb,
    /// `clflushopt`: written back and evicted, unordered among lines.
    ClflushOpt,
    /// `clflush`: written back and evicted, one line after the other.
    Clflush,
    /// `dc cvap`: cleaned to the point of persistence.
    DcCvap,
    /// `dc cvac`: cleaned to the point of coherency, which may be short of persistence.
    DcCvac,
    /// No such instruction is known here: only a fence is issued, and nothing more than the death
    /// of the process is survived.
    FenceOnly,
}

impl Instruction {
    /// Whether what it wrote back, and a fence followed, is in the persistence domain of a machine
    /// that has one.
    #[must_use]
    pub const fn reaches_persistence(self) -> bool {
        matches!(self, Self::Clwb | Self::ClflushOpt | Self::Clflush | Self::DcCvap)
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clwb => "clwb",
            Self::ClflushOpt => "clflushopt",
            Self::Clflush => "clflush",
            Self::DcCvap => "dc cvap",
            Self::DcCvac => "dc cvac",
            Self::FenceOnly => "fence only",
        })
    }
}

/// What the calling thread did since it began: for tests that hold a count to a promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Store fences.
    pub fences: u64,
    /// Cache lines written back by instruction.
    pub lines_written_back: u64,
    /// Bytes given to [`store_through`].
    pub bytes_stored_through: u64,
}

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts {
        fences: 0,
        lines_written_back: 0,
        bytes_stored_through: 0,
    }) };
}

fn count(change: impl FnOnce(&mut Counts)) {
    COUNTS.with(|cell| {
        let mut counts = cell.get();
        change(&mut counts);
        cell.set(counts);
    });
}

/// The counters of this thread.
#[must_use]
pub fn counts() -> Counts {
    COUNTS.with(Cell::get)
}

/// The best instruction that this processor has; looked up once.
pub fn instruction() -> Instruction {
    static FOUND: OnceLock<Instruction> = OnceLock::new();
    *FOUND.get_or_init(machine::detect)
}

/// Stores `bytes` into the first words of `memory`, with zeros to the end of the last one, and sends
/// them on their way to the persistence domain. Only a following [`fence`] makes it certain that
/// they arrived.
///
/// On x86-64 these are non-temporal stores: they need no write-back, and do not fetch the line
/// before they replace it. Elsewhere they are stores with a write-back behind them.
///
/// This thread sees them at once. Another one may be told of them only after a [`fence`] here:
/// non-temporal stores are not ordered by a releasing store.
///
/// # Panics
/// If `memory` is too short.
pub fn store_through(memory: &[AtomicU64], bytes: &[u8]) {
    let memory = &memory[..bytes.len().div_ceil(WORD_BYTES)];
    count(|counts| counts.bytes_stored_through += bytes.len() as u64);
    machine::store_through(memory, bytes);
}

/// Stores `bytes` as [`store_through`] does, and leaves them in the cache.
///
/// # Panics
/// If `memory` is too short.
pub fn store(memory: &[AtomicU64], bytes: &[u8]) {
    let memory = &memory[..bytes.len().div_ceil(WORD_BYTES)];
    let (chunks, rest) = bytes.as_chunks::<WORD_BYTES>();
    for (chunk, word) in chunks.iter().zip(memory) {
        word.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
    }
    if let (false, Some(word)) = (rest.is_empty(), memory.last()) {
        word.store(padded(rest), Ordering::Relaxed);
    }
}

/// A last word that is not full.
fn padded(rest: &[u8]) -> u64 {
    let mut word = [0; WORD_BYTES];
    word[..rest.len()].copy_from_slice(rest);
    u64::from_ne_bytes(word)
}

/// Writes back every cache line that `memory` touches. Only a following [`fence`] makes it
/// certain that they arrived.
pub fn write_back(memory: &[AtomicU64]) {
    write_back_with(instruction(), memory);
}

/// Writes back every cache line of ordinary memory, for comparisons: see [`write_back`].
pub fn write_back_bytes(memory: &[u8]) {
    let bounds = memory.as_ptr_range();
    write_back_lines(instruction(), bounds.start as usize..bounds.end as usize);
}

/// Orders everything before it, write-backs and non-temporal stores included, before every later
/// store.
pub fn fence() {
    count(|counts| counts.fences += 1);
    machine::fence();
}

fn write_back_with(instruction: Instruction, memory: &[AtomicU64]) {
    let bounds = memory.as_ptr_range();
    write_back_lines(instruction, bounds.start as usize..bounds.end as usize);
}

/// The addresses are those of memory that the caller borrowed.
fn write_back_lines(instruction: Instruction, addresses: Range<usize>) {
    if addresses.is_empty() {
        return;
    }
    let last = addresses.end - 1;
    let first = addresses.start & !(LINE_BYTES - 1);
    for line in (first..=last).step_by(LINE_BYTES) {
        machine::write_back_line(instruction, line);
    }
    let lines = (last - first) / LINE_BYTES + 1;
    count(|counts| counts.lines_written_back += lines as u64);
}

#[cfg(target_arch = "x86_64")]
mod machine {
    use super::{Instruction, LINE_BYTES, WORD_BYTES, padded};
    use core::arch::asm;
    use core::arch::x86_64::{__cpuid, __cpuid_count, _mm_sfence};
    use core::sync::atomic::AtomicU64;

    /// The words of a line.
    const LINE_WORDS: usize = LINE_BYTES / WORD_BYTES;

    /// Whole lines with four stores of 16 bytes, what is before the first and behind the last word
    /// by word: a line that is replaced as a whole is not fetched.
    pub(super) fn store_through(memory: &[AtomicU64], bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<WORD_BYTES>();
        let misplaced = memory.as_ptr() as usize % LINE_BYTES / WORD_BYTES;
        let before = ((LINE_WORDS - misplaced) % LINE_WORDS).min(words.len());
        let (head, words) = words.split_at(before);
        let (memory_head, memory) = memory.split_at(before);
        for (word, at) in head.iter().zip(memory_head) {
            stream_word(at, u64::from_ne_bytes(*word));
        }
        let (lines, tail) = words.as_chunks::<LINE_WORDS>();
        let (memory_lines, memory) = memory.split_at(lines.len() * LINE_WORDS);
        for (line, at) in lines.iter().zip(memory_lines.as_chunks::<LINE_WORDS>().0) {
            stream_line(at, line);
        }
        for (word, at) in tail.iter().zip(memory) {
            stream_word(at, u64::from_ne_bytes(*word));
        }
        if let (false, Some(at)) = (rest.is_empty(), memory.last()) {
            stream_word(at, padded(rest));
        }
    }

    fn stream_word(at: &AtomicU64, word: u64) {
        let at = at.as_ptr();
        // SAFETY: `movnti` needs 8 writable bytes, which the borrowed atomic guarantees; being
        // aligned, they change at once, as an atomic's bytes must. It is part of SSE2, which every
        // x86-64 processor has, and changes no register or flag. That it is not ordered by later
        // releasing stores is what `store_through` tells its caller.
        unsafe {
            asm!("movnti [{}], {}", in(reg) at, in(reg) word, options(nostack, preserves_flags))
        }
    }

    /// `at` begins a line: `movntdq` wants its 16 bytes aligned.
    fn stream_line(at: &[AtomicU64; LINE_WORDS], line: &[[u8; WORD_BYTES]; LINE_WORDS]) {
        debug_assert!((at.as_ptr() as usize).is_multiple_of(LINE_BYTES), "not a line");
        let (to, from) = (at.as_ptr(), line.as_ptr());
        // SAFETY: reads the 64 bytes of `line`, which need no alignment, and writes the 64 bytes of
        // `at`, which begin a line as all callers see to. The borrowed atomics guarantee that they
        // are mapped and may change under a shared borrow; each aligned word of a 16-byte store
        // changes at once on every processor that has the instruction (SSE2, so all), for stores go
        // to memory by whole aligned words. For the ordering see `stream_word`.
        unsafe {
            asm!(
                "movdqu {a}, [{from}]",
                "movdqu {b}, [{from} + 16]",
                "movdqu {c}, [{from} + 32]",
                "movdqu {d}, [{from} + 48]",
                "movntdq [{to}], {a}",
                "movntdq [{to} + 16], {b}",
                "movntdq [{to} + 32], {c}",
                "movntdq [{to} + 48], {d}",
                from = in(reg) from,
                to = in(reg) to,
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                c = out(xmm_reg) _,
                d = out(xmm_reg) _,
                options(nostack, preserves_flags),
            )
        }
    }

    /// Leaf 7, register EBX (Intel SDM volume 2, CPUID).
    const CLFLUSHOPT: u32 = 1 << 23;
    const CLWB: u32 = 1 << 24;

    pub(super) fn detect() -> Instruction {
        if __cpuid(0).eax < 7 {
            return Instruction::Clflush; // Part of SSE2, which every x86-64 has.
        }
        let features = __cpuid_count(7, 0).ebx;
        if features & CLWB != 0 {
            Instruction::Clwb
        } else if features & CLFLUSHOPT != 0 {
            Instruction::ClflushOpt
        } else {
            Instruction::Clflush
        }
    }

    /// `line` is an address within a line of memory that the caller of the module borrowed.
    pub(super) fn write_back_line(instruction: Instruction, line: usize) {
        match instruction {
            Instruction::Clwb => {
                // SAFETY: the instruction needs a mapped address, which the borrowed slice
                // guarantees for its lines (a page holds whole lines), and a processor that has
                // it, which `detect` found. It changes no register, flag or byte of memory.
                unsafe { asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags)) }
            }
            Instruction::ClflushOpt => {
                // SAFETY: as for `clwb` above.
                unsafe { asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags)) }
            }
            _ => {
                // SAFETY: as for `clwb` above; every x86-64 processor has `clflush`.
                unsafe { asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags)) }
            }
        }
    }

    pub(super) fn fence() {
        // SAFETY: `sfence` is part of SSE, which every x86-64 has; it has no operand.
        unsafe { _mm_sfence() }
    }
}

#[cfg(target_arch = "aarch64")]
mod machine {
    use super::{Instruction, instruction, store, write_back_with};
    use core::arch::asm;
    use core::sync::atomic::AtomicU64;

    pub(super) fn detect() -> Instruction {
        match std::arch::is_aarch64_feature_detected!("dpb") {
            true => Instruction::DcCvap,
            false => Instruction::DcCvac,
        }
    }

    pub(super) fn store_through(memory: &[AtomicU64], bytes: &[u8]) {
        store(memory, bytes);
        write_back_with(instruction(), memory);
    }

    /// `line` is an address within a line of memory that the caller of the module borrowed.
    pub(super) fn write_back_line(instruction: Instruction, line: usize) {
        if instruction == Instruction::DcCvap {
            // SAFETY: `dc cvap`, by its encoding, as the assembler knows the name only for targets
            // that all have it; `detect` found it here. Otherwise as for `dc cvac` below.
            unsafe {
                asm!("sys #3, c7, c12, #1, {}", in(reg) line, options(nostack, preserves_flags))
            }
        } else {
            // SAFETY: cleaning a mapped line changes nothing observable; the borrowed slice
            // guarantees that it is mapped, and Linux lets programs use the instruction
            // (SCTLR_EL1.UCI).
            unsafe { asm!("dc cvac, {}", in(reg) line, options(nostack, preserves_flags)) }
        }
    }

    pub(super) fn fence() {
        // SAFETY: a barrier without operands.
        unsafe { asm!("dsb sy", options(nostack, preserves_flags)) }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod machine {
    use super::{Instruction, store};
    use core::sync::atomic::{AtomicU64, Ordering, fence as atomic_fence};

    pub(super) fn detect() -> Instruction {
        Instruction::FenceOnly
    }

    pub(super) fn store_through(memory: &[AtomicU64], bytes: &[u8]) {
        store(memory, bytes);
    }

    pub(super) fn write_back_line(_: Instruction, _: usize) {}

    pub(super) fn fence() {
        atomic_fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering;

    #[test]
    fn written_back_memory_reads_as_it_was_stored() {
        let memory: Vec<AtomicU64> = (0..1000).map(AtomicU64::new).collect();
        for range in [0..1000, 0..0, 3..4, 7..9, 999..1000] {
            write_back(&memory[range]);
        }
        fence();
        for (index, word) in memory.iter().enumerate() {
            assert_eq!(word.load(Ordering::Relaxed), index as u64);
        }
    }

    /// Words that begin at a line.
    fn lines() -> (Vec<AtomicU64>, usize) {
        let words: Vec<_> = (0..4096).map(|_| AtomicU64::new(u64::MAX)).collect();
        let misplaced = words.as_ptr() as usize % LINE_BYTES / WORD_BYTES;
        (words, (8 - misplaced) % 8)
    }

    #[test]
    fn both_ways_of_storing_store_the_same_at_every_alignment_and_length() {
        let (words, line) = lines();
        let bytes: Vec<u8> = (0..700).map(|number: usize| (number * 31 % 251) as u8).collect();
        for way in [store, store_through] {
            for start in (0..8).map(|word| line + word) {
                for length in (0..200).chain([255, 256, 600, 700]) {
                    words.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
                    way(&words[start..], &bytes[..length]);
                    fence();
                    let seen: Vec<u8> = words
                        .iter()
                        .flat_map(|w| w.load(Ordering::Relaxed).to_ne_bytes())
                        .collect();
                    let from = start * WORD_BYTES;
                    let (to, end) = (from + length, from + length.next_multiple_of(WORD_BYTES));
                    assert_eq!(seen[from..to], bytes[..length], "{length} bytes at word {start}");
                    assert!(seen[to..end].iter().all(|byte| *byte == 0), "padding at {length}");
                    let others = seen[..from].iter().chain(&seen[end..]);
                    assert!(others.copied().all(|byte| byte == 0xff), "{length} at {start}");
                }
            }
        }
    }

    #[test]
    fn fences_lines_and_bytes_are_counted() {
        let (words, line) = lines();
        let before = counts();
        store_through(&words[line..], &[1; 100]);
        write_back(&words[line + 7..line + 9]);
        fence();
        let after = counts();
        assert_eq!(after.fences - before.fences, 1);
        assert_eq!(after.bytes_stored_through - before.bytes_stored_through, 100);
        let own = if cfg!(target_arch = "aarch64") { 2 } else { 0 };
        assert_eq!(after.lines_written_back - before.lines_written_back, 2 + own);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_instruction_that_this_processor_has_works() {
        let order = [Instruction::Clflush, Instruction::ClflushOpt, Instruction::Clwb];
        let best = order.iter().position(|it| *it == instruction()).expect("x86-64 has one");
        let memory: Vec<AtomicU64> = (0..100).map(AtomicU64::new).collect();
        for instruction in &order[..=best] {
            assert!(instruction.reaches_persistence());
            write_back_with(*instruction, &memory);
            fence();
            assert_eq!(memory[99].load(Ordering::Relaxed), 99);
        }
        assert!(!Instruction::FenceOnly.reaches_persistence());
    }
}
