//! A snapshot as JSON: the answer to `status`, and the scorecard.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::snapshot::{Role, Snapshot, seconds};
use super::stats_text::Sums;
use crate::actors::supervisor::ActorStatus;
use crate::counters::{DropReason, Tally};

/// The schema of the scorecard. Additions do not raise it; nothing is renamed.
const SCHEMA: u32 = 1;

/// What `status` answers.
pub fn status(snapshot: &Snapshot) -> Value {
    let counters: Map<_, _> =
        snapshot.totals.list().into_iter().map(|(name, value)| (name, Value::from(value))).collect();
    let mut status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": seconds(snapshot.uptime),
        "counters": counters,
        "actors": actors(&snapshot.actors),
        "events": snapshot.events,
    });
    let fields = status.as_object_mut().expect("it is one");
    fields.extend(role(snapshot));
    status
}

/// The scorecard.
pub fn scorecard(snapshot: &Snapshot) -> Value {
    let mut card = json!({
        "schema": SCHEMA,
        "version": env!("CARGO_PKG_VERSION"),
        "time": time(snapshot),
        "time_unix": snapshot.time.as_secs(),
        "start_time_unix": snapshot.started.as_secs(),
        "uptime_seconds": seconds(snapshot.uptime),
        "totals": plain(&snapshot.totals),
        "drops": drops(&snapshot.totals),
        "window_seconds": seconds(snapshot.window.length),
        "window": window(snapshot),
        "actors": actors(&snapshot.actors),
    });
    let fields = card.as_object_mut().expect("it is one");
    fields.extend(role(snapshot));
    card
}

/// When it was taken, as RFC 3339 in UTC, to the second.
pub fn time(snapshot: &Snapshot) -> String {
    let seconds = i64::try_from(snapshot.time.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

fn role(snapshot: &Snapshot) -> Map<String, Value> {
    let fields = match &snapshot.role {
        Role::Client(part) => json!({
            "role": "client",
            "node": part.node,
            "server": part.server,
            "gateway": part.gateway,
            "nat": part.nat,
            "routing": part.routing,
            "peers": part.peers,
            "cloud": part.cloud,
        }),
        Role::Tunnel(part) => json!({ "role": "tunnel", "node": part.node, "paths": part.paths }),
        Role::Server(part) => {
            let network = part.network.as_ref();
            json!({
                "role": "server",
                "node": part.node,
                "gateway": part.gateway,
                "lease_free": network.map(|network| network.lease_free),
                "invitations": network.map(|network| network.invitations),
                "map_version": network.map(|network| network.map_version),
                "epoch": network.map(|network| network.epoch),
                "leases": network.map(|network| &network.leases),
            })
        }
        Role::Cloud(part) => json!({
            "role": "cloud",
            "node": part.node,
            "peers": part.peers,
            "stations": part.stations,
        }),
    };
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn actors(status: &[ActorStatus]) -> Value {
    status
        .iter()
        .map(|actor| {
            let capacity = actor.mailbox.capacity.map_or("-".into(), |capacity| capacity.to_string());
            json!({
                "name": actor.name,
                "state": actor.state,
                "restarts": actor.restarts,
                "last_stop": actor.last_stop.as_ref().map(|stop| stop.reason.to_string()),
                "mailbox": format!("{}/{capacity}", actor.mailbox.queued),
                "policy": actor.policy,
            })
        })
        .collect()
}

fn plain(tally: &Tally) -> Map<String, Value> {
    tally.plain().into_iter().map(|(name, _, value)| (name.to_owned(), Value::from(value))).collect()
}

fn drops(tally: &Tally) -> BTreeMap<&'static str, u64> {
    let counted = DropReason::ALL.iter().map(|reason| (reason.name(), tally.drops(*reason)));
    counted.filter(|(_, count)| *count > 0).collect()
}

/// The growth of all that `totals` has, of the drops together, and rates of the sums that the log tells too.
fn window(snapshot: &Snapshot) -> Value {
    let window = &snapshot.window;
    let mut fields = plain(&window.grown);
    fields.insert("drops".into(), window.grown.drops_of_all().into());
    let sums = Sums::of(&window.grown, &snapshot.role);
    let rates = [
        ("rx_bits_per_second", sums.in_bytes()),
        ("tx_bits_per_second", sums.out_bytes()),
        ("forwarded_bits_per_second", sums.forwarded.bytes),
    ];
    for (name, bytes) in rates {
        let rate = window.per_second(bytes).map(|rate| (rate * 8.0).round());
        fields.insert(name.into(), rate.into());
    }
    fields.into()
}
