//! The fence torture test: does anything land after a fence returned?
//!
//! A writer keeps several large writes under way into a region; the owner takes the right to write
//! away, keeps a copy of the region as it is when the call returns, and looks again later. Any byte
//! that changed landed too late. Deregistration has to show none; taking away a queue pair's access
//! flags is the control that shows that the test can see one.

use crate::{Adapter, AdapterOptions};
use quorate_ffi::memory::SharedMemory;
use quorate_ffi::verbs::{
    Access, CompletionQueue, Destination, InitQueuePair, Library, MemoryRegion, Poster,
    QueueDepths, QueuePair, Remote, Status, VerbsError,
};
use quorate_transport::integrity::Randomness;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Writes that are under way at once.
const UNDER_WAY: usize = 6;
/// The second look comes this much after the writer was refused: what the device was doing when the
/// fence returned is done by then,
const LATER: Duration = Duration::from_millis(3);
/// or when it was not refused for so long. A processor that is emulated may be away for that long in the
/// middle of a packet.
const REFUSED_AFTER: Duration = Duration::from_millis(500);
/// A round whose writer gets nowhere for so long is no round.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is tried as a fence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fence {
    /// `ibv_dereg_mr`: what the transport uses.
    Deregister,
    /// `ibv_modify_qp` of the access flags: what some published systems use.
    AccessFlags,
}

/// What so many rounds showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What was tried.
    pub fence: Fence,
    /// Bytes of a write.
    pub bytes: usize,
    /// Rounds in which the stream was running when the fence came.
    pub rounds: u32,
    /// Of these, those in which bytes changed after the fence had returned.
    pub late: u32,
    /// Those that the fence left with a part of a write.
    pub torn: u32,
    /// Those whose writer was told of the refusal.
    pub refused: u32,
}

/// One end of a round's connection.
struct End {
    pair: InitQueuePair,
    queue: CompletionQueue,
}

impl End {
    fn new(adapter: &Adapter) -> Result<Self, VerbsError> {
        let queue = adapter.device().completion_queue(64, None)?;
        let depths = QueueDepths { sends: 32, receives: 1, pieces: 1, inline_bytes: 0 };
        let pair = adapter.domain().queue_pair(&queue, depths)?.init(adapter.path()?)?;
        Ok(Self { pair, queue })
    }
}

/// Runs so many rounds with writes of so many bytes, on the device of `options`.
///
/// # Errors
/// The device's: the test could not be run.
pub fn run(
    library: &Library,
    options: &AdapterOptions,
    fence: Fence,
    bytes: usize,
    rounds: u32,
) -> Result<Finding, VerbsError> {
    let mut finding = Finding { fence, bytes, rounds: 0, late: 0, torn: 0, refused: 0 };
    let mut random = Randomness::new(0x5eed);
    let ends = (Adapter::open(library, options)?, Adapter::open(library, options)?);
    let source = source_of(&ends.1, bytes)?;
    let mut looks = [vec![1; bytes], vec![1; bytes]];
    for _ in 0..rounds {
        round(&ends, &source, &mut looks, &mut finding, &mut random)?;
    }
    Ok(finding)
}

/// Where the writer writes, and what it is told to.
struct Target<'a> {
    to: Remote,
    bytes: usize,
    stop: &'a AtomicBool,
    completed: &'a AtomicU64,
}

fn round(
    (owner, writer): &(Adapter, Adapter),
    source: &MemoryRegion,
    // What was used before is there at once: between the fence and the first look nothing may take time.
    [before, after]: &mut [Vec<u8>; 2],
    finding: &mut Finding,
    random: &mut Randomness,
) -> Result<(), VerbsError> {
    let bytes = finding.bytes;
    let (End { pair: owned, queue: _queue }, End { pair: written, queue }) =
        (End::new(owner)?, End::new(writer)?);
    let (psn_a, psn_b) = (random.word() as u32, random.word() as u32);
    let (at_a, at_b): (Destination, Destination) =
        (owned.destination(psn_a), written.destination(psn_b));
    let mut owned = owned.ready_to_receive(&at_b)?.ready_to_send(psn_a)?;
    let written = written.ready_to_receive(&at_a)?.ready_to_send(psn_b)?;
    let memory = memory_of(bytes)?;
    let region = owner.domain().register(&memory, Access::RemoteWrite)?;
    let (stop, completed) = (AtomicBool::new(false), AtomicU64::new(0));
    let to = Remote { address: memory.address(), key: region.remote_key() };
    let target = Target { to, bytes, stop: &stop, completed: &completed };
    let wait = 1 + random.below(6);
    let refused = std::thread::scope(|scope| {
        let stream = scope.spawn(|| write(queue, written, source, &target));
        let deadline = Instant::now() + PATIENCE;
        while completed.load(Ordering::Acquire) < wait && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let running = completed.load(Ordering::Acquire) >= wait;
        // With access flags the region stays: it is not what is tried.
        let mut region = Some(region);
        let fenced = match finding.fence {
            Fence::Deregister => region.take().map_or(Ok(()), MemoryRegion::deregister),
            Fence::AccessFlags => owned.set_remote_access(false),
        };
        memory.copy_out(0, before);
        let deadline = Instant::now() + REFUSED_AFTER;
        while !stream.is_finished() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        std::thread::sleep(LATER);
        memory.copy_out(0, after);
        stop.store(true, Ordering::Release);
        let refused = stream.join().unwrap_or(false);
        fenced.map(|()| {
            if running {
                finding.rounds += 1;
                finding.late += u32::from(before != after);
                finding.torn += u32::from(before.iter().any(|byte| *byte != before[0]));
            }
            running && refused
        })
    })?;
    finding.refused += u32::from(refused);
    Ok(())
}

/// Keeps writes under way until one fails or it is told to stop; whether one was refused.
fn write(
    mut queue: CompletionQueue,
    mut pair: QueuePair,
    source: &MemoryRegion,
    target: &Target<'_>,
) -> bool {
    let (mut poster, mut completions) = (Poster::new(), Vec::new());
    let (mut posted, mut done) = (0u64, 0u64);
    let mut refused = false;
    while !target.stop.load(Ordering::Acquire) && !refused {
        if posted - done < UNDER_WAY as u64 {
            let piece = posted as usize % UNDER_WAY * target.bytes;
            let mut chain = poster.begin();
            chain.write(posted, target.to, &[source.source(piece, target.bytes)], None);
            chain.signal_last();
            if pair.post(chain).is_err() {
                break;
            }
            posted += 1;
        }
        completions.clear();
        if queue.poll(&mut completions).is_err() {
            break;
        }
        for completion in &completions {
            match completion.status {
                Status::SUCCESS => done += 1,
                _ => refused = true,
            }
        }
        target.completed.store(done, Ordering::Release);
    }
    refused
}

fn memory_of(bytes: usize) -> Result<Arc<SharedMemory>, VerbsError> {
    SharedMemory::new(bytes).map_err(|source| VerbsError::Register { length: bytes, source })
}

/// As many different writes as are under way at once, so that each changes every byte.
fn source_of(writer: &Adapter, bytes: usize) -> Result<MemoryRegion, VerbsError> {
    let memory = memory_of(bytes * UNDER_WAY)?;
    for place in 0..UNDER_WAY {
        memory.copy_in(place * bytes, &vec![place as u8 + 1; bytes]);
    }
    writer.domain().register(&memory, Access::Source)
}
