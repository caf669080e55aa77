//! What passes the underlay, and what the server holds, tells nothing of what the members say (S-17).

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use eps_actor::cli::demo::scene::Node;
use eps_actor::io::netns::can_make_networks;
use eps_actor::io::packet::Captured;
use eps_actor::proto::noise::{Identity, IkResponder};
use eps_actor::wire::handshake::HandshakeView;
use eps_actor::wire::header::{HEADER_LEN, Kind, SealedHeader};
use rand::SeedableRng;
use rand::rngs::StdRng;
use zeroize::Zeroizing;

use crate::lab::{
    Capture, SOON, World, alone, beside, contains, counter, join, pid, ping, state_of, udp_payload, wait_for_direct,
};

/// What is said inside: found where it should be, nowhere else.
const TEXT: &[u8] = b"the quick brown fox of test S-17 jumps over no lazy relay";
const TIMES: usize = 4000;

#[test]
fn a_capture_of_the_direct_path_holds_no_plaintext() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    let line = world.start_server(&[]);
    let [_, to] = [&ada, &bob].map(|client| join(client, &line, &[]));
    ping(&ada, &bob, to);
    wait_for_direct(&ada, "bob");
    let underlay = Capture::start(&[(&ada.ns, "eth0"), (&bob.ns, "eth0"), (&world.server.ns, "eth0")]);
    let inside = Capture::start(&[(&bob.ns, "eps0")]);
    say(&ada, &bob, to);
    let (underlay, inside) = (underlay.frames(), inside.frames());
    assert!(inside.iter().any(|one| contains(&one.frame, TEXT)), "the search finds it where it is");
    let bytes: usize = underlay.iter().map(|one| one.frame.len()).sum();
    assert!(bytes > TIMES * TEXT.len(), "{bytes} bytes captured");
    assert!(!underlay.iter().any(|one| contains(&one.frame, &TEXT[..16])), "plaintext on the underlay");
    println!("capture: {} frames, {bytes} bytes of the direct path: the text is in none", underlay.len());
}

#[test]
fn s_17_the_relay_sees_no_plaintext_and_its_keys_open_nothing() {
    if !can_make_networks() {
        return;
    }
    let _turn = alone();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    let line = world.start_server(&[]);
    let capture = Capture::start(&[(&world.server.ns, "eth0")]);
    let [_, to] = [&ada, &bob].map(|client| join(client, &line, &["--direct=false"]));
    ping(&ada, &bob, to);
    say(&ada, &bob, to);
    assert_eq!(state_of(&ada, "bob"), "relay");
    let relayed = counter(&world.server, "relayed_datagrams");
    let memory = [memory(pid(&world.server)), memory(pid(&ada))];
    let frames = capture.frames();
    assert!(!frames.iter().any(|one| contains(&one.frame, &TEXT[..16])), "plaintext at the relay");

    let sorted = sort(&frames);
    println!(
        "S-17: {} frames at the relay ({relayed} datagrams relayed): {} INIT, {} RESP, {} DATA and {} CTRL between the \
         clients; the text is in none",
        frames.len(),
        sorted.init.len(),
        sorted.resp.len(),
        sorted.data.len(),
        sorted.ctrl.len()
    );
    assert!(!sorted.init.is_empty() && !sorted.resp.is_empty() && sorted.data.len() > 100);

    // The server's own keys, from its directory.
    let state = world.server.state_path();
    let [node, signing] = ["node.key", "signing.key"].map(|name| fs::read(state.join(name)).expect("a key"));
    let database: Vec<u8> =
        ["network.db", "network.db-wal"].iter().filter_map(|name| fs::read(state.join(name)).ok()).flatten().collect();
    let mut rng = StdRng::seed_from_u64(17);
    let mut reads = |key: &[u8], datagram: &[u8]| {
        let identity = Identity::from_secret(Zeroizing::new(key.try_into().expect("32 bytes")));
        let view = HandshakeView::parse(datagram).expect("a handshake");
        IkResponder::read(&identity, view.header_bytes, view.noise, &mut rng).is_ok()
    };
    for key in [&node, &signing] {
        for init in &sorted.init {
            assert!(!reads(key, init), "the server can read a handshake between clients");
        }
    }
    let bob_key = fs::read(bob.state_path().join("node.key")).expect("a key");
    let ada_key = fs::read(ada.state_path().join("node.key")).expect("a key");
    let theirs = sorted.init.iter().filter(|init| reads(&bob_key, init) || reads(&ada_key, init)).count();
    assert_eq!(theirs, sorted.init.len(), "those whom they are for can");

    // And whatever 32 bytes it has on disk or in its memory, as keys of the sessions.
    // The shortest is one datagram for certain, and no super-frame of several.
    let sample = sorted.data.iter().min_by_key(|data| data.len()).expect("some");
    let disk = [node, signing, database].concat();
    let (mut tried, mut opened) = (0, 0);
    for window in disk.windows(32) {
        tried += 1;
        opened += usize::from(opens(window, sample));
    }
    let mut keys_in = |memory: &[u8]| {
        // Keys are kept in order, so an aligned look at each place finds them; most places hold too little for one.
        let places = memory.chunks_exact(8).enumerate().map(|(at, _)| at * 8);
        let windows = places.filter_map(|at| memory.get(at..at + 32)).filter(|window| is_random(window));
        windows
            .filter(|window| {
                tried += 1;
                opens(window, sample)
            })
            .count()
    };
    let at_server = keys_in(&memory[0]);
    let at_ada = keys_in(&memory[1]);
    println!(
        "S-17: {tried} keys tried from the server's directory ({} bytes), its memory ({} KiB) and ada's ({} KiB): \
         {opened}, {at_server} and {at_ada} open what was relayed",
        disk.len(),
        memory[0].len() >> 10,
        memory[1].len() >> 10
    );
    assert_eq!((opened, at_server), (0, 0));
    // The way AES keys lie in memory is the library's own; this is how it is on this kind of machine.
    if cfg!(target_arch = "x86_64") {
        assert!(at_ada > 0, "the search finds a key where there is one");
    }
    assert!(!contains(&memory[0], &TEXT[..16]), "plaintext in the server's memory");
}

/// Says the text from one to the other, over UDP and TCP.
fn say(from: &Node, to: &Node, address: IpAddr) {
    let ear = to.ns.run(|| UdpSocket::bind((address, 0))).expect("a socket");
    ear.set_read_timeout(Some(SOON)).expect("a timeout");
    let mouth = from.ns.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    let place = ear.local_addr().expect("an address");
    let mut buffer = [0; 128];
    for _ in 0..50 {
        mouth.send_to(TEXT, place).expect("sent");
        let count = ear.recv(&mut buffer).expect("heard");
        assert_eq!(&buffer[..count], TEXT);
    }
    let listener = to.ns.run(|| TcpListener::bind((address, 0))).expect("a socket");
    let place = listener.local_addr().expect("an address");
    let mut stream = from.ns.run(|| TcpStream::connect_timeout(&place, SOON)).expect("connected");
    let (mut received, _) = listener.accept().expect("accepted");
    received.set_read_timeout(Some(SOON)).expect("a timeout");
    let reading = thread::spawn(move || {
        let mut all = Vec::new();
        received.read_to_end(&mut all).map(|_| all.len())
    });
    for _ in 0..TIMES {
        stream.write_all(TEXT).expect("sent");
    }
    drop(stream);
    assert_eq!(reading.join().expect("read").expect("read"), TIMES * TEXT.len());
}

#[derive(Default)]
struct Sorted {
    init: Vec<Vec<u8>>,
    resp: Vec<Vec<u8>>,
    data: Vec<Vec<u8>>,
    ctrl: Vec<Vec<u8>>,
}

/// The datagrams inside RELAY, by kind.
fn sort(frames: &[Captured]) -> Sorted {
    let mut sorted = Sorted::default();
    for one in frames {
        let Some((_, _, payload)) = udp_payload(&one.frame) else { continue };
        if Kind::of(payload) != Some(Kind::Relay) || payload.len() <= HEADER_LEN {
            continue;
        }
        let inner = payload[HEADER_LEN..].to_vec();
        match Kind::of(&inner) {
            Some(Kind::Init) => sorted.init.push(inner),
            Some(Kind::Resp) => sorted.resp.push(inner),
            // Those of full length may be several in a super-frame; one alone is certain.
            Some(Kind::Data) if inner.len() < 1000 => sorted.data.push(inner),
            Some(Kind::Ctrl) => sorted.ctrl.push(inner),
            _ => {}
        }
    }
    sorted
}

/// Whether these 32 bytes are a key that opens the datagram, with either cipher.
fn opens(key: &[u8], datagram: &[u8]) -> bool {
    let header = SealedHeader::parse(datagram).expect("sealed");
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&header.counter.to_le_bytes());
    [&AES_256_GCM, &CHACHA20_POLY1305].into_iter().any(|suite| {
        let key = LessSafeKey::new(UnboundKey::new(suite, key).expect("32 bytes"));
        let mut sealed = datagram[HEADER_LEN..].to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.open_in_place(nonce, Aad::from(&datagram[..HEADER_LEN]), &mut sealed).is_ok()
    })
}

/// Whether bytes could be a key: of 32 random ones, 20 differ but once in a billion.
fn is_random(bytes: &[u8]) -> bool {
    let mut seen = [false; 256];
    bytes.iter().for_each(|byte| seen[usize::from(*byte)] = true);
    seen.iter().filter(|seen| **seen).count() >= 20
}

/// Everything a process can write to: where keys and plaintext could be.
fn memory(pid: u32) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let mut file = fs::File::open(format!("/proc/{pid}/mem")).expect("we are root");
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))) {
        let range = line.split(' ').next().unwrap_or_default();
        let Some((from, to)) = range.split_once('-') else { continue };
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).expect("an address"));
        // Reserved for stacks and arenas, and mostly never touched: only pages that are there are read.
        let mut page = [0; 4096];
        for at in (from..to.min(from + (64 << 20))).step_by(4096) {
            let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut page));
            if read.is_ok() && page.iter().any(|byte| *byte != 0) {
                all.extend(page);
            }
        }
    }
    all
}
