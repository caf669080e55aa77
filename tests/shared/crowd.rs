//! A crowd of members that are only that: clients' conversations with a server over plain sockets, without devices.
//!
//! Test binaries take it in by its path.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::ids::{Endpoint, NetworkId, PublicKey};
use eps_actor::io::netns::Netns;
use eps_actor::proto::crypto::Suites;
use eps_actor::proto::link::{Node as Keys, no_psk};
use eps_actor::proto::noise::Identity;
use eps_actor::proto::server_link::{Output, ServerLink, join};
use eps_actor::wire::cert::Certificate;
use eps_actor::wire::join::JoinLine;

/// A client's conversation with the server, and nothing else of a client.
pub struct Guest {
    pub name: String,
    pub key: PublicKey,
    link: ServerLink,
    socket: UdpSocket,
    pub lease: Option<Certificate>,
}

impl Guest {
    /// Of the machine `ns`, for a server that it reaches from its loopback addresses.
    pub fn new(number: usize, ns: &Netns, server: SocketAddr, line: &JoinLine, now: Instant) -> Self {
        let identity = Identity::generate(&mut rand::rng());
        let key = identity.public;
        let node = Keys::new(identity, NetworkId(0), no_psk(), Suites::of_this_machine(), 1);
        let name = format!("guest-{number}");
        let contact = join(line.fingerprint, line.token.as_ref());
        let mut link = ServerLink::new(node, name.clone(), None, Some(contact), now, rand::random());
        link.set_servers(vec![Endpoint::udp(server)], now);
        // Each from a network of its own, as clients in different places are.
        let address = Ipv4Addr::new(127, 1 + (number >> 8) as u8, number as u8, 1);
        let socket = ns.run(|| UdpSocket::bind((address, 0))).expect("a socket");
        socket.set_nonblocking(true).expect("non-blocking");
        Self { name, key, link, socket, lease: None }
    }

    fn run(&mut self) {
        let mut datagram = [0; 2048];
        while let Ok((length, from)) = self.socket.recv_from(&mut datagram) {
            // What it drops is its own business.
            let _ = self.link.handle_datagram(Endpoint::udp(from), &mut datagram[..length], Instant::now());
            self.drain();
        }
        let now = Instant::now();
        if self.link.poll_timeout().is_some_and(|at| at <= now) {
            self.link.handle_timeout(now);
        }
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.link.poll_output() {
            match output {
                Output::Send { to, datagram } => {
                    // Refused while nobody listens.
                    let _ = self.socket.send_to(&datagram, to.addr);
                }
                Output::Leased { certificate, .. } => {
                    let lease = Certificate::parse(&certificate).expect("a certificate");
                    assert_eq!(lease.key, self.key);
                    if let Some(old) = &self.lease {
                        let same = (old.ip4, old.ip6, old.mac) == (lease.ip4, lease.ip6, lease.mac);
                        assert!(same, "{}: another lease: {old:?}, {lease:?}", self.name);
                    }
                    self.lease = Some(lease);
                }
                Output::Refused(refusal) => panic!("{}: {refusal}", self.name),
                _ => {}
            }
        }
    }
}

/// How many have a lease.
pub fn holders(crowd: &[Guest]) -> usize {
    crowd.iter().filter(|guest| guest.lease.is_some()).count()
}

/// Lets each of them do what is due, and a moment pass.
pub fn run(crowd: &mut [Guest]) {
    crowd.iter_mut().for_each(Guest::run);
    thread::sleep(Duration::from_millis(1));
}
