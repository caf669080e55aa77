//! Policy routing: a table of our own beside the machine's, and the rules that lead there all but our own datagrams.
//!
//! What the machine's main table says of a destination wins, but for its default route ([`Rule::main_first`]). What is
//! left goes by our table unless it carries [`UNDERLAY_MARK`] ([`Rule::unmarked`]). So the datagrams that carry the network
//! never enter the network's own device (criterion N-15), wherever its routes lead.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteMessage, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use super::netlink::{Netlink, NetlinkError, failed};

/// The firewall mark (`SO_MARK`, socket(7)) of every socket of the underlay.
pub const UNDERLAY_MARK: u32 = 0xe95;
/// Metric of what makes a family unreachable: anything else wins.
const LAST: u32 = 0xff00_0000;

/// Marks a socket's datagrams as the underlay's. Without the right to (CAP_NET_ADMIN) there are no routes of ours to keep
/// them out of either.
pub fn mark_underlay(socket: &impl AsFd) {
    if let Err(error) = SockRef::from(socket).set_mark(UNDERLAY_MARK) {
        log::debug!("the underlay's sockets are not marked: {error}");
    }
}

/// A rule of policy routing, as ip-rule(8) shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// IPv6; else IPv4.
    pub six: bool,
    /// Lower ones are asked first; the main table's rule has 32766.
    pub priority: u32,
    pub table: u32,
    /// The main table without its default route; else our table for what carries no mark.
    pub main_first: bool,
}

impl Rule {
    /// `lookup main suppress_prefixlength 0`
    pub fn main_first(six: bool, priority: u32) -> Self {
        Self { six, priority, table: libc::RT_TABLE_MAIN.into(), main_first: true }
    }

    /// `not fwmark MARK lookup TABLE`
    pub fn unmarked(six: bool, priority: u32, table: u32) -> Self {
        Self { six, priority, table, main_first: false }
    }

    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = if self.six { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![RuleAttribute::Priority(self.priority), RuleAttribute::Table(self.table)];
        if self.main_first {
            message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
        } else {
            message.header.flags = RuleFlags::Invert;
            message.attributes.extend([RuleAttribute::FwMark(UNDERLAY_MARK), RuleAttribute::FwMask(u32::MAX)]);
        }
        message
    }
}

/// Where a route of our table leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// To a member, by our device.
    Via { gateway: IpAddr, ifindex: u32 },
    /// Nowhere, unless there is another route.
    Unreachable,
}

impl Netlink {
    /// Adds a rule; one that is there already is fine.
    pub async fn add_rule(&self, rule: &Rule) -> Result<(), NetlinkError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule.message();
        is_fine(request.execute().await.map_err(failed("add a routing rule")), libc::EEXIST)
    }

    /// Deletes a rule; one that is not there is fine.
    pub async fn del_rule(&self, rule: &Rule) -> Result<(), NetlinkError> {
        let deleted = self.handle.rule().del(rule.message()).execute().await;
        is_fine(deleted.map_err(failed("delete a routing rule")), libc::ENOENT)
    }

    /// Puts a route into a table, in place of the one that leads elsewhere.
    pub async fn put_route(&self, table: u32, dst: IpNet, hop: Hop) -> Result<(), NetlinkError> {
        let route = table_route(table, dst, hop);
        self.handle.route().add(route).replace().execute().await.map_err(failed("add a route"))
    }

    /// Puts a route into a table unless it is there. The kernel takes routes away with their device, without a word.
    pub async fn keep_route(&self, table: u32, dst: IpNet, hop: Hop) -> Result<(), NetlinkError> {
        let route = table_route(table, dst, hop);
        is_fine(self.handle.route().add(route).execute().await.map_err(failed("add a route")), libc::EEXIST)
    }

    /// Takes a route out of a table; one that is not there is fine.
    pub async fn drop_route(&self, table: u32, dst: IpNet, hop: Hop) -> Result<(), NetlinkError> {
        let route = table_route(table, dst, hop);
        is_fine(self.handle.route().del(route).execute().await.map_err(failed("delete a route")), libc::ESRCH)
    }
}

fn is_fine(result: Result<(), NetlinkError>, errno: i32) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        other => other,
    }
}

fn table_route(table: u32, dst: IpNet, hop: Hop) -> RouteMessage {
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(dst.network(), dst.prefix_len())
        .expect("an IpNet has a prefix of its own family")
        .table_id(table);
    match hop {
        Hop::Via { gateway, ifindex } => {
            route.gateway(gateway).expect("gateways are of their route's family").output_interface(ifindex).build()
        }
        Hop::Unreachable => route.kind(RouteType::Unreachable).priority(LAST).build(),
    }
}

/// Reads a setting below `/proc/sys/net`, in the calling thread's namespace.
pub fn setting(path: &str) -> io::Result<String> {
    Ok(std::fs::read_to_string(format!("/proc/sys/net/{path}"))?.trim().to_owned())
}

/// Writes a setting below `/proc/sys/net`, in the calling thread's namespace.
pub fn set(path: &str, value: &str) -> io::Result<()> {
    std::fs::write(format!("/proc/sys/net/{path}"), value)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Command;

    use super::super::netns::{Netns, can_make_networks};
    use super::*;
    use crate::io::netlink::source_towards;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    /// What a datagram of a socket without a mark would have as its source.
    fn unmarked_source(to: &str) -> Option<IpAddr> {
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    }

    fn dump(ns: &Netns) -> String {
        ["rule", "-6 rule", "route show table all", "-6 route show table all"]
            .map(|what| {
                let mut command = Command::new("ip");
                command.args(what.split(' ')).stdout(std::process::Stdio::piped());
                let output = ns.spawn(&mut command).expect("ip").wait_with_output().expect("its output");
                String::from_utf8_lossy(&output.stdout).into_owned()
            })
            .concat()
    }

    #[test]
    fn everything_but_the_marked_goes_by_our_table_and_the_machines_own_routes_win() {
        if !can_make_networks() {
            return;
        }
        let (ns, router) = (Netns::new().expect("a namespace"), Netns::new().expect("a namespace"));
        Netns::connect((&ns, "eth0", "198.51.100.2/24"), (&router, "eth0", "198.51.100.1/24")).expect("a cable");
        Netns::connect((&ns, "eps0", "192.168.43.2/24"), (&router, "eps0", "192.168.43.1/24")).expect("a cable");
        ns.add_default_route(std::net::Ipv4Addr::new(198, 51, 100, 1)).expect("a route");
        let before = dump(&ns);
        let netlink = ns.netlink().expect("netlink");
        let rules: Vec<Rule> = [false, true]
            .iter()
            .flat_map(|six| [Rule::main_first(*six, 5000), Rule::unmarked(*six, 5001, 52000)])
            .collect();
        let gateway = "192.168.43.1".parse().expect("an address");
        let (all, all6) = (net("0.0.0.0/0"), net("::/0"));
        smol::block_on(async {
            let ifindex = netlink.link_index("eps0").await.expect("eps0");
            let by_member = Hop::Via { gateway, ifindex };
            for _ in 0..2 {
                // Twice does no harm.
                for (dst, hop) in [(all, Hop::Unreachable), (all6, Hop::Unreachable), (all, by_member)] {
                    netlink.keep_route(52000, dst, hop).await.expect("a route");
                }
                netlink.put_route(52000, all, by_member).await.expect("a route");
                for rule in &rules {
                    netlink.add_rule(rule).await.expect("a rule");
                }
            }
            let source = |to: &str| ns.run(|| unmarked_source(to)).map(|ip| ip.to_string());
            assert_eq!(source("203.0.113.9:9").as_deref(), Some("192.168.43.2"));
            assert_eq!(source("198.51.100.77:9").as_deref(), Some("198.51.100.2"), "a neighbour");
            let marked = ns.run(|| source_towards("203.0.113.9".parse().expect("an address")));
            assert_eq!(marked.map(|ip| ip.to_string()).as_deref(), Some("198.51.100.2"));

            netlink.drop_route(52000, all, by_member).await.expect("gone");
            assert_eq!(source("203.0.113.9:9"), None, "closed rather than leaking");
            for rule in &rules {
                netlink.del_rule(rule).await.expect("gone");
                netlink.del_rule(rule).await.expect("gone already");
            }
            for dst in [all, all6] {
                netlink.drop_route(52000, dst, Hop::Unreachable).await.expect("gone");
                netlink.drop_route(52000, dst, Hop::Unreachable).await.expect("gone already");
            }
        });
        assert_eq!(dump(&ns), before);
    }
}
