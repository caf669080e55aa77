//! What may be sent to addresses that nobody has answered from.
//!
//! Candidates are hearsay: a member could name anybody's address as its own, and a hundred members could name the same
//! one. So all that goes to an address without proof is counted by its IP, whoever wanted it: 20 datagrams in any
//! second, and in the long run few (S-20). An address that is only known as the source of an authentic datagram, which
//! somebody on the way could have sent on with a source of their choice, gets one probe for each datagram that came from
//! it, which is less than three times its bytes (S-19).

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Datagrams to one IP in any second.
pub const PER_SECOND: usize = 20;
/// Datagrams to one IP altogether, of which one is earned back every [`EARNED_EVERY`]: S-20 wants less than 2,000.
pub const ALTOGETHER: u32 = 1000;
pub const EARNED_EVERY: Duration = Duration::from_secs(10);
/// IPs an account is kept for; the one that has used least makes room, and of several the one that was quiet for longest:
/// who names many addresses does not get a new account for one that is used up.
const ACCOUNTS_MAX: usize = 1024;
/// Addresses a sighting is remembered for.
const SEEN_MAX: usize = 256;

struct Account {
    /// When the last ones went, oldest first.
    last: VecDeque<Instant>,
    left: u32,
    since: Instant,
}

/// The accounts.
#[derive(Default)]
pub struct Unproven {
    accounts: BTreeMap<IpAddr, Account>,
    /// Probes that datagrams from an address have paid for, and when the last one came.
    seen: BTreeMap<SocketAddr, (u32, Instant)>,
}

impl Unproven {
    /// Whether one more datagram may go there; counts it if so.
    pub fn may_send(&mut self, to: IpAddr, now: Instant) -> bool {
        if !self.accounts.contains_key(&to) && self.accounts.len() >= ACCOUNTS_MAX {
            let least = |(_, account): &(&IpAddr, &Account)| (ALTOGETHER - account.left, account.last.back().copied());
            let least = self.accounts.iter().min_by_key(least).map(|(ip, _)| *ip);
            least.and_then(|ip| self.accounts.remove(&ip));
        }
        let fresh = || Account { last: VecDeque::with_capacity(PER_SECOND), left: ALTOGETHER, since: now };
        let account = self.accounts.entry(to).or_insert_with(fresh);
        let earned = now.saturating_duration_since(account.since).as_secs() / EARNED_EVERY.as_secs();
        if earned > 0 {
            account.left = account.left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(ALTOGETHER);
            account.since += EARNED_EVERY * u32::try_from(earned).unwrap_or(u32::MAX);
        }
        let a_second_ago = |at: &Instant| now.saturating_duration_since(*at) >= Duration::from_secs(1);
        while account.last.front().is_some_and(a_second_ago) {
            account.last.pop_front();
        }
        if account.left == 0 || account.last.len() >= PER_SECOND {
            return false;
        }
        account.left -= 1;
        account.last.push_back(now);
        true
    }

    /// Somebody there answered a challenge.
    pub fn proven(&mut self, ip: IpAddr) {
        self.accounts.remove(&ip);
    }

    /// An authentic datagram came from an address that nobody announced.
    pub fn seen(&mut self, from: SocketAddr, now: Instant) {
        if !self.seen.contains_key(&from) && self.seen.len() >= SEEN_MAX {
            let oldest = self.seen.iter().min_by_key(|(_, (_, at))| *at).map(|(addr, _)| *addr);
            oldest.and_then(|addr| self.seen.remove(&addr));
        }
        let (paid, at) = self.seen.entry(from).or_insert((0, now));
        (*paid, *at) = (paid.saturating_add(1).min(PER_SECOND as u32), now);
    }

    /// Whether a datagram from there pays for a probe.
    pub fn is_paid(&mut self, to: SocketAddr) -> bool {
        self.seen.get_mut(&to).is_some_and(|(paid, _)| {
            let may = *paid > 0;
            *paid = paid.saturating_sub(1);
            may
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s_20_an_address_without_proof_gets_twenty_a_second_and_less_than_two_thousand_in_two_hours() {
        let (start, mut unproven) = (Instant::now(), Unproven::default());
        let victim: IpAddr = "192.0.2.66".parse().expect("an address");
        let mut sent = Vec::new();
        // Everybody wants to send there, a hundred times a second.
        for step in 0..2 * 3600 * 100 {
            let now = start + Duration::from_millis(10 * step);
            if unproven.may_send(victim, now) {
                sent.push(now);
            }
        }
        let crowded =
            sent.windows(PER_SECOND + 1).filter(|few| few[PER_SECOND] - few[0] < Duration::from_secs(1)).count();
        println!("S-20: {} in two hours, {crowded} times more than {PER_SECOND} in a second", sent.len());
        assert_eq!(crowded, 0);
        assert!(sent.len() < 2000, "{}", sent.len());
        for other in 0..5_000_u32 {
            unproven.may_send((0x0a00_0000 + other).to_be_bytes().into(), start + Duration::from_secs(7200));
        }
        let more = (0..50).filter(|_| unproven.may_send(victim, start + Duration::from_secs(7200))).count();
        assert!(more <= 1, "the account is kept, and has earned one: {more}");
        unproven.proven(victim);
        assert!(unproven.may_send(victim, start + Duration::from_secs(7300)), "it answered");
    }

    #[test]
    fn s_19_who_was_only_seen_gets_a_probe_for_each_datagram_and_tables_do_not_grow() {
        let (now, mut unproven) = (Instant::now(), Unproven::default());
        let from: SocketAddr = "192.0.2.66:9".parse().expect("an address");
        assert!(!unproven.is_paid(from));
        unproven.seen(from, now);
        assert!(unproven.is_paid(from) && !unproven.is_paid(from));
        for port in 1..2000 {
            unproven.seen(SocketAddr::new(from.ip(), port), now + Duration::from_millis(port.into()));
            unproven.may_send([10, 0, (port >> 8) as u8, port as u8].into(), now + Duration::from_millis(port.into()));
        }
        assert_eq!((unproven.seen.len(), unproven.accounts.len()), (SEEN_MAX, ACCOUNTS_MAX));
    }
}
