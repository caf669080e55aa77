//! Neighbours: says in the LANs of this machine that it is here, and tells the peer table of members who say so.
//!
//! A restart announces anew.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smol::Task;
use xtra::{Actor, Context, Handler, Mailbox};

use super::client::ClientShared;
use super::ext::{Caster, Service, StopReason};
use crate::io::follow::Following;
use crate::io::lan::LanSocket;
use crate::io::netlink::{Netlink, NetlinkError};
use crate::messages::neighbours::{Interfaces, Shouted};
use crate::messages::peer_table::Neighbour;
use crate::proto::neighbours::{Neighbours as Core, is_private};

/// Changes of interfaces are gathered for this long before they are acted on.
const SETTLE: Duration = Duration::from_millis(100);
/// How often a machine that is in no network yet looks whether it is.
const NOT_YET: Duration = Duration::from_millis(500);
/// Interfaces that are announced at.
const INTERFACES_MAX: usize = 16;

/// Whom the actor tells.
#[derive(Clone)]
pub struct NeighboursCasts {
    pub found: Caster<Neighbour>,
    /// To ourselves, for what tasks find out.
    pub own: (Caster<Interfaces>, Caster<Shouted>),
}

/// The actor.
pub struct Neighbours {
    shared: Arc<ClientShared>,
    casts: NeighboursCasts,
    core: Option<Core>,
    look_at: Instant,
    /// The sockets at each interface, and the task that reads them.
    places: BTreeMap<Ipv4Addr, (Arc<LanSocket>, Task<()>)>,
    watch: Option<Task<()>>,
}

impl Neighbours {
    pub fn new(shared: Arc<ClientShared>, casts: NeighboursCasts) -> Self {
        Self { shared, casts, core: None, look_at: Instant::now(), places: BTreeMap::new(), watch: None }
    }

    /// Follows the machine's addresses; what it finds comes back as a message.
    fn watch(&mut self) {
        let (tell, shared) = (self.casts.own.0.clone(), self.shared.clone());
        let mut network = Following::begin(SETTLE);
        self.watch = Some(smol::spawn(async move {
            loop {
                let netlink = network.changed().await;
                network.looked(look(&netlink, &shared).await.map(|places| tell.cast(Interfaces(places))));
            }
        }));
    }

    fn shout(&self) {
        let Some(core) = &self.core else { return };
        let bytes = core.announcement(self.shared.uplinks.port(), false).to_bytes();
        for (own, (socket, _)) in &self.places {
            if let Err(error) = socket.shout(&bytes) {
                log::debug!("announcing at {own}: {error}");
            }
        }
    }
}

/// The private addresses of interfaces that are up, but for those of the network itself.
async fn look(netlink: &Netlink, shared: &ClientShared) -> Result<Vec<Ipv4Addr>, NetlinkError> {
    let device = shared.slot.get().map(|tap| tap.ifindex());
    let overlay = shared.views.own.load().overlay.clone();
    let addresses = netlink.addresses().await?;
    let usable = addresses.iter().filter(|address| {
        address.is_usable() && address.is_up() && !address.is_loopback() && Some(address.ifindex) != device
    });
    let mut places: Vec<Ipv4Addr> = usable
        .filter_map(|address| match address.addr {
            IpAddr::V4(ip) if is_private(ip.into()) => Some(ip),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        })
        .filter(|ip| !overlay.iter().any(|net| net.contains(&IpAddr::V4(*ip))))
        .collect();
    places.sort_unstable();
    places.dedup();
    places.truncate(INTERFACES_MAX);
    Ok(places)
}

impl Actor for Neighbours {
    type Stop = StopReason;

    async fn started(&mut self, _: &Mailbox<Self>) -> Result<(), StopReason> {
        self.watch();
        Ok(())
    }

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

super::ext::answers_pings!(Neighbours);

impl Service for Neighbours {
    const NAME: &'static str = "neighbours";

    fn next_timeout(&self) -> Option<Instant> {
        Some(self.core.as_ref().map_or(self.look_at, Core::poll_timeout))
    }

    fn on_timeout(&mut self, now: Instant) {
        if let Some(core) = &mut self.core {
            if core.handle_timeout(now) {
                self.shout();
            }
            return;
        }
        self.look_at = now + NOT_YET;
        if let Some(pinned) = *self.shared.pinned.load_full() {
            self.core = Some(Core::new(pinned.network.tag(), &self.shared.key.node_id(), now));
        }
    }
}

impl Handler<Interfaces> for Neighbours {
    type Return = ();

    async fn handle(&mut self, Interfaces(list): Interfaces, _: &mut Context<Self>) {
        let before = self.places.len();
        self.places.retain(|own, (_, task)| list.contains(own) && !task.is_finished());
        let mut changed = self.places.len() != before;
        for own in list {
            if self.places.contains_key(&own) {
                continue;
            }
            let socket = match LanSocket::open(own) {
                Ok(socket) => Arc::new(socket),
                Err(error) => {
                    log::debug!("neighbours at {own} are not looked for: {error}");
                    continue;
                }
            };
            let (reader, tell) = (socket.clone(), self.casts.own.1.clone());
            let task = smol::spawn(async move {
                while let Ok((from, bytes)) = reader.receive().await {
                    tell.cast(Shouted { at: own, from, bytes });
                }
            });
            self.places.insert(own, (socket, task));
            changed = true;
        }
        if let Some(core) = self.core.as_mut().filter(|_| changed) {
            core.changed(Instant::now());
        }
    }
}

impl Handler<Shouted> for Neighbours {
    type Return = ();

    async fn handle(&mut self, Shouted { at, from, bytes }: Shouted, _: &mut Context<Self>) {
        let Some(core) = &mut self.core else { return };
        let heard = match core.hear(from, &bytes, Instant::now()) {
            Ok(Some(heard)) => heard,
            Ok(None) => return,
            Err(reason) => return self.shared.views.counters.dropped(reason),
        };
        if let (Some(to), Some((socket, _))) = (heard.answer, self.places.get(&at)) {
            let bytes = core.announcement(self.shared.uplinks.port(), true).to_bytes();
            if let Err(error) = socket.answer(to, &bytes) {
                log::debug!("answering {to}: {error}");
            }
        }
        self.casts.found.cast(Neighbour { node: heard.node, addr: heard.addr });
    }
}
