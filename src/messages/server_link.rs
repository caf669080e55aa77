//! What the server link is told.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::ids::Endpoint;
use crate::io::names::LookupError;
use crate::proto::session::Session;
use crate::wire::control::{Candidate, Control};

/// A handshake, cookie or hint from the server's side.
#[derive(Debug)]
pub struct ServerInbound {
    pub from: Endpoint,
    pub datagram: Vec<u8>,
}

/// Control messages of the server, authentic and opened.
#[derive(Debug)]
pub struct ServerControl {
    pub session: Arc<Session>,
    pub from: Endpoint,
    pub plain: Vec<u8>,
}

/// Say this to the server.
#[derive(Debug)]
pub struct SayToServer(pub Control);

/// The member map has this version.
#[derive(Debug, Clone, Copy)]
pub struct MapAt(pub u64);

/// What became of looking up one of the server's names: its place in the list, and what it stands for.
#[derive(Debug)]
pub struct Resolved {
    pub place: usize,
    pub found: Result<Vec<SocketAddr>, LookupError>,
}

/// The machine's networks have changed, as [`peer_table::UplinksChanged`](super::peer_table::UplinksChanged) says.
#[derive(Debug, Clone, Copy)]
pub struct UnderlayChanged {
    pub moved: bool,
}

/// Our own addresses, all of them.
#[derive(Debug, Clone)]
pub struct OwnCandidates(pub Vec<Candidate>);

/// The TCP connections to servers that are open, all of them.
#[derive(Debug, Clone)]
pub struct Connected(pub Vec<SocketAddr>);

/// What the gateway maps to us has changed: look at it.
#[derive(Debug, Clone, Copy)]
pub struct MappingChanged;

/// Give the lease back. The sender hears when the server has taken it.
#[derive(Debug)]
pub struct Release(pub smol::channel::Sender<()>);

/// Our statistics for the server's map.
#[derive(Debug)]
pub struct OwnStats(pub Control);

/// What we offer for routing, and which table of routes we have: a `RouteOffer`.
#[derive(Debug)]
pub struct Offer(pub Control);
