//! A frame, or many as one, sealed for one peer into the batch.

use crate::counters::{Counters, DropReason, add};
use crate::ids::Route;
use crate::io::batch::SendBatch;
use crate::proto::multipath::Plan;
use crate::proto::segment::{self, Checksums, PartialChecksum, Segmenter};
use crate::proto::session::Session;
use crate::proto::too_big;
use crate::proto::whole::{self, Cut};
use crate::view::Outlet;
use crate::wire::ethernet::FrameView;
use crate::wire::header::{FragHeader, HEADER_LEN, TAG_LEN};
use crate::wire::relay;
use crate::wire::vnet::{Gso, VnetHeader};

/// Plaintext bytes that padding never exceeds: the frame of the default MTU with a VLAN tag.
const PAD_LIMIT: usize = 1376 + 18;
/// The longest frame that is sealed: the largest MTU there is, an Ethernet header and a VLAN tag. What is longer has no
/// place in a UDP datagram.
pub const FRAME_MAX: usize = 9000 + 18;

/// What one read of the TAP brought: a frame, or many as one.
pub(super) struct Load<'a> {
    pub(super) header: VnetHeader,
    pub(super) bytes: &'a [u8],
    /// Of a super-frame.
    pub(super) segments: Option<Segmenter<'a>>,
    /// Its checksum is partial in a way that a receiver can complete.
    pub(super) may_stay_partial: bool,
}

impl<'a> Load<'a> {
    pub(super) fn new(header: VnetHeader, bytes: &'a [u8]) -> Result<Self, DropReason> {
        let segments = if header.gso == Gso::None { None } else { Some(Segmenter::new(&header, bytes)?) };
        if segments.is_none() && bytes.len() > FRAME_MAX {
            return Err(DropReason::TooLong);
        }
        let may_stay_partial =
            segments.is_none() && segment::partial_kind(&header, bytes) == PartialChecksum::Transport;
        Ok(Self { header, bytes, segments, may_stay_partial })
    }

    /// A frame that needs nothing done.
    pub(super) fn plain(bytes: &'a [u8]) -> Self {
        Self { header: VnetHeader::PLAIN, bytes, segments: None, may_stay_partial: false }
    }

    /// Seals it for a peer into the batch. Hot: no allocation, no lock. Gives frames and their bytes.
    pub(super) fn seal_into(
        &self,
        batch: &mut SendBatch,
        lane: Lane<'_>,
        counters: &Counters,
    ) -> Result<(u64, u64), DropReason> {
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
    pub(super) fn sealed_whole(&self, outlet: &Outlet) -> Option<Whole> {
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
    pub(super) fn to_tell(&self, outlet: &Outlet) -> Option<(usize, u16)> {
        let longest = self.segments.as_ref().map_or(self.bytes.len(), |segments| segments.segment_len(0));
        if longest <= outlet.fit.frame_max() {
            return None;
        }
        let frame = FrameView::parse(self.bytes).ok()?;
        let head = self.bytes.len() - frame.payload().len();
        Some((longest - head, outlet.fit.packet_to_tell(frame.is_tagged())?))
    }

    /// Each frame of it by itself and complete, to be kept.
    pub(super) fn for_each(&self, mut keep: impl FnMut(&[u8])) -> Result<(), DropReason> {
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

/// An outlet, and which of its routes a frame takes. What fits the outlet fits each of them.
#[derive(Clone, Copy)]
pub(super) struct Lane<'a> {
    pub(super) outlet: &'a Outlet,
    pub(super) route: Route,
}

impl<'a> Lane<'a> {
    pub(super) fn usual(outlet: &'a Outlet) -> Self {
        Self { outlet, route: outlet.route }
    }
}

/// A super-frame that is to be sealed whole.
#[derive(Clone, Copy)]
pub(super) struct Whole {
    pub(super) head: [u8; whole::HEAD_LEN],
    pub(super) cut: Cut,
    pub(super) frames: u64,
    pub(super) bytes: u64,
    /// As [`Load::to_tell`].
    pub(super) told: Option<(usize, u16)>,
}

impl Whole {
    /// Seals it in place, in `message`, which begins with room for its head, and puts its fragments into the batch.
    /// Hot: no allocation, no lock.
    pub(super) fn seal_into(
        &self,
        batch: &mut SendBatch,
        lane: Lane<'_>,
        message: &mut [u8],
    ) -> Result<(), DropReason> {
        message[..whole::HEAD_LEN].copy_from_slice(&self.head);
        seal_cut(batch, lane, self.cut, message)
    }
}

/// Seals a message in place and puts its fragments into the batch. Hot: no allocation, no lock.
pub(super) fn seal_cut(batch: &mut SendBatch, lane: Lane<'_>, cut: Cut, message: &mut [u8]) -> Result<(), DropReason> {
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
pub(super) enum Sealed {
    Alone,
    Cut,
}

impl Sealed {
    pub(super) fn count(self, counters: &Counters) {
        match self {
            Self::Alone => {}
            Self::Cut => add(&counters.cut_frames, 1),
        }
    }
}

/// Seals a frame of `length` bytes, which `write` puts in its place, for a peer: in one datagram where the path takes
/// it, or the other side does not take fragments. IP cuts it then.
pub(super) fn seal_into(
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
pub(super) fn clamp(frame: &mut [u8], outlet: &Outlet, summed: bool, counters: &Counters) {
    if let Some(syn) = too_big::syn(frame)
        && let Some(packet_max) = outlet.fit.packet_to_clamp(syn.tagged)
        && syn.clamp(frame, packet_max, summed)
    {
        add(&counters.mss_clamped, 1);
    }
}
