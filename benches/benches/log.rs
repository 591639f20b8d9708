//! The log on `emulated` against `memcpy + clwb + sfence` of the same bytes, on `file` against
//! `pwrite + fdatasync`; the ratios are printed at the end. And how fast a log is recovered.
//!
//! `cargo bench -p quorate-benches --bench log`, with `--features peers` beside raft-engine.
//! `QUORATE_BENCH_MEMORY` and `QUORATE_BENCH_DISK` name other directories than `/dev/shm` and the
//! build's own, `QUORATE_DAX_DIR` one on a DAX file system, where `dax` is measured too.
//! `QUORATE_BENCH_TURNS` (101) is how many turns a median is taken over: a disk whose syncs take 0.1 ms
//! or 4 ms, as it likes, needs many.

use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use quorate_benches::log::{Contest, Load, OURS, PEER, RAW, recovery_log};
use quorate_pmem_log::MediumKind;
use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

const SIZES: [usize; 4] = [64, 256, 1 << 10, 64 << 10];
const BATCHES: [usize; 3] = [1, 16, 256];
/// Turns that a median is taken over, at least, unless each takes longer than the limit.
const TURNS: usize = 101;
const TURN_LIMIT: Duration = Duration::from_millis(80);
/// The payload of the log that is recovered.
const RECOVERED_BYTES: u64 = 1 << 30;

/// What is printed at the end.
struct Row {
    medium: MediumKind,
    load: Load,
    nanos: [Option<f64>; 3],
    ratio: Option<f64>,
    peer_ratio: Option<f64>,
}

thread_local! {
    static ROWS: RefCell<Vec<Row>> = const { RefCell::new(Vec::new()) };
    static RECOVERIES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn place(medium: MediumKind) -> Option<TempDir> {
    let named = |name| std::env::var_os(name).map(PathBuf::from);
    let target = || PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let memory = || Some(PathBuf::from("/dev/shm")).filter(|place| place.is_dir());
    let place = match medium {
        MediumKind::Dax => named("QUORATE_DAX_DIR")?,
        MediumKind::File => named("QUORATE_BENCH_DISK").unwrap_or_else(target),
        _ => named("QUORATE_BENCH_MEMORY").or_else(memory).unwrap_or_else(target),
    };
    Some(TempDir::new_in(place).expect("a directory for the benchmark"))
}

fn commits(criterion: &mut Criterion) {
    let turns = std::env::var("QUORATE_BENCH_TURNS").map_or(TURNS, |turns| {
        turns.parse().expect("QUORATE_BENCH_TURNS is how many turns a median is taken over")
    });
    for medium in [MediumKind::Dax, MediumKind::Emulated, MediumKind::File] {
        let shapes: &[bool] = if medium == MediumKind::File { &[false] } else { &[false, true] };
        for apart in shapes {
            let how = if *apart { "an entry for each command" } else { "batched" };
            let mut group = criterion.benchmark_group(format!("commit on {medium}, {how}"));
            group.sampling_mode(SamplingMode::Flat).sample_size(10);
            group.warm_up_time(Duration::from_millis(200));
            group.measurement_time(Duration::from_millis(700));
            for (bytes, batch) in SIZES.into_iter().flat_map(|it| BATCHES.map(|batch| (it, batch)))
            {
                if *apart && batch == 1 {
                    continue;
                }
                let Some(directory) = place(medium) else { continue };
                let load = Load { bytes, batch, apart: *apart };
                let mut contest = None;
                group.throughput(Throughput::Bytes(load.commit_bytes() as u64));
                group.bench_function(BenchmarkId::new(format!("{bytes} B"), batch), |bencher| {
                    let contest =
                        contest.get_or_insert_with(|| Contest::new(medium, directory.path(), load));
                    bencher.iter_custom(|commits| contest.run(commits));
                });
                // Filtered out by the command line: nothing ran.
                let Some(mut contest) = contest else { continue };
                contest.take_turns(turns, TURN_LIMIT * turns as u32);
                let row = Row {
                    medium,
                    load,
                    nanos: [OURS, RAW, PEER].map(|side| contest.nanos(side)),
                    ratio: contest.ratio(RAW),
                    peer_ratio: contest.ratio(PEER),
                };
                ROWS.with_borrow_mut(|rows| rows.push(row));
            }
            group.finish();
        }
    }
}

fn recovery(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("recovery of 1 GiB");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_millis(1));
    group.measurement_time(Duration::from_secs(4));
    group.throughput(Throughput::Bytes(RECOVERED_BYTES));
    for medium in [MediumKind::Dax, MediumKind::Emulated, MediumKind::File] {
        for bytes in [1 << 10, 64 << 10] {
            let Some(directory) = place(medium) else { continue };
            let mut log = None;
            let mut times = Vec::new();
            let id = BenchmarkId::new(medium.to_string(), format!("entries of {bytes} B"));
            group.bench_function(id, |bencher| {
                let log = log.get_or_insert_with(|| {
                    recovery_log(medium, directory.path(), RECOVERED_BYTES, bytes)
                });
                bencher.iter_custom(|count| {
                    let times = &mut times;
                    let opened = (0..count).map(|_| {
                        let (wall, processor) = log.open();
                        times.push((wall, processor));
                        wall
                    });
                    opened.sum()
                });
            });
            let rate = |mut times: Vec<Duration>| {
                times.sort();
                let median = times.get(times.len() / 2).copied().unwrap_or_default();
                RECOVERED_BYTES as f64 / median.as_secs_f64() / 1e9
            };
            if !times.is_empty() {
                let (wall, processor) = times.into_iter().unzip();
                let line = format!(
                    "{:<9} entries of {bytes:>6} B  {:>6.2} GB/s, {:>6.2} GB/s of processor time",
                    medium.to_string(),
                    rate(wall),
                    rate(processor)
                );
                RECOVERIES.with_borrow_mut(|lines| lines.push(line));
            }
        }
    }
    group.finish();
}

/// The ratio that a row is to keep below, if one was promised.
fn target(row: &Row) -> Option<f64> {
    match (row.medium, row.load) {
        (_, Load { apart: true, batch: 2.., .. }) => None,
        (MediumKind::File, _) => Some(1.15),
        (_, Load { bytes: 1024.., .. }) => Some(1.3),
        _ => Some(2.0),
    }
}

fn table(_: &mut Criterion) {
    let show = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |it| format!("{it:.0}"));
    println!(
        "\n{:<9} {:>6} {:>5} {:<8} {:>12} {:>12} {:>6} {:>6}  {:>14} {:>8}",
        "medium",
        "bytes",
        "batch",
        "entries",
        "ours ns",
        "raw ns",
        "ratio",
        "goal",
        "raft-engine ns",
        "ours/it"
    );
    ROWS.with_borrow(|rows| {
        for row in rows {
            let Load { bytes, batch, apart } = row.load;
            let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |it| format!("{it:.2}"));
            let missed = matches!((row.ratio, target(row)), (Some(is), Some(goal)) if is > goal);
            println!(
                "{:<9} {bytes:>6} {batch:>5} {:<8} {:>12} {:>12} {:>6} {:>6}  {:>14} {:>8}{}",
                row.medium.to_string(),
                if apart { "each" } else { "batched" },
                show(row.nanos[OURS]),
                show(row.nanos[RAW]),
                ratio(row.ratio),
                ratio(target(row)),
                show(row.nanos[PEER]),
                ratio(row.peer_ratio),
                if missed { "  MISSED" } else { "" },
            );
        }
    });
    println!("\nrecovery of 1 GiB");
    RECOVERIES.with_borrow(|lines| lines.iter().for_each(|line| println!("{line}")));
}

criterion_group!(benches, commits, recovery, table);
criterion_main!(benches);
