//! TapReader: the reading end of the TAP, and who brings the device up to the lease.
//!
//! Frames go from here to the sockets by direct calls. A restart loses the frames of one burst at the most: the device
//! is held by a [`TapSlot`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_lite::future;
use ipnet::IpNet;
use smol::Timer;
use xtra::{Actor, Context, Handler, Mailbox};

use super::client::Ending;
use super::datapath::Egress;
use super::ext::{Service, StopReason};
use crate::counters::Counters;
use crate::io::batch::MAX_RUN_BYTES;
use crate::io::netlink::{Netlink, NetlinkError, keep_addresses};
use crate::io::poll::{self, Watch};
use crate::io::tap::{Tap, TapConfig, TapError, VNET_HEADER_LEN};
use crate::io::tap_slot::TapSlot;
use crate::messages::tap_reader::Configure;
use crate::proto::peers::leased_networks;
use crate::proto::routes::overlaps;
use crate::wire::cert::Certificate;

/// Frames read in one burst: as many as one segmented send takes.
const BURST_FRAMES: usize = 64;
/// Bytes read in one burst; the sockets of this thread want their turn.
const BURST_BYTES: usize = 64 * 1024;
/// How often, and how long each time, a new device waits for the members' map. Without a server there may be none.
const MAP_WAITS: u32 = 50;
const MAP_WAIT: Duration = Duration::from_millis(5);
/// The most a TAP delivers in one read: a super-frame of 64 KiB with its headers.
const READ_MAX: usize = 65_536 + 18 + VNET_HEADER_LEN;

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
    map_version: Arc<AtomicU64>,
    device: TapConfig,
    egress: Egress,
    counters: Arc<Counters>,
    /// Told when the device cannot be brought up for a reason that only the user can mend.
    end: smol::channel::Sender<Ending>,
    configured: Option<Certificate>,
    buffer: Box<[u8]>,
    /// The last burst was a single frame.
    lone: bool,
}

impl TapReader {
    /// `map_version` is 0 until the server has told of members. `device` is what it should be; its MAC comes from the lease.
    pub fn new(
        slot: TapSlot,
        lease: LeaseCell,
        map_version: Arc<AtomicU64>,
        device: TapConfig,
        egress: Egress,
        counters: Arc<Counters>,
        end: smol::channel::Sender<Ending>,
    ) -> Self {
        let buffer = vec![0; READ_MAX].into();
        Self { slot, lease, map_version, device, egress, counters, end, configured: None, buffer, lone: false }
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
                self.wait_for_map().await;
                let network = leased_networks(&lease);
                self.check_overlap(&network).await?;
                let tap = Arc::new(Tap::open(&TapConfig { mac: Some(lease.mac), ..self.device.clone() })?);
                set_up(&tap, &lease, self.device.mtu).await.map_err(|source| self.netlink(source))?;
                tap
            }
        };
        self.slot.set(Some(tap.clone()));
        self.configured = Some((*lease).clone());
        Ok(Some(tap))
    }

    /// Lets the members' map come first, for a moment: what a machine asks of a new device at once (ARP) would find
    /// nobody, and it asks again only after a second.
    async fn wait_for_map(&self) {
        for _ in 0..MAP_WAITS {
            if self.map_version.load(Relaxed) > 0 || self.egress.knows_peers() {
                return;
            }
            Timer::after(MAP_WAIT).await;
        }
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
        DeviceError::Netlink { name: self.device.name.clone(), source }
    }

    /// Reads and sends what is there, up to the size of a burst. `WouldBlock` says that all was read.
    fn read_burst(&mut self, tap: &Tap) -> io::Result<()> {
        let mut length = tap.try_read(&mut self.buffer)?;
        let mut scope = self.egress.scope(Instant::now());
        let offloaded = tap.offloads().is_some();
        let (mut frames, mut bytes) = (0, 0);
        let result = loop {
            self.egress.frame(&mut self.buffer[..length], offloaded, &mut scope);
            (frames, bytes) = (frames + 1, bytes + length);
            // Who sends one frame at a time waits for the answer: it goes before we ask whether there are more.
            if self.lone && frames == 1 {
                self.egress.flush();
            }
            if frames == BURST_FRAMES || bytes >= BURST_BYTES {
                break Ok(());
            }
            match tap.try_read(&mut self.buffer) {
                Ok(read) => length = read,
                Err(error) => break Err(error),
            }
        };
        self.egress.finish(&scope);
        self.lone = frames == 1;
        result
    }
}

/// The size of super-frames whose segments just fit one segmented send, so that none is left over for a second. 72
/// bytes are IPv6 and TCP with timestamps, 66 what we put around a packet, 400 what TCP keeps free of the size.
fn super_frame_max(mtu: u16) -> u32 {
    let (packet, run) = (u32::from(mtu), MAX_RUN_BYTES as u32);
    let segments = (run / (packet + 66)).min(64);
    (segments * (packet - 72) + 400).min(65_536)
}

async fn set_up(tap: &Tap, lease: &Certificate, mtu: u16) -> Result<(), NetlinkError> {
    let netlink = Netlink::open()?;
    if tap.offloads().is_some()
        && let Err(error) = netlink.set_gso_max_size(tap.ifindex(), super_frame_max(mtu)).await
    {
        // It costs a little speed and nothing else.
        log::debug!("{}: {error}", tap.name());
    }
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
    Readable,
}

super::ext::answers_pings!(TapReader);

impl Service for TapReader {
    const NAME: &'static str = "tap_reader";

    async fn run(&mut self, mailbox: &Mailbox<Self>) -> StopReason {
        let mut next = mailbox.next();
        let mut watched: Option<Watch<Arc<Tap>>> = None;
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
                watched = None;
                let message = (&mut next).await;
                next = mailbox.next();
                if message.dispatch_to(self).await.is_break() {
                    return StopReason::Requested;
                }
                continue;
            };
            let watch = match watched.take().filter(|watch| Arc::ptr_eq(watch.of(), &tap)) {
                Some(watch) => watch,
                None => match Watch::new(tap.clone()) {
                    Ok(watch) => watch,
                    Err(error) => return StopReason::Failed(format!("watching {}: {error}", tap.name())),
                },
            };
            let readable = async {
                watch.readable().await;
                Wake::Readable
            };
            // Control first, so that a busy device cannot starve it.
            match future::or(async { Wake::Control((&mut next).await) }, readable).await {
                Wake::Control(message) => {
                    next = mailbox.next();
                    if message.dispatch_to(self).await.is_break() {
                        return StopReason::Requested;
                    }
                }
                Wake::Readable => match self.read_burst(&tap) {
                    Ok(()) => poll::turn().await,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => watch.clear(),
                    Err(error) if Tap::is_gone(&error) => {
                        self.slot.set(None);
                        return StopReason::DeviceGone(format!("{}: {error}", tap.name()));
                    }
                    Err(_) => {
                        self.counters.dropped(crate::counters::DropReason::TapWrite);
                        poll::turn().await;
                    }
                },
            }
            watched = Some(watch);
        }
    }
}
