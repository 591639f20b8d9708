//! Clients in other processes: the listener that a replica may open for them, and [`Client`].
//!
//! A client keeps one session, whose number it draws itself, and numbers its commands in it. It may
//! give them to any replica and give them again to another one: the session table, which is replicated
//! state, applies each once and remembers its first outcome. So a retry is safe whatever was lost, and
//! what the client reports is one of three outcomes: the reply, *rejected* (it certainly did not happen
//! and will not), or *unknown*.
//!
//! The connections are neither encrypted nor authenticated: keep the port inside a trusted network.

mod client;
mod driver;
mod listener;
mod stream;
mod wire;

pub use client::{Client, ClientOptions, ConnectError};
pub(crate) use listener::Listener;
pub use listener::{CLIENTS_MAX, IN_FLIGHT_MAX};
