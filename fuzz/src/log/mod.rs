//! The durable log: what recovery makes of bytes that changed behind its back.

mod damaged;
mod forged;
mod format;

pub use damaged::log_recovery;
pub(crate) use damaged::seeds as recovery_seeds;
pub use forged::log_forged;
pub(crate) use forged::seeds as forged_seeds;

use crate::Input;
use crate::medium::{FuzzMedium, Image, PROFILES};
use bytes::Bytes;
use quorate_consensus::{Ballot, Entry, Incarnation, NodeId, Slot, Value, ValueKind};
use quorate_pmem_log::{
    Log, LogError, LogOptions, Medium, MediumKind, OpenError, Profile, Record, Recovered,
};
use std::path::PathBuf;
use std::sync::Arc;

const LIFE: Incarnation = Incarnation(0xfeed_beef_0bad_cafe);
const NODE: NodeId = NodeId(3);
const SEGMENT_BYTES: u64 = 16 << 10;
/// Records of one script at the most: what is read back per execution stays small.
const RECORDS_MAX: usize = 96;
const DOCUMENT: &[u8] = b"the founding document of a cluster of three";

/// Opens the log on a medium.
fn open(medium: &Arc<FuzzMedium>) -> Result<(Log, Recovered), OpenError> {
    let options = LogOptions {
        directory: PathBuf::new(),
        medium: MediumKind::Memory,
        node: NODE,
        segment_bytes: SEGMENT_BYTES,
    };
    let medium: Arc<dyn Medium> = Arc::<FuzzMedium>::clone(medium);
    Log::open_on(medium, &options, LIFE, Arc::new(|| {}))
}

/// The newest entry of a slot, none for a hole; or that it is damaged.
fn read(log: &Log, slot: Slot) -> Result<Option<Entry>, LogError> {
    let mut entries = Vec::new();
    log.read(slot, 0, &mut entries)?;
    Ok(entries.into_iter().next())
}

/// A log as a replica writes it, and all that was ever appended.
struct Book {
    profile: Profile,
    image: Image,
    /// As it was some time before.
    earlier: Image,
    appended: Vec<Entry>,
    promised: Ballot,
    commit: Slot,
}

struct Scribe {
    medium: Arc<FuzzMedium>,
    log: Log,
    book: Book,
    last: Slot,
    ballot: Ballot,
}

impl Book {
    /// Follows a script: entries in order, again from above what is chosen, promises, flushes,
    /// crashes, trims. The script begins with its length.
    fn write(input: &mut Input<'_>) -> Self {
        let mode = input.u8();
        let profile = PROFILES[usize::from(mode & 1)];
        let medium = FuzzMedium::new(profile, &Image::new());
        let (log, _) = open(&medium).expect("an empty place is formatted");
        let book = Self {
            profile,
            image: Image::new(),
            earlier: Image::new(),
            appended: Vec::new(),
            promised: Ballot::ZERO,
            commit: Slot::ZERO,
        };
        let ballot = Ballot { round: 1, node: NODE };
        let mut scribe = Scribe { medium, log, book, last: Slot::ZERO, ballot };
        let steps = usize::from(input.u8());
        for _ in 0..steps {
            if scribe.book.appended.len() < RECORDS_MAX {
                scribe.step(input);
            }
        }
        scribe.finish(mode)
    }
}

impl Scribe {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..8 => self.append(self.last.next(), input),
            8 => {
                // A new leader proposes again what is not known to be chosen.
                self.promise();
                let open = (self.last.0 - self.book.commit.0) as usize;
                let slot = Slot(self.book.commit.0 + 1 + input.below(open + 1) as u64);
                self.append(slot, input);
            }
            9 => self.promise(),
            10..13 => self.log.flush().expect("this medium does not fail"),
            13 => {
                let below = Slot(input.below(self.book.commit.0 as usize + 1) as u64);
                self.log.trim(below).expect("this medium does not fail");
            }
            14 => {
                let document = Bytes::from_static(DOCUMENT);
                self.log.set_genesis(document).expect("always the same one");
                self.book.earlier = self.medium.image();
            }
            _ => self.crash(),
        }
    }

    fn append(&mut self, slot: Slot, input: &mut Input<'_>) {
        // Long values fill segments.
        let length =
            if input.u8().is_multiple_of(4) { input.below(6000) } else { input.below(200) };
        let text = format!("{slot} under {} ", self.ballot);
        let bytes: Bytes = text.bytes().cycle().take(length).collect::<Vec<_>>().into();
        let kind = if length == 0 { ValueKind::Noop } else { ValueKind::Commands };
        let value = Value { kind, checksum: crc32c::crc32c(&bytes), bytes };
        let entry = Entry { slot, ballot: self.ballot, value };
        // Only what earlier records cover may be called chosen.
        let open = slot.previous().0.saturating_sub(self.book.commit.0) as usize;
        let commit = Slot(self.book.commit.0 + input.below(open + 1) as u64);
        self.put(&Record::Entry(entry.clone()), commit);
        self.last = slot;
        self.book.commit = commit;
        self.book.appended.push(entry);
    }

    fn promise(&mut self) {
        self.ballot.round += 1;
        self.put(&Record::Promise(self.ballot), self.book.commit);
    }

    fn put(&mut self, record: &Record, commit: Slot) {
        self.log.append(record, commit).expect("there is room");
        self.book.promised = self.ballot;
    }

    /// The process dies, without a last word, and a new one opens the log.
    fn crash(&mut self) {
        // What was not flushed may be nowhere yet, and the book does not keep account of that.
        self.log.flush().expect("this medium does not fail");
        self.medium = FuzzMedium::new(self.book.profile, &self.medium.image());
        let (log, _) = open(&self.medium).expect("a log that nobody damaged opens");
        self.log = log;
    }

    fn finish(self, mode: u8) -> Book {
        let Self { medium, mut log, mut book, .. } = self;
        log.flush().expect("this medium does not fail");
        book.image = medium.image();
        if mode & 2 != 0 {
            log.close().expect("this medium does not fail");
            book.image = medium.image();
        }
        if book.earlier.is_empty() {
            book.earlier = book.image.clone();
        }
        book
    }
}
