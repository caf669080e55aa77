//! What the control socket answers to `status`, as the commands read it.
//!
//! Fields that are missing get a default and unknown ones are passed over, so that a program and a node of different
//! versions can talk.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The status of a node in either role.
#[allow(clippy::large_enum_variant, reason = "one is made for each question, and none is kept")]
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Status {
    Client(ClientStatus),
    Server(ServerStatus),
    Tunnel(TunnelStatus),
    Cloud(CloudStatus),
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ClientStatus {
    pub version: String,
    pub uptime_seconds: f64,
    pub node: ClientNode,
    pub server: ServerContact,
    pub gateway: Gateway,
    pub nat: Nat,
    pub routing: Routing,
    pub peers: Vec<Peer>,
    /// The port to the ethcloud that it bridges, where it does.
    pub cloud: Option<CloudPort>,
    pub counters: BTreeMap<String, f64>,
    pub actors: Vec<Actor>,
    pub events: Vec<String>,
}

/// The client itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ClientNode {
    pub name: String,
    pub id: String,
    /// With its prefix; `None` before there is a lease.
    pub address: Option<String>,
    pub address6: Option<String>,
    /// `None` before there is a lease.
    pub mac: Option<String>,
    pub device: Option<String>,
    pub mtu: u64,
    /// What the kernel leaves to us at the device; `None` if frames pass one by one.
    pub offload: Option<Vec<String>>,
    /// In words: `connected`, `joining`, `offline (from the stored map)`.
    pub state: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ServerContact {
    pub connected: bool,
    pub endpoint: Option<String>,
    pub last_contact_seconds: Option<f64>,
    pub map_version: u64,
    /// `None` before first contact.
    pub network: Option<String>,
}

/// The NAT in front of a client.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Nat {
    /// `none`, `easy`, `predictable`, `hard` or `unknown`.
    pub kind: String,
    pub observed: Vec<String>,
    pub predicted: Option<String>,
}

/// What the gateway maps to a node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Gateway {
    /// `off`, `asking`, `mapped` or `none`.
    pub state: String,
    pub address: Option<String>,
    /// Why a port is not mapped.
    pub reason: Option<String>,
    pub mappings: Vec<PortMapping>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PortMapping {
    /// `PCP`, `NAT-PMP` or `UPnP-IGD`.
    pub protocol: String,
    /// `UDP` or `TCP`.
    pub transport: String,
    pub port: u16,
    pub external: String,
    /// Left; `None` for one without an end.
    pub lifetime_seconds: Option<f64>,
}

/// What a client does for subnets beyond the network.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Routing {
    pub published: Vec<String>,
    pub not_allowed: Vec<String>,
    pub accepted: Vec<AcceptedRoute>,
    pub refused: Vec<RefusedRoute>,
    pub exit: Option<ExitState>,
    pub trouble: Option<String>,
}

/// A subnet that is reached through a member.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct AcceptedRoute {
    pub subnet: String,
    pub gateway: String,
    pub peer: Option<String>,
}

/// A subnet that a member publishes and this machine does not take up.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RefusedRoute {
    pub subnet: String,
    pub reason: String,
}

/// The way to the Internet.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ExitState {
    pub peer: String,
    /// `up`, `closed` or `waiting`.
    pub state: String,
    pub reason: Option<String>,
}

/// Another client, as a client sees it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Peer {
    pub name: String,
    pub id: String,
    pub address: Option<String>,
    pub address6: Option<String>,
    pub mac: String,
    pub online: bool,
    /// `direct`, `relay`, `searching`, `lost`, `idle` or `offline`.
    pub state: String,
    pub path: Option<String>,
    pub rtt_ms: Option<f64>,
    /// Octets of an IP packet.
    pub path_mtu: Option<u16>,
    pub last_proof_seconds: Option<f64>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub session_age_seconds: Option<f64>,
    pub suite: Option<String>,
    /// Subnets it publishes; `0.0.0.0/0` is the Internet.
    pub routes: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ServerStatus {
    pub version: String,
    pub uptime_seconds: f64,
    pub node: ServerNode,
    pub lease_free: u64,
    /// Whether there is an invitation that somebody could still use.
    pub invitations: bool,
    pub map_version: u64,
    pub epoch: u64,
    pub gateway: Gateway,
    pub leases: Vec<Lease>,
    pub counters: BTreeMap<String, f64>,
    pub actors: Vec<Actor>,
    pub events: Vec<String>,
}

/// The server itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ServerNode {
    pub id: String,
    pub network: String,
    pub addresses: String,
    pub addresses6: Option<String>,
    pub port: u16,
    pub open: bool,
    pub fingerprint: String,
}

/// A member, as the server sees it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Lease {
    pub name: String,
    pub id: String,
    pub address: Option<String>,
    pub address6: Option<String>,
    pub mac: String,
    pub online: bool,
    pub endpoint: Option<String>,
    pub last_heard_seconds: Option<f64>,
    pub connected_seconds: Option<f64>,
    pub joined_unix: Option<u64>,
    pub rights: Vec<String>,
    /// Subnets it publishes; `0.0.0.0/0` is the Internet.
    pub routes: Vec<String>,
    /// What it would publish and may not, with the reason.
    pub rejected_routes: Vec<String>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub peers: Vec<LeasePeer>,
}

/// How a member reaches another one, by its own account.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LeasePeer {
    pub name: String,
    pub path: String,
    pub rtt_ms: Option<f64>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

/// A tunnel over several paths.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct TunnelStatus {
    pub version: String,
    pub uptime_seconds: f64,
    pub node: TunnelNode,
    pub paths: Vec<TunnelPath>,
    pub counters: BTreeMap<String, f64>,
    pub actors: Vec<Actor>,
    pub events: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct TunnelNode {
    /// `server` or `client`.
    pub end: String,
    /// `multi_tun` or `native`.
    pub protocol: String,
    pub addresses: Vec<String>,
    pub device: Option<String>,
    pub mtu: u64,
    pub listen: Vec<String>,
    pub port: u16,
    pub session_age_seconds: Option<f64>,
    pub suite: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct TunnelPath {
    pub from: Option<String>,
    pub to: Option<String>,
    /// `up`, `silent`, `failing` or `waiting`.
    pub state: String,
    pub failure: Option<String>,
    pub last_heard_seconds: Option<f64>,
    pub rtt_ms: Option<f64>,
    pub rx_datagrams: u64,
    pub rx_bytes: u64,
    pub duplicates: u64,
    pub tx_datagrams: u64,
    pub tx_bytes: u64,
    pub tx_dropped: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Actor {
    pub name: String,
    pub state: String,
    pub restarts: u64,
    pub last_stop: Option<String>,
    pub mailbox: String,
    pub policy: String,
}

/// One end of an ethcloud.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CloudStatus {
    pub version: String,
    pub uptime_seconds: f64,
    pub node: CloudNode,
    pub peers: Vec<CloudPeer>,
    pub stations: Vec<CloudStation>,
    pub counters: BTreeMap<String, f64>,
    pub actors: Vec<Actor>,
    pub events: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CloudNode {
    pub device: Option<String>,
    pub listen: Vec<String>,
    pub connect: Vec<String>,
    pub peer_timeout_seconds: u64,
    pub mac_timeout_seconds: u64,
    pub stations: u64,
}

/// The port of a member that bridges an ethcloud.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CloudPort {
    /// In a word: `open`, `waiting`, `held back`, `no right`.
    pub state: String,
    pub held_for: Option<String>,
    pub listen: Vec<String>,
    pub connect: Vec<String>,
    pub stations: u64,
    pub peers: Vec<CloudPeer>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CloudPeer {
    pub address: String,
    /// Of the same node.
    pub also: Vec<String>,
    pub connected_seconds: f64,
    pub last_heard_seconds: Option<f64>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub stations: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CloudStation {
    pub mac: String,
    pub vlan: u16,
    pub peer: String,
    pub last_seen_seconds: f64,
}

impl Status {
    /// Reads a reply to `status`.
    pub fn read(reply: &Value) -> anyhow::Result<Self> {
        Self::deserialize(reply).map_err(|error| {
            anyhow::anyhow!("the status is not as expected ({error}); are this program and the node of one version?")
        })
    }
}

impl ClientStatus {
    /// The peer of this name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_of_another_version_is_read_as_far_as_possible() {
        let reply = json!({"role": "client", "future": 1, "node": {"name": "a", "address": null}, "peers": [{}]});
        let Ok(Status::Client(status)) = Status::read(&reply) else { panic!("a client's status") };
        assert_eq!((status.node.name.as_str(), status.peers.len()), ("a", 1));
    }

    #[test]
    fn something_else_is_refused() {
        let error = Status::read(&json!({"role": "printer"})).expect_err("no role").to_string();
        assert!(error.contains("printer") && error.contains("one version"), "{error}");
    }
}
