//! From values as written to a typed configuration, with every problem on the way.
//!
//! Each reader returns `None` after it has told a problem, and the check goes on with the next key; relations between
//! keys are judged where both are good. A join line is never repeated in a problem, since it holds a secret.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use log::LevelFilter;

use super::outputs::{MetricsAddress, NotAnAddress};
use super::raw::{ClientRaw, Field, Keyed, MemberRaw, Node, Place, ServerRaw, Struct, Value, shorten};
use super::units::{Expiry, duration, size};
use super::{
    ClientConfig, LogFormat, LogSettings, MemberPin, Network6, RIGHTS, Role, Routing, ScorecardFormat, ServerConfig,
    Uplink, is_name, read_join_file,
};
use crate::proto::multipath::Mode;
use crate::proto::routes::{Approval, EXIT, overlaps, routable};
use crate::wire::control::OFFER_MAX;
use crate::wire::ethcloud::Token;
use crate::wire::join::{HostPort, JoinLine, MAX_HOSTS};

/// One thing that is wrong. It prints as one line:
/// `server.ron:3:14: network: "192.168.43.0/33" is not a network; write ADDRESS/PREFIX …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// Path of the key, such as `members[2].address`; empty where the syntax broke.
    pub key: String,
    /// What was found, and what is wrong with it.
    pub found: String,
    /// What would be accepted.
    pub expected: String,
}

/// The name of an option says which key it is, so the key is left out there.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::File { .. } if !self.key.is_empty() => write!(f, "{}: {}: ", self.place, self.key)?,
            Place::File { .. } | Place::Option(_) => write!(f, "{}: ", self.place)?,
        }
        write!(f, "{}; {}", self.found, self.expected)
    }
}

/// Sorts a file's values to their keys; tells unknown keys and keys written twice.
pub fn keys<K: Keyed>(root: Node, role: Role, problems: &mut Vec<Problem>) -> K {
    let mut check = Check { problems };
    let name = match role {
        Role::Server => "Server",
        Role::Client => "Client",
    };
    match root.value {
        Value::Struct(written) => {
            if let Some(other) = written.name.as_deref().filter(|other| *other != name) {
                let expected = format!("write nothing or {name} before the first (");
                check.tell::<()>(&root.place, "", format!("found the name {}", shorten(other)), expected);
            }
            check.fields(written, "", Some(role))
        }
        _ => {
            let found = format!("found {}", root.kind());
            check.tell::<()>(&root.place, "", found, "write the keys between ( and ), like (port: 43439)");
            K::default()
        }
    }
}

/// Whose keys these are, by the number that only one role has.
pub fn role_of(root: &Node) -> Role {
    let Value::Struct(written) = &root.value else { return Role::Server };
    let known = |keys: &[&str], key: &str| keys.contains(&key);
    let only = |these: &[&str], others: &[&str]| {
        written.fields.iter().filter(|field| known(these, &field.key) && !known(others, &field.key)).count()
    };
    match written.name.as_deref() {
        Some("Server") => Role::Server,
        Some("Client") => Role::Client,
        _ if only(ClientRaw::KEYS, ServerRaw::KEYS) > only(ServerRaw::KEYS, ClientRaw::KEYS) => Role::Client,
        _ => Role::Server,
    }
}

/// Judges a server's values. `None` only if a problem was told.
pub fn server(raw: &ServerRaw, problems: &mut Vec<Problem>) -> Option<ServerConfig> {
    let mut check = Check { problems };
    let state = check.path(raw.state.as_ref(), "state", super::SERVER_STATE);
    let listen = check.listen(raw.listen.as_ref());
    let port = check.number(raw.port.as_ref(), "port", 1..=65535, super::PORT, "");
    let network = check.network(raw.network.as_ref());
    let network6 = check.network6(raw.network6.as_ref());
    let sequential = check.boolean(raw.sequential.as_ref(), "sequential", false);
    let advertise = check.hosts(raw.advertise.as_ref(), "advertise", HOST, ours(port.unwrap_or(super::PORT)));
    let open = check.boolean(raw.open.as_ref(), "open", false);
    let members = check.members(raw.members.as_ref(), network);
    let allow_routes = check.allow_routes(raw.allow_routes.as_ref());
    let control = check.socket(raw.control.as_ref(), super::SERVER_CONTROL);
    let invite_expiry = check.expiry(raw.invite_expiry.as_ref());
    let scorecard_format = check.scorecard_format(raw.scorecard_format.as_ref(), raw.scorecard.as_ref());
    let stats = check.boolean(raw.stats.as_ref(), "stats", false);
    let metrics = check.metrics(raw.metrics.as_ref());
    let graphviz = check.optional_file(raw.graphviz.as_ref(), "graphviz", super::GRAPHVIZ);
    let scorecard = check.optional_file(raw.scorecard.as_ref(), "scorecard", super::SERVER_SCORECARD);
    let log_level = check.log_level(raw.log_level.as_ref());
    let how = [&raw.log_format, &raw.log_max_size, &raw.log_max_age, &raw.log_keep].map(Option::as_ref);
    let log = check.log(raw.log.as_ref(), super::SERVER_LOG, how);
    let upnptimeout = check.upnptimeout(raw.upnptimeout.as_ref());
    let next = port.unwrap_or(super::PORT).checked_add(1).unwrap_or(0);
    let written = raw.nat_port.as_ref().filter(|node| !matches!(node.value, Value::None));
    let nat_port = check.number(written, "nat_port", 0..=65535, next, "; 0 listens on none");
    let nat_port = check.not_the_same(nat_port, port, written);
    let mut warnings = Vec::new();
    warnings.extend(metrics.flatten().and_then(|address| MetricsAddress(address).warning()));
    if members.iter().flatten().any(|member| crate::proto::guard::Rights(member.rights).is_relay()) {
        warnings.push("the right relay is reserved: it changes nothing, the server alone relays".to_owned());
    }
    if open == Some(true) {
        warnings.push("the network is open: whoever reaches this server is admitted without a token".to_owned());
    }
    Some(ServerConfig {
        state: state?,
        listen: listen?,
        port: port?,
        network: network?,
        network6: network6?,
        sequential: sequential?,
        advertise: advertise?,
        open: open?,
        members: members?,
        allow_routes: allow_routes?,
        control: control?,
        invite_expiry: invite_expiry?,
        scorecard: scorecard?,
        scorecard_format: scorecard_format?,
        stats: stats?,
        metrics: metrics?,
        graphviz: graphviz?,
        log_level: log_level?,
        log: log?,
        upnptimeout: upnptimeout?,
        nat_port: nat_port?,
        warnings,
    })
}

/// Judges a client's values. `host_name` is the name where none is given. `None` only if a problem was told.
pub fn client(raw: &ClientRaw, host_name: &str, problems: &mut Vec<Problem>) -> Option<ClientConfig> {
    let mut check = Check { problems };
    let state = check.path(raw.state.as_ref(), "state", super::CLIENT_STATE);
    let port = check.number(raw.port.as_ref(), "port", 1..=65535, super::PORT, "");
    let default_port = port.unwrap_or(super::PORT);
    let join = check.join(raw, default_port);
    let servers = check.hosts(raw.server.as_ref(), "server", HOST, ours(default_port));
    let listen_port = check.number(raw.listen_port.as_ref(), "listen_port", 0..=65535, 0, "; 0 chooses one");
    let name = check.name(raw.name.as_ref(), host_name);
    let device = check.device(raw.device.as_ref());
    let mtu = check.number(raw.mtu.as_ref(), "mtu", 576..=9000, super::MTU, " (bytes)");
    let offload = check.boolean(raw.offload.as_ref(), "offload", true);
    let mss_clamp = check.boolean(raw.mss_clamp.as_ref(), "mss_clamp", true);
    let lan = check.boolean(raw.lan.as_ref(), "lan", true);
    let direct = check.boolean(raw.direct.as_ref(), "direct", true);
    let uplinks = check.uplinks(raw.uplinks.as_ref());
    let multipath = check.multipath(raw.multipath.as_ref());
    let tcp = check.boolean(raw.tcp.as_ref(), "tcp", true);
    let hosts = check.optional_file(raw.hosts.as_ref(), "hosts", super::HOSTS);
    let routing = check.routing(raw);
    let control = check.socket(raw.control.as_ref(), super::CLIENT_CONTROL);
    let scorecard_format = check.scorecard_format(raw.scorecard_format.as_ref(), raw.scorecard.as_ref());
    let stats = check.boolean(raw.stats.as_ref(), "stats", false);
    let metrics = check.metrics(raw.metrics.as_ref());
    let scorecard = check.optional_file(raw.scorecard.as_ref(), "scorecard", super::CLIENT_SCORECARD);
    let log_level = check.log_level(raw.log_level.as_ref());
    let how = [&raw.log_format, &raw.log_max_size, &raw.log_max_age, &raw.log_keep].map(Option::as_ref);
    let log = check.log(raw.log.as_ref(), super::CLIENT_LOG, how);
    let upnptimeout = check.upnptimeout(raw.upnptimeout.as_ref());
    let hard_nat = check.boolean(raw.hard_nat.as_ref(), "hard_nat", true);
    let lan_discovery = check.boolean(raw.lan_discovery.as_ref(), "lan_discovery", true);
    let cloud = check.cloud(raw.cloud.as_ref());
    let cloud_token = check.cloud_token(raw.cloud_token.as_ref());
    let cloud_connect = check.hosts(raw.cloud_connect.as_ref(), "cloud_connect", CLOUD_HOST, super::cloud::target);
    let [peer, mac] = [super::cloud::PEER_TIMEOUT_SECONDS, super::cloud::MAC_TIMEOUT_SECONDS];
    let cloud_peer_timeout =
        check.number(raw.cloud_peer_timeout.as_ref(), "cloud_peer_timeout", 1..=u16::MAX, peer, " (seconds)");
    let cloud_mac_timeout =
        check.number(raw.cloud_mac_timeout.as_ref(), "cloud_mac_timeout", 0..=u16::MAX, mac, " (seconds)");
    let bridges = check.bridges(&cloud, raw);
    let mut warnings = Vec::new();
    warnings.extend(metrics.flatten().and_then(|address| MetricsAddress(address).warning()));
    // RFC 8200, section 5: no IPv6 over links of less.
    if mtu.is_some_and(|mtu| mtu < 1280) {
        warnings.push("the device carries no IPv6 with an MTU below 1280 bytes".to_owned());
    }
    if cloud.flatten().is_some() {
        let warning = "cloud: it is not encrypted; whoever knows its token, or reads one datagram, is in";
        warnings.push(warning.to_owned());
    }
    bridges?;
    let join = join?;
    let servers = match (servers?, &join) {
        (servers, Some(line)) if servers.is_empty() => line.hosts.clone(),
        (servers, _) => servers,
    };
    Some(ClientConfig {
        state: state?,
        join,
        servers,
        port: port?,
        listen_port: listen_port?,
        name: name?,
        device: device?,
        mtu: mtu?,
        offload: offload?,
        mss_clamp: mss_clamp?,
        lan: lan?,
        direct: direct?,
        uplinks: uplinks?,
        multipath: multipath?,
        tcp: tcp?,
        hosts: hosts?,
        routing: routing?,
        control: control?,
        scorecard: scorecard?,
        scorecard_format: scorecard_format?,
        stats: stats?,
        metrics: metrics?,
        log_level: log_level?,
        log: log?,
        upnptimeout: upnptimeout?,
        hard_nat: hard_nat?,
        lan_discovery: lan_discovery?,
        cloud: cloud?,
        cloud_token: cloud_token?,
        cloud_connect: cloud_connect?,
        cloud_peer_timeout: Duration::from_secs(cloud_peer_timeout?.into()),
        cloud_mac_timeout: Duration::from_secs(cloud_mac_timeout?.into()),
        warnings,
    })
}

const NETWORK: &str = "write ADDRESS/PREFIX with a prefix from /8 to /30, like 192.168.43.0/24";
const NETWORK6: &str =
    "write auto, none or ADDRESS/PREFIX in fd00::/8 with a prefix from /48 to /96, like fd12:3456:789a::/64";
const NAME: &str = "write 1 to 63 letters, digits, - _ or ., a letter or digit first, like printer";
/// Reads a host of ours, where none is written with this port.
fn ours(port: u16) -> impl Fn(&str) -> Result<HostPort, String> {
    move |text| HostPort::parse(text, port).map_err(|reason| reason.to_string())
}

const HOST: &str = "write HOST or HOST:PORT, like vpn.example.org or [2001:db8::1]:43439";
const CLOUD_HOST: &str = "write HOST or HOST:PORT, like cloud.example.org or [2001:db8::1]:3210";
const JOIN: &str = "copy the whole line that the server printed, eps://… to the end";
const MEMBER: &str = "write (name: \"printer\", address: \"192.168.43.10\", rights: [\"bridge\"])";

struct Check<'a> {
    problems: &'a mut Vec<Problem>,
}

/// One reader for each kind of value. Each returns its default for a key that is not there.
impl Check<'_> {
    fn network(&mut self, node: Option<&Node>) -> Option<Ipv4Net> {
        let Some(node) = node else { return Some(super::NETWORK) };
        let net: Ipv4Net = self.parsed(node, "network", "a network", NETWORK)?;
        let address = net.network();
        let wrong = if !(8..=30).contains(&net.prefix_len()) {
            "is not a network"
        } else if net.addr() != address {
            let expected = format!("write {}/{}", address, net.prefix_len());
            return self.refuse(node, "network", "is an address inside a network", expected);
        } else if address.is_loopback() {
            "is the machine's own loopback"
        } else if address.octets()[0] >= 224 || address.octets()[0] == 0 {
            "has no addresses for hosts"
        } else {
            return Some(net);
        };
        self.refuse(node, "network", wrong, NETWORK)
    }

    fn network6(&mut self, node: Option<&Node>) -> Option<Network6> {
        let Some(node) = node else { return Some(Network6::Auto) };
        match self.text(node, "network6", NETWORK6)? {
            "auto" => return Some(Network6::Auto),
            "none" => return Some(Network6::None),
            _ => {}
        }
        let net: Ipv6Net = self.parsed(node, "network6", "a network", NETWORK6)?;
        let wrong = if !(48..=96).contains(&net.prefix_len()) {
            "is not a network of a fit size"
        } else if net.addr() != net.network() {
            let expected = format!("write {}/{}", net.network(), net.prefix_len());
            return self.refuse(node, "network6", "is an address inside a network", expected);
        } else if net.addr().octets()[0] != 0xfd {
            "is not in fd00::/8"
        } else {
            return Some(Network6::Prefix(net));
        };
        self.refuse(node, "network6", wrong, NETWORK6)
    }

    fn listen(&mut self, node: Option<&Node>) -> Option<Vec<IpAddr>> {
        const EXPECTED: &str = "write IP addresses of this machine, like [\"0.0.0.0\", \"::\"]";
        let Some(node) = node else { return Some(super::LISTEN.to_vec()) };
        let mut seen: Vec<IpAddr> = Vec::new();
        let addresses = self.list(node, "listen", EXPECTED, |check, node, key| {
            let address = check.parsed::<IpAddr>(node, key, "an IP address", EXPECTED)?.to_canonical();
            if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
                return check.refuse(node, key, "is an address of many machines", EXPECTED);
            }
            if seen.contains(&address) {
                return check.refuse(node, key, "is written twice", "keep one");
            }
            seen.push(address);
            Some(address)
        })?;
        if addresses.is_empty() {
            return self.tell(&node.place, "listen", "the list is empty", EXPECTED);
        }
        for all in super::LISTEN {
            let covered = addresses.iter().find(|other| **other != all && other.is_ipv4() == all.is_ipv4());
            if let Some(other) = covered.filter(|_| addresses.contains(&all)) {
                let found = format!("\"{all}\" means all addresses, \"{other}\" among them");
                return self.tell(&node.place, "listen", found, "keep one of the two");
            }
        }
        Some(addresses)
    }

    fn hosts(
        &mut self,
        node: Option<&Node>,
        key: &str,
        expected: &str,
        parse: impl Fn(&str) -> Result<HostPort, String>,
    ) -> Option<Vec<HostPort>> {
        let Some(node) = node else { return Some(Vec::new()) };
        let mut seen: Vec<HostPort> = Vec::new();
        let hosts = self.list(node, key, expected, |check, node, key| {
            let text = check.text(node, key, expected)?;
            let host = match parse(text) {
                Ok(host) => host,
                Err(reason) => return check.refuse(node, key, &format!("is not a host: {reason}"), expected),
            };
            if host.ip().is_some_and(|ip| ip.is_unspecified() || ip.is_multicast()) {
                return check.refuse(node, key, "is an address nobody can dial", expected);
            }
            if seen.contains(&host) {
                return check.refuse(node, key, "is written twice", "keep one");
            }
            seen.push(host.clone());
            Some(host)
        })?;
        if hosts.len() > MAX_HOSTS {
            return self.tell(
                &node.place,
                key,
                format!("there are {} hosts", hosts.len()),
                format!("at most {MAX_HOSTS}"),
            );
        }
        Some(hosts)
    }

    /// Reads all members, good or not, before it judges how they go together.
    fn members(&mut self, node: Option<&Node>, network: Option<Ipv4Net>) -> Option<Vec<MemberPin>> {
        let Some(node) = node else { return Some(Vec::new()) };
        let mut names: BTreeMap<String, Place> = BTreeMap::new();
        let mut pins: BTreeMap<Ipv4Addr, Place> = BTreeMap::new();
        self.list(node, "members", &format!("{MEMBER} in the list"), |check, node, key| {
            let raw = check.member(node, key)?;
            let name = check.member_name(&raw, node, key, &mut names);
            let address = check.pin(&raw, &format!("{key}.address"), network, &mut pins);
            let rights = check.rights(raw.rights.as_ref(), &format!("{key}.rights"));
            Some(MemberPin { name: name?, address: address?, rights: rights? })
        })
    }

    /// The keys of a member: a struct in a file, `NAME[=ADDRESS][,RIGHT]…` in an option.
    fn member(&mut self, node: &Node, key: &str) -> Option<MemberRaw> {
        match (&node.value, &node.place) {
            (Value::Struct(written), _) => Some(self.fields(written.clone(), &format!("{key}."), None)),
            (Value::Text(text), Place::Option(option)) => {
                let mut words = text.split(',').map(str::trim);
                let first = words.next().unwrap_or_default();
                let (name, address) = match first.split_once('=') {
                    None => (first, None),
                    Some((name, address)) => (name, Some(address)),
                };
                Some(MemberRaw {
                    name: Some(Node::option(option, name.to_owned())),
                    address: address.map(|address| Node::option(option, address.to_owned())),
                    rights: Some(Node::options(option, words.map(str::to_owned).collect())),
                })
            }
            (_, _) => self.mismatch(node, key, "a struct", MEMBER),
        }
    }

    fn member_name(
        &mut self,
        raw: &MemberRaw,
        member: &Node,
        key: &str,
        names: &mut BTreeMap<String, Place>,
    ) -> Option<String> {
        let key = format!("{key}.name");
        let Some(node) = &raw.name else { return self.tell(&member.place, &key, "the key is missing", NAME) };
        let text = self.text(node, &key, NAME)?;
        if !is_name(text) {
            return self.refuse(node, &key, "is not a name", NAME);
        }
        let name = text.to_owned();
        match names.insert(name.to_ascii_lowercase(), node.place.clone()) {
            None => Some(name),
            Some(first) => {
                let found = format!("{} is the name of the member {} too", node.written, at(&first));
                self.tell(&node.place, &key, found, "write each member once")
            }
        }
    }

    fn pin(
        &mut self,
        raw: &MemberRaw,
        key: &str,
        network: Option<Ipv4Net>,
        pins: &mut BTreeMap<Ipv4Addr, Place>,
    ) -> Option<Option<Ipv4Addr>> {
        let Some(node) = self.present(raw.address.as_ref()) else { return Some(None) };
        let example = network.unwrap_or(super::NETWORK);
        let first = example.hosts().next().unwrap_or(example.network());
        let expected = format!("write an address of a host in {example}, like {first}, or None");
        let address: Ipv4Addr = self.parsed(node, key, "an IPv4 address", &expected)?;
        if let Some(network) = network {
            if !network.contains(&address) {
                return self.refuse(node, key, &format!("is outside the network {network}"), expected);
            }
            if address == network.network() || address == network.broadcast() {
                return self.refuse(node, key, "is no host's address", expected);
            }
        }
        match pins.insert(address, node.place.clone()) {
            None => Some(Some(address)),
            Some(first) => {
                let found = format!("{} is pinned to the member {} too", node.written, at(&first));
                self.tell(&node.place, key, found, "give each member an address of its own")
            }
        }
    }

    /// Which member may publish what: `NAME=SUBNET`, or `NAME=exit`.
    fn allow_routes(&mut self, node: Option<&Node>) -> Option<Vec<Approval>> {
        const EXPECTED: &str = "write NAME=SUBNET or NAME=exit, like gate=10.1.0.0/16";
        let Some(node) = node else { return Some(Vec::new()) };
        self.list(node, "allow_routes", EXPECTED, |check, node, key| {
            let text = check.text(node, key, EXPECTED)?;
            let Some((name, subnet)) = text.split_once('=').filter(|(name, _)| is_name(name)) else {
                return check.refuse(node, key, "names no member and subnet", EXPECTED);
            };
            let subnet = if subnet == "exit" { EXIT } else { check.subnet(node, subnet, key, EXPECTED)? };
            Some(Approval { member: name.to_owned(), subnet })
        })
    }

    fn routing(&mut self, raw: &ClientRaw) -> Option<Routing> {
        const SUBNET: &str = "write ADDRESS/PREFIX of a network behind this machine, like 10.1.0.0/16";
        let mut publish: Vec<IpNet> = Vec::new();
        let published = match &raw.route {
            None => Some(Vec::new()),
            Some(node) => self.list(node, "route", SUBNET, |check, node, key| {
                let text = check.text(node, key, SUBNET)?;
                let subnet = check.subnet(node, text, key, SUBNET)?;
                if let Some(other) = publish.iter().find(|other| overlaps(other, &subnet)) {
                    return check.refuse(node, key, &format!("overlaps {other}"), "keep the wider of the two");
                }
                publish.push(subnet);
                Some(subnet)
            }),
        };
        if let (Some(node), true) = (&raw.route, publish.len() >= OFFER_MAX) {
            // One place is kept for the exit.
            let found = format!("there are {} subnets", publish.len());
            return self.tell(&node.place, "route", found, format!("at most {}", OFFER_MAX - 1));
        }
        let accept = self.boolean(raw.accept_routes.as_ref(), "accept_routes", false);
        let exit_node = self.boolean(raw.exit_node.as_ref(), "exit_node", false);
        let masquerade = self.boolean(raw.masquerade.as_ref(), "masquerade", true);
        let exit = match self.present(raw.exit.as_ref()) {
            None => Some(None),
            Some(node) => match self.text(node, "exit", NAME) {
                Some("none") if matches!(node.place, Place::Option(_)) => Some(None),
                Some(name) if is_name(name) => Some(Some(name.to_owned())),
                Some(_) => self.refuse(node, "exit", "is not a name", NAME),
                None => None,
            },
        };
        if let (Some(Some(_)), Some(true), Some(node)) = (&exit, exit_node, &raw.exit_node) {
            let found = "a machine that uses an exit cannot be one";
            return self.tell(&node.place, "exit_node", found, "give exit or exit_node, not both");
        }
        Some(Routing {
            publish: published?,
            accept: accept?,
            exit: exit?,
            exit_node: exit_node?,
            masquerade: masquerade?,
        })
    }

    /// A subnet that can be published.
    fn subnet(&mut self, node: &Node, text: &str, key: &str, expected: &str) -> Option<IpNet> {
        let Ok(subnet) = text.parse::<IpNet>() else { return self.refuse(node, key, "is not a subnet", expected) };
        if subnet.addr() != subnet.network() {
            let better = format!("write {}", subnet.trunc());
            return self.refuse(node, key, "is an address inside a subnet", better);
        }
        if subnet == EXIT {
            let better = "for the way to the Internet, use --exit-node here and NAME=exit at the server";
            return self.refuse(node, key, "is everything", better);
        }
        match routable(&subnet) {
            Ok(()) => Some(subnet),
            Err(why) => self.refuse(node, key, &format!("cannot be published: {why}"), expected),
        }
    }

    fn rights(&mut self, node: Option<&Node>, key: &str) -> Option<u8> {
        let Some(node) = node else { return Some(0) };
        let names = RIGHTS.map(|(name, _)| name);
        let expected = format!("write some of {}", names.join(", "));
        let bits = self.list(node, key, &expected, |check, node, key| {
            let text = check.text(node, key, &expected)?;
            match RIGHTS.iter().find(|(name, _)| *name == text) {
                Some((_, bit)) => Some(*bit),
                None => check.refuse(node, key, "is not a right", guess(text, &names).unwrap_or(expected.clone())),
            }
        })?;
        Some(bits.into_iter().fold(0, |all, bit| all | bit))
    }

    /// The join line, of its own or from a file. The inner `None`: there is none.
    fn join(&mut self, raw: &ClientRaw, port: u16) -> Option<Option<JoinLine>> {
        let line = self.present(raw.join.as_ref());
        let file = self.present(raw.join_file.as_ref());
        let (line, from, place, key) = match (line, file) {
            (None, None) => return Some(None),
            (Some(_), Some(file)) => {
                return self.tell(&file.place, "join_file", "there is a join line already", "give one of the two");
            }
            (Some(line), None) => {
                (zeroize::Zeroizing::new(self.text(line, "join", JOIN)?.to_owned()), String::new(), &line.place, "join")
            }
            (None, Some(file)) => {
                let path = self.path(Some(file), "join_file", "")?;
                match read_join_file(&path) {
                    Ok(line) => (line, format!(" in {}", path.display()), &file.place, "join_file"),
                    Err(reason) => {
                        let expected = "write the path of a file that holds the join line";
                        return self.refuse(file, "join_file", &format!("cannot be used: {reason}"), expected);
                    }
                }
            }
        };
        match JoinLine::parse(&line, port) {
            Ok(line) => Some(Some(line)),
            Err(reason) => self.tell(place, key, format!("the join line{from} {reason}"), JOIN),
        }
    }

    fn name(&mut self, node: Option<&Node>, default: &str) -> Option<String> {
        let Some(node) = self.present(node) else { return Some(default.to_owned()) };
        let name = self.text(node, "name", NAME)?;
        if is_name(name) { Some(name.to_owned()) } else { self.refuse(node, "name", "is not a name", NAME) }
    }

    /// As the kernel's `dev_valid_name`, and without `%`, which it would take for a pattern.
    fn device(&mut self, node: Option<&Node>) -> Option<String> {
        const EXPECTED: &str = "write 1 to 15 letters, digits, - _ or ., like eps0";
        let Some(node) = node else { return Some(super::DEVICE.to_owned()) };
        let name = self.text(node, "device", EXPECTED)?;
        let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        if letters && (1..=15).contains(&name.len()) && name != "." && name != ".." {
            Some(name.to_owned())
        } else {
            self.refuse(node, "device", "is not a name for a network device", EXPECTED)
        }
    }

    fn uplinks(&mut self, node: Option<&Node>) -> Option<Vec<Uplink>> {
        const EXPECTED: &str = "write an interface or an address of this machine, like eth0 or 192.168.1.7";
        let Some(node) = node else { return Some(Vec::new()) };
        let mut seen: Vec<Uplink> = Vec::new();
        let uplinks = self.list(node, "uplinks", EXPECTED, |check, node, key| {
            let text = check.text(node, key, EXPECTED)?;
            let uplink = match text.parse::<IpAddr>() {
                Ok(ip) if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() => {
                    return check.refuse(node, key, "is no address of an uplink", EXPECTED);
                }
                Ok(ip) => Uplink::Address(ip),
                // As the kernel has it: up to 15 bytes, no slash, no blank.
                Err(_) if (1..=15).contains(&text.len()) && !text.contains(['/', ' ', ':']) && text != "lo" => {
                    Uplink::Device(text.to_owned())
                }
                Err(_) => return check.refuse(node, key, "is no interface and no address", EXPECTED),
            };
            if seen.contains(&uplink) {
                return check.refuse(node, key, "is written twice", "keep one");
            }
            seen.push(uplink.clone());
            Some(uplink)
        })?;
        let (count, most) = (uplinks.len(), super::UPLINKS_MAX);
        if count > most {
            return self.tell(&node.place, "uplinks", format!("there are {count} uplinks"), format!("at most {most}"));
        }
        Some(uplinks)
    }

    fn multipath(&mut self, node: Option<&Node>) -> Option<Mode> {
        const EXPECTED: &str = "write best, redundant-small, redundant or bonded";
        let Some(node) = node else { return Some(Mode::default()) };
        let mode = self.text(node, "multipath", EXPECTED)?.parse().ok();
        mode.or_else(|| self.refuse(node, "multipath", "is no mode", EXPECTED))
    }

    fn expiry(&mut self, node: Option<&Node>) -> Option<Expiry> {
        const EXPECTED: &str = "write a length of time from 1m to 365d, like 24h, or never";
        let Some(node) = node else { return Some(super::INVITE_EXPIRY) };
        self.parsed(node, "invite_expiry", "a length of time", EXPECTED)
    }

    fn log_level(&mut self, node: Option<&Node>) -> Option<LevelFilter> {
        const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
        const EXPECTED: &str = "write error, warn, info, debug or trace";
        let Some(node) = node else { return Some(super::LOG_LEVEL) };
        let text = self.text(node, "log_level", EXPECTED)?;
        let level = LEVELS.contains(&text).then(|| text.parse().ok()).flatten();
        level.or_else(|| self.refuse(node, "log_level", "is not a level", EXPECTED))
    }

    /// `auto` is told by the file's name.
    fn scorecard_format(&mut self, node: Option<&Node>, file: Option<&Node>) -> Option<ScorecardFormat> {
        const EXPECTED: &str = "write auto, json, prom or classic";
        let file = self.present(file).and_then(|file| match &file.value {
            Value::Text(name) => Some(name.as_str()),
            _ => None,
        });
        let by_name = ScorecardFormat::by_name(Path::new(file.unwrap_or_default()));
        let Some(node) = node else { return Some(by_name) };
        match self.text(node, "scorecard_format", EXPECTED)? {
            "auto" => Some(by_name),
            other => match other.parse() {
                Ok(format) => Some(format),
                Err(_) => self.refuse(node, "scorecard_format", "is not a format", EXPECTED),
            },
        }
    }

    /// `ADDRESS:PORT`, or a port of 127.0.0.1. The inner `None`: nothing is served.
    fn metrics(&mut self, node: Option<&Node>) -> Option<Option<SocketAddr>> {
        const EXPECTED: &str = "write ADDRESS:PORT or PORT, like 127.0.0.1:9469";
        let Some(node) = self.present(node) else { return Some(None) };
        match self.text(node, "metrics", EXPECTED)?.parse() {
            Ok(MetricsAddress(address)) => Some(Some(address)),
            Err(NotAnAddress) => self.refuse(node, "metrics", "is not an address and port", EXPECTED),
        }
    }

    /// Where an ethcloud is listened for; on the command line `none` is off.
    fn cloud(&mut self, node: Option<&Node>) -> Option<Option<SocketAddr>> {
        const EXPECTED: &str = "write ADDRESS:PORT, like 0.0.0.0:3210 or [::]:3210";
        let Some(node) = self.present(node) else { return Some(None) };
        if matches!((&node.value, &node.place), (Value::Text(text), Place::Option(_)) if text == "none") {
            return Some(None);
        }
        self.parsed(node, "cloud", "an address and port", EXPECTED).map(Some)
    }

    fn cloud_token(&mut self, node: Option<&Node>) -> Option<Token> {
        const EXPECTED: &str = "write a number from 0 to 72057594037927935 in quotes, like \"134\"";
        let Some(node) = self.present(node) else { return Some(Token::default()) };
        self.parsed(node, "cloud_token", "a token", EXPECTED)
    }

    /// A cloud needs its token; and a token, or peers, without a cloud were meant to do something.
    fn bridges(&mut self, cloud: &Option<Option<SocketAddr>>, raw: &ClientRaw) -> Option<()> {
        let node = self.present(raw.cloud.as_ref());
        let token = self.present(raw.cloud_token.as_ref());
        let peers =
            raw.cloud_connect.as_ref().filter(|node| !matches!(&node.value, Value::List(list) if list.is_empty()));
        match (cloud, node, token) {
            (Some(Some(_)), Some(node), None) => {
                let expected =
                    "write the number that the ethcloud is known by, like cloud_token: \"134\" or --cloud-token 134";
                self.tell(&node.place, "cloud", "has no cloud_token beside it", expected)
            }
            (Some(None), None, token) => {
                let [token, peers] = [(token, "cloud_token"), (peers, "cloud_connect")].map(|(node, key)| {
                    let expected = "write where the ethcloud is listened for, like cloud: \"0.0.0.0:3210\" or --cloud 0.0.0.0:3210";
                    node.map_or(Some(()), |node| self.tell(&node.place, key, "does nothing without `cloud`", expected))
                });
                token.and(peers)
            }
            // Switched off for once, by an option, or not to be read.
            (Some(None), Some(_), _) | (Some(Some(_)) | None, _, _) => Some(()),
        }
    }

    /// A Unix socket's path; `sun_path` has 108 bytes with the closing zero (unix(7)).
    fn socket(&mut self, node: Option<&Node>, default: &str) -> Option<PathBuf> {
        let path = self.path(node, "control", default)?;
        match node.filter(|_| path.as_os_str().len() > 107) {
            None => Some(path),
            Some(node) => self.refuse(node, "control", "is too long for a socket", "write a path of at most 107 bytes"),
        }
    }

    /// A file that is written if wanted: `None` is off, an empty text the `default`. On the command line, where there
    /// is no `None`, `none` is off.
    fn optional_file(&mut self, node: Option<&Node>, key: &str, default: &str) -> Option<Option<PathBuf>> {
        let Some(node) = self.present(node) else { return Some(None) };
        match (&node.value, &node.place) {
            (Value::Text(text), _) if text.is_empty() => Some(Some(default.into())),
            (Value::Text(text), Place::Option(_)) if text == "none" => Some(None),
            (_, _) => self.path(Some(node), key, "").map(Some),
        }
    }

    /// Where the log goes; `format`, `max_size`, `max_age` and `keep` say how.
    fn log(
        &mut self,
        file: Option<&Node>,
        default: &str,
        [format, max_size, max_age, keep]: [Option<&Node>; 4],
    ) -> Option<LogSettings> {
        const FORMAT: &str = "write text or json";
        const SIZE: &str = "write a size from 1KiB to 1TiB, like 10MiB";
        const AGE: &str = "write a length of time from 1s to 365d, like 7d, or never";
        let standard = LogSettings::default();
        let file = self.optional_file(file, "log", default);
        let format = match format {
            None => Some(standard.format),
            Some(node) => match self.text(node, "log_format", FORMAT) {
                Some("text") => Some(LogFormat::Text),
                Some("json") => Some(LogFormat::Json),
                Some(_) => self.refuse(node, "log_format", "is not a format", FORMAT),
                None => None,
            },
        };
        let max_size = match max_size {
            None => Some(standard.max_size),
            Some(node) => self.text(node, "log_max_size", SIZE).and_then(|text| {
                let size = size(text).filter(|size| (1 << 10..=1 << 40).contains(size));
                size.or_else(|| self.refuse(node, "log_max_size", "is not such a size", SIZE))
            }),
        };
        let max_age = match max_age {
            None => Some(standard.max_age),
            Some(node) => self.text(node, "log_max_age", AGE).and_then(|text| {
                let age = duration(text).filter(|age| (1..=365 * 86_400).contains(&age.as_secs()));
                match (text, age) {
                    ("never", _) => Some(None),
                    (_, Some(age)) => Some(Some(age)),
                    (_, None) => self.refuse(node, "log_max_age", "is not such a length of time", AGE),
                }
            }),
        };
        let keep = self.number(keep, "log_keep", 0..=999, standard.keep, "");
        Some(LogSettings { file: file?, format: format?, max_size: max_size?, max_age: max_age?, keep: keep? })
    }

    fn path(&mut self, node: Option<&Node>, key: &str, default: &str) -> Option<PathBuf> {
        const EXPECTED: &str = "write a path, like \"/var/lib/eps-actor/x\"";
        let Some(node) = node else { return Some(default.into()) };
        let text = self.text(node, key, EXPECTED)?;
        if text.is_empty() || text.contains('\0') {
            return self.refuse(node, key, "is not a path", EXPECTED);
        }
        Some(text.into())
    }

    /// A whole number; in an option it comes as text. `more` follows the range in what is told.
    fn number(
        &mut self,
        node: Option<&Node>,
        key: &str,
        range: RangeInclusive<u16>,
        default: u16,
        more: &str,
    ) -> Option<u16> {
        let Some(node) = node else { return Some(default) };
        let expected = format!("write a whole number from {} to {}{more}", range.start(), range.end());
        let number = match (&node.value, &node.place) {
            (Value::Integer(number), _) => u16::try_from(*number).ok(),
            (Value::Text(text), Place::Option(_)) => text.parse().ok(),
            (Value::Text(_), _) => return self.mismatch(node, key, "a number", &format!("{expected}, without quotes")),
            (_, _) => return self.mismatch(node, key, "a whole number", &expected),
        };
        match number.filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None if matches!(node.value, Value::Integer(_)) => self.refuse(node, key, "is out of range", expected),
            None => self.refuse(node, key, "is not such a number", expected),
        }
    }

    /// A server cannot listen on one port twice.
    fn not_the_same(&mut self, nat_port: Option<u16>, port: Option<u16>, node: Option<&Node>) -> Option<u16> {
        match node {
            Some(node) if nat_port.is_some() && nat_port == port => {
                self.refuse(node, "nat_port", "is the port everybody knows", "write another one, or 0 for none")
            }
            Some(_) | None => nat_port,
        }
    }

    fn upnptimeout(&mut self, node: Option<&Node>) -> Option<Duration> {
        let more = " (milliseconds); 0 asks for no mapping";
        let ms = self.number(node, "upnptimeout", 0..=60_000, super::UPNP_TIMEOUT_MS, more)?;
        Some(Duration::from_millis(ms.into()))
    }

    fn boolean(&mut self, node: Option<&Node>, key: &str, default: bool) -> Option<bool> {
        const EXPECTED: &str = "write true or false";
        let Some(node) = node else { return Some(default) };
        match (&node.value, &node.place) {
            (Value::Bool(value), _) => Some(*value),
            (Value::Text(text), Place::Option(_)) => match text.parse() {
                Ok(value) => Some(value),
                Err(_) => self.refuse(node, key, "is neither true nor false", EXPECTED),
            },
            (_, _) => self.mismatch(node, key, "a truth value", EXPECTED),
        }
    }

    /// The entries of a list, each read by `read`; all are read even if one is bad.
    fn list<T>(
        &mut self,
        node: &Node,
        key: &str,
        expected: &str,
        mut read: impl FnMut(&mut Self, &Node, &str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Value::List(nodes) = &node.value else { return self.mismatch(node, key, "a list", expected) };
        let read: Vec<_> =
            nodes.iter().enumerate().map(|(index, node)| read(self, node, &format!("{key}[{index}]"))).collect();
        read.into_iter().collect()
    }

    fn parsed<T: FromStr>(&mut self, node: &Node, key: &str, what: &str, expected: &str) -> Option<T> {
        match self.text(node, key, expected)?.parse() {
            Ok(value) => Some(value),
            Err(_) => self.refuse(node, key, &format!("is not {what}"), expected),
        }
    }

    fn text<'n>(&mut self, node: &'n Node, key: &str, expected: &str) -> Option<&'n str> {
        match &node.value {
            Value::Text(text) => Some(text),
            _ => self.mismatch(node, key, "a string", expected),
        }
    }

    /// Looks through `None` and `Some(x)`, for keys that may be absent; there `x` alone means `Some(x)`.
    fn present<'n>(&self, node: Option<&'n Node>) -> Option<&'n Node> {
        match &node?.value {
            Value::None => None,
            Value::Some(inner) => Some(inner),
            _ => node,
        }
    }

    /// Sorts fields to the keys of `K`. At the top of a file `role` tells keys of the other role apart.
    fn fields<K: Keyed>(&mut self, written: Struct, prefix: &str, role: Option<Role>) -> K {
        let mut keyed = K::default();
        let mut first: BTreeMap<String, Place> = BTreeMap::new();
        for Field { key, place, node } in written.fields {
            let path = format!("{prefix}{}", shorten(&key));
            let Some(slot) = keyed.slot(&key) else {
                let (found, expected) = unknown(&key, K::KEYS, role);
                self.tell::<()>(&place, &path, found, expected);
                continue;
            };
            if let Some(first) = first.get(&key) {
                self.tell::<()>(&place, &path, format!("the key is written twice, first {}", at(first)), "keep one");
                continue;
            }
            *slot = Some(node);
            first.insert(key, place);
        }
        keyed
    }

    fn refuse<T>(&mut self, node: &Node, key: &str, wrong: &str, expected: impl Into<String>) -> Option<T> {
        self.tell(&node.place, key, format!("{} {wrong}", node.written), expected)
    }

    fn mismatch<T>(&mut self, node: &Node, key: &str, wanted: &str, expected: &str) -> Option<T> {
        let found = if node.written.is_empty() || key == "join" {
            format!("found {}, not {wanted}", node.kind())
        } else {
            format!("{} is {}, not {wanted}", node.written, node.kind())
        };
        self.tell(&node.place, key, found, expected)
    }

    fn tell<T>(
        &mut self,
        place: &Place,
        key: &str,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Option<T> {
        self.problems.push(Problem {
            place: place.clone(),
            key: key.to_owned(),
            found: found.into(),
            expected: expected.into(),
        });
        None
    }
}

fn unknown(key: &str, known: &[&str], role: Option<Role>) -> (String, String) {
    let other = match role {
        None => None,
        Some(Role::Server) => Some(("client", ClientRaw::KEYS)),
        Some(Role::Client) => Some(("server", ServerRaw::KEYS)),
    };
    match other.filter(|(_, keys)| keys.contains(&key)) {
        Some((other, _)) => (format!("is a key of the {other}"), format!("take it out, or use the file for a {other}")),
        None => {
            let all = || format!("the keys are {}", known.join(", "));
            ("there is no such key".to_owned(), guess(key, known).unwrap_or_else(all))
        }
    }
}

/// Names the known word nearest to one not known, if one is near enough to have been meant.
fn guess(word: &str, known: &[&str]) -> Option<String> {
    let near = known.iter().map(|known| (distance(word, known), known)).min()?;
    (near.0 <= 1 + near.1.len() / 4).then(|| format!("did you mean {}?", near.1))
}

/// Levenshtein's distance, case apart. Words beyond any key's length are simply far.
fn distance(one: &str, other: &str) -> usize {
    if one.len() > 64 {
        return usize::MAX;
    }
    let (one, other) = (one.to_lowercase().replace('-', "_"), other.to_lowercase().replace('-', "_"));
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (line, left) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, right) in other.chars().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}

/// A place as it is named inside a sentence about the same file.
fn at(place: &Place) -> String {
    match place {
        Place::File { line, .. } => format!("in line {line}"),
        Place::Option(option) => format!("in {option}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::raw;
    use super::super::{ClientOptions, ServerOptions, finish};
    use super::*;

    pub const JOIN: &str = "eps://192.0.2.1:5000/aaaqeayeaudaocajbifqydiob4/77777777777777777777777774l52";

    #[test]
    fn a_problem_names_place_key_value_and_what_would_do() {
        assert_eq!(
            server_says("(\n    // pool\n    network: \"192.168.43.0/33\",\n)"),
            ["server.ron:3:14: network: \"192.168.43.0/33\" is not a network; \
                 write ADDRESS/PREFIX with a prefix from /8 to /30, like 192.168.43.0/24"]
        );
    }

    #[test]
    fn outputs_are_off_unless_asked_for() {
        let config = load_options(ServerOptions::default());
        assert_eq!((config.scorecard, config.stats, config.metrics, config.graphviz), (None, false, None, None));
    }

    #[test]
    fn the_scorecards_format_goes_by_the_files_name_unless_given() {
        for (file, format, expected) in [
            ("x.json", None, ScorecardFormat::Json),
            ("x.stats", None, ScorecardFormat::Json),
            ("x.prom", None, ScorecardFormat::Prometheus),
            ("x.prom", Some("auto"), ScorecardFormat::Prometheus),
            ("x.prom", Some("json"), ScorecardFormat::Json),
            ("x.stats", Some("classic"), ScorecardFormat::Classic),
            ("x.stats", Some("prom"), ScorecardFormat::Prometheus),
        ] {
            let options = ServerOptions {
                scorecard: Some(file.into()),
                scorecard_format: format.map(String::from),
                ..ServerOptions::default()
            };
            assert_eq!(load_options(options).scorecard_format, expected, "{file} {format:?}");
        }
    }

    #[test]
    fn metrics_are_of_loopback_unless_another_address_is_written_which_is_warned_of() {
        for (text, address, warned) in
            [("9469", "127.0.0.1:9469", false), ("[::1]:9469", "[::1]:9469", false), ("0.0.0.0:80", "0.0.0.0:80", true)]
        {
            let options = ServerOptions { metrics: Some(text.into()), ..ServerOptions::default() };
            let config = load_options(options);
            assert_eq!(config.metrics, Some(address.parse().expect("an address")), "{text}");
            assert_eq!(config.warnings.iter().any(|line| line.starts_with("metrics: ")), warned, "{text}");
        }
        for text in ["0", "70000", "localhost", "127.0.0.1", "127.0.0.1:0"] {
            let said = server_says(&format!("(metrics: \"{text}\", scorecard_format: \"xml\")"));
            assert!(said[0].contains("is not an address and port; write ADDRESS:PORT"), "{said:?}");
            assert!(said[1].contains("\"xml\" is not a format; write auto, json, prom or classic"), "{said:?}");
        }
    }

    fn load_options(options: ServerOptions) -> ServerConfig {
        super::super::load_server(None, options).expect("good options")
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let said = server_says(
            r#"(
    state: 5,
    listen: ["0.0.0.0", "10.0.0.1", "x"],
    port: "43439",
    prot: 1,
    port: 1,
    mtu: 1400,
    network: "192.168.43.7/24",
    network6: "2001:db8::/64",
    sequential: "yes",
    advertise: ["a:0", "0.0.0.0"],
    members: [
        (name: "a", address: "10.0.0.1"),
        (name: "b", rights: ["bridg"]),
        (address: "192.168.43.9"),
        "c",
        (name: "d!", adress: "192.168.43.9"),
    ],
    control: "",
    invite_expiry: "5s",
    scorecard: Some(3),
    log_level: loud,
    log: 1,
    log_format: "xml",
    log_max_size: "10",
    log_max_age: "0s",
    log_keep: 1000,
)"#,
        );
        let starts = [
            "server.ron:2:12: state: 5 is a number, not a string; ",
            "server.ron:3:37: listen[2]: \"x\" is not an IP address; ",
            "server.ron:4:11: port: \"43439\" is a string, not a number; write a whole number from 1 to 65535, without",
            "server.ron:5:5: prot: there is no such key; did you mean port?",
            "server.ron:6:5: port: the key is written twice, first in line 4; keep one",
            "server.ron:7:5: mtu: is a key of the client; ",
            "server.ron:8:14: network: \"192.168.43.7/24\" is an address inside a network; write 192.168.43.0/24",
            "server.ron:9:15: network6: \"2001:db8::/64\" is not in fd00::/8; ",
            "server.ron:10:17: sequential: \"yes\" is a string, not a truth value; write true or false",
            "server.ron:11:17: advertise[0]: \"a:0\" is not a host: the port is not a number from 1 to 65535; ",
            "server.ron:11:24: advertise[1]: \"0.0.0.0\" is an address nobody can dial; ",
            "server.ron:14:30: members[1].rights[0]: \"bridg\" is not a right; did you mean bridge?",
            "server.ron:15:9: members[2].name: the key is missing; ",
            "server.ron:16:9: members[3]: \"c\" is a string, not a struct; ",
            "server.ron:17:16: members[4].name: \"d!\" is not a name; ",
            "server.ron:17:22: members[4].adress: there is no such key; did you mean address?",
            "server.ron:19:14: control: \"\" is not a path; ",
            "server.ron:20:20: invite_expiry: \"5s\" is not a length of time; ",
            "server.ron:21:21: scorecard: 3 is a number, not a string; ",
            "server.ron:22:16: log_level: loud is a bare word, not a string; write error, ",
            "server.ron:23:10: log: 1 is a number, not a string; ",
            "server.ron:24:17: log_format: \"xml\" is not a format; write text or json",
            "server.ron:25:19: log_max_size: \"10\" is not such a size; write a size from 1KiB to 1TiB, like 10MiB",
            "server.ron:26:18: log_max_age: \"0s\" is not such a length of time; ",
            "server.ron:27:15: log_keep: 1000 is out of range; write a whole number from 0 to 999",
        ];
        assert_eq!(said.len(), starts.len(), "{said:#?}");
        for (line, start) in said.iter().zip(starts) {
            assert!(line.starts_with(start), "{line}\n{start}");
        }
    }

    #[test]
    fn all_problems_of_a_client_are_told_at_once() {
        let said = client_says(
            r#"(
    join: "eps://a/b/c",
    join_file: "/x",
    server: "a",
    port: 0,
    listen_port: 65536,
    name: "-",
    device: "a/b",
    mtu: 575,
    lan: 1,
    direct: None,
    uplinks: ["eth0", "10.0.0.2", "::", "eth0", "a/b"],
    multipath: "striped",
    network: "10.0.0.0/8",
)"#,
            ClientOptions::default(),
        );
        let starts = [
            "client.ron:3:16: join_file: there is a join line already; give one of the two",
            "client.ron:4:13: server: \"a\" is a string, not a list; ",
            "client.ron:5:11: port: 0 is out of range; write a whole number from 1 to 65535",
            "client.ron:6:18: listen_port: 65536 is out of range; write a whole number from 0 to 65535; 0 chooses one",
            "client.ron:7:11: name: \"-\" is not a name; ",
            "client.ron:8:13: device: \"a/b\" is not a name for a network device; ",
            "client.ron:9:10: mtu: 575 is out of range; write a whole number from 576 to 9000 (bytes)",
            "client.ron:10:10: lan: 1 is a number, not a truth value; ",
            "client.ron:11:13: direct: None is no value, not a truth value; ",
            "client.ron:12:35: uplinks[2]: \"::\" is no address of an uplink; ",
            "client.ron:12:41: uplinks[3]: \"eth0\" is written twice; ",
            "client.ron:12:49: uplinks[4]: \"a/b\" is no interface and no address; ",
            "client.ron:13:16: multipath: \"striped\" is no mode; write best, redundant-small, redundant or bonded",
            "client.ron:14:5: network: is a key of the server; ",
        ];
        assert_eq!(said.len(), starts.len(), "{said:#?}");
        for (line, start) in said.iter().zip(starts) {
            assert!(line.starts_with(start), "{line}\n{start}");
        }
    }

    #[test]
    fn members_must_go_together() {
        let said = server_says(
            r#"(network: "10.0.0.0/24", members: [
    (name: "a", address: "10.0.0.1"),
    (name: "A", address: Some("10.0.0.2")),
    (name: "c", address: "10.0.0.1"),
    (name: "d", address: "10.0.1.1"),
    (name: "e", address: "10.0.0.255"),
])"#,
        );
        assert_eq!(
            said,
            [
                "server.ron:3:12: members[1].name: \"A\" is the name of the member in line 2 too; write each member once",
                "server.ron:4:26: members[2].address: \"10.0.0.1\" is pinned to the member in line 2 too; \
                 give each member an address of its own",
                "server.ron:5:26: members[3].address: \"10.0.1.1\" is outside the network 10.0.0.0/24; \
                 write an address of a host in 10.0.0.0/24, like 10.0.0.1, or None",
                "server.ron:6:26: members[4].address: \"10.0.0.255\" is no host's address; \
                 write an address of a host in 10.0.0.0/24, like 10.0.0.1, or None",
            ]
        );
    }

    #[test]
    fn a_cloud_needs_its_token_and_what_is_said_of_one_needs_a_cloud() {
        let none = ClientOptions::default;
        let says = |text: &str| client_says(text, none());
        assert!(says(r#"(cloud: "0.0.0.0:3210")"#)[0].contains("has no cloud_token beside it"));
        assert!(says(r#"(cloud_token: "134")"#)[0].contains("cloud_token: does nothing without `cloud`"));
        let said =
            says(r#"(cloud: "0.0.0.0:1", cloud_token: "1", cloud_connect: ["a:b:c", "[fe80::1]:5"])"#).join("\n");
        assert!(said.contains("[2001:db8::1]:3210") && !said.contains("43439"), "{said}");
        assert!(said.contains("link-local"), "as behind -c: {said}");
        assert!(says(r#"(cloud_connect: ["a.example"])"#)[0].contains("cloud_connect: does nothing without `cloud`"));
        assert!(
            says(r#"(cloud: "0.0.0.0:3210", cloud_token: "1", cloud_peer_timeout: 0)"#)[0].contains("out of range")
        );
        assert_eq!(says("(cloud: None, cloud_token: None, cloud_connect: [])"), Vec::<String>::new());
        let config = client_config(
            r#"(cloud: "0.0.0.0:3210", cloud_token: "0", cloud_peer_timeout: 60, cloud_mac_timeout: 0)"#,
            none(),
        );
        assert_eq!((config.cloud_peer_timeout, config.cloud_mac_timeout), (Duration::from_secs(60), Duration::ZERO));
        assert!(config.warnings.iter().any(|line| line.contains("not encrypted")), "{:?}", config.warnings);
        let options = ClientOptions { cloud: Some("none".into()), ..none() };
        assert_eq!(client_says(r#"(cloud: "0.0.0.0:3210", cloud_token: "134")"#, options), Vec::<String>::new());
    }

    #[test]
    fn addresses_to_listen_on_must_go_together() {
        let said = server_says(r#"(listen: ["0.0.0.0", "10.0.0.1"])"#);
        let line = "server.ron:1:10: listen: \"0.0.0.0\" means all addresses, \"10.0.0.1\" among them; \
                    keep one of the two";
        assert_eq!(said, [line]);
        assert_eq!(server_says(r#"(listen: ["::", "10.0.0.1"])"#), Vec::<String>::new());
        assert!(server_says("(listen: [])")[0].contains("the list is empty"));
        assert!(server_says(r#"(listen: ["::1", "::1"])"#)[0].contains("is written twice"));
    }

    #[test]
    fn networks_that_cannot_be_are_refused() {
        for good in ["10.0.0.0/8", "192.0.2.0/30", "100.64.0.0/10"] {
            assert_eq!(server_says(&format!("(network: {good:?})")), Vec::<String>::new());
        }
        for bad in ["10.0.0.0/7", "10.0.0.0/31", "127.0.0.0/8", "224.0.0.0/24", "0.0.0.0/8", "10.0.0.1", "fd00::/64"] {
            assert_eq!(server_says(&format!("(network: {bad:?})")).len(), 1, "{bad}");
        }
        for good in ["auto", "none", "fd12:3456:789a::/48", "fd12:3456:789a::/96"] {
            assert_eq!(server_says(&format!("(network6: {good:?})")), Vec::<String>::new());
        }
        for bad in ["fd12::/47", "fd12::/97", "fc00::/48", "fd12::1/64", "fd12::", "10.0.0.0/24", "Auto"] {
            assert_eq!(server_says(&format!("(network6: {bad:?})")).len(), 1, "{bad}");
        }
    }

    #[test]
    fn the_time_to_look_for_a_gateway_is_in_milliseconds() {
        let timeout = |text: &str| {
            let (raw, mut problems) = read::<ServerRaw>("server.ron", text, Role::Server);
            server(&raw, &mut problems).map(|config| config.upnptimeout)
        };
        assert_eq!(timeout("()"), Some(Duration::from_secs(1)));
        assert_eq!(timeout("(upnptimeout: 0)"), Some(Duration::ZERO));
        assert_eq!(timeout("(upnptimeout: 2500)"), Some(Duration::from_millis(2500)));
        assert_eq!(
            server_says("(upnptimeout: 60001)"),
            ["server.ron:1:15: upnptimeout: 60001 is out of range; \
              write a whole number from 0 to 60000 (milliseconds); 0 asks for no mapping"]
        );
        let options = ClientOptions { upnptimeout: Some("250".into()), ..ClientOptions::default() };
        let config = client_config("(upnptimeout: 0)", options);
        assert_eq!(config.upnptimeout, Duration::from_millis(250), "the option wins");
    }

    #[test]
    fn an_option_wins_and_is_told_like_a_file() {
        let mut raw = read::<ServerRaw>("server.ron", "(port: 0, network: 5, listen: [\"::1\"])", Role::Server).0;
        let options = ServerOptions {
            port: Some("99999".into()),
            network: Some("10.0.0.0/33".into()),
            members: vec!["printer=10.0.0.1,bridge,dcp".into(), "b".into()],
            sequential: Some("maybe".into()),
            listen: vec!["10.0.0.1".into(), "nowhere".into()],
            ..ServerOptions::default()
        };
        options.lay_over(&mut raw);
        let mut problems = Vec::new();
        let config = server(&raw, &mut problems);
        let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(config.is_none());
        assert_eq!(
            said,
            [
                "--listen: \"nowhere\" is not an IP address; write IP addresses of this machine, \
                 like [\"0.0.0.0\", \"::\"]",
                "--port: \"99999\" is not such a number; write a whole number from 1 to 65535",
                "--network: \"10.0.0.0/33\" is not a network; \
                 write ADDRESS/PREFIX with a prefix from /8 to /30, like 192.168.43.0/24",
                "--sequential: \"maybe\" is neither true nor false; write true or false",
                "--members: \"dcp\" is not a right; did you mean dhcp?",
            ]
        );
    }

    #[test]
    fn a_file_to_write_is_off_at_its_place_of_old_or_where_it_is_said() {
        let path = |text: &str| Some(Some(PathBuf::from(text)));
        let (place, mut problems) = (Place::Option("--log"), Vec::new());
        let mut check = Check { problems: &mut problems };
        let option = |text: &str| Some(Node::option("--log", text.to_owned()));
        let file = |value: Value| {
            let place = Place::File { path: "x".into(), line: 1, column: 1 };
            Some(Node { place, value, written: String::new() })
        };
        for (node, expected) in [
            (None, Some(None)),
            (file(Value::None), Some(None)),
            (option("none"), Some(None)),
            (option(""), path("/d")),
            (file(Value::Text(String::new())), path("/d")),
            (file(Value::Some(Box::new(option("").expect("a node")))), path("/d")),
            (option("/x"), path("/x")),
            (file(Value::Text("none".into())), path("none")),
        ] {
            assert_eq!(check.optional_file(node.as_ref(), "log", "/d"), expected, "{node:?}");
        }
        assert!(problems.is_empty(), "{place}");
    }

    #[test]
    fn members_read_alike_from_file_and_option() {
        let file =
            r#"(members: [(name: "printer", address: "192.168.43.10", rights: ["bridge", "no-flood"]), (name: "b")])"#;
        let (raw, mut problems) = read::<ServerRaw>("server.ron", file, Role::Server);
        let from_file = server(&raw, &mut problems).expect("a config").members;
        let mut raw = ServerRaw::default();
        let members = vec!["printer=192.168.43.10,bridge,no-flood".into(), "b".into()];
        ServerOptions { members, ..ServerOptions::default() }.lay_over(&mut raw);
        let from_option = server(&raw, &mut problems).expect("a config").members;
        assert_eq!(from_file, from_option);
        assert_eq!((from_file[0].rights, from_file[1].rights), (17, 0));
        assert!(problems.is_empty());
    }

    #[test]
    fn the_join_line_is_never_repeated() {
        let secret = "777777777777";
        for file in [
            format!("(join: {:?})", &JOIN[..JOIN.len() - 2]),
            format!("(join: {:?})", JOIN.replace("eps:", "http:")),
            format!("(join: [{JOIN:?}])"),
            format!("(join: b{JOIN:?})"),
            format!("(join: Some(Some({JOIN:?})))"),
            format!("(joim: {JOIN:?})"),
            format!("(join: {JOIN:?}, join_file: \"/nowhere\")"),
        ] {
            let said = client_says(&file, ClientOptions::default());
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(!said[0].contains(secret), "{said:?}");
        }
        let said = client_says(&format!("(join: {:?})", &JOIN[..JOIN.len() - 2]), ClientOptions::default());
        assert_eq!(
            said,
            ["client.ron:1:8: join: the join line is cut short; \
                 copy the whole line that the server printed, eps://… to the end"]
        );
    }

    #[test]
    fn servers_come_from_the_key_before_the_join_line() {
        let config = client_config(&format!("(join: {JOIN:?}, port: 7)"), ClientOptions::default());
        assert_eq!(config.servers, ["192.0.2.1:5000".parse().expect("a host")]);
        let options = ClientOptions { server: vec!["b".into()], ..ClientOptions::default() };
        let config = client_config(&format!("(join: {JOIN:?}, port: 7, server: [\"a\"])"), options);
        assert_eq!(config.servers, ["b:7".parse().expect("a host")]);
    }

    #[test]
    fn a_join_option_replaces_both_keys_of_the_file() {
        let options = ClientOptions { join: Some(JOIN.into()), ..ClientOptions::default() };
        assert!(client_config("(join_file: \"/nowhere\")", options).join.is_some());
    }

    #[test]
    fn what_is_allowed_but_risky_is_warned_of() {
        let (raw, mut problems) = read::<ServerRaw>("server.ron", "(open: true)", Role::Server);
        assert_eq!(server(&raw, &mut problems).expect("a config").warnings.len(), 1);
        assert_eq!(client_config("(mtu: 1000)", ClientOptions::default()).warnings.len(), 1);
    }

    #[test]
    fn a_file_of_another_shape_is_told() {
        assert!(server_says("[1]")[0].starts_with("server.ron:1:1: found a list; write the keys between"));
        assert!(server_says("Client(port: 1)")[0].starts_with("server.ron:1:1: found the name Client; "));
        assert_eq!(server_says("Server(port: 1)"), Vec::<String>::new());
    }

    #[test]
    fn the_nearest_word_is_guessed() {
        assert_eq!(guess("netwrok", ServerRaw::KEYS).as_deref(), Some("did you mean network?"));
        assert_eq!(guess("Log-Level", ServerRaw::KEYS).as_deref(), Some("did you mean log_level?"));
        assert_eq!(guess("colour", ServerRaw::KEYS), None);
        assert_eq!(guess(&"x".repeat(100_000), ServerRaw::KEYS), None);
    }

    fn server_says(text: &str) -> Vec<String> {
        let (raw, mut problems) = read::<ServerRaw>("server.ron", text, Role::Server);
        let config = server(&raw, &mut problems);
        lines(finish(config, problems))
    }

    fn client_says(text: &str, options: ClientOptions) -> Vec<String> {
        let (mut raw, mut problems) = read::<ClientRaw>("client.ron", text, Role::Client);
        options.lay_over(&mut raw);
        let config = client(&raw, "host", &mut problems);
        lines(finish(config, problems))
    }

    fn client_config(text: &str, options: ClientOptions) -> ClientConfig {
        let (mut raw, mut problems) = read::<ClientRaw>("client.ron", text, Role::Client);
        options.lay_over(&mut raw);
        let config = client(&raw, "host", &mut problems);
        finish(config, problems).expect("a config")
    }

    fn lines<C>(outcome: Result<C, super::super::ConfigError>) -> Vec<String> {
        outcome.err().map(|error| error.to_string().lines().map(str::to_owned).collect()).unwrap_or_default()
    }

    fn read<K: Keyed>(name: &str, text: &str, role: Role) -> (K, Vec<Problem>) {
        let mut problems = Vec::new();
        let root = raw::read(name, text).expect("good syntax");
        (keys(root, role, &mut problems), problems)
    }
}
