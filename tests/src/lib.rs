//! Cross-crate tests: protocol scenarios, random walks.
#![forbid(unsafe_code)]

pub mod script;
