//! The service manager, played by a socket: what a node tells it, and when it stops saying that it is well.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::{Directory, Node};
use eps_actor::io::netns::can_make_networks;
use serde_json::json;

use crate::lab::{BIN, SOON, World, beside, has_program};

/// The time of the watchdog in these tests; systemd's in the units is 10 s.
const WATCHDOG: Duration = Duration::from_secs(1);
/// An actor may leave its mailbox alone for 3 s; with a round before and one after it, and a busy machine.
const HUNG_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn a_manager_hears_that_a_node_is_up_well_and_ending() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let client = world.client("ada");
    let managers = ["server", "ada"].map(|name| Manager::new(&world.directory, name));

    world
        .server
        .start_command(managers[0].command(&world.server, "server", &["--advertise", "198.51.100.1"]))
        .expect("started");
    managers[0].wait_for("READY=1");
    assert!(world.server.server_status().is_ok(), "a server that is up answers");
    let line = world.invite(true);

    client.start_command(managers[1].command(&client, "client", &["--name", "ada", "--join", &line])).expect("started");
    managers[1].wait_for("READY=1");
    managers[1].wait_for("STATUS=connected: 192.168.43.");
    managers[0].wait_for("STATUS=192.168.43.0/24 on port 43439: 1 of 1 members online");
    for manager in &managers {
        while manager.hear(Duration::from_millis(1)).is_some() {}
        let begun = Instant::now();
        for _ in 0..3 {
            manager.wait_for("WATCHDOG=1");
        }
        // Three rounds of half a second, the first of which had begun.
        assert!(begun.elapsed() >= WATCHDOG / 2, "fed all the time: {:?}", begun.elapsed());
    }
    for (node, manager) in [(&client, &managers[1]), (&world.server, &managers[0])] {
        node.stop().expect("stopped");
        manager.wait_for("STOPPING=1");
    }
}

#[test]
fn a_watchdog_is_fed_no_more_when_an_actor_hangs() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let clients = ["peer_table", "tap_reader", "udp_path", "control"].map(|actor| (world.client(actor), actor));
    let server = Manager::new(&world.directory, "server");
    world
        .server
        .start_command(server.command(&world.server, "server", &["--advertise", "198.51.100.1"]))
        .expect("started");
    let line = world.invite(true);
    for (client, actor) in &clients {
        let manager = Manager::new(&world.directory, actor);
        client.start_command(manager.command(client, "client", &["--name", actor, "--join", &line])).expect("started");
        manager.wait_for("READY=1");
        manager.wait_for("WATCHDOG=1");
        let took = manager.hangs(client, actor);
        println!(
            "watchdog: with {actor} hung the last word that all is well came {:.1} s after it",
            took.as_secs_f64()
        );
    }
    server.wait_for("WATCHDOG=1");
    server.hangs(&world.server, "tcp_path");
}

#[test]
fn a_panic_that_is_restarted_does_not_keep_the_watchdog_hungry() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let world = World::new();
    let manager = Manager::new(&world.directory, "server");
    world.server.start_command(manager.command(&world.server, "server", &[])).expect("started");
    manager.wait_for("READY=1");
    // The fifth waits for half a second, and is known to.
    for _ in 0..5 {
        let _ = world.server.control(&json!({"command": "inject_panic", "actor": "relay"}));
        let begun = Instant::now();
        manager.wait_for("WATCHDOG=1");
        assert!(begun.elapsed() < WATCHDOG * 2, "{:?}", begun.elapsed());
    }
}

#[test]
fn the_rights_of_the_units_are_enough() {
    if !can_make_networks() || !has_program("setpriv") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let client = world.client("ada");
    let line = {
        own(&world.directory, &world.server);
        world
            .server
            .start_command(unprivileged(&world.server, "server", &["--advertise", "198.51.100.1"], "-all"))
            .expect("started");
        world.invite(true)
    };
    own(&world.directory, &client);
    client
        .start_command(unprivileged(&client, "client", &["--name", "ada", "--join", &line], "-all,+net_admin"))
        .expect("started");
    let address = client.wait_for_address(SOON).unwrap_or_else(|error| panic!("{error:#}\n{}", client.log()));
    println!("units: a client with CAP_NET_ADMIN alone has {address}, its server has no capability at all");
}

/// The program as the user of the units, with these capabilities and no others.
fn unprivileged(node: &Node, role: &str, more: &[&str], capabilities: &str) -> Command {
    // The node of the tun device is open to everybody where udev makes it, and perhaps not here.
    let open_tun = "mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && exec setpriv \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", open_tun, "setpriv"]);
    command.args([format!("--reuid={USER}"), format!("--regid={USER}")]).args(["--clear-groups", "--no-new-privs"]);
    for set in ["--bounding-set", "--inh-caps", "--ambient-caps"] {
        command.arg(format!("{set}={capabilities}"));
    }
    // The program's own directory may be closed to that user.
    let program = node.state_path().with_file_name("program");
    std::fs::copy(BIN, &program).expect("copied");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("rights");
    command.arg(program).arg(role).arg("--state").arg(node.state_path()).arg("--control").arg(node.control_path());
    command.args(more);
    command
}

/// Makes a node's directory belong to the user of the units.
fn own(directory: &Directory, node: &Node) {
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("rights");
    let dir = node.state_path();
    std::os::unix::fs::chown(dir.parent().expect("a directory"), Some(USER), Some(USER)).expect("an owner");
}

/// A user that nothing here belongs to.
const USER: u32 = 61_184;

/// The listening end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(directory: &Directory, name: &str) -> Self {
        let path = directory.path().join(format!("{name}.notify"));
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(SOON)).expect("a time");
        Self { socket, path }
    }

    /// A node's command line, with this manager told of it.
    fn command(&self, node: &Node, role: &str, more: &[&str]) -> Command {
        let mut command = Command::new(Path::new(BIN));
        command.arg(role).arg("--state").arg(node.state_path()).arg("--control").arg(node.control_path()).args(more);
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        command
    }

    /// Reads until a line begins so.
    fn wait_for(&self, begin: &str) {
        let deadline = Instant::now() + SOON;
        let mut heard = Vec::new();
        while Instant::now() < deadline {
            let text = self.hear(SOON).unwrap_or_default();
            if text.lines().any(|line| line.starts_with(begin)) {
                return;
            }
            heard.push(text);
        }
        panic!("waited in vain for {begin}; heard {heard:?}");
    }

    /// Makes an actor hang; how long until the last time that all was said to be well.
    fn hangs(&self, node: &Node, actor: &str) -> Duration {
        let answer = node.control(&json!({"command": "inject_panic", "actor": actor, "hang": true}));
        // The one that hangs may be the one that would answer.
        assert!(answer.is_ok() || actor == "control", "{answer:?}");
        let (begun, mut last) = (Instant::now(), Instant::now());
        let named = format!("STATUS=hung: {actor}");
        let mut named_times = 0;
        // It is said twice: then a whole round has passed without a word that all is well.
        while named_times < 2 {
            assert!(begun.elapsed() < HUNG_WITHIN, "{actor} hangs and nobody says so");
            let text = self.hear(HUNG_WITHIN).expect("a word");
            let is_named = text.lines().any(|line| line.starts_with(&named));
            if text.contains("WATCHDOG=1") {
                assert_eq!(named_times, 0, "{actor} hangs, and all is said to be well");
                last = Instant::now();
            }
            named_times += u32::from(is_named);
        }
        last - begun
    }

    fn hear(&self, limit: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(limit)).expect("a time");
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }
}
