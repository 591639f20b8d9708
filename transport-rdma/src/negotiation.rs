//! How a connection by verbs comes up, step by step, while the two ends talk over TCP.
//!
//! Each end makes a queue pair and offers it, each connects it to the other's offer and says that it
//! is ready; then each writes a probe into the other's mailbox, longer than a packet. Only when both
//! probes arrived is the connection worth having: a queue pair comes up without a single packet.

use crate::adapter::Adapter;
use crate::link::{BELLS, Link, PIECES, Parts, SEND_DEPTH, mailbox};
use crate::regions::Grant;
use crate::talk::{Attempt, Offer, Word};
use quorate_ffi::memory::SharedMemory;
use quorate_ffi::verbs::{
    Access, Completion, CompletionQueue, InitQueuePair, MemoryRegion, NewQueuePair, Poster,
    QueueDepths, QueuePair, Remote, Status, VerbsError,
};
use std::time::{Duration, Instant};

/// A connection that is not proved to work by then is given up.
pub(crate) const BUILD_TIMEOUT: Duration = Duration::from_secs(2);
/// Inline bytes that are wished for; the first that the device grants.
const INLINE_WISHES: [u32; 5] = [512, 256, 128, 64, 32];
const PROBE_ID: u64 = u64::MAX;

/// A connection that is being built.
#[derive(Debug)]
pub(crate) struct Building {
    nonce: u64,
    psn: u32,
    /// The lane is up over TCP meanwhile.
    pub(crate) beside: bool,
    pub(crate) deadline: Instant,
    stage: Option<Stage>,
    queue: CompletionQueue,
    mailbox: MemoryRegion,
    message_bytes: usize,
    offer: Option<Offer>,
    peer_ready: bool,
    probed: bool,
    arrived: bool,
    peer_arrived: bool,
}

#[derive(Debug)]
enum Stage {
    Offered(InitQueuePair),
    Ready(QueuePair),
}

impl Building {
    /// Makes this end, and the offer for the other one.
    pub(crate) fn start(
        adapter: &Adapter,
        grants: impl Iterator<Item = Grant>,
        (nonce, psn): (u64, u32),
        beside: bool,
        now: Instant,
    ) -> Result<(Self, Word), VerbsError> {
        let path = adapter.path()?;
        let memory = SharedMemory::new(mailbox::BYTES)
            .map_err(|source| VerbsError::Register { length: mailbox::BYTES, source })?;
        let mailbox = adapter.domain().register(&memory, Access::RemoteReadWrite)?;
        let depth = SEND_DEPTH + BELLS + 8;
        let queue = adapter.device().completion_queue(depth, Some(adapter.channel()))?;
        let mut pair = new_pair(adapter, &queue)?.init(path)?;
        for id in 0..BELLS {
            pair.post_receive(u64::from(id))
                .map_err(|source| VerbsError::Create { what: "receive request", source })?;
        }
        let offer = Offer {
            nonce,
            beside,
            destination: pair.destination(psn),
            mailbox: Remote { address: memory.address(), key: mailbox.remote_key() },
            grants: grants.collect(),
        };
        let building = Self {
            nonce,
            psn,
            beside,
            deadline: now + BUILD_TIMEOUT,
            stage: Some(Stage::Offered(pair)),
            queue,
            mailbox,
            message_bytes: path.port.message_bytes as usize,
            offer: None,
            peer_ready: false,
            probed: false,
            arrived: false,
            peer_arrived: false,
        };
        Ok((building, Word::Offer(offer)))
    }

    fn attempt(&self) -> Option<Attempt> {
        self.offer.as_ref().map(|offer| Attempt { mine: self.nonce, yours: offer.nonce })
    }

    pub(crate) fn is(&self, attempt: Attempt) -> bool {
        self.attempt() == Some(attempt)
    }

    /// What to say when it is given up.
    pub(crate) fn failed(&self, reason: &str) -> Option<Word> {
        self.attempt().map(|attempt| Word::Failed(attempt, reason.to_owned()))
    }

    /// The other end's offer: connects to it.
    pub(crate) fn on_offer(&mut self, offer: Offer) -> Result<Word, VerbsError> {
        let Some(Stage::Offered(pair)) = self.stage.take() else {
            let source = std::io::ErrorKind::AlreadyExists.into();
            return Err(VerbsError::Modify { to: "connected twice", source });
        };
        let receiving = pair.ready_to_receive(&offer.destination)?;
        self.stage = Some(Stage::Ready(receiving.ready_to_send(self.psn)?));
        let attempt = Attempt { mine: self.nonce, yours: offer.nonce };
        self.offer = Some(offer);
        Ok(Word::Ready(attempt))
    }

    pub(crate) fn on_ready(&mut self) {
        self.peer_ready = true;
    }

    pub(crate) fn on_works(&mut self) {
        self.peer_arrived = true;
    }

    pub(crate) fn granted(&mut self, grant: Grant) {
        if let Some(offer) = &mut self.offer {
            offer.grants.retain(|known| known.region != grant.region);
            offer.grants.push(grant);
        }
    }

    /// Probes, and looks whether the probe arrived; what is to be said, if anything.
    pub(crate) fn step(&mut self) -> Result<Option<Word>, String> {
        let (Some(Stage::Ready(pair)), Some(offer)) = (&mut self.stage, &self.offer) else {
            return Ok(None);
        };
        if self.peer_ready && !self.probed {
            let Remote { address, key } = offer.mailbox;
            let to = Remote { address: address.wrapping_add(mailbox::PROBE as u64), key };
            let source = self.mailbox.source(mailbox::PROBE, mailbox::PROBE_BYTES);
            let mut poster = Poster::new();
            let mut chain = poster.begin();
            chain.write(PROBE_ID, to, &[source], None);
            chain.signal_last();
            pair.post(chain).map_err(|failure| failure.to_string())?;
            self.probed = true;
        }
        let mut completions: Vec<Completion> = Vec::new();
        self.queue.poll(&mut completions).map_err(|error| error.to_string())?;
        for completion in completions {
            match completion.status {
                Status::SUCCESS if completion.id == PROBE_ID => self.arrived = true,
                Status::SUCCESS => {}
                status => return Err(format!("the probe failed: {status}")),
            }
        }
        // It is said once: the flag in the attempt is enough for that.
        let word = if self.arrived && self.probed {
            self.probed = false;
            self.peer_ready = false;
            self.attempt().map(Word::Works)
        } else {
            None
        };
        Ok(word)
    }

    /// Whether both probes arrived.
    pub(crate) const fn is_proved(&self) -> bool {
        self.arrived && self.peer_arrived
    }

    /// A completion makes the channel readable.
    pub(crate) fn arm(&mut self) {
        // Should it fail, the deadline ends it.
        let _ = self.queue.arm();
    }

    /// The connection.
    pub(crate) fn finish(self, now: Instant) -> Option<Link> {
        let (Some(Stage::Ready(pair)), Some(offer)) = (self.stage, self.offer) else {
            return None;
        };
        let Offer { mailbox: theirs, grants, .. } = offer;
        let (queue, mailbox, message_bytes) = (self.queue, self.mailbox, self.message_bytes);
        Some(Link::new(Parts { pair, queue, mailbox, theirs, grants, message_bytes, now }))
    }
}

/// With as much inline data as the device grants.
fn new_pair(adapter: &Adapter, queue: &CompletionQueue) -> Result<NewQueuePair, VerbsError> {
    let mut refused = None;
    for inline_bytes in INLINE_WISHES {
        let depths =
            QueueDepths { sends: SEND_DEPTH, receives: BELLS, pieces: PIECES as u32, inline_bytes };
        match adapter.domain().queue_pair(queue, depths) {
            Ok(pair) => return Ok(pair),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let none = || VerbsError::Create { what: "queue pair", source: std::io::Error::other("?") };
    Err(refused.unwrap_or_else(none))
}
