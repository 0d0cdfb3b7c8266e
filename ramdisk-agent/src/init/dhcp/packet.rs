//! IPv4 and UDP around DHCP messages, for a card that has no address yet.
//!
//! The UDP checksum of what arrives is not looked at: virtual cards leave it unfinished for the receiver's kernel to fill in.

use std::net::Ipv4Addr;

/// Port of DHCP clients.
pub const CLIENT_PORT: u16 = 68;
/// Port of DHCP servers.
pub const SERVER_PORT: u16 = 67;
const UDP: u8 = 17;
const IP_HEADER_LEN: usize = 20;
const UDP_HEADER_LEN: usize = 8;

/// Wraps a message from client to server.
#[must_use]
pub fn wrap(message: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let udp_len = u16::try_from(UDP_HEADER_LEN + message.len())
        .expect("a request is shorter than 1500 bytes");
    let total_len = u16::try_from(IP_HEADER_LEN).expect("20 fits") + udp_len;
    let mut packet = vec![0x45, 0];
    packet.extend(total_len.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let checksum = checksum(&packet, 0);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(CLIENT_PORT.to_be_bytes());
    packet.extend(SERVER_PORT.to_be_bytes());
    packet.extend(udp_len.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(message);
    let pseudo = sum(&from.octets(), sum(&to.octets(), u32::from(UDP) + u32::from(udp_len)));
    let udp_checksum = match self::checksum(&packet[IP_HEADER_LEN..], pseudo) {
        // Zero would mean "no checksum".
        0 => u16::MAX,
        value => value,
    };
    packet[26..28].copy_from_slice(&udp_checksum.to_be_bytes());
    packet
}

/// The message in a packet, if it is a whole UDP packet from a DHCP server to a client.
#[must_use]
pub fn unwrap(packet: &[u8]) -> Option<&[u8]> {
    let first = *packet.first()?;
    let header_len = usize::from(first & 0xf) * 4;
    let total_len = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
    let fragment = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & 0x3fff;
    if first >> 4 != 4 || header_len < IP_HEADER_LEN || fragment != 0 || *packet.get(9)? != UDP {
        return None;
    }
    let udp = packet.get(header_len..total_len)?;
    let port = |at: usize| Some(u16::from_be_bytes(udp.get(at..at + 2)?.try_into().ok()?));
    if port(0)? != SERVER_PORT || port(2)? != CLIENT_PORT {
        return None;
    }
    udp.get(UDP_HEADER_LEN..usize::from(port(4)?))
}

fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        sum + u32::from(word)
    })
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut total = sum(bytes, start);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !u16::try_from(total).expect("folded to 16 bits")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wrapped_message_has_right_checksums() {
        let packet = wrap(b"hello", Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        assert_eq!(checksum(&packet[..20], 0), 0);
        let pseudo = sum(&Ipv4Addr::BROADCAST.octets(), 17 + 13);
        assert_eq!(checksum(&packet[20..], pseudo), 0);
    }

    #[test]
    fn only_packets_from_servers_to_clients_are_opened() {
        let mut packet = wrap(b"hello", Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::BROADCAST);
        assert_eq!(unwrap(&packet), None);
        packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
        assert_eq!(unwrap(&packet), Some(&b"hello"[..]));
        packet.extend(b"padding of the link layer");
        assert_eq!(unwrap(&packet), Some(&b"hello"[..]));
        packet[6] = 0x20;
        assert_eq!(unwrap(&packet), None, "a fragment");
    }

    proptest! {
        #[test]
        fn no_packet_is_too_strange(packet in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = unwrap(&packet);
        }
    }
}
