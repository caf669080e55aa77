//! Anonymous network namespaces, and small networks made of them, for the demo and the tests.
//!
//! A [`Netns`] has no name in `/run/netns`: an open file descriptor and one thread keep it alive, and when they go,
//! the kernel removes the namespace, its interfaces, and the processes started in it. Nothing is left behind, however
//! this process ends.
//!
//! A namespace is a property of a thread, and new threads inherit it. Code that starts threads which outlive the
//! call (smol's blocking pool, for one) does not belong into [`Netns::run`].

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Once;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};

use super::netlink::{Netlink, NetlinkError};

/// A network namespace of its own, with `lo` up and nothing else.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    /// `None` only while dropping.
    jobs: Option<mpsc::Sender<Job>>,
    worker: Option<JoinHandle<()>>,
}

type Job = Box<dyn FnOnce() + Send>;

/// Why a namespace or a network of them could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("not permitted to make a network namespace; run as root, or allow unprivileged user namespaces")]
    NotPermitted(#[source] io::Error),
    #[error("cannot make a network namespace: {0}")]
    Failed(#[from] io::Error),
    #[error("{text:?} is not an address with a prefix; write one like 10.0.0.1/24")]
    BadAddress { text: String },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl Netns {
    /// Makes a namespace.
    pub fn new() -> Result<Self, NetnsError> {
        start_shared_threads_here();
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, entered) = mpsc::sync_channel(1);
        let worker = thread::Builder::new().name("netns".into()).spawn(move || {
            let _ = ready.send(make_namespace());
            // Children die with the thread that forked them, so this one stays as long as the Netns does.
            for job in queue {
                job();
            }
        })?;
        let fd =
            entered.recv().expect("the worker sends before it ends").map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM) => NetnsError::NotPermitted(error),
                _ => NetnsError::Failed(error),
            })?;
        let netns = Self { fd, jobs: Some(jobs), worker: Some(worker) };
        let netlink = netns.netlink()?;
        smol::block_on(async { netlink.set_up(netlink.link_index("lo").await?).await })?;
        Ok(netns)
    }

    /// The namespace's file descriptor, for `setns` and for moving interfaces.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Runs `f` in the namespace, on a thread of its own, and waits for it. Sockets and devices that `f` opens stay in
    /// the namespace wherever they are used. A panic in `f` goes on in the caller.
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        let inside = || {
            set_namespace(self.fd()).expect("whoever made the namespace may enter it");
            f()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(result) => result,
            Err(cause) => panic::resume_unwind(cause),
        }
    }

    /// Starts a program in the namespace. It is killed when this `Netns` is dropped or this process ends.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // SAFETY: between fork and exec the closure makes one system call, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let mut lent = std::mem::replace(command, Command::new(""));
        let (reply, answer) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || {
            let child = lent.spawn();
            let _ = reply.send((lent, child));
        });
        let jobs = self.jobs.as_ref().expect("there until the drop");
        jobs.send(job).map_err(|_| io::Error::other("the namespace's thread has ended"))?;
        let (lent, child) = answer.recv().map_err(|_| io::Error::other("the namespace's thread has ended"))?;
        *command = lent;
        child
    }

    /// Writes a setting below `/proc/sys/net`, such as `("ipv4/ip_forward", "1")`, for this namespace.
    pub fn sysctl(&self, path: &str, value: &str) -> io::Result<()> {
        self.run(|| fs::write(Path::new("/proc/sys/net").join(path), value))
    }

    /// A netlink socket in the namespace; its futures run anywhere.
    pub fn netlink(&self) -> Result<Netlink, NetlinkError> {
        self.run(Netlink::open)
    }

    /// Lays a cable between two namespaces, each end given as (namespace, interface name, address/prefix), and brings
    /// it up. An empty address leaves an end without one.
    pub fn connect(a: (&Self, &str, &str), b: (&Self, &str, &str)) -> Result<(), NetnsError> {
        let (here, there) = (a.0.netlink()?, b.0.netlink()?);
        let addresses = (address(a.2)?, address(b.2)?);
        smol::block_on(async {
            here.create_veth_into(a.1, b.1, b.0.fd()).await?;
            start_interface(&here, a.1, addresses.0).await?;
            start_interface(&there, b.1, addresses.1).await?;
            wait_until_running(&here, a.1).await?;
            wait_until_running(&there, b.1).await
        })?;
        Ok(())
    }

    /// Routes everything of the gateway's family to it.
    pub fn add_default_route(&self, gateway: impl Into<IpAddr>) -> Result<(), NetnsError> {
        let netlink = self.netlink()?;
        Ok(smol::block_on(netlink.add_default_route(gateway))?)
    }

    /// Takes an interface of the namespace down, or brings it up: pulls the cable, or plugs it in.
    pub fn set_link(&self, ifname: &str, up: bool) -> Result<(), NetnsError> {
        let netlink = self.netlink()?;
        smol::block_on(async {
            let index = netlink.link_index(ifname).await?;
            if up { netlink.set_up(index).await } else { netlink.set_down(index).await }
        })?;
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(worker) = self.worker.take() {
            // It only ever panics in a job, and whoever sent that has seen it.
            let _ = worker.join();
        }
    }
}

/// A switch, in a namespace of its own; unplugs everything when dropped.
#[derive(Debug)]
pub struct Lan {
    switch: Netns,
    bridge: u32,
    ports: u32,
}

impl Lan {
    /// A switch without cables.
    pub fn new() -> Result<Self, NetnsError> {
        let switch = Netns::new()?;
        let netlink = switch.netlink()?;
        let bridge = smol::block_on(async {
            netlink.create_bridge("lan").await?;
            let bridge = netlink.link_index("lan").await?;
            netlink.set_up(bridge).await?;
            Ok::<_, NetlinkError>(bridge)
        })?;
        Ok(Self { switch, bridge, ports: 0 })
    }

    /// Gives `ns` an interface on this switch, with an address (or none, if `cidr` is empty), up.
    pub fn plug(&mut self, ns: &Netns, ifname: &str, cidr: &str) -> Result<(), NetnsError> {
        let (netlink, theirs, address) = (self.switch.netlink()?, ns.netlink()?, address(cidr)?);
        let port = format!("port{}", self.ports);
        smol::block_on(async {
            netlink.create_veth_into(&port, ifname, ns.fd()).await?;
            let index = netlink.link_index(&port).await?;
            netlink.set_master(index, self.bridge).await?;
            netlink.set_up(index).await?;
            start_interface(&theirs, ifname, address).await?;
            wait_until_running(&netlink, &port).await?;
            wait_until_running(&theirs, ifname).await
        })?;
        self.ports += 1;
        Ok(())
    }

    /// The switch's own namespace, for captures and rules.
    pub fn switch(&self) -> &Netns {
        &self.switch
    }
}

/// Connects namespaces by one switch, each given as (namespace, interface name, address/prefix). The switch lives as
/// long as the result.
pub fn lan(members: &[(&Netns, &str, &str)]) -> Result<Lan, NetnsError> {
    let mut lan = Lan::new()?;
    for (ns, ifname, cidr) in members {
        lan.plug(ns, ifname, cidr)?;
    }
    Ok(lan)
}

fn address(cidr: &str) -> Result<Option<IpNet>, NetnsError> {
    if cidr.is_empty() {
        return Ok(None);
    }
    cidr.parse().map(Some).map_err(|_| NetnsError::BadAddress { text: cidr.to_owned() })
}

async fn start_interface(netlink: &Netlink, name: &str, address: Option<IpNet>) -> Result<(), NetlinkError> {
    let index = netlink.link_index(name).await?;
    netlink.set_up(index).await?;
    match address {
        Some(net) => netlink.add_address(index, net.addr(), net.prefix_len()).await,
        None => Ok(()),
    }
}

/// The kernel sees a carrier a moment after it came, and loses what is sent until then.
async fn wait_until_running(netlink: &Netlink, name: &str) -> Result<(), NetlinkError> {
    let index = netlink.link_index(name).await?;
    // Two seconds at most; whoever uses the cable then will see for themselves.
    for _ in 0..1000 {
        if netlink.is_running(index).await? {
            break;
        }
        smol::Timer::after(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Sends one ICMP echo request from inside `ns` and returns the round-trip time, or `None` if no answer came within
/// `timeout`. Each request has a different identifier, so pings may run at once.
pub fn ping_once(ns: &Netns, from: Option<IpAddr>, to: IpAddr, timeout: Duration) -> Option<Duration> {
    ns.run(|| ping_here(from, to, timeout).ok().flatten())
}

/// [`ping_once`] in the calling thread's namespace; an error if the request could not even be sent.
pub fn ping_here(from: Option<IpAddr>, to: IpAddr, timeout: Duration) -> io::Result<Option<Duration>> {
    static SERIAL: AtomicU16 = AtomicU16::new(1);
    let serial = SERIAL.fetch_add(1, Relaxed);
    let (domain, protocol, request_type, reply_type) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    // A connected raw socket hears its peer only.
    socket.connect(&SocketAddr::new(to, 0).into())?;

    let identifier = (std::process::id() as u16).to_be_bytes();
    let mut request = [request_type, 0, 0, 0, identifier[0], identifier[1], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    request[6..8].copy_from_slice(&serial.to_be_bytes());
    request[8..].copy_from_slice(b"eps-ping");
    if to.is_ipv4() {
        // ICMPv6 checksums cover a pseudo-header, and the kernel fills them in.
        let sum = internet_checksum(&request);
        request[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let start = Instant::now();
    socket.send(&request)?;
    loop {
        let Some(left) = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else { return Ok(None) };
        socket.set_read_timeout(Some(left))?;
        let mut buffer = [0; 256];
        let count = match io::Read::read(&mut &socket, &mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            // ICMP errors about the request: the network may still change its mind until the time is up.
            Err(_) => continue,
        };
        let message = &buffer[..count];
        // An IPv4 raw socket delivers the IP header too.
        let header = if to.is_ipv4() { message.first().map_or(0, |byte| usize::from(byte & 15) * 4) } else { 0 };
        let Some(message) = message.get(header..) else { continue };
        if message.len() >= 8 && message[0] == reply_type && message[4..8] == request[4..8] {
            return Ok(Some(start.elapsed()));
        }
    }
}

/// RFC 1071, over an even number of bytes.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Makes the caller root in a user namespace of its own, so that an ordinary user can make network namespaces.
///
/// Must be called while the process has one thread: the kernel refuses otherwise (`EINVAL`). Files keep their owners;
/// of users and groups only the caller's own exist inside.
pub fn enter_user_namespace() -> io::Result<()> {
    // SAFETY: no pointers, and no effect on memory.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    unshare(libc::CLONE_NEWUSER)?;
    // An unprivileged gid_map is accepted only once setgroups is given up (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Whether this process may make namespaces and TAP devices. If not, says so on standard output: for tests that then
/// have nothing to do.
#[allow(clippy::print_stdout, reason = "a skipped test must say so where tests print")]
pub fn can_make_networks() -> bool {
    // SAFETY: no pointers.
    let is_root = unsafe { libc::geteuid() } == 0;
    let can = is_root && Path::new("/dev/net/tun").exists();
    if !can {
        println!("skipped: this needs root and /dev/net/tun");
    }
    can
}

/// smol's executor and reactor threads start at their first use and inherit the namespace of the thread that uses
/// them first, which must not be one of ours: they would keep it alive, and tasks would run in it.
fn start_shared_threads_here() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        smol::block_on(smol::spawn(async { smol::Timer::after(Duration::from_micros(1)).await }));
    });
}

/// Moves the calling thread to a new namespace and returns its descriptor.
fn make_namespace() -> io::Result<OwnedFd> {
    unshare(libc::CLONE_NEWNET)?;
    Ok(fs::File::open("/proc/thread-self/ns/net")?.into())
}

fn unshare(what: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    match unsafe { libc::unshare(what) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_namespace(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers, and the descriptor is open.
    match unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    const SOON: Duration = Duration::from_secs(3);

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn inode() -> u64 {
        use std::os::unix::fs::MetadataExt;
        fs::metadata("/proc/thread-self/ns/net").expect("a namespace").ino()
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside() {
        if !can_make_networks() {
            return;
        }
        let (outside, ns) = (inode(), Netns::new().expect("a namespace"));
        let inside = ns.run(inode);
        assert_ne!(inside, outside);
        assert_eq!(ns.run(inode), inside);
        assert_eq!(inode(), outside);
        assert_eq!(smol::block_on(smol::spawn(async { inode() })), outside, "smol's threads stay outside");
    }

    #[test]
    fn a_panic_inside_goes_on_outside() {
        if !can_make_networks() {
            return;
        }
        let ns = Netns::new().expect("a namespace");
        let cause = panic::catch_unwind(panic::AssertUnwindSafe(|| ns.run(|| panic::panic_any(7))));
        assert_eq!(cause.expect_err("a panic").downcast_ref(), Some(&7));
    }

    #[test]
    fn a_program_runs_inside_and_dies_with_the_namespace() {
        if !can_make_networks() {
            return;
        }
        let ns = Netns::new().expect("a namespace");
        let mut command = Command::new("sh");
        command.args(["-c", "readlink /proc/self/ns/net; exec sleep 60"]).stdout(Stdio::piped());
        let mut child = ns.spawn(&mut command).expect("a child");
        let mut line = String::new();
        let output = child.stdout.take().expect("its output");
        io::BufRead::read_line(&mut io::BufReader::new(output), &mut line).expect("a line");
        assert_eq!(line.trim(), format!("net:[{}]", ns.run(inode)));

        drop(ns);
        let status = child.wait().expect("a status");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }

    #[test]
    fn two_namespaces_ping_each_other_through_a_cable_until_it_is_pulled() {
        if !can_make_networks() {
            return;
        }
        let (a, b) = (Netns::new().expect("a namespace"), Netns::new().expect("a namespace"));
        Netns::connect((&a, "eth0", "10.0.0.1/24"), (&b, "eth0", "10.0.0.2/24")).expect("a cable");
        Netns::connect((&a, "eth1", "fd00::1/64"), (&b, "eth1", "fd00::2/64")).expect("a cable");
        let first = ping_once(&a, None, ip("10.0.0.2"), SOON).expect("an answer");
        assert!(first < Duration::from_millis(500), "the first datagram was lost: {first:?}");
        assert!(ping_once(&b, Some(ip("fd00::2")), ip("fd00::1"), SOON).is_some());
        assert!(ping_once(&a, None, ip("127.0.0.1"), SOON).is_some(), "lo is up");

        b.set_link("eth0", false).expect("down");
        assert_eq!(ping_once(&a, None, ip("10.0.0.2"), Duration::from_millis(200)), None);
        b.set_link("eth0", true).expect("up");
        assert!(ping_once(&a, None, ip("10.0.0.2"), SOON).is_some());
    }

    #[test]
    fn a_router_between_two_lans_forwards() {
        if !can_make_networks() {
            return;
        }
        let [a, b, router] = std::array::from_fn(|_| Netns::new().expect("a namespace"));
        let _left = lan(&[(&a, "eth0", "10.1.0.2/24"), (&router, "eth0", "10.1.0.1/24")]).expect("a LAN");
        let _right = lan(&[(&b, "eth0", "10.2.0.2/24"), (&router, "eth1", "10.2.0.1/24")]).expect("a LAN");
        a.add_default_route(std::net::Ipv4Addr::new(10, 1, 0, 1)).expect("a route");
        b.add_default_route(ip("10.2.0.1")).expect("a route");
        router.sysctl("ipv4/ip_forward", "1").expect("a setting");
        assert!(ping_once(&a, None, ip("10.2.0.2"), SOON).is_some());
    }

    #[test]
    fn a_bad_address_is_named_in_the_error() {
        if !can_make_networks() {
            return;
        }
        let ns = Netns::new().expect("a namespace");
        let error = Netns::connect((&ns, "a", "10.0.0.1"), (&ns, "b", "")).expect_err("no prefix");
        assert!(error.to_string().starts_with("\"10.0.0.1\" is not an address with a prefix"));
    }
}
