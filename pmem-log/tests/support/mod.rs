//! A medium that keeps what a device keeps, fails when told, and crashes at a chosen operation.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses a part of this"
)]

use bytes::Bytes;
use quorate_consensus::{Ballot, Entry, Incarnation, NodeId, Slot, Value, ValueKind};
use quorate_pmem_log::{Area, Log, LogOptions, Medium, MediumKind, OpenError, Profile, Recovered};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const SEGMENT: u64 = 32 << 10;
pub const FRESH: Incarnation = Incarnation(0xfeed_beef_0bad_cafe);
pub const NODE: NodeId = NodeId(3);

/// The profiles that the suite runs on: by alignment and by who syncs.
pub const DIRECT: Profile =
    Profile { kind: MediumKind::Emulated, alignment: 8, sync_thread: false, zero_fill: false };
pub const PAGED: Profile =
    Profile { kind: MediumKind::File, alignment: 4096, sync_thread: false, zero_fill: false };
pub const GROUPED: Profile =
    Profile { kind: MediumKind::File, alignment: 4096, sync_thread: true, zero_fill: true };
pub const PROFILES: [Profile; 3] = [DIRECT, PAGED, GROUPED];

/// What the tests steer and count.
#[derive(Debug)]
pub struct Control {
    /// Operations that change something, so far.
    pub operations: AtomicU64,
    /// The operation with this number and all after it fail: the machine is gone.
    pub crash_at: AtomicU64,
    /// There is no room: creating and writing fail.
    pub full: AtomicBool,
    /// There is room for so many areas.
    pub areas_max: AtomicUsize,
    /// Persisting fails.
    pub fail_persist: AtomicBool,
    pub persists: AtomicU64,
    pub bytes_written: AtomicU64,
    /// While closed, persisting waits.
    gate: Mutex<bool>,
    gate_changed: Condvar,
}

impl Control {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            operations: AtomicU64::new(0),
            crash_at: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
            areas_max: AtomicUsize::new(usize::MAX),
            fail_persist: AtomicBool::new(false),
            persists: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            gate: Mutex::new(false),
            gate_changed: Condvar::new(),
        })
    }

    /// Holds every persist back until [`Control::open_gate`].
    pub fn close_gate(&self) {
        *self.gate.lock().unwrap() = true;
    }

    pub fn open_gate(&self) {
        *self.gate.lock().unwrap() = false;
        self.gate_changed.notify_all();
    }

    fn pass_gate(&self) {
        let mut closed = self.gate.lock().unwrap();
        while *closed {
            closed = self.gate_changed.wait(closed).unwrap();
        }
    }

    fn operation(&self) -> io::Result<()> {
        let number = self.operations.fetch_add(1, Ordering::SeqCst);
        if number >= self.crash_at.load(Ordering::SeqCst) {
            return Err(io::Error::other("the machine is gone"));
        }
        Ok(())
    }

    fn room(&self) -> io::Result<()> {
        match self.full.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

#[derive(Debug)]
pub struct SimMedium {
    profile: Profile,
    pub control: Arc<Control>,
    areas: Mutex<BTreeMap<String, Arc<SimArea>>>,
}

#[derive(Debug)]
pub struct SimArea {
    unit: u64,
    control: Arc<Control>,
    bytes: Mutex<Contents>,
    /// What the device cannot read any more.
    lost: Mutex<Vec<Range<u64>>>,
}

/// What is seen, what is durable, and which units differ.
#[derive(Debug)]
struct Contents {
    seen: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<u64>,
}

impl SimMedium {
    pub fn new(profile: Profile) -> Arc<Self> {
        Arc::new(Self { profile, control: Control::new(), areas: Mutex::default() })
    }

    /// The unit of which each survives a crash wholly or not at all.
    fn unit(&self) -> u64 {
        self.profile.alignment.min(512)
    }

    /// The medium after power failed: what was persisted, and of the rest the units that `keep`
    /// says.
    pub fn crashed(&self, mut keep: impl FnMut() -> bool) -> Arc<Self> {
        let control = Control::new();
        let mut areas = BTreeMap::new();
        for (name, area) in self.areas.lock().unwrap().iter() {
            let bytes = area.bytes.lock().unwrap();
            let mut image = bytes.durable.clone();
            for unit in &bytes.dirty {
                let range = (unit * area.unit) as usize..((unit + 1) * area.unit) as usize;
                if keep() {
                    image[range.clone()].copy_from_slice(&bytes.seen[range]);
                }
            }
            areas.insert(name.clone(), Arc::new(SimArea::with(image, area.unit, &control)));
        }
        Arc::new(Self { profile: self.profile, control, areas: Mutex::new(areas) })
    }

    /// The medium after the process died: all that was written is seen, and what was not persisted
    /// is still at stake.
    pub fn abandoned(&self) -> Arc<Self> {
        let control = Control::new();
        let mut areas = BTreeMap::new();
        for (name, area) in self.areas.lock().unwrap().iter() {
            let bytes = area.bytes.lock().unwrap();
            let contents = Contents {
                seen: bytes.seen.clone(),
                durable: bytes.durable.clone(),
                dirty: bytes.dirty.clone(),
            };
            let (unit, control) = (area.unit, Arc::clone(&control));
            let (bytes, lost) = (Mutex::new(contents), Mutex::default());
            let area = SimArea { unit, control, bytes, lost };
            areas.insert(name.clone(), Arc::new(area));
        }
        Arc::new(Self { profile: self.profile, control, areas: Mutex::new(areas) })
    }

    /// A copy with all that was written.
    pub fn copy(&self) -> Arc<Self> {
        self.crashed(|| true)
    }

    pub fn area(&self, name: &str) -> Arc<SimArea> {
        Arc::clone(&self.areas.lock().unwrap()[name])
    }

    pub fn segment_names(&self) -> Vec<String> {
        let names = self.areas.lock().unwrap();
        names.keys().filter(|name| name.starts_with("segment-")).cloned().collect()
    }

    pub fn forget(&self, name: &str) {
        self.areas.lock().unwrap().remove(name);
    }
}

impl SimArea {
    fn with(image: Vec<u8>, unit: u64, control: &Arc<Control>) -> Self {
        let bytes = Contents { durable: image.clone(), seen: image, dirty: BTreeSet::new() };
        let control = Arc::clone(control);
        Self { unit, control, bytes: Mutex::new(bytes), lost: Mutex::default() }
    }

    /// From now on the device cannot read these bytes.
    pub fn lose(&self, range: Range<u64>) {
        self.lost.lock().unwrap().push(range);
    }

    /// Changes bytes behind the log's back.
    pub fn tamper(&self, act: impl FnOnce(&mut [u8])) {
        let mut bytes = self.bytes.lock().unwrap();
        act(&mut bytes.seen);
        bytes.durable = bytes.seen.clone();
    }

    /// Cuts the end off, behind the log's back.
    pub fn shorten(&self, length: usize) {
        let mut bytes = self.bytes.lock().unwrap();
        bytes.seen.truncate(length);
        bytes.durable.truncate(length);
        bytes.dirty.clear();
    }

    pub fn image(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().seen.clone()
    }
}

impl Medium for SimMedium {
    fn profile(&self) -> Profile {
        self.profile
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("sim").join(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.areas.lock().unwrap().keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Area>> {
        let area = self.areas.lock().unwrap().get(name).cloned();
        Ok(area.ok_or(io::ErrorKind::NotFound)?)
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn Area>> {
        self.control.operation()?;
        self.control.room()?;
        if self.areas.lock().unwrap().len() >= self.control.areas_max.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let area = SimArea::with(vec![0; bytes as usize], self.unit(), &self.control);
        let area = Arc::new(area);
        self.areas.lock().unwrap().insert(name.to_owned(), Arc::clone(&area));
        Ok(area)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.control.operation()?;
        let mut areas = self.areas.lock().unwrap();
        let area = areas.remove(from).ok_or(io::ErrorKind::NotFound)?;
        areas.insert(to.to_owned(), area);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.control.operation()?;
        let removed = self.areas.lock().unwrap().remove(name);
        removed.map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Area for SimArea {
    fn bytes(&self) -> u64 {
        self.bytes.lock().unwrap().seen.len() as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset + into.len() as u64;
        let met = |lost: &Range<u64>| lost.start < end && offset < lost.end;
        if self.lost.lock().unwrap().iter().any(met) {
            return Err(rustix::io::Errno::IO.into());
        }
        let bytes = self.bytes.lock().unwrap();
        let from = bytes.seen.get(offset as usize..offset as usize + into.len());
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.control.operation()?;
        self.control.room()?;
        assert!(offset.is_multiple_of(8), "a write at {offset} is not aligned");
        self.control.bytes_written.fetch_add(data.len() as u64, Ordering::SeqCst);
        let mut bytes = self.bytes.lock().unwrap();
        let range = offset as usize..offset as usize + data.len();
        bytes.seen[range].copy_from_slice(data);
        bytes.dirty.extend(offset / self.unit..=(offset + data.len() as u64 - 1) / self.unit);
        Ok(())
    }

    fn persist(&self, offset: u64, length: u64) -> io::Result<()> {
        self.control.pass_gate();
        self.control.operation()?;
        if self.control.fail_persist.load(Ordering::SeqCst) {
            return Err(io::Error::other("the device failed to sync"));
        }
        self.control.persists.fetch_add(1, Ordering::SeqCst);
        let mut bytes = self.bytes.lock().unwrap();
        let Contents { seen, durable, dirty } = &mut *bytes;
        let units = offset / self.unit..(offset + length).div_ceil(self.unit);
        dirty.retain(|unit| {
            let persisted = units.contains(unit);
            if persisted {
                let range = (unit * self.unit) as usize..((unit + 1) * self.unit) as usize;
                durable[range.clone()].copy_from_slice(&seen[range]);
            }
            !persisted
        });
        Ok(())
    }
}

pub fn options() -> LogOptions {
    LogOptions {
        directory: PathBuf::new(),
        medium: MediumKind::Memory,
        node: NODE,
        segment_bytes: SEGMENT,
    }
}

pub fn open(medium: &Arc<SimMedium>) -> Result<(Log, Recovered), OpenError> {
    let medium = Arc::clone(medium) as Arc<dyn Medium>;
    Log::open_on(medium, &options(), FRESH, Arc::new(|| {}))
}

pub fn ballot(round: u64) -> Ballot {
    Ballot { round, node: NODE }
}

/// An entry whose value tells its slot and round.
pub fn entry(slot: u64, round: u64, bytes: usize) -> Entry {
    let text = format!("slot {slot} under {round} ");
    let bytes: Bytes = text.bytes().cycle().take(bytes).collect::<Vec<_>>().into();
    let checksum = crc32c::crc32c(&bytes);
    let value = Value { kind: ValueKind::Commands, checksum, bytes };
    Entry { slot: Slot(slot), ballot: ballot(round), value }
}

/// All entries from `first` on.
pub fn read_all(log: &Log, first: u64) -> Vec<Entry> {
    let mut entries = Vec::new();
    log.read(Slot(first), usize::MAX, &mut entries).expect("reads");
    entries
}

/// A directory on a DAX file system, where the suite also runs on `dax`.
pub const DAX_DIRECTORY: &str = "QUORATE_DAX_DIR";

/// A directory on a disk, where the build's own is not on one.
pub const DISK_DIRECTORY: &str = "QUORATE_DISK_DIR";

/// The media of directories that can be had here.
pub fn directory_kinds() -> Vec<MediumKind> {
    let mut kinds = vec![MediumKind::Emulated, MediumKind::File];
    kinds.extend(std::env::var_os(DAX_DIRECTORY).map(|_| MediumKind::Dax));
    kinds
}

/// An empty directory for a medium of this kind.
pub fn directory_for(kind: MediumKind) -> TempDir {
    // The build's own directory is on a disk; the system's temporary one may not be.
    let disk = || env!("CARGO_TARGET_TMPDIR").into();
    let place = match kind {
        MediumKind::Dax => std::env::var_os(DAX_DIRECTORY).expect("only where it is set"),
        _ => std::env::var_os(DISK_DIRECTORY).unwrap_or_else(disk),
    };
    TempDir::new_in(place).unwrap()
}

/// A small generator, so that a failure is repeated by its seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Waits until it holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}
