//! The versioned log of a network's members: what changed since version N, in bounded pieces.
//!
//! Every change raises the version by one, and each member carries the version of its last change, so that the cost of
//! a delta is the number of changes it tells and never the number of members. Removals are kept for a while as
//! tombstones; who is behind them gets a fresh list, told as a delta from 0 with `reset`.

use std::collections::BTreeMap;

use crate::ids::PublicKey;

/// Removals remembered.
const TOMBSTONES_MAX: usize = 1024;

/// One step of a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Put(PublicKey),
    Removed(PublicKey),
}

/// A piece of the way from one version towards the newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// The version it starts from; 0 with `reset`.
    pub from: u64,
    /// The version it leads to.
    pub to: u64,
    /// What is not named on the way from 0 to the newest version is gone.
    pub reset: bool,
    pub changes: Vec<Change>,
}

/// The log. Versions of one server run are above those of earlier runs, because they start at `boots << 32`.
#[derive(Debug)]
pub struct ChangeLog {
    head: u64,
    /// Below this version nothing is known about removals.
    floor: u64,
    versions: BTreeMap<u64, Change>,
    last: BTreeMap<PublicKey, u64>,
    tombstones: usize,
}

impl ChangeLog {
    /// A log for the `boots`-th run of the server.
    pub fn new(boots: u64) -> Self {
        let floor = boots << 32;
        Self { head: floor, floor, versions: BTreeMap::new(), last: BTreeMap::new(), tombstones: 0 }
    }

    /// The newest version.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// A member came or changed.
    pub fn put(&mut self, key: PublicKey) {
        self.record(Change::Put(key), key);
    }

    /// A member went.
    pub fn remove(&mut self, key: PublicKey) {
        self.record(Change::Removed(key), key);
        self.tombstones += 1;
        if self.tombstones > TOMBSTONES_MAX {
            let oldest = self.versions.iter().find(|(_, change)| matches!(change, Change::Removed(_)));
            if let Some((&version, &Change::Removed(key))) = oldest {
                self.floor = version;
                self.versions.remove(&version);
                self.last.remove(&key);
                self.tombstones -= 1;
            }
        }
    }

    fn record(&mut self, change: Change, key: PublicKey) {
        self.head += 1;
        if let Some(old) = self.last.insert(key, self.head)
            && let Some(Change::Removed(_)) = self.versions.remove(&old)
        {
            self.tombstones -= 1;
        }
        self.versions.insert(self.head, change);
    }

    /// The piece after version `have`, of at most `max` changes; `None` if `have` is the newest.
    pub fn after(&self, have: u64, max: usize) -> Option<Delta> {
        if have == self.head {
            return None;
        }
        let reset = have < self.floor || have > self.head;
        let from = if reset { 0 } else { have };
        let mut to = self.head;
        let mut changes = Vec::new();
        for (&version, &change) in self.versions.range(from + 1..) {
            if changes.len() == max {
                break;
            }
            to = version;
            changes.push(change);
        }
        if changes.last().is_none_or(|_| self.versions.range(to + 1..).next().is_none()) {
            to = self.head;
        }
        Some(Delta { from, to, reset, changes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> PublicKey {
        PublicKey([number; 32])
    }

    #[test]
    fn a_delta_tells_only_the_last_change_of_each_member() {
        let mut log = ChangeLog::new(1);
        let start = log.head();
        log.put(key(1));
        log.put(key(2));
        log.put(key(1));
        let delta = log.after(start, 10).expect("there are changes");
        assert_eq!(delta.changes, [Change::Put(key(2)), Change::Put(key(1))]);
        assert_eq!((delta.from, delta.to, delta.reset), (start, log.head(), false));
        assert_eq!(log.after(log.head(), 10), None);
    }

    #[test]
    fn pieces_follow_each_other_without_a_gap() {
        let mut log = ChangeLog::new(1);
        let mut have = log.head();
        (0..10).for_each(|number| log.put(key(number)));
        let mut told = 0;
        while let Some(delta) = log.after(have, 3) {
            assert_eq!(delta.from, have);
            told += delta.changes.len();
            have = delta.to;
        }
        assert_eq!(told, 10);
    }

    #[test]
    fn who_comes_from_an_earlier_run_or_from_before_the_tombstones_gets_a_fresh_list() {
        let mut log = ChangeLog::new(2);
        log.put(key(1));
        for have in [0, 5, (1 << 32) + 3, 3 << 32] {
            let delta = log.after(have, 10).expect("something to tell");
            assert!(delta.reset && delta.from == 0, "from {have:#x}");
            assert_eq!(delta.changes, [Change::Put(key(1))]);
        }
        let start = log.head();
        for number in 0..=TOMBSTONES_MAX {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
            bytes[31] = 1;
            log.put(PublicKey(bytes));
            log.remove(PublicKey(bytes));
        }
        assert!(log.after(start, 10).expect("something to tell").reset);
    }
}
