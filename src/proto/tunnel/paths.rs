//! The paths of a tunnel: where each packet is sent, and what is known of every way.
//!
//! A client has one path for each pair of addresses it was given, known by the pair and so never mistaken for another to
//! the same server. A server has one for each source that it has learned, until that was silent for too long. What passes
//! is counted in a [`PathMeter`] that others may read meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::ids::{Endpoint, UplinkId};

/// Sources a server learns at the most: each gets a copy of every packet, so this bounds what noise can make of us.
pub const LEARNED_MAX: usize = 64;
/// A path whose sends fail is tried again after this long.
const RETRY: Duration = Duration::from_millis(200);

/// What passed by one path. Written by the data path, read by everybody.
#[derive(Debug, Default)]
pub struct PathMeter {
    pub rx_datagrams: AtomicU64,
    pub rx_bytes: AtomicU64,
    /// Of the datagrams received, those whose packet had come by another path before.
    pub duplicates: AtomicU64,
    pub tx_datagrams: AtomicU64,
    pub tx_bytes: AtomicU64,
    /// Datagrams that were not sent, because the socket was full or the path fails.
    pub tx_dropped: AtomicU64,
    /// When a datagram last came: milliseconds since the tunnel's start, plus one; 0 for never.
    heard: AtomicU64,
    /// Round trip, microseconds plus one; 0 while unknown.
    rtt: AtomicU64,
}

impl PathMeter {
    /// When a datagram last came, in milliseconds since the tunnel's start.
    pub fn heard_ms(&self) -> Option<u64> {
        self.heard.load(Relaxed).checked_sub(1)
    }

    /// The last round trip that was measured.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt.load(Relaxed).checked_sub(1).map(Duration::from_micros)
    }

    pub(super) fn set_rtt(&self, rtt: Duration) {
        self.rtt.store(u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).saturating_add(1), Relaxed);
    }
}

/// One path as others see it.
#[derive(Debug, Clone)]
pub struct PathDescription {
    pub uplink: UplinkId,
    /// `None` while the server's name is not resolved or the socket not bound.
    pub remote: Option<SocketAddr>,
    /// Why its sends fail, in the kernel's words.
    pub failure: Option<String>,
    pub meter: Arc<PathMeter>,
}

/// Why a datagram did not leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendFailure {
    /// The socket's buffer is full.
    Full,
    /// The kernel refuses to send this way, in its words.
    Refused(String),
}

/// A question to the far end, whose answer proves the path (`--native`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    pub sequence: u32,
    pub challenge: u64,
    pub asked: Instant,
}

#[derive(Debug)]
pub(super) struct Path {
    pub uplink: UplinkId,
    pub remote: Option<SocketAddr>,
    /// When it was last heard; for a learned one at first when it was learned.
    pub heard: Option<Instant>,
    pub question: Option<Question>,
    failing: Option<Failing>,
    pub meter: Arc<PathMeter>,
}

#[derive(Debug)]
struct Failing {
    why: String,
    retry_at: Instant,
}

/// What a send has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Fails,
    Works,
}

impl Path {
    pub fn new(uplink: UplinkId, remote: Option<SocketAddr>) -> Self {
        Self { uplink, remote, heard: None, question: None, failing: None, meter: Arc::default() }
    }

    /// Where to send, if that is known.
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.remote.map(|addr| Endpoint { uplink: self.uplink, addr })
    }

    /// Where to send a packet now; nowhere while the path fails and is not yet to be tried again.
    pub fn target(&self, now: Instant) -> Option<Endpoint> {
        self.endpoint().filter(|_| self.failing.as_ref().is_none_or(|failing| now >= failing.retry_at))
    }

    /// Notes a datagram that came by it.
    pub fn heard(&mut self, bytes: usize, start: Instant, now: Instant) {
        self.heard = Some(now);
        self.meter.rx_datagrams.fetch_add(1, Relaxed);
        self.meter.rx_bytes.fetch_add(bytes as u64, Relaxed);
        self.meter.heard.store(now.saturating_duration_since(start).as_millis() as u64 + 1, Relaxed);
    }

    /// Notes how sending went.
    pub fn sent(&mut self, datagrams: u64, bytes: u64, result: Result<(), SendFailure>, now: Instant) -> Option<Turn> {
        match result {
            Ok(()) => {
                self.meter.tx_datagrams.fetch_add(datagrams, Relaxed);
                self.meter.tx_bytes.fetch_add(bytes, Relaxed);
                self.failing.take().map(|_| Turn::Works)
            }
            Err(SendFailure::Full) => {
                self.meter.tx_dropped.fetch_add(datagrams, Relaxed);
                None
            }
            Err(SendFailure::Refused(why)) => {
                self.meter.tx_dropped.fetch_add(datagrams, Relaxed);
                let before = self.failing.replace(Failing { why, retry_at: now + RETRY });
                before.is_none().then_some(Turn::Fails)
            }
        }
    }

    /// Why it fails.
    pub fn failure(&self) -> Option<&str> {
        self.failing.as_ref().map(|failing| failing.why.as_str())
    }

    pub fn describe(&self) -> PathDescription {
        PathDescription {
            uplink: self.uplink,
            remote: self.remote,
            failure: self.failure().map(ToOwned::to_owned),
            meter: self.meter.clone(),
        }
    }
}
