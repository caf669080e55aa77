//! From the TAP to the sockets.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::counters::{Counters, DropReason, add};
use crate::ids::{MacAddr, Route};
use crate::io::batch::SendBatch;
use crate::io::tap_slot::TapTx;
use crate::io::uplinks::Uplinks;
use crate::messages::peer_table::Want;
use crate::proto::estimate::PathMeter;
use crate::proto::forward::{self, EgressFacts};
use crate::proto::guard::{self, Rights};
use crate::proto::multipath::Way;
use crate::proto::too_big;
use crate::proto::whole::{self};
use crate::view::{FdbView, PeerEntry, PeerHandle, PeerView, SelfView};
use crate::wire::ethernet::FrameView;
use crate::wire::header::HEADER_LEN;
use crate::wire::relay;
use crate::wire::vnet::VnetHeader;

use super::super::cloud_bridge::{CloudPort, Side, ToCloud};
use super::super::ext::Caster;
use super::Views;
use super::seal::{Lane, Load, Whole};

/// Sealed bytes that are sent without waiting for the end of a burst: about one super-frame, so that it is still in
/// the cache when the kernel copies it.
const FLUSH_BYTES: usize = 32 * 1024;

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

/// Sends what was read from the device to a cloud, frame by frame and with whole checksums.
fn to_cloud(cloud: &mut CloudPort, load: &Load<'_>, counters: &Counters) -> Result<(), DropReason> {
    load.for_each(|frame| {
        if let Err(reason) = cloud.send(frame) {
            counters.dropped(reason);
        }
    })
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
