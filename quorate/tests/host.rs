//! Many state machines a process, over TCP with logs on files.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quorate::{BytesMut, Consistency, Context, Handle, Host, Replica, StartError, StateMachine};
use std::net::TcpListener;
use std::path::Path;

#[derive(Default)]
struct Last(Vec<u8>);

impl StateMachine for Last {
    fn apply(&mut self, _: &Context, command: &[u8], reply: &mut BytesMut) {
        reply.extend_from_slice(&self.0);
        self.0 = command.to_vec();
    }

    fn query(&self, _: &Context, _: &[u8], reply: &mut BytesMut) {
        reply.extend_from_slice(&self.0);
    }
}

fn start(addresses: &[String], directory: &Path) -> Vec<Host> {
    let host = |node: u16| {
        let directory = directory.join(node.to_string());
        Replica::builder(node).members(addresses).directory(directory).host().unwrap()
    };
    (1..=3).map(host).collect()
}

fn open(hosts: &[Host], shard: u16) -> Vec<Handle> {
    hosts.iter().map(|host| host.open(shard, Last::default()).unwrap()).collect()
}

#[test]
fn shards_come_back_each_with_its_own_log() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let held: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<String> =
        held.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    drop(held);
    let hosts = start(&addresses, directory.path());
    for shard in [0, 1, 77] {
        let handles = open(&hosts, shard);
        let command = format!("of {shard}");
        assert_eq!(handles[usize::from(shard) % 3].propose(command.as_bytes()).wait().unwrap(), "");
    }
    let again = hosts[0].open(77, Last::default());
    assert!(matches!(again, Err(StartError::Options(_))), "{again:?}");
    drop(hosts);
    let hosts = start(&addresses, directory.path());
    for shard in [77, 0, 1] {
        let handles = open(&hosts, shard);
        let read = handles[1].query(b"", Consistency::Linearizable).wait().unwrap();
        assert_eq!(read, format!("of {shard}"));
    }
}
