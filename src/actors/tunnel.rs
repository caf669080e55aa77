//! Tunnel: carries packets between a TUN device and several paths.
//!
//! It reads the device and every socket, on the data thread, and is the only one to touch the core: what it learns from a
//! datagram holds for the packet that answers it. A restart loses the packets of one burst at the most; core, device and
//! sockets are held by the wiring.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_lite::{Future, future};
use smol::Timer;
use xtra::{Actor, Context, Handler, Mailbox};

use super::client::Ending;
use super::ext::{Service, StopReason};
use super::tunnel_system::{TunnelShared, TunnelView, open_device};
use crate::counters::{DropReason, add};
use crate::ids::{Endpoint, UplinkId};
use crate::io::batch::SendBatch;
use crate::io::poll::{self, Watch};
use crate::io::tap::Tap;
use crate::io::tun::Tun;
use crate::io::udp::{RecvBatch, UdpUplink};
use crate::messages::tunnel::PathOpened;
use crate::proto::tunnel::{Event, Output, SendFailure, Tunnel as Core};

/// Packets read in one burst, and their bytes; the sockets of this thread want their turn.
const BURST_PACKETS: usize = 64;
const BURST_BYTES: usize = 64 * 1024;
/// Room for a packet that is read: a device whose MTU somebody raised still gives whole ones, which are refused.
const READ_MAX: usize = 9216;
/// How long a full socket is waited for, without `-n`.
const FULL_WAIT: Duration = Duration::from_millis(100);

/// The actor.
pub struct Tunnel {
    shared: Arc<TunnelShared>,
    outgoing: SendBatch,
    incoming: RecvBatch,
    targets: Vec<(usize, Endpoint)>,
    /// Whose turn it is to be looked at first: the device, or a socket.
    first: usize,
}

/// What it waits for.
enum Wake<M> {
    Control(M),
    Due,
    /// 0 is the device, and then the sockets.
    Readable(usize),
}

impl Tunnel {
    pub fn new(shared: Arc<TunnelShared>) -> Self {
        let segments = shared.sockets.load().iter().flatten().map(|socket| socket.max_gso_segments()).min();
        let outgoing = SendBatch::new(segments.unwrap_or(1));
        Self { shared, outgoing, incoming: RecvBatch::new(), targets: Vec::new(), first: 0 }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.shared.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what the device has, up to a burst, and sends it by all paths. `WouldBlock` says that all was read.
    fn read_device(&mut self, tun: &Tun, now: Instant) -> io::Result<()> {
        let shared = self.shared.clone();
        let mut core = shared.core.lock().unwrap_or_else(PoisonError::into_inner);
        let (counters, mtu) = (&shared.counters, usize::from(shared.config.mtu()));
        let nowhere = Endpoint { uplink: UplinkId(0), addr: SocketAddr::from(([0, 0, 0, 0], 0)) };
        let (mut packets, mut bytes) = (0, 0);
        let result = loop {
            let (at, _) = core.layout(0);
            let room = self.outgoing.reserve(at + READ_MAX + 64);
            let length = match tun.try_read(&mut room[at..at + READ_MAX]) {
                Ok(length) => length,
                Err(error) => break Err(error),
            };
            (packets, bytes) = (packets + 1, bytes + length);
            let (_, whole) = core.layout(length);
            let sealed = if length > mtu { Err(DropReason::TooLong) } else { core.seal(&mut room[..whole], length) };
            match sealed {
                Ok(()) => self.outgoing.commit(nowhere, whole),
                Err(DropReason::UnknownSession) => counters.dropped(DropReason::NoEndpoint),
                Err(reason) => counters.dropped(reason),
            }
            if packets == BURST_PACKETS || bytes >= BURST_BYTES {
                break Ok(());
            }
        };
        if packets > 0 {
            add(&counters.tap_rx_calls, packets as u64);
            add(&counters.tap_rx_frames, packets as u64);
            add(&counters.tap_rx_bytes, bytes as u64);
        }
        core.targets(now, &mut self.targets);
        if self.targets.is_empty() {
            counters.dropped_many(DropReason::NoEndpoint, self.outgoing.datagrams() as u64);
            self.outgoing.clear();
        }
        let targets = &self.targets;
        self.outgoing.flush(|_, bytes, segment| {
            let count = segment.map_or(1, |segment| bytes.len().div_ceil(segment)) as u64;
            for (path, to) in targets {
                let result = shared.send(*to, bytes, segment, count);
                core.sent(*path, count, bytes.len() as u64, result, now);
            }
        });
        result
    }

    /// Reads what a socket has, up to a batch, and writes new packets to the device. `WouldBlock` says that all was read.
    fn read_socket(&mut self, socket: &UdpUplink, tun: &Tun, now: Instant) -> io::Result<()> {
        socket.try_recv(&mut self.incoming)?;
        let shared = &self.shared;
        let mut core = shared.core.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = &shared.counters;
        add(&counters.udp_rx_calls, 1);
        add(&counters.udp_rx_datagrams, self.incoming.datagrams() as u64);
        add(&counters.udp_rx_bytes, self.incoming.bytes() as u64);
        let (arena, trains) = self.incoming.trains();
        for train in trains {
            let from = Endpoint { uplink: socket.id(), addr: train.from };
            for range in train.datagrams() {
                match core.receive(from, &mut arena[range], now) {
                    Ok(None) => {}
                    Ok(Some(packet)) => match tun.try_write(packet) {
                        Ok(_) => {
                            add(&counters.tap_tx_calls, 1);
                            add(&counters.tap_tx_frames, 1);
                            add(&counters.tap_tx_bytes, packet.len() as u64);
                        }
                        Err(_) => counters.dropped(DropReason::TapWrite),
                    },
                    Err(reason) => counters.dropped(reason),
                }
            }
        }
        Ok(())
    }

    /// Does what the core wants done, and publishes what it has changed.
    fn drain(&self, now: Instant) {
        let mut core = self.core();
        while let Some(output) = core.poll_output() {
            match output {
                Output::Send { path, to, datagram } => {
                    let result = self.shared.send(to, &datagram, None, 1);
                    if let Some(path) = path {
                        core.sent(path, 1, datagram.len() as u64, result, now);
                    }
                }
                Output::Event(event) => self.tell(&event, now),
            }
        }
        if let Some(paths) = core.poll_changed() {
            let session = core.session().cloned();
            self.shared.view.store(Arc::new(TunnelView { paths, session }));
        }
    }

    fn tell(&self, event: &Event, now: Instant) {
        if matches!(event, Event::Full(_)) {
            self.shared.counters.dropped(DropReason::EndpointsFull);
        }
        if event.is_caused_by_others() {
            self.shared.events.say_limited("endpoints of a tunnel", event.to_string(), now);
        } else {
            self.shared.events.say(event.to_string());
        }
    }

    /// The device, made anew if it was deleted under us.
    async fn device(&self) -> Result<Arc<Tun>, StopReason> {
        if let Some(tun) = self.shared.tun.load_full() {
            return Ok(tun);
        }
        match open_device(&self.shared.config).await {
            Ok(tun) => {
                let tun = Arc::new(tun);
                self.shared.tun.store(Some(tun.clone()));
                Ok(tun)
            }
            Err(error) => {
                let text = error.to_string();
                // The node ends with these words; there is nobody left to care if it is ending already.
                let _ = self.shared.end.try_send(Ending::Failed(text.clone()));
                Err(StopReason::Failed(text))
            }
        }
    }

    /// Waits for the next thing to do; whoever is looked at first changes, so that nobody starves another.
    async fn readable(first: usize, device: &Watch<Arc<Tun>>, sockets: &[Watch<Arc<UdpUplink>>]) -> usize {
        let count = sockets.len() + 1;
        poll_fn(|context| {
            for number in (first..first + count).map(|number| number % count) {
                let ready = match number.checked_sub(1) {
                    None => pin!(device.readable()).poll(context),
                    Some(socket) => pin!(sockets[socket].readable()).poll(context),
                };
                if ready.is_ready() {
                    return Poll::Ready(number);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// One look at the device or at a socket, and what has to be done after it.
    fn look(
        &mut self,
        number: usize,
        device: &Watch<Arc<Tun>>,
        sockets: &[Watch<Arc<UdpUplink>>],
    ) -> Result<(), StopReason> {
        let now = Instant::now();
        self.first = number + 1;
        let tun = device.of().clone();
        let Some(socket) = number.checked_sub(1).map(|socket| &sockets[socket]) else {
            match self.read_device(&tun, now) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => device.clear(),
                Err(error) if Tap::is_gone(&error) => {
                    self.shared.tun.store(None);
                    return Err(StopReason::DeviceGone(format!("{}: {error}", tun.name())));
                }
                Err(_) => {
                    // It is down, and says so once for each time it is looked at.
                    self.shared.counters.dropped(DropReason::TapWrite);
                    device.clear();
                }
            }
            return Ok(());
        };
        match self.read_socket(socket.of(), &tun, now) {
            Ok(()) => {}
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    // A path that fails for a while; the next datagram is an edge again.
                    log::debug!("receiving on {}: {error}", socket.of().local_addr());
                }
                socket.clear();
            }
        }
        Ok(())
    }

    fn watches(&self) -> Result<Vec<Watch<Arc<UdpUplink>>>, StopReason> {
        let sockets = self.shared.sockets.load();
        let watch = |socket: &Arc<UdpUplink>| Watch::new(socket.clone());
        let watches: io::Result<Vec<_>> = sockets.iter().flatten().map(watch).collect();
        watches.map_err(|error| StopReason::Failed(format!("watching the sockets: {error}")))
    }
}

impl TunnelShared {
    /// Sends a run of datagrams, and waits a moment for a full socket if that is wanted.
    fn send(&self, to: Endpoint, bytes: &[u8], segment: Option<usize>, count: u64) -> Result<(), SendFailure> {
        let sockets = self.sockets.load();
        let Some(socket) = sockets.get(usize::from(to.uplink.0)).and_then(Option::as_deref) else {
            return Err(SendFailure::Refused("there is no socket".to_owned()));
        };
        let is_full = |error: &io::Error| {
            error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
        };
        let mut result = socket.send(to.addr, bytes, segment);
        if self.config.waits && result.as_ref().is_err_and(is_full) && socket.wait_writable(FULL_WAIT) {
            result = socket.send(to.addr, bytes, segment);
        }
        match result {
            Ok(()) => {
                add(&self.counters.udp_tx_calls, 1);
                add(&self.counters.udp_tx_datagrams, count);
                add(&self.counters.udp_tx_bytes, bytes.len() as u64);
                Ok(())
            }
            Err(error) if is_full(&error) => {
                self.counters.dropped_many(DropReason::SocketFull, count);
                Err(SendFailure::Full)
            }
            Err(error) => {
                self.counters.dropped_many(DropReason::SendFailed, count);
                Err(SendFailure::Refused(error.to_string()))
            }
        }
    }
}

impl Actor for Tunnel {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

impl Handler<PathOpened> for Tunnel {
    type Return = ();

    async fn handle(&mut self, opened: PathOpened, _: &mut Context<Self>) {
        let PathOpened { uplink, socket, remote } = opened;
        let mut sockets = self.shared.sockets.load().as_ref().clone();
        if let Some(place) = sockets.get_mut(usize::from(uplink.0)) {
            *place = Some(socket);
        }
        self.shared.sockets.store(Arc::new(sockets));
        self.core().set_remote(uplink, remote, Instant::now());
    }
}

super::ext::answers_pings!(Tunnel);

impl Service for Tunnel {
    const NAME: &'static str = "tunnel";

    /// A tunnel that ends says so; one that is restarted goes on.
    fn stopping(&mut self, reason: &StopReason) {
        if *reason == StopReason::Requested {
            for (to, datagram) in self.core().goodbyes() {
                // The other end notices its absence, too.
                let _ = self.shared.send(to, &datagram, None, 1);
            }
        }
    }

    async fn run(&mut self, mailbox: &Mailbox<Self>) -> StopReason {
        let mut next = mailbox.next();
        let device = match self.device().await {
            Ok(tun) => match Watch::new(tun) {
                Ok(watch) => watch,
                Err(error) => return StopReason::Failed(format!("watching the device: {error}")),
            },
            Err(reason) => return reason,
        };
        let mut sockets = match self.watches() {
            Ok(sockets) => sockets,
            Err(reason) => return reason,
        };
        let mut due = self.core().poll_timeout();
        let mut timer = Timer::at(due);
        loop {
            // Control first, then time, so that busy paths cannot starve them.
            let rest = future::or(
                async {
                    (&mut timer).await;
                    Wake::Due
                },
                async { Wake::Readable(Self::readable(self.first, &device, &sockets).await) },
            );
            match future::or(async { Wake::Control((&mut next).await) }, rest).await {
                Wake::Control(message) => {
                    next = mailbox.next();
                    let before = self.shared.sockets.load_full();
                    if message.dispatch_to(self).await.is_break() {
                        return StopReason::Requested;
                    }
                    if !Arc::ptr_eq(&before, &self.shared.sockets.load()) {
                        drop(std::mem::take(&mut sockets));
                        sockets = match self.watches() {
                            Ok(sockets) => sockets,
                            Err(reason) => return reason,
                        };
                    }
                }
                Wake::Due => {
                    self.core().handle_timeout(Instant::now());
                    due = self.core().poll_timeout();
                    timer.set_at(due);
                }
                Wake::Readable(number) => {
                    if let Err(reason) = self.look(number, &device, &sockets) {
                        return reason;
                    }
                    poll::turn().await;
                }
            }
            self.drain(Instant::now());
            // Later is found out when the time has come: setting a timer costs more than looking in vain.
            let wanted = self.core().poll_timeout();
            if wanted < due {
                due = wanted;
                timer.set_at(due);
            }
        }
    }
}
