//! What the tunnel is told.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::ids::UplinkId;
use crate::io::udp::UdpUplink;

/// A client's path leads there, by this socket.
#[derive(Debug, Clone)]
pub struct PathOpened {
    pub uplink: UplinkId,
    pub socket: Arc<UdpUplink>,
    pub remote: SocketAddr,
}

/// What came of an attempt to open a path; told to itself by whoever opens them.
#[derive(Debug)]
pub struct Attempted {
    pub uplink: UplinkId,
    pub result: Result<PathOpened, String>,
}
