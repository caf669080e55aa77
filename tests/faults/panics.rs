//! Actors are made to panic, again and again.

use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::{Node, wait_until};
use eps_actor::io::control_socket::request;
use eps_actor::io::netns::can_make_networks;
use serde_json::json;

use crate::load::Load;
use crate::stage::{SOON, Stage, alone, is_long, ms, status, until};

const CLIENT: [&str; 12] = [
    "tap_reader",
    "udp_path",
    "tcp_dial",
    "peer_table",
    "server_link",
    "mac_learning",
    "neighbours",
    "upnp",
    "names",
    "routes",
    "stats",
    "control",
];
const SERVER: [&str; 8] = ["coordinator", "relay", "store", "udp_path", "tcp_path", "upnp", "stats", "control"];
/// Between two panics of one actor.
const ROUND: Duration = Duration::from_millis(3500);
/// Three restarts of an actor within ten seconds come at once, and only a fourth waits.
const THREE_AT_ONCE: Duration = Duration::from_millis(10_200);

#[test]
fn f_21_an_actor_that_panics_is_back_before_anybody_notices() {
    if !can_make_networks() {
        return;
    }
    let _turn = alone();
    let stage = Stage::new().expect("a stage");
    let (ada, bob, cleo, server) = (&stage.scene.ada, &stage.scene.bob, &stage.scene.cleo, &stage.scene.server);
    let rounds = if is_long() { 100 } else { 8 };
    let own = Load::start((ada, stage.ada), (bob, stage.bob));
    let back = Load::start((cleo, stage.cleo), (ada, stage.ada));
    let others = Load::start((bob, stage.bob), (cleo, stage.cleo));

    let victims: Vec<(&Node, &str)> =
        CLIENT.iter().map(|name| (ada, *name)).chain(SERVER.iter().map(|name| (server, *name))).collect();
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); victims.len()];
    let mut fallen: Vec<Vec<Instant>> = vec![Vec::new(); victims.len()];
    for _ in 0..rounds {
        let begun = Instant::now();
        for (number, (node, actor)) in victims.iter().enumerate() {
            if let [.., third_last, _, _] = fallen[number][..] {
                thread::sleep((third_last + THREE_AT_ONCE).saturating_duration_since(Instant::now()));
            }
            times[number].push(panic(node, actor));
            // It fell before this, however long a busy machine took to ask for it.
            fallen[number].push(Instant::now());
            let next = begun + ROUND * (number as u32 + 1) / victims.len() as u32;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
    thread::sleep(Duration::from_millis(500));
    let (own, back, others) = (own.stop(), back.stop(), others.stop());

    for ((node, actor), times) in victims.iter().zip(&mut times) {
        times.sort_unstable();
        println!("F-21: {} {actor}: {rounds} panics, slowest restart {}", node.name, ms(times[rounds - 1]));
    }
    for flow in [&own, &back, &others] {
        println!(
            "F-21: {}: {} sent (longest pause {}), {} lost, longest gap {}, {} duplicates",
            flow.name,
            flow.sent(),
            ms(flow.longest_pause()),
            flow.lost().len(),
            ms(flow.longest_gap()),
            flow.duplicates()
        );
    }
    // A machine with other work to do may hold up one.
    let late = victims.iter().zip(&times).find(|(_, times)| times[rounds - 2] > Duration::from_millis(50));
    assert!(late.is_none(), "{:?}", late.map(|((node, actor), times)| (&node.name, *actor, times)));
    others.assert_whole();
    for flow in [own, back] {
        assert!(flow.longest_gap() <= Duration::from_millis(100), "{}: {:?}", flow.name, flow.longest_gap());
        assert!(flow.longest_loss() <= 200, "{}: {} in a row", flow.name, flow.longest_loss());
        assert_eq!(flow.duplicates(), 0, "{}", flow.name);
    }
    for node in stage.scene.nodes() {
        assert!(node.ended().is_none(), "{} ended", node.name);
    }
}

#[test]
fn f_21_an_actor_that_keeps_panicking_waits_and_the_process_stays() {
    if !can_make_networks() {
        return;
    }
    let _turn = alone();
    let stage = Stage::new().expect("a stage");
    let (ada, bob, server) = (&stage.scene.ada, &stage.scene.bob, &stage.scene.server);
    for (node, actors) in [(ada, CLIENT.as_slice()), (server, SERVER.as_slice())] {
        for actor in actors {
            let times: Vec<_> = (0..5).map(|_| panic(node, actor)).collect();
            assert!(times[3] >= Duration::from_millis(40), "{actor}: no back-off: {times:?}");
            assert!(node.log().contains(&format!("{actor} panicked: injected fault; restarting in")), "{actor}");
            println!("F-21: {} {actor}: five panics in a row, restarts after {times:.0?}", node.name);
        }
        assert!(node.ended().is_none(), "{} ended", node.name);
        let actors = status(node).expect("no deadlock")["actors"].clone();
        let stuck = actors.as_array().expect("actors").iter().find(|actor| actor["state"] != "running");
        assert!(stuck.is_none(), "{stuck:?}");
    }
    stage.mesh().expect("direct again");
    let attached = || {
        let status = status(server)?;
        status["leases"].as_array()?.iter().all(|lease| lease["online"] == true).then_some(())
    };
    until(Instant::now(), SOON, "all clients to attach", attached);
    wait_until(SOON, "an answer", || Ok(bob.ping(stage.ada, SOON))).expect("an answer");
}

/// Makes an actor panic and waits until it runs again; how long that took, the asking included.
fn panic(node: &Node, actor: &str) -> Duration {
    let look = || {
        let status = status(node)?;
        let actors = status["actors"].as_array()?;
        let found = actors.iter().find(|entry| entry["name"] == actor)?;
        Some((found["restarts"].as_u64()?, found["state"] == "running"))
    };
    let ((before, _), _) = until(Instant::now(), SOON, actor, look);
    let begun = Instant::now();
    // The answer may go down with the actor that would give it.
    let question = json!({"command": "inject_panic", "actor": actor});
    let _ = request(node.control_path(), &question, Duration::from_secs(3));
    until(begun, SOON, &format!("{} to restart {actor}", node.name), || {
        look().filter(|(restarts, running)| *restarts > before && *running)
    })
    .1
}
