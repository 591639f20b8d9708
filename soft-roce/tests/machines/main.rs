//! Everything that needs virtual machines, in one program, so that few of them have to boot.
//!
//! Tests run one after the other and share a lab; one that fails leaves none behind. Where machines
//! cannot run, all of them count as ignored, and a line says what to do about it.

#![forbid(unsafe_code)]

mod cluster;
mod one_host;
mod program;
mod rdma;
mod shared;
mod three_hosts;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use quorate_soft_roce::{Builder, Lab, Pmem, needs};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The program that runs in guests too.
const AGENT: &str = env!("CARGO_BIN_EXE_quorate-soft-roce");
/// Nothing that works takes longer, however busy this machine is.
const PATIENCE: Duration = Duration::from_secs(240);
/// The port of the guests that clients use.
const CLIENT_PORT: u16 = 7001;

/// A test, with the lab that it needs.
type Test = (&'static str, Hosts, fn(&Lab) -> Result<()>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hosts {
    One,
    Three,
}

const TESTS: [Test; 20] = [
    (
        "program: output and exit code are passed through",
        Hosts::One,
        one_host::output_and_exit_code,
    ),
    ("program: the time limit ends all that it started", Hosts::One, one_host::time_limit),
    ("verbs: two processes on one device", Hosts::One, one_host::ping_pong),
    ("pmem: mappings are synchronous, others are refused", Hosts::One, one_host::map_sync),
    ("transport: conformance on Soft-RoCE", Hosts::One, rdma::conformance),
    ("fence: deregistration holds, access flags do not", Hosts::One, rdma::fence),
    ("device: taken away and brought back", Hosts::One, one_host::device_gone),
    ("verbs: writes between hosts, seen by the switch", Hosts::Three, three_hosts::write_latency),
    ("partition: RDMA alone", Hosts::Three, three_hosts::partition_rdma),
    ("partition: everything, one way", Hosts::Three, three_hosts::partition_one_way),
    ("network: delay and loss in the guest, interface down", Hosts::Three, three_hosts::netem),
    ("host: paused and resumed", Hosts::Three, three_hosts::pause),
    ("host: killed, disk and pmem survive", Hosts::Three, three_hosts::kill),
    ("cluster: redis-cli and redis-benchmark over tcp", Hosts::Three, cluster::redis_tcp),
    ("cluster: the power of all is cut, on dax", Hosts::Three, cluster::power_cut_on_dax),
    ("cluster: the power of one is cut, on emulated", Hosts::Three, cluster::power_cut_on_emulated),
    ("cluster: linearizable under faults over tcp", Hosts::Three, cluster::linearizable_tcp),
    ("cluster: records travel by rdma", Hosts::Three, cluster::redis_rdma),
    ("cluster: rdma lost and found", Hosts::Three, cluster::rdma_lost),
    ("cluster: linearizable under faults over rdma", Hosts::Three, cluster::linearizable_rdma),
];

/// The lab that is up; at most one.
#[derive(Default)]
struct Labs(Mutex<Option<(Hosts, Lab)>>);

impl Labs {
    fn run(&self, hosts: Hosts, test: fn(&Lab) -> Result<()>) -> Result<()> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|(up, _)| *up != hosts) {
            *slot = None;
        }
        let lab = match slot.take() {
            Some((_, lab)) => lab,
            None => start(hosts)?,
        };
        let result = catch_unwind(AssertUnwindSafe(|| test(&lab)));
        match result {
            Ok(Ok(())) => {
                *slot = Some((hosts, lab));
                Ok(())
            }
            Ok(Err(error)) => {
                for host in lab.hosts() {
                    eprintln!("host {}:\n{}", host.number(), host.console_end());
                }
                Err(error)
            }
            Err(panic) => resume_unwind(panic),
        }
    }
}

fn start(hosts: Hosts) -> Result<Lab> {
    let builder = Builder::new(AGENT);
    match hosts {
        // Two processors: a race needs them.
        Hosts::One => builder
            .processors(2)
            .memory_mebibytes(1024)
            .disk_mebibytes(1024)
            .pmem(Pmem::Volatile { mebibytes: 64 })
            .start(),
        Hosts::Three => {
            // In the folder for scratch files of the build; made anew.
            let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
            let file = folder.join(format!("pmem-{}", std::process::id()));
            for host in 1..=3 {
                // From an earlier lab of this process.
                let _ = std::fs::remove_file(format!("{}.{host}", file.display()));
            }
            builder
                .hosts(3)
                .disk_mebibytes(512)
                .pmem(Pmem::Kept { file, mebibytes: 96 })
                .forward(CLIENT_PORT)
                .start()
        }
    }
}

/// A program of the product: from the folder that `QUORATE_BUILT` names, or that of the agent.
fn built(name: &str) -> Result<PathBuf> {
    let here = || PathBuf::from(AGENT).with_file_name("");
    let folder = std::env::var_os("QUORATE_BUILT").map_or_else(here, PathBuf::from);
    let path = std::path::absolute(folder.join(name))?;
    ensure!(
        path.exists(),
        "no {}. First run: cargo build -p quorate-server -p quorate-transport-rdma --bins --examples",
        path.display()
    );
    Ok(path)
}

/// Waits until `poll` has something.
pub(crate) fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut poll: impl FnMut() -> Option<T>,
) -> T {
    let deadline = std::time::Instant::now() + patience;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(std::time::Instant::now() < deadline, "no {what} in {patience:?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if std::env::var_os("QUORATE_SOFT_ROCE").is_some_and(|asked| asked == "off") {
        println!("no machine boots: QUORATE_SOFT_ROCE=off");
        return ExitCode::SUCCESS;
    }
    let reason = needs::reason_to_skip();
    let labs = Arc::new(Labs::default());
    let mut trials: Vec<Trial> = Vec::new();
    for (name, hosts, test) in TESTS {
        let labs = Arc::clone(&labs);
        let run = move || labs.run(hosts, test).map_err(|error| Failed::from(format!("{error:#}")));
        trials.push(Trial::test(name, run).with_ignored_flag(reason.is_some()));
    }
    for (name, test) in program::TESTS {
        let run = move || test().map_err(|error| Failed::from(format!("{error:#}")));
        trials.push(Trial::test(name, run).with_ignored_flag(reason.is_some()));
    }
    if let Some(reason) = reason.filter(|_| !arguments.list) {
        println!("skipped: no Soft-RoCE here ({} tests), {reason}", trials.len());
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Not left to the end of the process: the lab's files go with it.
    *labs.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    for host in 1..=3 {
        let folder = env!("CARGO_TARGET_TMPDIR");
        let _ = std::fs::remove_file(format!("{folder}/pmem-{}.{host}", std::process::id()));
    }
    conclusion.exit_code()
}
