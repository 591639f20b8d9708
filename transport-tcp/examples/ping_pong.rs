//! How long a record takes to a follower and its row back, on the loopback with both ends polling,
//! beside bare sockets that carry as many bytes in the same run.
//!
//! `cargo run --release -p quorate-transport-tcp --example ping_pong -- [rounds] [payload bytes]`

use bytes::Bytes;
use quorate_consensus::{Accept, Ballot, NodeId, Row, Slot, Value, ValueKind};
use quorate_transport::ring::{RingReader, RingWriter};
use quorate_transport::row::{ROW_BYTES, RowReader, RowWriter};
use quorate_transport::{Event, Lane, RegionId, Transport};
use quorate_transport_tcp::{TcpOptions, TcpTransport};
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const LEADER: NodeId = NodeId(1);
const FOLLOWER: NodeId = NodeId(2);
const RING_BYTES: usize = 1 << 20;
/// A frame's header, and what a record takes beside its payload.
const RECORD_OVERHEAD_BYTES: usize = 48 + 84;
const ROW_FRAME_BYTES: usize = 48 + ROW_BYTES;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let rounds = arguments.next().transpose()?.unwrap_or(100_000);
    let payload = arguments.next().transpose()?.unwrap_or(64);
    // Alternating, so that a disturbance of the machine hits both.
    for _ in 0..3 {
        let bare = bare(rounds, payload + RECORD_OVERHEAD_BYTES)?;
        let ours = ours(rounds, payload)?;
        let ratio = ours.0.as_secs_f64() / bare.0.as_secs_f64();
        println!(
            "{payload} B: transport p50 {:?} p99 {:?}, bare sockets p50 {:?} p99 {:?}, ratio {ratio:.2}",
            ours.0, ours.1, bare.0, bare.1
        );
    }
    Ok(())
}

fn percentiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    (at(50), at(99))
}

fn bare(rounds: usize, there: usize) -> Outcome<(Duration, Duration)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> Outcome<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut buffer = vec![0; there];
        while read_spinning(&mut stream, &mut buffer)? {
            stream.write_all(&buffer[..ROW_FRAME_BYTES.min(there)])?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let (request, mut reply) = (vec![7; there], vec![0; ROW_FRAME_BYTES.min(there)]);
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        stream.write_all(&request)?;
        read_spinning(&mut stream, &mut reply)?;
        times.push(start.elapsed());
    }
    drop(stream);
    echo.join().map_err(|_| "the echo failed")??;
    Ok(percentiles(times))
}

/// `false` at the end of the stream.
fn read_spinning(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return Ok(false),
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn ours(rounds: usize, payload: usize) -> Outcome<(Duration, Duration)> {
    let bind = |local, peer| {
        let listen = "127.0.0.1:0".parse().map_err(|_| "no address")?;
        let options = TcpOptions { local, listen, peers: vec![(peer, String::new())], cluster: 1 };
        TcpTransport::bind(options).map_err(Box::<dyn Error + Send + Sync>::from)
    };
    let mut leader = bind(LEADER, FOLLOWER)?;
    let mut follower = bind(FOLLOWER, LEADER)?;
    follower.set_peer_address(LEADER, &leader.local_addr().to_string())?;
    leader.register(RegionId::row(FOLLOWER), ROW_BYTES)?;
    leader.grant(RegionId::row(FOLLOWER), FOLLOWER)?;
    follower.register(RegionId::inbox(LEADER), RING_BYTES)?;
    follower.grant(RegionId::inbox(LEADER), LEADER)?;
    let answering = std::thread::spawn(move || follow(follower, rounds));
    let times = lead(leader, rounds, payload)?;
    answering.join().map_err(|_| "the follower failed")??;
    Ok(percentiles(times))
}

fn lead(mut leader: TcpTransport, rounds: usize, payload: usize) -> Outcome<Vec<Duration>> {
    let mut writer = RingWriter::new(RegionId::inbox(LEADER), RING_BYTES);
    let mut reader = RowReader::new(FOLLOWER);
    let mut events = Vec::new();
    let mut up = false;
    while !up {
        leader.poll(&mut events);
        for event in events.drain(..) {
            if let Event::LinkUp { lane: Lane::Data, incarnation, .. } = event {
                writer.reset(incarnation);
                reader.reset(incarnation);
                up = true;
            }
        }
    }
    let bytes = Bytes::from(vec![7; payload]);
    let checksum = crc32c::crc32c(&bytes);
    let value = Value { kind: ValueKind::Commands, checksum, bytes };
    let ballot = Ballot { round: 1, node: LEADER };
    let mut times = Vec::with_capacity(rounds);
    for round in 1..=rounds as u64 {
        let start = Instant::now();
        writer.ship(&mut leader, FOLLOWER, ballot, Slot(round), Slot(round - 1), [&value])?;
        leader.flush();
        loop {
            events.clear();
            leader.poll(&mut events);
            if let Some((row, consumed)) = reader.poll(&leader)
                && row.accepted_slot == Slot(round)
            {
                writer.set_consumed(consumed);
                break;
            }
        }
        times.push(start.elapsed());
    }
    Ok(times)
}

fn follow(mut follower: TcpTransport, rounds: usize) -> Outcome<()> {
    let mut reader = RingReader::new(RegionId::inbox(LEADER), RING_BYTES);
    let mut writer = RowWriter::new(FOLLOWER);
    let mut accept = Accept::default();
    let mut events = Vec::new();
    let mut accepted = Slot::ZERO;
    while accepted.0 < rounds as u64 {
        follower.poll(&mut events);
        let mut written = false;
        for event in events.drain(..) {
            match event {
                Event::LinkUp { lane: Lane::Data, incarnation, .. } => {
                    reader.reset(incarnation);
                    writer.reset(incarnation);
                }
                Event::Written { .. } => written = true,
                _ => {}
            }
        }
        while written && reader.poll(&follower, &mut accept)? {
            accepted = accept.last();
            let row = Row { accepted_slot: accepted, ..Row::default() };
            writer.publish(&mut follower, LEADER, &row, reader.consumed())?;
            follower.flush();
        }
    }
    Ok(())
}
