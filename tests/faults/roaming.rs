//! Clients whose networks change under them: addresses, cables, default routes, routers that forget, sleep.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::{Directory, Node, Reached, Scene, wait_until};
use eps_actor::config::Role;
use eps_actor::io::netns::{Lan, Netns, can_make_networks};
use eps_actor::io::nft::masquerade;
use serde_json::json;

use crate::load::{Flow, Load};
use crate::stage::{PROGRAM, SOON, Stage, certificate, length, ms, session_age, shared, status, until};
use crate::wall::{at_server, has_program, pid, resident_kib, run_in};

#[test]
fn f_11_a_client_whose_address_changed_is_reached_again_within_a_second() {
    if !can_make_networks() || !has_program("ip") {
        return;
    }
    let _turn = shared();
    let stage = Stage::new().expect("a stage");
    let (ada, bob, cleo) = (&stage.scene.ada, &stage.scene.bob, &stage.scene.cleo);
    // In one LAN, and through two NATs. The mover, its peer, and the addresses before and after.
    for (mover, own, peer, theirs, [before, after]) in [
        (ada, stage.ada, bob, stage.bob, ["192.168.1.2", "192.168.1.77"]),
        (cleo, stage.cleo, bob, stage.bob, ["192.168.2.2", "192.168.2.77"]),
    ] {
        let (age, process) = (session_age(mover, &peer.name), pid(mover));
        let bound = at_server(&stage.scene.server, &mover.name);
        let flows = [Load::start((mover, own), (peer, theirs)), Load::start((peer, theirs), (mover, own))];
        thread::sleep(Duration::from_secs(1));
        let begun = Instant::now();
        let gateway = after.replace(".77", ".1");
        run_in(&mover.ns, &format!("ip address del {before}/24 dev eth0"));
        run_in(&mover.ns, &format!("ip address add {after}/24 dev eth0"));
        run_in(&mover.ns, &format!("ip route replace default via {gateway} src {after}"));
        let rebound = || (at_server(&stage.scene.server, &mover.name) != bound).then_some(());
        let ((), binding) = until(begun, SOON, "the server to know the new address", rebound);
        thread::sleep(Duration::from_secs(3));
        for flow in flows.map(Load::stop) {
            let gap = flow.longest_gap();
            println!(
                "F-11: {}: {} moved from {before} to {after}: longest gap {}, at the server after {}, {} lost",
                flow.name,
                mover.name,
                ms(gap),
                ms(binding),
                flow.lost().len()
            );
            assert!(gap <= Duration::from_secs(1), "{gap:?}");
            assert!(flow.back_after(begun).is_some());
        }
        assert!(binding <= Duration::from_secs(2), "{binding:?}");
        assert!(matches!(mover.path_to(&peer.name), Ok(Reached::Direct(_))), "{:?}", mover.path_to(&peer.name));
        assert!(session_age(mover, &peer.name) >= age, "the session was kept");
        assert_eq!(pid(mover), process);
    }
}

#[test]
fn f_12_an_interface_that_was_down_for_five_seconds_is_used_again_two_seconds_after() {
    if !can_make_networks() || !has_program("ip") {
        return;
    }
    let _turn = shared();
    let stage = Stage::new().expect("a stage");
    let (ada, cleo) = (&stage.scene.ada, &stage.scene.cleo);
    let load =
        || [Load::start((ada, stage.ada), (cleo, stage.cleo)), Load::start((cleo, stage.cleo), (ada, stage.ada))];
    // The first load of its life costs buffers once.
    let warm_up = load();
    thread::sleep(Duration::from_secs(2));
    warm_up.into_iter().for_each(|flow| _ = flow.stop());
    let before = resident_kib(cleo);
    let rounds = if crate::stage::is_long() { 5 } else { 1 };
    for _ in 0..rounds {
        let flows = load();
        thread::sleep(Duration::from_millis(500));
        cleo.ns.set_link("eth0", false).expect("down");
        thread::sleep(Duration::from_secs(5));
        cleo.ns.set_link("eth0", true).expect("up");
        // As a DHCP client does: the kernel forgets routes by a gateway with the link.
        run_in(&cleo.ns, "ip route replace default via 192.168.2.1");
        let up = Instant::now();
        thread::sleep(Duration::from_secs(3));
        for flow in flows.map(Load::stop) {
            let back = flow.back_after(up).expect("traffic again");
            println!("F-12: {}: frames pass {} after the interface came up", flow.name, ms(back));
            assert!(back <= Duration::from_secs(2), "{back:?}");
        }
    }
    assert!(cleo.ended().is_none());
    let after = resident_kib(cleo);
    println!("F-12: cleo held {before} KiB before and {after} KiB after");
    assert!(after.abs_diff(before) * 20 <= before, "{before} KiB, then {after} KiB");
}

#[test]
fn f_19_a_client_that_slept_is_reached_a_second_after_it_woke() {
    if !can_make_networks() {
        return;
    }
    let _turn = shared();
    let stage = Stage::new().expect("a stage");
    let (ada, cleo) = (&stage.scene.ada, &stage.scene.cleo);
    let lease = certificate(&cleo.state_path());
    let flows = [Load::start((ada, stage.ada), (cleo, stage.cleo)), Load::start((cleo, stage.cleo), (ada, stage.ada))];
    thread::sleep(Duration::from_millis(500));
    let (over, time) = (AtomicBool::new(false), length(12, 60));
    let (flaps, woke) = thread::scope(|scope| {
        let watching = scope.spawn(|| flaps_until(&over, ada, "cleo"));
        run_in(&cleo.ns, &format!("kill -STOP {}", pid(cleo)));
        thread::sleep(time);
        run_in(&cleo.ns, &format!("kill -CONT {}", pid(cleo)));
        let woke = Instant::now();
        thread::sleep(Duration::from_secs(3));
        over.store(true, Relaxed);
        (watching.join().expect("watched"), woke)
    });
    for flow in flows.map(Load::stop) {
        let back = flow.back_after(woke).expect("traffic again");
        println!("F-19: {}: frames pass {} after cleo woke", flow.name, ms(back));
        assert!(back <= Duration::from_secs(1), "{back:?}");
    }
    for (path, left) in &flaps {
        println!("F-19: ada: {path} was given up {left} times");
    }
    assert!(!flaps.is_empty() && flaps.values().all(|left| *left <= 1), "{flaps:?}");
    assert!(flaps.values().any(|left| *left == 1), "nobody saw that it slept");
    assert_eq!(certificate(&cleo.state_path()), lease);
    stage.mesh().expect("direct again");
}

/// How often each path to a peer went from being of use to not being, until it is over.
fn flaps_until(over: &AtomicBool, node: &Node, peer: &str) -> BTreeMap<String, u32> {
    let (mut usable, mut flaps) = (BTreeMap::new(), BTreeMap::new());
    while !over.load(Relaxed) {
        let reply = node.control(&json!({"command": "paths", "peer": peer})).expect("paths");
        for path in reply["peers"][0]["paths"].as_array().expect("a list") {
            let name =
                format!("{} {}", path["kind"].as_str().expect("a word"), path["address"].as_str().expect("text"));
            let is = matches!(path["state"].as_str(), Some("active" | "standby"));
            if usable.insert(name.clone(), is) == Some(true) && !is {
                *flaps.entry(name).or_insert(0) += 1;
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    flaps
}

#[test]
fn f_16_a_router_that_forgot_its_mappings_costs_two_seconds_under_load() {
    if !can_make_networks() || !has_program("conntrack") {
        return;
    }
    let _turn = shared();
    let stage = Stage::new().expect("a stage");
    let (ada, cleo) = (&stage.scene.ada, &stage.scene.cleo);
    let flows = [Load::start((ada, stage.ada), (cleo, stage.cleo)), Load::start((cleo, stage.cleo), (ada, stage.ada))];
    thread::sleep(Duration::from_secs(1));
    let flushed = Instant::now();
    run_in(&stage.scene.underlay.nat_b, "conntrack -F");
    let direct = || [(ada, "cleo"), (cleo, "ada")].map(|(one, other)| one.path_to(other).expect("a path"));
    let is_direct = || direct().iter().all(|path| matches!(path, Reached::Direct(_)));
    let mut left_at = None;
    while flushed.elapsed() < Duration::from_secs(2) {
        if !is_direct() {
            left_at = Some(flushed.elapsed());
        }
        thread::sleep(Duration::from_millis(10));
    }
    // From here on all is as before.
    let at_two = direct();
    assert!(is_direct(), "{at_two:?} two seconds after the flush");
    while flushed.elapsed() < Duration::from_secs(4) {
        assert!(is_direct(), "{:?} {:?} after the flush", direct(), flushed.elapsed());
        thread::sleep(Duration::from_millis(50));
    }
    for flow in flows.map(Load::stop) {
        let back = flow.back_after(flushed).expect("traffic");
        println!("F-16: under load, {}: longest gap {}, {} lost", flow.name, ms(flow.longest_gap()), flow.lost().len());
        assert!(back <= Duration::from_secs(2) && flow.longest_gap() <= Duration::from_secs(2));
    }
    println!("F-16: after two seconds {at_two:?}; last by the relay {left_at:?} after the flush");
    if !crate::stage::is_long() {
        return;
    }
    // Idle: whoever is asked for after 25 s, is there.
    run_in(&stage.scene.underlay.nat_b, "conntrack -F");
    thread::sleep(Duration::from_secs(25));
    let answer = ada.ping(stage.cleo, Duration::from_secs(1));
    println!("F-16: idle: 25 s after the flush the first ping is answered in {answer:?}, {:?}", ada.path_to("cleo"));
    assert!(answer.is_some());
    assert!(matches!(ada.path_to("cleo"), Ok(Reached::Direct(_))));
}

/// A machine on the internet and one with two cables, each to a router of its own; a server. IPv4 (through NATs) and
/// IPv6 (routed), as wanted.
struct TwoWays {
    _internet: Lan,
    _routers: [Netns; 2],
    _lans: [Lan; 2],
    server: Node,
    fixed: Node,
    mobile: Node,
    _directory: Directory,
}

impl TwoWays {
    fn new(four: bool, six: bool) -> Self {
        let (directory, mut internet) = (Directory::new().expect("a directory"), Lan::new().expect("a switch"));
        let ns = || Netns::new().expect("a namespace");
        let (server, fixed, mobile) = (ns(), ns(), ns());
        let mut plug = |ns: &Netns, ifname: &str, host: u8| {
            internet.plug(ns, ifname, "").expect("a cable");
            if four {
                run_in(ns, &format!("ip address add 198.51.100.{host}/24 dev {ifname}"));
            }
            if six {
                run_in(ns, &format!("ip address add 2001:db8:1::{host}/64 dev {ifname} nodad"));
            }
        };
        plug(&server, "eth0", 1);
        plug(&fixed, "eth0", 2);
        let mut lans = Vec::new();
        let routers = [1, 2].map(|n: u8| {
            let router = ns();
            plug(&router, "wan", 10 + n);
            let mut lan = Lan::new().expect("a switch");
            lan.plug(&router, "lan", "").expect("a cable");
            lan.plug(&mobile, &format!("eth{}", n - 1), "").expect("a cable");
            if four {
                router.sysctl("ipv4/ip_forward", "1").expect("a setting");
                router.run(|| masquerade("wan")).expect("a NAT");
                run_in(&router, &format!("ip address add 192.168.{n}.1/24 dev lan"));
                run_in(&mobile, &format!("ip address add 192.168.{n}.2/24 dev eth{}", n - 1));
            }
            if six {
                router.sysctl("ipv6/conf/all/forwarding", "1").expect("a setting");
                run_in(&router, &format!("ip address add 2001:db8:a{n}::1/64 dev lan nodad"));
                run_in(&mobile, &format!("ip address add 2001:db8:a{n}::2/64 dev eth{} nodad", n - 1));
                for ns in [&server, &fixed] {
                    run_in(ns, &format!("ip -6 route add 2001:db8:a{n}::/64 via 2001:db8:1::{}", 10 + n));
                }
            }
            lans.push(lan);
            router
        });
        let node = |name: &str, role, ns: Netns| {
            Node::new(Path::new(PROGRAM), name, role, Arc::new(ns), directory.path()).expect("a node")
        };
        let ways = Self {
            server: node("server", Role::Server, server),
            fixed: node("fixed", Role::Client, fixed),
            mobile: node("mobile", Role::Client, mobile),
            _internet: internet,
            _routers: routers,
            _lans: lans.try_into().unwrap_or_else(|_| unreachable!("two routers")),
            _directory: directory,
        };
        ways.leave_by(0, four, six);
        ways
    }

    /// Moves the default route of the mobile one.
    fn leave_by(&self, cable: u8, four: bool, six: bool) {
        let (n, ns) = (cable + 1, &self.mobile.ns);
        if four {
            run_in(ns, &format!("ip route replace default via 192.168.{n}.1 dev eth{cable}"));
        }
        if six {
            run_in(ns, "ip -6 route flush exact ::/0");
            run_in(ns, &format!("ip -6 route add default via 2001:db8:a{n}::1 dev eth{cable}"));
        }
    }

    fn start(&self, four: bool, six: bool) -> [IpAddr; 2] {
        let places: Vec<&str> = [(four, "198.51.100.1"), (six, "[2001:db8:1::1]")]
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, at)| at)
            .collect();
        self.server.start(&["--advertise", &places.join(",")]).expect("started");
        let question = json!({"command": "invite", "reusable": true, "expires": null});
        let reply = wait_until(SOON, "an invitation", || self.server.poll(&question)).expect("an invitation");
        let line = reply["join"].as_str().expect("a line");
        [&self.fixed, &self.mobile].map(|node| {
            node.start(&["--join", line]).expect("started");
            node.wait_for_address(SOON).unwrap_or_else(|error| panic!("{error:#}\n{}", node.log()))
        })
    }
}

#[test]
fn f_13_a_default_route_that_moves_to_another_interface_is_followed_in_five_seconds() {
    if !can_make_networks() || !has_program("ip") {
        return;
    }
    let _turn = shared();
    for (name, four, six) in [("IPv4", true, false), ("IPv6", false, true), ("both", true, true)] {
        let ways = TwoWays::new(four, six);
        let [fixed, mobile] = ways.start(four, six);
        let ends = [(&ways.fixed, fixed), (&ways.mobile, mobile)];
        until(Instant::now(), SOON, "a direct path", || {
            let answered = ways.mobile.ping(fixed, Duration::from_secs(1)).is_some();
            (answered && matches!(ways.mobile.path_to("fixed"), Ok(Reached::Direct(_)))).then_some(())
        });
        if six && four || crate::stage::is_long() {
            the_old_link_stays(&ways, name, (four, six), ends);
        }
        for cable in [1, 0] {
            let flows = [Load::start(ends[0], ends[1]), Load::start(ends[1], ends[0])];
            thread::sleep(Duration::from_millis(500));
            let moved = Instant::now();
            ways.leave_by(cable, four, six);
            // What is still under way by the other router would hide how long the new way takes.
            run_in(&ways.mobile.ns, &format!("ip link set eth{} down", 1 - cable));
            let attached = || {
                let status = status(&ways.mobile)?;
                let heard = status["server"]["last_contact_seconds"].as_f64()?;
                (status["server"]["connected"] == true && heard < moved.elapsed().as_secs_f64()).then_some(())
            };
            let ((), server) = until(moved, SOON, "the server", attached);
            thread::sleep(Duration::from_secs(3));
            for flow in flows.map(Load::stop) {
                report_13(name, cable, &flow, server);
            }
            let direct = || matches!(ways.mobile.path_to("fixed"), Ok(Reached::Direct(_))).then_some(());
            until(moved, SOON, "a direct path", direct);
            run_in(&ways.mobile.ns, &format!("ip link set eth{} up", 1 - cable));
            restore(&ways.mobile.ns, 1 - cable, six);
        }
    }
}

/// Only the route moves, there and back, and the old link stays as it was.
fn the_old_link_stays(ways: &TwoWays, name: &str, (four, six): (bool, bool), ends: [(&Node, IpAddr); 2]) {
    for cable in [1, 0] {
        let flows = [Load::start(ends[0], ends[1]), Load::start(ends[1], ends[0])];
        thread::sleep(Duration::from_millis(500));
        let moved = Instant::now();
        ways.leave_by(cable, four, six);
        // A thousand packets a second go by the new one, and hardly any by the old.
        let left_by = |cable: u8| {
            let before = sent_by(&ways.mobile.ns, cable);
            thread::sleep(Duration::from_millis(100));
            sent_by(&ways.mobile.ns, cable) - before
        };
        let new = || (left_by(cable) > 50 && left_by(1 - cable) < 20).then_some(());
        let ((), took) = until(moved, SOON, "the flow to leave by the new interface", new);
        let attached = || {
            let status = status(&ways.mobile)?;
            let heard = status["server"]["last_contact_seconds"].as_f64()?;
            (status["server"]["connected"] == true && heard < moved.elapsed().as_secs_f64()).then_some(())
        };
        let ((), server) = until(moved, SOON, "the server", attached);
        thread::sleep(Duration::from_secs(1));
        println!("F-13: {name}, the old link stays: everything leaves by eth{cable} {} later", ms(took));
        assert!(took <= Duration::from_secs(5), "{took:?}");
        for flow in flows.map(Load::stop) {
            report_13(name, cable, &flow, server);
        }
    }
}

/// How many frames left by a cable.
fn sent_by(ns: &Netns, cable: u8) -> u64 {
    let table = ns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).expect("a table");
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("eth{cable}:"))).expect("the interface");
    line.split_whitespace().nth(9).expect("a column").parse().expect("a number")
}

/// IPv6 addresses go with a link that goes down.
fn restore(ns: &Netns, cable: u8, six: bool) {
    if six {
        run_in(ns, &format!("ip address replace 2001:db8:a{}::2/64 dev eth{cable} nodad", cable + 1));
    }
}

fn report_13(name: &str, cable: u8, flow: &Flow, server: Duration) {
    let gap = flow.longest_gap();
    println!(
        "F-13: {name}, default route to eth{cable}: {}: longest gap {}, server heard after {}",
        flow.name,
        ms(gap),
        ms(server)
    );
    assert!(gap <= Duration::from_secs(5) && server <= Duration::from_secs(5), "{gap:?} {server:?}");
    assert!(flow.duplicates() == 0);
}

#[test]
fn f_22_halves_of_a_network_go_on_by_themselves_and_are_one_again_in_five_seconds() {
    if !can_make_networks() || !has_program("ip") {
        return;
    }
    let _turn = shared();
    let directory = Directory::new().expect("a directory");
    let ns = || Netns::new().expect("a namespace");
    let (mut here, mut there) = (Lan::new().expect("a switch"), Lan::new().expect("a switch"));
    // A router between the halves, so that there is one place to cut.
    let router = ns();
    here.plug(&router, "here", "10.1.0.1/24").expect("a cable");
    there.plug(&router, "there", "10.2.0.1/24").expect("a cable");
    router.sysctl("ipv4/ip_forward", "1").expect("a setting");
    let mut machine = |number: u8, name: &str, role| {
        let (lan, net) = if number < 4 { (&mut here, 1) } else { (&mut there, 2) };
        let ns = ns();
        lan.plug(&ns, "eth0", &format!("10.{net}.0.{}/24", 10 + number)).expect("a cable");
        ns.add_default_route(Ipv4Addr::new(10, net, 0, 1)).expect("a route");
        Node::new(Path::new(PROGRAM), name, role, Arc::new(ns), directory.path()).expect("a node")
    };
    let server = machine(0, "server", Role::Server);
    let clients: Vec<Node> = (1..=6).map(|number| machine(number, &format!("c{number}"), Role::Client)).collect();
    server.start(&["--advertise", "10.1.0.10"]).expect("started");
    let question = json!({"command": "invite", "reusable": true, "expires": null});
    let reply = wait_until(SOON, "an invitation", || server.poll(&question)).expect("an invitation");
    let line = reply["join"].as_str().expect("a line");
    clients.iter().for_each(|client| client.start(&["--join", line]).expect("started"));
    let places: Vec<(&Node, IpAddr)> =
        clients.iter().map(|client| (client, client.wait_for_address(SOON).expect("an address"))).collect();
    let meet = |pairs: &[(usize, usize)], since: Instant| {
        for (one, other) in pairs {
            let (from, to) = (places[*one].0, places[*other]);
            until(since, Duration::from_secs(30), "an answer", || from.ping(to.1, Duration::from_millis(200)));
        }
        since.elapsed()
    };
    let pairs: Vec<(usize, usize)> = (0..6).flat_map(|one| (0..6).map(move |other| (one, other))).collect();
    let (inside, across): (Vec<_>, Vec<_>) =
        pairs.into_iter().filter(|(one, other)| one != other).partition(|(one, other)| (*one < 3) == (*other < 3));
    meet(&[inside.clone(), across.clone()].concat(), Instant::now());
    until(Instant::now(), SOON, "direct paths", || {
        let direct = |(one, other): &(usize, usize)| {
            matches!(places[*one].0.path_to(&places[*other].0.name), Ok(Reached::Direct(_)))
        };
        inside.iter().all(direct).then_some(())
    });

    let flows = [(0, 1), (1, 2), (3, 4), (5, 3)].map(|(one, other)| Load::start(places[one], places[other]));
    thread::sleep(Duration::from_millis(500));
    run_in(&router, "ip link set there down");
    thread::sleep(length(8, 60));
    run_in(&router, "ip link set there up");
    let healed = meet(&across, Instant::now());
    for flow in flows.map(Load::stop) {
        flow.assert_whole();
        println!("F-22: {}: {} sent, 0 lost while the network was in two", flow.name, flow.sent());
    }
    println!("F-22: every pair across answers {} after the halves met again", ms(healed));
    assert!(healed <= Duration::from_secs(5), "{healed:?}");
    for client in &clients {
        let connected = || status(client).filter(|status| status["server"]["connected"] == true);
        until(Instant::now(), SOON, "the server", connected);
    }
}

#[test]
fn f_04_a_server_that_died_while_relaying_relays_again_three_seconds_after_it_listens() {
    if !can_make_networks() {
        return;
    }
    let _turn = shared();
    let scene = Scene::behind_hard_nats(PROGRAM).expect("a scene");
    let join = scene.start_server(&[]).expect("started");
    for node in [&scene.ada, &scene.cleo] {
        node.start(&["--join", &join]).expect("started");
    }
    let [ada, cleo] = [&scene.ada, &scene.cleo].map(|node| (node, node.wait_for_address(SOON).expect("an address")));
    until(Instant::now(), SOON, "an answer", || ada.0.ping(cleo.1, Duration::from_secs(1)));
    for (node, peer) in [(ada.0, "cleo"), (cleo.0, "ada")] {
        let is_hard = || status(node).is_some_and(|status| status["nat"]["kind"] == "hard").then_some(());
        until(Instant::now(), SOON, "the kind of its NAT", is_hard);
        assert!(matches!(node.path_to(peer), Ok(Reached::Relay)), "{}: {:?}", node.name, node.path_to(peer));
    }
    let age = session_age(ada.0, "cleo");
    let flows = [Load::start(ada, cleo), Load::start(cleo, ada)];
    let begun = Instant::now();
    thread::sleep(Duration::from_secs(1));
    scene.server.kill().expect("killed");
    thread::sleep(Duration::from_secs(2));
    let started = Instant::now();
    scene.server.start(&["--advertise", "198.51.100.1"]).expect("started");
    let (_, listens) = until(started, SOON, "the server to listen", || status(&scene.server));
    thread::sleep(Duration::from_secs(4));
    for flow in flows.map(Load::stop) {
        let back = flow.back_after(started).expect("traffic again").saturating_sub(listens);
        println!("F-04: {}: frames relayed {} after the server listened again", flow.name, ms(back));
        assert!(back <= Duration::from_secs(3), "{back:?}");
    }
    assert!(session_age(ada.0, "cleo") >= age + begun.elapsed().as_secs_f64() - 0.5, "no new session with the peer");
}

#[test]
fn f_17_after_minutes_without_a_frame_the_first_one_arrives_though_routers_forget_soon() {
    if !can_make_networks() || !crate::stage::is_long() {
        return;
    }
    let _turn = shared();
    // Side by side, or ten times five minutes for each would take two hours: five networks with each time-out, idle twice.
    let stages: Vec<(u64, Stage)> =
        [30, 15].iter().flat_map(|seconds| (0..5).map(|_| (*seconds, Stage::new().expect("a stage")))).collect();
    for (seconds, stage) in &stages {
        for nat in [&stage.scene.underlay.nat_a, &stage.scene.underlay.nat_b] {
            for key in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
                nat.sysctl(&format!("netfilter/{key}"), &seconds.to_string()).expect("a setting");
            }
        }
    }
    // The time there is to learn that mappings last 15 s only.
    thread::sleep(Duration::from_secs(180));
    for round in 0..2 {
        thread::sleep(Duration::from_secs(300));
        for (number, (seconds, stage)) in stages.iter().enumerate() {
            let (ada, cleo) = (&stage.scene.ada, &stage.scene.cleo);
            let there = (number + round) % 2 == 0;
            let answer = if there { ada.ping(stage.cleo, SOON) } else { cleo.ping(stage.ada, SOON) };
            println!(
                "F-17: mappings of {seconds} s, five minutes idle: first packet {} answered in {answer:?}, {:?}",
                if there { "there" } else { "back" },
                ada.path_to("cleo")
            );
            assert!(answer.is_some(), "{}\n{}", ada.log(), cleo.log());
        }
    }
}
