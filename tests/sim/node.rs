//! Nodes: real cores, joined as the actors join them, with an in-memory disk and a TAP that only remembers.
//!
//! A node takes an input with the time and leaves its effects in a queue. It decides nothing that a core decides.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eps_actor::counters::DropReason;
use eps_actor::ids::{ChannelToken, Endpoint, MacAddr, NetworkId, PeerIdx, PublicKey, Route, SessionIndex, UplinkId};
use eps_actor::proto::asking::{Answer, Question};
use eps_actor::proto::coordinator::{self, Coordinator, Settings};
use eps_actor::proto::crypto::{Signer, Suites, Trust};
use eps_actor::proto::fdb::Fdb;
use eps_actor::proto::forward::{self, Egress, EgressFacts, Ingress};
use eps_actor::proto::lease::{Order, Pool, PoolConfig};
use eps_actor::proto::link::{Node, no_psk};
use eps_actor::proto::map::MemberMap;
use eps_actor::proto::nat::NatReport;
use eps_actor::proto::noise::Identity;
use eps_actor::proto::peers::{self, PeerDescription, Peers, credentials};
use eps_actor::proto::punch::SPRAY_OPEN;
use eps_actor::proto::records::{MemberRecord, NetworkRecord, StoreOp, StoredState};
use eps_actor::proto::server_link::{self, Pinned, Refusal, ServerLink};
use eps_actor::proto::session::{Epoch, Owner, Session};
use eps_actor::view::FdbView;
use eps_actor::wire::cert::{CERT_LEN, Certificate};
use eps_actor::wire::control::{Candidate, CandidateKind};
use eps_actor::wire::ethernet::FrameView;
use eps_actor::wire::handshake::{Hint, HintReason};
use eps_actor::wire::header::{HEADER_LEN, Kind, SealedHeader};
use eps_actor::wire::join::{Token, fingerprint};
use eps_actor::wire::relay;
use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use zeroize::Zeroizing;

/// Frames kept for a peer that has no session yet.
const STAGED_MAX: usize = 256;
/// Every test frame holds this; no datagram on the wire may.
pub const MARKER: &[u8; 16] = b"PLAINTEXT-MARKER";
/// IEEE 802's first EtherType for experiments.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// What a node did.
#[derive(Debug)]
pub enum Effect {
    /// From one of the host's sockets, see [`Net`](super::net::Net).
    Send {
        socket: u16,
        to: SocketAddr,
        datagram: Vec<u8>,
    },
    /// To the TAP.
    Deliver(Vec<u8>),
    /// The client holds this lease.
    Granted(Box<Certificate>),
    Refused(Refusal),
    /// The write is to be made durable.
    Store {
        id: u64,
        ops: Vec<StoreOp>,
    },
    Reply {
        request: u64,
        reply: coordinator::Reply,
    },
    HintBelieved,
    Note(String),
}

/// A test frame: `number` names it.
pub fn frame(dst: MacAddr, src: MacAddr, number: u64) -> Vec<u8> {
    let mut frame = [&dst.0[..], &src.0[..], &ETHERTYPE[..], &MARKER[..], &number.to_le_bytes()[..]].concat();
    frame.resize(60, 0);
    frame
}

/// The number of a test frame.
pub fn number_of(frame: &[u8]) -> u64 {
    u64::from_le_bytes(frame[30..38].try_into().expect("test frames have 60 bytes"))
}

fn seed(rng: &mut StdRng) -> [u8; 32] {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    seed
}

fn identity(secret: &[u8; 32]) -> Identity {
    Identity::from_secret(Zeroizing::new(*secret))
}

// --- the client ----------------------------------------------------------------------------------------------------

/// What a client keeps over a crash.
#[derive(Default)]
pub struct ClientDisk {
    boot: u64,
    pinned: Option<Pinned>,
    certificate: Option<[u8; CERT_LEN]>,
    epoch: u64,
    map: Option<Vec<u8>>,
}

pub struct Client {
    pub name: String,
    secret: [u8; 32],
    pub key: PublicKey,
    server: Endpoint,
    server_key: PublicKey,
    pub token: Option<Token>,
    pub direct: bool,
    pub disk: ClientDisk,
    pub run: Option<Run>,
    /// It was told to stay away; the program has ended.
    pub refused: Option<Refusal>,
    /// Answers of peers to what was asked.
    pub told: BTreeMap<u64, Answer>,
}

/// One life of a client's process.
pub struct Run {
    pub link: ServerLink,
    pub peers: Option<Peers>,
    fdb: Fdb,
    view: FdbView,
    members: BTreeMap<PeerIdx, PeerDescription>,
    sessions: BTreeMap<SessionIndex, Arc<Session>>,
    staged: BTreeMap<PeerIdx, VecDeque<Vec<u8>>>,
    pub own: Option<Certificate>,
    pub epoch: Epoch,
    host: SocketAddr,
    observed: Option<SocketAddr>,
    pub nat: NatReport,
    pub attached_at: Option<Instant>,
    pub drops: BTreeMap<DropReason, u64>,
    dirty: bool,
    hints: (Option<Instant>, u32),
    /// Sockets used beside the first one, by number.
    sockets: u16,
    /// The first of those that wait for a hole, until when, and for whom.
    waiting: Option<(u16, Instant, PeerIdx)>,
    /// Those that found one: the socket, and the number of the uplink that it became.
    pub punched: Vec<(u16, UplinkId)>,
}

impl Client {
    pub fn new(name: &str, server: SocketAddr, server_key: PublicKey, token: Option<Token>, rng: &mut StdRng) -> Self {
        let secret = seed(rng);
        let key = identity(&secret).public;
        Self {
            name: name.to_owned(),
            secret,
            key,
            server: Endpoint::udp(server),
            server_key,
            token,
            direct: true,
            disk: ClientDisk::default(),
            run: None,
            refused: None,
            told: BTreeMap::new(),
        }
    }

    /// Starts the program with what is on disk.
    pub fn start(&mut self, host: SocketAddr, now: Instant, rng: &mut StdRng) {
        self.disk.boot += 1;
        self.refused = None;
        let mut node = self.node();
        node.certificate = self.disk.certificate.unwrap_or([0; CERT_LEN]);
        let join = server_link::join(fingerprint(&self.server_key), self.token.as_ref());
        let mut link = ServerLink::new(node, self.name.clone(), self.disk.pinned, Some(join), now, seed(rng));
        link.set_servers(vec![self.server], now);
        link.set_candidates(vec![Candidate { kind: CandidateKind::Host, addr: host }]);
        let mut run = Run {
            link,
            peers: None,
            fdb: Fdb::new(now),
            view: FdbView::empty(now),
            members: BTreeMap::new(),
            sessions: BTreeMap::new(),
            staged: BTreeMap::new(),
            own: None,
            epoch: Epoch(now),
            host,
            observed: None,
            nat: NatReport::default(),
            attached_at: None,
            drops: BTreeMap::new(),
            dirty: true,
            hints: (None, 0),
            sockets: 1000,
            waiting: None,
            punched: Vec::new(),
        };
        // A client that was pinned and stopped before it had its lease has no certificate yet.
        if let Some(pinned) = self.disk.pinned {
            let peers = self.make_peers(pinned, run.epoch, now, rng);
            run.peers = Some(peers);
        }
        if let Some(certificate) = self.disk.certificate {
            run.leased(certificate);
        }
        run.publish();
        self.run = Some(run);
    }

    fn node(&self) -> Node {
        let network = self.disk.pinned.map_or(NetworkId(0), |pinned| pinned.network);
        Node::new(identity(&self.secret), network, no_psk(), Suites(0b1010), self.disk.boot)
    }

    fn make_peers(&self, pinned: Pinned, epoch: Epoch, now: Instant, rng: &mut StdRng) -> Peers {
        let mut trust = Trust::new(pinned.network, pinned.signer, self.disk.epoch);
        let map = self.disk.map.as_ref().and_then(|bytes| MemberMap::load(bytes, &mut trust)).unwrap_or_default();
        let mut node = self.node();
        node.network = pinned.network;
        Peers::new(node, trust, map, self.direct, epoch, now, seed(rng))
    }

    pub fn crash(&mut self) {
        self.run = None;
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let run = self.run.as_ref()?;
        let peers = run.peers.as_ref().and_then(Peers::poll_timeout);
        [run.link.poll_timeout(), peers, run.fdb.poll_timeout()].into_iter().flatten().min()
    }

    pub fn handle_timeout(&mut self, now: Instant, rng: &mut StdRng, out: &mut VecDeque<Effect>) {
        let Some(run) = &mut self.run else { return };
        run.link.handle_timeout(now);
        if let Some(peers) = &mut run.peers {
            peers.handle_timeout(now);
        }
        run.fdb.handle_timeout(now);
        self.drain(now, rng, out);
    }

    /// It is told that it has another address.
    pub fn moved(&mut self, host: SocketAddr, now: Instant, rng: &mut StdRng, out: &mut VecDeque<Effect>) {
        let Some(run) = &mut self.run else { return };
        (run.host, run.observed) = (host, None);
        run.link.set_candidates(vec![Candidate { kind: CandidateKind::Host, addr: host }]);
        run.say_candidates(now);
        run.link.uplinks_changed(now);
        self.drain(now, rng, out);
        if let Some(peers) = self.run.as_mut().and_then(|run| run.peers.as_mut()) {
            peers.uplinks_changed(true, now);
        }
        self.drain(now, rng, out);
    }

    /// A datagram from the socket.
    pub fn receive(
        &mut self,
        (from, socket): (SocketAddr, u16),
        mut datagram: Vec<u8>,
        now: Instant,
        rng: &mut StdRng,
        out: &mut VecDeque<Effect>,
    ) {
        let server = self.server;
        let Some(run) = &mut self.run else { return };
        let Some(uplink) = run.uplink_of(socket, &datagram, now) else { return };
        let from = Endpoint { uplink, addr: from };
        if let Err(reason) = run.receive(from, server, &mut datagram, now, out) {
            *run.drops.entry(reason).or_default() += 1;
        }
        self.drain(now, rng, out);
    }

    /// A frame from the TAP.
    pub fn egress(&mut self, frame: &[u8], now: Instant, rng: &mut StdRng, out: &mut VecDeque<Effect>) {
        let Some(run) = &mut self.run else { return };
        run.egress(frame, now, out);
        self.drain(now, rng, out);
    }

    /// Somebody asks a peer something.
    pub fn ask(
        &mut self,
        (idx, question, id, end): (PeerIdx, Question, u64, Instant),
        now: Instant,
        rng: &mut StdRng,
        out: &mut VecDeque<Effect>,
    ) {
        if let Some(peers) = self.run.as_mut().and_then(|run| run.peers.as_mut()) {
            peers.ask(idx, question, id, end, now);
        }
        self.drain(now, rng, out);
    }

    pub fn goodbye(&mut self, now: Instant, rng: &mut StdRng, out: &mut VecDeque<Effect>) {
        let Some(run) = &mut self.run else { return };
        if let Some(peers) = &mut run.peers {
            peers.goodbye();
        }
        run.link.goodbye();
        self.drain(now, rng, out);
        self.run = None;
    }

    /// Carries what one core says to the other, until both are silent.
    pub fn drain(&mut self, now: Instant, rng: &mut StdRng, out: &mut VecDeque<Effect>) {
        for _ in 0..10_000 {
            let Some(run) = &mut self.run else { return };
            if let Some(output) = run.link.poll_output() {
                self.link_output(output, now, rng, out);
            } else if let Some(output) = run.peers.as_mut().and_then(Peers::poll_output) {
                self.peers_output(output, now, out);
            } else {
                run.publish();
                return;
            }
        }
        panic!("{}: the cores do not fall silent", self.name);
    }

    fn link_output(&mut self, output: server_link::Output, now: Instant, rng: &mut StdRng, out: &mut VecDeque<Effect>) {
        use server_link::Output;
        let Some(run) = &mut self.run else { return };
        match output {
            Output::Send { to, datagram } => out.push_back(Effect::Send { socket: 0, to: to.addr, datagram }),
            Output::SendFresh { to, datagram } => {
                run.sockets += 1;
                out.push_back(Effect::Send { socket: run.sockets, to: to.addr, datagram });
            }
            Output::Nat(report) => {
                out.push_back(Effect::Note(format!("{report:?}")));
                run.nat = report;
                if let Some(peers) = &mut run.peers {
                    peers.set_nat(run.nat.clone());
                }
                run.say_candidates(now);
            }
            Output::SessionsChanged => run.dirty = true,
            Output::Pinned(pinned) => {
                self.disk.pinned = Some(pinned);
                let epoch = run.epoch;
                let peers = self.make_peers(pinned, epoch, now, rng);
                let Some(run) = &mut self.run else { return };
                run.peers = Some(peers);
                if let Some(peers) = &mut run.peers {
                    peers.set_nat(run.nat.clone());
                }
                run.say_candidates(now);
            }
            Output::Leased { certificate, .. } => {
                self.disk.certificate = Some(certificate);
                run.leased(certificate);
                run.link.set_map_version(run.peers.as_ref().map_or(0, Peers::map_version));
                run.say_candidates(now);
                if let Some(own) = &run.own {
                    out.push_back(Effect::Granted(Box::new(own.clone())));
                }
            }
            Output::Attached(endpoint) => {
                run.attached_at = Some(now);
                if let Some(peers) = &mut run.peers {
                    peers.set_server(Some(endpoint), now);
                }
                out.push_back(Effect::Note("attached".into()));
            }
            Output::Detached => {
                run.attached_at = None;
                if let Some(peers) = &mut run.peers {
                    peers.set_server(None, now);
                }
                out.push_back(Effect::Note("detached".into()));
            }
            // There is no TCP here.
            Output::Connect(_) | Output::Suspected => {}
            Output::Passed(message) => {
                if let Some(peers) = &mut run.peers {
                    peers.handle_server(message, now);
                }
            }
            Output::Observed(addr) => {
                run.observed = Some(addr);
                run.say_candidates(now);
            }
            Output::Refused(refusal) => {
                self.refused = Some(refusal.clone());
                self.run = None;
                out.push_back(Effect::Refused(refusal));
            }
            Output::Released => out.push_back(Effect::Note("released".into())),
        }
    }

    fn peers_output(&mut self, output: peers::Output, now: Instant, out: &mut VecDeque<Effect>) {
        use peers::Output;
        let Some(run) = &mut self.run else { return };
        match output {
            Output::Send { route, datagram } | Output::SendUnfragmented { route, datagram } => {
                out.push_back(run.send(route, datagram));
            }
            Output::OpenSockets { peer, to, datagrams } => {
                run.waiting = Some((run.sockets + 1, now + SPRAY_OPEN, peer));
                for datagram in datagrams {
                    run.sockets += 1;
                    out.push_back(Effect::Send { socket: run.sockets, to, datagram });
                }
            }
            Output::ToServer(message) => run.link.say(&message),
            Output::Changed => run.dirty = true,
            Output::Ready(idx) => {
                run.publish();
                run.flush(idx, now, out);
            }
            Output::Unreachable(idx) => {
                let lost = run.staged.remove(&idx).map_or(0, |frames| frames.len());
                *run.drops.entry(DropReason::Unreachable).or_default() += lost as u64;
            }
            Output::MapAt(version) => run.link.set_map_version(version),
            Output::Dropped(reason) => *run.drops.entry(reason).or_default() += 1,
            Output::Save => {
                if let Some(peers) = &run.peers {
                    self.disk.map = Some(peers.save());
                    self.disk.epoch = peers.network_epoch();
                }
            }
            Output::Answered { id, answer } => {
                out.push_back(Effect::Note(format!("question {id}: {answer:?}")));
                self.told.insert(id, answer);
            }
            Output::Asked { peer, nonce } => {
                if let Some(peers) = &mut run.peers
                    && let Some(side) = peers.account(peer)
                {
                    peers.tell_account(peer, nonce, side);
                }
            }
            Output::Event(event) => out.push_back(Effect::Note(format!("{event:?}"))),
        }
    }
}

impl Run {
    fn leased(&mut self, certificate: [u8; CERT_LEN]) {
        self.link.set_certificate(certificate);
        if let Some(peers) = &mut self.peers {
            peers.set_certificate(certificate);
        }
        self.own = Certificate::parse(&certificate).ok();
        if let Some(own) = &self.own {
            self.fdb.set_own(own.mac);
            self.dirty = true;
        }
    }

    fn say_candidates(&mut self, now: Instant) {
        let host = Candidate { kind: CandidateKind::Host, addr: self.host };
        let observed = self.observed.filter(|addr| *addr != self.host);
        let observed = observed.map(|addr| Candidate { kind: CandidateKind::Observed, addr });
        let predicted = self.nat.predicted.map(|addr| Candidate { kind: CandidateKind::Predicted, addr });
        if let Some(peers) = &mut self.peers {
            peers.set_candidates([host].into_iter().chain(observed).chain(predicted).collect(), now);
        }
    }

    /// By which uplink a datagram came; `None` at a socket that is closed. Who opens a session through one that waits
    /// makes it an uplink, as the actor does.
    fn uplink_of(&mut self, socket: u16, datagram: &[u8], now: Instant) -> Option<UplinkId> {
        if socket == 0 {
            return Some(UplinkId::UDP4);
        }
        if let Some((_, uplink)) = self.punched.iter().find(|(punched, _)| *punched == socket) {
            return Some(*uplink);
        }
        let (first, until, peer) = self.waiting?;
        let header = SealedHeader::parse(datagram).ok().filter(|header| header.kind == Kind::Ctrl)?;
        let is_theirs = self.sessions.get(&header.receiver).is_some_and(|s| s.owner == Owner::Peer(peer));
        if socket < first || now > until || !is_theirs {
            return None;
        }
        self.waiting = None;
        let uplink = UplinkId(UplinkId::PUNCHED.start() + self.punched.len() as u8);
        self.punched.push((socket, uplink));
        Some(uplink)
    }

    fn send(&self, route: Route, datagram: Vec<u8>) -> Effect {
        let punched = self.punched.iter().find(|(_, uplink)| *uplink == route.endpoint.uplink);
        match Effect::send(route, datagram) {
            Effect::Send { to, datagram, .. } => {
                Effect::Send { socket: punched.map_or(0, |(socket, _)| *socket), to, datagram }
            }
            other => other,
        }
    }

    /// What the data path reads.
    fn publish(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        let described = self.peers.as_ref().map(Peers::describe).unwrap_or_default();
        self.fdb.set_members(described.iter().map(|peer| (peer.certificate.mac, peer.idx)));
        self.view = self.fdb.view();
        self.members = described.into_iter().map(|peer| (peer.idx, peer)).collect();
        let sessions = self.peers.iter().flat_map(Peers::sessions).chain(self.link.sessions());
        self.sessions = sessions.map(|session| (session.local_index, session)).collect();
    }

    fn egress(&mut self, frame: &[u8], now: Instant, out: &mut VecDeque<Effect>) {
        let (Some(own), Ok(view)) = (&self.own, FrameView::parse(frame)) else { return };
        let facts = EgressFacts { own_mac: own.mac, is_bridge: false, has_bridges: false };
        match forward::egress(&view, &self.view, &facts) {
            Egress::Unicast(idx) => self.transmit(idx, frame.to_vec(), now, out),
            Egress::Flood => {
                let everybody: Vec<_> = self.members.keys().copied().collect();
                everybody.into_iter().for_each(|idx| self.transmit(idx, frame.to_vec(), now, out));
            }
            Egress::FloodBridges => {}
            Egress::Drop(reason) => *self.drops.entry(reason).or_default() += 1,
        }
    }

    /// Seals a frame for a peer, or keeps it until there is a way.
    fn transmit(&mut self, idx: PeerIdx, frame: Vec<u8>, now: Instant, out: &mut VecDeque<Effect>) {
        let member = self.members.get(&idx);
        if let Some((session, route)) = member.and_then(|member| member.session.as_ref().zip(member.route)) {
            let mut datagram = vec![0; Session::sealed_len(frame.len(), usize::MAX)];
            datagram[HEADER_LEN..HEADER_LEN + frame.len()].copy_from_slice(&frame);
            if session.seal_frame(false, &mut datagram, frame.len()).is_ok() {
                // What the data path counts.
                member.iter().flat_map(|member| &member.paths).filter(|path| path.route == route).for_each(|path| {
                    path.meter.sent(1, datagram.len() as u64);
                });
                session.meter.transmitted(1, frame.len() as u64, self.epoch.ms(now));
                out.push_back(self.send(route, datagram));
                return;
            }
        }
        let staged = self.staged.entry(idx).or_default();
        staged.push_back(frame);
        if staged.len() > STAGED_MAX {
            staged.pop_front();
            *self.drops.entry(DropReason::StagedOverflow).or_default() += 1;
        }
        if let Some(peers) = &mut self.peers {
            peers.want(idx, now);
        }
    }

    fn flush(&mut self, idx: PeerIdx, now: Instant, out: &mut VecDeque<Effect>) {
        let usable = self.members.get(&idx).is_some_and(|member| member.session.is_some() && member.route.is_some());
        if usable && let Some(frames) = self.staged.remove(&idx) {
            frames.into_iter().for_each(|frame| self.transmit(idx, frame, now, out));
        }
    }

    fn receive(
        &mut self,
        from: Endpoint,
        server: Endpoint,
        datagram: &mut [u8],
        now: Instant,
        out: &mut VecDeque<Effect>,
    ) -> Result<(), DropReason> {
        let (route, datagram) = match Kind::of(datagram) {
            Some(Kind::Relay) => {
                let token = relay::parse(datagram)?;
                if from != server {
                    return Err(DropReason::BadChannel);
                }
                (Route::relayed(from, token), &mut datagram[HEADER_LEN..])
            }
            _ => (Route::direct(from), datagram),
        };
        let by_server = route == Route::direct(server);
        match Kind::of(datagram).ok_or(DropReason::Malformed)? {
            Kind::Data => self.ingress(route, datagram, now, out),
            Kind::Ctrl => {
                let header = SealedHeader::parse(datagram)?;
                if !self.sessions.contains_key(&header.receiver) {
                    self.hint(route, &header, now, out);
                    return Err(DropReason::UnknownSession);
                }
                if header.receiver.is_server() {
                    self.link.handle_datagram(from, datagram, now)
                } else {
                    self.peers.as_mut().ok_or(DropReason::UnknownPeer)?.handle_datagram(route, datagram, now)
                }
            }
            Kind::Resp | Kind::Cookie => {
                let index = if Kind::of(datagram) == Some(Kind::Resp) { 8 } else { 4 };
                let index = datagram.get(index..index + 4).ok_or(DropReason::Malformed)?;
                let index = SessionIndex(u32::from_le_bytes(index.try_into().expect("four bytes")));
                if index.is_server() {
                    self.link.handle_handshake(from, datagram, now)
                } else {
                    self.peers.as_mut().ok_or(DropReason::UnknownPeer)?.handle_handshake(route, datagram, now)
                }
            }
            Kind::Init | Kind::Hint if by_server => self.link.handle_handshake(from, datagram, now),
            kind @ (Kind::Init | Kind::Hint) => {
                let handled =
                    self.peers.as_mut().ok_or(DropReason::UnknownPeer)?.handle_handshake(route, datagram, now);
                if kind == Kind::Hint && handled.is_ok() {
                    out.push_back(Effect::HintBelieved);
                }
                handled
            }
            Kind::Enrol2 => self.link.handle_handshake(from, datagram, now),
            Kind::Agg | Kind::Frag | Kind::Relay | Kind::Enrol1 | Kind::Enrol3 => Err(DropReason::Malformed),
        }
    }

    fn ingress(
        &mut self,
        route: Route,
        datagram: &mut [u8],
        now: Instant,
        out: &mut VecDeque<Effect>,
    ) -> Result<(), DropReason> {
        let header = SealedHeader::parse(datagram)?;
        let Some(session) = self.sessions.get(&header.receiver).cloned() else {
            self.hint(route, &header, now, out);
            return Err(DropReason::UnknownSession);
        };
        let frame = session.open(&header, datagram)?.to_vec();
        session.meter.received(1, frame.len() as u64, self.epoch.ms(now));
        let Some(peers) = &mut self.peers else { return Err(DropReason::UnknownPeer) };
        if session.confirm() {
            peers.confirmed(&session, route, now);
        }
        let eps_actor::proto::session::Owner::Peer(idx) = session.owner else { return Err(DropReason::Malformed) };
        let member = self.members.get(&idx).ok_or(DropReason::UnknownPeer)?;
        if let Some(path) = member.paths.iter().find(|path| path.route == route) {
            path.meter.came(1, frame.len() as u64);
            path.meter.heard(self.epoch.ms(now));
        }
        if member.route != Some(route) {
            peers.seen_from(idx, route, now);
        }
        let view = FrameView::parse(&frame)?;
        match forward::ingress(&view, idx, &credentials(&member.certificate), &self.view, now) {
            Ingress::Accept { .. } => {
                out.push_back(Effect::Deliver(frame));
                Ok(())
            }
            Ingress::Drop(reason) => Err(reason),
        }
    }

    /// "I have no such session", ten a second at the most.
    fn hint(&mut self, route: Route, header: &SealedHeader, now: Instant, out: &mut VecDeque<Effect>) {
        if self.hints.0.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            self.hints = (Some(now), 0);
        }
        self.hints.1 += 1;
        if self.hints.1 <= 10 {
            let hint = Hint { reason: HintReason::NoSession, index: header.receiver, counter: header.counter };
            out.push_back(self.send(route, hint.to_bytes().to_vec()));
        }
    }

    pub fn members(&self) -> impl Iterator<Item = &PeerDescription> {
        self.members.values()
    }
}

impl Effect {
    fn send(route: Route, datagram: Vec<u8>) -> Self {
        let datagram = match route.relay {
            Some(token) => [&relay::header(token)[..], &datagram].concat(),
            None => datagram,
        };
        Self::Send { socket: 0, to: route.endpoint.addr, datagram }
    }
}

// --- the server ----------------------------------------------------------------------------------------------------

/// The store's tables, with the unique columns a database would have.
#[derive(Default)]
pub struct Disk {
    pub state: StoredState,
}

impl Disk {
    /// One transaction.
    pub fn apply(&mut self, ops: &[StoreOp]) -> Result<(), String> {
        for op in ops {
            match op.clone() {
                StoreOp::PutNetwork(network) => self.state.network = Some(network),
                StoreOp::PutMember(record) => {
                    self.state.members.retain(|member| member.key != record.key);
                    self.unique(&record)?;
                    self.state.members.push(record);
                }
                StoreOp::RemoveMember(key) => self.state.members.retain(|member| member.key != key),
                StoreOp::PutToken(token) => {
                    self.state.tokens.retain(|known| known.id != token.id);
                    self.state.tokens.push(token);
                }
                StoreOp::RemoveToken(id) => self.state.tokens.retain(|token| token.id != id),
                StoreOp::PutRevoked(revoked) => {
                    self.state.revoked.retain(|known| known.serial != revoked.serial);
                    self.state.revoked.push(revoked);
                }
                StoreOp::RemoveRevoked(serial) => self.state.revoked.retain(|revoked| revoked.serial != serial),
            }
        }
        Ok(())
    }

    fn unique(&self, record: &MemberRecord) -> Result<(), String> {
        let same = |member: &&MemberRecord| {
            member.ip4 == record.ip4
                || member.mac == record.mac
                || member.name == record.name
                || (member.ip6.is_some() && member.ip6 == record.ip6)
        };
        match self.state.members.iter().find(same) {
            Some(member) => Err(format!("two members hold one address, MAC or name: {member:?} and {record:?}")),
            None => Ok(()),
        }
    }
}

pub struct Server {
    secret: [u8; 32],
    signer: [u8; 32],
    pub key: PublicKey,
    pub open: bool,
    /// 0 for none.
    pub second_port: u16,
    pub disk: Disk,
    pub run: Option<ServerRun>,
}

/// One life of the server's process.
pub struct ServerRun {
    pub core: Coordinator,
    /// Whose leg a token is, and the other leg.
    legs: BTreeMap<ChannelToken, (PeerIdx, PeerIdx, ChannelToken)>,
    placed: BTreeMap<PeerIdx, Endpoint>,
}

impl Server {
    pub fn new(open: bool, rng: &mut StdRng) -> Self {
        let (secret, signer) = (seed(rng), seed(rng));
        let network = NetworkRecord { id: NetworkId(rng.next_u64()), version: 0, epoch: 1, next_serial: 1, boots: 0 };
        let state = StoredState { network: Some(network), ..StoredState::default() };
        Self {
            secret,
            signer,
            key: identity(&secret).public,
            open,
            second_port: super::PORT + 1,
            disk: Disk { state },
            run: None,
        }
    }

    pub fn start(&mut self, now: Instant, rng: &mut StdRng) {
        let mut network = self.disk.state.network.expect("written at the first start");
        network.boots += 1;
        self.disk.state.network = Some(network);
        let node = Node::new(identity(&self.secret), network.id, no_psk(), Suites(0b1010), network.boots);
        let pool = Pool::new(PoolConfig {
            network: "192.168.43.0/24".parse().expect("a network"),
            network6: Some("fd00:43::/64".parse().expect("a network")),
            order: if rng.random_bool(0.5) { Order::Random } else { Order::Sequential },
            pins: BTreeMap::new(),
            network_id: network.id,
        });
        let pool = pool.expect("the pool's settings are good");
        let settings = Settings {
            open: self.open,
            rights: BTreeMap::new(),
            prefix4: 24,
            prefix6: 64,
            second_port: self.second_port,
        };
        let signer = Signer::from_seed(&Zeroizing::new(self.signer));
        let parts = (node, signer, pool, settings);
        let core = Coordinator::new(parts, network, self.disk.state.clone(), (now, 1_700_000_000), seed(rng));
        self.run = Some(ServerRun { core, legs: BTreeMap::new(), placed: BTreeMap::new() });
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.run.as_ref()?.core.poll_timeout()
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut VecDeque<Effect>) {
        if let Some(run) = &mut self.run {
            run.core.handle_timeout(now);
            run.drain(out);
        }
    }

    pub fn receive(
        &mut self,
        (from, socket): (SocketAddr, u16),
        mut datagram: Vec<u8>,
        now: Instant,
        out: &mut VecDeque<Effect>,
    ) {
        let Some(run) = &mut self.run else { return };
        let uplink = if socket == 0 { UplinkId::UDP4 } else { UplinkId::OBSERVER4 };
        let from = Endpoint { uplink, addr: from };
        if Kind::of(&datagram) == Some(Kind::Relay) {
            run.relay(from, datagram, out);
        } else {
            // Why it was dropped is in the counters of a real server.
            let _ = run.core.handle_datagram(from, &mut datagram, now);
        }
        run.drain(out);
    }

    pub fn handle_stored(&mut self, id: u64, now: Instant, out: &mut VecDeque<Effect>) {
        if let Some(run) = &mut self.run {
            run.core.handle_stored(id, Ok(()), now);
            run.drain(out);
        }
    }

    /// A command of the operator.
    pub fn command(&mut self, out: &mut VecDeque<Effect>, command: impl FnOnce(&mut Coordinator)) {
        if let Some(run) = &mut self.run {
            command(&mut run.core);
            run.drain(out);
        }
    }
}

impl ServerRun {
    fn relay(&mut self, from: Endpoint, mut datagram: Vec<u8>, out: &mut VecDeque<Effect>) {
        let Ok(token) = relay::parse(&datagram) else { return };
        let Some(&(owner, other, other_token)) = self.legs.get(&token) else { return };
        if self.placed.get(&owner) != Some(&from) {
            return;
        }
        if let Some(to) = self.placed.get(&other) {
            relay::rewrite(&mut datagram, other_token);
            out.push_back(Effect::Send { socket: 0, to: to.addr, datagram });
        }
    }

    fn drain(&mut self, out: &mut VecDeque<Effect>) {
        use coordinator::Output;
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send { to, datagram } => out.push_back(Effect::Send { socket: 0, to: to.addr, datagram }),
                Output::Store { id, ops } => out.push_back(Effect::Store { id, ops }),
                Output::SessionsChanged => {}
                Output::Channel { one, other } => {
                    self.legs.insert(one.1, (one.0, other.0, other.1));
                    self.legs.insert(other.1, (other.0, one.0, one.1));
                }
                Output::Placed { member, endpoint } => match endpoint {
                    Some(endpoint) => drop(self.placed.insert(member, endpoint)),
                    None => drop(self.placed.remove(&member)),
                },
                Output::Reply { request, reply } => out.push_back(Effect::Reply { request, reply }),
                Output::Event(event) => out.push_back(Effect::Note(format!("{event:?}"))),
            }
        }
    }
}
