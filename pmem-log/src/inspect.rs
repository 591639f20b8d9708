//! Looking at a log that no replica has open, without writing to it.

use crate::api::{Damage, End, Identity, MediumKind};
use crate::error::OpenError;
use crate::format::Kind;
use crate::medium::{Medium, open_read_only};
use crate::recovery::{geometry, list};
use crate::scan::{Event, Lost, scan};
use crate::segments::segment_name;
use crate::superblock::{self, SuperblockStore};
use quorate_consensus::{Ballot, Mistake, Slot, ValueKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One record, as it stands in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordSummary {
    /// The number of its segment.
    pub segment: u64,
    /// Where in the segment it begins.
    pub offset: u64,
    /// The kind of value, for an entry; `None` for a promise.
    pub value_kind: Option<ValueKind>,
    /// The entry's slot; for a promise the highest slot appended before it.
    pub slot: Slot,
    /// The entry's ballot, or the ballot promised.
    pub ballot: Ballot,
    /// The highest slot known chosen when it was staged.
    pub commit_slot: Slot,
    /// The value's size.
    pub payload_bytes: usize,
    /// The number of the opening that wrote it.
    pub epoch: u32,
}

/// What a whole log holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Whose log it is.
    pub identity: Identity,
    /// What it was formatted for.
    pub medium: MediumKind,
    /// The size of its segments.
    pub segment_bytes: u64,
    /// How often it was opened.
    pub openings: u32,
    /// Its segments.
    pub segments: u64,
    /// Whole records, promises included.
    pub records: u64,
    /// Whole entries; a slot that was written twice counts twice.
    pub entries: u64,
    /// The bytes of their values.
    pub payload_bytes: u64,
    /// The highest ballot promised or accepted.
    pub promised: Ballot,
    /// The highest slot known chosen.
    pub commit_slot: Slot,
    /// The lowest and the highest slot of any entry.
    pub slots: Option<(Slot, Slot)>,
    /// The position behind the last whole record: segment number × segment size + offset.
    pub ends_at: u64,
    /// The position below which all was durable when the superblock was last written: where the
    /// last opening found the end, or where a clean close left it.
    pub durable: u64,
    /// How it ends.
    pub end: End,
    /// Everything that was durable and is not whole, also where a later record repaired it.
    pub damaged: Vec<Damage>,
}

impl Report {
    /// Nothing that was durable is lost.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damaged.is_empty()
    }
}

/// Reads every byte of a log, checks every checksum, and says what is there.
///
/// # Errors
/// If the directory is no log, cannot be read, or is in use by a replica.
pub fn verify(directory: &Path) -> Result<Report, OpenError> {
    inspect(directory, &mut |_| {})
}

/// As [`verify`], and calls `each` for every whole record in the order of the log.
///
/// # Errors
/// As [`verify`].
pub fn inspect(
    directory: &Path,
    each: &mut dyn FnMut(&RecordSummary),
) -> Result<Report, OpenError> {
    inspect_on(&open_read_only(directory)?, each)
}

/// As [`inspect`], on any medium. Nothing is written to it.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_on(
    medium: &Arc<dyn Medium>,
    each: &mut dyn FnMut(&RecordSummary),
) -> Result<Report, OpenError> {
    let directory = medium.path("");
    let refused = |source| OpenError::Io { action: "read", path: directory.clone(), source };
    let names = medium.names().map_err(refused)?;
    if !names.iter().any(|name| name == superblock::NAME) {
        let found = names.first().map_or("no superblock", String::as_str).to_owned();
        return Err(OpenError::NotALog { directory, found });
    }
    let store = SuperblockStore::open(medium.as_ref())?;
    let superblock = &store.current;
    let (segments, _) = list(medium, superblock, &names)?;
    let mut report = Report {
        identity: superblock.identity(),
        medium: superblock.kind,
        segment_bytes: superblock.segment_bytes,
        openings: superblock.epoch,
        segments: segments.len() as u64,
        records: 0,
        entries: 0,
        payload_bytes: 0,
        promised: Ballot::ZERO,
        commit_slot: Slot::ZERO,
        slots: None,
        ends_at: 0,
        durable: superblock.durable,
        end: End::Clean,
        damaged: Vec::new(),
    };
    let geometry = geometry(superblock);
    let tail = scan(geometry, superblock, &segments, Mistake::default(), &mut |event| {
        if let Some(record) = report.take(medium, &geometry, &event) {
            each(&record);
        }
    });
    let tail = tail.map_err(refused)?;
    (report.ends_at, report.end) = (tail.end, tail.verdict());
    Ok(report)
}

impl Report {
    fn take(
        &mut self,
        medium: &Arc<dyn Medium>,
        geometry: &crate::format::Geometry,
        event: &Event<'_>,
    ) -> Option<RecordSummary> {
        match event {
            Event::Segment => None,
            Event::Damage(gap) => {
                let segment = geometry.number(gap.from);
                let slots = match gap.lost {
                    Lost::Entry(header) => Some((header.slot, header.slot)),
                    Lost::Records | Lost::Nothing => None,
                };
                self.damaged.push(Damage {
                    file: file_of(medium, segment),
                    offset: geometry.offset(gap.from),
                    length: gap.to - gap.from,
                    slots,
                    exact: slots.is_some(),
                    what: gap.what.to_owned(),
                });
                None
            }
            Event::Record { header, position } => {
                self.records += 1;
                self.promised = self.promised.max(header.promised);
                self.commit_slot = self.commit_slot.max(header.commit_slot);
                let value_kind = match header.kind {
                    Kind::Promise => None,
                    Kind::Entry(kind) => Some(kind),
                };
                if value_kind.is_some() {
                    let slot = header.slot;
                    let (low, high) = self.slots.unwrap_or((slot, slot));
                    self.slots = Some((low.min(slot), high.max(slot)));
                    self.entries += 1;
                    self.payload_bytes += u64::from(header.payload_bytes);
                }
                Some(RecordSummary {
                    segment: geometry.number(*position),
                    offset: geometry.offset(*position),
                    value_kind,
                    slot: header.slot,
                    ballot: header.ballot,
                    commit_slot: header.commit_slot,
                    payload_bytes: header.payload_bytes as usize,
                    epoch: header.epoch,
                })
            }
        }
    }
}

fn file_of(medium: &Arc<dyn Medium>, segment: u64) -> PathBuf {
    medium.path(&segment_name(segment))
}
