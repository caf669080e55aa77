//! A client dies and comes back; processes are told to stop.

use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::Node;
use eps_actor::io::netns::can_make_networks;

use crate::load::Load;
use crate::stage::{SOON, Stage, alone, certificate, counter, ms, remains, status, until};

#[test]
fn f_20_a_killed_client_is_back_within_a_second_of_its_restart() {
    if !can_make_networks() {
        return;
    }
    let _turn = alone();
    let stage = Stage::new().expect("a stage");
    let (ada, bob) = (&stage.scene.ada, &stage.scene.bob);
    let granted = (bob.address().expect("asked"), certificate(&bob.state_path()));

    // Somebody sends to the client that died.
    let believed = counter(ada, "hints_believed");
    let to = Load::start((ada, stage.ada), (bob, stage.bob));
    thread::sleep(Duration::from_millis(300));
    bob.kill().expect("killed");
    thread::sleep(Duration::from_secs(1));
    let begun = Instant::now();
    bob.start(&[]).expect("started");
    let (_, up) = until(begun, SOON, "bob to be up", || status(bob));
    thread::sleep(Duration::from_secs(2));
    let back = to.stop().back_after(begun).expect("traffic again");
    let hints = (counter(ada, "hints_believed") - believed, counter(bob, "hints_sent"));
    assert!(hints.0 > 0 && hints.1 > 0, "hints believed and sent: {hints:?}");
    assert_eq!((bob.address().expect("asked"), certificate(&bob.state_path())), granted);
    println!("F-20: ada to bob: up {} after the start, traffic {} after the start", ms(up), ms(back));
    println!("F-20: same lease; {} hints sent by bob, {} believed by ada", hints.1, hints.0);
    assert!(back <= up + Duration::from_secs(1), "{back:?}");

    // The client that died sends.
    bob.kill().expect("killed");
    thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    bob.start(&[]).expect("started");
    let has_device = || (bob.address().ok()??).eq(&stage.bob).then_some(());
    let (_, up) = until(begun, SOON, "bob to have its device", has_device);
    let from = Load::start((bob, stage.bob), (ada, stage.ada));
    thread::sleep(Duration::from_secs(2));
    let back = from.stop().back_after(begun).expect("traffic");
    println!("F-20: bob to ada: up {} after the start, traffic {} after the start", ms(up), ms(back));
    assert!(back <= up + Duration::from_secs(1), "{back:?}");
}

#[test]
fn f_28_a_client_that_is_told_to_stop_says_goodbye_and_leaves_nothing() {
    if !can_make_networks() {
        return;
    }
    let _turn = alone();
    let stage = Stage::new().expect("a stage");
    let (ada, bob) = (&stage.scene.ada, &stage.scene.bob);
    for (signal, stop) in [("SIGTERM", Node::terminate as fn(&Node) -> anyhow::Result<()>), ("SIGINT", Node::interrupt)]
    {
        let told = Instant::now();
        stop(bob).expect("told");
        let dropped = |node: &Node| {
            let status = node.client_status().expect("a status");
            status
                .peer("bob")
                .is_some_and(|peer| peer.session_age_seconds.is_none() && peer.path.is_none())
                .then_some(())
        };
        let (_, at_ada) = until(told, SOON, "ada to drop the path", || dropped(ada));
        let (_, at_cleo) = until(told, SOON, "cleo to drop the path", || dropped(&stage.scene.cleo));
        let (status, ended) = until(told, SOON, "bob to end", || bob.ended());
        assert!(at_ada <= Duration::from_millis(100), "ada dropped the path after {at_ada:?}");
        assert!(at_cleo <= Duration::from_millis(100), "cleo dropped the path after {at_cleo:?}");
        assert!(ended <= Duration::from_secs(1), "bob ended after {ended:?}");
        assert_eq!(status.code(), Some(0), "{status}");
        assert_eq!(remains(bob, stage.bob), None);
        assert!(!bob.control_path().exists(), "the control socket is left");
        let events = ada.client_status().expect("a status").events;
        assert!(events.iter().any(|event| event == "bob has left"), "{events:?}");
        let leases = crate::stage::status(&stage.scene.server).expect("a status")["leases"].clone();
        let gone = leases.as_array().expect("leases").iter().find(|lease| lease["name"] == "bob").expect("bob");
        assert_eq!(gone["online"], false, "the server heard it too");
        println!(
            "F-28: client, {signal}: path dropped after {} (LAN) and {} (NAT), ended with 0 after {}, nothing left",
            ms(at_ada),
            ms(at_cleo),
            ms(ended)
        );
        bob.start(&[]).expect("started");
        bob.wait_for_address(SOON).expect("an address");
        stage.mesh().expect("direct");
    }
}

#[test]
fn f_28_a_server_that_is_told_to_stop_says_goodbye() {
    if !can_make_networks() {
        return;
    }
    let _turn = alone();
    let stage = Stage::new().expect("a stage");
    let server = &stage.scene.server;
    for (signal, stop) in [("SIGTERM", Node::terminate as fn(&Node) -> anyhow::Result<()>), ("SIGINT", Node::interrupt)]
    {
        let told = Instant::now();
        stop(server).expect("told");
        let gone = |node: &Node| status(node).filter(|status| status["server"]["connected"] == false);
        let heard = stage.clients().map(|(node, _)| until(told, SOON, "a client to hear of it", || gone(node)).1);
        let (status, ended) = until(told, SOON, "the server to end", || server.ended());
        assert!(heard.iter().all(|took| *took <= Duration::from_millis(100)), "{heard:?}");
        assert!(ended <= Duration::from_secs(1), "{ended:?}");
        assert_eq!(status.code(), Some(0), "{status}");
        println!("F-28: server, {signal}: 3 clients heard within {}, ended with 0 after {}", ms(heard[2]), ms(ended));
        server.start(&["--advertise", "198.51.100.1"]).expect("started");
        let back = |node: &Node| crate::stage::status(node).filter(|status| status["server"]["connected"] == true);
        for (node, _) in stage.clients() {
            until(Instant::now(), SOON, "a client to come back", || back(node));
        }
    }
}
