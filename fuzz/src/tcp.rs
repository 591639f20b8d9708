//! What arrives on a connection of a peer.

use crate::Input;
use crate::input::overwrite;
use quorate_consensus::{Incarnation, NodeId};
use quorate_transport::integrity::seeded_crc;
use quorate_transport::region::RegionTable;
use quorate_transport::{Event, Lane, RegionId};
use quorate_transport_tcp::fuzzing;

const PEER: NodeId = NodeId(2);
const LIFE: Incarnation = Incarnation(3);
const GRANTED: RegionId = RegionId(1);
const PRIVATE: RegionId = RegionId(2);
const REGION_BYTES: usize = 8 << 10;
const FRAME_HEADER_BYTES: usize = 48;
const HELLO_BYTES: usize = 64;

/// A stream of frames, cut in two ways: both ways give the same events, the same memory and the
/// same end, and no byte lands outside of what was granted. Bytes: the lane and whether headers are
/// sealed; the lengths of the pieces; the stream.
pub fn tcp_stream(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.u8();
    let lane = if mode & 1 == 0 { Lane::Data } else { Lane::Control };
    let lengths = [1 + input.below(100), 1 + input.below(3000), 1 + input.below(100)];
    let bytes = if mode & 2 == 0 { input.rest().to_vec() } else { sealed(&mut input) };
    let whole = receive(lane, &bytes, &[usize::MAX]);
    let pieces = receive(lane, &bytes, &lengths);
    assert_eq!(whole, pieces, "how the stream is cut makes no difference");
    assert!(whole.private.iter().all(|byte| *byte == 0), "a region that was not granted");
    let messages: usize = whole.messages.iter().map(Vec::len).sum();
    assert!(messages <= bytes.len(), "no message is longer than what came");
}

#[derive(PartialEq, Eq, Debug)]
struct Received {
    outcome: Result<(u64, u64), String>,
    messages: Vec<Vec<u8>>,
    granted: Vec<u8>,
    private: Vec<u8>,
}

fn receive(lane: Lane, bytes: &[u8], lengths: &[usize]) -> Received {
    let mut regions = RegionTable::default();
    for region in [GRANTED, PRIVATE] {
        regions.register(region, REGION_BYTES).expect("a small region");
    }
    regions.grant(GRANTED, PEER).expect("it is registered");
    let stream = fuzzing::Pieces::new(bytes, lengths);
    let mut events = Vec::new();
    let outcome = fuzzing::receive((PEER, lane, LIFE), stream, &mut regions, &mut events);
    let messages = events
        .into_iter()
        .filter_map(|event| match event {
            Event::Control { message, .. } => Some(message.to_vec()),
            _ => None,
        })
        .collect();
    let content = |region| {
        let mut bytes = vec![0; REGION_BYTES];
        regions.copy_out(region, 0, &mut bytes);
        bytes
    };
    let (granted, private) = (content(GRANTED), content(PRIVATE));
    Received { outcome, messages, granted, private }
}

/// Frames with fields of the fuzzer's choice, payloads of the announced length, and checksums that
/// match.
fn sealed(input: &mut Input<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut number = 0u64;
    while !input.is_empty() {
        let mut header = [0; FRAME_HEADER_BYTES];
        let (kind, choice) = (input.u8(), input.u8());
        let payload = input.piece();
        number += u64::from(kind == 1 || kind == 2);
        let length = if choice & 1 == 0 { payload.len() as u32 } else { input.edge() as u32 };
        let region = if choice & 2 == 0 { GRANTED.0 } else { input.edge() as u32 };
        let offset = if choice & 4 == 0 { input.below(REGION_BYTES) as u64 } else { input.edge() };
        overwrite(&mut header, 0, &0x5146u16.to_le_bytes());
        header[2] = 1;
        header[3] = kind;
        overwrite(&mut header, 4, &length.to_le_bytes());
        overwrite(&mut header, 8, &region.to_le_bytes());
        overwrite(&mut header, 16, &offset.to_le_bytes());
        let said = if choice & 8 == 0 { number } else { input.edge() };
        overwrite(&mut header, 24, &said.to_le_bytes());
        let ack = if choice & 16 == 0 { 0 } else { input.edge() };
        overwrite(&mut header, 32, &ack.to_le_bytes());
        let crc = seeded_crc(LIFE, &[&header[..44]]);
        overwrite(&mut header, 44, &crc.to_le_bytes());
        stream.extend_from_slice(&header);
        stream.extend_from_slice(payload);
    }
    stream
}

/// The first bytes of a connection: refused, or a greeting that encodes to the same meaning. The
/// first byte chooses whether the checksum is made to match.
pub fn tcp_greeting(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let (hello, rest) = data.split_at(data.len().min(HELLO_BYTES));
    let mut bytes = [0; HELLO_BYTES];
    bytes[..hello.len()].copy_from_slice(hello);
    if mode % 2 == 1 {
        overwrite(&mut bytes, 0, b"QUORATE\0\x01\0");
        let crc = seeded_crc(Incarnation(0), &[&bytes[..60]]);
        overwrite(&mut bytes, 60, &crc.to_le_bytes());
    }
    let (Ok(again), text) = fuzzing::greeting(&bytes, rest) else { return };
    assert_eq!(fuzzing::greeting(&again, rest), (Ok(again), text), "it reads as it was written");
}

pub(crate) fn stream_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (mode, kind) in [(2, 1), (3, 2), (3, 3), (2, 4), (2, 1)] {
        let mut seed = vec![mode, 10, 0, 200, 1, 30, 0];
        for at in 0..4u8 {
            seed.extend_from_slice(&[kind, 0]);
            crate::put_piece(&mut seed, &vec![at; usize::from(at) * 90]);
            seed.extend_from_slice(&[at, at]);
        }
        let frames = sealed(&mut Input::new(&seed[7..]));
        let raw = [&[mode & 1], &seed[1..7], &frames].concat();
        seeds.extend([seed, raw]);
    }
    seeds
}

pub(crate) fn greeting_seeds() -> Vec<Vec<u8>> {
    let mut hello = vec![1; 1 + HELLO_BYTES];
    hello.extend_from_slice(b"the cluster is another");
    let mut refusal = hello.clone();
    overwrite(&mut refusal, 59, &22u16.to_le_bytes());
    vec![hello, refusal]
}
