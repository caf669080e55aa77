//! TapReader: the reading end of the TAP, and who brings the device up to the lease.
//!
//! Frames go from here to the sockets by direct calls. A restart loses the frames of one burst at the most: the device
//! is held by a [`TapSlot`].

use std::io;
use std::sync::Arc;
use std::time::Instant;

use futures_lite::future;
use ipnet::IpNet;
use xtra::{Actor, Context, Handler, Mailbox};

use super::client::Ending;
use super::datapath::Egress;
use super::ext::{Service, StopReason};
use crate::counters::Counters;
use crate::io::netlink::{Netlink, NetlinkError, keep_addresses};
use crate::io::tap::{Tap, TapConfig, TapError};
use crate::io::tap_slot::TapSlot;
use crate::messages::tap_reader::Configure;
use crate::proto::peers::leased_networks;
use crate::wire::cert::Certificate;

/// Frames read in one burst, before anything is sent.
const BURST_FRAMES: usize = 64;
/// Room for a burst of frames at the default MTU; larger frames make the burst shorter.
const BURST_BYTES: usize = 256 * 1024;
/// The longest frame a TAP may deliver.
const FRAME_MAX: usize = 65_536;

/// The lease the device is to have, as the server link publishes it.
pub type LeaseCell = Arc<arc_swap::ArcSwapOption<Certificate>>;

/// Why the device cannot be brought up.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error("the device {name} cannot be set up: {source}")]
    Netlink { name: String, source: NetlinkError },
    #[error(
        "the leased network {network} overlaps {existing}, which this machine has already as the {held} of {interface}; start the server with another --network, or remove that {held}"
    )]
    Overlap { network: IpNet, existing: IpNet, held: &'static str, interface: String },
}

/// The actor.
pub struct TapReader {
    slot: TapSlot,
    lease: LeaseCell,
    device: (String, u16),
    egress: Egress,
    counters: Arc<Counters>,
    /// Told when the device cannot be brought up for a reason that only the user can mend.
    end: smol::channel::Sender<Ending>,
    configured: Option<Certificate>,
    buffer: Vec<u8>,
    lengths: Vec<usize>,
}

impl TapReader {
    /// `device` is the name (it may hold `%d`) and the MTU.
    pub fn new(
        slot: TapSlot,
        lease: LeaseCell,
        device: (String, u16),
        egress: Egress,
        counters: Arc<Counters>,
        end: smol::channel::Sender<Ending>,
    ) -> Self {
        Self {
            slot,
            lease,
            device,
            egress,
            counters,
            end,
            configured: None,
            buffer: vec![0; BURST_BYTES + FRAME_MAX],
            lengths: Vec::with_capacity(BURST_FRAMES),
        }
    }

    /// Brings the device up to the lease, making it first if there is none.
    async fn configure(&mut self) -> Result<Option<Arc<Tap>>, DeviceError> {
        let Some(lease) = self.lease.load_full() else { return Ok(self.slot.get()) };
        let same = self.configured.as_ref().is_some_and(|old| {
            (old.mac, old.ip4, old.prefix4, old.ip6, old.prefix6)
                == (lease.mac, lease.ip4, lease.prefix4, lease.ip6, lease.prefix6)
        });
        if let Some(tap) = self.slot.get().filter(|_| same) {
            return Ok(Some(tap));
        }
        let held = self.slot.get();
        let tap = match held {
            // A reader that was restarted finds the device as its predecessor left it.
            Some(tap) if self.configured.is_none() => tap,
            Some(_) | None => {
                self.slot.set(None);
                let (name, mtu) = self.device.clone();
                let network = leased_networks(&lease);
                self.check_overlap(&network).await?;
                let config = TapConfig { name, mac: Some(lease.mac), mtu, vnet: false, multi_queue: false };
                let tap = Arc::new(Tap::open(&config)?);
                set_up(&tap, &lease).await.map_err(|source| self.netlink(source))?;
                tap
            }
        };
        self.slot.set(Some(tap.clone()));
        self.configured = Some((*lease).clone());
        Ok(Some(tap))
    }

    /// Refuses a network that this machine has already, before anything is touched.
    async fn check_overlap(&self, networks: &[IpNet]) -> Result<(), DeviceError> {
        let netlink = Netlink::open().map_err(|source| self.netlink(source))?;
        let addresses = netlink.addresses().await.map_err(|source| self.netlink(source))?;
        for address in addresses {
            let Ok(existing) = IpNet::new(address.addr, address.prefix) else { continue };
            if let Some(network) = networks.iter().find(|network| overlaps(network, &existing)) {
                let (network, existing, interface) = (*network, existing.trunc(), address.name);
                return Err(DeviceError::Overlap { network, existing, held: "address", interface });
            }
        }
        let routes = netlink.routes().await.map_err(|source| self.netlink(source))?;
        for route in routes.into_iter().filter(|route| route.dst.prefix_len() > 0) {
            if let Some(network) = networks.iter().find(|network| overlaps(network, &route.dst)) {
                let (network, existing, interface) = (*network, route.dst, route.name);
                return Err(DeviceError::Overlap { network, existing, held: "route", interface });
            }
        }
        Ok(())
    }

    fn netlink(&self, source: NetlinkError) -> DeviceError {
        DeviceError::Netlink { name: self.device.0.clone(), source }
    }

    fn read_burst(&mut self, tap: &Tap) -> io::Result<()> {
        let mut used = 0;
        self.lengths.clear();
        let result = loop {
            if self.lengths.len() == BURST_FRAMES || used >= BURST_BYTES {
                break Ok(());
            }
            match tap.try_read(&mut self.buffer[used..used + FRAME_MAX]) {
                Ok(length) => {
                    used += length;
                    self.lengths.push(length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if !self.lengths.is_empty() {
            self.egress.frames(&self.buffer[..used], &self.lengths, Instant::now());
        }
        result
    }
}

fn overlaps(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

async fn set_up(tap: &Tap, lease: &Certificate) -> Result<(), NetlinkError> {
    let netlink = Netlink::open()?;
    netlink.add_address(tap.ifindex(), lease.ip4.into(), lease.prefix4).await?;
    netlink.set_up(tap.ifindex()).await?;
    if let Some(ip6) = lease.ip6 {
        // Else the kernel takes the address away when somebody sets the device down and up.
        if let Err(error) = keep_addresses(tap.name()) {
            log::debug!("{}: its IPv6 address will not outlive the device being down: {error}", tap.name());
        }
        // A machine without IPv6 still has a network.
        if let Err(error) = netlink.add_address(tap.ifindex(), ip6.into(), lease.prefix6).await {
            log::warn!("{}: no IPv6 address: {error}", tap.name());
        }
    }
    Ok(())
}

impl Actor for TapReader {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

impl Handler<Configure> for TapReader {
    type Return = ();

    async fn handle(&mut self, Configure: Configure, _: &mut Context<Self>) {}
}

enum Wake<M> {
    Control(M),
    Readable(io::Result<()>),
}

impl Service for TapReader {
    const NAME: &'static str = "tap_reader";

    async fn run(&mut self, mailbox: &Mailbox<Self>) -> StopReason {
        let mut next = mailbox.next();
        loop {
            let tap = match self.configure().await {
                Ok(tap) => tap,
                Err(error @ (DeviceError::Overlap { .. } | DeviceError::Tap(_))) => {
                    let text = error.to_string();
                    // The node ends with these words; there is nobody left to care if it is ending already.
                    let _ = self.end.try_send(Ending::Failed(text.clone()));
                    return StopReason::Failed(text);
                }
                Err(error @ DeviceError::Netlink { .. }) => {
                    self.slot.set(None);
                    return StopReason::Failed(error.to_string());
                }
            };
            let Some(tap) = tap else {
                let message = (&mut next).await;
                next = mailbox.next();
                if message.dispatch_to(self).await.is_break() {
                    return StopReason::Requested;
                }
                continue;
            };
            // Control first, so that a busy device cannot starve it.
            let wake =
                future::or(async { Wake::Control((&mut next).await) }, async { Wake::Readable(tap.readable().await) })
                    .await;
            match wake {
                Wake::Control(message) => {
                    next = mailbox.next();
                    if message.dispatch_to(self).await.is_break() {
                        return StopReason::Requested;
                    }
                }
                Wake::Readable(ready) => {
                    if let Err(error) = ready.and_then(|()| self.read_burst(&tap)) {
                        if Tap::is_gone(&error) {
                            self.slot.set(None);
                            return StopReason::DeviceGone(format!("{}: {error}", tap.name()));
                        }
                        self.counters.dropped(crate::counters::DropReason::TapWrite);
                        future::yield_now().await;
                    }
                    // One burst is enough for one turn: the sockets of this thread want theirs.
                    future::yield_now().await;
                }
            }
        }
    }
}
