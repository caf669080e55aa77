//! What a node says of itself: the answers of the control socket, the outputs, the words at a server's start.
//!
//! Every output is a pure function of one immutable [`Snapshot`], so that their sums agree: [`json`] (status and
//! scorecard), [`prometheus`], [`classic`] (the scorecard of EPS Conduits), [`stats_text`] (for the log) and [`map`].
//! Snapshots are made of published views and counters, so that they can be taken while actors are busy or being
//! restarted. Unknown is null or absent, never 0; counters only grow; times are seconds.

pub mod classic;
pub mod cloud;
pub mod gateway;
pub mod json;
pub mod map;
pub mod prometheus;
pub mod routes;
pub mod snapshot;
pub mod stats_text;
pub mod tunnel;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use xtra::Address;

use crate::actors::client::{ClientShared, Ending, MAP_FILE, NETWORK_FILE};
use crate::actors::coordinator::{Coordinator, ServerShared};
use crate::actors::ext::cast;
use crate::actors::peer_table::PeerTable;
use crate::actors::routes::TABLE_FILE;
use crate::actors::server_link::ServerLink;
use crate::actors::supervisor::Supervisor;
use crate::actors::{why, words};
use crate::config::{Expiry, ScorecardFormat};
use crate::io::clock::unix_time;
use crate::io::netlink::{Netlink, default_source};
use crate::messages::coordinator::{Invite, Kick, NetworkDescription};
use crate::messages::peer_table::SetMode;
use crate::messages::server_link::Release;
use crate::proto::coordinator::Reply;
use crate::proto::noise::Identity;
pub use crate::report::snapshot::{Sampler, Snapshot};
use crate::wire::join::{HostPort, JoinLine, Token, fingerprint};

/// How long an order may take before the one who gave it is told that it did not work.
const DEADLINE: Duration = Duration::from_secs(5);
/// Who asks for an invitation waits for the gateway no longer than this: the question has a deadline of its own.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers a request at a client.
pub fn answer_client(
    request: Value,
    shared: Arc<ClientShared>,
    supervisor: Supervisor,
    sampler: Arc<Sampler>,
    (link, table): (Address<ServerLink>, Address<PeerTable>),
) -> BoxFuture<'static, Result<Value, String>> {
    Box::pin(async move {
        match request["command"].as_str() {
            Some("status") => Ok(json::status(&sampler.take(Instant::now()))),
            Some("scorecard") => outputs(&request, &sampler),
            Some("ping") => words::ping(&request, &shared, &table).await,
            Some("why") => why::why(&request, &shared, &table).await,
            Some("path") => words::path(&request, &shared).await,
            Some("leave") => {
                let (tell, told) = smol::channel::bounded(1);
                cast(&link, Release(tell));
                let released =
                    async { told.recv().await.map_err(|_| "the server link was restarted; try again".to_owned()) };
                within(released).await?;
                for file in [NETWORK_FILE, MAP_FILE, TABLE_FILE] {
                    // The key stays, so that the same machine may come back.
                    shared.state.remove(file).map_err(|error| error.to_string())?;
                }
                let _ = shared.end.try_send(Ending::Left);
                Ok(json!({ "left": true }))
            }
            Some("paths") => paths(&request, &shared, &sampler, &table),
            Some("inject_panic") => inject(&request, &supervisor),
            other => Err(unknown(other, "client")),
        }
    })
}

/// The paths to one peer or to all; with a `mode`, sets how they are used.
fn paths(
    request: &Value,
    shared: &ClientShared,
    sampler: &Sampler,
    table: &Address<PeerTable>,
) -> Result<Value, String> {
    let named = request["peer"].as_str().map(|who| words::find(shared, who).map_err(|error| error.to_string()));
    let named = named.transpose()?;
    if let Some(word) = request["mode"].as_str() {
        let mode = word.parse()?;
        if !cast(table, SetMode { peer: named.as_ref().map(|peer| peer.key), mode }) {
            return Err("the peer table is busy; try again".into());
        }
        return Ok(json!({ "peer": named.map(|peer| peer.name), "mode": word }));
    }
    let snapshot = sampler.take(Instant::now());
    let snapshot::Role::Client(part) = &snapshot.role else { return Err("only a client has paths".into()) };
    let is_meant = |peer: &&snapshot::Peer| named.as_ref().is_none_or(|named| peer.key == named.key);
    let meant: Vec<_> = part.peers.iter().filter(is_meant).collect();
    Ok(json!({
        "peers": meant,
        "copies_sent_bytes": snapshot.totals.copies_sent_bytes,
        "udp_tx_bytes": snapshot.totals.udp_tx_bytes,
    }))
}

/// Answers a request at a server.
pub fn answer_server(
    request: Value,
    shared: Arc<ServerShared>,
    supervisor: Supervisor,
    sampler: Arc<Sampler>,
    coordinator: Address<Coordinator>,
) -> BoxFuture<'static, Result<Value, String>> {
    Box::pin(async move {
        match request["command"].as_str() {
            Some("status" | "members") => {
                described(&shared).await;
                Ok(json::status(&sampler.take(Instant::now())))
            }
            Some("scorecard") => outputs(&request, &sampler),
            Some("invite") => {
                let expiry = match &request["expires"] {
                    Value::Null => shared.live.load().invite_expiry,
                    text => text
                        .as_str()
                        .and_then(|text| text.parse().ok())
                        .ok_or("expires: write a time like 24h, or never")?,
                };
                let reusable = request["reusable"].as_bool().unwrap_or(false);
                let (line, expires_unix) = invite(&shared, &coordinator, expiry, reusable, PATIENCE).await?;
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
            Some("map") => {
                described(&shared).await;
                Ok(json!({ "dot": map::dot(&sampler.take(Instant::now())) }))
            }
            Some("inject_panic") => inject(&request, &supervisor),
            other => Err(unknown(other, "server")),
        }
    })
}

/// The scorecard: as JSON if nothing else is asked for; with `"format": "all"` every output there is, of one snapshot.
pub(crate) fn outputs(request: &Value, sampler: &Sampler) -> Result<Value, String> {
    let snapshot = sampler.take(Instant::now());
    let text = |format| json!({ "text": scorecard(&snapshot, format) });
    match request["format"].as_str() {
        None | Some("json") => Ok(json::scorecard(&snapshot)),
        Some("prom") => Ok(text(ScorecardFormat::Prometheus)),
        Some("classic") => Ok(text(ScorecardFormat::Classic)),
        Some("all") => Ok(json!({
            "status": json::status(&snapshot),
            "json": json::scorecard(&snapshot),
            "prom": prometheus::page(&snapshot),
            "classic": classic::lines(&snapshot),
            "stats": stats_text::entries(&snapshot).join("\n"),
            "map": map::dot(&snapshot),
        })),
        Some(other) => Err(format!("{other:?} is no format of a scorecard; json, prom, classic and all are")),
    }
}

/// The text of a scorecard. Its last line ends.
pub fn scorecard(snapshot: &Snapshot, format: ScorecardFormat) -> String {
    match format {
        ScorecardFormat::Json => {
            format!("{:#}\n", json::scorecard(snapshot))
        }
        ScorecardFormat::Prometheus => prometheus::page(snapshot),
        ScorecardFormat::Classic => classic::lines(snapshot),
    }
}

pub(crate) fn unknown(command: Option<&str>, role: &str) -> String {
    match command {
        Some(command) => format!("{command:?} is nothing a {role} can be asked"),
        None => "the request names no command".into(),
    }
}

pub(crate) fn inject(request: &Value, supervisor: &Supervisor) -> Result<Value, String> {
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
    patience: Duration,
) -> Result<(String, Option<u64>), String> {
    let expires_unix = expiry.duration().map(|life| unix_time().as_secs() + life.as_secs());
    let (reply, told) = smol::channel::bounded(1);
    cast(coordinator, Invite { expires_unix, uses: (!reusable).then_some(1), reply });
    match order(told).await? {
        Reply::Invited(token) => Ok((join_line(shared, Some(Token::new(token)), patience).await, expires_unix)),
        Reply::Failed(why) => Err(why),
        Reply::Done => Err("the coordinator made no invitation".into()),
    }
}

/// The line a client joins with. Where nobody said under which name the server is known, what the gateway maps to it
/// comes first, and then its address towards the default route, or else any that is not this machine's alone.
async fn join_line(shared: &ServerShared, token: Option<Token>, patience: Duration) -> String {
    let config = shared.live.load();
    let mut hosts = config.advertise.clone();
    if hosts.is_empty() {
        gateway_settled(shared, patience).await;
        let mapped = shared.gateway.load().udp();
        hosts.extend(mapped.map(|addr| HostPort { host: addr.ip().to_string(), port: addr.port() }));
        let listening = config.listen.iter().find(|ip| !ip.is_unspecified()).map(ToString::to_string);
        let host = match listening.or_else(|| default_source().map(|ip| ip.to_string())) {
            Some(host) => host,
            None => some_address().await.unwrap_or(Ipv4Addr::LOCALHOST).to_string(),
        };
        hosts.push(HostPort { host, port: config.port });
    }
    JoinLine { hosts, fingerprint: fingerprint(&server_key(shared)), token }.to_string()
}

/// Waits until the gateway has mapped our port, or the time to search is over, which begins with the server; or until
/// the one who waits has to go on.
async fn gateway_settled(shared: &ServerShared, patience: Duration) {
    // The search begins when the default route is known, a moment after the start.
    let searched = shared.started + shared.config.upnptimeout + Duration::from_millis(200);
    let end = searched.min(Instant::now() + patience);
    let asked = shared.config.listen.iter().any(|ip| ip.is_ipv4() && !ip.is_loopback());
    while asked && !shared.config.upnptimeout.is_zero() && !shared.gateway.load().settled && Instant::now() < end {
        smol::Timer::after(Duration::from_millis(10)).await;
    }
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
    let config = shared.live.load();
    println!(
        "network {} on UDP and TCP port {}, {} of {} addresses leased",
        config.network,
        config.port,
        description.members.len(),
        description.members.len() as u64 + description.lease_free
    );
    if config.open {
        let line = join_line(&shared, None, config.upnptimeout * 2).await;
        println!("anybody may join with:\n\n    eps-actor client --join '{line}'\n");
    } else if description.members.is_empty() {
        match invite(&shared, &coordinator, config.invite_expiry, false, config.upnptimeout * 2).await {
            Ok((line, _)) => {
                println!("join with (once; `eps-actor invite` makes more):\n\n    eps-actor client --join '{line}'\n")
            }
            Err(why) => log::warn!("no invitation could be made: {why}"),
        }
    } else {
        println!("`eps-actor invite` lets another machine join");
    }
}
