//! The checker against the definition: every order of at most seven operations, tried one by one.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use quorate_check::generate::Random;
use quorate_check::{
    Blob, History, Kv, KvInput, KvOutput, Limits, Model, Operation, Return, Verdict, check,
};

type KvOperation = Operation<KvInput, KvOutput>;

/// Whether some order explains the operations: straight from the definition, no memory, no order
/// of preference. Unknown operations may be left out.
fn explained(operations: &[KvOperation], done: &mut Vec<bool>, state: &Option<Blob>) -> bool {
    if (operations.iter().zip(done.iter()))
        .all(|(operation, done)| *done || operation.ret.is_none())
    {
        return true;
    }
    for index in 0..operations.len() {
        let comes_after_an_open_one = (operations.iter().zip(done.iter())).any(|(other, done)| {
            !done && other.ret.as_ref().is_some_and(|ret| ret.at < operations[index].call)
        });
        if done[index] || comes_after_an_open_one {
            continue;
        }
        let operation = &operations[index];
        if let Some(after) = Kv.step(state, &operation.input, operation.output()) {
            done[index] = true;
            let found = explained(operations, done, &after);
            done[index] = false;
            if found {
                return true;
            }
        }
    }
    false
}

fn oracle(operations: &[KvOperation], initial: &Option<Blob>) -> bool {
    explained(operations, &mut vec![false; operations.len()], initial)
}

/// Compares the two on one history; whether it is linearizable.
fn compare(operations: Vec<KvOperation>) -> bool {
    let expected = oracle(&operations, &None);
    let history = History::new(operations).expect("returns follow calls");
    let verdict = check(&Kv, &history, &Limits::default());
    match &verdict {
        Verdict::Linearizable { operations } => assert_eq!(*operations, history.len()),
        Verdict::Violation(minimal) => {
            let small = &minimal.operations;
            assert!(!oracle(small, &minimal.initial), "no violation is left in\n{verdict}");
            for operation in small {
                assert!(history.operations().contains(operation), "made up: {operation}");
            }
            assert!(minimal.blocked < small.len());
        }
        Verdict::Undecided(_) => panic!("seven operations are never too many: {verdict}"),
    }
    assert_eq!(verdict.is_linearizable(), expected, "\n{}{verdict}", history.to_text());
    expected
}

fn input() -> impl Strategy<Value = KvInput> {
    let value = || prop_oneof![Just("1"), Just("2"), Just("3")];
    prop_oneof![
        3 => Just(KvInput::get("k")),
        3 => value().prop_map(|value| KvInput::set("k", value)),
        2 => (value(), value()).prop_map(|(expect, value)| KvInput::cas("k", expect, value)),
        1 => value().prop_map(|value| KvInput::set_if_absent("k", value)),
        2 => (-1_i64..=1).prop_map(|by| KvInput::incr("k", by)),
        1 => value().prop_map(|value| KvInput::append("k", value)),
        1 => Just(KvInput::del("k")),
    ]
}

/// An operation as it was flown: when it was called, took effect and returned.
#[derive(Clone, Debug)]
struct Flight {
    input: KvInput,
    call: u64,
    to_effect: u64,
    to_return: u64,
    known: bool,
    happens: bool,
}

fn flight() -> impl Strategy<Value = Flight> {
    (input(), 0..12_u64, 0..6_u64, 0..6_u64, prop::bool::weighted(0.8), any::<bool>()).prop_map(
        |(input, call, to_effect, to_return, known, happens)| Flight {
            input,
            call,
            to_effect,
            to_return,
            known,
            happens: happens || known,
        },
    )
}

/// Runs the flights on a sequential store: a history that is linearizable.
fn fly(flights: &[Flight]) -> Vec<KvOperation> {
    fly_from(&None, flights)
}

fn fly_from(initial: &Option<Blob>, flights: &[Flight]) -> Vec<KvOperation> {
    let mut order: Vec<usize> = (0..flights.len()).filter(|&at| flights[at].happens).collect();
    order.sort_by_key(|&at| flights[at].call + flights[at].to_effect);
    let mut state = initial.clone();
    let mut outputs = vec![None; flights.len()];
    for at in order {
        let (after, output) = Kv.run(&state, &flights[at].input);
        state = after;
        outputs[at] = Some(output);
    }
    let operation = |(client, (flight, output)): (u32, (&Flight, Option<KvOutput>))| Operation {
        client,
        call: flight.call,
        input: flight.input.clone(),
        ret: output
            .filter(|_| flight.known)
            .map(|output| Return { at: flight.call + flight.to_effect + flight.to_return, output }),
    };
    (0..).zip(flights.iter().zip(outputs)).map(operation).collect()
}

/// Another answer of the same kind.
fn another(output: &KvOutput, random: &mut Random) -> KvOutput {
    let digit = (1 + random.below(3)).to_string();
    match output {
        KvOutput::Ok => KvOutput::Ok,
        KvOutput::Value(_) if random.per_mille(250) => KvOutput::absent(),
        KvOutput::Value(_) => KvOutput::value(digit),
        KvOutput::Swapped(swapped) => KvOutput::Swapped(!swapped),
        KvOutput::Integer(number) if random.per_mille(500) => KvOutput::Integer(number - 1),
        KvOutput::Integer(number) => KvOutput::Integer(number + 1),
        KvOutput::Deleted(deleted) => KvOutput::Deleted(!deleted),
        KvOutput::Error => KvOutput::Integer(1),
    }
}

/// A change that may or may not make the history wrong: an answer, or a moment.
fn mutate(operations: &mut [KvOperation], random: &mut Random) {
    let at = random.below(operations.len() as u64) as usize;
    let operation = &mut operations[at];
    let later = random.below(8);
    match (&mut operation.ret, random.below(4)) {
        (Some(ret), 0 | 1) => ret.output = another(&ret.output, random),
        (Some(ret), 2) => {
            operation.call += later;
            ret.at = ret.at.max(operation.call);
        }
        (Some(ret), _) => ret.at = (ret.at.saturating_sub(later)).max(operation.call),
        (None, _) => operation.call += later,
    }
}

fn config() -> ProptestConfig {
    // A failure prints its input; a file of seeds beside the sources is not wanted.
    ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn legal_histories_of_up_to_seven_operations_are_accepted(
        flights in prop::collection::vec(flight(), 1..=7),
    ) {
        prop_assert!(compare(fly(&flights)));
    }

    #[test]
    fn mutated_histories_get_the_verdict_of_the_definition(
        flights in prop::collection::vec(flight(), 1..=7),
        seed in any::<u64>(),
        mutations in 1..=3,
    ) {
        let mut operations = fly(&flights);
        let mut random = Random::new(seed);
        for _ in 0..mutations {
            mutate(&mut operations, &mut random);
        }
        compare(operations);
    }

    #[test]
    fn what_a_counter_example_may_leave_out_never_makes_a_violation(
        mut flights in prop::collection::vec(flight(), 1..=7),
        initial in prop::option::of(prop_oneof![Just("1"), Just("2")]),
        registers_only in prop::bool::weighted(0.8),
        pick in any::<u64>(),
    ) {
        if registers_only {
            flights.retain(|flight| {
                matches!(flight.input, KvInput::Get { .. } | KvInput::Set { .. } | KvInput::Cas { .. })
            });
        }
        let initial = initial.map(Blob::from);
        let operations = fly_from(&initial, &flights);
        let groups = Kv.droppable(&operations);
        let alone = groups.iter().map(|group| vec![group]).collect::<Vec<_>>();
        let together = vec![(0..).zip(&groups).filter(|(at, _)| pick >> at & 1 == 1).map(|(_, g)| g).collect()];
        for dropped in alone.into_iter().chain(together) {
            let kept: Vec<_> = (0..operations.len())
                .filter(|index| !dropped.iter().any(|group| group.contains(index)))
                .map(|index| operations[index].clone())
                .collect();
            prop_assert!(oracle(&kept, &initial), "without {:?}: {:?}", dropped, operations);
        }
    }

    #[test]
    fn the_text_form_brings_back_the_same_history(
        flights in prop::collection::vec(flight(), 0..=7),
        key in prop::collection::vec(any::<u8>(), 0..6),
    ) {
        let mut operations = fly(&flights);
        for operation in &mut operations {
            if let KvInput::Set { key: old, value } = &mut operation.input {
                *old = Blob::from(key.clone());
                *value = Blob::from(key.clone());
            }
        }
        let history = History::new(operations).unwrap();
        prop_assert_eq!(History::from_text(&history.to_text()), Ok(history));
    }
}

#[test]
fn the_comparison_meets_both_verdicts_often() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = prop::collection::vec(flight(), 4..=7);
    let mut random = Random::new(7);
    let mut legal = 0;
    let total = 3_000;
    for _ in 0..total {
        let flights = strategy.new_tree(&mut runner).unwrap().current();
        let mut operations = fly(&flights);
        mutate(&mut operations, &mut random);
        legal += usize::from(compare(operations));
    }
    assert!(legal > total / 5 && legal < total * 4 / 5, "{legal} of {total} were legal");
}
