//! A snapshot in Prometheus's text format, version 0.0.4: for the textfile collector and the metrics endpoint.
//!
//! Units are base units, counters end in `_total`, which OpenMetrics wants too. No sample has a time of its own: the
//! textfile collector refuses them. What is unknown has no sample. A member or peer has about ten series.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};

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
    }
    actors(&mut page, snapshot);
    page.text
}

fn node(page: &mut Page, snapshot: &Snapshot) {
    let (role, name) = match &snapshot.role {
        Role::Client(part) => ("client", part.node.name.as_str()),
        Role::Server(_) => ("server", "server"),
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
    page.counter("eps_tx_bytes_total", "Bytes of datagrams sent to the underlay, as payload, those forwarded among them.")
        .sample(&[], totals.udp_tx_bytes);
    page.counter("eps_forwarded_bytes_total", "Bytes of datagrams forwarded between members.")
        .sample(&[], totals.relayed_bytes);
    page.counter("eps_packets_total", "Datagrams received, sent and forwarded; those forwarded are among those sent.")
        .sample(&[("dir", "rx")], totals.udp_rx_datagrams)
        .sample(&[("dir", "tx")], totals.udp_tx_datagrams)
        .sample(&[("dir", "forwarded")], totals.relayed_datagrams);
    if matches!(snapshot.role, Role::Client(_)) {
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
        rtt = rtt.known(&[label], peer.rtt_ms.map(|millis| millis / 1e3));
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
struct Page {
    text: String,
}

impl Page {
    fn gauge(&mut self, name: &str, help: &'static str) -> Family<'_> {
        Family { page: self, name: name.to_owned(), kind: "gauge", help, begun: false }
    }

    fn counter(&mut self, name: &str, help: &'static str) -> Family<'_> {
        Family { page: self, name: name.to_owned(), kind: "counter", help, begun: false }
    }
}

/// The samples of a name, which stand together; their head comes with the first.
struct Family<'p> {
    page: &'p mut Page,
    name: String,
    kind: &'static str,
    help: &'static str,
    begun: bool,
}

impl Family<'_> {
    fn sample(mut self, labels: &[(&str, &str)], value: impl Display) -> Self {
        self.write(labels, &value).expect("a String takes all that is written");
        self
    }

    /// Nothing where it is unknown.
    fn known(self, labels: &[(&str, &str)], value: Option<f64>) -> Self {
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
pub(super) mod tests {
    use super::*;

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
}
