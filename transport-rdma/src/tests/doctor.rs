//! The diagnosis and the fence torture test, on the fake device.

use crate::AdapterOptions;
use crate::diagnosis::diagnose_with;
use crate::torture::{Fence, run};
use quorate_ffi::fake::Fabric;

fn options(fabric: &Fabric) -> AdapterOptions {
    AdapterOptions { device: Some(fabric.name().to_owned()), ..AdapterOptions::default() }
}

#[test]
fn the_torture_test_sees_a_fence_that_does_not_hold_and_one_that_does() {
    let fabric = Fabric::new(1);
    let found = run(&Fabric::library(), &options(fabric), Fence::Deregister, 65_536, 20).unwrap();
    assert_eq!((found.rounds, found.late), (20, 0), "{found:?}");
    assert!(found.refused > 0, "the writer is told: {found:?}");
    fabric.break_fence(4);
    let found = run(&Fabric::library(), &options(fabric), Fence::Deregister, 65_536, 20).unwrap();
    assert!(found.late > 0, "{found:?}");
    let fabric = Fabric::new(2);
    fabric.break_access_flags(4);
    let found = run(&Fabric::library(), &options(fabric), Fence::AccessFlags, 65_536, 20).unwrap();
    assert!(found.late > 0, "{found:?}");
}

#[test]
fn a_diagnosis_names_what_is_there_and_what_stands_in_the_way() {
    let fabric = Fabric::new(1);
    let (library, only) = (Fabric::library(), Some(fabric.name()));
    let found = diagnose_with(&library, only, true);
    assert!(found.lines.iter().all(|line| line.good), "{found:#?}");
    assert_eq!(
        (&found.usable[..], &found.fenced[..]),
        (&[fabric.name().into()][..], &[fabric.name().into()][..])
    );
    let text: String = found.lines.iter().map(|line| line.text.clone() + "\n").collect();
    for expected in
        ["127.0.0.1 (RoCE v2)", "packets of 4096", "can be pinned", "512 bytes go inline"]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    fabric.set_port(false);
    let found = diagnose_with(&library, only, true);
    assert!(found.usable.is_empty() && found.lines.iter().any(|line| line.text.contains("down")));
    fabric.set_port(true);
    fabric.refuse_memory(true);
    let found = diagnose_with(&library, only, false);
    assert!(
        found.lines.iter().any(|line| !line.good && line.text.contains("ulimit -l")),
        "{found:#?}"
    );
    fabric.refuse_memory(false);
    fabric.break_fence(4);
    let found = diagnose_with(&library, only, true);
    assert!(found.fenced.is_empty() && !found.usable.is_empty(), "{found:#?}");
}
