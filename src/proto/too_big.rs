//! What hosts are told of packets that are too long for a path: "packet too big", and smaller segments for TCP.
//!
//! A frame that is too long for one datagram goes in fragments ([`whole`](super::whole)), so nothing is lost when
//! nobody listens. Whoever does listen sends packets that go in one. The answers are written as if the destination had
//! sent them, for there is no router on an Ethernet segment that could.

use std::net::Ipv4Addr;

use crate::wire::checksum::{self, Sum};
use crate::wire::ethernet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Fragment, FrameView, HEADER_LEN, IP_PROTOCOL_ICMP, IP_PROTOCOL_ICMPV6,
    IP_PROTOCOL_TCP, Ipv4View, Ipv6View, TAG_LEN, icmpv6_checksum, write_header,
};

/// The least packet that IPv6 promises to carry (RFC 8200, 5); hosts do not believe in less.
const IPV6_MIN: u16 = 1280;
/// The least that is told for IPv4: what every host takes whole (RFC 791, 3.2).
const IPV4_MIN: u16 = 576;
/// Octets of the packet that an answer quotes, so that it is no longer than hosts expect (RFC 1812, 4.3.2.3; RFC 4443,
/// 2.4 c).
const QUOTE4_MAX: usize = 576 - 20 - 8;
const QUOTE6_MAX: usize = 1280 - 40 - 8;
/// Answers in a second: a host needs one for each destination every ten minutes.
const TOLD_PER_SECOND: u32 = 50;
/// Segments are never made smaller than this by us (the kernel's own least is 48).
const MSS_MIN: u16 = 256;

/// How many answers may still be given in this second.
#[derive(Debug, Default)]
pub struct Budget {
    second: u64,
    told: u32,
}

impl Budget {
    /// Whether one may be given.
    pub fn take(&mut self, now_ms: u64) -> bool {
        if self.second != now_ms / 1000 {
            (self.second, self.told) = (now_ms / 1000, 0);
        }
        self.told += 1;
        self.told <= TOLD_PER_SECOND
    }
}

/// Writes the answer to a frame that is too long into `out`, which is emptied first. `longest` is the length of its
/// longest packet if it is a super-frame, of the packet otherwise; `packet_max` what fits. False, and nothing to be
/// sent, if there is nobody to tell: it is no IP, may be fragmented by IP, is for a group, or is itself about an error.
pub fn answer(frame: &FrameView<'_>, longest: usize, packet_max: u16, out: &mut Vec<u8>) -> bool {
    if frame.dst().is_group() {
        return false;
    }
    match frame.ethertype() {
        ETHERTYPE_IPV4 => answer4(frame, longest, packet_max.max(IPV4_MIN), out),
        ETHERTYPE_IPV6 => answer6(frame, longest, packet_max.max(IPV6_MIN), out),
        _ => false,
    }
}

/// "Fragmentation needed" (RFC 1191, 4).
fn answer4(frame: &FrameView<'_>, longest: usize, packet_max: u16, out: &mut Vec<u8>) -> bool {
    let packet = frame.payload();
    let Some(ip) = Ipv4View::parse(packet) else { return false };
    let dont_fragment = packet[6] & 0x40 != 0;
    let is_error = ip.protocol() == IP_PROTOCOL_ICMP && matches!(ip.payload().first(), Some(3 | 4 | 5 | 11 | 12));
    let nobody = |ip: Ipv4Addr| ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ip.is_loopback();
    if longest <= usize::from(packet_max)
        || !dont_fragment
        || is_error
        || ip.fragment() == Fragment::Later
        || nobody(ip.src())
        || nobody(ip.dst())
    {
        return false;
    }
    let quote = &packet[..packet.len().min(QUOTE4_MAX)];
    let mut icmp = [3, 4, 0, 0, 0, 0, 0, 0];
    icmp[6..].copy_from_slice(&packet_max.to_be_bytes());
    let sum = (checksum::sum(&icmp) + checksum::sum(quote)).checksum();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut head = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, IP_PROTOCOL_ICMP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    head[2..4].copy_from_slice(&((20 + icmp.len() + quote.len()) as u16).to_be_bytes());
    head[12..16].copy_from_slice(&ip.dst().octets());
    head[16..].copy_from_slice(&ip.src().octets());
    let sum = checksum::sum(&head).checksum();
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    write_header(frame, frame.dst(), ETHERTYPE_IPV4, out);
    out.extend_from_slice(&head);
    out.extend_from_slice(&icmp);
    out.extend_from_slice(quote);
    true
}

/// "Packet too big" (RFC 4443, 3.2).
fn answer6(frame: &FrameView<'_>, longest: usize, packet_max: u16, out: &mut Vec<u8>) -> bool {
    let packet = frame.payload();
    let Some(ip) = Ipv6View::parse(packet) else { return false };
    // Below 128 are errors.
    let is_error = ip.icmp_type().is_some_and(|kind| kind < 128);
    if longest <= usize::from(packet_max)
        || is_error
        || ip.fragment() == Fragment::Later
        || ip.src().is_unspecified()
        || ip.src().is_multicast()
        || ip.dst().is_multicast()
    {
        return false;
    }
    let quote = &packet[..packet.len().min(QUOTE6_MAX)];
    let mut icmp = Vec::with_capacity(8 + quote.len());
    icmp.extend_from_slice(&[2, 0, 0, 0, 0, 0]);
    icmp.extend_from_slice(&packet_max.to_be_bytes());
    icmp.extend_from_slice(quote);
    let sum = icmpv6_checksum(ip.dst(), ip.src(), &icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    write_header(frame, frame.dst(), ETHERTYPE_IPV6, out);
    out.extend_from_slice(&[0x60, 0, 0, 0]);
    out.extend_from_slice(&(icmp.len() as u16).to_be_bytes());
    out.extend_from_slice(&[IP_PROTOCOL_ICMPV6, 64]);
    out.extend_from_slice(&ip.dst().octets());
    out.extend_from_slice(&ip.src().octets());
    out.extend_from_slice(&icmp);
    true
}

/// Where the TCP header of a frame is, if it begins a connection (SYN).
/// Hot: every single frame is asked. IPv6 packets with extension headers are left alone.
#[inline]
pub fn syn(frame: &[u8]) -> Option<Syn> {
    let tagged = frame.get(12..14)? == [0x81, 0];
    let ip_at = if tagged { HEADER_LEN + TAG_LEN } else { HEADER_LEN };
    let ip = frame.get(ip_at..)?;
    let (ip_len, headers) = match *frame.get(ip_at - 2..ip_at)? {
        [0x08, 0x00] if *ip.get(9)? == IP_PROTOCOL_TCP && ip[0] >> 4 == 4 => {
            // The first fragment of a SYN has it all; later ones have no header.
            if ip[6] & 0x1f != 0 || ip[7] != 0 {
                return None;
            }
            (usize::from(ip[0] & 0x0f) * 4, 20)
        }
        [0x86, 0xdd] if *ip.get(6)? == IP_PROTOCOL_TCP => (40, 40),
        _ => return None,
    };
    let is_syn = ip.get(ip_len + 13)? & 0x02 != 0;
    (is_syn && ip_len >= 20).then_some(Syn { tagged, tcp_at: ip_at + ip_len, headers })
}

/// A frame that begins a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Syn {
    pub tagged: bool,
    tcp_at: usize,
    /// Octets of the IP header without options: the size that TCP tells does not count them (RFC 9293, 3.7.1).
    headers: u16,
}

impl Syn {
    /// Lowers the largest segment that the sender of the frame takes, so that packets to it have at the most
    /// `packet_max` octets. `summed`: the frame's checksum is complete, and is kept so. Whether anything was changed.
    pub fn clamp(self, frame: &mut [u8], packet_max: u16, summed: bool) -> bool {
        let most = packet_max.saturating_sub(self.headers + 20).max(MSS_MIN);
        let Some(tcp) = frame.get_mut(self.tcp_at..) else { return false };
        let end = usize::from(tcp.get(12).copied().unwrap_or(0) >> 4) * 4;
        let mut at = 20;
        while at < end {
            match tcp.get(at..end) {
                Some([1, ..]) => at += 1,
                Some([2, 4, high, low, ..]) => {
                    let said = u16::from_be_bytes([*high, *low]);
                    if said <= most {
                        return false;
                    }
                    tcp[at + 2..at + 4].copy_from_slice(&most.to_be_bytes());
                    if summed {
                        let sum = u16::from_be_bytes([tcp[16], tcp[17]]);
                        let sum = replaced(sum, said, most, at % 2 != 0);
                        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
                    }
                    return true;
                }
                Some([kind, length, ..]) if *kind != 0 && *length >= 2 => at += usize::from(*length),
                Some(_) | None => return false,
            }
        }
        false
    }
}

/// A checksum after one word of what it is about was replaced (RFC 1624, equation 3); `odd` if the word lies across
/// two words of the sum.
fn replaced(sum: u16, old: u16, new: u16, odd: bool) -> u16 {
    let word = |value: u16| Sum::word(if odd { value.swap_bytes() } else { value });
    (Sum::word(!sum) + word(!old) + word(new)).checksum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::segment::Layout;
    use crate::wire::ethernet::tests::{hex, view};

    /// A packet of the length from 10.0.0.1 to 10.0.0.2, in a frame.
    fn frame4(protocol: u8, dont_fragment: bool, length: u16, body: &[u8]) -> Vec<u8> {
        let mut frame = hex("02000000000b 02000000000a 0800 4500 0000 0007 0000 40 00 0000 0a000001 0a000002");
        frame[16..18].copy_from_slice(&length.to_be_bytes());
        frame[20] = if dont_fragment { 0x40 } else { 0 };
        frame[23] = protocol;
        let sum = checksum::sum(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend_from_slice(body);
        frame.resize(14 + usize::from(length), 0x5a);
        frame
    }

    fn frame6(protocol: u8, length: u16, body: &[u8]) -> Vec<u8> {
        let mut frame = hex("02000000000b 02000000000a 86dd 60000000 0000 00 40
            fd000000000000000000000000000001 fd000000000000000000000000000002");
        frame[18..20].copy_from_slice(&(length - 40).to_be_bytes());
        frame[20] = protocol;
        frame.extend_from_slice(body);
        frame.resize(14 + usize::from(length), 0x5a);
        frame
    }

    fn told(frame: &[u8], packet_max: u16) -> Option<Vec<u8>> {
        let mut out = vec![1, 2, 3];
        answer(&view(frame), frame.len() - 14, packet_max, &mut out).then_some(out)
    }

    #[test]
    fn a_host_is_told_in_the_words_of_the_standards_with_right_checksums() {
        let frame = frame4(17, true, 1376, &[]);
        let out = told(&frame, 1186).expect("an answer");
        assert_eq!(out[..14], hex("02000000000a 02000000000b 0800"));
        let ip = &out[14..];
        assert_eq!(checksum::sum(&ip[..20]).fold(), 0xffff);
        assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len());
        assert!(ip.len() <= 576);
        assert_eq!((&ip[12..16], &ip[16..20]), (&[10, 0, 0, 2][..], &[10, 0, 0, 1][..]));
        let icmp = &ip[20..];
        assert_eq!((icmp[0], icmp[1], u16::from_be_bytes([icmp[6], icmp[7]])), (3, 4, 1186));
        assert_eq!(checksum::sum(icmp).fold(), 0xffff);
        assert_eq!(icmp[8..], frame[14..14 + QUOTE4_MAX]);

        let frame = frame6(17, 1376, &[]);
        let out = told(&frame, 1186).expect("an answer");
        let ip = &out[14..];
        assert_eq!((out[12..14].to_vec(), ip.len()), (hex("86dd"), 1280));
        assert_eq!((&ip[8..24], &ip[24..40]), (&frame[38..54], &frame[22..38]));
        let icmp = &ip[40..];
        // Hosts believe in nothing below 1280.
        assert_eq!((icmp[0], icmp[1], u32::from_be_bytes([icmp[4], icmp[5], icmp[6], icmp[7]])), (2, 0, 1280));
        let addresses: &[u8; 32] = ip[8..40].try_into().expect("two addresses");
        assert_eq!((checksum::pseudo_header(addresses, 58, icmp.len()) + checksum::sum(icmp)).fold(), 0xffff);
    }

    #[test]
    fn a_tag_is_kept_in_the_answer() {
        let plain = frame4(6, true, 1300, &[]);
        let tagged = [&plain[..12], &[0x81, 0, 0, 7], &plain[12..]].concat();
        let mut out = Vec::new();
        assert!(answer(&view(&tagged), 1300, 1182, &mut out));
        assert_eq!(out[12..18], hex("8100 0007 0800"));
        assert_eq!((out[38], u16::from_be_bytes([out[44], out[45]])), (3, 1182));
    }

    #[test]
    fn nobody_is_told_who_should_not_be() {
        let group = |mut frame: Vec<u8>| {
            frame[0] |= 1;
            frame
        };
        let from = |mut frame: Vec<u8>, source: [u8; 4]| {
            frame[26..30].copy_from_slice(&source);
            frame
        };
        let later = |mut frame: Vec<u8>| {
            frame[21] = 9;
            frame
        };
        for (what, frame) in [
            ("it may be fragmented", frame4(17, false, 1376, &[])),
            ("it fits", frame4(17, true, 1186, &[])),
            ("it is about an error", frame4(1, true, 1376, &[3, 4])),
            ("it is for a group", group(frame4(17, true, 1376, &[]))),
            ("it has no sender", from(frame4(17, true, 1376, &[]), [0; 4])),
            ("its sender is a group", from(frame4(17, true, 1376, &[]), [224, 0, 0, 1])),
            ("it is a later fragment", later(frame4(17, true, 1376, &[]))),
            ("it fits IPv6's least", frame6(17, 1280, &[])),
            ("it is about an error", frame6(58, 1376, &[1, 0])),
            ("it is no IP", hex("02000000000b 02000000000a 88b5 0102")),
        ] {
            assert_eq!(told(&frame, 1186), None, "{what}");
        }
        assert!(told(&frame4(1, true, 1376, &[8, 0]), 1186).is_some(), "an echo is no error");
        assert!(told(&frame6(58, 1376, &[128, 0]), 1186).is_some(), "an echo is no error");
    }

    #[test]
    fn answers_are_limited_each_second() {
        let mut budget = Budget::default();
        let taken = (0..1000).filter(|ms| budget.take(5_000 + ms)).count();
        assert_eq!(taken, TOLD_PER_SECOND as usize);
        assert!(budget.take(6_000));
    }

    /// SYN with a maximum segment size behind `before` in its options.
    fn tcp(flags: u8, before: &[u8], mss: u16) -> Vec<u8> {
        let mut options = before.to_vec();
        options.extend([2, 4]);
        options.extend(mss.to_be_bytes());
        options.resize(options.len().next_multiple_of(4), 0);
        let mut tcp = hex("0007 0009 00000001 00000002 00 00 ffff 0000 0000");
        tcp[12] = ((20 + options.len()) as u8 / 4) << 4;
        tcp[13] = flags;
        tcp.extend(options);
        tcp
    }

    fn framed(tcp: &[u8], six: bool, tagged: bool) -> Vec<u8> {
        let length = tcp.len() as u16;
        let mut frame = if six { frame6(6, 40 + length, tcp) } else { frame4(6, true, 20 + length, tcp) };
        if tagged {
            frame.splice(12..12, [0x81, 0, 0, 7]);
        }
        let layout = Layout::parse(&frame).expect("TCP");
        let sum = (layout.pseudo_header(&frame, tcp.len()) + checksum::sum(tcp)).checksum();
        let at = layout.transport_at + 16;
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        assert!(layout.is_checksum_right(&frame));
        frame
    }

    fn mss(frame: &[u8], before: usize) -> u16 {
        let at = Layout::parse(frame).expect("TCP").transport_at + 20 + before + 2;
        u16::from_be_bytes([frame[at], frame[at + 1]])
    }

    #[test]
    fn only_what_begins_a_connection_is_clamped() {
        for flags in [0x02, 0x12] {
            assert!(syn(&framed(&tcp(flags, &[], 1336), false, false)).is_some());
        }
        for flags in [0x10, 0x11, 0x04, 0x18] {
            assert_eq!(syn(&framed(&tcp(flags, &[], 1336), false, false)), None);
        }
        let udp = frame4(17, true, 100, &[0xff; 40]);
        assert_eq!((syn(&udp), syn(&udp[..20]), syn(&[])), (None, None, None));
    }

    proptest! {
        #[test]
        fn a_clamped_segment_size_fits_and_its_checksum_stays_right(
            said in 0u16.., packet_max in 400u16..9000, padding in 0usize..5, six: bool, tagged: bool, synack: bool,
        ) {
            let before = vec![1; padding];
            let before_frame = framed(&tcp(if synack { 0x12 } else { 2 }, &before, said), six, tagged);
            let mut frame = before_frame.clone();
            let found = syn(&frame).expect("a SYN");
            prop_assert_eq!(found.tagged, tagged);
            let most = packet_max - if six { 60 } else { 40 };
            let changed = found.clamp(&mut frame, packet_max, true);
            prop_assert_eq!(changed, said > most);
            prop_assert_eq!(mss(&frame, padding), said.min(most));
            prop_assert!(Layout::parse(&frame).expect("TCP").is_checksum_right(&frame));
            // A partial checksum is about other octets, and stays.
            let mut partial = before_frame.clone();
            found.clamp(&mut partial, packet_max, false);
            let at = Layout::parse(&partial).expect("TCP").transport_at + 16;
            prop_assert_eq!(&partial[at..at + 2], &before_frame[at..at + 2]);
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0..4, max: u16) {
            let heads = ["02000000000b 02000000000a 0800 45", "02000000000b 02000000000a 86dd 60",
                "02000000000b 02000000000a 8100 0001 0800 4f", ""];
            let mut frame = hex(heads[kind as usize]);
            frame.append(&mut bytes);
            if let Some(found) = syn(&frame) {
                found.clamp(&mut frame, max, true);
            }
            if let Ok(view) = FrameView::parse(&frame) {
                answer(&view, 2000, max, &mut Vec::new());
            }
        }
    }
}
