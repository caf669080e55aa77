//! A home router's NAT for the demo and the tests, written to nf_tables by plain netlink: no programs, no libraries.
//!
//! What [`masquerade`] installs is, in the language of `nft`:
//!
//! ```text
//! table ip eps {
//!     chain postrouting {
//!         type nat hook postrouting priority srcnat; policy accept;
//!         oifname "WAN" masquerade
//!     }
//!     chain input {
//!         type filter hook input priority filter; policy accept;
//!         iifname "WAN" ct state & (established | related) == 0x0 drop
//!     }
//!     chain forward {
//!         type filter hook forward priority filter; policy accept;
//!         iifname "WAN" ct state & (established | related) == 0x0 drop
//!     }
//! }
//! ```
//!
//! The input chain matters for hole punching: a datagram from outside that comes before the one from inside would
//! otherwise be a connection to the router itself, and take the port that the inside should have been mapped to.
//!
//! The rules go with the network namespace. What a client forwards for other members is in [`forward`](mod@forward).

mod forward;

pub mod zoo;

use std::io;

pub use forward::{Forwarding, forward, forward_table, is_private, remove_table};

use super::netlink::netlink_socket;

/// Why the rules could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("{name:?} is no interface name")]
    BadName { name: String },
    #[error("not permitted to set firewall rules; run as root or with CAP_NET_ADMIN")]
    NotPermitted,
    #[error("this kernel has no nf_tables ({0}); load the kernel module with `modprobe nf_tables`")]
    NoNfTables(#[source] io::Error),
    #[error("the kernel refused to {step}: {source}; it may lack NAT or connection tracking for nf_tables")]
    Refused { step: &'static str, source: io::Error },
    #[error("talking to nf_tables failed: {0}")]
    Netlink(#[source] io::Error),
}

/// Makes the calling thread's network namespace a NAT towards `wan_interface`, which lets nothing unsolicited in.
///
/// Ports are kept where they are free, and one inside port has one outside port for all destinations (an
/// endpoint-independent mapping, RFC 4787, with address and port dependent filtering). Another call adds another
/// interface. Forwarding is a setting of its own, `net.ipv4.ip_forward`.
pub fn masquerade(wan_interface: &str) -> Result<(), NftError> {
    install(wan_interface, None)
}

/// As [`masquerade`], but each connection gets a random outside port: a symmetric NAT, through which holes cannot be
/// punched by one's own account of one's address.
pub fn masquerade_random_ports(wan_interface: &str) -> Result<(), NftError> {
    install(wan_interface, Some(NF_NAT_RANGE_PROTO_RANDOM_FULLY))
}

fn install(wan_interface: &str, nat_flags: Option<u32>) -> Result<(), NftError> {
    check_name(wan_interface)?;
    let mut batch = Batch::new(TABLE);
    batch.message("make a table", NFT_MSG_NEWTABLE, |message| message.text(NFTA_TABLE_NAME, TABLE));
    batch.chain("make a NAT chain", "postrouting", "nat", libc::NF_INET_POST_ROUTING, PRIORITY_SRCNAT);
    batch.rule("masquerade", "postrouting", |rule| {
        rule.interface_is(NFT_META_OIFNAME, wan_interface);
        rule.expression("masq", |masq| {
            if let Some(flags) = nat_flags {
                masq.number(NFTA_MASQ_FLAGS, flags);
            }
        });
    });
    for (chain, hook) in [("input", libc::NF_INET_LOCAL_IN), ("forward", libc::NF_INET_FORWARD)] {
        batch.chain("make a filter chain", chain, "filter", hook, PRIORITY_FILTER);
        batch.rule("drop what is unsolicited", chain, |rule| {
            rule.interface_is(NFT_META_IIFNAME, wan_interface);
            rule.connection_state_is_none_of(CT_ESTABLISHED | CT_RELATED);
            rule.drop_it();
        });
    }
    batch.commit()
}

fn check_name(interface: &str) -> Result<(), NftError> {
    match interface.len() {
        1..libc::IFNAMSIZ => Ok(()),
        _ => Err(NftError::BadName { name: interface.to_owned() }),
    }
}

/// Messages that the kernel carries out together or not at all.
struct Batch {
    /// The table that chains and rules are of.
    table: String,
    bytes: Message,
    /// What each message does; its index is the message's sequence number.
    steps: Vec<&'static str>,
}

impl Batch {
    fn new(table: &str) -> Self {
        let mut batch = Self { table: table.to_owned(), bytes: Message(Vec::new()), steps: Vec::new() };
        batch.envelope(libc::NFNL_MSG_BATCH_BEGIN);
        batch
    }

    fn envelope(&mut self, kind: libc::c_int) {
        self.add("begin or end a batch", kind as u16, 0, libc::AF_UNSPEC, libc::NFNL_SUBSYS_NFTABLES as u16, |_| {});
    }

    fn message(&mut self, step: &'static str, kind: u16, fill: impl FnOnce(&mut Message)) {
        let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | kind;
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND | libc::NLM_F_ACK;
        self.add(step, kind, flags, libc::AF_INET, 0, fill);
    }

    fn add(
        &mut self,
        step: &'static str,
        kind: u16,
        flags: libc::c_int,
        family: libc::c_int,
        resource: u16,
        fill: impl FnOnce(&mut Message),
    ) {
        let start = self.bytes.0.len();
        // struct nlmsghdr: length, type, flags, sequence number, port; then struct nfgenmsg.
        self.bytes.0.extend(0u32.to_ne_bytes());
        self.bytes.0.extend(kind.to_ne_bytes());
        self.bytes.0.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        self.bytes.0.extend((self.steps.len() as u32).to_ne_bytes());
        self.bytes.0.extend(0u32.to_ne_bytes());
        self.bytes.0.extend([family as u8, libc::NFNETLINK_V0 as u8]);
        self.bytes.0.extend(resource.to_be_bytes());
        fill(&mut self.bytes);
        let length = (self.bytes.0.len() - start) as u32;
        self.bytes.0[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.steps.push(step);
    }

    fn chain(&mut self, step: &'static str, name: &str, kind: &str, hook: libc::c_int, priority: i32) {
        let table = self.table.clone();
        self.message(step, NFT_MSG_NEWCHAIN, |chain| {
            chain.text(NFTA_CHAIN_TABLE, &table);
            chain.text(NFTA_CHAIN_NAME, name);
            chain.nested(NFTA_CHAIN_HOOK, |place| {
                place.number(NFTA_HOOK_HOOKNUM, hook as u32);
                place.number(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
            });
            chain.number(NFTA_CHAIN_POLICY, libc::NF_ACCEPT as u32);
            chain.text(NFTA_CHAIN_TYPE, kind);
        });
    }

    fn rule(&mut self, step: &'static str, chain: &str, fill: impl FnOnce(&mut Message)) {
        let table = self.table.clone();
        self.message(step, NFT_MSG_NEWRULE, |rule| {
            rule.text(NFTA_RULE_TABLE, &table);
            rule.text(NFTA_RULE_CHAIN, chain);
            rule.nested(NFTA_RULE_EXPRESSIONS, fill);
        });
    }

    fn commit(mut self) -> Result<(), NftError> {
        self.envelope(libc::NFNL_MSG_BATCH_END);
        let socket = netlink_socket(libc::NETLINK_NETFILTER, 0).map_err(NftError::NoNfTables)?;
        socket.set_nonblocking(true).map_err(NftError::Netlink)?;
        // The kernel works while we send, and the answers are there when it returns.
        socket.send(&self.bytes.0).map_err(|error| self.refusal(0, error))?;
        let mut answered = false;
        let mut buffer = [0; 16 * 1024];
        loop {
            let count = match io::Read::read(&mut &socket, &mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(NftError::Netlink(error)),
            };
            for (sequence, errno) in answers(&buffer[..count]) {
                answered = true;
                if errno != 0 {
                    return Err(self.refusal(sequence, io::Error::from_raw_os_error(errno)));
                }
            }
        }
        if answered { Ok(()) } else { Err(NftError::Netlink(io::ErrorKind::UnexpectedEof.into())) }
    }

    fn refusal(&self, sequence: usize, source: io::Error) -> NftError {
        let step = self.steps.get(sequence).copied().unwrap_or("do that");
        match source.raw_os_error() {
            Some(libc::EPERM) => NftError::NotPermitted,
            Some(libc::EOPNOTSUPP) if sequence == 0 => NftError::NoNfTables(source),
            _ => NftError::Refused { step, source },
        }
    }
}

/// The sequence numbers and error numbers (0 for done) in a buffer of answers.
fn answers(mut bytes: &[u8]) -> Vec<(usize, i32)> {
    let word = |bytes: &[u8], at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().expect("four bytes")))
    };
    let mut answers = Vec::new();
    while let (Some(length), Some(kind), Some(sequence), Some(error)) =
        (word(bytes, 0), word(bytes, 4), word(bytes, 8), word(bytes, 16))
    {
        if kind & 0xffff == libc::NLMSG_ERROR as u32 {
            answers.push((sequence as usize, -error.cast_signed()));
        }
        let next = (length.max(16) as usize).next_multiple_of(4);
        bytes = bytes.get(next..).unwrap_or_default();
    }
    answers
}

/// Netlink attributes being written: 16 bits of length, 16 of type, the value, padding to four bytes.
struct Message(Vec<u8>);

impl Message {
    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |message| message.0.extend(value));
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |message| {
            message.0.extend(value.as_bytes());
            message.0.push(0);
        });
    }

    /// Numbers of nf_tables are big-endian; what rules compare is not.
    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.attribute(kind | libc::NLA_F_NESTED as u16, fill);
    }

    fn data(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |data| data.bytes(NFTA_DATA_VALUE, value));
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.nested(NFTA_LIST_ELEM, |element| {
            element.text(NFTA_EXPR_NAME, name);
            element.nested(NFTA_EXPR_DATA, fill);
        });
    }

    fn equals(&mut self, value: &[u8]) {
        self.expression("cmp", |cmp| {
            cmp.number(NFTA_CMP_SREG, NFT_REG_1);
            cmp.number(NFTA_CMP_OP, NFT_CMP_EQ);
            cmp.data(NFTA_CMP_DATA, value);
        });
    }

    fn interface(&mut self, which: u32) {
        self.expression("meta", |meta| {
            meta.number(NFTA_META_DREG, NFT_REG_1);
            meta.number(NFTA_META_KEY, which);
        });
    }

    fn interface_is(&mut self, which: u32, name: &str) {
        self.interface(which);
        self.equals(&padded_name(name));
    }

    fn connection_state_is_none_of(&mut self, states: u32) {
        self.connection_state(states);
        self.equals(&[0; 4]);
    }

    /// Those of the states that hold for the connection.
    fn connection_state(&mut self, states: u32) {
        self.expression("ct", |ct| {
            ct.number(NFTA_CT_DREG, NFT_REG_1);
            ct.number(NFTA_CT_KEY, NFT_CT_STATE);
        });
        self.masked(&states.to_ne_bytes());
    }

    fn masked(&mut self, mask: &[u8; 4]) {
        self.expression("bitwise", |bitwise| {
            bitwise.number(NFTA_BITWISE_SREG, NFT_REG_1);
            bitwise.number(NFTA_BITWISE_DREG, NFT_REG_1);
            bitwise.number(NFTA_BITWISE_LEN, 4);
            bitwise.data(NFTA_BITWISE_MASK, mask);
            bitwise.data(NFTA_BITWISE_XOR, &[0; 4]);
        });
    }

    fn drop_it(&mut self) {
        self.verdict(libc::NF_DROP);
    }

    fn verdict(&mut self, code: libc::c_int) {
        self.expression("immediate", |immediate| {
            immediate.number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            immediate.nested(NFTA_IMMEDIATE_DATA, |data| {
                data.nested(NFTA_DATA_VERDICT, |verdict| verdict.number(NFTA_VERDICT_CODE, code as u32));
            });
        });
    }
}

/// An interface's name as rules compare it.
fn padded_name(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut padded = [0; libc::IFNAMSIZ];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    padded
}

const TABLE: &str = "eps";

const PRIORITY_SRCNAT: i32 = 100;
const PRIORITY_FILTER: i32 = 0;

// From linux/netfilter/nf_tables.h, in its order.
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFT_CMP_EQ: u32 = 0;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFT_META_IIFNAME: u32 = 6;
const NFT_META_OIFNAME: u32 = 7;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFT_CT_STATE: u32 = 0;
const NFTA_MASQ_FLAGS: u16 = 1;

/// From linux/netfilter/nf_nat.h.
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
/// From linux/netfilter/nf_conntrack_common.h: `NF_CT_STATE_BIT` of each state.
const CT_ESTABLISHED: u32 = 1 << 1;
const CT_RELATED: u32 = 1 << 2;

#[cfg(test)]
mod tests {
    use super::super::netns::{Netns, can_make_networks, ping_once};
    use super::*;
    use std::net::{SocketAddr, UdpSocket};
    use std::time::Duration;

    const PORT: u16 = 5000;

    struct Lab {
        inside: Netns,
        nat: Netns,
        outside: Netns,
    }

    /// 10.0.0.2 - 10.0.0.1 [NAT] 192.0.2.1 - 192.0.2.2 and .3; `None` where there is nothing to test with.
    fn lab(install: impl FnOnce(&str) -> Result<(), NftError> + Send) -> Option<Lab> {
        if !can_make_networks() {
            return None;
        }
        let [inside, nat, outside] = std::array::from_fn(|_| Netns::new().expect("a namespace"));
        Netns::connect((&inside, "eth0", "10.0.0.2/24"), (&nat, "lan", "10.0.0.1/24")).expect("a cable");
        Netns::connect((&nat, "wan", "192.0.2.1/24"), (&outside, "eth0", "192.0.2.2/24")).expect("a cable");
        inside.add_default_route(std::net::Ipv4Addr::new(10, 0, 0, 1)).expect("a route");
        nat.sysctl("ipv4/ip_forward", "1").expect("a setting");
        match nat.run(|| install("wan")) {
            Ok(()) => Some(Lab { inside, nat, outside }),
            Err(NftError::NoNfTables(_)) => {
                println!("skipped: this kernel has no nf_tables");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn socket(ns: &Netns, addr: &str) -> UdpSocket {
        let socket = ns.run(|| UdpSocket::bind(addr)).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        socket
    }

    fn receive(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
        let mut buffer = [0; 100];
        socket.recv_from(&mut buffer).ok().map(|(count, from)| (buffer[..count].to_vec(), from))
    }

    #[test]
    fn a_datagram_leaves_with_the_address_of_the_nat_and_the_answer_comes_back() {
        let Some(lab) = lab(masquerade) else { return };
        let (client, server) = (socket(&lab.inside, "10.0.0.2:5000"), socket(&lab.outside, "192.0.2.2:7"));
        client.send_to(b"hello", "192.0.2.2:7").expect("sent");
        let (bytes, from) = receive(&server).expect("a datagram");
        assert_eq!((&bytes[..], from), (&b"hello"[..], "192.0.2.1:5000".parse().expect("an address")));
        server.send_to(b"back", from).expect("sent");
        assert_eq!(receive(&client).expect("an answer").0, b"back");
    }

    #[test]
    fn an_early_datagram_from_outside_is_dropped_and_does_not_spoil_the_port() {
        let Some(lab) = lab(masquerade) else { return };
        let (client, server) = (socket(&lab.inside, "10.0.0.2:5000"), socket(&lab.outside, "192.0.2.2:5000"));
        server.send_to(b"early", ("192.0.2.1", PORT)).expect("sent");
        assert_eq!(receive(&client), None);
        client.send_to(b"hello", "192.0.2.2:5000").expect("sent");
        let (bytes, from) = receive(&server).expect("a datagram, and no ICMP error for the early one");
        assert_eq!((&bytes[..], from), (&b"hello"[..], "192.0.2.1:5000".parse().expect("an address")));
    }

    #[test]
    fn nobody_outside_reaches_the_inside_or_the_nat_itself() {
        let Some(lab) = lab(masquerade) else { return };
        lab.outside.add_default_route(std::net::Ipv4Addr::new(192, 0, 2, 1)).expect("a route");
        let wait = Duration::from_millis(300);
        assert_eq!(ping_once(&lab.outside, None, [10, 0, 0, 2].into(), wait), None);
        assert_eq!(ping_once(&lab.outside, None, [192, 0, 2, 1].into(), wait), None);
        let patience = Duration::from_secs(3);
        assert!(ping_once(&lab.inside, None, [192, 0, 2, 2].into(), patience).is_some());
        assert!(ping_once(&lab.nat, None, [192, 0, 2, 2].into(), patience).is_some());
    }

    #[test]
    fn one_inside_port_is_one_outside_port_unless_ports_are_random() {
        for (random, install) in
            [(false, masquerade as fn(&str) -> _), (true, masquerade_random_ports as fn(&str) -> _)]
        {
            let Some(lab) = lab(install) else { return };
            let client = socket(&lab.inside, "10.0.0.2:5000");
            let ports: Vec<u16> = (0..4)
                .map(|number| {
                    let server = socket(&lab.outside, "192.0.2.2:0");
                    let to = server.local_addr().expect("an address");
                    client.send_to(&[number], to).expect("sent");
                    receive(&server).expect("a datagram").1.port()
                })
                .collect();
            assert_eq!(ports.iter().any(|port| *port != PORT), random, "{ports:?}");
        }
    }

    #[test]
    fn a_name_that_is_too_long_is_refused() {
        assert!(matches!(masquerade("a-name-of-16-byte"), Err(NftError::BadName { .. })));
    }
}
