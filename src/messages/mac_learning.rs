//! What MAC learning is told.

use crate::ids::{MacAddr, PeerIdx, VlanId};
use crate::proto::fdb::Sighting;

/// Stations were seen behind bridges where the table does not have them yet.
#[derive(Debug)]
pub struct Learn(pub Vec<Sighting>);

/// These were seen in the ethcloud that this member bridges: they are behind no bridge of the network any more.
#[derive(Debug)]
pub struct Moved(pub Vec<(VlanId, MacAddr)>);

/// The stations that certificates name, all of them, our own, and which peers may bridge.
#[derive(Debug, Clone)]
pub struct Members {
    pub own: Option<MacAddr>,
    pub stations: Vec<(MacAddr, PeerIdx)>,
    /// Peers that have left, or lost the right to bridge, since the last one of these messages.
    pub gone: Vec<PeerIdx>,
}
