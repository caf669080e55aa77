//! The ways to one peer: which are proven, which is used, when to probe them.
//!
//! A path is a [`Route`]: one of our sockets and the peer's address, or a relay channel. Its life: a candidate is
//! probed in rounds; a reply to a challenge of ours, sent from that very address inside the session, makes it valid;
//! silence makes a valid one suspect within about 1.5 s, and dead 5 s later; the dead are asked ever more seldom, and
//! forgotten where nobody announces them. A relay channel counts as valid from the start, because the server checks
//! who uses it.
//!
//! What came by a path is as good as a reply, so loss does not kill it: only when we send and hear nothing, a burst of
//! probes asks, and any answer ends it. While the path in use is suspect, frames go by it and by the next best.
//!
//! The lowest tier wins (direct, relay by UDP, relay by TCP), inside a tier the lowest [cost](Path::cost), and a
//! change needs a clear and lasting gain. Nothing here sends: the owner asks which probes are due.

mod life;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rand::Rng;

use self::life::{Asked, DEAD_BUSY, DEAD_FIRST, PROBE_BUSY, ROUND_WAITS, Turn};
pub use self::life::{Path, State};
use super::estimate::Counts;
use super::multipath::{COPIES_MAX, Mode, Plan, Rule, SPREAD_MAX, Spread, Way};
use super::session::Epoch;
use crate::ids::{Route, UplinkId};

/// Probes of the other end that follow each other so fast are a burst: it hears nothing of what we send.
const URGENT: Duration = Duration::from_millis(250);
/// They make us ask back no oftener than this.
const URGE_EVERY: Duration = Duration::from_secs(1);
/// A dead path that nobody announces is forgotten after this.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// A path replaces another one of its tier only if it is better by a tenth, by twice what either varies (one answer that
/// a busy machine held up would else look like a worse path for several probes), and by this much, in microseconds,
const GAIN_MIN_US: i64 = 2_000;
/// in so many probes in a row,
const GAIN_PROBES: u8 = 3;
/// and so long after the last such change.
const SWITCH_INTERVAL: Duration = Duration::from_secs(10);
/// Further paths of a plan are told apart by so much cost, in microseconds.
const COST_STEP_US: i64 = 5_000;
/// Paths kept to one peer; candidates beyond are not taken up.
pub const PATHS_MAX: usize = 48;

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
    /// It fell silent; perhaps it comes back in a moment.
    Suspected(Route),
    /// It is given up, until it answers.
    Lost(Route),
}

impl PathEvent {
    fn suspected(&self) -> Option<Route> {
        match self {
            Self::Suspected(route) => Some(*route),
            Self::Validated(_) | Self::Lost(_) => None,
        }
    }
}

/// All ways to one peer.
#[derive(Debug)]
pub struct Paths {
    list: Vec<Path>,
    active: Option<Route>,
    /// Was in use when it became suspect: frames go by it, too.
    doubted: Option<Route>,
    mode: Mode,
    /// Sockets that the configuration wants paths to use; the others are for where these lead nowhere.
    uplinks: Vec<UplinkId>,
    /// Made when it is first needed: most peers have one way.
    spread: OnceLock<Arc<Spread>>,
    switched_at: Option<Instant>,
    next_number: u8,
    epoch: Epoch,
}

impl Paths {
    pub fn new(epoch: Epoch, mode: Mode) -> Self {
        Self {
            list: Vec::new(),
            active: None,
            doubted: None,
            mode,
            uplinks: Vec::new(),
            spread: OnceLock::new(),
            switched_at: None,
            next_number: 0,
            epoch,
        }
    }

    /// The route frames take, the first where they take several.
    pub fn active(&self) -> Option<Route> {
        self.active
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    pub fn iter(&self) -> impl Iterator<Item = &Path> {
        self.list.iter()
    }

    /// The path of a route.
    pub fn get(&self, route: &Route) -> Option<&Path> {
        self.list.iter().find(|path| path.route == *route)
    }

    /// Takes up a candidate, to be probed at once. One that is known and silent is probed anew, if it waits for its
    /// next round. `false` if there are too many.
    pub fn add(&mut self, route: Route, now: Instant) -> bool {
        self.take_up(route, true, now)
    }

    fn take_up(&mut self, route: Route, announced: bool, now: Instant) -> bool {
        if let Some(path) = self.list.iter_mut().find(|path| path.route == route) {
            path.announced |= announced;
            match path.state {
                State::Dead if path.probe_at > now + DEAD_FIRST => path.probe_at = now,
                State::Candidate | State::Probing | State::Valid | State::Suspect | State::Dead => {}
            }
            return true;
        }
        if self.list.len() >= PATHS_MAX {
            let useless = |path: &Path| {
                (path.state == State::Candidate && path.round > 0 || path.state == State::Dead)
                    && path.route.is_direct()
                    && self.active != Some(path.route)
            };
            let Some(worst) = self.list.iter().position(useless) else { return false };
            self.list.swap_remove(worst);
        }
        while self.list.iter().any(|path| path.number == self.next_number) {
            self.next_number = self.next_number.wrapping_add(1);
        }
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        self.list.push(Path::new(route, number, announced, now));
        true
    }

    /// Takes up a route that an authentic datagram came by and that nobody announced: one round of probes, and the next
    /// only after minutes.
    pub fn add_seen(&mut self, route: Route, now: Instant) -> bool {
        let known = self.get(&route).is_some();
        let added = self.take_up(route, false, now);
        if let Some(path) = self.list.iter_mut().find(|path| !known && path.route == route) {
            path.round = ROUND_WAITS.len() - 1;
        }
        added
    }

    /// Which of the paths the other end still says are its own; dead ones that it does not are forgotten.
    pub fn set_announced(&mut self, is: impl Fn(&Route) -> bool) {
        for path in &mut self.list {
            path.announced = is(&path.route);
        }
    }

    /// A route that is proven by other means: a handshake completed over it, or it is a relay channel.
    pub fn prove(&mut self, route: Route, now: Instant) -> Option<PathEvent> {
        if !self.take_up(route, false, now) {
            return None;
        }
        let epoch = self.epoch;
        let path = self.list.iter_mut().find(|path| path.route == route)?;
        let event = path.validate(now, epoch);
        self.choose(now);
        event
    }

    /// Forgets relay channels (the server is gone, or gave new ones).
    pub fn drop_relays(&mut self, now: Instant) {
        self.forget(|path| !path.route.is_direct(), now);
    }

    /// A socket is gone: its paths are, at once.
    pub fn drop_uplink(&mut self, uplink: UplinkId, now: Instant) {
        self.forget(|path| path.route.endpoint.uplink == uplink, now);
    }

    /// The sockets of the configuration, where it names any.
    pub fn set_uplinks(&mut self, uplinks: Vec<UplinkId>, now: Instant) {
        self.uplinks = uplinks;
        self.choose(now);
    }

    fn forget(&mut self, which: impl Fn(&Path) -> bool, now: Instant) {
        self.list.retain(|path| !which(path));
        let known = |route: &Route| self.get(route).is_some();
        (self.active, self.doubted) = (self.active.filter(known), self.doubted.filter(known));
        self.choose(now);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.list.clear();
        (self.active, self.doubted) = (None, None);
    }

    /// The other end has moved, and says so by this route: it stays if it is proven, the others are void.
    pub fn other_end_moved(&mut self, via: &Route, now: Instant) {
        self.forget(|path| path.route != *via || path.state != State::Valid, now);
    }

    /// Probes every path anew that is not valid (a network change, an introduction).
    pub fn begin_rounds(&mut self, now: Instant) {
        for path in &mut self.list {
            match path.state {
                State::Candidate | State::Probing => path.begin_round(now, 0),
                State::Suspect | State::Dead => (path.probe_at, path.dead_wait) = (now, DEAD_FIRST),
                State::Valid => {}
            }
        }
    }

    /// Our ways out have changed, and what was proven may be no more: every direct path is suspect until it answers.
    pub fn doubt(&mut self, now: Instant) -> Vec<PathEvent> {
        let mut events = Vec::new();
        for path in self.list.iter_mut().filter(|path| path.route.is_direct() && path.state == State::Valid) {
            path.suspect(now);
            if self.active == Some(path.route) {
                self.doubted = Some(path.route);
            }
            events.push(PathEvent::Suspected(path.route));
        }
        self.choose(now);
        events
    }

    /// A path fell silent: those that differ from it by the other end's port alone must prove that they did not, before
    /// frames go from one dead path to the next.
    fn doubt_siblings(&mut self, silent: &Route, now: Instant) -> Vec<PathEvent> {
        let epoch = self.epoch;
        let Some(asked) = self.get(silent).map(|path| now - path.patience()) else { return Vec::new() };
        let mut events = Vec::new();
        for path in self.list.iter_mut().filter(|path| path.route != *silent && path.state == State::Valid) {
            let sibling = path.route.is_direct()
                && path.route.endpoint.uplink == silent.endpoint.uplink
                && path.route.endpoint.addr.ip() == silent.endpoint.addr.ip();
            if sibling && path.meter.heard_ms().is_none_or(|ms| epoch.at(ms) < asked) {
                path.suspect(now);
                events.push(PathEvent::Suspected(path.route));
            }
        }
        events
    }

    /// When there is something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.list.iter().map(|path| path.probe_at).min()
    }

    /// The probes that are due, and what silence means. `busy`: frames passed lately.
    pub fn handle_timeout(&mut self, now: Instant, busy: bool, rng: &mut impl Rng) -> (Vec<Probe>, Vec<PathEvent>) {
        let (mut probes, mut events) = (Vec::new(), Vec::new());
        let stranded = busy && self.is_stranded();
        let carrying = self.carrying();
        let active = self.active;
        let before = self.list.len();
        self.list.retain(|path| {
            let silent = now.saturating_duration_since(path.silent_since);
            let old = match path.state {
                State::Dead => silent >= FORGET_AFTER,
                // Seen again, it would have a round of probes again.
                State::Candidate => silent >= ROUND_WAITS[ROUND_WAITS.len() - 1],
                State::Probing | State::Valid | State::Suspect => false,
            };
            !(old && !path.announced && path.route.is_direct() && active != Some(path.route))
        });
        let forgotten = self.list.len() < before;
        for path in self.list.iter_mut().filter(|path| now >= path.probe_at) {
            let turn = Turn { now, busy, carries: carrying.contains(&path.route), stranded, epoch: self.epoch };
            let (asks, event) = path.turn(&turn, rng);
            events.extend(event);
            if asks {
                probes.push(path.ask(now, rng));
            }
        }
        let silent: Vec<Route> = events.iter().filter_map(PathEvent::suspected).collect();
        events.extend(silent.iter().flat_map(|route| self.doubt_siblings(route, now)));
        if forgotten || !events.is_empty() {
            for event in &events {
                if let Some(route) = event.suspected().filter(|route| active == Some(*route)) {
                    self.doubted = Some(route);
                }
            }
            self.choose(now);
        }
        (probes, events)
    }

    /// Frames pass again after a quiet time: what carries them is measured at once, and where none is valid all that
    /// were are asked.
    pub fn wake(&mut self, now: Instant) {
        let stranded = self.is_stranded();
        let carrying = self.carrying();
        for path in &mut self.list {
            match path.state {
                State::Valid if carrying.contains(&path.route) && path.measure_at > now + PROBE_BUSY => {
                    (path.measure_at, path.probe_at) = (now, now);
                }
                State::Suspect | State::Dead if stranded && path.probe_at > now + DEAD_FIRST => path.probe_at = now,
                State::Dead => path.probe_at = path.probe_at.min(now + DEAD_BUSY),
                State::Candidate | State::Probing | State::Valid | State::Suspect => {}
            }
        }
    }

    /// No path is valid: whichever answers first is to be used.
    fn is_stranded(&self) -> bool {
        self.list.iter().all(|path| path.state != State::Valid)
    }

    /// Nobody answers by any way: frames that leave now most likely arrive nowhere.
    pub fn is_lost(&self) -> bool {
        !self.list.iter().any(|path| matches!(path.state, State::Valid | State::Suspect))
    }

    /// Frames may come by several paths of about one kind.
    pub fn has_several(&self) -> bool {
        self.list.iter().filter(|path| path.route.is_direct() && path.state == State::Valid).count() > 1
    }

    /// Something authentic came by a route.
    pub fn heard(&self, route: &Route, bytes: u64, now: Instant) {
        if let Some(path) = self.get(route) {
            path.meter.came(1, bytes);
            path.meter.heard(self.epoch.ms(now));
        }
    }

    /// The other end asks by a route. Where it does so urgently while frames go there, ours perhaps get lost, although
    /// everything comes that it sends.
    pub fn probed(&mut self, route: &Route, now: Instant) {
        let carries = self.carrying().contains(route);
        let Some(path) = self.list.iter_mut().find(|path| path.route == *route) else { return };
        let before = path.probed.replace(now);
        let urgent = before.is_some_and(|before| now.saturating_duration_since(before) <= URGENT);
        // Seldom, for our question is one to the other end, too, and must not make it ask again.
        let due = path.urged_at.is_none_or(|at| now.saturating_duration_since(at) >= URGE_EVERY);
        if urgent && due && carries && path.state == State::Valid && path.burst.is_none_or(|burst| !burst.deaf) {
            (path.urged, path.urged_at, path.probe_at) = (true, Some(now), now);
        }
    }

    /// A datagram other than a probe leaves by a route.
    pub fn said(&self, route: &Route, bytes: u64) {
        if let Some(path) = self.get(route) {
            path.meter.sent(1, bytes);
        }
    }

    /// A reply to a probe, from the route it came by.
    pub fn handle_reply(
        &mut self,
        route: &Route,
        (sequence, challenge): (u32, u64),
        now: Instant,
    ) -> Option<PathEvent> {
        let (epoch, active) = (self.epoch, self.active);
        let path = self.list.iter_mut().find(|path| path.route == *route)?;
        let answered = |asked: &&Asked| (asked.sequence, asked.challenge) == (sequence, challenge);
        let asked = *path.asked.iter().find(answered)?;
        path.answered = Some(asked);
        path.estimate.round_trip(now.saturating_duration_since(asked.at));
        let event = path.validate(now, epoch);
        if active.is_some_and(|active| active != *route) {
            self.compare(route);
        }
        self.choose(now);
        event
    }

    /// What the other end had counted when it answered the probe `sequence`, in the same datagram as the answer.
    pub fn handle_report(&mut self, route: &Route, sequence: u32, (came, came_bytes): (u64, u64), now: Instant) {
        let Some(path) = self.list.iter_mut().find(|path| path.route == *route) else { return };
        if let Some(asked) = path.answered.take_if(|asked| asked.sequence == sequence) {
            path.estimate.counted(Counts { sent: asked.sent, came, came_bytes, at: now });
        }
    }

    /// Notes whether a path that was just measured is clearly better than the one in use.
    fn compare(&mut self, route: &Route) {
        let noise = |path: &Path| path.estimate.jitter().map_or(0, |jitter| 2 * jitter.as_micros() as i64);
        let facts = |path: &Path| (path.tier(), path.cost(), noise(path));
        let current = self.active.and_then(|active| self.get(&active)).map(facts);
        let Some(path) = self.list.iter_mut().find(|path| path.route == *route) else { return };
        let (new, noise) = (path.cost(), noise(path));
        let gains = current.is_some_and(|(tier, old, old_noise)| {
            let least = GAIN_MIN_US.max(noise).max(old_noise);
            tier == path.tier() && new <= old.saturating_sub(least) && (old <= 0 || new < old / 10 * 9)
        });
        path.better = if gains { path.better.saturating_add(1) } else { 0 };
    }

    fn choose(&mut self, now: Instant) {
        let rank = |path: &&Path| (path.tier(), self.is_unwanted(path), path.cost());
        let best = self.list.iter().filter(|path| path.tier().is_some()).min_by_key(rank);
        let Some(best) = best else {
            self.active = None;
            return;
        };
        let current = self.active.and_then(|route| self.get(&route));
        let level = |path: &Path| (path.tier(), self.is_unwanted(path));
        let next = match current.filter(|current| level(current) == level(best)) {
            None => Some(best.route),
            Some(_) => {
                let due = self.switched_at.is_none_or(|at| now.saturating_duration_since(at) >= SWITCH_INTERVAL);
                let contender = self.list.iter().filter(|path| path.better >= GAIN_PROBES).min_by_key(rank);
                contender.filter(|path| due && level(path) == level(best)).map(|path| path.route)
            }
        };
        if let Some(route) = next.filter(|route| self.active != Some(*route)) {
            if current.is_some_and(|current| current.tier() == best.tier()) {
                self.switched_at = Some(now);
            }
            self.active = Some(route);
            self.list.iter_mut().for_each(|path| path.better = 0);
            // What stood by was last asked perhaps 20 s ago; it is the next thing that is claimed to work.
            let due = |path: &&mut Path| path.route == route && path.state == State::Valid;
            if let Some(path) = self.list.iter_mut().find(due).filter(|path| path.measure_at > now + PROBE_BUSY) {
                (path.measure_at, path.probe_at) = (now, now);
            }
        }
        let suspect = |route: &Route| self.get(route).is_some_and(|path| path.state == State::Suspect);
        self.doubted = self.doubted.filter(suspect).filter(|route| self.active != Some(*route));
    }

    /// A direct path by a socket that the configuration does not name, where it names some.
    fn is_unwanted(&self, path: &Path) -> bool {
        path.route.is_direct() && !self.uplinks.is_empty() && !self.uplinks.contains(&path.route.endpoint.uplink)
    }

    /// The routes that frames take.
    pub fn carrying(&self) -> Vec<Route> {
        match self.plan() {
            Some(plan) => plan.ways.iter().map(|way| way.route).collect(),
            None => self.active.into_iter().collect(),
        }
    }

    /// What is done beside sending everything by the active path; `None` in the ordinary case.
    pub fn plan(&self) -> Option<Plan> {
        let active = self.active.and_then(|route| self.get(&route))?;
        let (rule, chosen) = match (self.mode, self.doubted.and_then(|route| self.get(&route))) {
            (Mode::Best | Mode::RedundantSmall, Some(doubted)) => (Rule::Copy, vec![active, doubted]),
            (Mode::Best, None) => return None,
            (Mode::RedundantSmall, None) => (Rule::CopySmall, self.apart(active, 2, false)),
            (Mode::Redundant, _) => (Rule::Copy, self.redundant(active)),
            (Mode::Bonded, _) => (Rule::Spread, self.apart(active, SPREAD_MAX, false)),
        };
        // Flows that are spread are followed while there is one way, too: they stay on it when there are more again.
        let is_sure = active.state == State::Valid || self.mode == Mode::Redundant;
        if !is_sure || chosen.len() < 2 && rule != Rule::Spread {
            return None;
        }
        let weights = weights(&chosen);
        let ways = chosen.into_iter().zip(weights).map(|(path, weight)| Way {
            route: path.route,
            meter: path.meter.clone(),
            number: path.number,
            weight: if rule == Rule::Spread { weight } else { 1 },
        });
        Some(Plan { rule, ways: ways.collect(), spread: self.spread.get_or_init(Arc::default).clone() })
    }

    /// Every frame goes by these: proven ones, and in the place of a copy that is missing those that were proven until a
    /// moment ago, of which one may still lead there.
    fn redundant<'p>(&'p self, active: &'p Path) -> Vec<&'p Path> {
        let mut chosen = self.apart(active, COPIES_MAX, true);
        let doubted =
            |path: &&Path| path.state == State::Suspect && path.route.is_direct() && path.route != active.route;
        let mut suspects: Vec<&Path> = self.list.iter().filter(doubted).collect();
        // The one that carried frames first, then by another socket: one of them may be dead.
        suspects.sort_by_key(|path| (self.doubted != Some(path.route), path.number));
        for path in suspects {
            let socket = |path: &Path| (path.route.is_direct(), path.route.endpoint.uplink);
            if chosen.len() <= COPIES_MAX && chosen.iter().all(|other| socket(path) != socket(other)) {
                chosen.push(path);
            }
        }
        chosen
    }

    /// Valid paths that have as little in common as there is, the active one first: each by another socket and to
    /// another address, then by another socket or to another address than any before. `others`: of any tier.
    fn apart<'p>(&'p self, active: &'p Path, most: usize, others: bool) -> Vec<&'p Path> {
        let fits = |path: &&Path| {
            path.state == State::Valid
                && (others || path.tier() == active.tier())
                && self.is_unwanted(path) == self.is_unwanted(active)
        };
        let mut rest: Vec<&Path> = self.list.iter().filter(fits).filter(|path| path.route != active.route).collect();
        // Roughly by cost: a plan that changes with each round trip would be published with each.
        rest.sort_by_key(|path| (path.tier(), path.cost().div_euclid(COST_STEP_US), path.number));
        let uplink = |path: &Path| path.route.endpoint.uplink;
        let address = |path: &Path| (path.route.relay, path.route.endpoint.addr.ip());
        let mut chosen = vec![active];
        for path in &rest {
            if chosen.iter().all(|other| uplink(path) != uplink(other) && address(path) != address(other)) {
                chosen.push(path);
            }
        }
        // Where one end has one way only, its copies share that.
        for path in &rest {
            let new_uplink = chosen.iter().all(|other| uplink(path) != uplink(other));
            let new_address = chosen.iter().all(|other| address(path) != address(other));
            if new_uplink || new_address {
                chosen.push(path);
            }
        }
        chosen.truncate(most);
        chosen
    }
}

/// What each path can carry, the best 255: one that loses, what came through; one that does not, as much as any.
fn weights(paths: &[&Path]) -> Vec<u8> {
    const FULL: f64 = 0.01;
    let rate = |path: &Path| path.estimate.rate().filter(|rate| *rate > 0.0);
    let most = paths.iter().filter_map(|path| rate(path)).fold(1.0, f64::max);
    let weight = |path: &&Path| match (rate(path), path.estimate.loss()) {
        // Sixteenths: a plan that changes is published anew.
        (Some(rate), Some(loss)) if loss >= FULL => ((rate / most * 16.0).ceil() * 16.0 - 1.0).clamp(15.0, 255.0) as u8,
        _ => 255,
    };
    paths.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::life::SILENCE_MIN;
    use super::*;
    use crate::ids::{ChannelToken, Endpoint};

    fn direct(port: u16) -> Route {
        Route::direct(Endpoint::udp(([192, 0, 2, 1], port).into()))
    }

    fn relay() -> Route {
        Route::relayed(Endpoint::udp(([192, 0, 2, 9], 43439).into()), ChannelToken(1))
    }

    fn setting() -> (Instant, StdRng, Paths) {
        // Not at the epoch itself: a mark of 0 ms stands for "never" nowhere, but time does not begin here either.
        let now = Instant::now() + Duration::from_secs(100);
        (now, StdRng::seed_from_u64(1), Paths::new(Epoch(now - Duration::from_secs(50)), Mode::Best))
    }

    fn reply(paths: &mut Paths, probe: &Probe, now: Instant) -> Option<PathEvent> {
        paths.handle_reply(&probe.route, (probe.sequence, probe.challenge), now)
    }

    #[test]
    fn frames_start_on_the_relay_and_move_to_a_direct_path_once_it_answers() {
        let (mut now, mut rng, mut paths) = setting();
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
        assert_eq!(paths.get(&direct(1)).and_then(Path::srtt), Some(Duration::from_millis(9)));
    }

    /// A world that answers probes after each route's delay, loses some, and passes frames both ways each 10 ms.
    struct World {
        now: Instant,
        rng: StdRng,
        paths: Paths,
        /// Round trips by route; none for a route that answers nothing.
        delays: Vec<(Route, Option<Duration>)>,
        /// Of probes and of replies.
        loss: f64,
        /// How long machines hold a reply up on average, in milliseconds; exponential.
        held: f64,
        /// Frames we send, frames that come.
        flows: (bool, bool),
        on_the_way: Vec<(Instant, Probe)>,
        events: Vec<(Instant, PathEvent)>,
        actives: Vec<(Instant, Option<Route>)>,
    }

    impl World {
        fn new(delays: &[(Route, u64)]) -> Self {
            let (now, rng, paths) = setting();
            let delays = delays.iter().map(|(route, ms)| (*route, Some(Duration::from_millis(*ms)))).collect();
            let (on_the_way, events, actives) = Default::default();
            Self { now, rng, paths, delays, loss: 0.0, held: 0.0, flows: (true, true), on_the_way, events, actives }
        }

        fn answer(&mut self, route: Route, delay: Option<u64>) {
            self.delays.retain(|(known, _)| *known != route);
            self.delays.push((route, delay.map(Duration::from_millis)));
        }

        fn lost(&mut self) -> bool {
            rand::RngExt::random_bool(&mut self.rng, self.loss)
        }

        fn run(&mut self, time: Duration) {
            let (end, mut mark) = (self.now + time, self.now);
            while self.now < end {
                let busy = self.flows != (false, false);
                if self.now >= mark {
                    mark += Duration::from_secs(1);
                    if busy {
                        self.paths.wake(self.now);
                    }
                }
                let (come, waiting) =
                    std::mem::take(&mut self.on_the_way).into_iter().partition(|(at, _)| *at <= self.now);
                self.on_the_way = waiting;
                for (_, probe) in come {
                    let event = reply(&mut self.paths, &probe, self.now);
                    self.events.extend(event.map(|event| (self.now, event)));
                }
                if self.paths.poll_timeout().is_some_and(|at| at <= self.now) {
                    let (probes, events) = self.paths.handle_timeout(self.now, busy, &mut self.rng);
                    self.events.extend(events.into_iter().map(|event| (self.now, event)));
                    for probe in probes {
                        let delay = self.delays.iter().find(|(route, _)| *route == probe.route).and_then(|(_, d)| *d);
                        if let Some(delay) = delay
                            && !self.lost()
                            && !self.lost()
                        {
                            let held =
                                -self.held * rand::RngExt::random_range(&mut self.rng, f64::MIN_POSITIVE..1.0).ln();
                            self.on_the_way.push((self.now + delay + Duration::from_secs_f64(held / 1e3), probe));
                        }
                    }
                }
                for route in self.paths.carrying() {
                    let alive = self.delays.iter().any(|(known, delay)| *known == route && delay.is_some());
                    if self.flows.0 {
                        self.paths.said(&route, 1000);
                    }
                    if self.flows.1 && alive && !self.lost() {
                        self.paths.heard(&route, 1000, self.now);
                    }
                }
                if self.actives.last().is_none_or(|(_, active)| *active != self.paths.active()) {
                    self.actives.push((self.now, self.paths.active()));
                }
                self.now += Duration::from_millis(10);
            }
        }

        fn state(&self, route: Route) -> State {
            self.paths.get(&route).expect("a path").state
        }

        fn count(&self, is: impl Fn(&PathEvent) -> bool) -> usize {
            self.events.iter().filter(|(_, event)| is(event)).count()
        }
    }

    /// Two ways that are proven, the first of them direct and in use.
    fn two(first: u64, second: (Route, u64)) -> World {
        let mut world = World::new(&[(direct(1), first), second]);
        world.paths.add(direct(1), world.now);
        world.run(Duration::from_secs(1));
        if second.0.is_direct() {
            world.paths.add(second.0, world.now);
        } else {
            world.paths.prove(second.0, world.now);
        }
        world.run(Duration::from_secs(5));
        assert_eq!(world.paths.active(), Some(direct(1)));
        world
    }

    #[test]
    fn f_08_a_path_that_falls_silent_is_doubted_in_two_seconds_dead_in_seven_and_back_within_ten() {
        for flows in [(true, true), (true, false)] {
            let mut world = two(20, (relay(), 40));
            world.flows = flows;
            world.run(Duration::from_secs(3));
            let cut = world.now;
            world.answer(direct(1), None);
            while world.paths.active() == Some(direct(1)) {
                world.run(Duration::from_millis(10));
            }
            let gap = world.now - cut;
            println!("F-08: by the relay, too, after {gap:?} (flows {flows:?})");
            assert!(gap <= Duration::from_millis(2000), "{gap:?}");
            let plan = world.paths.plan().expect("both are used");
            assert_eq!(plan.ways.iter().map(|way| way.route).collect::<Vec<_>>(), [relay(), direct(1)]);
            assert_eq!((plan.rule, world.state(direct(1))), (Rule::Copy, State::Suspect));
            world.run(Duration::from_secs(6));
            assert_eq!((world.state(direct(1)), world.paths.plan()), (State::Dead, None));
            assert_eq!(world.count(|event| *event == PathEvent::Lost(direct(1))), 1);
            world.run(Duration::from_secs(40));
            let mended = world.now;
            world.answer(direct(1), Some(20));
            while world.paths.active() != Some(direct(1)) {
                world.run(Duration::from_millis(10));
            }
            println!("F-08: direct again {:?} after the repair", world.now - mended);
            assert!(world.now - mended <= Duration::from_secs(10));
        }
    }

    #[test]
    fn m_05_flows_are_not_moved_to_another_port_behind_the_same_cut() {
        for quiet in 0..20 {
            let elsewhere = Route::direct(Endpoint::udp(([198, 51, 100, 1], 1).into()));
            let mut world = two(20, (direct(2), 20));
            world.answer(elsewhere, Some(30));
            world.paths.add(elsewhere, world.now);
            world.paths.set_mode(Mode::Bonded);
            world.flows = (true, false);
            world.run(Duration::from_secs(5) + Duration::from_millis(200) * quiet);
            let cut = world.now;
            world.answer(direct(1), None);
            world.answer(direct(2), None);
            let dead = |paths: &Paths| {
                paths.active() != Some(elsewhere)
                    || paths.plan().is_some_and(|plan| plan.ways.iter().any(|way| way.route != elsewhere))
            };
            while dead(&world.paths) {
                world.run(Duration::from_millis(10));
            }
            assert!(world.now - cut <= Duration::from_millis(2000), "{:?}", world.now - cut);
        }
    }

    #[test]
    fn f_09_a_path_that_is_deaf_is_doubted_although_something_comes_by_it() {
        for asks_us in [true, false] {
            let mut world = two(20, (relay(), 40));
            let cut = world.now;
            // Our probes do not get there; its frames come all the same, and its questions once it misses ours.
            world.answer(direct(1), None);
            while world.paths.active() == Some(direct(1)) {
                world.paths.heard(&direct(1), 1000, world.now);
                let since = world.now - cut;
                if asks_us && since >= SILENCE_MIN && since.as_millis().is_multiple_of(100) {
                    world.paths.probed(&direct(1), world.now);
                }
                world.run(Duration::from_millis(10));
                assert!(world.now - cut < Duration::from_secs(9), "never doubted");
            }
            let gap = world.now - cut;
            println!("F-09: doubted after {gap:?} of one direction only; the peer asked: {asks_us}");
            assert!(gap <= if asks_us { Duration::from_secs(2) } else { Duration::from_secs(7) });
        }
    }

    #[test]
    fn f_25_loss_kills_no_path() {
        for percent in [1, 5, 20] {
            for flows in [(true, true), (true, false), (false, false)] {
                let mut world = two(30, (relay(), 60));
                (world.loss, world.flows) = (f64::from(percent) / 100.0, flows);
                world.run(Duration::from_secs(1000));
                let (doubted, dead) = (
                    world.count(|e| matches!(e, PathEvent::Suspected(_))),
                    world.count(|e| matches!(e, PathEvent::Lost(_))),
                );
                println!(
                    "F-25: {percent} % loss, flows {flows:?}: doubted {doubted} times in 1000 s, dead {dead} times"
                );
                assert_eq!(dead, 0);
                assert!(doubted <= 8, "{doubted}");
            }
        }
    }

    #[test]
    fn a_slow_path_that_loses_a_quarter_stays() {
        // F-26: 800 ms of round trip, 25 % lost.
        let mut world = World::new(&[(direct(1), 800)]);
        world.loss = 0.25;
        world.paths.add(direct(1), world.now);
        world.run(Duration::from_secs(300));
        assert_eq!((world.count(|e| matches!(e, PathEvent::Lost(_))), world.paths.active()), (0, Some(direct(1))));
    }

    #[test]
    fn n_12_a_better_path_is_used_within_five_seconds() {
        let mut world = World::new(&[(direct(1), 40), (direct(2), 2)]);
        world.paths.add(direct(1), world.now);
        world.run(Duration::from_secs(60));
        let appeared = world.now;
        world.paths.add(direct(2), world.now);
        while world.paths.active() != Some(direct(2)) {
            world.run(Duration::from_millis(10));
        }
        println!("N-12: the better path is used after {:?}", world.now - appeared);
        assert!(world.now - appeared <= Duration::from_secs(5));
    }

    #[test]
    fn n_13_paths_that_are_better_in_turns_change_little() {
        for gain in [1, 8] {
            let mut world = two(30, (direct(2), 30));
            world.actives.clear();
            for turn in 0..100 {
                world.answer(direct(1 + turn % 2), Some(30 - gain));
                world.answer(direct(1 + (turn + 1) % 2), Some(30));
                world.run(Duration::from_secs(3));
            }
            let switches = world.actives.len() - 1;
            println!("N-13: {switches} switches in 5 min with {gain} ms in turns");
            assert!(switches <= if gain == 1 { 0 } else { 12 }, "{switches}");
        }
    }

    #[test]
    fn n_13_a_busy_machine_makes_no_path_better() {
        let mut switches = 0;
        for seed in 0..20 {
            let mut world = two(30, (direct(2), 30));
            (world.rng, world.held) = (StdRng::seed_from_u64(seed), 3.0);
            world.actives.clear();
            for turn in 0..100 {
                world.answer(direct(1 + turn % 2), Some(29));
                world.answer(direct(1 + (turn + 1) % 2), Some(30));
                world.run(Duration::from_secs(3));
            }
            switches += world.actives.len().saturating_sub(1);
        }
        println!("N-13: {switches} switches in 20 times 5 min with 1 ms in turns and answers held up 3 ms on average");
        assert!(switches <= 20, "{switches}");
    }

    #[test]
    fn an_idle_path_that_dies_is_found_out_within_a_minute_and_asked_ever_more_seldom() {
        let mut world = two(20, (relay(), 40));
        world.flows = (false, false);
        world.run(Duration::from_secs(60));
        world.answer(direct(1), None);
        world.run(Duration::from_secs(60));
        assert_eq!((world.state(direct(1)), world.paths.active()), (State::Dead, Some(relay())));
        world.run(Duration::from_secs(300));
        assert_eq!(world.state(direct(1)), State::Dead, "announced, so it is kept");
        world.paths.add_seen(direct(7), world.now);
        world.answer(direct(7), Some(10));
        world.run(Duration::from_secs(5));
        world.answer(direct(7), None);
        world.run(Duration::from_secs(200));
        assert!(world.paths.get(&direct(7)).is_none(), "nobody announces it");
    }

    #[test]
    fn an_unused_peer_that_dies_is_lost_in_half_a_minute_whatever_stood_by() {
        let mut world = two(20, (relay(), 40));
        world.flows = (false, false);
        // Somewhere between two questions to each.
        world.run(Duration::from_secs(47));
        let killed = world.now;
        [direct(1), relay()].into_iter().for_each(|route| world.answer(route, None));
        while !world.paths.is_lost() {
            world.run(Duration::from_millis(100));
        }
        println!("an unused peer is lost {:?} after it died", world.now - killed);
        assert!(world.now - killed <= Duration::from_secs(32));
        world.answer(relay(), Some(40));
        let mended = world.now;
        while world.paths.is_lost() {
            world.run(Duration::from_millis(100));
        }
        assert!(world.now - mended <= Duration::from_secs(62), "it is asked on, ever more seldom");
    }

    #[test]
    fn an_uplink_that_is_gone_takes_its_paths_along_at_once() {
        let further = |number: u8| Route::direct(Endpoint { uplink: UplinkId(number), addr: direct(1).endpoint.addr });
        let mut world = World::new(&[(further(16), 10), (further(17), 30)]);
        world.paths.add(further(16), world.now);
        world.paths.add(further(17), world.now);
        world.run(Duration::from_secs(3));
        assert_eq!(world.paths.active(), Some(further(16)));
        world.paths.drop_uplink(UplinkId(16), world.now);
        assert_eq!(world.paths.active(), Some(further(17)));
    }

    #[test]
    fn each_mode_uses_the_paths_its_name_says() {
        let further = |uplink: u8, host: u8| {
            Route::direct(Endpoint { uplink: UplinkId(uplink), addr: ([192, 0, 2, host], 1).into() })
        };
        // Two sockets here, two addresses there: four paths, of which two have nothing in common.
        let all: Vec<_> = [(16, 1), (16, 2), (17, 1), (17, 2)].map(|(uplink, host)| further(uplink, host)).to_vec();
        let delays: Vec<_> = all.iter().copied().zip([10, 12, 14, 16]).collect();
        let mut world = World::new(&delays);
        all.iter().for_each(|route| assert!(world.paths.add(*route, world.now)));
        world.paths.prove(relay(), world.now);
        world.answer(relay(), Some(50));
        world.run(Duration::from_secs(5));
        let used = |world: &mut World, mode| {
            world.paths.set_mode(mode);
            world.paths.plan().map(|plan| (plan.rule, plan.ways.iter().map(|way| way.route).collect::<Vec<_>>()))
        };
        let apart = vec![further(16, 1), further(17, 2)];
        assert_eq!(used(&mut world, Mode::Best), None);
        assert_eq!(used(&mut world, Mode::RedundantSmall), Some((Rule::CopySmall, apart.clone())));
        assert_eq!(used(&mut world, Mode::Bonded), Some((Rule::Spread, apart.clone())));
        assert_eq!(used(&mut world, Mode::Redundant), Some((Rule::Copy, [apart, vec![relay()]].concat())));
        world.paths.drop_uplink(UplinkId(17), world.now);
        let one_socket = vec![further(16, 1), further(16, 2)];
        assert_eq!(used(&mut world, Mode::Bonded), Some((Rule::Spread, one_socket)), "the far end's uplinks");
    }

    #[test]
    fn a_relay_that_never_answers_is_not_asked_many_times_a_second() {
        let (start, mut rng, mut paths) = setting();
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
    fn what_the_other_end_does_not_announce_any_more_is_forgotten_once_it_is_dead_and_what_carries_is_never_evicted() {
        let mut world = two(20, (relay(), 40));
        world.answer(direct(1), None);
        world.run(Duration::from_secs(300));
        assert_eq!(world.state(direct(1)), State::Dead, "announced, so it is kept");
        world.paths.set_announced(|_| false);
        world.run(Duration::from_secs(70));
        assert!(world.paths.get(&direct(1)).is_none());
        // With everything dead, the one in use stays, however many others want its place.
        world.answer(relay(), None);
        world.run(Duration::from_secs(30));
        let active = world.paths.active();
        for port in 10..200 {
            world.paths.add(direct(port), world.now);
            world.run(Duration::from_secs(3));
            assert!(world.paths.active().is_none_or(|route| world.paths.get(&route).is_some()));
            assert!(world.paths.get(&relay()).is_some());
        }
        assert!(active.is_some());
    }

    #[test]
    fn who_moved_keeps_the_proven_way_it_says_so_by_and_no_other() {
        let mut world = two(20, (direct(2), 20));
        world.paths.prove(relay(), world.now);
        world.paths.other_end_moved(&direct(2), world.now);
        let left: Vec<_> = world.paths.iter().map(|path| path.route).collect();
        assert_eq!((left, world.paths.active()), (vec![direct(2)], Some(direct(2))));
    }

    #[test]
    fn redundant_frames_go_by_each_socket_that_was_proven_until_a_moment_ago_too() {
        let by = |uplink, port| Route::direct(Endpoint { uplink, addr: ([192, 0, 2, 1], port).into() });
        let mut world = two(20, (direct(2), 20));
        world.paths.set_mode(Mode::Redundant);
        for route in [by(UplinkId(17), 1), relay()] {
            world.paths.prove(route, world.now);
        }
        world.paths.doubt(world.now);
        let ways = |paths: &Paths| paths.plan().expect("several").ways.iter().map(|way| way.route).collect::<Vec<_>>();
        assert_eq!(ways(&world.paths), [relay(), direct(1), by(UplinkId(17), 1)]);
        world.paths.drop_relays(world.now);
        let mut left = ways(&world.paths);
        left.sort_by_key(|route| route.endpoint.uplink.0);
        assert_eq!(left, [direct(1), by(UplinkId(17), 1)]);
    }

    #[test]
    fn with_the_relay_gone_a_suspect_path_is_better_than_none() {
        let (mut now, mut rng, mut paths) = setting();
        paths.prove(direct(1), now);
        for _ in 0..40 {
            now = paths.poll_timeout().expect("probes go on").max(now);
            paths.handle_timeout(now, true, &mut rng);
        }
        assert_eq!(paths.get(&direct(1)).map(|path| path.state), Some(State::Dead));
        assert_eq!(paths.active(), Some(direct(1)));
    }

    #[test]
    fn candidates_that_never_answer_are_asked_ever_more_seldom_and_their_number_is_bounded() {
        let (start, mut rng, mut paths) = setting();
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
        let mut world = two(100, (direct(2), 99));
        world.run(Duration::from_secs(60));
        assert_eq!(world.paths.active(), Some(direct(1)));
        world.answer(direct(3), Some(20));
        world.paths.add(direct(3), world.now);
        world.run(Duration::from_secs(5));
        assert_eq!(world.paths.active(), Some(direct(3)));
    }
}
