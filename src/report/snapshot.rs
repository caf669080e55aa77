//! One moment of a node as one immutable value, from which every output is made.
//!
//! A [`Sampler`] takes snapshots: the Stats actor each minute, whoever is asked at any time. It asks no actor and takes
//! no lock that the data path needs. Numbers have the unit of their name; the names are those of the JSON documents.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cloud::CloudPart;
use super::gateway::Gateway;
use super::routes::Routing;
use super::tunnel::TunnelPart;

use crate::actors::client::ClientShared;
use crate::actors::cloud_system::CloudNode;
use crate::actors::coordinator::ServerShared;
use crate::actors::supervisor::{ActorStatus, Supervisor};
use crate::actors::tunnel_system::TunnelShared;
use crate::config::right_names;
use crate::counters::Tally;
use crate::ids::{PublicKey, UplinkId};
use crate::io::clock::unix_time;
use crate::messages::coordinator::NetworkDescription;
use crate::proto::crypto::Suite;
use crate::proto::nat::NatReport;
use crate::proto::path::State;
use crate::proto::peers::{PathDescription, PeerDescription};
use crate::wire::join::fingerprint;

/// How often the Stats actor moves the window.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// A window below this shows noise; then it begins a minute earlier.
const WINDOW_MIN: Duration = Duration::from_secs(10);

/// A node at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Since 1970, by the wall clock.
    pub time: Duration,
    /// The wall clock at the start of the process; tells of restarts.
    pub started: Duration,
    pub uptime: Duration,
    pub totals: Tally,
    pub window: Window,
    pub actors: Vec<ActorStatus>,
    pub events: Vec<String>,
    pub role: Role,
}

/// How much the counters grew lately: about a minute, less in the first one.
#[derive(Debug, Clone)]
pub struct Window {
    pub length: Duration,
    pub grown: Tally,
}

impl Window {
    /// A counter's growth per second; `None` where the window is empty.
    pub fn per_second(&self, grown: u64) -> Option<f64> {
        (!self.length.is_zero()).then(|| grown as f64 / self.length.as_secs_f64())
    }
}

/// What only one role has.
#[derive(Debug, Clone)]
pub enum Role {
    Client(Box<ClientPart>),
    Server(Box<ServerPart>),
    Tunnel(Box<TunnelPart>),
    Cloud(Box<CloudPart>),
}

#[derive(Debug, Clone)]
pub struct ClientPart {
    pub node: ClientNode,
    pub server: ServerContact,
    pub gateway: Gateway,
    pub nat: Nat,
    pub routing: Routing,
    /// By address.
    pub peers: Vec<Peer>,
    /// The port to the ethcloud that it bridges, where it does.
    pub cloud: Option<super::cloud::CloudPort>,
}

/// What the NAT in front of a client does.
#[derive(Debug, Clone, Serialize)]
pub struct Nat {
    /// `none`, `easy`, `predictable`, `hard` or `unknown`.
    pub kind: &'static str,
    /// How the server sees the client at its first port and, where that is another address, at its second one.
    pub observed: Vec<String>,
    /// What a predictable NAT will use next.
    pub predicted: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ClientNode {
    pub name: String,
    pub id: String,
    pub address: Option<String>,
    pub address6: Option<String>,
    pub mac: Option<String>,
    pub device: Option<String>,
    pub mtu: u16,
    pub offload: Option<Vec<&'static str>>,
    pub port: u16,
    pub state: &'static str,
    /// Stations in the forwarding database.
    pub stations: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct ServerContact {
    pub connected: bool,
    pub endpoint: Option<String>,
    pub last_contact_seconds: Option<f64>,
    pub map_version: u64,
    pub network: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Peer {
    pub name: String,
    pub id: String,
    pub address: String,
    pub address6: Option<String>,
    pub mac: String,
    pub online: bool,
    /// `direct`, `relay`, `searching`, `lost`, `idle` or `offline`.
    pub state: &'static str,
    pub path: Option<String>,
    pub rtt_ms: Option<f64>,
    /// The largest IP packet that the path in use is known to carry, in octets.
    pub path_mtu: Option<u16>,
    pub last_proof_seconds: Option<f64>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_frames: u64,
    pub tx_frames: u64,
    pub session_age_seconds: Option<f64>,
    pub suite: Option<&'static str>,
    /// Subnets it publishes; `0.0.0.0/0` is the Internet.
    pub routes: Vec<String>,
    /// The kind of its NAT, as it says.
    pub nat: &'static str,
    /// How much round trips vary by the path in use, and the percentage of our datagrams that it loses.
    pub jitter_ms: Option<f64>,
    pub loss_percent: Option<f64>,
    /// How several paths are used.
    pub mode: &'static str,
    pub paths: Vec<PeerPath>,
    #[serde(skip)]
    pub key: PublicKey,
}

/// One path to a peer.
#[derive(Debug, Clone, Serialize)]
pub struct PeerPath {
    /// `direct`, `relay` or `relay-tcp`.
    pub kind: &'static str,
    pub address: String,
    /// The socket of ours it uses: the interface or the address, where one is configured.
    pub uplink: Option<String>,
    /// `candidate`, `probing`, `active`, `standby`, `suspect` or `dead`.
    pub state: &'static str,
    pub rtt_ms: Option<f64>,
    pub jitter_ms: Option<f64>,
    pub loss_percent: Option<f64>,
    pub last_proof_seconds: Option<f64>,
    /// The longest IP packet that passed, where frames go by it.
    pub mtu: Option<u16>,
    /// Bytes of datagrams of the session.
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

#[derive(Debug, Clone)]
pub struct ServerPart {
    pub node: ServerNode,
    pub gateway: Gateway,
    /// `None` until the coordinator has read its store.
    pub network: Option<NetworkPart>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ServerNode {
    pub id: String,
    pub network: Option<String>,
    pub addresses: String,
    pub addresses6: Option<String>,
    pub port: u16,
    pub open: bool,
    pub fingerprint: String,
}

#[derive(Debug, Clone)]
pub struct NetworkPart {
    pub lease_free: u64,
    pub invitations: bool,
    pub map_version: u64,
    pub epoch: u64,
    /// By address.
    pub leases: Vec<Lease>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Lease {
    pub name: String,
    pub id: String,
    pub address: String,
    pub address6: Option<String>,
    pub mac: String,
    pub online: bool,
    pub endpoint: Option<String>,
    pub last_heard_seconds: Option<f64>,
    pub connected_seconds: Option<f64>,
    pub joined_unix: u64,
    pub rights: Vec<&'static str>,
    /// Subnets it publishes; `0.0.0.0/0` is the Internet.
    pub routes: Vec<String>,
    /// What it would publish and may not, with the reason.
    pub rejected_routes: Vec<String>,
    /// Bytes of frames from and to its peers, as it last told.
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    /// In the window; `None` where it was not there at its beginning.
    pub rx_bits_per_second: Option<f64>,
    pub tx_bits_per_second: Option<f64>,
    pub peers: Vec<LeasePeer>,
}

/// A peer of a member, as the member told.
#[derive(Debug, Clone, Serialize)]
pub struct LeasePeer {
    pub name: String,
    /// `direct` or `relay`.
    pub path: &'static str,
    pub rtt_ms: Option<f64>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    /// Of both directions, in the window.
    pub bits_per_second: Option<f64>,
}

/// Takes snapshots of one node.
pub struct Sampler {
    source: Source,
    supervisor: Supervisor,
    started: (Instant, Duration),
    /// Where windows may begin: the last minute's end, and the one before.
    bases: Mutex<[Arc<Base>; 2]>,
}

/// Whose.
pub enum Source {
    Client(Arc<ClientShared>),
    Server(Arc<ServerShared>),
    Tunnel(Arc<TunnelShared>),
    Cloud(Arc<CloudNode>),
}

/// What the growth within a window is measured against.
pub(super) struct Base {
    at: Instant,
    totals: Tally,
    /// Bytes received and sent of members, and of their peers, by name.
    members: BTreeMap<String, (u64, u64)>,
    pairs: BTreeMap<(String, String), u64>,
}

impl Sampler {
    /// The first window begins at `now`, when nothing has been counted yet.
    pub fn new(source: Source, supervisor: Supervisor, now: Instant) -> Self {
        let base = Base { at: now, totals: Tally::default(), members: BTreeMap::new(), pairs: BTreeMap::new() };
        let base = Arc::new(base);
        Self { source, supervisor, started: (now, unix_time()), bases: Mutex::new([base.clone(), base]) }
    }

    /// The counters that failed outputs are added to.
    pub fn counters(&self) -> &crate::counters::Counters {
        match &self.source {
            Source::Client(shared) => &shared.views.counters,
            Source::Server(shared) => &shared.counters,
            Source::Tunnel(shared) => &shared.counters,
            Source::Cloud(node) => &node.shared.views.counters,
        }
    }

    /// A snapshot of this moment. Its window is a minute at the most and, but in the first minute, not too short.
    pub fn take(&self, now: Instant) -> Snapshot {
        let [last, before] = self.bases();
        let long_enough = now.saturating_duration_since(last.at) >= WINDOW_MIN;
        self.since(if long_enough { &last } else { &before }, now)
    }

    /// A snapshot whose window is the minute since the last of these; the next window begins here.
    pub fn take_minute(&self, now: Instant) -> Snapshot {
        let [last, _] = self.bases();
        let snapshot = self.since(&last, now);
        *self.bases.lock().unwrap_or_else(PoisonError::into_inner) = [Arc::new(Base::of(&snapshot, now)), last];
        snapshot
    }

    /// When the minute ends.
    pub fn minute_ends(&self) -> Instant {
        self.bases()[0].at + INTERVAL
    }

    fn bases(&self) -> [Arc<Base>; 2] {
        self.bases.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn since(&self, base: &Base, now: Instant) -> Snapshot {
        let length = now.saturating_duration_since(base.at);
        let (totals, events, role) = match &self.source {
            Source::Client(shared) => {
                (shared.views.counters.tally(), shared.events.list(), Role::Client(Box::new(client(shared, now))))
            }
            Source::Server(shared) => {
                let part = Box::new(server(shared, base, length));
                (shared.counters.tally(), shared.events.list(), Role::Server(part))
            }
            Source::Tunnel(shared) => {
                let part = Box::new(super::tunnel::part(shared, base, length, now));
                (shared.counters.tally(), shared.events.list(), Role::Tunnel(part))
            }
            Source::Cloud(node) => {
                let part = Box::new(super::cloud::part(node, now));
                (node.shared.views.counters.tally(), node.events.list(), Role::Cloud(part))
            }
        };
        Snapshot {
            time: unix_time(),
            started: self.started.1,
            uptime: now.saturating_duration_since(self.started.0),
            window: Window { length, grown: totals.since(&base.totals) },
            totals,
            actors: self.supervisor.status(),
            events,
            role,
        }
    }
}

impl Base {
    /// Bytes received and sent of a member, or of a tunnel's path.
    pub(super) fn member(&self, name: &str) -> Option<(u64, u64)> {
        self.members.get(name).copied()
    }

    fn of(snapshot: &Snapshot, at: Instant) -> Self {
        let leases = match &snapshot.role {
            Role::Server(part) => part.network.iter().flat_map(|network| &network.leases).collect(),
            Role::Client(_) | Role::Tunnel(_) | Role::Cloud(_) => Vec::new(),
        };
        let paths = match &snapshot.role {
            Role::Tunnel(part) => part.paths.as_slice(),
            Role::Client(_) | Role::Server(_) | Role::Cloud(_) => &[],
        };
        let paths = paths.iter().map(|path| (path.name(), (path.rx_bytes, path.tx_bytes)));
        let members = leases.iter().map(|lease| (lease.name.clone(), (lease.rx_bytes, lease.tx_bytes)));
        let members = members.chain(paths).collect();
        let pairs = leases
            .iter()
            .flat_map(|lease| lease.peers.iter().map(|peer| (lease.name.clone(), peer)))
            .map(|(name, peer)| ((name, peer.name.clone()), peer.rx_bytes + peer.tx_bytes))
            .collect();
        Self { at, totals: snapshot.totals.clone(), members, pairs }
    }
}

/// Milliseconds are as exact as anybody reads.
pub(super) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

fn client(shared: &ClientShared, now: Instant) -> ClientPart {
    let lease = shared.lease.load_full();
    let server = shared.views.server.load();
    let state = match (&lease, server.attached) {
        (Some(_), true) => "connected",
        (Some(_), false) => "offline (from the stored map)",
        (None, _) => "joining",
    };
    let epoch = shared.views.epoch;
    let heard = server.heard_ms.map(|ms| now.saturating_duration_since(epoch.at(ms)));
    let pinned = **shared.pinned.load();
    let list = shared.peers.load();
    let mut peers: Vec<&PeerDescription> = list.iter().collect();
    peers.sort_by_key(|peer| peer.certificate.ip4);
    ClientPart {
        node: ClientNode {
            name: shared.name.load().to_string(),
            id: shared.key.node_id().to_string(),
            address: lease.as_ref().map(|lease| format!("{}/{}", lease.ip4, lease.prefix4)),
            address6: lease.as_ref().and_then(|lease| lease.ip6.map(|ip6| format!("{ip6}/{}", lease.prefix6))),
            mac: lease.as_ref().map(|lease| lease.mac.to_string()),
            device: shared.slot.get().map(|tap| tap.name().to_owned()),
            mtu: shared.config.mtu,
            offload: shared.slot.get().and_then(|tap| Some(tap.offloads()?.names().collect())),
            port: shared.uplinks.port(),
            state,
            stations: shared.views.fdb.load().len(),
        },
        server: ServerContact {
            connected: server.attached,
            endpoint: server.endpoint.or(server.endpoints.first().copied()).map(|endpoint| endpoint.to_string()),
            last_contact_seconds: heard.map(seconds),
            map_version: shared.map_version.load(Relaxed),
            network: pinned.map(|pinned| pinned.network.to_string()),
        },
        gateway: Gateway::of(&shared.gateway.load(), shared.config.direct && !shared.config.upnptimeout.is_zero(), now),
        nat: nat_part(&shared.nat.load()),
        routing: Routing::of(shared),
        peers: peers.into_iter().map(|peer| peer_part(shared, peer, now)).collect(),
        cloud: shared.cloud.get().map(|cloud| super::cloud::port(cloud, now)),
    }
}

fn nat_part(report: &NatReport) -> Nat {
    Nat {
        kind: report.kind.word(),
        observed: report.observed.iter().map(ToString::to_string).collect(),
        predicted: report.predicted.map(|addr| addr.to_string()),
    }
}

fn peer_part(shared: &ClientShared, peer: &PeerDescription, now: Instant) -> Peer {
    let epoch = shared.views.epoch;
    let heard = peer.meter.heard_ms().map(|ms| epoch.at(ms));
    // What proves a peer: an authentic datagram, or a reply to a probe.
    let proof = heard.into_iter().chain(peer.proven).max().filter(|_| peer.session.is_some());
    let session = peer.session.as_ref();
    Peer {
        name: peer.name.clone(),
        id: peer.key.node_id().to_string(),
        address: peer.certificate.ip4.to_string(),
        address6: peer.certificate.ip6.map(|ip6| ip6.to_string()),
        mac: peer.certificate.mac.to_string(),
        online: peer.online,
        state: peer.state.word(),
        path: peer.way().map(|route| route.endpoint.to_string()),
        rtt_ms: peer.srtt.map(|srtt| (srtt.as_secs_f64() * 1e6).round() / 1e3),
        path_mtu: peer.mtu.map(|mtu| mtu.packet),
        last_proof_seconds: proof.map(|proof| seconds(now.saturating_duration_since(proof))),
        rx_bytes: peer.meter.rx_bytes.load(Relaxed),
        tx_bytes: peer.meter.tx_bytes.load(Relaxed),
        rx_frames: peer.meter.rx_frames.load(Relaxed),
        tx_frames: peer.meter.tx_frames.load(Relaxed),
        session_age_seconds: session.map(|session| seconds(now.saturating_duration_since(session.born))),
        suite: session.map(|session| suite_word(session.suite)),
        jitter_ms: peer.jitter.map(millis),
        loss_percent: peer.loss.map(percent),
        mode: peer.mode.word(),
        paths: peer.paths.iter().map(|path| path_part(shared, path, now)).collect(),
        key: peer.key,
        nat: peer.nat.word(),
        routes: super::routes::of_peer(shared, peer),
    }
}

fn path_part(shared: &ClientShared, path: &PathDescription, now: Instant) -> PeerPath {
    let endpoint = path.route.endpoint;
    let heard = path.meter.heard_ms().map(|ms| shared.views.epoch.at(ms));
    // A relay counts as proven from the start, by the server's word alone; that is nothing to show.
    let answered = path.route.is_direct() || path.srtt.is_some();
    let proof = heard.into_iter().chain(path.proven).max().filter(|_| answered);
    PeerPath {
        kind: match (path.route.is_direct(), endpoint.uplink) {
            (true, _) => "direct",
            (false, UplinkId::TCP) => "relay-tcp",
            (false, _) => "relay",
        },
        address: endpoint.addr.to_string(),
        uplink: shared.uplinks.readers().find(|uplink| uplink.id() == endpoint.uplink).and_then(|uplink| {
            let bound = uplink.local_addr().ip();
            uplink.device().map(str::to_owned).or_else(|| (!bound.is_unspecified()).then(|| bound.to_string()))
        }),
        state: match path.state {
            State::Candidate => "candidate",
            State::Probing => "probing",
            State::Valid if path.carries => "active",
            State::Valid => "standby",
            State::Suspect => "suspect",
            State::Dead => "dead",
        },
        rtt_ms: path.srtt.map(millis),
        jitter_ms: path.jitter.map(millis),
        loss_percent: path.loss.map(percent),
        last_proof_seconds: proof.map(|proof| seconds(now.saturating_duration_since(proof))),
        mtu: path.mtu.map(|mtu| mtu.packet),
        rx_bytes: path.meter.rx_bytes.load(Relaxed),
        tx_bytes: path.meter.tx_bytes.load(Relaxed),
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn percent(part: f64) -> f64 {
    (part * 1e4).round() / 1e2
}

/// The words for the states of peers, in the order of the best first.
pub const PEER_STATES: [&str; 6] = ["direct", "relay", "searching", "lost", "idle", "offline"];

pub(super) fn suite_word(suite: Suite) -> &'static str {
    match suite {
        Suite::Aes256Gcm => "AES-256-GCM",
        Suite::ChaCha20Poly1305 => "ChaCha20-Poly1305",
    }
}

fn server(shared: &ServerShared, base: &Base, length: Duration) -> ServerPart {
    let description = shared.description.load_full();
    let description = description.as_ref().as_ref();
    let key = super::server_key(shared);
    let config = shared.live.load();
    ServerPart {
        node: ServerNode {
            id: key.node_id().to_string(),
            network: description.map(|d| d.network.id.to_string()),
            addresses: config.network.to_string(),
            addresses6: description.and_then(|d| d.network6.map(|net| net.to_string())),
            port: config.port,
            open: config.open,
            fingerprint: crate::proto::map::hex(&fingerprint(&key)),
        },
        gateway: Gateway::of(&shared.gateway.load(), !config.upnptimeout.is_zero(), Instant::now()),
        network: description.map(|description| NetworkPart {
            lease_free: description.lease_free,
            invitations: description.invitations,
            map_version: description.head,
            epoch: description.network.epoch,
            leases: leases(description, base, length),
        }),
    }
}

fn leases(description: &NetworkDescription, base: &Base, length: Duration) -> Vec<Lease> {
    let rate = |now: u64, before: u64| {
        // A member that was restarted counts from nought again.
        (!length.is_zero()).then(|| now.saturating_sub(before) as f64 * 8.0 / length.as_secs_f64())
    };
    let mut leases: Vec<Lease> = Vec::with_capacity(description.members.len());
    for member in &description.members {
        let name = &member.record.name;
        let before = base.members.get(name);
        let peers = member.reports.iter().filter_map(|report| {
            let id: [u8; 8] = report.peer.0[..8].try_into().ok()?;
            let peer = description.names.get(&id)?.clone();
            let before = base.pairs.get(&(name.clone(), peer.clone()));
            Some(LeasePeer {
                path: if report.direct { "direct" } else { "relay" },
                rtt_ms: (report.rtt_us > 0).then(|| f64::from(report.rtt_us) / 1000.0),
                rx_bytes: report.rx_bytes,
                tx_bytes: report.tx_bytes,
                bits_per_second: before.and_then(|before| rate(report.rx_bytes + report.tx_bytes, *before)),
                name: peer,
            })
        });
        leases.push(Lease {
            name: name.clone(),
            id: member.record.key.node_id().to_string(),
            address: member.record.ip4.to_string(),
            address6: member.record.ip6.map(|ip6| ip6.to_string()),
            mac: member.record.mac.to_string(),
            online: member.online,
            endpoint: member.endpoint.map(|endpoint| endpoint.to_string()),
            last_heard_seconds: member.heard_ago.map(seconds),
            connected_seconds: member.attached_for.map(seconds),
            joined_unix: member.record.joined_unix,
            rights: right_names(member.record.rights),
            routes: member.routes.iter().map(ToString::to_string).collect(),
            rejected_routes: member.rejected_routes.iter().map(|(net, why)| format!("{net}: {why}")).collect(),
            rx_bytes: member.rx_bytes,
            tx_bytes: member.tx_bytes,
            rx_bits_per_second: before.and_then(|before| rate(member.rx_bytes, before.0)),
            tx_bits_per_second: before.and_then(|before| rate(member.tx_bytes, before.1)),
            peers: peers.collect(),
        });
    }
    leases
}
