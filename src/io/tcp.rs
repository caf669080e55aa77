//! Datagrams over TCP, for clients whose network lets no UDP through.
//!
//! ```text
//! client to server   "EPS1"  { length: u16 little-endian, datagram } ...
//! server to client           { length: u16 little-endian, datagram } ...
//! ```
//!
//! The datagrams are those of UDP, and so are the manners: what does not fit into a queue is dropped, and nobody
//! waits for a slow reader. Connections that prove nothing are few per source, cheap and short.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::task::AtomicWaker;
use log::Level;
use smol::io::AsyncWrite;
use smol::stream::StreamExt;
use smol::{Async, Timer, future};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use super::policy::mark_underlay;
use crate::ids::{Endpoint, UplinkId};
use crate::logging;

/// The server's listening sockets.
#[derive(Debug)]
pub struct TcpListen {
    sockets: Vec<Async<TcpListener>>,
    limits: Limits,
    tx: TcpTx,
}

/// The client's end of a connection to a server.
#[derive(Debug)]
pub struct TcpConnect {
    connection: Connection,
    addr: SocketAddr,
    tx: TcpTx,
}

/// Sends datagrams into the connections of a [`TcpListen`] or a [`TcpConnect`]; clones are handles to the same.
#[derive(Debug, Clone, Default)]
pub struct TcpTx(Arc<Mutex<BTreeMap<SocketAddr, Arc<Outbox>>>>);

/// What a server grants.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections open at once.
    pub connections: usize,
    /// Connections from one source that are not authenticated yet. An IPv6 source is a /64.
    pub unauthenticated_per_source: usize,
    /// How long a connection may last before it is authenticated.
    pub unauthenticated_for: Duration,
}

/// A connection that could not be made or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    #[error("cannot listen on TCP {addr}: {source}")]
    Bind { addr: SocketAddr, source: io::Error },
    #[error("cannot connect to TCP {addr}: {source}")]
    Connect { addr: SocketAddr, source: io::Error },
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error("the other end closed the connection")]
    Closed,
    #[error("the connection did not begin with EPS1")]
    BadMagic,
    #[error("a datagram of {0} bytes was announced")]
    BadLength(usize),
    #[error("not authenticated in time")]
    Unauthenticated,
    #[error("closed on our side")]
    Dismissed,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1024, unauthenticated_per_source: 16, unauthenticated_for: Duration::from_secs(10) }
    }
}

impl TcpListen {
    /// Listens on a port of every address. IPv6 sockets take IPv6 only, so both wildcards can be listed.
    pub fn bind(addrs: &[IpAddr], port: u16) -> Result<Self, TcpError> {
        let sockets = addrs.iter().map(|ip| {
            let addr = SocketAddr::new(*ip, port);
            listen(addr).map_err(|source| TcpError::Bind { addr, source })
        });
        Ok(Self { sockets: sockets.collect::<Result<_, _>>()?, limits: Limits::default(), tx: TcpTx::default() })
    }

    /// Grants other limits than the default.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// A handle to answer with.
    pub fn tx(&self) -> TcpTx {
        self.tx.clone()
    }

    /// The addresses it listens on, with the ports the kernel chose.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|socket| socket.get_ref().local_addr().ok()).collect()
    }

    /// Accepts connections and hands over their datagrams, for as long as it is polled. The endpoint is the
    /// connection's remote address; its owner calls [`TcpTx::authenticated`] once a datagram proved to be valid.
    pub async fn accept_loop(&self, on_datagram: impl FnMut(Endpoint, Vec<u8>) + Send) {
        let on_datagram = Mutex::new(on_datagram);
        let mut tasks: FuturesUnordered<BoxFuture<'_, Done>> = FuturesUnordered::new();
        for at in 0..self.sockets.len() {
            tasks.push(Box::pin(self.accept(at, Duration::ZERO)));
        }
        while let Some(done) = tasks.next().await {
            match done {
                Done::Closed => {}
                Done::Accepted(at, Ok((stream, addr))) => {
                    tasks.push(Box::pin(self.accept(at, Duration::ZERO)));
                    let addr = canonical(addr);
                    if let Some(admitted) = self.admit(stream, addr) {
                        let on_datagram = &on_datagram;
                        let serving = self.serve(admitted, move |datagram| {
                            let mut deliver = on_datagram.lock().unwrap_or_else(PoisonError::into_inner);
                            deliver(Endpoint { uplink: UplinkId::TCP, addr }, datagram);
                        });
                        tasks.push(Box::pin(serving));
                    }
                }
                Done::Accepted(at, Err(error)) => {
                    tell(Level::Warn, "failed accepts", format_args!("accepting a TCP connection: {error}"));
                    tasks.push(Box::pin(self.accept(at, ACCEPT_PAUSE)));
                }
            }
        }
    }

    async fn accept(&self, at: usize, pause: Duration) -> Done {
        if !pause.is_zero() {
            Timer::after(pause).await;
        }
        Done::Accepted(at, self.sockets[at].accept().await)
    }

    /// Registers a connection if the limits allow it. One that comes from the address of another replaces it: the
    /// client's end of the older is gone.
    fn admit(&self, stream: Async<TcpStream>, addr: SocketAddr) -> Option<Admitted> {
        let source = source_of(addr.ip());
        let mut outboxes = self.tx.outboxes();
        let strangers = outboxes.iter().filter(|(addr, outbox)| outbox.is_stranger() && source_of(addr.ip()) == source);
        if outboxes.len() >= self.limits.connections || strangers.count() >= self.limits.unauthenticated_per_source {
            tell(Level::Debug, "refused TCP connections", format_args!("no place for a TCP connection from {addr}"));
            return None;
        }
        set_options(stream.get_ref())
            .inspect_err(|error| {
                tell(Level::Debug, "broken TCP connections", format_args!("one from {addr} broke at once: {error}"));
            })
            .ok()?;
        let connection = Connection::new(stream, Inbox::expecting_magic());
        if let Some(older) = outboxes.insert(addr, Arc::clone(&connection.outbox)) {
            older.dismiss();
        }
        drop(outboxes);
        Some(Admitted { connection, addr, tx: self.tx() })
    }

    async fn serve(&self, mut admitted: Admitted, deliver: impl Fn(Vec<u8>)) -> Done {
        let outbox = Arc::clone(&admitted.connection.outbox);
        let mut patience = Timer::after(self.limits.unauthenticated_for);
        let mut patient = true;
        let error = loop {
            let impatient = async {
                if !patient {
                    return future::pending().await;
                }
                (&mut patience).await;
                None
            };
            match future::or(async { Some(admitted.connection.recv().await) }, impatient).await {
                Some(Ok(datagram)) => deliver(datagram),
                Some(Err(error)) => break error,
                None if outbox.is_stranger() => break TcpError::Unauthenticated,
                None => patient = false,
            }
            // One busy connection must not keep the others waiting.
            future::yield_now().await;
        };
        tell(Level::Debug, "ended TCP connections", format_args!("one from {} ended: {error}", admitted.addr));
        Done::Closed
    }
}

/// Whoever connects decides how often there is something to say.
fn tell(level: Level, kind: &'static str, text: std::fmt::Arguments<'_>) {
    logging::limited(Instant::now(), level, kind, text);
}

enum Done {
    Accepted(usize, io::Result<(Async<TcpStream>, SocketAddr)>),
    Closed,
}

/// An admitted connection. It leaves the table when it ends, however it ends.
struct Admitted {
    connection: Connection,
    addr: SocketAddr,
    tx: TcpTx,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.tx.forget(self.addr, &self.connection.outbox);
    }
}

/// Connects as part of the underlay, which is to be known before the first packet leaves.
async fn connect(addr: SocketAddr) -> io::Result<Async<TcpStream>> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    mark_underlay(&socket);
    socket.set_nonblocking(true)?;
    match socket.connect(&addr.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let stream = Async::new(TcpStream::from(socket))?;
    stream.writable().await?;
    stream.get_ref().take_error()?.map_or(Ok(stream), Err)
}

impl TcpConnect {
    /// Connects and introduces itself; what is sent to `addr` by `tx` goes over it from then on. The caller bounds the
    /// time.
    pub async fn open(addr: SocketAddr, tx: TcpTx) -> Result<Self, TcpError> {
        let failed = |source| TcpError::Connect { addr, source };
        let stream = connect(addr).await.map_err(failed)?;
        set_options(stream.get_ref()).map_err(failed)?;
        let connection = Connection::new(stream, Inbox::default());
        connection.outbox.queue().waiting.extend_from_slice(MAGIC);
        tx.outboxes().insert(canonical(addr), Arc::clone(&connection.outbox));
        Ok(Self { connection, addr: canonical(addr), tx })
    }

    /// The address of this machine that it goes from.
    pub fn local_ip(&self) -> Option<IpAddr> {
        Some(self.connection.stream.get_ref().local_addr().ok()?.ip().to_canonical())
    }

    /// As [`recv`](Self::recv), for who polls several.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<u8>, TcpError>> {
        self.connection.poll_recv(cx)
    }

    /// The server's address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A handle that sends on this connection, to [`addr`](Self::addr).
    pub fn tx(&self) -> TcpTx {
        self.tx.clone()
    }

    /// Queues a datagram; false if the queue is full. It leaves while [`recv`](Self::recv) is polled.
    pub fn send(&self, datagram: &[u8]) -> bool {
        self.connection.outbox.push(datagram)
    }

    /// Waits for the next datagram and meanwhile writes what was queued. Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Result<Vec<u8>, TcpError> {
        self.connection.recv().await
    }
}

impl Drop for TcpConnect {
    fn drop(&mut self) {
        self.tx.forget(self.addr, &self.connection.outbox);
    }
}

impl TcpTx {
    /// Queues a datagram for a connection; false if there is none, or its queue is full.
    pub fn send(&self, addr: SocketAddr, datagram: &[u8]) -> bool {
        let outbox = self.outboxes().get(&canonical(addr)).cloned();
        outbox.is_some_and(|outbox| outbox.push(datagram))
    }

    /// A datagram from there was valid: the connection may stay.
    pub fn authenticated(&self, addr: SocketAddr) {
        if let Some(outbox) = self.outboxes().get(&canonical(addr)) {
            outbox.authenticated.store(true, Relaxed);
        }
    }

    /// Closes a connection, with what is queued on it.
    pub fn close(&self, addr: SocketAddr) {
        if let Some(outbox) = self.outboxes().get(&canonical(addr)) {
            outbox.dismiss();
        }
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.outboxes().len()
    }

    fn outboxes(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Arc<Outbox>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, addr: SocketAddr, outbox: &Arc<Outbox>) {
        let mut outboxes = self.outboxes();
        if outboxes.get(&addr).is_some_and(|current| Arc::ptr_eq(current, outbox)) {
            outboxes.remove(&addr);
        }
    }
}

/// Both directions of one connection.
#[derive(Debug)]
struct Connection {
    stream: Async<TcpStream>,
    inbox: Inbox,
    outbox: Arc<Outbox>,
    /// What is being written, and how much of it has been.
    writing: Vec<u8>,
    written: usize,
    gauge: Gauge,
}

impl Connection {
    fn new(stream: Async<TcpStream>, inbox: Inbox) -> Self {
        let gauge = Gauge::new(Instant::now());
        Self { stream, inbox, outbox: Arc::default(), writing: Vec::new(), written: 0, gauge }
    }

    async fn recv(&mut self) -> Result<Vec<u8>, TcpError> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<u8>, TcpError>> {
        self.outbox.writer.register(cx.waker());
        if self.outbox.dismissed.load(Relaxed) {
            return Poll::Ready(Err(TcpError::Dismissed));
        }
        if let Poll::Ready(Err(error)) = self.poll_write(cx) {
            return Poll::Ready(Err(error.into()));
        }
        loop {
            if let Some(datagram) = self.inbox.next()? {
                return Poll::Ready(Ok(datagram));
            }
            match self.inbox.read_from(self.stream.get_ref()) {
                Ok(0) => return Poll::Ready(Err(TcpError::Closed)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(self.stream.poll_readable(cx))?,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Writes until the queue is empty or the socket is full.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.written < self.writing.len() {
                let rest = &self.writing[self.written..];
                let Poll::Ready(wrote) = Pin::new(&mut self.stream).poll_write(cx, rest) else {
                    self.gauge.full = true;
                    return Poll::Pending;
                };
                match wrote? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => {
                        self.written += count;
                        self.outbox.wrote(count);
                        if let Some(limit) = self.gauge.wrote(count, self.outbox.limit(), Instant::now()) {
                            self.outbox.limit.store(limit, Relaxed);
                        }
                    }
                }
            }
            self.outbox.swap(&mut self.writing);
            self.written = 0;
            if self.writing.is_empty() {
                // What an idle connection does not carry says nothing of what it could.
                self.gauge = Gauge::new(Instant::now());
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// What a connection carries while there is more to send than it takes, and so how much may wait for it.
#[derive(Debug)]
struct Gauge {
    since: Instant,
    bytes: usize,
    /// The socket did not take everything at once.
    full: bool,
}

impl Gauge {
    fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, full: false }
    }

    /// Counts what was written. Once in a while gives what may wait from here on, out of what might until now: 50 ms of
    /// what is carried, and more as long as nothing has to wait.
    fn wrote(&mut self, count: usize, limit: usize, now: Instant) -> Option<usize> {
        self.bytes += count;
        let passed = now.saturating_duration_since(self.since);
        if passed < GAUGED_FOR {
            return None;
        }
        let carried = (self.bytes as f64 * QUEUE_TIME.as_secs_f64() / passed.as_secs_f64()) as usize;
        let next = if self.full { (limit + carried) / 2 } else { limit * 2 };
        *self = Self::new(now);
        Some(next.clamp(QUEUE_MIN, QUEUE_LEN))
    }
}

/// The sending queue of a connection, shared with the handles.
#[derive(Debug)]
struct Outbox {
    queue: Mutex<Queue>,
    /// Bytes that may wait.
    limit: AtomicUsize,
    writer: AtomicWaker,
    authenticated: AtomicBool,
    dismissed: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<u8>,
    /// Bytes the connection has taken and not written yet.
    taken: usize,
}

impl Default for Outbox {
    fn default() -> Self {
        let [authenticated, dismissed] = [AtomicBool::new(false), AtomicBool::new(false)];
        let (queue, writer) = (Mutex::default(), AtomicWaker::new());
        Self { queue, limit: AtomicUsize::new(QUEUE_LEN), writer, authenticated, dismissed }
    }
}

impl Outbox {
    fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    fn push(&self, datagram: &[u8]) -> bool {
        if datagram.is_empty() || datagram.len() > MAX_DATAGRAM {
            return false;
        }
        let mut queue = self.queue();
        let before = queue.taken + queue.waiting.len();
        // Into an empty queue even the longest fits.
        if before > 0 && before + LENGTH_LEN + datagram.len() > self.limit() {
            return false;
        }
        queue.waiting.extend_from_slice(&(datagram.len() as u16).to_le_bytes());
        queue.waiting.extend_from_slice(datagram);
        drop(queue);
        self.writer.wake();
        true
    }

    fn wrote(&self, count: usize) {
        let mut queue = self.queue();
        queue.taken = queue.taken.saturating_sub(count);
    }

    /// Takes back what was written and gives what waits.
    fn swap(&self, writing: &mut Vec<u8>) {
        let mut queue = self.queue();
        writing.clear();
        if writing.capacity() > KEPT_LEN {
            *writing = Vec::new();
        }
        std::mem::swap(writing, &mut queue.waiting);
        queue.taken = writing.len();
    }

    fn dismiss(&self) {
        self.dismissed.store(true, Relaxed);
        self.writer.wake();
    }

    fn is_stranger(&self) -> bool {
        !self.authenticated.load(Relaxed)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts the incoming bytes into datagrams. Holds one datagram and its length at the most, and allocates no more
/// than twice what has arrived.
#[derive(Debug, Default)]
struct Inbox {
    bytes: Vec<u8>,
    /// Where the bytes not yet handed over begin and end.
    begin: usize,
    end: usize,
    /// The last read filled the buffer: there may be more where that came from.
    filled: bool,
    magic_due: bool,
}

impl Inbox {
    fn expecting_magic() -> Self {
        Self { magic_due: true, ..Self::default() }
    }

    /// The next whole datagram.
    fn next(&mut self) -> Result<Option<Vec<u8>>, TcpError> {
        let bytes = &self.bytes[self.begin..self.end];
        if self.magic_due {
            let count = bytes.len().min(MAGIC.len());
            if bytes[..count] != MAGIC[..count] {
                return Err(TcpError::BadMagic);
            }
            if count < MAGIC.len() {
                return Ok(None);
            }
            self.magic_due = false;
            self.begin += MAGIC.len();
            return self.next();
        }
        let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
        let length = usize::from(u16::from_le_bytes(*length));
        if length == 0 || length > MAX_DATAGRAM {
            return Err(TcpError::BadLength(length));
        }
        let Some(datagram) = rest.get(..length) else { return Ok(None) };
        let datagram = datagram.to_vec();
        self.begin += LENGTH_LEN + length;
        Ok(Some(datagram))
    }

    /// Reads once, after [`next`](Self::next) found nothing whole.
    fn read_from(&mut self, mut stream: &TcpStream) -> io::Result<usize> {
        self.bytes.copy_within(self.begin..self.end, 0);
        self.end -= self.begin;
        self.begin = 0;
        if self.filled || self.end == self.bytes.len() {
            let room = (self.bytes.len() * 2).clamp(FIRST_READ, LENGTH_LEN + MAX_DATAGRAM);
            self.bytes.reserve_exact(room - self.bytes.len());
            self.bytes.resize(room, 0);
            self.filled = false;
        }
        let count = stream.read(&mut self.bytes[self.end..])?;
        self.end += count;
        self.filled = self.end == self.bytes.len();
        Ok(count)
    }
}

fn listen(addr: SocketAddr) -> io::Result<Async<TcpListener>> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Async::new(socket.into())
}

fn set_options(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(DEAD_AFTER).with_interval(DEAD_AFTER / 3))
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Whom a limit per source counts together: an IPv6 host has a whole /64 to come from.
fn source_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

const MAGIC: &[u8; 4] = b"EPS1";

const LENGTH_LEN: usize = 2;

/// What UDP over IPv4 could carry; the datagrams are the same.
const MAX_DATAGRAM: usize = 65_507;

/// The sending queue of one connection holds what it carries in this time: what does not fit is dropped, as a full router
/// does.
const QUEUE_TIME: Duration = Duration::from_millis(50);

/// It never holds more, nor less: ten full frames.
const QUEUE_LEN: usize = 256 * 1024;
const QUEUE_MIN: usize = 16 * 1024;

/// How long a connection must be busy to tell what it carries.
const GAUGED_FOR: Duration = Duration::from_millis(100);

/// Bytes that the kernel keeps unsent: the queue is to be ours, where it is measured and bounded.
const UNSENT_MAX: u32 = 32 * 1024;

/// A sending buffer larger than this is given back when it has been written.
const KEPT_LEN: usize = 16 * 1024;

/// The reading buffer begins with room for two full frames and doubles as long as it is filled.
const FIRST_READ: usize = 4 * 1024;

/// A peer that acknowledges nothing for so long is gone. Longer than any path change we survive.
const DEAD_AFTER: Duration = Duration::from_secs(30);

const BACKLOG: i32 = 128;

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Ipv4Addr;
    use std::thread::JoinHandle;
    use std::time::Instant;

    use super::*;

    #[test]
    fn datagrams_of_every_length_are_echoed_both_ways() {
        let server = Server::start(Limits::default());
        smol::block_on(async {
            let mut client = TcpConnect::open(server.addr, TcpTx::default()).await.unwrap();
            for length in [1, 2, 255, 256, 1500, 4093, 4094, 4095, 65_506, MAX_DATAGRAM] {
                let datagram: Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
                assert!(client.send(&datagram));
                assert_eq!(soon(client.recv()).await.unwrap(), datagram);
            }
            let tx = client.tx();
            for number in 0..1000_u32 {
                assert!(tx.send(server.addr, &number.to_le_bytes()));
            }
            for number in 0..1000_u32 {
                assert_eq!(soon(client.recv()).await.unwrap(), number.to_le_bytes());
            }
        });
    }

    #[test]
    fn bytes_that_trickle_in_one_by_one_make_the_same_datagrams() {
        let server = Server::start(Limits::default());
        let mut stream = server.connect();
        for byte in b"EPS1\x03\x00abc\x01\x00d" {
            stream.write_all(&[*byte]).unwrap();
        }
        assert_eq!(read_exactly(&mut stream, 8), b"\x03\x00abc\x01\x00d");
    }

    #[test]
    fn a_connection_with_another_magic_is_closed_at_its_first_wrong_byte() {
        let server = Server::start(Limits::default());
        for opening in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"EPS2", b"X"] {
            let mut stream = server.connect();
            stream.write_all(opening).unwrap();
            assert_closed(&mut stream);
        }
        assert_eq!(server.heard(), 0);
    }

    #[test]
    fn a_length_of_zero_or_above_any_datagram_closes_the_connection() {
        let server = Server::start(Limits::default());
        for opening in [&b"EPS1\x00\x00"[..], b"EPS1\x01\x00a\x00\x00", b"EPS1\xff\xff"] {
            let mut stream = server.connect();
            stream.write_all(opening).unwrap();
            assert_closed(&mut stream);
        }
    }

    #[test]
    fn a_connection_that_proves_nothing_is_closed_and_an_authenticated_one_stays() {
        let limits = Limits { unauthenticated_for: Duration::from_millis(100), ..Limits::default() };
        let server = Server::start(limits);
        let mut friend = server.connect();
        friend.write_all(b"EPS1\x04\x00auth").unwrap();
        read_exactly(&mut friend, 6);

        let mut silent = server.connect();
        let mut talker = server.connect();
        talker.write_all(b"EPS1\x01\x00a").unwrap();
        assert_closed(&mut silent);
        read_exactly(&mut talker, 3);
        assert_closed(&mut talker);

        friend.write_all(b"\x02\x00hi").unwrap();
        assert_eq!(read_exactly(&mut friend, 4), b"\x02\x00hi");
        until("the strangers to be forgotten", || server.tx.connections() == 1);
    }

    #[test]
    fn one_source_has_few_places_until_it_is_authenticated() {
        let server = Server::start(Limits { unauthenticated_per_source: 2, ..Limits::default() });
        let (_first, mut second) = (server.connect(), server.connect());
        until("two connections", || server.tx.connections() == 2);
        assert_closed(&mut server.connect());
        second.write_all(b"EPS1\x04\x00auth").unwrap();
        read_exactly(&mut second, 6);
        let mut fourth = server.connect();
        fourth.write_all(b"EPS1\x01\x00a").unwrap();
        assert_eq!(read_exactly(&mut fourth, 3), b"\x01\x00a");
    }

    #[test]
    fn connections_above_the_limit_are_refused_until_others_end() {
        let server = Server::start(Limits { connections: 2, ..Limits::default() });
        let held = [server.connect(), server.connect()];
        until("two connections", || server.tx.connections() == 2);
        assert_closed(&mut server.connect());
        drop(held);
        until("both to end", || server.tx.connections() == 0);
        let mut stream = server.connect();
        stream.write_all(b"EPS1\x01\x00a").unwrap();
        read_exactly(&mut stream, 3);
    }

    #[test]
    fn a_reader_that_does_not_read_fills_its_queue_and_no_more() {
        let server = Server::start(Limits::default());
        let mut stream = server.connect();
        stream.write_all(b"EPS1\x04\x00auth").unwrap();
        read_exactly(&mut stream, 6);
        let addr = stream.local_addr().unwrap();
        let mut sent = 0_u32;
        let end = Instant::now() + SOON;
        let mut refused_since = None;
        // The kernel's buffers take some megabytes first; the queue is full when nothing was taken for a while.
        while refused_since.is_none_or(|since: Instant| since.elapsed() < Duration::from_millis(200)) {
            assert!(Instant::now() < end, "the queue never fills");
            let mut datagram = [0; 1400];
            datagram[..4].copy_from_slice(&sent.to_le_bytes());
            if server.tx.send(addr, &datagram) {
                sent += 1;
                refused_since = None;
            } else {
                refused_since.get_or_insert_with(Instant::now);
                std::thread::yield_now();
            }
        }
        for number in 0..sent {
            let frame = read_exactly(&mut stream, 1402);
            assert_eq!((&frame[..2], &frame[2..6]), (&1400_u16.to_le_bytes()[..], &number.to_le_bytes()[..]));
        }
        assert!(server.tx.send(addr, b"there is room again"));
    }

    #[test]
    fn what_may_wait_follows_what_is_carried_and_recovers() {
        let start = Instant::now();
        let (mut gauge, mut limit, mut now) = (Gauge::new(start), QUEUE_LEN, start);
        // 8 Mbit/s for two seconds: 50 KB in 50 ms.
        for _ in 0..200 {
            now += Duration::from_millis(10);
            gauge.full = true;
            limit = gauge.wrote(10_000, limit, now).unwrap_or(limit);
        }
        assert!((48_000..54_000).contains(&limit), "{limit}");
        // Next to nothing.
        for _ in 0..100 {
            now += Duration::from_millis(500);
            gauge.full = true;
            limit = gauge.wrote(100, limit, now).unwrap_or(limit);
        }
        assert_eq!(limit, QUEUE_MIN);
        // Nothing has to wait any more.
        for _ in 0..100 {
            now += Duration::from_millis(10);
            limit = gauge.wrote(1_000_000, limit, now).unwrap_or(limit);
        }
        assert_eq!(limit, QUEUE_LEN);
        let outbox = Outbox::default();
        outbox.limit.store(QUEUE_MIN, Relaxed);
        assert!(outbox.push(&vec![0; MAX_DATAGRAM]), "alone, it fits");
        assert!(!outbox.push(b"no more"));
    }

    #[test]
    fn a_closed_connection_takes_nothing_more() {
        let server = Server::start(Limits::default());
        smol::block_on(async {
            let mut client = TcpConnect::open(server.addr, TcpTx::default()).await.unwrap();
            client.send(b"a");
            soon(client.recv()).await.unwrap();
            let mut addr = None;
            until("the connection", || {
                addr = server.tx.outboxes().keys().next().copied();
                addr.is_some()
            });
            server.tx.close(addr.unwrap());
            assert!(matches!(soon(client.recv()).await, Err(TcpError::Closed)));
            until("the server to forget it", || !server.tx.send(addr.unwrap(), b"b"));
            let tx = client.tx();
            drop(client);
            assert!(!tx.send(server.addr, b"b"));
        });
    }

    #[test]
    fn datagrams_no_connection_could_carry_are_refused() {
        let outbox = Outbox::default();
        assert!(!outbox.push(b""));
        assert!(!outbox.push(&vec![0; MAX_DATAGRAM + 1]));
        let taken = (0..).take_while(|_| outbox.push(&[0; 1000])).count();
        assert_eq!(taken, QUEUE_LEN / 1002);
    }

    #[test]
    fn a_stranger_who_announces_much_and_sends_little_costs_little() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut stranger = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut inbox = Inbox::expecting_magic();
        stranger.write_all(b"EPS1\xe3\xff some bytes").unwrap();
        inbox.read_from(&stream).unwrap();
        assert!(inbox.next().unwrap().is_none());
        assert!(inbox.bytes.capacity() <= FIRST_READ);
        stranger.write_all(&vec![1; MAX_DATAGRAM - 11]).unwrap();
        while inbox.next().unwrap().is_none() {
            inbox.read_from(&stream).unwrap();
            assert!(inbox.bytes.capacity() <= LENGTH_LEN + MAX_DATAGRAM);
        }
    }

    #[test]
    fn sources_are_hosts_and_ipv6_hosts_are_networks() {
        let source = |text: &str| source_of(text.parse().unwrap());
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:0:0:2"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
    }

    const SOON: Duration = Duration::from_secs(8);

    /// An echo on its own thread; the datagram "auth" authenticates.
    struct Server {
        addr: SocketAddr,
        tx: TcpTx,
        heard: Arc<Mutex<usize>>,
        end: Option<smol::channel::Sender<()>>,
        thread: Option<JoinHandle<()>>,
    }

    impl Server {
        fn start(limits: Limits) -> Self {
            let listen = TcpListen::bind(&[Ipv4Addr::LOCALHOST.into()], 0).unwrap().with_limits(limits);
            let addr = listen.local_addrs()[0];
            let (tx, heard) = (listen.tx(), Arc::new(Mutex::new(0)));
            let (end, ended) = smol::channel::bounded::<()>(1);
            let (echo, count) = (tx.clone(), Arc::clone(&heard));
            let thread = std::thread::spawn(move || {
                let serving = listen.accept_loop(move |endpoint, datagram| {
                    assert_eq!(endpoint.uplink, UplinkId::TCP);
                    *count.lock().unwrap() += 1;
                    if datagram == b"auth" {
                        echo.authenticated(endpoint.addr);
                    }
                    assert!(echo.send(endpoint.addr, &datagram));
                });
                smol::block_on(future::or(serving, async {
                    let _ = ended.recv().await;
                }));
            });
            Self { addr, tx, heard, end: Some(end), thread: Some(thread) }
        }

        fn connect(&self) -> TcpStream {
            let stream = TcpStream::connect(self.addr).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream
        }

        fn heard(&self) -> usize {
            *self.heard.lock().unwrap()
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.end.take();
            if let Some(thread) = self.thread.take() {
                let ended = thread.join();
                assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
            }
        }
    }

    async fn soon<T>(work: impl Future<Output = T>) -> T {
        future::or(work, async {
            Timer::after(SOON).await;
            panic!("waited in vain")
        })
        .await
    }

    fn read_exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// A connection closed with unread bytes in it is reset; both are an end.
    fn assert_closed(stream: &mut TcpStream) {
        if let Err(error) = stream.read_to_end(&mut Vec::new()) {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    fn until(what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + SOON;
        while !condition() {
            assert!(Instant::now() < end, "waited in vain for {what}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
