//! The parts of the `quorate` server: a linearizable, durable key-value store that speaks the Redis
//! protocol.

#![forbid(unsafe_code)]

pub mod kv;
pub mod resp;
