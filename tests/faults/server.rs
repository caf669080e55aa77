//! The server dies, comes back, or is not there at all.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::wait_until;
use eps_actor::io::netns::can_make_networks;

use crate::load::Load;
use crate::stage::{self, SERVER, SOON, Stage, certificate, length, ms, session_age, shared, until};

#[test]
fn f_01_a_dead_server_costs_direct_peers_nothing() {
    if !can_make_networks() {
        return;
    }
    let _turn = shared();
    let stage = Stage::new().expect("a stage");
    let (ada, bob, cleo) = (&stage.scene.ada, &stage.scene.bob, &stage.scene.cleo);
    let pairs = [(ada, "bob"), (bob, "ada"), (ada, "cleo"), (cleo, "ada")];
    let before = (Instant::now(), pairs.map(|(node, peer)| session_age(node, peer)));

    let lan = Load::start((ada, stage.ada), (bob, stage.bob));
    let far = Load::start((cleo, stage.cleo), (ada, stage.ada));
    thread::sleep(Duration::from_secs(1));
    stage.scene.server.kill().expect("killed");
    thread::sleep(length(11, 60));
    let flows = [lan.stop(), far.stop()];

    flows.iter().for_each(|flow| flow.assert_whole());
    let passed = before.0.elapsed().as_secs_f64();
    for ((node, peer), age) in pairs.into_iter().zip(before.1) {
        let now = session_age(node, peer);
        assert!(now >= age + passed - 0.5, "{} and {peer} made a new session: {age} s, then {now} s", node.name);
        assert!(matches!(node.path_to(peer), Ok(eps_actor::cli::demo::scene::Reached::Direct(_))), "{peer}");
    }
    for flow in flows {
        println!(
            "F-01: {}: {} sent, 0 lost, longest gap {}, 0 reconnects",
            flow.name,
            flow.sent(),
            ms(flow.longest_gap())
        );
    }
}

#[test]
fn f_02_a_restarted_server_finds_every_client_and_every_lease_again() {
    if !can_make_networks() {
        return;
    }
    let _turn = shared();
    let stage = Stage::new().expect("a stage");
    let (ada, bob, cleo, server) = (&stage.scene.ada, &stage.scene.bob, &stage.scene.cleo, &stage.scene.server);
    let known = stage::leases(server);
    let certificates = stage.clients().map(|(node, _)| certificate(&node.state_path()));

    let lan = Load::start((ada, stage.ada), (bob, stage.bob));
    let far = Load::start((cleo, stage.cleo), (ada, stage.ada));
    server.kill().expect("killed");
    thread::sleep(Duration::from_secs(10));
    let begun = Instant::now();
    server.start(&["--advertise", "198.51.100.1"]).expect("started");
    let (_, listens) = until(begun, SOON, "the server to listen", || stage::status(server));
    let attached = || {
        let status = stage::status(server)?;
        let leases = status["leases"].as_array()?;
        let at_server = leases.len() == 3 && leases.iter().all(|lease| lease["online"] == true);
        let at_clients = stage.clients().iter().all(|(node, _)| {
            stage::status(node).is_some_and(|status| {
                let fresh = status["server"]["last_contact_seconds"].as_f64();
                status["server"]["connected"] == true && fresh.is_some_and(|ago| ago < begun.elapsed().as_secs_f64())
            })
        });
        (at_server && at_clients).then_some(())
    };
    let ((), took) = until(begun, SOON, "all clients to attach", attached);
    thread::sleep(Duration::from_secs(1));
    let flows = [lan.stop(), far.stop()];

    assert!(took - listens <= Duration::from_secs(5), "attached {took:?} after the start, which took {listens:?}");
    assert_eq!(stage::leases(server), known);
    assert_eq!(stage.clients().map(|(node, _)| certificate(&node.state_path())), certificates);
    for flow in flows {
        flow.assert_whole();
        println!("F-02: {}: {} sent, 0 lost", flow.name, flow.sent());
    }
    println!(
        "F-02: server away 10 s; 3 clients attached {} after it listened ({} after its start); leases, MACs, certificates the same",
        ms(took - listens),
        ms(took)
    );
}

#[test]
fn f_05_a_client_without_its_server_reaches_known_peers_from_the_stored_map() {
    if !can_make_networks() {
        return;
    }
    let _turn = shared();
    let stage = Stage::new().expect("a stage");
    let (ada, bob, cleo, server) = (&stage.scene.ada, &stage.scene.bob, &stage.scene.cleo, &stage.scene.server);
    ada.stop().expect("stopped");
    server.kill().expect("killed");
    // In the server's place: nobody answers, and what comes is counted.
    let ear = server.ns.run(|| UdpSocket::bind((SERVER, 43439))).expect("a socket");
    ear.set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out");

    let begun = Instant::now();
    ada.start(&[]).expect("started");
    for (peer, address) in [(bob, stage.bob), (cleo, stage.cleo)] {
        let deadline = Duration::from_secs(3).saturating_sub(begun.elapsed());
        let what = format!("an answer from {} with the server away", peer.name);
        wait_until(deadline, &what, || Ok(ada.ping(address, Duration::from_millis(300)))).expect("an answer");
        let path = ada.path_to(&peer.name).expect("a path");
        println!("F-05: ada reached {} {} after its start, {path}", peer.name, ms(begun.elapsed()));
        assert!(path.to_string().starts_with("direct"), "{path}");
        assert!(begun.elapsed() <= Duration::from_secs(3));
    }

    let own = stage.scene.underlay.nat_a.run(|| "198.51.100.11".parse::<std::net::IpAddr>()).expect("an address");
    let end = begun + length(12, 90);
    let (mut last, mut longest, mut calls) = (begun, Duration::ZERO, 0);
    let mut packet = [0; 2048];
    while Instant::now() < end {
        let Ok((_, from)) = ear.recv_from(&mut packet) else { continue };
        if from.ip() == own {
            (longest, calls) = (longest.max(last.elapsed()), calls + 1);
            last = Instant::now();
        }
    }
    longest = longest.max(last.elapsed());
    assert!(calls >= 3, "{calls} calls");
    assert!(longest <= Duration::from_secs(30), "{longest:?} without a call");
    drop(ear);
    let begun = Instant::now();
    server.start(&["--advertise", "198.51.100.1"]).expect("started");
    let connected = || stage::status(ada).filter(|status| status["server"]["connected"] == true);
    let (_, took) = until(begun, Duration::from_secs(31), "ada to attach", connected);
    println!("F-05: {calls} calls for the server, longest pause {}; attached {} after it came", ms(longest), ms(took));
}
