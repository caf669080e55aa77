//! The two Noise handshakes, over our fixed datagrams: IKpsk2 for everybody who knows the other's key, XXpsk3 for the
//! first contact with a token.
//!
//! `snow` drives the patterns; X25519 is aws-lc's, because snow's own takes an all-zero shared secret without a word
//! and is several times slower. The 16 header bytes and "eps1" are the prologue, so that the header is part of the
//! transcript. Only the raw split leaves: transport is ours ([`session`](super::session)).

use std::sync::Mutex;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use rand::rngs::StdRng;
use rand::{CryptoRng, Rng, SeedableRng};
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use zeroize::{Zeroize, Zeroizing};

use super::crypto::Secret32;
use crate::ids::PublicKey;
use crate::wire::handshake::{
    ENROL1_NOISE_LEN, ENROL2_NOISE_LEN, ENROL3_NOISE_LEN, INIT_NOISE_LEN, PAYLOAD_LEN, RESP_NOISE_LEN, WELCOME_LEN,
};
use crate::wire::header::HEADER_LEN;

const IK: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const XX: &str = "Noise_XXpsk3_25519_ChaChaPoly_BLAKE2s";

/// The handshake failed: something altered, keys or tokens that differ, or a low-order key. The message was not
/// authentic; nothing more can be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the handshake is not authentic")]
pub struct NoiseError;

impl From<snow::Error> for NoiseError {
    fn from(_: snow::Error) -> Self {
        Self
    }
}

/// A node's X25519 key pair.
pub struct Identity {
    secret: Secret32,
    pub public: PublicKey,
}

impl Identity {
    /// Draws a new key.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut secret[..]);
        Self::from_secret(secret)
    }

    /// Takes a stored key.
    pub fn from_secret(secret: Secret32) -> Self {
        let public = PublicKey(public_of(&secret));
        Self { secret, public }
    }

    /// The secret, to be stored in a file of its own.
    pub fn secret(&self) -> &Secret32 {
        &self.secret
    }
}

/// Whether a key is one of the points of low order, with which every shared secret is zero or known to all.
pub fn is_low_order(key: &PublicKey) -> bool {
    let probe = PrivateKey::from_private_key(&X25519, &[0x40; 32]).expect("any 32 bytes are an X25519 key");
    agree(&probe, UnparsedPublicKey::new(&X25519, &key.0), (), |_| Ok(())).is_err()
}

/// What Noise's Split gives at the end, initiator's half first.
pub type Split = Zeroizing<[u8; 64]>;

/// The header bytes a handshake is bound to.
pub type Header = [u8; HEADER_LEN];

/// An initiator of IKpsk2 that waits for its response.
pub struct IkInitiator(HandshakeState);

impl IkInitiator {
    /// Makes message 1. Fails with a remote key of low order.
    pub fn start(
        identity: &Identity,
        remote: &PublicKey,
        psk: &Secret32,
        header: &Header,
        payload: &[u8; PAYLOAD_LEN],
        rng: &mut impl CryptoRng,
    ) -> Result<(Self, [u8; INIT_NOISE_LEN]), NoiseError> {
        let mut state = builder(IK, rng)
            .local_private_key(&identity.secret[..])?
            .remote_public_key(&remote.0)?
            .psk(2, psk)?
            .prologue(&prologue(header))?
            .build_initiator()?;
        let message = write(&mut state, payload)?;
        Ok((Self(state), message))
    }

    /// Reads message 2. After a failure the initiator is as before and may try another message.
    pub fn finish(&mut self, message: &[u8]) -> Result<([u8; PAYLOAD_LEN], Split), NoiseError> {
        exact(message, RESP_NOISE_LEN)?;
        let payload = read(&mut self.0, message)?;
        Ok((payload, split(&mut self.0)))
    }
}

/// A responder of IKpsk2 that has read message 1: it knows who speaks and has promised nothing.
pub struct IkResponder {
    state: HandshakeState,
    pub remote: PublicKey,
    pub payload: [u8; PAYLOAD_LEN],
}

impl IkResponder {
    /// Reads message 1.
    pub fn read(
        identity: &Identity,
        header: &Header,
        message: &[u8],
        rng: &mut impl CryptoRng,
    ) -> Result<Self, NoiseError> {
        exact(message, INIT_NOISE_LEN)?;
        // The pre-shared key depends on who asks, so the real one is set before it is first used, in message 2.
        let mut state = builder(IK, rng)
            .local_private_key(&identity.secret[..])?
            .psk(2, &[0; 32])?
            .prologue(&prologue(header))?
            .build_responder()?;
        let payload = read(&mut state, message)?;
        let remote = remote_static(&state)?;
        Ok(Self { state, remote, payload })
    }

    /// Makes message 2.
    pub fn respond(
        mut self,
        psk: &Secret32,
        payload: &[u8; PAYLOAD_LEN],
    ) -> Result<([u8; RESP_NOISE_LEN], Split), NoiseError> {
        self.state.set_psk(2, &psk[..])?;
        let message = write(&mut self.state, payload)?;
        Ok((message, split(&mut self.state)))
    }
}

/// A client of XXpsk3 that waits for message 2.
pub struct XxInitiator(HandshakeState);

impl XxInitiator {
    /// Makes message 1, which is padded so that its answer is never larger (a psk pattern seals even the first
    /// payload, with a key everybody can compute).
    pub fn start(
        identity: &Identity,
        psk: &Secret32,
        header: &Header,
        rng: &mut impl CryptoRng,
    ) -> Result<(Self, [u8; ENROL1_NOISE_LEN]), NoiseError> {
        let mut state = builder(XX, rng)
            .local_private_key(&identity.secret[..])?
            .psk(3, psk)?
            .prologue(&prologue(header))?
            .build_initiator()?;
        let message = write(&mut state, &[0; ENROL1_NOISE_LEN - 48])?;
        Ok((Self(state), message))
    }

    /// Reads message 2: the server's key and what it says of itself. The caller compares the key with the fingerprint
    /// of the join line before it goes on.
    pub fn read(&mut self, message: &[u8]) -> Result<(PublicKey, [u8; WELCOME_LEN]), NoiseError> {
        exact(message, ENROL2_NOISE_LEN)?;
        let welcome = read(&mut self.0, message)?;
        Ok((remote_static(&self.0)?, welcome))
    }

    /// Makes message 3.
    pub fn finish(mut self, payload: &[u8; PAYLOAD_LEN]) -> Result<([u8; ENROL3_NOISE_LEN], Split), NoiseError> {
        let message = write(&mut self.0, payload)?;
        Ok((message, split(&mut self.0)))
    }
}

/// A server of XXpsk3 that waits for message 3.
pub struct XxResponder(HandshakeState);

impl XxResponder {
    /// Reads message 1 and makes message 2. `psk` is the token's, or random bytes where there is no such token: the
    /// answer looks and takes the same, and message 3 cannot fit.
    pub fn respond(
        identity: &Identity,
        psk: &Secret32,
        header: &Header,
        message: &[u8],
        welcome: &[u8; WELCOME_LEN],
        rng: &mut impl CryptoRng,
    ) -> Result<(Self, [u8; ENROL2_NOISE_LEN]), NoiseError> {
        exact(message, ENROL1_NOISE_LEN)?;
        let mut state = builder(XX, rng)
            .local_private_key(&identity.secret[..])?
            .psk(3, psk)?
            .prologue(&prologue(header))?
            .build_responder()?;
        read::<{ ENROL1_NOISE_LEN - 48 }>(&mut state, message)?;
        let answer = write(&mut state, welcome)?;
        Ok((Self(state), answer))
    }

    /// Reads message 3: the client's key, proven to know the token.
    pub fn finish(&mut self, message: &[u8]) -> Result<(PublicKey, [u8; PAYLOAD_LEN], Split), NoiseError> {
        exact(message, ENROL3_NOISE_LEN)?;
        let payload = read(&mut self.0, message)?;
        Ok((remote_static(&self.0)?, payload, split(&mut self.0)))
    }
}

fn prologue(header: &Header) -> Vec<u8> {
    [&header[..], b"eps1"].concat()
}

fn exact(message: &[u8], length: usize) -> Result<(), NoiseError> {
    if message.len() == length { Ok(()) } else { Err(NoiseError) }
}

fn write<const N: usize>(state: &mut HandshakeState, payload: &[u8]) -> Result<[u8; N], NoiseError> {
    let mut message = [0; N];
    let length = state.write_message(payload, &mut message)?;
    debug_assert_eq!(length, N, "the forms are fixed");
    Ok(message)
}

fn read<const N: usize>(state: &mut HandshakeState, message: &[u8]) -> Result<[u8; N], NoiseError> {
    // snow wants room for what it decrypts, tag included, in the first message that is not encrypted.
    let mut buffer = [0; 512];
    let length = state.read_message(message, &mut buffer)?;
    buffer[..length].try_into().map_err(|_| NoiseError)
}

fn remote_static(state: &HandshakeState) -> Result<PublicKey, NoiseError> {
    let key = state.get_remote_static().and_then(|key| key.try_into().ok()).ok_or(NoiseError)?;
    Ok(PublicKey(key))
}

fn split(state: &mut HandshakeState) -> Split {
    let (mut i2r, mut r2i) = state.dangerously_get_raw_split();
    let mut both = Zeroizing::new([0; 64]);
    both[..32].copy_from_slice(&i2r);
    both[32..].copy_from_slice(&r2i);
    i2r.zeroize();
    r2i.zeroize();
    both
}

fn builder<'a>(pattern: &str, rng: &mut impl CryptoRng) -> Builder<'a> {
    let params: NoiseParams = pattern.parse().expect("the pattern is a constant");
    Builder::with_resolver(params, Box::new(Resolver(Mutex::new(StdRng::from_rng(rng)))))
}

/// Chooses aws-lc for X25519, the caller's randomness for ephemeral keys, and snow's own for the rest.
struct Resolver(Mutex<StdRng>);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        let mut rng = self.0.lock().ok()?;
        Some(Box::new(SeededRandom(StdRng::from_rng(&mut *rng))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::new(X25519Dh::default())),
            _ => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct SeededRandom(StdRng);

impl Random for SeededRandom {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill_bytes(dest);
        Ok(())
    }
}

#[derive(Default)]
struct X25519Dh {
    secret: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Dh for X25519Dh {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, secret: &[u8]) {
        self.secret.copy_from_slice(secret);
        self.public = public_of(&self.secret);
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        rng.try_fill_bytes(&mut self.secret[..])?;
        self.public = public_of(&self.secret);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.secret[..]
    }

    /// Refuses an all-zero shared secret (RFC 7748, section 6.1), which snow's own resolver does not.
    fn dh(&self, remote: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let secret = PrivateKey::from_private_key(&X25519, &self.secret[..]).map_err(|_| snow::Error::Dh)?;
        agree(&secret, UnparsedPublicKey::new(&X25519, &remote[..32]), snow::Error::Dh, |shared| {
            out[..32].copy_from_slice(shared);
            Ok(())
        })
    }
}

fn public_of(secret: &[u8; 32]) -> [u8; 32] {
    let key = PrivateKey::from_private_key(&X25519, secret).expect("any 32 bytes are an X25519 key");
    let public = key.compute_public_key().expect("an X25519 key has a public key");
    public.as_ref().try_into().expect("X25519 public keys have 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The points of order 1, 2, 4 and 8 and their other encodings (Curve25519 paper, section on contributory
    /// behaviour; the list WireGuard's and libsodium's tests use).
    pub(crate) const LOW_ORDER: [[u8; 32]; 7] = [
        [0; 32],
        one(),
        [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
            0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
        ],
        [
            0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
            0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
        ],
        near_p(0xec),
        near_p(0xed),
        near_p(0xee),
    ];

    const fn one() -> [u8; 32] {
        let mut key = [0; 32];
        key[0] = 1;
        key
    }

    const fn near_p(low: u8) -> [u8; 32] {
        let mut key = [0xff; 32];
        key[0] = low;
        key[31] = 0x7f;
        key
    }

    fn identities() -> (Identity, Identity, StdRng) {
        let mut rng = StdRng::seed_from_u64(7);
        (Identity::generate(&mut rng), Identity::generate(&mut rng), rng)
    }

    fn none() -> Secret32 {
        Zeroizing::new([0; 32])
    }

    #[test]
    fn both_ends_of_ik_get_the_same_keys_and_payloads() {
        let (alice, bob, mut rng) = identities();
        let header = [1; HEADER_LEN];
        let (mut initiator, message) =
            IkInitiator::start(&alice, &bob.public, &none(), &header, &[2; PAYLOAD_LEN], &mut rng).expect("starts");
        let responder = IkResponder::read(&bob, &header, &message, &mut rng).expect("reads");
        assert_eq!((responder.remote, responder.payload), (alice.public, [2; PAYLOAD_LEN]));
        let (answer, bobs) = responder.respond(&none(), &[3; PAYLOAD_LEN]).expect("answers");
        let (payload, alices) = initiator.finish(&answer).expect("finishes");
        assert_eq!((payload, &alices[..]), ([3; PAYLOAD_LEN], &bobs[..]));
    }

    #[test]
    fn another_psk_or_header_ends_the_handshake() {
        let (alice, bob, mut rng) = identities();
        let header = [1; HEADER_LEN];
        let (mut initiator, message) =
            IkInitiator::start(&alice, &bob.public, &none(), &header, &[2; PAYLOAD_LEN], &mut rng).expect("starts");
        assert!(IkResponder::read(&bob, &[9; HEADER_LEN], &message, &mut rng).is_err());
        let responder = IkResponder::read(&bob, &header, &message, &mut rng).expect("reads");
        let (answer, _) = responder.respond(&Zeroizing::new([5; 32]), &[3; PAYLOAD_LEN]).expect("answers");
        assert!(initiator.finish(&answer).is_err());
    }

    #[test]
    fn s_09_low_order_keys_are_refused_as_peer_key_and_as_ephemeral() {
        let (alice, bob, mut rng) = identities();
        let header = [1; HEADER_LEN];
        for point in LOW_ORDER {
            let point = PublicKey(point);
            assert!(is_low_order(&point));
            let started = IkInitiator::start(&alice, &point, &none(), &header, &[2; PAYLOAD_LEN], &mut rng);
            assert!(started.is_err(), "no packet for the peer key {:02x?}", point.0);

            let (_, mut message) =
                IkInitiator::start(&alice, &bob.public, &none(), &header, &[2; PAYLOAD_LEN], &mut rng).expect("starts");
            message[..32].copy_from_slice(&point.0);
            assert!(IkResponder::read(&bob, &header, &message, &mut rng).is_err(), "ephemeral {:02x?}", point.0);

            let mut xx = [0; ENROL1_NOISE_LEN];
            xx[..32].copy_from_slice(&point.0);
            let answered = XxResponder::respond(&bob, &none(), &header, &xx, &[0; WELCOME_LEN], &mut rng);
            assert!(answered.is_err(), "enrolment with ephemeral {:02x?}", point.0);
        }
        assert!(!is_low_order(&alice.public));
        println!("S-09: {} low-order points refused in 3 places each", LOW_ORDER.len());
    }

    #[test]
    fn enrolment_works_with_the_token_and_fails_with_another() {
        let (client, server, mut rng) = identities();
        let header = [1; HEADER_LEN];
        for (theirs, fits) in [([4; 32], true), ([5; 32], false)] {
            let (mut initiator, message) =
                XxInitiator::start(&client, &Zeroizing::new([4; 32]), &header, &mut rng).expect("starts");
            let (mut responder, answer) =
                XxResponder::respond(&server, &Zeroizing::new(theirs), &header, &message, &[6; WELCOME_LEN], &mut rng)
                    .expect("answers whatever the token");
            assert_eq!(initiator.read(&answer), Ok((server.public, [6; WELCOME_LEN])));
            let (last, clients) = initiator.finish(&[7; PAYLOAD_LEN]).expect("finishes");
            let result = responder.finish(&last);
            assert_eq!(result.is_ok(), fits);
            if let Ok((key, payload, servers)) = result {
                assert_eq!((key, payload, &servers[..]), (client.public, [7; PAYLOAD_LEN], &clients[..]));
            }
        }
    }
}
