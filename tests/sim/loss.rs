//! Handshakes through loss (F-25): how long first contacts take, with the server and with a peer.

use std::time::Duration;

use super::Sim;
use super::net::{Nat, Quality};

/// Part of datagrams lost, each way and each hop, and what 95 of 100 handshakes may take.
const LIMITS: [(f64, Duration); 3] =
    [(0.01, Duration::from_secs(1)), (0.05, Duration::from_secs(2)), (0.20, Duration::from_secs(6))];
/// Of each kind, at each loss.
const CONTACTS: u64 = 100;

#[test]
fn f_25_first_contacts_under_loss_take_one_two_and_six_seconds() {
    for (loss, limit) in LIMITS {
        let (mut with_peer, mut with_server) = (Vec::new(), Vec::new());
        for seed in 0..CONTACTS {
            with_peer.push(contact_with_a_peer(2500 + seed, loss));
            with_server.push(contact_with_the_server(2700 + seed, loss));
        }
        for (who, mut times) in [("a peer", with_peer), ("the server", with_server)] {
            times.sort_unstable();
            let [half, p95, most] = [50, 95, 100].map(|percent| times[times.len() * percent / 100 - 1]);
            println!(
                "F-25 (simulated): {:.0} % of loss: {CONTACTS} handshakes with {who}: {half:.0?} in half of them, \
                 {p95:.0?} in 95 of 100, {most:.0?} at the most",
                loss * 100.0
            );
            assert!(p95 <= limit, "{who}, {loss}: {times:?}");
        }
    }
}

/// Two that know of each other and have never spoken: from the first frame until both hold the session.
fn contact_with_a_peer(seed: u64, loss: f64) -> Duration {
    let mut sim = Sim::new(seed);
    let [anna] = sim.home(Nat::HOME, ["anna"]);
    let [ben] = sim.home(Nat::HOME, ["ben"]);
    sim.start();
    sim.run_for(Duration::from_secs(5));
    sim.net.wan = Quality { loss, ..Quality::PERFECT };
    sim.send(anna, ben);
    let has = |sim: &Sim, one, other| sim.peer(one, other).is_some_and(|peer| peer.session.is_some());
    sim.expect("a session", Duration::from_secs(60), |sim| has(sim, anna, ben) && has(sim, ben, anna))
}

/// A client that is started: until it has its lease and is attached.
fn contact_with_the_server(seed: u64, loss: f64) -> Duration {
    let mut sim = Sim::new(seed);
    let [anna] = sim.home(Nat::HOME, ["anna"]);
    sim.net.wan = Quality { loss, ..Quality::PERFECT };
    sim.start_server();
    sim.start_client(anna);
    sim.expect("a lease", Duration::from_secs(60), |sim| sim.is_attached(anna))
}
