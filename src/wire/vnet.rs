//! The virtio-net header that a TAP opened with `IFF_VNET_HDR` puts before each frame (virtio 1.2, 5.1.6, with
//! `num_buffers`), in native byte order as the tun driver has it unless told otherwise.
//!
//! It says which parts of sending a card would do are still to be done: one checksum, and cutting a super-frame into
//! segments. Offsets count from the frame's first octet, a VLAN tag included.

use crate::counters::DropReason;

/// How a super-frame is to be cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Gso {
    /// It is no super-frame.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either, each segment a datagram (`VIRTIO_NET_HDR_GSO_UDP_L4`; not the older UFO, which fragments).
    Udp,
}

/// What a frame still needs, or has been spared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The checksum field holds the sum of the pseudo header only; from `csum_start` on the frame is to be added.
    pub needs_csum: bool,
    /// Checksums were verified by whoever received the frame.
    pub data_valid: bool,
    pub gso: Gso,
    /// The first segment has the TCP flag CWR, and the others must not (RFC 3168, 6.1.2).
    pub ecn: bool,
    /// Octets of all headers of a super-frame. A hint: the kernel has been seen to say more.
    pub hdr_len: u16,
    /// Octets of payload in each segment but the last.
    pub gso_size: u16,
    /// Where the checksum begins, octets from the frame's start.
    pub csum_start: u16,
    /// Where its field is, octets from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Octets of the header.
    pub const LEN: usize = 12;

    /// Of a frame that is complete as it is.
    pub const PLAIN: Self = Self {
        needs_csum: false,
        data_valid: false,
        gso: Gso::None,
        ecn: false,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Splits what was read from the TAP into header and frame. `num_buffers` and unknown flags are not looked at.
    ///
    /// # Errors
    /// `Malformed` if it is shorter than the header, is to be cut in a way we do not know, or claims ECN where there
    /// is no TCP to be cut.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), DropReason> {
        let (header, frame) = bytes.split_first_chunk::<{ Self::LEN }>().ok_or(DropReason::Malformed)?;
        let [flags, gso_type, rest @ ..] = *header;
        let field = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
        let ecn = gso_type & GSO_ECN != 0;
        let gso = match gso_type & !GSO_ECN {
            GSO_NONE if !ecn => Gso::None,
            GSO_TCPV4 => Gso::Tcp4,
            GSO_TCPV6 => Gso::Tcp6,
            GSO_UDP_L4 if !ecn => Gso::Udp,
            _ => return Err(DropReason::Malformed),
        };
        let header = Self {
            needs_csum: flags & F_NEEDS_CSUM != 0,
            data_valid: flags & F_DATA_VALID != 0,
            gso,
            ecn,
            hdr_len: field(0),
            gso_size: field(2),
            csum_start: field(4),
            csum_offset: field(6),
        };
        Ok((header, frame))
    }

    /// The header as the TAP expects it, `num_buffers` being 0 (the tun driver does not read it).
    #[inline]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let flags = if self.needs_csum { F_NEEDS_CSUM } else { 0 } | if self.data_valid { F_DATA_VALID } else { 0 };
        let gso_type = match self.gso {
            Gso::None => GSO_NONE,
            Gso::Tcp4 => GSO_TCPV4,
            Gso::Tcp6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        } | if self.ecn { GSO_ECN } else { 0 };
        let [hdr_len, gso_size, csum_start, csum_offset] =
            [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset].map(u16::to_ne_bytes);
        [
            flags,
            gso_type,
            hdr_len[0],
            hdr_len[1],
            gso_size[0],
            gso_size[1],
            csum_start[0],
            csum_start[1],
            csum_offset[0],
            csum_offset[1],
            0,
            0,
        ]
    }
}

// virtio 1.2, 5.1.6: flags and gso_type.
const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    const SUPER_FRAME: VnetHeader = VnetHeader {
        needs_csum: true,
        data_valid: false,
        gso: Gso::Tcp4,
        ecn: true,
        hdr_len: 66,
        gso_size: 1348,
        csum_start: 34,
        csum_offset: 16,
    };

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        for gso in [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp] {
            for (needs_csum, data_valid, ecn) in [(true, false, false), (false, true, false), (true, false, true)] {
                let ecn = ecn && matches!(gso, Gso::Tcp4 | Gso::Tcp6);
                let header = VnetHeader { needs_csum, data_valid, gso, ecn, ..SUPER_FRAME };
                let bytes = [&header.to_bytes()[..], b"frame"].concat();
                assert_eq!(VnetHeader::parse(&bytes), Ok((header, &b"frame"[..])));
            }
        }
        assert_eq!(VnetHeader::PLAIN.to_bytes(), [0; VnetHeader::LEN]);
        assert_eq!(VnetHeader::PLAIN, VnetHeader::default());
    }

    #[test]
    fn the_fields_lie_where_the_tun_driver_has_them() {
        let mut expected = vec![1, 0x81];
        for field in [66u16, 1348, 34, 16, 0] {
            expected.extend(field.to_ne_bytes());
        }
        assert_eq!(SUPER_FRAME.to_bytes()[..], expected[..]);
    }

    #[test]
    fn super_frames_of_unknown_kinds_and_short_reads_are_malformed() {
        // 3 is UFO, 0x80 ECN without TCP.
        for gso_type in [2, 3, 6, 0x7f, 0x80, 0x83, 0x85, 0xff] {
            let mut bytes = SUPER_FRAME.to_bytes();
            bytes[1] = gso_type;
            assert_eq!(VnetHeader::parse(&bytes), Err(DropReason::Malformed), "{gso_type}");
        }
        for len in 0..VnetHeader::LEN {
            assert_eq!(VnetHeader::parse(&[0; VnetHeader::LEN][..len]), Err(DropReason::Malformed));
        }
        assert_eq!(VnetHeader::parse(&[0; VnetHeader::LEN]), Ok((VnetHeader::PLAIN, &[][..])));
    }
}
