//! The first bytes of a connection, until both ends know who they talk to.

use crate::connection::cut;
use crate::receiver::printable;
use crate::wire::{HELLO_BYTES, Hello};
use mio::net::TcpStream;
use std::io::{self, Read, Write};
use std::time::Instant;

/// A connection whose greeting is not complete.
#[derive(Debug)]
pub(crate) struct Greeting {
    pub(crate) stream: TcpStream,
    pub(crate) deadline: Instant,
    /// This end's part of the incarnation.
    pub(crate) nonce: u64,
    /// The system says that there may be something new.
    pub(crate) ready: bool,
    received: Vec<u8>,
}

impl Greeting {
    pub(crate) fn new(stream: TcpStream, deadline: Instant, nonce: u64) -> Self {
        Self { stream, deadline, nonce, ready: true, received: Vec::with_capacity(HELLO_BYTES) }
    }

    /// Sends this end's greeting. So little always fits the buffer of a new socket.
    pub(crate) fn say(&mut self, hello: &Hello, reason: &str) -> Result<(), String> {
        let reason = cut(reason);
        let refusal = hello.refusal.map(|_| reason.len() as u16);
        let mut bytes = Hello { refusal, ..*hello }.encode().to_vec();
        bytes.extend_from_slice(reason.as_bytes());
        match self.stream.write(&bytes) {
            Ok(length) if length == bytes.len() => Ok(()),
            Ok(_) => Err("the socket did not take a greeting".into()),
            Err(error) => Err(format!("the connection broke in its greeting: {error}")),
        }
    }

    /// Reads the other end's greeting, and not a byte more; none while it is incomplete. A refusal
    /// is an error with its reason.
    pub(crate) fn hear(&mut self) -> Result<Option<Hello>, String> {
        loop {
            let mut wanted = HELLO_BYTES;
            let mut refusal = None;
            if let Some(bytes) = self.received.first_chunk::<HELLO_BYTES>() {
                let hello = Hello::decode(bytes).map_err(|error| error.to_string())?;
                let Some(length) = hello.refusal else { return Ok(Some(hello)) };
                wanted += usize::from(length);
                refusal = Some(hello.from);
            }
            if let Some(from) = refusal
                && self.received.len() == wanted
            {
                let reason = printable(&self.received[HELLO_BYTES..]);
                return Err(format!("replica {from} refused: {reason}"));
            }
            let mut buffer = [0; HELLO_BYTES];
            let missing = (wanted - self.received.len()).min(buffer.len());
            match self.stream.read(&mut buffer[..missing]) {
                Ok(0) => return Err("the connection closed in its greeting".into()),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready = false;
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("the connection broke in its greeting: {error}")),
            }
        }
    }
}
