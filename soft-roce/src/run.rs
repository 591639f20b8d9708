//! `quorate-soft-roce run`.

use crate::faults::{Plan, Power};
use crate::{Accelerator, Place, RunArgs};
use anyhow::{Context, Result, bail};
use quorate_soft_roce::{
    Builder, Event, Lab, Pmem, Program, Running, Signal, Status, agent, needs, rxe,
};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The exit code when this program failed and not the command.
pub(crate) const OWN_FAILURE: u8 = 125;
/// As timeout(1).
const TIMED_OUT: u8 = 124;
/// As a shell says that Ctrl-C ended a command.
const INTERRUPTED: u8 = 130;
/// SIGKILL: how a command ended whose host lost its power.
const KILLED: i32 = 9;
/// Variables of the caller that the command sees too.
const PASSED_ON: [&str; 4] = ["LANG", "RUST_", "CARGO_", "QUORATE_"];
/// The caller is told how a command ended within this time.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let needs_machine =
        args.hosts > 1 || args.pmem.is_some() || args.pmem_file.is_some() || args.disk.is_some();
    let needs_machine = needs_machine || !args.faults.is_empty();
    match args.place {
        Place::Here if needs_machine => {
            bail!(
                "several hosts, a disk, persistent memory and faults need virtual machines: --in vm"
            )
        }
        Place::Here => here(args),
        Place::Auto if !needs_machine && (rxe::existing().is_some() || can_create()) => here(args),
        _ => in_machines(args),
    }
}

fn can_create() -> bool {
    rustix::process::geteuid().is_root()
        && Command::new("modprobe")
            .args(["--dry-run", "--quiet", "rdma_rxe"])
            .status()
            .is_ok_and(|status| status.success())
}

/// Runs the command on this kernel.
fn here(args: &RunArgs) -> Result<ExitCode> {
    let existing = rxe::existing();
    let temporary = match existing {
        Some(_) => None,
        None => Some(rxe::Temporary::create()?),
    };
    let device = match (&temporary, existing) {
        (Some(temporary), _) => temporary.device.name.clone(),
        (None, name) => name.unwrap_or_default(),
    };
    say(args, &format!("on this kernel, {device}"));
    let (program, arguments) = args.command.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(arguments).env("QUORATE_RDMA_DEVICE", &device);
    if let Some(temporary) = &temporary {
        command.env("QUORATE_GID_INDEX", temporary.device.gid_index.to_string());
    }
    command.env("QUORATE_HOST", "1").env("QUORATE_HOSTS", "1").envs(args.environment.clone());
    // The command gets the terminal's Ctrl-C itself; this process must stay to clean up.
    let interrupted = watch_interrupts()?;
    let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    let deadline = Instant::now() + Duration::from_secs(args.time_limit);
    loop {
        if let Some(status) = child.try_wait()? {
            let status = match (status.code(), status.signal()) {
                (Some(code), _) => Status::Code(code),
                (None, signal) => Status::Signal(signal.unwrap_or(0)),
            };
            let code =
                if interrupted.load(Ordering::Relaxed) { INTERRUPTED } else { status.code() };
            return Ok(ExitCode::from(code));
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            eprintln!("quorate-soft-roce: killed after {} s", args.time_limit);
            return Ok(ExitCode::from(TIMED_OUT));
        }
        std::thread::park_timeout(LOOK_EVERY);
    }
}

fn say(args: &RunArgs, what: &str) {
    if !args.quiet {
        eprintln!("quorate-soft-roce: {what}");
    }
}

fn watch_interrupts() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&interrupted);
    ctrlc::set_handler(move || seen.store(true, Ordering::Relaxed)).context("Ctrl-C")?;
    Ok(interrupted)
}

/// Runs the command in virtual machines.
fn in_machines(args: &RunArgs) -> Result<ExitCode> {
    let interrupted = watch_interrupts()?;
    if args.install {
        needs::install(&needs::look())?;
    }
    // What is wrong with it is said before anything boots.
    Plan::new(&args.faults, args.hosts)?;
    let begin = Instant::now();
    let lab = boot(args, &interrupted)?;
    let Some(lab) = lab else { return Ok(ExitCode::from(INTERRUPTED)) };
    say(
        args,
        &format!(
            "{} up after {:.0} s ({:?}), RDMA device {}",
            match args.hosts {
                1 => "a virtual machine is".to_owned(),
                hosts => format!("{hosts} virtual machines are"),
            },
            begin.elapsed().as_secs_f64(),
            lab.accelerator(),
            agent::DEVICE,
        ),
    );
    let code = follow(args, &lab, &interrupted)?;
    if args.pmem_file.is_some() {
        lab.power_off();
    }
    Ok(ExitCode::from(code))
}

/// Boots the machines; none when interrupted meanwhile.
fn boot(args: &RunArgs, interrupted: &AtomicBool) -> Result<Option<Lab>> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let mut builder = Builder::new(own)
        .hosts(args.hosts)
        .memory_mebibytes(args.memory)
        .processors(args.cpus)
        .disk_mebibytes(args.disk.unwrap_or(0));
    builder = match (args.pmem, &args.pmem_file) {
        (size, Some(file)) => {
            let file = std::path::absolute(file).context("the name of the file")?;
            builder.pmem(Pmem::Kept { file, mebibytes: size.unwrap_or(256) })
        }
        (Some(mebibytes), None) => builder.pmem(Pmem::Volatile { mebibytes }),
        (None, None) => builder,
    };
    if let Some(folder) = &args.results {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        builder = builder.results(std::fs::canonicalize(folder)?);
    }
    builder = match args.accelerator {
        Accelerator::Auto => builder,
        Accelerator::Kvm => builder.accelerator(quorate_soft_roce::Accelerator::Kvm),
        Accelerator::Tcg => builder.accelerator(quorate_soft_roce::Accelerator::Tcg),
    };
    // On a thread of its own, so that Ctrl-C is seen meanwhile: the machines end with this process.
    let (sender, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // After Ctrl-C nobody waits for it.
        let _ = sender.send(builder.start());
    });
    loop {
        if let Ok(lab) = result.recv_timeout(LOOK_EVERY) {
            return lab.map(Some);
        }
        if interrupted.load(Ordering::Relaxed) {
            return Ok(None);
        }
    }
}

/// Runs the command on all hosts and passes on what it says.
fn follow(args: &RunArgs, lab: &Lab, interrupted: &AtomicBool) -> Result<u8> {
    let mut running = Vec::new();
    for host in lab.hosts() {
        running.push(Stream::start(args, lab, host.number())?);
    }
    let mut plan = Plan::new(&args.faults, args.hosts)?;
    let deadline = Instant::now() + Duration::from_secs(args.time_limit);
    while running.iter().any(|stream| stream.ended.is_none()) {
        for stream in &mut running {
            stream.pass_on()?;
        }
        match plan.act(lab, |what| say(args, what))? {
            Some(Power::Cut(host)) => {
                running[usize::from(host) - 1].ended.get_or_insert(Status::Signal(KILLED));
            }
            Some(Power::Back(host)) => {
                running[usize::from(host) - 1] = Stream::start(args, lab, host)?;
            }
            None => {}
        }
        let code = if interrupted.load(Ordering::Relaxed) {
            INTERRUPTED
        } else if Instant::now() > deadline {
            eprintln!("quorate-soft-roce: killed after {} s", args.time_limit);
            TIMED_OUT
        } else {
            continue;
        };
        for stream in &mut running {
            stream.program.signal(Signal::KILL)?;
            stream.pass_on()?;
        }
        return Ok(code);
    }
    let codes = running.iter().filter_map(|stream| stream.ended.as_ref().map(Status::code));
    Ok(codes.max().unwrap_or(OWN_FAILURE))
}

fn program(args: &RunArgs, lab: &Lab, number: u16) -> Result<Program> {
    let (name, arguments) = args.command.split_first().context("no command")?;
    let directory = std::env::current_dir().context("the current folder")?;
    let directory = directory.to_str().context("the current folder's name is no text")?;
    let ready = lab.host(number).ready()?;
    let addresses: Vec<_> = lab.hosts().iter().map(|host| host.address().to_string()).collect();
    let mut program = Program::new(name).args(arguments).directory(directory);
    for (name, value) in std::env::vars() {
        if PASSED_ON.iter().any(|prefix| name.starts_with(prefix)) || name == "PATH" {
            program = program.variable(name, value);
        }
    }
    program = program
        .variable("QUORATE_HOSTS", args.hosts.to_string())
        .variable("QUORATE_HOST", number.to_string())
        .variable("QUORATE_ADDRESSES", addresses.join(","))
        .variable("QUORATE_RDMA_DEVICE", ready.device.unwrap_or_default())
        .variable("QUORATE_GID_INDEX", ready.gid_index.to_string());
    for (name, value) in &args.environment {
        program = program.variable(name, value);
    }
    Ok(program)
}

/// A program and what it said.
struct Stream {
    program: Running,
    stdout: Lines,
    stderr: Lines,
    ended: Option<Status>,
}

impl Stream {
    /// Starts the command on a host.
    fn start(args: &RunArgs, lab: &Lab, host: u16) -> Result<Self> {
        let prefix = if args.hosts > 1 { format!("{host}| ") } else { String::new() };
        Ok(Self {
            program: lab.host(host).spawn(&program(args, lab, host)?)?,
            stdout: Lines::new(prefix.clone()),
            stderr: Lines::new(prefix),
            ended: None,
        })
    }

    /// Passes on what came, waiting a little.
    fn pass_on(&mut self) -> Result<()> {
        while self.ended.is_none() {
            match self.program.next(LOOK_EVERY)? {
                Some(Event::Stdout(piece)) => self.stdout.write(&mut std::io::stdout(), &piece)?,
                Some(Event::Stderr(piece)) => self.stderr.write(&mut std::io::stderr(), &piece)?,
                Some(Event::Exit(status)) => {
                    self.stdout.end(&mut std::io::stdout())?;
                    self.stderr.end(&mut std::io::stderr())?;
                    if let Status::NotStarted(why) = &status {
                        eprintln!("quorate-soft-roce: not started: {why}");
                    }
                    self.ended = Some(status);
                }
                None => break,
            }
        }
        Ok(())
    }
}

/// Passes on bytes as they are, or whole lines with a prefix, so that hosts do not mix within a line.
struct Lines {
    prefix: String,
    held: Vec<u8>,
}

/// A line longer than this is broken.
const LINE_BYTES_MAX: usize = 64 << 10;

impl Lines {
    fn new(prefix: String) -> Self {
        Self { prefix, held: Vec::new() }
    }

    fn write(&mut self, out: &mut impl Write, piece: &[u8]) -> Result<()> {
        if self.prefix.is_empty() {
            out.write_all(piece)?;
            return out.flush().context("standard output");
        }
        self.held.extend(piece);
        while let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.held.drain(..=end).collect();
            out.write_all(self.prefix.as_bytes())?;
            out.write_all(&line)?;
        }
        if self.held.len() > LINE_BYTES_MAX {
            self.end(out)?;
        }
        out.flush().context("standard output")
    }

    fn end(&mut self, out: &mut impl Write) -> Result<()> {
        if !self.held.is_empty() {
            out.write_all(self.prefix.as_bytes())?;
            out.write_all(&self.held)?;
            out.write_all(b"\n")?;
            self.held.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_speaks_as_it_is_and_several_in_lines() {
        let mut out = Vec::new();
        let mut lines = Lines::new(String::new());
        lines.write(&mut out, b"half").unwrap();
        lines.end(&mut out).unwrap();
        assert_eq!(out, b"half");
        let mut lines = Lines::new("2| ".into());
        out.clear();
        lines.write(&mut out, b"one\ntw").unwrap();
        lines.write(&mut out, b"o\nrest").unwrap();
        lines.end(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "2| one\n2| two\n2| rest\n");
    }
}
