//! Sockets for shouting in a LAN: one that shouts by the interface of one address and gets the answers, one that hears
//! what others shout there.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use async_io::Async;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::gateway::GroupSocket;

/// An administratively scoped group (RFC 2365) of our own choice, and its port.
pub const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 43, 39), 43438);
/// The longest announcement, and a little more to tell longer ones.
const DATAGRAM_MAX: usize = 64;

/// Both sockets of an interface.
#[derive(Debug)]
pub struct LanSocket {
    shouts: Async<UdpSocket>,
    hears: GroupSocket,
}

impl LanSocket {
    /// For the interface of an address of ours, in the calling thread's namespace.
    ///
    /// # Errors
    /// If the interface does no multicast, or the address is gone.
    pub fn open(own: Ipv4Addr) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind(&SockAddr::from(SocketAddrV4::new(own, 0)))?;
        socket.set_multicast_if_v4(&own)?;
        // Not beyond this LAN.
        socket.set_multicast_ttl_v4(1)?;
        Ok(Self { shouts: Async::new(socket.into())?, hears: GroupSocket::open(own, GROUP)? })
    }

    /// Shouts. Never waits: what a full socket refuses is lost, and is said again later.
    ///
    /// # Errors
    /// What the system says.
    pub fn shout(&self, bytes: &[u8]) -> io::Result<()> {
        self.shouts.get_ref().send_to(bytes, SocketAddr::V4(GROUP)).map(drop)
    }

    /// Answers somebody.
    ///
    /// # Errors
    /// What the system says.
    pub fn answer(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        self.shouts.get_ref().send_to(bytes, to).map(drop)
    }

    /// The next shout of somebody, or answer to ours.
    ///
    /// # Errors
    /// If the sockets are of no use any more.
    pub async fn receive(&self) -> io::Result<(SocketAddr, Vec<u8>)> {
        let answered = async {
            let mut buffer = [0; DATAGRAM_MAX];
            loop {
                match self.shouts.recv_from(&mut buffer).await {
                    Ok((count, from)) => return Ok((from, buffer[..count].to_vec())),
                    // An ICMP error about something sent before.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(error) => return Err(error),
                }
            }
        };
        futures_lite::future::or(self.hears.receive(), answered).await
    }
}
