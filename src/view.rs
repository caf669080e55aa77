//! Published read-only views: what one writer knows, as an immutable snapshot that everybody else reads.
//!
//! A view is loaded once per batch. The only thing in it that changes is a station's last-seen mark, an atomic the
//! data path moves and the forwarding database reads when it ages its entries.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use foldhash::quality::RandomState;

use crate::ids::{MacAddr, PeerIdx, VlanId};

/// Which peer a station is behind. Made by `proto::fdb::Fdb`; a clone shares everything.
#[derive(Debug, Clone)]
pub struct FdbView {
    epoch: Instant,
    own: Option<MacAddr>,
    members: Arc<Members>,
    learned: Arc<Learned>,
}

/// One line of the table, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Station {
    pub mac: MacAddr,
    pub peer: PeerIdx,
    /// The VLAN a learned station was seen in; `None` for a member's own, which is in all.
    pub vlan: Option<VlanId>,
    /// Milliseconds between the epoch and the last frame from a learned station; `None` for a member's own.
    pub seen_ms: Option<u64>,
}

/// The stations that certificates name.
pub(crate) type Members = HashMap<MacAddr, PeerIdx, RandomState>;
/// The stations seen behind bridges. Their addresses are chosen by strangers, hence the seeded hash.
pub(crate) type Learned = HashMap<(VlanId, MacAddr), Seen, RandomState>;

/// A learned station. Clones share the mark.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) peer: PeerIdx,
    /// Milliseconds since the epoch of the view.
    pub(crate) at_ms: Arc<AtomicU64>,
}

impl FdbView {
    /// An empty table whose marks count from `epoch`.
    pub fn empty(epoch: Instant) -> Self {
        Self::new(epoch, None, Arc::default(), Arc::default())
    }

    pub(crate) fn new(epoch: Instant, own: Option<MacAddr>, members: Arc<Members>, learned: Arc<Learned>) -> Self {
        Self { epoch, own, members, learned }
    }

    /// The peer a station is behind. Members come first, in any VLAN. Hot: once or twice per frame.
    pub fn lookup(&self, vlan: VlanId, mac: MacAddr) -> Option<PeerIdx> {
        self.owner(mac).or_else(|| self.learned.get(&(vlan, mac)).map(|seen| seen.peer))
    }

    /// The member whose certificate names `mac`.
    pub fn owner(&self, mac: MacAddr) -> Option<PeerIdx> {
        self.members.get(&mac).copied()
    }

    /// Whether `mac` is this node's own.
    pub fn is_own(&self, mac: MacAddr) -> bool {
        self.own == Some(mac)
    }

    /// Whether the table already has the station behind this peer, so that there is nothing to tell.
    pub fn is_known(&self, vlan: VlanId, mac: MacAddr, peer: PeerIdx) -> bool {
        self.lookup(vlan, mac) == Some(peer)
    }

    /// Marks a learned station as seen at `now`, if it is behind `peer`. False if the table does not have it there.
    ///
    /// A mark less than a second old stays, so that cores do not fight for its cache line.
    pub fn touch(&self, vlan: VlanId, mac: MacAddr, peer: PeerIdx, now: Instant) -> bool {
        if let Some(owner) = self.owner(mac) {
            return owner == peer;
        }
        let Some(seen) = self.learned.get(&(vlan, mac)).filter(|seen| seen.peer == peer) else { return false };
        let now_ms = millis_since(self.epoch, now);
        if now_ms >= seen.at_ms.load(Relaxed) + MARK_EVERY_MS {
            seen.at_ms.store(now_ms, Relaxed);
        }
        true
    }

    /// How many stations the table has.
    pub fn len(&self) -> usize {
        self.members.len() + self.learned.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole table: members by address, then learned stations by VLAN and address.
    pub fn stations(&self) -> Vec<Station> {
        let members =
            self.members.iter().map(|(mac, peer)| Station { mac: *mac, peer: *peer, vlan: None, seen_ms: None });
        let learned = self.learned.iter().map(|((vlan, mac), seen)| Station {
            mac: *mac,
            peer: seen.peer,
            vlan: Some(*vlan),
            seen_ms: Some(seen.at_ms.load(Relaxed)),
        });
        let mut stations: Vec<_> = members.chain(learned).collect();
        stations.sort_unstable_by_key(|station| (station.vlan, station.mac));
        stations
    }

    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }
}

/// Whole milliseconds from `epoch` to `now`; 0 if `now` is earlier.
pub(crate) fn millis_since(epoch: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch).as_millis()).unwrap_or(u64::MAX)
}

/// How old a last-seen mark has to be to be moved.
const MARK_EVERY_MS: u64 = 1_000;
