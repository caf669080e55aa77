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

/// A part of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub start: u32,
    pub len: u32,
}

impl Piece {
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
#[derive(Debug, Clone, Copy)]
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
        let piece = Piece { start: frame.start as u32, len: bytes.len() as u32 };
        let layout = if partial {
            // Padding is refused here: it would be taken for payload when the checksum is completed.
            Some(Layout::parse_exact(bytes)?)
        } else if self.limits == (Limits { tcp: false, udp: false }) {
            None
        } else {
            Layout::parse(bytes).ok()
        };
        self.frames += 1;
        let header = match layout {
            Some(layout) if partial => partial_header(&layout),
            _ => VnetHeader::PLAIN,
        };
        let Some(layout) = layout.filter(|layout| !layout.has_options) else {
            self.open.clear();
            self.runs.push(Run::alone(header, piece));
            return Ok(());
        };
        let is_offloaded = match layout.transport {
            Transport::Tcp => self.limits.tcp,
            Transport::Udp => self.limits.udp,
        };
        if !is_offloaded {
            self.runs.push(Run::alone(header, piece));
            return Ok(());
        }

        let candidate = Candidate { frame: bytes, layout, partial };
        let mut may_join = candidate.may_join();
        let hash = candidate.flow_hash();
        if let Some(at) = self.find_open(arena, hash, &candidate) {
            let run = &mut self.runs[self.open[at].run as usize];
            let joining = if may_join { run.join(arena, &candidate) } else { Joining::Refused };
            match joining {
                Joining::Joined { ends_run } => {
                    let payload = Piece {
                        start: piece.start + layout.payload_at as u32,
                        len: (layout.end - layout.payload_at) as u32,
                    };
                    let end_flags = candidate.end_flags();
                    run.chain(&mut self.later, payload);
                    if let Some(growth) = &run.growth {
                        growth.patch(&mut arena[run.first.range()], end_flags);
                    }
                    if ends_run {
                        self.open.remove(at);
                    }
                    return Ok(());
                }
                Joining::Refused => {}
                Joining::Damaged => may_join = false,
            }
            self.open.remove(at);
        }

        let candidate = Candidate { frame: &arena[frame], layout, partial };
        let opens = may_join && candidate.end_flags() == 0;
        if opens {
            if self.open.len() == OPEN_RUNS_MAX {
                self.open.remove(0);
            }
            self.open.push(Open { hash, run: self.runs.len() as u32 });
        }
        self.runs.push(Run { growth: opens.then(|| candidate.growth()), ..Run::alone(header, piece) });
        Ok(())
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
                run.growth.is_some_and(|growth| candidate.is_of_flow(&arena[run.first.range()], &growth.layout))
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
