//! Everything that needs virtual machines, in one program, so that few of them have to boot.
//!
//! Tests run one after the other and share a lab; one that fails leaves none behind. Where machines
//! cannot run, all of them count as ignored, and a line says what to do about it. The last lines name
//! each test that failed, with its reason: the rest of a long log may be cut off.

#![forbid(unsafe_code)]

mod cluster;
mod linearizable;
mod members;
mod one_host;
mod passive;
mod power;
mod program;
mod rdma;
mod redis;
mod shared;
mod side_by_side;
mod three_hosts;

use anyhow::{Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use quorate_soft_roce::{Builder, Lab, Pmem, needs};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The program that runs in guests too.
const AGENT: &str = env!("CARGO_BIN_EXE_quorate-soft-roce");
/// Nothing that works takes longer, however busy this machine is.
const PATIENCE: Duration = Duration::from_secs(240);
/// Replicas of a cluster; they run on one host or on three.
const REPLICAS: u16 = 3;

/// The port of a replica that clients use.
const fn client_port(replica: u16) -> u16 {
    7000 + replica
}

/// The test that needs no machine, and runs on one that has none.
const WITHOUT: &str = "without an emulator: skipped, said in one line, counted";

/// A test, with the lab that it needs.
type Test = (&'static str, Hosts, fn(&Lab) -> Result<()>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hosts {
    One,
    Three,
}

const TESTS: [Test; 32] = [
    (
        "program: output and exit code are passed through",
        Hosts::One,
        one_host::output_and_exit_code,
    ),
    ("program: the time limit ends all that it started", Hosts::One, one_host::time_limit),
    ("forwarded ports: many connections wait", Hosts::One, one_host::forwarded),
    ("verbs: two processes on one device", Hosts::One, one_host::ping_pong),
    ("pmem: mappings are synchronous, others are refused", Hosts::One, one_host::map_sync),
    ("transport: conformance on Soft-RoCE", Hosts::One, rdma::conformance),
    ("fence: deregistration holds, access flags do not", Hosts::One, rdma::fence),
    ("fence: a broken one fails the suite", Hosts::One, rdma::broken_fence),
    ("fence: what a deposed leader counts is reported", Hosts::One, rdma::deposed),
    ("device: taken away and brought back", Hosts::One, one_host::device_gone),
    ("cluster: three replicas on one rdma device", Hosts::One, redis::one_host_rdma),
    ("passive followers: what doctor says", Hosts::One, passive::doctor),
    (
        "passive followers: linearizable under kills of the leader",
        Hosts::One,
        passive::linearizable,
    ),
    ("cluster: side by side on one host", Hosts::One, side_by_side::run),
    ("passive followers: side by side with active ones", Hosts::One, side_by_side::passive),
    ("verbs: writes between hosts, seen by the switch", Hosts::Three, three_hosts::write_latency),
    ("partition: RDMA alone", Hosts::Three, three_hosts::partition_rdma),
    ("partition: everything, one way", Hosts::Three, three_hosts::partition_one_way),
    ("network: delay and loss in the guest, interface down", Hosts::Three, three_hosts::netem),
    ("host: paused and resumed", Hosts::Three, three_hosts::pause),
    ("host: killed, disk and pmem survive", Hosts::Three, three_hosts::kill),
    ("cluster: redis-cli and redis-benchmark over tcp", Hosts::Three, redis::redis_tcp),
    ("cluster: the power of all is cut, on dax", Hosts::Three, power::cut_on_dax),
    ("cluster: the power of one is cut, on emulated", Hosts::Three, power::cut_on_emulated),
    ("cluster: linearizable under faults over tcp", Hosts::Three, linearizable::over_tcp),
    ("cluster: side by side on three hosts", Hosts::Three, side_by_side::run),
    ("cluster: records travel by rdma", Hosts::Three, redis::redis_rdma),
    ("cluster: rdma lost and found", Hosts::Three, redis::rdma_lost),
    ("cluster: a queue pair fails", Hosts::Three, redis::pair_fails),
    ("cluster: a member is replaced over rdma", Hosts::Three, members::replaced),
    ("cluster: linearizable under faults over rdma", Hosts::Three, linearizable::over_rdma),
    (LONG, Hosts::Three, linearizable::over_passive),
];

/// The test that takes minutes: it runs where somebody says how long, by the variable `QUORATE_OPERATIONS`.
const LONG: &str = "passive followers: linearizable under faults on three hosts";

/// The lab that is up, at most one, and what the tests came to.
#[derive(Default)]
struct Labs {
    up: Mutex<Option<(Hosts, Lab)>>,
    done: Mutex<Vec<Done>>,
}

/// What a test came to.
struct Done {
    name: &'static str,
    took: Duration,
    failed: Option<String>,
}

impl Labs {
    /// Runs a test and notes what it came to; a panic fails it as an error does.
    fn judge(&self, name: &'static str, test: impl FnOnce() -> Result<()>) -> Result<(), Failed> {
        let begin = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(test));
        let failed = match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(panic) => Some(words_of(panic.as_ref())),
        };
        let took = begin.elapsed();
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.push(Done { name, took, failed: failed.clone() });
        failed.map_or(Ok(()), |reason| Err(Failed::from(reason)))
    }

    fn run(&self, hosts: Hosts, test: fn(&Lab) -> Result<()>) -> Result<()> {
        let mut slot = self.up.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|(up, _)| *up != hosts) {
            *slot = None;
        }
        let lab = match slot.take() {
            Some((_, lab)) => lab,
            None => start_twice(hosts)?,
        };
        let result = catch_unwind(AssertUnwindSafe(|| test(&lab)));
        if let Ok(Ok(())) = result {
            *slot = Some((hosts, lab));
            return Ok(());
        }
        for host in lab.hosts() {
            eprintln!("console of host {}:\n{}", host.number(), host.console_end());
        }
        result.unwrap_or_else(|panic| bail!("{}", words_of(panic.as_ref())))
    }

    /// Prints where the time went, and what failed.
    fn summary(&self) {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        println!("seconds of each test:");
        for Done { name, took, .. } in done.iter() {
            println!("{:7.1}  {name}", took.as_secs_f64());
        }
        for Done { name, failed, .. } in done.iter() {
            let Some(reason) = failed else { continue };
            println!("FAILED: {name}: {}", in_short(reason));
        }
    }
}

/// What a panic said.
fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

/// A reason in one line, with its beginning and its end.
fn in_short(reason: &str) -> String {
    const SHOWN: usize = 300;
    let line: Vec<char> = reason.split_whitespace().collect::<Vec<_>>().join(" ").chars().collect();
    if line.len() <= 2 * SHOWN {
        return line.into_iter().collect();
    }
    let (head, tail) = (&line[..SHOWN], &line[line.len() - SHOWN..]);
    format!("{} … {}", head.iter().collect::<String>(), tail.iter().collect::<String>())
}

/// Boots a lab; once more where the machines did not come up, which says nothing of the product.
fn start_twice(hosts: Hosts) -> Result<Lab> {
    start(hosts).or_else(|error| {
        println!("the machines did not come up, once more: {error:#}");
        start(hosts)
    })
}

fn start(hosts: Hosts) -> Result<Lab> {
    let builder = (1..=REPLICAS)
        .fold(Builder::new(AGENT), |builder, replica| builder.forward(client_port(replica)));
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
            builder.hosts(3).disk_mebibytes(512).pmem(Pmem::Kept { file, mebibytes: 96 }).start()
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
        "no {}. First run: cargo build -p quorate-server -p quorate-transport-rdma --bins --examples --features quorate-server/passive",
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
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "no {what} in {patience:?}");
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
        let run = move || labs.judge(name, || labs.run(hosts, test));
        let short = name == LONG && std::env::var_os("QUORATE_OPERATIONS").is_none();
        trials.push(Trial::test(name, run).with_ignored_flag(reason.is_some() || short));
    }
    for (name, test) in program::TESTS {
        let labs = Arc::clone(&labs);
        let run = move || labs.judge(name, test);
        trials.push(Trial::test(name, run).with_ignored_flag(reason.is_some()));
    }
    if let Some(reason) = reason.filter(|_| !arguments.list) {
        println!("skipped: no Soft-RoCE here ({} tests), {reason}", trials.len());
    }
    let count = trials.len();
    let ledger = Arc::clone(&labs);
    let run = move || ledger.judge(WITHOUT, || program::without_an_emulator(count));
    trials.push(Trial::test(WITHOUT, run));
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Not left to the end of the process: the lab's files go with it.
    *labs.up.lock().unwrap_or_else(PoisonError::into_inner) = None;
    for host in 1..=3 {
        let folder = env!("CARGO_TARGET_TMPDIR");
        let _ = std::fs::remove_file(format!("{folder}/pmem-{}.{host}", std::process::id()));
    }
    if !arguments.list {
        labs.summary();
    }
    conclusion.exit_code()
}
