//! What cannot work is said in one clear line that tells what to do; the exit code is 2 for usage and configuration and
//! 1 for the rest; and the state on disk stays as it was.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use eps_actor::cli::demo::scene::Node;
use eps_actor::io::netns::can_make_networks;

use crate::lab::{BIN, World, beside, complaints, finish_in, has_program, join, text, until, wait_for_end};

#[test]
fn a_server_that_cannot_start_says_why_in_one_line_and_touches_nothing() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    world.start_server(&[]);
    let dir = world.server.dir.clone();
    let control = dir.join("other.sock").display().to_string();
    let state = world.server.state_path().display().to_string();
    let fresh = dir.join("fresh").display().to_string();
    let server = |args: &[&str]| {
        let args = [&["server", "--control", &control], args].concat();
        finish_in(&world.server.ns, Command::new(BIN).args(args).current_dir(&dir))
    };
    let before = files(&world.server);
    refused("port in use", &server(&["--state", &fresh]), 1, &["43439", "in use", "another port"]);
    assert!(!Path::new(&fresh).exists(), "nothing was made");
    refused(
        "second server on one state",
        &server(&["--state", &state, "--port", "5000"]),
        1,
        &["is in use by process"],
    );
    refused("pool too small", &server(&["--state", &fresh, "--network", "10.0.0.0/31"]), 2, &["--network", "/30"]);
    refused("unknown option", &server(&["--frob"]), 2, &["--frob"]);
    let broken = dir.join("broken.ron");
    fs::write(&broken, "(port: 43439, listen: [)").expect("written");
    refused("malformed config", &server(&["--config", &broken.display().to_string()]), 2, &["broken.ron:1:"]);
    refused("no config", &server(&["--config", "/none/such.ron"]), 2, &["/none/such.ron"]);
    world.server.stop().expect("stopped");
    let kept = files(&world.server);
    assert_eq!(before.get("node.key"), kept.get("node.key"));

    let key = world.server.state_path().join("node.key");
    let good = fs::read(&key).expect("a key");
    let with = |mode: u32, bytes: &[u8], name: &str, words: &[&str]| {
        fs::write(&key, bytes).expect("written");
        fs::set_permissions(&key, Permissions::from_mode(mode)).expect("set");
        let before = files(&world.server);
        refused(name, &server(&["--state", &state]), 1, words);
        assert_eq!(files(&world.server), before, "{name}");
    };
    with(0o644, &good, "world-readable key", &["node.key", "0644", "chmod 600"]);
    with(0o600, &good[..31], "key of a wrong length", &["node.key", "31 bytes"]);
    fs::write(&key, &good).expect("written");
    let database = ["network.db", "network.db-wal", "network.db-shm"].map(|name| world.server.state_path().join(name));
    let kept = database.each_ref().map(|path| fs::read(path).ok());
    // With its log beside it SQLite would mend it.
    database.iter().for_each(|path| drop(fs::remove_file(path)));
    fs::write(&database[0], b"this is no database, whatever its name says").expect("written");
    fs::set_permissions(&database[0], Permissions::from_mode(0o600)).expect("set");
    let before = files(&world.server);
    refused("no database", &server(&["--state", &state]), 1, &["network.db"]);
    assert_eq!(files(&world.server), before);
    for (path, bytes) in database.iter().zip(kept) {
        if let Some(bytes) = bytes {
            fs::write(path, bytes).expect("written");
            fs::set_permissions(path, Permissions::from_mode(0o600)).expect("set");
        }
    }
    // After all that it starts as if nothing had been.
    let ada = world.client("ada");
    let line = world.start_server(&[]);
    join(&ada, &line, &[]);
}

#[test]
fn a_client_that_cannot_start_says_why_in_one_line_and_touches_nothing() {
    if !can_make_networks() || !has_program("unshare") || !has_program("setpriv") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let ada = world.client("ada");
    let line = world.start_server(&[]);
    join(&ada, &line, &[]);
    ada.stop().expect("stopped");
    let before = files(&ada);
    let state = ada.state_path().display().to_string();
    let control = ada.control_path().display().to_string();
    let client = |wrapper: &[&str], args: &[&str]| {
        let words = [wrapper, &[BIN, "client", "--state", &state, "--control", &control], args].concat();
        let mut command = Command::new(words[0]);
        finish_in(&ada.ns, command.args(&words[1..]).current_dir(&ada.dir).env_remove("EPS_JOIN"))
    };
    // A place without the device.
    let hidden = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$@\"", "sh"];
    refused("no TUN device", &client(&hidden, &[]), 1, &["/dev/net/tun"]);
    let unprivileged = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    refused("no privilege", &client(&unprivileged, &[]), 1, &["not permitted", "root"]);
    let closed = "mount -t tmpfs none /dev/net && mknod -m 000 /dev/net/tun c 10 200 && exec setpriv \"$@\"";
    let closed = [&["unshare", "-m", "sh", "-c", closed, "sh"], &unprivileged[1..]].concat();
    refused("a closed TUN device", &client(&closed, &[]), 1, &["closed to this user", "chmod 666 /dev/net/tun"]);
    refused("usage", &client(&[], &["--mtu", "12"]), 2, &["--mtu", "576"]);
    refused("mistyped join line", &client(&[], &["--join", "eps://host/aaaa/bbbb"]), 2, &["--join"]);
    assert_eq!(files(&ada), before);

    let key = ada.state_path().join("node.key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).expect("set");
    refused("world-readable key", &client(&[], &[]), 1, &["node.key", "0644", "chmod 600"]);
    fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("set");
    assert_eq!(files(&ada), before);

    // Others, which have no state yet.
    let fresh = |name: &str| ada.dir.join(name).display().to_string();
    let newcomer = |name: &str, args: &[&str]| {
        let state = fresh(name);
        let args = [&["client", "--state", &state, "--control", &control], args].concat();
        finish_in(&ada.ns, Command::new(BIN).args(args).env_remove("EPS_JOIN"))
    };
    refused("no join line", &newcomer("one", &[]), 1, &["in no network yet", "--join"]);
    let elsewhere = line.replace("198.51.100.1", "none.such.invalid");
    refused("unknown server name", &newcomer("two", &["--join", &elsewhere]), 1, &["none.such.invalid", "DNS"]);
    refused("bad name", &newcomer("three", &["--join", &line, "--name", "x y"]), 2, &["--name"]);
    assert_eq!(files(&ada), before);

    // Its own state still does.
    ada.start(&[]).expect("started");
    until("the network", || ada.address().ok().flatten().is_some());
}

#[test]
fn a_name_that_is_taken_is_refused_and_another_one_will_do() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let ada = world.client("ada");
    let mut other = world.client("other");
    let line = world.start_server(&[]);
    join(&ada, &line, &[]);
    other.name = "ada".to_owned();
    other.start(&["--join", &line]).expect("started");
    let status = wait_for_end(&other);
    let log = other.log();
    assert_eq!(status.code(), Some(1), "{log}");
    let told = complaints(&log);
    assert_eq!(told.len(), 1, "{log}");
    assert!(told[0].contains("the name `ada` belongs to another member") && told[0].contains("--name"), "{log}");
    println!("bad input: name taken: exit 1: {}", told[0]);
    other.name = "other".to_owned();
    join(&other, &line, &[]);
}

/// One line, an exit code, and the words it must hold.
fn refused(what: &str, output: &Output, code: i32, words: &[&str]) {
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{what}: {told}");
    // Usage is told by clap in its own form; a log may come before the rest.
    let lines: Vec<&str> = match complaints(&told) {
        found if found.is_empty() => told.lines().collect(),
        found => found,
    };
    assert!(code == 2 || lines.len() == 1, "{what}: {told}");
    let line = lines.join("\n");
    for word in words {
        assert!(line.contains(word), "{what}: {word:?} in {told}");
    }
    assert!(!told.contains("panicked"), "{what}: {told}");
    println!("bad input: {what}: exit {code}: {}", lines[0]);
}

/// Every file of a node's state with its content. The lock's own file and the count of starts may change.
fn files(node: &Node) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(node.state_path()).expect("a directory");
    let all = entries.map(|entry| entry.expect("an entry"));
    all.map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a file")))
        .filter(|(name, _)| name != "lock" && name != "boots")
        .collect()
}
