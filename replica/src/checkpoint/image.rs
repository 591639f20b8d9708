//! The image of a replica's state: what is replicated beside the state machine, then the machine.
//!
//! `docs/log-format.md` has the bytes.

use crate::machine::CheckpointView;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_consensus::session::SessionTable;
use quorate_consensus::{Configurations, Slot};
use quorate_pmem_log::CheckpointId;
use std::io::{self, Read};

/// About how much of an image is made and written in one piece.
pub const IMAGE_PIECE_BYTES: usize = 1 << 20;

const MAGIC: &[u8; 8] = b"QIMAGE01";
/// A section is not longer: a session with the most outcomes that it may keep.
const SECTION_BYTES_MAX: usize = 1 << 30;
const HEAD: u8 = 1;
const SESSION: u8 = 2;
/// The machine's own bytes follow, to the end.
const MACHINE: u8 = 3;

/// What the image begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    pub(crate) id: CheckpointId,
    /// Replicated time.
    pub(crate) time_ms: u64,
    /// Of the session table: see [`SessionTable::times`].
    pub(crate) session_times: (u64, u64),
    /// Who decides, as of the slot.
    pub(crate) configurations: Configurations,
}

impl Head {
    fn encode(&self) -> BytesMut {
        let mut out = BytesMut::new();
        for word in [
            self.id.slot.0,
            self.id.digest,
            self.id.cluster,
            self.time_ms,
            self.session_times.0,
            self.session_times.1,
        ] {
            out.put_u64_le(word);
        }
        out.put_slice(&self.configurations.encode());
        out
    }

    fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < 48 {
            return None;
        }
        let id = CheckpointId {
            slot: Slot(bytes.get_u64_le()),
            digest: bytes.get_u64_le(),
            cluster: bytes.get_u64_le(),
        };
        let time_ms = bytes.get_u64_le();
        let session_times = (bytes.get_u64_le(), bytes.get_u64_le());
        let configurations = Configurations::decode(&bytes)?;
        Some(Self { id, time_ms, session_times, configurations })
    }
}

/// A view of the whole state at one slot, given out piece by piece.
pub(crate) struct Source {
    head: Option<Head>,
    sessions: SessionTable,
    /// The last session that was given out.
    after: Option<u64>,
    view: Box<dyn CheckpointView>,
}

impl Source {
    pub(crate) fn new(head: Head, sessions: SessionTable, view: Box<dyn CheckpointView>) -> Self {
        Self { head: Some(head), sessions, after: Some(0), view }
    }

    /// Appends the next piece; returns whether there is more.
    pub(crate) fn next(&mut self, out: &mut BytesMut) -> bool {
        if let Some(head) = self.head.take() {
            out.put_slice(MAGIC);
            put_section(out, HEAD, &head.encode());
            return true;
        }
        while let Some(after) = self.after {
            let mut section = BytesMut::new();
            self.after = self.sessions.put_next(after, &mut section);
            if self.after.is_some() {
                put_section(out, SESSION, &section);
            } else {
                put_section(out, MACHINE, &[]);
            }
            if out.len() >= IMAGE_PIECE_BYTES {
                return true;
            }
        }
        self.view.next_piece(out)
    }
}

fn put_section(out: &mut BytesMut, tag: u8, bytes: &[u8]) {
    out.put_u8(tag);
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

/// Reads what the image begins with.
pub(crate) fn read_head(image: &mut dyn Read) -> io::Result<Head> {
    let mut magic = [0; 8];
    image.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(malformed("it was written by another version"));
    }
    let (tag, section) = read_section(image)?;
    let head = (tag == HEAD).then(|| Head::decode(section)).flatten();
    head.ok_or_else(|| malformed("its head cannot be read"))
}

/// Reads what stands before the machine's own bytes.
pub(crate) fn read_state(image: &mut dyn Read) -> io::Result<(Head, SessionTable)> {
    let head = read_head(image)?;
    let mut sessions = SessionTable::restored(head.session_times);
    loop {
        match read_section(image)? {
            (SESSION, section) => {
                let taken = sessions.take_next(section);
                taken.ok_or_else(|| malformed("a session cannot be read"))?;
            }
            (MACHINE, section) if section.is_empty() => return Ok((head, sessions)),
            _ => return Err(malformed("it holds something that this version does not know")),
        }
    }
}

fn read_section(image: &mut dyn Read) -> io::Result<(u8, Bytes)> {
    let mut header = [0; 5];
    image.read_exact(&mut header)?;
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > SECTION_BYTES_MAX {
        return Err(malformed("a part of it is longer than any can be"));
    }
    // Grows with what comes: a length alone reserves nothing.
    let mut section = Vec::new();
    image.take(length as u64).read_to_end(&mut section)?;
    if section.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((header[0], section.into()))
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use quorate_consensus::batch::SessionCommand;
    use quorate_consensus::{Configuration, Incarnation, Member, NodeId};

    struct Text(Vec<&'static str>);

    impl CheckpointView for Text {
        fn next_piece(&mut self, out: &mut BytesMut) -> bool {
            out.put_slice(self.0.remove(0).as_bytes());
            !self.0.is_empty()
        }
    }

    fn head() -> Head {
        Head {
            id: CheckpointId { slot: Slot(12), digest: 34, cluster: 56 },
            time_ms: 78,
            session_times: (78, 0),
            configurations: {
                let voter = |node| Member { node: NodeId(node), incarnation: Incarnation(9) };
                let voters = Configuration::of_voters(1, (1..=3).map(voter).collect());
                Configurations::new(voters)
            },
        }
    }

    fn image() -> Vec<u8> {
        let mut sessions = SessionTable::restored((78, 0));
        for session in 1..=300 {
            let open = SessionCommand::Open { session, owner: 0, idle_ms: 0 };
            sessions.control(Slot(1), open);
        }
        let view = Box::new(Text(vec!["the ", "machine"]));
        let mut source = Source::new(head(), sessions, view);
        let mut out = BytesMut::new();
        while source.next(&mut out) {}
        out.to_vec()
    }

    #[test]
    fn what_was_written_piece_by_piece_is_read_back() {
        let image = image();
        let mut input = &image[..];
        let (read, sessions) = read_state(&mut input).unwrap();
        assert_eq!((read, sessions.len(), input), (head(), 300, &b"the machine"[..]));
    }

    #[test]
    fn an_image_that_ends_early_is_an_error_and_never_a_panic() {
        let image = image();
        for cut in 0..image.len() - "the machine".len() {
            read_state(&mut &image[..cut]).unwrap_err();
        }
        for at in 0..200 {
            let mut changed = image.clone();
            changed[at] ^= 0x80;
            let _ = read_state(&mut &changed[..]);
        }
    }
}
