//! What members that only exist, traffic and time cost a client in memory.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::{Node, wait_until};
use eps_actor::io::netns::{Netns, can_make_networks};
use eps_actor::wire::join::JoinLine;

use crate::crowd::{Guest, holders, run};
use crate::lab::{World, alone, counters, is_long, join, peak_kib, pid, ping, resident_kib, wait_for_direct};
use crate::offload::{End, Writes, exchange_all, number};

const CROWD: usize = 1000;
/// What these may cost.
const CROWD_KIB_MAX: u64 = 20 * 1024;
/// What a client may ever hold.
const CLIENT_KIB_MAX: u64 = 40 * 1024;
/// What it may hold more at the end of a soak than in its second quarter.
const GROWTH_KIB_MAX: u64 = 2 * 1024;
const MIB: u64 = 1 << 20;
/// For a thousand members to come, on a busy machine.
const LONG: Duration = Duration::from_secs(120);
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 43439);

#[test]
fn a_thousand_idle_members_and_200_mb_of_tcp_cost_a_client_little_memory() {
    if !can_make_networks() {
        return;
    }
    let _turn = alone();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    let line = world.start_server(&["--network", "10.77.0.0/16"]);
    let ends = meet(&ada, &bob, &line);
    let before = resident_kib(pid(&ada));

    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // However this ends, the crowd goes home.
        let _end = SetOnDrop(&done);
        let server = &*world.server.ns;
        scope.spawn(|| visit(server, &line, &done));
        let start = Instant::now();
        let known = || ada.client_status().expect("a status").peers.len();
        let all = wait_until(LONG, "ada to know the crowd", || Ok((known() > CROWD).then_some(())));
        all.unwrap_or_else(|error| panic!("{error:#}: she knows {}\n{}", known(), ada.log()));
        let took = start.elapsed();
        let after = resident_kib(pid(&ada));
        println!(
            "memory: a client held {before} KiB, and {after} KiB with {CROWD} more members, known after {:.1} s",
            took.as_secs_f64()
        );
        assert!(after <= before + CROWD_KIB_MAX);

        let (rate, bytes) = exchange_all(&[ends], 100 * MIB, Writes::Large);
        let clients = [&ada, &bob].map(|node| (node.name.as_str(), resident_kib(pid(node)), peak_kib(pid(node))));
        println!("memory: after {} MiB of TCP at {rate:.0} Mbit/s: (KiB, at most) {clients:?}", bytes / MIB);
        assert!(clients.iter().all(|(_, _, peak)| *peak < CLIENT_KIB_MAX));
    });
}

#[test]
fn memory_stays_flat_and_nothing_is_dropped_however_long_frames_flow() {
    if !can_make_networks() {
        return;
    }
    let _turn = alone();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    let line = world.start_server(&[]);
    let ends = meet(&ada, &bob, &line);
    // Buffers have their size after it.
    exchange_all(&[ends, ends], 8 * MIB, Writes::Mixed);

    let soak = soak_time();
    let drops = || [&ada, &bob].map(|node| number(&counters(node), "drops"));
    let dropped = drops();
    let done = AtomicBool::new(false);
    let (samples, bytes) = thread::scope(|scope| {
        let end = SetOnDrop(&done);
        let load = scope.spawn(|| {
            let mut bytes = 0;
            while !done.load(Relaxed) {
                bytes += exchange_all(&[ends, ends], 8 * MIB, Writes::Mixed).1;
            }
            bytes
        });
        let samples = sample(soak, [pid(&ada), pid(&bob)]);
        drop(end);
        (samples, load.join().expect("the load"))
    });
    let dropped: Vec<u64> = drops().iter().zip(dropped).map(|(after, before)| after - before).collect();
    for (number, node) in [&ada, &bob].into_iter().enumerate() {
        let quarter = samples.len() / 4;
        let quarters: Vec<u64> = (0..4)
            .map(|which| samples[which * quarter..(which + 1) * quarter].iter().map(|both| both[number]).max())
            .map(|most| most.expect("samples"))
            .collect();
        println!(
            "memory: {} under {} MiB of TCP in {} s held at most {quarters:?} KiB in each quarter, and dropped {}",
            node.name,
            bytes / MIB,
            soak.as_secs(),
            dropped[number]
        );
        assert!(quarters[3] <= quarters[1] + GROWTH_KIB_MAX);
        assert_eq!(dropped[number], 0, "{}", counters(node));
    }
}

/// Two clients with a direct path, and where their connections end.
fn meet<'a>(ada: &'a Node, bob: &'a Node, line: &str) -> [End<'a>; 2] {
    let [a, b] = [ada, bob].map(|client| join(client, line, &[]));
    ping(ada, bob, b);
    ping(bob, ada, a);
    wait_for_direct(ada, "bob");
    wait_for_direct(bob, "ada");
    [(&ada.ns, a), (&bob.ns, b)]
}

/// The crowd joins, and stays until the end.
fn visit(server: &Netns, line: &str, done: &AtomicBool) {
    let line = JoinLine::parse(line, SERVER.port()).expect("a join line");
    let now = Instant::now();
    let mut crowd: Vec<_> = (0..CROWD).map(|number| Guest::new(number, server, SERVER, &line, now)).collect();
    while !done.load(Relaxed) {
        run(&mut crowd);
        if holders(&crowd) == CROWD {
            // Nobody is in a hurry now.
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What processes hold, in KiB, over a time.
fn sample(time: Duration, pids: [u32; 2]) -> Vec<[u64; 2]> {
    let start = Instant::now();
    let mut samples = Vec::new();
    while start.elapsed() < time {
        samples.push(pids.map(resident_kib));
        thread::sleep((time / 400).min(Duration::from_secs(1)));
    }
    samples
}

fn soak_time() -> Duration {
    let asked = std::env::var("EPS_SOAK_SECONDS").ok().map(|text| text.parse().expect("EPS_SOAK_SECONDS is a number"));
    Duration::from_secs(asked.unwrap_or(if is_long() { 3600 } else { 10 }))
}

/// Tells a thread to end, also when the test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
