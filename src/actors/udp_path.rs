//! UdpPath: the reading end of one UDP socket, at a client, a server or an ethcloud.
//!
//! Datagrams go from here to the TAP, or through the relay back to a socket, by direct calls. A restart loses one
//! batch at the most: the socket is held by the system's wiring.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use futures_lite::future;
use xtra::{Actor, Mailbox};

use super::cloud_path::CloudIngress;
use super::datapath::Ingress;
use super::ext::{Caster, Service, StopReason};
use super::observer::Observer;
use crate::counters::{Counters, DropReason, add};
use crate::ids::{Endpoint, UplinkId};
use crate::io::batch::SendBatch;
use crate::io::poll::{self, Watch};
use crate::io::udp::{RecvBatch, Train, UdpUplink};
use crate::io::uplinks::Uplinks;
use crate::messages::coordinator::{MemberControl, MemberInbound};
use crate::proto::crypto::{mac16, same_mac};
use crate::proto::relaying::RelayView;
use crate::proto::session::Epoch;
use crate::proto::source_budget::SourceBudget;
use crate::view::MemberView;
use crate::wire::handshake::{HandshakeView, Hint, HintReason};
use crate::wire::header::{Kind, SealedHeader};
use crate::wire::observe::OBSERVE;

/// What becomes of the datagrams of a socket.
pub enum Reception {
    Client(Box<Ingress>),
    Server(Box<ServerIngress>),
    Cloud(Box<CloudIngress>),
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
    pub hints: SourceBudget,
    pub batch: SendBatch,
    pub observer: Observer,
}

impl ServerIngress {
    /// A train of datagrams, as it came from a socket. Hot.
    pub fn train(&mut self, uplink: UplinkId, train: &Train, arena: &mut [u8], now: Instant) {
        let from = Endpoint { uplink, addr: train.from };
        let bytes = &mut arena[train.start..train.start + train.len];
        if Kind::of(bytes) == Some(Kind::Relay) && train.len > train.stride {
            let relay = self.relay.load();
            if let Some(to) = relay.forward_train(from, bytes, train.stride) {
                // What came before it goes before it.
                self.uplinks.flush_relayed(&mut self.batch);
                self.uplinks.relay_train(to, bytes, train.stride);
                return;
            }
        }
        for range in train.datagrams() {
            self.datagram(from, &mut arena[range], now);
        }
    }

    /// One datagram, as it came from a socket.
    pub fn datagram(&mut self, from: Endpoint, datagram: &mut [u8], now: Instant) {
        if let Err(reason) = self.sort(from, datagram, now) {
            self.counters.dropped(reason);
        }
    }

    /// Sends what the batch has collected: datagrams of others only.
    pub fn finish(&mut self) {
        self.uplinks.flush_relayed(&mut self.batch);
    }

    fn sort(&mut self, from: Endpoint, datagram: &mut [u8], now: Instant) -> Result<(), DropReason> {
        if datagram.first() == Some(&OBSERVE) {
            return self.observer.handle(from, datagram);
        }
        // On the second port members speak of where they are seen, and of nothing else.
        let is_observer = from.uplink.is_observer();
        match Kind::of(datagram).filter(|kind| !is_observer || *kind == Kind::Ctrl).ok_or(DropReason::Malformed)? {
            Kind::Relay => {
                let to = self.relay.load().forward(from, datagram)?;
                self.batch.reserve(datagram.len()).copy_from_slice(datagram);
                self.batch.commit(to, datagram.len());
                Ok(())
            }
            Kind::Ctrl => {
                let header = SealedHeader::parse(datagram)?;
                let members = self.members.load();
                let Some(session) = members.sessions.get(&header.receiver) else {
                    if !is_observer && self.hints.take(from.addr.ip(), self.epoch.ms(now) / 1000) {
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
                let (arena, trains) = self.batch.trains();
                for train in trains {
                    ingress.train(uplink, &train, arena, &mut scope);
                }
                ingress.finish(scope, arena);
            }
            Reception::Server(ingress) => {
                let (arena, trains) = self.batch.trains();
                for train in trains {
                    ingress.train(uplink, &train, arena, now);
                }
                ingress.finish();
            }
            Reception::Cloud(ingress) => {
                let (arena, trains) = self.batch.trains();
                ingress.batch(arena, trains, now);
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
    Readable,
}

super::ext::answers_pings!(UdpPath);

impl Service for UdpPath {
    const NAME: &'static str = "udp_path";

    async fn run(&mut self, mailbox: &Mailbox<Self>) -> StopReason {
        let mut next = mailbox.next();
        let watch = match Watch::new(self.uplink.clone()) {
            Ok(watch) => watch,
            Err(error) => return StopReason::Failed(format!("watching {}: {error}", self.uplink.local_addr())),
        };
        loop {
            let readable = async {
                watch.readable().await;
                Wake::Readable
            };
            // Control first, so that a busy socket cannot starve it.
            let wake = future::or(async { Wake::Control((&mut next).await) }, readable).await;
            match wake {
                Wake::Control(message) => {
                    next = mailbox.next();
                    if message.dispatch_to(self).await.is_break() {
                        return StopReason::Requested;
                    }
                }
                Wake::Readable => match self.receive() {
                    Ok(()) => poll::turn().await,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => watch.clear(),
                    Err(error) => {
                        return StopReason::Failed(format!("receiving on {}: {error}", self.uplink.local_addr()));
                    }
                },
            }
        }
    }
}
