//! The way of a frame in an ethcloud, both directions: direct calls on views and batches, no mailbox.
//!
//! A frame crosses byte for byte. [`CloudEgress`] belongs to whoever reads frames that are meant for a cloud,
//! [`CloudIngress`] to the reader of one of its sockets. There is no way from a socket back to a socket.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::cloud::CloudViews;
use super::cloud_bridge::CloudBridge;
use super::ext::Caster;
use crate::counters::{DropReason, add};
use crate::io::batch::SendBatch;
use crate::io::tap::Offloads;
use crate::io::tap_slot::TapTx;
use crate::io::udp::Train;
use crate::io::uplinks::Uplinks;
use crate::messages::cloud::{CloudHeard, CloudSeen, CloudSighting};
use crate::proto::cloud::{CloudPeer, CloudView, To};
use crate::proto::coalesce::{Coalescer, Limits};
use crate::view::FdbView;
use crate::wire::ethcloud::{self, HEAD_LEN, Message};

/// Datagrams of this size together are sent without waiting for the end of a burst, as in [`datapath`](super::datapath).
const FLUSH_BYTES: usize = 32 * 1024;
/// The longest frame that fits a UDP datagram.
const FRAME_MAX: usize = 65_507 - HEAD_LEN;

/// From this machine to the peers of a cloud.
pub struct CloudEgress {
    views: CloudViews,
    uplinks: Uplinks,
    batch: SendBatch,
}

/// The views of one burst, and what it adds up to.
pub struct CloudEgressScope {
    pub peers: arc_swap::Guard<Arc<CloudView>>,
    pub fdb: arc_swap::Guard<Arc<FdbView>>,
    now_ms: u64,
    sent: (u64, u64),
    flooded: u64,
}

impl CloudEgress {
    pub fn new(views: CloudViews, uplinks: Uplinks) -> Self {
        let batch = SendBatch::new(uplinks.max_segments());
        Self { views, uplinks, batch }
    }

    /// Loads the views for one burst.
    pub fn scope(&self, now: Instant) -> CloudEgressScope {
        let (peers, fdb) = (self.views.peers.load(), self.views.fdb.load());
        CloudEgressScope { peers, fdb, now_ms: self.views.epoch.ms(now), sent: (0, 0), flooded: 0 }
    }

    /// Sends a frame to the peer that has its station, or to all. Hot.
    pub fn frame(&mut self, frame: &[u8], scope: &mut CloudEgressScope) -> Result<(), DropReason> {
        if frame.len() < 14 {
            return Err(DropReason::Runt);
        }
        if frame.len() > FRAME_MAX {
            return Err(DropReason::TooLong);
        }
        let CloudEgressScope { peers, fdb, now_ms, sent, flooded } = scope;
        let to = match peers.route(frame, fdb) {
            To::One(peer) => std::slice::from_ref(peer),
            To::All(peers) => {
                *flooded += 1;
                peers
            }
        };
        let head = self.views.token.frame_head();
        for peer in to {
            let space = self.batch.reserve(HEAD_LEN + frame.len());
            space[..HEAD_LEN].copy_from_slice(&head);
            space[HEAD_LEN..].copy_from_slice(frame);
            self.batch.commit(peer.endpoint, HEAD_LEN + frame.len());
            peer.meter.transmitted(1, frame.len() as u64, *now_ms);
        }
        *sent = (sent.0 + to.len() as u64, sent.1 + (to.len() * frame.len()) as u64);
        if self.batch.bytes() >= FLUSH_BYTES {
            self.uplinks.flush(&mut self.batch);
        }
        Ok(())
    }

    /// Sends what is left of the burst.
    pub fn finish(&mut self, scope: &CloudEgressScope) {
        self.uplinks.flush(&mut self.batch);
        let counters = &self.views.counters;
        let (frames, bytes) = if self.views.is_bridged {
            (&counters.cloud_tx_frames, &counters.cloud_tx_bytes)
        } else {
            (&counters.direct_tx_frames, &counters.direct_tx_bytes)
        };
        add(frames, scope.sent.0);
        add(bytes, scope.sent.1);
        add(&counters.flooded_frames, scope.flooded);
    }
}

/// Whom a cloud's sockets tell of what is not a frame, and of what frames have shown.
#[derive(Clone)]
pub struct CloudIngressCasts {
    pub heard: Caster<CloudHeard>,
    pub seen: Caster<CloudSeen>,
}

/// From a socket of a cloud to this machine.
pub struct CloudIngress {
    views: CloudViews,
    casts: CloudIngressCasts,
    tap: TapTx,
    coalescer: Coalescer,
    /// Where this end is a port of a member's switch.
    bridge: Option<CloudBridge>,
}

/// The views of one batch, and what it adds up to.
struct Scope {
    peers: arc_swap::Guard<Arc<CloudView>>,
    fdb: arc_swap::Guard<Arc<FdbView>>,
    now: Instant,
    now_ms: u64,
    sightings: Vec<CloudSighting>,
    frames: u64,
    bytes: u64,
    /// Of these, for the device.
    here: (u64, u64),
}

impl CloudIngress {
    pub fn new(views: CloudViews, casts: CloudIngressCasts, tap: TapTx, bridge: Option<CloudBridge>) -> Self {
        Self { views, casts, tap, coalescer: Coalescer::new(Limits::default()), bridge }
    }

    /// What one receive call brought. Hot.
    pub fn batch(&mut self, arena: &mut [u8], trains: impl Iterator<Item = Train>, now: Instant) {
        let offloads = self.tap.offloads();
        let takes = |four, six| offloads.has(four) && offloads.has(six);
        self.coalescer.set_limits(Limits {
            tcp: takes(Offloads::TSO4, Offloads::TSO6),
            udp: takes(Offloads::USO4, Offloads::USO6),
        });
        let mut scope = Scope {
            peers: self.views.peers.load(),
            fdb: self.views.fdb.load(),
            now,
            now_ms: self.views.epoch.ms(now),
            sightings: Vec::new(),
            frames: 0,
            bytes: 0,
            here: (0, 0),
        };
        if let Some(bridge) = &mut self.bridge {
            bridge.begin(now);
        }
        for train in trains {
            if scope.peers.overlay.iter().any(|net| net.contains(&train.from.ip())) {
                // The network must not carry itself.
                self.views.counters.dropped_many(DropReason::OverlayLoop, train.datagrams().count() as u64);
                continue;
            }
            let peer = scope.peers.by_addr.get(&train.from).cloned();
            for range in train.datagrams() {
                if let Err(reason) = self.datagram(&train, peer.as_deref(), range, arena, &mut scope) {
                    self.views.counters.dropped(reason);
                }
            }
        }
        self.write(arena);
        if let Some(bridge) = &mut self.bridge {
            bridge.finish();
        }
        let counters = &self.views.counters;
        let (frames, bytes) = if self.views.is_bridged {
            (&counters.cloud_rx_frames, &counters.cloud_rx_bytes)
        } else {
            (&counters.direct_rx_frames, &counters.direct_rx_bytes)
        };
        add(frames, scope.frames);
        add(bytes, scope.bytes);
        add(&counters.tap_tx_frames, scope.here.0);
        add(&counters.tap_tx_bytes, scope.here.1);
        if !scope.sightings.is_empty() {
            self.casts.seen.cast(CloudSeen(scope.sightings));
        }
    }

    fn datagram(
        &mut self,
        train: &Train,
        peer: Option<&CloudPeer>,
        range: Range<usize>,
        arena: &mut [u8],
        scope: &mut Scope,
    ) -> Result<(), DropReason> {
        let message = Message::parse(self.views.token, &arena[range.clone()])?;
        let Message::Frame(frame) = message else {
            self.casts.heard.cast(CloudHeard { from: train.from, datagram: arena[range].to_vec() });
            return Ok(());
        };
        let length = frame.len() as u64;
        let (vlan, (_, src)) = (ethcloud::vlan(frame), ethcloud::stations(frame));
        let here = match &mut self.bridge {
            Some(bridge) => bridge.frame(frame, &scope.fdb, scope.now)?,
            None => true,
        };
        match peer {
            Some(peer) if !here => peer.meter.received(1, length, scope.now_ms),
            None if !here => {}
            Some(peer) => {
                self.coalescer.push(arena, range.start + HEAD_LEN..range.end, false)?;
                peer.meter.received(1, length, scope.now_ms);
            }
            None => {
                // It becomes a peer if the device takes the frame, so that is waited for.
                self.write(arena);
                self.tap.write(&arena[range.start + HEAD_LEN..range.end])?;
            }
        }
        (scope.frames, scope.bytes) = (scope.frames + 1, scope.bytes + length);
        if here {
            scope.here = (scope.here.0 + 1, scope.here.1 + length);
        }
        let known = peer.is_some_and(|peer| scope.fdb.touch(vlan, src, peer.idx, scope.now) || src.is_group());
        let sighting = CloudSighting { from: train.from, vlan, mac: src };
        if !known && !scope.sightings.contains(&sighting) && scope.sightings.len() < SIGHTINGS_MAX {
            scope.sightings.push(sighting);
        }
        Ok(())
    }

    /// Gives the batch's frames to the device.
    fn write(&mut self, arena: &[u8]) {
        let Self { coalescer, tap, views, .. } = self;
        let mut writes = 0;
        coalescer.flush(|header, pieces| {
            writes += 1;
            if let Err(reason) = tap.write_parts(header, pieces.iter().map(|piece| &arena[piece.range()])) {
                views.counters.dropped_many(reason, pieces.len() as u64);
            }
        });
        add(&views.counters.tap_tx_calls, writes);
    }
}

/// Told of in one batch; what is more is seen again.
const SIGHTINGS_MAX: usize = 256;
