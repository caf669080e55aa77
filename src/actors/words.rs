//! `ping`, `why` and `path` at a client: what the control socket is asked about one peer.
//!
//! Questions to peers go through the peer table and come back here by number, so that neither a restart of the peer
//! table nor an answer that never comes holds up more than the one who asked.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smol::Timer;
use smol::channel::{Receiver, Sender};
use xtra::Address;

use super::client::ClientShared;
use super::ext::cast;
use super::peer_table::PeerTable;
use super::why::Surroundings;
use crate::ids::Route;
use crate::messages::peer_table::AskPeer;
use crate::proto::asking::{Answer, Question};
use crate::proto::peers::{PeerDescription, PeerState};

/// The longest that one ping may wait for its answer.
const PING_MAX: Duration = Duration::from_secs(4);
/// The longest that somebody may wait for a path to change.
const WATCH_MAX: Duration = Duration::from_secs(4);
/// How often the path is looked at while somebody waits for it to change.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// What the peer table is late by at the most when it says that time is over.
const GRACE: Duration = Duration::from_millis(500);
/// Names of removed members that are remembered.
const REMOVED_MAX: usize = 64;

/// Who waits for answers, and what has to be known to explain.
#[derive(Default)]
pub struct Words {
    waiting: Mutex<BTreeMap<u64, Sender<Answer>>>,
    /// Members that the network has removed since the start.
    removed: Mutex<VecDeque<String>>,
    /// How the machine is connected, and when that was found out.
    surroundings: Mutex<Option<(Instant, Surroundings)>>,
}

impl Words {
    /// Gives an answer to whoever waits for it.
    pub fn answer(&self, id: u64, answer: Answer) {
        if let Some(tell) = lock(&self.waiting).remove(&id) {
            // Nobody waits any more if this fails.
            let _ = tell.try_send(answer);
        }
    }

    /// A member was removed.
    pub fn removed(&self, name: &str) {
        let mut removed = lock(&self.removed);
        if !removed.iter().any(|known| known == name) {
            if removed.len() == REMOVED_MAX {
                removed.pop_front();
            }
            removed.push_back(name.to_owned());
        }
    }

    pub(super) fn surroundings(&self) -> Option<(Instant, Surroundings)> {
        *lock(&self.surroundings)
    }

    pub(super) fn set_surroundings(&self, found: Surroundings) {
        *lock(&self.surroundings) = Some((Instant::now(), found));
    }

    fn was_removed(&self, name: &str) -> bool {
        lock(&self.removed).iter().any(|known| known == name)
    }

    fn register(&self) -> (u64, Receiver<Answer>) {
        let (tell, told) = smol::channel::bounded(1);
        let mut waiting = lock(&self.waiting);
        // Whoever gave up has closed its end.
        waiting.retain(|_, tell| !tell.is_closed());
        let id = rand::random();
        waiting.insert(id, tell);
        (id, told)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a question was not put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoPeer {
    Unknown { name: String, known: Vec<String> },
    Removed { name: String },
    Oneself,
}

impl std::fmt::Display for NoPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown { name, known } if known.is_empty() => {
                write!(f, "no member is called {name:?}, and this client knows no other member yet")
            }
            Self::Unknown { name, known } => {
                write!(f, "no member is called {name:?}; this client knows {}", known.join(", "))
            }
            Self::Removed { name } => {
                write!(f, "{name} was removed from the network (`eps-actor kick`) and is no member any more")
            }
            Self::Oneself => f.write_str("that is this machine itself"),
        }
    }
}

/// The peer that somebody means: by name, by address in the network, or by id.
pub fn find(shared: &ClientShared, who: &str) -> Result<PeerDescription, NoPeer> {
    let peers = shared.peers.load();
    let is = |peer: &&PeerDescription| {
        let certificate = &peer.certificate;
        peer.name.eq_ignore_ascii_case(who)
            || certificate.ip4.to_string() == who
            || certificate.ip6.is_some_and(|ip6| who.parse() == Ok(ip6))
            || peer.key.node_id().to_string() == who
    };
    if let Some(peer) = peers.iter().find(is) {
        return Ok(peer.clone());
    }
    if shared.words.was_removed(who) {
        return Err(NoPeer::Removed { name: who.to_owned() });
    }
    let own = shared.lease.load();
    let is_own = own.as_ref().is_some_and(|own| own.ip4.to_string() == who);
    if is_own || shared.name.load().eq_ignore_ascii_case(who) {
        return Err(NoPeer::Oneself);
    }
    let mut known: Vec<String> = peers.iter().map(|peer| peer.name.clone()).collect();
    known.sort();
    Err(NoPeer::Unknown { name: who.to_owned(), known })
}

/// Puts one question to a peer and waits for what becomes of it.
pub async fn ask(
    shared: &ClientShared,
    table: &Address<PeerTable>,
    peer: &PeerDescription,
    question: Question,
    patience: Duration,
) -> Answer {
    let (id, told) = shared.words.register();
    let end = Instant::now() + patience;
    cast(table, AskPeer { peer: peer.idx, question, id, end });
    let late = async {
        Timer::after(patience + GRACE).await;
        // The peer table was restarted in between.
        Answer::Silence
    };
    futures_lite::future::or(async { told.recv().await.unwrap_or(Answer::Silence) }, late).await
}

/// One ping: `{"command": "ping", "peer": …, "timeout_ms": …}`.
pub async fn ping(request: &Value, shared: &ClientShared, table: &Address<PeerTable>) -> Result<Value, String> {
    let who = request["peer"].as_str().ok_or("ping: which peer?")?;
    let peer = find(shared, who).map_err(|error| error.to_string())?;
    let patience = millis(&request["timeout_ms"]).unwrap_or(Duration::from_secs(1)).min(PING_MAX);
    let answer = ask(shared, table, &peer, Question::Ping, patience).await;
    // As it is now, not as it was when it was asked.
    let peer = find(shared, who).unwrap_or(peer);
    let mut reply = json!({
        "peer": peer.name,
        "address": peer.certificate.ip4.to_string(),
        "state": peer.state.word(),
        "route": peer.way().map(|route| way(&route)),
    });
    let fields = reply.as_object_mut().expect("it is one");
    match answer {
        Answer::Pong { via, round_trip, observed } => {
            fields.insert("answer".into(), "pong".into());
            fields.insert("rtt_ms".into(), (round_trip.as_secs_f64() * 1e3).into());
            fields.insert("via".into(), way(&via));
            // By the relay the peer sees only the server.
            let observed: Option<SocketAddr> = via.is_direct().then_some(observed);
            fields.insert("seen_as".into(), observed.map(|addr| addr.to_string()).into());
        }
        other => {
            let (word, text) = unanswered(&other, &peer);
            fields.insert("answer".into(), word.into());
            fields.insert("reason".into(), text.into());
        }
    }
    Ok(reply)
}

/// Why there is no answer: a word for programs and a sentence for people.
fn unanswered(answer: &Answer, peer: &PeerDescription) -> (&'static str, String) {
    let name = &peer.name;
    match answer {
        Answer::NotUnderstood => ("not-understood", format!("{name} runs a version that does not answer pings")),
        Answer::NotAMember => {
            ("not-a-member", format!("{name} was removed from the network, or its certificate ran out"))
        }
        Answer::TooMany => ("too-many", "too many questions wait already".into()),
        Answer::NoSession | Answer::Silence | Answer::Pong { .. } | Answer::Why(_) if !peer.online => {
            ("offline", format!("{name} is not connected to the server: it is off, or has no network"))
        }
        _ if peer.state == PeerState::Lost => {
            ("silence", format!("{name} answers by no way any more; `eps-actor why {name}` says more"))
        }
        Answer::NoSession => ("no-session", format!("no session with {name} could be made in time")),
        Answer::Silence | Answer::Pong { .. } | Answer::Why(_) => ("silence", format!("{name} did not answer in time")),
    }
}

/// Waits until the path to a peer is another one: `{"command": "path", "peer": …, "known": …, "timeout_ms": …}`.
pub async fn path(request: &Value, shared: &ClientShared) -> Result<Value, String> {
    let who = request["peer"].as_str().ok_or("path: to which peer?")?;
    let patience = millis(&request["timeout_ms"]).unwrap_or_default().min(WATCH_MAX);
    let end = Instant::now() + patience;
    loop {
        let peer = find(shared, who).map_err(|error| error.to_string())?;
        let route = peer.way().map(|route| way(&route));
        let changed = route.as_ref().is_some_and(|route| *route != request["known"]);
        if changed || Instant::now() >= end {
            return Ok(json!({ "peer": peer.name, "changed": changed, "route": route, "state": peer.state.word() }));
        }
        Timer::after(LOOK_EVERY).await;
    }
}

/// A route for people and programs.
pub fn way(route: &Route) -> Value {
    json!({
        "kind": if route.is_direct() { "direct" } else { "relay" },
        "address": route.endpoint.to_string(),
    })
}

fn millis(value: &Value) -> Option<Duration> {
    value.as_u64().map(Duration::from_millis)
}
