//! Upnp: owns the port mappings at the gateway (UPnP-IGD, NAT-PMP, PCP).
//!
//! A restart asks the gateway anew; what it maps stays, and is announced meanwhile as the view has it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use smol::{Task, Timer, future};
use xtra::{Actor, Context, Handler, Mailbox};

use super::client::seed;
use super::ext::{Caster, Service, StopReason};
use crate::io::follow::Following;
use crate::io::gateway::{GatewaySocket, GroupSocket, exchange};
use crate::io::netlink::{Netlink, NetlinkError, RouteEntry, source_towards};
use crate::messages::server_link::MappingChanged;
use crate::messages::upnp::{Fetched, Heard, PlaceIs};
use crate::proto::crypto::Secret32;
use crate::proto::gateway::{Description, Gateway, Output, PMP_PORT, Place, Wish};
use crate::wire::igd;

/// Changes of routes are gathered for this long before they are acted on.
const SETTLE: Duration = Duration::from_millis(200);
/// One exchange over HTTP; small boxes take their time.
const FETCH_WITHIN: Duration = Duration::from_secs(5);
/// At the end the gateway has this long to delete mappings.
const RELEASE_WITHIN: Duration = Duration::from_millis(450);
/// Where gateways of PCP and NAT-PMP announce that they have started.
const PMP_GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 1), 5350);

/// What the gateway maps, published.
pub type GatewayCell = Arc<ArcSwap<Description>>;

/// What the wiring lends.
#[derive(Clone)]
pub struct UpnpShared {
    pub wishes: Vec<Wish>,
    /// How long to search before it counts as vain.
    pub timeout: Duration,
    /// The node's.
    pub secret: Secret32,
    /// The address that is listened on, where it is not all of them.
    pub own: Option<Ipv4Addr>,
    pub cell: GatewayCell,
    /// The index of our own device: a default route through it is none.
    pub device: Arc<dyn Fn() -> Option<u32> + Send + Sync>,
    /// Tells an operator.
    pub say: Arc<dyn Fn(String) + Send + Sync>,
}

/// Whom the actor tells.
#[derive(Clone)]
pub struct UpnpCasts {
    /// At a client.
    pub changed: Option<Caster<MappingChanged>>,
    /// To ourselves, for what tasks find out.
    pub place: Caster<PlaceIs>,
    pub heard: Caster<Heard>,
    pub fetched: Caster<Fetched>,
}

/// The actor.
pub struct Upnp {
    shared: UpnpShared,
    casts: UpnpCasts,
    core: Gateway,
    place: Option<Place>,
    socket: Option<Arc<GatewaySocket>>,
    watch: Option<Task<()>>,
    readers: Vec<Task<()>>,
    /// The core has one exchange at a time.
    fetch: Option<Task<()>>,
    said: Option<String>,
    goodbye: bool,
}

impl Upnp {
    pub fn new(shared: UpnpShared, casts: UpnpCasts) -> Self {
        let mut core = Gateway::new(&shared.wishes, shared.timeout, &shared.secret, seed());
        core.resume(&shared.cell.load(), Instant::now());
        Self {
            shared,
            casts,
            core,
            place: None,
            socket: None,
            watch: None,
            readers: Vec::new(),
            fetch: None,
            said: None,
            goodbye: false,
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Ask(bytes) => self.send(PMP_PORT, &bytes),
                Output::Search(bytes) => {
                    self.send_to(igd::SSDP, &bytes);
                    self.send(igd::SSDP.port(), &bytes);
                }
                Output::Fetch { id, to, request } => {
                    let tell = self.casts.fetched.clone();
                    self.fetch = Some(smol::spawn(async move {
                        tell.cast(fetch(id, to, request).await);
                    }));
                }
                Output::Changed => self.publish(),
            }
        }
    }

    fn send(&self, port: u16, bytes: &[u8]) {
        if let Some(place) = self.place {
            self.send_to(SocketAddrV4::new(place.gateway, port), bytes);
        }
    }

    fn send_to(&self, to: SocketAddrV4, bytes: &[u8]) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(to, bytes)
        {
            log::debug!("asking for a port mapping at {to}: {error}");
        }
    }

    fn publish(&mut self) {
        let description = self.core.describe();
        let text = words(&description);
        self.shared.cell.store(Arc::new(description));
        if let Some(changed) = &self.casts.changed {
            changed.cast(MappingChanged);
        }
        // While it is asked there is nothing to say; and what was said is not said again.
        if text.is_some() && text != self.said {
            (self.shared.say)(text.clone().unwrap_or_default());
            self.said = text;
        }
    }

    /// Opens the sockets towards a gateway.
    fn open(&mut self, place: Place) {
        let socket = match GatewaySocket::open(place.own) {
            Ok(socket) => Arc::new(socket),
            Err(error) => {
                log::warn!("the gateway {} cannot be asked for a port mapping: {error}", place.gateway);
                return;
            }
        };
        self.socket = Some(socket.clone());
        let tell = self.casts.heard.clone();
        self.readers.push(smol::spawn(async move {
            while let Ok((from, bytes)) = socket.receive().await {
                // What others send must not fill the mailbox.
                if from.ip() == place.gateway {
                    tell.cast(Heard { from, bytes, announced: false });
                }
            }
        }));
        for group in [PMP_GROUP, igd::SSDP] {
            let group = match GroupSocket::open(place.own, group) {
                Ok(group) => group,
                // It is asked from time to time as well.
                Err(error) => {
                    log::debug!("announcements to {group} are not heard: {error}");
                    continue;
                }
            };
            let tell = self.casts.heard.clone();
            self.readers.push(smol::spawn(async move {
                while let Ok((from, bytes)) = group.receive().await {
                    if from.ip() == place.gateway {
                        tell.cast(Heard { from, bytes, announced: true });
                    }
                }
            }));
        }
    }

    /// Follows the default route; what it is comes back as a message.
    fn follow(&mut self) {
        let (tell, shared) = (self.casts.place.clone(), self.shared.clone());
        let mut network = Following::begin(SETTLE);
        if !network.is_open() {
            // Nobody is to wait for a gateway meanwhile.
            tell.cast(PlaceIs(None));
        }
        self.watch = Some(smol::spawn(async move {
            loop {
                let netlink = network.changed().await;
                network.looked(look(&netlink, &shared).await.map(|place| tell.cast(PlaceIs(place))));
            }
        }));
    }

    /// Has the mappings deleted, as far as that can be done in a moment.
    async fn release(mut self) {
        let end = Instant::now() + RELEASE_WITHIN;
        self.readers.clear();
        self.core.release(Instant::now());
        let (tell, told) = smol::channel::bounded(1);
        let mut fetching = None;
        while !self.core.is_released() && Instant::now() < end {
            while let Some(output) = self.core.poll_output() {
                match output {
                    Output::Ask(bytes) => self.send(PMP_PORT, &bytes),
                    Output::Fetch { id, to, request } => {
                        let tell = tell.clone();
                        fetching = Some(smol::spawn(async move {
                            // Whoever waits for it may have given up.
                            let _ = tell.send(fetch(id, to, request).await).await;
                        }));
                    }
                    Output::Search(_) | Output::Changed => {}
                }
            }
            let Some(socket) = self.socket.clone() else { return };
            let datagram = async { socket.receive().await.ok().map(Wake::Datagram) };
            let fetched = async { told.recv().await.ok().map(Wake::Fetched) };
            let wait = async {
                Timer::at(self.core.poll_timeout().map_or(end, |at| at.min(end))).await;
                None
            };
            let wake = future::or(datagram, future::or(fetched, wait)).await;
            let now = Instant::now();
            match wake {
                Some(Wake::Datagram((from, bytes))) => self.core.handle_datagram(from, &bytes, now),
                Some(Wake::Fetched(Fetched { id, reply })) => {
                    self.core.handle_fetched(id, reply.as_deref().map_err(Clone::clone), now);
                }
                None => self.core.handle_timeout(now),
            }
        }
        drop(fetching);
    }
}

/// What may happen while mappings are deleted.
enum Wake {
    Datagram((std::net::SocketAddr, Vec<u8>)),
    Fetched(Fetched),
}

/// What there is, in words; `None` while it is being found out.
fn words(description: &Description) -> Option<String> {
    let gateway = description.gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
    let mappings: Vec<String> = description
        .mappings
        .iter()
        .map(|mapping| format!("{} {} to port {}", mapping.transport.name(), mapping.outside, mapping.inside))
        .collect();
    match (description.mappings.first().filter(|_| description.settled), &description.why) {
        (Some(first), _) => {
            Some(format!("the gateway {gateway} maps {} ({})", mappings.join(" and "), first.protocol.name()))
        }
        (None, Some(why)) if description.gateway.is_some() => {
            Some(format!("the gateway {gateway} maps no port: {why}"))
        }
        (None, _) => None,
    }
}

async fn fetch(id: u64, to: SocketAddrV4, request: Vec<u8>) -> Fetched {
    let reply = exchange(to, &request, igd::REPLY_MAX, igd::is_whole, FETCH_WITHIN).await;
    Fetched { id, reply: reply.map_err(|error| format!("no exchange over HTTP ({error})")) }
}

/// The gateway of the default route over IPv4 that the kernel prefers, and our address towards it.
async fn look(netlink: &Netlink, shared: &UpnpShared) -> Result<Option<Place>, NetlinkError> {
    Ok(place(&netlink.routes().await?, shared))
}

fn place(routes: &[RouteEntry], shared: &UpnpShared) -> Option<Place> {
    let device = (shared.device)();
    let (_, gateway, source) = routes
        .iter()
        .filter(|route| route.dst.prefix_len() == 0 && Some(route.ifindex) != device)
        .filter_map(|route| match route.gateway? {
            std::net::IpAddr::V4(gateway) => Some((route.priority, gateway, route.source)),
            std::net::IpAddr::V6(_) => None,
        })
        .min_by_key(|(priority, gateway, _)| (*priority, *gateway))?;
    let own = match shared.own.map(Into::into).or(source).or_else(|| source_towards(gateway.into()))? {
        std::net::IpAddr::V4(own) => own,
        std::net::IpAddr::V6(_) => return None,
    };
    Some(Place { gateway, own })
}

impl Actor for Upnp {
    type Stop = StopReason;

    async fn started(&mut self, _: &Mailbox<Self>) -> Result<(), StopReason> {
        self.follow();
        Ok(())
    }

    async fn stopped(self) -> StopReason {
        if self.goodbye {
            self.release().await;
        }
        StopReason::Requested
    }
}

super::ext::answers_pings!(Upnp);

impl Service for Upnp {
    const NAME: &'static str = "upnp";

    fn next_timeout(&self) -> Option<Instant> {
        self.core.poll_timeout()
    }

    fn on_timeout(&mut self, now: Instant) {
        self.core.handle_timeout(now);
    }

    fn settle(&mut self, _: Instant) {
        self.drain();
    }

    fn stopping(&mut self, reason: &StopReason) {
        self.goodbye = matches!(reason, StopReason::Requested);
    }
}

impl Handler<PlaceIs> for Upnp {
    type Return = ();

    async fn handle(&mut self, PlaceIs(place): PlaceIs, _: &mut Context<Self>) {
        if place != self.place {
            self.place = place;
            (self.socket, self.fetch) = (None, None);
            self.readers.clear();
            if let Some(place) = place {
                self.open(place);
            }
        }
        self.core.set_place(place, Instant::now());
    }
}

impl Handler<Heard> for Upnp {
    type Return = ();

    async fn handle(&mut self, Heard { from, bytes, announced }: Heard, _: &mut Context<Self>) {
        let now = Instant::now();
        if announced {
            self.core.handle_announcement(from, &bytes, now);
        } else {
            self.core.handle_datagram(from, &bytes, now);
        }
    }
}

impl Handler<Fetched> for Upnp {
    type Return = ();

    async fn handle(&mut self, Fetched { id, reply }: Fetched, _: &mut Context<Self>) {
        self.core.handle_fetched(id, reply.as_deref().map_err(Clone::clone), Instant::now());
    }
}
