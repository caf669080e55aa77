//! What a node says of itself: the answers of the control socket, the scorecard, the words at a server's start.
//!
//! Everything is made from published views and counters, so that it can be asked while actors are busy or being
//! restarted. Unknown is null, never 0; counters only grow; times are seconds.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use xtra::Address;

use crate::actors::client::{ClientShared, Ending};
use crate::actors::coordinator::{Coordinator, ServerShared};
use crate::actors::ext::{call, cast};
use crate::actors::server_link::ServerLink;
use crate::actors::stats::Stats;
use crate::actors::supervisor::{ActorStatus, Supervisor};
use crate::config::{Expiry, right_names};
use crate::counters::{Counters, DropReason};
use crate::io::netlink::{Netlink, default_source};
use crate::messages::coordinator::{Invite, Kick, NetworkDescription};
use crate::messages::server_link::Release;
use crate::messages::stats::TakeSnapshot;
use crate::proto::coordinator::Reply;
use crate::proto::crypto::Suite;
use crate::proto::noise::Identity;
use crate::proto::peers::{PeerDescription, PeerState};
use crate::proto::topology::{Link, LinkKind, Member, Topology, dot};
use crate::wire::join::{HostPort, JoinLine, Token, fingerprint};

/// How long an order may take before the one who gave it is told that it did not work.
const DEADLINE: Duration = Duration::from_secs(5);
/// The schema of the scorecard; additions do not raise it.
const SCHEMA: u32 = 1;

/// Answers a request at a client.
pub fn answer_client(
    request: Value,
    shared: Arc<ClientShared>,
    supervisor: Supervisor,
    stats: Address<Stats>,
    link: Address<ServerLink>,
) -> BoxFuture<'static, Result<Value, String>> {
    Box::pin(async move {
        match request["command"].as_str() {
            Some("status") => Ok(client_status(&shared, &supervisor.status())),
            Some("scorecard") => call(&stats, TakeSnapshot, DEADLINE).await.map_err(|error| error.to_string()),
            Some("leave") => {
                let (tell, told) = smol::channel::bounded(1);
                cast(&link, Release(tell));
                let released =
                    async { told.recv().await.map_err(|_| "the server link was restarted; try again".to_owned()) };
                within(released).await?;
                for file in [crate::actors::client::NETWORK_FILE, crate::actors::client::MAP_FILE] {
                    // The key stays, so that the same machine may come back.
                    shared.state.remove(file).map_err(|error| error.to_string())?;
                }
                let _ = shared.end.try_send(Ending::Left);
                Ok(json!({ "left": true }))
            }
            Some("inject_panic") => inject(&request, &supervisor),
            other => Err(unknown(other, "client")),
        }
    })
}

/// Answers a request at a server.
pub fn answer_server(
    request: Value,
    shared: Arc<ServerShared>,
    supervisor: Supervisor,
    stats: Address<Stats>,
    coordinator: Address<Coordinator>,
) -> BoxFuture<'static, Result<Value, String>> {
    Box::pin(async move {
        match request["command"].as_str() {
            Some("status" | "members") => {
                described(&shared).await;
                Ok(server_status(&shared, &supervisor.status()))
            }
            Some("scorecard") => call(&stats, TakeSnapshot, DEADLINE).await.map_err(|error| error.to_string()),
            Some("invite") => {
                let expiry = match &request["expires"] {
                    Value::Null => shared.config.invite_expiry,
                    text => text
                        .as_str()
                        .and_then(|text| text.parse().ok())
                        .ok_or("expires: write a time like 24h, or never")?,
                };
                let reusable = request["reusable"].as_bool().unwrap_or(false);
                let (line, expires_unix) = invite(&shared, &coordinator, expiry, reusable).await?;
                Ok(json!({ "join": line, "expires_unix": expires_unix, "reusable": reusable }))
            }
            Some("kick") => {
                let name = request["name"].as_str().ok_or("kick: which name?")?.to_owned();
                let (reply, told) = smol::channel::bounded(1);
                cast(&coordinator, Kick { name: name.clone(), reply });
                match order(told).await? {
                    Reply::Done | Reply::Invited(_) => Ok(json!({ "removed": name })),
                    Reply::Failed(why) => Err(why),
                }
            }
            Some("map") => Ok(json!({ "dot": map(&shared) })),
            Some("inject_panic") => inject(&request, &supervisor),
            other => Err(unknown(other, "server")),
        }
    })
}

fn unknown(command: Option<&str>, role: &str) -> String {
    match command {
        Some(command) => format!("{command:?} is nothing a {role} can be asked"),
        None => "the request names no command".into(),
    }
}

fn inject(request: &Value, supervisor: &Supervisor) -> Result<Value, String> {
    #[cfg(any(debug_assertions, feature = "fault-injection"))]
    {
        let actor = request["actor"].as_str().ok_or("inject_panic: which actor?")?;
        let hang = request["hang"] == true;
        let fault = if hang { crate::actors::supervisor::Fault::Hang } else { crate::actors::supervisor::Fault::Panic };
        supervisor.inject(actor, fault).map_err(|error| error.to_string())?;
        Ok(json!({ "injected": actor }))
    }
    #[cfg(not(any(debug_assertions, feature = "fault-injection")))]
    {
        let _ = (request, supervisor);
        Err("this build has no fault injection".into())
    }
}

async fn within<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let late = async {
        smol::Timer::after(DEADLINE).await;
        Err("no answer in time; see the log".to_owned())
    };
    futures_lite::future::or(work, late).await
}

async fn order(told: smol::channel::Receiver<Reply>) -> Result<Reply, String> {
    within(async { told.recv().await.map_err(|_| "the coordinator was restarted; try again".to_owned()) }).await
}

async fn invite(
    shared: &ServerShared,
    coordinator: &Address<Coordinator>,
    expiry: Expiry,
    reusable: bool,
) -> Result<(String, Option<u64>), String> {
    let expires_unix = expiry.duration().map(|life| unix() + life.as_secs());
    let (reply, told) = smol::channel::bounded(1);
    cast(coordinator, Invite { expires_unix, uses: (!reusable).then_some(1), reply });
    match order(told).await? {
        Reply::Invited(token) => Ok((join_line(shared, Some(Token::new(token))).await, expires_unix)),
        Reply::Failed(why) => Err(why),
        Reply::Done => Err("the coordinator made no invitation".into()),
    }
}

/// The line a client joins with. Where nobody said under which name the server is known, its address towards the
/// default route has to do, or else any that is not this machine's alone.
async fn join_line(shared: &ServerShared, token: Option<Token>) -> String {
    let config = &shared.config;
    let mut hosts = config.advertise.clone();
    if hosts.is_empty() {
        let listening = config.listen.iter().find(|ip| !ip.is_unspecified()).map(ToString::to_string);
        let host = match listening.or_else(|| default_source().map(|ip| ip.to_string())) {
            Some(host) => host,
            None => some_address().await.unwrap_or(Ipv4Addr::LOCALHOST).to_string(),
        };
        hosts.push(HostPort { host, port: config.port });
    }
    JoinLine { hosts, fingerprint: fingerprint(&server_key(shared)), token }.to_string()
}

/// An IPv4 address of this machine that others may be able to reach.
async fn some_address() -> Option<Ipv4Addr> {
    let addresses = Netlink::open().ok()?.addresses().await.ok()?;
    addresses.into_iter().find_map(|address| match address.addr {
        IpAddr::V4(ip) if address.is_up() && address.is_usable() && !address.is_loopback() => Some(ip),
        _ => None,
    })
}

fn server_key(shared: &ServerShared) -> crate::ids::PublicKey {
    Identity::from_secret(shared.secrets.0.clone()).public
}

/// The network as the coordinator describes it, once it has started.
async fn described(shared: &ServerShared) -> NetworkDescription {
    loop {
        if let Some(description) = shared.description.load().as_ref() {
            return description.clone();
        }
        smol::Timer::after(Duration::from_millis(10)).await;
    }
}

/// The words at a server's start: how to join it.
pub async fn welcome(shared: Arc<ServerShared>, coordinator: Address<Coordinator>) {
    let description = described(&shared).await;
    let config = &shared.config;
    println!(
        "network {} on UDP and TCP port {}, {} of {} addresses leased",
        config.network,
        config.port,
        description.members.len(),
        description.members.len() as u64 + description.lease_free
    );
    if config.open {
        println!("anybody may join with:\n\n    eps-actor client --join {}\n", join_line(&shared, None).await);
    } else if description.members.is_empty() {
        match invite(&shared, &coordinator, config.invite_expiry, false).await {
            Ok((line, _)) => {
                println!("join with (once; `eps-actor invite` makes more):\n\n    eps-actor client --join {line}\n")
            }
            Err(why) => log::warn!("no invitation could be made: {why}"),
        }
    } else {
        println!("`eps-actor invite` lets another machine join");
    }
}

fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn counters(counters: &Counters) -> Value {
    counters.list().into_iter().map(|(name, value)| (name, Value::from(value))).collect::<Map<_, _>>().into()
}

fn actors(status: &[ActorStatus]) -> Value {
    status
        .iter()
        .map(|actor| {
            let state = serde_json::to_value(actor.state).unwrap_or(Value::Null);
            json!({
                "name": actor.name,
                "state": state,
                "restarts": actor.restarts,
                "last_stop": actor.last_stop.as_ref().map(|stop| stop.reason.to_string()),
                "mailbox": format!("{}/{}", actor.mailbox.queued, actor.mailbox.capacity.map_or("-".into(), |n| n.to_string())),
                "policy": actor.policy,
            })
        })
        .collect()
}

fn seconds(duration: Duration) -> Value {
    // Milliseconds are as exact as anybody reads.
    Value::from((duration.as_secs_f64() * 1000.0).round() / 1000.0)
}

/// The status of a client.
pub fn client_status(shared: &ClientShared, status: &[ActorStatus]) -> Value {
    let now = Instant::now();
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
    json!({
        "role": "client",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": seconds(now - shared.started),
        "node": {
            "name": **shared.name.load(),
            "id": shared.key.node_id().to_string(),
            "address": lease.as_ref().map(|lease| format!("{}/{}", lease.ip4, lease.prefix4)),
            "address6": lease.as_ref().and_then(|lease| lease.ip6.map(|ip6| format!("{ip6}/{}", lease.prefix6))),
            "mac": lease.as_ref().map(|lease| lease.mac.to_string()),
            "device": shared.slot.get().map(|tap| tap.name().to_owned()),
            "mtu": shared.config.mtu,
            "offload": shared.slot.get().and_then(|tap| Some(tap.offloads()?.names().collect::<Vec<_>>())),
            "port": shared.uplinks.port(),
            "state": state,
        },
        "server": {
            "connected": server.attached,
            "endpoint": server.endpoint.map(|endpoint| endpoint.addr.to_string()),
            "last_contact_seconds": heard.map(seconds),
            "map_version": shared.map_version.load(Relaxed),
            "network": pinned.map(|pinned| pinned.network.to_string()),
        },
        "peers": peers(shared, now),
        "counters": counters(&shared.views.counters),
        "actors": actors(status),
        "events": shared.events.list(),
    })
}

fn peers(shared: &ClientShared, now: Instant) -> Value {
    let list = shared.peers.load();
    let mut sorted: Vec<&PeerDescription> = list.iter().collect();
    sorted.sort_by_key(|peer| peer.certificate.ip4);
    sorted.into_iter().map(|peer| peer_status(shared, peer, now)).collect()
}

fn peer_status(shared: &ClientShared, peer: &PeerDescription, now: Instant) -> Value {
    let epoch = shared.views.epoch;
    let heard = peer.meter.heard_ms().map(|ms| epoch.at(ms));
    // What proves a peer: an authentic datagram, or a reply to a probe.
    let proof = heard.into_iter().chain(peer.proven).max().filter(|_| peer.session.is_some());
    json!({
        "name": peer.name,
        "id": peer.key.node_id().to_string(),
        "address": peer.certificate.ip4.to_string(),
        "address6": peer.certificate.ip6.map(|ip6| ip6.to_string()),
        "mac": peer.certificate.mac.to_string(),
        "online": peer.online,
        "state": state_word(peer.state),
        "path": peer.route.map(|route| route.endpoint.addr.to_string()),
        "rtt_ms": peer.srtt.map(|srtt| (srtt.as_secs_f64() * 1e6).round() / 1e3),
        "last_proof_seconds": proof.map(|proof| seconds(now.saturating_duration_since(proof))),
        "rx_bytes": peer.meter.rx_bytes.load(Relaxed),
        "tx_bytes": peer.meter.tx_bytes.load(Relaxed),
        "rx_frames": peer.meter.rx_frames.load(Relaxed),
        "tx_frames": peer.meter.tx_frames.load(Relaxed),
        "session_age_seconds": peer.session.as_ref().map(|session| seconds(now.saturating_duration_since(session.born))),
        "suite": peer.session.as_ref().map(|session| suite_word(session.suite)),
    })
}

fn state_word(state: PeerState) -> &'static str {
    match state {
        PeerState::Direct => "direct",
        PeerState::Relay => "relay",
        PeerState::Searching => "searching",
        PeerState::Idle => "idle",
        PeerState::Offline => "offline",
    }
}

fn suite_word(suite: Suite) -> &'static str {
    match suite {
        Suite::Aes256Gcm => "AES-256-GCM",
        Suite::ChaCha20Poly1305 => "ChaCha20-Poly1305",
    }
}

/// The status of a server.
pub fn server_status(shared: &ServerShared, status: &[ActorStatus]) -> Value {
    let description = shared.description.load_full();
    let description = description.as_ref().as_ref();
    let key = server_key(shared);
    let config = &shared.config;
    json!({
        "role": "server",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": seconds(shared.started.elapsed()),
        "node": {
            "id": key.node_id().to_string(),
            "network": description.map(|d| d.network.id.to_string()),
            "addresses": config.network.to_string(),
            "addresses6": description.and_then(|d| d.network6.map(|net| net.to_string())),
            "port": config.port,
            "open": config.open,
            "fingerprint": crate::proto::map::hex(&fingerprint(&key)),
        },
        "lease_free": description.map(|d| d.lease_free),
        "invitations": description.map(|d| d.invitations),
        "map_version": description.map(|d| d.head),
        "epoch": description.map(|d| d.network.epoch),
        "leases": description.map(leases),
        "counters": counters(&shared.counters),
        "actors": actors(status),
        "events": shared.events.list(),
    })
}

fn leases(description: &NetworkDescription) -> Value {
    description
        .members
        .iter()
        .map(|member| {
            let peers: Vec<Value> = member
                .reports
                .iter()
                .filter_map(|report| {
                    let id: [u8; 8] = report.peer.0[..8].try_into().ok()?;
                    Some(json!({
                        "name": description.names.get(&id)?,
                        "path": if report.direct { "direct" } else { "relay" },
                        "rtt_ms": (report.rtt_us > 0).then(|| f64::from(report.rtt_us) / 1000.0),
                        "rx_bytes": report.rx_bytes,
                        "tx_bytes": report.tx_bytes,
                    }))
                })
                .collect();
            json!({
                "name": member.record.name,
                "id": member.record.key.node_id().to_string(),
                "address": member.record.ip4.to_string(),
                "address6": member.record.ip6.map(|ip6| ip6.to_string()),
                "mac": member.record.mac.to_string(),
                "online": member.online,
                "endpoint": member.endpoint.map(|endpoint| endpoint.addr.to_string()),
                "last_heard_seconds": member.heard_ago.map(seconds),
                "connected_seconds": member.attached_for.map(seconds),
                "joined_unix": member.record.joined_unix,
                "rights": right_names(member.record.rights),
                "rx_bytes": member.rx_bytes,
                "tx_bytes": member.tx_bytes,
                "peers": peers,
            })
        })
        .collect()
}

fn map(shared: &ServerShared) -> String {
    let description = shared.description.load_full();
    let Some(description) = description.as_ref().as_ref() else { return String::new() };
    let members = description
        .members
        .iter()
        .map(|member| Member {
            name: member.record.name.clone(),
            address: member.record.ip4.to_string(),
            online: member.online,
            rx_bytes: member.rx_bytes,
            tx_bytes: member.tx_bytes,
        })
        .collect();
    let links = description
        .members
        .iter()
        .flat_map(|member| member.reports.iter().map(move |report| (member, report)))
        .filter_map(|(member, report)| {
            let id: [u8; 8] = report.peer.0[..8].try_into().ok()?;
            Some(Link {
                ends: [member.record.name.clone(), description.names.get(&id)?.clone()],
                kind: if report.direct { LinkKind::Direct } else { LinkKind::Relay },
                rtt: (report.rtt_us > 0).then(|| Duration::from_micros(u64::from(report.rtt_us))),
            })
        })
        .collect();
    let topology = Topology { server: shared.config.network.to_string(), members, links };
    dot(&topology, &format!("taken at {} (Unix seconds)", unix()))
}

fn drops(counters: &Counters) -> BTreeMap<&'static str, u64> {
    let counted = DropReason::ALL.iter().map(|reason| (reason.name(), counters.drops(*reason)));
    counted.filter(|(_, count)| *count > 0).collect()
}

fn totals(counters: &Counters) -> Value {
    let plain = counters.list().into_iter().filter(|(name, _)| !name.starts_with("drop"));
    plain.map(|(name, value)| (name, Value::from(value))).collect::<Map<_, _>>().into()
}

/// The scorecard of a client: totals and peers at one moment.
pub fn client_scorecard(shared: &ClientShared, status: &[ActorStatus]) -> Value {
    let whole = client_status(shared, status);
    json!({
        "schema": SCHEMA,
        "role": "client",
        "version": whole["version"],
        "time_unix": unix(),
        "uptime_seconds": whole["uptime_seconds"],
        "node": whole["node"],
        "server": whole["server"],
        "totals": totals(&shared.views.counters),
        "drops": drops(&shared.views.counters),
        "peers": whole["peers"],
        "actors": whole["actors"],
    })
}

/// The scorecard of a server: totals and members at one moment.
pub fn server_scorecard(shared: &ServerShared, status: &[ActorStatus]) -> Value {
    let whole = server_status(shared, status);
    json!({
        "schema": SCHEMA,
        "role": "server",
        "version": whole["version"],
        "time_unix": unix(),
        "uptime_seconds": whole["uptime_seconds"],
        "node": whole["node"],
        "lease_free": whole["lease_free"],
        "totals": totals(&shared.counters),
        "drops": drops(&shared.counters),
        "leases": whole["leases"],
        "actors": whole["actors"],
    })
}
