//! Faults that a replicated store makes, planted by hand; and legal oddities that are no faults.

use quorate_check::generate::{Commands, Random, Shape, linearizable};
use quorate_check::{
    ClientLog, Clock, History, Kv, KvInput, KvOutput, Limits, Minimal, Operation, Verdict, check,
};

type KvHistory = History<KvInput, KvOutput>;

fn history(lines: &str) -> KvHistory {
    History::from_text(lines).expect("the history of a test parses")
}

fn verdict(lines: &str) -> Verdict<Kv> {
    check(&Kv, &history(lines), &Limits::default())
}

fn violation(lines: &str) -> Minimal<Kv> {
    match verdict(lines) {
        Verdict::Violation(minimal) => *minimal,
        other => panic!("not caught: {other}"),
    }
}

fn assert_legal(lines: &str) {
    let verdict = verdict(lines);
    assert!(verdict.is_linearizable(), "{verdict}");
}

#[test]
fn stale_read_after_a_later_write_returned() {
    let minimal = violation(
        "1 1 2 set k a -> ok\n\
         1 3 4 set k b -> ok\n\
         3 5 6 get k -> value b\n\
         2 7 8 get k -> value a\n\
         1 9 10 set k c -> ok",
    );
    assert_eq!(minimal.operations.len(), 3, "{minimal}");
    assert_eq!(minimal.operations[minimal.blocked].client, 2, "{minimal}");
}

#[test]
fn two_readers_disagree_about_the_order_of_two_writes() {
    violation(
        "1 1 9 set k a -> ok\n\
         2 1 9 set k b -> ok\n\
         3 2 3 get k -> value a\n\
         3 4 5 get k -> value b\n\
         4 6 7 get k -> value a",
    );
}

#[test]
fn lost_update_two_increments_answer_the_same() {
    violation("1 1 4 incr k 1 -> integer 1\n2 2 3 incr k 1 -> integer 1");
}

#[test]
fn increment_applied_twice() {
    violation("1 1 2 incr k 1 -> integer 1\n1 3 4 get k -> value 2");
}

#[test]
fn append_applied_twice() {
    violation("1 1 2 append k x -> integer 1\n1 3 4 get k -> value xx");
}

#[test]
fn read_from_the_future() {
    violation("1 1 2 get k -> value a\n2 3 4 set k a -> ok");
}

#[test]
fn read_of_a_value_that_nobody_wrote() {
    violation("1 1 2 set k a -> ok\n1 3 4 get k -> value z");
}

#[test]
fn cas_from_one_value_succeeds_twice() {
    let minimal = violation(
        "9 1 2 set k a -> ok\n\
         1 3 6 cas k a b -> swapped\n\
         2 4 5 cas k a c -> swapped",
    );
    assert_eq!(minimal.operations.len(), 3, "{minimal}");
}

#[test]
fn set_if_absent_succeeds_twice() {
    violation("1 1 3 setnx k a -> swapped\n2 2 4 setnx k b -> swapped");
}

#[test]
fn an_unknown_write_takes_effect_twice() {
    violation(
        "1 1 ? set k a -> ?\n\
         2 2 3 get k -> value a\n\
         2 4 5 set k b -> ok\n\
         2 6 7 get k -> value a",
    );
}

#[test]
fn an_unknown_increment_takes_effect_twice() {
    violation("1 1 ? incr k 1 -> ?\n2 2 3 get k -> value 1\n2 4 5 get k -> value 2");
}

#[test]
fn an_acknowledged_write_is_lost() {
    violation("1 1 2 set k a -> ok\n2 3 4 get k -> absent");
}

#[test]
fn a_deleted_value_comes_back() {
    violation("1 1 2 set k a -> ok\n1 3 4 del k -> deleted\n2 5 6 get k -> value a");
}

#[test]
fn an_unknown_write_may_happen_late_or_never() {
    assert_legal("1 1 ? set k a -> ?\n2 2 3 get k -> absent");
    assert_legal(
        "1 1 ? set k a -> ?\n\
         2 2 3 set k b -> ok\n\
         2 4 5 get k -> value b\n\
         2 6 7 get k -> value a",
    );
}

#[test]
fn unknown_increments_may_happen_in_part() {
    assert_legal(
        "1 1 ? incr k 1 -> ?\n\
         2 1 ? incr k 1 -> ?\n\
         3 1 ? incr k 1 -> ?\n\
         4 2 3 get k -> value 1\n\
         4 4 5 incr k 1 -> integer 3",
    );
}

#[test]
fn events_at_the_same_time_overlap() {
    assert_legal("1 1 5 set k a -> ok\n2 5 6 get k -> absent");
}

#[test]
fn an_increment_of_text_answers_an_error() {
    assert_legal("1 1 2 set k a -> ok\n1 3 4 incr k 1 -> error\n1 5 6 get k -> value a");
    violation("1 1 2 set k 1 -> ok\n1 3 4 incr k 1 -> error");
}

#[test]
fn keys_are_independent_and_the_bad_one_is_named() {
    let minimal = violation(
        "1 1 2 set good a -> ok\n\
         1 3 4 set bad a -> ok\n\
         2 5 6 get good -> value a\n\
         2 7 8 get bad -> absent",
    );
    assert_eq!(minimal.key.to_string(), "bad");
    assert_eq!(minimal.out_of, 2);
}

#[test]
fn the_time_line_of_a_counter_example() {
    let minimal = violation(
        "1 1 2 set k a -> ok\n\
         4 3 ? set k c -> ?\n\
         1 4 6 set k b -> ok\n\
         3 5 8 get k -> value b\n\
         2 9 10 get k -> value a",
    );
    let expected = "\
not linearizable: k, 3 of 5 operations
begins with None
client 1    set k a -> ok     |--|
client 1    set k b -> ok           |--|
client 2    get k -> value a              |--|    <- finds no place
(a bar runs from call to return; `...` is an outcome never learned)";
    assert_eq!(minimal.to_string(), expected, "\n{minimal}");
}

#[test]
fn a_long_history_with_one_wrong_read_shrinks_to_a_few_operations() {
    let shape = Shape {
        clients: 10,
        keys: 4,
        operations: 4_000,
        unknown_per_mille: 10,
        commands: Commands::Registers,
    };
    for seed in 0..8 {
        let mut operations = linearizable(&shape, &mut Random::new(seed)).into_operations();
        let late = operations.len() * 3 / 4;
        let wrong = operations[late..].iter_mut().find_map(|operation| match &mut operation.ret {
            Some(ret) if matches!(ret.output, KvOutput::Value(Some(_))) => Some(ret),
            _ => None,
        });
        wrong.unwrap().output = KvOutput::value("never-written");
        let verdict = check(&Kv, &History::new(operations).unwrap(), &Limits::default());
        let Verdict::Violation(minimal) = &verdict else { panic!("seed {seed}: {verdict}") };
        assert_eq!(minimal.operations.len(), 1, "seed {seed}: {verdict}");
    }
}

#[test]
fn a_stale_read_in_a_long_history_shrinks_to_the_writes_that_matter() {
    let shape = Shape {
        clients: 8,
        keys: 4,
        operations: 3_000,
        unknown_per_mille: 5,
        commands: Commands::Registers,
    };
    for seed in 0..8 {
        let mut operations = linearizable(&shape, &mut Random::new(seed)).into_operations();
        plant_stale_read(&mut operations, seed);
        let verdict = check(&Kv, &History::new(operations).unwrap(), &Limits::default());
        let Verdict::Violation(minimal) = &verdict else { panic!("seed {seed}: {verdict}") };
        assert!(minimal.operations.len() <= 12, "seed {seed}: {verdict}");
    }
}

/// Ends the history with: set old, set new (both returned), get -> old.
fn plant_stale_read(operations: &mut Vec<Operation<KvInput, KvOutput>>, seed: u64) {
    let returns = operations.iter().filter_map(|operation| operation.ret.as_ref());
    let end = returns.map(|ret| ret.at).max().unwrap_or(0);
    let lines = format!(
        "1 {} {} set k1 old{seed} -> ok\n1 {} {} set k1 new -> ok\n2 {} {} get k1 -> value old{seed}",
        end + 1,
        end + 2,
        end + 3,
        end + 4,
        end + 5,
        end + 6
    );
    operations.extend(history(&lines).into_operations());
}

#[test]
fn a_double_increment_after_thousands_is_shown_from_a_quiet_moment() {
    let mut lines = String::new();
    for number in 1..=3_000 {
        lines.push_str(&format!("1 {0} {0} incr k 1 -> integer {number}\n", 10 * number));
    }
    lines.push_str("2 40000 40001 incr k 1 -> integer 3002\n");
    let minimal = violation(&lines);
    assert_eq!(minimal.initial, Some("3000".into()), "{minimal}");
    assert_eq!(minimal.operations.len(), 1, "{minimal}");
}

#[test]
fn an_uncertain_state_is_never_the_start_of_a_counter_example() {
    // After the two racing writes either value may be there, so "begins with a" would accuse the
    // reader of b alone. The appends make the counter-example long enough to be cut.
    let mut lines = "1 1 4 set k a -> ok\n2 2 3 set k b -> ok\n".to_owned();
    for at in 0..20 {
        let time = 10 + 10 * at;
        lines.push_str(&format!("1 {time} {} append k x -> integer {}\n", time + 1, at + 2));
    }
    lines.push_str("3 500 503 get k -> value axxxxxxxxxxxxxxxxxxxx\n");
    lines.push_str("4 501 502 get k -> value bxxxxxxxxxxxxxxxxxxxx\n");
    let minimal = violation(&lines);
    assert_eq!(minimal.initial, None, "{minimal}");
    assert_eq!(minimal.operations.len(), 24, "{minimal}");
}

#[test]
fn long_legal_histories_are_accepted() {
    for (seed, commands) in [(1, Commands::Registers), (2, Commands::All), (3, Commands::All)] {
        for unknown_per_mille in [0, 10, 50] {
            let shape =
                Shape { clients: 10, keys: 10, operations: 20_000, unknown_per_mille, commands };
            let history = linearizable(&shape, &mut Random::new(seed));
            let verdict = check(&Kv, &history, &Limits::default());
            assert!(verdict.is_linearizable(), "{shape:?}: {verdict}");
        }
    }
}

#[test]
fn a_small_limit_leaves_it_undecided_and_says_which() {
    let shape = Shape {
        clients: 20,
        keys: 1,
        operations: 2_000,
        unknown_per_mille: 0,
        commands: Commands::Registers,
    };
    let history = linearizable(&shape, &mut Random::new(1));
    let limits = Limits { configurations: 100, ..Limits::default() };
    let verdict = check(&Kv, &history, &limits);
    let Verdict::Undecided(undecided) = &verdict else { panic!("{verdict}") };
    assert_eq!(undecided.limit, "configurations");
    assert!(verdict.to_string().contains("more keys"), "{verdict}");

    let limits = Limits { state_bytes: 100, ..Limits::default() };
    let Verdict::Undecided(undecided) = check(&Kv, &history, &limits) else { panic!() };
    assert_eq!(undecided.limit, "state_bytes");
}

#[test]
fn the_same_history_gives_the_same_counter_example() {
    let shape = Shape {
        clients: 6,
        keys: 2,
        operations: 400,
        unknown_per_mille: 30,
        commands: Commands::All,
    };
    let mut operations = linearizable(&shape, &mut Random::new(5)).into_operations();
    plant_stale_read(&mut operations, 0);
    let history = History::new(operations).unwrap();
    let text = || check(&Kv, &history, &Limits::default()).to_string();
    assert!(text().starts_with("not linearizable: k1"), "{}", text());
    assert_eq!(text(), text());
}

#[test]
fn threads_record_a_real_store_and_a_broken_one() {
    use std::sync::Mutex;

    let run = |broken: bool| {
        let clock = Clock::new();
        let store = Mutex::new(None);
        let logs: Vec<_> = std::thread::scope(|scope| {
            let client = |number: u32| {
                let (store, clock) = (&store, clock.clone());
                scope.spawn(move || {
                    let mut log = ClientLog::new(number, clock);
                    for _ in 0..500 {
                        let input = KvInput::incr("k", 1);
                        let ticket = log.call(input.clone());
                        let read = store.lock().unwrap().clone();
                        let mut state = store.lock().unwrap();
                        let before = if broken { read } else { state.clone() };
                        let (after, output) = Kv.run(&before, &input);
                        *state = after;
                        drop(state);
                        log.returned(ticket, output);
                    }
                    log
                })
            };
            let threads: Vec<_> = (0..4).map(client).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut stale = ClientLog::new(9, clock);
        // Whatever the threads did: the broken store certainly answers this one wrongly.
        let ticket = stale.call(KvInput::get("k"));
        let seen = if broken { None } else { store.lock().unwrap().clone() };
        stale.returned(ticket, KvOutput::Value(seen));
        check(&Kv, &History::merge(logs.into_iter().chain([stale])), &Limits::default())
    };
    let verdict = run(false);
    assert!(matches!(verdict, Verdict::Linearizable { operations: 2_001 }), "{verdict}");
    assert!(matches!(run(true), Verdict::Violation(_)));
}

#[test]
fn a_rejected_operation_leaves_the_history_and_an_open_one_stays_unknown() {
    let mut log: ClientLog<KvInput, KvOutput> = ClientLog::new(1, Clock::new());
    let refused = log.call(KvInput::set("k", "a"));
    log.rejected(refused);
    let lost = log.call(KvInput::set("k", "b"));
    log.unknown(lost);
    let history = History::merge([log]);
    assert_eq!(history.len(), 1);
    assert_eq!(history.operations()[0].ret, None);
}

#[test]
fn text_that_is_no_history_is_refused_with_its_line() {
    for (text, line) in [
        ("1 1 2 set k a", 1),
        ("# c\n\n1 1 2 jump k -> ok", 3),
        ("1 1 ? set k a -> ok", 1),
        ("1 1 2 set k a -> ?", 1),
        ("1 5 4 set k a -> ok", 1),
        ("x 1 2 set k a -> ok", 1),
        ("1 1 2 set k a%4 -> ok", 1),
    ] {
        let error = KvHistory::from_text(text).unwrap_err().to_string();
        assert!(error.contains(&format!(" {line}: ")), "{text:?}: {error}");
    }
}
