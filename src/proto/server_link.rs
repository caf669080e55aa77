//! The client's conversation with its server: first contact, attachment, lease, keepalives, and finding the server
//! again when it was away.
//!
//! It never gives up and never tears anything down by itself: peers live on without the server. What the server says of
//! other members is passed on as it is; the member map is the peer table's.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use zeroize::Zeroizing;

use super::backoff::Backoff;
use super::cookie::Macs;
use super::crypto::{Secret32, TransportKeys, enrol_mac1_key, mac16, same_mac, transport_keys};
use super::fallback::Fallback;
use super::link::{Incoming, Link, Node};
use super::nat::{NatReport, Observer};
use super::noise::{NoiseError, XxInitiator};
use super::session::{Meter, Owner, Session, SessionParts};
use crate::counters::DropReason;
use crate::ids::{Endpoint, NetworkId, PublicKey, SessionIndex};
use crate::wire::cert::CERT_LEN;
use crate::wire::control::{Candidate, CandidateKind, Control, RefusalCode};
use crate::wire::handshake::{Capabilities, CookieReply, HandshakeHeader, HandshakeView, Hint, HintReason};
use crate::wire::header::{Kind, SealedHeader};
use crate::wire::join::fingerprint;
use crate::wire::nat::NatMessage;

/// Keepalive to the server, give or take a tenth: below the 30 s after which many NATs forget. Where the server sees us
/// at another address each time, one forgets sooner: then the next.
const KEEPALIVE: [Duration; 4] =
    [Duration::from_secs(20), Duration::from_secs(10), Duration::from_secs(7), Duration::from_secs(5)];
/// A keepalive without an answer is sent again after this long.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Keepalives in a row without an answer after which the server is suspected to be elsewhere: its names are looked up
/// anew, and the next ones go to all its addresses.
const MISSED_SUSPECT: u32 = 3;
/// And after which it counts as away. Where every second answer is lost, that would be a false alarm now and then: there
/// it takes more, up to [`MISSED_LOSSY`].
const MISSED_MAX: u32 = 6;
const MISSED_LOSSY: u32 = 12;
/// Requests (for the lease) are repeated until they are answered.
const REQUEST_RETRY: Duration = Duration::from_millis(500);
/// After a change of the underlay keepalives go out in a row: the first may leave before there is a route, or be lost.
const HURRIED: u32 = 3;
const HURRIED_WAIT: Duration = Duration::from_millis(300);
/// With the relay silent, the server is asked whether it is there if it was not heard for this long.
const RELAY_DOUBTED: Duration = Duration::from_millis(500);
/// Statistics for the server's map.
const STATS_INTERVAL: Duration = Duration::from_secs(5);
/// Refusals of an enrolment (which anybody could forge) before they are believed.
const REFUSALS_BELIEVED: u32 = 3;
/// First messages without any answer after which the user is told.
const ENROL_QUIET: Duration = Duration::from_secs(5);
/// Addresses, besides that of the last time, that are tried at the same moment: all of one or two names.
const AT_ONCE: usize = 8;
/// Waits between the messages of an enrolment.
const ENROL_RETRY: &[Duration] = &[
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// What first contact needs.
pub struct Join {
    /// Of the server's key, from the join line.
    pub fingerprint: [u8; 16],
    pub token_id: u64,
    pub psk: Secret32,
}

/// What a client remembers of its network for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned {
    pub server: PublicKey,
    pub network: NetworkId,
    /// The key that signs certificates.
    pub signer: [u8; 32],
}

/// What the link wants done.
#[derive(Debug)]
pub enum Output {
    Send {
        to: Endpoint,
        datagram: Vec<u8>,
    },
    /// Publish [`ServerLink::sessions`].
    SessionsChanged,
    /// First contact made: remember this.
    Pinned(Pinned),
    /// The lease, new or again: the certificate says which addresses.
    Leased {
        certificate: [u8; CERT_LEN],
        epoch: u64,
        name: String,
    },
    /// The server is there, at this endpoint.
    Attached(Endpoint),
    /// It has not answered for a while: perhaps its names stand for other addresses by now.
    Suspected,
    /// It does not answer.
    Detached,
    /// Have these TCP connections, and no others.
    Connect(Vec<SocketAddr>),
    /// For the peer table: `PeerDelta`, `PeerAnswer`, `Revoke`; for the routes: `RouteTable`.
    Passed(Control),
    /// How the server sees us.
    Observed(SocketAddr),
    /// What the NAT in front of us does.
    Nat(NatReport),
    /// Send this from a new socket, and close that.
    SendFresh {
        to: Endpoint,
        datagram: Vec<u8>,
    },
    /// It cannot go on without the user.
    Refused(Refusal),
    /// The lease was given back.
    Released,
}

/// Why a client does not get into its network. The text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "the server did not accept the invitation: it is wrong, has expired or was used by another machine; ask for a new one (`eps-actor invite` at the server)"
    )]
    Token,
    #[error(
        "a server answers, but not the one of the join line: its key has another fingerprint; check the address, or ask for a new join line"
    )]
    OtherServer,
    #[error(
        "the server does not know this machine (any more): its lease was taken back; join again with a new invitation (`eps-actor invite` at the server)"
    )]
    NotAMember,
    #[error("the server refused: {text}")]
    Lease { code: RefusalCode, text: String },
}

enum Enrolment {
    Waiting(Box<XxInitiator>, HandshakeHeader),
    Sent { message: Vec<u8>, keys: Option<TransportKeys>, parts: Parts },
}

#[derive(Clone, Copy)]
struct Parts {
    server: PublicKey,
    network: NetworkId,
    signer: [u8; 32],
    suite: super::crypto::Suite,
    local: SessionIndex,
    remote: SessionIndex,
    from: Endpoint,
}

/// The core.
pub struct ServerLink {
    node: Node,
    name: String,
    servers: Vec<Endpoint>,
    /// Whose turn it is among more than can be tried at once.
    next_server: usize,
    created: Instant,
    join: Option<Join>,
    enrolment: Option<Enrolment>,
    enrol_at: Option<Instant>,
    enrol_started: Option<Instant>,
    enrol_backoff: Backoff,
    enrol_macs: Option<Macs>,
    refusals: u32,
    pinned: Option<Pinned>,
    /// What was pinned, with its certificate, before an enrolment that replaces it; it holds again if that fails.
    replaced: Option<(Pinned, [u8; CERT_LEN])>,
    link: Option<Link>,
    meter: Arc<Meter>,
    endpoint: Option<Endpoint>,
    attached: bool,
    leased: bool,
    releasing: bool,
    request_at: Option<Instant>,
    keepalive_at: Option<Instant>,
    missed: u32,
    /// Where the server last saw us, and which keepalive interval that has led to.
    observed: (Option<SocketAddr>, usize),
    /// The share of keepalives that get no answer while the server is there, 0 to 1, as of late.
    loss: f64,
    /// Keepalives that are sent soon after each other, because the first ones may find no way yet.
    hurried: u32,
    /// The underlay changed, and the server has not answered since.
    moving: bool,
    fallback: Fallback,
    /// The connections last wished for, and when to look at that again.
    connect: Vec<SocketAddr>,
    connect_at: Option<Instant>,
    heard: Option<Instant>,
    stats_at: Instant,
    map_version: u64,
    ack: bool,
    candidates: (u32, Vec<Candidate>),
    stats: Option<Control>,
    nat: Observer,
    /// What we forward to and which table of routes we have; goes with every [`Control::MapHave`].
    offer: Option<Control>,
    rng: StdRng,
    outputs: VecDeque<Output>,
}

impl ServerLink {
    /// A link that begins at once. With `pinned` it knows its server; else `join` makes first contact. `node.network`
    /// is set from what is pinned.
    pub fn new(
        mut node: Node,
        name: String,
        pinned: Option<Pinned>,
        join: Option<Join>,
        now: Instant,
        seed: [u8; 32],
    ) -> Self {
        let meter = Arc::new(Meter::default());
        let held = node.certificate != [0; CERT_LEN];
        let link = pinned.map(|pinned| {
            node.network = pinned.network;
            let mut link = Link::new(Owner::Server, pinned.server, &node, meter.clone(), true);
            link.start(now);
            link
        });
        Self {
            node,
            name,
            servers: Vec::new(),
            next_server: 0,
            created: now,
            enrol_macs: join.as_ref().map(|join| Macs::new(enrol_mac1_key(&join.fingerprint))),
            enrol_at: (pinned.is_none() && join.is_some()).then_some(now),
            join,
            enrolment: None,
            enrol_started: None,
            enrol_backoff: Backoff::new(ENROL_RETRY),
            refusals: 0,
            pinned,
            replaced: None,
            link,
            meter,
            endpoint: None,
            attached: false,
            leased: held,
            releasing: false,
            request_at: None,
            keepalive_at: None,
            missed: 0,
            observed: (None, 0),
            loss: 0.0,
            hurried: 0,
            moving: false,
            fallback: Fallback::default(),
            connect: Vec::new(),
            connect_at: None,
            heard: None,
            stats_at: now + STATS_INTERVAL,
            map_version: 0,
            ack: false,
            candidates: (0, Vec::new()),
            stats: None,
            nat: Observer::default(),
            offer: None,
            rng: StdRng::from_seed(seed),
            outputs: VecDeque::new(),
        }
    }

    /// TCP may be used where UDP is silent.
    pub fn allow_tcp(&mut self) {
        self.fallback.allow();
    }

    /// Goes on over a TCP connection that a core before this one used.
    pub fn resume_tcp(&mut self, addr: SocketAddr, now: Instant) {
        self.endpoint = Some(Endpoint::tcp(addr));
        self.fallback.resume(addr, now);
        self.connect = vec![addr];
        self.settle(now);
    }

    /// The TCP connections that are open, all of them.
    pub fn set_connections(&mut self, open: Vec<SocketAddr>, now: Instant) {
        let new = self.fallback.set_open(open);
        if self.fallback.is_cut() {
            self.detach(now);
        } else if !new.is_empty() && !self.attached {
            self.call_over_tcp(now);
        } else if self.missed > 0 {
            // The session is there: whether the server is, the first answer shows.
            for addr in new {
                self.say_have_to(Endpoint::tcp(addr));
            }
        }
        self.settle(now);
    }

    /// Shakes hands over what is open.
    fn call_over_tcp(&mut self, now: Instant) {
        if self.enrol_at.is_some() && !matches!(self.enrolment, Some(Enrolment::Sent { .. })) {
            self.run_enrolment(now);
        } else if let Some(link) = self.link.as_mut().filter(|link| link.is_initiating()) {
            let index = SessionIndex::for_server(self.rng.next_u32());
            if let Ok(datagram) = link.initiate(&mut self.node, index, now, &mut self.rng) {
                self.send_over_tcp(&datagram);
            }
        }
    }

    /// Something was asked that only the server can answer, because the relay is silent: if it is the server that is,
    /// that should show soon.
    pub fn relay_is_silent(&mut self, now: Instant) {
        let quiet = self.heard.is_none_or(|heard| now.saturating_duration_since(heard) > RELAY_DOUBTED);
        if self.attached && quiet {
            self.fallback.suspects();
            if self.missed == 0 {
                self.keepalive_at = Some(now);
            }
            self.settle(now);
        }
    }

    /// Wishes for the connections there should be.
    fn settle(&mut self, now: Instant) {
        let wanted = self.fallback.wanted(&self.servers, now);
        if wanted != self.connect {
            self.connect.clone_from(&wanted);
            self.outputs.push_back(Output::Connect(wanted));
        }
        self.connect_at = self.fallback.poll_timeout(self.servers.len(), now);
    }

    /// Where the server may be: every address of every name, all tried at once.
    pub fn set_servers(&mut self, servers: Vec<Endpoint>, now: Instant) {
        if self.servers != servers {
            self.servers = servers;
            if !self.attached {
                self.kick(now);
            }
        }
        self.settle(now);
    }

    /// Our own addresses, as candidates for peers.
    pub fn set_candidates(&mut self, list: Vec<Candidate>) {
        if self.candidates.1 != list {
            self.candidates = (self.candidates.0 + 1, list);
            self.say_candidates();
        }
    }

    /// The version the member map has; acknowledges deltas.
    pub fn set_map_version(&mut self, version: u64) {
        self.map_version = version;
        self.ack = true;
    }

    /// Our totals, to be sent with the next statistics.
    pub fn set_stats(&mut self, stats: Control) {
        self.stats = Some(stats);
    }

    /// What is offered for routing, a [`Control::RouteOffer`]: said at once, and with every keepalive.
    pub fn set_offer(&mut self, offer: Control) {
        if self.offer.as_ref() != Some(&offer) {
            self.offer = Some(offer);
            self.ack = true;
        }
    }

    /// The newest certificate, for handshakes.
    pub fn set_certificate(&mut self, certificate: [u8; CERT_LEN]) {
        self.node.certificate = certificate;
    }

    /// Something of the underlay changed: prove the server anew, at once. Once it answers, peers are looked up anew,
    /// too, and so they hear of where it sees us.
    pub fn uplinks_changed(&mut self, now: Instant) {
        self.tell_nat_hosts(now);
        self.moving = self.attached;
        // Elsewhere there are other routers.
        self.observed = (None, 0);
        self.fallback.underlay_changed(now);
        if self.attached {
            (self.keepalive_at, self.hurried) = (Some(now), HURRIED);
        } else {
            self.kick(now);
        }
        self.settle(now);
    }

    fn kick(&mut self, now: Instant) {
        if let Some(link) = &mut self.link {
            link.restart(now);
        }
        if self.enrol_at.is_some() {
            self.enrol_at = Some(now);
        }
    }

    pub fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint.filter(|_| self.attached)
    }

    pub fn is_attached(&self) -> bool {
        self.attached
    }

    pub fn map_version(&self) -> u64 {
        self.map_version
    }

    /// When the server was last heard.
    pub fn heard(&self) -> Option<Instant> {
        self.heard
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        if std::mem::take(&mut self.ack) && self.attached {
            self.say_have();
        }
        self.outputs.pop_front()
    }

    /// Sessions that datagrams of the server may carry.
    pub fn sessions(&self) -> impl Iterator<Item = Arc<Session>> {
        self.link.iter().flat_map(Link::sessions).cloned()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let link = self.link.as_ref().and_then(Link::poll_timeout);
        let stats = self.attached.then_some(self.stats_at);
        let own = [self.enrol_at, self.request_at, self.keepalive_at, stats, self.connect_at];
        own.into_iter().chain([link, self.nat.poll_timeout()]).flatten().min()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.run_link(now);
        self.run_nat(now);
        if self.enrol_at.is_some_and(|at| now >= at) {
            self.run_enrolment(now);
        }
        if self.request_at.is_some_and(|at| now >= at) {
            self.request_at = Some(now + REQUEST_RETRY);
            if self.releasing {
                self.say(&Control::LeaseRelease);
            } else {
                self.say(&Control::LeaseRequest { name: self.name.clone() });
            }
        }
        if self.keepalive_at.is_some_and(|at| now >= at) {
            self.run_keepalive(now);
        }
        if now >= self.stats_at {
            self.stats_at = now + STATS_INTERVAL;
            if let Some(stats) = self.stats.take() {
                self.say(&stats);
            }
        }
        if self.fallback.test_is_due(now, &mut self.rng) {
            self.test_udp();
        }
        self.settle(now);
    }

    /// Speaks to the server by UDP while TCP is in use. It challenges the address that this comes from, and is spoken to
    /// by UDP from there on if that is answered.
    fn test_udp(&mut self) {
        for to in self.round() {
            self.say_have_to(to);
        }
    }

    fn run_link(&mut self, now: Instant) {
        let Some(link) = &mut self.link else { return };
        if link.poll_timeout().is_none_or(|at| now < at) {
            return;
        }
        let mut due = link.handle_timeout(now, Some(now));
        if due.changed {
            self.outputs.push_back(Output::SessionsChanged);
            if link.session().is_none() {
                due.gave_up = true;
            }
        }
        if due.gave_up && link.session().is_none() {
            link.start(now);
            due.initiate = true;
        }
        if due.initiate {
            let index = SessionIndex::for_server(self.rng.next_u32());
            let first = link.initiate(&mut self.node, index, now, &mut self.rng);
            // Of two copies the server would answer the first only, and that answer may be one that gets lost.
            let index = SessionIndex::for_server(self.rng.next_u32());
            let has_tcp = self.fallback.open().next().is_some();
            let second = has_tcp.then(|| link.initiate(&mut self.node, index, now, &mut self.rng));
            if let Ok(datagram) = first {
                self.send_by_udp(&datagram, now);
            }
            if let Some(Ok(datagram)) = second {
                self.send_over_tcp(&datagram);
            }
        }
    }

    fn run_keepalive(&mut self, now: Instant) {
        if self.missed >= self.missed_max() {
            self.detach(now);
            return;
        }
        if self.hurried > 0 {
            self.hurried -= 1;
            self.keepalive_at = Some(now + HURRIED_WAIT);
        } else {
            self.missed += 1;
            self.keepalive_at = Some(now + ANSWER_WITHIN);
        }
        self.fallback.asked(now);
        if let Some(link) = &self.link {
            link.mark(now);
        }
        self.say_have();
        if self.missed == MISSED_SUSPECT {
            self.outputs.push_back(Output::Suspected);
        }
        if self.missed >= MISSED_SUSPECT {
            // Nobody knows which way is open: to every address.
            let others: Vec<_> = self.round().into_iter().filter(|to| Some(*to) != self.endpoint).collect();
            others.into_iter().for_each(|to| self.say_have_to(to));
        }
    }

    fn tell_nat_hosts(&mut self, now: Instant) {
        let hosts = self.candidates.1.iter().filter(|candidate| candidate.kind == CandidateKind::Host);
        self.nat.set_hosts(hosts.map(|candidate| candidate.addr.ip()), now);
    }

    fn run_nat(&mut self, now: Instant) {
        while let Some(ask) = self.nat.handle_timeout(now, &mut self.rng) {
            let question = Control::Nat(NatMessage::Reflect { nonce: ask.nonce }).to_bytes();
            let session = self.link.as_ref().and_then(Link::session);
            let Some(Ok(datagram)) = session.map(|session| session.seal_control(&question)) else { continue };
            self.outputs.push_back(match ask.fresh {
                true => Output::SendFresh { to: ask.to, datagram },
                false => Output::Send { to: ask.to, datagram },
            });
        }
        self.outputs.extend(self.nat.poll_report().map(Output::Nat));
    }

    /// The server sees us there, by UDP. Nothing of ours changed since it last did.
    fn is_seen_at(&mut self, addr: SocketAddr) {
        let (last, step) = &mut self.observed;
        if last.replace(addr).is_some_and(|last| last != addr) {
            *step = (*step + 1).min(KEEPALIVE.len() - 1);
        }
    }

    /// What the answer to a keepalive says about those before it.
    fn count_losses(&mut self) {
        for lost in (0..self.missed).rev() {
            self.loss += (f64::from(u32::from(lost > 0)) - self.loss) / 8.0;
        }
    }

    /// How many keepalives in a row may stay unanswered.
    fn missed_max(&self) -> u32 {
        (MISSED_MAX + (self.loss * 16.0) as u32).min(MISSED_LOSSY)
    }

    fn run_enrolment(&mut self, now: Instant) {
        let Some(join) = &self.join else { return };
        self.enrol_at = Some(now + self.enrol_backoff.next(&mut self.rng));
        self.enrol_started.get_or_insert(now);
        if let Some(Enrolment::Sent { message, parts, .. }) = &self.enrolment {
            // The last message may have been lost; after a while begin again.
            if !self.enrol_backoff.attempts().is_multiple_of(4) {
                let (to, datagram) = (parts.from, message.clone());
                self.outputs.push_back(Output::Send { to, datagram });
                return;
            }
        }
        let sender = SessionIndex::for_server(self.rng.next_u32());
        let header = HandshakeHeader { kind: Kind::Enrol1, suites: self.node.suites.0, sender, detail: join.token_id };
        let started_xx = XxInitiator::start(&self.node.identity, &join.psk, &header.to_bytes(), &mut self.rng);
        let Ok((state, noise)) = started_xx else { return };
        self.enrolment = Some(Enrolment::Waiting(Box::new(state), header));
        if let Some(macs) = &mut self.enrol_macs {
            let datagram = macs.finish(&header.to_bytes(), &noise, now);
            self.send_by_udp(&datagram, now);
            // The server treats what comes from two places as two, and of the answers the first one counts.
            self.send_over_tcp(&datagram);
        }
    }

    /// Whether the server has been tried for a while and has not answered once.
    pub fn is_unanswered(&self, now: Instant) -> bool {
        let started = if self.pinned.is_some() { Some(self.created) } else { self.enrol_started };
        let is_long = |started| now.saturating_duration_since(started) > ENROL_QUIET;
        self.heard.is_none() && !self.attached && started.is_some_and(is_long)
    }

    /// A datagram from the server's side, with its seal still on.
    ///
    /// # Errors
    ///
    /// Why it was dropped; the caller counts it.
    pub fn handle_datagram(&mut self, from: Endpoint, datagram: &mut [u8], now: Instant) -> Result<(), DropReason> {
        match Kind::of(datagram).ok_or(DropReason::Malformed)? {
            Kind::Ctrl => {
                let header = SealedHeader::parse(datagram)?;
                let session = self.sessions().find(|session| session.local_index == header.receiver);
                let session = session.ok_or(DropReason::UnknownSession)?;
                let plain = session.open(&header, datagram)?.to_vec();
                self.handle_control(&session, from, &plain, now)
            }
            _ => self.handle_handshake(from, datagram, now),
        }
    }

    /// A handshake datagram, a cookie or a hint.
    ///
    /// # Errors
    ///
    /// Why it was dropped; the caller counts it.
    pub fn handle_handshake(&mut self, from: Endpoint, datagram: &[u8], now: Instant) -> Result<(), DropReason> {
        match Kind::of(datagram).ok_or(DropReason::Malformed)? {
            Kind::Hint => {
                let hint = Hint::parse(datagram)?;
                self.handle_hint(hint, now);
                Ok(())
            }
            Kind::Cookie => {
                let reply = CookieReply::parse(datagram)?;
                if let (Some(Enrolment::Waiting(_, header)), Some(macs)) = (&self.enrolment, &mut self.enrol_macs)
                    && header.sender == reply.receiver
                {
                    macs.take_cookie(&reply, now)?;
                    self.enrol_at = Some(now);
                    return Ok(());
                }
                self.link.as_mut().ok_or(DropReason::UnknownSession)?.handle_cookie(&reply, now)
            }
            Kind::Resp => {
                let view = HandshakeView::parse(datagram)?;
                let link = self.link.as_mut().ok_or(DropReason::UnknownSession)?;
                link.handle_response(&view, now, |_| Ok(()))?;
                self.outputs.push_back(Output::SessionsChanged);
                self.attach(from, now);
                Ok(())
            }
            Kind::Init => self.handle_init(from, &HandshakeView::parse(datagram)?, now),
            Kind::Enrol2 => self.handle_enrol2(from, &HandshakeView::parse(datagram)?, now),
            Kind::Data | Kind::Ctrl | Kind::Agg | Kind::Frag | Kind::Relay | Kind::Enrol1 | Kind::Enrol3 => {
                Err(DropReason::Malformed)
            }
        }
    }

    /// The server calls: it restarted and knows where we were.
    fn handle_init(&mut self, from: Endpoint, view: &HandshakeView<'_>, now: Instant) -> Result<(), DropReason> {
        let link = self.link.as_mut().ok_or(DropReason::UnknownPeer)?;
        if !same_mac(&mac16(&self.node.mac1_key(), view.before_mac1), &view.mac1) {
            return Err(DropReason::BadMac1);
        }
        let incoming = Incoming::read(&self.node, view, &mut self.rng)?;
        if incoming.remote() != link.remote() {
            return Err(DropReason::UnknownPeer);
        }
        let index = SessionIndex::for_server(self.rng.next_u32());
        let (datagram, _) = link.respond(&mut self.node, incoming, index, now)?;
        self.outputs.push_back(Output::Send { to: from, datagram });
        self.outputs.push_back(Output::SessionsChanged);
        Ok(())
    }

    fn handle_enrol2(&mut self, from: Endpoint, view: &HandshakeView<'_>, now: Instant) -> Result<(), DropReason> {
        let Some(Enrolment::Waiting(_, header)) = &self.enrolment else { return Err(DropReason::UnknownSession) };
        if view.header.receiver() != header.sender {
            return Err(DropReason::UnknownSession);
        }
        let suite = self.node.suites.accept(view.header.suites).ok_or(DropReason::HandshakeRefused)?;
        let local = header.sender;
        let Some(Enrolment::Waiting(mut state, header)) = self.enrolment.take() else {
            return Err(DropReason::UnknownSession);
        };
        let (server, welcome) = match state.read(view.noise) {
            Ok(read) => read,
            Err(NoiseError) => {
                self.enrolment = Some(Enrolment::Waiting(state, header));
                return Err(DropReason::NotAuthentic);
            }
        };
        if self.join.as_ref().is_none_or(|join| fingerprint(&server) != join.fingerprint) {
            self.outputs.push_back(Output::Refused(Refusal::OtherServer));
            return Err(DropReason::NotAuthentic);
        }
        let remote = view.header.sender;
        if welcome[40] != view.header.suites || welcome[41..45] != remote.0.to_le_bytes() {
            return Err(DropReason::Malformed);
        }
        self.heard = Some(now);
        let header = HandshakeHeader { kind: Kind::Enrol3, suites: 0, sender: local, detail: u64::from(remote.0) };
        let payload = self.node.payload(0, local).to_bytes();
        let (noise, split) = state.finish(&payload).map_err(|NoiseError| DropReason::NotAuthentic)?;
        let macs = self.enrol_macs.as_mut().ok_or(DropReason::UnknownSession)?;
        let message = macs.finish(&header.to_bytes(), &noise, now);
        let parts = Parts {
            server,
            network: NetworkId(u64::from_le_bytes(welcome[..8].try_into().expect("eight bytes"))),
            signer: welcome[8..40].try_into().expect("32 bytes"),
            suite,
            local,
            remote,
            from,
        };
        self.outputs.push_back(Output::Send { to: from, datagram: message.clone() });
        self.enrolment = Some(Enrolment::Sent { message, keys: Some(transport_keys(&split, suite)), parts });
        self.enrol_at = Some(now + REQUEST_RETRY);
        self.enrol_done(now);
        Ok(())
    }

    /// The handshake is complete for us; whether the token was good shows when the server answers inside the session.
    fn enrol_done(&mut self, now: Instant) {
        let Some(Enrolment::Sent { keys, parts, .. }) = &mut self.enrolment else { return };
        let (Some(keys), parts) = (keys.take(), *parts) else { return };
        self.node.network = parts.network;
        let mut link = Link::new(Owner::Server, parts.server, &self.node, self.meter.clone(), true);
        let session = Session::new(
            SessionParts {
                owner: Owner::Server,
                remote: parts.server,
                local_index: parts.local,
                remote_index: parts.remote,
                initiator: true,
                suite: parts.suite,
                // The server is sent no frames.
                capabilities: Capabilities::NONE,
                meter: self.meter.clone(),
                seal_key: keys.i2r,
                open_key: keys.r2i,
            },
            now,
        );
        link.install(Arc::new(session), now);
        self.link = Some(link);
        self.outputs.push_back(Output::SessionsChanged);
    }

    fn handle_hint(&mut self, hint: Hint, now: Instant) {
        match hint.reason {
            HintReason::NoSession => {
                if let Some(link) = &mut self.link {
                    link.handle_hint(hint.index, hint.counter, now);
                }
            }
            HintReason::EnrolRefused => {
                let ours = matches!(&self.enrolment, Some(Enrolment::Sent { parts, .. }) if parts.local == hint.index);
                if ours && self.pinned.is_none() {
                    self.refusals += 1;
                    self.enrolment = None;
                    self.enrol_at = Some(now + Duration::from_millis(100));
                    if self.refusals >= REFUSALS_BELIEVED {
                        (self.enrol_at, self.refusals) = (None, 0);
                        self.return_to_replaced(now);
                        self.outputs.push_back(Output::Refused(Refusal::Token));
                    }
                }
            }
            HintReason::NotAMember => {
                let ours = self.link.as_ref().is_some_and(|link| link.indices().any(|index| index == hint.index));
                if ours {
                    self.refusals += 1;
                    if self.refusals >= REFUSALS_BELIEVED {
                        self.refusals = 0;
                        self.not_a_member(now);
                    }
                }
            }
        }
    }

    /// The server does not know us. With an invitation and no lease in this life, first contact is made again: it
    /// stopped between our enrolment and the lease, or removed us before this start. After a lease in this life somebody
    /// has just removed us.
    fn not_a_member(&mut self, now: Instant) {
        if self.leased || self.join.is_none() {
            self.outputs.push_back(Output::Refused(Refusal::NotAMember));
            return;
        }
        if let Some(link) = &mut self.link {
            link.close();
        }
        let certificate = std::mem::replace(&mut self.node.certificate, [0; CERT_LEN]);
        self.replaced = self.pinned.take().map(|pinned| (pinned, certificate));
        (self.link, self.enrolment) = (None, None);
        (self.keepalive_at, self.request_at) = (None, None);
        self.enrol_at = Some(now);
        self.outputs.push_back(Output::SessionsChanged);
        if std::mem::take(&mut self.attached) {
            self.outputs.push_back(Output::Detached);
        }
    }

    /// The invitation is no good, so what was known before is all there is: perhaps we are a member after all, and
    /// somebody on the way said otherwise.
    fn return_to_replaced(&mut self, now: Instant) {
        let Some((pinned, certificate)) = self.replaced.take() else { return };
        self.join = None;
        self.pinned = Some(pinned);
        self.node.certificate = certificate;
        self.node.network = pinned.network;
        let mut link = Link::new(Owner::Server, pinned.server, &self.node, self.meter.clone(), true);
        link.start(now);
        self.link = Some(link);
        self.outputs.push_back(Output::SessionsChanged);
    }

    /// Control messages of an authentic datagram, opened.
    ///
    /// # Errors
    ///
    /// Why it was dropped; the caller counts it.
    pub fn handle_control(
        &mut self,
        session: &Arc<Session>,
        from: Endpoint,
        plain: &[u8],
        now: Instant,
    ) -> Result<(), DropReason> {
        let messages = Control::decode_list(plain)?;
        if session.confirm()
            && let Some(link) = &mut self.link
            && link.confirm(session.local_index, now)
        {
            self.attach(from, now);
        }
        if let Some(Enrolment::Sent { parts, .. }) = &self.enrolment
            && parts.local == session.local_index
        {
            let pinned = Pinned { server: parts.server, network: parts.network, signer: parts.signer };
            (self.enrolment, self.enrol_at) = (None, None);
            self.pinned = Some(pinned);
            self.outputs.push_back(Output::Pinned(pinned));
            self.attach(from, now);
        }
        self.heard = Some(now);
        for message in messages {
            self.handle_message(session, from, message, now);
        }
        Ok(())
    }

    fn handle_message(&mut self, session: &Arc<Session>, from: Endpoint, message: Control, now: Instant) {
        match message {
            Control::LeaseGrant { certificate, signer, epoch, name } => {
                if self.pinned.is_none_or(|pinned| pinned.signer != signer) {
                    return;
                }
                (self.request_at, self.leased, self.refusals) = (None, true, 0);
                self.node.certificate = certificate;
                self.name.clone_from(&name);
                self.outputs.push_back(Output::Leased { certificate, epoch, name });
            }
            Control::LeaseRefused { code, mut text } => {
                self.request_at = None;
                // It goes into the log, where a line end would begin a line of the server's making.
                text.retain(|letter| !letter.is_control());
                self.outputs.push_back(Output::Refused(Refusal::Lease { code, text }));
            }
            Control::LeaseReleased => {
                if self.releasing {
                    (self.request_at, self.leased) = (None, false);
                    self.outputs.push_back(Output::Released);
                }
            }
            Control::Cert(certificate) => {
                self.node.certificate = certificate;
                self.outputs.push_back(Output::Leased { certificate, epoch: 0, name: self.name.clone() });
            }
            Control::Observed { addr, head, .. } => {
                if self.attached && self.endpoint != Some(from) && self.may_move(from) {
                    self.attach(from, now);
                }
                if from.is_udp() {
                    self.is_seen_at(addr);
                }
                if self.endpoint == Some(from) {
                    self.fallback.answered(from, now, &mut self.rng);
                }
                self.count_losses();
                (self.missed, self.hurried) = (0, 0);
                if std::mem::take(&mut self.moving) {
                    self.outputs.push_back(Output::Attached(from));
                }
                // While the map is behind, what should come may be lost: asking again is cheap.
                let is_behind = head > self.map_version;
                let quiet = if is_behind {
                    ANSWER_WITHIN
                } else {
                    KEEPALIVE[self.observed.1].mul_f64(self.rng.random_range(0.9..1.1))
                };
                self.keepalive_at = Some(now + quiet);
                if !self.attached {
                    self.attach(from, now);
                }
                if from.is_udp() {
                    self.nat.observed(addr, now);
                    self.outputs.push_back(Output::Observed(addr));
                }
                self.settle(now);
            }
            Control::Nat(NatMessage::Reflected { nonce, addr, port }) => {
                self.nat.reflected(nonce, addr, port, now);
                self.run_nat(now);
            }
            Control::Probe { sequence, challenge, sent_us, path, .. } => {
                let reply = Control::ProbeReply { sequence, challenge, sent_us, path, observed: from.addr };
                if let Ok(datagram) = session.seal_control(&reply.to_bytes()) {
                    self.outputs.push_back(Output::Send { to: from, datagram });
                }
                // It asks because it saw us somewhere new. This gets an answer to there, and shows that the way is good.
                self.say_have_to(from);
            }
            Control::Goodbye { .. } => {
                if let Some(link) = &mut self.link {
                    link.close();
                }
                self.outputs.push_back(Output::SessionsChanged);
                self.detach(now);
            }
            message @ (Control::PeerDelta { .. }
            | Control::PeerAnswer { .. }
            | Control::Revoke(_)
            | Control::RouteTable { .. }) => {
                self.outputs.push_back(Output::Passed(message));
            }
            // What only clients or peers say.
            Control::ProbeReply { .. }
            | Control::Candidates { .. }
            | Control::PathReport { .. }
            | Control::Broken { .. }
            | Control::LeaseRequest { .. }
            | Control::LeaseRelease
            | Control::PeerLookup { .. }
            | Control::MapHave { .. }
            | Control::Nat(_)
            | Control::Moved { .. }
            | Control::RouteOffer { .. }
            | Control::Stats { .. }
            | Control::Ping { .. }
            | Control::Pong { .. }
            | Control::WhyAsk { .. }
            | Control::WhySay { .. } => {}
        }
    }

    fn attach(&mut self, from: Endpoint, now: Instant) {
        if self.endpoint != Some(from) {
            // A router may map us elsewhere towards another address.
            self.observed.0 = None;
        }
        self.endpoint = Some(from);
        self.attached = true;
        (self.missed, self.hurried) = (0, 0);
        self.refusals = 0;
        self.fallback.answered(from, now, &mut self.rng);
        self.settle(now);
        self.request_at = Some(now + REQUEST_RETRY);
        self.keepalive_at = Some(now + ANSWER_WITHIN);
        self.stats_at = now + Duration::from_secs(2);
        self.tell_nat_hosts(now);
        self.nat.set_server(Some(from), now);
        self.outputs.push_back(Output::Attached(from));
        self.say(&Control::LeaseRequest { name: self.name.clone() });
        // What map we have is said when the lease is there: before, nobody could judge what members are sent.
        self.say_candidates();
    }

    fn detach(&mut self, now: Instant) {
        (self.keepalive_at, self.request_at, self.missed, self.hurried) = (None, None, 0, 0);
        self.fallback.lost();
        // A connection that carries nothing any more may still look open: none is kept.
        self.settle(now);
        if let Some(link) = &mut self.link {
            link.restart(now);
        }
        self.nat.set_server(None, now);
        if std::mem::take(&mut self.attached) {
            self.outputs.push_back(Output::Detached);
        }
    }

    /// What we have of the map, and the offer, in one datagram: its answer says that both came.
    fn say_have(&mut self) {
        let current = self.endpoint;
        if let Some(to) = current {
            self.say_have_to(to);
        }
        // Over every connection as well, while nobody knows which way is open.
        for to in self.fallback.open().filter(|to| Some(*to) != current).collect::<Vec<_>>() {
            self.say_have_to(to);
        }
    }

    fn say_have_to(&mut self, to: Endpoint) {
        let mut list = Control::MapHave { version: self.map_version }.to_bytes();
        if let Some(offer) = &self.offer {
            offer.encode(&mut list);
        }
        self.say_list(to, &list);
    }

    /// Sends something of the peer table to the server, if it is there.
    pub fn say(&mut self, message: &Control) {
        if let Some(to) = self.endpoint {
            self.say_to(to, message);
        }
    }

    fn say_to(&mut self, to: Endpoint, message: &Control) {
        self.say_list(to, &message.to_bytes());
    }

    fn say_list(&mut self, to: Endpoint, list: &[u8]) {
        let Some(session) = self.link.as_ref().and_then(Link::session) else { return };
        if let Ok(datagram) = session.seal_control(list) {
            self.outputs.push_back(Output::Send { to, datagram });
        }
    }

    fn say_candidates(&mut self) {
        if self.attached {
            let (generation, list) = self.candidates.clone();
            self.say(&Control::Candidates { generation, list });
        }
    }

    /// Gives the lease back; [`Output::Released`] when the server has taken it.
    pub fn release(&mut self, now: Instant) {
        self.releasing = true;
        self.request_at = Some(now);
    }

    /// Tells the server that we end.
    pub fn goodbye(&mut self) {
        self.say(&Control::Goodbye { reason: 0 });
    }

    fn send_by_udp(&mut self, datagram: &[u8], now: Instant) {
        let round = self.round();
        if !round.is_empty() {
            self.fallback.asked(now);
        }
        for to in round {
            self.outputs.push_back(Output::Send { to, datagram: datagram.to_vec() });
        }
        self.settle(now);
    }

    fn send_over_tcp(&mut self, datagram: &[u8]) {
        for to in self.fallback.open() {
            self.outputs.push_back(Output::Send { to, datagram: datagram.to_vec() });
        }
    }

    /// Where it was last comes first, then every other address of every name; of very many some each time.
    fn round(&mut self) -> Vec<Endpoint> {
        let known =
            self.endpoint.map(|endpoint| if endpoint.is_udp() { endpoint } else { Endpoint::udp(endpoint.addr) });
        let others = self.servers.iter().copied().filter(|server| Some(*server) != known);
        let (others, first) = (others.collect::<Vec<_>>(), self.next_server);
        self.next_server = (first + AT_ONCE).checked_rem(others.len()).unwrap_or(0);
        let others = others.iter().copied().cycle().skip(first).take(AT_ONCE.min(others.len()));
        known.into_iter().chain(others).collect()
    }

    /// Whether the server may be followed to where it answered from: only to its own addresses, to UDP always, and away
    /// from where it is only while it does not answer there. What comes late by the old way must not lead back.
    fn may_move(&self, to: Endpoint) -> bool {
        let from_tcp = self.endpoint.is_some_and(|endpoint| !endpoint.is_udp());
        let known = self.servers.iter().any(|server| server.addr == to.addr);
        known && ((from_tcp && to.is_udp()) || self.missed > 0)
    }
}

/// What a join line's token gives.
pub fn join(fingerprint: [u8; 16], token: Option<&crate::wire::join::Token>) -> Join {
    let open = super::admission::open_token();
    let token = token.unwrap_or(&open);
    Join { fingerprint, token_id: token.id(), psk: Zeroizing::new(*token.psk()) }
}

#[cfg(test)]
mod tests {
    use super::super::crypto::Suites;
    use super::super::link::no_psk;
    use super::super::noise::Identity;
    use super::*;

    #[test]
    fn of_many_servers_every_one_is_tried_and_few_at_once() {
        let now = Instant::now();
        let identity = Identity::generate(&mut StdRng::seed_from_u64(1));
        let node = Node::new(identity, NetworkId(0), no_psk(), Suites::of_this_machine(), 1);
        let mut link = ServerLink::new(node, "a".into(), None, Some(join([1; 16], None)), now, [2; 32]);
        let servers: Vec<_> = (1..=20).map(|n| Endpoint::udp(([192, 0, 2, n], 43439).into())).collect();
        link.set_servers(servers.clone(), now);
        let mut tried = Vec::new();
        for _ in 0..3 {
            let at = link.poll_timeout().expect("it goes on trying");
            link.handle_timeout(at);
            let before = tried.len();
            while let Some(output) = link.poll_output() {
                let Output::Send { to, .. } = output else { continue };
                tried.push(to);
            }
            assert!((1..=AT_ONCE).contains(&(tried.len() - before)));
        }
        assert!(servers.iter().all(|server| tried.contains(server)), "{tried:?}");
    }

    #[test]
    fn while_udp_is_silent_a_connection_is_wished_for_and_first_contact_goes_over_it() {
        let start = Instant::now();
        let identity = Identity::generate(&mut StdRng::seed_from_u64(1));
        let node = Node::new(identity, NetworkId(0), no_psk(), Suites::of_this_machine(), 1);
        let mut link = ServerLink::new(node, "a".into(), None, Some(join([1; 16], None)), start, [2; 32]);
        link.allow_tcp();
        let server = Endpoint::udp(([192, 0, 2, 1], 43439).into());
        link.set_servers(vec![server], start);
        let outputs = |link: &mut ServerLink| std::iter::from_fn(|| link.poll_output()).collect::<Vec<_>>();
        let sends = |outputs: &[Output], to: Endpoint| {
            outputs.iter().filter(|output| matches!(output, Output::Send { to: place, .. } if *place == to)).count()
        };
        let (mut now, mut by_udp) = (start, 0);
        let wished = loop {
            now = link.poll_timeout().expect("it goes on trying").max(now);
            link.handle_timeout(now);
            let outputs = outputs(&mut link);
            by_udp += sends(&outputs, server);
            assert_eq!(sends(&outputs, Endpoint::tcp(server.addr)), 0, "there is no connection");
            let wished = outputs.into_iter().find_map(|output| match output {
                Output::Connect(wished) => Some(wished),
                _ => None,
            });
            if let Some(wished) = wished {
                break wished;
            }
        };
        assert_eq!((wished, now - start), (vec![server.addr], super::super::fallback::HEAD_START));
        assert!(by_udp > 0);
        link.set_connections(vec![server.addr], now);
        let outputs = outputs(&mut link);
        assert_eq!(sends(&outputs, Endpoint::tcp(server.addr)), 1, "at once, without waiting for the next try");
        assert_eq!(sends(&outputs, server), 1, "and by UDP still");
    }
}
