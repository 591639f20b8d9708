//! What runs in the place of a state machine at a witness (rule W2).

use crate::machine::{CheckpointView, Context, StateMachine};
use bytes::BytesMut;
use quorate_consensus::{Configurations, Slot};
use std::io::{self, Read};

/// What the checkpoint of a witness ends with: it holds who decides, and no state.
const IMAGE: &[u8] = b"quorate witness\n";

/// A witness takes a checkpoint after so many slots: all that it holds of them is where they stand, and its
/// log begins behind. Those behind the newest one it can tell candidates about after a restart (W3).
pub(crate) const CHECKPOINT_SLOTS: u64 = 16_384;

/// Applies nothing.
#[derive(Debug, Default)]
pub(crate) struct Witness;

struct View;

impl CheckpointView for View {
    fn next_piece(&mut self, out: &mut BytesMut) -> bool {
        out.extend_from_slice(IMAGE);
        false
    }
}

impl StateMachine for Witness {
    fn apply(&mut self, _: &Context, _: &[u8], _: &mut BytesMut) {
        unreachable!("a witness holds no command")
    }

    fn query(&self, _: &Context, _: &[u8], _: &mut BytesMut) {
        unreachable!("a witness refuses every question")
    }

    fn checkpoint(&self) -> Option<Box<dyn CheckpointView>> {
        Some(Box::new(View))
    }

    fn restore(&mut self, image: &mut dyn Read) -> io::Result<()> {
        let mut held = Vec::new();
        image.take(IMAGE.len() as u64 + 1).read_to_end(&mut held)?;
        let why = "it holds a state: this directory is not a witness's. Start the replica without \
                   `witness`, or with an empty directory";
        (held == IMAGE).then_some(()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, why))
    }
}

/// All up to the slot is chosen, and who decides then: what a witness that was left behind is told.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) slot: Slot,
    pub(crate) configurations: Configurations,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    // Rule W2.
    #[test]
    fn a_witness_restores_its_own_image_and_no_state() {
        let mut image = BytesMut::new();
        assert!(!Witness.checkpoint().unwrap().next_piece(&mut image));
        Witness.restore(&mut &image[..]).unwrap();
        for other in
            [&b""[..], b"quorate witness", b"quorate witness\n ", b"a state of another kind"]
        {
            let refused = Witness.restore(&mut &other[..]).unwrap_err();
            assert!(refused.to_string().contains("not a witness's"), "{refused}");
        }
    }
}
