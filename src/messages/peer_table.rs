//! What the peer table is told.

use std::sync::Arc;
use std::time::Instant;

use crate::ids::{Endpoint, PeerIdx, PublicKey, Route};
use crate::proto::asking::Question;
use crate::proto::multipath::Mode;
use crate::proto::nat::NatReport;
use crate::proto::peers::LocalUplink;
use crate::proto::server_link::Pinned;
use crate::proto::session::Session;
use crate::wire::cert::CERT_LEN;
use crate::wire::control::{Candidate, Control};
use crate::wire::why::Side;

/// First contact was made, or a certificate came: this is our network and what it signed for us.
#[derive(Debug, Clone)]
pub struct Joined {
    pub pinned: Pinned,
    pub certificate: [u8; CERT_LEN],
    /// The network's epoch, as the server says.
    pub epoch: u64,
}

/// A frame waits for a peer without a session.
#[derive(Debug, Clone, Copy)]
pub struct Want(pub PeerIdx);

/// A handshake, cookie or hint.
#[derive(Debug)]
pub struct Inbound {
    pub via: Route,
    pub datagram: Vec<u8>,
}

/// Control messages of a peer, authentic and opened.
#[derive(Debug)]
pub struct PeerControl {
    pub session: Arc<Session>,
    pub via: Route,
    pub plain: Vec<u8>,
}

/// The first authentic frame came on a new session.
#[derive(Debug, Clone)]
pub struct Confirmed {
    pub session: Arc<Session>,
    pub via: Route,
}

/// Authentic frames come from elsewhere than where ours go.
#[derive(Debug, Clone, Copy)]
pub struct SeenFrom {
    pub peer: PeerIdx,
    pub via: Route,
}

/// What the server says of other members.
#[derive(Debug)]
pub struct FromServer(pub Control);

/// Where the server is; `None` while it is away.
#[derive(Debug, Clone, Copy)]
pub struct ServerPlace(pub Option<Endpoint>);

/// What the NAT in front of us does.
#[derive(Debug, Clone)]
pub struct OwnNat(pub NatReport);

/// A member announced itself in a LAN of ours.
#[derive(Debug, Clone, Copy)]
pub struct Neighbour {
    pub node: [u8; 8],
    pub addr: std::net::SocketAddr,
}

/// A peer answered through a socket that was opened for it.
#[derive(Debug)]
pub struct Punched {
    pub socket: std::net::UdpSocket,
    pub from: std::net::SocketAddr,
    pub session: Arc<Session>,
    pub plain: Vec<u8>,
}

/// The machine's networks have changed. `moved`: its ways out have, so that what others know of us may be void.
#[derive(Debug, Clone, Copy)]
pub struct WaysChanged {
    pub moved: bool,
}

/// Our own addresses, all of them.
#[derive(Debug, Clone)]
pub struct OwnCandidates(pub Vec<Candidate>);

/// The sockets that direct paths are to use are these, all of them.
#[derive(Debug, Clone)]
pub struct UplinksChanged(pub Vec<LocalUplink>);

/// Several paths to one peer, or to all that nothing else is said for, are to be used so.
#[derive(Debug, Clone, Copy)]
pub struct SetMode {
    pub peer: Option<PublicKey>,
    pub mode: Mode,
}

/// Somebody asks a peer something. The answer comes to the one who waits for this number.
#[derive(Debug, Clone, Copy)]
pub struct AskPeer {
    pub peer: PeerIdx,
    pub question: Question,
    pub id: u64,
    pub end: Instant,
}

/// What is known here of the ways to a peer, for somebody who wants to know why.
#[derive(Debug)]
pub struct OwnAccount {
    pub peer: PeerIdx,
    pub tell: smol::channel::Sender<WhatWeKnow>,
}

/// The answer to [`OwnAccount`].
#[derive(Debug, Clone)]
pub struct WhatWeKnow {
    pub side: Side,
    /// There is an address to try without the server.
    pub cached: bool,
}

/// How this machine is connected, found out because a peer has asked for our account.
#[derive(Debug, Clone, Copy)]
pub struct LookedAround {
    pub peer: PeerIdx,
    pub nonce: u64,
    pub found: crate::actors::why::Surroundings,
}
