//! The server's core: who is a member, which addresses are leased to whom, who has to hear of what, and who is
//! introduced to whom.
//!
//! Input is a datagram or a command with the time; output is what to send, what to store and what to publish. An
//! answer that promises something (a lease, an invitation, a removal) waits until the store says that it is durable.
//! Control messages are retransmitted by whoever wants their effect: clients ask again, deltas are sent again until
//! acknowledged by the version in `MapHave`.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::admission::Admission;
use super::changes::{Change, ChangeLog, Delta};
use super::cookie::{Admit, Gate};
use super::crypto::Signer;
use super::issuer::Issuer;
use super::lease::{LeaseError, Pool};
use super::link::{Incoming, Link, Node};
use super::noise::Split;
use super::records::{MemberRecord, NetworkRecord, StoreOp, StoredState, TokenRecord};
use super::routes::{Approval, RouteBoard};
use super::session::{Owner, Session};
use crate::counters::DropReason;
use crate::ids::{ChannelToken, Endpoint, PeerIdx, PublicKey, SessionIndex, UplinkId};
use crate::wire::control::{
    Candidate, CandidateKind, Control, DELTA_ENTRIES_MAX, MapChange, MapEntry, PeerReport, RefusalCode,
};
use crate::wire::handshake::{Capabilities, HandshakeView, Hint, HintReason};
use crate::wire::header::{Kind, SealedHeader};
use crate::wire::join::Token;
use crate::wire::nat::NatMessage;

/// A member that was not heard for this long (three keepalives) is offline.
pub const OFFLINE_AFTER: Duration = Duration::from_secs(62);
/// Changes of the map are told together after this long.
const COALESCE: Duration = Duration::from_millis(50);
/// Deltas that nobody acknowledged are sent again after this long, as often as [`DELTA_TRIES`].
const DELTA_RETRY: Duration = Duration::from_millis(300);
const DELTA_TRIES: u32 = 10;
/// Pieces of a delta on their way at a time, to one client.
const DELTA_WINDOW: usize = 8;
/// A challenge to a new address whose answer did not come is sent again with what comes from there after this long.
const CHALLENGE_RETRY: Duration = Duration::from_millis(500);
/// The network epoch is raised this often.
const EPOCH_LENGTH: Duration = Duration::from_secs(3600);
/// How long a restarted server calls the members it knows, spread over [`CALL_SPREAD`].
const CALL_FOR: Duration = Duration::from_secs(15);
const CALL_SPREAD: Duration = Duration::from_secs(1);
/// Handshakes a second above which cookies are asked for.
const LOAD_LIMIT: u32 = 400;
/// Channels at a time; above it, lookups are answered without a relay.
const CHANNELS_MAX: usize = 1 << 18;
/// Removals told together with their revocation; as many as the log remembers.
const REVOCATIONS_KEPT: usize = 1024;
/// A guest (enrolled, no lease) is forgotten after this long.
const GUEST_LIFE: Duration = Duration::from_secs(30);

/// What the coordinator was configured with.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Admit anybody who knows the join line, without a token.
    pub open: bool,
    /// Rights by member name; everybody else has none.
    pub rights: BTreeMap<String, u8>,
    /// Prefix lengths that leases carry.
    pub prefix4: u8,
    pub prefix6: u8,
    /// UDP port that answers [`NatMessage::Reflect`] only, besides the one everybody knows; 0 for none.
    pub second_port: u16,
}

/// What the coordinator wants done.
#[derive(Debug)]
pub enum Output {
    Send {
        to: Endpoint,
        datagram: Vec<u8>,
    },
    /// Make these durable and say so with [`Coordinator::handle_stored`].
    Store {
        id: u64,
        ops: Vec<StoreOp>,
    },
    /// The sessions changed; publish [`Coordinator::sessions`].
    SessionsChanged,
    /// A relay channel between two members exists; each leg has its token. Repeated now and then.
    Channel {
        one: (PeerIdx, ChannelToken),
        other: (PeerIdx, ChannelToken),
    },
    /// Where a member is now. Repeated now and then.
    Placed {
        member: PeerIdx,
        endpoint: Option<Endpoint>,
    },
    /// The answer to a command.
    Reply {
        request: u64,
        reply: Reply,
    },
    /// For the log of the server.
    Event(Event),
}

/// What an operator would be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Joined { name: String, addr: IpAddr, from: Endpoint },
    Attached { name: String, from: Endpoint },
    Moved { name: String, from: Endpoint },
    Left { name: String, why: &'static str },
    Refused { name: String, why: String },
    Removed { name: String },
    RouteRejected { name: String, subnet: ipnet::IpNet, why: super::routes::Rejected },
    StoreFailed { why: String },
}

/// The answer to a command at the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Done,
    Invited([u8; 16]),
    Failed(String),
}

/// A member as others may see it.
#[derive(Debug, Clone)]
pub struct MemberDescription {
    pub record: MemberRecord,
    pub online: bool,
    pub endpoint: Option<Endpoint>,
    pub heard_ago: Option<Duration>,
    pub attached_for: Option<Duration>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub reports: Vec<PeerReport>,
    /// The subnets it publishes.
    pub routes: Vec<ipnet::IpNet>,
    /// What it would publish, and why it does not.
    pub rejected_routes: Vec<(ipnet::IpNet, super::routes::Rejected)>,
}

struct Member {
    idx: PeerIdx,
    link: Link,
    /// `None` for a guest: a key that enrolled and has no lease yet.
    record: Option<MemberRecord>,
    /// The store has the record. Until then nobody hears of the lease.
    is_stored: bool,
    /// Its removal is being stored: nothing of it is written any more.
    is_leaving: bool,
    /// The token it enrolled with.
    token: Option<u64>,
    since: Instant,
    /// Where control messages go; `None` while it is offline.
    endpoint: Option<Endpoint>,
    attached: Option<Instant>,
    heard: Option<Instant>,
    /// Where the handshake of a session that is not confirmed came from.
    handshake_from: Option<Endpoint>,
    /// A new address under challenge, and since when.
    challenge: Option<(Endpoint, u64, Instant)>,
    candidates: Vec<Candidate>,
    have: u64,
    /// Deltas on their way: when to send them again, and how often that was done.
    telling: Option<(Instant, u32)>,
    /// The versions they lead to, oldest first.
    on_their_way: VecDeque<u64>,
    online_told: bool,
    rx_bytes: u64,
    tx_bytes: u64,
    reports: Vec<PeerReport>,
}

enum Pending {
    Grant {
        key: PublicKey,
        session: Arc<Session>,
        is_new: bool,
    },
    Reply {
        request: u64,
        reply: Reply,
    },
    /// `released` is what the member hears once it is true, if it was its own wish.
    Kick {
        request: u64,
        key: PublicKey,
        revocation: Vec<u8>,
        released: Option<(Endpoint, Vec<u8>)>,
    },
    Nothing,
}

/// The server's core.
pub struct Coordinator {
    node: Node,
    issuer: Issuer,
    settings: Settings,
    pool: Pool,
    log: ChangeLog,
    gate: Gate,
    admission: Admission,
    members: BTreeMap<PublicKey, Member>,
    keys: BTreeMap<PeerIdx, PublicKey>,
    index_of: BTreeMap<SessionIndex, PublicKey>,
    /// The signed revocations of members that were removed in this run, to go with the news.
    revocations_of: BTreeMap<PublicKey, Vec<u8>>,
    channels: BTreeMap<(PublicKey, PublicKey), (ChannelToken, ChannelToken)>,
    routes: RouteBoard,
    pending: BTreeMap<u64, Pending>,
    next_write: u64,
    next_idx: u32,
    tell_at: Option<Instant>,
    epoch_at: Instant,
    sweep_at: Instant,
    clock: (Instant, u64),
    rng: StdRng,
    outputs: VecDeque<Output>,
}

impl Coordinator {
    /// Starts from what was stored. `network` is the stored row with `boots` already raised (and stored); `clock` ties
    /// `now` to Unix seconds, which are only used for people and for the expiry of tokens.
    pub fn new(
        (node, signer, pool, settings): (Node, Signer, Pool, Settings),
        network: NetworkRecord,
        stored: StoredState,
        clock: (Instant, u64),
        seed: [u8; 32],
    ) -> Self {
        let now = clock.0;
        let mut rng = StdRng::from_seed(seed);
        let gate = Gate::new(node.mac1_key(), LOAD_LIMIT, now, &mut rng);
        let admission = Admission::new(&node, signer.public(), stored.tokens, now, &mut rng);
        let mut coordinator = Self {
            log: ChangeLog::new(network.boots),
            node,
            issuer: Issuer::new(signer, network, &stored.revoked, (settings.prefix4, settings.prefix6)),
            settings,
            pool,
            gate,
            admission,
            members: BTreeMap::new(),
            keys: BTreeMap::new(),
            index_of: BTreeMap::new(),
            revocations_of: BTreeMap::new(),
            channels: BTreeMap::new(),
            routes: RouteBoard::new(network.boots, now),
            pending: BTreeMap::new(),
            next_write: 0,
            // Numbers of one run mean nobody in the next, so that an old session or channel is not taken for another's.
            next_idx: (network.boots as u32) << 16,
            tell_at: None,
            epoch_at: now + EPOCH_LENGTH,
            sweep_at: now + Duration::from_secs(1),
            clock,
            rng,
            outputs: VecDeque::new(),
        };
        for record in stored.members {
            let (key, called) = (record.key, record.last_endpoint);
            let Some(record) = coordinator.restore(record) else { continue };
            coordinator.log.put(key);
            let delay = CALL_SPREAD.mul_f64(coordinator.rng.random_range(0.0..1.0));
            let member = coordinator.add_member(key, Some(record), now);
            // A member whose server was away would notice only at its next keepalive: the server calls it.
            if let Some(addr) = called {
                member.handshake_from = Some(Endpoint::udp(addr));
                member.link.start(now + delay);
            }
        }
        coordinator
    }

    /// Takes a stored lease up again. When the network was given other addresses since, the member gets a new one; when
    /// there is none for it, it must be invited again.
    fn restore(&mut self, record: MemberRecord) -> Option<MemberRecord> {
        let key = record.key;
        let restored = self.pool.restore(&record);
        let lease = match restored.map(|()| self.pool.lease(key)) {
            Ok(Some(lease)) => lease,
            Ok(None) | Err(_) => match self.pool.grant(key, &record.name, &mut self.rng) {
                Ok(lease) => lease,
                Err(error) => {
                    self.event(Event::Refused { name: record.name, why: error.to_string() });
                    return None;
                }
            },
        };
        let renewed = MemberRecord { ip4: lease.ip4, ip6: lease.ip6, mac: lease.mac, ..record.clone() };
        if renewed != record {
            self.store(vec![StoreOp::PutMember(renewed.clone())], Pending::Nothing);
        }
        Some(renewed)
    }

    /// The network's row as it is.
    pub fn network(&self) -> NetworkRecord {
        self.issuer.network()
    }

    /// The newest version of the member map.
    pub fn map_version(&self) -> u64 {
        self.log.head()
    }

    /// The server's own key.
    pub fn key(&self) -> PublicKey {
        self.node.identity.public
    }

    /// Sessions by the index that datagrams to us carry.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionIndex, Arc<Session>)> {
        self.members.values().flat_map(|member| member.link.sessions()).map(|s| (s.local_index, s.clone()))
    }

    /// The next thing to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let links = self.members.values().filter_map(|member| member.link.poll_timeout());
        let telling = self.members.values().filter_map(|member| member.telling.map(|(at, _)| at));
        links.chain(telling).chain(self.tell_at).chain([self.epoch_at, self.sweep_at]).min()
    }

    /// Takes what may change while the network runs: who is admitted without a token, rights and pinned addresses by
    /// name. Members whose rights are others now get another certificate, and everybody hears of it; who keeps the old
    /// one has it until it expires.
    ///
    /// # Errors
    /// If the pins do not fit the network. Nothing is changed then.
    pub fn reconfigure(
        &mut self,
        open: bool,
        rights: BTreeMap<String, u8>,
        pins: BTreeMap<String, std::net::Ipv4Addr>,
        now: Instant,
    ) -> Result<(), super::lease::PoolError> {
        self.pool.repin(pins)?;
        (self.settings.open, self.settings.rights) = (open, rights);
        let mut changed = Vec::new();
        for (key, member) in &mut self.members {
            let Some(record) = member.record.as_mut().filter(|_| member.is_stored && !member.is_leaving) else {
                continue;
            };
            let rights = self.settings.rights.get(&record.name).copied().unwrap_or(0);
            if record.rights != rights {
                record.rights = rights;
                changed.push((*key, record.clone()));
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        // If it cannot be stored, the next start gives the same rights again: they come from the configuration.
        let ops = changed.iter().map(|(_, record)| StoreOp::PutMember(record.clone())).collect();
        self.store(ops, Pending::Nothing);
        for (key, record) in changed {
            self.log.put(key);
            let certificate = self.issuer.certify(&record);
            self.tell_one(&key, &Control::Cert(certificate));
        }
        self.tell_soon(now);
        Ok(())
    }

    /// Which subnets members may publish, by name, and the network's own prefixes, which nobody may.
    pub fn approve_routes(&mut self, approvals: Vec<Approval>, own: Vec<ipnet::IpNet>, now: Instant) {
        self.routes.approve(approvals, own, now);
        self.tell_routes(now);
    }

    fn routes_offered(&mut self, key: &PublicKey, offer: (u64, Vec<ipnet::IpNet>), now: Instant) {
        let member = self.members.get(key).filter(|member| member.is_stored && !member.is_leaving);
        let Some(name) = member.and_then(|member| member.record.as_ref()).map(|record| record.name.clone()) else {
            return;
        };
        for (subnet, why) in self.routes.offered(*key, &name, offer, now) {
            self.event(Event::RouteRejected { name: name.clone(), subnet, why });
        }
        self.tell_routes(now);
    }

    fn tell_routes(&mut self, now: Instant) {
        let due = self.routes.due(now);
        if due.is_empty() {
            return;
        }
        let parts = self.routes.parts();
        for key in due {
            parts.iter().for_each(|part| self.tell_one(&key, part));
        }
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.run_links(now);
        if now >= self.epoch_at {
            self.epoch_at = now + EPOCH_LENGTH;
            self.raise_epoch();
        }
        if now >= self.sweep_at {
            self.sweep_at = now + Duration::from_secs(1);
            self.sweep(now);
        }
        if self.tell_at.is_some_and(|at| now >= at) {
            self.tell_at = None;
            let behind: Vec<_> =
                self.members.iter().filter(|(_, m)| m.endpoint.is_some()).map(|(key, _)| *key).collect();
            behind.into_iter().for_each(|key| self.tell(&key, now));
        }
        let due: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.telling.is_some_and(|(at, _)| now >= at))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            self.tell_again(&key, now);
        }
    }

    /// A datagram of the network, with its seal still on.
    ///
    /// # Errors
    ///
    /// Why it was dropped; the caller counts it.
    pub fn handle_datagram(&mut self, from: Endpoint, datagram: &mut [u8], now: Instant) -> Result<(), DropReason> {
        match Kind::of(datagram).ok_or(DropReason::Malformed)? {
            Kind::Ctrl => {
                let header = SealedHeader::parse(datagram)?;
                let Some(session) = self.session(header.receiver) else {
                    self.send(
                        from,
                        Hint { reason: HintReason::NoSession, index: header.receiver, counter: header.counter }
                            .to_bytes()
                            .to_vec(),
                    );
                    return Err(DropReason::UnknownSession);
                };
                let plain = session.open(&header, datagram)?.to_vec();
                self.handle_control(&session, from, &plain, now)
            }
            Kind::Init | Kind::Resp | Kind::Cookie | Kind::Enrol1 | Kind::Enrol3 => {
                self.handle_handshake(from, datagram, now)
            }
            Kind::Hint => {
                let hint = Hint::parse(datagram)?;
                self.handle_hint(hint, now);
                Ok(())
            }
            Kind::Data | Kind::Agg | Kind::Frag | Kind::Relay | Kind::Enrol2 => Err(DropReason::Malformed),
        }
    }

    /// A handshake datagram.
    ///
    /// # Errors
    ///
    /// Why it was dropped; the caller counts it.
    pub fn handle_handshake(&mut self, from: Endpoint, datagram: &[u8], now: Instant) -> Result<(), DropReason> {
        if Kind::of(datagram) == Some(Kind::Cookie) {
            let reply = crate::wire::handshake::CookieReply::parse(datagram)?;
            let key = self.index_of.get(&reply.receiver).copied().ok_or(DropReason::UnknownSession)?;
            let member = self.members.get_mut(&key).ok_or(DropReason::UnknownSession)?;
            return member.link.handle_cookie(&reply, now);
        }
        let view = HandshakeView::parse(datagram)?;
        match view.header.kind {
            Kind::Init => self.handle_init(from, &view, now),
            Kind::Resp => self.handle_resp(from, &view, now),
            Kind::Enrol1 => {
                let answer = self.admission.begin(
                    (&self.node, self.settings.open),
                    from,
                    &view,
                    (now, self.unix(now)),
                    &mut self.rng,
                )?;
                self.send(from, answer);
                Ok(())
            }
            Kind::Enrol3 => {
                if let Some(session) = self.admission.is_repeated(from, &view).and_then(|index| self.session(index)) {
                    let datagram = session.seal_control(&[])?;
                    self.send(from, datagram);
                    return Ok(());
                }
                match self.admission.finish(from, &view, now) {
                    Ok(enrolled) => {
                        self.enrolled(from, enrolled, now);
                        Ok(())
                    }
                    Err(reason) => {
                        // The same answer in the same time for a token that is unknown, used up or expired.
                        let counter = view.header.detail;
                        let hint = Hint { reason: HintReason::EnrolRefused, index: view.header.sender, counter };
                        self.send(from, hint.to_bytes().to_vec());
                        Err(reason)
                    }
                }
            }
            Kind::Data
            | Kind::Ctrl
            | Kind::Agg
            | Kind::Frag
            | Kind::Cookie
            | Kind::Hint
            | Kind::Relay
            | Kind::Enrol2 => Err(DropReason::Malformed),
        }
    }

    fn handle_init(&mut self, from: Endpoint, view: &HandshakeView<'_>, now: Instant) -> Result<(), DropReason> {
        match self.gate.admit(view, Some(from.addr), now, &mut self.rng) {
            Admit::Yes => {}
            Admit::Cookie(reply) => {
                self.send(from, reply.to_bytes().to_vec());
                return Err(DropReason::HandshakeFlood);
            }
            Admit::No(reason) => return Err(reason),
        }
        let incoming = Incoming::read(&self.node, view, &mut self.rng)?;
        let key = incoming.remote();
        if self.members.get(&key).is_none_or(|member| member.record.is_none()) {
            let hint = Hint { reason: HintReason::NotAMember, index: view.header.sender, counter: 0 };
            self.send(from, hint.to_bytes().to_vec());
            return Err(DropReason::UnknownPeer);
        }
        let index = self.fresh_index();
        let member = self.members.get_mut(&key).expect("was just looked up");
        let (answer, session) = member.link.respond(&mut self.node, incoming, index, now)?;
        member.handshake_from = Some(from);
        self.index_of.insert(session.local_index, key);
        self.send(from, answer);
        self.outputs.push_back(Output::SessionsChanged);
        Ok(())
    }

    fn handle_resp(&mut self, from: Endpoint, view: &HandshakeView<'_>, now: Instant) -> Result<(), DropReason> {
        let key = self.index_of.get(&view.header.receiver()).copied().ok_or(DropReason::UnknownSession)?;
        let member = self.members.get_mut(&key).ok_or(DropReason::UnknownSession)?;
        let session = member.link.handle_response(view, now, |_| Ok(()))?;
        self.outputs.push_back(Output::SessionsChanged);
        self.attach(&key, from, now);
        let keepalive = session.seal_control(&[])?;
        self.send(from, keepalive);
        Ok(())
    }

    /// A believable HINT leads to a new handshake.
    pub fn handle_hint(&mut self, hint: Hint, now: Instant) -> bool {
        let keys: Vec<_> = self.keys.values().copied().collect();
        keys.iter().any(|key| {
            self.members.get_mut(key).is_some_and(|member| member.link.handle_hint(hint.index, hint.counter, now))
        })
    }

    fn enrolled(&mut self, from: Endpoint, enrolled: super::admission::Enrolled, now: Instant) {
        let super::admission::Enrolled { key, token, split, suite, local_index, remote_index } = enrolled;
        if !self.members.contains_key(&key) {
            self.add_member(key, None, now);
        }
        let session = self.adopt(&key, &split, suite, (local_index, remote_index), now);
        let member = self.members.get_mut(&key).expect("was just added");
        member.token = token;
        member.handshake_from = Some(from);
        // A first message of ours lets the client know that its token was good.
        if let Ok(datagram) = session.seal_control(&[]) {
            self.send(from, datagram);
        }
    }

    fn adopt(
        &mut self,
        key: &PublicKey,
        split: &Split,
        suite: super::crypto::Suite,
        (local, remote): (SessionIndex, SessionIndex),
        now: Instant,
    ) -> Arc<Session> {
        let member = self.members.get_mut(key).expect("the caller has added it");
        let session = member.link.adopt(split, suite, Capabilities::NONE, local, remote, now);
        self.index_of.insert(local, *key);
        self.outputs.push_back(Output::SessionsChanged);
        session
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
        let Owner::Peer(idx) = session.owner else { return Err(DropReason::UnknownPeer) };
        let key = self.keys.get(&idx).copied().ok_or(DropReason::UnknownPeer)?;
        let messages = Control::decode_list(plain)?;
        if !from.uplink.is_observer() {
            self.heard(&key, session, from, now);
        } else if !messages.iter().all(|message| matches!(message, Control::Nat(NatMessage::Reflect { .. }))) {
            return Err(DropReason::Malformed);
        }
        for message in messages {
            self.handle_message(&key, session, from, message, now);
        }
        Ok(())
    }

    fn heard(&mut self, key: &PublicKey, session: &Arc<Session>, from: Endpoint, now: Instant) {
        let Some(member) = self.members.get_mut(key) else { return };
        member.heard = Some(now);
        if session.confirm() || member.link.session().is_none() {
            member.link.confirm(session.local_index, now);
        }
        if member.endpoint == Some(from) {
            return;
        }
        if member.handshake_from == Some(from) {
            member.handshake_from = None;
            self.attach(key, from, now);
        } else if member.challenge.is_none_or(|(endpoint, _, since)| {
            endpoint != from || now.saturating_duration_since(since) > CHALLENGE_RETRY
        }) {
            // Authentic, but perhaps sent on by somebody from another address: it must answer from there first.
            let challenge = self.rng.next_u64();
            member.challenge = Some((from, challenge, now));
            let probe = Control::Probe { sequence: 0, challenge, sent_us: 0, path: 0, padding: 0 };
            if let Ok(datagram) = session.seal_control(&probe.to_bytes()) {
                self.send(from, datagram);
            }
        }
    }

    fn handle_message(
        &mut self,
        key: &PublicKey,
        session: &Arc<Session>,
        from: Endpoint,
        message: Control,
        now: Instant,
    ) {
        match message {
            Control::LeaseRequest { name } => self.lease(key, session, name, now),
            Control::LeaseRelease => self.release(key, session, from),
            Control::MapHave { version } => self.map_have(key, from, version, now),
            Control::PeerLookup { key: wanted } => self.lookup(key, &wanted),
            Control::Candidates { list, .. } => {
                if let Some(member) = self.members.get_mut(key) {
                    // Where it is seen is for the server to say: peers may send much there.
                    member.candidates = list;
                    member.candidates.retain(|candidate| candidate.kind != CandidateKind::Observed);
                }
            }
            Control::Stats { rx_bytes, tx_bytes, peers } => {
                if let Some(member) = self.members.get_mut(key) {
                    (member.rx_bytes, member.tx_bytes, member.reports) = (rx_bytes, tx_bytes, peers);
                }
            }
            Control::RouteOffer { have, list } => self.routes_offered(key, (have, list), now),
            Control::Goodbye { .. } => self.detach(key, "said goodbye", now),
            Control::Probe { sequence, challenge, sent_us, path, .. } => {
                let reply = Control::ProbeReply { sequence, challenge, sent_us, path, observed: from.addr };
                if let Ok(datagram) = session.seal_control(&reply.to_bytes()) {
                    self.send(from, datagram);
                }
            }
            Control::ProbeReply { challenge, .. } => {
                let Some(member) = self.members.get_mut(key) else { return };
                if member.challenge.is_some_and(|(endpoint, secret, _)| (endpoint, secret) == (from, challenge)) {
                    self.attach(key, from, now);
                }
            }
            Control::Nat(NatMessage::Reflect { nonce }) => {
                let port = self.settings.second_port;
                self.reply(key, session, &Control::Nat(NatMessage::Reflected { nonce, addr: from.addr, port }));
            }
            // What only servers or peers say.
            Control::Nat(_)
            | Control::Revoke(_)
            | Control::Cert(_)
            | Control::PathReport { .. }
            | Control::Broken { .. }
            | Control::LeaseGrant { .. }
            | Control::LeaseRefused { .. }
            | Control::LeaseReleased
            | Control::PeerAnswer { .. }
            | Control::PeerDelta { .. }
            | Control::Moved { .. }
            | Control::RouteTable { .. }
            | Control::Observed { .. }
            | Control::Ping { .. }
            | Control::Pong { .. }
            | Control::WhyAsk { .. }
            | Control::WhySay { .. } => {}
        }
    }

    fn lease(&mut self, key: &PublicKey, session: &Arc<Session>, name: String, now: Instant) {
        let unix = self.unix(now);
        let Some(member) = self.members.get(key).filter(|member| !member.is_leaving) else { return };
        let known = member.record.clone();
        let token = member.token;
        let last_endpoint = member.endpoint.filter(|from| from.uplink != UplinkId::TCP).map(|from| from.addr);
        if self.pending.values().any(|pending| matches!(pending, Pending::Grant { key: waiting, .. } if waiting == key))
        {
            return;
        }
        if let Some(record) = &known
            && record.name == name
        {
            self.grant(key, session);
            return;
        }
        if known.is_none() && !self.settings.open && !token.is_some_and(|token| self.admission.is_valid(token, unix)) {
            self.refuse(key, session, &name, RefusalCode::NotInvited, "the invitation was used by somebody else in the meantime; ask for another one (`eps-actor invite` at the server)".into());
            return;
        }
        let lease = match self.pool.grant(*key, &name, &mut self.rng) {
            Ok(lease) => lease,
            Err(error) => {
                let code = match &error {
                    LeaseError::PoolExhausted { .. } => RefusalCode::PoolExhausted,
                    LeaseError::NameTaken { .. } => RefusalCode::NameTaken,
                    LeaseError::InvalidName { .. } => RefusalCode::InvalidName,
                    _ => RefusalCode::NameTaken,
                };
                self.refuse(key, session, &name, code, error.to_string());
                return;
            }
        };
        let is_new = known.is_none();
        let record = MemberRecord {
            key: *key,
            rights: self.settings.rights.get(&name).copied().unwrap_or(0),
            name,
            mac: lease.mac,
            ip4: lease.ip4,
            ip6: lease.ip6,
            serial: known.as_ref().map_or(self.issuer.next_serial(), |record| record.serial),
            joined_unix: known.as_ref().map_or(unix, |record| record.joined_unix),
            last_endpoint: known.as_ref().and_then(|record| record.last_endpoint).or(last_endpoint),
        };
        let mut ops = vec![StoreOp::PutMember(record.clone())];
        if is_new {
            ops.push(self.issuer.take_serial());
            if let Some(token) = token {
                ops.extend(self.admission.consume(token));
            }
        }
        if let Some(member) = self.members.get_mut(key) {
            member.record = Some(record);
        }
        self.store(ops, Pending::Grant { key: *key, session: session.clone(), is_new });
    }

    fn grant(&mut self, key: &PublicKey, session: &Arc<Session>) {
        let Some(record) = self.members.get(key).and_then(|member| member.record.as_ref()) else { return };
        let message = Control::LeaseGrant {
            certificate: self.issuer.certify(record),
            signer: self.issuer.public(),
            epoch: self.issuer.epoch(),
            name: record.name.clone(),
        };
        self.reply(key, session, &message);
        for object in self.issuer.revocations() {
            self.reply(key, session, &Control::Revoke(object));
        }
    }

    fn refuse(&mut self, key: &PublicKey, session: &Arc<Session>, name: &str, code: RefusalCode, text: String) {
        self.reply(key, session, &Control::LeaseRefused { code, text: text.clone() });
        self.event(Event::Refused { name: name.to_owned(), why: text });
    }

    fn release(&mut self, key: &PublicKey, session: &Arc<Session>, from: Endpoint) {
        // A release is asked for again until it is answered; once is enough.
        if self.pending.values().any(|pending| matches!(pending, Pending::Kick { key: leaving, .. } if leaving == key))
        {
            return;
        }
        let answer = session.seal_control(&Control::LeaseReleased.to_bytes()).ok();
        self.remove(key, None, answer.map(|datagram| (from, datagram)));
    }

    fn map_have(&mut self, key: &PublicKey, from: Endpoint, version: u64, now: Instant) {
        let Some(member) = self.members.get_mut(key) else { return };
        if version < member.have || version > self.log.head() {
            // It has another map than we thought (it restarted, or we did): from the beginning.
            (member.telling, member.on_their_way) = (None, VecDeque::new());
        }
        member.have = version;
        while member.on_their_way.front().is_some_and(|to| *to <= version) {
            member.on_their_way.pop_front();
            // Something arrives: patience anew.
            member.telling = Some((now + DELTA_RETRY, 0));
        }
        if member.on_their_way.is_empty() {
            member.telling = None;
        }
        let placed = Output::Placed { member: member.idx, endpoint: member.endpoint };
        self.outputs.push_back(placed);
        if member.record.is_none() {
            return;
        }
        let observed = Control::Observed { addr: from.addr, head: self.log.head(), epoch: self.issuer.epoch() };
        self.tell_one(key, &observed);
        self.tell(key, now);
    }

    /// Sends what a member lacks of the map and what is not on its way already, a window at a time.
    fn tell(&mut self, key: &PublicKey, now: Instant) {
        let Some(member) = self.members.get(key) else { return };
        if member.endpoint.is_none() || member.record.is_none() {
            return;
        }
        let mut at = member.on_their_way.back().copied().unwrap_or(member.have);
        let mut sent = Vec::new();
        for _ in member.on_their_way.len()..DELTA_WINDOW {
            let Some(delta) = self.log.after(at, DELTA_ENTRIES_MAX) else { break };
            at = delta.to;
            sent.push(delta.to);
            self.tell_delta(key, &delta);
        }
        if let Some(member) = self.members.get_mut(key)
            && !sent.is_empty()
        {
            member.on_their_way.extend(sent);
            member.telling.get_or_insert((now + DELTA_RETRY, 0));
        }
    }

    /// A removal and its revocation go in one datagram, so that nobody forgets a member and lets it in again.
    fn tell_delta(&mut self, key: &PublicKey, delta: &Delta) {
        let mut list = Vec::new();
        for change in &delta.changes {
            if let Change::Removed(removed) = change
                && let Some(revocation) = self.revocations_of.get(removed)
            {
                Control::Revoke(revocation.clone()).encode(&mut list);
            }
        }
        let changes = delta.changes.iter().filter_map(|change| self.map_change(change)).collect();
        let (from, to, reset) = (delta.from, delta.to, delta.reset);
        Control::PeerDelta { from, to, head: self.log.head(), reset, changes }.encode(&mut list);
        let Some((session, endpoint)) =
            self.members.get(key).and_then(|member| member.link.session().cloned().zip(member.endpoint))
        else {
            return;
        };
        if let Ok(datagram) = session.seal_control(&list) {
            self.send(endpoint, datagram);
        }
    }

    fn tell_again(&mut self, key: &PublicKey, now: Instant) {
        let Some(member) = self.members.get_mut(key) else { return };
        let Some((_, tries)) = member.telling.take() else { return };
        member.on_their_way.clear();
        // Its next keepalive says what it has; until then silence.
        if tries < DELTA_TRIES {
            member.telling = Some((now + DELTA_RETRY, tries + 1));
            self.tell(key, now);
        }
    }

    fn map_change(&self, change: &Change) -> Option<MapChange> {
        Some(match change {
            Change::Put(key) => MapChange::Put(self.entry(key)?),
            Change::Removed(key) => MapChange::Remove(*key),
        })
    }

    fn entry(&self, key: &PublicKey) -> Option<MapEntry> {
        let member = self.members.get(key)?;
        let record = member.record.as_ref().filter(|_| member.is_stored)?;
        Some(MapEntry {
            name: record.name.clone(),
            certificate: self.issuer.certify(record),
            online: member.endpoint.is_some(),
        })
    }

    /// Introduces two members: the one who asks gets the other's addresses and a relay channel, and so does the other.
    fn lookup(&mut self, asker: &PublicKey, wanted: &PublicKey) {
        if asker == wanted || self.entry(asker).is_none() || self.entry(wanted).is_none() {
            return;
        }
        let pair = (*asker.min(wanted), *asker.max(wanted));
        if !self.channels.contains_key(&pair) && self.channels.len() < CHANNELS_MAX {
            let tokens = (ChannelToken(self.rng.next_u64()), ChannelToken(self.rng.next_u64()));
            self.channels.insert(pair, tokens);
        }
        let Some(&(low, high)) = self.channels.get(&pair) else { return };
        let (one, other) = (self.members[&pair.0].idx, self.members[&pair.1].idx);
        self.outputs.push_back(Output::Channel { one: (one, low), other: (other, high) });
        let (asker_token, wanted_token) = if pair.0 == *asker { (low, high) } else { (high, low) };
        for (to, about, token, introduced) in [(asker, wanted, asker_token, false), (wanted, asker, wanted_token, true)]
        {
            let Some(entry) = self.entry(about) else { continue };
            let candidates = self.candidates(about);
            self.tell_one(to, &Control::PeerAnswer { entry, introduced, token, candidates });
        }
    }

    /// What a member says of itself, after what we see of it.
    fn candidates(&self, key: &PublicKey) -> Vec<Candidate> {
        let Some(member) = self.members.get(key) else { return Vec::new() };
        let observed = member
            .endpoint
            .filter(|endpoint| endpoint.uplink != UplinkId::TCP)
            .map(|endpoint| Candidate { kind: CandidateKind::Observed, addr: endpoint.addr });
        observed.into_iter().chain(member.candidates.iter().copied()).collect()
    }

    /// Adds an invitation. The reply carries its token.
    pub fn invite(&mut self, request: u64, expires_unix: Option<u64>, uses: Option<u32>) {
        let mut bytes = [0; 16];
        self.rng.fill_bytes(&mut bytes);
        let token = Token::new(bytes);
        let record = TokenRecord { id: token.id(), psk: *token.psk(), expires_unix, uses_left: uses };
        self.admission.add(record.clone());
        self.store(vec![StoreOp::PutToken(record)], Pending::Reply { request, reply: Reply::Invited(bytes) });
    }

    /// Whether an invitation is waiting to be used.
    pub fn has_invitations(&self, now: Instant) -> bool {
        self.admission.has_valid(self.unix(now))
    }

    /// Removes a member by its name: its lease is free again, its certificate void, its peers are told.
    pub fn kick(&mut self, request: u64, name: &str) {
        let found = self
            .members
            .iter()
            .find(|(_, member)| member.record.as_ref().is_some_and(|record| record.name == name))
            .map(|(key, _)| *key);
        match found {
            Some(key) => self.remove(&key, Some(request), None),
            None => {
                let text = format!("there is no member named {name:?}; `eps-actor members` lists them");
                self.outputs.push_back(Output::Reply { request, reply: Reply::Failed(text) });
            }
        }
    }

    fn remove(&mut self, key: &PublicKey, request: Option<u64>, released: Option<(Endpoint, Vec<u8>)>) {
        let Some(record) = self.members.get(key).and_then(|member| member.record.clone()) else { return };
        if let Some(member) = self.members.get_mut(key)
            && std::mem::replace(&mut member.is_leaving, true)
            && request.is_none()
        {
            return;
        }
        let (revocation, mut ops) = self.issuer.revoke(record.serial);
        ops.push(StoreOp::RemoveMember(*key));
        let request = request.unwrap_or(u64::MAX);
        self.store(ops, Pending::Kick { request, key: *key, revocation, released });
    }

    fn removed(&mut self, key: &PublicKey, revocation: Vec<u8>, now: Instant) {
        let everybody: Vec<_> = self.members.keys().copied().collect();
        for to in everybody {
            self.tell_one(&to, &Control::Revoke(revocation.clone()));
        }
        if self.revocations_of.len() >= REVOCATIONS_KEPT {
            self.revocations_of.pop_first();
        }
        self.revocations_of.insert(*key, revocation);
        self.log.remove(*key);
        self.pool.release(*key);
        self.routes.forget(key, now);
        self.tell_routes(now);
        self.tell_soon(now);
        if let Some(mut member) = self.members.remove(key) {
            member.link.close();
            self.keys.remove(&member.idx);
            self.outputs.push_back(Output::Placed { member: member.idx, endpoint: None });
            let name = member.record.map(|record| record.name).unwrap_or_default();
            self.event(Event::Removed { name });
        }
        self.index_of.retain(|_, owner| owner != key);
        self.channels.retain(|(one, other), _| one != key && other != key);
        self.outputs.push_back(Output::SessionsChanged);
    }

    /// The store has made a write durable, or could not.
    pub fn handle_stored(&mut self, id: u64, result: Result<(), String>, now: Instant) {
        let Some(pending) = self.pending.remove(&id) else { return };
        if let Err(why) = &result {
            self.event(Event::StoreFailed { why: why.clone() });
        }
        match (pending, result) {
            (Pending::Grant { key, session, is_new }, Ok(())) => {
                if let Some(member) = self.members.get_mut(&key) {
                    member.is_stored = true;
                }
                self.log.put(key);
                self.tell_soon(now);
                self.grant(&key, &session);
                if let Some(member) = self.members.get(&key)
                    && is_new
                    && let (Some(record), Some(from)) = (&member.record, member.endpoint)
                {
                    let event = Event::Joined { name: record.name.clone(), addr: record.ip4.into(), from };
                    self.event(event);
                }
            }
            (Pending::Grant { key, session, is_new }, Err(why)) => {
                let name = self.members.get(&key).and_then(|m| m.record.as_ref()).map(|r| r.name.clone());
                if is_new {
                    self.pool.release(key);
                    if let Some(member) = self.members.get_mut(&key) {
                        member.record = None;
                        if let Some(token) = member.token {
                            self.admission.give_back(token);
                        }
                    }
                }
                let text = format!("the server cannot store the lease: {why}");
                self.refuse(&key, &session, &name.unwrap_or_default(), RefusalCode::Store, text);
            }
            (Pending::Reply { request, reply }, Ok(())) => self.outputs.push_back(Output::Reply { request, reply }),
            (Pending::Kick { request, key, revocation, released }, Ok(())) => {
                if let Some((to, datagram)) = released {
                    self.send(to, datagram);
                }
                self.removed(&key, revocation, now);
                self.outputs.push_back(Output::Reply { request, reply: Reply::Done });
            }
            (Pending::Kick { request, key, .. }, Err(why)) => {
                if let Some(member) = self.members.get_mut(&key) {
                    member.is_leaving = false;
                }
                self.outputs.push_back(Output::Reply { request, reply: Reply::Failed(why) });
            }
            (Pending::Reply { request, .. }, Err(why)) => {
                self.outputs.push_back(Output::Reply { request, reply: Reply::Failed(why) });
            }
            (Pending::Nothing, _) => {}
        }
    }

    /// Ends the server: everybody connected is told.
    pub fn goodbye(&mut self) {
        let everybody: Vec<_> = self.members.keys().copied().collect();
        for key in everybody {
            self.tell_one(&key, &Control::Goodbye { reason: 0 });
        }
    }

    /// All members with leases, by address.
    pub fn describe(&self, now: Instant) -> Vec<MemberDescription> {
        let mut list: Vec<_> = self
            .members
            .values()
            .filter_map(|member| {
                Some(MemberDescription {
                    record: member.record.clone()?,
                    online: member.endpoint.is_some(),
                    endpoint: member.endpoint,
                    heard_ago: member.heard.map(|heard| now.saturating_duration_since(heard)),
                    attached_for: member.attached.map(|since| now.saturating_duration_since(since)),
                    rx_bytes: member.rx_bytes,
                    tx_bytes: member.tx_bytes,
                    reports: member.reports.clone(),
                    routes: self.routes.routes_of(&member.link.remote()).to_vec(),
                    rejected_routes: self.routes.rejected_of(&member.link.remote()).to_vec(),
                })
            })
            .collect();
        list.sort_by_key(|member| member.record.ip4);
        list
    }

    fn attach(&mut self, key: &PublicKey, from: Endpoint, now: Instant) {
        let Some(member) = self.members.get_mut(key) else { return };
        let before = member.endpoint.replace(from);
        member.heard = Some(now);
        member.attached.get_or_insert(now);
        member.challenge = None;
        let placed = Output::Placed { member: member.idx, endpoint: Some(from) };
        self.outputs.push_back(placed);
        let Some(record) = &mut member.record else { return };
        let name = record.name.clone();
        let write = !member.is_leaving && from.uplink != UplinkId::TCP && record.last_endpoint != Some(from.addr);
        if write {
            record.last_endpoint = Some(from.addr);
        }
        let op = StoreOp::PutMember(record.clone());
        let was_online = std::mem::replace(&mut member.online_told, true);
        if write {
            self.store(vec![op], Pending::Nothing);
        }
        if !was_online {
            self.log.put(*key);
            self.tell_soon(now);
        }
        let event = if before.is_some() { Event::Moved { name, from } } else { Event::Attached { name, from } };
        self.event(event);
    }

    fn detach(&mut self, key: &PublicKey, why: &'static str, now: Instant) {
        let Some(member) = self.members.get_mut(key) else { return };
        if member.endpoint.take().is_none() {
            return;
        }
        member.link.close();
        (member.attached, member.telling, member.online_told) = (None, None, false);
        member.on_their_way.clear();
        member.candidates.clear();
        self.outputs.push_back(Output::Placed { member: member.idx, endpoint: None });
        self.outputs.push_back(Output::SessionsChanged);
        if let Some(name) = member.record.as_ref().map(|record| record.name.clone()) {
            self.log.put(*key);
            self.tell_soon(now);
            self.event(Event::Left { name, why });
        }
    }

    fn sweep(&mut self, now: Instant) {
        let silent: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.endpoint.is_some())
            .filter(|(_, member)| member.heard.is_none_or(|heard| now.saturating_duration_since(heard) > OFFLINE_AFTER))
            .map(|(key, _)| *key)
            .collect();
        silent.iter().for_each(|key| self.detach(key, "not heard for a minute", now));
        let stale: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.record.is_none() && now.saturating_duration_since(member.since) > GUEST_LIFE)
            .map(|(key, _)| *key)
            .collect();
        for key in stale {
            if let Some(mut guest) = self.members.remove(&key) {
                guest.link.close();
                self.keys.remove(&guest.idx);
                self.index_of.retain(|_, owner| *owner != key);
                self.outputs.push_back(Output::SessionsChanged);
            }
        }
        self.members.values().for_each(|member| member.link.mark(now));
        self.admission.sweep(now);
        self.tell_routes(now);
    }

    fn run_links(&mut self, now: Instant) {
        let due: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.link.poll_timeout().is_some_and(|at| now >= at))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            let index = self.fresh_index();
            let member = self.members.get_mut(&key).expect("was just listed");
            let due = member.link.handle_timeout(now, None);
            let calling = member.endpoint.is_none() && now.saturating_duration_since(member.since) < CALL_FOR;
            let to = member.endpoint.or(member.handshake_from.filter(|_| calling));
            if due.changed {
                self.outputs.push_back(Output::SessionsChanged);
            }
            if !due.initiate {
                continue;
            }
            let Some(to) = to else {
                member.link.close();
                continue;
            };
            match member.link.initiate(&mut self.node, index, now, &mut self.rng) {
                Ok(datagram) => {
                    self.index_of.insert(index, key);
                    self.send(to, datagram);
                }
                Err(_) => member.link.close(),
            }
        }
        let Self { index_of, members, .. } = self;
        if index_of.len() > 8 * members.len() + 64 {
            index_of
                .retain(|index, key| members.get(key).is_some_and(|member| member.link.indices().any(|i| i == *index)));
        }
    }

    fn raise_epoch(&mut self) {
        let ops = self.issuer.raise_epoch();
        self.store(ops, Pending::Nothing);
        let online: Vec<_> = self.members.iter().filter(|(_, m)| m.endpoint.is_some()).map(|(key, _)| *key).collect();
        for key in online {
            let certificate = self.members[&key].record.as_ref().map(|record| self.issuer.certify(record));
            if let Some(certificate) = certificate {
                self.tell_one(&key, &Control::Cert(certificate));
            }
        }
    }

    fn add_member(&mut self, key: PublicKey, record: Option<MemberRecord>, now: Instant) -> &mut Member {
        let idx = PeerIdx(self.next_idx);
        self.next_idx += 1;
        self.keys.insert(idx, key);
        let link = Link::new(Owner::Peer(idx), key, &self.node, Arc::default(), false);
        self.members.entry(key).or_insert(Member {
            idx,
            link,
            is_stored: record.is_some(),
            is_leaving: false,
            record,
            token: None,
            since: now,
            endpoint: None,
            attached: None,
            heard: None,
            handshake_from: None,
            challenge: None,
            candidates: Vec::new(),
            have: 0,
            telling: None,
            on_their_way: VecDeque::new(),
            online_told: false,
            rx_bytes: 0,
            tx_bytes: 0,
            reports: Vec::new(),
        })
    }

    fn session(&self, index: SessionIndex) -> Option<Arc<Session>> {
        let member = self.members.get(self.index_of.get(&index)?)?;
        member.link.sessions().find(|session| session.local_index == index).cloned()
    }

    fn fresh_index(&mut self) -> SessionIndex {
        loop {
            let index = SessionIndex::for_peer(self.rng.next_u32());
            if !self.index_of.contains_key(&index) && !self.admission.has_index(index) {
                return index;
            }
        }
    }

    fn tell_soon(&mut self, now: Instant) {
        self.tell_at.get_or_insert(now + COALESCE);
    }

    /// Sends a message to a member that is connected.
    fn tell_one(&mut self, key: &PublicKey, message: &Control) {
        let Some(member) = self.members.get(key) else { return };
        let Some(session) = member.link.session().cloned() else { return };
        self.reply(key, &session, message);
    }

    fn reply(&mut self, key: &PublicKey, session: &Arc<Session>, message: &Control) {
        let Some(to) = self.members.get(key).and_then(|member| member.endpoint.or(member.handshake_from)) else {
            return;
        };
        if let Ok(datagram) = session.seal_control(&message.to_bytes()) {
            self.send(to, datagram);
        }
    }

    fn store(&mut self, ops: Vec<StoreOp>, pending: Pending) {
        let id = self.next_write;
        self.next_write += 1;
        self.pending.insert(id, pending);
        self.outputs.push_back(Output::Store { id, ops });
    }

    fn send(&mut self, to: Endpoint, datagram: Vec<u8>) {
        self.outputs.push_back(Output::Send { to, datagram });
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn unix(&self, now: Instant) -> u64 {
        self.clock.1 + now.saturating_duration_since(self.clock.0).as_secs()
    }
}
