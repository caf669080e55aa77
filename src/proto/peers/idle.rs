//! Routers that forget an unused mapping sooner than we ask: idle paths to a peer are then probed more often.
//!
//! What a router remembers can only be seen by what gets lost: a direct path that falls silent while nobody uses it,
//! twice, is taken for a mapping that expired. The price of an error is a few probes more.

use std::time::{Duration, Instant};

use super::Peers;
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
    /// A path to a peer fell silent.
    pub(super) fn path_was_lost(&mut self, idx: PeerIdx, route: Route, now: Instant) {
        let epoch = self.epoch;
        let Some(peer) = self.peers.get_mut(&idx).filter(|_| route.is_direct()) else { return };
        let used = peer.link.meter().used_ms().map(|ms| epoch.at(ms));
        if used.is_none_or(|used| now.saturating_duration_since(used) >= USED) {
            peer.idle.losses += 1;
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
