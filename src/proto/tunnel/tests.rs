//! Both protocols between cores, on a time of their own; and the vectors of the real program.

use std::collections::BTreeMap;

use serde_json::Value;

use super::packet::tests::packet;
use super::*;

const TIMEOUT: Duration = Duration::from_secs(20);
const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/multi_tun");

fn endpoint(uplink: u8, addr: &str) -> Endpoint {
    Endpoint { uplink: UplinkId(uplink), addr: addr.parse().expect("an address") }
}

fn vector(name: &str) -> Value {
    let text = std::fs::read_to_string(format!("{VECTORS}/{name}")).expect("a vector");
    serde_json::from_str(&text).expect("JSON")
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().expect("hex");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

/// Everything a core wants said and done.
fn drain(tunnel: &mut Tunnel) -> (Vec<(Endpoint, Vec<u8>)>, Vec<Event>) {
    let (mut sends, mut events) = (Vec::new(), Vec::new());
    while let Some(output) = tunnel.poll_output() {
        match output {
            Output::Send { to, datagram, .. } => sends.push((to, datagram)),
            Output::Event(event) => events.push(event),
        }
    }
    (sends, events)
}

/// What the device's packet becomes, and where it is sent.
fn send(tunnel: &mut Tunnel, packet: &[u8], now: Instant) -> Result<Vec<(Endpoint, Vec<u8>)>, DropReason> {
    let (at, length) = tunnel.layout(packet.len());
    let mut datagram = vec![0xaa; length];
    datagram[at..at + packet.len()].copy_from_slice(packet);
    tunnel.seal(&mut datagram, packet.len())?;
    let mut targets = Vec::new();
    tunnel.targets(now, &mut targets);
    for (path, _) in &targets {
        tunnel.sent(*path, 1, datagram.len() as u64, Ok(()), now);
    }
    Ok(targets.into_iter().map(|(_, to)| (to, datagram.clone())).collect())
}

fn receive(tunnel: &mut Tunnel, from: Endpoint, datagram: &[u8], now: Instant) -> Result<Option<Vec<u8>>, DropReason> {
    let mut datagram = datagram.to_vec();
    tunnel.receive(from, &mut datagram, now).map(|packet| packet.map(<[u8]>::to_vec))
}

#[test]
fn every_recorded_session_goes_as_it_went_with_the_real_server() {
    let mut replayed = 0;
    for name in ["endpoints_and_dedupe.json", "stale_endpoints.json", "empty_datagram.json"] {
        let mut now = Instant::now();
        let timeout = if name.starts_with("stale") { Duration::from_secs(3) } else { TIMEOUT };
        let mut server = Tunnel::plain(End::Server, timeout, now);
        let mut told = Vec::new();
        for event in vector(name)["events"].as_array().expect("events") {
            let (mut written, mut sent) = (Vec::new(), Vec::new());
            if let Some(seconds) = event["wait_s"].as_f64() {
                now += Duration::from_secs_f64(seconds);
                server.handle_timeout(now);
                let (sends, events) = drain(&mut server);
                assert_eq!(sends, [], "a server says nothing by itself");
                told.extend(events);
                continue;
            } else if event["udp_in_hex"].is_string() {
                let from = endpoint(0, event["udp_in_from"].as_str().expect("an address"));
                // Its device refused what is no packet, so nothing was seen to be written.
                written.extend(receive(&mut server, from, &bytes(&event["udp_in_hex"]), now).ok().flatten());
            } else {
                sent = send(&mut server, &bytes(&event["tun_read_hex"]), now).expect("sealed");
            }
            // Where the real server had died of the empty datagram, ours goes on.
            if event["alive"] == true {
                let expected: Vec<_> = event["tun_write_hex"].as_array().expect("a list").iter().map(bytes).collect();
                assert_eq!(written, expected, "{name}: {}", event["note"]);
                let expected: Vec<_> = event["udp_out"]
                    .as_array()
                    .expect("a list")
                    .iter()
                    .map(|out| (endpoint(0, out["to"].as_str().expect("an address")), bytes(&out["hex"])))
                    .collect();
                assert_eq!(sent, expected, "{name}: {}", event["note"]);
            }
            replayed += 1;
        }
        let (sends, events) = drain(&mut server);
        assert_eq!(sends, []);
        told.extend(events);
        let told: Vec<String> = told.iter().map(ToString::to_string).collect();
        let log = vector(name)["log_tail"].clone();
        let expected = log.as_array().expect("lines").iter().filter_map(Value::as_str);
        let expected: Vec<&str> = expected.filter(|line| line.contains("endpoint ")).collect();
        assert_eq!(told, expected, "{name}");
    }
    println!("multi_tun: {replayed} recorded steps replayed");
}

#[test]
fn the_recorded_window_is_ours_too() {
    for case in vector("dedupe_window.json")["cases"].as_array().expect("cases") {
        let now = Instant::now();
        let mut server = Tunnel::plain(End::Server, TIMEOUT, now);
        let from = endpoint(0, "192.168.123.2:6000");
        let between = case["distinct_packets_between"].as_u64().expect("a number") as u16;
        for id in 0..=between {
            assert!(receive(&mut server, from, &packet(id, b"x"), now).expect("taken").is_some());
        }
        let delivered = receive(&mut server, from, &packet(0, b"x"), now).is_ok();
        assert_eq!(delivered, case["copy_delivered"] == true, "{between} between");
    }
}

/// The UDP datagrams of a capture, put together from their fragments: (time, from, to, payload).
fn captured(name: &str) -> Vec<(u64, String, String, Vec<u8>)> {
    let file = std::fs::read(format!("{VECTORS}/{name}")).expect("a capture");
    let number = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("4 bytes"));
    assert_eq!(number(0), 0xa1b2_c3d4, "microseconds, little-endian");
    assert_eq!(number(20), 1, "Ethernet");
    let (mut at, mut found) = (24, Vec::new());
    let mut fragments: BTreeMap<[u8; 2], Vec<u8>> = BTreeMap::new();
    while at < file.len() {
        let (seconds, micros, length) = (number(at), number(at + 4), number(at + 8) as usize);
        let frame = &file[at + 16..at + 16 + length];
        at += 16 + length;
        let ip = &frame[14..];
        if frame[12..14] != [8, 0] || ip[9] != 17 {
            continue;
        }
        let (header, total) = (usize::from(ip[0] & 15) * 4, usize::from(u16::from_be_bytes([ip[2], ip[3]])));
        let offset = u16::from_be_bytes([ip[6], ip[7]]);
        let whole = fragments.entry([ip[4], ip[5]]).or_default();
        whole.resize(whole.len().max(usize::from(offset & 0x1fff) * 8 + total - header), 0);
        whole[usize::from(offset & 0x1fff) * 8..][..total - header].copy_from_slice(&ip[header..total]);
        if offset & 0x2000 != 0 {
            continue;
        }
        let udp = fragments.remove(&[ip[4], ip[5]]).expect("just put there");
        let port = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
        let address = |at: usize, port: u16| format!("{}.{}.{}.{}:{port}", ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        let (from, to) = (address(12, port(0)), address(16, port(2)));
        found.push((u64::from(seconds) * 1_000_000 + u64::from(micros), from, to, udp[8..].to_vec()));
    }
    found
}

#[test]
fn the_recorded_example_is_understood_and_would_be_sent_alike() {
    let mut both: Vec<_> = [0, 1].into_iter().flat_map(|path| captured(&format!("example_path{path}.pcap"))).collect();
    both.sort();
    let now = Instant::now();
    let mut server = Tunnel::plain(End::Server, TIMEOUT, now);
    let mut client = Tunnel::plain(End::Client, TIMEOUT, now);
    for (uplink, addr) in [(0, "192.168.123.1:5678"), (1, "10.0.0.1:5678")] {
        client.add_path(UplinkId(uplink), addr.parse().ok(), now);
    }
    let mut copies: BTreeMap<Vec<u8>, (u32, u32)> = BTreeMap::new();
    for (_, from, to, payload) in &both {
        let to_server = to.ends_with(":5678");
        let (end, from) = if to_server {
            (&mut server, endpoint(0, from))
        } else {
            (&mut client, endpoint(u8::from(from.starts_with("10.")), from))
        };
        let (came, delivered) = copies.entry(payload.clone()).or_default();
        *came += 1;
        match receive(end, from, payload, now) {
            Ok(packet) => {
                assert_eq!(packet.as_ref(), Some(payload), "the packet and nothing else");
                *delivered += 1;
            }
            Err(reason) => assert_eq!(reason, DropReason::Duplicate),
        }
        if to_server {
            let sent = send(&mut client, payload, now).expect("sent");
            let expected = ["192.168.123.1:5678", "10.0.0.1:5678"].iter().zip(0..);
            let expected: Vec<_> = expected.map(|(addr, uplink)| (endpoint(uplink, addr), payload.clone())).collect();
            assert_eq!(sent, expected);
        }
    }
    assert!(copies.len() >= 9, "pings both ways and one of 1500 bytes: {}", copies.len());
    assert!(copies.keys().any(|payload| payload.len() == 1500));
    assert!(copies.values().all(|(came, delivered)| *delivered == 1 && (1..=2).contains(came)), "{copies:?}");
    println!("multi_tun: {} captured datagrams, {} packets, each delivered once", both.len(), copies.len());
}

#[test]
fn endpoints_are_forgotten_after_their_time_though_others_go_on_speaking() {
    let start = Instant::now();
    let mut server = Tunnel::plain(End::Server, Duration::from_secs(3), start);
    let [quiet, busy] = ["192.0.2.1:1", "192.0.2.2:2"].map(|addr| endpoint(0, addr));
    receive(&mut server, quiet, &packet(0, b"x"), start).expect("taken");
    for tenth in 0..100_u16 {
        let now = start + Duration::from_millis(100) * u32::from(tenth);
        receive(&mut server, busy, &packet(1 + tenth, b"x"), now).expect("taken");
        if now >= server.poll_timeout() {
            server.handle_timeout(now);
        }
        let mut targets = Vec::new();
        server.targets(now, &mut targets);
        assert_eq!(targets.len(), if tenth < 30 { 2 } else { 1 }, "after {tenth} tenths");
    }
    let events = drain(&mut server).1;
    assert_eq!(events.last(), Some(&Event::Stale(quiet.addr)));
}

#[test]
fn noise_is_nobodys_endpoint_and_endpoints_have_a_bound() {
    let now = Instant::now();
    let mut server = Tunnel::plain(End::Server, TIMEOUT, now);
    for noise in [&b""[..], b"\0garbage", &[0x45; 40], &[0xe4; 336]] {
        assert_eq!(receive(&mut server, endpoint(0, "192.0.2.1:1"), noise, now), Err(DropReason::Malformed));
    }
    assert_eq!(server.poll_changed().map(|paths| paths.len()), Some(0));
    for id in 0..1000_u16 {
        let from = endpoint(0, &format!("192.0.2.1:{}", 1000 + id));
        let taken = receive(&mut server, from, &packet(id, b"x"), now).expect("taken");
        assert!(taken.is_some(), "the packet itself is delivered");
    }
    assert_eq!(server.poll_changed().map(|paths| paths.len()), Some(LEARNED_MAX));
    let events = drain(&mut server).1;
    let full = events.iter().filter(|event| matches!(event, Event::Full(_))).count();
    assert_eq!((events.len(), full), (1000, 1000 - LEARNED_MAX));
}

#[test]
fn a_client_speaks_on_every_path_at_once_and_at_intervals_and_never_says_nothing() {
    let start = Instant::now();
    let mut client = Tunnel::plain(End::Client, TIMEOUT, start);
    // Two pairs to one server: two paths.
    for uplink in [0, 1] {
        client.add_path(UplinkId(uplink), "192.0.2.1:5678".parse().ok(), start);
    }
    client.add_path(UplinkId(2), None, start);
    let (sends, events) = drain(&mut client);
    let paths = [0, 1].map(|uplink| endpoint(uplink, "192.0.2.1:5678"));
    assert_eq!(sends, paths.map(|to| (to, KEEPALIVE.to_vec())));
    assert_eq!(events.len(), 2);
    assert!(KEEPALIVE[0] >> 4 == 0 && !KEEPALIVE.is_empty(), "no IP version, and not empty");

    client.set_remote(UplinkId(2), "192.0.2.2:5678".parse().expect("an address"), start);
    assert_eq!(drain(&mut client).0.len(), 1, "a path that is there later is spoken on at once");
    let mut said = 0;
    for second in 0..60 {
        let now = start + Duration::from_secs(second);
        if now >= client.poll_timeout() {
            client.handle_timeout(now);
        }
        said += drain(&mut client).0.len();
    }
    assert_eq!(said, 3 * 12, "each 5 s by three paths");
}

#[test]
fn a_path_that_fails_is_left_alone_for_a_moment_and_tried_again() {
    let start = Instant::now();
    let mut client = Tunnel::plain(End::Client, TIMEOUT, start);
    for uplink in [0, 1] {
        client.add_path(UplinkId(uplink), "192.0.2.1:5678".parse().ok(), start);
    }
    drain(&mut client);
    let mut targets = Vec::new();
    let refused = || Err(SendFailure::Refused("Network is unreachable".into()));
    client.sent(1, 1, 84, refused(), start);
    client.targets(start, &mut targets);
    assert_eq!(targets.iter().map(|(path, _)| *path).collect::<Vec<_>>(), [0]);
    let later = start + Duration::from_secs(1);
    client.targets(later, &mut targets);
    assert_eq!(targets.len(), 2, "it is tried again");
    client.sent(1, 1, 84, refused(), later);
    client.sent(1, 1, 84, Err(SendFailure::Full), later);
    let paths = client.poll_changed().expect("changed");
    assert_eq!(paths[1].failure.as_deref(), Some("Network is unreachable"));
    client.sent(1, 1, 84, Ok(()), later);
    assert_eq!(client.poll_changed().expect("changed")[1].failure, None);
    let told: Vec<String> = drain(&mut client).1.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "told once for each turn: {told:?}");
    assert!(told[0].contains("unreachable") && told[1].contains("works again"), "{told:?}");
}

/// A server and a client of ours, joined by paths of which some may lose everything.
struct Pair {
    now: Instant,
    server: Tunnel,
    client: Tunnel,
    /// By path: whether datagrams get through.
    open: Vec<bool>,
    /// What the devices got, at the server and at the client.
    delivered: [Vec<Vec<u8>>; 2],
    drops: Vec<DropReason>,
    /// Everything that was on a wire, and from where to where.
    wire: Vec<(Endpoint, Vec<u8>)>,
}

const SECRET: &[u8] = b"a secret of more than thirty-two bytes\n";

impl Pair {
    fn new(paths: u8) -> Self {
        Self::with_secrets(paths, SECRET, SECRET)
    }

    fn with_secrets(paths: u8, server: &[u8], client: &[u8]) -> Self {
        let now = Instant::now();
        let end = |end, secret: &[u8], seed| {
            let keys = Keys::derive(secret).expect("long enough");
            Tunnel::native(Native::new(end, &keys, 1, 1400, [seed; 32], now), TIMEOUT, now)
        };
        let (server, mut client) = (end(End::Server, server, 1), end(End::Client, client, 2));
        for path in 0..paths {
            client.add_path(UplinkId(path), Some(server_addr(path)), now);
        }
        let open = vec![true; usize::from(paths)];
        Self { now, server, client, open, delivered: Default::default(), drops: Vec::new(), wire: Vec::new() }
    }

    /// Lets both ends say what they have to, until they are silent.
    fn settle(&mut self) {
        for tunnel in [&mut self.server, &mut self.client] {
            if self.now >= tunnel.poll_timeout() {
                tunnel.handle_timeout(self.now);
            }
        }
        for _ in 0..20 {
            let (from_client, from_server) = (drain(&mut self.client).0, drain(&mut self.server).0);
            if from_client.is_empty() && from_server.is_empty() {
                return;
            }
            from_client.into_iter().for_each(|(to, datagram)| self.server_gets(to, &datagram));
            from_server.into_iter().for_each(|(to, datagram)| self.client_gets(to, &datagram));
        }
        panic!("they do not stop talking");
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(50);
            self.settle();
        }
    }

    fn server_gets(&mut self, to: Endpoint, datagram: &[u8]) {
        if !self.open[usize::from(to.uplink.0)] {
            return;
        }
        let from = Endpoint { uplink: UplinkId(0), addr: client_addr(to.uplink.0) };
        self.wire.push((from, datagram.to_vec()));
        let result = receive(&mut self.server, from, datagram, self.now);
        self.take(0, result);
    }

    fn client_gets(&mut self, to: Endpoint, datagram: &[u8]) {
        let Some(path) = (0..self.open.len() as u8).find(|path| client_addr(*path) == to.addr) else { return };
        if self.open[usize::from(path)] {
            let from = Endpoint { uplink: UplinkId(path), addr: server_addr(path) };
            let result = receive(&mut self.client, from, datagram, self.now);
            self.take(1, result);
        }
    }

    fn take(&mut self, end: usize, result: Result<Option<Vec<u8>>, DropReason>) {
        match result {
            Ok(packet) => self.delivered[end].extend(packet),
            Err(reason) => self.drops.push(reason),
        }
    }

    /// A packet from the client's device.
    fn up(&mut self, packet: &[u8]) {
        for (to, datagram) in send(&mut self.client, packet, self.now).expect("a session") {
            self.server_gets(to, &datagram);
        }
    }

    /// A packet from the server's device.
    fn down(&mut self, packet: &[u8]) {
        for (to, datagram) in send(&mut self.server, packet, self.now).expect("a session") {
            self.client_gets(to, &datagram);
        }
    }
}

fn server_addr(path: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, path, 1], 5678))
}

fn client_addr(path: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, path, 2], 40_000))
}

#[test]
fn native_packets_that_are_equal_all_arrive_once_and_by_the_same_bytes_on_all_paths() {
    let mut pair = Pair::new(2);
    pair.settle();
    pair.wire.clear();
    let same = packet(0, b"always the same");
    for _ in 0..100 {
        pair.up(&same);
        pair.down(&same);
    }
    assert_eq!(pair.delivered, [vec![same.clone(); 100], vec![same.clone(); 100]]);
    assert_eq!(pair.drops.iter().filter(|reason| **reason == DropReason::Duplicate).count(), 200, "a copy each");
    for copies in pair.wire.chunks(2) {
        assert_eq!(copies[0].1, copies[1].1, "sealed once");
        assert!(!copies[0].1.windows(8).any(|bytes| bytes == &same[20..28]), "and not to be read");
    }
    // multi_tun's protocol loses all but one of them.
    let now = Instant::now();
    let mut plain = Tunnel::plain(End::Server, TIMEOUT, now);
    let from = endpoint(0, "192.0.2.1:1");
    let delivered = (0..100).filter(|_| receive(&mut plain, from, &same, now).is_ok()).count();
    assert_eq!(delivered, 1);
}

#[test]
fn native_with_one_path_cut_loses_nothing() {
    let mut pair = Pair::new(2);
    pair.settle();
    for (cut, id) in [(0, 0), (1, 50)] {
        pair.open = vec![cut != 0, cut != 1];
        for number in 0..50 {
            pair.up(&packet(id + number, b"up"));
            pair.down(&packet(id + number, b"down"));
        }
    }
    assert_eq!([pair.delivered[0].len(), pair.delivered[1].len()], [100, 100]);
}

#[test]
fn native_comes_up_by_whichever_path_works_and_learns_the_other_when_it_does() {
    let mut pair = Pair::new(2);
    pair.open = vec![false, true];
    pair.run(Duration::from_secs(2));
    pair.up(&packet(1, b"x"));
    pair.down(&packet(1, b"x"));
    assert_eq!([pair.delivered[0].len(), pair.delivered[1].len()], [1, 1]);
    let mut targets = Vec::new();
    pair.server.targets(pair.now, &mut targets);
    assert_eq!(targets.len(), 1);
    pair.open = vec![true, true];
    pair.run(Duration::from_secs(6));
    pair.server.targets(pair.now, &mut targets);
    assert_eq!(targets.len(), 2, "both are proven");
}

#[test]
fn native_with_another_secret_nothing_is_accepted() {
    let mut pair = Pair::with_secrets(2, SECRET, b"another secret of more than thirty-two bytes");
    pair.run(Duration::from_secs(5));
    assert!(pair.server.session().is_none() && pair.client.session().is_none());
    assert_eq!(pair.server.poll_changed().map(|paths| paths.len()), Some(0));
    assert!(
        !pair.drops.is_empty() && pair.drops.iter().all(|reason| *reason == DropReason::BadMac1),
        "{:?}",
        pair.drops
    );
    assert_eq!(send(&mut pair.client, &packet(0, b"x"), pair.now), Err(DropReason::UnknownSession));
    // Nor is a packet of multi_tun's protocol.
    let from = endpoint(0, "192.0.2.1:1");
    assert_eq!(receive(&mut pair.server, from, &packet(0, b"x"), pair.now), Err(DropReason::Malformed));
    assert!(Keys::derive(b"short").is_none() && Keys::derive(&[b' '; 64]).is_none());
}

#[test]
fn native_replays_from_elsewhere_make_nobody_an_endpoint() {
    let mut pair = Pair::new(1);
    pair.settle();
    let thief = endpoint(0, "198.51.100.66:6666");
    // Faster than the real one: a fresh datagram from elsewhere.
    for (to, datagram) in send(&mut pair.client, &packet(1, b"x"), pair.now).expect("a session") {
        assert!(receive(&mut pair.server, thief, &datagram, pair.now).expect("authentic").is_some());
        pair.server_gets(to, &datagram);
    }
    let (asked, _) = drain(&mut pair.server);
    assert_eq!(asked.iter().filter(|(to, _)| *to == thief).count(), 1, "it is asked, once");
    for (_, datagram) in std::mem::take(&mut pair.wire) {
        let _ = receive(&mut pair.server, thief, &datagram, pair.now);
    }
    pair.run(Duration::from_secs(10));
    let mut targets = Vec::new();
    pair.server.targets(pair.now, &mut targets);
    assert!(targets.iter().all(|(_, to)| *to != thief) && targets.len() == 1, "{targets:?}");
}

#[test]
fn native_goes_on_when_keys_are_renewed_and_when_either_end_starts_anew() {
    let mut pair = Pair::new(2);
    pair.settle();
    let mut id = 0;
    let mut exchange = |pair: &mut Pair, when: &str| {
        pair.delivered = Default::default();
        id += 1;
        pair.up(&packet(id, b"up"));
        pair.down(&packet(id, b"down"));
        assert_eq!(pair.delivered.each_ref().map(Vec::len), [1, 1], "{when}");
    };
    for _ in 0..20 {
        pair.run(Duration::from_secs(20));
        exchange(&mut pair, "over 400 s");
    }
    assert!(pair.client.session().expect("a session").born > pair.now - Duration::from_secs(130), "renewed");

    let keys = Keys::derive(SECRET).expect("long enough");
    pair.server = Tunnel::native(Native::new(End::Server, &keys, 2, 1400, [3; 32], pair.now), TIMEOUT, pair.now);
    pair.run(Duration::from_secs(12));
    exchange(&mut pair, "a new server");

    let mut client = Tunnel::native(Native::new(End::Client, &keys, 2, 1400, [4; 32], pair.now), TIMEOUT, pair.now);
    for path in 0..2 {
        client.add_path(UplinkId(path), Some(server_addr(path)), pair.now);
    }
    pair.client = client;
    pair.run(Duration::from_secs(1));
    exchange(&mut pair, "a new client");

    // It says goodbye: the server sends nothing more, and forgets where to.
    for (to, datagram) in pair.client.goodbyes() {
        pair.server_gets(to, &datagram);
    }
    assert!(pair.server.session().is_none());
    let mut targets = Vec::new();
    pair.server.targets(pair.now, &mut targets);
    assert_eq!(targets, []);
}

#[test]
fn native_round_trips_are_measured_and_silent_endpoints_forgotten() {
    let mut pair = Pair::new(2);
    pair.run(Duration::from_secs(6));
    for end in [&mut pair.server, &mut pair.client] {
        end.changed = true;
        let paths = end.poll_changed().expect("changed");
        assert!(paths.len() == 2 && paths.iter().all(|path| path.meter.rtt().is_some()), "{paths:?}");
    }
    pair.open[1] = false;
    pair.run(Duration::from_secs(26));
    let mut targets = Vec::new();
    pair.server.targets(pair.now, &mut targets);
    assert_eq!(targets.len(), 1, "the other is forgotten");
}
