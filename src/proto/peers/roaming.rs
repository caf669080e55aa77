//! A node that moves: other addresses, another way out, or asleep for so long that nobody waits any more.
//!
//! Who moves probes every path at once, and tells its peers by every way it has. A peer that is told starts over with
//! the paths to it: frames go by the relay for a round trip, and then by whichever way answers first. Without that it
//! would send into the void until it missed the answers.

use std::time::{Duration, Instant};

use rand::Rng;

use super::{Output, Peers, SIGHTINGS_MAX, is_dialable};
use crate::ids::{PeerIdx, Route};
use crate::proto::path::State;
use crate::wire::control::Control;

/// When peers are told, counted from the change: the first datagrams may leave before there is a route, and those by
/// the relay are dropped until the server knows the new address.
const TOLD_AT: [Duration; 3] = [Duration::ZERO, Duration::from_millis(250), Duration::from_secs(1)];
/// Moves of one peer that are believed at once, and then one in this time: each makes us probe what it names.
const MOVES_MAX: u32 = 4;
const MOVE_EVERY: Duration = Duration::from_secs(10);
/// Ways one notice goes to a peer at the most.
const ROUTES_MAX: usize = 6;

/// The last move of ours: what tells it from others, when it was, and how often it was told.
#[derive(Debug, Default)]
pub(super) struct Move {
    number: u32,
    told: Option<(Instant, usize)>,
}

impl Move {
    /// When to tell it again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.told.map(|(since, times)| since + TOLD_AT[times])
    }
}

/// The moves of a peer.
#[derive(Debug)]
pub(super) struct Told {
    last: Option<u32>,
    /// Moves that may be believed, and since when that is counted.
    left: u32,
    since: Instant,
}

impl Told {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: None, left: MOVES_MAX, since: now }
    }

    /// Whether this is a new one, and not one too many.
    fn admits(&mut self, number: u32, now: Instant) -> bool {
        if self.last.replace(number) == Some(number) {
            return false;
        }
        let earned = now.saturating_duration_since(self.since).as_secs() / MOVE_EVERY.as_secs();
        if earned > 0 {
            (self.left, self.since) = (MOVES_MAX.min(self.left.saturating_add(earned as u32)), now);
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

impl Peers {
    /// The machine's networks have changed: every path is probed at once. `moved`: its ways out have, so that what
    /// others know of us may be void.
    pub fn uplinks_changed(&mut self, moved: bool, now: Instant) {
        let idxs: Vec<_> = self.peers.keys().copied().collect();
        for idx in idxs {
            let Some(peer) = self.peers.get_mut(&idx).filter(|peer| peer.link.session().is_some()) else { continue };
            peer.paths.begin_rounds(now);
            peer.paths.wake(now);
            peer.probing = true;
            if moved {
                peer.tried.forget();
                // The routers on the way may take us for somebody else: frames go by the relay, too, until a reply comes.
                let before = peer.paths.active();
                for event in peer.paths.doubt(now) {
                    self.paths_changed(idx, before, Some(event), now);
                }
            }
            self.reschedule(idx);
        }
        if moved {
            self.forget_idle();
            self.own_move = Move { number: self.rng.next_u32(), told: Some((now, 0)) };
            self.run_move(now);
        }
    }

    /// Tells peers of our move, if that is due.
    pub(super) fn run_move(&mut self, now: Instant) {
        let Some((since, times)) = self.own_move.told.filter(|(since, times)| now >= *since + TOLD_AT[*times]) else {
            return;
        };
        let message = Control::Moved { number: self.own_move.number }.to_bytes();
        for peer in self.peers.values() {
            let Some(session) = peer.link.session() else { continue };
            let proven = peer.paths.iter().filter(|path| matches!(path.state, State::Valid | State::Suspect));
            for route in proven.map(|path| path.route).take(ROUTES_MAX) {
                if let Ok(datagram) = session.seal_control(&message) {
                    self.outputs.push_back(Output::Send { route, datagram });
                }
            }
        }
        self.own_move.told = (times + 1 < TOLD_AT.len()).then_some((since, times + 1));
    }

    /// A peer says that it moved, by `via`. Said again, or by another way, it is nothing new.
    pub(super) fn handle_moved(&mut self, idx: PeerIdx, number: u32, via: Route, now: Instant) {
        let dialable = self.direct && via.is_direct() && is_dialable(via.endpoint.addr, &self.overlay);
        let server = self.server;
        let Some(peer) = self.peers.get_mut(&idx) else { return };
        if !peer.moved.admits(number, now) {
            return;
        }
        let before = peer.paths.active();
        peer.paths.other_end_moved(&via, now);
        peer.tried.forget();
        if let Some(relay) = server.zip(peer.channel).map(|(server, token)| Route::relayed(server, token)) {
            peer.paths.prove(relay, now);
        }
        if dialable {
            peer.paths.add(via, now);
        }
        peer.sightings = (SIGHTINGS_MAX, now);
        self.take_candidates(idx, now);
        self.paths_changed(idx, before, None, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_never_stops_moving_is_believed_now_and_then() {
        let start = Instant::now();
        let mut told = Told::new(start);
        assert!(told.admits(7, start) && !told.admits(7, start), "said again, it is nothing new");
        let believed = (0..6000).filter(|n| told.admits(n + 8, start + Duration::from_millis(10) * *n)).count();
        assert!((5..=12).contains(&believed), "{believed} in a minute");
    }
}
