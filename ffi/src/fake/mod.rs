//! A device of the mind: libibverbs' functions in Rust, over a fabric within this process.
//!
//! What stands on [`crate::verbs`] runs on it unchanged, and is tested with no device at all. It
//! keeps the rules of reliable connections: the states of queue pairs, requests in order and in
//! packets of one MTU, so that half a write is seen as half a write; remote keys with their rights;
//! a failed request takes its queue pair down and flushes the rest; a write that carries a number
//! needs a receive; a send queue has room again only when a completion was polled; a completion
//! queue overruns. Packets move when anybody posts, polls or arms. One seed and one order of calls
//! repeat everything. What a peer's death, a cut cable or a lying device do is asked for with
//! [`Fabric`]'s methods.
//!
//! SEND, atomics and memory windows are refused: nothing of the product uses them.

mod functions;
mod state;

use crate::sys::verbs as sys;
use crate::verbs::Library;
use state::State;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use state::{Counts, Live, Partition};

/// The payload of a packet, in bytes.
pub const MTU: usize = 4096;
/// Inline data of a request, as rxe grants it.
pub const INLINE_BYTES_MAX: u32 = 512;

/// A fabric with one device, which any number of opened contexts share. It is never freed.
#[derive(Debug)]
pub struct Fabric {
    name: String,
    device: state::Shared<sys::ibv_device>,
    state: Mutex<State>,
}

/// All that were made: what `ibv_get_device_list` shows.
static FABRICS: Mutex<Vec<&'static Fabric>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that panicked while it held the lock has failed already.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fabric {
    /// Makes a fabric, whose device gets a name of its own.
    #[must_use]
    pub fn new(seed: u64) -> &'static Self {
        let mut fabrics = lock(&FABRICS);
        let name = format!("fake{}", fabrics.len());
        let fabric: &'static Self = Box::leak(Box::new(Self {
            device: state::Shared::new(sys::ibv_device::default()),
            state: Mutex::new(State::new(seed)),
            name,
        }));
        fabrics.push(fabric);
        fabric
    }

    /// The name of its device.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A library that shows the devices of all fabrics.
    #[must_use]
    pub fn library() -> Library {
        Library::from_table(functions::table())
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        lock(&self.state).counts
    }

    /// Objects that exist: all zero when everything was destroyed.
    #[must_use]
    pub fn live(&self) -> Live {
        lock(&self.state).live()
    }

    /// Whether memory is registered under this key.
    pub fn knows_key(&self, key: u32) -> bool {
        let state = lock(&self.state);
        state.regions.get(&key).is_some_and(|region| region.late.is_none())
    }

    /// Cuts or mends all cables.
    pub fn partition(&self, partition: Partition) {
        lock(&self.state).faults.partition = partition;
    }

    /// From now on so many packets still land after each `ibv_dereg_mr`: a fence that does not hold.
    pub fn break_fence(&self, packets: u32) {
        lock(&self.state).faults.late_packets = packets;
    }

    /// From now on taking away a queue pair's access flags lets so many packets more land, as rxe
    /// was seen to do.
    pub fn break_access_flags(&self, packets: u32) {
        lock(&self.state).faults.late_packets_by_flags = packets;
    }

    /// Whether queue pairs are refused, as by a device that has no more of them.
    pub fn refuse_queue_pairs(&self, refuse: bool) {
        lock(&self.state).faults.refuse_pairs = refuse;
    }

    /// Whether memory is refused, as beyond the limit of locked memory.
    pub fn refuse_memory(&self, refuse: bool) {
        lock(&self.state).faults.refuse_memory = refuse;
    }

    /// Whether `ibv_dereg_mr` fails and leaves the region in force.
    pub fn keep_memory(&self, keep: bool) {
        lock(&self.state).faults.keep_memory = keep;
    }

    /// Whether `ibv_destroy_qp` fails and leaves the queue pair as it is.
    pub fn keep_queue_pairs(&self, keep: bool) {
        lock(&self.state).faults.keep_pairs = keep;
    }

    /// Takes the port down, or up: the contexts are told.
    pub fn set_port(&self, up: bool) {
        lock(&self.state).set_port(up);
    }

    /// Lets every queue pair fail, as a reset of the device does.
    pub fn fail_queue_pairs(&self) {
        lock(&self.state).fail_pairs();
    }

    /// Moves up to so many packets; how many moved.
    pub fn step(&self, packets: usize) -> usize {
        lock(&self.state).step(packets)
    }

    /// So many packets move by themselves at each post and poll; 0 leaves it to [`Fabric::step`].
    pub fn set_pace(&self, packets: usize) {
        lock(&self.state).pace = packets;
    }
}
