//! A device, its ports, and what it tells unasked.

use super::{Library, VerbsError};
use crate::sys::verbs as sys;
use core::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

/// GIDs that are looked at on one device.
const GIDS_MAX: usize = 1024;

/// An open device. Clones are the same device.
#[derive(Clone, Debug)]
pub struct Device {
    pub(super) inner: Arc<DeviceInner>,
}

pub(super) struct DeviceInner {
    pub(super) library: Library,
    pub(super) context: *mut sys::ibv_context,
    name: String,
}

// SAFETY: libibverbs may be called from any thread on any object ("thread safe", ibv_open_device(3)
// and the README of rdma-core); the pointer is only handed to it, and its fields do not change.
unsafe impl Send for DeviceInner {}
// SAFETY: as above: shared use from several threads is what the library promises.
unsafe impl Sync for DeviceInner {}

impl DeviceInner {
    /// The functions of the data path, as the device's provider has set them.
    pub(super) fn ops(&self) -> &sys::ibv_context_ops {
        // SAFETY: the context is open as long as `self`, and its table does not change after it was
        // opened.
        unsafe { &(*self.context).ops }
    }
}

impl fmt::Debug for DeviceInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name)
    }
}

impl Drop for DeviceInner {
    fn drop(&mut self) {
        // SAFETY: the context came from `ibv_open_device`, this is its only owner, and every object
        // made on it held this value, so that they are gone. A failure leaves it open: harmless.
        let _ = unsafe { (self.library.verbs.ibv_close_device)(self.context) };
    }
}

/// What a device can do at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceLimits {
    /// Work requests of a queue.
    pub queue_depth: u32,
    /// Pieces of a work request.
    pub pieces: u32,
    /// Completions of a completion queue.
    pub completions: u32,
    /// Reads that a queue pair has under way as a target.
    pub reads: u8,
    /// Bytes of a memory region.
    pub region_bytes: u64,
    /// Ports, numbered from 1.
    pub ports: u8,
}

/// One port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Port {
    /// From 1.
    pub number: u8,
    /// Whether it carries traffic.
    pub state: PortState,
    /// Bytes of a packet's payload that it can carry now: 256 to 4096.
    pub mtu: u32,
    /// Bytes of one message.
    pub message_bytes: u32,
    /// Its address in an InfiniBand fabric; 0 with Ethernet.
    pub lid: u16,
    /// Whether it is Ethernet (RoCE) rather than InfiniBand.
    pub ethernet: bool,
}

/// Whether a port carries traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortState {
    /// It does.
    Active,
    /// It does not: this is its state in words.
    Other(&'static str),
}

/// An address of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gid {
    /// Of which port.
    pub port: u8,
    /// In the port's table.
    pub index: u8,
    /// The address itself; with RoCE v2 an IPv6 address, or an IPv4 address mapped into one.
    pub bytes: [u8; 16],
    /// Which protocol it is for.
    pub kind: GidKind,
}

/// Which protocol a GID is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GidKind {
    /// InfiniBand.
    InfiniBand,
    /// RoCE version 1: Ethernet frames, not routed.
    RoceV1,
    /// RoCE version 2: UDP.
    RoceV2,
    /// Something newer.
    Other(u32),
}

/// What a device tells unasked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AsyncEvent {
    /// A queue pair of this number failed: the words say how.
    QueuePair(u32, &'static str),
    /// A completion queue overran.
    CompletionQueueOverrun,
    /// A port came up.
    PortUp(u8),
    /// A port went down.
    PortDown(u8),
    /// The device is gone.
    Fatal,
    /// Something else.
    Other(u32),
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = std::net::Ipv6Addr::from(self.bytes);
        let kind = match self.kind {
            GidKind::InfiniBand => "InfiniBand",
            GidKind::RoceV1 => "RoCE v1",
            GidKind::RoceV2 => "RoCE v2",
            GidKind::Other(_) => "unknown kind",
        };
        match address.to_ipv4_mapped() {
            Some(v4) => write!(f, "{}: {v4} ({kind})", self.index),
            None => write!(f, "{}: {address} ({kind})", self.index),
        }
    }
}

impl Device {
    pub(super) fn new(
        library: Library,
        context: *mut sys::ibv_context,
        name: String,
    ) -> Result<Self, VerbsError> {
        let device = Self { inner: Arc::new(DeviceInner { library, context, name }) };
        // What it tells is asked for, never waited for.
        super::completion::set_nonblocking(device.async_fd())
            .map_err(|source| VerbsError::Open { device: device.name().to_owned(), source })?;
        Ok(device)
    }

    /// As the system calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub(super) fn verbs(&self) -> &sys::Verbs {
        &self.inner.library.verbs
    }

    /// What it can do at most.
    ///
    /// # Errors
    /// [`VerbsError::Query`].
    pub fn limits(&self) -> Result<DeviceLimits, VerbsError> {
        let mut attributes = sys::ibv_device_attr::default();
        let context = self.inner.context;
        // SAFETY: `ibv_query_device` wants an open device and a place for the attributes.
        let code = unsafe { (self.verbs().ibv_query_device)(context, &raw mut attributes) };
        check(code).map_err(|source| VerbsError::Query { what: "limits", source })?;
        let number = |value: i32| u32::try_from(value).unwrap_or(0);
        Ok(DeviceLimits {
            queue_depth: number(attributes.max_qp_wr),
            pieces: number(attributes.max_sge),
            completions: number(attributes.max_cqe),
            reads: attributes.max_qp_rd_atom.clamp(0, 255) as u8,
            region_bytes: attributes.max_mr_size,
            ports: attributes.phys_port_cnt,
        })
    }

    /// How port `number` is.
    ///
    /// # Errors
    /// [`VerbsError::Query`]: there is no such port.
    pub fn port(&self, number: u8) -> Result<Port, VerbsError> {
        let mut attributes = sys::ibv_port_attr::default();
        let short = (&raw mut attributes).cast::<sys::_compat_ibv_port_attr>();
        // SAFETY: the symbol `ibv_query_port` fills the structure of its first version, which is a
        // prefix of `ibv_port_attr`; the header's own fallback passes a zeroed one the same way.
        let code = unsafe { (self.verbs().ibv_query_port)(self.inner.context, number, short) };
        check(code).map_err(|source| VerbsError::Query { what: "port", source })?;
        Ok(Port {
            number,
            state: port_state(attributes.state),
            // The enumeration counts doublings from 256 (IBTA 9.8.3.1.1).
            mtu: 128 << attributes.active_mtu.0.min(5),
            message_bytes: attributes.max_msg_sz,
            lid: attributes.lid,
            ethernet: attributes.link_layer == ETHERNET,
        })
    }

    /// The addresses of all ports.
    ///
    /// # Errors
    /// [`VerbsError::Query`].
    pub fn gids(&self) -> Result<Vec<Gid>, VerbsError> {
        let mut entries = vec![sys::ibv_gid_entry::default(); GIDS_MAX];
        let bytes = size_of::<sys::ibv_gid_entry>();
        let (query, device) = (self.verbs()._ibv_query_gid_table, self.inner.context);
        let (room, count) = (entries.as_mut_ptr(), entries.len());
        // SAFETY: `_ibv_query_gid_table` wants an open device, which `self` keeps open, and room for so
        // many entries of the size given: `entries` has it, and outlives the call.
        let found = unsafe { query(device, room, count, 0, bytes) };
        let Ok(found) = usize::try_from(found) else {
            let source = io::Error::from_raw_os_error(-found as i32);
            return Err(VerbsError::Query { what: "GIDs", source });
        };
        entries.truncate(found);
        let gid = |entry: sys::ibv_gid_entry| Gid {
            port: entry.port_num as u8,
            index: entry.gid_index as u8,
            // SAFETY: both views of the union are the same sixteen bytes.
            bytes: unsafe { entry.gid.raw },
            kind: match sys::ibv_gid_type(entry.gid_type) {
                sys::ibv_gid_type::IBV_GID_TYPE_IB => GidKind::InfiniBand,
                sys::ibv_gid_type::IBV_GID_TYPE_ROCE_V1 => GidKind::RoceV1,
                sys::ibv_gid_type::IBV_GID_TYPE_ROCE_V2 => GidKind::RoceV2,
                other => GidKind::Other(other.0),
            },
        };
        Ok(entries.into_iter().map(gid).collect())
    }

    /// Readable when [`Device::next_event`] has something. It does not block.
    #[must_use]
    pub fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the context is open as long as `self`, and so is its file descriptor.
        let fd: RawFd = unsafe { (*self.inner.context).async_fd };
        // SAFETY: `borrow_raw` wants a descriptor that stays open for as long as it is borrowed:
        // it is closed with the device, which `self` keeps.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// The next thing that the device tells unasked.
    #[must_use]
    pub fn next_event(&self) -> Option<AsyncEvent> {
        let mut event = core::mem::MaybeUninit::<sys::ibv_async_event>::zeroed();
        let get = self.verbs().ibv_get_async_event;
        // SAFETY: `ibv_get_async_event` wants an open device and a place for the event.
        let code = unsafe { get(self.inner.context, event.as_mut_ptr()) };
        if code != 0 {
            // Nothing there: the descriptor does not block.
            return None;
        }
        // SAFETY: it returned 0 and has filled the event in; all zeroes would be valid as well.
        let mut event = unsafe { event.assume_init() };
        let told = describe(&event);
        // SAFETY: the event came from `ibv_get_async_event` and was not acknowledged before.
        unsafe { (self.verbs().ibv_ack_async_event)(&raw mut event) };
        Some(told)
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.async_fd().as_raw_fd()
    }
}

const ETHERNET: u8 = 2;

fn port_state(state: sys::ibv_port_state) -> PortState {
    match state {
        sys::ibv_port_state::IBV_PORT_ACTIVE => PortState::Active,
        sys::ibv_port_state::IBV_PORT_DOWN => PortState::Other("down"),
        sys::ibv_port_state::IBV_PORT_INIT => PortState::Other("initializing"),
        sys::ibv_port_state::IBV_PORT_ARMED => PortState::Other("armed"),
        sys::ibv_port_state::IBV_PORT_ACTIVE_DEFER => PortState::Other("active, deferred"),
        _ => PortState::Other("in an unknown state"),
    }
}

fn describe(event: &sys::ibv_async_event) -> AsyncEvent {
    use sys::ibv_event_type as t;
    let failure = match event.event_type {
        t::IBV_EVENT_QP_FATAL => Some("the device failed on it"),
        t::IBV_EVENT_QP_REQ_ERR => Some("the peer sent an invalid request"),
        t::IBV_EVENT_QP_ACCESS_ERR => Some("the peer wrote where it may not"),
        t::IBV_EVENT_PATH_MIG_ERR => Some("its path failed"),
        _ => None,
    };
    if let Some(words) = failure {
        // SAFETY: with these event types the union holds a queue pair (ibv_get_async_event(3)),
        let pair = unsafe { event.element.qp };
        // SAFETY: which cannot be destroyed before the event is acknowledged.
        return AsyncEvent::QueuePair(unsafe { (*pair).qp_num }, words);
    }
    match event.event_type {
        t::IBV_EVENT_CQ_ERR => AsyncEvent::CompletionQueueOverrun,
        // SAFETY: with this event type the union holds the number of a port.
        t::IBV_EVENT_PORT_ACTIVE => AsyncEvent::PortUp(unsafe { event.element.port_num } as u8),
        // SAFETY: with this event type the union holds the number of a port.
        t::IBV_EVENT_PORT_ERR => AsyncEvent::PortDown(unsafe { event.element.port_num } as u8),
        t::IBV_EVENT_DEVICE_FATAL => AsyncEvent::Fatal,
        other => AsyncEvent::Other(other.0),
    }
}

/// What a function of the library returns: 0, or an error number of either sign, or -1 and errno.
pub(super) fn check(code: i32) -> io::Result<()> {
    match code {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        other => Err(io::Error::from_raw_os_error(other.abs())),
    }
}
