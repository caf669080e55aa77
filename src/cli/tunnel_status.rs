//! `eps-actor status` of a tunnel: itself, its paths, its actors, and what is not as it should be.

use std::io::{self, Write};

use super::reply::{TunnelPath, TunnelStatus};
use super::status::{EVENTS, actor_notes, age, joined, print_actors, print_lines};
use super::table::Column::{Left, Right};
use super::table::Table;
use crate::scaled::{Bytes, Millis, Seconds};

/// Prints it for eyes.
pub fn print(status: &TunnelStatus, out: &mut dyn Write) -> io::Result<()> {
    let node = &status.node;
    writeln!(out, "tunnel {}: {}", node.end, node.addresses.join(", "))?;
    let device = node
        .device
        .as_ref()
        .map_or_else(|| "no device".to_owned(), |device| format!("device {device} with MTU {}", node.mtu));
    let listens = (!node.listen.is_empty()).then(|| format!("listening on {}", node.listen.join(", ")));
    let port = format!("UDP port {}", node.port);
    let session = match (node.protocol.as_str(), node.session_age_seconds, &node.suite) {
        ("native", Some(seconds), Some(suite)) => format!("session of {} with {suite}", Seconds(seconds)),
        ("native", ..) => "no session".to_owned(),
        _ => "not encrypted".to_owned(),
    };
    let age = age(&status.version, status.uptime_seconds);
    let parts = [Some(&*device), listens.as_deref(), Some(&port), Some(&node.protocol), Some(&session), Some(&age)];
    writeln!(out, "  {}", joined(parts))?;
    print_paths(&status.paths, out)?;
    print_actors(&status.actors, out)?;
    print_lines("lately", status.events.iter().rev().take(EVENTS).rev(), out)?;
    print_lines("health", notes(status).iter(), out)
}

fn print_paths(paths: &[TunnelPath], out: &mut dyn Write) -> io::Result<()> {
    if paths.is_empty() {
        return writeln!(out, "\nnobody has been heard yet");
    }
    writeln!(out)?;
    let mut table = Table::new([
        Left("from"),
        Left("to"),
        Left("state"),
        Right("round trip"),
        Right("last heard"),
        Right("in"),
        Right("copies"),
        Right("out"),
        Right("not sent"),
    ]);
    for path in paths {
        table.row(vec![
            path.from.clone(),
            path.to.clone(),
            Some(path.state.clone()),
            path.rtt_ms.map(|rtt| Millis(rtt).to_string()),
            path.last_heard_seconds.map(|seconds| format!("{} ago", Seconds(seconds))),
            Some(Bytes(path.rx_bytes).to_string()),
            Some(path.duplicates.to_string()),
            Some(Bytes(path.tx_bytes).to_string()),
            Some(path.tx_dropped.to_string()),
        ]);
    }
    table.write(out)
}

/// What is not as it should be, in sentences.
fn notes(status: &TunnelStatus) -> Vec<String> {
    let mut notes = Vec::new();
    if status.node.device.is_none() {
        notes.push("the network device is missing: nothing can be sent or received".to_owned());
    }
    for path in &status.paths {
        let to = path.to.as_deref().unwrap_or("the server");
        let from = path.from.as_ref().map(|from| format!(" from {from}")).unwrap_or_default();
        match (path.state.as_str(), &path.failure) {
            ("failing", Some(why)) => notes.push(format!("the path{from} to {to} fails: {why}")),
            ("waiting", _) => notes.push(format!("the path{from} to {to} has no socket or no address yet")),
            ("silent", _) => notes.push(format!("nothing comes by the path{from} to {to}")),
            _ => {}
        }
    }
    if status.node.protocol == "native" && status.node.session_age_seconds.is_none() {
        notes.push("the other end has not proven that it knows the secret: is it there, with the same one?".to_owned());
    }
    notes.extend(actor_notes(&status.actors));
    notes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::reply::Status;

    #[test]
    fn a_tunnel_with_a_path_that_fails() {
        let path = json!({"from": "10.0.0.2", "to": "10.0.0.1:5678", "state": "up", "last_heard_seconds": 0.2,
            "rtt_ms": 1.5, "rx_bytes": 1200, "duplicates": 3, "tx_bytes": 340, "tx_dropped": 0});
        let mut failing = path.clone();
        failing["from"] = json!("192.168.123.2");
        failing["state"] = json!("failing");
        failing["failure"] = json!("Network is unreachable (os error 101)");
        let reply = json!({"role": "tunnel", "version": "0.1.0", "uptime_seconds": 15.0,
            "node": {"end": "client", "protocol": "native", "addresses": ["10.42.42.2/24"], "device": "tun0", "mtu": 1400,
                "port": 5678, "session_age_seconds": 10.0, "suite": "AES-256-GCM"},
            "paths": [path, failing], "actors": [], "events": []});
        let mut text = Vec::new();
        super::super::status::print(&Status::read(&reply).expect("a status"), &mut text).expect("printed");
        let text = String::from_utf8(text).expect("text");
        assert!(
            text.starts_with(
                "tunnel client: 10.42.42.2/24\n  device tun0 with MTU 1400, UDP port 5678, native, \
                 session of 10 s with AES-256-GCM, version 0.1.0, up 15 s\n"
            ),
            "{text}"
        );
        assert!(text.contains("10.0.0.1:5678  up"), "{text}");
        assert!(
            text.ends_with(
                "health:\n  the path from 192.168.123.2 to 10.0.0.1:5678 fails: Network is unreachable (os error 101)\n"
            ),
            "{text}"
        );
    }
}
