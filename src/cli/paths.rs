//! `eps-actor paths`: every way to the other members, and how several of them are used.

use std::io::Write;

use serde::Deserialize;
use serde_json::json;

use super::args::PathsArguments;
use super::ask::ask_role;
use super::table::Column::{Left, Right};
use super::table::Table;
use crate::config::Role;
use crate::scaled::{Bytes, Millis, Seconds};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reply {
    peers: Vec<Peer>,
    copies_sent_bytes: u64,
    udp_tx_bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Peer {
    name: String,
    mode: String,
    paths: Vec<Path>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Path {
    kind: String,
    address: String,
    uplink: Option<String>,
    state: String,
    rtt_ms: Option<f64>,
    jitter_ms: Option<f64>,
    loss_percent: Option<f64>,
    mtu: Option<u16>,
    last_proof_seconds: Option<f64>,
    rx_bytes: u64,
    tx_bytes: u64,
}

/// Asks the client for its paths and prints them, or tells it how to use them.
pub fn run(arguments: &PathsArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let mode = arguments.mode.map(|mode| mode.word());
    let question = json!({"command": "paths", "peer": arguments.peer, "mode": mode});
    let reply = ask_role(Role::Client, Some(&arguments.socket), &question)?;
    if arguments.json {
        writeln!(out, "{reply}")?;
        return Ok(());
    }
    if let Some(mode) = mode {
        let whom = arguments.peer.as_deref().unwrap_or("members that were not named");
        writeln!(out, "several paths to {whom}: {mode}, until this client ends; the key `multipath` keeps it for all")?;
        return Ok(());
    }
    print(&serde_json::from_value(reply)?, out)
}

fn print(reply: &Reply, out: &mut dyn Write) -> anyhow::Result<()> {
    let (with, without): (Vec<&Peer>, Vec<&Peer>) = reply.peers.iter().partition(|peer| !peer.paths.is_empty());
    if !with.is_empty() {
        let mut table = Table::new([
            Left("peer"),
            Left("mode"),
            Left("path"),
            Left("by"),
            Left("state"),
            Right("round trip"),
            Right("jitter"),
            Right("loss"),
            Right("MTU"),
            Right("last proof"),
            Right("in"),
            Right("out"),
        ]);
        for peer in &with {
            for (number, path) in peer.paths.iter().enumerate() {
                let once = |text: &str| Some(if number == 0 { text.to_owned() } else { String::new() });
                table.row(vec![
                    once(&peer.name),
                    once(&peer.mode),
                    Some(format!("{} {}", path.kind, path.address)),
                    path.uplink.clone(),
                    Some(path.state.clone()),
                    path.rtt_ms.map(|rtt| Millis(rtt).to_string()),
                    path.jitter_ms.map(|jitter| Millis(jitter).to_string()),
                    path.loss_percent.map(|loss| format!("{loss:.1} %")),
                    path.mtu.map(|mtu| mtu.to_string()),
                    path.last_proof_seconds.map(|seconds| format!("{} ago", Seconds(seconds))),
                    Some(Bytes(path.rx_bytes).to_string()),
                    Some(Bytes(path.tx_bytes).to_string()),
                ]);
            }
        }
        table.write(out)?;
    }
    if !without.is_empty() {
        let names: Vec<_> = without.iter().map(|peer| peer.name.as_str()).collect();
        writeln!(out, "no path yet to {}; one is made by the first frame", names.join(", "))?;
    }
    if reply.copies_sent_bytes > 0 {
        let part = reply.copies_sent_bytes as f64 * 100.0 / reply.udp_tx_bytes.max(1) as f64;
        writeln!(out, "copies: {} of what was sent, {part:.1} %", Bytes(reply.copies_sent_bytes))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_lines_under_their_peer_and_copies_have_their_price() {
        let reply = json!({
            "peers": [
                {"name": "bob", "mode": "redundant", "paths": [
                    {"kind": "direct", "address": "192.0.2.1:7", "uplink": "eth0", "state": "active", "rtt_ms": 1.5,
                     "jitter_ms": 0.2, "loss_percent": 0.25, "mtu": 1500, "last_proof_seconds": 1.0, "rx_bytes": 2048, "tx_bytes": 10},
                    {"kind": "relay", "address": "198.51.100.1:43439", "state": "standby", "rx_bytes": 0, "tx_bytes": 0},
                ]},
                {"name": "cleo", "mode": "best", "paths": []},
            ],
            "copies_sent_bytes": 50, "udp_tx_bytes": 1000,
        });
        let mut text = Vec::new();
        print(&serde_json::from_value(reply).expect("a reply"), &mut text).expect("printed");
        let text = String::from_utf8(text).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        for part in ["bob", "redundant", "direct 192.0.2.1:7", "eth0", "active", "0.2 %", "1500"] {
            assert!(lines[1].contains(part), "{part}: {text}");
        }
        assert!(
            lines[2].trim_start().starts_with("relay 198.51.100.1:43439") && lines[2].contains("standby"),
            "{text}"
        );
        assert!(lines[3].contains("cleo") && lines[4].contains("5.0 %"), "{text}");
    }
}
