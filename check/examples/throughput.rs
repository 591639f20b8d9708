//! How fast histories are checked: `cargo run --release -p quorate-check --example throughput`.
//!
//! Generation is not timed. One thread.

use std::time::Instant;

use quorate_check::generate::{Commands, Random, Shape, linearizable};
use quorate_check::{History, Kv, KvInput, KvOutput, Limits, Verdict, check};

fn main() {
    println!("clients  keys  operations  unknown  commands      operations/s");
    let shape = |clients, keys, operations, unknown_per_mille, commands| Shape {
        clients,
        keys,
        operations,
        unknown_per_mille,
        commands,
    };
    for shape in [
        shape(10, 10, 100_000, 0, Commands::Registers),
        shape(10, 10, 100_000, 0, Commands::All),
        shape(30, 10, 100_000, 0, Commands::Registers),
        shape(10, 100, 1_000_000, 0, Commands::Registers),
        shape(10, 100, 100_000, 10, Commands::Registers),
        shape(10, 100, 100_000, 10, Commands::All),
        shape(10, 1, 10_000, 0, Commands::Registers),
        shape(20, 1, 10_000, 0, Commands::Registers),
    ] {
        measure(&shape, linearizable(&shape, &mut Random::new(1)));
        measure(&shape, with_a_wrong_read(linearizable(&shape, &mut Random::new(1))));
    }
}

fn measure(shape: &Shape, history: History<KvInput, KvOutput>) {
    let start = Instant::now();
    let verdict = check(&Kv, &history, &Limits::default());
    let seconds = start.elapsed().as_secs_f64();
    let rate = match verdict {
        Verdict::Linearizable { operations } => format!("{:.0}", operations as f64 / seconds),
        Verdict::Violation(minimal) => {
            format!("violation, shrunk to {}, in {seconds:.2} s", minimal.operations.len())
        }
        undecided => format!("{undecided}, in {seconds:.2} s"),
    };
    println!(
        "{:>7} {:>5} {:>11} {:>7}%  {:<12}  {rate}",
        shape.clients,
        shape.keys,
        shape.operations,
        shape.unknown_per_mille as f64 / 10.0,
        format!("{:?}", shape.commands),
    );
}

/// The last read that found something finds what was never written.
fn with_a_wrong_read(history: History<KvInput, KvOutput>) -> History<KvInput, KvOutput> {
    let mut operations = history.into_operations();
    let found = |output: &KvOutput| matches!(output, KvOutput::Value(Some(_)));
    let mut returns = operations.iter_mut().rev().filter_map(|operation| operation.ret.as_mut());
    if let Some(ret) = returns.find(|ret| found(&ret.output)) {
        ret.output = KvOutput::value("never");
    }
    History::new(operations).expect("only an answer was changed")
}
