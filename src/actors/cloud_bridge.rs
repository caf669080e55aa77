//! A member's end of an ethcloud: one switch of three ports, the device, the network and the cloud.
//!
//! A frame never leaves by the port it came by: the network's sockets have no way to the network, and the cloud's none to
//! the cloud. What comes from the cloud is nobody's word, so it passes the checks that frames of a bridge without other
//! rights pass: no address of a member, no DHCP server, no router, no protocol of bridges, and one small budget for what
//! goes to many. Towards the network the frames are this member's own, which needs the right to bridge; without it
//! nothing crosses between the two.
//!
//! Where stations are: those of the network are in its forwarding database, those of the cloud and those behind the
//! device in the cloud's. A station that is seen at another port has moved, but for one thing: what says that it is
//! where it was has precedence over the cloud, and over what may have come through the cloud, for [`HOLD`].
//!
//! Two members that bridge one cloud would be a loop, so one of them holds its port back (`proto::rivals`).

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::cloud_path::{CloudEgress, CloudEgressScope};
use super::datapath::{Egress, EgressScope, Views};
use super::ext::Caster;
use crate::counters::DropReason;
use crate::ids::{MacAddr, PublicKey, VlanId};
use crate::messages::cloud::{CloudHello, CloudMoved, Place};
use crate::messages::mac_learning::Moved;
use crate::proto::cloud::HERE;
use crate::proto::guard::{self, PeerCredentials, Rights, StormBudget};
use crate::proto::rivals::Port;
use crate::view::{FdbView, SelfView};
use crate::wire::ethernet::FrameView;
use crate::wire::hello::{self, HELLO};

/// A station that was seen at a port this lately is there, whatever the cloud says. Longer than a mark in a table is
/// old while frames come (1 s), short enough for a machine that was carried from one place to another.
pub const HOLD: Duration = Duration::from_secs(2);
/// Stations told of in one batch; what is more is seen again.
const NEWS_MAX: usize = 256;

/// Not on the data path: once a second.
type Sender = Mutex<Egress>;

/// What the ends of a bridge share.
pub struct BridgeState {
    /// Our key, by which it is decided who of several bridges.
    pub key: PublicKey,
    /// Our rights and address.
    pub own: Arc<ArcSwap<SelfView>>,
    /// Sends a frame of ours to members that may bridge; set when there is a way.
    sender: OnceLock<Sender>,
    /// What the port does, for people; and for the data path whether frames cross.
    port: ArcSwap<(Port, String)>,
    is_open: AtomicBool,
    /// For all that strangers can make us send to many: half of what each receiver grants this member in all, so that
    /// the other half is left for itself.
    storm: Mutex<StormBudget>,
}

impl BridgeState {
    pub fn new(key: PublicKey, own: Arc<ArcSwap<SelfView>>, now: Instant) -> Self {
        let (port, storm) = (ArcSwap::default(), Mutex::new(StormBudget::halved(now)));
        Self { key, own, sender: OnceLock::new(), port, is_open: AtomicBool::new(false), storm }
    }

    /// Other bridges are told by this; only the first call counts.
    pub fn tell_with(&self, mesh: Egress) {
        let _ = self.sender.set(Mutex::new(mesh));
    }

    /// Sends a frame of ours to members that may bridge, if it is for them.
    pub fn tell(&self, frame: &[u8], now: Instant) {
        let Some(mesh) = self.sender.get() else { return };
        let mut mesh = mesh.lock().unwrap_or_else(PoisonError::into_inner);
        let scope = mesh.scope(now);
        // It is told again in a second.
        let _ = mesh.foreign(frame, &scope);
        mesh.finish_foreign(&scope);
    }

    pub fn has_right(&self) -> bool {
        Rights(self.own.load().rights).is_bridge()
    }

    /// The port, and the name of the member it is held back for.
    pub fn port(&self) -> Arc<(Port, String)> {
        self.port.load_full()
    }

    pub fn set_port(&self, port: Port, name: String) {
        self.is_open.store(port == Port::Open, Relaxed);
        self.port.store(Arc::new((port, name)));
    }

    fn is_open(&self) -> bool {
        self.is_open.load(Relaxed)
    }

    fn admit(&self, frame: &FrameView<'_>, now: Instant) -> Result<(), DropReason> {
        let mut storm = self.storm.lock().unwrap_or_else(PoisonError::into_inner);
        if storm.admit_to_many(frame, now) { Ok(()) } else { Err(DropReason::Storm) }
    }
}

/// The way from the cloud to the network; and what it checks.
pub struct CloudBridge {
    state: Arc<BridgeState>,
    views: Views,
    mesh: Egress,
    moved: Caster<Moved>,
    scope: Option<EgressScope>,
    /// Stations of the network that are in the cloud now.
    gone: Vec<(VlanId, MacAddr)>,
}

impl CloudBridge {
    /// `mesh` sends to the peers of the network.
    pub fn new(state: Arc<BridgeState>, views: Views, mesh: Egress, moved: Caster<Moved>) -> Self {
        Self { state, views, mesh, moved, scope: None, gone: Vec::new() }
    }

    /// Loads the views for one batch.
    pub fn begin(&mut self, now: Instant) {
        self.scope = Some(self.mesh.scope(now));
    }

    /// Sends what is left of the batch.
    pub fn finish(&mut self) {
        if let Some(scope) = self.scope.take() {
            self.mesh.finish_foreign(&scope);
        }
        if !self.gone.is_empty() {
            self.moved.cast(Moved(std::mem::take(&mut self.gone)));
        }
    }

    /// Judges a frame from the cloud, and sends it to the network if it is for there. Whether it is for the device too.
    /// `cloud` is where stations of the cloud, and behind the device, are.
    ///
    /// # Errors
    /// The reason to drop it.
    pub fn frame(&mut self, bytes: &[u8], cloud: &FdbView, now: Instant) -> Result<bool, DropReason> {
        let Self { state, views, mesh, scope, gone, .. } = self;
        if !state.is_open() {
            return Err(DropReason::SecondBridge);
        }
        let scope = scope.as_ref().ok_or(DropReason::NoActor)?;
        let (own, fdb) = (scope.own(), scope.fdb());
        let frame = FrameView::parse(bytes)?;
        let (vlan, src, dst) = (frame.vlan(), frame.src(), frame.dst());
        let own_mac = own.mac.ok_or(DropReason::UnknownPeer)?;
        let credentials = PeerCredentials { mac: src, ip4: None, ip6: None, rights: Rights(Rights::BRIDGE) };
        guard::check(&frame, &credentials)?;
        if frame.is_link_local_group() {
            return Err(DropReason::LinkLocalGroup);
        }
        if src == own_mac || src == HELLO || dst == HELLO || fdb.owner(src).is_some() {
            return Err(DropReason::SourceSpoofed);
        }
        let there = fdb.seen(vlan, src, now);
        let here = cloud.seen(vlan, src, now).filter(|(port, _)| *port == HERE);
        if [there, here].into_iter().flatten().any(|(_, ago)| ago < HOLD) {
            return Err(DropReason::SourceSpoofed);
        }
        if guard::is_neighbour_traffic(&frame) {
            let ours = [own.ip4.map(IpAddr::from), own.ip6.map(IpAddr::from)];
            let owner = |ip: IpAddr| -> Option<MacAddr> {
                if ours.contains(&Some(ip)) { Some(own_mac) } else { scope.peers().directory.get(&ip).copied() }
            };
            guard::check_leases(&frame, &credentials, &owner)?;
        }
        let at = if dst.is_group() { None } else { cloud.seen(vlan, dst, now) };
        if dst != own_mac && at.is_none() && (dst.is_group() || fdb.lookup(vlan, dst).is_none()) {
            state.admit(&frame, now)?;
        }
        if there.is_some() && gone.len() < NEWS_MAX && !gone.contains(&(vlan, src)) {
            gone.push((vlan, src));
        }
        match at {
            _ if dst == own_mac => return Ok(true),
            Some((HERE, _)) => return Ok(true),
            // Its sender gave it to everybody, and it is another one's.
            Some(_) => return Ok(false),
            None => {}
        }
        if !Rights(own.rights).is_bridge() {
            views.counters.dropped(DropReason::NoRight);
            return Ok(dst.is_group());
        }
        mesh.foreign(bytes, scope)?;
        Ok(dst.is_group() || fdb.lookup(vlan, dst).is_none())
    }
}

/// Where a frame that might be for the cloud comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Device,
    Network,
}

/// Whether a frame is for the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToCloud {
    No,
    /// And for others.
    Also,
    Only,
}

/// Whom the ports tell of what they have seen.
#[derive(Clone)]
pub struct CloudPortCasts {
    pub moved: Caster<CloudMoved>,
    pub hello: Caster<CloudHello>,
}

/// The way from the device, or from the network, to the cloud.
pub struct CloudPort {
    state: Arc<BridgeState>,
    egress: CloudEgress,
    casts: CloudPortCasts,
    scope: Option<CloudEgressScope>,
    now: Instant,
    news: Vec<(VlanId, MacAddr, Place)>,
}

impl CloudPort {
    pub fn new(state: Arc<BridgeState>, egress: CloudEgress, casts: CloudPortCasts) -> Self {
        Self { state, egress, casts, scope: None, now: Instant::now(), news: Vec::new() }
    }

    /// Loads the views for one burst.
    pub fn begin(&mut self, now: Instant) {
        (self.scope, self.now) = (Some(self.egress.scope(now)), now);
    }

    /// Sends what is left of the burst, and tells what it has shown of stations.
    pub fn finish(&mut self) {
        if let Some(scope) = self.scope.take() {
            self.egress.finish(&scope);
        }
        if !self.news.is_empty() {
            self.casts.moved.cast(CloudMoved(std::mem::take(&mut self.news)));
        }
    }

    /// Takes note of where a frame comes from, whatever becomes of it. Whether it may go to the cloud: not what seems to
    /// come from there by another bridge. Hot: once for each frame of a station that is no member's.
    ///
    /// # Errors
    /// `SecondBridge`.
    pub fn note(&mut self, frame: &FrameView<'_>, side: Side) -> Result<(), DropReason> {
        let Some(scope) = &self.scope else { return Ok(()) };
        if !self.state.is_open() {
            return Ok(());
        }
        let (vlan, src) = (frame.vlan(), frame.src());
        let place = match (side, scope.fdb.seen(vlan, src, self.now)) {
            (Side::Device, Some((HERE, _))) => {
                scope.fdb.touch(vlan, src, HERE, self.now);
                return Ok(());
            }
            (Side::Device, _) => Place::Here,
            (Side::Network, None) => return Ok(()),
            (Side::Network, Some((port, ago))) if port != HERE && ago < HOLD => return Err(DropReason::SecondBridge),
            (Side::Network, Some(_)) => Place::Network,
        };
        let news = (vlan, src, place);
        if self.news.len() < NEWS_MAX && !self.news.contains(&news) {
            self.news.push(news);
        }
        Ok(())
    }

    /// Whether a frame is for the cloud: its station is there, or might be. Hot.
    pub fn wants(&self, frame: &FrameView<'_>) -> ToCloud {
        let Some(scope) = self.scope.as_ref().filter(|scope| !scope.peers.peers.is_empty()) else { return ToCloud::No };
        let dst = frame.dst();
        if !self.state.is_open() || dst == HELLO || frame.is_link_local_group() {
            return ToCloud::No;
        }
        match if dst.is_group() { None } else { scope.fdb.lookup(frame.vlan(), dst) } {
            Some(HERE) => ToCloud::No,
            Some(_) => ToCloud::Only,
            None => ToCloud::Also,
        }
    }

    /// Takes what a member with the right to bridge says of itself.
    pub fn hello(&self, frame: &FrameView<'_>, key: PublicKey, name: &str) {
        if let Some((tag, bridges)) = hello::parse(frame) {
            self.casts.hello.cast(CloudHello { tag, bridges, key, name: name.to_owned() });
        }
    }

    /// Sends a whole frame.
    ///
    /// # Errors
    /// The reason it cannot be sent.
    pub fn send(&mut self, frame: &[u8]) -> Result<(), DropReason> {
        let scope = self.scope.as_mut().ok_or(DropReason::NoActor)?;
        self.egress.frame(frame, scope)
    }
}
