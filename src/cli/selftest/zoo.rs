//! The zoo: machines behind routers of every kind, on one small internet made of namespaces.
//!
//! ```text
//!     internet 198.51.100.0/24 ─┬─ server 198.51.100.1
//!                               ├─ machine of kind none
//!                               ├─ router ─ LAN 192.168.7.0/24 ─ machine .2        full, addr, port, hard, blocked
//!                               └─ router ─ 100.64.0.0/24 ─ router ─ LAN ─ machine  double
//! ```
//!
//! Everything goes when the [`Zoo`] is dropped.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::super::demo::scene::{Directory, Node, Reached, check_interrupt, wait_until};
use crate::config::Role;
use crate::io::netns::{Lan, Netns};
use crate::io::nft::zoo::{address_restricted, careless, full_cone, without_udp};
use crate::io::nft::{masquerade, masquerade_random_ports};

/// What is between a machine and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nothing.
    None,
    /// One outside port for all destinations, and anybody may answer to it.
    Full,
    /// One outside port; addresses that were sent to may answer.
    Addr,
    /// One outside port; addresses and ports that were sent to may answer. What most homes have.
    Port,
    /// Another outside port for each destination, and only that may answer.
    Hard,
    /// Two of [`Kind::Port`] in a row, as carriers have.
    Double,
    /// [`Kind::Port`], and no UDP passes.
    Blocked,
    /// [`Kind::Port`], but a datagram that comes unasked takes the port for the router itself. Not in the grid.
    Careless,
}

impl Kind {
    /// Those of the grid.
    pub const ALL: [Self; 7] =
        [Self::None, Self::Full, Self::Addr, Self::Port, Self::Hard, Self::Double, Self::Blocked];

    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Full => "full",
            Self::Addr => "addr",
            Self::Port => "port",
            Self::Hard => "hard",
            Self::Double => "double",
            Self::Blocked => "blocked",
            Self::Careless => "careless",
        }
    }

    /// The kind of this name.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

/// How a pair is to reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Direct,
    Relay,
    /// A hole is found in some nine of ten tries.
    Either,
}

impl Expected {
    pub fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Either => "direct or relay",
        }
    }
}

/// What two kinds are to come to.
pub fn expected(one: Kind, other: Kind) -> Expected {
    let (low, high) = (one.min(other), one.max(other));
    let is_strict = |kind| matches!(kind, Kind::Port | Kind::Double | Kind::Careless);
    match (low, high) {
        (_, Kind::Blocked) => Expected::Relay,
        (Kind::Hard, Kind::Hard) => Expected::Relay,
        (Kind::Hard, high) if is_strict(high) => Expected::Either,
        (low, Kind::Hard) if is_strict(low) => Expected::Either,
        (_, Kind::Careless) => Expected::Either,
        _ => Expected::Direct,
    }
}

/// A machine of a kind, and what keeps its network alive.
#[derive(Debug)]
pub struct House {
    pub kind: Kind,
    pub node: Node,
    /// From the internet inwards.
    pub routers: Vec<Netns>,
    pub lans: Vec<Lan>,
}

/// The internet, and the server.
#[derive(Debug)]
pub struct Zoo {
    pub server: Node,
    pub internet: Lan,
    directory: Directory,
    program: PathBuf,
    hosts: u8,
}

/// How a pair fared.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub reached: Reached,
    /// From the first ping to the first answer, by whatever way; `None` if there was none.
    pub answered: Option<Duration>,
    /// From the first ping to a direct path.
    pub direct: Option<Duration>,
}

impl Zoo {
    /// An internet with a server on it, not started; its nodes will run `program`.
    ///
    /// # Errors
    /// What cannot be built, and why.
    pub fn new(directory: Directory, program: impl Into<PathBuf>) -> Result<Self> {
        let program = program.into();
        let (mut internet, ns) = (Lan::new()?, Netns::new()?);
        internet.plug(&ns, "eth0", "198.51.100.1/24")?;
        let server = Node::new(&program, "server", Role::Server, Arc::new(ns), directory.path())?;
        Ok(Self { server, internet, directory, program, hosts: 9 })
    }

    /// Starts the server, and gives a reusable invitation.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_server(&self, more: &[&str]) -> Result<String> {
        self.server.start(&[&["--advertise", "198.51.100.1"], more].concat())?;
        let question = json!({"command": "invite", "reusable": true, "expires": null});
        let reply: Value = wait_until(START, "the server to answer", || self.server.poll(&question))?;
        Ok(reply["join"].as_str().context("the server's invitation holds no join line")?.to_owned())
    }

    /// A namespace on the internet, and its address there.
    fn public(&mut self) -> Result<(Netns, Ipv4Addr)> {
        self.hosts += 1;
        let (ns, address) = (Netns::new()?, Ipv4Addr::new(198, 51, 100, self.hosts));
        self.internet.plug(&ns, "wan", &format!("{address}/24"))?;
        Ok((ns, address))
    }

    /// A machine of a kind.
    ///
    /// # Errors
    /// What cannot be built, and why.
    pub fn house(&mut self, kind: Kind, name: &str) -> Result<House> {
        let (first, _) = self.public()?;
        let (mut routers, mut lans) = (Vec::new(), Vec::new());
        let ns = if kind == Kind::None {
            first
        } else {
            let mut outer = first;
            if kind == Kind::Double {
                let inner = Netns::new()?;
                lans.push(behind(&outer, &inner, "wan", Ipv4Addr::new(100, 64, 0, 1))?);
                outer.run(|| masquerade("wan"))?;
                routers.push(std::mem::replace(&mut outer, inner));
            }
            let ns = Netns::new()?;
            lans.push(behind(&outer, &ns, "eth0", Ipv4Addr::new(192, 168, 7, 1))?);
            outer.run(|| match kind {
                Kind::None | Kind::Port | Kind::Double => masquerade("wan"),
                Kind::Full => full_cone("wan", INSIDE),
                Kind::Addr => address_restricted("wan", INSIDE),
                Kind::Hard => masquerade_random_ports("wan"),
                Kind::Blocked => without_udp("wan"),
                Kind::Careless => careless("wan"),
            })?;
            routers.push(outer);
            ns
        };
        // The kernel's own multicast would be a first packet before ours.
        ns.sysctl("ipv6/conf/default/disable_ipv6", "1").context("cannot switch off IPv6 in a namespace")?;
        let node = Node::new(&self.program, name, Role::Client, Arc::new(ns), self.directory.path())?;
        Ok(House { kind, node, routers, lans })
    }
}

/// Puts a machine (or another router) behind a router; the gateway is `.1` of the LAN, the machine `.2`.
fn behind(router: &Netns, inside: &Netns, ifname: &str, gateway: Ipv4Addr) -> Result<Lan> {
    let [a, b, c, _] = gateway.octets();
    let mut lan = Lan::new()?;
    lan.plug(router, "lan", &format!("{gateway}/24"))?;
    lan.plug(inside, ifname, &format!("{a}.{b}.{c}.2/24"))?;
    inside.add_default_route(gateway)?;
    router.sysctl("ipv4/ip_forward", "1").context("cannot switch on forwarding in a namespace")?;
    Ok(lan)
}

/// Lets one machine ping another, as long as it takes for what is expected to show, and no longer than `limit`.
///
/// # Errors
/// If a node ended, or this program is interrupted.
pub fn meet(one: &Node, other: &Node, expected: Expected, limit: Duration) -> Result<Outcome> {
    let to = other.address()?.with_context(|| format!("{} has no address", other.name))?;
    let start = Instant::now();
    let mut answered = None;
    while answered.is_none() && start.elapsed() < limit {
        check_interrupt()?;
        answered = one.ping(to, ANSWER).map(|_| start.elapsed());
    }
    // A pair that is to stay on the relay is watched for as long as a round of probes takes.
    let watch = if expected == Expected::Relay { limit.min(RELAY_WATCH) } else { limit };
    let mut reached = one.path_to(&other.name)?;
    let mut direct = None;
    while answered.is_some() {
        if matches!(reached, Reached::Direct(_)) {
            direct = Some(start.elapsed());
            break;
        }
        if start.elapsed() >= watch {
            break;
        }
        check_interrupt()?;
        std::thread::sleep(LOOK);
        reached = one.path_to(&other.name)?;
    }
    Ok(Outcome { reached, answered, direct })
}

/// The machine behind every router.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 2);
const START: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(1);
const RELAY_WATCH: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(20);
