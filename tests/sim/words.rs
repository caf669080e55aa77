//! What people ask of peers: pings and accounts of why, over NATs and the relay.

use std::collections::VecDeque;
use std::time::Duration;

use eps_actor::proto::asking::{Answer, Question};
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
