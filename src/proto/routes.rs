//! Which subnets lie behind which members: the server's board of offers, and a client's reading of the table made of it.
//!
//! A client says what it would forward to with every keepalive; the operator of the server has approved some of that,
//! by the member's name; the approved rest is one small table that all members get whole when its version changes. Whole,
//! because losing, repeating or reordering parts of it then does no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::ids::PublicKey;
use crate::wire::control::{Control, PublishedRoute, TABLE_PART, TABLE_PARTS_MAX};

/// Routes of a network at the most; what is offered beyond is not taken.
pub const ROUTES_MAX: usize = TABLE_PART * TABLE_PARTS_MAX;
/// A table that nobody acknowledged is told again after this long, as often as [`TELL_TRIES`].
const TELL_AGAIN: Duration = Duration::from_millis(900);
const TELL_TRIES: u32 = 10;
/// After a start of the server the publishers have this long to come back (a keepalive of theirs takes 20 s) before the
/// table of the run before is taken from those who have it.
const RETURN_WITHIN: Duration = Duration::from_secs(30);

/// The way to the Internet, as a route.
pub const EXIT: IpNet = IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0));

/// What a member may publish, by the word of the server's operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// The member's name.
    pub member: String,
    /// This subnet and any inside it; [`EXIT`] allows itself only, so that a way to the Internet is not leave to take
    /// over everybody's networks.
    pub subnet: IpNet,
}

impl Approval {
    fn covers(&self, member: &str, subnet: &IpNet) -> bool {
        self.member == member && if self.subnet == EXIT { *subnet == EXIT } else { self.subnet.contains(subnet) }
    }
}

/// Why a subnet is no one's to publish, whoever approves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unroutable {
    #[error("it is the loopback of every machine")]
    Loopback,
    #[error("it is link-local, and no router may pass it on")]
    LinkLocal,
    #[error("it is no network of hosts")]
    NoHosts,
    #[error("only IPv4 subnets can be published")]
    Six,
}

/// Whether a subnet can be published at all.
///
/// # Errors
/// Why not.
pub fn routable(subnet: &IpNet) -> Result<(), Unroutable> {
    let within = |text: &str| text.parse::<IpNet>().is_ok_and(|all| overlaps(&all, subnet));
    match subnet {
        IpNet::V6(_) => Err(Unroutable::Six),
        IpNet::V4(_) if *subnet == EXIT => Ok(()),
        IpNet::V4(_) if within("127.0.0.0/8") => Err(Unroutable::Loopback),
        IpNet::V4(_) if within("169.254.0.0/16") => Err(Unroutable::LinkLocal),
        IpNet::V4(_) if within("224.0.0.0/3") || within("0.0.0.0/8") => Err(Unroutable::NoHosts),
        IpNet::V4(_) => Ok(()),
    }
}

/// Whether two networks have addresses in common.
pub fn overlaps(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// Why an offered subnet is not in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    NotApproved,
    /// It overlaps the network that addresses are leased from.
    OwnNetwork,
    Unroutable(Unroutable),
    TooMany,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotApproved => f.write_str("the server's allow_routes does not name it"),
            Self::OwnNetwork => f.write_str("it overlaps the network itself; publish another subnet"),
            Self::Unroutable(why) => write!(f, "{why}"),
            Self::TooMany => write!(f, "the network has {ROUTES_MAX} routes already"),
        }
    }
}

/// The server's side.
#[derive(Debug)]
pub struct RouteBoard {
    /// Versions of this run are above it.
    base: u64,
    version: u64,
    settled_at: Instant,
    approvals: Vec<Approval>,
    /// The prefixes that addresses are leased from.
    own: Vec<IpNet>,
    offers: BTreeMap<PublicKey, Offer>,
    readers: BTreeMap<PublicKey, Reader>,
    table: BTreeMap<PublicKey, Vec<IpNet>>,
}

#[derive(Debug)]
struct Offer {
    name: String,
    list: Vec<IpNet>,
    rejected: Vec<(IpNet, Rejected)>,
}

/// Somebody who understands tables.
#[derive(Debug)]
struct Reader {
    have: u64,
    next: Instant,
    tries: u32,
}

impl RouteBoard {
    /// A board for the `boots`-th run of the server, which approves nothing yet.
    pub fn new(boots: u64, now: Instant) -> Self {
        let base = boots << 32;
        Self {
            base,
            version: base + 1,
            settled_at: now + RETURN_WITHIN,
            approvals: Vec::new(),
            own: Vec::new(),
            offers: BTreeMap::new(),
            readers: BTreeMap::new(),
            table: BTreeMap::new(),
        }
    }

    /// Takes what the operator approves, and the network's own prefixes.
    pub fn approve(&mut self, approvals: Vec<Approval>, own: Vec<IpNet>, now: Instant) {
        (self.approvals, self.own) = (approvals, own);
        self.rebuild(now);
    }

    /// A member says what it offers and what table it has. Gives what of it is newly rejected, for the log.
    pub fn offered(
        &mut self,
        key: PublicKey,
        name: &str,
        (have, mut list): (u64, Vec<IpNet>),
        now: Instant,
    ) -> Vec<(IpNet, Rejected)> {
        list.sort_unstable();
        list.dedup();
        let reader = self.readers.entry(key).or_insert(Reader { have, next: now, tries: 0 });
        (reader.have, reader.tries) = (have, 0);
        if have != self.version {
            reader.next = now;
        }
        let known = self.offers.get(&key);
        if known.is_some_and(|offer| offer.name == name && offer.list == list) || known.is_none() && list.is_empty() {
            return Vec::new();
        }
        let before = known.map(|offer| offer.rejected.clone()).unwrap_or_default();
        if list.is_empty() {
            self.offers.remove(&key);
        } else {
            self.offers.insert(key, Offer { name: name.to_owned(), list, rejected: Vec::new() });
        }
        self.rebuild(now);
        let now_rejected = self.offers.get(&key).map(|offer| offer.rejected.clone()).unwrap_or_default();
        now_rejected.into_iter().filter(|rejected| !before.contains(rejected)).collect()
    }

    /// A member is none any more.
    pub fn forget(&mut self, key: &PublicKey, now: Instant) {
        self.readers.remove(key);
        if self.offers.remove(key).is_some() {
            self.rebuild(now);
        }
    }

    /// What of a member's offer is in the table.
    pub fn routes_of(&self, key: &PublicKey) -> &[IpNet] {
        self.table.get(key).map_or(&[], Vec::as_slice)
    }

    /// What of a member's offer is not, and why.
    pub fn rejected_of(&self, key: &PublicKey) -> &[(IpNet, Rejected)] {
        self.offers.get(key).map_or(&[], |offer| offer.rejected.as_slice())
    }

    /// Who has to be told the table now. It counts as told.
    pub fn due(&mut self, now: Instant) -> Vec<PublicKey> {
        let (version, base, settled) = (self.version, self.base, now >= self.settled_at);
        let is_empty = self.table.is_empty();
        let mut due = Vec::new();
        for (key, reader) in &mut self.readers {
            if is_empty && reader.have == 0 {
                // Nothing is what it has.
                continue;
            }
            let of_before = (1..=base).contains(&reader.have);
            if reader.have != version && reader.tries < TELL_TRIES && now >= reader.next && (settled || !of_before) {
                reader.next = now + TELL_AGAIN;
                reader.tries += 1;
                due.push(*key);
            }
        }
        due
    }

    /// The table, to be sent.
    pub fn parts(&self) -> Vec<Control> {
        let all: Vec<PublishedRoute> = self
            .table
            .iter()
            .flat_map(|(key, list)| {
                let id = key.node_id().0;
                let member = id[..8].try_into().expect("eight bytes");
                list.iter().map(move |subnet| PublishedRoute { member, subnet: *subnet })
            })
            .collect();
        let parts = all.len().div_ceil(TABLE_PART).max(1);
        let part_of = |part: usize| all.iter().skip(part * TABLE_PART).take(TABLE_PART).copied().collect();
        (0..parts)
            .map(|part| Control::RouteTable {
                version: self.version,
                part: part as u8,
                parts: parts as u8,
                routes: part_of(part),
            })
            .collect()
    }

    fn rebuild(&mut self, now: Instant) {
        let mut table: BTreeMap<PublicKey, Vec<IpNet>> = BTreeMap::new();
        let mut count = 0;
        for (key, offer) in &mut self.offers {
            offer.rejected.clear();
            for subnet in &offer.list {
                let rejected = if let Err(why) = routable(subnet) {
                    Rejected::Unroutable(why)
                } else if *subnet != EXIT && self.own.iter().any(|own| overlaps(own, subnet)) {
                    Rejected::OwnNetwork
                } else if !self.approvals.iter().any(|approval| approval.covers(&offer.name, subnet)) {
                    Rejected::NotApproved
                } else if count == ROUTES_MAX {
                    Rejected::TooMany
                } else {
                    count += 1;
                    table.entry(*key).or_default().push(*subnet);
                    continue;
                };
                offer.rejected.push((*subnet, rejected));
            }
        }
        if table != self.table {
            self.table = table;
            self.version += 1;
            for reader in self.readers.values_mut() {
                // Whoever was just told waits a moment: a publisher that changes its mind all the time costs a table a second.
                (reader.next, reader.tries) = (reader.next.min(now + TELL_AGAIN), 0);
            }
        }
    }
}

/// A client's copy of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteTable {
    pub version: u64,
    pub routes: Vec<PublishedRoute>,
}

impl RouteTable {
    /// Writes the table down, for a start without the server. `network` is the network's id: versions of another one mean
    /// nothing here.
    pub fn save(&self, network: u64) -> Vec<u8> {
        let routes = self.routes.iter().map(|route| (u64::from_le_bytes(route.member), route.subnet)).collect();
        let saved = Saved { format: 1, network, version: self.version, routes };
        serde_json::to_vec(&saved).expect("plain values")
    }

    /// Reads a table back; `None` for one of another network, or a file that is none.
    pub fn load(bytes: &[u8], network: u64) -> Option<Self> {
        let saved: Saved = serde_json::from_slice(bytes).ok()?;
        if (saved.format, saved.network) != (1, network) || saved.routes.len() > ROUTES_MAX {
            return None;
        }
        let routes =
            saved.routes.into_iter().map(|(id, subnet)| PublishedRoute { member: id.to_le_bytes(), subnet }).collect();
        Some(Self { version: saved.version, routes })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    format: u32,
    network: u64,
    version: u64,
    routes: Vec<(u64, IpNet)>,
}

/// Puts the parts of a table together.
#[derive(Debug, Default)]
pub struct Assembly {
    version: u64,
    parts: BTreeMap<u8, Vec<PublishedRoute>>,
}

impl Assembly {
    /// Takes a part; the table, when it is whole.
    pub fn take(&mut self, version: u64, part: u8, parts: u8, routes: Vec<PublishedRoute>) -> Option<RouteTable> {
        if version != self.version {
            *self = Self { version, parts: BTreeMap::new() };
        }
        self.parts.insert(part, routes);
        if self.parts.len() < usize::from(parts) {
            return None;
        }
        let routes = std::mem::take(&mut self.parts).into_values().flatten().collect();
        Some(RouteTable { version, routes })
    }
}

/// A member as far as routes are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publisher {
    /// The first eight bytes of its node id.
    pub id: [u8; 8],
    pub name: String,
    /// Its leased address, which is the gateway.
    pub ip: std::net::Ipv4Addr,
    pub online: bool,
}

/// What this machine has of its own, apart from our device: an address' network, or a route but the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Existing {
    pub net: IpNet,
    /// The interface.
    pub interface: String,
}

/// What is to be decided upon.
#[derive(Debug)]
pub struct Facts<'a> {
    pub table: &'a RouteTable,
    pub publishers: &'a [Publisher],
    pub existing: &'a [Existing],
    /// The network's own prefixes.
    pub own: &'a [IpNet],
    /// What this machine publishes itself.
    pub published: &'a [IpNet],
    /// Subnets are taken up at all.
    pub accept: bool,
    /// Who is to be the way to the Internet.
    pub exit: Option<&'a str>,
}

/// The way to the Internet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Exit {
    /// Not asked for.
    #[default]
    Off,
    /// By this gateway.
    By(IpAddr),
    /// Asked for, but the peer is none or does not offer it: why.
    Missing(String),
}

/// What to do with the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Gateways by subnet.
    pub routes: BTreeMap<IpNet, IpAddr>,
    /// Subnets that are not taken up, and why.
    pub refused: BTreeMap<IpNet, String>,
    pub exit: Exit,
}

/// Decides which routes are taken up. What this machine has already is never covered, whoever publishes it. Of several
/// publishers of one subnet the first that is online is the gateway, by address.
pub fn plan(facts: &Facts<'_>) -> Plan {
    let mut plan = Plan::default();
    let publisher = |route: &PublishedRoute| facts.publishers.iter().find(|one| one.id == route.member);
    let subnets: BTreeSet<IpNet> = facts.table.routes.iter().map(|route| route.subnet).collect();
    for subnet in subnets.into_iter().filter(|subnet| facts.accept && *subnet != EXIT) {
        let by = facts.table.routes.iter().filter(|route| route.subnet == subnet).filter_map(publisher);
        // A table may be ahead of the map, and our own subnets are in it, too.
        let Some(gateway) = by.min_by_key(|publisher| (!publisher.online, publisher.ip)) else { continue };
        match refusal(facts, &subnet) {
            Some(why) => drop(plan.refused.insert(subnet, format!("{} publishes it, and {why}", gateway.name))),
            None => drop(plan.routes.insert(subnet, gateway.ip.into())),
        }
    }
    plan.exit = match facts.exit {
        None => Exit::Off,
        Some(name) => match facts.publishers.iter().find(|publisher| publisher.name == name) {
            None => Exit::Missing(format!("there is no member {name}")),
            Some(peer) if offers_exit(facts.table, peer) => Exit::By(peer.ip.into()),
            Some(_) => Exit::Missing(format!(
                "{name} is no exit: it must run with --exit-node, and the server with --allow-routes {name}=exit"
            )),
        },
    };
    plan
}

fn offers_exit(table: &RouteTable, peer: &Publisher) -> bool {
    table.routes.iter().any(|route| route.member == peer.id && route.subnet == EXIT)
}

/// Why a subnet is not for this machine.
fn refusal(facts: &Facts<'_>, subnet: &IpNet) -> Option<String> {
    if let Err(why) = routable(subnet) {
        return Some(why.to_string());
    }
    if let Some(own) = facts.own.iter().find(|own| overlaps(own, subnet)) {
        return Some(format!("it overlaps the network {own} itself"));
    }
    if let Some(own) = facts.published.iter().find(|own| **own != EXIT && overlaps(own, subnet)) {
        return Some(format!("this machine publishes {own} itself"));
    }
    facts.existing.iter().find(|existing| overlaps(&existing.net, subnet)).map(|Existing { net, interface }| {
        format!("it overlaps {net}, which this machine has already at {interface}; publish a narrower subnet, or renumber one of the two")
    })
}

/// The prefixes that a network leases addresses from.
pub fn own_networks(network: Ipv4Net, network6: Option<Ipv6Net>) -> Vec<IpNet> {
    std::iter::once(IpNet::V4(network)).chain(network6.map(IpNet::V6)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a subnet")
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| net(text)).collect()
    }

    fn key(number: u8) -> PublicKey {
        PublicKey([number; 32])
    }

    fn allow(member: &str, subnet: &str) -> Approval {
        Approval { member: member.into(), subnet: net(subnet) }
    }

    fn board(approvals: Vec<Approval>, now: Instant) -> RouteBoard {
        let mut board = RouteBoard::new(3, now);
        board.approve(approvals, nets(&["192.168.43.0/24"]), now);
        board
    }

    /// Reads what is sent, as a client does.
    fn read(board: &RouteBoard) -> RouteTable {
        let mut assembly = Assembly::default();
        let whole = board.parts().into_iter().rev().filter_map(|part| {
            let [Control::RouteTable { version, part, parts, routes }] =
                &Control::decode_list(&part.to_bytes()).ok()?[..]
            else {
                return None;
            };
            assembly.take(*version, *part, *parts, routes.clone())
        });
        whole.last().expect("a whole table")
    }

    #[test]
    fn only_what_the_operator_approves_for_that_name_is_published() {
        let now = Instant::now();
        let mut board = board(vec![allow("gate", "10.0.0.0/8"), allow("gate", "0.0.0.0/0")], now);
        let offer = nets(&["10.1.0.0/16", "172.16.0.0/12", "0.0.0.0/0", "192.168.43.128/25", "127.0.0.0/8"]);
        let rejected = board.offered(key(1), "gate", (0, offer.clone()), now);
        assert_eq!(board.routes_of(&key(1)), nets(&["0.0.0.0/0", "10.1.0.0/16"]));
        assert_eq!(
            rejected,
            [
                (net("127.0.0.0/8"), Rejected::Unroutable(Unroutable::Loopback)),
                (net("172.16.0.0/12"), Rejected::NotApproved),
                (net("192.168.43.128/25"), Rejected::OwnNetwork),
            ]
        );
        assert!(board.offered(key(1), "gate", (0, offer), now).is_empty(), "once is enough for the log");
        board.offered(key(2), "thief", (0, nets(&["10.1.0.0/16", "0.0.0.0/0"])), now);
        assert!(board.routes_of(&key(2)).is_empty());
        assert_eq!(read(&board).routes.len(), 2);
        // Leave for the Internet is no leave for everybody's networks, nor the other way round.
        board.approve(vec![allow("gate", "0.0.0.0/0")], Vec::new(), now);
        assert_eq!(board.routes_of(&key(1)), nets(&["0.0.0.0/0"]));
        board.approve(Vec::new(), Vec::new(), now);
        assert!(read(&board).routes.is_empty());
    }

    #[test]
    fn a_table_is_told_until_it_is_acknowledged_and_again_when_it_changes() {
        let mut now = Instant::now();
        let mut board = board(vec![allow("gate", "10.0.0.0/8")], now);
        board.offered(key(2), "reader", (0, Vec::new()), now);
        assert!(board.due(now).is_empty(), "a network without routes says nothing of them");
        board.offered(key(3), "gate", (0, nets(&["10.3.0.0/16"])), now);
        assert_eq!(board.due(now), [key(2), key(3)]);
        assert!(board.due(now).is_empty());
        now += TELL_AGAIN;
        assert_eq!(board.due(now), [key(2), key(3)]);
        for (number, name, list) in [(2, "reader", nets(&[])), (3, "gate", nets(&["10.3.0.0/16"]))] {
            board.offered(key(number), name, (read(&board).version, list), now);
        }
        assert!(board.due(now + TELL_AGAIN).is_empty());
        board.offered(key(1), "gate", (0, nets(&["10.1.0.0/16"])), now);
        assert_eq!(board.due(now), [key(1)]);
        now += TELL_AGAIN;
        assert_eq!(board.due(now), [key(1), key(2), key(3)], "who was told a moment ago is told once for all changes");
        for _ in 0..2 * TELL_TRIES {
            now += TELL_AGAIN;
            board.due(now);
        }
        assert!(board.due(now + TELL_AGAIN).is_empty(), "nobody shouts for ever");
        board.offered(key(2), "reader", (1, Vec::new()), now);
        assert_eq!(board.due(now + RETURN_WITHIN), [key(2)], "until it is heard again");
        board.forget(&key(1), now);
        assert_eq!(read(&board).routes.len(), 1);
    }

    #[test]
    fn after_a_restart_of_the_server_nobody_loses_routes_before_their_publishers_could_come_back() {
        let now = Instant::now();
        let mut board = RouteBoard::new(4, now);
        board.approve(vec![allow("gate", "10.0.0.0/8")], Vec::new(), now);
        let before = (3 << 32) + 7;
        board.offered(key(2), "reader", (before, Vec::new()), now);
        assert!(board.due(now + RETURN_WITHIN / 2).is_empty());
        board.offered(key(1), "gate", (before, nets(&["10.1.0.0/16"])), now);
        assert_eq!(board.due(now + RETURN_WITHIN), [key(1), key(2)]);
        assert_eq!(read(&board).routes.len(), 1);
    }

    #[test]
    fn a_table_of_many_parts_is_put_together_in_any_order_and_has_a_bound() {
        let now = Instant::now();
        let mut board = board(vec![allow("gate", "10.0.0.0/8")], now);
        for number in 0..30 {
            let list = (0..16u8).map(|third| net(&format!("10.{number}.{third}.0/24"))).collect();
            board.offered(key(number), "gate", (0, list), now);
        }
        let table = read(&board);
        assert_eq!(table.routes.len(), ROUTES_MAX);
        assert_eq!(board.rejected_of(&key(29))[0].1, Rejected::TooMany);
        let longest = board.parts().iter().map(|part| part.to_bytes().len()).max();
        assert!(longest <= Some(crate::wire::control::CONTROL_LEN_MAX));
    }

    fn publishers() -> Vec<Publisher> {
        [(1, "gate", 9, true), (2, "spare", 4, false)]
            .map(|(number, name, last, online)| Publisher {
                id: [number; 8],
                name: name.into(),
                ip: [192, 168, 43, last].into(),
                online,
            })
            .into()
    }

    fn table(routes: &[(u8, &str)]) -> RouteTable {
        let routes = routes.iter().map(|(member, subnet)| PublishedRoute { member: [*member; 8], subnet: net(subnet) });
        RouteTable { version: 1, routes: routes.collect() }
    }

    #[test]
    fn a_table_reads_back_in_its_own_network_only() {
        let table = table(&[(1, "10.1.0.0/16"), (2, "0.0.0.0/0")]);
        let saved = table.save(7);
        assert_eq!(RouteTable::load(&saved, 7), Some(table));
        assert_eq!(RouteTable::load(&saved, 8), None);
        assert_eq!(RouteTable::load(b"{}", 7), None);
    }

    #[test]
    fn routes_are_taken_up_only_when_asked_for_and_never_over_what_the_machine_has() {
        let table = table(&[
            (1, "10.1.0.0/16"),
            (2, "10.1.0.0/16"),
            (1, "10.2.0.0/16"),
            (2, "10.3.0.0/16"),
            (9, "10.9.0.0/16"),
        ]);
        let publishers = publishers();
        let existing = [Existing { net: net("10.2.7.0/24"), interface: "eth0".into() }];
        let (own, published) = (nets(&["192.168.43.0/24"]), nets(&["10.3.3.0/24"]));
        let mut facts = Facts {
            table: &table,
            publishers: &publishers,
            existing: &existing,
            own: &own,
            published: &published,
            accept: true,
            exit: None,
        };
        let taken = plan(&facts);
        let gate: IpAddr = "192.168.43.9".parse().expect("an address");
        assert_eq!(taken.routes, [(net("10.1.0.0/16"), gate)].into(), "by the one that is online");
        let refused: Vec<_> = taken.refused.keys().copied().collect();
        assert_eq!(refused, nets(&["10.2.0.0/16", "10.3.0.0/16"]));
        assert!(taken.refused[&net("10.2.0.0/16")].contains("10.2.7.0/24, which this machine has already at eth0"));
        facts.accept = false;
        assert_eq!(plan(&facts), Plan::default());
    }

    #[test]
    fn the_exit_is_the_member_named_and_only_if_it_offers_to_be() {
        let table = table(&[(1, "0.0.0.0/0")]);
        let publishers = publishers();
        let exit = |name| {
            let (table, publishers) = (&table, &publishers[..]);
            let facts = Facts { table, publishers, existing: &[], own: &[], published: &[], accept: true, exit: name };
            let plan = plan(&facts);
            assert!(plan.routes.is_empty(), "a default route is not taken up by itself");
            plan.exit
        };
        assert_eq!(exit(None), Exit::Off);
        assert_eq!(exit(Some("gate")), Exit::By("192.168.43.9".parse().expect("an address")));
        assert!(matches!(exit(Some("spare")), Exit::Missing(why) if why.contains("--exit-node")));
        assert!(matches!(exit(Some("nobody")), Exit::Missing(_)));
    }
}
