//! Why the verbs refuse, each with what to do.

use std::fmt::Write as _;
use std::io;

/// A refusal of the library or of a device.
#[derive(Debug, thiserror::Error)]
pub enum VerbsError {
    /// The library is not installed, or is too old.
    #[error(
        "no RDMA here: {library} cannot be used ({why}). Install it (Debian: `apt-get install \
         rdma-core libibverbs1 ibverbs-providers`), or use transport = \"tcp\""
    )]
    NoLibrary {
        /// Its file name.
        library: &'static str,
        /// What the loader said.
        why: String,
    },
    /// The kernel knows no RDMA, or the library sees no device.
    #[error(
        "no RDMA here: there is no device ({why}). Load the driver of the card, or make a software \
         device: `modprobe rdma_rxe && rdma link add rxe0 type rxe netdev eth0`; `rdma link` shows \
         what is there"
    )]
    NoDevice {
        /// What the system said.
        why: String,
    },
    /// Another device was asked for than there is.
    #[error("there is no RDMA device \"{asked}\": there is {}", list(.present))]
    UnknownDevice {
        /// What was asked for.
        asked: String,
        /// What is there.
        present: Vec<String>,
    },
    /// The device is there and does not open.
    #[error(
        "the RDMA device {device} does not open: {source}. Is /dev/infiniband/uverbs* readable and \
         writable for this user, and the module ib_uverbs loaded?"
    )]
    Open {
        /// Its name.
        device: String,
        /// What the system said.
        source: io::Error,
    },
    /// The port does not carry traffic.
    #[error(
        "port {port} of {device} is {state}: bring its network interface up (`rdma link` and `ip \
         link` show it) or choose another port"
    )]
    PortDown {
        /// Of which device.
        device: String,
        /// From 1.
        port: u8,
        /// In words.
        state: &'static str,
    },
    /// There is no such address on the port.
    #[error(
        "port {port} of {device} has no GID {asked}; it has {}. A RoCE v2 GID appears when its \
         network interface has an IP address (`rdma link`, `ip address`); choose one by its index",
        list(.present)
    )]
    NoGid {
        /// Of which device.
        device: String,
        /// From 1.
        port: u8,
        /// What was looked for.
        asked: String,
        /// What is there.
        present: Vec<String>,
    },
    /// Memory cannot be pinned for the device.
    #[error(
        "{length} bytes cannot be pinned for the device: the limit of locked memory is {limit}. \
         Raise it (`ulimit -l unlimited`, LimitMEMLOCK=infinity in the unit, memlock in \
         limits.conf), or make the rings smaller"
    )]
    Memlock {
        /// What was asked for.
        length: usize,
        /// What this process may lock, as the system says it.
        limit: String,
    },
    /// The device refuses memory for another reason.
    #[error("the device refuses {length} bytes of memory: {source}")]
    Register {
        /// What was asked for.
        length: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The device keeps memory that it should give back: it may still be written.
    #[error("the device does not give {length} bytes of memory back: {source}")]
    Deregister {
        /// What was to be given back.
        length: usize,
        /// What the system said.
        source: io::Error,
    },
    /// An object cannot be made.
    #[error("the device cannot make a {what}: {source}")]
    Create {
        /// Which kind.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A queue pair cannot go into its next state.
    #[error("the queue pair cannot become {to}: {source}{}", hint(.source))]
    Modify {
        /// Which state.
        to: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A query failed.
    #[error("the device does not answer about its {what}: {source}")]
    Query {
        /// What was asked for.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The completion queue cannot be read: it overran, or the device is gone.
    #[error(
        "the completion queue cannot be read ({0}): it overran, or the device is gone. Every queue \
         pair on it is lost and is built again"
    )]
    CompletionQueue(i32),
}

fn list(present: &[String]) -> String {
    if present.is_empty() { "none".into() } else { present.join(", ") }
}

fn hint(source: &io::Error) -> &'static str {
    // ENETUNREACH, EHOSTUNREACH, ETIMEDOUT: address resolution on the way to ready-to-receive.
    match source.raw_os_error() {
        Some(101 | 110 | 113) => {
            ". The peer's GID cannot be resolved: do both ends use GIDs of the same network and \
             version (RoCE v2)?"
        }
        Some(22) => ". Do the path MTU and the GID fit the port?",
        _ => "",
    }
}

/// What this process may lock in memory, as the system says it.
#[must_use]
pub fn memlock_limit() -> String {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    let mut text = soft.unwrap_or("not known").to_owned();
    if text.parse::<u64>().is_ok() {
        // Writing into a string cannot fail.
        let _ = write!(text, " bytes");
    }
    text
}

pub(super) fn registration(length: usize, source: io::Error) -> VerbsError {
    // ENOMEM is what exceeding RLIMIT_MEMLOCK gives (ibv_reg_mr(3), mlock(2)); EAGAIN on some.
    match source.raw_os_error() {
        Some(11 | 12) => VerbsError::Memlock { length, limit: memlock_limit() },
        _ => VerbsError::Register { length, source },
    }
}
