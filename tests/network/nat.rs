//! Direct paths through NATs of the friendly kinds (N-01), built with iptables.

use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::{Node, Reached, wait_until};
use eps_actor::config::Role;
use eps_actor::io::netns::{Netns, can_make_networks};

use crate::lab::{Home, SOON, World, alone, counters, has_program, join, node, run_in, state_of, until};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// On the internet itself.
    None,
    /// Full cone: one mapping for all destinations, and anybody may answer to it.
    Full,
    /// Address-restricted: only hosts that were sent to may.
    Addr,
}

/// Of each pair; the slowest counts.
const RUNS: u32 = 5;

#[test]
fn n_01_friendly_nats_have_a_direct_path_in_a_second_and_the_first_answer_in_300_ms() {
    if !can_make_networks() || !has_program("iptables") {
        return;
    }
    let _turn = alone();
    let mut world = World::new();
    let line = world.start_server(&[]);
    for (one, other) in [
        (Kind::None, Kind::None),
        (Kind::None, Kind::Full),
        (Kind::Full, Kind::Full),
        (Kind::Full, Kind::Addr),
        (Kind::Addr, Kind::Addr),
    ] {
        let name = format!("{}-{}", word(one), word(other));
        let (a, _box_a) = machine(&mut world, one, &format!("{name}-a"));
        let (b, _box_b) = machine(&mut world, other, &format!("{name}-b"));
        let mut times = [Duration::ZERO; 2];
        let mut paths = Vec::new();
        for _ in 0..RUNS {
            let (answered, first, took) = connect(&a, &b, &line);
            times = [times[0].max(answered), times[1].max(took)];
            paths.push(first);
            for client in [&a, &b] {
                client.stop().expect("stopped");
            }
        }
        let [answered, took] = times.map(|time| time.as_secs_f64() * 1e3);
        println!(
            "N-01: {name}: first ping answered after {answered:.0} ms, direct after {took:.0} ms (the slowest of {RUNS}; \
             the first answers {})",
            paths.join(", ")
        );
        assert!(answered <= 300.0, "{name}: {answered:.0} ms");
        assert!(took <= 1000.0, "{name}: {took:.0} ms");
    }
}

/// Starts a pair that has never spoken since, and pings: until the first answer, how that came, until a direct path.
fn connect(a: &Node, b: &Node, line: &str) -> (Duration, String, Duration) {
    join(a, line, &[]);
    let to = join(b, line, &[]);
    // Nothing has been sent: no session yet.
    until("the pair to know each other", || state_of(a, &b.name) == "idle" && state_of(b, &a.name) == "idle");
    let start = Instant::now();
    let answered = a.ping(to, SOON).unwrap_or_else(|| {
        panic!("no answer\n{}\n{}\n{}\n{}", a.log(), counters(a), b.log(), counters(b));
    });
    let first = a.path_to(&b.name).expect("a status");
    let direct = wait_until(SOON, "a direct path", || match a.path_to(&b.name)? {
        Reached::Direct(path) => Ok(Some(path)),
        _ => Ok(None),
    });
    direct.unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", a.log(), b.log()));
    let took = start.elapsed();
    assert!(a.ping(to, SOON).is_some(), "over the direct path");
    let first = if first == Reached::Relay { "by relay" } else { "direct" };
    (answered, first.to_owned(), took)
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::None => "none",
        Kind::Full => "full",
        Kind::Addr => "addr",
    }
}

fn machine(world: &mut World, kind: Kind, name: &str) -> (Node, Option<Home>) {
    let (ns, kept) = if kind == Kind::None {
        (world.host(), None)
    } else {
        let home = world.home();
        rules(&home.router, kind);
        (home.inside.clone(), Some(home))
    };
    // The kernel's own multicast would be a first packet before ours.
    ns.sysctl("ipv6/conf/default/disable_ipv6", "1").expect("a setting");
    (node(name, Role::Client, ns, &world.directory), kept)
}

fn rules(nat: &Netns, kind: Kind) {
    let netlink = nat.netlink().expect("a socket");
    let addresses = smol::block_on(netlink.addresses()).expect("addresses");
    let wan = addresses.iter().find(|one| one.name == "eth0" && one.addr.is_ipv4()).expect("an address").addr;
    run_in(nat, &format!("iptables -t nat -A POSTROUTING -o eth0 -j SNAT --to-source {wan}"));
    run_in(nat, "iptables -t nat -A PREROUTING -i eth0 -p udp --dport 1024: -j DNAT --to-destination 192.168.7.2");
    if kind == Kind::Addr {
        run_in(nat, "iptables -A FORWARD -i lan -o eth0 -m recent --name seen --rdest --set");
        run_in(nat, "iptables -A FORWARD -i eth0 -m recent --name seen --rsource --rcheck -j ACCEPT");
        run_in(nat, "iptables -A FORWARD -i eth0 -j DROP");
    }
}
