//! What the machine's networks look like, as far as datagrams of ours depend on it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::netlink::{InterfaceAddress, Netlink, NetlinkError, source_towards};

/// Addresses nobody has (RFC 5737, RFC 3849): the way to them is the default route.
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// One look at them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Of interfaces that are up, without loopback and the network's own device.
    addresses: Vec<InterfaceAddress>,
    /// From which address datagrams leave, by where they go.
    sources: BTreeMap<IpAddr, Option<IpAddr>>,
    /// Interface, gateway and metric of each default route.
    defaults: Vec<(u32, Option<IpAddr>, u32)>,
}

/// How one look differs from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// There are other addresses; what leaves goes as before.
    Addresses,
    /// What leaves goes another way: from another address, or through another gateway.
    Ways,
}

impl Surroundings {
    /// Looks at the calling thread's namespace, which must be that of `netlink`. `device` is the network's own, and
    /// `overlay` what is inside it; `to` are addresses whose ways matter.
    pub async fn look(
        netlink: &Netlink,
        device: Option<u32>,
        overlay: &[IpNet],
        to: impl Iterator<Item = IpAddr>,
    ) -> Result<Self, NetlinkError> {
        let outside = |ip: &IpAddr| !overlay.iter().any(|net| net.contains(ip));
        let addresses = netlink.addresses().await?.into_iter();
        let addresses = addresses
            .filter(|address| address.is_usable() && address.is_up() && !address.is_loopback())
            .filter(|address| Some(address.ifindex) != device)
            .collect();
        let routes = netlink.routes().await?.into_iter();
        let mut defaults: Vec<_> = routes
            .filter(|route| route.dst.prefix_len() == 0 && Some(route.ifindex) != device)
            .map(|route| (route.ifindex, route.gateway, route.priority))
            .collect();
        defaults.sort_unstable();
        let sources = to.chain(ANYWHERE).map(|to| (to, source_towards(to).filter(outside))).collect();
        Ok(Self { addresses, sources, defaults })
    }

    pub fn addresses(&self) -> impl Iterator<Item = &InterfaceAddress> {
        self.addresses.iter()
    }

    /// What has changed, if it matters.
    pub fn change_since(&self, before: &Self) -> Option<Change> {
        let common = self.sources.iter().filter_map(|(to, from)| Some((from, before.sources.get(to)?)));
        if self.defaults != before.defaults || common.into_iter().any(|(now, then)| now != then) {
            return Some(Change::Ways);
        }
        // Every virtual cable of a container has an address for its link only.
        let global = |seen: &Self| -> Vec<_> {
            let global = seen.addresses.iter().filter(|address| address.scope == 0);
            global.map(|address| (address.ifindex, address.addr)).collect()
        };
        (global(self) != global(before)).then_some(Change::Addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::super::netns::{Netns, can_make_networks};
    use super::*;

    #[test]
    fn a_default_route_an_address_in_use_and_a_link_that_goes_change_the_ways_and_a_further_address_does_not() {
        if !can_make_networks() {
            return;
        }
        let (ns, router) = (Netns::new().expect("a namespace"), Netns::new().expect("a namespace"));
        Netns::connect((&ns, "eth0", "10.0.0.7/24"), (&router, "eth0", "10.0.0.1/24")).expect("a cable");
        Netns::connect((&ns, "wlan0", "10.0.1.7/24"), (&router, "wlan0", "10.0.1.1/24")).expect("a cable");
        let netlink = ns.netlink().expect("netlink");
        let server: IpAddr = "198.51.100.1".parse().expect("an address");
        let look =
            || ns.run(|| smol::block_on(Surroundings::look(&netlink, None, &[], [server].into_iter()))).expect("seen");
        let index = |name| smol::block_on(netlink.link_index(name)).expect("an interface");
        let (eth0, wlan0) = (index("eth0"), index("wlan0"));
        let nowhere = look();
        assert_eq!(nowhere.change_since(&look()), None);

        ns.add_default_route(Ipv4Addr::new(10, 0, 0, 1)).expect("a route");
        let wired = look();
        assert_eq!(wired.change_since(&nowhere), Some(Change::Ways));
        smol::block_on(async {
            netlink.add_address(wlan0, "10.0.1.8".parse().expect("an address"), 24).await.expect("added");
        });
        let further = look();
        assert_eq!(further.change_since(&wired), Some(Change::Addresses));

        smol::block_on(netlink.del_default_route(Ipv4Addr::new(10, 0, 0, 1))).expect("gone");
        ns.add_default_route(Ipv4Addr::new(10, 0, 1, 1)).expect("a route");
        let wireless = look();
        assert_eq!(wireless.change_since(&further), Some(Change::Ways));

        smol::block_on(netlink.set_down(eth0)).expect("down");
        let alone = look();
        assert_eq!(alone.change_since(&wireless), Some(Change::Addresses), "nothing of ours left by it");
        smol::block_on(netlink.set_down(wlan0)).expect("down");
        assert_eq!(look().change_since(&alone), Some(Change::Ways));
    }
}
