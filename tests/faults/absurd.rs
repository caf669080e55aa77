//! A link that nobody should have to use: 256 kbit/s, 800 ms there and back, every fourth datagram lost, each way.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::{Reached, Scene};
use eps_actor::io::netns::{Netns, can_make_networks};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::stage::{PROGRAM, SOON, counter, is_long, length, ms, session_age, shared, status, until};

/// One way.
const DELAY: Duration = Duration::from_millis(400);
const LOSS: f64 = 0.25;
const BITS_PER_SECOND: f64 = 256_000.0;
/// What waits longer for its turn is dropped, as by a router with little memory.
const QUEUE: Duration = Duration::from_millis(500);
/// From the start of the program to an answer (F-26).
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// Passes datagrams of one client to a server and back, badly.
struct BadLink {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// One direction: what is on its way, and when the line is free again.
struct Direction {
    flying: VecDeque<(Instant, Vec<u8>)>,
    free_at: Instant,
}

impl Direction {
    fn take(&mut self, datagram: &[u8], now: Instant, rng: &mut StdRng) {
        self.free_at = self.free_at.max(now);
        if rng.random_bool(LOSS) || self.free_at - now > QUEUE {
            return;
        }
        self.free_at += Duration::from_secs_f64((datagram.len() + 28) as f64 * 8.0 / BITS_PER_SECOND);
        self.flying.push_back((self.free_at + DELAY, datagram.to_vec()));
    }

    fn arrived(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.flying.pop_front_if(|(at, _)| *at <= now).map(|(_, datagram)| datagram)
    }
}

impl BadLink {
    /// Clients send to `near`; the server is at `far`.
    fn start(ns: &Netns, near: &str, far: &str) -> Self {
        let far: SocketAddr = far.parse().expect("an address");
        let sockets = ns.run(|| [UdpSocket::bind(near), UdpSocket::bind("0.0.0.0:0")]);
        let [near, out] = sockets.map(|socket| socket.expect("a socket"));
        near.set_read_timeout(Some(Duration::from_millis(1))).expect("a time-out");
        out.set_nonblocking(true).expect("non-blocking");
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = thread::spawn(move || {
            let mut rng = StdRng::seed_from_u64(26);
            let direction = || Direction { flying: VecDeque::new(), free_at: Instant::now() };
            let (mut up, mut down) = (direction(), direction());
            let (mut client, mut buffer) = (None, [0; 65_536]);
            while !told.load(SeqCst) {
                match near.recv_from(&mut buffer) {
                    Ok((count, from)) => {
                        client = Some(from);
                        up.take(&buffer[..count], Instant::now(), &mut rng);
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(error) => panic!("{error}"),
                }
                while let Ok(count) = out.recv(&mut buffer) {
                    down.take(&buffer[..count], Instant::now(), &mut rng);
                }
                let now = Instant::now();
                while let Some(datagram) = up.arrived(now) {
                    out.send_to(&datagram, far).expect("sent");
                }
                while let Some((datagram, client)) = down.arrived(now).zip(client) {
                    near.send_to(&datagram, client).expect("sent");
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for BadLink {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the link panicked");
        }
    }
}

#[test]
fn f_26_over_an_absurd_link_a_client_joins_and_answers_in_a_minute_and_its_sessions_stay() {
    if !can_make_networks() {
        return;
    }
    let _turn = shared();
    let scene = Scene::new(PROGRAM).expect("a scene");
    let join = scene.start_server(&[]).expect("started");
    let link = BadLink::start(&scene.underlay.nat_b, "192.168.2.1:5000", "198.51.100.1:43439");
    scene.ada.start(&["--join", &join]).expect("started");
    let to = scene.ada.wait_for_address(SOON).expect("an address");
    let (ada, cleo) = (&scene.ada, &scene.cleo);
    let begun = Instant::now();
    cleo.start(&["--join", &join, "--server", "192.168.2.1:5000", "--direct=false"]).expect("started");
    let address = || cleo.address().ok().flatten();
    let (_, joined) = until(begun, ANSWERED_WITHIN, "cleo to have an address", address);
    let ping = || cleo.ping(to, Duration::from_millis(1500));
    let (round_trip, answered) = until(begun, ANSWERED_WITHIN, "an answer", ping);
    println!("F-26: joined {} after the start, first answer after {}, in {}", ms(joined), ms(answered), ms(round_trip));

    let age = session_age(cleo, "ada");
    let dropped = counter(cleo, "connections_dropped");
    let (since, span) = (Instant::now(), length(25, 180));
    let (mut asked, mut replies, mut always) = (0, 0, true);
    while since.elapsed() < span {
        let status = cleo.client_status().expect("a status");
        always &= status.peer("ada").is_some_and(|peer| peer.session_age_seconds.is_some());
        asked += 1;
        replies += u32::from(ping().is_some());
        // Everything has to cross the link: nobody goes around it.
        for (node, peer) in [(ada, "cleo"), (cleo, "ada")] {
            assert!(!matches!(node.path_to(peer), Ok(Reached::Direct(_))), "{}", node.name);
        }
    }
    let dropped = counter(cleo, "connections_dropped") - dropped;
    println!(
        "F-26: then {replies} of {asked} pings answered in {:.0} s; connections given up: {dropped}",
        since.elapsed().as_secs_f64()
    );
    // Both ways and two legs: a third of them would be answered without queues.
    assert!(replies * 10 >= asked, "{replies} of {asked}");
    // Renewed after two minutes, it has never been away.
    assert!(always, "a session all the time");
    if !is_long() {
        assert!(session_age(cleo, "ada") >= age + span.as_secs_f64() - 5.0, "the session was kept");
    }
    assert_eq!(status(cleo).expect("a status")["server"]["connected"], true);
    // Six answers in a row may be lost, once.
    assert!(dropped <= 1, "{dropped}");
    assert_eq!(status(ada).expect("a status")["server"]["connected"], true);
    drop(link);
}
