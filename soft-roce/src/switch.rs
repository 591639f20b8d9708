//! The Ethernet switch between the machines: a thread that forwards frames, and the place to do harm.
//!
//! Each machine sends to a socket of its own, so that the sender is known by where a frame came in.
//! Sockets are local datagram sockets with names in the lab's folder: a full one holds the sender
//! back, nothing gets lost that no fault asked to lose, and no frame leaves this machine.

use crate::frame::{Class, class, receiver};
use crate::nak;
use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Frames that wait for their time, or for room at a machine, at the most; more are lost and counted.
const WAITING_MAX: usize = 16_384;
/// The longest frame that the emulator sends.
const FRAME_BYTES_MAX: usize = 68 << 10;
/// How long the thread sleeps at the most: it looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A machine that took no frame is tried again after this long.
const RETRY_AFTER: Duration = Duration::from_millis(1);

/// Which frames a rule is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Traffic {
    /// RoCE v2 alone.
    Rdma,
    /// Everything.
    All,
}

/// What happens to the frames of one direction between two hosts.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Fault {
    /// None arrives.
    pub cut: bool,
    /// The share that is lost, 0 to 1.
    pub loss: f64,
    /// The share that arrives twice, 0 to 1.
    pub duplicate: f64,
    /// How long each is on its way.
    pub delay: Duration,
    /// How much longer at the most, at random: frames then overtake one another.
    pub jitter: Duration,
}

/// Frames and bytes of one direction between two hosts, since the lab began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// Frames of RoCE v2 that were forwarded.
    pub rdma_frames: u64,
    /// Their bytes.
    pub rdma_bytes: u64,
    /// Frames of TCP that were forwarded.
    pub tcp_frames: u64,
    /// Their bytes.
    pub tcp_bytes: u64,
    /// Other frames that were forwarded.
    pub other_frames: u64,
    /// Frames that a fault, or a full queue, lost.
    pub lost_frames: u64,
    /// Acknowledgements that became refusals, each of which makes a queue pair fail.
    pub refusals: u64,
}

impl Count {
    fn forwarded(&mut self, class: Class, bytes: usize) {
        match class {
            Class::Rdma => {
                self.rdma_frames += 1;
                self.rdma_bytes += bytes as u64;
            }
            Class::Tcp => {
                self.tcp_frames += 1;
                self.tcp_bytes += bytes as u64;
            }
            Class::Other => self.other_frames += 1,
        }
    }
}

/// From a host, to a host.
type Direction = (u16, u16);

#[derive(Debug, Default)]
struct Table {
    rdma: BTreeMap<Direction, Fault>,
    all: BTreeMap<Direction, Fault>,
    counts: BTreeMap<Direction, Count>,
    /// Where the next acknowledgement becomes a refusal.
    refuse: BTreeSet<Direction>,
}

impl Table {
    fn fault(&self, direction: Direction, class: Class) -> Fault {
        let all = self.all.get(&direction).copied().unwrap_or_default();
        match self.rdma.get(&direction) {
            Some(rdma) if class == Class::Rdma && !all.cut => *rdma,
            _ => all,
        }
    }
}

/// The switch; dropping it ends its thread.
#[derive(Debug)]
pub struct Switch {
    table: Arc<Mutex<Table>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    folder: PathBuf,
    hosts: u16,
}

impl Switch {
    /// A switch for hosts 1 to `hosts`, with its sockets in `folder`.
    pub(crate) fn start(folder: &Path, hosts: u16, seed: u64) -> Result<Self> {
        let table = Arc::new(Mutex::new(Table::default()));
        let end = Arc::new(AtomicBool::new(false));
        let mut ports = Vec::new();
        for host in 1..=hosts {
            let (machine, own) = sockets(folder, host);
            let socket = UnixDatagram::bind(&own)
                .with_context(|| format!("cannot make the socket {}", own.display()))?;
            socket.set_nonblocking(true)?;
            ports.push(Port { host, socket, machine });
        }
        let worker = Worker {
            ports,
            table: Arc::clone(&table),
            end: Arc::clone(&end),
            random: fastrand::Rng::with_seed(seed),
            waiting: BTreeMap::new(),
            full: BTreeMap::new(),
            number: 0,
        };
        let thread = std::thread::Builder::new().name("switch".into()).spawn(|| worker.run())?;
        Ok(Self { table, end, thread: Some(thread), folder: folder.into(), hosts })
    }

    /// The sockets of a machine and of the switch's end.
    pub(crate) fn sockets(&self, host: u16) -> (PathBuf, PathBuf) {
        sockets(&self.folder, host)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what happens to the frames from host `from` to host `to`, in place of what was set before for
    /// this traffic.
    pub fn set(&self, from: u16, to: u16, traffic: Traffic, fault: Fault) {
        let mut table = self.table();
        match traffic {
            Traffic::Rdma => table.rdma.insert((from, to), fault),
            Traffic::All => table.all.insert((from, to), fault),
        };
    }

    /// Sets the same for both directions between two hosts.
    pub fn set_both(&self, one: u16, other: u16, traffic: Traffic, fault: Fault) {
        self.set(one, other, traffic, fault);
        self.set(other, one, traffic, fault);
    }

    /// Cuts both directions between two hosts.
    pub fn cut(&self, one: u16, other: u16, traffic: Traffic) {
        self.set_both(one, other, traffic, Fault { cut: true, ..Fault::default() });
    }

    /// Cuts a host from all others.
    pub fn isolate(&self, host: u16, traffic: Traffic) {
        for other in (1..=self.hosts).filter(|other| *other != host) {
            self.cut(host, other, traffic);
        }
    }

    /// Makes the next queue pair of host `to` fail that gets an acknowledgement from host `from`: it is told
    /// of a remote operational error. [`Count::refusals`] says when that happened.
    pub fn fail_pair(&self, from: u16, to: u16) {
        self.table().refuse.insert((from, to));
    }

    /// Ends all faults.
    pub fn heal(&self) {
        let mut table = self.table();
        table.rdma.clear();
        table.all.clear();
        table.refuse.clear();
    }

    /// What went from host `from` to host `to` so far.
    #[must_use]
    pub fn count(&self, from: u16, to: u16) -> Count {
        self.table().counts.get(&(from, to)).copied().unwrap_or_default()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in there was printed already.
            let _ = thread.join();
        }
    }
}

/// Names are short: those of sockets have 107 bytes at the most (unix(7)).
fn sockets(folder: &Path, host: u16) -> (PathBuf, PathBuf) {
    (folder.join(format!("m{host}")), folder.join(format!("s{host}")))
}

#[derive(Debug)]
struct Port {
    host: u16,
    socket: UnixDatagram,
    machine: PathBuf,
}

#[derive(Debug)]
struct Worker {
    ports: Vec<Port>,
    table: Arc<Mutex<Table>>,
    end: Arc<AtomicBool>,
    random: fastrand::Rng,
    /// Frames on their way, by the time of their arrival.
    waiting: BTreeMap<(Instant, u64), (u16, Vec<u8>)>,
    /// Frames that a machine had no room for.
    full: BTreeMap<u16, VecDeque<Vec<u8>>>,
    number: u64,
}

impl Worker {
    fn run(mut self) {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        while !self.end.load(Ordering::Relaxed) {
            self.sleep();
            for port in 0..self.ports.len() {
                // A few at a time, so that no machine waits for another one's stream.
                for _ in 0..64 {
                    let Ok(length) = self.ports[port].socket.recv(&mut buffer) else { break };
                    self.forward(self.ports[port].host, &buffer[..length]);
                }
            }
            self.arrive();
        }
    }

    /// Until a frame comes or is due.
    fn sleep(&self) {
        let mut limit = LOOK_EVERY;
        if let Some(((due, _), _)) = self.waiting.first_key_value() {
            limit = limit.min(due.saturating_duration_since(Instant::now()));
        }
        if self.full.values().any(|queue| !queue.is_empty()) {
            limit = limit.min(RETRY_AFTER);
        }
        let mut fds: Vec<_> =
            self.ports.iter().map(|port| PollFd::new(&port.socket, PollFlags::IN)).collect();
        let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(limit.subsec_nanos()) };
        // Interrupted is as good as awake.
        let _ = poll(&mut fds, Some(&limit));
    }

    fn forward(&mut self, from: u16, frame: &[u8]) {
        let class = class(frame);
        let one = receiver(frame).map(u16::from);
        let targets: Vec<u16> = self.ports.iter().map(|port| port.host).collect();
        for to in targets.into_iter().filter(|to| *to != from && one.is_none_or(|one| one == *to)) {
            let shared = Arc::clone(&self.table);
            let mut table = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let fault = table.fault((from, to), class);
            let count = table.counts.entry((from, to)).or_default();
            let held = self.waiting.len() + self.full.values().map(VecDeque::len).sum::<usize>();
            if fault.cut || self.random.f64() < fault.loss || held >= WAITING_MAX {
                count.lost_frames += 1;
                continue;
            }
            count.forwarded(class, frame.len());
            let refuse = table.refuse.contains(&(from, to));
            let refusal = if refuse { nak::refused(frame) } else { None };
            if refusal.is_some() {
                table.refuse.remove(&(from, to));
                table.counts.entry((from, to)).or_default().refusals += 1;
            }
            drop(table);
            let frame = refusal.as_deref().unwrap_or(frame);
            let copies = if self.random.f64() < fault.duplicate { 2 } else { 1 };
            for _ in 0..copies {
                let delay = fault.delay + fault.jitter.mul_f64(self.random.f64());
                if delay.is_zero() {
                    self.deliver(to, frame.to_vec());
                } else {
                    self.number += 1;
                    let key = (Instant::now() + delay, self.number);
                    self.waiting.insert(key, (to, frame.to_vec()));
                }
            }
        }
    }

    /// Delivers what is due, and what had no room before.
    fn arrive(&mut self) {
        let hosts: Vec<u16> = self.full.keys().copied().collect();
        for host in hosts {
            while let Some(frame) = self.full.get_mut(&host).and_then(VecDeque::pop_front) {
                if let Err(frame) = self.send(host, frame) {
                    self.full.entry(host).or_default().push_front(frame);
                    break;
                }
            }
        }
        while let Some(entry) = self.waiting.first_entry() {
            if entry.key().0 > Instant::now() {
                break;
            }
            let (to, frame) = entry.remove();
            self.deliver(to, frame);
        }
    }

    fn deliver(&mut self, to: u16, frame: Vec<u8>) {
        let queue = self.full.entry(to).or_default();
        if !queue.is_empty() {
            queue.push_back(frame);
        } else if let Err(frame) = self.send(to, frame) {
            self.full.entry(to).or_default().push_back(frame);
        }
    }

    /// Gives a machine a frame; gives it back when there is no room. A machine that is not there loses it.
    fn send(&self, to: u16, frame: Vec<u8>) -> Result<(), Vec<u8>> {
        let Some(port) = self.ports.iter().find(|port| port.host == to) else { return Ok(()) };
        match port.socket.send_to(&frame, &port.machine) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(frame),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::tests::frame;

    /// A switch with two machines played by sockets.
    struct Pair {
        switch: Switch,
        machines: [UnixDatagram; 2],
        _folder: tempfile::TempDir,
    }

    impl Pair {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let switch = Switch::start(folder.path(), 2, 7).unwrap();
            let machines = [1, 2].map(|host| {
                let (machine, own) = switch.sockets(host);
                let socket = UnixDatagram::bind(machine).unwrap();
                socket.connect(own).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                socket
            });
            Self { switch, machines, _folder: folder }
        }

        fn send(&self, from: u8, to: u8, protocol: u8, port: u16, payload: &[u8]) {
            let frame = frame(from, to, protocol, port, payload);
            self.machines[usize::from(from) - 1].send(&frame).unwrap();
        }

        /// The last byte of the next frame at a machine.
        fn next(&self, host: usize) -> u8 {
            let mut buffer = [0; 2000];
            let length = self.machines[host - 1].recv(&mut buffer).unwrap();
            buffer[length - 1]
        }
    }

    const CUT: Fault = Fault {
        cut: true,
        loss: 0.0,
        duplicate: 0.0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
    };

    #[test]
    fn frames_arrive_and_are_counted() {
        let pair = Pair::new();
        pair.send(1, 2, 17, 4791, b"a");
        pair.send(1, 2, 6, 7000, b"b");
        pair.send(2, 1, 17, 4791, b"c");
        assert_eq!((pair.next(2), pair.next(2), pair.next(1)), (b'a', b'b', b'c'));
        let count = pair.switch.count(1, 2);
        assert_eq!((count.rdma_frames, count.tcp_frames, count.lost_frames), (1, 1, 0));
    }

    #[test]
    fn partition_of_rdma_alone_one_way() {
        let pair = Pair::new();
        pair.switch.set(1, 2, Traffic::Rdma, CUT);
        pair.send(1, 2, 17, 4791, b"lost");
        pair.send(1, 2, 6, 7000, b"t");
        pair.send(2, 1, 17, 4791, b"r");
        assert_eq!((pair.next(2), pair.next(1)), (b't', b'r'));
        assert_eq!(pair.switch.count(1, 2).lost_frames, 1);
        pair.switch.heal();
        pair.send(1, 2, 17, 4791, b"h");
        assert_eq!(pair.next(2), b'h');
    }

    #[test]
    fn one_acknowledgement_becomes_a_refusal() {
        let pair = Pair::new();
        let frame = nak::tests::acknowledgement(1, 2);
        pair.switch.fail_pair(1, 2);
        pair.send(1, 2, 17, 4791, b"no acknowledgement");
        assert_eq!(pair.next(2), b't');
        let mut came = Vec::new();
        for _ in 0..2 {
            pair.machines[0].send(&frame).unwrap();
            let mut buffer = [0; 2000];
            let length = pair.machines[1].recv(&mut buffer).unwrap();
            came.push(buffer[..length].to_vec());
        }
        assert_eq!((Some(&came[0]), &came[1]), (nak::refused(&frame).as_ref(), &frame));
        assert_eq!(pair.switch.count(1, 2).refusals, 1);
    }

    #[test]
    fn partition_of_everything_wins_over_a_rule_for_rdma() {
        let pair = Pair::new();
        pair.switch.set(1, 2, Traffic::Rdma, Fault::default());
        pair.switch.set(1, 2, Traffic::All, CUT);
        pair.send(1, 2, 17, 4791, b"lost");
        pair.send(1, 2, 6, 7000, b"lost");
        pair.send(2, 1, 6, 7000, b"x");
        assert_eq!(pair.next(1), b'x');
        let deadline = Instant::now() + Duration::from_secs(10);
        while pair.switch.count(1, 2).lost_frames < 2 {
            assert!(Instant::now() < deadline, "both are lost");
            std::thread::yield_now();
        }
    }

    #[test]
    fn frames_are_duplicated_and_delayed() {
        let pair = Pair::new();
        let delay = Duration::from_millis(30);
        pair.switch.set(1, 2, Traffic::All, Fault { duplicate: 1.0, delay, ..Fault::default() });
        let begin = Instant::now();
        pair.send(1, 2, 6, 7000, b"d");
        assert_eq!((pair.next(2), pair.next(2)), (b'd', b'd'));
        assert!(begin.elapsed() >= delay);
    }

    #[test]
    fn a_share_of_the_frames_is_lost() {
        let pair = Pair::new();
        pair.switch.set(1, 2, Traffic::All, Fault { loss: 0.5, ..Fault::default() });
        for number in 0..200 {
            pair.send(1, 2, 6, 7000, &[number]);
            // Nobody reads here: the way back shows that this one was seen.
            pair.send(2, 1, 6, 7000, &[number]);
            assert_eq!(pair.next(1), number);
        }
        pair.switch.heal();
        let lost = pair.switch.count(1, 2).lost_frames;
        assert!((50..150).contains(&lost), "{lost} of 200 lost at 0.5");
    }

    #[test]
    fn a_slow_machine_loses_nothing() {
        let pair = Pair::new();
        for number in 0..=255 {
            pair.send(1, 2, 6, 7000, &[number]);
        }
        for number in 0..=255 {
            assert_eq!(pair.next(2), number);
        }
    }
}
