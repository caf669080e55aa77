//! What the conversation of an ethcloud is told.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::ids::{MacAddr, PublicKey, VlanId};
use crate::io::names::LookupError;
use crate::wire::hello::CloudTag;

/// A datagram that is no frame, with the right token and whole.
#[derive(Debug)]
pub struct CloudHeard {
    pub from: SocketAddr,
    pub datagram: Vec<u8>,
}

/// Frames have reached the device from senders that were no peers, or stations that were elsewhere.
#[derive(Debug)]
pub struct CloudSeen(pub Vec<CloudSighting>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloudSighting {
    pub from: SocketAddr,
    pub vlan: VlanId,
    pub mac: MacAddr,
}

/// Stations were seen at another port of the member that bridges the cloud.
#[derive(Debug)]
pub struct CloudMoved(pub Vec<(VlanId, MacAddr, Place)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Behind its device.
    Here,
    Network,
}

/// Another member says whether it bridges the cloud of this tag.
#[derive(Debug)]
pub struct CloudHello {
    pub tag: CloudTag,
    pub bridges: bool,
    pub key: PublicKey,
    pub name: String,
}

/// A name was looked up: the number of its `-c`, and what was found.
#[derive(Debug)]
pub struct CloudLookedUp {
    pub number: usize,
    pub found: Result<Vec<SocketAddr>, LookupError>,
}

/// This machine's addresses, and the networks on the cloud's own device.
#[derive(Debug)]
pub struct CloudLocal {
    pub ips: Vec<IpAddr>,
    pub overlay: Vec<IpNet>,
}
