//! An acknowledgement of RDMA turned into the refusal that makes its receiver's queue pair fail.
//!
//! InfiniBand Architecture Specification, volume 1, sections 9.2 (BTH), 9.3.5 (AETH), 7.8.1 (ICRC) and
//! Annex A17 (RoCE v2); what the checksum masks is as Linux' `rxe_icrc.c` has it.

use crate::frame::{Class, class};

/// The opcode of an acknowledgement on a reliable connection.
const ACKNOWLEDGE: u8 = 0x11;
/// The syndrome of a negative acknowledgement for a remote operational error.
const REMOTE_OPERATIONAL_ERROR: u8 = 0x63;
/// Where things are in a frame of IPv4 without options.
const IP: usize = 14;
const UDP: usize = IP + 20;
const BTH: usize = UDP + 8;
const AETH: usize = BTH + 12;
const ICRC: usize = AETH + 4;

/// The frame as a refusal, if it is an acknowledgement.
pub(crate) fn refused(frame: &[u8]) -> Option<Vec<u8>> {
    let acknowledges = class(frame) == Class::Rdma
        && frame.get(IP) == Some(&0x45)
        && frame.get(BTH) == Some(&ACKNOWLEDGE)
        // The first bits tell an acknowledgement from both kinds of refusals.
        && frame.get(AETH)? >> 5 == 0;
    let carried = u32::from_le_bytes(frame.get(ICRC..ICRC + 4)?.try_into().ok()?);
    if !acknowledges || carried != checksum(&frame[..ICRC]) {
        return None;
    }
    let mut refusal = frame.to_vec();
    refusal[AETH] = REMOTE_OPERATIONAL_ERROR;
    let checksum = checksum(&refusal[..ICRC]);
    refusal[ICRC..ICRC + 4].copy_from_slice(&checksum.to_le_bytes());
    Some(refusal)
}

/// The invariant CRC of a frame, without what routers may change.
fn checksum(frame: &[u8]) -> u32 {
    let mut masked = vec![0xff; 8];
    masked.extend(&frame[IP..]);
    // Type of service, time to live, checksum; the checksum of UDP; a reserved byte.
    let ip = 8;
    for at in [ip + 1, ip + 8, ip + 10, ip + 11, ip + 26, ip + 27, ip + 32] {
        masked[at] = 0xff;
    }
    !masked.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::frame::tests::frame;

    /// An acknowledgement from host `from` to host `to`.
    pub(crate) fn acknowledgement(from: u8, to: u8) -> Vec<u8> {
        let transport = [ACKNOWLEDGE, 0x40, 0xff, 0xff, 0, 0, 0, 17, 0, 1, 2, 3];
        let mut frame = frame(from, to, 17, 4791, &transport);
        frame.extend([0x1f, 0, 0, 9]);
        let checksum = checksum(&frame);
        frame.extend(checksum.to_le_bytes());
        frame
    }

    #[test]
    fn an_acknowledgement_becomes_a_refusal_with_a_checksum_that_holds() {
        let frame = acknowledgement(1, 2);
        let refusal = refused(&frame).unwrap();
        assert_eq!(
            (refusal.len(), refusal[AETH], &refusal[..AETH]),
            (frame.len(), 0x63, &frame[..AETH])
        );
        assert_eq!(refused(&refusal), None, "it is none any more");
        assert_ne!(refusal[ICRC..], frame[ICRC..]);
        // A router on the way changes the time to live.
        let mut later = frame.clone();
        later[IP + 8] -= 1;
        assert!(refused(&later).is_some());
        let mut damaged = frame;
        damaged[BTH + 11] ^= 1;
        assert_eq!(refused(&damaged), None, "a frame that the receiver drops stays as it is");
    }

    #[test]
    fn the_checksum_is_the_usual_crc_after_eight_bytes_of_ones() {
        // Nothing masked: the frame's masked bytes are ones already. The value is Python's
        // `binascii.crc32(b"\xff" * 8 + b"\xff" * 44)`.
        assert_eq!(checksum(&[0xff; ICRC]), 0xeb6f_5bb4);
    }
}
