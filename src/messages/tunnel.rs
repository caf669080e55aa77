//! What the tunnel is told.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::ids::UplinkId;
use crate::io::names::LookupError;
use crate::io::udp::{BindError, UdpUplink};

/// A client's path leads there, by this socket.
#[derive(Debug, Clone)]
pub struct PathOpened {
    pub uplink: UplinkId,
    pub socket: Arc<UdpUplink>,
    pub remote: SocketAddr,
}

/// No socket could be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketTrouble {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("the server {name} is not known: {source}; give its address, or mend the name resolution")]
    Unknown { name: String, source: LookupError },
    #[error("the server {name} has no address of the family of {bind}")]
    OtherFamily { name: String, bind: IpAddr },
}

/// What came of an attempt to open a path; told to itself by whoever opens them.
#[derive(Debug)]
pub struct Attempted {
    pub uplink: UplinkId,
    pub result: Result<PathOpened, SocketTrouble>,
}
