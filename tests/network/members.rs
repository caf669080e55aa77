//! A member that was kicked is cut off, whatever it knows of it (S-10).

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::Node;
use eps_actor::io::netns::can_make_networks;

use crate::lab::{
    World, alone, beside, complaints, has_program, join, ping, program, run_in, state_of, text, until, wait_for_direct,
    wait_for_end,
};

const PORT: u16 = 7000;
const LIMIT: Duration = Duration::from_secs(2);

#[test]
fn s_10_a_kicked_member_is_cut_off_within_two_seconds_by_itself_and_by_its_peers() {
    if !can_make_networks() || !has_program("iptables") {
        return;
    }
    let _turn = alone();
    let mut world = World::new();
    let [ada, bob, deaf] = ["ada", "bob", "deaf"].map(|name| world.client(name));
    let line = world.start_server(&[]);
    let [_, to, _] = [&ada, &bob, &deaf].map(|client| join(client, &line, &[]));
    for client in [&ada, &deaf] {
        ping(client, &bob, to);
        wait_for_direct(client, "bob");
    }

    // One that hears of it.
    let told = silence_after_kick(&world, &ada, &bob, to);
    let start = Instant::now();
    let status = wait_for_end(&ada);
    let ended = start.elapsed();
    let log = ada.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(complaints(&log).len(), 1, "{log}");
    assert!(complaints(&log)[0].contains("was removed from the network"), "{log}");
    assert_eq!(state_of(&bob, "ada"), "unknown");

    // One that never hears of it, and goes on sending: its peers refuse it.
    run_in(&deaf.ns, "iptables -I INPUT -s 198.51.100.1 -j DROP");
    let untold = silence_after_kick(&world, &deaf, &bob, to);
    assert!(deaf.ended().is_none(), "it does not know");
    assert_eq!(state_of(&bob, "deaf"), "unknown");
    println!(
        "S-10: frames of a kicked member stop after {:.0} ms ({:.0} ms if it does not hear of it); it ended {:.0} ms \
         later",
        told.as_secs_f64() * 1e3,
        untold.as_secs_f64() * 1e3,
        ended.as_secs_f64() * 1e3
    );
    assert!(told <= LIMIT && untold <= LIMIT && ended <= LIMIT);
}

/// Kicks a member that sends to another 200 times a second; how long its datagrams went on arriving.
fn silence_after_kick(world: &World, kicked: &Node, to: &Node, address: IpAddr) -> Duration {
    let receiver = to.ns.run(|| UdpSocket::bind((address, PORT))).expect("a socket");
    receiver.set_read_timeout(Some(LIMIT)).expect("a timeout");
    let sender = kicked.ns.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let sending = thread::spawn(move || {
        let mut due = Instant::now();
        while !stopped.load(Relaxed) {
            // It fails once the device has gone.
            let _ = sender.send_to(b"still here", (address, PORT));
            due += Duration::from_millis(5);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    });
    let mut buffer = [0; 64];
    receiver.recv(&mut buffer).expect("they arrive");
    let control = world.server.control_path().display().to_string();
    let start = Instant::now();
    let output = program(&["kick", &kicked.name, "--control", &control]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut last = start.elapsed();
    while receiver.recv(&mut buffer).is_ok() {
        last = start.elapsed();
        assert!(last < 3 * LIMIT, "it is not cut off");
    }
    stop.store(true, Relaxed);
    sending.join().expect("sent");
    last
}

#[test]
fn a_kicked_member_comes_back_with_a_new_invitation_and_only_then() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let ada = world.client("ada");
    world.start_server(&[]);
    let used = world.invite(false);
    let first = join(&ada, &used, &[]);
    let control = world.server.control_path().display().to_string();
    assert!(program(&["kick", "ada", "--control", &control]).status.success());
    assert_eq!(wait_for_end(&ada).code(), Some(1), "{}", ada.log());
    let no_leases = || assert_eq!(world.server.server_status().expect("a status").leases.len(), 0);
    ada.start(&[]).expect("started");
    until("the news", || ada.log().contains("was removed from the network"));
    // Nothing of that was signed, so it asks on.
    assert!(ada.ended().is_none(), "{}", ada.log());
    ada.stop().expect("stopped");
    no_leases();
    // Who gave it that line waits for it.
    ada.start(&["--join", &used]).expect("started");
    assert_eq!(wait_for_end(&ada).code(), Some(1), "{}", ada.log());
    assert!(ada.log().contains("did not accept the invitation"), "{}", ada.log());
    ada.stop().expect("stopped");
    no_leases();
    let new = world.invite(false);
    assert_eq!(join(&ada, &new, &[]), first, "its old address was free");
    until("the server to say so", || world.server.server_status().is_ok_and(|status| status.leases.len() == 1));
}
