//! Which of several members that bridge one ethcloud into one network does it: all of them would be a loop.
//!
//! Each of them tells the others so every second, through the network, where it is known who speaks; what is said in the
//! cloud is nobody's word. One with a lower key goes first, and a higher one holds its port back for as long as it hears
//! it. A port opens after [`LISTEN`] at the earliest, so that a member that comes later does not begin with a loop.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::ids::PublicKey;

/// How often the others are told.
pub const TELL: Duration = Duration::from_secs(1);
/// How long a port waits before it opens: two tellings of another one.
pub const LISTEN: Duration = Duration::from_secs(2);
/// Who says nothing for as long does not bridge any more; two tellings may be lost.
pub const GONE: Duration = Duration::from_millis(3_500);
/// Others that are remembered; each is a member with the right to bridge.
const RIVALS_MAX: usize = 64;
/// An answer to one that should give way goes at once, but not more often than this.
const ANSWER: Duration = Duration::from_millis(250);

/// What a port does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Port {
    /// It has no peers yet, or waits to hear of others.
    #[default]
    Waiting,
    /// Frames cross.
    Open,
    /// That member bridges the cloud.
    Held(PublicKey),
}

/// The core. After each input look at [`Rivals::port`], and tell the others if [`Rivals::take_tell`] says so.
#[derive(Debug)]
pub struct Rivals {
    own: PublicKey,
    heard: BTreeMap<PublicKey, Instant>,
    /// Since when there is something to bridge, and the right to.
    since: Option<Instant>,
    /// Without the right nothing crosses to the network, and no loop can be.
    has_right: bool,
    told_at: Option<Instant>,
    tell: bool,
    port: Port,
}

impl Rivals {
    pub fn new(own: PublicKey) -> Self {
        let (heard, since) = (BTreeMap::new(), None);
        Self { own, heard, since, has_right: false, told_at: None, tell: false, port: Port::Waiting }
    }

    /// Whether this member has the right to bridge, and the cloud a peer.
    pub fn set(&mut self, has_right: bool, has_peers: bool, now: Instant) {
        self.has_right = has_right;
        match (has_right && has_peers, self.since) {
            (true, None) => {
                self.since = Some(now);
                self.tell = true;
            }
            (false, Some(_)) => self.since = None,
            (true, Some(_)) | (false, None) => {}
        }
        self.look(now);
    }

    /// Another member with the right to bridge has said whether it bridges the same cloud.
    pub fn heard(&mut self, key: PublicKey, bridges: bool, now: Instant) {
        if !bridges {
            self.heard.remove(&key);
        } else if self.heard.len() < RIVALS_MAX || self.heard.contains_key(&key) {
            self.heard.insert(key, now);
            let lately = self.told_at.is_some_and(|at| now.saturating_duration_since(at) < ANSWER);
            self.tell |= key > self.own && self.since.is_some() && !lately;
        }
        self.look(now);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let gone = self.heard.values().map(|at| *at + GONE).min();
        let tell = self.since.map(|since| self.told_at.map_or(since, |at| at + TELL));
        let opens = self.since.filter(|_| self.port == Port::Waiting).map(|since| since + LISTEN);
        gone.into_iter().chain(tell).chain(opens).min()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.tell |= self.since.is_some() && self.told_at.is_none_or(|at| now >= at + TELL);
        self.look(now);
    }

    /// Whether the others are to be told now that this member bridges.
    pub fn take_tell(&mut self, now: Instant) -> bool {
        let tell = std::mem::take(&mut self.tell);
        if tell {
            self.told_at = Some(now);
        }
        tell
    }

    pub fn port(&self) -> Port {
        self.port
    }

    fn look(&mut self, now: Instant) {
        self.heard.retain(|_, at| now.saturating_duration_since(*at) < GONE);
        let first = self.heard.keys().next().filter(|key| **key < self.own);
        self.port = match (self.since, first) {
            _ if !self.has_right => Port::Open,
            (None, _) => Port::Waiting,
            (Some(_), Some(first)) => Port::Held(*first),
            (Some(since), None) if now.saturating_duration_since(since) < LISTEN => Port::Waiting,
            (Some(_), None) => Port::Open,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members that hear each other, but for what is lost, by the order of their keys.
    struct Network {
        members: Vec<Rivals>,
        now: Instant,
    }

    impl Network {
        fn new(count: u8) -> Self {
            Self { members: (0..count).map(|key| Rivals::new(PublicKey([key; 32]))).collect(), now: Instant::now() }
        }

        fn start(&mut self, number: usize) {
            self.members[number].set(true, true, self.now);
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                for from in 0..self.members.len() {
                    let due = self.members[from].poll_timeout().is_some_and(|at| at <= self.now);
                    if due {
                        self.members[from].handle_timeout(self.now);
                    }
                    if self.members[from].take_tell(self.now) {
                        let key = self.members[from].own;
                        let others = self.members.iter_mut().filter(|member| member.own != key);
                        others.for_each(|member| member.heard(key, true, self.now));
                    }
                }
                assert!(self.open() <= 1, "two bridge at the same time");
                self.now += Duration::from_millis(10);
            }
        }

        fn open(&self) -> usize {
            self.members.iter().filter(|member| member.port() == Port::Open && member.has_right).count()
        }

        fn ports(&self) -> Vec<Port> {
            self.members.iter().map(Rivals::port).collect()
        }
    }

    #[test]
    fn one_of_three_bridges_whoever_was_first_and_the_next_takes_over() {
        let first = Port::Held(PublicKey([0; 32]));
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut network = Network::new(3);
            for number in order {
                network.start(number);
                network.run(Duration::from_secs(5));
                assert_eq!(network.open(), 1, "{order:?}");
            }
            assert_eq!(network.ports(), [Port::Open, first, first]);
            // Killed: it says nothing any more.
            network.members.remove(0);
            network.run(GONE + TELL);
            assert_eq!(network.ports(), [Port::Open, Port::Held(PublicKey([1; 32]))]);
        }
    }

    #[test]
    fn who_says_that_it_stops_is_followed_at_once() {
        let mut network = Network::new(2);
        (0..2).for_each(|number| network.start(number));
        network.run(Duration::from_secs(5));
        assert_eq!(network.ports()[1], Port::Held(PublicKey([0; 32])));
        network.members.remove(0);
        let now = network.now;
        network.members[0].heard(PublicKey([0; 32]), false, now);
        assert_eq!(network.ports(), [Port::Open]);
    }

    #[test]
    fn without_the_right_a_port_is_open_and_nobody_is_told() {
        let mut network = Network::new(1);
        let now = network.now;
        network.members[0].set(false, true, now);
        assert_eq!((network.ports(), network.members[0].take_tell(now)), (vec![Port::Open], false));
        network.members[0].set(true, false, now);
        assert_eq!((network.ports(), network.members[0].poll_timeout()), (vec![Port::Waiting], None));
    }
}
