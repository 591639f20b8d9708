//! Passive followers are refused where a vote in memory alone is not what was promised, or nothing fences it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quorate::{Builder, BytesMut, Context, MediumKind, Replica, StateMachine};

struct Nothing;

impl StateMachine for Nothing {
    fn apply(&mut self, _: &Context, _: &[u8], _: &mut BytesMut) {}
    fn query(&self, _: &Context, _: &[u8], _: &mut BytesMut) {}
}

fn passive(medium: MediumKind) -> Builder {
    let members: Vec<String> = (1..=3).map(|port| format!("127.0.0.1:{port}")).collect();
    let builder = Replica::builder(1).members(&members).medium(medium).listen("127.0.0.1:0");
    builder.adjust(|options| options.passive = true)
}

fn refused(builder: Builder) -> String {
    builder.start(Nothing).unwrap_err().to_string()
}

#[cfg(not(feature = "passive"))]
#[test]
fn a_build_without_them_names_the_feature() {
    let said = refused(passive(MediumKind::Memory));
    assert!(said.contains("the feature `passive`"), "{said}");
}

#[cfg(feature = "passive")]
#[test]
fn media_that_promise_more_and_transports_without_a_fence_are_refused() {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for medium in [MediumKind::File, MediumKind::Emulated, MediumKind::Dax] {
        let said = refused(passive(medium).directory(home.path()).rdma(Default::default()));
        assert!(said.contains(&format!("`{medium}`")) && said.contains("memory"), "{said}");
    }
    let said = refused(passive(MediumKind::Memory));
    assert!(said.contains("written to by RDMA"), "{said}");
    // No device of this name anywhere: there is nothing to prove.
    let device = Some("none such".into());
    let adapter = quorate::rdma::AdapterOptions { device, ..Default::default() };
    let said = refused(passive(MediumKind::Memory).directory(home.path()).rdma(adapter));
    assert!(said.contains("no RDMA"), "{said}");
    let said = passive(MediumKind::Memory).host().unwrap_err().to_string();
    assert!(said.contains("share their lanes"), "{said}");
}
