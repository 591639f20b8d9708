//! What a device holds between two operations: what is durable, what is seen, and what of it a
//! crash may keep.

use crate::tape::Event;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What survives by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CrashModel {
    /// Aligned units of so many bytes survive wholly or not at all: 8 for persistent memory, 512
    /// for a disk.
    pub unit: usize,
    /// Opening an area makes durable what an earlier process left unpersisted in it.
    pub open_persists: bool,
}

/// All areas by name, as a process that starts finds them. Cloning shares the bytes.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pub(crate) names: BTreeMap<String, u32>,
    pub(crate) areas: BTreeMap<u32, Arc<Vec<u8>>>,
    pub(crate) next: u32,
}

/// A change of names that is not durable yet: only a mutant leaves one.
#[derive(Clone, Debug)]
enum NameChange {
    Add(String, u32),
    Move(String, String),
    Remove(String),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, u32>) {
        match self {
            Self::Add(name, area) => {
                names.insert(name.clone(), *area);
            }
            Self::Move(from, to) => {
                if let Some(area) = names.remove(from) {
                    names.insert(to.clone(), area);
                }
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

/// A device in the middle of a run.
#[derive(Clone, Debug)]
pub struct Disk {
    model: CrashModel,
    durable_names: BTreeMap<String, u32>,
    name_changes: Vec<NameChange>,
    pub(crate) names: BTreeMap<String, u32>,
    areas: BTreeMap<u32, Contents>,
}

#[derive(Clone, Debug)]
struct Contents {
    durable: Arc<Vec<u8>>,
    /// The values that each unit took since it was last persisted, in order: a cache line may have
    /// been written back after any of them.
    pending: BTreeMap<u32, Vec<Box<[u8]>>>,
}

impl Contents {
    /// What a reader of the same machine sees.
    fn seen(&self, unit: usize) -> Arc<Vec<u8>> {
        let mut bytes = Arc::clone(&self.durable);
        for (index, values) in &self.pending {
            if let Some(value) = values.last() {
                put(&mut bytes, *index as usize * unit, value);
            }
        }
        bytes
    }
}

fn put(bytes: &mut Arc<Vec<u8>>, at: usize, value: &[u8]) {
    Arc::make_mut(bytes)[at..at + value.len()].copy_from_slice(value);
}

/// A unit that a crash may leave in more than one state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Doubt {
    area: u32,
    index: u32,
    /// How many values beside the durable one.
    pub(crate) values: u32,
}

impl Doubt {
    /// Tells it from every other of its time.
    pub(crate) fn fingerprint(&self) -> u64 {
        u64::from(self.area) << 32 | u64::from(self.index)
    }
}

impl Disk {
    /// A device that holds `image`, all of it durable.
    #[must_use]
    pub fn new(model: CrashModel, image: &Image) -> Self {
        let whole = |durable: &Arc<Vec<u8>>| Contents {
            durable: Arc::clone(durable),
            pending: BTreeMap::new(),
        };
        Self {
            model,
            durable_names: image.names.clone(),
            name_changes: Vec::new(),
            names: image.names.clone(),
            areas: image.areas.iter().map(|(area, bytes)| (*area, whole(bytes))).collect(),
        }
    }

    /// Does what the event says. One that is `suppressed` does not make durable what it should.
    pub(crate) fn apply<M>(&mut self, event: &Event<M>, suppressed: bool) {
        match event {
            Event::Mark(_) => {}
            Event::Write { area, offset, bytes } => self.write(*area, *offset as usize, bytes),
            Event::Persist { area, offset, bytes } if !suppressed => {
                self.persist(*area, *offset as usize, *bytes as usize);
            }
            Event::Open { area, .. } if self.model.open_persists && !suppressed => {
                self.persist(*area, 0, usize::MAX / 2);
            }
            Event::Persist { .. } | Event::Open { .. } => {}
            Event::Create { name, area, bytes } => {
                let durable = Arc::new(vec![0; *bytes as usize]);
                self.areas.insert(*area, Contents { durable, pending: BTreeMap::new() });
                self.change_names(NameChange::Add(name.clone(), *area), suppressed);
            }
            Event::Rename { from, to } => {
                self.change_names(NameChange::Move(from.clone(), to.clone()), suppressed);
            }
            Event::Remove { name } => {
                self.change_names(NameChange::Remove(name.clone()), suppressed);
            }
        }
    }

    fn write(&mut self, area: u32, offset: usize, bytes: &[u8]) {
        let unit = self.model.unit;
        // An area that was removed may still be held open; nobody will ever see it again.
        let Some(contents) = self.areas.get_mut(&area) else { return };
        let end = (offset + bytes.len()).next_multiple_of(8).min(contents.durable.len());
        for index in offset / unit..end.div_ceil(unit) {
            let from = index * unit;
            let to = (from + unit).min(contents.durable.len());
            let values = contents.pending.entry(index as u32).or_default();
            let before = values.last().map_or(&contents.durable[from..to], |last| last);
            let mut value: Box<[u8]> = before.into();
            for (at, byte) in (from..to).zip(&mut *value) {
                if at >= offset && at < end {
                    *byte = bytes.get(at - offset).copied().unwrap_or(0);
                }
            }
            let changed = *value != *before;
            if changed {
                values.push(value);
            } else if values.is_empty() {
                contents.pending.remove(&(index as u32));
            }
        }
    }

    fn persist(&mut self, area: u32, offset: usize, bytes: usize) {
        let unit = self.model.unit;
        let Some(contents) = self.areas.get_mut(&area) else { return };
        let last = (offset + bytes).div_ceil(unit).min(u32::MAX as usize) as u32;
        let mut covered = contents.pending.split_off(&((offset / unit) as u32));
        contents.pending.append(&mut covered.split_off(&last));
        if covered.is_empty() {
            return;
        }
        for (index, values) in covered {
            if let Some(value) = values.last() {
                put(&mut contents.durable, index as usize * unit, value);
            }
        }
    }

    fn change_names(&mut self, change: NameChange, suppressed: bool) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
        if !suppressed {
            for change in self.name_changes.drain(..) {
                change.apply(&mut self.durable_names);
            }
        }
        let names = [&self.durable_names, &self.names];
        self.areas.retain(|area, _| names.iter().any(|names| names.values().any(|a| a == area)));
    }

    /// The name of an area.
    pub(crate) fn name_of(&self, area: u32) -> &str {
        let mut names = self.names.iter();
        names.find(|(_, found)| **found == area).map_or("", |(name, _)| name)
    }

    /// Everything that a crash may leave in more than one state.
    pub(crate) fn doubts(&self) -> Vec<Doubt> {
        let mut doubts = Vec::new();
        for (area, contents) in &self.areas {
            for (index, values) in &contents.pending {
                doubts.push(Doubt { area: *area, index: *index, values: values.len() as u32 });
            }
        }
        doubts
    }

    /// How many sets of names a crash may leave: more than one only under a mutant.
    pub(crate) fn name_states(&self) -> usize {
        self.name_changes.len() + 1
    }

    /// The device after a crash: of the unit of `doubts[i]` the durable value if `kept[i]` is 0,
    /// else the value of that number; and the first `changes` changes of names.
    pub(crate) fn crashed(&self, doubts: &[Doubt], kept: &[u32], changes: usize) -> Image {
        let mut names = self.durable_names.clone();
        for change in &self.name_changes[..changes] {
            change.apply(&mut names);
        }
        let mut areas: BTreeMap<_, _> = self
            .areas
            .iter()
            .map(|(area, contents)| (*area, Arc::clone(&contents.durable)))
            .collect();
        for (doubt, kept) in doubts.iter().zip(kept) {
            if let (Some(kept), Some(bytes)) = (kept.checked_sub(1), areas.get_mut(&doubt.area)) {
                let value = &self.areas[&doubt.area].pending[&doubt.index][kept as usize];
                put(bytes, doubt.index as usize * self.model.unit, value);
            }
        }
        let mut image = Image { names, areas, next: self.next_area() };
        image.forget_unnamed();
        image
    }

    /// What a new process finds when only the old one died.
    pub(crate) fn abandoned(&self) -> Image {
        let unit = self.model.unit;
        let seen = self.areas.iter().map(|(area, contents)| (*area, contents.seen(unit)));
        let mut image =
            Image { names: self.names.clone(), areas: seen.collect(), next: self.next_area() };
        image.forget_unnamed();
        image
    }

    fn next_area(&self) -> u32 {
        self.areas.last_key_value().map_or(0, |(area, _)| area + 1)
    }
}

impl Image {
    fn forget_unnamed(&mut self) {
        let Self { names, areas, .. } = self;
        areas.retain(|area, _| names.values().any(|named| named == area));
    }

    /// The image with these bits of one byte flipped.
    pub(crate) fn flipped(&self, area: u32, offset: usize, bits: u8) -> Self {
        let mut image = self.clone();
        if let Some(bytes) = image.areas.get_mut(&area) {
            Arc::make_mut(bytes)[offset] ^= bits;
        }
        image
    }

    pub(crate) fn name_of(&self, area: u32) -> &str {
        let mut names = self.names.iter();
        names.find(|(_, found)| **found == area).map_or("", |(name, _)| name)
    }

    /// The image with an area whose making was interrupted: it has its name, and the first of its
    /// bytes.
    pub(crate) fn cut(&self, name: &str, bytes: usize) -> Self {
        let mut image = self.clone();
        if let Some(area) = image.names.get(name)
            && let Some(contents) = image.areas.get_mut(area)
        {
            *contents = Arc::new(contents[..bytes].to_vec());
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: CrashModel = CrashModel { unit: 8, open_persists: false };

    fn write(disk: &mut Disk, offset: u64, bytes: &[u8]) {
        disk.apply::<()>(&Event::Write { area: 0, offset, bytes: bytes.into() }, false);
    }

    fn disk() -> Disk {
        let mut disk = Disk::new(MODEL, &Image::default());
        disk.apply::<()>(&Event::Create { name: "a".into(), area: 0, bytes: 32 }, false);
        disk
    }

    #[test]
    fn a_unit_that_was_written_twice_has_three_fates_and_an_equal_write_is_none() {
        let mut disk = disk();
        write(&mut disk, 8, &[1; 8]);
        write(&mut disk, 8, &[2; 8]);
        write(&mut disk, 16, &[0; 8]);
        let doubts = disk.doubts();
        assert_eq!(doubts, [Doubt { area: 0, index: 1, values: 2 }]);
        for (kept, expected) in [(0, 0), (1, 1), (2, 2)] {
            assert_eq!(disk.crashed(&doubts, &[kept], 0).areas[&0][8..16], [expected; 8]);
        }
        assert_eq!(disk.abandoned().areas[&0][8..16], [2; 8]);
    }

    #[test]
    fn a_persist_settles_its_range_and_a_suppressed_one_nothing() {
        let mut disk = disk();
        write(&mut disk, 0, &[7; 24]);
        disk.apply::<()>(&Event::Persist { area: 0, offset: 8, bytes: 3 }, true);
        assert_eq!(disk.doubts().len(), 3);
        disk.apply::<()>(&Event::Persist { area: 0, offset: 8, bytes: 3 }, false);
        let left: Vec<_> = disk.doubts().iter().map(|doubt| doubt.index).collect();
        assert_eq!(left, [0, 2]);
        assert_eq!(disk.crashed(&disk.doubts(), &[0, 0], 0).areas[&0][..16], {
            let mut bytes = [0; 16];
            bytes[8..].fill(7);
            bytes
        });
    }

    #[test]
    fn a_name_is_durable_at_once_unless_its_sync_is_suppressed() {
        let mut disk = disk();
        let rename = Event::<()>::Rename { from: "a".into(), to: "b".into() };
        disk.apply(&rename, true);
        assert_eq!(disk.name_states(), 2);
        assert!(disk.crashed(&[], &[], 0).names.contains_key("a"));
        assert!(disk.crashed(&[], &[], 1).names.contains_key("b"));
        disk.apply::<()>(&Event::Create { name: "c".into(), area: 1, bytes: 8 }, false);
        assert_eq!(disk.name_states(), 1);
        assert!(disk.crashed(&[], &[], 0).names.contains_key("b"));
    }
}
