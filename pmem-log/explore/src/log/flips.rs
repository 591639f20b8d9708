//! One bit of every byte of a log, flipped: detected, and never returned as data.

use super::LogSubject;
use super::run::{entry, options};
use crate::disk::Image;
use crate::explore::{Subject, medium};
use crate::tape::Tape;
use quorate_consensus::{Ballot, Entry, Incarnation, NodeId, Slot};
use quorate_pmem_log::{Log, Lsn, OpenError, Record, SyncSteps};
use std::sync::Mutex;

const FRESH: Incarnation = Incarnation(0xfeed_beef_0bad_cafe);

/// What became of the flips.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flips {
    /// Bytes of which a bit was flipped.
    pub bytes: u64,
    /// Reported as damage.
    pub damage: u64,
    /// Noticed and harmless: one copy of the superblock, a segment's header.
    pub survived: u64,
    /// In bytes that mean nothing, or not noticed since nothing depends on them: all came back.
    pub unused: u64,
}

/// Writes `records` entries in batches, closes the log, flips one bit of each byte in turn (which
/// one changes from byte to byte), and opens it each time.
///
/// # Errors
/// The first flip after which something else came back than was written, or something is missing
/// without a word.
pub fn flip_every_byte(subject: &LogSubject, records: u64, jobs: usize) -> Result<Flips, String> {
    let (image, entries) = written(subject, records).map_err(|error| format!("{error}"))?;
    let places: Vec<(u32, usize)> = image
        .areas
        .iter()
        .flat_map(|(area, bytes)| (0..bytes.len()).map(|offset| (*area, offset)))
        .collect();
    let sum = Mutex::new(Flips::default());
    std::thread::scope(|scope| {
        let share = |job: usize| places.iter().skip(job).step_by(jobs);
        let threads: Vec<_> = (0..jobs)
            .map(|job| {
                let (image, entries, sum) = (&image, &entries, &sum);
                scope.spawn(move || {
                    let mut flips = Flips::default();
                    for &(area, offset) in share(job) {
                        flip(subject, image, entries, area, offset, &mut flips)?;
                    }
                    let mut sum = sum.lock().map_err(|_| "a thread died".to_owned())?;
                    sum.bytes += flips.bytes;
                    sum.damage += flips.damage;
                    sum.survived += flips.survived;
                    sum.unused += flips.unused;
                    Ok::<_, String>(())
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok::<_, String>(())
    })?;
    sum.into_inner().map_err(|_| "a thread died".to_owned())
}

fn written(subject: &LogSubject, records: u64) -> Result<(Image, Vec<Entry>), OpenError> {
    let tape = Tape::<()>::new(subject.profile(), Image::default(), false);
    let steps = SyncSteps::default();
    let (mut log, _) = Log::open_stepped(medium(&tape), &options(subject), FRESH, &steps)?;
    let ballot = Ballot { round: 1, node: NodeId(3) };
    let mut entries = Vec::new();
    let mut write = || {
        log.append(&Record::Promise(ballot), Slot::ZERO)?;
        for slot in 1..records {
            let entry = entry(Slot(slot), ballot, 0, (slot * 7 % 120) as usize);
            log.append(&Record::Entry(entry.clone()), Slot(slot / 2))?;
            entries.push(entry);
            // So many fill a page well: fewer bytes of padding to flip.
            if slot % 30 == 0 {
                log.wait_durable(Lsn(u64::MAX))?;
            }
        }
        log.wait_durable(Lsn(u64::MAX))
    };
    write().unwrap_or_else(|error| panic!("a healthy log takes records: {error}"));
    drop(log);
    Ok((tape.image(), entries))
}

fn flip(
    subject: &LogSubject,
    image: &Image,
    entries: &[Entry],
    area: u32,
    offset: usize,
    flips: &mut Flips,
) -> Result<(), String> {
    flips.bytes += 1;
    let image = image.flipped(area, offset, 1 << ((offset * 5 + offset / 8) % 8));
    let name = image.name_of(area).to_owned();
    let wrong = |what: String| format!("{name}, byte {offset}: {what}");
    let steps = SyncSteps::default();
    let tape = Tape::<()>::new(subject.profile(), image, false);
    let opened = Log::open_stepped(medium(&tape), &options(subject), FRESH, &steps);
    let (log, recovered) = opened.map_err(|error| wrong(format!("it does not open: {error}")))?;
    // Everything that can be read is what was written.
    let mut missing = Vec::new();
    let mut slot = Slot(1);
    while slot.0 <= entries.len() as u64 {
        let mut read = Vec::new();
        let done = log.read(slot, usize::MAX, &mut read);
        if done.is_err() || read.is_empty() {
            missing.push(slot);
            slot = slot.next();
            continue;
        }
        for entry in &read {
            if *entry != entries[slot.0 as usize - 1] {
                return Err(wrong(format!("another entry comes back as slot {slot}")));
            }
            slot = slot.next();
        }
    }
    let mut above = Vec::new();
    if log.read(Slot(entries.len() as u64 + 1), usize::MAX, &mut above).is_err()
        || !above.is_empty()
    {
        return Err(wrong("there is an entry that nobody wrote".to_owned()));
    }
    let told = |slot: &Slot| {
        recovered.damaged.iter().any(|damage| match damage.slots {
            // Where headers are lost, entries of higher slots may have stood too.
            Some((first, last)) => first <= *slot && (*slot <= last || !damage.exact),
            None => true,
        })
    };
    if let Some(silent) = missing.iter().find(|slot| !told(slot)) {
        return Err(wrong(format!("slot {silent} is missing without a word: {recovered:?}")));
    }
    if recovered.promised.round != 1 && recovered.promise_certain {
        return Err(wrong("the promise is lost without a word".to_owned()));
    }
    match (recovered.damaged.is_empty(), name.starts_with("superblock")) {
        (false, _) => flips.damage += 1,
        (true, true) => flips.survived += 1,
        (true, false) => flips.unused += 1,
    }
    Ok(())
}
