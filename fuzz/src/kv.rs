//! Commands as they travel through the log, the store that applies them, and its images.

use crate::{Input, put_piece};
use bytes::BytesMut;
use quorate_server::kv::frame::{put_bytes, put_varint};
use quorate_server::kv::{
    Command, Condition, ExpireOptions, Expiry, Items, Limits, SetForm, Store, TtlForm, take_reply,
};

const LIMITS: Limits = Limits { max_value_bytes: 64 << 10, max_reply_bytes: 64 << 10 };

/// Bytes are refused, or a command that encodes to the same command again.
pub fn kv_command(data: &[u8]) {
    let Ok(command) = Command::decode(data) else { return };
    let mut again = BytesMut::new();
    command.encode(&mut again);
    let decoded = Command::decode(&again).expect("an encoded command decodes");
    assert_eq!(format!("{decoded:?}"), format!("{command:?}"));
    assert_eq!(decoded.is_write(), command.is_write());
}

/// A script of commands, queries, time and checkpoints on two stores: every answer is one whole
/// reply, both stores give the same, and a query changes nothing.
pub fn kv_store(data: &[u8]) {
    let mut store = Store::new(LIMITS);
    let mut other = Store::new(LIMITS);
    let mut input = Input::new(data);
    let mut now = 1_700_000_000_000;
    let (mut reply, mut said) = (BytesMut::new(), BytesMut::new());
    while !input.is_empty() {
        reply.clear();
        said.clear();
        match input.u8() % 16 {
            0 => {
                store = image(&store);
                continue;
            }
            1 => {
                now = input.edge();
                store.advance(now);
                other.advance(now);
                continue;
            }
            2..6 => {
                let query = input.piece();
                let before = (store.modifications(), store.len(), store.time_ms());
                store.query(now, query, &mut reply);
                other.query(now, query, &mut said);
                assert_eq!((store.modifications(), store.len(), store.time_ms()), before);
            }
            _ => {
                let command = input.piece();
                now = now.saturating_add(u64::from(input.u8()));
                store.apply(now, command, &mut reply);
                other.apply(now, command, &mut said);
            }
        }
        assert_eq!(reply, said, "equal stores give equal replies");
        let mut rest = &reply[..];
        assert!(take_reply(&mut rest).is_some() && rest.is_empty(), "one whole reply: {reply:?}");
    }
    check(&store);
    assert_eq!(store.digest(), other.digest(), "equal histories, equal states");
}

/// What counters say agrees with what is there.
fn check(store: &Store) {
    assert!(store.expiring_len() <= store.len());
    assert_eq!(store.next_deadline_ms().is_some(), store.expiring_len() > 0);
    assert!(store.next_deadline_ms().is_none_or(|deadline| deadline > store.time_ms()));
}

/// The store, out of its own image.
fn image(store: &Store) -> Store {
    let image: Vec<u8> = store.freeze().pieces().flat_map(|piece| piece.to_vec()).collect();
    let restored = Store::restore(LIMITS, &image).expect("its own image");
    assert_eq!(restored.digest(), store.digest());
    assert_eq!((restored.len(), restored.time_ms()), (store.len(), store.time_ms()));
    restored
}

/// Bytes are refused, or the image of a store that works: it makes the same image again, and takes
/// every kind of command.
pub fn kv_restore(data: &[u8]) {
    let Ok(mut store) = Store::restore(LIMITS, data) else { return };
    check(&store);
    let mut again = image(&store);
    let mut replies = [BytesMut::new(), BytesMut::new()];
    for command in commands() {
        for (store, reply) in [&mut store, &mut again].into_iter().zip(&mut replies) {
            let now = store.time_ms();
            store.apply(now, &command, reply);
        }
        assert_eq!(replies[0], replies[1]);
    }
    store.advance(u64::MAX);
    assert_eq!(store.expiring_len(), 0, "at the end of time nothing is left to expire");
    check(&store);
}

/// Every command, encoded.
fn commands() -> Vec<Vec<u8>> {
    let (key, other) = (&b"a"[..], &b"b"[..]);
    let mut packed = BytesMut::new();
    put_bytes(&mut packed, key);
    put_bytes(&mut packed, other);
    let items = Items::Packed { count: 2, bytes: &packed };
    let options = ExpireOptions::XX.with(ExpireOptions::GT);
    let set = |value, condition, expiry, get, form| Command::Set {
        key,
        value,
        condition,
        expiry,
        get,
        form,
    };
    let mut commands: Vec<Vec<u8>> = [
        set(b"5", Condition::Always, Expiry::None, false, SetForm::Set),
        set(b"7", Condition::Equals(b"5"), Expiry::At(1_700_000_001_000), true, SetForm::Set),
        set(b"1.5", Condition::Absent, Expiry::In(10_000), false, SetForm::PSetEx),
        Command::Get { key },
        Command::Strlen { key },
        Command::GetRange { key, start: -5, end: i64::MAX },
        Command::MGet { keys: items },
        Command::Exists { keys: items },
        Command::Ttl { key, form: TtlForm { absolute: false, milliseconds: false } },
        Command::Ttl { key, form: TtlForm { absolute: true, milliseconds: true } },
        Command::Type { key },
        Command::RandomKey { seed: u64::MAX },
        Command::Keys { pattern: b"*[^a-c]?\\" },
        Command::Scan { cursor: 0, count: 10, pattern: b"a*", strings: true },
        Command::DbSize,
        Command::Versions { keys: items },
        Command::GetEx { key, expiry: Expiry::In(5_000) },
        Command::Expire { key, expiry: Expiry::In(1_000_000), options, seconds: true },
        Command::Persist { key },
        Command::IncrBy { key, by: i64::MAX },
        Command::IncrByFloat { key, by: b"-1.5e10" },
        Command::Append { key, value: b"tail" },
        Command::SetRange { key, offset: 60_000, value: b"v" },
        Command::MSet { pairs: items, only_if_absent: false },
        Command::Rename { from: key, to: other, only_if_absent: false },
        Command::GetDel { key: other },
        Command::Del { keys: items },
        Command::FlushAll,
    ]
    .iter()
    .map(encoded)
    .collect();
    commands.push(transaction(&commands[..8]));
    commands
}

fn encoded(command: &Command<'_>) -> Vec<u8> {
    let mut out = BytesMut::new();
    command.encode(&mut out);
    out.to_vec()
}

/// The commands as one `EXEC` under a watch that holds.
fn transaction(commands: &[Vec<u8>]) -> Vec<u8> {
    let (mut watches, mut packed) = (BytesMut::new(), BytesMut::new());
    put_bytes(&mut watches, b"\0absent");
    commands.iter().for_each(|command| put_bytes(&mut packed, command));
    encoded(&Command::Transaction {
        writes: true,
        watches: Items::Packed { count: 1, bytes: &watches },
        commands: Items::Packed { count: commands.len(), bytes: &packed },
    })
}

pub(crate) fn command_seeds() -> Vec<Vec<u8>> {
    commands()
}

pub(crate) fn store_seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![Vec::new()];
    for (index, command) in commands().iter().enumerate() {
        let mut step = vec![if index % 5 == 3 { 2 } else { 15 }];
        put_piece(&mut step, command);
        step.extend_from_slice(if index % 5 == 3 { &[] } else { &[7] });
        seeds[0].extend_from_slice(&step);
        seeds.push([&step[..], &[0], &step, &[1, 200, 7, 0]].concat());
    }
    let checkpointed = seeds[0].repeat(2);
    seeds.push([&checkpointed[..], &[0], &checkpointed].concat());
    seeds
}

pub(crate) fn restore_seeds() -> Vec<Vec<u8>> {
    let mut store = Store::new(LIMITS);
    let mut seeds = Vec::new();
    for (index, command) in commands().iter().enumerate() {
        store.apply(1_700_000_000_000 + index as u64, command, &mut BytesMut::new());
        seeds.push(store.freeze().pieces().flat_map(|piece| piece.to_vec()).collect());
    }
    let mut worn = BytesMut::from(&b"QKVIMG01"[..]);
    [5, u64::MAX, 0].into_iter().for_each(|number| put_varint(&mut worn, number));
    seeds.push(worn.to_vec());
    seeds
}
