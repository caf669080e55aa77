//! What people ask of peers: pings and accounts of why, over NATs and the relay.

use std::collections::VecDeque;
use std::time::Duration;

use eps_actor::counters::DropReason;
use eps_actor::proto::asking::{Answer, Question};
use eps_actor::proto::peers::PeerState;
use eps_actor::wire::why::Side;

use super::Sim;
use super::net::{Nat, Place};

impl Sim {
    /// Asks, and runs until there is an answer.
    fn ask(&mut self, from: usize, to: usize, question: Question) -> Answer {
        let id = 1 + self.clients[from].told.len() as u64;
        let idx = self.peer(from, to).expect("a member").idx;
        let (now, end) = (self.now, self.now + Duration::from_secs(3));
        let mut out = VecDeque::new();
        self.clients[from].ask((idx, question, id, end), now, &mut self.rng, &mut out);
        self.touched(Place::Client(from), out);
        let limit = Duration::from_millis(3100);
        self.expect("an answer, be it that there is none", limit, |sim| sim.clients[from].told.contains_key(&id));
        self.clients[from].told[&id].clone()
    }
}

fn way(answer: &Answer) -> &'static str {
    match answer {
        Answer::Pong { via, .. } if via.is_direct() => "direct",
        Answer::Pong { .. } => "relay",
        _ => "none",
    }
}

#[test]
fn a_ping_wakes_an_idle_peer_and_its_answers_move_from_the_relay_to_the_direct_path() {
    let mut sim = Sim::new(71);
    let [anna] = sim.home(Nat::HOME, ["anna"]);
    let [ben] = sim.home(Nat::HOME, ["ben"]);
    sim.start();
    assert!(sim.peer(anna, ben).is_some_and(|peer| peer.session.is_none()), "nobody has spoken");
    assert_eq!(way(&sim.ask(anna, ben, Question::Ping)), "relay");
    sim.expect("a direct path", Duration::from_secs(5), |sim| sim.is_direct(anna, ben) && sim.is_direct(ben, anna));
    let answer = sim.ask(anna, ben, Question::Ping);
    assert_eq!(way(&answer), "direct", "{answer:?}");
}

#[test]
fn both_ends_of_a_pair_behind_hard_nats_tell_that_they_sent_and_nothing_came() {
    let mut sim = Sim::new(72);
    let [anna] = sim.home(Nat::HARD, ["anna"]);
    let [ben] = sim.home(Nat::HARD, ["ben"]);
    sim.start();
    sim.ask(anna, ben, Question::Ping);
    sim.run_for(Duration::from_secs(5));
    for (from, to) in [(anna, ben), (ben, anna)] {
        let Answer::Why(side) = sim.ask(from, to, Question::Why) else { panic!("no account") };
        assert!(side.has(Side::DIRECT));
        assert!(side.tries.iter().any(|one| one.sent > 0 && one.kind.is_some()), "{side:?}");
        assert!(side.tries.iter().all(|one| one.answered == 0), "{side:?}");
    }
}

#[test]
fn who_was_never_there_has_no_session_and_who_went_is_silent() {
    let mut sim = Sim::new(73);
    let [anna, ben, carl] = sim.public(["anna", "ben", "carl"]);
    sim.start();
    sim.crash_client(ben);
    assert_eq!(sim.ask(anna, ben, Question::Ping), Answer::NoSession);
    sim.ask(anna, carl, Question::Ping);
    sim.crash_client(carl);
    assert_eq!(sim.ask(anna, carl, Question::Why), Answer::Silence);
}

/// What one says of the way to another.
fn state(sim: &Sim, from: usize, to: usize) -> Option<PeerState> {
    sim.peer(from, to).map(|peer| peer.state)
}

#[test]
fn a_peer_that_was_killed_is_soon_said_to_be_lost_and_is_found_when_it_is_back() {
    for (seed, nat, with_frames, limit) in
        [(74, None, true, 9), (75, None, false, 32), (76, Some(Nat::HARD), true, 9), (77, Some(Nat::HARD), false, 32)]
    {
        let mut sim = Sim::new(seed);
        let [anna, ben] = match nat {
            None => sim.public(["anna", "ben"]),
            Some(nat) => [sim.home(nat, ["anna"])[0], sim.home(nat, ["ben"])[0]],
        };
        let expected = if nat.is_none() { PeerState::Direct } else { PeerState::Relay };
        sim.start();
        sim.ping(anna, ben);
        sim.expect("a path", Duration::from_secs(5), |sim| state(sim, anna, ben) == Some(expected));
        sim.run_for(Duration::from_secs(10));
        // A frame's address is asked of who runs.
        if with_frames {
            [Place::Client(anna), Place::Server].into_iter().for_each(|end| sim.net.cut(Place::Client(ben), end));
        } else {
            sim.crash_client(ben);
        }
        let took = sim.expect("ben is lost", Duration::from_secs(limit), |sim| {
            if with_frames {
                sim.send(anna, ben);
                sim.run_for(Duration::from_millis(100));
            }
            state(sim, anna, ben) == Some(PeerState::Lost)
        });
        println!("{expected:?}, frames pass: {with_frames}: lost {:.1} s after the kill", took.as_secs_f64());
        let peer = sim.peer(anna, ben).expect("a member");
        assert_eq!((peer.way(), peer.srtt, peer.proven), (None, None, None));
        // A server that restarts gives new channels; that is no word of ben's.
        sim.crash_server();
        sim.start_server();
        for _ in 0..100 {
            sim.run_for(Duration::from_millis(100));
            assert_eq!(state(&sim, anna, ben), Some(PeerState::Lost));
        }
        if with_frames {
            sim.net.mend_all()
        } else {
            sim.start_client(ben)
        }
        let took = sim.expect("ben is found", Duration::from_secs(10), |sim| {
            sim.send(anna, ben);
            sim.run_for(Duration::from_millis(100));
            state(sim, anna, ben) == Some(expected)
        });
        println!("found again after {:.1} s", took.as_secs_f64());
    }
}

#[test]
fn frames_to_a_lost_peer_are_sent_all_the_same_and_arrive_once_it_hears_them() {
    let mut sim = Sim::new(78);
    let [anna, ben] = sim.public(["anna", "ben"]);
    sim.start();
    sim.ping(anna, ben);
    sim.expect("a path", Duration::from_secs(5), |sim| state(sim, anna, ben) == Some(PeerState::Direct));
    for other in [Place::Client(ben), Place::Server] {
        sim.net.cut(Place::Client(anna), other);
    }
    sim.expect("ben is lost", Duration::from_secs(9), |sim| {
        sim.send(anna, ben);
        sim.run_for(Duration::from_millis(100));
        state(sim, anna, ben) == Some(PeerState::Lost)
    });
    sim.net.mend_all();
    let frame = sim.send(anna, ben);
    let took = sim.expect("the frame", Duration::from_millis(500), |sim| sim.arrived(frame, ben));
    println!("a frame to a lost peer whose way was mended: there after {took:?}");
}

#[test]
fn who_wants_no_direct_paths_is_reached_by_the_relay_at_once_and_directly_by_nobody() {
    for (seed, caller) in [(79, 0), (80, 1)] {
        let mut sim = Sim::new(seed);
        let [anna, ben] = sim.public(["anna", "ben"]);
        sim.clients[ben].direct = false;
        sim.start();
        let ends = [anna, ben];
        let (from, to) = (ends[caller], ends[1 - caller]);
        let frame = sim.send(from, to);
        sim.expect("the first frame", Duration::from_millis(600), |sim| sim.arrived(frame, to));
        for _ in 0..600 {
            sim.run_for(Duration::from_millis(100));
            sim.send(from, to);
            for (one, other) in [(anna, ben), (ben, anna)] {
                assert!(!sim.is_direct(one, other), "{}", sim.clients[one].name);
            }
        }
        assert_eq!(state(&sim, anna, ben), Some(PeerState::Relay));
        let drops = &sim.clients[ben].run.as_ref().expect("it runs").drops;
        assert!(drops.get(&DropReason::DirectOff).is_some_and(|count| *count > 0), "{drops:?}");
    }
}

#[test]
fn after_a_firewall_came_down_on_a_direct_path_the_accounts_tell_of_it_alone() {
    let mut sim = Sim::new(81);
    let [anna, ben] = sim.public(["anna", "ben"]);
    sim.start();
    sim.ping(anna, ben);
    sim.expect("a path", Duration::from_secs(5), |sim| state(sim, anna, ben) == Some(PeerState::Direct));
    sim.run_for(Duration::from_secs(60));
    sim.net.cut(Place::Client(anna), Place::Client(ben));
    sim.ask(anna, ben, Question::Why);
    sim.run_for(Duration::from_secs(5));
    for (from, to) in [(anna, ben), (ben, anna)] {
        let Answer::Why(side) = sim.ask(from, to, Question::Why) else { panic!("no account") };
        assert!(side.tries.iter().any(|one| one.sent > 0), "{side:?}");
        assert!(side.tries.iter().all(|one| one.arrived == 0), "{side:?}");
    }
}
