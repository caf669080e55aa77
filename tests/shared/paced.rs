//! Numbered UDP packets at a pace.
//!
//! Test binaries take it in by its path.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// Packets of `len` bytes, which begin with their number, one each `pace`, until it is to stop; when each was handed to
/// the kernel.
///
/// Paced by the clock: whoever was held up (by the machine) catches up `catch_up` of it and no more, since a burst would
/// only overflow a queue.
pub fn send(
    socket: &UdpSocket,
    to: SocketAddr,
    len: usize,
    (pace, catch_up): (Duration, Duration),
    stop: &AtomicBool,
) -> Vec<Instant> {
    let (mut due, mut sent, mut packet) = (Instant::now(), Vec::new(), vec![0; len.max(8)]);
    while !stop.load(SeqCst) {
        due = (due + pace).max(Instant::now().checked_sub(catch_up).unwrap_or(due));
        thread::sleep(due.saturating_duration_since(Instant::now()));
        packet[..8].copy_from_slice(&(sent.len() as u64).to_le_bytes());
        sent.push(Instant::now());
        // What the kernel refuses (no route while the device is away) counts as sent, and so as lost.
        let _ = socket.send_to(&packet, to);
    }
    sent
}
