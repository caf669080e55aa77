//! Leases at the real server: exhaustion, order, and a network that the machine has already (L-04, L-06, L-07).

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::wait_until;
use eps_actor::io::netns::{Lan, Netns, can_make_networks};
use eps_actor::proto::server_link::Refusal;
use eps_actor::wire::join::JoinLine;

use crate::lab::{
    Fate, Member, SOON, World, address, alone, beside, complaints, has_program, join, program, run_in, text, until,
    wait_for_end,
};

/// As a client in the server's own machine sees it; every client there can have an address of its own.
const AT_HOME: &str = "127.0.0.1:43439";

#[test]
fn l_04_a_seventh_client_of_six_is_refused_clearly_and_let_in_within_a_second_of_a_release() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let clients: Vec<_> = (0..7).map(|number| world.client(&format!("c{number}"))).collect();
    let line = world.start_server(&["--network", "10.9.0.0/29"]);
    let addresses: std::collections::BTreeSet<IpAddr> =
        clients[..6].iter().map(|client| join(client, &line, &[])).collect();
    assert_eq!(addresses.len(), 6, "{addresses:?}");

    let late = &clients[6];
    late.start(&["--join", &line]).expect("started");
    assert_eq!(wait_for_end(late).code(), Some(1));
    let log = late.log();
    let complaint = complaints(&log);
    assert_eq!(complaint.len(), 1, "{log}");
    assert!(complaint[0].contains("all 6 addresses of 10.9.0.0/29 are taken"), "{log}");

    let leaver = &clients[2];
    let output = program(&["leave", "--control", &leaver.control_path().display().to_string()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let start = Instant::now();
    late.stop().expect("stopped");
    let got = join(late, &line, &[]);
    let took = start.elapsed();
    println!("L-04: /29: six leases, the seventh refused; {got} granted {:.0} ms after a release", ms(took));
    assert!(took <= Duration::from_secs(1), "{took:?}");
}

#[test]
fn l_04_a_slash_24_has_254_leases_and_the_255th_client_hears_why_not() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let world = World::new();
    let line: JoinLine = world.start_server(&["--network", "10.9.1.0/24"]).parse().expect("a line");
    let ns = &world.server.ns;
    // Each from an address of its own: enrolments of one address are limited.
    let new = |number: u8| {
        let name = format!("m{number}");
        Member::new(ns, &format!("127.0.1.{}", number.max(1)), AT_HOME, &line, &name, u64::from(number))
    };
    let start = Instant::now();
    let mut members = Vec::new();
    let mut addresses = std::collections::BTreeSet::new();
    for number in 1..=254 {
        let mut member = new(number);
        match member.settle() {
            Fate::Leased(certificate) => assert!(addresses.insert(certificate.ip4), "{} twice", certificate.ip4),
            Fate::Refused(refusal) => panic!("member {number}: {refusal}"),
        }
        members.push(member);
    }
    let took = start.elapsed();
    assert_eq!(addresses.len(), 254);
    let Fate::Refused(Refusal::Lease { text, .. }) = new(255).settle() else { panic!("a 255th lease of 254") };
    assert!(text.contains("all 254 addresses of 10.9.1.0/24 are taken"), "{text}");

    members[100].release();
    let start = Instant::now();
    let Fate::Leased(certificate) = new(0).settle() else { panic!("no lease after a release") };
    let granted = start.elapsed();
    println!(
        "L-04: /24: 254 leases in {:.1} s, the 255th refused ({text}); {} granted {:.0} ms after a release",
        took.as_secs_f64(),
        certificate.ip4,
        ms(granted)
    );
    assert!(granted <= Duration::from_secs(1), "{granted:?}");
    assert_eq!(world.server.server_status().expect("a status").lease_free, 0);
}

#[test]
fn l_06_a_network_that_the_machine_has_already_is_refused_and_nothing_of_it_changes() {
    if !can_make_networks() || !has_program("ip") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let (office, routed) = (world.client("office"), world.client("routed"));
    let mut lan = Lan::new().expect("a switch");
    lan.plug(&office.ns, "eth1", "192.168.43.5/24").expect("a cable");
    run_in(&routed.ns, "ip route add 192.168.0.0/16 via 198.51.100.1");
    let line = world.start_server(&[]);
    for (client, has, has_as) in
        [(&office, "192.168.43.0/24", "address of eth1"), (&routed, "192.168.0.0/16", "route of eth0")]
    {
        let before = state(&client.ns);
        client.start(&["--join", &line]).expect("started");
        let status = wait_for_end(client);
        let log = client.log();
        assert_eq!(status.code(), Some(1), "{log}");
        let complaint = complaints(&log);
        assert_eq!(complaint.len(), 1, "{log}");
        for part in ["192.168.43.0/24", has, "--network", has_as] {
            assert!(complaint[0].contains(part), "{part} in {log}");
        }
        assert_eq!(state(&client.ns), before);
        println!("L-06: refused beside {has}: {}", complaint[0]);
    }
}

#[test]
fn l_07_sequential_leases_are_the_lowest_free_address_each_time() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let (one, two) = (world.client("one"), world.client("two"));
    let line = world.start_server(&["--sequential", "--network", "10.9.2.0/24", "--member", "pin=10.9.2.4"]);
    let host = |last| IpAddr::from([10, 9, 2, last]);
    assert_eq!(join(&one, &line, &[]), host(1));
    assert_eq!(join(&two, &line, &[]), host(2));

    let parsed: JoinLine = line.parse().expect("a line");
    let ns = world.server.ns.clone();
    let lease = |number: u8| {
        let from = format!("127.0.2.{number}");
        let mut member = Member::new(&ns, &from, AT_HOME, &parsed, &format!("m{number}"), u64::from(number) + 1000);
        match member.settle() {
            Fate::Leased(certificate) => (member, certificate.ip4),
            Fate::Refused(refusal) => panic!("{refusal}"),
        }
    };
    let mut given = vec![Ipv4Addr::new(10, 9, 2, 1), Ipv4Addr::new(10, 9, 2, 2)];
    let mut members: Vec<Member> = (1..=4)
        .map(|number| {
            let (member, ip4) = lease(number);
            given.push(ip4);
            member
        })
        .collect();
    // .4 is somebody's own.
    assert_eq!(given.iter().map(|ip4| ip4.octets()[3]).collect::<Vec<_>>(), [1, 2, 3, 5, 6, 7]);
    members[2].release();
    let control = one.control_path().display().to_string();
    assert!(program(&["leave", "--control", &control]).status.success());
    until("one to be gone", || world.server.server_status().is_ok_and(|status| status.leases.len() == 4));
    let again: Vec<u8> = (5..=7).map(|number| lease(number).1.octets()[3]).collect();
    println!("L-07: leases in order {given:?}; after .1 and .6 were given back: {again:?}");
    assert_eq!(again, [1, 6, 8]);
    // The one that stayed keeps its own.
    two.stop().expect("stopped");
    two.start(&[]).expect("started");
    assert_eq!(address(&two), host(2));
}

#[test]
fn a_client_has_its_address_within_two_seconds_and_keeps_it_over_restarts_of_both() {
    if !can_make_networks() {
        return;
    }
    let _turn = alone();
    let mut world = World::new();
    let ada = world.client("ada");
    let line = world.start_server(&[]);
    let start = Instant::now();
    let first = join(&ada, &line, &[]);
    let took = start.elapsed();
    ada.stop().expect("stopped");
    world.server.stop().expect("stopped");
    world.start_server(&[]);
    ada.start(&[]).expect("started");
    assert_eq!(address(&ada), first);
    let connected = wait_until(SOON, "the server", || Ok(ada.client_status()?.server.connected.then_some(())));
    connected.unwrap_or_else(|error| panic!("{error:#}\n{}", ada.log()));
    println!("a new client has its address {:.0} ms after its start", ms(took));
    assert!(took <= Duration::from_secs(2), "{took:?}");
}

/// Addresses and routes of a machine.
fn state(ns: &Netns) -> String {
    let netlink = ns.netlink().expect("a socket");
    smol::block_on(async {
        let mut addresses: Vec<String> = netlink
            .addresses()
            .await
            .expect("addresses")
            .iter()
            .map(|one| format!("{:?}/{} {}", one.addr, one.prefix, one.name))
            .collect();
        addresses.extend(netlink.routes().await.expect("routes").iter().map(|one| format!("{one:?}")));
        addresses.sort();
        addresses.join("\n")
    })
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
