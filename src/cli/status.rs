//! `eps-actor status`: what a node is doing. Itself first, then the server or the members, the peers, the actors, and
//! at the end in sentences what is not as it should be.

use std::io::{self, Write};
use std::iter::once;

use serde_json::json;

use super::args::StatusArguments;
use super::ask::ask;
use super::reply::{
    Actor, ClientStatus, CloudPeer, CloudPort, CloudStatus, Gateway, Lease, Nat, Peer, PortMapping, ServerStatus,
    Status,
};
use super::table::Column::{Left, Right};
use super::table::Table;
use crate::scaled::{Bytes, Millis, Seconds};

/// Asks whichever nodes are meant, and prints their answers: one JSON document a line, or for eyes.
pub fn run(arguments: &StatusArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let replies = ask(&arguments.target, &json!({"command": "status"}))?;
    for (index, reply) in replies.iter().enumerate() {
        if arguments.json {
            writeln!(out, "{reply}")?;
            continue;
        }
        if index > 0 {
            writeln!(out)?;
        }
        print(&Status::read(reply)?, out)?;
    }
    Ok(())
}

/// Prints a status for eyes.
pub fn print(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    match status {
        Status::Client(status) => print_client(status, out),
        Status::Server(status) => print_server(status, out),
        Status::Tunnel(status) => super::tunnel_status::print(status, out),
        Status::Cloud(status) => print_cloud(status, out),
    }
}

fn print_client(status: &ClientStatus, out: &mut dyn Write) -> io::Result<()> {
    let node = &status.node;
    let own = [Some(node.address.as_deref().unwrap_or("no address yet")), node.address6.as_deref()];
    writeln!(out, "client {}: {}", node.name, joined(own))?;
    let offload = match &node.offload {
        Some(names) if !names.is_empty() => format!(", offload {}", names.join(" ")),
        _ => ", no offload".to_owned(),
    };
    let device = node.device.as_ref().map(|device| format!("device {device} with MTU {}{offload}", node.mtu));
    let mac = node.mac.as_deref().and_then(|mac| named("MAC", mac));
    let id = named("id", &node.id);
    let age = age(&status.version, status.uptime_seconds);
    writeln!(
        out,
        "  {}",
        joined([Some(node.state.as_str()), device.as_deref(), mac.as_deref(), id.as_deref(), Some(&age)])
    )?;
    let server = &status.server;
    let contact = match (server.connected, server.last_contact_seconds) {
        (true, Some(seconds)) => format!("heard {} ago", Seconds(seconds)),
        (true, None) => "connected".to_owned(),
        (false, Some(seconds)) => format!("not connected for {}", Seconds(seconds)),
        (false, None) => "not connected".to_owned(),
    };
    let endpoint = server.endpoint.as_deref().unwrap_or("with no known address");
    let map = format!("map version {}", server.map_version);
    let network = server.network.as_deref().and_then(|network| named("network", network));
    writeln!(out, "server {endpoint}: {}", joined([Some(contact.as_str()), Some(&map), network.as_deref()]))?;
    print_gateway(&status.gateway, out)?;
    print_nat(&status.nat, out)?;
    super::routes::print(&status.routing, out)?;
    print_peers(&status.peers, out)?;
    if let Some(port) = &status.cloud {
        let (peers, stations) = (count(port.peers.len() as u64, "peer"), count(port.stations, "station"));
        let facts = joined([Some(port.state.as_str()), Some(&peers), Some(&stations)]);
        writeln!(out, "\nbridged cloud, listening on {}: {facts}", port.listen.join(" and "))?;
        print_cloud_peers(&port.peers, out)?;
    }
    print_actors(&status.actors, out)?;
    print_lines("lately", status.events.iter().rev().take(EVENTS).rev(), out)?;
    print_lines("health", client_notes(status).iter(), out)
}

/// What the NAT in front of the client does, where there is one.
fn print_nat(nat: &Nat, out: &mut dyn Write) -> io::Result<()> {
    let what = match nat.kind.as_str() {
        "easy" => "keeps one port for all destinations",
        "predictable" => "uses another port for each destination, in steps",
        "hard" => "uses another port for each destination",
        _ => return Ok(()),
    };
    writeln!(out, "nat {}: {what}; seen at {}", nat.kind, nat.observed.join(" and "))
}

/// What the gateway maps, or why it does not. Where nobody asks it there is nothing to say.
fn print_gateway(gateway: &Gateway, out: &mut dyn Write) -> io::Result<()> {
    let Some(address) = gateway.address.as_deref().filter(|_| gateway.state != "off") else { return Ok(()) };
    let mut parts: Vec<String> = Vec::new();
    for mapping in &gateway.mappings {
        let left =
            mapping.lifetime_seconds.map_or_else(|| "no end".to_owned(), |left| format!("{} left", Seconds(left)));
        let PortMapping { protocol, transport, port, external, .. } = mapping;
        parts.push(format!("{transport} {external} to port {port} ({protocol}, {left})"));
    }
    match (&gateway.reason, gateway.mappings.is_empty()) {
        (Some(reason), true) => parts.push(format!("no port mapping: {reason}")),
        (Some(reason), false) => parts.push(format!("not {reason}")),
        (None, true) => parts.push("being asked for a port mapping".to_owned()),
        (None, false) => {}
    }
    writeln!(out, "gateway {address}: {}", parts.join(", "))
}

fn print_peers(peers: &[Peer], out: &mut dyn Write) -> io::Result<()> {
    if peers.is_empty() {
        return writeln!(out, "\nno other member yet");
    }
    writeln!(out)?;
    let mut table = Table::new([
        Left("peer"),
        Left("address"),
        Left("state"),
        Left("path"),
        Right("round trip"),
        Right("last proof"),
        Right("in"),
        Right("out"),
    ]);
    let (online, offline): (Vec<&Peer>, Vec<&Peer>) = peers.iter().partition(|peer| peer.online);
    for peer in online.into_iter().chain(offline) {
        table.row(vec![
            Some(peer.name.clone()),
            peer.address.clone().or_else(|| peer.address6.clone()),
            Some(peer.state.clone()),
            peer.path.clone(),
            peer.rtt_ms.map(|rtt| Millis(rtt).to_string()),
            peer.last_proof_seconds.map(|seconds| format!("{} ago", Seconds(seconds))),
            Some(Bytes(peer.rx_bytes).to_string()),
            Some(Bytes(peer.tx_bytes).to_string()),
        ]);
    }
    table.write(out)
}

fn print_server(status: &ServerStatus, out: &mut dyn Write) -> io::Result<()> {
    let node = &status.node;
    let port = format!("UDP and TCP port {}", node.port);
    writeln!(out, "server: {}", joined([Some(node.addresses.as_str()), node.addresses6.as_deref(), Some(&port)]))?;
    let identity = [("network", &node.network), ("id", &node.id), ("key fingerprint", &node.fingerprint)];
    let [network, id, fingerprint] = identity.map(|(what, text)| named(what, text));
    let age = age(&status.version, status.uptime_seconds);
    writeln!(out, "  {}", joined([network.as_deref(), id.as_deref(), fingerprint.as_deref(), Some(&age)]))?;
    let online = status.leases.iter().filter(|lease| lease.online).count();
    let members = format!("{online} of {} online", count(status.leases.len() as u64, "member"));
    let free = format!("{} free", count_as(status.lease_free, "address", "addresses"));
    let door = match (node.open, status.invitations) {
        (true, _) => "open to anybody",
        (false, true) => "an invitation is open",
        (false, false) => "no invitation is open",
    };
    let map = format!("map version {}, epoch {}", status.map_version, status.epoch);
    writeln!(out, "  {}", joined([Some(members.as_str()), Some(&free), Some(door), Some(&map)]))?;
    print_gateway(&status.gateway, out)?;
    print_leases(&status.leases, out)?;
    print_actors(&status.actors, out)?;
    print_lines("lately", status.events.iter().rev().take(EVENTS).rev(), out)?;
    print_lines("health", server_notes(status).iter(), out)
}

fn print_cloud(status: &CloudStatus, out: &mut dyn Write) -> io::Result<()> {
    let node = &status.node;
    let device = node.device.as_deref().unwrap_or("no device");
    writeln!(out, "cloud {device}: listening on {}", node.listen.join(" and "))?;
    let peers = count(status.peers.len() as u64, "peer");
    let stations = count(node.stations, "station");
    let timeouts = format!("peers kept {} s, stations {} s", node.peer_timeout_seconds, node.mac_timeout_seconds);
    let age = age(&status.version, status.uptime_seconds);
    writeln!(out, "  {}", joined([Some(peers.as_str()), Some(&stations), Some(&timeouts), Some(&age)]))?;
    print_cloud_peers(&status.peers, out)?;
    print_actors(&status.actors, out)?;
    print_lines("lately", status.events.iter().rev().take(EVENTS).rev(), out)?;
    let mut notes = Vec::new();
    if status.peers.is_empty() && !node.connect.is_empty() {
        notes.push(format!("nobody answers at {}", node.connect.join(", ")));
    }
    if node.device.is_none() {
        notes.push("the network device is missing: nothing can be sent or received".to_owned());
    }
    notes.extend(actor_notes(&status.actors));
    print_lines("health", notes.iter(), out)
}

/// The peers of one end of a cloud.
pub(super) fn print_cloud_peers(peers: &[CloudPeer], out: &mut dyn Write) -> io::Result<()> {
    if peers.is_empty() {
        return writeln!(out, "\nno peer yet");
    }
    writeln!(out)?;
    let columns = [Left("peer"), Right("connected"), Right("last heard"), Right("stations"), Right("in"), Right("out")];
    let mut table = Table::new(columns);
    for peer in peers {
        table.row(vec![
            Some(once(&peer.address).chain(&peer.also).map(String::as_str).collect::<Vec<_>>().join(", ")),
            Some(Seconds(peer.connected_seconds).to_string()),
            peer.last_heard_seconds.map(|seconds| format!("{} ago", Seconds(seconds))),
            Some(peer.stations.to_string()),
            Some(Bytes(peer.rx_bytes).to_string()),
            Some(Bytes(peer.tx_bytes).to_string()),
        ]);
    }
    table.write(out)
}

fn print_leases(leases: &[Lease], out: &mut dyn Write) -> io::Result<()> {
    if leases.is_empty() {
        return writeln!(out, "\nno member yet");
    }
    writeln!(out)?;
    let mut table = Table::new([
        Left("member"),
        Left("address"),
        Left("state"),
        Left("endpoint"),
        Right("connected"),
        Right("last heard"),
        Left("reaches"),
        Right("in"),
        Right("out"),
    ]);
    for lease in leases {
        table.row(vec![
            Some(lease.name.clone()),
            lease.address.clone().or_else(|| lease.address6.clone()),
            Some(if lease.online { "online" } else { "offline" }.to_owned()),
            lease.endpoint.clone(),
            lease.connected_seconds.map(|seconds| Seconds(seconds).to_string()),
            lease.last_heard_seconds.map(|seconds| format!("{} ago", Seconds(seconds))),
            reaches(lease),
            Some(Bytes(lease.rx_bytes).to_string()),
            Some(Bytes(lease.tx_bytes).to_string()),
        ]);
    }
    table.write(out)
}

/// `2 direct, 1 relay`, in the order of the words.
fn reaches(lease: &Lease) -> Option<String> {
    let mut paths: Vec<&str> = lease.peers.iter().map(|peer| peer.path.as_str()).collect();
    paths.sort_unstable();
    let groups: Vec<String> =
        paths.chunk_by(|a, b| a == b).map(|group| format!("{} {}", group.len(), group[0])).collect();
    (!groups.is_empty()).then(|| groups.join(", "))
}

pub(super) fn print_actors(actors: &[Actor], out: &mut dyn Write) -> io::Result<()> {
    if actors.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut table = Table::new([
        Left("actor"),
        Left("state"),
        Right("restarts"),
        Right("mailbox"),
        Left("when it stops"),
        Left("last stop"),
    ]);
    for actor in actors {
        table.row(vec![
            Some(actor.name.clone()),
            Some(actor.state.clone()),
            Some(actor.restarts.to_string()),
            Some(actor.mailbox.clone()),
            Some(actor.policy.clone()),
            actor.last_stop.clone(),
        ]);
    }
    table.write(out)
}

pub(super) fn print_lines<T: AsRef<str>>(
    heading: &str,
    lines: impl Iterator<Item = T>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut lines = lines.peekable();
    if lines.peek().is_some() {
        writeln!(out, "\n{heading}:")?;
    }
    for line in lines {
        writeln!(out, "  {}", line.as_ref())?;
    }
    Ok(())
}

/// What is not as it should be at a client, in sentences.
fn client_notes(status: &ClientStatus) -> Vec<String> {
    let mut notes = Vec::new();
    let goes_on = status.peers.iter().any(|peer| peer.state == "direct");
    let known = if goes_on { "; direct paths go on without it" } else { "" };
    match (status.server.connected, status.server.last_contact_seconds) {
        (true, _) => {}
        (false, Some(seconds)) => notes.push(format!("not connected to the server for {}{known}", Seconds(seconds))),
        (false, None) => notes.push(format!("not connected to the server since the start{known}")),
    }
    if status.node.address.is_none() && status.node.address6.is_none() {
        notes.push("this node has no address yet: the server has to admit it first".to_owned());
    } else if status.node.device.is_none() {
        notes.push("the network device is missing: nothing can be sent or received".to_owned());
    }
    let in_state = |state: &'static str| {
        list(status.peers.iter().filter(move |peer| peer.state == state).map(|peer| peer.name.as_str()))
    };
    if let Some(names) = in_state("searching") {
        notes.push(format!("no path yet to {names}"));
    }
    if let Some(names) = in_state("lost") {
        notes.push(format!("answered before, and does by no way any more: {names} (`eps-actor why NAME` says more)"));
    }
    if let Some(names) = in_state("relay") {
        notes.push(format!("reached through the server, not directly: {names}"));
    }
    notes.extend(status.cloud.iter().filter_map(cloud_note));
    notes.extend(actor_notes(&status.actors));
    notes
}

/// Why nothing crosses between the network and the cloud that is bridged.
fn cloud_note(port: &CloudPort) -> Option<String> {
    match port.state.as_str() {
        "no right" => Some(
            "nothing crosses between the cloud and the network: this member has no right to bridge; give it at the server \
             with --member NAME,bridge"
                .to_owned(),
        ),
        "held back" => {
            let other = port.held_for.as_deref().unwrap_or("another member");
            Some(format!("{other} bridges the cloud; this member would in its place"))
        }
        _ if port.peers.is_empty() && !port.connect.is_empty() => {
            Some(format!("nobody answers for the cloud at {}", port.connect.join(", ")))
        }
        _ => None,
    }
}

/// What is not as it should be at a server, in sentences.
fn server_notes(status: &ServerStatus) -> Vec<String> {
    let mut notes = Vec::new();
    if status.node.open {
        notes.push("anybody who can reach this server can join: it runs with `open`".to_owned());
    } else if status.leases.is_empty() && !status.invitations {
        notes.push("nobody can join: `eps-actor invite` prints a line to join with".to_owned());
    }
    if status.lease_free == 0 {
        notes.push("no address is left for new members: `eps-actor kick` frees one".to_owned());
    }
    notes.extend(actor_notes(&status.actors));
    notes
}

pub(super) fn actor_notes(actors: &[Actor]) -> impl Iterator<Item = String> {
    actors.iter().filter(|actor| actor.restarts > 0 || actor.state != "running").map(|actor| {
        let why = actor.last_stop.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        match (actor.state.as_str(), actor.restarts) {
            ("running", 1) => format!("{} was restarted once{why}", actor.name),
            ("running", restarts) => format!("{} was restarted {restarts} times{why}", actor.name),
            (state, _) => format!("{} is {state}{why}", actor.name),
        }
    })
}

/// `a, b and 3 more`; `None` for nobody.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let names: Vec<&str> = names.collect();
    let (shown, rest) = names.split_at(names.len().min(NAMES));
    match rest.len() {
        0 if shown.is_empty() => None,
        0 => Some(shown.join(", ")),
        more => Some(format!("{} and {more} more", shown.join(", "))),
    }
}

pub(super) fn age(version: &str, uptime: f64) -> String {
    format!("version {version}, up {}", Seconds(uptime))
}

fn named(what: &str, text: &str) -> Option<String> {
    (!text.is_empty()).then(|| format!("{what} {text}"))
}

pub(super) fn joined<'a>(parts: impl IntoIterator<Item = Option<&'a str>>) -> String {
    parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

fn count(number: u64, thing: &str) -> String {
    count_as(number, thing, &format!("{thing}s"))
}

fn count_as(number: u64, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {many}") }
}

/// Events shown; `--json` has all there are.
pub(super) const EVENTS: usize = 5;

/// Peers named in one sentence; the table has all of them.
const NAMES: usize = 5;

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_client_in_good_health() {
        let text = printed(&client());
        assert_eq!(
            text,
            "\
client laptop: 192.168.43.7/24, fd00::7/64
  connected, device eps0 with MTU 1376, offload csum tso4, MAC 02:00:00:00:00:07, id 1a2b3c4d, version 0.1.0, up 2 h 5 min
server 198.51.100.1:43439: heard 0.3 s ago, map version 12, network 00000000000000aa

peer     address       state    path               round trip  last proof      in    out
nas      192.168.43.9  direct   192.168.1.7:43210      0.4 ms   0.2 s ago  1.2 kB  340 B
printer  192.168.43.8  offline  -                           -           -     0 B    0 B

actor      state    restarts  mailbox  when it stops                               last stop
TapReader  running         0     0/64  restart; the node ends when device is gone  -

lately:
  nas is reached directly
"
        );
    }

    #[test]
    fn a_client_in_trouble_says_so_in_sentences() {
        let mut reply = client();
        reply["server"]["connected"] = json!(false);
        reply["server"]["last_contact_seconds"] = json!(12.2);
        assert!(printed(&reply).contains("\n  not connected to the server for 12 s; direct paths go on without it\n"));
        reply["peers"][0]["state"] = json!("relay");
        reply["peers"][1]["state"] = json!("searching");
        let mut gone = reply["peers"][1].clone();
        (gone["name"], gone["state"]) = (json!("attic"), json!("lost"));
        reply["peers"].as_array_mut().expect("a list").push(gone);
        reply["actors"][0]["restarts"] = json!(2);
        reply["actors"][0]["last_stop"] = json!("panicked: oh");
        let text = printed(&reply);
        assert!(
            text.ends_with(
                "\nhealth:\n  not connected to the server for 12 s\n  \
                 no path yet to printer\n  \
                 answered before, and does by no way any more: attic (`eps-actor why NAME` says more)\n  \
                 reached through the server, not directly: nas\n  \
                 TapReader was restarted 2 times: panicked: oh\n"
            ),
            "{text}"
        );
        assert!(text.contains("\nserver 198.51.100.1:43439: not connected for 12 s, "), "{text}");
    }

    #[test]
    fn a_client_before_its_first_lease() {
        let text = printed(&json!({"role": "client", "version": "0.1.0", "uptime_seconds": 0.5,
            "node": {"name": "laptop", "address": null, "device": null, "state": "joining"},
            "server": {"connected": false, "endpoint": null, "last_contact_seconds": null}}));
        assert!(text.starts_with("client laptop: no address yet\n  joining, version 0.1.0, up 0.5 s\n"), "{text}");
        assert!(text.contains("server with no known address: not connected, map version 0\n"), "{text}");
        assert!(text.contains("not connected to the server since the start\n"), "{text}");
        assert!(text.contains("this node has no address yet"), "{text}");
    }

    #[test]
    fn a_server() {
        let text = printed(&server());
        assert_eq!(
            text,
            "\
server: 192.168.43.0/24, fd00::/64, UDP and TCP port 43439
  network 00000000000000aa, id 5e, key fingerprint mfrgg, version 0.1.0, up 15 s
  1 of 2 members online, 251 addresses free, an invitation is open, map version 9, epoch 3

member  address       state    endpoint   connected  last heard  reaches              in      out
nas     192.168.43.9  online   1.2.3.4:5       10 s   1.0 s ago  2 direct, 1 relay  12 B  15.0 MB
gone    192.168.43.8  offline  -                  -     3 d ago  -                   0 B      0 B

actor        state    restarts  mailbox  when it stops  last stop
Coordinator  running         1    0/256  restart        panicked: x

health:
  Coordinator was restarted once: panicked: x
"
        );
    }

    #[test]
    fn the_gateway_is_shown_with_what_it_maps_or_why_not() {
        let mut reply = server();
        let line = |reply: &Value| printed(reply).lines().find(|line| line.starts_with("gateway")).map(str::to_owned);
        assert_eq!(line(&reply), None, "nothing is known of one");
        let mapping = |transport: &str, left: Value| {
            json!({"protocol": "PCP", "transport": transport, "port": 43439, "external": "198.51.100.7:43439",
                "lifetime_seconds": left})
        };
        reply["gateway"] = json!({"state": "mapped", "address": "192.168.1.1", "reason": null,
            "mappings": [mapping("UDP", json!(7200.0)), mapping("TCP", json!(null))]});
        let expected = "gateway 192.168.1.1: UDP 198.51.100.7:43439 to port 43439 (PCP, 2 h left), \
                        TCP 198.51.100.7:43439 to port 43439 (PCP, no end)";
        assert_eq!(line(&reply).as_deref(), Some(expected));
        reply["gateway"] = json!({"state": "none", "address": "192.168.1.1", "reason": "it is dumb", "mappings": []});
        assert_eq!(line(&reply).as_deref(), Some("gateway 192.168.1.1: no port mapping: it is dumb"));
        reply["gateway"]["state"] = json!("off");
        assert_eq!(line(&reply), None);
    }

    #[test]
    fn an_empty_server_says_how_to_begin() {
        let mut reply = server();
        reply["leases"] = json!([]);
        reply["invitations"] = json!(false);
        reply["lease_free"] = json!(0);
        let text = printed(&reply);
        assert!(text.contains("0 of 0 members online, 0 addresses free, no invitation is open"), "{text}");
        assert!(text.contains("\nno member yet\n"), "{text}");
        assert!(text.contains("nobody can join: `eps-actor invite`"), "{text}");
        assert!(text.contains("no address is left"), "{text}");
    }

    #[test]
    fn long_lists_of_names_are_cut() {
        let names = ["a", "b", "c", "d", "e", "f", "g"];
        assert_eq!(list(names.into_iter()).as_deref(), Some("a, b, c, d, e and 2 more"));
        assert_eq!(list(std::iter::empty()), None);
    }

    fn printed(reply: &Value) -> String {
        let mut out = Vec::new();
        print(&Status::read(reply).expect("a status"), &mut out).expect("written");
        String::from_utf8(out).expect("text")
    }

    fn client() -> Value {
        json!({"role": "client", "version": "0.1.0", "uptime_seconds": 7500.0,
            "node": {"name": "laptop", "id": "1a2b3c4d", "address": "192.168.43.7/24", "address6": "fd00::7/64",
                "mac": "02:00:00:00:00:07", "device": "eps0", "mtu": 1376,
                "offload": ["csum", "tso4"], "state": "connected"},
            "server": {"connected": true, "endpoint": "198.51.100.1:43439", "last_contact_seconds": 0.3,
                "map_version": 12, "network": "00000000000000aa"},
            "peers": [
                {"name": "nas", "id": "2b", "address": "192.168.43.9", "address6": null, "mac": "02:00:00:00:00:09",
                    "online": true, "state": "direct", "path": "192.168.1.7:43210", "rtt_ms": 0.4,
                    "last_proof_seconds": 0.2, "rx_bytes": 1200, "tx_bytes": 340, "rx_frames": 3, "tx_frames": 2,
                    "session_age_seconds": 3.0, "suite": "AES-256-GCM"},
                {"name": "printer", "address": "192.168.43.8", "online": false, "state": "offline", "path": null,
                    "rtt_ms": null, "last_proof_seconds": null, "rx_bytes": 0, "tx_bytes": 0}],
            "counters": {"drops": 1},
            "actors": [{"name": "TapReader", "state": "running", "restarts": 0, "last_stop": null,
                "mailbox": "0/64", "policy": "restart; the node ends when device is gone"}],
            "events": ["nas is reached directly"]})
    }

    fn server() -> Value {
        json!({"role": "server", "version": "0.1.0", "uptime_seconds": 15.0,
            "node": {"id": "5e", "network": "00000000000000aa", "addresses": "192.168.43.0/24",
                "addresses6": "fd00::/64", "port": 43439, "open": false, "fingerprint": "mfrgg"},
            "lease_free": 251, "invitations": true, "map_version": 9, "epoch": 3,
            "leases": [
                {"name": "nas", "id": "2b", "address": "192.168.43.9", "address6": null, "mac": "02:00:00:00:00:09",
                    "online": true, "endpoint": "1.2.3.4:5", "last_heard_seconds": 1.0, "connected_seconds": 10.0,
                    "joined_unix": 1_790_000_000, "rights": ["bridge"], "rx_bytes": 12, "tx_bytes": 15_000_000,
                    "peers": [{"name": "a", "path": "direct"}, {"name": "b", "path": "relay"},
                        {"name": "c", "path": "direct"}]},
                {"name": "gone", "address": "192.168.43.8", "online": false, "endpoint": null,
                    "last_heard_seconds": 259_200.0, "connected_seconds": null}],
            "counters": {},
            "actors": [{"name": "Coordinator", "state": "running", "restarts": 1, "last_stop": "panicked: x",
                "mailbox": "0/256", "policy": "restart"}],
            "events": []})
    }
}
