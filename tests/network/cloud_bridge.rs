//! Members that bridge an ethcloud: what crosses, what does not, and who of several does it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::Node;
use eps_actor::config::Role;
use eps_actor::ids::MacAddr;
use eps_actor::io::netns::{Netns, can_make_networks, ping_once};
use eps_actor::io::packet::PacketSocket;
use serde_json::json;

use crate::cloud::{
    ALL, DEVICE, LAPTOP, address, arrives, count, crosses, frame, heard, malformed, start, status, wait_for_peers,
};
use crate::lab::{BIN, SOON, World, beside, finish_in, has_program, is_long, join, node, packets, run_in, text, until};

const CLOUD: [&str; 4] = ["--cloud", "0.0.0.0:3210", "--cloud-token", "4660"];
/// The end's address in the network of the members.
const END: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 7, 0, 200));

/// ada, who bridges, and bob; beyond ada an end of a cloud. All underlays are on one switch.
struct Three {
    world: World,
    ada: Node,
    bob: Node,
    end: Node,
    line: String,
    ada_ip: IpAddr,
    bob_ip: IpAddr,
}

impl Three {
    fn new(members: &[&str], bob: &[&str]) -> Self {
        Self::behind(members, bob, |_| {})
    }

    /// `prepare` is done to ada's machine before she starts.
    fn behind(members: &[&str], bob_options: &[&str], prepare: impl FnOnce(&Netns)) -> Self {
        let mut world = World::new();
        let members: Vec<&str> = members.iter().flat_map(|member| ["--members", *member]).collect();
        let line = world.start_server(&[&["--sequential", "--network", "10.7.0.0/24"], &members[..]].concat());
        let (ada, bob) = (world.client("ada"), world.client("bob"));
        prepare(&ada.ns);
        let ada_ip = join(&ada, &line, &CLOUD);
        let bob_ip = join(&bob, &line, bob_options);
        let end = node("end", Role::Client, world.host(), &world.directory);
        start(&end, &["-c", "198.51.100.2:3210"]);
        address(&end, 200);
        Self { world, ada, bob, end, line, ada_ip, bob_ip }
    }

    /// Raw sockets on the devices: ada's, bob's and the end's.
    fn devices(&self) -> [PacketSocket; 3] {
        [(&self.ada, "eps0"), (&self.bob, "eps0"), (&self.end, DEVICE)].map(|(node, name)| packets(&node.ns, name))
    }
}

fn port_state(member: &Node) -> String {
    status(member)["cloud"]["state"].as_str().expect("a word").to_owned()
}

fn wait_for_port(member: &Node, state: &str) {
    until(&format!("{}'s port to be {state}\n{}", member.name, member.log()), || port_state(member) == state);
}

fn mac(member: &Node) -> [u8; 6] {
    let mac: MacAddr = status(member)["node"]["mac"].as_str().expect("a MAC").parse().expect("a MAC");
    mac.0
}

fn answers(from: &Node, to: IpAddr) {
    let what = format!("an answer of {to} to {}\n{}", from.name, from.log());
    until(&what, || ping_once(&from.ns, None, to, Duration::from_secs(1)).is_some());
}

/// A frame of its own kind each time, so that no copy of another is taken for it.
fn shout(dst: [u8; 6], src: [u8; 6]) -> Vec<u8> {
    let number: [u8; 8] = rand::random();
    frame(dst, src, &[&[0x88, 0xb5][..], &number].concat())
}

/// Sends frames of a station again and again until one comes out elsewhere: a station that has moved is where it was
/// for a moment.
fn moves(from: &PacketSocket, src: [u8; 6], to: &PacketSocket) {
    let start = Instant::now();
    while start.elapsed() < SOON {
        let sent = shout(ALL, src);
        from.send(&sent).expect("sent");
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_millis(300) {
            let captured = to.recv(Duration::from_millis(100)).expect("received");
            if captured.is_some_and(|captured| !captured.outgoing && captured.frame == sent) {
                return;
            }
        }
    }
    panic!("nobody hears the station where it is now");
}

/// Sends frames to a station until one comes out at its place, and none at another.
fn is_sent_to(from: &PacketSocket, src: [u8; 6], station: [u8; 6], place: &PacketSocket, other: &PacketSocket) {
    let start = Instant::now();
    while start.elapsed() < SOON {
        if !crosses_to(from, place, &shout(station, src)) {
            continue;
        }
        if !crosses(from, place, other, &shout(station, src)) {
            return;
        }
    }
    panic!("the station's frames do not go to its place alone");
}

fn crosses_to(from: &PacketSocket, to: &PacketSocket, sent: &[u8]) -> bool {
    from.send(sent).expect("sent");
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        let captured = to.recv(Duration::from_millis(100)).expect("received");
        if captured.is_some_and(|captured| !captured.outgoing && captured.frame == sent) {
            return true;
        }
    }
    false
}

#[test]
fn frames_that_come_over_tcp_reach_the_cloud() {
    if !can_make_networks() || !has_program("iptables") {
        return;
    }
    let _turn = beside();
    let three = Three::behind(&["ada,bridge"], &[], |ns| {
        run_in(ns, "iptables -A INPUT -i eth0 -p udp ! --dport 3210 -j DROP");
        run_in(ns, "iptables -A OUTPUT -o eth0 -p udp ! --dport 3210 -j DROP");
    });
    wait_for_port(&three.ada, "open");
    answers(&three.bob, END);
    assert!(count(&three.ada, "relay_rx_frames") > 0, "by the relay, over TCP");
    assert_eq!(count(&three.ada, "direct_rx_frames"), 0);
}

#[test]
fn stations_move_between_the_device_the_network_and_the_cloud_and_tags_cross_as_they_are() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let three = Three::new(&["ada,bridge", "bob,bridge"], &[]);
    let Three { ada, bob, end, .. } = &three;
    wait_for_port(ada, "open");
    let [at_ada, at_bob, at_end] = three.devices();
    // Paths are there.
    answers(bob, END);

    for (name, rest) in [
        ("VLAN 5 with priority 3", &[0x81, 0, 0x60, 5, 0x88, 0xb5, 3][..]),
        ("a priority tag", &[0x81, 0, 0x60, 0, 0x88, 0xb5, 4][..]),
    ] {
        let (there, back) = (frame(ALL, LAPTOP, rest), frame(ALL, mac(bob), rest));
        at_end.send(&there).expect("sent");
        arrives(&at_ada, name, &there);
        arrives(&at_bob, name, &there);
        at_bob.send(&back).expect("sent");
        arrives(&at_ada, name, &back);
        arrives(&at_end, name, &back);
    }
    // For the cloud's own protocols between bridges there is no way, in neither direction.
    let stp = frame([1, 0x80, 0xc2, 0, 0, 0], LAPTOP, &[0, 38, 0x42, 0x42, 3]);
    let before = count(ada, "drop_link_local_group");
    at_end.send(&stp).expect("sent");
    until("it to be refused", || count(ada, "drop_link_local_group") > before);
    at_bob.send(&frame([1, 0x80, 0xc2, 0, 0, 0], mac(bob), &[0, 38, 0x42, 0x42, 3])).expect("sent");
    assert_eq!(heard(&at_ada, &stp) + heard(&at_bob, &stp), 0);

    // In the cloud.
    moves(&at_end, LAPTOP, &at_bob);
    is_sent_to(&at_ada, mac(ada), LAPTOP, &at_end, &at_bob);
    is_sent_to(&at_bob, mac(bob), LAPTOP, &at_end, &at_ada);
    // Behind ada's device: at once, and what the cloud says in its name is not believed.
    let here = shout(ALL, LAPTOP);
    at_ada.send(&here).expect("sent");
    arrives(&at_end, "the laptop behind ada", &here);
    let before = count(ada, "drop_source_spoofed");
    until("a lie of the cloud to be refused", || {
        at_ada.send(&shout(ALL, LAPTOP)).expect("sent");
        at_end.send(&shout(ALL, LAPTOP)).expect("sent");
        count(ada, "drop_source_spoofed") > before
    });
    is_sent_to(&at_bob, mac(bob), LAPTOP, &at_ada, &at_end);
    // Behind bob.
    moves(&at_bob, LAPTOP, &at_end);
    is_sent_to(&at_ada, mac(ada), LAPTOP, &at_bob, &at_end);
    // And back to the cloud, after a moment.
    let begun = Instant::now();
    moves(&at_end, LAPTOP, &at_bob);
    println!("from a member to the cloud in {:.1} s", begun.elapsed().as_secs_f64());
    is_sent_to(&at_ada, mac(ada), LAPTOP, &at_end, &at_bob);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(count(end, "drop_source_spoofed"), 0);
}

#[test]
fn without_the_right_the_cloud_is_for_the_device_alone_and_that_is_told() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let three = Three::new(&["ada"], &[]);
    let Three { ada, bob, end, .. } = &three;
    answers(end, three.ada_ip);
    answers(ada, END);
    let [_, at_bob, at_end] = three.devices();
    let before = count(ada, "drop_no_right");
    let (there, back) = (shout(ALL, LAPTOP), shout(ALL, mac(bob)));
    at_end.send(&there).expect("sent");
    at_bob.send(&back).expect("sent");
    until("both to be counted", || count(ada, "drop_no_right") >= before + 2);
    assert_eq!((heard(&at_bob, &there), heard(&at_end, &back)), (0, 0));
    assert_eq!(port_state(ada), "no right");
    assert!(ada.log().contains("no right to bridge"), "{}", ada.log());
    assert!(ada.log().contains("not encrypted"), "{}", ada.log());
    let control = ada.control_path().display().to_string();
    let said = text(&finish_in(&ada.ns, Command::new(BIN).args(["status", "--control", &control])).stdout);
    assert!(said.contains("--member NAME,bridge") && said.contains("listening on 0.0.0.0:3210"), "{said}");
    let page = crate::cloud::answer(ada, &json!({"command": "scorecard", "format": "all"}));
    assert!(page["prom"].as_str().is_some_and(|page| page.contains("eps_cloud_port_open 0")), "{}", page["prom"]);
    assert!(count(ada, "cloud_rx_frames") > 0 && count(ada, "cloud_tx_frames") > 0, "counted apart");
    let taken = ada.ns.run(|| UdpSocket::bind("0.0.0.0:3210"));
    let free = bob.ns.run(|| UdpSocket::bind("0.0.0.0:3210"));
    assert!(taken.is_err() && free.is_ok(), "only who is asked to listens");

    ada.stop().expect("stopped");
    ada.start(&[&CLOUD[..], &["--cloud-peer-timeout", "3", "--cloud-mac-timeout", "1"]].concat()).expect("started");
    let of_cloud = |key: &str| status(ada)["cloud"][key].clone();
    until("a station of the cloud", || {
        at_end.send(&shout(ALL, LAPTOP)).expect("sent");
        of_cloud("stations").as_u64().is_some_and(|stations| stations > 0)
    });
    until("it to be forgotten", || of_cloud("stations") == 0);
    end.kill().expect("killed");
    until("its end to be none any more", || of_cloud("peers").as_array().is_some_and(Vec::is_empty));
}

#[test]
fn of_two_members_that_bridge_one_cloud_one_does_and_the_other_takes_over() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let bob = [&CLOUD[..], &["--cloud-connect", "198.51.100.2"]].concat();
    let mut three = Three::new(&["ada,bridge", "bob,bridge"], &bob);
    wait_for_peers(&three.end, &["198.51.100.2:3210".to_owned(), "198.51.100.3:3210".to_owned()]);
    until("one port to be open", || {
        let mut states = [&three.ada, &three.bob].map(port_state);
        states.sort();
        states == ["held back", "open"]
    });
    let carol = three.world.client("carol");
    let carol_ip = join(&carol, &three.line, &[]);
    answers(&carol, END);
    let at_carol = packets(&carol.ns, "eps0");
    let [at_ada, at_bob, at_end] = three.devices();
    let everybody = [("ada", &at_ada), ("bob", &at_bob), ("carol", &at_carol), ("the end", &at_end)];
    let sent_before = [&three.ada, &three.bob].map(|member| count(member, "cloud_tx_frames"));
    for (name, from, src) in [
        ("the end", &at_end, LAPTOP),
        ("carol", &at_carol, mac(&carol)),
        ("ada", &at_ada, mac(&three.ada)),
        ("bob", &at_bob, mac(&three.bob)),
    ] {
        let sent = shout(ALL, src);
        from.send(&sent).expect("sent");
        for (other, at) in everybody.into_iter().filter(|(other, _)| *other != name) {
            arrives(at, &format!("{name}'s shout at {other}"), &sent);
        }
        for (other, at) in everybody {
            assert_eq!(heard(at, &sent), 0, "{name}'s shout is heard once at {other}");
        }
    }
    let sent = [&three.ada, &three.bob].map(|member| count(member, "cloud_tx_frames"));
    let storm: u64 = sent.iter().zip(sent_before).map(|(after, before)| after - before).sum();
    assert!(storm < 200, "no storm: {storm} frames to the cloud");

    let is_open = |member: &Node| port_state(member) == "open";
    let (first, second) = if is_open(&three.ada) { (&three.ada, &three.bob) } else { (&three.bob, &three.ada) };
    assert!(second.log().contains(&format!("{} bridges this cloud as well", first.name)), "{}", second.log());
    assert_eq!(status(second)["cloud"]["held_for"], first.name.as_str());
    if is_long() {
        first.kill().expect("killed");
    } else {
        first.stop().expect("stopped");
    }
    let begun = Instant::now();
    wait_for_port(second, "open");
    answers(&three.end, carol_ip);
    println!("the second bridge carries frames {:.1} s after the first was gone", begun.elapsed().as_secs_f64());
    if !is_long() {
        return;
    }
    // It comes back, and still one does it.
    first.start(&[&CLOUD[..], &["--cloud-connect", "198.51.100.4"]].concat()).expect("started");
    until("one port to be open again", || {
        let states = [&three.ada, &three.bob].map(port_state);
        states.iter().filter(|state| *state == "open").count() == 1 && states.contains(&"held back".to_owned())
    });
}

#[test]
fn a_bridge_outlives_its_actors_and_noise_and_takes_super_frames_from_the_cloud() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let three = Three::new(&["ada,bridge"], &[]);
    let Three { ada, bob, end, bob_ip, .. } = &three;
    answers(end, *bob_ip);
    // TCP, whose segments the end's kernel leaves to it.
    let listener = bob.ns.run(|| TcpListener::bind((*bob_ip, 5000))).expect("a port");
    let reader = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("read");
        bytes
    });
    let mut stream = end.ns.run(|| TcpStream::connect((*bob_ip, 5000))).expect("connected");
    let sent: Vec<u8> = (0..2_000_000_u32).map(|number| (number / 7) as u8).collect();
    stream.write_all(&sent).expect("written");
    drop(stream);
    assert!(reader.join().expect("read") == sent, "two megabytes as they were");
    let end_status = status(end);
    let (reads, frames) = (&end_status["counters"]["tap_rx_calls"], &end_status["counters"]["tap_rx_frames"]);
    assert!(reads.as_u64() < frames.as_u64(), "there were super-frames: {reads} reads, {frames} frames");

    for actor in ["cloud", "udp_path", "tap_reader", "mac_learning"] {
        let before: u64 = restarts(ada, actor);
        ada.control(&json!({"command": "inject_panic", "actor": actor})).expect("injected");
        until(&format!("{actor} to be back"), || restarts(ada, actor) > before);
        answers(end, *bob_ip);
        answers(bob, END);
    }

    let (peers, stations) = (status(ada)["cloud"]["peers"].clone(), status(ada)["cloud"]["stations"].clone());
    let stranger = end.ns.run(|| UdpSocket::bind("0.0.0.0:4000")).expect("a socket");
    let before = count(ada, "drops");
    let mut datagram = Vec::new();
    for number in 0..4_000 {
        malformed(number, &mut datagram);
        stranger.send_to(&datagram, "198.51.100.2:3210").expect("sent");
        if number % 64 == 63 {
            until("it to be read", || count(ada, "drops") >= before + number);
        }
    }
    assert_eq!(status(ada)["cloud"]["peers"].as_array().map(Vec::len), peers.as_array().map(Vec::len));
    assert_eq!(status(ada)["cloud"]["stations"], stations);
    answers(end, *bob_ip);
}

fn restarts(member: &Node, actor: &str) -> u64 {
    let status = status(member);
    let actors = status["actors"].as_array().expect("actors").iter();
    actors.filter(|one| one["name"] == actor).filter_map(|one| one["restarts"].as_u64()).sum()
}

#[test]
fn strangers_in_a_cloud_cannot_silence_the_member_that_bridges_it() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let three = Three::new(&["ada,bridge"], &[]);
    let Three { ada, end, .. } = &three;
    answers(end, three.bob_ip);
    let [at_ada, at_bob, at_end] = three.devices();
    let before = count(ada, "drop_storm");
    // Broadcasts, and frames to stations that nobody has: both go to many.
    let stop = Instant::now() + Duration::from_millis(1_500);
    let mut number = 0_u32;
    while Instant::now() < stop {
        let dst = if number.is_multiple_of(2) { ALL } else { [2, 9, 9, 9, 9, 9] };
        at_end.send(&shout(dst, LAPTOP)).expect("sent");
        number += 1;
        if number.is_multiple_of(16) {
            thread::yield_now();
        }
    }
    until("the budget to be spent", || count(ada, "drop_storm") > before);
    let own = shout(ALL, mac(ada));
    at_ada.send(&own).expect("sent");
    arrives(&at_bob, "ada's own broadcast, in the middle of it", &own);
}
