//! A medium in memory whose bytes the fuzzer may change behind the log's back.

use quorate_pmem_log::{Area, Medium, MediumKind, Profile};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A mapped medium, whose batches begin anywhere, and one of pages.
pub(crate) const PROFILES: [Profile; 2] = [
    Profile { kind: MediumKind::Emulated, alignment: 8, sync_thread: false, zero_fill: false },
    Profile { kind: MediumKind::File, alignment: 4096, sync_thread: false, zero_fill: false },
];

/// All areas by their names.
pub(crate) type Image = BTreeMap<String, Vec<u8>>;

#[derive(Debug)]
pub(crate) struct FuzzMedium {
    profile: Profile,
    areas: Mutex<BTreeMap<String, Arc<FuzzArea>>>,
}

#[derive(Debug)]
struct FuzzArea(Mutex<Vec<u8>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FuzzMedium {
    /// A medium that holds `image`.
    pub(crate) fn new(profile: Profile, image: &Image) -> Arc<Self> {
        let area = |bytes: &Vec<u8>| Arc::new(FuzzArea(Mutex::new(bytes.clone())));
        let areas = image.iter().map(|(name, bytes)| (name.clone(), area(bytes))).collect();
        Arc::new(Self { profile, areas: Mutex::new(areas) })
    }

    /// All that was written.
    pub(crate) fn image(&self) -> Image {
        let areas = lock(&self.areas);
        areas.iter().map(|(name, area)| (name.clone(), lock(&area.0).clone())).collect()
    }
}

impl Medium for FuzzMedium {
    fn profile(&self) -> Profile {
        self.profile
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("fuzz").join(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.areas).keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Area>> {
        let area = lock(&self.areas).get(name).cloned();
        Ok(area.ok_or(io::ErrorKind::NotFound)?)
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn Area>> {
        // A disk of this size is full long before.
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= 1 << 20);
        let bytes = bytes.ok_or(io::ErrorKind::StorageFull)?;
        let area = Arc::new(FuzzArea(Mutex::new(vec![0; bytes])));
        lock(&self.areas).insert(name.to_owned(), Arc::clone(&area));
        Ok(area)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut areas = lock(&self.areas);
        let area = areas.remove(from).ok_or(io::ErrorKind::NotFound)?;
        areas.insert(to.to_owned(), area);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let removed = lock(&self.areas).remove(name);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Area for FuzzArea {
    fn bytes(&self) -> u64 {
        lock(&self.0).len() as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let bytes = lock(&self.0);
        let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)?.get(..into.len()));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(8), "a write at {offset} is not aligned");
        let mut bytes = lock(&self.0);
        let place = usize::try_from(offset).ok().and_then(|at| bytes.get_mut(at..));
        let place = place.and_then(|rest| rest.get_mut(..data.len()));
        place.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        Ok(())
    }

    fn persist(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}
