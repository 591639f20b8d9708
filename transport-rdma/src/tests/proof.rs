//! The proof of the fence: what it takes, what it is believed from, what it is not.

use crate::AdapterOptions;
use crate::proof::{PROOF_BYTES, PROOF_FILE, PROOF_ROUNDS, ProofError, judge, prove, prove_in};
use crate::torture::{Fence, Finding};
use quorate_ffi::fake::Fabric;
use std::path::Path;

fn options(fabric: &Fabric) -> AdapterOptions {
    AdapterOptions { device: Some(fabric.name().to_owned()), ..AdapterOptions::default() }
}

/// Rounds that were run for a proof in this boot.
fn rounds(fabric: &Fabric, directory: &Path, boot: &str) -> Result<u32, ProofError> {
    prove_in(&Fabric::library(), &options(fabric), Some(directory), boot).map(|proof| proof.rounds)
}

const ALL: u32 = PROOF_ROUNDS * PROOF_BYTES.len() as u32;

#[test]
fn a_fence_is_proved_once_a_boot_for_each_device_and_address() {
    let home = tempfile::tempdir().unwrap();
    let (home, fabric) = (home.path().join("log"), Fabric::new(1));
    assert_eq!(rounds(fabric, &home, "first").unwrap(), ALL);
    assert_eq!(rounds(fabric, &home, "first").unwrap(), 0, "it is believed");
    assert_eq!(rounds(fabric, &home, "second").unwrap(), ALL, "not in another boot");
    let other = Fabric::new(2);
    assert_eq!(rounds(other, &home, "second").unwrap(), ALL, "not on another device");
    let file = home.join(PROOF_FILE);
    let kept = std::fs::read_to_string(&file).unwrap();
    for damaged in [&kept[..kept.len() - 3], &kept.replace("127.0.0.1", "127.0.0.2"), ""] {
        std::fs::write(&file, damaged).unwrap();
        assert_eq!(rounds(other, &home, "second").unwrap(), ALL, "not by {damaged:?}");
    }
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    assert_eq!(rounds(other, &home, "second").unwrap(), ALL);
    // This boot, and no folder.
    let library = Fabric::library();
    let proof = prove(&library, &options(fabric), None).unwrap();
    assert_eq!((proof.rounds, proof.device.as_str()), (ALL, fabric.name()));
}

#[test]
fn a_fence_that_does_not_hold_is_refused_and_leaves_no_proof() {
    let home = tempfile::tempdir().unwrap();
    let fabric = Fabric::new(3);
    assert_eq!(rounds(fabric, home.path(), "first").unwrap(), ALL);
    fabric.break_fence(4);
    // A proof of this boot is believed; that is what the next boot is for.
    assert_eq!(rounds(fabric, home.path(), "first").unwrap(), 0);
    for _ in 0..2 {
        let refused = rounds(fabric, home.path(), "second").unwrap_err();
        assert!(matches!(refused, ProofError::Late { late: 1.., .. }), "{refused}");
        assert!(refused.to_string().contains("followers = \"active\""), "{refused}");
        assert!(!home.path().join(PROOF_FILE).exists());
    }
}

#[test]
fn rounds_without_a_stream_prove_nothing() {
    let found = |rounds, late| Finding {
        fence: Fence::Deregister,
        bytes: 4096,
        rounds,
        late,
        torn: rounds,
        refused: rounds,
    };
    assert!(judge("rxe0", &found(PROOF_ROUNDS, 0)).is_ok());
    let idle = judge("rxe0", &found(PROOF_ROUNDS / 2 - 1, 0)).unwrap_err();
    assert!(matches!(idle, ProofError::Idle { rounds: 19, asked: 40, .. }), "{idle}");
    let late = judge("rxe0", &found(3, 1)).unwrap_err();
    assert!(matches!(late, ProofError::Late { late: 1, rounds: 3, .. }), "{late}");
}

#[test]
fn what_cannot_be_tested_is_not_proved() {
    let home = tempfile::tempdir().unwrap();
    let fabric = Fabric::new(4);
    fabric.set_port(false);
    let refused = rounds(fabric, home.path(), "boot").unwrap_err();
    assert!(refused.to_string().contains("port 1"), "{refused}");
    fabric.set_port(true);
    fabric.refuse_memory(true);
    let refused = rounds(fabric, home.path(), "boot").unwrap_err();
    assert!(refused.to_string().contains("ulimit -l"), "{refused}");
    fabric.refuse_memory(false);
    // The folder is a file.
    let file = home.path().join("log");
    std::fs::write(&file, "").unwrap();
    let refused = rounds(fabric, &file, "boot").unwrap_err();
    assert!(matches!(refused, ProofError::Keep { .. }), "{refused}");
}
