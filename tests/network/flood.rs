//! A million random datagrams, half of them with a valid first byte and a live index, change nothing (S-01).

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::Node;
use eps_actor::io::netns::can_make_networks;
use eps_actor::wire::header::Kind;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::lab::{
    Capture, SOON, World, alone, counter, is_long, join, packets, pid, ping, resident_kib, state_of, udp_payload,
    wait_for_direct,
};

const LEGAL_PER_SECOND: u64 = 1000;
const GARBAGE_PER_SECOND: u64 = 50_000;
const HALF: Duration = Duration::from_secs(5);

#[test]
fn s_01_a_million_random_datagrams_crash_nothing_pass_nothing_and_cost_no_memory() {
    if !can_make_networks() {
        return;
    }
    let _turn = alone();
    let total: u64 = if is_long() { 10_000_000 } else { 1_000_000 };
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    let attacker = world.host();
    let line = world.start_server(&[]);
    let [from, to] = [&ada, &bob].map(|client| join(client, &line, &[]));
    ping(&ada, &bob, to);
    ping(&bob, &ada, from);
    wait_for_direct(&ada, "bob");

    // The attacker sits on the switch and reads the live indices there.
    let socket = attacker.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    let targets = [("server", &world.server, "port0"), ("bob", &bob, "port2")].map(|(name, node, port)| {
        let (place, indices) = overhear(&world, port, || {
            ping(&ada, &bob, to);
        });
        println!("S-01: {name} at {place}: {} live indices overheard", indices.len());
        assert!(!indices.is_empty());
        (node, place, indices)
    });
    let mut random = Garbage::new(1);

    // Warm-up: buffers and tables have their size after it.
    for (_, place, indices) in &targets {
        for _ in 0..total / 20 {
            random.send(&socket, *place, indices);
        }
    }
    let before = targets.each_ref().map(|(node, ..)| settled(node));
    let frames = Capture::start(&[(&bob.ns, "eps0")]);
    let start = Instant::now();
    for _ in 0..total / 2 {
        for (_, place, indices) in &targets {
            random.send(&socket, *place, indices);
        }
    }
    let took = start.elapsed();
    let after = targets.each_ref().map(|(node, ..)| settled(node));
    let foreign = foreign_frames(frames, &ada, &bob);
    for ((node, ..), (before, after)) in targets.iter().zip(before.iter().zip(&after)) {
        let (read, dropped) = (after.read - before.read, after.dropped - before.dropped);
        println!(
            "S-01: {}: {} random datagrams at {:.0}/s, {read} of them read and {dropped} dropped for a reason; memory \
             {} KiB, then {} KiB",
            node.name,
            total / 2,
            total as f64 / took.as_secs_f64(),
            before.kib,
            after.kib
        );
        // A few of the others are keepalives and statistics.
        assert!(read > total / 20 && dropped + 200 >= read, "{}: {read} read, {dropped} dropped", node.name);
        assert!(node.ended().is_none(), "{}", node.log());
        assert!(after.kib <= before.kib + 1024, "{}: memory grew from {} to {} KiB", node.name, before.kib, after.kib);
    }
    assert_eq!(foreign, 0, "frames at bob's TAP that ada did not send");
    assert_eq!(state_of(&ada, "bob"), "direct");
    ping(&ada, &bob, to);

    // Numbered datagrams through the TAPs, a half without and a half under garbage at both.
    let stop = Arc::new(AtomicBool::new(false));
    let quiet = legal(&ada, &bob, to);
    let ended = stop.clone();
    let places = targets.each_ref().map(|(_, place, indices)| (*place, indices.clone()));
    let attack = thread::spawn(move || {
        let (start, mut sent) = (Instant::now(), 0_u64);
        while !ended.load(Relaxed) {
            let due = (start.elapsed().as_secs_f64() * GARBAGE_PER_SECOND as f64) as u64;
            while sent < due {
                let (place, indices) = &places[sent as usize % 2];
                random.send(&socket, *place, indices);
                sent += 1;
                if sent % 64 == 0 && ended.load(Relaxed) {
                    break;
                }
            }
            thread::sleep(Duration::from_micros(500));
        }
        sent as f64 / start.elapsed().as_secs_f64()
    });
    let loud = legal(&ada, &bob, to);
    stop.store(true, Relaxed);
    let rate = attack.join().expect("attacked");
    let loss = |(sent, heard): (u64, u64)| (sent - heard) as f64 / sent as f64;
    println!(
        "S-01: legal traffic at {LEGAL_PER_SECOND}/s: {} of {} lost in quiet, {} of {} ({:.3} %) under {rate:.0} random \
         datagrams a second",
        quiet.0 - quiet.1,
        quiet.0,
        loud.0 - loud.1,
        loud.0,
        loss(loud) * 100.0
    );
    assert!(loss(quiet) <= 0.001 && loss(loud) <= 0.001, "{quiet:?} {loud:?}");
    for node in [&world.server, &ada, &bob] {
        assert!(node.ended().is_none(), "{}", node.log());
        assert!(!node.log().contains("panicked"), "{}", node.log());
    }
}

struct State {
    read: u64,
    dropped: u64,
    kib: u64,
}

/// A node's counters once it has read what waits in its sockets.
fn settled(node: &Node) -> State {
    let (start, mut last) = (Instant::now(), u64::MAX);
    loop {
        let read = counter(node, "udp_rx_datagrams");
        if read.saturating_sub(last) < 20 && last != u64::MAX || start.elapsed() > SOON {
            return State { read, dropped: counter(node, "drops"), kib: resident_kib(pid(node)) };
        }
        last = read;
        thread::sleep(Duration::from_millis(50));
    }
}

/// Where a node listens, and the session indices that pass by its cable while `traffic` makes some.
fn overhear(world: &World, port: &str, traffic: impl Fn()) -> (SocketAddr, Vec<u32>) {
    let socket = packets(world.lan.switch(), port);
    let (start, mut indices, mut place) = (Instant::now(), std::collections::BTreeSet::new(), None);
    while start.elapsed() < SOON && (indices.is_empty() || start.elapsed() < Duration::from_secs(1)) {
        traffic();
        while let Some(captured) = socket.recv(Duration::from_millis(20)).expect("captured") {
            // What leaves by the switch's port goes to the node.
            if !captured.outgoing {
                continue;
            }
            let Some((_, port, payload)) = udp_payload(&captured.frame) else { continue };
            if matches!(Kind::of(payload), Some(Kind::Data | Kind::Ctrl)) && payload.len() >= 16 {
                indices.insert(u32::from_le_bytes(payload[4..8].try_into().expect("four bytes")));
                let ip: [u8; 4] = captured.frame[30..34].try_into().expect("four bytes");
                place = Some(SocketAddr::new(IpAddr::from(ip), port));
            }
        }
    }
    (place.expect("some traffic"), indices.into_iter().collect())
}

/// How many frames came out of bob's TAP that are not from ada's station, of their map's answers, or bob's own.
fn foreign_frames(capture: Capture, ada: &Node, bob: &Node) -> usize {
    let mac = |node: &Node| -> [u8; 6] {
        let own = node.client_status().expect("a status").node.mac.expect("a lease");
        own.parse::<eps_actor::ids::MacAddr>().expect("a MAC").0
    };
    let known = [mac(ada), mac(bob)];
    capture.frames().iter().filter(|one| !known.iter().any(|mac| one.frame.get(6..12) == Some(mac))).count()
}

/// Sends numbered datagrams for [`HALF`]: how many were sent, and how many came.
fn legal(from: &Node, to: &Node, address: IpAddr) -> (u64, u64) {
    let ear = to.ns.run(|| UdpSocket::bind((address, 0))).expect("a socket");
    ear.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let place = ear.local_addr().expect("an address");
    let mouth = from.ns.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    let listening = thread::spawn(move || {
        let mut heard = std::collections::BTreeSet::new();
        let mut buffer = [0; 64];
        while let Ok(count) = ear.recv(&mut buffer) {
            heard.insert(buffer[..count].to_vec());
        }
        heard.len() as u64
    });
    let (start, mut sent) = (Instant::now(), 0_u64);
    while start.elapsed() < HALF {
        let due = (start.elapsed().as_secs_f64() * LEGAL_PER_SECOND as f64) as u64;
        while sent <= due {
            mouth.send_to(&sent.to_be_bytes(), place).expect("sent");
            sent += 1;
        }
        thread::sleep(Duration::from_micros(500));
    }
    (sent, listening.join().expect("heard"))
}

/// Random datagrams, from a pool of random bytes so that making them costs little.
struct Garbage {
    rng: StdRng,
    pool: Vec<u8>,
    datagram: Vec<u8>,
}

impl Garbage {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut pool = vec![0; 1 << 20];
        rng.fill_bytes(&mut pool);
        Self { rng, pool, datagram: Vec::with_capacity(1 << 16) }
    }

    /// Mostly small ones, some of the size of a frame, a few up to the largest there is.
    fn send(&mut self, socket: &UdpSocket, to: SocketAddr, indices: &[u32]) {
        let length = match self.rng.random_range(0..2000) {
            0 => self.rng.random_range(0..=65_507),
            1..100 => self.rng.random_range(0..1472),
            _ => self.rng.random_range(0..200),
        };
        let from = self.rng.random_range(0..self.pool.len() - length);
        self.datagram.clear();
        self.datagram.extend_from_slice(&self.pool[from..from + length]);
        if self.rng.random() {
            let kind: u8 = self.rng.random_range(0xe0..=0xeb);
            let index = indices[self.rng.random_range(0..indices.len())].to_le_bytes();
            // A header that is right as far as a stranger can make it.
            for (at, byte) in [kind, 0, 0, 0, index[0], index[1], index[2], index[3]].into_iter().enumerate() {
                if let Some(place) = self.datagram.get_mut(at) {
                    *place = byte;
                }
            }
        }
        // A full queue is the network's way of dropping.
        let _ = socket.send_to(&self.datagram, to);
    }
}
