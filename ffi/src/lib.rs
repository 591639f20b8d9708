//! The audited boundary of Quorate: what the language cannot say by itself.
//!
//! Today that is one thing: writing cache lines back to memory ([`cache`]), which persistent
//! memory needs and for which the standard library has no intrinsic. Nothing in here decides
//! anything; policy belongs to the callers. Each `unsafe` block states what it owes and why that
//! holds.

pub mod cache;
