//! Work requests, chained so that many of them cost one doorbell.

use crate::sys::verbs as sys;
use core::fmt;
use core::marker::PhantomData;
use std::io;

/// Registered memory of this end, as a request names it. The device checks it against the region
/// that it was made from: after that was deregistered it is refused, not followed.
#[derive(Clone, Copy, Debug)]
pub struct Source(Piece);

#[derive(Clone, Copy, Debug)]
struct Piece {
    address: u64,
    length: u32,
    key: u32,
}

impl Source {
    pub(super) const fn new(address: u64, length: u32, key: u32) -> Self {
        Self(Piece { address, length, key })
    }

    /// In bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.length as usize
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.length == 0
    }
}

/// Memory of the peer, as it disclosed it. The peer's device checks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remote {
    /// Where the first byte goes.
    pub address: u64,
    /// What the peer calls its region.
    pub key: u32,
}

/// Collects a chain of requests and hands it to a queue pair. Its memory is used again and again.
pub struct Poster {
    requests: Vec<sys::ibv_send_wr>,
    pieces: Vec<sys::ibv_sge>,
}

// SAFETY: the pointers in `requests` are followed only within `Chain::link` and the call after it,
// which set all of them before; between chains they are never looked at.
unsafe impl Send for Poster {}

impl fmt::Debug for Poster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Poster({} requests)", self.requests.len())
    }
}

/// Requests that go out together. Data that goes inline has to live until then: `'d`.
pub struct Chain<'p, 'd> {
    poster: &'p mut Poster,
    data: PhantomData<&'d [u8]>,
}

/// How much of a chain was not posted, and why.
#[derive(Debug, thiserror::Error)]
#[error("{posted} requests were posted, the next one was refused: {source}")]
pub struct PostFailure {
    /// The first so many were posted.
    pub posted: usize,
    /// Why the next one was not: `ENOMEM` when the send queue is full.
    pub source: io::Error,
}

impl fmt::Debug for Chain<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({} requests)", self.poster.requests.len())
    }
}

impl Default for Poster {
    fn default() -> Self {
        Self::new()
    }
}

impl Poster {
    /// With nothing in it.
    #[must_use]
    pub const fn new() -> Self {
        Self { requests: Vec::new(), pieces: Vec::new() }
    }

    /// Begins a chain.
    pub fn begin<'d>(&mut self) -> Chain<'_, 'd> {
        self.requests.clear();
        self.pieces.clear();
        Chain { poster: self, data: PhantomData }
    }
}

impl<'d> Chain<'_, 'd> {
    /// Requests in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.poster.requests.len()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.poster.requests.is_empty()
    }

    /// Writes `data` to the peer. The bytes are copied when the chain is posted: nothing needs to be
    /// registered. How many fit is [`super::QueuePair::inline_bytes`].
    pub fn write_inline(
        &mut self,
        id: u64,
        to: Remote,
        data: impl IntoIterator<Item = &'d [u8]>,
        immediate: Option<u32>,
    ) {
        let first = self.poster.pieces.len();
        for bytes in data {
            let length = u32::try_from(bytes.len()).expect("inline data is short");
            let addr = bytes.as_ptr().expose_provenance() as u64;
            self.poster.pieces.push(sys::ibv_sge { addr, length, lkey: 0 });
        }
        let flags = sys::ibv_send_flags::IBV_SEND_INLINE.0;
        self.push(id, to, first, write_opcode(immediate), flags, immediate);
    }

    /// Writes `sources`, one after the other, to the peer. The device reads them until the request
    /// is completed.
    pub fn write(&mut self, id: u64, to: Remote, sources: &[Source], immediate: Option<u32>) {
        let first = self.poster.pieces.len();
        self.poster.pieces.extend(sources.iter().map(piece));
        self.push(id, to, first, write_opcode(immediate), 0, immediate);
    }

    /// Reads from the peer into `into`, which was registered for that.
    pub fn read(&mut self, id: u64, from: Remote, into: Source) {
        let first = self.poster.pieces.len();
        self.poster.pieces.push(piece(&into));
        self.push(id, from, first, sys::ibv_wr_opcode::IBV_WR_RDMA_READ, 0, None);
    }

    /// The last request makes a completion, which speaks for all before it.
    pub fn signal_last(&mut self) {
        if let Some(request) = self.poster.requests.last_mut() {
            request.send_flags |= sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
        }
    }

    /// The last request, a write, carries a number: it takes a receive of the peer, and completes there.
    pub fn number_last(&mut self, immediate: u32) {
        if let Some(request) = self.poster.requests.last_mut() {
            request.opcode = write_opcode(Some(immediate));
            request.__bindgen_anon_1.imm_data = immediate.to_be();
        }
    }

    fn push(
        &mut self,
        id: u64,
        remote: Remote,
        first: usize,
        opcode: sys::ibv_wr_opcode,
        send_flags: u32,
        immediate: Option<u32>,
    ) {
        let mut request = sys::ibv_send_wr {
            wr_id: id,
            // Kept for `link`, which knows where the pieces are in the end.
            num_sge: (self.poster.pieces.len() - first) as i32,
            opcode,
            send_flags,
            ..sys::ibv_send_wr::default()
        };
        request.__bindgen_anon_1.imm_data = immediate.unwrap_or(0).to_be();
        request.wr.rdma = sys::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 {
            remote_addr: remote.address,
            rkey: remote.key,
        };
        self.poster.requests.push(request);
    }

    /// Sets all pointers, now that nothing moves any more; the first request.
    pub(super) fn link(&mut self) -> *mut sys::ibv_send_wr {
        let Poster { requests, pieces } = &mut *self.poster;
        let mut at = pieces.as_mut_ptr();
        let start = requests.as_mut_ptr();
        let count = requests.len();
        for (index, request) in requests.iter_mut().enumerate() {
            request.sg_list = at;
            at = at.wrapping_add(request.num_sge as usize);
            let next = start.wrapping_add(index + 1);
            request.next = if index + 1 < count { next } else { core::ptr::null_mut() };
        }
        start
    }

    /// How many requests come before this one.
    pub(super) fn index_of(&self, request: *const sys::ibv_send_wr) -> usize {
        let start = self.poster.requests.as_ptr() as usize;
        let index = (request as usize).wrapping_sub(start) / size_of::<sys::ibv_send_wr>();
        index.min(self.poster.requests.len())
    }

    /// The longest inline request, in bytes, and the largest number of pieces.
    pub(super) fn extremes(&self) -> (usize, usize) {
        let (mut at, mut inline, mut most) = (0, 0, 0);
        for request in &self.poster.requests {
            let count = request.num_sge as usize;
            let pieces = &self.poster.pieces[at..at + count];
            (at, most) = (at + count, most.max(count));
            if request.send_flags & sys::ibv_send_flags::IBV_SEND_INLINE.0 != 0 {
                inline = inline.max(pieces.iter().map(|piece| piece.length as usize).sum());
            }
        }
        (inline, most)
    }
}

const fn write_opcode(immediate: Option<u32>) -> sys::ibv_wr_opcode {
    match immediate {
        None => sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE,
        Some(_) => sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM,
    }
}

const fn piece(source: &Source) -> sys::ibv_sge {
    sys::ibv_sge { addr: source.0.address, length: source.0.length, lkey: source.0.key }
}
