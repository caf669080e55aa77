//! What the UPnP actor is told; all of it by tasks of its own.

use std::net::SocketAddr;

use crate::proto::gateway::Place;

/// The default route leads there, or nowhere.
#[derive(Debug, Clone, Copy)]
pub struct PlaceIs(pub Option<Place>);

/// A datagram came.
#[derive(Debug)]
pub struct Heard {
    pub from: SocketAddr,
    pub bytes: Vec<u8>,
    /// To a group, and not to the socket that questions leave by.
    pub announced: bool,
}

/// What came of an exchange over HTTP; or why nothing did.
#[derive(Debug)]
pub struct Fetched {
    pub id: u64,
    pub reply: Result<Vec<u8>, String>,
}
