//! One virtual machine as a process of the emulator, which never outlives this one.

use crate::kernel::Kernel;
use crate::needs::{self, EMULATOR};
use anyhow::{Context, Result, bail};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open,
};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

/// What runs the guest's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// Software emulation: 10 to 30 times slower, works everywhere.
    Tcg,
}

/// Where an emulated persistent memory keeps its contents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pmem {
    /// In the machine's memory: gone with it.
    Volatile {
        /// Its size.
        mebibytes: u32,
    },
    /// In a file: there again in the next machine, also after a kill.
    Kept {
        /// The file; made when it is not there.
        file: PathBuf,
        /// Its size, a multiple of 16; the label area comes on top.
        mebibytes: u32,
    },
}

/// Size of the label area that makes a kept memory usable for DAX.
const LABEL_MEBIBYTES: u32 = 16;

/// What a machine is made of.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) initramfs: &'a Path,
    pub(crate) accelerator: Accelerator,
    pub(crate) memory_mebibytes: u32,
    pub(crate) processors: u32,
    pub(crate) host: u16,
    /// Everything below is in the lab's folder.
    pub(crate) share: &'a Path,
    pub(crate) results: Option<&'a Path>,
    pub(crate) console: &'a Path,
    pub(crate) control: &'a Path,
    pub(crate) disk: Option<&'a Path>,
    pub(crate) pmem: Option<&'a Pmem>,
    /// The sockets of the machine and of the switch.
    pub(crate) network: Option<(PathBuf, PathBuf)>,
    pub(crate) mtu: u32,
    /// Port on this machine's loopback, port in the guest.
    pub(crate) forwards: &'a [(u16, u16)],
}

/// The address of a guest's interface to the other hosts, and of the one that forwards ports: its last
/// byte is the host's number.
pub(crate) const LAB_MAC: &str = "52:54:00:51:4c";
pub(crate) const FORWARD_MAC: &str = "52:54:00:51:46";

impl Parts<'_> {
    fn arguments(&self) -> Result<Vec<OsString>> {
        let mut list: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| list.extend(words.iter().map(OsString::from));
        let path = |path: &Path| -> Result<String> {
            let text = path.to_str().with_context(|| format!("{} is no text", path.display()))?;
            // The emulator's way to write a comma in a value.
            Ok(text.replace(',', ",,"))
        };
        let kept = matches!(self.pmem, Some(Pmem::Kept { .. }));
        let volatile = match self.pmem {
            Some(Pmem::Volatile { mebibytes }) => *mebibytes,
            _ => 0,
        };
        // Persistent memory begins and ends where the kernel can map it in one piece.
        let base = self.memory_mebibytes.next_multiple_of(128);
        let mut append = String::from(
            "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off no_timer_check",
        );
        if self.accelerator == Accelerator::Tcg {
            // What the kernel calibrates while the emulator waits for a processor is wrong, several times
            // too fast or too slow. This clock and timer have a rate that is known.
            append += " tsc=unstable clocksource=hpet nolapic_timer";
        }
        if volatile > 0 {
            append += &format!(" memmap={volatile}M!{base}M");
        }
        append += &format!(" quorate.host={}", self.host);
        add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        add(&["-M", if kept { "q35,nvdimm=on" } else { "q35" }]);
        match self.accelerator {
            Accelerator::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
            // Enough for CRC-32C and for the flushes of persistent memory; no wide vectors to emulate.
            Accelerator::Tcg => {
                add(&["-accel", "tcg,thread=multi", "-cpu", "Nehalem,+rdrand,+clflushopt,+clwb"])
            }
        }
        add(&["-smp", &self.processors.to_string()]);
        // The firmware keeps tables at the end.
        let memory = base + volatile + if volatile > 0 { 16 } else { 0 };
        match self.pmem {
            Some(Pmem::Kept { file, mebibytes }) => {
                let max = memory + mebibytes + LABEL_MEBIBYTES + 1024;
                add(&["-m", &format!("{memory}M,slots=2,maxmem={max}M")]);
                let size = mebibytes + LABEL_MEBIBYTES;
                let file = path(file)?;
                let object = "memory-backend-file,id=nv0,share=on";
                add(&["-object", &format!("{object},mem-path={file},size={size}M")]);
                let device = format!("nvdimm,memdev=nv0,label-size={LABEL_MEBIBYTES}M");
                add(&["-device", &device]);
            }
            _ => add(&["-m", &format!("{memory}M")]),
        }
        add(&["-kernel", &path(&self.kernel.image)?.replace(",,", ",")]);
        add(&["-initrd", &path(self.initramfs)?.replace(",,", ",")]);
        add(&["-append", &append]);
        add(&["-serial", &format!("file:{}", path(self.console)?)]);
        let root = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap";
        add(&["-virtfs", root]);
        let share = path(self.share)?;
        add(&["-virtfs", &format!("local,path={share},mount_tag=share,security_model=none")]);
        if let Some(results) = self.results {
            let results = path(results)?;
            let results = format!("local,path={results},mount_tag=results,security_model=none");
            add(&["-virtfs", &results]);
        }
        add(&["-device", "virtio-serial-pci"]);
        add(&["-chardev", &format!("socket,id=control,path={}", path(self.control)?)]);
        let port = format!("virtserialport,chardev=control,name={}", crate::wire::PORT);
        add(&["-device", &port]);
        if let Some(disk) = self.disk {
            let disk = path(disk)?;
            // A flush of the guest reaches this machine's page cache: that survives the emulator.
            let drive = format!("if=none,id=disk0,format=raw,cache.no-flush=on,file={disk}");
            add(&["-drive", &drive, "-device", "virtio-blk-pci,drive=disk0"]);
        }
        if let Some((own, switch)) = &self.network {
            let (own, switch) = (path(own)?, path(switch)?);
            let local = format!("local.type=unix,local.path={own}");
            let remote = format!("remote.type=unix,remote.path={switch}");
            add(&["-netdev", &format!("dgram,id=lab0,{local},{remote}")]);
            let mac = format!("{LAB_MAC}:{:02x}", self.host);
            let mtu = self.mtu;
            let device = format!("virtio-net-pci,romfile=,netdev=lab0,mac={mac},host_mtu={mtu}");
            add(&["-device", &device]);
        }
        if !self.forwards.is_empty() {
            let mut user = String::from("user,id=user0,restrict=on");
            for (here, there) in self.forwards {
                user += &format!(",hostfwd=tcp:127.0.0.1:{here}-10.0.2.15:{there}");
            }
            let mac = format!("{FORWARD_MAC}:{:02x}", self.host);
            let device = format!("virtio-net-pci,romfile=,netdev=user0,mac={mac}");
            add(&["-netdev", &user, "-device", &device]);
        }
        Ok(list)
    }

    /// Starts the machine.
    pub(crate) fn start(&self, errors: &Path) -> Result<Machine> {
        let mut command = guarded(EMULATOR)?;
        command.args(self.arguments()?).stdin(Stdio::null()).stdout(Stdio::null());
        let log = std::fs::File::create(errors)?;
        command.stderr(log);
        Ok(Machine { child: spawn(command)?, paused: false })
    }
}

/// A command that is killed when the thread that started it ends (setpriv(1), prctl(2)
/// `PR_SET_PDEATHSIG`), and that does not see the terminal's Ctrl-C.
fn guarded(program: &str) -> Result<Command> {
    let setpriv = needs::place("setpriv").context("no setpriv: install util-linux")?;
    let program = needs::place(program).with_context(|| format!("no {program}"))?;
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).process_group(0);
    Ok(command)
}

type Order = (Command, Sender<std::io::Result<Child>>);

/// Starts a process from a thread that lives as long as this program: a parent's death signal comes when
/// the thread ends that started the child.
fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, incoming) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in incoming {
                // Who asked may be gone, and the child with its handle is then nobody's.
                if let Err(lost) = answer.send(command.spawn())
                    && let Ok(mut child) = lost.0
                {
                    let _ = child.kill();
                }
            }
        });
        Mutex::new(orders)
    });
    let (answer, result) = channel();
    let orders = spawner.lock().map_err(|_| anyhow::anyhow!("the thread that starts processes"))?;
    orders.send((command, answer)).context("the thread that starts processes ended")?;
    drop(orders);
    let child = result.recv().context("the thread that starts processes ended")?;
    child.with_context(|| format!("cannot start {EMULATOR}"))
}

/// Connections to a forwarded port that wait until the emulator takes them.
const CONNECTIONS_WAITING: i32 = 1024;

/// A running machine. Dropping it cuts its power.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
    paused: bool,
}

impl Machine {
    /// Cuts the power.
    pub(crate) fn kill(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops the machine's time, or lets it go on.
    pub(crate) fn pause(&mut self, pause: bool) -> Result<()> {
        let process = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let process = process.context("a process id")?;
        let signal = if pause { Signal::STOP } else { Signal::CONT };
        kill_process(process, signal).context("cannot pause or resume the emulator")?;
        self.paused = pause;
        Ok(())
    }

    /// Lets more than one connection wait at the ports that are forwarded. The emulator asks for room for
    /// one; what comes beside it is dropped and tried again after a second, then two, then four: clients
    /// of a busy machine would wait for that and not for the guest.
    pub(crate) fn widen(&self, ports: &[u16]) -> Result<()> {
        let process = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let process = pidfd_open(process.context("a process id")?, PidfdFlags::empty())?;
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))? {
            let entry = entry?;
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            let number = entry.file_name().to_string_lossy().parse().ok();
            let Some(number) = number.filter(|_| target.to_string_lossy().starts_with("socket:"))
            else {
                continue;
            };
            let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?;
            let listens = rustix::net::sockopt::socket_acceptconn(&socket).unwrap_or(false);
            let socket = std::net::TcpListener::from(socket);
            let port = socket.local_addr().ok().map(|address| address.port());
            if listens && port.is_some_and(|port| ports.contains(&port)) {
                // listen(2) on a socket that listens changes its room.
                rustix::net::listen(&socket, CONNECTIONS_WAITING)?;
            }
        }
        Ok(())
    }

    pub(crate) fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it ended by itself; whether it did.
    pub(crate) fn wait(&mut self, limit: Duration) -> bool {
        let deadline = std::time::Instant::now() + limit;
        while !self.ended() {
            if self.paused || std::time::Instant::now() > deadline {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        true
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A machine on KVM that says it runs takes less; one that hangs takes for ever.
const PROBE_LIMIT: Duration = Duration::from_secs(12);
const PROBE_FILE: &str = "kvm-probe";

/// KVM where a guest really runs on it, software emulation otherwise.
///
/// A device node is no proof: on some machines a guest starts on KVM and hangs. So one is booted, once
/// for each boot of this machine, with a time limit.
///
/// # Errors
/// When no machine can be started at all.
pub fn accelerator(kernel: &Kernel) -> Result<Accelerator> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(Accelerator::Tcg);
    }
    let verdict = crate::kernel::cache()?.join(PROBE_FILE);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if let Ok(text) = std::fs::read_to_string(&verdict)
        && let Some(said) = text.strip_prefix(boot.trim())
    {
        return Ok(if said.trim() == "kvm" { Accelerator::Kvm } else { Accelerator::Tcg });
    }
    let found = if probe(kernel)? { Accelerator::Kvm } else { Accelerator::Tcg };
    let word = if found == Accelerator::Kvm { "kvm" } else { "tcg" };
    // Only the next start takes longer without it.
    let _ = std::fs::write(&verdict, format!("{} {word}\n", boot.trim()));
    Ok(found)
}

fn probe(kernel: &Kernel) -> Result<bool> {
    let folder = tempfile::Builder::new().prefix("quorate-kvm-").tempdir()?;
    let initramfs = folder.path().join("initramfs");
    crate::initramfs::build(crate::initramfs::PROBE_SCRIPT, &[], &initramfs)?;
    let console = folder.path().join("console");
    let mut command = guarded(EMULATOR)?;
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256M"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initramfs);
    command.args(["-append", "console=ttyS0 quiet panic=-1"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut machine = Machine { child: spawn(command)?, paused: false };
    if !machine.wait(PROBE_LIMIT) {
        return Ok(false);
    }
    let said = std::fs::read(&console).unwrap_or_default();
    Ok(String::from_utf8_lossy(&said).contains("quorate-guest-ran"))
}

/// Makes the file of a disk with an ext4 file system in it, as a sparse file.
pub(crate) fn make_disk(file: &Path, mebibytes: u32) -> Result<()> {
    if file.exists() {
        bail!("{} exists", file.display());
    }
    std::fs::File::create(file)?.set_len(u64::from(mebibytes) << 20)?;
    let mke2fs = needs::place("mke2fs").context("no mke2fs: install e2fsprogs")?;
    needs::run(Command::new(mke2fs).args(["-q", "-F", "-t", "ext4"]).arg(file)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_described_to_the_emulator() {
        let kernel = Kernel { image: "/k/vmlinuz".into(), modules: "/k/modules".into() };
        let pmem = Pmem::Volatile { mebibytes: 64 };
        let mut parts = Parts {
            kernel: &kernel,
            initramfs: Path::new("/l/initramfs"),
            accelerator: Accelerator::Tcg,
            memory_mebibytes: 512,
            processors: 1,
            host: 2,
            share: Path::new("/l/a,b"),
            results: None,
            console: Path::new("/l/console"),
            control: Path::new("/l/control"),
            disk: None,
            pmem: Some(&pmem),
            network: None,
            mtu: 4500,
            forwards: &[(9000, 7000)],
        };
        let text = |parts: &Parts<'_>| {
            let list = parts.arguments().unwrap();
            list.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
        };
        let volatile = text(&parts);
        assert!(volatile.contains("-m 592M") && volatile.contains("memmap=64M!512M"), "{volatile}");
        assert!(volatile.contains("path=/l/a,,b,"), "a comma is doubled: {volatile}");
        assert!(volatile.contains("hostfwd=tcp:127.0.0.1:9000-10.0.2.15:7000"), "{volatile}");
        assert!(volatile.contains("restrict=on"), "guests reach nobody else: {volatile}");
        let kept = Pmem::Kept { file: "/l/pmem".into(), mebibytes: 64 };
        parts.pmem = Some(&kept);
        let kept = text(&parts);
        assert!(kept.contains("nvdimm=on") && kept.contains("size=80M"), "{kept}");
    }

    #[test]
    fn a_machine_dies_with_its_handle() {
        let mut command = guarded("sleep").unwrap();
        command.arg("60");
        let mut machine = Machine { child: spawn(command).unwrap(), paused: false };
        let process = format!("/proc/{}", machine.child.id());
        assert!(!machine.ended() && Path::new(&process).exists());
        drop(machine);
        assert!(!Path::new(&process).exists());
    }
}
