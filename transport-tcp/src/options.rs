//! What a transport is made from, and why it cannot be made.

use quorate_consensus::NodeId;
use std::io;
use std::net::SocketAddr;

/// Where a [`crate::TcpTransport`] listens, and whom it talks to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TcpOptions {
    /// This replica.
    pub local: NodeId,
    /// Where the replicas with higher ids reach it. Port 0 picks a free one; see
    /// [`crate::TcpTransport::local_addr`].
    pub listen: SocketAddr,
    /// The others, with `host:port` each. A host name is resolved again at each attempt. An empty
    /// address is not dialled until [`crate::TcpTransport::set_peer_address`].
    pub peers: Vec<(NodeId, String)>,
    /// What tells one cluster from another; 0 when not known yet
    /// ([`quorate_transport::Transport::set_cluster`]).
    pub cluster: u64,
}

/// Why there is no transport.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has the address, or this one does already.
    #[error(
        "cannot listen on {address}: it is in use. Stop the program that has it (`ss -ltnp` shows \
         it), or configure another address"
    )]
    InUse {
        /// What was asked for.
        address: SocketAddr,
    },
    /// The system refuses the address.
    #[error("cannot listen on {address}: {source}. Is it an address of this machine?")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Polling could not be set up.
    #[error("the system refuses to poll sockets: {0}")]
    Poll(#[from] io::Error),
    /// The options contradict themselves.
    #[error("bad options: {0}")]
    Options(String),
}

/// Counts since the transport was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Frames queued: writes, messages, acknowledgements.
    pub frames_sent: u64,
    /// Frames whose header arrived.
    pub frames_received: u64,
    /// System calls that wrote something.
    pub write_calls: u64,
    /// System calls that read something.
    pub read_calls: u64,
    /// Bytes written to sockets.
    pub bytes_sent: u64,
    /// Bytes read from sockets.
    pub bytes_received: u64,
    /// Connections that were refused or never got through their greeting.
    pub refused: u64,
}
