//! Super-frames: what the kernel gives as one and we cut, seal, open and join again comes out byte for byte, whichever
//! end offloads, by whichever way, and on from there.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::Node;
use eps_actor::ids::UplinkId;
use eps_actor::io::netns::{Netns, can_make_networks, ping_once};
use eps_actor::io::udp::{RecvBatch, UdpUplink};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::Value;
use socket2::SockRef;

use crate::lab::{
    Capture, SOON, Turn, World, beside, counters, ends_within, finish_in, has_program, is_long, join, ping, run_in,
    state_of, text, until, wait_for_direct,
};

const MIB: u64 = 1 << 20;
const JUMBO: u16 = 8900;
const MTU: u16 = 1376;
/// Two of a hundred packets.
const LOSS: &str = "-A PREROUTING -i eth0 -m statistic --mode random --probability 0.02 -j DROP";

#[test]
fn tcp_and_udp_arrive_whole_where_both_ends_offload() {
    let Some(pair) = Pair::new(["--offload=true"; 2], &[], MTU) else { return };
    let (tcp, seen) = pair.carries_everything(if is_long() { 10 * 1024 * MIB / 4 } else { 4 * MIB });
    pair.assert_super_frames(&seen);
    let [ada, bob] = &seen.nodes;
    assert!(ada.sealed_whole > 0 && bob.sealed_whole > 0, "{}", seen.words());
    assert_eq!((ada.opened_whole, bob.opened_whole), (bob.sealed_whole, ada.sealed_whole), "{}", seen.words());
    println!("offload at both ends: {tcp}; {}", seen.words());
}

#[test]
fn super_frames_go_whole_while_nothing_is_lost_and_frame_by_frame_for_a_while_after_losses() {
    let Some(pair) = Pair::new(["--offload=true"; 2], &[], MTU) else { return };
    if !has_program("ethtool") || !has_program("iptables") || !pair.can_lose() {
        return;
    }
    let flows = [pair.ends4(), pair.ends6()];
    let mut rates = Vec::new();
    let start = Instant::now();
    // It is chance how many messages the losses hit before it is over.
    let seen = loop {
        assert!(start.elapsed() < 3 * SOON, "super-frames go whole in spite of losses: {rates:?}");
        pair.lose(true);
        rates.push(exchange_all(&flows, MIB, Writes::Large).0);
        pair.lose(false);
        let before = pair.look();
        exchange_all(&flows, 4 * MIB, Writes::Large);
        let seen = pair.since(&before);
        if seen.nodes.iter().all(|node| node.sealed_whole == 0) {
            break seen;
        }
    };
    seen.assert_nothing_dropped();
    // Packets are not joined on arrival here, so few frames are written as one.
    assert!(seen.nodes.iter().all(|node| node.sends * 4 < node.sent && node.reads * 2 < node.read), "{}", seen.words());
    let held = seen.words();
    until("super-frames to go whole again", || {
        let before = pair.look();
        exchange_all(&flows, MIB, Writes::Large);
        pair.since(&before).nodes.iter().all(|node| node.sealed_whole > 0)
    });
    println!("losses: TCP at {rates:.0?} Mbit/s with 2 % lost; then, without losses: {held}");
}

#[test]
fn tcp_and_udp_arrive_whole_where_only_the_first_offloads() {
    let Some(pair) = Pair::new(["--offload=true", "--offload=false"], &[], MTU) else { return };
    let (tcp, seen) = pair.carries_everything(4 * MIB);
    assert!(seen.nodes[0].reads * 2 < seen.nodes[0].read, "{}", seen.words());
    assert_eq!(seen.nodes[1].reads, seen.nodes[1].read, "the other reads frame by frame");
    assert_eq!(seen.nodes[1].writes, seen.nodes[1].written, "and writes them so");
    println!("offload at ada's end: {tcp}; {}", seen.words());
}

#[test]
fn tcp_and_udp_arrive_whole_where_only_the_second_offloads() {
    let Some(pair) = Pair::new(["--offload=false", "--offload=true"], &[], MTU) else { return };
    let (tcp, seen) = pair.carries_everything(4 * MIB);
    assert_eq!(seen.nodes[0].reads, seen.nodes[0].read, "one reads frame by frame");
    assert_eq!(seen.nodes[0].writes, seen.nodes[0].written, "and writes them so");
    assert!(seen.nodes[1].reads * 2 < seen.nodes[1].read, "{}", seen.words());
    println!("offload at bob's end: {tcp}; {}", seen.words());
}

#[test]
fn tcp_and_udp_arrive_whole_where_neither_end_offloads() {
    let Some(pair) = Pair::new(["--offload=false"; 2], &[], MTU) else { return };
    let (tcp, seen) = pair.carries_everything(4 * MIB);
    for node in &seen.nodes {
        assert_eq!((node.reads, node.writes), (node.read, node.written), "{}", seen.words());
    }
    println!("offload at neither end: {tcp}; {}", seen.words());
}

#[test]
fn tcp_and_udp_arrive_whole_by_relay() {
    let Some(pair) = Pair::new(["--offload=true"; 2], &["--direct=false"], MTU) else { return };
    assert_eq!(state_of(&pair.ada.node, "bob"), "relay");
    let before = counters(&pair.world.server);
    let (tcp, seen) = pair.carries_everything(4 * MIB);
    pair.assert_super_frames(&seen);
    assert_eq!(state_of(&pair.ada.node, "bob"), "relay");
    let after = counters(&pair.world.server);
    let [relayed, calls, dropped] =
        ["relayed_datagrams", "udp_tx_calls", "drops"].map(|name| number(&after, name) - number(&before, name));
    assert!(calls * 4 < relayed, "{relayed} relayed in {calls} calls");
    assert_eq!(dropped, 0, "{after}");
    println!("relayed: {tcp}; {}; the server relayed {relayed} datagrams in {calls} calls", seen.words());
}

#[test]
fn tcp_and_udp_arrive_whole_as_jumbo_frames() {
    let Some(pair) = Pair::new(["--offload=true"; 2], &["--mtu", "8900"], JUMBO) else { return };
    let (tcp, seen) = pair.carries_everything(8 * MIB);
    pair.assert_super_frames(&seen);
    println!("jumbo frames: {tcp}; {}", seen.words());
}

#[test]
fn a_vlan_carries_super_frames_too() {
    let Some(pair) = Pair::new(["--offload=true"; 2], &[], MTU) else { return };
    if !has_vlans() {
        return;
    }
    let before = pair.look();
    for (host, address) in [(&pair.ada, 1), (&pair.bob, 2)] {
        let ns = &host.node.ns;
        run_in(ns, "ip link add link eps0 name seven type vlan id 7");
        run_in(ns, &format!("ip addr add 10.7.0.{address}/24 dev seven"));
        run_in(ns, &format!("ip addr add fd07::{address}/64 dev seven nodad"));
        run_in(ns, "ip link set seven up");
    }
    let ends = |a: &str, b: &str| {
        let ends = [(&*pair.ada.node.ns, ip(a)), (&*pair.bob.node.ns, ip(b))];
        until("an answer in VLAN 7", || ping_once(ends[0].0, None, ends[1].1, Duration::from_secs(1)).is_some());
        ends
    };
    let flows = [ends("10.7.0.1", "10.7.0.2"), ends("fd07::1", "fd07::2")];
    let (rate, bytes) = exchange_all(&flows, 4 * MIB, Writes::Large);
    let [four, six] = flows;
    let bursts = udp_bursts(four, MTU) + udp_bursts(six, MTU);
    let seen = pair.since(&before);
    pair.assert_super_frames(&seen);
    println!("VLAN 7: {} MiB of TCP at {rate:.0} Mbit/s, {bursts} UDP datagrams; {}", bytes / MIB, seen.words());
}

#[test]
fn small_and_large_writes_mixed_arrive_whole() {
    let Some(pair) = Pair::new(["--offload=true"; 2], &[], MTU) else { return };
    let before = pair.look();
    let (rate, bytes) = exchange_all(&[pair.ends4(), pair.ends6(), pair.ends4()], 2 * MIB, Writes::Mixed);
    let seen = pair.since(&before);
    seen.assert_nothing_dropped();
    println!("mixed writes: {} MiB without delay at {rate:.0} Mbit/s; {}", bytes / MIB, seen.words());
    for (name, address) in [("IPv4", pair.bob.ip4), ("IPv6", pair.bob.ip6)] {
        if let Some(words) = iperf3(&pair.ada.node.ns, &pair.bob.node.ns, address) {
            println!("mixed writes: iperf3 over {name}: {words}");
        }
    }
}

#[test]
fn what_came_as_a_super_frame_leaves_a_router_well_cut_and_with_right_checksums() {
    for offload in [["--offload=true"; 2], ["--offload=false", "--offload=true"]] {
        let Some(pair) = Pair::new(offload, &[], MTU) else { return };
        if !has_program("ethtool") {
            return;
        }
        let third = third_host(&pair);
        let before = pair.look();
        let capture = Capture::start(&[(&third, "eth0")]);
        let flows = [
            [(&*pair.ada.node.ns, pair.ada.ip4), (&third, ip("10.9.0.2"))],
            [(&*pair.ada.node.ns, pair.ada.ip6), (&third, ip("fd09::2"))],
        ];
        for [(ns, _), (_, to)] in &flows {
            until("an answer from behind bob", || ping_once(ns, None, *to, Duration::from_secs(1)).is_some());
        }
        let (rate, bytes) = exchange_all(&flows, 4 * MIB, Writes::Large);
        let [four, six] = flows;
        let bursts = udp_bursts(four, MTU) + udp_bursts(six, MTU);
        let seen = pair.since(&before);
        for node in &seen.nodes {
            // Bob tells the others all his addresses; the probes of the one behind him come through the network itself.
            assert!(node.drops.iter().all(|(name, _)| name == "drop_overlay_loop"), "{:?}", node.drops);
        }
        let bob = &seen.nodes[1];
        assert!(bob.writes * 2 < bob.written, "bob's kernel was given super-frames: {}", seen.words());

        let frames = capture.frames();
        let longest = frames.iter().filter(|captured| !captured.outgoing).map(|captured| captured.frame.len()).max();
        let longest = longest.expect("frames");
        assert!(longest <= 1414, "a frame of {longest} bytes left bob");
        let sums = frames.iter().filter(|captured| !captured.outgoing).filter_map(|one| has_right_sum(&one.frame));
        let (right, wrong): (Vec<bool>, Vec<bool>) = sums.partition(|right| *right);
        assert!(wrong.is_empty() && right.len() > 10_000, "{} right sums, {} wrong ones", right.len(), wrong.len());
        let errors = checksum_errors(&third);
        assert!(errors.iter().all(|(_, count)| *count == 0), "{errors:?}");
        println!(
            "behind a router, ada with {}: {} MiB of TCP at {rate:.0} Mbit/s and {bursts} UDP datagrams; the longest of \
             {} frames had {longest} bytes; checksum errors: {errors:?}; {}",
            offload[0],
            bytes / MIB,
            frames.len(),
            seen.words()
        );
    }
}

/// Two clients that reach each other, the first with its options and the second with its.
struct Pair {
    ada: Host,
    bob: Host,
    mtu: u16,
    world: World,
    _turn: Turn,
}

struct Host {
    node: Node,
    ip4: IpAddr,
    ip6: IpAddr,
}

/// Where a connection ends.
pub type End<'a> = (&'a Netns, IpAddr);

impl Pair {
    /// `None` where namespaces cannot be made.
    fn new(own: [&str; 2], both: &[&str], mtu: u16) -> Option<Self> {
        if !can_make_networks() || !has_program("ip") {
            return None;
        }
        let turn = beside();
        let mut world = World::new();
        let nodes = ["ada", "bob"].map(|name| world.client(name));
        if mtu == JUMBO {
            for client in &nodes {
                run_in(&client.ns, "ip link set eth0 mtu 9000");
            }
            for port in ["port0", "port1", "port2", "lan"] {
                run_in(world.lan.switch(), &format!("ip link set {port} mtu 9000"));
            }
        }
        let line = world.start_server(&[]);
        let [a, b] = [0, 1].map(|number| join(&nodes[number], &line, &[&[own[number]], both].concat()));
        ping(&nodes[0], &nodes[1], b);
        ping(&nodes[1], &nodes[0], a);
        if !both.contains(&"--direct=false") {
            wait_for_direct(&nodes[0], "bob");
            wait_for_direct(&nodes[1], "ada");
        }
        let [ada, bob] = nodes;
        let [ada, bob] = [(ada, a), (bob, b)].map(|(node, ip4)| {
            let six = node.client_status().expect("a status").node.address6.expect("a lease");
            Host { node, ip4, ip6: ip(six.split('/').next().unwrap_or_default()) }
        });
        for (from, to) in [(&ada, &bob), (&bob, &ada)] {
            let answered = || ping_once(&from.node.ns, None, to.ip6, Duration::from_secs(1)).is_some();
            until("an answer over IPv6", answered);
        }
        Some(Self { ada, bob, mtu, world, _turn: turn })
    }

    fn ends4(&self) -> [End<'_>; 2] {
        [&self.ada, &self.bob].map(|host| (&*host.node.ns, host.ip4))
    }

    fn ends6(&self) -> [End<'_>; 2] {
        [&self.ada, &self.bob].map(|host| (&*host.node.ns, host.ip6))
    }

    /// TCP over both families, `bytes` in each direction of each, then bursts of UDP; nothing is lost.
    fn carries_everything(&self, bytes: u64) -> (String, Seen) {
        let before = self.look();
        let (rate, bytes) = exchange_all(&[self.ends4(), self.ends6()], bytes, Writes::Large);
        let mut datagrams = 0;
        for [one, other] in [self.ends4(), self.ends6()] {
            datagrams += udp_bursts([one, other], self.mtu) + udp_bursts([other, one], self.mtu);
        }
        let seen = self.since(&before);
        seen.assert_nothing_dropped();
        (format!("{} MiB of TCP at {rate:.0} Mbit/s, {datagrams} UDP datagrams", bytes / MIB), seen)
    }

    /// Whether packets can be lost at random here; says so if not.
    fn can_lose(&self) -> bool {
        let mut rule = Command::new("iptables");
        rule.args(["-w", "-t", "raw"]).args(LOSS.split_whitespace());
        let can = finish_in(&self.ada.node.ns, &mut rule).status.success();
        if can {
            self.lose(false);
            for host in [&self.ada, &self.bob] {
                run_in(&host.node.ns, "ethtool -K eth0 tso off gso off gro off tx-udp-segmentation off");
            }
        } else {
            println!("skipped: this kernel loses no packets at random");
        }
        can
    }

    /// Loses some of the packets that arrive at both, or none.
    fn lose(&self, some: bool) {
        for host in [&self.ada, &self.bob] {
            run_in(&host.node.ns, &format!("iptables -w -t raw {}", if some { LOSS } else { "-F PREROUTING" }));
        }
    }

    fn look(&self) -> [Value; 2] {
        [&self.ada, &self.bob].map(|host| counters(&host.node))
    }

    fn since(&self, before: &[Value; 2]) -> Seen {
        let after = self.look();
        let nodes = [0, 1].map(|which| {
            let grown = |name| number(&after[which], name) - number(&before[which], name);
            let all = after[which].as_object().expect("counters").keys();
            let drops = all.filter(|name| name.starts_with("drop_") && grown(name) > 0);
            Grown {
                read: grown("tap_rx_frames"),
                reads: grown("tap_rx_calls"),
                written: grown("tap_tx_frames"),
                writes: grown("tap_tx_calls"),
                sent: grown("udp_tx_datagrams"),
                sends: grown("udp_tx_calls"),
                sealed_whole: grown("whole_sealed"),
                opened_whole: grown("whole_opened"),
                drops: drops.map(|name| (name.clone(), grown(name))).collect(),
            }
        });
        Seen { nodes }
    }

    /// Both ends read, sent and wrote many frames at once.
    fn assert_super_frames(&self, seen: &Seen) {
        // A super-frame of jumbo frames has seven of them.
        let many = if self.mtu == JUMBO { 2 } else { 4 };
        for node in &seen.nodes {
            assert!(node.sends * many < node.sent && node.reads * many / 2 < node.read, "{}", seen.words());
            assert!(node.writes * many / 2 < node.written, "{}", seen.words());
        }
    }
}

/// What became of the counters of both.
struct Seen {
    nodes: [Grown; 2],
}

/// Frames, and in how many calls.
#[derive(Debug)]
struct Grown {
    read: u64,
    reads: u64,
    written: u64,
    writes: u64,
    sent: u64,
    sends: u64,
    sealed_whole: u64,
    opened_whole: u64,
    drops: Vec<(String, u64)>,
}

impl Seen {
    fn assert_nothing_dropped(&self) {
        for node in &self.nodes {
            assert!(node.drops.is_empty(), "{:?}", node.drops);
        }
    }

    fn words(&self) -> String {
        let [ada, bob] = self.nodes.each_ref().map(|node| {
            let Grown { read, reads, written, writes, sent, sends, sealed_whole, .. } = node;
            format!(
                "{read} frames in {reads} reads, {sealed_whole} super-frames sealed whole, {sent} datagrams in {sends} sends, \
                 {written} in {writes} writes"
            )
        });
        format!("ada: {ada}; bob: {bob}")
    }
}

/// How a program writes to its socket.
#[derive(Clone, Copy)]
pub enum Writes {
    Large,
    /// From a byte to 64 KiB, each sent at once (TCP_NODELAY).
    Mixed,
}

/// A TCP connection for each pair of ends, all at once, with pseudo-random bytes in both directions. The rate of all
/// in Mbit/s, and their bytes.
pub fn exchange_all(flows: &[[End<'_>; 2]], bytes: u64, writes: Writes) -> (f64, u64) {
    let start = Instant::now();
    thread::scope(|scope| {
        for (number, ends) in (0..).zip(flows) {
            scope.spawn(move || exchange(*ends, bytes, writes, number * 2));
        }
    });
    let total = bytes * 2 * flows.len() as u64;
    (total as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e6, total)
}

fn exchange([(here, from), (there, to)]: [End<'_>; 2], bytes: u64, writes: Writes, seed: u64) {
    let listener = there.run(|| TcpListener::bind((to, 0))).expect("a socket");
    SockRef::from(&listener).set_read_timeout(Some(SOON)).expect("a time-out");
    let peer = listener.local_addr().expect("an address");
    let one = here.run(|| TcpStream::connect_timeout(&peer, SOON)).unwrap_or_else(|error| panic!("{peer}: {error}"));
    let (other, client) = listener.accept().expect("a connection");
    assert_eq!(client.ip(), from);
    for stream in [&one, &other] {
        stream.set_nodelay(matches!(writes, Writes::Mixed)).expect("an option");
        stream.set_read_timeout(Some(SOON)).expect("a time-out");
        stream.set_write_timeout(Some(SOON)).expect("a time-out");
    }
    let (one, other) = (&one, &other);
    thread::scope(|scope| {
        for (from, to, seed) in [(one, other, seed), (other, one, seed + 1)] {
            scope.spawn(move || send_stream(from, seed, bytes, writes));
            scope.spawn(move || check_stream(to, seed, bytes));
        }
    });
}

const BLOCK: usize = 64 * 1024;

/// The pseudo-random bytes of a seed, a block at a time.
struct Blocks {
    random: StdRng,
    left: u64,
    block: Vec<u8>,
}

impl Blocks {
    fn new(seed: u64, bytes: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), left: bytes, block: vec![0; BLOCK] }
    }

    fn next(&mut self) -> Option<&[u8]> {
        self.random.fill_bytes(&mut self.block);
        let length = self.left.min(BLOCK as u64);
        self.left -= length;
        (length > 0).then_some(&self.block[..length as usize])
    }
}

fn send_stream(mut to: &TcpStream, seed: u64, bytes: u64, writes: Writes) {
    let mut blocks = Blocks::new(seed, bytes);
    let mut sizes = StdRng::seed_from_u64(!seed);
    while let Some(mut block) = blocks.next() {
        while !block.is_empty() {
            let size = match writes {
                Writes::Large => BLOCK,
                Writes::Mixed if sizes.random_range(0..4) > 0 => sizes.random_range(1..2000),
                Writes::Mixed => sizes.random_range(2000..=BLOCK),
            };
            let (now, later) = block.split_at(size.min(block.len()));
            to.write_all(now).unwrap_or_else(|error| panic!("sending: {error}"));
            block = later;
        }
    }
    to.shutdown(std::net::Shutdown::Write).expect("shut down");
}

fn check_stream(mut from: &TcpStream, seed: u64, bytes: u64) {
    let mut blocks = Blocks::new(seed, bytes);
    let mut got = vec![0; BLOCK];
    let mut at = 0;
    while let Some(block) = blocks.next() {
        let got = &mut got[..block.len()];
        from.read_exact(got).unwrap_or_else(|error| panic!("after {at} bytes: {error}"));
        if got != block {
            let wrong = (0..got.len()).find(|index| got[*index] != block[*index]).expect("they differ");
            panic!("byte {} is wrong", at + wrong);
        }
        at += block.len();
    }
    assert_eq!(from.read(&mut got).expect("the end"), 0, "more than was sent");
}

/// Segmented sends by three sockets at once, of every number and many sizes: each datagram arrives as it was, once and
/// in the order of its flow. How many.
fn udp_bursts([(here, from), (there, to)]: [End<'_>; 2], mtu: u16) -> usize {
    let bind = |ns: &Netns, address: IpAddr| {
        let id = if address.is_ipv4() { UplinkId::UDP4 } else { UplinkId::UDP6 };
        ns.run(|| UdpUplink::bind(id, SocketAddr::new(address, 0), 4 << 20)).expect("a socket")
    };
    let senders = [0; 3].map(|_| bind(here, from));
    let receiver = bind(there, to);
    let largest = usize::from(mtu) - if from.is_ipv4() { 28 } else { 48 };
    let mut random = StdRng::seed_from_u64(u64::from(mtu));
    let mut total = 0;
    for count in [1, 2, 43, 64] {
        for size in [1, 2, 17, 600, 999, 1301, largest - 1, largest] {
            for last in [size, size.div_ceil(2), 1] {
                let length = (count - 1) * size + last;
                // The largest UDP payload; with IPv6 headers, too.
                if length > 65_487 {
                    continue;
                }
                let sent = senders.each_ref().map(|sender| {
                    let mut bytes = vec![0; length];
                    random.fill_bytes(&mut bytes);
                    sender.send(receiver.local_addr(), &bytes, Some(size)).unwrap_or_else(|error| {
                        panic!("{count} datagrams of {size} bytes: {error}");
                    });
                    (sender.local_addr(), bytes)
                });
                let received = receive(&receiver, count * senders.len());
                for (sender, bytes) in &sent {
                    let flow = received.iter().filter(|(from, _)| from == sender).map(|(_, datagram)| &datagram[..]);
                    let flow: Vec<_> = flow.collect();
                    let lengths: Vec<_> = flow.iter().map(|datagram| datagram.len()).collect();
                    let what = format!("{count} datagrams of {size} bytes, the last of {last}, came as {lengths:?}");
                    assert!(flow == bytes.chunks(size).collect::<Vec<_>>(), "{what}");
                }
                total += received.len();
            }
        }
    }
    // What came twice would be here before this one.
    senders[0].send(receiver.local_addr(), b"the end", None).expect("sent");
    assert_eq!(receive(&receiver, 1), [(senders[0].local_addr(), b"the end".to_vec())]);
    total
}

/// Waits for so many datagrams.
fn receive(uplink: &UdpUplink, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut batch = RecvBatch::new();
    let mut received = Vec::new();
    let start = Instant::now();
    while received.len() < count {
        match uplink.try_recv(&mut batch) {
            Ok(_) => {
                let (bytes, trains) = batch.trains();
                for train in trains {
                    received.extend(train.datagrams().map(|range| (train.from, bytes[range].to_vec())));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(start.elapsed() < SOON, "{} of {count} datagrams came", received.len());
                thread::sleep(Duration::from_micros(200));
            }
            Err(error) => panic!("{error}"),
        }
    }
    received
}

/// A host behind bob, whose cable has neither segmentation nor checksums of its own.
fn third_host(pair: &Pair) -> Netns {
    let third = Netns::new().expect("a namespace");
    let (ada, bob) = (&pair.ada.node.ns, &pair.bob.node.ns);
    Netns::connect((bob, "lan0", "10.9.0.1/24"), (&third, "eth0", "10.9.0.2/24")).expect("a cable");
    for (ns, ifname, address) in [(&**bob, "lan0", 1), (&third, "eth0", 2)] {
        run_in(ns, &format!("ip link set {ifname} mtu 1400"));
        run_in(ns, &format!("ip addr add fd09::{address}/64 dev {ifname} nodad"));
        run_in(ns, &format!("ethtool -K {ifname} tso off gso off tx off tx-udp-segmentation off"));
    }
    bob.sysctl("ipv4/ip_forward", "1").expect("forwarding");
    bob.sysctl("ipv6/conf/all/forwarding", "1").expect("forwarding");
    run_in(ada, &format!("ip route add 10.9.0.0/24 via {}", pair.bob.ip4));
    run_in(ada, &format!("ip route add fd09::/64 via {}", pair.bob.ip6));
    run_in(&third, "ip route add default via 10.9.0.1");
    run_in(&third, "ip route add default via fd09::1");
    third
}

/// Whether the kernel makes VLAN interfaces; says so if not.
fn has_vlans() -> bool {
    let ns = Netns::new().expect("a namespace");
    let mut ip = Command::new("ip");
    ip.args(["link", "add", "link", "lo", "name", "seven", "type", "vlan", "id", "7"]);
    let ended = finish_in(&ns, &mut ip);
    let has = !text(&ended.stderr).contains("Unknown device type");
    if !has {
        println!("skipped: this kernel has no VLAN interfaces");
    }
    has
}

/// What a kernel has counted of wrong checksums, by protocol.
fn checksum_errors(ns: &Netns) -> Vec<(String, u64)> {
    let read = |path: &str| ns.run(|| std::fs::read_to_string(path)).expect("a file");
    let (four, six) = (read("/proc/thread-self/net/snmp"), read("/proc/thread-self/net/snmp6"));
    let lines: Vec<&str> = four.lines().collect();
    let mut errors = Vec::new();
    for pair in lines.chunks(2) {
        let [names, values] = pair else { continue };
        let protocol = names.split(':').next().unwrap_or_default();
        let at = names.split_whitespace().position(|name| name == "InCsumErrors");
        if let Some(value) = at.and_then(|at| values.split_whitespace().nth(at)) {
            errors.push((protocol.to_owned(), value.parse().expect("a number")));
        }
    }
    let sixes = six.lines().filter_map(|line| line.split_once(char::is_whitespace));
    errors.extend(
        sixes
            .filter(|(name, _)| name.ends_with("InCsumErrors"))
            .map(|(name, value)| (name.to_owned(), value.trim().parse().expect("a number"))),
    );
    assert!(errors.iter().any(|(name, _)| name == "Tcp") && errors.iter().any(|(name, _)| name == "Udp6InCsumErrors"));
    errors
}

/// Whether the checksum of a TCP segment or UDP datagram is that of its bytes (RFC 1071); `None` of anything else.
fn has_right_sum(frame: &[u8]) -> Option<bool> {
    let (protocol, addresses, packet) = match frame.get(12..14)? {
        [8, 0] => {
            let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            (frame[23], &frame[26..34], frame.get(14 + usize::from(frame[14] & 15) * 4..end)?)
        }
        [0x86, 0xdd] => {
            let end = 54 + usize::from(u16::from_be_bytes([frame[18], frame[19]]));
            (frame[20], &frame[22..54], frame.get(54..end)?)
        }
        _ => return None,
    };
    if !matches!(protocol, 6 | 17) {
        return None;
    }
    let words = addresses.chunks(2).chain(packet.chunks(2));
    let words = words.map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |low| u64::from(*low)));
    let mut sum = words.sum::<u64>() + u64::from(protocol) + packet.len() as u64;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    Some(sum == 0xffff)
}

/// Two seconds of it, in words; `None` where it is not installed.
fn iperf3(from: &Netns, to: &Netns, address: IpAddr) -> Option<String> {
    if !has_program("iperf3") {
        return None;
    }
    let piped = |line: &str| {
        let mut command = Command::new("iperf3");
        command.args(line.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    };
    let mut server = to.spawn(&mut piped("-s")).expect("started");
    let mut output = None;
    until("iperf3 to answer", || {
        let client = from.spawn(&mut piped(&format!("-c {address} -t 2 -J --get-server-output"))).expect("started");
        let ended = ends_within(3 * SOON, client).ok();
        output = ended.filter(|ended| ended.status.success()).map(|ended| ended.stdout);
        output.is_some()
    });
    // Told to serve once only, it does not always end.
    server.kill().expect("killed");
    server.wait().expect("waited");
    let report: Value = serde_json::from_slice(&output?).expect("JSON");
    let (sent, received) = (&report["end"]["sum_sent"], &report["end"]["sum_received"]);
    let server = report["server_output_text"].as_str().unwrap_or_default().lines().count();
    Some(format!(
        "{:.0} Mbit/s received, {} retransmits, {server} lines from its server",
        received["bits_per_second"].as_f64()? / 1e6,
        sent["retransmits"]
    ))
}

pub fn number(counters: &Value, name: &str) -> u64 {
    counters[name].as_u64().unwrap_or_else(|| panic!("no {name} in {counters}"))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}
