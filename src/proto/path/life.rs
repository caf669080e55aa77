//! One way to the peer: its state, when it is probed, what its silence means.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rand::Rng;

use super::{PathEvent, Probe};
use crate::ids::{Route, UplinkId};
use crate::proto::estimate::{Estimate, PathMeter};
use crate::proto::session::Epoch;

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
pub(super) const ROUND_WAITS: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(10), Duration::from_secs(45), Duration::from_secs(300)];
/// How often a path that carries frames is probed while they pass, to measure it.
pub(super) const PROBE_BUSY: Duration = Duration::from_secs(2);
/// And while none do: below common NAT time-outs of 30 s.
const PROBE_IDLE: Duration = Duration::from_secs(20);
/// How often a valid path is probed that carries none while others do, and one that might be better than them.
const PROBE_STANDBY: Duration = Duration::from_secs(10);
const PROBE_CONTENDER: Duration = Duration::from_secs(1);
/// A new path is measured so many times at once, this far apart, so that a better one is known as such in a second.
const SETTLING: u8 = 3;
const PROBE_SETTLING: Duration = Duration::from_millis(300);
/// Sending and hearing nothing for so long is worth a question; on slow paths 3 round trips and 4 variations.
pub(super) const SILENCE_MIN: Duration = Duration::from_millis(500);
/// How often we look whether something was sent into the silence.
const LISTEN_EVERY: Duration = Duration::from_millis(100);
/// A burst asks at these times, then each [`BURST_STEP`], until the path's patience is over.
const BURST: [Duration; 3] = [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(200)];
const BURST_STEP: Duration = Duration::from_millis(200);
/// How long a burst goes unanswered before the path is suspect: longer where two round trips and 4 variations are.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
const PATIENCE_MAX: Duration = Duration::from_secs(3);
/// Probes in a row without a reply that a path survives as long as something comes by it: datagrams that come do not
/// say that ours get there.
const DEAF_MAX: u32 = 2;
/// How often a suspect path is asked, so that the other end takes it for [urgent](URGENT), and for how long until it is
/// dead.
const PROBE_SUSPECT: Duration = Duration::from_millis(200);
const SUSPECT_MAX: Duration = Duration::from_secs(5);
/// Waits between the probes of a dead path: the first, doubled up to the last; while frames pass, no more than makes it
/// used again within ten seconds of its repair.
pub(super) const DEAD_FIRST: Duration = Duration::from_secs(1);
const DEAD_LAST: Duration = Duration::from_secs(60);
pub(super) const DEAD_BUSY: Duration = Duration::from_secs(8);
/// Probes whose answers are still known.
const ASKED_MAX: usize = 10;

/// How far a path is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nobody has answered from it yet; it waits for its next round of probes.
    Candidate,
    /// And a round is under way.
    Probing,
    /// A reply to a challenge came.
    Valid,
    /// It was valid and does not answer: frames leave by another, too, while it is probed on.
    Suspect,
    /// It has not answered for long.
    Dead,
}

/// One way to the peer.
#[derive(Debug)]
pub struct Path {
    pub route: Route,
    pub state: State,
    pub estimate: Estimate,
    pub meter: Arc<PathMeter>,
    /// When a reply last proved it.
    pub proven: Option<Instant>,
    pub(super) number: u8,
    pub(super) announced: bool,
    /// Of candidates: which round, and which of its probes is next.
    pub(super) round: usize,
    pub(super) step: usize,
    /// When there is something to do next.
    pub(super) probe_at: Instant,
    /// Of valid paths: when it is to be measured next, and when we would miss hearing something.
    pub(super) measure_at: Instant,
    pub(super) listen_at: Option<Instant>,
    /// What was last heard when we listened, and what we had sent then.
    pub(super) listened: (Option<u64>, u64),
    pub(super) burst: Option<Burst>,
    /// When the other end last asked by it, and whether it asks as who hears nothing does.
    pub(super) probed: Option<Instant>,
    pub(super) urged: bool,
    pub(super) urged_at: Option<Instant>,
    /// Since when it is suspect or dead.
    pub(super) silent_since: Instant,
    pub(super) dead_wait: Duration,
    pub(super) settling: u8,
    /// Probes in a row in which it was clearly better than the one in use.
    pub(super) better: u8,
    pub(super) sequence: u32,
    pub(super) asked: VecDeque<Asked>,
    pub(super) answered: Option<Asked>,
    pub(super) missed: u32,
}

/// Urgent questions to a path that carries frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct Burst {
    pub(super) since: Instant,
    pub(super) step: usize,
    /// Only a reply ends it, not what else comes.
    pub(super) deaf: bool,
}

/// A probe that was sent, and what had been sent by its path until then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) sequence: u32,
    pub(super) challenge: u64,
    pub(super) at: Instant,
    pub(super) sent: u64,
}

/// What a path has to know of the others when its time has come.
pub(super) struct Turn {
    pub(super) now: Instant,
    pub(super) busy: bool,
    pub(super) carries: bool,
    pub(super) stranded: bool,
    pub(super) epoch: Epoch,
}

impl Path {
    pub(super) fn new(route: Route, number: u8, announced: bool, now: Instant) -> Self {
        Self {
            route,
            state: State::Probing,
            estimate: Estimate::default(),
            meter: Arc::default(),
            proven: None,
            number,
            announced,
            round: 0,
            step: 0,
            probe_at: now,
            measure_at: now,
            listen_at: None,
            listened: (None, 0),
            burst: None,
            probed: None,
            urged: false,
            urged_at: None,
            silent_since: now,
            dead_wait: DEAD_FIRST,
            settling: 0,
            better: 0,
            sequence: 0,
            asked: VecDeque::new(),
            answered: None,
            missed: 0,
        }
    }

    /// Smoothed round trip, once measured.
    pub fn srtt(&self) -> Option<Duration> {
        self.estimate.srtt()
    }

    /// What it costs to use it.
    pub fn cost(&self) -> i64 {
        self.estimate.cost(&self.route)
    }

    /// Lower is better, whatever the cost; `None` for what must not carry frames.
    pub(super) fn tier(&self) -> Option<u8> {
        match (self.route.is_direct(), self.state) {
            (true, State::Valid) => Some(0),
            (false, State::Valid) if self.route.endpoint.uplink != UplinkId::TCP => Some(1),
            (false, State::Valid) => Some(2),
            // Better than nothing.
            (true, State::Suspect) => Some(3),
            (false, State::Suspect) => Some(4),
            (true, State::Dead) => Some(5),
            (false, State::Candidate | State::Probing | State::Dead) => Some(6),
            (true, State::Candidate | State::Probing) => None,
        }
    }

    /// Whether it still works is to be asked at once.
    pub(super) fn suspect(&mut self, now: Instant) {
        (self.state, self.silent_since, self.burst, self.probe_at) = (State::Suspect, now, None, now);
    }

    pub(super) fn begin_round(&mut self, now: Instant, round: usize) {
        (self.state, self.round, self.step, self.probe_at) = (State::Probing, round, 0, now);
    }

    pub(super) fn validate(&mut self, now: Instant, epoch: Epoch) -> Option<PathEvent> {
        (self.missed, self.burst, self.proven) = (0, None, Some(now));
        self.meter.heard(epoch.ms(now));
        if self.state == State::Valid {
            return None;
        }
        (self.state, self.settling, self.better) = (State::Valid, SETTLING, 0);
        self.dead_wait = DEAD_FIRST;
        // Proven by other means than a reply, it is measured at once.
        let measured = self.estimate.srtt().is_some();
        (self.measure_at, self.listen_at) = (if measured { now + PROBE_SETTLING } else { now }, None);
        self.probe_at = self.measure_at;
        Some(PathEvent::Validated(self.route))
    }

    /// Its time has come: whether it is to be probed, and what became of it.
    pub(super) fn turn(&mut self, turn: &Turn, rng: &mut impl Rng) -> (bool, Option<PathEvent>) {
        match self.state {
            State::Candidate | State::Probing => {
                self.probe_at = turn.now + self.next_of_round(rng);
                (true, None)
            }
            State::Valid => self.turn_valid(turn, rng),
            State::Suspect => {
                self.probe_at = turn.now + PROBE_SUSPECT;
                if turn.now.saturating_duration_since(self.silent_since) < SUSPECT_MAX {
                    return (true, None);
                }
                (self.state, self.silent_since) = (State::Dead, turn.now);
                (true, Some(PathEvent::Lost(self.route)))
            }
            State::Dead => {
                let most = match (turn.stranded, turn.busy) {
                    (true, _) => DEAD_FIRST,
                    (false, true) => DEAD_BUSY,
                    (false, false) => DEAD_LAST,
                };
                self.probe_at = turn.now + jitter(self.dead_wait.min(most), rng);
                self.dead_wait = (self.dead_wait * 2).min(DEAD_LAST);
                (true, None)
            }
        }
    }

    pub(super) fn turn_valid(&mut self, turn: &Turn, rng: &mut impl Rng) -> (bool, Option<PathEvent>) {
        let Turn { now, busy, carries, .. } = *turn;
        let heard_ms = self.meter.heard_ms();
        let heard = heard_ms.map(|ms| turn.epoch.at(ms));
        // To the millisecond, as marks are.
        let since = |at: Instant| turn.epoch.at(turn.epoch.ms(at));
        if self.burst.is_some_and(|burst| !burst.deaf && heard.is_some_and(|heard| heard > since(burst.since))) {
            self.burst = None;
        }
        let patience = self.patience();
        if self.urged {
            self.burst = None;
        }
        if let Some(burst) = &mut self.burst {
            if now >= burst.since + patience {
                self.burst = None;
                (self.state, self.silent_since) = (State::Suspect, now);
                self.probe_at = now + PROBE_SUSPECT;
                return (true, Some(PathEvent::Suspected(self.route)));
            }
            burst.step += 1;
            let offset = BURST.get(burst.step).copied();
            let offset = offset.unwrap_or_else(|| BURST[2] + BURST_STEP * (burst.step - 2) as u32);
            self.probe_at = burst.since + offset.min(patience);
            return (true, None);
        }
        if std::mem::take(&mut self.urged) {
            return self.begin_burst(now, true);
        }
        if busy
            && carries
            && self.listen_at.is_none_or(|at| now >= at)
            && self.misses_something(now, heard_ms, turn.epoch)
        {
            return self.begin_burst(now, false);
        }
        let asks = now >= self.measure_at;
        if asks {
            if let Some(asked) = self.unanswered(now) {
                self.missed += 1;
                // As long as something comes, two probes may be lost; without, each loss is looked into.
                let vouched = carries && busy && heard.is_some_and(|heard| heard > asked.at);
                if !vouched || self.missed >= DEAF_MAX {
                    return self.begin_burst(now, true);
                }
            }
            self.measure_at = now + self.interval(busy, carries, rng);
        }
        if !(busy && carries) {
            self.listen_at = None;
        }
        // A probe that is lost is missed before the next one is due.
        if asks && !(busy && carries) && self.measure_at > now + patience {
            self.probe_at = now + patience;
        } else if !asks && self.unanswered(now).is_some() && !(busy && carries) {
            return self.begin_burst(now, true);
        } else {
            self.probe_at = self.measure_at;
        }
        self.probe_at = self.listen_at.map_or(self.probe_at, |at| self.probe_at.min(at));
        (asks, None)
    }

    /// The newest probe, if its reply should have come.
    pub(super) fn unanswered(&self, now: Instant) -> Option<Asked> {
        let late = self.patience().min(PROBE_BUSY * 9 / 10);
        let waits = |asked: &&Asked| self.proven.is_none_or(|proven| proven < asked.at) && now >= asked.at + late;
        self.asked.back().filter(waits).copied()
    }

    /// How long a reply may take until the path is doubted.
    pub(super) fn patience(&self) -> Duration {
        self.estimate.patience(2, 4).clamp(PATIENCE_MIN, PATIENCE_MAX)
    }

    pub(super) fn begin_burst(&mut self, now: Instant, deaf: bool) -> (bool, Option<PathEvent>) {
        self.burst = Some(Burst { since: now, step: 0, deaf });
        self.measure_at = now + PROBE_BUSY;
        self.listen_at = None;
        self.probe_at = now + BURST[1];
        (true, None)
    }

    /// Whether we have sent and heard nothing for too long; says when to listen again.
    pub(super) fn misses_something(&mut self, now: Instant, heard_ms: Option<u64>, epoch: Epoch) -> bool {
        let silence = self.estimate.patience(3, 4).max(SILENCE_MIN);
        let sent = self.meter.tx_datagrams.load(Relaxed);
        let (heard_before, sent_before) = self.listened;
        if heard_ms != heard_before || self.listen_at.is_none() {
            self.listened = (heard_ms, sent);
            let quiet_at = heard_ms.map_or(now, |ms| epoch.at(ms)) + silence;
            // Where nothing came for long, what we send from here on counts.
            self.listen_at = Some(quiet_at.max(now + LISTEN_EVERY));
            return false;
        }
        self.listen_at = Some(now + LISTEN_EVERY);
        sent > sent_before
    }

    /// How long until it is measured again.
    pub(super) fn interval(&mut self, busy: bool, carries: bool, rng: &mut impl Rng) -> Duration {
        if self.settling > 0 {
            self.settling -= 1;
            return PROBE_SETTLING.max(self.estimate.patience(1, 4));
        }
        match (busy, carries) {
            (true, true) => jitter(PROBE_BUSY, rng),
            (true, false) if self.better > 0 => PROBE_CONTENDER,
            (true, false) if self.route.is_direct() => jitter(PROBE_STANDBY, rng),
            _ => jitter(PROBE_IDLE, rng),
        }
    }

    pub(super) fn next_of_round(&mut self, rng: &mut impl Rng) -> Duration {
        self.state = State::Probing;
        self.step += 1;
        match ROUND.get(self.step) {
            Some(at) => *at - ROUND[self.step - 1],
            None => {
                let wait = ROUND_WAITS[self.round.min(ROUND_WAITS.len() - 1)];
                (self.state, self.round, self.step) = (State::Candidate, self.round + 1, 0);
                jitter(wait, rng)
            }
        }
    }

    pub(super) fn ask(&mut self, now: Instant, rng: &mut impl Rng) -> Probe {
        self.sequence += 1;
        let challenge = rng.next_u64();
        if self.asked.len() >= ASKED_MAX {
            self.asked.pop_front();
        }
        self.meter.sent(1, 0);
        let sent = self.meter.tx_datagrams.load(Relaxed);
        self.asked.push_back(Asked { sequence: self.sequence, challenge, at: now, sent });
        Probe { route: self.route, sequence: self.sequence, challenge, path: self.number }
    }
}

/// Ten percent either way, so that nodes do not march in step.
pub(super) fn jitter(wait: Duration, rng: &mut impl Rng) -> Duration {
    wait.mul_f64(0.9 + 0.2 * f64::from(rng.next_u32()) / f64::from(u32::MAX))
}
