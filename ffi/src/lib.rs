//! The audited boundary of Quorate: what the language cannot say by itself.
//!
//! * [`cache`]: stores that leave the cache for memory, which persistent memory needs and for which
//!   the standard library has no intrinsic.
//! * `verbs` (feature `rdma`): safe objects over libibverbs, which is loaded when it is asked for;
//!   and `memory`, which peers may write while we read.
//! * `fake` (feature `fake-verbs`): a device of the mind behind the same functions, so that all that
//!   stands on the verbs is tested where there is no device.
//!
//! Nothing in here decides anything; policy belongs to the callers. Each `unsafe` block states what
//! it owes and why that holds; `docs/unsafe-ledger.md` lists them all.

pub mod cache;
#[cfg(feature = "fake-verbs")]
pub mod fake;
#[cfg(feature = "rdma")]
pub mod memory;
#[cfg(feature = "rdma")]
mod sys;
#[cfg(feature = "rdma")]
pub mod verbs;
