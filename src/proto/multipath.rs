//! Several ways to one peer at once: which frames go by which, and which go by more than one.
//!
//! A frame is sealed once; copies are the same bytes to another place, and the receiver's replay window lets one
//! through. A [`Plan`] is what the path machine decided for the moment. It is read for each frame by the data path, so
//! it holds nothing but what is needed there; the ordinary peer with one way has none.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use super::estimate::PathMeter;
use crate::ids::Route;

/// Ways one frame goes at the most.
pub const COPIES_MAX: usize = 3;
/// Ways that flows are spread over at the most.
pub const SPREAD_MAX: usize = 8;
/// Frames up to this length count as small, in bytes.
const SMALL_MAX: usize = 200;
/// Copies of small frames may cost this part of all bytes.
const BUDGET_PART: i64 = 20;
/// And this much a second in any case, so that a call or a shell that is alone is protected, too.
const BUDGET_FLOOR_PER_SECOND: i64 = 4_096;
/// What may be saved up for a burst of small frames, in bytes.
const BUDGET_MAX: i64 = 64 * 1024;
/// Flows are told apart by this many places; two flows in one place go the same way. 8 KiB.
const SLOTS: usize = 1024;
/// A flow without a frame for so long may go another way, in milliseconds: nothing of it is on its way any more.
const FLOW_IDLE_MS: u64 = 2_000;

/// How several paths are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// The best one carries everything.
    Best,
    /// As best, and small frames go by a second one, too, where there are two of one tier.
    #[default]
    RedundantSmall,
    /// Every frame goes by up to three.
    Redundant,
    /// Each flow goes by one of them.
    Bonded,
}

impl Mode {
    /// All of them, in the order of the manual.
    pub const ALL: [Self; 4] = [Self::Best, Self::RedundantSmall, Self::Redundant, Self::Bonded];

    /// The word in configurations and commands.
    pub fn word(self) -> &'static str {
        match self {
            Self::Best => "best",
            Self::RedundantSmall => "redundant-small",
            Self::Redundant => "redundant",
            Self::Bonded => "bonded",
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|mode| mode.word() == text);
        found.ok_or_else(|| format!("{text:?} is no mode; write best, redundant-small, redundant or bonded"))
    }
}

/// What is done with the ways of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Every frame goes by all.
    Copy,
    /// Every frame goes by the first, small ones by the second, too.
    CopySmall,
    /// Every flow goes by one.
    Spread,
}

/// One way of a plan.
#[derive(Debug, Clone)]
pub struct Way {
    pub route: Route,
    pub meter: Arc<PathMeter>,
    /// The path's number, which it keeps.
    pub number: u8,
    /// What it can carry in relation to the others, 1 to 255.
    pub weight: u8,
}

/// Which ways frames to a peer take, where it is more than one. The first is the best.
#[derive(Debug, Clone)]
pub struct Plan {
    pub rule: Rule,
    pub ways: Vec<Way>,
    pub spread: Arc<Spread>,
}

impl PartialEq for Plan {
    fn eq(&self, other: &Self) -> bool {
        let key = |way: &Way| (way.route, way.number, way.weight);
        self.rule == other.rule && self.ways.iter().map(key).eq(other.ways.iter().map(key))
    }
}

impl Plan {
    /// The way a frame takes. Hot, where there is a plan.
    pub fn first(&self, frame: &[u8], now_ms: u64) -> &Way {
        match self.rule {
            Rule::Copy | Rule::CopySmall => &self.ways[0],
            Rule::Spread => self.spread.way(&self.ways, flow_of(frame), now_ms),
        }
    }

    /// The ways that copies of it take; `wire` is how many bytes one copy has, sealed. Hot, where there is a plan.
    pub fn copies(&self, frame: &[u8], wire: usize, now_ms: u64) -> &[Way] {
        match self.rule {
            Rule::Copy => &self.ways[1..],
            Rule::CopySmall if self.spread.affords(is_vital(frame), wire, now_ms) => &self.ways[1..2],
            Rule::CopySmall | Rule::Spread => &[],
        }
    }

    /// Whether every frame goes by several ways.
    pub fn copies_all(&self) -> bool {
        self.rule == Rule::Copy
    }
}

/// Which flow goes where, and what copies of small frames may cost. Outlives the plans of a peer.
#[derive(Debug)]
pub struct Spread {
    /// For each place the number of its path in the top byte, and when it was last used, in milliseconds plus one.
    slots: [AtomicU64; SLOTS],
    credit: AtomicI64,
    /// Milliseconds plus one until which the floor has been paid.
    paid_ms: AtomicU64,
}

impl Default for Spread {
    fn default() -> Self {
        Self {
            slots: [const { AtomicU64::new(0) }; SLOTS],
            credit: AtomicI64::new(BUDGET_MAX / 4),
            paid_ms: AtomicU64::new(0),
        }
    }
}

impl Spread {
    const TIME: u64 = (1 << 56) - 1;

    /// The way of a flow: where it went last, while that way is there; a new one goes where least is for its weight.
    fn way<'w>(&self, ways: &'w [Way], flow: u64, now_ms: u64) -> &'w Way {
        let slot = &self.slots[flow as usize % SLOTS];
        let held = slot.load(Relaxed);
        let is_idle = |held: u64| held == 0 || now_ms.saturating_sub((held & Self::TIME) - 1) > FLOW_IDLE_MS;
        let kept = ways.iter().find(|way| !is_idle(held) && u64::from(way.number) == held >> 56);
        let way = kept.unwrap_or_else(|| {
            let mut flows = [0_u32; 256];
            for held in self.slots.iter().map(|slot| slot.load(Relaxed)).filter(|held| !is_idle(*held)) {
                flows[(held >> 56) as usize] += 1;
            }
            let load = |way: &&Way| (flows[usize::from(way.number)] + 1) * 1_000 / u32::from(way.weight.max(1));
            ways.iter().min_by_key(load).unwrap_or(&ways[0])
        });
        slot.store(u64::from(way.number) << 56 | (now_ms + 1) & Self::TIME, Relaxed);
        way
    }

    /// Whether a copy of `wire` bytes is within the budget; every frame earns its part of it.
    fn affords(&self, wanted: bool, wire: usize, now_ms: u64) -> bool {
        let wire = wire as i64;
        let paid = self.paid_ms.load(Relaxed);
        let mut earned = wire / BUDGET_PART;
        if now_ms >= paid + 100 {
            self.paid_ms.store(now_ms, Relaxed);
            // Only what bytes did not earn: with much traffic, the part alone counts.
            if self.credit.load(Relaxed) < BUDGET_FLOOR_PER_SECOND {
                earned += BUDGET_FLOOR_PER_SECOND * (now_ms - paid).min(1_000) as i64 / 1_000;
            }
        }
        let spent = if wanted && self.credit.load(Relaxed) >= wire { wire } else { 0 };
        let credit = self.credit.fetch_add(earned - spent, Relaxed) + earned - spent;
        if credit > BUDGET_MAX {
            self.credit.store(BUDGET_MAX, Relaxed);
        }
        spent > 0
    }
}

/// Small frames, and those that others wait for: ARP, neighbour discovery, DHCP, DNS, and the ends of TCP connections.
fn is_vital(frame: &[u8]) -> bool {
    if frame.len() <= SMALL_MAX {
        return true;
    }
    // Longer ones of these are few: answers of DHCP and DNS, opening segments that carry data.
    let Some(Flow { protocol, transport }) = Flow::of(frame) else { return false };
    let port = |at: usize| transport.get(at..at + 2).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]));
    match protocol {
        6 => transport.get(13).is_some_and(|flags| flags & 0b111 != 0),
        17 => [port(0), port(2)].iter().any(|port| matches!(port, 53 | 67 | 68 | 546 | 547)),
        _ => false,
    }
}

/// What tells the flow of a frame: protocol and what follows the IP header.
struct Flow<'a> {
    protocol: u8,
    transport: &'a [u8],
}

impl<'a> Flow<'a> {
    fn of(frame: &'a [u8]) -> Option<Self> {
        let (kind, start) = match frame.get(12..14)? {
            [0x81, 0x00] => (frame.get(16..18)?, 18),
            kind => (kind, 14),
        };
        let packet = frame.get(start..)?;
        match kind {
            [0x08, 0x00] => {
                let head = usize::from(packet.first()? & 15) * 4;
                // What is not the first fragment has no ports.
                let later = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff != 0;
                Some(Self { protocol: *packet.get(9)?, transport: if later { &[] } else { packet.get(head..)? } })
            }
            [0x86, 0xdd] => Some(Self { protocol: *packet.get(6)?, transport: packet.get(40..)? }),
            _ => None,
        }
    }
}

/// A number that is equal for the frames of one flow: inner addresses and, of TCP and UDP that is not fragmented,
/// ports. FNV-1a: short, and nobody gains by a collision in their own traffic.
fn flow_of(frame: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut take = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    let start = if frame.get(12..14) == Some(&[0x81, 0x00]) { 18 } else { 14 };
    let fragmented = |packet: &[u8]| packet.get(6..8).is_some_and(|bits| bits[0] & 0x3f != 0 || bits[1] != 0);
    match frame.get(start - 2..start) {
        Some([0x08, 0x00]) => {
            take(frame.get(start + 12..start + 20).unwrap_or_default());
            if let Some(Flow { protocol: 6 | 17, transport }) = Flow::of(frame).filter(|_| !fragmented(&frame[start..]))
            {
                take(transport.get(..4).unwrap_or_default());
            }
        }
        Some([0x86, 0xdd]) => {
            take(frame.get(start + 8..start + 40).unwrap_or_default());
            if let Some(Flow { protocol: 6 | 17, transport }) = Flow::of(frame) {
                take(transport.get(..4).unwrap_or_default());
            }
        }
        _ => take(frame.get(..12).unwrap_or_default()),
    }
    // The low bits choose the place.
    hash ^ hash >> 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Endpoint;

    fn way(number: u8, weight: u8) -> Way {
        let route = Route::direct(Endpoint::udp(([192, 0, 2, number], 1).into()));
        Way { route, meter: Arc::default(), number, weight }
    }

    fn plan(rule: Rule, weights: &[u8]) -> Plan {
        let ways = (1..).zip(weights).map(|(number, weight)| way(number, *weight)).collect();
        Plan { rule, ways, spread: Arc::default() }
    }

    /// An IPv4 frame of a protocol, between two ports, `len` bytes long.
    fn frame(protocol: u8, ports: [u16; 2], len: usize) -> Vec<u8> {
        let mut frame = vec![0; len];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[23] = protocol;
        frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        frame[34..36].copy_from_slice(&ports[0].to_be_bytes());
        frame[36..38].copy_from_slice(&ports[1].to_be_bytes());
        frame
    }

    #[test]
    fn modes_print_as_they_parse() {
        for mode in Mode::ALL {
            assert_eq!(mode.word().parse(), Ok(mode));
        }
        assert!("striped".parse::<Mode>().is_err_and(|text| text.contains("bonded")));
    }

    #[test]
    fn a_flow_keeps_its_way_and_new_ones_go_where_there_is_room() {
        let plan = plan(Rule::Spread, &[100, 100]);
        let ways: Vec<u8> = (0..8).map(|port| plan.first(&frame(6, [port, 80], 1000), 0).number).collect();
        let firsts = ways.iter().filter(|number| **number == 1).count();
        assert_eq!(firsts, 4, "{ways:?}");
        for now_ms in [100, 1_900, 3_000] {
            let again: Vec<u8> = (0..8).map(|port| plan.first(&frame(6, [port, 80], 60), now_ms).number).collect();
            assert_eq!(again, ways);
        }
    }

    #[test]
    fn a_way_with_three_times_the_weight_gets_three_times_the_flows() {
        let plan = plan(Rule::Spread, &[60, 180]);
        let flows = (0..60).map(|port| plan.first(&frame(17, [port, 80], 1000), 0).number);
        let seconds = flows.filter(|number| *number == 2).count();
        assert!((40..=50).contains(&seconds), "{seconds} of 60");
    }

    #[test]
    fn the_flows_of_a_way_that_is_gone_move_and_the_others_stay() {
        let both = plan(Rule::Spread, &[100, 100]);
        let frames: Vec<_> = (0..20).map(|port| frame(6, [port, 80], 1000)).collect();
        let before: Vec<u8> = frames.iter().map(|frame| both.first(frame, 0).number).collect();
        let one = Plan { ways: both.ways[1..].to_vec(), ..both.clone() };
        assert!(frames.iter().all(|frame| one.first(frame, 10).number == 2));
        // Back: those that moved stay where they are until they pause.
        assert!(frames.iter().all(|frame| both.first(frame, 20).number == 2));
        assert!(before.contains(&1));
        let later: Vec<u8> = frames.iter().map(|frame| both.first(frame, 5_000).number).collect();
        assert!(later.contains(&1));
    }

    #[test]
    fn fragments_of_one_packet_go_the_same_way() {
        let whole = frame(17, [1, 2], 1000);
        let (mut first, mut second) = (whole.clone(), whole.clone());
        first[20] = 0x20;
        second[21] = 185;
        second[34..38].copy_from_slice(b"data");
        assert_eq!(flow_of(&first), flow_of(&second));
        assert_ne!(flow_of(&whole), flow_of(&frame(17, [1, 3], 1000)));
    }

    #[test]
    fn small_frames_and_those_others_wait_for_are_copied() {
        for (frame, vital) in [
            (frame(17, [9, 9], 200), true),
            (frame(17, [9, 9], 201), false),
            (frame(17, [53, 9], 500), true),
            (frame(17, [9, 67], 342), true),
            (frame(1, [9, 9], 1000), false),
            (vec![0; 500], false),
        ] {
            assert_eq!(is_vital(&frame), vital, "{frame:?}");
        }
        let mut fin = frame(6, [80, 9], 1000);
        assert!(!is_vital(&fin));
        fin[14 + 20 + 13] = 0b1_0001;
        assert!(is_vital(&fin));
    }

    #[test]
    fn copies_of_small_frames_cost_a_twentieth_of_the_bytes() {
        let plan = plan(Rule::CopySmall, &[1, 1]);
        let (small, large) = (frame(1, [0, 0], 98), frame(17, [9, 9], 1400));
        let (mut all, mut extra) = (0, 0);
        for turn in 0..200_000 {
            // Half of the frames are small: far more than the budget copies.
            let frame = if turn % 2 == 0 { &small } else { &large };
            let wire = frame.len() + 32;
            all += wire;
            extra += plan.copies(frame, wire, turn / 20).len() * wire;
        }
        let part = extra as f64 / all as f64;
        assert!((0.04..=0.0505).contains(&part), "{part}");
    }

    #[test]
    fn ten_small_frames_a_second_alone_are_all_copied() {
        let plan = plan(Rule::CopySmall, &[1, 1]);
        let ping = frame(1, [0, 0], 98);
        let copied = (0..10_000).filter(|turn| plan.copies(&ping, 130, turn * 100).len() == 1).count();
        assert_eq!(copied, 10_000);
    }
}
