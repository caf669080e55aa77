//! When two peers probe each other, so that the first datagrams of both cross on their way.
//!
//! A NAT lets in what its inside has sent to first. If the far side's datagram comes before ours has left, strict NATs
//! drop it (no harm done) and careless ones take it for a connection to themselves and give our socket another port,
//! which spoils the hole. So one of the two, the *leader*, says [`PunchAt`](crate::wire::nat::NatMessage::PunchAt) over
//! the path there is, and probes half a round trip later; the other probes when it hears that.
//!
//! A round that leads to nothing is followed by others, rarely. After the first one, a pair of which one side has a
//! hard NAT tries what is left: many sockets there, many ports here ([`Spray`]).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

/// Rounds that both begin together follow each other after this long. Between them each candidate is probed by itself
/// after 5, 15 and 60 s, see [`Paths`](super::path::Paths): what the first round opened is still open then.
const AGAIN: Duration = Duration::from_secs(300);
/// A round is over after this long: the last probe leaves after 1.6 s.
pub const ROUND: Duration = Duration::from_millis(2500);
/// A follower who hears nothing begins by itself after this long.
const PATIENCE: Duration = Duration::from_millis(400);
/// Half a round trip of a path that was not measured yet.
const HALF_UNKNOWN: Duration = Duration::from_millis(15);
/// The leader waits for slow paths no longer than this.
const HALF_MAX: Duration = Duration::from_secs(1);
/// Somebody who changes addresses all the time does not make us probe more often than this.
const RESET_EVERY: Duration = Duration::from_secs(1);
/// Spraying one peer is tried again after this long.
pub const SPRAY_EVERY: Duration = Duration::from_secs(600);
/// Sockets at the hard side, ports at the other: with 64,512 ports one of them is hit in 87 of 100 tries.
pub const SPRAY_SOCKETS: usize = 128;
pub const SPRAY_PORTS: usize = 1024;
/// Ports tried on either side of what a predictable NAT is expected to use.
pub const SPRAY_NEAR: u16 = 20;
/// Between two probes of a spray: 512 a second.
pub const SPRAY_GAP: Duration = Duration::from_micros(1953);
/// The hard side keeps its sockets open for this long: as long as the probes take, and their way.
pub const SPRAY_OPEN: Duration = Duration::from_secs(5);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Say `PunchAt`; our own probes wait.
    Ask { round: u32 },
    /// Probe all candidates now.
    Fire,
    /// The first round is over and led to nothing.
    Stuck,
}

/// The rounds with one peer.
#[derive(Debug, Default)]
pub struct Punch {
    /// There was none since the last reset.
    is_first: bool,
    /// Rounds in all.
    number: u32,
    next_at: Option<Instant>,
    fire_at: Option<Instant>,
    stuck_at: Option<Instant>,
    reset_at: Option<Instant>,
    asked_at: Option<Instant>,
}

impl Punch {
    /// Rounds begin (anew): there is a session, an address is new, a direct path was lost.
    pub fn reset(&mut self, leads: bool, now: Instant) {
        let held = self.reset_at.map_or(now, |at| (at + RESET_EVERY).max(now));
        let at = held + if leads { Duration::ZERO } else { PATIENCE };
        if self.next_at.is_some_and(|next| next <= at) {
            return;
        }
        self.is_first = true;
        self.next_at = Some(at);
    }

    /// The peer says that it probes. Said again at once, it is nothing new: the round is under way.
    pub fn asked(&mut self, delay: Duration, now: Instant) {
        if self.asked_at.is_some_and(|at| now.saturating_duration_since(at) < RESET_EVERY) {
            return;
        }
        self.asked_at = Some(now);
        if self.fire_at.is_none() {
            self.fire_at = Some(now + delay.min(HALF_MAX));
        }
        self.begun(now);
    }

    /// There is a direct path.
    pub fn settled(&mut self) {
        (self.next_at, self.fire_at, self.stuck_at) = (None, None, None);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.next_at, self.fire_at, self.stuck_at].into_iter().flatten().min()
    }

    /// What is due; call it until there is nothing. `rtt` of the path that `PunchAt` goes by.
    pub fn handle_timeout(&mut self, rtt: Option<Duration>, now: Instant) -> Option<Due> {
        if self.fire_at.is_some_and(|at| now >= at) {
            self.fire_at = None;
            return Some(Due::Fire);
        }
        if self.stuck_at.is_some_and(|at| now >= at) {
            self.stuck_at = None;
            return Some(Due::Stuck);
        }
        if self.next_at.is_some_and(|at| now >= at) {
            let half = rtt.map_or(HALF_UNKNOWN, |rtt| rtt / 2);
            self.fire_at = Some(now + half.min(HALF_MAX));
            self.number = self.number.wrapping_add(1);
            self.begun(now);
            return Some(Due::Ask { round: self.number });
        }
        None
    }

    fn begun(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_first) {
            self.stuck_at.get_or_insert(now + ROUND);
        }
        self.reset_at = Some(now);
        self.next_at = Some(now + AGAIN);
    }
}

/// Probes to many ports of one IP, which the server itself observed.
#[derive(Debug)]
pub struct Spray {
    ip: IpAddr,
    ports: std::vec::IntoIter<u16>,
    at: Instant,
}

impl Spray {
    /// Ports at random, each once.
    pub fn random(ip: IpAddr, now: Instant, rng: &mut impl Rng) -> Self {
        let mut ports = BTreeSet::new();
        let mut order = Vec::with_capacity(SPRAY_PORTS);
        while order.len() < SPRAY_PORTS {
            let port = rng.random_range(1024..=u16::MAX);
            if ports.insert(port) {
                order.push(port);
            }
        }
        Self { ip, ports: order.into_iter(), at: now }
    }

    /// The ports around an expected one, the nearest first.
    pub fn near(expected: SocketAddr, now: Instant) -> Self {
        let middle = expected.port();
        let around = (1..=SPRAY_NEAR).flat_map(|far| [middle.checked_add(far), middle.checked_sub(far)]);
        let ports: Vec<u16> = [Some(middle)].into_iter().chain(around).flatten().filter(|port| *port > 0).collect();
        Self { ip: expected.ip(), ports: ports.into_iter(), at: now }
    }

    /// When the next probe is due; `None` when all are sent.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.ports.len() > 0).then_some(self.at)
    }

    /// Where the next probe goes, if one is due.
    pub fn next(&mut self, now: Instant) -> Option<SocketAddr> {
        if now < self.at {
            return None;
        }
        // A late wake-up catches up, but not with all of it at once.
        self.at = (self.at + SPRAY_GAP).max(now.checked_sub(SPRAY_GAP * 16).unwrap_or(now));
        self.ports.next().map(|port| SocketAddr::new(self.ip, port))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    /// All that is due until a time, with when.
    fn run(punch: &mut Punch, from: Instant, until: Duration) -> Vec<(Due, Duration)> {
        let mut all = Vec::new();
        let mut now = from;
        loop {
            while let Some(due) = punch.handle_timeout(Some(Duration::from_millis(40)), now) {
                all.push((due, now - from));
            }
            match punch.poll_timeout() {
                Some(at) if at <= from + until => now = at.max(now),
                _ => return all,
            }
        }
    }

    #[test]
    fn the_leaders_probes_leave_half_a_round_trip_after_its_word_and_there_are_few_rounds() {
        let (now, mut punch) = (Instant::now(), Punch::default());
        punch.reset(true, now);
        let all = run(&mut punch, now, Duration::from_secs(500));
        assert_eq!(all[..2], [(Due::Ask { round: 1 }, Duration::ZERO), (Due::Fire, Duration::from_millis(20))]);
        assert_eq!(all[2], (Due::Stuck, ROUND));
        let asked: Vec<u64> =
            all.iter().filter(|(due, _)| matches!(due, Due::Ask { .. })).map(|(_, at)| at.as_secs()).collect();
        assert_eq!(asked, [0, 300]);
        assert_eq!(all.iter().filter(|(due, _)| *due == Due::Stuck).count(), 1);
    }

    #[test]
    fn a_follower_probes_when_it_is_told_to_and_by_itself_when_nobody_speaks() {
        let (now, mut punch) = (Instant::now(), Punch::default());
        punch.reset(false, now);
        assert_eq!(punch.handle_timeout(None, now), None);
        punch.asked(Duration::ZERO, now);
        assert_eq!(punch.handle_timeout(None, now), Some(Due::Fire));
        assert_eq!(run(&mut punch, now, Duration::from_secs(9)), [(Due::Stuck, ROUND)]);
        let mut alone = Punch::default();
        alone.reset(false, now);
        assert_eq!(run(&mut alone, now, Duration::from_secs(1))[0], (Due::Ask { round: 1 }, PATIENCE));
    }

    #[test]
    fn a_direct_path_ends_the_rounds_and_new_addresses_every_moment_do_not_make_more_of_them() {
        let (now, mut punch) = (Instant::now(), Punch::default());
        punch.reset(true, now);
        punch.settled();
        assert_eq!(punch.poll_timeout(), None);
        let mut rounds = 0;
        for step in 0..1000 {
            let now = now + Duration::from_millis(10 * step);
            punch.reset(true, now);
            while let Some(due) = punch.handle_timeout(None, now) {
                rounds += u32::from(matches!(due, Due::Ask { .. }));
            }
        }
        assert_eq!(rounds, 10, "in ten seconds");
        let mut fired = 0;
        for step in 1000..2000 {
            let now = now + Duration::from_millis(10 * step);
            punch.asked(Duration::ZERO, now);
            while let Some(due) = punch.handle_timeout(None, now) {
                fired += u32::from(due == Due::Fire);
            }
        }
        assert!((9..=11).contains(&fired), "{fired} in ten seconds");
    }

    #[test]
    fn a_spray_tries_each_port_once_at_512_a_second() {
        let (start, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let ip: IpAddr = "192.0.2.1".parse().expect("an address");
        let mut spray = Spray::random(ip, start, &mut rng);
        let (mut now, mut tried) = (start, BTreeSet::new());
        while let Some(at) = spray.poll_timeout() {
            now = at;
            tried.extend(spray.next(now));
        }
        assert_eq!(tried.len(), SPRAY_PORTS);
        assert!(tried.iter().all(|addr| addr.ip() == ip && addr.port() >= 1024));
        let took = (now - start).as_secs_f64();
        assert!((1.9..2.1).contains(&took), "{took}");
        let mut near = Spray::near("192.0.2.1:5".parse().expect("an address"), start);
        let mut ports = Vec::new();
        while let Some(at) = near.poll_timeout() {
            ports.extend(near.next(at).map(|addr| addr.port()));
        }
        assert_eq!(ports[..4], [5, 6, 4, 7]);
        assert_eq!(ports.len(), 25, "port 0 is none");
    }
}
