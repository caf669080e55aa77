//! PeerTable: owns the peers core and publishes what the data path reads.
//!
//! A restart loses half-made handshakes and the state of probes. Sessions and routes are taken up again from the view
//! that is still published, the map from its file; frames flow all the while.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::Level;
use xtra::{Actor, Context, Handler};

use super::client::{ClientShared, Ending, MAP_FILE, SavedNetwork, seed};
use super::datapath::{count_handshake, send_staged};
use super::desk::WriteDesk;
use super::ext::{Caster, Service, StopReason};
use super::uplink_keeper::local;
use super::why::surroundings;
use crate::counters::{DropReason, add};
use crate::ids::{Endpoint, MacAddr, PeerIdx, PublicKey, Route, UplinkId};
use crate::io::batch::SendBatch;
use crate::io::clock::unix_time;
use crate::io::files::FileError;
use crate::io::holes::Holes;
use crate::io::udp::{SOCKET_BUFFER, UdpUplink};
use crate::logging;
use crate::messages::mac_learning::Members;
use crate::messages::peer_table::{
    AskPeer, Confirmed, FromServer, Inbound, Joined, LookedAround, Neighbour, OwnAccount, OwnCandidates, OwnNat,
    PeerControl, Punched, SeenFrom, ServerPlace, SetMode, UplinksChanged, Want, WaysChanged, WhatWeKnow,
};
use crate::messages::server_link::{MapAt, OwnStats, SayToServer, UnderlayChanged};
use crate::proto::clock::{ClockWatch, Jump};
use crate::proto::crypto::Trust;
use crate::proto::map::MemberMap;
use crate::proto::mtu::Fit;
use crate::proto::nat::NatReport;
use crate::proto::path::State;
use crate::proto::peers::{Event, Output, PathDescription, PeerDescription, PeerState, Peers, credentials};
use crate::proto::punch::SPRAY_OPEN;
use crate::proto::session::{Owner, Session};
use crate::view::{Inlet, Outlet, PeerEntry, PeerHandle, PeerView};
use crate::wire::cert::Certificate;
use crate::wire::control::{Control, PeerReport};
use crate::wire::header::{Kind, SealedHeader};

/// How often what the status shows is renewed when nothing changes.
const REFRESH: Duration = Duration::from_secs(1);
/// Later than this, and we were not run at all: stopped, or the machine slept. Others have given us up meanwhile.
const ASLEEP: Duration = Duration::from_secs(5);
/// How often the server is told our totals.
const STATS_INTERVAL: Duration = Duration::from_secs(2);
/// Questions of peers that are answered at the same time; the others are repeated.
const EXPLAINING_MAX: usize = 16;

/// A socket that a hole was found with is kept so long without a path that uses it.
const PUNCHED_KEPT: Duration = Duration::from_secs(120);

/// Whom the peer table tells.
#[derive(Clone)]
pub struct PeerTableCasts {
    pub say: Caster<SayToServer>,
    pub map_at: Caster<MapAt>,
    pub stats: Caster<OwnStats>,
    pub members: Caster<Members>,
    /// To ourselves, for what tasks find out.
    pub punched: Caster<Punched>,
    pub looked: Caster<LookedAround>,
    /// That this machine slept, to the server link, which tells everybody.
    pub woken: Caster<UnderlayChanged>,
}

/// The actor.
pub struct PeerTable {
    shared: Arc<ClientShared>,
    casts: PeerTableCasts,
    core: Option<Peers>,
    handles: BTreeMap<PeerIdx, Arc<PeerHandle>>,
    stations: Vec<(MacAddr, PeerIdx)>,
    batch: SendBatch,
    changed: bool,
    refresh_at: Instant,
    clock: ClockWatch,
    stats_at: Instant,
    /// Sockets that holes were kept with, and when a path last used them.
    punched: BTreeMap<UplinkId, Instant>,
    punching: Option<smol::Task<()>>,
    desk: WriteDesk,
    /// Peers' questions whose answers are being found out.
    explaining: BTreeSet<(PeerIdx, u64)>,
    looking: Vec<smol::Task<()>>,
    goodbye: bool,
}

impl PeerTable {
    pub fn new(shared: Arc<ClientShared>, casts: PeerTableCasts) -> Self {
        let now = Instant::now();
        let batch = SendBatch::new(shared.uplinks.max_segments());
        let punched =
            UplinkId::PUNCHED.map(UplinkId).filter(|id| shared.uplinks.has(*id)).map(|id| (id, now)).collect();
        let mut table = Self {
            shared,
            casts,
            core: None,
            handles: BTreeMap::new(),
            stations: Vec::new(),
            batch,
            changed: true,
            refresh_at: now,
            clock: ClockWatch::default(),
            stats_at: now + REFRESH,
            punched,
            punching: None,
            desk: WriteDesk::default(),
            explaining: BTreeSet::new(),
            looking: Vec::new(),
            goodbye: false,
        };
        table.load(now);
        table
    }

    /// Makes the core from what is on disk and what is still published.
    fn load(&mut self, now: Instant) {
        let saved = SavedNetwork::load(&self.shared.state).ok().flatten();
        let Some((pinned, lease)) = saved.and_then(|saved| Some((saved.pinned()?, saved.lease()))) else { return };
        let epoch = lease.as_ref().map_or(0, |(_, epoch)| *epoch);
        let mut trust = Trust::new(pinned.network, pinned.signer, epoch);
        let map = self.shared.state.read(MAP_FILE).ok().flatten();
        let map = map.and_then(|bytes| match MemberMap::load(&bytes, &mut trust) {
            Some(map) => Some(map),
            None => {
                let aside = self.shared.state.set_aside(MAP_FILE);
                log::warn!("{MAP_FILE} is broken; it is kept as {aside:?}");
                None
            }
        });
        let own = lease.as_ref().and_then(|(certificate, _)| Certificate::parse(certificate).ok());
        if own.is_some_and(|own| trust.is_revoked(own.serial)) && self.shared.config.join.is_none() {
            self.end_removed();
        }
        let node = self.shared.node(pinned.network);
        let (direct, clock) = (self.shared.config.direct, self.shared.views.epoch);
        let mut core = Peers::new(node, trust, map.unwrap_or_default(), direct, clock, now, seed());
        let view = self.shared.views.peers.load_full();
        if !view.peers.is_empty() {
            self.handles = view.peers.iter().map(|(idx, entry)| (*idx, entry.handle.clone())).collect();
            let known = view.peers.values().map(|entry| {
                let route = entry.handle.outlet().as_ref().map(|outlet| outlet.route);
                (entry.handle.key, entry.handle.idx, entry.handle.meter.clone(), route)
            });
            core.resume(known, view.sessions.values().cloned(), now);
        }
        if let Some((certificate, _)) = lease {
            core.set_certificate(certificate);
        }
        core.set_server(self.shared.views.server.load().endpoint, now);
        self.prepare(&mut core, now);
        self.core = Some(core);
        self.changed = true;
    }

    /// What a new core must know: of this machine, and what was told to others before it.
    fn prepare(&self, core: &mut Peers, now: Instant) {
        let modes = self.shared.modes.load();
        core.set_default_mode(modes.0.unwrap_or(self.shared.config.multipath));
        modes.1.iter().for_each(|(key, mode)| core.set_mode(*key, *mode));
        core.set_uplinks(local(&self.shared.uplinks), now);
        core.set_hard_nat(self.shared.config.hard_nat);
        core.set_nat(NatReport::clone(&self.shared.nat.load()));
        core.set_candidates(Vec::clone(&self.shared.candidates.load()), now);
    }

    /// Opens many sockets towards a peer, and waits beside the actors for an answer through one of them.
    fn open_sockets(&mut self, peer: PeerIdx, to: SocketAddr, datagrams: Vec<Vec<u8>>) {
        let holes = match Holes::open(to, &datagrams) {
            Ok(holes) => holes,
            Err(error) => {
                log::debug!("no sockets towards {to}: {error}");
                return;
            }
        };
        add(&self.shared.views.counters.udp_tx_datagrams, holes.count() as u64);
        log::debug!("{} sockets towards {to}, to find a hole", holes.count());
        let (tell, view) = (self.casts.punched.clone(), self.shared.views.peers.clone());
        self.punching = Some(smol::unblock(move || {
            let mut opened = None;
            let is_good = |_, datagram: &[u8]| {
                opened = open_control(&view.load(), peer, datagram);
                opened.is_some()
            };
            let answer = holes.wait(SPRAY_OPEN, is_good, Instant::now);
            if let (Some(answer), Some((session, plain))) = (answer, opened) {
                tell.cast(Punched { socket: answer.socket, from: answer.from, session, plain });
            }
        }));
    }

    /// Closes sockets that no path has used for a while.
    fn sweep_punched(&mut self, now: Instant) {
        let Some(core) = &self.core else { return };
        let uplinks = &self.shared.uplinks;
        self.punched.retain(|id, used| {
            if core.uses(*id) {
                *used = now;
            }
            let keep = now.saturating_duration_since(*used) < PUNCHED_KEPT;
            if !keep {
                uplinks.remove(*id);
            }
            keep
        });
    }

    fn drain(&mut self, now: Instant) {
        let (mut ready, mut sends, mut trials) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(output) = self.core.as_mut().and_then(Peers::poll_output) {
            match output {
                Output::Send { route, datagram } => sends.push((route, datagram)),
                Output::SendUnfragmented { route, datagram } => trials.push((route, datagram)),
                Output::ToServer(message) => {
                    self.casts.say.cast(SayToServer(message));
                }
                Output::Changed => self.changed = true,
                Output::Ready(idx) => ready.push(idx),
                Output::Unreachable(idx) => {
                    if let Some(handle) = self.handles.get(&idx) {
                        let lost = handle.take_staged().len() as u64;
                        self.shared.views.counters.dropped_many(DropReason::Unreachable, lost);
                    }
                }
                Output::MapAt(version) => {
                    self.shared.map_version.store(version, Relaxed);
                    self.casts.map_at.cast(MapAt(version));
                }
                Output::Dropped(reason) => self.shared.views.counters.dropped(reason),
                Output::Save => self.save(),
                Output::OpenSockets { peer, to, datagrams } => self.open_sockets(peer, to, datagrams),
                Output::Answered { id, answer } => self.shared.words.answer(id, answer),
                Output::Asked { peer, nonce } => self.explain(peer, nonce),
                Output::Event(event) => self.tell(&event, now),
            }
        }
        if std::mem::take(&mut self.changed) {
            self.publish();
        }
        // Publish before sending: the answer may be there sooner than the next turn, and must find its session.
        for (route, datagram) in sends {
            count_handshake(&self.shared.views.counters, &datagram);
            self.shared.uplinks.send_by(route, &datagram);
        }
        for (route, datagram) in trials {
            self.shared.uplinks.send_unfragmented(route, &datagram);
        }
        for idx in ready {
            if let Some(handle) = self.handles.get(&idx) {
                send_staged(handle, &self.shared.uplinks, &mut self.batch, &self.shared.views, now);
            }
        }
    }

    fn publish(&mut self) {
        let Some(core) = &self.core else { return };
        let described = core.describe();
        let mut view = PeerView::default();
        let mut stations = Vec::with_capacity(described.len());
        for peer in &described {
            let handle = self
                .handles
                .entry(peer.idx)
                .or_insert_with(|| Arc::new(PeerHandle::new(peer.idx, peer.key, peer.meter.clone())));
            let meter = |route| peer.paths.iter().find(|path| path.route == route).map(|path| path.meter.clone());
            let fit = |path: &PathDescription| Fit::new(path.mtu, &path.route, self.shared.config.mss_clamp);
            let outlet = peer.session.clone().zip(peer.route).map(|(session, route)| Outlet {
                session,
                route,
                meter: meter(route).unwrap_or_default(),
                plan: peer.plan.clone(),
                // Whichever of them a frame takes.
                fit: peer.paths.iter().filter(|path| path.carries).map(fit).reduce(Fit::least).unwrap_or(Fit::ANY),
            });
            handle.set_inlets(peer.paths.iter().map(inlet).collect());
            handle.set_outlet(outlet);
            let certificate = &peer.certificate;
            view.directory.insert(certificate.ip4.into(), certificate.mac);
            view.directory.extend(certificate.ip6.map(|ip6| (ip6.into(), certificate.mac)));
            let credentials = credentials(certificate);
            view.has_bridges |= credentials.rights.is_bridge();
            stations.push((certificate.mac, peer.idx));
            let flooded = peer.online || peer.session.is_some();
            view.peers
                .insert(peer.idx, PeerEntry { handle: handle.clone(), name: peer.name.clone(), credentials, flooded });
        }
        view.sessions = core.sessions().map(|session| (session.local_index, session)).collect();
        let gone: Vec<_> = self.handles.keys().filter(|idx| !view.peers.contains_key(idx)).copied().collect();
        for idx in &gone {
            if let Some(handle) = self.handles.remove(idx) {
                handle.set_outlet(None);
            }
        }
        self.shared.views.peers.store(Arc::new(view));
        self.count_connections(&described);
        self.shared.peers.store(Arc::new(described));
        if stations != self.stations || !gone.is_empty() {
            let own = self.shared.views.own.load().mac;
            if self.casts.members.cast(Members { own, stations: stations.clone(), gone }) {
                self.stations = stations;
            }
        }
    }

    /// A peer is connected while there is a session with it, whichever path that takes.
    fn count_connections(&self, described: &[PeerDescription]) {
        let connected = |peers: &[PeerDescription]| -> BTreeSet<PublicKey> {
            peers.iter().filter(|peer| peer.session.is_some()).map(|peer| peer.key).collect()
        };
        let (before, after) = (connected(&self.shared.peers.load()), connected(described));
        let counters = &self.shared.views.counters;
        add(&counters.connections_established, after.difference(&before).count() as u64);
        add(&counters.connections_dropped, before.difference(&after).count() as u64);
    }

    /// A peer wants to know what we tried. How this machine is connected has to be found out first; the question is
    /// repeated meanwhile.
    fn explain(&mut self, peer: PeerIdx, nonce: u64) {
        if self.explaining.len() >= EXPLAINING_MAX || !self.explaining.insert((peer, nonce)) {
            return;
        }
        let (shared, tell) = (self.shared.clone(), self.casts.looked.clone());
        self.looking.retain(|task| !task.is_finished());
        self.looking.push(smol::spawn(async move {
            let found = surroundings(&shared).await;
            tell.cast(LookedAround { peer, nonce, found });
        }));
    }

    fn save(&mut self) {
        let Some(core) = &self.core else { return };
        let bytes = core.save();
        let shared = self.shared.clone();
        self.desk.put(move || {
            if let Err(error) = shared.state.write_atomic(MAP_FILE, &bytes) {
                say_unsaved(&error);
            }
        });
    }

    fn tell(&self, event: &Event, now: Instant) {
        let counters = &self.shared.views.counters;
        let (kind, text) = match event {
            Event::Session { peer, route } => {
                add(&counters.handshakes_done, 1);
                logging::limited(now, Level::Debug, "sessions", format_args!("session with {peer} by {route}"));
                return;
            }
            Event::PathChanged { peer, to: Some(route) } if route.is_direct() => {
                add(&counters.paths_validated, 1);
                ("direct paths", format!("{peer}: direct by {}", route.endpoint))
            }
            Event::PathChanged { peer, to: Some(_) } => ("relayed paths", format!("{peer}: by the server's relay")),
            Event::PathChanged { .. } => return,
            Event::PathLost { peer, route } => {
                add(&counters.paths_lost, 1);
                ("lost paths", format!("{peer}: {} does not answer", route.endpoint))
            }
            Event::Lost { peer } => ("lost members", format!("{peer} is lost: it answers by no way any more")),
            Event::Left { peer } => ("members that left", format!("{peer} has left")),
            Event::Unreachable { peer } => ("unreachable members", format!("{peer} cannot be reached")),
            Event::OwnRevoked => {
                self.end_removed();
                return;
            }
            Event::Revoked { peer } => {
                self.shared.words.removed(peer);
                ("removed members", format!("{peer} is no member any more"))
            }
        };
        self.shared.events.say_limited(kind, text, now);
    }

    /// The network has removed us, and signed that it did.
    fn end_removed(&self) {
        let text = "this machine was removed from the network by its server; join again with a new invitation \
                    (`eps-actor invite` at the server)";
        self.shared.events.say(text.into());
        let _ = self.shared.end.try_send(Ending::Failed(text.into()));
    }

    fn send_stats(&self) {
        let peers = self.shared.peers.load();
        let meters = peers.iter().map(|peer| &peer.meter);
        let (rx, tx) = meters
            .fold((0, 0), |(rx, tx), meter| (rx + meter.rx_bytes.load(Relaxed), tx + meter.tx_bytes.load(Relaxed)));
        let reports = peers
            .iter()
            .filter(|peer| peer.session.is_some() && peer.state != PeerState::Lost)
            .map(|peer| PeerReport {
                peer: peer.key.node_id(),
                direct: peer.state == PeerState::Direct,
                rtt_us: peer.srtt.map_or(0, |srtt| srtt.as_micros().min(u128::from(u32::MAX)) as u32),
                rx_bytes: peer.meter.rx_bytes.load(Relaxed),
                tx_bytes: peer.meter.tx_bytes.load(Relaxed),
            })
            .take(crate::wire::control::STATS_PEERS_MAX)
            .collect();
        self.casts.stats.cast(OwnStats(Control::Stats { rx_bytes: rx, tx_bytes: tx, peers: reports }));
    }

    fn count(&self, result: Result<(), DropReason>) {
        if let Err(reason) = result {
            self.shared.views.counters.dropped(reason);
        }
    }
}

/// A path as the data path needs it.
fn inlet(path: &PathDescription) -> Inlet {
    Inlet { route: path.route, meter: path.meter.clone(), is_valid: path.state == State::Valid }
}

/// Opens a CTRL datagram that is of a session with this peer.
fn open_control(view: &PeerView, peer: PeerIdx, datagram: &[u8]) -> Option<(Arc<Session>, Vec<u8>)> {
    let header = SealedHeader::parse(datagram).ok().filter(|header| header.kind == Kind::Ctrl)?;
    let session = view.sessions.get(&header.receiver).filter(|session| session.owner == Owner::Peer(peer))?;
    let mut datagram = datagram.to_vec();
    let plain = session.open(&header, &mut datagram).ok()?.to_vec();
    Some((session.clone(), plain))
}

/// The server decides how often there is a map to write.
fn say_unsaved(error: &FileError) {
    let text = format_args!("the member map cannot be written: {error}");
    logging::limited(Instant::now(), Level::Warn, "unsaved maps", text);
}

impl Actor for PeerTable {
    type Stop = StopReason;

    async fn stopped(mut self) -> StopReason {
        if self.goodbye {
            self.core.iter_mut().for_each(Peers::goodbye);
            self.drain(Instant::now());
            // Who gave its lease back keeps no map.
            if !matches!(SavedNetwork::load(&self.shared.state), Ok(None)) {
                self.save();
            }
            self.desk.cleared().await;
        }
        StopReason::Requested
    }
}

super::ext::answers_pings!(PeerTable);

impl Service for PeerTable {
    const NAME: &'static str = "peer_table";

    fn next_timeout(&self) -> Option<Instant> {
        let core = self.core.as_ref().and_then(Peers::poll_timeout);
        [core, Some(self.refresh_at)].into_iter().flatten().min()
    }

    fn on_timeout(&mut self, now: Instant) {
        if let Some(core) = &mut self.core {
            core.handle_timeout(now);
        }
        if now >= self.refresh_at {
            let mut slept = now.saturating_duration_since(self.refresh_at) > ASLEEP;
            self.refresh_at = now + REFRESH;
            self.shared.events.summarize(now);
            logging::summarize(now);
            if let Some(jump) = self.clock.look(now, unix_time()) {
                self.shared.events.say(jump.to_string());
                // The monotonic clock stands still while the machine sleeps, and the wall clock does not.
                slept |= matches!(jump, Jump::Forward(_));
            }
            if slept {
                self.casts.woken.cast(UnderlayChanged { moved: true });
            }
            if let Some(core) = &self.core {
                self.shared.peers.store(Arc::new(core.describe()));
            }
            self.sweep_punched(now);
        }
        if now >= self.stats_at {
            self.stats_at = now + STATS_INTERVAL;
            self.send_stats();
        }
    }

    fn settle(&mut self, now: Instant) {
        self.drain(now);
    }

    fn stopping(&mut self, reason: &StopReason) {
        self.goodbye = matches!(reason, StopReason::Requested);
    }
}

impl Handler<Joined> for PeerTable {
    type Return = ();

    async fn handle(&mut self, joined: Joined, _: &mut Context<Self>) {
        let now = Instant::now();
        if self.core.is_none() {
            let trust = Trust::new(joined.pinned.network, joined.pinned.signer, joined.epoch);
            let node = self.shared.node(joined.pinned.network);
            let (direct, clock) = (self.shared.config.direct, self.shared.views.epoch);
            let mut core = Peers::new(node, trust, MemberMap::default(), direct, clock, now, seed());
            core.set_server(self.shared.views.server.load().endpoint, now);
            self.prepare(&mut core, now);
            self.core = Some(core);
        }
        if let Some(core) = &mut self.core {
            core.set_certificate(joined.certificate);
            self.casts.map_at.cast(MapAt(core.map_version()));
        }
        // Our own address may be new: the forwarding database wants it.
        self.stations.clear();
        self.changed = true;
    }
}

impl Handler<Want> for PeerTable {
    type Return = ();

    async fn handle(&mut self, Want(idx): Want, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            core.want(idx, Instant::now());
        }
    }
}

impl Handler<Inbound> for PeerTable {
    type Return = ();

    async fn handle(&mut self, Inbound { via, datagram }: Inbound, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            let result = core.handle_handshake(via, &datagram, Instant::now());
            self.count(result);
        }
    }
}

impl Handler<PeerControl> for PeerTable {
    type Return = ();

    async fn handle(&mut self, PeerControl { session, via, plain }: PeerControl, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            let result = core.handle_control(&session, via, &plain, Instant::now());
            self.count(result);
        }
    }
}

impl Handler<Confirmed> for PeerTable {
    type Return = ();

    async fn handle(&mut self, Confirmed { session, via }: Confirmed, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            core.confirmed(&session, via, Instant::now());
        }
    }
}

impl Handler<SeenFrom> for PeerTable {
    type Return = ();

    async fn handle(&mut self, SeenFrom { peer, via }: SeenFrom, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            core.seen_from(peer, via, Instant::now());
        }
    }
}

impl Handler<FromServer> for PeerTable {
    type Return = ();

    async fn handle(&mut self, FromServer(message): FromServer, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            core.handle_server(message, Instant::now());
        }
    }
}

impl Handler<ServerPlace> for PeerTable {
    type Return = ();

    async fn handle(&mut self, ServerPlace(server): ServerPlace, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            core.set_server(server, Instant::now());
        }
    }
}

impl Handler<UplinksChanged> for PeerTable {
    type Return = ();

    async fn handle(&mut self, UplinksChanged(uplinks): UplinksChanged, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            core.set_uplinks(uplinks, Instant::now());
        }
    }
}

impl Handler<WaysChanged> for PeerTable {
    type Return = ();

    async fn handle(&mut self, WaysChanged { moved }: WaysChanged, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            core.uplinks_changed(moved, Instant::now());
        }
    }
}

impl Handler<SetMode> for PeerTable {
    type Return = ();

    async fn handle(&mut self, SetMode { peer, mode }: SetMode, _: &mut Context<Self>) {
        // Kept beside the actor, so that it outlives it.
        let (mut of_all, mut of_one) = (**self.shared.modes.load()).clone();
        match peer {
            Some(key) => _ = of_one.insert(key, mode),
            None => of_all = Some(mode),
        }
        self.shared.modes.store(Arc::new((of_all, of_one)));
        if let Some(core) = &mut self.core {
            match peer {
                Some(key) => core.set_mode(key, mode),
                None => core.set_default_mode(mode),
            }
        }
    }
}

impl Handler<OwnCandidates> for PeerTable {
    type Return = ();

    async fn handle(&mut self, OwnCandidates(list): OwnCandidates, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            core.set_candidates(list, Instant::now());
        }
    }
}

impl Handler<OwnNat> for PeerTable {
    type Return = ();

    async fn handle(&mut self, OwnNat(report): OwnNat, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            core.set_nat(report);
        }
    }
}

impl Handler<AskPeer> for PeerTable {
    type Return = ();

    async fn handle(&mut self, AskPeer { peer, question, id, end }: AskPeer, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            core.ask(peer, question, id, end, Instant::now());
        }
    }
}

impl Handler<Neighbour> for PeerTable {
    type Return = ();

    async fn handle(&mut self, Neighbour { node, addr }: Neighbour, _: &mut Context<Self>) {
        if let Some(core) = &mut self.core {
            core.neighbour(node, addr, Instant::now());
        }
    }
}

impl Handler<OwnAccount> for PeerTable {
    type Return = ();

    async fn handle(&mut self, OwnAccount { peer, tell }: OwnAccount, _: &mut Context<Self>) {
        if let Some(core) = &self.core
            && let Some(side) = core.account(peer)
        {
            // Whoever gave up does not hear it.
            let _ = tell.try_send(WhatWeKnow { side, cached: core.is_cached(peer) });
        }
    }
}

impl Handler<Punched> for PeerTable {
    type Return = ();

    async fn handle(&mut self, Punched { socket, from, session, plain }: Punched, _: &mut Context<Self>) {
        let (now, uplinks) = (Instant::now(), &self.shared.uplinks);
        let Some(core) = &mut self.core else { return };
        let kept = uplinks
            .free(UplinkId::PUNCHED)
            .and_then(|id| uplinks.add(UdpUplink::adopt(id, socket, SOCKET_BUFFER).ok()?).ok());
        let Some(uplink) = kept else {
            log::debug!("a hole towards {from} cannot be kept");
            return;
        };
        self.punched.insert(uplink.id(), now);
        let via = Route::direct(Endpoint { uplink: uplink.id(), addr: from });
        let result = core.handle_control(&session, via, &plain, now);
        self.count(result);
    }
}

impl Handler<LookedAround> for PeerTable {
    type Return = ();

    async fn handle(&mut self, LookedAround { peer, nonce, found }: LookedAround, _: &mut Context<Self>) {
        self.explaining.remove(&(peer, nonce));
        if let Some(core) = &mut self.core
            && let Some(side) = core.account(peer)
        {
            core.tell_account(peer, nonce, found.complete(side));
        }
    }
}
