//! `quorate replay` on the directories of real replicas: the state at the end and at slots before it,
//! without a change to the directory, and refusals that say what to do.

mod process;

use process::client::{Client, Reply};
use process::load::{Account, Load};
use process::{Cluster, quorate};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn output(arguments: &[&str]) -> (Option<i32>, String) {
    let output = quorate(arguments);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code(), text)
}

/// What `quorate replay` prints about a directory, run to its end.
fn replayed(arguments: &[&str]) -> String {
    let (code, text) = output(arguments);
    assert_eq!(code, Some(0), "{text}");
    text
}

fn refused(arguments: &[&str]) -> String {
    let (code, text) = output(arguments);
    assert_eq!(code, Some(2), "{text}");
    text
}

fn digest(text: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix("digest "));
    line.and_then(|line| line.split(' ').next()).expect("it prints a digest").to_owned()
}

/// Every file with its bytes.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(directory).expect("the directory is there").flatten();
    files.map(|file| (file.path(), fs::read(file.path()).expect("it can be read"))).collect()
}

#[test]
fn a_directory_is_replayed_to_any_slot_and_stays_as_it_is() {
    let mut cluster = Cluster::prepare("replay", "file", |config| {
        config.client.value_bytes_max = 64 << 10;
        config.limits.batch_bytes_max = 64 << 10;
        config.replica.segment_bytes = 512 << 10;
        config.checkpoints.log_bytes = 0;
    });
    cluster.start_all();
    let leader = cluster.leader();
    // Two leaders, so that sessions change and slots are written twice.
    let mut account = Account::default();
    for round in 0..2 {
        let load = Load::start(&cluster.addresses(), 1, round);
        load.advance(300);
        if round == 0 {
            cluster.kill(leader);
            load.advance(100);
            cluster.restart(leader);
        }
        account.add(load.stop());
    }
    let mut client = Client::new(&cluster.address(cluster.leader()));
    for command in ["SET text value", "SET soon gone PX 1", "SET later gone EX 100000"] {
        assert!(client.words(command).is_ok(), "{command}");
    }
    assert!(client.call(&[b"SET", b"\xff\x00", b"\xfe"]).is_ok());
    cluster.wait("the key expires", || {
        (client.insist("EXISTS soon") == Reply::Integer(0)).then_some(())
    });
    // Reports are some milliseconds old: one is waited for that has all of this in it.
    let Reply::Integer(written) = client.insist("QUORATE SLOT") else { panic!("no slot") };
    let middle = cluster.wait("reports that are new", || {
        Some(cluster.converged()).filter(|report| report.applied_slot >= written as u64)
    });
    let addresses = cluster.addresses().join(",");
    let (_, text) = output(&["checkpoint", &addresses]);
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(client.words("SET text other").is_ok());
    let last = cluster.converged();
    let directories: Vec<String> = (1..=3)
        .map(|node| cluster.replica(node).config.replica.directory.to_string_lossy().into_owned())
        .collect();

    let newest = |node| cluster.report(node).expect("it answers").checkpoints.newest_slot;
    let checkpoints: Vec<u64> = (1..=3).map(newest).collect();

    let said = refused(&["replay", &directories[0]]);
    assert!(said.contains("is in use by process"), "{said}");
    // A clean end would let each know the last slot; a kill leaves it in doubt, and replay says so.
    for node in 1..=3 {
        cluster.kill(node);
    }
    for (directory, checkpoint) in directories.iter().zip(checkpoints) {
        let before = contents(Path::new(directory));
        let at = |slot: u64| replayed(&["replay", directory, "--to", &slot.to_string()]);
        // From the checkpoint, and from the beginning of the log.
        assert_eq!(digest(&at(middle.applied_slot)), middle.digest);
        let whole = at(checkpoint);
        assert!(whole.contains(&format!("from the checkpoint at slot {checkpoint}")), "{whole}");
        let early = replayed(&["replay", directory, "--to", "20", "--slots"]);
        assert!(early.contains("from the beginning of the log"), "{early}");
        assert_eq!(early.lines().filter(|line| line.starts_with("    ")).count(), 20, "{early}");
        let said = refused(&["replay", directory, "--to", "1000000"]);
        assert!(said.contains("slot 1000000 is not known to be chosen here"), "{said}");
        assert!(before == contents(Path::new(directory)), "{directory} was changed");
    }
    // The leader knew the last slot to be chosen, and wrote so with the next record, if at all.
    let export = cluster.folder.path().join("keys.jsonl");
    let file = export.to_string_lossy().into_owned();
    let slot = middle.applied_slot.to_string();
    replayed(&["replay", &directories[1], "--to", &slot, "--export", &file]);
    let exported = fs::read_to_string(&export).expect("it was written");
    assert!(exported.contains(r#"{"key":"text","value":"value"}"#), "{exported}");
    assert!(exported.contains(r#"{"key_hex":"ff00","value_hex":"fe"}"#), "{exported}");
    assert!(exported.contains(r#"{"deadline_ms":"#) && !exported.contains("soon"), "{exported}");
    // The cluster goes on as if nobody had looked.
    cluster.start_all();
    cluster.wait("all of it is there again", || {
        (cluster.converged().applied_slot >= last.applied_slot).then_some(())
    });
    for node in 1..=3 {
        account.check(&cluster.address(node));
    }
}

#[test]
fn what_was_trimmed_or_never_there_is_refused_with_what_can_be_had() {
    let mut cluster = Cluster::prepare("replay-trimmed", "file", |config| {
        config.client.value_bytes_max = 64 << 10;
        config.limits.batch_bytes_max = 64 << 10;
        config.replica.segment_bytes = 512 << 10;
        config.checkpoints.log_bytes = 256 << 10;
        config.checkpoints.log_tail_bytes = 0;
        config.checkpoints.bytes_per_second = 0;
    });
    let directory = cluster.replica(2).config.replica.directory.to_string_lossy().into_owned();
    let said = refused(&["replay", &directory]);
    assert!(said.contains(&directory), "{said}");
    cluster.start_all();
    cluster.leader();
    let load = Load::start(&cluster.addresses(), 1, 0);
    cluster.wait("the log is trimmed", || {
        load.advance(50);
        cluster.report(2).filter(|report| report.checkpoints.log_first > 20)
    });
    load.stop();
    let report = cluster.converged();
    cluster.kill(2);
    let said = refused(&["replay", &directory, "--to", "5"]);
    assert!(said.contains("slot 5 cannot be reached"), "{said}");
    assert!(said.contains("The state can be had as of"), "{said}");
    // What it offers, it has.
    let text = replayed(&["replay", &directory]);
    let offered = said.split("any slot from ").nth(1).expect("it offers a range");
    let from = offered.split(' ').next().expect("a slot");
    replayed(&["replay", &directory, "--to", from]);
    let slot = report.applied_slot.to_string();
    if text.contains(&format!("slot {slot} of")) {
        assert_eq!(digest(&text), report.digest);
    }
}
