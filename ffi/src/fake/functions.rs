//! The functions of libibverbs, for C to call.
//!
//! Each gets pointers to objects that this module made and has not freed; that is what the callers
//! in [`crate::verbs`] owe to the real library too, and their `SAFETY` comments show it.

use super::state::{Bell, Pair, Queue, Region, Request, Shared, State, Told};
use super::{FABRICS, Fabric, INLINE_BYTES_MAX, MTU, lock};
use crate::sys::verbs as sys;
use std::collections::VecDeque;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::io::{PipeReader, Read};
use std::os::fd::AsRawFd;
use std::ptr::null_mut;

const ENOMEM: c_int = 12;
const EAGAIN: c_int = 11;
const EBUSY: c_int = 16;
const EINVAL: c_int = 22;

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

fn fail_with(code: c_int) -> c_int {
    // SAFETY: `__errno_location` returns this thread's place for the number, which is always there.
    let place = unsafe { __errno_location() };
    // SAFETY: as above: valid for this thread to write.
    unsafe { place.write(code) };
    -1
}

/// An opened device: C sees the first field.
#[repr(C)]
struct Context {
    context: sys::ibv_context,
    fabric: &'static Fabric,
    reader: PipeReader,
}

/// A channel: C sees the first field.
#[repr(C)]
struct Channel {
    channel: sys::ibv_comp_channel,
    fabric: &'static Fabric,
    reader: PipeReader,
}

pub(super) fn table() -> sys::Verbs {
    let this = libloading::os::unix::Library::this();
    sys::Verbs {
        __library: this.into(),
        ibv_get_device_list: get_device_list,
        ibv_free_device_list: free_device_list,
        ibv_get_device_name: get_device_name,
        ibv_open_device: open_device,
        ibv_close_device: close_device,
        ibv_query_device: query_device,
        ibv_query_port: query_port,
        _ibv_query_gid_table: query_gid_table,
        ibv_alloc_pd: alloc_pd,
        ibv_dealloc_pd: dealloc_pd,
        ibv_reg_mr: reg_mr,
        ibv_dereg_mr: dereg_mr,
        ibv_create_comp_channel: create_comp_channel,
        ibv_destroy_comp_channel: destroy_comp_channel,
        ibv_create_cq: create_cq,
        ibv_destroy_cq: destroy_cq,
        ibv_get_cq_event: get_cq_event,
        ibv_ack_cq_events: ack_cq_events,
        ibv_create_qp: create_qp,
        ibv_modify_qp: modify_qp,
        ibv_destroy_qp: destroy_qp,
        ibv_get_async_event: get_async_event,
        ibv_ack_async_event: ack_async_event,
    }
}

fn fabric_of(context: *mut sys::ibv_context) -> &'static Fabric {
    // SAFETY: every context that callers hold was made by `open_device` and is not closed yet.
    unsafe { (*context.cast::<Context>()).fabric }
}

fn with<T>(context: *mut sys::ibv_context, act: impl FnOnce(&mut State) -> T) -> T {
    act(&mut lock(&fabric_of(context).state))
}

fn domain_of(domain: *mut sys::ibv_pd) -> (*mut sys::ibv_context, u32) {
    // SAFETY: every domain that callers hold was made by `alloc_pd` and is not freed yet.
    let domain = unsafe { &*domain };
    (domain.context, domain.handle)
}

fn queue_of(queue: *mut sys::ibv_cq) -> (*mut sys::ibv_context, u32) {
    // SAFETY: every queue that callers hold was made by `create_cq` and is not freed yet.
    let queue = unsafe { &*queue };
    (queue.context, queue.handle)
}

fn pair_of(pair: *mut sys::ibv_qp) -> (*mut sys::ibv_context, u32) {
    // SAFETY: every pair that callers hold was made by `create_qp` and is not freed yet.
    let pair = unsafe { &*pair };
    (pair.context, pair.qp_num)
}

extern "C" fn get_device_list(count: *mut c_int) -> *mut *mut sys::ibv_device {
    let fabrics = lock(&FABRICS);
    let mut list: Vec<*mut sys::ibv_device> =
        fabrics.iter().map(|fabric| fabric.device.0).collect();
    // SAFETY: the caller gives a place for the number.
    unsafe { count.write(list.len() as c_int) };
    list.push(null_mut());
    Box::into_raw(list.into_boxed_slice()).cast()
}

extern "C" fn free_device_list(list: *mut *mut sys::ibv_device) {
    let mut length = 0;
    // SAFETY: the list came from `get_device_list` and ends with a null pointer.
    while !unsafe { list.wrapping_add(length).read() }.is_null() {
        length += 1;
    }
    let whole = std::ptr::slice_from_raw_parts_mut(list, length + 1);
    // SAFETY: it came from a box of this length, and is freed once.
    drop(unsafe { Box::from_raw(whole) });
}

fn fabric_of_device(device: *mut sys::ibv_device) -> Option<&'static Fabric> {
    lock(&FABRICS).iter().find(|fabric| fabric.device.0 == device).copied()
}

extern "C" fn get_device_name(device: *mut sys::ibv_device) -> *const c_char {
    let name = fabric_of_device(device).map_or("", Fabric::name);
    let name = CString::new(name).expect("names of fakes have no zero byte");
    // SAFETY: the device belongs to a fabric, which is never freed; its name fits sixty-four bytes,
    // and everybody writes the same ones.
    let place = unsafe { &raw mut (*device).name };
    let bytes = name.as_bytes_with_nul();
    // SAFETY: as above.
    unsafe { place.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    place.cast()
}

extern "C" fn open_device(device: *mut sys::ibv_device) -> *mut sys::ibv_context {
    let Some(fabric) = fabric_of_device(device) else { return null_mut() };
    let Ok((reader, writer)) = std::io::pipe() else { return null_mut() };
    let mut context = sys::ibv_context { async_fd: reader.as_raw_fd(), ..zeroed_context() };
    context.ops.poll_cq = Some(poll_cq);
    context.ops.req_notify_cq = Some(req_notify_cq);
    context.ops.post_send = Some(post_send);
    context.ops.post_recv = Some(post_recv);
    let context = Shared::new(Context { context, fabric, reader }).0;
    let bell = Bell { events: VecDeque::new(), writer };
    lock(&fabric.state).contexts.insert(context as usize, bell);
    context.cast()
}

fn zeroed_context() -> sys::ibv_context {
    let zeroed = core::mem::MaybeUninit::<sys::ibv_context>::zeroed();
    // SAFETY: every field is a number, a pointer or an optional function: zeroes are valid.
    unsafe { zeroed.assume_init() }
}

extern "C" fn close_device(context: *mut sys::ibv_context) -> c_int {
    with(context, |state| state.contexts.remove(&(context as usize)));
    // SAFETY: it came from `open_device`, and is closed once.
    drop(unsafe { Box::from_raw(context.cast::<Context>()) });
    0
}

extern "C" fn query_device(
    _context: *mut sys::ibv_context,
    into: *mut sys::ibv_device_attr,
) -> c_int {
    let attributes = sys::ibv_device_attr {
        max_mr_size: u64::MAX,
        max_qp: 1024,
        max_qp_wr: 1 << 14,
        max_sge: 32,
        max_cq: 1024,
        max_cqe: 32767,
        max_qp_rd_atom: 16,
        phys_port_cnt: 1,
        ..sys::ibv_device_attr::default()
    };
    // SAFETY: the caller gives a place for the attributes.
    unsafe { into.write(attributes) };
    0
}

extern "C" fn query_port(
    context: *mut sys::ibv_context,
    port: u8,
    into: *mut sys::_compat_ibv_port_attr,
) -> c_int {
    if port != 1 {
        return EINVAL;
    }
    let up = with(context, |state| state.port_up);
    use sys::ibv_port_state as s;
    let attributes = sys::ibv_port_attr {
        state: if up { s::IBV_PORT_ACTIVE } else { s::IBV_PORT_DOWN },
        max_mtu: sys::ibv_mtu::IBV_MTU_4096,
        active_mtu: sys::ibv_mtu::IBV_MTU_4096,
        gid_tbl_len: 1,
        max_msg_sz: 1 << 23,
        link_layer: 2,
        ..sys::ibv_port_attr::default()
    };
    // SAFETY: the caller gives a whole `ibv_port_attr`, of which the compatible one is a prefix.
    unsafe { into.cast::<sys::ibv_port_attr>().write(attributes) };
    0
}

extern "C" fn query_gid_table(
    _context: *mut sys::ibv_context,
    entries: *mut sys::ibv_gid_entry,
    room: usize,
    _flags: u32,
    _bytes: usize,
) -> isize {
    if room == 0 {
        return 0;
    }
    let mut raw = [0; 16];
    raw[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
    let entry = sys::ibv_gid_entry {
        gid: sys::ibv_gid { raw },
        gid_index: 1,
        port_num: 1,
        gid_type: sys::ibv_gid_type::IBV_GID_TYPE_ROCE_V2.0,
        ndev_ifindex: 1,
    };
    // SAFETY: the caller gives room for at least one entry.
    unsafe { entries.write(entry) };
    1
}

extern "C" fn alloc_pd(context: *mut sys::ibv_context) -> *mut sys::ibv_pd {
    let handle = with(context, |state| {
        let handle = state.number();
        state.domains.insert(handle, context as usize);
        handle
    });
    Shared::new(sys::ibv_pd { context, handle }).0
}

extern "C" fn dealloc_pd(domain: *mut sys::ibv_pd) -> c_int {
    // SAFETY: it came from `alloc_pd`, and is freed once.
    let domain = unsafe { Box::from_raw(domain) };
    with(domain.context, |state| state.domains.remove(&domain.handle));
    0
}

extern "C" fn reg_mr(
    domain: *mut sys::ibv_pd,
    address: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut sys::ibv_mr {
    let (context, handle) = domain_of(domain);
    let key = with(context, |state| {
        if state.faults.refuse_memory {
            return None;
        }
        let key = state.key();
        let region = Region {
            address: address as u64,
            length: length as u64,
            access: access as u32,
            domain: handle,
            late: None,
        };
        state.regions.insert(key, region);
        Some(key)
    });
    let Some(key) = key else {
        fail_with(ENOMEM);
        return null_mut();
    };
    let addr = address;
    Shared::new(sys::ibv_mr {
        context,
        pd: domain,
        addr,
        length,
        handle: key,
        lkey: key,
        rkey: key,
    })
    .0
}

extern "C" fn dereg_mr(region: *mut sys::ibv_mr) -> c_int {
    // SAFETY: it came from `reg_mr` and is not freed yet.
    let context = unsafe { (*region).context };
    if with(context, |state| state.faults.keep_memory) {
        return EBUSY;
    }
    // SAFETY: as above, and it is freed once: whoever is told of a success does not call again.
    let region = unsafe { Box::from_raw(region) };
    with(region.context, |state| {
        let late = state.faults.late_packets;
        match state.regions.get_mut(&region.lkey) {
            Some(entry) if late > 0 => entry.late = Some(late),
            _ => drop(state.regions.remove(&region.lkey)),
        }
    });
    0
}

extern "C" fn create_comp_channel(context: *mut sys::ibv_context) -> *mut sys::ibv_comp_channel {
    let Ok((reader, writer)) = std::io::pipe() else { return null_mut() };
    let channel = sys::ibv_comp_channel { context, fd: reader.as_raw_fd(), refcnt: 0 };
    let channel = Shared::new(Channel { channel, fabric: fabric_of(context), reader }).0;
    let bell = Bell { events: VecDeque::new(), writer };
    with(context, |state| state.channels.insert(channel as usize, bell));
    channel.cast()
}

extern "C" fn destroy_comp_channel(channel: *mut sys::ibv_comp_channel) -> c_int {
    // SAFETY: it came from `create_comp_channel`, and is freed once.
    let channel = unsafe { Box::from_raw(channel.cast::<Channel>()) };
    lock(&channel.fabric.state).channels.remove(&(&raw const *channel as usize));
    0
}

extern "C" fn create_cq(
    context: *mut sys::ibv_context,
    depth: c_int,
    cookie: *mut c_void,
    channel: *mut sys::ibv_comp_channel,
    _vector: c_int,
) -> *mut sys::ibv_cq {
    let zeroed = core::mem::MaybeUninit::<sys::ibv_cq>::zeroed();
    // SAFETY: every field is a number or a pointer: zeroes are valid.
    let zeroed = unsafe { zeroed.assume_init() };
    with(context, |state| {
        let handle = state.number();
        let queue =
            sys::ibv_cq { context, channel, cq_context: cookie, handle, cqe: depth, ..zeroed };
        let pointer = Shared::new(queue);
        let channel = (!channel.is_null()).then_some(channel as usize);
        let entry = Queue {
            pointer,
            context: context as usize,
            depth: depth as usize,
            entries: VecDeque::new(),
            armed: false,
            overrun: false,
            channel,
        };
        state.queues.insert(handle, entry);
        pointer.0
    })
}

extern "C" fn destroy_cq(queue: *mut sys::ibv_cq) -> c_int {
    // SAFETY: it came from `create_cq`, and is freed once.
    let owned = unsafe { Box::from_raw(queue) };
    with(owned.context, |state| {
        state.queues.remove(&owned.handle);
        for channel in state.channels.values_mut() {
            channel.events.retain(|event| event.0 != queue);
        }
    });
    0
}

extern "C" fn get_cq_event(
    channel: *mut sys::ibv_comp_channel,
    queue: *mut *mut sys::ibv_cq,
    cookie: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's channel lives and is used by one thread at a time.
    let channel = unsafe { &mut *channel.cast::<Channel>() };
    // It does not block: `verbs::Device::channel` has seen to that.
    if channel.reader.read(&mut [0]).is_err() {
        return fail_with(EAGAIN);
    }
    let key = &raw const *channel as usize;
    let mut state = lock(&channel.fabric.state);
    let event = state.channels.get_mut(&key).and_then(|channel| channel.events.pop_front());
    let Some(event) = event else { return fail_with(EAGAIN) };
    // SAFETY: the caller gives a place for the queue.
    unsafe { queue.write(event.0) };
    // SAFETY: the caller gives a place for the cookie.
    unsafe { cookie.write(null_mut()) };
    0
}

extern "C" fn ack_cq_events(_queue: *mut sys::ibv_cq, _count: c_uint) {}

extern "C" fn get_async_event(
    context: *mut sys::ibv_context,
    into: *mut sys::ibv_async_event,
) -> c_int {
    // SAFETY: the caller's context lives; only its pipe is used here, which may be shared.
    let opened = unsafe { &*context.cast::<Context>() };
    if (&opened.reader).read(&mut [0]).is_err() {
        return fail_with(EAGAIN);
    }
    let told = with(context, |state| {
        state.contexts.get_mut(&(context as usize)).and_then(|bell| bell.events.pop_front())
    });
    type Element = sys::ibv_async_event__bindgen_ty_1;
    let (element, event_type) = match told {
        None => return fail_with(EAGAIN),
        Some(Told::Pair(pair, kind)) => (Element { qp: pair.0 }, kind),
        Some(Told::Queue(queue)) => {
            (Element { cq: queue.0 }, sys::ibv_event_type::IBV_EVENT_CQ_ERR)
        }
        Some(Told::Port(kind)) => (Element { port_num: 1 }, kind),
    };
    // SAFETY: the caller gives a place for the event.
    unsafe { into.write(sys::ibv_async_event { element, event_type }) };
    0
}

extern "C" fn ack_async_event(_event: *mut sys::ibv_async_event) {}

extern "C" fn create_qp(
    domain: *mut sys::ibv_pd,
    attributes: *mut sys::ibv_qp_init_attr,
) -> *mut sys::ibv_qp {
    let (context, domain_handle) = domain_of(domain);
    // SAFETY: the caller gives attributes, for reading and for what was granted.
    let attributes = unsafe { &mut *attributes };
    let cap = attributes.cap;
    let refused = with(context, |state| state.faults.refuse_pairs);
    if refused || cap.max_inline_data > INLINE_BYTES_MAX || cap.max_send_sge > 32 {
        fail_with(if refused { ENOMEM } else { EINVAL });
        return null_mut();
    }
    attributes.cap.max_inline_data = INLINE_BYTES_MAX;
    let zeroed = core::mem::MaybeUninit::<sys::ibv_qp>::zeroed();
    // SAFETY: every field is a number or a pointer: zeroes are valid.
    let zeroed = unsafe { zeroed.assume_init() };
    let (_, queue) = queue_of(attributes.send_cq);
    with(context, |state| {
        let number = state.number();
        let pair = sys::ibv_qp {
            context,
            pd: domain,
            send_cq: attributes.send_cq,
            recv_cq: attributes.recv_cq,
            qp_num: number,
            qp_type: attributes.qp_type,
            ..zeroed
        };
        let pointer = Shared::new(pair);
        let entry = Pair {
            pointer,
            context: context as usize,
            state: sys::ibv_qp_state::IBV_QPS_RESET,
            domain: domain_handle,
            queue,
            access: 0,
            late: 0,
            peer: 0,
            send_psn: 0,
            receive_psn: 0,
            sends: VecDeque::new(),
            receives: VecDeque::new(),
            sends_max: cap.max_send_wr as usize,
            receives_max: cap.max_recv_wr as usize,
            pieces_max: cap.max_send_sge as usize,
            occupied: 0,
            silent: 0,
        };
        state.pairs.insert(number, entry);
        pointer.0
    })
}

extern "C" fn modify_qp(
    pair: *mut sys::ibv_qp,
    attributes: *mut sys::ibv_qp_attr,
    mask: c_int,
) -> c_int {
    use sys::ibv_qp_attr_mask as m;
    use sys::ibv_qp_state as s;
    let (context, number) = pair_of(pair);
    // SAFETY: the caller gives attributes.
    let wanted = unsafe { &*attributes };
    let has = |bit: m| mask as u32 & bit.0 != 0;
    with(context, |state| {
        let late = state.faults.late_packets_by_flags;
        let Some(entry) = state.pairs.get_mut(&number) else { return EINVAL };
        let next = if has(m::IBV_QP_STATE) { wanted.qp_state } else { entry.state };
        let stays = next == entry.state;
        let allowed = match (entry.state, next) {
            (s::IBV_QPS_RESET, s::IBV_QPS_INIT) => {
                has(m::IBV_QP_PKEY_INDEX) && has(m::IBV_QP_PORT) && wanted.port_num == 1
            }
            (s::IBV_QPS_INIT, s::IBV_QPS_RTR) => {
                has(m::IBV_QP_AV)
                    && has(m::IBV_QP_PATH_MTU)
                    && has(m::IBV_QP_DEST_QPN)
                    && has(m::IBV_QP_RQ_PSN)
                    && has(m::IBV_QP_MAX_DEST_RD_ATOMIC)
                    && has(m::IBV_QP_MIN_RNR_TIMER)
            }
            (s::IBV_QPS_RTR, s::IBV_QPS_RTS) => {
                has(m::IBV_QP_SQ_PSN)
                    && has(m::IBV_QP_TIMEOUT)
                    && has(m::IBV_QP_RETRY_CNT)
                    && has(m::IBV_QP_RNR_RETRY)
                    && has(m::IBV_QP_MAX_QP_RD_ATOMIC)
            }
            (_, s::IBV_QPS_ERR) => true,
            _ => stays,
        };
        if !allowed {
            return EINVAL;
        }
        if has(m::IBV_QP_ACCESS_FLAGS) {
            entry.access = wanted.qp_access_flags;
            entry.late = if stays { late } else { 0 };
        }
        if has(m::IBV_QP_DEST_QPN) {
            entry.peer = wanted.dest_qp_num;
            entry.receive_psn = wanted.rq_psn;
        }
        if has(m::IBV_QP_SQ_PSN) {
            entry.send_psn = wanted.sq_psn;
        }
        entry.state = next;
        if next == s::IBV_QPS_ERR {
            state.fail(number);
        }
        0
    })
}

extern "C" fn destroy_qp(pair: *mut sys::ibv_qp) -> c_int {
    let (context, _) = pair_of(pair);
    if with(context, |state| state.faults.keep_pairs) {
        return EBUSY;
    }
    // SAFETY: it came from `create_qp`, and is freed once.
    let owned = unsafe { Box::from_raw(pair) };
    with(owned.context, |state| {
        state.pairs.remove(&owned.qp_num);
        for context in state.contexts.values_mut() {
            context
                .events
                .retain(|event| !matches!(event, Told::Pair(about, _) if about.0 == pair));
        }
    });
    0
}

extern "C" fn post_recv(
    pair: *mut sys::ibv_qp,
    mut request: *mut sys::ibv_recv_wr,
    bad: *mut *mut sys::ibv_recv_wr,
) -> c_int {
    let (context, number) = pair_of(pair);
    with(context, |state| {
        while !request.is_null() {
            // SAFETY: the caller gives a list of requests that ends with a null pointer.
            let wanted = unsafe { &*request };
            let Some(entry) = state.pairs.get_mut(&number) else { return EINVAL };
            let full = entry.receives.len() == entry.receives_max;
            if full || wanted.num_sge != 0 || entry.state == sys::ibv_qp_state::IBV_QPS_RESET {
                // SAFETY: the caller gives a place for the request that was refused.
                unsafe { bad.write(request) };
                return if full { ENOMEM } else { EINVAL };
            }
            entry.receives.push_back(wanted.wr_id);
            if entry.state == sys::ibv_qp_state::IBV_QPS_ERR {
                state.fail(number);
            }
            request = wanted.next;
        }
        0
    })
}

extern "C" fn post_send(
    pair: *mut sys::ibv_qp,
    mut request: *mut sys::ibv_send_wr,
    bad: *mut *mut sys::ibv_send_wr,
) -> c_int {
    let (context, number) = pair_of(pair);
    with(context, |state| {
        state.counts.doorbells += 1;
        while !request.is_null() {
            // SAFETY: the caller gives a list of requests that ends with a null pointer.
            let wanted = unsafe { &*request };
            if let Err(code) = accept(state, number, wanted) {
                // SAFETY: the caller gives a place for the request that was refused.
                unsafe { bad.write(request) };
                return code;
            }
            request = wanted.next;
        }
        let pace = state.pace;
        state.step(pace);
        0
    })
}

fn accept(state: &mut State, number: u32, wanted: &sys::ibv_send_wr) -> Result<(), c_int> {
    use sys::ibv_send_flags as f;
    use sys::ibv_wr_opcode as o;
    let pair = state.pairs.get_mut(&number).ok_or(EINVAL)?;
    let count = usize::try_from(wanted.num_sge).map_err(|_| EINVAL)?;
    let known = matches!(
        wanted.opcode,
        o::IBV_WR_RDMA_WRITE | o::IBV_WR_RDMA_WRITE_WITH_IMM | o::IBV_WR_RDMA_READ
    );
    let ready =
        matches!(pair.state, sys::ibv_qp_state::IBV_QPS_RTS | sys::ibv_qp_state::IBV_QPS_ERR);
    if !known || !ready || count > pair.pieces_max {
        return Err(EINVAL);
    }
    if pair.occupied == pair.sends_max {
        return Err(ENOMEM);
    }
    let pieces: &[sys::ibv_sge] = if count == 0 {
        &[]
    } else {
        // SAFETY: the caller's request points to so many pieces.
        unsafe { std::slice::from_raw_parts(wanted.sg_list, count) }
    };
    let length = pieces.iter().map(|piece| piece.length as usize).sum();
    let inline = wanted.send_flags & f::IBV_SEND_INLINE.0 != 0;
    if inline && length > INLINE_BYTES_MAX as usize {
        return Err(EINVAL);
    }
    // SAFETY: with the opcodes that are let through the union holds this.
    let target = unsafe { wanted.wr.rdma };
    // SAFETY: both views of the union are four initialized bytes.
    let immediate = u32::from_be(unsafe { wanted.__bindgen_anon_1.imm_data });
    let (mut bytes, mut kept) = match state.spare.pop() {
        Some(request) => (request.bytes, request.pieces),
        None => (Vec::new(), Vec::new()),
    };
    bytes.clear();
    kept.clear();
    if inline {
        gather(pieces, &mut bytes)
    } else {
        kept.extend_from_slice(pieces)
    }
    pair.occupied += 1;
    pair.sends.push_back(Request {
        id: wanted.wr_id,
        opcode: wanted.opcode,
        signaled: wanted.send_flags & f::IBV_SEND_SIGNALED.0 != 0,
        remote: target.remote_addr,
        key: target.rkey,
        immediate,
        inline,
        bytes,
        pieces: kept,
        length,
        done: 0,
        attempts: 0,
    });
    let failed = pair.state == sys::ibv_qp_state::IBV_QPS_ERR;
    state.counts.inline += u64::from(inline);
    match wanted.opcode {
        o::IBV_WR_RDMA_READ => state.counts.reads += 1,
        o::IBV_WR_RDMA_WRITE_WITH_IMM => {
            state.counts.immediates += 1;
            state.counts.writes += 1;
        }
        _ => state.counts.writes += 1,
    }
    if failed {
        state.fail(number);
    }
    Ok(())
}

fn gather(pieces: &[sys::ibv_sge], into: &mut Vec<u8>) {
    for piece in pieces.iter().filter(|piece| piece.length > 0) {
        let start = core::ptr::with_exposed_provenance::<u8>(piece.addr as usize);
        // SAFETY: inline data is memory of the caller that holds still during the call.
        into.extend_from_slice(unsafe { std::slice::from_raw_parts(start, piece.length as usize) });
    }
}

extern "C" fn poll_cq(queue: *mut sys::ibv_cq, room: c_int, into: *mut sys::ibv_wc) -> c_int {
    let (context, handle) = queue_of(queue);
    with(context, |state| {
        let pace = state.pace;
        state.step(pace);
        if state.queues.get(&handle).is_none_or(|queue| queue.overrun) {
            return -1;
        }
        let mut count = 0;
        while count < room {
            let Some(entry) = state.take(handle) else { break };
            let zeroed = core::mem::MaybeUninit::<sys::ibv_wc>::zeroed();
            // SAFETY: every field is a number: zeroes are valid.
            let mut completion = unsafe { zeroed.assume_init() };
            completion.wr_id = entry.id;
            completion.status = entry.status;
            completion.opcode = entry.opcode;
            completion.qp_num = entry.pair;
            if let Some(immediate) = entry.immediate {
                completion.wc_flags = sys::ibv_wc_flags::IBV_WC_WITH_IMM.0;
                completion.__bindgen_anon_1.imm_data = immediate.to_be();
            }
            // SAFETY: the caller gives room for `room` completions.
            unsafe { into.wrapping_add(count as usize).write(completion) };
            count += 1;
        }
        count
    })
}

extern "C" fn req_notify_cq(queue: *mut sys::ibv_cq, _solicited: c_int) -> c_int {
    let (context, handle) = queue_of(queue);
    with(context, |state| {
        if let Some(queue) = state.queues.get_mut(&handle) {
            queue.armed = true;
        }
        // Whoever arms is about to sleep: nobody might move packets any more.
        if state.pace > 0 {
            while state.step(MTU) > 0 {}
        }
        0
    })
}
