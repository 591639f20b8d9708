//! The safe verbs over the fake device: what each promises, and what each fault looks like.

#![allow(clippy::unwrap_used)]

use quorate_ffi::fake::{Fabric, Live, Partition};
use quorate_ffi::memory::SharedMemory;
use quorate_ffi::verbs::{
    Access, AsyncEvent, Channel, Completion, CompletionQueue, Device, InitQueuePair, MemoryRegion,
    Path, PortState, Poster, ProtectionDomain, QueueDepths, QueuePair, Remote, Status, VerbsError,
};
use std::sync::Arc;

const DEPTHS: QueueDepths = QueueDepths { sends: 64, receives: 4, pieces: 4, inline_bytes: 256 };

struct End {
    device: Device,
    domain: ProtectionDomain,
    queue: CompletionQueue,
    channel: Channel,
    memory: Arc<SharedMemory>,
    poster: Poster,
}

/// Two ends and a connection between them; the first writes into the second's region.
struct Wire {
    ends: [End; 2],
    pairs: [QueuePair; 2],
    granted: Option<MemoryRegion>,
    source: MemoryRegion,
}

fn end(fabric: &'static Fabric, completions: u32) -> End {
    let device = Fabric::library().open(fabric.name()).unwrap();
    let domain = device.protection_domain().unwrap();
    let channel = device.channel().unwrap();
    let queue = device.completion_queue(completions, Some(&channel)).unwrap();
    let memory = SharedMemory::new(1 << 16).unwrap();
    End { device, domain, queue, channel, memory, poster: Poster::new() }
}

fn path(device: &Device) -> Path {
    let gid = device.gids().unwrap()[0];
    Path { port: device.port(1).unwrap(), gid, timeout: 10, retries: 6 }
}

fn wire_with(fabric: &'static Fabric, completions: u32, receives: usize) -> Wire {
    let ends = [end(fabric, completions), end(fabric, completions)];
    let init = |end: &End| {
        let new = end.domain.queue_pair(&end.queue, DEPTHS).unwrap();
        new.init(path(&end.device)).unwrap()
    };
    let mut inits = [init(&ends[0]), init(&ends[1])];
    for id in 0..receives {
        inits[1].post_receive(900 + id as u64).unwrap();
    }
    let at = [inits[0].destination(11), inits[1].destination(22)];
    let [a, b] = inits;
    let a = a.ready_to_receive(&at[1]).unwrap().ready_to_send(11).unwrap();
    let b = b.ready_to_receive(&at[0]).unwrap().ready_to_send(22).unwrap();
    let granted = Some(ends[1].domain.register(&ends[1].memory, Access::RemoteReadWrite).unwrap());
    let source = ends[0].domain.register(&ends[0].memory, Access::Sink).unwrap();
    Wire { ends, pairs: [a, b], granted, source }
}

fn wire(fabric: &'static Fabric) -> Wire {
    wire_with(fabric, 256, 4)
}

impl Wire {
    fn remote(&self, offset: u64) -> Remote {
        let region = self.granted.as_ref().unwrap();
        Remote { address: region.memory().address() + offset, key: region.remote_key() }
    }

    fn write(&mut self, id: u64, to: Remote, bytes: &[u8], immediate: Option<u32>) {
        let mut chain = self.ends[0].poster.begin();
        chain.write_inline(id, to, [bytes], immediate);
        chain.signal_last();
        self.pairs[0].post(chain).unwrap();
    }

    fn completions(&mut self, end: usize) -> Vec<Completion> {
        let mut all = Vec::new();
        while self.ends[end].queue.poll(&mut all).unwrap() > 0 {}
        all
    }

    fn word(&self, offset: usize) -> u64 {
        self.ends[1].memory.load(offset)
    }
}

#[test]
fn a_chain_is_one_doorbell_and_its_last_completion_speaks_for_all() {
    let fabric = Fabric::new(1);
    let mut wire = wire(fabric);
    let to: Vec<Remote> = (0..8).map(|word| wire.remote(word * 8)).collect();
    let words: Vec<[u8; 8]> = (0..8u64).map(|word| (word + 1).to_le_bytes()).collect();
    let mut chain = wire.ends[0].poster.begin();
    for (id, (to, word)) in to.iter().zip(&words).enumerate() {
        chain.write_inline(id as u64, *to, [&word[..3], &word[3..]], None);
    }
    chain.signal_last();
    wire.pairs[0].post(chain).unwrap();
    let done = wire.completions(0);
    assert_eq!(done.iter().map(|done| done.id).collect::<Vec<_>>(), [7]);
    assert_eq!(done[0].status, Status::SUCCESS);
    assert_eq!(
        (0..8).map(|word| wire.word(word * 8)).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6, 7, 8]
    );
    let counts = fabric.counts();
    assert_eq!((counts.doorbells, counts.writes, counts.inline, counts.completions), (1, 8, 8, 1));
}

#[test]
fn registered_pieces_are_joined_and_read_back() {
    let mut wire = wire(Fabric::new(1));
    wire.ends[0].memory.copy_in(100, b"one-sided");
    let remote = wire.remote(5);
    let (tail, head) = (wire.source.source(103, 6), wire.source.source(100, 3));
    let back = wire.source.source(200, 9);
    let mut chain = wire.ends[0].poster.begin();
    chain.write(1, remote, &[tail, head], None);
    chain.read(2, remote, back);
    chain.signal_last();
    wire.pairs[0].post(chain).unwrap();
    assert_eq!(wire.completions(0).len(), 1);
    let mut read = [0; 9];
    wire.ends[0].memory.copy_out(200, &mut read);
    assert_eq!(&read, b"-sidedone");
}

#[test]
fn half_a_write_is_seen_as_half_a_write() {
    let fabric = Fabric::new(1);
    let mut wire = wire(fabric);
    fabric.set_pace(0);
    wire.ends[0].memory.copy_in(0, &[7; 12_288]);
    let (remote, whole) = (wire.remote(0), wire.source.source(0, 12_288));
    let mut chain = wire.ends[0].poster.begin();
    chain.write(1, remote, &[whole], None);
    chain.signal_last();
    wire.pairs[0].post(chain).unwrap();
    assert_eq!(fabric.step(2), 2);
    let seven = u64::from_le_bytes([7; 8]);
    assert_eq!((wire.word(0), wire.word(8184), wire.word(8192)), (seven, seven, 0));
    assert!(wire.completions(0).is_empty());
    assert_eq!(fabric.step(9), 1);
    assert_eq!((wire.word(12_280), wire.completions(0).len()), (seven, 1));
}

#[test]
fn a_write_that_carries_a_number_takes_a_receive_and_wakes_the_channel() {
    let mut wire = wire(Fabric::new(1));
    wire.ends[1].queue.arm().unwrap();
    assert_eq!(wire.ends[1].channel.drain(), 0);
    let to = wire.remote(0);
    wire.write(1, to, b"12345678", Some(77));
    assert_eq!(wire.ends[1].channel.drain(), 1, "one event for one arming");
    let received = wire.completions(1);
    assert_eq!((received.len(), received[0].id, received[0].immediate), (1, 900, Some(77)));
    assert!(received[0].received);
    wire.write(2, to, b"12345678", Some(78));
    assert_eq!(wire.ends[1].channel.drain(), 0, "not armed again");
}

#[test]
fn without_a_receive_it_fails_as_not_ready() {
    let mut wire = wire_with(Fabric::new(1), 256, 0);
    let to = wire.remote(0);
    wire.write(1, to, b"12345678", Some(77));
    let done = wire.completions(0);
    assert_eq!((done.len(), done[0].status), (1, Status::RECEIVER_NOT_READY));
    assert!(done[0].status.is_unreachable());
}

#[test]
fn after_deregistration_no_byte_lands_and_both_ends_fail() {
    let fabric = Fabric::new(1);
    let mut wire = wire(fabric);
    let to = wire.remote(0);
    wire.write(1, to, &1u64.to_le_bytes(), None);
    wire.granted.take().unwrap().deregister().unwrap();
    wire.write(2, to, &2u64.to_le_bytes(), None);
    wire.write(3, to, &3u64.to_le_bytes(), None);
    let status: Vec<Status> = wire.completions(0).iter().map(|done| done.status).collect();
    assert_eq!(status, [Status::SUCCESS, Status::REMOTE_ACCESS, Status::FLUSHED]);
    assert_eq!(wire.word(0), 1);
    let told = wire.ends[1].device.next_event();
    assert!(
        matches!(told, Some(AsyncEvent::QueuePair(number, _)) if number == wire.pairs[1].number())
    );
    // Its receives come back flushed.
    assert!(wire.completions(1).iter().all(|done| done.status == Status::FLUSHED));
    assert_eq!(fabric.counts().refused, 1);
}

#[test]
fn a_fence_that_does_not_hold_lets_bytes_land_after_it() {
    let fabric = Fabric::new(1);
    let mut wire = wire(fabric);
    fabric.break_fence(1);
    let to = wire.remote(0);
    wire.granted.take().unwrap().deregister().unwrap();
    wire.write(1, to, &1u64.to_le_bytes(), None);
    wire.write(2, to, &2u64.to_le_bytes(), None);
    assert_eq!(wire.word(0), 1, "the first landed, the second did not");
}

#[test]
fn access_flags_take_the_right_away_from_the_whole_queue_pair() {
    let fabric = Fabric::new(1);
    let mut wire = wire(fabric);
    fabric.break_access_flags(1);
    wire.pairs[1].set_remote_access(false).unwrap();
    let to = wire.remote(0);
    wire.write(1, to, &1u64.to_le_bytes(), None);
    wire.write(2, to, &2u64.to_le_bytes(), None);
    let status: Vec<Status> = wire.completions(0).iter().map(|done| done.status).collect();
    assert_eq!(status, [Status::SUCCESS, Status::REMOTE_INVALID_REQUEST]);
    assert_eq!(wire.word(0), 1);
}

#[test]
fn what_is_not_granted_is_refused_byte_by_byte() {
    for (offset, key) in [(1 << 16, 0), ((1 << 16) - 7, 0), (u64::MAX - 3, 0), (0, 1)] {
        let mut wire = wire(Fabric::new(1));
        let inside = wire.remote(0);
        let to = Remote { address: inside.address.wrapping_add(offset), key: inside.key ^ key };
        wire.write(1, to, b"12345678", None);
        let done = wire.completions(0);
        assert_eq!(done[0].status, Status::REMOTE_ACCESS, "{offset:#x} {key}");
        assert_eq!(wire.word(0), 0);
    }
    let mut wire = wire(Fabric::new(1));
    let to = wire.remote((1 << 16) - 8);
    wire.write(1, to, b"12345678", None);
    assert_eq!(wire.completions(0)[0].status, Status::SUCCESS, "the last byte");
}

#[test]
fn a_full_send_queue_refuses_and_a_polled_completion_makes_room() {
    let fabric = Fabric::new(1);
    let mut wire = wire(fabric);
    let to = wire.remote(0);
    let word = 9u64.to_le_bytes();
    let mut chain = wire.ends[0].poster.begin();
    for id in 0..70 {
        chain.write_inline(id, to, [&word[..]], None);
    }
    let refused = wire.pairs[0].post(chain).unwrap_err();
    assert_eq!((refused.posted, refused.source.raw_os_error()), (64, Some(12)));
    // Nothing of it made a completion: the queue stays full for ever, which is the poster's fault.
    assert!(wire.completions(0).is_empty());

    let mut wire = self::wire(fabric);
    let to = wire.remote(0);
    for round in 0..10 {
        let mut chain = wire.ends[0].poster.begin();
        for id in 0..64 {
            chain.write_inline(id, to, [&word[..]], None);
        }
        chain.signal_last();
        wire.pairs[0].post(chain).unwrap();
        assert_eq!(wire.completions(0).len(), 1, "round {round}");
    }
}

#[test]
fn cut_cables_fail_by_retries_or_never() {
    let fabric = Fabric::new(1);
    let mut wire = wire(fabric);
    let to = wire.remote(0);
    fabric.partition(Partition::Silent);
    wire.write(1, to, b"12345678", None);
    assert!(wire.completions(0).is_empty());
    fabric.partition(Partition::GivesUp);
    let done = wire.completions(0);
    assert_eq!((done.len(), done[0].status), (1, Status::RETRY_EXCEEDED));
    assert!(done[0].status.is_unreachable());
}

#[test]
fn a_queue_pair_that_is_gone_does_not_answer_and_one_of_another_life_neither() {
    let fabric = Fabric::new(1);
    let mut wire = wire(fabric);
    let Wire { pairs: [_, b], .. } = &mut wire;
    b.fail().unwrap();
    let to = wire.remote(0);
    wire.write(1, to, b"12345678", None);
    assert_eq!(wire.completions(0)[0].status, Status::RETRY_EXCEEDED);
    assert_eq!(wire.word(0), 0);
}

#[test]
fn a_completion_queue_overruns_and_says_so() {
    let fabric = Fabric::new(1);
    let mut wire = wire_with(fabric, 4, 0);
    let to = wire.remote(0);
    for id in 0..5 {
        wire.write(id, to, b"12345678", None);
    }
    let refused = wire.ends[0].queue.poll(&mut Vec::new());
    assert!(matches!(refused, Err(VerbsError::CompletionQueue(_))), "{refused:?}");
    assert_eq!(wire.ends[0].device.next_event(), Some(AsyncEvent::CompletionQueueOverrun));
}

#[test]
fn ports_memory_and_queue_pairs_can_be_refused_each_with_what_to_do() {
    let fabric = Fabric::new(1);
    let end = end(fabric, 16);
    fabric.set_port(false);
    assert_eq!(end.device.next_event(), Some(AsyncEvent::PortDown(1)));
    assert_eq!(end.device.next_event(), None);
    assert_eq!(end.device.port(1).unwrap().state, PortState::Other("down"));
    fabric.refuse_memory(true);
    let refused = end.domain.register(&end.memory, Access::Source).unwrap_err();
    assert!(refused.to_string().contains("ulimit -l"), "{refused}");
    fabric.refuse_queue_pairs(true);
    let refused = end.domain.queue_pair(&end.queue, DEPTHS).unwrap_err();
    assert!(matches!(refused, VerbsError::Create { what: "queue pair", .. }), "{refused}");
    let unknown = Fabric::library().open("mlx5_7").unwrap_err();
    assert!(unknown.to_string().contains(fabric.name()), "{unknown}");
}

#[test]
fn a_device_that_keeps_what_it_should_give_back_is_told_of() {
    let fabric = Fabric::new(1);
    let end = end(fabric, 16);
    let live = fabric.live();
    let region = end.domain.register(&end.memory, Access::RemoteWrite).unwrap();
    let key = region.remote_key();
    fabric.keep_memory(true);
    let refused = region.deregister().unwrap_err();
    assert!(matches!(refused, VerbsError::Deregister { .. }), "{refused}");
    assert!(fabric.knows_key(key) && refused.to_string().contains("does not give"), "{refused}");
    fabric.keep_memory(false);
    let region = end.domain.register(&end.memory, Access::RemoteWrite).unwrap();
    let key = region.remote_key();
    region.deregister().unwrap();
    assert!(!fabric.knows_key(key));
    let made =
        || end.domain.queue_pair(&end.queue, DEPTHS).unwrap().init(path(&end.device)).unwrap();
    let ready = |pair: InitQueuePair| {
        let own = pair.destination(1);
        pair.ready_to_receive(&own).unwrap().ready_to_send(1).unwrap()
    };
    let (stays, goes) = (ready(made()), ready(made()));
    fabric.keep_queue_pairs(true);
    let refused = stays.destroy().unwrap_err();
    assert!(refused.to_string().contains("destroyed"), "{refused}");
    fabric.keep_queue_pairs(false);
    goes.destroy().unwrap();
    let left = fabric.live();
    assert_eq!((left.pairs, left.regions), (live.pairs + 1, live.regions + 1));
}

#[test]
fn handles_dropped_in_any_order_leave_nothing_behind() {
    for order in 0..4 {
        let fabric = Fabric::new(1);
        let wire = wire(fabric);
        let live = fabric.live();
        assert_eq!((live.pairs, live.queues, live.regions, live.contexts), (2, 2, 2, 2));
        let Wire { ends, pairs, granted, source } = wire;
        match order {
            0 => drop((ends, pairs, granted, source)),
            1 => drop((pairs, ends, source, granted)),
            2 => drop((granted, source, ends, pairs)),
            _ => drop((source, pairs, granted, ends)),
        }
        assert_eq!(fabric.live(), Live::default(), "order {order}");
    }
}

#[test]
fn one_seed_repeats_everything() {
    let story = |seed| {
        let fabric = Fabric::new(seed);
        fabric.set_pace(0);
        let mut wires: Vec<Wire> = (0..3).map(|_| wire(fabric)).collect();
        for (mark, wire) in (1u8..).zip(&mut wires) {
            wire.ends[0].memory.copy_in(0, &[mark; 20_000]);
            let (remote, whole) = (wire.remote(0), wire.source.source(0, 20_000));
            let mut chain = wire.ends[0].poster.begin();
            chain.write(1, remote, &[whole], None);
            wire.pairs[0].post(chain).unwrap();
        }
        fabric.step(7);
        let landed = |wire: &Wire| (0..5).filter(|page| wire.word(page * 4096) != 0).count();
        wires.iter().map(landed).collect::<Vec<_>>()
    };
    assert_eq!(story(5), story(5));
    assert_eq!(story(5).iter().sum::<usize>(), 7);
    assert!((6..20).any(|seed| story(seed) != story(5)), "the seed matters");
}
