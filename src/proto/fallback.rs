//! When a client speaks to its server over TCP: UDP goes first, TCP comes beside it while UDP is silent, and UDP is tried
//! on and used again as soon as it answers.
//!
//! The datagrams are the same either way, and so is the session: which way they take is all that is decided here.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng;

use super::backoff::Backoff;
use crate::ids::{Endpoint, UplinkId};

/// How long UDP is ahead at the start: an answer within it spares the connection (the reference's figure).
pub const HEAD_START: Duration = Duration::from_millis(250);
/// How long UDP may be silent later, before TCP is tried beside it: a lost keepalive or two are no reason.
pub const LATER: Duration = Duration::from_secs(2);
/// The same, when the relay has fallen silent as well: two witnesses need not be waited for as long as one.
pub const RELAY_SILENT_TOO: Duration = Duration::from_millis(750);
/// Waits between tests of UDP while TCP is used. What blocks UDP is seldom gone in a moment, but what only delayed it is.
const TESTS: &[Duration] = &[
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
    // With the jitter of the back-off at most a minute.
    Duration::from_secs(50),
];
/// Connections tried at the same moment.
const AT_ONCE: usize = 8;
/// Where there are more servers than that, others have their turn after this long.
const TURN: Duration = Duration::from_secs(10);

/// The decision, and what it hangs on.
#[derive(Debug)]
pub struct Fallback {
    allowed: bool,
    /// Since when what went by UDP is unanswered; `None` while UDP answers, or TCP is in use and stays.
    silent_since: Option<Instant>,
    patience: Duration,
    /// The connection in use.
    used: Option<SocketAddr>,
    /// Connections that are open.
    open: Vec<SocketAddr>,
    test_at: Option<Instant>,
    tests: Backoff,
}

impl Default for Fallback {
    fn default() -> Self {
        Self {
            allowed: false,
            silent_since: None,
            patience: HEAD_START,
            used: None,
            open: Vec::new(),
            test_at: None,
            tests: Backoff::new(TESTS),
        }
    }
}

impl Fallback {
    /// TCP may be used.
    pub fn allow(&mut self) {
        self.allowed = true;
    }

    /// Something that wants an answer went by UDP.
    pub fn asked(&mut self, now: Instant) {
        if self.used.is_none() {
            self.silent_since.get_or_insert(now);
        }
    }

    /// The relay is silent, too: less patience.
    pub fn suspects(&mut self) {
        self.patience = self.patience.min(RELAY_SILENT_TOO);
    }

    /// The server is spoken to at this endpoint from here on; it has answered from it.
    pub fn answered(&mut self, from: Endpoint, now: Instant, rng: &mut impl Rng) {
        (self.silent_since, self.patience) = (None, LATER);
        let over = (from.uplink == UplinkId::TCP).then_some(from.addr);
        if over.is_none() {
            self.test_at = None;
        } else if self.used.is_none() {
            self.tests.reset();
            self.test_at = Some(now + self.tests.next(rng));
        }
        self.used = over;
    }

    /// The server does not answer at all; everything is tried.
    pub fn lost(&mut self) {
        if self.used.take().is_some() {
            // What made us use TCP holds still, most likely.
            self.patience = HEAD_START;
        }
        self.test_at = None;
    }

    /// Something of the underlay changed: perhaps UDP passes here.
    pub fn underlay_changed(&mut self, now: Instant) {
        if self.used.is_some() {
            self.tests.reset();
            self.test_at = Some(now);
        }
    }

    /// The connections that are open. Gives those that were not.
    pub fn set_open(&mut self, open: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let new = open.iter().copied().filter(|addr| !self.open.contains(addr)).collect();
        self.open = open;
        new
    }

    /// Endpoints of open connections.
    pub fn open(&self) -> impl Iterator<Item = Endpoint> {
        self.open.iter().map(|addr| Endpoint::tcp(*addr))
    }

    /// Whether the connection in use is gone.
    pub fn is_cut(&self) -> bool {
        self.used.is_some_and(|used| !self.open.contains(&used))
    }

    /// Goes on with a connection that a core before this one used.
    pub fn resume(&mut self, addr: SocketAddr, now: Instant) {
        (self.used, self.open, self.test_at) = (Some(addr), vec![addr], Some(now + TESTS[0]));
    }

    /// The connections there should be, out of the addresses of all servers.
    pub fn wanted(&self, servers: &[Endpoint], now: Instant) -> Vec<SocketAddr> {
        if let Some(used) = self.used {
            return vec![used];
        }
        if self.dial_at().is_none_or(|at| now < at) {
            return Vec::new();
        }
        let turn = self.turn(now).unwrap_or(0) * AT_ONCE;
        let some = servers.iter().cycle().skip(turn % servers.len().max(1)).take(AT_ONCE.min(servers.len()));
        some.map(|server| server.addr).collect()
    }

    fn dial_at(&self) -> Option<Instant> {
        self.silent_since.filter(|_| self.allowed && self.used.is_none()).map(|since| since + self.patience)
    }

    /// Whose turn it is, counted from when TCP was first wanted.
    fn turn(&self, now: Instant) -> Option<usize> {
        let waited = now.checked_duration_since(self.dial_at()?)?;
        Some((waited.as_millis() / TURN.as_millis()) as usize)
    }

    /// When there is something to decide anew.
    pub fn poll_timeout(&self, servers: usize, now: Instant) -> Option<Instant> {
        let dial = self.dial_at().filter(|at| now < *at);
        let turn = || {
            let (at, turn) = (self.dial_at()?, self.turn(now)?);
            (servers > AT_ONCE).then(|| at + TURN * (turn as u32 + 1))
        };
        [dial.or_else(turn), self.test_at].into_iter().flatten().min()
    }

    /// Whether UDP is to be tested at this moment; the next test follows by itself.
    pub fn test_is_due(&mut self, now: Instant, rng: &mut impl Rng) -> bool {
        let due = self.test_at.is_some_and(|at| now >= at);
        if due {
            self.test_at = Some(now + self.tests.next(rng));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn server(n: u8) -> Endpoint {
        Endpoint::udp(([192, 0, 2, n], 43439).into())
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Allowed, and asked by UDP at `now`.
    fn asked(now: Instant) -> Fallback {
        let mut fallback = Fallback::default();
        fallback.allow();
        fallback.asked(now);
        fallback
    }

    #[test]
    fn udp_is_ahead_by_its_head_start_and_an_answer_within_it_spares_the_connection() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut fallback = asked(now);
        let servers = [server(1), server(2)];
        assert_eq!(fallback.poll_timeout(2, now), Some(now + HEAD_START));
        assert!(fallback.wanted(&servers, now + ms(249)).is_empty());
        assert_eq!(fallback.wanted(&servers, now + ms(250)), [server(1).addr, server(2).addr]);
        fallback.answered(server(1), now + ms(251), &mut rng);
        assert!(fallback.wanted(&servers, now + ms(900)).is_empty(), "what was begun is given up");
        assert_eq!(fallback.poll_timeout(2, now + ms(900)), None);
    }

    #[test]
    fn later_udp_may_be_silent_for_two_seconds_or_less_when_the_relay_is_too() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        for (suspects, patience) in [(false, LATER), (true, RELAY_SILENT_TOO)] {
            let mut fallback = asked(now);
            fallback.answered(server(1), now, &mut rng);
            let later = now + Duration::from_secs(20);
            fallback.asked(later);
            fallback.asked(later + ms(500));
            if suspects {
                fallback.suspects();
            }
            assert_eq!(fallback.poll_timeout(1, later), Some(later + patience), "from the first question on");
            assert!(fallback.wanted(&[server(1)], later + patience - ms(1)).is_empty());
            assert_eq!(fallback.wanted(&[server(1)], later + patience), [server(1).addr]);
        }
    }

    #[test]
    fn f_10_over_tcp_udp_is_tested_once_a_minute_at_least_for_as_long_as_it_takes() {
        for seed in 0..50 {
            let (start, mut rng) = (Instant::now(), StdRng::seed_from_u64(seed));
            let mut fallback = asked(start);
            fallback.set_open(vec![server(1).addr]);
            fallback.answered(Endpoint::tcp(server(1).addr), start, &mut rng);
            let (mut now, mut longest, mut tests) = (start, Duration::ZERO, 0);
            while now - start < Duration::from_secs(600) {
                let next = fallback.poll_timeout(1, now).expect("tests go on");
                longest = longest.max(next - now);
                now = next;
                assert!(fallback.test_is_due(now, &mut rng) && !fallback.test_is_due(now, &mut rng));
                // That the server is heard over TCP changes nothing.
                fallback.answered(Endpoint::tcp(server(1).addr), now, &mut rng);
                assert_eq!(fallback.wanted(&[server(1)], now), [server(1).addr]);
                tests += 1;
            }
            if seed == 0 {
                println!(
                    "F-10: UDP tested {tests} times in 600 s over TCP, longest wait {:.1} s",
                    longest.as_secs_f64()
                );
            }
            assert!(longest <= Duration::from_secs(60), "{longest:?}");
            assert!(tests < 20, "{tests}");
            fallback.underlay_changed(now);
            assert!(fallback.test_is_due(now, &mut rng), "at once in another network");
            fallback.answered(server(1), now, &mut rng);
            assert!(fallback.wanted(&[server(1)], now).is_empty() && fallback.poll_timeout(1, now).is_none());
        }
    }

    #[test]
    fn a_connection_that_breaks_is_missed_and_dialled_anew_soon() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut fallback = asked(now);
        assert_eq!(fallback.set_open(vec![server(1).addr]), [server(1).addr]);
        assert_eq!(fallback.set_open(vec![server(1).addr]), []);
        fallback.answered(Endpoint::tcp(server(1).addr), now, &mut rng);
        assert!(!fallback.is_cut());
        fallback.set_open(Vec::new());
        assert!(fallback.is_cut());
        fallback.lost();
        fallback.asked(now);
        assert_eq!(fallback.wanted(&[server(1)], now + HEAD_START), [server(1).addr]);
    }

    #[test]
    fn of_many_servers_each_has_its_turn_and_where_tcp_is_not_allowed_none_has() {
        let now = Instant::now();
        let servers: Vec<_> = (1..=20).map(server).collect();
        let mut fallback = asked(now);
        let (mut at, mut tried) = (now, Vec::new());
        for _ in 0..3 {
            at = fallback.poll_timeout(servers.len(), at).expect("more turns");
            let wanted = fallback.wanted(&servers, at);
            assert_eq!(wanted.len(), AT_ONCE);
            tried.extend(wanted);
        }
        assert!(servers.iter().all(|server| tried.contains(&server.addr)));
        assert_eq!(fallback.wanted(&[], at), []);
        fallback.allowed = false;
        assert_eq!((fallback.wanted(&servers, at), fallback.poll_timeout(20, at)), (Vec::new(), None));
    }
}
