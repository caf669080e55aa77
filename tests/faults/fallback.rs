//! Networks that let no UDP through: over TCP everything works, and UDP is used again where it can be.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::{Node, Reached, Scene};
use eps_actor::io::netns::can_make_networks;

use crate::load::Load;
use crate::stage::{PROGRAM, SOON, counter, is_long, ms, shared, status, until};
use crate::wall::{at_server, block_udp, has_program, run_in, unblock_udp};

/// Over TCP frames pass within this time (N-06, F-10 at the start).
const OVER_TCP: Duration = Duration::from_secs(3);
/// The same, of a flow whose UDP is blocked (F-10 in flight).
const IN_FLIGHT: Duration = Duration::from_secs(5);
/// A keepalive interval, three questions, and the handshake.
const LONGEST_SILENCE: Duration = Duration::from_secs(32);
/// UDP is used again within this time (F-10).
const UDP_AGAIN: Duration = Duration::from_secs(65);

#[test]
fn n_06_f_10_with_udp_blocked_on_one_side_or_both_frames_pass_over_tcp_in_three_seconds() {
    if !can_make_networks() || !has_program("iptables") {
        return;
    }
    let _turn = shared();
    let scene = Scene::new(PROGRAM).expect("a scene");
    let join = scene.start_server(&[]).expect("started");
    block_udp(&scene.underlay.nat_b);
    // A wall on one side: cleo has it. Then on both.
    for both in [false, true] {
        if both {
            block_udp(&scene.underlay.nat_a);
        }
        let (ada, cleo) = (&scene.ada, &scene.cleo);
        let begun = Instant::now();
        ada.start(&["--join", &join]).expect("started");
        cleo.start(&["--join", &join]).expect("started");
        let (to, joined) = until(begun, SOON, "ada to have an address", || ada.address().ok().flatten());
        let back = until(begun, SOON, "cleo to have an address", || cleo.address().ok().flatten()).0;
        let ping = |from: &Node, to: IpAddr| from.ping(to, Duration::from_millis(200));
        let ((), passed) = until(begun, SOON, "an answer over TCP", || ping(cleo, to).map(drop));
        assert!(ping(ada, back).or_else(|| ping(ada, back)).is_some(), "and the other way");
        assert_eq!(cleo.path_to("ada").expect("a path"), Reached::Relay);
        assert!(at_server(&scene.server, "cleo").starts_with("tcp "), "{}", at_server(&scene.server, "cleo"));
        assert_eq!(at_server(&scene.server, "ada").starts_with("tcp "), both, "{}", at_server(&scene.server, "ada"));
        println!(
            "N-06: UDP blocked {}: joined {}, first answer by the TCP relay {} after the start",
            if both { "on both sides" } else { "on one side" },
            ms(joined),
            ms(passed)
        );
        assert!(passed <= OVER_TCP, "{passed:?}");
        for node in [ada, cleo] {
            node.stop().expect("stopped");
        }
    }

    // Without leave to use TCP it stays outside, and says what it tried.
    scene.cleo.start(&["--tcp=false"]).expect("started");
    thread::sleep(OVER_TCP);
    let connected = |node: &Node| status(node).expect("a status")["server"]["connected"] == true;
    assert!(!connected(&scene.cleo));
    unblock_udp(&scene.underlay.nat_b);
    until(Instant::now(), SOON, "cleo to connect by UDP", || connected(&scene.cleo).then_some(()));
    assert!(!at_server(&scene.server, "cleo").starts_with("tcp "));
}

#[test]
fn f_10_a_flow_whose_udp_is_blocked_goes_on_over_tcp_in_five_seconds_and_by_udp_again_in_65() {
    if !can_make_networks() || !has_program("iptables") {
        return;
    }
    let _turn = shared();
    let scene = Scene::new(PROGRAM).expect("a scene");
    let join = scene.start_server(&[]).expect("started");
    for node in [&scene.ada, &scene.cleo] {
        node.start(&["--join", &join]).expect("started");
    }
    let [ada, cleo] = [&scene.ada, &scene.cleo].map(|node| (node, node.wait_for_address(SOON).expect("an address")));
    until(Instant::now(), SOON, "an answer", || ada.0.ping(cleo.1, Duration::from_secs(1)));

    let rounds = if is_long() { 5 } else { 1 };
    for round in 0..rounds {
        let flows = [Load::start(ada, cleo), Load::start(cleo, ada)];
        thread::sleep(Duration::from_secs(1));
        let blocked = Instant::now();
        block_udp(&scene.underlay.nat_b);
        let (_, over_tcp) = until(blocked, SOON, "cleo to be there over TCP", || {
            at_server(&scene.server, "cleo").starts_with("tcp ").then_some(())
        });
        thread::sleep(Duration::from_secs(2));
        for flow in flows.map(Load::stop) {
            let back = flow.back_after(blocked + Duration::from_millis(300)).expect("frames pass over TCP");
            let back = back + Duration::from_millis(300);
            println!(
                "F-10: in flight, {}: frames again {} after the wall (connected {}), longest gap {}",
                flow.name,
                ms(back),
                ms(over_tcp),
                ms(flow.longest_gap())
            );
            assert!(back <= IN_FLIGHT, "{back:?}");
            assert_eq!(flow.duplicates(), 0);
        }
        let unblocked = Instant::now();
        unblock_udp(&scene.underlay.nat_b);
        let by_udp = || (!at_server(&scene.server, "cleo").starts_with("tcp ")).then_some(());
        let ((), again) = until(unblocked, UDP_AGAIN, "cleo to be there by UDP", by_udp);
        assert!(ada.0.ping(cleo.1, SOON).is_some(), "by UDP");
        println!("F-10: round {round}: by UDP again {} after the wall was gone", ms(again));
        let lost = counter(cleo.0, "drop_socket_full");
        println!("F-10: datagrams that found no room or no connection at cleo: {lost}");
    }
}

#[test]
fn a_server_that_moved_to_another_of_its_addresses_is_found_there() {
    if !can_make_networks() || !has_program("ip") {
        return;
    }
    let _turn = shared();
    let scene = Scene::new(PROGRAM).expect("a scene");
    let join = scene.start_server(&[]).expect("started");
    let (ada, server) = (&scene.ada, &scene.server);
    ada.start(&["--join", &join, "--server", "198.51.100.1,198.51.100.2,198.51.100.3"]).expect("started");
    ada.wait_for_address(SOON).expect("an address");
    let place = || {
        let status = status(ada)?;
        let connected = status["server"]["connected"] == true;
        connected.then(|| status["server"]["endpoint"].as_str().unwrap_or_default().to_owned())
    };
    let (first, _) = until(Instant::now(), SOON, "a connection", place);
    assert_eq!(first, "198.51.100.1:43439");
    let begun = Instant::now();
    run_in(&server.ns, "ip address del 198.51.100.1/24 dev eth0");
    run_in(&server.ns, "ip address add 198.51.100.2/24 dev eth0");
    let (_, took) = until(begun, LONGEST_SILENCE, "the other address", || place().filter(|at| *at != first));
    println!("a server that moved to another of its addresses is found there {} later", ms(took));
    assert_eq!(place().as_deref(), Some("198.51.100.2:43439"));
    assert!(!ada.log().contains("the server does not answer"), "asked in the same session");
}
