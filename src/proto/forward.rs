//! Where a frame goes: from the TAP to peers, from a peer to the TAP, or nowhere and why.
//!
//! Split horizon is built in: a frame from a peer can only go to the TAP, for [`Ingress`] has no word for another
//! peer. Every member is joined to every other directly, so forwarding from mesh to mesh would only make loops.
//!
//! All functions here are hot, take borrowed data and allocate nothing.

use std::net::IpAddr;
use std::time::Instant;

use super::fdb::Sighting;
use super::guard::{self, PeerCredentials};
use crate::counters::DropReason;
use crate::ids::{MacAddr, PeerIdx, VlanId};
use crate::view::FdbView;
use crate::wire::ethernet::{
    ArpView, ETHERTYPE_ARP, ETHERTYPE_IPV6, FrameView, ND_NEIGHBOUR_SOLICITATION, parse_neighbour, write_arp_reply,
    write_neighbour_advert,
};

/// Where a frame from the TAP goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    Unicast(PeerIdx),
    /// To all peers, except those with the no-flood bit.
    Flood,
    /// To all peers with the bridge right: the station is no member's, so it can only be behind one of these.
    FloodBridges,
    Drop(DropReason),
}

/// What this node is, as far as frames from its TAP are concerned.
#[derive(Debug, Clone, Copy)]
pub struct EgressFacts {
    pub own_mac: MacAddr,
    /// This node has the bridge right: stations behind its TAP may send.
    pub is_bridge: bool,
    /// At least one peer has the bridge right.
    pub has_bridges: bool,
}

/// Decides about a frame read from the TAP.
///
/// That a node without the bridge right sends with its own MAC only is checked at each receiver as well; here it
/// shows the operator of a misconfigured node why nobody answers.
pub fn egress(frame: &FrameView<'_>, fdb: &FdbView, facts: &EgressFacts) -> Egress {
    let (src, dst) = (frame.src(), frame.dst());
    if src.is_group() || (!facts.is_bridge && src != facts.own_mac) {
        return Egress::Drop(DropReason::SourceSpoofed);
    }
    if dst == facts.own_mac {
        return Egress::Drop(DropReason::SplitHorizon);
    }
    if dst.is_group() {
        if frame.is_link_local_group() && !facts.is_bridge {
            return Egress::Drop(DropReason::LinkLocalGroup);
        }
        return Egress::Flood;
    }
    match fdb.lookup(frame.vlan(), dst) {
        Some(peer) => Egress::Unicast(peer),
        None if facts.has_bridges => Egress::FloodBridges,
        None => Egress::Drop(DropReason::UnknownStation),
    }
}

/// What becomes of a frame from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingress {
    /// To the TAP. The sighting is one the table does not have yet; it is cast to whoever owns the table.
    Accept {
        learn: Option<Sighting>,
    },
    Drop(DropReason),
}

/// Decides about a frame that `from`, with these credentials, sent to us. Marks a learned station as seen.
pub fn ingress(frame: &FrameView<'_>, from: PeerIdx, creds: &PeerCredentials, fdb: &FdbView, now: Instant) -> Ingress {
    if let Err(reason) = guard::check(frame, creds) {
        return Ingress::Drop(reason);
    }
    // The check left only the member's own station, which needs no learning.
    if !creds.rights.is_bridge() || frame.src() == creds.mac {
        return Ingress::Accept { learn: None };
    }
    let sighting = Sighting { vlan: frame.vlan(), mac: frame.src(), peer: from };
    // Not even a bridge has the station of another member behind it, or ours.
    if fdb.is_own(sighting.mac) || fdb.owner(sighting.mac).is_some_and(|owner| owner != from) {
        return Ingress::Drop(DropReason::SourceSpoofed);
    }
    let known = fdb.touch(sighting.vlan, sighting.mac, from, now);
    Ingress::Accept { learn: (!known).then_some(sighting) }
}

/// Answers an ARP request or a neighbour solicitation read from the TAP out of the signed map, so that it need not
/// be flooded. True if `out` holds an answer for the TAP; the frame is then done with.
///
/// `directory` gives the station of a *member's* leased address, this node's own excluded. Announcements of the
/// sender's own address and probes whether an address is free go out, for they are meant for all; and requests in
/// a VLAN do, for leases are addresses of the untagged network.
pub fn proxy_answer(frame: &FrameView<'_>, directory: &dyn Fn(IpAddr) -> Option<MacAddr>, out: &mut Vec<u8>) -> bool {
    if frame.vlan() != VlanId(0) {
        return false;
    }
    // A request to one station only is a question whether that one is still there.
    let station =
        |ip: IpAddr| directory(ip).filter(|mac| *mac != frame.src() && (frame.dst().is_group() || frame.dst() == *mac));
    match frame.ethertype() {
        ETHERTYPE_ARP => {
            let Some(arp) = ArpView::parse(frame.payload()) else { return false };
            if arp.is_probe() || arp.is_announcement() {
                return false;
            }
            station(arp.target_ip().into()).is_some_and(|mac| write_arp_reply(frame, mac, out))
        }
        ETHERTYPE_IPV6 => {
            let Some((ip, neighbour)) = parse_neighbour(frame) else { return false };
            let Some(target) = neighbour.target() else { return false };
            if neighbour.kind() != ND_NEIGHBOUR_SOLICITATION || ip.src().is_unspecified() || ip.src() == target {
                return false;
            }
            station(target.into()).is_some_and(|mac| write_neighbour_advert(frame, mac, out))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::fdb::Fdb;
    use crate::proto::guard::Rights;
    use crate::wire::ethernet::tests::{hex, ipv6, view};

    const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
    const BRIDGE: PeerIdx = PeerIdx(1);
    const PEER_B: PeerIdx = PeerIdx(2);

    #[test]
    fn frames_from_the_tap_go_where_the_table_says() {
        let fdb = table().view();
        let leaf = EgressFacts { own_mac: OWN, is_bridge: false, has_bridges: false };
        let with_bridges = EgressFacts { has_bridges: true, ..leaf };
        let bridge = EgressFacts { is_bridge: true, ..leaf };
        let dropped = Egress::Drop;
        for (frame, facts, expected) in [
            ("ffffffffffff 02000000000a 0806", leaf, Egress::Flood),
            ("01005e0000fb 02000000000a 0800", leaf, Egress::Flood),
            ("02000000000b 02000000000a 0800", leaf, Egress::Unicast(PEER_B)),
            ("02000000000b 02000000000a 8100 0007 0800", leaf, Egress::Unicast(PEER_B)),
            ("001600000001 02000000000a 0800", leaf, Egress::Unicast(BRIDGE)),
            ("001600000001 02000000000a 8100 0007 0800", leaf, dropped(DropReason::UnknownStation)),
            ("001600000002 02000000000a 0800", leaf, dropped(DropReason::UnknownStation)),
            ("001600000002 02000000000a 0800", with_bridges, Egress::FloodBridges),
            ("02000000000a 02000000000a 0800", leaf, dropped(DropReason::SplitHorizon)),
            ("02000000000a 001600000009 0800", bridge, dropped(DropReason::SplitHorizon)),
            ("0180c2000000 02000000000a 0026", leaf, dropped(DropReason::LinkLocalGroup)),
            ("0180c2000000 02000000000a 0026", bridge, Egress::Flood),
            ("ffffffffffff 001600000009 0806", leaf, dropped(DropReason::SourceSpoofed)),
            ("ffffffffffff 001600000009 0806", bridge, Egress::Flood),
            ("ffffffffffff 010000000009 0806", bridge, dropped(DropReason::SourceSpoofed)),
        ] {
            assert_eq!(egress(&view(&hex(frame)), &fdb, &facts), expected, "{frame} {facts:?}");
        }
    }

    #[test]
    fn a_station_behind_a_bridge_is_told_once_and_a_members_never() {
        let mut fdb = table();
        let now = Instant::now();
        let accept = |learn| Ingress::Accept { learn };
        let member = creds(B, 0);
        let bridge = creds(MacAddr([2, 0, 0, 0, 0, 0xc]), Rights::BRIDGE);
        let own_station = hex("02000000000a 02000000000b 9999");
        assert_eq!(ingress(&view(&own_station), PEER_B, &member, &fdb.view(), now), accept(None));

        let new = hex("02000000000a 001600000007 9999");
        let sighting = Sighting { vlan: VlanId(0), mac: MacAddr([0, 0x16, 0, 0, 0, 7]), peer: BRIDGE };
        assert_eq!(ingress(&view(&new), BRIDGE, &bridge, &fdb.view(), now), accept(Some(sighting)));
        fdb.learn(sighting, now);
        assert_eq!(ingress(&view(&new), BRIDGE, &bridge, &fdb.view(), now), accept(None));
        let moved = Sighting { peer: PeerIdx(9), ..sighting };
        assert_eq!(ingress(&view(&new), PeerIdx(9), &bridge, &fdb.view(), now), accept(Some(moved)));
    }

    #[test]
    fn nobody_sends_with_the_address_of_a_member_or_of_ours() {
        let fdb = table().view();
        let now = Instant::now();
        let bridge = creds(MacAddr([2, 0, 0, 0, 0, 0xc]), Rights::BRIDGE);
        let spoofed = Ingress::Drop(DropReason::SourceSpoofed);
        for frame in ["02000000000a 02000000000b 9999", "ffffffffffff 02000000000a 9999"] {
            assert_eq!(ingress(&view(&hex(frame)), BRIDGE, &bridge, &fdb, now), spoofed, "{frame}");
        }
        let foreign = hex("02000000000a 02000000000d 9999");
        assert_eq!(ingress(&view(&foreign), PEER_B, &creds(B, 0), &fdb, now), spoofed);
    }

    #[test]
    fn requests_for_members_are_answered_and_others_go_out() {
        let directory = |ip: IpAddr| match ip.to_string().as_str() {
            "192.168.43.2" | "fd00::2" => Some(B),
            _ => None,
        };
        let mut out = Vec::new();
        let head = "02000000000a 0806 000108000604";
        for (frame, expected) in [
            (format!("ffffffffffff {head} 0001 02000000000a c0a82b01 000000000000 c0a82b02"), true),
            (format!("02000000000b {head} 0001 02000000000a c0a82b01 02000000000b c0a82b02"), true),
            (format!("02000000000d {head} 0001 02000000000a c0a82b01 02000000000d c0a82b02"), false),
            (format!("ffffffffffff {head} 0001 02000000000a c0a82b01 000000000000 c0a82b03"), false),
            (format!("ffffffffffff {head} 0001 02000000000a 00000000 000000000000 c0a82b02"), false),
            (format!("ffffffffffff {head} 0001 02000000000a c0a82b02 000000000000 c0a82b02"), false),
            (format!("ffffffffffff {head} 0002 02000000000a c0a82b01 000000000000 c0a82b02"), false),
            (
                "ffffffffffff 02000000000a 8100 0007 0806 0001080006040001 02000000000a c0a82b01 000000000000 c0a82b02"
                    .into(),
                false,
            ),
            (
                "ffffffffffff 02000000000b 0806 0001080006040001 02000000000b c0a82b01 000000000000 c0a82b02".into(),
                false,
            ),
        ] {
            assert_eq!(proxy_answer(&view(&hex(&frame)), &directory, &mut out), expected, "{frame}");
        }
        for (src, kind, target, expected) in [
            ("fd00::1", "87", 2, true),
            ("fe80::1", "87", 2, true),
            ("::", "87", 2, false),
            ("fd00::2", "87", 2, false),
            ("fd00::1", "87", 3, false),
            ("fd00::1", "88", 2, false),
        ] {
            let icmp = hex(&format!("{kind}000000 00000000 fd00{target:028x} 0101 02000000000a"));
            let frame = [hex("3333ff000002 02000000000a 86dd"), ipv6(58, 255, src, "ff02::1:ff00:2", &icmp)].concat();
            assert_eq!(proxy_answer(&view(&frame), &directory, &mut out), expected, "{src} {kind} {target}");
        }
        assert!(proxy_answer(
            &view(&hex(&format!("ffffffffffff {head} 0001 02000000000a c0a82b01 000000000000 c0a82b02"))),
            &directory,
            &mut out
        ));
        assert_eq!((view(&out).dst(), view(&out).src()), (OWN, B));
    }

    /// A table with the members B and C, of which C is a bridge with one station learned.
    fn table() -> Fdb {
        let now = Instant::now();
        let mut fdb = Fdb::new(now);
        fdb.set_own(OWN);
        fdb.set_members([(B, PEER_B), (MacAddr([2, 0, 0, 0, 0, 0xc]), BRIDGE)].into_iter());
        fdb.learn(Sighting { vlan: VlanId(0), mac: MacAddr([0, 0x16, 0, 0, 0, 1]), peer: BRIDGE }, now);
        fdb
    }

    fn creds(mac: MacAddr, rights: u8) -> PeerCredentials {
        PeerCredentials { mac, ip4: None, ip6: None, rights: Rights(rights) }
    }
}
