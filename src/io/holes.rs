//! Many sockets for a moment: each opens a hole of its own in a NAT, and the one that somebody answers through is kept.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::policy::mark_underlay;

/// The longest datagram that is read; what is asked here is short.
const DATAGRAM_MAX: usize = 2048;

/// Sockets that have each sent one datagram.
#[derive(Debug)]
pub struct Holes {
    sockets: Vec<UdpSocket>,
}

/// An answer, and the socket it came through.
#[derive(Debug)]
pub struct Answer {
    pub socket: UdpSocket,
    pub from: SocketAddr,
    pub datagram: Vec<u8>,
}

impl Holes {
    /// Opens a socket for each datagram, in the calling thread's namespace, and sends it. Descriptors may run out: then
    /// there are fewer.
    ///
    /// # Errors
    /// If not one could be opened.
    pub fn open(to: SocketAddr, datagrams: &[Vec<u8>]) -> io::Result<Self> {
        let mut sockets = Vec::with_capacity(datagrams.len());
        for datagram in datagrams {
            match open_and_send(to, datagram) {
                Ok(socket) => sockets.push(socket),
                Err(error) if sockets.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(Self { sockets })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.sockets.len()
    }

    /// Waits for a datagram that `is_good`, for `patience` at the most; the other sockets close. Blocks the thread.
    pub fn wait(
        mut self,
        patience: Duration,
        mut is_good: impl FnMut(SocketAddr, &[u8]) -> bool,
        now: impl Fn() -> Instant,
    ) -> Option<Answer> {
        let end = now() + patience;
        let mut buffer = [0; DATAGRAM_MAX];
        loop {
            let left = end.checked_duration_since(now()).filter(|left| !left.is_zero())?;
            let mut waits: Vec<_> =
                self.sockets.iter().map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)).collect();
            let wait = Timespec::try_from(left).ok()?;
            match poll(&mut waits, Some(&wait)) {
                Ok(0) => return None,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
            let ready: Vec<usize> =
                waits.iter().enumerate().filter(|(_, wait)| !wait.revents().is_empty()).map(|(at, _)| at).collect();
            for at in ready {
                // Errors are about what was sent: the NAT beyond, or nobody there.
                while let Ok((count, from)) = self.sockets[at].recv_from(&mut buffer) {
                    if is_good(from, &buffer[..count]) {
                        let socket = self.sockets.swap_remove(at);
                        return Some(Answer { socket, from, datagram: buffer[..count].to_vec() });
                    }
                }
            }
        }
    }
}

/// Sends one datagram from a socket that nobody has used before, and closes it.
///
/// # Errors
/// If it could not be opened or does not send.
pub fn send_from_new_socket(to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
    open_and_send(to, datagram).map(drop)
}

fn open_and_send(to: SocketAddr, datagram: &[u8]) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    mark_underlay(&socket);
    socket.set_nonblocking(true)?;
    socket.send_to(datagram, to)?;
    Ok(socket)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "waits in real time")]
mod tests {
    use super::*;

    #[test]
    fn of_many_sockets_the_one_that_gets_a_good_answer_is_kept_and_the_others_close() {
        let far = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let to = far.local_addr().expect("an address");
        let datagrams: Vec<Vec<u8>> = (0..50).map(|number| vec![number]).collect();
        let holes = Holes::open(to, &datagrams).expect("sockets");
        assert_eq!(holes.count(), 50);
        let mut places = Vec::new();
        let mut buffer = [0; 10];
        for _ in 0..50 {
            places.push(far.recv_from(&mut buffer).expect("a datagram").1);
        }
        far.send_to(b"forged", places[7]).expect("sent");
        far.send_to(b"good", places[30]).expect("sent");
        let answer = holes.wait(Duration::from_secs(5), |_, bytes| bytes == b"good", Instant::now).expect("an answer");
        assert_eq!((answer.socket.local_addr().expect("an address").port(), answer.from), (places[30].port(), to));
        assert_eq!(answer.datagram, b"good");
        let closed = UdpSocket::bind(("0.0.0.0", places[7].port()));
        assert!(closed.is_ok(), "its port is free again");
        let holes = Holes::open(to, &datagrams).expect("sockets");
        assert!(holes.wait(Duration::from_millis(50), |_, _| true, Instant::now).is_none(), "silence has an end");
    }
}
