//! The key-value state machine: deterministic, in memory, with replicated time.
//!
//! It knows nothing of Redis' wire protocol, of sockets or of consensus. A [`Command`] comes in as
//! bytes, a reply goes out as bytes ([`Token`]s); the [`Store`] is between them. Two stores that
//! applied the same commands with the same time stamps are equal in every observable way, on every
//! machine: hashes have fixed seeds, buckets a canonical order, and decimals are added in fixed
//! point.

mod bucket;
mod checkpoint;
mod command;
pub mod frame;
pub mod glob;
mod hash;
mod items;
mod keys;
mod number;
mod reply;
mod store;
mod strings;
#[cfg(test)]
mod tests;

pub use checkpoint::{CheckpointError, FrozenStore, FrozenView};
pub use command::{Command, Condition, ExpireOptions, Expiry, Malformed, SetForm, TtlForm};
pub use items::{Args, Items, ItemsIter, Span};
pub use number::{FloatError, add_decimals, parse_integer};
pub use reply::{Token, take_reply};
pub use store::{BUCKETS, Limits, Store};
