//! What the tests share: a small world on one switch, captures, the program's commands, and protocol-level clients.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::{Directory, Node, wait_until};
use eps_actor::config::Role;
use eps_actor::ids::{Endpoint, NetworkId};
use eps_actor::io::netns::{Lan, Netns};
use eps_actor::io::packet::{Captured, PacketSocket};
use eps_actor::proto::admission::open_token;
use eps_actor::proto::crypto::Suites;
use eps_actor::proto::link::{Node as ProtocolNode, no_psk};
use eps_actor::proto::noise::Identity;
use eps_actor::proto::server_link::{Join, Output as LinkOutput, Refusal, ServerLink};
use eps_actor::wire::cert::Certificate;
use eps_actor::wire::join::JoinLine;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::delay::Cable;
pub use crate::programs::{has_program, run_in};
pub use crate::turn::{Turn, alone, beside, is_long};

/// The program under test.
pub const BIN: &str = env!("CARGO_BIN_EXE_eps-actor");
/// For what should take a moment, on a machine that has other things to do.
pub const SOON: Duration = Duration::from_secs(10);
/// The server of every [`World`].
pub const SERVER: &str = "198.51.100.1";

/// A machine behind a router.
pub struct Home {
    pub inside: Arc<Netns>,
    pub router: Netns,
    _lan: Lan,
}

/// A server and machines, all on one switch, 198.51.100.0/24.
pub struct World {
    pub server: Node,
    pub lan: Lan,
    pub directory: Directory,
    hosts: u8,
}

impl World {
    pub fn new() -> Self {
        let directory = Directory::new().expect("a directory");
        let mut lan = Lan::new().expect("a switch");
        let ns = Netns::new().expect("a namespace");
        lan.plug(&ns, "eth0", "198.51.100.1/24").expect("a cable");
        let server = node("server", Role::Server, Arc::new(ns), &directory);
        Self { server, lan, directory, hosts: 1 }
    }

    /// A machine of its own on the switch, at .2, .3 and so on.
    pub fn host(&mut self) -> Arc<Netns> {
        self.hosts += 1;
        let ns = Netns::new().expect("a namespace");
        self.lan.plug(&ns, "eth0", &format!("198.51.100.{}/24", self.hosts)).expect("a cable");
        Arc::new(ns)
    }

    /// As [`Self::host`], by a cable that may delay and lose.
    pub fn host_by_cable(&mut self) -> (Arc<Netns>, Cable) {
        self.hosts += 1;
        let ns = Netns::new().expect("a namespace");
        let cable = Cable::plug(&mut self.lan, &ns, "eth0", &format!("198.51.100.{}/24", self.hosts));
        (Arc::new(ns), cable)
    }

    /// A machine at 192.168.7.2 behind a router of its own on the switch, which forwards; what it masks is the caller's.
    pub fn home(&mut self) -> Home {
        let router = Arc::try_unwrap(self.host()).unwrap_or_else(|_| unreachable!("nobody else has it"));
        let inside = Netns::new().expect("a namespace");
        let mut lan = Lan::new().expect("a switch");
        lan.plug(&router, "lan", "192.168.7.1/24").expect("a cable");
        lan.plug(&inside, "eth0", "192.168.7.2/24").expect("a cable");
        inside.add_default_route(Ipv4Addr::new(192, 168, 7, 1)).expect("a route");
        router.sysctl("ipv4/ip_forward", "1").expect("a setting");
        Home { inside: Arc::new(inside), router, _lan: lan }
    }

    /// A client on a machine of its own, not started.
    pub fn client(&mut self, name: &str) -> Node {
        let ns = self.host();
        node(name, Role::Client, ns, &self.directory)
    }

    /// Starts the server and returns a reusable join line.
    pub fn start_server(&self, more: &[&str]) -> String {
        self.server.start(&[&["--advertise", SERVER], more].concat()).expect("started");
        self.invite(true)
    }

    /// A join line from the server.
    pub fn invite(&self, reusable: bool) -> String {
        let question = json!({"command": "invite", "reusable": reusable, "expires": null});
        let reply = wait_until(SOON, "an invitation", || self.server.poll(&question));
        let reply = reply.unwrap_or_else(|error| panic!("{error:#}\n{}", self.server.log()));
        reply["join"].as_str().expect("a line").to_owned()
    }
}

pub fn node(name: &str, role: Role, ns: Arc<Netns>, directory: &Directory) -> Node {
    Node::new(Path::new(BIN), name, role, ns, directory.path()).expect("a node")
}

/// Starts a client and waits for its address.
pub fn join(client: &Node, line: &str, more: &[&str]) -> IpAddr {
    client.start(&[&["--join", line], more].concat()).expect("started");
    address(client)
}

/// The client's address, waited for.
pub fn address(client: &Node) -> IpAddr {
    client.wait_for_address(SOON).unwrap_or_else(|error| panic!("{error:#}\n{}", client.log()))
}

/// Waits until one client can ping another, and how it did.
pub fn ping(from: &Node, peer: &Node, to: IpAddr) -> Duration {
    let ping = from.ping_with_path(&peer.name, to, SOON);
    ping.unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", from.log(), peer.log())).round_trip
}

/// Waits until a client reaches a peer directly.
pub fn wait_for_direct(from: &Node, peer: &str) {
    until(&format!("a direct path to {peer}"), || state_of(from, peer) == "direct");
}

/// The word of a client's status for a peer.
pub fn state_of(client: &Node, peer: &str) -> String {
    let status = client.client_status().expect("a status");
    status.peer(peer).map_or_else(|| "unknown".to_owned(), |peer| peer.state.clone())
}

/// Waits for a condition.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_until(SOON, what, || Ok(condition().then_some(()))).unwrap_or_else(|error| panic!("{error:#}"));
}

/// Waits until a node has ended, and how it did.
pub fn wait_for_end(node: &Node) -> ExitStatus {
    let ended = wait_until(SOON, &format!("{} to end", node.name), || Ok(node.ended()));
    ended.unwrap_or_else(|error| panic!("{error:#}\n{}", node.log()))
}

/// The lines with which the program told why it ended.
pub fn complaints(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.starts_with("eps-actor: ")).collect()
}

/// Runs the program with these arguments, within [`SOON`].
pub fn program(args: &[&str]) -> Output {
    finish(Command::new(BIN).args(args).env_remove("EPS_JOIN"))
}

/// Runs a command to its end, within [`SOON`].
pub fn finish(command: &mut Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    bounded(child.expect("started"))
}

/// As [`finish`], in a namespace.
pub fn finish_in(ns: &Netns, command: &mut Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    bounded(ns.spawn(command).expect("started"))
}

fn bounded(child: Child) -> Output {
    ends_within(SOON, child).unwrap_or_else(|stderr| panic!("it does not end: {}", text(&stderr)))
}

/// The output of a child whose pipes are read while it runs, and which is killed when it takes longer: then what it
/// complained of.
pub fn ends_within(limit: Duration, mut child: Child) -> Result<Output, Vec<u8>> {
    let (out, err) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let ended = wait_until(limit, "a command to end", || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill().expect("killed");
    }
    let status = child.wait().expect("waited");
    let [stdout, stderr] = [out, err].map(|reading| reading.join().expect("read"));
    if ended.is_ok() { Ok(Output { status, stdout, stderr }) } else { Err(stderr) }
}

fn drain(pipe: Option<impl io::Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).expect("read");
        }
        bytes
    })
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The process of a node that runs: its state directory's lock says it.
pub fn pid(node: &Node) -> u32 {
    let lock = node.state_path().join("lock");
    std::fs::read_to_string(lock).expect("a lock").trim().parse().expect("a number")
}

/// The memory a process holds, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    memory_kib(pid, "VmRSS:")
}

/// The most memory that a process has held, in KiB.
pub fn peak_kib(pid: u32) -> u64 {
    memory_kib(pid, "VmHWM:")
}

fn memory_kib(pid: u32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
    line.split_whitespace().next().expect("a number").parse().expect("a number")
}

/// A node's counters.
pub fn counters(node: &Node) -> Value {
    node.control(&json!({"command": "status"})).expect("a status")["counters"].clone()
}

/// One counter.
pub fn counter(node: &Node, name: &str) -> u64 {
    let all = counters(node);
    all[name].as_u64().unwrap_or_else(|| panic!("no {name} in {all}"))
}

/// Records the frames of interfaces until it is asked for them.
pub struct Capture {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Captured>>>,
}

impl Capture {
    pub fn start(places: &[(&Netns, &str)]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = places.iter().map(|(ns, ifname)| {
            let (socket, stop) = (packets(ns, ifname), stop.clone());
            thread::spawn(move || {
                let mut frames = Vec::new();
                loop {
                    match socket.recv(Duration::from_millis(50)).expect("the interface is there") {
                        Some(captured) => frames.push(captured),
                        // What had come before the stop is read to its end.
                        None if stop.load(Relaxed) => return frames,
                        None => {}
                    }
                }
            })
        });
        let threads = threads.collect();
        Self { stop, threads }
    }

    pub fn frames(self) -> Vec<Captured> {
        self.stop.store(true, Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("captured")).collect()
    }
}

/// A raw socket on an interface.
pub fn packets(ns: &Netns, ifname: &str) -> PacketSocket {
    ns.run(|| PacketSocket::open(ifname)).unwrap_or_else(|error| panic!("{ifname}: {error}"))
}

/// The payload of an unfragmented IPv4 UDP frame, with its ports.
pub fn udp_payload(frame: &[u8]) -> Option<(u16, u16, &[u8])> {
    if frame.get(12..14)? != [8, 0] || *frame.get(23)? != 17 {
        return None;
    }
    let start = 14 + usize::from(frame[14] & 15) * 4;
    let port = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    let length = usize::from(port(start + 4)?);
    // A super-frame says the length of all its segments, or none.
    let end = if length > 8 { (start + length).min(frame.len()) } else { frame.len() };
    Some((port(start)?, port(start + 2)?, frame.get(start + 8..end)?))
}

pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return true };
    haystack.windows(needle.len()).any(|window| window[0] == *first && window == needle)
}

/// How a protocol-level client fared.
pub enum Fate {
    Leased(Box<Certificate>),
    Refused(Refusal),
}

/// The library's server link over a real UDP socket.
pub struct Member {
    link: ServerLink,
    socket: UdpSocket,
    server: SocketAddr,
    released: bool,
    /// What the server sent: (length, first byte).
    pub heard: Vec<(usize, u8)>,
}

impl Member {
    /// A client that has not spoken yet, from a random port of `from`.
    pub fn new(ns: &Netns, from: &str, server: &str, line: &JoinLine, name: &str, seed: u64) -> Self {
        let socket = ns.run(|| UdpSocket::bind((from, 0))).expect("a socket");
        let server: SocketAddr = server.parse().expect("an address");
        let now = Instant::now();
        let token = line.token.clone().unwrap_or_else(open_token);
        let contact = Join { fingerprint: line.fingerprint, token_id: token.id(), psk: token.psk() };
        let identity = Identity::generate(&mut StdRng::seed_from_u64(seed));
        let node = ProtocolNode::new(identity, NetworkId(0), no_psk(), Suites::of_this_machine(), 1);
        let seed = rand::random();
        let mut link = ServerLink::new(node, name.to_owned(), None, Some(contact), now, seed);
        link.set_servers(vec![Endpoint::udp(server)], now);
        Self { link, socket, server, released: false, heard: Vec::new() }
    }

    /// Runs until the network has decided.
    pub fn settle(&mut self) -> Fate {
        let start = Instant::now();
        while start.elapsed() < SOON {
            if let Some(fate) = self.turn() {
                return fate;
            }
        }
        panic!("neither lease nor refusal");
    }

    /// Gives the lease back, and waits until the server has it.
    pub fn release(&mut self) {
        self.link.release(Instant::now());
        let start = Instant::now();
        while !self.released {
            assert!(start.elapsed() < SOON, "the lease is not taken back");
            self.turn();
        }
    }

    /// Sends what is due, then waits a moment for one datagram.
    fn turn(&mut self) -> Option<Fate> {
        let now = Instant::now();
        if self.link.poll_timeout().is_some_and(|at| now >= at) {
            self.link.handle_timeout(now);
        }
        while let Some(output) = self.link.poll_output() {
            match output {
                LinkOutput::Send { datagram, .. } => drop(self.socket.send_to(&datagram, self.server)),
                LinkOutput::Leased { certificate, .. } => {
                    let certificate = Certificate::parse(&certificate).expect("a certificate");
                    return Some(Fate::Leased(Box::new(certificate)));
                }
                LinkOutput::Refused(refusal) => return Some(Fate::Refused(refusal)),
                LinkOutput::Released => self.released = true,
                _ => {}
            }
        }
        let due = self.link.poll_timeout().map_or(SOON, |at| at.saturating_duration_since(Instant::now()));
        let wait = due.clamp(Duration::from_micros(100), Duration::from_millis(20));
        self.socket.set_read_timeout(Some(wait)).expect("a timeout");
        let mut buffer = [0; 2048];
        match self.socket.recv_from(&mut buffer) {
            Ok((count, _)) => {
                self.heard.push((count, buffer[0]));
                let from = Endpoint::udp(self.server);
                // What does not fit is dropped, as in the program.
                let _ = self.link.handle_datagram(from, &mut buffer[..count], Instant::now());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        None
    }
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
