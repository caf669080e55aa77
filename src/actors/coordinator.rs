//! Coordinator: owns the server's core.
//!
//! A restart reads the members back from the store and calls them: sessions are made anew in a round trip, and what
//! passes between clients notices nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use smol::channel::Sender;
use xtra::{Actor, Address, Context, Handler, Mailbox};

use super::client::{Ending, EventLog};
use super::datapath::count_handshake;
use super::ext::{Caster, Service, StopReason, call};
use super::store::Store;
use crate::config::{Network6, ServerConfig};
use crate::counters::{Counters, add};
use crate::ids::{Endpoint, NetworkId, UplinkId};
use crate::io::clock::unix_time;
use crate::io::uplinks::Uplinks;
use crate::logging;
use crate::messages::coordinator::{
    Invite, Kick, MemberControl, MemberInbound, NetworkDescription, Published, Reconfigure, Stored,
};
use crate::messages::relay::{Bind, Place};
use crate::messages::store::{Apply, Load};
use crate::proto::clock::ClockWatch;
use crate::proto::coordinator::{Coordinator as Core, Event, Output, Reply, Settings};
use crate::proto::crypto::{Secret32, Signer, Suites, blake2s};
use crate::proto::lease::{Order, Pool, PoolConfig, PoolError};
use crate::proto::link::{Node, no_psk};
use crate::proto::noise::Identity;
use crate::proto::records::{NetworkRecord, StoreOp};
use crate::proto::routes::own_networks;
use crate::view::MemberView;
use crate::wire::handshake::Hint;
use crate::wire::header::Kind;

/// How often what the status shows is renewed when nothing changes.
const REFRESH: Duration = Duration::from_secs(1);
/// Introductions that wait for their channel.
const HELD_MAX: usize = 4096;
/// How long the store may take to read everything.
const LOAD_DEADLINE: Duration = Duration::from_secs(30);

/// Held by the wiring, lent to the actors of a server.
pub struct ServerShared {
    /// As of the start.
    pub config: ServerConfig,
    /// The same with what has been taken over since.
    pub live: ArcSwap<ServerConfig>,
    /// Node key and signing seed.
    pub secrets: (Secret32, Secret32),
    pub members: Arc<ArcSwap<MemberView>>,
    pub uplinks: Uplinks,
    pub counters: Arc<Counters>,
    pub description: ArcSwap<Option<NetworkDescription>>,
    pub events: EventLog,
    /// What the gateway maps to us.
    pub gateway: super::upnp::GatewayCell,
    pub started: Instant,
    pub end: Sender<Ending>,
}

impl ServerShared {
    /// The port that says from where members are seen, if it could be had; 0 for none.
    fn second_port(&self) -> u16 {
        let has = self.uplinks.has(UplinkId::OBSERVER4) || self.uplinks.has(UplinkId::OBSERVER6);
        if has { self.config.nat_port } else { 0 }
    }
}

/// Whom the coordinator tells.
#[derive(Clone)]
pub struct CoordinatorCasts {
    pub store: Address<Store>,
    pub apply: Caster<Apply>,
    pub bind: Caster<Bind>,
    pub place: Caster<Place>,
}

/// The actor.
pub struct Coordinator {
    shared: Arc<ServerShared>,
    casts: CoordinatorCasts,
    core: Option<Core>,
    capacity: u64,
    network6: Option<ipnet::Ipv6Net>,
    waiting: BTreeMap<u64, Sender<Reply>>,
    /// Casts that found the store's mailbox full; they go first next time.
    unsent: Vec<Apply>,
    next_request: u64,
    /// The number of the last channel, and what waits until the sockets know it: an introduction that came before its
    /// channel would lose the first datagram.
    channels: u64,
    held: Vec<(u64, Endpoint, Vec<u8>)>,
    refresh_at: Instant,
    clock: ClockWatch,
    changed: bool,
    goodbye: bool,
}

/// The pool a configuration describes, in a network.
pub fn pool(config: &ServerConfig, network: NetworkId) -> Result<Pool, PoolError> {
    let network6 = match config.network6 {
        Network6::Auto => Some(ula(network)),
        Network6::None => None,
        Network6::Prefix(prefix) => Some(prefix),
    };
    let pins = pins(config);
    let order = if config.sequential { Order::Sequential } else { Order::Random };
    Pool::new(PoolConfig { network: config.network, network6, order, pins, network_id: network })
}

fn pins(config: &ServerConfig) -> BTreeMap<String, std::net::Ipv4Addr> {
    config.members.iter().filter_map(|pin| Some((pin.name.clone(), pin.address?))).collect()
}

fn rights(config: &ServerConfig) -> BTreeMap<String, u8> {
    config.members.iter().map(|pin| (pin.name.clone(), pin.rights)).collect()
}

/// A unique local prefix (RFC 4193) of the network's own: fd, 40 bits of a hash of its id, subnet 0, /64.
fn ula(network: NetworkId) -> ipnet::Ipv6Net {
    let hash = blake2s(&[b"eps1 ula", &network.0.to_le_bytes()]);
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&hash[..5]);
    ipnet::Ipv6Net::new(octets.into(), 64).expect("64 is a prefix length")
}

impl Coordinator {
    pub fn new(shared: Arc<ServerShared>, casts: CoordinatorCasts) -> Self {
        Self {
            shared,
            casts,
            core: None,
            capacity: 0,
            network6: None,
            waiting: BTreeMap::new(),
            unsent: Vec::new(),
            next_request: 0,
            channels: 0,
            held: Vec::new(),
            refresh_at: Instant::now(),
            clock: ClockWatch::default(),
            changed: false,
            goodbye: false,
        }
    }

    async fn load(&mut self) -> Result<Core, String> {
        let stored = call(&self.casts.store, Load, LOAD_DEADLINE).await.map_err(|error| error.to_string())??;
        let network = match stored.network {
            Some(network) => NetworkRecord { boots: network.boots + 1, ..network },
            None => NetworkRecord {
                id: NetworkId(u64::from_le_bytes(super::client::seed()[..8].try_into().expect("eight bytes"))),
                version: 0,
                epoch: 1,
                next_serial: 1,
                boots: 1,
            },
        };
        if !self.casts.apply.cast(Apply { id: u64::MAX, ops: vec![StoreOp::PutNetwork(network)] }) {
            return Err("the store is busy".into());
        }
        let config = &*self.shared.live.load_full();
        let pool = pool(config, network.id).map_err(|error| error.to_string())?;
        self.capacity = pool.capacity();
        self.network6 = pool.network6();
        let settings = Settings {
            open: config.open,
            rights: rights(config),
            prefix4: config.network.prefix_len(),
            prefix6: pool.network6().map_or(0, |net| net.prefix_len()),
            second_port: self.shared.second_port(),
        };
        let (secret, seed) = &self.shared.secrets;
        let identity = Identity::from_secret(secret.clone());
        let node = Node::new(identity, network.id, no_psk(), Suites::of_this_machine(), network.boots);
        let unix = unix_time().as_secs();
        let parts = (node, Signer::from_seed(seed), pool, settings);
        Ok(Core::new(parts, network, stored, (Instant::now(), unix), super::client::seed()))
    }

    /// Gives the core what the configuration says by now; members that are known may have got other rights in it.
    fn reconfigure(&mut self, now: Instant) {
        let config = self.shared.live.load_full();
        let Some(core) = &mut self.core else { return };
        if let Err(error) = core.reconfigure(config.open, rights(&config), pins(&config), now) {
            log::warn!("what the configuration says of members is not taken: {error}");
        }
        let own = own_networks(self.shared.config.network, self.network6);
        core.approve_routes(config.allow_routes.clone(), own, now);
        self.changed = true;
    }

    fn drain(&mut self, now: Instant) {
        self.unsent.retain_mut(|apply| {
            let apply = Apply { id: apply.id, ops: apply.ops.clone() };
            !self.casts.apply.cast(apply)
        });
        let Some(core) = &mut self.core else { return };
        let (mut sessions_changed, mut sends) = (false, Vec::new());
        let mut waits_for = None;
        while let Some(output) = core.poll_output() {
            match output {
                Output::Send { to, datagram } => match waits_for {
                    // Who asked asks again: what is too much may be lost.
                    Some(number) if self.held.len() < HELD_MAX => self.held.push((number, to, datagram)),
                    Some(_) => self.shared.counters.dropped(crate::counters::DropReason::MailboxFull),
                    None => sends.push((to, datagram)),
                },
                Output::Store { id, ops } => {
                    if !self.unsent.is_empty() || !self.casts.apply.cast(Apply { id, ops: ops.clone() }) {
                        self.unsent.push(Apply { id, ops });
                    }
                }
                Output::SessionsChanged => sessions_changed = true,
                Output::Channel { one, other } => {
                    self.channels += 1;
                    if self.casts.bind.cast(Bind { number: self.channels, one, other }) {
                        waits_for = Some(self.channels);
                    }
                }
                Output::Placed { member, endpoint } => {
                    self.casts.place.cast(Place { member, endpoint });
                }
                Output::Reply { request, reply } => {
                    if let Some(waiting) = self.waiting.remove(&request) {
                        // Who asked may have gone.
                        let _ = waiting.try_send(reply);
                    }
                }
                Output::Event(event) => {
                    self.changed = true;
                    let counters = &self.shared.counters;
                    match &event {
                        Event::Attached { .. } => {
                            add(&counters.handshakes_done, 1);
                            add(&counters.connections_established, 1);
                        }
                        Event::Joined { .. } => add(&counters.connections_established, 1),
                        Event::Left { .. } => add(&counters.connections_dropped, 1),
                        Event::Moved { .. }
                        | Event::Refused { .. }
                        | Event::Removed { .. }
                        | Event::RouteRejected { .. }
                        | Event::StoreFailed { .. } => {}
                    }
                    let (kind, text) = words(&event);
                    self.shared.events.say_limited(kind, text, now);
                }
            }
        }
        if sessions_changed {
            let sessions = core.sessions().collect();
            self.shared.members.store(Arc::new(MemberView { sessions }));
        }
        // Publish before sending: the answer may be there sooner than the next turn, and must find its session.
        for (to, datagram) in sends {
            count_handshake(&self.shared.counters, &datagram);
            self.shared.uplinks.send(to, &datagram);
        }
        if std::mem::take(&mut self.changed) {
            self.describe(now);
        }
    }

    fn describe(&self, now: Instant) {
        let Some(core) = &self.core else { return };
        let members = core.describe(now);
        let names = members
            .iter()
            .map(|member| {
                let id = member.record.key.node_id().0;
                (id[..8].try_into().expect("eight bytes"), member.record.name.clone())
            })
            .collect();
        self.shared.description.store(Arc::new(Some(NetworkDescription {
            network: core.network(),
            lease_free: self.capacity.saturating_sub(members.len() as u64),
            invitations: core.has_invitations(now),
            head: core.map_version(),
            network6: self.network6,
            members,
            names,
            events: self.shared.events.list(),
        })));
    }

    fn request(&mut self, reply: Sender<Reply>) -> u64 {
        self.next_request += 1;
        self.waiting.retain(|_, waiting| !waiting.is_closed());
        self.waiting.insert(self.next_request, reply);
        self.next_request
    }
}

/// The kind, for the limit of lines of a kind, and the line.
fn words(event: &Event) -> (&'static str, String) {
    match event {
        Event::Joined { name, addr, from } => ("new members", format!("{name} joined from {from}, leased {addr}")),
        Event::Attached { name, from } => ("connected members", format!("{name} connected from {from}")),
        Event::Moved { name, from } => ("moved members", format!("{name} speaks from {from}")),
        Event::Left { name, why } => ("members that left", format!("{name} left: {why}")),
        Event::Refused { name, why } => ("refused members", format!("{name} was refused: {why}")),
        Event::RouteRejected { name, subnet, why } => {
            ("routes not published", format!("{name} would publish {subnet}, and may not: {why}"))
        }
        Event::Removed { name } => ("removed members", format!("{name} was removed; its lease is free")),
        Event::StoreFailed { why } => ("failures of the store", format!("the store failed: {why}")),
    }
}

impl Actor for Coordinator {
    type Stop = StopReason;

    async fn started(&mut self, _: &Mailbox<Self>) -> Result<(), StopReason> {
        let core = self.load().await.map_err(StopReason::Failed)?;
        self.core = Some(core);
        self.reconfigure(Instant::now());
        // Sessions of a core before this one are void: who uses them is told so, and makes new ones.
        self.shared.members.store(Arc::default());
        self.drain(Instant::now());
        Ok(())
    }

    async fn stopped(mut self) -> StopReason {
        if self.goodbye {
            if let Some(core) = &mut self.core {
                core.goodbye();
            }
            self.drain(Instant::now());
        }
        StopReason::Requested
    }
}

super::ext::answers_pings!(Coordinator);

impl Service for Coordinator {
    const NAME: &'static str = "coordinator";

    fn next_timeout(&self) -> Option<Instant> {
        let core = self.core.as_ref().and_then(Core::poll_timeout);
        [core, Some(self.refresh_at)].into_iter().flatten().min()
    }

    fn on_timeout(&mut self, now: Instant) {
        if let Some(core) = &mut self.core {
            core.handle_timeout(now);
        }
        if now >= self.refresh_at {
            self.refresh_at = now + REFRESH;
            self.shared.events.summarize(now);
            logging::summarize(now);
            if let Some(jump) = self.clock.look(now, unix_time()) {
                self.shared.events.say(jump.to_string());
            }
            self.changed = true;
        }
    }

    fn settle(&mut self, now: Instant) {
        self.drain(now);
    }

    fn stopping(&mut self, reason: &StopReason) {
        self.goodbye = matches!(reason, StopReason::Requested);
    }
}

impl Handler<MemberInbound> for Coordinator {
    type Return = ();

    async fn handle(&mut self, MemberInbound { from, datagram }: MemberInbound, _: &mut Context<Self>) {
        let Some(core) = &mut self.core else { return };
        let now = Instant::now();
        let result = if Kind::of(&datagram) == Some(Kind::Hint) {
            Hint::parse(&datagram).map(|hint| {
                core.handle_hint(hint, now);
            })
        } else {
            core.handle_handshake(from, &datagram, now)
        };
        if let Err(reason) = result {
            self.shared.counters.dropped(reason);
        }
    }
}

impl Handler<MemberControl> for Coordinator {
    type Return = ();

    async fn handle(&mut self, MemberControl { session, from, plain }: MemberControl, _: &mut Context<Self>) {
        let Some(core) = &mut self.core else { return };
        if let Err(reason) = core.handle_control(&session, from, &plain, Instant::now()) {
            self.shared.counters.dropped(reason);
        }
    }
}

impl Handler<Stored> for Coordinator {
    type Return = ();

    async fn handle(&mut self, Stored { id, result }: Stored, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            core.handle_stored(id, result, Instant::now());
        }
    }
}

impl Handler<Published> for Coordinator {
    type Return = ();

    async fn handle(&mut self, Published(number): Published, _: &mut Context<Self>) {
        let uplinks = &self.shared.uplinks;
        self.held.retain(|(waits_for, to, datagram)| {
            let known = *waits_for <= number;
            if known {
                uplinks.send(*to, datagram);
            }
            !known
        });
    }
}

impl Handler<Invite> for Coordinator {
    type Return = ();

    async fn handle(&mut self, Invite { expires_unix, uses, reply }: Invite, _: &mut Context<Self>) {
        let request = self.request(reply);
        if let Some(core) = &mut self.core {
            core.invite(request, expires_unix, uses);
        }
    }
}

impl Handler<Reconfigure> for Coordinator {
    type Return = ();

    async fn handle(&mut self, Reconfigure: Reconfigure, _: &mut Context<Self>) {
        self.reconfigure(Instant::now());
    }
}

impl Handler<Kick> for Coordinator {
    type Return = ();

    async fn handle(&mut self, Kick { name, reply }: Kick, _: &mut Context<Self>) {
        let request = self.request(reply);
        if let Some(core) = &mut self.core {
            core.kick(request, &name);
        }
    }
}
