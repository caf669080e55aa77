//! The stage of the demo, and of tests that run the real program: a small internet made of namespaces, and nodes in it.
//!
//! ```text
//!     internet 198.51.100.0/24 ─┬─ server  198.51.100.1
//!                               ├─ nat-a   198.51.100.11 ─ LAN A 192.168.1.0/24 ─┬─ ada .2
//!                               │                                                └─ bob .3
//!                               └─ nat-b   198.51.100.12 ─ LAN B 192.168.2.0/24 ─── cleo .2
//! ```
//!
//! Everything goes when the [`Scene`] is dropped: the programs are asked to stop and then made to, the namespaces end,
//! the directory is removed. Waiting is always bounded, and [`interrupt`] ends it early.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use socket2::SockRef;

use super::super::reply::{ClientStatus, Peer, ServerStatus, Status};
use crate::config::Role;
use crate::io::control_socket::{ControlError, request};
use crate::io::netns::{Lan, Netns, lan, ping_once};
use crate::io::nft::{NftError, masquerade, masquerade_random_ports};
use crate::io::signals;
use crate::scaled::Seconds;

/// The internet of [`Underlay`] with a server and three clients, none of them started.
#[derive(Debug)]
pub struct Scene {
    pub server: Node,
    pub ada: Node,
    pub bob: Node,
    pub cleo: Node,
    pub underlay: Underlay,
    pub directory: Directory,
}

/// A public network, two NATs on it, and a LAN behind each.
#[derive(Debug)]
pub struct Underlay {
    /// A switch for 198.51.100.0/24.
    pub internet: Lan,
    /// A switch for 192.168.1.0/24, whose gateway is .1.
    pub lan_a: Lan,
    /// A switch for 192.168.2.0/24, whose gateway is .1.
    pub lan_b: Lan,
    pub nat_a: Netns,
    pub nat_b: Netns,
}

/// A machine that runs the program in one role, or will.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub role: Role,
    pub ns: Arc<Netns>,
    /// Its state, control socket and log.
    pub dir: PathBuf,
    program: PathBuf,
    child: Mutex<Option<Child>>,
}

/// A directory for us alone, removed with all that is in it when this is dropped.
#[derive(Debug)]
pub struct Directory(PathBuf);

/// How a client reaches a peer, by its own account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reached {
    /// At this address.
    Direct(String),
    Relay,
    /// Neither, in the word of the status.
    Not(String),
}

/// An answered ping through the TAP.
#[derive(Debug, Clone)]
pub struct Ping {
    pub round_trip: Duration,
    /// Requests before it that nobody answered.
    pub lost: u32,
    /// The path right after the answer.
    pub path: Reached,
}

/// A program that was asked to stop.
#[derive(Debug, Clone)]
pub struct Stopped {
    pub name: String,
    pub status: ExitStatus,
    pub took: Duration,
}

/// Bytes that arrived over TCP.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    pub bytes: u64,
    pub took: Duration,
}

/// [`interrupt`] was called.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes all waiting in this process end with [`Interrupted`]. There is no way back.
pub fn interrupt() {
    INTERRUPTED.store(true, Relaxed);
}

/// Fails if [`interrupt`] was called.
pub fn check_interrupt() -> Result<(), Interrupted> {
    if INTERRUPTED.load(Relaxed) { Err(Interrupted) } else { Ok(()) }
}

/// Tries `condition` every 20 ms until it gives a value or fails, for `deadline` at the most. `what` completes the
/// error "waited 5.0 s in vain for …".
pub fn wait_until<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        check_interrupt()?;
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if start.elapsed() >= deadline {
            bail!("waited {} in vain for {what}", Seconds(deadline.as_secs_f64()));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

impl Scene {
    /// Builds the networks and the nodes, which will run `program`.
    pub fn new(program: impl Into<PathBuf>) -> Result<Self> {
        Self::in_directory(Directory::new()?, program)
    }

    /// As [`Scene::new`], with the nodes' files in this directory.
    pub fn in_directory(directory: Directory, program: impl Into<PathBuf>) -> Result<Self> {
        Self::on(Underlay::new()?, directory, program.into())
    }

    /// As [`Scene::new`], with NATs that use a new random port for each destination.
    pub fn behind_hard_nats(program: impl Into<PathBuf>) -> Result<Self> {
        Self::on(Underlay::with_nats(masquerade_random_ports)?, Directory::new()?, program.into())
    }

    fn on(mut underlay: Underlay, directory: Directory, program: PathBuf) -> Result<Self> {
        let node = |name: &str, role, ns: Netns| Node::new(&program, name, role, Arc::new(ns), directory.path());
        Ok(Self {
            server: node("server", Role::Server, underlay.public_host("198.51.100.1/24")?)?,
            ada: node("ada", Role::Client, underlay.host_a("192.168.1.2/24")?)?,
            bob: node("bob", Role::Client, underlay.host_a("192.168.1.3/24")?)?,
            cleo: node("cleo", Role::Client, underlay.host_b("192.168.2.2/24")?)?,
            underlay,
            directory,
        })
    }

    pub fn clients(&self) -> [&Node; 3] {
        [&self.ada, &self.bob, &self.cleo]
    }

    pub fn nodes(&self) -> [&Node; 4] {
        [&self.ada, &self.bob, &self.cleo, &self.server]
    }

    /// Starts the server, and waits until it gives a reusable invitation: the join line.
    pub fn start_server(&self, more: &[&str]) -> Result<String> {
        self.server.start(&[&["--advertise", "198.51.100.1"], more].concat())?;
        let question = json!({"command": "invite", "reusable": true, "expires": null});
        let reply = wait_until(START, "the server to answer", || self.server.poll(&question))?;
        Ok(reply["join"].as_str().context("the server's invitation holds no join line")?.to_owned())
    }

    /// Stops what runs, the clients first. Fails only where a process cannot even be killed.
    pub fn stop(&self) -> Result<Vec<Stopped>> {
        let mut stopped = Vec::new();
        for group in [self.clients().as_slice(), &[&self.server]] {
            for node in group {
                node.terminate()?;
            }
            for node in group {
                stopped.extend(node.stop()?);
            }
        }
        Ok(stopped)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            log::warn!("{error:#}");
        }
    }
}

impl Underlay {
    /// Builds the networks, without hosts in them. The NATs keep ports and let nothing unsolicited in.
    pub fn new() -> Result<Self> {
        Self::with_nats(masquerade)
    }

    /// The same with NATs of a kind, made in the router's namespace for its outside interface.
    fn with_nats(nat_towards: fn(&str) -> Result<(), NftError>) -> Result<Self> {
        let [nat_a, nat_b] = [Netns::new()?, Netns::new()?];
        let internet = lan(&[(&nat_a, "wan", "198.51.100.11/24"), (&nat_b, "wan", "198.51.100.12/24")])?;
        let lan_a = lan(&[(&nat_a, "lan", "192.168.1.1/24")])?;
        let lan_b = lan(&[(&nat_b, "lan", "192.168.2.1/24")])?;
        for nat in [&nat_a, &nat_b] {
            nat.sysctl("ipv4/ip_forward", "1").context("cannot switch on forwarding in a namespace")?;
            nat.run(|| nat_towards("wan"))?;
        }
        Ok(Self { internet, lan_a, lan_b, nat_a, nat_b })
    }

    /// A new machine on the internet.
    pub fn public_host(&mut self, cidr: &str) -> Result<Netns> {
        let ns = Netns::new()?;
        self.internet.plug(&ns, "eth0", cidr)?;
        Ok(ns)
    }

    /// A new machine in LAN A.
    pub fn host_a(&mut self, cidr: &str) -> Result<Netns> {
        host(&mut self.lan_a, cidr, Ipv4Addr::new(192, 168, 1, 1))
    }

    /// A new machine in LAN B.
    pub fn host_b(&mut self, cidr: &str) -> Result<Netns> {
        host(&mut self.lan_b, cidr, Ipv4Addr::new(192, 168, 2, 1))
    }
}

fn host(lan: &mut Lan, cidr: &str, gateway: Ipv4Addr) -> Result<Netns> {
    let ns = Netns::new()?;
    lan.plug(&ns, "eth0", cidr)?;
    ns.add_default_route(gateway)?;
    Ok(ns)
}

impl Node {
    /// A node whose files are in a new directory `name` in `parent`.
    pub fn new(program: &Path, name: &str, role: Role, ns: Arc<Netns>, parent: &Path) -> Result<Self> {
        let dir = parent.join(name);
        DirBuilder::new().mode(0o700).create(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (name, program) = (name.to_owned(), program.to_owned());
        Ok(Self { name, role, ns, dir, program, child: Mutex::new(None) })
    }

    /// Where its keys and members are.
    pub fn state_path(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn control_path(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Starts the program in its role with its own state, control socket and, for a client, name and device; `more`
    /// comes after these.
    pub fn start(&self, more: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.program);
        match self.role {
            Role::Server => command.arg("server"),
            Role::Client => command.args(["client", "--device", DEVICE, "--name", &self.name]),
        };
        command.arg("--state").arg(self.state_path()).arg("--control").arg(self.control_path());
        if !more.iter().any(|word| word.starts_with("--conf")) {
            // What is installed on this machine is not for a node of a scene.
            command.args(["--config", "none"]);
        }
        command.args(["--log-level", "info"]).args(more);
        self.start_command(command)
    }

    /// Starts any program in the node's place. Its output goes to the end of the log.
    pub fn start_command(&self, mut command: Command) -> Result<()> {
        let mut running = self.child();
        if let Some(child) = running.as_mut()
            && child.try_wait()?.is_none()
        {
            bail!("{} runs already", self.name);
        }
        let log = self.open_log().with_context(|| format!("cannot write {}", self.log_path().display()))?;
        // By another name it plays another part.
        if Path::new(command.get_program()).file_name() == self.program.file_name() {
            command.arg0("eps-actor");
        }
        command.current_dir(&self.dir).env_remove("EPS_JOIN");
        command.stdin(File::open("/dev/null")?).stdout(log.try_clone()?).stderr(log);
        // Ctrl-C at the terminal is for whoever started us, and that one stops the nodes in order.
        command.process_group(0);
        let child = self.ns.spawn(&mut command).with_context(|| format!("cannot start {}", self.name))?;
        *running = Some(child);
        Ok(())
    }

    /// Asks over the control socket.
    pub fn control(&self, question: &Value) -> Result<Value> {
        let answer = request(self.control_path(), question, ANSWER);
        answer.map_err(|error| match self.ended() {
            Some(status) => self.ended_error(status),
            None => anyhow::Error::new(error).context(self.name.clone()),
        })
    }

    /// As [`Node::control`], but `None` while nobody answers and the program still runs.
    pub fn poll(&self, question: &Value) -> Result<Option<Value>> {
        match request(self.control_path(), question, ANSWER) {
            Ok(answer) => Ok(Some(answer)),
            Err(ControlError::NotRunning { .. }) => match self.ended() {
                Some(status) => Err(self.ended_error(status)),
                None => Ok(None),
            },
            Err(error) => Err(anyhow::Error::new(error).context(self.name.clone())),
        }
    }

    /// The status of a client; an error if the node is none.
    pub fn client_status(&self) -> Result<ClientStatus> {
        let status = self.poll_client_status()?;
        status.with_context(|| format!("{} does not answer on its control socket", self.name))
    }

    /// As [`Node::client_status`], but `None` while nobody answers and the program still runs.
    pub fn poll_client_status(&self) -> Result<Option<ClientStatus>> {
        let Some(reply) = self.poll(&json!({"command": "status"}))? else { return Ok(None) };
        match Status::read(&reply)? {
            Status::Client(status) => Ok(Some(status)),
            Status::Server(_) | Status::Cloud(_) | Status::Tunnel(_) => bail!("{} is no client", self.name),
        }
    }

    /// The status of a server; an error if the node is none.
    pub fn server_status(&self) -> Result<ServerStatus> {
        match Status::read(&self.control(&json!({"command": "status"}))?)? {
            Status::Server(status) => Ok(status),
            Status::Client(_) | Status::Cloud(_) | Status::Tunnel(_) => bail!("{} is no server", self.name),
        }
    }

    /// Waits until the client has an IPv4 address in the network and a device that carries it.
    pub fn wait_for_address(&self, deadline: Duration) -> Result<IpAddr> {
        wait_until(deadline, &format!("{} to get an address", self.name), || self.address())
    }

    /// The client's IPv4 address in the network, once there is also a device that carries it.
    pub fn address(&self) -> Result<Option<IpAddr>> {
        let Some(status) = self.poll_client_status()? else { return Ok(None) };
        let (Some(address), Some(_)) = (status.node.address, status.node.device) else { return Ok(None) };
        let plain = address.split('/').next().unwrap_or_default();
        Ok(Some(plain.parse().with_context(|| format!("{} has the address {address:?}", self.name))?))
    }

    /// How the client reaches a peer by now.
    pub fn path_to(&self, peer: &str) -> Result<Reached> {
        let status = self.client_status()?;
        Ok(status.peer(peer).map_or_else(|| Reached::Not("unknown".to_owned()), Reached::from))
    }

    /// One echo request from inside; `None` if nobody answers.
    pub fn ping(&self, to: IpAddr, timeout: Duration) -> Option<Duration> {
        ping_once(&self.ns, None, to, timeout)
    }

    /// Pings the peer of this name and address once a second until it answers, and tells the path.
    pub fn ping_with_path(&self, peer: &str, to: IpAddr, deadline: Duration) -> Result<Ping> {
        let mut lost = 0;
        let what = format!("an answer from {peer} to {}", self.name);
        let round_trip = wait_until(deadline, &what, || {
            let answer = self.ping(to, Duration::from_secs(1).min(deadline));
            lost += u32::from(answer.is_none());
            Ok(answer)
        })?;
        Ok(Ping { round_trip, lost, path: self.path_to(peer)? })
    }

    /// Whether the client's device is there.
    pub fn has_device(&self) -> Result<bool> {
        let netlink = self.ns.netlink()?;
        Ok(smol::block_on(netlink.link_index(DEVICE)).is_ok())
    }

    /// How the program ended, if it did since it was started.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child().as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Sends SIGTERM, where the program runs, and does not wait.
    pub fn terminate(&self) -> Result<()> {
        match self.child().as_mut() {
            Some(child) => signals::terminate(child).with_context(|| format!("cannot stop {}", self.name)),
            None => Ok(()),
        }
    }

    /// Sends SIGINT, where the program runs, and does not wait.
    pub fn interrupt(&self) -> Result<()> {
        match self.child().as_mut() {
            Some(child) => signals::interrupt(child).with_context(|| format!("cannot stop {}", self.name)),
            None => Ok(()),
        }
    }

    /// Sends SIGHUP, where the program runs.
    pub fn hang_up(&self) -> Result<()> {
        match self.child().as_mut() {
            Some(child) => signals::hang_up(child).with_context(|| format!("cannot signal {}", self.name)),
            None => Ok(()),
        }
    }

    /// Sends SIGUSR1, where the program runs.
    pub fn ask_status(&self) -> Result<()> {
        match self.child().as_mut() {
            Some(child) => signals::ask_status(child).with_context(|| format!("cannot signal {}", self.name)),
            None => Ok(()),
        }
    }

    /// Sends SIGTERM and waits, 3 s at the most; then kills. `None` if the program was never started, or stopped
    /// before.
    pub fn stop(&self) -> Result<Option<Stopped>> {
        let Some(mut child) = self.child().take() else { return Ok(None) };
        let start = Instant::now();
        signals::terminate(&mut child).with_context(|| format!("cannot stop {}", self.name))?;
        // Not wait_until: an interrupt is why most stops happen.
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > STOP {
                child.kill()?;
                break child.wait()?;
            }
            thread::sleep(Duration::from_millis(5));
        };
        Ok(Some(Stopped { name: self.name.clone(), status, took: start.elapsed() }))
    }

    /// Kills the program without a warning: a crash, for its peers. It may be started again.
    pub fn kill(&self) -> Result<()> {
        if let Some(mut child) = self.child().take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// All that the program has written.
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines that the program has written.
    pub fn log_tail(&self, lines: usize) -> Vec<String> {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].iter().map(|&line| line.to_owned()).collect()
    }

    fn ended_error(&self, status: ExitStatus) -> anyhow::Error {
        anyhow::anyhow!("{} ended by itself: {status}", self.name)
    }

    fn open_log(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.log_path())
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            log::warn!("{error:#}");
        }
    }
}

/// Sends over TCP from one node to another, whose address in the network is `address`, for `time`.
pub fn transfer(from: &Node, to: &Node, address: IpAddr, time: Duration) -> Result<Transfer> {
    let what = || format!("TCP from {} to {}", from.name, to.name);
    let listener = to.ns.run(|| TcpListener::bind((address, 0))).with_context(what)?;
    // Accepting counts as reading.
    SockRef::from(&listener).set_read_timeout(Some(ANSWER))?;
    let peer: SocketAddr = listener.local_addr()?;
    let mut sender = from.ns.run(|| TcpStream::connect_timeout(&peer, ANSWER)).with_context(what)?;
    let (mut receiver, _) = listener.accept().with_context(what)?;
    sender.set_write_timeout(Some(ANSWER))?;
    receiver.set_read_timeout(Some(ANSWER))?;

    let start = Instant::now();
    let (sent, received) = thread::scope(|scope| {
        let reading = scope.spawn(move || count_until_end(&mut receiver));
        let sent = send_for(&mut sender, time);
        (sent, reading.join())
    });
    check_interrupt()?;
    sent.with_context(what)?;
    let bytes = match received {
        Ok(bytes) => bytes.with_context(what)?,
        Err(cause) => std::panic::resume_unwind(cause),
    };
    Ok(Transfer { bytes, took: start.elapsed() })
}

fn send_for(stream: &mut TcpStream, time: Duration) -> io::Result<()> {
    let chunk = vec![0x5a; 128 * 1024];
    let start = Instant::now();
    while start.elapsed() < time && check_interrupt().is_ok() {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)
}

fn count_until_end(stream: &mut TcpStream) -> io::Result<u64> {
    let mut chunk = vec![0; 128 * 1024];
    let mut bytes = 0;
    loop {
        match stream.read(&mut chunk)? {
            0 => return Ok(bytes),
            count => bytes += count as u64,
        }
    }
}

impl Transfer {
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.took.as_secs_f64()
    }
}

impl Directory {
    /// Makes it where temporary files go.
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("eps-actor-{}-{:08x}", std::process::id(), rand::random::<u32>()));
        DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

impl From<&Peer> for Reached {
    fn from(peer: &Peer) -> Self {
        match (peer.state.as_str(), &peer.path) {
            ("direct", Some(path)) => Self::Direct(path.clone()),
            ("relay", _) => Self::Relay,
            (state, _) => Self::Not(state.to_owned()),
        }
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(path) => write!(f, "direct by {path}"),
            Self::Relay => f.write_str("by relay"),
            Self::Not(state) => f.write_str(state),
        }
    }
}

/// The device of every client; each has its own namespace.
pub const DEVICE: &str = "eps0";

/// A server makes its keys and its store at the first start.
const START: Duration = Duration::from_secs(5);

/// For one answer of a program that is well, on a busy machine.
const ANSWER: Duration = Duration::from_secs(3);

/// For a clean exit, which is promised within one second.
const STOP: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::io::netns::can_make_networks;

    const SOON: Duration = Duration::from_secs(3);

    #[test]
    fn clients_behind_the_nats_reach_the_server_and_nobody_reaches_them() {
        if !can_make_networks() {
            return;
        }
        let scene = Scene::new("/bin/false").expect("a scene");
        for node in scene.clients() {
            assert!(node.ping(ip("198.51.100.1"), SOON).is_some(), "{}", node.name);
        }
        assert!(scene.ada.ping(ip("192.168.1.3"), SOON).is_some(), "one LAN");
        assert!(scene.ada.ping(ip("192.168.2.2"), Duration::from_millis(300)).is_none(), "two NATs between");
        assert!(!scene.ada.has_device().expect("asked"));
    }

    #[test]
    fn everything_goes_with_the_scene() {
        if !can_make_networks() {
            return;
        }
        let scene = Scene::new("/bin/false").expect("a scene");
        let directory = scene.directory.path().to_owned();
        assert_eq!(fs::metadata(&directory).expect("there").permissions().mode() & 0o777, 0o700);
        scene
            .ada
            .start_command(shell("echo hello; trap 'exit 0' TERM; while :; do sleep 0.02; done"))
            .expect("started");
        scene.bob.start_command(shell("exec sleep 60")).expect("started");
        wait_until(SOON, "a line", || Ok((scene.ada.log() == "hello\n").then_some(()))).expect("a line");
        assert!(scene.ada.start(&[]).expect_err("it runs").to_string().contains("ada runs already"));

        let stopped = scene.stop().expect("stopped");
        let codes: Vec<_> =
            stopped.iter().map(|one| (one.name.as_str(), one.status.code(), one.status.signal())).collect();
        assert_eq!(codes, [("ada", Some(0), None), ("bob", None, Some(libc::SIGTERM))]);

        scene.cleo.start_command(shell("exec sleep 60")).expect("started");
        let id = scene.cleo.child().as_ref().expect("a child").id();
        drop(scene);
        assert!(!directory.exists());
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn a_program_that_ends_by_itself_is_told_at_once() {
        if !can_make_networks() {
            return;
        }
        let scene = Scene::new("/bin/false").expect("a scene");
        let start = Instant::now();
        let error = scene.start_server(&[]).expect_err("it ends").to_string();
        assert_eq!(error, "server ended by itself: exit status: 1");
        assert!(start.elapsed() < SOON);
    }

    #[test]
    fn tcp_between_machines_has_a_rate() {
        if !can_make_networks() {
            return;
        }
        let scene = Scene::new("/bin/false").expect("a scene");
        let transfer = transfer(&scene.ada, &scene.bob, ip("192.168.1.3"), Duration::from_millis(100)).expect("sent");
        assert!(transfer.bits_per_second() > 1e6, "{transfer:?}");
    }

    #[test]
    fn waiting_ends() {
        let error = wait_until::<()>(Duration::from_millis(50), "the moon", || Ok(None)).expect_err("in vain");
        assert_eq!(error.to_string(), "waited 0.1 s in vain for the moon");
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }
}
