//! The server's second UDP port, and its answers to whoever asks where it is seen, on every port.
//!
//! The second port says nothing else: that it is another one is what shows a host whether its NAT uses another outside
//! port for each destination.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::client::unix_time;
use crate::counters::DropReason;
use crate::ids::{Endpoint, UplinkId};
use crate::io::udp::{BindError, UdpUplink};
use crate::io::uplinks::Uplinks;
use crate::proto::observe::Responder;

/// Questions are short, and who asks does so again.
const SOCKET_BUFFER: usize = 256 << 10;
/// The second sockets, IPv4 and IPv6. No session knows them.
const SECOND: [UplinkId; 2] = [UplinkId(64), UplinkId(65)];

/// The second sockets; absent where the port after the server's own is taken, or the family is not there.
#[derive(Debug, Clone, Default)]
pub struct SecondPort([Option<Arc<UdpUplink>>; 2]);

impl SecondPort {
    /// Binds the port after `port` at the addresses the server listens on.
    pub fn bind(listen: impl Iterator<Item = IpAddr>, port: u16) -> Self {
        let mut second = Self::default();
        let Some(port) = port.checked_add(1) else { return second };
        for ip in listen {
            let place = usize::from(ip.is_ipv6());
            match UdpUplink::bind(SECOND[place], SocketAddr::new(ip, port), SOCKET_BUFFER) {
                Ok(uplink) => second.0[place] = Some(Arc::new(uplink)),
                Err(BindError::NoFamily { .. }) => {}
                Err(error) => log::info!("no second port for `eps-actor netcheck`: {error}"),
            }
        }
        second
    }

    /// The sockets to read from.
    pub fn readers(&self) -> impl Iterator<Item = Arc<UdpUplink>> {
        self.0.iter().flatten().cloned()
    }

    fn port(&self) -> u16 {
        self.readers().next().map_or(0, |uplink| uplink.local_addr().port())
    }
}

/// Answers the questions of one reader of datagrams.
pub struct Observer {
    responder: Responder,
    uplinks: Uplinks,
    second: SecondPort,
}

impl Observer {
    /// `key` is the same for all of one server.
    pub fn new(key: [u8; 32], uplinks: Uplinks, second: SecondPort) -> Self {
        Self { responder: Responder::new(key, second.port()), uplinks, second }
    }

    /// A datagram that begins as such a question does.
    ///
    /// # Errors
    ///
    /// Why it is not answered; the caller counts it.
    pub fn handle(&mut self, from: Endpoint, datagram: &[u8]) -> Result<(), DropReason> {
        let reply = self.responder.answer(from.addr, datagram, unix_time().as_secs())?;
        let at_second = SECOND.contains(&from.uplink);
        if from.uplink == UplinkId::TCP {
            self.uplinks.send(from, &reply.bytes);
        } else if at_second != reply.from_other {
            let place = usize::from(!reply.to.is_ipv4());
            let uplink = self.second.0[place].as_ref().ok_or(DropReason::SendFailed)?;
            // Lost like any datagram.
            let _ = uplink.send(reply.to, &reply.bytes, None);
        } else if at_second {
            self.uplinks.send(Endpoint::udp(reply.to), &reply.bytes);
        } else {
            // By the socket it came to.
            self.uplinks.send(Endpoint { uplink: from.uplink, addr: reply.to }, &reply.bytes);
        }
        Ok(())
    }
}
