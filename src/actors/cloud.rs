//! Cloud: owns the conversation of an ethcloud, looks up its names, and publishes its peers and stations.
//!
//! A restart loses nothing but addresses that were being tried: peers and stations are taken up again from the views,
//! and frames flow on.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use xtra::{Actor, Context, Handler, Mailbox};

use super::client::seed;
use super::cloud_bridge::BridgeState;
use super::ext::{Caster, Service, StopReason};
use crate::counters::{Counters, add};
use crate::ids::PublicKey;
use crate::io::follow::Following;
use crate::io::names::resolve;
use crate::io::netlink::{Netlink, NetlinkError};
use crate::io::tap_slot::TapSlot;
use crate::io::uplinks::Uplinks;
use crate::messages::cloud::{CloudHeard, CloudHello, CloudLocal, CloudLookedUp, CloudMoved, CloudSeen, Place};
use crate::proto::cloud::{Cloud as Core, CloudView, Event, Output, Settings};
use crate::proto::rivals::{Port, Rivals};
use crate::proto::session::Epoch;
use crate::view::FdbView;
use crate::wire::ethcloud::{Message, Token};
use crate::wire::hello::{self, CloudTag};
use crate::wire::join::HostPort;

/// Names of other bridges that are remembered.
const NAMES_MAX: usize = 64;
/// Changes of addresses come in groups.
const SETTLE: Duration = Duration::from_millis(200);

/// Everything published about a cloud, shared by all who read it.
#[derive(Clone)]
pub struct CloudViews {
    pub token: Token,
    pub epoch: Epoch,
    pub peers: Arc<ArcSwap<CloudView>>,
    pub fdb: Arc<ArcSwap<FdbView>>,
    pub counters: Arc<Counters>,
    /// It is the port of a member, whose counters tell it from the network.
    pub is_bridged: bool,
}

impl CloudViews {
    pub fn new(token: Token, now: Instant, counters: Arc<Counters>, is_bridged: bool) -> Self {
        let fdb = Arc::new(ArcSwap::from_pointee(FdbView::empty(now)));
        Self { token, epoch: Epoch(now), peers: Arc::default(), fdb, counters, is_bridged }
    }
}

/// One end of a cloud: what its actors share.
pub struct CloudShared {
    pub views: CloudViews,
    pub uplinks: Uplinks,
    /// The device whose networks are the cloud's own.
    pub slot: TapSlot,
    /// Asked for their lists.
    pub connect: Vec<HostPort>,
    pub peer_timeout: Duration,
    pub mac_timeout: Duration,
    /// Where this end is the port of a member's switch.
    pub bridge: Option<Arc<BridgeState>>,
    /// Told what an operator should know.
    pub say: Arc<dyn Fn(&'static str, String, Instant) + Send + Sync>,
}

/// What the actor tells itself.
#[derive(Clone)]
pub struct CloudCasts {
    pub looked_up: Caster<CloudLookedUp>,
    pub local: Caster<CloudLocal>,
}

/// The actor.
pub struct Cloud {
    shared: Arc<CloudShared>,
    casts: CloudCasts,
    core: Core,
    tasks: Vec<smol::Task<()>>,
    /// Names that could not be looked up, each said once.
    unknown: BTreeMap<usize, String>,
    goodbye: bool,
    bridge: Option<Bridging>,
}

/// What a bridge decides with.
struct Bridging {
    state: Arc<BridgeState>,
    rivals: Rivals,
    tag: CloudTag,
    names: BTreeMap<PublicKey, String>,
    /// That the right is missing has been said.
    complained: bool,
}

impl Cloud {
    pub fn new(shared: Arc<CloudShared>, casts: CloudCasts) -> Self {
        let CloudShared { views, uplinks, connect, .. } = &*shared;
        let has = |four: bool| uplinks.readers().any(|uplink| uplink.local_addr().is_ipv4() == four);
        let settings = Settings {
            token: views.token,
            peer_timeout: shared.peer_timeout,
            mac_timeout: shared.mac_timeout,
            v4: has(true),
            v6: has(false),
            port: uplinks.port(),
            connect: connect.len(),
        };
        let (peers, fdb) = (views.peers.load(), views.fdb.load());
        let core = Core::new(settings, views.epoch, &peers, &fdb, seed(), Instant::now());
        let bridge = shared.bridge.clone().map(|state| Bridging {
            rivals: Rivals::new(state.key),
            tag: hello::tag(&views.token.frame_head()),
            state,
            names: BTreeMap::new(),
            complained: false,
        });
        Self { shared, casts, core, tasks: Vec::new(), unknown: BTreeMap::new(), goodbye: false, bridge }
    }

    /// Decides whether frames cross, and tells other bridges.
    fn attend_bridge(&mut self, now: Instant) {
        let Some(Bridging { state, rivals, tag, names, complained }) = &mut self.bridge else { return };
        let (mac, has_right) = (state.own.load().mac, state.has_right());
        // Without a lease it is not known what rights there are.
        rivals.set(mac.is_none() || has_right, mac.is_some() && self.core.has_peers(), now);
        if rivals.take_tell(now)
            && let Some(mac) = mac
        {
            state.tell(&hello::write(mac, tag, true), now);
        }
        if mac.is_some() && *complained == has_right {
            *complained = !has_right;
            if !has_right {
                let text = "cloud: this member has no right to bridge, so nothing crosses between the cloud and the \
                            network; give it at the server with --member NAME,bridge";
                (self.shared.say)("the right to bridge", text.to_owned(), now);
            }
        }
        let (before, after) = (state.port().0, rivals.port());
        if before == after {
            return;
        }
        let name = match after {
            Port::Held(key) => names.get(&key).cloned().unwrap_or_default(),
            Port::Open | Port::Waiting => String::new(),
        };
        let text = match after {
            Port::Held(_) => format!("cloud: {name} bridges this cloud as well, so this member's port is held back"),
            Port::Open if matches!(before, Port::Held(_)) => {
                "cloud: this member bridges the cloud from now on".to_owned()
            }
            Port::Open | Port::Waiting => String::new(),
        };
        if !text.is_empty() {
            (self.shared.say)("bridges of the cloud", text, now);
        }
        if after != Port::Open {
            // Where they are is seen by another one.
            self.core.forget_stations();
        }
        state.set_port(after, name);
    }

    /// Publishes what is new, then does what the core wants.
    fn drain(&mut self, now: Instant) {
        self.attend_bridge(now);
        let views = &self.shared.views;
        if self.core.take_changed() {
            views.fdb.store(Arc::new(self.core.fdb_view()));
            views.peers.store(Arc::new(self.core.view()));
        }
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send { to, datagram } => self.shared.uplinks.send(to, &datagram),
                Output::LookUp(number) => self.look_up(number),
                Output::Event(event) => self.tell(event, now),
            }
        }
    }

    fn tell(&self, event: Event, now: Instant) {
        let counters = &self.shared.views.counters;
        let (kind, text) = match event {
            Event::Joined(addr) => {
                add(&counters.connections_established, 1);
                ("peers of the cloud", format!("cloud: {addr} is a peer"))
            }
            Event::Closed(addr) => {
                add(&counters.connections_dropped, 1);
                ("peers of the cloud that left", format!("cloud: {addr} has left"))
            }
            Event::Silent(addr) => {
                add(&counters.connections_dropped, 1);
                ("silent peers of the cloud", format!("cloud: {addr} is silent and no peer any more"))
            }
            Event::Myself(addr) => ("own addresses", format!("cloud: {addr} is this node itself; it is left out")),
            Event::Double(addr, first) => (
                "further addresses",
                format!("cloud: {addr} is another address of {first}; it gets each broadcast once"),
            ),
            Event::Full(addr) => ("peers too many", format!("cloud: no room for {addr} as a peer")),
        };
        (self.shared.say)(kind, text, now);
    }

    /// A name server that takes long keeps nobody waiting.
    fn look_up(&mut self, number: usize) {
        let Some(HostPort { host, port }) = self.shared.connect.get(number).cloned() else { return };
        let tell = self.casts.looked_up.clone();
        self.tasks.push(smol::spawn(async move {
            tell.cast(CloudLookedUp { number, found: resolve(&host, port).await });
        }));
    }

    /// Follows the machine's addresses.
    fn watch(&mut self) {
        let (tell, slot) = (self.casts.local.clone(), self.shared.slot.clone());
        let mut network = Following::begin(SETTLE);
        self.tasks.push(smol::spawn(async move {
            loop {
                let netlink = network.changed().await;
                network.looked(local(&netlink, &slot).await.map(|found| tell.cast(found)));
            }
        }));
    }
}

async fn local(netlink: &Netlink, slot: &TapSlot) -> Result<CloudLocal, NetlinkError> {
    let addresses = netlink.addresses().await?;
    let device = slot.get().map(|tap| tap.ifindex());
    let ips: Vec<IpAddr> = addresses.iter().map(|address| address.addr).collect();
    let overlay = addresses.iter().filter(|address| Some(address.ifindex) == device).filter_map(|address| {
        // Every machine has the link-local network on each of its interfaces.
        let net = IpNet::new(address.addr, address.prefix).ok()?.trunc();
        (!is_link_local(address.addr)).then_some(net)
    });
    Ok(CloudLocal { overlay: overlay.collect(), ips })
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

impl Actor for Cloud {
    type Stop = StopReason;

    async fn started(&mut self, _: &Mailbox<Self>) -> Result<(), StopReason> {
        for (number, target) in self.shared.connect.iter().enumerate() {
            if let Some(ip) = target.ip() {
                self.core.looked_up(number, vec![SocketAddr::new(ip, target.port)]);
            }
        }
        self.watch();
        self.drain(Instant::now());
        Ok(())
    }

    async fn stopped(mut self) -> StopReason {
        if self.goodbye {
            if let Some(Bridging { state, tag, .. }) = &self.bridge
                && let Some(mac) = state.own.load().mac
                && state.has_right()
            {
                state.tell(&hello::write(mac, tag, false), Instant::now());
            }
            self.core.close();
            self.drain(Instant::now());
        }
        StopReason::Requested
    }
}

super::ext::answers_pings!(Cloud);

impl Service for Cloud {
    const NAME: &'static str = "cloud";

    fn next_timeout(&self) -> Option<Instant> {
        let rivals = self.bridge.as_ref().and_then(|bridge| bridge.rivals.poll_timeout());
        self.core.poll_timeout().into_iter().chain(rivals).min()
    }

    fn on_timeout(&mut self, now: Instant) {
        self.core.handle_timeout(now);
        if let Some(bridge) = &mut self.bridge {
            bridge.rivals.handle_timeout(now);
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

impl Handler<CloudHeard> for Cloud {
    type Return = ();

    async fn handle(&mut self, CloudHeard { from, datagram }: CloudHeard, _: &mut Context<Self>) {
        // It has been read once, where it came in.
        if let Ok(message) = Message::parse(self.shared.views.token, &datagram) {
            self.core.heard(from, &message, Instant::now());
        }
    }
}

impl Handler<CloudSeen> for Cloud {
    type Return = ();

    async fn handle(&mut self, CloudSeen(sightings): CloudSeen, _: &mut Context<Self>) {
        let now = Instant::now();
        for seen in sightings {
            self.core.heard_frame(seen.from, now);
            self.core.learn(seen.vlan, seen.mac, seen.from, now);
        }
    }
}

impl Handler<CloudMoved> for Cloud {
    type Return = ();

    async fn handle(&mut self, CloudMoved(stations): CloudMoved, _: &mut Context<Self>) {
        let now = Instant::now();
        for (vlan, mac, place) in stations {
            match place {
                Place::Here => self.core.learn_here(vlan, mac, now),
                Place::Network => self.core.forget_station(vlan, mac),
            }
        }
    }
}

impl Handler<CloudHello> for Cloud {
    type Return = ();

    async fn handle(&mut self, CloudHello { tag, bridges, key, name }: CloudHello, _: &mut Context<Self>) {
        if let Some(bridge) = self.bridge.as_mut().filter(|bridge| bridge.tag == tag) {
            if bridge.names.len() < NAMES_MAX || bridge.names.contains_key(&key) {
                bridge.names.insert(key, name);
            }
            bridge.rivals.heard(key, bridges, Instant::now());
        }
    }
}

impl Handler<CloudLookedUp> for Cloud {
    type Return = ();

    async fn handle(&mut self, CloudLookedUp { number, found }: CloudLookedUp, _: &mut Context<Self>) {
        match found {
            Ok(addresses) => {
                self.unknown.remove(&number);
                self.core.looked_up(number, addresses);
            }
            Err(error) => {
                let why = error.to_string();
                let host = &self.shared.connect[number].host;
                let text = format!("cloud: {host} cannot be looked up ({why}); it is tried again");
                if self.unknown.insert(number, why.clone()).as_ref() != Some(&why) {
                    (self.shared.say)("names", text, Instant::now());
                }
            }
        }
    }
}

impl Handler<CloudLocal> for Cloud {
    type Return = ();

    async fn handle(&mut self, CloudLocal { ips, overlay }: CloudLocal, _: &mut Context<Self>) {
        self.core.set_local(ips, overlay);
    }
}
