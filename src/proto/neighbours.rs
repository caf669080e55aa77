//! When to say in a LAN that we are here, and what to make of others who say so.
//!
//! An announcement is a hint of whom to dial, which anybody in the LAN can forge: it is believed to be an address and
//! nothing more, only from private addresses, and so many a second.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::crypto::blake2s;
use crate::counters::DropReason;
use crate::ids::NodeId;
use crate::wire::lan::Announcement;

/// After the start, and after a change of our addresses; then every [`AGAIN`].
const SCHEDULE: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];
const AGAIN: Duration = Duration::from_secs(60);
/// Announcements looked at in a second.
const HEARD_PER_SECOND: u32 = 50;

/// What a node is called in announcements of a network.
pub fn node_hash(tag: u64, node: &NodeId) -> [u8; 8] {
    blake2s(&[b"eps1 lan", &tag.to_le_bytes(), &node.0])[..8].try_into().expect("eight bytes")
}

/// A member says that it is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    pub node: [u8; 8],
    pub addr: SocketAddr,
    /// Where our answer goes.
    pub answer: Option<SocketAddr>,
}

/// The core.
#[derive(Debug)]
pub struct Neighbours {
    tag: u64,
    own: [u8; 8],
    started: Instant,
    said: usize,
    at: Instant,
    heard: (Instant, u32),
}

impl Neighbours {
    /// Announces `own` in a network, beginning now.
    pub fn new(tag: u64, own: &NodeId, now: Instant) -> Self {
        Self { tag, own: node_hash(tag, own), started: now, said: 0, at: now, heard: (now, 0) }
    }

    /// Our addresses are others: from the beginning.
    pub fn changed(&mut self, now: Instant) {
        (self.started, self.said, self.at) = (now, 0, now);
    }

    pub fn poll_timeout(&self) -> Instant {
        self.at
    }

    /// Whether to announce now.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if now < self.at {
            return false;
        }
        self.said += 1;
        self.at = SCHEDULE.get(self.said).map_or(now + AGAIN, |after| (self.started + *after).max(now));
        true
    }

    /// What we say; `port` is our UDP port.
    pub fn announcement(&self, port: u16, is_answer: bool) -> Announcement {
        Announcement { is_answer, port, tag: self.tag, node: self.own }
    }

    /// Somebody said something; `None` if it was us.
    ///
    /// # Errors
    ///
    /// Why it was dropped; the caller counts it.
    pub fn hear(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) -> Result<Option<Heard>, DropReason> {
        let said = Announcement::parse(bytes).map_err(|_| DropReason::Malformed)?;
        if said.tag != self.tag {
            return Err(DropReason::OtherNetwork);
        }
        if said.node == self.own {
            return Ok(None);
        }
        if !is_private(from.ip()) {
            return Err(DropReason::UnknownPeer);
        }
        let (since, count) = &mut self.heard;
        if now.saturating_duration_since(*since) >= Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        let addr = SocketAddr::new(from.ip(), said.port);
        if *count > HEARD_PER_SECOND {
            return Err(DropReason::AnnouncementFlood);
        }
        Ok(Some(Heard { node: said.node, addr, answer: (!said.is_answer).then_some(from) }))
    }
}

/// Addresses that a LAN gives itself (RFC 1918, RFC 3927, RFC 4193).
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_at_once_after_one_and_three_seconds_and_then_every_minute() {
        let start = Instant::now();
        let mut one = Neighbours::new(7, &NodeId([1; 16]), start);
        let mut said = Vec::new();
        for _ in 0..5 {
            let now = one.poll_timeout();
            assert!(one.handle_timeout(now) && !one.handle_timeout(now));
            said.push((now - start).as_secs());
        }
        assert_eq!(said, [0, 1, 3, 63, 123]);
        one.changed(start + Duration::from_secs(200));
        assert_eq!(one.poll_timeout(), start + Duration::from_secs(200));
    }

    #[test]
    fn only_members_of_the_network_in_a_lan_are_heard_and_not_too_many() {
        let now = Instant::now();
        let (mut one, other) = (Neighbours::new(7, &NodeId([1; 16]), now), Neighbours::new(7, &NodeId([2; 16]), now));
        let from: SocketAddr = "192.168.1.9:5000".parse().expect("an address");
        let said = other.announcement(4000, false).to_bytes();
        let heard = one.hear(from, &said, now).expect("not dropped").expect("a neighbour");
        assert_eq!(heard.addr, "192.168.1.9:4000".parse().expect("an address"));
        assert_eq!((heard.node, heard.answer), (node_hash(7, &NodeId([2; 16])), Some(from)));
        let answer = one.hear(from, &other.announcement(4000, true).to_bytes(), now);
        assert!(answer.is_ok_and(|heard| heard.is_some_and(|heard| heard.answer.is_none())));
        let outside = "198.51.100.9:5000".parse().expect("an address");
        assert_eq!(one.hear(outside, &said, now), Err(DropReason::UnknownPeer), "no LAN");
        assert_eq!(one.hear(from, &one.announcement(1, false).to_bytes(), now), Ok(None), "ourselves");
        assert_eq!(one.hear(from, &said[1..], now), Err(DropReason::Malformed));
        let stranger = Neighbours::new(8, &NodeId([2; 16]), now).announcement(4000, false).to_bytes();
        assert_eq!(one.hear(from, &stranger, now), Err(DropReason::OtherNetwork));
        let flood: Vec<_> = (0..1000).map(|_| one.hear(from, &said, now)).collect();
        let count = flood.iter().filter(|heard| heard.is_ok()).count();
        assert!(count <= 50, "{count}");
        assert!(flood[count..].iter().all(|heard| *heard == Err(DropReason::AnnouncementFlood)));
        assert_ne!(node_hash(7, &NodeId([2; 16])), node_hash(8, &NodeId([2; 16])), "nobody is followed");
    }
}
