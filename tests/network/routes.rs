//! Subnets behind members, and a member as the way to the Internet: what passes, what does not, and that everything is put
//! back.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use eps_actor::cli::demo::scene::Node;
use eps_actor::config::Role;
use eps_actor::io::netns::{Netns, can_make_networks, ping_once};
use eps_actor::io::nft::masquerade;

use crate::lab::{
    Capture, Home, SERVER, SOON, World, address, beside, finish_in, has_program, join, node, ping, program, run_in,
};
use crate::lab::{text, udp_payload, until};

/// Long enough for an answer, and short enough to wait for none.
const MOMENT: Duration = Duration::from_millis(400);

/// A client `gate` with a LAN behind it, in which a host knows nothing of any network of ours.
struct Gate {
    node: Node,
    host: Netns,
}

fn gate(world: &mut World) -> Gate {
    let node = world.client("gate");
    let host = Netns::new().expect("a namespace");
    Netns::connect((&node.ns, "lan", "10.1.0.1/16"), (&host, "eth0", "10.1.0.5/16")).expect("a cable");
    Gate { node, host }
}

#[test]
fn a_published_subnet_is_reached_by_those_who_accept_routes_and_by_nobody_else() {
    if !can_make_networks() || !has_program("ip") || !has_program("nft") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let Gate { node: gate, host } = gate(&mut world);
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    // Two that gate would publish as well: ada has the one, nobody has allowed the other.
    run_in(&ada.ns, "ip link add own type bridge");
    run_in(&ada.ns, "ip link set own up");
    run_in(&ada.ns, "ip address add 10.2.7.1/24 dev own");
    run_in(&gate.ns, "ip link add more type bridge");
    run_in(&gate.ns, "ip link set more up");
    run_in(&gate.ns, "ip address add 10.2.0.1/16 dev more");
    run_in(&gate.ns, "ip address add 10.3.0.1/16 dev more");
    let before = [&gate, &ada, &bob].map(|node| machine(&node.ns));

    let line = world.start_server(&["--allow-routes", "gate=10.1.0.0/16,gate=10.2.0.0/16"]);
    join(&gate, &line, &["--route", "10.1.0.0/16", "--route", "10.2.0.0/16,10.3.0.0/16"]);
    join(&ada, &line, &["--accept-routes"]);
    join(&bob, &line, &[]);
    ping(&ada, &gate, address(&gate));
    until("ada to reach the host in gate's LAN", || answers(&ada, "10.1.0.5"));
    assert!(answers(&ada, "10.1.0.1"), "gate by its address in its LAN");
    assert!(!answers(&bob, "10.1.0.5"), "who does not accept routes has none");

    // Everybody sees what there is; ada's own network is left alone, with advice.
    let status = ada.client_status().expect("a status");
    assert_eq!(status.peer("gate").expect("gate").routes, ["10.1.0.0/16", "10.2.0.0/16"]);
    let accepted: Vec<_> = status.routing.accepted.iter().map(|route| route.subnet.as_str()).collect();
    assert_eq!(accepted, ["10.1.0.0/16"]);
    let refused = &status.routing.refused[0];
    assert!(refused.subnet == "10.2.0.0/16" && refused.reason.contains("has already at own"), "{refused:?}");
    assert!(ada.log().contains("10.2.0.0/16 is not taken up: gate publishes it, and it overlaps 10.2.7.0/24"));
    assert!(answers(&ada, "10.2.7.1"), "L-06: no route broken");
    let status = gate.client_status().expect("a status");
    assert_eq!(status.routing.published, ["10.1.0.0/16", "10.2.0.0/16"]);
    assert_eq!(status.routing.not_allowed, ["10.3.0.0/16"]);
    let log = world.server.log();
    assert!(
        log.contains("gate would publish 10.3.0.0/16, and may not: the server's allow_routes does not name it"),
        "{log}"
    );
    for (node, role) in [(&bob, "client"), (&world.server, "server")] {
        let socket = node.control_path().display().to_string();
        let members = text(&program(&["members", "--control", &socket, "--role", role]).stdout);
        assert!(members.contains("10.1.0.0/16, 10.2.0.0/16"), "{members}");
    }
    // What is not published does not pass, though bob sends it.
    run_in(&bob.ns, &format!("ip route add 10.3.0.0/16 via {}", address(&gate)));
    run_in(&bob.ns, &format!("ip route add 10.1.0.5 via {}", address(&gate)));
    assert!(answers(&bob, "10.1.0.5"));
    let beyond = Netns::new().expect("a namespace");
    Netns::connect((&gate.ns, "far", "10.4.0.1/24"), (&beyond, "eth0", "10.4.0.5/24")).expect("a cable");
    run_in(&beyond, "ip route add default via 10.4.0.1");
    run_in(&bob.ns, &format!("ip route add 10.4.0.0/24 via {}", address(&gate)));
    gate.ns.sysctl("ipv4/conf/far/forwarding", "1").expect("a setting");
    assert!(!answers(&bob, "10.4.0.5"), "only what is published passes");
    drop(beyond);

    for node in [&bob, &ada, &gate] {
        node.stop().expect("stopped");
    }
    for (node, before) in [&gate, &ada, &bob].iter().zip(&before) {
        same(node, before);
    }
    assert!(ping_once(&gate.ns, None, "10.1.0.5".parse().expect("an address"), SOON).is_some(), "the LAN is as it was");
    drop(host);
}

#[test]
fn a_subnet_comes_and_goes_with_the_servers_word_and_outlives_the_server() {
    if !can_make_networks() || !has_program("ip") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let Gate { node: gate, host } = gate(&mut world);
    let ada = world.client("ada");
    let file = world.directory.path().join("server.ron");
    let write = |allowed: &str| std::fs::write(&file, format!("(allow_routes: [{allowed}])")).expect("written");
    write("");
    let path = file.display().to_string();
    let line = world.start_server(&["--config", &path]);
    join(&gate, &line, &["--route=10.1.0.0/16", "--masquerade=false"]);
    join(&ada, &line, &["--accept-routes"]);
    until("the offer to be heard", || world.server.log().contains("may not: the server's allow_routes"));
    assert!(!answers(&ada, "10.1.0.1"));

    write("\"gate=10.0.0.0/8\"");
    world.server.hang_up().expect("signalled");
    until("ada to reach gate's LAN", || answers(&ada, "10.1.0.1"));
    assert!(world.server.log().contains("taken from the configuration: allow_routes"), "{}", world.server.log());
    // Without masquerading a host needs a route back, and is seen as it is.
    assert!(!answers(&ada, "10.1.0.5"));
    run_in(&host, "ip route add default via 10.1.0.1");
    until("ada to reach the host", || answers(&ada, "10.1.0.5"));
    assert!(ping_once(&host, None, address(&ada), SOON).is_some(), "and the other way");

    write("");
    world.server.hang_up().expect("signalled");
    until("the route to go", || !answers(&ada, "10.1.0.1"));
    until("gate to forward no more", || forwarding(&gate.ns, "lan") == "0");
    write("\"gate=10.1.0.0/16\"");
    world.server.hang_up().expect("signalled");
    until("the route to be back", || answers(&ada, "10.1.0.5"));

    world.server.kill().expect("killed");
    assert!(answers(&ada, "10.1.0.5"), "without the server");
    ada.stop().expect("stopped");
    ada.start(&["--accept-routes"]).expect("started");
    until("the route to be back after a start without the server", || answers(&ada, "10.1.0.5"));
    world.server.start(&["--advertise", SERVER, "--config", &path]).expect("started");
    until("gate to be back", || {
        let leases = world.server.server_status().map(|status| status.leases).unwrap_or_default();
        leases.iter().any(|lease| lease.name == "gate" && lease.routes == ["10.1.0.0/16"])
    });
    assert!(answers(&ada, "10.1.0.5"));
}

#[test]
fn n_15_the_internet_is_reached_through_the_exit_and_the_underlay_keeps_out_of_it() {
    if !can_make_networks() || !has_program("ip") || !has_program("nft") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    // ada is at home behind a NAT, by which it reaches server and gate and everything else.
    let (ada, _home) = at_home(&mut world, "ada");
    let gate = world.client("gate");
    // A host that only gate's provider leads to, and one that both reach.
    let far = Netns::new().expect("a namespace");
    Netns::connect((&gate.ns, "eth1", "203.0.113.1/24"), (&far, "eth0", "203.0.113.5/24")).expect("a cable");
    run_in(&far, "ip address add 192.0.2.99/32 dev lo");
    run_in(&gate.ns, "ip route add default via 203.0.113.5");
    let witness = world.host();
    // The strictest machine there is: what comes in must be able to go back out the same way.
    for setting in ["ipv4/conf/all/rp_filter", "ipv4/conf/eth0/rp_filter"] {
        ada.ns.sysctl(setting, "1").expect("a setting");
    }
    run_in(&ada.ns, "ip -6 address add 2001:db8::2/64 dev eth0 nodad");
    run_in(&ada.ns, "ip -6 route add default via 2001:db8::1 dev eth0");
    let before = [&gate, &ada].map(|node| machine(&node.ns));

    let line = world.start_server(&["--allow-routes", "gate=exit"]);
    join(&gate, &line, &["--exit-node"]);
    join(&ada, &line, &["--exit", "gate"]);
    until("ada to reach the world beyond gate", || answers(&ada, "192.0.2.99"));
    let capture = Capture::start(&[(&ada.ns, "eps0")]);
    let seen = Capture::start(&[(&witness, "eth0")]);
    let pings = (0..50).filter(|_| answers(&ada, "192.0.2.99")).count();
    assert!(answers(&ada, "198.51.100.4"), "the witness");
    assert_eq!(pings, 50);
    let frames = capture.frames();
    let ours = underlay_ports(&[&ada, &gate]);
    let underlay = frames.iter().filter(|frame| {
        udp_payload(&frame.frame).is_some_and(|(from, to, _)| ours.contains(&from) || ours.contains(&to))
    });
    let underlay = underlay.count();
    println!("N-15: {} frames in the TAP for {pings} pings by the exit, {underlay} of them underlay", frames.len());
    assert!(frames.len() >= 100, "{}", frames.len());
    assert_eq!(underlay, 0, "N-15");
    let sources: Vec<_> = seen.frames().iter().filter_map(|frame| echo_source(&frame.frame)).collect();
    assert!(!sources.is_empty() && sources.iter().all(|from| *from == Ipv4Addr::new(198, 51, 100, 3)), "{sources:?}");
    // Nothing leaks by the other family, and what the LAN has stays in the LAN.
    let out6 = finish_in(&ada.ns, Command::new("ip").args(["-6", "route", "get", "2001:db8:ffff::1"]));
    assert!(!out6.status.success(), "{}", text(&out6.stdout));
    assert!(answers(&ada, "192.168.7.1"), "the neighbour");
    let status = ada.client_status().expect("a status").routing.exit.expect("an exit");
    assert_eq!((status.peer.as_str(), status.state.as_str()), ("gate", "up"));

    // Killed, it leaves rules behind, and the way stays closed; the next start puts all back, whatever its options.
    ada.kill().expect("killed");
    gate.kill().expect("killed");
    assert!(machine(&ada.ns).contains("fwmark"), "{}", machine(&ada.ns));
    assert!(machine(&gate.ns).contains("eps-actor-eps0"), "{}", machine(&gate.ns));
    ada.start(&[]).expect("started");
    gate.start(&[]).expect("started");
    for (node, before) in [&gate, &ada].iter().zip(&before) {
        let own =
            |text: &str| text.lines().filter(|line| !line.contains("eps0")).map(str::to_owned).collect::<Vec<_>>();
        until("all to be put back", || own(&machine(&node.ns)) == own(before));
        node.stop().expect("stopped");
        same(node, before);
    }

    // The same at an ordinary end, after a restart of the program with the same options.
    gate.start(&["--exit-node"]).expect("started");
    for _ in 0..2 {
        ada.start(&["--exit", "gate"]).expect("started");
        until("the world beyond gate", || answers(&ada, "192.0.2.99"));
        ada.stop().expect("stopped");
        same(&ada, &before[1]);
    }
    // An exit that is taken back leaves the way closed, not open.
    ada.start(&["--exit", "gate"]).expect("started");
    until("the world beyond gate", || answers(&ada, "192.0.2.99"));
    gate.stop().expect("stopped");
    gate.start(&[]).expect("started");
    until("the way to be closed", || {
        let exit = ada.client_status().ok().and_then(|status| status.routing.exit);
        exit.is_some_and(|exit| exit.state == "closed")
    });
    assert!(!answers(&ada, "198.51.100.4"), "what was meant for the exit does not leak");
    ada.stop().expect("stopped");
    gate.stop().expect("stopped");
    same(&ada, &before[1]);
    same(&gate, &before[0]);
    assert!(answers(&ada, "198.51.100.4"), "as without us");
}

#[test]
fn a_panic_of_the_routes_costs_no_route_and_what_it_changed_is_put_back_all_the_same() {
    if !can_make_networks() || !has_program("ip") || !has_program("nft") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let Gate { node: gate, host: _host } = gate(&mut world);
    let ada = world.client("ada");
    let before = [&gate, &ada].map(|node| machine(&node.ns));
    let line = world.start_server(&["--allow-routes", "gate=10.1.0.0/16"]);
    join(&gate, &line, &["--route", "10.1.0.0/16"]);
    join(&ada, &line, &["--accept-routes"]);
    until("ada to reach the host", || answers(&ada, "10.1.0.5"));
    for node in [&ada, &gate] {
        let question = serde_json::json!({"command": "inject_panic", "actor": "routes"});
        node.control(&question).expect("injected");
        until("the restart", || node.log().contains("routes panicked"));
    }
    assert!(answers(&ada, "10.1.0.5"));
    // The device is deleted under it: the routes come back with it.
    run_in(&ada.ns, "ip link delete eps0");
    until("the device and its routes to be back", || answers(&ada, "10.1.0.5"));
    for (node, before) in [&gate, &ada].iter().zip(&before) {
        node.stop().expect("stopped");
        same(node, before);
    }
}

#[test]
fn the_networks_own_route_is_set_and_removed() {
    if !can_make_networks() || !has_program("ip") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let ada = world.client("ada");
    let before = machine(&ada.ns);
    let line = world.start_server(&[]);
    let own = join(&ada, &line, &[]);
    let routes = text(&finish_in(&ada.ns, Command::new("ip").arg("route")).stdout);
    let route = format!("192.168.43.0/24 dev eps0 proto kernel scope link src {own}");
    assert!(routes.contains(&route), "{routes}");
    ada.stop().expect("stopped");
    same(&ada, &before);
}

#[test]
fn routes_that_make_no_sense_are_refused_with_advice() {
    for (role, options, part) in [
        ("client", &["--route", "10.1.0.7/16"][..], "is an address inside a subnet; write 10.1.0.0/16"),
        ("client", &["--route", "0.0.0.0/0"], "use --exit-node here and NAME=exit at the server"),
        ("client", &["--route", "fd00:1::/64"], "only IPv4 subnets can be published"),
        ("client", &["--route", "10.1.0.0/16,10.1.2.0/24"], "overlaps 10.1.0.0/16; keep the wider of the two"),
        ("client", &["--exit", "a b"], "is not a name"),
        ("client", &["--exit", "gate", "--exit-node"], "give exit or exit_node, not both"),
        ("client", &["--masquerade=7"], "is neither true nor false"),
        ("server", &["--allow-routes", "10.1.0.0/16"], "write NAME=SUBNET or NAME=exit"),
    ] {
        let said = program(&[&[role, "--config", "none"], options].concat());
        let told = text(&said.stderr);
        assert_eq!(said.status.code(), Some(2), "{options:?}: {told}");
        assert!(told.contains(part), "{options:?}: {told}");
    }
}

fn answers(from: &Node, to: &str) -> bool {
    from.ping(to.parse().expect("an address"), MOMENT).is_some()
}

fn forwarding(ns: &Netns, name: &str) -> String {
    ns.run(|| std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/forwarding")))
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// Rules, routes, settings and firewall of a machine, as its operator would see them.
fn machine(ns: &Netns) -> String {
    // Of all tables and both families. Link-local addresses come of themselves, a second after their interface.
    let script = "ip rule; ip -6 rule; ip route show table all | grep -v '^local fe80::'; \
                  cd /proc/sys/net; grep -r . ipv4/conf/*/forwarding ipv4/conf/*/rp_filter ipv4/ip_forward \
                  ipv4/conf/all/src_valid_mark ipv6/conf/all/forwarding; nft list ruleset";
    text(&finish_in(ns, Command::new("sh").args(["-c", script])).stdout)
}

/// Waits until a machine is as it was; the kernel takes a moment with the last of a device.
fn same(node: &Node, before: &str) {
    let waited = eps_actor::cli::demo::scene::wait_until(SOON, "the machine to be as before", || {
        Ok((machine(&node.ns) == before).then_some(()))
    });
    if waited.is_err() {
        assert_eq!(machine(&node.ns), before, "{}", node.log());
    }
}

/// A client behind a NAT of its own, on the switch of the world.
fn at_home(world: &mut World, name: &str) -> (Node, Home) {
    let home = world.home();
    home.router.run(|| masquerade("eth0")).expect("a NAT");
    (node(name, Role::Client, home.inside.clone(), &world.directory), home)
}

/// The ports of the server, and of these clients' sockets.
fn underlay_ports(clients: &[&Node]) -> Vec<u16> {
    let of = |client: &&Node| std::fs::read_to_string(client.state_path().join("port")).expect("a port");
    let ports = clients.iter().map(|client| of(client).trim().parse().expect("a number"));
    ports.chain([43439]).collect()
}

/// Where an ICMP echo request over IPv4 comes from.
fn echo_source(frame: &[u8]) -> Option<Ipv4Addr> {
    let is_echo = frame.get(12..14)? == [8, 0] && *frame.get(23)? == 1 && *frame.get(34)? == 8;
    let source: [u8; 4] = frame.get(26..30)?.try_into().ok()?;
    is_echo.then_some(source.into())
}
