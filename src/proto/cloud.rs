//! The conversation of an ethcloud: who is a peer, who is asked for its list, who is told of whom.
//!
//! The wire is that of the program of 2015 ([`wire::ethcloud`](crate::wire::ethcloud)) and so are the rules: whoever says
//! anything with the right token is a peer until it closes or is silent for too long; addresses in lists are asked and
//! never believed; lists go out every half of the peer timeout. Where that program fell short of its manual this one does
//! better, in ways that it understands:
//!
//! * A Get carries a [`Mark`] drawn for the address it goes to. Whoever sends us our own mark stands at that address and
//!   is us: the address is struck out for good, and nobody else's can be struck out by telling lies.
//! * It also carries an id drawn at the start, and so do lists of nobody to those who did the same, so that who has two addresses (of IPv4 and IPv6, say) gets each broadcast
//!   once. An id is a hint only: whoever sees it again at another address sends the mark it had from the first, and who
//!   is given its own mark for one address at another knows that both are one node. The younger of the two gets no
//!   floods. Copying ids changes nothing.
//! * Addresses in lists are asked again for a while, and a newcomer is introduced to the other peers at once: both ends
//!   of a pair behind NATs then send at the same time, and their gates open.
//! * An idle peer gets an empty list now and then, so that mappings of NATs stay.
//! * A peer that is gone takes its stations with it, and names are looked up again while nobody answers.
//!
//! Nothing is authentic here. What strangers can make us do is bounded: peers, addresses to be asked, and sends for each.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blake2::{Blake2s256, Digest};
use foldhash::quality::RandomState;
use ipnet::IpNet;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::fdb::{Fdb, Sighting};
use super::session::{Epoch, Meter};
use crate::ids::{Endpoint, MacAddr, PeerIdx, VlanId};
use crate::view::FdbView;
use crate::wire::ethcloud::{self, Mark, Message, PeerList, Sign, Token};

/// Peers at the most. A frame to everybody is sent as often.
pub const PEERS_MAX: usize = 1_024;
/// Addresses from lists that are asked at the same time.
pub const TRIED_MAX: usize = 2_048;
/// Addresses that were found to be our own.
pub const OWN_MAX: usize = 64;
/// An address from a list is asked each second, this often: both gates of a pair have opened by then, or never will.
pub const TRIES: u32 = 10;
/// Peers whose lists are all told; above it, and above its square, only the square root of them in each round.
const SUBSET_MIN: usize = 10;
/// Housekeeping, as the program has it.
const TICK: Duration = Duration::from_secs(1);
/// How long nothing goes to a peer before it gets an empty list: below the 30 s of the shortest mappings in the field
/// (RFC 4787 asks for 120), with up to [`IDLE_SPREAD`] more so that peers are not all told at once.
const IDLE: Duration = Duration::from_secs(20);
const IDLE_SPREAD: Duration = Duration::from_secs(4);
/// A newcomer is introduced after a time drawn from this range, unless somebody else's list has it by then: that of
/// the node it came by does so for all.
const INTRODUCE: std::ops::Range<Duration> = Duration::from_millis(50)..Duration::from_millis(800);
/// A name is looked up again this often while nobody answers there.
const LOOK_UP: Duration = Duration::from_secs(5);
/// An address of a name is asked this often before the next one has its turn.
const ASKS_PER_ADDRESS: u32 = 3;
/// Addresses of one name that are asked.
const ADDRESSES_MAX: usize = 8;
/// A peer of our kind is told who we are this often, each second, and again whenever it is idle.
const GREETINGS: u32 = 3;
/// An address that was silent for as long gives its floods to another one of its node: two keepalives are missing.
const STALE: Duration = Duration::from_secs(60);
/// In the place of a peer: a station is behind the device of the member that bridges this cloud.
pub const HERE: PeerIdx = PeerIdx(u32::MAX);

/// What a node of an ethcloud is told once.
#[derive(Debug, Clone)]
pub struct Settings {
    pub token: Token,
    /// A peer that says nothing for as long is none any more.
    pub peer_timeout: Duration,
    /// A station that sends nothing for as long is forgotten.
    pub mac_timeout: Duration,
    /// The families there are sockets for.
    pub v4: bool,
    pub v6: bool,
    /// The port of these sockets.
    pub port: u16,
    /// Names or addresses asked for their lists, as often as they are no peers.
    pub connect: usize,
}

/// A peer, as the data path knows it.
#[derive(Debug)]
pub struct CloudPeer {
    pub idx: PeerIdx,
    pub endpoint: Endpoint,
    pub since: Instant,
    pub meter: Meter,
}

/// Everybody, for those who send and receive.
#[derive(Debug, Default, Clone)]
pub struct CloudView {
    /// By address.
    pub peers: Vec<Arc<CloudPeer>>,
    /// Those that get what is for everybody: each node at one of its addresses, in the same order each time.
    pub flooded: Vec<Arc<CloudPeer>>,
    /// Further addresses of nodes, and the one that is flooded.
    pub doubles: BTreeMap<SocketAddr, SocketAddr>,
    pub by_addr: HashMap<SocketAddr, Arc<CloudPeer>, RandomState>,
    pub by_idx: HashMap<PeerIdx, Arc<CloudPeer>, RandomState>,
    /// What is inside the network itself, and so is no way to anybody.
    pub overlay: Vec<IpNet>,
}

/// Where a frame goes.
#[derive(Debug)]
pub enum To<'v> {
    One(&'v Arc<CloudPeer>),
    /// To all peers: it is for a group, or nobody knows where its station is.
    All(&'v [Arc<CloudPeer>]),
}

impl CloudView {
    /// Whom a frame from this machine is for. Hot.
    pub fn route(&self, frame: &[u8], fdb: &FdbView) -> To<'_> {
        self.known(frame, fdb).map_or(To::All(&self.flooded), To::One)
    }

    /// The peer behind which the frame's destination is known to be. Hot.
    pub fn known(&self, frame: &[u8], fdb: &FdbView) -> Option<&Arc<CloudPeer>> {
        let (dst, _) = ethcloud::stations(frame);
        if dst.is_group() {
            return None;
        }
        fdb.lookup(ethcloud::vlan(frame), dst).and_then(|idx| self.by_idx.get(&idx))
    }
}

/// What the core wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    Send {
        to: Endpoint,
        datagram: Vec<u8>,
    },
    /// The addresses of a name are wanted: the number of its `-c`.
    LookUp(usize),
    Event(Event),
}

/// What an operator would tell a colleague.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Joined(SocketAddr),
    /// It said so.
    Closed(SocketAddr),
    /// It said nothing for the peer timeout.
    Silent(SocketAddr),
    /// That address is this node.
    Myself(SocketAddr),
    /// There is no room for another peer.
    Full(SocketAddr),
    /// The first is another address of the node at the second.
    Double(SocketAddr, SocketAddr),
}

/// The core. After each input publish [`Cloud::view`] and [`Cloud::fdb_view`] if [`Cloud::take_changed`] says so, then
/// take the outputs.
pub struct Cloud {
    settings: Settings,
    epoch: Epoch,
    rng: StdRng,
    secret: [u8; 32],
    /// Of this start.
    id: Mark,
    peers: BTreeMap<SocketAddr, Peer>,
    /// As [`CloudView::doubles`].
    doubles: BTreeMap<SocketAddr, SocketAddr>,
    targets: Vec<Target>,
    tried: BTreeMap<SocketAddr, Tried>,
    /// Found to be ours by a mark.
    own: BTreeSet<SocketAddr>,
    /// This machine's addresses.
    ips: Vec<IpAddr>,
    overlay: Vec<IpNet>,
    fdb: Fdb,
    next_idx: u32,
    tick_at: Instant,
    /// When the next round is, if there is a peer then; the first one as soon as there is.
    list_at: Instant,
    /// The peer that the next subset begins with, and the first who gets it.
    turn: (usize, usize),
    changed: bool,
    outputs: VecDeque<Output>,
}

struct Peer {
    handle: Arc<CloudPeer>,
    introduce_at: Option<Instant>,
    /// Control messages; frames are in the meter.
    told_at: Instant,
    idle: Duration,
    /// Drawn for it.
    mark: Mark,
    /// What it said of itself, if it is of our kind: its id, and the mark it drew for us.
    sign: Option<(Mark, Mark)>,
    /// It has had a Get of ours.
    knows_us: bool,
    /// How often it is still told who we are, and when next.
    greetings: u32,
    greet_at: Instant,
}

/// One `-c`.
#[derive(Default)]
struct Target {
    addresses: Vec<SocketAddr>,
    asked: u32,
    /// It was asked between two looks, so the next one leaves it.
    fresh: bool,
    looked_up: Option<Instant>,
}

/// An address from a list.
struct Tried {
    mark: Mark,
    left: u32,
    next_at: Instant,
}

impl Cloud {
    /// `view` and `fdb` are those of a predecessor, or empty.
    pub fn new(
        settings: Settings,
        epoch: Epoch,
        view: &CloudView,
        fdb: &FdbView,
        seed: [u8; 32],
        now: Instant,
    ) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let (secret, id) = (rng.random(), rng.random());
        let mut cloud = Self {
            next_idx: view.peers.iter().map(|peer| peer.idx.0 + 1).max().unwrap_or(0),
            targets: (0..settings.connect).map(|_| Target::default()).collect(),
            fdb: Fdb::from_view(fdb, now).with_age(settings.mac_timeout),
            overlay: view.overlay.clone(),
            settings,
            epoch,
            rng,
            secret,
            id,
            peers: BTreeMap::new(),
            doubles: view.doubles.clone(),
            tried: BTreeMap::new(),
            own: BTreeSet::new(),
            ips: Vec::new(),
            tick_at: now,
            list_at: now,
            turn: (0, 0),
            changed: false,
            outputs: VecDeque::new(),
        };
        for handle in &view.peers {
            let peer = cloud.peer(handle.clone(), now);
            cloud.peers.insert(handle.endpoint.addr, peer);
        }
        cloud
    }

    /// A peer, as nothing is known of it but its address.
    fn peer(&mut self, handle: Arc<CloudPeer>, now: Instant) -> Peer {
        let idle = IDLE + IDLE_SPREAD.mul_f64(self.rng.random());
        Peer {
            mark: self.mark(handle.endpoint.addr),
            handle,
            introduce_at: None,
            told_at: now,
            // Four in a timeout, so that who has the same one keeps us.
            idle: idle.min(self.settings.peer_timeout / 4),
            sign: None,
            knows_us: false,
            greetings: 0,
            greet_at: now,
        }
    }

    /// This machine's addresses, and the networks on the cloud's own device.
    pub fn set_local(&mut self, ips: Vec<IpAddr>, overlay: Vec<IpNet>) {
        self.changed |= self.overlay != overlay;
        (self.ips, self.overlay) = (ips, overlay);
        let gone: Vec<SocketAddr> = self.tried.keys().copied().filter(|addr| !self.may_ask(*addr)).collect();
        for addr in &gone {
            self.tried.remove(addr);
        }
    }

    /// The addresses of a `-c`, when they were looked up; none if that failed.
    pub fn looked_up(&mut self, number: usize, addresses: Vec<SocketAddr>) {
        let mut usable: Vec<SocketAddr> = Vec::new();
        for addr in addresses.into_iter().map(canonical) {
            if self.may_ask(addr) && !usable.contains(&addr) && usable.len() < ADDRESSES_MAX {
                usable.push(addr);
            }
        }
        let Some(target) = self.targets.get_mut(number) else { return };
        // What was known stays known when a name server is away.
        if !usable.is_empty() && usable != target.addresses {
            (target.addresses, target.asked, target.fresh) = (usable, 0, true);
            self.ask_target(number);
        }
    }

    /// A control message. Frames are [`Cloud::heard_frame`]'s.
    pub fn heard(&mut self, from: SocketAddr, message: &Message<'_>, now: Instant) {
        let from = canonical(from);
        match message {
            Message::Frame(_) => self.heard_frame(from, now),
            Message::GetPeers(sign) => {
                if sign.mark.is_some_and(|mark| self.is_myself(from, mark)) || !self.admit(from, now) {
                    return;
                }
                let all: Vec<SocketAddr> = self.peers.keys().copied().collect();
                for list in ethcloud::peer_lists(self.settings.token, all) {
                    self.tell(from, list, now);
                }
                self.signed(from, sign, now);
            }
            Message::Peers(list) => {
                if self.admit(from, now) {
                    self.signed(from, &list.sign, now);
                    self.listed(from, *list, now);
                }
            }
            Message::Close => self.forget(from, Event::Closed(from)),
        }
    }

    /// A frame of this address has reached the device.
    pub fn heard_frame(&mut self, from: SocketAddr, now: Instant) {
        self.admit(canonical(from), now);
    }

    /// A station was seen behind a peer; of one that is no peer nothing is learned, and no group is a station.
    pub fn learn(&mut self, vlan: VlanId, mac: MacAddr, from: SocketAddr, now: Instant) {
        if let Some(peer) = self.peers.get(&canonical(from)) {
            self.fdb.learn(Sighting { vlan, mac, peer: peer.handle.idx }, now);
        }
    }

    /// A station was seen behind the device of the member that bridges this cloud.
    pub fn learn_here(&mut self, vlan: VlanId, mac: MacAddr, now: Instant) {
        self.fdb.learn(Sighting { vlan, mac, peer: HERE }, now);
    }

    /// A station was seen in the network that this cloud is bridged into.
    pub fn forget_station(&mut self, vlan: VlanId, mac: MacAddr) {
        self.fdb.forget(vlan, mac);
    }

    /// Forgets where every station is.
    pub fn forget_stations(&mut self) {
        let peers: Vec<PeerIdx> = self.peers.values().map(|peer| peer.handle.idx).chain([HERE]).collect();
        peers.into_iter().for_each(|peer| self.fdb.forget_peer(peer));
    }

    /// When [`Cloud::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let introductions = self.peers.values().filter_map(|peer| peer.introduce_at);
        let round = Some(self.list_at).filter(|_| !self.peers.is_empty());
        introductions.chain(round).chain([self.tick_at]).min()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.introduce(now);
        self.drop_silent(now);
        if now >= self.list_at && !self.peers.is_empty() {
            self.list_at = now + self.settings.peer_timeout / 2;
            self.tell_round(now);
        }
        if now < self.tick_at {
            return;
        }
        self.tick_at = now + TICK;
        self.fdb.handle_timeout(now);
        self.keep_alive(now);
        self.greet(now);
        self.turn_doubles(now);
        (0..self.targets.len()).for_each(|number| self.attend_target(number, now));
        self.try_listed(now);
    }

    /// Says goodbye to everybody.
    pub fn close(&mut self) {
        for peer in self.peers.values() {
            let datagram = ethcloud::close(self.settings.token).to_vec();
            self.outputs.push_back(Output::Send { to: peer.handle.endpoint, datagram });
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether there is something new to publish.
    pub fn take_changed(&mut self) -> bool {
        while self.fdb.poll_event().is_some() {
            self.changed = true;
        }
        std::mem::take(&mut self.changed)
    }

    pub fn view(&self) -> CloudView {
        let peers: Vec<Arc<CloudPeer>> = self.peers.values().map(|peer| peer.handle.clone()).collect();
        CloudView {
            by_addr: peers.iter().map(|peer| (peer.endpoint.addr, peer.clone())).collect(),
            by_idx: peers.iter().map(|peer| (peer.idx, peer.clone())).collect(),
            flooded: peers.iter().filter(|peer| !self.doubles.contains_key(&peer.endpoint.addr)).cloned().collect(),
            doubles: self.doubles.clone(),
            peers,
            overlay: self.overlay.clone(),
        }
    }

    pub fn has_peers(&self) -> bool {
        !self.peers.is_empty()
    }

    pub fn fdb_view(&self) -> FdbView {
        self.fdb.view()
    }

    /// Makes an address a peer, or notes that the peer was heard.
    fn admit(&mut self, from: SocketAddr, now: Instant) -> bool {
        let ms = self.epoch.ms(now);
        if let Some(peer) = self.peers.get(&from) {
            peer.handle.meter.heard(ms);
            return true;
        }
        if !self.may_ask(from) {
            return false;
        }
        if self.peers.len() >= PEERS_MAX {
            self.outputs.push_back(Output::Event(Event::Full(from)));
            return false;
        }
        let idx = PeerIdx(self.next_idx);
        self.next_idx += 1;
        let handle = Arc::new(CloudPeer { idx, endpoint: Endpoint::udp(from), since: now, meter: Meter::default() });
        handle.meter.heard(ms);
        let introduce_at = (!self.peers.is_empty()).then(|| now + self.rng.random_range(INTRODUCE));
        let was_tried = self.tried.remove(&from).is_some();
        let knows_us = was_tried || self.targets.iter().any(|target| target.addresses.contains(&from));
        let peer = Peer { introduce_at, knows_us, ..self.peer(handle, now) };
        self.peers.insert(from, peer);
        self.changed = true;
        self.outputs.push_back(Output::Event(Event::Joined(from)));
        true
    }

    fn forget(&mut self, addr: SocketAddr, event: Event) {
        if self.remove(addr) {
            self.outputs.push_back(Output::Event(event));
        }
    }

    /// Takes an address and its stations out, if it is a peer.
    fn remove(&mut self, addr: SocketAddr) -> bool {
        let Some(peer) = self.peers.remove(&addr) else { return false };
        self.fdb.forget_peer(peer.handle.idx);
        self.doubles.remove(&addr);
        let orphans = self.doubles.iter().filter(|(_, older)| **older == addr).map(|(younger, _)| *younger);
        if let Some(heir) = orphans.min_by_key(|orphan| self.peers.get(orphan).map(|peer| peer.handle.idx)) {
            self.promote(heir);
            self.doubles.remove(&addr);
        }
        self.changed = true;
        true
    }

    /// Takes note of what our kind says of itself.
    fn signed(&mut self, from: SocketAddr, sign: &Sign, now: Instant) {
        let marked = |proof: Mark| self.peers.iter().find(|(addr, peer)| **addr != from && peer.mark == proof);
        if let Some(other) = sign.proof.and_then(marked).map(|(addr, _)| *addr) {
            self.pair(from, other);
        }
        let (Some(mark), Some(id)) = (sign.mark, sign.id) else { return };
        let has_another = self.proof(from, id).is_some();
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if peer.sign.replace((id, mark)) != Some((id, mark)) && (!peer.knows_us || has_another) {
            (peer.greetings, peer.greet_at) = (GREETINGS, now);
            self.greet(now);
        }
    }

    /// The mark that the oldest other peer of this id drew for us.
    fn proof(&self, addr: SocketAddr, id: Mark) -> Option<Mark> {
        let same = self.peers.iter().filter(|(other, _)| **other != addr);
        let signed = same.filter_map(|(_, peer)| peer.sign.filter(|sign| sign.0 == id).map(|sign| (peer, sign.1)));
        signed.min_by_key(|(peer, _)| peer.handle.idx).map(|(_, mark)| mark)
    }

    /// Tells peers of our kind who we are, and who they are if they have another address.
    fn greet(&mut self, now: Instant) {
        let due = |peer: &Peer| peer.greetings > 0 && peer.greet_at <= now;
        let due: Vec<SocketAddr> = self.peers.iter().filter(|(_, peer)| due(peer)).map(|(addr, _)| *addr).collect();
        for addr in due {
            if let Some(peer) = self.peers.get_mut(&addr) {
                (peer.greetings, peer.greet_at, peer.knows_us) = (peer.greetings - 1, now + TICK, true);
            }
            self.tell(addr, self.greeting(addr), now);
        }
    }

    /// A list of nobody; to our kind it says who we are.
    fn greeting(&self, addr: SocketAddr) -> Vec<u8> {
        let signed = self.peers.get(&addr).and_then(|peer| Some((peer, peer.sign?)));
        let sign = signed.map_or_else(Sign::default, |(peer, (id, _))| Sign {
            mark: Some(peer.mark),
            id: Some(self.id),
            proof: self.proof(addr, id),
        });
        ethcloud::greeting(self.settings.token, &sign)
    }

    /// Two addresses are one node: the younger one, and what was a double of it, gets no floods.
    fn pair(&mut self, one: SocketAddr, other: SocketAddr) {
        let root = |addr: SocketAddr| self.doubles.get(&addr).copied().unwrap_or(addr);
        let mut ends = [root(one), root(other)];
        if ends[0] == ends[1] || !ends.iter().all(|addr| self.peers.contains_key(addr)) {
            return;
        }
        ends.sort_by_key(|addr| self.peers[addr].handle.idx);
        let [older, younger] = ends;
        self.doubles.values_mut().filter(|end| **end == younger).for_each(|end| *end = older);
        self.doubles.insert(younger, older);
        self.changed = true;
        self.outputs.push_back(Output::Event(Event::Double(younger, older)));
    }

    /// Floods go to this address of its node, and not to the one before.
    fn promote(&mut self, addr: SocketAddr) {
        if let Some(before) = self.doubles.remove(&addr) {
            self.doubles.values_mut().filter(|end| **end == before).for_each(|end| *end = addr);
            self.doubles.insert(before, addr);
            self.changed = true;
        }
    }

    /// Where a node is silent at the address that is flooded, another one of it has its turn.
    fn turn_doubles(&mut self, now: Instant) {
        let silence =
            |addr: &SocketAddr| self.peers.get(addr).map(|peer| now.saturating_duration_since(self.heard_at(peer)));
        let stale: Vec<SocketAddr> = self
            .doubles
            .iter()
            .filter(|(younger, older)| silence(older) >= Some(STALE) && silence(younger) < Some(STALE / 2))
            .map(|(younger, _)| *younger)
            .collect();
        stale.into_iter().for_each(|addr| self.promote(addr));
    }

    fn heard_at(&self, peer: &Peer) -> Instant {
        peer.handle.meter.heard_ms().map_or(peer.handle.since, |ms| self.epoch.at(ms))
    }

    /// Whether a datagram could go there and would not come back to us.
    fn may_ask(&self, addr: SocketAddr) -> bool {
        let ip = addr.ip();
        let family = if addr.is_ipv4() { self.settings.v4 } else { self.settings.v6 };
        // A link-local address says nothing without its link, and lists have no room for that.
        let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let nobody = ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::from([255; 4]) || addr.port() == 0;
        let nobody = nobody || is_link_local;
        let own = self.own.contains(&addr) || addr.port() == self.settings.port && self.ips.contains(&ip);
        family && !nobody && !own && !self.overlay.iter().any(|net| net.contains(&ip))
    }

    fn mark(&self, to: SocketAddr) -> Mark {
        let digest = Blake2s256::new().chain_update(self.secret).chain_update(to.to_string()).finalize();
        digest[..16].try_into().expect("a digest has 32 bytes")
    }

    /// Whether a mark is one of ours. It was drawn for the address it was sent to, so that address is us: `from` where
    /// nothing changed it on the way, another where a gateway did.
    fn is_myself(&mut self, from: SocketAddr, mark: Mark) -> bool {
        let tried = self.tried.iter().find(|(_, tried)| tried.mark == mark).map(|(addr, _)| *addr);
        let named = || self.targets.iter().flat_map(|target| target.addresses.iter().copied());
        let addr = tried.or_else(|| {
            [from].into_iter().chain(named()).chain(self.own.iter().copied()).find(|addr| self.mark(*addr) == mark)
        });
        let Some(addr) = addr else { return false };
        self.tried.remove(&addr);
        self.targets.iter_mut().for_each(|target| target.addresses.retain(|one| *one != addr));
        self.remove(from);
        self.remove(addr);
        if self.own.len() < OWN_MAX && self.own.insert(addr) {
            self.outputs.push_back(Output::Event(Event::Myself(addr)));
        }
        true
    }

    fn ask(&mut self, addr: SocketAddr) {
        let sign = Sign { mark: Some(self.mark(addr)), id: Some(self.id), proof: None };
        let datagram = ethcloud::get_peers(self.settings.token, &sign);
        self.outputs.push_back(Output::Send { to: Endpoint::udp(addr), datagram });
    }

    /// Asks whom a peer has named.
    fn listed(&mut self, by: SocketAddr, list: PeerList<'_>, now: Instant) {
        if self.tried.len() + usize::from(u8::MAX) > TRIED_MAX {
            self.tried.retain(|_, tried| tried.left > 0);
        }
        for addr in list.addresses().map(canonical) {
            if let Some(peer) = self.peers.get_mut(&addr) {
                // The others hear of it by that one.
                peer.introduce_at = None;
                continue;
            }
            // Who is not on this machine does not know what is.
            if !self.may_ask(addr) || addr.ip().is_loopback() && !by.ip().is_loopback() {
                continue;
            }
            let fresh = Tried { mark: self.mark(addr), left: TRIES, next_at: now };
            if self.tried.len() < TRIED_MAX || self.tried.contains_key(&addr) {
                let tried = self.tried.entry(addr).or_insert(fresh);
                if tried.left == 0 && tried.next_at <= now {
                    // Asked in vain before; lists name the dead for long. Once more, as it is named once more.
                    tried.left = 1;
                }
            }
        }
        self.try_listed(now);
    }

    fn try_listed(&mut self, now: Instant) {
        let mut asked = Vec::new();
        self.tried.retain(|addr, tried| {
            if tried.next_at > now {
                return true;
            }
            if tried.left == 0 {
                // Remembered for as long as lists may still name it.
                return tried.next_at + self.settings.peer_timeout > now;
            }
            (tried.left, tried.next_at) = (tried.left - 1, now + TICK);
            asked.push(*addr);
            true
        });
        asked.into_iter().for_each(|addr| self.ask(addr));
    }

    fn attend_target(&mut self, number: usize, now: Instant) {
        let target = &mut self.targets[number];
        if target.addresses.iter().any(|addr| self.peers.contains_key(addr)) {
            return;
        }
        if target.looked_up.is_none_or(|at| now >= at + LOOK_UP) {
            target.looked_up = Some(now);
            self.outputs.push_back(Output::LookUp(number));
        }
        if !std::mem::take(&mut target.fresh) {
            self.ask_target(number);
        }
    }

    fn ask_target(&mut self, number: usize) {
        let target = &mut self.targets[number];
        let Some(count) = u32::try_from(target.addresses.len()).ok().filter(|count| *count > 0) else { return };
        let addr = target.addresses[(target.asked / ASKS_PER_ADDRESS % count) as usize];
        target.asked = target.asked.wrapping_add(1);
        if self.may_ask(addr) {
            self.ask(addr);
        }
    }

    fn drop_silent(&mut self, now: Instant) {
        let silent = |peer: &Peer| now.saturating_duration_since(self.heard_at(peer)) >= self.settings.peer_timeout;
        let gone: Vec<SocketAddr> = self.peers.iter().filter(|(_, peer)| silent(peer)).map(|(addr, _)| *addr).collect();
        gone.into_iter().for_each(|addr| self.forget(addr, Event::Silent(addr)));
    }

    /// The list of the round. Where there are many peers, as many of them as the manual says are told of as many, and the
    /// next round goes on with the others on both sides; when all were told once, the lists are one step further, so
    /// that everybody comes to be told of everybody. That peers do not take each other for gone is the keepalives'
    /// business.
    fn tell_round(&mut self, now: Instant) {
        let all: Vec<SocketAddr> = self.peers.keys().copied().collect();
        let count = subset(all.len());
        let from = |start: usize| (0..count).map(|number| all[(start + number) % all.len()]).collect::<Vec<_>>();
        let (named, told) = (from(self.turn.0), from(self.turn.1));
        let lists = ethcloud::peer_lists(self.settings.token, named);
        let next = self.turn.1 + count;
        let round = if next >= all.len() { 2 } else { 1 };
        self.turn = ((self.turn.0 + round * count) % all.len(), next % all.len());
        for addr in told {
            lists.iter().for_each(|list| self.tell(addr, list.clone(), now));
        }
    }

    /// Tells the other peers of those who have just come.
    fn introduce(&mut self, now: Instant) {
        let mut new = Vec::new();
        for (addr, peer) in &mut self.peers {
            if peer.introduce_at.take_if(|at| now >= *at).is_some() {
                new.push(*addr);
            }
        }
        if new.is_empty() {
            return;
        }
        let all: Vec<SocketAddr> = self.peers.keys().copied().collect();
        for addr in all.into_iter().filter(|addr| new != [*addr]) {
            for list in ethcloud::peer_lists(self.settings.token, new.iter().copied()) {
                self.tell(addr, list, now);
            }
        }
    }

    fn keep_alive(&mut self, now: Instant) {
        let idle = |peer: &Peer| {
            let sent = peer.handle.meter.sent_ms().map_or(peer.told_at, |ms| self.epoch.at(ms).max(peer.told_at));
            now.saturating_duration_since(sent) >= peer.idle
        };
        let idle: Vec<SocketAddr> = self.peers.iter().filter(|(_, peer)| idle(peer)).map(|(addr, _)| *addr).collect();
        for addr in idle {
            self.tell(addr, self.greeting(addr), now);
        }
    }

    fn tell(&mut self, addr: SocketAddr, datagram: Vec<u8>, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&addr) {
            peer.told_at = now;
        }
        self.outputs.push_back(Output::Send { to: Endpoint::udp(addr), datagram });
    }
}

/// How many of so many peers a round tells, and tells of.
fn subset(peers: usize) -> usize {
    let root = peers.isqrt();
    let root = root + usize::from(root * root < peers);
    root.max(SUBSET_MIN).min(peers)
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
#[path = "cloud_tests.rs"]
mod tests;
