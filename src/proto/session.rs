//! Transport of one handshake's keys: seal and open in place, the send counter, the replay window.
//!
//! A session is immutable but for atomics and one small lock around the replay window, so the data path shares it by
//! `Arc` and forwards while its maker ([`link`](super::link)) restarts. It never decides anything: ageing is switched
//! by its owner through [`Session::expire`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::crypto::{Suite, TransportKey};
use super::replay::{ReplayWindow, WORDS_MANY_PATHS};
use super::whole::Gate;
use crate::counters::DropReason;
use crate::ids::{PeerIdx, PublicKey, SessionIndex};
use crate::wire::handshake::Capabilities;
use crate::wire::header::{FragHeader, HEADER_LEN, Kind, OVERHEAD, SealedHeader, TAG_LEN};

/// Whom a session is with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The coordinating server (at a client).
    Server,
    /// A peer (at a client) or a member (at the server).
    Peer(PeerIdx),
}

/// What passed between us and one peer, over all its sessions. Written by the data path, read by everybody.
#[derive(Debug, Default)]
pub struct Meter {
    pub rx_frames: AtomicU64,
    pub rx_bytes: AtomicU64,
    pub tx_frames: AtomicU64,
    pub tx_bytes: AtomicU64,
    /// When an authentic datagram last came: milliseconds since the node's [`Epoch`], plus one; 0 for never.
    heard: AtomicU64,
    /// When a frame was last sent, likewise.
    sent: AtomicU64,
    /// When a frame (not a control message) last came, likewise.
    carried: AtomicU64,
    /// Whether super-frames are sealed whole.
    pub whole: Gate,
}

impl Meter {
    /// Counts frames that came in one batch.
    pub fn received(&self, frames: u64, bytes: u64, now_ms: u64) {
        self.rx_frames.fetch_add(frames, Relaxed);
        self.rx_bytes.fetch_add(bytes, Relaxed);
        self.carried.store(now_ms + 1, Relaxed);
        self.heard(now_ms);
    }

    /// Counts frames that were sent.
    pub fn transmitted(&self, frames: u64, bytes: u64, now_ms: u64) {
        self.tx_frames.fetch_add(frames, Relaxed);
        self.tx_bytes.fetch_add(bytes, Relaxed);
        self.sent.store(now_ms + 1, Relaxed);
    }

    /// Notes an authentic datagram.
    pub fn heard(&self, now_ms: u64) {
        self.heard.store(now_ms + 1, Relaxed);
    }

    /// When an authentic datagram last came, in milliseconds since the epoch.
    pub fn heard_ms(&self) -> Option<u64> {
        self.heard.load(Relaxed).checked_sub(1)
    }

    /// When a frame was last sent, in milliseconds since the epoch.
    pub fn sent_ms(&self) -> Option<u64> {
        self.sent.load(Relaxed).checked_sub(1)
    }

    /// When a frame last came or went, in milliseconds since the epoch.
    pub fn used_ms(&self) -> Option<u64> {
        self.carried.load(Relaxed).max(self.sent.load(Relaxed)).checked_sub(1)
    }
}

/// The instant a node's atomics count milliseconds from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(pub Instant);

impl Epoch {
    /// Milliseconds since the epoch.
    pub fn ms(self, now: Instant) -> u64 {
        now.saturating_duration_since(self.0).as_millis() as u64
    }

    /// The instant of a number of milliseconds.
    pub fn at(self, ms: u64) -> Instant {
        self.0 + Duration::from_millis(ms)
    }
}

/// Keys of one handshake, both directions.
pub struct Session {
    pub owner: Owner,
    pub remote: PublicKey,
    /// Our number for it: what comes in carries this.
    pub local_index: SessionIndex,
    /// The other side's number for it: what goes out carries this.
    pub remote_index: SessionIndex,
    pub initiator: bool,
    pub born: Instant,
    pub suite: Suite,
    /// What the other side can take.
    pub capabilities: Capabilities,
    pub meter: Arc<Meter>,
    seal_key: TransportKey,
    open_key: TransportKey,
    counter: AtomicU64,
    replay: Mutex<ReplayWindow>,
    expired: AtomicBool,
    confirmed: AtomicBool,
    marks: Mutex<VecDeque<(Instant, u64)>>,
}

/// Replay window with one path, in words of 64 counters: 8,192 counters, as WireGuard has.
pub const WINDOW_WORDS: usize = 128;
/// Messages after which keys must not be used: the limit of AES-GCM at our frame size, with a margin of 2.
pub const MESSAGES_MAX: u64 = 1 << 33;
/// Messages after which a new handshake is begun.
pub const MESSAGES_REKEY: u64 = 1 << 32;
/// How old a counter may be that a HINT is believed for.
const HINT_MEMORY: Duration = Duration::from_secs(5);

/// What a session is made of, apart from its keys.
pub struct SessionParts {
    pub owner: Owner,
    pub remote: PublicKey,
    pub local_index: SessionIndex,
    pub remote_index: SessionIndex,
    pub initiator: bool,
    pub suite: Suite,
    pub capabilities: Capabilities,
    pub meter: Arc<Meter>,
    pub seal_key: TransportKey,
    pub open_key: TransportKey,
}

impl Session {
    /// Starts transport with fresh keys. An initiator's session is confirmed from the start: the response proved that
    /// the other side has the keys.
    pub fn new(parts: SessionParts, now: Instant) -> Self {
        Self {
            owner: parts.owner,
            remote: parts.remote,
            local_index: parts.local_index,
            remote_index: parts.remote_index,
            initiator: parts.initiator,
            born: now,
            suite: parts.suite,
            capabilities: parts.capabilities,
            meter: parts.meter,
            seal_key: parts.seal_key,
            open_key: parts.open_key,
            counter: AtomicU64::new(0),
            replay: Mutex::new(ReplayWindow::new(WINDOW_WORDS)),
            expired: AtomicBool::new(false),
            confirmed: AtomicBool::new(parts.initiator),
            marks: Mutex::new(VecDeque::new()),
        }
    }

    /// Widens the replay window to `words` of 64 counters: on several paths it is the duplicate filter.
    pub fn with_window(mut self, words: usize) -> Self {
        self.replay = Mutex::new(ReplayWindow::new(words));
        self
    }

    /// Length of the datagram that carries `plain` bytes: padded to 16, but not beyond `limit` bytes of plaintext, so
    /// that padding never makes a datagram too long for its path.
    pub fn sealed_len(plain: usize, limit: usize) -> usize {
        OVERHEAD + plain.next_multiple_of(16).min(limit.max(plain))
    }

    /// Seals a datagram in place. `datagram` has [`sealed_len`](Self::sealed_len) bytes and holds `plain` bytes of
    /// plaintext after the header's room. Called per frame: no allocation, no lock.
    /// `partial` marks a frame whose checksum the receiver has to complete, if it [can](Capabilities).
    pub fn seal_frame(&self, partial: bool, datagram: &mut [u8], plain: usize) -> Result<(), DropReason> {
        self.seal(Kind::Data, partial, datagram, plain)
    }

    fn seal(&self, kind: Kind, partial: bool, datagram: &mut [u8], plain: usize) -> Result<(), DropReason> {
        let counter = self.next_counter()?;
        let padding = datagram.len() - OVERHEAD - plain;
        debug_assert!(padding < 16, "padding has four bits");
        let header = SealedHeader { kind, padding: padding as u8, partial, receiver: self.remote_index, counter };
        let header = header.to_bytes();
        datagram[..HEADER_LEN].copy_from_slice(&header);
        let (body, tag) = datagram[HEADER_LEN..].split_at_mut(plain + padding);
        body[plain..].fill(0);
        tag.copy_from_slice(&self.seal_key.seal(counter, &header, body));
        Ok(())
    }

    fn next_counter(&self) -> Result<u64, DropReason> {
        let counter = self.counter.fetch_add(1, Relaxed);
        if counter >= MESSAGES_MAX || self.expired.load(Relaxed) {
            Err(DropReason::SessionExpired)
        } else {
            Ok(counter)
        }
    }

    /// Seals a message whole, in place, that will go in `count` fragments: the header of the first, and the tag that
    /// follows the message. No allocation, no lock.
    pub fn seal_whole(&self, count: u8, message: &mut [u8]) -> Result<(FragHeader, [u8; TAG_LEN]), DropReason> {
        let header = FragHeader { receiver: self.remote_index, counter: self.next_counter()?, index: 0, count };
        let tag = self.seal_key.seal(header.counter, &header.to_bytes(), message);
        Ok((header, tag))
    }

    /// Opens a message put together from fragments, its tag included, in place; as [`Opener::open`].
    pub fn open_whole<'a>(&self, fragment: &FragHeader, sealed: &'a mut [u8]) -> Result<&'a mut [u8], DropReason> {
        let first = FragHeader { index: 0, ..*fragment };
        self.opener().open_with(first.counter, &first.to_bytes(), sealed)
    }

    /// Whether a datagram with this counter might still be accepted.
    pub fn is_fresh(&self, counter: u64) -> bool {
        self.opener().replay.is_fresh(counter)
    }

    /// Seals a control message into a datagram of its own.
    pub fn seal_control(&self, plain: &[u8]) -> Result<Vec<u8>, DropReason> {
        self.seal_control_in(Self::sealed_len(plain.len(), usize::MAX), plain)
    }

    /// As [`seal_control`](Self::seal_control), without padding: a probe has the length that is asked about.
    pub fn seal_unpadded(&self, plain: &[u8]) -> Result<Vec<u8>, DropReason> {
        self.seal_control_in(OVERHEAD + plain.len(), plain)
    }

    fn seal_control_in(&self, length: usize, plain: &[u8]) -> Result<Vec<u8>, DropReason> {
        let mut datagram = vec![0; length];
        datagram[HEADER_LEN..HEADER_LEN + plain.len()].copy_from_slice(plain);
        self.seal(Kind::Ctrl, false, &mut datagram, plain.len())?;
        Ok(datagram)
    }

    /// Opens one datagram in place and gives its plaintext; see [`Opener::open`].
    pub fn open<'a>(&self, header: &SealedHeader, datagram: &'a mut [u8]) -> Result<&'a mut [u8], DropReason> {
        self.opener().open(header, datagram)
    }

    /// Makes the replay window large enough for paths of very different delays; it stays so.
    pub fn widen(&self) {
        self.opener().replay.grow(WORDS_MANY_PATHS);
    }

    /// Opens datagrams that came together; holds the replay window meanwhile.
    pub fn opener(&self) -> Opener<'_> {
        Opener { session: self, replay: self.replay.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Notes the first authentic datagram; `true` once, for a responder: the initiator has the keys.
    pub fn confirm(&self) -> bool {
        !self.confirmed.load(Relaxed) && !self.confirmed.swap(true, Relaxed)
    }

    /// Ends it: nothing more is sealed or opened.
    pub fn expire(&self) {
        self.expired.store(true, Relaxed);
    }

    /// Messages sealed so far.
    pub fn sent(&self) -> u64 {
        self.counter.load(Relaxed)
    }

    /// Remembers where the counter stands, for [`sent_lately`](Self::sent_lately). Called about once a second.
    pub fn mark(&self, now: Instant) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.push_back((now, self.sent()));
        while marks.len() > 1 && now.saturating_duration_since(marks[1].0) >= HINT_MEMORY {
            marks.pop_front();
        }
    }

    /// Whether a datagram with this counter was sent in about the last five seconds.
    pub fn sent_lately(&self, counter: u64) -> bool {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = marks.front().map_or(0, |(_, counter)| *counter);
        (oldest..self.sent()).contains(&counter)
    }
}

/// A session's receiving side, for one run of datagrams.
pub struct Opener<'s> {
    session: &'s Session,
    replay: MutexGuard<'s, ReplayWindow>,
}

impl Opener<'_> {
    /// Opens a datagram in place and gives its plaintext. The counter is checked cheaply before and set after
    /// authentication, so forged datagrams cannot move the window. Called per frame: no allocation.
    pub fn open<'a>(&mut self, header: &SealedHeader, datagram: &'a mut [u8]) -> Result<&'a mut [u8], DropReason> {
        let (header_bytes, sealed) = datagram.split_at_mut(HEADER_LEN);
        let plain = self.open_with(header.counter, header_bytes, sealed)?;
        let length = plain.len() - usize::from(header.padding);
        if plain[length..].iter().any(|byte| *byte != 0) {
            return Err(DropReason::Malformed);
        }
        Ok(&mut plain[..length])
    }

    fn open_with<'a>(&mut self, counter: u64, header: &[u8], sealed: &'a mut [u8]) -> Result<&'a mut [u8], DropReason> {
        if self.session.expired.load(Relaxed) {
            return Err(DropReason::SessionExpired);
        }
        if !self.replay.is_fresh(counter) {
            return Err(DropReason::Replayed);
        }
        let plain = self.session.open_key.open(counter, header, sealed)?;
        if self.replay.accept(counter) { Ok(plain) } else { Err(DropReason::Replayed) }
    }
}

const _: () = assert!(TAG_LEN == 16 && OVERHEAD == 32);

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "session {:?} with {:?}", self.local_index, self.remote)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use zeroize::Zeroizing;

    use super::super::crypto::transport_keys;
    use super::*;

    /// Two sessions that open what the other seals.
    pub(crate) fn pair(suite: Suite, now: Instant) -> (Session, Session) {
        let side = |initiator: bool| {
            let keys = transport_keys(&Zeroizing::new([9; 64]), suite);
            let (seal_key, open_key) = if initiator { (keys.i2r, keys.r2i) } else { (keys.r2i, keys.i2r) };
            let parts = SessionParts {
                owner: Owner::Peer(PeerIdx(0)),
                remote: PublicKey([1; 32]),
                local_index: SessionIndex(u32::from(initiator)),
                remote_index: SessionIndex(u32::from(!initiator)),
                initiator,
                suite,
                capabilities: Capabilities::OURS,
                meter: Arc::default(),
                seal_key,
                open_key,
            };
            Session::new(parts, now)
        };
        (side(true), side(false))
    }

    fn sealed(session: &Session, frame: &[u8], limit: usize) -> Vec<u8> {
        let mut datagram = vec![0xaa; Session::sealed_len(frame.len(), limit)];
        datagram[16..16 + frame.len()].copy_from_slice(frame);
        session.seal_frame(false, &mut datagram, frame.len()).expect("a fresh session seals");
        datagram
    }

    #[test]
    fn frames_of_every_length_come_out_byte_for_byte() {
        let (alice, bob) = pair(Suite::Aes256Gcm, Instant::now());
        for length in [0, 1, 14, 15, 16, 17, 60, 1389, 1390, 1394, 9000] {
            let frame: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
            let mut datagram = sealed(&alice, &frame, 1394);
            assert!(datagram.len() <= OVERHEAD + length.max(1394), "padding stays below the limit");
            let header = SealedHeader::parse(&datagram).expect("well formed");
            assert_eq!(bob.open(&header, &mut datagram).map(|plain| plain.to_vec()), Ok(frame));
        }
    }

    #[test]
    fn a_datagram_opens_once() {
        let (alice, bob) = pair(Suite::ChaCha20Poly1305, Instant::now());
        let datagram = sealed(&alice, b"once", 100);
        let header = SealedHeader::parse(&datagram).expect("well formed");
        assert!(bob.open(&header, &mut datagram.clone()).is_ok());
        assert_eq!(bob.open(&header, &mut datagram.clone()).err(), Some(DropReason::Replayed));
    }

    #[test]
    fn s_05_every_flipped_bit_of_a_data_datagram_is_refused_and_moves_nothing() {
        let (alice, bob) = pair(Suite::Aes256Gcm, Instant::now());
        let datagram = sealed(&alice, b"a frame of some bytes", 100);
        let mut refused = 0;
        for bit in 0..datagram.len() * 8 {
            let mut flipped = datagram.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let result =
                SealedHeader::parse(&flipped)
                    .and_then(|header| {
                        if header.receiver == bob.local_index { Ok(header) } else { Err(DropReason::UnknownSession) }
                    })
                    .and_then(|header| bob.open(&header, &mut flipped).map(|_| ()));
            assert!(result.is_err(), "bit {bit}");
            refused += 1;
        }
        let header = SealedHeader::parse(&datagram).expect("well formed");
        assert!(bob.open(&header, &mut datagram.clone()).is_ok(), "the window did not move");
        println!("S-05: {refused} flipped bits of a DATA datagram refused");
    }

    #[test]
    fn a_hint_is_believed_for_counters_of_the_last_seconds_only() {
        let start = Instant::now();
        let (alice, _) = pair(Suite::Aes256Gcm, start);
        for second in 0..10 {
            alice.mark(start + Duration::from_secs(second));
            sealed(&alice, b"x", 100);
        }
        assert!(alice.sent_lately(9) && alice.sent_lately(5));
        assert!(!alice.sent_lately(2), "too long ago");
        assert!(!alice.sent_lately(10), "never sent");
    }

    #[test]
    fn an_expired_session_neither_seals_nor_opens() {
        let (alice, bob) = pair(Suite::Aes256Gcm, Instant::now());
        let mut datagram = sealed(&alice, b"x", 100);
        let header = SealedHeader::parse(&datagram).expect("well formed");
        bob.expire();
        assert_eq!(bob.open(&header, &mut datagram).err(), Some(DropReason::SessionExpired));
        assert_eq!(bob.seal_control(b"").err(), Some(DropReason::SessionExpired));
    }
}
