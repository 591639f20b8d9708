//! A medium over an [`Image`] that writes down what is done to it.

use crate::disk::Image;
use quorate_pmem_log::{Area, Medium, Profile};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Something that was done to a medium, or a mark of whoever did it.
#[derive(Clone, Debug)]
pub enum Event<M> {
    /// What the run says about itself.
    Mark(M),
    /// [`Area::write`].
    Write {
        /// The area's number.
        area: u32,
        /// Where.
        offset: u64,
        /// What.
        bytes: Box<[u8]>,
    },
    /// [`Area::persist`].
    Persist {
        /// The area's number.
        area: u32,
        /// From where.
        offset: u64,
        /// How much.
        bytes: u64,
    },
    /// [`Medium::open`].
    Open {
        /// The area's name.
        name: String,
        /// Its number.
        area: u32,
    },
    /// [`Medium::create`].
    Create {
        /// The new area's name.
        name: String,
        /// Its number.
        area: u32,
        /// Its size.
        bytes: u64,
    },
    /// [`Medium::rename`].
    Rename {
        /// The old name.
        from: String,
        /// The new name.
        to: String,
    },
    /// [`Medium::remove`].
    Remove {
        /// The name.
        name: String,
    },
}

/// A medium that holds an [`Image`]. Clones are the same medium.
#[derive(Debug)]
pub struct Tape<M> {
    profile: Profile,
    shared: Arc<Mutex<Recording<M>>>,
}

impl<M> Clone for Tape<M> {
    fn clone(&self) -> Self {
        Self { profile: self.profile, shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
struct Recording<M> {
    image: Image,
    /// `None`: nothing is written down.
    events: Option<Vec<Event<M>>>,
}

impl<M> Recording<M> {
    fn note(&mut self, event: impl FnOnce() -> Event<M>) {
        if let Some(events) = &mut self.events {
            events.push(event());
        }
    }
}

impl<M> Tape<M> {
    /// A medium that holds `image`; `records` says whether events are kept.
    #[must_use]
    pub fn new(profile: Profile, image: Image, records: bool) -> Self {
        let events = records.then(Vec::new);
        Self { profile, shared: Arc::new(Mutex::new(Recording { image, events })) }
    }

    fn lock(&self) -> MutexGuard<'_, Recording<M>> {
        // A run that panicked has failed anyway.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes something about the run.
    pub fn mark(&self, mark: M) {
        self.lock().note(|| Event::Mark(mark));
    }

    /// Another medium that holds the same now, to look at without leaving a trace.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self::new(self.profile, self.lock().image.clone(), false)
    }

    /// What it holds.
    pub(crate) fn image(&self) -> Image {
        self.lock().image.clone()
    }

    /// Everything that happened so far; nothing is kept from now on.
    #[must_use]
    pub fn take(&self) -> Vec<Event<M>> {
        self.lock().events.take().unwrap_or_default()
    }
}

impl<M: Send + std::fmt::Debug + 'static> Tape<M> {
    fn area(&self, number: u32, bytes: u64) -> Arc<dyn Area> {
        Arc::new(TapeArea { tape: self.clone(), number, bytes })
    }
}

impl<M: Send + std::fmt::Debug + 'static> Medium for Tape<M> {
    fn profile(&self) -> Profile {
        self.profile
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().image.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Area>> {
        let mut recording = self.lock();
        let area = *recording.image.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let bytes = recording.image.areas[&area].len() as u64;
        recording.note(|| Event::Open { name: name.to_owned(), area });
        drop(recording);
        Ok(self.area(area, bytes))
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn Area>> {
        let mut recording = self.lock();
        let area = recording.image.next;
        recording.image.next += 1;
        recording.image.names.insert(name.to_owned(), area);
        recording.image.areas.insert(area, Arc::new(vec![0; bytes as usize]));
        recording.note(|| Event::Create { name: name.to_owned(), area, bytes });
        drop(recording);
        Ok(self.area(area, bytes))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut recording = self.lock();
        let area = recording.image.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        recording.image.names.insert(to.to_owned(), area);
        recording.note(|| Event::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut recording = self.lock();
        recording.image.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        recording.note(|| Event::Remove { name: name.to_owned() });
        Ok(())
    }
}

#[derive(Debug)]
struct TapeArea<M> {
    tape: Tape<M>,
    number: u32,
    bytes: u64,
}

impl<M: Send + std::fmt::Debug + 'static> Area for TapeArea<M> {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let recording = self.tape.lock();
        let bytes = &recording.image.areas[&self.number];
        let from = bytes.get(offset as usize..).and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(8), "a write at {offset} is not aligned");
        let mut recording = self.tape.lock();
        let contents = recording.image.areas.get_mut(&self.number).map(Arc::make_mut);
        let place = contents.and_then(|contents| contents.get_mut(offset as usize..));
        let place = place.ok_or(io::ErrorKind::UnexpectedEof)?;
        place.get_mut(..bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(bytes);
        // The contract lets the rest of the last word become zero; a mapping does so.
        let rest = bytes.len().next_multiple_of(8).min(place.len());
        place[bytes.len()..rest].fill(0);
        let area = self.number;
        recording.note(|| Event::Write { area, offset, bytes: bytes.into() });
        Ok(())
    }

    fn persist(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let area = self.number;
        self.tape.lock().note(|| Event::Persist { area, offset, bytes });
        Ok(())
    }
}
