//! Leaf types that name things: keys, nodes, peers, stations, uplinks.
//!
//! Each is a newtype so that a peer number is never passed where a session index is meant. They parse and
//! print, and do nothing else.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use blake2::{Blake2s256, Digest};
use serde::{Deserialize, Serialize};

/// An X25519 public key: the identity of a node in a network.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

/// The first 16 bytes of BLAKE2s("eps1 node" ‖ public key); a short name for a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub [u8; 16]);

/// A network, drawn at random when its server first starts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetworkId(pub u64);

/// A small local number for a peer; valid while the process lives, never reused, never on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerIdx(pub u32);

/// A session's number at its receiver, random. The top bit tells the two demultiplexers of a client apart:
/// set, the session is with the server; clear, with a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionIndex(pub u32);

/// A relay channel's token, 64 random bits; each leg of a channel has its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelToken(pub u64);

/// A 48-bit IEEE 802 address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

/// An 802.1Q VLAN id: the low 12 bits of the tag; 0 for untagged and priority-tagged frames.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct VlanId(pub u16);

/// A local socket that datagrams leave by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UplinkId(pub u8);

/// An underlay address a datagram goes to or came from, and the local socket it uses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub uplink: UplinkId,
    pub addr: SocketAddr,
}

/// How a datagram reaches a peer: straight to an endpoint, or inside a RELAY datagram to a relay's endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    pub endpoint: Endpoint,
    pub relay: Option<ChannelToken>,
}

impl PublicKey {
    /// The node's short name.
    pub fn node_id(&self) -> NodeId {
        let digest = Blake2s256::new().chain_update(b"eps1 node").chain_update(self.0).finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        NodeId(id)
    }
}

impl NetworkId {
    /// What handshakes carry instead of the id: the first 8 bytes of BLAKE2s("eps1 net" ‖ network id).
    pub fn tag(self) -> u64 {
        let digest = Blake2s256::new().chain_update(b"eps1 net").chain_update(self.0.to_le_bytes()).finalize();
        u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
    }
}

impl SessionIndex {
    const SERVER_BIT: u32 = 1 << 31;

    /// Makes an index for a session with the server out of 32 random bits.
    pub fn for_server(random: u32) -> Self {
        Self(random | Self::SERVER_BIT)
    }

    /// Makes an index for a session with a peer out of 32 random bits.
    pub fn for_peer(random: u32) -> Self {
        Self(random & !Self::SERVER_BIT)
    }

    /// Whether the session is one with the server (at a client).
    pub fn is_server(self) -> bool {
        self.0 & Self::SERVER_BIT != 0
    }
}

impl MacAddr {
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Group address (multicast or broadcast), by the lowest bit of the first octet (IEEE 802-2014, 8.2.2).
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl UplinkId {
    /// The UDP socket for IPv4.
    pub const UDP4: Self = Self(0);
    /// The UDP socket for IPv6.
    pub const UDP6: Self = Self(1);
    /// Sockets for the uplinks that the configuration names.
    pub const FURTHER: RangeInclusive<u8> = 16..=31;
    /// Sockets that hole punching keeps.
    pub const PUNCHED: RangeInclusive<u8> = 32..=63;
    /// A TCP connection, named by its remote address.
    pub const TCP: Self = Self(255);
    /// At a server: the sockets of its second port, where members ask how they are seen.
    pub const OBSERVER4: Self = Self(32);
    pub const OBSERVER6: Self = Self(33);

    /// Whether this is a socket of a server's second port.
    pub fn is_observer(self) -> bool {
        self == Self::OBSERVER4 || self == Self::OBSERVER6
    }
}

impl Endpoint {
    /// The endpoint for an address, by the UDP socket of its family. IPv4-mapped addresses count as IPv4.
    pub fn udp(addr: SocketAddr) -> Self {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let uplink = if addr.is_ipv4() { UplinkId::UDP4 } else { UplinkId::UDP6 };
        Self { uplink, addr }
    }

    /// The endpoint of a TCP connection to an address.
    pub fn tcp(addr: SocketAddr) -> Self {
        Self { uplink: UplinkId::TCP, addr: SocketAddr::new(addr.ip().to_canonical(), addr.port()) }
    }

    /// Whether it is one of UDP, by whichever socket.
    pub fn is_udp(&self) -> bool {
        self.uplink != UplinkId::TCP
    }
}

impl Route {
    pub fn direct(endpoint: Endpoint) -> Self {
        Self { endpoint, relay: None }
    }

    pub fn relayed(endpoint: Endpoint, token: ChannelToken) -> Self {
        Self { endpoint, relay: Some(token) }
    }

    pub fn is_direct(&self) -> bool {
        self.relay.is_none()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Logs show the first eight digits of the node id, never a whole key.
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.node_id())
    }
}

/// The first eight hexadecimal digits, as logs and tables show it.
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for PeerIdx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer#{}", self.0)
    }
}

impl fmt::Debug for PeerIdx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SessionIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:08x}", self.0)
    }
}

/// A token lets its holder use a channel, so it is not printed.
impl fmt::Debug for ChannelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("channel")
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not six pairs of hexadecimal digits between colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address; write six pairs of hexadecimal digits like 02:00:5e:10:00:01")]
pub struct MacAddrError;

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(MacAddrError)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| MacAddrError)?;
        }
        if parts.next().is_some() { Err(MacAddrError) } else { Ok(Self(octets)) }
    }
}

impl fmt::Debug for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vlan {}", self.0)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uplink {
            UplinkId::TCP => write!(f, "tcp {}", self.addr),
            UplinkId(_) => write!(f, "{}", self.addr),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for UplinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UDP4 => f.write_str("udp4"),
            Self::UDP6 => f.write_str("udp6"),
            Self::TCP => f.write_str("tcp"),
            Self(other) => write!(f, "uplink {other}"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.relay {
            None => write!(f, "direct {}", self.endpoint),
            Some(_) => write!(f, "relay {}", self.endpoint),
        }
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_print_as_they_parse() {
        for text in ["02:00:5e:10:00:01", "ff:ff:ff:ff:ff:ff"] {
            assert_eq!(text.parse::<MacAddr>().map(|mac| mac.to_string()).as_deref(), Ok(text));
        }
        for text in
            ["", "02:00:5e:10:00", "02:00:5e:10:00:01:02", "2:0:5e:10:0:1", "02-00-5e-10-00-01", "+2:00:5e:10:00:0g"]
        {
            assert_eq!(text.parse::<MacAddr>(), Err(MacAddrError), "{text}");
        }
    }

    #[test]
    fn a_mapped_ipv4_address_leaves_by_the_ipv4_socket() {
        let endpoint = Endpoint::udp("[::ffff:192.0.2.1]:7".parse().expect("an address"));
        assert_eq!(endpoint.uplink, UplinkId::UDP4);
        assert_eq!(endpoint.addr, "192.0.2.1:7".parse().expect("an address"));
    }
}
