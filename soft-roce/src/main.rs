//! `quorate-soft-roce`: runs any program with Soft-RoCE and emulated persistent memory.
#![forbid(unsafe_code)]

mod faults;
mod run;

use clap::{Args, Parser, Subcommand, ValueEnum};
use quorate_soft_roce::needs;
use std::path::PathBuf;
use std::process::ExitCode;

/// Soft-RoCE and emulated persistent memory on any Linux.
#[derive(Debug, Parser)]
#[command(name = "quorate-soft-roce", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says what is here and what is missing. Exit code 0: virtual machines can run.
    Check {
        /// Installs what is missing (as root) and fetches a kernel into the user's cache.
        #[arg(long)]
        install: bool,
    },
    /// Runs a command with an RDMA device, on this kernel or in virtual machines. Its output and exit code
    /// are passed through; files that it writes are gone afterwards, but for those under --results.
    Run(RunArgs),
    /// The guest's side.
    #[command(hide = true)]
    Agent,
}

/// Where a command runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Place {
    /// On this kernel where it has Soft-RoCE and nothing else is asked for, else in a virtual machine.
    Auto,
    /// On this kernel.
    Here,
    /// In virtual machines.
    Vm,
}

/// What runs the guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Accelerator {
    /// KVM where a probe shows that guests run on it.
    Auto,
    /// The processor.
    Kvm,
    /// Software emulation.
    Tcg,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Virtual machines, joined by a network; the command runs on each, with QUORATE_HOST=1 and so on.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=9))]
    hosts: u16,
    /// Emulated persistent memory of this size for each, such as 256M, mounted at /quorate/pmem with
    /// direct access. It is gone with the machine, but for --pmem-file.
    #[arg(long, value_name = "SIZE", value_parser = mebibytes)]
    pmem: Option<u32>,
    /// Keeps the persistent memory in this file: it is there again in the next run.
    #[arg(long, value_name = "FILE")]
    pmem_file: Option<PathBuf>,
    /// A disk of this size for each, mounted at /quorate/disk, gone afterwards.
    #[arg(long, value_name = "SIZE", value_parser = mebibytes)]
    disk: Option<u32>,
    /// Memory of each machine.
    #[arg(long, value_name = "SIZE", default_value = "768M", value_parser = mebibytes)]
    memory: u32,
    /// Processors of each machine.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    cpus: u32,
    /// A folder that the machines may write, mounted at /quorate/results.
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// A variable for the command, NAME=VALUE. LANG, RUST_*, CARGO_* and QUORATE_* are passed on anyway.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// What happens meanwhile, such as '5 cut-rdma 1 2', '7.5 kill 1' or '20 heal': seconds after the start
    /// of the command, and what. `--fault help` names all.
    #[arg(long = "fault", value_name = "SECONDS VERB", value_parser = faults::planned)]
    faults: Vec<faults::Planned>,
    /// Seconds that the command may take once it started; then it is killed, with exit code 124.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    time_limit: u64,
    /// Where the command runs.
    #[arg(long = "in", value_enum, default_value = "auto")]
    place: Place,
    /// What runs the machines.
    #[arg(long, value_enum, default_value = "auto")]
    accelerator: Accelerator,
    /// Installs what is missing first, as `check --install` does.
    #[arg(long)]
    install: bool,
    /// Says nothing but what the command says.
    #[arg(long, short)]
    quiet: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// `256M`, `1G`, or a plain number of mebibytes.
fn mebibytes(text: &str) -> Result<u32, String> {
    let (digits, factor) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let number: u32 =
        digits.parse().map_err(|_| format!("{text} is no size, such as 256M or 1G"))?;
    let size = number.checked_mul(factor).filter(|size| (1..=65_536).contains(size));
    size.ok_or_else(|| format!("{text} is not between 1M and 64G"))
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text} is not NAME=VALUE"))?;
    Ok((name.into(), value.into()))
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check { install } => check(install),
        Command::Run(args) => run::run(&args),
        Command::Agent => quorate_soft_roce::agent::run().map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("quorate-soft-roce: {error:#}");
        ExitCode::from(run::OWN_FAILURE)
    })
}

fn check(install: bool) -> anyhow::Result<ExitCode> {
    let mut found = needs::look();
    if install {
        needs::install(&found)?;
        found = needs::look();
    }
    for (what, place) in &found.present {
        println!("here     {what:<28} {place}");
    }
    for missing in &found.missing {
        let word = if missing.optional { "optional" } else { "MISSING " };
        println!("{word} {:<28} {}", missing.what, missing.purpose);
    }
    match quorate_soft_roce::rxe::existing() {
        Some(device) => println!("This kernel has an RDMA device: {device}."),
        None => println!("This kernel has no RDMA device."),
    }
    let packages = found.packages();
    if !packages.is_empty() {
        println!("To install by hand: apt-get install {}", packages.join(" "));
    }
    if !found.complete() {
        println!("Virtual machines cannot run: {}", found.complaint());
        return Ok(ExitCode::FAILURE);
    }
    if let Some(kernel) = &found.kernel {
        let accelerator = quorate_soft_roce::accelerator(kernel)?;
        println!("Virtual machines can run: Linux {}, {accelerator:?}.", kernel.release());
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(mebibytes("256M"), Ok(256));
        assert_eq!(mebibytes("2g"), Ok(2048));
        assert_eq!(mebibytes("64"), Ok(64));
        for wrong in ["", "M", "0", "-1", "1T", "100G", "99999999999G"] {
            assert!(mebibytes(wrong).is_err(), "{wrong}");
        }
    }
}
