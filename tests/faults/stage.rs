//! What the tests have in common: a scene whose clients know each other, and ways to look at it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use eps_actor::cli::demo::scene::{Node, Reached, Scene, wait_until};
use eps_actor::io::control_socket::request;
use serde_json::{Value, json};

use crate::turn::{self, Turn};

pub use crate::turn::is_long;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_eps-actor");
/// For what has no limit of its own, on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);

/// Held by tests that may run beside others.
pub fn shared() -> Turn {
    watch_the_machine();
    turn::beside()
}

/// Held by tests that measure milliseconds: they want the machine for themselves.
pub fn alone() -> Turn {
    watch_the_machine();
    turn::alone()
}

/// When the machine held everybody up, as a thread sees it that only wants to run each millisecond.
static HELD_UP: Mutex<Vec<(Instant, Instant)>> = Mutex::new(Vec::new());
/// Longer than this beyond its millisecond, and the thread was held up.
const HELD_UP_MIN: Duration = Duration::from_millis(5);

/// How much of a time the machine held everybody up. Limits of milliseconds are for the program, and not for whatever
/// else this machine does.
pub fn held_up(from: Instant, to: Instant) -> Duration {
    let list = HELD_UP.lock().unwrap_or_else(PoisonError::into_inner);
    let overlap = |(begun, ended): &(Instant, Instant)| (*ended).min(to).saturating_duration_since((*begun).max(from));
    list.iter().map(overlap).sum()
}

fn watch_the_machine() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        thread::spawn(|| {
            loop {
                let due = Instant::now() + Duration::from_millis(1);
                thread::sleep(Duration::from_millis(1));
                let now = Instant::now();
                if now.saturating_duration_since(due) > HELD_UP_MIN {
                    HELD_UP.lock().unwrap_or_else(PoisonError::into_inner).push((due, now));
                }
            }
        });
    });
}

/// A time that is shorter in the default form.
pub fn length(short: u64, long: u64) -> Duration {
    Duration::from_secs(if is_long() { long } else { short })
}

/// A server and three clients, each with a direct path to each other.
pub struct Stage {
    pub scene: Scene,
    pub ada: IpAddr,
    pub bob: IpAddr,
    pub cleo: IpAddr,
}

impl Stage {
    pub fn new() -> Result<Self> {
        let scene = Scene::new(PROGRAM)?;
        let join = scene.start_server(&[])?;
        for node in scene.clients() {
            node.start(&["--join", &join])?;
        }
        let [ada, bob, cleo] = [&scene.ada, &scene.bob, &scene.cleo].map(|node| node.wait_for_address(SOON));
        let stage = Self { ada: ada?, bob: bob?, cleo: cleo?, scene };
        stage.mesh()?;
        Ok(stage)
    }

    /// Every client with its address in the network.
    pub fn clients(&self) -> [(&Node, IpAddr); 3] {
        [(&self.scene.ada, self.ada), (&self.scene.bob, self.bob), (&self.scene.cleo, self.cleo)]
    }

    /// Waits until every pair has a direct path.
    pub fn mesh(&self) -> Result<()> {
        for (one, _) in self.clients() {
            for (other, address) in self.clients() {
                if one.name != other.name {
                    reach(one, other, address)?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if thread::panicking() || std::env::var_os("EPS_LOGS").is_some() {
            for node in self.scene.nodes() {
                println!("--- the log of {}\n{}", node.name, node.log_tail(40).join("\n"));
            }
        }
    }
}

/// Pings until there is an answer and a direct path.
pub fn reach(one: &Node, other: &Node, address: IpAddr) -> Result<()> {
    wait_until(SOON, &format!("a direct path from {} to {}", one.name, other.name), || {
        let answered = one.ping(address, Duration::from_secs(1)).is_some();
        Ok((answered && matches!(one.path_to(&other.name)?, Reached::Direct(_))).then_some(()))
    })
}

/// Looks every millisecond and tells how long it took from `start`, without the time that the machine held us up.
pub fn until<T>(start: Instant, limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> (T, Duration) {
    loop {
        if let Some(value) = look() {
            let now = Instant::now();
            return (value, (now - start).saturating_sub(held_up(start, now)));
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The status as JSON; `None` if nobody answers.
pub fn status(node: &Node) -> Option<Value> {
    request(node.control_path(), &json!({"command": "status"}), Duration::from_secs(3)).ok()
}

pub fn counter(node: &Node, name: &str) -> u64 {
    let status = status(node).unwrap_or_else(|| panic!("{} does not answer", node.name));
    status["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}"))
}

/// What a node has dropped, by reason, and its kernel for want of room in sockets.
pub fn drops(node: &Node) -> String {
    let status = status(node).unwrap_or_else(|| panic!("{} does not answer", node.name));
    let counters = status["counters"].as_object().expect("counters").iter();
    let own = counters.filter(|(name, count)| name.starts_with("drop_") && count.as_f64() != Some(0.0));
    let own: Vec<_> = own.map(|(name, count)| format!("{name} {count}")).collect();
    let snmp = node.ns.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).expect("readable");
    let mut udp =
        snmp.lines().filter_map(|line| line.strip_prefix("Udp: ")).map(|line| line.split(' ').collect::<Vec<_>>());
    let (names, values) = (udp.next().expect("names"), udp.next().expect("values"));
    let full = names.iter().position(|name| *name == "RcvbufErrors").map_or("?", |at| values[at]);
    format!("{} ({full} for full sockets)", if own.is_empty() { "nothing".to_owned() } else { own.join(", ") })
}

/// How long the session of a client with a peer has been used.
pub fn session_age(node: &Node, peer: &str) -> f64 {
    let status = node.client_status().expect("a status");
    let age = status.peer(peer).and_then(|peer| peer.session_age_seconds);
    age.unwrap_or_else(|| panic!("{} has no session with {peer}", node.name))
}

/// Name, addresses and MAC of every member, as the server lists them.
pub fn leases(server: &Node) -> Vec<[String; 4]> {
    let status = status(server).expect("the server's status");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = status["leases"].as_array().expect("leases").iter();
    let mut rows: Vec<_> = rows.map(|row| ["name", "address", "address6", "mac"].map(|key| text(&row[key]))).collect();
    rows.sort();
    rows
}

/// The certificate that a client has on disk, where it is a moment after the client has it.
pub fn certificate(state: &Path) -> String {
    until(Instant::now(), SOON, "a certificate on disk", || {
        let bytes = std::fs::read(state.join("network.json")).ok()?;
        let saved: Value = serde_json::from_slice(&bytes).expect("JSON");
        saved["certificate"].as_str().map(str::to_owned)
    })
    .0
}

/// Whether anything of the network is left in a node's namespace: a device, an address, a route.
pub fn remains(node: &Node, address: IpAddr) -> Option<String> {
    let netlink = node.ns.netlink().expect("netlink");
    smol::block_on(async {
        if netlink.link_index("eps0").await.is_ok() {
            return Some("the device".to_owned());
        }
        let addresses = netlink.addresses().await.expect("addresses");
        if addresses.iter().any(|entry| entry.addr == address) {
            return Some(format!("the address {address}"));
        }
        let routes = netlink.routes().await.expect("routes");
        let left = routes.iter().find(|route| route.dst.prefix_len() > 0 && route.dst.contains(&address));
        left.map(|route| format!("the route {}", route.dst))
    })
}

/// Milliseconds for a figure.
pub fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
