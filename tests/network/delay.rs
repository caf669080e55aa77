//! Cables that hold every frame for a time and lose a part of them: what netem would do, without its kernel module.
//!
//! A cable is a machine of its own between a switch and whoever is plugged in. It carries frames byte for byte with what
//! the kernel left undone of them, in their order, and never bunches them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use eps_actor::io::netns::{Lan, Netns};
use eps_actor::io::packet::{FRAME_MAX, PacketSocket};
use rand::RngExt;

use crate::lab::run_in;

/// Frames under way in one direction; what comes while so many are is lost and counted. A second of 32,000 packets.
const UNDER_WAY_MAX: usize = 32 << 10;
/// How soon the threads see that the cable is gone.
const LOOK: Duration = Duration::from_millis(50);

/// A cable with a delay and a loss, the same in both directions, which may change at any time.
pub struct Cable {
    knobs: Arc<Knobs>,
    threads: Vec<JoinHandle<()>>,
    _machine: Netns,
}

#[derive(Default)]
struct Knobs {
    delay_us: AtomicU64,
    /// Frames lost of a million.
    loss_ppm: AtomicU64,
    overflowed: AtomicU64,
    ended: AtomicBool,
}

impl Cable {
    /// Plugs a machine into a switch by a cable that delays nothing yet.
    pub fn plug(lan: &mut Lan, ns: &Netns, ifname: &str, cidr: &str) -> Self {
        let machine = Netns::new().expect("a namespace");
        // Its own kernel has nothing to say.
        machine.sysctl("ipv6/conf/default/disable_ipv6", "1").expect("a setting");
        lan.plug(&machine, "switch", "").expect("a cable");
        Netns::connect((&machine, "host", ""), (ns, ifname, cidr)).expect("a cable");
        one_datagram_a_frame(ns, ifname);
        let knobs = Arc::new(Knobs::default());
        let mut threads = Vec::new();
        for (from, to) in [("host", "switch"), ("switch", "host")] {
            let open = |ifname| machine.run(|| PacketSocket::open_to_carry(ifname, LOOK)).expect("a socket");
            let (input, output) = (open(from), open(to));
            let (queue, waiting) = sync_channel(UNDER_WAY_MAX);
            let (of_reader, of_writer) = (knobs.clone(), knobs.clone());
            threads.push(thread::spawn(move || take(&input, &queue, &of_reader)));
            threads.push(thread::spawn(move || give(&output, &waiting, &of_writer)));
        }
        Self { knobs, threads, _machine: machine }
    }

    /// How long frames that come from now on are held. Those before them stay before them.
    pub fn hold(&self, delay: Duration) {
        self.knobs.delay_us.store(delay.as_micros() as u64, Relaxed);
    }

    /// The part that is lost of what comes from now on.
    pub fn lose(&self, part: f64) {
        self.knobs.loss_ppm.store((part * 1e6) as u64, Relaxed);
    }

    /// Frames that found [too many](UNDER_WAY_MAX) under way.
    pub fn overflowed(&self) -> u64 {
        self.knobs.overflowed.load(Relaxed)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.knobs.ended.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of it has been printed.
            let _ = thread.join();
        }
    }
}

/// Has a machine's kernel cut what is handed to it in one piece, so that loss on the way is of single datagrams.
fn one_datagram_a_frame(ns: &Netns, ifname: &str) {
    run_in(ns, &format!("ip link set dev {ifname} gso_max_segs 1"));
}

fn take(input: &PacketSocket, queue: &SyncSender<(Instant, Vec<u8>)>, knobs: &Knobs) {
    let (mut buffer, mut rng) = (Box::new([0; FRAME_MAX]), rand::rng());
    while !knobs.ended.load(Relaxed) {
        // An interface that is down says so once, and goes on when it is up.
        let Ok(Some(frame)) = input.recv_into(&mut buffer) else { continue };
        if rng.random_ratio(knobs.loss_ppm.load(Relaxed) as u32, 1_000_000) {
            continue;
        }
        let due = Instant::now() + Duration::from_micros(knobs.delay_us.load(Relaxed));
        match queue.try_send((due, frame.to_vec())) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => _ = knobs.overflowed.fetch_add(1, Relaxed),
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

fn give(output: &PacketSocket, waiting: &Receiver<(Instant, Vec<u8>)>, knobs: &Knobs) {
    loop {
        match waiting.recv_timeout(LOOK) {
            Ok((due, frame)) => {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                // The other end may be down.
                let _ = output.send(&frame);
            }
            Err(RecvTimeoutError::Timeout) if !knobs.ended.load(Relaxed) => {}
            Err(_) => return,
        }
        if knobs.ended.load(Relaxed) {
            return;
        }
    }
}
