//! Sockets towards the gateway: one for questions, one for each group that gateways announce themselves to, and short
//! exchanges over TCP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use async_io::{Async, Timer};
use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Routers between us and the gateway a search may pass (UPnP Device Architecture 1.1, section 1.3.2).
const TTL: u32 = 2;
/// The longest datagram that is read; what is cut off was longer than any of the protocols has.
const DATAGRAM_MAX: usize = 2048;

/// The socket that questions leave by and answers come to.
#[derive(Debug)]
pub struct GatewaySocket {
    socket: Async<UdpSocket>,
}

/// A socket that hears a group on the interface of one address.
#[derive(Debug)]
pub struct GroupSocket {
    socket: Async<UdpSocket>,
}

impl GatewaySocket {
    /// A socket at a random port of `own`, in the calling thread's namespace. What it sends to a group leaves by the
    /// interface of that address, wherever routes lead.
    pub fn open(own: Ipv4Addr) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind(&SockAddr::from(SocketAddrV4::new(own, 0)))?;
        super::policy::mark_underlay(&socket);
        socket.set_multicast_if_v4(&own)?;
        socket.set_multicast_ttl_v4(TTL)?;
        socket.set_multicast_loop_v4(false)?;
        Ok(Self { socket: Async::new(socket.into())? })
    }

    /// Sends without waiting: a full socket loses the datagram, and it will be sent again.
    pub fn send(&self, to: SocketAddrV4, bytes: &[u8]) -> io::Result<()> {
        self.socket.get_ref().send_to(bytes, to).map(drop)
    }

    /// The next datagram.
    pub async fn receive(&self) -> io::Result<(SocketAddr, Vec<u8>)> {
        receive(&self.socket).await
    }
}

impl GroupSocket {
    /// Hears what is sent to `group` on the interface of `own`, and nothing else; others on this machine may do so too.
    pub fn open(own: Ipv4Addr, group: SocketAddrV4) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        // Bound to the group itself, so that nobody reaches it at an address of this machine.
        socket.bind(&SockAddr::from(group))?;
        socket.set_multicast_all_v4(false)?;
        socket.join_multicast_v4(group.ip(), &own)?;
        Ok(Self { socket: Async::new(socket.into())? })
    }

    /// The next datagram.
    pub async fn receive(&self) -> io::Result<(SocketAddr, Vec<u8>)> {
        receive(&self.socket).await
    }
}

async fn receive(socket: &Async<UdpSocket>) -> io::Result<(SocketAddr, Vec<u8>)> {
    let mut buffer = [0; DATAGRAM_MAX];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((count, from)) => return Ok((from, buffer[..count].to_vec())),
            // An ICMP error about something sent before.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
}

/// Connects, sends a request, and reads until `is_whole` says that the answer is there, the other side ends or it is
/// longer than `limit` bytes; all of it within `deadline`.
pub async fn exchange(
    to: SocketAddrV4,
    request: &[u8],
    limit: usize,
    is_whole: fn(&[u8]) -> bool,
    deadline: Duration,
) -> io::Result<Vec<u8>> {
    let work = async {
        let mut stream = Async::<TcpStream>::connect(to).await?;
        stream.write_all(request).await?;
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while !is_whole(&answer) {
            let count = stream.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            answer.extend(&buffer[..count]);
            if answer.len() > limit {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long"));
            }
        }
        Ok(answer)
    };
    let too_late = async {
        Timer::after(deadline).await;
        Err(io::ErrorKind::TimedOut.into())
    };
    future::or(work, too_late).await
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    /// A server that answers one connection with these bytes and then keeps it open until the other side is gone.
    fn server(answer: Vec<u8>) -> SocketAddrV4 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let SocketAddr::V4(place) = listener.local_addr().expect("an address") else { unreachable!("IPv4") };
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut buffer = [0; 100];
            let _ = stream.read(&mut buffer);
            // It may be cut off.
            let _ = stream.write_all(&answer);
            let _ = stream.read(&mut buffer);
        });
        place
    }

    #[test]
    fn an_exchange_ends_when_the_answer_is_whole_though_the_connection_stays() {
        let to = server(b"all of it.".to_vec());
        let answer = smol::block_on(exchange(to, b"?", 100, |bytes| bytes.ends_with(b"."), SOON));
        assert_eq!(answer.expect("an answer"), b"all of it.");
    }

    #[test]
    fn an_exchange_gives_up_on_an_answer_without_end_and_on_silence() {
        let long = smol::block_on(exchange(server(vec![b'x'; 100_000]), b"?", 5000, |_| false, SOON));
        assert_eq!(long.expect_err("refused").kind(), io::ErrorKind::InvalidData);
        let soon = Duration::from_millis(50);
        let silent = smol::block_on(exchange(server(Vec::new()), b"?", 5000, |_| false, soon));
        assert_eq!(silent.expect_err("refused").kind(), io::ErrorKind::TimedOut);
    }
}
