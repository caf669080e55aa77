//! An account of every address tried towards one peer: what left for it, what came from it. For people who ask why;
//! nothing is decided by it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::ids::Route;
use crate::wire::control::Candidate;
use crate::wire::why::{TRIES_MAX, Try};

/// Addresses kept; of more, those that nothing came from and that were tried least go first.
const KEPT_MAX: usize = 32;

/// The account of one peer. Relayed ways are not in it.
#[derive(Debug, Default)]
pub struct Tried(BTreeMap<SocketAddr, Counts>);

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    sent: u32,
    answered: u32,
    arrived: u32,
}

impl Tried {
    /// A probe or an initiation leaves by this way.
    pub fn sent(&mut self, route: &Route) {
        self.count(route, |counts| &mut counts.sent);
    }

    /// A reply to a probe came by it.
    pub fn answered(&mut self, route: &Route) {
        self.count(route, |counts| &mut counts.answered);
    }

    /// An authentic datagram of the peer came by it.
    pub fn arrived(&mut self, route: &Route) {
        self.count(route, |counts| &mut counts.arrived);
    }

    /// A way that was good is so no more, or the peer has moved: what arrived before says nothing of now.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// The account for people, with what the peer announced; what led somewhere comes first. The kernel's errors are
    /// for the owner to add.
    pub fn list(&self, announced: &[Candidate]) -> Vec<Try> {
        let kind = |addr: &SocketAddr| announced.iter().find(|one| one.addr == *addr).map(|one| one.kind);
        let counted = self.0.iter().map(|(addr, counts)| Try {
            addr: *addr,
            kind: kind(addr),
            sent: counts.sent,
            answered: counts.answered,
            arrived: counts.arrived,
            errno: 0,
        });
        let unheard = announced.iter().filter(|one| !self.0.contains_key(&one.addr));
        let untried =
            unheard.map(|one| Try { addr: one.addr, kind: Some(one.kind), sent: 0, answered: 0, arrived: 0, errno: 0 });
        let mut list: Vec<Try> = counted.chain(untried).collect();
        list.sort_by_key(|one| std::cmp::Reverse((one.answered, one.arrived, one.kind.is_some(), one.sent)));
        list.truncate(TRIES_MAX);
        list
    }

    fn count(&mut self, route: &Route, which: impl Fn(&mut Counts) -> &mut u32) {
        if !route.is_direct() {
            return;
        }
        let addr = route.endpoint.addr;
        if self.0.len() >= KEPT_MAX && !self.0.contains_key(&addr) {
            let least = self.0.iter().min_by_key(|(_, counts)| (counts.answered, counts.arrived, counts.sent));
            let Some(least) = least.map(|(addr, _)| *addr) else { return };
            self.0.remove(&least);
        }
        let count = which(self.0.entry(addr).or_default());
        *count = count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ChannelToken, Endpoint};
    use crate::wire::control::CandidateKind;

    fn direct(port: u16) -> Route {
        Route::direct(Endpoint::udp(([192, 0, 2, 1], port).into()))
    }

    #[test]
    fn what_led_somewhere_comes_first_and_what_was_only_announced_is_there_too() {
        let mut tried = Tried::default();
        tried.sent(&direct(1));
        tried.sent(&direct(2));
        tried.answered(&direct(2));
        tried.arrived(&direct(2));
        tried.sent(&Route::relayed(direct(9).endpoint, ChannelToken(1)));
        let announced = [1, 3].map(|port| Candidate { kind: CandidateKind::Host, addr: direct(port).endpoint.addr });
        let list = tried.list(&announced);
        let ports: Vec<_> = list.iter().map(|one| (one.addr.port(), one.sent, one.kind.is_some())).collect();
        assert_eq!(ports, [(2, 1, false), (1, 1, true), (3, 0, true)]);
    }

    #[test]
    fn a_peer_with_a_thousand_addresses_costs_no_more_than_its_place_and_what_answers_stays() {
        let mut tried = Tried::default();
        tried.answered(&direct(7));
        (1000..2000).for_each(|port| tried.sent(&direct(port)));
        assert_eq!(tried.0.len(), KEPT_MAX);
        assert_eq!(tried.list(&[])[0].addr.port(), 7);
    }
}
