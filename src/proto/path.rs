//! The ways to one peer: which are proven, which is used, when to probe them.
//!
//! A path is a [`Route`]. Candidates become valid only by a reply to a probe with a challenge of ours, sent from that
//! very address inside the session; a relay channel counts as valid from the start, because the server checks who
//! uses it, and as suspect when the peer does not answer through it. The lowest tier wins (direct before relay), inside a tier the smaller round trip, and a change
//! needs a clear gain. Nothing here sends: the owner asks which probes are due.

use std::time::{Duration, Instant};

use rand::Rng;

use crate::ids::Route;

/// When the probes of a round go out, counted from its start.
const ROUND: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];
/// Waits between rounds that proved nothing; the last one repeats.
const ROUND_WAITS: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(10), Duration::from_secs(45), Duration::from_secs(300)];
/// How often a path in use is probed while frames pass, and while none do (below common NAT time-outs of 30 s).
const PROBE_BUSY: Duration = Duration::from_secs(1);
const PROBE_IDLE: Duration = Duration::from_secs(20);
/// How often a valid path that is not in use is probed.
const PROBE_STANDBY: Duration = Duration::from_secs(15);
/// After a probe without reply, the next ones follow each other this fast.
const PROBE_URGENT: Duration = Duration::from_millis(150);
/// Probes without reply after which a path is suspect: the first, and a burst that spans about a second with it.
const MISSED_MAX: u32 = 5;
/// A direct path replaces another one of its tier only if it is better by a tenth and this much.
const GAIN_MIN: Duration = Duration::from_millis(2);
/// Paths kept to one peer; candidates beyond are not taken up.
pub const PATHS_MAX: usize = 24;

/// How far a path is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nobody has answered from it (yet, or for a long time).
    Candidate,
    /// A reply to a challenge came.
    Valid,
    /// It was valid and does not answer: frames leave by another while it is probed on.
    Suspect,
}

/// One way to the peer.
#[derive(Debug)]
pub struct Path {
    pub route: Route,
    pub state: State,
    /// Smoothed round trip (RFC 6298 weights), once measured.
    pub srtt: Option<Duration>,
    /// When a reply last proved it.
    pub proven: Option<Instant>,
    number: u8,
    round: usize,
    step: usize,
    probe_at: Instant,
    sequence: u32,
    outstanding: Option<(u32, u64, Instant)>,
    older: Option<(u32, u64, Instant)>,
    missed: u32,
}

/// A probe to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    pub route: Route,
    pub sequence: u32,
    pub challenge: u64,
    pub path: u8,
}

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathEvent {
    Validated(Route),
    Lost(Route),
}

/// All ways to one peer.
#[derive(Debug, Default)]
pub struct Paths {
    list: Vec<Path>,
    active: Option<Route>,
    next_number: u8,
}

impl Paths {
    /// The route frames take.
    pub fn active(&self) -> Option<Route> {
        self.active
    }

    pub fn iter(&self) -> impl Iterator<Item = &Path> {
        self.list.iter()
    }

    /// The path of a route.
    pub fn get(&self, route: &Route) -> Option<&Path> {
        self.list.iter().find(|path| path.route == *route)
    }

    /// Takes up a candidate, to be probed at once. One that is known and suspect is probed anew, if it waits for its
    /// next round. `false` if there are too many.
    pub fn add(&mut self, route: Route, now: Instant) -> bool {
        if let Some(path) = self.list.iter_mut().find(|path| path.route == route) {
            if path.state == State::Suspect && path.round > 0 && path.step == 0 {
                path.begin_round(now, path.round);
            }
            return true;
        }
        if self.list.len() >= PATHS_MAX {
            let Some(worst) = self.list.iter().position(|path| path.state == State::Candidate && path.round > 0) else {
                return false;
            };
            self.list.swap_remove(worst);
        }
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        self.list.push(Path {
            route,
            state: State::Candidate,
            srtt: None,
            proven: None,
            number,
            round: 0,
            step: 0,
            probe_at: now,
            sequence: 0,
            outstanding: None,
            older: None,
            missed: 0,
        });
        true
    }

    /// Takes up a route that an authentic datagram came by and that nobody announced: one round of probes, and the next
    /// only after minutes.
    pub fn add_seen(&mut self, route: Route, now: Instant) -> bool {
        let known = self.get(&route).is_some();
        let added = self.add(route, now);
        if let Some(path) = self.list.iter_mut().find(|path| !known && path.route == route) {
            path.round = ROUND_WAITS.len() - 1;
        }
        added
    }

    /// A route that is proven by other means: a handshake completed over it, or it is a relay channel.
    pub fn prove(&mut self, route: Route, now: Instant) -> Option<PathEvent> {
        if !self.add(route, now) {
            return None;
        }
        let path = self.list.iter_mut().find(|path| path.route == route)?;
        let event = path.validate(now);
        self.choose();
        event
    }

    /// Forgets relay channels (the server is gone, or gave new ones).
    pub fn drop_relays(&mut self) {
        self.list.retain(|path| path.route.is_direct());
        if self.active.is_some_and(|route| !route.is_direct()) {
            self.active = None;
            self.choose();
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.list.clear();
        self.active = None;
    }

    /// Probes every direct path anew (a network change, an introduction).
    pub fn begin_rounds(&mut self, now: Instant) {
        for path in self.list.iter_mut().filter(|path| path.state != State::Valid) {
            path.begin_round(now, 0);
        }
    }

    /// When the next probe is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.list.iter().map(|path| path.probe_at).min()
    }

    /// The probes that are due, and what their silence means. `busy`: frames passed lately.
    pub fn handle_timeout(&mut self, now: Instant, busy: bool, rng: &mut impl Rng) -> (Vec<Probe>, Vec<PathEvent>) {
        let (mut probes, mut events) = (Vec::new(), Vec::new());
        let active = self.active;
        let stranded = busy && self.is_stranded();
        for path in self.list.iter_mut().filter(|path| now >= path.probe_at) {
            if path.outstanding.is_some() {
                path.missed += 1;
            }
            if path.state == State::Valid && path.missed >= MISSED_MAX {
                path.state = State::Suspect;
                path.begin_round(now, 0);
                events.push(PathEvent::Lost(path.route));
            }
            path.schedule(now, busy, active == Some(path.route), rng);
            if stranded && path.state == State::Suspect {
                path.probe_at = path.probe_at.min(now + PROBE_BUSY);
            }
            path.sequence += 1;
            let challenge = rng.next_u64();
            path.older = path.outstanding;
            path.outstanding = Some((path.sequence, challenge, now));
            probes.push(Probe { route: path.route, sequence: path.sequence, challenge, path: path.number });
        }
        if !events.is_empty() {
            self.choose();
        }
        (probes, events)
    }

    /// Frames pass again after a quiet time: the path in use is probed at once, and where none is valid all that were.
    pub fn wake(&mut self, now: Instant) {
        let active = self.active;
        let stranded = self.is_stranded();
        for path in &mut self.list {
            if (Some(path.route) == active || (stranded && path.state == State::Suspect))
                && path.probe_at > now + PROBE_BUSY
            {
                path.probe_at = now;
            }
        }
    }

    /// No path is valid: whichever answers first is to be used.
    fn is_stranded(&self) -> bool {
        self.list.iter().all(|path| path.state != State::Valid)
    }

    /// A reply to a probe, from the route it came by.
    pub fn handle_reply(
        &mut self,
        route: &Route,
        (sequence, challenge): (u32, u64),
        now: Instant,
    ) -> Option<PathEvent> {
        let path = self.list.iter_mut().find(|path| path.route == *route)?;
        let sent = [path.outstanding, path.older]
            .into_iter()
            .flatten()
            .find(|(number, secret, _)| (*number, *secret) == (sequence, challenge))?;
        path.measure(now.saturating_duration_since(sent.2));
        let event = path.validate(now);
        self.choose();
        event
    }

    fn choose(&mut self) {
        let usable = self.list.iter().filter(|path| path.tier().is_some());
        let best = usable.min_by_key(|path| (path.tier(), path.srtt.unwrap_or(Duration::MAX)));
        let Some(best) = best else { return };
        let current = self.active.and_then(|route| self.get(&route)).filter(|current| current.tier() == best.tier());
        let keep = current.is_some_and(|current| match (current.srtt, best.srtt) {
            (Some(old), Some(new)) => new + GAIN_MIN > old || new > old.mul_f64(0.9),
            (None, _) | (_, None) => true,
        });
        if !keep {
            self.active = Some(best.route);
        }
    }
}

impl Path {
    /// Lower is better, whatever the round trips; `None` for what must not carry frames.
    fn tier(&self) -> Option<u8> {
        match (self.route.is_direct(), self.state) {
            (true, State::Valid) => Some(0),
            (false, State::Valid) => Some(1),
            // Better than nothing.
            (true, State::Suspect) => Some(2),
            (false, State::Suspect | State::Candidate) => Some(3),
            (true, State::Candidate) => None,
        }
    }

    fn begin_round(&mut self, now: Instant, round: usize) {
        (self.round, self.step, self.probe_at) = (round, 0, now);
    }

    fn validate(&mut self, now: Instant) -> Option<PathEvent> {
        (self.missed, self.outstanding) = (0, None);
        self.proven = Some(now);
        if self.state == State::Valid {
            return None;
        }
        self.state = State::Valid;
        self.probe_at = now + PROBE_BUSY;
        Some(PathEvent::Validated(self.route))
    }

    fn measure(&mut self, rtt: Duration) {
        self.srtt = Some(self.srtt.map_or(rtt, |srtt| (srtt * 7 + rtt) / 8));
    }

    fn schedule(&mut self, now: Instant, busy: bool, active: bool, rng: &mut impl Rng) {
        let wait = match self.state {
            State::Valid if self.missed > 0 && active => PROBE_URGENT,
            State::Valid if active && busy => PROBE_BUSY,
            State::Valid if active => jitter(PROBE_IDLE, rng),
            State::Valid => jitter(PROBE_STANDBY, rng),
            State::Candidate | State::Suspect => {
                self.step += 1;
                match ROUND.get(self.step) {
                    Some(at) => *at - ROUND[self.step - 1],
                    None => {
                        let wait = ROUND_WAITS[self.round.min(ROUND_WAITS.len() - 1)];
                        (self.round, self.step) = (self.round + 1, 0);
                        jitter(wait, rng)
                    }
                }
            }
        };
        self.probe_at = now + wait;
    }
}

/// Ten percent either way, so that nodes do not march in step.
fn jitter(wait: Duration, rng: &mut impl Rng) -> Duration {
    wait.mul_f64(0.9 + 0.2 * f64::from(rng.next_u32()) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::ids::{ChannelToken, Endpoint};

    fn direct(port: u16) -> Route {
        Route::direct(Endpoint::udp(([192, 0, 2, 1], port).into()))
    }

    fn relay() -> Route {
        Route::relayed(Endpoint::udp(([192, 0, 2, 9], 43439).into()), ChannelToken(1))
    }

    fn reply(paths: &mut Paths, probe: &Probe, now: Instant) -> Option<PathEvent> {
        paths.handle_reply(&probe.route, (probe.sequence, probe.challenge), now)
    }

    #[test]
    fn frames_start_on_the_relay_and_move_to_a_direct_path_once_it_answers() {
        let (mut now, mut rng, mut paths) = (Instant::now(), StdRng::seed_from_u64(1), Paths::default());
        paths.prove(relay(), now);
        paths.add(direct(1), now);
        assert_eq!(paths.active(), Some(relay()));
        let (probes, _) = paths.handle_timeout(now, true, &mut rng);
        let probe = probes.iter().find(|probe| probe.route == direct(1)).expect("probed at once");
        let forged = Probe { challenge: probe.challenge ^ 1, ..*probe };
        assert_eq!(reply(&mut paths, &forged, now), None);
        let elsewhere = Probe { route: direct(2), ..*probe };
        assert_eq!(reply(&mut paths, &elsewhere, now), None, "from an address that was not asked");
        assert_eq!(paths.active(), Some(relay()));
        now += Duration::from_millis(9);
        assert_eq!(reply(&mut paths, probe, now), Some(PathEvent::Validated(direct(1))));
        assert_eq!(paths.active(), Some(direct(1)));
        assert_eq!(paths.get(&direct(1)).and_then(|path| path.srtt), Some(Duration::from_millis(9)));
    }

    #[test]
    fn a_direct_path_that_falls_silent_gives_way_to_the_relay_in_two_seconds_and_comes_back() {
        let (start, mut rng, mut paths) = (Instant::now(), StdRng::seed_from_u64(1), Paths::default());
        paths.prove(relay(), start);
        paths.prove(direct(1), start);
        let mut now = start;
        while paths.active() == Some(direct(1)) {
            now = paths.poll_timeout().expect("probes go on").max(now);
            let (probes, _) = paths.handle_timeout(now, true, &mut rng);
            for probe in probes.iter().filter(|probe| !probe.route.is_direct()) {
                reply(&mut paths, probe, now);
            }
        }
        assert_eq!(paths.active(), Some(relay()));
        assert!(now - start < Duration::from_millis(3000), "{:?}", now - start);
        loop {
            now = paths.poll_timeout().expect("probes go on").max(now);
            let (probes, _) = paths.handle_timeout(now, true, &mut rng);
            if let Some(probe) = probes.iter().find(|probe| probe.route == direct(1)) {
                assert_eq!(reply(&mut paths, probe, now), Some(PathEvent::Validated(direct(1))));
                break;
            }
        }
        assert_eq!(paths.active(), Some(direct(1)));
    }

    #[test]
    fn a_relay_that_never_answers_is_not_asked_many_times_a_second() {
        let (start, mut rng, mut paths) = (Instant::now(), StdRng::seed_from_u64(1), Paths::default());
        paths.prove(relay(), start);
        let (mut now, mut sent) = (start, 0);
        while now - start < Duration::from_secs(100) {
            now = paths.poll_timeout().expect("probes go on").max(now);
            sent += paths.handle_timeout(now, false, &mut rng).0.len();
        }
        assert_eq!(paths.active(), Some(relay()), "there is nothing better");
        assert!(sent < 50, "{sent} probes in 100 s");
    }

    #[test]
    fn with_the_relay_gone_a_suspect_path_is_better_than_none() {
        let (mut now, mut rng, mut paths) = (Instant::now(), StdRng::seed_from_u64(1), Paths::default());
        paths.prove(direct(1), now);
        for _ in 0..40 {
            now = paths.poll_timeout().expect("probes go on").max(now);
            paths.handle_timeout(now, true, &mut rng);
        }
        assert_eq!(paths.get(&direct(1)).map(|path| path.state), Some(State::Suspect));
        assert_eq!(paths.active(), Some(direct(1)));
    }

    #[test]
    fn candidates_that_never_answer_are_asked_ever_more_seldom_and_their_number_is_bounded() {
        let (start, mut rng, mut paths) = (Instant::now(), StdRng::seed_from_u64(1), Paths::default());
        for port in 0..100 {
            paths.add(direct(port), start);
        }
        assert_eq!(paths.iter().count(), PATHS_MAX);
        let mut now = start;
        let mut sent = 0;
        while now - start < Duration::from_secs(600) {
            now = paths.poll_timeout().expect("probes go on").max(now);
            sent += paths.handle_timeout(now, false, &mut rng).0.len();
        }
        assert!(sent / PATHS_MAX <= 7 * 6, "{sent}");
    }

    #[test]
    fn a_path_a_little_better_changes_nothing() {
        let (mut now, mut rng, mut paths) = (Instant::now(), StdRng::seed_from_u64(1), Paths::default());
        for (port, delay) in [(1, 10), (2, 9)] {
            paths.add(direct(port), now);
            let (probes, _) = paths.handle_timeout(now, false, &mut rng);
            now += Duration::from_millis(delay);
            for probe in probes.iter().filter(|probe| probe.route == direct(port)) {
                reply(&mut paths, probe, now);
            }
        }
        assert_eq!(paths.active(), Some(direct(1)));
        paths.add(direct(3), now);
        let (probes, _) = paths.handle_timeout(now, false, &mut rng);
        now += Duration::from_millis(1);
        for probe in probes.iter().filter(|probe| probe.route == direct(3)) {
            reply(&mut paths, probe, now);
        }
        assert_eq!(paths.active(), Some(direct(3)));
    }
}
