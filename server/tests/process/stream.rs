//! A steady stream of writes: so many a second, whatever the answers take.

use super::client::{Client, Reply};
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Keys of one connection; each write goes to the next of them.
const KEYS: u64 = 1024;
/// A connection sends what is due so often.
const TICK: Duration = Duration::from_millis(1);
/// Writes of one connection without an answer; beyond it the connection waits.
const OPEN_MAX: usize = 1 << 15;

/// Writes sent, oldest first: when, and so many of them.
type Open = Arc<Mutex<VecDeque<(Instant, u64)>>>;

/// Connections that write, until they are told to stop.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    senders: Vec<JoinHandle<(TcpStream, u64)>>,
    readers: Vec<JoinHandle<Answers>>,
}

#[derive(Debug)]
struct Answers {
    /// Answers in the order of the writes: whether each was OK.
    count: u64,
    refused: Vec<(u64, String)>,
    latency_us: Histogram<u64>,
}

/// What became of a stream.
#[derive(Debug)]
pub struct Ended {
    connections: Vec<(u64, Answers)>,
}

impl Stream {
    /// Starts `connections` to `address` that together write `rate` times a second.
    pub fn start(address: &str, connections: usize, rate: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (mut senders, mut readers) = (Vec::new(), Vec::new());
        for index in 0..connections {
            let stream = TcpStream::connect(address).expect("a connection");
            stream.set_nodelay(true).expect("an option of the socket");
            let open = Open::default();
            let reader = stream.try_clone().expect("a second handle");
            let (waits, acknowledged) = (Arc::clone(&open), Arc::clone(&acknowledged));
            readers.push(std::thread::spawn(move || take(reader, &waits, &acknowledged)));
            let stop = Arc::clone(&stop);
            let each = rate / connections as u64;
            senders.push(std::thread::spawn(move || send(stream, index, each, &open, &stop)));
        }
        Self { stop, acknowledged, senders, readers }
    }

    /// Writes acknowledged so far, as they come.
    pub fn acknowledged(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.acknowledged)
    }

    /// Stops sending, waits for the answers, and gives back what the clients were told.
    pub fn stop(self) -> Ended {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.senders.into_iter().map(|sender| {
            let (stream, sent) = sender.join().expect("it sends");
            // The replica answers what it has and closes as well.
            stream.shutdown(Shutdown::Write).expect("the sending half closes");
            sent
        });
        let sent: Vec<u64> = sent.collect();
        let answers = self.readers.into_iter().map(|reader| reader.join().expect("it reads"));
        Ended { connections: sent.into_iter().zip(answers).collect() }
    }
}

fn key(connection: usize, number: u64) -> String {
    format!("stream-{connection}-{}", number % KEYS)
}

fn send(
    mut stream: TcpStream,
    connection: usize,
    rate: u64,
    open: &Open,
    stop: &AtomicBool,
) -> (TcpStream, u64) {
    let begun = Instant::now();
    let mut sent = 0;
    let mut bytes = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let due = (begun.elapsed().as_secs_f64() * rate as f64) as u64;
        let waiting: u64 = open.lock().expect("it is whole").iter().map(|(_, count)| count).sum();
        // What could not be sent in time is not sent later all at once: at most a tenth of a second of it.
        let count = (due - sent.min(due)).min(rate / 10).min(OPEN_MAX as u64 - waiting);
        if count > 0 {
            bytes.clear();
            for number in sent..sent + count {
                let (key, value) = (key(connection, number), number.to_string());
                let (k, v) = (key.len(), value.len());
                write!(bytes, "*3\r\n$3\r\nSET\r\n${k}\r\n{key}\r\n${v}\r\n{value}\r\n")
                    .expect("memory takes all");
            }
            open.lock().expect("it is whole").push_back((Instant::now(), count));
            stream.write_all(&bytes).expect("the replica takes what is sent");
            sent += count;
        }
        std::thread::park_timeout(TICK);
    }
    (stream, sent)
}

fn take(mut stream: TcpStream, open: &Open, acknowledged: &AtomicU64) -> Answers {
    let latency_us = Histogram::new_with_max(120_000_000, 3).expect("bounds that fit");
    let mut answers = Answers { count: 0, refused: Vec::new(), latency_us };
    let mut buffer = vec![0; 1 << 16];
    let mut line = Vec::new();
    while let Ok(length) = stream.read(&mut buffer) {
        if length == 0 {
            break;
        }
        let now = Instant::now();
        let mut good = 0;
        for byte in &buffer[..length] {
            if *byte != b'\n' {
                line.push(*byte);
                continue;
            }
            match line.starts_with(b"+OK") {
                true => good += 1,
                false => {
                    let text = String::from_utf8_lossy(&line).into_owned();
                    answers.refused.push((answers.count, text));
                }
            }
            answers.count += 1;
            line.clear();
            let mut open = open.lock().expect("it is whole");
            let (sent_at, left) = open.front_mut().expect("an answer belongs to a write");
            answers.latency_us.saturating_record((now - *sent_at).as_micros() as u64);
            *left -= 1;
            if *left == 0 {
                open.pop_front();
            }
        }
        acknowledged.fetch_add(good, Ordering::Relaxed);
    }
    answers
}

impl Ended {
    /// Writes acknowledged, and those that were answered otherwise or not at all.
    pub fn counts(&self) -> (u64, u64) {
        let sent: u64 = self.connections.iter().map(|(sent, _)| sent).sum();
        let good = |answers: &Answers| answers.count - answers.refused.len() as u64;
        let good: u64 = self.connections.iter().map(|(_, answers)| good(answers)).sum();
        (good, sent - good)
    }

    /// The first answer that was not OK.
    pub fn refusal(&self) -> Option<&str> {
        let mut refused = self.connections.iter().flat_map(|(_, answers)| &answers.refused);
        refused.next().map(|(_, text)| text.as_str())
    }

    /// From the moment of sending to the answer, in microseconds.
    pub fn latency_us(&self) -> Histogram<u64> {
        let mut all = self.connections[0].1.latency_us.clone();
        for (_, answers) in &self.connections[1..] {
            all.add(&answers.latency_us).expect("equal bounds");
        }
        all
    }

    /// Asserts that each key holds its newest acknowledged write, or one sent after it.
    pub fn check(&self, address: &str) {
        let mut client = Client::new(address);
        for (connection, (sent, answers)) in self.connections.iter().enumerate() {
            let refused: std::collections::HashSet<u64> =
                answers.refused.iter().map(|(number, _)| *number).collect();
            for first in 0..KEYS.min(*sent) {
                let mine = (first..*sent).step_by(KEYS as usize);
                let told = mine.filter(|number| *number < answers.count);
                let newest = told.filter(|number| !refused.contains(number)).last();
                let reply = client.insist(&format!("GET {}", key(connection, first)));
                let found = match &reply {
                    Reply::Bulk(Some(value)) => {
                        let text = String::from_utf8_lossy(value);
                        Some(text.parse::<u64>().expect("a number that was written"))
                    }
                    Reply::Bulk(None) => None,
                    other => panic!("{other:?}"),
                };
                let fits = found.is_none_or(|value| value < *sent && value % KEYS == first)
                    && found >= newest;
                assert!(fits, "connection {connection}, key {first}: {found:?}, not {newest:?}");
            }
        }
    }
}
