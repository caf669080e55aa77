//! Ethclouds of the real program: full meshes, what a switch does, both gates of a pair behind NATs, and strangers.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::{Directory, Node, wait_until};
use eps_actor::config::Role;
use eps_actor::ids::MacAddr;
use eps_actor::io::netns::{Lan, Netns, can_make_networks, ping_once};
use eps_actor::io::packet::PacketSocket;
use serde_json::{Value, json};

use crate::lab::{
    BIN, Capture, SOON, World, beside, complaints, finish_in, has_program, is_long, join, node, packets, run_in, text,
    udp_payload, until, wait_for_end,
};

/// In front of every datagram: token 4660.
pub const HEAD: [u8; 7] = [0, 0, 0, 0, 0, 0x12, 0x34];
pub const DEVICE: &str = "ethcloud0";

/// Machines on one switch, 198.51.100.0/24.
pub struct Sky {
    lan: Lan,
    directory: Directory,
    hosts: u8,
}

impl Sky {
    pub fn new() -> Self {
        Self { lan: Lan::new().expect("a switch"), directory: Directory::new().expect("a directory"), hosts: 0 }
    }

    /// A machine at .1, .2 and so on, which says nothing by itself.
    pub fn host(&mut self) -> Arc<Netns> {
        self.hosts += 1;
        let ns = Netns::new().expect("a namespace");
        ns.sysctl("ipv6/conf/default/disable_ipv6", "1").expect("a setting");
        self.lan.plug(&ns, "eth0", &format!("198.51.100.{}/24", self.hosts)).expect("a cable");
        Arc::new(ns)
    }

    /// One end of a cloud on a machine of its own.
    pub fn end(&mut self, more: &[&str]) -> Node {
        let ns = self.host();
        self.end_at(ns, more)
    }

    pub fn end_at(&self, ns: Arc<Netns>, more: &[&str]) -> Node {
        let count = fs::read_dir(self.directory.path()).expect("a directory").count();
        let end = node(&format!("end{count}"), Role::Client, ns, &self.directory);
        start(&end, more);
        end
    }
}

/// Starts an end with the token of the recordings, and brings its device up.
pub fn start(end: &Node, more: &[&str]) {
    let mut command = Command::new(BIN);
    command.arg("cloud").args(["-t", "4660"]).args(more).arg("--control").arg(end.control_path());
    end.start_command(command).expect("started");
    answer(end, &json!({"command": "status"}));
    end.ns.set_link(DEVICE, true).expect("the device is up");
}

pub fn answer(end: &Node, question: &Value) -> Value {
    let reply = wait_until(SOON, "an answer", || end.poll(question));
    reply.unwrap_or_else(|error| panic!("{error:#}\n{}", end.log()))
}

pub fn status(end: &Node) -> Value {
    answer(end, &json!({"command": "status"}))
}

pub fn peers(end: &Node) -> Vec<String> {
    let status = status(end);
    let list = status["peers"].as_array().expect("peers").iter();
    list.map(|peer| peer["address"].as_str().expect("an address").to_owned()).collect()
}

/// Where stations are: VLAN, address, peer.
pub fn stations(end: &Node) -> Vec<(u64, String, String)> {
    let status = status(end);
    let list = status["stations"].as_array().expect("stations").iter();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    list.map(|one| (one["vlan"].as_u64().expect("a number"), text(&one["mac"]), text(&one["peer"]))).collect()
}

pub fn count(end: &Node, counter: &str) -> u64 {
    status(end)["counters"][counter].as_u64().unwrap_or_else(|| panic!("no {counter}"))
}

pub fn underlay(host: u8) -> String {
    format!("198.51.100.{host}:3210")
}

pub fn wait_for_peers(end: &Node, expected: &[String]) {
    let mut expected = expected.to_vec();
    expected.sort();
    let mut last = Vec::new();
    let came = wait_until(SOON, "peers", || {
        last = peers(end);
        last.sort();
        Ok((last == expected).then_some(()))
    });
    came.unwrap_or_else(|error| panic!("{error:#}: {last:?}, not {expected:?}\n{}", end.log()));
}

/// Waits until each of them has all the others as peers.
pub fn wait_for_mesh(ends: &[(&Node, u8)]) {
    for (end, own) in ends {
        let others = ends.iter().filter(|(_, host)| host != own).map(|(_, host)| underlay(*host));
        wait_for_peers(end, &others.collect::<Vec<_>>());
    }
}

/// Gives a device an address in 10.7.0.0/24.
pub fn address(end: &Node, host: u8) {
    let netlink = end.ns.netlink().expect("a socket");
    smol::block_on(async {
        let index = netlink.link_index(DEVICE).await.expect("the device");
        netlink.add_address(index, Ipv4Addr::new(10, 7, 0, host).into(), 24).await.expect("an address");
    });
}

pub fn ping(from: &Node, host: u8) {
    let to: IpAddr = Ipv4Addr::new(10, 7, 0, host).into();
    until(&format!("an answer of {to}"), || ping_once(&from.ns, None, to, Duration::from_secs(1)).is_some());
}

pub fn frame(dst: [u8; 6], src: [u8; 6], rest: &[u8]) -> Vec<u8> {
    let mut frame = [&dst[..], &src, rest].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Waits for exactly this frame to come out of a device.
pub fn arrives(at: &PacketSocket, what: &str, frame: &[u8]) {
    let start = Instant::now();
    while start.elapsed() < SOON {
        let captured = at.recv(Duration::from_millis(200)).expect("received");
        if captured.is_some_and(|captured| !captured.outgoing && captured.frame == frame) {
            return;
        }
    }
    panic!("{what} does not come out: {frame:02x?}");
}

/// Sends a frame into one device until it comes out of another; then whether it came out of a third as well.
pub fn crosses(from: &PacketSocket, to: &PacketSocket, third: &PacketSocket, frame: &[u8]) -> bool {
    from.send(frame).expect("sent");
    arrives(to, "a frame", frame);
    // One that everybody gets, behind it on every way.
    let mut last = frame.to_vec();
    last[..6].fill(0xff);
    last[20..28].copy_from_slice(&rand::random::<u64>().to_be_bytes());
    from.send(&last).expect("sent");
    let start = Instant::now();
    let mut seen = false;
    while start.elapsed() < SOON {
        let Some(captured) = third.recv(Duration::from_millis(200)).expect("received") else { continue };
        if captured.frame == last {
            return seen;
        }
        seen |= captured.frame == frame;
    }
    panic!("the last frame is lost");
}

pub const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
pub const LAPTOP: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
pub const ALL: [u8; 6] = [0xff; 6];

#[test]
fn two_ends_of_a_cloud_join_and_carry_frames_byte_for_byte_as_recorded() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut sky = Sky::new();
    let hosts = [sky.host(), sky.host()];
    let wire = Capture::start(&[(&*hosts[0], "eth0")]);
    let [host_a, host_b] = hosts;
    let b = sky.end_at(host_b, &[]);
    let a = sky.end_at(host_a, &["-c", "198.51.100.2:3210"]);
    wait_for_mesh(&[(&a, 1), (&b, 2)]);
    address(&a, 1);
    address(&b, 2);
    ping(&a, 2);
    // A packet of 1,500 bytes makes a datagram of 1,522, which IP cuts.
    run_in(&a.ns, "ping -c 1 -W 5 -M do -s 1472 10.7.0.2");

    let (at_a, at_b) = (packets(&a.ns, DEVICE), packets(&b.ns, DEVICE));
    for (name, rest) in [
        ("untagged", &[0x88, 0xb5, 1][..]),
        ("VLAN 5", &[0x81, 0, 0, 5, 0x88, 0xb5, 2][..]),
        ("VLAN 5 with priority 3", &[0x81, 0, 0x60, 5, 0x88, 0xb5, 3][..]),
        ("a priority tag", &[0x81, 0, 0x60, 0, 0x88, 0xb5, 4][..]),
        ("an empty tag", &[0x81, 0, 0, 0, 0x88, 0xb5, 5][..]),
        ("two tags", &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8, 0x88, 0xb5, 6][..]),
    ] {
        let sent = frame(ALL, LAPTOP, rest);
        at_a.send(&sent).expect("sent");
        arrives(&at_b, name, &sent);
    }
    let laptop = MacAddr(LAPTOP).to_string();
    until("VLANs by number", || {
        let vlans: Vec<u64> =
            stations(&b).into_iter().filter(|(_, mac, _)| *mac == laptop).map(|(vlan, ..)| vlan).collect();
        vlans == [0, 5]
    });

    a.stop().expect("stopped");
    wait_for_peers(&b, &[]);
    assert_eq!(stations(&b), [], "a peer takes its stations with it");
    let sent: Vec<Vec<u8>> = wire
        .frames()
        .iter()
        .filter_map(|captured| udp_payload(&captured.frame))
        .filter(|(from, to, _)| (*from, *to) == (3210, 3210))
        .map(|(_, _, payload)| payload.to_vec())
        .collect();
    assert!(sent.iter().all(|payload| payload[..7] == HEAD), "the token is first");
    assert!(sent[0][7] == 2 && sent[0].len() == 40, "a Get with a mark and an id comes first: {:02x?}", sent[0]);
    let list = sent.iter().find(|payload| payload[7] == 1).expect("a list");
    assert_eq!(list, &[&HEAD[..], &[1, 1, 198, 51, 100, 1, 0x0c, 0x8a, 0]].concat(), "and its asker is in the first");
    assert_eq!(sent.last().expect("datagrams"), &[&HEAD[..], &[3]].concat(), "a Close is last");
}

#[test]
fn three_ends_of_a_cloud_learn_move_age_and_time_out() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut sky = Sky::new();
    let times = ["--peer-timeout", "4", "--mac-timeout", "6"];
    let a = sky.end(&times);
    let b = sky.end(&[&times[..], &["-c", "198.51.100.1:3210"]].concat());
    let c = sky.end(&[&times[..], &["-c", "198.51.100.1:3210"]].concat());
    wait_for_mesh(&[(&a, 1), (&b, 2), (&c, 3)]);
    let [at_a, at_b, at_c] = [&a, &b, &c].map(|end| packets(&end.ns, DEVICE));
    let to_laptop = frame(LAPTOP, A, &[0x88, 0xb5, 1]);
    let is_at = |peer: u8| {
        let place = [(0, MacAddr(LAPTOP).to_string(), underlay(peer))];
        until(&format!("the laptop behind {peer}"), || stations(&a) == place);
    };
    assert!(crosses(&at_a, &at_b, &at_c, &to_laptop), "nobody knows where it is: to all");
    at_b.send(&frame(ALL, LAPTOP, &[0x88, 0xb5, 2])).expect("sent");
    is_at(2);
    assert!(!crosses(&at_a, &at_b, &at_c, &to_laptop), "learned: to one");
    at_c.send(&frame(ALL, LAPTOP, &[0x88, 0xb5, 3])).expect("sent");
    is_at(3);
    assert!(!crosses(&at_a, &at_c, &at_b, &to_laptop), "moved: to the other one");
    let in_vlan = frame(LAPTOP, A, &[0x81, 0, 0x60, 9, 0x88, 0xb5, 1]);
    assert!(crosses(&at_a, &at_b, &at_c, &in_vlan), "nobody knows it in VLAN 9");
    until("it to age", || stations(&a).is_empty());
    assert!(crosses(&at_a, &at_b, &at_c, &to_laptop), "forgotten: to all");

    // Lists go to and fro each 2 s, so they stay peers; who is killed does not.
    c.kill().expect("killed");
    let start = Instant::now();
    wait_for_peers(&a, &[underlay(2)]);
    wait_for_peers(&b, &[underlay(1)]);
    println!(
        "a silent peer is gone {:.1} s after it was killed, with a peer timeout of 4 s",
        start.elapsed().as_secs_f64()
    );
    b.interrupt().expect("told");
    wait_for_end(&b);
    wait_for_peers(&a, &[]);
    start_again(&b, "198.51.100.1:3210");
    wait_for_mesh(&[(&a, 1), (&b, 2)]);
}

fn start_again(end: &Node, connect: &str) {
    start(end, &["-c", connect]);
}

#[test]
fn twelve_ends_of_a_cloud_that_know_one_reach_a_full_mesh_and_none_meets_itself() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut sky = Sky::new();
    let first = sky.end(&[]);
    let mut ends = vec![first];
    let begun = Instant::now();
    for _ in 1..12 {
        ends.push(sky.end(&["--connect=198.51.100.1:3210"]));
    }
    let all: Vec<(&Node, u8)> = ends.iter().zip(1..).collect();
    wait_for_mesh(&all);
    println!("twelve ends are a full mesh {:.1} s after the second began to start", begun.elapsed().as_secs_f64());
    for (end, host) in &all {
        address(end, *host);
    }
    ping(&ends[11], 5);
    let at: Vec<PacketSocket> = ends.iter().map(|end| packets(&end.ns, DEVICE)).collect();
    let shout = frame(ALL, LAPTOP, &[0x88, 0xb5, 7]);
    at[4].send(&shout).expect("sent");
    for (number, socket) in at.iter().enumerate().filter(|(number, _)| *number != 4) {
        arrives(socket, &format!("the shout at {number}"), &shout);
        let copies = heard(socket, &shout);
        assert_eq!(copies, 0, "one copy each");
    }
    assert_eq!(heard(&at[4], &shout), 0, "no echo at its sender");
}

/// Copies of a frame that still come out of a device.
pub fn heard(at: &PacketSocket, frame: &[u8]) -> usize {
    let mut count = 0;
    while let Some(captured) = at.recv(Duration::from_millis(100)).expect("received") {
        count += usize::from(!captured.outgoing && captured.frame == frame);
    }
    count
}

#[test]
fn two_ends_behind_port_restricted_nats_reach_each_other_through_a_public_one_in_5_s() {
    if !can_make_networks() || !has_program("iptables") {
        return;
    }
    let _turn = beside();
    let mut sky = Sky::new();
    let public = sky.end(&[]);
    let (mut kept, mut routers) = (Vec::new(), Vec::new());
    let mut hidden = |sky: &mut Sky| {
        let nat = sky.host();
        let ns = behind(&nat, &mut kept);
        routers.push(nat);
        sky.end_at(ns, &["-c", "198.51.100.1:3210"])
    };
    let a = hidden(&mut sky);
    wait_for_peers(&a, &[underlay(1)]);
    let begun = Instant::now();
    let b = hidden(&mut sky);
    wait_for_peers(&b, &[underlay(1), underlay(2)]);
    wait_for_peers(&a, &[underlay(1), underlay(3)]);
    let took = begun.elapsed();
    println!("both gates were open {:.2} s after the second end was started", took.as_secs_f64());
    assert!(took < Duration::from_secs(5), "{took:?}");
    address(&a, 1);
    address(&b, 2);
    ping(&a, 2);
    wait_for_peers(&public, &[underlay(2), underlay(3)]);
}

#[test]
fn ends_of_a_cloud_speak_ipv6_and_are_installed_under_the_old_name() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut lan = Lan::new().expect("a switch");
    let directory = Directory::new().expect("a directory");
    let old_name = directory.path().join("ethcloud");
    symlink(BIN, &old_name).expect("a link");
    let mut end = |host: u8, line: &str| {
        let ns = Netns::new().expect("a namespace");
        lan.plug(&ns, "eth0", &format!("2001:db8::{host}/64")).expect("a cable");
        let end = node(&format!("six{host}"), Role::Client, Arc::new(ns), &directory);
        let mut command = Command::new(&old_name);
        command.args(line.split_whitespace()).arg("--control").arg(end.control_path());
        (end, command)
    };
    let ends = [
        end(1, "-d ethcloud%d -l [::]:3210 -t 134 --peer-timeout 1800 --mac-timeout 300 -v"),
        end(2, "--device=ethcloud%d --listen=[::]:3210 --token=134 --connect=[2001:db8::1]:3210 --verbose"),
        end(3, "-l [::]:3210 -t 134 -c [2001:db8::9]:3210,[2001:db8::1]:3210 -c [2001:db8::8]:1"),
    ];
    let ends = ends.map(|(end, command)| {
        // An address that is still being checked for duplicates cannot be sent from.
        until("a usable address", || {
            let netlink = end.ns.netlink().expect("a socket");
            let addresses = smol::block_on(netlink.addresses()).expect("addresses");
            addresses.iter().any(|one| one.addr.to_string().starts_with("2001:") && one.is_usable())
        });
        end.start_command(command).expect("started");
        end
    });
    for (number, end) in ends.iter().enumerate() {
        let others = (1..=3).filter(|host| *host != number + 1).map(|host| format!("[2001:db8::{host}]:3210"));
        wait_for_peers(end, &others.collect::<Vec<_>>());
        end.ns.set_link(DEVICE, true).expect("up");
        address(end, number as u8 + 1);
    }
    ping(&ends[2], 2);
    assert!(ends[0].log().contains(DEVICE), "the device is named: {}", ends[0].log());

    // Under its old name it needs no other word.
    let say = |args: &[&str]| finish_in(&ends[0].ns, Command::new(&old_name).args(args));
    let help = text(&say(&["--help"]).stdout);
    for option in [
        "-d, --device",
        "-l, --listen",
        "-t, --token",
        "-c, --connect",
        "--peer-timeout",
        "--mac-timeout",
        "-v, --verbose",
        "-q, --quiet",
        "ethcloud%d",
        "0.0.0.0:3210",
        "1800",
        "300",
    ] {
        assert!(help.contains(option), "{option}: {help}");
    }
    assert!(text(&say(&["--version"]).stdout).contains(env!("CARGO_PKG_VERSION")));
    for (args, word) in [
        (&["-v", "-q"][..], "cannot be used"),
        (&["--frob"][..], "unexpected argument"),
        (&["--peer-timeout", "soon"][..], "invalid digit"),
        (&["-t", "72057594037927936"][..], "7 bytes"),
        (&["-l", "0.0.0.0:3299", "-d", "a/b"][..], "no interface name"),
        (&["-l", "0.0.0.0:3299", "-d", "name-of-16-bytes"][..], "no interface name"),
        (&["-l", "198.51.100.77:3210"][..], "no address of this machine"),
        (&["-l", "0.0.0.0:3210"][..], "in use"),
    ] {
        let output = say(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(said.contains(word), "{args:?}: {said}");
    }
}

#[test]
fn ends_with_addresses_of_both_families_are_one_peer_each_and_hear_broadcasts_once() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut sky = Sky::new();
    let mut both = |more: &[&str]| {
        let ns = Netns::new().expect("a namespace");
        sky.hosts += 1;
        for address in [format!("198.51.100.{}/24", sky.hosts), format!("2001:db8::{}/64", sky.hosts)] {
            match address.contains(':') {
                false => sky.lan.plug(&ns, "eth0", &address).expect("a cable"),
                true => run_in(&ns, &format!("ip address add {address} dev eth0 nodad")),
            }
        }
        sky.end_at(Arc::new(ns), &[&["-l", "[::]:3210"], more].concat())
    };
    let ends = [both(&[]), both(&["-c", "198.51.100.1:3210"]), both(&["-c", "[2001:db8::1]:3210"])];
    let all = |end: &Node| -> Vec<String> {
        let status = status(end);
        let list = status["peers"].as_array().expect("peers").iter();
        list.flat_map(|peer| {
            let also = peer["also"].as_array().expect("a list").iter().chain([&peer["address"]]);
            also.map(|address| address.as_str().expect("text").to_owned()).collect::<Vec<_>>()
        })
        .collect()
    };
    for end in &ends {
        let what = "two peers with two addresses each";
        let found = wait_until(SOON, what, || Ok((peers(end).len() == 2 && all(end).len() == 4).then_some(())));
        found.unwrap_or_else(|error| panic!("{error:#}: {:?} of {:?}\n{}", peers(end), all(end), end.log()));
    }
    let at: Vec<PacketSocket> = ends.iter().map(|end| packets(&end.ns, DEVICE)).collect();
    for from in 0..3_usize {
        let shout = frame(ALL, LAPTOP, &[0x88, 0xb5, from as u8 + 40]);
        at[from].send(&shout).expect("sent");
        for to in (0..3).filter(|to| *to != from) {
            arrives(&at[to], "a shout", &shout);
            assert_eq!(heard(&at[to], &shout), 0, "{from} at {to}: once");
        }
    }
}

#[test]
fn several_peers_are_connected_to_and_sigquit_says_goodbye() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut sky = Sky::new();
    let others = [sky.end(&[]), sky.end(&[]), sky.end(&[])];
    let ns = sky.host();
    let control = sky.directory.path().join("own.sock");
    let mut command = Command::new(BIN);
    command.args(["cloud", "-t", "4660", "-c", "198.51.100.1:3210", "-c", "198.51.100.2,198.51.100.3:3210"]);
    let mut child = ns.spawn(command.arg("--control").arg(&control)).expect("started");
    for other in &others {
        until("the new one as a peer", || peers(other).contains(&underlay(4)));
    }
    run_in(&ns, &format!("kill -QUIT {}", child.id()));
    let ended = wait_until(SOON, "the end", || Ok(child.try_wait()?)).expect("it ends");
    assert!(ended.success(), "{ended}");
    for other in &others {
        until("the goodbye", || !peers(other).contains(&underlay(4)));
    }
}

#[test]
fn a_name_that_gets_another_address_while_nobody_answers_is_asked_there() {
    if !can_make_networks() || !has_program("unshare") {
        return;
    }
    let _turn = beside();
    let mut sky = Sky::new();
    let first = sky.end(&[]);
    let hosts = sky.directory.path().join("hosts");
    fs::write(&hosts, "198.51.100.99 cloud.test\n").expect("written");
    let end = node("named", Role::Client, sky.host(), &sky.directory);
    let line = format!(
        "mount --bind {} /etc/hosts && exec {BIN} cloud -t 4660 -c cloud.test --control {}",
        hosts.display(),
        end.control_path().display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &line]);
    end.start_command(command).expect("started");
    until("nobody at the old address to be asked", || count(&end, "udp_tx_datagrams") >= 2);
    fs::write(&hosts, "198.51.100.1 cloud.test\n").expect("written");
    let begun = Instant::now();
    wait_for_peers(&end, &[underlay(1)]);
    println!("the name's new address was asked {:.1} s after it was changed", begun.elapsed().as_secs_f64());
    wait_for_peers(&first, &[underlay(2)]);
}

#[test]
fn an_idle_end_behind_a_nat_that_forgets_after_30_s_stays_reachable() {
    if !can_make_networks() || !has_program("iptables") || !is_long() {
        return;
    }
    let _turn = beside();
    let mut sky = Sky::new();
    let public = sky.end(&[]);
    let (nat, mut kept) = (sky.host(), Vec::new());
    let ns = behind(&nat, &mut kept);
    for timeout in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
        nat.sysctl(&format!("netfilter/{timeout}"), "30").expect("a setting");
    }
    let hidden = sky.end_at(ns, &["-c", "198.51.100.1:3210"]);
    wait_for_peers(&public, &[underlay(2)]);
    let [at_public, at_hidden] = [&public, &hidden].map(|end| packets(&end.ns, DEVICE));
    let begun = Instant::now();
    // It is the waiting that is tested.
    let waited =
        wait_until(Duration::from_secs(120), "70 s", || Ok((begun.elapsed() >= Duration::from_secs(70)).then_some(())));
    waited.expect("waited");
    let shout = frame(ALL, A, &[0x88, 0xb5, 70]);
    at_public.send(&shout).expect("sent");
    arrives(&at_hidden, "the first frame after 70 s", &shout);
}

/// A machine behind a router that is restricted by port.
fn behind(nat: &Netns, kept: &mut Vec<Lan>) -> Arc<Netns> {
    let ns = Netns::new().expect("a namespace");
    ns.sysctl("ipv6/conf/default/disable_ipv6", "1").expect("a setting");
    let mut lan = Lan::new().expect("a switch");
    lan.plug(nat, "lan", "192.168.7.1/24").expect("a cable");
    lan.plug(&ns, "eth0", "192.168.7.2/24").expect("a cable");
    ns.add_default_route(Ipv4Addr::new(192, 168, 7, 1)).expect("a route");
    nat.sysctl("ipv4/ip_forward", "1").expect("a setting");
    for rule in [
        "-t nat -A POSTROUTING -o eth0 -j MASQUERADE",
        "-A INPUT -i eth0 -p udp -j DROP",
        "-A FORWARD -i eth0 -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "-A FORWARD -i eth0 -j DROP",
    ] {
        run_in(nat, &format!("iptables {rule}"));
    }
    kept.push(lan);
    Arc::new(ns)
}

#[test]
fn two_clouds_on_one_machine_have_a_device_and_a_socket_each_and_a_name_is_looked_up() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut sky = Sky::new();
    let ns = sky.host();
    let one = sky.end_at(ns.clone(), &["-c", "nobody.invalid"]);
    let two = node("two", Role::Client, ns.clone(), &sky.directory);
    let mut command = Command::new(BIN);
    command.args(["cloud", "-t", "4660", "-l", "0.0.0.0:3211", "-c", "localhost:3210", "--control"]);
    two.start_command({
        command.arg(two.control_path());
        command
    })
    .expect("started");
    // Two ports of one machine are two ends; who is on the machine may be told of what is there.
    until("the other port as a peer", || peers(&two) == ["127.0.0.1:3210"]);
    until("and back", || peers(&one) == ["127.0.0.1:3211"]);
    assert_eq!(status(&two)["node"]["device"], "ethcloud1");
    until("the missing name to be told", || one.log().contains("nobody.invalid cannot be looked up"));
    two.stop().expect("stopped");
    wait_for_peers(&one, &[]);
}

#[test]
fn a_million_malformed_datagrams_leave_an_end_up_with_nothing_learned() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut sky = Sky::new();
    let end = sky.end(&[]);
    let stranger = sky.host();
    let socket = stranger.run(|| UdpSocket::bind("198.51.100.2:4000")).expect("a socket");
    let to: SocketAddr = underlay(1).parse().expect("an address");
    let count_of = if is_long() { 1_000_000_u64 } else { 60_000 };
    let begun = Instant::now();
    let mut sent = 0_u64;
    let mut datagram = Vec::new();
    while sent < count_of {
        // 64 in a row, then as many as the other end has read: none is to be lost.
        for _ in 0..64 {
            malformed(sent, &mut datagram);
            socket.send_to(&datagram, to).expect("sent");
            sent += 1;
        }
        if sent.is_multiple_of(4096) || sent >= count_of {
            until("the datagrams to be read", || count(&end, "udp_rx_datagrams") >= sent);
        }
    }
    let took = begun.elapsed();
    let status = status(&end);
    println!("{sent} malformed datagrams in {:.1} s: {} dropped", took.as_secs_f64(), status["counters"]["drops"]);
    assert_eq!(status["counters"]["drops"].as_u64(), Some(sent));
    assert_eq!((peers(&end), stations(&end)), (vec![], vec![]));
    assert_eq!(count(&end, "tap_tx_frames"), 0);
    assert!(status["actors"].as_array().expect("actors").iter().all(|actor| actor["restarts"] == 0));
    let friend = sky.end(&["-c", "198.51.100.1:3210"]);
    wait_for_peers(&friend, &[underlay(1)]);
}

#[test]
fn a_member_bridges_a_cloud_into_its_network_as_one_switch_that_believes_nothing_unsigned() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let line = world.start_server(&["--sequential", "--network", "10.7.0.0/24", "--members", "ada,bridge"]);
    let (ada, bob) = (world.client("ada"), world.client("bob"));
    let bridging = ["--cloud", "0.0.0.0:3210", "--cloud-token", "4660"];
    let ada_ip = join(&ada, &line, &bridging);
    let bob_ip = join(&bob, &line, &[]);
    let ns = world.host();
    let end = node("end", Role::Client, ns, &world.directory);
    start(&end, &["-c", "198.51.100.2:3210"]);
    wait_for_peers(&end, &[underlay(2)]);
    address(&end, 200);
    for to in [ada_ip, bob_ip] {
        let what = format!("{to} to answer the cloud\n{}", ada.log());
        until(&what, || ping_once(&end.ns, None, to, Duration::from_secs(1)).is_some());
    }
    let end_ip: IpAddr = Ipv4Addr::new(10, 7, 0, 200).into();
    for from in [&bob, &ada] {
        until("the cloud to answer", || ping_once(&from.ns, None, end_ip, Duration::from_secs(1)).is_some());
    }
    let port = &status(&ada)["cloud"];
    assert_eq!((&port["state"], port["peers"].as_array().map(Vec::len)), (&json!("open"), Some(1)), "{port}");

    // Frames of the cloud reach both others once, and do not come back.
    let [at_ada, at_bob, at_end] =
        [(&ada, "eps0"), (&bob, "eps0"), (&end, DEVICE)].map(|(node, name)| packets(&node.ns, name));
    let shout = frame(ALL, LAPTOP, &[0x88, 0xb5, 9]);
    at_end.send(&shout).expect("sent");
    for (name, socket) in [("ada", &at_ada), ("bob", &at_bob)] {
        arrives(socket, name, &shout);
        assert_eq!(heard(socket, &shout), 0, "{name} has it once");
    }
    assert_eq!(heard(&at_end, &shout), 0, "no echo");

    // What the network has signed nobody in the cloud may say.
    let bobs: MacAddr = status(&bob)["node"]["mac"].as_str().expect("a MAC").parse().expect("a MAC");
    let IpAddr::V4(bobs_ip) = bob_ip else { panic!("an IPv4 lease") };
    let arp = [&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2][..], &LAPTOP, &bobs_ip.octets(), &ALL, &[10, 7, 0, 1]].concat();
    let mut offer = vec![0x08, 0x00, 0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 10, 7, 0, 200, 255, 255, 255, 255];
    offer.extend([0, 67, 0, 68, 0, 8, 0, 0]);
    for (name, counter, lie) in [
        ("a member's MAC", "drop_source_spoofed", frame(ALL, bobs.0, &[0x88, 0xb5, 1])),
        ("a member's address", "drop_address_spoofed", frame(ALL, LAPTOP, &arp)),
        ("a DHCP server", "drop_no_right", frame(ALL, LAPTOP, &offer)),
    ] {
        let before = count(&ada, counter);
        at_end.send(&lie).expect("sent");
        until(&format!("{name} to be refused"), || count(&ada, counter) > before);
        assert_eq!((heard(&at_ada, &lie), heard(&at_bob, &lie)), (0, 0), "{name}");
    }

    // TCP with super-frames, from a member that knows nothing of the cloud.
    let listener = end.ns.run(|| std::net::TcpListener::bind("10.7.0.200:5000")).expect("a port");
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut bytes).expect("read");
        bytes
    });
    let mut stream = bob.ns.run(|| std::net::TcpStream::connect("10.7.0.200:5000")).expect("connected");
    let sent: Vec<u8> = (0..2_000_000_u32).map(|number| (number / 7) as u8).collect();
    std::io::Write::write_all(&mut stream, &sent).expect("written");
    drop(stream);
    assert!(reader.join().expect("read") == sent, "two megabytes as they were");
    ada.stop().expect("stopped");
    wait_for_peers(&end, &[]);
}

/// One that cannot be read, or has another token.
pub fn malformed(number: u64, datagram: &mut Vec<u8>) {
    datagram.clear();
    datagram.extend(HEAD);
    match number % 8 {
        0 => datagram.truncate((number / 8 % 8) as usize),
        1 => datagram.push((4 + number / 8 % 252) as u8),
        2 => datagram.push(1),
        3 => datagram.extend([1, 200, 1, 2, 3, 4, 5]),
        4 => datagram.extend([0, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8]),
        5 => datagram.extend([0, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 5]),
        6 => {
            datagram[6] ^= 1;
            datagram.extend([0, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 1, 2, 3]);
        }
        _ => {
            datagram[0] = 0xff;
            datagram.extend(number.to_be_bytes().repeat(1 + number as usize / 8 % 100));
        }
    }
}

#[test]
fn a_cloud_has_a_status_a_scorecard_and_a_map_and_its_actors_come_back() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut sky = Sky::new();
    let a = sky.end(&[]);
    let files = sky.directory.path().to_owned();
    let (card, map) = (files.join("card"), files.join("map"));
    let (card_text, map_text) = (card.display().to_string(), map.display().to_string());
    let b = sky.end(&[
        "-c",
        "198.51.100.1",
        "--scorecard",
        &card_text,
        "--scorecard-format",
        "prom",
        "--graphviz",
        &map_text,
    ]);
    wait_for_mesh(&[(&a, 1), (&b, 2)]);
    address(&a, 1);
    address(&b, 2);
    ping(&b, 1);
    let control = b.control_path().display().to_string();
    let say =
        |args: &[&str]| text(&finish_in(&b.ns, Command::new(BIN).args(args).args(["--control", &control])).stdout);
    let status_text = say(&["status"]);
    for word in ["cloud ethcloud0: listening on 0.0.0.0:3210", "1 peer", "1 station", "198.51.100.1:3210", "cloud_tap"]
    {
        assert!(status_text.contains(word), "{word}: {status_text}");
    }
    assert!(say(&["status", "--json"]).contains("\"role\":\"cloud\""));
    assert!(say(&["members"]).contains("198.51.100.1:3210"));
    let drawn = say(&["map"]);
    assert!(drawn.starts_with("graph eps {") && drawn.contains("\"198.51.100.1:3210\""), "{drawn}");
    until("the map in its file", || fs::read_to_string(&map).is_ok_and(|text| text.contains("198.51.100.1:3210")));
    until("the scorecard in its file", || {
        fs::read_to_string(&card)
            .is_ok_and(|text| text.contains("role=\"cloud\"") && text.contains("eps_peers{state=\"direct\"} 1"))
    });
    let all = answer(&b, &json!({"command": "scorecard", "format": "all"}));
    let bytes = all["json"]["peers"][0]["rx_bytes"].as_u64().expect("a number");
    assert!(bytes > 60, "an answer to ARP and one to a ping: {bytes}");
    assert!(all["classic"].as_str().expect("text").contains("role cloud"), "{}", all["classic"]);
    assert!(all["stats"].as_str().expect("text").contains("direct packets received"), "{}", all["stats"]);

    for actor in ["cloud", "cloud_tap", "udp_path", "stats", "control"] {
        // The answer may go down with the actor that would give it.
        let _ = b.control(&json!({"command": "inject_panic", "actor": actor}));
        until(&format!("{actor} to be back"), || {
            let status = b.poll(&json!({"command": "status"})).ok().flatten();
            let actors = status.as_ref().and_then(|status| status["actors"].as_array());
            actors.is_some_and(|list| {
                list.iter().any(|one| one["name"] == actor && one["restarts"] == 1 && one["state"] == "running")
            })
        });
        ping(&b, 1);
        assert_eq!(peers(&b), [underlay(1)], "{actor}");
    }
    // The device deleted under it is made anew, and nobody else's.
    let netlink = b.ns.netlink().expect("a socket");
    smol::block_on(async {
        let index = netlink.link_index(DEVICE).await.expect("the device");
        netlink.delete_link(index).await.expect("deleted");
    });
    until("the device to be back", || smol::block_on(netlink.link_index(DEVICE)).is_ok());
    b.ns.set_link(DEVICE, true).expect("up");
    address(&b, 2);
    ping(&b, 1);
    assert_eq!(complaints(&b.log()), Vec::<&str>::new());
}
