//! A member's end of an ethcloud: one switch of three ports, the device, the network and the cloud.
//!
//! A frame never leaves by the port it came by: the network's sockets have no way to the network, and the cloud's none to
//! the cloud. What comes from the cloud is nobody's word, so it passes the checks that frames of a bridge without other
//! rights pass: no address of a member, no DHCP server, no router, and a budget for frames to groups. Towards the network
//! the frames are this member's own, which needs the right to bridge; without it nothing crosses between the two.
//!
//! Two members that bridge one cloud would be a loop. A frame from the network whose source is behind the cloud already
//! has come by another bridge, and so is not sent there.

use std::net::IpAddr;
use std::time::Instant;

use super::cloud_path::{CloudEgress, CloudEgressScope};
use super::datapath::{Egress, EgressScope, Views};
use crate::counters::DropReason;
use crate::ids::MacAddr;
use crate::proto::guard::{self, PeerCredentials, Rights, StormBudget};
use crate::wire::ethernet::FrameView;

/// The way from the cloud to the network; and what it checks.
pub struct CloudBridge {
    views: Views,
    mesh: Egress,
    scope: Option<EgressScope>,
    storm: Option<StormBudget>,
}

impl CloudBridge {
    /// `mesh` sends to the peers of the network.
    pub fn new(views: Views, mesh: Egress) -> Self {
        Self { views, mesh, scope: None, storm: None }
    }

    /// Loads the views for one batch.
    pub fn begin(&mut self, now: Instant) {
        self.scope = Some(self.mesh.scope(now));
    }

    /// Sends what is left of the batch.
    pub fn finish(&mut self) {
        if let Some(scope) = self.scope.take() {
            self.mesh.finish_foreign(&scope);
        }
    }

    /// Judges a frame from the cloud, and sends it to the network if it is for there. Whether it is for the device too.
    ///
    /// # Errors
    /// The reason to drop it.
    pub fn frame(&mut self, bytes: &[u8], now: Instant) -> Result<bool, DropReason> {
        let frame = FrameView::parse(bytes)?;
        let own = self.views.own.load();
        let own_mac = own.mac.ok_or(DropReason::UnknownPeer)?;
        let credentials = PeerCredentials { mac: frame.src(), ip4: None, ip6: None, rights: Rights(Rights::BRIDGE) };
        guard::check(&frame, &credentials)?;
        if frame.is_link_local_group() {
            return Err(DropReason::LinkLocalGroup);
        }
        let fdb = self.views.fdb.load();
        if frame.src() == own_mac || fdb.owner(frame.src()).is_some() {
            return Err(DropReason::SourceSpoofed);
        }
        if frame.dst().is_group() && !self.storm.get_or_insert_with(|| StormBudget::new(now)).admit(&frame, now) {
            return Err(DropReason::Storm);
        }
        if guard::is_neighbour_traffic(&frame) {
            let peers = self.views.peers.load();
            let ours = [own.ip4.map(IpAddr::from), own.ip6.map(IpAddr::from)];
            let owner = |ip: IpAddr| -> Option<MacAddr> {
                if ours.contains(&Some(ip)) { Some(own_mac) } else { peers.directory.get(&ip).copied() }
            };
            guard::check_leases(&frame, &credentials, &owner)?;
        }
        if frame.dst() == own_mac {
            return Ok(true);
        }
        let scope = self.scope.as_ref().ok_or(DropReason::NoActor)?;
        if !Rights(own.rights).is_bridge() {
            return Ok(frame.dst().is_group());
        }
        self.mesh.foreign(bytes, scope)?;
        Ok(frame.dst().is_group() || fdb.lookup(frame.vlan(), frame.dst()).is_none())
    }
}

/// The way from the device, or from the network, to the cloud.
pub struct CloudPort {
    egress: CloudEgress,
    scope: Option<CloudEgressScope>,
}

/// Whether a frame is for the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToCloud {
    No,
    /// And for others.
    Also,
    Only,
}

impl CloudPort {
    pub fn new(egress: CloudEgress) -> Self {
        Self { egress, scope: None }
    }

    /// Loads the views for one burst.
    pub fn begin(&mut self, now: Instant) {
        self.scope = Some(self.egress.scope(now));
    }

    /// Sends what is left of the burst.
    pub fn finish(&mut self) {
        if let Some(scope) = self.scope.take() {
            self.egress.finish(&scope);
        }
    }

    /// Whether a frame is for the cloud: its station is there, or might be. Hot.
    pub fn wants(&self, frame: &FrameView<'_>) -> ToCloud {
        let Some(scope) = &self.scope else { return ToCloud::No };
        if scope.peers.peers.is_empty() || scope.fdb.lookup(frame.vlan(), frame.src()).is_some() {
            return ToCloud::No;
        }
        match scope.peers.known(frame.bytes(), &scope.fdb) {
            Some(_) => ToCloud::Only,
            None => ToCloud::Also,
        }
    }

    /// Sends a whole frame.
    ///
    /// # Errors
    /// The reason it cannot be sent.
    pub fn send(&mut self, frame: &[u8]) -> Result<(), DropReason> {
        let scope = self.scope.as_mut().ok_or(DropReason::NoActor)?;
        self.egress.frame(frame, scope)
    }
}
