//! Virtual machines as hosts, and what can happen to hosts and to the network between them.

use crate::agent::{self, SETUP, Setup};
use crate::guest::{Guest, Output, Running};
use crate::initramfs;
use crate::kernel::Kernel;
use crate::machine::{self, Accelerator, Machine, Parts, Pmem};
use crate::needs;
use crate::switch::Switch;
use crate::wire::{Program, Ready};
use anyhow::{Context, Result, bail};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Hosts of one lab at the most.
pub const HOSTS_MAX: u16 = 9;
/// How long a machine may take from power on until it is set up.
const BOOT_PATIENCE: Duration = Duration::from_secs(240);
/// How long a machine that was told to power off may take to write everything back.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(20);
/// How long a guest may take for a command that changes its interfaces.
const GUEST_PATIENCE: Duration = Duration::from_secs(240);
/// RDMA packets of 4096 bytes and their headers fit.
const MTU: u32 = 4500;

/// What every machine needs, in the order of loading.
const MODULES: [&str; 6] =
    ["virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay", "crc32c_generic"];
const NETWORK_MODULES: [&str; 1] = ["virtio_net"];
const DEVICE_MODULES: [&str; 5] = ["crc32_generic", "dummy", "rdma_rxe", "ib_uverbs", "rdma_ucm"];
const DISK_MODULES: [&str; 2] = ["virtio_blk", "ext4"];
const PMEM_MODULES: [&str; 4] = ["ext4", "nd_e820", "nfit", "nd_pmem"];

/// What a lab consists of.
#[derive(Clone, Debug)]
pub struct Builder {
    hosts: u16,
    memory_mebibytes: u32,
    processors: u32,
    device: bool,
    disk_mebibytes: u32,
    pmem: Option<Pmem>,
    forwards: Vec<u16>,
    results: Option<PathBuf>,
    accelerator: Option<Accelerator>,
    agent: PathBuf,
    seed: u64,
}

impl Builder {
    /// One host with Soft-RoCE, one processor and 768 MiB. `agent` is the `quorate-soft-roce` program, which
    /// runs in the guest too.
    #[must_use]
    pub fn new(agent: impl Into<PathBuf>) -> Self {
        Self {
            hosts: 1,
            memory_mebibytes: 768,
            processors: 1,
            device: true,
            disk_mebibytes: 0,
            pmem: None,
            forwards: Vec::new(),
            results: None,
            accelerator: None,
            agent: agent.into(),
            seed: 1,
        }
    }

    /// How many hosts, 1 to 9.
    #[must_use]
    pub fn hosts(mut self, hosts: u16) -> Self {
        self.hosts = hosts;
        self
    }

    /// Memory of each host.
    #[must_use]
    pub fn memory_mebibytes(mut self, mebibytes: u32) -> Self {
        self.memory_mebibytes = mebibytes;
        self
    }

    /// Processors of each host.
    #[must_use]
    pub fn processors(mut self, processors: u32) -> Self {
        self.processors = processors;
        self
    }

    /// Whether hosts have an RDMA device.
    #[must_use]
    pub fn device(mut self, device: bool) -> Self {
        self.device = device;
        self
    }

    /// A disk for each host, mounted at [`agent::DISK`], which survives the host within the lab.
    #[must_use]
    pub fn disk_mebibytes(mut self, mebibytes: u32) -> Self {
        self.disk_mebibytes = mebibytes;
        self
    }

    /// Emulated persistent memory for each host, mounted at [`agent::PMEM`]. With several hosts, `.1`, `.2` …
    /// is appended to the name of a file.
    #[must_use]
    pub fn pmem(mut self, pmem: Pmem) -> Self {
        self.pmem = Some(pmem);
        self
    }

    /// A TCP port of the guests that is to be reached from here: [`Host::forwarded`] says where.
    #[must_use]
    pub fn forward(mut self, port: u16) -> Self {
        self.forwards.push(port);
        self
    }

    /// A folder of this machine that guests may write, mounted at `/quorate/results`.
    #[must_use]
    pub fn results(mut self, folder: impl Into<PathBuf>) -> Self {
        self.results = Some(folder.into());
        self
    }

    /// What runs the guests; by default KVM where a probe shows that it works.
    #[must_use]
    pub fn accelerator(mut self, accelerator: Accelerator) -> Self {
        self.accelerator = Some(accelerator);
        self
    }

    /// The seed of the network's faults.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Boots all hosts at the same time and waits until they are set up.
    ///
    /// # Errors
    /// What is missing here and how to get it; why a machine did not come up, with the end of its console.
    pub fn start(self) -> Result<Lab> {
        if self.hosts == 0 || self.hosts > HOSTS_MAX {
            bail!("a lab has 1 to {HOSTS_MAX} hosts, not {}", self.hosts);
        }
        if let Some(Pmem::Volatile { mebibytes } | Pmem::Kept { mebibytes, .. }) = &self.pmem
            && (*mebibytes == 0 || mebibytes % 16 != 0)
        {
            bail!("persistent memory has a multiple of 16 MiB, not {mebibytes}");
        }
        let found = needs::look();
        if !found.complete() {
            bail!(found.complaint());
        }
        if matches!(self.pmem, Some(Pmem::Kept { .. })) && needs::place("ndctl").is_none() {
            bail!("persistent memory in a file needs ndctl: apt-get install ndctl");
        }
        let kernel = found.kernel.context("no kernel")?;
        let accelerator = match self.accelerator {
            Some(accelerator) => accelerator,
            None => machine::accelerator(&kernel)?,
        };
        remove_leftovers();
        let prefix = format!("{FOLDER_PREFIX}{}-", std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        let switch = match self.hosts {
            1 => None,
            hosts => Some(Switch::start(folder.path(), hosts, self.seed)?),
        };
        let share = folder.path().join("share");
        fs::create_dir(&share)?;
        self.fill_share(&share, &kernel)?;
        let initramfs = folder.path().join("initramfs");
        let modules = kernel.modules(&self.modules())?;
        initramfs::build(initramfs::MAIN_SCRIPT, &modules, &initramfs)?;
        let mut hosts = Vec::new();
        for number in 1..=self.hosts {
            hosts.push(Host::new(number, &self, folder.path())?);
        }
        let shared =
            Shared { builder: self, kernel, accelerator, share, initramfs, _folder: folder };
        let lab = Lab { hosts, switch, shared };
        lab.boot(&lab.hosts.iter().collect::<Vec<_>>())?;
        Ok(lab)
    }

    fn modules(&self) -> Vec<&'static str> {
        let mut modules = MODULES.to_vec();
        if self.hosts > 1 || !self.forwards.is_empty() {
            modules.extend(NETWORK_MODULES);
        }
        if self.device {
            modules.extend(DEVICE_MODULES);
        } else if self.hosts == 1 {
            modules.push("dummy");
        }
        if self.disk_mebibytes > 0 {
            modules.extend(DISK_MODULES);
        }
        if self.pmem.is_some() {
            modules.extend(PMEM_MODULES);
        }
        modules
    }

    /// What a guest reads when it comes up.
    fn fill_share(&self, share: &Path, kernel: &Kernel) -> Result<()> {
        let setup = Setup {
            hosts: self.hosts,
            device: self.device,
            disk: self.disk_mebibytes > 0,
            pmem: self.pmem.as_ref().map(|pmem| matches!(pmem, Pmem::Kept { .. })),
            forwards: !self.forwards.is_empty(),
            results: self.results.is_some(),
        };
        fs::write(share.join(SETUP), serde_json::to_vec(&setup)?)?;
        let modules = fs::canonicalize(&kernel.modules)?;
        fs::write(share.join("modules"), modules.to_str().context("the cache's name")?)?;
        let agent = fs::canonicalize(&self.agent)
            .with_context(|| format!("there is no {}", self.agent.display()))?;
        let agent = agent.to_str().context("the program's name")?.replace('\'', r"'\''");
        let script = format!(
            "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n\
             '{agent}' agent\n\
             echo \"the agent ended: $?\"\n\
             echo o >/proc/sysrq-trigger\nsleep 60\n"
        );
        fs::write(share.join("boot"), script)?;
        Ok(())
    }
}

/// A lab's folder is called this, and the process that made it.
const FOLDER_PREFIX: &str = "quorate-lab-";

/// Removes the folders of labs whose process was killed.
fn remove_leftovers() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(FOLDER_PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Somebody else's stays.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[derive(Debug)]
struct Shared {
    builder: Builder,
    kernel: Kernel,
    accelerator: Accelerator,
    share: PathBuf,
    initramfs: PathBuf,
    /// All files of the lab; removed with it.
    _folder: tempfile::TempDir,
}

/// Hosts that run. Dropping it cuts their power and removes all their files.
#[derive(Debug)]
pub struct Lab {
    hosts: Vec<Host>,
    switch: Option<Switch>,
    shared: Shared,
}

impl Lab {
    /// Host `number`, from 1.
    ///
    /// # Panics
    /// When there is no such host.
    #[must_use]
    pub fn host(&self, number: u16) -> &Host {
        &self.hosts[usize::from(number) - 1]
    }

    /// All hosts.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The network between the hosts.
    ///
    /// # Panics
    /// When there is one host only.
    #[must_use]
    pub fn network(&self) -> &Switch {
        self.switch.as_ref().expect("a lab of one host has no network")
    }

    /// What runs the guests.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.shared.accelerator
    }

    /// The folder of this machine that guests see at [`agent::SHARE`].
    #[must_use]
    pub fn share(&self) -> &Path {
        &self.shared.share
    }

    /// Boots a host again after its power was cut. Its disk and kept memory are as they were.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&self, number: u16) -> Result<()> {
        let host = self.host(number);
        host.kill();
        self.boot(&[host])
    }

    /// Cuts the power of all hosts where it is on, and boots them together.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn restart_all(&self) -> Result<()> {
        self.hosts.iter().for_each(Host::kill);
        self.boot(&self.hosts.iter().collect::<Vec<_>>())
    }

    fn boot(&self, hosts: &[&Host]) -> Result<()> {
        let mut listeners = Vec::new();
        for host in hosts {
            listeners.push(host.power_on(&self.shared, self.switch.as_ref())?);
        }
        let deadline = Instant::now() + BOOT_PATIENCE;
        for (host, listener) in hosts.iter().zip(&listeners) {
            host.come_up(listener, deadline)
                .with_context(|| format!("host {}:\n{}", host.number, host.console_end()))?;
        }
        Ok(())
    }

    /// Asks all hosts to write everything back and to power off, and cuts the power of those that do not.
    pub fn power_off(self) {
        for host in &self.hosts {
            if let Some(guest) = host.guest().as_ref() {
                // One that is gone is off.
                let _ = guest.power_off();
            }
        }
        for host in &self.hosts {
            if let Some(machine) = host.machine().as_mut() {
                machine.wait(POWER_OFF_PATIENCE);
            }
        }
    }
}

/// One host.
#[derive(Debug)]
pub struct Host {
    number: u16,
    machine: Mutex<Option<Machine>>,
    guest: Mutex<Option<Arc<Guest>>>,
    control: PathBuf,
    console: PathBuf,
    errors: PathBuf,
    disk: Option<PathBuf>,
    pmem: Option<Pmem>,
    /// Port here, port in the guest.
    forwards: Vec<(u16, u16)>,
}

impl Host {
    fn new(number: u16, builder: &Builder, folder: &Path) -> Result<Self> {
        let file = |name: &str| folder.join(format!("{name}{number}"));
        let disk = (builder.disk_mebibytes > 0).then(|| file("disk"));
        if let Some(disk) = &disk {
            machine::make_disk(disk, builder.disk_mebibytes)?;
        }
        let pmem = match builder.pmem.clone() {
            Some(Pmem::Kept { file, mebibytes }) if builder.hosts > 1 => {
                let mut name = file.into_os_string();
                name.push(format!(".{number}"));
                Some(Pmem::Kept { file: name.into(), mebibytes })
            }
            other => other,
        };
        // All are held until each has one, so that none is given twice.
        let held: Vec<TcpListener> = builder
            .forwards
            .iter()
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<Result<_, _>>()?;
        let mut forwards = Vec::new();
        for (listener, port) in held.iter().zip(&builder.forwards) {
            forwards.push((listener.local_addr()?.port(), *port));
        }
        Ok(Self {
            number,
            machine: Mutex::default(),
            guest: Mutex::default(),
            control: file("c"),
            console: file("console"),
            errors: file("emulator"),
            disk,
            pmem,
            forwards,
        })
    }

    fn machine(&self) -> MutexGuard<'_, Option<Machine>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guest(&self) -> MutexGuard<'_, Option<Arc<Guest>>> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn power_on(&self, shared: &Shared, switch: Option<&Switch>) -> Result<UnixListener> {
        // From the life before.
        let _ = fs::remove_file(&self.control);
        let listener = UnixListener::bind(&self.control).context("the control channel's socket")?;
        let network = switch.map(|switch| switch.sockets(self.number));
        if let Some((own, _)) = &network {
            let _ = fs::remove_file(own);
        }
        let parts = Parts {
            kernel: &shared.kernel,
            initramfs: &shared.initramfs,
            accelerator: shared.accelerator,
            memory_mebibytes: shared.builder.memory_mebibytes,
            processors: shared.builder.processors,
            host: self.number,
            share: &shared.share,
            results: shared.builder.results.as_deref(),
            console: &self.console,
            control: &self.control,
            disk: self.disk.as_deref(),
            pmem: self.pmem.as_ref(),
            network,
            mtu: MTU,
            forwards: &self.forwards,
        };
        *self.machine() = Some(parts.start(&self.errors)?);
        Ok(listener)
    }

    fn come_up(&self, listener: &UnixListener, deadline: Instant) -> Result<()> {
        let alive = || self.machine().as_mut().is_some_and(|machine| !machine.ended());
        let guest = Guest::accept(listener, deadline, alive)?;
        let ports: Vec<u16> = self.forwards.iter().map(|(here, _)| *here).collect();
        if let Some(machine) = self.machine().as_ref().filter(|_| !ports.is_empty()) {
            // Where that is not allowed, many connections at once take their time.
            machine.widen(&ports).unwrap_or_else(|error| eprintln!("forwarded ports: {error:#}"));
        }
        *self.guest() = Some(Arc::new(guest));
        Ok(())
    }

    /// The last lines of what the emulator and the guest's kernel said.
    #[must_use]
    pub fn console_end(&self) -> String {
        let mut text = fs::read_to_string(&self.errors).unwrap_or_default();
        text += &String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default());
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Its number, from 1.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Its address in the lab.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        agent::address(self.number)
    }

    /// What it said of itself when it was set up.
    ///
    /// # Errors
    /// When its power is off.
    pub fn ready(&self) -> Result<Ready> {
        Ok(self.up()?.ready.clone())
    }

    /// Where a forwarded port of the guest is reached from here.
    ///
    /// # Panics
    /// When the lab was not told to forward this port.
    #[must_use]
    pub fn forwarded(&self, port: u16) -> SocketAddr {
        let (here, _) = self
            .forwards
            .iter()
            .find(|(_, there)| *there == port)
            .expect("only ports that were named to the builder are forwarded");
        (Ipv4Addr::LOCALHOST, *here).into()
    }

    fn up(&self) -> Result<Arc<Guest>> {
        self.guest().clone().with_context(|| format!("the power of host {} is off", self.number))
    }

    /// Starts a program.
    ///
    /// # Errors
    /// When the host's power is off.
    pub fn spawn(&self, program: &Program) -> Result<Running> {
        self.up()?.spawn(program)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// When it takes longer than `limit`, or the machine goes.
    pub fn run(&self, program: &Program, limit: Duration) -> Result<Output> {
        self.spawn(program)?
            .wait(limit)
            .with_context(|| format!("host {}: {}", self.number, program.argv.join(" ")))
    }

    /// Runs a line of shell to its end and returns what it wrote.
    ///
    /// # Errors
    /// As [`run`](Self::run), and when it fails.
    pub fn shell(&self, line: &str, limit: Duration) -> Result<String> {
        self.run(&Program::shell(line), limit)?
            .success()
            .with_context(|| format!("host {}: {line}", self.number))
    }

    /// Cuts the power.
    pub fn kill(&self) {
        *self.guest() = None;
        *self.machine() = None;
    }

    /// Stops its time.
    ///
    /// # Errors
    /// When its power is off.
    pub fn pause(&self) -> Result<()> {
        self.machine().as_mut().context("the power is off")?.pause(true)
    }

    /// Lets its time go on.
    ///
    /// # Errors
    /// When its power is off.
    pub fn resume(&self) -> Result<()> {
        self.machine().as_mut().context("the power is off")?.pause(false)
    }

    /// Takes the interface to the other hosts down, or up again, as if somebody pulled the cable.
    ///
    /// # Errors
    /// When the guest refuses.
    pub fn interface(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        self.shell(&format!("ip link set {} {state}", self.netdev()?), GUEST_PATIENCE)?;
        Ok(())
    }

    /// Shapes what the guest sends to the other hosts, in its own kernel: arguments of tc-netem(8), such as
    /// `delay 5ms 2ms loss 1%`; none ends it.
    ///
    /// # Errors
    /// When the guest refuses.
    pub fn netem(&self, arguments: Option<&str>) -> Result<()> {
        let netdev = self.netdev()?;
        let line = match arguments {
            Some(arguments) => {
                format!(
                    "modprobe sch_netem && tc qdisc replace dev {netdev} root netem {arguments}"
                )
            }
            None => format!("tc qdisc delete dev {netdev} root"),
        };
        self.shell(&line, GUEST_PATIENCE).map(drop)
    }

    /// Takes the RDMA device away, or brings it back: programs see a fatal error of the device.
    ///
    /// # Errors
    /// When the guest refuses.
    pub fn device(&self, present: bool) -> Result<()> {
        let name = agent::DEVICE;
        let line = match present {
            true => format!("rdma link add {name} type rxe netdev {}", self.netdev()?),
            false => format!("rdma link delete {name}"),
        };
        self.shell(&line, GUEST_PATIENCE).map(drop)
    }

    /// The guest's interface that has its address.
    fn netdev(&self) -> Result<String> {
        let line = format!("ip -brief address show to {}/32 | cut -d' ' -f1", self.address());
        let name = self.shell(&line, GUEST_PATIENCE)?;
        // `eth0@if3` is how a paired interface would look.
        Ok(name.trim().split('@').next().unwrap_or_default().to_owned())
    }
}
