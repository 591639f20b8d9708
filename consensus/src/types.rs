//! The words of the protocol as types: [`NodeId`], [`Ballot`], [`Slot`], [`Value`], [`Entry`].

use bytes::Bytes;
use core::fmt;

/// The number of a member of the cluster, 1..=65535. 0 never names a replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u16);

/// A totally ordered proposal number: rounds first, the proposer's id breaks ties, so that no two
/// proposers ever own the same ballot (Lamport, "The Part-Time Parliament", section 2.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ballot {
    /// Grows with every attempt to lead; 48 bits are used.
    pub round: u64,
    /// Who proposes under this ballot.
    pub node: NodeId,
}

impl Ballot {
    /// Below every ballot that a proposer can own.
    pub const ZERO: Self = Self { round: 0, node: NodeId(0) };
    /// The largest round that fits the packed form.
    pub const ROUND_MAX: u64 = (1 << 48) - 1;

    /// `round << 16 | node`: ordered as the ballot is.
    #[must_use]
    pub const fn pack(self) -> u64 {
        (self.round << 16) | self.node.0 as u64
    }

    /// The inverse of [`Ballot::pack`].
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self { round: word >> 16, node: NodeId((word & 0xffff) as u16) }
    }
}

/// A position in the log. The first is 1; [`Slot::ZERO`] stands before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Slot(pub u64);

impl Slot {
    /// Before the first slot: "nothing yet".
    pub const ZERO: Self = Self(0);

    /// The slot after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The slot before this one; the one before [`Slot::ZERO`] is itself.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// A random 64-bit number that tells one life of a thing (a disk, a link) from the next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(pub u64);

/// What kind of value a slot holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum ValueKind {
    /// Nothing: fills holes, and is a new leader's first own-ballot entry.
    Noop = 0,
    /// A batch of client commands; the format is in [`crate::batch`].
    Commands = 1,
    /// A [`crate::Configuration`], in force from a later slot.
    Configuration = 2,
    /// What a witness keeps of a batch of commands (rule W2): its length u32 and its CRC-32C u32, little
    /// endian. It says that something was accepted, and what it would look like.
    Withheld = 3,
}

impl ValueKind {
    /// Reads the byte that a record carries.
    #[must_use]
    pub const fn from_u8(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Noop),
            1 => Some(Self::Commands),
            2 => Some(Self::Configuration),
            3 => Some(Self::Withheld),
            _ => None,
        }
    }
}

/// What is proposed for a slot: opaque bytes and their CRC-32C.
///
/// The checksum is computed once, by whoever made the value, and travels with it through links
/// and logs to every replica: each of them verifies it and none computes a second one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Value {
    /// How `bytes` is to be read.
    pub kind: ValueKind,
    /// CRC-32C (RFC 3720, appendix B.4) of `bytes`.
    pub checksum: u32,
    /// The payload. Cloning shares it.
    pub bytes: Bytes,
}

impl Value {
    /// The value that does nothing. The CRC-32C of no bytes is 0.
    #[must_use]
    pub const fn noop() -> Self {
        Self { kind: ValueKind::Noop, checksum: 0, bytes: Bytes::new() }
    }

    /// What a witness keeps of it: of commands their length and checksum, of anything else all.
    #[must_use]
    pub fn withheld(&self) -> Self {
        if self.kind != ValueKind::Commands {
            return self.clone();
        }
        let mut told = [0; 8];
        told[..4].copy_from_slice(&(self.bytes.len() as u32).to_le_bytes());
        told[4..].copy_from_slice(&self.checksum.to_le_bytes());
        let checksum = crate::configuration::crc32c(&told);
        Self { kind: ValueKind::Withheld, checksum, bytes: Bytes::copy_from_slice(&told) }
    }

    /// Whether the payload is missing.
    #[must_use]
    pub const fn is_withheld(&self) -> bool {
        matches!(self.kind, ValueKind::Withheld)
    }
}

/// A value accepted for a slot under a ballot.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Entry {
    /// Where.
    pub slot: Slot,
    /// Under which ballot it was accepted here.
    pub ballot: Ballot,
    /// What.
    pub value: Value,
}

/// Monotonic time in nanoseconds from an origin that the caller chose. The core never reads a
/// clock: time is an argument.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// One millisecond.
    pub const MILLISECOND: Self = Self(1_000_000);
    /// Never.
    pub const MAX: Self = Self(u64::MAX);

    /// This many milliseconds.
    #[must_use]
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(milliseconds * 1_000_000)
    }

    /// The time that passed since `earlier`; nothing if it lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

impl core::ops::Add for Nanos {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.round, self.node.0)
    }
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}.{}", self.round, self.node.0)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{:016x}", self.0)
    }
}

impl fmt::Debug for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}ms", self.0 / 1_000_000, self.0 / 1_000 % 1_000)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ValueKind::Noop => write!(f, "noop"),
            ValueKind::Withheld => write!(f, "Withheld[{:02x?}]", &self.bytes[..]),
            kind => write!(f, "{kind:?}[{} B, {:08x}]", self.bytes.len(), self.checksum),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_withheld_of_a_value_is_its_payload_and_nothing_else() {
        let bytes = Bytes::from_static(b"123456789");
        let value = Value { kind: ValueKind::Commands, checksum: 0xe306_9283, bytes };
        let withheld = value.withheld();
        assert_eq!(withheld.bytes[..], [9, 0, 0, 0, 0x83, 0x92, 0x06, 0xe3]);
        assert!(withheld.is_withheld() && !value.is_withheld());
        assert_eq!(withheld.withheld(), withheld, "there is nothing more to withhold");
        assert_eq!(Value::noop().withheld(), Value::noop());
        let other = Value { checksum: 1, ..value };
        assert_ne!(other.withheld(), withheld);
    }

    #[test]
    fn packed_ballots_are_ordered_as_ballots_are() {
        let ballots = [(0, 0), (0, 1), (1, 0), (1, 65_535), (2, 1), (Ballot::ROUND_MAX, 65_535)];
        let ballots = ballots.map(|(round, node)| Ballot { round, node: NodeId(node) });
        for pair in ballots.windows(2) {
            assert!(pair[0] < pair[1] && pair[0].pack() < pair[1].pack());
        }
        for ballot in ballots {
            assert_eq!(Ballot::unpack(ballot.pack()), ballot);
        }
    }
}
