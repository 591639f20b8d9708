//! One connection by verbs: one life of a data lane that RDMA carries.
//!
//! Writes wait in a queue until [`Link::pump`] posts them, all in one chain: one doorbell. Small ones
//! go inline; large ones from registered memory, into which each payload is copied once however many
//! peers get it. The last request of a chain is signaled, and its completion speaks for all before.
//!
//! A peer that sleeps is woken by a bell, a number that the last write of a chain carries, or a short
//! write of its own where nothing else is written. It tells by a word in our
//! mailbox that it may be asleep from now on, and looks at its regions once more when that word has
//! arrived here. While the word stands we ring with everything that we write, and once for what was
//! written before, and we look at the word after every completion. So whoever of the two comes later
//! sees the other: either the peer's last look finds the write, or the word was here before the
//! write's completion. The word also counts the bells that the peer has heard: while one is on its
//! way nobody sleeps, so no more are rung than it has receives for.

use crate::Statistics;
use crate::regions::Grant;
use crate::send_queue::SendQueue;
use crate::staging::{Staged, Staging};
use bytes::Bytes;
use quorate_ffi::verbs::{
    Chain, Completion, CompletionQueue, MemoryRegion, Poster, QueuePair, Remote, Source, Status,
    VerbsError,
};
use quorate_transport::{OpNumber, RegionId};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Requests that one connection has under way at most.
pub const SEND_DEPTH: u32 = 256;
/// Receives that wait for bells, and so the bells that may be on their way.
pub const BELLS: u32 = 64;
/// A peer that may ring is told of the bells that were heard after so many.
const BELLS_TOLD: u32 = BELLS / 4;
/// A request without an answer for so long ends the life of its lane, unless told otherwise. The
/// device's own retries take longer, and on some devices they never end.
pub const STALL: Duration = Duration::from_secs(1);
/// On a quiet connection the peer's pulse is read so often: that its device answers, and that its
/// loop turns.
const BEAT: Duration = Duration::from_millis(500);
/// Pulses that did not move, less those that did, until the peer counts as stuck: the score of Mu
/// (Aguilera et al., OSDI 2020, section 5.1) with its bounds.
const SCORE_MAX: u8 = 15;
const SCORE_STUCK: u8 = 2;
/// Pieces of a request.
pub(crate) const PIECES: usize = 16;
/// Requests between signaled ones within a long chain.
const SIGNAL_EVERY: usize = 64;
/// Bytes of one request.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// The peer's mailbox here, and ours there: words of 8 bytes, and room for the probe.
pub(crate) mod mailbox {
    /// Written by the peer: whether it may be asleep (the top bit), and how many bells it heard.
    pub(crate) const SLEEP: usize = 0;
    pub(crate) const SLEEPY: u64 = 1 << 63;
    /// Written by the peer's bell: nothing that matters.
    pub(crate) const BELL: usize = 8;
    /// Written here, read by the peer: how often the loop turned.
    pub(crate) const PULSE: usize = 16;
    /// Read into from the peer's pulse.
    pub(crate) const HEARD: usize = 24;
    /// Written from here: what goes inline.
    pub(crate) const PROBE: usize = 64;
    /// More than a packet of any path, so that a path that drops long packets does not pass.
    pub(crate) const PROBE_BYTES: usize = 8192;
    pub(crate) const BYTES: usize = PROBE + PROBE_BYTES;
}

/// A request under way.
#[derive(Debug)]
struct Posted {
    sequence: u64,
    /// The write that it ends.
    number: Option<u64>,
    bytes: usize,
    /// Chunks of the staging memory that it reads, from the front of `chunks`.
    chunks: usize,
    kind: Kind,
    at: Instant,
}

/// A request that is in the chain and not posted yet.
#[derive(Debug)]
struct Planned {
    bytes: usize,
    number: Option<u64>,
    chunks: usize,
    kind: Kind,
    /// It carries the number that wakes the peer.
    rings: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Inline,
    Staged,
    Bell,
    /// The word that this end may be asleep, or has heard bells meanwhile.
    Sleepy,
    /// The word that it is awake.
    Awake,
    /// A look at the peer's pulse.
    Beat,
}

/// Why a life ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    /// The network or the peer's device is to blame: the next life goes over TCP.
    pub(crate) unreachable: bool,
}

/// What all connections of a transport share.
pub(crate) struct Shared<'a> {
    pub(crate) staging: &'a mut Staging,
    pub(crate) statistics: &'a mut Statistics,
    pub(crate) stall: Duration,
}

#[derive(Debug)]
pub(crate) struct Link {
    pair: QueuePair,
    queue: CompletionQueue,
    mailbox: MemoryRegion,
    theirs: Remote,
    request_bytes: usize,
    grants: Vec<Grant>,
    /// A region that the front write waits for: asked or not.
    pub(crate) wanted: Option<(RegionId, bool)>,
    sends: SendQueue,
    under_way: VecDeque<Posted>,
    chunks: VecDeque<usize>,
    bytes_under_way: usize,
    poster: Poster,
    plan: Vec<Planned>,
    sources: Vec<Source>,
    completions: Vec<Completion>,
    sequence: u64,
    number: u64,
    completed: u64,
    reported: u64,
    /// What the peer is told: whether this end may be asleep, and the bells that were heard.
    sleepy: bool,
    bells_heard: u32,
    bells_told: u32,
    word_due: bool,
    /// Something happened that its caller has to look at.
    news: bool,
    /// A write was refused for want of room.
    refused: bool,
    /// Bells rung, and whether something was written since the last.
    bells_rung: u32,
    unrung_writes: bool,
    quiet_since: Instant,
    pulse: u64,
    heard: u64,
    score: u8,
    pub(crate) since: Instant,
}

/// The parts that a connection is made of once it was proved to work.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) pair: QueuePair,
    pub(crate) queue: CompletionQueue,
    pub(crate) mailbox: MemoryRegion,
    pub(crate) theirs: Remote,
    pub(crate) grants: Vec<Grant>,
    pub(crate) message_bytes: usize,
    pub(crate) now: Instant,
}

impl Link {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { pair, queue, mailbox, theirs, grants, message_bytes, now } = parts;
        Self {
            pair,
            queue,
            mailbox,
            theirs,
            request_bytes: message_bytes.min(REQUEST_BYTES_MAX),
            grants,
            wanted: None,
            sends: SendQueue::default(),
            under_way: VecDeque::new(),
            chunks: VecDeque::new(),
            bytes_under_way: 0,
            poster: Poster::new(),
            plan: Vec::new(),
            sources: Vec::new(),
            completions: Vec::new(),
            sequence: 0,
            number: 0,
            completed: 0,
            reported: 0,
            sleepy: false,
            bells_heard: 0,
            bells_told: 0,
            word_due: false,
            news: false,
            refused: false,
            bells_rung: 0,
            unrung_writes: false,
            quiet_since: now,
            pulse: 0,
            heard: 0,
            score: SCORE_MAX,
            since: now,
        }
    }

    pub(crate) fn pair_number(&self) -> u32 {
        self.pair.number()
    }

    pub(crate) const fn queued_bytes(&self) -> usize {
        self.sends.bytes() + self.bytes_under_way
    }

    pub(crate) fn has_room(&mut self, bytes: usize, pieces: usize) -> bool {
        let room = self.sends.has_room(bytes, pieces, self.bytes_under_way);
        self.refused |= !room;
        room
    }

    pub(crate) fn write(&mut self, region: RegionId, offset: usize, pieces: &[Bytes]) -> OpNumber {
        self.number += 1;
        self.sends.push(region, offset as u64, pieces, self.number);
        OpNumber(self.number)
    }

    /// The peer lets us write there, or said so again with another key.
    pub(crate) fn granted(&mut self, grant: Grant) {
        match self.grants.iter_mut().find(|known| known.region == grant.region) {
            Some(known) => *known = grant,
            None => self.grants.push(grant),
        }
        if self.wanted.is_some_and(|(region, _)| region == grant.region) {
            self.wanted = None;
        }
    }

    /// As if the word of a grant had not come yet.
    #[cfg(test)]
    pub(crate) fn forget(&mut self, region: RegionId) {
        self.grants.retain(|grant| grant.region != region);
    }

    /// Posts what waits, as far as there is room: one chain, one doorbell.
    pub(crate) fn pump(&mut self, shared: &mut Shared<'_>) -> Result<(), Failure> {
        let theirs = self.mailbox.memory().load(mailbox::SLEEP);
        let on_their_way = self.bells_rung.wrapping_sub(theirs as u32);
        let may_ring = theirs & mailbox::SLEEPY != 0 && on_their_way < BELLS;
        let quiet = self.under_way.is_empty() && self.quiet_since.elapsed() >= BEAT;
        let words = self.word_due || quiet || (may_ring && self.unrung_writes);
        if self.sends.is_empty() && !words {
            return Ok(());
        }
        let ours = u64::from(self.bells_heard) | if self.sleepy { mailbox::SLEEPY } else { 0 };
        let ours = ours.to_le_bytes();
        self.plan.clear();
        let mut chain = self.poster.begin();
        // Two places are kept for the words at the end.
        let room = (SEND_DEPTH as usize).saturating_sub(self.under_way.len() + 2);
        let mut first_piece = 0;
        'writes: for write in &self.sends.writes {
            let Some(grant) = self.grants.iter().find(|grant| grant.region == write.region) else {
                self.wanted = self.wanted.or(Some((write.region, false)));
                break;
            };
            // Beyond the end of the region it is the peer's device that refuses.
            let start = grant.address.wrapping_add(write.offset);
            let pieces = self.sends.pieces.range(first_piece..first_piece + write.pieces);
            first_piece += write.pieces;
            if write.length <= self.pair.inline_bytes() && write.pieces <= PIECES {
                if self.plan.len() >= room {
                    break;
                }
                let done = std::iter::once(write.done).chain(std::iter::repeat(0));
                let data = pieces.zip(done).map(|(piece, done)| &piece[done..]);
                let to = Remote { address: start, key: grant.key };
                chain.write_inline(id(self.sequence, &self.plan), to, data, None);
                let (bytes, number) = (write.length, Some(write.number));
                self.plan.push(Planned {
                    bytes,
                    number,
                    chunks: 0,
                    kind: Kind::Inline,
                    rings: false,
                });
                signal_some(&mut chain);
                continue;
            }
            let mut cursor = Cursor { pieces, piece: None, done: write.done };
            let mut posted = 0;
            while posted < write.length {
                let limit = self.request_bytes;
                let full = self.plan.len() >= room;
                let into = (&mut self.sources, &mut self.chunks);
                let request = if full { None } else { cursor.stage(shared.staging, limit, into) };
                let Some((bytes, chunks)) = request else { break 'writes };
                let to = Remote { address: start.wrapping_add(posted as u64), key: grant.key };
                chain.write(id(self.sequence, &self.plan), to, &self.sources, None);
                posted += bytes;
                let number = (posted == write.length).then_some(write.number);
                self.plan.push(Planned { bytes, number, chunks, kind: Kind::Staged, rings: false });
                signal_some(&mut chain);
            }
        }
        let Remote { address, key } = self.theirs;
        let place = |offset: usize| Remote { address: address.wrapping_add(offset as u64), key };
        let word =
            |kind| Planned { bytes: 0, number: None, chunks: 0, kind, rings: kind == Kind::Bell };
        match self.plan.last_mut() {
            Some(last) if may_ring => {
                chain.number_last(self.bells_rung);
                last.rings = true;
            }
            None if may_ring && self.unrung_writes => {
                let number = Some(self.bells_rung);
                let to = place(mailbox::BELL);
                chain.write_inline(id(self.sequence, &self.plan), to, [&ours[..]], number);
                self.plan.push(word(Kind::Bell));
            }
            _ => {}
        }
        if self.word_due {
            let to = place(mailbox::SLEEP);
            chain.write_inline(id(self.sequence, &self.plan), to, [&ours[..]], None);
            self.plan.push(word(if self.sleepy { Kind::Sleepy } else { Kind::Awake }));
        }
        if self.plan.is_empty() && quiet {
            let heard = self.mailbox.source(mailbox::HEARD, 8);
            chain.read(id(self.sequence, &self.plan), place(mailbox::PULSE), heard);
            self.plan.push(word(Kind::Beat));
        }
        chain.signal_last();
        if self.plan.is_empty() {
            return Ok(());
        }
        let (posted, refused) = match self.pair.post(chain) {
            Ok(()) => (self.plan.len(), None),
            Err(failure) => (failure.posted, Some(failure.source)),
        };
        shared.statistics.doorbells += 1;
        self.account(posted, shared);
        match refused {
            // ENOMEM: the send queue is full, which is back-pressure and no failure.
            Some(error) if error.raw_os_error() != Some(12) => Err(Failure {
                reason: format!("the device refuses a write request: {error}"),
                unreachable: true,
            }),
            _ => Ok(()),
        }
    }

    /// Notes what was posted, the first so many requests of the plan.
    fn account(&mut self, posted: usize, shared: &mut Shared<'_>) {
        let at = Instant::now();
        self.quiet_since = at;
        for planned in self.plan.drain(..posted) {
            let Planned { bytes, number, chunks, kind, rings } = planned;
            self.sequence += 1;
            match kind {
                Kind::Inline | Kind::Staged => {
                    self.sends.advance(bytes);
                    self.unrung_writes = true;
                    shared.statistics.writes += 1;
                    shared.statistics.inline_writes += u64::from(kind == Kind::Inline);
                    shared.statistics.bytes += bytes as u64;
                }
                Kind::Bell => {}
                Kind::Beat => shared.statistics.beats += 1,
                Kind::Sleepy | Kind::Awake => {
                    self.word_due = false;
                    self.bells_told = self.bells_heard;
                }
            }
            if rings {
                self.bells_rung = self.bells_rung.wrapping_add(1);
                self.unrung_writes = false;
                shared.statistics.bells += 1;
            }
            self.bytes_under_way += bytes;
            let sequence = self.sequence;
            self.under_way.push_back(Posted { sequence, number, bytes, chunks, kind, at });
        }
        // What was not posted is staged again when there is room.
        let unposted: usize = self.plan.drain(..).map(|planned| planned.chunks).sum();
        for _ in 0..unposted {
            if let Some(chunk) = self.chunks.pop_back() {
                shared.staging.release(chunk);
            }
        }
    }

    /// Takes completions. An error ends the life of the lane.
    pub(crate) fn poll(&mut self, shared: &mut Shared<'_>) -> Result<(), Failure> {
        let lost = |error: VerbsError| Failure { reason: error.to_string(), unreachable: true };
        loop {
            self.completions.clear();
            let count = self.queue.poll(&mut self.completions).map_err(lost)?;
            if count == 0 {
                break;
            }
            shared.statistics.completions += count as u64;
            self.digest(shared)?;
            if count < 32 {
                break;
            }
        }
        let stalled = self.under_way.front().map(|posted| posted.at.elapsed());
        match stalled {
            Some(age) if age >= shared.stall => Err(Failure {
                reason: format!(
                    "the peer's device has not answered for {} ms: is RDMA cut off (UDP port 4791 \
                     with RoCE v2) while TCP gets through?",
                    age.as_millis()
                ),
                unreachable: true,
            }),
            _ => Ok(()),
        }
    }

    fn digest(&mut self, shared: &mut Shared<'_>) -> Result<(), Failure> {
        for at in 0..self.completions.len() {
            let completion = self.completions[at];
            if completion.status != Status::SUCCESS {
                return Err(self.failure());
            }
            if completion.received {
                self.news = true;
                self.bells_heard = self.bells_heard.wrapping_add(1);
                self.word_due |= self.bells_heard.wrapping_sub(self.bells_told) >= BELLS_TOLD;
                self.pair.post_receive(completion.id).map_err(|error| Failure {
                    reason: format!("the device refuses a receive request: {error}"),
                    unreachable: true,
                })?;
            } else {
                self.retire(completion.id, shared.staging);
            }
        }
        if self.score <= SCORE_STUCK {
            let reason = "the peer's device answers and its loop stands still".into();
            return Err(Failure { reason, unreachable: false });
        }
        Ok(())
    }

    /// What the completions say of the failure: the first that was not merely flushed tells why.
    fn failure(&self) -> Failure {
        let failed = || self.completions.iter().filter(|one| one.status != Status::SUCCESS);
        let first = failed().find(|one| one.status != Status::FLUSHED).or_else(|| failed().next());
        let status = first.map_or(Status::FLUSHED, |one| one.status);
        let reason = match first.map_or(0, |one| one.vendor_error) {
            0 => format!("the connection failed: {status}"),
            vendor => format!("the connection failed: {status} (vendor error {vendor:#x})"),
        };
        Failure { reason, unreachable: status.is_unreachable() }
    }

    /// Everything up to a request is done.
    fn retire(&mut self, sequence: u64, staging: &mut Staging) {
        while let Some(posted) = self.under_way.front().filter(|one| one.sequence <= sequence) {
            self.completed = posted.number.unwrap_or(self.completed);
            self.bytes_under_way -= posted.bytes;
            for _ in 0..posted.chunks {
                if let Some(chunk) = self.chunks.pop_front() {
                    staging.release(chunk);
                }
            }
            // A caller that was refused may post again; who said that it sleeps has its last look.
            self.news |= std::mem::take(&mut self.refused) || posted.kind == Kind::Sleepy;
            if posted.kind == Kind::Beat {
                let heard = self.mailbox.memory().load(mailbox::HEARD);
                let moved = heard != std::mem::replace(&mut self.heard, heard);
                self.score = if moved { SCORE_MAX.min(self.score + 1) } else { self.score - 1 };
            }
            self.under_way.pop_front();
        }
    }

    /// The newest write that completed, if that is news.
    pub(crate) fn completed(&mut self) -> Option<OpNumber> {
        let news = self.completed > self.reported;
        self.reported = self.completed;
        news.then_some(OpNumber(self.completed))
    }

    /// Whether something happened that the caller has to look at: a completion alone is nothing.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// From now on the peer rings, or from now on it need not.
    pub(crate) fn may_sleep(&mut self, sleepy: bool) {
        if self.sleepy != sleepy {
            self.sleepy = sleepy;
            self.word_due = true;
        }
    }

    /// The next completion makes the channel readable.
    pub(crate) fn arm(&mut self) -> Result<(), Failure> {
        let lost = |error: VerbsError| error.to_string();
        self.queue.arm().map_err(lost).map_err(|reason| Failure { reason, unreachable: true })
    }

    /// When something has to be looked at though the device says nothing.
    pub(crate) fn timer(&self, stall: Duration) -> Instant {
        let oldest = self.under_way.front().map(|posted| posted.at + stall);
        oldest.unwrap_or(self.quiet_since + BEAT)
    }

    /// Counts a turn of the loop, for the peer to see.
    pub(crate) fn beat(&mut self) {
        self.pulse += 1;
        self.mailbox.memory().store(mailbox::PULSE, self.pulse);
    }

    /// Ends it. When this returns without an error the device neither reads nor writes anything for it
    /// any more.
    pub(crate) fn close(mut self, staging: &mut Staging) -> Result<(), VerbsError> {
        // What is under way is flushed before the pair goes: some devices lose it otherwise.
        let failed = self.pair.fail();
        for _ in 0..SEND_DEPTH {
            self.completions.clear();
            let polled = self.queue.poll(&mut self.completions);
            if failed.is_err() || !matches!(polled, Ok(1..)) {
                break;
            }
        }
        let destroyed = self.pair.destroy();
        for chunk in self.chunks.drain(..) {
            staging.release(chunk);
        }
        destroyed
    }
}

/// The number of the next request of a plan.
fn id(sequence: u64, plan: &[Planned]) -> u64 {
    sequence + plan.len() as u64 + 1
}

fn signal_some(chain: &mut Chain<'_, '_>) {
    if chain.len().is_multiple_of(SIGNAL_EVERY) {
        chain.signal_last();
    }
}

/// Where a large write is.
struct Cursor<'q, I: Iterator<Item = &'q Bytes>> {
    pieces: I,
    piece: Option<&'q Bytes>,
    done: usize,
}

impl<'q, I: Iterator<Item = &'q Bytes>> Cursor<'q, I> {
    /// Stages the pieces of the next request: its bytes and how many chunks it holds. `None` if
    /// there is no room, or nothing left.
    fn stage(
        &mut self,
        staging: &mut Staging,
        limit: usize,
        (sources, chunks): (&mut Vec<Source>, &mut VecDeque<usize>),
    ) -> Option<(usize, usize)> {
        sources.clear();
        staging.align();
        let (mut bytes, mut held) = (0, 0);
        let mut last: Option<Staged> = None;
        while bytes < limit {
            if self.piece.is_none() {
                self.piece = self.pieces.next();
            }
            let Some(piece) = self.piece else { break };
            let Some(staged) = staging.place(piece, self.done, limit - bytes) else { break };
            match &mut last {
                Some(last) if last.precedes(&staged) => {
                    last.length += staged.length;
                    sources.pop();
                    sources.push(staging.source(last));
                }
                _ if sources.len() == PIECES => break,
                _ => {
                    staging.hold(staged.chunk);
                    chunks.push_back(staged.chunk);
                    held += 1;
                    sources.push(staging.source(&staged));
                    last = Some(staged);
                }
            }
            bytes += staged.length;
            self.done += staged.length;
            if self.done == piece.len() {
                (self.piece, self.done) = (None, 0);
            }
        }
        (bytes > 0).then_some((bytes, held))
    }
}
