//! `ping`, `why` and `netcheck`: the words for whoever wonders, on real machines in namespaces.

use std::process::Output;

use eps_actor::cli::demo::scene::Node;
use eps_actor::io::netns::can_make_networks;
use serde_json::{Value, json};

use crate::lab::{World, beside, join, program, state_of, text, until};

/// Runs a command that asks a client.
fn ask(client: &Node, words: &[&str]) -> Output {
    let control = client.control_path();
    let control = control.to_str().expect("a path in UTF-8");
    program(&[words, &["--control", control]].concat())
}

/// The JSON documents a command printed, one a line.
fn documents(output: &Output) -> Vec<Value> {
    let printed = text(&output.stdout);
    printed.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

#[test]
fn ping_wakes_an_idle_peer_shows_the_path_of_each_answer_and_the_upgrade_and_says_who_is_not_there() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let line = world.start_server(&[]);
    let (ada, bob, cleo) = (world.client("ada"), world.client("bob"), world.client("cleo"));
    for client in [&ada, &bob, &cleo] {
        // The kernel's own multicast would be a first packet before ours.
        client.ns.sysctl("ipv6/conf/default/disable_ipv6", "1").expect("a setting");
        join(client, &line, &[]);
    }
    until("all to know each other", || ["bob", "cleo"].iter().all(|peer| state_of(&ada, peer) == "idle"));

    let output = ask(&ada, &["ping", "bob", "-c", "5", "-i", "0.3", "--json"]);
    let events = documents(&output);
    println!("{}", text(&output.stdout));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let pings: Vec<_> = events.iter().filter(|event| event["event"] == "ping").collect();
    assert!(pings.len() == 5 && pings.iter().all(|ping| ping["answer"] == "pong"), "{pings:?}");
    let last = pings[4];
    assert_eq!(last["via"]["kind"], "direct", "{last}");
    assert!(last["via"]["address"].as_str().is_some_and(|to| to.starts_with("198.51.100.3:")), "{last}");
    assert!(last["seen_as"].as_str().is_some_and(|own| own.starts_with("198.51.100.2:")), "{last}");
    if pings[0]["via"]["kind"] == "relay" {
        let upgrades = events.iter().filter(|event| event["event"] == "path" && event["route"]["kind"] == "direct");
        let upgrade = upgrades.last().expect("the upgrade is told");
        assert_eq!((&upgrade["from"]["kind"], &upgrade["route"]), (&json!("relay"), &last["via"]), "{upgrade}");
    }
    let sum = events.last().expect("a sum");
    assert_eq!((&sum["event"], &sum["lost_percent"]), (&json!("summary"), &json!(0.0)), "{sum}");
    assert!(sum["min_ms"].as_f64() <= sum["avg_ms"].as_f64() && sum["avg_ms"].as_f64() <= sum["max_ms"].as_f64());

    // For eyes, by address.
    let address = bob.address().expect("asked").expect("an address").to_string();
    let output = ask(&ada, &["ping", &address, "-c", "2", "-i", "0.1"]);
    let printed = text(&output.stdout);
    println!("{printed}");
    assert!(printed.contains("2: answer from bob direct by 198.51.100.3:"), "{printed}");
    assert!(printed.contains("2 sent, 2 answered, 0 % lost"), "{printed}");

    // Who is not there.
    for (who, expected) in [
        ("zoe", "no member is called \"zoe\"; this client knows bob, cleo"),
        ("ada", "that is this machine itself"),
    ] {
        let output = ask(&ada, &["ping", who, "-c", "1"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
    cleo.stop().expect("stopped");
    until("cleo to be offline", || state_of(&ada, "cleo") == "offline");
    let output = ask(&ada, &["ping", "cleo", "-c", "1", "--json"]);
    assert_eq!((output.status.code(), &documents(&output)[0]["answer"]), (Some(1), &json!("offline")));

    world.server.control(&json!({"command": "kick", "name": "cleo"})).expect("removed");
    until("cleo to be gone", || state_of(&ada, "cleo") == "unknown");
    let output = ask(&ada, &["ping", "cleo", "-c", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cleo was removed from the network"), "{}", text(&output.stderr));

    // Somebody whose program hangs answers nothing; its session is still there.
    bob.kill().expect("killed");
    let output = ask(&ada, &["ping", "bob", "-c", "1", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(["silence", "no-session"].contains(&documents(&output)[0]["answer"].as_str().unwrap_or_default()));
}
