//! What a client forwards for other members, and nothing else: a table of filter and NAT rules that goes as one.
//!
//! For the device `eps0`, the network 192.168.43.0/24, the subnet 10.1.0.0/16 and an exit it is, in the language of `nft`:
//!
//! ```text
//! table ip eps-actor-eps0 {
//!     chain forward {
//!         type filter hook forward priority filter; policy accept;
//!         iifname "eps0" ip daddr 10.1.0.0/16 accept
//!         iifname "eps0" ip daddr 10.0.0.0/8 drop        # and the other private ones
//!         iifname "eps0" ip saddr 192.168.43.0/24 accept
//!         iifname "eps0" drop
//!         oifname "eps0" ct state & (established | related) != 0x0 accept
//!         oifname "eps0" ip saddr 10.1.0.0/16 accept
//!         oifname "eps0" drop
//!     }
//!     chain postrouting {
//!         type nat hook postrouting priority srcnat; policy accept;
//!         ip saddr 192.168.43.0/24 oifname != "eps0" masquerade
//!     }
//! }
//! ```

use ipnet::{IpNet, Ipv4Net};

use super::{
    Batch, CT_ESTABLISHED, CT_RELATED, Message, NFT_META_IIFNAME, NFT_META_OIFNAME, NFT_MSG_NEWTABLE,
    NFT_PAYLOAD_NETWORK_HEADER, NFT_REG_1, NFTA_CMP_DATA, NFTA_CMP_OP, NFTA_CMP_SREG, NFTA_PAYLOAD_BASE,
    NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_OFFSET, NFTA_TABLE_NAME, NftError, PRIORITY_FILTER,
    PRIORITY_SRCNAT,
};

/// What may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarding {
    /// The network's device.
    pub device: String,
    /// The network.
    pub network: Ipv4Net,
    /// Subnets behind this machine.
    pub subnets: Vec<Ipv4Net>,
    /// The Internet, too.
    pub exit: bool,
    pub masquerade: bool,
}

/// What no exit leads to: these are somebody's own networks, and published one by one.
const PRIVATE: [&str; 5] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"];

/// Whether all of a network is what no exit leads to.
pub fn is_private(net: &IpNet) -> bool {
    PRIVATE.iter().any(|private| private.parse::<IpNet>().is_ok_and(|private| private.contains(net)))
}

/// The table of a device.
pub fn forward_table(device: &str) -> String {
    format!("eps-actor-{device}")
}

/// Installs the rules in the calling thread's namespace, in place of those for the same device, in one step.
///
/// Forwarding itself is a setting of each interface.
pub fn forward(wanted: &Forwarding) -> Result<(), NftError> {
    if !(1..libc::IFNAMSIZ).contains(&wanted.device.len()) {
        return Err(NftError::BadName { name: wanted.device.clone() });
    }
    let mut batch = Batch::new(&forward_table(&wanted.device));
    batch.replace_table();
    let device = wanted.device.as_str();
    batch.chain("make a filter chain", FORWARD, "filter", libc::NF_INET_FORWARD, PRIORITY_FILTER);
    for subnet in &wanted.subnets {
        batch.rule("let a subnet be reached", FORWARD, |rule| {
            rule.interface_is(NFT_META_IIFNAME, device);
            rule.address_in(DESTINATION, *subnet);
            rule.accept_it();
        });
    }
    if wanted.exit {
        for private in PRIVATE {
            batch.rule("keep an exit out of a private network", FORWARD, |rule| {
                rule.interface_is(NFT_META_IIFNAME, device);
                rule.address_in(DESTINATION, private.parse().expect("a network"));
                rule.drop_it();
            });
        }
        batch.rule("let the Internet be reached", FORWARD, |rule| {
            rule.interface_is(NFT_META_IIFNAME, device);
            rule.address_in(SOURCE, wanted.network);
            rule.accept_it();
        });
    }
    batch.rule("drop what else members send", FORWARD, |rule| {
        rule.interface_is(NFT_META_IIFNAME, device);
        rule.drop_it();
    });
    batch.rule("let answers back", FORWARD, |rule| {
        rule.interface_is(NFT_META_OIFNAME, device);
        rule.connection_state(CT_ESTABLISHED | CT_RELATED);
        rule.differs(&[0; 4]);
        rule.accept_it();
    });
    for subnet in &wanted.subnets {
        batch.rule("let a subnet reach members", FORWARD, |rule| {
            rule.interface_is(NFT_META_OIFNAME, device);
            rule.address_in(SOURCE, *subnet);
            rule.accept_it();
        });
    }
    batch.rule("drop what else goes to members", FORWARD, |rule| {
        rule.interface_is(NFT_META_OIFNAME, device);
        rule.drop_it();
    });
    if wanted.masquerade {
        batch.chain("make a NAT chain", "postrouting", "nat", libc::NF_INET_POST_ROUTING, PRIORITY_SRCNAT);
        batch.rule("masquerade", "postrouting", |rule| {
            rule.address_in(SOURCE, wanted.network);
            rule.interface(NFT_META_OIFNAME);
            rule.differs(&super::padded_name(device));
            rule.expression("masq", |_| {});
        });
    }
    batch.commit()
}

/// Takes a table of ours away; one that is not there is fine.
pub fn remove_table(name: &str) -> Result<(), NftError> {
    let mut batch = Batch::new(name);
    batch.replace_table();
    batch.delete_table();
    batch.commit()
}

impl Batch {
    /// An empty table, whatever was in it. Making it first lets the deletion succeed.
    fn replace_table(&mut self) {
        self.make_table();
        self.delete_table();
        self.make_table();
    }

    fn make_table(&mut self) {
        let name = self.table.clone();
        self.message("make a table", NFT_MSG_NEWTABLE, |message| message.text(NFTA_TABLE_NAME, &name));
    }

    fn delete_table(&mut self) {
        let (name, kind) = (self.table.clone(), (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | NFT_MSG_DELTABLE);
        self.add("delete a table", kind, libc::NLM_F_ACK, libc::AF_INET, 0, |message| {
            message.text(NFTA_TABLE_NAME, &name);
        });
    }
}

impl Message {
    /// The source's or destination's address of an IPv4 packet, by its place in the header, is in a network.
    fn address_in(&mut self, offset: u32, net: Ipv4Net) {
        self.expression("payload", |payload| {
            payload.number(NFTA_PAYLOAD_DREG, NFT_REG_1);
            payload.number(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER);
            payload.number(NFTA_PAYLOAD_OFFSET, offset);
            payload.number(NFTA_PAYLOAD_LEN, 4);
        });
        self.masked(&net.netmask().octets());
        self.equals(&net.network().octets());
    }

    fn differs(&mut self, value: &[u8]) {
        self.expression("cmp", |cmp| {
            cmp.number(NFTA_CMP_SREG, NFT_REG_1);
            cmp.number(NFTA_CMP_OP, NFT_CMP_NEQ);
            cmp.data(NFTA_CMP_DATA, value);
        });
    }

    fn accept_it(&mut self) {
        self.verdict(libc::NF_ACCEPT);
    }
}

const FORWARD: &str = "forward";
/// Bytes into an IPv4 header (RFC 791, section 3.1).
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

// From linux/netfilter/nf_tables.h.
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_CMP_NEQ: u32 = 1;

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::super::super::netns::{Netns, can_make_networks, ping_once};
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().expect("a network")
    }

    /// The rules as `nft` reads them; `None` where it is not installed.
    fn ruleset(ns: &Netns) -> Option<String> {
        let mut command = Command::new("nft");
        command.args(["list", "ruleset"]).stdout(Stdio::piped());
        let output = ns.spawn(&mut command).ok()?.wait_with_output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn what_is_published_passes_and_nothing_else_and_all_of_it_goes() {
        if !can_make_networks() {
            return;
        }
        let [member, gate, host] = std::array::from_fn(|_| Netns::new().expect("a namespace"));
        Netns::connect((&member, "eps0", "192.168.43.2/24"), (&gate, "eps0", "192.168.43.1/24")).expect("a cable");
        Netns::connect((&host, "eth0", "10.1.0.5/16"), (&gate, "lan", "10.1.0.1/16")).expect("a cable");
        // A host in the Internet, and one in another private network; neither has a route back.
        let outside = Netns::new().expect("a namespace");
        Netns::connect((&outside, "eth0", "203.0.113.5/24"), (&gate, "wan", "203.0.113.1/24")).expect("a cable");
        Netns::connect((&outside, "eth1", "10.9.0.5/16"), (&gate, "other", "10.9.0.1/16")).expect("a cable");
        member.add_default_route(std::net::Ipv4Addr::new(192, 168, 43, 1)).expect("a route");
        gate.sysctl("ipv4/ip_forward", "1").expect("a setting");
        let before = ruleset(&gate);
        let answers = |to: &str, wait| {
            ping_once(&member, None, to.parse().expect("an address"), Duration::from_millis(wait)).is_some()
        };
        let mut wanted = Forwarding {
            device: "eps0".into(),
            network: net("192.168.43.0/24"),
            subnets: vec![net("10.1.0.0/16")],
            exit: false,
            masquerade: true,
        };
        gate.run(|| forward(&wanted)).expect("rules");
        assert!(answers("10.1.0.5", 3000));
        assert!(!answers("10.9.0.5", 200) && !answers("203.0.113.5", 200));

        wanted.exit = true;
        gate.run(|| forward(&wanted)).expect("rules, in place of the others");
        assert!(answers("10.1.0.5", 3000) && answers("203.0.113.5", 3000));
        assert!(!answers("10.9.0.5", 200), "an exit leads into no private network");
        if let Some(rules) = ruleset(&gate).filter(|rules| !rules.is_empty()) {
            for line in ["oifname != \"eps0\" masquerade", "iifname \"eps0\" ip daddr 10.1.0.0/16 accept"] {
                assert!(rules.contains(line), "{line} in {rules}");
            }
        }
        assert!(
            ping_once(&host, None, "192.168.43.2".parse().expect("an address"), Duration::from_millis(200)).is_none()
        );

        gate.run(|| remove_table(&forward_table("eps0"))).expect("gone");
        gate.run(|| remove_table(&forward_table("eps0"))).expect("gone already");
        assert_eq!(ruleset(&gate), before);
    }
}
