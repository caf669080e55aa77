//! TcpPath: what comes to the server over TCP, framed, is treated like what comes over UDP.
//!
//! A restart loses nothing: connections are the listener's, which the wiring holds.

use std::sync::Arc;
use std::time::Instant;

use xtra::{Actor, Mailbox};

use super::ext::{Service, StopReason};
use super::udp_path::ServerIngress;
use crate::counters::add;
use crate::io::tcp::TcpListen;

/// The actor.
pub struct TcpPath {
    listen: Arc<TcpListen>,
    ingress: ServerIngress,
}

impl TcpPath {
    pub fn new(listen: Arc<TcpListen>, ingress: ServerIngress) -> Self {
        Self { listen, ingress }
    }
}

impl Actor for TcpPath {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

impl Service for TcpPath {
    const NAME: &'static str = "tcp_path";

    /// Nobody sends it messages: it serves until the supervisor drops it.
    async fn run(&mut self, _: &Mailbox<Self>) -> StopReason {
        let ingress = &mut self.ingress;
        self.listen
            .accept_loop(|from, mut datagram| {
                add(&ingress.counters.udp_rx_datagrams, 1);
                add(&ingress.counters.udp_rx_bytes, datagram.len() as u64);
                ingress.datagram(from, &mut datagram, Instant::now());
                ingress.finish();
            })
            .await;
        StopReason::Failed("the TCP listener was closed".into())
    }
}
