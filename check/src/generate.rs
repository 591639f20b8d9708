//! Histories that are linearizable by construction, from a seed.
//!
//! For tests of the checker itself, for its measurements, and as a start for planted faults: each
//! operation of a real sequential store takes effect at one moment between its call and its return.

use crate::fingerprint;
use crate::history::{History, Operation, Return};
use crate::kv::{Kv, KvInput, KvOutput};

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Clients, each with one operation in flight.
    pub clients: u32,
    /// Keys, `k0`, `k1`, and so on.
    pub keys: u32,
    /// Operations in total.
    pub operations: usize,
    /// Operations in 1,000 whose outcome stays unknown: half of these never happen, the others at
    /// some time after their call.
    pub unknown_per_mille: u64,
    /// Which commands.
    pub commands: Commands,
}

/// Which commands a generated history has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commands {
    /// `get`, `set` of values never written before, and `cas`.
    Registers,
    /// As `Registers`, with `incr`, `append` and `del` too.
    All,
}

/// A seeded sequence of numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// A number below `bound`; 0 when the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        fingerprint::split_mix(&mut self.0).checked_rem(bound).unwrap_or(0)
    }

    /// Whether an event of this probability (in 1,000) happens.
    pub fn per_mille(&mut self, probability: u64) -> bool {
        self.below(1_000) < probability
    }
}

/// Ticks that a client waits between operations, at most.
const MAX_PAUSE: u64 = 20;

/// Ticks from a call to its effect, and from the effect to the return, at most.
const MAX_DELAY: u64 = 40;

/// How many delays an unknown operation's effect may come late, at most.
const MAX_LATENESS: u64 = 50;

/// An operation on its way: when it was called, when it takes effect, when it returns.
struct Flight {
    client: u32,
    call: u64,
    effect: u64,
    returned: Option<u64>,
    happens: bool,
    input: KvInput,
}

/// A linearizable history of this shape.
pub fn linearizable(shape: &Shape, random: &mut Random) -> History<KvInput, KvOutput> {
    let flights = depart(shape, random);
    let mut order: Vec<usize> = (0..flights.len()).filter(|&at| flights[at].happens).collect();
    // Commands that take effect in the same tick run in the order of this sort.
    order.sort_by_key(|&at| (flights[at].effect, at));
    let mut states = std::collections::BTreeMap::new();
    let mut outputs = vec![None; flights.len()];
    for at in order {
        let state = states.entry(flights[at].input.key().clone()).or_insert(None);
        let (after, output) = Kv.run(state, &flights[at].input);
        *state = after;
        outputs[at] = Some(output);
    }
    let operations = flights.into_iter().zip(outputs).map(|(flight, output)| Operation {
        client: flight.client,
        call: flight.call,
        input: flight.input,
        ret: (flight.returned.zip(output)).map(|(at, output)| Return { at, output }),
    });
    History::new(operations.collect()).expect("a flight returns after its effect, after its call")
}

fn depart(shape: &Shape, random: &mut Random) -> Vec<Flight> {
    let mut free_at = vec![0; shape.clients.max(1) as usize];
    let mut flights: Vec<Flight> = Vec::with_capacity(shape.operations);
    for serial in 0..shape.operations {
        // The client that has waited longest goes next, so that all are busy all the time.
        let client = (0..free_at.len()).min_by_key(|&client| free_at[client]).unwrap_or(0);
        let call = free_at[client] + 1 + random.below(MAX_PAUSE);
        let known = !random.per_mille(shape.unknown_per_mille);
        let late = if known { 0 } else { MAX_DELAY * random.below(MAX_LATENESS) };
        let effect = call + random.below(MAX_DELAY) + late;
        let returned = known.then(|| effect + random.below(MAX_DELAY));
        free_at[client] = returned.unwrap_or(call + 2 * MAX_DELAY);
        let input = command(shape, serial, random, &flights);
        let happens = known || random.per_mille(500);
        flights.push(Flight { client: client as u32, call, effect, returned, happens, input });
    }
    flights
}

fn command(shape: &Shape, serial: usize, random: &mut Random, before: &[Flight]) -> KvInput {
    let key = format!("k{}", random.below(u64::from(shape.keys.max(1))));
    let kinds = match shape.commands {
        Commands::Registers => 5,
        Commands::All => 9,
    };
    match random.below(kinds) {
        0 | 1 => KvInput::get(key),
        2 | 3 => KvInput::set(key, serial.to_string()),
        4 => {
            // A value from the recent past on this key, so that some of the swaps succeed.
            let recent = before.iter().rev().take(64).find_map(|flight| match &flight.input {
                KvInput::Set { key: other, value } if other.as_bytes() == key.as_bytes() => {
                    Some(value.clone())
                }
                _ => None,
            });
            match recent {
                Some(expect) => KvInput::cas(key, expect, serial.to_string()),
                None => KvInput::set_if_absent(key, serial.to_string()),
            }
        }
        5 | 6 => KvInput::incr(key, 1),
        7 => KvInput::append(key, random.below(10).to_string()),
        _ => KvInput::del(key),
    }
}
