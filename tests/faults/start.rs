//! First starts, and a server and a client on one machine.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::{Directory, Node, Scene, Underlay};
use eps_actor::config::Role;
use eps_actor::io::netns::can_make_networks;

use crate::stage::{PROGRAM, SOON, ms, reach, shared, until};

#[test]
fn item_3_a_first_server_prints_a_line_and_a_client_has_an_address_within_two_seconds() {
    if !can_make_networks() {
        return;
    }
    let _turn = shared();
    let scene = Scene::new(PROGRAM).expect("a scene");
    let (server, ada) = (&scene.server, &scene.ada);
    start(server, &[]);
    let line = || {
        let log = server.log();
        let words = log.split([' ', '\n', '\'']).find(|word| word.starts_with("eps://"));
        words.map(str::to_owned).filter(|_| log.ends_with('\n'))
    };
    let (line, printed) = until(Instant::now(), SOON, "a join line", line);

    let begun = Instant::now();
    start(ada, &["--join", &line]);
    let (address, first) = until(begun, SOON, "an address", || ada.address().expect("it runs"));
    assert!(first <= Duration::from_secs(2), "{first:?}");
    let words = format!("this machine is \"ada\" at {address}/");
    assert!(ada.log().contains(&words), "{}", ada.log());

    ada.stop().expect("stopped");
    let begun = Instant::now();
    start(ada, &[]);
    let (again, second) = until(begun, SOON, "an address", || ada.address().expect("it runs"));
    assert_eq!(again, address);
    assert!(second <= Duration::from_secs(2), "{second:?}");
    println!(
        "item 3: join line after {}; address {} after `client --join`, {} after `client` alone",
        ms(printed),
        ms(first),
        ms(second)
    );
}

#[test]
fn item_4_a_server_and_a_client_run_on_one_machine() {
    if !can_make_networks() {
        return;
    }
    let _turn = shared();
    let directory = Directory::new().expect("a directory");
    let mut underlay = Underlay::new().expect("networks");
    let machine = Arc::new(underlay.public_host("198.51.100.1/24").expect("a machine"));
    let other = Arc::new(underlay.host_a("192.168.1.2/24").expect("a machine"));
    let node = |name, role, ns| Node::new(PROGRAM.as_ref(), name, role, ns, directory.path()).expect("a node");
    let server = node("server", Role::Server, machine.clone());
    let here = node("here", Role::Client, machine);
    let there = node("there", Role::Client, other);

    server.start(&["--advertise", "198.51.100.1"]).expect("started");
    let question = serde_json::json!({"command": "invite", "reusable": true, "expires": null});
    let reply = || server.poll(&question).expect("an answer");
    let (reply, _) = until(Instant::now(), SOON, "an invitation", reply);
    let join = reply["join"].as_str().expect("a line");
    let begun = Instant::now();
    for client in [&here, &there] {
        client.start(&["--join", join]).expect("started");
    }
    let [at_here, at_there] = [&here, &there].map(|client| client.wait_for_address(SOON).expect("an address"));
    let leased = begun.elapsed();
    reach(&there, &here, at_here).expect("direct");
    reach(&here, &there, at_there).expect("direct");
    let round_trip = there.ping(at_here, SOON).expect("an answer");
    println!(
        "item 4: server and client in one namespace; both clients leased after {}; the far one pings in {}, {}",
        ms(leased),
        ms(round_trip),
        there.path_to("here").expect("a path")
    );
    for node in [&here, &there, &server] {
        let stopped = node.stop().expect("stopped").expect("it ran");
        assert!(stopped.status.success(), "{stopped:?}");
    }
}

/// The bare command of the README, with files in the node's own directory.
fn start(node: &Node, more: &[&str]) {
    let mut command = Command::new(PROGRAM);
    command.arg(if node.role == Role::Server { "server" } else { "client" });
    command.arg("--state").arg(node.state_path()).arg("--control").arg(node.control_path());
    if node.role == Role::Client {
        command.args(["--name", &node.name]);
    }
    node.start_command({
        command.args(more);
        command
    })
    .expect("started");
}
