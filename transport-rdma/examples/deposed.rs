//! Leaders that go on writing while the next promise is made, on a real device:
//! `deposed [DEVICE] [ROUNDS] [CONTROL_SECONDS]`.
//!
//! Fails if a record whose write completed was not reported after the fence, or anything landed after it. The two
//! controls, a fence that comes after the reading and none at all, go on until they showed such records, for
//! so long at the most.

use quorate_ffi::verbs::Library;
use quorate_transport_rdma::AdapterOptions;
use quorate_transport_rdma::deposed::{Finding, Promise, run};
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Rounds of a control between two looks at what it showed.
const CONTROL_ROUNDS: u32 = 10;

fn main() -> Result<ExitCode, Box<dyn Error + Send + Sync>> {
    let mut arguments = std::env::args().skip(1);
    let device = arguments.next().filter(|name| name != "-");
    let rounds = arguments.next().map_or(Ok(100), |rounds| rounds.parse())?;
    let seconds = arguments.next().map_or(Ok(60), |seconds| seconds.parse())?;
    let library = Library::load()?;
    let options = AdapterOptions { device, ..AdapterOptions::default() };
    println!("promise          rounds completed reported     lost rounds_lost  late ahead");
    let found = run(&library, &options, rounds, Promise::FenceThenRead)?;
    show("fence, read", &found);
    let held = found.lost == 0 && found.late == 0 && found.ahead > 0;
    let mut noticed = true;
    for (name, promise) in
        [("read, fence", Promise::ReadThenFence), ("read, no fence", Promise::ReadOnly)]
    {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut found = Finding::default();
        while found.lost == 0 && Instant::now() < deadline {
            found = run(&library, &options, CONTROL_ROUNDS, promise)?;
            show(name, &found);
        }
        noticed &= found.lost > 0;
    }
    println!(
        "{}; {}",
        if held { "what completed is reported" } else { "COMPLETED AND NOT REPORTED" },
        if noticed { "the controls noticed" } else { "THE CONTROLS NOTICED NOTHING" }
    );
    Ok(if held && noticed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(name: &str, found: &Finding) {
    let Finding { rounds, completed, reported, lost, rounds_lost, late, ahead } = found;
    println!(
        "{name:<15} {rounds:>7} {completed:>9} {reported:>8} {lost:>8} {rounds_lost:>11} {late:>5} {ahead:>5}"
    );
}
