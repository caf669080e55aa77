//! Duplicates by content: multi_tun's filter, decision for decision.
//!
//! That protocol has no sequence number. Each packet is compared, as [`PACKET_MAX`] bytes filled up with zeroes, with the
//! last [`REMEMBERED`] distinct packets from all paths together; what is equal to one of them is dropped, everything else
//! is delivered and takes the place of the oldest. A copy does not make the original younger, and no time limits it. So two
//! packets that are meant to differ and do not, or only in zeroes at their end, are one: `--native` exists for those.
//!
//! A hash of the content finds the packet to compare with; the comparison decides. The memory is 1.5 MiB, taken once.

use std::collections::HashMap;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;

/// Bytes of a packet that count; what is longer is cut, as a datagram is by the real receiver's buffer.
pub const PACKET_MAX: usize = 1500;
/// Distinct packets a new one is compared with.
pub const REMEMBERED: usize = 1024;

/// The last distinct packets.
pub struct Duplicates {
    /// Packet `n` begins at `n * PACKET_MAX`.
    bytes: Box<[u8]>,
    slots: Vec<Slot>,
    /// Where the next packet goes once all slots are taken: the oldest.
    next: usize,
    /// The youngest packet of each hash.
    youngest: HashMap<u64, u16, RandomState>,
    hash: fn(&RandomState, &[u8]) -> u64,
    seed: RandomState,
}

#[derive(Clone, Copy)]
struct Slot {
    len: u16,
    hash: u64,
    /// The next older packet with the same hash.
    older: Option<u16>,
}

impl Duplicates {
    /// Remembers nothing yet. The hashes are seeded by the process, so that nobody outside can make many packets of one.
    pub fn new() -> Self {
        Self::with_hash(|seed, content| seed.hash_one(content))
    }

    fn with_hash(hash: fn(&RandomState, &[u8]) -> u64) -> Self {
        Self {
            bytes: vec![0; REMEMBERED * PACKET_MAX].into_boxed_slice(),
            slots: Vec::with_capacity(REMEMBERED),
            next: 0,
            youngest: HashMap::with_capacity_and_hasher(REMEMBERED, RandomState::default()),
            hash,
            seed: RandomState::default(),
        }
    }

    /// Whether a packet is new; it is remembered then. Hot: a hash and, for a copy, one comparison.
    pub fn is_new(&mut self, packet: &[u8]) -> bool {
        let content = content(packet);
        let hash = (self.hash)(&self.seed, content);
        let mut candidate = self.youngest.get(&hash).copied();
        while let Some(slot) = candidate {
            if self.content_of(slot) == content {
                return false;
            }
            candidate = self.slots[usize::from(slot)].older;
        }
        self.remember(content, hash);
        true
    }

    fn remember(&mut self, content: &[u8], hash: u64) {
        let place = if self.slots.len() < REMEMBERED {
            self.slots.push(Slot { len: 0, hash: 0, older: None });
            self.slots.len() - 1
        } else {
            let oldest = self.next;
            self.next = (self.next + 1) % REMEMBERED;
            self.forget(oldest as u16);
            oldest
        };
        self.bytes[place * PACKET_MAX..][..content.len()].copy_from_slice(content);
        let older = self.youngest.insert(hash, place as u16);
        self.slots[place] = Slot { len: content.len() as u16, hash, older };
    }

    /// Takes the oldest packet out of the list of its hash, which it ends.
    fn forget(&mut self, oldest: u16) {
        let hash = self.slots[usize::from(oldest)].hash;
        let Some(mut at) = self.youngest.get(&hash).copied() else { return };
        if at == oldest {
            self.youngest.remove(&hash);
            return;
        }
        while let Some(older) = self.slots[usize::from(at)].older {
            if older == oldest {
                self.slots[usize::from(at)].older = None;
                return;
            }
            at = older;
        }
    }

    fn content_of(&self, slot: u16) -> &[u8] {
        let slot = usize::from(slot);
        &self.bytes[slot * PACKET_MAX..][..usize::from(self.slots[slot].len)]
    }
}

impl Default for Duplicates {
    fn default() -> Self {
        Self::new()
    }
}

/// What tells packets apart: the first [`PACKET_MAX`] bytes without the zeroes at their end.
fn content(packet: &[u8]) -> &[u8] {
    let packet = &packet[..packet.len().min(PACKET_MAX)];
    let end = packet.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &packet[..end]
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// The rule as it is written down, at its own cost.
    #[derive(Default)]
    struct Literal(VecDeque<[u8; PACKET_MAX]>);

    impl Literal {
        fn is_new(&mut self, packet: &[u8]) -> bool {
            let mut filled = [0; PACKET_MAX];
            let length = packet.len().min(PACKET_MAX);
            filled[..length].copy_from_slice(&packet[..length]);
            if self.0.contains(&filled) {
                return false;
            }
            if self.0.len() == REMEMBERED {
                self.0.pop_front();
            }
            self.0.push_back(filled);
            true
        }
    }

    fn packet(number: u32) -> Vec<u8> {
        [&[0x45, 0, 0, 36][..], &number.to_be_bytes(), &[7; 28]].concat()
    }

    #[test]
    fn a_copy_is_told_with_1023_others_between_and_not_with_1024() {
        for (between, told) in [(0, true), (1, true), (100, true), (1022, true), (1023, true), (1024, false)] {
            let mut filter = Duplicates::new();
            assert!(filter.is_new(&packet(0)));
            for number in 1..=between {
                assert!(filter.is_new(&packet(number)));
            }
            assert_eq!(!filter.is_new(&packet(0)), told, "{between} between");
        }
    }

    #[test]
    fn a_copy_does_not_make_the_original_younger() {
        let mut filter = Duplicates::new();
        assert!(filter.is_new(&packet(0)));
        for number in 1..=1023 {
            assert!(filter.is_new(&packet(number)));
            assert!(!filter.is_new(&packet(0)), "a copy after {number}");
        }
        assert!(filter.is_new(&packet(1024)));
        assert!(filter.is_new(&packet(0)), "the original is gone, whatever copies came");
    }

    #[test]
    fn zeroes_at_the_end_do_not_count_and_neither_does_what_is_beyond_1500() {
        let mut filter = Duplicates::new();
        let long = [&[0x45; PACKET_MAX][..], &[1]].concat();
        assert!(filter.is_new(&[0x45, 1]));
        assert!(!filter.is_new(&[0x45, 1, 0, 0]));
        assert!(filter.is_new(&long));
        assert!(!filter.is_new(&long[..PACKET_MAX]));
        assert!(filter.is_new(&[0]));
        assert!(!filter.is_new(&[0; 1500]));
    }

    /// Four hashes for all packets, so that nearly every one has to be compared with many.
    fn poor(_: &RandomState, content: &[u8]) -> u64 {
        u64::from(content.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) % 4)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn its_decisions_are_those_of_the_rule(
            steps in proptest::collection::vec((0_u32..1400, 0_usize..3), 3000..5000),
            collides: bool,
        ) {
            let mut filter = if collides { Duplicates::with_hash(poor) } else { Duplicates::new() };
            let mut literal = Literal::default();
            for (number, zeroes) in steps {
                let mut packet = packet(number);
                packet.resize(packet.len() + zeroes, 0);
                prop_assert_eq!(filter.is_new(&packet), literal.is_new(&packet));
                prop_assert!(filter.slots.len() <= REMEMBERED && filter.youngest.len() <= REMEMBERED);
            }
        }
    }
}
