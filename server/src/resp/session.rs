//! What a connection remembers between requests, and how each request changes it.

use super::backend::Freshness;
use super::batch::{Batch, Slot};
use super::commands::{Control, ErrorText, Handler, Local, resolve};
use super::listener::Shared;
use super::settings::Settings;
use super::writer::{Protocol, Writer};
use crate::kv::frame::{put_framed, put_varint};
use crate::kv::{Args, Command, Items, Span};
use bytes::BytesMut;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// The most keys that one connection watches.
const MAX_WATCHED_KEYS: usize = 65_536;
/// The most commands that one `MULTI` queues.
const MAX_QUEUED_COMMANDS: usize = 1 << 20;
/// What the encoding of a transaction adds to its commands and watched keys, at most.
const TRANSACTION_OVERHEAD_BYTES: usize = 40;

/// Whether replies are sent (`CLIENT REPLY`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ReplyMode {
    #[default]
    On,
    Off,
    /// Not to the next command.
    SkipNext,
}

/// Arguments that outlive their request.
#[derive(Clone, Debug)]
pub(super) struct OwnedArgs {
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

impl OwnedArgs {
    fn new(args: Args<'_>) -> OwnedArgs {
        let (mut bytes, mut spans) = (Vec::with_capacity(args.total_bytes()), Vec::new());
        for arg in args.iter() {
            let start = bytes.len() as u32;
            bytes.extend_from_slice(arg);
            spans.push(Span { start, end: bytes.len() as u32 });
        }
        OwnedArgs { bytes, spans }
    }

    pub(super) fn args(&self) -> Args<'_> {
        Args::new(&self.bytes, &self.spans)
    }
}

/// One element of the reply to `EXEC`.
#[derive(Clone, Debug)]
pub(super) enum Queued {
    /// So many commands of the store in a row.
    Store(usize),
    /// Something of the front end, done when the store has answered.
    Local(Local, OwnedArgs),
    /// A command that could be recognized but not understood.
    Fail(ErrorText),
}

impl Queued {
    /// How many elements of the reply it stands for.
    pub(super) fn len(&self) -> usize {
        match self {
            Queued::Store(count) => *count,
            Queued::Local(..) | Queued::Fail(_) => 1,
        }
    }
}

/// What `MULTI` has queued.
#[derive(Debug, Default)]
struct Multi {
    queue: Vec<Queued>,
    /// The commands of the store, framed.
    commands: BytesMut,
    store_count: usize,
    count: usize,
    /// The bytes of queued arguments, for the limit.
    bytes: usize,
    writes: bool,
    /// A command could not be queued, so that `EXEC` must refuse.
    aborted: bool,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// It is in the batch; there is room for more.
    Continue,
    /// It is in the batch, and the batch must be executed before the next request is looked at.
    Execute,
    /// It is not in the batch; the batch must be executed first.
    Defer,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Session {
    pub(super) id: u64,
    pub(super) peer: Option<SocketAddr>,
    pub(super) since: Instant,
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Arc<Settings>,
    pub(super) name: Vec<u8>,
    pub(super) library: [Vec<u8>; 2],
    pub(super) protocol: Protocol,
    pub(super) reply_mode: ReplyMode,
    /// How fresh reads must be (`READONLY`, `QUORATE READ`).
    pub(super) freshness: Freshness,
    /// The connection closes when the batch has been answered.
    pub(super) closing: bool,
    multi: Option<Multi>,
    /// Watched keys, each a varint version and the key, framed.
    watches: BytesMut,
    watch_count: usize,
}

impl Session {
    /// The state of a new connection.
    pub fn new(
        id: u64,
        peer: Option<SocketAddr>,
        shared: Arc<Shared>,
        settings: Arc<Settings>,
    ) -> Session {
        Session {
            id,
            peer,
            since: Instant::now(),
            shared,
            settings,
            name: Vec::new(),
            library: [Vec::new(), Vec::new()],
            protocol: Protocol::Resp2,
            reply_mode: ReplyMode::On,
            freshness: Freshness::Linearizable,
            closing: false,
            multi: None,
            watches: BytesMut::new(),
            watch_count: 0,
        }
    }

    /// The number of queued commands, or -1 outside of `MULTI`.
    pub(super) fn multi_len(&self) -> i64 {
        self.multi.as_ref().map_or(-1, |multi| multi.count as i64)
    }

    pub(super) fn unwatch(&mut self) {
        self.watches = BytesMut::new();
        self.watch_count = 0;
    }

    /// Remembers the version of a watched key; the first one counts if a key is watched twice,
    /// as both are compared.
    pub(super) fn watch(&mut self, key: &[u8], version: u64) {
        self.watch_count += 1;
        put_framed(&mut self.watches, |out| {
            put_varint(out, version);
            out.extend_from_slice(key);
        });
    }

    /// Everything as in a new connection (`RESET`).
    fn reset(&mut self) {
        self.multi = None;
        self.unwatch();
        self.name.clear();
        self.protocol = Protocol::Resp2;
        self.reply_mode = ReplyMode::On;
        self.freshness = Freshness::Linearizable;
    }

    /// Puts a request into the batch. `local` does what concerns the front end alone.
    pub(super) fn accept(
        &mut self,
        args: Args<'_>,
        batch: &mut Batch,
        local: impl FnOnce(&mut Session, Local, Args<'_>, &mut BytesMut),
    ) -> Flow {
        if args.is_empty() {
            return Flow::Continue;
        }
        let spec = match resolve(args) {
            Ok(spec) => spec,
            Err(text) => return self.refuse(batch, &text),
        };
        match spec.handler {
            Handler::Control(control) => self.control(control, args, batch),
            handler if self.multi.is_some() => self.queue(handler, args, batch),
            Handler::Store(parse) => match parse(args) {
                Ok(command) => self.submit(&command, None, batch),
                Err(text) => self.answer(batch, |writer| writer.error(&text)),
            },
            Handler::Local(kind) if kind.is_barrier() && batch.has_commands() => Flow::Defer,
            Handler::Local(kind) => {
                let before = self.reply_mode;
                self.take_muted();
                let start = batch.locals.len();
                local(self, kind, args, &mut batch.locals);
                // `CLIENT REPLY ON` is itself answered, `OFF` is not.
                if before == ReplyMode::SkipNext || self.reply_mode == ReplyMode::Off {
                    batch.locals.truncate(start);
                }
                batch.push_local(start);
                if kind.is_barrier() { Flow::Execute } else { Flow::Continue }
            }
        }
    }

    /// Whether the reply to the present command is not sent.
    fn take_muted(&mut self) -> bool {
        match self.reply_mode {
            ReplyMode::On => false,
            ReplyMode::Off => true,
            ReplyMode::SkipNext => {
                self.reply_mode = ReplyMode::On;
                true
            }
        }
    }

    /// Answers at once.
    fn answer(&mut self, batch: &mut Batch, write: impl FnOnce(&mut Writer<'_>)) -> Flow {
        let start = batch.locals.len();
        if !self.take_muted() {
            write(&mut Writer::new(&mut batch.locals, self.protocol));
        }
        batch.push_local(start);
        Flow::Continue
    }

    /// Answers with an error that makes a transaction impossible.
    fn refuse(&mut self, batch: &mut Batch, text: &str) -> Flow {
        if let Some(multi) = &mut self.multi {
            multi.aborted = true;
        }
        self.answer(batch, |writer| writer.error(text))
    }

    /// Puts a command of the store into the batch; `queue` if it is a transaction.
    fn submit(
        &mut self,
        command: &Command<'_>,
        queue: Option<Vec<Queued>>,
        batch: &mut Batch,
    ) -> Flow {
        let start = batch.commands.len();
        put_framed(&mut batch.commands, |out| command.encode(out));
        let length = batch.commands.len() - start;
        let limit = self.settings.max_command_bytes;
        if length > limit {
            batch.commands.truncate(start);
            let text = format!("ERR command of {length} bytes exceeds the limit of {limit} bytes");
            return self.answer(batch, |writer| writer.error(&text));
        }
        if start > 0 && start + length > self.settings.max_batch_bytes && queue.is_none() {
            batch.commands.truncate(start);
            return Flow::Defer;
        }
        let muted = self.take_muted();
        let has_locals =
            queue.as_ref().is_some_and(|q| q.iter().any(|e| matches!(e, Queued::Local(..))));
        let slot = match queue {
            None => Slot::Store { protocol: self.protocol, muted },
            Some(queue) => Slot::Exec { protocol: self.protocol, muted, queue },
        };
        batch.push_command(slot, command.is_write());
        if has_locals { Flow::Execute } else { Flow::Continue }
    }

    fn control(&mut self, control: Control, args: Args<'_>, batch: &mut Batch) -> Flow {
        match control {
            Control::Multi if self.multi.is_some() => {
                self.answer(batch, |w| w.error("ERR MULTI calls can not be nested"))
            }
            Control::Multi => {
                self.multi = Some(Multi::default());
                self.answer(batch, |w| w.ok())
            }
            Control::Discard => {
                if self.multi.take().is_none() {
                    return self.answer(batch, |w| w.error("ERR DISCARD without MULTI"));
                }
                self.unwatch();
                self.answer(batch, |w| w.ok())
            }
            Control::Watch => self.begin_watch(args, batch),
            Control::Exec => self.exec(batch),
            Control::Quit => {
                self.closing = true;
                self.answer(batch, |w| w.ok());
                Flow::Execute
            }
            Control::Reset if batch.has_commands() => Flow::Defer,
            Control::Reset => {
                self.reset();
                self.answer(batch, |w| w.simple("RESET"))
            }
        }
    }

    /// Asks for the versions of the keys; they are remembered when the reply is there.
    fn begin_watch(&mut self, args: Args<'_>, batch: &mut Batch) -> Flow {
        if self.multi.is_some() {
            return self.answer(batch, |w| w.error("ERR WATCH inside MULTI is not allowed"));
        }
        let keys = args.from(1);
        // The versions of a batch's own writes are known only when it has been executed.
        if batch.has_commands() {
            return Flow::Defer;
        }
        let bytes = self.watches.len() + keys.total_bytes() + 16 * keys.len();
        if self.watch_count + keys.len() > MAX_WATCHED_KEYS
            || bytes > self.settings.max_command_bytes
        {
            return self.answer(batch, |w| w.error("ERR too many watched keys"));
        }
        let muted = self.take_muted();
        put_framed(&mut batch.commands, |out| {
            Command::Versions { keys: Items::Args(keys) }.encode(out);
        });
        let keys = OwnedArgs::new(keys);
        batch.push_command(Slot::Watch { protocol: self.protocol, muted, keys }, false);
        Flow::Execute
    }

    fn exec(&mut self, batch: &mut Batch) -> Flow {
        let Some(multi) = &self.multi else {
            return self.answer(batch, |w| w.error("ERR EXEC without MULTI"));
        };
        // Checked before the transaction is taken, since the request comes again after a deferral.
        let bytes = multi.commands.len() + self.watches.len() + TRANSACTION_OVERHEAD_BYTES;
        let full = batch.commands.len() + bytes > self.settings.max_batch_bytes;
        let local = multi.queue.iter().any(|queued| matches!(queued, Queued::Local(..)));
        if batch.has_commands() && (full || local) {
            return Flow::Defer;
        }
        let multi = self.multi.take().unwrap_or_default();
        let watches = std::mem::take(&mut self.watches);
        let watch_count = std::mem::take(&mut self.watch_count);
        if multi.aborted {
            let text = "EXECABORT Transaction discarded because of previous errors.";
            return self.answer(batch, |w| w.error(text));
        }
        let command = Command::Transaction {
            writes: multi.writes,
            watches: Items::Packed { count: watch_count, bytes: &watches },
            commands: Items::Packed { count: multi.store_count, bytes: &multi.commands },
        };
        self.submit(&command, Some(multi.queue), batch)
    }

    /// Queues a request inside `MULTI`.
    fn queue(&mut self, handler: Handler, args: Args<'_>, batch: &mut Batch) -> Flow {
        let Some(multi) = &mut self.multi else {
            return Flow::Continue;
        };
        multi.bytes += args.total_bytes();
        multi.count += 1;
        if multi.bytes > self.settings.max_command_bytes || multi.count > MAX_QUEUED_COMMANDS {
            // What cannot be executed any more need not be kept.
            *multi =
                Multi { aborted: true, bytes: multi.bytes, count: multi.count, ..Multi::default() };
            let limit = self.settings.max_command_bytes;
            let text = format!("ERR transaction exceeds the limit of {limit} bytes");
            return self.answer(batch, |w| w.error(&text));
        }
        match handler {
            _ if multi.aborted => {}
            Handler::Local(local) => multi.queue.push(Queued::Local(local, OwnedArgs::new(args))),
            Handler::Store(parse) => match parse(args) {
                Err(text) => multi.queue.push(Queued::Fail(text)),
                Ok(command) => {
                    put_framed(&mut multi.commands, |out| command.encode(out));
                    multi.store_count += 1;
                    multi.writes |= command.is_write();
                    match multi.queue.last_mut() {
                        Some(Queued::Store(count)) => *count += 1,
                        _ => multi.queue.push(Queued::Store(1)),
                    }
                }
            },
            Handler::Control(_) => {}
        }
        self.answer(batch, |w| w.simple("QUEUED"))
    }

    /// Puts an error of the protocol into the batch, and closes behind it.
    pub(super) fn protocol_error(&mut self, text: &str, batch: &mut Batch) {
        self.closing = true;
        let start = batch.locals.len();
        Writer::new(&mut batch.locals, self.protocol).error(&format!("ERR Protocol error: {text}"));
        batch.push_local(start);
    }
}
