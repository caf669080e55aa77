//! The way of a frame, both directions: direct calls on views, sessions and batches, no mailbox.
//!
//! [`Egress`] belongs to the TAP's reader, [`Ingress`] to the reader of a socket. Both load each view once per batch.
//! Every decision is a core's (`proto::forward`, `proto::guard`, `proto::session`); here they are put in a row, and
//! what was dropped is counted by its reason.

use std::cell::Cell;
use std::iter::Peekable;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::counters::{Counters, DropReason, add};
use crate::ids::{Endpoint, MacAddr, Route, SessionIndex, UplinkId};
use crate::io::batch::SendBatch;
use crate::io::tap::Offloads;
use crate::io::tap_slot::TapTx;
use crate::io::udp::Train;
use crate::io::uplinks::Uplinks;
use crate::messages::peer_table::{Confirmed, Inbound, PeerControl, SeenFrom, Want};
use crate::messages::server_link::{ServerControl, ServerInbound};
use crate::proto::coalesce::{Coalescer, Limits};
use crate::proto::crypto::{mac16, same_mac};
use crate::proto::estimate::PathMeter;
use crate::proto::fdb::Sighting;
use crate::proto::forward::{self, EgressFacts, Ingress as Verdict};
use crate::proto::guard::{self, Rights};
use crate::proto::multipath::{Plan, Way};
use crate::proto::segment::{self, Checksums, PartialChecksum, Segmenter};
use crate::proto::session::{Epoch, Owner, Session};
use crate::proto::source_budget::SourceBudget;
use crate::proto::too_big;
use crate::proto::whole::{self, Assembly, Cut};
use crate::view::{FdbView, Outlet, PeerEntry, PeerHandle, PeerView, SelfView, ServerView};
use crate::wire::control::Control;
use crate::wire::ethernet::FrameView;
use crate::wire::handshake::{HandshakeView, Hint, HintReason};
use crate::wire::header::{FragHeader, HEADER_LEN, Kind, SealedHeader, TAG_LEN};
use crate::wire::hello::HELLO;
use crate::wire::relay;
use crate::wire::vnet::{Gso, VnetHeader};

use super::cloud_bridge::{CloudPort, Side, ToCloud};
use super::ext::Caster;

/// Plaintext bytes that padding never exceeds: the frame of the default MTU with a VLAN tag.
const PAD_LIMIT: usize = 1376 + 18;
/// The longest frame that is sealed: the largest MTU there is, an Ethernet header and a VLAN tag. What is longer has no
/// place in a UDP datagram.
pub const FRAME_MAX: usize = 9000 + 18;
/// Sealed bytes that are sent without waiting for the end of a burst: about one super-frame, so that it is still in
/// the cache when the kernel copies it.
const FLUSH_BYTES: usize = 32 * 1024;
/// Bytes of frames that are written to the TAP without waiting for the end of a batch: what is behind them waits
/// less, and they are still in the cache.
const WRITE_BYTES: u64 = 32 * 1024;
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

/// What one read of the TAP brought: a frame, or many as one.
struct Load<'a> {
    header: VnetHeader,
    bytes: &'a [u8],
    /// Of a super-frame.
    segments: Option<Segmenter<'a>>,
    /// Its checksum is partial in a way that a receiver can complete.
    may_stay_partial: bool,
}

impl<'a> Load<'a> {
    fn new(header: VnetHeader, bytes: &'a [u8]) -> Result<Self, DropReason> {
        let segments = if header.gso == Gso::None { None } else { Some(Segmenter::new(&header, bytes)?) };
        if segments.is_none() && bytes.len() > FRAME_MAX {
            return Err(DropReason::TooLong);
        }
        let may_stay_partial =
            segments.is_none() && segment::partial_kind(&header, bytes) == PartialChecksum::Transport;
        Ok(Self { header, bytes, segments, may_stay_partial })
    }

    /// A frame that needs nothing done.
    fn plain(bytes: &'a [u8]) -> Self {
        Self { header: VnetHeader::PLAIN, bytes, segments: None, may_stay_partial: false }
    }

    /// Seals it for a peer into the batch. Hot: no allocation, no lock. Gives frames and their bytes.
    fn seal_into(&self, batch: &mut SendBatch, lane: Lane<'_>, counters: &Counters) -> Result<(u64, u64), DropReason> {
        let outlet = lane.outlet;
        let takes_partial = outlet.session.capabilities.takes_partial_checksums();
        let Some(segments) = &self.segments else {
            let partial = takes_partial && self.may_stay_partial;
            seal_into(batch, lane, self.bytes.len(), partial, |frame| {
                frame.copy_from_slice(self.bytes);
                clamp(frame, outlet, !self.header.needs_csum, counters);
                if self.header.needs_csum && !partial { segment::complete(&self.header, frame) } else { Ok(()) }
            })?
            .count(counters);
            return Ok((1, self.bytes.len() as u64));
        };
        let fitting = (segments.segment_len(0) > outlet.fit.frame_max())
            .then(|| segments.fitting(outlet.fit.frame_max()))
            .flatten();
        let segments = fitting.as_ref().unwrap_or(segments);
        let checksums = if takes_partial { Checksums::Partial } else { Checksums::Complete };
        let mut bytes = 0;
        for number in 0..segments.count() {
            let length = segments.segment_len(number);
            seal_into(batch, lane, length, takes_partial, |frame| {
                segments.write(number, checksums, frame);
                Ok(())
            })?
            .count(counters);
            bytes += length as u64;
        }
        Ok((segments.count() as u64, bytes))
    }

    /// How it is sealed whole, if the other side takes that and it is worth it. A fragment is as long as the path
    /// takes; while that is not known, as a frame of its own would be, so it passes wherever that does.
    fn sealed_whole(&self, outlet: &Outlet) -> Option<Whole> {
        // Where every frame goes several ways, one may well be lost on one of them.
        let copied = outlet.plan.as_ref().is_some_and(Plan::copies_all);
        let whole = outlet.session.capabilities.takes_whole() && !copied;
        let segments = self.segments.as_ref().filter(|_| whole)?;
        let head = whole::head(&self.header)?;
        let total = whole::HEAD_LEN + self.bytes.len() + TAG_LEN;
        let frame = Session::sealed_len(segments.segment_len(0), PAD_LIMIT);
        let cut = |datagram: usize| Cut::new(total, datagram.saturating_sub(HEADER_LEN));
        let fit = outlet.fit.datagram().unwrap_or(frame);
        // Where all of it fits one datagram, it is cut all the same.
        let cut = cut(fit).or_else(|| cut(frame.min(fit)))?;
        let (frames, bytes) = (segments.count() as u64, segments.total_len() as u64);
        Some(Whole { head, cut, frames, bytes, told: self.to_tell(outlet) })
    }

    /// Whether hosts should be told that it is too long for the path: how long its longest packet is, and how long one
    /// may be.
    fn to_tell(&self, outlet: &Outlet) -> Option<(usize, u16)> {
        let longest = self.segments.as_ref().map_or(self.bytes.len(), |segments| segments.segment_len(0));
        if longest <= outlet.fit.frame_max() {
            return None;
        }
        let frame = FrameView::parse(self.bytes).ok()?;
        let head = self.bytes.len() - frame.payload().len();
        Some((longest - head, outlet.fit.packet_to_tell(frame.is_tagged())?))
    }

    /// Each frame of it by itself and complete, to be kept.
    fn for_each(&self, mut keep: impl FnMut(&[u8])) -> Result<(), DropReason> {
        match &self.segments {
            None if self.header.needs_csum => {
                let mut frame = self.bytes.to_vec();
                segment::complete(&self.header, &mut frame)?;
                keep(&frame);
            }
            None => keep(self.bytes),
            Some(segments) => {
                let mut frame = vec![0; segments.segment_len(0)];
                for number in 0..segments.count() {
                    frame.truncate(segments.segment_len(number));
                    segments.write(number, Checksums::Complete, &mut frame);
                    keep(&frame);
                }
            }
        }
        Ok(())
    }
}

/// An outlet, and which of its routes a frame takes. What fits is known of the usual one; where another carries less, IP
/// cuts the datagram.
#[derive(Clone, Copy)]
struct Lane<'a> {
    outlet: &'a Outlet,
    route: Route,
}

impl<'a> Lane<'a> {
    fn usual(outlet: &'a Outlet) -> Self {
        Self { outlet, route: outlet.route }
    }
}

/// A super-frame that is to be sealed whole.
#[derive(Clone, Copy)]
struct Whole {
    head: [u8; whole::HEAD_LEN],
    cut: Cut,
    frames: u64,
    bytes: u64,
    /// As [`Load::to_tell`].
    told: Option<(usize, u16)>,
}

impl Whole {
    /// Seals it in place, in `message`, which begins with room for its head, and puts its fragments into the batch.
    /// Hot: no allocation, no lock.
    fn seal_into(&self, batch: &mut SendBatch, lane: Lane<'_>, message: &mut [u8]) -> Result<(), DropReason> {
        message[..whole::HEAD_LEN].copy_from_slice(&self.head);
        seal_cut(batch, lane, self.cut, message)
    }
}

/// Seals a message in place and puts its fragments into the batch. Hot: no allocation, no lock.
fn seal_cut(batch: &mut SendBatch, lane: Lane<'_>, cut: Cut, message: &mut [u8]) -> Result<(), DropReason> {
    let Lane { outlet, route } = lane;
    let (header, tag) = outlet.session.seal_whole(cut.count(), message)?;
    let relay = route.relay.map(relay::header);
    let head = relay.map_or(0, |_| HEADER_LEN);
    for (index, range) in (0..).zip(cut.ranges()) {
        let length = head + HEADER_LEN + range.len();
        let space = batch.reserve(length);
        if let Some(relay) = relay {
            space[..HEADER_LEN].copy_from_slice(&relay);
        }
        space[head..head + HEADER_LEN].copy_from_slice(&FragHeader { index, ..header }.to_bytes());
        let body = &mut space[head + HEADER_LEN..];
        // The tag follows the message, and may be in two fragments.
        let sealed = &message[range.start.min(message.len())..range.end.min(message.len())];
        let tag_from = range.start.max(message.len()) - message.len();
        body[..sealed.len()].copy_from_slice(sealed);
        let rest = body.len() - sealed.len();
        body[sealed.len()..].copy_from_slice(&tag[tag_from..tag_from + rest]);
        batch.commit(route.endpoint, length);
    }
    Ok(())
}

/// How a frame was put into the batch.
enum Sealed {
    Alone,
    Cut,
}

impl Sealed {
    fn count(self, counters: &Counters) {
        match self {
            Self::Alone => {}
            Self::Cut => add(&counters.cut_frames, 1),
        }
    }
}

/// Seals a frame of `length` bytes, which `write` puts in its place, for a peer: in one datagram where the path takes
/// it, or the other side does not take fragments. IP cuts it then.
fn seal_into(
    batch: &mut SendBatch,
    lane: Lane<'_>,
    length: usize,
    partial: bool,
    write: impl FnOnce(&mut [u8]) -> Result<(), DropReason>,
) -> Result<Sealed, DropReason> {
    let Lane { outlet, route } = lane;
    if length > outlet.fit.frame_max()
        && outlet.session.capabilities.takes_cut()
        && let Some(datagram) = outlet.fit.datagram()
        && let Some(cut) = Cut::new(whole::HEAD_LEN + length + TAG_LEN, datagram.saturating_sub(HEADER_LEN))
    {
        let mut message = [0; whole::HEAD_LEN + FRAME_MAX];
        let message = &mut message[..whole::HEAD_LEN + length];
        message[..whole::HEAD_LEN].copy_from_slice(&whole::frame_head(partial));
        write(&mut message[whole::HEAD_LEN..])?;
        seal_cut(batch, lane, cut, message)?;
        return Ok(Sealed::Cut);
    }
    let sealed = Session::sealed_len(length, PAD_LIMIT.min(outlet.fit.frame_max()));
    let head = route.relay.map_or(0, |_| HEADER_LEN);
    let space = batch.reserve(head + sealed);
    if let Some(token) = route.relay {
        space[..HEADER_LEN].copy_from_slice(&relay::header(token));
    }
    let datagram = &mut space[head..];
    write(&mut datagram[HEADER_LEN..HEADER_LEN + length])?;
    outlet.session.seal_frame(partial, datagram, length)?;
    batch.commit(route.endpoint, head + sealed);
    Ok(Sealed::Alone)
}

/// Makes the segments of a TCP connection that `frame` begins fit the path. `summed`: its checksum is complete.
fn clamp(frame: &mut [u8], outlet: &Outlet, summed: bool, counters: &Counters) {
    if let Some(syn) = too_big::syn(frame)
        && let Some(packet_max) = outlet.fit.packet_to_clamp(syn.tagged)
        && syn.clamp(frame, packet_max, summed)
    {
        add(&counters.mss_clamped, 1);
    }
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
        match Load::plain(&frame).seal_into(batch, Lane::usual(outlet), &views.counters) {
            Ok(_) => (frames, bytes) = (frames + 1, bytes + frame.len() as u64),
            Err(reason) => views.counters.dropped(reason),
        }
    }
    if frames > 0 {
        handle.meter.transmitted(frames, bytes, views.epoch.ms(now));
        outlet.meter.sent(frames, batch.bytes() as u64);
        Sent::default().and(outlet.route, (frames, bytes)).add_to(&views.counters);
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
    /// What this burst sends by which path; few, so that the one that follows is found at once.
    passed: Vec<Passed>,
    answer: Vec<u8>,
    too_big: too_big::Budget,
    cloud: Option<CloudPort>,
}

/// Datagrams and their bytes that leave by one path.
struct Passed {
    path: Arc<PathMeter>,
    datagrams: u64,
    bytes: u64,
}

/// Paths of one burst whose counts wait for its end; beyond, they are added at once.
const PASSED_MAX: usize = 16;

/// The views of one burst, and what it adds up to.
pub struct EgressScope {
    peers: arc_swap::Guard<Arc<PeerView>>,
    fdb: arc_swap::Guard<Arc<FdbView>>,
    own: arc_swap::Guard<Arc<SelfView>>,
    facts: Option<EgressFacts>,
    now: Instant,
    now_ms: u64,
    reads: u64,
    frames: u64,
    bytes: u64,
    sent: Cell<Sent>,
}

impl EgressScope {
    pub fn own(&self) -> &SelfView {
        &self.own
    }

    pub fn fdb(&self) -> &FdbView {
        &self.fdb
    }

    pub fn peers(&self) -> &PeerView {
        &self.peers
    }
}

/// Frames that went to peers in one burst, and their bytes, by way.
#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    direct: (u64, u64),
    relay: (u64, u64),
}

impl Sent {
    fn and(mut self, route: Route, (frames, bytes): (u64, u64)) -> Self {
        let way = if route.is_direct() { &mut self.direct } else { &mut self.relay };
        *way = (way.0 + frames, way.1 + bytes);
        self
    }

    fn add_to(self, counters: &Counters) {
        let Self { direct, relay } = self;
        for (counter, amount) in [
            (&counters.direct_tx_frames, direct.0),
            (&counters.direct_tx_bytes, direct.1),
            (&counters.relay_tx_frames, relay.0),
            (&counters.relay_tx_bytes, relay.1),
        ] {
            if amount > 0 {
                add(counter, amount);
            }
        }
    }
}

impl Egress {
    pub fn new(views: Views, uplinks: Uplinks, want: Caster<Want>, tap: TapTx) -> Self {
        let batch = SendBatch::new(uplinks.max_segments());
        let passed = Vec::with_capacity(PASSED_MAX);
        let (answer, too_big) = (Vec::with_capacity(1500), too_big::Budget::default());
        Self { views, uplinks, want, tap, batch, passed, answer, too_big, cloud: None }
    }

    /// With a third port.
    #[must_use]
    pub fn with_cloud(self, cloud: Option<CloudPort>) -> Self {
        Self { cloud, ..self }
    }

    /// Sends a frame of a station behind this member, which has been judged already. What is for nobody here is not
    /// sent.
    ///
    /// # Errors
    /// The reason to drop it.
    pub fn foreign(&mut self, frame: &[u8], scope: &EgressScope) -> Result<(), DropReason> {
        let sent = self.send_foreign(frame, scope);
        if self.batch.bytes() >= FLUSH_BYTES {
            self.flush();
        }
        sent
    }

    fn send_foreign(&mut self, frame: &[u8], scope: &EgressScope) -> Result<(), DropReason> {
        let view = FrameView::parse(frame)?;
        let load = Load::new(VnetHeader::PLAIN, frame)?;
        let facts = scope.facts.as_ref().ok_or(DropReason::UnknownPeer)?;
        match forward::egress(&view, &scope.fdb, facts) {
            forward::Egress::Unicast(idx) => {
                // Packets too long for the path are cut, and nobody is told: its host is not behind the device.
                self.send_to(&scope.peers.peers.get(&idx).ok_or(DropReason::UnknownStation)?.handle, &load, scope)?;
                Ok(())
            }
            forward::Egress::Drop(DropReason::UnknownStation) => Ok(()),
            way => self.send_by(way, &load, scope),
        }
    }

    /// Sends what is left of a batch that no device was read for.
    pub fn finish_foreign(&mut self, scope: &EgressScope) {
        self.flush();
        self.count_sent(scope);
    }

    /// Whether there is anybody to send to.
    pub fn knows_peers(&self) -> bool {
        !self.views.peers.load().peers.is_empty()
    }

    /// Loads the views for one burst.
    pub fn scope(&mut self, now: Instant) -> EgressScope {
        if let Some(cloud) = &mut self.cloud {
            cloud.begin(now);
        }
        let (peers, fdb, own) = (self.views.peers.load(), self.views.fdb.load(), self.views.own.load());
        let facts = own.mac.map(|own_mac| EgressFacts {
            own_mac,
            is_bridge: Rights(own.rights).is_bridge(),
            has_bridges: peers.has_bridges,
        });
        let (now_ms, sent) = (self.views.epoch.ms(now), Cell::default());
        EgressScope { peers, fdb, own, facts, now, now_ms, reads: 0, frames: 0, bytes: 0, sent }
    }

    /// What one read of the TAP brought; `offloaded` if it begins with a virtio-net header. Hot.
    ///
    /// It is sent at the end of the burst, or when there is enough of it. It may be sealed where it lies.
    pub fn frame(&mut self, read: &mut [u8], offloaded: bool, scope: &mut EgressScope) {
        let parsed = if offloaded { VnetHeader::parse(read) } else { Ok((VnetHeader::PLAIN, &*read)) };
        (scope.reads, scope.frames) = (scope.reads + 1, scope.frames + 1);
        match parsed.and_then(|(header, bytes)| Load::new(header, bytes)) {
            Ok(load) => {
                scope.bytes += load.bytes.len() as u64;
                if let Some(segments) = &load.segments {
                    scope.frames += segments.count() as u64 - 1;
                }
                let result = match self.load(&load, scope) {
                    Ok(None) => Ok(()),
                    Ok(Some((handle, whole))) => self.send_whole(handle, &whole, read, scope),
                    Err(reason) => Err(reason),
                };
                if let Err(reason) = result {
                    self.views.counters.dropped(reason);
                }
            }
            Err(reason) => self.views.counters.dropped(reason),
        }
        if self.batch.bytes() >= FLUSH_BYTES {
            self.uplinks.flush(&mut self.batch);
        }
    }

    /// Sends what the burst has so far.
    pub fn flush(&mut self) {
        self.uplinks.flush(&mut self.batch);
    }

    /// Sends what is left of the burst.
    pub fn finish(&mut self, scope: &EgressScope) {
        self.flush();
        if let Some(cloud) = &mut self.cloud {
            cloud.finish();
        }
        add(&self.views.counters.tap_rx_calls, scope.reads);
        add(&self.views.counters.tap_rx_frames, scope.frames);
        add(&self.views.counters.tap_rx_bytes, scope.bytes);
        self.count_sent(scope);
    }

    fn count_sent(&mut self, scope: &EgressScope) {
        scope.sent.take().add_to(&self.views.counters);
        for Passed { path, datagrams, bytes } in self.passed.drain(..) {
            path.sent(datagrams, bytes);
        }
    }

    /// Notes what was put into the batch since `mark` for a path.
    fn pass(&mut self, path: &Arc<PathMeter>, datagrams: u64, bytes: u64) {
        if let Some(passed) = self.passed.iter_mut().rev().find(|passed| Arc::ptr_eq(&passed.path, path)) {
            (passed.datagrams, passed.bytes) = (passed.datagrams + datagrams, passed.bytes + bytes);
        } else if self.passed.len() < PASSED_MAX {
            self.passed.push(Passed { path: path.clone(), datagrams, bytes });
        } else {
            path.sent(datagrams, bytes);
        }
    }

    /// Sends what is in the batch since `mark`, which went by `route`, by further ways.
    #[cold]
    fn copy(&mut self, mark: usize, route: Route, ways: &[Way]) {
        let end = self.batch.mark();
        let strip = route.relay.map_or(0, |_| HEADER_LEN);
        for way in ways {
            let head = way.route.relay.map(relay::header);
            let head = head.as_ref().map_or(&[][..], |head| &head[..]);
            let (datagrams, bytes) = self.batch.repeat(mark..end, way.route.endpoint, strip, head);
            self.pass(&way.meter, datagrams, bytes);
            add(&self.views.counters.copies_sent, datagrams);
            add(&self.views.counters.copies_sent_bytes, bytes);
        }
    }

    /// Sends it, or says to whom it goes sealed whole.
    fn load<'s>(
        &mut self,
        load: &Load<'_>,
        scope: &'s EgressScope,
    ) -> Result<Option<(&'s PeerHandle, Whole)>, DropReason> {
        let frame = FrameView::parse(load.bytes)?;
        let facts = scope.facts.as_ref().ok_or(DropReason::UnknownPeer)?;
        if guard::is_neighbour_traffic(&frame) && self.answer_at_the_tap(&frame, scope) {
            return Ok(None);
        }
        let way = forward::egress(&frame, &scope.fdb, facts);
        if let Some(cloud) = &mut self.cloud
            && frame.src() != facts.own_mac
            && !matches!(way, forward::Egress::Drop(DropReason::SourceSpoofed))
        {
            cloud.note(&frame, Side::Device)?;
        }
        if let Some(cloud) = &mut self.cloud
            && matches!(
                way,
                forward::Egress::Flood
                    | forward::Egress::FloodBridges
                    | forward::Egress::Drop(DropReason::UnknownStation)
            )
        {
            let wants = cloud.wants(&frame);
            if wants != ToCloud::No {
                to_cloud(cloud, load, &self.views.counters)?;
            }
            let nowhere_else = way == forward::Egress::Drop(DropReason::UnknownStation);
            if wants == ToCloud::Only || wants == ToCloud::Also && nowhere_else {
                return Ok(None);
            }
        }
        match way {
            forward::Egress::Unicast(idx) => {
                let handle = &scope.peers.peers.get(&idx).ok_or(DropReason::UnknownStation)?.handle;
                if load.segments.is_some()
                    && handle.meter.whole.is_open(scope.now_ms)
                    && let Some(whole) = handle.outlet().as_deref().and_then(|outlet| load.sealed_whole(outlet))
                {
                    self.tell_too_big(&frame, whole.told, scope);
                    return Ok(Some((handle, whole)));
                }
                let told = self.send_to(handle, load, scope)?;
                self.tell_too_big(&frame, told, scope);
            }
            way => self.send_by(way, load, scope)?,
        }
        Ok(None)
    }

    /// Sends it to all that it is for, where it is not for one.
    fn send_by(&mut self, way: forward::Egress, load: &Load<'_>, scope: &EgressScope) -> Result<(), DropReason> {
        match way {
            forward::Egress::Unicast(_) => {}
            forward::Egress::Flood => {
                add(&self.views.counters.flooded_frames, 1);
                self.send_to_all(load, scope, |entry| entry.flooded && !entry.credentials.rights.is_no_flood());
            }
            forward::Egress::FloodBridges => {
                self.send_to_all(load, scope, |entry| entry.flooded && entry.credentials.rights.is_bridge());
            }
            forward::Egress::Drop(reason) => return Err(reason),
        }
        Ok(())
    }

    /// Tells a host that its packets are too long for the path.
    fn tell_too_big(&mut self, frame: &FrameView<'_>, told: Option<(usize, u16)>, scope: &EgressScope) {
        if let Some((longest, packet_max)) = told
            && too_big::answer(frame, longest, packet_max, &mut self.answer)
            && self.too_big.take(scope.now_ms)
        {
            add(&self.views.counters.too_big_told, 1);
            if let Err(reason) = self.tap.write(&self.answer) {
                self.views.counters.dropped(reason);
            }
        }
    }

    /// Seals a super-frame whole, where it was read to: there is room for its head where its header was.
    fn send_whole(
        &mut self,
        handle: &PeerHandle,
        whole: &Whole,
        read: &mut [u8],
        scope: &EgressScope,
    ) -> Result<(), DropReason> {
        let outlet = handle.outlet();
        // It may have ended since we looked; then nobody waits for this either.
        let outlet = outlet.as_deref().filter(|outlet| outlet.session.capabilities.takes_whole());
        let outlet = outlet.ok_or(DropReason::SessionExpired)?;
        let frame = &read[VnetHeader::LEN..];
        let way = outlet.plan.as_ref().map(|plan| plan.first(frame, scope.now_ms));
        let (route, meter) = way.map_or((outlet.route, &outlet.meter), |way| (way.route, &way.meter));
        let mark = self.batch.mark();
        let message = &mut read[VnetHeader::LEN - whole::HEAD_LEN..];
        whole.seal_into(&mut self.batch, Lane { outlet, route }, message)?;
        self.pass(meter, u64::from(whole.cut.count()), (self.batch.mark() - mark) as u64);
        handle.meter.transmitted(whole.frames, whole.bytes, scope.now_ms);
        scope.sent.set(scope.sent.get().and(route, (whole.frames, whole.bytes)));
        add(&self.views.counters.whole_sealed, 1);
        Ok(())
    }

    /// Answers ARP and neighbour discovery for members from the signed map, so that they need not cross the network.
    fn answer_at_the_tap(&mut self, frame: &FrameView<'_>, scope: &EgressScope) -> bool {
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

    fn send_to_all(&mut self, load: &Load<'_>, scope: &EgressScope, to: impl Fn(&PeerEntry) -> bool) {
        for entry in scope.peers.peers.values().filter(|entry| to(entry)) {
            if let Err(reason) = self.send_to(&entry.handle, load, scope) {
                self.views.counters.dropped(reason);
            }
        }
    }

    /// Sends it to a peer; as [`Load::to_tell`].
    fn send_to(
        &mut self,
        handle: &Arc<PeerHandle>,
        load: &Load<'_>,
        scope: &EgressScope,
    ) -> Result<Option<(usize, u16)>, DropReason> {
        let outlet = handle.outlet();
        if let Some(outlet) = outlet.as_deref() {
            let mark = self.batch.mark();
            let way = outlet.plan.as_ref().map(|plan| plan.first(load.bytes, scope.now_ms));
            let (route, meter) = way.map_or((outlet.route, &outlet.meter), |way| (way.route, &way.meter));
            let (frames, bytes) = load.seal_into(&mut self.batch, Lane { outlet, route }, &self.views.counters)?;
            let wire = self.batch.mark() - mark;
            self.pass(meter, frames, wire as u64);
            handle.meter.transmitted(frames, bytes, scope.now_ms);
            scope.sent.set(scope.sent.get().and(route, (frames, bytes)));
            if let Some(plan) = &outlet.plan {
                self.copy(mark, route, plan.copies(load.bytes, wire, scope.now_ms));
            }
            return Ok(load.to_tell(outlet));
        }
        let mut lost = 0;
        load.for_each(|frame| lost += handle.stage(frame))?;
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
        Ok(None)
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
    coalescer: Coalescer,
    assembly: Assembly,
    /// One segment of a super-frame, for a device that takes no super-frames.
    segment: Vec<u8>,
    mac1_key: [u8; 32],
    hints: SourceBudget,
    cloud: Option<CloudPort>,
}

/// What a run of datagrams was, whatever became of them.
#[derive(Default, Clone, Copy)]
struct Came {
    datagrams: u64,
    bytes: u64,
    /// Those whose counter was seen before.
    replayed: u64,
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
    /// The device takes partial checksums.
    takes_partial: bool,
    /// And super-frames of TCP.
    takes_tcp: bool,
    frames: u64,
    bytes: u64,
}

impl Ingress {
    /// `mac1_key` is of our own key.
    pub fn new(views: Views, uplinks: Uplinks, casts: IngressCasts, tap: TapTx, mac1_key: [u8; 32]) -> Self {
        let coalescer = Coalescer::new(Limits::default());
        let (assembly, hints) = (Assembly::default(), hint_budget());
        Self { views, uplinks, casts, tap, coalescer, assembly, segment: Vec::new(), mac1_key, hints, cloud: None }
    }

    /// With a third port.
    #[must_use]
    pub fn with_cloud(self, cloud: Option<CloudPort>) -> Self {
        Self { cloud, ..self }
    }

    /// Whether a frame from the network is for the cloud behind this member.
    fn wants_cloud(&mut self, frame: &FrameView<'_>, entry: &PeerEntry, scope: &IngressScope) -> ToCloud {
        let Some(cloud) = &mut self.cloud else { return ToCloud::No };
        let noted = if frame.src() == entry.credentials.mac { Ok(()) } else { cloud.note(frame, Side::Network) };
        let wants = if scope.own.mac == Some(frame.dst()) { ToCloud::No } else { cloud.wants(frame) };
        let is_bridge = Rights(scope.own.rights).is_bridge();
        let refused = noted.and(if is_bridge { Ok(()) } else { Err(DropReason::NoRight) });
        match refused {
            Err(reason) if wants != ToCloud::No => {
                self.views.counters.dropped(reason);
                ToCloud::No
            }
            Ok(()) | Err(_) => wants,
        }
    }

    /// Loads the views for one batch.
    pub fn scope(&mut self, now: Instant) -> IngressScope {
        if let Some(cloud) = &mut self.cloud {
            cloud.begin(now);
        }
        let offloads = self.tap.offloads();
        let takes_tcp = offloads.has(Offloads::TSO4) && offloads.has(Offloads::TSO6);
        self.coalescer
            .set_limits(Limits { tcp: takes_tcp, udp: offloads.has(Offloads::USO4) && offloads.has(Offloads::USO6) });
        IngressScope {
            peers: self.views.peers.load(),
            fdb: self.views.fdb.load(),
            server: self.views.server.load(),
            own: self.views.own.load(),
            now,
            now_ms: self.views.epoch.ms(now),
            sightings: Vec::new(),
            takes_partial: offloads.has(Offloads::CSUM),
            takes_tcp: takes_tcp && offloads.has(Offloads::CSUM),
            frames: 0,
            bytes: 0,
        }
    }

    /// Gives the rest of the batch's frames to the TAP, and tells what it has shown of stations behind bridges.
    /// `arena` is what its trains lie in.
    pub fn finish(&mut self, mut scope: IngressScope, arena: &[u8]) {
        self.write(arena, &mut scope);
        if let Some(cloud) = &mut self.cloud {
            cloud.finish();
        }
        if !scope.sightings.is_empty() {
            self.casts.learn.cast(crate::messages::mac_learning::Learn(scope.sightings));
        }
    }

    fn write(&mut self, arena: &[u8], scope: &mut IngressScope) {
        let Self { coalescer, tap, views, .. } = self;
        let mut writes = 0;
        coalescer.flush(|header, pieces| {
            writes += 1;
            let parts = pieces.iter().map(|piece| &arena[piece.range()]);
            if let Err(reason) = tap.write_parts(header, parts) {
                views.counters.dropped_many(reason, pieces.len() as u64);
            }
        });
        if scope.frames > 0 {
            add(&views.counters.tap_tx_calls, writes);
            add(&views.counters.tap_tx_frames, std::mem::take(&mut scope.frames));
            add(&views.counters.tap_tx_bytes, std::mem::take(&mut scope.bytes));
        }
    }

    /// A train of datagrams, as it came from the socket. Hot.
    pub fn train(&mut self, uplink: UplinkId, train: &Train, arena: &mut [u8], scope: &mut IngressScope) {
        let from = Endpoint { uplink, addr: train.from };
        if scope.own.overlay.iter().any(|net| net.contains(&from.addr.ip())) {
            // The network must not carry itself.
            self.views.counters.dropped_many(DropReason::OverlayLoop, train.datagrams().count() as u64);
            return;
        }
        let mut datagrams = train.datagrams().peekable();
        while let Some(range) = datagrams.next() {
            let datagram = &mut arena[range.clone()];
            let (via, head) = match Kind::of(datagram) {
                Some(Kind::Relay) => match relay::parse(datagram) {
                    Ok(token) => (Route::relayed(from, token), HEADER_LEN),
                    Err(reason) => {
                        self.views.counters.dropped(reason);
                        continue;
                    }
                },
                Some(_) | None => (Route::direct(from), 0),
            };
            let result = match Kind::of(&datagram[head..]) {
                Some(Kind::Data) => self.data_run(via, head, range, &mut datagrams, arena, scope),
                Some(Kind::Frag) => self.fragment_run(via, head, range, &mut datagrams, arena, scope),
                Some(_) | None => self.inner(via, &mut datagram[head..], scope),
            };
            if let Err(reason) = result {
                self.views.counters.dropped(reason);
            }
        }
        if scope.bytes >= WRITE_BYTES {
            self.write(arena, scope);
        }
    }

    fn inner(&mut self, via: Route, datagram: &mut [u8], scope: &mut IngressScope) -> Result<(), DropReason> {
        match Kind::of(datagram).ok_or(DropReason::Malformed)? {
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
            // Frames go by [`Self::data_run`] and [`Self::fragment_run`].
            Kind::Data | Kind::Relay | Kind::Agg | Kind::Frag | Kind::Enrol1 | Kind::Enrol3 => {
                Err(DropReason::Malformed)
            }
        }
    }

    /// The frames of one session that follow each other in a train: one look at the tables and one hold of the replay
    /// window for all. `first` is the first, `head` the length of what is before its header. Hot.
    fn data_run(
        &mut self,
        via: Route,
        head: usize,
        first: Range<usize>,
        rest: &mut Peekable<impl Iterator<Item = Range<usize>>>,
        arena: &mut [u8],
        scope: &mut IngressScope,
    ) -> Result<(), DropReason> {
        let mut header = SealedHeader::parse(&arena[first.start + head..first.end])?;
        let peers = Arc::clone(&scope.peers);
        let Some(session) = peers.sessions.get(&header.receiver) else {
            self.hint(via, header.receiver, header.counter, scope);
            return Err(DropReason::UnknownSession);
        };
        let entry = owner(&peers, session)?;
        let prefix: [u8; HEADER_LEN] = arena[first.start..first.start + HEADER_LEN].try_into().expect("16 bytes");
        let (mut frames, mut bytes) = (0, 0);
        let mut came = Came::default();
        let mut range = first;
        {
            let mut opener = session.opener();
            loop {
                let sealed = range.start + head..range.end;
                (came.datagrams, came.bytes) = (came.datagrams + 1, came.bytes + range.len() as u64);
                let opened = opener.open(&header, &mut arena[sealed.clone()]).map(|plain| plain.len());
                let accepted = opened.and_then(|length| {
                    (frames, bytes) = (frames + 1, bytes + length as u64);
                    let start = sealed.start + HEADER_LEN;
                    self.accept(entry, arena, start..start + length, header.partial, scope)
                });
                match accepted {
                    Ok(()) => {}
                    Err(DropReason::Replayed) => came.replayed += 1,
                    Err(reason) => self.views.counters.dropped(reason),
                }
                let next = rest.next_if(|next| {
                    let datagram = &arena[next.clone()];
                    // The same channel, if any, and then a frame again.
                    (head == 0 || datagram.len() > HEADER_LEN && datagram[..HEADER_LEN] == prefix)
                        && Kind::of(&datagram[head..]) == Some(Kind::Data)
                        && SealedHeader::parse(&datagram[head..]).is_ok_and(|next| {
                            let same = next.receiver == header.receiver;
                            if same {
                                header = next;
                            }
                            same
                        })
                });
                match next {
                    Some(next) => range = next,
                    None => break,
                }
            }
        }
        self.received(entry, session, via, (frames, bytes), came, scope);
        Ok(())
    }

    /// The fragments of one session that follow each other in a train, of one message or several. Hot.
    fn fragment_run(
        &mut self,
        via: Route,
        head: usize,
        first: Range<usize>,
        rest: &mut Peekable<impl Iterator<Item = Range<usize>>>,
        arena: &mut [u8],
        scope: &mut IngressScope,
    ) -> Result<(), DropReason> {
        let mut header = FragHeader::parse(&arena[first.start + head..first.end])?;
        let peers = Arc::clone(&scope.peers);
        let Some(session) = peers.sessions.get(&header.receiver) else {
            self.hint(via, header.receiver, header.counter, scope);
            return Err(DropReason::UnknownSession);
        };
        let entry = owner(&peers, session)?;
        let prefix: [u8; HEADER_LEN] = arena[first.start..first.start + HEADER_LEN].try_into().expect("16 bytes");
        let (mut frames, mut bytes) = (0, 0);
        let mut came = Came::default();
        let mut range = first;
        let mut fresh = session.is_fresh(header.counter);
        loop {
            let body = range.start + head + HEADER_LEN..range.end;
            (came.datagrams, came.bytes) = (came.datagrams + 1, came.bytes + range.len() as u64);
            let taken = if fresh { self.assembly.take(&header, &arena[body]) } else { Err(DropReason::Replayed) };
            match taken {
                Ok(taken) => {
                    if let Some((receiver, count)) = taken.lost {
                        self.lost(&peers, receiver, count, scope);
                    }
                    if let Some(mut sealed) = taken.whole {
                        match self.accept_whole(entry, session, &header, &mut sealed, arena, scope) {
                            Ok((more, length)) => (frames, bytes) = (frames + more, bytes + length),
                            Err(reason) => self.views.counters.dropped(reason),
                        }
                        self.assembly.put_back(sealed);
                    }
                }
                Err(DropReason::Replayed) => came.replayed += 1,
                Err(reason) => self.views.counters.dropped(reason),
            }
            let counter = header.counter;
            let next = rest.next_if(|next| {
                let datagram = &arena[next.clone()];
                (head == 0 || datagram.len() > HEADER_LEN && datagram[..HEADER_LEN] == prefix)
                    && FragHeader::parse(&datagram[head..]).is_ok_and(|next| {
                        let same = next.receiver == header.receiver;
                        if same {
                            header = next;
                        }
                        same
                    })
            });
            match next {
                Some(next) => range = next,
                None => break,
            }
            if header.counter != counter {
                fresh = session.is_fresh(header.counter);
            }
        }
        self.received(entry, session, via, (frames, bytes), came, scope);
        Ok(())
    }

    /// Notes what a run has shown: authentic frames, and copies of such that came by another path before.
    fn received(
        &self,
        entry: &PeerEntry,
        session: &Arc<Session>,
        via: Route,
        (frames, bytes): (u64, u64),
        came: Came,
        scope: &IngressScope,
    ) {
        let inlets = entry.handle.inlets();
        let inlet = inlets.iter().find(|inlet| inlet.route == via);
        if let Some(inlet) = inlet {
            inlet.meter.came(came.datagrams, came.bytes);
            if frames > 0 {
                inlet.meter.heard(scope.now_ms);
            }
        }
        if came.replayed > 0 {
            // By a proven path while there are others, it is a copy; else somebody plays it again.
            let is_copy = inlet.is_some_and(|inlet| inlet.is_valid) && inlets.len() > 1;
            if is_copy {
                add(&self.views.counters.copies_received, came.replayed);
            } else {
                self.views.counters.dropped_many(DropReason::Replayed, came.replayed);
            }
        }
        if frames == 0 {
            return;
        }
        session.meter.received(frames, bytes, scope.now_ms);
        let counters = &self.views.counters;
        let (rx_frames, rx_bytes) = if via.is_direct() {
            (&counters.direct_rx_frames, &counters.direct_rx_bytes)
        } else {
            (&counters.relay_rx_frames, &counters.relay_rx_bytes)
        };
        add(rx_frames, frames);
        add(rx_bytes, bytes);
        if session.confirm() {
            self.casts.confirmed.cast(Confirmed { session: session.clone(), via });
        } else if via.is_direct()
            && inlet.is_none_or(|inlet| !inlet.is_valid)
            && entry.handle.outlet().as_deref().is_some_and(|outlet| outlet.route != via)
            && entry.handle.tell_route(scope.now_ms)
        {
            self.casts.seen.cast(SeenFrom { peer: entry.handle.idx, via });
        }
    }

    /// A message that never became complete: its sender is told when there are too many.
    fn lost(&self, peers: &PeerView, receiver: SessionIndex, fragments: u64, scope: &IngressScope) {
        add(&self.views.counters.whole_broken, 1);
        self.views.counters.dropped_many(DropReason::Incomplete, fragments);
        let Some(session) = peers.sessions.get(&receiver) else { return };
        if let Some(messages) = session.meter.whole.broke(scope.now_ms)
            && let Ok(entry) = owner(peers, session)
            && let Some(outlet) = entry.handle.outlet().as_deref()
            && let Ok(datagram) = outlet.session.seal_control(&Control::Broken { messages }.to_bytes())
        {
            self.uplinks.send_by(outlet.route, &datagram);
        }
    }

    /// Opens a message that is complete, judges its super-frame and writes it to the TAP: how many frames it was, and
    /// their bytes.
    fn accept_whole(
        &mut self,
        entry: &PeerEntry,
        session: &Session,
        header: &FragHeader,
        sealed: &mut [u8],
        arena: &[u8],
        scope: &mut IngressScope,
    ) -> Result<(u64, u64), DropReason> {
        let message = session.open_whole(header, sealed)?;
        session.meter.whole.arrived();
        if let Some((partial, frame)) = whole::parse_frame(message)? {
            return self.accept_joined(entry, frame, partial, arena, scope);
        }
        let (vnet, segments, bytes) = whole::parse(message)?;
        let frame = FrameView::parse(bytes)?;
        if frame.dst().is_group() {
            return Err(DropReason::Malformed);
        }
        match forward::ingress(&frame, entry.handle.idx, &entry.credentials, &scope.fdb, scope.now) {
            Verdict::Accept { learn } => scope.sightings.extend(learn),
            Verdict::Drop(reason) => return Err(reason),
        }
        let wants = self.wants_cloud(&frame, entry, scope);
        // What came before it goes before it.
        self.write(arena, scope);
        if let Some(cloud) = self.cloud.as_mut().filter(|_| wants != ToCloud::No) {
            for number in 0..segments.count() {
                self.segment.resize(segments.segment_len(number), 0);
                segments.write(number, Checksums::Complete, &mut self.segment);
                cloud.send(&self.segment)?;
            }
            if wants == ToCloud::Only {
                return Ok((segments.count() as u64, segments.total_len() as u64));
            }
        }
        let (count, length) = (segments.count(), segments.total_len() as u64);
        let counters = &self.views.counters;
        add(&counters.whole_opened, 1);
        if scope.takes_tcp {
            if let Err(reason) = self.tap.write_parts(&vnet, std::iter::once(bytes)) {
                counters.dropped_many(reason, count as u64);
            }
            add(&counters.tap_tx_calls, 1);
        } else {
            for number in 0..count {
                self.segment.resize(segments.segment_len(number), 0);
                segments.write(number, Checksums::Complete, &mut self.segment);
                if let Err(reason) = self.tap.write(&self.segment) {
                    counters.dropped(reason);
                }
            }
            add(&counters.tap_tx_calls, count as u64);
        }
        add(&counters.tap_tx_frames, count as u64);
        add(&counters.tap_tx_bytes, length);
        Ok((count as u64, length))
    }

    /// Judges a frame that came in fragments, and writes it to the TAP.
    fn accept_joined(
        &mut self,
        entry: &PeerEntry,
        frame: &mut [u8],
        partial: bool,
        arena: &[u8],
        scope: &mut IngressScope,
    ) -> Result<(u64, u64), DropReason> {
        if !self.judge(entry, frame, partial, scope)? {
            return Ok((1, frame.len() as u64));
        }
        let header = if partial && scope.takes_partial {
            let (csum_start, csum_offset) = segment::locate(frame).ok_or(DropReason::Malformed)?;
            VnetHeader { needs_csum: true, csum_start, csum_offset, ..VnetHeader::PLAIN }
        } else {
            VnetHeader::PLAIN
        };
        // What came before it goes before it.
        self.write(arena, scope);
        let (counters, length) = (&self.views.counters, frame.len() as u64);
        self.tap.write_parts(&header, std::iter::once(&*frame))?;
        add(&counters.joined_frames, 1);
        add(&counters.tap_tx_calls, 1);
        add(&counters.tap_tx_frames, 1);
        add(&counters.tap_tx_bytes, length);
        Ok((1, length))
    }

    /// Judges a frame that a peer sent, and queues it for the TAP.
    fn accept(
        &mut self,
        entry: &PeerEntry,
        arena: &mut [u8],
        range: Range<usize>,
        partial: bool,
        scope: &mut IngressScope,
    ) -> Result<(), DropReason> {
        if !self.judge(entry, &mut arena[range.clone()], partial, scope)? {
            return Ok(());
        }
        let length = range.len() as u64;
        self.coalescer.push(arena, range, partial && scope.takes_partial)?;
        (scope.frames, scope.bytes) = (scope.frames + 1, scope.bytes + length);
        Ok(())
    }

    /// Judges a frame that a peer sent, and makes it ready for the TAP; whether it is for there. `partial`: its checksum
    /// is.
    fn judge(
        &mut self,
        entry: &PeerEntry,
        bytes: &mut [u8],
        partial: bool,
        scope: &mut IngressScope,
    ) -> Result<bool, DropReason> {
        let frame = FrameView::parse(bytes)?;
        if frame.dst().is_group() && !entry.handle.admit_group(&frame, scope.now) {
            return Err(DropReason::Storm);
        }
        match forward::ingress(&frame, entry.handle.idx, &entry.credentials, &scope.fdb, scope.now) {
            Verdict::Accept { learn } => scope.sightings.extend(learn),
            Verdict::Drop(reason) => return Err(reason),
        }
        if guard::is_neighbour_traffic(&frame) {
            guard::check_leases(&frame, &entry.credentials, &|ip| scope.peers.directory.get(&ip).copied())?;
        }
        if frame.dst() == HELLO {
            // Between bridges, and for no device.
            if frame.src() == entry.credentials.mac
                && entry.credentials.rights.is_bridge()
                && let Some(cloud) = &self.cloud
            {
                cloud.hello(&frame, entry.handle.key, &entry.name);
            }
            return Ok(false);
        }
        let wants = self.wants_cloud(&frame, entry, scope);
        if let Some(cloud) = self.cloud.as_mut().filter(|_| wants != ToCloud::No) {
            self.segment.clear();
            self.segment.extend_from_slice(bytes);
            if partial {
                segment::complete_parsed(&mut self.segment)?;
            }
            match cloud.send(&self.segment) {
                Ok(()) => {}
                Err(reason) if wants == ToCloud::Only => return Err(reason),
                Err(reason) => self.views.counters.dropped(reason),
            }
            if wants == ToCloud::Only {
                return Ok(false);
            }
        }
        if too_big::syn(bytes).is_some()
            && let Some(outlet) = entry.handle.outlet().as_deref()
        {
            clamp(bytes, outlet, !partial, &self.views.counters);
        }
        if partial && !scope.takes_partial {
            segment::complete_parsed(bytes)?;
        }
        Ok(true)
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
        if self.hints.take(via.endpoint.addr.ip(), scope.now_ms / 1000) {
            add(&self.views.counters.hints_sent, 1);
            self.uplinks.send_by(via, &Hint { reason: HintReason::NoSession, index, counter }.to_bytes());
        }
    }
}

/// Sends what was read from the device to a cloud, frame by frame and with whole checksums.
fn to_cloud(cloud: &mut CloudPort, load: &Load<'_>, counters: &Counters) -> Result<(), DropReason> {
    load.for_each(|frame| {
        if let Err(reason) = cloud.send(frame) {
            counters.dropped(reason);
        }
    })
}

/// Whose a session is.
fn owner<'v>(peers: &'v PeerView, session: &Session) -> Result<&'v PeerEntry, DropReason> {
    let Owner::Peer(idx) = session.owner else { return Err(DropReason::UnknownPeer) };
    peers.peers.get(&idx).ok_or(DropReason::UnknownPeer)
}

/// How many HINTs each source may still be sent in this second.
pub fn hint_budget() -> SourceBudget {
    SourceBudget::new(HINTS_PER_SECOND, HINT_SOURCES_MAX)
}
