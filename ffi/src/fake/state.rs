//! What the fake device knows, and how packets move.

use super::MTU;
use crate::memory::copy_racing;
use crate::sys::verbs as sys;
use core::fmt;
use std::collections::{BTreeMap, VecDeque};
use std::io::{PipeWriter, Write};

/// A request that got no answer so often has failed.
const ATTEMPTS: u32 = 7;
/// Packets that move at each post and poll.
const PACE: usize = 256;

/// A pointer to something that C and this module share; only handed around here.
pub(super) struct Shared<T>(pub(super) *mut T);

// SAFETY: what it points to is changed only under the fabric's lock, or by the calls that libibverbs
// forbids to run at the same time as others on the same object.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Box::into_raw(Box::new(value)))
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:p}", self.0)
    }
}

/// How cables are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Partition {
    /// All carry.
    #[default]
    None,
    /// None carries, and the device gives up soon: retries exceeded.
    GivesUp,
    /// None carries, and the device tries for ever.
    Silent,
}

/// What was done on a fabric.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Calls that posted requests.
    pub doorbells: u64,
    /// Writes posted, those with a number included.
    pub writes: u64,
    /// Writes posted that carry a number.
    pub immediates: u64,
    /// Reads posted.
    pub reads: u64,
    /// Requests posted with inline data.
    pub inline: u64,
    /// Bytes that landed in a peer's memory.
    pub bytes: u64,
    /// Completions that were polled.
    pub completions: u64,
    /// Packets refused for lack of a right.
    pub refused: u64,
}

/// Objects that exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Live {
    /// Open contexts.
    pub contexts: usize,
    /// Protection domains.
    pub domains: usize,
    /// Memory regions.
    pub regions: usize,
    /// Completion channels.
    pub channels: usize,
    /// Completion queues.
    pub queues: usize,
    /// Queue pairs.
    pub pairs: usize,
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) partition: Partition,
    pub(super) late_packets: u32,
    pub(super) late_packets_by_flags: u32,
    pub(super) refuse_pairs: bool,
    pub(super) refuse_memory: bool,
    pub(super) keep_memory: bool,
    pub(super) keep_pairs: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) address: u64,
    pub(super) length: u64,
    pub(super) access: u32,
    pub(super) domain: u32,
    /// Deregistered, and this many packets still land: only a broken fence has this.
    pub(super) late: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) opcode: sys::ibv_wr_opcode,
    pub(super) signaled: bool,
    pub(super) remote: u64,
    pub(super) key: u32,
    pub(super) immediate: u32,
    /// The bytes themselves if they came inline; else where they are.
    pub(super) inline: bool,
    pub(super) bytes: Vec<u8>,
    pub(super) pieces: Vec<sys::ibv_sge>,
    pub(super) length: usize,
    pub(super) done: usize,
    pub(super) attempts: u32,
}

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) pointer: Shared<sys::ibv_qp>,
    pub(super) context: usize,
    pub(super) state: sys::ibv_qp_state,
    pub(super) domain: u32,
    pub(super) queue: u32,
    pub(super) access: u32,
    /// Packets that still land though the flags forbid them.
    pub(super) late: u32,
    pub(super) peer: u32,
    pub(super) send_psn: u32,
    pub(super) receive_psn: u32,
    pub(super) sends: VecDeque<Request>,
    pub(super) receives: VecDeque<u64>,
    pub(super) sends_max: usize,
    pub(super) receives_max: usize,
    pub(super) pieces_max: usize,
    /// Places of the send queue that no polled completion has freed.
    pub(super) occupied: usize,
    /// Requests done without a completion since the last one with.
    pub(super) silent: usize,
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) pointer: Shared<sys::ibv_cq>,
    pub(super) context: usize,
    pub(super) depth: usize,
    /// With the places of the send queue that each frees.
    pub(super) entries: VecDeque<(Entry, usize)>,
    pub(super) armed: bool,
    pub(super) overrun: bool,
    pub(super) channel: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) status: sys::ibv_wc_status,
    pub(super) opcode: sys::ibv_wc_opcode,
    pub(super) pair: u32,
    pub(super) immediate: Option<u32>,
}

/// Something that a file descriptor makes known.
#[derive(Debug)]
pub(super) struct Bell<T> {
    pub(super) events: VecDeque<T>,
    pub(super) writer: PipeWriter,
}

impl<T> Bell<T> {
    fn ring(&mut self, event: T) {
        self.events.push_back(event);
        // A pipe that is full is readable, which is all that is wanted.
        let _ = self.writer.write(&[1]);
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Told {
    Pair(Shared<sys::ibv_qp>, sys::ibv_event_type),
    Queue(Shared<sys::ibv_cq>),
    Port(sys::ibv_event_type),
}

#[derive(Debug)]
pub(super) struct State {
    random: u64,
    next: u32,
    pub(super) pace: usize,
    pub(super) port_up: bool,
    pub(super) faults: Faults,
    pub(super) counts: Counts,
    pub(super) contexts: BTreeMap<usize, Bell<Told>>,
    pub(super) domains: BTreeMap<u32, usize>,
    pub(super) regions: BTreeMap<u32, Region>,
    pub(super) channels: BTreeMap<usize, Bell<Shared<sys::ibv_cq>>>,
    pub(super) queues: BTreeMap<u32, Queue>,
    pub(super) pairs: BTreeMap<u32, Pair>,
    /// Memory of requests that are done, so that the steady state allocates nothing.
    pub(super) spare: Vec<Request>,
}

/// What a packet met.
enum Outcome {
    Moved,
    /// No answer.
    Silence,
    /// The receiver has no receive.
    NotReady,
    Failed(sys::ibv_wc_status),
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: seed | 1,
            next: 16,
            pace: PACE,
            port_up: true,
            faults: Faults::default(),
            counts: Counts::default(),
            contexts: BTreeMap::new(),
            domains: BTreeMap::new(),
            regions: BTreeMap::new(),
            channels: BTreeMap::new(),
            queues: BTreeMap::new(),
            pairs: BTreeMap::new(),
            spare: Vec::new(),
        }
    }

    /// Numbers of objects are never used twice.
    pub(super) fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// A key has eight random bits at its end, as real ones do.
    pub(super) fn key(&mut self) -> u32 {
        let number = self.number();
        (number << 8) | (self.random() & 0xff) as u32
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    pub(super) fn live(&self) -> Live {
        Live {
            contexts: self.contexts.len(),
            domains: self.domains.len(),
            regions: self.regions.values().filter(|region| region.late.is_none()).count(),
            channels: self.channels.len(),
            queues: self.queues.len(),
            pairs: self.pairs.len(),
        }
    }

    pub(super) fn set_port(&mut self, up: bool) {
        self.port_up = up;
        let kind = sys::ibv_event_type::IBV_EVENT_PORT_ACTIVE;
        let kind = if up { kind } else { sys::ibv_event_type::IBV_EVENT_PORT_ERR };
        for context in self.contexts.values_mut() {
            context.ring(Told::Port(kind));
        }
    }

    pub(super) fn fail_pairs(&mut self) {
        let pairs: Vec<u32> = self.pairs.keys().copied().collect();
        for pair in pairs {
            self.fail(pair);
            self.tell(pair, sys::ibv_event_type::IBV_EVENT_QP_FATAL);
        }
    }

    fn tell(&mut self, pair: u32, kind: sys::ibv_event_type) {
        let Some(entry) = self.pairs.get(&pair) else { return };
        let pointer = entry.pointer;
        if let Some(context) = self.contexts.get_mut(&entry.context) {
            context.ring(Told::Pair(pointer, kind));
        }
    }

    /// Moves packets of whoever has some, in random order among queue pairs.
    pub(super) fn step(&mut self, packets: usize) -> usize {
        for moved in 0..packets {
            let ready = self.ready().count();
            if ready == 0 || self.faults.partition == Partition::Silent {
                return moved;
            }
            let chosen = (self.random() % ready as u64) as usize;
            let Some(number) = self.ready().nth(chosen) else { return moved };
            self.packet(number);
        }
        packets
    }

    /// The queue pairs that have something to send.
    fn ready(&self) -> impl Iterator<Item = u32> {
        self.pairs.iter().filter(|(_, pair)| !pair.sends.is_empty()).map(|(number, _)| *number)
    }

    /// One packet of one queue pair.
    fn packet(&mut self, number: u32) {
        let Some(mut request) = self.pairs.get_mut(&number).and_then(|pair| pair.sends.pop_front())
        else {
            return;
        };
        let outcome = self.deliver(number, &mut request);
        match outcome {
            Outcome::Moved if request.done < request.length => {
                request.attempts = 0;
                self.put_back(number, request);
            }
            Outcome::Moved => {
                self.complete(number, &request, sys::ibv_wc_status::IBV_WC_SUCCESS);
                self.spare.push(request);
            }
            Outcome::Silence | Outcome::NotReady if request.attempts < ATTEMPTS => {
                request.attempts += 1;
                self.put_back(number, request);
            }
            Outcome::Silence => {
                self.give_up(number, &request, sys::ibv_wc_status::IBV_WC_RETRY_EXC_ERR);
            }
            Outcome::NotReady => {
                self.give_up(number, &request, sys::ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR);
            }
            Outcome::Failed(status) => self.give_up(number, &request, status),
        }
    }

    fn put_back(&mut self, number: u32, request: Request) {
        if let Some(pair) = self.pairs.get_mut(&number) {
            pair.sends.push_front(request);
        }
    }

    fn deliver(&mut self, number: u32, request: &mut Request) -> Outcome {
        let Some(sender) = self.pairs.get(&number) else { return Outcome::Silence };
        let (peer, psn) = (sender.peer, sender.send_psn);
        let cut = self.faults.partition != Partition::None || !self.port_up;
        let reached = self.pairs.get(&peer).filter(|pair| {
            let state = pair.state;
            let up =
                state == sys::ibv_qp_state::IBV_QPS_RTR || state == sys::ibv_qp_state::IBV_QPS_RTS;
            up && pair.peer == number && pair.receive_psn == psn
        });
        let Some(receiver) = reached.filter(|_| !cut) else { return Outcome::Silence };
        let (receiver_domain, has_receive) = (receiver.domain, !receiver.receives.is_empty());
        let write = request.opcode != sys::ibv_wr_opcode::IBV_WR_RDMA_READ;
        if !self.pass_flags(peer, write) {
            self.refuse(peer);
            return Outcome::Failed(sys::ibv_wc_status::IBV_WC_REM_INV_REQ_ERR);
        }
        if request.length > 0 && !self.pass_region(request, receiver_domain, write) {
            self.refuse(peer);
            return Outcome::Failed(sys::ibv_wc_status::IBV_WC_REM_ACCESS_ERR);
        }
        let carries = request.opcode == sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
        let length = MTU.min(request.length - request.done);
        if carries && !has_receive && request.done + length == request.length {
            return Outcome::NotReady;
        }
        if !self.move_bytes(number, request, length, write) {
            return Outcome::Failed(sys::ibv_wc_status::IBV_WC_LOC_PROT_ERR);
        }
        request.done += length;
        if carries && request.done == request.length {
            self.receive(peer, request.immediate);
        }
        Outcome::Moved
    }

    fn pass_flags(&mut self, peer: u32, write: bool) -> bool {
        use sys::ibv_access_flags as a;
        let wanted = if write { a::IBV_ACCESS_REMOTE_WRITE } else { a::IBV_ACCESS_REMOTE_READ };
        let Some(pair) = self.pairs.get_mut(&peer) else { return false };
        if pair.access & wanted.0 != 0 {
            return true;
        }
        let late = pair.late > 0;
        pair.late = pair.late.saturating_sub(1);
        late
    }

    /// Whether the region that the request names lets it through; the whole of it is looked at.
    fn pass_region(&mut self, request: &Request, domain: u32, write: bool) -> bool {
        use sys::ibv_access_flags as a;
        let wanted = if write { a::IBV_ACCESS_REMOTE_WRITE } else { a::IBV_ACCESS_REMOTE_READ };
        let Some(region) = self.regions.get_mut(&request.key) else { return false };
        let inside = region.holds(request.remote, request.length as u64);
        if !inside || region.domain != domain || region.access & wanted.0 == 0 {
            return false;
        }
        match &mut region.late {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    fn refuse(&mut self, peer: u32) {
        self.counts.refused += 1;
        self.fail(peer);
        self.tell(peer, sys::ibv_event_type::IBV_EVENT_QP_ACCESS_ERR);
    }

    /// Moves the next bytes of a request; `false` if a source of this end is not what it should be.
    fn move_bytes(&mut self, number: u32, request: &Request, length: usize, write: bool) -> bool {
        let domain = self.pairs.get(&number).map(|pair| pair.domain);
        let remote = request.remote + request.done as u64;
        if request.inline {
            copy(request.bytes[request.done..].as_ptr(), pointer(remote), length);
            self.counts.bytes += length as u64;
            return true;
        }
        let (mut skip, mut at, mut left) = (request.done, remote, length);
        for piece in &request.pieces {
            let whole = piece.length as usize;
            if skip >= whole {
                skip -= whole;
                continue;
            }
            let take = left.min(whole - skip);
            let local = piece.addr + skip as u64;
            let known = self.regions.get(&piece.lkey).is_some_and(|region| {
                let sink = sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0;
                region.holds(local, take as u64)
                    && Some(region.domain) == domain
                    && region.late.is_none()
                    && (write || region.access & sink != 0)
            });
            if take > 0 && !known {
                return false;
            }
            let (from, to) = if write { (local, at) } else { (at, local) };
            copy(pointer(from), pointer(to), take);
            (skip, at, left) = (0, at + take as u64, left - take);
        }
        self.counts.bytes += if write { length as u64 } else { 0 };
        left == 0
    }

    fn receive(&mut self, number: u32, immediate: u32) {
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        let Some(id) = pair.receives.pop_front() else { return };
        let queue = pair.queue;
        let entry = Entry {
            id,
            status: sys::ibv_wc_status::IBV_WC_SUCCESS,
            opcode: sys::ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM,
            pair: number,
            immediate: Some(immediate),
        };
        self.push(queue, entry, 0);
    }

    fn complete(&mut self, number: u32, request: &Request, status: sys::ibv_wc_status) {
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        let success = status == sys::ibv_wc_status::IBV_WC_SUCCESS;
        if success && !request.signaled {
            pair.silent += 1;
            return;
        }
        // Everything before it that made no completion is done as well; the places are free when
        // the completion is polled.
        let freed = 1 + std::mem::take(&mut pair.silent);
        let queue = pair.queue;
        let opcode = sys::ibv_wc_opcode::IBV_WC_RDMA_WRITE;
        let entry = Entry { id: request.id, status, opcode, pair: number, immediate: None };
        self.push(queue, entry, freed);
    }

    fn give_up(&mut self, number: u32, request: &Request, status: sys::ibv_wc_status) {
        self.complete(number, request, status);
        self.fail(number);
    }

    /// Takes a queue pair into the error state: what is under way is flushed.
    pub(super) fn fail(&mut self, number: u32) {
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        pair.state = sys::ibv_qp_state::IBV_QPS_ERR;
        let queue = pair.queue;
        let flushed = |id, opcode| Entry {
            id,
            status: sys::ibv_wc_status::IBV_WC_WR_FLUSH_ERR,
            opcode,
            pair: number,
            immediate: None,
        };
        let sends: Vec<u64> = pair.sends.drain(..).map(|request| request.id).collect();
        let receives: Vec<u64> = pair.receives.drain(..).collect();
        for id in sends {
            self.push(queue, flushed(id, sys::ibv_wc_opcode::IBV_WC_RDMA_WRITE), 1);
        }
        for id in receives {
            self.push(queue, flushed(id, sys::ibv_wc_opcode::IBV_WC_RECV), 0);
        }
    }

    fn push(&mut self, queue: u32, entry: Entry, frees: usize) {
        let Some(into) = self.queues.get_mut(&queue) else { return };
        if into.entries.len() == into.depth {
            into.overrun = true;
            let (pointer, context) = (into.pointer, into.context);
            if let Some(context) = self.contexts.get_mut(&context) {
                context.ring(Told::Queue(pointer));
            }
            return;
        }
        into.entries.push_back((entry, frees));
        if std::mem::take(&mut into.armed) {
            let pointer = into.pointer;
            if let Some(channel) = into.channel.and_then(|at| self.channels.get_mut(&at)) {
                channel.ring(pointer);
            }
        }
    }

    /// Takes a completion off a queue.
    pub(super) fn take(&mut self, queue: u32) -> Option<Entry> {
        let (entry, frees) = self.queues.get_mut(&queue)?.entries.pop_front()?;
        if let Some(pair) = self.pairs.get_mut(&entry.pair) {
            pair.occupied = pair.occupied.saturating_sub(frees);
        }
        self.counts.completions += 1;
        Some(entry)
    }
}

impl Region {
    fn holds(&self, address: u64, length: u64) -> bool {
        let end = address.checked_add(length);
        address >= self.address && end.is_some_and(|end| end <= self.address + self.length)
    }
}

fn pointer(address: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(address as usize)
}

fn copy(from: *const u8, to: *mut u8, length: usize) {
    // SAFETY: `copy_racing` wants mapped memory on both sides. Callers have found both in regions
    // that are registered, whose memory stays mapped until `ibv_dereg_mr` returned (and longer: a
    // broken fence writes only while the region's memory is kept by its test), or in the inline
    // bytes of a request, which is borrowed.
    unsafe { copy_racing(from, to, length) };
}
