//! Paths that fall silent: in use, the server is asked; idle, perhaps a router forgot an unused mapping sooner than we
//! ask, and such paths are probed more often.
//!
//! What a router remembers can only be seen by what gets lost: a direct path that falls silent while nobody uses it,
//! twice, is taken for a mapping that expired. The price of an error is a few probes more.

use std::time::{Duration, Instant};

use super::{Backoff, LOOKUP_RETRY, Peers};
use crate::ids::{PeerIdx, Route};

/// Losses of idle paths before the next step.
const LOSSES: u32 = 2;
/// How often idle paths are probed beyond what paths do by themselves (each 20 s): below mappings of 15, 10 and 7 s.
const STEPS: [Duration; 3] = [Duration::from_secs(10), Duration::from_secs(7), Duration::from_secs(5)];
/// Frames within this time: the path was not idle, and what was lost says something else.
const USED: Duration = Duration::from_secs(5);

/// What was learned of the way to one peer.
#[derive(Debug, Default)]
pub(super) struct Idle {
    losses: u32,
    woken: Option<Instant>,
}

impl Idle {
    /// Whether it is time to probe.
    fn is_due(&mut self, now: Instant) -> bool {
        let Some(step) = (self.losses / LOSSES).checked_sub(1) else { return false };
        let wait = STEPS[(step as usize).min(STEPS.len() - 1)];
        let due = self.woken.is_none_or(|woken| now.saturating_duration_since(woken) >= wait);
        if due {
            self.woken = Some(now);
        }
        due
    }
}

impl Peers {
    /// A direct path to a peer fell silent.
    pub(super) fn path_was_lost(&mut self, idx: PeerIdx, route: Route, now: Instant) {
        let epoch = self.epoch;
        let Some(peer) = self.peers.get_mut(&idx).filter(|_| route.is_direct()) else { return };
        let used = peer.link.meter().used_ms().map(|ms| epoch.at(ms));
        if used.is_none_or(|used| now.saturating_duration_since(used) >= USED) {
            peer.idle.losses += 1;
        } else {
            // The server may know where the peer is by now; and if it is silent as well, that shows at once.
            peer.lookup.get_or_insert_with(|| (now, Backoff::new(LOOKUP_RETRY)));
        }
    }

    /// Once a second: probes the path in use, where routers forget it else.
    pub(super) fn keep_idle(&mut self, idx: PeerIdx, now: Instant) {
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        if peer.probing && peer.link.session().is_some() && peer.idle.is_due(now) {
            peer.paths.wake(now);
            self.reschedule(idx);
        }
    }

    /// Elsewhere there are other routers.
    pub(super) fn forget_idle(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.idle = Idle::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f_17_an_idle_path_that_was_lost_twice_is_probed_more_often_and_more_so_with_further_losses() {
        let start = Instant::now();
        for (losses, probes) in [(0, 0), (1, 0), (2, 6), (4, 9), (6, 12), (1000, 12)] {
            let mut idle = Idle { losses, woken: None };
            let due = (0..60).filter(|second| idle.is_due(start + Duration::from_secs(*second))).count();
            assert_eq!(due, probes, "{losses} losses");
        }
    }
}
