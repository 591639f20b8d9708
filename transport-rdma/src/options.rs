//! What the transport is made from, and why it cannot be made.

use crate::AdapterOptions;
use quorate_ffi::verbs::VerbsError;
use quorate_transport_tcp::{BindError, TcpOptions};

/// What a [`crate::RdmaTransport`] is made from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RdmaOptions {
    /// Where it listens and whom it talks to.
    pub tcp: TcpOptions,
    /// Which device it uses.
    pub adapter: AdapterOptions,
}

/// Why there is no transport.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The part over TCP.
    #[error(transparent)]
    Tcp(#[from] BindError),
    /// The device.
    #[error(transparent)]
    Verbs(#[from] VerbsError),
}

/// Counts since the transport was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Chains of requests that were posted: doorbells.
    pub doorbells: u64,
    /// Work requests of writes.
    pub writes: u64,
    /// Of these, those whose bytes went inline.
    pub inline_writes: u64,
    /// Bytes written by them.
    pub bytes: u64,
    /// Bytes that were copied into registered memory first.
    pub staged_bytes: u64,
    /// Bells rung for peers that slept.
    pub bells: u64,
    /// Looks at the pulse of a peer whose lane was quiet for half a second.
    pub beats: u64,
    /// Completions taken.
    pub completions: u64,
    /// Lanes that came up over RDMA.
    pub built: u64,
    /// Lanes over RDMA that could not be built, or died for the network's sake.
    pub failed: u64,
    /// Lanes that came up over TCP instead.
    pub over_tcp: u64,
}
