//! The sending side of all uplinks: a cheap handle that anybody may clone and call.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwapOption;
use smol::channel::{Receiver, Sender};

use super::batch::{MAX_RUN_BYTES, SendBatch};
use super::tcp::TcpTx;
use super::udp::UdpUplink;
use crate::counters::{Counters, DropReason, add};
use crate::ids::{Endpoint, Route, UplinkId};
use crate::wire::header::HEADER_LEN;
use crate::wire::relay;

/// UDP sockets there may be: the numbers below this one.
const SLOTS: usize = 64;

/// Sends datagrams by whichever socket their endpoint names. Never waits: what a full socket refuses is dropped and
/// counted, because an Ethernet segment may lose frames but may not stall.
///
/// Sockets come and go while frames pass. A place is read without a lock; whoever still holds a socket that was
/// removed sends one more batch by it.
#[derive(Clone)]
pub struct Uplinks(Arc<Shared>);

struct Shared {
    udp: [ArcSwapOption<UdpUplink>; SLOTS],
    tcp: Option<TcpTx>,
    counters: Arc<Counters>,
    reader: OnceLock<StartReader>,
    /// What keeps the reader of each socket running.
    reading: Mutex<BTreeMap<UplinkId, Reading>>,
    /// One word: sockets came or went.
    changes: (Sender<()>, Receiver<()>),
}

/// Starts whatever reads a socket.
pub type StartReader = Box<dyn Fn(Arc<UdpUplink>) -> Reading + Send + Sync>;
/// A socket is read until this is dropped.
pub type Reading = Box<dyn Any + Send>;

/// The number of a new socket belongs to another one, or to none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is in use, or no number for a UDP socket")]
pub struct UplinkTaken(pub UplinkId);

impl Uplinks {
    /// `udp4` and `udp6` are absent where the machine lacks the family, or other sockets stand for them.
    pub fn new(
        udp4: Option<Arc<UdpUplink>>,
        udp6: Option<Arc<UdpUplink>>,
        tcp: Option<TcpTx>,
        counters: Arc<Counters>,
    ) -> Self {
        let udp = std::array::from_fn(|_| ArcSwapOption::empty());
        for uplink in [udp4, udp6].into_iter().flatten() {
            udp[usize::from(uplink.id().0)].store(Some(uplink));
        }
        let (reader, reading, changes) = (OnceLock::new(), Mutex::default(), smol::channel::bounded(1));
        Self(Arc::new(Shared { udp, tcp, counters, reader, reading, changes }))
    }

    /// Reads every socket there is and every one to come with what `start` starts; only the first call counts.
    pub fn read_with(&self, start: StartReader) {
        let mut reading = self.0.reading();
        let start = self.0.reader.get_or_init(|| start);
        for uplink in self.readers() {
            reading.entry(uplink.id()).or_insert_with(|| start(uplink));
        }
    }

    /// A number that no socket has.
    pub fn free(&self, among: RangeInclusive<u8>) -> Option<UplinkId> {
        among.map(UplinkId).find(|id| self.0.udp.get(usize::from(id.0)).is_some_and(|slot| slot.load().is_none()))
    }

    /// Adds a socket: it is read, and can be sent by, from here on.
    ///
    /// # Errors
    ///
    /// [`UplinkTaken`] if its number is.
    pub fn add(&self, uplink: UdpUplink) -> Result<Arc<UdpUplink>, UplinkTaken> {
        let (id, uplink) = (uplink.id(), Arc::new(uplink));
        // Held throughout, so that two with one number cannot both find the place empty.
        let mut reading = self.0.reading();
        let slot = self.0.udp.get(usize::from(id.0)).filter(|slot| slot.load().is_none()).ok_or(UplinkTaken(id))?;
        slot.store(Some(uplink.clone()));
        if let Some(start) = self.0.reader.get() {
            reading.insert(id, start(uplink.clone()));
        }
        let _ = self.0.changes.0.try_send(());
        Ok(uplink)
    }

    /// Takes a socket away: nothing is sent by it or read from it any more. `false` if there was none.
    pub fn remove(&self, id: UplinkId) -> bool {
        let mut reading = self.0.reading();
        let had = self.0.udp.get(usize::from(id.0)).is_some_and(|slot| slot.swap(None).is_some());
        let ended = reading.remove(&id);
        // The end of a reader is somebody else's code: not under the lock.
        drop(reading);
        drop(ended);
        let _ = self.0.changes.0.try_send(());
        had
    }

    /// Waits until sockets have come or gone since the last call. For one who waits; safe to drop.
    pub async fn changed(&self) {
        // The sender is ours, so the channel stays open.
        let _ = self.0.changes.1.recv().await;
    }

    /// Whether there is such a socket.
    pub fn has(&self, id: UplinkId) -> bool {
        self.0.udp.get(usize::from(id.0)).is_some_and(|slot| slot.load().is_some())
    }

    /// All UDP sockets, by number.
    pub fn readers(&self) -> impl Iterator<Item = Arc<UdpUplink>> {
        self.0.udp.iter().filter_map(ArcSwapOption::load_full)
    }

    /// The TCP connections, at a server.
    pub fn tcp(&self) -> Option<TcpTx> {
        self.0.tcp.clone()
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
        let uplink = self.0.udp.get(usize::from(route.endpoint.uplink.0)).and_then(ArcSwapOption::load_full);
        if uplink.is_some_and(|uplink| uplink.send_unfragmented(route.endpoint.addr, datagram).is_ok()) {
            add(&self.0.counters.udp_tx_calls, 1);
            add(&self.0.counters.udp_tx_datagrams, 1);
            add(&self.0.counters.udp_tx_bytes, datagram.len() as u64);
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
            add(&self.0.counters.udp_tx_datagrams, count);
            add(&self.0.counters.udp_tx_bytes, bytes.len() as u64);
        }
    }

    fn relay_run(&self, to: Endpoint, bytes: &[u8], segment: Option<usize>) {
        if let Some(count) = self.try_run(to, bytes, segment) {
            add(&self.0.counters.relayed_datagrams, count);
            add(&self.0.counters.relayed_bytes, bytes.len() as u64);
        }
    }

    /// How many datagrams went; those that did not are counted as dropped.
    fn try_run(&self, to: Endpoint, bytes: &[u8], segment: Option<usize>) -> Option<u64> {
        let count = segment.map_or(1, |segment| bytes.len().div_ceil(segment)) as u64;
        let sent = match to.uplink {
            UplinkId::TCP => match &self.0.tcp {
                Some(tcp) if bytes.chunks(segment.unwrap_or(bytes.len()).max(1)).all(|d| tcp.send(to.addr, d)) => {
                    Ok(())
                }
                Some(_) | None => Err(DropReason::SocketFull),
            },
            UplinkId(number) => match self.0.udp.get(usize::from(number)) {
                Some(slot) => send_udp(slot.load().as_deref(), to.addr, bytes, segment),
                None => Err(DropReason::NoUplink),
            },
        };
        match sent {
            Ok(()) => {
                add(&self.0.counters.udp_tx_calls, 1);
                Some(count)
            }
            Err(reason) => {
                self.0.counters.dropped_many(reason, count);
                None
            }
        }
    }
}

impl Shared {
    fn reading(&self) -> MutexGuard<'_, BTreeMap<UplinkId, Reading>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send_udp(
    uplink: Option<&UdpUplink>,
    to: SocketAddr,
    bytes: &[u8],
    segment: Option<usize>,
) -> Result<(), DropReason> {
    let uplink = uplink.ok_or(DropReason::NoUplink)?;
    uplink.send(to, bytes, segment).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => DropReason::SocketFull,
        _ if error.raw_os_error() == Some(libc::ENOBUFS) => DropReason::SocketFull,
        _ => DropReason::SendFailed,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    fn socket(id: UplinkId) -> UdpUplink {
        UdpUplink::bind(id, ([127, 0, 0, 1], 0).into(), 1 << 16).expect("a socket")
    }

    /// Counts itself among the readers while it lives.
    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }

    #[test]
    fn sockets_come_and_go_with_their_readers_and_what_is_sent_by_one_that_went_is_counted() {
        let (counters, reading) = (Arc::new(Counters::default()), Arc::new(AtomicUsize::new(0)));
        let uplinks = Uplinks::new(Some(Arc::new(socket(UplinkId::UDP4))), None, None, counters.clone());
        let count = reading.clone();
        uplinks.read_with(Box::new(move |_| {
            count.fetch_add(1, SeqCst);
            Box::new(Counted(count.clone()))
        }));
        assert_eq!(reading.load(SeqCst), 1, "the one that was there");

        let id = uplinks.free(UplinkId::FURTHER).expect("all are free");
        let to = uplinks.readers().next().expect("the first").local_addr();
        let added = uplinks.add(socket(id)).expect("its number is free");
        assert_eq!(reading.load(SeqCst), 2);
        assert_eq!(uplinks.add(socket(id)).err(), Some(UplinkTaken(id)));
        assert_ne!(uplinks.free(UplinkId::FURTHER), Some(id));
        assert_eq!(uplinks.readers().map(|uplink| uplink.id()).collect::<Vec<_>>(), [UplinkId::UDP4, id]);
        drop(added);

        uplinks.send(Endpoint { uplink: id, addr: to }, b"hello");
        assert_eq!((counters.tally().udp_tx_datagrams, counters.drops(DropReason::NoUplink)), (1, 0));
        assert!(uplinks.remove(id) && !uplinks.has(id));
        assert_eq!(reading.load(SeqCst), 1, "its reader ended");
        uplinks.send(Endpoint { uplink: id, addr: to }, b"hello");
        uplinks.send(Endpoint { uplink: UplinkId(200), addr: to }, b"hello");
        assert_eq!((counters.tally().udp_tx_datagrams, counters.drops(DropReason::NoUplink)), (1, 2));
        assert!(!uplinks.remove(id));
    }
}
