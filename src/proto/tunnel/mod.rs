//! A tunnel of IP packets over several paths at once: multi_tun's protocol, and with [`Native`] our own.
//!
//! Every packet from the device goes by every path; the first copy that arrives is delivered, the others are dropped. In
//! multi_tun's protocol a datagram is the packet and nothing else, so copies are told by content ([`duplicates`]); in ours
//! it is sealed once, the same bytes go by all paths, and the session's replay window tells copies by their counter.
//!
//! One contract, as everywhere: inputs take `now`; after each the owner drains [`Tunnel::poll_output`], and calls
//! [`Tunnel::handle_timeout`] at [`Tunnel::poll_timeout`]. What would be done for each packet does not allocate.
//!
//! [`duplicates`]: super::duplicates

mod native;
mod packet;
mod paths;

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::duplicates::{Duplicates, PACKET_MAX};
use crate::counters::DropReason;
use crate::ids::{Endpoint, UplinkId};

pub use native::{Keys, Native, SECRET_MIN};
pub use packet::{KEEPALIVE, is_sound};
pub use paths::{LEARNED_MAX, PathDescription, PathMeter, SendFailure};
use paths::{Path, Turn};

/// Which end it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Learns where to send from what comes.
    Server,
    /// Was told where to send.
    Client,
}

/// What tells copies apart, and what surrounds a packet.
enum Protocol {
    /// multi_tun's.
    Plain(Duplicates),
    /// Ours.
    Native(Box<Native>),
}

/// The core of one end of a tunnel.
pub struct Tunnel {
    end: End,
    protocol: Protocol,
    /// A server's endpoint that was silent for this long is forgotten.
    timeout: Duration,
    /// How often a path without other news is spoken on.
    interval: Duration,
    start: Instant,
    paths: Vec<Path>,
    keepalive_at: Instant,
    outputs: VecDeque<Output>,
    changed: bool,
}

/// What the owner has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram of the tunnel itself; by a path if it has a number, whose [`Tunnel::sent`] is to be told.
    Send { path: Option<usize>, to: Endpoint, datagram: Vec<u8> },
    /// Tell the operator.
    Event(Event),
}

/// What an operator wants to know. The words for endpoints are those of multi_tun, for whoever reads its log by program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A path of a client.
    AddedByHand(SocketAddr),
    /// A server has heard somebody.
    Learned(SocketAddr),
    /// A server has not heard somebody for the time that was set.
    Stale(SocketAddr),
    /// The far end has said goodbye.
    Goodbye,
    /// Somebody is not learned: there are [`LEARNED_MAX`] already.
    Full(SocketAddr),
    /// Sends by this path began to fail.
    Fails { to: SocketAddr, why: String },
    /// Sends by this path work again.
    Works(SocketAddr),
    /// Both ends have proven that they know the secret.
    Session,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddedByHand(addr) => write!(f, "manually adding endpoint {addr}"),
            Self::Learned(addr) => write!(f, "automat. added endpoint {addr}"),
            Self::Stale(addr) => write!(f, "removing stale endpoint {addr}"),
            Self::Goodbye => f.write_str("the other end said goodbye"),
            Self::Full(addr) => write!(f, "endpoint {addr} is not added: there are {LEARNED_MAX} already"),
            Self::Fails { to, why } => write!(f, "the path to {to} fails: {why}; the others go on, and it is retried"),
            Self::Works(addr) => write!(f, "the path to {addr} works again"),
            Self::Session => f.write_str("a session with the other end is up"),
        }
    }
}

impl Event {
    /// Whether outsiders decide how often it happens.
    pub fn is_caused_by_others(&self) -> bool {
        matches!(self, Self::Learned(_) | Self::Stale(_) | Self::Full(_))
    }
}

impl Tunnel {
    /// An end that speaks multi_tun's protocol.
    pub fn plain(end: End, timeout: Duration, now: Instant) -> Self {
        Self::new(end, Protocol::Plain(Duplicates::new()), timeout, now)
    }

    /// An end that speaks ours.
    pub fn native(native: Native, timeout: Duration, now: Instant) -> Self {
        Self::new(native.end(), Protocol::Native(Box::new(native)), timeout, now)
    }

    fn new(end: End, protocol: Protocol, timeout: Duration, now: Instant) -> Self {
        // Three may be lost before the other end forgets us, if it has the same timeout.
        let interval = (timeout / 4).clamp(INTERVAL_MIN, INTERVAL_MAX);
        let (paths, outputs) = (Vec::new(), VecDeque::new());
        Self { end, protocol, timeout, interval, start: now, paths, keepalive_at: now, outputs, changed: true }
    }

    /// When it began; what [`PathMeter::heard_ms`] counts from.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// A client's next path, by the socket of its pair. Its server may be resolved later.
    pub fn add_path(&mut self, uplink: UplinkId, remote: Option<SocketAddr>, now: Instant) {
        self.paths.push(Path::new(uplink, None));
        if let Some(remote) = remote {
            self.set_remote(uplink, remote, now);
        }
    }

    /// A client's path leads to this address, which is spoken to at once.
    pub fn set_remote(&mut self, uplink: UplinkId, remote: SocketAddr, now: Instant) {
        let Some(number) = self.paths.iter().position(|path| path.uplink == uplink) else { return };
        if self.paths[number].remote == Some(remote) {
            return;
        }
        self.paths[number].remote = Some(remote);
        self.changed = true;
        self.outputs.push_back(Output::Event(Event::AddedByHand(remote)));
        self.speak(number, now);
    }

    /// Where each packet is to be sent, by the numbers of their paths. Hot.
    pub fn targets(&self, now: Instant, to: &mut Vec<(usize, Endpoint)>) {
        to.clear();
        to.extend(self.paths.iter().enumerate().filter_map(|(number, path)| Some((number, path.target(now)?))));
    }

    /// Where in its datagram a packet of this length lies, and how long that is. Hot.
    pub fn layout(&self, packet: usize) -> (usize, usize) {
        match &self.protocol {
            Protocol::Plain(_) => (0, packet),
            Protocol::Native(native) => native.layout(packet),
        }
    }

    /// Makes a datagram, laid out so, ready to be sent by all paths. Hot.
    pub fn seal(&mut self, datagram: &mut [u8], packet: usize) -> Result<(), DropReason> {
        match &self.protocol {
            Protocol::Plain(_) if packet == 0 => Err(DropReason::Malformed),
            Protocol::Plain(_) => Ok(()),
            Protocol::Native(native) => native.seal(datagram, packet),
        }
    }

    /// How sending by a path went.
    pub fn sent(&mut self, path: usize, datagrams: u64, bytes: u64, result: Result<(), SendFailure>, now: Instant) {
        let Some(path) = self.paths.get_mut(path) else { return };
        let Some(turn) = path.sent(datagrams, bytes, result, now) else { return };
        self.changed = true;
        let Some(to) = path.remote else { return };
        let event = match turn {
            Turn::Fails => Event::Fails { to, why: path.failure().unwrap_or_default().to_owned() },
            Turn::Works => Event::Works(to),
        };
        self.outputs.push_back(Output::Event(event));
    }

    /// A datagram came by a socket; gives the packet for the device, if it is the first copy of one. Hot.
    pub fn receive<'d>(
        &mut self,
        from: Endpoint,
        datagram: &'d mut [u8],
        now: Instant,
    ) -> Result<Option<&'d [u8]>, DropReason> {
        if datagram.is_empty() {
            return Err(DropReason::Malformed);
        }
        if let Protocol::Native(_) = self.protocol {
            return self.receive_native(from, datagram, now);
        }
        if datagram == KEEPALIVE {
            self.hear(from, datagram.len(), now);
            return Ok(None);
        }
        let length = datagram.len().min(PACKET_MAX);
        let packet = &datagram[..length];
        if !is_sound(packet) {
            return Err(DropReason::Malformed);
        }
        let path = self.hear(from, length, now);
        let Protocol::Plain(duplicates) = &mut self.protocol else { return Ok(None) };
        if duplicates.is_new(packet) {
            return Ok(Some(packet));
        }
        if let Some(path) = path {
            self.paths[path].meter.duplicates.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        Err(DropReason::Duplicate)
    }

    /// The path a datagram came by. A server learns it, if there is room; a client's paths are its sockets, whoever
    /// writes to them: a server with several addresses may answer from another one than was asked.
    fn hear(&mut self, from: Endpoint, bytes: usize, now: Instant) -> Option<usize> {
        let known = match self.end {
            End::Client => self.paths.iter().position(|path| path.uplink == from.uplink),
            End::Server => self.paths.iter().position(|path| path.endpoint() == Some(from)),
        };
        let number = match (known, self.end) {
            (Some(number), _) => number,
            (None, End::Client) => return None,
            (None, End::Server) if self.paths.len() < LEARNED_MAX => self.learn(from),
            (None, End::Server) => {
                self.outputs.push_back(Output::Event(Event::Full(from.addr)));
                return None;
            }
        };
        self.paths[number].heard(bytes, self.start, now);
        Some(number)
    }

    fn learn(&mut self, from: Endpoint) -> usize {
        self.paths.push(Path::new(from.uplink, Some(from.addr)));
        self.changed = true;
        self.outputs.push_back(Output::Event(Event::Learned(from.addr)));
        self.paths.len() - 1
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Instant {
        let speak = match (&self.protocol, self.end) {
            (Protocol::Plain(_), End::Server) => None,
            (Protocol::Plain(_), End::Client) | (Protocol::Native(_), _) => Some(self.keepalive_at),
        };
        let stale = match self.end {
            End::Client => None,
            End::Server => self.paths.iter().filter_map(|path| path.heard).min().map(|heard| heard + self.timeout),
        };
        let native = match &self.protocol {
            Protocol::Plain(_) => None,
            Protocol::Native(native) => native.poll_timeout(),
        };
        let idle = self.keepalive_at.max(self.start) + IDLE;
        [speak, stale, native].into_iter().flatten().min().unwrap_or(idle)
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.end == End::Server {
            self.forget_stale(now);
        }
        if now >= self.keepalive_at {
            self.keepalive_at = now + self.interval;
            for number in 0..self.paths.len() {
                self.speak(number, now);
            }
        }
        self.native_timeout(now);
    }

    /// Endpoints that were silent for too long go, whatever else is going on.
    fn forget_stale(&mut self, now: Instant) {
        let timeout = self.timeout;
        let gone = self
            .paths
            .extract_if(.., |path| path.heard.is_some_and(|heard| now >= heard + timeout))
            .filter_map(|p| p.remote);
        let gone: Vec<SocketAddr> = gone.collect();
        self.changed |= !gone.is_empty();
        self.outputs.extend(gone.into_iter().map(|addr| Output::Event(Event::Stale(addr))));
    }

    /// Says something by a path, so that the other end learns of it and NATs keep it open. A server of multi_tun's says
    /// nothing by itself, as the real one does.
    fn speak(&mut self, number: usize, now: Instant) {
        let Some(to) = self.paths[number].endpoint() else { return };
        let datagram = match (&mut self.protocol, self.end) {
            (Protocol::Plain(_), End::Server) => None,
            (Protocol::Plain(_), End::Client) => Some(KEEPALIVE.to_vec()),
            (Protocol::Native(native), _) => native.ask(&mut self.paths[number], now),
        };
        if let Some(datagram) = datagram {
            self.outputs.push_back(Output::Send { path: Some(number), to, datagram });
        }
    }

    /// What is to be done; to be asked until there is nothing more.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Every path, if any has changed in more than its numbers since this was last asked.
    pub fn poll_changed(&mut self) -> Option<Vec<PathDescription>> {
        std::mem::take(&mut self.changed).then(|| self.paths.iter().map(Path::describe).collect())
    }
}

/// Bounds of the time between keepalives. 5 s keeps every NAT's mapping (RFC 4787 asks for 2 minutes, some give 30 s)
/// and a real server's endpoint, which lives 20 s by default.
const INTERVAL_MIN: Duration = Duration::from_millis(250);
const INTERVAL_MAX: Duration = Duration::from_secs(5);
/// When there is nothing to wait for.
const IDLE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
