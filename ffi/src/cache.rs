//! Cache-line write-back and the store fence: how stores reach the persistence domain.
//!
//! On x86-64 a store to persistent memory is durable once its cache line was written back
//! (`clwb`, `clflushopt` or `clflush`) and a store fence followed (Intel SDM volume 1, section
//! 12.9; with eADR the write-back is free but harmless). On AArch64 the pair is `dc cvac` (to the
//! point of coherency; the point of persistence needs `dc cvap`, which only some cores have) and
//! `dsb`. Elsewhere there is no instruction that an ordinary program may use, and
//! [`Instruction::FenceOnly`] says so.
//!
//! The functions are safe: they take the memory as a slice of atomics, so it is mapped and
//! readable, and writing a line back changes nothing that the program can observe.

use core::fmt;
use core::sync::atomic::AtomicU64;
use std::sync::OnceLock;

/// The size of a cache line on every processor named above, in bytes.
pub const LINE_BYTES: usize = 64;

/// How this processor writes a cache line back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Instruction {
    /// `clwb`: written back, the line may stay in the cache.
    Clwb,
    /// `clflushopt`: written back and evicted, unordered among lines.
    ClflushOpt,
    /// `clflush`: written back and evicted, one line after the other.
    Clflush,
    /// `dc cvac`: cleaned to the point of coherency.
    DcCvac,
    /// No such instruction is known here: only a fence is issued, and nothing more than the death
    /// of the process is survived.
    FenceOnly,
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clwb => "clwb",
            Self::ClflushOpt => "clflushopt",
            Self::Clflush => "clflush",
            Self::DcCvac => "dc cvac",
            Self::FenceOnly => "fence only",
        })
    }
}

/// The best instruction that this processor has; looked up once.
pub fn instruction() -> Instruction {
    static FOUND: OnceLock<Instruction> = OnceLock::new();
    *FOUND.get_or_init(machine::detect)
}

/// Writes back every cache line that `memory` touches. Only a following [`fence`] makes it
/// certain that they arrived.
pub fn write_back(memory: &[AtomicU64]) {
    write_back_with(instruction(), memory);
}

/// Orders everything before it, write-backs included, before every later store.
pub fn fence() {
    machine::fence();
}

fn write_back_with(instruction: Instruction, memory: &[AtomicU64]) {
    if memory.is_empty() {
        return;
    }
    let bounds = memory.as_ptr_range();
    let last = bounds.end as usize - 1;
    let mut line = bounds.start as usize & !(LINE_BYTES - 1);
    while line <= last {
        machine::write_back_line(instruction, line);
        line += LINE_BYTES;
    }
}

#[cfg(target_arch = "x86_64")]
mod machine {
    use super::Instruction;
    use core::arch::asm;
    use core::arch::x86_64::{__cpuid, __cpuid_count, _mm_sfence};

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
    use super::Instruction;
    use core::arch::asm;

    pub(super) fn detect() -> Instruction {
        Instruction::DcCvac
    }

    /// `line` is an address within a line of memory that the caller of the module borrowed.
    pub(super) fn write_back_line(_: Instruction, line: usize) {
        // SAFETY: cleaning a mapped line changes nothing observable; the borrowed slice guarantees
        // that it is mapped, and Linux lets programs use the instruction (SCTLR_EL1.UCI).
        unsafe { asm!("dc cvac, {}", in(reg) line, options(nostack, preserves_flags)) }
    }

    pub(super) fn fence() {
        // SAFETY: a barrier without operands.
        unsafe { asm!("dsb ish", options(nostack, preserves_flags)) }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod machine {
    use super::Instruction;
    use core::sync::atomic::{Ordering, fence as atomic_fence};

    pub(super) fn detect() -> Instruction {
        Instruction::FenceOnly
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

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_oldest_instruction_works_on_every_processor() {
        let memory: Vec<AtomicU64> = (0..100).map(AtomicU64::new).collect();
        write_back_with(Instruction::Clflush, &memory);
        fence();
        assert_eq!(memory[99].load(Ordering::Relaxed), 99);
        assert_ne!(instruction(), Instruction::FenceOnly);
    }
}
