//! The sending side of all uplinks: a cheap handle that anybody may clone and call.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::batch::{MAX_RUN_BYTES, SendBatch};
use super::tcp::TcpTx;
use super::udp::UdpUplink;
use crate::counters::{Counters, DropReason, add};
use crate::ids::{Endpoint, Route, UplinkId};
use crate::wire::header::HEADER_LEN;
use crate::wire::relay;

/// Sends datagrams by whichever socket their endpoint names. Never waits: what a full socket refuses is dropped and
/// counted, because an Ethernet segment may lose frames but may not stall.
#[derive(Clone)]
pub struct Uplinks {
    udp: [Option<Arc<UdpUplink>>; 2],
    tcp: Option<TcpTx>,
    counters: Arc<Counters>,
}

impl Uplinks {
    /// `udp4` and `udp6` are absent where the machine lacks the family.
    pub fn new(
        udp4: Option<Arc<UdpUplink>>,
        udp6: Option<Arc<UdpUplink>>,
        tcp: Option<TcpTx>,
        counters: Arc<Counters>,
    ) -> Self {
        Self { udp: [udp4, udp6], tcp, counters }
    }

    /// The sockets to read from.
    pub fn readers(&self) -> impl Iterator<Item = Arc<UdpUplink>> {
        self.udp.iter().flatten().cloned()
    }

    /// The TCP connections, at a server.
    pub fn tcp(&self) -> Option<TcpTx> {
        self.tcp.clone()
    }

    /// The local UDP port of the first socket.
    pub fn port(&self) -> u16 {
        self.readers().next().map_or(0, |uplink| uplink.local_addr().port())
    }

    /// Segments one GSO send may have, on every socket.
    pub fn max_segments(&self) -> usize {
        self.readers().map(|uplink| uplink.max_gso_segments()).min().unwrap_or(1)
    }

    /// Sends one datagram.
    pub fn send(&self, to: Endpoint, datagram: &[u8]) {
        self.send_run(to, datagram, None);
    }

    /// Sends one datagram by a route: as it is, or inside RELAY.
    pub fn send_by(&self, route: Route, datagram: &[u8]) {
        match route.relay {
            None => self.send(route.endpoint, datagram),
            Some(token) => {
                let mut wrapped = Vec::with_capacity(HEADER_LEN + datagram.len());
                wrapped.extend(relay::header(token));
                wrapped.extend(datagram);
                self.send(route.endpoint, &wrapped);
            }
        }
    }

    /// Sends one datagram by a route that IP must not cut on the way, as it is or inside RELAY. One that this machine's
    /// own interface does not take is no loss: that is what was to be learnt.
    pub fn send_unfragmented(&self, route: Route, datagram: &[u8]) {
        let wrapped = route.relay.map(|token| [&relay::header(token)[..], datagram].concat());
        let datagram = wrapped.as_deref().unwrap_or(datagram);
        let uplink = match route.endpoint.uplink {
            UplinkId::UDP4 => self.udp[0].as_deref(),
            UplinkId::UDP6 => self.udp[1].as_deref(),
            UplinkId(_) => None,
        };
        if uplink.is_some_and(|uplink| uplink.send_unfragmented(route.endpoint.addr, datagram).is_ok()) {
            add(&self.counters.udp_tx_calls, 1);
            add(&self.counters.udp_tx_datagrams, 1);
            add(&self.counters.udp_tx_bytes, datagram.len() as u64);
        }
    }

    /// Sends everything in a batch, a call for each run. Hot.
    pub fn flush(&self, batch: &mut SendBatch) {
        batch.flush(|endpoint, bytes, segment| self.send_run(endpoint, bytes, segment));
    }

    /// As [`flush`](Self::flush), for datagrams of others: counted as forwarded. Hot.
    pub fn flush_relayed(&self, batch: &mut SendBatch) {
        batch.flush(|endpoint, bytes, segment| self.relay_run(endpoint, bytes, segment));
    }

    /// Sends datagrams of others, of `stride` bytes, the last perhaps shorter, in as few calls as the socket allows.
    /// Hot.
    pub fn relay_train(&self, to: Endpoint, bytes: &[u8], stride: usize) {
        for run in bytes.chunks(stride * self.max_segments().min(MAX_RUN_BYTES / stride).max(1)) {
            self.relay_run(to, run, (run.len() > stride).then_some(stride));
        }
    }

    /// Sends `bytes`: one datagram, or with `segment` as many of that length as they hold, the last perhaps shorter,
    /// and as many as one [GSO send](UdpUplink::send) may have. Hot.
    pub fn send_run(&self, to: Endpoint, bytes: &[u8], segment: Option<usize>) {
        if let Some(count) = self.try_run(to, bytes, segment) {
            add(&self.counters.udp_tx_datagrams, count);
            add(&self.counters.udp_tx_bytes, bytes.len() as u64);
        }
    }

    fn relay_run(&self, to: Endpoint, bytes: &[u8], segment: Option<usize>) {
        if let Some(count) = self.try_run(to, bytes, segment) {
            add(&self.counters.relayed_datagrams, count);
            add(&self.counters.relayed_bytes, bytes.len() as u64);
        }
    }

    /// How many datagrams went; those that did not are counted as dropped.
    fn try_run(&self, to: Endpoint, bytes: &[u8], segment: Option<usize>) -> Option<u64> {
        let count = segment.map_or(1, |segment| bytes.len().div_ceil(segment)) as u64;
        let sent = match to.uplink {
            UplinkId::UDP4 => send_udp(self.udp[0].as_deref(), to.addr, bytes, segment),
            UplinkId::UDP6 => send_udp(self.udp[1].as_deref(), to.addr, bytes, segment),
            UplinkId::TCP => match &self.tcp {
                Some(tcp) if bytes.chunks(segment.unwrap_or(bytes.len()).max(1)).all(|d| tcp.send(to.addr, d)) => {
                    Ok(())
                }
                Some(_) | None => Err(DropReason::SocketFull),
            },
            UplinkId(_) => Err(DropReason::SendFailed),
        };
        match sent {
            Ok(()) => {
                add(&self.counters.udp_tx_calls, 1);
                Some(count)
            }
            Err(reason) => {
                self.counters.dropped_many(reason, count);
                None
            }
        }
    }
}

fn send_udp(
    uplink: Option<&UdpUplink>,
    to: SocketAddr,
    bytes: &[u8],
    segment: Option<usize>,
) -> Result<(), DropReason> {
    let uplink = uplink.ok_or(DropReason::SendFailed)?;
    uplink.send(to, bytes, segment).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => DropReason::SocketFull,
        _ if error.raw_os_error() == Some(libc::ENOBUFS) => DropReason::SocketFull,
        _ => DropReason::SendFailed,
    })
}
