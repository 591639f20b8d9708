//! The fence torture test on a real device: `fence_torture [DEVICE] [ROUNDS] [CONTROL_SECONDS]`.
//!
//! With `CONTROL_SECONDS` the control goes on until it showed something, for so long at the most.
//! Fails unless deregistration let nothing land after it returned. Taking away access flags is the
//! control: on the software device of Debian 12 it lets bytes land late, and a real card may not.

use quorate_ffi::verbs::Library;
use quorate_transport_rdma::AdapterOptions;
use quorate_transport_rdma::torture::{Fence, Finding, run};
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let device = arguments.next().filter(|name| name != "-");
    let rounds = arguments.next().map_or(Ok(100), |rounds| rounds.parse())?;
    let seconds = arguments.next().map_or(Ok(0), |seconds| seconds.parse())?;
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let library = Library::load()?;
    let options = AdapterOptions { device, ..AdapterOptions::default() };
    println!("fence           bytes  rounds  late  torn  refused");
    let mut held = true;
    let mut controlled = false;
    for fence in [Fence::Deregister, Fence::AccessFlags] {
        for bytes in [512, 4096, 65_536] {
            let found = run(&library, &options, fence, bytes, rounds)?;
            show(&found);
            held &= fence == Fence::AccessFlags || (found.late == 0 && found.rounds > 0);
            controlled |= fence == Fence::AccessFlags && found.late > 0;
        }
    }
    while !controlled && Instant::now() < deadline {
        let found = run(&library, &options, Fence::AccessFlags, 4096, rounds)?;
        show(&found);
        controlled = found.late > 0;
    }
    println!("{}", if held { "deregistration holds here" } else { "DEREGISTRATION DOES NOT HOLD" });
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(found: &Finding) {
    let name = match found.fence {
        Fence::Deregister => "ibv_dereg_mr",
        Fence::AccessFlags => "access flags",
    };
    let Finding { bytes, rounds, late, torn, refused, .. } = found;
    println!("{name:<14} {bytes:>6} {rounds:>7} {late:>5} {torn:>5} {refused:>8}");
}
