//! The virtual underlay: sites behind NATs with their knobs, one public network between them that delays, loses,
//! repeats and reorders, and cuts between places. It knows nothing of what it carries.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

/// Who sends and receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    Server,
    Client(usize),
    /// An address of somebody who is no node: an attacker.
    Stranger,
}

/// What a NAT makes of an inside socket that speaks to several outside ones (RFC 4787).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    EndpointIndependent,
    AddressAndPortDependent,
    /// The same, each port so much above the last one.
    Stair(u16),
}

/// What a NAT lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filtering {
    None,
    Address,
    AddressAndPort,
}

/// The knobs of a NAT.
#[derive(Debug, Clone, Copy)]
pub struct Nat {
    pub mapping: Mapping,
    pub filtering: Filtering,
    pub expiry: Duration,
    /// Inside hosts reach each other by the outside address.
    pub hairpin: bool,
    /// What comes unasked is a connection to the router itself, and its port is not for the inside any more.
    pub trap: bool,
}

impl Nat {
    /// What most homes have.
    pub const HOME: Self = Self {
        mapping: Mapping::EndpointIndependent,
        filtering: Filtering::AddressAndPort,
        expiry: Duration::from_secs(60),
        hairpin: true,
        trap: false,
    };
    /// What offices and carriers have: no hole can be punched between two of these.
    pub const HARD: Self = Self { mapping: Mapping::AddressAndPortDependent, ..Self::HOME };

    pub fn random(rng: &mut StdRng) -> Self {
        let mapping =
            if rng.random_bool(0.7) { Mapping::EndpointIndependent } else { Mapping::AddressAndPortDependent };
        let filtering = match rng.random_range(0..3) {
            0 => Filtering::None,
            1 => Filtering::Address,
            _ => Filtering::AddressAndPort,
        };
        let expiry = Duration::from_secs(rng.random_range(30..180));
        Self { mapping, filtering, expiry, hairpin: rng.random_bool(0.5), trap: rng.random_bool(0.2) }
    }
}

/// What the public network does to datagrams.
#[derive(Debug, Clone, Copy)]
pub struct Quality {
    pub loss: f64,
    pub duplication: f64,
    pub reordering: f64,
    /// On top of what the two ends have.
    pub jitter: Duration,
}

impl Quality {
    pub const PERFECT: Self = Self { loss: 0.0, duplication: 0.0, reordering: 0.0, jitter: Duration::ZERO };
}

struct Hole {
    inside: SocketAddr,
    /// With an endpoint-dependent mapping: for this outside address only.
    to: Option<SocketAddr>,
    port: u16,
    used: Instant,
    spoken_to: BTreeSet<SocketAddr>,
}

struct Site {
    public: Ipv4Addr,
    nat: Option<Nat>,
    holes: Vec<Hole>,
    /// Connections to the router itself: from where, to which port, since when.
    trapped: Vec<(SocketAddr, u16, Instant)>,
    next_port: u16,
}

struct Host {
    site: Option<usize>,
    addr: SocketAddr,
    /// One way, to the middle of the public network.
    delay: Duration,
}

/// A datagram on its way.
#[derive(Debug, Clone)]
pub struct Flight {
    pub sender: Place,
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// It never leaves this site.
    inside: Option<usize>,
}

/// The underlay.
pub struct Net {
    pub wan: Quality,
    sites: Vec<Site>,
    hosts: BTreeMap<Place, Host>,
    place_of: BTreeMap<(Option<usize>, SocketAddr), Place>,
    cuts: BTreeSet<(Place, Place)>,
}

/// Ports of the sockets that a host has beside its first one.
const MORE_SOCKETS: u16 = 30_000;
/// A connection to a router that nobody answers is forgotten (nf_conntrack_udp_timeout).
const TRAPPED_FOR: Duration = Duration::from_secs(30);
const LAN_DELAY: Duration = Duration::from_micros(500);

impl Net {
    pub fn new() -> Self {
        Self {
            wan: Quality::PERFECT,
            sites: Vec::new(),
            hosts: BTreeMap::new(),
            place_of: BTreeMap::new(),
            cuts: BTreeSet::new(),
        }
    }

    /// A site of its own: a public address, a NAT or none.
    pub fn add_site(&mut self, nat: Option<Nat>) -> usize {
        let number = self.sites.len();
        let public = Ipv4Addr::new(203, 0, 113, number as u8 + 1);
        self.sites.push(Site { public, nat, holes: Vec::new(), trapped: Vec::new(), next_port: 5000 });
        number
    }

    /// Puts a host with this port into a site (`None`: straight into the public network).
    pub fn plug(&mut self, place: Place, site: Option<usize>, port: u16, delay: Duration) -> SocketAddr {
        self.unplug(place);
        let ip = match (place, site) {
            (Place::Client(number), Some(site)) if self.sites[site].nat.is_some() => {
                Ipv4Addr::new(10, site as u8, 0, number as u8 + 1)
            }
            (Place::Client(number), _) => Ipv4Addr::new(192, 0, 2, number as u8 + 1),
            (Place::Server, _) => Ipv4Addr::new(198, 51, 100, 1),
            (Place::Stranger, _) => Ipv4Addr::new(198, 51, 100, 66),
        };
        let addr = SocketAddr::new(ip.into(), port);
        let site = site.filter(|site| self.sites[*site].nat.is_some());
        self.hosts.insert(place, Host { site, addr, delay });
        self.place_of.insert((site, addr), place);
        addr
    }

    pub fn unplug(&mut self, place: Place) {
        if let Some(host) = self.hosts.remove(&place) {
            self.place_of.remove(&(host.site, host.addr));
        }
    }

    pub fn addr(&self, place: Place) -> SocketAddr {
        self.hosts[&place].addr
    }

    /// Nothing passes between the two, in either direction.
    pub fn cut(&mut self, one: Place, other: Place) {
        self.cuts.insert((one.min(other), one.max(other)));
    }

    pub fn mend(&mut self, one: Place, other: Place) {
        self.cuts.remove(&(one.min(other), one.max(other)));
    }

    pub fn mend_all(&mut self) {
        self.cuts.clear();
    }

    /// Routers restart: every hole is forgotten.
    pub fn forget_holes(&mut self, place: Place) {
        if let Some(site) = self.hosts.get(&place).and_then(|host| host.site) {
            self.sites[site].holes.clear();
        }
    }

    /// A socket of a host at an address: 0 is the one that was plugged in, at a server 1 is the second port, others are
    /// numbered from [`MORE_SOCKETS`] on.
    fn socket_at(&self, site: Option<usize>, addr: SocketAddr) -> Option<(Place, u16)> {
        if let Some(place) = self.place_of.get(&(site, addr)) {
            return Some((*place, 0));
        }
        let (place, host) = self.hosts.iter().find(|(_, host)| host.site == site && host.addr.ip() == addr.ip())?;
        match place {
            Place::Server => (addr.port() == host.addr.port() + 1).then_some((*place, 1)),
            Place::Client(_) | Place::Stranger => addr.port().checked_sub(MORE_SOCKETS).map(|socket| (*place, socket)),
        }
    }

    /// A datagram leaves a socket of its host; when and as what it comes to the other end, if it does.
    pub fn send(
        &mut self,
        (sender, socket): (Place, u16),
        to: SocketAddr,
        now: Instant,
        rng: &mut StdRng,
    ) -> Vec<(Instant, Flight)> {
        let Some(host) = self.hosts.get(&sender) else { return Vec::new() };
        let (site, mut addr, delay) = (host.site, host.addr, host.delay);
        if socket != 0 {
            addr.set_port(MORE_SOCKETS + socket);
        }
        if let Some(inside) = site.filter(|site| self.socket_at(Some(*site), to).is_some()) {
            return vec![(now + LAN_DELAY, Flight { sender, from: addr, to, inside: Some(inside) })];
        }
        if is_private(to.ip()) {
            return Vec::new();
        }
        let own = site.map(|site| &self.sites[site]).filter(|own| IpAddr::V4(own.public) == to.ip());
        if own.and_then(|own| own.nat).is_some_and(|nat| !nat.hairpin) {
            return Vec::new();
        }
        let from = match site {
            Some(site) => self.sites[site].leave(addr, to, now, rng),
            None => addr,
        };
        let copies = if rng.random_bool(self.wan.duplication) { 2 } else { 1 };
        let mut flights = Vec::new();
        for _ in 0..copies {
            if rng.random_bool(self.wan.loss) {
                continue;
            }
            let far = self.delay_to(to);
            let jitter = self.wan.jitter.mul_f64(rng.random_range(0.0..1.0));
            let late = if rng.random_bool(self.wan.reordering) {
                Duration::from_millis(rng.random_range(1..150))
            } else {
                Duration::ZERO
            };
            flights.push((now + delay + far + jitter + late, Flight { sender, from, to, inside: None }));
        }
        flights
    }

    fn delay_to(&self, to: SocketAddr) -> Duration {
        let at_nat = |host: &&Host| host.site.is_some_and(|site| IpAddr::V4(self.sites[site].public) == to.ip());
        let host = self.hosts.values().find(|host| host.addr == to).or_else(|| self.hosts.values().find(at_nat));
        host.map_or(Duration::from_millis(5), |host| host.delay)
    }

    /// A datagram comes to the other end: who gets it, if anybody.
    pub fn arrive(&mut self, flight: &Flight, now: Instant) -> Option<(Place, u16)> {
        let place = match flight.inside {
            Some(site) => self.socket_at(Some(site), flight.to),
            None => match self.socket_at(None, flight.to) {
                Some(found) => Some(found),
                None => {
                    let site = self.sites.iter().position(|site| IpAddr::V4(site.public) == flight.to.ip())?;
                    let inside = self.sites[site].enter(flight.from, flight.to.port(), now)?;
                    self.socket_at(Some(site), inside)
                }
            },
        }?;
        let pair = (flight.sender.min(place.0), flight.sender.max(place.0));
        (!self.cuts.contains(&pair)).then_some(place)
    }
}

impl Site {
    fn leave(&mut self, inside: SocketAddr, to: SocketAddr, now: Instant, rng: &mut StdRng) -> SocketAddr {
        let Some(nat) = self.nat else { return inside };
        self.holes.retain(|hole| now.saturating_duration_since(hole.used) < nat.expiry);
        self.trapped.retain(|(_, _, since)| now.saturating_duration_since(*since) < TRAPPED_FOR);
        let mut wanted = (nat.mapping != Mapping::EndpointIndependent).then_some(to);
        let find = |wanted| self.holes.iter().position(|hole| hole.inside == inside && hole.to == wanted);
        let mut found = find(wanted);
        if let Some(at) = found
            && self.trapped.iter().any(|(from, port, _)| (*from, *port) == (to, self.holes[at].port))
        {
            (wanted, found) = (Some(to), find(Some(to)).filter(|_| wanted.is_none()));
        }
        let at = found.unwrap_or_else(|| {
            let port = loop {
                let port = match nat.mapping {
                    Mapping::Stair(step) => {
                        self.next_port = self.next_port.wrapping_add(step).max(1024);
                        self.next_port
                    }
                    Mapping::EndpointIndependent | Mapping::AddressAndPortDependent => {
                        1024 + (rng.next_u32() % 64_512) as u16
                    }
                };
                if self.holes.iter().all(|hole| hole.port != port) {
                    break port;
                }
            };
            self.holes.push(Hole { inside, to: wanted, port, used: now, spoken_to: BTreeSet::new() });
            self.holes.len() - 1
        });
        let hole = &mut self.holes[at];
        hole.used = now;
        hole.spoken_to.insert(to);
        SocketAddr::new(self.public.into(), hole.port)
    }

    fn enter(&mut self, from: SocketAddr, port: u16, now: Instant) -> Option<SocketAddr> {
        let nat = self.nat?;
        let inside = self.hole_for(from, port, now, &nat);
        if inside.is_none() && nat.trap {
            self.trapped.push((from, port, now));
        }
        inside
    }

    fn hole_for(&self, from: SocketAddr, port: u16, now: Instant, nat: &Nat) -> Option<SocketAddr> {
        if self.trapped.iter().any(|(trapped, at, _)| (*trapped, *at) == (from, port)) {
            return None;
        }
        let hole = self.holes.iter().find(|hole| hole.port == port)?;
        let open = now.saturating_duration_since(hole.used) < nat.expiry
            && match nat.filtering {
                Filtering::None => true,
                Filtering::Address => hole.spoken_to.iter().any(|known| known.ip() == from.ip()),
                Filtering::AddressAndPort => hole.spoken_to.contains(&from),
            };
        open.then_some(hole.inside)
    }
}

fn is_private(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.is_private())
}
