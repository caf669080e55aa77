//! Routers of other kinds than a home's usual one, for the self-test: friendlier, careless, and such that let no UDP out.
//!
//! Each is complete, for a namespace that has no other rules. Endpoint-independent mapping comes from Linux keeping
//! ports where they are free; who may answer is what differs.

use std::net::Ipv4Addr;

use super::{
    Batch, CT_ESTABLISHED, CT_RELATED, Message, NFT_META_IIFNAME, NFT_META_OIFNAME, NFT_PAYLOAD_NETWORK_HEADER,
    NFT_REG_1, NFTA_CMP_DATA, NFTA_CMP_OP, NFTA_CMP_SREG, NFTA_IMMEDIATE_DATA, NFTA_IMMEDIATE_DREG, NFTA_META_DREG,
    NFTA_META_KEY, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_OFFSET, NftError,
    PRIORITY_FILTER, PRIORITY_SRCNAT, TABLE, check_name, masquerade,
};

/// Full cone: everything that comes to the outside address, from port 1,024 on, goes to `inside` (RFC 4787:
/// endpoint-independent filtering).
///
/// # Errors
/// What the kernel refuses.
pub fn full_cone(wan: &str, inside: Ipv4Addr) -> Result<(), NftError> {
    cone(wan, inside)?.commit()
}

/// Address-restricted cone: the same, but only from addresses that the inside has sent something to.
///
/// # Errors
/// What the kernel refuses.
pub fn address_restricted(wan: &str, inside: Ipv4Addr) -> Result<(), NftError> {
    let mut batch = cone(wan, inside)?;
    batch.message("make a set", NFT_MSG_NEWSET, |set| {
        set.text(NFTA_SET_TABLE, TABLE);
        set.text(NFTA_SET_NAME, SEEN);
        set.number(NFTA_SET_FLAGS, NFT_SET_EVAL);
        set.number(NFTA_SET_KEY_TYPE, TYPE_IPADDR);
        set.number(NFTA_SET_KEY_LEN, 4);
        set.nested(NFTA_SET_DESC, |desc| desc.number(NFTA_SET_DESC_SIZE, 4096));
        set.number(NFTA_SET_ID, 1);
    });
    batch.chain("make a filter chain", "forward", "filter", libc::NF_INET_FORWARD, PRIORITY_FILTER);
    batch.rule("note who is spoken to", "forward", |rule| {
        rule.interface_is(NFT_META_OIFNAME, wan);
        rule.load(NFT_PAYLOAD_NETWORK_HEADER, IP_DADDR, 4);
        rule.expression("dynset", |dynset| {
            dynset.text(NFTA_DYNSET_SET_NAME, SEEN);
            dynset.number(NFTA_DYNSET_SET_ID, 1);
            dynset.number(NFTA_DYNSET_OP, NFT_DYNSET_OP_ADD);
            dynset.number(NFTA_DYNSET_SREG_KEY, NFT_REG_1);
        });
    });
    batch.rule("drop what others send", "forward", |rule| {
        rule.interface_is(NFT_META_IIFNAME, wan);
        rule.load(NFT_PAYLOAD_NETWORK_HEADER, IP_SADDR, 4);
        rule.expression("lookup", |lookup| {
            lookup.text(NFTA_LOOKUP_SET, SEEN);
            lookup.number(NFTA_LOOKUP_SREG, NFT_REG_1);
            lookup.number(NFTA_LOOKUP_SET_ID, 1);
            lookup.number(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
        });
        rule.drop_it();
    });
    batch.commit()
}

/// As [`masquerade`], but what comes unasked is a connection to the router itself: a datagram from outside that comes
/// before the one from inside takes the port that the inside should have been mapped to.
///
/// # Errors
/// What the kernel refuses.
pub fn careless(wan: &str) -> Result<(), NftError> {
    let mut batch = source_nat(wan)?;
    batch.chain("make a filter chain", "forward", "filter", libc::NF_INET_FORWARD, PRIORITY_FILTER);
    batch.rule("drop what is unsolicited", "forward", |rule| {
        rule.interface_is(NFT_META_IIFNAME, wan);
        rule.connection_state_is_none_of(CT_ESTABLISHED | CT_RELATED);
        rule.drop_it();
    });
    batch.commit()
}

/// As [`masquerade`], and no UDP passes in either direction.
///
/// # Errors
/// What the kernel refuses.
pub fn without_udp(wan: &str) -> Result<(), NftError> {
    masquerade(wan)?;
    let mut batch = Batch::new(TABLE);
    batch.chain("make a filter chain", "noudp", "filter", libc::NF_INET_FORWARD, PRIORITY_FILTER);
    batch.rule("drop UDP", "noudp", |rule| {
        rule.is_udp();
        rule.drop_it();
    });
    batch.commit()
}

/// Source NAT with kept ports, and nothing else.
fn source_nat(wan: &str) -> Result<Batch, NftError> {
    check_name(wan)?;
    let mut batch = Batch::new(TABLE);
    batch.message("make a table", super::NFT_MSG_NEWTABLE, |message| message.text(super::NFTA_TABLE_NAME, TABLE));
    batch.chain("make a NAT chain", "postrouting", "nat", libc::NF_INET_POST_ROUTING, PRIORITY_SRCNAT);
    batch.rule("masquerade", "postrouting", |rule| {
        rule.interface_is(NFT_META_OIFNAME, wan);
        rule.expression("masq", |_| {});
    });
    Ok(batch)
}

fn cone(wan: &str, inside: Ipv4Addr) -> Result<Batch, NftError> {
    let mut batch = source_nat(wan)?;
    batch.chain("make a NAT chain", "prerouting", "nat", libc::NF_INET_PRE_ROUTING, PRIORITY_DSTNAT);
    batch.rule("let everything in", "prerouting", |rule| {
        rule.interface_is(NFT_META_IIFNAME, wan);
        rule.is_udp();
        rule.load(NFT_PAYLOAD_TRANSPORT_HEADER, UDP_DPORT, 2);
        rule.expression("cmp", |cmp| {
            cmp.number(NFTA_CMP_SREG, NFT_REG_1);
            cmp.number(NFTA_CMP_OP, NFT_CMP_GTE);
            cmp.data(NFTA_CMP_DATA, &1024u16.to_be_bytes());
        });
        rule.expression("immediate", |immediate| {
            immediate.number(NFTA_IMMEDIATE_DREG, NFT_REG_1);
            immediate.data(NFTA_IMMEDIATE_DATA, &inside.octets());
        });
        rule.expression("nat", |nat| {
            nat.number(NFTA_NAT_TYPE, NFT_NAT_DNAT);
            nat.number(NFTA_NAT_FAMILY, libc::NFPROTO_IPV4 as u32);
            nat.number(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1);
        });
    });
    Ok(batch)
}

impl Message {
    fn load(&mut self, base: u32, offset: u32, length: u32) {
        self.expression("payload", |payload| {
            payload.number(NFTA_PAYLOAD_DREG, NFT_REG_1);
            payload.number(NFTA_PAYLOAD_BASE, base);
            payload.number(NFTA_PAYLOAD_OFFSET, offset);
            payload.number(NFTA_PAYLOAD_LEN, length);
        });
    }

    fn is_udp(&mut self) {
        self.expression("meta", |meta| {
            meta.number(NFTA_META_DREG, NFT_REG_1);
            meta.number(NFTA_META_KEY, NFT_META_L4PROTO);
        });
        self.equals(&[libc::IPPROTO_UDP as u8]);
    }
}

/// The set of addresses that the inside has spoken to.
const SEEN: &str = "seen";
const PRIORITY_DSTNAT: i32 = -100;
/// Offsets in an IPv4 header (RFC 791) and a UDP header (RFC 768).
const IP_SADDR: u32 = 12;
const IP_DADDR: u32 = 16;
const UDP_DPORT: u32 = 2;
/// What nft calls the type of IPv4 addresses; the kernel keeps it and does not look at it.
const TYPE_IPADDR: u32 = 7;

// From linux/netfilter/nf_tables.h, in its order.
const NFT_MSG_NEWSET: u16 = 9;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DESC: u16 = 9;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_DESC_SIZE: u16 = 1;
const NFT_SET_EVAL: u32 = 0x20;
const NFT_CMP_GTE: u32 = 5;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_SET_ID: u16 = 4;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFT_LOOKUP_F_INV: u32 = 1;
const NFTA_DYNSET_SET_NAME: u16 = 1;
const NFTA_DYNSET_SET_ID: u16 = 2;
const NFTA_DYNSET_OP: u16 = 3;
const NFTA_DYNSET_SREG_KEY: u16 = 4;
const NFT_DYNSET_OP_ADD: u32 = 0;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_META_L4PROTO: u32 = 16;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFT_NAT_DNAT: u32 = 1;

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::super::super::netns::{Netns, can_make_networks};
    use super::*;

    /// 10.0.0.2 - 10.0.0.1 [NAT] 192.0.2.1 - 192.0.2.2 and .3
    struct Lab {
        inside: Netns,
        _nat: Netns,
        outside: Netns,
    }

    fn lab(install: impl FnOnce() -> Result<(), NftError> + Send) -> Option<Lab> {
        if !can_make_networks() {
            return None;
        }
        let [inside, nat, outside] = std::array::from_fn(|_| Netns::new().expect("a namespace"));
        Netns::connect((&inside, "eth0", "10.0.0.2/24"), (&nat, "lan", "10.0.0.1/24")).expect("a cable");
        Netns::connect((&nat, "wan", "192.0.2.1/24"), (&outside, "eth0", "192.0.2.2/24")).expect("a cable");
        let netlink = outside.netlink().expect("a socket");
        smol::block_on(async {
            let eth0 = netlink.link_index("eth0").await.expect("eth0");
            netlink.add_address(eth0, [192, 0, 2, 3].into(), 24).await.expect("an address");
        });
        inside.add_default_route(Ipv4Addr::new(10, 0, 0, 1)).expect("a route");
        nat.sysctl("ipv4/ip_forward", "1").expect("a setting");
        match nat.run(install) {
            Ok(()) => Some(Lab { inside, _nat: nat, outside }),
            Err(NftError::NoNfTables(_)) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn socket(ns: &Netns, addr: &str) -> UdpSocket {
        let socket = ns.run(|| UdpSocket::bind(addr)).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(400))).expect("a timeout");
        socket
    }

    fn hears(socket: &UdpSocket) -> bool {
        socket.recv_from(&mut [0; 10]).is_ok()
    }

    const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    #[test]
    fn anybody_reaches_the_inside_of_a_full_cone() {
        let Some(lab) = lab(|| full_cone("wan", INSIDE)) else { return };
        let (client, far) = (socket(&lab.inside, "10.0.0.2:5000"), socket(&lab.outside, "192.0.2.2:7"));
        far.send_to(b"unasked", "192.0.2.1:5000").expect("sent");
        assert!(hears(&client));
        client.send_to(b"out", "192.0.2.2:7").expect("sent");
        assert!(hears(&far));
    }

    #[test]
    fn whoever_was_spoken_to_reaches_the_inside_of_an_address_restricted_cone_from_any_port() {
        let Some(lab) = lab(|| address_restricted("wan", INSIDE)) else { return };
        let client = socket(&lab.inside, "10.0.0.2:5000");
        let [known, other_port, stranger] =
            ["192.0.2.2:7", "192.0.2.2:8", "192.0.2.3:7"].map(|addr| socket(&lab.outside, addr));
        known.send_to(b"unasked", "192.0.2.1:5000").expect("sent");
        assert!(!hears(&client));
        client.send_to(b"out", "192.0.2.2:7").expect("sent");
        other_port.send_to(b"from another port", "192.0.2.1:5000").expect("sent");
        assert!(hears(&client));
        stranger.send_to(b"from another address", "192.0.2.1:5000").expect("sent");
        assert!(!hears(&client));
    }

    #[test]
    fn a_careless_router_gives_an_early_datagrams_port_away() {
        let Some(lab) = lab(|| careless("wan")) else { return };
        let (client, far) = (socket(&lab.inside, "10.0.0.2:5000"), socket(&lab.outside, "192.0.2.2:5000"));
        far.send_to(b"early", "192.0.2.1:5000").expect("sent");
        assert!(!hears(&client));
        client.send_to(b"out", "192.0.2.2:5000").expect("sent");
        let mut buffer = [0; 10];
        let from = far.recv_from(&mut buffer).expect("a datagram").1;
        assert_ne!(from.port(), 5000, "that is the router's own by now");
    }

    #[test]
    fn where_udp_is_blocked_none_passes() {
        let Some(lab) = lab(|| without_udp("wan")) else { return };
        let (client, far) = (socket(&lab.inside, "10.0.0.2:5000"), socket(&lab.outside, "192.0.2.2:7"));
        client.send_to(b"out", "192.0.2.2:7").expect("sent");
        assert!(!hears(&far));
    }
}
