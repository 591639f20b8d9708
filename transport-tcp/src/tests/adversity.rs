//! What only sockets can do to a transport.

use super::{A, B, RawPeer, Running, endpoints, options, until};
use crate::wire::{Header, Hello, Kind};
use crate::{BindError, PENDING_MAX, SEND_QUEUE_BYTES_MAX, TcpTransport};
use bytes::Bytes;
use quorate_consensus::{Incarnation, NodeId};
use quorate_transport::{Event, Lane, PostError, RegionId, Transport};
use std::io::{Read, Write};
use std::net::TcpStream;

const REGION: RegionId = RegionId(1);

/// A listening replica with a region of 4096 bytes that replica 2 may write.
fn listener() -> Running {
    let mut transport = TcpTransport::bind(options(A, &[B], 7)).unwrap();
    transport.register(REGION, 4096).unwrap();
    transport.grant(REGION, B).unwrap();
    Running::new(transport)
}

fn header(kind: Kind, length: u32, number: u64) -> Header {
    Header { kind, length, region: REGION, offset: 0, number, ack: 0 }
}

/// Sends `bytes` on a greeted lane and returns why the lane went down.
fn reason_after(
    running: &mut Running,
    lane: Lane,
    bytes: impl Fn(Incarnation) -> Vec<u8>,
) -> String {
    let mut peer = RawPeer::greet(running, lane);
    peer.stream.write_all(&bytes(peer.life)).unwrap();
    running.events.clear();
    running.until("the lane went down", |running| running.last_down(lane).is_some());
    running.last_down(lane).unwrap()
}

#[test]
fn absurd_frames_drop_the_lane_with_a_reason_and_the_endpoint_survives() {
    type Make = fn(Incarnation) -> Vec<u8>;
    let write = |header: Header, life| header.encode(life).to_vec();
    let cases: [(Lane, Make, &str); 11] = [
        (Lane::Control, |life| header(Kind::Aside, 8, 0).encode(life).to_vec(), "does not belong"),
        (Lane::Data, |life| header(Kind::Aside, 65_537, 0).encode(life).to_vec(), "limit is 65536"),
        (Lane::Data, |_| vec![0xff; 100], "lost its framing"),
        (Lane::Data, |_| header(Kind::Write, 8, 1).encode(Incarnation(1)).to_vec(), "damaged"),
        (
            Lane::Data,
            |life| header(Kind::Write, u32::MAX, 1).encode(life).to_vec(),
            "which has 4096",
        ),
        (Lane::Data, |life| header(Kind::Write, 8, 2).encode(life).to_vec(), "frame 2 where 1"),
        (Lane::Data, |life| header(Kind::Message, 8, 1).encode(life).to_vec(), "does not belong"),
        (Lane::Control, |life| header(Kind::Write, 8, 1).encode(life).to_vec(), "does not belong"),
        (
            Lane::Control,
            |life| header(Kind::Message, u32::MAX, 1).encode(life).to_vec(),
            "the limit is",
        ),
        (
            Lane::Data,
            |life| {
                Header { region: RegionId(9), ..header(Kind::Write, 8, 1) }.encode(life).to_vec()
            },
            "does not exist here",
        ),
        (
            Lane::Data,
            |life| Header { ack: 5, ..header(Kind::Ack, 0, 0) }.encode(life).to_vec(),
            "only 0 were sent",
        ),
    ];
    let mut running = listener();
    for (lane, make, expected) in cases {
        let reason = reason_after(&mut running, lane, make);
        assert!(reason.contains(expected), "\"{reason}\" does not say \"{expected}\"");
    }
    // It still serves an honest peer.
    let mut peer = RawPeer::greet(&mut running, Lane::Data);
    let mut bytes = write(header(Kind::Write, 8, 1), peer.life);
    bytes.extend_from_slice(&7u64.to_le_bytes());
    peer.stream.write_all(&bytes).unwrap();
    running.until("the write arrived", |running| running.transport.load(REGION, 0) == 7);
}

#[test]
fn a_peer_that_trickles_one_byte_at_a_time_gets_through() {
    let mut running = listener();
    let mut peer = RawPeer::greet_slowly(&mut running, Lane::Data);
    let mut bytes = Vec::new();
    for number in 1..=3u64 {
        bytes.extend_from_slice(&header(Kind::Write, 8, number).encode(peer.life));
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for byte in bytes {
        peer.stream.write_all(&[byte]).unwrap();
        running.turn();
    }
    running.until("the last write arrived", |running| running.transport.load(REGION, 0) == 3);
}

#[test]
fn wrong_greetings_are_refused_with_a_reason() {
    let mut running = listener();
    let good = Hello { lane: Lane::Data, from: B, to: A, cluster: 7, nonce: 1, refusal: None };
    let cases = [
        (Hello { cluster: 8, ..good }, "wrong cluster"),
        (Hello { to: NodeId(5), ..good }, "this is replica 1, not 5"),
        (Hello { from: NodeId(9), ..good }, "replica 9 is not a peer"),
    ];
    for (hello, expected) in cases {
        let reason = refusal(&mut running, &hello.encode());
        assert!(reason.contains(expected), "\"{reason}\" does not say \"{expected}\"");
    }
    // What is no greeting at all, or one of another version, is closed without a word.
    let mut other_version = good.encode();
    other_version[8] = 99;
    for bytes in [other_version, [b'G'; 64]] {
        assert_eq!(refusal(&mut running, &bytes), "");
    }
    assert_eq!(running.transport.statistics().refused, 5);
    assert!(running.events.is_empty(), "{:?}", running.events);
}

/// The reason that comes back for these first bytes.
fn refusal(running: &mut Running, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(running.transport.local_addr()).unwrap();
    stream.write_all(bytes).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut answer = Vec::new();
    until("the connection was closed", || {
        running.turn();
        let mut buffer = [0; 512];
        match stream.read(&mut buffer) {
            Ok(0) => true,
            Ok(length) => {
                answer.extend_from_slice(&buffer[..length]);
                false
            }
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    });
    String::from_utf8_lossy(answer.get(64..).unwrap_or_default()).into_owned()
}

#[test]
fn a_refused_replica_learns_why() {
    let mut a = Running::new(TcpTransport::bind(options(A, &[B], 7)).unwrap());
    let mut b = Running::new(TcpTransport::bind(options(B, &[A], 8)).unwrap());
    b.transport.set_peer_address(A, &a.transport.local_addr().to_string()).unwrap();
    until("it was told about the cluster", || {
        a.turn();
        b.turn();
        b.transport.status(A).last_error.contains("wrong cluster")
    });
    // Once both agree, it needs no restart.
    b.transport.set_cluster(7);
    until("the link is up", || {
        a.turn();
        b.turn();
        a.transport.status(B).data_up && b.transport.status(A).data_up
    });
    a.transport.set_cluster(9);
    a.turn();
    assert!(a.last_down(Lane::Data).is_some_and(|reason| reason.contains("another cluster")));
}

#[test]
fn a_refused_write_is_explained_to_its_writer() {
    let (mut a, mut b) = connected();
    b.transport.register(REGION, 64).unwrap();
    a.transport.write(B, REGION, 0, &[Bytes::from_static(&[1; 8])]).unwrap();
    until("the writer was told", || {
        a.turn();
        b.turn();
        a.last_down(Lane::Data).is_some()
    });
    let reason = a.last_down(Lane::Data).unwrap();
    assert!(reason.contains("not granted"), "{reason}");
}

fn connected() -> (Running, Running) {
    let mut ends = endpoints(2).into_iter().map(Running::new);
    let (mut a, mut b) = (ends.next().unwrap(), ends.next().unwrap());
    until("both lanes are up", || {
        a.turn();
        b.turn();
        let (a, b) = (a.transport.status(B), b.transport.status(A));
        a.data_up && a.control_up && b.data_up && b.control_up
    });
    (a, b)
}

#[test]
fn a_newer_connection_of_the_same_peer_takes_the_place_of_the_old_one() {
    let mut running = listener();
    let old = RawPeer::greet(&mut running, Lane::Data);
    running.events.clear();
    let new = RawPeer::greet(&mut running, Lane::Data);
    assert_ne!(old.life, new.life);
    let kinds: Vec<bool> =
        running.events.iter().map(|event| matches!(event, Event::LinkUp { .. })).collect();
    assert_eq!(kinds, [false, true], "down, then up: {:?}", running.events);
}

#[test]
fn a_peer_that_never_reads_fills_a_bounded_queue_and_its_death_empties_it() {
    let mut running = listener();
    let peer = RawPeer::greet(&mut running, Lane::Control);
    let message = Bytes::from(vec![0; 1 << 20]);
    let mut refused = None;
    for _ in 0..1000 {
        if let Err(error) = running.transport.send(B, message.clone()) {
            refused = Some(error);
            break;
        }
        running.turn();
    }
    assert_eq!(refused, Some(PostError::Full(B)));
    let queued = running.transport.status(B).queued_bytes;
    assert!(queued > SEND_QUEUE_BYTES_MAX / 2 && queued <= SEND_QUEUE_BYTES_MAX, "{queued}");
    drop(peer);
    running.until("the lane went down", |running| running.last_down(Lane::Control).is_some());
    assert_eq!(running.transport.status(B).queued_bytes, 0);
    assert_eq!(running.transport.send(B, message), Err(PostError::Down(B)));
}

#[test]
fn silent_connections_are_bounded_and_given_up() {
    let mut running = listener();
    let address = running.transport.local_addr();
    let silent: Vec<TcpStream> =
        (0..PENDING_MAX + 20).map(|_| TcpStream::connect(address).unwrap()).collect();
    running
        .until("the surplus was refused", |running| running.transport.statistics().refused == 20);
    running.until("the silent ones were given up", |running| {
        running.transport.statistics().refused == PENDING_MAX as u64 + 20
    });
    drop(silent);
    RawPeer::greet(&mut running, Lane::Data);
}

#[test]
fn a_replica_that_was_killed_and_restarted_is_met_again() {
    for restarted in [A, B] {
        let (mut a, mut b) = connected();
        let (address_a, address_b) = (a.transport.local_addr(), b.transport.local_addr());
        let (lives, local) = if restarted == A { (a.lives(), A) } else { (b.lives(), B) };
        let peer = if local == A { B } else { A };
        let address = if local == A { address_a } else { address_b };
        let again = |old: Running| {
            drop(old);
            let options = crate::TcpOptions { listen: address, ..options(local, &[peer], 7) };
            let mut transport = TcpTransport::bind(options).unwrap();
            let other = if local == A { address_b } else { address_a };
            transport.set_peer_address(peer, &other.to_string()).unwrap();
            Running::new(transport)
        };
        if local == A {
            a = again(a);
        } else {
            b = again(b);
        }
        until("both lanes are up again", || {
            a.turn();
            b.turn();
            let both = a.lives().len() >= 2 && b.lives().len() >= 2;
            both && a.transport.status(B).data_up && b.transport.status(A).data_up
        });
        let now = if restarted == A { a.lives() } else { b.lives() };
        assert!(now.iter().all(|life| !lives.contains(life)), "an incarnation was used again");
        let survivor = if restarted == A { &b } else { &a };
        let status = survivor.transport.status(restarted);
        assert!(status.reconnects >= 2 && !status.last_error.is_empty(), "{status:?}");
    }
}

#[test]
fn a_peer_that_is_named_by_host_is_found() {
    let mut a = Running::new(TcpTransport::bind(options(A, &[B], 7)).unwrap());
    let mut b = Running::new(TcpTransport::bind(options(B, &[A], 7)).unwrap());
    let port = a.transport.local_addr().port();
    b.transport.set_peer_address(A, &format!("localhost:{port}")).unwrap();
    until("the link is up", || {
        a.turn();
        b.turn();
        b.transport.status(A).data_up && b.transport.status(A).control_up
    });
    assert!(b.transport.set_peer_address(A, "no-port").is_err());
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    let first = TcpTransport::bind(options(A, &[B], 7)).unwrap();
    let taken = crate::TcpOptions { listen: first.local_addr(), ..options(A, &[B], 7) };
    let error = TcpTransport::bind(taken).unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
    assert!(error.to_string().contains(&first.local_addr().to_string()), "{error}");
}

#[test]
fn many_messages_leave_in_one_system_call_and_arrive_in_few() {
    let (mut a, mut b) = connected();
    b.transport.register(REGION, 4096).unwrap();
    b.transport.grant(REGION, A).unwrap();
    let before = (a.transport.statistics(), b.transport.statistics());
    for at in 0..200 {
        a.transport.write(B, REGION, at % 64 * 64, &[Bytes::from_static(&[7; 64])]).unwrap();
    }
    a.transport.flush();
    let calls = a.transport.statistics().write_calls - before.0.write_calls;
    assert_eq!(calls, 1, "200 frames took {calls} system calls");
    until("all frames arrived", || {
        b.turn();
        b.transport.statistics().frames_received - before.1.frames_received == 200
    });
    let calls = b.transport.statistics().read_calls - before.1.read_calls;
    assert!(calls <= 3, "200 frames took {calls} reads");
    // One cumulative acknowledgement, not one for each.
    b.transport.park(std::time::Duration::ZERO);
    let acks = b.transport.statistics().frames_sent - before.1.frames_sent;
    assert!(acks <= 3, "{acks} acknowledgements for 200 writes");
    until("all writes completed", || {
        a.turn();
        a.events
            .iter()
            .any(|event| matches!(event, Event::Completed { through, .. } if through.0 == 200))
    });
}

#[test]
fn nothing_is_allocated_for_a_write_in_the_steady_state() {
    let (mut a, mut b) = connected();
    b.transport.register(REGION, 4096).unwrap();
    b.transport.grant(REGION, A).unwrap();
    let (small, large) = (Bytes::from(vec![1; 64]), Bytes::from(vec![2; 2048]));
    let mut pass = |writes: u64| {
        for _ in 0..writes {
            let pieces = [small.clone(), large.clone(), small.clone()];
            let before = b.transport.statistics().frames_received;
            a.transport.write(B, REGION, 0, &pieces).unwrap();
            while b.transport.statistics().frames_received == before {
                a.turn();
                b.turn();
                a.events.clear();
                b.events.clear();
            }
        }
    };
    pass(2000);
    let counted = allocation_counter::measure(|| pass(2000));
    // Now and then a chunk of the arena for headers: 48 bytes and two small pieces for each write.
    assert!(counted.count_total <= 2 * 20, "{counted:?}");
}

#[test]
fn records_pass_the_ring_without_an_allocation_each() {
    use quorate_consensus::{Accept, Ballot, Slot, Value, ValueKind};
    use quorate_transport::ring::{RingReader, RingWriter};

    const RING: usize = 64 << 10;
    let (mut a, mut b) = connected();
    b.transport.register(REGION, RING).unwrap();
    b.transport.grant(REGION, A).unwrap();
    let life = a.life(Lane::Data).unwrap();
    let (mut writer, mut reader) = (RingWriter::new(REGION, RING), RingReader::new(REGION, RING));
    writer.reset(life);
    reader.reset(life);
    let bytes = Bytes::from(vec![3; 700]);
    let checksum = crc32c::crc32c(&bytes);
    let value = Value { kind: ValueKind::Commands, checksum, bytes };
    let mut accept = Accept::default();
    let mut slot = 0;
    let mut pass = |records: u64| {
        for _ in 0..records {
            slot += 1;
            let (ballot, slot) = (Ballot::ZERO, Slot(slot));
            writer.ship(&mut a.transport, B, ballot, slot, slot, [&value, &value]).unwrap();
            while !reader.poll(&b.transport, &mut accept).unwrap() {
                a.turn();
                b.turn();
                a.events.clear();
                b.events.clear();
            }
            assert_eq!(accept.first, slot);
            assert!(writer.set_consumed(reader.consumed()));
        }
    };
    pass(500);
    let counted = allocation_counter::measure(|| pass(2000));
    assert!(counted.count_total <= 2000 / 20, "{counted:?}");
}

#[test]
fn half_of_a_write_is_not_acknowledged() {
    let mut running = listener();
    let mut peer = RawPeer::greet(&mut running, Lane::Data);
    let mut bytes = header(Kind::Write, 4096, 1).encode(peer.life).to_vec();
    bytes.extend_from_slice(&[9; 4096]);
    let (half, rest) = bytes.split_at(2000);
    peer.stream.write_all(half).unwrap();
    running.until("half of it landed", |running| running.transport.load(REGION, 1024) != 0);
    for _ in 0..200 {
        running.turn();
    }
    running.transport.park(std::time::Duration::ZERO);
    assert_eq!(running.transport.statistics().frames_sent, 0, "half a write was acknowledged");
    peer.stream.write_all(rest).unwrap();
    running.until("it was acknowledged", |running| running.transport.statistics().frames_sent == 1);
    let mut ack = [0; 48];
    peer.stream.read_exact(&mut ack).unwrap();
    assert_eq!(Header::decode(&ack, peer.life).unwrap().ack, 1);
}
