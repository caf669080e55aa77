//! A snapshot in Prometheus's text format, version 0.0.4: for the textfile collector and the metrics endpoint.
//!
//! Units are base units, counters end in `_total`, which OpenMetrics wants too. No sample has a time of its own: the
//! textfile collector refuses them. What is unknown has no sample. A member or peer has about ten series.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};

use super::cloud::{CloudPart, CloudPort};
use super::snapshot::{ClientPart, PEER_STATES, Role, ServerPart, Snapshot};
use super::stats_text::Sums;
use crate::counters::DropReason;

/// The content type of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The whole page.
pub fn page(snapshot: &Snapshot) -> String {
    let mut page = Page::default();
    node(&mut page, snapshot);
    traffic(&mut page, snapshot);
    match &snapshot.role {
        Role::Client(part) => client(&mut page, part),
        Role::Server(part) => server(&mut page, part),
        Role::Tunnel(part) => super::tunnel::samples(&mut page, part),
        Role::Cloud(part) => cloud(&mut page, part),
    }
    actors(&mut page, snapshot);
    page.text
}

fn node(page: &mut Page, snapshot: &Snapshot) {
    let (role, name) = match &snapshot.role {
        Role::Client(part) => ("client", part.node.name.as_str()),
        Role::Server(_) => ("server", "server"),
        Role::Tunnel(part) => ("tunnel", part.node.end),
        Role::Cloud(part) => ("cloud", part.node.device.as_deref().unwrap_or_default()),
    };
    let labels = [("role", role), ("name", name), ("version", env!("CARGO_PKG_VERSION"))];
    page.gauge("eps_build_info", "What runs here; always 1.").sample(&labels, 1);
    page.gauge("eps_start_time_seconds", "When the process started, in seconds since 1970.")
        .sample(&[], snapshot.started.as_secs_f64());
    page.gauge("eps_snapshot_time_seconds", "When these values were taken, in seconds since 1970.")
        .sample(&[], snapshot.time.as_secs_f64());
}

fn traffic(page: &mut Page, snapshot: &Snapshot) {
    let totals = &snapshot.totals;
    let sums = Sums::of(totals, &snapshot.role);
    page.counter("eps_rx_bytes_total", "Bytes of datagrams received from the underlay, as payload.")
        .sample(&[], totals.udp_rx_bytes);
    page.counter(
        "eps_tx_bytes_total",
        "Bytes of datagrams sent to the underlay, as payload, those forwarded among them.",
    )
    .sample(&[], totals.udp_tx_bytes);
    page.counter("eps_forwarded_bytes_total", "Bytes of datagrams forwarded between members.")
        .sample(&[], totals.relayed_bytes);
    page.counter("eps_packets_total", "Datagrams received, sent and forwarded; those forwarded are among those sent.")
        .sample(&[("dir", "rx")], totals.udp_rx_datagrams)
        .sample(&[("dir", "tx")], totals.udp_tx_datagrams)
        .sample(&[("dir", "forwarded")], totals.relayed_datagrams);
    if matches!(snapshot.role, Role::Client(_) | Role::Cloud(_)) {
        let ways = [
            ("relay", "rx", sums.received),
            ("relay", "tx", sums.sent),
            ("direct", "rx", sums.direct_received),
            ("direct", "tx", sums.direct_sent),
            ("tap", "rx", sums.tap_received),
            ("tap", "tx", sums.tap_sent),
        ];
        let mut frames = page.counter("eps_frames_total", "Ethernet frames by way; at the TAP, rx is read from it.");
        for (way, dir, flow) in ways {
            frames = frames.sample(&[("way", way), ("dir", dir)], flow.packets);
        }
        let mut bytes = page.counter("eps_frame_bytes_total", "Bytes of Ethernet frames by way, as eps_frames_total.");
        for (way, dir, flow) in ways {
            bytes = bytes.sample(&[("way", way), ("dir", dir)], flow.bytes);
        }
    }
    let mut drops = page.counter("eps_drops_total", "Frames and datagrams that went no further, by reason.");
    for reason in DropReason::ALL {
        drops = drops.sample(&[("reason", reason.name())], totals.drops(*reason));
    }
    for (name, help, value) in totals.plain().into_iter().filter(|(name, ..)| !ABOVE.contains(name)) {
        page.counter(&format!("eps_{name}_total"), help).sample(&[], value);
    }
}

/// Counters that have a family above, with labels.
const ABOVE: [&str; 18] = [
    "udp_rx_datagrams",
    "udp_rx_bytes",
    "udp_tx_datagrams",
    "udp_tx_bytes",
    "relayed_datagrams",
    "relayed_bytes",
    "tap_rx_frames",
    "tap_rx_bytes",
    "tap_tx_frames",
    "tap_tx_bytes",
    "direct_rx_frames",
    "direct_rx_bytes",
    "direct_tx_frames",
    "direct_tx_bytes",
    "relay_rx_frames",
    "relay_rx_bytes",
    "relay_tx_frames",
    "relay_tx_bytes",
];

fn client(page: &mut Page, part: &ClientPart) {
    let server = &part.server;
    page.gauge("eps_coordinator_connected", "Whether the server of the network is connected.")
        .sample(&[], u8::from(server.connected));
    page.gauge("eps_coordinator_last_contact_seconds", "How long ago the server was last heard.")
        .known(&[], server.last_contact_seconds);
    page.gauge("eps_map_version", "Version of the member map.").sample(&[], server.map_version);
    page.gauge("eps_mac_entries", "Stations in the forwarding database.").sample(&[], part.node.stations);
    if let Some(port) = &part.cloud {
        cloud_port(page, port);
    }
    let mut states = page.gauge("eps_peers", "Other members by how they are reached.");
    for state in PEER_STATES {
        states = states.sample(&[("state", state)], part.peers.iter().filter(|peer| peer.state == state).count());
    }
    let labels = labels(part.peers.iter().map(|peer| (peer.name.as_str(), peer.address.as_str())));
    let peers = || labels.iter().map(|name| ("peer", name.as_str())).zip(&part.peers);
    let mut up = page.gauge("eps_peer_up", "Whether there is a path to the peer: 1 if direct or relayed.");
    for (label, peer) in peers() {
        up = up.sample(&[label], u8::from(matches!(peer.state, "direct" | "relay")));
    }
    let mut path = page.gauge("eps_peer_path_info", "How the peer is reached; always 1.");
    for (label, peer) in peers() {
        path = path.sample(&[label, ("kind", peer.state)], 1);
    }
    let mut rtt = page.gauge("eps_peer_rtt_seconds", "Smoothed round trip by the path in use.");
    for (label, peer) in peers() {
        rtt = rtt.known(&[label], peer.rtt_ms.map(|millis| (millis * 1e3).round() / 1e6));
    }
    let mut jitter = page.gauge("eps_peer_jitter_seconds", "Mean deviation of round trips by the path in use.");
    for (label, peer) in peers() {
        jitter = jitter.known(&[label], peer.jitter_ms.map(|millis| (millis * 1e3).round() / 1e6));
    }
    let mut loss = page.gauge("eps_peer_loss_ratio", "Share of our datagrams that the path in use loses, 0 to 1.");
    for (label, peer) in peers() {
        loss = loss.known(&[label], peer.loss_percent.map(|percent| (percent * 1e2).round() / 1e4));
    }
    let mut proof = page.gauge("eps_peer_last_proof_seconds", "How long ago the peer last proved to be there.");
    for (label, peer) in peers() {
        proof = proof.known(&[label], peer.last_proof_seconds);
    }
    let mut bytes = page.counter("eps_peer_bytes_total", "Bytes of frames from (rx) and to (tx) the peer.");
    for (label, peer) in peers() {
        bytes = bytes.sample(&[label, ("dir", "rx")], peer.rx_bytes).sample(&[label, ("dir", "tx")], peer.tx_bytes);
    }
    let mut frames = page.counter("eps_peer_frames_total", "Frames from (rx) and to (tx) the peer.");
    for (label, peer) in peers() {
        frames = frames.sample(&[label, ("dir", "rx")], peer.rx_frames).sample(&[label, ("dir", "tx")], peer.tx_frames);
    }
}

fn server(page: &mut Page, part: &ServerPart) {
    let Some(network) = &part.network else { return };
    page.gauge("eps_map_version", "Version of the member map.").sample(&[], network.map_version);
    page.gauge("eps_lease_free", "Addresses that are not leased.").sample(&[], network.lease_free);
    page.gauge("eps_network_epoch", "The network's epoch, which certificates hold by.").sample(&[], network.epoch);
    let online = network.leases.iter().filter(|lease| lease.online).count();
    page.gauge("eps_members", "Members by whether they are connected.")
        .sample(&[("state", "online")], online)
        .sample(&[("state", "offline")], network.leases.len() - online);
    let labels = labels(network.leases.iter().map(|lease| (lease.name.as_str(), lease.address.as_str())));
    let members = || labels.iter().map(|name| ("member", name.as_str())).zip(&network.leases);
    let mut up = page.gauge("eps_member_up", "Whether the member is connected.");
    for (label, member) in members() {
        up = up.sample(&[label], u8::from(member.online));
    }
    let mut heard = page.gauge("eps_member_last_heard_seconds", "How long ago the member was last heard.");
    for (label, member) in members() {
        heard = heard.known(&[label], member.last_heard_seconds);
    }
    // A gauge: the member counts, and begins again when it is restarted.
    let mut bytes =
        page.gauge("eps_member_bytes", "Bytes of frames from (rx) and to (tx) its peers, as the member last told.");
    for (label, member) in members() {
        bytes = bytes.sample(&[label, ("dir", "rx")], member.rx_bytes).sample(&[label, ("dir", "tx")], member.tx_bytes);
    }
    let mut links = page.gauge("eps_member_links", "Peers that the member reaches, by way.");
    for (label, member) in members() {
        for way in ["direct", "relay"] {
            let count = member.peers.iter().filter(|peer| peer.path == way).count();
            links = links.sample(&[label, ("way", way)], count);
        }
    }
}

/// The port of a member to an ethcloud.
fn cloud_port(page: &mut Page, port: &CloudPort) {
    page.gauge("eps_cloud_port_open", "Whether frames cross between the network and the cloud that is bridged.")
        .sample(&[], u8::from(port.state == "open"));
    page.gauge("eps_cloud_peers", "Peers of the cloud that is bridged.").sample(&[], port.peers.len());
    page.gauge("eps_cloud_mac_entries", "Stations behind peers of the cloud that is bridged.")
        .sample(&[], port.stations);
}

fn cloud(page: &mut Page, part: &CloudPart) {
    page.gauge("eps_mac_entries", "Stations in the forwarding database.").sample(&[], part.node.stations);
    page.gauge("eps_peers", "Other members by how they are reached.").sample(&[("state", "direct")], part.peers.len());
    let mut heard = page.gauge("eps_peer_last_proof_seconds", "How long ago the peer last proved to be there.");
    for peer in &part.peers {
        heard = heard.known(&[("peer", &peer.address)], peer.last_heard_seconds);
    }
    let mut bytes = page.counter("eps_peer_bytes_total", "Bytes of frames from (rx) and to (tx) the peer.");
    for peer in &part.peers {
        let label = ("peer", peer.address.as_str());
        bytes = bytes.sample(&[label, ("dir", "rx")], peer.rx_bytes).sample(&[label, ("dir", "tx")], peer.tx_bytes);
    }
    let mut frames = page.counter("eps_peer_frames_total", "Frames from (rx) and to (tx) the peer.");
    for peer in &part.peers {
        let label = ("peer", peer.address.as_str());
        frames = frames.sample(&[label, ("dir", "rx")], peer.rx_frames).sample(&[label, ("dir", "tx")], peer.tx_frames);
    }
}

fn actors(page: &mut Page, snapshot: &Snapshot) {
    let mut restarts = page.counter("eps_actor_restarts_total", "Restarts of an actor by its supervisor.");
    for actor in &snapshot.actors {
        restarts = restarts.sample(&[("actor", &actor.name)], actor.restarts);
    }
    let mut queued = page.gauge("eps_actor_mailbox_messages", "Messages that wait in the mailbox of an actor.");
    for actor in &snapshot.actors {
        queued = queued.sample(&[("actor", &actor.name)], actor.mailbox.queued);
    }
}

/// A label for each; two of one name, which only a faulty server admits, would be the same series.
fn labels<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    members
        .map(|(name, address)| if seen.insert(name) { name.to_owned() } else { format!("{name} ({address})") })
        .collect()
}

#[derive(Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    pub(super) fn gauge(&mut self, name: &str, help: &'static str) -> Family<'_> {
        Family { page: self, name: name.to_owned(), kind: "gauge", help, begun: false }
    }

    pub(super) fn counter(&mut self, name: &str, help: &'static str) -> Family<'_> {
        Family { page: self, name: name.to_owned(), kind: "counter", help, begun: false }
    }
}

/// The samples of a name, which stand together; their head comes with the first.
pub(super) struct Family<'p> {
    page: &'p mut Page,
    name: String,
    kind: &'static str,
    help: &'static str,
    begun: bool,
}

impl Family<'_> {
    pub(super) fn sample(mut self, labels: &[(&str, &str)], value: impl Display) -> Self {
        self.write(labels, &value).expect("a String takes all that is written");
        self
    }

    /// Nothing where it is unknown.
    pub(super) fn known(self, labels: &[(&str, &str)], value: Option<f64>) -> Self {
        match value {
            Some(value) => self.sample(labels, value),
            None => self,
        }
    }

    fn write(&mut self, labels: &[(&str, &str)], value: &dyn Display) -> std::fmt::Result {
        let (text, name) = (&mut self.page.text, &self.name);
        if !std::mem::replace(&mut self.begun, true) {
            writeln!(text, "# HELP {name} {}", self.help)?;
            writeln!(text, "# TYPE {name} {}", self.kind)?;
        }
        text.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            write!(text, "{}{label}=\"{}\"", if index == 0 { '{' } else { ',' }, escaped(value))?;
        }
        writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" })
    }
}

/// As the format wants label values: backslash, quote and line feed escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::process::Command;
    use std::time::Duration;

    use super::super::gateway::Gateway;
    use super::super::snapshot::{
        ClientNode, Lease, LeasePeer, Nat, NetworkPart, Peer, ServerContact, ServerNode, Window,
    };
    use super::*;
    use crate::actors::supervisor::{ActorState, ActorStatus, MailboxStatus};
    use crate::counters::Tally;

    #[test]
    fn a_family_has_one_head_before_its_samples_and_none_without() {
        let mut page = Page::default();
        page.gauge("a", "What a is.").sample(&[("x", "1")], 1.5).known(&[("x", "2")], None).sample(&[("x", "3")], 2);
        page.counter("b_total", "None of these.").known(&[], None);
        assert_eq!(page.text, "# HELP a What a is.\n# TYPE a gauge\na{x=\"1\"} 1.5\na{x=\"3\"} 2\n");
    }

    #[test]
    fn label_values_are_escaped() {
        let mut page = Page::default();
        page.gauge("a", "A.").sample(&[("x", "q\" b\\ l\n")], 1);
        assert!(page.text.ends_with("a{x=\"q\\\" b\\\\ l\\n\"} 1\n"), "{}", page.text);
    }

    #[test]
    fn two_of_one_name_are_two_series() {
        assert_eq!(labels([("a", "1"), ("a", "2")].into_iter()), ["a", "a (2)"]);
    }

    #[test]
    fn what_is_unknown_has_no_sample() {
        let page = page(&client_of(&[None, Some(0.42)]));
        assert!(!page.contains("eps_peer_rtt_seconds{peer=\"peer0\"}"), "{page}");
        assert!(page.contains("\neps_peer_rtt_seconds{peer=\"peer1\"} 0.00042\n"), "{page}");
        assert!(!page.contains("eps_lease_free"), "that is a server's");
    }

    #[test]
    fn a_peer_has_ten_series_at_the_most() {
        let lines = |count: usize| page(&client_of(&vec![Some(1.0); count])).lines().count();
        assert!(lines(2) - lines(1) <= 10, "{}", lines(2) - lines(1));
        assert_eq!(lines(50) - lines(49), lines(2) - lines(1));
    }

    #[test]
    fn one_name_has_the_same_help_in_both_roles() {
        let heads = |page: String| {
            let heads = page.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
            heads.map(|(name, help)| (name.to_owned(), help.to_owned())).collect::<std::collections::BTreeMap<_, _>>()
        };
        let (client, server) = (heads(page(&client_of(&[Some(1.0)]))), heads(page(&server_of())));
        for (name, help) in client {
            assert!(server.get(&name).is_none_or(|other| *other == help), "{name}");
        }
    }

    #[test]
    fn the_dashboard_and_the_alerts_name_metrics_that_exist() {
        let pages = page(&client_of(&[Some(1.0)])) + &page(&server_of());
        let known: BTreeSet<&str> =
            pages.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
        assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 5));
        for (file, text) in [("dashboard", DASHBOARD), ("rules", RULES)] {
            let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            let named: BTreeSet<&str> = words.filter(|word| word.starts_with("eps_")).collect();
            assert!(named.len() > 5, "{file}: {named:?}");
            for name in named {
                assert!(known.contains(name), "{file}: there is no {name}");
            }
        }
        assert_eq!(RULES.matches("- alert: ").count(), 5);
    }

    #[test]
    fn promtool_finds_nothing_wrong_with_the_alerts() {
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/prometheus/eps-actor.rules.yml");
        match Command::new("promtool").args(["check", "rules", rules]).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => println!("skipped: promtool is not installed"),
            checked => {
                let checked = checked.expect("started");
                let said = String::from_utf8_lossy(&checked.stdout).into_owned();
                assert!(checked.status.success() && said.contains("5 rules found"), "{said}");
            }
        }
    }

    const DASHBOARD: &str = include_str!("../../packaging/grafana/eps-actor.json");
    const RULES: &str = include_str!("../../packaging/prometheus/eps-actor.rules.yml");

    /// A client with a peer for each round trip in milliseconds.
    fn client_of(rtts: &[Option<f64>]) -> Snapshot {
        let peer = |(index, rtt_ms): (usize, &Option<f64>)| Peer {
            name: format!("peer{index}"),
            id: "ab".into(),
            address: format!("10.0.0.{index}"),
            address6: None,
            mac: "02:00:00:00:00:01".into(),
            online: true,
            state: "direct",
            path: None,
            rtt_ms: *rtt_ms,
            path_mtu: None,
            last_proof_seconds: Some(0.5),
            rx_bytes: 1,
            tx_bytes: 2,
            rx_frames: 3,
            tx_frames: 4,
            session_age_seconds: None,
            suite: None,
            jitter_ms: None,
            loss_percent: None,
            mode: "best",
            paths: Vec::new(),
            key: crate::ids::PublicKey([0; 32]),
            nat: "unknown",
            routes: Vec::new(),
        };
        let node = ClientNode {
            name: "ada".into(),
            id: "cd".into(),
            address: None,
            address6: None,
            mac: None,
            device: None,
            mtu: 1376,
            offload: None,
            port: 1,
            state: "connected",
            stations: 2,
        };
        let server = ServerContact {
            connected: true,
            endpoint: None,
            last_contact_seconds: Some(1.0),
            map_version: 7,
            network: None,
        };
        let peers = rtts.iter().enumerate().map(peer).collect();
        let nat = Nat { kind: "unknown", observed: Vec::new(), predicted: None };
        let (gateway, routing, cloud) = (Gateway::none(), Default::default(), None);
        snapshot(Role::Client(Box::new(ClientPart { node, server, gateway, nat, routing, peers, cloud })))
    }

    fn server_of() -> Snapshot {
        let peer = LeasePeer {
            name: "bob".into(),
            path: "direct",
            rtt_ms: None,
            rx_bytes: 1,
            tx_bytes: 2,
            bits_per_second: None,
        };
        let lease = Lease {
            name: "ada".into(),
            id: "ab".into(),
            address: "10.0.0.1".into(),
            address6: None,
            mac: "02:00:00:00:00:01".into(),
            online: true,
            endpoint: None,
            last_heard_seconds: Some(1.0),
            connected_seconds: None,
            joined_unix: 1,
            rights: Vec::new(),
            routes: Vec::new(),
            rejected_routes: Vec::new(),
            rx_bytes: 5,
            tx_bytes: 6,
            rx_bits_per_second: None,
            tx_bits_per_second: None,
            peers: vec![peer],
        };
        let node = ServerNode {
            id: "ef".into(),
            network: None,
            addresses: "10.0.0.0/24".into(),
            addresses6: None,
            port: 1,
            open: false,
            fingerprint: String::new(),
        };
        let network =
            NetworkPart { lease_free: 252, invitations: false, map_version: 1, epoch: 1, leases: vec![lease] };
        snapshot(Role::Server(Box::new(ServerPart { node, gateway: Gateway::none(), network: Some(network) })))
    }

    fn snapshot(role: Role) -> Snapshot {
        let actor = ActorStatus {
            name: "stats".into(),
            state: ActorState::Running,
            restarts: 0,
            last_stop: None,
            mailbox: MailboxStatus { queued: 0, capacity: Some(64) },
            policy: "restart".into(),
        };
        Snapshot {
            time: Duration::from_secs(1_800_000_000),
            started: Duration::from_secs(1_799_999_000),
            uptime: Duration::from_secs(1000),
            totals: Tally::default(),
            window: Window { length: Duration::from_secs(60), grown: Tally::default() },
            actors: vec![actor],
            events: Vec::new(),
            role,
        }
    }
}
