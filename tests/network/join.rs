//! Nobody gets in without a good invitation, and nobody learns anything by trying (S-11).

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use eps_actor::ids::SessionIndex;
use eps_actor::io::netns::{Netns, can_make_networks};
use eps_actor::proto::admission::open_token;
use eps_actor::proto::cookie::Macs;
use eps_actor::proto::crypto::enrol_mac1_key;
use eps_actor::proto::noise::{Identity, XxInitiator};
use eps_actor::wire::handshake::{Capabilities, HandshakeHeader, HandshakePayload, HandshakeView};
use eps_actor::wire::header::Kind;
use eps_actor::wire::join::{JoinLine, Token};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::lab::{Fate, Member, World, alone, beside, complaints, join, median, wait_for_end};

const SERVER: &str = "127.0.0.1:43439";
const WAIT: Duration = Duration::from_secs(2);

#[test]
fn s_11_without_a_good_token_the_program_says_one_clear_line_and_ends_with_1() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let [bob, none, wrong, reused] = ["bob", "none", "wrong", "reused"].map(|name| world.client(name));
    world.start_server(&[]);
    let once = world.invite(false);
    join(&bob, &once, &[]);
    let good: JoinLine = once.parse().expect("a line");
    let with = |token| JoinLine { token, ..good.clone() }.to_string();
    let lines = [(&none, with(None)), (&wrong, with(Some(Token::new([7; 16])))), (&reused, once)];
    for (client, line) in &lines {
        client.start(&["--join", line]).expect("started");
    }
    for (client, _) in &lines {
        let status = wait_for_end(client);
        let log = client.log();
        assert_eq!(status.code(), Some(1), "{log}");
        assert_eq!(complaints(&log).len(), 1, "{log}");
        assert!(complaints(&log)[0].contains("did not accept the invitation"), "{log}");
        assert!(!client.state_path().join("network.json").exists(), "it learnt of a network");
    }
    assert_eq!(world.server.server_status().expect("a status").leases.len(), 1);
    println!("S-11: no token, wrong token, used token: {}", complaints(&none.log())[0]);
}

#[test]
fn s_11_the_server_answers_every_bad_token_alike() {
    if !can_make_networks() {
        return;
    }
    let _turn = alone();
    let world = World::new();
    let good: JoinLine = world.start_server(&[]).parse().expect("a line");
    let used: JoinLine = world.invite(false).parse().expect("a line");
    let ns = &world.server.ns;
    let mut first = Member::new(ns, "127.0.3.1", SERVER, &used, "first", 1);
    assert!(matches!(first.settle(), Fate::Leased(_)));

    let wrong = JoinLine { token: Some(Token::new([9; 16])), ..good.clone() };
    let none = JoinLine { token: None, ..good.clone() };
    let kinds = [("none", &none), ("wrong", &wrong), ("used", &used)];
    const TRIES: u8 = 31;
    let mut times = kinds.map(|_| (Vec::new(), Vec::new()));
    for number in 0..TRIES {
        for (kind, (name, line)) in kinds.iter().enumerate() {
            // An address for each: enrolments of one are limited.
            let from = format!("127.0.{}.{}", 10 + kind, number + 1);
            let attempt = Attempt::new(ns, &from, line, u64::from(number));
            let (second, one, two) = attempt.run();
            assert_eq!(second, [(208, Kind::Enrol2 as u8), (16, Kind::Hint as u8)], "{name}");
            times[kind].0.push(one.as_secs_f64() * 1e6);
            times[kind].1.push(two.as_secs_f64() * 1e6);
        }
    }
    let medians = times.map(|(one, two)| (median(one), median(two)));
    for ((name, _), (one, two)) in kinds.iter().zip(medians) {
        println!("S-11: {name:>5} token: ENROL2 after {one:.0} us, refusal after {two:.0} us (median of {TRIES})");
    }
    for pick in [|m: &(f64, f64)| m.0, |m: &(f64, f64)| m.1] {
        let all: Vec<f64> = medians.iter().map(pick).collect();
        let (low, high) = all.iter().fold((f64::MAX, 0_f64), |(low, high), one| (low.min(*one), high.max(*one)));
        println!("S-11: medians differ by {:.0} %", (high / low - 1.0) * 100.0);
        assert!(high / low < 1.5, "{all:?}");
    }

    // Replays of an enrolment that went well: of the same token, from the same and from another address.
    let leases = world.server.server_status().expect("a status").leases.len();
    let attempt = Attempt::new(ns, "127.0.20.1", &good, 99);
    let (enrol1, enrol3) = attempt.record();
    let mut answers = Vec::new();
    for from in ["127.0.20.2:0", "127.0.20.3:0"] {
        let socket = ns.run(|| UdpSocket::bind(from)).expect("a socket");
        for datagram in [&enrol1, &enrol3] {
            answers.push(exchange(&socket, datagram).map(|(answer, _)| (answer.len(), answer[0])));
        }
    }
    let expected = [Some((208, Kind::Enrol2 as u8)), Some((16, Kind::Hint as u8))];
    assert_eq!(answers, [expected, expected].concat());
    assert_eq!(world.server.server_status().expect("a status").leases.len(), leases);
    println!("S-11: replayed enrolment: the same two answers, {leases} lease before and after");
}

/// One enrolment by hand.
struct Attempt {
    socket: UdpSocket,
    identity: Identity,
    header: HandshakeHeader,
    macs: Macs,
    state: XxInitiator,
    first: Vec<u8>,
}

type Answers = [(usize, u8); 2];

impl Attempt {
    fn new(ns: &Netns, from: &str, line: &JoinLine, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let socket = ns.run(|| UdpSocket::bind((from, 0))).expect("a socket");
        let identity = Identity::generate(&mut rng);
        let token = line.token.clone().unwrap_or_else(open_token);
        let sender = SessionIndex::for_server(seed as u32);
        let header = HandshakeHeader { kind: Kind::Enrol1, suites: 3, sender, detail: token.id() };
        let (state, noise) =
            XxInitiator::start(&identity, &token.psk(), &header.to_bytes(), &mut rng).expect("a message");
        let mut macs = Macs::new(enrol_mac1_key(&line.fingerprint));
        let first = macs.finish(&header.to_bytes(), &noise, Instant::now());
        Self { socket, identity, header, macs, state, first }
    }

    /// Both answers, and the times they took.
    fn run(self) -> (Answers, Duration, Duration) {
        let (socket, first) = (self.socket.try_clone().expect("a socket"), self.first.clone());
        let (second, one) = exchange(&socket, &first).expect("an answer to the first message");
        let third = self.third(&second);
        let (hint, two) = exchange(&socket, &third).expect("an answer to the last message");
        ([(second.len(), second[0]), (hint.len(), hint[0])], one, two)
    }

    /// The datagrams of a client, after the server has admitted it.
    fn record(self) -> (Vec<u8>, Vec<u8>) {
        let (socket, first) = (self.socket.try_clone().expect("a socket"), self.first.clone());
        let (second, _) = exchange(&socket, &first).expect("an answer to the first message");
        let third = self.third(&second);
        let (answer, _) = exchange(&socket, &third).expect("an answer to the last message");
        assert_eq!(answer[0], Kind::Ctrl as u8, "admitted");
        (first, third)
    }

    fn third(mut self, second: &[u8]) -> Vec<u8> {
        let view = HandshakeView::parse(second).expect("a handshake");
        self.state.read(view.noise).expect("authentic");
        let detail = u64::from(view.header.sender.0);
        let header = HandshakeHeader { kind: Kind::Enrol3, suites: 0, detail, ..self.header };
        let payload = HandshakePayload {
            boot: 1,
            sequence: 1,
            capabilities: Capabilities::NONE,
            max_payload: 1400,
            receive_modes: 0,
            suites: 0,
            sender: header.sender,
            certificate: [0; 160],
        };
        assert_ne!(self.identity.public.0, [0; 32]);
        let (noise, _) = self.state.finish(&payload.to_bytes()).expect("a message");
        self.macs.finish(&header.to_bytes(), &noise, Instant::now())
    }
}

/// Sends a datagram to the server, and the first answer.
fn exchange(socket: &UdpSocket, datagram: &[u8]) -> Option<(Vec<u8>, Duration)> {
    socket.set_read_timeout(Some(WAIT)).expect("a timeout");
    let start = Instant::now();
    socket.send_to(datagram, SERVER).expect("sent");
    let mut buffer = [0; 2048];
    let count = socket.recv(&mut buffer).ok()?;
    Some((buffer[..count].to_vec(), start.elapsed()))
}
