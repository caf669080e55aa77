//! What the network does for people, one sentence each.

use std::time::Duration;

use eps_actor::proto::peers::PeerState;
use eps_actor::proto::server_link::Refusal;
use eps_actor::wire::header::Kind;
use eps_actor::wire::join::Token;

use super::Sim;
use super::net::{Filtering, Nat, Place, Quality};

#[test]
fn frames_go_by_relay_first_and_then_directly() {
    let mut sim = Sim::new(1);
    let [anna] = sim.home(Nat::HOME, ["anna"]);
    let [ben] = sim.home(Nat::HOME, ["ben"]);
    sim.start();

    let first = sim.send(anna, ben);
    sim.expect("a frame arrives", secs(5), |sim| sim.arrived(first, ben));
    assert!(!sim.is_direct(anna, ben), "a hole takes longer than the relay");
    let took = sim.expect("a direct path", secs(5), |sim| sim.is_direct(anna, ben) && sim.is_direct(ben, anna));
    sim.ping(anna, ben);
    println!("a hole through both NATs after {took:?}");
}

#[test]
fn behind_two_hard_nats_frames_stay_on_the_relay() {
    let mut sim = Sim::new(2);
    let [anna] = sim.home(Nat::HARD, ["anna"]);
    let [ben] = sim.home(Nat::HARD, ["ben"]);
    sim.start();
    for _ in 0..60 {
        sim.ping(anna, ben);
        sim.run_for(secs(1));
        assert!(!sim.is_direct(anna, ben) && !sim.is_direct(ben, anna));
    }
}

#[test]
fn an_answer_comes_back_though_the_first_copy_of_the_question_came_by_a_one_way_street() {
    let mut sim = Sim::new(21);
    let [anna] = sim.home(Nat::HOME, ["anna"]);
    let [ben] = sim.home(Nat { filtering: Filtering::None, ..Nat::HARD }, ["ben"]);
    sim.start();
    let took = sim.ping(anna, ben);
    assert!(took < secs(1), "{took:?}");
}

#[test]
fn who_was_only_ever_called_directly_has_the_relay_to_fall_back_on() {
    let mut sim = Sim::new(22);
    let [anna, ben] = sim.public(["anna", "ben"]);
    sim.start();
    sim.ping(anna, ben);
    sim.expect("a direct path", secs(5), |sim| sim.is_direct(anna, ben));
    sim.run_for(secs(5));
    sim.crash_client(ben);
    sim.start_client(ben);
    sim.run_for(secs(1));
    sim.net.cut(Place::Server, Place::Client(anna));
    sim.send(anna, ben);
    sim.run_for(secs(2));
    assert!(sim.is_direct(ben, anna), "anna called because of a hint");
    sim.net.mend_all();
    sim.run_for(secs(10));
    sim.net.cut(Place::Client(anna), Place::Client(ben));
    let mut frames = Vec::new();
    let took = sim.expect("ben reaches anna by the relay", secs(5), |sim| {
        frames.push(sim.send(ben, anna));
        sim.run_for(Duration::from_millis(100));
        frames.iter().any(|frame| sim.arrived(*frame, anna))
    });
    assert!(took <= secs(4), "{took:?}");
}

#[test]
fn neighbours_behind_one_nat_use_their_lan_addresses() {
    let mut sim = Sim::new(3);
    let [anna, ben] = sim.home(Nat::HOME, ["anna", "ben"]);
    sim.start();
    sim.ping(anna, ben);
    sim.expect("a direct path", secs(2), |sim| sim.is_direct(anna, ben) && sim.is_direct(ben, anna));
    let lan = sim.net.addr(Place::Client(ben));
    assert_eq!(sim.route(anna, ben).map(|route| route.endpoint.addr), Some(lan));
}

#[test]
fn f_05_a_client_starts_from_its_saved_map_and_reaches_known_peers_without_the_server() {
    let mut sim = Sim::new(4);
    let [anna] = sim.home(Nat::HOME, ["anna"]);
    let [ben, carl] = sim.public(["ben", "carl"]);
    sim.start();
    sim.ping(anna, ben);
    sim.ping(anna, carl);
    sim.expect("direct paths", secs(5), |sim| sim.is_direct(anna, ben) && sim.is_direct(anna, carl));
    sim.run_for(secs(5));

    sim.crash_server();
    sim.crash_client(anna);
    sim.run_for(secs(30));
    sim.start_client(anna);
    let took = [ben, carl].map(|peer| sim.ping(anna, peer));
    println!("F-05: with the server dead, both known peers answered after {took:?}");
    assert!(took.iter().all(|took| *took < secs(5)));
}

#[test]
fn f_20_a_peer_that_restarted_is_reached_again_by_its_hint() {
    let mut sim = Sim::new(5);
    let [anna] = sim.home(Nat::HOME, ["anna"]);
    let [ben] = sim.public(["ben"]);
    sim.start();
    sim.ping(anna, ben);
    sim.expect("a direct path", secs(5), |sim| sim.is_direct(anna, ben));
    sim.run_for(secs(3));

    sim.crash_client(ben);
    sim.start_client(ben);
    let before = sim.hints_believed;
    // The frame that finds the session gone is lost; frames on its heels are not.
    let start = sim.now();
    let rtt = Duration::from_millis(40);
    sim.send(anna, ben);
    sim.run_for(rtt);
    let mut frames = Vec::new();
    let took = sim.expect("a frame comes again", secs(2), |sim| {
        frames.push(sim.send(anna, ben));
        sim.run_for(Duration::from_millis(2));
        frames.iter().any(|frame| sim.arrived(*frame, ben))
    });
    assert_eq!(sim.hints_believed, before + 1);
    println!(
        "F-20: reachable again {:?} after the first frame, {took:?} after the hint; round trip {rtt:?}",
        sim.now() - start
    );
    assert!(sim.now() - start < 3 * rtt);
}

#[test]
fn f_01_f_02_a_crash_of_the_server_loses_no_direct_frame_and_its_clients_are_back_in_five_seconds() {
    let mut sim = Sim::new(6);
    let names: Vec<String> = (0..20).map(|number| format!("c{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        let site = (number % 2 == 0).then(|| sim.net.add_site(Some(Nat::HOME)));
        sim.add_client(name, site, None, Duration::from_millis(10));
    }
    sim.start();
    for peer in 1..20 {
        sim.ping(0, peer);
    }
    sim.expect("direct paths", secs(10), |sim| (1..20).all(|peer| sim.is_direct(0, peer) && sim.is_direct(peer, 0)));

    let mut frames = Vec::new();
    let mut talk = |sim: &mut Sim, seconds: u64| {
        for _ in 0..seconds * 2 {
            for peer in 1..20 {
                frames.push((sim.send(0, peer), peer));
                frames.push((sim.send(peer, 0), 0));
            }
            sim.run_for(Duration::from_millis(500));
        }
    };
    talk(&mut sim, 2);
    sim.crash_server();
    talk(&mut sim, 10);
    sim.start_server();
    let back = sim.now();
    let took = sim.expect("everybody is attached anew", secs(5), |sim| {
        sim.online().into_iter().all(|client| {
            let run = sim.clients[client].run.as_ref();
            run.and_then(|run| run.attached_at).is_some_and(|at| at >= back)
        })
    });
    talk(&mut sim, 5);
    let lost = frames.iter().filter(|(number, to)| !sim.arrived(*number, *to)).count();
    println!(
        "F-01, F-02: {} frames sent, {lost} lost; 20 clients attached again {took:?} after the restart",
        frames.len()
    );
    assert_eq!(lost, 0);
    assert!(sim.is_settled());
}

#[test]
fn f_03_a_crash_between_lease_and_grant_gives_no_address_twice() {
    let mut granted = 0;
    for seed in 0..40 {
        let mut sim = Sim::new(700 + seed);
        sim.store_delay = Duration::from_millis(100);
        sim.public(["anna", "ben", "carl", "dora"]);
        sim.start_server();
        (0..4).for_each(|client| sim.start_client(client));
        sim.run_for(Duration::from_millis(10 * seed));
        sim.crash_server();
        sim.run_for(secs(1));
        sim.start_server();
        // The store itself refuses two rows with one address, and every grant is compared with it.
        sim.expect("everybody has a lease", secs(20), Sim::is_settled);
        granted += 4;
    }
    println!("F-03: {granted} leases over 40 crashes at different moments, none twice");
}

#[test]
fn s_10_a_kicked_member_is_cut_off_in_two_seconds() {
    let mut sim = Sim::new(8);
    let [anna, ben, mallory] = sim.public(["anna", "ben", "mallory"]);
    sim.start();
    for (one, other) in [(anna, ben), (anna, mallory), (ben, mallory)] {
        sim.ping(one, other);
    }
    sim.kick(mallory);
    let mut last = None;
    for step in 0..20 {
        let frames = [(sim.send(mallory, anna), anna), (sim.send(mallory, ben), ben)];
        sim.run_for(Duration::from_millis(100));
        if frames.iter().any(|(number, to)| sim.arrived(*number, *to)) {
            last = Some(Duration::from_millis(100 * (step + 1)));
        }
    }
    println!("S-10: last frame of a kicked member {last:?} after the kick");
    assert!(last.is_none_or(|last| last < secs(2)));
    let late = sim.broadcast(mallory);
    sim.run_for(secs(20));
    assert!(!sim.arrived(late, anna) && !sim.arrived(late, ben));
    assert_eq!(sim.clients[mallory].refused, Some(Refusal::NotAMember));
    sim.ping(anna, ben);
}

#[test]
fn s_10_one_member_that_was_told_tells_the_others_though_the_server_is_dead() {
    let mut sim = Sim::new(9);
    let [anna, ben, carl, mallory] = sim.public(["anna", "ben", "carl", "mallory"]);
    sim.start();
    for (one, other) in [(anna, ben), (anna, carl), (anna, mallory), (ben, carl), (ben, mallory), (carl, mallory)] {
        sim.ping(one, other);
    }
    sim.expect("direct paths", secs(5), |sim| sim.is_direct(anna, ben) && sim.is_direct(anna, carl));
    for deaf in [ben, carl, mallory] {
        sim.net.cut(Place::Server, Place::Client(deaf));
    }
    sim.kick(mallory);
    sim.run_for(Duration::from_millis(100));
    sim.crash_server();
    sim.run_for(secs(2));
    for member in [anna, ben, carl] {
        let frame = sim.send(mallory, member);
        sim.run_for(secs(1));
        assert!(!sim.arrived(frame, member), "client {member} still listens");
    }
    println!("S-10: by gossip alone, within {:?} of the kick", secs(2));
}

#[test]
fn s_10_a_member_that_missed_the_revocation_does_not_let_the_kicked_one_in_again() {
    let mut sim = Sim::new(10);
    let [anna, mallory] = sim.public(["anna", "mallory"]);
    sim.start();
    sim.ping(anna, mallory);
    // Half of what the server says is lost: the revocation comes with the change of the map, or not at all.
    for attempt in 0..30 {
        let mut sim = Sim::new(1000 + attempt);
        let [anna, mallory] = sim.public(["anna", "mallory"]);
        sim.start();
        sim.ping(anna, mallory);
        sim.net.wan.loss = 0.5;
        sim.kick(mallory);
        sim.run_for(secs(5));
        sim.net.wan = Quality::PERFECT;
        for _ in 0..5 {
            sim.send(mallory, anna);
            sim.run_for(secs(1));
        }
        let frame = sim.send(mallory, anna);
        sim.run_for(secs(2));
        assert!(!sim.arrived(frame, anna), "attempt {attempt}");
        assert!(sim.map_is_true(anna), "attempt {attempt}: it is in the map again");
    }
}

#[test]
fn s_11_wrong_used_and_replayed_invitations_get_one_and_the_same_answer_and_no_lease() {
    let mut sim = Sim::new(11);
    sim.server.open = false;
    sim.start_server();
    let token = sim.invite(Some(1));
    let anna = sim.add_client("anna", None, Some(token.clone()), Duration::from_millis(10));
    sim.capture = Some(Vec::new());
    sim.start_client(anna);
    sim.expect("anna joins", secs(5), |sim| sim.is_attached(anna));
    let enrolment = sim.capture.take().unwrap_or_default();

    let wrong = sim.add_client("wrong", None, Some(Token::new([7; 16])), Duration::from_millis(10));
    let reused = sim.add_client("reused", None, Some(token), Duration::from_millis(10));
    let mut answers = Vec::new();
    for client in [wrong, reused] {
        sim.capture = Some(Vec::new());
        sim.start_client(client);
        sim.expect("it is refused", secs(10), |sim| sim.clients[client].refused.is_some());
        assert_eq!(sim.clients[client].refused, Some(Refusal::Token));
        let addr = sim.net.addr(Place::Client(client));
        let captured = sim.capture.take().unwrap_or_default();
        let to_it = captured.iter().filter(|seen| seen.from == Place::Server && seen.to == addr);
        answers.push(to_it.map(|seen| (seen.datagram[0], seen.datagram[1], seen.datagram.len())).collect::<Vec<_>>());
    }

    let server = sim.net.addr(Place::Server);
    sim.net.plug(Place::Stranger, None, 666, Duration::from_millis(10));
    for kind in [Kind::Enrol1, Kind::Enrol3] {
        let seen = enrolment.iter().find(|seen| seen.datagram[0] == kind as u8).expect("it was sent");
        let datagram = seen.datagram.clone();
        sim.inject(server, datagram);
        sim.run_for(secs(1));
    }
    answers.push(sim.overheard.iter().map(|datagram| (datagram[0], datagram[1], datagram.len())).collect());
    println!("S-11: answers (type, reason, bytes) to a wrong token, a used one, a replay: {answers:02x?}");
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[2][..], answers[0][..2], "a replay of both messages, once");
    assert_eq!(sim.server.disk.state.members.len(), 1, "one lease");
}

#[test]
fn an_enrolment_whose_answer_is_lost_or_repeated_is_not_taken_for_a_refusal() {
    for seed in 0..60 {
        let mut sim = Sim::new(1200 + seed);
        sim.server.open = false;
        sim.net.wan = Quality { loss: 0.4, duplication: 0.4, reordering: 0.4, jitter: Duration::from_millis(20) };
        sim.start_server();
        let token = sim.invite(Some(1));
        let anna = sim.add_client("anna", None, Some(token), Duration::from_millis(10));
        sim.start_client(anna);
        sim.expect("anna joins", secs(60), |sim| sim.is_attached(anna));
        assert_eq!(sim.server.disk.state.members.len(), 1);
    }
}

#[test]
fn c_04_lost_and_reordered_deltas_are_made_good_within_a_second() {
    let mut sim = Sim::new(13);
    let members: Vec<_> =
        (0..10).map(|number| sim.add_client(&format!("c{number}"), None, None, Duration::from_millis(10))).collect();
    sim.start();
    let late = [sim.public(["dora"]), sim.public(["emil"]), sim.public(["fred"])].concat();
    // All that the server says to c0 is lost, then all is reordered.
    sim.net.cut(Place::Server, Place::Client(0));
    late.iter().for_each(|client| sim.start_client(*client));
    sim.expect("they join", secs(5), |sim| late.iter().all(|client| sim.is_attached(*client)));
    sim.run_for(secs(1));
    assert!(!sim.map_is_true(0));
    sim.net.mend_all();
    sim.net.wan.reordering = 0.9;
    let took = sim.expect("c0 knows of them", secs(1), |sim| sim.map_is_true(0));
    println!("C-04: {} members told {took:?} after the gap ended", members.len() + late.len());
}

#[test]
fn telling_a_hundred_members_to_a_new_one_takes_few_datagrams() {
    let mut sim = Sim::new(14);
    for number in 0..100 {
        sim.add_client(&format!("c{number}"), None, None, Duration::from_millis(10));
    }
    sim.start();
    sim.run_for(secs(10));
    let [late] = sim.public(["late"]);
    let before = sim.datagrams;
    sim.start_client(late);
    sim.expect("it knows all", secs(5), |sim| sim.map_is_true(late));
    sim.run_for(Duration::from_millis(500));
    let to_all = sim.datagrams - before;
    println!("a map of 100 members: {to_all} datagrams in all, with one delta and its answers for each of the others");
    assert!(to_all < 600, "{to_all}");
}

#[test]
fn keys_are_renewed_after_two_minutes_and_no_frame_is_lost() {
    let mut sim = Sim::new(15);
    let [anna] = sim.home(Nat::HOME, ["anna"]);
    let [ben] = sim.public(["ben"]);
    sim.start();
    sim.ping(anna, ben);
    sim.expect("a direct path", secs(5), |sim| sim.is_direct(anna, ben) && sim.is_direct(ben, anna));
    let mut frames = Vec::new();
    let mut sessions = std::collections::BTreeSet::new();
    for _ in 0..4000 {
        frames.push((sim.send(anna, ben), ben));
        frames.push((sim.send(ben, anna), anna));
        sim.run_for(Duration::from_millis(100));
        sessions
            .extend(sim.peer(anna, ben).and_then(|peer| peer.session.as_ref()).map(|session| session.local_index.0));
    }
    let lost = frames.iter().filter(|(number, to)| !sim.arrived(*number, *to)).count();
    println!("{} frames over 400 s and {} sessions: {lost} lost", frames.len(), sessions.len());
    assert_eq!(lost, 0);
    assert!(sessions.len() >= 4);
}

#[test]
fn when_both_begin_at_once_one_session_comes_of_it() {
    for seed in 0..20 {
        let mut sim = Sim::new(1600 + seed);
        let [anna] = sim.home(Nat::HOME, ["anna"]);
        let [ben] = sim.public(["ben"]);
        sim.start();
        let frames = [(sim.send(anna, ben), ben), (sim.send(ben, anna), anna)];
        let all = |sim: &mut Sim| frames.iter().all(|(number, to)| sim.arrived(*number, *to));
        let took = sim.expect("both frames arrive", secs(1), all);
        sim.run_for(secs(2));
        let [mine, theirs] = [(anna, ben), (ben, anna)].map(|(one, other)| {
            let session = sim.peer(one, other).and_then(|peer| peer.session.clone()).expect("there is one");
            (session.local_index, session.remote_index)
        });
        assert_eq!((mine.0, mine.1), (theirs.1, theirs.0), "they use one session, after {took:?}");
    }
}

#[test]
fn when_the_first_messages_of_both_are_lost_they_find_each_other_all_the_same() {
    for seed in 0..20 {
        let mut sim = Sim::new(1700 + seed);
        let [anna, ben] = sim.public(["anna", "ben"]);
        sim.start();
        sim.net.wan.loss = 0.5;
        let (mut there, mut back) = (Vec::new(), Vec::new());
        sim.expect("frames both ways", secs(20), |sim| {
            there.push(sim.send(anna, ben));
            back.push(sim.send(ben, anna));
            sim.run_for(Duration::from_millis(200));
            there.iter().any(|frame| sim.arrived(*frame, ben)) && back.iter().any(|frame| sim.arrived(*frame, anna))
        });
    }
}

#[test]
fn frames_return_to_the_relay_when_the_direct_path_goes_dark_and_leave_it_again() {
    let mut sim = Sim::new(17);
    let [anna] = sim.home(Nat::HOME, ["anna"]);
    let [ben] = sim.home(Nat::HOME, ["ben"]);
    sim.start();
    sim.ping(anna, ben);
    sim.expect("a direct path", secs(5), |sim| sim.is_direct(anna, ben) && sim.is_direct(ben, anna));
    sim.run_for(secs(20));

    sim.net.cut(Place::Client(anna), Place::Client(ben));
    let start = sim.now();
    let frames: Vec<_> = (0..60)
        .map(|_| {
            let frame = sim.send(anna, ben);
            sim.run_for(Duration::from_millis(50));
            (frame, sim.now())
        })
        .collect();
    sim.run_for(secs(1));
    let first = frames.iter().find(|(frame, _)| sim.arrived(*frame, ben)).map(|(_, sent)| *sent - start);
    println!("black hole: frames by the relay after {first:?}");
    assert!(first.is_some_and(|first| first <= secs(3)));
    assert_eq!(sim.peer(anna, ben).map(|peer| peer.state), Some(PeerState::Relay));

    sim.net.mend_all();
    sim.expect("direct again", secs(60), |sim| {
        sim.send(anna, ben);
        sim.run_for(Duration::from_millis(200));
        sim.is_direct(anna, ben)
    });
}

#[test]
fn a_client_whose_router_forgot_it_is_at_its_new_address_soon() {
    let mut sim = Sim::new(19);
    let [anna] = sim.home(Nat::HOME, ["anna"]);
    let [ben] = sim.public(["ben"]);
    sim.start();
    sim.ping(anna, ben);
    sim.run_for(secs(5));
    sim.net.forget_holes(Place::Client(anna));
    sim.net.wan.loss = 0.2;
    let took = sim.expect("ben reaches anna", secs(25), |sim| {
        let frame = sim.send(ben, anna);
        sim.run_for(Duration::from_millis(200));
        sim.arrived(frame, anna)
    });
    println!("after the router's restart: {took:?}");
}

#[test]
fn without_frames_the_network_falls_silent() {
    let mut sim = Sim::new(20);
    let wide_open = Nat { filtering: Filtering::None, ..Nat::HARD };
    let homes = [
        sim.home(Nat::HOME, ["anna", "ben"]),
        sim.home(wide_open, ["carl", "dora"]),
        sim.home(wide_open, ["emil", "fred"]),
    ];
    let all = homes.concat();
    sim.start();
    for &one in &all {
        for other in all.iter().copied().filter(|other| *other != one) {
            sim.ping(one, other);
        }
    }
    let rate = |sim: &mut Sim, seconds: u64| {
        let before = sim.datagrams;
        sim.run_for(secs(seconds));
        (sim.datagrams - before) as f64 / seconds as f64 / all.len() as f64
    };
    sim.run_for(secs(30));
    let soon = rate(&mut sim, 60);
    sim.run_for(secs(780));
    let late = rate(&mut sim, 120);
    println!(
        "idle, six members all in touch: {soon:.2} datagrams per client and second, {late:.2} after fourteen minutes"
    );
    assert!(soon < 4.0, "{soon}");
    assert!(late < 0.3, "{late}");
}

// --- helpers ---

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Sim {
    /// A frame there and one back, each within two seconds; how long both took.
    pub(super) fn ping(&mut self, one: usize, other: usize) -> Duration {
        let there = self.send(one, other);
        let took = self.expect("a frame arrives", secs(5), |sim| sim.arrived(there, other));
        let back = self.send(other, one);
        took + self.expect("its answer arrives", secs(5), |sim| sim.arrived(back, one))
    }
}
