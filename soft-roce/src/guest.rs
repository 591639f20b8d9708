//! The host's side of a guest: programs that run in it.

use crate::wire::{self, Frame, Kind, Program, Ready, Status};
use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Output that is kept of one program; what is more is cut off.
const OUTPUT_BYTES_MAX: usize = 64 << 20;

/// What a program did.
#[derive(Debug)]
pub enum Event {
    /// It wrote to standard output.
    Stdout(Vec<u8>),
    /// It wrote to standard error.
    Stderr(Vec<u8>),
    /// It ended.
    Exit(Status),
}

/// How a program ended and all that it wrote.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output, if the program ended well.
    ///
    /// # Errors
    /// All that is known of a program that did not.
    pub fn success(self) -> Result<String> {
        if !self.status.success() {
            bail!("{}\n{}\n{}", self.status, self.stdout.trim(), self.stderr.trim());
        }
        Ok(self.stdout)
    }
}

type Programs = Arc<Mutex<BTreeMap<u32, Sender<Event>>>>;

/// The control channel of a machine that is set up.
#[derive(Debug)]
pub(crate) struct Guest {
    channel: Arc<Mutex<UnixStream>>,
    programs: Programs,
    next: AtomicU32,
    pub(crate) ready: Ready,
}

impl Guest {
    /// Waits until a machine connected to `listener` and said that it is ready. `alive` says whether
    /// waiting makes sense.
    pub(crate) fn accept(
        listener: &UnixListener,
        deadline: Instant,
        mut alive: impl FnMut() -> bool,
    ) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let stream = loop {
            if let Ok((stream, _)) = listener.accept() {
                break stream;
            }
            if !alive() || Instant::now() > deadline {
                bail!("the emulator did not start");
            }
            std::thread::park_timeout(Duration::from_millis(10));
        };
        stream.set_nonblocking(false)?;
        let (first, frame) = channel();
        let mut reader = stream.try_clone()?;
        let programs = Programs::default();
        let known = Arc::clone(&programs);
        // Ends with the machine: then the channel breaks.
        std::thread::Builder::new().name("guest".into()).spawn(move || {
            if first.send(wire::read(&mut reader)).is_ok() {
                pass_on(&mut reader, &known);
            }
        })?;
        let frame = loop {
            match frame.recv_timeout(Duration::from_millis(50)) {
                Ok(frame) => break frame.context("the machine ended before it was ready")?,
                Err(RecvTimeoutError::Disconnected) => bail!("the control channel broke"),
                Err(RecvTimeoutError::Timeout) if !alive() => {
                    bail!("the machine ended before it was ready");
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    bail!("the machine was not ready in time");
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        let Frame { kind, payload, .. } = frame;
        if kind != Kind::Ready {
            bail!("setting up failed: {}", String::from_utf8_lossy(&payload));
        }
        let ready = serde_json::from_slice(&payload).context("what the guest says of itself")?;
        stream.set_write_timeout(Some(Duration::from_secs(120)))?;
        let channel = Arc::new(Mutex::new(stream));
        Ok(Self { channel, programs, next: AtomicU32::new(1), ready })
    }

    /// Starts a program.
    pub(crate) fn spawn(&self, program: &Program) -> Result<Running> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = channel();
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let running = Running { id, channel: Arc::clone(&self.channel), events };
        running.say(Kind::Run, &serde_json::to_vec(program)?)?;
        Ok(running)
    }

    /// Asks the machine to write everything back and power off.
    pub(crate) fn power_off(&self) -> Result<()> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        wire::write(&mut *channel, Kind::PowerOff, 0, &[]).context("the machine is gone")
    }
}

fn pass_on(reader: &mut UnixStream, programs: &Programs) {
    while let Ok(Frame { kind, id, payload }) = wire::read(reader) {
        let event = match kind {
            Kind::Stdout => Event::Stdout(payload),
            Kind::Stderr => Event::Stderr(payload),
            Kind::Exit => Event::Exit(serde_json::from_slice(&payload).unwrap_or_else(|error| {
                Status::NotStarted(format!("no status from the guest: {error}"))
            })),
            _ => continue,
        };
        let ended = matches!(event, Event::Exit(_));
        let mut programs = programs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = programs.get(&id) {
            // Nobody may be interested any more.
            let _ = program.send(event);
        }
        if ended {
            programs.remove(&id);
        }
    }
    // Whoever waits for a program learns that the machine is gone.
    programs.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// A program that runs in a guest. Dropping it kills the program.
#[derive(Debug)]
pub struct Running {
    id: u32,
    channel: Arc<Mutex<UnixStream>>,
    events: Receiver<Event>,
}

impl Running {
    fn say(&self, kind: Kind, payload: &[u8]) -> Result<()> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        wire::write(&mut *channel, kind, self.id, payload).context("the machine is gone")
    }

    /// Sends a signal to the program and to all that it started.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.say(Kind::Signal, &signal.as_raw().to_le_bytes())
    }

    /// What it did next; none if that takes longer than `limit`.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn next(&self, limit: Duration) -> Result<Option<Event>> {
        match self.events.recv_timeout(limit) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!("the machine is gone")),
        }
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// When that takes longer than `limit`: it is killed then; or when the machine is gone.
    pub fn wait(self, limit: Duration) -> Result<Output> {
        let deadline = Instant::now() + limit;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let keep = |kept: &mut Vec<u8>, piece: Vec<u8>| {
                let room = OUTPUT_BYTES_MAX - kept.len();
                kept.extend(&piece[..piece.len().min(room)]);
            };
            match self.next(deadline.saturating_duration_since(Instant::now()))? {
                Some(Event::Stdout(piece)) => keep(&mut stdout, piece),
                Some(Event::Stderr(piece)) => keep(&mut stderr, piece),
                Some(Event::Exit(status)) => {
                    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                    return Ok(Output { status, stdout: text(stdout), stderr: text(stderr) });
                }
                None => bail!(
                    "not done after {limit:?}; so far:\n{}\n{}",
                    String::from_utf8_lossy(&stdout).trim(),
                    String::from_utf8_lossy(&stderr).trim()
                ),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, or its machine.
        let _ = self.signal(Signal::KILL);
    }
}
