//! What the receiver of a frame checks against the signed facts about its sender.
//!
//! A hostile member writes its own sending side, so only these checks defend the others; those in
//! [`forward::egress`](super::forward::egress) are a help against honest mistakes. The facts come out of the
//! sender's certificate and need no server to be believed.
//!
//! What cannot be understood and might be one of the guarded protocols is dropped too: a frame that says IPv6 and
//! does not parse would otherwise be a way around the check.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::counters::DropReason;
use crate::ids::MacAddr;
use crate::wire::ethernet::{
    ArpView, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, Fragment,
    FrameView, IP_PROTOCOL_ICMP, IP_PROTOCOL_ICMPV6, IP_PROTOCOL_UDP, Ipv4View, Ipv6View, ND_NEIGHBOUR_ADVERTISEMENT,
    ND_NEIGHBOUR_SOLICITATION, ND_REDIRECT, ND_ROUTER_ADVERTISEMENT, ND_ROUTER_SOLICITATION, NeighbourView, udp_ports,
};

/// What a certificate says about its owner, as far as frames are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    pub mac: MacAddr,
    /// The leased address; without one the peer announces none.
    pub ip4: Option<Ipv4Addr>,
    pub ip6: Option<Ipv6Addr>,
    pub rights: Rights,
}

/// Rights bits of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights(pub u8);

impl Rights {
    pub const BRIDGE: u8 = 1;
    pub const DHCP_SERVER: u8 = 2;
    pub const ROUTER: u8 = 4;
    pub const RELAY: u8 = 8;
    pub const NO_FLOOD: u8 = 16;

    /// May send frames of stations behind it, with their MACs and addresses.
    pub fn is_bridge(self) -> bool {
        self.has(Self::BRIDGE)
    }

    /// May answer DHCP and DHCPv6.
    pub fn is_dhcp_server(self) -> bool {
        self.has(Self::DHCP_SERVER)
    }

    /// May send router advertisements and redirects.
    pub fn is_router(self) -> bool {
        self.has(Self::ROUTER)
    }

    /// May relay for others; reserved, since only the server relays.
    pub fn is_relay(self) -> bool {
        self.has(Self::RELAY)
    }

    /// Is left out when frames are flooded.
    pub fn is_no_flood(self) -> bool {
        self.has(Self::NO_FLOOD)
    }

    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

/// Checks a frame that came from the peer with these credentials. Hot: once per received frame.
///
/// # Errors
/// The reason to drop it: `SourceSpoofed`, `LinkLocalGroup`, `AddressSpoofed`, `NoRight` or `Malformed`.
pub fn check(frame: &FrameView<'_>, creds: &PeerCredentials) -> Result<(), DropReason> {
    let src = frame.src();
    if src.is_group() || src == MacAddr([0; 6]) {
        return Err(DropReason::SourceSpoofed);
    }
    if !creds.rights.is_bridge() {
        if src != creds.mac {
            return Err(DropReason::SourceSpoofed);
        }
        if frame.is_link_local_group() {
            return Err(DropReason::LinkLocalGroup);
        }
    }
    match frame.ethertype() {
        ETHERTYPE_IPV4 => check_ipv4(frame.payload(), creds),
        ETHERTYPE_IPV6 => check_ipv6(frame.payload(), creds),
        ETHERTYPE_ARP if !creds.rights.is_bridge() => check_arp(frame.payload(), creds),
        _ => match frame.snap_ethertype() {
            // Some hosts unwrap these, and nobody has sent them in earnest for decades.
            Some(ETHERTYPE_ARP | ETHERTYPE_IPV4 | ETHERTYPE_IPV6 | ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN) => {
                Err(DropReason::Malformed)
            }
            Some(_) | None => Ok(()),
        },
    }
}

/// Checks that a frame announces no address leased to somebody else. [`check`] has done that for members that are
/// no bridges; a bridge may announce the addresses of its stations, but these are not leased. `owner` is the
/// station an address is leased to.
///
/// # Errors
/// `AddressSpoofed`.
pub fn check_leases(
    frame: &FrameView<'_>,
    creds: &PeerCredentials,
    owner: &dyn Fn(IpAddr) -> Option<MacAddr>,
) -> Result<(), DropReason> {
    if !creds.rights.is_bridge() {
        return Ok(());
    }
    let [first, second] = announced(frame);
    let foreign = |ip: IpAddr| owner(ip).is_some_and(|mac| mac != creds.mac);
    if [first, second].into_iter().flatten().any(foreign) { Err(DropReason::AddressSpoofed) } else { Ok(()) }
}

/// A token bucket for frames to groups from one peer: 200 a second, 400 at once. ARP and neighbour discovery have
/// a bucket of their own of the same size, so that a storm of other frames does not cut a peer off.
#[derive(Debug, Clone)]
pub struct StormBudget {
    neighbour: Bucket,
    other: Bucket,
    /// What a frame costs.
    cost: Duration,
}

impl StormBudget {
    /// Makes a full budget.
    pub fn new(now: Instant) -> Self {
        let full = Bucket { credit: BURST_CREDIT, at: now };
        Self { neighbour: full, other: full, cost: FRAME_COST }
    }

    /// One of half the size: 100 frames a second, 200 at once.
    pub fn halved(now: Instant) -> Self {
        Self { cost: 2 * FRAME_COST, ..Self::new(now) }
    }

    /// Whether the frame is within the budget, which it then uses up. Unicast always is.
    pub fn admit(&mut self, frame: &FrameView<'_>, now: Instant) -> bool {
        !frame.dst().is_group() || self.admit_to_many(frame, now)
    }

    /// As [`StormBudget::admit`], of a frame that goes to many whatever its destination is.
    pub fn admit_to_many(&mut self, frame: &FrameView<'_>, now: Instant) -> bool {
        let bucket = if is_neighbour_traffic(frame) { &mut self.neighbour } else { &mut self.other };
        bucket.take(self.cost, now)
    }
}

/// ARP or IPv6 neighbour discovery.
pub fn is_neighbour_traffic(frame: &FrameView<'_>) -> bool {
    match frame.ethertype() {
        ETHERTYPE_ARP => true,
        ETHERTYPE_IPV6 => Ipv6View::parse(frame.payload())
            .and_then(|ip| ip.icmp_type())
            .is_some_and(|kind| (ND_ROUTER_SOLICITATION..=ND_REDIRECT).contains(&kind)),
        _ => false,
    }
}

/// For members that are no bridges: an ARP message speaks for its sender only.
fn check_arp(payload: &[u8], creds: &PeerCredentials) -> Result<(), DropReason> {
    let arp = ArpView::parse(payload).ok_or(DropReason::Malformed)?;
    let probe = arp.is_probe() && arp.operation() == ArpView::REQUEST;
    if arp.sender_mac() == creds.mac && (probe || creds.ip4 == Some(arp.sender_ip())) {
        Ok(())
    } else {
        Err(DropReason::AddressSpoofed)
    }
}

fn check_ipv4(payload: &[u8], creds: &PeerCredentials) -> Result<(), DropReason> {
    let ip = Ipv4View::parse(payload).ok_or(DropReason::Malformed)?;
    // A later fragment is of no use without the first, and that one is checked.
    if ip.fragment() == Fragment::Later {
        return Ok(());
    }
    match ip.protocol() {
        IP_PROTOCOL_UDP => check_dhcp(ip.payload(), [DHCP_SERVER_PORT, DHCP_CLIENT_PORT], creds),
        IP_PROTOCOL_ICMP => match ip.payload().first() {
            None => Err(DropReason::Malformed),
            Some(&(ICMP_REDIRECT | ICMP_ROUTER_ADVERTISEMENT)) => need(creds.rights.is_router()),
            Some(_) => Ok(()),
        },
        _ => Ok(()),
    }
}

fn check_ipv6(payload: &[u8], creds: &PeerCredentials) -> Result<(), DropReason> {
    let ip = Ipv6View::parse(payload).ok_or(DropReason::Malformed)?;
    if ip.fragment() == Fragment::Later {
        return Ok(());
    }
    match ip.protocol() {
        IP_PROTOCOL_UDP => check_dhcp(ip.payload(), [DHCPV6_SERVER_PORT, DHCPV6_CLIENT_PORT], creds),
        IP_PROTOCOL_ICMPV6 => match ip.icmp_type() {
            None => Err(DropReason::Malformed),
            Some(ND_ROUTER_ADVERTISEMENT | ND_REDIRECT) => need(creds.rights.is_router()),
            Some(ND_NEIGHBOUR_SOLICITATION | ND_NEIGHBOUR_ADVERTISEMENT | ND_ROUTER_SOLICITATION)
                if !creds.rights.is_bridge() =>
            {
                check_neighbour(&ip, creds)
            }
            Some(_) => Ok(()),
        },
        _ => Ok(()),
    }
}

/// From the server's port, or to the client's: clients take an answer from any port, and only servers send to them.
fn check_dhcp(datagram: &[u8], [server, client]: [u16; 2], creds: &PeerCredentials) -> Result<(), DropReason> {
    let (src, dst) = udp_ports(datagram).ok_or(DropReason::Malformed)?;
    if src == server || dst == client { need(creds.rights.is_dhcp_server()) } else { Ok(()) }
}

/// For members that are no bridges: neighbour discovery speaks for its sender only. Hosts ignore it in fragments
/// (RFC 6980), and so it is not let through in any.
fn check_neighbour(ip: &Ipv6View<'_>, creds: &PeerCredentials) -> Result<(), DropReason> {
    if ip.fragment() != Fragment::Whole {
        return Err(DropReason::Malformed);
    }
    let neighbour = NeighbourView::parse(ip.payload()).ok_or(DropReason::Malformed)?;
    let owned = |address: Ipv6Addr| creds.ip6 == Some(address) || address.is_unicast_link_local();
    let source = owned(ip.src())
        || ip.src().is_unspecified() && matches!(neighbour.kind(), ND_NEIGHBOUR_SOLICITATION | ND_ROUTER_SOLICITATION);
    let target = neighbour.kind() != ND_NEIGHBOUR_ADVERTISEMENT || neighbour.target().is_some_and(owned);
    let link = neighbour.link_addresses().all(|mac| mac == Some(creds.mac));
    if source && target && link { Ok(()) } else { Err(DropReason::AddressSpoofed) }
}

/// The addresses a frame says are at its sender.
fn announced(frame: &FrameView<'_>) -> [Option<IpAddr>; 2] {
    match frame.ethertype() {
        ETHERTYPE_ARP => [ArpView::parse(frame.payload()).map(|arp| arp.sender_ip().into()), None],
        ETHERTYPE_IPV6 => {
            let Some(ip) = Ipv6View::parse(frame.payload()).filter(|ip| ip.fragment() != Fragment::Later) else {
                return [None, None];
            };
            match ip.icmp_type() {
                Some(ND_NEIGHBOUR_ADVERTISEMENT) => {
                    let target = NeighbourView::parse(ip.payload()).and_then(|neighbour| neighbour.target());
                    [Some(ip.src().into()), target.map(IpAddr::from)]
                }
                Some(ND_NEIGHBOUR_SOLICITATION | ND_ROUTER_SOLICITATION) => [Some(ip.src().into()), None],
                Some(_) | None => [None, None],
            }
        }
        _ => [None, None],
    }
}

fn need(right: bool) -> Result<(), DropReason> {
    if right { Ok(()) } else { Err(DropReason::NoRight) }
}

/// Credit is time: a frame costs what it takes to earn it back.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    credit: Duration,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, cost: Duration, now: Instant) -> bool {
        self.credit = (self.credit + now.saturating_duration_since(self.at)).min(BURST_CREDIT);
        self.at = self.at.max(now);
        match self.credit.checked_sub(cost) {
            Some(rest) => {
                self.credit = rest;
                true
            }
            None => false,
        }
    }
}

/// 200 frames a second: an office network's ARP, mDNS and the like are well below 50 per host.
const FRAME_COST: Duration = Duration::from_millis(5);
/// 400 frames.
const BURST_CREDIT: Duration = Duration::from_millis(5 * 400);

const DHCP_SERVER_PORT: u16 = 67;
const DHCP_CLIENT_PORT: u16 = 68;
const DHCPV6_CLIENT_PORT: u16 = 546;
const DHCPV6_SERVER_PORT: u16 = 547;
const ICMP_REDIRECT: u8 = 5;
/// RFC 1256.
const ICMP_ROUTER_ADVERTISEMENT: u8 = 9;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ethernet::tests::{hex, ipv6, view};

    use DropReason::{AddressSpoofed, LinkLocalGroup, Malformed, NoRight, SourceSpoofed};

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);

    #[test]
    fn the_source_is_the_certificates_unless_the_sender_is_a_bridge() {
        for (frame, member, bridge) in [
            ("ffffffffffff 02000000000a 9999", Ok(()), Ok(())),
            ("ffffffffffff 02000000000b 9999", Err(SourceSpoofed), Ok(())),
            ("ffffffffffff 03000000000a 9999", Err(SourceSpoofed), Err(SourceSpoofed)),
            ("ffffffffffff ffffffffffff 9999", Err(SourceSpoofed), Err(SourceSpoofed)),
            ("ffffffffffff 000000000000 9999", Err(SourceSpoofed), Err(SourceSpoofed)),
            ("0180c2000000 02000000000a 0026 424203", Err(LinkLocalGroup), Ok(())),
            ("0180c2000001 02000000000a 8808", Err(LinkLocalGroup), Ok(())),
            ("0180c200000e 02000000000a 88cc", Err(LinkLocalGroup), Ok(())),
            ("ffffffffffff 02000000000a 0024 aaaa03000000 86dd", Err(Malformed), Err(Malformed)),
            ("01000ccccccc 02000000000a 0024 aaaa0300000c 2000", Ok(()), Ok(())),
        ] {
            expect(&hex(frame), 0, member, frame);
            expect(&hex(frame), Rights::BRIDGE, bridge, frame);
        }
    }

    #[test]
    fn arp_speaks_for_its_sender_only() {
        for (arp, member) in [
            ("0001080006040001 02000000000a c0a82b01 000000000000 c0a82b02", Ok(())),
            ("0001080006040001 02000000000a c0a82b01 000000000000 c0a82b01", Ok(())),
            ("0001080006040002 02000000000a c0a82b01 02000000000b c0a82b02", Ok(())),
            ("0001080006040001 02000000000a 00000000 000000000000 c0a82b02", Ok(())),
            ("0001080006040002 02000000000a 00000000 000000000000 c0a82b02", Err(AddressSpoofed)),
            ("0001080006040001 02000000000a c0a82b02 000000000000 c0a82b03", Err(AddressSpoofed)),
            ("0001080006040002 02000000000a c0a82bfe 02000000000b c0a82b02", Err(AddressSpoofed)),
            ("0001080006040001 02000000000b c0a82b01 000000000000 c0a82b02", Err(AddressSpoofed)),
            ("0001080006040001 02000000000a c0a82b01 000000000000 c0a8", Err(Malformed)),
            ("0006080006040001 02000000000a c0a82b01 000000000000 c0a82b02", Err(Malformed)),
        ] {
            for tag in ["", "8100 0005"] {
                let frame = hex(&format!("ffffffffffff 02000000000a {tag} 0806 {arp}"));
                expect(&frame, 0, member, arp);
                expect(&frame, Rights::BRIDGE, Ok(()), arp);
            }
        }
        let frame = hex("ffffffffffff 02000000000a 0806 0001080006040001 02000000000a c0a82b01 000000000000 c0a82b02");
        let unleased = PeerCredentials { ip4: None, ..creds(0) };
        assert_eq!(check(&view(&frame), &unleased), Err(AddressSpoofed));
    }

    #[test]
    fn a_bridge_announces_no_leased_address_but_its_own() {
        let owner = |ip: IpAddr| match ip.to_string().as_str() {
            "192.168.43.1" | "fd00::1" => Some(A),
            "192.168.43.2" | "fd00::2" => Some(MacAddr([2, 0, 0, 0, 0, 0xb])),
            _ => None,
        };
        let check = |frame: &[u8]| check_leases(&view(frame), &creds(Rights::BRIDGE), &owner);
        for (last, expected) in [(1, Ok(())), (2, Err(AddressSpoofed)), (3, Ok(()))] {
            let arp = hex(&format!(
                "ffffffffffff 020000000099 0806 0001080006040001 020000000099 c0a82b{last:02x} 000000000000 c0a82b09"
            ));
            assert_eq!(check(&arp), expected);
            let target = format!("fd00::{last}");
            let solicitation = nd(&target, &format!("87000000 00000000 {:032x}", 9));
            assert_eq!(check(&solicitation), expected);
            let advertisement = nd("fe80::1", &format!("88000000 60000000 fd00{:028x}", last));
            assert_eq!(check(&advertisement), expected);
        }
    }

    #[test]
    fn dhcp_and_routing_need_their_right() {
        for (protocol, data, right) in [
            (17, "0043 0044 0008 0000", Some(Rights::DHCP_SERVER)),
            (17, "0043 0043 0008 0000", Some(Rights::DHCP_SERVER)),
            (17, "1234 0044 0008 0000", Some(Rights::DHCP_SERVER)),
            (17, "0044 0043 0008 0000", None),
            (17, "0223 0222 0008 0000", None),
            (1, "0500 0000", Some(Rights::ROUTER)),
            (1, "0900 0000", Some(Rights::ROUTER)),
            (1, "0800 0000", None),
            (6, "0043 0044", None),
        ] {
            for (flags, later) in [("0000", false), ("2000", false), ("0001", true)] {
                let frame = ipv4_frame(protocol, flags, data);
                let expected = if right.is_some() && !later { Err(NoRight) } else { Ok(()) };
                expect(&frame, 0, expected, data);
                expect(&frame, Rights::BRIDGE, expected, data);
                expect(&frame, right.unwrap_or(0), Ok(()), data);
            }
        }
        for (next, data, right) in [
            (17, "0223 0222 0008 0000", Some(Rights::DHCP_SERVER)),
            (17, "1234 0222 0008 0000", Some(Rights::DHCP_SERVER)),
            (17, "0222 0223 0008 0000", None),
            (58, "8600 0000 00000000", Some(Rights::ROUTER)),
            (58, "8900 0000 00000000", Some(Rights::ROUTER)),
            (58, "8000 0000 00000000", None),
            (58, "8f00 0000 00000000", None),
        ] {
            for extension in ["", "00", "2c"] {
                let packet = match extension {
                    "" => ipv6(next, 255, "fe80::a", "ff02::1", &hex(data)),
                    "00" => ipv6(0, 255, "fe80::a", "ff02::1", &hex(&format!("{next:02x}00 000000000000 {data}"))),
                    _ => ipv6(44, 255, "fe80::a", "ff02::1", &hex(&format!("{next:02x}00 0001 00000000 {data}"))),
                };
                let frame = [hex("333300000001 02000000000a 86dd"), packet].concat();
                expect(&frame, 0, right.map_or(Ok(()), |_| Err(NoRight)), data);
                expect(&frame, Rights::BRIDGE, right.map_or(Ok(()), |_| Err(NoRight)), data);
                expect(&frame, right.unwrap_or(0), Ok(()), data);
            }
        }
    }

    #[test]
    fn what_hides_its_headers_is_dropped() {
        for (frame, what) in [
            (ipv4_frame(17, "2000", "0043 0044 0008 00"), "a UDP header cut short"),
            (ipv4_frame(1, "0000", ""), "empty ICMP"),
            (hex("ffffffffffff 02000000000a 0800 65"), "no IPv4"),
            (hex("ffffffffffff 02000000000a 86dd 60"), "no IPv6"),
            (nd_with(44, "fe80::a", "3a00 0001 00000000"), "empty ICMPv6"),
            (nd_with(0, "fe80::a", "3a20 000000000000 86"), "an extension header longer than the packet"),
            (nd_with(44, "fd00::1", &format!("3a00 0001 00000000 87000000 00000000 {:032x}", 9)), "ND in a fragment"),
            (nd("fd00::1", "87000000 00000000 fd00"), "ND cut short"),
        ] {
            expect(&frame, 0, Err(Malformed), what);
        }
    }

    #[test]
    fn neighbour_discovery_speaks_for_its_sender_only() {
        let own = "fd000000000000000000000000000001";
        let other = "fd000000000000000000000000000002";
        let link = "fe80000000000000000000000000000a";
        let (mine, theirs) = ("01 02000000000a", "01 02000000000b");
        for (src, icmp, member) in [
            ("fd00::1", format!("87000000 00000000 {other} 01{mine}"), Ok(())),
            ("fe80::a", format!("87000000 00000000 {other} 01{mine}"), Ok(())),
            ("::", format!("87000000 00000000 {own}"), Ok(())),
            ("fd00::2", format!("87000000 00000000 {own} 01{mine}"), Err(AddressSpoofed)),
            ("fd00::1", format!("87000000 00000000 {other} 01{theirs}"), Err(AddressSpoofed)),
            ("fd00::1", format!("88000000 60000000 {own} 02{mine}"), Ok(())),
            ("fe80::a", format!("88000000 60000000 {link} 02{mine}"), Ok(())),
            ("fd00::1", format!("88000000 60000000 {own}"), Ok(())),
            ("fd00::1", format!("88000000 60000000 {other} 02{mine}"), Err(AddressSpoofed)),
            ("fd00::1", format!("88000000 60000000 {own} 02{theirs}"), Err(AddressSpoofed)),
            ("fd00::2", format!("88000000 60000000 {own} 02{mine}"), Err(AddressSpoofed)),
            ("::", format!("88000000 60000000 {own} 02{mine}"), Err(AddressSpoofed)),
            ("::", "85000000 00000000".to_owned(), Ok(())),
            ("fe80::a", format!("85000000 00000000 01{mine}"), Ok(())),
            ("fe80::a", format!("85000000 00000000 01{theirs}"), Err(AddressSpoofed)),
            ("fd00::2", format!("85000000 00000000 01{mine}"), Err(AddressSpoofed)),
        ] {
            let frame = nd(src, &icmp);
            expect(&frame, 0, member, &icmp);
            expect(&frame, Rights::BRIDGE, Ok(()), &icmp);
        }
    }

    #[test]
    fn a_storm_is_cut_to_two_hundred_a_second_and_neighbours_still_speak() {
        let broadcast = hex("ffffffffffff 02000000000a 9999");
        let arp = hex("ffffffffffff 02000000000a 0806");
        let solicitation = nd("fd00::1", &format!("87000000 00000000 {:032x}", 9));
        let unicast = hex("02000000000b 02000000000a 9999");
        let start = Instant::now();
        let mut budget = StormBudget::new(start);
        assert_eq!((0..10_000).filter(|_| budget.admit(&view(&broadcast), start)).count(), 400);
        assert!(budget.admit(&view(&unicast), start));
        assert_eq!((0..100).filter(|_| budget.admit(&view(&arp), start)).count(), 100);
        assert_eq!((0..1_000).filter(|_| budget.admit(&view(&solicitation), start)).count(), 300);

        let sent = (0..100_000u32).map(|step| start + Duration::from_micros(100) * step);
        assert_eq!(sent.filter(|now| budget.admit(&view(&broadcast), *now)).count(), 1_999);
        let rested = start + Duration::from_secs(3_600);
        assert_eq!((0..10_000).filter(|_| budget.admit(&view(&broadcast), rested)).count(), 400);
    }

    #[test]
    fn arbitrary_frames_are_checked_without_a_panic() {
        use rand::rngs::StdRng;
        use rand::{Rng, RngExt, SeedableRng};
        let mut rng = StdRng::seed_from_u64(7);
        let seeds = [
            nd("fd00::1", &format!("87000000 00000000 {:032x} 0101 02000000000a", 9)),
            nd_with(44, "fd00::1", "3c00 0001 00000000 3a00 000000000000 8600000000000000"),
            ipv4_frame(17, "0000", "0044 0043 0008 0000"),
            hex("ffffffffffff 02000000000a 0806 0001080006040001 02000000000a c0a82b01 000000000000 c0a82b02"),
        ];
        for round in 0..200_000 {
            let mut frame = seeds[round % seeds.len()].clone();
            for _ in 0..rng.random_range(0..4) {
                let at = rng.random_range(12..frame.len());
                frame[at] = rng.next_u32() as u8;
            }
            frame.truncate(rng.random_range(14..=frame.len()));
            let Ok(frame) = FrameView::parse(&frame) else { continue };
            for rights in [0, Rights::BRIDGE, 0xff] {
                let _ = check(&frame, &creds(rights));
                let _ = check_leases(&frame, &creds(rights), &|_| None);
            }
        }
    }

    fn expect(frame: &[u8], rights: u8, expected: Result<(), DropReason>, what: &str) {
        assert_eq!(check(&view(frame), &creds(rights)), expected, "rights {rights}: {what}");
    }

    fn creds(rights: u8) -> PeerCredentials {
        PeerCredentials {
            mac: A,
            ip4: Some(Ipv4Addr::new(192, 168, 43, 1)),
            ip6: Some("fd00::1".parse().expect("an address")),
            rights: Rights(rights),
        }
    }

    fn ipv4_frame(protocol: u8, flags: &str, data: &str) -> Vec<u8> {
        let data = hex(data);
        let header = format!(
            "02000000000b 02000000000a 0800 4500 {:04x} 0000 {flags} 40{protocol:02x} 0000 c0a82b01 c0a82b02",
            20 + data.len()
        );
        [hex(&header), data].concat()
    }

    fn nd(src: &str, icmp: &str) -> Vec<u8> {
        nd_with(58, src, icmp)
    }

    fn nd_with(next: u8, src: &str, payload: &str) -> Vec<u8> {
        [hex("333300000001 02000000000a 86dd"), ipv6(next, 255, src, "ff02::1", &hex(payload))].concat()
    }
}
