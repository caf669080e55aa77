//! TcpPath: what comes to the server over TCP, framed, is treated like what comes over UDP.
//!
//! A restart loses nothing: connections are the listener's, which the wiring holds.

use std::sync::Arc;
use std::time::Instant;

use futures_lite::future;
use xtra::{Actor, Mailbox};

use super::ext::{Service, StopReason, only_messages};
use super::udp_path::ServerIngress;
use crate::counters::add;
use crate::io::tcp::TcpListen;

/// The actor.
pub struct TcpPath {
    listen: Arc<TcpListen>,
    /// Taken by the one run of a life.
    ingress: Option<ServerIngress>,
}

impl TcpPath {
    pub fn new(listen: Arc<TcpListen>, ingress: ServerIngress) -> Self {
        Self { listen, ingress: Some(ingress) }
    }
}

impl Actor for TcpPath {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

super::ext::answers_pings!(TcpPath);

impl Service for TcpPath {
    const NAME: &'static str = "tcp_path";

    /// Only the supervisor's pings come by the mailbox: it serves until the supervisor drops it.
    async fn run(&mut self, mailbox: &Mailbox<Self>) -> StopReason {
        let listen = self.listen.clone();
        let mut ingress = self.ingress.take().expect("an actor runs once in its life");
        let serve = async {
            let datagram = |from, mut datagram: Vec<u8>| {
                add(&ingress.counters.udp_rx_datagrams, 1);
                add(&ingress.counters.udp_rx_bytes, datagram.len() as u64);
                ingress.datagram(from, &mut datagram, Instant::now());
                ingress.finish();
            };
            listen.accept_loop(datagram).await;
            StopReason::Failed("the TCP listener was closed".into())
        };
        future::or(serve, only_messages(self, mailbox)).await
    }
}
