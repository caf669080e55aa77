//! The options of the manuals, the log and the signals, with the real program.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use eps_actor::actors::client::SavedNetwork;
use eps_actor::cli::demo::scene::Node;
use eps_actor::config::{Role, SERVER_LIVE};
use eps_actor::io::files::StateDir;
use eps_actor::io::netns::can_make_networks;
use eps_actor::proto::log_limit::BUDGET;
use eps_actor::wire::cert::Certificate;
use eps_actor::wire::join::JoinLine;
use serde_json::{Value, json};

use crate::crowd::{Guest, holders, run};
use crate::lab::{BIN, SERVER, World, address, beside, complaints, has_program, join, pid, program, text, until};
use crate::mtu::{Narrow, named_at_bob};

#[test]
fn help_and_version_answer_at_the_program_and_at_both_roles() {
    for role in ["server", "client"] {
        let version = program(&[role, "--version"]);
        assert_eq!((version.status.code(), text(&version.stderr)), (Some(0), String::new()));
        assert!(text(&version.stdout).contains(env!("CARGO_PKG_VERSION")), "{}", text(&version.stdout));
        let help = text(&program(&[role, "--help"]).stdout);
        let own: &[&str] = if role == "server" { &["--network", "--sequential"] } else { &["--server"] };
        for option in ["--config", "--conf", "--help", "--version", "--log", "--scorecard", "--port"].iter().chain(own)
        {
            assert!(help.contains(option), "{role} {option}: {help}");
        }
    }
    assert!(text(&program(&["--version"]).stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_example_lines_of_the_manual_run_as_printed() {
    if !can_make_networks() || !has_program("unshare") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let ada = world.client("ada");
    // Both files of the example are in /var/log, so each node gets one of its own.
    let line = "--stats --scorecard /var/log/eps_server.stats --port 12545 --network 192.168.99.0/24";
    start_in_own_var_log(&world.server, line);
    let invitation: JoinLine = world.invite(true).parse().expect("a line");
    // The example's client has another port than its server, and a server at 10.0.1.1.
    let line =
        format!("--stats --scorecard /var/log/eps_client.stats --port 12545 --server {SERVER} --join {invitation}");
    start_in_own_var_log(&ada, &line);
    assert!(address(&ada).to_string().starts_with("192.168.99."));
    for (node, file) in [(&world.server, "eps_server.stats"), (&ada, "eps_client.stats")] {
        let path = in_var_log(node, file);
        until(file, || fs::read(&path).is_ok_and(|bytes| serde_json::from_slice::<Value>(&bytes).is_ok()));
    }
}

#[test]
fn values_that_are_left_out_are_the_paths_of_the_manual_wherever_the_option_stands() {
    if !can_make_networks() || !has_program("unshare") {
        return;
    }
    let _turn = beside();
    let world = World::new();
    start_in_own_var_log(&world.server, "--scorecard --graphviz --sequential --log");
    for (file, part) in
        [("eps_server.stats", "\"schema\""), ("eps.gv", "graph \""), ("eps_server.log", "SIGUSR1: status")]
    {
        let path = in_var_log(&world.server, file);
        until(file, || {
            world.server.ask_status().expect("asked");
            fs::read_to_string(&path).is_ok_and(|text| text.contains(part))
        });
    }
}

#[test]
fn uplink_and_multipath_are_what_the_client_does() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let line = world.start_server(&[]);
    let (ada, bob) = (world.client("ada"), world.client("bob"));
    join(&ada, &line, &["--uplink", "eth0,eth7", "--multipath", "bonded"]);
    let to = join(&bob, &line, &["--uplink", "198.51.100.3"]);
    crate::lab::ping(&ada, &bob, to);
    crate::lab::wait_for_direct(&ada, "bob");
    let mode = |node: &Node| node.control(&json!({"command": "paths"})).expect("paths")["peers"][0]["mode"].clone();
    assert_eq!((mode(&ada), mode(&bob)), (json!("bonded"), json!("redundant-small")));
    for (node, uplink) in [(&ada, "eth0"), (&bob, "198.51.100.3")] {
        until("the path by the uplink", || {
            let reply = node.control(&json!({"command": "paths"})).expect("paths");
            let paths = reply["peers"][0]["paths"].as_array().expect("a list").clone();
            paths.iter().any(|path| path["uplink"] == uplink && path["state"] == "active")
        });
    }
}

#[test]
fn conf_names_the_file_and_an_option_wins_over_it() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let ada = world.client("ada");
    let file = write(world.directory.path(), "server.ron", "(network: \"10.9.0.0/24\", sequential: true, port: 5)");
    start(&world.server, &["--conf", &file, "--advertise", SERVER, "--port", "12345"]);
    let line = world.invite(true);
    assert!(line.contains(&format!("{SERVER}:12345/")), "{line}");
    assert_eq!(join(&ada, &line, &[]).to_string(), "10.9.0.1", "from the file: the lowest address of its network");
}

#[test]
fn of_several_servers_in_one_text_the_first_that_completes_is_kept() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    let line = world.start_server(&[]);
    let several = format!("nowhere.invalid 198.51.100.99,{SERVER} 198.51.100.98:7");
    join(&ada, &line, &["--server", &several]);
    let endpoint = ada.client_status().expect("a status").server.endpoint;
    assert_eq!(endpoint.as_deref(), Some("198.51.100.1:43439"));

    // Nobody is at any of these: each is named, with what became of it.
    bob.start(&["--join", &line, "--server", "198.51.100.99 198.51.100.98:7", "--server", "198.51.100.97"])
        .expect("started");
    until("bob to complain", || bob.log().contains("no answer from the server yet"));
    let log = bob.log();
    for part in ["198.51.100.99:43439", "198.51.100.98:7", "198.51.100.97:43439"] {
        assert!(log.contains(&format!("UDP to {part}")), "{part} in {log}");
    }
    println!("servers: the third of four is kept; {}", log.lines().last().unwrap_or_default());
}

#[test]
fn nat_port_is_the_second_port_of_a_server_the_one_after_the_first_if_none_is_named() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    for (more, held) in [
        (&[][..], [true, false, false]),
        (&["--port", "5000"], [false, true, false]),
        (&["--nat-port", "5002"], [false, false, true]),
        (&["--nat-port", "0"], [false; 3]),
    ] {
        let world = World::new();
        world.start_server(more);
        let ports = [43440, 5001, 5002u16];
        let is_held = |port| world.server.ns.run(|| std::net::UdpSocket::bind((SERVER, port)).is_err());
        assert_eq!(ports.map(is_held), held, "{more:?}");
    }
    let output = program(&["server", "--config", "none", "--nat-port", "43439"]);
    let complaint = text(&output.stderr);
    assert!(complaint.contains("--nat-port: \"43439\" is the port everybody knows"), "{complaint}");
}

#[test]
fn names_that_stand_for_nothing_are_all_told() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let ada = world.client("ada");
    let line = world.start_server(&[]);
    world.server.stop().expect("stopped");
    let file = world.directory.path().join("eps.log");
    let path = file.display().to_string();
    ada.start(&["--join", &line, "--server", "one.invalid,two.invalid", "--log", &path]).expect("started");
    let ended = eps_actor::cli::demo::scene::wait_until(Duration::from_secs(40), "ada to end", || Ok(ada.ended()));
    assert_eq!(ended.expect("an end").code(), Some(1));
    let log = ada.log();
    assert_eq!(complaints(&log).len(), 1, "{log}");
    let last = read(&file).lines().last().expect("a line").to_owned();
    for part in ["one.invalid: ", "two.invalid: "] {
        assert!(complaints(&log)[0].contains(part), "{log}");
        assert!(last.contains(" error - ") && last.contains(part), "why it ended is in the log, too: {last}");
    }
}

#[test]
fn a_log_file_has_the_layout_of_the_manual_and_takes_what_the_terminal_would() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let world = World::new();
    let file = world.directory.path().join("eps.log");
    start(&world.server, &["--log", &file.display().to_string()]);
    world.invite(true);
    world.server.ask_status().expect("asked");
    until("the status in the log", || read(&file).contains("SIGUSR1: status"));
    let id = pid(&world.server);
    let log = read(&file);
    let line = log.lines().find(|line| line.contains("SIGUSR1")).expect("a line");
    // 2014-06-23 20:31:59.634678 [00000x3f32:0x00007fe87f970780] info - …
    let mut words = line.splitn(3, ' ');
    let date = words.next().expect("a date");
    assert!(date.len() == 10 && date.split('-').all(|part| part.parse::<u16>().is_ok()), "{line}");
    let time = words.next().expect("a time");
    assert!(time.len() == 15 && time.as_bytes()[8] == b'.', "{line}");
    let process = format!("[{:0>10}:0x", format!("{id:#x}"));
    let rest = words.next().expect("the rest");
    assert!(rest.starts_with(&process) && rest.contains("] info - SIGUSR1: status"), "{line}");
    // The block below is what `eps-actor status` prints.
    assert!(log.contains("\nserver: 192.168.43.0/24, "), "{log}");
    assert!(log.contains("\nactor ") && log.contains("coordinator"), "{log}");
    world.server.stop().expect("stopped");
    assert!(read(&file).contains("info - SIGTERM: ending\n"), "{}", read(&file));
    assert!(!world.server.log().contains("SIGTERM"), "standard error has it, too");
}

#[test]
fn json_lines_have_a_time_with_a_zone_a_level_a_target_and_a_message() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let world = World::new();
    let file = world.directory.path().join("eps.log");
    start(&world.server, &["--log", &file.display().to_string(), "--log-format", "json", "--log-level=debug"]);
    world.invite(true);
    world.server.ask_status().expect("asked");
    until("the status in the log", || read(&file).contains("SIGUSR1: status"));
    world.server.stop().expect("stopped");
    let lines: Vec<Value> =
        read(&file).lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect();
    for line in &lines {
        for key in ["time", "level", "target", "message"] {
            assert!(line[key].is_string(), "{key} in {line}");
        }
        assert!(line["time"].as_str().is_some_and(|time| time.len() == 27 && time.ends_with('Z')), "{line}");
    }
    assert!(lines.iter().any(|line| line["message"].as_str().is_some_and(|text| text.contains("\nserver: "))));
    // On the terminal, too.
    start(&world.server, &["--log-format", "json"]);
    world.invite(true);
    world.server.stop().expect("stopped");
    // Between what it says to people.
    let log = world.server.log();
    let lines = log.lines().filter(|line| line.starts_with('{'));
    let mut messages = lines.map(|line| serde_json::from_str::<Value>(line).expect("JSON")["message"].clone());
    assert!(messages.any(|message| message == "SIGTERM: ending"));
}

#[test]
fn log_files_are_rotated_by_size_compressed_when_old_and_removed_by_count() {
    if !can_make_networks() || !has_program("gzip") {
        return;
    }
    let _turn = beside();
    let world = World::new();
    let file = world.directory.path().join("eps.log");
    let path = file.display().to_string();
    start(&world.server, &["--log", &path, "--log-max-size", "1KiB", "--log-max-age", "never", "--log-keep", "3"]);
    world.invite(true);
    let old = PathBuf::from(format!("{path}.3.gz"));
    until("three old files", || {
        world.server.ask_status().expect("asked");
        old.exists()
    });
    (0..5).for_each(|_| world.server.ask_status().expect("asked"));
    world.server.stop().expect("stopped");
    let mut names: Vec<_> = fs::read_dir(world.directory.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("eps.log"))
        .collect();
    names.sort();
    assert_eq!(names, ["eps.log", "eps.log.1", "eps.log.2.gz", "eps.log.3.gz"]);
    let unpacked = crate::lab::finish(Command::new("gzip").arg("-dc").arg(&old));
    assert!(unpacked.status.success() && text(&unpacked.stdout).contains(" info - "), "{}", text(&unpacked.stdout));
}

#[test]
fn a_log_file_is_rotated_by_age() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let world = World::new();
    let path = world.directory.path().join("eps.log").display().to_string();
    start(&world.server, &["--log", &path, "--log-max-age", "1s", "--log-keep", "1"]);
    world.invite(true);
    until("an old file", || {
        world.server.ask_status().expect("asked");
        Path::new(&format!("{path}.1")).exists()
    });
}

#[test]
fn a_full_disk_costs_lines_of_the_log_and_nothing_else() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let ada = world.client("ada");
    start(&world.server, &["--log", "/dev/full", "--advertise", SERVER]);
    let line = world.invite(true);
    join(&ada, &line, &[]);
    (0..20).for_each(|_| world.server.ask_status().expect("asked"));
    until("a complaint", || world.server.log().contains("the log cannot be written: No space left on device"));
    world.server.stop().expect("stopped");
    assert_eq!(complaints(&world.server.log()).len(), 1, "{}", world.server.log());
}

#[test]
fn a_log_that_cannot_be_opened_is_told_before_anything_is_done() {
    let said = program(&["server", "--config", "none", "--log", "/nonexistent/eps.log", "--state", "/nonexistent/s"]);
    assert_eq!(said.status.code(), Some(1));
    let told = text(&said.stderr);
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.starts_with("eps-actor: /nonexistent/eps.log: the log cannot be written: No such file"), "{told}");
}

#[test]
fn sighup_takes_what_it_can_names_what_needs_a_restart_and_leaves_a_broken_file_alone() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    let directory = world.directory.path().to_owned();
    let log = directory.join("eps.log");
    let before = format!("(advertise: [{SERVER:?}], log: {:?})", log.display().to_string());
    let file = write(&directory, "server.ron", &before);
    start(&world.server, &["--config", &file]);
    let line = world.invite(true);
    join(&ada, &line, &[]);
    assert_eq!(rights(&ada), 0);

    // Moved away, as logrotate does; and another configuration.
    fs::rename(&log, directory.join("moved.log")).expect("moved");
    let after = format!(
        "(advertise: [{SERVER:?}, \"vpn.example.org\"], log: {:?}, log_level: \"debug\", open: true, port: 5, \
         allow_routes: [\"ada=10.1.0.0/16\"], invite_expiry: \"1h\", members: [(name: \"ada\", rights: [\"bridge\"]), (name: \"bob\", address: \
         \"192.168.43.77\")])",
        log.display().to_string()
    );
    write(&directory, "server.ron", &after);
    world.server.hang_up().expect("signalled");
    let taken = format!("taken from the configuration: {}; a restart is needed for port", SERVER_LIVE.join(", "));
    until("the file to be taken", || read(&log).contains(&taken));
    let question = json!({"command": "invite", "reusable": false, "expires": null});
    let reply = world.server.control(&question).expect("an invitation");
    let invitation: JoinLine = reply["join"].as_str().and_then(|line| line.parse().ok()).expect("a line");
    assert_eq!(invitation.hosts.len(), 2, "{invitation}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let expires = reply["expires_unix"].as_u64().expect("a time");
    assert!((now + 3500..=now + 3600).contains(&expires), "an hour from {now}: {expires}");
    until("ada to have her right", || rights(&ada) == 1);
    let leases = world.server.server_status().expect("a status").leases;
    assert_eq!(leases[0].rights, ["bridge"]);
    // Open: a line without a token will do, and the name has an address.
    let open = JoinLine { token: None, ..invitation };
    assert_eq!(join(&bob, &open.to_string(), &["--server", SERVER]).to_string(), "192.168.43.77");

    write(&directory, "server.ron", "(open: 7,\n networc: 1)");
    world.server.hang_up().expect("signalled");
    until("the problems to be told", || read(&log).contains("networc: there is no such key"));
    assert!(read(&log).contains("server.ron:1:8: open: 7 is a number"), "{}", read(&log));
    assert!(world.server.control(&json!({"command": "status"})).expect("a status")["node"]["open"] == true);
    // And back.
    write(&directory, "server.ron", &before);
    world.server.hang_up().expect("signalled");
    until("ada to lose her right", || rights(&ada) == 0);
}

#[test]
fn sighup_gives_a_client_another_log_level() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let ada = world.client("ada");
    let line = world.start_server(&[]);
    let directory = world.directory.path().to_owned();
    let file = write(&directory, "client.ron", "(log_level: \"warn\")");
    start(&ada, &["--config", &file, "--join", &line]);
    address(&ada);
    assert!(!ada.log().contains("connected to the server"), "{}", ada.log());
    write(&directory, "client.ron", "(log_level: \"info\", mtu: 1300)");
    ada.hang_up().expect("signalled");
    until("the level to change", || {
        ada.log().contains("taken from the configuration: log_level; a restart is needed for mtu")
    });
    ada.ask_status().expect("asked");
    until("the status", || ada.log().contains("SIGUSR1: status\nclient ada: "));
}

#[test]
fn mss_clamp_makes_segments_fit_the_path_unless_it_is_off() {
    for (option, named) in [("--mss-clamp", 1206 - 40), ("--mss-clamp=false", 1376 - 40)] {
        let Some(narrow) = Narrow::new(1376, &[option], beside) else { return };
        narrow.carry(1280);
        narrow.meet();
        narrow.until_known(1280);
        // The search goes on for a moment after the size is known.
        until("the size that a connection names", || named_at_bob(&narrow) == named);
        println!("{option}: a connection names segments of {named} octets");
    }
}

#[test]
fn strangers_cannot_fill_the_log() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let stranger = world.host();
    let file = world.directory.path().join("eps.log");
    start(&world.server, &["--log", &file.display().to_string(), "--log-level", "debug"]);
    world.invite(true);
    let server = SocketAddr::from((SERVER.parse::<Ipv4Addr>().expect("an address"), 43439));
    const TIMES: usize = 400;
    stranger.run(|| {
        for _ in 0..TIMES {
            drop(TcpStream::connect_timeout(&server, Duration::from_secs(2)).expect("a connection"));
        }
    });
    world.server.ask_status().expect("asked");
    until("the status in the log", || read(&file).contains("SIGUSR1: status"));
    let said =
        read(&file).lines().filter(|line| line.contains(" debug - ") && line.contains("from 198.51.100.2:")).count();
    // Some kinds of ends, each with its budget.
    assert!((1..=3 * BUDGET as usize).contains(&said), "{said} lines of {TIMES} connections: {}", read(&file));
    println!("log: {TIMES} connections of a stranger are {said} lines");
}

#[test]
fn a_crowd_of_new_members_is_a_few_lines() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let world = World::new();
    let line: JoinLine = world.start_server(&[]).parse().expect("a line");
    const CROWD: usize = 60;
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 43439));
    let guest = |number| Guest::new(number, &world.server.ns, server, &line, Instant::now());
    let mut crowd: Vec<Guest> = (0..CROWD).map(guest).collect();
    until("the crowd to have leases", || {
        run(&mut crowd);
        holders(&crowd) == CROWD
    });
    assert_eq!(world.server.server_status().expect("a status").leases.len(), CROWD);
    let log = world.server.log();
    assert_eq!(log.lines().filter(|line| line.contains(" joined from ")).count(), BUDGET as usize, "{log}");
    println!("log: {CROWD} new members are {BUDGET} lines");
}

#[test]
fn no_secret_is_in_the_log_at_any_level() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    let directory = world.directory.path().to_owned();
    let logs = ["server", "ada", "bob"].map(|name| directory.join(format!("{name}.log")));
    let with = |index: usize| logs[index].display().to_string();
    // Without --advertise it looks for its addresses, of which there is a trace.
    start(&world.server, &["--log", &with(0), "--log-level", "trace"]);
    let lines = [world.invite(true), world.invite(false)];
    start(&ada, &["--log", &with(1), "--log-level", "trace", "--join", &lines[0]]);
    address(&ada);
    // One that comes back, and one by its file of options: what is wrong with that is told, too.
    ada.stop().expect("stopped");
    start(&ada, &["--log", &with(1), "--log-level", "trace"]);
    let file = write(&directory, "bob.ron", &format!("(join: {:?})", lines[1]));
    start(&bob, &["--log", &with(2), "--log-level", "trace", "--config", &file]);
    let to = [&ada, &bob].map(address)[1];
    crate::lab::ping(&ada, &bob, to);
    write(&directory, "bob.ron", &format!("(join: {:?}, frob: 1)", &lines[1][..lines[1].len() - 1]));
    bob.hang_up().expect("signalled");
    until("the problems to be told", || read(&logs[2]).contains("frob: there is no such key"));
    for node in [&ada, &bob, &world.server] {
        node.ask_status().expect("asked");
        node.stop().expect("stopped");
    }

    let mut secrets = Vec::new();
    for line in &lines {
        let token = line.rsplit('/').next().expect("a token");
        // With its checksum, and without.
        secrets.push(("the end of a join line".to_owned(), token.to_owned()));
        secrets.push(("a token".to_owned(), token[..24].to_owned()));
        let parsed: JoinLine = line.parse().expect("a line");
        secrets.extend(spelled("a pre-shared key", &parsed.token.expect("a token").psk()[..]));
    }
    for node in [&world.server, &ada, &bob] {
        for entry in fs::read_dir(node.state_path()).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|end| end == "key") {
                let name = format!("{} of {}", path.file_name().unwrap_or_default().to_string_lossy(), node.name);
                secrets.extend(spelled(&name, &fs::read(&path).expect("a key")));
            }
        }
    }
    assert!(secrets.len() > 20, "{} secrets", secrets.len());
    let mut bytes = 0;
    for (node, path) in [&world.server, &ada, &bob].into_iter().zip(&logs) {
        let said = [read(path), if node.role == Role::Client { node.log() } else { String::new() }].concat();
        assert!(said.contains(" trace - "), "{}: no trace", node.name);
        bytes += said.len();
        let said = said.to_lowercase();
        for (what, secret) in &secrets {
            assert!(!said.contains(&secret.to_lowercase()), "{what} is in the log of {}", node.name);
        }
    }
    println!("log: {} spellings of secrets are in none of {bytes} bytes of trace", secrets.len());
}

/// A secret as somebody careless might print it.
fn spelled(what: &str, secret: &[u8]) -> Vec<(String, String)> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{secret:?}");
    let base32 = grouped(secret, 5, b"abcdefghijklmnopqrstuvwxyz234567");
    let base64 = grouped(secret, 6, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/");
    let url = base64.replace('+', "-").replace('/', "_");
    // A few bytes of it would be bad enough.
    let spelled = [&hex[..16], &list[1..list.len() - 1], &base32[..16], &base64[..16], &url[..16]];
    spelled.map(|text| (what.to_owned(), text.to_owned())).to_vec()
}

/// The bits in groups of this size, each as a letter; without padding.
fn grouped(bytes: &[u8], size: usize, letters: &[u8]) -> String {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let letter = |group: &[u8]| {
        let padded = group.iter().chain(std::iter::repeat(&0)).take(size);
        letters[padded.fold(0_usize, |all, bit| all << 1 | usize::from(*bit))] as char
    };
    bits.chunks(size).map(letter).collect()
}

/// Rights of the certificate that a client has on disk, where it is a moment after the client has it.
fn rights(client: &Node) -> u8 {
    let state = StateDir::open_or_create(client.state_path()).expect("a directory");
    let mut lease = None;
    until("a lease on disk", || {
        lease = SavedNetwork::load(&state).expect("readable").and_then(|saved| saved.lease());
        lease.is_some()
    });
    Certificate::parse(&lease.expect("waited for").0).expect("a certificate").rights
}

/// Starts the program with its own state and control socket, and no other option than these.
fn start(node: &Node, more: &[&str]) {
    let mut command = Command::new(BIN);
    command.args(own(node)).args(more);
    if !more.iter().any(|word| word.starts_with("--conf")) {
        command.args(["--config", "none"]);
    }
    node.start_command(command).expect("started");
}

fn own(node: &Node) -> Vec<String> {
    let mut words: Vec<String> = match node.role {
        Role::Server => vec!["server".into()],
        Role::Client => ["client", "--device", "eps0", "--name", &node.name].map(str::to_owned).into(),
    };
    for (option, path) in [("--state", node.state_path()), ("--control", node.control_path())] {
        words.extend([option.to_owned(), path.display().to_string()]);
    }
    words
}

/// As [`start`], with a /var/log that nobody else has.
fn start_in_own_var_log(node: &Node, line: &str) {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs log /var/log && exec \"$0\" \"$@\"", BIN]);
    command.args(own(node)).args(["--config", "none"]).args(line.split_whitespace());
    node.start_command(command).expect("started");
}

fn in_var_log(node: &Node, file: &str) -> PathBuf {
    until("the node to have its lock", || node.control(&json!({"command": "status"})).is_ok());
    PathBuf::from(format!("/proc/{}/root/var/log/{file}", pid(node)))
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, text).expect("written");
    path.display().to_string()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
