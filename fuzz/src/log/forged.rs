//! A log whose headers say anything, with checksums that match.

use super::damaged::Folder;
use super::format::{COPY_BYTES, Found, HEADER_BYTES, checksum, headers, number, u32_at};
use super::{Book, SEGMENT_BYTES, open, read};
use crate::Input;
use crate::input::overwrite;
use crate::medium::{FuzzMedium, Image};
use quorate_consensus::{Entry, Slot, Value};
use quorate_pmem_log::{Record, Recovered, inspect};

/// Changes of one execution at the most.
const CHANGES_MAX: usize = 8;
/// Where a record's header has its fields, and how wide they are.
const RECORD_FIELDS: [(usize, usize); 11] = [
    (8, 1),
    (9, 1),
    (12, 4),
    (16, 8),
    (24, 8),
    (32, 8),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (10, 2),
];
/// The same of a segment's header.
const SEGMENT_FIELDS: [(usize, usize); 3] = [(16, 8), (24, 8), (32, 1)];
/// The same of a superblock, without its checksum.
const SUPERBLOCK_FIELDS: [(usize, usize); 12] = [
    (16, 8),
    (24, 2),
    (26, 1),
    (27, 1),
    (28, 4),
    (32, 8),
    (40, 8),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 4),
    (76, 4),
];

/// A script that writes a log and one that forges fields of it. Opening, reading, appending,
/// trimming and inspecting end without a panic, and without memory that no file justifies.
pub fn log_forged(data: &[u8]) {
    let mut input = Input::new(data);
    let book = Book::write(&mut input);
    let mut image = book.image.clone();
    let look = input.u8().is_multiple_of(4);
    for _ in 0..CHANGES_MAX {
        if !input.is_empty() {
            forge(&mut image, &mut input);
        }
    }
    if look {
        let folder = Folder::holding(&image);
        let mut records = 0u64;
        // Whatever it says: it comes to an end, and counts what it shows.
        if let Ok(report) = inspect(&folder.0, &mut |_| records += 1) {
            assert_eq!(report.records, records);
        }
    }
    let medium = FuzzMedium::new(book.profile, &image);
    let Ok((mut log, recovered)) = open(&medium) else { return };
    for slot in slots(&recovered, &image) {
        // Any answer will do.
        let _ = read(&log, slot);
    }
    let ballot = recovered.promised;
    let slot = Slot(recovered.last_slot.0.saturating_add(1));
    let entry = Entry { slot, ballot, value: Value::noop() };
    if log.append(&Record::Entry(entry.clone()), recovered.commit_slot).is_ok()
        && log.flush().is_ok()
    {
        assert_eq!(read(&log, slot).ok().flatten(), Some(entry), "what was just written");
    }
    let _ = log.trim(recovered.commit_slot);
    drop(log);
    let _ = open(&FuzzMedium::new(book.profile, &medium.image()));
}

/// Slots worth asking for: the ends, and what headers name.
fn slots(recovered: &Recovered, image: &Image) -> Vec<Slot> {
    let ends = [Slot::ZERO, recovered.first_slot, recovered.last_slot, Slot(u64::MAX)];
    ends.into_iter().chain(headers(image).into_iter().map(|header| header.slot)).collect()
}

fn forge(image: &mut Image, input: &mut Input<'_>) {
    match input.u8() % 8 {
        0..4 => forge_record(image, input),
        4 => forge_segment(image, input),
        5 | 6 => forge_superblock(image, input),
        _ => {
            // A file by another name.
            let name = format!("segment-{:016x}", input.edge());
            let from = image.keys().nth(input.below(image.len())).cloned();
            let bytes = from.and_then(|from| image.get(&from).cloned()).unwrap_or_default();
            let named = if input.u8() < 128 { name } else { name.replace("segment", "spare") };
            image.insert(named, bytes);
        }
    }
}

fn put_field(bytes: &mut [u8], (at, width): (usize, usize), input: &mut Input<'_>) {
    overwrite(bytes, at, &input.edge().to_le_bytes()[..width]);
}

fn forge_record(image: &mut Image, input: &mut Input<'_>) {
    let known: Vec<Found> = headers(image);
    if known.is_empty() {
        return;
    }
    let Found { name, offset, position, .. } = &known[input.below(known.len())];
    let bytes = image.get_mut(name).expect("a header of the image");
    let header = &mut bytes[*offset..*offset + HEADER_BYTES];
    put_field(header, RECORD_FIELDS[input.below(RECORD_FIELDS.len())], input);
    let sealed = checksum(*position, &header[8..]);
    overwrite(header, 4, &sealed.to_le_bytes());
}

fn forge_segment(image: &mut Image, input: &mut Input<'_>) {
    let numbered = image.iter_mut().filter_map(|(name, bytes)| Some((number(name)?, bytes)));
    let mut segments: Vec<(u64, &mut Vec<u8>)> =
        numbered.filter(|(_, bytes)| bytes.len() >= HEADER_BYTES).collect();
    if segments.is_empty() {
        return;
    }
    let chosen = input.below(segments.len());
    let (number, bytes) = &mut segments[chosen];
    let field = SEGMENT_FIELDS[input.below(SEGMENT_FIELDS.len())];
    put_field(bytes, field, input);
    let sealed = checksum(number.wrapping_mul(SEGMENT_BYTES), &bytes[16..HEADER_BYTES]);
    overwrite(bytes, 12, &sealed.to_le_bytes());
}

fn forge_superblock(image: &mut Image, input: &mut Input<'_>) {
    let Some(bytes) = image.get_mut("superblock") else { return };
    let field = SUPERBLOCK_FIELDS[input.below(SUPERBLOCK_FIELDS.len())];
    let copies = 1 + input.u8() % 2;
    let copy = &mut bytes[..COPY_BYTES];
    put_field(copy, field, input);
    // Segments of up to a gigabyte are nothing to refuse, and nothing to read here.
    if let 65_536..=0x4000_0000 = super::format::u64_at(copy, 40) {
        overwrite(copy, 40, &SEGMENT_BYTES.to_le_bytes());
    }
    let used = 128 + (u32_at(copy, 76) as usize).min(COPY_BYTES - 128);
    let sealed = crc32c::crc32c(&copy[16..used]);
    overwrite(copy, 12, &sealed.to_le_bytes());
    if copies == 2 {
        bytes.copy_within(..COPY_BYTES, COPY_BYTES);
    }
}

/// A log, and each kind of field forged.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for mode in 0..4u8 {
        let mut script = vec![mode, 24];
        for at in 0..6u8 {
            script.extend_from_slice(&[0, u8::from(at != 3), 0x50, at, 1, 0, 10, 9]);
            script.extend_from_slice(&[8, 0, 0, 1, 50, 0, 0, 0]);
        }
        for kind in [0u8, 4, 5, 7] {
            for field in 0..12u8 {
                let mut seed = script.clone();
                let width = if kind == 0 { vec![kind, field, 0] } else { vec![kind] };
                seed.extend_from_slice(&[field]);
                seed.extend_from_slice(&width);
                seed.extend_from_slice(&[field, 0, 1, 3, field % 7, 0, 1, 2, 3, 4, 5]);
                seeds.push(seed);
            }
        }
    }
    seeds
}
