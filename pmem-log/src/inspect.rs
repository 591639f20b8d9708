//! Looking at a log that no replica has open, without writing to it.

use crate::api::{Boot, Damage, End, Identity, MediumKind};
use crate::error::OpenError;
use crate::format::{Geometry, Header, Kind, WORD_BYTES};
use crate::medium::{Medium, open_read_only};
use crate::recovery::{geometry, is_void, list};
use crate::scan::{Event, Lost, Present, Tail, read_what_is_there, scan};
use crate::segments::segment_name;
use crate::superblock::{self, Superblock, SuperblockStore};
use quorate_consensus::{Ballot, Mistake, Slot, ValueKind};
use std::io;
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
    /// The highest ballot promised or accepted, this record included.
    pub promised: Ballot,
    /// Below this position all was durable before the record's batch was written.
    pub durable: u64,
    /// The value's size.
    pub payload_bytes: usize,
    /// CRC-32C of the value.
    pub value_checksum: u32,
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
    /// It was made on a medium that does not survive a restart of the machine, in another life of the
    /// machine than this one: any record may be missing at its end, and nothing that is left can tell.
    pub outlived: bool,
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
    inspect_on(&open_read_only(directory)?, &mut |record, _| each(record))
}

/// As [`inspect`], with each record's value.
///
/// # Errors
/// As [`inspect`].
pub fn export(
    directory: &Path,
    each: &mut dyn FnMut(&RecordSummary, &[u8]),
) -> Result<Report, OpenError> {
    inspect_on(&open_read_only(directory)?, each)
}

/// As [`export`], on any medium. Nothing is written to it.
///
/// # Errors
/// As [`export`].
pub fn inspect_on(
    medium: &Arc<dyn Medium>,
    each: &mut dyn FnMut(&RecordSummary, &[u8]),
) -> Result<Report, OpenError> {
    Ok(Reading::new(medium, each)?.report)
}

/// What opening a log would take away from it: nothing of it was ever acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Truncation {
    /// What the log holds.
    pub report: Report,
    /// Files that would go, and why.
    pub removed: Vec<(PathBuf, &'static str)>,
    /// The torn tail, if there is one.
    pub cut: Option<Cut>,
}

/// A torn tail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    /// The file.
    pub file: PathBuf,
    /// Where it begins: nothing behind this byte says that it was durable.
    pub from: u64,
    /// Where what looks like an attempt to write ends.
    pub to: u64,
    /// From where on zeros would be written, at the alignment of the medium; what is before stays as
    /// it is, and is never read.
    pub zeros_from: u64,
    /// Records in it whose headers are whole: their batch is not.
    pub records: Vec<RecordSummary>,
}

/// Says what opening the log in `directory` would cut and remove. Nothing is written.
///
/// # Errors
/// As [`verify`].
pub fn truncation(directory: &Path) -> Result<Truncation, OpenError> {
    let medium = open_read_only(directory)?;
    let Reading { report, tail, geometry, segments, retired } =
        Reading::new(&medium, &mut |_, _| {})?;
    let trimmed = "it was trimmed: the superblock names a later first segment";
    let mut removed: Vec<_> = retired.iter().map(|name| (medium.path(name), trimmed)).collect();
    let mut left = segments.as_slice();
    while let Some((last, before)) = left.split_last()
        && is_void(geometry, &tail, last)
    {
        let file = file_of(&medium, last.number);
        removed.push((file, "nothing was ever durable in it, or it is short and empty"));
        left = before;
    }
    let torn_in = left.last().filter(|_| tail.torn.0 < tail.torn.1);
    let cut = torn_in.map(|segment| {
        let start = geometry.position(segment.number, 0);
        let (from, to) = (tail.torn.0 - start, (tail.torn.1 - start).min(segment.area.bytes()));
        let records = headers_between(segment, &geometry, from, to).map_err(|source| {
            let path = file_of(&medium, segment.number);
            OpenError::Io { action: "read", path, source }
        })?;
        let file = file_of(&medium, segment.number);
        Ok(Cut { file, from, to, zeros_from: geometry.align_up(from), records })
    });
    Ok(Truncation { report, removed, cut: cut.transpose()? })
}

/// The records from `from` to before `to` of a segment whose headers are whole.
fn headers_between(
    segment: &Present,
    geometry: &Geometry,
    from: u64,
    to: u64,
) -> io::Result<Vec<RecordSummary>> {
    let mut bytes = vec![0; to.saturating_sub(from) as usize];
    read_what_is_there(segment.area.as_ref(), from, &mut bytes)?;
    let places = (0..bytes.len()).step_by(WORD_BYTES as usize);
    let found = places.filter_map(|at| {
        let position = geometry.position(segment.number, from + at as u64);
        let header = Header::decode(&bytes[at..], geometry, position)?;
        Some(summary(geometry, &header, position))
    });
    Ok(found.collect())
}

/// A log that was read from its first byte to its end.
struct Reading {
    report: Report,
    tail: Tail,
    geometry: Geometry,
    segments: Vec<Present>,
    /// Names of segments that were trimmed and are still there.
    retired: Vec<String>,
}

impl Reading {
    fn new(
        medium: &Arc<dyn Medium>,
        each: &mut dyn FnMut(&RecordSummary, &[u8]),
    ) -> Result<Self, OpenError> {
        let directory = medium.path("");
        let refused = |source| OpenError::Io { action: "read", path: directory.clone(), source };
        let names = medium.names().map_err(refused)?;
        if !names.iter().any(|name| name == superblock::NAME) {
            let found = names.first().map_or("no superblock", String::as_str).to_owned();
            return Err(OpenError::NotALog { directory, found });
        }
        let store = SuperblockStore::open(medium.as_ref())?;
        let superblock = &store.current;
        let (segments, retired) = list(medium, superblock, &names)?;
        let geometry = geometry(superblock);
        let mut report = Report::before_reading(superblock, segments.len() as u64);
        let tail = scan(geometry, superblock, &segments, Mistake::default(), &mut |event| {
            if let Some(record) = report.take(medium, &geometry, &event)
                && let Event::Record { payload, .. } = event
            {
                each(&record, payload);
            }
        });
        let tail = tail.map_err(refused)?;
        (report.ends_at, report.end) = (tail.end, tail.verdict());
        Ok(Self { report, tail, geometry, segments, retired })
    }
}

impl Report {
    fn before_reading(superblock: &Superblock, segments: u64) -> Self {
        Self {
            identity: superblock.identity(),
            medium: superblock.kind,
            segment_bytes: superblock.segment_bytes,
            openings: superblock.epoch,
            segments,
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
            // A machine that does not tell its lives apart is taken to be in another one.
            outlived: superblock.kind == MediumKind::Emulated
                && Boot::current().ok() != Some(superblock.boot),
        }
    }

    fn take(
        &mut self,
        medium: &Arc<dyn Medium>,
        geometry: &Geometry,
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
            Event::Record { header, position, .. } => {
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
                Some(summary(geometry, header, *position))
            }
        }
    }
}

fn summary(geometry: &Geometry, header: &Header, position: u64) -> RecordSummary {
    RecordSummary {
        segment: geometry.number(position),
        offset: geometry.offset(position),
        value_kind: match header.kind {
            Kind::Promise => None,
            Kind::Entry(kind) => Some(kind),
        },
        slot: header.slot,
        ballot: header.ballot,
        commit_slot: header.commit_slot,
        promised: header.promised,
        durable: header.durable,
        payload_bytes: header.payload_bytes as usize,
        value_checksum: header.value_checksum,
        epoch: header.epoch,
    }
}

fn file_of(medium: &Arc<dyn Medium>, segment: u64) -> PathBuf {
    medium.path(&segment_name(segment))
}
