//! The server's answers to whoever asks where it is seen, on every port.
//!
//! That there is a second port is what shows a host whether its NAT uses another outside port for each destination, and
//! that an answer may come from the one that was not asked, whether the NAT lets it in.

use std::net::SocketAddr;

use crate::counters::DropReason;
use crate::ids::{Endpoint, UplinkId};
use crate::io::clock::unix_time;
use crate::io::uplinks::Uplinks;
use crate::proto::observe::Responder;

/// Answers the questions of one reader of datagrams.
pub struct Observer {
    responder: Responder,
    uplinks: Uplinks,
}

impl Observer {
    /// `key` is the same for all of one server.
    pub fn new(key: [u8; 32], uplinks: Uplinks) -> Self {
        let second = uplinks.readers().find(|uplink| uplink.id().is_observer());
        let port = second.map_or(0, |uplink| uplink.local_addr().port());
        Self { responder: Responder::new(key, port), uplinks }
    }

    /// A datagram that begins as such a question does.
    ///
    /// # Errors
    ///
    /// Why it is not answered; the caller counts it.
    pub fn handle(&mut self, from: Endpoint, datagram: &[u8]) -> Result<(), DropReason> {
        let reply = self.responder.answer(from.addr, datagram, unix_time().as_secs())?;
        let uplink = match reply.from_other && from.uplink != UplinkId::TCP {
            true if from.uplink.is_observer() => Endpoint::udp(reply.to).uplink,
            true => observer_of(reply.to),
            false => from.uplink,
        };
        let to = if uplink == UplinkId::TCP { from.addr } else { reply.to };
        self.uplinks.send(Endpoint { uplink, addr: to }, &reply.bytes);
        Ok(())
    }
}

fn observer_of(to: SocketAddr) -> UplinkId {
    if to.is_ipv4() { UplinkId::OBSERVER4 } else { UplinkId::OBSERVER6 }
}
