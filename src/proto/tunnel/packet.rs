//! Which datagrams of multi_tun are packets that a kernel would have sent.
//!
//! The real receiver learns an endpoint from anything. Here only what could have come out of a TUN device is believed:
//! nothing that a real peer sends is refused, and noise from the Internet becomes nobody's endpoint.

use super::super::duplicates::PACKET_MAX;
use crate::wire::checksum::sum;

/// Said by a client of ours on each path at its start and at intervals. A real server learns the endpoint from it and
/// its TUN device refuses it without a word: it is not empty, which would end that program, and its first four bits are of
/// no IP version (both seen on the real one). Being always the same, it takes one place in 1024 of its duplicate filter.
pub const KEEPALIVE: &[u8] = b"\0eps-actor tunnel";

/// Whether these bytes are an IPv4 packet with a right header checksum (RFC 791) or an IPv6 packet (RFC 8200), whole, or
/// cut at [`PACKET_MAX`]. Zeroes may follow it.
pub fn is_sound(packet: &[u8]) -> bool {
    let whole = |length: usize| length <= packet.len() || packet.len() == PACKET_MAX;
    match packet {
        [first, ..] if first >> 4 == 4 => {
            let header = usize::from(first & 15) * 4;
            let Some(bytes) = packet.get(..header).filter(|bytes| bytes.len() >= 20) else { return false };
            let total = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
            total >= header && whole(total) && sum(bytes).fold() == 0xffff
        }
        [first, ..] if first >> 4 == 6 => {
            let Some(bytes) = packet.get(..40) else { return false };
            whole(40 + usize::from(u16::from_be_bytes([bytes[4], bytes[5]])))
        }
        _ => false,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An IPv4 packet of protocol 253 (RFC 3692) from 10.42.42.2 to 10.42.42.1.
    pub(crate) fn packet(id: u16, payload: &[u8]) -> Vec<u8> {
        let length = (20 + payload.len()) as u16;
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 253, 0, 0, 10, 42, 42, 2, 10, 42, 42, 1];
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        let checksum = sum(&packet).checksum();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet.extend(payload);
        packet
    }

    #[test]
    fn packets_of_a_kernel_are_sound_and_noise_is_not() {
        let good = packet(1, b"some payload");
        assert!(is_sound(&good));
        assert!(is_sound(&[&good[..], &[0, 0]].concat()), "zeroes may follow");
        assert!(is_sound(&packet(1, &[7; 1580])[..PACKET_MAX]), "cut by the receiver's buffer");
        let mut v6 = vec![0x60, 0, 0, 0, 0, 4, 17, 64];
        v6.resize(44, 1);
        assert!(is_sound(&v6));
        assert!(!is_sound(&v6[..43]), "cut short");
        assert!(!is_sound(&good[..good.len() - 1]), "cut short");
        for noise in [&b""[..], &[0x45], &good[..19], KEEPALIVE, b"\0garbage", &[0x43; 40], &[0xff; 40], &[0x60; 39]] {
            assert!(!is_sound(noise), "{noise:?}");
        }
        for bit in 0..20 * 8 {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_sound(&flipped), "bit {bit}");
        }
    }
}
