//! The peers core's way through NATs: when to probe together, what to try when that fails, whom to ask to introduce us
//! while the server is away, and what must never be sent.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::{DIAL_MAX, Output, Peers, endpoints_to, is_dialable};
use crate::counters::DropReason;
use crate::ids::{PeerIdx, Route, UplinkId};
use crate::proto::nat::{NatKind, NatReport};
use crate::proto::path::State;
use crate::proto::punch::{Due, Punch, SPRAY_EVERY, SPRAY_OPEN, SPRAY_SOCKETS, Spray};
use crate::proto::unproven::Unproven;
use crate::wire::control::{CANDIDATES_MAX, Candidate, CandidateKind, Control};
use crate::wire::nat::{NatMessage, Purpose};

/// Peers with the same outside address try each other's inside addresses first, and the outside one after this long.
const HAIRPIN_DELAY: Duration = Duration::from_millis(300);
/// Peers that are asked to introduce us, at a time.
const GO_BETWEENS: usize = 3;
/// Introductions we pass on in a second, for everybody.
const PASSED_PER_SECOND: u32 = 10;
/// One peer's word leads to a new call of another at most this often.
const CALLED_EVERY: Duration = Duration::from_secs(1);
/// Initiations that go by the relay, and not to addresses that only the server saw.
const RELAY_FIRST: u32 = 3;
/// Neighbours are believed to have moved at most this often.
const NEIGHBOUR_EVERY: Duration = Duration::from_secs(1);

/// What the core knows of NATs, beside what it knows of each peer.
pub(super) struct Traversal {
    own: NatReport,
    unproven: Unproven,
    /// Whether hard NATs are worth a thousand datagrams.
    hard_nat: bool,
    /// The last spray at or from here, and with whom lately.
    spraying_until: Option<Instant>,
    sprayed: BTreeMap<PeerIdx, Instant>,
    passed: (Instant, u32),
}

impl Traversal {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            own: NatReport::default(),
            unproven: Unproven::default(),
            hard_nat: true,
            spraying_until: None,
            sprayed: BTreeMap::new(),
            passed: (now, 0),
        }
    }

    /// One spray at a time, and one in ten minutes with the same peer.
    fn may_spray(&mut self, idx: PeerIdx, now: Instant) -> bool {
        self.sprayed.retain(|_, at| now.saturating_duration_since(*at) < SPRAY_EVERY);
        let may =
            self.hard_nat && self.spraying_until.is_none_or(|until| now >= until) && !self.sprayed.contains_key(&idx);
        if may {
            self.spraying_until = Some(now + SPRAY_OPEN);
            self.sprayed.insert(idx, now);
        }
        may
    }
}

/// What the core knows of the NAT in front of a peer, and where it stands with it.
#[derive(Default)]
pub(super) struct PeerWay {
    /// As the peer says.
    pub(super) nat: NatKind,
    punch: Punch,
    spray: Option<Spray>,
    /// Addresses the server itself saw it at.
    pub(super) server_saw: Vec<SocketAddr>,
    /// Where it announced itself in a LAN of ours, and when.
    neighbour: Option<(SocketAddr, Instant)>,
    pub(super) lan_hash: [u8; 8],
    called: Option<Instant>,
    /// When the ports around the expected one were tried last.
    near_at: Option<Instant>,
    /// Initiations since the last session.
    dials: u32,
}

impl PeerWay {
    pub(super) fn new(lan_hash: [u8; 8]) -> Self {
        Self { lan_hash, ..Self::default() }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let spray = self.spray.as_ref().and_then(Spray::poll_timeout);
        [self.punch.poll_timeout(), spray].into_iter().flatten().min()
    }

    /// Where it announced itself in a LAN of ours.
    pub(super) fn neighbour(&self) -> Option<SocketAddr> {
        self.neighbour.map(|(addr, _)| addr)
    }

    pub(super) fn connected(&mut self) {
        self.dials = 0;
    }

    pub(super) fn settled(&mut self) {
        self.punch.settled();
        self.spray = None;
    }
}

impl Peers {
    /// Whether a peer behind a hard NAT, or in front of ours, is worth a thousand datagrams.
    pub fn set_hard_nat(&mut self, on: bool) {
        self.traversal.hard_nat = on;
    }

    /// What our own NAT does, as far as it is known.
    pub fn set_nat(&mut self, report: NatReport) {
        let told = self.traversal.own.kind != report.kind;
        self.traversal.own = report;
        if told {
            let idxs: Vec<_> = self.peers.keys().copied().collect();
            let kind = Control::Nat(NatMessage::NatIs(self.traversal.own.kind));
            idxs.into_iter().for_each(|idx| self.say(idx, &kind));
        }
    }

    /// Whether a path that answers goes by this socket.
    pub fn uses(&self, uplink: UplinkId) -> bool {
        let mut paths = self.peers.values().flat_map(|peer| peer.paths.iter());
        paths.any(|path| path.route.endpoint.uplink == uplink && path.state == State::Valid)
    }

    pub(super) fn own_nat(&self) -> NatKind {
        self.traversal.own.kind
    }

    /// Somebody in a LAN of ours says that it is the member with this hash.
    pub fn neighbour(&mut self, lan_hash: [u8; 8], addr: SocketAddr, now: Instant) {
        if !self.direct || !is_dialable(addr, &self.overlay) {
            return;
        }
        let Some(idx) = self.peers.values().find(|peer| peer.way.lan_hash == lan_hash).map(|peer| peer.idx) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        let known = peer.way.neighbour;
        if known.is_some_and(|(_, at)| now.saturating_duration_since(at) < NEIGHBOUR_EVERY) {
            return;
        }
        let is_new = known.is_none_or(|(known, _)| known != addr);
        peer.way.neighbour = Some((addr, now));
        if peer.link.session().is_some() {
            for route in endpoints_to(addr, &self.uplinks).into_iter().map(Route::direct) {
                if peer.paths.get(&route).is_none_or(|path| path.state != State::Valid) {
                    peer.paths.add(route, now);
                    peer.probing = true;
                }
            }
        } else if peer.link.is_initiating() && is_new {
            peer.link.restart(now);
        }
        self.reschedule(idx);
    }

    /// The direct addresses that an initiation goes to. What only the server saw is left to [`Punch`] where there is a
    /// relay: a datagram that comes too early could spoil the hole.
    pub(super) fn dial_list(&mut self, idx: PeerIdx) -> Vec<SocketAddr> {
        let Some(peer) = self.peers.get_mut(&idx) else { return Vec::new() };
        peer.way.dials = peer.way.dials.saturating_add(1);
        // A relay that leads nowhere is none.
        let has_relay = self.server.is_some() && peer.channel.is_some() && peer.way.dials <= RELAY_FIRST;
        let early = |candidate: &&Candidate| {
            !has_relay || matches!(candidate.kind, CandidateKind::Host | CandidateKind::Mapped)
        };
        let last = self.map.get(&peer.key).and_then(|member| member.last_direct);
        let neighbour = peer.way.neighbour.map(|(addr, _)| addr);
        let said = peer.candidates.iter().filter(early).map(|candidate| candidate.addr);
        let mut list = Vec::new();
        for addr in neighbour.into_iter().chain(last).chain(said) {
            if !list.contains(&addr) && is_dialable(addr, &self.overlay) {
                list.push(addr);
            }
        }
        list.truncate(DIAL_MAX);
        list
    }

    /// Sends to where nobody has answered from, if that is not too much.
    pub(super) fn send_unproven(&mut self, route: Route, datagram: Vec<u8>, now: Instant) {
        if !route.is_direct() || self.traversal.unproven.may_send(route.endpoint.addr.ip(), now) {
            self.send(route, datagram);
        } else {
            self.outputs.push_back(Output::Dropped(DropReason::UnprovenBudget));
        }
    }

    /// Sends a probe. Who was only seen must have paid for it.
    pub(super) fn send_probe(&mut self, idx: PeerIdx, route: Route, datagram: Vec<u8>, now: Instant) {
        let Some(peer) = self.peers.get(&idx) else { return };
        let is_proven = peer.paths.get(&route).is_some_and(|path| path.proven.is_some());
        if is_proven || !route.is_direct() {
            self.send(route, datagram);
            return;
        }
        let addr = route.endpoint.addr;
        let is_announced =
            peer.candidates.iter().any(|candidate| candidate.addr == addr) || peer.way.neighbour() == Some(addr);
        if is_announced || self.traversal.unproven.is_paid(addr) {
            self.send_unproven(route, datagram, now);
        }
    }

    /// An authentic datagram came from an address that is not proven.
    pub(super) fn note_sighting(&mut self, from: SocketAddr, now: Instant) {
        self.traversal.unproven.seen(from, now);
    }

    /// A path of the peer was proven.
    pub(super) fn note_proof(&mut self, idx: PeerIdx, route: Route) {
        if route.is_direct() {
            self.traversal.unproven.proven(route.endpoint.addr.ip());
            if let Some(peer) = self.peers.get_mut(&idx) {
                peer.way.settled();
            }
        }
    }

    /// Probing begins (anew), where there is something to gain by it.
    pub(super) fn begin_punch(&mut self, idx: PeerIdx, now: Instant) {
        let own = self.node.identity.public;
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        let is_direct = peer.paths.active().is_some_and(|route| route.is_direct());
        if !self.direct || peer.link.session().is_none() || is_direct {
            return;
        }
        peer.way.punch.reset(own < peer.key, now);
        peer.probing = true;
        self.reschedule(idx);
    }

    pub(super) fn run_punch(&mut self, idx: PeerIdx, now: Instant) {
        loop {
            let Some(peer) = self.peers.get_mut(&idx) else { return };
            if peer.link.session().is_none() {
                peer.way.settled();
                return;
            }
            let rtt = peer.paths.active().and_then(|route| peer.paths.get(&route)).and_then(|path| path.srtt());
            match peer.way.punch.handle_timeout(rtt, now) {
                Some(Due::Ask { round }) => self.say_punch(idx, round, Purpose::Meet),
                Some(Due::Fire) => self.fire(idx, now),
                Some(Due::Stuck) => self.stuck(idx, now),
                None => break,
            }
        }
        self.run_spray(idx, now);
    }

    fn say_punch(&mut self, idx: PeerIdx, round: u32, purpose: Purpose) {
        let (about, candidates) = (self.node.identity.public, self.candidates.1.clone());
        self.say(idx, &Control::Nat(NatMessage::PunchAt { round, delay_ms: 0, purpose, about, candidates }));
    }

    /// Our probes of a round leave.
    fn fire(&mut self, idx: PeerIdx, now: Instant) {
        let own: Vec<IpAddr> = self.traversal.own.observed.iter().map(SocketAddr::ip).collect();
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        peer.paths.begin_rounds(now);
        for candidate in peer.candidates.iter().take(CANDIDATES_MAX) {
            let addr = candidate.addr;
            if is_dialable(addr, &self.overlay) {
                let is_hairpin = candidate.kind != CandidateKind::Host && own.contains(&addr.ip());
                let at = if is_hairpin { now + HAIRPIN_DELAY } else { now };
                for endpoint in endpoints_to(addr, &self.uplinks) {
                    peer.paths.add(Route::direct(endpoint), at);
                }
            }
        }
        peer.probing = true;
    }

    /// A round led to nothing. Where one of the two NATs is hard, there is one thing more to try.
    fn stuck(&mut self, idx: PeerIdx, now: Instant) {
        let own = self.traversal.own.kind;
        let Some(peer) = self.peers.get(&idx) else { return };
        let (theirs, saw) = (peer.way.nat, peer.way.server_saw.clone());
        let predicted = peer.candidates.iter().find(|c| c.kind == CandidateKind::Predicted).map(|c| c.addr);
        let predicted = predicted.filter(|addr| saw.iter().any(|seen| seen.ip() == addr.ip()));
        if let (NatKind::Predictable(_), Some(expected)) = (theirs, predicted) {
            // Few datagrams: many ports are still tried when the other side has opened its sockets.
            let Some(peer) = self.peers.get_mut(&idx) else { return };
            if peer.way.near_at.is_none_or(|at| now.saturating_duration_since(at) >= SPRAY_EVERY) {
                peer.way.near_at = Some(now);
                self.spray(idx, Spray::near(expected, now));
            }
        } else if own.is_hard() && theirs == NatKind::Easy {
            let Some(to) = saw.into_iter().find(SocketAddr::is_ipv4) else { return };
            if self.traversal.may_spray(idx, now) {
                self.open_sockets(idx, to);
                self.say_punch(idx, 0, Purpose::Spray);
            }
        }
    }

    fn open_sockets(&mut self, idx: PeerIdx, to: SocketAddr) {
        let Some(session) = self.peers.get(&idx).and_then(|peer| peer.link.session().cloned()) else { return };
        let datagrams = (0..SPRAY_SOCKETS).filter_map(|_| session.seal_control(&spray_probe(&mut self.rng)).ok());
        let datagrams = datagrams.collect();
        self.outputs.push_back(Output::OpenSockets { peer: idx, to, datagrams });
    }

    fn spray(&mut self, idx: PeerIdx, spray: Spray) {
        if let Some(peer) = self.peers.get_mut(&idx) {
            peer.way.spray = Some(spray);
        }
        self.reschedule(idx);
    }

    fn run_spray(&mut self, idx: PeerIdx, now: Instant) {
        loop {
            let Some(peer) = self.peers.get_mut(&idx) else { return };
            let (Some(spray), Some(session)) = (&mut peer.way.spray, peer.link.session()) else { return };
            if spray.poll_timeout().is_none() {
                peer.way.spray = None;
                return;
            }
            let Some(to) = spray.next(now) else { return };
            if let Ok(datagram) = session.seal_control(&spray_probe(&mut self.rng)) {
                for endpoint in endpoints_to(to, &self.uplinks).into_iter().take(1) {
                    self.send(Route::direct(endpoint), datagram.clone());
                }
            }
        }
    }

    /// What a peer says of NATs.
    pub(super) fn handle_nat(&mut self, idx: PeerIdx, message: NatMessage, now: Instant) {
        match message {
            NatMessage::NatIs(kind) => {
                if let Some(peer) = self.peers.get_mut(&idx)
                    && std::mem::replace(&mut peer.way.nat, kind) != kind
                {
                    self.outputs.push_back(Output::Changed);
                }
            }
            NatMessage::PunchAt { delay_ms, purpose, about, candidates, .. } => match purpose {
                Purpose::Meet => {
                    self.hear_candidates(idx, candidates, now);
                    if let Some(peer) = self.peers.get_mut(&idx)
                        && self.direct
                        && peer.paths.active().is_none_or(|route| !route.is_direct())
                    {
                        peer.way.punch.asked(Duration::from_millis(delay_ms.into()), now);
                        peer.probing = true;
                    }
                    self.reschedule(idx);
                }
                Purpose::Spray => self.answer_spray(idx, now),
                Purpose::PassOn => self.pass(idx, &about, candidates, Purpose::Passed, now),
                Purpose::PassBack => self.pass(idx, &about, candidates, Purpose::PassedBack, now),
                Purpose::Passed | Purpose::PassedBack => {
                    if let Some(about) = self.idx_of.get(&about).copied()
                        && self.call(about, candidates, now)
                        && purpose == Purpose::Passed
                    {
                        self.introduce_by(idx, about, Purpose::PassBack);
                    }
                }
            },
            // What only the server says, or hears.
            NatMessage::Reflect { .. } | NatMessage::Reflected { .. } => {}
        }
    }

    /// The peer's sockets are open: its address is tried at many ports, if that is ours to do and the server saw it.
    fn answer_spray(&mut self, idx: PeerIdx, now: Instant) {
        let Some(peer) = self.peers.get(&idx) else { return };
        let saw = peer.way.server_saw.iter().map(SocketAddr::ip).find(IpAddr::is_ipv4);
        let is_direct = peer.paths.active().is_some_and(|route| route.is_direct());
        let Some(ip) = saw.filter(|_| self.direct && !is_direct && !self.traversal.own.kind.is_hard()) else { return };
        if self.traversal.may_spray(idx, now) {
            let spray = Spray::random(ip, now, &mut self.rng);
            self.spray(idx, spray);
        }
    }

    /// While the server is away: asks peers whom we reach directly to introduce us.
    pub(super) fn ask_go_betweens(&mut self, wanted: PeerIdx) {
        if self.server.is_some() || !self.direct {
            return;
        }
        let reached = |peer: &&super::Peer| {
            peer.idx != wanted
                && peer.link.session().is_some()
                && peer
                    .paths
                    .active()
                    .and_then(|route| peer.paths.get(&route))
                    .is_some_and(|path| path.route.is_direct() && path.state == State::Valid)
        };
        let asked: Vec<_> = self.peers.values().filter(reached).map(|peer| peer.idx).take(GO_BETWEENS).collect();
        asked.into_iter().for_each(|idx| self.introduce_by(idx, wanted, Purpose::PassOn));
    }

    fn introduce_by(&mut self, go_between: PeerIdx, wanted: PeerIdx, purpose: Purpose) {
        let Some(about) = self.peers.get(&wanted).map(|peer| peer.key) else { return };
        let candidates = self.candidates.1.clone();
        self.say(go_between, &Control::Nat(NatMessage::PunchAt { round: 0, delay_ms: 0, purpose, about, candidates }));
    }

    /// We are the go-between: tells one peer where another is, which we see better than it does itself.
    fn pass(
        &mut self,
        from: PeerIdx,
        to: &crate::ids::PublicKey,
        said: Vec<Candidate>,
        purpose: Purpose,
        now: Instant,
    ) {
        let Some(to) = self.idx_of.get(to).copied().filter(|to| *to != from) else { return };
        let (since, passed) = &mut self.traversal.passed;
        if now.saturating_duration_since(*since) >= Duration::from_secs(1) {
            (*since, *passed) = (now, 0);
        }
        *passed += 1;
        if *passed > PASSED_PER_SECOND {
            self.outputs.push_back(Output::Dropped(DropReason::IntroductionFlood));
            return;
        }
        let Some(peer) = self.peers.get(&from) else { return };
        let seen = peer.paths.active().filter(Route::is_direct).map(|route| route.endpoint.addr);
        let seen = seen.map(|addr| Candidate { kind: CandidateKind::Observed, addr });
        let others = said.into_iter().filter(|said| seen.is_none_or(|seen| seen.addr != said.addr));
        let candidates = seen.into_iter().chain(others).take(CANDIDATES_MAX).collect();
        let about = peer.key;
        self.say(to, &Control::Nat(NatMessage::PunchAt { round: 0, delay_ms: 0, purpose, about, candidates }));
    }

    /// Calls a member that somebody says is at these addresses. Whether it is that member shows in the handshake.
    fn call(&mut self, idx: PeerIdx, candidates: Vec<Candidate>, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&idx) else { return false };
        let holds = self.map.get(&peer.key).is_some_and(|member| self.trust.holds(&member.certificate));
        let lately = peer.way.called.is_some_and(|at| now.saturating_duration_since(at) < CALLED_EVERY);
        if !self.direct || !holds || lately || peer.link.session().is_some() {
            return false;
        }
        peer.way.called = Some(now);
        peer.candidates = candidates;
        if peer.link.is_initiating() {
            peer.link.restart(now)
        } else {
            peer.link.start(now)
        }
        self.reschedule(idx);
        true
    }
}

/// A probe whose answer nobody counts: that it comes from a new address is what matters.
fn spray_probe(rng: &mut impl rand::Rng) -> Vec<u8> {
    Control::Probe { sequence: 0, challenge: rng.next_u64(), sent_us: 0, path: u8::MAX, padding: 0 }.to_bytes()
}
