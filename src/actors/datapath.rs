//! The way of a frame, both directions: direct calls on views, sessions and batches, no mailbox.
//!
//! [`Egress`] belongs to the TAP's reader, [`Ingress`] to the reader of a socket. Both load each view once per batch.
//! Every decision is a core's (`proto::forward`, `proto::guard`, `proto::session`); here they are put in a row, and
//! what was dropped is counted by its reason.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::counters::{Counters, DropReason, add};
use crate::ids::{Endpoint, MacAddr, Route, SessionIndex};
use crate::io::batch::SendBatch;
use crate::io::tap_slot::TapTx;
use crate::io::uplinks::Uplinks;
use crate::messages::peer_table::{Confirmed, Inbound, PeerControl, SeenFrom, Want};
use crate::messages::server_link::{ServerControl, ServerInbound};
use crate::proto::crypto::{mac16, same_mac};
use crate::proto::fdb::Sighting;
use crate::proto::forward::{self, EgressFacts, Ingress as Verdict};
use crate::proto::guard::{self, Rights};
use crate::proto::session::{Epoch, Session};
use crate::view::{FdbView, Outlet, PeerEntry, PeerHandle, PeerView, SelfView, ServerView};
use crate::wire::ethernet::FrameView;
use crate::wire::handshake::{HandshakeView, Hint, HintReason};
use crate::wire::header::{HEADER_LEN, Kind, SealedHeader};
use crate::wire::relay;

use super::ext::Caster;

/// Plaintext bytes that padding never exceeds: the frame of the default MTU with a VLAN tag.
const PAD_LIMIT: usize = 1376 + 18;
/// The longest frame that is sealed: the largest MTU there is, an Ethernet header and a VLAN tag. What is longer has no
/// place in a UDP datagram.
const FRAME_MAX: usize = 9000 + 18;
/// HINTs one source (an IPv4 /24 or an IPv6 /64) is sent in a second.
const HINTS_PER_SECOND: u32 = 10;
/// Sources of HINTs remembered within a second.
const HINT_SOURCES_MAX: usize = 1024;

/// Everything published, shared by all who read it.
#[derive(Clone)]
pub struct Views {
    pub epoch: Epoch,
    pub peers: Arc<ArcSwap<PeerView>>,
    pub fdb: Arc<ArcSwap<FdbView>>,
    pub own: Arc<ArcSwap<SelfView>>,
    pub server: Arc<ArcSwap<ServerView>>,
    pub counters: Arc<Counters>,
}

/// Seals a frame for a peer into the batch. Hot: no allocation, no lock.
fn seal_into(batch: &mut SendBatch, outlet: &Outlet, frame: &[u8]) -> Result<(), DropReason> {
    let sealed = Session::sealed_len(frame.len(), PAD_LIMIT);
    let Outlet { session, route } = outlet;
    let head = route.relay.map_or(0, |_| HEADER_LEN);
    let space = batch.reserve(head + sealed);
    if let Some(token) = route.relay {
        space[..HEADER_LEN].copy_from_slice(&relay::header(token));
    }
    let datagram = &mut space[head..];
    datagram[HEADER_LEN..HEADER_LEN + frame.len()].copy_from_slice(frame);
    session.seal(Kind::Data, datagram, frame.len())?;
    batch.commit(route.endpoint, head + sealed);
    Ok(())
}

/// Counts a handshake datagram that is about to be sent.
pub fn count_handshake(counters: &Counters, datagram: &[u8]) {
    match Kind::of(datagram) {
        Some(Kind::Init | Kind::Enrol1) => add(&counters.handshakes_sent, 1),
        Some(Kind::Resp | Kind::Enrol2) => add(&counters.handshakes_answered, 1),
        Some(
            Kind::Data | Kind::Ctrl | Kind::Agg | Kind::Frag | Kind::Cookie | Kind::Hint | Kind::Relay | Kind::Enrol3,
        )
        | None => {}
    }
}

/// Sends what was kept for a peer, now that there is a session.
pub fn send_staged(handle: &PeerHandle, uplinks: &Uplinks, batch: &mut SendBatch, views: &Views, now: Instant) {
    let outlet = handle.outlet();
    let Some(outlet) = outlet.as_deref() else { return };
    let (mut frames, mut bytes) = (0, 0);
    for frame in handle.take_staged() {
        match seal_into(batch, outlet, &frame) {
            Ok(()) => (frames, bytes) = (frames + 1, bytes + frame.len() as u64),
            Err(reason) => views.counters.dropped(reason),
        }
    }
    if frames > 0 {
        handle.meter.transmitted(frames, bytes, views.epoch.ms(now));
        uplinks.flush(batch);
    }
}

/// From the TAP to the sockets.
pub struct Egress {
    views: Views,
    uplinks: Uplinks,
    want: Caster<Want>,
    tap: TapTx,
    batch: SendBatch,
    answer: Vec<u8>,
}

/// The views of one batch.
struct EgressScope<'a> {
    peers: &'a PeerView,
    fdb: &'a FdbView,
    facts: Option<EgressFacts>,
    own: &'a SelfView,
    now: Instant,
    now_ms: u64,
}

impl Egress {
    pub fn new(views: Views, uplinks: Uplinks, want: Caster<Want>, tap: TapTx) -> Self {
        let batch = SendBatch::new(uplinks.max_segments());
        Self { views, uplinks, want, tap, batch, answer: Vec::with_capacity(128) }
    }

    /// Sends the frames of one burst. `frames` holds them one after the other, `lengths` where each ends.
    pub fn frames(&mut self, frames: &[u8], lengths: &[usize], now: Instant) {
        let views = self.views.clone();
        let (peers, fdb, own) = (views.peers.load(), views.fdb.load(), views.own.load());
        let facts = own.mac.map(|own_mac| EgressFacts {
            own_mac,
            is_bridge: Rights(own.rights).is_bridge(),
            has_bridges: peers.has_bridges,
        });
        let scope = EgressScope { peers: &peers, fdb: &fdb, facts, own: &own, now, now_ms: views.epoch.ms(now) };
        let mut start = 0;
        for length in lengths {
            let frame = &frames[start..start + length];
            start += length;
            if let Err(reason) = self.frame(frame, &scope) {
                views.counters.dropped(reason);
            }
        }
        self.uplinks.flush(&mut self.batch);
        add(&views.counters.tap_rx_frames, lengths.len() as u64);
        add(&views.counters.tap_rx_bytes, start as u64);
    }

    fn frame(&mut self, bytes: &[u8], scope: &EgressScope<'_>) -> Result<(), DropReason> {
        if bytes.len() > FRAME_MAX {
            return Err(DropReason::TooLong);
        }
        let frame = FrameView::parse(bytes)?;
        let facts = scope.facts.as_ref().ok_or(DropReason::UnknownPeer)?;
        if guard::is_neighbour_traffic(&frame) && self.answer_at_the_tap(&frame, scope) {
            return Ok(());
        }
        match forward::egress(&frame, scope.fdb, facts) {
            forward::Egress::Unicast(idx) => {
                let entry = scope.peers.peers.get(&idx).ok_or(DropReason::UnknownStation)?;
                self.send_to(&entry.handle, bytes, scope)
            }
            forward::Egress::Flood => {
                add(&self.views.counters.flooded_frames, 1);
                self.send_to_all(bytes, scope, |entry| entry.flooded && !entry.credentials.rights.is_no_flood());
                Ok(())
            }
            forward::Egress::FloodBridges => {
                self.send_to_all(bytes, scope, |entry| entry.flooded && entry.credentials.rights.is_bridge());
                Ok(())
            }
            forward::Egress::Drop(reason) => Err(reason),
        }
    }

    /// Answers ARP and neighbour discovery for members from the signed map, so that they need not cross the network.
    fn answer_at_the_tap(&mut self, frame: &FrameView<'_>, scope: &EgressScope<'_>) -> bool {
        let own = [scope.own.ip4.map(IpAddr::from), scope.own.ip6.map(IpAddr::from)];
        let directory = |ip: IpAddr| -> Option<MacAddr> {
            if own.contains(&Some(ip)) { None } else { scope.peers.directory.get(&ip).copied() }
        };
        let answered = forward::proxy_answer(frame, &directory, &mut self.answer);
        if answered {
            add(&self.views.counters.proxied, 1);
            if let Err(reason) = self.tap.write(&self.answer) {
                self.views.counters.dropped(reason);
            }
        }
        answered
    }

    fn send_to_all(&mut self, bytes: &[u8], scope: &EgressScope<'_>, to: impl Fn(&PeerEntry) -> bool) {
        for entry in scope.peers.peers.values().filter(|entry| to(entry)) {
            if let Err(reason) = self.send_to(&entry.handle, bytes, scope) {
                self.views.counters.dropped(reason);
            }
        }
    }

    fn send_to(&mut self, handle: &Arc<PeerHandle>, bytes: &[u8], scope: &EgressScope<'_>) -> Result<(), DropReason> {
        let outlet = handle.outlet();
        if let Some(outlet) = outlet.as_deref() {
            seal_into(&mut self.batch, outlet, bytes)?;
            handle.meter.transmitted(1, bytes.len() as u64, scope.now_ms);
            return Ok(());
        }
        let lost = handle.stage(bytes);
        if lost > 0 {
            self.views.counters.dropped_many(DropReason::StagedOverflow, lost);
        }
        if handle.want() && !self.want.cast(Want(handle.idx)) {
            handle.unwant();
        }
        // The session may have come between the look and the staging; then nobody else will send what is kept.
        if handle.outlet().is_some() {
            self.uplinks.flush(&mut self.batch);
            send_staged(handle, &self.uplinks, &mut self.batch, &self.views, scope.now);
        }
        Ok(())
    }
}

/// Whom a client's sockets tell of what is not a frame.
#[derive(Clone)]
pub struct IngressCasts {
    pub inbound: Caster<Inbound>,
    pub control: Caster<PeerControl>,
    pub confirmed: Caster<Confirmed>,
    pub seen: Caster<SeenFrom>,
    pub server_inbound: Caster<ServerInbound>,
    pub server_control: Caster<ServerControl>,
    pub learn: Caster<crate::messages::mac_learning::Learn>,
}

/// From a socket to the TAP, at a client.
pub struct Ingress {
    views: Views,
    uplinks: Uplinks,
    casts: IngressCasts,
    tap: TapTx,
    mac1_key: [u8; 32],
    hints: HintBudget,
}

/// The views of one batch, and what it adds up to.
pub struct IngressScope {
    peers: arc_swap::Guard<Arc<PeerView>>,
    fdb: arc_swap::Guard<Arc<FdbView>>,
    server: arc_swap::Guard<Arc<ServerView>>,
    own: arc_swap::Guard<Arc<SelfView>>,
    now: Instant,
    now_ms: u64,
    sightings: Vec<Sighting>,
}

impl Ingress {
    /// `mac1_key` is of our own key.
    pub fn new(views: Views, uplinks: Uplinks, casts: IngressCasts, tap: TapTx, mac1_key: [u8; 32]) -> Self {
        Self { views, uplinks, casts, tap, mac1_key, hints: HintBudget::default() }
    }

    /// Loads the views for one batch.
    pub fn scope(&self, now: Instant) -> IngressScope {
        IngressScope {
            peers: self.views.peers.load(),
            fdb: self.views.fdb.load(),
            server: self.views.server.load(),
            own: self.views.own.load(),
            now,
            now_ms: self.views.epoch.ms(now),
            sightings: Vec::new(),
        }
    }

    /// Tells what the batch has shown of stations behind bridges.
    pub fn finish(&mut self, scope: IngressScope) {
        if !scope.sightings.is_empty() {
            self.casts.learn.cast(crate::messages::mac_learning::Learn(scope.sightings));
        }
    }

    /// One datagram, as it came from the socket. Hot.
    pub fn datagram(&mut self, from: Endpoint, datagram: &mut [u8], scope: &mut IngressScope) {
        if scope.own.overlay.iter().any(|net| net.contains(&from.addr.ip())) {
            // The network must not carry itself.
            self.views.counters.dropped(DropReason::OverlayLoop);
            return;
        }
        let result = if Kind::of(datagram) == Some(Kind::Relay) {
            relay::parse(datagram).and_then(|token| {
                let via = Route::relayed(from, token);
                self.inner(via, &mut datagram[HEADER_LEN..], scope)
            })
        } else {
            self.inner(Route::direct(from), datagram, scope)
        };
        if let Err(reason) = result {
            self.views.counters.dropped(reason);
        }
    }

    fn inner(&mut self, via: Route, datagram: &mut [u8], scope: &mut IngressScope) -> Result<(), DropReason> {
        match Kind::of(datagram).ok_or(DropReason::Malformed)? {
            Kind::Data => self.data(via, datagram, scope),
            Kind::Ctrl => self.control(via, datagram, scope),
            Kind::Init => {
                self.check_mac1(datagram)?;
                let from_server = via.is_direct() && scope.server.endpoints.contains(&via.endpoint);
                self.pass_on(from_server, via, datagram)
            }
            Kind::Resp => {
                let view = HandshakeView::parse(datagram)?;
                let to_server = view.header.receiver().is_server();
                self.check_mac1(datagram)?;
                self.pass_on(to_server, via, datagram)
            }
            Kind::Cookie => {
                let to_server = crate::wire::handshake::CookieReply::parse(datagram)?.receiver.is_server();
                self.pass_on(to_server, via, datagram)
            }
            Kind::Enrol2 => self.pass_on(true, via, datagram),
            Kind::Hint => {
                let hint = Hint::parse(datagram)?;
                let about_server = match hint.reason {
                    HintReason::NoSession => scope
                        .server
                        .sessions
                        .iter()
                        .any(|session| session.remote_index == hint.index && session.sent_lately(hint.counter)),
                    HintReason::EnrolRefused | HintReason::NotAMember => true,
                };
                let believable = about_server
                    || scope
                        .peers
                        .sessions
                        .values()
                        .any(|session| session.remote_index == hint.index && session.sent_lately(hint.counter));
                if !believable {
                    return Err(DropReason::UnknownSession);
                }
                add(&self.views.counters.hints_believed, 1);
                self.pass_on(about_server, via, datagram)
            }
            Kind::Relay | Kind::Agg | Kind::Frag | Kind::Enrol1 | Kind::Enrol3 => Err(DropReason::Malformed),
        }
    }

    fn data(&mut self, via: Route, datagram: &mut [u8], scope: &mut IngressScope) -> Result<(), DropReason> {
        let header = SealedHeader::parse(datagram)?;
        let Some(session) = scope.peers.sessions.get(&header.receiver) else {
            self.hint(via, header.receiver, header.counter, scope);
            return Err(DropReason::UnknownSession);
        };
        let plain = session.open(&header, datagram)?;
        let crate::proto::session::Owner::Peer(idx) = session.owner else { return Err(DropReason::UnknownPeer) };
        let entry = scope.peers.peers.get(&idx).ok_or(DropReason::UnknownPeer)?;
        session.meter.received(1, plain.len() as u64, scope.now_ms);
        if session.confirm() {
            self.casts.confirmed.cast(Confirmed { session: session.clone(), via });
        } else if via.is_direct()
            && entry.handle.outlet().as_deref().is_some_and(|outlet| outlet.route != via)
            && entry.handle.tell_route(scope.now_ms)
        {
            self.casts.seen.cast(SeenFrom { peer: idx, via });
        }
        let frame = FrameView::parse(plain)?;
        if frame.dst().is_group() && !entry.handle.admit_group(&frame, scope.now) {
            return Err(DropReason::Storm);
        }
        match forward::ingress(&frame, idx, &entry.credentials, &scope.fdb, scope.now) {
            Verdict::Accept { learn } => scope.sightings.extend(learn),
            Verdict::Drop(reason) => return Err(reason),
        }
        if guard::is_neighbour_traffic(&frame) {
            guard::check_leases(&frame, &entry.credentials, &|ip| scope.peers.directory.get(&ip).copied())?;
        }
        self.tap.write(plain)?;
        add(&self.views.counters.tap_tx_frames, 1);
        add(&self.views.counters.tap_tx_bytes, plain.len() as u64);
        Ok(())
    }

    /// Control messages are opened here, so that only authentic ones reach a mailbox.
    fn control(&mut self, via: Route, datagram: &mut [u8], scope: &mut IngressScope) -> Result<(), DropReason> {
        let header = SealedHeader::parse(datagram)?;
        if header.receiver.is_server() {
            let session = scope.server.sessions.iter().find(|session| session.local_index == header.receiver);
            let session = session.ok_or(DropReason::UnknownSession)?;
            let plain = session.open(&header, datagram)?.to_vec();
            self.casts.server_control.cast(ServerControl { session: session.clone(), from: via.endpoint, plain });
            return Ok(());
        }
        let Some(session) = scope.peers.sessions.get(&header.receiver) else {
            self.hint(via, header.receiver, header.counter, scope);
            return Err(DropReason::UnknownSession);
        };
        let plain = session.open(&header, datagram)?.to_vec();
        session.meter.heard(scope.now_ms);
        self.casts.control.cast(PeerControl { session: session.clone(), via, plain });
        Ok(())
    }

    fn pass_on(&mut self, to_server: bool, via: Route, datagram: &[u8]) -> Result<(), DropReason> {
        let datagram = datagram.to_vec();
        if to_server {
            self.casts.server_inbound.cast(ServerInbound { from: via.endpoint, datagram });
        } else {
            self.casts.inbound.cast(Inbound { via, datagram });
        }
        Ok(())
    }

    /// Who does not know our key costs one hash, on the data path as anywhere.
    fn check_mac1(&self, datagram: &[u8]) -> Result<(), DropReason> {
        let view = HandshakeView::parse(datagram)?;
        if same_mac(&mac16(&self.mac1_key, view.before_mac1), &view.mac1) { Ok(()) } else { Err(DropReason::BadMac1) }
    }

    fn hint(&mut self, via: Route, index: SessionIndex, counter: u64, scope: &IngressScope) {
        if self.hints.take(via.endpoint.addr.ip(), scope.now_ms) {
            add(&self.views.counters.hints_sent, 1);
            self.uplinks.send_by(via, &Hint { reason: HintReason::NoSession, index, counter }.to_bytes());
        }
    }
}

/// How many HINTs each source may still be sent in this second.
#[derive(Default)]
pub struct HintBudget {
    second: u64,
    sent: BTreeMap<IpAddr, u32>,
}

impl HintBudget {
    /// Whether one may be sent.
    pub fn take(&mut self, source: IpAddr, now_ms: u64) -> bool {
        if self.second != now_ms / 1000 {
            self.second = now_ms / 1000;
            self.sent.clear();
        }
        let net = match source {
            IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() & !0xff).into()),
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & !u128::from(u64::MAX)).into()),
        };
        if self.sent.len() >= HINT_SOURCES_MAX && !self.sent.contains_key(&net) {
            return false;
        }
        let sent = self.sent.entry(net).or_insert(0);
        *sent += 1;
        *sent <= HINTS_PER_SECOND
    }
}
