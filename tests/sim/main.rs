//! The seeded simulation: the real cores of a server and up to 20 clients on virtual time and virtual NATs.
//!
//! Nothing sleeps and no decision reads a clock: time is a base instant and an offset, every random number comes from
//! one seed. After each step the invariants are checked; a failure prints its seed, the last events and a drawing of
//! who thinks what. `EPS_SIM_SEED=123 cargo test --test sim replay -- --nocapture` runs one seed again (add
//! `EPS_SIM_TRACE=1` to see its events as they happen, `EPS_SIM_WIRE=1` to have datagrams among them), `EPS_SIM_SEEDS=10000` widens the search.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "tells how fast it was")]

mod loss;
mod net;
mod node;
mod paths;
mod random;
mod scenarios;
mod swizzle;
mod traversal;
mod words;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use eps_actor::ids::{MacAddr, Route};
use eps_actor::proto::coordinator::Reply;
use eps_actor::proto::peers::{PeerDescription, PeerState};
use eps_actor::proto::records::StoreOp;
use eps_actor::proto::server_link::Refusal;
use eps_actor::wire::cert::Certificate;
use eps_actor::wire::header::{HEADER_LEN, Kind, SealedHeader};
use eps_actor::wire::join::Token;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use net::{Flight, Nat, Net, Place};
use node::{Client, Effect, Server};

const PORT: u16 = 43439;
/// Events remembered for a report.
const EVENTS_KEPT: usize = 40;

enum Event {
    Arrive(Flight, Vec<u8>),
    /// The disk writes it, then tells.
    Written {
        life: u64,
        id: u64,
        ops: Vec<StoreOp>,
    },
    Told {
        life: u64,
        id: u64,
    },
}

/// What is seen of the wire while somebody looks.
pub struct Captured {
    pub from: Place,
    pub at: Instant,
    pub to: SocketAddr,
    pub datagram: Vec<u8>,
}

/// A server, clients, and what is between them.
pub struct Sim {
    seed: u64,
    base: Instant,
    now: Instant,
    pub rng: StdRng,
    pub net: Net,
    pub server: Server,
    server_life: u64,
    store_free: Instant,
    /// How long the disk takes for a write, at the most.
    pub store_delay: Duration,
    pub clients: Vec<Client>,
    sites: Vec<Option<usize>>,
    wake: Vec<Option<Instant>>,
    queue: BTreeMap<(Instant, u64), Event>,
    next_event: u64,
    next_request: u64,
    replies: BTreeMap<u64, Reply>,
    /// Who sent frame number n, and to whom (`None`: everybody).
    frames: Vec<(usize, Option<usize>)>,
    /// When frame n came to client c.
    arrivals: BTreeMap<(u64, usize), Instant>,
    sealed: HashSet<(Place, u32, u64)>,
    pub datagrams: u64,
    /// By who sent them and what they are, for reports.
    pub kinds: BTreeMap<(Place, u8), u64>,
    pub hints_believed: u64,
    pub capture: Option<Vec<Captured>>,
    /// What came to the attacker.
    pub overheard: Vec<Vec<u8>>,
    events: VecDeque<String>,
    trace: bool,
    trace_wire: bool,
}

impl Sim {
    pub fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        // The only look at a clock: every decision depends on differences to it.
        let base = Instant::now() + Duration::from_secs(1000);
        let mut net = Net::new();
        net.plug(Place::Server, None, PORT, Duration::from_millis(5));
        let server = Server::new(true, &mut rng);
        Self {
            seed,
            base,
            now: base,
            rng,
            net,
            server,
            server_life: 0,
            store_free: base,
            store_delay: Duration::from_millis(10),
            clients: Vec::new(),
            sites: Vec::new(),
            wake: vec![None],
            queue: BTreeMap::new(),
            next_event: 0,
            next_request: 0,
            replies: BTreeMap::new(),
            frames: Vec::new(),
            arrivals: BTreeMap::new(),
            sealed: HashSet::new(),
            datagrams: 0,
            kinds: BTreeMap::new(),
            hints_believed: 0,
            capture: None,
            overheard: Vec::new(),
            events: VecDeque::new(),
            trace: std::env::var_os("EPS_SIM_TRACE").is_some(),
            trace_wire: std::env::var_os("EPS_SIM_WIRE").is_some(),
        }
    }

    // --- building ---

    /// Machines behind one router.
    pub fn home<const N: usize>(&mut self, nat: Nat, names: [&str; N]) -> [usize; N] {
        let site = self.net.add_site(Some(nat));
        names.map(|name| self.add_client(name, Some(site), None, Duration::from_millis(10)))
    }

    /// Machines with public addresses.
    pub fn public<const N: usize>(&mut self, names: [&str; N]) -> [usize; N] {
        names.map(|name| self.add_client(name, None, None, Duration::from_millis(10)))
    }

    pub fn add_client(&mut self, name: &str, site: Option<usize>, token: Option<Token>, delay: Duration) -> usize {
        let number = self.clients.len();
        let server = self.net.addr(Place::Server);
        self.clients.push(Client::new(name, server, self.server.key, token, &mut self.rng));
        self.sites.push(site);
        self.wake.push(None);
        self.net.plug(Place::Client(number), site, PORT, delay);
        number
    }

    /// Server and clients started, everybody admitted, every map complete.
    pub fn start(&mut self) {
        self.start_server();
        (0..self.clients.len()).for_each(|client| self.start_client(client));
        self.expect("everybody joins", Duration::from_secs(10), Sim::is_settled);
    }

    // --- what happens to nodes ---

    pub fn start_server(&mut self) {
        self.note("server starts");
        self.server_life += 1;
        self.server.start(self.now, &mut self.rng);
        self.touched(Place::Server, VecDeque::new());
        let mut out = VecDeque::new();
        self.server.handle_timeout(self.now, &mut out);
        self.touched(Place::Server, out);
    }

    pub fn crash_server(&mut self) {
        self.note("server crashes");
        self.server.run = None;
        self.server_life += 1;
        self.wake[0] = None;
    }

    pub fn start_client(&mut self, client: usize) {
        self.note(&format!("{} starts", self.clients[client].name));
        let host = self.net.addr(Place::Client(client));
        let mut out = VecDeque::new();
        self.clients[client].start(host, self.now, &mut self.rng);
        self.clients[client].drain(self.now, &mut self.rng, &mut out);
        self.touched(Place::Client(client), out);
    }

    pub fn crash_client(&mut self, client: usize) {
        self.note(&format!("{} crashes", self.clients[client].name));
        self.clients[client].crash();
        self.wake[client + 1] = None;
    }

    /// A client ends in good order.
    pub fn stop_client(&mut self, client: usize) {
        self.note(&format!("{} ends", self.clients[client].name));
        let mut out = VecDeque::new();
        self.clients[client].goodbye(self.now, &mut self.rng, &mut out);
        self.touched(Place::Client(client), out);
    }

    /// The client's socket gets another port.
    pub fn change_port(&mut self, client: usize) {
        let port = self.rng.random_range(2000..60_000);
        let delay = Duration::from_millis(self.rng.random_range(1..40));
        self.net.plug(Place::Client(client), self.sites[client], port, delay);
    }

    /// A running client finds itself at another address.
    pub fn move_client(&mut self, client: usize) {
        self.note(&format!("{} moves", self.clients[client].name));
        self.change_port(client);
        let (host, now) = (self.net.addr(Place::Client(client)), self.now);
        let mut out = VecDeque::new();
        self.clients[client].moved(host, now, &mut self.rng, &mut out);
        self.touched(Place::Client(client), out);
    }

    pub fn kick(&mut self, client: usize) {
        let name = self.clients[client].name.clone();
        self.note(&format!("{name} is kicked"));
        self.command(|core, request| core.kick(request, &name));
    }

    /// Asks the operator for a token; waits until it is durable.
    pub fn invite(&mut self, uses: Option<u32>) -> Token {
        let request = self.command(|core, request| core.invite(request, None, uses));
        self.expect("the invitation is written down", Duration::from_secs(5), |sim| sim.replies.contains_key(&request));
        match self.replies.remove(&request) {
            Some(Reply::Invited(token)) => Token::new(token),
            other => self.fail(&format!("no invitation: {other:?}")),
        }
    }

    fn command(&mut self, command: impl FnOnce(&mut eps_actor::proto::coordinator::Coordinator, u64)) -> u64 {
        self.next_request += 1;
        let request = self.next_request;
        let mut out = VecDeque::new();
        self.server.command(&mut out, |core| command(core, request));
        self.touched(Place::Server, out);
        request
    }

    /// Puts a datagram onto the wire as somebody else.
    pub fn inject(&mut self, to: SocketAddr, datagram: Vec<u8>) {
        let at = self.net.addr(Place::Stranger);
        self.note(&format!("{at} sends {} bytes to {to}", datagram.len()));
        self.put_on_wire((Place::Stranger, 0), to, datagram);
    }

    // --- frames ---

    /// A frame from one client's TAP to another's station; its number.
    pub fn send(&mut self, from: usize, to: usize) -> u64 {
        let dst = self.clients[to].run.as_ref().and_then(|run| run.own.as_ref()).map(|own| own.mac);
        self.send_frame(from, Some(to), dst.unwrap_or(MacAddr([2; 6])))
    }

    pub fn broadcast(&mut self, from: usize) -> u64 {
        self.send_frame(from, None, MacAddr::BROADCAST)
    }

    fn send_frame(&mut self, from: usize, to: Option<usize>, dst: MacAddr) -> u64 {
        let number = self.frames.len() as u64;
        self.frames.push((from, to));
        let Some(src) = self.clients[from].run.as_ref().and_then(|run| run.own.as_ref()).map(|own| own.mac) else {
            return number;
        };
        let mut out = VecDeque::new();
        self.clients[from].egress(&node::frame(dst, src, number), self.now, &mut self.rng, &mut out);
        self.touched(Place::Client(from), out);
        number
    }

    pub fn arrived(&self, number: u64, client: usize) -> bool {
        self.arrivals.contains_key(&(number, client))
    }

    pub fn arrived_at(&self, number: u64, client: usize) -> Option<Instant> {
        self.arrivals.get(&(number, client)).copied()
    }

    // --- time ---

    pub fn now(&self) -> Instant {
        self.now
    }

    /// Virtual time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.now - self.base
    }

    pub fn run_for(&mut self, duration: Duration) {
        let until = self.now + duration;
        while self.step(until) {}
    }

    /// Runs until it holds; how long that took, or `None` after the limit.
    pub fn run_until(&mut self, limit: Duration, mut holds: impl FnMut(&mut Self) -> bool) -> Option<Duration> {
        let start = self.now;
        loop {
            if holds(self) {
                return Some(self.now - start);
            }
            if !self.step(start + limit) {
                return holds(self).then_some(limit);
            }
        }
    }

    /// The same, and it is a failure if it does not come to hold.
    pub fn expect(&mut self, what: &str, limit: Duration, holds: impl FnMut(&mut Self) -> bool) -> Duration {
        match self.run_until(limit, holds) {
            Some(took) => took,
            None => self.fail(&format!("not within {limit:?}: {what}")),
        }
    }

    /// The next thing happens; `false` when nothing does until then.
    fn step(&mut self, until: Instant) -> bool {
        let timer = self.wake.iter().enumerate().filter_map(|(at, wake)| wake.map(|wake| (wake, at))).min();
        let event = self.queue.first_key_value().map(|(key, _)| *key);
        match (event, timer) {
            (Some((at, _)), timer) if at <= until && timer.is_none_or(|(wake, _)| at <= wake) => {
                self.now = self.now.max(at);
                let (_, event) = self.queue.pop_first().expect("was just looked at");
                self.happen(event);
                true
            }
            (_, Some((wake, at))) if wake <= until => {
                self.now = self.now.max(wake);
                self.wake_up(at);
                true
            }
            _ => {
                self.now = until;
                false
            }
        }
    }

    fn wake_up(&mut self, at: usize) {
        let place = if at == 0 { Place::Server } else { Place::Client(at - 1) };
        for _ in 0..6 {
            let mut out = VecDeque::new();
            match place {
                Place::Client(client) => self.clients[client].handle_timeout(self.now, &mut self.rng, &mut out),
                _ => self.server.handle_timeout(self.now, &mut out),
            }
            self.touched(place, out);
            if self.wake[at].is_none_or(|wake| wake > self.now) {
                return;
            }
        }
        self.fail(&format!("{place:?} is due for ever: poll_timeout() does not move on"));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(flight, datagram) => {
                let Some((place, socket)) = self.net.arrive(&flight, self.now) else { return };
                let from = (flight.from, socket);
                let mut out = VecDeque::new();
                match place {
                    Place::Server => self.server.receive(from, datagram, self.now, &mut out),
                    Place::Client(client) => {
                        self.clients[client].receive(from, datagram, self.now, &mut self.rng, &mut out);
                    }
                    Place::Stranger => self.overheard.push(datagram),
                }
                self.touched(place, out);
            }
            Event::Written { life, id, ops } if life == self.server_life => {
                if let Err(why) = self.server.disk.apply(&ops) {
                    self.fail(&why);
                }
                let at = self.now + self.store_delay.mul_f64(self.rng.random_range(0.0..0.5));
                self.schedule(at, Event::Told { life, id });
            }
            Event::Told { life, id } if life == self.server_life => {
                let mut out = VecDeque::new();
                self.server.handle_stored(id, self.now, &mut out);
                self.touched(Place::Server, out);
            }
            // The process that wanted it is gone.
            Event::Written { .. } | Event::Told { .. } => {}
        }
    }

    fn schedule(&mut self, at: Instant, event: Event) {
        self.next_event += 1;
        self.queue.insert((at, self.next_event), event);
    }

    /// After every input of a node: its effects, its next deadline, the invariants.
    fn touched(&mut self, place: Place, effects: VecDeque<Effect>) {
        for effect in effects {
            self.act(place, effect);
        }
        match place {
            Place::Server => self.wake[0] = self.server.poll_timeout(),
            Place::Client(client) => self.wake[client + 1] = self.clients[client].poll_timeout(),
            Place::Stranger => {}
        }
    }

    fn act(&mut self, place: Place, effect: Effect) {
        match effect {
            Effect::Send { socket, to, datagram } => self.put_on_wire((place, socket), to, datagram),
            Effect::Deliver(frame) => self.check_delivery(place, &frame),
            Effect::Granted(certificate) => self.check_lease(place, &certificate),
            Effect::Refused(refusal) => self.check_refusal(place, &refusal),
            Effect::Store { id, ops } => {
                let delay = self.store_delay.mul_f64(self.rng.random_range(0.05..1.0));
                self.store_free = self.store_free.max(self.now) + delay;
                self.schedule(self.store_free, Event::Written { life: self.server_life, id, ops });
            }
            Effect::Reply { request, reply } => drop(self.replies.insert(request, reply)),
            Effect::HintBelieved => {
                self.hints_believed += 1;
                self.note(&format!("{} believes a hint", self.name(place)));
            }
            Effect::Note(text) => self.note(&format!("{}: {text}", self.name(place))),
        }
    }

    fn put_on_wire(&mut self, (place, socket): (Place, u16), to: SocketAddr, datagram: Vec<u8>) {
        if self.trace_wire {
            let line = format!("{} -> {to}: {:02x} {} bytes", self.name(place), datagram[0], datagram.len());
            self.note(&line);
        }
        self.datagrams += 1;
        *self.kinds.entry((place, datagram[0])).or_default() += 1;
        if datagram.windows(node::MARKER.len()).any(|window| window == node::MARKER) {
            self.fail(&format!("plaintext on the wire, from {place:?} to {to}"));
        }
        self.check_counter(place, &datagram);
        if let Some(captured) = &mut self.capture {
            captured.push(Captured { from: place, at: self.now, to, datagram: datagram.clone() });
        }
        for (at, flight) in self.net.send((place, socket), to, self.now, &mut self.rng) {
            self.schedule(at, Event::Arrive(flight, datagram.clone()));
        }
    }

    // --- invariants ---

    /// A counter of a session seals one datagram.
    fn check_counter(&mut self, place: Place, datagram: &[u8]) {
        let inner = match (Kind::of(datagram), place) {
            // What the server relays was sealed by others.
            (Some(Kind::Relay), Place::Server) | (_, Place::Stranger) => return,
            (Some(Kind::Relay), _) => &datagram[HEADER_LEN..],
            _ => datagram,
        };
        if let Ok(header) = SealedHeader::parse(inner)
            && !self.sealed.insert((place, header.receiver.0, header.counter))
        {
            self.fail(&format!("{place:?} sealed counter {} of {:?} twice", header.counter, header.receiver));
        }
    }

    fn check_delivery(&mut self, place: Place, frame: &[u8]) {
        let Place::Client(client) = place else { self.fail("a frame at a place without a TAP") };
        let number = node::number_of(frame);
        let (from, to) = self.frames[number as usize];
        if from == client {
            self.fail(&format!("frame {number} was reflected to its sender, {}", self.clients[client].name));
        }
        if to.is_some_and(|to| to != client) {
            self.fail(&format!("frame {number} for another station came to {}", self.clients[client].name));
        }
        if self.arrivals.insert((number, client), self.now).is_some() {
            self.fail(&format!("frame {number} was delivered twice to {}", self.clients[client].name));
        }
    }

    /// What a client was granted is in the store, whatever crashes next.
    fn check_lease(&mut self, place: Place, granted: &Certificate) {
        let stored = self.server.disk.state.members.iter().find(|member| member.key == granted.key);
        let same = |member: &eps_actor::proto::records::MemberRecord| {
            (member.ip4, member.ip6, member.mac) == (granted.ip4, granted.ip6, granted.mac)
        };
        let kicked = self.server.disk.state.revoked.iter().any(|revoked| revoked.serial == granted.serial);
        if !kicked && !stored.is_some_and(same) {
            self.fail(&format!("{} was granted {} and the store does not know", self.name(place), granted.ip4));
        }
        self.note(&format!("{} holds {}", self.name(place), granted.ip4));
    }

    fn check_refusal(&mut self, place: Place, refusal: &Refusal) {
        self.note(&format!("{} is refused: {refusal:?}", self.name(place)));
    }

    // --- what is so ---

    /// Clients that run and were not told to stay away.
    pub fn online(&self) -> Vec<usize> {
        (0..self.clients.len()).filter(|client| self.clients[*client].run.is_some()).collect()
    }

    /// Everybody who runs is attached, has a lease, and knows every other member of the store.
    pub fn is_settled(&mut self) -> bool {
        self.online().into_iter().all(|client| self.is_attached(client) && self.map_is_true(client))
    }

    pub fn is_attached(&self, client: usize) -> bool {
        let run = self.clients[client].run.as_ref();
        run.is_some_and(|run| run.link.is_attached() && run.own.is_some())
    }

    /// The client's map names the members that the server has, and no other.
    pub fn map_is_true(&self, client: usize) -> bool {
        let key = self.clients[client].key;
        let Some(run) = &self.clients[client].run else { return false };
        let mut mine: Vec<_> = run.members().map(|m| (m.key, m.certificate.ip4, m.name.clone())).collect();
        let members = self.server.disk.state.members.iter().filter(|member| member.key != key);
        let mut theirs: Vec<_> = members.map(|m| (m.key, m.ip4, m.name.clone())).collect();
        mine.sort();
        theirs.sort();
        mine == theirs
    }

    /// What one client thinks of another.
    pub fn peer(&self, client: usize, of: usize) -> Option<&PeerDescription> {
        let key = self.clients[of].key;
        self.clients[client].run.as_ref()?.members().find(|peer| peer.key == key)
    }

    pub fn route(&self, client: usize, to: usize) -> Option<Route> {
        self.peer(client, to).and_then(|peer| peer.route)
    }

    pub fn is_direct(&self, client: usize, to: usize) -> bool {
        self.route(client, to).is_some_and(|route| route.is_direct())
    }

    fn address(&self, client: usize) -> Option<Ipv4Addr> {
        self.clients[client].run.as_ref().and_then(|run| run.own.as_ref()).map(|own| own.ip4)
    }

    fn name(&self, place: Place) -> String {
        match place {
            Place::Server => "server".into(),
            Place::Client(client) => self.clients[client].name.clone(),
            Place::Stranger => "stranger".into(),
        }
    }

    // --- reports ---

    pub fn note(&mut self, text: &str) {
        let line = format!("{:>11.6} {text}", self.elapsed().as_secs_f64());
        if self.trace {
            println!("{line}");
        }
        self.events.push_back(line);
        if self.events.len() > EVENTS_KEPT {
            self.events.pop_front();
        }
    }

    pub fn fail(&self, why: &str) -> ! {
        let mut report = format!("\nseed {}, at {:?}: {why}\n\nlast events:\n", self.seed, self.elapsed());
        self.events.iter().for_each(|event| _ = writeln!(report, "{event}"));
        let _ = writeln!(report, "\nwho thinks what:\n{}", self.drawing());
        let _ = writeln!(report, "again: EPS_SIM_SEED={} cargo test --test sim replay -- --nocapture", self.seed);
        panic!("{report}");
    }

    /// As DOT: an edge for each peer that a client reaches or tries to reach.
    fn drawing(&self) -> String {
        let mut dot = String::from("digraph sim {\n");
        for client in 0..self.clients.len() {
            let state = match (&self.clients[client].run, &self.clients[client].refused) {
                (Some(run), _) if run.link.is_attached() => "attached",
                (Some(_), _) => "detached",
                (None, Some(_)) => "refused",
                (None, None) => "down",
            };
            let name = &self.clients[client].name;
            let addr = self.address(client).map(|addr| addr.to_string()).unwrap_or_default();
            let at = self.net.addr(Place::Client(client));
            let drops = self.clients[client].run.as_ref().map(|run| format!("{:?}", run.drops)).unwrap_or_default();
            let _ = writeln!(dot, "  {name} [label=\"{name} {state} {addr}\\n{at}\"]; // {drops}");
            for peer in self.clients[client].run.iter().flat_map(|run| run.members()) {
                if matches!(peer.state, PeerState::Direct | PeerState::Relay | PeerState::Searching) {
                    let route = peer.route.map(|route| route.to_string()).unwrap_or_default();
                    let style = if peer.route.is_some_and(|route| route.is_direct()) { "solid" } else { "dashed" };
                    let _ =
                        writeln!(dot, "  {name} -> {} [label=\"{:?} {route}\" style={style}];", peer.name, peer.state);
                }
            }
        }
        let _ = writeln!(dot, "  // server {}", if self.server.run.is_some() { "up" } else { "down" });
        dot + "}"
    }
}
