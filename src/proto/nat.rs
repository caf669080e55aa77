//! What the NAT in front of us does, found out by asking the server where it sees us.
//!
//! The server listens on a second port. A datagram to either leaves our socket by a mapping of the NAT; where both are
//! seen from one port, peers will see that port, too. Where they are not, datagrams from fresh sockets show whether
//! ports grow by a constant step. All answers come by the session's own way, so nothing is believed that the server did
//! not seal.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::Rng;

use crate::ids::{Endpoint, UplinkId};
pub use crate::wire::nat::NatKind;

/// Waits for an answer before a question is asked again.
const RETRY: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
/// Between datagrams from fresh sockets: they must reach the NAT in order.
const FRESH_GAP: Duration = Duration::from_millis(30);
/// Fresh sockets that a step is looked for with.
const FRESH: usize = 3;
/// Ports a predictable NAT grows by at the most, in either direction.
const STEP_MAX: i32 = 20;
/// All of it is done again this often, and when our observed address changes.
const AGAIN: Duration = Duration::from_secs(300);

/// Send this question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub to: Endpoint,
    pub nonce: u64,
    /// From a new socket, not from ours.
    pub fresh: bool,
}

/// What is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NatReport {
    pub kind: NatKind,
    /// How the server sees our socket: at its first port, then at its second one.
    pub observed: Vec<SocketAddr>,
    /// What a predictable NAT will use next.
    pub predicted: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Where does the first port see us, and which is the second?
    First,
    Second(u16),
    /// So many fresh sockets have been used.
    Fresh(u16, usize),
    Done,
}

/// The core.
#[derive(Debug)]
pub struct Observer {
    server: Option<Endpoint>,
    hosts: Vec<IpAddr>,
    step: Step,
    tries: usize,
    at: Option<Instant>,
    /// Questions without an answer, oldest first, and which they are.
    asked: Vec<(u64, Step)>,
    fresh: Vec<SocketAddr>,
    report: NatReport,
    told: NatReport,
}

impl Default for Observer {
    fn default() -> Self {
        Self {
            server: None,
            hosts: Vec::new(),
            step: Step::Done,
            tries: 0,
            at: None,
            asked: Vec::new(),
            fresh: Vec::new(),
            report: NatReport::default(),
            told: NatReport::default(),
        }
    }
}

impl Observer {
    /// The addresses of our own interfaces.
    pub fn set_hosts(&mut self, hosts: impl Iterator<Item = IpAddr>, now: Instant) {
        let hosts: Vec<_> = hosts.collect();
        if self.hosts != hosts {
            self.hosts = hosts;
            self.restart(now);
        }
    }

    /// The server is there; `None` when it went.
    pub fn set_server(&mut self, server: Option<Endpoint>, now: Instant) {
        self.server = server.filter(|server| server.uplink != UplinkId::TCP);
        self.restart(now);
    }

    /// Finds all out anew; until then what is known holds.
    pub fn restart(&mut self, now: Instant) {
        (self.step, self.tries) = (Step::First, 0);
        self.at = self.server.map(|_| now);
        self.asked.clear();
        self.fresh.clear();
    }

    /// A keepalive was answered: the server sees us there.
    pub fn observed(&mut self, addr: SocketAddr, now: Instant) {
        if self.report.observed.first() == Some(&addr) {
            return;
        }
        if self.report.observed.is_empty() || self.step == Step::Done {
            self.report.observed = vec![addr];
            self.restart(now);
        }
    }

    /// An answer, authentic.
    pub fn reflected(&mut self, nonce: u64, addr: SocketAddr, port: u16, now: Instant) {
        let Some(found) = self.asked.iter().position(|(asked, _)| *asked == nonce) else { return };
        let (_, step) = self.asked.swap_remove(found);
        match step {
            Step::First if self.step == Step::First => {
                self.report.observed = vec![addr];
                if self.hosts.contains(&addr.ip().to_canonical()) {
                    self.end(NatKind::None, now);
                } else if port == 0 {
                    self.end(NatKind::Unknown, now);
                } else {
                    (self.step, self.tries, self.at) = (Step::Second(port), 0, Some(now));
                }
            }
            Step::Second(second) if self.step == step => {
                self.report.observed.push(addr);
                if self.report.observed[0] == addr {
                    self.report.observed.truncate(1);
                    self.end(NatKind::Easy, now);
                } else {
                    // Hard at least; whether it can be predicted takes a moment more.
                    if !self.report.kind.is_hard() {
                        self.report.kind = NatKind::Hard;
                    }
                    (self.step, self.at) = (Step::Fresh(second, 0), Some(now));
                }
            }
            Step::Fresh(..) => {
                self.fresh.push(addr);
                if self.fresh.len() >= FRESH {
                    self.judge(now);
                }
            }
            Step::First | Step::Second(_) | Step::Done => {}
        }
    }

    /// What is new since the last call.
    pub fn poll_report(&mut self) -> Option<NatReport> {
        (self.report != self.told).then(|| {
            self.told = self.report.clone();
            self.report.clone()
        })
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.at
    }

    /// The next question that is due.
    pub fn handle_timeout(&mut self, now: Instant, rng: &mut impl Rng) -> Option<Ask> {
        let server = self.server?;
        if self.at.is_none_or(|at| now < at) {
            return None;
        }
        let second = |port| Endpoint::udp(SocketAddr::new(server.addr.ip(), port));
        let (to, fresh) = match self.step {
            Step::Done => {
                self.restart(now);
                (server, false)
            }
            // A server of an older version, or a firewall before its second port.
            Step::First | Step::Second(_) if self.tries >= RETRY.len() => {
                self.end(NatKind::Unknown, now);
                return None;
            }
            Step::First => (server, false),
            Step::Second(port) => (second(port), false),
            Step::Fresh(_, used) if used >= FRESH => {
                self.judge(now);
                return None;
            }
            Step::Fresh(port, _) => (second(port), true),
        };
        let nonce = rng.next_u64();
        self.asked.push((nonce, self.step));
        match &mut self.step {
            Step::Fresh(_, used) => {
                *used += 1;
                self.at = Some(now + if *used == FRESH { RETRY[2] } else { FRESH_GAP });
            }
            Step::First | Step::Second(_) | Step::Done => {
                self.at = Some(now + RETRY[self.tries.min(RETRY.len() - 1)]);
                self.tries += 1;
            }
        }
        Some(Ask { to, nonce, fresh })
    }

    /// Whether the ports of fresh sockets, in the order they were used, are steps of a stair.
    fn judge(&mut self, now: Instant) {
        let ports: Vec<i32> = self.fresh.iter().map(|addr| i32::from(addr.port())).collect();
        let steps: Vec<i32> = ports.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let step = steps.first().copied().unwrap_or(0);
        let is_stair = ports.len() == FRESH && step != 0 && step.abs() <= STEP_MAX && steps.iter().all(|s| *s == step);
        let last = self.fresh.last().copied();
        let next = last.and_then(|last| Some(SocketAddr::new(last.ip(), last.port().checked_add_signed(step as i16)?)));
        match next.filter(|_| is_stair) {
            Some(next) => {
                self.report.predicted = Some(next);
                self.end(NatKind::Predictable(step as i16), now);
            }
            None => self.end(NatKind::Hard, now),
        }
    }

    fn end(&mut self, kind: NatKind, now: Instant) {
        // Silence of the second port does not unsay what it said before.
        if kind != NatKind::Unknown || self.report.observed.is_empty() {
            self.report.kind = kind;
            self.report.predicted = self.report.predicted.filter(|_| matches!(kind, NatKind::Predictable(_)));
        }
        (self.step, self.at) = (Step::Done, Some(now + AGAIN));
        self.asked.clear();
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    /// Runs an observer behind a NAT, which is told (question number, port asked, fresh) and gives the port it uses.
    fn find_out(mut nat: impl FnMut(usize, u16, bool) -> Option<u16>) -> (NatReport, Duration) {
        let (start, mut rng, mut observer) = (Instant::now(), StdRng::seed_from_u64(1), Observer::default());
        let mut now = start;
        observer.set_hosts([addr("192.168.1.2:1").ip()].into_iter(), now);
        observer.set_server(Some(Endpoint::udp(addr("198.51.100.1:43439"))), now);
        let mut count = 0;
        while observer.step != Step::Done {
            now = observer.poll_timeout().expect("it goes on").max(now);
            let Some(ask) = observer.handle_timeout(now, &mut rng) else { continue };
            if let Some(port) = nat(count, ask.to.addr.port(), ask.fresh) {
                let ip = if port == 5 { "192.168.1.2" } else { "203.0.113.1" };
                let seen = SocketAddr::new(ip.parse().expect("an address"), port);
                observer.reflected(ask.nonce ^ 1, addr("6.6.6.6:6"), 6, now);
                observer.reflected(ask.nonce, seen, 43440, now + Duration::from_millis(10));
            }
            count += 1;
        }
        (observer.poll_report().unwrap_or_default(), now - start)
    }

    #[test]
    fn each_kind_of_nat_is_told_by_the_ports_that_the_server_sees() {
        assert_eq!(find_out(|_, _, _| Some(5)).0.kind, NatKind::None, "seen with our own address");
        let (easy, took) = find_out(|_, _, _| Some(40_000));
        assert_eq!((easy.kind, easy.observed), (NatKind::Easy, vec![addr("203.0.113.1:40000")]));
        assert!(took < Duration::from_millis(50), "{took:?}");
        let stair = find_out(|count, _, _| Some(40_000 + 2 * count as u16)).0;
        assert_eq!((stair.kind, stair.predicted), (NatKind::Predictable(2), Some(addr("203.0.113.1:40010"))));
        let random = [40_000, 7_000, 61_000, 1_500, 33_000];
        let hard = find_out(|count, _, _| Some(random[count])).0;
        assert_eq!((hard.kind, hard.predicted, hard.observed.len()), (NatKind::Hard, None, 2));
    }

    #[test]
    fn lost_answers_are_asked_for_again_and_a_server_without_a_second_port_leaves_it_unknown() {
        let (lossy, _) = find_out(|count, _, _| (count % 2 == 1).then_some(40_000));
        assert_eq!(lossy.kind, NatKind::Easy);
        let (silent, took) = find_out(|_, port, _| (port == 43_439).then_some(40_000));
        assert_eq!((silent.kind, silent.observed.len()), (NatKind::Unknown, 1));
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(find_out(|_, _, _| None).0, NatReport::default());
    }
}
