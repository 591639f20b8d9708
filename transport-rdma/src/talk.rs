//! What the two ends say to each other beside the data lane's TCP connection, to build a connection
//! by verbs and to tell of grants.

use crate::regions::Grant;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_ffi::verbs::{Destination, Remote};
use quorate_transport::RegionId;

const VERSION: u8 = 1;
const GRANT_BYTES: usize = 24;
/// Grants of an offer: a region for each of many peers, twice.
const GRANTS_MAX: usize = 1024;
const REASON_BYTES_MAX: usize = 400;

/// One word.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Word {
    /// Let us build a connection by verbs: this is my end.
    Offer(Offer),
    /// This life of the lane goes over TCP, as far as I am concerned: why.
    Tcp(String),
    /// My queue pair for your attempt answers.
    Ready(Attempt),
    /// My probe arrived at your end.
    Works(Attempt),
    /// The attempt failed here: why.
    Failed(Attempt, String),
    /// You may write there.
    Grant(Grant),
    /// May I write there?
    Ask(RegionId),
    /// You may not write there.
    Refused(RegionId),
}

/// The nonces of both ends' offers: the sender's first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Attempt {
    pub(crate) mine: u64,
    pub(crate) yours: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Offer {
    pub(crate) nonce: u64,
    /// The lane is up over TCP and stays so until this one is proved to work.
    pub(crate) beside: bool,
    pub(crate) destination: Destination,
    pub(crate) mailbox: Remote,
    pub(crate) grants: Vec<Grant>,
}

/// Why bytes are no word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum WordError {
    #[error("a word of version {0}; this program speaks {VERSION}")]
    Version(u8),
    #[error("a word was damaged on its way")]
    Checksum,
    #[error("a word that makes no sense")]
    Malformed,
}

impl Word {
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(128);
        bytes.put_u32_le(0);
        bytes.put_u8(VERSION);
        match self {
            Self::Offer(offer) => {
                bytes.put_u8(1);
                put_offer(&mut bytes, offer);
            }
            Self::Tcp(reason) => {
                bytes.put_u8(2);
                put_text(&mut bytes, reason);
            }
            Self::Ready(attempt) => put_attempt(&mut bytes, 3, *attempt),
            Self::Works(attempt) => put_attempt(&mut bytes, 4, *attempt),
            Self::Failed(attempt, reason) => {
                put_attempt(&mut bytes, 5, *attempt);
                put_text(&mut bytes, reason);
            }
            Self::Grant(grant) => {
                bytes.put_u8(6);
                put_grant(&mut bytes, grant);
            }
            Self::Ask(region) => {
                bytes.put_u8(7);
                bytes.put_u32_le(region.0);
            }
            Self::Refused(region) => {
                bytes.put_u8(8);
                bytes.put_u32_le(region.0);
            }
        }
        let checksum = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        bytes.freeze()
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, WordError> {
        let checksum = take(&mut bytes, 4)?.get_u32_le();
        if crc32c::crc32c(bytes) != checksum {
            return Err(WordError::Checksum);
        }
        let version = take(&mut bytes, 1)?.get_u8();
        if version != VERSION {
            return Err(WordError::Version(version));
        }
        let kind = take(&mut bytes, 1)?.get_u8();
        let word = match kind {
            1 => Self::Offer(take_offer(&mut bytes)?),
            2 => Self::Tcp(take_text(&mut bytes)?),
            3 => Self::Ready(take_attempt(&mut bytes)?),
            4 => Self::Works(take_attempt(&mut bytes)?),
            5 => Self::Failed(take_attempt(&mut bytes)?, take_text(&mut bytes)?),
            6 => Self::Grant(take_grant(&mut bytes)?),
            7 => Self::Ask(RegionId(take(&mut bytes, 4)?.get_u32_le())),
            8 => Self::Refused(RegionId(take(&mut bytes, 4)?.get_u32_le())),
            _ => return Err(WordError::Malformed),
        };
        if bytes.is_empty() { Ok(word) } else { Err(WordError::Malformed) }
    }
}

fn put_attempt(bytes: &mut BytesMut, kind: u8, attempt: Attempt) {
    bytes.put_u8(kind);
    bytes.put_u64_le(attempt.mine);
    bytes.put_u64_le(attempt.yours);
}

fn put_text(bytes: &mut BytesMut, text: &str) {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    bytes.put_u16_le(end as u16);
    bytes.put_slice(&text.as_bytes()[..end]);
}

fn put_grant(bytes: &mut BytesMut, grant: &Grant) {
    bytes.put_u32_le(grant.region.0);
    bytes.put_u32_le(grant.key);
    bytes.put_u64_le(grant.address);
    bytes.put_u64_le(grant.length);
}

fn put_offer(bytes: &mut BytesMut, offer: &Offer) {
    let Offer { nonce, beside, destination, mailbox, grants } = offer;
    bytes.put_u64_le(*nonce);
    bytes.put_u8(u8::from(*beside));
    bytes.put_u32_le(destination.pair);
    bytes.put_u32_le(destination.psn);
    bytes.put_u16_le(destination.lid);
    bytes.put_slice(&destination.gid);
    bytes.put_u32_le(destination.mtu);
    bytes.put_u64_le(mailbox.address);
    bytes.put_u32_le(mailbox.key);
    bytes.put_u16_le(grants.len().min(GRANTS_MAX) as u16);
    for grant in grants.iter().take(GRANTS_MAX) {
        put_grant(bytes, grant);
    }
}

/// The next so many bytes, which are there or it is no word.
fn take<'b>(bytes: &mut &'b [u8], length: usize) -> Result<&'b [u8], WordError> {
    let (head, rest) = bytes.split_at_checked(length).ok_or(WordError::Malformed)?;
    *bytes = rest;
    Ok(head)
}

fn take_attempt(bytes: &mut &[u8]) -> Result<Attempt, WordError> {
    let mut fields = take(bytes, 16)?;
    // The sender's words turned around: its nonce is the other one here.
    let (yours, mine) = (fields.get_u64_le(), fields.get_u64_le());
    Ok(Attempt { mine, yours })
}

fn take_text(bytes: &mut &[u8]) -> Result<String, WordError> {
    let length = take(bytes, 2)?.get_u16_le();
    let text = String::from_utf8_lossy(take(bytes, usize::from(length))?).into_owned();
    Ok(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
}

fn take_grant(bytes: &mut &[u8]) -> Result<Grant, WordError> {
    let mut fields = take(bytes, GRANT_BYTES)?;
    let (region, key) = (RegionId(fields.get_u32_le()), fields.get_u32_le());
    Ok(Grant { region, key, address: fields.get_u64_le(), length: fields.get_u64_le() })
}

fn take_offer(bytes: &mut &[u8]) -> Result<Offer, WordError> {
    let mut fields = take(bytes, 53)?;
    let (nonce, beside) = (fields.get_u64_le(), fields.get_u8() != 0);
    let (pair, psn, lid) = (fields.get_u32_le(), fields.get_u32_le(), fields.get_u16_le());
    let mut gid = [0; 16];
    fields.copy_to_slice(&mut gid);
    let mtu = fields.get_u32_le();
    let mailbox = Remote { address: fields.get_u64_le(), key: fields.get_u32_le() };
    let count = usize::from(fields.get_u16_le());
    if count > GRANTS_MAX {
        return Err(WordError::Malformed);
    }
    let grants = (0..count).map(|_| take_grant(bytes)).collect::<Result<_, _>>()?;
    let destination = Destination { pair, psn, lid, gid, mtu };
    Ok(Offer { nonce, beside, destination, mailbox, grants })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Vec<Word> {
        let grant = Grant { region: RegionId(7), address: 1 << 40, length: 4096, key: 0xabcd };
        let destination = Destination { pair: 17, psn: 99, lid: 3, gid: [5; 16], mtu: 1024 };
        let mailbox = Remote { address: 77, key: 88 };
        let offer = Offer { nonce: 1, beside: true, destination, mailbox, grants: vec![grant; 3] };
        let attempt = Attempt { mine: 4, yours: 9 };
        vec![
            Word::Offer(offer),
            Word::Tcp("no device".into()),
            Word::Ready(attempt),
            Word::Works(attempt),
            Word::Failed(attempt, "no answer".into()),
            Word::Grant(grant),
            Word::Ask(RegionId(5)),
            Word::Refused(RegionId(6)),
        ]
    }

    #[test]
    fn words_come_back_with_the_nonces_of_an_attempt_turned_around() {
        for word in words() {
            let turned = |attempt: Attempt| Attempt { mine: attempt.yours, yours: attempt.mine };
            let expected = match word.clone() {
                Word::Ready(attempt) => Word::Ready(turned(attempt)),
                Word::Works(attempt) => Word::Works(turned(attempt)),
                Word::Failed(attempt, why) => Word::Failed(turned(attempt), why),
                other => other,
            };
            assert_eq!(Word::decode(&word.encode()), Ok(expected));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        for word in words() {
            let bytes = word.encode();
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes.to_vec();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(Word::decode(&damaged).is_err(), "{word:?}, bit {bit}");
            }
            for end in 0..bytes.len() {
                assert!(Word::decode(&bytes[..end]).is_err(), "{word:?}, cut at {end}");
            }
        }
    }

    #[test]
    fn a_count_that_the_bytes_do_not_hold_is_malformed() {
        let Word::Offer(offer) = &words()[0] else { unreachable!("the first is an offer") };
        let mut bytes = BytesMut::from(&Word::Offer(offer.clone()).encode()[..]);
        let count = bytes.len() - 3 * GRANT_BYTES - 2;
        bytes[count..count + 2].copy_from_slice(&4u16.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Word::decode(&bytes), Err(WordError::Malformed));
    }
}
