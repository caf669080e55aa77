//! The client's peers: who is one, sessions and paths to each, and what they say to each other without the server.
//!
//! Frames do not pass here. The core keeps, for every member of the map, a [`Link`] (sessions) and [`Paths`] (ways),
//! sets them up when the first frame wants one, and says when the published view has changed. A peer is whoever shows
//! a certificate that the network signed; the map is only a hint of whom to dial.

mod idle;
mod roaming;
mod traversal;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::asking::{Answer as Told, AnswerBudget, Asking};
use super::backoff::Backoff;
use super::cookie::{Admit, Gate};
use super::crypto::Trust;
use super::estimate::PathMeter;
use super::guard::{PeerCredentials, Rights};
use super::link::{Incoming, Link, Node};
use super::map::{MapEvent, MemberMap};
use super::mtu::{self, PathMtus};
use super::multipath::{Mode, Plan};
use super::path::{PathEvent, Paths, Probe, State};
use super::session::{Epoch, Meter, Owner, Session};
use super::tried::Tried;
use crate::counters::DropReason;
use crate::ids::{Endpoint, PeerIdx, PublicKey, Route, SessionIndex, UplinkId};
use crate::wire::cert::{CERT_LEN, Certificate};
use crate::wire::control::{CANDIDATES_MAX, Candidate, CandidateKind, Control, MapEntry};
use crate::wire::handshake::{CookieReply, HandshakeView, Hint, HintReason};
use crate::wire::header::{Kind, OVERHEAD, SealedHeader};
use crate::wire::nat::{NatKind, NatMessage};
use traversal::{PeerWay, Traversal};

mod words;

/// Waits between questions to the server about one peer.
const LOOKUP_RETRY: &[Duration] = &[
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(15),
    Duration::from_secs(30),
];
/// Frames passed within this time: the path counts as busy.
const BUSY: Duration = Duration::from_secs(3);
/// Initiations of one peer answered in a second.
const INITIATIONS_PER_SECOND: u32 = 10;
/// Handshakes a second above which cookies are asked for.
const LOAD_LIMIT: u32 = 100;
/// The map is written down at most this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);
/// Addresses that a peer was seen at are taken up as candidates so many at once, then one in [`SIGHTING_EVERY`]: where
/// both NATs use a port per destination, each probe is seen from a new one and would make the next.
const SIGHTINGS_MAX: u32 = 4;
const SIGHTING_EVERY: Duration = Duration::from_secs(60);
/// Ways one answer goes back at the most.
const ANSWER_ROUTES_MAX: usize = 4;
/// Direct addresses an initiation goes to besides the relay.
const DIAL_MAX: usize = 6;

/// What the peers core wants done.
#[derive(Debug)]
pub enum Output {
    Send {
        route: Route,
        datagram: Vec<u8>,
    },
    /// As `Send`, but IP must not cut it on the way.
    SendUnfragmented {
        route: Route,
        datagram: Vec<u8>,
    },
    /// For the server, if it is there.
    ToServer(Control),
    /// The set of peers, their sessions or routes changed; publish again.
    Changed,
    /// A session came up or its route moved: what is staged for the peer can go.
    Ready(PeerIdx),
    /// Nobody answers: what is staged is lost.
    Unreachable(PeerIdx),
    /// The map has this version.
    MapAt(u64),
    /// Write down what [`Peers::save`] gives.
    Save,
    /// Open a socket for each datagram, send it from there, and listen: who answers through one of them has found a
    /// hole in our NAT.
    OpenSockets {
        peer: PeerIdx,
        to: SocketAddr,
        datagrams: Vec<Vec<u8>>,
    },
    /// A question of [`Peers::ask`] has ended so.
    Answered {
        id: u64,
        answer: Told,
    },
    /// A peer wants our account of the pair: [`Peers::tell_account`] gives it.
    Asked {
        peer: PeerIdx,
        nonce: u64,
    },
    /// Count this.
    Dropped(DropReason),
    Event(Event),
}

/// What an operator would be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Session {
        peer: String,
        route: Route,
    },
    PathChanged {
        peer: String,
        to: Option<Route>,
    },
    PathLost {
        peer: String,
        route: Route,
    },
    /// It answers by no way any more.
    Lost {
        peer: String,
    },
    Left {
        peer: String,
    },
    Unreachable {
        peer: String,
    },
    Revoked {
        peer: String,
    },
    /// Our own membership ended, by the network's signature.
    OwnRevoked,
}

/// How a peer is reached, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    Direct,
    Relay,
    /// A session is being made.
    Searching,
    /// There is a session, and the peer answers by no way, not even by the relay.
    Lost,
    /// Nobody has wanted to send; set up at the first frame.
    Idle,
    /// Not connected to the server, as far as the server says.
    Offline,
}

impl PeerState {
    /// Stable, for programs and people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Searching => "searching",
            Self::Lost => "lost",
            Self::Idle => "idle",
            Self::Offline => "offline",
        }
    }
}

/// A peer as others may see it.
#[derive(Debug, Clone)]
pub struct PeerDescription {
    pub idx: PeerIdx,
    pub key: PublicKey,
    pub name: String,
    pub certificate: Certificate,
    pub online: bool,
    pub state: PeerState,
    pub route: Option<Route>,
    pub srtt: Option<Duration>,
    /// How much round trips vary on the route.
    pub jitter: Option<Duration>,
    /// The share of our datagrams that the route loses, 0 to 1.
    pub loss: Option<f64>,
    pub proven: Option<Instant>,
    /// What the route carries, once that is known.
    pub mtu: Option<mtu::Known>,
    pub session: Option<Arc<Session>>,
    pub meter: Arc<Meter>,
    /// The NAT in front of it, as it says.
    pub nat: NatKind,
    pub mode: Mode,
    /// Where several paths are used.
    pub plan: Option<Plan>,
    /// Every way there is or might be.
    pub paths: Vec<PathDescription>,
}

impl PeerDescription {
    /// The way that leads to the peer. The `route` of one that is lost is where frames go all the same.
    pub fn way(&self) -> Option<Route> {
        self.route.filter(|_| self.state != PeerState::Lost)
    }
}

/// A way to a peer as others may see it.
#[derive(Debug, Clone)]
pub struct PathDescription {
    pub route: Route,
    pub state: State,
    /// Frames go by it at this moment, all or some.
    pub carries: bool,
    pub srtt: Option<Duration>,
    pub jitter: Option<Duration>,
    pub loss: Option<f64>,
    pub proven: Option<Instant>,
    /// The largest packet that passed, where that was asked for.
    pub mtu: Option<mtu::Known>,
    pub meter: Arc<PathMeter>,
}

/// A socket of ours that paths are to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalUplink {
    pub id: UplinkId,
    pub is_ipv4: bool,
}

/// An answer, and every way it went: copies of one initiation come by several, and perhaps only one leads back.
struct Answer {
    freshness: (u64, u32),
    datagram: Vec<u8>,
    routes: Vec<Route>,
}

struct Peer {
    idx: PeerIdx,
    key: PublicKey,
    link: Link,
    paths: Paths,
    /// As last published.
    plan: Option<Plan>,
    channel: Option<crate::ids::ChannelToken>,
    lookup: Option<(Instant, Backoff)>,
    candidates: Vec<Candidate>,
    /// Our answer to the newest initiation, until a session comes of it.
    answer: Option<Answer>,
    answered: (Instant, u32),
    probing: bool,
    /// No path has answered since then. Ended by what comes from the peer, not by a new channel at the server.
    lost: Option<Instant>,
    /// The path in use as it was last told to people.
    told: Option<Route>,
    said_candidates: u32,
    /// Sightings that may be taken up, and since when that is counted.
    sightings: (u32, Instant),
    way: PeerWay,
    /// For people who ask.
    tried: Tried,
    answers: AnswerBudget,
    /// When its question last made us try its addresses again.
    tried_again: Option<Instant>,
    /// The moves it told us of.
    moved: roaming::Told,
    idle: idle::Idle,
}

impl Peer {
    /// Whether one more address that was only seen becomes a candidate.
    fn may_take_up(&mut self, now: Instant) -> bool {
        let (left, since) = &mut self.sightings;
        let earned = now.saturating_duration_since(*since).as_secs() / SIGHTING_EVERY.as_secs();
        if earned > 0 {
            (*left, *since) = (SIGHTINGS_MAX.min(left.saturating_add(earned as u32)), now);
        }
        let may = *left > 0;
        *left = left.saturating_sub(1);
        may
    }
}

/// The core.
pub struct Peers {
    node: Node,
    trust: Trust,
    map: MemberMap,
    epoch: Epoch,
    gate: Gate,
    peers: BTreeMap<PeerIdx, Peer>,
    idx_of: BTreeMap<PublicKey, PeerIdx>,
    index_of: BTreeMap<SessionIndex, PeerIdx>,
    next_idx: u32,
    /// Where the relay is; `None` while the server is away.
    server: Option<Endpoint>,
    /// The network's own prefixes: addresses in them are never paths.
    overlay: Vec<IpNet>,
    candidates: (u32, Vec<Candidate>),
    /// Sockets for direct paths; empty for the one of the address's family.
    uplinks: Vec<LocalUplink>,
    /// How several paths are used, by everybody and by those for whom it was said.
    mode: Mode,
    modes: BTreeMap<PublicKey, Mode>,
    direct: bool,
    own_move: roaming::Move,
    asking: Asking,
    save_at: Option<Instant>,
    mark_at: Instant,
    timers: BTreeSet<(Instant, PeerIdx)>,
    timer_of: BTreeMap<PeerIdx, Instant>,
    mtus: PathMtus,
    traversal: Traversal,
    rng: StdRng,
    outputs: VecDeque<Output>,
}

impl Peers {
    /// Peers of a network, from the stored map. With `direct` off every frame takes the relay.
    pub fn new(
        node: Node,
        trust: Trust,
        map: MemberMap,
        direct: bool,
        epoch: Epoch,
        now: Instant,
        seed: [u8; 32],
    ) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let gate = Gate::new(node.mac1_key(), LOAD_LIMIT, now, &mut rng);
        let mut peers = Self {
            node,
            trust,
            map,
            epoch,
            gate,
            peers: BTreeMap::new(),
            idx_of: BTreeMap::new(),
            index_of: BTreeMap::new(),
            next_idx: 0,
            server: None,
            overlay: Vec::new(),
            candidates: (0, Vec::new()),
            uplinks: Vec::new(),
            mode: Mode::default(),
            modes: BTreeMap::new(),
            direct,
            own_move: roaming::Move::default(),
            asking: Asking::default(),
            save_at: None,
            mark_at: now,
            timers: BTreeSet::new(),
            timer_of: BTreeMap::new(),
            traversal: Traversal::new(now),
            mtus: PathMtus::default(),
            rng,
            outputs: VecDeque::new(),
        };
        let keys: Vec<_> = peers.map.iter().map(|(key, _)| *key).collect();
        for key in keys {
            peers.peer_of(key, now);
        }
        peers
    }

    /// Takes up sessions that outlived the core that made them (the actor was restarted), with the numbers the data
    /// path knows the peers by. Must come before anything else.
    pub fn resume(
        &mut self,
        known: impl Iterator<Item = (PublicKey, PeerIdx, Arc<Meter>, Option<Route>)>,
        sessions: impl Iterator<Item = Arc<Session>>,
        now: Instant,
    ) {
        self.peers.clear();
        self.idx_of.clear();
        for (key, idx, meter, route) in known {
            self.next_idx = self.next_idx.max(idx.0 + 1);
            let mut peer = self.make_peer(key, idx, meter, now);
            if let Some(route) = route {
                peer.paths.prove(route, now);
                peer.channel = route.relay;
                peer.probing = true;
                peer.lookup = Some((now, Backoff::new(LOOKUP_RETRY)));
            }
            self.idx_of.insert(key, idx);
            self.peers.insert(idx, peer);
        }
        for session in sessions {
            let Owner::Peer(idx) = session.owner else { continue };
            let Some(peer) = self.peers.get_mut(&idx) else { continue };
            self.index_of.insert(session.local_index, idx);
            peer.link.resume(session);
        }
        let keys: Vec<_> = self.map.iter().map(|(key, _)| *key).collect();
        for key in keys {
            self.peer_of(key, now);
        }
        let idxs: Vec<_> = self.peers.keys().copied().collect();
        idxs.into_iter().for_each(|idx| self.reschedule(idx));
    }

    /// The next thing to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let first = self.timers.first().map(|(at, _)| *at);
        let (own, asking) = (self.own_move.poll_timeout(), self.asking.poll_timeout());
        [first, self.save_at, Some(self.mark_at), own, asking].into_iter().flatten().min()
    }

    /// The version of the map.
    pub fn map_version(&self) -> u64 {
        self.map.version()
    }

    /// The map and what proves it, to be written down.
    pub fn save(&self) -> Vec<u8> {
        self.map.save(&self.trust)
    }

    /// The highest epoch seen.
    pub fn network_epoch(&self) -> u64 {
        self.trust.epoch()
    }

    /// Our newest certificate and what it leases; the network's prefixes are never paths.
    pub fn set_certificate(&mut self, certificate: [u8; CERT_LEN]) {
        let Ok(parsed) = self.trust.check(&certificate) else { return };
        self.node.certificate = certificate;
        self.overlay = leased_networks(&parsed);
    }

    /// Our own addresses, told to peers directly.
    pub fn set_candidates(&mut self, list: Vec<Candidate>, now: Instant) {
        if self.candidates.1 == list {
            return;
        }
        let own = |list: &[Candidate]| -> Vec<Candidate> {
            list.iter().filter(|c| matches!(c.kind, CandidateKind::Host | CandidateKind::Mapped)).copied().collect()
        };
        let moved = own(&list) != own(&self.candidates.1);
        self.candidates = (self.candidates.0 + 1, list);
        let idxs: Vec<_> = self.peers.keys().copied().collect();
        for idx in idxs {
            self.say_candidates(idx);
            if let Some(peer) = self.peers.get_mut(&idx)
                && peer.link.session().is_some()
            {
                // Where only the outside is another one, a path that works goes on working.
                if moved {
                    peer.paths.begin_rounds(now);
                }
                self.reschedule(idx);
                self.begin_punch(idx, now);
            }
        }
    }

    /// How several paths are used, to peers for whom nothing else was [said](Self::set_mode).
    pub fn set_default_mode(&mut self, mode: Mode) {
        self.mode = mode;
        let idxs: Vec<_> = self.peers.keys().copied().collect();
        idxs.into_iter().for_each(|idx| self.apply_mode(idx));
    }

    /// How several paths to one peer are used.
    pub fn set_mode(&mut self, key: PublicKey, mode: Mode) {
        self.modes.insert(key, mode);
        if let Some(idx) = self.idx_of.get(&key).copied() {
            self.apply_mode(idx);
        }
    }

    fn apply_mode(&mut self, idx: PeerIdx) {
        if let Some(peer) = self.peers.get_mut(&idx) {
            peer.paths.set_mode(self.modes.get(&peer.key).copied().unwrap_or(self.mode));
            self.replan(idx);
        }
    }

    /// The sockets that direct paths are to use, all of them; none for the usual one of each family. What went by a
    /// socket that is gone goes another way at once.
    pub fn set_uplinks(&mut self, uplinks: Vec<LocalUplink>, now: Instant) {
        if self.uplinks == uplinks {
            return;
        }
        let gone: Vec<_> = self.uplinks.iter().filter(|old| !uplinks.contains(old)).map(|old| old.id).collect();
        self.uplinks = uplinks;
        let ids: Vec<_> = self.uplinks.iter().map(|uplink| uplink.id).collect();
        let idxs: Vec<_> = self.peers.keys().copied().collect();
        for idx in idxs {
            let Some(peer) = self.peers.get_mut(&idx) else { continue };
            let before = peer.paths.active();
            gone.iter().for_each(|id| peer.paths.drop_uplink(*id, now));
            peer.paths.set_uplinks(ids.clone(), now);
            let has_session = peer.link.session().is_some();
            self.paths_changed(idx, before, None, now);
            if has_session {
                self.take_candidates(idx, now);
            }
        }
    }

    /// The server came (back) or went. Channels belong to one run of the server, so peers in use are looked up anew.
    pub fn set_server(&mut self, server: Option<Endpoint>, now: Instant) {
        if server.is_none() {
            self.server = None;
            // Frames may still pass if the server only stopped answering us: the relay stays until something better.
            return;
        }
        self.server = server;
        let idxs: Vec<_> = self.peers.keys().copied().collect();
        for idx in idxs {
            let Some(peer) = self.peers.get_mut(&idx) else { continue };
            peer.channel = None;
            if peer.link.session().is_some() || peer.link.is_initiating() {
                peer.lookup = Some((now, Backoff::new(LOOKUP_RETRY)));
                self.reschedule(idx);
            } else {
                peer.paths.drop_relays(now);
            }
        }
    }

    /// A frame waits for a peer.
    pub fn want(&mut self, idx: PeerIdx, now: Instant) {
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        if peer.link.session().is_some() {
            self.outputs.push_back(Output::Ready(idx));
            return;
        }
        if !self.map.get(&peer.key).is_some_and(|member| self.trust.holds(&member.certificate)) {
            // Revoked or expired: nobody may answer in its name.
            self.outputs.push_back(Output::Unreachable(idx));
            return;
        }
        if !peer.link.is_initiating() {
            peer.link.start(now);
            peer.lookup = Some((now, Backoff::new(LOOKUP_RETRY)));
        }
        self.reschedule(idx);
    }

    /// What the server says of other members.
    pub fn handle_server(&mut self, message: Control, now: Instant) {
        match message {
            Control::PeerDelta { from, to, head, reset, changes } => {
                // After a gap, saying again what we have asks for what is missing.
                if let Ok(events) = self.map.apply((from, to, head, reset), &changes, &mut self.trust) {
                    self.map_changed(&events, now);
                }
                self.outputs.push_back(Output::MapAt(self.map.version()));
            }
            Control::PeerAnswer { entry, introduced, token, candidates } => {
                self.handle_answer(&entry, introduced, token, candidates, now);
            }
            Control::Revoke(object) => self.handle_revocation(&object, None, now),
            Control::Probe { .. }
            | Control::ProbeReply { .. }
            | Control::Candidates { .. }
            | Control::PathReport { .. }
            | Control::Cert(_)
            | Control::Goodbye { .. }
            | Control::Broken { .. }
            | Control::LeaseRequest { .. }
            | Control::LeaseGrant { .. }
            | Control::LeaseRefused { .. }
            | Control::LeaseRelease
            | Control::LeaseReleased
            | Control::PeerLookup { .. }
            | Control::MapHave { .. }
            | Control::Observed { .. }
            | Control::Nat(_)
            | Control::Moved { .. }
            | Control::RouteOffer { .. }
            | Control::RouteTable { .. }
            | Control::Stats { .. }
            | Control::Ping { .. }
            | Control::Pong { .. }
            | Control::WhyAsk { .. }
            | Control::WhySay { .. } => {}
        }
    }

    fn map_changed(&mut self, events: &[MapEvent], now: Instant) {
        for event in events {
            match event {
                MapEvent::Put(key) => {
                    if let Some(idx) = self.peer_of(*key, now)
                        && let Some(member) = self.map.get(key)
                        && !self.trust.holds(&member.certificate)
                    {
                        self.close(idx);
                    }
                }
                MapEvent::Removed(key) => {
                    if let Some(idx) = self.idx_of.get(key).copied() {
                        self.forget(idx);
                    }
                }
            }
        }
        if !events.is_empty() {
            self.outputs.push_back(Output::Changed);
            self.save_at.get_or_insert(now + SAVE_INTERVAL);
        }
    }

    fn handle_answer(
        &mut self,
        entry: &MapEntry,
        introduced: bool,
        token: crate::ids::ChannelToken,
        candidates: Vec<Candidate>,
        now: Instant,
    ) {
        let key = match self.map.put(entry, &mut self.trust) {
            Ok(MapEvent::Put(key)) => key,
            Ok(MapEvent::Removed(_)) => return,
            Err(reason) => {
                self.outputs.push_back(Output::Dropped(reason));
                return;
            }
        };
        let Some(idx) = self.peer_of(key, now) else { return };
        let server = self.server;
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        peer.lookup = None;
        if peer.channel != Some(token) {
            peer.channel = Some(token);
            peer.paths.drop_relays(now);
        }
        if let Some(route) = server.map(|server| Route::relayed(server, token))
            && peer.paths.get(&route).is_none()
        {
            peer.paths.prove(route, now);
        }
        let seen = candidates.iter().filter(|candidate| candidate.kind == CandidateKind::Observed);
        peer.way.server_saw = seen.map(|candidate| candidate.addr).collect();
        let is_new = candidates.iter().any(|candidate| !peer.candidates.contains(candidate));
        peer.candidates = candidates;
        let has_session = peer.link.session().is_some();
        self.outputs.push_back(Output::Changed);
        self.set_announced(idx);
        if has_session {
            self.take_candidates(idx, now);
            if is_new {
                self.begin_punch(idx, now);
            }
        } else if self.peers[&idx].link.is_initiating() && !introduced {
            // The first initiation could not go by the relay; now it can.
            if let Some(peer) = self.peers.get_mut(&idx) {
                peer.link.restart(now);
            }
        }
        self.reschedule(idx);
    }

    /// Makes candidates of a peer into paths, once there is a session to probe them in.
    fn take_candidates(&mut self, idx: PeerIdx, now: Instant) {
        let overlay = self.overlay.clone();
        let direct = self.direct;
        let uplinks = self.uplinks.clone();
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        if !direct {
            return;
        }
        // What the server sees of it is probed by both sides at once, see `begin_punch`.
        let own = |candidate: &&Candidate| matches!(candidate.kind, CandidateKind::Host | CandidateKind::Mapped);
        for candidate in peer.candidates.iter().filter(own).take(CANDIDATES_MAX) {
            if is_dialable(candidate.addr, &overlay) {
                for endpoint in endpoints_to(candidate.addr, &uplinks) {
                    peer.paths.add(Route::direct(endpoint), now);
                }
            }
        }
        peer.probing = true;
        self.reschedule(idx);
    }

    /// An authentic frame came by a route that is not the peer's: perhaps it moved. It is probed before it is used.
    pub fn seen_from(&mut self, idx: PeerIdx, via: Route, now: Instant) {
        let dialable = self.direct && is_dialable(via.endpoint.addr, &self.overlay);
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        let known = peer.paths.get(&via).is_some();
        let new = !known && via.is_direct() && dialable;
        if peer.link.session().is_some() && (known || new) {
            if new && !peer.may_take_up(now) {
                self.outputs.push_back(Output::Dropped(DropReason::SightingFlood));
                return;
            }
            peer.paths.add_seen(via, now);
            peer.probing = true;
            self.note_sighting(via.endpoint.addr, now);
            self.reschedule(idx);
        }
    }

    /// A datagram with its seal still on (not DATA).
    ///
    /// # Errors
    ///
    /// Why it was dropped; the caller counts it.
    pub fn handle_datagram(&mut self, via: Route, datagram: &mut [u8], now: Instant) -> Result<(), DropReason> {
        match Kind::of(datagram).ok_or(DropReason::Malformed)? {
            Kind::Ctrl => {
                let header = SealedHeader::parse(datagram)?;
                let idx = self.index_of.get(&header.receiver).ok_or(DropReason::UnknownSession)?;
                let session = self.peers[idx].link.sessions().find(|session| session.local_index == header.receiver);
                let session = session.cloned().ok_or(DropReason::UnknownSession)?;
                let plain = session.open(&header, datagram)?.to_vec();
                self.handle_control(&session, via, &plain, now)
            }
            _ => self.handle_handshake(via, datagram, now),
        }
    }

    /// A handshake datagram, a cookie or a hint.
    ///
    /// # Errors
    ///
    /// Why it was dropped; the caller counts it.
    pub fn handle_handshake(&mut self, via: Route, datagram: &[u8], now: Instant) -> Result<(), DropReason> {
        match Kind::of(datagram).ok_or(DropReason::Malformed)? {
            Kind::Init => self.handle_init(via, &HandshakeView::parse(datagram)?, now),
            Kind::Resp => self.handle_resp(via, &HandshakeView::parse(datagram)?, now),
            Kind::Cookie => {
                let reply = CookieReply::parse(datagram)?;
                let idx = *self.index_of.get(&reply.receiver).ok_or(DropReason::UnknownSession)?;
                let peer = self.peers.get_mut(&idx).ok_or(DropReason::UnknownSession)?;
                peer.link.handle_cookie(&reply, now)?;
                self.reschedule(idx);
                Ok(())
            }
            Kind::Hint => {
                let hint = Hint::parse(datagram)?;
                if self.handle_hint(hint, now) { Ok(()) } else { Err(DropReason::UnknownSession) }
            }
            Kind::Data
            | Kind::Ctrl
            | Kind::Agg
            | Kind::Frag
            | Kind::Relay
            | Kind::Enrol1
            | Kind::Enrol2
            | Kind::Enrol3 => Err(DropReason::Malformed),
        }
    }

    fn handle_init(&mut self, via: Route, view: &HandshakeView<'_>, now: Instant) -> Result<(), DropReason> {
        let from = via.is_direct().then_some(via.endpoint.addr);
        if from.is_some() && !self.direct {
            // A copy of it comes by the relay.
            return Err(DropReason::DirectOff);
        }
        match self.gate.admit(view, from, now, &mut self.rng) {
            Admit::Yes => {}
            Admit::Cookie(reply) => {
                self.send(via, reply.to_bytes().to_vec());
                return Err(DropReason::HandshakeFlood);
            }
            Admit::No(reason) => return Err(reason),
        }
        let incoming = Incoming::read(&self.node, view, &mut self.rng)?;
        let certificate = self.trust.check(&incoming.payload.certificate)?;
        if certificate.key != incoming.remote() || certificate.key == self.node.identity.public {
            return Err(DropReason::BadCertificate);
        }
        let idx = self.admit(&incoming.payload.certificate, &certificate, now)?;
        let index = self.fresh_index();
        let peer = self.peers.get_mut(&idx).ok_or(DropReason::UnknownPeer)?;
        let freshness = (incoming.payload.boot, incoming.payload.sequence);
        if let Some(answer) = peer.answer.as_mut().filter(|answer| answer.freshness == freshness) {
            if answer.routes.len() >= ANSWER_ROUTES_MAX || answer.routes.contains(&via) {
                return Err(DropReason::StaleHandshake);
            }
            answer.routes.push(via);
            let datagram = answer.datagram.clone();
            self.send(via, datagram);
            return Ok(());
        }
        if now.saturating_duration_since(peer.answered.0) >= Duration::from_secs(1) {
            peer.answered = (now, 0);
        }
        peer.answered.1 += 1;
        if peer.answered.1 > INITIATIONS_PER_SECOND {
            return Err(DropReason::HandshakeFlood);
        }
        let (datagram, session) = peer.link.respond(&mut self.node, incoming, index, now)?;
        peer.answer = Some(Answer { freshness, datagram: datagram.clone(), routes: vec![via] });
        self.index_of.insert(session.local_index, idx);
        self.send(via, datagram);
        self.outputs.push_back(Output::Changed);
        self.reschedule(idx);
        Ok(())
    }

    fn handle_resp(&mut self, via: Route, view: &HandshakeView<'_>, now: Instant) -> Result<(), DropReason> {
        let idx = *self.index_of.get(&view.header.receiver()).ok_or(DropReason::UnknownSession)?;
        let trust = &mut self.trust;
        let peer = self.peers.get_mut(&idx).ok_or(DropReason::UnknownSession)?;
        let key = peer.key;
        let mut seen = None;
        let session = peer.link.handle_response(view, now, |payload| {
            let certificate = trust.check(&payload.certificate)?;
            if certificate.key != key {
                return Err(DropReason::BadCertificate);
            }
            seen = Some((payload.certificate, certificate));
            Ok(())
        })?;
        if let Some((signed, certificate)) = seen {
            self.admit(&signed, &certificate, now)?;
        }
        // An empty message confirms the keys to the responder, so that it may send.
        if let Ok(datagram) = session.seal_control(&[]) {
            self.send(via, datagram);
        }
        self.session_up(idx, via, now);
        Ok(())
    }

    /// A believable HINT: the peer has lost our session, so a new one is made while the old is still used.
    pub fn handle_hint(&mut self, hint: Hint, now: Instant) -> bool {
        if hint.reason != HintReason::NoSession {
            return false;
        }
        let found = self
            .peers
            .values_mut()
            .find_map(|peer| peer.link.handle_hint(hint.index, hint.counter, now).then_some(peer.idx));
        if let Some(idx) = found {
            self.reschedule(idx);
        }
        found.is_some()
    }

    /// The first authentic frame on a new session, opened by the data path.
    pub fn confirmed(&mut self, session: &Arc<Session>, via: Route, now: Instant) {
        let Owner::Peer(idx) = session.owner else { return };
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        if peer.link.confirm(session.local_index, now) {
            // Our answer got there by a way it went; where the confirmation came from may be a one-way street.
            let answered = peer.answer.take().map(|answer| answer.routes).unwrap_or_default();
            // Where it went several ways, the relay's is the one that leads back for certain.
            let relayed = answered.iter().find(|route| !route.is_direct());
            let back = answered.iter().find(|route| **route == via);
            let proven = relayed.or(back).or(answered.first()).copied().unwrap_or(via);
            self.session_up(idx, proven, now);
            if proven != via {
                self.seen_from(idx, via, now);
            }
        }
    }

    /// Control messages of an authentic datagram, opened.
    ///
    /// # Errors
    ///
    /// Why it was dropped; the caller counts it.
    pub fn handle_control(
        &mut self,
        session: &Arc<Session>,
        via: Route,
        plain: &[u8],
        now: Instant,
    ) -> Result<(), DropReason> {
        let Owner::Peer(idx) = session.owner else { return Err(DropReason::UnknownPeer) };
        let messages = Control::decode_list(plain)?;
        session.meter.heard(self.epoch.ms(now));
        if let Some(peer) = self.peers.get(&idx) {
            peer.paths.heard(&via, (plain.len() + OVERHEAD) as u64, now);
        }
        session.confirm();
        self.confirmed(session, via, now);
        let valid = |peer: &Peer| peer.paths.get(&via).is_some_and(|path| path.state == State::Valid);
        if self.peers.get(&idx).is_some_and(|peer| !valid(peer)) {
            self.seen_from(idx, via, now);
        }
        self.peers.get_mut(&idx).into_iter().for_each(|peer| peer.tried.arrived(&via));
        // Who is answered by a direct way would take it for a path, whatever our configuration says.
        let answers = self.direct || !via.is_direct();
        let mut refused = Ok(());
        for message in messages {
            match message {
                Control::Probe { .. } if !answers => refused = Err(DropReason::DirectOff),
                message => self.handle_message(idx, session, via, message, now),
            }
        }
        refused
    }

    fn handle_message(&mut self, idx: PeerIdx, session: &Arc<Session>, via: Route, message: Control, now: Instant) {
        match message {
            Control::Probe { sequence, challenge, sent_us, path, .. } => {
                let Some(peer) = self.peers.get_mut(&idx) else { return };
                peer.paths.probed(&via, now);
                let reply = Control::ProbeReply { sequence, challenge, sent_us, path, observed: via.endpoint.addr };
                let mut list = reply.to_bytes();
                if let Some(path) = peer.paths.get(&via) {
                    let (datagrams, bytes) = (path.meter.rx_datagrams.load(Relaxed), path.meter.rx_bytes.load(Relaxed));
                    Control::PathReport { sequence, datagrams, bytes }.encode(&mut list);
                }
                if let Ok(datagram) = session.seal_control(&list) {
                    peer.paths.said(&via, datagram.len() as u64);
                    self.send(via, datagram);
                }
                self.reschedule(idx);
            }
            Control::ProbeReply { sequence, challenge, .. } => {
                let Some(peer) = self.peers.get_mut(&idx) else { return };
                let before = peer.paths.active();
                peer.tried.answered(&via);
                let event = peer.paths.handle_reply(&via, (sequence, challenge), now);
                self.paths_changed(idx, before, event, now);
                if self.mtus.handle_reply(idx, (sequence, challenge), now) {
                    self.outputs.push_back(Output::Changed);
                }
                self.reschedule(idx);
            }
            Control::PathReport { sequence, datagrams, bytes } => {
                if let Some(peer) = self.peers.get_mut(&idx) {
                    peer.paths.handle_report(&via, sequence, (datagrams, bytes), now);
                    self.replan(idx);
                }
            }
            Control::Candidates { list, .. } => {
                self.hear_candidates(idx, list, now);
            }
            Control::Nat(message) => self.handle_nat(idx, message, now),
            Control::Revoke(object) => self.handle_revocation(&object, Some(idx), now),
            Control::Cert(certificate) => {
                if let Ok(parsed) = self.trust.check(&certificate)
                    && self.peers.get(&idx).is_some_and(|peer| peer.key == parsed.key)
                    && self.admit(&certificate, &parsed, now).is_ok()
                {
                    self.outputs.push_back(Output::Changed);
                }
            }
            Control::Goodbye { .. } => {
                let peer = self.name(idx);
                self.close(idx);
                self.event(Event::Left { peer });
            }
            Control::Broken { .. } => session.meter.whole.hold(self.epoch.ms(now)),
            Control::Moved { number } => self.handle_moved(idx, number, via, now),
            Control::Ping { .. } | Control::Pong { .. } | Control::WhyAsk { .. } | Control::WhySay { .. } => {
                self.handle_words(idx, session, via, message, now);
            }
            // What only the server says, or hears.
            Control::LeaseRequest { .. }
            | Control::LeaseGrant { .. }
            | Control::LeaseRefused { .. }
            | Control::LeaseRelease
            | Control::LeaseReleased
            | Control::PeerLookup { .. }
            | Control::PeerAnswer { .. }
            | Control::PeerDelta { .. }
            | Control::MapHave { .. }
            | Control::Observed { .. }
            | Control::RouteOffer { .. }
            | Control::RouteTable { .. }
            | Control::Stats { .. } => {}
        }
    }

    /// Which paths to a peer its addresses still speak for.
    fn set_announced(&mut self, idx: PeerIdx) {
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        let (candidates, neighbour) = (&peer.candidates, peer.way.neighbour());
        let said = |addr| candidates.iter().any(|candidate| candidate.addr == addr) || neighbour == Some(addr);
        peer.paths.set_announced(|route| said(route.endpoint.addr));
    }

    fn hear_candidates(&mut self, idx: PeerIdx, list: Vec<Candidate>, now: Instant) {
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        // What the server observed stays; the peer knows its own interfaces best.
        let seen: Vec<_> = peer.way.server_saw.iter().copied().take(2).collect();
        let list = list.into_iter().filter(|said| !seen.contains(&said.addr));
        let seen = seen.iter().map(|addr| Candidate { kind: CandidateKind::Observed, addr: *addr });
        let candidates: Vec<_> = list.chain(seen).take(CANDIDATES_MAX).collect();
        let is_new = candidates.iter().any(|candidate| !peer.candidates.contains(candidate));
        peer.candidates = candidates;
        self.set_announced(idx);
        if is_new {
            self.take_candidates(idx, now);
            self.begin_punch(idx, now);
        }
    }

    /// Takes up a revocation and passes it on: to everybody but whom it came from.
    fn handle_revocation(&mut self, object: &[u8], from: Option<PeerIdx>, now: Instant) {
        if self.trust.learn(object) != Ok(true) {
            return;
        }
        self.save_at.get_or_insert(now + SAVE_INTERVAL);
        let own = Certificate::parse(&self.node.certificate);
        if own.is_ok_and(|own| own.key == self.node.identity.public && self.trust.is_revoked(own.serial)) {
            self.event(Event::OwnRevoked);
        }
        let message = Control::Revoke(object.to_vec());
        let idxs: Vec<_> = self.peers.keys().copied().collect();
        for idx in idxs {
            let peer = &self.peers[&idx];
            let holds = self.map.get(&peer.key).is_some_and(|member| self.trust.holds(&member.certificate));
            if !holds {
                let peer = self.name(idx);
                self.close(idx);
                self.event(Event::Revoked { peer });
            } else if Some(idx) != from {
                self.say(idx, &message);
            }
        }
        self.outputs.push_back(Output::Changed);
    }

    /// A member that showed a signed certificate, whether the map knew it or not.
    fn admit(
        &mut self,
        signed: &[u8; CERT_LEN],
        certificate: &Certificate,
        now: Instant,
    ) -> Result<PeerIdx, DropReason> {
        let key = certificate.key;
        let known = self.map.get(&key);
        if known.is_none_or(|member| member.certificate.issued <= certificate.issued && member.signed != *signed) {
            let name = known.map_or_else(|| key.node_id().to_string(), |member| member.name.clone());
            let online = known.is_none_or(|member| member.online);
            self.map.put(&MapEntry { name, certificate: *signed, online }, &mut self.trust)?;
            self.save_at.get_or_insert(now + SAVE_INTERVAL);
        }
        self.peer_of(key, now).ok_or(DropReason::UnknownPeer)
    }

    fn session_up(&mut self, idx: PeerIdx, via: Route, now: Instant) {
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        peer.answer = None;
        peer.lost = None;
        let is_first = !peer.probing;
        peer.way.connected();
        let before = peer.paths.active();
        // The channel it came by is newer than the one we know, if that is another: the server may have restarted.
        if Some(via.endpoint) == self.server && via.relay.is_some() && via.relay != peer.channel {
            peer.channel = via.relay;
            peer.paths.drop_relays(now);
        }
        // Who was called directly has no channel yet, and needs one when the direct path goes dark.
        let wanted = peer.lookup.take().unwrap_or_else(|| (now, Backoff::new(LOOKUP_RETRY)));
        peer.lookup = peer.channel.is_none().then_some(wanted);
        if is_first {
            // Nobody asked by them since the last session ended, and routers may have forgotten them: frames go by others,
            // too, until a reply comes.
            peer.paths.doubt(now);
        }
        let event = peer.paths.prove(via, now);
        if let Some(route) = self.server.zip(peer.channel).map(|(server, token)| Route::relayed(server, token))
            && peer.paths.get(&route).is_none()
        {
            peer.paths.prove(route, now);
        }
        peer.probing = true;
        self.paths_changed(idx, before, event, now);
        let (peer, route) = (self.name(idx), via);
        self.event(Event::Session { peer, route });
        self.take_candidates(idx, now);
        if is_first {
            self.begin_punch(idx, now);
        }
        self.peers.get_mut(&idx).into_iter().for_each(|peer| peer.said_candidates = u32::MAX);
        self.say_candidates(idx);
        let objects: Vec<Vec<u8>> = self.trust.revocations().map(<[u8]>::to_vec).collect();
        objects.into_iter().for_each(|object| self.say(idx, &Control::Revoke(object)));
        self.outputs.push_back(Output::Changed);
        self.outputs.push_back(Output::Ready(idx));
        self.send_questions(idx, now);
        self.reschedule(idx);
    }

    fn paths_changed(&mut self, idx: PeerIdx, before: Option<Route>, event: Option<PathEvent>, now: Instant) {
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        let after = peer.paths.active();
        let key = peer.key;
        self.mtus.follow(idx, peer.paths.carrying(), now);
        if let Some(PathEvent::Validated(route)) = event
            && route.is_direct()
        {
            peer.sightings = (SIGHTINGS_MAX, now);
            self.map.reached(&key, route.endpoint.addr);
            self.save_at.get_or_insert(now + SAVE_INTERVAL);
            self.note_proof(idx, route);
        }
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        if let Some(PathEvent::Suspected(route)) = event {
            if route.is_direct() {
                peer.tried.forget();
                self.path_was_lost(idx, route, now);
            } else if peer.lookup.is_none() {
                // Perhaps the channel is gone at the server; asking gives the one that holds.
                peer.lookup = Some((now, Backoff::new(LOOKUP_RETRY)));
            }
        }
        if let Some(PathEvent::Lost(route)) = event {
            let peer = self.name(idx);
            self.event(Event::PathLost { peer, route });
            self.begin_punch(idx, now);
        }
        if event.is_some() {
            // The data path knows paths by whether they are proven.
            self.outputs.push_back(Output::Changed);
        }
        self.replan(idx);
        if before != after {
            self.outputs.push_back(Output::Changed);
            self.outputs.push_back(Output::Ready(idx));
        }
        self.note_loss(idx, now);
        self.tell_path(idx);
        self.reschedule(idx);
    }

    /// Tells the path in use, where it is another one than was told last. What frames go by for want of a better one is not
    /// worth a word.
    fn tell_path(&mut self, idx: PeerIdx) {
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        let active = peer.paths.active();
        let state = active.and_then(|route| peer.paths.get(&route)).map(|path| path.state);
        let works = active.is_none() || state == Some(State::Valid);
        if works && peer.lost.is_none() && peer.told != active {
            peer.told = active;
            let peer = self.name(idx);
            self.event(Event::PathChanged { peer, to: active });
        }
    }

    /// Notes that a peer answers by no way any more, or that it does again. That the server has a channel to it is no
    /// answer of its own: only what comes from it is.
    fn note_loss(&mut self, idx: PeerIdx, now: Instant) {
        let epoch = self.epoch;
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        let lost = peer.link.session().is_some() && peer.paths.is_lost();
        let heard = peer.link.meter().heard_ms().map(|ms| epoch.at(ms));
        match peer.lost {
            None if lost => {
                (peer.lost, peer.told) = (Some(now), None);
                let peer = self.name(idx);
                self.event(Event::Lost { peer });
            }
            Some(since) if peer.link.session().is_none() || (!lost && heard.is_some_and(|heard| heard >= since)) => {
                peer.lost = None;
                self.tell_path(idx);
            }
            None | Some(_) => return,
        }
        self.outputs.push_back(Output::Changed);
    }

    /// Publishes how several paths to a peer are used, if that has changed.
    fn replan(&mut self, idx: PeerIdx) {
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        let plan = peer.paths.plan();
        if plan.is_some() || peer.paths.has_several() {
            peer.link.sessions().for_each(|session| session.widen());
        }
        if plan != peer.plan {
            peer.plan = plan;
            self.outputs.push_back(Output::Changed);
        }
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        // Each peer once: what is due again at once waits for the next call.
        let due: Vec<_> = self.timers.iter().take_while(|(at, _)| *at <= now).map(|(_, idx)| *idx).collect();
        for idx in due {
            self.run_peer(idx, now);
            self.reschedule(idx);
        }
        self.run_move(now);
        self.run_questions(now);
        if now >= self.mark_at {
            self.mark_at = now + Duration::from_secs(1);
            self.mark(now);
            self.sweep_indices();
        }
        if self.save_at.is_some_and(|at| now >= at) {
            self.save_at = None;
            self.outputs.push_back(Output::Save);
        }
    }

    /// Once a second: where the counters stand, and whose paths carry frames again.
    fn mark(&mut self, now: Instant) {
        let idxs: Vec<_> = self.peers.keys().copied().collect();
        for idx in idxs {
            let epoch = self.epoch;
            let Some(peer) = self.peers.get_mut(&idx) else { continue };
            peer.link.mark(now);
            self.note_loss(idx, now);
            let Some(peer) = self.peers.get_mut(&idx) else { continue };
            let used = peer.link.meter().used_ms().map(|ms| epoch.at(ms));
            if peer.probing && used.is_some_and(|used| now.saturating_duration_since(used) < BUSY) {
                peer.paths.wake(now);
                self.mtus.wake(idx, now);
                self.reschedule(idx);
            }
            self.keep_idle(idx, now);
        }
    }

    fn run_peer(&mut self, idx: PeerIdx, now: Instant) {
        let index = self.fresh_index();
        let epoch = self.epoch;
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        let used = peer.link.meter().used_ms().map(|ms| epoch.at(ms));
        let due = peer.link.handle_timeout(now, used);
        if due.changed {
            self.outputs.push_back(Output::Changed);
        }
        if due.gave_up && peer.link.session().is_none() {
            peer.lookup = None;
            let peer = self.name(idx);
            self.event(Event::Unreachable { peer });
            self.end_questions(idx, &Told::NoSession);
            self.outputs.push_back(Output::Unreachable(idx));
            return;
        }
        if due.initiate {
            self.dial(idx, index, now);
        }
        self.run_lookup(idx, now);
        self.run_punch(idx, now);
        self.run_probes(idx, used, now);
    }

    /// Sends an initiation by every way that might lead to the peer: the relay, where it was last, what it says.
    fn dial(&mut self, idx: PeerIdx, index: SessionIndex, now: Instant) {
        let list = if self.direct { self.dial_list(idx) } else { Vec::new() };
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        let Ok(datagram) = peer.link.initiate(&mut self.node, index, now, &mut self.rng) else {
            peer.link.close();
            return;
        };
        let mut routes = Vec::new();
        routes.extend(peer.paths.active());
        if let (Some(server), Some(token)) = (self.server, peer.channel) {
            routes.push(Route::relayed(server, token));
        }
        let mut sent = BTreeSet::new();
        for route in routes {
            if sent.insert(route) {
                self.send(route, datagram.clone());
            }
        }
        let ways: Vec<_> =
            list.into_iter().flat_map(|addr| endpoints_to(addr, &self.uplinks)).map(Route::direct).collect();
        for route in ways {
            if sent.insert(route) {
                self.send_unproven(route, datagram.clone(), now);
            }
        }
        if let Some(peer) = self.peers.get_mut(&idx) {
            sent.iter().for_each(|route| peer.tried.sent(route));
        }
        self.index_of.insert(index, idx);
    }

    fn run_lookup(&mut self, idx: PeerIdx, now: Instant) {
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        let Some((at, mut backoff)) = peer.lookup.take() else { return };
        if now < at {
            peer.lookup = Some((at, backoff));
            return;
        }
        if peer.link.session().is_none() && !peer.link.is_initiating() {
            return;
        }
        let wait = backoff.next(&mut self.rng);
        peer.lookup = Some((now + wait, backoff));
        self.outputs.push_back(Output::ToServer(Control::PeerLookup { key: peer.key }));
        if peer.link.session().is_none() {
            self.ask_go_betweens(idx);
        }
    }

    fn run_probes(&mut self, idx: PeerIdx, used: Option<Instant>, now: Instant) {
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        let Some(session) = peer.link.session().cloned() else {
            peer.probing = false;
            return;
        };
        let quiet = used.map(|used| now.saturating_duration_since(used));
        if !peer.probing {
            return;
        }
        let busy = quiet.is_some_and(|quiet| quiet < BUSY);
        let before = peer.paths.active();
        let (probes, events) = peer.paths.handle_timeout(now, busy, &mut self.rng);
        for Probe { route, sequence, challenge, path } in probes {
            let probe = Control::Probe { sequence, challenge, sent_us: 0, path, padding: 0 };
            if let Ok(datagram) = session.seal_control(&probe.to_bytes()) {
                self.send_probe(idx, route, datagram, now);
                self.peers.get_mut(&idx).into_iter().for_each(|peer| peer.tried.sent(&route));
            }
        }
        let after = self.peers.get(&idx).and_then(|peer| peer.paths.active());
        for event in events {
            self.paths_changed(idx, after, Some(event), now);
        }
        self.paths_changed(idx, before, None, now);
        self.run_sizes(idx, &session, busy, now);
    }

    /// Asks which sizes of packets pass.
    fn run_sizes(&mut self, idx: PeerIdx, session: &Session, busy: bool, now: Instant) {
        let Some(peer) = self.peers.get(&idx) else { return };
        self.mtus.follow(idx, peer.paths.carrying(), now);
        let rtt = |route: &Route| peer.paths.get(route).and_then(|path| path.srtt());
        let (trials, changed) = self.mtus.handle_timeout(idx, busy, rtt, now, &mut self.rng);
        for trial in trials {
            let mtu::Trial { route, sequence, challenge, .. } = trial;
            let probe = Control::Probe { sequence, challenge, sent_us: 0, path: u8::MAX, padding: trial.padding() };
            if let Ok(datagram) = session.seal_unpadded(&probe.to_bytes()) {
                self.outputs.push_back(Output::SendUnfragmented { route, datagram });
            }
        }
        if changed {
            self.outputs.push_back(Output::Changed);
        }
    }

    /// Peers as they are, for views and status.
    pub fn describe(&self) -> Vec<PeerDescription> {
        self.peers
            .values()
            .filter_map(|peer| {
                let member = self.map.get(&peer.key)?;
                let session = peer.link.session().cloned();
                let route = session.as_ref().and(peer.paths.active());
                let lost = session.is_some() && (peer.lost.is_some() || peer.paths.is_lost());
                let path = route.filter(|_| !lost).and_then(|route| peer.paths.get(&route));
                let carries = |path: &Route| match &peer.plan {
                    Some(plan) => plan.ways.iter().any(|way| way.route == *path),
                    None => route == Some(*path),
                };
                let paths = peer.paths.iter().map(|path| PathDescription {
                    route: path.route,
                    state: path.state,
                    carries: carries(&path.route),
                    srtt: path.srtt(),
                    jitter: path.estimate.jitter(),
                    loss: path.estimate.loss(),
                    proven: path.proven,
                    mtu: self.mtus.known(peer.idx, &path.route),
                    meter: path.meter.clone(),
                });
                let state = match route {
                    _ if lost => PeerState::Lost,
                    Some(route) if route.is_direct() => PeerState::Direct,
                    Some(_) => PeerState::Relay,
                    None if peer.link.is_initiating() => PeerState::Searching,
                    None if member.online => PeerState::Idle,
                    None => PeerState::Offline,
                };
                Some(PeerDescription {
                    idx: peer.idx,
                    key: peer.key,
                    name: member.name.clone(),
                    certificate: member.certificate.clone(),
                    online: member.online,
                    state,
                    route,
                    srtt: path.and_then(|path| path.srtt()),
                    jitter: path.and_then(|path| path.estimate.jitter()),
                    loss: path.and_then(|path| path.estimate.loss()),
                    proven: path.and_then(|path| path.proven),
                    mtu: route.and_then(|route| self.mtus.known(peer.idx, &route)),
                    session,
                    meter: peer.link.meter().clone(),
                    mode: peer.paths.mode(),
                    plan: route.and_then(|_| peer.plan.clone()),
                    paths: paths.collect(),
                    nat: peer.way.nat,
                })
            })
            .collect()
    }

    /// All sessions that may receive.
    pub fn sessions(&self) -> impl Iterator<Item = Arc<Session>> {
        self.peers.values().flat_map(|peer| peer.link.sessions()).cloned()
    }

    /// Tells every peer that we end.
    pub fn goodbye(&mut self) {
        let idxs: Vec<_> = self.peers.keys().copied().collect();
        idxs.into_iter().for_each(|idx| self.say(idx, &Control::Goodbye { reason: 0 }));
    }

    fn peer_of(&mut self, key: PublicKey, now: Instant) -> Option<PeerIdx> {
        if key == self.node.identity.public {
            return None;
        }
        if let Some(idx) = self.idx_of.get(&key) {
            return Some(*idx);
        }
        let idx = PeerIdx(self.next_idx);
        self.next_idx += 1;
        self.idx_of.insert(key, idx);
        let peer = self.make_peer(key, idx, Arc::default(), now);
        self.peers.insert(idx, peer);
        Some(idx)
    }

    fn make_peer(&self, key: PublicKey, idx: PeerIdx, meter: Arc<Meter>, now: Instant) -> Peer {
        let mode = self.modes.get(&key).copied().unwrap_or(self.mode);
        let mut paths = Paths::new(self.epoch, mode);
        paths.set_uplinks(self.uplinks.iter().map(|uplink| uplink.id).collect(), now);
        Peer {
            idx,
            key,
            link: Link::new(Owner::Peer(idx), key, &self.node, meter, false),
            paths,
            plan: None,
            channel: None,
            lookup: None,
            candidates: Vec::new(),
            answer: None,
            answered: (now, 0),
            probing: false,
            lost: None,
            told: None,
            said_candidates: 0,
            sightings: (SIGHTINGS_MAX, now),
            way: PeerWay::new(super::neighbours::node_hash(self.node.network.tag(), &key.node_id())),
            tried: Tried::default(),
            answers: AnswerBudget::new(now),
            tried_again: None,
            moved: roaming::Told::new(now),
            idle: idle::Idle::default(),
        }
    }

    fn close(&mut self, idx: PeerIdx) {
        if let Some(peer) = self.peers.get_mut(&idx) {
            peer.link.close();
            peer.paths.clear();
            (peer.plan, peer.lost, peer.told) = (None, None, None);
            (peer.channel, peer.lookup, peer.probing) = (None, None, false);
            self.mtus.forget(idx);
            self.outputs.push_back(Output::Changed);
            self.end_questions(idx, &Told::Silence);
        }
        self.reschedule(idx);
    }

    fn forget(&mut self, idx: PeerIdx) {
        if let Some(mut peer) = self.peers.remove(&idx) {
            peer.link.close();
            self.mtus.forget(idx);
            self.idx_of.remove(&peer.key);
            self.end_questions(idx, &Told::NotAMember);
            self.index_of.retain(|_, owner| *owner != idx);
            if let Some(at) = self.timer_of.remove(&idx) {
                self.timers.remove(&(at, idx));
            }
            self.outputs.push_back(Output::Changed);
        }
    }

    fn reschedule(&mut self, idx: PeerIdx) {
        let next = self.peers.get(&idx).and_then(|peer| {
            let probes = [peer.paths.poll_timeout(), self.mtus.poll_timeout(idx)].into_iter().flatten().min();
            let probes = probes.filter(|_| peer.probing && peer.link.session().is_some());
            let way = peer.link.session().and_then(|_| peer.way.poll_timeout());
            [peer.link.poll_timeout(), peer.lookup.as_ref().map(|(at, _)| *at), probes, way].into_iter().flatten().min()
        });
        if let Some(at) = self.timer_of.remove(&idx) {
            self.timers.remove(&(at, idx));
        }
        if let Some(at) = next {
            self.timers.insert((at, idx));
            self.timer_of.insert(idx, at);
        }
    }

    fn sweep_indices(&mut self) {
        let Self { index_of, peers, .. } = self;
        if index_of.len() > 6 * peers.len() + 64 {
            index_of
                .retain(|index, idx| peers.get(idx).is_some_and(|peer| peer.link.indices().any(|used| used == *index)));
        }
    }

    fn fresh_index(&mut self) -> SessionIndex {
        loop {
            let index = SessionIndex::for_peer(self.rng.next_u32());
            if !self.index_of.contains_key(&index) {
                return index;
            }
        }
    }

    fn say_candidates(&mut self, idx: PeerIdx) {
        let (generation, list) = self.candidates.clone();
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        if peer.said_candidates != generation && self.direct {
            peer.said_candidates = generation;
            let nat = Control::Nat(NatMessage::NatIs(self.own_nat()));
            self.say(idx, &nat);
            self.say(idx, &Control::Candidates { generation, list });
        }
    }

    fn say(&mut self, idx: PeerIdx, message: &Control) {
        let Some(peer) = self.peers.get(&idx) else { return };
        let (Some(session), Some(route)) = (peer.link.session(), peer.paths.active()) else { return };
        if let Ok(datagram) = session.seal_control(&message.to_bytes()) {
            peer.paths.said(&route, datagram.len() as u64);
            self.send(route, datagram);
        }
    }

    fn name(&self, idx: PeerIdx) -> String {
        let peer = self.peers.get(&idx);
        let member = peer.and_then(|peer| self.map.get(&peer.key));
        member.map_or_else(|| idx.to_string(), |member| member.name.clone())
    }

    fn send(&mut self, route: Route, datagram: Vec<u8>) {
        self.outputs.push_back(Output::Send { route, datagram });
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
}

/// Our sockets to reach an address by: those of its family that paths are to use, or the usual one.
fn endpoints_to(addr: SocketAddr, uplinks: &[LocalUplink]) -> Vec<Endpoint> {
    let usual = Endpoint::udp(addr);
    let wanted = uplinks.iter().filter(|uplink| uplink.is_ipv4 == usual.addr.is_ipv4());
    let wanted: Vec<_> = wanted.map(|uplink| Endpoint { uplink: uplink.id, ..usual }).collect();
    if wanted.is_empty() { vec![usual] } else { wanted }
}

/// The facts that frames of a member are checked against.
pub fn credentials(certificate: &Certificate) -> PeerCredentials {
    PeerCredentials {
        mac: certificate.mac,
        ip4: Some(certificate.ip4),
        ip6: certificate.ip6,
        rights: Rights(certificate.rights),
    }
}

/// The prefixes of the network a lease belongs to.
pub fn leased_networks(lease: &Certificate) -> Vec<IpNet> {
    let four = IpNet::new(lease.ip4.into(), lease.prefix4).ok();
    let six = lease.ip6.and_then(|ip6| IpNet::new(ip6.into(), lease.prefix6).ok());
    four.into_iter().chain(six).map(|net| net.trunc()).collect()
}

/// Whether an address may be a path: a unicast address outside the network itself, with a port.
pub fn is_dialable(addr: SocketAddr, overlay: &[IpNet]) -> bool {
    let ip = addr.ip().to_canonical();
    let scoped = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    addr.port() != 0
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && !broadcast
        && !scoped
        && !overlay.iter().any(|net| net.contains(&ip))
}
