//! Fuzz targets for everything in Quorate that reads bytes it did not write.
//!
//! A target is a function of bytes that must not panic, whatever they are. Most of them say more
//! than that: what was decoded encodes to the same again, a ring yields nothing that its writer did
//! not ship, a log that was damaged in one place still has what stands in the others. What a
//! checksum protects is fuzzed twice: as it is, and sealed again after the change, so that the code
//! behind the checksum is reached.
//!
//! Two drivers share the targets: `bounded`, which runs on stable Rust for a given time, and the
//! binaries of cargo-fuzz, which are guided by coverage. See `fuzz/README.md`.
#![forbid(unsafe_code)]

mod checkpoint;
mod config;
mod consensus;
mod input;
mod kv;
mod log;
mod medium;
mod mutate;
mod resp;
mod shipping;
mod tcp;
mod wire;

pub use checkpoint::checkpoint;
pub use config::config;
pub use consensus::{batch_groups, genesis};
pub use input::{Input, put_piece};
pub use kv::{kv_command, kv_restore, kv_store};
pub use log::{log_forged, log_recovery};
pub use mutate::Mutator;
pub use resp::{resp_parser, resp_session};
pub use shipping::{ring_reader, row_reader};
pub use tcp::{tcp_greeting, tcp_stream};
pub use wire::wire_message;

/// A target, as the bounded driver sees it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Of the function, of its binary and of its folder in `corpus/`.
    pub name: &'static str,
    /// Panics on a finding.
    pub run: fn(&[u8]),
    /// Inputs that get far, to mutate.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// More memory than this in one execution is a finding, in bytes.
    pub allocation_max: u64,
}

const MIB: u64 = 1 << 20;

/// All targets.
pub const TARGETS: [Target; 16] = [
    Target { name: "wire_message", run: wire_message, seeds: wire::seeds, allocation_max: MIB },
    Target {
        name: "ring_reader",
        run: ring_reader,
        seeds: shipping::ring_seeds,
        allocation_max: 4 * MIB,
    },
    Target { name: "row_reader", run: row_reader, seeds: shipping::row_seeds, allocation_max: MIB },
    // A frame may announce a message of 32 MiB, and gets the memory before the message came.
    Target {
        name: "tcp_stream",
        run: tcp_stream,
        seeds: tcp::stream_seeds,
        allocation_max: 80 * MIB,
    },
    Target {
        name: "tcp_greeting",
        run: tcp_greeting,
        seeds: tcp::greeting_seeds,
        allocation_max: MIB,
    },
    Target { name: "resp_parser", run: resp_parser, seeds: resp::seeds, allocation_max: 2 * MIB },
    Target {
        name: "resp_session",
        run: resp_session,
        seeds: resp::seeds,
        allocation_max: 64 * MIB,
    },
    Target { name: "kv_command", run: kv_command, seeds: kv::command_seeds, allocation_max: MIB },
    Target { name: "kv_store", run: kv_store, seeds: kv::store_seeds, allocation_max: 64 * MIB },
    Target {
        name: "kv_restore",
        run: kv_restore,
        seeds: kv::restore_seeds,
        allocation_max: 16 * MIB,
    },
    Target {
        name: "batch_groups",
        run: batch_groups,
        seeds: consensus::group_seeds,
        allocation_max: MIB,
    },
    Target { name: "genesis", run: genesis, seeds: consensus::genesis_seeds, allocation_max: MIB },
    Target {
        name: "log_recovery",
        run: log_recovery,
        seeds: log::recovery_seeds,
        allocation_max: 64 * MIB,
    },
    Target {
        name: "log_forged",
        run: log_forged,
        seeds: log::forged_seeds,
        allocation_max: 64 * MIB,
    },
    // Images of three blocks, written, read, sent and received.
    Target {
        name: "checkpoint",
        run: checkpoint,
        seeds: checkpoint::seeds,
        allocation_max: 64 * MIB,
    },
    Target { name: "config", run: config, seeds: config::seeds, allocation_max: 4 * MIB },
];
