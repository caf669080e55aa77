//! Ways through NATs, one sentence each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use eps_actor::counters::DropReason;
use eps_actor::ids::{ChannelToken, Endpoint, Route};
use eps_actor::proto::nat::NatKind;
use eps_actor::proto::peers::{Output, Peers};
use eps_actor::wire::cert::CERT_LEN;
use eps_actor::wire::control::{Candidate, CandidateKind, Control, MapEntry};
use eps_actor::wire::nat::{NatMessage, Purpose};

use super::net::{Filtering, Mapping, Nat, Place};
use super::{PORT, Sim};

const FULL: Nat = Nat { filtering: Filtering::None, ..Nat::HOME };
const ADDR: Nat = Nat { filtering: Filtering::Address, ..Nat::HOME };
const STAIR: Nat = Nat { mapping: Mapping::Stair(2), ..Nat::HOME };

/// Two machines, each behind a NAT or none, that everybody knows.
fn pair(seed: u64, one: Option<Nat>, other: Option<Nat>) -> (Sim, [usize; 2]) {
    let mut sim = Sim::new(seed);
    let mut place = |nat: Option<Nat>, name| match nat {
        Some(nat) => sim.home(nat, [name])[0],
        None => sim.public([name])[0],
    };
    let both = [place(one, "anna"), place(other, "ben")];
    sim.start();
    sim.run_for(secs(5));
    (sim, both)
}

fn direct_both_ways(sim: &Sim, [one, other]: [usize; 2]) -> bool {
    sim.is_direct(one, other) && sim.is_direct(other, one)
}

/// How long it takes from the first frame to a direct path, if that comes.
fn direct_within(sim: &mut Sim, both: [usize; 2], limit: Duration) -> Option<Duration> {
    let start = sim.now();
    sim.ping(both[0], both[1]);
    sim.run_until(limit.saturating_sub(sim.now() - start), |sim| direct_both_ways(sim, both)).map(|_| sim.now() - start)
}

fn nat_of(sim: &Sim, client: usize) -> NatKind {
    sim.clients[client].run.as_ref().map(|run| run.nat.kind).unwrap_or_default()
}

#[test]
fn every_client_finds_out_which_nat_it_is_behind_and_tells_its_peers() {
    for (nat, kind) in [
        (None, NatKind::None),
        (Some(FULL), NatKind::Easy),
        (Some(Nat::HOME), NatKind::Easy),
        (Some(STAIR), NatKind::Predictable(2)),
        (Some(Nat::HARD), NatKind::Hard),
    ] {
        let (mut sim, [anna, ben]) = pair(1, nat, None);
        assert_eq!(nat_of(&sim, anna), kind);
        sim.ping(ben, anna);
        sim.run_for(secs(2));
        assert_eq!(sim.peer(ben, anna).map(|peer| peer.nat), Some(kind));
    }
    let mut sim = Sim::new(2);
    let [anna] = sim.home(Nat::HARD, ["anna"]);
    sim.server.second_port = 0;
    sim.start();
    sim.run_for(secs(10));
    assert_eq!(nat_of(&sim, anna), NatKind::Unknown, "nobody to ask");
}

#[test]
fn n_02_n_03_all_pairs_but_hard_ones_are_direct_in_two_seconds() {
    let mut slowest = Duration::ZERO;
    for seed in 0..10 {
        for (one, other) in [
            (Some(FULL), Some(Nat::HOME)),
            (Some(ADDR), Some(Nat::HOME)),
            (Some(Nat::HOME), Some(Nat::HOME)),
            (Some(Nat::HARD), None),
            (Some(Nat::HARD), Some(FULL)),
            (Some(Nat::HARD), Some(ADDR)),
            (None, Some(Nat::HARD)),
        ] {
            let (mut sim, both) = pair(100 + seed, one, other);
            match direct_within(&mut sim, both, secs(2)) {
                Some(took) => slowest = slowest.max(took),
                None => sim.fail(&format!("not direct in two seconds: {one:?} {other:?}")),
            }
        }
    }
    println!("N-02, N-03 (simulated): direct after {slowest:?} at the latest, of 70");
}

#[test]
fn n_04_four_of_five_pairs_hard_and_port_restricted_are_direct_in_eight_seconds_and_none_where_that_is_off() {
    // Chance has a part in it: with twenty, one try in ten would miss the mark that it makes in the long run.
    const PAIRS: u64 = 60;
    let mut times = Vec::new();
    for seed in 0..PAIRS {
        let (one, other) = (Some(Nat::HARD), Some(Nat::HOME));
        let (mut sim, both) = if seed % 2 == 0 { pair(200 + seed, one, other) } else { pair(200 + seed, other, one) };
        times.extend(direct_within(&mut sim, both, secs(8)));
        sim.ping(both[0], both[1]);
        sim.ping(both[1], both[0]);
        if times.len() == 1 {
            // The hole is kept open, and stays the way.
            sim.run_for(secs(120));
            assert!(direct_both_ways(&sim, both));
        }
    }
    times.sort();
    println!(
        "N-04 (simulated): {} of {PAIRS} direct, after {:?} to {:?}",
        times.len(),
        times[0],
        times[times.len() - 1]
    );
    assert!(times.len() as u64 * 5 >= PAIRS * 4, "{times:?}");

    let (mut sim, both) = pair(250, Some(Nat::HARD), Some(Nat::HOME));
    for client in both {
        sim.clients[client].run.as_mut().and_then(|run| run.peers.as_mut()).expect("it runs").set_hard_nat(false);
    }
    assert_eq!(direct_within(&mut sim, both, secs(20)), None);
}

#[test]
fn a_nat_whose_ports_are_stairs_is_met_where_it_will_be() {
    let mut direct = 0;
    for seed in 0..10 {
        let (mut sim, both) = pair(300 + seed, Some(STAIR), Some(Nat::HOME));
        direct += usize::from(direct_within(&mut sim, both, secs(8)).is_some());
    }
    println!("predictable and port-restricted: {direct} of 10 direct");
    assert!(direct >= 9, "{direct}");
}

#[test]
fn n_05_two_hard_nats_stay_on_the_relay_without_flapping_and_with_few_probes() {
    let (mut sim, [anna, ben]) = pair(5, Some(Nat::HARD), Some(Nat::HARD));
    let took = sim.ping(anna, ben);
    assert!(took <= secs(1), "{took:?}");
    sim.run_for(secs(10));
    sim.capture = Some(Vec::new());
    for _ in 0..120 {
        sim.ping(anna, ben);
        sim.run_for(secs(1));
        assert!(!sim.is_direct(anna, ben) && !sim.is_direct(ben, anna), "it flaps");
    }
    let server = sim.net.addr(Place::Server).ip();
    let captured = sim.capture.take().expect("captured");
    let probes = captured.iter().filter(|c| c.from == Place::Client(anna) && c.to.ip() != server).count();
    println!("N-05 (simulated): by relay after {took:?}; then {probes} probes in 120 s");
    assert!(probes <= 120, "{probes}");
}

#[test]
fn n_16_where_early_datagrams_spoil_ports_probes_cross_on_their_way() {
    let trap = Nat { trap: true, ..Nat::HOME };
    let mut times = Vec::new();
    for seed in 0..10 {
        let (mut sim, both) = pair(400 + seed, Some(trap), Some(trap));
        times.extend(direct_within(&mut sim, both, secs(5)));
        sim.ping(both[1], both[0]);
    }
    println!("N-16 (simulated): {} of 10 direct, {times:?}", times.len());
    assert!(times.len() >= 9, "the relay carries the others, but these were in step: {times:?}");
}

#[test]
fn n_07_neighbours_behind_one_nat_meet_in_their_lan_with_and_without_hairpin() {
    for hairpin in [false, true] {
        let mut sim = Sim::new(7);
        let [anna, ben] = sim.home(Nat { hairpin, ..Nat::HOME }, ["anna", "ben"]);
        sim.start();
        sim.ping(anna, ben);
        let took = sim.expect("a direct path", secs(1), |sim| direct_both_ways(sim, [anna, ben]));
        sim.run_for(secs(60));
        let lan = sim.net.addr(Place::Client(ben));
        assert_eq!(sim.route(anna, ben).map(|route| route.endpoint.addr), Some(lan), "hairpin {hairpin}");
        println!("N-07 (simulated): hairpin {hairpin}: the LAN's address after {took:?}");
    }
}

#[test]
fn while_the_server_is_away_a_common_peer_introduces_two_that_have_never_met() {
    let mut sim = Sim::new(8);
    let [anna] = sim.home(Nat::HOME, ["anna"]);
    let [ben] = sim.home(Nat::HOME, ["ben"]);
    let [carl] = sim.home(Nat::HOME, ["carl"]);
    sim.start();
    sim.ping(anna, carl);
    sim.ping(ben, carl);
    sim.expect("direct paths to the go-between", secs(5), |sim| {
        direct_both_ways(sim, [anna, carl]) && direct_both_ways(sim, [ben, carl])
    });
    sim.crash_server();
    sim.run_for(secs(60));
    sim.ping(anna, carl);
    sim.ping(ben, carl);
    assert!(sim.route(anna, ben).is_none());
    let took = sim.ping(anna, ben);
    assert!(direct_both_ways(&sim, [anna, ben]));
    println!("with the server dead, two that had never spoken met through a third after {took:?}");
    assert!(took < secs(3), "{took:?}");
}

#[test]
fn s_20_an_address_that_all_peers_claim_to_have_gets_few_datagrams() {
    let mut sim = Sim::new(20);
    let names: Vec<String> = (0..19).map(|number| format!("c{number}")).collect();
    let [anna] = sim.public(["anna"]);
    for name in &names {
        sim.home(Nat::HARD, [name.as_str()]);
    }
    let victim = sim.net.plug(Place::Stranger, None, PORT, Duration::from_millis(10));
    sim.start();
    sim.run_for(secs(5));
    sim.capture = Some(Vec::new());
    for round in 0..120 {
        for liar in 1..20 {
            // Every second others of its ports.
            let list = (0..8).map(|port| Candidate {
                kind: CandidateKind::Host,
                addr: std::net::SocketAddr::new(victim.ip(), 2000 + round * 8 + port),
            });
            let now = sim.now();
            let run = sim.clients[liar].run.as_mut().expect("it runs");
            run.peers.as_mut().expect("it is a member").set_candidates(list.collect(), now);
            sim.send(liar, 0);
            sim.send(0, liar);
        }
        sim.run_for(secs(1));
    }
    let captured = sim.capture.take().expect("captured");
    let sent: Vec<Instant> =
        captured.iter().filter(|c| c.from == Place::Client(anna) && c.to.ip() == victim.ip()).map(|c| c.at).collect();
    let most =
        sent.iter().map(|at| sent.iter().filter(|other| **other >= *at && **other - *at < secs(1)).count()).max();
    println!("S-20 (simulated): {} to the victim in two minutes, {most:?} in the worst second", sent.len());
    assert!(!sent.is_empty() && sent.len() <= 2000);
    assert!(most <= Some(20), "{most:?}");
    let held_back = sim.clients[anna].run.as_ref().expect("it runs").drops[&DropReason::UnprovenBudget];
    println!("S-20 (simulated): {held_back} were held back, and counted");
    assert!(held_back > 0);
}

#[test]
fn what_a_member_asks_too_much_of_is_dropped_and_counted_by_reason() {
    let mut sim = Sim::new(21);
    let [anna, ben, carl] = sim.public(["anna", "ben", "carl"]);
    sim.start();
    sim.ping(anna, ben);
    sim.run_for(secs(2));
    let (at, now) = (sim.peer(anna, ben).expect("a member").clone(), sim.now());
    let (session, via) = (at.session.expect("a session"), at.route.expect("a path"));
    let about = sim.clients[carl].key;
    let peers = sim.clients[anna].run.as_mut().and_then(|run| run.peers.as_mut()).expect("it is a member");
    let pass_on =
        NatMessage::PunchAt { round: 0, delay_ms: 0, purpose: Purpose::PassOn, about, candidates: Vec::new() };
    for number in 0..50 {
        let elsewhere = Endpoint { addr: SocketAddr::from(([203, 0, 113, 7], 1000 + number)), ..via.endpoint };
        peers.seen_from(at.idx, Route::direct(elsewhere), now);
        for asked in [Control::Ping { id: number.into() }, Control::Nat(pass_on.clone())] {
            peers.handle_control(&session, via, &asked.to_bytes(), now).expect("authentic");
        }
    }
    let broken = MapEntry { name: "dora".into(), certificate: [7; CERT_LEN], online: true };
    let token = ChannelToken(1);
    peers.handle_server(Control::PeerAnswer { entry: broken, introduced: true, token, candidates: Vec::new() }, now);
    let run = sim.clients[anna].run.as_mut().expect("it runs");
    let mut counted = BTreeMap::<_, u32>::new();
    while let Some(output) = run.peers.as_mut().and_then(Peers::poll_output) {
        if let Output::Dropped(reason) = output {
            *counted.entry(reason).or_default() += 1;
        }
    }
    println!("of 50 each: {counted:?}");
    let expected = [
        (DropReason::BadCertificate, 1),
        (DropReason::SightingFlood, 46),
        (DropReason::IntroductionFlood, 40),
        (DropReason::QuestionFlood, 30),
    ];
    assert_eq!(counted, expected.into());
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
