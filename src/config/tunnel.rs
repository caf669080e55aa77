//! The settings of `eps-actor tunnel`. It has options only, as multi_tun has, and no configuration file.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::ScorecardFormat;
use crate::proto::duplicates::PACKET_MAX;
use crate::proto::tunnel::{End, Keys};

/// Where a tunnel answers `status`, if no other is named.
pub const TUNNEL_CONTROL: &str = "/run/eps-actor/tunnel.sock";
/// Seconds a server remembers a silent endpoint for, if no other number is given.
pub const TUNNEL_TIMEOUT_SECONDS: u32 = 20;
/// Pairs of addresses a client may have; multi_tun had room for 99, and did not look.
pub const PAIRS_MAX: usize = 99;
/// The device's MTU with multi_tun's protocol, whose datagrams hold no more.
pub const TUNNEL_MTU: u16 = PACKET_MAX as u16;
/// The device's MTU with our own protocol: sealed, over IPv6, a packet still fits 1,500 bytes.
pub const NATIVE_MTU: u16 = 1400;

/// A tunnel's settings, checked.
pub struct TunnelConfig {
    pub end: End,
    /// Of the device, with their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// A server's own.
    pub listen: Vec<IpAddr>,
    /// A client's paths.
    pub pairs: Vec<PathPair>,
    /// UDP port of the server.
    pub port: u16,
    /// Whether a full socket is waited for, a moment.
    pub waits: bool,
    pub timeout: Duration,
    /// For our own protocol; `None` speaks multi_tun's.
    pub keys: Option<Keys>,
    /// `None`: the default path, if nobody else listens there.
    pub control: Option<PathBuf>,
    pub scorecard: Option<(PathBuf, ScorecardFormat)>,
    pub metrics: Option<SocketAddr>,
    pub graphviz: Option<PathBuf>,
}

/// A client's path: from an address of this machine to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPair {
    pub bind: IpAddr,
    /// An address or a name.
    pub server: String,
}

impl TunnelConfig {
    /// Bytes of a packet on the device.
    pub fn mtu(&self) -> u16 {
        if self.keys.is_some() { NATIVE_MTU } else { TUNNEL_MTU }
    }
}

impl PathPair {
    /// Reads `BIND:SERVER`; an IPv6 address stands in brackets.
    ///
    /// # Errors
    /// What is wrong, and how to write it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let help = || {
            format!(
                "{text:?} is no pair: write OWN-ADDRESS:SERVER, like 192.168.123.2:192.168.123.1, and an IPv6 address in \
                 brackets, like [fd00::2]:[fd00::1]"
            )
        };
        let (bind, server) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once("]:"),
            None => text.split_once(':'),
        }
        .ok_or_else(help)?;
        let bind: IpAddr = bind.parse().map_err(|_| help())?;
        if bind.is_ipv6() != text.starts_with('[') {
            return Err(help());
        }
        let bare = server.strip_prefix('[').and_then(|server| server.strip_suffix(']'));
        let is_name = |name: &str| {
            !name.is_empty()
                && name.len() <= 253
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        let server = match (bare, server.parse::<IpAddr>()) {
            (Some(v6), _) if v6.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) => v6,
            (None, Ok(IpAddr::V4(_))) => server,
            (None, Err(_)) if is_name(server) => server,
            _ => return Err(help()),
        };
        if server.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4() != bind.is_ipv4()) {
            return Err(format!("{text:?}: both addresses of a pair are IPv4, or both IPv6"));
        }
        Ok(Self { bind, server: server.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_and_others_told_how_to_write_one() {
        let pair = |text: &str| PathPair::parse(text).map(|pair| (pair.bind.to_string(), pair.server));
        let good = |bind: &str, server: &str| Ok((bind.to_owned(), server.to_owned()));
        assert_eq!(pair("192.168.123.2:192.168.123.1"), good("192.168.123.2", "192.168.123.1"));
        assert_eq!(pair("10.0.0.2:tunnel.example.org"), good("10.0.0.2", "tunnel.example.org"));
        assert_eq!(pair("[fd00::2]:[fd00::1]"), good("fd00::2", "fd00::1"));
        assert_eq!(pair("[::]:tunnel.example.org"), good("::", "tunnel.example.org"));
        for bad in ["", "10.0.0.1", "10.0.0.1:", "x:10.0.0.1", "fd00::2:fd00::1", "[fd00::2]:fd00::1", "10.0.0.1:a b"] {
            assert!(pair(bad).is_err_and(|why| why.contains("OWN-ADDRESS:SERVER")), "{bad:?}");
        }
        assert!(pair("10.0.0.1:[fd00::1]").is_err_and(|why| why.contains("both")));
        assert!(pair("10.0.0.1:[10.0.0.2]").is_err());
    }
}
