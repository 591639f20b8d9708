//! The loop of one connection.
//!
//! Everything that one read of the socket brought is parsed as one [`Batch`], executed with at most
//! one call of the backend, and answered with one write. Nothing is read while a batch is executed
//! or a reply is being written, so that a client that does not read its replies holds one batch and
//! its replies, and no more.

use super::backend::{Backend, SubmitError};
use super::batch::{Batch, Slot};
use super::local;
use super::parser::Parser;
use super::session::{Flow, OwnedArgs, Queued, Session};
use super::settings::Settings;
use super::writer::{Protocol, Writer};
use crate::kv::frame::take_bytes;
use crate::kv::{Token, take_reply};
use bytes::{Buf, Bytes, BytesMut};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

/// The buffer of an idle connection, in bytes.
const IDLE_BUFFER_BYTES: usize = 2 * 1024;
/// The buffer of a connection whose reads fill the smaller one, in bytes.
const BUSY_BUFFER_BYTES: usize = 64 * 1024;
/// How long a closed connection is read from, at most.
const LINGER: Duration = Duration::from_secs(1);
const MISSING_REPLY: &str = "ERR internal error: malformed reply";
/// The replica drops replies beyond a limit for one batch, so that a pipeline of large reads cannot
/// take all memory; the command itself was executed.
const DROPPED_REPLY: &str = "ERR executed, but the replies of one pipeline are limited to 64 MiB \
                             together and this one was dropped: send fewer commands at a time";

/// One client.
#[derive(Debug)]
pub struct Connection<S, B> {
    stream: S,
    backend: B,
    session: Session,
    settings: Arc<Settings>,
    parser: Parser,
    input: BytesMut,
    output: BytesMut,
    batch: Batch,
    shutdown: watch::Receiver<bool>,
}

impl<S, B> Connection<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    B: Backend,
{
    /// A connection that has not read anything yet. It ends when the client does, or between two
    /// batches when `shutdown` becomes true or its sender is gone.
    pub fn new(stream: S, backend: B, session: Session, shutdown: watch::Receiver<bool>) -> Self {
        let settings = Arc::clone(&session.settings);
        Connection {
            stream,
            backend,
            parser: Parser::new(settings.parser_limits()),
            settings,
            session,
            input: BytesMut::new(),
            output: BytesMut::new(),
            batch: Batch::default(),
            shutdown,
        }
    }

    /// Serves the client until it goes away, asks to, violates the protocol, or does not take its
    /// replies.
    ///
    /// # Errors
    /// Those of the stream; `TimedOut` for a client that is too slow or too quiet.
    pub async fn serve(mut self) -> io::Result<()> {
        loop {
            let starved = self.fill_batch();
            self.execute_batch().await;
            self.write_output().await?;
            if self.session.closing {
                return self.close().await;
            }
            if starved {
                self.shrink();
                if !self.read_input().await? {
                    return Ok(());
                }
            }
        }
    }

    /// Parses what has been read into the batch. Answers whether more must be read to go on.
    fn fill_batch(&mut self) -> bool {
        let Connection { session, batch, parser, backend, .. } = self;
        let mut consumed = 0;
        let starved = loop {
            if batch.requests >= self.settings.max_batch_commands || session.closing {
                break false;
            }
            let rest = &self.input[consumed..];
            match parser.next(rest) {
                Ok(None) => break true,
                Ok(Some(length)) => {
                    let flow =
                        session.accept(parser.args(rest), batch, |session, kind, args, out| {
                            local::run(session, kind, args, backend, out);
                        });
                    if flow == Flow::Defer {
                        break false;
                    }
                    consumed += length;
                    if flow == Flow::Execute {
                        break false;
                    }
                }
                Err(violation) => {
                    session.protocol_error(&violation.to_string(), batch);
                    break false;
                }
            }
        };
        self.input.advance(consumed);
        session.shared.commands.fetch_add(batch.requests as u64, Ordering::Relaxed);
        starved
    }

    /// Lets the backend execute the batch and writes all replies into the output buffer.
    async fn execute_batch(&mut self) {
        let result = match (self.batch.count, self.batch.writes) {
            (0, _) => Ok(Bytes::new()),
            (count, true) => self.backend.write(count, self.batch.commands.split().freeze()).await,
            (count, false) => {
                let queries = self.batch.commands.split().freeze();
                self.backend.read(count, queries, self.session.freshness).await
            }
        };
        let error = result.as_ref().err().map(SubmitError::to_string);
        let replies = result.unwrap_or_default();
        let mut render = Render {
            replies: &replies,
            error: error.as_deref(),
            session: &mut self.session,
            backend: &self.backend,
            out: &mut self.output,
        };
        for slot in self.batch.slots.drain(..) {
            match slot {
                Slot::Local(length) => {
                    render.out.extend_from_slice(&self.batch.locals[..length]);
                    self.batch.locals.advance(length);
                }
                Slot::Store { protocol, muted } => render.store(protocol, muted),
                Slot::Exec { protocol, muted, queue } => render.exec(protocol, muted, &queue),
                Slot::Watch { protocol, muted, keys } => render.watch(protocol, muted, &keys),
            }
        }
        self.batch.clear();
    }

    /// Writes the replies; fails when the client takes nothing for too long.
    async fn write_output(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            let written = timeout(self.settings.write_timeout, self.stream.write(&self.output));
            match written.await {
                Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(Ok(count)) => self.output.advance(count),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        self.stream.flush().await
    }

    /// Reads more. Answers `false` at the end of the stream, and at shutdown.
    async fn read_input(&mut self) -> io::Result<bool> {
        let expected = self.parser.expected_bytes().saturating_sub(self.input.len());
        self.input.reserve(expected.max(IDLE_BUFFER_BYTES));
        let room = self.input.capacity() - self.input.len();
        let idle = async {
            match self.settings.idle_timeout {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let count = tokio::select! {
            biased;
            _ = self.shutdown.wait_for(|down| *down) => return Ok(false),
            count = self.stream.read_buf(&mut self.input) => count?,
            () = idle => return Err(io::ErrorKind::TimedOut.into()),
        };
        if count == room && room < BUSY_BUFFER_BYTES {
            // The client sends more than the small buffer holds: let the next read be larger.
            self.input.reserve(BUSY_BUFFER_BYTES);
        }
        Ok(count > 0)
    }

    /// Closes after the last reply. What the client still sends is read and thrown away for a
    /// moment: closing on unread bytes would reset the connection, and the reply would be lost.
    async fn close(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        self.input = BytesMut::with_capacity(BUSY_BUFFER_BYTES);
        let drained = async {
            let mut left = self.settings.max_request_bytes;
            while left > 0 {
                self.input.clear();
                match self.stream.read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => left = left.saturating_sub(count),
                }
            }
        };
        // Whether the client has seen the end by now is its own affair.
        let _ = timeout(LINGER, drained).await;
        Ok(())
    }

    /// Gives back memory before the connection waits, so that an idle one takes little.
    fn shrink(&mut self) {
        if self.input.is_empty() && self.input.capacity() > BUSY_BUFFER_BYTES {
            self.input = BytesMut::new();
        }
        if self.output.capacity() > BUSY_BUFFER_BYTES {
            self.output = BytesMut::new();
        }
        self.batch.shrink(BUSY_BUFFER_BYTES);
        if self.input.is_empty() {
            self.parser.shrink();
        }
    }
}

/// Turns the replies of the backend into those of the client, slot by slot.
struct Render<'a, B> {
    /// Framed replies that have not been given to a slot yet.
    replies: &'a [u8],
    /// The error that every command of the batch gets instead.
    error: Option<&'a str>,
    session: &'a mut Session,
    backend: &'a B,
    out: &'a mut BytesMut,
}

impl<'a, B: Backend> Render<'a, B> {
    /// The reply for the next command, or the error.
    fn next(&mut self) -> Result<&'a [u8], &'a str> {
        match self.error {
            Some(error) => Err(error),
            None => match take_bytes(&mut self.replies) {
                Some([]) => Err(DROPPED_REPLY),
                Some(reply) => Ok(reply),
                None => Err(MISSING_REPLY),
            },
        }
    }

    fn store(&mut self, protocol: Protocol, muted: bool) {
        let reply = self.next();
        if muted {
            return;
        }
        let mut writer = Writer::new(self.out, protocol);
        match reply {
            Ok(reply) => {
                writer.reply(reply);
            }
            Err(error) => writer.error(error),
        }
    }

    /// The reply to `EXEC`: what the store said, and in between what the front end does itself.
    fn exec(&mut self, protocol: Protocol, muted: bool, queue: &[Queued]) {
        let start = self.out.len();
        let reply = self.next();
        if let Err(error) = reply.and_then(|reply| self.exec_elements(protocol, queue, reply)) {
            self.out.truncate(start);
            Writer::new(self.out, protocol).error(error);
        }
        if muted {
            self.out.truncate(start);
        }
    }

    fn exec_elements(
        &mut self,
        protocol: Protocol,
        queue: &[Queued],
        mut reply: &[u8],
    ) -> Result<(), &'a str> {
        let mut writer = Writer::new(self.out, protocol);
        match Token::take(&mut reply).ok_or(MISSING_REPLY)? {
            Token::Array(_) => {}
            // A watched key has changed, or the store refused the whole.
            other => {
                writer.token(other);
                return Ok(());
            }
        }
        writer.array(queue.iter().map(Queued::len).sum());
        for queued in queue {
            let mut writer = Writer::new(self.out, protocol);
            match queued {
                Queued::Fail(text) => writer.error(text),
                Queued::Store(count) => {
                    for _ in 0..*count {
                        writer.reply(take_reply(&mut reply).ok_or(MISSING_REPLY)?);
                    }
                }
                Queued::Local(kind, args) => {
                    let start = self.out.len();
                    local::run(self.session, *kind, args.args(), self.backend, self.out);
                    if self.out.len() == start {
                        Writer::new(self.out, protocol).ok();
                    }
                }
            }
        }
        Ok(())
    }

    fn watch(&mut self, protocol: Protocol, muted: bool, keys: &OwnedArgs) {
        let outcome = self.next().and_then(|mut reply| {
            Token::take(&mut reply).ok_or(MISSING_REPLY)?;
            for key in keys.args().iter() {
                match Token::take(&mut reply) {
                    // Versions are counted by ones, from one: never negative.
                    Some(Token::Int(version)) => self.session.watch(key, version as u64),
                    _ => return Err(MISSING_REPLY),
                }
            }
            Ok(())
        });
        if muted {
            return;
        }
        let mut writer = Writer::new(self.out, protocol);
        match outcome {
            Ok(()) => writer.ok(),
            Err(error) => writer.error(error),
        }
    }
}
