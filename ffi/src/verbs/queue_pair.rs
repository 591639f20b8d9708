//! Reliable-connection queue pairs, from Reset to ready in typed steps.

use super::completion::{CompletionQueue, QueueInner};
use super::device::check;
use super::post::{Chain, PostFailure};
use super::region::{DomainInner, ProtectionDomain};
use super::{Gid, Port, VerbsError};
use crate::sys::verbs as sys;
use core::fmt;
use std::io;
use std::ptr::null_mut;
use std::sync::Arc;

/// How much a queue pair can have under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueDepths {
    /// Requests of the send queue.
    pub sends: u32,
    /// Receives.
    pub receives: u32,
    /// Pieces of a request.
    pub pieces: u32,
    /// Bytes that go inline, as wished; [`QueuePair::inline_bytes`] says what was granted.
    pub inline_bytes: u32,
}

/// Where a queue pair sends from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// The port.
    pub port: Port,
    /// One of its addresses.
    pub gid: Gid,
    /// An unanswered packet is sent again after 4.096 µs times two to this power (1 to 31),
    pub timeout: u8,
    /// so many times. At most 6: on some devices 7 means for ever.
    pub retries: u8,
}

/// What the other end has to know of a queue pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destination {
    /// Number of the queue pair.
    pub pair: u32,
    /// Its first packet sequence number, 24 bits, random in each life.
    pub psn: u32,
    /// The port's LID; 0 with Ethernet.
    pub lid: u16,
    /// The port's address.
    pub gid: [u8; 16],
    /// What the port can carry, in bytes.
    pub mtu: u32,
}

/// Seven means for ever.
const RETRIES_MAX: u8 = 6;
/// A receiver without a receive asks for a pause of 0.64 ms (IBTA table 45).
const RNR_TIMER: u8 = 12;
/// Reads under way in each direction: this end has one at a time.
const READS: u8 = 4;

struct Core {
    pair: *mut sys::ibv_qp,
    /// Destroyed before it was dropped.
    gone: bool,
    inline_bytes: usize,
    depths: QueueDepths,
    domain: Arc<DomainInner>,
    /// Outlives the pair that reports to it.
    _queue: Arc<QueueInner>,
}

// SAFETY: the library may be called from any thread on any object; the pointer is only handed to it.
unsafe impl Send for Core {}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {:?}", self.number(), self.domain.device)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if !self.gone {
            let _ = self.take_away();
        }
    }
}

impl Core {
    fn take_away(&self) -> io::Result<()> {
        // SAFETY: the pair came from `ibv_create_qp`, this is its only owner, and after a success it is
        // not touched again: `destroy` says so to `drop`. When the call returns the device touches
        // nothing through it any more.
        check(unsafe { (self.domain.device.library.verbs.ibv_destroy_qp)(self.pair) })
    }

    fn number(&self) -> u32 {
        // SAFETY: the pair lives, and its number does not change.
        unsafe { (*self.pair).qp_num }
    }

    fn modify(
        &self,
        to: &'static str,
        attributes: &mut sys::ibv_qp_attr,
        mask: sys::ibv_qp_attr_mask,
    ) -> Result<(), VerbsError> {
        let modify = self.domain.device.library.verbs.ibv_modify_qp;
        // SAFETY: `ibv_modify_qp` wants a live pair and attributes, which it reads as the mask says.
        let code = unsafe { modify(self.pair, attributes, mask.0 as i32) };
        check(code).map_err(|source| VerbsError::Modify { to, source })
    }

    fn post_receive(&mut self, id: u64) -> io::Result<()> {
        let mut request = sys::ibv_recv_wr { wr_id: id, ..sys::ibv_recv_wr::default() };
        let mut bad = null_mut();
        let post_recv = self.domain.device.ops().post_recv.expect("every provider has post_recv");
        // SAFETY: `post_recv` wants a live pair and a list of requests: this one has no memory, so
        // that nothing has to outlive the call.
        check(unsafe { post_recv(self.pair, &raw mut request, &raw mut bad) })
    }
}

/// Made, and able to do nothing yet.
#[derive(Debug)]
pub struct NewQueuePair(Core);

/// Takes receives, and nothing from the network.
#[derive(Debug)]
pub struct InitQueuePair(Core, Path);

/// Answers the other end, and sends nothing itself.
#[derive(Debug)]
pub struct ReceivingQueuePair(Core, Path);

/// Ready to send.
#[derive(Debug)]
pub struct QueuePair(Core);

impl ProtectionDomain {
    /// Makes a reliable-connection queue pair whose completions, of both kinds, go to `queue`.
    ///
    /// # Errors
    /// [`VerbsError::Create`].
    pub fn queue_pair(
        &self,
        queue: &CompletionQueue,
        depths: QueueDepths,
    ) -> Result<NewQueuePair, VerbsError> {
        let mut attributes = sys::ibv_qp_init_attr {
            send_cq: queue.inner.queue,
            recv_cq: queue.inner.queue,
            cap: sys::ibv_qp_cap {
                max_send_wr: depths.sends,
                max_recv_wr: depths.receives,
                max_send_sge: depths.pieces,
                max_recv_sge: 1,
                max_inline_data: depths.inline_bytes,
            },
            qp_type: sys::ibv_qp_type::IBV_QPT_RC,
            ..sys::ibv_qp_init_attr::default()
        };
        let create = self.inner.device.library.verbs.ibv_create_qp;
        // SAFETY: `ibv_create_qp` wants a live domain and attributes with live queues; the new pair
        // holds both.
        let pair = unsafe { create(self.inner.domain, &raw mut attributes) };
        if pair.is_null() {
            let source = io::Error::last_os_error();
            return Err(VerbsError::Create { what: "queue pair", source });
        }
        let inline_bytes = attributes.cap.max_inline_data as usize;
        let (domain, queue) = (Arc::clone(&self.inner), Arc::clone(&queue.inner));
        Ok(NewQueuePair(Core { pair, gone: false, inline_bytes, depths, domain, _queue: queue }))
    }
}

impl NewQueuePair {
    /// Binds it to a port, and lets the other end write and read what it is granted.
    ///
    /// # Errors
    /// [`VerbsError::Modify`].
    pub fn init(self, path: Path) -> Result<InitQueuePair, VerbsError> {
        use sys::ibv_access_flags as a;
        use sys::ibv_qp_attr_mask as m;
        let access = a::IBV_ACCESS_REMOTE_WRITE.0 | a::IBV_ACCESS_REMOTE_READ.0;
        let mut attributes = sys::ibv_qp_attr {
            qp_state: sys::ibv_qp_state::IBV_QPS_INIT,
            port_num: path.port.number,
            qp_access_flags: access,
            ..sys::ibv_qp_attr::default()
        };
        let mask = m::IBV_QP_STATE.0
            | m::IBV_QP_PKEY_INDEX.0
            | m::IBV_QP_PORT.0
            | m::IBV_QP_ACCESS_FLAGS.0;
        self.0.modify("initialized", &mut attributes, sys::ibv_qp_attr_mask(mask))?;
        Ok(InitQueuePair(self.0, path))
    }
}

impl InitQueuePair {
    /// What the other end has to know.
    #[must_use]
    pub fn destination(&self, psn: u32) -> Destination {
        let Path { port, gid, .. } = &self.1;
        let (pair, psn) = (self.0.number(), psn & 0xff_ffff);
        Destination { pair, psn, lid: port.lid, gid: gid.bytes, mtu: port.mtu }
    }

    /// Posts a receive without memory: for writes that carry a number.
    ///
    /// # Errors
    /// The device's.
    pub fn post_receive(&mut self, id: u64) -> io::Result<()> {
        self.0.post_receive(id)
    }

    /// Connects it to the other end.
    ///
    /// # Errors
    /// [`VerbsError::Modify`].
    pub fn ready_to_receive(self, to: &Destination) -> Result<ReceivingQueuePair, VerbsError> {
        use sys::ibv_qp_attr_mask as m;
        let Path { port, gid, .. } = &self.1;
        let grh = sys::ibv_global_route {
            dgid: sys::ibv_gid { raw: to.gid },
            flow_label: 0,
            sgid_index: gid.index,
            hop_limit: 64,
            traffic_class: 0,
        };
        let ah_attr = sys::ibv_ah_attr {
            grh,
            dlid: to.lid,
            is_global: 1,
            port_num: port.number,
            ..sys::ibv_ah_attr::default()
        };
        let mut attributes = sys::ibv_qp_attr {
            qp_state: sys::ibv_qp_state::IBV_QPS_RTR,
            path_mtu: mtu_code(port.mtu.min(to.mtu)),
            dest_qp_num: to.pair,
            rq_psn: to.psn & 0xff_ffff,
            max_dest_rd_atomic: READS,
            min_rnr_timer: RNR_TIMER,
            ah_attr,
            ..sys::ibv_qp_attr::default()
        };
        let mask = m::IBV_QP_STATE.0
            | m::IBV_QP_AV.0
            | m::IBV_QP_PATH_MTU.0
            | m::IBV_QP_DEST_QPN.0
            | m::IBV_QP_RQ_PSN.0
            | m::IBV_QP_MAX_DEST_RD_ATOMIC.0
            | m::IBV_QP_MIN_RNR_TIMER.0;
        self.0.modify("ready to receive", &mut attributes, sys::ibv_qp_attr_mask(mask))?;
        Ok(ReceivingQueuePair(self.0, self.1))
    }
}

impl ReceivingQueuePair {
    /// Lets it send, from its own first sequence number on.
    ///
    /// # Errors
    /// [`VerbsError::Modify`].
    pub fn ready_to_send(self, psn: u32) -> Result<QueuePair, VerbsError> {
        use sys::ibv_qp_attr_mask as m;
        let mut attributes = sys::ibv_qp_attr {
            qp_state: sys::ibv_qp_state::IBV_QPS_RTS,
            sq_psn: psn & 0xff_ffff,
            timeout: self.1.timeout,
            retry_cnt: self.1.retries.min(RETRIES_MAX),
            rnr_retry: RETRIES_MAX,
            max_rd_atomic: READS,
            ..sys::ibv_qp_attr::default()
        };
        let mask = m::IBV_QP_STATE.0
            | m::IBV_QP_SQ_PSN.0
            | m::IBV_QP_TIMEOUT.0
            | m::IBV_QP_RETRY_CNT.0
            | m::IBV_QP_RNR_RETRY.0
            | m::IBV_QP_MAX_QP_RD_ATOMIC.0;
        self.0.modify("ready to send", &mut attributes, sys::ibv_qp_attr_mask(mask))?;
        Ok(QueuePair(self.0))
    }
}

impl QueuePair {
    /// Its number, as completions and events name it.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.0.number()
    }

    /// The bytes that a request may carry inline.
    #[must_use]
    pub const fn inline_bytes(&self) -> usize {
        self.0.inline_bytes
    }

    /// Posts a chain: one doorbell for all of it.
    ///
    /// # Errors
    /// [`PostFailure`]: how many requests of the chain were posted nevertheless.
    ///
    /// # Panics
    /// If a request carries more inline, or more pieces, than was granted: an error of the caller.
    pub fn post(&mut self, mut chain: Chain<'_, '_>) -> Result<(), PostFailure> {
        if chain.is_empty() {
            return Ok(());
        }
        let (inline, pieces) = chain.extremes();
        assert!(inline <= self.0.inline_bytes, "{inline} bytes inline");
        assert!(pieces <= self.0.depths.pieces as usize, "{pieces} pieces in a request");
        let first = chain.link();
        let mut bad = null_mut();
        let post_send = self.0.domain.device.ops().post_send.expect("every provider has post_send");
        // SAFETY: `post_send` wants a live pair and a list of requests. `link` has set all of its
        // pointers to memory of the chain, which is borrowed until the call returns; what goes
        // inline lives as long as the chain; and what does not is checked by the device against
        // the regions that are registered when it gets to it.
        let code = unsafe { post_send(self.0.pair, first, &raw mut bad) };
        match check(code) {
            Ok(()) => Ok(()),
            Err(source) if bad.is_null() => Err(PostFailure { posted: 0, source }),
            Err(source) => Err(PostFailure { posted: chain.index_of(bad), source }),
        }
    }

    /// Posts a receive without memory: for writes that carry a number.
    ///
    /// # Errors
    /// The device's.
    pub fn post_receive(&mut self, id: u64) -> io::Result<()> {
        self.0.post_receive(id)
    }

    /// Takes from the other end the right to write and read through this pair, or gives it back.
    /// It is **no fence**: on some devices bytes land after it returned. The torture test uses it to
    /// show that it would notice.
    ///
    /// # Errors
    /// [`VerbsError::Modify`].
    pub fn set_remote_access(&mut self, allowed: bool) -> Result<(), VerbsError> {
        use sys::ibv_access_flags as a;
        let all = a::IBV_ACCESS_REMOTE_WRITE.0 | a::IBV_ACCESS_REMOTE_READ.0;
        let mut attributes = sys::ibv_qp_attr {
            qp_access_flags: if allowed { all } else { 0 },
            ..sys::ibv_qp_attr::default()
        };
        let mask = sys::ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS;
        self.0.modify("without remote access", &mut attributes, mask)
    }

    /// Lets it fail: everything under way is flushed.
    ///
    /// # Errors
    /// [`VerbsError::Modify`].
    pub fn fail(&mut self) -> Result<(), VerbsError> {
        let mut attributes = sys::ibv_qp_attr {
            qp_state: sys::ibv_qp_state::IBV_QPS_ERR,
            ..sys::ibv_qp_attr::default()
        };
        self.0.modify("failed", &mut attributes, sys::ibv_qp_attr_mask::IBV_QP_STATE)
    }

    /// Ends it. When this returns without an error nothing comes or goes through it any more: the
    /// other fence, beside [`crate::verbs::MemoryRegion::deregister`], after which no byte was seen to land.
    ///
    /// # Errors
    /// The device's. Then it may still be in force.
    pub fn destroy(mut self) -> Result<(), VerbsError> {
        let done = self.0.take_away();
        self.0.gone = done.is_ok();
        done.map_err(|source| VerbsError::Modify { to: "destroyed", source })
    }
}

/// The enumeration counts doublings from 256 bytes, which is 1.
const fn mtu_code(bytes: u32) -> sys::ibv_mtu {
    sys::ibv_mtu(match bytes {
        0..=511 => 1,
        512..=1023 => 2,
        1024..=2047 => 3,
        2048..=4095 => 4,
        _ => 5,
    })
}
