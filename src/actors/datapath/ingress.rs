//! From a socket to the TAP, at a client.

use std::iter::Peekable;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::counters::{DropReason, add};
use crate::ids::{Endpoint, Route, SessionIndex, UplinkId};
use crate::io::tap::Offloads;
use crate::io::tap_slot::TapTx;
use crate::io::udp::Train;
use crate::io::uplinks::Uplinks;
use crate::messages::peer_table::{Confirmed, Inbound, PeerControl, SeenFrom};
use crate::messages::server_link::{ServerControl, ServerInbound};
use crate::proto::coalesce::{Coalescer, Limits};
use crate::proto::crypto::{mac16, same_mac};
use crate::proto::fdb::Sighting;
use crate::proto::forward::{self, Ingress as Verdict};
use crate::proto::guard::{self, Rights};
use crate::proto::segment::{self, Checksums};
use crate::proto::session::{Owner, Session};
use crate::proto::source_budget::SourceBudget;
use crate::proto::too_big;
use crate::proto::whole::{self, Assembly};
use crate::view::{FdbView, PeerEntry, PeerView, SelfView, ServerView};
use crate::wire::control::Control;
use crate::wire::ethernet::FrameView;
use crate::wire::handshake::{HandshakeView, Hint, HintReason};
use crate::wire::header::{FragHeader, HEADER_LEN, Kind, SealedHeader};
use crate::wire::hello::HELLO;
use crate::wire::relay;
use crate::wire::vnet::VnetHeader;

use super::super::cloud_bridge::{CloudPort, Side, ToCloud};
use super::super::ext::Caster;
use super::Views;
use super::seal::clamp;

/// Bytes of frames that are written to the TAP without waiting for the end of a batch: what is behind them waits
/// less, and they are still in the cache.
const WRITE_BYTES: u64 = 32 * 1024;
/// HINTs one source (an IPv4 /24 or an IPv6 /64) is sent in a second.
const HINTS_PER_SECOND: u32 = 10;
/// Sources of HINTs remembered within a second.
const HINT_SOURCES_MAX: usize = 1024;

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

/// Whose a session is.
fn owner<'v>(peers: &'v PeerView, session: &Session) -> Result<&'v PeerEntry, DropReason> {
    let Owner::Peer(idx) = session.owner else { return Err(DropReason::UnknownPeer) };
    peers.peers.get(&idx).ok_or(DropReason::UnknownPeer)
}

/// How many HINTs each source may still be sent in this second.
pub fn hint_budget() -> SourceBudget {
    SourceBudget::new(HINTS_PER_SECOND, HINT_SOURCES_MAX)
}
