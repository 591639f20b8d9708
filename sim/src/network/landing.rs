//! One-sided writes: they become visible piece by piece, late, or after their lane has died.

use super::{Ghost, Landing, Net, NetEvent, Node, Operation, Write, Written, id, is_ring};
use crate::coverage::Row;
use quorate_consensus::{Ballot, RowFlags, Slot};
use quorate_transport::{Event, Level, OpNumber, RegionId};

/// Pieces of one write at the most: a piece a byte would be all of the run.
const PIECES_MAX: usize = 8;
/// Offsets of words in the bytes of a row: see `quorate_transport::row`.
const PROMISED: usize = 16;
const ACCEPTED_BALLOT: usize = 24;
const FLAGS: usize = 56;

impl Net {
    pub(super) fn begin_landing(&mut self, from: usize, to: usize, write: Write) {
        let sum = u64::from(crc32c::crc32c(&write.bytes));
        self.note(sum ^ (from as u64) << 32 ^ (to as u64) << 40 ^ 1 << 63);
        let side = usize::from(from > to);
        if is_ring(write.region) {
            let direction = &mut self.lane(from, to, 1).directions[side];
            let before = direction.landed_at.replace(write.offset);
            if write.offset == 0 && before.is_some() {
                self.coverage.observe(Row::F106);
            }
        } else {
            self.note_row(to, &write);
        }
        let length = write.bytes.len();
        let Some(grain) = self.shape.tear_bytes.filter(|grain| length > *grain) else {
            self.note_written(from, to, &write);
            self.complete(from, to, Level::Accepted);
            self.deliver_whole(from, to, Operation::Write(write));
            self.complete(from, to, Level::Visible);
            return;
        };
        let mut pieces = self.tear(length, grain);
        self.random.shuffle(&mut pieces);
        let row = match grain {
            1 => Row::W1,
            8 => Row::W8,
            64 => Row::W64,
            _ => Row::W1024,
        };
        self.coverage.inject(row);
        self.coverage.inject(Row::F97);
        let early = !self.shape.for_life || self.random.chance(700_000);
        let told = early && self.complete(from, to, Level::Accepted);
        if told {
            self.note_written(from, to, &write);
        }
        self.lane(from, to, 1).directions[side].landing = Some(Landing { write, pieces, told });
        if told {
            self.coverage.inject(Row::WC);
        }
        self.land_piece(from, to);
    }

    /// Cuts a write at some multiples of the grain.
    fn tear(&mut self, length: usize, grain: usize) -> Vec<(usize, usize)> {
        let grains = length.div_ceil(grain) as u64;
        let cuts = (PIECES_MAX as u64 - 1).min(grains - 1);
        let mut ends: Vec<usize> =
            (0..cuts).map(|_| self.random.between(1, grains - 1) as usize * grain).collect();
        ends.push(length);
        ends.sort_unstable();
        ends.dedup();
        let starts = [0].into_iter().chain(ends.clone());
        starts.zip(ends).collect()
    }

    pub(super) fn land_piece(&mut self, from: usize, to: usize) {
        let side = usize::from(from > to);
        let Some(Landing { write, mut pieces, told }) =
            self.lane(from, to, 1).directions[side].landing.take()
        else {
            return;
        };
        for _ in 0..=self.random.below(3) {
            if let Some((start, end)) = pieces.pop() {
                self.scribble(from, to, &write, start, end);
            }
        }
        self.hint(from, to, write.region);
        if pieces.is_empty() {
            if !told {
                self.note_written(from, to, &write);
            }
            self.complete(from, to, Level::Visible);
            return;
        }
        self.coverage.observe(Row::F97);
        let row = match self.shape.tear_bytes {
            Some(1) => Row::W1,
            Some(8) => Row::W8,
            Some(64) => Row::W64,
            _ => Row::W1024,
        };
        self.coverage.observe(row);
        if self.shape.completions {
            self.coverage.observe(Row::WC);
        }
        let wait = self.random.exponential(self.shape.landing_mean);
        let state = self.lane(from, to, 1);
        let life = state.life;
        state.directions[side].landing = Some(Landing { write, pieces, told });
        let (from, to) = (from as Node, to as Node);
        self.due.push((self.now + wait, NetEvent::Land { from, to, life }));
    }

    /// Tells the writer how far its writes have come. Whether it was told.
    fn complete(&mut self, from: usize, to: usize, level: Level) -> bool {
        if !self.shape.completions {
            return false;
        }
        let state = self.lane(from, to, 1);
        let (life, taken) = (state.life, state.directions[usize::from(from > to)].taken);
        if self.shape.for_life && self.random.chance(300_000) {
            // An acknowledgement that comes late, behind a row of the reader perhaps.
            let wait = self.random.exponential(self.shape.told_late_mean);
            let (from, to) = (from as Node, to as Node);
            self.due
                .push((self.now + wait, NetEvent::Told { from, to, life, through: taken, level }));
        } else {
            self.tell_writer(from, to, taken, level);
        }
        true
    }

    pub(super) fn tell_writer(&mut self, from: usize, to: usize, through: u64, level: Level) {
        if self.shape.for_life {
            let side = usize::from(from > to);
            let told = &mut self.lane(from, to, 1).directions[side].told[level as usize & 1];
            if *told >= through {
                return;
            }
            *told = through;
            self.wakes.push(from);
        }
        let event = Event::Completed { peer: id(to), through: OpNumber(through), level };
        self.endpoints[from].inbox.push(event);
    }

    /// A record of a ring will be whole there, whatever happens to its lane.
    fn note_written(&mut self, from: usize, to: usize, write: &Write) {
        if !self.shape.for_life || !is_ring(write.region) {
            return;
        }
        let word = |at: usize| {
            let word = write.bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
            word.map_or(0, u64::from_le_bytes)
        };
        // See `quorate_transport::ring`. A pad holds nothing.
        let (ballot, first, count) = (word(16), word(24), word(40) & 0xffff_ffff);
        if count > 0 {
            let (ballot, slot) = (Ballot::unpack(ballot), Slot(first + count - 1));
            self.written.push(Written { from, to, ballot, slot });
        }
    }

    pub(super) fn finish_landing(&mut self, from: usize, to: usize) {
        let side = usize::from(from > to);
        let landing = self.lane(from, to, 1).directions[side].landing.take();
        if let Some(Landing { write, told, .. }) = landing {
            if !told {
                // Its writer is told with the next one, if it is not told before.
                self.note_written(from, to, &write);
            }
            self.scribble(from, to, &write, 0, write.bytes.len());
        }
    }

    pub(super) fn scribble(
        &mut self,
        from: usize,
        to: usize,
        write: &Write,
        start: usize,
        end: usize,
    ) {
        let offset = (write.offset + start) as u64;
        let regions = &mut self.endpoints[to].regions;
        // A write of a dead lane may come before the next process has registered its memory.
        if let Ok(target) = regions.admit(id(from), write.region, offset, end - start) {
            target.copy_from_slice(&write.bytes[start..end]);
        }
    }

    pub(super) fn hint(&mut self, from: usize, to: usize, region: RegionId) {
        let event = Event::Written { peer: id(from), region };
        let endpoint = &mut self.endpoints[to];
        if self.shape.hints && endpoint.inbox.last() != Some(&event) {
            endpoint.inbox.push(event);
        }
        self.wakes.push(to);
    }

    /// A row lands: does it speak of a ballot that its reader has left behind?
    fn note_row(&mut self, to: usize, write: &Write) {
        let word = |at: usize| {
            let word = write.bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
            word.map_or(0, u64::from_le_bytes)
        };
        let (promised, leading) = self.known[to];
        let voted = word(ACCEPTED_BALLOT);
        if leading != 0 && voted != 0 && Ballot::unpack(voted) < Ballot::unpack(leading) {
            self.coverage.meet(Row::F12);
        }
        let leads = word(FLAGS) & RowFlags::LEADING != 0;
        if leads && Ballot::unpack(word(PROMISED)) < Ballot::unpack(promised) {
            self.coverage.meet(Row::F15);
        }
    }

    /// A write of a lane that died may land all the same, later.
    pub(super) fn haunt(&mut self, from: usize, to: usize, life: u64, operation: Operation) {
        if let Operation::Write(write) = operation
            && self.random.chance(300_000)
        {
            let wait = self.random.exponential(self.shape.back_off_mean * 2);
            let generation = self.endpoints[to].generation;
            let partings = self.endpoints[to].partings[from];
            self.coverage.inject(Row::F96);
            let ghost = Box::new(Ghost { from, to, generation, partings, life, write });
            self.due.push((self.now + wait, NetEvent::Ghost(ghost)));
        }
    }

    /// It lands, in the memory of whichever process is there now.
    pub(super) fn appear(&mut self, ghost: &Ghost) {
        let Ghost { from, to, generation, partings, life, write } = ghost;
        let endpoint = &self.endpoints[*to];
        if !endpoint.alive || self.is_fenced(*from, *to) {
            return;
        }
        if endpoint.generation == *generation && endpoint.partings[*from] != *partings {
            // The memory that it was to land in was given back.
            return;
        }
        if !self.lets_late(*from, *to, write.region, *life) {
            return;
        }
        if endpoint.generation == *generation {
            self.coverage.observe(Row::F96);
        } else {
            self.coverage.meet(Row::F104);
        }
        self.scribble(*from, *to, write, 0, write.bytes.len());
    }
}
