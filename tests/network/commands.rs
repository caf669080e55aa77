//! The commands that ask a node, and `check`, through the program.

use std::fs;

use eps_actor::cli::demo::scene::Node;
use eps_actor::cli::reply::Status;
use eps_actor::io::netns::can_make_networks;
use serde_json::Value;

use crate::lab::{SOON, World, beside, finish, has_program, join, ping, program, text, until, wait_for_direct};

#[test]
fn every_command_answers_at_the_role_it_is_for() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    let cards = ["server", "ada"].map(|name| world.directory.path().join(format!("{name}.json")));
    let [server_card, ada_card] = cards.each_ref().map(|path| path.display().to_string());
    let line = world.start_server(&["--scorecard", &server_card]);
    join(&ada, &line, &["--scorecard", &ada_card]);
    let to = join(&bob, &line, &[]);
    ping(&ada, &bob, to);
    wait_for_direct(&ada, "bob");

    for (node, role) in [(&world.server, "server"), (&ada, "client")] {
        let reply: Value = serde_json::from_str(&asked(node, &["status", "--json"])).expect("JSON");
        assert_eq!(reply["role"], role);
        Status::read(&reply).expect("a status");
        for part in ["actor", "restarts"] {
            assert!(asked(node, &["status"]).contains(part), "{role} {part}");
        }
    }
    let eyes = asked(&ada, &["status"]);
    for part in ["bob", &to.to_string(), "direct", "198.51.100.3:", "198.51.100.1:43439", "peer_table"] {
        assert!(eyes.contains(part), "{part} in {eyes}");
    }
    let members: Value = serde_json::from_str(&asked(&world.server, &["members", "--json"])).expect("JSON");
    let names: Vec<&str> = members.as_array().expect("a list").iter().filter_map(|one| one["name"].as_str()).collect();
    assert!(names.len() == 2 && names.contains(&"ada") && names.contains(&"bob"), "{members}");
    assert!(asked(&ada, &["members"]).contains("bob"));
    let invitation = asked(&world.server, &["invite"]);
    assert!(invitation.starts_with("eps-actor client --join 'eps://198.51.100.1:43439/"), "{invitation}");
    let reply: Value = serde_json::from_str(&asked(&world.server, &["invite", "--json"])).expect("JSON");
    assert!(reply["join"].as_str().is_some_and(|join| join.starts_with("eps://")), "{reply}");

    until("the map to show the pair", || asked(&world.server, &["map"]).contains("\"ada\" -- \"bob\""));
    let map = asked(&world.server, &["map"]);
    if has_program("dot") {
        let file = world.directory.path().join("map.dot");
        fs::write(&file, &map).expect("written");
        let drawn = finish(std::process::Command::new("dot").arg("-Tplain").arg(&file));
        assert!(drawn.status.success(), "{}", text(&drawn.stderr));
        assert!(text(&drawn.stdout).contains("node bob"));
    }

    let restarts = |status: &Value| {
        let actors = status["actors"].as_array().expect("actors").clone();
        actors.iter().find(|actor| actor["name"] == "peer_table").and_then(|actor| actor["restarts"].as_u64())
    };
    assert_eq!(asked(&ada, &["inject-panic", "peer-table"]), "peer_table will panic\n");
    until("the actor to have been restarted", || {
        restarts(&serde_json::from_str(&asked(&ada, &["status", "--json"])).expect("JSON")) == Some(1)
    });

    let refused = run(&world.server, &["kick", "nobody"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("nobody"), "{}", text(&refused.stderr));
    assert!(asked(&world.server, &["kick", "bob"]).contains("bob is no member"));
    assert!(!asked(&world.server, &["members"]).contains("bob"));

    // The scorecard is there before its minute is over: at the latest when the node ends.
    ada.stop().expect("stopped");
    world.server.stop().expect("stopped");
    for (path, role) in cards.iter().zip(["server", "client"]) {
        let card: Value = serde_json::from_slice(&fs::read(path).expect("a scorecard")).expect("JSON");
        assert_eq!((&card["role"], &card["schema"]), (&Value::from(role), &Value::from(1)));
        assert!(card["totals"]["udp_rx_datagrams"].as_u64().is_some_and(|count| count > 0), "{card}");
    }
    let silent = run(&ada, &["status"]);
    assert_eq!(silent.status.code(), Some(1));
    assert!(text(&silent.stderr).contains("nothing answers on "), "{}", text(&silent.stderr));
    println!("commands: status, members, invite, kick, map and the scorecards answer (within {} s)", SOON.as_secs());
}

#[test]
fn check_tells_every_problem_of_a_file_and_server_and_client_say_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    for (role, file, problems) in [
        (
            "server",
            "(port: 0,\n network: \"10.0.0.0/31\",\n frob: 1,\n sequential: \"yes\")",
            ["1:8", "2:11", "3:2", "4:14"],
        ),
        ("client", "(mtu: 12,\n device: \"a/b\",\n lan: 7,\n join: \"eps://x\")", ["1:7", "2:10", "3:7", "4:8"]),
    ] {
        let path = directory.path().join(format!("{role}.ron"));
        fs::write(&path, file).expect("written");
        let path = path.display().to_string();
        let checked = program(&["check", "--config", &path, "--role", role]);
        let told = text(&checked.stderr);
        assert_eq!(checked.status.code(), Some(2), "{told}");
        assert_eq!(told.lines().count(), problems.len(), "{told}");
        for problem in problems {
            assert!(told.contains(&format!("{path}:{problem}: ")), "{problem} in {told}");
        }
        let started = program(&[role, "--config", &path]);
        assert_eq!((started.status.code(), text(&started.stderr)), (Some(2), told.clone()));
        println!(
            "check: {} problems of {role}.ron at once, the first: {}",
            problems.len(),
            told.lines().next().unwrap_or_default()
        );
    }
}

/// Asks a node; what the program prints.
fn asked(node: &Node, words: &[&str]) -> String {
    let output = run(node, words);
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn run(node: &Node, words: &[&str]) -> std::process::Output {
    program(&[words, &["--control", &node.control_path().display().to_string()]].concat())
}
