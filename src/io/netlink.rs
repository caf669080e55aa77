//! Links, addresses and routes of this machine, by rtnetlink.
//!
//! A netlink socket belongs to the network namespace of the thread that opens it, for good. So [`Netlink::open`] and
//! [`NetlinkWatch::open`] are plain functions that open it there and then, while their futures run on any thread.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use async_io::Async;
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType, RouteVia,
};
use rtnetlink::sys::SmolSocket;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, MulticastGroup, RouteMessageBuilder};
use smol::Task;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::policy::mark_underlay;

/// A conversation with the kernel about one network namespace.
#[derive(Debug)]
pub struct Netlink {
    pub(super) handle: Handle,
    /// Moves requests and answers; ends with this struct.
    _connection: Task<()>,
}

/// Why the kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    #[error("not permitted to {operation}; run as root or with CAP_NET_ADMIN")]
    NotPermitted { operation: &'static str },
    #[error("there is no interface {name}")]
    NoSuchLink { name: String },
    #[error("cannot {operation}: {source}")]
    Refused { operation: &'static str, source: io::Error },
    #[error("cannot {operation}: {source}")]
    Protocol { operation: &'static str, source: rtnetlink::Error },
}

impl NetlinkError {
    /// The kernel's error number, if it gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Open(source) | Self::Refused { source, .. } => source.raw_os_error(),
            Self::NotPermitted { .. } => Some(libc::EPERM),
            Self::NoSuchLink { .. } => Some(libc::ENODEV),
            Self::Protocol { .. } => None,
        }
    }
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    pub ifindex: u32,
    pub name: String,
    pub addr: IpAddr,
    /// Bits of the network's prefix.
    pub prefix: u8,
    /// The kernel's scope: 0 global, 200 site, 253 link, 254 host.
    pub scope: u8,
    /// `IFA_F_*` bits of the address.
    pub flags: u32,
    /// `IFF_*` bits of the interface.
    pub link_flags: u32,
}

impl InterfaceAddress {
    /// Whether the interface is up and has a carrier.
    pub fn is_up(&self) -> bool {
        let running = (libc::IFF_UP | libc::IFF_LOWER_UP) as u32;
        self.link_flags & running == running
    }

    pub fn is_loopback(&self) -> bool {
        self.addr.is_loopback() || self.link_flags & libc::IFF_LOOPBACK as u32 != 0
    }

    /// Whether the address may be used: not still being checked for duplicates, not found to be one.
    pub fn is_usable(&self) -> bool {
        let (tentative, failed) = (AddressFlags::Tentative.bits(), AddressFlags::Dadfailed.bits());
        self.flags & (tentative | failed) == 0
    }
}

/// A unicast route of the main table, one entry for each next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteEntry {
    pub dst: IpNet,
    /// The interface it leaves by; 0 if the route names none.
    pub ifindex: u32,
    /// That interface's name, empty if there is none.
    pub name: String,
    pub gateway: Option<IpAddr>,
    /// The source address it prefers.
    pub source: Option<IpAddr>,
    /// Metric; lower wins.
    pub priority: u32,
    pub table: u32,
}

impl Netlink {
    /// Opens the conversation in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection_with_socket::<SmolSocket>().map_err(NetlinkError::Open)?;
        Ok(Self { handle, _connection: smol::spawn(connection) })
    }

    /// The index of the interface called `name`.
    pub async fn link_index(&self, name: &str) -> Result<u32, NetlinkError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await.map_err(failed("look up an interface")) {
            Ok(Some(link)) => Ok(link.header.index),
            Ok(None) => Err(NetlinkError::NoSuchLink { name: name.to_owned() }),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                Err(NetlinkError::NoSuchLink { name: name.to_owned() })
            }
            Err(error) => Err(error),
        }
    }

    /// Whether an interface is up, has a carrier, and the kernel has started to send by it.
    pub async fn is_running(&self, ifindex: u32) -> Result<bool, NetlinkError> {
        let mut links = self.handle.link().get().match_index(ifindex).execute();
        let link = links.try_next().await.map_err(failed("look up an interface"))?;
        Ok(link.is_some_and(|link| link.header.flags.bits() & libc::IFF_RUNNING as u32 != 0))
    }

    pub async fn set_up(&self, ifindex: u32) -> Result<(), NetlinkError> {
        self.change("bring an interface up", link(ifindex).up()).await
    }

    pub async fn set_down(&self, ifindex: u32) -> Result<(), NetlinkError> {
        self.change("take an interface down", link(ifindex).down()).await
    }

    /// Sets the largest super-frame, in bytes, that the kernel makes for this interface (`IFLA_GSO_MAX_SIZE`).
    pub async fn set_gso_max_size(&self, ifindex: u32, bytes: u32) -> Result<(), NetlinkError> {
        let limited = link(ifindex).append_extra_attribute(LinkAttribute::GsoMaxSize(bytes));
        self.change("limit the super-frames of an interface", limited).await
    }

    /// Plugs an interface into a bridge.
    pub async fn set_master(&self, ifindex: u32, bridge: u32) -> Result<(), NetlinkError> {
        self.change("add an interface to a bridge", link(ifindex).controller(bridge)).await
    }

    async fn change(&self, operation: &'static str, link: LinkMessageBuilder<LinkUnspec>) -> Result<(), NetlinkError> {
        self.handle.link().change(link.build()).execute().await.map_err(failed(operation))
    }

    /// Makes a cable with the ends `a` and `b`, both down.
    #[cfg(test)]
    pub async fn create_veth(&self, a: &str, b: &str) -> Result<(), NetlinkError> {
        let pair = LinkVeth::new(a, b).build();
        self.handle.link().add(pair).execute().await.map_err(failed("create a veth pair"))
    }

    /// Makes a cable with the end `a` here and the end `b` in the namespace `netns`, both down.
    pub async fn create_veth_into(&self, a: &str, b: &str, netns: BorrowedFd<'_>) -> Result<(), NetlinkError> {
        // The kernel takes a cable for something slow, whose carrier may wait a second, when the indices of its ends
        // are equal by chance (`linkwatch_urgent_event`). So the far end gets a number that no near end has.
        static FAR_INDEX: AtomicU32 = AtomicU32::new(1 << 16);
        let index = FAR_INDEX.fetch_add(1, Relaxed);
        let far = LinkMessageBuilder::<LinkUnspec>::new().name(b).index(index).setns_by_fd(netns.as_raw_fd()).build();
        let pair = LinkVeth::new(a, b).set_info_data(InfoData::Veth(InfoVeth::Peer(far))).build();
        self.handle.link().add(pair).execute().await.map_err(failed("create a veth pair"))
    }

    /// Makes a bridge, down.
    pub async fn create_bridge(&self, name: &str) -> Result<(), NetlinkError> {
        self.handle.link().add(LinkBridge::new(name).build()).execute().await.map_err(failed("create a bridge"))
    }

    pub async fn delete_link(&self, ifindex: u32) -> Result<(), NetlinkError> {
        self.handle.link().del(ifindex).execute().await.map_err(failed("delete an interface"))
    }

    /// Puts an address on an interface; the kernel adds the route to its network.
    ///
    /// IPv6 addresses skip duplicate detection, which would leave them unusable for seconds: whoever assigns
    /// addresses here knows that they are unique.
    pub async fn add_address(&self, ifindex: u32, addr: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let mut request = self.handle.address().add(ifindex, addr, prefix);
        if addr.is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.map_err(failed("add an address"))
    }

    pub async fn del_address(&self, ifindex: u32, addr: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let mut request = self.handle.address().add(ifindex, addr, prefix);
        let message = mem::take(request.message_mut());
        self.handle.address().del(message).execute().await.map_err(failed("delete an address"))
    }

    /// Routes `dst` straight to an interface.
    pub async fn add_route(&self, ifindex: u32, dst: IpNet) -> Result<(), NetlinkError> {
        self.handle.route().add(device_route(ifindex, dst)).execute().await.map_err(failed("add a route"))
    }

    /// Takes back [`Self::add_route`].
    pub async fn del_route(&self, ifindex: u32, dst: IpNet) -> Result<(), NetlinkError> {
        self.handle.route().del(device_route(ifindex, dst)).execute().await.map_err(failed("delete a route"))
    }

    /// Routes everything of the gateway's family to it.
    pub async fn add_default_route(&self, gateway: impl Into<IpAddr>) -> Result<(), NetlinkError> {
        let route = default_route(gateway.into());
        self.handle.route().add(route).execute().await.map_err(failed("add a default route"))
    }

    /// Takes back [`Self::add_default_route`].
    pub async fn del_default_route(&self, gateway: impl Into<IpAddr>) -> Result<(), NetlinkError> {
        let route = default_route(gateway.into());
        self.handle.route().del(route).execute().await.map_err(failed("delete a default route"))
    }

    /// The name and the flags (IFF_*, netdevice(7)) of every interface, by index.
    async fn links(&self) -> Result<BTreeMap<u32, (String, u32)>, NetlinkError> {
        let mut links = BTreeMap::new();
        let mut answers = self.handle.link().get().execute();
        while let Some(answer) = answers.try_next().await.map_err(failed("list interfaces"))? {
            let name = answer.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            links.insert(answer.header.index, (name.unwrap_or_default(), answer.header.flags.bits()));
        }
        Ok(links)
    }

    /// Every address of every interface, ordered by interface.
    pub async fn addresses(&self) -> Result<Vec<InterfaceAddress>, NetlinkError> {
        let links = self.links().await?;
        let mut addresses = Vec::new();
        let mut answers = self.handle.address().get().execute();
        while let Some(answer) = answers.try_next().await.map_err(failed("list addresses"))? {
            let (mut local, mut remote, mut flags) = (None, None, u32::from(answer.header.flags.bits()));
            for attribute in &answer.attributes {
                match attribute {
                    AddressAttribute::Local(addr) => local = Some(*addr),
                    AddressAttribute::Address(addr) => remote = Some(*addr),
                    AddressAttribute::Flags(all) => flags = all.bits(),
                    _ => {}
                }
            }
            // "Address" is the other end of a point-to-point interface; without a "local" it is our own.
            let (Some(addr), Some((name, link_flags))) = (local.or(remote), links.get(&answer.header.index)) else {
                continue;
            };
            addresses.push(InterfaceAddress {
                ifindex: answer.header.index,
                name: name.clone(),
                addr,
                prefix: answer.header.prefix_len,
                scope: answer.header.scope.into(),
                flags,
                link_flags: *link_flags,
            });
        }
        addresses.sort_by_key(|address| (address.ifindex, address.addr));
        Ok(addresses)
    }

    /// The unicast routes of the main table, IPv4 first.
    pub async fn routes(&self) -> Result<Vec<RouteEntry>, NetlinkError> {
        let links = self.links().await?;
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            let mut answers = self.handle.route().get(query).execute();
            while let Some(answer) = answers.try_next().await.map_err(failed("list routes"))? {
                routes.extend(route_entries(&answer, &links));
            }
        }
        Ok(routes)
    }
}

/// Lets an interface keep its IPv6 addresses while it is down, in the calling thread's namespace. IPv4 keeps them anyway.
pub fn keep_addresses(ifname: &str) -> io::Result<()> {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{ifname}/keep_addr_on_down"), "1")
}

/// The local address that a datagram of the underlay to `to` would have as its source, or `None` if there is no route.
///
/// Nothing is sent. Asks in the calling thread's network namespace.
pub fn source_towards(to: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    mark_underlay(&socket);
    // The port does not matter, only that it is not 0.
    socket.connect(SocketAddr::new(to, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The local IPv4 address that the default route uses, if there is one, in the calling thread's namespace.
pub fn default_source() -> Option<Ipv4Addr> {
    // An address for documentation (RFC 5737): no machine has a narrower route to it.
    match source_towards(Ipv4Addr::new(192, 0, 2, 1).into())? {
        IpAddr::V4(addr) => Some(addr),
        IpAddr::V6(_) => None,
    }
}

/// Tells of changes to links, addresses and routes in one network namespace.
#[derive(Debug)]
pub struct NetlinkWatch {
    socket: Async<Socket>,
}

impl NetlinkWatch {
    /// Watches the calling thread's network namespace from here on.
    pub fn open() -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let groups = groups.iter().fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
        let socket = netlink_socket(libc::NETLINK_ROUTE, groups).and_then(Async::new).map_err(NetlinkError::Open)?;
        Ok(Self { socket })
    }

    /// One whose socket has failed.
    #[cfg(test)]
    pub(super) fn failing() -> Self {
        // Of another kind, and connected to nobody: it can be read at once, and that fails.
        let end = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        Self { socket: Async::new(end).expect("registered") }
    }

    /// Waits for a change since the last call. Several changes in a row may count as one; what changed is to be read
    /// with [`Netlink`]. Safe to drop.
    pub async fn changed(&self) -> Result<(), NetlinkError> {
        const OPERATION: &str = "watch the network";
        loop {
            self.socket.readable().await.map_err(|source| NetlinkError::Refused { operation: OPERATION, source })?;
            let mut seen = false;
            loop {
                // The kernel cuts the message to the buffer; its content does not matter.
                match self.socket.get_ref().recv(&mut [mem::MaybeUninit::uninit(); 16]) {
                    Ok(_) => seen = true,
                    // Changes came faster than we read, and some messages are lost: all the more a change.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => seen = true,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(source) => return Err(NetlinkError::Refused { operation: OPERATION, source }),
                }
            }
            if seen {
                return Ok(());
            }
        }
    }
}

/// A bound netlink socket in the calling thread's namespace, listening to the multicast groups in the mask.
pub(super) fn netlink_socket(protocol: libc::c_int, groups: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))?;
    // SAFETY: the closure writes a sockaddr_nl, which is smaller than the storage, and gives its length.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let mut address: libc::sockaddr_nl = mem::zeroed();
            address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
            address.nl_groups = groups;
            storage.cast::<libc::sockaddr_nl>().write(address);
            *length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            Ok(())
        })?
    };
    socket.bind(&address)?;
    Ok(socket)
}

fn link(ifindex: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(ifindex)
}

fn device_route(ifindex: u32, dst: IpNet) -> RouteMessage {
    RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(dst.network(), dst.prefix_len())
        .expect("an IpNet has a prefix of its own family")
        .output_interface(ifindex)
        .scope(if dst.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe })
        .build()
}

fn default_route(gateway: IpAddr) -> RouteMessage {
    match gateway {
        IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build(),
        IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).build(),
    }
}

fn route_entries(route: &RouteMessage, links: &BTreeMap<u32, (String, u32)>) -> Vec<RouteEntry> {
    let mut table = u32::from(route.header.table);
    let any = match route.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let (mut dst, mut source, mut priority) = (any, None, 0);
    let mut hops = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(addr) => dst = ip(addr).unwrap_or(any),
            RouteAttribute::PrefSource(addr) => source = ip(addr),
            RouteAttribute::Priority(metric) => priority = *metric,
            RouteAttribute::MultiPath(all) => {
                hops.extend(all.iter().map(|hop| (hop.interface_index, gateway(&hop.attributes))));
            }
            _ => {}
        }
    }
    if hops.is_empty() {
        let ifindex = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        hops.push((ifindex.unwrap_or(0), gateway(&route.attributes)));
    }
    let dst = IpNet::new(dst, route.header.destination_prefix_length);
    let (Ok(dst), RouteType::Unicast, true) = (dst, route.header.kind, table == u32::from(RouteHeader::RT_TABLE_MAIN))
    else {
        return Vec::new();
    };
    let entry = |(ifindex, gateway)| {
        let name = links.get(&ifindex).map(|(name, _)| name.clone()).unwrap_or_default();
        RouteEntry { dst, ifindex, name, gateway, source, priority, table }
    };
    hops.into_iter().map(entry).collect()
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(addr) => ip(addr),
        RouteAttribute::Via(RouteVia::Inet(addr)) => Some(IpAddr::V4(*addr)),
        RouteAttribute::Via(RouteVia::Inet6(addr)) => Some(IpAddr::V6(*addr)),
        _ => None,
    })
}

fn ip(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(addr) => Some(IpAddr::V4(*addr)),
        RouteAddress::Inet6(addr) => Some(IpAddr::V6(*addr)),
        _ => None,
    }
}

pub(super) fn failed(operation: &'static str) -> impl Fn(rtnetlink::Error) -> NetlinkError {
    move |error| match error {
        rtnetlink::Error::NetlinkError(message) => {
            let source = message.to_io();
            match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => NetlinkError::NotPermitted { operation },
                _ => NetlinkError::Refused { operation, source },
            }
        }
        source => NetlinkError::Protocol { operation, source },
    }
}

#[cfg(test)]
mod tests {
    use super::super::netns::{Netns, can_make_networks};
    use super::*;
    use std::future::Future;
    use std::time::Duration;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    /// Runs a test in a namespace of its own, or not at all.
    fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce(Netlink) -> F) {
        if !can_make_networks() {
            return;
        }
        let ns = Netns::new().expect("a namespace");
        smol::block_on(test(ns.netlink().expect("a netlink socket")));
    }

    #[test]
    fn a_missing_interface_is_named_in_the_error() {
        in_namespace(async |netlink| {
            let error = netlink.link_index("nowhere").await.expect_err("missing");
            assert_eq!(error.to_string(), "there is no interface nowhere");
            assert_eq!(netlink.link_index("lo").await.expect("loopback"), 1);
        });
    }

    #[test]
    fn addresses_and_routes_are_listed_as_they_were_added_and_deleted() {
        in_namespace(async |netlink| {
            netlink.create_veth("left", "right").await.expect("a cable");
            let left = netlink.link_index("left").await.expect("left");
            let right = netlink.link_index("right").await.expect("right");
            netlink.set_up(left).await.expect("up");
            netlink.set_up(right).await.expect("up");
            for cidr in ["10.1.0.1/24", "fd00:1::1/64"] {
                netlink.add_address(left, net(cidr).addr(), net(cidr).prefix_len()).await.expect(cidr);
            }

            let of_left = async || {
                let all = netlink.addresses().await.expect("addresses");
                let ours = all.into_iter().filter(|a| a.name == "left" && a.scope == 0);
                ours.map(|a| (a.addr.to_string(), a.prefix, a.is_up(), a.is_usable())).collect::<Vec<_>>()
            };
            let expected = [("10.1.0.1".to_owned(), 24, true, true), ("fd00:1::1".to_owned(), 64, true, true)];
            assert_eq!(of_left().await, expected);

            netlink.add_route(left, net("10.9.0.0/16")).await.expect("a route");
            netlink.add_route(left, net("fd00:9::/48")).await.expect("a route");
            netlink.add_default_route(Ipv4Addr::new(10, 1, 0, 254)).await.expect("a default route");
            let routes = netlink.routes().await.expect("routes");
            let find = |dst: &str| routes.iter().find(|route| route.dst == net(dst)).expect(dst);
            assert_eq!(find("10.9.0.0/16").ifindex, left);
            assert_eq!(find("fd00:9::/48").ifindex, left);
            assert_eq!(find("10.1.0.0/24").source, Some(net("10.1.0.1/24").addr()));
            assert_eq!(find("0.0.0.0/0").gateway, Some(net("10.1.0.254/32").addr()));

            netlink.del_route(left, net("10.9.0.0/16")).await.expect("gone");
            netlink.del_default_route(Ipv4Addr::new(10, 1, 0, 254)).await.expect("gone");
            let routes = netlink.routes().await.expect("routes");
            assert!(routes.iter().all(|route| route.gateway.is_none() && route.dst != net("10.9.0.0/16")));
            netlink.del_address(left, net("10.1.0.1/24").addr(), 24).await.expect("gone");
            assert_eq!(of_left().await, expected[1..]);
            netlink.set_down(left).await.expect("down");
            netlink.delete_link(left).await.expect("gone");
            assert!(netlink.link_index("right").await.is_err());
        });
    }

    #[test]
    fn the_default_source_is_the_address_towards_the_default_route() {
        if !can_make_networks() {
            return;
        }
        let (ns, router) = (Netns::new().expect("a namespace"), Netns::new().expect("a namespace"));
        assert_eq!(ns.run(default_source), None);
        Netns::connect((&ns, "eth0", "10.0.0.7/24"), (&router, "eth0", "10.0.0.1/24")).expect("a cable");
        ns.add_default_route(Ipv4Addr::new(10, 0, 0, 1)).expect("a route");
        assert_eq!(ns.run(default_source), Some(Ipv4Addr::new(10, 0, 0, 7)));
    }

    #[test]
    fn a_watch_tells_of_a_new_address_and_then_is_quiet() {
        if !can_make_networks() {
            return;
        }
        let ns = Netns::new().expect("a namespace");
        let watch = ns.run(NetlinkWatch::open).expect("a watch");
        let netlink = ns.netlink().expect("a netlink socket");
        let changed = async |wait: Duration| {
            let quiet = async {
                smol::Timer::after(wait).await;
                false
            };
            let news = async { watch.changed().await.map(|()| true).expect("a change") };
            smol::future::or(news, quiet).await
        };
        smol::block_on(async {
            while changed(Duration::from_millis(300)).await {}
            netlink.add_address(1, net("10.5.5.5/32").addr(), 32).await.expect("an address");
            assert!(changed(Duration::from_secs(3)).await);
            while changed(Duration::from_millis(300)).await {}
        });
    }
}
