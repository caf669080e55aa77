//! What a host's NATs do, found out by asking servers where they see it.
//!
//! A [`Round`] is some questions from one socket, repeated until they are answered or time is over. What the answers
//! mean is decided here as well: [`mapping`] by the addresses observed, and [`advice`] by everything together.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::Rng;

use crate::wire::observe::{Ask, Number, OBSERVE_LEN, Pass, Tell};
use crate::wire::stun;
use crate::wire::why::Mapping;

/// Waits before a question is repeated; the last one goes on.
const AGAIN: [Duration; 3] = [Duration::from_millis(150), Duration::from_millis(300), Duration::from_millis(600)];
/// The steps in which a NAT that counts its ports goes, at the most.
const STEP_MAX: u16 = 64;

/// One question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    pub to: SocketAddr,
    pub how: How,
}

/// In which protocol it is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// To a server of ours.
    Ours {
        from_other: bool,
        pass: Option<(Pass, SocketAddr)>,
        /// Bytes of the question.
        length: usize,
    },
    Stun,
}

impl How {
    /// The plain question to a server of ours.
    pub const PLAIN: Self = Self::Ours { from_other: false, pass: None, length: OBSERVE_LEN };
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Where it came from.
    pub from: SocketAddr,
    pub observed: SocketAddr,
    pub took: Duration,
    /// What only servers of ours say.
    pub more: Option<Tell>,
}

/// Questions from one socket.
#[derive(Debug)]
pub struct Round {
    items: Vec<Item>,
    end: Instant,
}

#[derive(Debug)]
struct Item {
    question: Question,
    number: Number,
    sent: Option<Instant>,
    tries: usize,
    next: Instant,
    heard: Option<Heard>,
}

impl Round {
    /// Begins a round that ends after `patience`.
    pub fn new(questions: &[Question], patience: Duration, now: Instant, rng: &mut impl Rng) -> Self {
        let items = questions.iter().map(|question| {
            let mut number = [0; 12];
            rng.fill_bytes(&mut number);
            Item { question: *question, number, sent: None, tries: 0, next: now, heard: None }
        });
        Self { items: items.collect(), end: now + patience }
    }

    /// A datagram that is due.
    pub fn poll_send(&mut self, now: Instant) -> Option<(SocketAddr, Vec<u8>)> {
        let item = self.items.iter_mut().find(|item| item.heard.is_none() && now >= item.next)?;
        item.next = now + AGAIN[item.tries.min(AGAIN.len() - 1)];
        item.tries += 1;
        item.sent.get_or_insert(now);
        let bytes = match item.question.how {
            How::Ours { from_other, pass, length } => Ask { number: item.number, from_other, pass, length }.to_bytes(),
            How::Stun => stun::ask(item.number).to_vec(),
        };
        Some((item.question.to, bytes))
    }

    /// A datagram that came. Only the number has to fit: the answer may come from another port, which is the point.
    pub fn handle(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) {
        let (number, observed, more) = match (Tell::parse(bytes), stun::parse(bytes)) {
            (Some(tell), _) => (tell.number, tell.observed, Some(tell)),
            (None, Some((number, observed))) => (number, observed, None),
            (None, None) => return,
        };
        let item = self.items.iter_mut().find(|item| item.number == number && item.heard.is_none());
        if let Some(item) = item
            && let Some(sent) = item.sent
        {
            let took = now.saturating_duration_since(sent);
            item.heard = Some(Heard { from, observed, took, more });
        }
    }

    pub fn poll_timeout(&self) -> Instant {
        let open = self.items.iter().filter(|item| item.heard.is_none());
        open.map(|item| item.next).min().unwrap_or(self.end).min(self.end)
    }

    /// Whether there is nothing to wait for.
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.end || self.items.iter().all(|item| item.heard.is_some())
    }

    /// What became of each question, in their order.
    pub fn results(&self) -> Vec<Option<Heard>> {
        self.items.iter().map(|item| item.heard).collect()
    }
}

/// One socket seen from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// Which socket of ours.
    pub socket: usize,
    /// Its own address.
    pub local: SocketAddr,
    /// Who saw it.
    pub by: SocketAddr,
    pub observed: SocketAddr,
}

/// What all sights together say of how ports are mapped.
pub fn mapping(sights: &[Sight]) -> Mapping {
    if sights.is_empty() {
        return Mapping::Unknown;
    }
    if sights.iter().all(|sight| sight.local == sight.observed) {
        return Mapping::NoNat;
    }
    // Pairs of one socket, seen by two.
    let pairs: Vec<(u16, u16)> = sights
        .iter()
        .enumerate()
        .flat_map(|(at, one)| sights[at + 1..].iter().map(move |other| (one, other)))
        .filter(|(one, other)| one.socket == other.socket && one.by != other.by)
        .map(|(one, other)| (one.observed.port(), other.observed.port()))
        .collect();
    if pairs.is_empty() {
        return Mapping::Unknown;
    }
    if pairs.iter().all(|(one, other)| one == other) {
        return Mapping::Independent;
    }
    let steps: Vec<u16> = pairs.iter().map(|(one, other)| other.wrapping_sub(*one)).collect();
    let small = |step: &u16| step.min(&step.wrapping_neg()) <= &STEP_MAX && *step != 0;
    // One pair may be near by chance.
    let regular = steps.len() > 2 && steps.iter().all(|step| step == &steps[0] && small(step));
    if regular { Mapping::Predictable } else { Mapping::Dependent }
}

/// What comes in from where nothing was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Filtering {
    #[default]
    Unknown,
    /// An answer from another port of the same server came through.
    Open,
    /// It did not.
    ByPort,
}

impl Filtering {
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Open => "not by port",
            Self::ByPort => "address and port",
        }
    }
}

/// What was found out in one address family.
#[derive(Debug, Clone, Default)]
pub struct Family {
    /// Interface and address, those that others might reach.
    pub addresses: Vec<(String, IpAddr)>,
    /// Interface and gateway of the default route.
    pub default_route: Option<(String, Option<IpAddr>)>,
    /// Somebody was asked by UDP, and whether anybody answered.
    pub udp: Option<bool>,
    pub observed: Option<SocketAddr>,
    pub mapping: Mapping,
    pub filtering: Filtering,
    pub hairpin: Option<bool>,
    /// A mapping without traffic lived so long, and so long it did not.
    pub lifetime: Option<(Duration, Option<Duration>)>,
    /// The largest IP packet that arrived at the server whole.
    pub packet: Option<u16>,
}

/// One server that was asked.
#[derive(Debug, Clone)]
pub struct Server {
    pub name: String,
    pub is_ours: bool,
    pub addr: Option<SocketAddr>,
    /// The round trip by UDP.
    pub udp: Option<Duration>,
    /// How long a TCP connection took; `None` where it was not tried, an error where it failed.
    pub tcp: Option<Result<Duration, String>>,
    /// Its name does not resolve.
    pub error: Option<String>,
}

/// Everything that was found out.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub four: Family,
    pub six: Family,
    pub servers: Vec<Server>,
    pub gateway: Option<IpAddr>,
    /// Port mapping protocols that the gateway speaks.
    pub protocols: Vec<&'static str>,
    /// The gateway's own outside address, where it told it.
    pub gateway_outside: Option<IpAddr>,
    /// Our clock is ahead of the server's by so many seconds.
    pub clock_ahead: Option<f64>,
}

/// A clock further off than this is worth a word, in seconds.
const CLOCK_OFF: f64 = 60.0;
/// An IP packet that the network's usual frames need with our headers around them, over IPv4: 1420 bytes of payload.
const PACKET_WANTED: u16 = 1500;

/// What would make it better, the most important first.
pub fn advice(facts: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |line: String| lines.push(line);
    let (four, six) = (&facts.four, &facts.six);
    if four.default_route.is_none() && six.default_route.is_none() {
        say("there is no default route: connect this machine to a network".into());
    }
    for server in &facts.servers {
        if let Some(error) = &server.error {
            say(format!("{} cannot be resolved ({error}): check the name and this machine's DNS", server.name));
        }
    }
    if facts.servers.is_empty() {
        say("no server was asked: name yours with --server HOST, or a public one with --stun HOST".into());
    }
    let asked = |server: &&Server| server.addr.is_some();
    let answered = facts.servers.iter().filter(asked).any(|server| server.udp.is_some());
    let connected = facts.servers.iter().any(|server| matches!(server.tcp, Some(Ok(_))));
    if facts.servers.iter().any(|server| server.addr.is_some()) && !answered {
        say(if connected {
            "UDP is not answered and TCP is: allow outgoing UDP to the server's port in this network's firewall; until \
             then everything takes the server by TCP, which is slow (a server of an older version would look the same)"
                .into()
        } else {
            "no server answers, neither by UDP nor by TCP: is it running, and is its port open and forwarded to it?"
                .into()
        });
    }
    let nats: Vec<&Family> = [four, six].into_iter().filter(|family| family.mapping != Mapping::NoNat).collect();
    let hard = nats.iter().any(|family| matches!(family.mapping, Mapping::Dependent | Mapping::Predictable));
    let maps = facts.protocols.first();
    if hard && let Some(protocol) = maps {
        say(format!(
            "this NAT uses another port for each destination, but the gateway speaks {protocol}: a client here maps its \
             port (upnptimeout must not be 0s) and is reached directly"
        ));
    } else if hard {
        say("this NAT uses another port for each destination: members behind another such NAT, or one that filters, \
             may only be reached by the relay. Switch on PCP, NAT-PMP or UPnP in the router, or forward a UDP port to \
             this machine and set listen-port to it"
            .into());
    }
    if let (Some(IpAddr::V4(outside)), Some(observed)) = (facts.gateway_outside, four.observed)
        && IpAddr::V4(outside) != observed.ip()
    {
        say(format!(
            "the gateway's outside address is {outside}, the server sees {}: there is a second NAT behind it (of the \
             provider, or another router), and port mappings at the first do not lead here. Ask the provider for a \
             public address, or use IPv6",
            observed.ip()
        ));
    }
    if four.hairpin == Some(false) && four.mapping != Mapping::NoNat {
        say("the NAT does not lead back in (no hairpin): members in this LAN reach each other by their inside \
             addresses only, so leave lan: true"
            .into());
    }
    if let Some((_, Some(gone))) = four.lifetime
        && gone <= Duration::from_secs(25)
    {
        say(format!(
            "a mapping without traffic ends within {} s: shorter than usual, so the client's keepalives of 20 s may be \
             too slow for it; raise the router's UDP time-out",
            gone.as_secs().max(1)
        ));
    }
    for (family, name) in [(four, "IPv4"), (six, "IPv6")] {
        if let Some(packet) = family.packet.filter(|packet| *packet < PACKET_WANTED) {
            say(format!(
                "over {name}, packets above {packet} bytes do not arrive whole: a smaller --mtu at all clients avoids \
                 cutting every full frame in two"
            ));
        }
    }
    if let Some(ahead) = facts.clock_ahead.filter(|ahead| ahead.abs() > CLOCK_OFF) {
        let way = if ahead > 0.0 { "ahead of" } else { "behind" };
        say(format!(
            "this machine's clock is {:.0} s {way} the server's: set it (NTP); invitations end by the clock",
            ahead.abs()
        ));
    }
    if six.default_route.is_none() && four.default_route.is_some() && hard {
        say("with IPv6 on both ends no NAT would be between them; this machine has no IPv6 route".into());
    }
    lines
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn questions_are_repeated_until_each_is_answered_or_time_is_over() {
        let (mut now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let (ours, public) = (addr("198.51.100.1:43439"), addr("198.51.100.2:3478"));
        let questions = [Question { to: ours, how: How::PLAIN }, Question { to: public, how: How::Stun }];
        let mut round = Round::new(&questions, Duration::from_secs(1), now, &mut rng);
        let first: Vec<_> = std::iter::from_fn(|| round.poll_send(now)).collect();
        assert_eq!(first.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [ours, public]);
        now = round.poll_timeout();
        assert_eq!(round.poll_send(now), Some(first[0].clone()), "the same question again");

        let ask = Ask::parse(&first[0].1).expect("a question");
        let observed = addr("203.0.113.1:7");
        let tell = Tell { number: ask.number, from_other: true, pass: [0; 16], observed, other_port: 43440, unix: 1 };
        let forged = Tell { number: [0; 12], ..tell };
        round.handle(addr("198.51.100.1:43440"), &forged.to_bytes(), now);
        assert_eq!(round.results(), [None, None]);
        round.handle(addr("198.51.100.1:43440"), &tell.to_bytes(), now);
        assert!(!round.is_over(now));
        let number: Number = first[1].1[8..].try_into().expect("twelve bytes");
        round.handle(public, &stun::tell(number, observed), now);
        assert!(round.is_over(now) && round.poll_send(now).is_none());
        assert!(round.results().iter().all(|heard| heard.is_some_and(|heard| heard.observed == observed)));

        let silent = Round::new(&questions, Duration::from_secs(1), now, &mut rng);
        assert!(!silent.is_over(now) && silent.is_over(now + Duration::from_secs(1)));
    }

    fn sight(socket: usize, by: u16, observed: u16) -> Sight {
        Sight {
            socket,
            local: addr(&format!("192.168.1.2:{}", 40_000 + socket)),
            by: addr(&format!("198.51.100.1:{by}")),
            observed: addr(&format!("203.0.113.1:{observed}")),
        }
    }

    #[test]
    fn mappings_are_told_by_what_two_ports_of_a_server_see() {
        let public = Sight { observed: addr("192.168.1.2:40000"), ..sight(0, 1, 0) };
        for (what, sights, expected) in [
            ("nobody answered", vec![], Mapping::Unknown),
            ("no NAT", vec![public, Sight { by: addr("198.51.100.1:2"), ..public }], Mapping::NoNat),
            ("a NAT seen once", vec![sight(0, 1, 5)], Mapping::Unknown),
            ("one port for both", vec![sight(0, 1, 5), sight(0, 2, 5)], Mapping::Independent),
            ("two ports", vec![sight(0, 1, 5), sight(0, 2, 6)], Mapping::Dependent),
            (
                "always the next one",
                (0..3).flat_map(|n| [sight(n, 1, 9 * n as u16 + 5), sight(n, 2, 9 * n as u16 + 7)]).collect(),
                Mapping::Predictable,
            ),
            (
                "at random",
                vec![
                    sight(0, 1, 5),
                    sight(0, 2, 7),
                    sight(1, 1, 60_000),
                    sight(1, 2, 9),
                    sight(2, 1, 777),
                    sight(2, 2, 40_000),
                ],
                Mapping::Dependent,
            ),
        ] {
            assert_eq!(mapping(&sights), expected, "{what}");
        }
    }

    fn good() -> Facts {
        let four = Family {
            default_route: Some(("eth0".into(), None)),
            udp: Some(true),
            observed: Some(addr("203.0.113.1:7")),
            mapping: Mapping::Independent,
            hairpin: Some(true),
            packet: Some(1500),
            ..Family::default()
        };
        let server = Server {
            name: "vpn.example.org".into(),
            is_ours: true,
            addr: Some(addr("198.51.100.1:43439")),
            udp: Some(Duration::from_millis(3)),
            tcp: Some(Ok(Duration::from_millis(3))),
            error: None,
        };
        Facts { four, servers: vec![server], clock_ahead: Some(0.5), ..Facts::default() }
    }

    #[test]
    fn a_good_host_needs_no_advice_and_each_trouble_has_its_own() {
        assert_eq!(advice(&good()), [""; 0]);
        type Change = Box<dyn Fn(&mut Facts)>;
        let troubles: Vec<(Change, &str)> = vec![
            (Box::new(|facts| facts.four.default_route = None), "there is no default route"),
            (Box::new(|facts| facts.servers.clear()), "no server was asked"),
            (Box::new(|facts| facts.servers[0].udp = None), "UDP is not answered and TCP is"),
            (
                Box::new(|facts| (facts.servers[0].udp, facts.servers[0].tcp) = (None, Some(Err("refused".into())))),
                "no server answers",
            ),
            (
                Box::new(|facts| {
                    (facts.servers[0].addr, facts.servers[0].error) = (None, Some("no such name".into()));
                }),
                "cannot be resolved",
            ),
            (Box::new(|facts| facts.four.mapping = Mapping::Dependent), "Switch on PCP"),
            (
                Box::new(|facts| (facts.four.mapping, facts.protocols) = (Mapping::Predictable, vec!["PCP"])),
                "the gateway speaks PCP",
            ),
            (Box::new(|facts| facts.gateway_outside = "100.64.0.9".parse().ok()), "a second NAT"),
            (Box::new(|facts| facts.four.hairpin = Some(false)), "no hairpin"),
            (
                Box::new(|facts| facts.four.lifetime = Some((Duration::from_secs(10), Some(Duration::from_secs(15))))),
                "a mapping without traffic ends",
            ),
            (Box::new(|facts| facts.four.packet = Some(1420)), "packets above 1420 bytes"),
            (Box::new(|facts| facts.clock_ahead = Some(-7200.0)), "clock is 7200 s behind"),
        ];
        for (change, expected) in troubles {
            let mut facts = good();
            change(&mut facts);
            let lines = advice(&facts);
            assert!(lines.iter().any(|line| line.contains(expected)), "{expected}: {lines:?}");
        }
    }
}
