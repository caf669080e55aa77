//! Links that break and are mended, routers that forget, machines that move: in the end everybody reaches everybody.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use rand::RngExt;

use super::Sim;
use super::net::{Nat, Place, Quality};

const MEMBERS: usize = 6;
/// After the last repair (F-23).
const CONVERGED_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn f_23_whatever_links_did_all_members_reach_each_other_thirty_seconds_after_the_last_repair() {
    let seeds = if std::env::var_os("EPS_LONG").is_some_and(|value| value == "1") { 200 } else { 20 };
    let mut longest = Duration::ZERO;
    for seed in 0..seeds {
        match catch_unwind(AssertUnwindSafe(|| swizzle(seed))) {
            Ok(took) => longest = longest.max(took),
            Err(panic) => {
                eprintln!("F-23: the seed was {seed}");
                resume_unwind(panic)
            }
        }
    }
    println!(
        "F-23: {seeds} seeds, full mesh {:.1} virtual s after the last repair at the latest",
        longest.as_secs_f64()
    );
}

fn swizzle(seed: u64) -> Duration {
    let mut sim = Sim::new(seed ^ 0xf23);
    for number in 0..MEMBERS {
        let site = sim.rng.random_bool(0.7).then(|| {
            let nat = Nat::random(&mut sim.rng);
            sim.net.add_site(Some(nat))
        });
        let delay = Duration::from_millis(sim.rng.random_range(1..60));
        sim.add_client(&format!("c{number}"), site, None, delay);
    }
    sim.start();
    sim.net.wan = Quality { loss: 0.02, ..Quality::PERFECT };
    for _ in 0..40 {
        let (one, other) = (sim.rng.random_range(0..MEMBERS), sim.rng.random_range(0..=MEMBERS));
        let far = if other == MEMBERS { Place::Server } else { Place::Client(other) };
        match sim.rng.random_range(0..8) {
            0..=3 => {
                sim.note(&format!("cut: c{one} and {far:?}"));
                sim.net.cut(Place::Client(one), far);
            }
            4..=5 => {
                sim.note(&format!("mended: c{one} and {far:?}"));
                sim.net.mend(Place::Client(one), far);
            }
            6 => {
                sim.note(&format!("the router of c{one} restarts"));
                sim.net.forget_holes(Place::Client(one));
            }
            _ => sim.move_client(one),
        }
        for _ in 0..sim.rng.random_range(0..6) {
            let (from, to) = (sim.rng.random_range(0..MEMBERS), sim.rng.random_range(0..MEMBERS));
            if from != to {
                sim.send(from, to);
            }
            let pause = sim.rng.random_range(0..400);
            sim.run_for(Duration::from_millis(pause));
        }
        let pause = sim.rng.random_range(0..5000);
        sim.run_for(Duration::from_millis(pause));
    }
    sim.note("everything is mended");
    sim.net.mend_all();
    let mended = sim.now();
    let mut missing: Vec<(usize, usize)> =
        (0..MEMBERS).flat_map(|from| (0..MEMBERS).map(move |to| (from, to))).filter(|(from, to)| from != to).collect();
    let mut sent: Vec<Vec<u64>> = vec![Vec::new(); missing.len()];
    while !missing.is_empty() {
        if sim.now() - mended > CONVERGED_WITHIN {
            sim.fail(&format!("no full mesh: {missing:?}"));
        }
        for (pair, sent) in missing.iter().zip(&mut sent) {
            sent.push(sim.send(pair.0, pair.1));
        }
        sim.run_for(Duration::from_millis(500));
        for at in (0..missing.len()).rev() {
            if sent[at].iter().any(|number| sim.arrived(*number, missing[at].1)) {
                missing.swap_remove(at);
                sent.swap_remove(at);
            }
        }
    }
    sim.now() - mended
}

#[test]
fn f_11_frames_follow_a_client_that_moved_within_a_few_round_trips_and_a_relay_bridges() {
    for (name, mover, peer) in [("in the open", None, None), ("behind NATs", Some(Nat::HOME), Some(Nat::HOME))] {
        let mut sim = Sim::new(11);
        let mut add = |name: &str, nat: Option<Nat>| {
            let site = nat.map(|nat| sim.net.add_site(Some(nat)));
            sim.add_client(name, site, None, Duration::from_millis(10))
        };
        let (anna, ben) = (add("anna", mover), add("ben", peer));
        sim.start();
        sim.send(anna, ben);
        sim.expect("a direct path", Duration::from_secs(5), |sim| {
            sim.send(anna, ben);
            sim.run_for(Duration::from_millis(100));
            sim.is_direct(anna, ben) && sim.is_direct(ben, anna)
        });
        sim.run_for(Duration::from_secs(20));
        let before = sim.route(ben, anna);
        sim.move_client(anna);
        let moved = sim.now();
        let mut frames = Vec::new();
        for _ in 0..60 {
            frames.push((sim.now(), sim.send(ben, anna)));
            sim.run_for(Duration::from_millis(50));
        }
        let first = frames.iter().find(|(_, frame)| sim.arrived(*frame, anna)).map(|(sent, _)| *sent - moved);
        println!("F-11: {name}: the first of ben's frames to arrive was sent {first:?} after anna moved");
        assert!(first.is_some_and(|first| first <= Duration::from_secs(1)), "{first:?}");
        sim.expect("direct again", Duration::from_secs(10), |sim| {
            sim.send(ben, anna);
            sim.run_for(Duration::from_millis(200));
            sim.is_direct(ben, anna)
        });
        assert_ne!(sim.route(ben, anna), before, "at the new address");
    }
}

#[test]
fn f_17_where_routers_forget_after_fifteen_seconds_idle_paths_are_kept_open_all_the_same() {
    for (expiry, patience) in [(30, 0), (15, 180)] {
        let mut sim = Sim::new(17);
        let nat = Nat { expiry: Duration::from_secs(expiry), ..Nat::HOME };
        let [anna] = sim.home(nat, ["anna"]);
        let [ben] = sim.home(nat, ["ben"]);
        sim.start();
        sim.expect("a direct path", Duration::from_secs(5), |sim| {
            sim.send(anna, ben);
            sim.run_for(Duration::from_millis(100));
            sim.is_direct(anna, ben) && sim.is_direct(ben, anna)
        });
        sim.run_for(Duration::from_secs(patience));
        let (mut lost, mut relayed) = (0, 0);
        for round in 0..10 {
            sim.run_for(Duration::from_secs(300));
            let (from, to) = if round % 2 == 0 { (anna, ben) } else { (ben, anna) };
            relayed += u32::from(!sim.is_direct(from, to));
            let frame = sim.send(from, to);
            sim.run_for(Duration::from_secs(1));
            lost += u32::from(!sim.arrived(frame, to));
        }
        println!(
            "F-17: mappings of {expiry} s, idle for five minutes each: {lost} of 10 first frames lost, {relayed} by the relay"
        );
        assert_eq!(lost, 0, "{expiry} s");
    }
}

#[test]
fn f_17_the_first_frame_after_a_long_silence_arrives_though_routers_forgot_everything_meanwhile() {
    let mut slowest = Duration::ZERO;
    for seed in 0..20 {
        let mut sim = Sim::new(1700 + seed);
        let [anna] = sim.home(Nat::HOME, ["anna"]);
        let [ben] = sim.home(Nat::HOME, ["ben"]);
        sim.start();
        sim.ping(anna, ben);
        sim.expect("a direct path", Duration::from_secs(5), |sim| sim.is_direct(anna, ben) && sim.is_direct(ben, anna));
        // So long that nobody keeps anything open, and then both routers restart.
        sim.run_for(Duration::from_secs(900));
        sim.net.forget_holes(Place::Client(anna));
        sim.net.forget_holes(Place::Client(ben));
        sim.run_for(Duration::from_secs(25));
        let frame = sim.send(anna, ben);
        let took = sim.expect("the first frame", Duration::from_secs(1), |sim| sim.arrived(frame, ben));
        slowest = slowest.max(took);
    }
    println!(
        "F-17: after 15 minutes of silence and restarts of both routers the first frame took {slowest:?} at the most"
    );
}
