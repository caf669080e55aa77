//! Borrowed views of an Ethernet frame and of the few protocols inside it that layer-2 checks need: ARP, IPv4 and
//! UDP ports, IPv6 with its extension headers, neighbour discovery.
//!
//! Nothing is copied and every length is checked when a view is made, so the accessors cannot fail. The views say
//! what is written; whether it may be written is decided in `proto::guard`. The builders write the two answers
//! that are given on behalf of a member.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::counters::DropReason;
use crate::ids::{MacAddr, VlanId};
use crate::wire::checksum;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// IEEE 802.1Q customer tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IEEE 802.1ad service tag, the outer one of a double tag.
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
/// Smaller values in the type field are the length of an IEEE 802.3 frame.
pub const ETHERTYPE_MIN: u16 = 0x0600;

/// Octets of destination, source and type.
pub const HEADER_LEN: usize = 14;
/// Octets a VLAN tag adds.
pub const TAG_LEN: usize = 4;

pub const IP_PROTOCOL_ICMP: u8 = 1;
pub const IP_PROTOCOL_TCP: u8 = 6;
pub const IP_PROTOCOL_UDP: u8 = 17;
pub const IP_PROTOCOL_ICMPV6: u8 = 58;

/// ICMPv6 types of neighbour discovery (RFC 4861, 4.1 to 4.5).
pub const ND_ROUTER_SOLICITATION: u8 = 133;
pub const ND_ROUTER_ADVERTISEMENT: u8 = 134;
pub const ND_NEIGHBOUR_SOLICITATION: u8 = 135;
pub const ND_NEIGHBOUR_ADVERTISEMENT: u8 = 136;
pub const ND_REDIRECT: u8 = 137;

/// An Ethernet frame without preamble and checksum, with at most one VLAN tag.
#[derive(Debug, Clone, Copy)]
pub struct FrameView<'a> {
    bytes: &'a [u8],
    /// Offset of the innermost type field.
    type_at: usize,
}

impl<'a> FrameView<'a> {
    /// Looks at a frame.
    ///
    /// # Errors
    /// `Runt` below 14 octets; `BadTag` if a tag is cut short, doubled, or a service tag.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DropReason> {
        if bytes.len() < HEADER_LEN {
            return Err(DropReason::Runt);
        }
        match u16_at(bytes, 12) {
            ETHERTYPE_SERVICE_VLAN => Err(DropReason::BadTag),
            ETHERTYPE_VLAN if bytes.len() < HEADER_LEN + TAG_LEN => Err(DropReason::BadTag),
            ETHERTYPE_VLAN => match u16_at(bytes, 16) {
                ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => Err(DropReason::BadTag),
                _ => Ok(Self { bytes, type_at: 16 }),
            },
            _ => Ok(Self { bytes, type_at: 12 }),
        }
    }

    pub fn dst(&self) -> MacAddr {
        mac_at(self.bytes, 0)
    }

    pub fn src(&self) -> MacAddr {
        mac_at(self.bytes, 6)
    }

    /// The VLAN of the frame; 0 if it has no tag or one that carries a priority only.
    pub fn vlan(&self) -> VlanId {
        if self.is_tagged() { VlanId(u16_at(self.bytes, 14) & 0x0fff) } else { VlanId(0) }
    }

    pub fn is_tagged(&self) -> bool {
        self.type_at != 12
    }

    /// The innermost type field; below [`ETHERTYPE_MIN`] it is the length of an IEEE 802.3 frame.
    pub fn ethertype(&self) -> u16 {
        u16_at(self.bytes, self.type_at)
    }

    /// What follows the type field, padding included.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.type_at + 2..]
    }

    /// The whole frame.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Destination is 01-80-C2-00-00-00 to -0F, which bridges do not forward (IEEE 802.1Q-2018, table 8-1).
    pub fn is_link_local_group(&self) -> bool {
        let MacAddr([a, b, c, d, e, last]) = self.dst();
        [a, b, c, d, e] == [0x01, 0x80, 0xc2, 0, 0] && last < 0x10
    }

    /// An 802.3 frame that wraps an EtherType in a SNAP header (RFC 1042), and which one. Some hosts unwrap it, so
    /// that what is inside must not pass for something unknown.
    pub fn snap_ethertype(&self) -> Option<u16> {
        if self.ethertype() >= ETHERTYPE_MIN {
            return None;
        }
        let (header, _) = self.payload().split_first_chunk::<8>()?;
        let wrapped = header[..3] == [0xaa, 0xaa, 0x03] && matches!(header[3..6], [0, 0, 0] | [0, 0, 0xf8]);
        wrapped.then(|| u16_at(header, 6))
    }

    /// The tag, if any, as written: priority and VLAN.
    fn tag(&self) -> &'a [u8] {
        &self.bytes[12..self.type_at]
    }
}

/// ARP for IPv4 over Ethernet (RFC 826).
#[derive(Debug, Clone, Copy)]
pub struct ArpView<'a>(&'a [u8; ARP_LEN]);

impl<'a> ArpView<'a> {
    pub const REQUEST: u16 = 1;
    pub const REPLY: u16 = 2;

    /// Looks at the payload of an ARP frame; `None` if it is short or not about IPv4 over Ethernet.
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let (arp, _) = payload.split_first_chunk::<ARP_LEN>()?;
        (arp[..6] == ARP_ETHERNET_IPV4).then_some(Self(arp))
    }

    pub fn operation(&self) -> u16 {
        u16_at(self.0, 6)
    }

    pub fn sender_mac(&self) -> MacAddr {
        mac_at(self.0, 8)
    }

    pub fn sender_ip(&self) -> Ipv4Addr {
        ipv4_at(self.0, 14)
    }

    pub fn target_mac(&self) -> MacAddr {
        mac_at(self.0, 18)
    }

    pub fn target_ip(&self) -> Ipv4Addr {
        ipv4_at(self.0, 24)
    }

    /// A probe whether somebody has the address: no sender address (RFC 5227, 2.1.1).
    pub fn is_probe(&self) -> bool {
        self.sender_ip().is_unspecified()
    }

    /// An announcement of the sender's own address (RFC 5227, 2.3), also called gratuitous.
    pub fn is_announcement(&self) -> bool {
        self.sender_ip() == self.target_ip()
    }
}

/// Which part of a fragmented IP packet this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The one with the headers. Also an IPv6 packet with a fragment header that has only this one.
    First,
    /// One that begins inside the data; the header of the transport protocol is in another.
    Later,
}

/// An IPv4 header and its data (RFC 791).
#[derive(Debug, Clone, Copy)]
pub struct Ipv4View<'a> {
    header: &'a [u8; 20],
    payload: &'a [u8],
}

impl<'a> Ipv4View<'a> {
    /// Looks at the payload of an IPv4 frame; `None` if version or lengths do not fit. Padding behind the total
    /// length is left out.
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let (header, _) = payload.split_first_chunk::<20>()?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let total_len = usize::from(u16_at(header, 2));
        if header[0] >> 4 != 4 || header_len < 20 {
            return None;
        }
        Some(Self { header, payload: payload.get(header_len..total_len)? })
    }

    pub fn protocol(&self) -> u8 {
        self.header[9]
    }

    pub fn src(&self) -> Ipv4Addr {
        ipv4_at(self.header, 12)
    }

    pub fn dst(&self) -> Ipv4Addr {
        ipv4_at(self.header, 16)
    }

    pub fn fragment(&self) -> Fragment {
        let flags = u16_at(self.header, 6);
        match (flags & 0x1fff, flags & 0x2000 != 0) {
            (0, false) => Fragment::Whole,
            (0, true) => Fragment::First,
            (_, _) => Fragment::Later,
        }
    }

    /// What follows the header and its options, without padding.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// An IPv6 header and what its extension headers lead to (RFC 8200).
#[derive(Debug, Clone, Copy)]
pub struct Ipv6View<'a> {
    header: &'a [u8; 40],
    protocol: u8,
    fragment: Fragment,
    payload: &'a [u8],
}

impl<'a> Ipv6View<'a> {
    /// Looks at the payload of an IPv6 frame; `None` if version or lengths do not fit, or if the chain of extension
    /// headers is cut short or longer than 8. Padding behind the payload length is left out.
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let (header, rest) = payload.split_first_chunk::<40>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let mut view = Self {
            header,
            protocol: header[6],
            fragment: Fragment::Whole,
            payload: rest.get(..usize::from(u16_at(header, 4)))?,
        };
        for _ in 0..=EXTENSION_HEADERS_MAX {
            let extension_len = match view.protocol {
                HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HIP | SHIM6 => {
                    (usize::from(*view.payload.get(1)?) + 1) * 8
                }
                AUTHENTICATION => (usize::from(*view.payload.get(1)?) + 2) * 4,
                FRAGMENT => {
                    let (fragment, _) = view.payload.split_first_chunk::<8>()?;
                    let later = u16_at(fragment, 2) & 0xfff8 != 0;
                    view.fragment =
                        if later || view.fragment == Fragment::Later { Fragment::Later } else { Fragment::First };
                    8
                }
                _ => return Some(view),
            };
            view.protocol = *view.payload.first()?;
            view.payload = view.payload.get(extension_len..)?;
            if view.fragment == Fragment::Later {
                return Some(view);
            }
        }
        None
    }

    pub fn src(&self) -> Ipv6Addr {
        ipv6_at(self.header, 8)
    }

    pub fn dst(&self) -> Ipv6Addr {
        ipv6_at(self.header, 24)
    }

    pub fn hop_limit(&self) -> u8 {
        self.header[7]
    }

    /// The protocol behind the extension headers; of a later fragment, what the fragment header names.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    pub fn fragment(&self) -> Fragment {
        self.fragment
    }

    /// What follows the extension headers, without padding.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The ICMPv6 type; `None` if this is another protocol, a later fragment, or empty.
    pub fn icmp_type(&self) -> Option<u8> {
        if self.protocol == IP_PROTOCOL_ICMPV6 && self.fragment != Fragment::Later {
            self.payload.first().copied()
        } else {
            None
        }
    }
}

/// Source and destination port of a UDP header (RFC 768); `None` if fewer than its 8 octets are there.
pub fn udp_ports(payload: &[u8]) -> Option<(u16, u16)> {
    let (header, _) = payload.split_first_chunk::<8>()?;
    Some((u16_at(header, 0), u16_at(header, 2)))
}

/// A neighbour solicitation or advertisement, or a router solicitation (RFC 4861, 4.1, 4.3 and 4.4).
#[derive(Debug, Clone, Copy)]
pub struct NeighbourView<'a> {
    icmp: &'a [u8],
    options_at: usize,
}

impl<'a> NeighbourView<'a> {
    /// Looks at an ICMPv6 message; `None` if it is of another type, has a code, is short, or its options do not
    /// fill it exactly.
    pub fn parse(icmp: &'a [u8]) -> Option<Self> {
        let options_at = match *icmp.first()? {
            ND_NEIGHBOUR_SOLICITATION | ND_NEIGHBOUR_ADVERTISEMENT => 24,
            ND_ROUTER_SOLICITATION => 8,
            _ => return None,
        };
        if *icmp.get(1)? != 0 {
            return None;
        }
        let mut options = icmp.get(options_at..)?;
        while let [_, units, ..] = *options {
            if units == 0 {
                return None;
            }
            options = options.get(usize::from(units) * 8..)?;
        }
        options.is_empty().then_some(Self { icmp, options_at })
    }

    /// The ICMPv6 type.
    pub fn kind(&self) -> u8 {
        self.icmp[0]
    }

    /// The address asked for or announced; `None` in a router solicitation.
    pub fn target(&self) -> Option<Ipv6Addr> {
        (self.options_at == 24).then(|| ipv6_at(self.icmp, 8))
    }

    /// Every source or target link-layer address option (types 1 and 2). One of another length than an Ethernet
    /// address has is given as `None`.
    pub fn link_addresses(&self) -> impl Iterator<Item = Option<MacAddr>> + use<'a> {
        let mut options = &self.icmp[self.options_at..];
        std::iter::from_fn(move || {
            while let [kind, units, ..] = *options {
                // Lengths were checked when the view was made.
                let (option, rest) = options.split_at_checked(usize::from(units.max(1)) * 8)?;
                options = rest;
                if matches!(kind, OPTION_SOURCE_LINK | OPTION_TARGET_LINK) {
                    return Some((units == 1).then(|| mac_at(option, 2)));
                }
            }
            None
        })
    }
}

/// Writes the answer of `mac` to an ARP request into `out`, which is emptied first: the address asked for is at
/// `mac`. The tag of the request is kept. False, and nothing written, if it is no ARP request.
pub fn write_arp_reply(request: &FrameView<'_>, mac: MacAddr, out: &mut Vec<u8>) -> bool {
    let arp = match request.ethertype() {
        ETHERTYPE_ARP => ArpView::parse(request.payload()),
        _ => None,
    };
    let Some(arp) = arp.filter(|arp| arp.operation() == ArpView::REQUEST) else { return false };
    write_header(request, mac, ETHERTYPE_ARP, out);
    out.extend_from_slice(&ARP_ETHERNET_IPV4);
    out.extend_from_slice(&ArpView::REPLY.to_be_bytes());
    out.extend_from_slice(&mac.0);
    out.extend_from_slice(&arp.target_ip().octets());
    out.extend_from_slice(&arp.sender_mac().0);
    out.extend_from_slice(&arp.sender_ip().octets());
    true
}

/// Writes the answer of `mac` to a neighbour solicitation into `out`, which is emptied first: the target is at
/// `mac`; solicited, override, not a router (RFC 4861, 7.2.4). The tag of the solicitation is kept. False, and
/// nothing written, if it is no neighbour solicitation with a sender address.
pub fn write_neighbour_advert(solicitation: &FrameView<'_>, mac: MacAddr, out: &mut Vec<u8>) -> bool {
    let Some((ip, neighbour)) = parse_neighbour(solicitation) else { return false };
    let Some(target) = neighbour.target() else { return false };
    if neighbour.kind() != ND_NEIGHBOUR_SOLICITATION || ip.src().is_unspecified() || ip.src().is_multicast() {
        return false;
    }
    let mut icmp = [0; 32];
    icmp[0] = ND_NEIGHBOUR_ADVERTISEMENT;
    icmp[4] = NA_SOLICITED | NA_OVERRIDE;
    icmp[8..24].copy_from_slice(&target.octets());
    icmp[24..26].copy_from_slice(&[OPTION_TARGET_LINK, 1]);
    icmp[26..32].copy_from_slice(&mac.0);
    let checksum = icmpv6_checksum(target, ip.src(), &icmp);
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());

    write_header(solicitation, mac, ETHERTYPE_IPV6, out);
    out.extend_from_slice(&[0x60, 0, 0, 0, 0, 32, IP_PROTOCOL_ICMPV6, 255]);
    out.extend_from_slice(&target.octets());
    out.extend_from_slice(&ip.src().octets());
    out.extend_from_slice(&icmp);
    true
}

/// The neighbour discovery message of a frame with its IPv6 header; `None` if the frame carries none that a host
/// would accept: hop limit 255 (RFC 4861, 6.1 and 7.1), not fragmented (RFC 6980).
pub fn parse_neighbour<'a>(frame: &FrameView<'a>) -> Option<(Ipv6View<'a>, NeighbourView<'a>)> {
    if frame.ethertype() != ETHERTYPE_IPV6 {
        return None;
    }
    let ip = Ipv6View::parse(frame.payload())?;
    if ip.protocol() != IP_PROTOCOL_ICMPV6 || ip.fragment() != Fragment::Whole || ip.hop_limit() != 255 {
        return None;
    }
    Some((ip, NeighbourView::parse(ip.payload())?))
}

/// The checksum of an ICMPv6 message whose checksum field is zero, with its pseudo header (RFC 4443, 2.3).
pub fn icmpv6_checksum(src: Ipv6Addr, dst: Ipv6Addr, message: &[u8]) -> u16 {
    let mut addresses = [0; 32];
    addresses[..16].copy_from_slice(&src.octets());
    addresses[16..].copy_from_slice(&dst.octets());
    (checksum::pseudo_header(&addresses, IP_PROTOCOL_ICMPV6, message.len()) + checksum::sum(message)).checksum()
}

/// Starts an answer: to the sender of `request`, from `mac`, with the tag of `request`.
pub(crate) fn write_header(request: &FrameView<'_>, mac: MacAddr, ethertype: u16, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&request.src().0);
    out.extend_from_slice(&mac.0);
    out.extend_from_slice(request.tag());
    out.extend_from_slice(&ethertype.to_be_bytes());
}

// The offsets of these four were checked against the length by whoever made the view.

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn mac_at(bytes: &[u8], at: usize) -> MacAddr {
    let mut octets = [0; 6];
    octets.copy_from_slice(&bytes[at..at + 6]);
    MacAddr(octets)
}

fn ipv4_at(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

fn ipv6_at(bytes: &[u8], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    Ipv6Addr::from(octets)
}

const ARP_LEN: usize = 28;
/// Hardware type Ethernet, protocol IPv4, lengths 6 and 4.
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];

/// Longer chains are not walked. RFC 8200 section 4.1 recommends seven headers at the most, each once.
pub const EXTENSION_HEADERS_MAX: usize = 8;
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
pub const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

const OPTION_SOURCE_LINK: u8 = 1;
const OPTION_TARGET_LINK: u8 = 2;
const NA_SOLICITED: u8 = 0x40;
const NA_OVERRIDE: u8 = 0x20;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);

    #[test]
    fn headers_and_tags_parse_as_the_table_says() {
        type Found = Result<(u16, u16, usize), DropReason>;
        let table: &[(&str, Found)] = &[
            ("", Err(DropReason::Runt)),
            ("ffffffffffff 02000000000a 08", Err(DropReason::Runt)),
            ("ffffffffffff 02000000000a 0800", Ok((0, 0x0800, 0))),
            ("ffffffffffff 02000000000a 0800 45", Ok((0, 0x0800, 1))),
            ("ffffffffffff 02000000000a 8100", Err(DropReason::BadTag)),
            ("ffffffffffff 02000000000a 8100 0005 08", Err(DropReason::BadTag)),
            ("ffffffffffff 02000000000a 8100 0005 0806 aabb", Ok((5, 0x0806, 2))),
            ("ffffffffffff 02000000000a 8100 ffff 86dd", Ok((0xfff, 0x86dd, 0))),
            ("ffffffffffff 02000000000a 8100 e000 86dd", Ok((0, 0x86dd, 0))),
            ("ffffffffffff 02000000000a 8100 0005 8100 0006 0800", Err(DropReason::BadTag)),
            ("ffffffffffff 02000000000a 8100 0005 88a8 0006 0800", Err(DropReason::BadTag)),
            ("ffffffffffff 02000000000a 88a8 0005 8100 0006 0800", Err(DropReason::BadTag)),
            ("ffffffffffff 02000000000a 88a8 0005 0800", Err(DropReason::BadTag)),
            ("ffffffffffff 02000000000a 0026 4242 03", Ok((0, 0x26, 3))),
        ];
        for (text, expected) in table {
            let bytes = hex(text);
            let found = FrameView::parse(&bytes).map(|frame| {
                assert_eq!((frame.dst(), frame.src()), (MacAddr::BROADCAST, A));
                (frame.vlan().0, frame.ethertype(), frame.payload().len())
            });
            assert_eq!(found, *expected, "{text}");
        }
    }

    #[test]
    fn the_sixteen_link_local_groups_are_known() {
        for (text, expected) in [
            ("0180c2000000", true),
            ("0180c200000e", true),
            ("0180c200000f", true),
            ("0180c2000010", false),
            ("0180c2000100", false),
            ("ffffffffffff", false),
        ] {
            let bytes = hex(&format!("{text} 02000000000a 0026"));
            assert_eq!(view(&bytes).is_link_local_group(), expected, "{text}");
        }
    }

    #[test]
    fn ethertypes_wrapped_in_snap_are_seen() {
        for (text, expected) in [
            ("0008 aaaa03 000000 0806", Some(0x0806)),
            ("0008 aaaa03 0000f8 86dd", Some(0x86dd)),
            ("0008 aaaa03 00000c 2000", None),
            ("0008 424203 000000 0806", None),
            ("0007 aaaa03 000000 08", None),
            ("0800 aaaa03 000000 0806", None),
        ] {
            let bytes = hex(&format!("ffffffffffff 02000000000a {text}"));
            assert_eq!(view(&bytes).snap_ethertype(), expected, "{text}");
        }
    }

    #[test]
    fn arp_of_other_hardware_or_cut_short_is_no_arp() {
        let good = "0001 0800 06 04 0001 02000000000a c0a82b01 000000000000 c0a82b02";
        let bytes = hex(good);
        let arp = ArpView::parse(&bytes).expect("arp");
        assert_eq!(arp.operation(), ArpView::REQUEST);
        assert_eq!((arp.sender_mac(), arp.sender_ip()), (A, Ipv4Addr::new(192, 168, 43, 1)));
        assert_eq!((arp.target_mac(), arp.target_ip()), (MacAddr([0; 6]), Ipv4Addr::new(192, 168, 43, 2)));
        assert!(!arp.is_probe() && !arp.is_announcement());
        assert!(ArpView::parse(&bytes[..27]).is_none());
        for at in 0..6 {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert!(ArpView::parse(&other).is_none());
        }
    }

    #[test]
    fn ipv4_headers_parse_as_the_table_says() {
        let addresses = "c0a82b01 c0a82b02";
        let table: &[(&str, Option<(Fragment, usize)>)] = &[
            (&format!("45000014 00000000 4011 0000 {addresses}"), Some((Fragment::Whole, 0))),
            (&format!("45000016 00004000 4011 0000 {addresses} aabb 000000"), Some((Fragment::Whole, 2))),
            (&format!("45000015 00002000 4011 0000 {addresses} aa"), Some((Fragment::First, 1))),
            (&format!("45000015 00002001 4011 0000 {addresses} aa"), Some((Fragment::Later, 1))),
            (&format!("45000015 00000001 4011 0000 {addresses} aa"), Some((Fragment::Later, 1))),
            (&format!("46000019 00000000 4011 0000 {addresses} 01010101 aa"), Some((Fragment::Whole, 1))),
            (&format!("46000014 00000000 4011 0000 {addresses}"), None),
            (&format!("44000014 00000000 4011 0000 {addresses}"), None),
            (&format!("65000014 00000000 4011 0000 {addresses}"), None),
            (&format!("45000013 00000000 4011 0000 {addresses}"), None),
            (&format!("45000015 00000000 4011 0000 {addresses}"), None),
            ("45000014 00000000 4011 0000 c0a82b01 c0a82b", None),
        ];
        for (text, expected) in table {
            let bytes = hex(text);
            let found = Ipv4View::parse(&bytes).map(|ip| {
                assert_eq!((ip.protocol(), ip.src().octets()[3], ip.dst().octets()[3]), (IP_PROTOCOL_UDP, 1, 2));
                (ip.fragment(), ip.payload().len())
            });
            assert_eq!(found, *expected, "{text}");
        }
    }

    #[test]
    fn ipv6_extension_headers_lead_to_the_protocol() {
        type Found = Option<(u8, Fragment, usize)>;
        let table: &[(u8, &str, Found)] = &[
            (58, "87", Some((58, Fragment::Whole, 1))),
            (58, "", Some((58, Fragment::Whole, 0))),
            (59, "", Some((59, Fragment::Whole, 0))),
            (0, "3a00 000000000000 86", Some((58, Fragment::Whole, 1))),
            (43, "3c00 000000000000 3a00 000000000000 86", Some((58, Fragment::Whole, 1))),
            (60, "1101 000000000000 0000000000000000 0223", Some((17, Fragment::Whole, 2))),
            (51, "3a04 0000 00000000 00000000 000000000000000000000000 86", Some((58, Fragment::Whole, 1))),
            (44, "3a00 0001 00000000 86", Some((58, Fragment::First, 1))),
            (44, "3a00 0000 00000000 86", Some((58, Fragment::First, 1))),
            (44, "3a00 0009 00000000 86", Some((58, Fragment::Later, 1))),
            (44, "3c00 0009 00000000 86", Some((60, Fragment::Later, 1))),
            (44, "3c00 0001 00000000 3a00 000000000000 86", Some((58, Fragment::First, 1))),
            (0, "3a01 000000000000 86", None),
            (0, "3a", None),
            (0, "", None),
            (44, "3a00 0001 0000", None),
        ];
        for (next, text, expected) in table {
            let bytes = ipv6(*next, 255, "fe80::1", "ff02::1", &hex(text));
            let found = Ipv6View::parse(&bytes).map(|ip| (ip.protocol(), ip.fragment(), ip.payload().len()));
            assert_eq!(found, *expected, "{next} {text}");
        }
        let chain = |count| {
            ipv6(
                60,
                255,
                "fe80::1",
                "ff02::1",
                &[hex("3c00000000000000").repeat(count), hex("3a00000000000000")].concat(),
            )
        };
        assert_eq!(Ipv6View::parse(&chain(7)).map(|ip| ip.protocol()), Some(58));
        assert!(Ipv6View::parse(&chain(8)).is_none());
        let mut short = ipv6(58, 255, "fe80::1", "ff02::1", &[0x86]);
        short.pop();
        assert!(Ipv6View::parse(&short).is_none());
        let mut padded = ipv6(58, 255, "fe80::1", "ff02::1", &[0x86]);
        padded.extend([0; 20]);
        assert_eq!(Ipv6View::parse(&padded).map(|ip| ip.payload().len()), Some(1));
    }

    #[test]
    fn neighbour_messages_parse_as_the_table_says() {
        let target = "fd000000000000000000000000000002";
        let table: &[(&str, Option<Vec<Option<MacAddr>>>)] = &[
            (&format!("87000000 00000000 {target}"), Some(vec![])),
            (&format!("87000000 00000000 {target} 0101 02000000000a"), Some(vec![Some(A)])),
            (&format!("88000000 60000000 {target} 0201 02000000000b"), Some(vec![Some(B)])),
            (&format!("88000000 60000000 {target} 0e01 000000000000 0201 02000000000b"), Some(vec![Some(B)])),
            (&format!("88000000 60000000 {target} 0202 02000000000b 0000000000000000"), Some(vec![None])),
            ("85000000 00000000 0101 02000000000a", Some(vec![Some(A)])),
            (&format!("87010000 00000000 {target}"), None),
            (&format!("87000000 00000000 {target} 01"), None),
            (&format!("87000000 00000000 {target} 0100 02000000000a"), None),
            (&format!("87000000 00000000 {target} 0102 02000000000a"), None),
            ("87000000 00000000 fd00", None),
            ("86000000 00000000", None),
            ("", None),
        ];
        for (text, expected) in table {
            let bytes = hex(text);
            let found = NeighbourView::parse(&bytes).map(|neighbour| neighbour.link_addresses().collect::<Vec<_>>());
            assert_eq!(found, *expected, "{text}");
        }
    }

    #[test]
    fn an_arp_reply_answers_for_the_member_and_keeps_the_tag() {
        let mut out = vec![1, 2, 3];
        for (tag, vlan) in [("", 0), ("8100 2007", 7)] {
            let request = hex(&format!(
                "ffffffffffff 02000000000a {tag} 0806 0001080006040001 02000000000a c0a82b01 000000000000 c0a82b02"
            ));
            assert!(write_arp_reply(&view(&request), B, &mut out));
            let expected = hex(&format!(
                "02000000000a 02000000000b {tag} 0806 0001080006040002 02000000000b c0a82b02 02000000000a c0a82b01"
            ));
            assert_eq!(out, expected);
            assert_eq!(view(&out).vlan(), VlanId(vlan));
            assert!(!write_arp_reply(&view(&expected), B, &mut out), "a reply is not answered");
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn a_neighbour_advertisement_answers_for_the_member_with_a_right_checksum() {
        let mut out = Vec::new();
        let icmp = hex("87000000 00000000 fd000000000000000000000000000002 0101 02000000000a");
        let mut request = hex("3333ff000002 02000000000a 86dd");
        request.extend(ipv6(58, 255, "fd00::1", "ff02::1:ff00:2", &icmp));
        assert!(write_neighbour_advert(&view(&request), B, &mut out));
        let frame = view(&out);
        assert_eq!((frame.dst(), frame.src()), (A, B));
        let (ip, neighbour) = parse_neighbour(&frame).expect("an advertisement");
        assert_eq!((ip.src(), ip.dst()), ("fd00::2".parse().expect("ip"), "fd00::1".parse().expect("ip")));
        assert_eq!(neighbour.target(), Some(ip.src()));
        assert_eq!(neighbour.link_addresses().collect::<Vec<_>>(), [Some(B)]);
        // A message that holds its own checksum sums to zero.
        assert_eq!(icmpv6_checksum(ip.src(), ip.dst(), ip.payload()), 0);
        assert_eq!(ip.payload()[..8], hex("8800 1c91 60000000")[..]);

        for (hop_limit, src) in [(254, "fd00::1"), (255, "::")] {
            let mut request = hex("3333ff000002 02000000000a 86dd");
            request.extend(ipv6(58, hop_limit, src, "ff02::1:ff00:2", &icmp));
            assert!(!write_neighbour_advert(&view(&request), B, &mut out), "{hop_limit} {src}");
        }
    }

    #[test]
    fn arbitrary_bytes_are_looked_at_without_a_panic() {
        use rand::rngs::StdRng;
        use rand::{Rng, RngExt, SeedableRng};
        let mut rng = StdRng::seed_from_u64(86);
        let mut out = Vec::new();
        for _ in 0..200_000 {
            let mut bytes = vec![0; rng.random_range(0..120)];
            rng.fill_bytes(&mut bytes);
            if bytes.len() > 60 {
                let ethertype: [u8; 2] = [[8, 0], [8, 6], [0x86, 0xdd], [0x81, 0]][rng.random_range(0..4)];
                bytes[12..14].copy_from_slice(&ethertype);
                if ethertype == [0x86, 0xdd] {
                    bytes[14] = 0x60;
                    bytes[18] = 0;
                    bytes[19] %= 64;
                    bytes[20] = [0, 43, 44, 51, 58, 60][rng.random_range(0..6)];
                    bytes[21] = 255;
                    bytes[54] = rng.random_range(132..138);
                }
            }
            let Ok(frame) = FrameView::parse(&bytes) else { continue };
            let _ = (frame.vlan(), frame.snap_ethertype(), ArpView::parse(frame.payload()).map(|arp| arp.target_ip()));
            let _ = Ipv4View::parse(frame.payload()).map(|ip| (ip.fragment(), udp_ports(ip.payload())));
            if let Some((_, neighbour)) = parse_neighbour(&frame) {
                let _ = (neighbour.target(), neighbour.link_addresses().count());
            }
            write_arp_reply(&frame, B, &mut out);
            write_neighbour_advert(&frame, B, &mut out);
        }
    }

    pub(crate) fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ascii"), 16).expect("pairs of hex digits"))
            .collect()
    }

    pub(crate) fn view(bytes: &[u8]) -> FrameView<'_> {
        FrameView::parse(bytes).expect("a frame")
    }

    /// An IPv6 packet with `next` as next header.
    pub(crate) fn ipv6(next: u8, hop_limit: u8, src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        packet.extend_from_slice(&[next, hop_limit]);
        packet.extend_from_slice(&src.parse::<Ipv6Addr>().expect("an address").octets());
        packet.extend_from_slice(&dst.parse::<Ipv6Addr>().expect("an address").octets());
        packet.extend_from_slice(payload);
        packet
    }
}
