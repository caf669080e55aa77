//! TcpDial: a client's TCP connections to its servers, and what comes over them, which is treated like what comes by UDP.
//!
//! Which connections there should be is the server link's to say. A restart loses those that are open: they are asked
//! for again at once, and a relayed flow has a gap of a few round trips.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use futures_lite::future;
use log::Level;
use xtra::{Actor, Context, Handler, Mailbox};

use super::datapath::Ingress;
use super::ext::{Caster, Service, StopReason};
use crate::counters::{Counters, add};
use crate::ids::UplinkId;
use crate::io::poll;
use crate::io::tcp::TcpTx;
use crate::io::tcp_dial::{TcpDials, TcpNews};
use crate::io::udp::Train;
use crate::logging;
use crate::messages::server_link::Connected;
use crate::messages::tcp_dial::{Connect, Redial};

/// Bytes of datagrams that are handed on together, so that frames of a flow meet again in one write to the TAP.
const BATCH_BYTES: usize = 64 * 1024;

/// The actor.
pub struct TcpDial {
    dials: TcpDials,
    ingress: Box<Ingress>,
    counters: Arc<Counters>,
    connected: Caster<Connected>,
    arena: Vec<u8>,
    trains: Vec<Train>,
}

impl TcpDial {
    pub fn new(tx: TcpTx, ingress: Box<Ingress>, counters: Arc<Counters>, connected: Caster<Connected>) -> Self {
        let (dials, arena) = (TcpDials::new(tx), Vec::with_capacity(BATCH_BYTES));
        Self { dials, ingress, counters, connected, arena, trains: Vec::new() }
    }

    /// Takes what has come, up to a batch. `true` if what is open changed.
    async fn receive(&mut self) -> bool {
        let Self { dials, arena, trains, .. } = self;
        arena.clear();
        trains.clear();
        poll_fn(|cx| {
            let mut changed = false;
            while arena.len() < BATCH_BYTES {
                match dials.poll_news(cx) {
                    Poll::Ready((from, TcpNews::Datagram(datagram))) => {
                        let (start, len) = (arena.len(), datagram.len());
                        trains.push(Train { from, local: None, start, len, stride: len });
                        arena.extend_from_slice(&datagram);
                    }
                    Poll::Ready((addr, TcpNews::Open)) => {
                        changed = true;
                        tell(format_args!("connected to {addr} over TCP"));
                    }
                    Poll::Ready((addr, TcpNews::Closed(error))) => {
                        changed = true;
                        tell(format_args!("TCP to {addr}: {error}"));
                    }
                    Poll::Pending if changed || !trains.is_empty() => break,
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(changed)
        })
        .await
    }

    /// Hands on what was taken.
    fn deliver(&mut self, now: Instant) {
        if self.trains.is_empty() {
            return;
        }
        add(&self.counters.udp_rx_datagrams, self.trains.len() as u64);
        add(&self.counters.udp_rx_bytes, self.arena.len() as u64);
        let mut scope = self.ingress.scope(now);
        for train in &self.trains {
            self.ingress.train(UplinkId::TCP, train, &mut self.arena, &mut scope);
        }
        self.ingress.finish(scope, &self.arena);
    }

    fn report(&self) {
        self.connected.cast(Connected(self.dials.open()));
    }
}

fn tell(text: std::fmt::Arguments<'_>) {
    logging::limited(Instant::now(), Level::Debug, "TCP connections to the server", text);
}

impl Actor for TcpDial {
    type Stop = StopReason;

    async fn started(&mut self, _: &Mailbox<Self>) -> Result<(), StopReason> {
        // If there were some before a restart, they are missed, and asked for again.
        self.report();
        Ok(())
    }

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

super::ext::answers_pings!(TcpDial);

enum Wake<M> {
    Control(M),
    /// Something came, or (`true`) what is open changed.
    Received(bool),
}

impl Service for TcpDial {
    const NAME: &'static str = "tcp_dial";

    async fn run(&mut self, mailbox: &Mailbox<Self>) -> StopReason {
        let mut next = mailbox.next();
        loop {
            let control = async { Wake::Control((&mut next).await) };
            match future::or(control, async { Wake::Received(self.receive().await) }).await {
                Wake::Control(message) => {
                    next = mailbox.next();
                    if message.dispatch_to(self).await.is_break() {
                        return StopReason::Requested;
                    }
                }
                Wake::Received(changed) => {
                    self.deliver(Instant::now());
                    if changed {
                        self.report();
                    }
                    // One busy connection must not keep the other tasks of the thread waiting.
                    poll::turn().await;
                }
            }
        }
    }
}

impl Handler<Connect> for TcpDial {
    type Return = ();

    async fn handle(&mut self, Connect(wanted): Connect, _: &mut Context<Self>) {
        let before = self.dials.open();
        self.dials.want(&wanted);
        if self.dials.open() != before {
            self.report();
        }
    }
}

impl Handler<Redial> for TcpDial {
    type Return = ();

    async fn handle(&mut self, _: Redial, _: &mut Context<Self>) {
        if self.dials.check() {
            self.report();
        }
    }
}
