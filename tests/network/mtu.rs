//! Paths that carry less than Ethernet does and say nothing of it: routers whose ICMP is filtered, and machines that
//! take no IP fragments. Everything passes all the same, in datagrams that fit.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::Node;
use eps_actor::config::Role;
use eps_actor::io::netns::{Lan, Netns, can_make_networks, ping_once};
use socket2::SockRef;

use crate::lab::{
    Capture, SOON, Turn, World, alone, beside, counter, finish_in, has_program, join, node, packets, ping, run_in,
    text, until, wait_for_direct,
};
use crate::offload::{End, Writes, exchange_all};

const MIB: u64 = 1 << 20;
const SMALL: u16 = 1280;

/// The IP version between the two.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outer {
    Four,
    Six,
}

/// A member on the switch, one behind a router, and whatever the router's far side carries.
pub struct Narrow {
    pub ada: Node,
    pub bob: Node,
    pub ip4: [IpAddr; 2],
    pub ip6: [IpAddr; 2],
    router: Arc<Netns>,
    outer: Outer,
    _lan: Lan,
    _world: World,
    _turn: Turn,
}

impl Narrow {
    /// Both reach each other directly. `None` where namespaces cannot be made.
    pub fn new(mtu: u16, options: &[&str], turn: fn() -> Turn) -> Option<Self> {
        Self::with_outer(Outer::Four, mtu, options, turn)
    }

    fn with_outer(outer: Outer, mtu: u16, options: &[&str], turn: fn() -> Turn) -> Option<Self> {
        if !can_make_networks() || !["ip", "ethtool", "iptables", "ip6tables"].into_iter().all(has_program) {
            return None;
        }
        let turn = turn();
        let mut world = World::new();
        let (near, router, far) = (world.host(), world.host(), Arc::new(Netns::new().expect("a namespace")));
        let mut lan = Lan::new().expect("a switch");
        lan.plug(&router, "lan", "203.0.113.1/24").expect("a cable");
        lan.plug(&far, "eth0", "203.0.113.2/24").expect("a cable");
        far.add_default_route(Ipv4Addr::new(203, 0, 113, 1)).expect("a route");
        router.sysctl("ipv4/ip_forward", "1").expect("a setting");
        for ns in [&near, &world.server.ns] {
            run_in(ns, "ip route add 203.0.113.0/24 via 198.51.100.3");
        }
        if outer == Outer::Six {
            for (ns, ifname, address) in [
                (&near, "eth0", "2001:db8:1::2"),
                (&router, "eth0", "2001:db8:1::1"),
                (&router, "lan", "2001:db8:2::1"),
                (&far, "eth0", "2001:db8:2::2"),
            ] {
                run_in(ns, &format!("ip addr add {address}/64 dev {ifname} nodad"));
            }
            router.sysctl("ipv6/conf/all/forwarding", "1").expect("a setting");
            run_in(&near, "ip route add 2001:db8:2::/64 via 2001:db8:1::1");
            run_in(&far, "ip route add default via 2001:db8:2::1");
            // Only the server is reached over IPv4.
            run_in(&router, "iptables -A FORWARD -s 198.51.100.2 -j DROP");
            run_in(&router, "iptables -A FORWARD -d 198.51.100.2 -j DROP");
        }
        // Nobody hears what a router says of sizes, and nobody takes what it cuts.
        run_in(&router, "iptables -A OUTPUT -p icmp --icmp-type fragmentation-needed -j DROP");
        run_in(&router, "ip6tables -A OUTPUT -p icmpv6 --icmpv6-type packet-too-big -j DROP");
        for ns in [&near, &far] {
            run_in(ns, "iptables -t raw -A PREROUTING -i eth0 -f -j DROP");
            // Else the virtual cable takes trains of datagrams without a look at their size.
            run_in(ns, "ethtool -K eth0 tso off gso off gro off tx-udp-segmentation off");
        }
        let narrow = |ada, bob, ip4, ip6, world| Self {
            ada,
            bob,
            ip4,
            ip6,
            router,
            outer,
            _lan: lan,
            _world: world,
            _turn: turn,
        };
        let [ada, bob] = [("ada", near), ("bob", far)].map(|(name, ns)| node(name, Role::Client, ns, &world.directory));
        let line = world.start_server(&[]);
        let mtu = mtu.to_string();
        let options = [&["--mtu", &mtu], options].concat();
        let ip4 = [&ada, &bob].map(|client| join(client, &line, &options));
        let ip6 = [&ada, &bob].map(|client| {
            let six = client.client_status().expect("a status").node.address6.expect("a lease");
            six.split('/').next().expect("an address").parse().expect("an address")
        });
        Some(narrow(ada, bob, ip4, ip6, world))
    }

    /// What the router's far side carries, in both directions.
    pub fn carry(&self, packet: u16) {
        run_in(&self.router, &format!("ip link set lan mtu {packet}"));
    }

    pub fn meet(&self) {
        ping(&self.ada, &self.bob, self.ip4[1]);
        wait_for_direct(&self.ada, "bob");
        wait_for_direct(&self.bob, "ada");
        if self.outer == Outer::Six {
            let path = self.ada.client_status().expect("a status").peer("bob").and_then(|bob| bob.path.clone());
            assert!(path.as_deref().is_some_and(|path| path.starts_with('[')), "{path:?}");
        }
    }

    fn path_mtu(&self) -> [Option<u16>; 2] {
        [(&self.ada, "bob"), (&self.bob, "ada")].map(|(node, peer)| {
            let status = node.client_status().expect("a status");
            status.peer(peer).and_then(|peer| peer.path_mtu)
        })
    }

    pub fn until_known(&self, packet: u16) {
        until(&format!("both to know {packet}"), || self.path_mtu() == [Some(packet); 2]);
    }

    fn ends(&self, [a, b]: [IpAddr; 2]) -> [End<'_>; 2] {
        [(&*self.ada.ns, a), (&*self.bob.ns, b)]
    }

    fn flows(&self) -> [[End<'_>; 2]; 2] {
        [self.ends(self.ip4), self.ends(self.ip6)]
    }

    fn answers6(&self) {
        let answered = || ping_once(&self.ada.ns, None, self.ip6[1], Duration::from_secs(1)).is_some();
        until("an answer over IPv6", answered);
    }

    /// IP fragments that both machines and the router have made.
    fn fragments(&self) -> u64 {
        [&*self.ada.ns, &*self.bob.ns, &*self.router].into_iter().map(fragments_made).sum()
    }

    /// TCP in both directions over both versions inside, while both sides of the router are watched: fits and is whole.
    fn assert_all_fits(&self) {
        let before = self.fragments();
        let capture = Capture::start(&[(&self.router, "eth0"), (&self.router, "lan")]);
        let (rate, bytes) = exchange_all(&self.flows(), MIB / 2, Writes::Large);
        let frames = capture.frames();
        let outer = frames.iter().filter_map(|captured| Packet::parse(&captured.frame));
        let (mut seen, mut longest) = (0, 0);
        for packet in outer {
            assert!(!packet.is_fragment, "a fragment of {} octets", packet.length);
            if !packet.is_control {
                (seen, longest) = (seen + 1, longest.max(packet.length));
            }
        }
        assert_eq!(self.fragments(), before, "fragments were made");
        assert!(seen > 100 && longest <= usize::from(SMALL), "{seen} packets, the longest of {longest}");
        println!(
            "{} KiB at {rate:.0} Mbit/s in {seen} packets, the longest of {longest} octets, no fragment",
            bytes >> 10
        );
    }
}

/// An IP packet on a wire.
struct Packet {
    length: usize,
    is_fragment: bool,
    /// Nothing of a frame: a probe may ask for any size.
    is_control: bool,
}

impl Packet {
    /// `None` of anything but UDP and fragments.
    fn parse(frame: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(usize::from(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?])));
        let is_control = |at: usize| frame.get(at).is_some_and(|kind| *kind == 0xe1);
        match word(12)? {
            0x0800 => {
                let is_fragment = word(20)? & 0x3fff != 0;
                (is_fragment || frame[23] == 17).then_some(Self {
                    length: word(16)?,
                    is_fragment,
                    is_control: is_control(42),
                })
            }
            0x86dd => {
                let is_fragment = *frame.get(20)? == 44;
                (is_fragment || frame[20] == 17).then_some(Self {
                    length: word(18)? + 40,
                    is_fragment,
                    is_control: is_control(62),
                })
            }
            _ => None,
        }
    }
}

/// What a kernel has counted of fragments it made.
fn fragments_made(ns: &Netns) -> u64 {
    let read = |path: &str| ns.run(|| std::fs::read_to_string(path)).expect("a file");
    let (four, six) = (read("/proc/thread-self/net/snmp"), read("/proc/thread-self/net/snmp6"));
    let mut lines = four.lines().filter(|line| line.starts_with("Ip:"));
    let [names, values] = [lines.next(), lines.next()].map(|line| line.expect("a line").split_whitespace());
    let four: u64 = names
        .zip(values)
        .find_map(|(name, value)| (name == "FragCreates").then(|| value.parse().expect("a number")))
        .expect("a counter");
    let mut six = six.lines().filter(|line| line.starts_with("Ip6FragCreates"));
    let six = six.next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).expect("a counter");
    four + six
}

#[test]
fn a_path_of_1280_octets_that_says_nothing_carries_tcp_from_the_start() {
    for (outer, mtu) in [(Outer::Four, 1376), (Outer::Six, 1500), (Outer::Four, 1500), (Outer::Six, 1376)] {
        let Some(narrow) = Narrow::with_outer(outer, mtu, &[], beside) else { return };
        narrow.carry(SMALL);
        narrow.meet();
        let start = Instant::now();
        let (rate, bytes) = exchange_all(&[narrow.ends(narrow.ip4)], MIB, Writes::Large);
        let took = start.elapsed();
        assert!(took < SOON, "{took:?}");
        println!(
            "M-MTU: IPv{outer:?} outside, device of {mtu}: {} KiB at {rate:.0} Mbit/s at once, in {took:.1?}",
            bytes >> 10
        );
        narrow.until_known(SMALL);
        narrow.answers6();
        narrow.assert_all_fits();
    }
}

#[test]
fn f_27_tcp_goes_on_when_the_path_falls_to_1280_octets_and_nobody_says_so() {
    for outer in [Outer::Four, Outer::Six] {
        let Some(narrow) = Narrow::with_outer(outer, 1376, &[], alone) else { return };
        narrow.meet();
        narrow.answers6();
        narrow.until_known(1500);
        let fallen = &Fallen::default();
        let gaps = thread::scope(|scope| {
            let flows = narrow.flows().map(|[one, other]| {
                [[one, other], [other, one]].map(|ends| scope.spawn(move || longest_gap(ends, fallen)))
            });
            until("some bytes", || fallen.flowing.load(Relaxed) >= 4);
            thread::sleep(Duration::from_secs(1));
            narrow.carry(SMALL);
            fallen.now.store(true, Relaxed);
            flows.map(|flow| flow.map(|gap| gap.join().expect("it went on")))
        });
        narrow.until_known(SMALL);
        println!("F-27: IPv{outer:?} outside: the longest gaps of IPv4 and IPv6, there and back: {gaps:.1?}");
        let longest = gaps.iter().flatten().max().expect("four");
        assert!(*longest <= Duration::from_secs(10), "{gaps:?}");
        narrow.assert_all_fits();
    }
}

#[derive(Default)]
struct Fallen {
    /// Connections that carry.
    flowing: std::sync::atomic::AtomicUsize,
    now: AtomicBool,
}

/// Sends over TCP until half a megabyte has come after the fall; the longest time without a byte from then on.
fn longest_gap([(here, from), (there, to)]: [End<'_>; 2], fallen: &Fallen) -> Duration {
    const LIMIT: Duration = Duration::from_secs(30);
    let listener = there.run(|| TcpListener::bind((to, 0))).expect("a socket");
    let peer = listener.local_addr().expect("an address");
    let mut sender =
        here.run(|| TcpStream::connect_timeout(&peer, SOON)).unwrap_or_else(|error| panic!("{peer}: {error}"));
    let (mut receiver, client) = listener.accept().expect("a connection");
    assert_eq!(client.ip(), from);
    receiver.set_read_timeout(Some(LIMIT)).expect("a time-out");
    sender.set_write_timeout(Some(LIMIT)).expect("a time-out");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                if let Err(error) = sender.write_all(&[0x5a; 16 << 10]) {
                    assert!(done.load(Relaxed), "sending: {error}");
                }
                // Full speed is not the question, and others share the machine.
                thread::sleep(Duration::from_millis(4));
            }
        });
        let mut buffer = [0; 64 << 10];
        let (mut last, mut longest, mut after) = (Instant::now(), Duration::ZERO, 0);
        let mut flowing = false;
        while after < 512 << 10 {
            let count = receiver.read(&mut buffer).unwrap_or_else(|error| panic!("receiving: {error}"));
            assert!(count > 0, "the end");
            if !std::mem::replace(&mut flowing, true) {
                fallen.flowing.fetch_add(1, Relaxed);
            }
            if fallen.now.load(Relaxed) {
                (longest, after) = (longest.max(last.elapsed()), after + count);
            }
            last = Instant::now();
        }
        done.store(true, Relaxed);
        // What still waits to be sent need not come.
        drop(receiver);
        longest
    })
}

#[test]
fn hosts_are_told_what_fits_and_what_listens_to_nothing_passes_in_pieces() {
    let Some(narrow) = Narrow::new(1500, &[], beside) else { return };
    narrow.carry(SMALL);
    narrow.meet();
    narrow.until_known(SMALL);
    narrow.answers6();
    // The search may go on for a moment after the size is known; hosts are told when it is over.
    for (from, to, fits) in [(narrow.ip4[0], narrow.ip4[1], 1206), (narrow.ip6[0], narrow.ip6[1], SMALL)] {
        let sender = narrow.ada.ns.run(|| UdpSocket::bind((from, 0))).expect("a socket");
        let receiver = narrow.bob.ns.run(|| UdpSocket::bind((to, 0))).expect("a socket");
        receiver.set_read_timeout(Some(SOON)).expect("a time-out");
        let length = 1500 - if to.is_ipv4() { 28 } else { 48 };
        let place = receiver.local_addr().expect("an address");
        let mut buffer = [0; 2000];
        let mut sent = 0;
        // Nothing is lost while it is told, and after.
        until("the machine to believe what fits", || {
            sender.send_to(&vec![1; length], place).expect("sent");
            assert_eq!(receiver.recv(&mut buffer).expect("it comes"), length);
            sent += 1;
            believed(&narrow.ada.ns, to) == Some(fits)
        });
        println!("{to}: packets of {fits} octets are known to fit after {sent} of 1500");
        sender.send_to(&vec![1; length], place).expect("sent");
        assert_eq!(receiver.recv(&mut buffer).expect("it comes"), length);
    }
    assert!(counter(&narrow.ada, "too_big_told") > 0);

    // What is no IP knows of no sizes.
    let before = narrow.fragments();
    let [ada, bob] = [&narrow.ada, &narrow.bob].map(|node| packets(&node.ns, "eps0"));
    let head = [&mac_of(&narrow.bob)[..], &mac_of(&narrow.ada), &[0x88, 0xb5]].concat();
    for length in [60, 1200, 1220, 1221, 1400, 1514] {
        let mut frame = head.clone();
        frame.resize(length, length as u8);
        ada.send(&frame).expect("sent");
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < SOON, "a frame of {length} octets is lost");
            let captured = bob.recv(Duration::from_millis(200)).expect("the interface is there");
            if captured.is_some_and(|captured| captured.frame == frame) {
                break;
            }
        }
    }
    // To all, too.
    let mut frame = [&[0xff; 6][..], &head[6..]].concat();
    frame.resize(1514, 7);
    ada.send(&frame).expect("sent");
    until("a long broadcast", || {
        let captured = bob.recv(Duration::from_millis(200)).expect("the interface is there");
        captured.is_some_and(|captured| captured.frame == frame)
    });
    let (cut, joined) = (counter(&narrow.ada, "cut_frames"), counter(&narrow.bob, "joined_frames"));
    assert!(cut >= 4 && joined >= 4, "{cut} cut, {joined} joined");
    assert_eq!(narrow.fragments(), before);
    println!("frames of every length pass: {cut} cut, {joined} put together, none by IP");
}

fn mac_of(node: &Node) -> [u8; 6] {
    let mac = node.client_status().expect("a status").node.mac.expect("a device");
    let parsed: eps_actor::ids::MacAddr = mac.parse().expect("an address");
    parsed.0
}

/// The size of packets that a machine believes a destination takes, if it was told one.
fn believed(ns: &Netns, to: IpAddr) -> Option<u16> {
    let output = finish_in(ns, Command::new("ip").args(["route", "get", &to.to_string()]));
    let answer = text(&output.stdout);
    let mut words = answer.split_whitespace();
    words.find(|word| *word == "mtu")?;
    words.next()?.parse().ok()
}

/// The largest segment that the SYN of a connection from ada names when it comes to bob.
pub fn named_at_bob(narrow: &Narrow) -> u16 {
    let watch = packets(&narrow.bob.ns, "eps0");
    let listener = narrow.bob.ns.run(|| TcpListener::bind((narrow.ip4[1], 0))).expect("a socket");
    SockRef::from(&listener).set_read_timeout(Some(SOON)).expect("a time-out");
    let place = listener.local_addr().expect("an address");
    let stream = narrow.ada.ns.run(|| TcpStream::connect_timeout(&place, SOON)).expect("a connection");
    drop(stream);
    let start = Instant::now();
    while start.elapsed() < SOON {
        let captured = match watch.recv(Duration::from_millis(200)) {
            Ok(captured) => captured,
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        };
        let Some(frame) = captured.map(|captured| captured.frame) else { continue };
        // Linux puts the size first.
        if frame.len() >= 58 && frame[12..14] == [8, 0] && frame[23] == 6 && frame[47] == 2 && frame[54..56] == [2, 4] {
            return u16::from_be_bytes([frame[56], frame[57]]);
        }
    }
    panic!("no SYN");
}
