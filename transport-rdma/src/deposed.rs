//! A leader that was deposed goes on writing: is everything there that it counts?
//!
//! Where a write's completion counts as a vote (`docs/decisions/0023-what-a-write-completion-may-count-for.md`)
//! this has to hold: a record whose write completed, whenever the writer learns of it, is among what the owner
//! of the ring reports to the next leader. Here one end ships records into the other's ring without pause and
//! counts what completes; the owner, at some moment, takes the grant of this life back, reads the ring to its end
//! and reports; then the lane gets another life. With the order of the two turned around, or without any fence,
//! the same rounds have to show records that completed and were not reported.

use crate::{AdapterOptions, RdmaOptions, RdmaTransport, StartError};
use bytes::Bytes;
use quorate_consensus::{Accept, Ballot, Incarnation, NodeId, Slot, Value, ValueKind};
use quorate_ffi::verbs::Library;
use quorate_transport::integrity::Randomness;
use quorate_transport::ring::{RingReader, RingWriter, ShipError};
use quorate_transport::{Event, Lane, RegionError, RegionId, Transport};
use quorate_transport_tcp::TcpOptions;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

const OWNER: NodeId = NodeId(1);
const WRITER: NodeId = NodeId(2);
const RING_BYTES: usize = 256 << 10;
/// Payloads have up to this many bytes: several packets.
const PAYLOAD_BYTES_MAX: u64 = 24 << 10;
/// The promise comes after so many records at the most.
const RECORDS_MAX: u64 = 60;
/// The owner looks again for so long after it reported, while the writer goes on.
const AFTERWARDS: Duration = Duration::from_millis(5);
/// Lives of one pair of ends: each further one would wait longer for its connection.
const LIVES: u32 = 5;
/// A round that gets nowhere for so long is an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the owner gets to its report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Promise {
    /// It takes the grant back, then reads: what the protocol does.
    FenceThenRead,
    /// It reads, then takes the grant back: rule B5 broken.
    ReadThenFence,
    /// It reads, and takes nothing back: rule B2 broken.
    ReadOnly,
}

/// What so many rounds came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Finding {
    /// Rounds whose life was carried by verbs.
    pub rounds: u32,
    /// Records that completed, as the writer counts them.
    pub completed: u64,
    /// Records that were reported; some of them the writer never counts.
    pub reported: u64,
    /// Records that completed and were not reported. Each is a vote that was counted and lost.
    pub lost: u64,
    /// Rounds with such records.
    pub rounds_lost: u32,
    /// Rounds in which records became valid, or bytes of the ring changed, after the report.
    pub late: u32,
    /// Rounds whose writer was at work when the report was made: it had shipped more than was reported.
    pub ahead: u32,
}

/// How far the owner has read, of which life.
#[derive(Clone, Copy, Default)]
struct Credit {
    life: Incarnation,
    consumed: u64,
}

/// What the writer says of a life when it has learnt that it is over.
#[derive(Clone, Copy)]
struct Account {
    life: Incarnation,
    shipped: u64,
    completed: u64,
}

struct Between {
    credit: Mutex<Credit>,
    stop: AtomicBool,
}

/// Runs so many rounds on the device of `options`, within this process.
///
/// # Errors
/// [`StartError`], or words that say which round got nowhere.
pub fn run(
    library: &Library,
    options: &AdapterOptions,
    rounds: u32,
    promise: Promise,
) -> Result<Finding, Box<dyn std::error::Error + Send + Sync>> {
    let mut finding = Finding::default();
    let mut seed = 0;
    while finding.rounds < rounds {
        seed += 1;
        let until = rounds.min(finding.rounds + LIVES);
        finding = some(endpoints(library, options)?, finding, until, (promise, seed))?;
    }
    Ok(finding)
}

/// Rounds of two ends, up to so many in all.
fn some(
    (owner, writer): (RdmaTransport, RdmaTransport),
    finding: Finding,
    until: u32,
    (promise, seed): (Promise, u64),
) -> Result<Finding, Box<dyn std::error::Error + Send + Sync>> {
    let between = Between { credit: Mutex::default(), stop: AtomicBool::new(false) };
    let (told, accounts) = mpsc::channel();
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| Writer::new(writer, seed).write(&between, &told));
        let found = Owner::new(owner, promise, seed).rounds(finding, until, &between, &accounts);
        between.stop.store(true, Ordering::Release);
        let written = writing.join().map_err(|_| "the writer panicked")?;
        let found = found?;
        written?;
        Ok(found)
    })
}

fn endpoints(
    library: &Library,
    options: &AdapterOptions,
) -> Result<(RdmaTransport, RdmaTransport), Box<dyn std::error::Error + Send + Sync>> {
    let bind = |local, peer| -> Result<RdmaTransport, StartError> {
        let listen = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let tcp = TcpOptions { local, listen, peers: vec![(peer, String::new())], cluster: 7 };
        RdmaTransport::bind(library, RdmaOptions { tcp, adapter: options.clone() })
    };
    let (mut owner, mut writer) = (bind(OWNER, WRITER)?, bind(WRITER, OWNER)?);
    owner.set_peer_address(WRITER, &writer.local_addr().to_string())?;
    writer.set_peer_address(OWNER, &owner.local_addr().to_string())?;
    owner.register(RegionId::inbox(WRITER), RING_BYTES)?;
    Ok((owner, writer))
}

/// A leader that nobody told that it is none any more.
struct Writer {
    transport: RdmaTransport,
    ring: RingWriter,
    random: Randomness,
    /// Of this life, while it is up.
    account: Option<Account>,
    /// Numbers of writes, and the records that they carry.
    under_way: VecDeque<(u64, u64)>,
}

impl Writer {
    fn new(transport: RdmaTransport, seed: u64) -> Self {
        let ring = RingWriter::new(RegionId::inbox(WRITER), RING_BYTES);
        let random = Randomness::new(0xdead + seed);
        Self { transport, ring, random, account: None, under_way: VecDeque::new() }
    }

    fn write(mut self, between: &Between, told: &mpsc::Sender<Account>) -> Result<(), String> {
        let mut events = Vec::new();
        while !between.stop.load(Ordering::Acquire) {
            self.transport.flush();
            self.transport.poll(&mut events);
            for event in events.drain(..) {
                self.on_event(&event, told);
            }
            self.ship(between)?;
        }
        Ok(())
    }

    fn on_event(&mut self, event: &Event, told: &mpsc::Sender<Account>) {
        match event {
            Event::LinkUp { lane: Lane::Data, incarnation, .. } => {
                self.ring.reset(*incarnation);
                self.under_way.clear();
                self.account = Some(Account { life: *incarnation, shipped: 0, completed: 0 });
            }
            Event::Completed { through, .. } => {
                let Some(account) = &mut self.account else { return };
                while let Some((_, record)) =
                    self.under_way.pop_front_if(|(number, _)| *number <= through.0)
                {
                    account.completed = record;
                }
            }
            Event::LinkDown { lane: Lane::Data, .. } => {
                if let Some(account) = self.account.take() {
                    // Nobody waits for it any more when the rounds are over.
                    let _ = told.send(account);
                }
            }
            _ => {}
        }
    }

    fn ship(&mut self, between: &Between) -> Result<(), String> {
        let Some(account) = &mut self.account else { return Ok(()) };
        let credit = *lock(&between.credit);
        if credit.life == account.life {
            self.ring.set_consumed(credit.consumed);
        }
        let length = self.random.below(PAYLOAD_BYTES_MAX) as usize;
        let bytes = Bytes::from(vec![account.shipped as u8; length]);
        let checksum = crc32c::crc32c(&bytes);
        let value = Value { kind: ValueKind::Commands, checksum, bytes };
        let ballot = Ballot { round: 1, node: WRITER };
        let slot = Slot(account.shipped + 1);
        let shipped = self.ring.ship(&mut self.transport, OWNER, ballot, slot, slot, [&value]);
        match shipped {
            Ok(shipped) => {
                account.shipped += 1;
                self.under_way.push_back((shipped.op.0, account.shipped));
                Ok(())
            }
            Err(ShipError::NoCredit { .. } | ShipError::Post(_)) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A follower that is asked for a promise again and again.
struct Owner {
    transport: RdmaTransport,
    ring: RingReader,
    promise: Promise,
    random: Randomness,
    events: Vec<Event>,
    accept: Accept,
}

impl Owner {
    fn new(transport: RdmaTransport, promise: Promise, seed: u64) -> Self {
        Self {
            transport,
            ring: RingReader::new(RegionId::inbox(WRITER), RING_BYTES),
            promise,
            random: Randomness::new(0xbeef + seed),
            events: Vec::new(),
            accept: Accept::default(),
        }
    }

    fn rounds(
        mut self,
        mut finding: Finding,
        until: u32,
        between: &Between,
        accounts: &mpsc::Receiver<Account>,
    ) -> Result<Finding, String> {
        while finding.rounds < until {
            self.round(&mut finding, between, accounts)?;
        }
        Ok(finding)
    }

    fn round(
        &mut self,
        finding: &mut Finding,
        between: &Between,
        accounts: &mpsc::Receiver<Account>,
    ) -> Result<(), String> {
        let region = RegionId::inbox(WRITER);
        let deadline = Instant::now() + PATIENCE;
        let life = loop {
            if Instant::now() > deadline {
                let status = self.transport.status(WRITER);
                return Err(format!("no life of the lane: {status:?}"));
            }
            if let Some(life) = self.turn() {
                break life;
            }
        };
        self.ring.reset(life);
        *lock(&between.credit) = Credit { life, consumed: 0 };
        match self.transport.grant_for_life(region, WRITER) {
            Ok(()) => {}
            // Over TCP for once, as after a failure: not refused, so that it can return.
            Err(RegionError::Lasting(..)) => {
                let granted = self.transport.grant(region, WRITER);
                return granted.map_err(|error| error.to_string());
            }
            Err(error) => return Err(error.to_string()),
        }
        let enough = 1 + self.random.below(RECORDS_MAX);
        let mut reported = 0;
        // The next promise is asked for at a moment that has nothing to do with what is under way.
        let mut over = false;
        while !over && reported < enough {
            over = self.turn().is_some() || !self.transport.status(WRITER).data_up;
            over |= Instant::now() > deadline;
            reported = self.read(reported)?;
            *lock(&between.credit) = Credit { life, consumed: self.ring.consumed() };
        }
        if over {
            // Ended by something else: no round, and the lane starts over.
            self.transport.reset(WRITER, "no round");
            return Ok(());
        }
        if self.promise == Promise::FenceThenRead {
            self.fence()?;
        }
        reported = self.read(reported)?;
        if self.promise == Promise::ReadThenFence {
            self.fence()?;
        }
        let mut left = vec![0; RING_BYTES];
        self.transport.copy_out(region, 0, &mut left);
        let end = Instant::now() + AFTERWARDS;
        while Instant::now() < end {
            std::thread::yield_now();
        }
        let mut now = vec![0; RING_BYTES];
        self.transport.copy_out(region, 0, &mut now);
        let late = now != left || self.read(reported)? > reported;
        self.transport.reset(WRITER, "the next life");
        let account = loop {
            match accounts.try_recv() {
                Ok(account) if account.life == life => break account,
                Ok(_) => {}
                Err(_) if Instant::now() > deadline => {
                    let status = self.transport.status(WRITER);
                    return Err(format!(
                        "the writer never learnt that its life is over: {status:?}"
                    ));
                }
                Err(_) => std::thread::yield_now(),
            }
        };
        finding.rounds += 1;
        finding.completed += account.completed;
        finding.reported += reported;
        finding.lost += account.completed.saturating_sub(reported);
        finding.rounds_lost += u32::from(account.completed > reported);
        finding.late += u32::from(late);
        finding.ahead += u32::from(account.shipped > reported);
        Ok(())
    }

    /// The life that began, if one did.
    fn turn(&mut self) -> Option<Incarnation> {
        self.transport.flush();
        self.transport.poll(&mut self.events);
        let up = |event| match event {
            Event::LinkUp { lane: Lane::Data, incarnation, .. } => Some(incarnation),
            _ => None,
        };
        self.events.drain(..).filter_map(up).last()
    }

    fn fence(&mut self) -> Result<(), String> {
        let fenced = self.transport.revoke(RegionId::inbox(WRITER), WRITER);
        fenced.map_err(|error| error.to_string())
    }

    /// Reads the ring to its end; the newest record, which has to follow the last one.
    fn read(&mut self, mut newest: u64) -> Result<u64, String> {
        loop {
            match self.ring.poll(&self.transport, &mut self.accept) {
                Ok(false) => return Ok(newest),
                Ok(true) if self.accept.first == Slot(newest + 1) => newest += 1,
                Ok(true) => return Err(format!("{:?} after {newest}", self.accept.first)),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
