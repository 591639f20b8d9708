//! A disk that keeps what a disk keeps: what was synced survives, and of the rest any subset of
//! units; it fails when told, and lies below the durable point when told.

use crate::coverage::Row;
use crate::random::Random;
use quorate_pmem_log::{Area, Medium, Profile};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The disk of one replica, in one life of its process.
#[derive(Debug)]
pub(crate) struct SimMedium {
    profile: Profile,
    control: Arc<Control>,
    areas: Mutex<BTreeMap<String, Arc<Mutex<Contents>>>>,
}

/// What the world steers.
#[derive(Debug, Default)]
pub(crate) struct Control {
    state: Mutex<ControlState>,
    /// As the state has it: asked after every turn.
    dead: AtomicBool,
}

#[derive(Debug, Default)]
struct ControlState {
    dead: bool,
    dies_after: Option<u64>,
    full: bool,
    fail_sync: bool,
    fail_read: bool,
    /// A change fails after so many more.
    fails_after: Option<u64>,
    failed: Failed,
    /// What the machine died in.
    died_in: Option<Row>,
}

/// Which failures a process has met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Failed {
    /// A sync.
    pub(crate) sync: bool,
    /// A read.
    pub(crate) read: bool,
    /// Any change.
    pub(crate) change: bool,
}

/// A change of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    /// A name.
    Name,
    /// The bytes of the superblock.
    Superblock,
    /// The bytes of the log.
    Log,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, ControlState> {
        lock(&self.state)
    }

    /// From now on every operation fails: the machine is gone.
    pub(crate) fn kill(&self) {
        self.lock().dead = true;
        self.dead.store(true, Ordering::Relaxed);
    }

    /// The machine goes away after so many more operations that change something.
    pub(crate) fn kill_after(&self, operations: u64) {
        self.lock().dies_after = Some(operations);
    }

    /// Whether it is gone.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Whether there is room for new bytes.
    pub(crate) fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Nothing planned happens any more.
    pub(crate) fn calm(&self) {
        let mut state = self.lock();
        state.dies_after = None;
        state.full = false;
        state.fail_sync = false;
        state.fail_read = false;
        state.fails_after = None;
    }

    /// Whether it gave a process reason to fail.
    pub(crate) fn excuses(&self) -> bool {
        let state = self.lock();
        state.dead || state.full || state.failed != Failed::default()
    }

    /// Which failures a process has met.
    pub(crate) fn failed(&self) -> Failed {
        self.lock().failed
    }

    /// What kind of death it was, if it is one that the catalogue has a row for.
    pub(crate) fn died_in(&self) -> Option<Row> {
        self.lock().died_in
    }

    /// The next read fails.
    pub(crate) fn fail_next_read(&self) {
        self.lock().fail_read = true;
    }

    /// One change fails, after so many more.
    pub(crate) fn fail_after(&self, operations: u64) {
        self.lock().fails_after = Some(operations);
    }

    /// A planned death does not happen any more.
    pub(crate) fn spare(&self) {
        self.lock().dies_after = None;
    }

    /// Whether there is no room.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().full
    }

    /// The next sync fails, and what it was to make durable may be lost.
    pub(crate) fn fail_next_sync(&self) {
        self.lock().fail_sync = true;
    }

    fn operation(&self, change: Change) -> io::Result<()> {
        let mut state = self.lock();
        match state.dies_after {
            Some(AT_A_NAME) if change != Change::Name => {}
            Some(0 | AT_A_NAME) if !state.dead => {
                state.dead = true;
                self.dead.store(true, Ordering::Relaxed);
                state.died_in = match change {
                    Change::Name => Some(Row::F57),
                    Change::Superblock => Some(Row::F42),
                    Change::Log => None,
                };
            }
            Some(left) => state.dies_after = Some(left.saturating_sub(1)),
            None => {}
        }
        if state.dead {
            return Err(io::Error::other("the machine is gone"));
        }
        if let Some(left) = &mut state.fails_after {
            if *left == 0 {
                state.fails_after = None;
                state.failed.change = true;
                return Err(io::Error::other("the device failed"));
            }
            *left -= 1;
        }
        Ok(())
    }

    fn room(&self) -> io::Result<()> {
        if self.lock().full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

/// The bytes as the process sees them, and what each unsynced write replaced.
#[derive(Clone, Debug, Default)]
struct Contents {
    /// Shared with copies of the disk until one of them is written to.
    seen: Arc<Vec<u8>>,
    /// In the order of writing.
    unsynced: Vec<Replaced>,
    /// What the newest sync covered: damage there would look like a torn tail.
    newest_sync: Range<u64>,
}

#[derive(Clone, Debug)]
struct Replaced {
    offset: u64,
    old: Vec<u8>,
}

#[derive(Debug)]
struct SimArea {
    control: Arc<Control>,
    contents: Arc<Mutex<Contents>>,
    unit: u64,
    change: Change,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much of what was not synced is left after a crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Survival {
    /// The process died, the machine did not: all that was written is there, and still unsynced.
    Everything,
    /// Nothing of it.
    Nothing,
    /// Any subset of its units.
    Subset,
    /// Any subset of its cache lines, where units are smaller.
    Lines,
}

impl SimMedium {
    /// An empty disk.
    #[must_use]
    pub(crate) fn new(profile: Profile) -> Arc<Self> {
        Arc::new(Self { profile, control: Arc::default(), areas: Mutex::default() })
    }

    /// What the world steers.
    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    fn area(&self, name: &str, contents: Arc<Mutex<Contents>>) -> Arc<dyn Area> {
        let change = if name.starts_with(SUPERBLOCK) { Change::Superblock } else { Change::Log };
        let control = Arc::clone(&self.control);
        Arc::new(SimArea { control, contents, unit: self.unit(), change })
    }

    /// The unit of which each survives a crash wholly or not at all.
    fn unit(&self) -> u64 {
        self.profile.alignment.min(512)
    }

    /// The disk as the next process finds it.
    #[must_use]
    pub(crate) fn after_crash(&self, survival: Survival, random: &mut Random) -> Arc<Self> {
        let mut areas = BTreeMap::new();
        for (name, contents) in lock(&self.areas).iter() {
            let mut contents = lock(contents).clone();
            match survival {
                Survival::Everything => {}
                Survival::Nothing => contents.forget(self.unit(), |_| false),
                Survival::Subset | Survival::Lines => {
                    let parts = random.pick(&[100_000, 500_000, 900_000]);
                    let lines = if survival == Survival::Lines { LINE } else { 0 };
                    contents.forget(self.unit().max(lines), |_| random.chance(parts));
                }
            }
            areas.insert(name.clone(), Arc::new(Mutex::new(contents)));
        }
        Arc::new(Self { profile: self.profile, control: Arc::default(), areas: Mutex::new(areas) })
    }

    /// Damages durable bytes of a segment, but not those of its newest sync, where damage cannot be
    /// told from a torn tail. Returns what was done.
    pub(crate) fn damage(&self, kind: Damage, random: &mut Random) -> Option<String> {
        let areas = lock(&self.areas);
        if kind == Damage::Superblock {
            let mut contents = lock(areas.get(SUPERBLOCK)?);
            let half = contents.seen.len() / 2;
            let start = if random.chance(500_000) { half } else { 0 };
            let used = contents.seen[start..start + half].iter().rposition(|byte| *byte != 0)?;
            let byte = start + random.below(used as u64 + 1) as usize;
            Arc::make_mut(&mut contents.seen)[byte] ^= 1 << random.below(8);
            return Some(format!("a bit of byte {byte} of the superblock"));
        }
        if kind == Damage::Checkpoint {
            let names: Vec<_> = areas.keys().filter(|name| is_checkpoint(name)).collect();
            let name = names.get(random.below(names.len() as u64) as usize)?;
            let mut contents = lock(&areas[*name]);
            let used = contents.used(contents.seen.len() as u64);
            if used == 0 {
                return None;
            }
            let byte = random.below(used) as usize;
            Arc::make_mut(&mut contents.seen)[byte] ^= 1 << random.below(8);
            return Some(format!("a bit of byte {byte} of {name}"));
        }
        let names: Vec<_> = areas.keys().filter(|name| name.starts_with("segment-")).collect();
        // The newest segment ends in the newest sync; the ones before it are durable throughout.
        let (newest, old) = names.split_last()?;
        let whole = random.below(names.len() as u64) as usize;
        let name = old.get(whole).unwrap_or(newest);
        let mut contents = lock(&areas[*name]);
        let end = if name == newest {
            contents.newest_sync.start.min(contents.seen.len() as u64)
        } else {
            contents.seen.len() as u64
        };
        // The header of the segment is damaged only now and then: it is one sector of many.
        let first = if random.chance(100_000) { 0 } else { 512 };
        let used = contents.used(end);
        if used <= first + 1024 {
            return None;
        }
        let sector = random.between(first, used - 513) / 512 * 512;
        let at = sector as usize..sector as usize + 512;
        let seen = Arc::make_mut(&mut contents.seen);
        match kind {
            Damage::Flip => {
                let byte = sector as usize + random.below(512) as usize;
                seen[byte] ^= 1 << random.below(8);
            }
            Damage::LostSector => seen[at].fill(0),
            Damage::Misdirected => {
                let other = (random.between(first, used - 513) / 512 * 512) as usize;
                let copy = seen[other..other + 512].to_vec();
                seen[at].copy_from_slice(&copy);
            }
            Damage::Superblock | Damage::Checkpoint => {}
        }
        Some(format!("{kind:?} at {sector} of {name}"))
    }
}

/// Whether an area holds a checkpoint, or a part of one, that is installed.
fn is_checkpoint(name: &str) -> bool {
    name.starts_with("checkpoint-") && !name.ends_with(".new")
}

/// In place of a count: at the next change of a name.
pub(crate) const AT_A_NAME: u64 = u64::MAX;
/// A cache line.
const LINE: u64 = 64;
/// Half of the superblock: one of its two copies.
const SUPERBLOCK: &str = "superblock";

/// Ways in which a disk breaks its word about what was durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Damage {
    /// One bit.
    Flip,
    /// A sector reads as zeros.
    LostSector,
    /// A sector holds the bytes of another one.
    Misdirected,
    /// A bit of one of the two copies of the superblock.
    Superblock,
    /// A bit of a checkpoint that is installed.
    Checkpoint,
}

impl Contents {
    /// Takes unsynced units back but those that `keep` says, the newest write of each first.
    fn forget(&mut self, unit: u64, mut keep: impl FnMut(u64) -> bool) {
        let mut kept: BTreeMap<u64, bool> = BTreeMap::new();
        if self.unsynced.is_empty() {
            return;
        }
        let seen = Arc::make_mut(&mut self.seen);
        for replaced in std::mem::take(&mut self.unsynced).into_iter().rev() {
            let end = replaced.offset + replaced.old.len() as u64;
            for unit_index in replaced.offset / unit..end.div_ceil(unit) {
                let stays = kept.get(&unit_index).copied().unwrap_or(false) || keep(unit_index);
                kept.insert(unit_index, stays);
                if !stays {
                    let from = (unit_index * unit).max(replaced.offset);
                    let to = ((unit_index + 1) * unit).min(end);
                    let old = (from - replaced.offset) as usize..(to - replaced.offset) as usize;
                    seen[from as usize..to as usize].copy_from_slice(&replaced.old[old]);
                }
            }
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let range = offset as usize..offset as usize + bytes.len();
        let old = self.seen[range.clone()].to_vec();
        self.unsynced.push(Replaced { offset, old });
        Arc::make_mut(&mut self.seen)[range].copy_from_slice(bytes);
    }

    /// What lies in `range`, widened to whole units, is safe.
    fn sync(&mut self, range: &Range<u64>, unit: u64) {
        let (start, end) = (range.start / unit * unit, range.end.div_ceil(unit) * unit);
        let before = std::mem::take(&mut self.unsynced);
        for Replaced { offset, mut old } in before {
            let old_end = offset + old.len() as u64;
            if old_end > end && offset < end {
                let tail = old.split_off((end.max(offset) - offset) as usize);
                self.unsynced.push(Replaced { offset: end.max(offset), old: tail });
            } else if offset >= end {
                self.unsynced.push(Replaced { offset, old });
                continue;
            }
            if offset < start {
                old.truncate((start - offset) as usize);
                self.unsynced.push(Replaced { offset, old });
            }
        }
    }

    /// Up to where there is anything but zeros.
    fn used(&self, end: u64) -> u64 {
        let seen = &self.seen[..end as usize];
        seen.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
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
        Ok(lock(&self.areas).keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Area>> {
        let contents = lock(&self.areas).get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(self.area(name, contents))
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn Area>> {
        self.control.operation(Change::Name)?;
        self.control.room()?;
        let contents = Contents { seen: Arc::new(vec![0; bytes as usize]), ..Contents::default() };
        let contents = Arc::new(Mutex::new(contents));
        lock(&self.areas).insert(name.to_owned(), Arc::clone(&contents));
        Ok(self.area(name, contents))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.control.operation(Change::Name)?;
        let mut areas = lock(&self.areas);
        let area = areas.remove(from).ok_or(io::ErrorKind::NotFound)?;
        areas.insert(to.to_owned(), area);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.control.operation(Change::Name)?;
        let removed = lock(&self.areas).remove(name);
        removed.map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Area for SimArea {
    fn bytes(&self) -> u64 {
        lock(&self.contents).seen.len() as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if std::mem::take(&mut self.control.lock().fail_read) {
            self.control.lock().failed.read = true;
            return Err(io::Error::other("the device failed to read"));
        }
        let contents = lock(&self.contents);
        let from = contents.seen.get(offset as usize..offset as usize + into.len());
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.control.operation(self.change)?;
        self.control.room()?;
        lock(&self.contents).write(offset, bytes);
        Ok(())
    }

    fn persist(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.control.operation(self.change)?;
        if std::mem::take(&mut self.control.lock().fail_sync) {
            self.control.lock().failed.sync = true;
            return Err(io::Error::other("the device failed to sync"));
        }
        let range = offset..offset + bytes;
        let mut contents = lock(&self.contents);
        contents.sync(&range, self.unit);
        contents.newest_sync = range;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_pmem_log::MediumKind;

    fn medium() -> Arc<SimMedium> {
        SimMedium::new(Profile {
            kind: MediumKind::Emulated,
            alignment: 8,
            sync_thread: false,
            zero_fill: false,
        })
    }

    fn read(medium: &SimMedium, bytes: usize) -> Vec<u8> {
        let mut into = vec![0; bytes];
        medium.open("a").unwrap().read(0, &mut into).unwrap();
        into
    }

    #[test]
    fn synced_bytes_survive_and_unsynced_ones_need_not() {
        let medium = medium();
        let area = medium.create("a", 64).unwrap();
        area.write(0, &[1; 32]).unwrap();
        area.persist(8, 16).unwrap();
        area.write(16, &[2; 16]).unwrap();
        let after = medium.after_crash(Survival::Nothing, &mut Random::new(1));
        let mut expected = [0; 32];
        expected[8..24].fill(1);
        assert_eq!(read(&after, 32), expected);
        let whole = medium.after_crash(Survival::Everything, &mut Random::new(1));
        assert_eq!(read(&whole, 32), read(&medium, 32));
    }
}
