//! What the coordinator is told.

use std::sync::Arc;

use smol::channel::Sender;

use crate::ids::Endpoint;
use crate::proto::coordinator::Reply;
use crate::proto::session::Session;

/// A handshake, cookie or hint.
#[derive(Debug)]
pub struct MemberInbound {
    pub from: Endpoint,
    pub datagram: Vec<u8>,
}

/// Control messages of a member, authentic and opened.
#[derive(Debug)]
pub struct MemberControl {
    pub session: Arc<Session>,
    pub from: Endpoint,
    pub plain: Vec<u8>,
}

/// A write was made durable, or could not be.
#[derive(Debug, Clone)]
pub struct Stored {
    pub id: u64,
    pub result: Result<(), String>,
}

/// The sockets know every channel up to this number.
#[derive(Debug, Clone, Copy)]
pub struct Published(pub u64);

/// Make an invitation; the reply carries its token.
#[derive(Debug)]
pub struct Invite {
    pub expires_unix: Option<u64>,
    pub uses: Option<u32>,
    pub reply: Sender<Reply>,
}

/// The configuration has changed; it is among what the actors share.
#[derive(Debug, Clone, Copy)]
pub struct Reconfigure;

/// Remove a member.
#[derive(Debug)]
pub struct Kick {
    pub name: String,
    pub reply: Sender<Reply>,
}

/// The network as the coordinator sees it.
#[derive(Debug, Clone)]
pub struct NetworkDescription {
    pub network: crate::proto::records::NetworkRecord,
    pub members: Vec<crate::proto::coordinator::MemberDescription>,
    /// Names of the members that reports speak of, by the first eight bytes of their node ids.
    pub names: std::collections::BTreeMap<[u8; 8], String>,
    pub head: u64,
    pub network6: Option<ipnet::Ipv6Net>,
    pub lease_free: u64,
    pub invitations: bool,
    pub events: Vec<String>,
}
