//! Random runs: everything a seed can do to a network, then peace, and what must be true afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::proto::peers::PeerState;
use rand::RngExt;

use super::Sim;
use super::net::{Nat, Place, Quality};

/// Seeds of a plain `cargo test`.
const SEEDS: u64 = 300;
/// Who is said to be reached has given proof within this time: unused paths are asked each 20 s, and with a tenth more the
/// questions that follow are over by then.
const PROOF_AGE_MAX: Duration = Duration::from_secs(35);
/// After the last repair everybody reaches everybody within this time (F-23's figure).
const REACHED_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn three_hundred_random_networks_heal_and_keep_every_invariant() {
    let seeds = std::env::var("EPS_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let start = Instant::now();
    let mut total = Figures::default();
    // A network is a thread's own, whatever runs beside it.
    let threads = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let part = |first: u64| {
        let mut figures = Figures::default();
        (first..seeds).step_by(threads as usize).for_each(|seed| figures.add(&one(seed)));
        figures
    };
    thread::scope(|scope| {
        let parts: Vec<_> = (0..threads).map(|first| scope.spawn(move || part(first))).collect();
        for figures in parts {
            total.add(&figures.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
    });
    total.print(&format!("{seeds} seeds"), start.elapsed());
}

/// One seed again: `EPS_SIM_SEED=123 cargo test --test sim replay -- --nocapture`.
#[test]
fn replay() {
    let Some(seed) = std::env::var("EPS_SIM_SEED").ok().and_then(|text| text.parse().ok()) else { return };
    let start = Instant::now();
    one(seed).print(&format!("seed {seed}"), start.elapsed());
}

fn one(seed: u64) -> Figures {
    match catch_unwind(AssertUnwindSafe(|| Run::new(seed).run())) {
        Ok(figures) => figures,
        Err(panic) => {
            eprintln!("again: EPS_SIM_SEED={seed} cargo test --test sim replay -- --nocapture");
            resume_unwind(panic)
        }
    }
}

#[derive(Default)]
struct Figures {
    time: Duration,
    datagrams: u64,
    frames: u64,
    delivered: u64,
    crashes: u64,
    kicked: u64,
    healed: Duration,
    /// Datagrams per client and second, idle.
    idle: f64,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.time += other.time;
        self.datagrams += other.datagrams;
        self.frames += other.frames;
        self.delivered += other.delivered;
        self.crashes += other.crashes;
        self.kicked += other.kicked;
        self.healed = self.healed.max(other.healed);
        self.idle = self.idle.max(other.idle);
    }

    fn print(&self, what: &str, wall: Duration) {
        let minutes = self.time.as_secs_f64() / 60.0;
        println!(
            "simulation: {what}, {minutes:.0} virtual minutes in {:.1} s ({:.0} virtual minutes a second); {} datagrams, \
             {} of {} frames delivered, {} crashes, {} kicked; healed in {:.1} s at the most; idle {:.2} datagrams \
             per client and second at the most",
            wall.as_secs_f64(),
            minutes / wall.as_secs_f64(),
            self.datagrams,
            self.delivered,
            self.frames,
            self.crashes,
            self.kicked,
            self.healed.as_secs_f64(),
            self.idle,
        );
    }
}

struct Run {
    sim: Sim,
    with_tokens: bool,
    kicked: BTreeSet<usize>,
    crashes: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut sim = Sim::new(seed);
        // Few more often than many: small networks find most, large ones cost most.
        let draw = |sim: &mut Sim| sim.rng.random_range(2..=20_usize);
        let size = draw(&mut sim).min(draw(&mut sim));
        let with_tokens = sim.rng.random_bool(0.5);
        sim.server.open = !with_tokens;
        let mut sites = vec![None];
        for _ in 0..=size / 2 {
            let nat = Nat::random(&mut sim.rng);
            sites.push(Some(sim.net.add_site(Some(nat))));
        }
        for number in 0..size {
            let site = sites[sim.rng.random_range(0..sites.len())];
            let delay = Duration::from_millis(sim.rng.random_range(1..60));
            sim.add_client(&format!("c{number}"), site, None, delay);
        }
        sim.net.wan = Quality {
            loss: sim.rng.random_range(0.0..0.2),
            duplication: sim.rng.random_range(0.0..0.1),
            reordering: sim.rng.random_range(0.0..0.3),
            jitter: Duration::from_millis(sim.rng.random_range(0..30)),
        };
        sim.store_delay = Duration::from_millis(sim.rng.random_range(1..200));
        Self { sim, with_tokens, kicked: BTreeSet::new(), crashes: 0 }
    }

    fn run(mut self) -> Figures {
        self.sim.start_server();
        for client in 0..self.sim.clients.len() {
            if self.with_tokens {
                let token = self.sim.invite(Some(1));
                self.sim.clients[client].token = Some(token);
            }
            self.sim.start_client(client);
            let pause = self.sim.rng.random_range(0..500);
            self.sim.run_for(Duration::from_millis(pause));
        }
        let troubles = self.sim.rng.random_range(10..40);
        for _ in 0..troubles {
            self.trouble();
            let traffic = self.sim.rng.random_range(0..12);
            for _ in 0..traffic {
                self.frame();
                let pause = self.sim.rng.random_range(0..300);
                self.sim.run_for(Duration::from_millis(pause));
            }
            let pause = if self.sim.rng.random_bool(0.03) { 100_000 } else { 4_000 };
            let pause = self.sim.rng.random_range(0..pause);
            self.sim.run_for(Duration::from_millis(pause));
            self.nobody_is_said_to_be_reached_without_proof();
        }
        self.repair();
        let healed = self.everybody_reaches_everybody();
        self.nobody_hears_the_kicked();
        let idle = self.falls_quiet();
        Figures {
            time: self.sim.elapsed(),
            datagrams: self.sim.datagrams,
            frames: self.sim.frames.len() as u64,
            delivered: self.sim.arrivals.len() as u64,
            crashes: self.crashes,
            kicked: self.kicked.len() as u64,
            healed,
            idle,
        }
    }

    fn any_client(&mut self) -> usize {
        self.sim.rng.random_range(0..self.sim.clients.len())
    }

    fn frame(&mut self) {
        let (from, to) = (self.any_client(), self.any_client());
        if from == to {
            self.sim.broadcast(from);
        } else {
            self.sim.send(from, to);
        }
    }

    fn trouble(&mut self) {
        let client = self.any_client();
        let other = self.any_client();
        let sim = &mut self.sim;
        match sim.rng.random_range(0..20) {
            0..=2 if sim.clients[client].run.is_some() => {
                sim.crash_client(client);
                self.crashes += 1;
            }
            0..=4 if sim.clients[client].run.is_none() && !self.kicked.contains(&client) => sim.start_client(client),
            5..=6 if sim.server.run.is_some() => {
                sim.crash_server();
                self.crashes += 1;
            }
            5..=9 if sim.server.run.is_none() => sim.start_server(),
            10 if sim.server.run.is_some() && sim.rng.random_bool(0.3) => {
                let name = sim.clients[client].name.clone();
                if sim.server.disk.state.members.iter().any(|member| member.name == name) {
                    sim.kick(client);
                    self.kicked.insert(client);
                }
            }
            11 => {
                sim.note(&format!("cut between c{client} and c{other}"));
                sim.net.cut(Place::Client(client), Place::Client(other));
            }
            12 => {
                sim.note(&format!("cut between c{client} and the server"));
                sim.net.cut(Place::Client(client), Place::Server);
            }
            13 | 14 => {
                sim.note("cuts mended");
                sim.net.mend_all();
            }
            15 => {
                sim.note(&format!("router of c{client} restarts"));
                sim.net.forget_holes(Place::Client(client));
            }
            16 if sim.clients[client].run.is_none() => sim.change_port(client),
            17 if sim.clients[client].run.is_some() => sim.stop_client(client),
            _ => {}
        }
    }

    /// All that was broken works again; whoever should be there is started.
    fn repair(&mut self) {
        let sim = &mut self.sim;
        sim.note("everything is repaired");
        sim.net.mend_all();
        sim.net.wan.loss = sim.net.wan.loss.min(0.02);
        if sim.server.run.is_none() {
            sim.start_server();
        }
        // A removal that the crash of the server undid was never promised; the operator asks again.
        for client in self.kicked.clone() {
            sim.kick(client);
        }
        for client in 0..sim.clients.len() {
            if sim.clients[client].run.is_none() && !self.kicked.contains(&client) {
                if sim.clients[client].refused.is_some() {
                    sim.fail(&format!("c{client} was refused: {:?}", sim.clients[client].refused));
                }
                sim.start_client(client);
            }
        }
    }

    fn everybody_reaches_everybody(&mut self) -> Duration {
        let start = self.sim.now();
        let members: Vec<_> = (0..self.sim.clients.len()).filter(|client| !self.kicked.contains(client)).collect();
        let mut missing: BTreeMap<(usize, usize), Vec<u64>> = BTreeMap::new();
        for &from in &members {
            members.iter().filter(|to| **to != from).for_each(|to| drop(missing.insert((from, *to), Vec::new())));
        }
        loop {
            let settled = members.iter().all(|client| self.sim.is_attached(*client) && self.sim.map_is_true(*client));
            if missing.is_empty() && settled {
                return self.sim.now() - start;
            }
            if self.sim.now() - start > REACHED_WITHIN {
                let names: Vec<_> = missing.keys().map(|(from, to)| format!("c{from}->c{to}")).collect();
                let maps: Vec<_> = members.iter().filter(|client| !self.sim.map_is_true(**client)).collect();
                let away: Vec<_> = members.iter().filter(|client| !self.sim.is_attached(**client)).collect();
                self.sim.fail(&format!("not healed: no frame {names:?}; wrong maps {maps:?}; not attached {away:?}"));
            }
            for (&(from, to), sent) in &mut missing {
                sent.push(self.sim.send(from, to));
            }
            self.sim.run_for(Duration::from_millis(500));
            missing.retain(|(_, to), sent| !sent.iter().any(|number| self.sim.arrived(*number, *to)));
        }
    }

    fn nobody_is_said_to_be_reached_without_proof(&self) {
        let sim = &self.sim;
        for client in sim.online() {
            let Some(run) = &sim.clients[client].run else { continue };
            for peer in run.members() {
                let heard = peer.meter.heard_ms().map(|ms| run.epoch.at(ms));
                let proof = heard.into_iter().chain(peer.proven).max();
                let age = proof.map(|proof| sim.now().saturating_duration_since(proof));
                let reached = matches!(peer.state, PeerState::Direct | PeerState::Relay);
                if reached && age.is_none_or(|age| age > PROOF_AGE_MAX) {
                    sim.fail(&format!("c{client} says {} is {:?}; its last proof: {age:?} ago", peer.name, peer.state));
                }
            }
        }
    }

    fn nobody_hears_the_kicked(&mut self) {
        for client in self.kicked.clone() {
            let number = self.sim.broadcast(client);
            self.sim.run_for(Duration::from_secs(3));
            if let Some(hearer) = (0..self.sim.clients.len()).find(|hearer| self.sim.arrived(number, *hearer)) {
                self.sim.fail(&format!("c{client} was kicked and c{hearer} still takes its frames"));
            }
        }
    }

    /// Without frames there is little to say: keepalives, and probes of paths while sessions last.
    fn falls_quiet(&mut self) -> f64 {
        let clients = self.sim.online().len().max(1) as f64;
        self.sim.run_for(Duration::from_secs(40));
        let before = self.sim.datagrams;
        self.sim.kinds.clear();
        self.sim.run_for(Duration::from_secs(40));
        let rate = (self.sim.datagrams - before) as f64 / 40.0 / clients;
        if rate > 2.0 + clients {
            let kinds = &self.sim.kinds;
            self.sim.fail(&format!("{rate:.1} datagrams per client and second in an idle network: {kinds:02x?}"));
        }
        // Now and then to the very end: unused sessions are given up, and little but keepalives to the server remains.
        if !self.sim.rng.random_bool(0.1) {
            return rate;
        }
        self.sim.run_for(Duration::from_secs(790));
        let before = self.sim.datagrams;
        self.sim.kinds.clear();
        self.sim.run_for(Duration::from_secs(60));
        let rest = (self.sim.datagrams - before) as f64 / 60.0 / clients;
        // A rekey with the server each two minutes, and with it the questions about our NAT; a late hint may have woken a pair.
        if rest > 0.8 {
            let kinds = &self.sim.kinds;
            let text = format!("{rest:.2} datagrams per client and second in a network that nobody uses: {kinds:02x?}");
            self.sim.fail(&text);
        }
        rate
    }
}
