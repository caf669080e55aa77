//! A UDP socket of the underlay: batches out by GSO, batches in by `recvmmsg` and GRO.
//!
//! Nothing here waits, see [`poll`](super::poll); nothing here knows what a datagram means. Errors that the network sent back about an earlier datagram (ICMP) never end a socket.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{Domain, Protocol, Socket, Type};

use super::policy::mark_underlay;
use crate::ids::UplinkId;

/// A bound UDP socket. All methods take `&self`: one task reads, anyone sends.
#[derive(Debug)]
pub struct UdpUplink {
    id: UplinkId,
    local_addr: SocketAddr,
    device: Option<String>,
    socket: UdpSocket,
    state: UdpSocketState,
    /// Our own copy of the limit, since quinn-udp also lowers its own for errors that concern one destination.
    gso_segments: AtomicUsize,
    /// Destinations whose way out cannot cut segmented sends.
    uncut: UncutPaths,
    /// Held while IP may not cut what is sent.
    probing: Mutex<()>,
}

/// Why a UDP socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "UDP port {} on {} is in use by another program; end it, or choose another port",
        addr.port(),
        addr.ip()
    )]
    PortInUse { addr: SocketAddr },
    #[error("not permitted to bind UDP {addr}; choose a port above 1023, or run as root")]
    NotPermitted { addr: SocketAddr, source: io::Error },
    #[error("{} is no address of this machine; bind one of its addresses, or the unspecified address", addr.ip())]
    NotOurAddress { addr: SocketAddr },
    #[error("this machine has no {}", if addr.is_ipv4() { "IPv4" } else { "IPv6" })]
    NoFamily { addr: SocketAddr },
    #[error("there is no network interface {device}; `ip link` lists them")]
    NoDevice { device: String },
    #[error("binding UDP {addr} failed at {call}: {source}")]
    Other { addr: SocketAddr, call: &'static str, source: io::Error },
}

impl BindError {
    fn new(addr: SocketAddr, call: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EADDRINUSE) => Self::PortInUse { addr },
            Some(libc::EACCES | libc::EPERM) => Self::NotPermitted { addr, source },
            Some(libc::EADDRNOTAVAIL) => Self::NotOurAddress { addr },
            Some(libc::EAFNOSUPPORT) => Self::NoFamily { addr },
            _ => Self::Other { addr, call, source },
        }
    }
}

/// Socket buffers asked for, in bytes: a burst of 64 KiB super-frames must fit several times.
pub const SOCKET_BUFFER: usize = 8 << 20;

impl UdpUplink {
    /// Binds `addr` and asks for socket buffers of `buffer_bytes` in each direction (the kernel may give less).
    ///
    /// An IPv6 socket takes IPv6 only; IPv4 has a socket of its own.
    pub fn bind(id: UplinkId, addr: SocketAddr, buffer_bytes: usize) -> Result<Self, BindError> {
        Self::bind_on(id, addr, None, buffer_bytes)
    }

    /// As [`bind`](Self::bind), with a device that everything leaves by and comes in by, whatever the routes say.
    pub fn bind_on(
        id: UplinkId,
        addr: SocketAddr,
        device: Option<&str>,
        buffer_bytes: usize,
    ) -> Result<Self, BindError> {
        let failed = |call| move |source: io::Error| BindError::new(addr, call, source);
        // No SO_REUSEADDR: with it, two programs would share a UDP port in silence.
        let socket =
            Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP)).map_err(failed("socket"))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true).map_err(failed("IPV6_V6ONLY"))?;
        }
        if let Some(device) = device {
            socket.bind_device(Some(device.as_bytes())).map_err(|source| match source.raw_os_error() {
                Some(libc::ENODEV) => BindError::NoDevice { device: device.to_owned() },
                _ => failed("SO_BINDTODEVICE")(source),
            })?;
        }
        socket.bind(&addr.into()).map_err(failed("bind"))?;
        Ok(Self { device: device.map(str::to_owned), ..Self::adopt(id, socket.into(), buffer_bytes)? })
    }

    /// Makes an uplink of a socket that is bound already; without [`bind`](Self::bind)'s options it works all the
    /// same.
    pub fn adopt(id: UplinkId, socket: UdpSocket, buffer_bytes: usize) -> Result<Self, BindError> {
        let unbound = SocketAddr::from(([0, 0, 0, 0], 0));
        let local_addr = socket.local_addr().map_err(|source| BindError::new(unbound, "getsockname", source))?;
        let failed = |call| move |source: io::Error| BindError::new(local_addr, call, source);
        mark_underlay(&socket);
        grow_buffers(&socket, buffer_bytes);
        let state = UdpSocketState::new(UdpSockRef::from(&socket)).map_err(failed("setsockopt"))?;
        allow_fragments(&socket, local_addr).map_err(failed("IP_MTU_DISCOVER"))?;
        let gso_segments = AtomicUsize::new(state.max_gso_segments());
        let (uncut, probing) = (UncutPaths::default(), Mutex::new(()));
        Ok(Self { id, local_addr, device: None, socket, state, gso_segments, uncut, probing })
    }

    /// The number datagrams to and from this socket are known by.
    pub fn id(&self) -> UplinkId {
        self.id
    }

    /// The bound address, with the port the kernel chose if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The device it is bound to, if any.
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// How many segments one [`Self::send`] may hold; 1 where the kernel has no GSO. It may fall.
    pub fn max_gso_segments(&self) -> usize {
        self.gso_segments.load(Relaxed)
    }

    /// Receives what is there, up to the size of `batch`, in one call; returns the number of datagrams.
    ///
    /// What `batch` held before is gone, also on error. `WouldBlock` when there is nothing.
    pub fn try_recv(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        batch.filled = 0;
        let RecvBatch { bytes, metas, filled } = batch;
        let mut slots = bytes.chunks_exact_mut(SLOT_BYTES);
        let mut slots: [IoSliceMut<'_>; SLOTS] =
            std::array::from_fn(|_| IoSliceMut::new(slots.next().expect("the buffer has SLOTS slots")));
        for _ in 0..MAX_STALE_ERRORS {
            match self.state.recv(UdpSockRef::from(&self.socket), &mut slots, &mut metas[..]) {
                Ok(count) => {
                    *filled = count;
                    return Ok(batch.datagrams());
                }
                // It belongs to a datagram sent earlier, and reading it has cleared it.
                Err(error) if is_about_an_earlier_datagram(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Sends `bytes` to `to`: one datagram, or with `segment_size` as many datagrams of that size (the last may be
    /// shorter) as `bytes` holds, at most [`Self::max_gso_segments`] and 65,507 bytes in all.
    ///
    /// `WouldBlock` when the send buffer is full; then nothing was sent, or without GSO perhaps the
    /// first part.
    /// Other errors concern this destination. A datagram larger than the path's MTU is cut by IP fragmentation.
    pub fn send(&self, to: SocketAddr, bytes: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let segment_size = segment_size.filter(|size| (1..bytes.len()).contains(size));
        let Some(size) = segment_size else { return self.send_one(to, bytes, None) };
        if self.max_gso_segments() > 1 && !self.uncut.has(to.ip()) {
            let Err(error) = self.send_one(to, bytes, segment_size) else { return Ok(()) };
            match error.raw_os_error() {
                // The device cannot do it (EIO: no checksum offload); some kernels say EINVAL.
                Some(libc::EIO | libc::EINVAL) => {
                    log::info!(
                        "{:?}: {error} on a segmented send to {to}; sending one by one there from now on",
                        self.id
                    );
                    if !self.uncut.add(to.ip()) {
                        self.gso_segments.store(1, Relaxed);
                    }
                }
                // A segment is larger than the MTU towards this destination. GSO does not fragment; plain sends do.
                Some(libc::EMSGSIZE) => {}
                _ => return Err(error),
            }
        }
        bytes.chunks(size).try_for_each(|segment| self.send_one(to, segment, None))
    }

    /// Sends one datagram that IP must not cut, neither here nor on the way, and whatever the kernel believes of the
    /// path: it arrives as it is or not at all. `EMSGSIZE` if not even this machine's interface takes it.
    ///
    /// The kernel knows the wish as a property of the socket only, so it is changed for the time of the call. Others
    /// who send meanwhile send uncut, too: what fits the path passes all the same.
    pub fn send_unfragmented(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let _alone = self.probing.lock().unwrap_or_else(PoisonError::into_inner);
        forbid_fragments(&self.socket)?;
        let sent = self.send_one(to, bytes, None);
        allow_fragments(&self.socket, self.local_addr)?;
        sent
    }

    /// Waits until a full socket has room again, `limit` at the most; `false` if it has not.
    ///
    /// This blocks the thread: only for who would rather be late than lose something.
    pub fn wait_writable(&self, limit: Duration) -> bool {
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&limit))).is_ok_and(|ready| ready > 0)
    }

    fn send_one(&self, to: SocketAddr, bytes: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let transmit = Transmit { destination: to, ecn: None, contents: bytes, segment_size, src_ip: None };
        let attempt = || self.state.try_send(UdpSockRef::from(&self.socket), &transmit);
        match attempt() {
            // The kernel reports it once, on whichever call comes next, and did not send this datagram.
            Err(error) if is_about_an_earlier_datagram(&error) => attempt(),
            result => result,
        }
    }
}

/// Addresses that segmented sends failed for.
#[derive(Debug, Default)]
struct UncutPaths {
    any: AtomicBool,
    addrs: Mutex<Vec<IpAddr>>,
}

/// With so many it is this machine, not the way to somebody.
const UNCUT_MAX: usize = 64;

impl UncutPaths {
    fn has(&self, to: IpAddr) -> bool {
        self.any.load(Relaxed) && self.addrs().contains(&to)
    }

    /// `false` if there are too many.
    fn add(&self, to: IpAddr) -> bool {
        let mut addrs = self.addrs();
        if !addrs.contains(&to) {
            addrs.push(to);
        }
        self.any.store(true, Relaxed);
        addrs.len() < UNCUT_MAX
    }

    fn addrs(&self) -> MutexGuard<'_, Vec<IpAddr>> {
        self.addrs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for UdpUplink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// ICMP answers to something sent before. Some of them may also be this datagram's own (no route), so a sender
/// tries once more and then believes it.
fn is_about_an_earlier_datagram(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::ECONNRESET
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::ENOPROTOOPT
                | libc::EPROTO
        )
    )
}

/// Bursts of 64 KiB overrun the default buffers (200 KiB), so ask for the size past the system's limit where allowed,
/// and for as much as the limit gives otherwise. Too small a buffer costs speed, so failing is no error.
pub fn grow_buffers(socket: &impl AsFd, bytes: usize) {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        if set_option(socket, libc::SOL_SOCKET, force, bytes).is_err()
            && let Err(error) = set_option(socket, libc::SOL_SOCKET, plain, bytes)
        {
            log::debug!("socket buffer of {bytes} bytes refused: {error}");
        }
    }
}

/// Takes back the "don't fragment" that quinn-udp sets for QUIC. An Ethernet frame of full size does not fit one
/// datagram once it is wrapped, and the overlay promises its MTU, so IP must be free to cut it while nothing is known of
/// a path. What ICMP says of paths is not believed over IPv4, where a router may cut as well; over IPv6 it is, for there
/// only we can.
fn allow_fragments(socket: &UdpSocket, addr: SocketAddr) -> io::Result<()> {
    discover_mtu(socket, addr, libc::IP_PMTUDISC_OMIT, libc::IPV6_PMTUDISC_DONT)?;
    if addr.is_ipv6() {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)?;
    }
    Ok(())
}

/// The opposite, whatever the kernel has heard of the way's MTU: for whoever tries how long packets may be.
pub(super) fn forbid_fragments(socket: &UdpSocket) -> io::Result<()> {
    discover_mtu(socket, socket.local_addr()?, libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_PROBE)
}

fn discover_mtu(socket: &UdpSocket, addr: SocketAddr, four: libc::c_int, six: libc::c_int) -> io::Result<()> {
    if addr.is_ipv6() {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, six)
    } else {
        set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, four)
    }
}

fn set_option(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is one int, and its length is given.
    match unsafe { libc::setsockopt(fd, level, option, std::ptr::from_ref(&value).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Datagrams of one sender that came as one: equal in length, but for a shorter last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Train {
    /// IPv4-mapped addresses are given as IPv4.
    pub from: SocketAddr,
    /// The local address it came to.
    pub local: Option<IpAddr>,
    /// Where in the batch's bytes it begins, and how many it has; none for an empty datagram.
    pub start: usize,
    pub len: usize,
    /// The length of each datagram, at least 1.
    pub stride: usize,
}

impl Train {
    /// Where each datagram lies. A train without bytes is one empty datagram.
    pub fn datagrams(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let Self { start, len, stride, .. } = *self;
        let count = len.div_ceil(stride).max(1);
        (0..count).map(move |number| start + number * stride..start + len.min((number + 1) * stride))
    }
}

/// Datagrams received in one call; reused from call to call. Takes 256 KiB.
pub struct RecvBatch {
    bytes: Box<[u8]>,
    metas: Box<[RecvMeta; SLOTS]>,
    filled: usize,
}

/// One slot holds one datagram, or a train of equal ones from one sender that GRO has joined.
const SLOTS: usize = 4;
const SLOT_BYTES: usize = 65_536;

/// How many stale ICMP errors one receive call skips before it gives way.
const MAX_STALE_ERRORS: usize = 16;

impl RecvBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; SLOTS * SLOT_BYTES].into_boxed_slice(),
            metas: Box::new([RecvMeta::default(); SLOTS]),
            filled: 0,
        }
    }

    /// The number of datagrams held.
    pub fn datagrams(&self) -> usize {
        self.metas[..self.filled].iter().map(|meta| meta.len.div_ceil(meta.stride.max(1)).max(1)).sum()
    }

    /// The number of bytes held.
    pub fn bytes(&self) -> usize {
        self.metas[..self.filled].iter().map(|meta| meta.len).sum()
    }

    /// All bytes held, and which of them are whose datagrams, in order of arrival. The bytes may be changed in place.
    pub fn trains(&mut self) -> (&mut [u8], impl Iterator<Item = Train>) {
        let train = |(slot, meta): (usize, &RecvMeta)| Train {
            from: canonical(meta.addr),
            local: meta.dst_ip.map(|ip| ip.to_canonical()),
            start: slot * SLOT_BYTES,
            len: meta.len,
            stride: meta.stride.max(1),
        };
        (&mut self.bytes, self.metas[..self.filled].iter().enumerate().map(train))
    }
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvBatch").field("datagrams", &self.datagrams()).field("bytes", &self.bytes()).finish()
    }
}

/// One spelling for each address, so that equal senders compare equal: IPv4-mapped as IPv4, no flow label. The scope
/// of a link-local address stays, it is needed to answer.
fn canonical(addr: SocketAddr) -> SocketAddr {
    let mut addr = addr;
    if let SocketAddr::V6(v6) = &mut addr {
        v6.set_flowinfo(0);
    }
    match addr.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, addr.port()),
        IpAddr::V6(_) => addr,
    }
}

#[cfg(test)]
mod tests {
    use super::super::poll::{self, Watch};
    use super::*;
    use std::time::Instant;

    const BUFFER: usize = 1 << 20;

    fn uplink(addr: &str) -> UdpUplink {
        UdpUplink::bind(UplinkId::UDP4, addr.parse().expect("an address"), BUFFER).expect("a socket")
    }

    type Received = (Vec<u8>, SocketAddr, Option<IpAddr>);

    /// Receives `count` datagrams, or what came within two seconds.
    fn receive(uplink: &UdpUplink, count: usize) -> Vec<Received> {
        receive_trains(uplink, count).0
    }

    /// As [`receive`], and how many datagrams each train had.
    fn receive_trains(uplink: &UdpUplink, count: usize) -> (Vec<Received>, Vec<usize>) {
        let mut batch = RecvBatch::new();
        let (mut received, mut lengths) = (Vec::new(), Vec::new());
        let all = async {
            let watch = Watch::new(uplink).expect("watched");
            while received.len() < count {
                match uplink.try_recv(&mut batch) {
                    Ok(_) => {
                        let (bytes, trains) = batch.trains();
                        for train in trains {
                            let datagram = |range: Range<usize>| (bytes[range].to_vec(), train.from, train.local);
                            lengths.push(train.datagrams().count());
                            received.extend(train.datagrams().map(datagram));
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        watch.clear();
                        watch.readable().await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let late = async {
            smol::Timer::after(Duration::from_secs(2)).await;
        };
        poll::block_on(smol::future::or(all, late)).expect("an epoll");
        (received, lengths)
    }

    #[test]
    fn one_segmented_send_arrives_as_its_datagrams_in_order() {
        let (from, to) = (uplink("127.0.0.1:0"), uplink("127.0.0.1:0"));
        assert!(from.max_gso_segments() > 1, "the kernel has GSO");
        let bytes: Vec<u8> = (0..20 * 1000 + 123).map(|i| (i / 1000) as u8).collect();
        from.send(to.local_addr(), &bytes, Some(1000)).expect("sent");

        let received = receive(&to, 21);
        let expected: Vec<&[u8]> = bytes.chunks(1000).collect();
        assert_eq!(received.iter().map(|(bytes, ..)| &bytes[..]).collect::<Vec<_>>(), expected);
        for (_, sender, local) in received {
            assert_eq!(sender, from.local_addr());
            assert_eq!(local, Some(to.local_addr().ip()));
        }
    }

    #[test]
    fn a_segmented_send_the_kernel_refuses_goes_one_by_one_and_only_there_from_then_on() {
        let from = uplink("127.0.0.1:0");
        let [unlucky, lucky] = ["127.0.0.2:0", "127.0.0.3:0"].map(uplink);
        let bytes: Vec<u8> = (0..10 * 1000 + 123).map(|i| (i / 1000) as u8).collect();
        let expected: Vec<&[u8]> = bytes.chunks(1000).collect();
        // How many datagrams each message of the kernel held: on loopback, as many as each send.
        let trains = |to: &UdpUplink| {
            from.send(to.local_addr(), &bytes, Some(1000)).expect("sent");
            let (received, trains) = receive_trains(to, 11);
            assert_eq!(received.iter().map(|(bytes, ..)| &bytes[..]).collect::<Vec<_>>(), expected);
            trains
        };
        assert_eq!(trains(&unlucky), [11], "sent as one");
        assert_eq!(trains(&lucky), [11]);

        // Nobody would compute the segments' checksums, so the kernel cuts nothing: EINVAL, or EIO of newer ones.
        let refuse = |on| set_option(&from.socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, on).expect("an option");
        refuse(1);
        assert_eq!(trains(&unlucky), [1; 11], "sent again, one by one");
        refuse(0);
        assert_eq!(trains(&unlucky), [1; 11], "and it is not tried again");
        assert!(from.uncut.has(unlucky.local_addr().ip()) && !from.uncut.has(lucky.local_addr().ip()));
        assert_eq!(trains(&lucky), [11], "the other way is as it was");
        assert!(from.max_gso_segments() > 1);
    }

    #[test]
    fn a_machine_that_cuts_for_nobody_is_not_asked_for_ever() {
        let from = uplink("127.0.0.1:0");
        set_option(&from.socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).expect("an option");
        for host in 1..=UNCUT_MAX as u8 {
            assert!(from.max_gso_segments() > 1, "after {} destinations", host - 1);
            let to = uplink(&format!("127.0.1.{host}:0"));
            from.send(to.local_addr(), b"onetwosix", Some(3)).expect("sent");
            assert_eq!(receive(&to, 3).len(), 3);
        }
        assert_eq!(from.max_gso_segments(), 1);
    }

    #[test]
    fn a_batch_is_changed_in_place() {
        let (from, to) = (uplink("127.0.0.1:0"), uplink("127.0.0.1:0"));
        from.send(to.local_addr(), b"abcabc", Some(3)).expect("sent");
        let mut batch = RecvBatch::new();
        let deadline = Instant::now() + Duration::from_secs(2);
        let received = loop {
            match to.try_recv(&mut batch) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
                result => break result.expect("received"),
            }
        };
        assert_eq!(received, 2);
        assert_eq!(batch.bytes(), 6);
        for _ in 0..2 {
            let (bytes, trains) = batch.trains();
            for range in trains.flat_map(|train| train.datagrams()) {
                bytes[range].reverse();
            }
        }
        let (bytes, trains) = batch.trains();
        assert_eq!(trains.map(|train| &bytes[train.start..][..train.len]).collect::<Vec<_>>(), [b"abcabc"]);
    }

    #[test]
    fn segments_larger_than_the_mtu_arrive_whole() {
        let (from, to) = (uplink("127.0.0.1:0"), uplink("127.0.0.1:0"));
        // Loopback's MTU is 65,536, so this one is for the limits: the largest datagram, then an empty one.
        let bytes = vec![7; 65_507];
        from.send(to.local_addr(), &bytes, None).expect("sent");
        from.send(to.local_addr(), &[], None).expect("sent");
        let lengths: Vec<usize> = receive(&to, 2).iter().map(|(bytes, ..)| bytes.len()).collect();
        assert_eq!(lengths, [65_507, 0]);
    }

    #[test]
    fn ipv6_carries_datagrams_too() {
        let bind = || UdpUplink::bind(UplinkId::UDP6, "[::1]:0".parse().expect("an address"), BUFFER);
        let (from, to) = match (bind(), bind()) {
            (Ok(from), Ok(to)) => (from, to),
            _ => return println!("skipped: no IPv6 here"),
        };
        from.send(to.local_addr(), b"onetwosix", Some(3)).expect("sent");
        let received = receive(&to, 3);
        assert_eq!(received.len(), 3);
        assert!(received.iter().all(|(_, sender, _)| *sender == from.local_addr()));
    }

    #[test]
    fn ipv4_and_ipv6_bind_the_same_port() {
        let v6 = UdpUplink::bind(UplinkId::UDP6, "[::]:0".parse().expect("an address"), BUFFER);
        let Ok(v6) = v6 else { return println!("skipped: no IPv6 here") };
        let addr = SocketAddr::new([0, 0, 0, 0].into(), v6.local_addr().port());
        UdpUplink::bind(UplinkId::UDP4, addr, BUFFER).expect("the IPv6 socket leaves IPv4 alone");
    }

    #[test]
    fn a_port_in_use_is_named_with_advice() {
        let first = uplink("127.0.0.1:0");
        let error = UdpUplink::bind(UplinkId::UDP4, first.local_addr(), BUFFER).expect_err("in use");
        assert!(matches!(error, BindError::PortInUse { .. }));
        let text = error.to_string();
        assert!(text.contains(&first.local_addr().port().to_string()) && text.contains("choose another"), "{text}");
        let foreign = UdpUplink::bind(UplinkId::UDP4, "192.0.2.1:0".parse().expect("an address"), BUFFER);
        assert!(matches!(foreign, Err(BindError::NotOurAddress { .. })));
    }

    #[test]
    fn a_full_socket_is_waited_for_until_it_has_room_and_no_longer_than_that() {
        use super::super::netns::{Netns, can_make_networks};
        if !can_make_networks() {
            return;
        }
        let (a, b) = (Netns::new().expect("a namespace"), Netns::new().expect("a namespace"));
        Netns::connect((&a, "eth0", "10.0.0.1/24"), (&b, "eth0", "10.0.0.2/24")).expect("a cable");
        let from = a.run(|| UdpUplink::bind(UplinkId::UDP4, "10.0.0.1:0".parse().expect("an address"), 4096));
        let from = from.expect("a socket");
        assert!(from.wait_writable(Duration::ZERO), "there is room");
        // Nobody has this address: what is sent waits for a neighbour, for a second or more.
        let nobody = "10.0.0.9:9".parse().expect("an address");
        let begun = Instant::now();
        while !from.send(nobody, &[0; 1400], None).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            assert!(begun.elapsed() < Duration::from_secs(5), "the socket does not fill up");
        }
        let begun = Instant::now();
        assert!(!from.wait_writable(Duration::from_millis(20)), "still full");
        assert!(begun.elapsed() >= Duration::from_millis(20));
        assert!(from.wait_writable(Duration::from_secs(20)), "the neighbour was given up, and there is room");
    }

    #[test]
    fn a_refused_datagram_stops_neither_sending_nor_receiving() {
        let (alice, bob) = (uplink("127.0.0.1:0"), uplink("127.0.0.1:0"));
        let nobody = uplink("127.0.0.1:0").local_addr();
        // Makes the kernel report ICMP errors on an unconnected socket, which it does not do by itself.
        set_option(&alice.socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1).expect("an option");
        alice.send(nobody, b"hello?", None).expect("sent");
        std::thread::sleep(Duration::from_millis(50));
        alice.send(bob.local_addr(), b"hello", None).expect("sent in spite of the error about the other one");
        assert_eq!(receive(&bob, 1).len(), 1);
        alice.send(nobody, b"hello?", None).expect("sent");
        std::thread::sleep(Duration::from_millis(50));
        bob.send(alice.local_addr(), b"hello", None).expect("sent");
        assert_eq!(receive(&alice, 1).len(), 1);
    }

    #[test]
    fn what_is_sent_unfragmented_arrives_whole_or_not_at_all_and_the_rest_is_cut_as_before() {
        use super::super::netns::{Netns, can_make_networks};
        if !can_make_networks() {
            return;
        }
        let (a, b) = (Netns::new().expect("a namespace"), Netns::new().expect("a namespace"));
        Netns::connect((&a, "eth0", "10.0.0.1/24"), (&b, "eth0", "10.0.0.2/24")).expect("a cable");
        let (from, to) = (a.run(|| uplink("10.0.0.1:0")), b.run(|| uplink("10.0.0.2:0")));
        from.send_unfragmented(to.local_addr(), &[1; 1472]).expect("it fits the interface");
        let error = from.send_unfragmented(to.local_addr(), &[1; 1473]).expect_err("it does not");
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        from.send(to.local_addr(), &[1; 1473], None).expect("cut");
        let lengths: Vec<usize> = receive(&to, 2).iter().map(|(bytes, ..)| bytes.len()).collect();
        assert_eq!(lengths, [1472, 1473]);
    }

    #[test]
    fn frames_larger_than_the_path_pass_by_fragmentation() {
        use super::super::netns::{Netns, can_make_networks};
        if !can_make_networks() {
            return;
        }
        let (a, b) = (Netns::new().expect("a namespace"), Netns::new().expect("a namespace"));
        Netns::connect((&a, "eth0", "10.0.0.1/24"), (&b, "eth0", "10.0.0.2/24")).expect("a cable");
        let (from, to) = (a.run(|| uplink("10.0.0.1:0")), b.run(|| uplink("10.0.0.2:0")));
        let bytes = vec![1; 1600 * 4];
        from.send(to.local_addr(), &bytes, Some(1600)).expect("sent");
        let lengths: Vec<usize> = receive(&to, 4).iter().map(|(bytes, ..)| bytes.len()).collect();
        assert_eq!(lengths, [1600; 4]);
    }
}
