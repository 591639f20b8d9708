//! Runs the fuzz targets for a given time, on stable Rust: what CI does on every change.
//!
//! ```text
//! bounded --seconds 40                  all targets, so long together
//! bounded --seconds 60 --target config  one target
//! bounded --target config --replay FILE one input
//! bounded --target config --seeds DIR   writes the built-in seeds for cargo-fuzz
//! ```
#![forbid(unsafe_code)]

use quorate_fuzz::{Mutator, TARGETS, Target};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One execution that takes longer is a finding.
const EXECUTION_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Options {
    seconds: f64,
    target: Option<String>,
    seed: Option<u64>,
    replay: Option<PathBuf>,
    seeds: Option<PathBuf>,
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(findings) => {
            println!("{findings} findings");
            ExitCode::FAILURE
        }
        Err(what) => {
            eprintln!("{what}");
            ExitCode::from(2)
        }
    }
}

fn options() -> Result<Options, String> {
    let mut options = Options { seconds: 10.0, ..Options::default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let wrong = |_| format!("{word} {value}: not a number");
        match word.as_str() {
            "--seconds" => options.seconds = value.parse().map_err(|_| wrong(()))?,
            "--seed" => options.seed = Some(value.parse().map_err(|_| wrong(()))?),
            "--target" => options.target = Some(value),
            "--replay" => options.replay = Some(value.into()),
            "--seeds" => options.seeds = Some(value.into()),
            _ => return Err(format!("unknown option {word}; see fuzz/README.md")),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> Result<usize, String> {
    let chosen: Vec<Target> = TARGETS
        .into_iter()
        .filter(|target| options.target.as_ref().is_none_or(|name| name == target.name))
        .collect();
    let first = chosen.first().ok_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        format!("no such target; there are: {}", names.join(" "))
    })?;
    let watchdog = Watchdog::start();
    if let Some(folder) = &options.seeds {
        return write_seeds(&chosen, folder);
    }
    if let Some(file) = &options.replay {
        let input = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let finding = watchdog.execute(first, &input);
        println!("{}: {}", first.name, finding.as_deref().unwrap_or("no finding"));
        return Ok(usize::from(finding.is_some()));
    }
    let seed = options.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_nanos() as u64
    });
    println!("seed {seed}");
    let each = Duration::from_secs_f64(options.seconds.max(0.0) / chosen.len() as f64);
    let mut findings = 0;
    for target in &chosen {
        findings += usize::from(fuzz(target, seed, each, &watchdog)?);
    }
    Ok(findings)
}

fn write_seeds(chosen: &[Target], folder: &Path) -> Result<usize, String> {
    for target in chosen {
        let folder = folder.join(target.name);
        let wrong = |error| format!("{}: {error}", folder.display());
        std::fs::create_dir_all(&folder).map_err(wrong)?;
        for (index, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{index:02}")), seed).map_err(wrong)?;
        }
    }
    Ok(0)
}

/// Replays the corpus, then makes new inputs from it until the time is over. Stops at the first
/// finding.
fn fuzz(target: &Target, seed: u64, time: Duration, watchdog: &Watchdog) -> Result<bool, String> {
    let mut pool = (target.seeds)();
    let built_in = pool.len();
    pool.extend(corpus(target.name)?);
    let begin = Instant::now();
    let mut executions = 0u64;
    let mut mutator = Mutator::new(seed);
    loop {
        let input = match pool.get(executions as usize) {
            Some(known) => known.clone(),
            None if begin.elapsed() >= time => break,
            None => mutator.next(&pool),
        };
        executions += 1;
        if let Some(what) = watchdog.execute(target, &input) {
            println!("{}: execution {executions} of seed {seed}: {what}", target.name);
            report(target.name, &input);
            return Ok(true);
        }
    }
    let rate = executions as f64 / begin.elapsed().as_secs_f64();
    let files = pool.len() - built_in;
    println!(
        "{:<14} {executions:>9} executions {rate:>9.0}/s  {built_in} seeds, {files} corpus files",
        target.name
    );
    Ok(false)
}

/// The inputs kept in the repository.
fn corpus(name: &str) -> Result<Vec<Vec<u8>>, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    paths.iter().map(read).collect()
}

/// Says how to come back to an input.
fn report(name: &str, input: &[u8]) {
    let hex = input.iter().fold(String::new(), |mut hex, byte| {
        // Writing into a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    println!("input of {} bytes: {hex}", input.len());
    println!("replay: echo {hex} | xxd -r -p > finding");
    println!(
        "        cargo run --release --manifest-path fuzz/Cargo.toml -- --target {name} --replay finding"
    );
}

/// Notices an execution that does not end.
struct Watchdog {
    /// When the present execution began, in milliseconds since the start and 1; 0 for none.
    since: Arc<AtomicU64>,
    present: Arc<Mutex<(&'static str, Vec<u8>)>>,
    start: Instant,
    /// Of the last panic in the source.
    place: Arc<Mutex<String>>,
}

impl Watchdog {
    fn start() -> Self {
        let (since, start) = (Arc::new(AtomicU64::new(0)), Instant::now());
        let present = Arc::new(Mutex::new(("", Vec::new())));
        let (watched, shown) = (Arc::clone(&since), Arc::clone(&present));
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(EXECUTION_MAX / 10);
                let began = watched.load(Ordering::SeqCst);
                let now = start.elapsed().as_millis() as u64;
                if began != 0 && now.saturating_sub(began) > EXECUTION_MAX.as_millis() as u64 {
                    let present = shown.lock().unwrap_or_else(PoisonError::into_inner);
                    println!("{}: no end after {EXECUTION_MAX:?}", present.0);
                    report(present.0, &present.1);
                    std::process::exit(1);
                }
            }
        });
        // The finding is printed with its input; the hook only notes the place.
        let place = Arc::new(Mutex::new(String::new()));
        let noted = Arc::clone(&place);
        std::panic::set_hook(Box::new(move |panic| {
            let at = panic.location().map(ToString::to_string).unwrap_or_default();
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = at;
        }));
        Self { since, present, start, place }
    }

    /// Runs the target once; what is wrong, if anything is.
    fn execute(&self, target: &Target, input: &[u8]) -> Option<String> {
        {
            let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
            present.0 = target.name;
            present.1.clear();
            present.1.extend_from_slice(input);
        }
        self.since.store(1 + self.start.elapsed().as_millis() as u64, Ordering::SeqCst);
        let mut outcome = Ok(());
        let memory = allocation_counter::measure(|| {
            outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
        });
        self.since.store(0, Ordering::SeqCst);
        if let Err(panic) = outcome {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
            return Some(format!("panic at {place}: {}", text.unwrap_or("of an unknown kind")));
        }
        let (used, max) = (memory.bytes_max, target.allocation_max);
        (used > max).then(|| format!("{used} bytes of memory at a time, the limit is {max}"))
    }
}
