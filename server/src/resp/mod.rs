//! The Redis front end: RESP2 and RESP3 over any byte stream, in front of any [`Backend`].
//!
//! A request is found by the [`parser`], recognized by the table in [`commands`], and becomes
//! either an encoded [`Command`](crate::kv::Command) or a local answer. The requests of one read
//! of the socket make one batch; a batch makes one call of the backend and one write to the socket.
//! If a batch holds a write, its reads go through the log with it, in order: a mixed pipeline takes
//! one round, and a client sees its own order.
//!
//! [`serve`] accepts connections; [`Connection`] serves one over any stream.

mod backend;
mod batch;
pub mod commands;
mod connection;
mod listener;
mod local;
mod parse;
pub mod parser;
mod session;
mod settings;
#[cfg(test)]
mod tests;
pub mod writer;

pub use backend::{Backend, Freshness, SubmitError};
pub use connection::Connection;
pub use listener::{Shared, serve};
pub use session::Session;
pub use settings::Settings;
