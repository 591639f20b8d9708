//! Crashes the log wherever it can crash; see the library's page.
#![forbid(unsafe_code)]

use clap::Parser;
use quorate_explore::log::{Flips, LogSubject, flip_every_byte, try_mutants, workload};
use quorate_explore::store::{self, StoreSubject};
use quorate_explore::{Budget, Figures, Verdict, explore};
use std::process::ExitCode;
use std::time::Instant;

#[derive(Parser, Debug)]
#[command(version, about = "Recovers the log from every image that a crash may leave of a run")]
struct Arguments {
    /// Operations of the workload.
    #[arg(long, default_value_t = 10_000)]
    operations: u64,
    /// What the workload and all samples are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Images tried where there are more than 1024.
    #[arg(long, default_value_t = 64)]
    samples: u32,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only this medium: pmem, file, or (with --flips) paged.
    #[arg(long)]
    medium: Option<String>,
    /// Then also see that each mistake is found: nothing made durable at one site, a wrong order.
    #[arg(long)]
    mutants: bool,
    /// Instead: flip one bit of each byte of a log of so many records.
    #[arg(long)]
    flips: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(records) = arguments.flips {
        return flips(records, arguments.medium.as_deref(), arguments.jobs.max(1));
    }
    let mut found = false;
    for (name, subject) in [("pmem", LogSubject::PMEM), ("file", LogSubject::FILE)] {
        if arguments.medium.as_deref().is_none_or(|only| only == name) {
            found |= run(&arguments, name, &subject).is_err();
        }
    }
    for (name, subject) in [("pmem", StoreSubject::PMEM), ("file", StoreSubject::FILE)] {
        if arguments.medium.as_deref().is_none_or(|only| only == name) {
            found |= run_store(&arguments, &format!("checkpoints on {name}"), &subject).is_err();
        }
    }
    if found { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The checkpoint store, by a run that meets everything that it does.
fn run_store(arguments: &Arguments, name: &str, subject: &StoreSubject) -> Result<(), ()> {
    let begin = Instant::now();
    let (seed, jobs) = (arguments.seed, arguments.jobs.max(1));
    let budget = Budget { samples: arguments.samples, seed, ..Budget::default() };
    let events =
        store::workload(subject).map_err(|fault| println!("{name}: without a crash: {fault}"))?;
    println!("{name}: {} events", events.len());
    let explored = explore(subject, subject.crash_model(), budget, None, &events, jobs);
    let figures = explored.map_err(|violation| println!("{name}: VIOLATION: {violation}"))?;
    print(name, &figures, begin.elapsed().as_secs_f64());
    if !arguments.mutants {
        return Ok(());
    }
    let begin = Instant::now();
    let verdicts = store::try_mutants(subject, &events, budget, &figures, jobs);
    judge(name, &verdicts, begin.elapsed().as_secs_f64())
}

fn judge(name: &str, verdicts: &[Verdict], seconds: f64) -> Result<(), ()> {
    let (mut found, mut wrong) = (0, 0);
    for verdict in verdicts {
        let said = match (&verdict.found, verdict.harmless) {
            (Some(violation), None) => {
                found += 1;
                format!("found: {}", violation.what)
            }
            (None, Some(why)) => format!("harmless: {why}"),
            (None, None) => "NOT FOUND".to_owned(),
            (Some(violation), Some(_)) => format!("NOT HARMLESS: {violation}"),
        };
        wrong += usize::from(verdict.found.is_some() == verdict.harmless.is_some());
        println!("{name}: mutant: {}: {said}", verdict.mutant);
    }
    let all = verdicts.len();
    println!("{name}: {found} of {all} mutants found, {wrong} not as expected, {seconds:.1} s");
    if wrong == 0 { Ok(()) } else { Err(()) }
}

fn flips(records: u64, only: Option<&str>, jobs: usize) -> ExitCode {
    let media =
        [("pmem", LogSubject::PMEM), ("paged", LogSubject::PAGED), ("file", LogSubject::FILE)];
    for (name, subject) in media {
        if only.is_some_and(|only| only != name) {
            continue;
        }
        let begin = Instant::now();
        let flipped = flip_every_byte(&subject, records, jobs);
        let seconds = begin.elapsed().as_secs_f64();
        match flipped {
            Ok(Flips { bytes, damage, survived, unused }) => println!(
                "{name}: one bit of each of {bytes} bytes of {records} records: {damage} reported as \
                 damage, {survived} in the superblock survived, {unused} where nothing is lost; \
                 {seconds:.1} s"
            ),
            Err(fault) => {
                println!("{name}: VIOLATION: {fault}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn run(arguments: &Arguments, name: &str, subject: &LogSubject) -> Result<(), ()> {
    let begin = Instant::now();
    let seed = arguments.seed;
    let recorded = workload(subject, arguments.operations, seed);
    let (events, done) = recorded.map_err(|fault| println!("{name}: without a crash: {fault}"))?;
    println!("{name}: seed {seed}, {} events of {done:?}", events.len());
    let budget = Budget { samples: arguments.samples, seed, ..Budget::default() };
    let model = subject.crash_model();
    let explored = explore(subject, model, budget, None, &events, arguments.jobs.max(1));
    let seconds = begin.elapsed().as_secs_f64();
    match explored {
        Ok(figures) if !arguments.mutants => {
            print(name, &figures, seconds);
            Ok(())
        }
        Ok(figures) => {
            print(name, &figures, seconds);
            let begin = Instant::now();
            let verdicts = try_mutants(subject, &events, budget, &figures, arguments.jobs.max(1));
            judge(name, &verdicts, begin.elapsed().as_secs_f64())
        }
        Err(violation) => {
            println!("{name}: VIOLATION after {seconds:.1} s: {violation}");
            Err(())
        }
    }
}

fn print(name: &str, figures: &Figures, seconds: f64) {
    let Figures { points, sampled, images, nested_runs, abandoned_runs, .. } = figures;
    println!("{name}: {points} points, all images of all but {sampled}; {images} images");
    for (depth, images) in &figures.nested_images {
        println!("{name}: {images} images after {depth} interrupted recoveries");
    }
    println!("{name}: {nested_runs} recoveries explored, {abandoned_runs} after a process' death");
    for (site, times) in &figures.sites {
        println!("{name}: {times:>8} × {site}");
    }
    println!("{name}: 0 violations in {} images, {seconds:.1} s", figures.all_images());
}
