//! `quorate-model`: looks at every state of the consensus core within bounds.

use clap::Parser;
use quorate_consensus::Mutant;
use quorate_model::{Bounds, Rows, run};
use std::process::ExitCode;
use std::time::Duration;

/// Looks at every state of the consensus core within bounds, and prints how many there are. Without
/// arguments: three acceptors, two proposers, three slots, one crash and one reconfiguration.
#[derive(Parser, Debug)]
#[command(name = "quorate-model")]
struct Arguments {
    /// Who votes at first.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
    voters: Vec<u16>,
    /// Who votes after the reconfiguration.
    #[arg(long, value_delimiter = ',', default_value = "2,3")]
    change: Vec<u16>,
    /// No reconfiguration.
    #[arg(long)]
    no_change: bool,
    /// How often replica 1, 2 and 3 campaign.
    #[arg(long, value_delimiter = ',', default_value = "1,1,0")]
    campaigns: Vec<u8>,
    /// Commands, all leaders together.
    #[arg(long, default_value_t = 0)]
    commands: u8,
    /// Commands and the change stand in slots up to this one.
    #[arg(long, default_value_t = 3)]
    slots: u64,
    /// Nothing happens any more once an entry stands above this slot.
    #[arg(long, default_value_t = 3)]
    last_slot: u64,
    /// Replicas that stop and start again.
    #[arg(long, default_value_t = 1)]
    crashes: u8,
    /// Persists become durable one by one, as events.
    #[arg(long)]
    slow_disks: bool,
    /// Rows that were overwritten may still arrive.
    #[arg(long)]
    late_rows: bool,
    /// A mistake in every replica, by its name (`CountOldBallotVotes`).
    #[arg(long)]
    mutant: Option<String>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Gives up after so many minutes; 0 for never.
    #[arg(long, default_value_t = 0)]
    minutes: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut campaigns = [0; Bounds::REPLICAS];
    for (held, given) in campaigns.iter_mut().zip(&arguments.campaigns) {
        *held = *given;
    }
    let mistake = match &arguments.mutant {
        None => None,
        Some(name) => {
            let all = Mutant::ALL.iter().copied();
            let found = all.clone().find(|mutant| format!("{mutant:?}") == *name);
            if found.is_none() {
                let all: Vec<String> = all.map(|mutant| format!("{mutant:?}")).collect();
                eprintln!("no mutant {name}; there are {}", all.join(", "));
                return ExitCode::from(2);
            }
            found
        }
    };
    let bounds = Bounds {
        voters: arguments.voters,
        change: (!arguments.no_change).then_some(arguments.change),
        campaigns,
        commands: arguments.commands,
        slots: arguments.slots,
        last_slot: arguments.last_slot,
        crashes: arguments.crashes,
        slow_disks: arguments.slow_disks,
        rows: if arguments.late_rows { Rows::Late } else { Rows::Fresh },
        mistake,
    };
    // A broken contract is a panic in the core, and is reported with the events that led to it.
    std::panic::set_hook(Box::new(|_| {}));
    let limit = (arguments.minutes > 0).then(|| Duration::from_secs(60 * arguments.minutes));
    let outcome = run(&bounds, arguments.threads, limit);
    println!("{outcome}");
    if outcome.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
