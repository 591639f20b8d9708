//! What a replica told the others: the claims that its disk must back.

use quorate_consensus::{Ballot, Message, NodeId, RowFlags, Slot};
use quorate_transport::codec;
use std::sync::Arc;

use crate::medium::SimMedium;

/// Reads what one process lets out.
#[derive(Debug)]
pub(crate) struct Spy {
    medium: Arc<SimMedium>,
    /// The highest ballot for which a promise left.
    pub(crate) promised: Ballot,
    /// The newest vote that a row showed.
    pub(crate) vote: (Ballot, Slot),
    /// The promise in the last row that left, until somebody looks.
    pub(crate) row_promised: Option<Ballot>,
    /// Whom the newest row told that its completed writes are votes, and under which ballot.
    pub(crate) passive: Option<(NodeId, Ballot)>,
    /// Rows that left.
    pub(crate) rows: u64,
    /// Answers to a catch-up that hold nothing.
    pub(crate) empty_answers: u64,
    /// Messages that left.
    pub(crate) messages: u64,
}

/// Offsets of words in the bytes of a row: see `quorate_transport::row`.
const PROMISED: usize = 16;
const ACCEPTED_BALLOT: usize = 24;
const ACCEPTED_SLOT: usize = 32;
const FLAGS: usize = 56;

impl Spy {
    /// For a process whose disk is `medium`.
    #[must_use]
    pub(crate) fn new(medium: Arc<SimMedium>) -> Self {
        Self {
            medium,
            promised: Ballot::ZERO,
            vote: (Ballot::ZERO, Slot::ZERO),
            row_promised: None,
            passive: None,
            rows: 0,
            empty_answers: 0,
            messages: 0,
        }
    }

    /// Whether the machine is gone in the middle of a turn: nothing leaves any more.
    #[must_use]
    pub(crate) fn is_cut(&self) -> bool {
        self.medium.control().is_dead()
    }

    /// The bytes of a row leave for `to`.
    pub(crate) fn on_row(&mut self, to: NodeId, bytes: &[u8]) {
        let word = |at: usize| {
            let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
            word.map_or(0, u64::from_le_bytes)
        };
        self.rows += 1;
        let promised = Ballot::unpack(word(PROMISED));
        self.row_promised = Some(promised);
        if RowFlags(word(FLAGS)).has(RowFlags::PASSIVE) {
            self.passive = Some((to, promised));
        } else if self.passive.is_some_and(|(told, _)| told == to) {
            self.passive = None;
        }
        let vote = (Ballot::unpack(word(ACCEPTED_BALLOT)), Slot(word(ACCEPTED_SLOT)));
        self.vote = self.vote.max(vote);
    }

    /// A message leaves.
    pub(crate) fn on_message(&mut self, bytes: &bytes::Bytes) {
        self.messages += 1;
        match codec::decode(bytes.clone()) {
            Ok(Message::Promise { ballot, .. } | Message::Prepare { ballot, .. }) => {
                self.promised = self.promised.max(ballot);
            }
            Ok(Message::CatchUpReply { entries, .. }) if entries.is_empty() => {
                self.empty_answers += 1;
            }
            _ => {}
        }
    }
}
