//! UplinkKeeper: has a socket for each configured uplink that is there, and takes away those of uplinks that are not.
//!
//! It runs where `uplinks` names some. Which sockets are wanted is [`uplink_choice`]'s to say. A restart reads the
//! machine's addresses anew; what the sockets are for is held by the wiring.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use xtra::{Actor, Context, Handler, Mailbox};

use super::client::ClientShared;
use super::ext::{Caster, Service, StopReason, answers_pings};
use crate::config::Uplink;
use crate::ids::UplinkId;
use crate::io::follow::Following;
use crate::io::netlink::{InterfaceAddress, Netlink, NetlinkError};
use crate::io::udp::{SOCKET_BUFFER, UdpUplink};
use crate::io::uplinks::Uplinks;
use crate::messages::peer_table::UplinksChanged;
use crate::messages::uplink_keeper::AddressesSeen;
use crate::proto::peers::LocalUplink;
use crate::proto::uplink_choice::{Place, Wanted, wanted};

/// Changes of addresses come in bursts; an uplink that went is missed no later than this.
const SETTLE: Duration = Duration::from_millis(20);

/// What the sockets that are there were made for; only the keeper writes it.
pub type Held = Arc<Mutex<Vec<Wanted>>>;

/// The actor.
pub struct UplinkKeeper {
    shared: Arc<ClientShared>,
    changed: Caster<UplinksChanged>,
    own: Caster<AddressesSeen>,
    held: Held,
    /// What could not be bound; told once.
    trouble: Option<String>,
    watch: Option<smol::Task<()>>,
}

impl UplinkKeeper {
    pub fn new(
        shared: Arc<ClientShared>,
        held: Held,
        changed: Caster<UplinksChanged>,
        own: Caster<AddressesSeen>,
    ) -> Self {
        Self { shared, changed, own, held, trouble: None, watch: None }
    }

    fn settle_on(&mut self, places: &[Place]) {
        let wanted = wanted(&self.shared.config.uplinks, places);
        let uplinks = &self.shared.uplinks;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in held.extract_if(.., |held| !wanted.contains(held)) {
            uplinks.remove(gone.id);
            self.shared.events.say(format!("uplink {} is gone", name(&gone)));
        }
        // What is gone is known as such before anything comes in its place.
        self.changed.cast(UplinksChanged(local(uplinks)));
        let mut trouble = None;
        for new in wanted {
            if held.contains(&new) {
                continue;
            }
            let device = new.device.as_ref().map(|(device, _)| device.as_str());
            let bound = UdpUplink::bind_on(new.id, SocketAddr::new(new.addr, 0), device, SOCKET_BUFFER);
            match bound
                .map_err(|error| error.to_string())
                .and_then(|uplink| uplinks.add(uplink).map_err(|e| e.to_string()))
            {
                Ok(_) => {
                    self.shared.events.say(format!("uplink {} is there", name(&new)));
                    held.push(new);
                }
                Err(error) => trouble = Some(format!("uplink {}: {error}", name(&new))),
            }
        }
        if trouble != self.trouble {
            trouble.iter().for_each(|text| self.shared.events.say(text.clone()));
            self.trouble = trouble;
        }
        self.changed.cast(UplinksChanged(local(uplinks)));
    }
}

/// The sockets of the configured uplinks, as the peer table knows them.
pub fn local(uplinks: &Uplinks) -> Vec<LocalUplink> {
    let further = uplinks.readers().filter(|uplink| UplinkId::FURTHER.contains(&uplink.id().0));
    further.map(|uplink| LocalUplink { id: uplink.id(), is_ipv4: uplink.local_addr().is_ipv4() }).collect()
}

/// The ports that peers may reach an address of ours at: of the sockets that direct paths use.
pub fn ports_at(address: &InterfaceAddress, configured: &[Uplink], uplinks: &Uplinks) -> Vec<u16> {
    let usual = |id: UplinkId| id == if address.addr.is_ipv4() { UplinkId::UDP4 } else { UplinkId::UDP6 };
    let hears = |uplink: &UdpUplink| {
        let bound = uplink.local_addr().ip();
        uplink.device().is_none_or(|device| device == address.name)
            && (bound == address.addr || bound.is_unspecified() && bound.is_ipv4() == address.addr.is_ipv4())
    };
    let ours = uplinks.readers().filter(|uplink| match configured.is_empty() {
        true => usual(uplink.id()),
        false => UplinkId::FURTHER.contains(&uplink.id().0) && hears(uplink),
    });
    ours.map(|uplink| uplink.local_addr().port()).collect()
}

fn name(wanted: &Wanted) -> String {
    let family = if wanted.addr.is_ipv4() { "IPv4" } else { "IPv6" };
    wanted.device.as_ref().map_or_else(|| wanted.addr.to_string(), |(device, _)| format!("{device} ({family})"))
}

async fn places(netlink: &Netlink) -> Result<Vec<Place>, NetlinkError> {
    let addresses = netlink.addresses().await?;
    let here = addresses.into_iter().filter(|address| address.is_up() && address.is_usable());
    let place = |InterfaceAddress { name, ifindex, addr, .. }| Place {
        device: name,
        ifindex,
        addr: IpAddr::to_canonical(&addr),
    };
    Ok(here.map(place).collect())
}

impl Actor for UplinkKeeper {
    type Stop = StopReason;

    async fn started(&mut self, _: &Mailbox<Self>) -> Result<(), StopReason> {
        let mut network = Following::begin(SETTLE);
        let own = self.own.clone();
        self.watch = Some(smol::spawn(async move {
            loop {
                let netlink = network.changed().await;
                // What cannot be read says nothing of what is there.
                network.looked(places(&netlink).await.map(|places| own.cast(AddressesSeen(places))));
            }
        }));
        Ok(())
    }

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

answers_pings!(UplinkKeeper);

impl Service for UplinkKeeper {
    const NAME: &'static str = "uplink_keeper";
}

impl Handler<AddressesSeen> for UplinkKeeper {
    type Return = ();

    async fn handle(&mut self, AddressesSeen(places): AddressesSeen, _: &mut Context<Self>) {
        self.settle_on(&places);
    }
}
