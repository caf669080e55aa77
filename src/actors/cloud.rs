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
use super::ext::{Caster, Service, StopReason};
use crate::counters::{Counters, add};
use crate::io::follow::Following;
use crate::io::names::resolve;
use crate::io::netlink::{Netlink, NetlinkError};
use crate::io::tap_slot::TapSlot;
use crate::io::uplinks::Uplinks;
use crate::messages::cloud::{CloudHeard, CloudLocal, CloudLookedUp, CloudSeen};
use crate::proto::cloud::{Cloud as Core, CloudView, Event, Output, Settings};
use crate::proto::session::Epoch;
use crate::view::FdbView;
use crate::wire::ethcloud::{Message, Token};
use crate::wire::join::HostPort;

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
}

impl CloudViews {
    pub fn new(token: Token, now: Instant, counters: Arc<Counters>) -> Self {
        let fdb = Arc::new(ArcSwap::from_pointee(FdbView::empty(now)));
        Self { token, epoch: Epoch(now), peers: Arc::default(), fdb, counters }
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
        Self { shared, casts, core, tasks: Vec::new(), unknown: BTreeMap::new(), goodbye: false }
    }

    /// Publishes what is new, then does what the core wants.
    fn drain(&mut self, now: Instant) {
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
        self.core.poll_timeout()
    }

    fn on_timeout(&mut self, now: Instant) {
        self.core.handle_timeout(now);
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
