//! What a client of the Redis front end sends.

use crate::Input;
use bytes::{Bytes, BytesMut};
use quorate_server::kv::{Limits, Store, frame};
use quorate_server::resp::parser::{Parser, ParserLimits};
use quorate_server::resp::{
    Backend, Connection, Freshness, Session, Settings, Shared, SubmitError,
};
use std::cell::OnceCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

const LIMITS: ParserLimits = ParserLimits { max_bulk_bytes: 4096, max_request_bytes: 8192 };
const STORE_LIMITS: Limits = Limits { max_value_bytes: 64 << 10, max_reply_bytes: 64 << 10 };
const PIPE_BYTES: usize = 1 << 20;

/// A stream of requests in one piece and in many: the same requests, and the same violation. The
/// first two bytes choose the lengths of the pieces.
pub fn resp_parser(data: &[u8]) {
    let mut input = Input::new(data);
    let (first, second) = (1 + usize::from(input.u8()), 1 + usize::from(input.u8() % 16));
    let bytes = input.rest();
    let whole = parse(bytes, &[usize::MAX]);
    assert_eq!(whole, parse(bytes, &[first, second]), "how the stream is cut makes no difference");
}

type Requests = Vec<Vec<Vec<u8>>>;

fn parse(bytes: &[u8], lengths: &[usize]) -> (Requests, Option<String>) {
    let mut parser = Parser::new(LIMITS);
    let (mut start, mut end, mut requests) = (0, 0, Vec::new());
    let mut lengths = lengths.iter().cycle();
    loop {
        match parser.next(&bytes[start..end]) {
            Err(violation) => return (requests, Some(violation.to_string())),
            Ok(Some(length)) => {
                assert!(length > 0 && length <= end - start, "a request ends where bytes are");
                let args = parser.args(&bytes[start..end]);
                assert!(args.total_bytes() <= length);
                requests.push(args.iter().map(<[u8]>::to_vec).collect());
                start += length;
            }
            Ok(None) if end == bytes.len() => return (requests, None),
            Ok(None) => {
                let more = lengths.next().copied().unwrap_or(usize::MAX);
                end = end.saturating_add(more).min(bytes.len());
            }
        }
    }
}

/// A store without replication.
#[derive(Clone, Debug)]
struct Single(Arc<Mutex<Store>>);

impl Single {
    fn run(
        &self,
        (count, commands): (usize, &[u8]),
        run: impl Fn(&mut Store, &[u8], &mut BytesMut),
    ) -> Result<Bytes, SubmitError> {
        let mut store: MutexGuard<'_, Store> =
            self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rest, mut replies, mut found) = (commands, BytesMut::new(), 0);
        while let Some(command) = frame::take_bytes(&mut rest) {
            frame::put_framed(&mut replies, |out| run(&mut store, command, out));
            found += 1;
        }
        assert!(rest.is_empty() && found == count, "a batch holds the commands that it says");
        Ok(replies.freeze())
    }
}

impl Backend for Single {
    async fn write(&self, count: usize, commands: Bytes) -> Result<Bytes, SubmitError> {
        self.run((count, &commands), |store, command, out| {
            store.apply(store.time_ms() + 1, command, out);
        })
    }
    async fn read(&self, count: usize, queries: Bytes, _: Freshness) -> Result<Bytes, SubmitError> {
        self.run((count, &queries), |store, query, out| store.query(0, query, out))
    }
    fn transfer(&self, _: Option<u16>) -> Result<(), String> {
        Err("there is one replica".into())
    }

    fn begin_checkpoint(&self) -> Result<(), String> {
        Err("there is no replica".into())
    }

    fn applied_slot(&self) -> u64 {
        0
    }
    fn status_json(&self) -> String {
        "{}".to_owned()
    }
    fn info(&self) -> String {
        "# Replication\r\nrole:master\r\n".to_owned()
    }
    fn acknowledged_replicas(&self) -> u32 {
        1
    }
}

thread_local! {
    static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
}

/// A connection that sends these bytes in pieces and then no more: it ends, and what it got is a
/// row of well-formed replies. The first two bytes choose the length of the pieces.
pub fn resp_session(data: &[u8]) {
    let mut input = Input::new(data);
    let step = 1 + input.below(4096);
    let bytes = input.rest();
    let output = RUNTIME.with(|runtime| {
        let runtime = runtime.get_or_init(|| {
            let built = Builder::new_current_thread().enable_time().build();
            built.expect("a runtime on this thread")
        });
        runtime.block_on(converse(bytes, step))
    });
    let mut rest = &output[..];
    while !rest.is_empty() {
        let from = rest;
        assert!(take_reply(&mut rest, 0).is_some(), "not a reply: {}", from.escape_ascii());
    }
}

async fn converse(bytes: &[u8], step: usize) -> Vec<u8> {
    let settings = Settings {
        max_bulk_bytes: LIMITS.max_bulk_bytes,
        max_request_bytes: LIMITS.max_request_bytes,
        max_command_bytes: 4096,
        max_batch_commands: 16,
        max_batch_bytes: 2048,
        write_timeout: Duration::from_secs(30),
        ..Settings::default()
    };
    let backend = Single(Arc::new(Mutex::new(Store::new(STORE_LIMITS))));
    let (client, server) = tokio::io::duplex(PIPE_BYTES);
    let session = Session::new(1, None, Arc::new(Shared::default()), Arc::new(settings));
    let (_stop, stopped) = watch::channel(false);
    let connection = Connection::new(server, backend, session, stopped);
    let (mut replies, mut requests) = tokio::io::split(client);
    let send = async {
        for piece in bytes.chunks(step) {
            if requests.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        // It may be closed already, which is its right.
        let _ = requests.shutdown().await;
    };
    let mut output = Vec::new();
    let receive = replies.read_to_end(&mut output);
    let (_, _, received) = tokio::join!(connection.serve(), send, receive);
    received.expect("a pipe does not fail");
    output
}

/// Takes one reply of RESP2 or RESP3; none if there is no whole one.
fn take_reply(input: &mut &[u8], depth: u32) -> Option<()> {
    let (&kind, rest) = input.split_first()?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, rest) = (&rest[..end], &rest[end + 2..]);
    *input = rest;
    let number = || std::str::from_utf8(line).ok()?.parse::<i64>().ok();
    match kind {
        b'+' | b'-' => (!line.contains(&b'\n') && !line.contains(&b'\r')).then_some(()),
        b':' => number().map(drop),
        b'_' => line.is_empty().then_some(()),
        b'#' => (line == b"t" || line == b"f").then_some(()),
        b',' | b'(' => (!line.is_empty()).then_some(()),
        b'$' | b'=' | b'!' => {
            let Ok(length) = usize::try_from(number()?) else {
                return (line == b"-1").then_some(());
            };
            let rest = rest.get(length..)?.strip_prefix(b"\r\n")?;
            *input = rest;
            Some(())
        }
        b'*' | b'%' | b'~' | b'>' if depth < 8 => {
            let Ok(count) = usize::try_from(number()?) else {
                return (line == b"-1").then_some(());
            };
            let elements = if kind == b'%' { 2 * count } else { count };
            (0..elements).try_for_each(|_| take_reply(input, depth + 1))
        }
        _ => None,
    }
}

/// Requests of every kind, as arrays and inline.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let lines = include_str!("../requests.txt");
    let arrays: Vec<Vec<u8>> = lines.lines().map(array).collect();
    let mut seeds: Vec<Vec<u8>> =
        arrays.chunks(6).map(|some| [&b"\x09\x03"[..], &some.concat()].concat()).collect();
    seeds.push([b"\xff\x0f", lines.replace('\n', "\r\n").as_bytes()].concat());
    seeds.push([&b"\xff\x07"[..], &arrays.concat()].concat());
    seeds.push(
        b"\x02\x01set a \"x\\x41\\n\" ex 'it\\'s'\r\n*-1\r\n*0\r\n\r\n*1\r\n$-1\r\n".to_vec(),
    );
    seeds
}

fn array(line: &str) -> Vec<u8> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut out = format!("*{}\r\n", words.len());
    for word in words {
        out.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    out.into_bytes()
}
