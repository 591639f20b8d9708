//! `quorate-sim`: runs seeds, says what failed and how to see it again.

use clap::Parser;
use quorate_sim::{
    Cast, Coverage, Mutant, Outcome, Point, Row, Standing, plant, run_as, run_mutant, run_without,
    shrink, unplant, unseen,
};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Whole clusters of the real code on simulated time, network and disks.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Run this seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// Print one line an event.
    #[arg(long)]
    trace: bool,
    /// Run the seeds from A up to B, exclusive (`A..B`); or `fresh:N` for N that nobody tried.
    #[arg(long)]
    seeds: Option<String>,
    /// Go on for so many minutes, with fresh seeds.
    #[arg(long)]
    minutes: Option<u64>,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Run the seeds of this file too, one a line, with their stories behind `#`.
    #[arg(long)]
    regressions: Option<std::path::PathBuf>,
    /// Destroy the disks of a quorum, or of more, in each of the runs: what is left must stall, say so
    /// and invent nothing.
    #[arg(long)]
    disasters: bool,
    /// Witnesses are among the replicas of each of the runs, and made members.
    #[arg(long, conflicts_with = "disasters")]
    witnesses: bool,
    /// Followers are passive in each of the runs: a completed write is a vote.
    #[arg(long, conflicts_with_all = ["disasters", "witnesses"])]
    passive: bool,
    /// Fail if a fault that can be simulated was not injected or not observed, or a point of legal
    /// misbehaviour was never reached.
    #[arg(long)]
    covered: bool,
    /// Print the fault catalogue, with what sees to each row.
    #[arg(long)]
    catalogue: bool,
    /// Build each known mistake into the protocol and see after how many seeds it is found.
    #[arg(long)]
    mutants: bool,
    /// Of the mistakes only those whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// The seed at which the search for each mistake begins.
    #[arg(long, default_value_t = 1)]
    from: u64,
}

/// A mistake that this many seeds do not show is not found.
const MUTANT_SEEDS_MAX: u64 = 2_000;

/// Trace lines shown of a failure.
const LINES: usize = 60;
/// Failures shown in full; more are counted.
const SHOWN: usize = 5;

fn main() -> ExitCode {
    // A panic of the product is an outcome: it is told with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    match try_main(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::from(2)
        }
    }
}

fn try_main(arguments: &Arguments) -> Result<bool, String> {
    if arguments.catalogue {
        catalogue();
        return Ok(true);
    }
    if arguments.mutants {
        return Ok(mutants(arguments.from, arguments.jobs.max(1), &arguments.only));
    }
    let cast = match (arguments.disasters, arguments.witnesses) {
        (true, _) => Cast::Disaster,
        (_, true) => Cast::Witnesses,
        _ if arguments.passive => Cast::Passive,
        _ => Cast::Plain,
    };
    if let Some(seed) = arguments.seed {
        return Ok(one(seed, cast, arguments.trace));
    }
    let mut seeds: Vec<u64> = Vec::new();
    if let Some(path) = &arguments.regressions {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
        for word in text.lines().filter_map(first).filter(|word| !word.starts_with('#')) {
            seeds.push(word.parse().map_err(|_| format!("'{word}' is no seed"))?);
        }
    }
    let mut deadline = None;
    let mut fresh = 0..0;
    if let Some(minutes) = arguments.minutes {
        deadline = Some(Instant::now() + Duration::from_secs(minutes * 60));
        let start = clock_seed();
        fresh = start..u64::MAX;
    } else if let Some(text) = &arguments.seeds {
        fresh = parse_seeds(text)?;
    } else if seeds.is_empty() {
        fresh = parse_seeds("fresh:100")?;
    }
    println!("seeds: {} kept, then {}..", seeds.len(), fresh.start);
    let plan = Plan { kept: seeds, fresh, deadline, cast };
    let sum = many(&plan, arguments.jobs.max(1));
    let covered = !arguments.covered || is_covered(&sum);
    Ok(sum.failures.is_empty() && covered)
}

/// What to run.
struct Plan {
    kept: Vec<u64>,
    fresh: std::ops::Range<u64>,
    deadline: Option<Instant>,
    cast: Cast,
}

fn catalogue() {
    for row in Row::ALL {
        let standing = match row.standing() {
            Standing::Simulated => "simulated".to_owned(),
            Standing::Elsewhere(elsewhere) => elsewhere.to_owned(),
        };
        println!("{:<70} {standing}", format!("{row:?} {}", row.what()));
    }
}

/// Says what was missed.
fn is_covered(sum: &Sum) -> bool {
    let rows = sum.coverage.missed();
    for row in &rows {
        println!("MISSED: {row:?} {}", row.what());
    }
    let points = Point::ALL.iter().zip(sum.whims).filter(|(_, hits)| *hits == 0);
    let points: Vec<_> = points.map(|(point, _)| point).collect();
    for point in &points {
        println!("MISSED: {point:?}");
    }
    rows.is_empty() && points.is_empty()
}

fn mutants(from: u64, jobs: usize, only: &str) -> bool {
    let mut all_found = true;
    println!("{:<26} {:>6}  by", "mistake", "seeds");
    for mutant in Mutant::ALL.iter().copied() {
        let name = format!("{mutant:?}");
        if !name.contains(only) {
            continue;
        }
        if let Some(why) = unseen(mutant) {
            println!("{name:<26} {:>6}  by another test: {why}", "-");
            continue;
        }
        match find(mutant, from, jobs) {
            Some((seed, what)) => {
                let what = what.lines().next().unwrap_or_default();
                println!("{name:<26} {:>6}  {what}", seed - from + 1);
            }
            None => {
                all_found = false;
                println!("{name:<26} {MUTANT_SEEDS_MAX:>6}  NOT FOUND");
            }
        }
    }
    all_found
}

/// The first seed that fails with the mistake and passes without it, and how it fails.
fn find(mutant: Mutant, from: u64, jobs: usize) -> Option<(u64, String)> {
    let end = from + MUTANT_SEEDS_MAX;
    let mut begin = from;
    while begin < end {
        // The whole process has the mistake, so that all threads look for the same one.
        let planted = plant(&format!("{mutant:?}"));
        assert!(planted, "{mutant:?} is no mistake");
        let (next, last) = (AtomicU64::new(begin), AtomicU64::new(end));
        let found = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= last.load(Ordering::Relaxed) {
                            return;
                        }
                        if let Some(what) = run_mutant(seed, mutant).violation {
                            last.fetch_min(seed, Ordering::Relaxed);
                            let found = found.lock();
                            found.unwrap_or_else(PoisonError::into_inner).insert(seed, what);
                        }
                    }
                });
            }
        });
        unplant();
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (seed, what) = found.into_iter().next()?;
        // What fails without the mistake shows nothing about it.
        if run_without(seed, mutant).violation.is_none() {
            return Some((seed, what));
        }
        begin = seed + 1;
    }
    None
}

fn clock_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_nanos() as u64 / 1_000 % 1_000_000_000_000
}

fn parse_seeds(text: &str) -> Result<std::ops::Range<u64>, String> {
    let bad = || format!("'{text}' is no range of seeds: use A..B or fresh:N");
    if let Some(count) = text.strip_prefix("fresh:") {
        let start = clock_seed();
        return Ok(start..start + count.parse::<u64>().map_err(|_| bad())?);
    }
    let (from, to) = text.split_once("..").ok_or_else(bad)?;
    let from: u64 = from.parse().map_err(|_| bad())?;
    let to = to.parse().map_err(|_| bad())?;
    if from < to { Ok(from..to) } else { Err(bad()) }
}

fn one(seed: u64, cast: Cast, trace: bool) -> bool {
    let outcome = run_as(cast, seed, true);
    if trace {
        let mut out = std::io::stdout().lock();
        for line in &outcome.trace {
            // Whoever closed the pipe has seen enough.
            if writeln!(out, "{line}").is_err() {
                break;
            }
        }
    }
    println!(
        "seed {seed}: {} events, {:.1} simulated seconds, {} slots, trace {:016x}",
        outcome.events,
        outcome.nanos as f64 / 1e9,
        outcome.commits,
        outcome.hash
    );
    match &outcome.violation {
        None => true,
        Some(what) => {
            explain(seed, cast, what, &outcome.trace);
            false
        }
    }
}

fn explain(seed: u64, cast: Cast, what: &str, trace: &[String]) {
    println!("\nseed {seed} FAILED: {what}");
    println!("commit {}", commit());
    let (items, all) = shrink(seed, cast, what);
    println!("{} of {all} faults are enough:", items.len());
    for item in &items {
        println!("  {item}");
    }
    println!("the last of {} lines:", trace.len());
    for line in trace.iter().skip(trace.len().saturating_sub(LINES)) {
        println!("  {line}");
    }
    let cast = match cast {
        Cast::Plain => "",
        Cast::Disaster => " --disasters",
        Cast::Witnesses => " --witnesses",
        Cast::Passive => " --passive",
    };
    println!("again: cargo run --release -p quorate-sim -- --seed {seed}{cast} --trace");
}

fn commit() -> String {
    let output = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let text = output.ok().filter(|output| output.status.success());
    text.map_or_else(
        || "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

#[derive(Default)]
struct Sum {
    runs: u64,
    events: u64,
    nanos: u64,
    commits: u64,
    leaderships: u64,
    passive_votes: u64,
    fences: u64,
    checked: u64,
    stale_reads: u64,
    probes: u64,
    faults: u64,
    stalled: u64,
    changes: u64,
    transfers: u64,
    stuck: u64,
    coverage: Coverage,
    whims: [u64; Point::ALL.len()],
    failures: Vec<(u64, String)>,
}

impl Sum {
    fn add(&mut self, outcome: Outcome) {
        self.runs += 1;
        self.events += outcome.events;
        self.nanos += outcome.nanos;
        self.commits += outcome.commits;
        self.leaderships += outcome.leaderships;
        self.passive_votes += outcome.passive_votes;
        self.fences += outcome.fences;
        self.checked += outcome.checked;
        self.stale_reads += outcome.stale_reads;
        self.probes += outcome.probes;
        self.faults += outcome.faults;
        self.stalled += u64::from(outcome.stalled);
        self.changes += outcome.changes;
        self.transfers += outcome.transfers;
        self.stuck += u64::from(outcome.stuck);
        self.coverage.add(&outcome.coverage);
        for (sum, hits) in self.whims.iter_mut().zip(outcome.whims) {
            *sum += hits;
        }
        if let Some(what) = outcome.violation {
            println!("seed {} FAILED: {}", outcome.seed, what.lines().next().unwrap_or_default());
            self.failures.push((outcome.seed, what));
        }
    }
}

fn many(plan: &Plan, jobs: usize) -> Sum {
    let Plan { kept, fresh, deadline, cast } = plan;
    let cpu = cpu_seconds();
    let begin = Instant::now();
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Sum::default());
    let told = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let seed = match kept.get(index as usize) {
                        Some(seed) => *seed,
                        None => fresh.start.saturating_add(index - kept.len() as u64),
                    };
                    let is_fresh = index >= kept.len() as u64;
                    if is_fresh && seed >= fresh.end
                        || deadline.is_some_and(|deadline| Instant::now() > deadline)
                    {
                        return;
                    }
                    let outcome = run_as(*cast, seed, false);
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    sum.add(outcome);
                    let seconds = begin.elapsed().as_secs();
                    if seconds / 10 > told.swap(seconds / 10, Ordering::Relaxed) {
                        println!("{seconds} s: {} seeds, {} failed", sum.runs, sum.failures.len());
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    report(&sum, begin.elapsed(), cpu_seconds() - cpu);
    for (seed, what) in sum.failures.iter().take(SHOWN) {
        explain(*seed, *cast, what, &run_as(*cast, *seed, true).trace);
    }
    sum
}

/// What this process has used of its processors, in seconds of user and system time; 0 where the
/// system does not say.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold anything: utime and stime are the fields 14 and 15, in ticks,
    // of which Linux shows 100 a second on every machine.
    let after = text.rsplit(')').next().unwrap_or_default();
    let ticks =
        after.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

fn report(sum: &Sum, elapsed: Duration, cpu: f64) {
    let (seconds, cpu) = (elapsed.as_secs_f64().max(0.001), cpu.max(0.001));
    println!("\n{:<70} {:>10} {:>10}", "fault", "injected", "observed");
    let simulated = Row::ALL.iter().filter(|row| row.standing() == Standing::Simulated);
    let mut injected_all = 0;
    for row in simulated {
        let (injected, observed) = sum.coverage.of(*row);
        injected_all += injected;
        println!("{:<70} {injected:>10} {observed:>10}", format!("{row:?} {}", row.what()));
    }
    println!("\n{:<70} {:>10}", "legal misbehaviour of the product", "times");
    for (point, hits) in Point::ALL.iter().zip(sum.whims) {
        println!("{:<70} {hits:>10}", format!("{point:?}"));
    }
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, what) in &sum.failures {
        *kinds.entry(what.split(':').next().unwrap_or_default()).or_default() += 1;
    }
    println!("\nseeds               {} in {seconds:.0} s", sum.runs);
    println!(
        "processor time      {cpu:.1} s: {:.1} seeds a second of one core",
        sum.runs as f64 / cpu
    );
    println!(
        "events              {}: {:.0} a seed, {:.0} a second of one core",
        sum.events,
        sum.events as f64 / sum.runs.max(1) as f64,
        sum.events as f64 / cpu
    );
    let simulated = sum.nanos as f64 / 1e9;
    println!("simulated time      {simulated:.0} s: {:.0} times one core's", simulated / cpu);
    println!("faults injected     {injected_all}");
    println!("faults planned      {}", sum.faults);
    println!("slots committed     {}", sum.commits);
    println!("leader changes      {}", sum.leaderships);
    if sum.passive_votes + sum.fences > 0 {
        println!("passive votes       {}, and {} fences", sum.passive_votes, sum.fences);
    }
    println!("changes of members  {}", sum.changes);
    println!("handed over         {}", sum.transfers);
    println!("operations checked  {}", sum.checked);
    println!("stale reads checked {}", sum.stale_reads);
    println!("disks looked at     {}", sum.probes);
    if sum.stuck > 0 {
        println!("changes cut short   {} needed a disk that was lost in that moment", sum.stuck);
    }
    if sum.stalled > 0 {
        println!("stalled, said so    {} after a disaster", sum.stalled);
    }
    println!("failures            {} {kinds:?}", sum.failures.len());
}
