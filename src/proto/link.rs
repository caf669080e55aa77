//! One remote key and the sessions with it: handshakes in both directions, rekeying, ageing.
//!
//! Used alike by a client for each peer and for its server, and by the server for each member. A link says which
//! bytes to send, never where: paths are its owner's. It keeps sessions as WireGuard does: `current` to send with,
//! `previous` for what is still on its way, `next` for those the initiator has not confirmed. An initiator that learns
//! of another address sends a new initiation and completes whichever is answered first, so `next` holds as many as
//! may be in flight. A responder sends on a new session only after the first authentic datagram on it, so a replayed initiation costs one
//! computation and changes nothing. Nothing is ever torn down on unauthenticated input.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rand::CryptoRng;
use zeroize::Zeroizing;

use super::backoff::Backoff;
use super::cookie::Macs;
use super::crypto::{Secret32, Suites, mac1_key, pair_psk, transport_keys};
use super::noise::{Identity, IkInitiator, IkResponder, NoiseError, Split};
use super::session::{MESSAGES_REKEY, Meter, Owner, Session, SessionParts, WINDOW_WORDS};
use crate::counters::DropReason;
use crate::ids::{NetworkId, PublicKey, SessionIndex};
use crate::wire::cert::CERT_LEN;
use crate::wire::handshake::{
    Capabilities, CookieReply, HandshakeHeader, HandshakePayload, HandshakeView, PAYLOAD_LEN,
};
use crate::wire::header::Kind;

/// Waits between initiations that nobody answers: quick at first, since most losses are single.
const RETRY: &[Duration] = &[
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(5),
];
/// An initiator gives up after this long; traffic begins anew.
pub const GIVE_UP: Duration = Duration::from_secs(90);
/// The side that began a session renews it at this age (WireGuard's figure).
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// The other side renews it at this age, when the first has not.
const REKEY_OTHER_SIDE: Duration = Duration::from_secs(170);
/// How often an unused link whose renewal is due looks whether it is used.
const REKEY_CHECK: Duration = Duration::from_secs(5);
/// Keys are not used beyond this age.
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// A session is renewed only if frames passed within this time, or the link is kept for good.
const USED_WITHIN: Duration = Duration::from_secs(600);
/// Initiations in flight whose answers still count: with retries after 250 ms, this spans round trips of seconds.
const ATTEMPTS_MAX: usize = 4;
/// When both sides begin, the one with the smaller key does not answer for this long: its own initiation is on the way.
/// After that perhaps it never gets through, and the other one's did.
const TIE_BREAK: Duration = Duration::from_secs(1);
/// Who wanted a session, and answered the other side instead, begins again when that is not confirmed in this time.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// A HINT leads to at most one handshake in this time.
const HINT_INTERVAL: Duration = Duration::from_secs(1);

/// What a node says of itself in its handshakes.
pub struct Node {
    pub identity: Identity,
    pub network: NetworkId,
    /// Zero where the network has no pre-shared key.
    pub network_psk: Secret32,
    pub suites: Suites,
    /// Raised by one before the first handshake of each start.
    pub boot: u64,
    pub certificate: [u8; CERT_LEN],
    /// Shared by every core of this start that shakes hands as this node, restarted ones included.
    sequence: Arc<AtomicU32>,
}

impl Node {
    /// A node that begins its handshakes at (`boot`, 1).
    pub fn new(identity: Identity, network: NetworkId, network_psk: Secret32, suites: Suites, boot: u64) -> Self {
        Self { identity, network, network_psk, suites, boot, certificate: [0; CERT_LEN], sequence: Arc::default() }
    }

    /// Continues the freshness numbers of another core of the same start.
    pub fn with_sequence(mut self, sequence: Arc<AtomicU32>) -> Self {
        self.sequence = sequence;
        self
    }

    /// The MAC1 key of what others send to us.
    pub fn mac1_key(&self) -> [u8; 32] {
        mac1_key(&self.identity.public, &self.network_psk)
    }

    /// A payload with the next freshness number.
    pub fn payload(&mut self, suites: u8, sender: SessionIndex) -> HandshakePayload {
        HandshakePayload {
            boot: self.boot,
            sequence: self.sequence.fetch_add(1, Relaxed) + 1,
            capabilities: Capabilities::OURS,
            max_payload: u16::MAX,
            receive_modes: 0,
            suites,
            sender,
            certificate: self.certificate,
        }
    }
}

/// An initiation that was read: who speaks is known, nothing is promised.
pub struct Incoming {
    responder: IkResponder,
    header: HandshakeHeader,
    pub payload: HandshakePayload,
}

impl Incoming {
    /// Reads an initiation whose MACs the [gate](super::cookie::Gate) has checked.
    pub fn read(node: &Node, view: &HandshakeView<'_>, rng: &mut impl CryptoRng) -> Result<Self, DropReason> {
        if view.header.detail != node.network.tag() {
            return Err(DropReason::OtherNetwork);
        }
        let responder = IkResponder::read(&node.identity, view.header_bytes, view.noise, rng)
            .map_err(|NoiseError| DropReason::NotAuthentic)?;
        let payload = HandshakePayload::parse(&responder.payload, &view.header)?;
        Ok(Self { responder, header: view.header, payload })
    }

    /// Who speaks.
    pub fn remote(&self) -> PublicKey {
        self.responder.remote
    }
}

/// What time asks of a link's owner.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// Call [`Link::initiate`] and send the result.
    pub initiate: bool,
    /// Nobody answered for [`GIVE_UP`].
    pub gave_up: bool,
    /// A session went; publish again.
    pub changed: bool,
}

struct Attempt {
    index: SessionIndex,
    state: IkInitiator,
    offered: Suites,
    /// A response that was authentic Noise under a header that was not: the true header may still come.
    read: Option<(Vec<u8>, [u8; PAYLOAD_LEN], Split)>,
}

struct Retry {
    since: Instant,
    at: Instant,
    until: Instant,
    backoff: Backoff,
}

/// The link to one remote key.
pub struct Link {
    owner: Owner,
    remote: PublicKey,
    psk: Secret32,
    macs: Macs,
    meter: Arc<Meter>,
    /// Renew sessions even when they are not used (the server's).
    kept: bool,
    /// Words of the replay window of its sessions.
    window: usize,
    attempts: VecDeque<Attempt>,
    retry: Option<Retry>,
    freshest: (u64, u32),
    hint_after: Option<Instant>,
    /// A renewal was due and nobody used the link: ask again then.
    rekey_after: Option<Instant>,
    previous: Option<Arc<Session>>,
    current: Option<Arc<Session>>,
    /// Oldest first.
    next: VecDeque<Arc<Session>>,
}

impl Link {
    /// A link without a session. `kept` links renew their session for good, others only while frames pass.
    pub fn new(owner: Owner, remote: PublicKey, node: &Node, meter: Arc<Meter>, kept: bool) -> Self {
        Self {
            owner,
            remote,
            psk: pair_psk(&node.network_psk, &node.identity.public, &remote),
            macs: Macs::new(mac1_key(&remote, &node.network_psk)),
            meter,
            kept,
            window: WINDOW_WORDS,
            attempts: VecDeque::new(),
            retry: None,
            freshest: (0, 0),
            hint_after: None,
            rekey_after: None,
            previous: None,
            current: None,
            next: VecDeque::new(),
        }
    }

    /// Gives its sessions a replay window of `words` of 64 counters.
    pub fn with_window(mut self, words: usize) -> Self {
        self.window = words;
        self
    }

    pub fn remote(&self) -> PublicKey {
        self.remote
    }

    /// What passed over the link.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// The session to send with.
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.current.as_ref()
    }

    /// All sessions that may still receive.
    pub fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.next.iter().rev().chain(&self.current).chain(&self.previous)
    }

    /// Indices that datagrams to this link may carry: sessions and initiations in flight.
    pub fn indices(&self) -> impl Iterator<Item = SessionIndex> {
        self.sessions().map(|session| session.local_index).chain(self.attempts.iter().map(|attempt| attempt.index))
    }

    /// Whether initiations are being sent.
    pub fn is_initiating(&self) -> bool {
        self.retry.is_some()
    }

    /// Wants a session: the first initiation is due now, unless some are under way.
    pub fn start(&mut self, now: Instant) {
        if self.retry.is_none() {
            self.retry = Some(Retry { since: now, at: now, until: now + GIVE_UP, backoff: Backoff::new(RETRY) });
        }
    }

    /// Wants a session at once: forgets how long it has been trying.
    pub fn restart(&mut self, now: Instant) {
        self.retry = None;
        self.start(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let retry = self.retry.as_ref().map(|retry| retry.at);
        let rekey = self
            .current
            .as_ref()
            .filter(|_| self.retry.is_none())
            .map(|session| self.rekey_after.map_or(rekey_at(session), |after| rekey_at(session).max(after)));
        let reject = self.sessions().map(|session| session.born + REJECT_AFTER).min();
        [retry, rekey, reject].into_iter().flatten().min()
    }

    /// Lets time pass. `used` is when frames last passed.
    pub fn handle_timeout(&mut self, now: Instant, used: Option<Instant>) -> Due {
        let mut due = Due::default();
        let too_old = |session: &Arc<Session>| now >= session.born + REJECT_AFTER;
        for slot in [&mut self.previous, &mut self.current] {
            if slot.as_ref().is_some_and(too_old) {
                slot.take().inspect(|session| session.expire());
                due.changed = true;
            }
        }
        while let Some(session) = self.next.pop_front_if(|session| too_old(session)) {
            session.expire();
            due.changed = true;
        }
        let wanted = self.kept || used.is_some_and(|used| now.saturating_duration_since(used) < USED_WITHIN);
        if self.current.as_ref().is_some_and(|session| now >= rekey_at(session)) {
            if wanted {
                self.start(now);
            } else {
                self.rekey_after = Some(now + REKEY_CHECK);
            }
        }
        if self.retry.as_ref().is_some_and(|retry| now >= retry.until) {
            self.retry = None;
            self.attempts.clear();
            due.gave_up = true;
        }
        due.initiate = self.retry.as_ref().is_some_and(|retry| now >= retry.at);
        due
    }

    /// Makes the next initiation, with an index nobody uses. Fails with a remote key of low order.
    pub fn initiate(
        &mut self,
        node: &mut Node,
        index: SessionIndex,
        now: Instant,
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, NoiseError> {
        self.start(now);
        let header =
            HandshakeHeader { kind: Kind::Init, suites: node.suites.0, sender: index, detail: node.network.tag() };
        let header = header.to_bytes();
        let payload = node.payload(node.suites.0, index).to_bytes();
        if let Some(retry) = &mut self.retry {
            retry.at = now + retry.backoff.next(rng);
        }
        let (state, noise) = IkInitiator::start(&node.identity, &self.remote, &self.psk, &header, &payload, rng)?;
        if self.attempts.len() == ATTEMPTS_MAX {
            self.attempts.pop_front();
        }
        self.attempts.push_back(Attempt { index, state, offered: node.suites, read: None });
        Ok(self.macs.finish(&header, &noise, now))
    }

    /// Completes a handshake we began. `check` sees the responder's payload (its certificate) before anything changes.
    pub fn handle_response(
        &mut self,
        view: &HandshakeView<'_>,
        now: Instant,
        check: impl FnOnce(&HandshakePayload) -> Result<(), DropReason>,
    ) -> Result<Arc<Session>, DropReason> {
        let index = view.header.receiver();
        let attempt =
            self.attempts.iter_mut().find(|attempt| attempt.index == index).ok_or(DropReason::UnknownSession)?;
        let suite = attempt.offered.accept(view.header.suites).ok_or(DropReason::HandshakeRefused)?;
        if attempt.read.is_none() {
            let (payload, split) = attempt.state.finish(view.noise).map_err(|NoiseError| DropReason::NotAuthentic)?;
            attempt.read = Some((view.noise.to_vec(), payload, split));
        }
        let (noise, payload, split) = attempt.read.as_ref().expect("was just put there");
        if noise != view.noise {
            return Err(DropReason::NotAuthentic);
        }
        let payload = HandshakePayload::parse(payload, &view.header)?;
        check(&payload)?;
        let keys = transport_keys(split, suite);
        let session = Arc::new(
            Session::new(
                SessionParts {
                    owner: self.owner,
                    remote: self.remote,
                    local_index: index,
                    remote_index: view.header.sender,
                    initiator: true,
                    suite,
                    capabilities: payload.capabilities,
                    meter: self.meter.clone(),
                    seal_key: keys.i2r,
                    open_key: keys.r2i,
                },
                now,
            )
            .with_window(self.window),
        );
        self.install(session.clone(), now);
        Ok(session)
    }

    /// Takes up a cookie for an initiation in flight; the next one, due at once, will carry it.
    pub fn handle_cookie(&mut self, reply: &CookieReply, now: Instant) -> Result<(), DropReason> {
        if !self.attempts.iter().any(|attempt| attempt.index == reply.receiver) {
            return Err(DropReason::UnknownSession);
        }
        self.macs.take_cookie(reply, now)?;
        if let Some(retry) = &mut self.retry {
            retry.at = now;
        }
        Ok(())
    }

    /// Answers an initiation of this remote, whose certificate the owner has checked. `index` is ours, used by nobody.
    pub fn respond(
        &mut self,
        node: &mut Node,
        incoming: Incoming,
        index: SessionIndex,
        now: Instant,
    ) -> Result<(Vec<u8>, Arc<Session>), DropReason> {
        let freshness = (incoming.payload.boot, incoming.payload.sequence);
        if freshness <= self.freshest {
            return Err(DropReason::StaleHandshake);
        }
        // Both began at once (a first session or a renewal): the side with the smaller key stays initiator, or each
        // would answer the other and drop what the other answers.
        let stays_initiator = !self.attempts.is_empty() && node.identity.public < self.remote;
        if stays_initiator
            && self.retry.as_ref().is_some_and(|retry| now.saturating_duration_since(retry.since) < TIE_BREAK)
        {
            return Err(DropReason::HandshakeRefused);
        }
        let suite = node.suites.choose(Suites(incoming.payload.suites)).ok_or(DropReason::HandshakeRefused)?;
        let header = HandshakeHeader {
            kind: Kind::Resp,
            suites: suite as u8,
            sender: index,
            detail: u64::from(incoming.header.sender.0),
        };
        let payload = node.payload(suite as u8, index).to_bytes();
        let (noise, split) =
            incoming.responder.respond(&self.psk, &payload).map_err(|NoiseError| DropReason::NotAuthentic)?;
        self.freshest = freshness;
        if !stays_initiator {
            self.attempts.clear();
            // Our answer or its confirmation may be lost, and the other side may stop trying: then we go on.
            if let Some(retry) = &mut self.retry {
                retry.at = now + ANSWER_PATIENCE;
            }
        }
        let session = self.adopt(&split, suite, incoming.payload.capabilities, index, incoming.header.sender, now);
        Ok((self.macs.finish(&header.to_bytes(), &noise, now), session))
    }

    /// Takes the keys of a handshake that somebody else completed as its responder (an enrolment).
    pub fn adopt(
        &mut self,
        split: &Split,
        suite: super::crypto::Suite,
        capabilities: Capabilities,
        local_index: SessionIndex,
        remote_index: SessionIndex,
        now: Instant,
    ) -> Arc<Session> {
        let keys = transport_keys(split, suite);
        let session = Arc::new(
            Session::new(
                SessionParts {
                    owner: self.owner,
                    remote: self.remote,
                    local_index,
                    remote_index,
                    initiator: false,
                    suite,
                    capabilities,
                    meter: self.meter.clone(),
                    seal_key: keys.r2i,
                    open_key: keys.i2r,
                },
                now,
            )
            .with_window(self.window),
        );
        if self.next.len() == ATTEMPTS_MAX
            && let Some(oldest) = self.next.pop_front()
        {
            oldest.expire();
        }
        self.next.push_back(session.clone());
        session
    }

    /// Takes a session that is to be sent with at once (we were the initiator).
    pub fn install(&mut self, session: Arc<Session>, now: Instant) {
        session.mark(now);
        self.attempts.clear();
        self.retry = None;
        if let Some(next) = self.next.pop_back() {
            // Keys that were never confirmed: the other side may still have sent with them.
            self.previous = Some(next);
            self.next.drain(..).for_each(|older| older.expire());
        }
        if let Some(current) = self.current.replace(session) {
            self.previous = Some(current);
        }
    }

    /// The first authentic datagram came on a session: if it is a `next`, it is to be sent with from here on.
    pub fn confirm(&mut self, index: SessionIndex, now: Instant) -> bool {
        let Some(at) = self.next.iter().position(|next| next.local_index == index) else { return false };
        // Younger ones stay: their initiations may have been sent after this one was completed.
        self.next.drain(..at).for_each(|older| older.expire());
        let next = self.next.pop_front().expect("was just looked at");
        next.mark(now);
        self.attempts.clear();
        self.retry = None;
        if let Some(current) = self.current.replace(next) {
            self.previous = Some(current);
        }
        true
    }

    /// A HINT says that the other side lost our session. Believed if it names a counter that was just sent, and then
    /// good for one handshake a second; the session stays in use meanwhile.
    pub fn handle_hint(&mut self, index: SessionIndex, counter: u64, now: Instant) -> bool {
        let ours = self.sessions().any(|session| session.remote_index == index && session.sent_lately(counter));
        if !ours || self.hint_after.is_some_and(|after| now < after) || self.retry.is_some() {
            return false;
        }
        self.hint_after = Some(now + HINT_INTERVAL);
        self.restart(now);
        true
    }

    /// Takes up a session that outlived the core that made it (the actor was restarted).
    pub fn resume(&mut self, session: Arc<Session>) {
        match &self.current {
            Some(current) if current.born >= session.born => self.previous = Some(session),
            Some(_) | None => self.previous = self.current.replace(session),
        }
    }

    /// Notes where the send counters stand; about once a second.
    pub fn mark(&self, now: Instant) {
        self.sessions().for_each(|session| session.mark(now));
    }

    /// Ends all sessions and attempts (a goodbye, a revocation).
    pub fn close(&mut self) {
        for session in self.previous.take().into_iter().chain(self.current.take()).chain(self.next.drain(..)) {
            session.expire();
        }
        self.attempts.clear();
        self.retry = None;
    }
}

fn rekey_at(session: &Session) -> Instant {
    if session.sent() >= MESSAGES_REKEY {
        return session.born;
    }
    session.born + if session.initiator { REKEY_AFTER } else { REKEY_OTHER_SIDE }
}

/// A pre-shared key of a network that has none.
pub fn no_psk() -> Secret32 {
    Zeroizing::new([0; 32])
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::ids::PeerIdx;

    struct End {
        node: Node,
        link: Link,
    }

    fn pair(seed: u64) -> (End, End, StdRng) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut node = || {
            let identity = Identity::generate(&mut rng);
            Node::new(identity, NetworkId(5), no_psk(), Suites(0b1010), 1)
        };
        let (alice, bob) = (node(), node());
        let link = |node: &Node, remote: &Node| {
            Link::new(Owner::Peer(PeerIdx(0)), remote.identity.public, node, Arc::default(), false)
        };
        let (to_bob, to_alice) = (link(&alice, &bob), link(&bob, &alice));
        (End { node: alice, link: to_bob }, End { node: bob, link: to_alice }, rng)
    }

    #[test]
    fn renewals_begun_by_both_sides_at_once_end_in_one_session() {
        let (mut alice, mut bob, mut rng) = pair(8);
        let start = Instant::now();
        let init = initiate(&mut alice, start, &mut rng);
        let resp = respond(&mut bob, &init, start, &mut rng).expect("answers");
        complete(&mut alice, &resp, start).expect("completes");
        confirm(&alice, &mut bob, start);
        let now = start + Duration::from_secs(171);
        let (from_alice, from_bob) = (initiate(&mut alice, now, &mut rng), initiate(&mut bob, now, &mut rng));
        let to_alice = respond(&mut bob, &from_alice, now, &mut rng);
        let to_bob = respond(&mut alice, &from_bob, now, &mut rng);
        assert!(to_alice.is_ok() != to_bob.is_ok(), "exactly one answers");
    }

    #[test]
    fn who_gave_way_goes_on_when_nothing_comes_of_it() {
        let (mut alice, mut bob, mut rng) = pair(10);
        if alice.node.identity.public > bob.node.identity.public {
            std::mem::swap(&mut alice, &mut bob);
        }
        let now = Instant::now();
        initiate(&mut bob, now, &mut rng);
        let init = initiate(&mut alice, now, &mut rng);
        respond(&mut bob, &init, now, &mut rng).expect("gives way; the answer is lost, and alice is gone");
        assert!(!bob.link.handle_timeout(now + Duration::from_secs(1), None).initiate);
        assert!(bob.link.handle_timeout(now + Duration::from_secs(2), None).initiate);
    }

    #[test]
    fn of_two_initiations_in_flight_the_one_whose_answer_comes_first_carries() {
        let (mut alice, mut bob, mut rng) = pair(10);
        let now = Instant::now();
        let [one, two] = [(); 2].map(|()| initiate(&mut alice, now, &mut rng));
        let [first, second] = [one, two].map(|init| respond(&mut bob, &init, now, &mut rng).expect("answers"));
        complete(&mut alice, &first, now).expect("completes");
        assert!(complete(&mut alice, &second, now).is_err(), "one is enough");
        let sent_with = alice.link.session().expect("a session").remote_index;
        assert!(bob.link.sessions().any(|session| session.local_index == sent_with), "still there");
        assert!(bob.link.confirm(sent_with, now));
        assert_eq!(bob.link.session().expect("a session").local_index, sent_with);
    }

    #[test]
    fn who_is_called_and_cannot_get_through_itself_answers_after_a_second() {
        let (mut alice, mut bob, mut rng) = pair(9);
        if alice.node.identity.public > bob.node.identity.public {
            std::mem::swap(&mut alice, &mut bob);
        }
        let start = Instant::now();
        initiate(&mut alice, start, &mut rng);
        let early = initiate(&mut bob, start, &mut rng);
        assert_eq!(respond(&mut alice, &early, start, &mut rng), Err(DropReason::HandshakeRefused));
        let now = start + Duration::from_millis(1500);
        let late = initiate(&mut bob, now, &mut rng);
        let resp = respond(&mut alice, &late, now, &mut rng).expect("answers now");
        complete(&mut bob, &resp, now).expect("completes");
        confirm(&bob, &mut alice, now);
        assert!(!alice.link.is_initiating(), "its own attempt is over");
    }

    fn initiate(end: &mut End, now: Instant, rng: &mut StdRng) -> Vec<u8> {
        let index = SessionIndex::for_peer(rng.next_u32());
        end.link.initiate(&mut end.node, index, now, rng).expect("a good key")
    }

    fn respond(end: &mut End, datagram: &[u8], now: Instant, rng: &mut StdRng) -> Result<Vec<u8>, DropReason> {
        let view = HandshakeView::parse(datagram)?;
        let incoming = Incoming::read(&end.node, &view, rng)?;
        let index = SessionIndex::for_peer(rng.next_u32());
        end.link.respond(&mut end.node, incoming, index, now).map(|(datagram, _)| datagram)
    }

    fn complete(end: &mut End, datagram: &[u8], now: Instant) -> Result<Arc<Session>, DropReason> {
        end.link.handle_response(&HandshakeView::parse(datagram)?, now, |_| Ok(()))
    }

    /// One control message through, so that the responder's session is confirmed.
    fn confirm(from: &End, to: &mut End, now: Instant) {
        let mut datagram = from.link.session().expect("a session").seal_control(b"").expect("fresh");
        let header = crate::wire::header::SealedHeader::parse(&datagram).expect("well formed");
        let session = to.link.sessions().find(|s| s.local_index == header.receiver).expect("known").clone();
        session.open(&header, &mut datagram).expect("authentic");
        if session.confirm() {
            to.link.confirm(session.local_index, now);
        }
    }

    #[test]
    fn a_responder_sends_only_after_the_initiator_has_confirmed() {
        let (mut alice, mut bob, mut rng) = pair(1);
        let now = Instant::now();
        let init = initiate(&mut alice, now, &mut rng);
        let resp = respond(&mut bob, &init, now, &mut rng).expect("answers");
        assert!(bob.link.session().is_none(), "not confirmed");
        complete(&mut alice, &resp, now).expect("completes");
        confirm(&alice, &mut bob, now);
        assert!(bob.link.session().is_some());
        assert!(!alice.link.is_initiating());
    }

    #[test]
    fn an_initiation_sent_again_is_answered_with_nothing() {
        let (mut alice, mut bob, mut rng) = pair(2);
        let now = Instant::now();
        let init = initiate(&mut alice, now, &mut rng);
        respond(&mut bob, &init, now, &mut rng).expect("answers the first");
        assert_eq!(respond(&mut bob, &init, now, &mut rng), Err(DropReason::StaleHandshake));
    }

    #[test]
    fn when_both_begin_at_once_one_session_comes_of_it() {
        let (mut alice, mut bob, mut rng) = pair(3);
        let now = Instant::now();
        let (from_alice, from_bob) = (initiate(&mut alice, now, &mut rng), initiate(&mut bob, now, &mut rng));
        let to_alice = respond(&mut bob, &from_alice, now, &mut rng);
        let to_bob = respond(&mut alice, &from_bob, now, &mut rng);
        assert!(to_alice.is_ok() != to_bob.is_ok(), "exactly one answers");
        if let Ok(answer) = to_alice {
            complete(&mut alice, &answer, now).expect("completes");
        }
        if let Ok(answer) = to_bob {
            complete(&mut bob, &answer, now).expect("completes");
        }
    }

    #[test]
    fn a_session_is_renewed_while_used_and_ends_when_idle() {
        let (mut alice, mut bob, mut rng) = pair(4);
        let start = Instant::now();
        let init = initiate(&mut alice, start, &mut rng);
        let resp = respond(&mut bob, &init, start, &mut rng).expect("answers");
        complete(&mut alice, &resp, start).expect("completes");
        confirm(&alice, &mut bob, start);

        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!alice.link.handle_timeout(at(119), Some(at(119))).initiate);
        assert!(!bob.link.handle_timeout(at(121), Some(at(121))).initiate, "the initiator renews first");
        assert!(alice.link.handle_timeout(at(121), Some(at(121))).initiate);
        let init = initiate(&mut alice, at(121), &mut rng);
        let resp = respond(&mut bob, &init, at(121), &mut rng).expect("answers");
        let renewed = complete(&mut alice, &resp, at(121)).expect("completes");
        confirm(&alice, &mut bob, at(121));
        assert_eq!(alice.link.sessions().count(), 2, "the old keys open what is on its way");

        assert!(alice.link.handle_timeout(at(181), Some(at(121))).changed, "the old keys are gone");
        let due = alice.link.handle_timeout(at(121 + 181), Some(at(121)));
        assert!(due.changed && !due.initiate, "nobody used it");
        assert!(alice.link.session().is_none());
        assert_eq!(renewed.seal_control(b"").err(), Some(DropReason::SessionExpired));
    }

    #[test]
    fn retries_come_faster_first_and_end_after_ninety_seconds() {
        let (mut alice, _, mut rng) = pair(5);
        let start = Instant::now();
        alice.link.start(start);
        let mut sent = Vec::new();
        let mut now = start;
        loop {
            let due = alice.link.handle_timeout(now, None);
            if due.gave_up {
                break;
            }
            if due.initiate {
                initiate(&mut alice, now, &mut rng);
                sent.push(now - start);
            }
            now = alice.link.poll_timeout().expect("a retry is due").max(now + Duration::from_millis(1));
        }
        assert!(sent[1] <= Duration::from_millis(300) && sent[2] <= Duration::from_millis(900), "{sent:?}");
        assert!((18..=26).contains(&sent.len()), "{}", sent.len());
    }

    #[test]
    fn s_05_every_flipped_bit_of_init_and_resp_is_refused_and_changes_nothing() {
        let (mut alice, mut bob, mut rng) = pair(6);
        let now = Instant::now();
        let init = initiate(&mut alice, now, &mut rng);
        let mut gate = super::super::cookie::Gate::new(bob.node.mac1_key(), 1_000_000, now, &mut rng);
        let mac2 = init.len() - 16;
        for bit in 0..mac2 * 8 {
            let mut flipped = init.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let admitted = HandshakeView::parse(&flipped)
                .map(|view| gate.admit(&view, None, now, &mut rng) == super::super::cookie::Admit::Yes);
            assert_ne!(admitted, Ok(true), "INIT bit {bit} passes the gate");
        }
        // An attacker who knows the key can mend MAC1; the transcript refuses it all the same.
        for bit in (0..(init.len() - 32) * 8).step_by(7) {
            let mut flipped = init.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(respond(&mut bob, &flipped, now, &mut rng).is_err(), "INIT bit {bit}");
        }
        assert_eq!(bob.link.sessions().count(), 0);

        let resp = respond(&mut bob, &init, now, &mut rng).expect("the true one is answered");
        for bit in 0..(resp.len() - 32) * 8 {
            let mut flipped = resp.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(complete(&mut alice, &flipped, now).is_err(), "RESP bit {bit}");
        }
        assert!(alice.link.session().is_none());
        complete(&mut alice, &resp, now).expect("the true one still completes");
        println!("S-05: {} flipped bits of INIT, {} of RESP refused", mac2 * 8, (resp.len() - 32) * 8);
    }
}
