//! Why a pair of members is direct, or is not: from the facts of both ends to one verdict, and the one change that would
//! help.
//!
//! The rules stand in one order, from what makes everything else pointless (no such member, no server, no UDP) to what
//! only the counts of both ends show (which direction a firewall swallows). A fact that is not known is never taken for
//! a bad one: where too little is known, the verdict says so.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::scaled::Seconds;
use crate::wire::control::CandidateKind;
use crate::wire::why::{Mapping, Side};

/// A session younger than this may not have tried everything yet: a round of probes takes 1.6 s.
const YOUNG: Duration = Duration::from_secs(3);
/// Who was asked over and over and is silent must have been heard within this time to count as there.
const FRESH: Duration = Duration::from_secs(2);
/// Probes to one address after which a round was tried, however young the session is: keys are renewed.
const ROUND: u32 = 7;

/// Whether both are of one network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Membership {
    #[default]
    Member,
    /// Nobody has the name; who is there has these.
    Unknown(Vec<String>),
    /// The network has removed the peer, or its certificate has run out.
    Removed,
}

/// The way in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Direct(SocketAddr),
    Relay,
}

/// A local network with addresses of the mesh network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    pub network: IpNet,
    pub local: IpNet,
    pub device: String,
}

/// What the other end says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Account {
    Told(Side),
    /// It was asked, and did not answer.
    Silent,
    /// Its version does not know the question.
    NotUnderstood,
    /// There was no way to ask.
    #[default]
    NotAsked,
}

/// All that is known of a pair, seen from one end.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub peer: String,
    pub membership: Membership,
    /// The peer is connected to the server, as far as the server said.
    pub online: bool,
    /// Nobody has wanted to send to it.
    pub idle: bool,
    /// There is a session with the peer, since so long.
    pub session: Option<Duration>,
    pub way: Option<Way>,
    pub srtt: Option<Duration>,
    /// How long ago anything authentic came from the peer, by any way and in any session.
    pub heard: Option<Duration>,
    /// TCP to the server could be opened just now; `None` where that was not tried.
    pub server_tcp: Option<bool>,
    /// An address of the peer is known from earlier, to be tried without the server.
    pub cached: bool,
    pub overlap: Option<Overlap>,
    pub ours: Side,
    pub theirs: Account,
}

impl Facts {
    /// Whoever is asked and says nothing is not reached, however good the path was a moment ago.
    pub fn is_silent(&self) -> bool {
        self.theirs == Account::Silent && self.heard.is_none_or(|ago| ago >= FRESH)
    }
}

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Ours,
    Theirs,
}

/// What it comes down to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Frames go straight.
    Direct {
        to: SocketAddr,
        srtt: Option<Duration>,
    },
    UnknownName {
        known: Vec<String>,
    },
    Removed,
    /// Our network device is not there.
    NoDevice,
    /// This machine has no way to anywhere.
    NoNetwork,
    /// UDP does not pass at one end.
    UdpBlocked(End),
    /// The server is away, and no address of the peer is known.
    ServerDown,
    /// The server is away, and the addresses that are known do not answer.
    ServerDownTried,
    Offline,
    Idle,
    /// The peer is there, says the server, and does not answer.
    Unanswered,
    /// It answered, so long ago, and does so by no way any more. The server has not missed it yet.
    Lost {
        heard: Option<Duration>,
    },
    /// It is heard, and answers nothing: what is sent to it does not arrive.
    Unheard,
    DirectOff(End),
    Overlap(Overlap),
    NoCommonFamily {
        ours: Family,
        theirs: Family,
    },
    /// No address of the other end has a route.
    NoRoute {
        errno: u16,
    },
    BothHard,
    /// One end is hard and the other filters, and trying many ports is off at one of them.
    HardNatOff {
        hard: End,
        off: End,
    },
    /// As before, and it is on: it was in vain so far, or is under way.
    HardNat {
        hard: End,
    },
    /// Both are behind the same outside address, which does not lead back in.
    NoHairpin {
        outside: IpAddr,
    },
    /// As before, and both have tried the other's inside addresses.
    Isolated {
        outside: IpAddr,
    },
    /// The server is spoken to by TCP, because UDP did not pass; it does now.
    UdpBack(End),
    /// What one end sends arrives; what is sent to this one does not.
    InboundFiltered(End),
    /// Nothing passes, in either direction.
    FilteredBetween,
    Probing,
    /// Nobody knows any address of the other end.
    NothingToTry,
    /// Too little is known: the other end did not tell.
    HalfKnown {
        understood: bool,
    },
    /// Nothing that is known explains it.
    Unclear,
}

/// The families that lead to the Internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Four,
    Six,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Four => "IPv4",
            Self::Six => "IPv6",
        })
    }
}

/// Decides.
pub fn judge(facts: &Facts) -> Verdict {
    match &facts.membership {
        Membership::Unknown(known) => return Verdict::UnknownName { known: known.clone() },
        Membership::Removed => return Verdict::Removed,
        Membership::Member => {}
    }
    let ours = &facts.ours;
    if !ours.has(Side::DEVICE) {
        return Verdict::NoDevice;
    }
    match facts.way.filter(|_| !facts.is_silent()) {
        Some(Way::Direct(_)) if facts.theirs == Account::Silent => Verdict::Unheard,
        Some(Way::Direct(to)) => Verdict::Direct { to, srtt: facts.srtt },
        Some(Way::Relay) => relayed(facts),
        None => unconnected(facts),
    }
}

/// There is no session, or nobody answers in it.
fn unconnected(facts: &Facts) -> Verdict {
    // Who was never sent to has not failed: what the server says of it holds, as long as there is a server.
    let is_server_there = if facts.idle { facts.ours.has(Side::ATTACHED) } else { has_server(facts) };
    if !is_server_there {
        return without_server(facts);
    }
    if !facts.online {
        return Verdict::Offline;
    }
    match facts.session {
        Some(_) => Verdict::Lost { heard: facts.heard },
        None if facts.idle => Verdict::Idle,
        None => Verdict::Unanswered,
    }
}

/// Whether the server is spoken to and has answered just now: it is missed only after a while.
fn has_server(facts: &Facts) -> bool {
    let ours = &facts.ours;
    let by_tcp = ours.has(Side::BY_TCP) && facts.server_tcp != Some(false);
    ours.has(Side::ATTACHED) && (ours.has(Side::UDP_ANSWERED) || by_tcp)
}

/// Nobody is reached, the server neither.
fn without_server(facts: &Facts) -> Verdict {
    let ours = &facts.ours;
    if !ours.has(Side::ROUTE4) && !ours.has(Side::ROUTE6) {
        return Verdict::NoNetwork;
    }
    if is_blocked(ours) || (facts.server_tcp == Some(true) && !ours.has(Side::UDP_ANSWERED)) {
        return Verdict::UdpBlocked(End::Ours);
    }
    if facts.cached { Verdict::ServerDownTried } else { Verdict::ServerDown }
}

/// There is a session, by the relay.
fn relayed(facts: &Facts) -> Verdict {
    let ours = &facts.ours;
    if !ours.has(Side::DIRECT) {
        return Verdict::DirectOff(End::Ours);
    }
    if is_blocked(ours) {
        return Verdict::UdpBlocked(End::Ours);
    }
    // With another address of an interface there is a way beside that network.
    let beside = ours.own.iter().any(|one| one.kind == CandidateKind::Host);
    if let Some(overlap) = facts.overlap.as_ref().filter(|_| !beside) {
        return Verdict::Overlap(overlap.clone());
    }
    let theirs = match &facts.theirs {
        Account::Told(theirs) => theirs,
        Account::Silent | Account::NotAsked if !has_server(facts) => return without_server(facts),
        Account::Silent | Account::NotAsked if !facts.online => return Verdict::Offline,
        Account::Silent | Account::NotAsked => return Verdict::HalfKnown { understood: true },
        Account::NotUnderstood => return Verdict::HalfKnown { understood: false },
    };
    if !theirs.has(Side::DIRECT) {
        return Verdict::DirectOff(End::Theirs);
    }
    if is_blocked(theirs) {
        return Verdict::UdpBlocked(End::Theirs);
    }
    let by_tcp = [(End::Ours, ours), (End::Theirs, theirs)].into_iter().find(|(_, side)| side.has(Side::BY_TCP));
    if let Some((end, _)) = by_tcp {
        return Verdict::UdpBack(end);
    }
    if let (Some(ours), Some(theirs)) = (only_family(ours), only_family(theirs))
        && ours != theirs
    {
        return Verdict::NoCommonFamily { ours, theirs };
    }
    if ours.tries.is_empty() && theirs.tries.is_empty() {
        return Verdict::NothingToTry;
    }
    let reachable = |side: &Side| side.tries.iter().any(|one| one.errno == 0);
    if !reachable(ours) && !reachable(theirs) {
        let errno = ours.tries.iter().chain(&theirs.tries).map(|one| one.errno).next();
        return Verdict::NoRoute { errno: errno.unwrap_or_default() };
    }
    let tried = ours.tries.iter().chain(&theirs.tries).any(|one| one.sent >= ROUND);
    if facts.session.is_some_and(|age| age < YOUNG) && !tried {
        return Verdict::Probing;
    }
    if ours.mapping == Mapping::Dependent && theirs.mapping == Mapping::Dependent {
        return Verdict::BothHard;
    }
    let arrived = |side: &Side| side.tries.iter().any(|one| one.arrived > 0);
    let sent = |side: &Side| side.tries.iter().any(|one| one.sent > 0);
    let same_outside = ours.observed.zip(theirs.observed).filter(|(one, other)| one.ip() == other.ip());
    let is_shut = ours.mapping != Mapping::NoNat && !arrived(ours) && !arrived(theirs);
    if let Some((outside, _)) = same_outside.filter(|_| is_shut) {
        let inside = |side: &Side| side.tries.iter().any(|one| one.kind == Some(CandidateKind::Host) && one.sent > 0);
        let outside = outside.ip();
        let tried = inside(ours) && inside(theirs);
        return if tried { Verdict::Isolated { outside } } else { Verdict::NoHairpin { outside } };
    }
    if let Some(verdict) = hard(ours, theirs) {
        return verdict;
    }
    match (arrived(ours), arrived(theirs)) {
        (true, false) if sent(ours) => Verdict::InboundFiltered(End::Theirs),
        (false, true) if sent(theirs) => Verdict::InboundFiltered(End::Ours),
        (false, false) if sent(ours) && sent(theirs) => Verdict::FilteredBetween,
        _ => Verdict::Unclear,
    }
}

/// What one hard translator alone explains.
fn hard(ours: &Side, theirs: &Side) -> Option<Verdict> {
    let is_hard = |side: &Side| side.mapping == Mapping::Dependent;
    let hard = match (is_hard(ours), is_hard(theirs)) {
        (true, _) => End::Ours,
        (false, true) => End::Theirs,
        (false, false) => return None,
    };
    let easy = if hard == End::Ours { theirs } else { ours };
    if easy.mapping == Mapping::NoNat {
        // A host with a public address can be reached by any translator; a firewall must be in the way.
        return None;
    }
    let off = [(End::Ours, ours), (End::Theirs, theirs)].into_iter().find(|(_, side)| !side.has(Side::HARD_NAT));
    Some(match off {
        Some((off, _)) => Verdict::HardNatOff { hard, off },
        None => Verdict::HardNat { hard },
    })
}

fn is_blocked(side: &Side) -> bool {
    let back = side.has(Side::UDP_ANSWERED);
    side.mapping == Mapping::Blocked || (side.has(Side::BY_TCP) && !back)
}

/// The family of an end that has only one.
fn only_family(side: &Side) -> Option<Family> {
    match (side.has(Side::ROUTE4), side.has(Side::ROUTE6)) {
        (true, false) => Some(Family::Four),
        (false, true) => Some(Family::Six),
        (true, true) | (false, false) => None,
    }
}

impl Verdict {
    /// In one word, for JSON. Additions do not change those there are.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Direct { .. } => "direct",
            Self::UnknownName { .. } => "unknown-name",
            Self::Removed => "removed",
            Self::NoDevice => "no-device",
            Self::NoNetwork => "no-network",
            Self::UdpBlocked(End::Ours) => "udp-blocked-here",
            Self::UdpBlocked(End::Theirs) => "udp-blocked-there",
            Self::ServerDown => "server-down",
            Self::ServerDownTried => "server-down-tried",
            Self::Offline => "offline",
            Self::Idle => "idle",
            Self::Unanswered => "unanswered",
            Self::Lost { .. } => "lost",
            Self::Unheard => "unheard",
            Self::DirectOff(End::Ours) => "direct-off-here",
            Self::DirectOff(End::Theirs) => "direct-off-there",
            Self::Overlap(_) => "overlap",
            Self::NoCommonFamily { .. } => "no-common-family",
            Self::NoRoute { .. } => "no-route",
            Self::BothHard => "both-hard",
            Self::HardNatOff { .. } => "hard-nat-off",
            Self::HardNat { .. } => "hard-nat",
            Self::NoHairpin { .. } => "no-hairpin",
            Self::Isolated { .. } => "isolated",
            Self::UdpBack(End::Ours) => "udp-back-here",
            Self::UdpBack(End::Theirs) => "udp-back-there",
            Self::InboundFiltered(End::Ours) => "inbound-filtered-here",
            Self::InboundFiltered(End::Theirs) => "inbound-filtered-there",
            Self::FilteredBetween => "filtered-between",
            Self::Probing => "probing",
            Self::NothingToTry => "nothing-to-try",
            Self::HalfKnown { .. } => "half-known",
            Self::Unclear => "unclear",
        }
    }

    /// Whether there is nothing to mend.
    pub fn is_fine(&self) -> bool {
        matches!(self, Self::Direct { .. } | Self::Idle | Self::Probing | Self::UdpBack(_))
    }

    /// What it comes down to, in a sentence. `peer` is the other end's name.
    pub fn text(&self, peer: &str) -> String {
        match self {
            Self::Direct { to, srtt } => {
                let took = srtt.map(|srtt| format!(", {:.1} ms there and back", srtt.as_secs_f64() * 1e3));
                format!("{peer} is reached directly at {to}{}", took.unwrap_or_default())
            }
            Self::UnknownName { known } if known.is_empty() => {
                format!("no member is called {peer:?}, and no other member is known yet")
            }
            Self::UnknownName { known } => format!("no member is called {peer:?}; there are {}", known.join(", ")),
            Self::Removed => format!("{peer} was removed from the network: nobody may speak to it any more"),
            Self::NoDevice => "this machine's network device is not there, so nothing enters the network".into(),
            Self::NoNetwork => "this machine has no route to anywhere: neither IPv4 nor IPv6".into(),
            Self::UdpBlocked(End::Ours) => {
                "UDP from this machine is answered by nobody: it is blocked on the way".into()
            }
            Self::UdpBlocked(End::Theirs) => format!("UDP is blocked where {peer} is"),
            Self::ServerDown => {
                format!("the server does not answer, and no address of {peer} is known from earlier")
            }
            Self::ServerDownTried => {
                format!("the server does not answer, nor does {peer} at the addresses it had before")
            }
            Self::Offline => format!("{peer} is not connected to the server: it is off, or has no network"),
            Self::Idle => format!("nothing was sent to {peer} yet, so no path was made; nothing is known to be wrong"),
            Self::Unanswered => {
                format!("the server says that {peer} is there, but it answers nothing, not even by the relay")
            }
            Self::Lost { heard } => {
                let what = match heard {
                    Some(ago) => format!("nothing has come from {peer} for {}", Seconds(ago.as_secs_f64())),
                    None => format!("nothing comes from {peer} any more"),
                };
                format!("{what}, neither directly nor by the relay: it stopped, or has lost its network")
            }
            Self::Unheard => format!(
                "{peer} is heard here, and answers nothing that it is asked: what this machine sends is lost on the way"
            ),
            Self::DirectOff(End::Ours) => "this machine's configuration has direct: false".into(),
            Self::DirectOff(End::Theirs) => format!("{peer}'s configuration has direct: false"),
            Self::Overlap(Overlap { network, local, device }) => format!(
                "the network's addresses {network} are also those of the local network {local} at {device}, so its \
                 addresses are no paths"
            ),
            Self::NoCommonFamily { ours, theirs } => {
                format!("this machine has only {ours}, {peer} only {theirs}: the relay is the one way between them")
            }
            Self::NoRoute { errno } => {
                let error = std::io::Error::from_raw_os_error(i32::from(*errno));
                format!("no address of either end can be reached from the other ({error})")
            }
            Self::BothHard => format!(
                "both ends' NATs use a new random port for each destination, so neither can know where to send to \
                 {peer}: such a pair stays on the relay"
            ),
            Self::HardNatOff { hard, off } => format!(
                "{} NAT uses a new random port for each destination and the other end filters; guessing ports would \
                 help, and is off {}",
                whose(*hard, peer),
                where_(*off, peer)
            ),
            Self::HardNat { hard } => format!(
                "{} NAT uses a new random port for each destination and the other end filters: many ports have to be \
                 guessed, at most once in ten minutes",
                whose(*hard, peer)
            ),
            Self::NoHairpin { outside } => format!(
                "both ends are behind {outside}, which does not lead back in, and no address inside it was reached"
            ),
            Self::Isolated { outside } => format!(
                "both ends are behind {outside} and have tried each other's inside addresses, and nothing passes: \
                 the network they share keeps its machines apart, or theirs are two behind one NAT of a provider"
            ),
            Self::UdpBack(end) => format!(
                "{} connection to the server is still by TCP; UDP passes again and is used within a minute, and then \
                 the direct ways are tried",
                whose(*end, peer)
            ),
            Self::InboundFiltered(End::Ours) => {
                format!(
                    "what this machine sends arrives at {peer}, but what {peer} sends here does not: a firewall here drops it"
                )
            }
            Self::InboundFiltered(End::Theirs) => {
                format!("what {peer} sends arrives here, but what is sent there does not: a firewall there drops it")
            }
            Self::FilteredBetween => format!("no datagram passes between this machine and {peer}, in either direction"),
            Self::Probing => "the session is new and the direct ways are still being tried".into(),
            Self::NothingToTry => format!("neither end knows an address of the other: {peer} announces none"),
            Self::HalfKnown { understood: true } => {
                format!(
                    "{peer} did not tell what it tried, so only this end is known: nothing answered from {peer}'s addresses"
                )
            }
            Self::HalfKnown { understood: false } => {
                format!("{peer} runs a version that cannot tell what it tried; nothing answered from its addresses")
            }
            Self::Unclear => "datagrams arrive, but no path answered in time; nothing that is known explains it".into(),
        }
    }

    /// The one change that would help; `None` where there is nothing to mend.
    pub fn fix(&self, peer: &str) -> Option<String> {
        Some(match self {
            Self::Direct { .. } | Self::Probing | Self::UdpBack(_) => return None,
            Self::UnknownName { .. } => "use a name from `eps-actor members`, or invite that machine".into(),
            Self::Removed => format!("to have {peer} back, invite it anew: `eps-actor invite` at the server"),
            Self::NoDevice => "look into `eps-actor status` and the log why the device is not there; as root the \
                               client makes it again"
                .into(),
            Self::NoNetwork => "connect this machine to a network".into(),
            Self::UdpBlocked(End::Ours) => {
                "allow outgoing UDP (and its answers) in this network's firewall, at least to the server's port".into()
            }
            Self::UdpBlocked(End::Theirs) => {
                format!("allow outgoing UDP (and its answers) in the firewall of {peer}'s network")
            }
            Self::ServerDown | Self::ServerDownTried => {
                "start the server, or see that its UDP port can be reached from here".into()
            }
            Self::Offline => format!("start {peer}, or `eps-actor client` on it, or its network"),
            Self::Idle => format!("`eps-actor ping {peer}` makes a path"),
            Self::Unanswered => format!("look into {peer}'s log; restarting its client makes new sessions"),
            Self::Lost { .. } => format!("look after {peer}: whether it is on, has a network, and its client runs"),
            Self::Unheard => {
                format!("let UDP of the client out in this machine's firewall, and in at {peer}'s; then ask again")
            }
            Self::DirectOff(End::Ours) => "set direct: true here".into(),
            Self::DirectOff(End::Theirs) => format!("set direct: true at {peer}"),
            Self::Overlap(Overlap { device, .. }) => {
                format!("give the local network at {device} other addresses, or the server another --network")
            }
            Self::NoCommonFamily { ours, theirs } => {
                format!("give this machine {theirs} as well, or {peer} {ours}")
            }
            Self::NoRoute { .. } => format!("give this machine or {peer} a default route"),
            Self::BothHard => format!(
                "map a port to this machine or to {peer}: switch on PCP, NAT-PMP or UPnP in one of the routers, or \
                 forward a UDP port and set listen-port to it"
            ),
            Self::HardNatOff { off, .. } => format!("set hard-nat: true {}", where_(*off, peer)),
            Self::HardNat { hard } => {
                let router = match hard {
                    End::Ours => "this machine's router".into(),
                    End::Theirs => format!("{peer}'s router"),
                };
                format!("switch on PCP, NAT-PMP or UPnP in {router}, or forward a UDP port in it")
            }
            Self::NoHairpin { .. } => {
                "set lan: true at both, so that they try each other's inside addresses, or switch on hairpin (NAT \
                 loopback) in the router"
                    .into()
            }
            Self::Isolated { .. } => "switch off client isolation (AP isolation) in the Wi-Fi or router they share; \
                                      behind a provider's NAT, give both IPv6"
                .into(),
            Self::InboundFiltered(End::Ours) => {
                "allow incoming UDP to the client's port in this machine's firewall (listen-port makes it a fixed one)"
                    .into()
            }
            Self::InboundFiltered(End::Theirs) => {
                format!(
                    "allow incoming UDP to the client's port in {peer}'s firewall (listen-port makes it a fixed one)"
                )
            }
            Self::FilteredBetween => {
                format!("allow UDP between this machine and {peer} in the firewalls between them, or map a port at one")
            }
            Self::NothingToTry => format!("see that lan and direct are true here and at {peer}"),
            Self::HalfKnown { understood: true } => format!("ask again, or run `eps-actor why` at {peer}"),
            Self::HalfKnown { understood: false } => format!("upgrade {peer}"),
            Self::Unclear => {
                "wait half a minute and ask again; if it stays so, `eps-actor netcheck` at both ends".into()
            }
        })
    }
}

fn whose(end: End, peer: &str) -> String {
    match end {
        End::Ours => "this machine's".into(),
        End::Theirs => format!("{peer}'s"),
    }
}

fn where_(end: End, peer: &str) -> String {
    match end {
        End::Ours => "here".into(),
        End::Theirs => format!("at {peer}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::why::Try;

    const ALL: u16 = Side::DIRECT | Side::ATTACHED | Side::ROUTE4 | Side::DEVICE | Side::UDP_ANSWERED | Side::HARD_NAT;

    fn addr(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 43439).into()
    }

    fn side(mapping: Mapping, last: u8, other: u8) -> Side {
        let one =
            Try { addr: addr(other), kind: Some(CandidateKind::Observed), sent: 7, answered: 0, arrived: 0, errno: 0 };
        Side { flags: ALL, mapping, observed: Some(addr(last)), own: Vec::new(), tries: vec![one] }
    }

    /// A pair on the relay between two hosts with public addresses, in which nothing arrives.
    fn pair() -> (Facts, Side) {
        let facts = Facts {
            peer: "bob".into(),
            online: true,
            session: Some(Duration::from_secs(60)),
            way: Some(Way::Relay),
            ours: side(Mapping::NoNat, 1, 2),
            ..Facts::default()
        };
        (facts, side(Mapping::NoNat, 2, 1))
    }

    /// A set-up in words, what is changed in the pair, the verdict.
    type Case = (&'static str, Box<dyn Fn(&mut Facts, &mut Side)>, &'static str);

    fn case(what: &'static str, change: impl Fn(&mut Facts, &mut Side) + 'static, name: &'static str) -> Case {
        (what, Box::new(change), name)
    }

    fn cases() -> Vec<Case> {
        vec![
            case("direct and fine", |f, _| f.way = Some(Way::Direct(addr(2))), "direct"),
            case("nobody of that name", |f, _| f.membership = Membership::Unknown(vec!["eve".into()]), "unknown-name"),
            case("removed", |f, _| f.membership = Membership::Removed, "removed"),
            case("no device here", |f, _| f.ours.set(Side::DEVICE, false), "no-device"),
            case("the peer is off", |f, _| (f.way, f.session, f.online) = (None, None, false), "offline"),
            case(
                "the peer is off, and the session is still there",
                |f, _| (f.online, f.theirs) = (false, Account::Silent),
                "offline",
            ),
            case("nobody has sent", |f, _| (f.way, f.session, f.idle) = (None, None, true), "idle"),
            case("online and silent", |f, _| (f.way, f.session) = (None, None), "unanswered"),
            case(
                "server down, nothing cached",
                |f, _| {
                    (f.way, f.session) = (None, None);
                    f.ours.flags = ALL & !(Side::ATTACHED | Side::UDP_ANSWERED);
                },
                "server-down",
            ),
            case(
                "server down, an old address does not answer",
                |f, _| {
                    (f.way, f.session, f.cached) = (None, None, true);
                    f.ours.flags = ALL & !(Side::ATTACHED | Side::UDP_ANSWERED);
                },
                "server-down-tried",
            ),
            case(
                "no cable",
                |f, _| {
                    (f.way, f.session) = (None, None);
                    f.ours.flags = Side::DIRECT | Side::DEVICE;
                },
                "no-network",
            ),
            case(
                "UDP blocked here, TCP to the server opens",
                |f, _| {
                    (f.way, f.session, f.server_tcp) = (None, None, Some(true));
                    f.ours.flags = ALL & !(Side::ATTACHED | Side::UDP_ANSWERED);
                },
                "udp-blocked-here",
            ),
            case(
                "UDP blocked here, on the relay by TCP",
                |f, _| f.ours.flags = ALL & !Side::UDP_ANSWERED | Side::BY_TCP,
                "udp-blocked-here",
            ),
            case(
                "UDP blocked there, on the relay by TCP",
                |_, t| t.flags = ALL & !Side::UDP_ANSWERED | Side::BY_TCP,
                "udp-blocked-there",
            ),
            case("UDP blocked there", |_, t| t.mapping = Mapping::Blocked, "udp-blocked-there"),
            case("direct off here", |f, _| f.ours.set(Side::DIRECT, false), "direct-off-here"),
            case("direct off there", |_, t| t.set(Side::DIRECT, false), "direct-off-there"),
            case(
                "both hard",
                |f, t| (f.ours.mapping, t.mapping) = (Mapping::Dependent, Mapping::Dependent),
                "both-hard",
            ),
            case(
                "hard here and port-restricted there, with guessing off",
                |f, t| {
                    (f.ours.mapping, t.mapping) = (Mapping::Dependent, Mapping::Independent);
                    f.ours.set(Side::HARD_NAT, false);
                },
                "hard-nat-off",
            ),
            case(
                "the same with guessing on",
                |f, t| (f.ours.mapping, t.mapping) = (Mapping::Independent, Mapping::Dependent),
                "hard-nat",
            ),
            case(
                "hard here, public there, and theirs arrives",
                |f, _| {
                    f.ours.mapping = Mapping::Dependent;
                    f.ours.tries[0].arrived = 3;
                },
                "inbound-filtered-there",
            ),
            case("a firewall there", |f, _| f.ours.tries[0].arrived = 9, "inbound-filtered-there"),
            case("a firewall here", |_, t| t.tries[0].arrived = 9, "inbound-filtered-here"),
            case("a firewall between public hosts", |_, _| (), "filtered-between"),
            case("v4 only and v6 only", |_, t| t.flags = ALL & !Side::ROUTE4 | Side::ROUTE6, "no-common-family"),
            case(
                "no route to any address",
                |f, t| {
                    f.ours.tries[0].errno = 101;
                    t.tries[0].errno = 101;
                },
                "no-route",
            ),
            case(
                "behind one NAT without hairpin",
                |f, t| {
                    (f.ours.mapping, t.mapping) = (Mapping::Independent, Mapping::Independent);
                    t.observed = Some(addr(1));
                },
                "no-hairpin",
            ),
            case(
                "the LAN has the network's addresses",
                |f, _| {
                    let net: IpNet = "10.20.0.0/24".parse().expect("a network");
                    f.overlap = Some(Overlap { network: net, local: net, device: "eth0".into() });
                },
                "overlap",
            ),
            case(
                "a session of a second",
                |f, t| {
                    f.session = Some(Duration::from_secs(1));
                    (f.ours.tries[0].sent, t.tries[0].sent) = (3, 2);
                },
                "probing",
            ),
            case("new keys after a long time", |f, _| f.session = Some(Duration::from_secs(1)), "filtered-between"),
            case(
                "nothing announced",
                |f, t| {
                    f.ours.tries.clear();
                    t.tries.clear();
                },
                "nothing-to-try",
            ),
            case(
                "the other end is silent, and something came just now",
                |f, _| (f.theirs, f.heard) = (Account::Silent, Some(Duration::from_millis(300))),
                "half-known",
            ),
            case(
                "killed, and the path looks well",
                |f, _| {
                    (f.way, f.theirs) = (Some(Way::Direct(addr(2))), Account::Silent);
                    f.heard = Some(Duration::from_secs(9));
                },
                "lost",
            ),
            case(
                "it is heard on a direct path, and hears nothing",
                |f, _| {
                    (f.way, f.theirs) = (Some(Way::Direct(addr(2))), Account::Silent);
                    f.heard = Some(Duration::from_millis(200));
                },
                "unheard",
            ),
            case(
                "killed, and all paths are dead",
                |f, _| (f.way, f.heard) = (None, Some(Duration::from_secs(40))),
                "lost",
            ),
            case(
                "killed, and the server has missed it",
                |f, _| (f.way, f.heard, f.online) = (None, Some(Duration::from_secs(90)), false),
                "offline",
            ),
            case(
                "the server died under a relayed pair and is missed",
                |f, _| {
                    (f.theirs, f.cached, f.heard) = (Account::Silent, true, Some(Duration::from_secs(3)));
                    f.ours.flags = ALL & !(Side::ATTACHED | Side::UDP_ANSWERED);
                },
                "server-down-tried",
            ),
            case(
                "the server died a moment ago: what it said last does not count",
                |f, _| {
                    (f.theirs, f.cached, f.heard) = (Account::Silent, true, Some(Duration::from_secs(3)));
                    f.ours.set(Side::UDP_ANSWERED, false);
                },
                "server-down-tried",
            ),
            case(
                "UDP is blocked from now on, under a relayed pair",
                |f, _| {
                    (f.theirs, f.cached, f.server_tcp) = (Account::Silent, true, Some(true));
                    f.ours.set(Side::UDP_ANSWERED, false);
                },
                "udp-blocked-here",
            ),
            case(
                "the server went, and the relay still works",
                |f, _| f.ours.flags = ALL & !(Side::ATTACHED | Side::UDP_ANSWERED),
                "filtered-between",
            ),
            case("UDP is back there, on TCP still", |_, t| t.set(Side::BY_TCP, true), "udp-back-there"),
            case("UDP is back here, on TCP still", |f, _| f.ours.set(Side::BY_TCP, true), "udp-back-here"),
            case(
                "two hard NATs with one outside address",
                |f, t| {
                    (f.ours.mapping, t.mapping) = (Mapping::Dependent, Mapping::Dependent);
                    t.observed = Some(addr(1));
                },
                "both-hard",
            ),
            case(
                "in one Wi-Fi that keeps its machines apart",
                |f, t| {
                    (f.ours.mapping, t.mapping) = (Mapping::Independent, Mapping::Independent);
                    t.observed = Some(addr(1));
                    (f.ours.tries[0].kind, t.tries[0].kind) = (Some(CandidateKind::Host), Some(CandidateKind::Host));
                },
                "isolated",
            ),
            case(
                "behind one NAT, and a firewall at the other end",
                |f, t| {
                    (f.ours.mapping, t.mapping) = (Mapping::Independent, Mapping::Independent);
                    t.observed = Some(addr(1));
                    f.ours.tries[0].arrived = 4;
                },
                "inbound-filtered-there",
            ),
            case("the other end is older", |f, _| f.theirs = Account::NotUnderstood, "half-known"),
            case(
                "both arrive, and no path answers",
                |f, t| (f.ours.tries[0].arrived, t.tries[0].arrived) = (1, 1),
                "unclear",
            ),
        ]
    }

    #[test]
    fn every_broken_set_up_has_its_own_verdict_and_one_change_that_would_fix_it() {
        let mut names = std::collections::BTreeSet::new();
        for (what, change, expected) in cases() {
            let (mut facts, mut theirs) = pair();
            change(&mut facts, &mut theirs);
            if facts.theirs == Account::NotAsked && facts.way.is_some() {
                facts.theirs = Account::Told(theirs);
            }
            let verdict = judge(&facts);
            assert_eq!(verdict.name(), expected, "{what}: {verdict:?}");
            names.insert(verdict.name());
            let (text, fix) = (verdict.text("bob"), verdict.fix("bob"));
            println!("{what}: {text} -> {}", fix.as_deref().unwrap_or("nothing to mend"));
            assert!(!text.is_empty() && !text.ends_with('.') && !text.contains('\n'), "{text}");
            assert!(verdict.is_fine() || fix.is_some(), "{what}");
        }
        println!("{} set-ups, {} verdicts", cases().len(), names.len());
        assert!(names.len() >= 25, "{names:?}");
    }

    #[test]
    fn what_is_not_known_is_no_reason() {
        let (mut facts, mut theirs) = pair();
        facts.ours.mapping = Mapping::Unknown;
        theirs.mapping = Mapping::Unknown;
        (facts.ours.observed, theirs.observed) = (None, None);
        facts.theirs = Account::Told(theirs);
        assert_eq!(judge(&facts), Verdict::FilteredBetween, "by the counts alone");
        let empty = Facts { ours: Side { flags: ALL, ..Side::default() }, online: true, ..Facts::default() };
        assert_eq!(judge(&empty), Verdict::Unanswered);
    }
}
