//! A log whose medium lost, kept back or changed some bytes.

use super::format::{COPY_BYTES, Found, HEADER_BYTES, headers, proof, superblocks};
use super::{Book, DOCUMENT, LIFE, NODE, open, read};
use crate::Input;
use crate::medium::{FuzzMedium, Image};
use quorate_consensus::{Ballot, Entry, Slot, Value};
use quorate_pmem_log::{Damage, Log, LogError, Record, Recovered, verify};
use std::sync::Arc;

const SECTOR_BYTES: usize = 512;
/// Changes of one execution at the most.
const CHANGES_MAX: usize = 8;

/// A script that writes a log, and one that damages it. Recovery never returns what was not
/// written, never the older of two values, and loses nothing silently that a whole neighbour
/// proves to have been durable.
pub fn log_recovery(data: &[u8]) {
    let mut input = Input::new(data);
    let book = Book::write(&mut input);
    let before = Whole::of(&book);
    let mut image = book.image.clone();
    let look = input.u8().is_multiple_of(16);
    for _ in 0..CHANGES_MAX {
        if !input.is_empty() {
            damage(&mut image, &book, &mut input);
        }
    }
    if look {
        inspect(&image);
    }
    let medium = FuzzMedium::new(book.profile, &image);
    let (log, recovered) = match open(&medium) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(superblocks(&image).is_empty(), "a superblock is whole, and yet: {error}");
            return;
        }
    };
    let found = judge(&book, &before, &image, &log, &recovered);
    go_on(&book, &found, &medium, log, &recovered);
}

/// What a log held before it was damaged.
struct Whole {
    /// The newest entry of each slot and where its record stands.
    newest: Vec<(Entry, Found)>,
    headers: Vec<Found>,
}

impl Whole {
    fn of(book: &Book) -> Self {
        let headers = headers(&book.image);
        let medium = FuzzMedium::new(book.profile, &book.image);
        let (log, recovered) = open(&medium).expect("a log that nobody damaged opens");
        assert!(recovered.damaged.is_empty(), "nothing is damaged: {:?}", recovered.damaged);
        assert_eq!((recovered.promised, recovered.promise_certain), (book.promised, true));
        assert_eq!(recovered.commit_slot, book.commit);
        let mut newest = Vec::new();
        for slot in (recovered.first_slot.0..=recovered.last_slot.0).map(Slot) {
            let Some(entry) = read(&log, slot).expect("nothing is damaged") else { continue };
            let latest = book.appended.iter().rev().find(|appended| appended.slot == slot);
            assert_eq!(latest, Some(&entry), "the newest entry of a slot");
            let stands = headers.iter().rev().find(|header| is_record_of(header, &entry));
            newest.push((entry, stands.expect("what is read has a record").clone()));
        }
        Self { newest, headers }
    }
}

fn is_record_of(header: &Found, entry: &Entry) -> bool {
    let named = header.is_entry && header.slot == entry.slot && header.ballot == entry.ballot;
    named && header.value_checksum == entry.value.checksum
}

fn damage(image: &mut Image, book: &Book, input: &mut Input<'_>) {
    let names: Vec<String> = image.keys().cloned().collect();
    let name = &names[input.below(names.len())];
    let choice = input.u8();
    let bytes = image.get_mut(name).expect("a name of the image");
    let at = match bytes.len() {
        0 => return,
        // Both copies of a superblock begin where they matter.
        _ if name == "superblock" => usize::from(choice >> 7) * COPY_BYTES + input.below(256),
        length => input.below(length),
    };
    let sector = at / SECTOR_BYTES * SECTOR_BYTES;
    let end = (sector + SECTOR_BYTES).min(bytes.len());
    if sector >= end || at >= end {
        return;
    }
    match choice % 8 {
        0 | 1 => bytes[at] ^= 1 << (input.u8() % 8),
        2 => crate::input::overwrite(bytes, at, input.bytes(8)),
        3 => bytes[sector..end].fill(0),
        // All of it as it was some time before: both copies are whole, and what they say is old.
        4 if choice >= 128 => {
            if let Some(earlier) = book.earlier.get(name) {
                bytes.clone_from(earlier);
            }
        }
        // A write that never came, and one that went elsewhere.
        4 if name != "superblock" => {
            if let Some(earlier) = book.earlier.get(name).and_then(|old| old.get(sector..end)) {
                bytes[sector..end].copy_from_slice(earlier);
            }
        }
        5 if name != "superblock" => {
            let other = &book.image[&names[input.below(names.len())]];
            let from = input.below(other.len().max(1)) / SECTOR_BYTES * SECTOR_BYTES;
            if let Some(stray) = other.get(from..from + (end - sector)) {
                bytes[sector..end].copy_from_slice(stray);
            }
        }
        6 if name != "superblock" => bytes.truncate(at),
        7 if name != "superblock" && choice >= 224 => drop(image.remove(name)),
        _ => bytes[at] = bytes[at].wrapping_add(1),
    }
}

/// What the log gives back, slot by slot; none for what is damaged or a hole.
type Slots = Vec<(Slot, Option<Entry>)>;

fn judge(book: &Book, before: &Whole, image: &Image, log: &Log, recovered: &Recovered) -> Slots {
    assert_eq!((recovered.identity.incarnation, recovered.identity.node), (LIFE, NODE));
    let document = recovered.identity.genesis.as_deref();
    assert!(document.is_none_or(|document| document == DOCUMENT));
    assert!(recovered.promised <= book.promised && recovered.commit_slot <= book.commit);
    let proof = proof(image);
    let durable = before.headers.iter().filter(|h| h.position + h.length as u64 <= proof);
    let promised = durable.map(|header| header.promised).max().unwrap_or(Ballot::ZERO);
    if recovered.promise_certain {
        assert!(recovered.promised >= promised, "a promise is lost: {promised}, {recovered:?}");
    }
    let mut slots = Slots::new();
    let highest = book.appended.iter().map(|entry| entry.slot.0).max().unwrap_or(0);
    for slot in (1..=highest + 2).map(Slot) {
        let got = read(log, slot);
        if let Ok(Some(entry)) = &got {
            assert!(book.appended.contains(entry), "never appended: {entry:?}");
        }
        if let Some((entry, record)) = before.newest.iter().find(|(entry, _)| entry.slot == slot) {
            let durable = record.position + record.length as u64 <= proof;
            if durable {
                judge_durable(entry, record, book, image, &got, recovered);
            }
        }
        slots.push((slot, got.ok().flatten()));
    }
    slots
}

/// An entry that some whole neighbour proves to have been durable.
fn judge_durable(
    entry: &Entry,
    record: &Found,
    book: &Book,
    image: &Image,
    got: &Result<Option<Entry>, LogError>,
    recovered: &Recovered,
) {
    let slot = entry.slot;
    // Damage that is not exact concerns higher slots too.
    let covers = |damage: &Damage| {
        damage.slots.is_none_or(|(first, last)| first <= slot && (!damage.exact || slot <= last))
    };
    match got {
        Ok(Some(read)) if read == entry => return,
        Ok(Some(older)) => {
            panic!("an older value came back: {older:?} instead of {entry:?}; {recovered:?}")
        }
        Ok(None) => assert!(
            recovered.damaged.iter().any(covers),
            "slot {slot} is lost without a word: {recovered:?}"
        ),
        Err(LogError::Damaged { .. }) => {}
        Err(error) => panic!("slot {slot}: {error}"),
    }
    assert!(slot > recovered.intact_through, "{slot} is not intact: {recovered:?}");
    // It is gone: then its bytes changed, or damage behind it may hide a newer one.
    let range = record.offset..record.offset + record.length;
    let now = image.get(&record.name).and_then(|bytes| bytes.get(range.clone()));
    let whole = now == book.image[&record.name].get(range);
    let behind = |damage: &Damage| {
        let file = damage.file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        (file, damage.offset as usize + damage.length as usize) > (&record.name, record.offset)
    };
    let hidden = recovered.damaged.iter().any(behind);
    assert!(!whole || hidden, "slot {slot} is whole and proved, and yet lost: {recovered:?}");
}

/// The log is used again, dies and is opened once more: what it gave is given again.
fn go_on(book: &Book, slots: &Slots, medium: &Arc<FuzzMedium>, mut log: Log, found: &Recovered) {
    let ballot = Ballot { round: book.promised.round + 1, ..book.promised };
    let entry = Entry { slot: found.last_slot.next(), ballot, value: Value::noop() };
    log.append(&Record::Entry(entry.clone()), found.commit_slot).expect("there is room");
    assert_eq!(read(&log, entry.slot).ok().flatten().as_ref(), Some(&entry), "just appended");
    log.flush().expect("this medium does not fail");
    let again = FuzzMedium::new(book.profile, &medium.image());
    let (log, recovered) = open(&again).expect("it opened before");
    assert_eq!(recovered.promised, ballot, "{found:?}, {recovered:?}");
    assert_eq!(read(&log, entry.slot).ok().flatten().as_ref(), Some(&entry));
    for (slot, known) in slots.iter().filter(|(slot, _)| *slot != entry.slot) {
        let now = read(&log, *slot).ok().flatten();
        assert_eq!(&now, known, "slot {slot} changed by being recovered; {found:?}, {recovered:?}");
    }
}

/// Looks at the log in a directory, which stays as it is.
fn inspect(image: &Image) {
    let folder = Folder::holding(image);
    // Whatever it says: it comes to an end, and writes nothing.
    let _ = verify(&folder.0);
    assert_eq!(&folder.image(), image, "looking changes nothing");
}

/// A directory of this process, gone when this is dropped.
pub(super) struct Folder(pub(super) std::path::PathBuf);

impl Folder {
    pub(super) fn holding(image: &Image) -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let top = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let path = top.join(format!("quorate-fuzz-{}", std::process::id()));
        let folder = Self(path);
        std::fs::create_dir_all(&folder.0).expect("a directory of its own");
        for (name, bytes) in image {
            std::fs::write(folder.0.join(name), bytes).expect("room for a few segments");
        }
        folder
    }

    pub(super) fn image(&self) -> Image {
        let entries = std::fs::read_dir(&self.0).expect("it was made");
        let mut image = Image::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            image.insert(name, std::fs::read(entry.path()).unwrap_or_default());
        }
        image
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It is in the way of nobody else.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Logs of both media, closed and not, short and of several segments, with one change each.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    assert_eq!(HEADER_BYTES, 64);
    let mut seeds = Vec::new();
    for mode in 0..4u8 {
        let short = [0, 1, 80, 0, 0, 0, 0, 1, 90, 0, 1, 0, 10, 0, 1, 70, 0, 1, 0, 10];
        let mut plain = vec![mode, 6];
        plain.extend_from_slice(&short);
        let mut long = vec![mode, 60];
        for at in 0..12u8 {
            long.extend_from_slice(&[0, 0, 0x80, 15, 1, 0, 10, 0, 1, at, 0, 1, 0]);
            long.extend_from_slice(&[8, 0, 0, 1, 50, 0, 0, 0, 10]);
            long.extend_from_slice(if at == 5 { &[14] } else { &[15] });
            long.extend_from_slice(if at == 9 { &[13, 9, 0] } else { &[9] });
        }
        for change in 0..8u8 {
            for (script, at) in [(&plain, 300u16), (&long, 5000), (&long, 70)] {
                let mut seed = script.clone();
                seed.extend_from_slice(&[change, 0, 0, change]);
                seed.extend_from_slice(&at.to_le_bytes());
                seed.push(1);
                seeds.push(seed);
            }
        }
    }
    seeds
}
