//! ServerLink: owns the conversation with the server, resolves its names, and watches the machine's addresses.
//!
//! A restart loses the session with the server, which is made anew in a round trip; peers notice nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;
use smol::channel::Sender;
use smol::future;
use xtra::{Actor, Context, Handler, Mailbox};

use super::client::{ClientShared, Ending, SavedNetwork, seed};
use super::datapath::count_handshake;
use super::desk::WriteDesk;
use super::ext::{Caster, Service, StopReason};
use super::lookups::Lookups;
use super::routes::own_offer;
use super::uplink_keeper::ports_at;
use crate::counters::{DropReason, add};
use crate::ids::{Endpoint, Route, UplinkId};
use crate::io::follow::Following;
use crate::io::holes::send_from_new_socket;
use crate::io::names::resolve;
use crate::io::netlink::{Netlink, NetlinkError};
use crate::io::surroundings::{Change, Surroundings};
use crate::logging;
use crate::messages::peer_table::{self, FromServer, Joined, OwnNat, ServerPlace, WaysChanged};
use crate::messages::routes::TableCame;
use crate::messages::server_link::{
    Connected, MapAt, MappingChanged, Offer, OwnCandidates, OwnStats, Release, Resolved, SayToServer, ServerControl,
    ServerInbound, UnderlayChanged,
};
use crate::messages::tap_reader::Configure;
use crate::messages::tcp_dial::{Connect, Redial};
use crate::proto::crypto::Trust;
use crate::proto::peers::{is_dialable, leased_networks};
use crate::proto::server_link::{Output, Pinned, Refusal, ServerLink as Core, join};
use crate::view::{SelfView, ServerView};
use crate::wire::cert::{CERT_LEN, Certificate};
use crate::wire::control::{CANDIDATES_MAX, Candidate, CandidateKind, Control};

/// Addresses that all names of the server may stand for together.
const ENDPOINTS_MAX: usize = 64;
/// Changes of interfaces are acted on at once, and then no more often than this.
const SETTLE: Duration = Duration::from_millis(200);
/// After a look at the networks, so many times as long nothing is looked at: a router has many routes, and they change.
const LOOK_PAUSE: u32 = 5;
/// We look this often if nothing is told: the ways to peers that came since are noted, should they change later.
const LOOK_ANYWAY: Duration = Duration::from_secs(60);
/// Peers whose ways are watched; of more, the others fall silent before they are left.
const WATCHED_PEERS: usize = 64;

/// Whom the server link tells.
#[derive(Clone)]
pub struct ServerLinkCasts {
    pub joined: Caster<Joined>,
    pub from_server: Caster<FromServer>,
    pub place: Caster<ServerPlace>,
    pub candidates: Caster<peer_table::OwnCandidates>,
    pub nat: Caster<OwnNat>,
    pub configure: Caster<Configure>,
    pub uplinks: Caster<WaysChanged>,
    /// `None` where TCP is not to be used.
    pub connect: Option<(Caster<Connect>, Caster<Redial>)>,
    pub table: Caster<TableCame>,
    /// To ourselves, for what tasks find out.
    pub own: (Caster<Resolved>, Caster<OwnCandidates>, Caster<UnderlayChanged>),
}

/// The actor.
pub struct ServerLink {
    shared: Arc<ClientShared>,
    casts: ServerLinkCasts,
    core: Core,
    released: Option<Sender<()>>,
    published: (bool, Option<Endpoint>),
    endpoints: Vec<Endpoint>,
    /// The TCP connections that there should be.
    connect: Vec<SocketAddr>,
    lookups: Lookups,
    said_waiting: bool,
    said_unresolved: bool,
    heard_ms: Option<u64>,
    tasks: Vec<smol::Task<()>>,
    /// The server has been there since this start.
    attached_once: bool,
    /// As it is on disk, or will be in a moment.
    saved: Option<SavedNetwork>,
    desk: WriteDesk,
    /// The addresses of our interfaces.
    hosts: Vec<Candidate>,
    goodbye: bool,
}

impl ServerLink {
    pub fn new(shared: Arc<ClientShared>, casts: ServerLinkCasts) -> Self {
        let now = Instant::now();
        let saved = SavedNetwork::load(&shared.state).ok().flatten();
        let pinned = saved.as_ref().and_then(SavedNetwork::pinned);
        let line = shared.config.join.as_ref();
        // A line for another server means another network; one for the pinned server is a list of addresses, and an
        // invitation in case the server does not know us any more.
        let joining = line.filter(|line| {
            pinned.is_none_or(|pinned| crate::wire::join::fingerprint(&pinned.server) != line.fingerprint)
        });
        let pinned = pinned.filter(|_| joining.is_none());
        let network = pinned.map_or(crate::ids::NetworkId(0), |pinned| pinned.network);
        let node = shared.node(network);
        let contact = line.map(|line| join(line.fingerprint, line.token.as_ref()));
        let mut core = Core::new(node, shared.config.name.clone(), pinned, contact, now, seed());
        if pinned.is_some()
            && let Some((certificate, _)) = saved.as_ref().and_then(SavedNetwork::lease)
        {
            core.set_certificate(certificate);
        }
        let mut connect = Vec::new();
        if casts.connect.is_some() {
            core.allow_tcp();
            // What a life before this one spoke over is still open.
            let last = shared.views.server.load().endpoint.filter(|endpoint| !endpoint.is_udp());
            connect.extend(last.map(|endpoint| endpoint.addr));
            connect.iter().for_each(|addr| core.resume_tcp(*addr, now));
        }
        let (have, list) = (shared.routes.load().table.version, own_offer(&shared));
        core.set_offer(Control::RouteOffer { have, list });
        let lookups = Lookups::new(shared.config.servers.len());
        Self {
            shared,
            casts,
            core,
            connect,
            released: None,
            published: (false, None),
            endpoints: Vec::new(),
            lookups,
            said_waiting: false,
            said_unresolved: false,
            heard_ms: None,
            tasks: Vec::new(),
            attached_once: false,
            saved,
            desk: WriteDesk::default(),
            hosts: Vec::new(),
            goodbye: false,
        }
    }

    fn drain(&mut self, now: Instant) {
        let (mut changed, mut sends) = (false, Vec::new());
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send { to, datagram } => sends.push((to, datagram)),
                Output::SessionsChanged => changed = true,
                Output::Pinned(pinned) => self.pin(&pinned),
                Output::Leased { certificate, epoch, name } => self.leased(&certificate, epoch, &name, now),
                Output::Attached(endpoint) => {
                    (changed, self.attached_once) = (true, true);
                    self.casts.place.cast(ServerPlace(Some(endpoint)));
                    let text = format!("connected to the server at {endpoint}");
                    self.shared.events.say_limited("connections to the server", text, now);
                }
                Output::Suspected => self.resolve(now),
                Output::Detached => {
                    changed = true;
                    self.casts.place.cast(ServerPlace(None));
                    let text = "the server does not answer; what is direct goes on without it".into();
                    self.shared.events.say_limited("silences of the server", text, now);
                }
                Output::Connect(wanted) => {
                    self.connect = wanted;
                    self.wish();
                }
                Output::Passed(part @ Control::RouteTable { .. }) => drop(self.casts.table.cast(TableCame(part))),
                Output::Passed(message) => {
                    self.casts.from_server.cast(FromServer(message));
                }
                Output::Nat(report) => {
                    self.shared.nat.store(Arc::new(report.clone()));
                    self.casts.nat.cast(OwnNat(report));
                    self.tell_candidates();
                }
                Output::SendFresh { to, datagram } => {
                    if let Err(error) = send_from_new_socket(to.addr, &datagram) {
                        log::debug!("asking {to} from a new socket: {error}");
                    }
                }
                Output::Observed(addr) => {
                    logging::limited(now, Level::Debug, "own addresses", format_args!("the server sees us at {addr}"));
                }
                Output::Refused(refusal) => self.refused(&refusal, now),
                Output::Released => {
                    // Whoever hears it removes the file of the lease, which is not to be written after that. At once where
                    // that can be: the word that we are no member any more is on its way, and would end the node.
                    if let Some(released) = self.released.take() {
                        let is_clear = self.desk.is_clear();
                        let written = self.desk.cleared();
                        // Nobody waits any more if this fails.
                        let tell = move || _ = released.try_send(());
                        if is_clear {
                            tell();
                        } else {
                            self.tasks.push(smol::spawn(async move {
                                written.await;
                                tell();
                            }));
                        }
                    }
                }
            }
        }
        let heard = self.core.heard().map(|heard| self.shared.views.epoch.ms(heard));
        let place = (self.core.is_attached(), self.core.endpoint());
        if changed || place != self.published || heard != self.heard_ms {
            self.published = place;
            self.heard_ms = heard;
            self.publish();
        }
        // Publish before sending: the answer may be there sooner than the next turn, and must find its session.
        for (to, datagram) in sends {
            count_handshake(&self.shared.views.counters, &datagram);
            self.shared.uplinks.send(to, &datagram);
        }
        if self.core.is_unanswered(now) && !std::mem::replace(&mut self.said_waiting, true) {
            self.shared.events.say(format!(
                "no answer from the server yet ({}{}); still trying. Is it running, and is its UDP port open?",
                self.tried(),
                if self.casts.connect.is_some() { "; TCP to the same port" } else { "" }
            ));
        }
    }

    /// Says which connections there should be.
    fn wish(&self) {
        if let Some((connect, _)) = &self.casts.connect {
            connect.cast(Connect(self.connect.clone()));
        }
    }

    fn publish(&self) {
        let mut endpoints = self.endpoints.clone();
        if self.casts.connect.is_some() {
            endpoints.extend(self.endpoints.iter().map(|endpoint| Endpoint::tcp(endpoint.addr)));
        }
        endpoints.extend(self.published.1);
        let counters = &self.shared.views.counters;
        match (self.shared.views.server.load().attached, self.published.0) {
            (false, true) => add(&counters.connections_established, 1),
            (true, false) => add(&counters.connections_dropped, 1),
            (false, false) | (true, true) => {}
        }
        self.shared.views.server.store(Arc::new(ServerView {
            sessions: self.core.sessions().collect(),
            endpoints,
            attached: self.published.0,
            endpoint: self.published.1,
            heard_ms: self.heard_ms,
        }));
    }

    /// Waits for the disk: from here on the invitation is used up, and this first contact has nobody else to hold up.
    fn pin(&mut self, pinned: &Pinned) {
        let saved = self.saved.insert(SavedNetwork::new(pinned, &self.shared.config.servers));
        self.shared.pinned.store(Arc::new(Some(*pinned)));
        if let Err(error) = saved.save(&self.shared.state) {
            log::warn!("what the network is cannot be written down ({error}); the next start will need an invitation");
        }
    }

    fn leased(&mut self, certificate: &[u8; CERT_LEN], epoch: u64, name: &str, now: Instant) {
        let Some(pinned) = *self.shared.pinned.load_full() else { return };
        let known = self.saved.as_ref().and_then(SavedNetwork::lease).map_or(0, |(_, epoch)| epoch);
        let mut trust = Trust::new(pinned.network, pinned.signer, epoch.max(known));
        let Ok(parsed) = trust.check(certificate) else {
            let text = format_args!("the server sent a certificate that its own key does not prove");
            logging::limited(now, Level::Warn, "unproven certificates", text);
            return;
        };
        if parsed.key != self.shared.key {
            return;
        }
        let saved = self.saved.get_or_insert_with(|| SavedNetwork::new(&pinned, &self.shared.config.servers));
        if !self.shared.config.servers.is_empty() {
            saved.servers = self.shared.config.servers.iter().map(ToString::to_string).collect();
        }
        saved.set_lease(certificate, trust.epoch(), name);
        let (saved, shared) = (saved.clone(), self.shared.clone());
        self.desk.put(move || {
            if let Err(error) = saved.save(&shared.state) {
                let text = format_args!("the lease cannot be written down: {error}");
                logging::limited(now, Level::Warn, "unsaved leases", text);
            }
        });
        self.casts.joined.cast(Joined { pinned, certificate: *certificate, epoch: trust.epoch() });
        self.take_lease(&parsed, name, now);
    }

    fn take_lease(&self, certificate: &Certificate, name: &str, now: Instant) {
        let known = self.shared.lease.load_full();
        let same = known
            .as_ref()
            .is_some_and(|old| (old.ip4, old.mac, old.ip6) == (certificate.ip4, certificate.mac, certificate.ip6));
        self.shared.name.store(Arc::new(name.to_owned()));
        publish_lease(&self.shared, certificate);
        self.casts.configure.cast(Configure);
        if !same {
            let six = certificate.ip6.map(|ip6| format!(" and {ip6}/{}", certificate.prefix6)).unwrap_or_default();
            let text = format!("this machine is {name:?} at {}/{}{six}", certificate.ip4, certificate.prefix4);
            self.shared.events.say_limited("leases", text, now);
        }
    }

    fn refused(&mut self, refusal: &Refusal, now: Instant) {
        let text = refusal.to_string();
        self.shared.events.say_limited("refusals by the server", text.clone(), now);
        let fatal = match refusal {
            // Anybody on the way could say so: peers stay reachable, and the server is asked again.
            Refusal::NotAMember => false,
            // Somebody sits there and waits for this join line; nothing has been built on it yet.
            Refusal::Token => !self.attached_once,
            // Of several addresses another may be the right one.
            Refusal::OtherServer => !self.attached_once && self.endpoints.len() < 2,
            // With a lease in hand the network goes on; without one there is nothing to do here.
            Refusal::Lease { .. } => self.shared.lease.load().is_none(),
        };
        if fatal {
            let _ = self.shared.end.try_send(Ending::Failed(text));
        }
    }

    /// Looks up every name, side by side: one that takes long keeps nobody waiting.
    fn resolve(&mut self, now: Instant) {
        let (servers, tell) = (&self.shared.config.servers, &self.casts.own.0);
        self.lookups.begin(now, |place| {
            let (server, tell) = (servers[place].clone(), tell.clone());
            smol::spawn(async move {
                let found = resolve(&server.host, server.port).await;
                tell.cast(Resolved { place, found });
            })
        });
    }

    /// Takes what a name stands for, and tries it at once. When all names have been looked up, says which failed.
    fn resolved(&mut self, Resolved { place, found }: Resolved, now: Instant) {
        let is_last = self.lookups.take(place, found, now);
        let addresses = self.lookups.iter().flat_map(|lookup| &lookup.addresses);
        let mut all: Vec<Endpoint> = addresses.copied().map(Endpoint::udp).collect();
        all.sort_by_key(|endpoint| endpoint.uplink);
        all.truncate(ENDPOINTS_MAX);
        if !all.is_empty() {
            self.endpoints.clone_from(&all);
            self.core.set_servers(all, now);
            self.publish();
        }
        if !is_last {
            return;
        }
        let servers = self.shared.config.servers.iter().zip(self.lookups.iter());
        let failed: Vec<_> = servers
            .filter_map(|(server, lookup)| Some(format!("{}: {}", server.host, lookup.error.as_ref()?)))
            .collect();
        if failed.is_empty() {
            return;
        }
        let why = failed.join("; ");
        let text = if self.endpoints.is_empty() {
            format!("the server's name cannot be resolved ({why}); check the name and this machine's DNS")
        } else {
            format!("a server's name cannot be resolved ({why}); the others are tried")
        };
        // An answer that got lost may be the one that matters.
        let is_final = failed.len() == self.shared.config.servers.len() && self.endpoints.is_empty();
        if is_final && self.shared.pinned.load().is_none() {
            let _ = self.shared.end.try_send(Ending::Failed(text));
        } else if !std::mem::replace(&mut self.said_unresolved, true) {
            self.shared.events.say(text);
        }
    }

    /// Every server and what became of it, for somebody who wonders why none answers.
    fn tried(&self) -> String {
        let servers = self.shared.config.servers.iter().zip(self.lookups.iter());
        let tried = servers.map(|(server, lookup)| {
            let to: Vec<_> = lookup.addresses.iter().map(ToString::to_string).collect();
            match &lookup.error {
                Some(error) if to.is_empty() => format!("{}: {error}", server.host),
                None if to.is_empty() && lookup.is_under_way() => format!("{}: still being looked up", server.host),
                Some(_) | None if to.len() == 1 && lookup.addresses[0].ip().to_string() == server.host => {
                    format!("UDP to {}", to[0])
                }
                Some(_) | None => format!("UDP to {}: {}", server.host, to.join(" and ")),
            }
        });
        tried.collect::<Vec<_>>().join(", ")
    }

    /// Follows the machine's addresses and routes; what it finds comes back as messages.
    fn watch(&mut self) {
        let (tell, changed, shared) = (self.casts.own.1.clone(), self.casts.own.2.clone(), self.shared.clone());
        let mut network = Following::begin(Duration::ZERO);
        self.tasks.push(smol::spawn(async move {
            let mut last: Option<Surroundings> = None;
            let mut netlink = network.changed().await;
            loop {
                let begun = Instant::now();
                let looked = look(&netlink, &shared).await.map(|seen| {
                    add(&shared.views.counters.network_looks, 1);
                    let change = last.as_ref().and_then(|last| seen.change_since(last));
                    let moved = change.map(|change| UnderlayChanged { moved: change == Change::Ways });
                    let is_told = tell.cast(OwnCandidates(gather(&seen, &shared)))
                        && moved.is_none_or(|moved| changed.cast(moved));
                    // What was not told yet is a change at the next look, too.
                    if is_told {
                        last = Some(seen);
                    }
                    is_told
                });
                network.looked(looked);
                smol::Timer::after(SETTLE.max(begun.elapsed() * LOOK_PAUSE)).await;
                let sockets = async {
                    shared.uplinks.changed().await;
                    netlink.clone()
                };
                let anyway = async {
                    smol::Timer::after(LOOK_ANYWAY).await;
                    netlink.clone()
                };
                let news = future::or(network.changed(), sockets);
                netlink = future::or(news, anyway).await;
            }
        }));
    }

    /// Our own addresses, for the server and for peers: what the gateway maps to us, then those of our interfaces.
    fn tell_candidates(&mut self) {
        let mapped = self.shared.gateway.load().udp().map(SocketAddr::V4);
        let mapped = mapped.filter(|_| self.shared.config.direct);
        let mapped = mapped.map(|addr| Candidate { kind: CandidateKind::Mapped, addr });
        let list: Vec<Candidate> = mapped.into_iter().chain(self.hosts.iter().copied()).collect();
        self.core.set_candidates(list.clone());
        // The server sees for itself where we are; peers that meet us without it do not.
        let nat = self.shared.nat.load();
        let seen = nat.observed.first().map(|addr| Candidate { kind: CandidateKind::Observed, addr: *addr });
        let next = nat.predicted.map(|addr| Candidate { kind: CandidateKind::Predicted, addr });
        let beyond = seen.into_iter().chain(next).filter(|beyond| list.iter().all(|own| own.addr != beyond.addr));
        let list: Vec<Candidate> = beyond.chain(list.iter().copied()).take(CANDIDATES_MAX).collect();
        self.shared.candidates.store(Arc::new(list.clone()));
        self.casts.candidates.cast(peer_table::OwnCandidates(list));
    }
}

/// Publishes the lease for the TAP reader and the data path.
pub fn publish_lease(shared: &ClientShared, certificate: &Certificate) {
    shared.lease.store(Some(Arc::new(certificate.clone())));
    shared.views.own.store(Arc::new(SelfView {
        mac: Some(certificate.mac),
        rights: certificate.rights,
        ip4: Some(certificate.ip4),
        ip6: certificate.ip6,
        overlay: leased_networks(certificate),
    }));
}

async fn look(netlink: &Netlink, shared: &ClientShared) -> Result<Surroundings, NetlinkError> {
    let device = shared.slot.get().map(|tap| tap.ifindex());
    let lease = shared.lease.load_full();
    let overlay = lease.as_deref().map(leased_networks).unwrap_or_default();
    let mut to: Vec<_> = shared.views.server.load().endpoints.iter().map(|endpoint| endpoint.addr.ip()).collect();
    let peers = shared.views.peers.load_full();
    // Those by sockets of an uplink of its own leave by that, whatever the routes are.
    let usual = |route: &Route| route.is_direct() && [UplinkId::UDP4, UplinkId::UDP6].contains(&route.endpoint.uplink);
    let direct = peers.peers.values().filter_map(|peer| Some(peer.handle.outlet().as_deref()?.route)).filter(usual);
    to.extend(direct.map(|route| route.endpoint.addr.ip()).take(WATCHED_PEERS));
    Surroundings::look(netlink, device, &overlay, to.into_iter()).await
}

fn gather(seen: &Surroundings, shared: &ClientShared) -> Vec<Candidate> {
    if !shared.config.lan || !shared.config.direct {
        return Vec::new();
    }
    let lease = shared.lease.load_full();
    let overlay = lease.as_deref().map(leased_networks).unwrap_or_default();
    let mut list: Vec<Candidate> = seen
        .addresses()
        .flat_map(|address| {
            let ports = ports_at(address, &shared.config.uplinks, &shared.uplinks);
            ports.into_iter().map(move |port| SocketAddr::new(address.addr, port))
        })
        .filter(|addr| is_dialable(*addr, &overlay))
        .map(|addr| Candidate { kind: CandidateKind::Host, addr })
        .collect();
    list.sort();
    list.dedup();
    list.truncate(CANDIDATES_MAX - 2);
    list
}

impl Actor for ServerLink {
    type Stop = StopReason;

    async fn started(&mut self, _: &Mailbox<Self>) -> Result<(), StopReason> {
        self.wish();
        self.resolve(Instant::now());
        self.watch();
        Ok(())
    }

    async fn stopped(mut self) -> StopReason {
        if self.goodbye {
            self.core.goodbye();
            self.drain(Instant::now());
        }
        self.desk.cleared().await;
        StopReason::Requested
    }
}

super::ext::answers_pings!(ServerLink);

impl Service for ServerLink {
    const NAME: &'static str = "server_link";

    fn next_timeout(&self) -> Option<Instant> {
        [self.core.poll_timeout(), self.lookups.poll_timeout()].into_iter().flatten().min()
    }

    fn on_timeout(&mut self, now: Instant) {
        if self.core.poll_timeout().is_some_and(|at| now >= at) {
            self.core.handle_timeout(now);
        }
        if self.lookups.poll_timeout().is_some_and(|at| now >= at) {
            if self.core.is_attached() {
                self.lookups.put_off(now);
            } else {
                self.resolve(now);
            }
        }
    }

    fn settle(&mut self, now: Instant) {
        self.drain(now);
        self.tasks.retain(|task| !task.is_finished());
    }

    fn stopping(&mut self, reason: &StopReason) {
        self.goodbye = matches!(reason, StopReason::Requested);
    }
}

impl Handler<ServerInbound> for ServerLink {
    type Return = ();

    async fn handle(&mut self, ServerInbound { from, datagram }: ServerInbound, _: &mut Context<Self>) {
        if let Err(reason) = self.core.handle_handshake(from, &datagram, Instant::now()) {
            self.shared.views.counters.dropped(reason);
        }
    }
}

impl Handler<ServerControl> for ServerLink {
    type Return = ();

    async fn handle(&mut self, ServerControl { session, from, plain }: ServerControl, _: &mut Context<Self>) {
        if let Err(reason) = self.core.handle_control(&session, from, &plain, Instant::now()) {
            self.shared.views.counters.dropped(reason);
        }
    }
}

impl Handler<SayToServer> for ServerLink {
    type Return = ();

    async fn handle(&mut self, SayToServer(message): SayToServer, _: &mut Context<Self>) {
        if self.core.is_attached() {
            self.core.say(&message);
            if matches!(message, Control::PeerLookup { .. }) {
                self.core.relay_is_silent(Instant::now());
            }
        } else {
            self.shared.views.counters.dropped(DropReason::Unreachable);
        }
    }
}

impl Handler<MapAt> for ServerLink {
    type Return = ();

    async fn handle(&mut self, MapAt(version): MapAt, _: &mut Context<Self>) {
        self.core.set_map_version(version);
    }
}

impl Handler<Resolved> for ServerLink {
    type Return = ();

    async fn handle(&mut self, resolved: Resolved, _: &mut Context<Self>) {
        self.resolved(resolved, Instant::now());
    }
}

impl Handler<OwnCandidates> for ServerLink {
    type Return = ();

    async fn handle(&mut self, OwnCandidates(list): OwnCandidates, _: &mut Context<Self>) {
        self.hosts = list;
        self.tell_candidates();
    }
}

impl Handler<UnderlayChanged> for ServerLink {
    type Return = ();

    async fn handle(&mut self, UnderlayChanged { moved }: UnderlayChanged, _: &mut Context<Self>) {
        let now = Instant::now();
        let what =
            if moved { "the ways out of this machine have changed" } else { "this machine's addresses have changed" };
        logging::limited(now, Level::Info, "changes of networks", format_args!("{what}: every path is tried anew"));
        // The server first: the relay carries what peers are told once it knows us again.
        self.core.uplinks_changed(now);
        self.drain(now);
        self.casts.uplinks.cast(WaysChanged { moved });
        if let Some((_, redial)) = &self.casts.connect {
            redial.cast(Redial);
        }
        if moved && !self.core.is_attached() {
            self.resolve(now);
        }
    }
}

impl Handler<Connected> for ServerLink {
    type Return = ();

    async fn handle(&mut self, Connected(open): Connected, _: &mut Context<Self>) {
        let missing = self.connect.iter().any(|wanted| !open.contains(wanted));
        let surplus = open.iter().any(|open| !self.connect.contains(open));
        self.core.set_connections(open, Instant::now());
        if missing || surplus {
            // Who keeps them may have been restarted, or have missed what we said last.
            self.wish();
        }
    }
}

impl Handler<MappingChanged> for ServerLink {
    type Return = ();

    async fn handle(&mut self, _: MappingChanged, _: &mut Context<Self>) {
        self.tell_candidates();
    }
}

impl Handler<OwnStats> for ServerLink {
    type Return = ();

    async fn handle(&mut self, OwnStats(stats): OwnStats, _: &mut Context<Self>) {
        self.core.set_stats(stats);
    }
}

impl Handler<Offer> for ServerLink {
    type Return = ();

    async fn handle(&mut self, Offer(offer): Offer, _: &mut Context<Self>) {
        self.core.set_offer(offer);
    }
}

impl Handler<Release> for ServerLink {
    type Return = ();

    async fn handle(&mut self, Release(released): Release, _: &mut Context<Self>) {
        self.released = Some(released);
        self.core.release(Instant::now());
    }
}
