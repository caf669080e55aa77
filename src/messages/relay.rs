//! What the relay is told.

use crate::ids::{ChannelToken, Endpoint, PeerIdx};

/// A channel between two members exists; each leg has its token.
#[derive(Debug, Clone, Copy)]
pub struct Bind {
    /// Grows with each; [`Published`](super::coordinator::Published) tells how far the relay has come.
    pub number: u64,
    pub one: (PeerIdx, ChannelToken),
    pub other: (PeerIdx, ChannelToken),
}

/// Where a member is; `None` while it is offline.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub member: PeerIdx,
    pub endpoint: Option<Endpoint>,
}
