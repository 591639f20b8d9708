//! Opening: format an empty place, or find out what a log holds.

use crate::api::{Boot, Damage, Durability, Identity, LogOptions, MediumKind, Recovered};
use crate::checkpoint::is_checkpoint;
use crate::error::OpenError;
use crate::format::{Geometry, Kind, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, STATED_MAX};
use crate::index::Index;
use crate::medium::{Area, Medium};
use crate::scan::{Event, Gap, Lost, Present, Tail, scan};
use crate::segments::{Keeper, Zeros, is_spare, segment_name, segment_number};
use crate::superblock::{self, Superblock, SuperblockStore};
use quorate_consensus::{Ballot, Incarnation, Mistake, Mutant, Slot};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

/// Names that a file system makes by itself.
const INNOCENT: [&str; 1] = ["lost+found"];

/// A segment of an open log.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    /// Not there yet if the sync thread is still to make it.
    pub(crate) area: Option<Arc<dyn Area>>,
    /// The highest slot in it.
    pub(crate) last_slot: Slot,
}

/// A log as it was found, ready to be appended to.
pub(crate) struct Opened {
    pub(crate) geometry: Geometry,
    pub(crate) keeper: Keeper,
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) index: Index,
    /// The exact end of the last record.
    pub(crate) end: u64,
    /// Where the next batch begins in the last segment; its size if it is full.
    pub(crate) offset: u64,
    pub(crate) epoch: u32,
    pub(crate) recovered: Recovered,
}

/// Opens the log on `medium`, formatting it if nothing is there.
pub(crate) fn open(
    medium: &Arc<dyn Medium>,
    options: &LogOptions,
    fresh: Incarnation,
    mistake: Mistake,
) -> Result<Opened, OpenError> {
    let names = medium.names().map_err(|source| refused(medium, "list", "", source))?;
    let store = if names.iter().any(|name| name == superblock::NAME) {
        let store = SuperblockStore::open(medium.as_ref())?;
        store.settle().map_err(|source| refused(medium, "settle", superblock::NAME, source))?;
        store
    } else {
        format(medium, options, fresh, &names)?
    };
    check(medium, options, &store.current)?;
    let outlived = outlived(medium.as_ref(), &store.current);
    let geometry = geometry(&store.current);
    let (mut segments, retired) = list(medium, &store.current, &names)?;
    for name in &retired {
        medium.remove(name).map_err(|source| refused(medium, "remove", name, source))?;
    }
    let found = Found::read(medium, geometry, &store.current, &segments, mistake)
        .map_err(|source| refused(medium, "read", "", source))?;
    settle(medium, geometry, &mut segments, &found.tail)?;
    let spares: Vec<_> = names.into_iter().filter(|name| is_spare(name)).collect();
    let keeper = Keeper::new(Arc::clone(medium), geometry, store, &spares)
        .map_err(|source| refused(medium, "open the spares of", "", source))?;
    let mut opened = found.finish(medium, geometry, keeper, segments)?;
    opened.recovered.outlived = outlived;
    opened.recovered.promise_certain &= !outlived;
    Ok(opened)
}

/// What a log holds, without a change to it.
pub(crate) struct Looked {
    pub(crate) geometry: Geometry,
    pub(crate) kind: MediumKind,
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) index: Index,
    pub(crate) recovered: Recovered,
}

/// Reads what a log holds. Nothing on the medium is changed.
pub(crate) fn look(medium: &Arc<dyn Medium>) -> Result<Looked, OpenError> {
    let names = medium.names().map_err(|source| refused(medium, "list", "", source))?;
    if !names.iter().any(|name| name == superblock::NAME) {
        let found = names.first().map_or("no superblock", String::as_str).to_owned();
        return Err(OpenError::NotALog { directory: medium.path(""), found });
    }
    let superblock = SuperblockStore::open(medium.as_ref())?.current;
    let geometry = geometry(&superblock);
    let (present, _) = list(medium, &superblock, &names)?;
    let found = Found::read(medium, geometry, &superblock, &present, Mistake::default())
        .map_err(|source| refused(medium, "read", "", source))?;
    let mut recovered = found.recovered(superblock.identity());
    let kind = superblock.kind;
    if kind.durability() < Durability::PowerFailure {
        recovered.outlived = superblock.boot != Boot::current()?;
        recovered.promise_certain &= !recovered.outlived;
    }
    let segments = present.into_iter().zip(found.last_slots);
    let segment = |(at, last_slot): (Present, Slot)| Segment {
        number: at.number,
        area: Some(at.area),
        last_slot,
    };
    let segments = segments.map(segment).collect();
    Ok(Looked { geometry, kind, segments, index: found.index, recovered })
}

/// Whether the machine was started again since the log was made, and the log was not made to survive
/// that. Then what was written last may be missing, and the rest looks whole.
fn outlived(medium: &dyn Medium, superblock: &Superblock) -> bool {
    let outlived =
        medium.durability() < Durability::PowerFailure && superblock.boot != medium.boot();
    if outlived {
        let directory = medium.path("");
        tracing::warn!(?directory, "this log was made before the machine was last started");
    }
    outlived
}

/// What the superblock says about places.
pub(crate) fn geometry(superblock: &Superblock) -> Geometry {
    Geometry {
        incarnation: superblock.incarnation,
        segment_bytes: superblock.segment_bytes,
        alignment: superblock.alignment,
    }
}

fn refused(
    medium: &Arc<dyn Medium>,
    action: &'static str,
    name: &str,
    source: io::Error,
) -> OpenError {
    OpenError::Io { action, path: medium.path(name), source }
}

fn format(
    medium: &Arc<dyn Medium>,
    options: &LogOptions,
    fresh: Incarnation,
    names: &[String],
) -> Result<SuperblockStore, OpenError> {
    if names.iter().any(|name| segment_number(name).is_some()) {
        return Err(OpenError::SuperblockDamaged {
            path: medium.path(superblock::NAME),
            what: "there are segments but no superblock",
        });
    }
    if names.iter().any(|name| is_checkpoint(name)) {
        return Err(OpenError::SuperblockDamaged {
            path: medium.path(superblock::NAME),
            what: "there are checkpoints but no superblock",
        });
    }
    let ours = |name: &String| {
        is_spare(name) || name == superblock::NAME_UNFINISHED || INNOCENT.contains(&name.as_str())
    };
    if let Some(found) = names.iter().find(|name| !ours(name)) {
        return Err(OpenError::NotALog { directory: medium.path(""), found: found.clone() });
    }
    let profile = medium.profile();
    let bytes = options.segment_bytes;
    if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes)
        || !bytes.is_multiple_of(profile.alignment)
    {
        let what = format!(
            "segments of {bytes} bytes: use {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}, a multiple of {}",
            profile.alignment
        );
        return Err(OpenError::InvalidOption { what });
    }
    let superblock = Superblock {
        generation: 0,
        node: options.node,
        kind: profile.kind,
        alignment: profile.alignment,
        segment_bytes: bytes,
        incarnation: fresh,
        epoch: 0,
        // Segment 1 is the first, so that position 0 never means anything.
        opened_at: bytes,
        durable: bytes,
        first_segment: 1,
        boot: medium.boot(),
        genesis: None,
    };
    SuperblockStore::create(medium.as_ref(), superblock)
        .map_err(|source| refused(medium, "format", "", source))
}

fn check(
    medium: &Arc<dyn Medium>,
    options: &LogOptions,
    superblock: &Superblock,
) -> Result<(), OpenError> {
    let (directory, asked) = (medium.path(""), medium.profile());
    if superblock.node != options.node {
        return Err(OpenError::OtherNode {
            directory,
            found: superblock.node,
            asked: options.node,
        });
    }
    if superblock.kind != asked.kind || superblock.alignment != asked.alignment {
        let (found, asked) = (superblock.kind, asked.kind);
        return Err(OpenError::OtherMedium { directory, found, asked });
    }
    Ok(())
}

/// The segments that count, opened, in order; and the names of those trimmed but not yet gone.
pub(crate) fn list(
    medium: &Arc<dyn Medium>,
    superblock: &Superblock,
    names: &[String],
) -> Result<(Vec<Present>, Vec<String>), OpenError> {
    let mut present = Vec::new();
    let mut retired = Vec::new();
    for name in names {
        let Some(number) = segment_number(name) else { continue };
        if number > STATED_MAX / superblock.segment_bytes {
            // No log comes so far: somebody else gave the file this name.
            return Err(OpenError::NotALog { directory: medium.path(""), found: name.clone() });
        }
        if number < superblock.first_segment {
            retired.push(name.clone());
            continue;
        }
        let area = medium.open(name).map_err(|source| refused(medium, "open", name, source))?;
        present.push(Present { number, area });
    }
    present.sort_by_key(|segment| segment.number);
    Ok((present, retired))
}

/// Whether nothing in a segment, the last one, counts, so that it goes.
///
/// A short file is not written to again. If nothing in it counts, it goes, and a whole one takes its
/// place: left empty between two others, it would look like the end of the log.
pub(crate) fn is_void(geometry: Geometry, tail: &Tail, last: &Present) -> bool {
    let start = geometry.position(last.number, 0);
    tail.last_segment.is_none_or(|kept| last.number > kept)
        || (tail.end <= start && last.area.bytes() != geometry.segment_bytes)
}

/// Cuts what is behind the end, and makes durable what is kept: a process that died may have left
/// whole records that were never persisted, and from now on they are relied upon.
fn settle(
    medium: &Arc<dyn Medium>,
    geometry: Geometry,
    segments: &mut Vec<Present>,
    tail: &Tail,
) -> Result<(), OpenError> {
    while let Some(last) = segments.pop_if(|last| is_void(geometry, tail, last)) {
        let name = segment_name(last.number);
        medium.remove(&name).map_err(|source| refused(medium, "remove", &name, source))?;
    }
    let Some(last) = segments.last() else { return Ok(()) };
    let start = geometry.position(last.number, 0);
    let there = last.area.bytes();
    let torn_end = (tail.torn.1.max(start) - start).min(there);
    let cut = geometry.align_up(tail.torn.0.max(start) - start);
    let written = (tail.end.max(start) - start).max(torn_end).min(there);
    let settled = || {
        if cut < torn_end {
            let zeros = vec![0; (torn_end - cut) as usize];
            last.area.write(cut, &zeros)?;
        }
        last.area.adopt(0, written)
    };
    let name = segment_name(last.number);
    settled().map_err(|source| refused(medium, "settle", &name, source))
}

/// What a scan gathers.
struct Found {
    index: Index,
    promised: Ballot,
    commit_slot: Slot,
    /// The highest slot of each segment, in order.
    last_slots: Vec<Slot>,
    damaged: Vec<Damage>,
    tail: Tail,
}

impl Found {
    fn read(
        medium: &Arc<dyn Medium>,
        geometry: Geometry,
        superblock: &Superblock,
        segments: &[Present],
        mistake: Mistake,
    ) -> io::Result<Self> {
        let mut gather = Gather::new(medium, geometry, mistake);
        let tail = scan(geometry, superblock, segments, mistake, &mut |event| gather.take(&event))?;
        let mut found = gather.found;
        found.tail = tail;
        // What was written again since is repaired.
        let Self { index, damaged, .. } = &mut found;
        damaged.retain(|damage| match damage.slots {
            Some((first, last)) => !damage.exact || index.is_damaged(first, last),
            None => true,
        });
        Ok(found)
    }

    /// What it comes to, for whoever asked.
    fn recovered(&self, identity: Identity) -> Recovered {
        let last_slot = self.index.last().unwrap_or(Slot::ZERO);
        Recovered {
            identity,
            promised: self.promised,
            promise_certain: !self.tail.ends_damaged,
            outlived: false,
            commit_slot: self.commit_slot,
            intact_through: self.index.first_damaged().map_or(last_slot, Slot::previous),
            first_slot: self.index.first().unwrap_or(last_slot.next()),
            last_slot,
            end: self.tail.verdict(),
            damaged: self.damaged.clone(),
        }
    }

    fn finish(
        self,
        medium: &Arc<dyn Medium>,
        geometry: Geometry,
        keeper: Keeper,
        present: Vec<Present>,
    ) -> Result<Opened, OpenError> {
        let mut segments: VecDeque<Segment> = present
            .into_iter()
            .zip(self.last_slots.iter().copied())
            .map(|(at, last_slot)| Segment { number: at.number, area: Some(at.area), last_slot })
            .collect();
        let end = self.tail.end;
        let (epoch, identity) = {
            let mut store = keeper.superblock();
            let now = &mut store.current;
            now.epoch = now.epoch.max(self.tail.epoch).saturating_add(1);
            now.opened_at = end;
            now.durable = end;
            let identity = now.identity();
            let epoch = now.epoch;
            store.write().map_err(|source| refused(medium, "write", superblock::NAME, source))?;
            (epoch, identity)
        };
        let offset = cursor(medium, geometry, &keeper, &mut segments, end)?;
        let recovered = self.recovered(identity);
        let mut index = self.index;
        // Behind the end there may be junk, up to the next boundary: what is appended now does not
        // follow the last record in a way that a reader may walk.
        index.break_run();
        Ok(Opened { geometry, keeper, segments, index, end, offset, epoch, recovered })
    }
}

/// Where the next batch begins. Makes a segment if none is there to go on in.
fn cursor(
    medium: &Arc<dyn Medium>,
    geometry: Geometry,
    keeper: &Keeper,
    segments: &mut VecDeque<Segment>,
    end: u64,
) -> Result<u64, OpenError> {
    let ended_in = geometry.number(end - 1);
    if let Some(last) = segments.back().filter(|last| last.number >= ended_in) {
        let whole = last.area.as_ref().is_some_and(|area| area.bytes() == geometry.segment_bytes);
        let start = geometry.position(last.number, 0);
        let begin = start + geometry.first_offset();
        return Ok(match whole {
            true => geometry.align_up(end.max(begin)) - start,
            // A shortened file is not written to again.
            false => geometry.segment_bytes,
        });
    }
    let number = ended_in + 1;
    let area = keeper
        .make(number, end, Zeros::Throughout)
        .map_err(|source| refused(medium, "make", &segment_name(number), source))?;
    segments.push_back(Segment { number, area: Some(area), last_slot: Slot::ZERO });
    Ok(geometry.first_offset())
}

/// Builds the index and the damage report while the log is read.
struct Gather<'a> {
    medium: &'a Arc<dyn Medium>,
    geometry: Geometry,
    found: Found,
    epoch: u32,
    /// The slot of the last entry read.
    previous: Option<Slot>,
    /// Gaps whose slots the next entry will tell.
    open_gaps: Vec<usize>,
    mistake: Mistake,
}

impl<'a> Gather<'a> {
    fn new(medium: &'a Arc<dyn Medium>, geometry: Geometry, mistake: Mistake) -> Self {
        let tail = Tail { end: 0, torn: (0, 0), last_segment: None, epoch: 0, ends_damaged: false };
        let found = Found {
            index: Index::default(),
            promised: Ballot::ZERO,
            commit_slot: Slot::ZERO,
            last_slots: Vec::new(),
            damaged: Vec::new(),
            tail,
        };
        Self { medium, geometry, found, epoch: 0, previous: None, open_gaps: Vec::new(), mistake }
    }

    fn take(&mut self, event: &Event<'_>) {
        match event {
            Event::Segment => {
                self.found.last_slots.push(Slot::ZERO);
                self.found.index.break_run();
            }
            Event::Record { header, position, .. } => {
                if header.epoch != self.epoch {
                    // Between two openings there may be junk that a reader must not step into.
                    self.epoch = header.epoch;
                    self.found.index.break_run();
                }
                self.found.promised = self.found.promised.max(header.promised);
                self.found.commit_slot = self.found.commit_slot.max(header.commit_slot);
                match header.kind {
                    Kind::Entry(_) => self.entry(header.slot, Some(*position)),
                    // It names the highest slot appended: entries up to there were lost.
                    Kind::Promise if self.previous < Some(header.slot) => {
                        self.explain_gaps(header.slot.next());
                    }
                    Kind::Promise => {}
                }
            }
            Event::Damage(gap) => self.damage(gap),
        }
    }

    /// The next entry is this one, at its position, or lost.
    fn entry(&mut self, slot: Slot, position: Option<u64>) {
        self.explain_gaps(slot);
        match position {
            Some(_)
                if self.found.index.last() >= Some(slot)
                    && self.mistake.is(Mutant::OlderRecordWins) => {}
            Some(position) => self.found.index.insert(slot, position),
            None => self.found.index.mark_damaged(slot, slot),
        }
        if let Some(last) = self.found.last_slots.last_mut() {
            *last = slot.max(*last);
        }
        self.previous = Some(slot);
    }

    /// What stood between the entries before and after a gap, if their slots leave room for it.
    fn explain_gaps(&mut self, next: Slot) {
        let first = self.previous.unwrap_or(Slot::ZERO).next();
        let last = next.previous();
        for gap in self.open_gaps.drain(..) {
            if first <= last {
                let slots = &mut self.found.damaged[gap].slots;
                let rewritten = slots.unwrap_or((first, last));
                *slots = Some((first.min(rewritten.0), last.max(rewritten.1)));
                self.found.index.mark_damaged(first, last);
            }
        }
    }

    /// Entries that stood before a gap and may have been written again inside it, under a higher
    /// ballot and with another value.
    ///
    /// What is appended goes up by one slot each time, or starts again above what was known chosen
    /// (a new leader proposes again what is open); entries of one turn carry the commit slot of its
    /// end. So nothing in the gap is at or below both the entry before it and the commit slot that
    /// was known there.
    fn doubt_rewritten(&mut self) -> Option<(Slot, Slot)> {
        let previous = self.previous.unwrap_or(Slot::ZERO);
        let first = previous.min(self.found.commit_slot).next();
        let last = self.found.index.last().unwrap_or(Slot::ZERO);
        self.found.index.mark_damaged(first, last);
        (first <= last).then_some((first, last))
    }

    fn damage(&mut self, gap: &Gap) {
        let number = self.geometry.number(gap.from);
        let mut damage = Damage {
            file: self.medium.path(&segment_name(number)),
            offset: self.geometry.offset(gap.from),
            length: gap.to - gap.from,
            slots: None,
            exact: false,
            what: gap.what.to_owned(),
        };
        match gap.lost {
            Lost::Entry(header) => {
                self.found.promised = self.found.promised.max(header.promised);
                self.found.commit_slot = self.found.commit_slot.max(header.commit_slot);
                self.entry(header.slot, None);
                damage.slots = Some((header.slot, header.slot));
                damage.exact = true;
            }
            Lost::Records => {
                self.found.index.break_run();
                damage.slots = self.doubt_rewritten();
                self.open_gaps.push(self.found.damaged.len());
            }
            // It concerns no slot, and the record after it restates what it said.
            Lost::Nothing => return tracing::warn!(?damage, "damage without a loss"),
        }
        self.found.damaged.push(damage);
    }
}
