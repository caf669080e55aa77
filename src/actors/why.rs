//! `why`: gathers the facts of both ends of a pair, for [`verdict`](crate::proto::verdict) to judge.
//!
//! What only the machine knows (routes, what a server sees of it) is found out when somebody asks, here or at the
//! other end, and kept for a moment: nothing of it runs otherwise.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::{Value, json};
use smol::channel::Sender;
use xtra::Address;

use super::client::ClientShared;
use super::ext::cast;
use super::peer_table::PeerTable;
use super::words::{NoPeer, ask, find, way};
use crate::ids::UplinkId;
use crate::io::ask::{AskSocket, route_error, tcp_connect};
use crate::io::netlink::{Netlink, source_towards};
use crate::messages::peer_table::{OwnAccount, WhatWeKnow};
use crate::proto::asking::{Answer, Question};
use crate::proto::netcheck::{How, Question as Asked, mapping};
use crate::proto::peers::{PeerDescription, PeerState, leased_networks};
use crate::proto::verdict::{Account, Facts, Membership, Overlap, Verdict, Way, judge};
use crate::wire::control::CandidateKind;
use crate::wire::why::{Mapping, Side, Try};

/// How long the server's ports may take to answer; a wide round trip, and twice again.
const SERVER_PATIENCE: Duration = Duration::from_millis(900);
/// A TCP connection is tried for so long where UDP is silent.
const TCP_PATIENCE: Duration = Duration::from_millis(700);
/// The other end's account; it asks its server first.
const ACCOUNT_PATIENCE: Duration = Duration::from_millis(2800);
/// What the peer table does is published by then.
const PUBLISHED: Duration = Duration::from_millis(50);
/// What was found out holds for so long.
const KEPT: Duration = Duration::from_secs(3);
/// Sockets asked with where each destination has another port: three pairs tell chance from steps.
const SOCKETS: usize = 3;

/// What the machine knows of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings {
    flags: u16,
    mapping: Mapping,
    observed: Option<SocketAddr>,
    server_tcp: Option<bool>,
}

impl Surroundings {
    /// Adds it to what the peers core knows, and the kernel's errors to each address.
    pub fn complete(&self, mut side: Side) -> Side {
        side.flags |= self.flags;
        (side.mapping, side.observed) = (self.mapping, self.observed);
        side.tries.iter_mut().for_each(|one| one.errno = route_error(one.addr));
        side
    }
}

/// Finds out how this machine is connected, or says what was found a moment ago.
pub async fn surroundings(shared: &ClientShared) -> Surroundings {
    if let Some((at, known)) = shared.words.surroundings()
        && at.elapsed() < KEPT
    {
        return known;
    }
    let found = look_around(shared).await;
    shared.words.set_surroundings(found);
    found
}

async fn look_around(shared: &ClientShared) -> Surroundings {
    let server = shared.views.server.load_full();
    let mut side = Side::default();
    side.set(Side::ATTACHED, server.attached);
    side.set(Side::DEVICE, shared.slot.get().is_some());
    side.set(Side::HARD_NAT, shared.config.hard_nat);
    let by_tcp = server.attached && server.endpoint.is_some_and(|endpoint| endpoint.uplink == UplinkId::TCP);
    side.set(Side::BY_TCP, by_tcp);
    let towards = |ip: IpAddr| {
        let own = shared.views.own.load();
        source_towards(ip).is_some_and(|source| !own.overlay.iter().any(|net| net.contains(&source)))
    };
    let leads = |v4: bool| {
        let known = server.endpoints.iter().map(|endpoint| endpoint.addr.ip()).filter(|ip| ip.is_ipv4() == v4);
        known.chain([far_away(v4)]).any(towards)
    };
    side.set(Side::ROUTE4, leads(true));
    side.set(Side::ROUTE6, leads(false));

    let mut found = Surroundings { flags: side.flags, ..Surroundings::default() };
    let Some(place) = server.endpoint.or(server.endpoints.first().copied()) else { return found };
    let (answered, kind, observed) = ask_server(place.addr).await;
    side.set(Side::UDP_ANSWERED, answered);
    (found.flags, found.mapping, found.observed) = (side.flags, kind, observed);
    if !answered {
        let connected = tcp_connect(place.addr, TCP_PATIENCE).await.is_ok();
        found.server_tcp = Some(connected);
        // While the server is spoken to by UDP, it may be that it answers strangers no more for a moment.
        let by_udp = server.attached && !by_tcp;
        if connected && !by_udp {
            found.mapping = Mapping::Blocked;
        }
    }
    found
}

/// An address of the documentation: no machine has a narrower route to it than its default.
fn far_away(v4: bool) -> IpAddr {
    if v4 { IpAddr::V4([192, 0, 2, 1].into()) } else { IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)) }
}

/// Asks the server where it sees a fresh socket, and again at its second port, if the answer names one; whether
/// anybody answered, and what that means.
async fn ask_server(server: SocketAddr) -> (bool, Mapping, Option<SocketAddr>) {
    let (mut sights, mut answered, mut observed) = (Vec::new(), false, None);
    for number in 0..SOCKETS {
        let Ok(socket) = AskSocket::open(server.is_ipv4()) else { break };
        let mut next = Some(server);
        while let Some(to) = next.take() {
            let question = [Asked { to, how: How::PLAIN }];
            let heard = socket.round(&question, SERVER_PATIENCE).await;
            sights.extend(socket.sights(number, &heard, &question));
            let Some(heard) = heard.into_iter().flatten().next() else { break };
            (answered, observed) = (true, observed.or(Some(heard.observed)));
            let other = heard.more.map(|tell| tell.other_port).filter(|port| *port != 0 && to == server);
            next = other.map(|port| SocketAddr::new(server.ip(), port));
        }
        if !answered {
            break;
        }
        // One socket is enough unless its port depends on the destination.
        if mapping(&sights) != Mapping::Dependent {
            break;
        }
    }
    (answered, mapping(&sights), observed)
}

/// Answers `{"command": "why", "peer": …}`.
pub async fn why(request: &Value, shared: &ClientShared, table: &Address<PeerTable>) -> Result<Value, String> {
    let who = request["peer"].as_str().ok_or("why: which peer?")?;
    let peer = match find(shared, who) {
        Ok(peer) => peer,
        Err(error) => return nobody(who, error),
    };
    let attached = shared.views.server.load().attached;
    let Some(known) = own_account(table, &peer).await else {
        // It was removed in this moment, which is published in the next.
        smol::Timer::after(PUBLISHED).await;
        let error = find(shared, who).err().ok_or("the peer table was restarted; try again")?;
        return nobody(who, error);
    };
    // Somebody who is idle stays so: that nothing was sent is the whole story.
    let idle = peer.session.is_none() && peer.state == PeerState::Idle;
    let asks = peer.session.is_some() || peer.state == PeerState::Searching || (!attached && known.cached);
    let theirs = async {
        if asks { account(ask(shared, table, &peer, Question::Why, ACCOUNT_PATIENCE).await) } else { Account::NotAsked }
    };
    let (theirs, around, overlap) = futures_util::future::join3(theirs, surroundings(shared), overlap(shared)).await;
    // As it is by now.
    let known = own_account(table, &peer).await.unwrap_or(known);
    let peer = find(shared, who).unwrap_or(peer);
    let now = Instant::now();
    let facts = Facts {
        peer: peer.name.clone(),
        membership: Membership::Member,
        online: peer.online,
        idle,
        session: peer.session.as_ref().map(|session| now.saturating_duration_since(session.born)),
        way: peer.way().map(|route| if route.is_direct() { Way::Direct(route.endpoint.addr) } else { Way::Relay }),
        srtt: peer.srtt,
        heard: peer.meter.heard_ms().map(|ms| now.saturating_duration_since(shared.views.epoch.at(ms))),
        server_tcp: around.server_tcp,
        cached: known.cached,
        overlap,
        ours: around.complete(known.side),
        theirs,
    };
    let mut reply = tell(&facts, &judge(&facts));
    let fields = reply.as_object_mut().expect("it is one");
    // The paths take some seconds more to be given up.
    let is_lost = peer.session.is_some() && facts.is_silent();
    fields.insert("state".into(), if is_lost { PeerState::Lost } else { peer.state }.word().into());
    fields.insert("path".into(), peer.way().filter(|_| !is_lost).map(|route| way(&route)).into());
    Ok(reply)
}

/// Asks the peer table.
async fn own_account(table: &Address<PeerTable>, peer: &PeerDescription) -> Option<WhatWeKnow> {
    let (tell, told): (Sender<WhatWeKnow>, _) = smol::channel::bounded(1);
    cast(table, OwnAccount { peer: peer.idx, tell });
    let late = async {
        smol::Timer::after(Duration::from_secs(1)).await;
        None
    };
    futures_lite::future::or(async { told.recv().await.ok() }, late).await
}

fn account(answer: Answer) -> Account {
    match answer {
        Answer::Why(side) => Account::Told(*side),
        Answer::NotUnderstood => Account::NotUnderstood,
        Answer::NoSession => Account::NotAsked,
        Answer::Silence | Answer::NotAMember | Answer::TooMany | Answer::Pong { .. } => Account::Silent,
    }
}

/// A local network with addresses of the mesh network, if there is one.
async fn overlap(shared: &ClientShared) -> Option<Overlap> {
    let lease = shared.lease.load_full()?;
    let device = shared.slot.get().map(|tap| tap.ifindex());
    let networks = leased_networks(&lease);
    let addresses = Netlink::open().ok()?.addresses().await.ok()?;
    let local = addresses.iter().filter(|address| Some(address.ifindex) != device && !address.is_loopback());
    local.filter(|address| address.is_up()).find_map(|address| {
        let local = IpNet::new(address.addr, address.prefix).ok()?.trunc();
        let touches = |net: &&IpNet| net.contains(&local.network()) || local.contains(&net.network());
        let network = *networks.iter().find(touches)?;
        Some(Overlap { network, local, device: address.name.clone() })
    })
}

fn nobody(who: &str, error: NoPeer) -> Result<Value, String> {
    let membership = match error {
        NoPeer::Oneself => return Err(error.to_string()),
        NoPeer::Unknown { known, .. } => Membership::Unknown(known),
        NoPeer::Removed { .. } => Membership::Removed,
    };
    let facts = Facts { peer: who.to_owned(), membership, ..Facts::default() };
    Ok(words_of(who, &judge(&facts)))
}

fn words_of(peer: &str, verdict: &Verdict) -> Value {
    json!({
        "peer": peer,
        "verdict": verdict.name(),
        "fine": verdict.is_fine(),
        "text": verdict.text(peer),
        "fix": verdict.fix(peer),
    })
}

fn tell(facts: &Facts, verdict: &Verdict) -> Value {
    let mut reply = words_of(&facts.peer, verdict);
    let (word, theirs) = match &facts.theirs {
        Account::Told(side) => ("told", Some(side)),
        Account::Silent => ("silent", None),
        Account::NotUnderstood => ("not-understood", None),
        Account::NotAsked => ("not-asked", None),
    };
    let fields = reply.as_object_mut().expect("it is one");
    fields.insert("online".into(), facts.online.into());
    fields.insert("session_age_seconds".into(), facts.session.map(|age| age.as_secs_f64()).into());
    fields.insert("ours".into(), side(&facts.ours));
    fields.insert("account".into(), word.into());
    fields.insert("theirs".into(), theirs.map_or(Value::Null, side));
    reply
}

fn side(side: &Side) -> Value {
    json!({
        "direct": side.has(Side::DIRECT),
        "connected": side.has(Side::ATTACHED),
        "by_tcp": side.has(Side::BY_TCP),
        "udp_answered": side.has(Side::UDP_ANSWERED),
        "ipv4": side.has(Side::ROUTE4),
        "ipv6": side.has(Side::ROUTE6),
        "device": side.has(Side::DEVICE),
        "nat": side.mapping.name(),
        "observed": side.observed.map(|addr| addr.to_string()),
        "announces": side.own.iter().map(|one| json!({"kind": kind(Some(one.kind)), "address": one.addr.to_string()}))
            .collect::<Vec<_>>(),
        "tries": side.tries.iter().map(attempt).collect::<Vec<_>>(),
    })
}

fn attempt(one: &Try) -> Value {
    let error = (one.errno != 0).then(|| std::io::Error::from_raw_os_error(i32::from(one.errno)).to_string());
    json!({
        "address": one.addr.to_string(),
        "kind": kind(one.kind),
        "sent": one.sent,
        "answered": one.answered,
        "arrived": one.arrived,
        "error": error,
    })
}

fn kind(kind: Option<CandidateKind>) -> &'static str {
    match kind {
        Some(CandidateKind::Host) => "host",
        Some(CandidateKind::Observed) => "observed",
        Some(CandidateKind::Mapped) => "mapped",
        Some(CandidateKind::Predicted) => "predicted",
        None => "seen",
    }
}
