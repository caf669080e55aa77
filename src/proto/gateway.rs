//! Port mappings at the machine's gateway: who is asked in which protocol, what is believed, when it is renewed.
//!
//! PCP (RFC 6887), NAT-PMP (RFC 6886) and UPnP-IGD are asked side by side whether they are there, which maps nothing.
//! The best that answers, in this order, is then asked for the mappings, and the next one when it refuses. An answer
//! after the time to search is taken as well. Mappings are renewed at half their life, made again when the gateway has
//! lost its table (its epoch went back, it announced itself), and deleted at the end.
//!
//! Believed is only what the gateway's own address says; of that, only outside addresses that others may dial. Whoever
//! can forge the gateway's address in its LAN can do so to everything else as well.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::backoff::Backoff;
use super::crypto::blake2s;
use crate::wire::igd::{self, IgdError, Service, Url};
use crate::wire::natpmp::{self, Done, Operation, Transport};
use crate::wire::pcp;

/// Where gateways speak PCP and NAT-PMP.
pub const PMP_PORT: u16 = 5351;
/// Wanted of PCP and NAT-PMP, in seconds: what RFC 6886, section 3.3 recommends.
const LIFETIME: u32 = 7200;
/// Wanted of UPnP, in seconds. A gateway of it may restart without a word, so this bounds how long that goes unnoticed.
const IGD_LIFETIME: u32 = 1200;
/// A longer life is taken for this one, in seconds.
const LIFETIME_MAX: u32 = 24 * 3600;
/// No mapping is renewed sooner than this (RFC 6887, section 11.2.1).
const RENEW_MIN: Duration = Duration::from_secs(4);
/// After the first protocol that answers, better ones have so long: they come from the same box.
const GRACE: Duration = Duration::from_millis(100);
/// Waits between the same question (RFC 6886, section 3.1 begins like this).
const ASK_AGAIN: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// Waits between searches, while there is no mapping or the one there is cannot be renewed.
const SEARCH_AGAIN: &[Duration] = &[
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(300),
    Duration::from_secs(900),
];
/// How often the gateway is asked for its epoch: a restart is noticed within this, should it not be announced.
const CHECK: Duration = Duration::from_secs(30);
/// A mapping that was refused while another was granted is asked for again after this.
const REFUSED_AGAIN: Duration = Duration::from_secs(300);
/// An exchange over HTTP that nobody reported on is over.
const FETCH_MAX: Duration = Duration::from_secs(15);
/// Outside ports tried by UPnP where others have the ones before.
const PORTS_TRIED: u32 = 4;
/// Announcements are acted on once in this time.
const NOTICE_EVERY: Duration = Duration::from_secs(10);
/// After an announcement: the gateway's other parts may start a moment later.
const NOTICE_WAIT: Duration = Duration::from_secs(1);

/// The gateway, and our own address towards it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub gateway: Ipv4Addr,
    pub own: Ipv4Addr,
}

/// A port of ours that others should reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    pub transport: Transport,
    pub port: u16,
}

/// How a gateway is spoken to, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Pcp,
    NatPmp,
    Igd,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Pcp, Self::NatPmp, Self::Igd];

    pub fn name(self) -> &'static str {
        match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Igd => "UPnP-IGD",
        }
    }
}

/// What the core wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send to the gateway's [`PMP_PORT`].
    Ask(Vec<u8>),
    /// Send to [`igd::SSDP`], and to the same port of the gateway.
    Search(Vec<u8>),
    /// Exchange these bytes with the gateway over TCP, and say what came with the same number.
    Fetch { id: u64, to: SocketAddrV4, request: Vec<u8> },
    /// What [`Gateway::describe`] says is different.
    Changed,
}

/// What there is, as others may see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    pub gateway: Option<Ipv4Addr>,
    pub mappings: Vec<Mapping>,
    /// Why a wish is not granted.
    pub why: Option<String>,
    /// There is a mapping, or the time to search is over: nobody need wait for more.
    pub settled: bool,
}

/// One port that others reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    pub protocol: Protocol,
    pub transport: Transport,
    pub inside: u16,
    pub outside: SocketAddrV4,
    /// `None` where the gateway keeps it until it is deleted.
    pub until: Option<Instant>,
}

impl Description {
    /// Where others reach the UDP port.
    pub fn udp(&self) -> Option<SocketAddrV4> {
        let udp = self.mappings.iter().find(|mapping| mapping.transport == Transport::Udp);
        udp.map(|mapping| mapping.outside)
    }
}

/// What is known of one protocol at this gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Silent,
    Answers,
    Refused(String),
}

struct Entry {
    wish: Wish,
    nonce: pcp::Nonce,
    /// The outside port to ask for.
    port: u16,
    held: Option<Held>,
    asking: Option<Asking>,
    /// When to ask next.
    due: Option<Instant>,
    refused: Option<String>,
}

#[derive(Clone, Copy)]
struct Held {
    protocol: Protocol,
    outside: SocketAddrV4,
    until: Instant,
    /// The gateway gave it no end; until then we take it for good without having asked again.
    permanent: bool,
}

#[derive(Clone, Copy)]
struct Asking {
    tries: u32,
    next: Instant,
}

/// The search for whoever answers.
struct Search {
    asked: usize,
    next: Option<Instant>,
    end: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Describe,
    Address,
    Map(usize),
    Delete(usize),
}

/// The core.
pub struct Gateway {
    entries: Vec<Entry>,
    timeout: Duration,
    place: Option<Place>,
    /// Nobody has said yet whether there is a gateway.
    waiting: bool,
    /// The gateway of a core before this one.
    resumed: Option<Ipv4Addr>,
    standing: [Standing; 3],
    search: Option<Search>,
    choose_at: Option<Instant>,
    chosen: Option<Protocol>,
    /// The outside address by NAT-PMP, and by UPnP; PCP says it with each mapping.
    address: Option<Ipv4Addr>,
    igd_address: Option<Ipv4Addr>,
    /// The newest epochs by PCP and by NAT-PMP, and when they were heard.
    epochs: [Option<(u32, Instant)>; 2],
    found: Option<Url>,
    services: Vec<Service>,
    permanent: bool,
    fetch: Option<(u64, Step, Instant)>,
    fetches: u64,
    check_at: Option<Instant>,
    notice_at: Option<Instant>,
    noticed: Option<Instant>,
    again_at: Option<Instant>,
    again: Backoff,
    why: Option<String>,
    /// Of this gateway everything was heard once that somebody may wait for.
    settled: bool,
    releasing: bool,
    described: Description,
    rng: StdRng,
    outputs: VecDeque<Output>,
}

impl Gateway {
    /// Mappings for `wishes`, looked for within `timeout`. Of `secret` the nonces are made that prove to a gateway of
    /// PCP whose the mappings are, so that the same node may change them after a restart.
    pub fn new(wishes: &[Wish], timeout: Duration, secret: &[u8; 32], seed: [u8; 32]) -> Self {
        let entry = |wish: &Wish| {
            let place = [&[wish.transport.protocol()][..], &wish.port.to_be_bytes()].concat();
            let hash = blake2s(&[b"eps1 pcp nonce", secret, &place]);
            Entry {
                wish: *wish,
                nonce: hash[..12].try_into().expect("twelve bytes"),
                port: wish.port,
                held: None,
                asking: None,
                due: None,
                refused: None,
            }
        };
        Self {
            entries: wishes.iter().map(entry).collect(),
            timeout,
            place: None,
            waiting: true,
            resumed: None,
            standing: [const { Standing::Silent }; 3],
            search: None,
            choose_at: None,
            chosen: None,
            address: None,
            igd_address: None,
            epochs: [None; 2],
            found: None,
            services: Vec::new(),
            permanent: false,
            fetch: None,
            fetches: 0,
            check_at: None,
            notice_at: None,
            noticed: None,
            again_at: None,
            again: Backoff::new(SEARCH_AGAIN),
            why: None,
            settled: false,
            releasing: false,
            described: Description::default(),
            rng: StdRng::from_seed(seed),
            outputs: VecDeque::new(),
        }
    }

    /// Takes up what a core before this one held (the actor was restarted), until its gateway proves to be another.
    pub fn resume(&mut self, before: &Description, now: Instant) {
        self.resumed = before.gateway;
        for mapping in &before.mappings {
            let wish = Wish { transport: mapping.transport, port: mapping.inside };
            let Some(entry) = self.entries.iter_mut().find(|entry| entry.wish == wish) else { continue };
            let life = Duration::from_secs(IGD_LIFETIME.into());
            entry.port = mapping.outside.port();
            entry.held = Some(Held {
                protocol: mapping.protocol,
                outside: mapping.outside,
                until: mapping.until.unwrap_or(now + life),
                permanent: mapping.until.is_none(),
            });
        }
    }

    /// The next thing to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.settled |= self.is_settled();
        let description = self.describe();
        if description != self.described {
            self.described = description;
            self.outputs.push_back(Output::Changed);
        }
        self.outputs.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let search = self.search.as_ref().map(|search| search.next.unwrap_or(search.end).min(search.end));
        let entries = self.entries.iter().flat_map(|entry| {
            let asking = entry.asking.filter(|_| !self.by_http()).map(|asking| asking.next);
            [asking, entry.due, entry.held.map(|held| held.until)]
        });
        let fetch = self.fetch.map(|(_, _, end)| end);
        let timers = [search, self.choose_at, fetch, self.check_at, self.notice_at, self.again_at];
        entries.chain(timers).flatten().min()
    }

    /// The gateway is there, is another one, or is none. What the old one mapped is lost.
    pub fn set_place(&mut self, place: Option<Place>, now: Instant) {
        if self.place == place && !self.waiting {
            // Something else of the network changed: perhaps a cable to a gateway that was restarted.
            self.check_at = self.check_at.map(|_| now);
            return;
        }
        self.waiting = false;
        let same = self.resumed.take().is_some_and(|gateway| place.is_some_and(|place| place.gateway == gateway));
        self.place = place;
        self.epochs = [None; 2];
        (self.found, self.address, self.permanent, self.why) = (None, None, false, None);
        self.settled = false;
        self.services.clear();
        for entry in self.entries.iter_mut().filter(|_| !same) {
            (entry.held, entry.port) = (None, entry.wish.port);
        }
        self.again.reset();
        self.stop_asking();
        match place {
            Some(_) => self.begin(now),
            None => {
                self.search = None;
                self.why = Some("there is no default route over IPv4".to_owned());
            }
        }
    }

    /// A datagram at the socket that questions leave by.
    pub fn handle_datagram(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) {
        let Some(place) = self.place.filter(|place| from.ip().to_canonical() == IpAddr::V4(place.gateway)) else {
            return;
        };
        if from.port() == PMP_PORT {
            self.handle_pmp(bytes, now);
        } else if let Some(url) = igd::parse_found(bytes).filter(|url| *url.addr.ip() == place.gateway) {
            self.handle_found(url);
        }
        self.choose(now);
        self.pump(now);
    }

    /// A datagram to one of the groups at which gateways announce that they have started.
    pub fn handle_announcement(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) {
        if self.place.is_none_or(|place| from.ip().to_canonical() != IpAddr::V4(place.gateway)) || self.releasing {
            return;
        }
        if igd::is_notice(bytes) {
            let lately = self.noticed.is_some_and(|at| now.saturating_duration_since(at) < NOTICE_EVERY);
            // Who holds a mapping by another protocol hears of a restart by its epoch.
            if !lately && self.chosen.is_none_or(|chosen| chosen == Protocol::Igd) {
                self.noticed = Some(now);
                self.notice_at = Some(now + NOTICE_WAIT);
            }
            return;
        }
        self.handle_pmp(bytes, now);
        self.choose(now);
        self.pump(now);
    }

    /// What came of a fetch.
    pub fn handle_fetched(&mut self, id: u64, reply: Result<&[u8], String>, now: Instant) {
        let Some((_, step, _)) = self.fetch.take_if(|(asked, _, _)| *asked == id) else { return };
        match reply {
            Ok(bytes) => self.handle_reply(step, bytes, now),
            Err(why) => self.fetch_failed(step, &why, now),
        }
        self.choose(now);
        self.pump(now);
    }

    /// The time of [`poll_timeout`](Self::poll_timeout) has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due = |at: &mut Option<Instant>| at.take_if(|at| now >= *at).is_some();
        if let Some((_, step, _)) = self.fetch.take_if(|(_, _, end)| now >= *end) {
            self.fetch_failed(step, "it does not answer over HTTP", now);
        }
        for entry in &mut self.entries {
            entry.held.take_if(|held| now >= held.until);
            if due(&mut entry.due) {
                // Without a protocol the search is on, or comes again by itself.
                entry.asking = self.chosen.map(|_| Asking { tries: 0, next: now });
                // The outside address may be another by now.
                self.igd_address = None;
            }
        }
        if due(&mut self.again_at) || due(&mut self.notice_at) {
            self.begin(now);
        }
        if due(&mut self.check_at) {
            self.check(now);
        }
        self.run_search(now);
        if due(&mut self.choose_at) {
            self.pick_best(now);
        }
        self.choose(now);
        self.pump(now);
    }

    /// Asks the gateway to delete what it maps. Goes on by [`handle_timeout`](Self::handle_timeout) and the others
    /// until [`is_released`](Self::is_released).
    pub fn release(&mut self, now: Instant) {
        (self.search, self.choose_at, self.check_at) = (None, None, None);
        (self.again_at, self.notice_at, self.releasing) = (None, None, true);
        // A mapping that is being asked for may exist by now.
        let asked = self.fetch.take().map(|(_, step, _)| step);
        let chosen = self.chosen;
        for (number, entry) in self.entries.iter_mut().enumerate() {
            entry.due = None;
            let protocol = entry.held.map(|held| held.protocol).or(chosen.filter(|protocol| match protocol {
                Protocol::Igd => asked == Some(Step::Map(number)),
                Protocol::Pcp | Protocol::NatPmp => entry.asking.is_some(),
            }));
            if let Some(held) = entry.held {
                entry.port = held.outside.port();
            }
            self.chosen = protocol.or(self.chosen);
            entry.asking = protocol.map(|_| Asking { tries: 0, next: now });
        }
        self.pump(now);
    }

    /// Whether nothing of ours is left at the gateway, as far as it says.
    pub fn is_released(&self) -> bool {
        self.releasing && self.entries.iter().all(|entry| entry.asking.is_none())
    }

    /// What there is.
    pub fn describe(&self) -> Description {
        let mappings: Vec<Mapping> = self
            .entries
            .iter()
            .filter_map(|entry| {
                let held = entry.held?;
                Some(Mapping {
                    protocol: held.protocol,
                    transport: entry.wish.transport,
                    inside: entry.wish.port,
                    outside: held.outside,
                    until: (!held.permanent).then_some(held.until),
                })
            })
            .collect();
        let refused = self.entries.iter().find_map(|entry| {
            let why = entry.refused.as_ref().filter(|_| entry.held.is_none())?;
            Some(format!("{} port {}: {why}", entry.wish.transport.name(), entry.wish.port))
        });
        let why = if mappings.is_empty() { self.why.clone() } else { refused };
        let settled = self.settled || self.is_settled();
        Description { gateway: self.place.map(|place| place.gateway), mappings, why, settled }
    }

    /// The protocols that it has answered in, whether it would map anything or not; the best first.
    pub fn answering(&self) -> impl Iterator<Item = Protocol> {
        let answers = Protocol::ALL.into_iter().zip(&self.standing);
        answers.filter(|(_, standing)| **standing == Standing::Answers).map(|(protocol, _)| protocol)
    }

    /// Its outside address, as it says by NAT-PMP.
    pub fn outside(&self) -> Option<Ipv4Addr> {
        self.address
    }

    fn is_settled(&self) -> bool {
        let held = self.entries.iter().any(|entry| entry.held.is_some());
        let asking = self.entries.iter().any(|entry| entry.asking.is_some());
        !self.waiting && ((held && !asking) || self.why.is_some())
    }

    /// Searches anew. What is held stays so until it ends or is refused.
    fn begin(&mut self, now: Instant) {
        self.stop_asking();
        self.standing = [const { Standing::Silent }; 3];
        self.search = Some(Search { asked: 0, next: Some(now), end: now + self.timeout });
        // What was in the way last time is said until there is something newer to say.
        self.run_search(now);
    }

    fn stop_asking(&mut self) {
        (self.choose_at, self.chosen, self.fetch) = (None, None, None);
        (self.check_at, self.again_at, self.notice_at) = (None, None, None);
        for entry in &mut self.entries {
            (entry.asking, entry.due, entry.refused) = (None, None, None);
        }
    }

    fn run_search(&mut self, now: Instant) {
        let (Some(place), Some(search)) = (self.place, &mut self.search) else { return };
        if now >= search.end {
            self.search = None;
            if self.chosen.is_none() && self.choose_at.is_none() {
                self.give_up(now);
            }
            return;
        }
        if search.next.take_if(|at| now >= *at).is_some() {
            let wait = ASK_AGAIN[search.asked.min(ASK_AGAIN.len() - 1)];
            (search.asked, search.next) = (search.asked + 1, Some(now + wait));
            self.outputs.push_back(Output::Ask(pcp::ask_announce(place.own)));
            self.outputs.push_back(Output::Ask(natpmp::ask_address()));
            for target in igd::TARGETS {
                self.outputs.push_back(Output::Search(igd::search(target)));
            }
        }
    }

    /// Nobody is left to ask: says why, and tries again later.
    fn give_up(&mut self, now: Instant) {
        let reasons: Vec<String> = Protocol::ALL
            .iter()
            .zip(&self.standing)
            .filter_map(|(protocol, standing)| match standing {
                Standing::Refused(why) => Some(format!("{}: {why}", protocol.name())),
                Standing::Silent | Standing::Answers => None,
            })
            .collect();
        self.why = Some(if reasons.is_empty() {
            "it answers neither PCP nor NAT-PMP nor UPnP".to_owned()
        } else {
            reasons.join("; ")
        });
        let wait = self.again.next(&mut self.rng);
        self.again_at = Some(now + wait);
    }

    /// Decides whom to ask for mappings, when nobody is being asked and enough have answered.
    fn choose(&mut self, now: Instant) {
        if self.chosen.is_some() || self.releasing || self.place.is_none() {
            return;
        }
        let refused = |standing: &Standing| matches!(standing, Standing::Refused(_));
        match self.standing.iter().find(|standing| !refused(standing)) {
            Some(Standing::Answers) => self.pick_best(now),
            Some(_) if self.standing.contains(&Standing::Answers) => {
                self.choose_at.get_or_insert(now + GRACE);
            }
            Some(_) if self.search.is_none() && self.again_at.is_none() => self.give_up(now),
            Some(_) => {}
            None => {
                self.search = None;
                if self.again_at.is_none() {
                    self.give_up(now);
                }
            }
        }
    }

    fn pick_best(&mut self, now: Instant) {
        let Some(best) = self.standing.iter().position(|standing| *standing == Standing::Answers) else { return };
        let protocol = Protocol::ALL[best];
        (self.chosen, self.choose_at, self.again_at) = (Some(protocol), None, None);
        // Others may still answer, and are then known should this one refuse.
        self.search.iter_mut().for_each(|search| search.next = None);
        if protocol == Protocol::NatPmp
            && let Err(why) = self.address.map_or(Ok(()), check_address)
        {
            self.refuse(protocol, why, now);
            return;
        }
        if protocol == Protocol::Igd {
            self.igd_address = None;
            self.services.clear();
        }
        for entry in &mut self.entries {
            entry.asking = Some(Asking { tries: 0, next: now });
        }
    }

    /// A protocol is of no use; the next one is asked, if there is one.
    fn refuse(&mut self, protocol: Protocol, why: String, now: Instant) {
        self.standing[protocol as usize] = Standing::Refused(why);
        if self.chosen == Some(protocol) {
            self.stop_asking();
            self.search.iter_mut().for_each(|search| search.next = Some(now + ASK_AGAIN[0]));
        }
        self.choose(now);
    }

    fn by_http(&self) -> bool {
        self.chosen == Some(Protocol::Igd)
    }

    /// Sends what is due.
    fn pump(&mut self, now: Instant) {
        let Some(place) = self.place else { return };
        match self.chosen {
            None => {}
            Some(Protocol::Igd) => self.pump_http(place, now),
            Some(protocol) => self.pump_datagrams(protocol, place, now),
        }
    }

    fn pump_datagrams(&mut self, protocol: Protocol, place: Place, now: Instant) {
        let lifetime = if self.releasing { 0 } else { LIFETIME };
        for entry in &mut self.entries {
            let Some(asking) = entry.asking.as_mut().filter(|asking| now >= asking.next) else { continue };
            let Some(wait) = ASK_AGAIN.get(asking.tries as usize) else {
                entry.asking = None;
                if !self.releasing {
                    self.refuse(protocol, "it does not answer when it is asked to map a port".to_owned(), now);
                    self.pump(now);
                }
                return;
            };
            // At the end there is little time.
            let wait = if self.releasing { Duration::from_millis(60) } else { *wait };
            (asking.tries, asking.next) = (asking.tries + 1, now + wait);
            let Wish { transport, port } = entry.wish;
            let address = entry.held.map_or(Ipv4Addr::UNSPECIFIED, |held| *held.outside.ip());
            self.outputs.push_back(Output::Ask(match protocol {
                Protocol::Pcp => {
                    let who = (place.own, entry.nonce);
                    pcp::ask_mapping(who, transport, port, (address, entry.port), lifetime)
                }
                _ => natpmp::ask_mapping(transport, port, if self.releasing { 0 } else { entry.port }, lifetime),
            }));
        }
    }

    fn pump_http(&mut self, place: Place, now: Instant) {
        if self.fetch.is_some() || self.entries.iter().all(|entry| entry.asking.is_none()) {
            return;
        }
        let Some(service) = self.services.first() else {
            if self.releasing {
                self.entries.iter_mut().for_each(|entry| entry.asking = None);
            } else if let Some(url) = self.found.clone() {
                self.fetch(Step::Describe, url.addr, igd::get(&url), now);
            }
            return;
        };
        let to = service.control.addr;
        let asking = |entry: &Entry| entry.asking.is_some();
        let Some(number) = self.entries.iter().position(asking) else { return };
        let Entry { wish, port, .. } = self.entries[number];
        if self.releasing {
            let request = igd::ask_deletion(service, wish.transport, port);
            self.fetch(Step::Delete(number), to, request, now);
        } else if self.igd_address.is_none() {
            let request = igd::ask_address(service);
            self.fetch(Step::Address, to, request, now);
        } else {
            let lifetime = if self.permanent { 0 } else { IGD_LIFETIME };
            let inside = SocketAddrV4::new(place.own, wish.port);
            let request = igd::ask_mapping(service, wish.transport, inside, port, lifetime);
            self.fetch(Step::Map(number), to, request, now);
        }
    }

    fn fetch(&mut self, step: Step, to: SocketAddrV4, request: Vec<u8>, now: Instant) {
        self.fetches += 1;
        self.fetch = Some((self.fetches, step, now + FETCH_MAX));
        self.outputs.push_back(Output::Fetch { id: self.fetches, to, request });
    }

    fn answers(&mut self, protocol: Protocol) {
        let standing = &mut self.standing[protocol as usize];
        if *standing == Standing::Silent {
            *standing = Standing::Answers;
        }
    }

    fn handle_pmp(&mut self, bytes: &[u8], now: Instant) {
        if pcp::is_unknown_version(bytes) {
            if self.chosen != Some(Protocol::Pcp) {
                self.standing[0] = Standing::Refused("the gateway does not speak it".to_owned());
            }
        } else if let Some(answer) = pcp::parse(bytes) {
            self.handle_pcp(&answer, now);
        } else if let Some(answer) = natpmp::parse(bytes) {
            self.handle_natpmp(&answer, now);
        }
    }

    fn handle_pcp(&mut self, answer: &pcp::Answer, now: Instant) {
        let Some(mapping) = answer.mapping else {
            // Some know MAP only and say so: they are there.
            if matches!(answer.result, 0 | 4) {
                self.answers(Protocol::Pcp);
            } else {
                self.standing[0] = Standing::Refused(pcp::refusal(answer.result).to_owned());
            }
            self.hear_epoch(Protocol::Pcp, answer.epoch, now);
            return;
        };
        if self.chosen != Some(Protocol::Pcp) {
            return;
        }
        let ours = |entry: &Entry| {
            let Wish { transport, port } = entry.wish;
            (entry.nonce, transport.protocol(), port) == (mapping.nonce, mapping.protocol, mapping.inside)
        };
        let Some(number) = self.entries.iter().position(|entry| entry.asking.is_some() && ours(entry)) else { return };
        self.hear_epoch(Protocol::Pcp, answer.epoch, now);
        if self.releasing {
            if answer.result != 0 || answer.lifetime == 0 {
                (self.entries[number].asking, self.entries[number].held) = (None, None);
            }
            return;
        }
        if answer.result != 0 {
            self.denied(number, pcp::refusal(answer.result).to_owned(), now);
            return;
        }
        match mapping.address.ok_or_else(|| "its outside address is not IPv4".to_owned()) {
            Ok(address) => self.granted(number, (address, mapping.outside), answer.lifetime, now),
            Err(why) => self.denied(number, why, now),
        }
    }

    fn handle_natpmp(&mut self, answer: &natpmp::Answer, now: Instant) {
        match (answer.operation, answer.result) {
            (Operation::Address, Ok(Done::Address(address))) => {
                self.answers(Protocol::NatPmp);
                self.hear_epoch(Protocol::NatPmp, answer.epoch, now);
                self.hear_address(address, now);
            }
            (Operation::Address, result) => {
                if self.chosen != Some(Protocol::NatPmp) {
                    let why = natpmp::refusal(result.err().unwrap_or_default());
                    self.standing[1] = Standing::Refused(why.to_owned());
                }
            }
            (Operation::Map(transport), result) if self.chosen == Some(Protocol::NatPmp) => {
                let inside = match result {
                    Ok(Done::Mapped { inside, .. }) => Some(inside),
                    // A refusal may leave out for which port it is.
                    _ => None,
                };
                let asked = |entry: &Entry| {
                    let fits = inside.is_none_or(|inside| inside == entry.wish.port);
                    entry.asking.is_some() && entry.wish.transport == transport && fits
                };
                let Some(number) = self.entries.iter().position(asked) else { return };
                self.hear_epoch(Protocol::NatPmp, answer.epoch, now);
                match (result, self.address) {
                    (result, _) if self.releasing => {
                        if !matches!(result, Ok(Done::Mapped { lifetime: 1.., .. })) {
                            (self.entries[number].asking, self.entries[number].held) = (None, None);
                        }
                    }
                    (Ok(Done::Mapped { outside, lifetime, .. }), Some(address)) => {
                        self.granted(number, (address, outside), lifetime, now);
                    }
                    (Ok(_), _) => {}
                    (Err(code), _) => self.denied(number, natpmp::refusal(code).to_owned(), now),
                }
            }
            (Operation::Map(_), _) => {}
        }
    }

    /// The outside address, by NAT-PMP.
    fn hear_address(&mut self, address: Ipv4Addr, now: Instant) {
        if self.chosen.is_some_and(|chosen| chosen != Protocol::NatPmp) || self.releasing {
            return;
        }
        self.address = Some(address);
        if self.chosen.is_none() {
            return;
        }
        if let Err(why) = check_address(address) {
            self.entries.iter_mut().for_each(|entry| entry.held = None);
            self.refuse(Protocol::NatPmp, why, now);
            return;
        }
        for entry in &mut self.entries {
            entry.held =
                entry.held.map(|held| Held { outside: SocketAddrV4::new(address, held.outside.port()), ..held });
        }
    }

    /// Compares what a gateway says of its age with what it said before (RFC 6886, section 3.6; RFC 6887, section 8.5).
    /// Where that does not fit, the mappings may be lost, and are asked for again.
    fn hear_epoch(&mut self, protocol: Protocol, epoch: u32, now: Instant) {
        let last = self.epochs[protocol as usize].replace((epoch, now));
        let Some((before, at)) = last.filter(|_| self.chosen == Some(protocol) && !self.releasing) else { return };
        let (ours, theirs) = (now.saturating_duration_since(at).as_secs(), i64::from(epoch) - i64::from(before));
        let ours = i64::try_from(ours).unwrap_or(i64::MAX / 2);
        // Neither clock need be exact: two seconds, and one part in eight.
        let consistent = theirs >= -1 && theirs + 2 >= ours - ours / 8 && ours + 2 >= theirs - theirs / 8;
        if !consistent {
            for entry in self.entries.iter_mut().filter(|entry| entry.asking.is_none()) {
                (entry.asking, entry.due) = (Some(Asking { tries: 0, next: now }), None);
            }
        }
    }

    fn handle_found(&mut self, url: Url) {
        if self.chosen != Some(Protocol::Igd) {
            self.found = Some(url);
            self.answers(Protocol::Igd);
        }
    }

    fn handle_reply(&mut self, step: Step, bytes: &[u8], now: Instant) {
        match step {
            Step::Describe => {
                let (Some(place), Some(url)) = (self.place, self.found.clone()) else { return };
                let services = igd::parse_description(bytes, &url).and_then(|mut services| {
                    services.retain(|service| *service.control.addr.ip() == place.gateway);
                    if services.is_empty() { Err(IgdError::NoService) } else { Ok(services) }
                });
                match services {
                    Ok(services) => self.services = services,
                    Err(error) => self.refuse(Protocol::Igd, error.to_string(), now),
                }
            }
            Step::Address => {
                let address = igd::parse_address(bytes).map_err(|error| error.to_string());
                match address.and_then(|address| check_address(address).map(|()| address)) {
                    Ok(address) => self.igd_address = Some(address),
                    // Some list a service of each kind of line, and only one of them is in use.
                    Err(_) if self.services.len() > 1 => drop(self.services.remove(0)),
                    Err(why) => {
                        self.entries.iter_mut().for_each(|entry| entry.held = None);
                        self.refuse(Protocol::Igd, why, now);
                    }
                }
            }
            Step::Map(number) => self.handle_igd_mapped(number, igd::parse_done(bytes), now),
            // Gone, or not ours any more.
            Step::Delete(number) => (self.entries[number].asking, self.entries[number].held) = (None, None),
        }
    }

    fn handle_igd_mapped(&mut self, number: usize, result: Result<(), IgdError>, now: Instant) {
        let entry = &mut self.entries[number];
        let tries = entry.asking.map_or(0, |asking| asking.tries);
        match (result, self.igd_address) {
            (Ok(()), Some(address)) => {
                let place = (address, entry.port);
                self.granted(number, place, IGD_LIFETIME, now);
            }
            (Ok(()), None) => {}
            (Err(IgdError::Refused(igd::ONLY_PERMANENT)), _) if !self.permanent => self.permanent = true,
            (Err(IgdError::Refused(igd::CONFLICT)), _) if tries < PORTS_TRIED => {
                entry.port = self.rng.random_range(10_000..=60_000);
                entry.asking = Some(Asking { tries: tries + 1, next: now });
            }
            (Err(error), _) => self.denied(number, error.to_string(), now),
        }
    }

    fn fetch_failed(&mut self, step: Step, why: &str, now: Instant) {
        if let Step::Delete(number) = step {
            self.entries[number].asking = None;
        } else {
            self.refuse(Protocol::Igd, why.to_owned(), now);
        }
    }

    fn granted(&mut self, number: usize, (address, port): (Ipv4Addr, u16), lifetime: u32, now: Instant) {
        let Some(protocol) = self.chosen else { return };
        let good = check_address(address).and_then(|()| match (port, lifetime) {
            (1.., 1..) => Ok(()),
            _ => Err("it granted a mapping that is none".to_owned()),
        });
        if let Err(why) = good {
            self.denied(number, why, now);
            return;
        }
        let life = Duration::from_secs(lifetime.min(LIFETIME_MAX).into());
        let entry = &mut self.entries[number];
        (entry.asking, entry.refused, entry.port) = (None, None, port);
        entry.due = Some(now + (life / 2).max(RENEW_MIN));
        let outside = SocketAddrV4::new(address, port);
        let permanent = protocol == Protocol::Igd && self.permanent;
        entry.held = Some(Held { protocol, outside, until: now + life.max(2 * RENEW_MIN), permanent });
        self.why = None;
        self.again.reset();
        if protocol != Protocol::Igd {
            self.check_at.get_or_insert(now + CHECK);
        }
    }

    /// A mapping was refused. Without any, the protocol is of no use.
    fn denied(&mut self, number: usize, why: String, now: Instant) {
        let entry = &mut self.entries[number];
        (entry.asking, entry.held) = (None, None);
        (entry.refused, entry.due) = (Some(why.clone()), Some(now + REFUSED_AGAIN));
        if let Some(protocol) = self.chosen
            && self.entries.iter().all(|entry| entry.held.is_none() && entry.asking.is_none())
        {
            self.refuse(protocol, why, now);
        }
    }

    /// Asks for the epoch, and by NAT-PMP for the address.
    fn check(&mut self, now: Instant) {
        let Some(place) = self.place else { return };
        let question = match self.chosen {
            Some(Protocol::Pcp) => pcp::ask_announce(place.own),
            Some(Protocol::NatPmp) => natpmp::ask_address(),
            Some(Protocol::Igd) | None => return,
        };
        self.outputs.push_back(Output::Ask(question));
        self.check_at = Some(now + CHECK);
    }
}

/// Whether others may dial an address: a gateway that is itself behind a NAT has one that they may not. Networks for
/// documentation are let through; nobody is there, and laboratories use them.
fn check_address(address: Ipv4Addr) -> Result<(), String> {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && b & 0xc0 == 64;
    let special = a == 0 || a >= 240 || (a, b, c) == (192, 0, 0) || (a == 198 && b & 0xfe == 18);
    if address.is_unspecified() {
        return Err("it has no address outside itself".to_owned());
    }
    if address.is_private() || shared {
        return Err(format!("its outside address {address} is a private one; there is another NAT before it"));
    }
    if special || address.is_loopback() || address.is_link_local() || address.is_multicast() {
        return Err(format!("its outside address {address} is none that others could dial"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLACE: Place = Place { gateway: Ipv4Addr::new(10, 0, 0, 1), own: Ipv4Addr::new(10, 0, 0, 2) };
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
    const TIMEOUT: Duration = Duration::from_secs(1);
    const UDP: Wish = Wish { transport: Transport::Udp, port: 43439 };
    const TCP: Wish = Wish { transport: Transport::Tcp, port: 43439 };

    /// A gateway of our own making, and the core before it.
    struct Desk {
        core: Gateway,
        start: Instant,
        now: Instant,
        /// When the box was switched on.
        born: Instant,
        pcp: bool,
        natpmp: bool,
        igd: bool,
        external: Ipv4Addr,
        /// PCP and NAT-PMP refuse mappings with this code.
        refuses: u8,
        /// UPnP refuses these orders with these codes, in turn.
        faults: VecDeque<u16>,
        control: &'static str,
        lifetime: u32,
        mute: bool,
        /// (transport, outside port, lifetime) of every mapping asked for.
        asked: Vec<(String, u16, u32)>,
        datagrams: usize,
        fetches: Vec<String>,
    }

    impl Desk {
        fn new(wishes: &[Wish]) -> Self {
            let now = Instant::now();
            Self {
                core: Gateway::new(wishes, TIMEOUT, &[7; 32], [1; 32]),
                start: now,
                now,
                born: now,
                pcp: false,
                natpmp: false,
                igd: false,
                external: OUTSIDE,
                refuses: 0,
                faults: VecDeque::new(),
                control: "/control",
                lifetime: LIFETIME,
                mute: false,
                asked: Vec::new(),
                datagrams: 0,
                fetches: Vec::new(),
            }
        }

        /// Goes on for a time; everything is answered at once.
        fn run(&mut self, time: Duration) -> Description {
            let end = self.now + time;
            let mut turns = 0;
            loop {
                while let Some(output) = self.core.poll_output() {
                    self.carry_out(output);
                }
                let Some(at) = self.core.poll_timeout().filter(|at| *at <= end) else { break };
                turns = if at > self.now { 0 } else { turns + 1 };
                assert!(turns < 100, "it wants to be woken without end");
                self.now = self.now.max(at);
                self.core.handle_timeout(self.now);
            }
            self.now = end;
            self.core.describe()
        }

        fn begin(&mut self) -> Description {
            self.core.set_place(Some(PLACE), self.now);
            self.run(Duration::from_millis(500))
        }

        fn carry_out(&mut self, output: Output) {
            match output {
                Output::Ask(question) => {
                    self.datagrams += 1;
                    if let Some(answer) = self.answer(&question).filter(|_| !self.mute) {
                        self.core.handle_datagram((PLACE.gateway, PMP_PORT).into(), &answer, self.now);
                    }
                }
                Output::Search(_) => {
                    self.datagrams += 1;
                    if self.igd && !self.mute {
                        self.found("10.0.0.1");
                    }
                }
                Output::Fetch { id, to, request } => {
                    assert_eq!(*to.ip(), PLACE.gateway, "nothing is fetched elsewhere");
                    let text = String::from_utf8(request).expect("text");
                    let reply = self.reply(&text);
                    self.core.handle_fetched(id, Ok(reply.as_bytes()), self.now);
                }
                Output::Changed => {}
            }
        }

        fn found(&mut self, host: &str) {
            let text = format!("HTTP/1.1 200 OK\r\nLocation: http://{host}:5000/root.xml\r\n\r\n");
            self.core.handle_datagram((PLACE.gateway, 1900).into(), text.as_bytes(), self.now);
        }

        fn answer(&mut self, question: &[u8]) -> Option<Vec<u8>> {
            let epoch = (self.now - self.born).as_secs() as u32;
            match question[0] {
                2 if self.pcp => {
                    let mut answer = question.to_vec();
                    answer[1] |= 0x80;
                    answer[3] = if answer.len() == 60 { self.refuses } else { 0 };
                    answer[8..12].copy_from_slice(&epoch.to_be_bytes());
                    answer[12..24].fill(0);
                    if answer.len() == 60 {
                        let lifetime = u32::from_be_bytes(answer[4..8].try_into().expect("four"));
                        answer[4..8].copy_from_slice(&lifetime.min(self.lifetime).to_be_bytes());
                        let outside = u16::from_be_bytes([answer[42], answer[43]]);
                        self.note(answer[36] == 17, outside, lifetime);
                        answer[44..].copy_from_slice(&self.external.to_ipv6_mapped().octets());
                    }
                    Some(answer)
                }
                2 if self.natpmp => Some(vec![0, 128, 0, 1, 0, 0, 0, 0]),
                0 if self.natpmp && question.len() == 2 => {
                    Some([&[0, 128, 0, 0][..], &epoch.to_be_bytes(), &self.external.octets()].concat())
                }
                0 if self.natpmp => {
                    let lifetime = u32::from_be_bytes(question[8..].try_into().expect("four"));
                    self.note(question[1] == 1, u16::from_be_bytes([question[6], question[7]]), lifetime);
                    let lifetime = lifetime.min(self.lifetime).to_be_bytes();
                    let head = [0, question[1] | 128, 0, self.refuses];
                    Some([&head[..], &epoch.to_be_bytes(), &question[4..8], &lifetime].concat())
                }
                _ => None,
            }
        }

        fn note(&mut self, udp: bool, outside: u16, lifetime: u32) {
            self.asked.push((if udp { "UDP" } else { "TCP" }.to_owned(), outside, lifetime));
        }

        fn reply(&mut self, request: &str) -> String {
            let action = request.lines().find_map(|line| line.strip_prefix("SOAPAction: "));
            let action = action.map_or("describe", |line| line.split(['#', '"']).nth(2).expect("an action"));
            self.fetches.push(action.to_owned());
            let within = |name: &str| {
                let (_, rest) = request.split_once(&format!("<{name}>")).expect("there");
                rest.split('<').next().expect("a value").to_owned()
            };
            let (status, body) = match action {
                "describe" => (
                    200,
                    format!(
                        "<root><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
                     <controlURL>{}</controlURL></service></root>",
                        self.control
                    ),
                ),
                "GetExternalIPAddress" => {
                    (200, format!("<a><NewExternalIPAddress>{}</NewExternalIPAddress></a>", self.external))
                }
                "AddPortMapping" => {
                    assert_eq!(within("NewInternalClient"), PLACE.own.to_string());
                    let number = |name| within(name).parse::<u32>().expect("a number");
                    self.note(
                        within("NewProtocol") == "UDP",
                        number("NewExternalPort") as u16,
                        number("NewLeaseDuration"),
                    );
                    match self.faults.pop_front() {
                        Some(code) => (500, format!("<e><errorCode>{code}</errorCode></e>")),
                        None => (200, "<ok/>".to_owned()),
                    }
                }
                _ => (200, "<ok/>".to_owned()),
            };
            format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
    }

    fn outsides(description: &Description) -> Vec<(Protocol, Transport, String)> {
        description.mappings.iter().map(|m| (m.protocol, m.transport, m.outside.to_string())).collect()
    }

    #[test]
    fn the_best_protocol_that_answers_is_asked_and_no_other() {
        for (pcp, natpmp, best) in
            [(true, true, Protocol::Pcp), (false, true, Protocol::NatPmp), (false, false, Protocol::Igd)]
        {
            let mut desk = Desk { pcp, natpmp, igd: true, ..Desk::new(&[UDP, TCP]) };
            let description = desk.begin();
            let both = [Transport::Udp, Transport::Tcp].map(|t| (best, t, "198.51.100.7:43439".to_owned()));
            assert_eq!(outsides(&description), both);
            assert_eq!((description.why.as_deref(), description.settled), (None, true));
            assert_eq!(desk.asked.len(), 2, "{:?}", desk.asked);
            assert_eq!(desk.fetches.is_empty(), best != Protocol::Igd);
            assert_eq!(description.udp().map(|addr| addr.port()), Some(43439));
        }
    }

    #[test]
    fn who_refuses_gives_way_to_the_next_and_all_are_named_when_nobody_is_left() {
        let mut desk = Desk { pcp: true, natpmp: true, igd: true, refuses: 2, ..Desk::new(&[UDP]) };
        assert_eq!(outsides(&desk.begin())[0].0, Protocol::Igd);
        let mut desk = Desk { pcp: true, natpmp: true, igd: true, refuses: 2, ..Desk::new(&[UDP]) };
        desk.faults = [606].into();
        let description = desk.begin();
        assert_eq!(description.mappings, []);
        let why = description.why.expect("a reason");
        for name in ["PCP: it does not allow it", "NAT-PMP: it is not allowed", "UPnP error 606"] {
            assert!(why.contains(name), "{why}");
        }
    }

    #[test]
    fn an_address_that_others_cannot_dial_is_no_mapping() {
        for external in
            ["0.0.0.0", "10.9.9.9", "100.64.0.1", "169.254.1.1", "127.0.0.1", "224.0.0.1", "255.255.255.255"]
        {
            for protocol in Protocol::ALL {
                let is = |other| protocol == other;
                let (pcp, natpmp, igd) = (is(Protocol::Pcp), is(Protocol::NatPmp), is(Protocol::Igd));
                let external = external.parse().expect("an address");
                let mut desk = Desk { pcp, natpmp, igd, external, ..Desk::new(&[UDP]) };
                desk.begin();
                let description = desk.run(TIMEOUT);
                assert_eq!(description.mappings, [], "{protocol:?}");
                assert!(description.why.is_some_and(|why| why.contains("outside")), "{protocol:?} {external}");
            }
        }
    }

    #[test]
    fn a_vain_search_ends_comes_again_ever_more_seldom_and_a_late_answer_is_taken() {
        let mut desk = Desk::new(&[UDP]);
        let description = desk.begin();
        assert_eq!((description.settled, &description.why), (false, &None), "there is time yet");
        let description = desk.run(TIMEOUT);
        assert!(description.settled && description.why.is_some_and(|why| why.contains("neither PCP")));
        let first = desk.datagrams;
        assert!((8..=16).contains(&first), "{first}");
        desk.run(Duration::from_secs(3600));
        let searches = desk.datagrams / first;
        assert!((6..=10).contains(&searches), "{searches} in an hour");
        // Nothing is being asked at this moment.
        desk.natpmp = true;
        let answer = desk.answer(&[0, 0]).expect("an answer");
        desk.core.handle_datagram((PLACE.gateway, PMP_PORT).into(), &answer, desk.now);
        assert_eq!(outsides(&desk.run(TIMEOUT))[0].0, Protocol::NatPmp);
    }

    #[test]
    fn nobody_but_the_gateway_is_believed() {
        let mut desk = Desk { pcp: true, mute: true, ..Desk::new(&[UDP]) };
        desk.begin();
        let question = pcp::ask_announce(PLACE.own);
        let answer = desk.answer(&question).expect("an answer");
        for from in [([10, 0, 0, 3], PMP_PORT), ([10, 0, 0, 1], 9)] {
            desk.core.handle_datagram(from.into(), &answer, desk.now);
        }
        assert!(!desk.core.standing.contains(&Standing::Answers));
        // A description elsewhere is not fetched, whoever says where it is.
        desk.found("10.0.0.3");
        assert!(!desk.core.standing.contains(&Standing::Answers));
        desk.core.handle_datagram((PLACE.gateway, PMP_PORT).into(), &answer, desk.now);
        assert!(desk.core.standing.contains(&Standing::Answers));
        // A mapping of another nonce, or one that nobody asked for.
        desk.run(Duration::from_millis(10));
        let mut granted = desk
            .answer(&pcp::ask_mapping((PLACE.own, [9; 12]), Transport::Udp, 43439, (OUTSIDE, 43439), 60))
            .expect("an answer");
        desk.core.handle_datagram((PLACE.gateway, PMP_PORT).into(), &granted, desk.now);
        assert_eq!(desk.core.describe().mappings, []);
        granted[24..36].copy_from_slice(&desk.core.entries[0].nonce);
        desk.core.handle_datagram((PLACE.gateway, PMP_PORT).into(), &granted, desk.now);
        assert_eq!(desk.core.describe().mappings.len(), 1);
    }

    #[test]
    fn a_control_place_on_another_machine_is_none() {
        let mut desk = Desk { igd: true, control: "http://10.0.0.3/control", ..Desk::new(&[UDP]) };
        desk.begin();
        let why = desk.run(TIMEOUT).why.expect("a reason");
        assert!(why.contains("names no service"), "{why}");
        assert!(desk.fetches.iter().all(|fetch| fetch == "describe"));
    }

    #[test]
    fn a_gateway_of_upnp_gets_what_it_can_do() {
        let mut desk = Desk { igd: true, ..Desk::new(&[UDP]) };
        desk.faults = [igd::ONLY_PERMANENT, igd::CONFLICT, igd::CONFLICT].into();
        let description = desk.begin();
        let lifetimes: Vec<u32> = desk.asked.iter().map(|(_, _, lifetime)| *lifetime).collect();
        assert_eq!(lifetimes, [IGD_LIFETIME, 0, 0, 0]);
        let outside = description.udp().expect("a mapping").port();
        assert!(outside != 43439 && outside == desk.asked[3].1, "{:?}", desk.asked);
        assert_eq!(description.mappings[0].until, None, "it has no end");
        desk.run(Duration::from_secs(u64::from(IGD_LIFETIME) / 2 + 1));
        assert_eq!(desk.asked.len(), 5, "and is looked after all the same");
        assert_eq!(desk.asked[4].1, outside);
    }

    #[test]
    fn mappings_are_renewed_at_half_their_life() {
        for (pcp, natpmp, life) in [(true, false, 600), (false, true, 600), (false, false, u64::from(IGD_LIFETIME))] {
            let mut desk = Desk { pcp, natpmp, igd: true, lifetime: 600, ..Desk::new(&[UDP]) };
            desk.begin();
            let half = Duration::from_secs(life / 2);
            desk.run(half - Duration::from_secs(2));
            assert_eq!(desk.asked.len(), 1);
            desk.run(Duration::from_secs(3));
            assert_eq!(desk.asked.len(), 2, "{pcp} {natpmp}");
            let description = desk.run(half * 20);
            assert_eq!((desk.asked.len(), description.mappings.len()), (22, 1));
        }
    }

    #[test]
    fn a_mapping_that_cannot_be_renewed_ends_with_its_life_and_comes_back_with_the_gateway() {
        let mut desk = Desk { pcp: true, lifetime: 600, ..Desk::new(&[UDP]) };
        desk.begin();
        desk.mute = true;
        assert_eq!(desk.run(Duration::from_secs(590)).mappings.len(), 1, "it still holds");
        let description = desk.run(Duration::from_secs(20));
        assert_eq!(description.mappings, []);
        assert!(description.why.is_some());
        desk.mute = false;
        assert_eq!(desk.run(Duration::from_secs(1200)).mappings.len(), 1);
    }

    #[test]
    fn a_gateway_whose_age_went_back_is_asked_again_and_others_are_not() {
        for pcp in [true, false] {
            let mut desk = Desk { pcp, natpmp: !pcp, ..Desk::new(&[UDP, TCP]) };
            desk.born = desk.now.checked_sub(Duration::from_secs(500)).expect("a past");
            desk.begin();
            desk.run(CHECK * 10);
            assert_eq!(desk.asked.len(), 2, "its age fits");
            desk.born = desk.now;
            desk.run(CHECK + Duration::from_secs(1));
            assert_eq!(desk.asked.len(), 4, "both again");
            // An announcement says it sooner; from elsewhere it says nothing.
            desk.born = desk.now;
            let mut announced = vec![2, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            announced.extend([0; 12]);
            if !pcp {
                announced = [&[0, 128, 0, 0, 0, 0, 0, 0][..], &OUTSIDE.octets()].concat();
            }
            desk.core.handle_announcement(([10, 0, 0, 3], PMP_PORT).into(), &announced, desk.now);
            desk.run(Duration::from_millis(100));
            assert_eq!(desk.asked.len(), 4);
            desk.core.handle_announcement((PLACE.gateway, PMP_PORT).into(), &announced, desk.now);
            assert_eq!(desk.run(Duration::from_millis(100)).mappings.len(), 2, "it goes on meanwhile");
            assert_eq!(desk.asked.len(), 6);
        }
    }

    #[test]
    fn a_notice_of_upnp_makes_the_mapping_again_and_many_do_so_once() {
        let mut desk = Desk { igd: true, ..Desk::new(&[UDP]) };
        desk.begin();
        for _ in 0..20 {
            let notice = b"NOTIFY * HTTP/1.1\r\nNTS: ssdp:alive\r\n\r\n";
            desk.core.handle_announcement((PLACE.gateway, 40000).into(), notice, desk.now);
        }
        assert_eq!(desk.run(Duration::from_secs(5)).mappings.len(), 1);
        assert_eq!(desk.asked.len(), 2);
    }

    #[test]
    fn at_the_end_everything_is_deleted() {
        for protocol in Protocol::ALL {
            let is = |other| protocol == other;
            let mut desk = Desk {
                pcp: is(Protocol::Pcp),
                natpmp: is(Protocol::NatPmp),
                igd: is(Protocol::Igd),
                ..Desk::new(&[UDP, TCP])
            };
            desk.begin();
            desk.asked.clear();
            desk.mute = true;
            desk.core.release(desk.now);
            desk.run(Duration::from_millis(10));
            if protocol != Protocol::Igd {
                assert!(!desk.core.is_released(), "nobody has said so");
                desk.mute = false;
                desk.run(Duration::from_millis(100));
                assert!(desk.asked.iter().all(|(_, _, lifetime)| *lifetime == 0), "{:?}", desk.asked);
                assert_eq!(desk.asked.len(), 4, "each again");
            } else {
                assert_eq!(desk.fetches[desk.fetches.len() - 2..], ["DeletePortMapping", "DeletePortMapping"]);
            }
            assert!(desk.core.is_released());
            assert_eq!(desk.core.poll_timeout(), None);
        }
    }

    #[test]
    fn another_gateway_has_mapped_nothing_yet_and_a_restarted_core_goes_on_with_its_own() {
        let mut desk = Desk { pcp: true, ..Desk::new(&[UDP]) };
        let before = desk.begin();
        let mut heir = Gateway::new(&[UDP], TIMEOUT, &[7; 32], [2; 32]);
        heir.resume(&before, desk.now);
        heir.set_place(Some(PLACE), desk.now);
        assert_eq!(heir.describe().mappings, before.mappings);
        assert_eq!(heir.entries[0].nonce, desk.core.entries[0].nonce, "the gateway knows it by that");
        let other = Place { gateway: Ipv4Addr::new(10, 0, 0, 254), ..PLACE };
        desk.core.set_place(Some(other), desk.now);
        let description = desk.core.describe();
        assert_eq!((description.mappings.len(), description.gateway), (0, Some(other.gateway)));
        desk.core.set_place(None, desk.now);
        assert!(desk.core.describe().settled, "nobody need wait");
        assert_eq!(desk.core.poll_timeout(), None);
        let mut heir = Gateway::new(&[UDP], TIMEOUT, &[7; 32], [2; 32]);
        heir.resume(&before, desk.now);
        heir.set_place(Some(other), desk.now);
        assert_eq!(heir.describe().mappings, []);
    }

    #[test]
    fn a_port_that_is_refused_beside_one_that_is_granted_is_named() {
        let mut desk = Desk { igd: true, ..Desk::new(&[UDP, TCP]) };
        desk.begin();
        desk.core.set_place(None, desk.now);
        desk.core.set_place(Some(PLACE), desk.now);
        // The second order of a fresh start.
        desk.faults = [].into();
        let mut granted = 0;
        while granted < 2 {
            while let Some(output) = desk.core.poll_output() {
                if matches!(&output, Output::Fetch { request, .. } if contains(request, b"#AddPortMapping")) {
                    granted += 1;
                    desk.faults = if granted == 2 { [606].into() } else { [].into() };
                }
                desk.carry_out(output);
            }
            desk.now = desk.core.poll_timeout().expect("it goes on");
            desk.core.handle_timeout(desk.now);
        }
        let description = desk.run(TIMEOUT);
        assert_eq!(outsides(&description).len(), 1);
        let why = description.why.expect("a reason");
        assert!(why.starts_with("TCP port 43439: ") && why.contains("606"), "{why}");
    }

    fn contains(haystack: &[u8], needle: &[u8]) -> bool {
        haystack.windows(needle.len()).any(|window| window == needle)
    }

    proptest! {
        #[test]
        fn a_gateway_out_of_its_mind_costs_no_more_than_its_mapping(
            moves in prop::collection::vec((0_u8..6, prop::collection::vec(any::<u8>(), 0..64), 0_u64..4000), 1..60),
            pcp: bool, natpmp: bool, igd: bool, refuses in 0_u8..3, lifetime in 0_u32..100,
        ) {
            let mut desk = Desk { pcp, natpmp, igd, refuses, lifetime, ..Desk::new(&[UDP, TCP]) };
            desk.core.set_place(Some(PLACE), desk.now);
            for (kind, bytes, wait) in moves {
                let from = (PLACE.gateway, if kind % 2 == 0 { PMP_PORT } else { 1900 }).into();
                match kind {
                    0 | 1 => desk.core.handle_datagram(from, &bytes, desk.now),
                    2 => desk.core.handle_announcement(from, &bytes, desk.now),
                    3 => desk.core.handle_fetched(desk.core.fetches, Ok(&bytes), desk.now),
                    4 => desk.born = desk.now,
                    _ => desk.mute = !desk.mute,
                }
                let before = desk.datagrams;
                desk.run(Duration::from_millis(wait));
                prop_assert!(desk.datagrams - before < 200);
            }
            prop_assert!(desk.now >= desk.start);
            desk.core.release(desk.now);
            desk.mute = false;
            desk.run(Duration::from_secs(30));
            prop_assert!(desk.core.is_released());
        }
    }
}
