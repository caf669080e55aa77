//! The forwarding database: which peer a station is behind.
//!
//! Members need no learning: their certificates name their MAC, and those entries hold in every VLAN, never age and
//! are never displaced. Learned are only stations that frames of a *bridge* peer came from; the caller offers no
//! sightings of others. The table is bounded and refuses what is new when it is full, so a bridge that floods
//! addresses harms its own stations and nobody else's.
//!
//! Ageing needs no messages: each learned entry has a mark that the data path moves through the published view
//! ([`FdbView::touch`]) and [`Fdb::handle_timeout`] reads.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::ids::{MacAddr, PeerIdx, VlanId};
use crate::view::{FdbView, Learned, Members, Seen, millis_since};

/// How long a learned station stays without a frame from it; the default of IEEE 802.1Q-2018 (table 8-6). Exact
/// to two seconds: marks move once a second, and entries are looked through once a second at the most.
pub const STATION_AGE: Duration = Duration::from_secs(300);

/// Learned stations of one bridge peer, over all VLANs.
pub const STATIONS_PER_PEER: usize = 1_024;

/// Learned stations in all.
pub const STATIONS_MAX: usize = 16_384;

/// The forwarding database. After each input take the events, and publish [`Fdb::view`] if there were any.
#[derive(Debug)]
pub struct Fdb {
    epoch: Instant,
    own: Option<MacAddr>,
    members: Arc<Members>,
    /// The truth, in an order that does not depend on a hash.
    stations: BTreeMap<(VlanId, MacAddr), Seen>,
    /// The same for lookups; shared with views until the next change.
    learned: Arc<Learned>,
    /// Learned stations by peer; none are zero.
    per_peer: BTreeMap<PeerIdx, usize>,
    /// How long a station stays without a frame from it.
    age: Duration,
    /// No entry ages before. Marks only move forwards, so this may be early and is never late.
    next_aging_at: Option<Instant>,
    events: VecDeque<Event>,
}

/// A frame from `mac` in `vlan` came from `peer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    pub vlan: VlanId,
    pub mac: MacAddr,
    pub peer: PeerIdx,
}

/// What happened to a learned station.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It is new.
    Learned(Sighting),
    /// It is behind another peer than before.
    Moved { to: Sighting, from: PeerIdx },
    /// Nothing was heard of it for the table's age.
    Aged(Sighting),
    /// Its peer was forgotten, or its address turned out to be a member's.
    Forgotten(Sighting),
    /// It was not learned.
    Refused { sighting: Sighting, why: Refusal },
}

/// Why a sighting was not learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A group address or the zero address is nobody's.
    NoStation,
    /// The address is our own, or is named by the certificate of another member.
    Owned,
    /// The peer has [`STATIONS_PER_PEER`].
    PeerFull,
    /// There are [`STATIONS_MAX`].
    TableFull,
}

impl Fdb {
    /// Makes an empty table; last-seen marks count from `epoch`.
    pub fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            own: None,
            members: Arc::default(),
            stations: BTreeMap::new(),
            learned: Arc::default(),
            per_peer: BTreeMap::new(),
            age: STATION_AGE,
            next_aging_at: None,
            events: VecDeque::new(),
        }
    }

    /// Another age than [`STATION_AGE`], for a table that is new.
    #[must_use]
    pub fn with_age(self, age: Duration) -> Self {
        Self { age, ..self }
    }

    /// Makes a table out of the last view of one that is gone. Marks go on.
    pub fn from_view(view: &FdbView, now: Instant) -> Self {
        let mut fdb = Self { epoch: view.epoch(), ..Self::new(view.epoch()) };
        for station in view.stations() {
            let (Some(vlan), Some(seen_ms)) = (station.vlan, station.seen_ms) else {
                Arc::make_mut(&mut fdb.members).insert(station.mac, station.peer);
                continue;
            };
            fdb.insert(vlan, station.mac, Seen { peer: station.peer, at_ms: Arc::new(AtomicU64::new(seen_ms)) });
        }
        fdb.next_aging_at = (!fdb.stations.is_empty()).then_some(now);
        fdb
    }

    /// Sets this node's own address, which nobody else may be learned with.
    pub fn set_own(&mut self, mac: MacAddr) {
        self.own = Some(mac);
        self.forget_where(|_, station, _| station == mac);
    }

    /// Replaces the static stations by what the members' certificates name. Learned entries with one of these
    /// addresses go.
    pub fn set_members(&mut self, members: impl Iterator<Item = (MacAddr, PeerIdx)>) {
        let members: Arc<Members> = Arc::new(members.collect());
        self.members = Arc::clone(&members);
        self.forget_where(|_, mac, _| members.contains_key(&mac));
    }

    /// Takes note of a station. For frames from peers with the bridge right.
    pub fn learn(&mut self, sighting: Sighting, now: Instant) {
        let Sighting { vlan, mac, peer } = sighting;
        if self.members.get(&mac) == Some(&peer) {
            return;
        }
        let from = self.stations.get(&(vlan, mac)).map(|seen| seen.peer);
        if from == Some(peer) {
            if let Some(seen) = self.stations.get(&(vlan, mac)) {
                seen.at_ms.fetch_max(millis_since(self.epoch, now), Relaxed);
            }
            return;
        }
        if let Some(why) = self.refusal(sighting, from) {
            self.note(Event::Refused { sighting, why });
            return;
        }

        if let Some(from) = from {
            self.count_out(from);
        }
        let at_ms = Arc::new(AtomicU64::new(millis_since(self.epoch, now)));
        self.insert(vlan, mac, Seen { peer, at_ms });
        let ages_at = now + self.age;
        self.next_aging_at = Some(self.next_aging_at.map_or(ages_at, |at| at.min(ages_at)));
        self.note(match from {
            Some(from) => Event::Moved { to: sighting, from },
            None => Event::Learned(sighting),
        });
    }

    /// Forgets the stations behind a peer that left or is no bridge any more. Its own station is a matter of
    /// [`Fdb::set_members`].
    pub fn forget_peer(&mut self, peer: PeerIdx) {
        if self.per_peer.contains_key(&peer) {
            self.forget_where(|_, _, behind| behind == peer);
        }
    }

    /// Forgets one learned station: it was seen at a place that is not this table's.
    pub fn forget(&mut self, vlan: VlanId, mac: MacAddr) {
        if let Some(peer) = self.stations.get(&(vlan, mac)).map(|seen| seen.peer) {
            let sighting = Sighting { vlan, mac, peer };
            self.remove(sighting);
            self.note(Event::Forgotten(sighting));
        }
    }

    /// When [`Fdb::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_aging_at
    }

    /// Drops the stations that were silent for the table's age.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_aging_at.is_none_or(|at| now < at) {
            return;
        }
        let mut aged = Vec::new();
        let mut earliest: Option<Instant> = None;
        for ((vlan, mac), seen) in &self.stations {
            let ages_at = self.epoch + Duration::from_millis(seen.at_ms.load(Relaxed)) + self.age;
            if ages_at <= now {
                aged.push(Sighting { vlan: *vlan, mac: *mac, peer: seen.peer });
            } else {
                earliest = Some(earliest.map_or(ages_at, |at| at.min(ages_at)));
            }
        }
        for sighting in aged {
            self.remove(sighting);
            self.note(Event::Aged(sighting));
        }
        self.next_aging_at = earliest.map(|at| at.max(now + AGING_INTERVAL));
    }

    /// What happened since it was last asked.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The table as it is, to be published. Cheap; the next change pays for one copy of the learned stations.
    pub fn view(&self) -> FdbView {
        FdbView::new(self.epoch, self.own, Arc::clone(&self.members), Arc::clone(&self.learned))
    }

    /// How many stations are learned.
    pub fn learned(&self) -> usize {
        self.stations.len()
    }

    fn refusal(&self, Sighting { vlan: _, mac, peer }: Sighting, from: Option<PeerIdx>) -> Option<Refusal> {
        if mac.is_group() || mac == MacAddr([0; 6]) {
            Some(Refusal::NoStation)
        } else if self.own == Some(mac) || self.members.contains_key(&mac) {
            Some(Refusal::Owned)
        } else if self.per_peer.get(&peer).is_some_and(|count| *count >= STATIONS_PER_PEER) {
            Some(Refusal::PeerFull)
        } else if from.is_none() && self.stations.len() >= STATIONS_MAX {
            Some(Refusal::TableFull)
        } else {
            None
        }
    }

    fn insert(&mut self, vlan: VlanId, mac: MacAddr, seen: Seen) {
        *self.per_peer.entry(seen.peer).or_default() += 1;
        Arc::make_mut(&mut self.learned).insert((vlan, mac), seen.clone());
        self.stations.insert((vlan, mac), seen);
    }

    fn remove(&mut self, Sighting { vlan, mac, peer }: Sighting) {
        self.stations.remove(&(vlan, mac));
        Arc::make_mut(&mut self.learned).remove(&(vlan, mac));
        self.count_out(peer);
    }

    fn forget_where(&mut self, gone: impl Fn(VlanId, MacAddr, PeerIdx) -> bool) {
        let gone: Vec<_> = self
            .stations
            .iter()
            .filter(|((vlan, mac), seen)| gone(*vlan, *mac, seen.peer))
            .map(|((vlan, mac), seen)| Sighting { vlan: *vlan, mac: *mac, peer: seen.peer })
            .collect();
        for sighting in gone {
            self.remove(sighting);
            self.note(Event::Forgotten(sighting));
        }
    }

    fn count_out(&mut self, peer: PeerIdx) {
        if let Entry::Occupied(mut count) = self.per_peer.entry(peer) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// Events are for people and for knowing that something changed; an owner that takes none loses the newest.
    fn note(&mut self, event: Event) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        }
    }
}

/// Least time between two looks through the table.
const AGING_INTERVAL: Duration = Duration::from_secs(1);

/// Events kept until they are taken; one input makes [`STATIONS_MAX`] at the most.
const EVENTS_MAX: usize = 2 * STATIONS_MAX;

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: PeerIdx = PeerIdx(1);
    const OTHER: PeerIdx = PeerIdx(2);
    const UNTAGGED: VlanId = VlanId(0);

    #[test]
    fn a_learned_station_is_found_in_its_vlan_only_and_a_member_in_all() {
        let (mut fdb, start) = table();
        fdb.learn(sighting(5, 1, BRIDGE), start);
        assert_eq!(fdb.poll_event(), Some(Event::Learned(sighting(5, 1, BRIDGE))));
        let view = fdb.view();
        assert_eq!(view.lookup(VlanId(5), mac(1)), Some(BRIDGE));
        assert_eq!(view.lookup(UNTAGGED, mac(1)), None);
        for vlan in [0, 5, 4_095] {
            assert_eq!(view.lookup(VlanId(vlan), member(OTHER)), Some(OTHER));
            assert!(view.is_known(VlanId(vlan), member(OTHER), OTHER));
        }
        assert!(view.is_known(VlanId(5), mac(1), BRIDGE));
        assert!(!view.is_known(VlanId(5), mac(1), OTHER));
    }

    #[test]
    fn a_station_moves_to_the_peer_it_was_last_seen_behind() {
        let (mut fdb, start) = table();
        fdb.learn(sighting(0, 1, BRIDGE), start);
        let before = fdb.view();
        fdb.learn(sighting(0, 1, OTHER), start);
        assert_eq!(drain(&mut fdb)[1], Event::Moved { to: sighting(0, 1, OTHER), from: BRIDGE });
        assert_eq!(fdb.view().lookup(UNTAGGED, mac(1)), Some(OTHER));
        assert_eq!(before.lookup(UNTAGGED, mac(1)), Some(BRIDGE), "a published view does not change");
        assert_eq!(fdb.learned(), 1);
        fdb.forget_peer(BRIDGE);
        assert_eq!(fdb.learned(), 1);
        fdb.forget_peer(OTHER);
        assert_eq!(drain(&mut fdb), [Event::Forgotten(sighting(0, 1, OTHER))]);
        assert!(fdb.view().lookup(UNTAGGED, mac(1)).is_none());
    }

    #[test]
    fn a_silent_station_ages_and_one_that_the_data_path_touches_stays() {
        let (mut fdb, start) = table();
        fdb.learn(sighting(0, 1, BRIDGE), start);
        fdb.learn(sighting(0, 2, BRIDGE), start);
        assert_eq!(fdb.poll_timeout(), Some(start + STATION_AGE));
        let view = fdb.view();
        assert!(view.touch(UNTAGGED, mac(2), BRIDGE, start + Duration::from_secs(200)));
        assert!(!view.touch(UNTAGGED, mac(2), OTHER, start + Duration::from_secs(299)));
        drain(&mut fdb);

        fdb.handle_timeout(start + STATION_AGE - Duration::from_millis(1));
        assert_eq!(fdb.learned(), 2);
        fdb.handle_timeout(start + STATION_AGE);
        assert_eq!(drain(&mut fdb), [Event::Aged(sighting(0, 1, BRIDGE))]);
        assert_eq!(fdb.poll_timeout(), Some(start + Duration::from_secs(500)));
        fdb.handle_timeout(start + Duration::from_secs(500));
        assert_eq!(drain(&mut fdb), [Event::Aged(sighting(0, 2, BRIDGE))]);
        assert_eq!(fdb.poll_timeout(), None);
        assert!(fdb.per_peer.is_empty());
    }

    #[test]
    fn a_sighting_again_keeps_a_station_too() {
        let (mut fdb, start) = table();
        fdb.learn(sighting(0, 1, BRIDGE), start);
        fdb.learn(sighting(0, 1, BRIDGE), start + Duration::from_secs(100));
        assert_eq!(drain(&mut fdb).len(), 1);
        fdb.handle_timeout(start + STATION_AGE);
        assert_eq!(fdb.learned(), 1);
        fdb.handle_timeout(start + STATION_AGE + Duration::from_secs(100));
        assert_eq!(fdb.learned(), 0);
    }

    #[test]
    fn addresses_of_groups_members_and_ourselves_are_not_learned() {
        let (mut fdb, start) = table();
        fdb.set_own(MacAddr([2, 9, 9, 9, 9, 9]));
        for (address, why) in [
            (MacAddr::BROADCAST, Refusal::NoStation),
            (MacAddr([1, 0, 0x5e, 0, 0, 1]), Refusal::NoStation),
            (MacAddr([0; 6]), Refusal::NoStation),
            (member(OTHER), Refusal::Owned),
            (MacAddr([2, 9, 9, 9, 9, 9]), Refusal::Owned),
        ] {
            let sighting = Sighting { vlan: UNTAGGED, mac: address, peer: BRIDGE };
            fdb.learn(sighting, start);
            assert_eq!(drain(&mut fdb), [Event::Refused { sighting, why }]);
        }
        fdb.learn(Sighting { vlan: UNTAGGED, mac: member(BRIDGE), peer: BRIDGE }, start);
        assert_eq!(drain(&mut fdb), [], "a bridge's own station is known");
        assert_eq!(fdb.learned(), 0);
    }

    #[test]
    fn an_address_that_becomes_a_members_is_learned_no_longer() {
        let (mut fdb, start) = table();
        fdb.learn(sighting(0, 1, BRIDGE), start);
        fdb.learn(sighting(7, 1, BRIDGE), start);
        drain(&mut fdb);
        fdb.set_members([(mac(1), OTHER)].into_iter());
        let forgotten = [Event::Forgotten(sighting(0, 1, BRIDGE)), Event::Forgotten(sighting(7, 1, BRIDGE))];
        assert_eq!(drain(&mut fdb), forgotten);
        assert_eq!(fdb.view().lookup(UNTAGGED, mac(1)), Some(OTHER));
        assert_eq!(fdb.view().lookup(UNTAGGED, member(OTHER)), None);
    }

    #[test]
    fn a_full_table_refuses_what_is_new_and_keeps_what_it_has() {
        let (mut fdb, start) = table();
        let bridges = (STATIONS_MAX / STATIONS_PER_PEER) as u32;
        for bridge in 0..bridges {
            for station in 0..STATIONS_PER_PEER as u32 {
                fdb.learn(sighting(0, bridge << 16 | station, PeerIdx(100 + bridge)), start);
            }
        }
        assert!(drain(&mut fdb).iter().all(|event| matches!(event, Event::Learned(_))));
        assert_eq!(fdb.learned(), STATIONS_MAX);

        let of_full_peer = sighting(3, 0x00ff_0000, PeerIdx(100));
        fdb.learn(of_full_peer, start);
        let of_new_peer = sighting(3, 0x00ff_0001, PeerIdx(99));
        fdb.learn(of_new_peer, start);
        let moving_to_full_peer = sighting(0, 1 << 16, PeerIdx(100));
        fdb.learn(moving_to_full_peer, start);
        assert_eq!(
            drain(&mut fdb),
            [
                Event::Refused { sighting: of_full_peer, why: Refusal::PeerFull },
                Event::Refused { sighting: of_new_peer, why: Refusal::TableFull },
                Event::Refused { sighting: moving_to_full_peer, why: Refusal::PeerFull },
            ]
        );
        let moving_to_new_peer = sighting(0, 1 << 16, PeerIdx(99));
        fdb.learn(moving_to_new_peer, start);
        assert_eq!(drain(&mut fdb), [Event::Moved { to: moving_to_new_peer, from: PeerIdx(101) }]);
        assert_eq!(fdb.learned(), STATIONS_MAX);
    }

    #[test]
    fn a_table_made_from_a_view_goes_on_where_the_last_one_stopped() {
        let (mut fdb, start) = table();
        fdb.learn(sighting(0, 1, BRIDGE), start);
        fdb.learn(sighting(0, 2, OTHER), start + Duration::from_secs(50));
        let view = fdb.view();
        let now = start + Duration::from_secs(60);
        let mut again = Fdb::from_view(&view, now);
        assert_eq!(again.view().stations(), view.stations());
        again.handle_timeout(now);
        assert_eq!(again.poll_timeout(), Some(start + STATION_AGE));
        again.handle_timeout(start + STATION_AGE);
        assert_eq!(drain(&mut again), [Event::Aged(sighting(0, 1, BRIDGE))]);
    }

    #[test]
    fn limits_and_counts_hold_under_random_operations() {
        use rand::rngs::StdRng;
        use rand::{RngExt, SeedableRng};
        let seed = 16;
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut fdb, start) = table();
        let mut now = start;
        for _ in 0..50_000 {
            now += Duration::from_millis(rng.random_range(0..200));
            let seen = sighting(rng.random_range(0..3), rng.random_range(0..2_000), PeerIdx(rng.random_range(0..4)));
            match rng.random_range(0..1_000) {
                0 => fdb.forget_peer(seen.peer),
                1..100 => {
                    fdb.view().touch(seen.vlan, seen.mac, seen.peer, now);
                }
                100..150 => fdb.handle_timeout(now),
                _ => fdb.learn(seen, now),
            }
            drain(&mut fdb);
        }
        let mut counts = BTreeMap::<PeerIdx, usize>::new();
        for seen in fdb.stations.values() {
            *counts.entry(seen.peer).or_default() += 1;
        }
        assert_eq!(counts, fdb.per_peer, "seed {seed}");
        assert!(counts.values().all(|count| *count <= STATIONS_PER_PEER), "seed {seed}");
        assert_eq!(fdb.learned.len(), fdb.stations.len(), "seed {seed}");
    }

    fn table() -> (Fdb, Instant) {
        let start = Instant::now();
        let mut fdb = Fdb::new(start);
        fdb.set_members([BRIDGE, OTHER].into_iter().map(|peer| (member(peer), peer)));
        (fdb, start)
    }

    fn member(PeerIdx(number): PeerIdx) -> MacAddr {
        MacAddr([2, 0xee, 0, 0, 0, number as u8])
    }

    fn mac(number: u32) -> MacAddr {
        let [a, b, c, d] = number.to_be_bytes();
        MacAddr([0, 0x16, a, b, c, d])
    }

    fn sighting(vlan: u16, station: u32, peer: PeerIdx) -> Sighting {
        Sighting { vlan: VlanId(vlan), mac: mac(station), peer }
    }

    fn drain(fdb: &mut Fdb) -> Vec<Event> {
        std::iter::from_fn(|| fdb.poll_event()).collect()
    }
}
