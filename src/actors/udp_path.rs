//! UdpPath: the reading end of one UDP socket, at a client or a server.
//!
//! Datagrams go from here to the TAP, or through the relay back to a socket, by direct calls. A restart loses one
//! batch at the most: the socket is held by the system's wiring.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use futures_lite::future;
use xtra::{Actor, Mailbox};

use super::datapath::{HintBudget, Ingress};
use super::ext::{Caster, Service, StopReason};
use crate::counters::{Counters, DropReason, add};
use crate::ids::Endpoint;
use crate::io::batch::SendBatch;
use crate::io::udp::{RecvBatch, UdpUplink};
use crate::io::uplinks::Uplinks;
use crate::messages::coordinator::{MemberControl, MemberInbound};
use crate::proto::crypto::{mac16, same_mac};
use crate::proto::relaying::RelayView;
use crate::proto::session::Epoch;
use crate::view::MemberView;
use crate::wire::handshake::{HandshakeView, Hint, HintReason};
use crate::wire::header::{Kind, SealedHeader};

/// What becomes of the datagrams of a socket.
pub enum Reception {
    Client(Box<Ingress>),
    Server(Box<ServerIngress>),
}

/// The way of a datagram at the server: relayed at once, or to the coordinator.
pub struct ServerIngress {
    pub epoch: Epoch,
    pub members: Arc<ArcSwap<MemberView>>,
    pub relay: Arc<ArcSwap<RelayView>>,
    pub uplinks: Uplinks,
    pub counters: Arc<Counters>,
    pub inbound: Caster<MemberInbound>,
    pub control: Caster<MemberControl>,
    /// MAC1 of our key, and of its fingerprint for enrolments.
    pub mac1_keys: ([u8; 32], [u8; 32]),
    /// Told which connections have shown that they know a session.
    pub tcp: Option<crate::io::tcp::TcpTx>,
    pub hints: HintBudget,
    pub batch: SendBatch,
}

impl ServerIngress {
    /// One datagram, as it came from a socket. Hot.
    pub fn datagram(&mut self, from: Endpoint, datagram: &mut [u8], now: Instant) {
        if let Err(reason) = self.sort(from, datagram, now) {
            self.counters.dropped(reason);
        }
    }

    /// Sends what the batch has collected.
    pub fn finish(&mut self) {
        self.uplinks.flush(&mut self.batch);
    }

    fn sort(&mut self, from: Endpoint, datagram: &mut [u8], now: Instant) -> Result<(), DropReason> {
        match Kind::of(datagram).ok_or(DropReason::Malformed)? {
            Kind::Relay => {
                let to = self.relay.load().forward(from, datagram)?;
                self.batch.reserve(datagram.len()).copy_from_slice(datagram);
                self.batch.commit(to, datagram.len());
                add(&self.counters.relayed_datagrams, 1);
                add(&self.counters.relayed_bytes, datagram.len() as u64);
                Ok(())
            }
            Kind::Ctrl => {
                let header = SealedHeader::parse(datagram)?;
                let members = self.members.load();
                let Some(session) = members.sessions.get(&header.receiver) else {
                    if self.hints.take(from.addr.ip(), self.epoch.ms(now)) {
                        let (index, counter) = (header.receiver, header.counter);
                        let hint = Hint { reason: HintReason::NoSession, index, counter };
                        add(&self.counters.hints_sent, 1);
                        self.uplinks.send(from, &hint.to_bytes());
                    }
                    return Err(DropReason::UnknownSession);
                };
                let plain = session.open(&header, datagram)?.to_vec();
                if let Some(tcp) = self.tcp.as_ref().filter(|_| from.uplink == crate::ids::UplinkId::TCP) {
                    tcp.authenticated(from.addr);
                }
                self.control.cast(MemberControl { session: session.clone(), from, plain });
                Ok(())
            }
            kind @ (Kind::Init | Kind::Resp | Kind::Enrol1 | Kind::Enrol3) => {
                let view = HandshakeView::parse(datagram)?;
                let enrols = matches!(kind, Kind::Enrol1 | Kind::Enrol3);
                let key = if enrols { &self.mac1_keys.1 } else { &self.mac1_keys.0 };
                if !same_mac(&mac16(key, view.before_mac1), &view.mac1) {
                    return Err(DropReason::BadMac1);
                }
                self.inbound.cast(MemberInbound { from, datagram: datagram.to_vec() });
                Ok(())
            }
            Kind::Cookie | Kind::Hint => {
                let members = self.members.load();
                let believable = match Kind::of(datagram) {
                    Some(Kind::Hint) => {
                        let hint = Hint::parse(datagram)?;
                        members.sessions.values().any(|s| s.remote_index == hint.index && s.sent_lately(hint.counter))
                    }
                    _ => crate::wire::handshake::CookieReply::parse(datagram).is_ok(),
                };
                if believable {
                    self.inbound.cast(MemberInbound { from, datagram: datagram.to_vec() });
                    Ok(())
                } else {
                    Err(DropReason::UnknownSession)
                }
            }
            Kind::Data | Kind::Agg | Kind::Frag | Kind::Enrol2 => Err(DropReason::Malformed),
        }
    }
}

/// The actor.
pub struct UdpPath {
    uplink: Arc<UdpUplink>,
    counters: Arc<Counters>,
    reception: Reception,
    batch: RecvBatch,
}

impl UdpPath {
    pub fn new(uplink: Arc<UdpUplink>, counters: Arc<Counters>, reception: Reception) -> Self {
        Self { uplink, counters, reception, batch: RecvBatch::new() }
    }

    fn receive(&mut self) -> std::io::Result<()> {
        self.uplink.try_recv(&mut self.batch)?;
        let now = Instant::now();
        add(&self.counters.udp_rx_calls, 1);
        add(&self.counters.udp_rx_datagrams, self.batch.datagrams() as u64);
        add(&self.counters.udp_rx_bytes, self.batch.bytes() as u64);
        let uplink = self.uplink.id();
        match &mut self.reception {
            Reception::Client(ingress) => {
                let mut scope = ingress.scope(now);
                self.batch.for_each(|datagram, from, _| {
                    ingress.datagram(Endpoint { uplink, addr: from }, datagram, &mut scope);
                });
                ingress.finish(scope);
            }
            Reception::Server(ingress) => {
                self.batch.for_each(|datagram, from, _| {
                    ingress.datagram(Endpoint { uplink, addr: from }, datagram, now);
                });
                ingress.finish();
            }
        }
        Ok(())
    }
}

impl Actor for UdpPath {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

enum Wake<M> {
    Control(M),
    Readable(std::io::Result<()>),
}

impl Service for UdpPath {
    const NAME: &'static str = "udp_path";

    async fn run(&mut self, mailbox: &Mailbox<Self>) -> StopReason {
        let mut next = mailbox.next();
        let uplink = self.uplink.clone();
        loop {
            let wake = future::or(async { Wake::Control((&mut next).await) }, async {
                Wake::Readable(uplink.readable().await)
            })
            .await;
            match wake {
                Wake::Control(message) => {
                    next = mailbox.next();
                    if message.dispatch_to(self).await.is_break() {
                        return StopReason::Requested;
                    }
                }
                Wake::Readable(ready) => match ready.and_then(|()| self.receive()) {
                    Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                        return StopReason::Failed(format!("receiving on {}: {error}", uplink.local_addr()));
                    }
                    Ok(()) | Err(_) => future::yield_now().await,
                },
            }
        }
    }
}
