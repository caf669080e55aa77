//! Numbered packets through the TAPs at a pace, and what became of each: lost, doubled, late, out of order.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::Node;
use eps_actor::io::udp::grow_buffers;

use crate::paced;

/// How long the last packets may be under way.
const LAST: Duration = Duration::from_millis(1500);
/// A pause of the sender above this is the machine's, and no gap of the path.
const PAUSE: Duration = Duration::from_millis(40);

/// What waits for a receiver that the machine holds up, in bytes: a second of 20,000 small packets is under it.
const BUFFER: usize = 32 << 20;

/// A flow that runs until it is stopped.
pub struct Flow {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Instant>>,
    receiver: JoinHandle<Vec<(usize, Instant)>>,
}

/// What became of it.
pub struct Outcome {
    pub sent: Vec<Instant>,
    /// Number and time, in the order of arrival.
    pub arrived: Vec<(usize, Instant)>,
}

impl Flow {
    /// Sends packets of `len` bytes of payload from one node's address to another's, one each `pace`.
    pub fn start((from, source): (&Node, IpAddr), (to, target): (&Node, IpAddr), len: usize, pace: Duration) -> Self {
        let output = from.ns.run(|| UdpSocket::bind((source, 0))).expect("a socket");
        let input = to.ns.run(|| UdpSocket::bind((target, 0))).expect("a socket");
        grow_buffers(&input, BUFFER);
        input.set_read_timeout(Some(Duration::from_millis(50))).expect("a time-out");
        let target = input.local_addr().expect("an address");
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(usize::MAX)));
        let (stopped, told) = (stop.clone(), count.clone());
        let sender = thread::spawn(move || {
            let sent = paced::send(&output, target, len, (pace, PAUSE), &stopped);
            told.store(sent.len(), SeqCst);
            sent
        });
        let receiver = thread::spawn(move || receive(&input, &count));
        Self { stop, sender, receiver }
    }

    /// Sends no more; for flows that are to end together.
    pub fn halt(&self) {
        self.stop.store(true, SeqCst);
    }

    /// Ends the flow and waits for its last packets.
    pub fn stop(self) -> Outcome {
        self.halt();
        let sent = self.sender.join().expect("the sender");
        Outcome { sent, arrived: self.receiver.join().expect("the receiver") }
    }
}

fn receive(socket: &UdpSocket, count: &AtomicUsize) -> Vec<(usize, Instant)> {
    let (mut arrived, mut packet, mut end) = (Vec::new(), [0; 2048], None);
    loop {
        match socket.recv(&mut packet) {
            Ok(8..) => {
                let number = u64::from_le_bytes(packet[..8].try_into().expect("eight bytes")) as usize;
                arrived.push((number, Instant::now()));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("receiving: {error}"),
        }
        let sent = count.load(SeqCst);
        if sent != usize::MAX {
            let end = *end.get_or_insert_with(|| Instant::now() + LAST);
            if arrived.len() >= sent && arrived.iter().any(|(number, _)| number + 1 == sent) || Instant::now() >= end {
                return arrived;
            }
        }
    }
}

impl Outcome {
    fn firsts(&self) -> BTreeMap<usize, Instant> {
        let mut firsts = BTreeMap::new();
        self.arrived.iter().for_each(|(number, at)| _ = firsts.entry(*number).or_insert(*at));
        firsts
    }

    pub fn lost(&self) -> usize {
        self.sent.len() - self.firsts().len()
    }

    /// The share that never came.
    pub fn loss(&self) -> f64 {
        self.lost() as f64 / self.sent.len().max(1) as f64
    }

    pub fn duplicates(&self) -> usize {
        self.arrived.len() - self.firsts().len()
    }

    /// How many packets came in a time.
    pub fn arrivals(&self, time: Range<Instant>) -> usize {
        self.arrived.iter().filter(|(_, at)| time.contains(at)).count()
    }

    /// How many packets were sent in a time.
    pub fn departures(&self, time: Range<Instant>) -> usize {
        self.sent.iter().filter(|at| time.contains(at)).count()
    }

    /// Packets that came in a time, after one that was sent later.
    pub fn reordered(&self, time: Range<Instant>) -> usize {
        let mut highest = 0;
        let late = |(number, at): &&(usize, Instant)| {
            let is_late = *number < highest;
            highest = highest.max(*number);
            is_late && time.contains(at)
        };
        self.arrived.iter().filter(late).count()
    }

    /// How long a packet took, for half of them.
    pub fn median_delay(&self) -> Duration {
        let mut delays: Vec<_> =
            self.firsts().iter().map(|(number, at)| at.saturating_duration_since(self.sent[*number])).collect();
        delays.sort_unstable();
        delays.get(delays.len() / 2).copied().unwrap_or(Duration::MAX)
    }

    /// Packets sent a second.
    pub fn rate(&self) -> f64 {
        let [Some(first), Some(last)] = [self.sent.first(), self.sent.last()] else { return 0.0 };
        (self.sent.len() - 1) as f64 / (*last - *first).as_secs_f64()
    }

    /// Packets that took longer than this.
    pub fn later_than(&self, limit: Duration) -> usize {
        let firsts = self.firsts();
        firsts.iter().filter(|(number, at)| at.saturating_duration_since(self.sent[**number]) > limit).count()
    }

    /// The longest time between two arrivals while packets were being sent, less what the sender itself was held up.
    pub fn longest_gap(&self) -> Duration {
        let gap = |pair: &[(usize, Instant)]| {
            let (before, after) = (pair[0].1, pair[1].1);
            let sent = self.sent.windows(2).filter(|sent| sent[0] >= before && sent[1] <= after);
            let pauses = sent.map(|sent| sent[1] - sent[0]).filter(|pause| *pause > PAUSE).sum();
            after.saturating_duration_since(before).saturating_sub(pauses)
        };
        self.arrived.windows(2).map(gap).max().unwrap_or_default()
    }
}
