//! `quorate log`: what it says of logs that are whole, torn, damaged, or older than the machine's last
//! start, and that it changes nothing.

mod process;

use process::{Folder, quorate};
use quorate::log::{Boot, Log, LogOptions, MappedMedium, Medium, MediumKind, Record, open_medium};
use quorate_consensus::{Ballot, Entry, Incarnation, NodeId, Slot, Value, ValueKind};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

const SEGMENT_BYTES: u64 = 64 << 10;
const FIRST_SEGMENT: &str = "segment-0000000000000001";
/// Where a batch of a file begins.
const PAGE: usize = 4096;

fn write(medium: Arc<dyn Medium>, records: &[Record]) -> Log {
    let options = LogOptions {
        directory: PathBuf::new(),
        medium: MediumKind::File,
        node: NodeId(3),
        segment_bytes: SEGMENT_BYTES,
    };
    let opened = Log::open_on(medium, &options, Incarnation(0xfeed), Arc::new(|| {}));
    let (mut log, _) = opened.expect("a log opens");
    for record in records {
        let lsn = log.append(record, Slot::ZERO).expect("there is room");
        log.wait_durable(lsn).expect("the disk works");
    }
    log
}

const BALLOT: Ballot = Ballot { round: 7, node: NodeId(3) };

fn records(last: u64) -> Vec<Record> {
    let entry = |slot: u64| {
        let bytes: bytes::Bytes = format!("value {slot}").into_bytes().into();
        let checksum = crc32c_of(&bytes);
        let value = Value { kind: ValueKind::Commands, checksum, bytes };
        Record::Entry(Entry { slot: Slot(slot), ballot: BALLOT, value })
    };
    [Record::Promise(BALLOT)].into_iter().chain((1..=last).map(entry)).collect()
}

/// CRC-32C, bit by bit (RFC 3720, B.4).
fn crc32c_of(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 * (sum & 1)))
    })
}

fn image(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(directory).expect("it is there").map(|file| file.expect("a file"));
    files.map(|file| (file.path(), fs::read(file.path()).expect("it reads"))).collect()
}

fn log(command: &str, directory: &Path) -> (Output, String) {
    let before = image(directory);
    let output = quorate(&["log", command, &directory.to_string_lossy()]);
    assert_eq!(image(directory), before, "looking changes nothing");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output, said)
}

/// A log on a file, closed, or as a process that died left it.
fn on_file(folder: &Folder, last: u64, closes: bool) -> PathBuf {
    let directory = folder.path().join("log");
    let log = write(open_medium(MediumKind::File, &directory).expect("a disk"), &records(last));
    if closes {
        log.close().expect("the disk works");
        return directory;
    }
    let left = folder.path().join("left");
    fs::create_dir(&left).expect("room");
    for (path, bytes) in image(&directory) {
        let name = path.file_name().expect("a file has a name");
        fs::write(left.join(name), bytes).expect("room");
    }
    left
}

#[test]
fn export_writes_every_record_as_a_line_and_the_log_last() {
    let folder = Folder::new("log-export");
    let directory = on_file(&folder, 5, true);
    let (output, said) = log("export", &directory);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let lines: Vec<Json> =
        said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 7, "{said}");
    assert_eq!((&lines[0]["record"], &lines[0]["ballot"]), (&"promise".into(), &"7.3".into()));
    for (line, slot) in lines[1..6].iter().zip(1u64..) {
        let value = format!("value {slot}");
        let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((&line["record"], &line["slot"]), (&"commands".into(), &slot.into()), "{line}");
        assert_eq!(line["value"], Json::from(hex), "{line}");
        assert_eq!(line["offset"], Json::from((slot + 1) * PAGE as u64), "{line}");
        let checksum = format!("{:08x}", crc32c_of(value.as_bytes()));
        assert_eq!(line["crc32c"], Json::from(checksum), "{line}");
    }
    let last = &lines[6];
    assert_eq!((&last["log"], &last["records"]), (&3.into(), &6.into()), "{last}");
    assert_eq!((&last["damaged"], &last["outlived"]), (&0.into(), &false.into()), "{last}");
    assert_eq!(last["durable"], last["ends_at"], "{last}");
}

#[test]
fn a_torn_tail_is_reported_with_what_the_next_start_cuts_and_damage_is_told_apart() {
    let folder = Folder::new("log-truncate");
    let directory = on_file(&folder, 5, false);
    let segment = directory.join(FIRST_SEGMENT);
    let (output, said) = log("truncate-report", &directory);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("nothing would be cut"), "{said}");
    // The last batch arrived in part: its value is another one than its header says.
    let mut bytes = fs::read(&segment).expect("it reads");
    let whole = bytes.clone();
    bytes[6 * PAGE + 64] ^= 1;
    fs::write(&segment, &bytes).expect("it writes");
    let (output, said) = log("truncate-report", &directory);
    assert_eq!(output.status.code(), Some(0), "nothing acknowledged is lost: {said}");
    let from = 6 * PAGE;
    assert!(said.contains(&format!("would cut {} from byte {from}", segment.display())), "{said}");
    assert!(said.contains("slot 5, ballot 7.3, 7 bytes"), "{said}");
    // The same in the batch before: the last one says that it was durable.
    let mut bytes = whole;
    bytes[5 * PAGE + 64] ^= 1;
    fs::write(&segment, &bytes).expect("it writes");
    let (output, said) = log("truncate-report", &directory);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is damaged, not torn"), "{said}");
    let (output, said) = log("verify", &directory);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("DAMAGED") && said.contains("slots 4 to 4"), "{said}");
    let (output, said) = log("export", &directory);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let damage = said.lines().find(|line| line.contains("\"damage\"")).expect("a line for it");
    let damage: Json = serde_json::from_str(damage).expect("JSON");
    assert_eq!(
        (&damage["slots"], &damage["exact"]),
        (&vec![4, 4].into(), &true.into()),
        "{damage}"
    );
}

#[test]
fn verify_says_when_the_machine_was_started_again_since_an_emulated_log_was_made() {
    for (boot, outlived) in [(Boot(1), true), (Boot::current().expect("it is told"), false)] {
        let folder = Folder::new("log-outlived");
        let directory = folder.path().join("log");
        let medium = MappedMedium::open_in(&directory, boot).expect("a directory");
        write(Arc::new(medium), &records(2)).close().expect("the disk works");
        let (output, said) = log("verify", &directory);
        assert_eq!(said.contains("OUTLIVED: the machine was started again"), outlived, "{said}");
        assert!(said.contains("every checksum agrees"), "{said}");
        assert_eq!(output.status.code(), Some(i32::from(outlived)), "{said}");
        let (_, said) = log("export", &directory);
        assert!(said.contains(&format!("\"outlived\":{outlived}")), "{said}");
    }
}
