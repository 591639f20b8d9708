//! The same generated requests to Redis itself and to this front end: every byte of the replies
//! must agree. Needs `redis-server` (7.0 or later of that line) in the path, and says so when it is
//! not there.
//!
//! What cannot agree is not generated: random and unordered replies, times to live that depend on
//! the millisecond, a deadline in the past for `SET` (Redis counts the dead key), and a key that is
//! created and removed again while it is watched (Redis calls that modified, here it is as it was).

use super::*;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::net::{TcpListener, TcpStream};

const SEQUENCES: u64 = 3_000;
const COMMANDS_PER_SEQUENCE: u64 = 12;
const MARK: &[u8] = b"$9\r\n--marks--\r\n";

struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing else to do about it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Redis {
    /// Starts Redis on a free port of the loopback; `None` when it is not installed.
    async fn start() -> Option<(Redis, SocketAddr)> {
        let probe = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = probe.local_addr().expect("bound");
        drop(probe);
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--save", "", "--appendonly", "no", "--databases", "1", "--dir"])
            .arg(std::env::temp_dir())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let redis = Redis(child);
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect(address).await.is_err() {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            tokio::task::yield_now().await;
        }
        Some((redis, address))
    }
}

/// SplitMix64: the sequences are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Templates: `K` a key, `V` a value, `I` an integer, `F` a float, `W` a small value, `N` a small offset, `E` an option
/// that sets a deadline, `D` a whole command about deadlines.
const HARMLESS: &[&str] = &[
    "GET K",
    "STRLEN K",
    "GETRANGE K N N",
    "SUBSTR K N N",
    "MGET K K K",
    "EXISTS K K",
    "TOUCH K",
    "TYPE K",
    "DBSIZE",
    "KEYS K",
    "SCAN 0 MATCH K COUNT 1000",
    "SCAN 0 TYPE hash COUNT 1000",
    "SET K V",
    "SET K V NX",
    "SET K V XX",
    "SET K V GET",
    "SET K V NX GET",
    "SET K V XX GET",
    "SET K V KEEPTTL",
    "SET K V E",
    "SET K V E GET",
    "SET K V XX E",
    "SET K V E KEEPTTL",
    "SET K V NX XX",
    "SET K V FOO",
    "SET K V EX",
    "SET K V EX I",
    "SET K V EX V",
    "SETNX K V",
    "SETEX K 0 V",
    "SETEX K V V",
    "PSETEX K -1 V",
    "GETSET K V",
    "GETEX K",
    "GETEX K E",
    "GETEX K PERSIST",
    "GETEX K PERSIST E",
    "GETEX K EX 0",
    "GETEX K EX 9223372036854775807",
    "GETEX K FOO",
    "MSET K V K V",
    "MSET K V K",
    "MSETNX K V K V",
    "INCR K",
    "DECR K",
    "INCRBY K I",
    "DECRBY K I",
    "INCRBY K V",
    "APPEND K V",
    "SETRANGE K N V",
    "SETRANGE K 99999999999 V",
    "PERSIST K",
    "D",
    "D",
    "D",
    "EXPIRE K 1000 FOO",
    "EXPIRE K 1000 NX XX",
    "EXPIRE K 1000 GT LT",
    "EXPIRE K V",
    "EXPIRE K 9223372036854775807",
    "PEXPIRE K 9223372036854775807",
    "EXPIREAT K 9223372036854775807",
    "PING",
    "PING V",
    "PING V V",
    "ECHO V",
    "SELECT 0",
    "SELECT 1",
    "SELECT V",
    "foo",
    "foo V K",
    "GET",
    "GET K K",
    "SET K",
    "SCAN x",
    "SCAN 0 COUNT 0",
    "SCAN 0 COUNT 1.5",
    "SCAN 0 FOO V",
    "SCAN 0 MATCH",
    "CLIENT FOO",
    "CLIENT SETNAME K",
    "CLIENT GETNAME",
    "CLIENT SETNAME",
    "WAIT x 0",
    "WAIT 0 -1",
    "CONFIG GET save",
    "CONFIG GET",
    "CONFIG FOO",
    "COMMAND GETKEYS MSET K V K V",
    "COMMAND GETKEYS PING",
    "COMMAND FOO",
    "READONLY V",
    "HELLO 9",
    "HELLO V",
    "AUTH V",
    "QUIT-NOT",
    "MULTI",
    "MULTI",
    "EXEC",
    "EXEC",
    "DISCARD",
    "UNWATCH",
    "WATCH",
];
const REMOVING: &[&str] = &[
    "DEL K",
    "DEL K K",
    "UNLINK K",
    "GETDEL K",
    "RENAME K K",
    "RENAMENX K K",
    "EXPIRE K -1",
    "PEXPIREAT K 1",
    "EXPIREAT K -9",
    "GETEX K EXAT 1",
    "FLUSHALL",
    "FLUSHDB ASYNC",
    "FLUSHALL FOO",
    "WATCH K",
    "WATCH K K",
];
/// Sequences of their own: on large integers Redis rounds where this store is exact.
const FLOATING: &[&str] = &[
    "SET K W",
    "INCRBYFLOAT K F",
    "INCRBYFLOAT K F",
    "INCRBYFLOAT K F",
    "INCRBYFLOAT K W",
    "INCR K",
    "GET K",
    "STRLEN K",
    "MULTI",
    "EXEC",
];
const SMALL_VALUES: &[&str] = &["1", "-2.5", "abc", "", "1e2", "010", "3.5", " 1", "0.0625"];
const KEYS: &[&str] = &["a", "b", "c", "key with space", ""];
const VALUES: &[&str] = &[
    "x",
    "10",
    "-3",
    "",
    "hello world",
    "9223372036854775807",
    "3.5",
    "010",
    "1e2",
    "a\r\nb",
    "\0",
];
const INTEGERS: &[&str] =
    &["1", "-1", "0", "100", "9223372036854775807", "-9223372036854775808", "1.5", "+1", " 1"];
const FLOATS: &[&str] = &["0.5", "-1.25", "3", "1e3", "0", "inf", "-inf", "nan", "abc", "0.125"];
const OFFSETS: &[&str] = &["0", "1", "3", "-1", "-2", "-9", "9", "20"];

struct Generator {
    random: Random,
    /// Deadlines of the sequence are absolute, or all relative: see the module.
    absolute: bool,
    watching: bool,
    floating: bool,
}

impl Generator {
    fn command(&mut self) -> Vec<String> {
        let removing = !self.watching && self.random.below(6) == 0;
        let templates = match removing {
            _ if self.floating => FLOATING,
            true => REMOVING,
            false => HARMLESS,
        };
        let template = self.random.pick(templates);
        match template.split(' ').next() {
            Some("WATCH") => self.watching = true,
            Some("EXEC" | "DISCARD" | "UNWATCH") => self.watching = false,
            _ => {}
        }
        template.split(' ').flat_map(|word| self.word(word)).collect()
    }

    fn word(&mut self, word: &str) -> Vec<String> {
        let random = &mut self.random;
        let one = match word {
            "K" => random.pick(KEYS),
            "V" => random.pick(VALUES),
            "I" => random.pick(INTEGERS),
            "W" => random.pick(SMALL_VALUES),
            "F" => random.pick(FLOATS),
            "N" => random.pick(OFFSETS),
            "E" => {
                let option = match self.absolute {
                    true => random.pick(&["EXAT 9999999999", "PXAT 9999999999999", "exat 0"]),
                    false => random.pick(&["EX 1000", "PX 2000000", "px 0", "Ex -1"]),
                };
                return option.split(' ').map(str::to_owned).collect();
            }
            "D" => return self.deadline(),
            other => other,
        };
        vec![one.to_owned()]
    }

    /// A whole command of the family of `EXPIRE` or `TTL`.
    fn deadline(&mut self) -> Vec<String> {
        let random = &mut self.random;
        let key = random.pick(KEYS).to_owned();
        let text = match self.absolute {
            true => random.pick(&[
                "EXPIREAT @ 9999999999",
                "PEXPIREAT @ 9999999999500",
                "EXPIREAT @ 9999999990 LT",
                "EXPIREAT @ 9999999995 GT",
                "EXPIREAT @ 9999999995 NX",
                "EXPIREAT @ 9999999995 XX",
                "EXPIRETIME @",
                "PEXPIRETIME @",
            ]),
            false => random.pick(&[
                "EXPIRE @ 1000",
                "PEXPIRE @ 3000000",
                "EXPIRE @ 500 LT",
                "EXPIRE @ 1000 NX",
                "EXPIRE @ 1000 XX",
                "TTL @",
                "TTL @",
            ]),
        };
        text.split(' ')
            .map(|word| if word == "@" { key.clone() } else { word.to_owned() })
            .collect()
    }
}

fn encode(command: &[String]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        out.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    out
}

/// Sends everything and reads up to the mark. A transaction that is open would swallow the mark.
async fn ask(stream: &mut TcpStream, requests: &[u8]) -> Vec<u8> {
    stream.write_all(requests).await.expect("open");
    stream.write_all(b"DISCARD\r\n*2\r\n$4\r\nECHO\r\n$9\r\n--marks--\r\n").await.expect("open");
    let mut got = Vec::new();
    while !got.ends_with(MARK) {
        let read = timeout(DEADLINE, stream.read_buf(&mut got)).await;
        let shown = String::from_utf8_lossy(&got);
        assert_ne!(read.expect("in time").expect("readable"), 0, "closed after {shown}");
    }
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn generated_requests_are_answered_as_by_redis() {
    let Some((_redis, redis_address)) = Redis::start().await else {
        println!("skipped: redis-server is not installed");
        return;
    };
    let backend = Single::new(0);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let settings = Arc::new(Settings::default());
    let never = std::future::pending();
    tokio::spawn(serve(listener, backend.clone(), settings, Arc::default(), never));

    let (mut theirs, mut ours) = connect(redis_address, address).await;
    for seed in 0..SEQUENCES {
        if seed == SEQUENCES / 2 {
            (theirs, ours) = connect(redis_address, address).await;
            let hello = b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n";
            ask(&mut theirs, hello).await;
            ask(&mut ours, hello).await;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        backend.set_time(now.as_millis() as u64);
        let absolute = seed % 2 == 0;
        let random = Random(seed);
        let floating = seed % 8 == 7;
        let mut generator = Generator { random, absolute, watching: false, floating };
        let commands: Vec<Vec<String>> =
            (0..COMMANDS_PER_SEQUENCE).map(|_| generator.command()).collect();
        let requests: Vec<u8> = commands.iter().flat_map(|command| encode(command)).collect();
        let (expected, got) = (ask(&mut theirs, &requests).await, ask(&mut ours, &requests).await);
        assert_eq!(
            String::from_utf8_lossy(&got),
            String::from_utf8_lossy(&expected),
            "ours (left) and Redis' (right) on {commands:?} (sequence {seed})"
        );
        // Leaves nothing behind.
        let clean = b"UNWATCH\r\nFLUSHALL\r\nCLIENT SETNAME \"\"\r\n";
        ask(&mut theirs, clean).await;
        ask(&mut ours, clean).await;
    }
}

async fn connect(theirs: SocketAddr, ours: SocketAddr) -> (TcpStream, TcpStream) {
    let connect = |address| async move { TcpStream::connect(address).await.expect("accepts") };
    (connect(theirs).await, connect(ours).await)
}
