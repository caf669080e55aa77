//! Frames of every kind come out as they went in, padding included (L-02).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::Node;
use eps_actor::ids::MacAddr;
use eps_actor::io::netns::{can_make_networks, ping_once};
use eps_actor::io::packet::PacketSocket;
use eps_actor::wire::ethernet::icmpv6_checksum;

use crate::lab::{SOON, World, beside, has_program, join, packets, ping, run_in, until};

/// A local experimental EtherType (IEEE 802).
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
const MTU: usize = 8900;
const BROADCAST: [u8; 6] = [0xff; 6];

#[test]
fn l_02_frames_of_every_kind_cross_the_mesh_byte_by_byte() {
    if !can_make_networks() || !has_program("ip") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    // Jumbo frames need an underlay that carries them.
    for client in [&ada, &bob] {
        run_in(&client.ns, "ip link set eth0 mtu 9000");
    }
    for port in ["port0", "port1", "port2", "lan"] {
        run_in(world.lan.switch(), &format!("ip link set {port} mtu 9000"));
    }
    let line = world.start_server(&[]);
    let [_, to] = [&ada, &bob].map(|client| join(client, &line, &["--mtu", "8900"]));
    ping(&ada, &bob, to);

    let (us, them) = (facts(&ada), facts(&bob));
    let (from, at) = (packets(&ada.ns, "eps0"), packets(&bob.ns, "eps0"));
    let frames = frames(&us, &them);
    for (name, frame) in &frames {
        arrives(&from, &at, name, frame);
    }
    let lengths: Vec<usize> = (14..=80).chain([1390, 1391, 4000, 8898, 8913, 8914]).collect();
    for length in &lengths {
        let mut frame = ethernet(them.mac, us.mac, &EXPERIMENT, &[]);
        frame.extend((14..*length).map(|byte| byte as u8 | 1));
        arrives(&from, &at, &format!("a frame of {length} bytes"), &frame);
    }

    let six = IpAddr::V6(them.ip6);
    let mut answer = None;
    until("an answer over IPv6", || {
        answer = ping_once(&ada.ns, None, six, Duration::from_secs(1));
        answer.is_some()
    });
    let big = if has_program("ping") {
        run_in(&ada.ns, &format!("ping -c 1 -W 2 -M do -s 8872 {to}"));
        "answered"
    } else {
        "skipped"
    };
    println!(
        "L-02: {} kinds of frames and {} lengths from 14 to {} bytes came out byte by byte; IPv6 ping {:.1} ms; ping of 8,900 bytes: {big}",
        frames.len(),
        lengths.len(),
        MTU + 14,
        answer.expect("an answer").as_secs_f64() * 1e3
    );
}

struct Facts {
    mac: MacAddr,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
}

fn facts(node: &Node) -> Facts {
    let own = node.client_status().expect("a status").node;
    let plain = |text: Option<String>| text.expect("a lease").split('/').next().unwrap_or_default().to_owned();
    Facts {
        mac: own.mac.expect("a lease").parse().expect("a MAC"),
        ip4: plain(own.address).parse().expect("an address"),
        ip6: plain(own.address6).parse().expect("an address"),
    }
}

fn frames(us: &Facts, them: &Facts) -> Vec<(&'static str, Vec<u8>)> {
    let unknown = Ipv4Addr::from(u32::from(us.ip4) & 0xffff_ff00 | 0xfe);
    let garbage: Vec<u8> = (0..40_u8).map(|byte| byte.wrapping_mul(37) | 1).collect();
    let padded = |mut frame: Vec<u8>, length: usize| {
        frame.extend(garbage.iter().cycle().take(length.saturating_sub(frame.len())));
        frame
    };
    let arp = |operation: u8, target: Ipv4Addr, target_mac: [u8; 6]| {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        [&head[..], &us.mac.0, &us.ip4.octets(), &target_mac, &target.octets()].concat()
    };
    let group4 = Ipv4Addr::new(224, 0, 0, 251);
    let group6: Ipv6Addr = "ff02::fb".parse().expect("an address");
    let mut solicited = u128::from(them.ip6);
    // Somebody's who is not there: the map answers for members.
    solicited ^= 0x77;
    let target = Ipv6Addr::from(solicited);
    let node_group =
        Ipv6Addr::from(u128::from("ff02::1:ff00:0".parse::<Ipv6Addr>().expect("an address")) | solicited & 0xff_ffff);
    let solicitation = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &[1, 1], &us.mac.0].concat();
    let advertisement = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &us.ip6.octets(), &[2, 1], &us.mac.0].concat();
    let all_nodes: Ipv6Addr = "ff02::1".parse().expect("an address");
    let icmp6 = |to: Ipv6Addr, mut message: Vec<u8>| {
        let sum = icmpv6_checksum(us.ip6, to, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        ipv6(us.ip6, to, 58, 255, &message)
    };
    let discover = dhcp_discover(us.mac);
    let tag = [0x81, 0x00, 0x60, 0x2a];
    vec![
        ("an ARP announcement of 42 bytes", ethernet(MacAddr(BROADCAST), us.mac, &[8, 6], &arp(1, us.ip4, [0; 6]))),
        (
            "an ARP request, padded to 60 bytes",
            padded(ethernet(MacAddr(BROADCAST), us.mac, &[8, 6], &arp(1, unknown, [0; 6])), 60),
        ),
        ("an ARP reply", padded(ethernet(them.mac, us.mac, &[8, 6], &arp(2, them.ip4, them.mac.0)), 60)),
        (
            "a neighbour solicitation",
            ethernet(multicast6(node_group), us.mac, &[0x86, 0xdd], &icmp6(node_group, solicitation)),
        ),
        (
            "a neighbour advertisement",
            ethernet(multicast6(all_nodes), us.mac, &[0x86, 0xdd], &icmp6(all_nodes, advertisement)),
        ),
        (
            "a DHCP DISCOVER",
            ethernet(
                MacAddr(BROADCAST),
                us.mac,
                &[8, 0],
                &udp4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 68, 67, &discover),
            ),
        ),
        (
            "IPv4 multicast",
            ethernet(MacAddr([1, 0, 0x5e, 0, 0, 0xfb]), us.mac, &[8, 0], &udp4(us.ip4, group4, 5353, 5353, &garbage)),
        ),
        ("IPv6 multicast", ethernet(multicast6(group6), us.mac, &[0x86, 0xdd], &ipv6(us.ip6, group6, 59, 1, &garbage))),
        (
            "an IPv4 broadcast",
            ethernet(MacAddr(BROADCAST), us.mac, &[8, 0], &udp4(us.ip4, Ipv4Addr::BROADCAST, 9, 9, &garbage)),
        ),
        ("a frame in VLAN 42", padded(ethernet(them.mac, us.mac, &tag, &EXPERIMENT), 64)),
        ("a broadcast in VLAN 42", padded(ethernet(MacAddr(BROADCAST), us.mac, &tag, &EXPERIMENT), 200)),
        (
            "a short IPv4 packet, padded to 60 bytes",
            padded(ethernet(them.mac, us.mac, &[8, 0], &udp4(us.ip4, them.ip4, 9, 9, b"x")), 60),
        ),
        ("a jumbo frame", padded(ethernet(them.mac, us.mac, &EXPERIMENT, &[]), MTU + 14)),
        ("an IEEE 802.3 frame with a length", padded(ethernet(them.mac, us.mac, &[0, 40], &[0xf0, 0xf0, 3]), 60)),
    ]
}

/// Sends a frame until it comes out, and no other of its length and kind in its place.
fn arrives(from: &PacketSocket, at: &PacketSocket, name: &str, frame: &[u8]) {
    from.send(frame).unwrap_or_else(|error| panic!("{name}: {error}"));
    let start = Instant::now();
    let mut seen = Vec::new();
    while start.elapsed() < SOON / 4 {
        let Some(captured) = at.recv(Duration::from_millis(200)).expect("received") else { continue };
        if !captured.outgoing && captured.frame == frame {
            return;
        }
        seen.push(captured);
    }
    panic!("{name} does not come out: {frame:02x?}\nseen: {seen:02x?}");
}

fn ethernet(dst: MacAddr, src: MacAddr, kind: &[u8], payload: &[u8]) -> Vec<u8> {
    [&dst.0[..], &src.0, kind, payload].concat()
}

fn multicast6(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

fn udp4(src: Ipv4Addr, dst: Ipv4Addr, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut header = [0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&(20 + length).to_be_bytes());
    header[12..16].copy_from_slice(&src.octets());
    header[16..].copy_from_slice(&dst.octets());
    let mut sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    [&header[..], &from.to_be_bytes(), &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat()
}

fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, length[0], length[1], next, hops][..], &src.octets(), &dst.octets(), payload].concat()
}

/// RFC 2131, with the one option that makes it a DISCOVER.
fn dhcp_discover(mac: MacAddr) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..8].copy_from_slice(&[1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
    message[28..34].copy_from_slice(&mac.0);
    message.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    message.resize(300, 0);
    message
}
