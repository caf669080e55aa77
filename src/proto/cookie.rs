//! The gate before handshakes: MAC1 always, and under load a cookie that proves the sender's address, then a budget
//! per address.
//!
//! As WireGuard does it: who does not know the responder's key costs one hash; who floods with the key known must
//! first show that it receives at the address it writes from. Cookies are sealed, bound to the MAC1 they answer, and
//! made from a secret that changes every two minutes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use rand::CryptoRng;
use zeroize::Zeroizing;

use super::crypto::{blake2s, mac16, same_mac};
use super::source_budget::site_of;
use crate::counters::DropReason;
use crate::wire::handshake::{CookieReply, HandshakeView, MAC_LEN};

/// A cookie's secret is replaced after this long.
const SECRET_LIFE: Duration = Duration::from_secs(120);
/// How long an initiator uses a cookie: a little less than the responder honours it.
pub const COOKIE_LIFE: Duration = Duration::from_secs(115);
/// Under load a source may begin this many handshakes a second, in bursts of [`BURST`].
const PER_SECOND: f64 = 20.0;
const BURST: f64 = 5.0;
/// Sources remembered at a time; beyond it the oldest are forgotten.
const SOURCES_MAX: usize = 4096;

/// What becomes of a handshake datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Admit {
    /// Work on it.
    Yes,
    /// Answer with this cookie and nothing else.
    Cookie(CookieReply),
    No(DropReason),
}

/// The responder's side.
pub struct Gate {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    secret: Zeroizing<[u8; 32]>,
    secret_until: Instant,
    /// Handshakes a second above which the node counts as under load.
    load_limit: u32,
    second: Instant,
    in_second: u32,
    under_load_until: Instant,
    sources: BTreeMap<IpAddr, (f64, Instant)>,
}

impl Gate {
    /// `mac1_key` is of our own key; `load_limit` is in handshakes a second.
    pub fn new(mac1_key: [u8; 32], load_limit: u32, now: Instant, rng: &mut impl CryptoRng) -> Self {
        let mut gate = Self {
            mac1_key,
            cookie_key: cookie_key(&mac1_key),
            secret: Zeroizing::new([0; 32]),
            secret_until: now + SECRET_LIFE,
            load_limit,
            second: now,
            in_second: 0,
            under_load_until: now,
            sources: BTreeMap::new(),
        };
        rng.fill_bytes(&mut gate.secret[..]);
        gate
    }

    /// Decides on a handshake that asks for work. `from` is `None` when it came through a relay, which has proven its
    /// sender's address already and has limits of its own.
    pub fn admit(
        &mut self,
        view: &HandshakeView<'_>,
        from: Option<SocketAddr>,
        now: Instant,
        rng: &mut impl CryptoRng,
    ) -> Admit {
        if !same_mac(&mac16(&self.mac1_key, view.before_mac1), &view.mac1) {
            return Admit::No(DropReason::BadMac1);
        }
        let under_load = self.count(now);
        let Some(from) = from.filter(|_| under_load) else { return Admit::Yes };
        if now >= self.secret_until {
            rng.fill_bytes(&mut self.secret[..]);
            self.secret_until = now + SECRET_LIFE;
        }
        let cookie = self.cookie(from);
        if !same_mac(&mac16(&cookie, view.before_mac2), &view.mac2) {
            return Admit::Cookie(self.reply(view, cookie, rng));
        }
        if self.take_token(from.ip(), now) { Admit::Yes } else { Admit::No(DropReason::HandshakeFlood) }
    }

    /// Counts a handshake; `true` while there are too many, and for a second after.
    fn count(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.in_second = 0;
        }
        self.in_second += 1;
        if self.in_second > self.load_limit {
            self.under_load_until = now + Duration::from_secs(1);
        }
        now < self.under_load_until
    }

    fn cookie(&self, from: SocketAddr) -> [u8; 16] {
        let octets = match from.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        mac16(&self.secret[..], &[&octets[..], &from.port().to_le_bytes()].concat())
    }

    fn reply(&self, view: &HandshakeView<'_>, cookie: [u8; 16], rng: &mut impl CryptoRng) -> CookieReply {
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let mut sealed = [0; 32];
        sealed[..16].copy_from_slice(&cookie);
        let (body, tag) = sealed.split_at_mut(16);
        let made = cipher(&self.cookie_key)
            .encrypt_in_place_detached(XNonce::from_slice(&nonce), &view.mac1, body)
            .expect("16 bytes are within the cipher's limit");
        tag.copy_from_slice(&made);
        CookieReply { receiver: view.header.sender, nonce, sealed }
    }

    /// A token bucket per IPv4 address or IPv6 /64.
    fn take_token(&mut self, ip: IpAddr, now: Instant) -> bool {
        let source = match ip {
            IpAddr::V4(_) => ip,
            IpAddr::V6(ip) => IpAddr::V6(site_of(ip)),
        };
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sources.retain(|_, (_, last)| now.saturating_duration_since(*last) < Duration::from_secs(1));
            if self.sources.len() >= SOURCES_MAX {
                return false;
            }
        }
        let (tokens, last) = self.sources.entry(source).or_insert((BURST, now));
        *tokens = (*tokens + now.saturating_duration_since(*last).as_secs_f64() * PER_SECOND).min(BURST);
        *last = now;
        let enough = *tokens >= 1.0;
        if enough {
            *tokens -= 1.0;
        }
        enough
    }
}

/// The initiator's side: MAC1 on what it sends, MAC2 while it holds a cookie.
#[derive(Clone)]
pub struct Macs {
    mac1_key: [u8; 32],
    cookie: Option<([u8; 16], Instant)>,
    last_mac1: [u8; MAC_LEN],
}

impl Macs {
    /// `mac1_key` is of the responder's key.
    pub fn new(mac1_key: [u8; 32]) -> Self {
        Self { mac1_key, cookie: None, last_mac1: [0; MAC_LEN] }
    }

    /// Puts a whole handshake datagram together from its header, its Noise message and both MACs.
    pub fn finish(&mut self, header: &[u8], noise: &[u8], now: Instant) -> Vec<u8> {
        let mut datagram = Vec::with_capacity(header.len() + noise.len() + 2 * MAC_LEN);
        datagram.extend(header);
        datagram.extend(noise);
        self.last_mac1 = mac16(&self.mac1_key, &datagram);
        datagram.extend(self.last_mac1);
        let mac2 = match &self.cookie {
            Some((cookie, until)) if now < *until => mac16(cookie, &datagram),
            _ => [0; MAC_LEN],
        };
        datagram.extend(mac2);
        datagram
    }

    /// Takes up a cookie that answers the last datagram made.
    pub fn take_cookie(&mut self, reply: &CookieReply, now: Instant) -> Result<(), DropReason> {
        let mut cookie: [u8; 16] = reply.sealed[..16].try_into().expect("32 bytes");
        cipher(&cookie_key(&self.mac1_key))
            .decrypt_in_place_detached(
                XNonce::from_slice(&reply.nonce),
                &self.last_mac1,
                &mut cookie,
                reply.sealed[16..].into(),
            )
            .map_err(|_| DropReason::NotAuthentic)?;
        self.cookie = Some((cookie, now + COOKIE_LIFE));
        Ok(())
    }
}

fn cookie_key(mac1_key: &[u8; 32]) -> [u8; 32] {
    blake2s(&[b"eps1 cookie", mac1_key])
}

fn cipher(key: &[u8; 32]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(Key::from_slice(key))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::ids::SessionIndex;
    use crate::wire::handshake::{HandshakeHeader, INIT_NOISE_LEN};
    use crate::wire::header::Kind;

    fn init(macs: &mut Macs, now: Instant) -> Vec<u8> {
        let header = HandshakeHeader { kind: Kind::Init, suites: 2, sender: SessionIndex(5), detail: 0 };
        macs.finish(&header.to_bytes(), &[7; INIT_NOISE_LEN], now)
    }

    fn admit(gate: &mut Gate, datagram: &[u8], from: &str, now: Instant, rng: &mut StdRng) -> Admit {
        let view = HandshakeView::parse(datagram).expect("well formed");
        gate.admit(&view, Some(from.parse().expect("an address")), now, rng)
    }

    #[test]
    fn a_stranger_who_does_not_know_the_key_costs_one_hash() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut gate = Gate::new([1; 32], 10, now, &mut rng);
        let datagram = init(&mut Macs::new([2; 32]), now);
        assert_eq!(admit(&mut gate, &datagram, "192.0.2.1:9", now, &mut rng), Admit::No(DropReason::BadMac1));
    }

    #[test]
    fn under_load_a_cookie_opens_the_gate_for_its_address_only() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut gate = Gate::new([1; 32], 3, now, &mut rng);
        let mut macs = Macs::new([1; 32]);
        let datagram = init(&mut macs, now);
        for _ in 0..3 {
            assert_eq!(admit(&mut gate, &datagram, "192.0.2.1:9", now, &mut rng), Admit::Yes);
        }
        let Admit::Cookie(reply) = admit(&mut gate, &datagram, "192.0.2.1:9", now, &mut rng) else {
            panic!("the fourth in a second must show a cookie")
        };
        assert!(macs.clone().take_cookie(&CookieReply { nonce: [0; 24], ..reply }, now).is_err());
        macs.take_cookie(&reply, now).expect("it answers our datagram");
        let with_cookie = init(&mut macs, now);
        assert_eq!(admit(&mut gate, &with_cookie, "192.0.2.1:9", now, &mut rng), Admit::Yes);
        assert!(matches!(admit(&mut gate, &with_cookie, "192.0.2.2:9", now, &mut rng), Admit::Cookie(_)));
        assert!(matches!(admit(&mut gate, &with_cookie, "192.0.2.1:10", now, &mut rng), Admit::Cookie(_)));

        let admitted =
            (0..20).filter(|_| admit(&mut gate, &with_cookie, "192.0.2.1:9", now, &mut rng) == Admit::Yes).count();
        assert_eq!(admitted, 4, "a burst of five in all");
    }

    #[test]
    fn s_05_every_flipped_bit_of_a_cookie_is_refused() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut gate = Gate::new([1; 32], 0, now, &mut rng);
        let mut macs = Macs::new([1; 32]);
        let datagram = init(&mut macs, now);
        let Admit::Cookie(reply) = admit(&mut gate, &datagram, "192.0.2.1:9", now, &mut rng) else {
            panic!("a limit of none means always under load")
        };
        let bytes = reply.to_bytes();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let taken = CookieReply::parse(&flipped)
                .and_then(|reply| if reply.receiver.0 == 5 { Ok(reply) } else { Err(DropReason::UnknownSession) })
                .and_then(|reply| macs.clone().take_cookie(&reply, now));
            assert!(taken.is_err(), "bit {bit}");
        }
        println!("S-05: {} flipped bits of a COOKIE refused", bytes.len() * 8);
    }
}
