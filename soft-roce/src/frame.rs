//! What the switch must know of an Ethernet frame: whose it is, and whether it is RDMA.

/// UDP port of RoCE v2 (InfiniBand Architecture Specification, Annex A17).
const ROCE_PORT: u16 = 4791;

/// Two kinds of traffic, which can be cut apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// RoCE v2.
    Rdma,
    /// TCP.
    Tcp,
    /// The rest: ARP, ICMP, …
    Other,
}

/// The class of a frame.
pub(crate) fn class(frame: &[u8]) -> Class {
    match transport(frame) {
        Some((17, packet)) if word(packet, 2) == Some(ROCE_PORT) => Class::Rdma,
        Some((6, _)) => Class::Tcp,
        _ => Class::Other,
    }
}

/// The last byte of the receiver's address: the host's number; none for a group.
pub(crate) fn receiver(frame: &[u8]) -> Option<u8> {
    let group = frame.first()? & 1 == 1;
    frame.get(5).copied().filter(|_| !group)
}

/// Protocol number and contents of the IP packet in a frame. Extension headers of IPv6 are not
/// followed: nothing here sends any.
fn transport(frame: &[u8]) -> Option<(u8, &[u8])> {
    let packet = frame.get(14..)?;
    match word(frame, 12)? {
        0x0800 => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            // Only the first fragment has the header of the transport.
            let first = word(packet, 6)? & 0x1fff == 0;
            Some((*packet.get(9)?, packet.get(header..)?)).filter(|_| first)
        }
        0x86dd => Some((*packet.get(6)?, packet.get(40..)?)),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A frame of IPv4 from host `from` to host `to`.
    pub(crate) fn frame(from: u8, to: u8, protocol: u8, port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x52, 0x54, 0, 0x51, 0x4c, to, 0x52, 0x54, 0, 0x51, 0x4c, from];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend([10, 77, 0, from, 10, 77, 0, to, 0xc0, 0x00]);
        frame.extend(port.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn traffic_is_told_apart() {
        assert_eq!(class(&frame(1, 2, 17, 4791, b"")), Class::Rdma);
        assert_eq!(class(&frame(1, 2, 17, 53, b"")), Class::Other);
        assert_eq!(class(&frame(1, 2, 6, 4791, b"")), Class::Tcp);
        assert_eq!(receiver(&frame(1, 2, 6, 7000, b"")), Some(2));
        assert_eq!(receiver(&[0xff; 14]), None, "everybody");
    }

    #[test]
    fn no_prefix_of_a_frame_is_too_short_to_look_at() {
        let whole = frame(1, 2, 17, 4791, b"payload");
        for length in 0..whole.len() {
            let _ = (class(&whole[..length]), receiver(&whole[..length]));
        }
    }
}
