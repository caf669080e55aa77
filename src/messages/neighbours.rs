//! What the actor for neighbours in the LAN is told.

use std::net::{Ipv4Addr, SocketAddr};

/// The private addresses of our interfaces, all of them.
#[derive(Debug, Clone)]
pub struct Interfaces(pub Vec<Ipv4Addr>);

/// Somebody shouted, or answered; heard at the interface of this address.
#[derive(Debug)]
pub struct Shouted {
    pub at: Ipv4Addr,
    pub from: SocketAddr,
    pub bytes: Vec<u8>,
}
