//! Completion queues, and how to sleep until they have something.

use super::VerbsError;
use super::device::{Device, DeviceInner};
use crate::sys::verbs as sys;
use core::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::null_mut;
use std::sync::Arc;

/// One call takes so many completions.
const POLL_MAX: usize = 32;

/// Says that completion queues have something. Clones are the same channel.
#[derive(Clone, Debug)]
pub struct Channel {
    inner: Arc<ChannelInner>,
}

struct ChannelInner {
    channel: *mut sys::ibv_comp_channel,
    device: Arc<DeviceInner>,
}

// SAFETY: the library may be called from any thread on any object; the pointer is only handed to it.
unsafe impl Send for ChannelInner {}
// SAFETY: as above.
unsafe impl Sync for ChannelInner {}

impl fmt::Debug for ChannelInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Channel on {:?}", self.device)
    }
}

impl Drop for ChannelInner {
    fn drop(&mut self) {
        // SAFETY: it came from `ibv_create_comp_channel`, this is its only owner, and the queues
        // that report to it held this value.
        let _ = unsafe { (self.device.library.verbs.ibv_destroy_comp_channel)(self.channel) };
    }
}

/// Where the completions of queue pairs appear. Polled by its one owner.
pub struct CompletionQueue {
    pub(super) inner: Arc<QueueInner>,
    /// Reused by every poll.
    buffer: Box<[sys::ibv_wc]>,
}

pub(super) struct QueueInner {
    pub(super) queue: *mut sys::ibv_cq,
    device: Arc<DeviceInner>,
    /// Outlives the queue that reports to it.
    _channel: Option<Channel>,
}

// SAFETY: the library may be called from any thread on any object; the pointer is only handed to it.
unsafe impl Send for QueueInner {}
// SAFETY: as above.
unsafe impl Sync for QueueInner {}

impl Drop for QueueInner {
    fn drop(&mut self) {
        // SAFETY: it came from `ibv_create_cq`, this is its only owner, the queue pairs that use it
        // held this value, and each of its events was acknowledged when it was taken.
        let _ = unsafe { (self.device.library.verbs.ibv_destroy_cq)(self.queue) };
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompletionQueue on {:?}", self.inner.device)
    }
}

/// What became of a work request. With a failure only `id`, `status` and `pair` mean anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Whatever the request was given.
    pub id: u64,
    /// How it ended.
    pub status: Status,
    /// Of which queue pair.
    pub pair: u32,
    /// Whether it was a receive.
    pub received: bool,
    /// What came with a receive.
    pub immediate: Option<u32>,
    /// What the device's maker may make sense of.
    pub vendor_error: u32,
}

/// How a work request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status(u32);

impl Status {
    /// It was done.
    pub const SUCCESS: Self = Self(0);
    /// The queue pair failed before it could be done.
    pub const FLUSHED: Self = Self(5);
    /// The peer's device refuses the request itself.
    pub const REMOTE_INVALID_REQUEST: Self = Self(9);
    /// The peer's device refuses access to the memory.
    pub const REMOTE_ACCESS: Self = Self(10);
    /// The peer does not answer.
    pub const RETRY_EXCEEDED: Self = Self(12);
    /// The peer never had a receive for it.
    pub const RECEIVER_NOT_READY: Self = Self(13);

    /// Whether the network or the peer's death is to blame, not anybody's request.
    #[must_use]
    pub const fn is_unreachable(self) -> bool {
        matches!(self, Self::RETRY_EXCEEDED | Self::RECEIVER_NOT_READY)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "done",
            1 => "local length error: a request was longer than a message may be",
            2 => "local queue pair error",
            4 => "local protection error: a source is not registered memory",
            5 => "flushed: the queue pair had failed before",
            8 => "local access error",
            9 => "remote invalid request: the peer's queue pair does not allow it",
            10 => {
                "remote access error: the peer granted no such memory, or took the grant back (its \
                 fence)"
            }
            11 => "remote operation error: the peer's device failed",
            12 => {
                "the peer's device does not answer: is its port up, and does UDP port 4791 (RoCE v2) \
                 get through?"
            }
            13 => "the peer posted no receive in time",
            21 => "response time-out",
            _ => return write!(f, "completion status {}", self.0),
        })
    }
}

impl Device {
    /// Makes a channel. Its descriptor does not block.
    ///
    /// # Errors
    /// [`VerbsError::Create`].
    pub fn channel(&self) -> Result<Channel, VerbsError> {
        let refused = |source| VerbsError::Create { what: "completion channel", source };
        // SAFETY: `ibv_create_comp_channel` wants an open device.
        let channel = unsafe { (self.verbs().ibv_create_comp_channel)(self.inner.context) };
        if channel.is_null() {
            return Err(refused(io::Error::last_os_error()));
        }
        let device = Arc::clone(&self.inner);
        let channel = Channel { inner: Arc::new(ChannelInner { channel, device }) };
        set_nonblocking(channel.fd()).map_err(refused)?;
        Ok(channel)
    }

    /// Makes a completion queue with room for `depth` completions; `channel` tells of those that
    /// come after [`CompletionQueue::arm`].
    ///
    /// # Errors
    /// [`VerbsError::Create`].
    pub fn completion_queue(
        &self,
        depth: u32,
        channel: Option<&Channel>,
    ) -> Result<CompletionQueue, VerbsError> {
        let on = channel.map_or(null_mut(), |channel| channel.inner.channel);
        let depth = i32::try_from(depth).unwrap_or(i32::MAX);
        let create = self.verbs().ibv_create_cq;
        // SAFETY: `ibv_create_cq` wants an open device and a channel of it or none; the new queue
        // holds both. Vector 0 is always there.
        let queue = unsafe { create(self.inner.context, depth, null_mut(), on, 0) };
        if queue.is_null() {
            let source = io::Error::last_os_error();
            return Err(VerbsError::Create { what: "completion queue", source });
        }
        let device = Arc::clone(&self.inner);
        let inner = Arc::new(QueueInner { queue, device, _channel: channel.cloned() });
        Ok(CompletionQueue { inner, buffer: vec![EMPTY; POLL_MAX].into() })
    }
}

const EMPTY: sys::ibv_wc = sys::ibv_wc {
    wr_id: 0,
    status: sys::ibv_wc_status::IBV_WC_SUCCESS,
    opcode: sys::ibv_wc_opcode::IBV_WC_SEND,
    vendor_err: 0,
    byte_len: 0,
    __bindgen_anon_1: sys::ibv_wc__bindgen_ty_1 { imm_data: 0 },
    qp_num: 0,
    src_qp: 0,
    wc_flags: 0,
    pkey_index: 0,
    slid: 0,
    sl: 0,
    dlid_path_bits: 0,
};

impl CompletionQueue {
    /// Takes up to 32 completions and appends them; how many there were. Fewer than 32 means that
    /// the queue was empty then.
    ///
    /// # Errors
    /// [`VerbsError::CompletionQueue`].
    pub fn poll(&mut self, into: &mut Vec<Completion>) -> Result<usize, VerbsError> {
        let queue = self.inner.queue;
        let poll_cq = self.inner.device.ops().poll_cq.expect("every provider has poll_cq");
        let room = self.buffer.len() as i32;
        // SAFETY: `poll_cq` wants a live queue and room for so many completions.
        let count = unsafe { poll_cq(queue, room, self.buffer.as_mut_ptr()) };
        let Ok(count) = usize::try_from(count) else {
            return Err(VerbsError::CompletionQueue(count));
        };
        into.extend(self.buffer[..count].iter().map(completion));
        Ok(count)
    }

    /// The next completion that comes makes the channel readable, once. Poll after this once more:
    /// what came before it makes no event.
    ///
    /// # Errors
    /// [`VerbsError::CompletionQueue`].
    pub fn arm(&mut self) -> Result<(), VerbsError> {
        let queue = self.inner.queue;
        let notify = self.inner.device.ops().req_notify_cq;
        let notify = notify.expect("every provider has req_notify_cq");
        // SAFETY: `req_notify_cq` wants a live queue.
        let code = unsafe { notify(queue, 0) };
        if code == 0 { Ok(()) } else { Err(VerbsError::CompletionQueue(code)) }
    }
}

fn completion(entry: &sys::ibv_wc) -> Completion {
    let success = entry.status == sys::ibv_wc_status::IBV_WC_SUCCESS;
    // Receives have this bit (verbs.h: "for (wc.opcode & IBV_WC_RECV)").
    let received = success && entry.opcode.0 & sys::ibv_wc_opcode::IBV_WC_RECV.0 != 0;
    let carries = entry.wc_flags & sys::ibv_wc_flags::IBV_WC_WITH_IMM.0 != 0;
    // SAFETY: both views of the union are four initialized bytes.
    let immediate = u32::from_be(unsafe { entry.__bindgen_anon_1.imm_data });
    Completion {
        id: entry.wr_id,
        status: Status(entry.status.0),
        pair: entry.qp_num,
        received,
        immediate: (received && carries).then_some(immediate),
        vendor_error: entry.vendor_err,
    }
}

impl Channel {
    /// Readable when a queue that was armed has something. It does not block.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel lives as long as `self`, and so does its structure.
        let fd: RawFd = unsafe { (*self.inner.channel).fd };
        // SAFETY: `borrow_raw` wants a descriptor that stays open for as long as it is borrowed: it
        // is closed with the channel, which `self` keeps.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Takes all events off the channel; how many there were.
    pub fn drain(&self) -> usize {
        let verbs = &self.inner.device.library.verbs;
        let mut count = 0;
        loop {
            let (mut queue, mut unused) = (null_mut(), null_mut());
            let (get, channel) = (verbs.ibv_get_cq_event, self.inner.channel);
            // SAFETY: `ibv_get_cq_event` wants a live channel, which `self` keeps, and places for what it
            // returns, which are two variables of this turn.
            let code = unsafe { get(channel, &raw mut queue, &raw mut unused) };
            if code != 0 {
                return count;
            }
            // SAFETY: the event came from `ibv_get_cq_event` with this queue, which cannot be
            // destroyed while an event of it is not acknowledged.
            unsafe { (verbs.ibv_ack_cq_events)(queue, 1) };
            count += 1;
        }
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.fd().as_raw_fd()
    }
}

pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}
