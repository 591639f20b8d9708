//! The fence torture test on a real device: `fence_torture [DEVICE] [ROUNDS]`.
//!
//! Fails unless deregistration let nothing land after it returned. Taking away access flags is the
//! control: on the software device of Debian 12 it lets bytes land late, and a real card may not.

use quorate_ffi::verbs::Library;
use quorate_transport_rdma::AdapterOptions;
use quorate_transport_rdma::torture::{Fence, run};
use std::error::Error;
use std::process::ExitCode;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let device = arguments.next().filter(|name| name != "-");
    let rounds = arguments.next().map_or(Ok(100), |rounds| rounds.parse())?;
    let library = Library::load()?;
    let options = AdapterOptions { device, ..AdapterOptions::default() };
    println!("fence           bytes  rounds  late  torn  refused");
    let mut held = true;
    for fence in [Fence::Deregister, Fence::AccessFlags] {
        for bytes in [512, 4096, 65_536] {
            let found = run(&library, &options, fence, bytes, rounds)?;
            let name = match fence {
                Fence::Deregister => "ibv_dereg_mr",
                Fence::AccessFlags => "access flags",
            };
            let (late, torn, refused) = (found.late, found.torn, found.refused);
            println!("{name:<14} {bytes:>6} {:>7} {late:>5} {torn:>5} {refused:>8}", found.rounds);
            held &= fence == Fence::AccessFlags || (late == 0 && found.rounds > 0);
        }
    }
    println!("{}", if held { "deregistration holds here" } else { "DEREGISTRATION DOES NOT HOLD" });
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
