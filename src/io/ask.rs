//! Sockets that ask servers where they see this host, and whether a place can be reached at all.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use async_io::{Async, Timer};
use futures_lite::future;
use socket2::{Domain, Protocol, Socket, Type};

use crate::proto::netcheck::{Heard, Question, Round, Sight};
use crate::wire::observe::{Ask, Number, OBSERVE_LEN, Pass, Tell};

/// A socket that asks.
#[derive(Debug)]
pub struct AskSocket {
    socket: Async<UdpSocket>,
}

impl AskSocket {
    /// A socket at a random port, in the calling thread's namespace.
    pub fn open(v4: bool) -> io::Result<Self> {
        let (domain, ip): (_, IpAddr) = if v4 {
            (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into())
        } else {
            (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into())
        };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if !v4 {
            socket.set_only_v6(true)?;
        }
        socket.bind(&SocketAddr::new(ip, 0).into())?;
        Ok(Self { socket: Async::new(socket.into())? })
    }

    /// Sends whole or not at all: packets that are too long for the way are not cut, and what the kernel knows of the
    /// way does not matter.
    pub fn forbid_cutting(&self) -> io::Result<()> {
        super::udp::forbid_fragments(self.socket.get_ref())
    }

    /// The address this socket has towards another, if there is a route.
    pub fn local_towards(&self, to: SocketAddr) -> Option<SocketAddr> {
        let port = self.socket.get_ref().local_addr().ok()?.port();
        Some(SocketAddr::new(super::netlink::source_towards(to.ip())?, port))
    }

    /// Puts questions and waits for their answers; what each heard, in their order.
    pub async fn round(&self, questions: &[Question], patience: Duration) -> Vec<Option<Heard>> {
        let mut round = Round::new(questions, patience, Instant::now(), &mut rand::rng());
        let mut buffer = vec![0; 2048];
        loop {
            let now = Instant::now();
            if round.is_over(now) {
                return round.results();
            }
            while let Some((to, bytes)) = round.poll_send(now) {
                // Without a route, or refused by a firewall of ours: it is silence all the same.
                let _ = self.socket.get_ref().send_to(&bytes, to);
            }
            if let Some((from, count)) = self.receive(&mut buffer, round.poll_timeout()).await {
                round.handle(from, &buffer[..count], Instant::now());
            }
        }
    }

    /// What one round has shown of this socket, as the socket of that number.
    pub fn sights(&self, socket: usize, heard: &[Option<Heard>], questions: &[Question]) -> Vec<Sight> {
        let answered = heard.iter().zip(questions).filter_map(|(heard, question)| Some((heard.as_ref()?, question)));
        let seen = answered.filter_map(|(heard, question)| {
            let local = self.local_towards(question.to)?;
            Some(Sight { socket, local, by: question.to, observed: heard.observed })
        });
        seen.collect()
    }

    /// Whether a datagram that another socket of this host sends to the outside address of this one arrives.
    pub async fn hairpin(&self, outside: SocketAddr, patience: Duration) -> io::Result<bool> {
        let other = Self::open(outside.is_ipv4())?;
        let number: [u8; 16] = rand::random();
        let end = Instant::now() + patience;
        let mut buffer = vec![0; 2048];
        while Instant::now() < end {
            let _ = other.socket.get_ref().send_to(&number, outside);
            let next = (Instant::now() + Duration::from_millis(100)).min(end);
            while let Some((_, count)) = self.receive(&mut buffer, next).await {
                if buffer[..count] == number {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Has another socket of this host ask a server to answer to the outside address of this one: whether its mapping
    /// still leads here.
    pub async fn is_mapped(
        &self,
        server: SocketAddr,
        pass: (Pass, SocketAddr),
        patience: Duration,
    ) -> io::Result<bool> {
        let other = Self::open(server.is_ipv4())?;
        let number: Number = rand::random();
        let ask = Ask { number, from_other: false, pass: Some(pass), length: OBSERVE_LEN }.to_bytes();
        let end = Instant::now() + patience;
        let mut buffer = vec![0; 2048];
        while Instant::now() < end {
            let _ = other.socket.get_ref().send_to(&ask, server);
            let next = (Instant::now() + Duration::from_millis(250)).min(end);
            while let Some((_, count)) = self.receive(&mut buffer, next).await {
                if Tell::parse(&buffer[..count]).is_some_and(|tell| tell.number == number) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The next datagram before `end`.
    async fn receive(&self, buffer: &mut [u8], end: Instant) -> Option<(SocketAddr, usize)> {
        loop {
            let datagram = async { Some(self.socket.recv_from(buffer).await) };
            let late = async {
                Timer::at(end).await;
                None
            };
            match future::or(datagram, late).await? {
                Ok((count, from)) => return Some((SocketAddr::new(from.ip().to_canonical(), from.port()), count)),
                // ICMP about something sent before: others may still answer.
                Err(_) if Instant::now() < end => {}
                Err(_) => return None,
            }
        }
    }
}

/// Why the kernel would not send to an address: its error number, 0 if it would. Nothing is sent.
pub fn route_error(to: SocketAddr) -> u16 {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let tried = UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| socket.connect(to));
    let errno = tried.err().map(|error| error.raw_os_error().unwrap_or(libc::EADDRNOTAVAIL));
    errno.map_or(0, |errno| errno.unsigned_abs() as u16)
}

/// How long a TCP connection takes, or why there is none.
pub async fn tcp_connect(to: SocketAddr, patience: Duration) -> io::Result<Duration> {
    let start = Instant::now();
    let connect = async { Async::<std::net::TcpStream>::connect(to).await.map(|_| start.elapsed()) };
    let late = async {
        Timer::after(patience).await;
        Err(io::ErrorKind::TimedOut.into())
    };
    future::or(connect, late).await
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::proto::netcheck::How;
    use crate::proto::observe::Responder;
    use crate::wire::stun;

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn a_server_of_ours_and_a_public_one_tell_where_they_see_a_socket() {
        let [ours, public] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a port"));
        let places = [&ours, &public].map(|socket| socket.local_addr().expect("an address"));
        thread::spawn(move || {
            let (mut buffer, mut responder) = ([0; 2048], Responder::new([1; 32], 0));
            let (count, from) = ours.recv_from(&mut buffer).expect("a question");
            let reply = responder.answer(from, &buffer[..count], 1).expect("an answer");
            ours.send_to(&reply.bytes, reply.to).expect("sent");
            let (_, from) = public.recv_from(&mut buffer).expect("a question");
            let number = buffer[8..20].try_into().expect("twelve bytes");
            public.send_to(&stun::tell(number, from), from).expect("sent");
        });
        let socket = AskSocket::open(true).expect("a socket");
        let questions = [Question { to: places[0], how: How::PLAIN }, Question { to: places[1], how: How::Stun }];
        let heard = smol::block_on(socket.round(&questions, SOON));
        let own = socket.local_towards(places[0]).expect("an address");
        assert!(heard.iter().all(|heard| heard.is_some_and(|heard| heard.observed == own)), "{heard:?}");
        assert!(smol::block_on(socket.hairpin(own, SOON)).expect("sent"), "loopback leads back");
    }

    #[test]
    fn silence_ends_in_time_and_a_place_without_route_has_its_error() {
        let quiet = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let socket = AskSocket::open(true).expect("a socket");
        let question = Question { to: quiet.local_addr().expect("an address"), how: How::PLAIN };
        let heard = smol::block_on(socket.round(&[question], Duration::from_millis(80)));
        assert_eq!(heard, [None]);
        assert_eq!(route_error("127.0.0.1:9".parse().expect("an address")), 0);
        assert_ne!(route_error("255.255.255.255:9".parse().expect("an address")), 0, "broadcasts are refused");
    }

    #[test]
    fn tcp_is_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let place = listener.local_addr().expect("an address");
        assert!(smol::block_on(tcp_connect(place, SOON)).is_ok());
        drop(listener);
        assert!(smol::block_on(tcp_connect(place, SOON)).is_err());
    }
}
