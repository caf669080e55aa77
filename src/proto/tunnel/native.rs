//! The tunnel with our own protocol: the handshake, sessions and seals that clients of a network use, between two ends
//! that share a secret.
//!
//! Both ends' keys, the network's id and its pre-shared key are derived from the secret, so each end knows the other's
//! key and who does not know the secret cannot even make a first message that is looked at (MAC1). A packet is sealed
//! once, under one counter, and the same bytes go by every path: the session's replay window, 65,472 counters wide, is the
//! duplicate filter, and identical packets are not lost. Endpoints are learned from authentic, fresh datagrams only, and
//! carry packets only after a handshake completed over them or an answer to our own question came from them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zeroize::Zeroizing;

use super::super::cookie::{Admit, Gate};
use super::super::crypto::{Secret32, Suites, blake2s, mac16, same_mac};
use super::super::link::{Incoming, Link, Node};
use super::super::noise::Identity;
use super::super::replay::WORDS_MANY_PATHS;
use super::super::session::{Meter, Owner, Session};
use super::paths::{LEARNED_MAX, Path, Question};
use super::{End, Event, Output, Protocol, Tunnel};
use crate::counters::DropReason;
use crate::ids::{Endpoint, NetworkId, PeerIdx, PublicKey, SessionIndex};
use crate::wire::control::Control;
use crate::wire::handshake::{CookieReply, HandshakeView, Hint, HintReason};
use crate::wire::header::{HEADER_LEN, Kind, SealedHeader};

/// Bytes a secret must have: as many as its keys. Who captures a handshake can try secrets at home, so a word will not do.
pub const SECRET_MIN: usize = 32;
/// Handshakes a second above which cookies are asked for.
const LOAD_LIMIT: u32 = 50;
/// Sources that are being asked whether they are there.
const ASKED_MAX: usize = 16;
/// How long a source has to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A client that has heard nothing for so many intervals begins a new handshake, in case the server lost the session.
const SILENT_INTERVALS: u32 = 3;
/// Sends counters are noted this often, for [`Link::mark`].
const MARK_INTERVAL: Duration = Duration::from_secs(1);
/// One HINT in this time; it is for a peer that lost its session, and noise gets no more.
const HINT_INTERVAL: Duration = Duration::from_millis(200);

/// What is derived from a secret.
pub struct Keys {
    server: Secret32,
    client: Secret32,
    network: NetworkId,
    psk: Secret32,
}

impl Keys {
    /// Derives them; `None` if the secret is too short to be one. White space at its end does not count, since editors
    /// and `echo` put some there.
    pub fn derive(secret: &[u8]) -> Option<Self> {
        let secret = secret.trim_ascii_end();
        if secret.len() < SECRET_MIN {
            return None;
        }
        let root = Zeroizing::new(blake2s(&[b"eps1 tunnel", secret]));
        let part = |label: &[u8]| Zeroizing::new(blake2s(&[label, &root[..]]));
        let network = part(b"network");
        let network = NetworkId(u64::from_le_bytes(network[..8].try_into().expect("a digest has 32 bytes")));
        Some(Self { server: part(b"server"), client: part(b"client"), network, psk: part(b"psk") })
    }
}

/// One end's keys, sessions and questions.
pub struct Native {
    end: End,
    node: Node,
    link: Link,
    gate: Gate,
    rng: StdRng,
    /// Plaintext bytes beyond which nothing is padded, so that padding never makes a datagram too long.
    mtu: usize,
    sequence: u32,
    /// Where our last answer to a handshake went: who confirms it from there has that path proven.
    answered: Option<Endpoint>,
    /// Sources that are not learned until they answer.
    asked: Vec<(Endpoint, Question)>,
    /// When anything authentic last came.
    heard: Instant,
    marked: Instant,
    hint_after: Instant,
}

impl Native {
    /// `boot` is above that of every earlier start with this secret; `seed` is for ephemeral keys and challenges.
    pub fn new(end: End, keys: &Keys, boot: u64, mtu: usize, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let [server, client] = [&keys.server, &keys.client].map(|key| Identity::from_secret(key.clone()));
        let (own, far) = match end {
            End::Server => (server, client.public),
            End::Client => (client, server.public),
        };
        let node = Node::new(own, keys.network, keys.psk.clone(), Suites::of_this_machine(), boot);
        let owner = Owner::Peer(PeerIdx(0));
        let kept = end == End::Client;
        let mut link = Link::new(owner, far, &node, Arc::new(Meter::default()), kept).with_window(WORDS_MANY_PATHS);
        if end == End::Client {
            link.start(now);
        }
        let gate = Gate::new(node.mac1_key(), LOAD_LIMIT, now, &mut rng);
        let (answered, asked) = (None, Vec::new());
        Self { end, node, link, gate, rng, mtu, sequence: 0, answered, asked, heard: now, marked: now, hint_after: now }
    }

    pub(super) fn end(&self) -> End {
        self.end
    }

    /// The session packets are sealed with.
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.link.session()
    }

    pub(super) fn layout(&self, packet: usize) -> (usize, usize) {
        (HEADER_LEN, Session::sealed_len(packet, self.mtu))
    }

    pub(super) fn seal(&self, datagram: &mut [u8], packet: usize) -> Result<(), DropReason> {
        self.session().ok_or(DropReason::UnknownSession)?.seal_frame(false, datagram, packet)
    }

    /// A question to be sent by a path: it keeps the path open, proves it, and measures it.
    pub(super) fn ask(&mut self, path: &mut Path, now: Instant) -> Option<Vec<u8>> {
        let question = self.question(now);
        path.question = Some(question);
        self.probe(question)
    }

    fn question(&mut self, now: Instant) -> Question {
        self.sequence = self.sequence.wrapping_add(1);
        Question { sequence: self.sequence, challenge: self.rng.random(), asked: now }
    }

    fn probe(&self, question: Question) -> Option<Vec<u8>> {
        let Question { sequence, challenge, .. } = question;
        let probe = Control::Probe { sequence, challenge, sent_us: 0, path: 0, padding: 0 };
        self.session()?.seal_control(&probe.to_bytes()).ok()
    }

    fn far(&self) -> PublicKey {
        self.link.remote()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let mark = self.link.session().map(|_| self.marked + MARK_INTERVAL);
        [self.link.poll_timeout(), mark].into_iter().flatten().min()
    }

    fn free_index(&mut self) -> SessionIndex {
        loop {
            let index = SessionIndex::for_peer(self.rng.random());
            if !self.link.indices().any(|taken| taken == index) {
                return index;
            }
        }
    }
}

impl Tunnel {
    /// The session with the other end: its age and cipher, if there is one.
    pub fn session(&self) -> Option<&Arc<Session>> {
        match &self.protocol {
            Protocol::Plain(_) => None,
            Protocol::Native(native) => native.session(),
        }
    }

    /// Goodbyes for every path; to be sent when the tunnel ends. multi_tun's protocol has none.
    pub fn goodbyes(&self) -> Vec<(Endpoint, Vec<u8>)> {
        let Some(session) = self.session() else { return Vec::new() };
        let goodbye = Control::Goodbye { reason: 0 }.to_bytes();
        let ends = self.paths.iter().filter_map(Path::endpoint);
        ends.filter_map(|to| Some((to, session.seal_control(&goodbye).ok()?))).collect()
    }

    pub(super) fn native_timeout(&mut self, now: Instant) {
        let Protocol::Native(native) = &mut self.protocol else { return };
        native.asked.retain(|(_, question)| now < question.asked + ANSWER_WITHIN);
        if now >= native.marked + MARK_INTERVAL {
            native.marked = now;
            native.link.mark(now);
        }
        let silent = now >= native.heard + self.interval * SILENT_INTERVALS;
        if native.end == End::Client && silent && !native.link.is_initiating() {
            native.heard = now;
            native.link.start(now);
        }
        let due = native.link.handle_timeout(now, Some(native.heard));
        self.changed |= due.changed;
        if due.gave_up && native.end == End::Client {
            native.link.restart(now);
        }
        if due.initiate || due.gave_up && native.end == End::Client {
            let index = native.free_index();
            let Native { link, node, rng, .. } = &mut **native;
            let Ok(datagram) = link.initiate(node, index, now, rng) else { return };
            for (number, to) in
                self.paths.iter().enumerate().filter_map(|(number, path)| Some((number, path.endpoint()?)))
            {
                let datagram = datagram.clone();
                self.outputs.push_back(Output::Send { path: Some(number), to, datagram });
            }
        }
    }

    pub(super) fn receive_native<'d>(
        &mut self,
        from: Endpoint,
        datagram: &'d mut [u8],
        now: Instant,
    ) -> Result<Option<&'d [u8]>, DropReason> {
        match Kind::of(datagram).ok_or(DropReason::Malformed)? {
            kind @ (Kind::Data | Kind::Ctrl) => {
                let length = datagram.len();
                let plain = self.open(from, datagram, now)?;
                self.hear_native(from, length, now);
                if kind == Kind::Data {
                    return Ok(Some(plain));
                }
                for message in Control::decode_list(plain)? {
                    self.handle_control(from, &message, now);
                }
                Ok(None)
            }
            Kind::Init | Kind::Resp | Kind::Cookie | Kind::Hint => {
                self.handle_handshake(from, datagram, now)?;
                Ok(None)
            }
            Kind::Agg | Kind::Frag | Kind::Relay | Kind::Enrol1 | Kind::Enrol2 | Kind::Enrol3 => {
                Err(DropReason::Malformed)
            }
        }
    }

    /// Opens a sealed datagram; of copies, the first.
    fn open<'d>(&mut self, from: Endpoint, datagram: &'d mut [u8], now: Instant) -> Result<&'d [u8], DropReason> {
        let Protocol::Native(native) = &mut self.protocol else { return Err(DropReason::Malformed) };
        let header = SealedHeader::parse(datagram)?;
        let session = native.link.sessions().find(|session| session.local_index == header.receiver).cloned();
        let Some(session) = session else {
            if header.kind == Kind::Ctrl && now >= native.hint_after {
                native.hint_after = now + HINT_INTERVAL;
                let hint = Hint { reason: HintReason::NoSession, index: header.receiver, counter: header.counter };
                self.outputs.push_back(Output::Send { path: None, to: from, datagram: hint.to_bytes().to_vec() });
            }
            return Err(DropReason::UnknownSession);
        };
        let length = datagram.len();
        match session.open(&header, datagram) {
            Ok(plain) => {
                native.heard = now;
                if session.confirm() && native.link.confirm(session.local_index, now) {
                    let proven = native.answered.take() == Some(from);
                    self.outputs.push_back(Output::Event(Event::Session));
                    self.changed = true;
                    if proven {
                        self.admit(from, now);
                    }
                }
                Ok(plain)
            }
            // What came by a faster path before. A recorded copy would look the same, and do as little.
            Err(DropReason::Replayed) => {
                if let Some(path) = self.paths.iter_mut().find(|path| path.endpoint() == Some(from)) {
                    path.meter.rx_datagrams.fetch_add(1, Relaxed);
                    path.meter.rx_bytes.fetch_add(length as u64, Relaxed);
                    path.meter.duplicates.fetch_add(1, Relaxed);
                }
                Err(DropReason::Duplicate)
            }
            Err(reason) => Err(reason),
        }
    }

    /// Notes an authentic, fresh datagram. A source that a server does not know is asked whether it is there.
    fn hear_native(&mut self, from: Endpoint, bytes: usize, now: Instant) {
        let known = match self.end {
            End::Client => true,
            End::Server => self.paths.iter().any(|path| path.endpoint() == Some(from)),
        };
        if known {
            self.hear(from, bytes, now);
            return;
        }
        let Protocol::Native(native) = &mut self.protocol else { return };
        if native.asked.iter().any(|(endpoint, _)| *endpoint == from) || native.asked.len() >= ASKED_MAX {
            return;
        }
        let question = native.question(now);
        native.asked.push((from, question));
        if let Some(datagram) = native.probe(question) {
            self.outputs.push_back(Output::Send { path: None, to: from, datagram });
        }
    }

    /// Makes a proven source an endpoint, if it is none and there is room.
    fn admit(&mut self, from: Endpoint, now: Instant) -> Option<usize> {
        let known = self.paths.iter().position(|path| path.endpoint() == Some(from));
        if self.end == End::Client || known.is_some() {
            return known;
        }
        if self.paths.len() >= LEARNED_MAX {
            self.outputs.push_back(Output::Event(Event::Full(from.addr)));
            return None;
        }
        let number = self.learn(from);
        self.paths[number].heard = Some(now);
        Some(number)
    }

    fn handle_control(&mut self, from: Endpoint, message: &Control, now: Instant) {
        let Protocol::Native(native) = &mut self.protocol else { return };
        match message {
            Control::Probe { sequence, challenge, sent_us, path, .. } => {
                let (sequence, challenge, sent_us, path) = (*sequence, *challenge, *sent_us, *path);
                let reply = Control::ProbeReply { sequence, challenge, sent_us, path, observed: from.addr };
                let sealed = native.session().and_then(|session| session.seal_control(&reply.to_bytes()).ok());
                self.outputs.extend(sealed.map(|datagram| Output::Send { path: None, to: from, datagram }));
            }
            Control::ProbeReply { sequence, challenge, .. } => {
                let answers = |question: &Question| (question.sequence, question.challenge) == (*sequence, *challenge);
                let asked = native.asked.iter().position(|(endpoint, question)| *endpoint == from && answers(question));
                if let Some(asked) = asked {
                    let (_, question) = native.asked.swap_remove(asked);
                    if let Some(number) = self.admit(from, now) {
                        self.paths[number].meter.set_rtt(now.saturating_duration_since(question.asked));
                    }
                    return;
                }
                let path = self
                    .paths
                    .iter_mut()
                    .find(|path| path.uplink == from.uplink && path.question.as_ref().is_some_and(answers));
                if let Some(path) = path
                    && let Some(question) = path.question.take()
                {
                    path.meter.set_rtt(now.saturating_duration_since(question.asked));
                }
            }
            Control::Goodbye { .. } => {
                native.link.close();
                native.asked.clear();
                self.outputs.push_back(Output::Event(Event::Goodbye));
                self.changed = true;
                match self.end {
                    End::Server => self.paths.clear(),
                    // It may come back.
                    End::Client => native.link.restart(now),
                }
            }
            // Nothing else is said in a tunnel.
            _ => {}
        }
    }

    fn handle_handshake(&mut self, from: Endpoint, datagram: &[u8], now: Instant) -> Result<(), DropReason> {
        let Protocol::Native(native) = &mut self.protocol else { return Err(DropReason::Malformed) };
        let far = native.far();
        let Native { link, node, gate, rng, .. } = &mut **native;
        match Kind::of(datagram) {
            Some(Kind::Init) => {
                let view = HandshakeView::parse(datagram)?;
                match gate.admit(&view, Some(from.addr), now, rng) {
                    Admit::Yes => {}
                    Admit::Cookie(reply) => {
                        let datagram = reply.to_bytes().to_vec();
                        self.outputs.push_back(Output::Send { path: None, to: from, datagram });
                        return Err(DropReason::HandshakeFlood);
                    }
                    Admit::No(reason) => return Err(reason),
                }
                let incoming = Incoming::read(node, &view, rng)?;
                if incoming.remote() != far {
                    return Err(DropReason::UnknownPeer);
                }
                let index = native.free_index();
                let Native { link, node, .. } = &mut **native;
                let (datagram, _) = link.respond(node, incoming, index, now)?;
                native.answered = Some(from);
                self.outputs.push_back(Output::Send { path: None, to: from, datagram });
            }
            Some(Kind::Resp) => {
                let view = HandshakeView::parse(datagram)?;
                if !same_mac(&mac16(&node.mac1_key(), view.before_mac1), &view.mac1) {
                    return Err(DropReason::BadMac1);
                }
                link.handle_response(&view, now, |_| Ok(()))?;
                native.heard = now;
                self.outputs.push_back(Output::Event(Event::Session));
                self.changed = true;
                // The first authentic datagram lets the other end send, and each path has to be proven to it. The path
                // that the answer came by is first, for there it needs no further question.
                let first = self.paths.iter().position(|path| match self.end {
                    End::Client => path.uplink == from.uplink,
                    End::Server => path.endpoint() == Some(from),
                });
                let others = (0..self.paths.len()).filter(|number| Some(*number) != first);
                for number in first.into_iter().chain(others).collect::<Vec<_>>() {
                    self.speak(number, now);
                }
            }
            Some(Kind::Cookie) => link.handle_cookie(&CookieReply::parse(datagram)?, now)?,
            Some(Kind::Hint) => {
                let hint = Hint::parse(datagram)?;
                if !link.handle_hint(hint.index, hint.counter, now) {
                    return Err(DropReason::UnknownSession);
                }
            }
            _ => return Err(DropReason::Malformed),
        }
        Ok(())
    }
}
