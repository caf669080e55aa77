//! The load: numbered UDP packets through the TAPs, a thousand a second, and what became of them.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::Node;
use eps_actor::io::netns::Netns;

use crate::paced;
use crate::stage::held_up;

/// Between two packets.
const PACE: Duration = Duration::from_millis(1);
/// Held up longer than this (by the machine), the sender begins its pace anew: a burst would only overflow a queue.
const CATCH_UP: Duration = Duration::from_millis(50);
/// How long the last packets may be under way.
const LAST: Duration = Duration::from_millis(1500);

/// A flow that runs until it is stopped.
pub struct Load {
    name: String,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Instant>>,
    receiver: JoinHandle<Vec<(usize, Instant)>>,
}

/// A flow that ended.
pub struct Flow {
    pub name: String,
    /// When each packet was handed to the kernel, by its number.
    sent: Vec<Instant>,
    /// Number and time, in the order of their arrival.
    arrived: Vec<(usize, Instant)>,
}

impl Load {
    /// Sends from one node's address to another's. The sockets are bound to the addresses, so these must be there.
    pub fn start((from, source): (&Node, IpAddr), (to, destination): (&Node, IpAddr)) -> Self {
        let name = format!("{} to {}", from.name, to.name);
        let output = bind(&from.ns, source);
        let input = bind(&to.ns, destination);
        let target = input.local_addr().expect("an address");
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(usize::MAX));
        let (stopped, told) = (stop.clone(), count.clone());
        let sender = thread::spawn(move || {
            let sent = paced::send(&output, target, 64, (PACE, CATCH_UP), &stopped);
            told.store(sent.len(), SeqCst);
            sent
        });
        let receiver = thread::spawn(move || receive(&input, &count));
        Self { name, stop, sender, receiver }
    }

    /// Ends the flow and waits for its last packets.
    pub fn stop(self) -> Flow {
        self.stop.store(true, SeqCst);
        let sent = self.sender.join().expect("the sender");
        let arrived = self.receiver.join().expect("the receiver");
        Flow { name: self.name, sent, arrived }
    }
}

fn bind(ns: &Netns, address: IpAddr) -> UdpSocket {
    let socket = ns.run(|| UdpSocket::bind((address, 0))).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a time-out");
    socket
}

fn receive(socket: &UdpSocket, count: &AtomicUsize) -> Vec<(usize, Instant)> {
    let mut arrived = Vec::new();
    let mut seen = BTreeSet::new();
    let mut ends = None;
    let mut packet = [0; 64];
    loop {
        match socket.recv(&mut packet) {
            Ok(64) => {
                let number = u64::from_le_bytes(packet[..8].try_into().expect("eight bytes")) as usize;
                arrived.push((number, Instant::now()));
                seen.insert(number);
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("receiving: {error}"),
        }
        let sent = count.load(SeqCst);
        if sent != usize::MAX {
            let end = *ends.get_or_insert_with(|| Instant::now() + LAST);
            if seen.len() >= sent || Instant::now() >= end {
                return arrived;
            }
        }
    }
}

impl Flow {
    pub fn sent(&self) -> usize {
        self.sent.len()
    }

    /// Numbers that never arrived.
    pub fn lost(&self) -> Vec<usize> {
        let arrived: BTreeSet<_> = self.arrived.iter().map(|(number, _)| *number).collect();
        (0..self.sent.len()).filter(|number| !arrived.contains(number)).collect()
    }

    /// The longest row of lost packets.
    pub fn longest_loss(&self) -> usize {
        let mut longest = 0;
        let mut row = (0, usize::MAX);
        for number in self.lost() {
            row = if row.1.wrapping_add(1) == number { (row.0 + 1, number) } else { (1, number) };
            longest = longest.max(row.0);
        }
        longest
    }

    pub fn duplicates(&self) -> usize {
        let distinct: BTreeSet<_> = self.arrived.iter().map(|(number, _)| *number).collect();
        self.arrived.len() - distinct.len()
    }

    /// The longest time in which something was under way and nothing arrived, without what the machine held up.
    pub fn longest_gap(&self) -> Duration {
        let gap = |pair: &[(usize, Instant)]| {
            let [(number, before), (_, after)] = pair else { return Duration::ZERO };
            let expected = self.sent.get(number + 1).copied().unwrap_or(*before).max(*before);
            after.saturating_duration_since(expected).saturating_sub(held_up(expected, *after))
        };
        self.arrived.windows(2).map(gap).max().unwrap_or_default()
    }

    /// The longest time between two packets sent: above the pace, the machine held the load itself up.
    pub fn longest_pause(&self) -> Duration {
        self.sent.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// How long after `moment` the first packet sent after it arrived.
    pub fn back_after(&self, moment: Instant) -> Option<Duration> {
        let arrived = self.arrived.iter().find(|(number, at)| *at > moment && self.sent[*number] >= moment);
        arrived.map(|(_, at)| at.saturating_duration_since(moment))
    }

    /// Fails if a packet was lost or came twice.
    pub fn assert_whole(&self) {
        let lost = self.lost();
        assert!(self.sent() > 0, "{}: nothing was sent", self.name);
        assert!(lost.is_empty(), "{}: {} of {} lost: {lost:?}", self.name, lost.len(), self.sent());
        assert_eq!(self.duplicates(), 0, "{}: duplicates", self.name);
    }
}
