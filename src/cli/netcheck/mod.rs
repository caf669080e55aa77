//! `eps-actor netcheck`: what this host's NATs do, before it has joined anything and without a right to anything.
//!
//! Gathers facts side by side; what they mean is `proto::netcheck`'s business. Asks servers of ours on two ports, or
//! any public server of STUN.

mod gateway;
mod print;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::{join, join_all, join4};
use serde_json::json;
use smol::Timer;

use super::args::NetcheckArguments;
use super::ask::ask_role;
use crate::config::{ClientOptions, Role, file_for, load_client};
use crate::io::ask::{AskSocket, tcp_connect};
use crate::io::clock::unix_time;
use crate::io::names;
use crate::io::netlink::{InterfaceAddress, Netlink, RouteEntry, source_towards};
use crate::proto::gateway::Place;
use crate::proto::netcheck::{Facts, Family, Filtering, How, Question, Server, Sight, mapping};
use crate::scaled::Seconds;
use crate::wire::join::HostPort;
use crate::wire::observe::{OBSERVE_LEN, Pass};
use crate::wire::stun::STUN_PORT;
use crate::wire::why::Mapping;

/// The port of servers where none is written.
const SERVER_PORT: u16 = 43439;
/// For answers by UDP, and for a TCP connection.
const PATIENCE: Duration = Duration::from_millis(1500);
/// For what is expected not to come: an answer from another port, a way back in, a packet that is too long.
const SHORT: Duration = Duration::from_millis(700);
const GATEWAY_PATIENCE: Duration = Duration::from_millis(1000);
/// Sockets that are asked with where a port depends on the destination.
const SOCKETS: usize = 3;
/// IP packets tried, in bytes: Ethernet, PPPoE, and tunnels down to the least of IPv6.
const PACKETS: [u16; 6] = [1500, 1492, 1440, 1420, 1400, 1280];
/// The waits after which mappings are tried, in twentieths of the longest.
const LIVES: [u32; 9] = [1, 2, 3, 4, 6, 8, 12, 16, 20];

/// Finds out and prints; 0 if UDP was answered, or nobody was asked.
pub fn run(arguments: &NetcheckArguments, out: &mut dyn Write) -> Result<u8> {
    if let Some(long) = arguments.long.filter(|_| !arguments.json) {
        writeln!(out, "mapping lifetimes are tried: this takes {}", Seconds(long.as_secs_f64()))?;
        out.flush()?;
    }
    let facts = smol::block_on(gather(arguments))?;
    if arguments.json {
        writeln!(out, "{}", print::json(&facts))?;
    } else {
        print::text(&facts, out)?;
    }
    let asked = facts.servers.iter().any(|server| server.addr.is_some() || server.error.is_some());
    let answered = facts.servers.iter().any(|server| server.udp.is_some());
    Ok(u8::from(asked && !answered))
}

async fn gather(arguments: &NetcheckArguments) -> Result<Facts> {
    let netlink = Netlink::open()?;
    let (addresses, routes) = (netlink.addresses().await?, netlink.routes().await?);
    let mut facts =
        Facts { four: local(&addresses, &routes, true), six: local(&addresses, &routes, false), ..Facts::default() };
    let gateway = facts.four.default_route.as_ref().and_then(|(_, gateway)| *gateway);
    facts.gateway = gateway;
    facts.servers = resolve(&names(arguments)?).await;

    let place = match gateway {
        Some(IpAddr::V4(gateway)) => match source_towards(gateway.into()) {
            Some(IpAddr::V4(own)) => Some(Place { gateway, own }),
            Some(IpAddr::V6(_)) | None => None,
        },
        Some(IpAddr::V6(_)) | None => None,
    };
    let of = |four: bool| -> Vec<(SocketAddr, bool)> {
        let servers = facts.servers.iter().filter_map(|server| Some((server.addr?, server.is_ours)));
        servers.filter(|(addr, _)| addr.is_ipv4() == four).collect()
    };
    let (asked4, asked6) = (of(true), of(false));
    let (udp4, udp6, tcp, spoken) = join4(
        look(&asked4, arguments.long),
        look(&asked6, None),
        join_all(facts.servers.iter().map(connect)),
        gateway::ask(place, GATEWAY_PATIENCE),
    )
    .await;
    for (server, connected) in facts.servers.iter_mut().zip(tcp) {
        server.tcp = connected;
    }
    (facts.protocols, facts.gateway_outside) = spoken;
    for (family, seen) in [(&mut facts.four, udp4), (&mut facts.six, udp6)] {
        let Some(seen) = seen else { continue };
        for server in &mut facts.servers {
            let took = seen.answered.iter().find(|(to, _)| Some(*to) == server.addr);
            server.udp = server.udp.or(took.map(|(_, took)| *took));
        }
        facts.clock_ahead = facts.clock_ahead.or(seen.clock_ahead);
        let (addresses, default_route) = (std::mem::take(&mut family.addresses), family.default_route.take());
        *family = Family { addresses, default_route, ..seen.family };
    }
    Ok(facts)
}

/// What the kernel knows of one family.
fn local(addresses: &[InterfaceAddress], routes: &[RouteEntry], four: bool) -> Family {
    let others = addresses.iter().filter(|address| {
        let scoped = matches!(address.addr, IpAddr::V6(ip) if ip.is_unicast_link_local());
        address.addr.is_ipv4() == four && address.is_up() && address.is_usable() && !address.is_loopback() && !scoped
    });
    let defaults = routes.iter().filter(|route| route.dst.prefix_len() == 0 && route.dst.addr().is_ipv4() == four);
    let best = defaults.min_by_key(|route| route.priority);
    Family {
        addresses: others.map(|address| (address.name.clone(), address.addr)).collect(),
        default_route: best.map(|route| (route.name.clone(), route.gateway)),
        ..Family::default()
    }
}

/// Whom to ask: those that were named, or else the server of the client that runs or is configured here.
fn names(arguments: &NetcheckArguments) -> Result<Vec<(HostPort, bool)>> {
    let read = |texts: &[String], port, is_ours| -> Result<Vec<(HostPort, bool)>> {
        let one = |text: &String| {
            let host = HostPort::parse(text, port).with_context(|| format!("{text:?} is no HOST or HOST:PORT"))?;
            Ok((host, is_ours))
        };
        texts.iter().map(one).collect()
    };
    let mut names = read(&arguments.server, SERVER_PORT, true)?;
    names.extend(read(&arguments.stun, STUN_PORT, false)?);
    if !names.is_empty() {
        return Ok(names);
    }
    // Neither of them has to be there.
    if let Ok(status) = ask_role(Role::Client, Some(&arguments.socket), &json!({"command": "status"}))
        && let Some(endpoint) = status["server"]["endpoint"].as_str()
        && let Ok(host) = HostPort::parse(endpoint.trim_start_matches("tcp "), SERVER_PORT)
    {
        return Ok(vec![(host, true)]);
    }
    let file = file_for(None, Role::Client);
    let config = file.and_then(|file| load_client(Some(&file), ClientOptions::default()).ok());
    Ok(config.into_iter().flat_map(|config| config.servers).map(|host| (host, true)).collect())
}

/// Each name in both families, as far as it has addresses.
async fn resolve(names: &[(HostPort, bool)]) -> Vec<Server> {
    let found = names.iter().map(|(host, is_ours)| async move {
        let server =
            |addr, error| Server { name: host.to_string(), is_ours: *is_ours, addr, udp: None, tcp: None, error };
        match names::resolve(&host.host, host.port).await {
            Ok(addresses) => {
                let first = |four| addresses.iter().find(|addr| addr.is_ipv4() == four);
                [first(true), first(false)].into_iter().flatten().map(|addr| server(Some(*addr), None)).collect()
            }
            Err(error) => vec![server(None, Some(error.to_string()))],
        }
    });
    join_all(found).await.into_iter().flatten().collect()
}

async fn connect(server: &Server) -> Option<std::result::Result<Duration, String>> {
    let to = server.addr.filter(|_| server.is_ours)?;
    Some(tcp_connect(to, PATIENCE).await.map_err(|error| error.to_string()))
}

/// What UDP has shown in one family.
struct Seen {
    family: Family,
    /// The servers that answered, and their round trips.
    answered: Vec<(SocketAddr, Duration)>,
    clock_ahead: Option<f64>,
}

/// Asks all servers of one family; `None` where there are none.
async fn look(servers: &[(SocketAddr, bool)], long: Option<Duration>) -> Option<Seen> {
    let four = servers.first()?.0.is_ipv4();
    let mut seen = Seen { family: Family::default(), answered: Vec::new(), clock_ahead: None };
    seen.family.udp = Some(false);
    let Ok(socket) = AskSocket::open(four) else { return Some(seen) };
    let mut questions = Vec::new();
    for (to, is_ours) in servers {
        let how = if *is_ours { How::PLAIN } else { How::Stun };
        questions.push(Question { to: *to, how });
        if let Some(next) = to.port().checked_add(1).filter(|_| *is_ours) {
            questions.push(Question { to: SocketAddr::new(to.ip(), next), how });
        }
    }
    let heard = socket.round(&questions, PATIENCE).await;
    let mut sights: Vec<Sight> = socket.sights(0, &heard, &questions);
    for (heard, question) in heard.iter().zip(&questions) {
        let Some(heard) = heard else { continue };
        seen.answered.push((question.to, heard.took));
        seen.family.observed = seen.family.observed.or(Some(heard.observed));
        if let Some(tell) = heard.more {
            let now = unix_time().as_secs_f64();
            // Its clock is told in whole seconds.
            let ahead = now - heard.took.as_secs_f64() / 2.0 - (tell.unix as f64 + 0.5);
            seen.clock_ahead = seen.clock_ahead.or(Some(ahead));
        }
    }
    let Some(observed) = seen.family.observed else { return Some(seen) };
    seen.family.udp = Some(true);
    if mapping(&sights) == Mapping::Dependent {
        for number in 1..SOCKETS {
            let Ok(socket) = AskSocket::open(four) else { break };
            let heard = socket.round(&questions, SHORT).await;
            sights.extend(socket.sights(number, &heard, &questions));
        }
    }
    seen.family.mapping = mapping(&sights);

    // Of servers of ours, one that has a second port.
    let ours = heard.iter().zip(&questions).find_map(|(heard, question)| Some((question.to, heard.as_ref()?.more?)));
    let hairpin = async {
        // Where each destination has another port, ours is nobody's.
        let steady = seen.family.mapping == Mapping::Independent;
        if steady { socket.hairpin(observed, SHORT).await.ok() } else { None }
    };
    let others = async {
        let Some((server, tell)) = ours else { return (Filtering::Unknown, None, None) };
        let filtering = filtering(server, tell.other_port).await;
        let packet = packet(server).await;
        (filtering, packet, lifetime(server, long).await)
    };
    let (hairpin, (filtering, packet, lifetime)) = join(hairpin, others).await;
    let family = &mut seen.family;
    (family.hairpin, family.filtering, family.packet, family.lifetime) = (hairpin, filtering, packet, lifetime);
    Some(seen)
}

/// Has the server answer a socket of ours from a port that it never sent to.
async fn filtering(server: SocketAddr, other_port: u16) -> Filtering {
    if other_port == 0 {
        return Filtering::Unknown;
    }
    let Ok(socket) = AskSocket::open(server.is_ipv4()) else { return Filtering::Unknown };
    let how = How::Ours { from_other: true, pass: None, length: OBSERVE_LEN };
    let heard = socket.round(&[Question { to: server, how }], SHORT).await;
    match heard.first().copied().flatten() {
        Some(heard) if heard.from != server => Filtering::Open,
        Some(_) => Filtering::Unknown,
        None => Filtering::ByPort,
    }
}

/// The largest IP packet that reaches a server whole.
async fn packet(server: SocketAddr) -> Option<u16> {
    let socket = AskSocket::open(server.is_ipv4()).ok()?;
    socket.forbid_cutting().ok()?;
    let headers = if server.is_ipv4() { 28 } else { 48 };
    let question = |packet: &u16| Question {
        to: server,
        how: How::Ours { from_other: false, pass: None, length: usize::from(*packet) - headers },
    };
    let questions: Vec<Question> = PACKETS.iter().map(question).collect();
    let heard = socket.round(&questions, SHORT).await;
    PACKETS.iter().zip(heard).filter(|(_, heard)| heard.is_some()).map(|(packet, _)| *packet).max()
}

/// How long a mapping without traffic lives, between two of the waits that were tried.
async fn lifetime(server: SocketAddr, long: Option<Duration>) -> Option<(Duration, Option<Duration>)> {
    let long = long?;
    let tries = LIVES.iter().map(|twentieths| {
        let wait = long * *twentieths / 20;
        async move { (wait, lives(server, wait).await) }
    });
    let tried: Vec<(Duration, Option<bool>)> = join_all(tries).await;
    let gone = tried.iter().filter(|(_, lives)| *lives == Some(false)).map(|(wait, _)| *wait).min();
    let lived = tried.iter().filter(|(wait, lives)| *lives == Some(true) && gone.is_none_or(|gone| *wait < gone));
    let lived = lived.map(|(wait, _)| *wait).max();
    // Without any that was answered nothing is known.
    (lived.is_some() || gone.is_some()).then(|| (lived.unwrap_or_default(), gone))
}

/// Whether a mapping is still there after a wait; `None` if it could not be made.
async fn lives(server: SocketAddr, wait: Duration) -> Option<bool> {
    let socket = AskSocket::open(server.is_ipv4()).ok()?;
    let made = Instant::now();
    let heard = socket.round(&[Question { to: server, how: How::PLAIN }], PATIENCE).await;
    let heard = heard.first().copied().flatten()?;
    let pass: Pass = heard.more?.pass;
    Timer::at(made + wait).await;
    socket.is_mapped(server, (pass, heard.observed), SHORT).await.ok()
}
