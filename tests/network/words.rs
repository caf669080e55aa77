//! `ping`, `why` and `netcheck`: the words for whoever wonders, on real machines in namespaces.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use eps_actor::cli::demo::scene::{Node, wait_until};
use eps_actor::config::Role;
use eps_actor::io::netns::{Lan, Netns, can_make_networks};
use eps_actor::wire::stun;
use serde_json::{Value, json};

use crate::lab::{
    BIN, SERVER, SOON, World, address, beside, finish_in, has_program, join, node, program, run_in, state_of, text,
    until, wait_for_direct,
};

/// Runs a command that asks a client.
fn ask(client: &Node, words: &[&str]) -> Output {
    let control = client.control_path();
    let control = control.to_str().expect("a path in UTF-8");
    program(&[words, &["--control", control]].concat())
}

/// The JSON documents a command printed, one a line.
fn documents(output: &Output) -> Vec<Value> {
    let printed = text(&output.stdout);
    printed.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

#[test]
fn ping_wakes_an_idle_peer_shows_the_path_of_each_answer_and_the_upgrade_and_says_who_is_not_there() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let line = world.start_server(&[]);
    let (ada, bob, cleo) = (world.client("ada"), world.client("bob"), world.client("cleo"));
    for client in [&ada, &bob, &cleo] {
        // The kernel's own multicast would be a first packet before ours.
        client.ns.sysctl("ipv6/conf/default/disable_ipv6", "1").expect("a setting");
        join(client, &line, &[]);
    }
    until("all to know each other", || ["bob", "cleo"].iter().all(|peer| state_of(&ada, peer) == "idle"));

    let output = ask(&ada, &["ping", "bob", "-c", "5", "-i", "0.3", "--json"]);
    let events = documents(&output);
    println!("{}", text(&output.stdout));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let pings: Vec<_> = events.iter().filter(|event| event["event"] == "ping").collect();
    assert!(pings.len() == 5 && pings.iter().all(|ping| ping["answer"] == "pong"), "{pings:?}");
    let last = pings[4];
    assert_eq!(last["via"]["kind"], "direct", "{last}");
    assert!(last["via"]["address"].as_str().is_some_and(|to| to.starts_with("198.51.100.3:")), "{last}");
    assert!(last["seen_as"].as_str().is_some_and(|own| own.starts_with("198.51.100.2:")), "{last}");
    if pings[0]["via"]["kind"] == "relay" {
        let mut upgrades = events.iter().filter(|event| event["event"] == "path" && event["route"]["kind"] == "direct");
        let upgrade = upgrades.next_back().expect("the upgrade is told");
        assert_eq!((&upgrade["from"]["kind"], &upgrade["route"]), (&json!("relay"), &last["via"]), "{upgrade}");
    }
    let sum = events.last().expect("a sum");
    assert_eq!((&sum["event"], &sum["lost_percent"]), (&json!("summary"), &json!(0.0)), "{sum}");
    assert!(sum["min_ms"].as_f64() <= sum["avg_ms"].as_f64() && sum["avg_ms"].as_f64() <= sum["max_ms"].as_f64());

    // For eyes, by address.
    let address = bob.address().expect("asked").expect("an address").to_string();
    let output = ask(&ada, &["ping", &address, "-c", "2", "-i", "0.1"]);
    let printed = text(&output.stdout);
    println!("{printed}");
    assert!(printed.contains("2: answer from bob direct by 198.51.100.3:"), "{printed}");
    assert!(printed.contains("2 sent, 2 answered, 0 % lost"), "{printed}");

    // Who is not there.
    for (who, expected) in
        [("zoe", "no member is called \"zoe\"; this client knows bob, cleo"), ("ada", "that is this machine itself")]
    {
        let output = ask(&ada, &["ping", who, "-c", "1"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
    cleo.stop().expect("stopped");
    until("cleo to be offline", || state_of(&ada, "cleo") == "offline");
    let output = ask(&ada, &["ping", "cleo", "-c", "1", "--json"]);
    assert_eq!((output.status.code(), &documents(&output)[0]["answer"]), (Some(1), &json!("offline")));

    world.server.control(&json!({"command": "kick", "name": "cleo"})).expect("removed");
    until("cleo to be gone", || state_of(&ada, "cleo") == "unknown");
    let output = ask(&ada, &["ping", "cleo", "-c", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cleo was removed from the network"), "{}", text(&output.stderr));

    // Somebody whose program hangs answers nothing; its session is still there.
    bob.kill().expect("killed");
    let output = ask(&ada, &["ping", "bob", "-c", "1", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(["silence", "no-session"].contains(&documents(&output)[0]["answer"].as_str().unwrap_or_default()));
}

/// What keeps the machines behind one NAT connected.
struct Home {
    nat: Netns,
    lan: Lan,
    hosts: u8,
}

impl Home {
    /// A NAT on the world's switch that lets in only what was asked for. `hard`: a new random port for each destination.
    fn new(world: &mut World, hard: bool) -> Self {
        let nat = Arc::try_unwrap(world.host()).unwrap_or_else(|_| unreachable!("nobody else has it"));
        let mut lan = Lan::new().expect("a switch");
        lan.plug(&nat, "lan", "192.168.7.1/24").expect("a cable");
        nat.sysctl("ipv4/ip_forward", "1").expect("a setting");
        let random = if hard { " --random-fully" } else { "" };
        for rule in [
            &format!("iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE{random}"),
            "iptables -A FORWARD -i eth0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "iptables -A FORWARD -i eth0 -j DROP",
            "iptables -A INPUT -i eth0 -p udp -j DROP",
        ] {
            run_in(&nat, rule);
        }
        Self { nat, lan, hosts: 1 }
    }

    fn host(&mut self) -> Netns {
        self.hosts += 1;
        let ns = Netns::new().expect("a namespace");
        self.lan.plug(&ns, "eth0", &format!("192.168.7.{}/24", self.hosts)).expect("a cable");
        ns.add_default_route(Ipv4Addr::new(192, 168, 7, 1)).expect("a route");
        ns
    }

    fn client(&mut self, world: &World, name: &str) -> Node {
        node(name, Role::Client, Arc::new(self.host()), &world.directory)
    }
}

/// Asks until the verdict is this one, and prints what was said. Some take a round of probes to become clear. One that
/// never comes is noted, so that all of them are told.
fn verdict(wrong: &mut Vec<String>, from: &Node, to: &str, expected: &str) -> Value {
    let (start, mut last) = (Instant::now(), Value::Null);
    let found = wait_until(SOON, expected, || {
        let output = ask(from, &["why", to, "--json"]);
        assert!(output.status.code() != Some(2), "{}", text(&output.stderr));
        last = documents(&output).pop().unwrap_or_else(|| panic!("{}", text(&output.stderr)));
        let fine = last["fine"] == true;
        assert_eq!(output.status.code(), Some(i32::from(!fine)), "{last}");
        Ok((last["verdict"] == expected).then(|| last.clone()))
    });
    let reply = found.unwrap_or_else(|error| {
        println!("{} why {to}: {error:#}\n{last:#}", from.name);
        wrong.push(format!("{} why {to}: {}, not {expected}", from.name, last["verdict"]));
        last.clone()
    });
    let fix = reply["fix"].as_str().unwrap_or("nothing to mend");
    println!(
        "{} why {to}: {expected} after {:.1} s: {} -> {fix}",
        from.name,
        start.elapsed().as_secs_f64(),
        reply["text"].as_str().unwrap_or_default(),
    );
    reply
}

/// Lets two clients make a session.
fn meet(from: &Node, to: &Node) {
    let output = ask(from, &["ping", &to.name, "-c", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn why_has_the_right_verdict_for_each_of_sixteen_set_ups() {
    if !can_make_networks() || !has_program("iptables") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let line = world.start_server(&[]);
    let [ada, bob, dora, finn, gina, uma] =
        ["ada", "bob", "dora", "finn", "gina", "uma"].map(|name| world.client(name));
    let mut homes = [true, true, false].map(|hard| Home::new(&mut world, hard));
    let hana = homes[0].client(&world, "hana");
    let hugo = homes[1].client(&world, "hugo");
    let [rita, rolf] = ["rita", "rolf"].map(|name| homes[2].client(&world, name));
    // A Wi-Fi that keeps its machines apart.
    let [iris, ivan] = ["iris", "ivan"].map(|name| homes[2].client(&world, name));
    for client in [&iris, &ivan] {
        run_in(&client.ns, "iptables -A INPUT -i eth0 -s 192.168.7.0/24 -j DROP");
    }
    let all = [&ada, &bob, &dora, &finn, &gina, &uma, &hana, &hugo, &rita, &rolf, &iris, &ivan];
    for client in all {
        client.ns.sysctl("ipv6/conf/default/disable_ipv6", "1").expect("a setting");
        let more: &[&str] = match client.name.as_str() {
            "dora" => &["--direct=false"],
            "hana" => &["--hard-nat=false"],
            "rita" | "rolf" => &["--lan=false", "--lan-discovery=false"],
            _ => &[],
        };
        client.start(&[&["--join", &line], more].concat()).expect("started");
    }
    for client in all {
        address(client);
    }
    // Firewalls that let nobody in but the server.
    for client in [&finn, &gina] {
        run_in(&client.ns, &format!("iptables -A INPUT -i eth0 -p udp ! -s {SERVER} -j DROP"));
    }
    until("all to know each other", || {
        let status = ada.client_status().expect("a status");
        status.peers.iter().filter(|peer| peer.online).count() == all.len() - 1
    });

    let mut wrong = Vec::new();
    verdict(&mut wrong, &ada, "bob", "idle");
    for (from, to) in [
        (&ada, &bob),
        (&hana, &hugo),
        (&hana, &rita),
        (&dora, &ada),
        (&ada, &finn),
        (&gina, &finn),
        (&rita, &rolf),
        (&iris, &ivan),
    ] {
        meet(from, to);
    }
    let reply = verdict(&mut wrong, &ada, "bob", "direct");
    assert_eq!((&reply["account"], &reply["theirs"]["nat"]), (&json!("told"), &json!("none")), "{reply:#}");
    assert!(reply["ours"]["tries"].as_array().is_some_and(|tries| tries.iter().any(|one| one["arrived"] != 0)));
    verdict(&mut wrong, &ada, "zoe", "unknown-name");
    let reply = verdict(&mut wrong, &hana, "hugo", "both-hard");
    for end in ["ours", "theirs"] {
        assert_eq!(reply[end]["nat"], "endpoint-dependent", "{reply:#}");
    }
    for (from, to, expected) in [
        (&hana, "rita", "hard-nat-off"),
        (&dora, "ada", "direct-off-here"),
        // Nobody has a direct path to who wants none, either.
        (&ada, "dora", "direct-off-there"),
        (&ada, "finn", "inbound-filtered-there"),
        (&finn, "ada", "inbound-filtered-here"),
        (&gina, "finn", "filtered-between"),
        (&rita, "rolf", "no-hairpin"),
        (&iris, "ivan", "isolated"),
    ] {
        verdict(&mut wrong, from, to, expected);
    }

    // For eyes.
    let output = ask(&hana, &["why", "rita"]);
    println!("{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("tried from here to rita:"), "{}", text(&output.stdout));

    // UDP stops here, from the start on; TCP still leads to the server.
    uma.stop().expect("stopped");
    run_in(&uma.ns, "iptables -A OUTPUT -o eth0 -p udp -j DROP");
    uma.start(&[]).expect("started");
    address(&uma);
    // Whether the relay is reached by TCP or not at all, the reason is the same.
    ask(&uma, &["ping", "ada", "-c", "1"]);
    verdict(&mut wrong, &uma, "ada", "udp-blocked-here");

    hugo.stop().expect("stopped");
    verdict(&mut wrong, &ada, "hugo", "offline");
    world.server.control(&json!({"command": "kick", "name": "dora"})).expect("removed");
    verdict(&mut wrong, &ada, "dora", "removed");

    // Without the server: what is direct stays so, what is known is tried, what is not cannot be.
    world.server.stop().expect("stopped");
    until("the server to be missed", || !ada.client_status().expect("a status").server.connected);
    verdict(&mut wrong, &ada, "bob", "direct");
    verdict(&mut wrong, &ada, "hana", "server-down");
    bob.kill().expect("killed");
    ada.stop().expect("stopped");
    ada.start(&[]).expect("started");
    address(&ada);
    verdict(&mut wrong, &ada, "bob", "server-down-tried");
    drop(homes.map(|home| home.nat));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn why_has_the_right_verdict_when_what_worked_breaks() {
    if !can_make_networks() || !has_program("iptables") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let line = world.start_server(&[]);
    let [ada, bob, finn, uma] = ["ada", "bob", "finn", "uma"].map(|name| world.client(name));
    let mut homes = [true, true].map(|hard| Home::new(&mut world, hard));
    let hana = homes[0].client(&world, "hana");
    let hugo = homes[1].client(&world, "hugo");
    run_in(&uma.ns, "iptables -A OUTPUT -o eth0 -p udp -j DROP");
    let all = [&ada, &bob, &finn, &hana, &hugo];
    for client in all {
        client.ns.sysctl("ipv6/conf/default/disable_ipv6", "1").expect("a setting");
        client.start(&["--join", &line]).expect("started");
    }
    for client in all {
        address(client);
    }
    until("all to know each other", || {
        let status = ada.client_status().expect("a status");
        status.peers.iter().filter(|peer| peer.online).count() == all.len() - 1
    });
    for (from, to) in [(&ada, &bob), (&ada, &finn), (&finn, &ada), (&hana, &hugo)] {
        meet(from, to);
    }
    for peer in ["bob", "finn"] {
        wait_for_direct(&ada, peer);
    }

    // A peer that is killed says no goodbye, and the server does not miss it for a while.
    let mut wrong = Vec::new();
    bob.kill().expect("killed");
    let reply = verdict(&mut wrong, &ada, "bob", "lost");
    assert!(reply["path"].is_null(), "{reply:#}");
    assert_eq!(reply["state"], "lost");

    // A firewall that comes later: counts of better times must not speak for it.
    run_in(&finn.ns, &format!("iptables -A INPUT -i eth0 -p udp ! -s {SERVER} -j DROP"));
    verdict(&mut wrong, &ada, "finn", "inbound-filtered-there");
    verdict(&mut wrong, &finn, "ada", "inbound-filtered-here");

    // By TCP to the server, and UDP passes again.
    join(&uma, &line, &["--listen-port", "40404"]);
    until("uma to know finn", || state_of(&uma, "finn") != "unknown");
    ask(&uma, &["ping", "finn", "-c", "1"]);
    verdict(&mut wrong, &uma, "finn", "udp-blocked-here");
    // All but the client's own port, so that it does not go back to UDP between two looks.
    run_in(&uma.ns, "iptables -I OUTPUT -o eth0 -p udp --sport 40404 -j DROP");
    run_in(&uma.ns, "iptables -D OUTPUT 2");
    verdict(&mut wrong, &uma, "finn", "udp-back-here");

    // By now the killed one's paths are given up.
    until("the status to say so", || state_of(&ada, "bob") == "lost");
    let peer = ada.client_status().expect("a status");
    let peer = peer.peer("bob").expect("a member");
    assert_eq!((&peer.path, peer.rtt_ms), (&None, None), "nothing is claimed of a way that leads nowhere");
    let page = ada.control(&json!({"command": "scorecard", "format": "prom"})).expect("a page");
    assert!(page["text"].as_str().is_some_and(|page| page.contains("eps_peer_up{peer=\"bob\"} 0")), "{page}");
    assert!(ada.log().contains("bob is lost"), "{}", ada.log());

    // The killed peer is there again.
    bob.start(&[]).expect("started");
    address(&bob);
    meet(&bob, &ada);
    wait_for_direct(&ada, "bob");

    // The server dies under a pair that has nothing but its relay.
    world.server.kill().expect("killed");
    verdict(&mut wrong, &hana, "hugo", "server-down-tried");
    verdict(&mut wrong, &ada, "bob", "direct");
    drop(homes.map(|home| home.nat));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What `netcheck` finds out in a namespace: its document and exit code.
fn netcheck(ns: &Netns, words: &[&str]) -> (Value, Option<i32>) {
    let mut command = Command::new(BIN);
    // No client is to be found, whatever runs on this machine.
    command.args(["netcheck", "--json", "--control", "/nonexistent"]).args(words);
    let output = finish_in(ns, &mut command);
    let document = documents(&output).pop().unwrap_or_else(|| panic!("{}", text(&output.stderr)));
    (document, output.status.code())
}

/// Somebody who tells by STUN where it sees others, for as long as the test runs.
fn stun_server(ns: &Netns, place: &str) {
    let socket = ns.run(|| UdpSocket::bind(place)).expect("a port");
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let Some(number) = buffer[..count].get(8..20) else { continue };
            let answer = stun::tell(number.try_into().expect("twelve bytes"), from);
            socket.send_to(&answer, from).expect("sent");
        }
    });
}

fn has_advice(document: &Value, words: &str) -> bool {
    let lines = document["advice"].as_array().expect("a list");
    lines.iter().any(|line| line.as_str().is_some_and(|line| line.contains(words)))
}

#[test]
fn netcheck_tells_the_kinds_of_nats_and_what_is_blocked_before_anything_is_joined() {
    if !can_make_networks() || !has_program("iptables") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    world.start_server(&[]);
    let (public, blocked) = (world.host(), world.host());
    let mut homes = [false, true].map(|hard| Home::new(&mut world, hard));
    let [easy, hard] = [0, 1].map(|home| homes[home].host());
    let ask = |ns: &Netns, more: &[&str]| netcheck(ns, &[&["--server", SERVER], more].concat());

    let (document, code) = ask(&public, &[]);
    println!("public: {document:#}");
    let four = &document["ipv4"];
    assert_eq!((code, &four["mapping"], &four["filtering"]), (Some(0), &json!("none"), &json!("not-by-port")));
    assert_eq!(four["packet_bytes"], 1500, "{document}");
    assert!(four["observed"].as_str().is_some_and(|own| own.starts_with("198.51.100.2:")), "{document}");
    assert!(document["clock_ahead_seconds"].as_f64().is_some_and(|ahead| ahead.abs() < 5.0), "{document}");
    assert!(document["servers"][0]["tcp_ms"].as_f64().is_some(), "{document}");

    // The NAT's own time-out is cut down, so that it can be seen in a moment.
    homes[0].nat.sysctl("netfilter/nf_conntrack_udp_timeout", "2").expect("a setting");
    let (document, code) = ask(&easy, &["--long=6s"]);
    println!("easy: {:#}", document["ipv4"]);
    let four = &document["ipv4"];
    assert_eq!((code, &four["mapping"]), (Some(0), &json!("endpoint-independent")), "{document:#}");
    assert_eq!((&four["filtering"], &four["hairpin"]), (&json!("address-and-port"), &json!(false)), "{document:#}");
    let [lived, gone] = ["lifetime_at_least_seconds", "lifetime_below_seconds"].map(|name| four[name].as_f64());
    println!("a mapping that ends after 2 s: lives {lived:?} s, gone after {gone:?} s");
    assert!(lived.is_some_and(|lived| (0.5..=2.5).contains(&lived)), "{document:#}");
    assert!(gone.is_some_and(|gone| (1.5..=4.0).contains(&gone)), "{document:#}");
    assert!(has_advice(&document, "mapping without traffic ends"), "{document:#}");

    let (document, code) = ask(&hard, &[]);
    println!("hard: {:#}", document["ipv4"]);
    assert_eq!((code, &document["ipv4"]["mapping"]), (Some(0), &json!("endpoint-dependent")), "{document:#}");
    assert!(has_advice(&document, "Switch on PCP"), "{document:#}");

    // Public servers tell as much, where there are two.
    for place in ["198.51.100.1:3478", "198.51.100.1:3479"] {
        stun_server(&world.server.ns, place);
    }
    let stun = ["--stun", SERVER, "--stun", "198.51.100.1:3479"];
    for (ns, expected) in [(&easy, "endpoint-independent"), (&hard, "endpoint-dependent")] {
        let (document, code) = netcheck(ns, &stun);
        assert_eq!((code, &document["ipv4"]["mapping"]), (Some(0), &json!(expected)), "{document:#}");
    }

    run_in(&blocked, "iptables -A OUTPUT -o eth0 -p udp -j DROP");
    let (document, code) = ask(&blocked, &[]);
    assert_eq!((code, &document["ipv4"]["udp"]), (Some(1), &json!(false)), "{document:#}");
    assert!(has_advice(&document, "UDP is not answered and TCP is"), "{document:#}");

    // For eyes, without any right, and with nobody to ask.
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", BIN, "netcheck", "--server", SERVER]);
    if has_program("setpriv") {
        let output = finish_in(&hard, &mut command);
        println!("{}", text(&output.stdout));
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("NAT: another outside port for each destination"));
    }
    let (document, code) = netcheck(&public, &[]);
    assert!(code == Some(0) && has_advice(&document, "no server was asked"), "{document:#}");
}
