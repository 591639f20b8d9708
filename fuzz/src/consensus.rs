//! The formats of the core: batches of commands, session commands, the founding document.

use bytes::{BufMut, Bytes, BytesMut};
use quorate_consensus::batch::{
    CONTROL_SESSION, Group, GroupHeader, SessionCommand, groups_are_whole, put_item, take_group,
    take_item,
};
use quorate_consensus::session::{Admission, SessionTable};
use quorate_consensus::{Configuration, Genesis, Incarnation, Member, NodeId, Slot};

/// Groups as a peer forwards them, applied to a session table as a replica does it.
pub fn batch_groups(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let whole = groups_are_whole(&bytes);
    let mut table = SessionTable::new();
    let mut rest = bytes.clone();
    let (mut slot, mut taken) = (Slot::ZERO, 0);
    while let Some(group) = take_group(&mut rest) {
        slot = slot.next();
        taken += 1;
        apply(&mut table, slot, &group, whole);
        assert!(table.len() <= taken * data.len(), "a session takes a command to open it");
    }
    assert!(!whole || rest.len() < 32, "whole groups are taken to the last one");
    if let Some(command) = SessionCommand::decode(data) {
        let mut out = BytesMut::new();
        command.encode(&mut out);
        let mut encoded = &out[..];
        let item = take_item(&mut encoded).expect("an encoded command is an item");
        assert_eq!((item, SessionCommand::decode(item)), (data, Some(command)));
    }
}

fn apply(table: &mut SessionTable, slot: Slot, group: &Group, whole: bool) {
    let header = &group.header;
    let mut items = &group.commands[..];
    if header.session == CONTROL_SESSION {
        while let Some(item) = take_item(&mut items) {
            if let Some(command) = SessionCommand::decode(item) {
                table.control(slot, command);
            }
        }
        return;
    }
    let Admission::Apply { known } = table.admit(slot, header) else { return };
    assert!(known < header.count, "something of an admitted group is new");
    let mut replies = BytesMut::new();
    let mut found = 0;
    while let Some(item) = take_item(&mut items).filter(|_| found < header.count) {
        if found >= known {
            put_item(&mut replies, item);
        }
        found += 1;
    }
    assert!(!whole || found == header.count, "a whole group has as many commands as it says");
    let first = header.first_sequence + u64::from(known);
    let replies = replies.freeze();
    table.record(header.session, first, header.count - known, replies.clone());
    if whole && let Some(outcome) = table.outcome(header.session, first) {
        assert_eq!(Some(&outcome[..]), take_item(&mut &replies[..]), "the outcome is the reply");
    }
}

/// A document is refused, or encodes to the same bytes.
pub fn genesis(data: &[u8]) {
    if let Some(genesis) = Genesis::decode(data) {
        assert_eq!(genesis.encode(), data, "there is one way to write a document");
        let quorum = genesis.configuration.quorum();
        let voters = genesis.configuration.voters.len();
        assert!(quorum <= voters && 2 * quorum > voters);
    }
}

pub(crate) fn group_seeds() -> Vec<Vec<u8>> {
    let mut out = BytesMut::new();
    let mut control = BytesMut::new();
    for session in [7, 8] {
        SessionCommand::Open { session, owner: session as u16, idle_ms: session % 3 }
            .encode(&mut control);
    }
    SessionCommand::Close { session: 8 }.encode(&mut control);
    put_group(&mut out, (CONTROL_SESSION, 1), 3, &control);
    for (first, texts) in [(1, ["a", "bc"]), (2, ["bc", "d"]), (4, ["", "0123456789"])] {
        let mut commands = BytesMut::new();
        texts.iter().for_each(|text| put_item(&mut commands, text.as_bytes()));
        put_group(&mut out, (7, first), 2, &commands);
    }
    let mut far = out.clone();
    put_group(&mut far, (7, u64::MAX), 2, b"\0\0");
    let session = control[1..12].to_vec();
    vec![out.to_vec(), far.to_vec(), session, b"\x02\x07\0\0\0\0\0\0\0".to_vec()]
}

fn put_group(out: &mut BytesMut, (session, first): (u64, u64), count: u32, commands: &[u8]) {
    let length = commands.len() as u32;
    GroupHeader { session, first_sequence: first, acknowledged_below: first, count, length }
        .encode(out);
    out.put_slice(commands);
}

pub(crate) fn genesis_seeds() -> Vec<Vec<u8>> {
    let member = |node: u16| Member { node: NodeId(node), incarnation: Incarnation(77) };
    let of = |count: u16| Genesis {
        cluster: 5,
        configuration: Configuration::of_voters(1, (1..=count).map(member).collect()),
        recovered_from: (count == 9).then_some(7),
    };
    [1, 3, 9].map(|count| of(count).encode().to_vec()).to_vec()
}
