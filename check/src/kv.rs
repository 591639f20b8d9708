//! The key-value model: each key a register with the commands of the server.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use crate::blob::Blob;
use crate::history::Operation;
use crate::model::Model;

/// A command on one key, named as in the Redis protocol.
///
/// Commands on several keys are not in the model: it is checked one key at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvInput {
    /// `GET key`.
    Get {
        /// The key.
        key: Blob,
    },
    /// `SET key value`. Let every write of a test write another value: checks are then both
    /// faster and sharper.
    Set {
        /// The key.
        key: Blob,
        /// The new value.
        value: Blob,
    },
    /// `SET key value IFEQ expect`, or `SET key value NX` when `expect` is absent.
    Cas {
        /// The key.
        key: Blob,
        /// The value that must be there; absent: there must be none.
        expect: Option<Blob>,
        /// The new value.
        value: Blob,
    },
    /// `INCRBY key by`; negative for `DECRBY`.
    Incr {
        /// The key.
        key: Blob,
        /// What is added.
        by: i64,
    },
    /// `APPEND key value`. Values grow: a search keeps one state for each operation.
    Append {
        /// The key.
        key: Blob,
        /// The bytes put at the end.
        value: Blob,
    },
    /// `DEL key`.
    Del {
        /// The key.
        key: Blob,
    },
}

/// An answer to a [`KvInput`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvOutput {
    /// To `Set`.
    Ok,
    /// To `Get`: what is there.
    Value(Option<Blob>),
    /// To `Cas`: whether the value was written.
    Swapped(bool),
    /// To `Incr`: the sum. To `Append`: the new length in bytes.
    Integer(i64),
    /// To `Del`: whether there was something.
    Deleted(bool),
    /// To `Incr`: the value is not an integer, or the sum would not fit. Nothing happened.
    Error,
}

impl KvInput {
    /// `GET key`.
    pub fn get(key: impl Into<Blob>) -> Self {
        KvInput::Get { key: key.into() }
    }

    /// `SET key value`.
    pub fn set(key: impl Into<Blob>, value: impl Into<Blob>) -> Self {
        KvInput::Set { key: key.into(), value: value.into() }
    }

    /// `SET key value IFEQ expect`.
    pub fn cas(key: impl Into<Blob>, expect: impl Into<Blob>, value: impl Into<Blob>) -> Self {
        KvInput::Cas { key: key.into(), expect: Some(expect.into()), value: value.into() }
    }

    /// `SET key value NX`.
    pub fn set_if_absent(key: impl Into<Blob>, value: impl Into<Blob>) -> Self {
        KvInput::Cas { key: key.into(), expect: None, value: value.into() }
    }

    /// `INCRBY key by`.
    pub fn incr(key: impl Into<Blob>, by: i64) -> Self {
        KvInput::Incr { key: key.into(), by }
    }

    /// `APPEND key value`.
    pub fn append(key: impl Into<Blob>, value: impl Into<Blob>) -> Self {
        KvInput::Append { key: key.into(), value: value.into() }
    }

    /// `DEL key`.
    pub fn del(key: impl Into<Blob>) -> Self {
        KvInput::Del { key: key.into() }
    }

    /// The key that it touches.
    pub fn key(&self) -> &Blob {
        match self {
            KvInput::Get { key }
            | KvInput::Set { key, .. }
            | KvInput::Cas { key, .. }
            | KvInput::Incr { key, .. }
            | KvInput::Append { key, .. }
            | KvInput::Del { key } => key,
        }
    }
}

impl KvOutput {
    /// `GET` found this.
    pub fn value(value: impl Into<Blob>) -> Self {
        KvOutput::Value(Some(value.into()))
    }

    /// `GET` found nothing.
    pub fn absent() -> Self {
        KvOutput::Value(None)
    }
}

/// The model: every key is an optional byte string, absent at first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kv;

impl Kv {
    /// Runs a command: the value after it and the answer.
    pub fn run(&self, state: &Option<Blob>, input: &KvInput) -> (Option<Blob>, KvOutput) {
        match input {
            KvInput::Get { .. } => (state.clone(), KvOutput::Value(state.clone())),
            KvInput::Set { value, .. } => (Some(value.clone()), KvOutput::Ok),
            KvInput::Cas { expect, value, .. } => {
                let equal = state == expect;
                let after = if equal { Some(value.clone()) } else { state.clone() };
                (after, KvOutput::Swapped(equal))
            }
            KvInput::Incr { by, .. } => match integer(state).and_then(|now| now.checked_add(*by)) {
                Some(sum) => (Some(sum.to_string().into()), KvOutput::Integer(sum)),
                None => (state.clone(), KvOutput::Error),
            },
            KvInput::Append { value, .. } => {
                let after = state.as_ref().map_or_else(|| value.clone(), |now| now.joined(value));
                let length = i64::try_from(after.len()).unwrap_or(i64::MAX);
                (Some(after), KvOutput::Integer(length))
            }
            KvInput::Del { .. } => (None, KvOutput::Deleted(state.is_some())),
        }
    }
}

/// The value as Redis reads an integer: decimal, no blanks, no plus, no leading zero.
fn integer(state: &Option<Blob>) -> Option<i64> {
    let Some(value) = state else { return Some(0) };
    let text = std::str::from_utf8(value.as_bytes()).ok()?;
    let number: i64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

impl Model for Kv {
    type Key = Blob;
    type Input = KvInput;
    type Output = KvOutput;
    type State = Option<Blob>;

    fn partition(&self, input: &KvInput) -> Blob {
        input.key().clone()
    }

    fn init(&self) -> Option<Blob> {
        None
    }

    fn step(
        &self,
        state: &Option<Blob>,
        input: &KvInput,
        output: Option<&KvOutput>,
    ) -> Option<Option<Blob>> {
        // The common cases without building an answer to compare with.
        match (input, output) {
            (KvInput::Get { .. }, Some(KvOutput::Value(seen))) => {
                return (seen == state).then(|| state.clone());
            }
            (KvInput::Append { value, .. }, Some(KvOutput::Integer(length))) => {
                let sum = state.as_ref().map_or(0, Blob::len) + value.len();
                if i64::try_from(sum) != Ok(*length) {
                    return None;
                }
            }
            _ => {}
        }
        let (after, answer) = self.run(state, input);
        output.is_none_or(|output| *output == answer).then_some(after)
    }

    fn is_read(&self, input: &KvInput, output: Option<&KvOutput>) -> bool {
        let unchanged = [KvOutput::Swapped(false), KvOutput::Deleted(false), KvOutput::Error];
        matches!(input, KvInput::Get { .. }) || output.is_some_and(|o| unchanged.contains(o))
    }

    fn heap_bytes(&self, state: &Option<Blob>) -> usize {
        state.as_ref().map_or(0, Blob::len)
    }

    fn droppable(&self, operations: &[Operation<KvInput, KvOutput>]) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = (0..operations.len())
            .filter(|&index| self.is_read(&operations[index].input, operations[index].output()))
            .map(|index| vec![index])
            .collect();
        if operations.iter().all(follows_values) {
            groups.extend(value_groups(operations));
        }
        groups
    }
}

/// Whether an operation depends on the state only through a value that it names: then writes of a
/// value can leave together with all that saw it. A failed `Cas` depends on a value *not* being
/// there, and the others on whatever is there.
fn follows_values(operation: &Operation<KvInput, KvOutput>) -> bool {
    match operation.input {
        KvInput::Get { .. } | KvInput::Set { .. } => true,
        KvInput::Cas { .. } => operation.output() != Some(&KvOutput::Swapped(false)),
        KvInput::Incr { .. } | KvInput::Append { .. } | KvInput::Del { .. } => false,
    }
}

/// For each value written: all operations that write it or saw it, and, where one of them was a
/// swap, those of the value that it wrote as well.
///
/// Why that is safe: take an order that explains the history and strike these operations out.
/// While a struck value was current, only struck operations saw it, so what remains meets the
/// values that it met before; so also when the first state has a struck value. An unknown `Cas`
/// that would now match may still never happen.
fn value_groups(operations: &[Operation<KvInput, KvOutput>]) -> Vec<Vec<usize>> {
    let mut touching: BTreeMap<&Blob, Vec<usize>> = BTreeMap::new();
    for (index, operation) in operations.iter().enumerate() {
        for value in touched(operation).into_iter().flatten() {
            touching.entry(value).or_default().push(index);
        }
    }
    let mut groups = BTreeSet::new();
    for &first in touching.keys() {
        let mut values = vec![first];
        let mut group = BTreeSet::new();
        let mut at = 0;
        while let Some(&value) = values.get(at) {
            at += 1;
            for &index in touching.get(value).into_iter().flatten() {
                group.insert(index);
                let input = &operations[index].input;
                if expected(input) == Some(value)
                    && let Some(next) = written(input)
                    && !values.contains(&next)
                {
                    values.push(next);
                }
            }
        }
        groups.insert(group.into_iter().collect());
    }
    groups.into_iter().collect()
}

/// The values that an operation names: written, expected, seen.
fn touched(operation: &Operation<KvInput, KvOutput>) -> [Option<&Blob>; 3] {
    let seen = match operation.output() {
        Some(KvOutput::Value(seen)) => seen.as_ref(),
        _ => None,
    };
    [written(&operation.input), expected(&operation.input), seen]
}

fn written(input: &KvInput) -> Option<&Blob> {
    match input {
        KvInput::Set { value, .. } | KvInput::Cas { value, .. } => Some(value),
        _ => None,
    }
}

fn expected(input: &KvInput) -> Option<&Blob> {
    match input {
        KvInput::Cas { expect, .. } => expect.as_ref(),
        _ => None,
    }
}

impl fmt::Display for KvInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvInput::Get { key } => write!(f, "get {key}"),
            KvInput::Set { key, value } => write!(f, "set {key} {value}"),
            KvInput::Cas { key, expect: Some(expect), value } => {
                write!(f, "cas {key} {expect} {value}")
            }
            KvInput::Cas { key, expect: None, value } => write!(f, "setnx {key} {value}"),
            KvInput::Incr { key, by } => write!(f, "incr {key} {by}"),
            KvInput::Append { key, value } => write!(f, "append {key} {value}"),
            KvInput::Del { key } => write!(f, "del {key}"),
        }
    }
}

impl fmt::Display for KvOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvOutput::Ok => f.write_str("ok"),
            KvOutput::Value(Some(value)) => write!(f, "value {value}"),
            KvOutput::Value(None) => f.write_str("absent"),
            KvOutput::Swapped(true) => f.write_str("swapped"),
            KvOutput::Swapped(false) => f.write_str("kept"),
            KvOutput::Integer(number) => write!(f, "integer {number}"),
            KvOutput::Deleted(true) => f.write_str("deleted"),
            KvOutput::Deleted(false) => f.write_str("nothing"),
            KvOutput::Error => f.write_str("error"),
        }
    }
}

/// Text that is no command or no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvParseError(String);

impl fmt::Display for KvParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a key-value command or answer", self.0)
    }
}

impl std::error::Error for KvParseError {}

impl FromStr for KvInput {
    type Err = KvParseError;

    fn from_str(text: &str) -> Result<Self, KvParseError> {
        let wrong = || KvParseError(text.to_owned());
        let words: Vec<&str> = text.split(' ').collect();
        let blob = |word: &str| word.parse::<Blob>().map_err(|_| wrong());
        Ok(match words[..] {
            ["get", key] => KvInput::get(blob(key)?),
            ["set", key, value] => KvInput::set(blob(key)?, blob(value)?),
            ["cas", key, expect, value] => KvInput::cas(blob(key)?, blob(expect)?, blob(value)?),
            ["setnx", key, value] => KvInput::set_if_absent(blob(key)?, blob(value)?),
            ["incr", key, by] => KvInput::incr(blob(key)?, by.parse().map_err(|_| wrong())?),
            ["append", key, value] => KvInput::append(blob(key)?, blob(value)?),
            ["del", key] => KvInput::del(blob(key)?),
            _ => return Err(wrong()),
        })
    }
}

impl FromStr for KvOutput {
    type Err = KvParseError;

    fn from_str(text: &str) -> Result<Self, KvParseError> {
        let wrong = || KvParseError(text.to_owned());
        let words: Vec<&str> = text.split(' ').collect();
        Ok(match words[..] {
            ["ok"] => KvOutput::Ok,
            ["value", value] => KvOutput::value(value.parse::<Blob>().map_err(|_| wrong())?),
            ["absent"] => KvOutput::absent(),
            ["swapped"] => KvOutput::Swapped(true),
            ["kept"] => KvOutput::Swapped(false),
            ["integer", number] => KvOutput::Integer(number.parse().map_err(|_| wrong())?),
            ["deleted"] => KvOutput::Deleted(true),
            ["nothing"] => KvOutput::Deleted(false),
            ["error"] => KvOutput::Error,
            _ => return Err(wrong()),
        })
    }
}
