//! A tunnel in a snapshot: its part, its answers, its samples for Prometheus and its map.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::{Value, json};

use super::prometheus::Page;
use super::snapshot::{Base, Sampler, seconds, suite_word};
use super::{inject, map, outputs, unknown};
use crate::actors::supervisor::Supervisor;
use crate::actors::tunnel_system::TunnelShared;
use crate::proto::tunnel::{End, PathDescription};
use crate::scaled::Bytes;

/// What only a tunnel has.
#[derive(Debug, Clone)]
pub struct TunnelPart {
    pub node: TunnelNode,
    /// In the order they were given, or learned.
    pub paths: Vec<TunnelPath>,
}

#[derive(Debug, Clone, Serialize)]
pub struct TunnelNode {
    /// `server` or `client`.
    pub end: &'static str,
    /// `multi_tun` or `native`.
    pub protocol: &'static str,
    pub addresses: Vec<String>,
    pub device: Option<String>,
    pub mtu: u16,
    /// A server's own addresses.
    pub listen: Vec<String>,
    pub port: u16,
    pub timeout_seconds: u64,
    /// Of our own protocol.
    pub session_age_seconds: Option<f64>,
    pub suite: Option<&'static str>,
}

#[derive(Debug, Clone, Serialize)]
pub struct TunnelPath {
    /// The address of this machine it goes from; a server's is any it listens on.
    pub from: Option<String>,
    /// `None` while the server's name is not resolved, or the socket not bound.
    pub to: Option<String>,
    /// `up`: heard within the timeout; `silent`; `failing`: sends are refused; `waiting` for its address or name.
    pub state: &'static str,
    /// In the kernel's words.
    pub failure: Option<String>,
    pub last_heard_seconds: Option<f64>,
    /// Of our own protocol; multi_tun's measures nothing.
    pub rtt_ms: Option<f64>,
    pub rx_datagrams: u64,
    pub rx_bytes: u64,
    /// Of those received, copies of what had come by another path.
    pub duplicates: u64,
    pub tx_datagrams: u64,
    pub tx_bytes: u64,
    /// Not sent: the socket was full, or the path fails.
    pub tx_dropped: u64,
    /// In the window; `None` where it was not there at its beginning.
    pub rx_bits_per_second: Option<f64>,
    pub tx_bits_per_second: Option<f64>,
}

/// The states of paths, the best first.
const STATES: [&str; 4] = ["up", "silent", "failing", "waiting"];

impl TunnelPath {
    /// What it is called in outputs; its server may have others.
    pub fn name(&self) -> String {
        match (&self.from, &self.to) {
            (Some(from), Some(to)) => format!("{from} to {to}"),
            (None, Some(to)) => to.clone(),
            (Some(from), None) => from.clone(),
            (None, None) => "unknown".to_owned(),
        }
    }
}

/// A tunnel at this moment, of what its actor has published.
pub(super) fn part(shared: &TunnelShared, base: &Base, length: Duration, now: Instant) -> TunnelPart {
    let (config, view) = (&shared.config, shared.view.load());
    let session = view.session.as_ref();
    TunnelPart {
        node: TunnelNode {
            end: if config.end == End::Server { "server" } else { "client" },
            protocol: if config.keys.is_some() { "native" } else { "multi_tun" },
            addresses: config.addresses.iter().map(|(address, prefix)| format!("{address}/{prefix}")).collect(),
            device: shared.tun.load().as_ref().map(|tun| tun.name().to_owned()),
            mtu: config.mtu(),
            listen: config.listen.iter().map(ToString::to_string).collect(),
            port: config.port,
            timeout_seconds: config.timeout.as_secs(),
            session_age_seconds: session.map(|session| seconds(now.saturating_duration_since(session.born))),
            suite: session.map(|session| suite_word(session.suite)),
        },
        paths: view.paths.iter().map(|path| path_part(shared, path, base, length, now)).collect(),
    }
}

fn path_part(shared: &TunnelShared, path: &PathDescription, base: &Base, length: Duration, now: Instant) -> TunnelPath {
    let heard = path.meter.heard_ms().map(|ms| shared.started + Duration::from_millis(ms));
    let silence = heard.map(|heard| now.saturating_duration_since(heard));
    let state = match (&path.failure, path.remote) {
        (_, None) => "waiting",
        (Some(_), _) => "failing",
        (None, _) if silence.is_some_and(|silence| silence < shared.config.timeout) => "up",
        (None, _) => "silent",
    };
    let pair = shared.config.pairs.get(usize::from(path.uplink.0));
    let [rx_datagrams, rx_bytes, duplicates, tx_datagrams, tx_bytes, tx_dropped] = [
        &path.meter.rx_datagrams,
        &path.meter.rx_bytes,
        &path.meter.duplicates,
        &path.meter.tx_datagrams,
        &path.meter.tx_bytes,
        &path.meter.tx_dropped,
    ]
    .map(|counter| counter.load(Relaxed));
    let mut part = TunnelPath {
        from: pair.map(|pair| pair.bind.to_string()),
        to: path.remote.map(|remote| remote.to_string()).or_else(|| pair.map(|pair| pair.server.clone())),
        state,
        failure: path.failure.clone(),
        last_heard_seconds: silence.map(seconds),
        rtt_ms: path.meter.rtt().map(|rtt| (rtt.as_secs_f64() * 1e6).round() / 1e3),
        rx_datagrams,
        rx_bytes,
        duplicates,
        tx_datagrams,
        tx_bytes,
        tx_dropped,
        rx_bits_per_second: None,
        tx_bits_per_second: None,
    };
    if let Some((rx, tx)) = base.member(&part.name()).filter(|_| !length.is_zero()) {
        let rate = |now: u64, before: u64| Some(now.saturating_sub(before) as f64 * 8.0 / length.as_secs_f64());
        (part.rx_bits_per_second, part.tx_bits_per_second) = (rate(rx_bytes, rx), rate(tx_bytes, tx));
    }
    part
}

/// Answers a request at a tunnel.
pub fn answer(
    request: Value,
    supervisor: Supervisor,
    sampler: std::sync::Arc<Sampler>,
) -> BoxFuture<'static, Result<Value, String>> {
    Box::pin(async move {
        match request["command"].as_str() {
            Some("status") => Ok(super::json::status(&sampler.take(Instant::now()))),
            Some("scorecard") => outputs(&request, &sampler),
            Some("map") => Ok(json!({ "dot": map::dot(&sampler.take(Instant::now())) })),
            Some("inject_panic") => inject(&request, &supervisor),
            other => Err(unknown(other, "tunnel")),
        }
    })
}

/// Its samples.
pub(super) fn samples(page: &mut Page, part: &TunnelPart) {
    let mut states = page.gauge("eps_tunnel_paths", "Paths of the tunnel by how they are.");
    for state in STATES {
        states = states.sample(&[("state", state)], part.paths.iter().filter(|path| path.state == state).count());
    }
    // Numbered: two paths of one client between the same addresses would be one series.
    let paths: Vec<(String, String, &TunnelPath)> =
        part.paths.iter().enumerate().map(|(number, path)| (number.to_string(), path.name(), path)).collect();
    let mut heard = page.gauge("eps_tunnel_path_last_heard_seconds", "How long ago something came by the path.");
    for (number, name, path) in &paths {
        heard = heard.known(&[("number", number), ("path", name)], path.last_heard_seconds);
    }
    let mut rtt = page.gauge("eps_tunnel_path_rtt_seconds", "Last round trip by the path, where it is measured.");
    for (number, name, path) in &paths {
        let known = path.rtt_ms.map(|millis| (millis * 1e3).round() / 1e6);
        rtt = rtt.known(&[("number", number), ("path", name)], known);
    }
    let mut bytes = page.counter("eps_tunnel_path_bytes_total", "Bytes of datagrams by the path.");
    for (number, name, path) in &paths {
        bytes = bytes
            .sample(&[("number", number), ("path", name), ("dir", "rx")], path.rx_bytes)
            .sample(&[("number", number), ("path", name), ("dir", "tx")], path.tx_bytes);
    }
    let mut datagrams = page.counter("eps_tunnel_path_datagrams_total", "Datagrams by the path.");
    for (number, name, path) in &paths {
        datagrams = datagrams
            .sample(&[("number", number), ("path", name), ("dir", "rx")], path.rx_datagrams)
            .sample(&[("number", number), ("path", name), ("dir", "tx")], path.tx_datagrams);
    }
    let mut copies = page.counter("eps_tunnel_path_duplicates_total", "Copies of what had come by another path.");
    for (number, name, path) in &paths {
        copies = copies.sample(&[("number", number), ("path", name)], path.duplicates);
    }
    let mut dropped = page.counter("eps_tunnel_path_unsent_total", "Datagrams that the path did not take.");
    for (number, name, path) in &paths {
        dropped = dropped.sample(&[("number", number), ("path", name)], path.tx_dropped);
    }
}

/// The tunnel as this end sees it, in DOT: itself in the middle, and the far end of each path by a line.
pub(super) fn dot(part: &TunnelPart, time: &str) -> String {
    let mut text = String::new();
    write_dot(&mut text, part, time).expect("a String takes all that is written");
    text
}

fn write_dot(text: &mut String, part: &TunnelPart, time: &str) -> std::fmt::Result {
    let TunnelNode { end, addresses, .. } = &part.node;
    let up = part.paths.iter().filter(|path| path.state == "up").count();
    writeln!(text, "graph eps {{")?;
    writeln!(text, "  // {time}")?;
    writeln!(text, "  label=\"tunnel, {up} of {} paths up, {time}\";", part.paths.len())?;
    writeln!(text, "  node [style=filled, fontname=\"sans-serif\"];")?;
    let own = addresses.join("\\n");
    writeln!(text, "  self [label=\"tunnel {end}\\n{own}\", shape=box, fillcolor=lightblue];")?;
    for (number, path) in part.paths.iter().enumerate() {
        let colour = match path.state {
            "up" => "palegreen",
            "waiting" => "white",
            _ => "salmon",
        };
        let (name, state) = (path.name(), path.state);
        writeln!(text, "  path{number} [label=\"path {number}\\n{name}\\n{state}\", fillcolor={colour}];")?;
        let (bytes_in, bytes_out) = (Bytes(path.rx_bytes), Bytes(path.tx_bytes));
        writeln!(text, "  self -- path{number} [tooltip=\"in {bytes_in}, out {bytes_out}\"];")?;
    }
    writeln!(text, "}}")
}

/// A number that changes when a path comes, goes, or is otherwise.
pub(super) fn shape(part: &TunnelPart) -> u64 {
    let mut hasher = DefaultHasher::new();
    part.node.addresses.hash(&mut hasher);
    part.paths.iter().for_each(|path| (path.name(), path.state).hash(&mut hasher));
    hasher.finish()
}
