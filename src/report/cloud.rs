//! An ethcloud in a snapshot: its peers, where stations are, and its map.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use serde::Serialize;

use super::snapshot::seconds;
use crate::actors::cloud::CloudShared;
use crate::actors::cloud_system::CloudNode;
use crate::proto::cloud::CloudPeer as Handle;
use crate::proto::rivals::Port;
use crate::proto::session::Meter;
use crate::scaled::Bytes;

/// Stations that are listed; a report is for eyes.
const STATIONS_MAX: usize = 1_000;

#[derive(Debug, Clone)]
pub struct CloudPart {
    pub node: CloudSelf,
    /// By address.
    pub peers: Vec<CloudPeer>,
    /// By VLAN and address.
    pub stations: Vec<CloudStation>,
}

#[derive(Debug, Clone, Serialize)]
pub struct CloudSelf {
    pub device: Option<String>,
    pub offload: Option<Vec<&'static str>>,
    pub listen: Vec<String>,
    /// Names that are asked for peers.
    pub connect: Vec<String>,
    pub peer_timeout_seconds: u64,
    pub mac_timeout_seconds: u64,
    /// Learned.
    pub stations: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct CloudPeer {
    pub address: String,
    /// Further addresses of the same node.
    pub also: Vec<String>,
    pub connected_seconds: f64,
    pub last_heard_seconds: Option<f64>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_frames: u64,
    pub tx_frames: u64,
    /// Learned behind it.
    pub stations: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct CloudStation {
    pub mac: String,
    pub vlan: u16,
    pub peer: String,
    pub last_seen_seconds: f64,
}

/// The port of a member that bridges a cloud.
#[derive(Debug, Clone, Serialize)]
pub struct CloudPort {
    /// `open`, `waiting` for peers or to hear of others, `held back` because another member bridges the cloud, or
    /// `no right` to bridge: then frames cross between the cloud and the device only.
    pub state: &'static str,
    /// The member that bridges in its place.
    pub held_for: Option<String>,
    pub listen: Vec<String>,
    pub connect: Vec<String>,
    /// Learned behind peers.
    pub stations: usize,
    /// By address.
    pub peers: Vec<CloudPeer>,
}

/// The port of a member at this moment.
pub fn port(shared: &CloudShared, now: Instant) -> CloudPort {
    let (peers, _) = peers(shared, now);
    let (state, held_for) = match &shared.bridge {
        Some(bridge) => match &*bridge.port() {
            (Port::Waiting, _) => ("waiting", None),
            (Port::Held(_), name) => ("held back", Some(name.clone())),
            (Port::Open, _) if !bridge.has_right() => ("no right", None),
            (Port::Open, _) => ("open", None),
        },
        None => ("open", None),
    };
    CloudPort {
        state,
        held_for,
        listen: shared.uplinks.readers().map(|uplink| uplink.local_addr().to_string()).collect(),
        connect: shared.connect.iter().map(ToString::to_string).collect(),
        stations: peers.iter().map(|peer| peer.stations).sum(),
        peers,
    }
}

/// One end of a cloud at this moment.
pub fn part(node: &CloudNode, now: Instant) -> CloudPart {
    let shared = &node.shared;
    let (peer_timeout, mac_timeout) = (shared.peer_timeout.as_secs(), shared.mac_timeout.as_secs());
    let (peers, stations) = peers(shared, now);
    CloudPart {
        node: CloudSelf {
            device: shared.slot.get().map(|tap| tap.name().to_owned()),
            offload: shared.slot.get().and_then(|tap| Some(tap.offloads()?.names().collect())),
            listen: shared.uplinks.readers().map(|uplink| uplink.local_addr().to_string()).collect(),
            connect: shared.connect.iter().map(ToString::to_string).collect(),
            peer_timeout_seconds: peer_timeout,
            mac_timeout_seconds: mac_timeout,
            stations: shared.views.fdb.load().len(),
        },
        peers,
        stations,
    }
}

/// The peers and the stations behind them.
pub fn peers(shared: &CloudShared, now: Instant) -> (Vec<CloudPeer>, Vec<CloudStation>) {
    let views = &shared.views;
    let (view, fdb) = (views.peers.load(), views.fdb.load());
    let table = fdb.stations();
    let ago = |ms: u64| seconds(now.saturating_duration_since(views.epoch.at(ms)));
    let peers = view.flooded.iter().map(|peer| {
        let first = peer.endpoint.addr;
        let doubles = view.doubles.iter().filter(|(_, older)| **older == first).map(|(younger, _)| younger);
        let doubles: Vec<_> = doubles.filter_map(|addr| view.by_addr.get(addr)).collect();
        let all: Vec<&Handle> = std::iter::once(&**peer).chain(doubles.iter().map(|peer| &***peer)).collect();
        let sum = |of: fn(&Meter) -> &AtomicU64| all.iter().map(|peer| of(&peer.meter).load(Relaxed)).sum();
        CloudPeer {
            address: first.to_string(),
            also: doubles.iter().map(|peer| peer.endpoint.addr.to_string()).collect(),
            connected_seconds: seconds(now.saturating_duration_since(peer.since)),
            last_heard_seconds: all.iter().filter_map(|peer| peer.meter.heard_ms()).max().map(ago),
            rx_bytes: sum(|meter| &meter.rx_bytes),
            tx_bytes: sum(|meter| &meter.tx_bytes),
            rx_frames: sum(|meter| &meter.rx_frames),
            tx_frames: sum(|meter| &meter.tx_frames),
            stations: table.iter().filter(|station| all.iter().any(|peer| peer.idx == station.peer)).count(),
        }
    });
    let stations = table.iter().filter_map(|station| {
        Some(CloudStation {
            mac: station.mac.to_string(),
            vlan: station.vlan?.0,
            peer: view.by_idx.get(&station.peer)?.endpoint.addr.to_string(),
            last_seen_seconds: ago(station.seen_ms?),
        })
    });
    (peers.collect(), stations.take(STATIONS_MAX).collect())
}

/// The cloud as this node sees it, in DOT: itself in the middle, and every peer by a line.
pub fn dot(part: &CloudPart, time: &str) -> String {
    let mut text = String::new();
    write_dot(&mut text, part, time).expect("a String takes all that is written");
    text
}

fn write_dot(text: &mut String, part: &CloudPart, time: &str) -> std::fmt::Result {
    let device = part.node.device.as_deref().unwrap_or("no device");
    writeln!(text, "graph eps {{")?;
    writeln!(text, "  // {time}")?;
    writeln!(text, "  label=\"ethcloud, {} peers, {time}\";", part.peers.len())?;
    writeln!(text, "  node [style=filled, fontname=\"sans-serif\"];")?;
    writeln!(text, "  self [label=\"{device}\\n{}\", shape=box, fillcolor=lightblue];", part.node.listen.join("\\n"))?;
    for peer in &part.peers {
        let CloudPeer { address, stations, rx_bytes, tx_bytes, .. } = peer;
        let stations = if *stations == 1 { "1 station".to_owned() } else { format!("{stations} stations") };
        writeln!(text, "  \"{address}\" [label=\"{address}\\n{stations}\", fillcolor=palegreen];")?;
        writeln!(text, "  self -- \"{address}\" [tooltip=\"in {}, out {}\"];", Bytes(*rx_bytes), Bytes(*tx_bytes))?;
    }
    writeln!(text, "}}")
}

/// A number that changes when somebody comes or goes.
pub fn shape(part: &CloudPart) -> u64 {
    let mut hasher = DefaultHasher::new();
    part.node.device.hash(&mut hasher);
    part.peers.iter().for_each(|peer| peer.address.hash(&mut hasher));
    hasher.finish()
}
