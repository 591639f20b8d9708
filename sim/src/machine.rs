//! The state machine of the simulated clusters: registers, counters and growing values, each command
//! with a number of its own, and a ledger that every replica's applications are held against.

use bytes::{BufMut, BytesMut};
use quorate_check::{KvInput, KvOutput};
use quorate_replica::{CheckpointView, Context, StateMachine, StateReader};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use crate::transport::lock;

/// What a write does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Act {
    /// The key is this now.
    Set(Vec<u8>),
    /// The key is the second if it was the first.
    Cas(Option<Vec<u8>>, Vec<u8>),
    /// Adds.
    Incr(i64),
    /// Grows.
    Append(Vec<u8>),
    /// The key is gone.
    Del,
}

/// A numbered write of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Command {
    /// No two commands of a run have the same.
    pub(crate) number: u32,
    /// Which key.
    pub(crate) key: u8,
    /// What to do.
    pub(crate) act: Act,
}

impl Command {
    /// As bytes.
    #[must_use]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32_le(self.number);
        out.put_u8(self.key);
        match &self.act {
            Act::Set(value) => {
                out.put_u8(0);
                out.put_slice(value);
            }
            Act::Cas(expect, value) => {
                out.put_u8(1);
                let expected = expect.as_deref().unwrap_or_default();
                out.put_u16_le(expect.as_ref().map_or(u16::MAX, |expect| expect.len() as u16));
                out.put_slice(expected);
                out.put_slice(value);
            }
            Act::Incr(by) => {
                out.put_u8(2);
                out.put_i64_le(*by);
            }
            Act::Append(value) => {
                out.put_u8(3);
                out.put_slice(value);
            }
            Act::Del => out.put_u8(4),
        }
        out
    }

    /// Back from bytes.
    #[must_use]
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(6)?;
        let number = u32::from_le_bytes(head[..4].try_into().ok()?);
        let act = match head[5] {
            0 => Act::Set(rest.to_vec()),
            1 => {
                let (length, rest) = rest.split_at_checked(2)?;
                let length = u16::from_le_bytes(length.try_into().ok()?);
                if length == u16::MAX {
                    Act::Cas(None, rest.to_vec())
                } else {
                    let (expect, value) = rest.split_at_checked(usize::from(length))?;
                    Act::Cas(Some(expect.to_vec()), value.to_vec())
                }
            }
            2 => Act::Incr(i64::from_le_bytes(rest.try_into().ok()?)),
            3 => Act::Append(rest.to_vec()),
            4 => Act::Del,
            _ => return None,
        };
        Some(Self { number, key: head[4], act })
    }

    /// As the checker knows it.
    #[must_use]
    pub(crate) fn input(&self) -> KvInput {
        let key = key_name(self.key);
        match &self.act {
            Act::Set(value) => KvInput::set(key, value.clone()),
            Act::Cas(Some(expect), value) => KvInput::cas(key, expect.clone(), value.clone()),
            Act::Cas(None, value) => KvInput::set_if_absent(key, value.clone()),
            Act::Incr(by) => KvInput::incr(key, *by),
            Act::Append(value) => KvInput::append(key, value.clone()),
            Act::Del => KvInput::del(key),
        }
    }

    /// The reply as the checker knows it.
    #[must_use]
    pub(crate) fn output(&self, reply: &[u8]) -> Option<KvOutput> {
        let number = || Some(i64::from_le_bytes(reply.try_into().ok()?));
        Some(match &self.act {
            _ if reply == [255] => KvOutput::Error,
            Act::Set(_) => KvOutput::Ok,
            Act::Cas(..) => KvOutput::Swapped(reply == [1]),
            Act::Incr(_) | Act::Append(_) => KvOutput::Integer(number()?),
            Act::Del => KvOutput::Deleted(reply == [1]),
        })
    }
}

/// The name of a key in histories.
#[must_use]
pub(crate) fn key_name(key: u8) -> String {
    format!("k{key}")
}

/// What a key became in a slot; none: it is gone.
type Version = (u64, Option<Vec<u8>>);

/// What all replicas applied, as the first of them did it: all others must do the same.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// For each slot: which life applied it first, and the numbers of its commands.
    slots: BTreeMap<u64, (u64, Vec<u32>)>,
    /// For each key, what it became in which slot.
    versions: BTreeMap<u8, Vec<Version>>,
    /// Every command that was ever applied, with its slot.
    pub(crate) applied: BTreeMap<u32, u64>,
    /// The first thing that was wrong.
    pub(crate) violation: Option<String>,
    /// Commands applied, by all replicas together.
    pub(crate) applications: u64,
}

impl Ledger {
    fn wrong(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// What `key` was after `slot`.
    #[must_use]
    pub(crate) fn value_at(&self, key: u8, slot: u64) -> Option<&[u8]> {
        let versions = self.versions.get(&key)?;
        let after = versions.partition_point(|(at, _)| *at <= slot);
        versions[..after].last()?.1.as_deref()
    }
}

/// What each key holds: also looked at beside the replica's thread.
type State = BTreeMap<u8, Vec<u8>>;

/// The state of one life of one replica.
#[derive(Debug)]
pub(crate) struct SimMachine {
    life: u64,
    state: Arc<Mutex<State>>,
    /// Bits: commands seen in this life.
    seen: Vec<u64>,
    slot: u64,
    index: usize,
    ledger: Arc<Mutex<Ledger>>,
}

impl SimMachine {
    /// An empty one.
    #[must_use]
    pub(crate) fn new(life: u64, ledger: Arc<Mutex<Ledger>>) -> Self {
        Self { life, state: Arc::default(), seen: Vec::new(), slot: 0, index: 0, ledger }
    }

    fn change(&mut self, command: &Command, reply: &mut BytesMut) {
        let mut state = lock(&self.state);
        let held = state.get(&command.key);
        let next = match &command.act {
            Act::Set(value) => Some(value.clone()),
            Act::Cas(expect, value) => {
                let swaps = held == expect.as_ref();
                reply.put_u8(u8::from(swaps));
                if !swaps {
                    return;
                }
                Some(value.clone())
            }
            Act::Incr(by) => {
                let text = held.map_or(Ok("0"), |held| std::str::from_utf8(held));
                let number = text.ok().and_then(|text| text.parse::<i64>().ok());
                let Some(sum) = number.and_then(|number| number.checked_add(*by)) else {
                    return reply.put_u8(255);
                };
                reply.put_i64_le(sum);
                Some(sum.to_string().into_bytes())
            }
            Act::Append(value) => {
                let mut grown = held.cloned().unwrap_or_default();
                grown.extend_from_slice(value);
                reply.put_i64_le(grown.len() as i64);
                Some(grown)
            }
            Act::Del => {
                reply.put_u8(u8::from(held.is_some()));
                None
            }
        };
        match next {
            Some(value) => state.insert(command.key, value),
            None => state.remove(&command.key),
        };
    }

    /// Holds what this life applies against the ledger.
    fn record(&mut self, slot: u64, command: &Command) {
        let ledger = Arc::clone(&self.ledger);
        let mut ledger = lock(&ledger);
        ledger.applications += 1;
        let number = command.number;
        let (word, bit) = (number as usize / 64, 1u64 << (number % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            ledger.wrong(format!("I12: command {number} was applied twice, now in slot {slot}"));
        }
        self.seen[word] |= bit;
        if slot < self.slot {
            ledger.wrong(format!("I6: slot {slot} was applied after slot {}", self.slot));
        }
        if slot != self.slot {
            (self.slot, self.index) = (slot, 0);
        }
        let life = self.life;
        let (first, numbers) = ledger.slots.entry(slot).or_insert_with(|| (life, Vec::new()));
        let mut wrong = None;
        if *first == life {
            numbers.push(number);
            ledger.applied.insert(number, slot);
            let value = lock(&self.state).get(&command.key).cloned();
            ledger.versions.entry(command.key).or_default().push((slot, value));
        } else if numbers.get(self.index) != Some(&number) {
            wrong = Some(format!(
                "I1: slot {slot} holds command {number} here, {:?} elsewhere",
                numbers.get(self.index)
            ));
        }
        if let Some(wrong) = wrong {
            ledger.wrong(wrong);
        }
        self.index += 1;
    }
}

impl StateMachine for SimMachine {
    fn apply(&mut self, context: &Context, command: &[u8], reply: &mut BytesMut) {
        let Some(command) = Command::decode(command) else {
            lock(&self.ledger).wrong(format!("a command of slot {} is garbage", context.slot));
            return;
        };
        self.change(&command, reply);
        self.record(context.slot.0, &command);
    }

    fn query(&self, context: &Context, query: &[u8], reply: &mut BytesMut) {
        answer(&lock(&self.state), context, query, reply);
    }

    fn reader(&self) -> Option<Arc<dyn StateReader>> {
        Some(Arc::new(SimReader(Arc::clone(&self.state))))
    }

    fn checkpoint(&self) -> Option<Box<dyn CheckpointView>> {
        Some(Box::new(SimView(self.image())))
    }

    fn restore(&mut self, image: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        image.read_to_end(&mut bytes)?;
        self.take_image(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

struct SimReader(Arc<Mutex<State>>);

impl StateReader for SimReader {
    fn query(&self, context: &Context, query: &[u8], reply: &mut BytesMut) -> bool {
        answer(&lock(&self.0), context, query, reply);
        true
    }
}

fn answer(state: &State, context: &Context, query: &[u8], reply: &mut BytesMut) {
    let held = query.first().and_then(|key| state.get(key));
    reply.put_u64_le(context.slot.0);
    reply.put_u8(u8::from(held.is_some()));
    reply.put_slice(held.map_or(&[], Vec::as_slice));
}

/// The state of a machine as bytes, in pieces.
struct SimView(Vec<u8>);

impl CheckpointView for SimView {
    fn next_piece(&mut self, out: &mut BytesMut) -> bool {
        let rest = self.0.split_off(self.0.len().min(300));
        out.put_slice(&self.0);
        self.0 = rest;
        !self.0.is_empty()
    }
}

impl SimMachine {
    /// Little endian: slot u64, index u64, count of words u64 and the words of `seen` u64 each, then
    /// for each key its number u8, the length of its value u32, and the value.
    fn image(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [self.slot, self.index as u64, self.seen.len() as u64].iter().chain(&self.seen)
        {
            out.put_u64_le(*word);
        }
        for (key, value) in &*lock(&self.state) {
            out.put_u8(*key);
            out.put_u32_le(value.len() as u32);
            out.put_slice(value);
        }
        out
    }

    fn take_image(&mut self, mut image: &[u8]) -> Option<()> {
        let mut word = || Some(u64::from_le_bytes(image.split_off(..8)?.try_into().ok()?));
        self.slot = word()?;
        self.index = word()? as usize;
        let count = word()?;
        self.seen = (0..count).map(|_| word()).collect::<Option<_>>()?;
        let mut state = lock(&self.state);
        state.clear();
        while let Some((key, rest)) = image.split_first() {
            image = rest;
            let length = u32::from_le_bytes(image.split_off(..4)?.try_into().ok()?);
            let value = image.split_off(..length as usize)?;
            state.insert(*key, value.to_vec());
        }
        Some(())
    }
}

/// Takes the answer to a query apart: after which slot, and what was there.
#[must_use]
pub(crate) fn decode_answer(answer: &[u8]) -> Option<(u64, Option<&[u8]>)> {
    let (slot, rest) = answer.split_at_checked(8)?;
    let slot = u64::from_le_bytes(slot.try_into().ok()?);
    let (there, value) = rest.split_first()?;
    Some((slot, (*there == 1).then_some(value)))
}
