//! First contact: the server's half of the enrolment handshake, and the invitations it checks against.
//!
//! A token that is unknown, used up or expired is answered exactly like a good one, with random bytes in its place, so
//! that nobody learns which tokens exist by asking: the last message simply does not fit.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{CryptoRng, Rng};
use zeroize::Zeroizing;

use super::cookie::{Admit, Gate};
use super::crypto::{Secret32, Suite, Suites, blake2s, enrol_mac1_key, mac16};
use super::link::Node;
use super::noise::{NoiseError, Split, XxResponder};
use super::records::{StoreOp, TokenRecord};
use crate::counters::DropReason;
use crate::ids::{Endpoint, PublicKey, SessionIndex};
use crate::wire::handshake::{HandshakeHeader, HandshakePayload, HandshakeView, WELCOME_LEN};
use crate::wire::header::Kind;
use crate::wire::join::{Token, fingerprint};

/// Enrolments between their first and last message at a time.
const HALF_OPEN_MAX: usize = 4096;
/// How long one may take.
const HALF_OPEN_LIFE: Duration = Duration::from_secs(10);
/// Enrolments a second above which cookies are asked for.
const LOAD_LIMIT: u32 = 250;

/// The token of an open network: everybody knows it.
pub fn open_token() -> Token {
    Token::new([0; 16])
}

/// A client that proved to know a token.
pub struct Enrolled {
    pub key: PublicKey,
    /// The token's id; `None` in an open network.
    pub token: Option<u64>,
    pub split: Split,
    pub suite: Suite,
    pub local_index: SessionIndex,
    pub remote_index: SessionIndex,
}

struct HalfOpen {
    responder: XxResponder,
    token: Option<u64>,
    from: Endpoint,
    client_index: SessionIndex,
    suite: Suite,
    until: Instant,
}

/// An enrolment that was finished: its last message may come again, because our answer was lost.
struct Finished {
    from: Endpoint,
    message: [u8; 32],
    until: Instant,
}

/// Invitations and enrolments under way.
pub struct Admission {
    gate: Gate,
    mac1_key: [u8; 32],
    signer: [u8; 32],
    tokens: BTreeMap<u64, TokenRecord>,
    half_open: BTreeMap<SessionIndex, HalfOpen>,
    finished: BTreeMap<SessionIndex, Finished>,
}

impl Admission {
    pub fn new(
        node: &Node,
        signer: [u8; 32],
        tokens: Vec<TokenRecord>,
        now: Instant,
        rng: &mut impl CryptoRng,
    ) -> Self {
        let mac1_key = enrol_mac1_key(&fingerprint(&node.identity.public));
        Self {
            gate: Gate::new(mac1_key, LOAD_LIMIT, now, rng),
            mac1_key,
            signer,
            tokens: tokens.into_iter().map(|token| (token.id, token)).collect(),
            half_open: BTreeMap::new(),
            finished: BTreeMap::new(),
        }
    }

    /// Answers the first message of an enrolment.
    pub fn begin(
        &mut self,
        (node, open): (&Node, bool),
        from: Endpoint,
        view: &HandshakeView<'_>,
        (now, unix): (Instant, u64),
        rng: &mut StdRng,
    ) -> Result<Vec<u8>, DropReason> {
        match self.gate.admit(view, Some(from.addr), now, rng) {
            Admit::Yes => {}
            Admit::Cookie(reply) => return Ok(reply.to_bytes().to_vec()),
            Admit::No(reason) => return Err(reason),
        }
        if self.half_open.len() >= HALF_OPEN_MAX {
            return Err(DropReason::HandshakeFlood);
        }
        let suite = node.suites.choose(Suites(view.header.suites)).ok_or(DropReason::HandshakeRefused)?;
        let id = view.header.detail;
        let (psk, token) = self.psk_of(id, open, unix, rng);
        let index = loop {
            let index = SessionIndex::for_peer(rng.next_u32());
            if !self.has_index(index) {
                break index;
            }
        };
        let mut welcome = [0; WELCOME_LEN];
        welcome[..8].copy_from_slice(&node.network.0.to_le_bytes());
        welcome[8..40].copy_from_slice(&self.signer);
        welcome[40] = suite as u8;
        welcome[41..45].copy_from_slice(&index.0.to_le_bytes());
        let (responder, noise) =
            XxResponder::respond(&node.identity, &psk, view.header_bytes, view.noise, &welcome, rng)
                .map_err(|NoiseError| DropReason::NotAuthentic)?;
        let client_index = view.header.sender;
        self.half_open
            .insert(index, HalfOpen { responder, token, from, client_index, suite, until: now + HALF_OPEN_LIFE });
        let header = HandshakeHeader {
            kind: Kind::Enrol2,
            suites: suite as u8,
            sender: index,
            detail: u64::from(client_index.0),
        };
        let mut answer = [&header.to_bytes()[..], &noise].concat();
        answer.extend(mac16(&self.mac1_key, &answer));
        answer.extend([0; 16]);
        Ok(answer)
    }

    /// Reads the last message of an enrolment.
    pub fn finish(&mut self, from: Endpoint, view: &HandshakeView<'_>, now: Instant) -> Result<Enrolled, DropReason> {
        let local_index = view.header.receiver();
        let half = self.half_open.get_mut(&local_index).ok_or(DropReason::BadToken)?;
        if half.from != from || half.client_index != view.header.sender || now >= half.until {
            return Err(DropReason::BadToken);
        }
        let (key, payload, split) = half.responder.finish(view.noise).map_err(|NoiseError| DropReason::BadToken)?;
        HandshakePayload::parse(&payload, &view.header)?;
        let half = self.half_open.remove(&local_index).expect("was just looked at");
        let finished = Finished { from, message: blake2s(&[view.before_mac1]), until: half.until };
        self.finished.insert(local_index, finished);
        Ok(Enrolled { key, token: half.token, split, suite: half.suite, local_index, remote_index: half.client_index })
    }

    /// Whether this is the last message of an enrolment that was finished a moment ago, from the same address: the
    /// client has not heard our answer. From anywhere else it is a replay like any other.
    pub fn is_repeated(&self, from: Endpoint, view: &HandshakeView<'_>) -> Option<SessionIndex> {
        let index = view.header.receiver();
        let finished = self.finished.get(&index)?;
        (finished.from == from && finished.message == blake2s(&[view.before_mac1])).then_some(index)
    }

    /// The key of a valid token. For any other, random bytes: no last message fits them.
    fn psk_of(&self, id: u64, open: bool, unix: u64, rng: &mut StdRng) -> (Secret32, Option<u64>) {
        let mut psk = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut psk[..]);
        let open_token = open_token();
        if open && id == open_token.id() {
            return (open_token.psk(), None);
        }
        if self.is_valid(id, unix) {
            psk.copy_from_slice(&self.tokens[&id].psk);
        }
        (psk, Some(id))
    }

    pub fn add(&mut self, token: TokenRecord) {
        self.tokens.insert(token.id, token);
    }

    /// Whether a token may admit one more member.
    pub fn is_valid(&self, id: u64, unix: u64) -> bool {
        self.tokens
            .get(&id)
            .is_some_and(|token| token.uses_left != Some(0) && token.expires_unix.is_none_or(|expires| unix < expires))
    }

    /// Whether any token may.
    pub fn has_valid(&self, unix: u64) -> bool {
        self.tokens.keys().any(|id| self.is_valid(*id, unix))
    }

    /// Uses a token once; what to write down.
    pub fn consume(&mut self, id: u64) -> Option<StoreOp> {
        let token = self.tokens.get_mut(&id)?;
        let left = token.uses_left.as_mut()?;
        *left = left.saturating_sub(1);
        Some(if *left == 0 { StoreOp::RemoveToken(id) } else { StoreOp::PutToken(token.clone()) })
    }

    /// The use could not be written down: it did not happen.
    pub fn give_back(&mut self, id: u64) {
        if let Some(left) = self.tokens.get_mut(&id).and_then(|token| token.uses_left.as_mut()) {
            *left += 1;
        }
    }

    pub fn has_index(&self, index: SessionIndex) -> bool {
        self.half_open.contains_key(&index) || self.finished.contains_key(&index)
    }

    /// Forgets enrolments that were not finished in time.
    pub fn sweep(&mut self, now: Instant) {
        self.half_open.retain(|_, half| now < half.until);
        self.finished.retain(|_, finished| now < finished.until);
    }
}
