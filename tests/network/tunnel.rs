//! `eps-actor tunnel` on two machines with two cables between them: the seed's example, the vectors of the real program,
//! paths that fail in every way, noise, and our own protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::Directory;
use eps_actor::io::control_socket::request;
use eps_actor::io::netns::{Netns, can_make_networks, ping_once};
use eps_actor::io::signals::terminate;
use eps_actor::proto::tunnel::KEEPALIVE;
use eps_actor::wire::checksum::sum;
use serde_json::{Value, json};

use crate::lab::{
    BIN, Capture, SOON, alone, beside, finish_in, has_program, is_long, packets, resident_kib, run_in, text,
    udp_payload, until,
};

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/multi_tun");
/// The seed's example, as it is printed there but for the program's name.
const SERVER: &str = "-l 10.42.42.1 -s 0.0.0.0 -p 5678";
const CLIENT: &str = "-l 10.42.42.2 -c 192.168.123.2:192.168.123.1,10.0.0.2:10.0.0.1 -p 5678";

/// Two machines and two cables, with the seed's addresses.
struct World {
    server: Netns,
    client: Netns,
    directory: Directory,
}

impl World {
    fn new() -> Self {
        let (server, client) = (Netns::new().expect("a namespace"), Netns::new().expect("a namespace"));
        for (number, cable) in ["192.168.123", "10.0.0"].into_iter().enumerate() {
            let (here, there) = (format!("{cable}.1/24"), format!("{cable}.2/24"));
            let name = format!("eth{number}");
            Netns::connect((&server, &name, &here), (&client, &name, &there)).expect("a cable");
        }
        Self { server, client, directory: Directory::new().expect("a directory") }
    }

    fn start<'w>(&'w self, ns: &'w Netns, name: &str, options: &str) -> Tunnel<'w> {
        Tunnel::start(ns, self.directory.path().join(name), options)
    }

    /// Both ends of the seed's example, up.
    fn example(&self) -> (Tunnel<'_>, Tunnel<'_>) {
        // By its old name, it needs no other word than the seed's.
        let link = self.directory.path().join("multi_tun");
        if !link.exists() {
            symlink(BIN, &link).expect("a link");
        }
        let start = |ns, name: &str, options| {
            Tunnel::start_as(Command::new(&link), ns, self.directory.path().join(name), options)
        };
        let (server, client) = (start(&self.server, "server", SERVER), start(&self.client, "client", CLIENT));
        until("both paths at the server", || server.up() == 2);
        (server, client)
    }

    fn pair(&self, server: &str, client: &str) -> (Tunnel<'_>, Tunnel<'_>) {
        let server = self.start(&self.server, "server", &format!("{SERVER} {server}"));
        let client = self.start(&self.client, "client", &format!("{CLIENT} {client}"));
        until("both paths at the server", || server.up() == 2);
        (server, client)
    }

    /// A file with a secret.
    fn secret(&self, name: &str, secret: &str) -> String {
        let path = self.directory.path().join(name);
        fs::write(&path, format!("{secret}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        path.display().to_string()
    }
}

/// One end, running.
struct Tunnel<'w> {
    ns: &'w Netns,
    child: Child,
    control: PathBuf,
    log: PathBuf,
}

impl<'w> Tunnel<'w> {
    fn start(ns: &'w Netns, path: PathBuf, options: &str) -> Self {
        let mut command = Command::new(BIN);
        command.arg("tunnel");
        Self::start_as(command, ns, path, options)
    }

    fn start_as(mut command: Command, ns: &'w Netns, path: PathBuf, options: &str) -> Self {
        let (control, log) = (path.with_extension("sock"), path.with_extension("log"));
        command.args(options.split_whitespace()).arg("--control").arg(&control);
        let stderr = File::options().create(true).append(true).open(&log).expect("a log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let child = ns.spawn(&mut command).expect("started");
        let tunnel = Self { ns, child, control, log };
        until(&format!("an answer from {options:?}"), || tunnel.ask("status").is_some());
        tunnel
    }

    fn ask(&self, command: &str) -> Option<Value> {
        request(&self.control, &json!({ "command": command }), Duration::from_secs(3)).ok()
    }

    fn status(&self) -> Value {
        self.ask("status").unwrap_or_else(|| panic!("no status: {}", self.told()))
    }

    fn paths(&self) -> Vec<Value> {
        self.status()["paths"].as_array().expect("paths").clone()
    }

    /// How many paths are heard.
    fn up(&self) -> usize {
        self.paths().iter().filter(|path| path["state"] == "up").count()
    }

    fn counter(&self, name: &str) -> u64 {
        self.status()["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}"))
    }

    fn told(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().expect("asked").is_none()
    }

    /// Asks it to end, and how it did.
    fn stop(mut self) -> Option<i32> {
        terminate(&mut self.child).expect("asked");
        let mut code = None;
        until("the end", || {
            code = self.child.try_wait().expect("asked");
            code.is_some()
        });
        code.and_then(|status| status.code())
    }
}

impl Drop for Tunnel<'_> {
    fn drop(&mut self) {
        // It is a child of ours and nobody else's.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Numbered datagrams through the tunnel, a thousand a second, while something is done to it.
struct Flow {
    sent: u32,
    /// By number: how often it came.
    came: BTreeMap<u32, u32>,
}

impl Flow {
    /// From the client's end to the server's and back at once.
    fn both(world: &World, meanwhile: impl FnOnce()) -> [Self; 2] {
        let stop = AtomicBool::new(false);
        let one = |from: &Netns, to: &Netns, addresses: [&str; 2]| {
            let receiver = to.run(|| UdpSocket::bind((addresses[1], 0))).expect("a socket");
            let sender = from.run(|| UdpSocket::bind((addresses[0], 0))).expect("a socket");
            sender.connect(receiver.local_addr().expect("an address")).expect("connected");
            (sender, receiver)
        };
        let up = one(&world.client, &world.server, ["10.42.42.2", "10.42.42.1"]);
        let down = one(&world.server, &world.client, ["10.42.42.1", "10.42.42.2"]);
        thread::scope(|scope| {
            let flows = [up, down].map(|(sender, receiver)| {
                let stop = &stop;
                scope.spawn(move || {
                    let reading = thread::scope(|inner| {
                        let reading = inner.spawn(move || Self::count(&receiver));
                        let mut sent = 0_u32;
                        let begun = Instant::now();
                        while !stop.load(SeqCst) {
                            sender.send(&sent.to_be_bytes()).expect("the device is there");
                            sent += 1;
                            thread::sleep((Duration::from_millis(1) * sent).saturating_sub(begun.elapsed()));
                        }
                        // The last of all, again and again, so that one of them arrives.
                        let end = Instant::now() + Duration::from_millis(500);
                        while Instant::now() < end {
                            let _ = sender.send(&END.to_be_bytes());
                            thread::sleep(Duration::from_millis(20));
                        }
                        (sent, reading.join().expect("read"))
                    });
                    Self { sent: reading.0, came: reading.1 }
                })
            });
            thread::sleep(Duration::from_millis(200));
            meanwhile();
            thread::sleep(Duration::from_millis(500));
            stop.store(true, SeqCst);
            flows.map(|flow| flow.join().expect("no panic"))
        })
    }

    fn count(receiver: &UdpSocket) -> BTreeMap<u32, u32> {
        receiver.set_read_timeout(Some(SOON)).expect("a timeout");
        let mut came = BTreeMap::new();
        let mut buffer = [0; 64];
        while let Ok(4) = receiver.recv(&mut buffer) {
            let number = u32::from_be_bytes(buffer[..4].try_into().expect("4 bytes"));
            if number == END {
                break;
            }
            *came.entry(number).or_default() += 1;
        }
        came
    }

    fn lost(&self) -> u32 {
        self.sent - self.came.len() as u32
    }

    fn duplicates(&self) -> u32 {
        self.came.values().map(|count| count - 1).sum()
    }
}

const END: u32 = u32::MAX;

/// Nothing lost and nothing twice, both ways.
fn whole(what: &str, flows: &[Flow; 2]) {
    let [up, down] = flows.each_ref().map(|flow| (flow.sent, flow.lost(), flow.duplicates()));
    println!(
        "tunnel: {what}: up {} sent, {} lost, {} twice; down {}, {}, {}",
        up.0, up.1, up.2, down.0, down.1, down.2
    );
    for (sent, lost, duplicates) in [up, down] {
        assert!(sent >= 300, "{what}: only {sent} sent");
        assert_eq!((lost, duplicates), (0, 0), "{what}: of {sent}");
    }
}

/// An IPv4 packet of protocol 253 (RFC 3692), which no kernel answers but by ICMP.
fn packet(from: [u8; 4], to: [u8; 4], id: u16, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 253, 0, 0];
    packet.extend(from.iter().chain(&to));
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    let checksum = sum(&packet).checksum();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(payload);
    packet
}

fn ping(from: &Netns, to: &str) -> Option<Duration> {
    ping_once(from, None, to.parse().expect("an address"), Duration::from_secs(2))
}

#[test]
fn the_seeds_example_runs_as_printed_and_every_packet_goes_by_both_cables_as_it_is() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let world = World::new();
    // Nothing but what is printed: no --control either.
    let spawn = |ns: &Netns, options: &str| {
        let mut command = Command::new(BIN);
        command.arg("tunnel").args(options.split_whitespace());
        ns.spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())).expect("started")
    };
    let mut server = spawn(&world.server, SERVER);
    let capture = Capture::start(&[(&world.client, "eth0"), (&world.client, "eth1")]);
    let mut client = spawn(&world.client, CLIENT);
    let address = |ns: &Netns| {
        let netlink = ns.netlink().expect("netlink");
        let all = smol::block_on(netlink.addresses()).expect("addresses");
        all.into_iter().find(|address| address.name == "tun0" && address.addr.is_ipv4()).map(|a| (a.addr, a.prefix))
    };
    until("the devices", || address(&world.server).is_some() && address(&world.client).is_some());
    assert_eq!(address(&world.server), Some((IpAddr::from([10, 42, 42, 1]), 24)));
    assert_eq!(address(&world.client), Some((IpAddr::from([10, 42, 42, 2]), 24)));
    let mtu = finish_in(&world.client, Command::new("ip").args(["link", "show", "tun0"]));
    assert!(text(&mtu.stdout).contains("mtu 1500"), "{}", text(&mtu.stdout));
    // The server may ping first: the client has spoken.
    until("a ping from the server", || ping(&world.server, "10.42.42.2").is_some());
    until("a ping from the client", || ping(&world.client, "10.42.42.1").is_some());
    // A packet of full size passes, in fragments outside.
    let from = world.client.run(|| packets(&world.client, "tun0"));
    let to = packets(&world.server, "tun0");
    let full = packet([10, 42, 42, 2], [10, 42, 42, 1], 77, &[0x5a; 1480]);
    from.send(&full).expect("sent");
    until("the packet of 1500 bytes", || {
        to.recv(Duration::from_millis(100)).expect("the device").is_some_and(|captured| captured.frame == full)
    });
    for child in [&mut client, &mut server] {
        terminate(child).expect("asked");
        let mut code = None;
        until("the end", || {
            code = child.try_wait().expect("asked");
            code.is_some()
        });
        assert_eq!(code.and_then(|status| status.code()), Some(0));
    }
    let frames = capture.frames();
    let sent = |ip: [u8; 4]| -> Vec<Vec<u8>> {
        let from_client = frames.iter().filter(|c| c.outgoing && c.frame.get(26..30) == Some(&ip[..]));
        from_client
            .filter_map(|c| udp_payload(&c.frame))
            .filter(|(_, to, _)| *to == 5678)
            .map(|(.., p)| p.to_vec())
            .collect()
    };
    let (one, other) = (sent([192, 168, 123, 2]), sent([10, 0, 0, 2]));
    assert_eq!(one, other, "the same datagrams, in the same order");
    assert_eq!(one.first().map(Vec::as_slice), Some(KEEPALIVE), "something that is not empty, before all else");
    let pings = one.iter().filter(|payload| payload[0] == 0x45 && payload[9] == 1).count();
    assert!(pings >= 2, "requests and replies as raw IP packets");
    assert!(one.iter().all(|payload| !payload.is_empty()), "an empty datagram would end a real server");
    println!("tunnel: {} datagrams by each of two paths, byte for byte alike, {pings} of them pings", one.len());
}

#[test]
fn the_recorded_sessions_go_with_the_program_as_they_went_with_the_real_one() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    for name in ["endpoints_and_dedupe.json", "empty_datagram.json", "stale_endpoints.json"] {
        let vector: Value =
            serde_json::from_str(&fs::read_to_string(format!("{VECTORS}/{name}")).expect("a vector")).expect("JSON");
        let world = World::new();
        // The kernel has nothing to say by itself, as when these were recorded.
        world.server.sysctl("ipv6/conf/default/disable_ipv6", "1").expect("set");
        let options: Vec<_> =
            vector["server_options"].as_array().expect("options").iter().map(|o| o.as_str().expect("text")).collect();
        let mut server = world.start(&world.server, "server", &options.join(" "));
        let device = packets(&world.server, "tun0");
        let (mut said, mut read) = (0, 0);
        let mut sockets: BTreeMap<String, UdpSocket> = BTreeMap::new();
        let bound = |addr: &str| world.client.run(|| UdpSocket::bind(addr)).expect("a socket");
        for event in vector["events"].as_array().expect("events") {
            let note = format!("{name}: {}", event["note"]);
            if let Some(from) = event["udp_in_from"].as_str() {
                let to: SocketAddr = if from.starts_with("10.") { "10.0.0.1:5678" } else { "192.168.123.1:5678" }
                    .parse()
                    .expect("an address");
                sockets
                    .entry(from.to_owned())
                    .or_insert_with(|| bound(from))
                    .send_to(&unhex(&event["udp_in_hex"]), to)
                    .expect("sent");
                said += 1;
                until(&format!("{note} to be taken"), || server.counter("udp_rx_datagrams") == said);
            } else if event["tun_read_hex"].is_string() {
                device.send(&unhex(&event["tun_read_hex"])).expect("sent");
                read += 1;
                until(&format!("{note} to be read"), || server.counter("tap_rx_frames") == read);
            } else {
                let seconds = event["wait_s"].as_f64().expect("seconds");
                let begun = Instant::now();
                until("both endpoints to be forgotten", || server.paths().is_empty());
                assert!(begun.elapsed().as_secs_f64() < seconds, "sooner than the real one");
                continue;
            }
            // Where the real server had ended, ours goes on, and delivers what comes next.
            if event["alive"] == false {
                let packet = unhex(&event["udp_in_hex"]);
                assert!(packet.is_empty() || next(&device) == Some(packet), "{note}");
                assert!(server.runs(), "{note}");
                continue;
            }
            for expected in event["tun_write_hex"].as_array().expect("a list") {
                assert_eq!(next(&device), Some(unhex(expected)), "{note}");
            }
            for out in event["udp_out"].as_array().expect("a list") {
                let socket = &sockets[out["to"].as_str().expect("an address")];
                socket.set_read_timeout(Some(SOON)).expect("a timeout");
                let mut buffer = [0; 2048];
                let (length, from) = socket.recv_from(&mut buffer).expect("a datagram");
                assert_eq!((&buffer[..length], from.port()), (&unhex(&out["hex"])[..], 5678), "{note}");
            }
        }
        // And nothing besides: what came after the last expected is this, and this alone.
        let last = packet([10, 42, 42, 2], [10, 42, 42, 77], 9999, b"the last");
        let (from, socket) = sockets.iter().next().expect("a socket");
        let to = if from.starts_with("10.") { "10.0.0.1:5678" } else { "192.168.123.1:5678" };
        socket.send_to(&last, to).expect("sent");
        assert_eq!(next(&device), Some(last), "{name}: nothing else was written");
        for socket in sockets.values() {
            socket.set_nonblocking(true).expect("set");
            assert!(socket.recv(&mut [0; 2048]).is_err(), "{name}: nothing else was sent");
        }
        assert!(server.runs());
        println!("tunnel: {name} replayed against the program");
    }
}

/// The next recorded packet (protocol 253) that is written to the device.
fn next(device: &eps_actor::io::packet::PacketSocket) -> Option<Vec<u8>> {
    let begun = Instant::now();
    while begun.elapsed() < SOON {
        match device.recv(Duration::from_millis(100)).expect("the device") {
            Some(captured) if !captured.outgoing && captured.frame.get(9) == Some(&253) => return Some(captured.frame),
            Some(_) | None => {}
        }
    }
    None
}

fn unhex(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().expect("hex");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

#[test]
fn one_of_two_paths_fails_in_every_recorded_way_and_nothing_is_lost() {
    if !can_make_networks() {
        return;
    }
    let _turn = alone();
    fails_in_every_way("multi_tun's protocol", "");
}

#[test]
fn native_one_of_two_paths_fails_in_every_recorded_way_and_nothing_is_lost() {
    if !can_make_networks() {
        return;
    }
    let _turn = alone();
    fails_in_every_way("our protocol", "a secret of more than thirty-two bytes");
}

/// The four of `path_failure.json`, of which three ended the real program.
fn fails_in_every_way(protocol: &str, secret: &str) {
    let world = World::new();
    let more = if secret.is_empty() {
        String::new()
    } else {
        format!("--native --secret-file {}", world.secret("secret", secret))
    };
    let more = format!("{more} -t 2");
    let (mut server, mut client) = world.pair(&more, &more);
    let case = |what: &str, fail: &dyn Fn(), mend: &dyn Fn()| {
        let flows = Flow::both(&world, fail);
        whole(&format!("{protocol}: {what}"), &flows);
        mend();
        until(&format!("both paths after {what}"), || {
            // Whether sends work again shows when something is sent.
            let _ = (ping(&world.server, "10.42.42.2"), ping(&world.client, "10.42.42.1"));
            let works = |tunnel: &Tunnel<'_>| tunnel.paths().iter().filter(|path| path["state"] == "up").count() == 2;
            let fails = |tunnel: &Tunnel<'_>| tunnel.paths().iter().any(|path| !path["failure"].is_null());
            works(&server) && !fails(&server) && !fails(&client)
        });
    };
    let neighbour = |ns: &Netns, line: &str| run_in(ns, line);
    case(
        "path 1 silently drops",
        &|| neighbour(&world.client, "ip neigh replace 10.0.0.1 lladdr 02:00:00:00:00:66 dev eth1 nud permanent"),
        &|| neighbour(&world.client, "ip neigh flush dev eth1 nud permanent"),
    );
    case("client interface of path 1 set down", &|| world.client.set_link("eth1", false).expect("down"), &|| {
        world.client.set_link("eth1", true).expect("up")
    });
    case("server interface of path 1 set down", &|| world.server.set_link("eth1", false).expect("down"), &|| {
        world.server.set_link("eth1", true).expect("up")
    });
    case(
        "address of path 1 removed on the client",
        &|| run_in(&world.client, "ip addr del 10.0.0.2/24 dev eth1"),
        &|| run_in(&world.client, "ip addr add 10.0.0.2/24 dev eth1"),
    );
    // The server's side of it: its address goes.
    case(
        "address of path 0 removed on the server",
        &|| run_in(&world.server, "ip addr del 192.168.123.1/24 dev eth0"),
        &|| run_in(&world.server, "ip addr add 192.168.123.1/24 dev eth0"),
    );
    assert!(client.runs() && server.runs());
    let told = client.told();
    assert!(told.contains("fails: ") && told.contains("works again"), "{told}");
    if has_program("nft") {
        // One that loses a third of all, both ways.
        let rules = "add table ip loss; add chain ip loss i { type filter hook input priority 0; }; \
                     add rule ip loss i iifname eth1 numgen random mod 100 < 30 drop";
        for ns in [&world.client, &world.server] {
            let output = finish_in(ns, Command::new("nft").arg(rules));
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
        let flows = Flow::both(&world, || thread::sleep(Duration::from_millis(500)));
        whole(&format!("{protocol}: path 1 loses 30 %"), &flows);
        let by_path: Vec<u64> = client.paths().iter().filter_map(|path| path["rx_datagrams"].as_u64()).collect();
        assert!(by_path[1] < by_path[0], "the path did lose: {by_path:?}");
    }
    let copies: u64 = server.paths().iter().map(|path| path["duplicates"].as_u64().expect("a number")).sum();
    assert!(copies > 300, "two paths carried the same: {copies} copies");
}

#[test]
fn endpoints_age_one_by_one_while_others_speak_and_two_pairs_to_one_server_are_two_paths() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let world = World::new();
    // A second address on one cable, to the same address of the server.
    run_in(&world.client, "ip addr add 10.0.0.3/24 dev eth1");
    let server = world.start(&world.server, "server", &format!("{SERVER} -t 2"));
    let pairs = "-l 10.42.42.2 -c 10.0.0.2:10.0.0.1,10.0.0.3:10.0.0.1 -p 5678 -t 2";
    let client = world.start(&world.client, "client", pairs);
    until("two endpoints", || server.up() == 2);
    let from: BTreeSet<String> = server.paths().iter().map(|path| path["to"].to_string()).collect();
    assert!(
        from.iter().any(|to| to.contains("10.0.0.2:")) && from.iter().any(|to| to.contains("10.0.0.3:")),
        "{from:?}"
    );
    let capture = Capture::start(&[(&world.client, "eth1")]);
    until("a ping", || ping(&world.client, "10.42.42.1").is_some());
    let frames = capture.frames();
    for source in [[10, 0, 0, 2], [10, 0, 0, 3]] {
        let carries =
            |frame: &[u8]| udp_payload(frame).is_some_and(|(.., payload)| payload[0] == 0x45 && payload[9] == 1);
        let by = frames.iter().any(|c| c.outgoing && c.frame.get(26..30) == Some(&source[..]) && carries(&c.frame));
        assert!(by, "the ping went from {source:?} too");
    }
    // Somebody else speaks all the time; the client has gone without a word.
    drop(client);
    let other = world.client.run(|| UdpSocket::bind("192.168.123.2:6000")).expect("a socket");
    let begun = Instant::now();
    let mut id = 0;
    until("the two to be forgotten", || {
        id += 1;
        other.send_to(&packet([10, 42, 42, 2], [10, 42, 42, 1], id, b"x"), "192.168.123.1:5678").expect("sent");
        let paths = server.paths();
        paths.len() == 1 && paths[0]["to"] == "192.168.123.2:6000"
    });
    let told = server.told();
    assert_eq!(told.matches("removing stale endpoint 10.0.0.").count(), 2, "{told}");
    println!("tunnel: -t 2: endpoints forgotten after {:.1} s under steady traffic", begun.elapsed().as_secs_f64());
}

#[test]
fn a_path_whose_address_comes_later_and_a_server_that_is_not_there_are_waited_for() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let world = World::new();
    // Nobody listens yet: every datagram is refused by ICMP.
    let pairs = "-l 10.42.42.2 -c 192.168.123.2:192.168.123.1,10.0.0.77:10.0.0.1 -p 5678 -t 2";
    let mut client = world.start(&world.client, "client", pairs);
    assert_eq!(client.paths()[1]["state"], "waiting");
    for _ in 0..3 {
        assert!(ping(&world.client, "10.42.42.1").is_none());
    }
    let mut server = world.start(&world.server, "server", SERVER);
    until("the first path", || server.up() == 1);
    until("a ping by the first path", || ping(&world.client, "10.42.42.1").is_some());
    run_in(&world.client, "ip addr add 10.0.0.77/24 dev eth1");
    until("the second path", || server.up() == 2);
    // The server goes, and comes back.
    assert_eq!(server.stop(), Some(0));
    assert!(ping(&world.client, "10.42.42.1").is_none());
    server = world.start(&world.server, "server", SERVER);
    until("both paths again", || server.up() == 2);
    until("a ping", || ping(&world.client, "10.42.42.1").is_some());
    // The device is deleted under it, and made anew.
    run_in(&world.client, "ip link delete tun0");
    until("a ping by a new device", || ping(&world.client, "10.42.42.1").is_some());
    assert!(client.runs());
}

#[test]
fn malformed_and_empty_datagrams_leave_it_up_with_nothing_learned_and_no_more_memory() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let count: u32 = if is_long() { 1_000_000 } else { 100_000 };
    let world = World::new();
    let secret = world.secret("secret", "a secret of more than thirty-two bytes");
    for (protocol, more) in
        [("multi_tun's protocol", String::new()), ("ours", format!("--native --secret-file {secret}"))]
    {
        let mut server = world.start(&world.server, "server", &format!("{SERVER} {more}"));
        let before = resident_kib(server.child.id());
        let sockets: Vec<_> =
            (0..8).map(|_| world.client.run(|| UdpSocket::bind("10.0.0.2:0")).expect("a socket")).collect();
        // A generator with a fixed seed, so that what fails fails again (xorshift, Marsaglia 2003).
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut buffer = [0_u8; 2048];
        let begun = Instant::now();
        for number in 0..count {
            let length = (random() % 256) as usize;
            for chunk in buffer[..length].chunks_mut(8) {
                chunk.copy_from_slice(&random().to_le_bytes()[..chunk.len()]);
            }
            // Half of them begin as something that would be looked at.
            if number % 2 == 0 && length > 0 {
                buffer[0] = [0x45, 0x60, 0xe0, 0xe1, 0xe4, 0xe5, 0xe6, 0xe7][(random() % 8) as usize];
                // A header checksum that fits by chance would make it a packet: one in 65,536.
                if length > 24 && buffer[0] == 0x45 {
                    buffer[2..4].copy_from_slice(&[0xff, 0xff]);
                } else if buffer[0] == 0x60 && length > 6 {
                    buffer[4] = 0xff;
                }
            }
            let nibble = buffer[0] >> 4;
            if number % 2 == 1 && length > 0 && matches!(nibble, 4 | 6) {
                buffer[0] ^= 0x80;
            }
            sockets[number as usize % 8].send_to(&buffer[..length], "10.0.0.1:5678").expect("sent");
            if number % 2048 == 2047 || number + 1 == count {
                // The socket's buffer is 8 MiB, and the server shares two cores with everything else: none is to be lost.
                until("what was sent to be read", || server.counter("udp_rx_datagrams") > u64::from(number));
            }
        }
        let took = begun.elapsed();
        let grown = resident_kib(server.child.id()).saturating_sub(before);
        assert_eq!(server.paths().len(), 0, "nothing is learned");
        assert_eq!(server.counter("tap_tx_frames"), 0, "and nothing delivered");
        let (came, dropped) = (server.counter("udp_rx_datagrams"), server.counter("drops"));
        assert_eq!(came, u64::from(count), "each is read");
        assert!(dropped >= came, "each is counted: {dropped} of {came}");
        assert!(grown < 32 << 10, "{grown} KiB more");
        assert!(server.runs() && !server.told().contains("panic"));
        println!(
            "tunnel: {protocol}: {count} malformed datagrams in {took:.1?}, {came} read, nothing learned, {grown} KiB more"
        );
        // And it works.
        let client = world.start(&world.client, "client", &format!("{CLIENT} {more}"));
        until("a ping", || ping(&world.client, "10.42.42.1").is_some());
        drop(client);
    }
}

#[test]
fn native_equal_packets_all_arrive_and_without_the_secret_nothing_does() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let world = World::new();
    let same = packet([10, 42, 42, 2], [10, 42, 42, 77], 0, b"always the same bytes");
    let deliver = |server: &Tunnel<'_>, client: &Tunnel<'_>| {
        let (from, to) = (packets(client.ns, "tun0"), packets(server.ns, "tun0"));
        for number in 0..500 {
            from.send(&same).expect("sent");
            if number % 50 == 49 {
                thread::sleep(Duration::from_millis(2));
            }
        }
        let last = packet([10, 42, 42, 2], [10, 42, 42, 77], 1, b"the last");
        from.send(&last).expect("sent");
        let mut came = 0;
        loop {
            let frame = next(&to).expect("the last one, at least");
            match frame {
                frame if frame == same => came += 1,
                frame => break assert_eq!(frame, last),
            }
        }
        came
    };
    let (server, client) = world.example();
    assert_eq!(deliver(&server, &client), 1, "multi_tun's protocol takes them for copies");
    assert_eq!(client.stop(), Some(0));
    assert_eq!(server.stop(), Some(0));

    let secret = world.secret("secret", "a secret of more than thirty-two bytes");
    let native = format!("--native --secret-file {secret}");
    let (server, client) = world.pair(&native, &native);
    let capture = Capture::start(&[(&world.client, "eth0"), (&world.client, "eth1")]);
    assert_eq!(deliver(&server, &client), 500, "ours does not");
    let frames = capture.frames();
    let payloads = |ip: [u8; 4]| -> Vec<Vec<u8>> {
        let ours = frames.iter().filter(|c| c.outgoing && c.frame.get(26..30) == Some(&ip[..]));
        let data = ours.filter_map(|c| udp_payload(&c.frame)).filter(|(.., payload)| payload[0] == 0xe0);
        data.map(|(.., payload)| payload.to_vec()).collect()
    };
    let (one, other) = (payloads([192, 168, 123, 2]), payloads([10, 0, 0, 2]));
    assert_eq!(one, other, "sealed once, and the same bytes by both paths");
    assert!(one.iter().all(|payload| !payload.windows(11).any(|bytes| bytes == b"always the ")), "and sealed");
    let distinct: BTreeSet<&Vec<u8>> = one.iter().collect();
    assert_eq!(distinct.len(), one.len());
    println!(
        "tunnel: 500 equal packets: 1 delivered by multi_tun's protocol, 500 by ours, captured as {} sends a path",
        one.len()
    );
    assert_eq!(server.status()["node"]["protocol"], "native");
    until("round trips", || client.paths().iter().all(|path| path["rtt_ms"].is_number()));
    // It says goodbye.
    assert_eq!(client.stop(), Some(0));
    until("the goodbye", || server.paths().is_empty());

    let other = world.secret("other", "another secret of more than thirty-two bytes");
    let stranger = world.start(&world.client, "stranger", &format!("{CLIENT} --native --secret-file {other}"));
    until("its handshakes", || server.counter("drop_bad_mac1") > 1);
    assert!(ping(&world.client, "10.42.42.1").is_none());
    assert!(server.paths().is_empty() && stranger.status()["node"]["session_age_seconds"].is_null());
    drop(stranger);
    let plain = world.start(&world.client, "plain", CLIENT);
    assert!(ping(&world.client, "10.42.42.1").is_none());
    let written = server.counter("tap_tx_frames");
    assert!(ping(&world.client, "10.42.42.1").is_none());
    assert_eq!(server.counter("tap_tx_frames"), written, "nothing is accepted");
    drop(plain);
    // The right one again, which finds a server that has seen all that.
    let client = world.start(&world.client, "client", &format!("{CLIENT} {native}"));
    until("a ping", || ping(&world.client, "10.42.42.1").is_some());
    // A server that was restarted is found again, too.
    drop(server);
    let server = world.start(&world.server, "server", &format!("{SERVER} {native}"));
    until("a ping", || ping(&world.client, "10.42.42.1").is_some());
    drop((server, client));
}

#[test]
fn ipv6_inside_and_outside() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let world = World::new();
    for (ns, host) in [(&world.server, 1), (&world.client, 2)] {
        for cable in 0..2 {
            run_in(ns, &format!("ip addr add fd00:{cable}::{host}/64 dev eth{cable} nodad"));
        }
    }
    let secret = world.secret("secret", "a secret of more than thirty-two bytes");
    for more in [String::new(), format!("--native --secret-file {secret}")] {
        let server =
            world.start(&world.server, "server", &format!("-6 -l fd42::1,10.42.42.1 -s ::,0.0.0.0 -p 5678 {more}"));
        let pairs = "[fd00:0::2]:[fd00:0::1],[fd00:1::2]:[fd00:1::1],10.0.0.2:10.0.0.1";
        let client =
            world.start(&world.client, "client", &format!("-6 -l fd42::2,10.42.42.2 -c {pairs} -p 5678 {more}"));
        until("three paths", || server.up() == 3);
        for (from, to) in [(&world.client, "fd42::1"), (&world.server, "fd42::2"), (&world.client, "10.42.42.1")] {
            until(&format!("a ping to {to}"), || ping(from, to).is_some());
        }
        drop((server, client));
    }
}

#[test]
fn a_tunnel_is_found_where_nothing_else_runs() {
    if !can_make_networks() || !has_program("unshare") {
        return;
    }
    let _turn = beside();
    let world = World::new();
    // With a /run of its own.
    let script = format!(
        "mount -t tmpfs tmpfs /run; {BIN} tunnel {SERVER} & while ! {BIN} map; do sleep 0.1; done; \
         {BIN} status --role tunnel; kill $!; wait"
    );
    let output = finish_in(&world.server, Command::new("unshare").args(["--mount", "sh", "-c", &script]));
    let said = text(&output.stdout);
    assert!(said.contains("label=\"tunnel server") && said.contains("tunnel server: 10.42.42.1/24"), "{said}");
}

#[test]
fn options_help_and_exit_codes_are_those_of_multi_tun() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let world = World::new();
    let run = |options: &str| -> Output {
        finish_in(&world.server, Command::new(BIN).arg("tunnel").args(options.split_whitespace()))
    };
    for options in [
        "",
        "--frob",
        "-l 10.42.42.1 -p 5678",
        "-l 10.42.42.1/24 -s 0.0.0.0 -p 5678",
        "-l 10.42.42.1 -s 0.0.0.0 -p 70000",
        "-l 10.42.42.1 -s 0.0.0.0 -p 5678 -c 10.0.0.2:10.0.0.1",
        "-l 10.42.42.1 -s :: -p 5678",
        "-l 10.42.42.1 -s 0.0.0.0 -p 5678 --native --secret-file /none/such",
    ] {
        let output = run(options);
        assert_eq!(output.status.code(), Some(255), "{options:?}: {}", text(&output.stderr));
        assert!(!output.stderr.is_empty(), "{options:?}");
    }
    for options in ["--help", "-?", "-h"] {
        let output = run(options);
        assert_eq!(output.status.code(), Some(0), "{options}");
        for option in [
            "--tun_listen_addr",
            "--server_listen_addr",
            "--server_port",
            "--client_endpoints",
            "--nonblocking",
            "--timeout",
        ] {
            assert!(text(&output.stdout).contains(option), "{options}: no {option}");
        }
    }
    // No socket: one line and 0, and no device is left.
    let taken = world.server.run(|| UdpSocket::bind("0.0.0.0:5678")).expect("a socket");
    for options in [SERVER, "-l 10.42.42.1 -s 192.0.2.1 -p 5678", "-l 10.42.42.1 -c 192.0.2.1:10.0.0.1 -p 5678"] {
        let output = run(&format!("{options} --log-level error"));
        let told = text(&output.stderr);
        assert_eq!((output.status.code(), told.lines().count()), (Some(0), 1), "{options}: {told}");
    }
    let secret = world.secret("secret", "a secret of more than thirty-two bytes");
    let output = run(&format!("{SERVER} --native --secret-file {secret} --log-level error"));
    assert_eq!(output.status.code(), Some(1), "ours has our codes: {}", text(&output.stderr));
    drop(taken);
    // The switch, as one and with a value.
    for switch in ["-n", "-n true", "-n false"] {
        let server = world.start(&world.server, "server", &format!("{SERVER} {switch}"));
        let client = world.start(&world.client, "client", &format!("{switch} {CLIENT}"));
        until("a ping", || ping(&world.client, "10.42.42.1").is_some());
        assert_eq!((client.stop(), server.stop()), (Some(0), Some(0)), "{switch}");
    }
}

#[test]
fn f_21_its_actors_come_back_and_its_outputs_agree() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let world = World::new();
    let card = world.directory.path().join("card.prom");
    let map = world.directory.path().join("map.gv");
    let more = format!("--scorecard {} --graphviz {}", card.display(), map.display());
    let (mut server, mut client) = world.pair("", &more);
    until("a ping", || ping(&world.client, "10.42.42.1").is_some());
    let all = request(&client.control, &json!({"command": "scorecard", "format": "all"}), Duration::from_secs(3))
        .expect("outputs");
    let paths = all["json"]["paths"].as_array().expect("paths");
    let sent: u64 = paths.iter().map(|path| path["tx_bytes"].as_u64().expect("a number")).sum();
    assert_eq!(all["json"]["totals"]["udp_tx_bytes"].as_u64(), Some(sent), "what went by the paths is all that went");
    assert!(sent > 0);
    let prom = all["prom"].as_str().expect("text");
    assert!(prom.contains(&format!("eps_tx_bytes_total {sent}\n")), "{prom}");
    assert!(
        prom.contains(
            "eps_tunnel_path_bytes_total{number=\"0\",path=\"192.168.123.2 to 192.168.123.1:5678\",dir=\"tx\"}"
        ),
        "{prom}"
    );
    assert!(
        all["classic"].as_str().is_some_and(|lines| lines.contains(&format!("\ntotal_direct_bytes_sent {sent}\n")))
    );
    assert!(all["map"].as_str().is_some_and(|dot| dot.contains("10.0.0.1:5678")), "{}", all["map"]);
    until("the scorecard and the map", || card.exists() && map.exists());
    let printed = finish_in(&world.client, Command::new(BIN).args(["status", "--control"]).arg(&client.control));
    let shown = text(&printed.stdout);
    assert!(
        shown.starts_with("tunnel client: 10.42.42.2/24\n") && shown.contains("multi_tun, not encrypted"),
        "{shown}"
    );
    assert!(shown.contains("192.168.123.1:5678") && shown.contains("10.0.0.1:5678"), "{shown}");
    let dot = finish_in(&world.client, Command::new(BIN).args(["map", "--control"]).arg(&client.control));
    let dot = text(&dot.stdout);
    assert!(dot.contains("10.0.0.1:5678") && dot.contains("tunnel client") && dot.contains("2 of 2 paths up"), "{dot}");
    assert!(!dot.contains("server") && !dot.contains("member"), "{dot}");

    // F-21: every actor falls, and the tunnel carries on.
    let mut slowest = Duration::ZERO;
    for actor in ["tunnel", "tunnel_paths", "stats", "control"] {
        let look = || {
            let status = client.ask("status")?;
            let all = status["actors"].as_array()?.clone();
            let found = all.into_iter().find(|entry| entry["name"] == actor)?;
            Some((found["restarts"].as_u64()?, found["state"] == "running"))
        };
        let (before, _) = look().expect("an actor");
        let begun = Instant::now();
        let _ = request(&client.control, &json!({"command": "inject_panic", "actor": actor}), Duration::from_secs(3));
        until(&format!("{actor} to be back"), || {
            look().is_some_and(|(restarts, running)| restarts > before && running)
        });
        slowest = slowest.max(begun.elapsed());
        until("a ping", || ping(&world.client, "10.42.42.1").is_some());
    }
    println!("F-21: tunnel: every actor panicked once, slowest back after {slowest:.0?}");
    assert!(client.runs() && server.runs());
    assert_eq!(server.up(), 2, "its endpoints are those of before");
}
