//! The command line.

use crate::config::TimerConfig;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// A linearizable, durable key-value store that speaks the Redis protocol.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What to log: error, warn, info, debug, trace, or a filter like `quorate=debug,info`.
    #[arg(long, global = true, default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// How to log it.
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a whole cluster on this machine, one process for each replica.
    Cluster(ClusterArgs),
    /// Runs one replica.
    Serve(ServeArgs),
    /// Shows how a cluster is doing. Exit code 0: it serves; 1: it does not, or somebody is missing.
    Status(StatusArgs),
    /// Shows and changes who is a member of a running cluster.
    #[command(subcommand)]
    Member(MemberCommand),
    /// Has replicas take a checkpoint now, and waits until it is durable.
    Checkpoint(CheckpointArgs),
    /// Looks at a log without changing it.
    #[command(subcommand)]
    Log(LogCommand),
    /// Shows or exports the state that a stopped replica's directory holds, as of a slot. Writes
    /// nothing to it.
    Replay(ReplayArgs),
    /// Makes another cluster of what is left after the majority is lost for good. Says what it costs,
    /// and changes nothing without the confirmation that it asks for. Exit code 1: nothing was changed.
    Recover(RecoverArgs),
    /// Hands leadership to another replica, without a stop. Exit code 0: it leads; 1: it does not.
    Transfer(TransferArgs),
    /// Measures a cluster of three processes on this machine.
    Bench(BenchArgs),
    /// Says what this machine can run: transports, durabilities, clock; and what is missing for more.
    Doctor(DoctorArgs),
}

/// `quorate cluster`
#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    /// How many replicas.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub replicas: u16,
    /// Where the replicas keep their data; started again with the same folder, the cluster continues.
    /// By default a folder under the user's data directory.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Replica I serves clients on port BASE + I - 1, its peers on BASE + 99 + I, metrics on
    /// BASE + 199 + I.
    #[arg(long, default_value_t = 7000, value_name = "PORT",
          value_parser = clap::value_parser!(u16).range(1..=65_000))]
    pub base_port: u16,
    /// What an acknowledged write survives: `file` (power failure), `dax` (power failure, on
    /// persistent memory), `emulated` (the death of all processes), `memory` (nothing). `file` for a
    /// new cluster, what it has for an old one.
    #[arg(long, value_name = "MEDIUM")]
    pub durability: Option<String>,
    /// What carries the log between replicas: `tcp`, or `rdma` where there is a device.
    #[arg(long, default_value = "tcp", value_name = "TRANSPORT")]
    pub transport: String,
    /// How followers vote: `active`, or `passive` with RDMA and the durability `memory`.
    #[arg(long, default_value = "active", value_name = "HOW")]
    pub followers: String,
    /// How soon a silent leader is replaced.
    #[arg(long, value_enum, default_value_t)]
    pub timers: Timers,
}

/// Presets of the protocol's timers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Timers {
    /// Heartbeats of 25 ms, elections after 200 to 400 ms: for any network, and for busy machines.
    #[default]
    Default,
    /// Heartbeats of 4 ms, elections after 16 to 32 ms: for machines that are not paused for that long.
    Fast,
}

impl Timers {
    /// As keys of the configuration.
    #[must_use]
    pub fn config(self) -> TimerConfig {
        match self {
            Self::Default => TimerConfig::default(),
            Self::Fast => TimerConfig {
                heartbeat_ms: 4,
                election_timeout_min_ms: 16,
                election_timeout_max_ms: 32,
                ..TimerConfig::default()
            },
        }
    }
}

/// `quorate serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The configuration, TOML; see docs/configuration.md.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Ends when standard input ends: for a parent process that must not leave us behind.
    #[arg(long, hide = true)]
    pub stop_with_stdin: bool,
}

/// `quorate status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Prints one JSON array with a report of each replica.
    #[arg(long)]
    pub json: bool,
    /// Client addresses of the replicas to ask, as HOST:PORT.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', conflicts_with_all = ["config", "dir"])]
    pub addr: Vec<String>,
    /// Asks all members that this configuration names.
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    pub config: Option<PathBuf>,
    /// Asks the cluster that `quorate cluster --dir DIR` runs; its default folder by default.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `quorate transfer`
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// The replica that is to lead; without it, whichever is fittest.
    #[arg(long, value_name = "NODE")]
    pub to: Option<u16>,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: StatusArgs,
}

/// `quorate checkpoint`
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// Client addresses of the replicas, as HOST:PORT.
    #[arg(required = true, value_name = "HOST:PORT", value_delimiter = ',')]
    pub addr: Vec<String>,
    /// How long to wait.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub timeout: u64,
}

/// `quorate member`
#[derive(Debug, Subcommand)]
pub enum MemberCommand {
    /// Shows the members.
    List(AskArgs),
    /// Adds a replica that receives the log and does not vote, and waits until it has caught up; or a
    /// witness, which votes at once and keeps no payloads.
    Add {
        /// Its number.
        node: u16,
        /// Where its peers reach it, HOST:PORT.
        peer: String,
        /// Where clients reach it, HOST:PORT.
        client: Option<String>,
        /// It was started as a witness (`witness = true`), and becomes one.
        #[arg(long)]
        witness: bool,
        /// How many voters shall hold what is written; with the first witness 2 if nothing is said.
        #[arg(long, requires = "witness")]
        copies: Option<u16>,
        /// Whom to ask.
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Sets how many voters hold what is written before it counts, where there are witnesses. With 1, writes
    /// go on while one voter is left, on its disk alone.
    Copies {
        /// How many, from 1 to the number of voters.
        copies: u16,
        /// Whom to ask.
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Makes a member that has caught up a voter.
    Promote {
        /// Its number.
        node: u16,
        /// Whom to ask.
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Removes a member, and waits until it is needed no more.
    Remove {
        /// Its number.
        node: u16,
        /// Whom to ask.
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Replaces a voter by another replica in one go: adds it, waits until it has caught up, switches,
    /// and says when the old one is needed no more. The same number twice readmits a replica that lost
    /// its disk.
    Replace {
        /// Who goes.
        old: u16,
        /// Who comes.
        new: u16,
        /// Where its peers reach it, HOST:PORT, if it is no member yet.
        peer: Option<String>,
        /// Where clients reach it, HOST:PORT.
        client: Option<String>,
        /// Whom to ask.
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Makes every member that a configuration file names one of the cluster: a voter, reached where the
    /// file says. What is so already stays; members that the file does not name stay too.
    Ensure {
        /// The configuration with the members that there shall be.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Whom to ask; without it, the members that FILE names.
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Sets where a member is reached.
    Move {
        /// Its number.
        node: u16,
        /// Where its peers reach it, HOST:PORT.
        peer: String,
        /// Where clients reach it, HOST:PORT.
        client: Option<String>,
        /// Whom to ask.
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Sets how many promises elect and how many votes choose, or 0 0 for majorities.
    Quorums {
        /// Promises that make a leader.
        elect: u16,
        /// Votes that choose a slot.
        choose: u16,
        /// Whom to ask.
        #[command(flatten)]
        ask: AskArgs,
    },
}

/// Whom to ask.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// Client addresses of some replicas, as HOST:PORT.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', conflicts_with_all = ["config", "dir"])]
    pub addr: Vec<String>,
    /// The members that this configuration names.
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    pub config: Option<PathBuf>,
    /// The cluster that `quorate cluster --dir DIR` runs; its default folder by default.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Gives up after so many seconds; what was begun is gone on with when the command is run again.
    #[arg(long, default_value_t = 300)]
    pub timeout: u64,
}

/// `quorate doctor`
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// The folder whose file system is looked at; by default the one for temporary files.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leaves out the fence torture test of each RDMA device, which takes some seconds.
    #[arg(long)]
    pub quick: bool,
}

/// `quorate log`
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Prints what a log holds, record by record.
    Inspect(LogArgs),
    /// Checks every byte of a log. Exit code 0: it is sound; 1: it is not.
    Verify(LogArgs),
    /// Writes every record with its value, as one JSON object a line. Exit code as for verify.
    Export(LogArgs),
    /// Says what the next start would cut from the log, and why. Writes nothing to it.
    TruncateReport(LogArgs),
}

/// A log directory.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// The directory of one replica's log.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// `quorate replay`
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The directory of one replica's log, with its checkpoints.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// The last slot that is applied; without it, the last one that the directory knows to be chosen.
    #[arg(long, value_name = "SLOT")]
    pub to: Option<u64>,
    /// Prints the digest behind each slot: where two replicas part, their first different line says.
    #[arg(long)]
    pub slots: bool,
    /// Writes all keys to this file, as one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
}

/// `quorate recover`
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The configuration of the replica that is to go on. It does not run.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The directory of another replica that is left, or a copy of it. It is read only: what it has
    /// accepted beyond the first one is taken over. May be given more than once.
    #[arg(long, value_name = "DIR")]
    pub and: Vec<PathBuf>,
    /// Does it. The number of the cluster, as this command prints it.
    #[arg(long, value_name = "CLUSTER")]
    pub accept_loss: Option<String>,
}

/// `quorate bench`
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Which durabilities, comma separated.
    #[arg(long, default_value = "memory,emulated,file", value_delimiter = ',')]
    pub durability: Vec<String>,
    /// How many commands in flight, comma separated.
    #[arg(long, default_value = "1,16,256,4096", value_delimiter = ',')]
    pub in_flight: Vec<usize>,
    /// Kills the leader that many times and measures how long until the others serve again.
    #[arg(long, value_name = "ROUNDS")]
    pub failover: Option<u32>,
    /// Hands leadership over that many times and measures the longest time without an acknowledged
    /// write.
    #[arg(long, value_name = "ROUNDS", conflicts_with = "failover")]
    pub transfer: Option<u32>,
    /// Compares linearizable reads at a leader with and without a lease, 64 clients each, by turns.
    #[arg(long, conflicts_with_all = ["failover", "transfer"])]
    pub reads: bool,
    /// How soon a silent leader is replaced.
    #[arg(long, value_enum, default_value_t)]
    pub timers: Timers,
    /// Bytes of a value.
    #[arg(long, default_value_t = 64)]
    pub value_bytes: usize,
    /// Seconds for each figure.
    #[arg(long, default_value_t = 4)]
    pub seconds: u64,
    /// First port used; see `quorate cluster --help`.
    #[arg(long, default_value_t = 17_000)]
    pub base_port: u16,
    /// Where the replicas keep their data for the time of the measurement; the disk under test.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}
