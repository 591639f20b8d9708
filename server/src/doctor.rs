//! `quorate doctor`: what this machine can run, and what keeps it from running more.

use crate::cli::DoctorArgs;
use anyhow::{Context, Result};
use quorate::MediumKind;
use quorate::log::{FileMedium, MappedMedium, OpenError};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Readings of the clock from which its step is taken.
const READINGS: usize = 20_000;

/// Looks at the machine and prints line by line what it found, the sum last.
///
/// # Errors
/// If there is no folder to try media in.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let media = media(args.dir.as_deref())?;
    clock();
    let (transports, passive) = transports(args.quick);
    match &passive {
        Ok(device) => good(&format!(
            "passive followers: possible on {device}, with durability memory: its fence holds"
        )),
        Err(why) => bad(&format!("passive followers: not possible, because {why}")),
    }
    let followers = if passive.is_ok() { "active, passive" } else { "active" };
    println!(
        "\nthis machine can run: transport {}; durability {}; followers {followers}",
        join(&transports),
        join(&media)
    );
    Ok(ExitCode::SUCCESS)
}

fn good(text: &str) {
    println!("ok       {text}");
}

fn bad(text: &str) {
    println!("missing  {text}");
}

fn join(words: &[String]) -> String {
    words.join(", ")
}

/// Tries each medium in a folder of its own within `asked`, and takes that away again.
fn media(asked: Option<&Path>) -> Result<Vec<String>> {
    let parent = asked.map_or_else(std::env::temp_dir, Path::to_path_buf);
    let place = parent.join(format!("quorate-doctor-{}", std::process::id()));
    std::fs::create_dir_all(&place).with_context(|| {
        format!("cannot make a folder in {}: name another one with --dir", parent.display())
    })?;
    let _gone = Gone(place.clone());
    let tried: [(MediumKind, Result<(), OpenError>); 4] = [
        (MediumKind::File, FileMedium::open(&place.join("file")).map(drop)),
        (MediumKind::Dax, MappedMedium::dax(&place.join("dax")).map(drop)),
        (MediumKind::Emulated, MappedMedium::open(&place.join("emulated")).map(drop)),
        (MediumKind::Memory, Ok(())),
    ];
    let mut can = Vec::new();
    for (kind, result) in tried {
        let survives = kind.durability();
        match result {
            Ok(()) => {
                good(&format!("durability {kind} in {}: survives {survives}", parent.display()));
                can.push(kind.to_string());
            }
            Err(error) => bad(&format!("durability {kind} in {}: {error}", parent.display())),
        }
    }
    Ok(can)
}

struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        // A folder that stays behind in a temporary one harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Only leases trust a clock, and only its rate.
fn clock() {
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = std::fs::read_to_string(source);
    let source = source.map_or_else(|_| "not known".into(), |text| text.trim().to_owned());
    let mut step = Duration::MAX;
    let mut before = Instant::now();
    for _ in 0..READINGS {
        let now = Instant::now();
        let passed = now - before;
        if !passed.is_zero() {
            step = step.min(passed);
        }
        before = now;
    }
    let text = format!("clock: source {source}, smallest step seen {} ns", step.as_nanos());
    if step < Duration::from_millis(1) {
        good(&text);
    } else {
        bad(&format!("{text}: too coarse for leases, leave lease_ms at 0"));
    }
}

/// What carries the log, and the device for passive followers, or why there is none.
#[cfg(feature = "rdma")]
fn transports(quick: bool) -> (Vec<String>, Result<String, String>) {
    let found = quorate::rdma::diagnosis::diagnose(!quick);
    for line in &found.lines {
        if line.good {
            good(&format!("rdma: {}", line.text));
        } else {
            bad(&format!("rdma: {}", line.text));
        }
    }
    let mut can = vec!["tcp".to_owned()];
    can.extend(found.usable.iter().map(|device| format!("rdma on {device}")));
    let passive = match (found.fenced.first(), found.usable.is_empty()) {
        _ if !cfg!(feature = "passive") => {
            Err("this build is without them: build it with the feature `passive`".into())
        }
        (Some(device), _) => Ok(device.clone()),
        (None, true) => Err("there is no RDMA device that can be used".into()),
        (None, false) if quick => Err("the fence was not tried: ask without --quick".into()),
        (None, false) => Err("the fence was not shown to hold: see above".into()),
    };
    (can, passive)
}

#[cfg(not(feature = "rdma"))]
fn transports(_quick: bool) -> (Vec<String>, Result<String, String>) {
    bad("rdma: this build is without it (feature `rdma`)");
    (
        vec!["tcp".to_owned()],
        Err("this build is without RDMA (features `rdma` and `passive`)".into()),
    )
}
