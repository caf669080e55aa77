//! The address pool of a network: who has which address, and which is next.
//!
//! A lease is bound to a key for good: it ends when the member is removed, not with time. Free addresses are kept
//! as ranges, so that a /8 costs no more than a /24 and neither is ever scanned. The pool keeps nothing on disk;
//! after a restart it is filled from the member records.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use blake2::{Blake2s256, Digest};
use ipnet::{Ipv4Net, Ipv6Net};
use rand::{Rng, RngExt};

use crate::ids::{MacAddr, NetworkId, PublicKey};
use crate::proto::records::MemberRecord;

/// How many removed members' addresses are remembered, so that they get them again if these are still free.
pub const REMEMBERED_MAX: usize = 4_096;

/// What a pool is made of.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// Prefix length 8 to 30; host bits are ignored.
    pub network: Ipv4Net,
    /// A unique local prefix (RFC 4193) of length 48 or more, with at least as many host bits as `network`.
    pub network6: Option<Ipv6Net>,
    pub order: Order,
    /// Addresses kept for members of these names.
    pub pins: BTreeMap<String, Ipv4Addr>,
    pub network_id: NetworkId,
}

/// Which free address comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Any, so that an address does not tell who came first and two networks rarely use the same.
    Random,
    /// The lowest.
    Sequential,
}

/// What a member is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub ip4: Ipv4Addr,
    /// The IPv6 network with the host number of `ip4`.
    pub ip6: Option<Ipv6Addr>,
    /// Locally administered and unicast, derived from network and key.
    pub mac: MacAddr,
}

/// The pool's settings make no sense; says which, and what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    #[error("the network {0} has no room for members or too much; use a prefix length from 8 to 30")]
    PrefixLength(Ipv4Net),
    #[error("{0} is no unique local network; take one from fd00::/8, with a prefix length of 48 or more")]
    NotUniqueLocal(Ipv6Net),
    #[error("{network6} has fewer host bits than {network}; use a prefix length of {longest} or less")]
    Network6TooSmall { network6: Ipv6Net, network: Ipv4Net, longest: u8 },
    #[error("the pin {ip} of `{name}` is no host address of {network}")]
    PinOutside { name: String, ip: Ipv4Addr, network: Ipv4Net },
    #[error("{ip} is pinned to both `{first}` and `{second}`; an address belongs to one member")]
    PinnedTwice { ip: Ipv4Addr, first: String, second: String },
    #[error("the pinned name `{name}` is not valid; {NAME_RULE}")]
    InvalidPinName { name: String },
}

/// Why a lease was not granted or restored; says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    #[error(
        "all {given} addresses of {network} are taken; kick a member that has left or start the server with a \
         larger --network"
    )]
    PoolExhausted {
        network: Ipv4Net,
        /// Addresses leased or pinned, which are all there are.
        given: u64,
    },
    #[error("the name `{name}` belongs to another member; choose another --name or kick that member")]
    NameTaken { name: String },
    #[error("the address {ip} pinned to `{name}` is in use by `{holder}`; kick `{holder}` or pin another address")]
    PinConflict { name: String, ip: Ipv4Addr, holder: String },
    #[error("the name `{name}` is not valid; {NAME_RULE}")]
    InvalidName { name: String },
    #[error("the address {ip} of `{name}` is no host address of {network}; kick the member or restore --network")]
    OutsideNetwork { name: String, ip: Ipv4Addr, network: Ipv4Net },
    #[error("the record of `{name}` has a key, name, address or MAC that another record has; kick one of the members")]
    Duplicate { name: String },
}

/// The address pool.
#[derive(Debug, Clone)]
pub struct Pool {
    network: Ipv4Net,
    network6: Option<Ipv6Net>,
    order: Order,
    network_id: NetworkId,
    /// Host numbers by name, and names by host number.
    pins: BTreeMap<String, u32>,
    pinned: BTreeMap<u32, String>,
    /// Neither leased nor pinned.
    free: Ranges,
    members: BTreeMap<PublicKey, Member>,
    by_host: BTreeMap<u32, PublicKey>,
    by_name: BTreeMap<String, PublicKey>,
    by_mac: BTreeMap<MacAddr, PublicKey>,
    remembered: Memory,
}

#[derive(Debug, Clone)]
struct Member {
    name: String,
    lease: Lease,
}

impl Pool {
    /// Makes a pool with nothing leased.
    ///
    /// # Errors
    /// If networks or pins do not fit.
    pub fn new(config: PoolConfig) -> Result<Self, PoolError> {
        let PoolConfig { network, network6, order, pins, network_id } = config;
        let network = network.trunc();
        if !(8..=30).contains(&network.prefix_len()) {
            return Err(PoolError::PrefixLength(network));
        }
        let network6 = network6.map(|network6| check_network6(network6.trunc(), network)).transpose()?;

        let mut pool = Self {
            network,
            network6,
            order,
            network_id,
            pins: BTreeMap::new(),
            pinned: BTreeMap::new(),
            free: Ranges::new(1, hosts(network)),
            members: BTreeMap::new(),
            by_host: BTreeMap::new(),
            by_name: BTreeMap::new(),
            by_mac: BTreeMap::new(),
            remembered: Memory::default(),
        };
        for (name, ip) in pins {
            pool.pin(name, ip)?;
        }
        Ok(pool)
    }

    /// Takes a member up again as it was recorded. Its address holds even if it has been pinned to another name
    /// since; its IPv6 address is computed anew.
    ///
    /// # Errors
    /// `OutsideNetwork` if the network is another than at that time, `Duplicate` if two records cannot both hold.
    /// The pool is then unchanged.
    pub fn restore(&mut self, record: &MemberRecord) -> Result<(), LeaseError> {
        let name = record.name.clone();
        let Some(host) = self.host_of(record.ip4) else {
            return Err(LeaseError::OutsideNetwork { name, ip: record.ip4, network: self.network });
        };
        if self.members.contains_key(&record.key)
            || self.by_name.contains_key(&name)
            || self.by_host.contains_key(&host)
            || self.by_mac.contains_key(&record.mac)
        {
            return Err(LeaseError::Duplicate { name });
        }
        self.insert(record.key, name, host, record.mac);
        Ok(())
    }

    /// Grants a lease to a member: the one it has, or the address pinned to its name, or the one it had before it
    /// was removed, or a free one. A member that has a lease keeps it under a new name too, pinned or not.
    ///
    /// # Errors
    /// `InvalidName`, `NameTaken`, `PinConflict` or `PoolExhausted`. The pool is then unchanged.
    pub fn grant(&mut self, key: PublicKey, name: &str, rng: &mut (impl Rng + ?Sized)) -> Result<Lease, LeaseError> {
        if !is_valid_name(name) {
            return Err(LeaseError::InvalidName { name: name.to_owned() });
        }
        if self.by_name.get(name).is_some_and(|holder| *holder != key) {
            return Err(LeaseError::NameTaken { name: name.to_owned() });
        }
        if let Some(member) = self.members.get_mut(&key) {
            if member.name != name {
                self.by_name.remove(&member.name);
                name.clone_into(&mut member.name);
                self.by_name.insert(name.to_owned(), key);
            }
            return Ok(member.lease);
        }
        let host = self.choose(key, name, rng)?;
        let mac = self.choose_mac(key);
        Ok(self.insert(key, name.to_owned(), host, mac))
    }

    /// Ends a lease, and says which it was. The address is remembered for that key.
    pub fn release(&mut self, key: PublicKey) -> Option<Lease> {
        let Member { name, lease } = self.members.remove(&key)?;
        self.by_name.remove(&name);
        self.by_mac.remove(&lease.mac);
        if let Some(host) = self.host_of(lease.ip4) {
            self.by_host.remove(&host);
            if !self.pinned.contains_key(&host) {
                self.free.give(host);
            }
            self.remembered.put(key, host);
        }
        Some(lease)
    }

    /// The lease of a member.
    pub fn lease(&self, key: PublicKey) -> Option<Lease> {
        self.members.get(&key).map(|member| member.lease)
    }

    /// The member an address is leased to.
    pub fn holder(&self, ip4: Ipv4Addr) -> Option<PublicKey> {
        self.by_host.get(&self.host_of(ip4)?).copied()
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many addresses there are to lease: all but the network's own and the broadcast address.
    pub fn capacity(&self) -> u64 {
        u64::from(hosts(self.network))
    }

    pub fn network(&self) -> Ipv4Net {
        self.network
    }

    pub fn network6(&self) -> Option<Ipv6Net> {
        self.network6
    }

    /// Pins other addresses from here on. Leases hold, pinned or not.
    ///
    /// # Errors
    /// If the pins do not fit. The pool is then unchanged.
    pub fn repin(&mut self, pins: BTreeMap<String, Ipv4Addr>) -> Result<(), PoolError> {
        let mut other = self.clone();
        other.pins.clear();
        for host in std::mem::take(&mut other.pinned).into_keys() {
            if !other.by_host.contains_key(&host) {
                other.free.give(host);
            }
        }
        for (name, ip) in pins {
            other.pin(name, ip)?;
        }
        *self = other;
        Ok(())
    }

    fn pin(&mut self, name: String, ip: Ipv4Addr) -> Result<(), PoolError> {
        if !is_valid_name(&name) {
            return Err(PoolError::InvalidPinName { name });
        }
        let Some(host) = self.host_of(ip) else {
            return Err(PoolError::PinOutside { name, ip, network: self.network });
        };
        if let Some(first) = self.pinned.get(&host) {
            return Err(PoolError::PinnedTwice { ip, first: first.clone(), second: name });
        }
        self.free.take(host);
        self.pinned.insert(host, name.clone());
        self.pins.insert(name, host);
        Ok(())
    }

    fn choose(&self, key: PublicKey, name: &str, rng: &mut (impl Rng + ?Sized)) -> Result<u32, LeaseError> {
        if let Some(host) = self.pins.get(name) {
            return match self.by_host.get(host).and_then(|holder| self.members.get(holder)) {
                Some(holder) => Err(LeaseError::PinConflict {
                    name: name.to_owned(),
                    ip: self.ip4(*host),
                    holder: holder.name.clone(),
                }),
                None => Ok(*host),
            };
        }
        if let Some(host) = self.remembered.by_key.get(&key).map(|(_, host)| *host).filter(|host| self.free.has(*host))
        {
            return Ok(host);
        }
        let host = match self.order {
            Order::Sequential => self.free.first_from(1),
            Order::Random => self.choose_random(rng),
        };
        host.ok_or_else(|| LeaseError::PoolExhausted { network: self.network, given: self.capacity() })
    }

    /// Uniform over the free addresses as long as a probe hits one; in a network that is nearly full the walk from
    /// a random start favours addresses behind long runs of taken ones, which does no harm.
    fn choose_random(&self, rng: &mut (impl Rng + ?Sized)) -> Option<u32> {
        let hosts = hosts(self.network);
        for _ in 0..PROBES {
            let host = rng.random_range(1..=hosts);
            if self.free.has(host) {
                return Some(host);
            }
        }
        self.free.first_from(rng.random_range(1..=hosts)).or_else(|| self.free.first_from(1))
    }

    /// The first address of the key's series that nobody has. One in 2^46 pairs of keys needs the second.
    fn choose_mac(&self, key: PublicKey) -> MacAddr {
        (0..=u32::MAX)
            .map(|attempt| derive_mac(self.network_id, key, attempt))
            .find(|mac| !self.by_mac.contains_key(mac))
            .expect("a pool has fewer than 2^24 members")
    }

    fn insert(&mut self, key: PublicKey, name: String, host: u32, mac: MacAddr) -> Lease {
        let ip6 = self.network6.map(|network6| Ipv6Addr::from(u128::from(network6.addr()) | u128::from(host)));
        let lease = Lease { ip4: self.ip4(host), ip6, mac };
        self.free.take(host);
        self.remembered.remove(key);
        self.by_host.insert(host, key);
        self.by_name.insert(name.clone(), key);
        self.by_mac.insert(mac, key);
        self.members.insert(key, Member { name, lease });
        lease
    }

    fn ip4(&self, host: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network.addr()) | host)
    }

    /// The host number of an address; `None` outside the network and for its first and last address.
    fn host_of(&self, ip: Ipv4Addr) -> Option<u32> {
        let host = u32::from(ip) & u32::from(self.network.hostmask());
        (self.network.contains(&ip) && (1..=hosts(self.network)).contains(&host)).then_some(host)
    }
}

/// Whether a member may be called so: 1 to 63 letters, digits, `-`, `_` and `.` of ASCII, a letter or digit first.
pub fn is_valid_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// The station address number `attempt` of a key in a network, locally administered and unicast
/// (IEEE 802-2014, 8.4).
fn derive_mac(network_id: NetworkId, key: PublicKey, attempt: u32) -> MacAddr {
    let mut hash =
        Blake2s256::new().chain_update(b"eps1 mac").chain_update(network_id.0.to_le_bytes()).chain_update(key.0);
    if attempt > 0 {
        hash.update(attempt.to_le_bytes());
    }
    let digest = hash.finalize();
    let mut mac = [0; 6];
    mac.copy_from_slice(&digest[..6]);
    mac[0] = mac[0] & !0b01 | 0b10;
    MacAddr(mac)
}

fn check_network6(network6: Ipv6Net, network: Ipv4Net) -> Result<Ipv6Net, PoolError> {
    let longest = 128 - (32 - network.prefix_len());
    if !network6.addr().is_unique_local() || network6.prefix_len() < 48 {
        Err(PoolError::NotUniqueLocal(network6))
    } else if network6.prefix_len() > longest {
        Err(PoolError::Network6TooSmall { network6, network, longest })
    } else {
        Ok(network6)
    }
}

/// The highest host number, which is also how many there are: the lowest is 1.
fn hosts(network: Ipv4Net) -> u32 {
    u32::from(network.hostmask()) - 1
}

/// A set of numbers as ranges that neither overlap nor touch: first to last.
#[derive(Debug, Clone)]
struct Ranges(BTreeMap<u32, u32>);

impl Ranges {
    fn new(first: u32, last: u32) -> Self {
        Self(BTreeMap::from([(first, last)]))
    }

    fn has(&self, number: u32) -> bool {
        self.around(number).is_some()
    }

    /// The lowest member that is `from` or above.
    fn first_from(&self, from: u32) -> Option<u32> {
        if self.has(from) { Some(from) } else { self.0.range(from..).next().map(|(first, _)| *first) }
    }

    /// Takes a number out; does nothing if it is not in.
    fn take(&mut self, number: u32) {
        let Some((first, last)) = self.around(number) else { return };
        self.0.remove(&first);
        if first < number {
            self.0.insert(first, number - 1);
        }
        if number < last {
            self.0.insert(number + 1, last);
        }
    }

    /// Puts a number in; does nothing if it is in.
    fn give(&mut self, number: u32) {
        if self.has(number) {
            return;
        }
        let below = number.checked_sub(1).and_then(|below| self.around(below));
        let above = number.checked_add(1).and_then(|above| self.around(above));
        if let Some((first, _)) = above {
            self.0.remove(&first);
        }
        self.0.insert(below.map_or(number, |(first, _)| first), above.map_or(number, |(_, last)| last));
    }

    fn around(&self, number: u32) -> Option<(u32, u32)> {
        let (first, last) = self.0.range(..=number).next_back()?;
        (number <= *last).then_some((*first, *last))
    }
}

/// The last addresses of removed members; the oldest is forgotten first.
#[derive(Debug, Clone, Default)]
struct Memory {
    /// When, in releases, and which host number.
    by_key: BTreeMap<PublicKey, (u64, u32)>,
    by_age: BTreeMap<u64, PublicKey>,
    releases: u64,
}

impl Memory {
    fn put(&mut self, key: PublicKey, host: u32) {
        self.remove(key);
        self.by_key.insert(key, (self.releases, host));
        self.by_age.insert(self.releases, key);
        self.releases += 1;
        if self.by_age.len() > REMEMBERED_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.by_key.remove(&oldest);
        }
    }

    fn remove(&mut self, key: PublicKey) {
        if let Some((age, _)) = self.by_key.remove(&key) {
            self.by_age.remove(&age);
        }
    }
}

/// Random addresses tried before walking: in a pool that is nine tenths full 64 of them miss once in 800 grants.
const PROBES: usize = 64;

const NAME_RULE: &str = "use 1 to 63 letters, digits, `-`, `_` and `.`, and begin with a letter or digit";

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};
    use std::time::{Duration, Instant};

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn other_pins_free_the_old_ones_and_leave_leases_alone() {
        let pins = BTreeMap::from([("printer".to_owned(), ip("192.168.43.1")), ("nas".to_owned(), ip("192.168.43.2"))]);
        let mut pool = Pool::new(PoolConfig { pins, ..config("192.168.43.0/24", Order::Sequential) }).expect("a pool");
        let mut rng = StdRng::seed_from_u64(1);
        let mut lease = |pool: &mut Pool, n: u8, name: &str| {
            pool.grant(PublicKey([n; 32]), name, &mut rng).expect("a lease").ip4.to_string()
        };
        assert_eq!(lease(&mut pool, 1, "nas"), "192.168.43.2");
        let wrong = BTreeMap::from([("x".to_owned(), ip("10.0.0.1"))]);
        assert!(pool.repin(wrong).is_err());
        assert_eq!(lease(&mut pool, 2, "first"), "192.168.43.3", "the printer's is still kept");
        pool.repin(BTreeMap::from([("camera".to_owned(), ip("192.168.43.4"))])).expect("good pins");
        assert_eq!(lease(&mut pool, 3, "second"), "192.168.43.1", "the printer's is free");
        assert_eq!(lease(&mut pool, 4, "third"), "192.168.43.5", "the camera's is kept");
        assert_eq!(lease(&mut pool, 5, "camera"), "192.168.43.4");
        assert_eq!(lease(&mut pool, 1, "nas"), "192.168.43.2");
    }

    #[test]
    fn l_04_a_24_gives_254_leases_and_one_more_after_a_release() {
        for order in [Order::Random, Order::Sequential] {
            let mut rng = StdRng::seed_from_u64(4);
            let mut pool = pool("192.168.43.0/24", order);
            let leases: BTreeSet<_> =
                (0..254).map(|n| grant(&mut pool, n, &mut rng).expect("there is room").ip4).collect();
            assert_eq!(leases.len(), 254);
            assert!(!leases.contains(&ip("192.168.43.0")) && !leases.contains(&ip("192.168.43.255")));
            let refused = grant(&mut pool, 254, &mut rng).expect_err("the pool is full");
            assert_eq!(
                refused.to_string(),
                "all 254 addresses of 192.168.43.0/24 are taken; kick a member that has left or start the server \
                 with a larger --network"
            );
            let freed = pool.release(key(100)).expect("a lease");
            assert_eq!(grant(&mut pool, 254, &mut rng).map(|lease| lease.ip4), Ok(freed.ip4));
            assert_eq!(pool.len(), 254);
        }
    }

    #[test]
    fn l_05_addresses_hold_through_joins_leaves_crashes_and_renewals() {
        let runs = [
            ("192.168.43.0/24", Order::Random, 500, 51),
            ("192.168.43.0/24", Order::Sequential, 500, 52),
            ("10.1.2.8/29", Order::Random, 20, 53),
            ("10.0.0.0/8", Order::Random, 9_000, 54),
        ];
        for (network, order, keys, seed) in runs {
            let figure = walk(network, order, keys, seed);
            println!("L-05: {network} {order:?}, seed {seed}: {figure}");
        }
    }

    #[test]
    fn l_07_sequential_gives_the_lowest_free_address_each_time() {
        let mut rng = StdRng::seed_from_u64(7);
        let pins = BTreeMap::from([("printer".to_owned(), ip("192.168.43.3"))]);
        let mut pool = Pool::new(PoolConfig { pins, ..config("192.168.43.0/24", Order::Sequential) }).expect("a pool");
        let mut last = |pool: &mut Pool, n| grant(pool, n, &mut rng).expect("there is room").ip4.octets()[3];
        assert_eq!([1, 2, 3, 4].map(|n| last(&mut pool, n)), [1, 2, 4, 5]);
        pool.release(key(4));
        pool.release(key(2));
        assert_eq!([5, 6, 7].map(|n| last(&mut pool, n)), [2, 5, 6]);
        assert_eq!(last(&mut pool, 1), 1, "a member keeps its address");
    }

    #[test]
    fn each_prefix_length_gives_all_its_host_addresses_and_no_other() {
        for (network, capacity) in [
            ("10.0.0.0/8", 16_777_214),
            ("172.16.0.0/16", 65_534),
            ("192.168.43.0/24", 254),
            ("10.1.2.8/29", 6),
            ("10.1.2.12/30", 2),
        ] {
            for order in [Order::Random, Order::Sequential] {
                let mut rng = StdRng::seed_from_u64(8);
                let mut pool = pool(network, order);
                assert_eq!(pool.capacity(), capacity);
                let granted = capacity.min(70_000) as u32;
                let mut seen = BTreeSet::new();
                for n in 0..granted {
                    let lease = grant(&mut pool, n, &mut rng).expect("there is room");
                    let net = pool.network();
                    assert!(net.contains(&lease.ip4) && lease.ip4 != net.network() && lease.ip4 != net.broadcast());
                    assert!(seen.insert(lease.ip4), "{} twice", lease.ip4);
                }
                let full = u64::from(granted) == capacity;
                assert_eq!(grant(&mut pool, granted, &mut rng).is_err(), full, "{network}");
            }
        }
        for network in ["0.0.0.0/0", "10.0.0.0/7", "10.0.0.0/31", "10.0.0.1/32"] {
            assert!(matches!(Pool::new(config(network, Order::Random)), Err(PoolError::PrefixLength(_))), "{network}");
        }
    }

    #[test]
    fn a_hundred_thousand_grants_need_no_scan() {
        for (network, order) in
            [("10.0.0.0/8", Order::Random), ("10.0.0.0/8", Order::Sequential), ("10.0.0.0/15", Order::Random)]
        {
            let mut rng = StdRng::seed_from_u64(5);
            let mut pool = pool(network, order);
            let names: Vec<_> = (0..100_000u32).map(name).collect();
            let start = Instant::now();
            for (n, name) in (0u32..).zip(&names) {
                pool.grant(key(n), name, &mut rng).expect("there is room");
            }
            let took = start.elapsed();
            println!("100,000 grants in {network}, {order:?}: {took:?}");
            // A quarter of a second when idle; a scan would take minutes.
            assert!(took < Duration::from_secs(60), "{took:?}");
        }
    }

    #[test]
    fn random_addresses_are_spread_evenly() {
        let mut rng = StdRng::seed_from_u64(6);
        let mut counts = [0u32; 14];
        for _ in 0..14_000 {
            let mut pool = pool("10.0.0.0/28", Order::Random);
            let lease = grant(&mut pool, 1, &mut rng).expect("there is room");
            counts[usize::from(lease.ip4.octets()[3]) - 1] += 1;
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_pin_is_for_its_name_only() {
        let mut rng = StdRng::seed_from_u64(1);
        let pins = BTreeMap::from([("printer".to_owned(), ip("10.1.2.9"))]);
        let config = PoolConfig { pins, ..config("10.1.2.8/29", Order::Random) };
        let mut pool = Pool::new(config.clone()).expect("a pool");
        for n in 0..5 {
            assert_ne!(grant(&mut pool, n, &mut rng).expect("there is room").ip4, ip("10.1.2.9"));
        }
        assert!(matches!(grant(&mut pool, 5, &mut rng), Err(LeaseError::PoolExhausted { given: 6, .. })));
        assert_eq!(pool.grant(key(9), "printer", &mut rng).map(|lease| lease.ip4), Ok(ip("10.1.2.9")));
        assert!(matches!(pool.grant(key(8), "printer", &mut rng), Err(LeaseError::NameTaken { .. })));
        pool.release(key(9));
        assert!(grant(&mut pool, 5, &mut rng).is_err(), "a released pin stays a pin");

        let mut pool = Pool::new(config).expect("a pool");
        pool.restore(&record(3, "laptop", "10.1.2.9")).expect("it held the address before the pin");
        assert_eq!(
            pool.grant(key(9), "printer", &mut rng),
            Err(LeaseError::PinConflict { name: "printer".into(), ip: ip("10.1.2.9"), holder: "laptop".into() })
        );
        pool.release(key(3));
        assert_eq!(pool.grant(key(9), "printer", &mut rng).map(|lease| lease.ip4), Ok(ip("10.1.2.9")));
        assert_ne!(pool.grant(key(3), "laptop", &mut rng).map(|lease| lease.ip4), Ok(ip("10.1.2.9")));
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let with = |pins: &[(&str, &str)], network6: Option<&str>| {
            let pins = pins.iter().map(|(name, pin)| ((*name).to_owned(), ip(pin))).collect();
            let network6 = network6.map(|network6| network6.parse().expect("a network"));
            Pool::new(PoolConfig { pins, network6, ..config("192.168.43.0/24", Order::Random) }).map(drop)
        };
        assert_eq!(with(&[("a", "192.168.43.1"), ("b", "192.168.43.254")], Some("fd00::/64")), Ok(()));
        for pin in ["192.168.43.0", "192.168.43.255", "192.168.44.1"] {
            assert!(matches!(with(&[("a", pin)], None), Err(PoolError::PinOutside { .. })), "{pin}");
        }
        assert!(matches!(
            with(&[("a", "192.168.43.1"), ("b", "192.168.43.1")], None),
            Err(PoolError::PinnedTwice { .. })
        ));
        assert!(matches!(with(&[("-a", "192.168.43.1")], None), Err(PoolError::InvalidPinName { .. })));
        for (network6, accepted) in [
            ("fd00::/48", true),
            ("fd00::/120", true),
            ("fd00::/121", false),
            ("fd00::/47", false),
            ("2001:db8::/64", false),
            ("fe80::/64", false),
        ] {
            assert_eq!(with(&[], Some(network6)).is_ok(), accepted, "{network6}");
        }
    }

    #[test]
    fn names_are_checked_and_unique() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = pool("192.168.43.0/24", Order::Sequential);
        let longest = "x".repeat(63);
        for good in ["a", "7", "laptop-2_b.home", &longest] {
            assert!(is_valid_name(good), "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["", "-a", ".a", "_a", "a b", "ä", "a/b", "a\n", "a\0", &long] {
            assert_eq!(pool.grant(key(1), bad, &mut rng), Err(LeaseError::InvalidName { name: bad.to_owned() }));
        }
        let lease = pool.grant(key(1), "laptop", &mut rng).expect("a lease");
        assert_eq!(pool.grant(key(2), "laptop", &mut rng), Err(LeaseError::NameTaken { name: "laptop".into() }));
        assert_eq!(pool.grant(key(1), "desktop", &mut rng), Ok(lease), "a new name, the same lease");
        assert!(pool.grant(key(2), "laptop", &mut rng).is_ok());
        assert!(pool.grant(key(2), "desktop", &mut rng).is_err());
    }

    #[test]
    fn ipv6_and_mac_follow_from_host_number_and_key() {
        let mut rng = StdRng::seed_from_u64(1);
        let network6 = Some("fd12:3456:789a:1::/64".parse().expect("a network"));
        let mut pool = Pool::new(PoolConfig { network6, ..config("10.1.0.0/16", Order::Random) }).expect("a pool");
        for n in 0..500 {
            let lease = grant(&mut pool, n, &mut rng).expect("there is room");
            let [_, _, c, d] = lease.ip4.octets();
            let expected = format!("fd12:3456:789a:1::{:x}", u16::from_be_bytes([c, d]));
            assert_eq!(lease.ip6, Some(expected.parse().expect("an address")));
            assert_eq!(lease.mac.0[0] & 0b11, 0b10, "locally administered, unicast");
            assert_eq!(lease.mac, derive_mac(NetworkId(1), key(n), 0));
        }
        assert_ne!(derive_mac(NetworkId(1), key(1), 0), derive_mac(NetworkId(2), key(1), 0));
    }

    #[test]
    fn a_mac_that_is_taken_makes_the_next_of_the_series() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = pool("192.168.43.0/24", Order::Sequential);
        let taken = MemberRecord { mac: derive_mac(NetworkId(1), key(2), 0), ..record(1, "a", "192.168.43.9") };
        pool.restore(&taken).expect("a record");
        let lease = pool.grant(key(2), "b", &mut rng).expect("a lease");
        assert_eq!(lease.mac, derive_mac(NetworkId(1), key(2), 1));
        assert_ne!(lease.mac, taken.mac);
    }

    #[test]
    fn records_that_cannot_hold_are_refused_and_change_nothing() {
        let mut pool = pool("192.168.43.0/24", Order::Sequential);
        pool.restore(&record(1, "a", "192.168.43.9")).expect("a record");
        for (bad, outside) in [
            (record(2, "b", "192.168.44.9"), true),
            (record(2, "b", "192.168.43.255"), true),
            (record(2, "b", "192.168.43.9"), false),
            (record(2, "a", "192.168.43.8"), false),
            (record(1, "b", "192.168.43.8"), false),
            (MemberRecord { mac: record(1, "a", "192.168.43.9").mac, ..record(2, "b", "192.168.43.8") }, false),
        ] {
            let error = pool.restore(&bad).expect_err("it cannot hold");
            assert_eq!(matches!(error, LeaseError::OutsideNetwork { .. }), outside, "{error}");
            assert_eq!(pool.len(), 1);
        }
        pool.restore(&record(2, "b", "192.168.43.8")).expect("a record");
        assert_eq!(pool.holder(ip("192.168.43.8")), Some(key(2)));
    }

    #[test]
    fn the_memory_of_released_addresses_is_bounded_and_forgets_the_oldest() {
        let mut memory = Memory::default();
        for n in 0..REMEMBERED_MAX as u32 + 10 {
            memory.put(key(n), n);
            memory.put(key(n), n);
        }
        assert_eq!((memory.by_key.len(), memory.by_age.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert!(!memory.by_key.contains_key(&key(9)) && memory.by_key.contains_key(&key(10)));
    }

    #[test]
    fn ranges_hold_what_a_set_holds() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut ranges = Ranges::new(1, 200);
        let mut model: BTreeSet<u32> = (1..=200).collect();
        for _ in 0..20_000 {
            let number = rng.random_range(1..=200);
            if rng.random_bool(0.5) {
                ranges.take(number);
                model.remove(&number);
            } else {
                ranges.give(number);
                model.insert(number);
            }
            let from = rng.random_range(0..=201);
            assert_eq!(ranges.first_from(from), model.range(from..).next().copied());
            assert_eq!(ranges.has(from), model.contains(&from));
            let ends: Vec<_> = ranges.0.iter().collect();
            assert!(ends.windows(2).all(|pair| pair[0].1 + 1 < *pair[1].0), "{ends:?}");
        }
    }

    /// 25,000 random steps against a naive model; four runs make 10^5.
    fn walk(network: &str, order: Order, keys: u32, seed: u64) -> String {
        let mut rng = StdRng::seed_from_u64(seed);
        let net: Ipv4Net = network.parse().expect("a network");
        let first = u32::from(net.network());
        let pins: BTreeMap<String, Ipv4Addr> = [1, 3].map(|n| (name(n), Ipv4Addr::from(first + n))).into();
        let config = PoolConfig { pins: pins.clone(), ..config(network, order) };
        let mut pool = Pool::new(config.clone()).expect("a pool");
        let mut model = Model::default();
        let (mut granted, mut regained, mut refused, mut crashes) = (0, 0, 0, 0);
        for step in 0..25_000 {
            let n = rng.random_range(0..keys);
            match rng.random_range(0..100) {
                // Join, or renew if it is in.
                0..60 => {
                    let had = model.leases.get(&n).map(|record| record.ip4);
                    let before = model.remembered(n).filter(|ip| model.is_free(*ip, &pins));
                    let free = |model: &Model| net.hosts().filter(|ip| model.is_free(*ip, &pins)).min();
                    match grant(&mut pool, n, &mut rng) {
                        Ok(lease) => {
                            assert!(net.hosts().next() <= Some(lease.ip4) && lease.ip4 < net.broadcast());
                            match (had, pins.get(&name(n)), before) {
                                (Some(had), _, _) => assert_eq!(lease.ip4, had, "seed {seed}, step {step}: renewal"),
                                (None, Some(pin), _) => assert_eq!(lease.ip4, *pin, "seed {seed}, step {step}: pin"),
                                (None, None, Some(before)) => {
                                    regained += 1;
                                    assert_eq!(lease.ip4, before, "seed {seed}, step {step}: return");
                                }
                                (None, None, None) => {
                                    assert!(model.is_free(lease.ip4, &pins), "seed {seed}, step {step}: twice");
                                    if order == Order::Sequential {
                                        assert_eq!(Some(lease.ip4), free(&model), "seed {seed}, step {step}: lowest");
                                    }
                                }
                            }
                            granted += 1;
                            model.join(n, lease);
                        }
                        Err(LeaseError::PoolExhausted { .. }) => {
                            assert_eq!((had, free(&model)), (None, None), "seed {seed}, step {step}: refused");
                            refused += 1;
                        }
                        Err(error) => panic!("seed {seed}, step {step}: {error}"),
                    }
                }
                60..99 => {
                    assert_eq!(pool.release(key(n)).map(|lease| lease.ip4), model.leave(n), "seed {seed}, step {step}");
                }
                // A crash every 500 steps or so: records survive, the memory of those who left does not.
                _ if rng.random_bool(0.2) => {
                    crashes += 1;
                    pool = Pool::new(config.clone()).expect("a pool");
                    for record in model.leases.values() {
                        pool.restore(record).expect("a record of ours");
                    }
                    model.left.clear();
                }
                _ => {
                    assert_eq!(pool.len(), model.leases.len());
                    for (n, record) in &model.leases {
                        assert_eq!(
                            pool.lease(key(*n)).map(|lease| (lease.ip4, lease.mac)),
                            Some((record.ip4, record.mac))
                        );
                        assert_eq!(pool.holder(record.ip4), Some(key(*n)));
                    }
                }
            }
        }
        assert!(granted > 1_000 && crashes > 10);
        format!("{granted} granted, {regained} regained, {refused} refused, {crashes} crashes, no address twice")
    }

    #[derive(Default)]
    struct Model {
        leases: BTreeMap<u32, MemberRecord>,
        /// Oldest first.
        left: VecDeque<(u32, Ipv4Addr)>,
        taken: BTreeSet<Ipv4Addr>,
    }

    impl Model {
        fn is_free(&self, ip: Ipv4Addr, pins: &BTreeMap<String, Ipv4Addr>) -> bool {
            !self.taken.contains(&ip) && pins.values().all(|pin| *pin != ip)
        }

        fn remembered(&self, n: u32) -> Option<Ipv4Addr> {
            self.left.iter().find(|(who, _)| *who == n).map(|(_, ip)| *ip)
        }

        fn join(&mut self, n: u32, lease: Lease) {
            self.left.retain(|(who, _)| *who != n);
            self.taken.insert(lease.ip4);
            let record = MemberRecord { mac: lease.mac, ..record(n, &name(n), &lease.ip4.to_string()) };
            self.leases.insert(n, record);
        }

        fn leave(&mut self, n: u32) -> Option<Ipv4Addr> {
            let ip = self.leases.remove(&n)?.ip4;
            self.taken.remove(&ip);
            self.left.push_back((n, ip));
            if self.left.len() > REMEMBERED_MAX {
                self.left.pop_front();
            }
            Some(ip)
        }
    }

    fn config(network: &str, order: Order) -> PoolConfig {
        let network = network.parse().expect("a network");
        PoolConfig { network, network6: None, order, pins: BTreeMap::new(), network_id: NetworkId(1) }
    }

    fn pool(network: &str, order: Order) -> Pool {
        Pool::new(config(network, order)).expect("a pool")
    }

    fn grant(pool: &mut Pool, n: u32, rng: &mut StdRng) -> Result<Lease, LeaseError> {
        pool.grant(key(n), &name(n), rng)
    }

    fn record(n: u32, name: &str, ip4: &str) -> MemberRecord {
        MemberRecord {
            key: key(n),
            name: name.to_owned(),
            mac: derive_mac(NetworkId(1), key(n), 0),
            ip4: ip(ip4),
            ip6: None,
            rights: 0,
            serial: 1,
            joined_unix: 0,
            last_endpoint: None,
        }
    }

    fn key(n: u32) -> PublicKey {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        PublicKey(key)
    }

    fn name(n: u32) -> String {
        format!("member-{n}")
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().expect("an address")
    }
}
