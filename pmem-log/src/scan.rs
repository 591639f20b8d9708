//! Reading a log from its first byte to its end, and judging what is not whole.
//!
//! Why each verdict is right. Batch `n + 1` is written only after the persist of batch `n`
//! returned, and each header of it states where batch `n` ended (`durable`). So:
//!
//! - *Damage*: a place is not whole, and behind it stands any header with `durable` beyond the
//!   place (or a later segment's header, or the superblock, says so). Then the persist that covered
//!   the place had returned, what stood there may have been acknowledged, and the medium lost it.
//!   Checksums include the position and the log's incarnation, so no payload, no older content of
//!   a recycled file and no other log can forge such a header.
//! - *Torn tail*: a place is not whole and nothing proves that it ever was durable. Then the
//!   persist that covered it did not return (had it returned and had anything been written
//!   afterwards, that would be the proof), so nothing from the place on was acknowledged, and all
//!   of it is cut: also whole records of the same batch that happen to stand behind.
//!   The one gap in this argument is damage in the very last batch before the process died: nothing
//!   was written after it that could prove it. A clean close writes the superblock to close it.
//! - *Clean end*: as a torn tail, but nothing says that there was an attempt to write.
//!
//! What the device cannot read (`EIO`) may be whatever is worst: there may have stood a header that
//! proves the place before it durable. So a place from which on anything is unreadable is damage and
//! never a torn tail, and the damage reaches to the end of the segment, or to what is read behind it.
//!
//! What an earlier opening cut can lie behind the end as junk: records that are whole but were
//! judged away. Two things keep them from coming back: they carry a lower epoch than what was
//! written since, and the superblock says from which position on the last opening wrote.

use crate::api::End;
use crate::error::is_lost;
use crate::format::{Geometry, HEADER_BYTES, Header, Kind, SegmentHeader, WORD_BYTES};
use crate::medium::Area;
use crate::superblock::Superblock;
use quorate_consensus::{Mistake, Mutant};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// A segment that is there.
#[derive(Clone, Debug)]
pub(crate) struct Present {
    pub(crate) number: u64,
    pub(crate) area: Arc<dyn Area>,
}

/// What is found, in order.
pub(crate) enum Event<'a> {
    /// A segment begins.
    Segment,
    /// A whole record, and its value.
    Record { header: &'a Header, position: u64, payload: &'a [u8] },
    /// A part of the log that was durable and is not whole.
    Damage(Gap),
}

/// A damaged part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gap {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) what: &'static str,
    pub(crate) lost: Lost,
}

/// What a gap swallowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lost {
    /// The entry of this header, which is whole; only the value is lost.
    Entry(Header),
    /// Some records: headers are lost too.
    Records,
    /// No record: a segment's header, which says nothing that is not known otherwise.
    Nothing,
}

/// Where the log ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tail {
    /// The exact end of the last record.
    pub(crate) end: u64,
    /// The positions behind it that look like an attempt to write, from the first to before the
    /// second.
    pub(crate) torn: (u64, u64),
    /// Segments with higher numbers hold nothing that counts.
    pub(crate) last_segment: Option<u64>,
    /// The highest epoch seen.
    pub(crate) epoch: u32,
    /// The log ends in a gap: not even a later promise is left to say what was promised in it.
    pub(crate) ends_damaged: bool,
}

impl Tail {
    pub(crate) fn verdict(&self) -> End {
        match self.torn.1 - self.torn.0 {
            0 => End::Clean,
            bytes => End::TornTail { bytes },
        }
    }
}

/// Reads all records of `segments`, which are in order.
pub(crate) fn scan(
    geometry: Geometry,
    superblock: &Superblock,
    segments: &[Present],
    mistake: Mistake,
    sink: &mut dyn FnMut(Event<'_>),
) -> io::Result<Tail> {
    let end = geometry.position(superblock.first_segment, 0);
    let tail = Tail { end, torn: (end, end), last_segment: None, epoch: 0, ends_damaged: false };
    let mut scanner = Scanner {
        geometry,
        superblock,
        segments,
        mistake,
        sink,
        tail,
        buffer: Vec::new(),
        lost: Vec::new(),
        stopped: false,
    };
    for index in 0..segments.len() {
        scanner.segment(index)?;
        if scanner.stopped {
            break;
        }
    }
    if superblock.durable > scanner.tail.end {
        scanner.bridge(superblock.durable, "records that were durable are missing");
    }
    Ok(scanner.tail)
}

struct Scanner<'a> {
    geometry: Geometry,
    superblock: &'a Superblock,
    segments: &'a [Present],
    mistake: Mistake,
    sink: &'a mut dyn FnMut(Event<'_>),
    tail: Tail,
    /// The whole segment that is being read.
    buffer: Vec<u8>,
    /// The offsets in it that the device could not read; zeros stand for them.
    lost: Vec<Range<u64>>,
    /// The log ended before its last segment did.
    stopped: bool,
}

/// What stands at a place.
enum Found {
    Whole(Header),
    /// The header is whole, its payload is not.
    BadPayload(Header),
    Nothing,
}

impl Scanner<'_> {
    fn segment(&mut self, index: usize) -> io::Result<()> {
        let number = self.segments[index].number;
        let segment = &self.segments[index];
        self.lost = load(segment, self.geometry.segment_bytes, &mut self.buffer)?;
        (self.sink)(Event::Segment);
        let start = self.geometry.position(number, 0);
        let own = SegmentHeader::decode(&self.buffer, &self.geometry, number);
        match own {
            Some(header) => self.bridge(header.previous_end, "a part of the log is missing"),
            None if self.superblock.durable > start
                || self.proof_in_buffer(number, 0, 0)
                || self.later_proof(index, start)? =>
            {
                let to = start + HEADER_BYTES as u64;
                let what = "the segment's header is damaged";
                (self.sink)(Event::Damage(Gap { from: start, to, what, lost: Lost::Nothing }));
                let first = self.look(number, self.geometry.first_offset());
                if self.lost_from(0) && !matches!(first, Found::Whole(_)) {
                    // Nothing is left that says where the segment before ended.
                    self.bridge(to, UNREADABLE);
                }
            }
            // Nothing was ever durable in it: a file that is none of the log's making.
            None => {
                self.stopped = true;
                return Ok(());
            }
        }
        self.tail.last_segment = Some(number);
        if index == 0 && number == self.superblock.first_segment {
            // What is before it was trimmed; it says itself where that ended.
            let mut stated = starts(&self.segments[0], &self.geometry)?.into_iter().flatten();
            self.tail.end = stated.next().map_or(start, |durable| durable.min(start));
        }
        let recycled = own.is_none_or(|header| header.recycled);
        self.records(index, recycled)
    }

    fn records(&mut self, index: usize, recycled: bool) -> io::Result<()> {
        let number = self.segments[index].number;
        let mut offset = self.geometry.first_offset();
        loop {
            let found = self.look(number, offset);
            if let Found::Whole(header) = found {
                offset = self.accept(number, offset, header);
                continue;
            }
            if let Some(next) = self.next_batch(number, offset) {
                offset = next;
                continue;
            }
            if self.segment_is_over(index)? {
                return Ok(());
            }
            if let Found::BadPayload(header) = found {
                // Its header is whole, and may itself say that something before it is missing.
                self.bridge(header.durable, "records between whole ones are damaged");
            }
            let end = self.tail.end;
            if self.superblock.durable <= end
                && !self.lost_from(offset)
                && !self.proof_in_buffer(number, offset + WORD_BYTES, end)
                && !self.later_proof(index, end)?
            {
                let torn_end = self.torn_end(number, offset, &found, recycled);
                let start = self.geometry.position(number, 0);
                self.tail.torn = (start + offset, start + torn_end);
                self.stopped = true;
                return Ok(());
            }
            match self.step_over(number, offset, &found) {
                Some(next) => offset = next,
                // The next segment, or the superblock, says where the damage ends. What is unreadable
                // may have gone on to anywhere: the log goes on in another segment, so that nothing
                // new lies where a header that can be read again some day has its value.
                None => {
                    if self.lost_from(offset) {
                        self.bridge(self.geometry.position(number + 1, 0), UNREADABLE);
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Hands a whole record on; returns where the next may stand.
    fn accept(&mut self, number: u64, offset: u64, header: Header) -> u64 {
        let position = self.geometry.position(number, offset);
        self.reach(position, &header);
        let from = offset as usize + HEADER_BYTES;
        let payload = &self.buffer[from..from + header.payload_bytes as usize];
        (self.sink)(Event::Record { header: &header, position, payload });
        self.tail.end = position + header.bytes();
        self.tail.ends_damaged = false;
        self.tail.epoch = self.tail.epoch.max(header.epoch);
        offset + header.bytes()
    }

    /// A record at `position` is read. Unless it follows the last one, or begins a batch that
    /// says that it does, something is missing before it.
    fn reach(&mut self, position: u64, header: &Header) {
        let what = "records between whole ones are damaged";
        self.bridge(header.durable, what);
        let end = self.tail.end;
        let begins = position == self.geometry.align_up(end)
            || self.geometry.offset(position) == self.geometry.first_offset();
        if position != end && !(begins && header.durable == end) {
            self.bridge(position, what);
        }
    }

    /// Whether the device could not read something at or behind `offset`.
    fn lost_from(&self, offset: u64) -> bool {
        self.lost.last().is_some_and(|lost| lost.end > offset)
    }

    /// Everything below `durable` was written once: what was not read of it is damage.
    fn bridge(&mut self, durable: u64, what: &'static str) {
        if durable > self.tail.end {
            let start = self.geometry.position(self.geometry.number(self.tail.end), 0);
            let within = |lost: &Range<u64>| {
                start + lost.start < durable && start + lost.end > self.tail.end
            };
            let what = if self.lost.iter().any(within) { UNREADABLE } else { what };
            let gap = Gap { from: self.tail.end, to: durable, what, lost: Lost::Records };
            (self.sink)(Event::Damage(gap));
            self.tail.end = durable;
            self.tail.ends_damaged = true;
        }
    }

    /// A batch that begins on the next boundary and says that the one before ended here: what
    /// stands between is padding, or was cut by an earlier opening.
    fn next_batch(&self, number: u64, offset: u64) -> Option<u64> {
        let aligned = self.geometry.align_up(offset);
        let header = self.header(number, aligned).filter(|_| aligned != offset)?;
        (header.durable == self.tail.end).then_some(aligned)
    }

    /// Whether the following segment begins where the last record ended.
    fn segment_is_over(&self, index: usize) -> io::Result<bool> {
        let Some(next) = self.segments.get(index + 1) else { return Ok(false) };
        let starts = starts(next, &self.geometry)?;
        Ok(starts.into_iter().flatten().any(|durable| durable == self.tail.end))
    }

    /// Passes a damaged place; `None` if nothing readable follows in this segment.
    fn step_over(&mut self, number: u64, offset: u64, found: &Found) -> Option<u64> {
        let position = self.geometry.position(number, offset);
        if let Found::BadPayload(header) = found {
            self.reach(position, header);
            let to = position + header.bytes();
            let lost = match header.kind {
                Kind::Entry(_) => Lost::Entry(*header),
                Kind::Promise => Lost::Records,
            };
            let what = "the value does not match its checksum";
            (self.sink)(Event::Damage(Gap { from: position, to, what, lost }));
            self.tail.end = to;
            // An entry's header restates the promise.
            self.tail.ends_damaged = lost == Lost::Records;
            return Some(offset + header.bytes());
        }
        let mut ahead = candidates(&self.buffer, offset + WORD_BYTES);
        ahead.find(|next| self.header(number, *next).is_some())
    }

    fn look(&self, number: u64, offset: u64) -> Found {
        let Some(header) = self.header(number, offset) else { return Found::Nothing };
        let from = offset as usize + HEADER_BYTES;
        let payload = self.buffer.get(from..from + header.payload_bytes as usize);
        match payload {
            Some(payload)
                if crc32c::crc32c(payload) == header.value_checksum
                    || self.mistake.is(Mutant::BelieveTornRecord) =>
            {
                Found::Whole(header)
            }
            _ => Found::BadPayload(header),
        }
    }

    /// A header that may count here: not one that an earlier opening left and a later one cut.
    fn header(&self, number: u64, offset: u64) -> Option<Header> {
        let bytes = self.buffer.get(offset as usize..)?;
        let position = self.geometry.position(number, offset);
        let header = Header::decode(bytes, &self.geometry, position)?;
        let since_opening =
            position < self.superblock.opened_at || header.epoch >= self.superblock.epoch;
        let fits = offset + header.bytes() <= self.geometry.segment_bytes;
        (header.epoch >= self.tail.epoch && since_opening && fits).then_some(header)
    }

    /// Whether a header from `offset` on says that the log was durable beyond `end`.
    fn proof_in_buffer(&self, number: u64, offset: u64, end: u64) -> bool {
        proof(&self.buffer, &self.geometry, number, offset, end)
    }

    /// The same for the segments after `index`. Nearly always their first bytes answer.
    fn later_proof(&self, index: usize, end: u64) -> io::Result<bool> {
        for next in &self.segments[index + 1..] {
            if starts(next, &self.geometry)?.into_iter().flatten().any(|durable| durable > end) {
                return Ok(true);
            }
        }
        for next in &self.segments[index + 1..] {
            let mut buffer = Vec::new();
            let lost = load(next, self.geometry.segment_bytes, &mut buffer)?;
            if !lost.is_empty() || proof(&buffer, &self.geometry, next.number, 0, end) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How far an attempt reaches behind the end. In a recycled segment only headers can tell an
    /// attempt from old bytes; in a fresh one every byte that is not zero can. What the last
    /// opening judged already is not reported again.
    fn torn_end(&self, number: u64, offset: u64, found: &Found, recycled: bool) -> u64 {
        let mut torn_end = match found {
            Found::BadPayload(header) => offset + header.bytes(),
            _ => offset,
        };
        for at in candidates(&self.buffer, offset + WORD_BYTES) {
            if let Some(header) = self.header(number, at) {
                torn_end = torn_end.max(at + header.bytes());
            }
        }
        let judged = self.superblock.opened_at == self.tail.end;
        let from = if judged { self.geometry.align_up(offset) } else { offset };
        if !recycled {
            let written = written_end(&self.buffer, from);
            // Nothing written there is no attempt, wherever the next batch would begin.
            torn_end = if written > from { torn_end.max(written) } else { torn_end };
        }
        torn_end
    }
}

fn proof(buffer: &[u8], geometry: &Geometry, number: u64, offset: u64, end: u64) -> bool {
    candidates(buffer, offset.max(geometry.first_offset())).any(|at| {
        let header =
            Header::decode(&buffer[at as usize..], geometry, geometry.position(number, at));
        header.is_some_and(|header| header.durable > end)
    })
}

/// What is compared at a time where most is zero.
static ZEROS: [u8; 4096] = [0; 4096];

/// The offsets from `from` on at which a header may stand, by its first bytes. Stretches of zeros,
/// of which the end of a segment mostly consists, are passed quickly.
fn candidates(buffer: &[u8], from: u64) -> impl Iterator<Item = u64> {
    let mut at = from as usize;
    std::iter::from_fn(move || {
        while at + HEADER_BYTES <= buffer.len() {
            if at.is_multiple_of(ZEROS.len()) && buffer[at..].starts_with(&ZEROS) {
                at += ZEROS.len();
                continue;
            }
            let found = at;
            at += WORD_BYTES as usize;
            if Header::may_stand_at(buffer, found) {
                return Some(found as u64);
            }
        }
        None
    })
}

/// The offset behind the last byte that is not zero, `from` if there is none from there on.
fn written_end(buffer: &[u8], from: u64) -> u64 {
    let mut rest = buffer.get(from as usize..).unwrap_or_default();
    while rest.ends_with(&ZEROS) {
        rest = &rest[..rest.len() - ZEROS.len()];
    }
    let last = rest.iter().rposition(|byte| *byte != 0);
    from + last.map_or(0, |last| last as u64 + 1)
}

/// What a segment says about the end of the one before: by its header and by its first record. What
/// cannot be read says nothing.
fn starts(segment: &Present, geometry: &Geometry) -> io::Result<[Option<u64>; 2]> {
    let mut bytes = [0; HEADER_BYTES];
    let lost = read_or_lose(segment.area.as_ref(), 0, &mut bytes)?;
    let own = SegmentHeader::decode(&bytes, geometry, segment.number).filter(|_| !lost);
    let lost = read_or_lose(segment.area.as_ref(), geometry.first_offset(), &mut bytes)?;
    let position = geometry.position(segment.number, geometry.first_offset());
    let first = Header::decode(&bytes, geometry, position).filter(|_| !lost);
    Ok([own.map(|header| header.previous_end), first.map(|header| header.durable)])
}

/// The whole segment; what a shortened file lacks reads as zeros. The buffer is used again for the
/// next one: fresh memory for each took more time than reading and checking it. Returns what the
/// device could not read, for which there are zeros as well.
fn load(
    segment: &Present,
    segment_bytes: u64,
    buffer: &mut Vec<u8>,
) -> io::Result<Vec<Range<u64>>> {
    buffer.resize(segment_bytes as usize, 0);
    let area = segment.area.as_ref();
    if !read_or_lose(area, 0, buffer)? {
        return Ok(Vec::new());
    }
    let mut lost: Vec<Range<u64>> = Vec::new();
    for (piece, from) in buffer.chunks_mut(PIECE_BYTES).zip((0..).step_by(PIECE_BYTES)) {
        if read_or_lose(area, from, piece)? {
            let to = from + piece.len() as u64;
            match lost.last_mut().filter(|last| last.end == from) {
                Some(last) => last.end = to,
                None => lost.push(from..to),
            }
        }
    }
    tracing::error!(segment = segment.number, ?lost, "the device did not read the log at once");
    Ok(lost)
}

/// In a segment of which something cannot be read, so much is read at a time: the page cache and most
/// devices lose no less.
const PIECE_BYTES: usize = 4096;
/// What is said of damage where the device gave nothing.
const UNREADABLE: &str = "the device cannot read it";

/// As [`read_what_is_there`], with zeros, and `true`, where the device cannot read.
fn read_or_lose(area: &dyn Area, offset: u64, into: &mut [u8]) -> io::Result<bool> {
    match read_what_is_there(area, offset, into) {
        Err(error) if is_lost(&error) => {
            into.fill(0);
            Ok(true)
        }
        read => read.map(|()| false),
    }
}

/// Reads a segment, or a file that should be one: what it lacks reads as zeros.
pub(crate) fn read_what_is_there(area: &dyn Area, offset: u64, into: &mut [u8]) -> io::Result<()> {
    let there = area.bytes().saturating_sub(offset).min(into.len() as u64) as usize;
    into[there..].fill(0);
    if there == 0 { Ok(()) } else { area.read(offset, &mut into[..there]) }
}
