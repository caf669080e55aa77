//! Joining: the segments of one receive batch become super-frames again, so that the TAP takes one write for many.
//!
//! The rules are those of Linux's GRO, for they decide what may be told apart afterwards: a frame joins a run only if
//! cutting the super-frame as [`super::segment`] does gives back every octet of it (but for IPv4 ids that were all
//! the same, see below). What a kernel must be able to see stays visible: a wrong checksum, a pure ACK (they count),
//! a push, a mark of congestion.
//!
//! **Which frames may join at all.** TCP segments and UDP datagrams with payload, straight behind an IPv4 header
//! without options or an IPv6 header without extension headers, with at most one VLAN tag, and nothing behind the IP
//! packet (padding would be lost). No SYN, RST or URG (each is about one place in the stream). UDP only with a
//! checksum, since a super-frame gets one. The IPv4 header's checksum must be right, and the TCP or UDP checksum
//! unless the frame is partial, because new ones are written that would hide the damage.
//!
//! **Which may follow each other.** Those with
//! * the same Ethernet header and tag; TOS, TTL, flags; traffic class, flow label, hop limit: there is one header;
//! * IPv4 ids that go up by one, as cutting gives them, or with DF all the same (some senders do not count when
//!   nothing may be fragmented; RFC 6864 then lets nobody look at the id, so that cutting may count);
//! * TCP: the next sequence number; the same acknowledgement, window, urgent pointer and options; the same flags but
//!   for PSH and FIN, which are about the end of the data and so end the run, and CWR, which cutting leaves on the
//!   first only and so begins one;
//! * as much payload as the first, except that the last may have less: that ends the run, and the first is the
//!   `gso_size`;
//! * 64 frames in a run (the most UDP segments an older kernel cuts; nothing is gained beyond) and 65,535 octets of
//!   IP packet.
//!
//! **Order.** Super-frames leave in the order of their first frames, and nothing inside a flow (addresses, protocol,
//! ports) is overtaken: a frame of a run's flow that may not join closes the run. A frame that is not understood
//! (fragments, options, other protocols) closes all runs, for it may belong to any flow.
//!
//! **Who is verified.** A frame alone is left to the kernel. A frame's checksum is computed when a second one of its
//! run arrives, that one's too. Wrong in the first: it goes out as it came and the second begins a run. Wrong in the
//! second: it goes out as it came, and ends the run.
//!
//! Everything here is hot. A push of 1400 octets of payload was measured at 60 ns with verification, 32 ns as partial,
//! its share of the flush included; a pure ACK takes 12 ns, and a frame for a TAP without offload 3.

use std::ops::Range;

use super::segment::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, Layout, TCP_CWR, TCP_FIN, TCP_PSH, Transport, u16_at, u32_at};
use crate::counters::DropReason;
use crate::wire::checksum::{self, Sum};
use crate::wire::vnet::{Gso, VnetHeader};

/// What the TAP takes as super-frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// TCP over IPv4 and IPv6 (`TUN_F_TSO4`, `TUN_F_TSO6`).
    pub tcp: bool,
    /// UDP over both (`TUN_F_USO4`, `TUN_F_USO6`; Linux 6.2).
    pub udp: bool,
}

impl Limits {
    #[inline]
    fn take(self, transport: Transport) -> bool {
        match transport {
            Transport::Tcp => self.tcp,
            Transport::Udp => self.udp,
        }
    }
}

/// A part of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub start: u32,
    pub len: u32,
}

impl Piece {
    #[inline]
    fn of(range: &Range<usize>) -> Self {
        Self { start: range.start as u32, len: range.len() as u32 }
    }

    /// The part of the piece at `range` in it.
    #[inline]
    fn part(self, range: Range<usize>) -> Self {
        Self { start: self.start + range.start as u32, len: range.len() as u32 }
    }

    /// The octets of the piece in its arena.
    #[inline]
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// Joins the frames of one batch. Used again from batch to batch, it does not allocate once it has grown to the size
/// of a burst.
///
/// All frames lie in one arena, the receive buffer in which they were opened. [`Self::push`] each, in order; the arena
/// must stay as `push` leaves it until [`Self::flush`] has given out what is to be written.
#[derive(Debug)]
pub struct Coalescer {
    limits: Limits,
    /// In the order of first arrival.
    runs: Vec<Run>,
    /// Payloads of all frames but the first of each run, chained per run.
    later: Vec<Later>,
    /// Runs that may go on, oldest first.
    open: Vec<Open>,
    /// The pieces of the run being flushed.
    gathered: Vec<Piece>,
    frames: usize,
}

/// One frame or super-frame to be written.
#[derive(Debug)]
struct Run {
    /// Goes with it when it is written.
    header: VnetHeader,
    /// The whole first frame.
    first: Piece,
    /// The chain in `later`, [`NO_LATER`] if the run has one frame.
    later_first: u32,
    later_last: u32,
    /// Of a run that was open once.
    growth: Option<Growth>,
}

#[derive(Debug, Clone, Copy)]
struct Later {
    piece: Piece,
    next: u32,
}

/// What a run needs to know to go on.
#[derive(Debug)]
struct Growth {
    layout: Layout,
    frames: u32,
    /// Octets of payload of all frames.
    payload: u32,
    /// Octets of payload of the first.
    segment: u32,
    next_seq: u32,
    last_id: u16,
    /// How the id grows from frame to frame; settled by the second.
    id_step: Option<u16>,
    /// The first frame's checksum is known to be right, or vouched for.
    is_verified: bool,
    /// The IPv4 header without length and checksum, and the pseudo header without a length; from the second frame on.
    ip_sum: Sum,
    pseudo_sum: Sum,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    hash: u32,
    run: u32,
}

/// A frame that is being pushed, understood as TCP or UDP.
struct Candidate<'a> {
    frame: &'a [u8],
    layout: Layout,
    partial: bool,
}

/// What became of a frame that wanted to join a run.
enum Joining {
    Joined {
        ends_run: bool,
    },
    /// It may not follow.
    Refused,
    /// It would follow, but its checksum is wrong.
    Damaged,
}

impl Coalescer {
    /// An empty one for a TAP with these limits.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            runs: Vec::with_capacity(INITIAL_FRAMES),
            later: Vec::with_capacity(INITIAL_FRAMES),
            open: Vec::with_capacity(OPEN_RUNS_MAX),
            gathered: Vec::with_capacity(RUN_FRAMES_MAX as usize),
            frames: 0,
        }
    }

    /// Changes the limits for frames pushed from here on; runs begun before do not go on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.open.clear();
    }

    /// Adds the frame that lies at `frame` in `arena`.
    ///
    /// `partial` says that its TCP or UDP checksum field holds only the pseudo header's sum, and that the sender
    /// vouches for the rest. Such a frame is given out with a header that asks for its completion; for a TAP without
    /// such headers call [`complete_parsed`](super::segment::complete_parsed) first and push it as complete.
    ///
    /// Headers of a run's first frame are patched in the arena. Panics if the range is not inside the arena.
    ///
    /// # Errors
    /// A partial frame in which no checksum is found is not added: nobody could complete it.
    pub fn push(&mut self, arena: &mut [u8], frame: Range<usize>, partial: bool) -> Result<(), DropReason> {
        debug_assert!(u32::try_from(arena.len()).is_ok(), "an arena of {} bytes", arena.len());
        let bytes = &arena[frame.clone()];
        let layout = if partial {
            // Padding is refused here: it would be taken for payload when the checksum is completed.
            Some(Layout::parse_exact(bytes)?)
        } else if self.limits == (Limits { tcp: false, udp: false }) {
            None
        } else {
            Layout::parse(bytes).ok()
        };
        self.frames += 1;
        let header = match &layout {
            Some(layout) if partial => partial_header(layout),
            _ => VnetHeader::PLAIN,
        };
        let alone = Run::alone(header, Piece::of(&frame));
        match layout {
            Some(layout) if layout.has_options => self.close_all_and_add(alone),
            Some(layout) if self.limits.take(layout.transport) => {
                self.join_or_begin(arena, alone, layout, partial);
            }
            Some(_) => self.runs.push(alone),
            None => self.close_all_and_add(alone),
        }
        Ok(())
    }

    fn close_all_and_add(&mut self, alone: Run) {
        self.open.clear();
        self.runs.push(alone);
    }

    /// Adds the frame of `alone`, understood as `layout`, to the open run of its flow; or else closes that one and adds
    /// `alone`, which others may join if the rules allow it.
    #[inline]
    fn join_or_begin(&mut self, arena: &mut [u8], alone: Run, layout: Layout, partial: bool) {
        let candidate = Candidate { frame: &arena[alone.first.range()], layout, partial };
        let mut may_join = candidate.may_join();
        let end_flags = candidate.end_flags();
        let hash = candidate.flow_hash();
        if let Some(at) = self.find_open(arena, hash, &candidate) {
            let run = &mut self.runs[self.open[at].run as usize];
            match if may_join { run.join(arena, &candidate) } else { Joining::Refused } {
                Joining::Joined { ends_run } => {
                    run.chain(&mut self.later, alone.first.part(layout.payload_at..layout.end));
                    if let Some(growth) = &run.growth {
                        growth.patch(&mut arena[run.first.range()], end_flags);
                    }
                    if ends_run {
                        self.open.remove(at);
                    }
                    return;
                }
                Joining::Refused => {}
                Joining::Damaged => may_join = false,
            }
            self.open.remove(at);
        }

        if !may_join || end_flags != 0 {
            self.runs.push(alone);
            return;
        }
        if self.open.len() == OPEN_RUNS_MAX {
            self.open.remove(0);
        }
        self.open.push(Open { hash, run: self.runs.len() as u32 });
        let growth = Candidate { frame: &arena[alone.first.range()], layout, partial }.growth();
        self.runs.push(Run { growth: Some(growth), ..alone });
    }

    /// Gives out every frame and super-frame in the order of first arrival, as a header and the parts of the arena that
    /// follow it, and is empty afterwards. The first part is a whole frame, the others are payload.
    pub fn flush(&mut self, mut write: impl FnMut(&VnetHeader, &[Piece])) {
        for run in &self.runs {
            if run.later_first == NO_LATER {
                write(&run.header, &[run.first]);
                continue;
            }
            self.gathered.clear();
            self.gathered.push(run.first);
            let mut next = run.later_first;
            while let Some(later) = self.later.get(next as usize) {
                self.gathered.push(later.piece);
                next = later.next;
            }
            write(&run.header, &self.gathered);
        }
        self.clear();
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.later.clear();
        self.open.clear();
        self.frames = 0;
    }

    /// Whether no frame waits to be flushed.
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Frames that wait to be flushed.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Where in `open` the run of the candidate's flow is; newest first, for a flow's frames come in bursts.
    #[inline]
    fn find_open(&self, arena: &[u8], hash: u32, candidate: &Candidate<'_>) -> Option<usize> {
        self.open.iter().rposition(|open| {
            open.hash == hash && {
                let run = &self.runs[open.run as usize];
                run.growth
                    .as_ref()
                    .is_some_and(|growth| candidate.is_of_flow(&arena[run.first.range()], &growth.layout))
            }
        })
    }
}

impl Run {
    #[inline]
    fn alone(header: VnetHeader, first: Piece) -> Self {
        Self { header, first, later_first: NO_LATER, later_last: NO_LATER, growth: None }
    }

    /// Lets the candidate, of this run's flow, join if the rules allow it; all but writing it down.
    fn join(&mut self, arena: &[u8], candidate: &Candidate<'_>) -> Joining {
        let Some(growth) = &mut self.growth else { return Joining::Refused };
        let first = &arena[self.first.range()];
        let payload = candidate.payload_len();
        let Some(id_step) = growth.id_step_to(candidate) else { return Joining::Refused };
        if !growth.has_room(payload) || !growth.is_continued_by(first, candidate) {
            return Joining::Refused;
        }
        if !growth.is_verified {
            // Whatever comes of the candidate, the run is closed: nothing follows a damaged frame.
            if !growth.layout.is_checksum_right(first) {
                return Joining::Refused;
            }
            growth.is_verified = true;
        }
        if !candidate.partial && !candidate.layout.is_checksum_right(candidate.frame) {
            return Joining::Damaged;
        }

        if growth.frames == 1 {
            self.header = growth.begin(first);
        }
        growth.frames += 1;
        growth.payload += payload;
        growth.next_seq = growth.next_seq.wrapping_add(payload);
        growth.last_id = growth.last_id.wrapping_add(id_step);
        growth.id_step = Some(id_step);
        let ends_run = payload < growth.segment || candidate.end_flags() != 0 || growth.frames == RUN_FRAMES_MAX;
        Joining::Joined { ends_run }
    }

    #[inline]
    fn chain(&mut self, later: &mut Vec<Later>, piece: Piece) {
        let at = later.len() as u32;
        match later.get_mut(self.later_last as usize) {
            Some(last) => last.next = at,
            None => self.later_first = at,
        }
        self.later_last = at;
        later.push(Later { piece, next: NO_LATER });
    }
}

impl Growth {
    #[inline]
    fn has_room(&self, payload: u32) -> bool {
        let headers = (self.layout.payload_at - self.layout.ip_at) as u32;
        payload <= self.segment && headers + self.payload + payload <= IP_LEN_MAX
    }

    /// By how much the id of the candidate grows, if it may. IPv6 has none, which is as good as one that stays.
    #[inline]
    fn id_step_to(&self, candidate: &Candidate<'_>) -> Option<u16> {
        let step = candidate.id().wrapping_sub(self.last_id);
        let may_stay = candidate.layout.is_ipv6 || candidate.is_df();
        let allowed = step == 1 || (step == 0 && may_stay);
        (allowed && self.id_step.is_none_or(|settled| settled == step)).then_some(step)
    }

    /// Whether the headers say that the candidate, of this flow, comes right behind.
    #[inline]
    fn is_continued_by(&self, first: &[u8], candidate: &Candidate<'_>) -> bool {
        let Layout { ip_at, transport_at, payload_at, .. } = self.layout;
        if (ip_at, payload_at) != (candidate.layout.ip_at, candidate.layout.payload_at) {
            return false;
        }
        let frame = candidate.frame;
        let same = |range: Range<usize>| first[range.clone()] == frame[range];
        // Two ranges of fixed length are compared faster than one of 14 or 18 octets.
        if !same(0..14) || !same(ip_at - 4..ip_at) {
            return false;
        }
        let same_ip = if self.layout.is_ipv6 {
            // Version, class and label; next header and hop limit.
            same(ip_at..ip_at + 4) && same(ip_at + 6..ip_at + 8)
        } else {
            // Version and TOS; flags, offset, TTL and protocol.
            same(ip_at..ip_at + 2) && same(ip_at + 6..ip_at + 10)
        };
        if !same_ip {
            return false;
        }
        match self.layout.transport {
            Transport::Udp => true,
            Transport::Tcp => {
                let (first_tcp, tcp) = (&first[transport_at..payload_at], &frame[transport_at..payload_at]);
                let flags = u16_at(tcp, 12);
                u32_at(tcp, 4) == self.next_seq
                    && (flags ^ u16_at(first_tcp, 12)) & !(TCP_FIN | TCP_PSH | TCP_CWR) == 0
                    && flags & TCP_CWR == 0
                    // Acknowledgement, window, urgent pointer.
                    && u32_at(tcp, 8) == u32_at(first_tcp, 8)
                    && u16_at(tcp, 14) == u16_at(first_tcp, 14)
                    && u16_at(tcp, 18) == u16_at(first_tcp, 18)
                    && tcp[20..] == first_tcp[20..]
            }
        }
    }

    /// Turns the run of one frame into one of several: what goes with the super-frame, and the sums its headers need.
    fn begin(&mut self, first: &[u8]) -> VnetHeader {
        let layout = &self.layout;
        if !layout.is_ipv6 {
            let ip = &first[layout.ip_at..layout.ip_at + IPV4_HEADER_LEN];
            self.ip_sum = checksum::sum(&ip[..2]) + checksum::sum(&ip[4..10]) + checksum::sum(&ip[12..]);
        }
        self.pseudo_sum = layout.pseudo_header(first, 0);
        let has_cwr = layout.transport == Transport::Tcp && u16_at(first, layout.transport_at + 12) & TCP_CWR != 0;
        VnetHeader {
            gso: match (layout.transport, layout.is_ipv6) {
                (Transport::Tcp, false) => Gso::Tcp4,
                (Transport::Tcp, true) => Gso::Tcp6,
                (Transport::Udp, _) => Gso::Udp,
            },
            ecn: has_cwr,
            hdr_len: layout.payload_at as u16,
            gso_size: self.segment as u16,
            ..partial_header(layout)
        }
    }

    /// Writes into the headers of the first frame what the frames joined so far make of them.
    #[inline]
    fn patch(&self, first: &mut [u8], end_flags: u16) {
        let Layout { ip_at, transport_at, payload_at, .. } = self.layout;
        let (ip, transport) = first[ip_at..payload_at].split_at_mut(transport_at - ip_at);
        let transport_len = (transport.len() + self.payload as usize) as u16;
        if self.layout.is_ipv6 {
            ip[4..6].copy_from_slice(&transport_len.to_be_bytes());
        } else {
            let ip_len = transport_len + IPV4_HEADER_LEN as u16;
            ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
            ip[10..12].copy_from_slice(&(self.ip_sum + Sum::word(ip_len)).checksum().to_be_bytes());
        }
        match self.layout.transport {
            Transport::Tcp => {
                let offset_flags = u16_at(transport, 12) | end_flags;
                transport[12..14].copy_from_slice(&offset_flags.to_be_bytes());
            }
            Transport::Udp => transport[4..6].copy_from_slice(&transport_len.to_be_bytes()),
        }
        let partial = (self.pseudo_sum + Sum::word(transport_len)).fold();
        let at = self.layout.transport.checksum_offset();
        transport[at..at + 2].copy_from_slice(&partial.to_be_bytes());
    }
}

impl Candidate<'_> {
    /// Whether the frame may be part of a run at all, its TCP or UDP checksum aside.
    #[inline]
    fn may_join(&self) -> bool {
        let Layout { ip_at, is_ipv6, end, .. } = self.layout;
        let transport_allows = match self.layout.transport {
            Transport::Tcp => self.tcp_flags() & (TCP_SYN | TCP_RST | TCP_URG) == 0,
            Transport::Udp => self.partial || self.layout.checksum_field(self.frame) != 0,
        };
        transport_allows
            && self.payload_len() > 0
            && end == self.frame.len()
            && (is_ipv6 || checksum::sum(&self.frame[ip_at..ip_at + IPV4_HEADER_LEN]).fold() == 0xffff)
    }

    fn growth(&self) -> Growth {
        Growth {
            layout: self.layout,
            frames: 1,
            payload: self.payload_len(),
            segment: self.payload_len(),
            next_seq: match self.layout.transport {
                Transport::Tcp => u32_at(self.frame, self.layout.transport_at + 4).wrapping_add(self.payload_len()),
                Transport::Udp => 0,
            },
            last_id: self.id(),
            id_step: None,
            is_verified: self.partial,
            ip_sum: Sum::default(),
            pseudo_sum: Sum::default(),
        }
    }

    /// Whether the frame has the addresses, protocol and ports of `first`.
    #[inline]
    fn is_of_flow(&self, first: &[u8], layout: &Layout) -> bool {
        layout.transport == self.layout.transport
            && layout.is_ipv6 == self.layout.is_ipv6
            && ports(first, layout) == ports(self.frame, &self.layout)
            && addresses(first, layout) == addresses(self.frame, &self.layout)
    }

    #[inline]
    fn flow_hash(&self) -> u32 {
        // Multiplication by an odd number near 2^64 / golden ratio spreads; a run found by it is compared anyway.
        let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        let (words, _) = addresses(self.frame, &self.layout).as_chunks::<8>();
        let ports = u64::from(ports(self.frame, &self.layout));
        let hash = words.iter().fold(ports, |hash, word| mix(hash, u64::from_ne_bytes(*word)));
        (hash ^ hash >> 32) as u32
    }

    #[inline]
    fn payload_len(&self) -> u32 {
        (self.layout.end - self.layout.payload_at) as u32
    }

    /// The IPv4 id; 0 for IPv6.
    #[inline]
    fn id(&self) -> u16 {
        if self.layout.is_ipv6 { 0 } else { u16_at(self.frame, self.layout.ip_at + 4) }
    }

    #[inline]
    fn is_df(&self) -> bool {
        u16_at(self.frame, self.layout.ip_at + 6) & IPV4_DONT_FRAGMENT != 0
    }

    #[inline]
    fn tcp_flags(&self) -> u16 {
        u16_at(self.frame, self.layout.transport_at + 12)
    }

    /// The flags that end a run.
    #[inline]
    fn end_flags(&self) -> u16 {
        match self.layout.transport {
            Transport::Tcp => self.tcp_flags() & (TCP_FIN | TCP_PSH),
            Transport::Udp => 0,
        }
    }
}

/// Source and destination address, as they follow each other.
#[inline]
fn addresses<'a>(frame: &'a [u8], layout: &Layout) -> &'a [u8] {
    let Layout { ip_at, is_ipv6, .. } = *layout;
    if is_ipv6 { &frame[ip_at + 8..ip_at + IPV6_HEADER_LEN] } else { &frame[ip_at + 12..ip_at + IPV4_HEADER_LEN] }
}

/// Source and destination port.
#[inline]
fn ports(frame: &[u8], layout: &Layout) -> u32 {
    u32_at(frame, layout.transport_at)
}

/// What goes with a frame whose checksum is partial.
#[inline]
fn partial_header(layout: &Layout) -> VnetHeader {
    let (csum_start, csum_offset) = layout.checksum_at();
    VnetHeader { needs_csum: true, csum_start, csum_offset, ..VnetHeader::PLAIN }
}

/// The most runs that may go on at once; a search through more would cost more than a write now and then.
const OPEN_RUNS_MAX: usize = 32;
/// The most frames in one run: `UDP_MAX_SEGMENTS` of kernels before 6.9.
const RUN_FRAMES_MAX: u32 = 64;
/// The most octets of an IP packet, its header included.
const IP_LEN_MAX: u32 = 65_535;
const NO_LATER: u32 = u32::MAX;
/// What a receive batch holds as a rule; more grows the lists once.
const INITIAL_FRAMES: usize = 256;

/// In the word of IPv4 flags and fragment offset (RFC 791, 3.1).
const IPV4_DONT_FRAGMENT: u16 = 0x4000;
/// In the word of TCP data offset and flags (RFC 9293, 3.1).
const TCP_SYN: u16 = 0x0002;
const TCP_RST: u16 = 0x0004;
const TCP_URG: u16 = 0x0020;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::segment::tests::{Packet, Sealed, any_packet, cut_frame};
    use crate::proto::segment::{Checksums, complete};
    use crate::wire::ethernet::tests::hex;
    use proptest::prelude::*;

    const BOTH: Limits = Limits { tcp: true, udp: true };
    const ACK: u16 = 0x10;

    /// One thing in which a frame may differ from the one before.
    type Change = (&'static str, fn(&mut Packet));

    #[test]
    fn consecutive_segments_are_one_super_frame_and_a_shorter_one_ends_it() {
        for (base, gso) in [
            (Packet::tcp(), Gso::Tcp4),
            (Packet { ipv6: true, ..Packet::tcp() }, Gso::Tcp6),
            (Packet::udp(), Gso::Udp),
            (Packet { ipv6: true, tag: Some(7), ..Packet::udp() }, Gso::Udp),
            (Packet { options: hex("0101080a 01020304 05060708"), ..Packet::tcp() }, Gso::Tcp4),
        ] {
            let whole = Packet { payload: (0..250).collect(), ..base };
            let [a, b, c] = &whole.cut(100)[..] else { panic!("three segments") };
            let after = Packet { id: c.id + 1, seq: c.seq + 50, ..c.clone() };
            let written = joined(&[a, b, c, &after].map(|packet| (packet.build(Sealed::Complete), false)));
            assert_eq!(written.len(), 2, "{gso:?}");
            // Like the kernel's own super-frames: one header, and the pseudo header's sum over the whole length.
            assert_eq!(written[0].1, whole.build(Sealed::Partial));
            let headers = written[0].1.len() - 250;
            let expected = VnetHeader { hdr_len: headers as u16, ..whole.header(100) };
            assert_eq!(written[0].0, expected);
            assert_eq!(written[1], (VnetHeader::PLAIN, after.build(Sealed::Complete)));
        }
    }

    #[test]
    fn a_segment_longer_than_the_first_begins_a_run() {
        for base in [Packet::tcp(), Packet::udp()] {
            let longer = Packet { payload: vec![7; 101], ..next(&base) };
            assert_eq!(sizes(&[base, longer.clone(), next(&longer)]), [1, 2]);
        }
    }

    #[test]
    fn headers_that_differ_are_not_joined() {
        let changes: [Change; 9] = [
            ("source station", |p| p.station += 1),
            ("VLAN tag", |p| p.tag = Some(9)),
            ("TOS or traffic class", |p| p.tos ^= 1),
            ("TTL or hop limit", |p| p.ttl -= 1),
            ("source port", |p| p.ports.0 += 1),
            ("destination port", |p| p.ports.1 += 1),
            ("version", |p| p.ipv6 = !p.ipv6),
            ("protocol", |p| p.udp = !p.udp),
            ("DF or flow label", |p| (p.df, p.label) = (!p.df, 77)),
        ];
        for ipv6 in [false, true] {
            for base in [Packet { ipv6, ..Packet::tcp() }, Packet { ipv6, ..Packet::udp() }] {
                assert_eq!(sizes(&[base.clone(), next(&base)]), [2]);
                for (what, change) in changes {
                    let mut other = next(&base);
                    change(&mut other);
                    assert_eq!(sizes(&[base.clone(), other]), [1, 1], "{what}");
                }
            }
        }
    }

    #[test]
    fn tcp_headers_that_differ_are_not_joined() {
        let base = Packet { flags: ACK | 0x40, options: vec![1; 4], ..Packet::tcp() };
        let changes: [Change; 8] = [
            ("a gap", |p| p.seq += 1),
            ("a repetition", |p| p.seq -= 100),
            ("acknowledgement", |p| p.ack += 1),
            ("window", |p| p.window += 1),
            ("urgent pointer", |p| p.urgent += 1),
            ("ECE", |p| p.flags ^= 0x40),
            ("options", |p| p.options[0] = 0),
            ("length of options", |p| p.options = vec![1; 8]),
        ];
        assert_eq!(sizes(&[base.clone(), next(&base)]), [2]);
        for (what, change) in changes {
            let mut other = next(&base);
            change(&mut other);
            assert_eq!(sizes(&[base.clone(), other]), [1, 1], "{what}");
        }
    }

    #[test]
    fn syn_rst_urg_and_pure_acks_stay_alone_and_close_their_flow() {
        let base = Packet::tcp();
        for flags in [ACK | TCP_SYN, ACK | TCP_RST, ACK | TCP_URG] {
            let other = Packet { flags, ..next(&base) };
            let after = Packet { flags: ACK, ..next(&other) };
            assert_eq!(sizes(&[base.clone(), other.clone(), after.clone(), next(&after)]), [1, 1, 2], "{flags:#x}");
            assert_eq!(sizes(&[other.clone(), Packet { flags, ..next(&other) }]), [1, 1], "{flags:#x}");
        }
        let ack = Packet { payload: vec![], ..next(&base) };
        assert_eq!(sizes(&[base.clone(), ack.clone(), next(&ack)]), [1, 1, 1]);
        assert_eq!(sizes(&[ack.clone(), ack]), [1, 1]);
    }

    #[test]
    fn psh_and_fin_end_a_run_and_stay_on_it() {
        for flag in [TCP_PSH, TCP_FIN, TCP_PSH | TCP_FIN] {
            let first = Packet::tcp();
            let last = Packet { flags: ACK | flag, ..next(&first) };
            let after = Packet { flags: ACK, ..next(&last) };
            assert_eq!(sizes(&[first.clone(), last.clone(), after.clone()]), [2, 1]);
            let written = joined(&[first, last.clone()].map(|packet| (packet.build(Sealed::Complete), false)));
            assert_eq!(u16_at(&written[0].1, 46) & 0xfff, ACK | flag);
            assert_eq!(sizes(&[last, after]), [1, 1], "a run does not begin with it");
        }
    }

    #[test]
    fn cwr_begins_a_run_which_then_says_so() {
        let first = Packet { flags: ACK | TCP_CWR, ..Packet::tcp() };
        let second = Packet { flags: ACK, ..next(&first) };
        let third = Packet { flags: ACK | TCP_CWR, ..next(&second) };
        let written = joined(&[first, second, third.clone()].map(|packet| (packet.build(Sealed::Complete), false)));
        assert_eq!(written.len(), 2);
        assert!(written[0].0.ecn && u16_at(&written[0].1, 46) & TCP_CWR != 0);
        assert_eq!(written[1], (VnetHeader::PLAIN, third.build(Sealed::Complete)));
    }

    #[test]
    fn ids_go_up_by_one_or_stay_where_nothing_may_be_fragmented() {
        let ids = |df: bool, ids: &[u16]| {
            let mut packet = Packet { df, ..Packet::udp() };
            let mut packets = Vec::new();
            for id in ids {
                packet.id = *id;
                packets.push(packet.clone());
            }
            sizes(&packets)
        };
        for df in [false, true] {
            assert_eq!(ids(df, &[0xffff, 0, 1]), [3], "wrapping");
            assert_eq!(ids(df, &[5, 7]), [1, 1]);
            assert_eq!(ids(df, &[5, 4]), [1, 1]);
        }
        assert_eq!(ids(true, &[5, 5, 5]), [3]);
        assert_eq!(ids(false, &[5, 5, 5]), [1, 1, 1]);
        assert_eq!(ids(true, &[5, 5, 6]), [2, 1], "all the run alike");
        assert_eq!(ids(true, &[5, 6, 6]), [2, 1], "all the run alike");
    }

    #[test]
    fn a_frame_with_something_behind_the_ip_packet_stays_alone() {
        let base = Packet::tcp();
        let padded = [next(&base).build(Sealed::Complete), vec![0; 4]].concat();
        let after = next(&next(&base)).build(Sealed::Complete);
        let frames = [(base.build(Sealed::Complete), false), (padded.clone(), false), (after, false)];
        assert_eq!(joined(&frames).len(), 3);
        assert_eq!(joined(&frames)[1], (VnetHeader::PLAIN, padded));
    }

    #[test]
    fn frames_that_are_not_understood_close_all_runs() {
        let (one, two) = (Packet::tcp(), Packet::udp());
        let mut fragment = Packet::udp().build(Sealed::Complete);
        fragment[20] |= 0x20;
        let mut odd_udp = Packet::udp().build(Sealed::Complete);
        odd_udp[39] -= 1;
        for odd in [
            hex("ffffffffffff 02000000000a 0806 0001"),
            hex("02000000000b 02000000000a 8100 0001 8100 0002 0800"),
            hex("0102"),
            fragment,
            odd_udp,
            Packet { ip_options: vec![1; 4], ..Packet::tcp() }.build(Sealed::Complete),
            Packet { ipv6: true, extensions: vec![(60, vec![0; 8])], ..Packet::tcp() }.build(Sealed::Complete),
        ] {
            let frames = [
                (one.build(Sealed::Complete), false),
                (two.build(Sealed::Complete), false),
                (odd.clone(), false),
                (next(&one).build(Sealed::Complete), false),
                (next(&two).build(Sealed::Complete), false),
            ];
            assert_eq!(joined(&frames), frames.map(|(frame, _)| (VnetHeader::PLAIN, frame)), "{odd:x?}");
        }
    }

    #[test]
    fn flows_are_joined_side_by_side_in_the_order_of_their_first_frames() {
        let one = Packet { payload: vec![1; 200], ..Packet::tcp() }.cut(100);
        let two = Packet { ports: (9, 9), payload: vec![2; 200], ..Packet::tcp() }.cut(100);
        let frames = [&one[0], &two[0], &one[1], &two[1]].map(|packet| (packet.build(Sealed::Complete), false));
        let written = joined(&frames);
        assert_eq!(written.iter().map(|(_, frame)| frame[frame.len() - 1]).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_wrong_checksum_reaches_the_kernel_and_ends_the_run() {
        for base in [Packet::tcp(), Packet { ipv6: true, ..Packet::udp() }] {
            let packets: Vec<_> = std::iter::successors(Some(base), |packet| Some(next(packet))).take(4).collect();
            let damaged = |which: usize| {
                let mut frames: Vec<_> = packets.iter().map(|packet| (packet.build(Sealed::Complete), false)).collect();
                *frames[which].0.last_mut().expect("payload") ^= 1;
                let written = joined(&frames);
                let hurt = (VnetHeader::PLAIN, frames[which].0.clone());
                assert!(written.contains(&hurt), "as it came");
                written.len()
            };
            assert_eq!([damaged(0), damaged(1), damaged(2), damaged(3)], [2, 3, 3, 2]);
        }
        // And that of an IPv4 header.
        let base = Packet::tcp();
        let mut frames = [&base, &next(&base)].map(|packet| (packet.build(Sealed::Complete), false));
        frames[1].0[24] ^= 1;
        assert_eq!(joined(&frames).len(), 2);
    }

    #[test]
    fn udp_without_a_checksum_stays_alone_unless_partial() {
        let base = Packet::udp();
        let two = |sealed, partial| joined(&[&base, &next(&base)].map(|packet| (packet.build(sealed), partial))).len();
        assert_eq!((two(Sealed::Without, false), two(Sealed::Partial, true), two(Sealed::Partial, false)), (2, 1, 2));
        // Even where nothing would be the right checksum, were it one.
        let empty_handed = Packet { payload: vec![0; 2], ..Packet::udp() };
        let rest = u16_at(&empty_handed.build(Sealed::Complete), 40);
        let base = Packet { payload: rest.to_be_bytes().to_vec(), ..empty_handed };
        let frames = [&base, &next(&base)].map(|packet| (packet.build(Sealed::Without), false));
        assert_eq!(joined(&frames).len(), 2);
        let empty = Packet { payload: vec![], ..Packet::udp() };
        assert_eq!(sizes(&[empty.clone(), next(&empty)]), [1, 1]);
    }

    #[test]
    fn partial_and_verified_frames_share_a_run() {
        let whole = Packet { payload: vec![7; 400], ..Packet::tcp() };
        let frames: Vec<_> = whole
            .cut(100)
            .iter()
            .zip([true, false, true, false])
            .map(|(packet, partial)| (packet.build(if partial { Sealed::Partial } else { Sealed::Complete }), partial))
            .collect();
        for first in 0..2 {
            assert_eq!(joined(&frames[first..]).len(), 1);
        }
    }

    #[test]
    fn a_partial_frame_alone_asks_for_its_completion() {
        for packet in [
            Packet::tcp(),
            Packet { tag: Some(3), ..Packet::udp() },
            Packet { ip_options: vec![1; 4], ..Packet::tcp() },
            Packet { ipv6: true, extensions: vec![(60, vec![0; 16])], ..Packet::tcp() },
        ] {
            for limits in [BOTH, Limits::default()] {
                let written = joined_with(limits, &[(packet.build(Sealed::Partial), true)]);
                let expected = VnetHeader { gso: Gso::None, ..packet.header(0) };
                assert_eq!(written, [(expected, packet.build(Sealed::Partial))]);
            }
        }
    }

    #[test]
    fn a_partial_frame_that_nobody_could_complete_is_dropped() {
        let mut coalescer = Coalescer::new(BOTH);
        let padded = [Packet::tcp().build(Sealed::Partial), vec![0]].concat();
        for (frame, reason) in [
            (hex("ffffffffffff 02000000000a 0806 0001"), DropReason::Malformed),
            (hex("ffff"), DropReason::Runt),
            (padded, DropReason::Malformed),
        ] {
            let mut arena = frame.clone();
            assert_eq!(coalescer.push(&mut arena, 0..frame.len(), true), Err(reason));
            assert!(coalescer.is_empty());
        }
    }

    #[test]
    fn a_run_has_64_frames_and_65535_octets_at_the_most() {
        let many = |payload: usize, count: usize| {
            let first = Packet { payload: vec![7; payload], ..Packet::udp() };
            sizes(&std::iter::successors(Some(first), |packet| Some(next(packet))).take(count).collect::<Vec<_>>())
        };
        assert_eq!(many(100, 130), [64, 64, 2]);
        // 65,535 less 28 for headers: 44 times 1,488 and not 1,489.
        assert_eq!(many(1488, 45), [44, 1]);
        assert_eq!(many(1489, 45), [43, 2]);
        assert_eq!(many(32_754, 2), [1, 1]);
    }

    #[test]
    fn without_offload_every_frame_goes_as_it_is() {
        let frames: Vec<_> = [Packet::tcp(), Packet::udp()]
            .iter()
            .flat_map(|base| [base.clone(), next(base)])
            .map(|packet| (packet.build(Sealed::Complete), false))
            .collect();
        let len = |limits| joined_with(limits, &frames).len();
        let (tcp, udp) = (Limits { tcp: true, udp: false }, Limits { tcp: false, udp: true });
        assert_eq!((len(Limits::default()), len(tcp), len(udp), len(BOTH)), (4, 3, 3, 2));
    }

    #[test]
    fn runs_begun_under_other_limits_do_not_go_on() {
        let mut arena = [Packet::tcp(), next(&Packet::tcp())].map(|packet| packet.build(Sealed::Complete)).concat();
        let len = arena.len() / 2;
        let mut coalescer = Coalescer::new(BOTH);
        coalescer.push(&mut arena, 0..len, false).expect("not partial");
        coalescer.set_limits(BOTH);
        coalescer.push(&mut arena, len..2 * len, false).expect("not partial");
        assert_eq!(coalescer.frames(), 2);
        let mut writes = 0;
        coalescer.flush(|_, pieces| writes += pieces.len());
        assert_eq!((writes, coalescer.frames(), coalescer.is_empty()), (2, 0, true));
    }

    #[test]
    fn beyond_32_open_runs_the_oldest_is_closed() {
        let flow = |port: u16| Packet { ports: (port, 1), ..Packet::tcp() };
        let mut packets: Vec<_> = (0..33).map(flow).collect();
        packets.extend((0..33).map(|port| next(&flow(port))).rev());
        let mut expected = vec![2; 33];
        expected[0] = 1;
        expected.push(1);
        assert_eq!(sizes(&packets), expected);
    }

    #[test]
    fn a_warm_coalescer_does_not_allocate() {
        let mut arena = Vec::new();
        let mut ranges = Vec::new();
        for port in 0..100 {
            for packet in (Packet { ports: (port, 1), payload: vec![7; 400], ..Packet::tcp() }).cut(100) {
                let start = arena.len();
                arena.extend(packet.build(Sealed::Partial));
                ranges.push(start..arena.len());
            }
        }
        let mut coalescer = Coalescer::new(BOTH);
        let turn = |coalescer: &mut Coalescer, order: &mut dyn Iterator<Item = &Range<usize>>| {
            let mut arena = arena.clone();
            for range in order {
                coalescer.push(&mut arena, range.clone(), true).expect("a TCP frame");
            }
            let mut pieces_given = 0;
            coalescer.flush(|_, pieces| pieces_given += pieces.len());
            assert_eq!(pieces_given, 400);
        };
        turn(&mut coalescer, &mut ranges.iter());
        turn(&mut coalescer, &mut ranges.iter().rev());
        let before = memory(&coalescer);
        for _ in 0..10 {
            turn(&mut coalescer, &mut ranges.iter());
            turn(&mut coalescer, &mut ranges.iter().rev());
        }
        assert_eq!(memory(&coalescer), before);
    }

    /// What one flow sends next.
    #[derive(Debug, Clone)]
    enum Step {
        /// A super-frame, cut by its sender.
        Burst { len: usize, gso_size: u16, flags: u16, id_gap: u16, seq_gap: u32, partial: bool },
        /// One segment whose payload was damaged on the way.
        Damaged,
        /// One segment with octets behind the IP packet.
        Padded,
        /// A pure ACK, or an empty datagram.
        Empty,
        /// One segment without a checksum.
        Bare,
        /// A frame of no flow.
        Odd(Vec<u8>),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let flags = prop_oneof![6 => Just(ACK), 2 => Just(ACK | TCP_PSH), 1 => 0u16..0x1000];
        let burst = (
            1usize..2000,
            10u16..500,
            flags,
            prop_oneof![6 => Just(0u16), 1 => 1u16..9],
            prop_oneof![6 => Just(0u32), 1 => any::<u32>()],
            any::<bool>(),
        );
        prop_oneof![
            12 => burst.prop_map(|(len, gso_size, flags, id_gap, seq_gap, partial)| {
                Step::Burst { len, gso_size, flags, id_gap, seq_gap, partial }
            }),
            1 => Just(Step::Damaged),
            1 => Just(Step::Padded),
            1 => Just(Step::Empty),
            1 => Just(Step::Bare),
            1 => prop::collection::vec(any::<u8>(), 0..80).prop_map(Step::Odd),
        ]
    }

    /// All that a flow sends, with whether each frame is partial. The segmenter cuts the bursts.
    fn frames_of(mut flow: Packet, steps: Vec<Step>) -> Vec<(Vec<u8>, bool)> {
        let mut frames = Vec::new();
        for step in steps {
            flow.flags = ACK;
            flow.payload = vec![frames.len() as u8; 60];
            match step {
                Step::Burst { len, gso_size, flags, id_gap, seq_gap, partial } => {
                    flow.flags = flags;
                    flow.payload = (0..len).map(|at| (at * 7 + frames.len()) as u8).collect();
                    flow.id = flow.id.wrapping_add(id_gap);
                    flow.seq = flow.seq.wrapping_add(seq_gap);
                    let checksums = if partial { Checksums::Partial } else { Checksums::Complete };
                    let segments = cut_frame(&flow.header(gso_size), &flow.build(Sealed::Partial), checksums);
                    // One less, for each step goes on by one.
                    flow.id = flow.id.wrapping_add(segments.len() as u16 - 1);
                    frames.extend(segments.into_iter().map(|frame| (frame, partial)));
                }
                Step::Damaged => {
                    let mut frame = flow.build(Sealed::Complete);
                    *frame.last_mut().expect("payload") ^= 0x40;
                    frames.push((frame, false));
                }
                Step::Padded => frames.push(([flow.build(Sealed::Complete), vec![0; 3]].concat(), false)),
                Step::Empty => {
                    flow.payload.clear();
                    frames.push((flow.build(Sealed::Complete), false));
                }
                Step::Bare => frames.push((flow.build(Sealed::Without), false)),
                Step::Odd(rest) => {
                    // Its sender's address tells whose it is.
                    let mut frame = vec![0xff; 11];
                    frame.push(flow.station);
                    frames.push(([frame, rest].concat(), false));
                    continue;
                }
            }
            flow.seq = flow.seq.wrapping_add(flow.payload.len() as u32);
            flow.id = flow.id.wrapping_add(1);
        }
        frames
    }

    proptest! {
        #[test]
        fn cut_joined_and_cut_again_every_flow_has_its_frames_in_order(
            flows in prop::collection::vec((any_packet(), prop::collection::vec(any_step(), 1..6)), 1..6),
            picks in prop::collection::vec(any::<u8>(), 1..40),
            cuts in prop::collection::vec(prop::bool::weighted(0.1), 1..40),
            same_ports in any::<bool>(), tcp in prop::bool::weighted(0.9), udp in prop::bool::weighted(0.9),
        ) {
            let mut waiting: Vec<_> = flows
                .into_iter()
                .enumerate()
                .map(|(index, (packet, steps))| {
                    let station = index as u8;
                    let ports = if same_ports { (1, 1) } else { packet.ports };
                    frames_of(Packet { station, ports, ..packet }, steps).into_iter().peekable()
                })
                .collect();
            let mut expected: Vec<Vec<Vec<u8>>> = vec![Vec::new(); waiting.len()];
            let mut got = expected.clone();
            let mut coalescer = Coalescer::new(Limits { tcp, udp });
            let mut batch = Vec::new();
            for turn in 0.. {
                let from = usize::from(picks[turn % picks.len()]);
                let count = waiting.len();
                let next = (0..count).map(|offset| (from + offset) % count).find(|at| waiting[*at].peek().is_some());
                if let Some(at) = next {
                    let (frame, partial) = waiting[at].next().expect("peeked");
                    let mut whole = frame.clone();
                    if partial {
                        crate::proto::segment::complete_parsed(&mut whole).expect("cut by the segmenter");
                    }
                    expected[at].push(whole);
                    batch.push((frame, partial));
                }
                if next.is_none() || cuts[turn % cuts.len()] {
                    for (header, frame) in run_batch(&mut coalescer, &batch) {
                        got[usize::from(frame[11])].extend(unjoined(&header, frame));
                    }
                    batch.clear();
                }
                if next.is_none() {
                    break;
                }
            }
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn any_bytes_are_pushed_without_a_panic(
            packets in prop::collection::vec((any_packet(), any::<bool>()), 1..8),
            lies in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut frames: Vec<_> = packets
                .into_iter()
                .flat_map(|(packet, partial)| [(packet.clone(), partial), (next(&packet), partial)])
                .map(|(packet, partial)| (packet.build(if partial { Sealed::Partial } else { Sealed::Complete }), partial))
                .collect();
            for (which, at, value) in lies {
                *at.get_mut(&mut which.get_mut(&mut frames).0) = value;
            }
            let (last, _) = frames.last_mut().expect("a frame");
            last.truncate(cut.index(last.len() + 1));
            let (mut arena, mut coalescer) = (Vec::new(), Coalescer::new(BOTH));
            let ranges: Vec<_> = frames
                .iter()
                .map(|(frame, partial)| {
                    arena.extend(frame);
                    (arena.len() - frame.len()..arena.len(), *partial)
                })
                .collect();
            let added = ranges.into_iter().filter(|(range, partial)| {
                coalescer.push(&mut arena, range.clone(), *partial).is_ok()
            });
            let added = added.count();
            let mut pieces_given = 0;
            coalescer.flush(|_, pieces| pieces_given += pieces.len());
            prop_assert_eq!(pieces_given, added);
        }
    }

    /// The segment that follows in a stream, alike but for sequence number and id.
    fn next(packet: &Packet) -> Packet {
        Packet {
            seq: packet.seq.wrapping_add(packet.payload.len() as u32),
            id: packet.id.wrapping_add(1),
            ..packet.clone()
        }
    }

    /// How many frames are in each write, for complete frames pushed in one batch.
    fn sizes(packets: &[Packet]) -> Vec<usize> {
        let mut arena = Vec::new();
        let mut coalescer = Coalescer::new(BOTH);
        for packet in packets {
            let start = arena.len();
            arena.extend(packet.build(Sealed::Complete));
            let range = start..arena.len();
            coalescer.push(&mut arena, range, false).expect("not partial");
        }
        let mut sizes = Vec::new();
        coalescer.flush(|_, pieces| sizes.push(pieces.len()));
        sizes
    }

    fn joined(frames: &[(Vec<u8>, bool)]) -> Vec<(VnetHeader, Vec<u8>)> {
        joined_with(BOTH, frames)
    }

    fn joined_with(limits: Limits, frames: &[(Vec<u8>, bool)]) -> Vec<(VnetHeader, Vec<u8>)> {
        run_batch(&mut Coalescer::new(limits), frames)
    }

    /// What would be written for one batch.
    fn run_batch(coalescer: &mut Coalescer, frames: &[(Vec<u8>, bool)]) -> Vec<(VnetHeader, Vec<u8>)> {
        // Something else lies between the frames, as sealed headers and tags do.
        let (mut arena, mut ranges) = (vec![0xee; 5], Vec::new());
        for (frame, _) in frames {
            ranges.push(arena.len()..arena.len() + frame.len());
            arena.extend(frame);
            arena.extend([0xee; 3]);
        }
        for (range, (_, partial)) in ranges.into_iter().zip(frames) {
            coalescer.push(&mut arena, range, *partial).expect("partial frames are located");
        }
        assert_eq!(coalescer.frames(), frames.len());
        let mut written = Vec::new();
        coalescer.flush(|header, pieces| {
            written.push((*header, pieces.iter().flat_map(|piece| arena[piece.range()].to_vec()).collect()));
        });
        assert!(coalescer.is_empty());
        written
    }

    /// The frames the kernel would make of what is written, with complete checksums.
    fn unjoined(header: &VnetHeader, mut frame: Vec<u8>) -> Vec<Vec<u8>> {
        if header.gso == Gso::None {
            complete(header, &mut frame).expect("offsets in the frame");
            return vec![frame];
        }
        cut_frame(header, &frame, Checksums::Complete)
    }

    fn memory(coalescer: &Coalescer) -> [(usize, usize); 4] {
        let Coalescer { runs, later, open, gathered, .. } = coalescer;
        [
            (runs.as_ptr().addr(), runs.capacity()),
            (later.as_ptr().addr(), later.capacity()),
            (open.as_ptr().addr(), open.capacity()),
            (gathered.as_ptr().addr(), gathered.capacity()),
        ]
    }
}
