//! Soft-RoCE and emulated persistent memory on any Linux.
//!
//! Where the kernel of this machine has Soft-RoCE, it is used. Everywhere else virtual machines boot
//! with Debian's kernel: they see this machine's files (read-only, changes stay in their memory), so
//! that whatever was built here runs there. One machine is for many processes on one RDMA device;
//! several are real hosts that can be killed, paused and cut from one another.
//!
//! Nothing of the product needs this crate. [`Builder`] and [`Lab`] are for tests, the program
//! `quorate-soft-roce` is for people: `docs/soft-roce.md` says how to use both.
//!
//! ```no_run
//! use quorate_soft_roce::{Builder, Program, Traffic};
//! use std::time::Duration;
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Builder::new("target/debug/quorate-soft-roce").hosts(3).start()?;
//! let device = lab.host(1).run(&Program::new("ibv_devinfo"), Duration::from_secs(30))?;
//! println!("{}", device.success()?);
//! lab.network().isolate(2, Traffic::Rdma);
//! lab.host(3).kill();
//! # Ok(())
//! # }
//! ```
//!
//! Machines are never left behind: they end when their handle is dropped, and when the process that
//! started them dies in whatever way.
//!
//! What it does not do: it measures nothing. Emulated processors run 10 to 30 times slower than
//! real ones, so a figure from a guest is a ratio to another one of the same guest or nothing.
#![forbid(unsafe_code)]

pub mod agent;
mod frame;
mod guest;
mod initramfs;
pub mod kernel;
mod lab;
mod machine;
mod nak;
pub mod needs;
pub mod rxe;
mod switch;
pub mod wire;

pub use guest::{Event, Output, Running};
pub use lab::{Builder, HOSTS_MAX, Host, Lab};
pub use machine::{Accelerator, Pmem, accelerator};
pub use rustix::process::Signal;
pub use switch::{Count, Fault, Switch, Traffic};
pub use wire::{Program, Ready, Status};
