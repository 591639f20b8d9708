//! The crash explorer: what a crash may leave of a run, image by image, and the real recovery on
//! each.
//!
//! A run of the real log is recorded on a [`Tape`], a [`Medium`](quorate_pmem_log::Medium) that
//! writes down every store, persist, and change of names. [`explore`] then stops the run after each
//! operation, enumerates the images that the medium's contract allows there, and recovers from
//! each. What comes back must be the log before or after the operation in progress, with everything
//! acknowledged in it (the rule of PoWER, OSDI 2025), and must be a log to go on with. Recoveries
//! are recorded and crashed in turn, and so are theirs.
//!
//! # What a crash may leave
//! Every aligned unit (8 bytes of persistent memory, a sector of 512 bytes of a disk) that was
//! stored to and not persisted holds its durable value, or any of those that were stored since. A
//! change of names is durable when it returns; a file whose creation was interrupted may be short.
//! When only the process died, the next one sees everything, and the machine may still lose it.
//!
//! # What finds a missing flush
//! Every operation that makes something durable has a *site*. With a site suppressed, it makes
//! nothing durable: the explorer must find an image that brings back the wrong log. The tests
//! suppress every site of the log in turn, and compare the list with the calls in the source.
//!
//! # What it does not show
//! That a medium keeps its contract (its own tests and those on a real device do), nor what happens
//! when stored bytes change by themselves (`pmem-log/tests`, `fuzz`).
#![forbid(unsafe_code)]

mod disk;
mod explore;
pub mod log;
mod mutants;
mod random;
pub mod store;
mod tape;

pub use disk::{CrashModel, Disk, Image};
pub use explore::{
    Budget, Durable, Explorer, Figures, Subject, Violation, explore, medium, record,
};
pub use mutants::{Mutants, Reorder, Verdict, try_all};
pub use tape::{Event, Tape};
