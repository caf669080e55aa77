//! Port mappings at a gateway: Debian's miniupnpd before a real NAT, and gateways of our own making that lie.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::{Directory, Node, wait_until};
use eps_actor::config::Role;
use eps_actor::io::netns::{Lan, Netns, can_make_networks};
use serde_json::{Value, json};

use crate::lab::{SOON, finish_in, has_program, join, node, ping, state_of, text, until, wait_for_direct};

/// miniupnpd maps nothing for an outside address that is reserved, as those for documentation are; this one is not,
/// and stays in its namespace.
const WAN: &str = "11.0.0.11";
/// For what has to come over a daemon's start, retries and a search.
const LATER: Duration = Duration::from_secs(45);

/// A machine behind a NAT that lets nothing unsolicited in, and one outside:
/// `inside 192.168.7.2 - 192.168.7.1 [nat] 11.0.0.11 - 11.0.0.2 outside`.
struct Home {
    directory: Directory,
    inside: Arc<Netns>,
    outside: Arc<Netns>,
    nat: Arc<Netns>,
    internet: Lan,
    _lan: Lan,
}

impl Home {
    fn new() -> Self {
        let mut internet = Lan::new().expect("a switch");
        let outside = Netns::new().expect("a namespace");
        internet.plug(&outside, "eth0", "11.0.0.2/24").expect("a cable");
        let (nat, inside, lan) = behind(&mut internet, WAN, "192.168.7");
        let directory = Directory::new().expect("a directory");
        Self { directory, inside, outside: Arc::new(outside), nat, internet, _lan: lan }
    }

    fn server(&self) -> Node {
        node("server", Role::Server, self.inside.clone(), &self.directory)
    }

    fn client(&self, name: &str, ns: &Arc<Netns>) -> Node {
        node(name, Role::Client, ns.clone(), &self.directory)
    }

    /// Whether the server's TCP port answers outside.
    fn answers_outside(&self) -> bool {
        let to = SocketAddr::new(WAN.parse().expect("an address"), 43439);
        self.outside.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)).is_ok())
    }

    /// The mappings in the NAT's own words.
    fn rules(&self) -> String {
        let output = finish_in(&self.nat, Command::new("nft").args(["list", "chain", "inet", "eps", "mapped"]));
        text(&output.stdout)
    }

    fn is_mapped(&self) -> bool {
        self.rules().contains("dnat ip to 192.168.7.2")
    }
}

/// A NAT at `wan` on the internet, and a machine at `.2` of the network behind it.
fn behind(internet: &mut Lan, wan: &str, network: &str) -> (Arc<Netns>, Arc<Netns>, Lan) {
    let [nat, inside] = [Netns::new(), Netns::new()].map(|ns| ns.expect("a namespace"));
    internet.plug(&nat, "wan", &format!("{wan}/24")).expect("a cable");
    let mut lan = Lan::new().expect("a switch");
    lan.plug(&nat, "lan", &format!("{network}.1/24")).expect("a cable");
    lan.plug(&inside, "eth0", &format!("{network}.2/24")).expect("a cable");
    let gateway: Ipv4Addr = format!("{network}.1").parse().expect("an address");
    inside.add_default_route(gateway).expect("a route");
    nat.sysctl("ipv4/ip_forward", "1").expect("a setting");
    nft(
        &nat,
        r#"table inet eps {
            chain input { type filter hook input priority 0; iifname "wan" ct state new drop; }
            chain forward { type filter hook forward priority 0; policy drop;
                jump allowed; ct state established,related accept; iifname "lan" accept; }
            chain allowed { }
            chain prerouting { type nat hook prerouting priority -100; jump mapped; }
            chain mapped { }
            chain postrouting { type nat hook postrouting priority 100; jump back; oifname "wan" masquerade fully-random; }
            chain back { }
        }"#,
    );
    (Arc::new(nat), Arc::new(inside), lan)
}

fn nft(ns: &Netns, rules: &str) {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = ns.spawn(&mut command).expect("started");
    child.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Debian's miniupnpd, until it is dropped.
struct Daemon(Child);

impl Daemon {
    fn start(home: &Home, pmp: bool, upnp: bool) -> Self {
        let word = |on| if on { "yes" } else { "no" };
        let conf = home.directory.path().join("miniupnpd.conf");
        let config = format!(
            "ext_ifname=wan\nlistening_ip=lan\nhttp_port=5000\nenable_natpmp={}\nenable_upnp={}\nipv6_disable=yes\n\
             secure_mode=yes\nnotify_interval=60\nuuid=8e4a8e64-7d2b-4d0c-9a34-2f6a6a2f7a11\nupnp_table_name=eps\n\
             upnp_nat_table_name=eps\nupnp_forward_chain=allowed\nupnp_nat_chain=mapped\nupnp_nat_postrouting_chain=back\n",
            word(pmp),
            word(upnp)
        );
        std::fs::write(&conf, config).expect("written");
        let mut command = Command::new("miniupnpd");
        command.arg("-d").arg("-f").arg(&conf).arg("-P").arg(home.directory.path().join("miniupnpd.pid"));
        let log = std::fs::File::create(home.directory.path().join("miniupnpd.log")).expect("a file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        Self(home.nat.spawn(&mut command).expect("started"))
    }

    /// Ends without a word, and its mappings with it.
    fn crash(self, home: &Home) {
        drop(self);
        nft(&home.nat, "flush chain inet eps mapped\nflush chain inet eps allowed\nflush chain inet eps back\n");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("waited for");
    }
}

fn daemon_log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("miniupnpd.log")).unwrap_or_default()
}

fn has_programs() -> bool {
    can_make_networks() && has_program("miniupnpd") && has_program("nft")
}

/// What a node says of its gateway.
fn gateway(node: &Node) -> Value {
    let status = wait_until(SOON, "a status", || node.poll(&json!({"command": "status"}))).expect("a status");
    status["gateway"].clone()
}

/// Waits until a node has mapped what it wants, by this protocol.
fn wait_for_mapping(node: &Node, protocol: &str, wanted: usize) -> Value {
    let mut last = Value::Null;
    let mapped = wait_until(LATER, "a mapping", || {
        last = gateway(node);
        let list = last["mappings"].as_array().expect("a list");
        Ok((list.len() == wanted && list.iter().all(|mapping| mapping["protocol"] == protocol)).then(|| last.clone()))
    });
    mapped.unwrap_or_else(|error| panic!("{error:#}: {last}\n{}", node.log()))
}

fn invite(server: &Node) -> String {
    let question = json!({"command": "invite", "reusable": true, "expires": null});
    let reply = wait_until(SOON, "an invitation", || server.poll(&question));
    reply.unwrap_or_else(|error| panic!("{error:#}\n{}", server.log()))["join"].as_str().expect("a line").to_owned()
}

/// A member outside reaches a server inside by nothing but the mapping, which is gone after the server.
fn a_server_is_reached(protocol: &str, pmp: bool, upnp: bool) {
    if !has_programs() {
        return;
    }
    let home = Home::new();
    let _daemon = Daemon::start(&home, pmp, upnp);
    let server = home.server();
    server.start(&[]).expect("started");
    let status = wait_for_mapping(&server, protocol, 2);
    assert_eq!((&status["state"], &status["address"]), (&json!("mapped"), &json!("192.168.7.1")), "{status}");
    for (mapping, transport) in status["mappings"].as_array().expect("a list").iter().zip(["UDP", "TCP"]) {
        assert_eq!(mapping["transport"], transport, "{status}");
        assert_eq!(mapping["external"], format!("{WAN}:43439"), "{status}");
        assert!(mapping["lifetime_seconds"].as_f64().is_some_and(|left| left > 100.0), "{status}");
    }
    let line = invite(&server);
    assert!(line.starts_with(&format!("eps://{WAN}:43439,192.168.7.2:43439/")), "{line}");
    assert!(home.answers_outside(), "TCP\n{}", home.rules());
    let member = home.client("member", &home.outside);
    join(&member, &line, &[]);
    assert_eq!(member.client_status().expect("a status").server.endpoint, Some(format!("{WAN}:43439")));
    println!(
        "{protocol}: {}",
        home.rules().lines().filter(|line| line.contains("dnat")).collect::<Vec<_>>().join("; ")
    );

    let stopped = server.stop().expect("stopped").expect("it ran");
    assert!(stopped.took < Duration::from_secs(1), "{:?}", stopped.took);
    assert!(!home.is_mapped(), "after the end:\n{}\n{}", home.rules(), daemon_log(home.directory.path()));
    assert!(!home.answers_outside());
}

#[test]
fn a_member_outside_reaches_a_server_that_pcp_maps_until_it_ends() {
    a_server_is_reached("PCP", true, true);
}

#[test]
fn a_member_outside_reaches_a_server_that_upnp_maps_until_it_ends() {
    a_server_is_reached("UPnP-IGD", false, true);
}

/// A gateway that lost everything gets the mappings again.
fn mappings_are_made_again(protocol: &str, pmp: bool, upnp: bool) {
    if !has_programs() {
        return;
    }
    let home = Home::new();
    let daemon = Daemon::start(&home, pmp, upnp);
    let server = home.server();
    server.start(&[]).expect("started");
    wait_for_mapping(&server, protocol, 2);
    assert!(home.is_mapped());
    // Of PCP a restart is told by the gateway's age, which has to be one that can be lost: ages are compared to within
    // an eighth and two seconds.
    until("the gateway to be some seconds old", || {
        let left = gateway(&server)["mappings"][0]["lifetime_seconds"].as_f64();
        protocol != "PCP" || left.is_some_and(|left| left < 7191.0)
    });
    daemon.crash(&home);
    assert!(!home.is_mapped() && !home.answers_outside());
    let begun = Instant::now();
    let _daemon = Daemon::start(&home, pmp, upnp);
    let again = wait_until(LATER, "the mapping to be made again", || Ok(home.is_mapped().then_some(())));
    again.unwrap_or_else(|error| {
        panic!("{error:#}: {}\n{}\n{}", gateway(&server), server.log(), daemon_log(home.directory.path()))
    });
    until("both ports to be mapped", || home.answers_outside());
    println!("{protocol}: mapped again {:.1} s after the gateway's start", begun.elapsed().as_secs_f64());
}

#[test]
fn a_gateway_of_pcp_that_lost_its_leases_is_asked_again() {
    mappings_are_made_again("PCP", true, false);
}

#[test]
fn a_gateway_of_upnp_that_lost_its_leases_is_asked_again() {
    mappings_are_made_again("UPnP-IGD", false, true);
}

#[test]
fn a_server_that_was_killed_has_its_mapping_again_and_deletes_it_in_its_turn() {
    if !has_programs() {
        return;
    }
    let home = Home::new();
    let _daemon = Daemon::start(&home, true, false);
    let server = home.server();
    server.start(&[]).expect("started");
    wait_for_mapping(&server, "PCP", 2);
    server.kill().expect("killed");
    assert!(home.is_mapped(), "nobody has deleted it");
    // A gateway of PCP refuses whoever does not know the nonce of a mapping.
    server.start(&[]).expect("started");
    wait_for_mapping(&server, "PCP", 2);
    server.stop().expect("stopped");
    assert!(!home.is_mapped(), "{}", home.rules());
}

#[test]
fn two_clients_behind_nats_of_random_ports_are_direct_by_the_mapping_of_one() {
    if !has_programs() {
        return;
    }
    let mut home = Home::new();
    let (_other_nat, other, _other_lan) = behind(&mut home.internet, "11.0.0.12", "192.168.8");
    let server = node("server", Role::Server, home.outside.clone(), &home.directory);
    server.start(&["--advertise", "11.0.0.2"]).expect("started");
    let line = invite(&server);
    let (mapped, plain) = (home.client("mapped", &home.inside), home.client("plain", &other));
    // Without a mapping there is nothing but the relay.
    join(&mapped, &line, &["--upnptimeout", "0"]);
    let to = join(&plain, &line, &["--listen-port", "40000"]);
    assert_eq!(gateway(&mapped)["state"], "off");
    let begun = Instant::now();
    // Longer than a direct path takes where there can be one.
    while begun.elapsed() < Duration::from_secs(3) {
        ping(&mapped, &plain, to);
        assert_eq!(state_of(&mapped, "plain"), "relay", "ports are random: {}", mapped.log());
    }
    mapped.stop().expect("stopped");

    let _daemon = Daemon::start(&home, true, false);
    join(&mapped, &line, &[]);
    let status = wait_for_mapping(&mapped, "PCP", 1);
    assert_eq!(status["mappings"][0]["transport"], "UDP", "{status}");
    ping(&mapped, &plain, to);
    wait_for_direct(&mapped, "plain");
    wait_for_direct(&plain, "mapped");
    let Ok(eps_actor::cli::demo::scene::Reached::Direct(path)) = plain.path_to("mapped") else { panic!("not direct") };
    assert_eq!(json!(path), status["mappings"][0]["external"], "by the mapping");
}

/// How a gateway of our own making behaves, over PCP and NAT-PMP.
#[derive(Clone, Copy)]
struct Manners {
    pcp: bool,
    natpmp: bool,
    external: Ipv4Addr,
    /// Another nonce than it was given.
    forges_nonce: bool,
    /// Answers come from another port.
    from_elsewhere: bool,
    delay: Duration,
    /// Seconds since its start, as it says.
    age: u32,
    announces: bool,
}

const HONEST: Manners = Manners {
    pcp: true,
    natpmp: true,
    external: Ipv4Addr::new(11, 0, 0, 11),
    forges_nonce: false,
    from_elsewhere: false,
    delay: Duration::ZERO,
    age: 1000,
    announces: false,
};

/// Such a gateway, until it is dropped.
struct Fake {
    stop: Arc<AtomicBool>,
    mapped: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    fn start(home: &Home, manners: Manners) -> Self {
        let [socket, other] =
            home.nat.run(|| [5351, 0].map(|port| UdpSocket::bind(("192.168.7.1", port)).expect("a socket")));
        let lan = Ipv4Addr::new(192, 168, 7, 1);
        socket2::SockRef::from(&socket).set_multicast_if_v4(&lan).expect("an interface");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let mapped = Arc::new(AtomicU32::new(0));
        let (ends, count_of) = (stop.clone(), mapped.clone());
        let thread = thread::spawn(move || {
            let begun = Instant::now();
            let mut late = Vec::new();
            if manners.announces {
                let announcement = [&[2, 0x80, 0, 0, 0, 0, 0, 0][..], &manners.age.to_be_bytes(), &[0; 12]].concat();
                socket.send_to(&announcement, "224.0.0.1:5350").expect("sent");
            }
            while !ends.load(Relaxed) {
                let mut buffer = [0; 100];
                if let Ok((count, from)) = socket.recv_from(&mut buffer) {
                    let epoch = manners.age + begun.elapsed().as_secs() as u32;
                    if let Some(answer) = answer(manners, &buffer[..count], epoch) {
                        count_of.fetch_add(u32::from(count > 24 || count == 12), Relaxed);
                        late.push((Instant::now() + manners.delay, answer, from));
                    }
                }
                let now = Instant::now();
                late.retain(|(at, answer, to)| {
                    let by = if manners.from_elsewhere { &other } else { &socket };
                    // Whoever asked may have gone.
                    *at > now || by.send_to(answer, to).is_err()
                });
            }
        });
        Self { stop, mapped, thread: Some(thread) }
    }

    /// How often it was asked for a mapping.
    fn asked(&self) -> u32 {
        self.mapped.load(Relaxed)
    }

    /// Ends it, and frees its port; how often it was asked for a mapping.
    fn end(mut self) -> u32 {
        self.stop.store(true, Relaxed);
        self.thread.take().expect("once").join().expect("no panic");
        self.asked()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

fn answer(manners: Manners, question: &[u8], epoch: u32) -> Option<Vec<u8>> {
    match question {
        [2, operation, ..] if manners.pcp => {
            let mut answer = question.to_vec();
            (answer[1], answer[3]) = (operation | 0x80, 0);
            answer[8..12].copy_from_slice(&epoch.to_be_bytes());
            answer[12..24].fill(0);
            if answer.len() == 60 {
                answer[24] ^= u8::from(manners.forges_nonce);
                let inside = [answer[40], answer[41]];
                answer[42..44].copy_from_slice(&inside);
                answer[44..].copy_from_slice(&manners.external.to_ipv6_mapped().octets());
            }
            Some(answer)
        }
        [2, ..] if manners.natpmp => Some([&[0, 0x80, 0, 1][..], &epoch.to_be_bytes()].concat()),
        [0, 0] if manners.natpmp => {
            Some([&[0, 0x80, 0, 0][..], &epoch.to_be_bytes(), &manners.external.octets()].concat())
        }
        [0, operation @ 1..=2, _, _, inside @ .., _, _, _, _, _, _] if manners.natpmp && question.len() == 12 => {
            let head = [0, operation | 0x80, 0, 0];
            Some([&head[..], &epoch.to_be_bytes(), inside, inside, &question[8..]].concat())
        }
        _ => None,
    }
}

fn start_before(manners: Option<Manners>, more: &[&str]) -> Option<(Home, Option<Fake>, Node)> {
    if !has_programs() {
        return None;
    }
    let home = Home::new();
    let fake = manners.map(|manners| Fake::start(&home, manners));
    let server = home.server();
    server.start(more).expect("started");
    Some((home, fake, server))
}

#[test]
fn a_gateway_that_speaks_nat_pmp_only_maps_both_ports() {
    let Some((_home, fake, server)) = start_before(Some(Manners { pcp: false, ..HONEST }), &[]) else { return };
    wait_for_mapping(&server, "NAT-PMP", 2);
    assert!(invite(&server).starts_with(&format!("eps://{WAN}:43439,")));
    server.stop().expect("stopped");
    assert_eq!(fake.expect("one").end(), 4, "two mappings made and two deleted");
}

#[test]
fn an_outside_address_that_nobody_can_dial_is_not_announced() {
    for (pcp, external) in
        [(true, [0, 0, 0, 0]), (true, [192, 168, 9, 9]), (false, [0, 0, 0, 0]), (false, [100, 64, 0, 1])]
    {
        let manners = Manners { pcp, external: external.into(), ..HONEST };
        let Some((_home, _fake, server)) = start_before(Some(manners), &["--upnptimeout", "300"]) else { return };
        until("the gateway to be found of no use", || gateway(&server)["state"] == "none");
        let (status, line) = (gateway(&server), invite(&server));
        let reason = status["reason"].as_str().expect("a reason");
        assert!(reason.contains("outside"), "{reason}");
        assert!(line.starts_with("eps://192.168.7.2:43439/"), "{line}");
        println!("{external:?}: {reason}");
    }
}

#[test]
fn answers_of_another_nonce_or_from_another_port_are_not_believed() {
    let forged = Manners { natpmp: false, forges_nonce: true, ..HONEST };
    let elsewhere = Manners { from_elsewhere: true, ..HONEST };
    for (manners, asked) in [(forged, true), (elsewhere, false)] {
        let Some((_home, fake, server)) = start_before(Some(manners), &["--upnptimeout", "300"]) else { return };
        until("the gateway to be found of no use", || gateway(&server)["state"] == "none");
        assert!(invite(&server).starts_with("eps://192.168.7.2:43439/"));
        assert_eq!(gateway(&server)["mappings"], json!([]));
        assert_eq!(fake.expect("one").end() > 0, asked);
    }
}

#[test]
fn a_slow_gateway_delays_no_start_and_is_believed_when_it_answers() {
    let slow = Manners { delay: Duration::from_millis(1500), ..HONEST };
    let begun = Instant::now();
    let Some((_home, _fake, server)) = start_before(Some(slow), &["--upnptimeout", "300"]) else { return };
    let line = invite(&server);
    assert!(line.starts_with("eps://192.168.7.2:43439/"), "{line}");
    println!("an invitation {:.1} s after the start of a slow gateway's scene", begun.elapsed().as_secs_f64());
    assert_eq!(gateway(&server)["mappings"], json!([]), "too early");
    wait_for_mapping(&server, "PCP", 2);
    assert!(invite(&server).starts_with(&format!("eps://{WAN}:43439,")));
}

#[test]
fn a_gateway_that_answers_nothing_is_said_so_and_nobody_waits_for_it() {
    let Some((_home, _, server)) = start_before(None, &["--upnptimeout", "300"]) else { return };
    assert!(invite(&server).starts_with("eps://192.168.7.2:43439/"));
    until("the search to end", || gateway(&server)["state"] == "none");
    let status = gateway(&server);
    assert_eq!(status["reason"], "it answers neither PCP nor NAT-PMP nor UPnP");
    assert_eq!(status["address"], "192.168.7.1");
}

#[test]
fn an_actor_that_is_restarted_keeps_its_mapping() {
    let Some((_home, _fake, server)) = start_before(Some(HONEST), &[]) else { return };
    wait_for_mapping(&server, "PCP", 2);
    server.control(&json!({"command": "inject_panic", "actor": "upnp"})).expect("injected");
    until("a restart", || {
        let status = server.control(&json!({"command": "status"})).expect("a status");
        let actors = status["actors"].as_array().expect("actors").clone();
        actors.iter().any(|actor| actor["name"] == "upnp" && actor["restarts"] == 1 && actor["state"] == "running")
    });
    assert_eq!(gateway(&server)["mappings"].as_array().expect("a list").len(), 2, "as the view had it");
    let asked_again = |status: &Value| {
        let left = |mapping: &Value| mapping["lifetime_seconds"].as_f64().is_some_and(|left| left > 7190.0);
        status["mappings"].as_array().expect("a list").iter().all(left)
    };
    until("a renewal", || asked_again(&gateway(&server)));
}

#[test]
fn a_gateway_that_announces_its_restart_is_asked_again_at_once() {
    let Some((home, fake, server)) = start_before(Some(HONEST), &[]) else { return };
    wait_for_mapping(&server, "PCP", 2);
    fake.expect("one").end();
    let again = Fake::start(&home, Manners { age: 1, announces: true, ..HONEST });
    // Sooner than its age would be asked for.
    until("both mappings to be asked for", || again.asked() >= 2);
}

#[test]
fn another_default_route_is_asked_in_its_turn() {
    let Some((home, _fake, server)) = start_before(Some(HONEST), &[]) else { return };
    wait_for_mapping(&server, "PCP", 2);
    let netlink = home.inside.netlink().expect("a socket");
    let router = Ipv4Addr::new(192, 168, 7, 1);
    smol::block_on(netlink.del_default_route(router)).expect("deleted");
    until("the mapping to go with the route", || gateway(&server)["mappings"] == json!([]));
    let status = gateway(&server);
    assert_eq!((&status["state"], &status["address"]), (&json!("none"), &Value::Null), "{status}");
    assert!(invite(&server).starts_with("eps://192.168.7.2:43439/"));
    smol::block_on(netlink.add_default_route(router)).expect("added");
    wait_for_mapping(&server, "PCP", 2);
}
