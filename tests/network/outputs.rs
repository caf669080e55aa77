//! What a node says of itself: five outputs of one snapshot, files, the metrics page.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use eps_actor::cli::demo::scene::{Node, wait_until};
use eps_actor::io::netns::{Netns, can_make_networks};
use serde_json::{Value, json};

use crate::lab::{
    SOON, World, beside, counter, finish, finish_in, has_program, join, ping, program, run_in, text, until,
    wait_for_direct,
};

/// Pings sent, and the payload of each in bytes.
const PINGS: u64 = 20;
const PAYLOAD: u64 = 300;
/// An Ethernet, an IPv4 and an ICMP header before the payload.
const FRAME: u64 = 14 + 20 + 8 + PAYLOAD;

#[test]
fn five_outputs_of_one_snapshot_have_the_same_sums() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    for node in [&ada, &bob] {
        // Nothing but what the test sends may pass.
        run_in(&node.ns, "sysctl -q -w net.ipv6.conf.default.disable_ipv6=1");
    }
    let line = world.start_server(&["--network6", "none"]);
    join(&ada, &line, &[]);
    let to = join(&bob, &line, &[]);
    ping(&ada, &bob, to);
    wait_for_direct(&ada, "bob");
    wait_for_direct(&bob, "ada");

    let before = snapshot(&ada);
    let pinged = finish_in(
        &ada.ns,
        Command::new("ping")
            .args(["-q", "-i", "0.05", "-c", &PINGS.to_string(), "-s", &PAYLOAD.to_string()])
            .arg(to.to_string()),
    );
    assert!(pinged.status.success(), "{}", text(&pinged.stdout));
    let grown =
        |of: &Value, name: &str| number(&of["status"]["counters"][name]) - number(&before["status"]["counters"][name]);
    let (frames, bytes) = (PINGS, PINGS * FRAME);
    let all = snapshot(&ada);
    for way in ["direct_tx", "direct_rx", "tap_tx"] {
        // The neighbour may have been asked for meanwhile, by a few frames of their own.
        let (frames_grown, bytes_grown) = (grown(&all, &format!("{way}_frames")), grown(&all, &format!("{way}_bytes")));
        assert!((frames..frames + 4).contains(&frames_grown), "{way}: {frames_grown} of {frames}");
        assert!((bytes..bytes + 4 * 100).contains(&bytes_grown), "{way}: {bytes_grown} of {bytes}");
    }
    assert_eq!(grown(&all, "relay_tx_frames"), 0);
    agree(
        &all,
        "client",
        &[
            (
                "direct_rx_frames",
                "direct_packets_received",
                "direct packets received",
                "eps_frames_total{way=\"direct\",dir=\"rx\"}",
            ),
            (
                "direct_rx_bytes",
                "direct_bytes_received",
                "direct bytes received",
                "eps_frame_bytes_total{way=\"direct\",dir=\"rx\"}",
            ),
            (
                "direct_tx_frames",
                "direct_packets_sent",
                "direct packets sent",
                "eps_frames_total{way=\"direct\",dir=\"tx\"}",
            ),
            (
                "direct_tx_bytes",
                "direct_bytes_sent",
                "direct bytes sent",
                "eps_frame_bytes_total{way=\"direct\",dir=\"tx\"}",
            ),
            (
                "tap_rx_frames",
                "tap_packets_received",
                "tap packets received",
                "eps_frames_total{way=\"tap\",dir=\"rx\"}",
            ),
            ("tap_tx_bytes", "tap_bytes_sent", "tap bytes sent", "eps_frame_bytes_total{way=\"tap\",dir=\"tx\"}"),
            (
                "connections_established",
                "connections_established",
                "connections established",
                "eps_connections_established_total",
            ),
        ],
    );

    // The members tell the server every few seconds; then its map and its documents say what they counted.
    let counted = number(&snapshot(&ada)["status"]["peers"][0]["tx_bytes"]);
    let mut all = Value::Null;
    until("the server to know", || {
        all = snapshot(&world.server);
        let leases = all["json"]["leases"].as_array().cloned().unwrap_or_default();
        leases.iter().any(|lease| lease["name"] == "ada" && lease["tx_bytes"] == counted)
    });
    agree(
        &all,
        "server",
        &[
            ("udp_rx_datagrams", "server_packets_received", "packets received", "eps_packets_total{dir=\"rx\"}"),
            ("udp_rx_bytes", "server_bytes_received", "bytes received", "eps_rx_bytes_total"),
            (
                "connections_established",
                "connections_established",
                "connections established",
                "eps_connections_established_total",
            ),
        ],
    );
    let map = all["map"].as_str().expect("a map");
    let page = all["prom"].as_str().expect("a page");
    for (lease, told) in all["json"]["leases"]
        .as_array()
        .expect("leases")
        .iter()
        .zip(all["status"]["leases"].as_array().expect("leases"))
    {
        assert_eq!(lease, told, "scorecard and status");
        let [rx, tx] = ["rx_bytes", "tx_bytes"].map(|way| number(&lease[way]));
        assert!(rx > bytes && tx > bytes, "{lease}");
        let name = lease["name"].as_str().expect("a name");
        assert!(map.contains(&format!(": in {rx} bytes, out {tx} bytes\"")), "{rx} {tx} in {map}");
        for (dir, bytes) in [("rx", rx), ("tx", tx)] {
            assert_eq!(
                sample(page, &format!("eps_member_bytes{{member=\"{name}\",dir=\"{dir}\"}}")),
                bytes.to_string()
            );
        }
    }
    println!("outputs: {frames} frames of {FRAME} bytes are {bytes} bytes in all five");
}

#[test]
fn what_is_relayed_is_counted_apart_at_both_ends_and_as_forwarded_between() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    for node in [&ada, &bob] {
        run_in(&node.ns, "sysctl -q -w net.ipv6.conf.default.disable_ipv6=1");
    }
    let line = world.start_server(&["--network6", "none"]);
    join(&ada, &line, &["--direct=false"]);
    let to = join(&bob, &line, &["--direct=false"]);
    ping(&ada, &bob, to);
    let pings =
        ["ping", "-q", "-i", "0.05", "-c", &PINGS.to_string(), "-s", &PAYLOAD.to_string(), &to.to_string()].join(" ");
    run_in(&ada.ns, &pings);

    let all = snapshot(&ada);
    let counters = &all["status"]["counters"];
    for way in ["relay_tx", "relay_rx"] {
        assert!(number(&counters[format!("{way}_frames")]) >= PINGS, "{counters}");
        assert!(number(&counters[format!("{way}_bytes")]) >= PINGS * FRAME, "{counters}");
    }
    assert_eq!((&counters["direct_tx_frames"], &counters["direct_rx_frames"]), (&json!(0), &json!(0)));
    agree(
        &all,
        "client",
        &[
            (
                "relay_rx_frames",
                "server_packets_received",
                "packets received",
                "eps_frames_total{way=\"relay\",dir=\"rx\"}",
            ),
            ("relay_tx_bytes", "server_bytes_sent", "bytes sent", "eps_frame_bytes_total{way=\"relay\",dir=\"tx\"}"),
        ],
    );
    let told = || text(&program(&["map", "--control", &world.server.control_path().display().to_string()]).stdout);
    until("the map to show the pair", || told().contains("\"ada\" -- \"(server)\" [color=\"#f29900\""));
    let all = snapshot(&world.server);
    let counters = &all["status"]["counters"];
    assert!(number(&counters["relayed_bytes"]) >= 2 * PINGS * FRAME, "{counters}");
    let sent = number(&counters["udp_tx_bytes"]) - number(&counters["relayed_bytes"]);
    let classic = all["classic"].as_str().expect("text");
    assert!(classic.lines().any(|line| line == format!("total_server_bytes_sent {sent}")), "{sent} in {classic}");
    agree(
        &all,
        "server",
        &[
            (
                "relayed_datagrams",
                "server_packets_forwarded",
                "packets forwarded",
                "eps_packets_total{dir=\"forwarded\"}",
            ),
            ("relayed_bytes", "server_bytes_forwarded", "bytes forwarded", "eps_forwarded_bytes_total"),
        ],
    );
}

/// The same number under its name in status, scorecard, classic lines, log text and Prometheus's page.
fn agree(all: &Value, role: &str, names: &[(&str, &str, &str, &str)]) {
    assert_eq!(all["json"]["role"], role);
    let of = |output: &str| all[output].as_str().expect("text").to_owned();
    let (classic, stats, page) = (of("classic"), of("stats"), of("prom"));
    let total = stats.split("total stats:\n").nth(1).expect("totals");
    for (counter, classic_name, words, metric) in names {
        let value = number(&all["status"]["counters"][counter]);
        assert!(value > 0, "{counter} is nought, which would show nothing");
        assert_eq!(all["json"]["totals"][counter], value, "{counter}");
        let line = format!("total_{classic_name} {value}");
        assert!(classic.lines().any(|found| found == line), "{line} in {classic}");
        let line = format!("{value} {words}");
        assert!(
            total.lines().any(|found| found == line || found.starts_with(&format!("{line} ("))),
            "{line} in {total}"
        );
        assert_eq!(sample(&page, metric), value.to_string(), "{metric}");
    }
}

#[test]
fn metrics_are_served_on_loopback_and_promtool_finds_nothing_wrong() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    let card = world.directory.path().join("ada.prom");
    let card_text = card.display().to_string();
    let line = world.start_server(&["--metrics", "127.0.0.1:9469"]);
    join(&ada, &line, &["--metrics", "9470", "--scorecard", &card_text]);
    let to = join(&bob, &line, &[]);
    ping(&ada, &bob, to);
    wait_for_direct(&ada, "bob");

    let server = scrape(&world.server.ns, 9469, "/metrics");
    let client = scrape(&ada.ns, 9470, "/metrics");
    for answer in [&server, &client] {
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\ncontent-type: text/plain; version=0.0.4"), "{answer}");
        assert!(answer.ends_with('\n'));
    }
    assert!(scrape(&ada.ns, 9470, "/").starts_with("HTTP/1.1 404 "));
    let outside = bob.ns.run(|| TcpStream::connect_timeout(&"198.51.100.2:9470".parse().expect("an address"), SOON));
    assert!(outside.is_err(), "it is not for others");
    let body = |answer: &str| answer.split_once("\r\n\r\n").expect("a body").1.to_owned();
    assert_eq!(sample(&body(&server), "eps_members{state=\"online\"}"), "2");
    assert_eq!(sample(&body(&client), "eps_peer_up{peer=\"bob\"}"), "1");

    let file = wait_until(SOON, "the scorecard", || Ok(fs::read_to_string(&card).ok())).expect("a scorecard");
    let names = |page: &str| {
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ").map(str::to_owned)).collect::<Vec<_>>()
    };
    for name in names(&file) {
        assert!(names(&body(&client)).contains(&name), "{name} is in the file and not in the page");
    }
    for (what, page) in [("server", body(&server)), ("client", body(&client)), ("file", file)] {
        well_formed(&page);
        promtool(&["check", "metrics"], &page, what);
    }
}

/// The rules of the text format that a reader depends on.
fn well_formed(page: &str) {
    let mut done: Vec<String> = Vec::new();
    let mut series: Vec<&str> = Vec::new();
    assert!(page.ends_with('\n') && !page.contains('\r'));
    for line in page.lines() {
        if let Some(head) = line.strip_prefix("# HELP ") {
            let name = head.split(' ').next().expect("a name").to_owned();
            assert!(!done.contains(&name), "{name} twice");
            done.push(name);
        } else if let Some(head) = line.strip_prefix("# TYPE ") {
            let (name, kind) = head.split_once(' ').expect("a kind");
            assert_eq!(done.last().map(String::as_str), Some(name), "HELP comes first");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
        } else {
            let (one, value) = line.rsplit_once(' ').expect("a value");
            let name = one.split('{').next().expect("a name");
            assert_eq!(done.last().map(String::as_str), Some(name), "samples of a name stand together");
            assert!(!series.contains(&one), "{one} twice");
            assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
            series.push(one);
        }
    }
}

fn promtool(words: &[&str], input: &str, what: &str) {
    if !has_program("promtool") {
        return;
    }
    let child = Command::new("promtool")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.expect("started");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ended");
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && !said.contains("lint"), "{what}: {said}");
    println!("promtool {}: nothing wrong with the {what}", words.join(" "));
}

#[test]
fn on_a_full_disk_the_old_scorecard_stays_and_the_failure_is_counted() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let ada = world.client("ada");
    // The smallest tmpfs there is; a page of ballast fills it.
    let disk = world.directory.path().join("disk");
    fs::create_dir(&disk).expect("a directory");
    let disk_text = disk.display().to_string();
    let mounted = finish(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs", &disk_text]));
    assert!(mounted.status.success(), "{}", text(&mounted.stderr));
    let mounted = Unmount(&disk_text);
    let card = disk.join("ada.json");
    fs::write(&card, "the old one\n").expect("written");
    let mut ballast = fs::File::create(disk.join("ballast")).expect("a file");
    while ballast.write_all(&[0; 4096]).is_ok() {}

    let line = world.start_server(&[]);
    join(&ada, &line, &["--scorecard", &card.display().to_string()]);
    until("the failure to be counted", || counter(&ada, "output_failures") > 0);
    assert_eq!(fs::read_to_string(&card).expect("the file"), "the old one\n");
    let left: Vec<_> =
        fs::read_dir(&disk).expect("a directory").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left.len(), 2, "no temporary file stays: {left:?}");
    let told = ada.log().lines().filter(|line| line.contains("the scorecard cannot be written")).count();
    assert_eq!(told as u64, counter(&ada, "output_failures"), "one line for each time");
    ada.stop().expect("stopped");
    drop(mounted);
}

/// It takes no turn: for a minute it does next to nothing.
#[test]
fn each_minute_statistics_are_logged_where_asked_for_and_files_are_written_anew() {
    if !can_make_networks() {
        return;
    }
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    for node in [&ada, &bob] {
        run_in(&node.ns, "sysctl -q -w net.ipv6.conf.default.disable_ipv6=1");
    }
    let card = world.directory.path().join("server.stats");
    let line = world.start_server(&[
        "--network6",
        "none",
        "--stats",
        "--scorecard",
        &card.display().to_string(),
        "--scorecard-format",
        "classic",
    ]);
    join(&ada, &line, &["--stats"]);
    join(&bob, &line, &[]);
    let first = wait_until(SOON, "the scorecard", || Ok(fs::read_to_string(&card).ok())).expect("a scorecard");
    assert!(first.starts_with("schema 1\nrole server\n") && first.ends_with(")\n"), "{first}");

    let blocks = |node: &Node| node.log().matches("EPS statistics:\n60-second stats:\n").count();
    let minute = Duration::from_secs(75);
    wait_until(minute, "the minute", || Ok((blocks(&ada) > 0 && blocks(&world.server) > 0).then_some(())))
        .expect("logged");
    assert_eq!(blocks(&bob), 0, "nobody asked it");
    let log = world.server.log();
    let rates = log.lines().find(|line| line.contains(" info ") && line.contains("in: ")).expect("a line of rates");
    for part in ["in: ", " Bps (", " bps), out: ", ", fwd: 0.00 Bps (0.00 bps)"] {
        assert!(
            rates.contains(part) || rates.contains(&part.replace("Bps", "KBps").replace("bps", "Kbps")),
            "{part}: {rates}"
        );
    }
    let total = log.split("total stats:\n").nth(1).expect("totals");
    for words in [" packets received\n", " bytes received (", " packets sent\n", "\n2 connections established"] {
        assert!(total.contains(words), "{words:?} in {total}");
    }
    assert!(!total.contains("forwarded"), "what is nought is left out: {total}");
    until("the file to be written anew", || {
        let text = fs::read_to_string(&card).expect("always there");
        text.lines().any(|line| line == "total_connections_established 2") && text.contains("\nwindow_seconds 60")
    });
}

struct Unmount<'a>(&'a str);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", self.0]).status();
    }
}

#[test]
fn the_map_is_written_and_becomes_an_svg() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    let file = world.directory.path().join("eps.gv");
    let line = world.start_server(&["--graphviz", &file.display().to_string()]);
    let map = wait_until(SOON, "the map", || Ok(fs::read_to_string(&file).ok())).expect("a map");
    assert!(map.starts_with("// 20") && map.ends_with("}\n"), "{map}");
    join(&ada, &line, &[]);
    let to = join(&bob, &line, &[]);
    ping(&ada, &bob, to);
    let control = world.server.control_path().display().to_string();
    until("the map to show the pair", || {
        text(&program(&["map", "--control", &control]).stdout).contains("\"ada\" -- \"bob\"")
    });
    let picture = world.directory.path().join("map.svg");
    let drawn = program(&["map", "--svg", &picture.display().to_string(), "--control", &control]);
    if has_program("dot") {
        assert!(drawn.status.success(), "{}", text(&drawn.stderr));
        let svg = fs::read_to_string(&picture).expect("a picture");
        assert!(svg.contains("<svg") && svg.contains(">ada</text>"), "{svg}");
    }
    let without = finish(
        Command::new(crate::lab::BIN)
            .args(["map", "--svg", "x.svg", "--control", &control])
            .env("PATH", world.directory.path()),
    );
    assert_eq!(without.status.code(), Some(1));
    let told = text(&without.stderr);
    assert!(told.contains("dot is not installed") && told.lines().count() == 1, "{told}");
    assert!(!Path::new("x.svg").exists());
}

fn snapshot(node: &Node) -> Value {
    node.control(&json!({"command": "scorecard", "format": "all"})).expect("all outputs")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The value of one series of a page.
fn sample(page: &str, series: &str) -> String {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in {page}")).to_owned()
}

fn scrape(ns: &Netns, port: u16, path: &str) -> String {
    let mut stream = ns.run(|| TcpStream::connect(("127.0.0.1", port))).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}
