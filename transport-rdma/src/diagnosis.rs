//! What this machine has for RDMA, for an operator: devices, ports, addresses, limits, the fence.

use crate::torture::{self, Fence};
use crate::{Adapter, AdapterOptions, STAGING_BYTES};
use quorate_ffi::memory::SharedMemory;
use quorate_ffi::verbs::{Access, Gid, Library, PortState, QueueDepths, VerbsError, memlock_limit};

/// Rounds of the fence torture test.
const ROUNDS: u32 = 30;
/// Bytes of its writes: enough packets that a fence comes in the middle of one.
const TORTURE_BYTES: usize = 64 << 10;
/// What a replica pins with default settings for two peers: a ring for each, and the staging memory.
const PINNED_BYTES: usize = 2 * (16 << 20) + STAGING_BYTES;

/// One line of a diagnosis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Whether it stands in the way of RDMA.
    pub good: bool,
    /// What was found, and what to do if it is not good.
    pub text: String,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Diagnosis {
    /// In the order they were looked at.
    pub lines: Vec<Line>,
    /// Devices that the transport can use.
    pub usable: Vec<String>,
    /// Of these, those on which deregistration was shown to hold as a fence.
    pub fenced: Vec<String>,
}

impl Diagnosis {
    fn good(&mut self, text: String) {
        self.lines.push(Line { good: true, text });
    }

    fn bad(&mut self, text: String) {
        self.lines.push(Line { good: false, text });
    }
}

/// Looks at everything; the fence is tried only `thoroughly`, which takes some seconds a device.
#[must_use]
pub fn diagnose(thoroughly: bool) -> Diagnosis {
    match Library::load() {
        Ok(library) => diagnose_with(&library, None, thoroughly),
        Err(error) => {
            let mut found = Diagnosis::default();
            found.bad(error.to_string());
            found
        }
    }
}

/// As [`diagnose`], of a library that is loaded already, and of one device if it is named.
#[must_use]
pub fn diagnose_with(library: &Library, only: Option<&str>, thoroughly: bool) -> Diagnosis {
    let mut found = Diagnosis::default();
    found.good("libibverbs is there".into());
    let names = match library.device_names() {
        Ok(names) => names,
        Err(error) => {
            found.bad(error.to_string());
            return found;
        }
    };
    for name in names.iter().filter(|name| only.is_none_or(|only| only == *name)) {
        match device(library, name, thoroughly, &mut found) {
            Ok(true) => found.usable.push(name.clone()),
            Ok(false) => {}
            Err(error) => found.bad(format!("{name}: {error}")),
        }
    }
    found
}

/// Whether the transport can use the device.
fn device(
    library: &Library,
    name: &str,
    thoroughly: bool,
    found: &mut Diagnosis,
) -> Result<bool, VerbsError> {
    let options = AdapterOptions { device: Some(name.to_owned()), ..AdapterOptions::default() };
    let adapter = Adapter::open(library, &options)?;
    let limits = adapter.device().limits()?;
    found.good(format!(
        "{name}: {} ports, {} requests a queue, {} pieces a request",
        limits.ports, limits.queue_depth, limits.pieces
    ));
    let gids = adapter.device().gids()?;
    let mut active = false;
    for number in 1..=limits.ports {
        let port = adapter.device().port(number)?;
        let of_port = gids.iter().filter(|gid| gid.port == number);
        let of_port = of_port.map(Gid::to_string).collect::<Vec<_>>().join(", ");
        let link = if port.ethernet { "Ethernet (RoCE)" } else { "InfiniBand" };
        match port.state {
            PortState::Active => {
                active = true;
                let mtu = port.mtu;
                let hint =
                    if mtu < 4096 { "; 4096 takes an interface MTU of 4200 or more" } else { "" };
                found.good(format!(
                    "{name} port {number}: active, {link}, packets of {mtu} bytes{hint}; GIDs {of_port}"
                ));
            }
            PortState::Other(state) => found.bad(format!(
                "{name} port {number}: {state}, {link}: bring its network interface up; lanes go \
                 over TCP meanwhile"
            )),
        }
    }
    let path = match adapter.path() {
        Ok(path) => path,
        Err(error) => {
            found.bad(error.to_string());
            return Ok(false);
        }
    };
    found.good(format!("{name}: would use port {}, GID {}", path.port.number, path.gid));
    pin(&adapter, name, found)?;
    inline(&adapter, name, found)?;
    if thoroughly && active {
        fence(library, &options, name, found)?;
    }
    Ok(active)
}

fn pin(adapter: &Adapter, name: &str, found: &mut Diagnosis) -> Result<(), VerbsError> {
    let memory = SharedMemory::new(PINNED_BYTES)
        .map_err(|source| VerbsError::Register { length: PINNED_BYTES, source })?;
    drop(adapter.domain().register(&memory, Access::RemoteWrite)?);
    found.good(format!(
        "{name}: {} MiB can be pinned (two peers with rings of 16 MiB); the limit of locked memory is {}",
        PINNED_BYTES >> 20,
        memlock_limit()
    ));
    Ok(())
}

fn inline(adapter: &Adapter, name: &str, found: &mut Diagnosis) -> Result<(), VerbsError> {
    let queue = adapter.device().completion_queue(16, None)?;
    let mut granted = None;
    for inline_bytes in [512, 256, 128, 64, 32] {
        let depths = QueueDepths { sends: 16, receives: 1, pieces: 16, inline_bytes };
        if adapter.domain().queue_pair(&queue, depths).is_ok() {
            granted = Some(inline_bytes);
            break;
        }
    }
    match granted {
        Some(bytes) => found.good(format!("{name}: at least {bytes} bytes go inline")),
        None => {
            found.bad(format!("{name}: no queue pair with inline data of 32 bytes can be made"))
        }
    }
    Ok(())
}

fn fence(
    library: &Library,
    options: &AdapterOptions,
    name: &str,
    found: &mut Diagnosis,
) -> Result<(), VerbsError> {
    let run = |fence| torture::run(library, options, fence, TORTURE_BYTES, ROUNDS);
    let (holds, control) = (run(Fence::Deregister)?, run(Fence::AccessFlags)?);
    let text = format!(
        "{name}: fence by deregistration: {} late landings in {} rounds, {} left half a write \
         (control, by access flags: {} late in {})",
        holds.late, holds.rounds, holds.torn, control.late, control.rounds
    );
    if holds.late == 0 && holds.rounds > 0 {
        found.good(text);
        found.fenced.push(name.to_owned());
    } else {
        found.bad(format!("{text}: do not trust this device's fence"));
    }
    Ok(())
}
