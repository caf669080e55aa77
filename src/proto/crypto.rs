//! Primitives with our labels on them: hashes and MACs, AEAD suites, signatures, and what a node trusts.
//!
//! The only file of the cores that names a cryptography library for transport and signatures (Noise is in
//! [`noise`](super::noise)). Key types have no `Debug` that shows them, no `==`, and are wiped on drop.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use zeroize::Zeroizing;

use crate::counters::DropReason;
use crate::ids::{NetworkId, PublicKey};
use crate::wire::cert::{CERT_CONTEXT, CERT_LEN, CERT_SIGNED_LEN, Certificate, REVOKE_CONTEXT, Revocation};
use crate::wire::header::TAG_LEN;

/// A 32-byte secret that is wiped when dropped.
pub type Secret32 = Zeroizing<[u8; 32]>;

/// BLAKE2s-256 (RFC 7693) over the parts in turn.
pub fn blake2s(parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().fold(Blake2s256::new(), |hash, part| hash.chain_update(part)).finalize().into()
}

/// Keyed BLAKE2s with 16 bytes of output, as in WireGuard's MAC1 and MAC2. `key` has 1 to 32 bytes.
pub fn mac16(key: &[u8], data: &[u8]) -> [u8; 16] {
    let mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("keys have at most 32 bytes");
    mac.chain_update(data).finalize().into_bytes().into()
}

/// Compares two MACs in constant time.
pub fn same_mac(left: &[u8; 16], right: &[u8; 16]) -> bool {
    subtle::ConstantTimeEq::ct_eq(&left[..], &right[..]).into()
}

/// Key of MAC1: who does not know the responder's key (and the network's pre-shared key, if it has one) gets no answer.
pub fn mac1_key(responder: &PublicKey, network_psk: &[u8; 32]) -> [u8; 32] {
    blake2s(&[b"eps1 mac1", &responder.0, &blake2s(&[network_psk])])
}

/// Key of MAC1 in enrolments, where the client knows only the fingerprint of the server's key.
pub fn enrol_mac1_key(fingerprint: &[u8; 16]) -> [u8; 32] {
    blake2s(&[b"eps1 mac1 enrol", fingerprint])
}

/// The Noise PSK of a pair: derived from the network's pre-shared key and both node keys; zero without one.
pub fn pair_psk(network_psk: &[u8; 32], one: &PublicKey, other: &PublicKey) -> Secret32 {
    if network_psk.iter().all(|byte| *byte == 0) {
        return Zeroizing::new([0; 32]);
    }
    let (low, high) = if one.0 < other.0 { (one, other) } else { (other, one) };
    let derived = Salt::new(HKDF_SHA256, b"eps1 pair psk").extract(network_psk);
    expand(&derived, &[&low.0, &high.0])
}

/// Transport cipher suites. A suite of no encryption does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Suite {
    /// RFC 8439; every node has it.
    ChaCha20Poly1305 = 1,
    /// NIST SP 800-38D; preferred where both ends have AES instructions.
    Aes256Gcm = 3,
}

/// The suites a node offers, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suites(pub u8);

impl Suites {
    /// What this machine runs fast, and the mandatory suite.
    pub fn of_this_machine() -> Self {
        let mandatory = 1 << Suite::ChaCha20Poly1305 as u8;
        if has_aes_instructions() { Self(mandatory | 1 << Suite::Aes256Gcm as u8) } else { Self(mandatory) }
    }

    /// The suite both have that the responder likes best.
    pub fn choose(self, offered: Self) -> Option<Suite> {
        let common = self.0 & offered.0;
        [Suite::Aes256Gcm, Suite::ChaCha20Poly1305].into_iter().find(|suite| common & (1 << *suite as u8) != 0)
    }

    /// Whether `chosen` names a suite that was offered.
    pub fn accept(self, chosen: u8) -> Option<Suite> {
        let suite = match chosen {
            1 => Suite::ChaCha20Poly1305,
            3 => Suite::Aes256Gcm,
            _ => return None,
        };
        (self.0 & (1 << chosen) != 0).then_some(suite)
    }
}

fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// One direction of a session's transport.
pub struct TransportKey(LessSafeKey);

impl TransportKey {
    /// Seals in place; `data` is the plaintext, the tag is returned. The nonce is four zero bytes and the counter,
    /// so a counter must never be used twice with one key.
    pub fn seal(&self, counter: u64, header: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(counter), Aad::from(header), data)
            .expect("frames are far below the length limit of either suite");
        tag.as_ref().try_into().expect("both suites have 16-byte tags")
    }

    /// Opens in place; `sealed` is the ciphertext and its tag. Gives the plaintext's part of it.
    pub fn open<'a>(&self, counter: u64, header: &[u8], sealed: &'a mut [u8]) -> Result<&'a mut [u8], DropReason> {
        self.0.open_in_place(nonce(counter), Aad::from(header), sealed).map_err(|_| DropReason::NotAuthentic)
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// The transport keys of a session, initiator to responder and back.
pub struct TransportKeys {
    pub i2r: TransportKey,
    pub r2i: TransportKey,
}

/// Derives the transport keys from what Noise's Split gives: HKDF-SHA256 with our labels and the suite number, so
/// that the chosen suite is bound by the keys themselves.
pub fn transport_keys(split: &Zeroizing<[u8; 64]>, suite: Suite) -> TransportKeys {
    let derived = Salt::new(HKDF_SHA256, b"eps1 transport").extract(&split[..]);
    let key = |label: &[u8]| {
        let bytes = expand(&derived, &[label, &[suite as u8]]);
        let algorithm = match suite {
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Suite::Aes256Gcm => &AES_256_GCM,
        };
        TransportKey(LessSafeKey::new(UnboundKey::new(algorithm, &bytes[..]).expect("both suites take 32-byte keys")))
    };
    TransportKeys { i2r: key(b"eps1 i2r"), r2i: key(b"eps1 r2i") }
}

struct Bytes32;

impl KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

fn expand(key: &aws_lc_rs::hkdf::Prk, info: &[&[u8]]) -> Secret32 {
    let mut bytes = Zeroizing::new([0; 32]);
    key.expand(info, Bytes32).and_then(|okm| okm.fill(&mut bytes[..])).expect("32 bytes are within HKDF's limit");
    bytes
}

/// The network's signing key, at the server only.
pub struct Signer(Ed25519KeyPair);

impl Signer {
    /// Takes the 32-byte Ed25519 seed (RFC 8032).
    pub fn from_seed(seed: &Secret32) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&seed[..]).expect("an Ed25519 seed is any 32 bytes"))
    }

    /// The key members check signatures with.
    pub fn public(&self) -> [u8; 32] {
        self.0.public_key().as_ref().try_into().expect("Ed25519 public keys have 32 bytes")
    }

    /// Signs a certificate.
    pub fn certify(&self, certificate: &Certificate) -> [u8; CERT_LEN] {
        let signed = certificate.signed_bytes();
        let mut bytes = [0; CERT_LEN];
        bytes[..CERT_SIGNED_LEN].copy_from_slice(&signed);
        bytes[CERT_SIGNED_LEN..].copy_from_slice(self.0.sign(&[CERT_CONTEXT, &signed].concat()).as_ref());
        bytes
    }

    /// Signs a revocation.
    pub fn revoke(&self, revocation: &Revocation) -> Vec<u8> {
        let mut bytes = revocation.signed_bytes();
        let signature = self.0.sign(&[REVOKE_CONTEXT, &bytes].concat());
        bytes.extend(signature.as_ref());
        bytes
    }
}

/// What a member trusts: the network's signing key, the highest epoch it has seen signed, and what is revoked.
///
/// Freshness is relative: a certificate holds while its expiry is not below the highest epoch seen. With the server
/// down no epoch grows, so nothing expires; and no wall clock is asked.
#[derive(Debug, Clone)]
pub struct Trust {
    network: NetworkId,
    signer: [u8; 32],
    epoch: u64,
    revoked: BTreeSet<u64>,
    /// The objects that say so, by epoch and first serial, to be passed on.
    objects: BTreeMap<(u64, u64), Vec<u8>>,
}

impl Trust {
    /// The longest life of a certificate, in epochs; a longer one was not issued by our rules.
    pub const LIFETIME_MAX: u64 = 24 * 7;
    /// How far a signed epoch may run ahead of the highest one seen: a year of hours. A node that was away for longer
    /// enrols again; a forged epoch cannot lock everybody out for good.
    pub const AHEAD_MAX: u64 = 24 * 366;
    /// Revocation objects kept to be passed on.
    const OBJECTS_MAX: usize = 64;

    pub fn new(network: NetworkId, signer: [u8; 32], epoch: u64) -> Self {
        Self { network, signer, epoch, revoked: BTreeSet::new(), objects: BTreeMap::new() }
    }

    pub fn network(&self) -> NetworkId {
        self.network
    }

    pub fn signer(&self) -> [u8; 32] {
        self.signer
    }

    /// The highest epoch seen in a signed object.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Checks a certificate against everything known, and learns its epoch.
    pub fn check(&mut self, bytes: &[u8; CERT_LEN]) -> Result<Certificate, DropReason> {
        let certificate = Certificate::parse(bytes)?;
        let sane = certificate.network == self.network
            && certificate.issued <= certificate.expires
            && certificate.expires - certificate.issued <= Self::LIFETIME_MAX
            && certificate.issued <= self.epoch + Self::AHEAD_MAX
            && certificate.expires >= self.epoch;
        if !sane {
            return Err(DropReason::BadCertificate);
        }
        if self.revoked.contains(&certificate.serial) {
            return Err(DropReason::Revoked);
        }
        self.verify(CERT_CONTEXT, &bytes[..CERT_SIGNED_LEN], &bytes[CERT_SIGNED_LEN..])?;
        self.epoch = self.epoch.max(certificate.issued);
        Ok(certificate)
    }

    /// Whether a certificate that was checked before still holds.
    pub fn holds(&self, certificate: &Certificate) -> bool {
        certificate.expires >= self.epoch && !self.revoked.contains(&certificate.serial)
    }

    /// Whether a serial was revoked by the network's signature.
    pub fn is_revoked(&self, serial: u64) -> bool {
        self.revoked.contains(&serial)
    }

    /// Takes up a revocation; `true` if it says something new (and should be passed on).
    pub fn learn(&mut self, object: &[u8]) -> Result<bool, DropReason> {
        let (revocation, signed, signature) = Revocation::parse(object)?;
        if revocation.network != self.network || revocation.epoch > self.epoch + Self::AHEAD_MAX {
            return Err(DropReason::BadCertificate);
        }
        let known = revocation.serials.iter().all(|serial| self.revoked.contains(serial));
        if known && revocation.epoch <= self.epoch {
            return Ok(false);
        }
        self.verify(REVOKE_CONTEXT, signed, &signature)?;
        self.epoch = self.epoch.max(revocation.epoch);
        self.revoked.extend(&revocation.serials);
        let first = revocation.serials.first().copied().unwrap_or(0);
        self.objects.insert((revocation.epoch, first), object.to_vec());
        if self.objects.len() > Self::OBJECTS_MAX {
            self.objects.pop_first();
        }
        Ok(!known)
    }

    /// The revocations seen, newest last, as signed.
    pub fn revocations(&self) -> impl Iterator<Item = &[u8]> {
        self.objects.values().map(Vec::as_slice)
    }

    fn verify(&self, context: &[u8], signed: &[u8], signature: &[u8]) -> Result<(), DropReason> {
        UnparsedPublicKey::new(&ED25519, &self.signer)
            .verify(&[context, signed].concat(), signature)
            .map_err(|_| DropReason::BadCertificate)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::ids::MacAddr;

    fn signer(seed: u8) -> Signer {
        Signer::from_seed(&Zeroizing::new([seed; 32]))
    }

    fn certificate() -> Certificate {
        Certificate {
            rights: 0,
            groups: 0,
            network: NetworkId(1),
            key: PublicKey([9; 32]),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            ip4: Ipv4Addr::new(192, 168, 43, 7),
            prefix4: 24,
            ip6: None,
            prefix6: 0,
            issued: 100,
            expires: 124,
            serial: 77,
        }
    }

    #[test]
    fn a_sealed_frame_opens_with_the_other_ends_key_only() {
        for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
            let keys = transport_keys(&Zeroizing::new([3; 64]), suite);
            let mut data = b"a frame".to_vec();
            let tag = keys.i2r.seal(5, b"header", &mut data);
            assert_ne!(data, b"a frame");
            data.extend(tag);
            assert_eq!(keys.r2i.open(5, b"header", &mut data.clone()), Err(DropReason::NotAuthentic));
            assert_eq!(keys.i2r.open(6, b"header", &mut data.clone()), Err(DropReason::NotAuthentic));
            assert_eq!(keys.i2r.open(5, b"Header", &mut data.clone()), Err(DropReason::NotAuthentic));
            assert_eq!(keys.i2r.open(5, b"header", &mut data).map(|plain| plain.to_vec()), Ok(b"a frame".to_vec()));
        }
    }

    #[test]
    fn the_responder_chooses_aes_where_both_have_it() {
        let (both, chacha) = (Suites(0b1010), Suites(0b0010));
        assert_eq!(both.choose(both), Some(Suite::Aes256Gcm));
        assert_eq!(both.choose(chacha), Some(Suite::ChaCha20Poly1305));
        assert_eq!(chacha.choose(Suites(0b1000)), None);
        assert_eq!((chacha.accept(3), both.accept(0), both.accept(200)), (None, None, None));
    }

    #[test]
    fn s_10_certificates_that_must_be_refused_are() {
        let signer_ = signer(1);
        let mut trust = Trust::new(NetworkId(1), signer_.public(), 110);
        let good = signer_.certify(&certificate());
        assert_eq!(trust.check(&good), Ok(certificate()));

        let with = |change: &dyn Fn(&mut Certificate)| {
            let mut changed = certificate();
            change(&mut changed);
            changed
        };
        let refused: Vec<(&str, [u8; CERT_LEN])> = vec![
            ("wrong signature", signer(2).certify(&certificate())),
            ("other network", signer_.certify(&with(&|c| c.network = NetworkId(2)))),
            ("expired epoch", signer_.certify(&with(&|c| (c.issued, c.expires) = (80, 109)))),
            ("future epoch", signer_.certify(&with(&|c| (c.issued, c.expires) = (1 << 40, (1 << 40) + 24)))),
            ("expires before issue", signer_.certify(&with(&|c| c.expires = 99))),
            ("endless life", signer_.certify(&with(&|c| c.expires = u64::MAX))),
            ("wrong key", {
                let mut altered = good;
                altered[20] ^= 1;
                altered
            }),
        ];
        for (what, bytes) in &refused {
            assert_eq!(trust.check(bytes), Err(DropReason::BadCertificate), "{what}");
        }
        assert_eq!(trust.epoch(), 110, "nothing refused moved the epoch");

        let revocation = Revocation { network: NetworkId(1), epoch: 111, serials: vec![77] };
        assert!(trust.learn(&signer(2).revoke(&revocation)).is_err(), "a revocation signed by somebody else");
        assert_eq!(trust.learn(&signer_.revoke(&revocation)), Ok(true));
        assert_eq!(trust.learn(&signer_.revoke(&revocation)), Ok(false), "known");
        assert_eq!(trust.check(&good), Err(DropReason::Revoked));
        assert!(!trust.holds(&certificate()));
        println!("S-10: {} kinds of certificate refused, 1 revoked serial refused", refused.len());
    }

    #[test]
    fn s_05_every_flipped_bit_of_a_certificate_is_refused() {
        let signer = signer(1);
        let good = signer.certify(&certificate());
        for bit in 0..CERT_LEN * 8 {
            let mut trust = Trust::new(NetworkId(1), signer.public(), 110);
            let mut flipped = good;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(trust.check(&flipped).is_err(), "bit {bit}");
            assert_eq!(trust.epoch(), 110);
        }
        println!("S-05: {} flipped bits of a certificate refused", CERT_LEN * 8);
    }
}
