//! The scorecard of EPS Conduits: a line `name value` for each counter, once for the minute and once in total.
//!
//! Names are those of its class documentation, with `minute_` and `total_` before them; what it did not document, the
//! header lines, is ours. `server_…` is what passed by the server, `direct_…` between clients, `tap_…` at the device.
//! Lines of another role are left out, and so are those of bytes dropped, which nobody counts. A value goes to the end
//! of its line: rates are words, as in the log.

use std::fmt::Write;
use std::time::Duration;

use super::snapshot::{Role, Snapshot};
use super::stats_text::{Flow, Rate, Sums};

/// The schema of these lines; additions do not raise it.
const SCHEMA: u32 = 1;

/// All lines.
pub fn lines(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        writeln!(text, "{name} {value}").expect("a String takes all that is written");
    };
    let (role, is_client) = match snapshot.role {
        Role::Client(_) => ("client", true),
        Role::Server(_) => ("server", false),
        // It has a device and direct paths, as a client.
        Role::Tunnel(_) => ("tunnel", true),
        Role::Cloud(_) => ("cloud", true),
    };
    line("schema", &SCHEMA);
    line("role", &role);
    line("version", &env!("CARGO_PKG_VERSION"));
    line("time_unix", &snapshot.time.as_secs());
    line("start_time_unix", &snapshot.started.as_secs());
    line("window_seconds", &super::snapshot::seconds(snapshot.window.length));
    let window = Sums::of(&snapshot.window.grown, &snapshot.role);
    for (prefix, sums) in [("minute", &window), ("total", &Sums::of(&snapshot.totals, &snapshot.role))] {
        for (name, value) in counters(sums, is_client) {
            line(&format!("{prefix}_{name}"), &value);
        }
    }
    if !snapshot.window.length.is_zero() {
        for (name, rate) in rates(&window, is_client, snapshot.window.length) {
            line(&format!("minute_{name}"), &rate);
        }
    }
    text
}

fn counters(sums: &Sums, is_client: bool) -> Vec<(String, u64)> {
    let mut list = Vec::new();
    let mut flow = |kind: &str, verb: &str, flow: Flow| {
        list.push((format!("{kind}_packets_{verb}"), flow.packets));
        list.push((format!("{kind}_bytes_{verb}"), flow.bytes));
    };
    if !is_client {
        flow("server", "forwarded", sums.forwarded);
    }
    flow("server", "received", sums.received);
    flow("server", "sent", sums.sent);
    if is_client {
        flow("direct", "received", sums.direct_received);
        flow("direct", "sent", sums.direct_sent);
        flow("tap", "received", sums.tap_received);
        flow("tap", "sent", sums.tap_sent);
    }
    list.push(("packets_dropped".into(), sums.dropped_packets));
    list.push(("connections_established".into(), sums.connections_established));
    list.push(("connections_dropped".into(), sums.connections_dropped));
    list
}

fn rates(sums: &Sums, is_client: bool, window: Duration) -> Vec<(&'static str, String)> {
    let mut list = vec![("server_bps_in", sums.received), ("server_bps_out", sums.sent)];
    if is_client {
        list.extend([
            ("direct_bps_in", sums.direct_received),
            ("direct_bps_out", sums.direct_sent),
            ("tap_bps_in", sums.tap_received),
            ("tap_bps_out", sums.tap_sent),
        ]);
    } else {
        list.push(("server_bps_fwd", sums.forwarded));
    }
    list.into_iter().map(|(name, flow)| (name, Rate(flow.bytes, window).text())).collect()
}
