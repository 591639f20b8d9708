//! Contracts: what must hold before and after a step, stated next to it, with the rule that asks for it.
//!
//! [`requires!`](crate::requires) is for what a caller owes, [`ensures!`](crate::ensures) for what a step owes,
//! [`invariant!`](crate::invariant) for what holds between steps. Each names its tier, its rule in
//! `docs/spec/paxos.md`, the condition, and a text that no other contract has:
//!
//! ```text
//! requires!(always, A1, ballot > self.promised, "an acceptor promises only upwards");
//! ensures!(checked, A3, self.holds(slot), "what was accepted is held");
//! let before = old!(self.commit_slot);              // evaluated only where contracts are checked
//! ```
//!
//! * `always` is for what costs a comparison: it stays on in production, where going on would be worse than
//!   stopping.
//! * `checked` is on where debug assertions are (all tests) and with the feature `contracts` (the simulator,
//!   the model checker). Elsewhere the condition is not evaluated, and neither is what [`old!`](crate::old)
//!   captures.
//!
//! `cargo xtask rules` lists contracts, holds their rules against the specification, and names those that no
//! test reaches.

use core::sync::atomic::{AtomicU64, Ordering};

/// Whether contracts of the tier `checked` are evaluated.
pub const CHECKED: bool = cfg!(any(debug_assertions, feature = "contracts"));

/// Whether evaluations are counted.
const COUNTED: bool = cfg!(any(debug_assertions, feature = "count-contracts"));

/// Contracts that can be told apart; there are fewer.
const CONTRACTS_MAX: usize = 512;

/// Each place holds the number of a contract, and how often it was evaluated: 32 bits each.
static REACHED: [AtomicU64; CONTRACTS_MAX] = [const { AtomicU64::new(0) }; CONTRACTS_MAX];

/// The number of the contract with this text: FNV-1a, never 0.
#[must_use]
pub const fn number(text: &str) -> u32 {
    let bytes = text.as_bytes();
    let mut hash: u32 = 0x811c_9dc5;
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u32).wrapping_mul(0x0100_0193);
        index += 1;
    }
    if hash == 0 { 1 } else { hash }
}

/// Evaluates a condition or a capture of the contract `number`, and counts that.
#[inline]
pub fn evaluate<T>(number: u32, what: impl FnOnce() -> T) -> T {
    if COUNTED {
        count(number);
    }
    what()
}

fn count(number: u32) {
    let mut place = number as usize % CONTRACTS_MAX;
    for _ in 0..CONTRACTS_MAX {
        let held = REACHED[place].load(Ordering::Relaxed);
        if held == 0 {
            let new = u64::from(number) << 32 | 1;
            let free =
                REACHED[place].compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed);
            if free.is_ok() {
                return;
            }
            continue;
        }
        if held >> 32 == u64::from(number) {
            if held & 0xffff_ffff < 0xffff_0000 {
                REACHED[place].fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        place = (place + 1) % CONTRACTS_MAX;
    }
}

/// How often the contract with this text was evaluated in this process.
#[must_use]
pub fn evaluations(text: &str) -> u64 {
    let number = u64::from(number(text));
    let held = REACHED.iter().map(|place| place.load(Ordering::Relaxed));
    held.filter(|held| held >> 32 == number).map(|held| held & 0xffff_ffff).sum()
}

/// How often any contract was evaluated in this process.
#[must_use]
pub fn all_evaluations() -> u64 {
    REACHED.iter().map(|place| place.load(Ordering::Relaxed) & 0xffff_ffff).sum()
}

/// What the caller of a step owes: see [`contract`](mod@crate::contract).
#[macro_export]
macro_rules! requires {
    (always, $rule:ident, $holds:expr, $text:literal) => {{
        const NUMBER: u32 = $crate::contract::number($text);
        assert!(
            $crate::contract::evaluate(NUMBER, || $holds),
            concat!($text, " (required by rule ", stringify!($rule), ")")
        );
    }};
    (checked, $rule:ident, $holds:expr, $text:literal) => {
        if $crate::contract::CHECKED {
            const NUMBER: u32 = $crate::contract::number($text);
            assert!(
                $crate::contract::evaluate(NUMBER, || $holds),
                concat!($text, " (required by rule ", stringify!($rule), ")")
            );
        }
    };
}

/// What a step owes: see [`contract`](mod@crate::contract).
#[macro_export]
macro_rules! ensures {
    (always, $rule:ident, $holds:expr, $text:literal) => {{
        const NUMBER: u32 = $crate::contract::number($text);
        assert!(
            $crate::contract::evaluate(NUMBER, || $holds),
            concat!($text, " (ensured by rule ", stringify!($rule), ")")
        );
    }};
    (checked, $rule:ident, $holds:expr, $text:literal) => {
        if $crate::contract::CHECKED {
            const NUMBER: u32 = $crate::contract::number($text);
            assert!(
                $crate::contract::evaluate(NUMBER, || $holds),
                concat!($text, " (ensured by rule ", stringify!($rule), ")")
            );
        }
    };
}

/// What holds between steps: see [`contract`](mod@crate::contract).
#[macro_export]
macro_rules! invariant {
    (checked, $rule:ident, $holds:expr, $text:literal) => {
        if $crate::contract::CHECKED {
            const NUMBER: u32 = $crate::contract::number($text);
            assert!(
                $crate::contract::evaluate(NUMBER, || $holds),
                concat!($text, " (an invariant of rule ", stringify!($rule), ")")
            );
        }
    };
}

/// What was before a step, for its postcondition: nothing where contracts are not checked.
#[macro_export]
macro_rules! old {
    ($what:expr) => {
        $crate::contract::CHECKED.then(|| {
            const NUMBER: u32 = $crate::contract::number("old");
            $crate::contract::evaluate(NUMBER, || $what)
        })
    };
}
