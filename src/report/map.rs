//! A snapshot of a server, of a tunnel, or of one end of an ethcloud, as a map in DOT.

use std::time::Duration;

use super::json::time;
use super::snapshot::{Role, Snapshot};
use super::{cloud, tunnel};
use crate::proto::topology::{self, Link, LinkKind, Member, Topology};

/// The map; empty at a client, and before the coordinator has read its store.
pub fn dot(snapshot: &Snapshot) -> String {
    match &snapshot.role {
        Role::Cloud(part) => return cloud::dot(part, &time(snapshot)),
        Role::Tunnel(part) => return tunnel::dot(part, &time(snapshot)),
        Role::Client(_) | Role::Server(_) => {}
    }
    topology(snapshot).map(|topology| topology::dot(&topology, &time(snapshot))).unwrap_or_default()
}

/// What changes when the network does; `None` while there is nothing to draw.
pub fn shape(snapshot: &Snapshot) -> Option<u64> {
    match &snapshot.role {
        Role::Cloud(part) => return Some(cloud::shape(part)),
        Role::Tunnel(part) => return Some(tunnel::shape(part)),
        Role::Client(_) | Role::Server(_) => {}
    }
    topology(snapshot).map(|topology| topology::shape(&topology))
}

fn topology(snapshot: &Snapshot) -> Option<Topology> {
    let part = match &snapshot.role {
        Role::Server(part) => part,
        Role::Tunnel(_) | Role::Client(_) | Role::Cloud(_) => return None,
    };
    let network = part.network.as_ref()?;
    let members = network.leases.iter().map(|lease| Member {
        name: lease.name.clone(),
        address: lease.address.clone(),
        online: lease.online,
        rx_bytes: lease.rx_bytes,
        tx_bytes: lease.tx_bytes,
        rx_rate: lease.rx_bits_per_second,
        tx_rate: lease.tx_bits_per_second,
    });
    let reports = network.leases.iter().flat_map(|lease| lease.peers.iter().map(move |peer| (lease, peer)));
    let links = reports.map(|(lease, peer)| Link {
        ends: [lease.name.clone(), peer.name.clone()],
        kind: if peer.path == "direct" { LinkKind::Direct } else { LinkKind::Relay },
        rtt: peer.rtt_ms.map(|millis| Duration::from_secs_f64(millis / 1e3)),
        rate: peer.bits_per_second,
    });
    Some(Topology { server: part.node.addresses.clone(), members: members.collect(), links: links.collect() })
}
