//! The guest's side: sets the machine up, then runs what the host asks for.

use crate::machine::{FORWARD_MAC, LAB_MAC};
use crate::rxe::{self, Device, tool};
use crate::wire::{self, Frame, Kind, PIECE_BYTES, PORT, Program, Ready, Status};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, setrlimit};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::Ipv4Addr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The folder shared with the host and all other guests of a lab.
pub const SHARE: &str = "/quorate/share";
/// Where the guest's disk is mounted.
pub const DISK: &str = "/quorate/disk";
/// Where the emulated persistent memory is mounted.
pub const PMEM: &str = "/quorate/pmem";
/// Where the folder for results is mounted.
pub const RESULTS: &str = "/quorate/results";
/// The name of the RDMA device in a guest.
pub const DEVICE: &str = "rxe0";

/// Devices come up within seconds, also under emulation; on a busy machine all takes longer.
const DEVICE_PATIENCE: Duration = Duration::from_secs(120);
/// Output of a program that ended is waited for this long: a grandchild may hold it open.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(20);

/// How a guest is to be set up; in the share, next to the script that starts the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) hosts: u16,
    pub(crate) device: bool,
    pub(crate) disk: bool,
    /// Whether there is persistent memory, and whether it keeps its contents.
    pub(crate) pmem: Option<bool>,
    pub(crate) forwards: bool,
    pub(crate) results: bool,
}

/// The file with the [`Setup`].
pub(crate) const SETUP: &str = "setup.json";

/// The address of a host in its lab.
#[must_use]
pub fn address(host: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 77, 0, 0).to_bits() + u32::from(host))
}

/// Runs until the host says power off.
///
/// # Errors
/// When this is no guest of a lab.
pub fn run() -> Result<()> {
    let command_line = fs::read_to_string("/proc/cmdline")?;
    let host = command_line.split_whitespace().find_map(|word| word.strip_prefix("quorate.host="));
    let host: u16 = host.context("not in a virtual machine of a lab")?.parse()?;
    let input = open_port()?;
    let output = Arc::new(Mutex::new(input.try_clone()?));
    match set_up(host) {
        Ok(ready) => say(&output, Kind::Ready, 0, &serde_json::to_vec(&ready)?),
        Err(error) => say(&output, Kind::Failed, 0, format!("{error:#}").as_bytes()),
    }
    serve(input, &output, host)
}

/// The serial port to the host, found by its name.
fn open_port() -> Result<File> {
    let deadline = Instant::now() + DEVICE_PATIENCE;
    loop {
        let ports = fs::read_dir("/sys/class/virtio-ports").into_iter().flatten();
        for entry in ports.filter_map(Result::ok) {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == PORT {
                let device = Path::new("/dev").join(entry.file_name());
                let port = File::options().read(true).write(true).open(&device);
                return port.with_context(|| format!("cannot open {}", device.display()));
            }
        }
        if Instant::now() > deadline {
            bail!("there is no port to the host");
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn set_up(host: u16) -> Result<Ready> {
    let setup = fs::read(Path::new(SHARE).join(SETUP)).context("cannot read the setup")?;
    let setup: Setup = serde_json::from_slice(&setup).context("the setup")?;
    // Memory that a device may write is pinned; as root of the guest we may pin all of it.
    let unlimited = Rlimit { current: None, maximum: None };
    setrlimit(Resource::Memlock, unlimited).context("cannot lift the limit of pinned memory")?;
    tool("ip", &["link", "set", "lo", "up"])?;
    let own = address(host);
    let netdev = if setup.hosts > 1 {
        let netdev = netdev(&format!("{LAB_MAC}:{host:02x}"))?;
        interface(&netdev, &format!("{own}/24"))?;
        netdev
    } else {
        rxe::up("d0", own)?;
        "d0".to_owned()
    };
    if setup.forwards {
        interface(&netdev_of_forwards(host)?, "10.0.2.15/24")?;
    }
    let device = match setup.device {
        true => Some(rxe::create(DEVICE, &netdev, own)?),
        false => None,
    };
    if setup.results {
        fs::create_dir_all(RESULTS)?;
        let options = "trans=virtio,version=9p2000.L,msize=512000,cache=none";
        tool("mount", &["-t", "9p", "-o", options, "results", RESULTS])?;
    }
    if setup.disk {
        mount("/dev/vda", DISK, &[])?;
    }
    if let Some(kept) = setup.pmem {
        pmem(kept).context("the emulated persistent memory")?;
    }
    let uptime = fs::read_to_string("/proc/uptime")?;
    Ok(Ready {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().into(),
        gid_index: device.as_ref().map_or(0, |device: &Device| device.gid_index),
        device: device.map(|device| device.name),
        seconds: uptime.split_whitespace().next().and_then(|s| s.parse().ok()).unwrap_or(0.0),
    })
}

fn netdev_of_forwards(host: u16) -> Result<String> {
    netdev(&format!("{FORWARD_MAC}:{host:02x}"))
}

/// The interface with this hardware address.
fn netdev(mac: &str) -> Result<String> {
    for entry in fs::read_dir("/sys/class/net")?.filter_map(Result::ok) {
        let address = fs::read_to_string(entry.path().join("address")).unwrap_or_default();
        if address.trim() == mac {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    bail!("there is no network interface {mac}")
}

fn interface(netdev: &str, address: &str) -> Result<()> {
    tool("ip", &["address", "add", address, "dev", netdev])?;
    tool("ip", &["link", "set", netdev, "up"]).map(drop)
}

fn mount(device: &str, place: &str, options: &[&str]) -> Result<()> {
    fs::create_dir_all(place)?;
    let mut arguments = vec!["-t", "ext4"];
    arguments.extend(options);
    arguments.extend([device, place]);
    tool("mount", &arguments).map(drop)
}

/// Makes a file system with direct access on the persistent memory, where there is none yet.
fn pmem(kept: bool) -> Result<()> {
    const DEVICE: &str = "/dev/pmem0";
    let namespace = "/sys/bus/nd/devices/namespace0.0";
    // What ndctl calls fsdax is `memory` to the kernel.
    let mapped =
        fs::read_to_string(format!("{namespace}/mode")).is_ok_and(|m| m.trim() == "memory");
    if kept && !mapped {
        // Only here, where the memory is new: it loses what was on it.
        if fs::exists(DEVICE)? && has_file_system(DEVICE)? {
            bail!("{DEVICE} holds a file system in a namespace without direct access");
        }
        tool("ndctl", &["create-namespace", "-f", "-e", "namespace0.0", "-m", "fsdax"])?;
    }
    let deadline = Instant::now() + DEVICE_PATIENCE;
    while !fs::exists(DEVICE)? {
        if Instant::now() > deadline {
            bail!("there is no {DEVICE}");
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    if !has_file_system(DEVICE)? {
        tool("mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096", DEVICE])?;
    }
    mount(DEVICE, PMEM, &["-o", "dax=always"])
}

/// Whether the magic number of ext4 is where its superblock has it.
fn has_file_system(device: &str) -> Result<bool> {
    let mut magic = [0; 2];
    let mut file = File::open(device)?;
    file.seek(SeekFrom::Start(1024 + 0x38))?;
    file.read_exact(&mut magic)?;
    Ok(magic == [0x53, 0xef])
}

type Output = Arc<Mutex<File>>;

fn say(output: &Output, kind: Kind, id: u32, payload: &[u8]) {
    let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
    // Without the host there is nobody to tell.
    let _ = wire::write(&mut *output, kind, id, payload);
}

/// The process groups of what runs, by the host's number for it.
type Groups = Arc<Mutex<BTreeMap<u32, Pid>>>;

fn serve(mut input: File, output: &Output, host: u16) -> Result<()> {
    let groups = Groups::default();
    loop {
        let Frame { kind, id, payload } = wire::read(&mut input).context("the host is gone")?;
        match kind {
            Kind::Run => {
                let program = serde_json::from_slice(&payload).context("a program to run")?;
                start(program, host, id, output, &groups);
            }
            Kind::Signal => {
                let number = payload.try_into().map(i32::from_le_bytes).ok();
                let signal = number.and_then(Signal::from_named_raw);
                let group = groups.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied();
                if let (Some(signal), Some(group)) = (signal, group) {
                    // One that just ended needs none.
                    let _ = kill_process_group(group, signal);
                }
            }
            Kind::PowerOff => {
                for place in [DISK, PMEM] {
                    // Where something still runs, writing back has to do.
                    let _ = tool("umount", &[place]);
                }
                rustix::fs::sync();
                rustix::system::reboot(rustix::system::RebootCommand::PowerOff)?;
            }
            _ => bail!("the host sent what only a guest sends"),
        }
    }
}

fn start(program: Program, host: u16, id: u32, output: &Output, groups: &Groups) {
    let refuse = |why: String| {
        let status = serde_json::to_vec(&Status::NotStarted(why)).unwrap_or_default();
        say(output, Kind::Exit, id, &status);
    };
    let Some((name, arguments)) = program.argv.split_first() else {
        return refuse("no program".into());
    };
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env("QUORATE_HOST", host.to_string())
        .envs(program.environment)
        .current_dir(program.directory.as_deref().unwrap_or("/"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return refuse(format!("{name}: {error}")),
    };
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        groups.lock().unwrap_or_else(PoisonError::into_inner).insert(id, pid);
    }
    let (output, groups) = (Arc::clone(output), Arc::clone(groups));
    std::thread::spawn(move || {
        let status = follow(child, id, &output);
        groups.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let status = serde_json::to_vec(&status).unwrap_or_default();
        say(&output, Kind::Exit, id, &status);
    });
}

/// Passes on what a program says until it ended.
fn follow(mut child: Child, id: u32, output: &Output) -> Status {
    let (done, ends) = channel();
    if let Some(stdout) = child.stdout.take() {
        pump(stdout, Kind::Stdout, id, output, done.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        pump(stderr, Kind::Stderr, id, output, done);
    }
    let status = child.wait();
    let deadline = Instant::now() + OUTPUT_PATIENCE;
    for _ in 0..2 {
        // Whoever holds the output open beyond the end of the program is not waited for.
        let _ = ends.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Status::Code(code),
            (None, signal) => Status::Signal(signal.unwrap_or(0)),
        },
        Err(error) => Status::NotStarted(error.to_string()),
    }
}

fn pump(mut from: impl Read + Send + 'static, kind: Kind, id: u32, to: &Output, done: Sender<()>) {
    let to = Arc::clone(to);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            say(&to, kind, id, &buffer[..length]);
        }
        // After the deadline nobody waits for it.
        let _ = done.send(());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_addresses() {
        assert_eq!(address(1), Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(address(3), Ipv4Addr::new(10, 77, 0, 3));
    }
}
