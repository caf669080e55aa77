//! Random path sets (M-09): the real path machine, plans and replay windows over links that are cut, mended and lose.
//!
//! Every frame comes once at the most in every mode; in best and bonded a flow keeps its way while its ways are there,
//! and its frames their order while it does; when everything is mended, everything comes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use eps_actor::ids::{ChannelToken, Endpoint, Route, UplinkId};
use eps_actor::proto::multipath::{Mode, Plan};
use eps_actor::proto::path::{Paths, Probe};
use eps_actor::proto::replay::{ReplayWindow, WORDS_MANY_PATHS, WORDS_ONE_PATH};
use eps_actor::proto::session::Epoch;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SEEDS: u64 = 500;
const TICK: Duration = Duration::from_millis(5);
const FLOWS: u16 = 6;

struct Link {
    route: Route,
    delay: Duration,
    loss: f64,
    up: bool,
}

/// A frame on its way: its counter, its flow and its number in it, and how often the flow had to move before.
#[derive(Clone, Copy)]
struct Flying {
    counter: u64,
    flow: u16,
    number: u64,
    stage: u64,
    /// It went by one way.
    alone: bool,
}

struct World {
    seed: u64,
    now: Instant,
    rng: StdRng,
    links: Vec<Link>,
    paths: Paths,
    window: ReplayWindow,
    counter: u64,
    flying: BTreeMap<(Instant, u64), (Route, Flying)>,
    probes: Vec<(Instant, Probe)>,
    next: u64,
    sent: BTreeMap<u16, u64>,
    /// The ways that a flow's frames take, those that there are, and how often it had to leave one because these changed.
    stages: BTreeMap<u16, (Vec<Route>, Vec<Route>, u64)>,
    /// Highest number that came, by flow and stage; and of the flow.
    came: BTreeMap<(u16, u64), u64>,
    highest: BTreeMap<u16, u64>,
    /// Frames that came by one way, each compared with those before it by the same; and those behind a later one of
    /// another way.
    in_order: u64,
    overtaken: u64,
    delivered: BTreeMap<(u16, u64), u32>,
    /// The way each flow took last, and the ways there were.
    way: BTreeMap<u16, (Route, Vec<Route>)>,
    moved: u64,
    copies: u64,
}

impl World {
    fn new(seed: u64, mode: Mode) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let now = Instant::now() + Duration::from_secs(1000);
        let mut paths = Paths::new(Epoch(now - Duration::from_secs(100)), mode);
        let mut links = Vec::new();
        for number in 0..rng.random_range(1..=5_u8) {
            let uplink = UplinkId(16 + rng.random_range(0..3_u8));
            let addr = ([192, 0, 2, number / 2 + 1], 1000 + u16::from(number)).into();
            links.push(Link {
                route: Route::direct(Endpoint { uplink, addr }),
                delay: Duration::from_millis(rng.random_range(1..200)),
                loss: rng.random_range(0.0..0.1),
                up: true,
            });
        }
        // The relay is slow and always there.
        let relay = Route::relayed(Endpoint::udp(([198, 51, 100, 1], 43439).into()), ChannelToken(1));
        links.push(Link { route: relay, delay: Duration::from_millis(210), loss: 0.0, up: true });
        for link in &links {
            match link.route.is_direct() {
                true => _ = paths.add(link.route, now),
                false => _ = paths.prove(link.route, now),
            }
        }
        let window = ReplayWindow::new(if links.len() > 2 { WORDS_MANY_PATHS } else { WORDS_ONE_PATH });
        let (flying, probes, sent, stages, came, highest) = Default::default();
        let (delivered, way) = Default::default();
        Self {
            seed,
            now,
            rng,
            links,
            paths,
            window,
            counter: 0,
            flying,
            probes,
            next: 0,
            sent,
            stages,
            came,
            highest,
            in_order: 0,
            overtaken: 0,
            delivered,
            way,
            moved: 0,
            copies: 0,
        }
    }

    fn link(&self, route: &Route) -> Option<&Link> {
        self.links.iter().find(|link| link.route == *route && link.up)
    }

    /// One datagram by a route: whether and when it comes.
    fn arrival(&mut self, route: &Route) -> Option<Instant> {
        let (loss, delay) = self.link(route).map(|link| (link.loss, link.delay))?;
        (!self.rng.random_bool(loss)).then(|| self.now + delay)
    }

    fn frame(&mut self, flow: u16) {
        let number = *self.sent.entry(flow).and_modify(|sent| *sent += 1).or_insert(0);
        let bytes = frame_of(flow);
        let now_ms = (self.counter * TICK.as_millis() as u64) / u64::from(FLOWS);
        self.counter += 1;
        let Some(active) = self.paths.active() else { return };
        let plan = self.paths.plan();
        let (first, copies) = match &plan {
            None => (active, Vec::new()),
            Some(plan) => {
                let copies = plan.copies(&bytes, bytes.len() + 32, now_ms);
                (plan.first(&bytes, now_ms).route, copies.iter().map(|way| way.route).collect())
            }
        };
        self.check_way(flow, first, plan.as_ref());
        self.copies += copies.len() as u64;
        let ways = [vec![first], copies].concat();
        let there = plan.as_ref().map_or_else(|| vec![active], |plan| plan.ways.iter().map(|way| way.route).collect());
        let (taken, had, stage) = self.stages.entry(flow).or_default();
        *stage += u64::from(*taken != ways && *had != there);
        (*taken, *had) = (ways.clone(), there);
        let flying = Flying { counter: self.counter, flow, number, stage: *stage, alone: ways.len() == 1 };
        for route in ways {
            self.paths.said(&route, bytes.len() as u64);
            if let Some(at) = self.arrival(&route) {
                self.next += 1;
                self.flying.insert((at, self.next), (route, flying));
            }
        }
    }

    /// A flow keeps its way as long as its ways are the same.
    fn check_way(&mut self, flow: u16, route: Route, plan: Option<&Plan>) {
        let ways = plan.map_or(vec![route], |plan| plan.ways.iter().map(|way| way.route).collect());
        if let Some((before, had)) = self.way.insert(flow, (route, ways.clone()))
            && before != route
        {
            self.moved += 1;
            let kept = matches!(self.paths.mode(), Mode::Bonded) && ways.contains(&before) && had.contains(&before);
            assert!(!kept || ways.len() == 1, "seed {}: flow {flow} left a way that is there", self.seed);
            assert!(had != ways || plan.is_none(), "seed {}: flow {flow} moved among the same ways", self.seed);
        }
    }

    /// While a flow's way is there, its frames come in their order.
    fn check_order(&mut self, frame: &Flying) {
        let Flying { flow, number, .. } = *frame;
        let highest = self.highest.entry(flow).or_default();
        self.overtaken += u64::from(number < *highest);
        *highest = number.max(*highest);
        let before = self.came.insert((flow, frame.stage), number);
        if matches!(self.paths.mode(), Mode::Best | Mode::Bonded) && frame.alone {
            self.in_order += 1;
            assert!(
                before.is_none_or(|before| before < number),
                "seed {}: frame {number} of flow {flow} came after {before:?}, and its way was there",
                self.seed
            );
        }
    }

    fn step(&mut self, sends: bool) {
        while let Some(entry) = self.flying.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (route, frame) = entry.remove();
            let Flying { counter, flow, number, .. } = frame;
            if self.window.accept(counter) {
                let times = self.delivered.entry((flow, number)).or_default();
                *times += 1;
                assert_eq!(*times, 1, "seed {}: frame {number} of flow {flow} came twice", self.seed);
                self.check_order(&frame);
            }
            // The other end sends as much by the same way.
            if let Some(loss) = self.link(&route).map(|link| link.loss)
                && !self.rng.random_bool(loss)
            {
                self.paths.heard(&route, 100, self.now);
            }
        }
        let (come, waiting) = std::mem::take(&mut self.probes).into_iter().partition(|(at, _)| *at <= self.now);
        self.probes = waiting;
        for (_, probe) in come {
            self.paths.handle_reply(&probe.route, (probe.sequence, probe.challenge), self.now);
        }
        if self.paths.poll_timeout().is_some_and(|at| at <= self.now) {
            let (probes, _) = self.paths.handle_timeout(self.now, true, &mut self.rng);
            for probe in probes {
                if let Some(there) = self.arrival(&probe.route)
                    && let Some(back) = self.arrival(&probe.route)
                {
                    self.probes.push((there + (back - self.now), probe));
                }
            }
        }
        if sends {
            (0..FLOWS).for_each(|flow| self.frame(flow));
        }
        self.now += TICK;
    }

    fn run(&mut self, time: Duration, sends: bool) {
        let end = self.now + time;
        while self.now < end {
            self.step(sends);
        }
    }
}

/// A small frame of UDP between two ports.
fn frame_of(flow: u16) -> Vec<u8> {
    let mut frame = vec![0; 100];
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[23] = 17;
    frame[34..36].copy_from_slice(&flow.to_be_bytes());
    frame
}

#[test]
fn m_09_random_path_sets_deliver_once_and_keep_flows_on_their_way() {
    let seeds = std::env::var("EPS_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let (mut frames, mut delivered, mut moved, mut copies) = (0, 0, 0, 0);
    let (mut in_order, mut overtaken) = (0, 0);
    for seed in 0..seeds {
        let mode = Mode::ALL[seed as usize % Mode::ALL.len()];
        let mut world = World::new(seed, mode);
        world.run(Duration::from_secs(2), false);
        for _ in 0..6 {
            let number = world.rng.random_range(0..world.links.len() - 1);
            world.links[number].up = !world.links[number].up;
            let time = Duration::from_millis(world.rng.random_range(200..3000));
            world.run(time, true);
        }
        world.links.iter_mut().for_each(|link| (link.up, link.loss) = (true, 0.0));
        world.run(Duration::from_secs(10), true);
        let settled = world.sent.clone();
        world.run(Duration::from_secs(1), true);
        world.run(Duration::from_secs(1), false);
        for (flow, first) in settled {
            for number in first + 1..=world.sent[&flow] {
                assert!(
                    world.delivered.contains_key(&(flow, number)),
                    "seed {seed} ({mode}): frame {number} of flow {flow} is lost, with nothing broken"
                );
            }
        }
        frames += world.sent.values().map(|last| last + 1).sum::<u64>();
        delivered += world.delivered.len() as u64;
        (moved, copies) = (moved + world.moved, copies + world.copies);
        in_order += world.in_order;
        if matches!(mode, Mode::Best | Mode::Bonded) {
            overtaken += world.overtaken;
        }
    }
    println!(
        "M-09: {seeds} seeds, {delivered} of {frames} frames delivered once, none twice; flows moved {moved} times, \
         {copies} copies; in best and bonded {in_order} came in their order by one way, {overtaken} were overtaken where \
         a flow had moved"
    );
    assert!(copies > 0 && moved > 0 && in_order > 0);
}

#[test]
fn m_03_copies_that_come_200_ms_later_are_neither_delivered_nor_miss_what_was_lost() {
    const RATE: u64 = 20_000;
    let seconds = if std::env::var_os("EPS_LONG").is_some_and(|value| value == "1") { 60 } else { 5 };
    let mut rng = StdRng::seed_from_u64(3);
    let mut window = ReplayWindow::new(WORDS_MANY_PATHS);
    let late = RATE / 5;
    let (mut by_fast, mut by_slow, mut left_out) = (0_u64, 0_u64, 0_u64);
    let total = RATE * seconds;
    for tick in 0..total + late {
        if tick < total && !rng.random_bool(0.1) {
            assert!(window.is_fresh(tick) && window.accept(tick));
            by_fast += 1;
        }
        if let Some(counter) = tick.checked_sub(late) {
            match window.accept(counter) {
                true => by_slow += 1,
                false => left_out += 1,
            }
        }
    }
    println!("M-03: {total} frames, {by_fast} by the fast path, {by_slow} by the slow one, {left_out} copies left out");
    assert_eq!((by_fast + by_slow, left_out), (total, by_fast));
}
