//! Scenarios of the store alone: determinism, time, versions, checkpoints.

use super::frame::{put_bytes, put_varint};
use super::*;
use bytes::BytesMut;
use proptest::prelude::*;

fn encode(command: &Command<'_>) -> BytesMut {
    let mut out = BytesMut::new();
    command.encode(&mut out);
    out
}

fn apply(store: &mut Store, now_ms: u64, command: &Command<'_>) -> String {
    let mut reply = BytesMut::new();
    store.apply(now_ms, &encode(command), &mut reply);
    show(&reply)
}

fn query(store: &Store, now_ms: u64, command: &Command<'_>) -> String {
    let mut reply = BytesMut::new();
    store.query(now_ms, &encode(command), &mut reply);
    show(&reply)
}

fn show(mut reply: &[u8]) -> String {
    let mut tokens = Vec::new();
    while !reply.is_empty() {
        tokens.push(match Token::take(&mut reply).expect("own encoding") {
            Token::Nil => "nil".to_owned(),
            Token::Ok => "OK".to_owned(),
            Token::Int(value) => value.to_string(),
            Token::Array(length) => format!("*{length}"),
            Token::NilArray => "*nil".to_owned(),
            Token::Simple(text) => format!("+{}", String::from_utf8_lossy(text)),
            Token::Bulk(text) => format!("{:?}", String::from_utf8_lossy(text)),
            Token::Error(text) => format!("-{}", String::from_utf8_lossy(text)),
        });
    }
    tokens.join(" ")
}

fn set<'a>(key: &'a str, value: &'a str, expiry: Expiry) -> Command<'a> {
    Command::Set {
        key: key.as_bytes(),
        value: value.as_bytes(),
        condition: Condition::Always,
        expiry,
        get: false,
        form: SetForm::Set,
    }
}

fn get(key: &str) -> Command<'_> {
    Command::Get { key: key.as_bytes() }
}

fn packed(items: &[&[u8]]) -> BytesMut {
    let mut out = BytesMut::new();
    items.iter().for_each(|item| put_bytes(&mut out, item));
    out
}

#[test]
fn key_goes_when_replicated_time_reaches_its_deadline_and_not_before() {
    let mut store = Store::default();
    assert_eq!(apply(&mut store, 1_000, &set("k", "v", Expiry::In(500))), "OK");
    assert_eq!(store.next_deadline_ms(), Some(1_500));
    let pttl = Command::Ttl { key: b"k", form: TtlForm { absolute: false, milliseconds: true } };
    assert_eq!(query(&store, 1_200, &pttl), "300");
    // The reader's clock is past the deadline, the replicated time is not: the key still exists.
    assert_eq!(query(&store, 9_000, &get("k")), "\"v\"");
    assert_eq!(query(&store, 9_000, &pttl), "1");
    store.advance(1_499);
    assert_eq!(store.len(), 1);
    store.advance(1_500);
    assert_eq!((store.len(), store.next_deadline_ms()), (0, None));
    assert_eq!(query(&store, 1_500, &get("k")), "nil");
    assert_eq!(query(&store, 1_500, &pttl), "-2");
}

// Rule T2.
#[test]
fn time_never_goes_back() {
    let mut store = Store::default();
    apply(&mut store, 5_000, &set("a", "1", Expiry::None));
    apply(&mut store, 1_000, &set("b", "1", Expiry::In(10)));
    assert_eq!((store.time_ms(), store.next_deadline_ms()), (5_000, Some(5_010)));
}

#[test]
fn deadline_in_the_past_removes_at_once() {
    let mut store = Store::default();
    apply(&mut store, 5_000, &set("k", "v", Expiry::None));
    assert_eq!(apply(&mut store, 5_000, &set("k", "w", Expiry::At(4_000))), "OK");
    assert_eq!((store.len(), store.expiring_len()), (0, 0));
    apply(&mut store, 5_000, &set("k", "v", Expiry::None));
    let expire = Command::Expire {
        key: b"k",
        expiry: Expiry::In(-6_000),
        options: ExpireOptions::default(),
        seconds: true,
    };
    assert_eq!(apply(&mut store, 5_000, &expire), "1");
    assert!(store.is_empty());
}

#[test]
fn setting_and_persisting_keeps_the_index_of_deadlines_exact() {
    let mut store = Store::default();
    apply(&mut store, 1, &set("k", "v", Expiry::At(100)));
    apply(&mut store, 1, &set("k", "v", Expiry::At(200)));
    assert_eq!((store.expiring_len(), store.next_deadline_ms()), (1, Some(200)));
    apply(&mut store, 1, &set("k", "w", Expiry::Keep));
    assert_eq!(store.next_deadline_ms(), Some(200));
    let rename = Command::Rename { from: b"k", to: b"l", only_if_absent: false };
    assert_eq!(apply(&mut store, 1, &rename), "OK");
    assert_eq!((store.expiring_len(), store.next_deadline_ms()), (1, Some(200)));
    assert_eq!(apply(&mut store, 1, &Command::Persist { key: b"l" }), "1");
    assert_eq!(store.expiring_len(), 0);
    store.advance(1_000);
    assert_eq!(query(&store, 1, &get("l")), "\"w\"");
}

#[test]
fn relative_expiry_beyond_the_end_of_time_is_refused() {
    let mut store = Store::default();
    let reply = apply(&mut store, 1_000, &set("k", "v", Expiry::In(i64::MAX)));
    assert_eq!(reply, "-ERR invalid expire time in 'set' command");
    assert!(store.is_empty());
}

fn exec(watches: &[(u64, &str)], commands: &[Command<'_>]) -> BytesMut {
    let (mut keys, mut bodies) = (BytesMut::new(), BytesMut::new());
    for (version, key) in watches {
        let mut item = BytesMut::new();
        put_varint(&mut item, *version);
        item.extend_from_slice(key.as_bytes());
        put_bytes(&mut keys, &item);
    }
    commands.iter().for_each(|command| put_bytes(&mut bodies, &encode(command)));
    encode(&Command::Transaction {
        writes: commands.iter().any(Command::is_write),
        watches: Items::Packed { count: watches.len(), bytes: &keys },
        commands: Items::Packed { count: commands.len(), bytes: &bodies },
    })
}

fn version(store: &Store, key: &str) -> u64 {
    let keys = packed(&[key.as_bytes()]);
    let reply =
        query(store, 0, &Command::Versions { keys: Items::Packed { count: 1, bytes: &keys } });
    reply.strip_prefix("*1 ").and_then(|v| v.parse().ok()).expect("one version")
}

#[track_caller]
fn check_exec(store: &mut Store, command: &[u8], expected: &str) {
    let mut reply = BytesMut::new();
    store.apply(0, command, &mut reply);
    assert_eq!(show(&reply), expected);
}

#[test]
fn transaction_runs_only_when_no_watched_key_was_modified() {
    let mut store = Store::default();
    apply(&mut store, 1, &set("k", "1", Expiry::None));
    let seen = version(&store, "k");
    let incr = Command::IncrBy { key: b"k", by: 1 };
    check_exec(&mut store, &exec(&[(seen, "k"), (0, "absent")], &[incr, get("k")]), "*2 2 \"2\"");
    check_exec(&mut store, &exec(&[(seen, "k")], &[incr]), "*nil");

    // Removed and set to the same value again: another version all the same.
    let seen = version(&store, "k");
    let keys = packed(&[b"k"]);
    apply(&mut store, 1, &Command::Del { keys: Items::Packed { count: 1, bytes: &keys } });
    apply(&mut store, 1, &set("k", "2", Expiry::None));
    check_exec(&mut store, &exec(&[(seen, "k")], &[incr]), "*nil");

    // Absent when watched, present now.
    check_exec(&mut store, &exec(&[(0, "k")], &[incr]), "*nil");
    // A transaction of reads is a read, watches included.
    let mut reply = BytesMut::new();
    store.query(1, &exec(&[(version(&store, "k"), "k")], &[get("k")]), &mut reply);
    assert_eq!(show(&reply), "*1 \"2\"");
}

#[test]
fn write_hidden_in_a_transaction_of_reads_changes_nothing() {
    let mut store = Store::default();
    let bodies = packed(&[&encode(&set("k", "v", Expiry::None))]);
    let commands = Items::Packed { count: 1, bytes: &bodies };
    let watches = Items::Packed { count: 0, bytes: &[] };
    let command = encode(&Command::Transaction { writes: false, watches, commands });
    check_exec(&mut store, &command, "*1 -ERR a write cannot be answered as a read");
    let nested = packed(&[&command]);
    let commands = Items::Packed { count: 1, bytes: &nested };
    let command = encode(&Command::Transaction { writes: true, watches, commands });
    check_exec(&mut store, &command, "*1 -ERR malformed command");
    assert!(store.is_empty());
}

#[test]
fn reply_beyond_the_limit_becomes_an_error() {
    let limits = Limits { max_value_bytes: 100, max_reply_bytes: 150 };
    let mut store = Store::new(limits);
    let value = "x".repeat(100);
    apply(&mut store, 1, &set("k", &value, Expiry::None));
    let keys = packed(&[b"k", b"k"]);
    let mget = Command::MGet { keys: Items::Packed { count: 2, bytes: &keys } };
    assert_eq!(query(&store, 1, &mget), "-ERR the reply exceeds the limit of the server");
    let long = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
    let append = Command::Append { key: b"k", value: b"y" };
    assert_eq!(apply(&mut store, 1, &append), format!("-{long}"));
    let far = Command::SetRange { key: b"k", offset: u64::MAX, value: b"y" };
    assert_eq!(apply(&mut store, 1, &far), format!("-{long}"));
    let mut reply = BytesMut::new();
    store.apply(1, &exec(&[], &[get("k"), get("k"), Command::DbSize]), &mut reply);
    let expected = format!("*3 {value:?} -ERR the reply exceeds the limit of the server 1");
    assert_eq!(show(&reply), expected);
}

#[test]
fn scan_meets_every_key_exactly_once_while_others_come_and_go() {
    let mut store = Store::default();
    for i in 0..1_000 {
        apply(&mut store, 1, &set(&format!("stay:{i}"), "v", Expiry::None));
    }
    let (mut cursor, mut met, mut rounds) = (0, Vec::new(), 0);
    loop {
        let scan = Command::Scan { cursor, count: 7, pattern: b"stay:*", strings: true };
        let mut reply = BytesMut::new();
        store.query(1, &encode(&scan), &mut reply);
        let mut input = &reply[..];
        assert_eq!(Token::take(&mut input), Some(Token::Array(2)));
        let Some(Token::Bulk(next)) = Token::take(&mut input) else { panic!("a cursor") };
        cursor = std::str::from_utf8(next).expect("digits").parse().expect("a number");
        assert!(matches!(Token::take(&mut input), Some(Token::Array(_))));
        while let Some(Token::Bulk(key)) = Token::take(&mut input) {
            met.push(key.to_vec());
        }
        apply(&mut store, 1, &set(&format!("come:{rounds}"), "v", Expiry::None));
        rounds += 1;
        if cursor == 0 {
            break;
        }
    }
    met.sort_unstable();
    met.dedup();
    assert_eq!(met.len(), 1_000);
    assert!(rounds > 50, "{rounds}");
}

fn image(store: &FrozenStore) -> Vec<u8> {
    store.pieces().flatten().collect()
}

#[test]
fn checkpoint_keeps_the_moment_while_the_store_goes_on() {
    let mut store = Store::default();
    for i in 0..500 {
        let key = format!("k{i}");
        apply(&mut store, 10, &set(&key, "old", Expiry::At(1_000 + i)));
    }
    let (frozen, digest) = (store.freeze(), store.digest());
    for i in 0..500 {
        apply(&mut store, 10, &set(&format!("k{i}"), "new", Expiry::None));
    }
    assert_ne!(store.digest(), digest);
    let restored = Store::restore(Limits::default(), &image(&frozen)).expect("own image");
    assert_eq!(restored.digest(), digest);
    assert_eq!((restored.len(), restored.expiring_len()), (500, 500));
    assert_eq!((restored.time_ms(), restored.next_deadline_ms()), (10, Some(1_000)));
    assert_eq!(restored.modifications(), 500);
    assert_eq!(version(&restored, "k7"), 8);
    assert_eq!(image(&restored.freeze()), image(&frozen));
}

#[test]
fn damaged_checkpoint_is_refused_and_never_panics() {
    let mut store = Store::default();
    for i in 0..20 {
        apply(&mut store, 10, &set(&format!("k{i}"), "value", Expiry::At(1_000 + i)));
    }
    let image = image(&store.freeze());
    for cut in 0..image.len() {
        assert!(Store::restore(Limits::default(), &image[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..image.len() {
        let mut flipped = image.clone();
        flipped[at] ^= 0x55;
        // A flip inside a value goes unnoticed here: the log's checksums are there for that.
        let _ = Store::restore(Limits::default(), &flipped);
    }
}

#[test]
fn checkpoint_with_numbers_that_no_store_has_is_refused() {
    let varint = |number: u64| {
        let mut out = BytesMut::new();
        put_varint(&mut out, number);
        out.to_vec()
    };
    let worn = [&b"QKVIMG01"[..], &varint(5), &varint(u64::MAX), &varint(0)].concat();
    assert!(Store::restore(Limits::default(), &worn).is_err(), "the next write would overflow");
    let entry = [&b"\x01k\x01v"[..], &varint(u64::MAX), &varint(1)].concat();
    let bucket = [&varint(entry.len() as u64)[..], &entry].concat();
    let never = [&b"QKVIMG01"[..], &varint(5), &varint(1), &varint(1), &bucket].concat();
    let refused = Store::restore(Limits::default(), &never).unwrap_err();
    assert!(refused.to_string().contains("deadline"), "{refused}");
}

fn arbitrary_command() -> impl Strategy<Value = BytesMut> {
    let key = || "[a-f]";
    let value = || "[0-9]{0,3}";
    let expiry = || {
        prop_oneof![
            Just(Expiry::None),
            Just(Expiry::Keep),
            (-5i64..50).prop_map(Expiry::In),
            (-5i64..200).prop_map(Expiry::At),
        ]
    };
    prop_oneof![
        (key(), value(), expiry()).prop_map(|(k, v, e)| encode(&set(&k, &v, e))),
        (key(), any::<i64>())
            .prop_map(|(k, by)| encode(&Command::IncrBy { key: k.as_bytes(), by })),
        (key(), value()).prop_map(|(k, v)| {
            encode(&Command::Append { key: k.as_bytes(), value: v.as_bytes() })
        }),
        (key(), 0u64..20, value()).prop_map(|(k, offset, v)| {
            encode(&Command::SetRange { key: k.as_bytes(), offset, value: v.as_bytes() })
        }),
        (key(), key()).prop_map(|(a, b)| {
            let (from, to) = (a.as_bytes(), b.as_bytes());
            encode(&Command::Rename { from, to, only_if_absent: false })
        }),
        (key(), expiry()).prop_map(|(k, expiry)| {
            let options = ExpireOptions::default();
            encode(&Command::Expire { key: k.as_bytes(), expiry, options, seconds: false })
        }),
        (key(), expiry())
            .prop_map(|(k, expiry)| encode(&Command::GetEx { key: k.as_bytes(), expiry })),
        key().prop_map(|k| {
            let keys = packed(&[k.as_bytes()]);
            encode(&Command::Del { keys: Items::Packed { count: 1, bytes: &keys } })
        }),
        key().prop_map(|k| encode(&Command::Persist { key: k.as_bytes() })),
        Just(encode(&Command::FlushAll)),
        proptest::collection::vec(any::<u8>(), 0..30).prop_map(|bytes| BytesMut::from(&bytes[..])),
    ]
}

proptest! {
    /// Two replicas, one of which is replaced by its own checkpoint in the middle, agree on every
    /// reply and on the state; and all that the store counts incrementally is right.
    #[test]
    fn replicas_agree_whatever_is_applied(
        steps in proptest::collection::vec((0u64..8, arbitrary_command()), 1..120),
        restart in 0usize..120,
    ) {
        let (mut one, mut two) = (Store::default(), Store::default());
        let mut now = 0;
        for (index, (pause, command)) in steps.iter().enumerate() {
            now += pause;
            if index == restart {
                two = Store::restore(Limits::default(), &image(&two.freeze())).expect("own image");
            }
            let (mut a, mut b) = (BytesMut::new(), BytesMut::new());
            one.apply(now, command, &mut a);
            two.apply(now, command, &mut b);
            prop_assert_eq!(show(&a), show(&b));
        }
        prop_assert_eq!(one.digest(), two.digest());
        prop_assert_eq!(image(&one.freeze()), image(&two.freeze()));
        let entries: Vec<_> = one.buckets.iter().flat_map(|bucket| bucket.entries()).collect();
        prop_assert_eq!(entries.len(), one.len());
        let expiring = entries.iter().filter(|entry| entry.deadline_ms != 0).count();
        prop_assert_eq!(expiring, one.expiring_len());
        prop_assert!(entries.iter().all(|entry| !one.is_past(entry.deadline_ms)));
        let memory: usize = entries.iter().map(|entry| entry.memory_bytes()).sum();
        prop_assert_eq!(memory + BUCKETS * size_of::<usize>(), one.memory_bytes());
    }
}
