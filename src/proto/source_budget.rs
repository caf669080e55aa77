//! How much each network of origin is given in a second, where whoever asks is not known and may forge its address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

/// The budgets of the networks that have asked in this second.
#[derive(Debug, Clone)]
pub struct SourceBudget {
    per_second: u32,
    /// From more networks than this, nothing is taken in a second: memory stays bounded.
    sources_max: usize,
    second: u64,
    taken: BTreeMap<IpAddr, u32>,
}

impl SourceBudget {
    pub fn new(per_second: u32, sources_max: usize) -> Self {
        Self { per_second, sources_max, second: 0, taken: BTreeMap::new() }
    }

    /// Whether the network of `source`, a /24 or a /64, gets one more in this second, of whatever clock.
    pub fn take(&mut self, source: IpAddr, second: u64) -> bool {
        if self.second != second {
            self.second = second;
            self.taken.clear();
        }
        let net = match source {
            IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() & !0xff).into()),
            IpAddr::V6(ip) => IpAddr::V6(site_of(ip)),
        };
        if self.taken.len() >= self.sources_max && !self.taken.contains_key(&net) {
            return false;
        }
        let taken = self.taken.entry(net).or_insert(0);
        *taken += 1;
        *taken <= self.per_second
    }
}

/// The /64 of an address: whoever has one address of it has all.
pub fn site_of(ip: Ipv6Addr) -> Ipv6Addr {
    (ip.to_bits() & !u128::from(u64::MAX)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_one_budget_for_all_its_addresses_and_a_new_one_each_second() {
        let mut budget = SourceBudget::new(20, 1024);
        for (one, other) in [("192.0.2", "192.0.3.1"), ("2001:db8:0:1:", "2001:db8:0:2::1")] {
            let separator = if one.contains(':') { ":" } else { "." };
            let mut taken = |second| {
                let sources = (0..2000).map(|n| format!("{one}{separator}{}", n % 250).parse().expect("an address"));
                sources.filter(|source| budget.take(*source, second)).count()
            };
            assert_eq!((taken(5), taken(6)), (20, 20), "{one}");
            assert!(budget.take(other.parse().expect("an address"), 6));
        }
        for net in 0..5000_u32 {
            budget.take(IpAddr::V4((net << 8).into()), 7);
        }
        assert!(budget.taken.len() <= 1024);
    }
}
