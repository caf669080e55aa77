//! Paths of real nodes: found silent and left, come back to, chosen among, and used several at once (F-08, F-09, F-25,
//! N-12, N-13, M-01 to M-08).
//!
//! Two clients have two interfaces each, on two switches; the server is on the first. Loss and cuts are iptables rules,
//! rates are tbf, delays are cables of the first client.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::Node;
use eps_actor::config::Role;
use eps_actor::io::netns::{Lan, Netns, can_make_networks};
use serde_json::{Value, json};

use crate::delay::Cable;
use crate::flow::{Flow, Outcome};
use crate::lab::{
    World, alone, beside, counter, finish, has_program, is_long, join, node, ping, run_in, text, until, wait_for_direct,
};

const MS: Duration = Duration::from_millis(1);

/// Two clients with a server between them.
struct Pair {
    world: World,
    second: Lan,
    a: (Node, IpAddr),
    b: (Node, IpAddr),
    /// Those of a, in their order, where they may delay.
    cables: Vec<Cable>,
}

/// How two clients are connected.
#[derive(Clone, Copy, PartialEq)]
enum Ways {
    One,
    /// The same, and a's end is a [`Cable`].
    OneCable,
    Two,
    /// The same, and both of a's ends are [`Cable`]s, which hold everything so long.
    TwoCables([Duration; 2]),
}

impl Pair {
    /// On one switch, with one interface each; `None` where the machine has no namespaces or no iptables.
    fn on_one_switch(more: &[&str]) -> Option<Self> {
        Self::new(Ways::One, more)
    }

    /// On two switches, both interfaces named as uplinks.
    fn on_two_switches(more: &[&str]) -> Option<Self> {
        Self::new(Ways::Two, &[&["--uplink", "eth0", "--uplink", "eth1"], more].concat())
    }

    /// The same, where a's cables may delay and lose, and hold everything so long from the beginning.
    fn on_two_cables(hold: [Duration; 2], more: &[&str]) -> Option<Self> {
        Self::new(Ways::TwoCables(hold), &[&["--uplink", "eth0", "--uplink", "eth1"], more].concat())
    }

    fn new(ways: Ways, more: &[&str]) -> Option<Self> {
        if !can_make_networks() || !has_program("iptables") {
            return None;
        }
        let two = matches!(ways, Ways::Two | Ways::TwoCables(_));
        let (mut world, mut second) = (World::new(), Lan::new().expect("a switch"));
        let line = world.start_server(&[]);
        let mut cables = Vec::new();
        let mut client = |name: &str, host: u8| -> Node {
            let may_delay = host == 2 && matches!(ways, Ways::OneCable | Ways::TwoCables(_));
            let ns: Arc<Netns> = if may_delay {
                let (ns, cable) = world.host_by_cable();
                cables.push(cable);
                ns
            } else {
                world.host()
            };
            let place = format!("203.0.113.{host}/24");
            match (two, may_delay) {
                (true, true) => cables.push(Cable::plug(&mut second, &ns, "eth1", &place)),
                (true, false) => second.plug(&ns, "eth1", &place).expect("a cable"),
                (false, _) => {}
            }
            node(name, Role::Client, ns, &world.directory)
        };
        let (a, b) = (client("ada", 2), client("bob", 3));
        if let Ways::TwoCables(hold) = ways {
            cables.iter().zip(hold).for_each(|(cable, hold)| cable.hold(hold));
        }
        let (at_a, at_b) = (join(&a, &line, more), join(&b, &line, more));
        ping(&a, &b, at_b);
        wait_for_direct(&a, "bob");
        wait_for_direct(&b, "ada");
        let pair = Self { world, second, a: (a, at_a), b: (b, at_b), cables };
        if two {
            pair.until_both_are_valid();
        }
        Some(pair)
    }

    fn until_both_are_valid(&self) {
        for (node, peer) in [(&self.a.0, "bob"), (&self.b.0, "ada")] {
            until("a valid path on each switch", || {
                ["198.51.100.", "203.0.113."].iter().all(|prefix| {
                    paths(node, peer).iter().any(|path| {
                        path["kind"] == "direct"
                            && matches!(path["state"].as_str(), Some("active" | "standby"))
                            && path["address"].as_str().is_some_and(|address| address.starts_with(prefix))
                    })
                })
            });
        }
    }

    /// From a to b.
    fn flow(&self, len: usize, pace: Duration) -> Flow {
        Flow::start((&self.a.0, self.a.1), (&self.b.0, self.b.1), len, pace)
    }

    fn set_mode(&self, mode: &str) {
        for (node, peer) in [(&self.a.0, "bob"), (&self.b.0, "ada")] {
            let path = node.control_path();
            let path = path.to_str().expect("text");
            let output = finish(std::process::Command::new(crate::lab::BIN).args([
                "paths",
                peer,
                "--mode",
                mode,
                "--control",
                path,
            ]));
            assert!(output.status.success(), "{}", text(&output.stderr));
            until("the mode", || of_peer(node, peer)["mode"] == mode);
        }
    }
}

/// What a node says of a peer.
fn of_peer(node: &Node, peer: &str) -> Value {
    let reply = node.control(&json!({"command": "paths", "peer": peer})).expect("paths");
    reply["peers"][0].clone()
}

fn paths(node: &Node, peer: &str) -> Vec<Value> {
    of_peer(node, peer)["paths"].as_array().expect("a list").clone()
}

/// The best state of the direct paths to a peer's addresses that begin so.
fn state_at(node: &Node, peer: &str, prefix: &str) -> String {
    let all = paths(node, peer);
    let there = all.iter().filter(|path| {
        path["kind"] == "direct" && path["address"].as_str().is_some_and(|address| address.starts_with(prefix))
    });
    let states: Vec<&str> = there.map(|path| path["state"].as_str().expect("a word")).collect();
    let best = ["active", "standby", "suspect", "dead", "probing", "candidate"];
    best.into_iter().find(|word| states.contains(word)).unwrap_or("none").to_owned()
}

/// Loses what comes from an address, the given part of it; all of it at 1.
fn lose(ns: &Netns, from: &str, part: f64) {
    if part >= 1.0 {
        run_in(ns, &format!("iptables -I INPUT -s {from} -p udp -j DROP"));
    } else {
        run_in(
            ns,
            &format!("iptables -I INPUT -s {from} -p udp -m statistic --mode random --probability {part} -j DROP"),
        );
    }
}

fn lose_nothing(ns: &Netns) {
    run_in(ns, "iptables -F INPUT");
}

const A: [&str; 2] = ["198.51.100.2", "203.0.113.2"];
const B: [&str; 2] = ["198.51.100.3", "203.0.113.3"];

fn blackhole(id: &str, both_ways: bool) {
    let Some(pair) = Pair::on_one_switch(&[]) else { return };
    let rounds = if is_long() { 20 } else { 2 };
    let (mut gaps, mut backs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        // Both directions carry something, so that one of them alone keeps neither end content.
        let there = pair.flow(64, MS * 5);
        let back = Flow::start((&pair.b.0, pair.b.1), (&pair.a.0, pair.a.1), 64, MS * 5);
        thread::sleep(Duration::from_secs(1));
        lose(&pair.b.0.ns, A[0], 1.0);
        if both_ways {
            lose(&pair.a.0.ns, B[0], 1.0);
        }
        thread::sleep(Duration::from_secs(4));
        lose_nothing(&pair.b.0.ns);
        lose_nothing(&pair.a.0.ns);
        let mended = Instant::now();
        wait_for_direct(&pair.a.0, "bob");
        wait_for_direct(&pair.b.0, "ada");
        backs.push(mended.elapsed());
        let outcomes: [Outcome; 2] = [there.stop(), back.stop()];
        for outcome in &outcomes {
            assert_eq!(outcome.duplicates(), 0);
            gaps.push(outcome.longest_gap());
        }
    }
    let (worst, back) = (gaps.iter().max().expect("a gap"), backs.iter().max().expect("a time"));
    println!("{id}: gap {worst:?} at the most, direct again {back:?} after the repair, 0 duplicates");
    assert!(*worst <= Duration::from_secs(3), "{gaps:?}");
    gaps.sort_unstable();
    // The 95th of a hundred, or all but the worst of few.
    assert!(gaps[(gaps.len() * 19 / 20).min(gaps.len() - 2)] <= Duration::from_millis(2000), "{gaps:?}");
    assert!(*back <= Duration::from_secs(10), "{backs:?}");
}

#[test]
fn f_08_a_blackholed_path_is_left_for_the_relay_in_two_seconds_and_used_again() {
    let _turn = alone();
    blackhole("F-08", true);
}

#[test]
fn f_09_a_path_blackholed_one_way_is_left_as_fast() {
    let _turn = alone();
    blackhole("F-09", false);
}

#[test]
fn f_25_loss_is_no_death() {
    let Some(pair) = Pair::on_one_switch(&[]) else { return };
    let _turn = beside();
    let time = Duration::from_secs(if is_long() { 1000 } else { 6 });
    for percent in [1, 5, 20] {
        for (ns, from) in [(&pair.a.0.ns, B[0]), (&pair.b.0.ns, A[0])] {
            lose(ns, from, f64::from(percent) / 100.0);
        }
        let lost_before = counter(&pair.a.0, "paths_lost") + counter(&pair.b.0, "paths_lost");
        let flow = pair.flow(64, MS * 10);
        thread::sleep(time);
        let outcome = flow.stop();
        let lost = counter(&pair.a.0, "paths_lost") + counter(&pair.b.0, "paths_lost") - lost_before;
        println!(
            "F-25: {percent} % of loss for {time:?}: {lost} paths given up, {:.1} % of frames lost",
            outcome.loss() * 100.0
        );
        assert_eq!(lost, 0);
        [&pair.a.0.ns, &pair.b.0.ns].into_iter().for_each(|ns| lose_nothing(ns));
    }
}

#[test]
fn n_12_a_better_path_that_appears_is_used_without_a_loss() {
    let uplinks = ["--uplink", "eth0", "--uplink", "eth1", "--multipath", "best"];
    let Some(mut pair) = Pair::new(Ways::OneCable, &uplinks) else { return };
    let _turn = alone();
    pair.cables[0].hold(MS * 10);
    let far = |path: &Value| path["state"] == "active" && path["rtt_ms"].as_f64().is_some_and(|rtt| rtt > 15.0);
    let flow = pair.flow(64, MS * 2);
    until("the delay to be known", || paths(&pair.a.0, "bob").iter().any(far));
    pair.second.plug(&pair.a.0.ns, "eth1", "203.0.113.2/24").expect("a cable");
    pair.second.plug(&pair.b.0.ns, "eth1", "203.0.113.3/24").expect("a cable");
    let appeared = Instant::now();
    until("the better path", || state_at(&pair.a.0, "bob", "203.") == "active");
    let took = appeared.elapsed();
    thread::sleep(Duration::from_secs(1));
    let outcome = flow.stop();
    println!(
        "N-12: the better path was used {took:?} after it appeared; {} of {} lost across the change, {} doubled",
        outcome.lost(),
        outcome.sent.len(),
        outcome.duplicates()
    );
    assert!(took <= Duration::from_secs(5));
    assert_eq!((outcome.lost(), outcome.duplicates()), (0, 0));
}

#[test]
fn n_13_two_paths_that_are_better_in_turns_are_not_switched_between() {
    // A round trip of 10 ms by the one and of 9 ms by the other.
    const HOLD: [Duration; 2] = [Duration::from_micros(4_500), Duration::from_micros(5_000)];
    let Some(pair) = Pair::on_two_cables(HOLD, &["--multipath", "best"]) else { return };
    let _turn = alone();
    let flow = pair.flow(64, MS * 5);
    let known = |path: &&Value| path["kind"] == "direct" && path["rtt_ms"].as_f64().is_some_and(|rtt| rtt > 8.0);
    until("both to be measured", || paths(&pair.a.0, "bob").iter().filter(known).count() >= 2);
    let (rounds, mut switches) = (if is_long() { 100 } else { 4 }, 0);
    let active = || state_at(&pair.a.0, "bob", "203.") == "active";
    let mut before = active();
    for round in 0..rounds {
        pair.cables.iter().zip(0..).for_each(|(cable, way)| cable.hold(HOLD[(way + round + 1) % 2]));
        for _ in 0..12 {
            thread::sleep(Duration::from_millis(250));
            let now = active();
            if now != before {
                switches += 1;
                let told = |path: &Value| {
                    format!("{} {} ms, give or take {}", path["uplink"], path["rtt_ms"], path["jitter_ms"])
                };
                println!(
                    "N-13: switched in turn {round}: {:?}",
                    paths(&pair.a.0, "bob").iter().filter(known).map(told).collect::<Vec<_>>()
                );
            }
            before = now;
        }
    }
    let outcome = flow.stop();
    println!(
        "N-13: {switches} switches in {rounds} turns of 3 s, {} of {} lost, median delay {:?}",
        outcome.lost(),
        outcome.sent.len(),
        outcome.median_delay()
    );
    // The flow went through the cables.
    assert!(outcome.median_delay() >= Duration::from_micros(4_500));
    assert!(switches <= 2, "{switches}");
    assert_eq!(outcome.duplicates(), 0);
}

#[test]
fn m_01_redundant_delivers_in_spite_of_thirty_percent_loss_on_one_path() {
    let Some(pair) = Pair::on_two_switches(&["--multipath", "redundant"]) else { return };
    let _turn = beside();
    let time = Duration::from_secs(if is_long() { 60 } else { 4 });
    let calm = pair.flow(200, MS * 2);
    thread::sleep(Duration::from_secs(1));
    let calm = calm.stop();
    lose(&pair.b.0.ns, A[0], 0.3);
    let flow = pair.flow(200, MS * 2);
    thread::sleep(time);
    let outcome = flow.stop();
    let copies = counter(&pair.b.0, "copies_received");
    println!(
        "M-01: {} of {} lost ({:.3} %), {} doubled, median delay {:?} (without loss {:?}); {copies} copies were left out",
        outcome.lost(),
        outcome.sent.len(),
        outcome.loss() * 100.0,
        outcome.duplicates(),
        outcome.median_delay(),
        calm.median_delay(),
    );
    assert!(outcome.loss() <= 0.0005);
    assert_eq!((outcome.duplicates(), calm.duplicates()), (0, 0));
    assert!(outcome.median_delay() <= calm.median_delay() + MS);
    assert!(copies > 0 && counter(&pair.a.0, "copies_sent_bytes") > 0);
    assert_eq!(counter(&pair.b.0, "drop_replayed"), 0, "copies are no attack");
}

#[test]
fn m_02_redundant_loses_nothing_when_a_path_is_cut() {
    let Some(pair) = Pair::on_two_switches(&[]) else { return };
    let _turn = beside();
    pair.set_mode("redundant");
    let flow = pair.flow(200, MS * 2);
    thread::sleep(Duration::from_secs(1));
    lose(&pair.b.0.ns, A[0], 1.0);
    lose(&pair.a.0.ns, B[0], 1.0);
    thread::sleep(Duration::from_secs(3));
    let outcome = flow.stop();
    println!("M-02: {} of {} lost over the cut, {} doubled", outcome.lost(), outcome.sent.len(), outcome.duplicates());
    assert_eq!((outcome.lost(), outcome.duplicates()), (0, 0));
}

#[test]
fn m_02_redundant_loses_nothing_when_an_interface_goes_down() {
    let Some(pair) = Pair::on_two_switches(&["--multipath", "redundant"]) else { return };
    let _turn = beside();
    let flow = pair.flow(200, MS * 2);
    thread::sleep(Duration::from_secs(1));
    // Not the one that leads to the server: the relay would carry all the same.
    pair.a.0.ns.set_link("eth0", false).expect("down");
    until("its paths to be gone", || paths(&pair.a.0, "bob").iter().all(|path| path["uplink"] != "eth0"));
    thread::sleep(Duration::from_secs(2));
    let outcome = flow.stop();
    println!(
        "M-02: {} of {} lost, {} doubled as an interface went down",
        outcome.lost(),
        outcome.sent.len(),
        outcome.duplicates()
    );
    assert_eq!((outcome.lost(), outcome.duplicates()), (0, 0));
}

#[test]
fn m_02_an_interface_that_goes_down_takes_its_paths_along_and_brings_them_back() {
    let Some(pair) = Pair::on_two_switches(&["--multipath", "best"]) else { return };
    let _turn = beside();
    let flow = pair.flow(64, MS * 2);
    thread::sleep(MS * 500);
    let device = if state_at(&pair.a.0, "bob", "203.") == "active" { "eth1" } else { "eth0" };
    // The keeper of uplinks falls and is back: the sockets stay, and it still sees what happens to them.
    let ports = |node: &Node| paths(node, "bob").iter().map(|path| path["address"].clone()).collect::<Vec<_>>();
    let before = ports(&pair.a.0);
    pair.a.0.control(&json!({"command": "inject_panic", "actor": "uplink_keeper"})).expect("injected");
    until("the keeper to be back", || {
        let status = pair.a.0.control(&json!({"command": "status"})).expect("a status");
        let actors = status["actors"].as_array().expect("actors").clone();
        actors
            .iter()
            .any(|actor| actor["name"] == "uplink_keeper" && actor["restarts"] == 1 && actor["state"] == "running")
    });
    assert_eq!(ports(&pair.a.0), before);
    let down = Instant::now();
    pair.a.0.ns.set_link(device, false).expect("down");
    until("its paths to be gone", || paths(&pair.a.0, "bob").iter().all(|path| path["uplink"] != device));
    println!("uplink down: its paths are gone after {:?}", down.elapsed());
    thread::sleep(Duration::from_secs(1));
    pair.a.0.ns.set_link(device, true).expect("up");
    pair.until_both_are_valid();
    let outcome = flow.stop();
    println!(
        "uplink down and up: longest gap {:?}, {} of {} lost",
        outcome.longest_gap(),
        outcome.lost(),
        outcome.sent.len()
    );
    assert!(outcome.longest_gap() <= Duration::from_secs(1), "{:?}", outcome.longest_gap());
    assert_eq!(outcome.duplicates(), 0);
}

#[test]
fn m_03_copies_that_come_200_ms_later_make_good_what_the_fast_path_loses() {
    let Some(pair) = Pair::on_two_cables([Duration::ZERO, MS * 200], &["--multipath", "redundant"]) else { return };
    let _turn = alone();
    // The relay would be a third path; without it all that the fast one loses comes by the slow one alone.
    pair.world.server.stop().expect("stopped");
    until("the relay to be gone", || {
        let in_use = |path: &Value| path["kind"] != "direct" && path["state"] != "dead";
        [(&pair.a.0, "bob"), (&pair.b.0, "ada")].iter().all(|(node, peer)| !paths(node, peer).iter().any(in_use))
    });
    // A machine with two cores for all of this is held up now and then: what waits for the program must not overflow.
    for node in [&pair.a.0, &pair.b.0] {
        run_in(&node.ns, "ip link set dev eps0 txqueuelen 20000");
    }
    pair.cables[0].lose(0.1);
    let slow_way = |path: &Value| path["rtt_ms"].as_f64().is_some_and(|rtt| rtt > 100.0);
    let warm_up = Flow::start((&pair.a.0, pair.a.1), (&pair.b.0, pair.b.1), 64, MS * 5);
    until("the delay to be known", || paths(&pair.a.0, "bob").iter().any(slow_way));
    warm_up.stop();
    let flow = Flow::start((&pair.a.0, pair.a.1), (&pair.b.0, pair.b.1), 64, Duration::from_micros(50));
    thread::sleep(Duration::from_secs(if is_long() { 60 } else { 2 }));
    let outcome = flow.stop();
    let late = outcome.later_than(MS * 195);
    println!(
        "M-03: {:.0} packets a second: {} of {} lost, {} doubled; {late} came by the slow path alone",
        outcome.rate(),
        outcome.lost(),
        outcome.sent.len(),
        outcome.duplicates()
    );
    let overflowed: u64 = pair.cables.iter().map(Cable::overflowed).sum();
    assert_eq!(overflowed, 0, "the cables themselves lost some");
    // A busy machine holds the generator up for a moment; over a minute that is nothing.
    let enough = if is_long() { 19_000.0 } else { 15_000.0 };
    assert!(outcome.rate() >= enough, "the generator is too slow: {}", outcome.rate());
    assert!(late * 20 >= outcome.sent.len(), "{late}: the fast path loses a tenth");
    assert_eq!((outcome.lost(), outcome.duplicates()), (0, 0));
}

#[test]
fn a_path_by_an_interface_that_leads_to_peers_only_is_left_at_once_when_its_address_goes() {
    let Some(mut pair) = Pair::on_one_switch(&["--multipath", "best"]) else { return };
    let _turn = beside();
    pair.second.plug(&pair.a.0.ns, "eth1", "203.0.113.2/24").expect("a cable");
    pair.second.plug(&pair.b.0.ns, "eth1", "203.0.113.3/24").expect("a cable");
    for (ns, from) in [(&pair.b.0.ns, A[0]), (&pair.a.0.ns, B[0])] {
        lose(ns, from, 1.0);
    }
    let flow = pair.flow(64, MS * 2);
    for (node, peer) in [(&pair.a.0, "bob"), (&pair.b.0, "ada")] {
        until("the second switch to be used", || state_at(node, peer, "203.") == "active");
    }
    // Whatever changes makes it look where its datagrams go.
    let looks = || counter(&pair.a.0, "network_looks");
    let before = looks();
    run_in(&pair.a.0.ns, "ip address add 192.0.2.77/32 dev lo");
    until("a look at the ways", || looks() > before);
    flow.stop();
    let flow = pair.flow(64, MS * 2);
    thread::sleep(MS * 500);
    run_in(&pair.a.0.ns, "ip address del 203.0.113.2/24 dev eth1");
    thread::sleep(Duration::from_secs(2));
    let outcome = flow.stop();
    println!("its address gone: longest gap {:?}, {} lost", outcome.longest_gap(), outcome.lost());
    assert!(outcome.longest_gap() <= Duration::from_millis(900), "{:?}", outcome.longest_gap());
    assert_eq!(outcome.duplicates(), 0);
}

/// Ends flows together.
fn stop_all(flows: Vec<Flow>) -> Vec<Outcome> {
    flows.iter().for_each(Flow::halt);
    flows.into_iter().map(Flow::stop).collect()
}

/// Shapes what an interface sends.
fn shape(ns: &Netns, device: &str, rate: &str) {
    run_in(ns, &format!("tc qdisc replace dev {device} root tbf rate {rate} burst 16kb latency 50ms"));
}

/// Whether eight flows fill two paths, none of them out of order (M-04).
fn bonded_adds_up(pair: &Pair) -> bool {
    // What went before counts as a flow for two seconds.
    thread::sleep(Duration::from_millis(2100));
    // Eight flows of 4.7 Mbit/s on the wire: twice what one path carries, and a little less than both.
    let flows: Vec<Flow> = (0..8).map(|_| pair.flow(1225, Duration::from_micros(2300))).collect();
    // Flows find their ways while they begin; what is measured is how it goes on.
    thread::sleep(Duration::from_secs(3));
    let start = Instant::now();
    thread::sleep(Duration::from_secs(if is_long() { 30 } else { 4 }));
    let end = Instant::now();
    let outcomes = stop_all(flows);
    let arrived: usize = outcomes.iter().map(|outcome| outcome.arrivals(start..end)).sum();
    let offered: usize = outcomes.iter().map(|outcome| outcome.departures(start..end)).sum();
    // Inner UDP, IP and Ethernet, the seal, outer UDP, IP and Ethernet.
    let wire = 1225 + 28 + 14 + 32 + 28 + 14;
    let rate = |packets: usize| (packets * wire * 8) as f64 / (end - start).as_secs_f64() / 1e6;
    let (rate, offered) = (rate(arrived), rate(offered));
    let reordered: usize = outcomes.iter().map(|outcome| outcome.reordered(start..end)).sum();
    let lost: usize = outcomes.iter().map(Outcome::lost).sum();
    println!(
        "M-04: {rate:.1} of {offered:.1} Mbit/s by two paths of 20, {reordered} of {arrived} out of order, {lost} lost"
    );
    // What a busy machine kept the flows from sending cannot come.
    let held_up = offered < 36.0 && offered > 28.0 && lost == 0;
    assert_eq!(reordered, 0, "of {arrived}");
    assert!(outcomes.iter().all(|outcome| outcome.duplicates() == 0));
    rate >= if held_up { offered * 0.98 } else { 34.0 }
}

#[test]
fn m_04_m_05_bonded_adds_up_keeps_the_order_of_flows_and_moves_them_off_a_cut_path() {
    if !has_program("tc") {
        return;
    }
    let Some(pair) = Pair::on_two_switches(&["--multipath", "bonded"]) else { return };
    let _turn = alone();
    for device in ["eth0", "eth1"] {
        shape(&pair.a.0.ns, device, "20mbit");
    }
    // Two flows in a hundred share a place, and so a path: what matters is that eight fit as a rule.
    assert!((0..3).any(|_| bonded_adds_up(&pair)), "both paths are filled");

    let flows: Vec<Flow> = (0..8).map(|_| pair.flow(200, MS * 5)).collect();
    thread::sleep(Duration::from_secs(1));
    lose(&pair.b.0.ns, A[1], 1.0);
    lose(&pair.a.0.ns, B[1], 1.0);
    thread::sleep(Duration::from_secs(4));
    let outcomes = stop_all(flows);
    let gaps: Vec<Duration> = outcomes.iter().map(Outcome::longest_gap).collect();
    let worst = gaps.iter().max().expect("a gap");
    println!("M-05: every flow went on {worst:?} after the cut at the latest: {gaps:?}");
    assert!(*worst <= Duration::from_millis(2000), "{gaps:?}");
    assert!(*worst >= Duration::from_millis(300), "some flow was on the cut path: {gaps:?}");
}

#[test]
fn bonded_frames_fit_the_path_that_carries_least() {
    let Some(pair) = Pair::on_two_switches(&["--multipath", "bonded"]) else { return };
    let _turn = beside();
    for node in [&pair.a.0, &pair.b.0] {
        // It carries less, and nobody takes what IP cuts.
        run_in(&node.ns, "ip link set eth1 mtu 1300");
        run_in(&node.ns, "iptables -t raw -A PREROUTING -i eth1 -f -j DROP");
    }
    let flows: Vec<Flow> = (0..8).map(|_| pair.flow(1300, MS * 5)).collect();
    let sizes = || -> Vec<u64> {
        let all = paths(&pair.a.0, "bob");
        let carrying = all.iter().filter(|path| path["state"] == "active");
        carrying.map(|path| path["mtu"].as_u64().unwrap_or(0)).collect()
    };
    until("both sizes to be known", || {
        let sizes = sizes();
        sizes.len() == 2 && sizes.iter().any(|size| (1280..=1300).contains(size)) && sizes.contains(&1500)
    });
    stop_all(flows);
    let cut = counter(&pair.a.0, "cut_frames");
    let flows: Vec<Flow> = (0..8).map(|_| pair.flow(1300, MS * 5)).collect();
    thread::sleep(Duration::from_secs(1));
    let outcomes = stop_all(flows);
    let (lost, sent): (usize, usize) =
        (outcomes.iter().map(Outcome::lost).sum(), outcomes.iter().map(|outcome| outcome.sent.len()).sum());
    println!("bonded by paths of 1500 and 1300: {lost} of {sent} lost, {} cut", counter(&pair.a.0, "cut_frames") - cut);
    assert_eq!(lost, 0);
    assert!(counter(&pair.a.0, "cut_frames") > cut);
}

#[test]
fn m_07_small_frames_get_through_a_lossy_path_at_a_twentieth_of_the_bytes() {
    let Some(pair) = Pair::on_two_switches(&[]) else { return };
    let _turn = beside();
    // Small frames by the one that loses, copies by the other; bytes for the budget flow beside them.
    until("both in use", || ["198.", "203."].iter().all(|prefix| state_at(&pair.a.0, "bob", prefix) == "active"));
    let route = pair.a.0.control(&json!({"command": "status"})).expect("a status")["peers"][0]["path"].clone();
    let first = usize::from(route.as_str().expect("a path").starts_with("203."));
    lose(&pair.b.0.ns, A[first], 0.1);
    lose(&pair.a.0.ns, B[first], 0.1);
    let ends = [(&pair.a.0, pair.a.1), (&pair.b.0, pair.b.1)];
    let cost = |node: &Node| (counter(node, "udp_tx_bytes"), counter(node, "copies_sent_bytes"));
    let before = ends.map(|(node, _)| cost(node));
    let bulk = [Flow::start(ends[0], ends[1], 1300, MS * 2), Flow::start(ends[1], ends[0], 1300, MS * 2)];
    let pings = [Flow::start(ends[0], ends[1], 56, MS * 10), Flow::start(ends[1], ends[0], 56, MS * 10)];
    thread::sleep(Duration::from_secs(if is_long() { 60 } else { 5 }));
    let (pings, bulk) = (pings.map(Flow::stop), bulk.map(Flow::stop));
    for (((node, _), before), (pings, bulk)) in ends.iter().zip(before).zip(pings.iter().zip(&bulk)) {
        let after = cost(node);
        let part = (after.1 - before.1) as f64 * 100.0 / (after.0 - before.0) as f64;
        println!(
            "M-07: from {}: {} of {} small frames lost, {:.1} % of the large ones; copies cost {part:.2} % of the bytes",
            node.name,
            pings.lost(),
            pings.sent.len(),
            bulk.loss() * 100.0
        );
        assert!(part <= 5.0 && part > 0.0, "{part}");
        assert_eq!(pings.duplicates() + bulk.duplicates(), 0);
    }
    assert!(bulk.iter().any(|bulk| bulk.loss() > 0.0), "the path in use loses");
    // There and back, as a ping goes.
    let (lost, sent) = pings.iter().fold((0, 0), |sum, flow| (sum.0 + flow.lost(), sum.1 + flow.sent.len()));
    println!("M-07: {lost} of {sent} small frames lost in both directions, with 10 % of loss in both");
    assert!(lost as f64 * 2.0 <= sent as f64 * 0.001, "{lost} of {sent}");
}

#[test]
fn m_08_an_interface_that_is_stuck_does_not_hold_up_the_other() {
    if !has_program("tc") {
        return;
    }
    let Some(pair) = Pair::on_two_switches(&["--multipath", "redundant"]) else { return };
    let _turn = alone();
    let measure = || {
        let flow = pair.flow(200, MS);
        thread::sleep(Duration::from_secs(if is_long() { 20 } else { 2 }));
        flow.stop()
    };
    let before = measure();
    // So slow that its queue is full all the time: every send finds it so.
    shape(&pair.a.0.ns, "eth0", "64kbit");
    let during = measure();
    println!(
        "M-08: median delay {:?} before, {:?} with the other interface stuck; {} lost",
        before.median_delay(),
        during.median_delay(),
        during.lost()
    );
    assert!(during.median_delay() <= before.median_delay() + MS);
    assert_eq!((during.lost(), during.duplicates()), (0, 0));
}

#[test]
fn paths_are_listed_and_their_use_changed_while_they_run() {
    let Some(pair) = Pair::on_two_switches(&["--multipath", "best"]) else { return };
    let _turn = beside();
    let control = pair.a.0.control_path();
    let control = control.to_str().expect("text");
    let run =
        |words: &[&str]| finish(std::process::Command::new(crate::lab::BIN).args(words).args(["--control", control]));
    let listed = text(&run(&["paths"]).stdout);
    for part in
        ["bob", "best", "direct 198.51.100.3:", "direct 203.0.113.3:", "eth0", "eth1", "relay 198.51.100.1:43439"]
    {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    assert_eq!(of_peer(&pair.a.0, "bob")["mode"], "best");
    assert!(run(&["paths", "--mode", "bonded"]).status.success());
    until("the mode of all", || of_peer(&pair.a.0, "bob")["mode"] == "bonded");
    // By name, address or id, as `ping` and `why` are asked.
    assert!(run(&["paths", "bob", "--mode", "redundant"]).status.success());
    let bob = of_peer(&pair.a.0, "bob");
    for who in ["BOB", bob["address"].as_str().expect("text"), bob["id"].as_str().expect("text")] {
        let listed = text(&run(&["paths", who]).stdout);
        assert!(listed.contains("direct 198.51.100.3:"), "{who}: {listed}");
    }
    until("the mode of one", || of_peer(&pair.a.0, "bob")["mode"] == "redundant");
    assert!(run(&["paths", "--mode", "best"]).status.success());
    let refused = run(&["paths", "nobody"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("no member is called \"nobody\""));
    assert!(!run(&["paths", "bob", "--mode", "striped"]).status.success());
    // What was said survives the actor that it was said to.
    pair.a.0.control(&json!({"command": "inject_panic", "actor": "peer_table"})).expect("injected");
    until("all as before, after a restart", || {
        let status = pair.a.0.control(&json!({"command": "status"}));
        status.is_ok_and(|status| {
            let bob = &status["peers"][0];
            bob["mode"] == "redundant" && bob["paths"].as_array().is_some_and(|paths| paths.len() >= 3)
        })
    });
    drop(pair.world);
}
