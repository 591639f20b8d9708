//! Configurations as bytes: as a value of the log, and as part of a checkpoint.

use super::{
    Address, Configuration, Configurations, Member, PROTOCOL_FIRST, PROTOCOL_NEWEST, QuorumSizes,
};
use crate::{Incarnation, NodeId, Slot, Value, ValueKind};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::{Buf, BufMut, Bytes};

/// The format of a configuration; another one is not understood.
const VERSION: u8 = 1;
const SETTLED: u8 = 1;
const FIXED_BYTES: usize = 24;
const MEMBER_BYTES: usize = 10;

impl Configuration {
    /// Little endian: version u8 = 1, flags u8 (1: settled), quorum sizes of phase 1 and 2 u16 each
    /// (0: majorities), id u64, counts of voters, learners, witnesses and addresses u16 each, the
    /// active version of the protocol less 1, u16 (programs that speak only the first one refuse
    /// what has another); where there are witnesses, the number of copies u16; then node u16 + incarnation u64 for each member; then for each address node u16, two
    /// lengths u16, and the text of both.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(FIXED_BYTES + MEMBER_BYTES * self.members().count());
        out.put_u8(VERSION);
        out.put_u8(if self.settled { SETTLED } else { 0 });
        let sizes = self.quorums.unwrap_or(QuorumSizes { phase_one: 0, phase_two: 0 });
        out.put_u16_le(sizes.phase_one);
        out.put_u16_le(sizes.phase_two);
        out.put_u64_le(self.id);
        for list in [&self.voters, &self.learners, &self.witnesses] {
            out.put_u16_le(list.len() as u16);
        }
        out.put_u16_le(self.addresses.len() as u16);
        out.put_u16_le(self.protocol.saturating_sub(PROTOCOL_FIRST));
        if !self.witnesses.is_empty() {
            out.put_u16_le(self.copies);
        }
        for list in [&self.voters, &self.learners, &self.witnesses] {
            for member in list {
                out.put_u16_le(member.node.0);
                out.put_u64_le(member.incarnation.0);
            }
        }
        for Address { node, peer, client } in &self.addresses {
            out.put_u16_le(node.0);
            out.put_u16_le(peer.len() as u16);
            out.put_u16_le(client.len() as u16);
            out.put_slice(peer.as_bytes());
            out.put_slice(client.as_bytes());
        }
        out.into()
    }

    /// The inverse of [`Configuration::encode`]; none for anything else, or what makes no sense
    /// ([`Configuration::check`]).
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let configuration = take(&mut bytes)?;
        bytes.is_empty().then_some(configuration)
    }

    /// As a value of the log.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let bytes = self.encode();
        Value { kind: ValueKind::Configuration, checksum: crc32c(&bytes), bytes }
    }
}

impl Configurations {
    /// Little endian: count u16, then for each the slot it stands in u64 and what
    /// [`Configuration::encode`] gives.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        out.put_u16_le(self.in_force_from.len() as u16);
        for (slot, configuration) in self.iter() {
            out.put_u64_le(slot.0);
            out.put_slice(&configuration.encode());
        }
        out.into()
    }

    /// The inverse of [`Configurations::encode`]; none for anything else.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let count = take_u16(&mut bytes)?;
        let mut in_force_from: Vec<(Slot, Configuration)> = Vec::new();
        for _ in 0..count {
            let from = Slot(bytes.try_get_u64_le().ok()?.checked_add(1)?);
            if in_force_from.last().is_some_and(|(before, _)| *before >= from) {
                return None;
            }
            in_force_from.push((from, take(&mut bytes)?));
        }
        (bytes.is_empty() && count > 0).then_some(Self { in_force_from })
    }
}

fn take_u16(bytes: &mut &[u8]) -> Option<usize> {
    bytes.try_get_u16_le().ok().map(usize::from)
}

fn take(bytes: &mut &[u8]) -> Option<Configuration> {
    if bytes.try_get_u8().ok()? != VERSION {
        return None;
    }
    let flags = bytes.try_get_u8().ok().filter(|flags| flags & !SETTLED == 0)?;
    let phase_one = bytes.try_get_u16_le().ok()?;
    let phase_two = bytes.try_get_u16_le().ok()?;
    let quorums = (phase_one, phase_two) != (0, 0);
    let id = bytes.try_get_u64_le().ok()?;
    let counts = [take_u16(bytes)?, take_u16(bytes)?, take_u16(bytes)?];
    let addresses = take_u16(bytes)?;
    let protocol = bytes.try_get_u16_le().ok()?.checked_add(PROTOCOL_FIRST)?;
    // What a later version has here need not be what this one knows.
    if protocol > PROTOCOL_NEWEST
        || counts.iter().sum::<usize>() > Configuration::MEMBERS_MAX
        || addresses > Configuration::MEMBERS_MAX
    {
        return None;
    }
    let copies = if counts[2] > 0 { bytes.try_get_u16_le().ok()? } else { 0 };
    let mut lists = [Vec::new(), Vec::new(), Vec::new()];
    for (list, count) in lists.iter_mut().zip(counts) {
        for _ in 0..count {
            let node = NodeId(bytes.try_get_u16_le().ok()?);
            let incarnation = Incarnation(bytes.try_get_u64_le().ok()?);
            list.push(Member { node, incarnation });
        }
    }
    let [voters, learners, witnesses] = lists;
    let mut configuration = Configuration {
        id,
        settled: flags & SETTLED != 0,
        voters,
        learners,
        witnesses,
        quorums: quorums.then_some(QuorumSizes { phase_one, phase_two }),
        copies,
        protocol,
        addresses: Vec::new(),
    };
    for _ in 0..addresses {
        let node = NodeId(bytes.try_get_u16_le().ok()?);
        let lengths = [take_u16(bytes)?, take_u16(bytes)?];
        let [peer, client] = lengths.map(|length| take_text(bytes, length));
        configuration.addresses.push(Address { node, peer: peer?, client: client? });
    }
    configuration.check().is_ok().then_some(configuration)
}

fn take_text(bytes: &mut &[u8], length: usize) -> Option<String> {
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    core::str::from_utf8(text).ok().map(String::from)
}

/// CRC-32C (RFC 3720, appendix B.4), bit by bit: a configuration is short, and rare.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::tests::of;

    fn rich() -> Configuration {
        let mut configuration = of(5);
        configuration.learners = configuration.voters.split_off(4);
        configuration.witnesses = configuration.voters.split_off(3);
        configuration.id = 7;
        configuration.settled = false;
        configuration.protocol = 3;
        configuration.copies = 2;
        configuration.quorums = Some(QuorumSizes { phase_one: 3, phase_two: 2 });
        let address = |node, peer: &str, client: &str| Address {
            node: NodeId(node),
            peer: peer.into(),
            client: client.into(),
        };
        configuration.addresses = alloc::vec![address(2, "b:1", ""), address(5, "e:1", "e:2")];
        configuration
    }

    #[test]
    fn configurations_survive_encoding_and_reject_noise() {
        let bytes = rich().encode();
        assert_eq!(Configuration::decode(&bytes), Some(rich()));
        for cut in 0..bytes.len() {
            assert_eq!(Configuration::decode(&bytes[..cut]), None);
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(Configuration::decode(&longer), None);
        // The first version is written as it was before there was a second one.
        assert_eq!(of(3).encode()[22..24], [0, 0]);
        let later = Configuration { protocol: PROTOCOL_NEWEST + 1, ..rich() };
        assert_eq!(Configuration::decode(&later.encode()), None);
        let mut unsound = rich();
        unsound.quorums = Some(QuorumSizes { phase_one: 2, phase_two: 2 });
        assert_eq!(Configuration::decode(&unsound.encode()), None);
    }

    #[test]
    fn what_a_checkpoint_keeps_survives_encoding() {
        let mut known = Configurations::new(of(3));
        known.note(Slot(4), Some(rich()));
        let bytes = known.encode();
        assert_eq!(Configurations::decode(&bytes), Some(known));
        for cut in 0..bytes.len() {
            assert_eq!(Configurations::decode(&bytes[..cut]), None);
        }
    }

    #[test]
    fn the_checksum_is_the_one_that_everyone_verifies() {
        // RFC 3720, appendix B.4: 32 bytes of zeros, and of ones.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }
}
