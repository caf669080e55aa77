//! What the server link is told.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::ids::Endpoint;
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

/// What became of looking up the server's names.
#[derive(Debug, Clone)]
pub enum Resolved {
    /// The name at this place of the list stands for these addresses; or why it does not.
    Name(usize, Result<Vec<Endpoint>, String>),
    /// It is time to look them up again.
    Again,
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
