//! Published read-only views: what one writer knows, as an immutable snapshot that everybody else reads.
//!
//! A view is loaded once per batch. The only thing in it that changes is a station's last-seen mark, an atomic the
//! data path moves and the forwarding database reads when it ages its entries.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use foldhash::quality::RandomState;

use crate::ids::{Endpoint, MacAddr, PeerIdx, PublicKey, Route, SessionIndex, VlanId};
use crate::proto::estimate::PathMeter;
use crate::proto::guard::{PeerCredentials, StormBudget};
use crate::proto::mtu::Fit;
use crate::proto::multipath::Plan;
use crate::proto::session::{Meter, Session};
use crate::wire::ethernet::FrameView;

/// Which peer a station is behind. Made by `proto::fdb::Fdb`; a clone shares everything.
#[derive(Debug, Clone)]
pub struct FdbView {
    epoch: Instant,
    own: Option<MacAddr>,
    members: Arc<Members>,
    learned: Arc<Learned>,
}

/// One line of the table, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Station {
    pub mac: MacAddr,
    pub peer: PeerIdx,
    /// The VLAN a learned station was seen in; `None` for a member's own, which is in all.
    pub vlan: Option<VlanId>,
    /// Milliseconds between the epoch and the last frame from a learned station; `None` for a member's own.
    pub seen_ms: Option<u64>,
}

/// The stations that certificates name.
pub(crate) type Members = HashMap<MacAddr, PeerIdx, RandomState>;
/// The stations seen behind bridges. Their addresses are chosen by strangers, hence the seeded hash.
pub(crate) type Learned = HashMap<(VlanId, MacAddr), Seen, RandomState>;

/// A learned station. Clones share the mark.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) peer: PeerIdx,
    /// Milliseconds since the epoch of the view.
    pub(crate) at_ms: Arc<AtomicU64>,
}

impl FdbView {
    /// An empty table whose marks count from `epoch`.
    pub fn empty(epoch: Instant) -> Self {
        Self::new(epoch, None, Arc::default(), Arc::default())
    }

    pub(crate) fn new(epoch: Instant, own: Option<MacAddr>, members: Arc<Members>, learned: Arc<Learned>) -> Self {
        Self { epoch, own, members, learned }
    }

    /// The peer a station is behind. Members come first, in any VLAN. Hot: once or twice per frame.
    pub fn lookup(&self, vlan: VlanId, mac: MacAddr) -> Option<PeerIdx> {
        self.owner(mac).or_else(|| self.learned.get(&(vlan, mac)).map(|seen| seen.peer))
    }

    /// The member whose certificate names `mac`.
    pub fn owner(&self, mac: MacAddr) -> Option<PeerIdx> {
        self.members.get(&mac).copied()
    }

    /// Whether `mac` is this node's own.
    pub fn is_own(&self, mac: MacAddr) -> bool {
        self.own == Some(mac)
    }

    /// Whether the table already has the station behind this peer, so that there is nothing to tell.
    pub fn is_known(&self, vlan: VlanId, mac: MacAddr, peer: PeerIdx) -> bool {
        self.lookup(vlan, mac) == Some(peer)
    }

    /// Marks a learned station as seen at `now`, if it is behind `peer`. False if the table does not have it there.
    ///
    /// A mark less than a second old stays, so that cores do not fight for its cache line.
    pub fn touch(&self, vlan: VlanId, mac: MacAddr, peer: PeerIdx, now: Instant) -> bool {
        if let Some(owner) = self.owner(mac) {
            return owner == peer;
        }
        let Some(seen) = self.learned.get(&(vlan, mac)).filter(|seen| seen.peer == peer) else { return false };
        let now_ms = millis_since(self.epoch, now);
        if now_ms >= seen.at_ms.load(Relaxed) + MARK_EVERY_MS {
            seen.at_ms.store(now_ms, Relaxed);
        }
        true
    }

    /// The peer that a learned station is behind, and how long ago it was marked as seen. Hot at a bridge.
    pub fn seen(&self, vlan: VlanId, mac: MacAddr, now: Instant) -> Option<(PeerIdx, Duration)> {
        let seen = self.learned.get(&(vlan, mac))?;
        let ago = millis_since(self.epoch, now).saturating_sub(seen.at_ms.load(Relaxed));
        Some((seen.peer, Duration::from_millis(ago)))
    }

    /// How many stations the table has.
    pub fn len(&self) -> usize {
        self.members.len() + self.learned.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole table: members by address, then learned stations by VLAN and address.
    pub fn stations(&self) -> Vec<Station> {
        let members =
            self.members.iter().map(|(mac, peer)| Station { mac: *mac, peer: *peer, vlan: None, seen_ms: None });
        let learned = self.learned.iter().map(|((vlan, mac), seen)| Station {
            mac: *mac,
            peer: seen.peer,
            vlan: Some(*vlan),
            seen_ms: Some(seen.at_ms.load(Relaxed)),
        });
        let mut stations: Vec<_> = members.chain(learned).collect();
        stations.sort_unstable_by_key(|station| (station.vlan, station.mac));
        stations
    }

    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }
}

/// Whole milliseconds from `epoch` to `now`; 0 if `now` is earlier.
pub(crate) fn millis_since(epoch: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch).as_millis()).unwrap_or(u64::MAX)
}

/// How old a last-seen mark has to be to be moved.
const MARK_EVERY_MS: u64 = 1_000;

/// The sessions a node receives on, by the index that datagrams carry.
pub type Sessions = HashMap<SessionIndex, Arc<Session>, RandomState>;

/// How to send to a peer at this moment.
#[derive(Debug)]
pub struct Outlet {
    pub session: Arc<Session>,
    pub route: Route,
    /// Of the path that is the route.
    pub meter: Arc<PathMeter>,
    /// Where several paths are used.
    pub plan: Option<Plan>,
    /// What each route that frames take carries in one datagram.
    pub fit: Fit,
}

/// A path by which a peer's datagrams may come.
#[derive(Debug, Clone)]
pub struct Inlet {
    pub route: Route,
    pub meter: Arc<PathMeter>,
    /// The path is proven, so that nobody need be told of it.
    pub is_valid: bool,
}

/// What stays of a peer from one view to the next: what the data path writes.
#[derive(Debug)]
pub struct PeerHandle {
    pub idx: PeerIdx,
    pub key: PublicKey,
    pub meter: Arc<Meter>,
    outlet: ArcSwapOption<Outlet>,
    inlets: ArcSwap<Vec<Inlet>>,
    staged: Mutex<Staged>,
    wanted: AtomicBool,
    /// When a foreign route was last told to the peer table: milliseconds since the epoch.
    told_ms: AtomicU64,
    storm: Mutex<Option<StormBudget>>,
}

#[derive(Debug, Default)]
struct Staged {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl PeerHandle {
    /// Frames and bytes kept for a peer without a session; the oldest go first.
    pub const STAGED_FRAMES_MAX: usize = 256;
    pub const STAGED_BYTES_MAX: usize = 256 * 1024;
    /// A foreign route is told at most this often, in milliseconds.
    const TELL_EVERY_MS: u64 = 250;

    pub fn new(idx: PeerIdx, key: PublicKey, meter: Arc<Meter>) -> Self {
        Self {
            idx,
            key,
            meter,
            outlet: ArcSwapOption::empty(),
            inlets: ArcSwap::default(),
            staged: Mutex::default(),
            wanted: AtomicBool::new(false),
            told_ms: AtomicU64::new(0),
            storm: Mutex::default(),
        }
    }

    /// Session and route for frames to the peer, if there are any. Hot: once per frame.
    pub fn outlet(&self) -> arc_swap::Guard<Option<Arc<Outlet>>> {
        self.outlet.load()
    }

    /// The paths that datagrams of the peer may come by. Hot: once for each run of them.
    pub fn inlets(&self) -> arc_swap::Guard<Arc<Vec<Inlet>>> {
        self.inlets.load()
    }

    /// Publishes the paths that datagrams of the peer may come by.
    pub fn set_inlets(&self, inlets: Vec<Inlet>) {
        self.inlets.store(Arc::new(inlets));
    }

    /// Publishes how to send to the peer.
    pub fn set_outlet(&self, outlet: Option<Outlet>) {
        self.outlet.store(outlet.map(Arc::new));
    }

    /// Keeps a frame until there is a session; how many older ones had to go.
    pub fn stage(&self, frame: &[u8]) -> u64 {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        staged.frames.push_back(frame.to_vec());
        staged.bytes += frame.len();
        let mut lost = 0;
        while staged.frames.len() > Self::STAGED_FRAMES_MAX || staged.bytes > Self::STAGED_BYTES_MAX {
            let Some(oldest) = staged.frames.pop_front() else { break };
            staged.bytes -= oldest.len();
            lost += 1;
        }
        lost
    }

    /// Takes what was kept, in order.
    pub fn take_staged(&self) -> VecDeque<Vec<u8>> {
        self.wanted.store(false, Relaxed);
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        staged.bytes = 0;
        std::mem::take(&mut staged.frames)
    }

    /// Whether the peer table has to be told that a frame waits: once until it was answered, and again when that
    /// message was lost.
    pub fn want(&self) -> bool {
        !self.wanted.swap(true, Relaxed)
    }

    /// The message that a frame waits could not be given: it must be told again.
    pub fn unwant(&self) {
        self.wanted.store(false, Relaxed);
    }

    /// Whether to tell the peer table of a route; limited in time.
    pub fn tell_route(&self, now_ms: u64) -> bool {
        let told = self.told_ms.load(Relaxed);
        let due = told == 0 || now_ms.saturating_sub(told) >= Self::TELL_EVERY_MS;
        if due {
            self.told_ms.store(now_ms.max(1), Relaxed);
        }
        due
    }

    /// Whether a broadcast or multicast frame of the peer is within its budget.
    pub fn admit_group(&self, frame: &FrameView<'_>, now: Instant) -> bool {
        let mut storm = self.storm.lock().unwrap_or_else(PoisonError::into_inner);
        storm.get_or_insert_with(|| StormBudget::new(now)).admit(frame, now)
    }
}

/// A peer in a view.
#[derive(Debug, Clone)]
pub struct PeerEntry {
    pub handle: Arc<PeerHandle>,
    pub name: String,
    pub credentials: PeerCredentials,
    /// Whether frames to everybody go to it: it is connected, or has a session.
    pub flooded: bool,
}

/// All peers of a client, as the data path reads them.
#[derive(Debug, Default)]
pub struct PeerView {
    pub peers: HashMap<PeerIdx, PeerEntry, RandomState>,
    pub sessions: Sessions,
    /// Addresses of members, for answers at the TAP.
    pub directory: HashMap<IpAddr, MacAddr, RandomState>,
    pub has_bridges: bool,
}

/// What the data path knows of this node and its server.
#[derive(Debug, Default)]
pub struct SelfView {
    pub mac: Option<MacAddr>,
    pub rights: u8,
    pub ip4: Option<std::net::Ipv4Addr>,
    pub ip6: Option<std::net::Ipv6Addr>,
    /// The network's own prefixes: datagrams from addresses in them are its own, led back into it.
    pub overlay: Vec<ipnet::IpNet>,
}

/// The conversation with the server, as the data path needs it.
#[derive(Debug, Default)]
pub struct ServerView {
    pub sessions: Vec<Arc<Session>>,
    /// Where the server was last heard, and every address it may have.
    pub endpoints: Vec<Endpoint>,
    pub attached: bool,
    pub endpoint: Option<Endpoint>,
    /// Milliseconds since the epoch.
    pub heard_ms: Option<u64>,
}

/// The members of a network, as the server's sockets read them.
#[derive(Debug, Default)]
pub struct MemberView {
    pub sessions: Sessions,
}
